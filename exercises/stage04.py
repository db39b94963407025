"""The exercises of stage 4: descend. `python exercises 4` checks them."""

import math

import numpy as np

import stage04_optim as stage

# %% 1. ★ (by hand) Three steps of a ball
# L(x) = x², as in section 1. Start at x = 1 with b = 0 and take three steps with η = 1/4 and
# β = 1/2, on paper. All results are exact in decimals.
# ANSWER_1:  the three places of the heavy ball after the start, as a list.
# ANSWER_1B: the same for Nesterov's method in the form θ′ = θ - η·(g + βb′) of section 7.
ANSWER_1 = None
ANSWER_1B = None


# %% 2. ★ (by hand) What the optimizer keeps
# Read `slots` in sections 7 to 11, and section 13: forward and backward use 16-bit copies of the
# parameters and give 16-bit gradients; the optimizer keeps its parameters and slots in float32.
# ANSWER_2:  how many numbers a parameter do SGD, AdaGrad, RMSprop, Adam, AdamW, Lion and Muon
#            remember between two steps, besides the parameter itself? A list of seven.
# ANSWER_2B: a model of 7·10⁹ parameters is trained so with AdamW. How many gigabytes (10⁹ bytes) do
#            parameters, their copies, gradients and slots take together?
ANSWER_2 = None
ANSWER_2B = None


# %% 3. ★ (derive) The valley that suits a momentum
# Everybody sets β = 0.9. Solve section 7's formula for κ: for which condition number is a given β
# the heavy ball's best? (For β = 0.9 it is longer than one would think.)
def kappa_for(beta):
    """The κ for which `beta`, 0 <= beta < 1, is the momentum of the best heavy ball."""
    raise NotImplementedError


# %% 4. ★ (implement) A batch in pieces
# Section 5, gradient accumulation: the batch is too large for memory. Compute its gradient from
# pieces of `piece` examples, in order; the last piece may be smaller.
def accumulate(gradient, X, Y, piece):
    """The mean gradient over all N examples: a dict from name to array.

    gradient(X, Y) gives such a dict for at most `piece` examples, averaged over those it was given.
    X (N, context), Y (N,).
    """
    raise NotImplementedError


# %% 5. ★★ (find the bug) Right on paper, explodes in training
# This should do what section 11's orthogonalize does. For [[3, 0], [0, 0.1]] it agrees with the
# table there, nearly; for a matrix of a network it gives nonsense. Somebody broke one line.
def orthogonal(G):
    """About U·Vᵀ of G = U·S·Vᵀ: singular values from 0.68 to 1.21. G (n, m) float64, not all 0."""
    a, b, c = stage.NEWTON_SCHULZ
    X = G.T if G.shape[0] > G.shape[1] else G
    X = X / np.abs(X).max()
    for _ in range(5):
        A = X @ X.T
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.T if G.shape[0] > G.shape[1] else X


# %% 6. ★★ (explain) Seven steps
# In the report's race, AdaGrad and RMSprop need 7 steps on the bowl ½(x² + 100y²), Nesterov 24 and
# the heavy ball 98; on Rosenbrock's valley neither of the two arrives. What do the 7 steps show?
#   a  AdaGrad's rate was the best of 13, the ball's was not
#   b  the bowl's axes are the coordinates; in a bowl turned by 45° AdaGrad would lose its lead
#   c  √s is the curvature of each coordinate, and so AdaGrad takes Newton's step
#   d  it is luck: from another seed the walk would take hundreds of steps
# ANSWER_6: one letter, as a string.
ANSWER_6 = None


# %% 7. ★★ (implement) Restarts
# SGDR (Loshchilov, Hutter 2017): half a cosine from lr down to 0, and at once lr again, in cycles
# of `first`, first·growth, first·growth², ... steps. Where a cycle would reach 0, the next begins.
def restarts(step, lr, first, growth):
    """The rate at this step (0, 1, ...). first, growth: whole numbers of at least 1."""
    raise NotImplementedError


# %% 8. ★★ (derive) A fence around the weights
# Lion's weight decay w is a fence: however the gradients look, no weight gets far. How far can one
# have come after t steps? Unroll θ ← (1 - ηw)θ - η·sign(c), with the signs that push it outward.
def farthest(start, lr, weight_decay, steps):
    """The largest |θ| that Lion can reach from |θ| = start in so many steps. 0 < lr·w < 1."""
    raise NotImplementedError


# %% 9. ★★ (measure) The ball that never arrives
# After Lessard, Recht, Packard 2016. A landscape in one dimension has the slope 25x for x < 1,
# x + 24 for 1 ≤ x < 2, and 25x - 24 for x ≥ 2: its curvature is 1 or 25 everywhere, and its only
# minimum is 0. Let SGD walk from x = 3.3 with the heavy ball's η and β of proven_rates(1, 25).
# ANSWER_9:  in the end it goes round and round through the same places. Through how many?
# ANSWER_9B: the largest of them, to three digits.
ANSWER_9 = None
ANSWER_9B = None


# %% 10. ★★★ (derive) Noise, remembered
# Section 5 without momentum: Var(x) = ησ²/(λ(2 - ηλ)) for B = 1. Now with the heavy ball. As in
# section 7, x″ = (1 + β - ηλ)·x′ - β·x - η·n for three places in a row, n a fresh noise of variance
# σ². Find Var(x) where it has settled.
def noise_floor_with_momentum(lr, beta, curvature, noise_variance):
    """Var(x) where the heavy ball hovers on ½λx². 0 < lr·λ < 2(1 + β); noise_variance: σ²."""
    raise NotImplementedError


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
    raise NotImplementedError
