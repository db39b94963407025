"""Solutions of the exercises of stage 8: diagnose. `python exercises 8` checks them."""

import math

import numpy as np

import stage08_dynamics as stage

# %% 1. ★ (by hand) Just below two
# On the first page, descend walks down w²/2 from w = 4. Let it take its four steps at the rate 1.9.
# ANSWER_1:  the last of the five losses, to three digits.
# ANSWER_1B: near 2 the walk still comes closer to 0 with every step, but too slowly for guess: it
#            says "rate too low", though a higher one would be worse. Above which rate does it say
#            so, with four steps? To four digits.
ANSWER_1 = 3.44
ANSWER_1B = 1.987
# > w is multiplied by 1 - 1.9 = -0.9 at each step, the loss by 0.81: 8·0.81⁴ = 3.444. guess
# > compares the last loss with 0.9 of the first, so the border is |1 - rate|⁸ = 0.9, |1 - rate| =
# > 0.98692. On the other side of 1 the border is 0.0131: both rates give the same five losses. Only
# > the length of a step tells them apart, 1.987 of |w| here and 0.013 there, and that is what judge
# > asks for.
HINTS_1 = [
    "By what is w multiplied in one step? And the loss, which is w²/2?",
    'guess says "rate too low" if the last loss is above 0.9 times the first, and not above it.',
    "Four steps multiply the loss by (1 - rate)⁸. When is that 0.9, for a rate between 1 and 2?",
]

# %% 2. ★ (by hand) The average that begins with nothing
# A run has the loss 4 at every step. It is smoothed with β = 0.9 from s₀ = 0, and nobody divides by
# 1 - βᵗ.
# ANSWER_2:  the smoothed loss after step 10, s₁₀, to three digits.
# ANSWER_2B: the number t of the first step whose smoothed loss is right to one per cent.
ANSWER_2 = 2.61
ANSWER_2B = 44
# > s_t = (1 - β)·Σ βᵏ·4 = 4·(1 - βᵗ), so s₁₀ = 4·(1 - 0.9¹⁰) = 2.605: the curve climbs, where the
# > loss is constant. 0.9ᵗ is below 0.01 from t = 44 on. Divided by 1 - βᵗ it is 4 everywhere.
HINTS_2 = [
    "Unroll s_t = βs_t₋₁ + (1-β)·4. The powers of β add up as in the section on the loss curve.",
    "The weights sum to 1 - βᵗ. What is missing to the true 4, as a share?",
    "The share that is missing is 0.9ᵗ; take logarithms.",
]

# %% 3. ★ (explain) A gradient that does not shrink
# The report trains with a Monitor for 5,000 steps. From step 1,666 to the end the loss falls, and
# flattens, from 1.5 to 1.25; but |g|, the length of the gradient that the optimizer was given,
# stays near 1. At a minimum the gradient is 0. Why is |g| not on its way there?
#   a  the model is far from any minimum: the rate fell too early
#   b  the examples of a batch disagree, and their mean over 128 of them stays that long
#   c  the gradient is clipped at 1
#   d  the steps have become so short that the weights, and with them |g|, do not change any more
# ANSWER_3: one letter, as a string.
ANSWER_3 = "b"
# > At a minimum the mean over *all* examples is 0, no single one is. Measured here after 1,500
# > steps: the gradient of all rows is some 0.06 long, the noise of a batch of 128 adds
# > √(160/128) = 1.1. So |g| of a batch says little about how far there is to go; a falling rate
# > averages the noise away, which is why the loss gains so much in the last third.
HINTS_3 = [
    "Of which loss is the minimum that matters, of a batch's or of the whole text's?",
    "Compute the gradient of 128 rows and of 8,192 rows with a trained model, and their lengths.",
    "The mean of n independent noises is √n times shorter than one of them, whatever the loss.",
]


# %% 4. ★ (implement) Whose fault is the needle?
# A needle in the loss, a bad batch: which of its rows pulled so hard? Measure how long the gradient
# of each single example is, all parameters together.
def pulls(model, x, y):
    """‖∂L/∂θ‖ for each example by itself: an array (B,). x (B, T), y (B,)."""
    norms = []
    for i in range(len(y)):
        grads = model.loss_and_grads(x[i : i + 1], y[i : i + 1])[1]
        norms.append(math.sqrt(sum(float((g * g).sum()) for g in grads.values())))
    return np.array(norms)


# > B backward passes, so not for every step; but when a batch went wrong, its largest pulls are the
# > rows to read by eye. The gradient of the batch is the mean of these gradients, and never longer
# > than the mean of their lengths.
HINTS_4 = [
    "loss_and_grads takes a batch of one, too, if the slice keeps the axis: x[i : i + 1].",
    "Think of all arrays of grads joined into one long vector; its length is asked for.",
    "The squares of all entries of all arrays add up; then the root. Once for each i.",
]


# %% 5. ★★ (implement) A slope that cannot be read back
# For tanh and ReLU the layer of this stage reads the slope of φ from h. SiLU, which Llama uses,
# φ(z) = z·σ(z) with σ(z) = 1/(1 + e⁻ᶻ), falls and then rises: one h belongs to two z. Write the
# layer with it, in the form of layer_forward and layer_backward; the cache is what you need.
def silu_forward(x, w, b):
    """h = φ(x W + b) for x (B, K), W (K, C), b (C,); returns (h (B, C), cache)."""
    z = x @ w + b  # (B, C)
    gate = 1 / (1 + np.exp(-z))
    return z * gate, (x, w, z, gate)


def silu_backward(dh, cache):
    """(dx, dW, db) from dh (B, C)."""
    x, w, z, gate = cache
    dz = dh * gate * (1 + z * (1 - gate))  # (B, C)
    return dz @ w.T, x.T @ dz, dz.sum(0)


# > By the product rule φ' = σ + z·σ', and σ' = σ·(1 - σ). The rest is the layer as it was. Below z
# > = -1.28 the slope is negative, and 0 at that point only. But far to the left it is as good as 0:
# > a bias of -30 kills this unit, too.
HINTS_5 = [
    "Keep z, or σ(z), in the cache; h alone does not tell which side of the dip it comes from.",
    "σ' = σ·(1 - σ). What does the product rule give for z·σ(z)?",
    "dz = dh ⊙ φ'(z); dx, dW and db follow from dz as in layer_backward.",
]


# %% 6. ★★ (find the bug) The check that trusts nobody
# A short slope check after the stage's: it steps forward and back along a random direction u and
# compares the slope of the loss with u·∂L/∂θ. It calls every backward wrong, the right ones too.
# Mend its one wrong line.
def slope_errors(model, x, y, rng, epsilon=1e-6):
    """{name: relative error of the slope along a random direction}, for a float64 tanh model."""
    grads = model.loss_and_grads(x, y)[1]
    errors = {}
    for name, g in grads.items():
        w = model.params[name]
        u = rng.normal(size=g.shape)
        losses = []
        for step in (epsilon, -epsilon):
            model.params[name] = w + step * u  # was: model.params[name] += step * u
            losses.append(model.loss_and_grads(x, y)[0])
        model.params[name] = w
        measured = (losses[0] - losses[1]) / (2 * epsilon)
        told = float((u * g).sum())
        errors[name] = abs(measured - told) / max(abs(measured), abs(told))
    return errors


# > += changes the array in place. So the second step starts where the first one has led to, and
# > comes back to θ instead of θ - εu: the two losses are half as far apart, and every error is one
# > half. And w is no copy but a second name for the same array: it moves along, and restores
# > nothing.
HINTS_6 = [
    "Print the errors for a model of the stage. They are all the same. What does that number say?",
    "At which two places are the losses taken? Follow one number of w through the loop.",
    "a += b changes the array in place, for everybody who holds it; a = a + b makes a new one.",
]


# %% 7. ★★ (derive) Four times as long, and for how many steps?
# Late steps of Adam are √((1-β)/(1+β)) = 0.23 of a rate long, early ones a whole rate. In between?
# Let the gradients be independent noise of mean 0 and mean square 1, so that √v is 1, and find the
# rms of m/(1 - βᵗ) after t steps, where m = βm + (1-β)g from m = 0.
def step_length(beta, t):
    """The root mean square of Adam's step number t = 1, 2, ..., in units of the rate."""
    power = beta**t
    return math.sqrt((1 - beta) * (1 + power) / ((1 + beta) * (1 - power)))


# > m = (1-β)·Σ βᵏg over k = 0..t-1 has the mean square (1-β)²·Σ β²ᵏ = (1-β)²·(1-β²ᵗ)/(1-β²), which
# > is (1-β)/(1+β)·(1-βᵗ)(1+βᵗ). Divide by (1-βᵗ)². At t = 1 it is 1; with β = 0.9 it has come to
# > 0.33 after 10 steps and to 0.24 after 30. The warmup that this reason asks for is short.
HINTS_7 = [
    "Unroll m into a sum of gradients with weights. Independent: the mean squares add up.",
    "The weights are (1-β)·βᵏ for k = 0 to t-1. Sum their squares, a geometric series in β².",
    "1 - β²ᵗ = (1-βᵗ)(1+βᵗ) and 1 - β² = (1-β)(1+β). Divide by (1-βᵗ)², then take the root.",
]


# %% 8. ★★ (derive) What a leak is worth
# A layer without φ keeps a signal's mean square with Var(W) = 1/K, one with ReLU needs 2/K, because
# ReLU halves the mean square of what is symmetric about 0. Now a leaky ReLU: φ(z) = z for z > 0 and
# a·z below, 0 ≤ a ≤ 1. Which Var(W) keeps the mean square? And if one takes 1/K all the same, what
# share of the rms (the root of the mean square) is left after some layers?
def leaky(a, K, layers):
    """[Var(W), share of the rms after that many layers], for units of K inputs, whole numbers."""
    kept = (1 + a * a) / 2
    return [1 / (kept * K), kept ** (layers / 2)]


# > Half of the z are above 0 and keep their square, the others keep a² of it: E[φ(z)²] = (1 + a²)/2
# > · E[z²]. Var(W) must make up for this factor. If it does not, each layer multiplies the mean
# > square by (1 + a²)/2, and the rms by its root: 20 layers of ReLU leave a thousandth, with a =
# > 0.2 it is 1.4 thousandths. A leak saves units from dying; it hardly mends the scale.
HINTS_8 = [
    "z is symmetric about 0. Split E[φ(z)²] into the halves z > 0 and z < 0.",
    "E[φ(z)²] = c·E[z²]; for ReLU c is a half. Then Var(z) = K·E[x²]·Var(W) as in the stage.",
    "After L layers the mean square has lost c that many times. rms is the root of it.",
]

# %% 9. ★★ (measure) The explosion that saturates
# x, y, size = stage.corpus("stories", 8). Two recurrent models of width 32 and embed 8, with gain=3
# and seed=0, one with activation="relu", one with "tanh". Take probe(x[:256], y[:256])["h1"], which
# is (h, ∂L/∂h), both (B, T, C), and compute γ: the gradient at the first of the T times is γᵀ⁻¹
# times as long as at the last, all examples and units together.
# ANSWER_9:  γ with ReLU, to three digits.
# ANSWER_9B: γ with tanh, to three digits.
# ANSWER_9C: the share of saturated units (saturated_units) with tanh, to two digits.
ANSWER_9 = 2.29
ANSWER_9B = 1.09
ANSWER_9C = 0.75
# > ReLU lets half of the gradient's square through, 3/√2 = 2.1 a step at first sight. With tanh the
# > states grow, too, until |h| nears 1, where the slope 1 - h² is small. Large weights times small
# > slopes are hardly more than 1: nothing explodes, and three units of four can hardly learn.
HINTS_9 = [
    "LanguageModel(size, 8, 32, recurrent=True, activation=..., gain=3, seed=0).",
    "np.linalg.norm(dh, axis=(0, 2)) has one length for each of the 8 times.",
    "From the first to the last of 8 times there are 7 steps: a seventh root.",
]


# %% 10. ★★★ (implement) A leak in two halves
# The audit looks at one input column at a time. But if y = x₀ + x₂ (modulo V), each column alone
# says nothing. Look at pairs of columns: the share is (I - I₀)/(H - I₀), as for `determined`, with
# the pair in place of x_j, and I₀ the mean I for three permutations of y.
def pair_leak(x, y, vocab_size, rng):
    """(i, j, share), i < j, of the pair of columns of x (N, T) that fixes y (N,) best."""
    entropy = stage.unigram_entropy(y)
    best = (0, 1, -math.inf)
    for i in range(x.shape[1]):
        for j in range(i + 1, x.shape[1]):
            pair = x[:, i] * vocab_size + x[:, j]
            trials = [rng.permutation(y) for _ in range(3)]
            chance = np.mean([stage.information(pair, z, vocab_size) for z in trials])
            found = stage.information(pair, y, vocab_size)
            share = float((found - chance) / max(entropy - chance, 1e-9))
            if share > best[2]:
                best = (i, j, share)
    return best


# > A pair is one symbol out of V², x_i·V + x_j. With V² cells for the counts, chance alone shows a
# > lot: 2,000 rows and V = 12 give I₀ of a third of H. Without I₀ a pair of large V looks like a
# > leak. Triples would need V³ cells; at some point only a trained model finds what is hidden so.
HINTS_10 = [
    "Two columns of ids below V become one column of ids below V²: x_i·V + x_j.",
    "stage.information(pair, y, V) takes any ids in its first argument.",
    "For I₀ call it with rng.permutation(y), for the same pair; three times are enough.",
]

# %% 11. ★★★ (research) After a tenth of the run
# How early can a cause be named? Here each of the 14 diseases was run at seeds 0 to 2 (clinic_run),
# and its History cut after 20 of 200 steps (of 600 for underfitting; probes, too). diagnose named
# 41 of 42 from the whole runs, 32 from the cut ones: never overfitting and underfitting, which are
# not there yet, 1 "no warmup" of 3, and 2 of 3 shuffled labels and vanishing gradients. And it
# doubted most healthy runs: no progress in 20 steps. Which of these misses would rules made for
# short runs avoid, and what cannot be seen that early by anybody?


# %% 12. ★★★ (project) Heal the run
# This program trains without an error message, and its model is worthless. Six lines are wrong.
# Mend them one after the other: the Monitor is in place, so let `diagnose` tell what to look for.
# `python exercises --project 8` trains it and says what diagnose finds first. When that is nothing,
# it scores the model on the held-out tenth of the stories: healthy is below 1.9 nats a character.
def heal(steps=600):
    """Train a model on the stories; returns (model, its Monitor's history)."""
    rng = np.random.default_rng(0)
    x, y, size = stage.corpus("stories", 8)
    inputs, targets = x, y  # was: inputs, targets = x[:-1], y[1:]
    split = int(0.9 * len(y)) - 8  # what follows is held out
    model = stage.LanguageModel(size, 8, 96, embed=16, activation="relu", dtype=np.float32)
    model.params["b1"][:] = 0  # was: model.params["b1"][:] = -30
    names = list(model.params)  # was: names = [name for name in model.params if name != "E"]
    rates = stage.schedule(0.01, steps, 60)  # was: rates = stage.schedule(1.0, steps, 60)
    known = inputs[:split], targets[:split]
    unseen = inputs[split + 8 : split + 1008], targets[split + 8 : split + 1008]
    monitor = stage.Monitor(model, known, unseen, size, every=100)
    optimizer = stage.Optimizer("adam")
    total = {name: 0.0 for name in names}
    for t, rate in enumerate(rates):
        rows = rng.integers(split, size=128)  # was: rows = rng.integers(128, size=128)
        loss, grads = model.loss_and_grads(known[0][rows], known[1][rows])
        for name in names:
            total[name] = grads[name]  # was: total[name] = total[name] + grads[name]
        optimizer.step(model.params, total, rate)
        monitor(t, loss, total, rate)
    return model, monitor.history


# > In the order in which diagnose names them: targets one too late, dead units (so nothing moved at
# > all), an embedding that nobody trains, a rate a hundred times too high, gradients that pile up,
# > and batches from 128 rows only. The held-out loss goes from 97 nats, at one time from millions,
# > to 1.79. A fault hides the later ones, and its consequences look like faults of their own: that
# > is why the checklist goes from cause to effect.
HINTS_12 = [
    "model, history = heal(); then print the findings of stage.diagnose(history): name, evidence.",
    "Mend the first finding, run again; the later ones may have been its consequences.",
    "Data, start, gradient, steps, outcome: in this order, and read every line of the loop.",
]
