"""The exercises of stage 8: diagnose. `python exercises 8` checks them."""

import math

import numpy as np

import stage08_dynamics as stage

# %% 1. ★ (by hand) Just below two
# On the first page, descend walks down w²/2 from w = 4. Let it take its four steps at the rate 1.9.
# ANSWER_1:  the last of the five losses, to three digits.
# ANSWER_1B: near 2 the walk still comes closer to 0 with every step, but too slowly for guess: it
#            says "rate too low", though a higher one would be worse. Above which rate does it say
#            so, with four steps? To four digits.
ANSWER_1 = None
ANSWER_1B = None


# %% 2. ★ (by hand) The average that begins with nothing
# A run has the loss 4 at every step. It is smoothed with β = 0.9 from s₀ = 0, and nobody divides by
# 1 - βᵗ.
# ANSWER_2:  the smoothed loss after step 10, s₁₀, to three digits.
# ANSWER_2B: the number t of the first step whose smoothed loss is right to one per cent.
ANSWER_2 = None
ANSWER_2B = None


# %% 3. ★ (explain) A critical batch of infinite size
# The report estimates the critical batch size tr Σ/‖G‖² four times: "41 to 47 before training,
# 2.9e+04 to inf after". What does the inf say?
#   a  single examples pull so differently after training that tr Σ has grown beyond all bounds
#   b  ‖G‖² has become so small that an estimate of it from so few rows may come out below 0
#   c  a sum of squares has overflowed in float32
#   d  the model knows the rows by heart: their gradients are 0, and a quotient of zeros is left
# ANSWER_3: one letter, as a string.
ANSWER_3 = None


# %% 4. ★ (implement) Whose fault is the needle?
# A needle in the loss, a bad batch: which of its rows pulled so hard? Measure how long the gradient
# of each single example is, all parameters together.
def pulls(model, x, y):
    """‖∂L/∂θ‖ for each example by itself: an array (B,). x (B, T), y (B,)."""
    raise NotImplementedError


# %% 5. ★★ (implement) A slope that cannot be read back
# For tanh and ReLU the layer of this stage reads the slope of φ from h. SiLU (Elfwing et al. 2018),
# φ(z) = z·σ(z) with σ(z) = 1/(1 + e⁻ᶻ), falls and then rises: one h belongs to two z. Write the
# layer with it, in the form of layer_forward and layer_backward; the cache is what you need.
def silu_forward(x, w, b):
    """h = φ(x W + b) for x (B, K), W (K, C), b (C,); returns (h (B, C), cache)."""
    raise NotImplementedError


def silu_backward(dh, cache):
    """(dx, dW, db) from dh (B, C)."""
    raise NotImplementedError


# %% 6. ★★ (find the bug) Sharp on bowls, wrong on saddles
# A short copy of top_hessian_eigenvalue. On every bowl it finds λ_max. Where the loss also curves
# down, it sometimes returns something else. One line is wrong.
def sharpness(gradient, theta, steps=300, epsilon=1e-4):
    """λ_max of the Hessian at theta (n,), by power iteration. gradient(theta) -> (n,)."""
    shift = 0.0
    while True:
        v = np.random.default_rng(0).normal(size=theta.size)
        for _ in range(steps):
            v = v / np.linalg.norm(v)
            hv = (gradient(theta + epsilon * v) - gradient(theta - epsilon * v)) / (2 * epsilon)
            value = float(v @ hv)
            v = hv + shift * v
        if value >= 0 or shift:
            return value
        shift = value


# %% 7. ★★ (derive) Four times as long, and for how many steps?
# Late steps of Adam are √((1-β)/(1+β)) = 0.23 of a rate long, early ones a whole rate. In between?
# Let the gradients be independent noise of mean 0 and mean square 1, so that √v is 1, and find the
# rms of m/(1 - βᵗ) after t steps, where m = βm + (1-β)g from m = 0.
def step_length(beta, t):
    """The root mean square of Adam's step number t = 1, 2, ..., in units of the rate."""
    raise NotImplementedError


# %% 8. ★★ (derive) Time against examples
# At its best rate a step with a batch of B lowers the loss in proportion to 1/(1 + 𝓑/B). So a goal
# takes a number of steps in proportion to 1 + 𝓑/B: few if B is large. Examples are steps times B:
# few if B is small. Let examples cost `excess` times the fewest possible, excess > 1.
def bargain(excess):
    """[B/𝓑, steps divided by the fewest possible], the two numbers that go with this excess."""
    raise NotImplementedError


# %% 9. ★★ (measure) The explosion that saturates
# x, y, size = stage.corpus("stories", 8). Two recurrent models of width 32 and embed 8, with gain=3
# and seed=0, one with activation="relu", one with "tanh". Take probe(x[:256], y[:256])["h1"], which
# is (h, ∂L/∂h), both (B, T, C), and compute γ: the gradient at the first of the T times is γᵀ⁻¹
# times as long as at the last, all examples and units together.
# ANSWER_9:  γ with ReLU, to three digits.
# ANSWER_9B: γ with tanh, to three digits.
# ANSWER_9C: the share of saturated units (saturated_units) with tanh, to two digits.
ANSWER_9 = None
ANSWER_9B = None
ANSWER_9C = None


# %% 10. ★★★ (implement) A leak in two halves
# The audit looks at one input column at a time. But if y = x₀ + x₂ (modulo V), each column alone
# says nothing. Look at pairs of columns: the share is (I - I₀)/(H - I₀), as for `determined`, with
# the pair in place of x_j, and I₀ the mean I for three permutations of y.
def pair_leak(x, y, vocab_size, rng):
    """(i, j, share), i < j, of the pair of columns of x (N, T) that fixes y (N,) best."""
    raise NotImplementedError


# %% 11. ★★★ (research) After a tenth of the run
# How early can a cause be named? Here each of the 14 diseases was run at seeds 0 to 2 (clinic_run),
# and its History cut after 20 of 200 steps (of 600 for underfitting; probes, too). diagnose named
# 41 of 42 from the whole runs, 32 from the cut ones: never overfitting and underfitting, which are
# not there yet, 1 "no warmup" of 3, and 2 of 3 shuffled labels and vanishing gradients. Of three
# healthy runs it doubted two: no progress in 20 steps. Which of these misses would rules made for
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
    inputs, targets = x[:-1], y[1:]
    split = int(0.9 * len(y)) - 8  # what follows is held out
    model = stage.LanguageModel(size, 8, 96, embed=16, activation="relu", dtype=np.float32)
    model.params["b1"][:] = -30
    names = [name for name in model.params if name != "E"]
    rates = stage.schedule(1.0, steps, 60)
    known = inputs[:split], targets[:split]
    unseen = inputs[split + 8 : split + 1008], targets[split + 8 : split + 1008]
    monitor = stage.Monitor(model, known, unseen, size, every=100)
    optimizer = stage.Optimizer("adam")
    total = {name: 0.0 for name in names}
    for t, rate in enumerate(rates):
        rows = rng.integers(128, size=128)
        loss, grads = model.loss_and_grads(known[0][rows], known[1][rows])
        for name in names:
            total[name] = total[name] + grads[name]
        optimizer.step(model.params, total, rate)
        monitor(t, loss, total, rate)
    return model, monitor.history
