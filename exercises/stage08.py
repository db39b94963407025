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


# %% 3. ★ (explain) A gradient that does not shrink
# The report trains with a Monitor for 5,000 steps. From step 1,666 to the end the loss falls, and
# flattens, from 1.5 to 1.25; but |g|, the length of the gradient that the optimizer was given,
# stays near 1. At a minimum the gradient is 0. Why is |g| not on its way there?
#   a  the model is far from any minimum: the rate fell too early
#   b  the examples of a batch disagree, and their mean over 128 of them stays that long
#   c  the gradient is clipped at 1
#   d  the steps have become so short that the weights, and with them |g|, do not change any more
# ANSWER_3: one letter, as a string.
ANSWER_3 = None


# %% 4. ★ (implement) Whose fault is the needle?
# A needle in the loss, a bad batch: which of its rows pulled so hard? Measure how long the gradient
# of each single example is, all parameters together.
def pulls(model, x, y):
    """‖∂L/∂θ‖ for each example by itself: an array (B,). x (B, T), y (B,)."""
    raise NotImplementedError


# %% 5. ★★ (implement) A slope that cannot be read back
# For tanh and ReLU the layer of this stage reads the slope of φ from h. SiLU, which Llama uses,
# φ(z) = z·σ(z) with σ(z) = 1/(1 + e⁻ᶻ), falls and then rises: one h belongs to two z. Write the
# layer with it, in the form of layer_forward and layer_backward; the cache is what you need.
def silu_forward(x, w, b):
    """h = φ(x W + b) for x (B, K), W (K, C), b (C,); returns (h (B, C), cache)."""
    raise NotImplementedError


def silu_backward(dh, cache):
    """(dx, dW, db) from dh (B, C)."""
    raise NotImplementedError


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
            model.params[name] += step * u
            losses.append(model.loss_and_grads(x, y)[0])
        model.params[name] = w
        measured = (losses[0] - losses[1]) / (2 * epsilon)
        told = float((u * g).sum())
        errors[name] = abs(measured - told) / max(abs(measured), abs(told))
    return errors


# %% 7. ★★ (derive) Four times as long, and for how many steps?
# Late steps of Adam are √((1-β)/(1+β)) = 0.23 of a rate long, early ones a whole rate. In between?
# Let the gradients be independent noise of mean 0 and mean square 1, so that √v is 1, and find the
# rms of m/(1 - βᵗ) after t steps, where m = βm + (1-β)g from m = 0.
def step_length(beta, t):
    """The root mean square of Adam's step number t = 1, 2, ..., in units of the rate."""
    raise NotImplementedError


# %% 8. ★★ (derive) What a leak is worth
# A layer without φ keeps a signal's mean square with Var(W) = 1/K, one with ReLU needs 2/K, because
# ReLU halves the mean square of what is symmetric about 0. Now a leaky ReLU: φ(z) = z for z > 0 and
# a·z below, 0 ≤ a ≤ 1. Which Var(W) keeps the mean square? And if one takes 1/K all the same, what
# share of the rms (the root of the mean square) is left after some layers?
def leaky(a, K, layers):
    """[Var(W), share of the rms after that many layers], for units of K inputs, whole numbers."""
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
