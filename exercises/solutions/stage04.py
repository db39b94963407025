"""Solutions of the exercises of stage 4: descend. `python exercises 4` checks them."""

import math

import numpy as np

import stage04_optim as stage

# %% 1. ★ (by hand) Three steps of a ball
# L(x) = x², as in section 1. Start at x = 1 with b = 0 and take three steps with η = 1/4 and
# β = 1/2, on paper. All results are exact in decimals.
# ANSWER_1:  the three places of the heavy ball after the start, as a list.
# ANSWER_1B: the same for Nesterov's method in the form θ′ = θ - η·(g + βb′) of section 7.
ANSWER_1 = [0.5, 0.0, -0.25]
ANSWER_1B = [0.25, -0.0625, -0.109375]
# > The ball: g = 2, b = 2, x = 1 - 2/4 = 1/2. Then g = 1, b = 1 + 1 = 2, x = 0. There g = 0, but b
# > = 1, and so x = -1/4: it rolls past the bottom. Nesterov: b = 2, x = 1 - (2 + 1)/4 = 1/4. Then g
# > = 1/2, b = 3/2, x = 1/4 - (1/2 + 3/4)/4 = -1/16. Then g = -1/8, b = 3/4 - 1/8 = 5/8 and x =
# > -1/16 - (-1/8 + 5/16)/4 = -7/64. It looks ahead, and brakes before it has passed.
HINTS_1 = [
    "Write a table with a column each for g = 2x, b and x. b is changed before it is used.",
    "The ball: b ← b/2 + g, then x ← x - b/4. The first row is g = 2, b = 2, x = 1/2.",
    "Nesterov: b as before, but x ← x - (g + b/2)/4, with the b that was just computed.",
]

# %% 2. ★ (by hand) What the optimizer keeps
# Read `slots` in sections 7 to 11, and section 13: forward and backward use 16-bit copies of the
# parameters and give 16-bit gradients; the optimizer keeps its parameters and slots in float32.
# ANSWER_2:  how many numbers a parameter do SGD, AdaGrad, RMSprop, Adam, AdamW, Lion and Muon
#            remember between two steps, besides the parameter itself? A list of seven.
# ANSWER_2B: a model of 7·10⁹ parameters is trained so with AdamW. How many gigabytes (10⁹ bytes) do
#            parameters, their copies, gradients and slots take together?
ANSWER_2 = [1, 1, 1, 2, 2, 1, 1]
ANSWER_2B = 112
# > A parameter has 2 bytes as a copy, 2 for its gradient, 4 in the optimizer, and 4 for each of m
# > and v: 16 bytes, and 112 GB in all. With everything in float32 it would be 4 + 4 + 8 = 16, too!
# > Sixteen bits save what this sum does not count: the activations, and time. Lion needs 12 bytes.
# > (Our SGD keeps b even without momentum; torch's does not.)
HINTS_2 = [
    "`slots` names the arrays kept for each parameter. AdamW inherits from Adam.",
    "Count the bytes of one parameter: a 16-bit number has 2, a float32 has 4.",
    "There are five numbers: the copy, its gradient, the optimizer's parameter, and two slots.",
]


# %% 3. ★ (derive) The valley that suits a momentum
# Everybody sets β = 0.9. Solve section 7's formula for κ: for which condition number is a given β
# the heavy ball's best? (For β = 0.9 it is longer than one would think.)
def kappa_for(beta):
    """The κ for which `beta`, 0 <= beta < 1, is the momentum of the best heavy ball."""
    root = math.sqrt(beta)
    return ((1 + root) / (1 - root)) ** 2


# > √κ = (1 + √β)/(1 - √β) stands in section 7. β = 0.9 suits κ = 1,442; there ρ = √0.9 = 0.949, and
# > ρᵗ = 10⁻⁶ after 262 steps, where the best descent takes 9,961. 0.99 would suit κ = 158,000.
HINTS_3 = [
    "Section 7 has the relation between √κ and √β, from the ratio of the two ends.",
    "Only a square is missing. Check: proven_rates(1, κ) gives β back.",
]


# %% 4. ★ (implement) A batch in pieces
# Section 5, gradient accumulation: the batch is too large for memory. Compute its gradient from
# pieces of `piece` examples, in order; the last piece may be smaller.
def accumulate(gradient, X, Y, piece):
    """The mean gradient over all N examples: a dict from name to array.

    gradient(X, Y) gives such a dict for at most `piece` examples, averaged over those it was given.
    X (N, context), Y (N,).
    """
    total = {}
    for i in range(0, len(X), piece):
        x, y = X[i : i + piece], Y[i : i + piece]
        share = len(x) / len(X)
        for name, g in gradient(x, y).items():
            total[name] = total.get(name, 0) + share * g
    return total


# > (1/B)·Σᵢ ∇ℓᵢ = Σₚ (Bₚ/B)·(mean of ∇ℓ in p). Many programs divide by the number of pieces
# > instead. That is right only if all are equal; of a piece of one example, each would count as a
# > whole one.
HINTS_4 = [
    "Loop over range(0, len(X), piece) and slice; a slice past the end is simply shorter.",
    "A piece counts in proportion to its examples: its mean times len(x) / len(X).",
    "Start with an empty dict, and add share * g to what is there for that name already.",
]


# %% 5. ★★ (find the bug) Right on paper, explodes in training
# This should do what section 11's orthogonalize does. For [[3, 0], [0, 0.1]] it agrees with the
# table there, nearly; for a matrix of a network it gives nonsense. Somebody broke one line.
def orthogonal(G):
    """About U·Vᵀ of G = U·S·Vᵀ: singular values from 0.68 to 1.21. G (n, m) float64, not all 0."""
    a, b, c = stage.NEWTON_SCHULZ
    X = G.T if G.shape[0] > G.shape[1] else G
    X = X / np.linalg.norm(X)  # was: X = X / np.abs(X).max()
    for _ in range(5):
        A = X @ X.T
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.T if G.shape[0] > G.shape[1] else X


# > The rounds want every σ to be at most 1. The largest entry does not bound σ: the n by n matrix
# > of ones has the entries 1, and σ = n. Only where the matrix is diagonal is the largest entry the
# > largest σ, and the example is. The root of the sum of squares is √Σσᵢ², above every σ.
HINTS_5 = [
    "Try np.ones((4, 4)): what is its singular value, and what does the function make of it?",
    "What must be true of all σ before the first round? Section 11 says how that is reached.",
    "Which size of a matrix is never below its largest σ? The largest entry often is.",
]

# %% 6. ★★ (explain) Seven steps
# In the report's race, AdaGrad and RMSprop need 7 steps on the bowl ½(x² + 100y²), Nesterov 24 and
# the heavy ball 98; on Rosenbrock's valley neither of the two arrives. What do the 7 steps show?
#   a  AdaGrad's rate was the best of 13, the ball's was not
#   b  the bowl's axes are the coordinates; in a bowl turned by 45° AdaGrad would lose its lead
#   c  √s is the curvature of each coordinate, and so AdaGrad takes Newton's step
#   d  it is luck: from another seed the walk would take hundreds of steps
# ANSWER_6: one letter, as a string.
ANSWER_6 = "b"
# > A scale for each coordinate undoes κ only if the long and the short axis are coordinates. Turned
# > by 45° (tried here, best of the same 13 rates), AdaGrad takes 369 steps, RMSprop 242, Adam 89
# > instead of 66, while SGD, the ball and Nesterov take exactly as many as before: their formulas
# > do not know where the coordinates point. Rosenbrock's valley bends, so it is always turned.
HINTS_6 = [
    "Section 8: AdaGrad works entry by entry. What is the bowl's curvature in each entry?",
    "Let x = (u - v)/√2, y = (u + v)/√2, and write the bowl in u and v. How do u and v curve?",
    "Try it: pass `walk` a landscape that turns the point, and turns the slope back.",
]


# %% 7. ★★ (implement) Restarts
# SGDR (Loshchilov, Hutter 2017): half a cosine from lr down to 0, and at once lr again, in cycles
# of `first`, first·growth, first·growth², ... steps. Where a cycle would reach 0, the next begins.
def restarts(step, lr, first, growth):
    """The rate at this step (0, 1, ...). first, growth: whole numbers of at least 1."""
    length = first
    while step >= length:
        step -= length
        length *= growth
    return 0.5 * lr * (1 + math.cos(math.pi * step / length))


# > With step counted from the cycle's start, u = step/length runs from 0 to just below 1, and ½(1 +
# > cos πu) does the rest. The end of each cycle is a model that could be used.
HINTS_7 = [
    "First find the cycle: while step is not in it, take off its length and lengthen the next.",
    "Then step counts from the start of its cycle, and u = step/length; section 14 has the cosine.",
    "Check: restarts(first, ...) is lr. With growth = 1 the rate repeats every `first` steps.",
]


# %% 8. ★★ (derive) A fence around the weights
# Lion's weight decay w is a fence: however the gradients look, no weight gets far. How far can one
# have come after t steps? Unroll θ ← (1 - ηw)θ - η·sign(c), with the signs that push it outward.
def farthest(start, lr, weight_decay, steps):
    """The largest |θ| that Lion can reach from |θ| = start in so many steps. 0 < lr·w < 1."""
    kept = (1 - lr * weight_decay) ** steps
    return kept * start + (1 - kept) / weight_decay


# > |θ| ← q|θ| + η at most, with q = 1 - ηw. Unrolled, |θₜ| ≤ qᵗ|θ₀| + η(1 + q + ... + qᵗ⁻¹), and
# > the sum is (1 - qᵗ)/(1 - q) = (1 - qᵗ)/(ηw). As t grows, the fence is 1/w, wherever it began:
# > Lion with w = 0.1 keeps all weights within ±10, and η only says how soon. Adam's steps are about
# > η, too, so for AdamW the fence is much the same.
HINTS_8 = [
    "With q = 1 - ηw, the worst case is |θ| ← q·|θ| + η. Write out three steps of it.",
    "1 + q + ... + qᵗ⁻¹ telescopes, as in section 9.",
    "Divide by 1 - q, which is ηw. As t → ∞, what remains must not depend on η or the start.",
]

# %% 9. ★★ (measure) The ball that never arrives
# After Lessard, Recht, Packard 2016. A landscape in one dimension has the slope 25x for x < 1,
# x + 24 for 1 ≤ x < 2, and 25x - 24 for x ≥ 2: its curvature is 1 or 25 everywhere, and its only
# minimum is 0. Let SGD walk from x = 3.3 with the heavy ball's η and β of proven_rates(1, 25).
# ANSWER_9:  in the end it goes round and round through the same places. Through how many?
# ANSWER_9B: the largest of them, to three digits.
ANSWER_9 = 3
ANSWER_9B = 2.12
# > It goes 2.116, 0.647, -1.802, and again, for ever. The proof of section 7 was for bowls, where
# > the curvature is the same at every place; here it changes between steps, and the ball is pushed
# > again each time round. With Nesterov's η and β (0.04, 2/3) the walk comes to 0.
HINTS_9 = [
    "params = {'x': np.array([3.3])}; stage.SGD(params, η, β); step with {'x': np.array([slope])}.",
    "proven_rates(1, 25)['heavy ball'] gives η, β, ρ; here η = 1/9 and β = 4/9.",
    "Take a thousand steps, and print the next ten places.",
]


# %% 10. ★★★ (derive) Noise, remembered
# Section 5 without momentum: Var(x) = ησ²/(λ(2 - ηλ)) for B = 1. Now with the heavy ball. As in
# section 7, x″ = (1 + β - ηλ)·x′ - β·x - η·n for three places in a row, n a fresh noise of variance
# σ². Find Var(x) where it has settled.
def noise_floor_with_momentum(lr, beta, curvature, noise_variance):
    """Var(x) where the heavy ball hovers on ½λx². 0 < lr·λ < 2(1 + β); noise_variance: σ²."""
    up = lr * noise_variance * (1 + beta)
    return up / (curvature * (1 - beta) * (2 * (1 + beta) - lr * curvature))


# > Let a = 1 + β - ηλ, V = E[x²] and C = E[x′x], the same for each two neighbours. Square the rule:
# >     V = a²V + β²V - 2aβC + η²σ².      Times x′:   C = aV - βC, so C = aV/(1 + β).
# > Together V·(1 - β² - a²(1 - β)/(1 + β)) = η²σ². The bracket is (1 - β)((1 + β)² - a²)/(1 + β),
# > and (1 + β)² - a² = ηλ·(2(1 + β) - ηλ). Hence V = ησ²(1 + β) / (λ(1 - β)(2(1 + β) - ηλ)). For
# > small η it is ησ²/(2λ(1 - β)): momentum hovers as descent would with the rate η/(1 - β), but not
# > exactly.
HINTS_10 = [
    "Two unknowns: V = E[x²], and C = E[x′x] of neighbours. n has nothing to do with x and x′.",
    "Square the rule for the first equation. Multiply it by x′ and average for the second.",
    "C = aV/(1 + β) with a = 1 + β - ηλ. Put it into the first; (1 + β)² - a² is two factors.",
]

# %% 11. ★★ (research) An average for a falling rate
# Keep the rate constant, and at the end take the mean of the parameters over the second half of the
# steps (Polyak 1990). Is that as good as a rate that falls to 0? Tried here with PAIR's optimizers,
# 300 batches, means of three seeds, bits on the development piece: falling in a line, 2.753. The
# constant rate at 0.0156, 0.031 and 0.0625: 2.848, 2.861, 3.068; with the average 2.887, 2.743 and
# 2.797. So the average was as good, at a rate of its own. At the low rate it harmed: there the walk
# is still under way, and the mean of its places lies behind. Then read Defazio et al. 2024, "The
# road less scheduled", which turns this into an optimizer.


# %% 12. ★★★ (project) Faster down than the stage
# `python exercises --project 4` trains section 15's network (128 hidden units, contexts of 8) with
# your optimizer on 300 batches of 128, from three starts, and scores it on the development piece
# (`split`). Be 0.02 bits a character better, on average, than PAIR: Muon + AdamW, linear_decay.
def my_optimizer(params, steps):
    """A function step(t, grads) that changes params in place; it is called for t = 0..steps - 1.

    params: a dict of float32 arrays C, H, d, U, b. grads: the same keys and shapes, not clipped.
    """
    muon = stage.Muon({name: params[name] for name in "HU"}, 0.05, 0.01, momentum=0.9)
    table = stage.AdamW({"C": params["C"]}, 0.05)
    vectors = stage.AdamW({name: params[name] for name in "db"}, 0.0125, weight_decay=0)
    optimizers = [muon, table, vectors]
    rates = [optimizer.lr for optimizer in optimizers]

    def step(t, grads):
        stage.clip_grad_norm(grads, 1.0)
        for optimizer, rate in zip(optimizers, rates):
            optimizer.lr = rate * (steps - t) / steps
            optimizer.step({name: grads[name] for name in optimizer.params})

    return step


# > PAIR's rates come in fixed proportions. Let go of them: the embeddings, each of which few
# > contexts of a batch use, like a rate four times as high, and in 300 steps a momentum of 0.95
# > remembers too much of the beginning. Here that took 2.765 bits to 2.684. Neither clipping nor
# > the decay mattered; averaging the last steps did not help, as the falling rate averages already.
HINTS_12 = [
    "Start from PAIR: Muon for H and U, AdamW for the rest, and a rate that falls in a line.",
    "Then change one thing at a time: each part's rate (C's above all), betas, Muon's momentum.",
    "Short runs want short memories; rows of C are seldom seen, so their steps may be larger.",
]
