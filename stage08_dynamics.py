# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 8: diagnose. Why does training fail, and how do you see it?

A broken run rarely crashes. It prints losses, they may even fall, and something is wrong: the rate,
the initialisation, the data, one line of one backward. This file derives what health looks like. A
`Monitor`, one line in a training loop, takes readings, and `diagnose` names the cause from them
alone, or says that it does not know it. Then a clinic breaks runs on purpose, really trains them,
and counts the right answers. You should know a network, its backward and SGD (stages 2 to 4).

  Begin:   1 one weight          2 the patient          3 the loss curve
  Measure: 4 vital signs         5 tests on purpose     6 gradient noise   7 curvature
  Judge:   8 History, Monitor    9 diagnose             10 the clinic

Run `python stage08_dynamics.py [--fast] [--clinic] [--seed N]`: half a minute; --fast: seconds.
Rests on: Pascanu, Mikolov, Bengio (2013), "On the difficulty of training recurrent neural
networks"; Smith (2017), "Cyclical learning rates"; McCandlish et al. (2018), "An empirical model of
large-batch training"; Karpathy (2019), "A recipe for training neural networks"; Cohen et al.
(2021), "Gradient descent on neural networks typically occurs at the edge of stability".
"""

import argparse
import json
import math
import os
import sys
import textwrap
from collections import namedtuple
from copy import copy as shallow_copy
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import cycle, product
from pathlib import Path

import numpy as np

TINY = 1e-300  # the least number that passes where one above 0 is meant

# %% 1. One weight
# Let a model have one weight w and the loss L = w²/2, whose slope is w. A step of gradient descent
# takes rate times the slope off the weight. We start at w = 4 and write down the losses.


def descend(rate, steps=4, w=4.0):
    """(losses before each step and at the end, the last step's length divided by |w|)."""
    losses = [w * w / 2]
    for _ in range(steps):
        step = -rate * w
        ratio = abs(step) / abs(w)
        w = w + step
        losses.append(w * w / 2)
    return losses, ratio


#     rate 0.5      8, 2, 0.5, 0.125, 0.031         works
#     rate 0.001    8, 7.98, 7.97, 7.95, 7.94       too low
#     rate 3        8, 32, 128, 512, 2048           too high: every step overshoots twice as far
#     rate -0.5     8, 18, 40.5, 91.1, 205          somebody wrote + for -: it walks up the slope
#     rate 2        8, 8, 8, 8, 8                   too high: from 4 to -4 and back, for ever
# A diagnosis from the losses alone takes three lines. Where is it wrong?


def guess(losses):
    """The cause, from the first and the last loss alone."""
    if losses[-1] > losses[0]:
        return "rate too high"
    return "rate too low" if losses[-1] > 0.9 * losses[0] else "nothing found"


# It calls the wrong sign "rate too high" (a lower rate will not help), and the rate of 2 "rate too
# low" (a higher one will make it worse). No look at the losses mends this, for quite different
# faults leave the same curve. One needs other readings: how long is a step compared with the weight
# that it changes (0.001 in one case, 2 in the other), and does it go down the slope or up?


def judge(losses, ratio, goes_down):
    """The cause, from two readings more."""
    if losses[-1] < 0.9 * losses[0]:
        return "nothing found"
    if not goes_down:
        return "uphill"
    return "rate too high" if ratio > 1 else "rate too low"


# That is the plan of this file: find out which readings tell causes apart, take them while a model
# trains, and judge by them. And "nothing found" is all that may be said of the first run: nothing
# that we know of, in what was measured. It is no proof of health.


def check_count(name, value, lowest=1):
    """value as an int; ValueError unless it is a whole number, and at least the lowest."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"expected a whole number as {name}, got {value!r}")
    if value < lowest:
        raise ValueError(f"expected {name} >= {lowest}, got {value!r}")
    return int(value)  # an np.uint8 would wrap at 256


def check_number(name, value, lowest=-math.inf, below=math.inf):
    """ValueError unless value is a finite number, and lowest <= value < below."""
    is_number = isinstance(value, (int, float, np.integer, np.floating))
    if isinstance(value, bool) or not is_number or not abs(value) < 1e300:
        raise ValueError(f"expected a finite number as {name}, got {value!r}")
    if not lowest <= value < below:
        raise ValueError(f"expected {lowest} <= {name} < {below}, got {value!r}")


def check_ids(name, ids, vocab_size):
    """ids as int64; ValueError unless they are integers in 0..vocab_size - 1."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise ValueError(f"expected integers as {name}, got {ids.dtype}")
    low, high = ids.min(initial=0), ids.max(initial=0)
    if low < 0 or high >= vocab_size:
        raise ValueError(f"expected {name} in 0..{vocab_size - 1}, got {low}..{high}")
    return ids.astype(np.int64)


# %% 2. The patient
# A window x of T characters, the next character y, V characters in all. Each is looked up in a
# table E. Layers hₗ = φ([feedₗ, hₗ₋₁] W + b) follow, in one of two bodies:
#   feed-forward   layer 1 is fed all of E[x₁], …, E[x_T], later ones nothing; each has its own W
#   recurrent      T layers that share one W; layer t is fed E[x_t]; h₀ = 0
# and logits = h Wo + bo. The slope of φ can be read from h: tanh' = 1 - h², ReLU' = [h > 0].
# Backward, with z = x W + b, that is zᵢⱼ = Σₖ xᵢₖ Wₖⱼ + bⱼ, and dz = dh ⊙ φ'(z):
#   ∂L/∂xᵢₖ = Σⱼ dzᵢⱼ Wₖⱼ,  ∂L/∂Wₖⱼ = Σᵢ xᵢₖ dzᵢⱼ,  ∂L/∂bⱼ = Σᵢ dzᵢⱼ.
def layer_forward(x, w, b, activation):
    """h = φ(x W + b) for x (B, K), W (K, C), b (C,); returns (h (B, C), cache)."""
    if activation not in ("tanh", "relu"):
        raise ValueError(f"expected 'tanh' or 'relu', got {activation!r}")
    z = x @ w + b  # (B, C)
    h = np.tanh(z) if activation == "tanh" else np.maximum(z, 0)
    return h, (x, w, h, activation)


def layer_backward(dh, cache):
    """(dx, dW, db) from dh (B, C)."""
    x, w, h, activation = cache
    if np.shape(dh) != h.shape:
        raise ValueError(f"expected dh of shape {h.shape}, got {np.shape(dh)}")
    dz = dh * (1 - h * h) if activation == "tanh" else dh * (h > 0)  # (B, C)
    return dz @ w.T, x.T @ dz, dz.sum(0)


# Cross-entropy with p = softmax(logits): L = -(1/B) Σᵢ ln pᵢ[yᵢ]. Since ln pᵢ[y] = logitᵢ[y] -
# ln Σⱼ exp(logitᵢⱼ), ∂L/∂logitᵢⱼ = (pᵢⱼ - [j = yᵢ]) / B. Taking the row maximum off first leaves p
# as it is and keeps exp from overflowing.
def cross_entropy_forward(logits, y):
    """Mean -ln p[y] in nats for logits (B, V), y (B,); returns (loss, cache)."""
    if np.ndim(logits) != 2 or np.shape(y) != np.shape(logits)[:1]:
        found = f"{np.shape(logits)} and {np.shape(y)}"
        raise ValueError(f"expected logits (B, V) and y (B,), got {found}")
    y = check_ids("y", y, logits.shape[1])
    z = logits - logits.max(1, keepdims=True)  # (B, V)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))  # (B, V)
    return float(-log_p[np.arange(len(y)), y].mean()), (log_p, y)


def cross_entropy_backward(cache):
    """∂L/∂logits (B, V)."""
    log_p, y = cache
    dlogits = np.exp(log_p)
    dlogits[np.arange(len(y)), y] -= 1
    return dlogits / len(y)


class LanguageModel:
    """Predicts y (B,) from x (B, T). The rest of the file needs `.params`, a dict of arrays,
    `.loss_and_grads(x, y)` and, only for readings of its units, `.probe(x, y)`."""

    layer_backward = staticmethod(layer_backward)  # an attribute, so that the clinic can break it

    def __init__(self, vocab_size, context, width=32, depth=1, embed=8, activation="tanh",
                 recurrent=False, gain=1.0, seed=0, dtype=np.float64):  # fmt: skip
        vocab_size, context = check_count("vocab_size", vocab_size), check_count("context", context)
        width, depth = check_count("width", width), check_count("depth", depth)
        embed = check_count("embed", embed)
        check_number("gain", gain)
        layer_forward(np.zeros((1, 1)), np.zeros((1, 1)), 0, activation)  # is it a known one?
        rng = np.random.default_rng(seed)
        self.activation, self.recurrent = activation, recurrent
        self.depth, self.width = 1 if recurrent else depth, width
        p = {"E": rng.normal(size=(vocab_size, embed))}
        # Var(z) = K Var(x) Var(W) keeps a signal's size for Var(W) = 1/K; ReLU halves the mean
        # square, so it needs 2/K (He et al. 2015). Orthogonal: ‖h Q‖ = ‖h‖, for ever.
        fan_in = embed if recurrent else context * embed
        for l in range(1, self.depth + 1):
            scale = gain * math.sqrt((2 if activation == "relu" else 1) / fan_in)
            p[f"W{l}"], p[f"b{l}"] = scale * rng.normal(size=(fan_in, width)), np.zeros(width)
            fan_in = width
        if recurrent:
            q = np.linalg.qr(rng.normal(size=(width, width)))[0]
            p["W1"] = np.concatenate([p["W1"], gain * q])  # (D + C, C)
        wo = 0.3 * rng.normal(size=(width, vocab_size)) / math.sqrt(width)
        p |= {"Wo": wo, "bo": np.zeros(vocab_size)}
        self.params = {k: v.astype(dtype) for k, v in p.items()}

    def run(self, x, y):
        """(loss, grads, states, dstates) for x (B, T), y (B,): states by layer or by time."""
        p, caches = self.params, []
        x = check_ids("x", x, len(p["E"]))
        e = p["E"][x]  # (B, T, D)
        if self.recurrent:
            layers, feeds = [1] * x.shape[1], list(e.swapaxes(0, 1))  # T of (B, D)
        else:
            layers = range(1, self.depth + 1)
            feeds = [e.reshape(len(x), -1)] + [e[:, 0, :0]] * (self.depth - 1)  # (B, T D), (B, 0)
        h = np.zeros((len(x), self.width if self.recurrent else 0), e.dtype)
        for l, feed in zip(layers, feeds):
            inputs = np.concatenate([feed, h], 1)
            h, cache = layer_forward(inputs, p[f"W{l}"], p[f"b{l}"], self.activation)
            caches.append(cache)
        loss, cache = cross_entropy_forward(h @ p["Wo"] + p["bo"], y)  # logits (B, V)

        dlogits = cross_entropy_backward(cache)
        grads = {k: np.zeros_like(v) for k, v in p.items()}
        grads["Wo"], grads["bo"] = h.T @ dlogits, dlogits.sum(0)
        dh, dfeeds, dstates = dlogits @ p["Wo"].T, [], []
        for l, feed, cache in reversed(list(zip(layers, feeds, caches))):
            dstates.insert(0, dh)
            dinputs, dw, db = self.layer_backward(dh, cache)
            grads[f"W{l}"] += dw  # += : a recurrent weight is used T times
            grads[f"b{l}"] += db
            dfeed, dh = np.split(dinputs, [feed.shape[1]], axis=1)
            dfeeds.insert(0, dfeed)
        # a character that occurs twice collects both:
        np.add.at(grads["E"], x, np.concatenate(dfeeds, 1).reshape(e.shape))
        return loss, grads, [cache[2] for cache in caches], dstates

    def loss_and_grads(self, x, y):
        """(mean nats, {name: ∂L/∂parameter})."""
        return self.run(x, y)[:2]

    def probe(self, x, y):
        """{name: (h, ∂L/∂h)}: (B, C) for each layer, or one pair (B, T, C) when recurrent."""
        both = self.run(x, y)[2:]
        states, dstates = ([np.stack(s, 1)] for s in both) if self.recurrent else both
        return {f"h{l}": pair for l, pair in enumerate(zip(states, dstates), 1)}


class Optimizer:
    """Adam (Kingma & Ba 2015) or SGD with momentum 0.9; stage 4 derives both."""

    def __init__(self, kind="adam"):
        if kind not in ("adam", "sgd"):
            raise ValueError(f"expected kind 'adam' or 'sgd', got {kind!r}")
        self.kind = kind
        self.t = 0
        self.m = {}
        self.v = {}

    def step(self, params, grads, learning_rate):
        """Move every array of `params` that has a gradient, in place."""
        check_number("learning_rate", learning_rate)
        for k, g in grads.items():
            if np.shape(params[k]) != np.shape(g):
                raise ValueError(f"{k}: expected shape {np.shape(params[k])}, got {np.shape(g)}")
        self.t += 1
        for k, g in grads.items():
            if self.kind == "sgd":
                step = self.m[k] = 0.9 * self.m.get(k, 0) + g
            else:
                m = self.m[k] = 0.9 * self.m.get(k, 0) + 0.1 * g
                v = self.v[k] = 0.999 * self.v.get(k, 0) + 0.001 * g * g
                step = m / (1 - 0.9**self.t) / (np.sqrt(v / (1 - 0.999**self.t)) + 1e-8)
            params[k] -= (learning_rate * step).astype(params[k].dtype)


def training(model, batch, rates, optimizer="adam"):
    """The loop of this file: yields (step, loss, grads, rate) after each update on batch()."""
    if not isinstance(optimizer, Optimizer):
        optimizer = Optimizer(optimizer)
    for t, rate in enumerate(rates):
        loss, grads = model.loss_and_grads(*batch())
        optimizer.step(model.params, grads, float(rate))
        yield t, loss, grads, float(rate)


def schedule(rate, steps, warmup, decay=True):
    """Rates (steps,): a linear rise over `warmup` steps, then level, or falling towards 0."""
    check_number("rate", rate)
    check_number("warmup", warmup, 0)
    t = np.arange(check_count("steps", steps, 0))
    rates = rate * np.minimum(1, (t + 1) / max(warmup, 1))
    return rates * (1 - t / steps) if decay else rates


# %% 3. The loss curve
# Two lines belong into every plot of a loss, and both are known before the first step.
#   uniform   A model that knows nothing says p = 1/V for every character: loss ln V. A sane start
#             is there, or slightly above: if logits are Gaussian with a variance s² well below
#             2 ln V, Σⱼ exp(zⱼ) is near V·E[exp z] = V·exp(s²/2), and the loss near ln V + s²/2.
#             (For larger s the largest logit is the whole sum: the loss grows like s·√(2 ln V).)
#   unigram   The best without a look at the input. If the targets have the frequencies qc, a
#             constant p has the loss -Σ qc ln pc = H(q) + KL(q‖p) ≥ H(q) = -Σ qc ln qc (Gibbs).
#             Biases alone get there. Above it, nothing has been learned from the input.
# A gallery; parts 5 and 6 of the report draw real ones. Each shape has several causes, which is
# why this file does not stop here.
#   \__     falls, then flattens     as it should, or or too soon (compare H(q))
#   ----    flat from the start      rate too low; units all dead or all equal; nothing moves
#   `\      no bend at the end       not finished: train longer, or at a higher rate
#   /       climbs                   rate too high; uphill, if even short steps make it climb
#   _/\_    a hill at the start      no warmup
#   \_|\_   a needle later on        a bad batch, if the step is short
#   /\/\/   waves                    batches in some order; gradients that pile up
#   \_ nan  ends suddenly            overflow, if the steps before were short; else the rate
def unigram_entropy(y):
    """H(q) in nats for the frequencies q of the targets y."""
    y = np.asarray(y)
    if y.size == 0:
        raise ValueError("expected at least one target, got none")
    q = np.unique(y, return_counts=True)[1] / y.size
    return float(-(q * np.log(q)).sum())


def check_initialization(model, x, y, vocab_size, tolerance=0.5):
    """First loss against ln V in nats: a dict; spread is the s above, if well below √(2 ln V).

    Use a thousand rows: the mean of B losses is off by their standard deviation, over √B."""
    expected = math.log(check_count("vocab_size", vocab_size, 2))
    loss = float(model.loss_and_grads(x, y)[0])
    spread, ok = math.sqrt(2 * max(loss - expected, 0)), abs(loss - expected) <= tolerance
    return {"loss": loss, "expected": expected, "spread": spread, "ok": ok}


# Smoothing. s_t = β s_t₋₁ + (1-β) L_t from s₀ = 0 unrolls to s_t = (1-β) Σₖ βᵏ L_t₋ₖ (k = 0 … t-1),
# whose weights sum to 1-βᵗ: divide by that. The average looks back about 1/(1-β) steps.
def smooth(losses, beta=0.9):
    """Bias-corrected exponential moving average of a sequence, same length.

    A loss that is not finite gives nan in its place, and is left out of all later averages."""
    check_number("beta", beta, 0, 1)
    total, weight, averages = 0.0, 0.0, []
    for loss in losses:
        if math.isfinite(loss):
            total = beta * total + (1 - beta) * float(loss)
            weight = beta * weight + (1 - beta)  # = 1 - βᵗ after t finite losses
        averages.append(total / weight if math.isfinite(loss) else math.nan)
    return np.array(averages)


def early_stop(held_out, patience=3, min_delta=0.0):
    """(best index, stop index or None): stop when `patience` losses running miss the best."""
    if len(held_out) == 0:
        raise ValueError("expected at least one held-out loss, got none")
    patience = check_count("patience", patience)
    check_number("min_delta", min_delta, 0)
    losses = [math.inf if math.isnan(loss) else float(loss) for loss in held_out]  # never best
    best = 0
    for i, loss in enumerate(losses):
        if loss < losses[best] - min_delta:
            best = i
        elif i - best >= patience:
            return best, i
    return best, None


# %% 4. Vital signs
# Gradients by layer: backward multiplies by W and φ' once per layer, so norms shrink or grow
# geometrically with depth. Similar magnitudes from layer to layer are health.
# Units: a ReLU at 0 on every example has slope 0 there, so its weights get no gradient and it stays
# dead. A tanh at |h| > 0.97 has slope 1 - h² < 0.06: it hardly learns or passes anything back.
# Updates: what matters is the size of a step relative to what it changes, r = ‖Δθ‖ / ‖θ‖. Adam's
# first step is ±lr in every coordinate (m/√v = g/|g|), so r = lr / rms(θ). Later, where gradients
# are mostly noise, m averages them, rms √((1-β₁)/(1+β₁)) = 0.23 of one, and v does not: the first
# steps at a given rate are four times as long as later ones. One reason why warmup exists.
def _by_unit(h):
    h = np.asarray(h) * 1.0  # integers become floats: |-128| does not fit into eight bits
    if h.ndim < 2 or h.size == 0:
        raise ValueError(f"expected activations (examples, units), got {h.shape}")
    return np.abs(h.reshape(-1, h.shape[-1]))


def dead_units(h):
    """Share of units that are exactly 0 on every example of h (..., C)."""
    return float(np.mean(_by_unit(h).max(0) == 0))


def saturated_units(h, threshold=0.97):
    """Share of units with |h| > threshold on most examples, and never above the ceiling 1."""
    check_number("threshold", threshold, TINY, 1)
    a = _by_unit(h)
    return float(np.mean((np.mean(a > threshold, axis=0) > 0.5) & (a.max(0) <= 1)))


# %% 5. Tests made on purpose
# Gradient check. Along a direction u the loss has slope u·∂L/∂θ (chain rule), and by Taylor
# (L(θ+εu) - L(θ))/ε and (L(θ) - L(θ-εu))/ε are that slope ± O(ε). At a kink of a ReLU the two
# differ and any slope between them is right, so the error is the distance to the interval they
# span, relative to the slopes. Rounding leaves 1e-16/1e-6 = 1e-10 of the loss in float64; a slope
# below a ten-thousandth of the loss is judged as if it had that size, so three digits are certain.
# All is relative to the loss: no scale, however small, hides a bug.
#
# With u = one entry after the other, each is judged by its own size: two losses an entry, and the
# worst entry has a name. With one u for a whole array, two losses test the array: that is cheap
# enough for every probe. A part of this u along the gradient sees wrong lengths, a random part sees
# what is missing; but one wrong entry among n moves the slope by about 1/n, and may stay unseen.
def slope_error(twin, x, y, name, u, slope, loss, epsilon):
    """Relative error of `slope`, said to be the loss's in params[name] along u, at this loss."""
    w, measured = twin.params[name], []
    for step in (epsilon, -epsilon):
        twin.params[name] = w + step * u
        measured.append((twin.loss_and_grads(x, y)[0] - loss) / step)
    twin.params[name] = w
    low, high = min(measured), max(measured)
    distance = 0.0 if low <= slope <= high else max(low - slope, slope - high)
    scale = max(abs(slope), abs(low), abs(high)) + 1e-4 * abs(loss)
    return 0.0 if scale == 0 else distance / scale


def float64_twin(model):
    """A copy whose parameters are float64 and may be moved."""
    twin = shallow_copy(model)
    twin.params = {k: v.astype(np.float64) for k, v in model.params.items()}
    return twin


def gradient_check(model, x, y, epsilon=1e-6):
    """{name: (relative error, index) of its worst entry}: every entry against measured slopes."""
    twin, worst = float64_twin(model), {}
    loss, grads = twin.loss_and_grads(x, y)
    for k, g in grads.items():
        worst[k] = 0.0, (0,) * g.ndim
        for index in np.ndindex(g.shape):
            u = np.zeros_like(twin.params[k])
            u[index] = 1
            error = slope_error(twin, x, y, k, u, float(g[index]), loss, epsilon)
            if not error <= worst[k][0]:  # nan is the worst of all
                worst[k] = math.inf if math.isnan(error) else error, index
    return worst


def slope_check(model, x, y, rng, epsilon=1e-6):
    """{name: relative error of the analytic slope along one direction}, computed in float64."""
    twin, errors = float64_twin(model), {}
    loss, grads = twin.loss_and_grads(x, y)
    for k, g in grads.items():
        u = rng.normal(size=g.shape)
        u = u / np.linalg.norm(u) + g / (np.linalg.norm(g) or 1.0)
        errors[k] = slope_error(twin, x, y, k, u, float(np.sum(u * g)), loss, epsilon)
    return errors


# One batch. A model with more parameters than a small batch has characters can learn it by heart.
# If it cannot, suspect model, loss or optimiser, not the data. The cheapest test there is.
def overfit_one_batch(model, x, y, learning_rate=0.01, steps=300, target=0.1, kind="adam"):
    """Train on one batch until the loss is below target; (reached, losses). Changes the model.

    ValueError, naming the step, if the loss is not finite any more."""
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"expected equally many x and y, not 0; got {len(x)}, {len(y)}")
    steps = check_count("steps", steps)
    check_number("learning_rate", learning_rate, TINY)
    losses = []
    for t, loss, _, _ in training(model, lambda: (x, y), [learning_rate] * steps, kind):
        losses.append(float(loss))
        if not math.isfinite(loss):
            raise ValueError(f"expected a finite loss, got {loss} at step {t + 1}")
        if loss < target:
            break
    return losses[-1] < target, losses


# Range test (Smith 2017). Let the rate grow geometrically from harmless to absurd in one short run:
# the smoothed loss is flat, falls, turns, explodes. Where it turns gain and damage cancel; we take
# the rate at which 95 % of the fall was done, as the bottom itself is flat, and suggest a third of
# it: curvature grows during training (section 7) and needs room. The report tests the advice.
LRRange = namedtuple("LRRange", "rates losses suggested reason")  # losses smoothed; suggested: None


def lr_range_test(make_model, batches, low=1e-5, high=10.0, steps=120, beta=0.8, kind="adam"):
    """LRRange from training make_model() on batches (x, y), cycled, at rates low to high."""
    batches, rates, losses = list(batches), [], []
    if not batches:
        raise ValueError("expected at least one batch (x, y), got none")
    check_number("high", high, TINY)
    check_number("low", low, TINY, high)
    steps = check_count("steps", steps, 10)
    feed = cycle(batches)
    run = training(make_model(), lambda: next(feed), np.geomspace(low, high, steps), kind)
    with np.errstate(all="ignore"):
        for _, loss, _, rate in run:
            if not math.isfinite(loss):
                break
            rates.append(rate)
            losses.append(float(loss))
            s = smooth(losses, beta)
            if s[-1] > s.min() + 0.5 + 0.5 * (s[0] - s.min()):
                break  # half-way up again, and half a nat
    if not losses:
        return LRRange([], [], None, "the very first loss is not finite")
    fall = s[0] - s.min()
    knee = int(np.argmax(s <= s.min() + 0.05 * fall))
    suggested, moral = rates[knee] / 3, "a third of the first rate"
    if fall < 0.02 * abs(s[0]):
        suggested, moral = None, "it never fell, the rate is not to blame"
    story = f"the smoothed loss went from {s[0]:.2f} to {s[knee]:.2f} at rate {rates[knee]:.2g}"
    story += f" and to {s[-1]:.2f} at {rates[-1]:.2g}; {moral}"
    return LRRange(rates, s.tolist(), suggested, story)


# %% 6. Gradient noise and the critical batch size
# One example's gradient is G plus noise with covariance Σ; a batch of B has E‖G_B‖² = ‖G‖² + tr
# Σ/B, as B independent noises average. A step -ε G_B changes the loss, to second order in ε, by
#   E[ΔL] = -ε ‖G‖² + ½ ε² (GᵀHG + tr(HΣ)/B),    least at  ε = ‖G‖² / (GᵀHG + tr(HΣ)/B),
# where it is -½ ‖G‖⁴ / (GᵀHG (1 + 𝓑/B)) with 𝓑 = tr(HΣ)/GᵀHG, or tr Σ/‖G‖² if H is like a multiple
# of I. For B ≪ 𝓑 twice the batch is twice the progress per step; for B ≫ 𝓑 it is waste. 𝓑 is the
# critical batch size. Two batch sizes b give two equations E‖G_b‖² = ‖G‖² + tr Σ/b in 2 unknowns.
def flat(arrays):
    """All arrays of a dict in one float64 vector."""
    return np.concatenate([np.ravel(a) for a in arrays.values()]).astype(np.float64)


def gradient_noise_scale(model, x, y, small=1):
    """(tr Σ/‖G‖² or inf if ‖G‖² ≤ 0, tr Σ, ‖G‖²), the last two unbiased, from batches of `small`
    against all of (x, y) (McCandlish et al. 2018, appendix A)."""
    small = check_count("small", small)
    pieces = len(x) // small
    if len(x) != len(y):
        raise ValueError(f"expected equally many x and y, got {len(x)}, {len(y)}")
    if pieces < 2:
        raise ValueError(f"expected two batches of {small}, got {len(x)} rows")
    total, squares, big = 0.0, 0.0, pieces * small
    for i in range(0, big, small):
        g = flat(model.loss_and_grads(x[i : i + small], y[i : i + small])[1])
        total, squares = total + g, squares + float(g @ g)
    small_norm, big_norm = squares / pieces, float(np.sum(np.square(total / pieces)))
    trace = (small_norm - big_norm) / (1 / small - 1 / big)
    norm = (big * big_norm - small * small_norm) / (big - small)
    return trace / norm if norm > 0 else math.inf, trace, norm


# %% 7. Curvature and the edge of stability
# Near a minimum the loss is a quadratic with Hessian H. Along an eigenvector with eigenvalue λ > 0
# a step of gradient descent multiplies the distance to the minimum by 1 - lr·λ: it shrinks if
# |1 - lr·λ| < 1, that is λ < 2/lr, and swings ever wider beyond. 2/lr is the sharpest curvature a
# rate can bear. Networks go there by themselves: λ_max rises to 2/lr, hovers (Cohen et al. 2021).
# H has n² entries; we need only products with it. g(θ±εv) = g ± εHv + ½ε²(…) ± O(ε³), hence
#   Hv = (g(θ+εv) - g(θ-εv)) / 2ε + O(ε²):  two backward passes, nothing new to derive.
# Power iteration: v = Σ cᵢeᵢ gives Hᵏv = Σ λᵢᵏ cᵢ eᵢ, in the end the direction of the largest |λ|.
# If that λ is negative, repeat with H - λI: its eigenvalues λᵢ - λ are ≥ 0, the top one λ_max - λ.
def flat_gradient(model, x, y):
    """(gradient(θ) -> vector, θ): the gradient on (x, y) as a function of all parameters."""
    twin, shapes = shallow_copy(model), {k: v.shape for k, v in model.params.items()}
    ends = np.cumsum([math.prod(s) for s in shapes.values()])[:-1]

    def gradient(theta):
        pieces = zip(shapes.items(), np.split(theta, ends))
        twin.params = {k: piece.reshape(shape) for (k, shape), piece in pieces}
        grads = twin.loss_and_grads(x, y)[1]
        return flat({k: grads[k] for k in shapes})

    return gradient, flat(model.params)


def top_hessian_eigenvalue(gradient, theta, iterations=200, tolerance=1e-5, epsilon=1e-4, seed=0):
    """(λ_max, unit eigenvector) at the vector θ (n,) of the Hessian that goes with gradient(θ)."""
    theta = np.asarray(theta, dtype=np.float64)
    if theta.ndim != 1 or theta.size == 0:
        raise ValueError(f"expected a vector θ, got shape {theta.shape}")
    iterations = check_count("iterations", iterations)
    check_number("epsilon", epsilon, TINY)
    shift = 0.0
    while True:
        v = np.random.default_rng(seed).normal(size=theta.size)
        v, value = v / np.linalg.norm(v), math.inf
        for _ in range(iterations):
            hv = (gradient(theta + epsilon * v) - gradient(theta - epsilon * v)) / (2 * epsilon)
            previous, value = value, float(v @ hv)  # vᵀHv, as ‖v‖ = 1
            w = hv - shift * v
            size = np.linalg.norm(w)
            if size == 0 or abs(value - previous) <= tolerance * abs(value - shift):
                break
            v = w / size
        if value >= 0 or shift:
            return value, v
        shift = value


# %% 8. History and Monitor
# What is recorded is all that the diagnosis may use, and what was not measured is nan, never 0.
# After every step: the loss, the rate, the norm of the gradient that the optimizer was given, and
#   ratio      ‖Δθ‖/‖θ‖, for all parameters together and (`arrays`) for each array;
#   cosine     cos(Δθ, -g): does the step go down the gradient? Momentum lets it stray a little;
#   shrink     cos(Δθ, -θ): does it merely make the weights smaller? In thousands of dimensions a
#              gradient is nearly perpendicular to θ, but weight decay is parallel to it.
# Before the first step and then now and again, a probe: the loss on a sample of training rows
# (train), the same with inputs in reverse order (mixed: far worse, if inputs are of use), and on
# held-out rows; the gradient's norms, dead and saturated units, a slope check, and
#   reach      backward multiplies by W and φ' at every layer, or every step back in time. At γ a
#              time, the first of T states gets γᵀ⁻¹ times the gradient of the last (Pascanu et al.
#              2013). reach = ‖∂L/∂h₁‖/‖∂L/∂h_T‖ = γᵀ⁻¹, and growth = γ.
#   spread     two equal columns of W (both 0, say) make two units that compute the same, get the
#              same gradient and stay equal. ‖W - mean column‖/‖W‖ = 0: all units are one unit.
# And once, before anything else, an audit of the data:
#   determined how far x_j alone fixes y: the mutual information I(x_j; y) over H(y). Counts show
#              some by chance, I₀ if y is permuted; (I - I₀)/(H - I₀) is 0 for independence, 1 for
#              a copy.
#   column     the loss of the best table of counts p(y | x_j): a third line for the plot.
#   skip       the windows show how the stream goes from one character to the next (x_j, x_j₊₁)
#              and to the next but one (x_j, x_j₊₂). If (x_T, y) obeys the second law rather than
#              the first, or than none, one was skipped: mean gain in ln p, in standard errors.
#   surprise   by how many nats (x_T, y) fits the first law worse than the steps in windows do.
#   foreign    by how many nats held-out pairs (x_T, y) fit the law of training pairs worse.
#   shared     the share of held-out rows that are training rows, too; natural: of one half of the
#              training rows, in the other half.
def information(a, b, size):
    """The mutual information of two columns of ids below size, in nats, as counted."""
    pairs, counts = np.unique(a * size + b, return_counts=True)  # as few as occur
    joint = counts / len(a)
    p_a, p_b = np.bincount(a) / len(a), np.bincount(b) / len(b)
    return float((joint * np.log(joint / (p_a[pairs // size] * p_b[pairs % size]))).sum())


def log_law(a, b, size, c, d, left_out=0):
    """ln p(d | c) for two columns, by the counts of the pairs (a, b) plus ½ each.

    left_out=1 if (c, d) are among (a, b): then no pair is judged by its own count."""
    pairs, counts = np.unique(a * size + b, return_counts=True)
    asked = c * size + d
    at = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    seen = np.where(pairs[at] == asked, counts[at], 0) - left_out
    total = np.bincount(a, minlength=size)[c] - left_out
    return np.log((seen + 0.5) / (total + 0.5 * size))


def standard_errors(values):
    """How many standard errors the mean of the values is above 0."""
    return float(values.mean() / (values.std() / math.sqrt(len(values)) + 1e-9))


def audit_data(x, y, vocab_size, seed=0):
    """The readings of x (N, T) and y (N,): a dict; skip and surprise are nan if T < 3."""
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 2 or y.shape != x.shape[:1] or x.size == 0:
        found = f"{x.shape} and {y.shape}"
        raise ValueError(f"expected x (N, T) and y (N,), not empty; got {found}")
    size = check_count("vocab_size", vocab_size)
    x, y = check_ids("x", x, size), check_ids("y", y, size)
    rng, entropy = np.random.default_rng(seed), unigram_entropy(y)
    audit = {"uniform": math.log(size), "unigram": entropy, "determined": []}
    audit |= {"skip": math.nan, "surprise": math.nan}
    audit["constant"] = [float(j) for j, column in enumerate(x.T) if np.ptp(column) == 0]
    for column in x.T:
        chance = np.mean([information(column, rng.permutation(y), size) for _ in range(3)])
        found = information(column, y, size)
        audit["determined"].append(float((found - chance) / max(entropy - chance, 1e-9)))
    audit["column"] = min(-float(log_law(c, y, size, c, y, left_out=1).mean()) for c in x.T)
    if x.shape[1] >= 3:
        steps = x[:, :-1].ravel(), x[:, 1:].ravel()  # from one character to the next
        leaps = x[:, :-2].ravel(), x[:, 2:].ravel()  # to the next but one
        by_step = log_law(*steps, size, x[:, -1], y)
        by_leap = log_law(*leaps, size, x[:, -1], y)
        by_none = np.log(np.bincount(y)[y] / len(y))
        audit["skip"] = min(standard_errors(by_leap - by_step), standard_errors(by_leap - by_none))
        inside = log_law(*steps, size, x[:, -2], x[:, -1], left_out=1)
        audit["surprise"] = float((inside - by_step).mean())
    return audit


def compare_data(train, held_out, vocab_size, seed=0):
    """{'shared', 'natural', 'foreign'} for two pairs (x, y); nan if one of them is empty.

    A row becomes one number, Σ mⱼ·idⱼ modulo 2⁶⁴ with random mⱼ, nearly always its own."""
    if len(train[1]) < 2 or len(held_out[1]) == 0:
        return dict.fromkeys(("shared", "natural", "foreign"), math.nan)
    rng = np.random.default_rng(seed)
    m = rng.integers(2**63, size=train[0].shape[1] + 1).astype(np.uint64)
    known, asked = (np.column_stack(rows).astype(np.uint64) @ m for rows in (train, held_out))
    mixed, half = rng.permutation(known), len(known) // 2
    (a, b), (c, d) = [(x[:, -1].astype(np.int64), y.astype(np.int64)) for x, y in (train, held_out)]
    usual = log_law(a, b, vocab_size, a, b, left_out=1).mean()
    foreign = float(usual - log_law(a, b, vocab_size, c, d).mean())
    shared, natural = np.isin(asked, known).mean(), np.isin(mixed[:half], mixed[half:]).mean()
    return {"shared": float(shared), "natural": float(natural), "foreign": foreign}


def step_readings(before, after, grads):
    """(ratio, cosine, shrink, {name: ratio}) of one step from dicts of arrays; nan for 0/0.

    An array without a gradient counts as one whose gradient is 0."""

    def root(a, b):
        return float(np.sqrt(a) / np.sqrt(b)) if b > 0 else math.nan

    arrays, sums = {}, np.zeros(5)
    for k, old in before.items():
        new, g = after[k], grads.get(k, np.zeros_like(old))
        dtype = np.result_type(np.asarray(old).dtype, np.float32)
        old, new, g = (np.asarray(a, dtype).ravel() for a in (old, new, g))
        move = new - old
        products = np.array([move @ move, old @ old, g @ g, -(move @ g), -(move @ old)], float)
        arrays[k] = root(products[0], products[1])
        sums += products
    move2, old2, g2, down, inward = sums
    cosine, shrink = root(1, move2) * root(1, g2) * down, root(1, move2) * root(1, old2) * inward
    return root(move2, old2), float(cosine), float(shrink), arrays


SIGNS = ("dead", "saturated")  # the two readings of units
EACH = {"": 0.0}  # a number for each name
SHAPE = {  # of a saved History: [s] is a list of such, {"": s} a dict of such, 0.0 a number
    **{name: [0.0] for name in ("step", "losses", "lr", "norms", "ratios", "cosines", "shrinks")},
    "arrays": {"": [0.0]},
    "probes": [
        {name: 0.0 for name in ("step", "train", "mixed", "held_out", "reach", "growth")}
        | {name: EACH for name in ("gradients", "errors", "spread", *SIGNS)}
    ],
    "audit": {name: 0.0 for name in ("uniform", "unigram", "column", "skip", "surprise", "shared",
                                     "natural", "foreign")}
    | {"determined": [0.0], "constant": [0.0]},
}  # fmt: skip


def like(value, shape, where):
    """A copy of decoded JSON that is built like the shape; ValueError says where it is not."""
    kind = {float: "number", list: "list", dict: "dict"}[type(shape)]
    if kind == "number" and value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "number" and is_number and abs(value) <= sys.float_info.max:
        return float(value)
    if kind == "number" or not isinstance(value, type(shape)):
        raise ValueError(f"{where}: {str(value)[:30]!r} for a {kind}")
    if kind == "list":
        return [like(entry, shape[0], f"{where}[{i}]") for i, entry in enumerate(value)]
    if "" not in shape and not value.keys() <= shape.keys():
        raise ValueError(f"{where}: {min(value.keys() - shape.keys())[:30]!r} is unknown")
    return {k: like(v, shape.get("", shape.get(k)), f"{where}.{k[:30]}") for k, v in value.items()}


@dataclass
class History:
    """Columns of equal length, one entry a step (from `ratios` on, empty if not measured);
    `arrays`, a column for each array's ratio; `probes`, dicts of readings; the `audit`."""

    step: list = field(default_factory=list)
    losses: list = field(default_factory=list)
    lr: list = field(default_factory=list)
    norms: list = field(default_factory=list)
    ratios: list = field(default_factory=list)
    cosines: list = field(default_factory=list)
    shrinks: list = field(default_factory=list)
    arrays: dict = field(default_factory=dict)
    probes: list = field(default_factory=list)
    audit: dict = field(default_factory=dict)

    def record(self, step, loss, lr, norm, ratio=math.nan, cosine=math.nan, shrink=math.nan,
               arrays=None):  # fmt: skip
        """Append one step; what is left out was not measured."""
        arrays = arrays or {}
        for name in arrays.keys() - self.arrays.keys():
            self.arrays[name] = [math.nan] * len(self.step)
        for name, column in self.arrays.items():
            column.append(float(arrays.get(name, math.nan)))
        self.step.append(int(step))
        columns = self.losses, self.lr, self.norms, self.ratios, self.cosines, self.shrinks
        for column, value in zip(columns, (loss, lr, norm, ratio, cosine, shrink)):
            column.append(float(value))

    def check(self):
        """ValueError unless the columns are equally long (or empty, if not measured)."""
        lengths = {name: len(getattr(self, name)) for name in ("step", "losses", "lr", "norms")}
        measured = {name: getattr(self, name) for name in ("ratios", "cosines", "shrinks")}
        lengths |= {name: len(c) for name, c in {**measured, **self.arrays}.items() if len(c)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"expected columns of equal length, got {lengths}")

    def save(self, path):
        """Write JSON under a temporary name, then move it into place; nan becomes "NaN"."""
        self.check()
        strict = json.loads(json.dumps(asdict(self)), parse_constant=str)  # JSON has no nan, no inf
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            json.dump(strict, file, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.tmp", path)

    @classmethod
    def load(cls, path):
        """Read what `save` wrote; ValueError, saying what was found where, for anything else."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            history = cls(**like(content, SHAPE, "file"))
            for name in ("step", "lr"):
                if not np.isfinite(getattr(history, name)).all():
                    raise ValueError(f"{name}: a number that is not finite")
            history.step = [int(step) for step in history.step]
            history.check()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: expected a saved History, got: {error}") from None
        return history


class Monitor:
    """Call it after every update: `monitor(step, loss, grads, lr)`; then read `.history`. train and
    held_out are rows (x, y), best all of them; probes come first and after every `every` steps."""

    def __init__(self, model, train, held_out, vocab_size, every=25, sample=64, seed=0):
        self.every, sample = check_count("every", every), check_count("sample", sample)
        self.model, self.held_out, self.rng = model, held_out, np.random.default_rng(seed)
        chosen = self.rng.permutation(len(train[1]))[:4000]
        rows = train[0][chosen], train[1][chosen]
        self.train = rows[0][:500], rows[1][:500]  # for the loss
        self.batch = rows[0][:sample], rows[1][:sample]  # for what is dearer
        x, y = (np.concatenate(pair) for pair in zip(rows, held_out))
        audit = audit_data(x, y, vocab_size, seed)
        self.history = History(audit=audit | compare_data(train, held_out, vocab_size, seed))
        self.before = {k: w.copy() for k, w in model.params.items()}
        self.probe(-1)

    def __call__(self, step, loss, grads, lr):
        after = {k: w.copy() for k, w in self.model.params.items()}
        with np.errstate(all="ignore"):
            readings = step_readings(self.before, after, grads)
            self.history.record(step, loss, lr, np.linalg.norm(flat(grads)), *readings)
        self.before = after
        if len(self.history.step) % self.every == 0:
            self.probe(step)

    def probe(self, step):
        """Take the readings of this section now and append them to history.probes."""
        model, norm = self.model, np.linalg.norm
        with np.errstate(all="ignore"):
            reading = {"step": int(step), "errors": slope_check(model, *self.batch, self.rng)}
            backwards = self.train[0][::-1], self.train[1]
            rows = {"train": self.train, "mixed": backwards, "held_out": self.held_out}
            for name, (x, y) in rows.items():
                reading[name] = float(model.loss_and_grads(x, y)[0]) if len(y) else math.nan
            grads = model.loss_and_grads(*self.batch)[1]
            reading["gradients"] = {k: float(norm(g)) for k, g in grads.items()}
            matrices = {k: w for k, w in model.params.items() if w.ndim == 2 and w.shape[1] > 1}
            away = {k: norm(w - w.mean(1, keepdims=True)) for k, w in matrices.items()}
            reading["spread"] = {k: float(away[k] / (norm(w) or 1)) for k, w in matrices.items()}
            states = model.probe(*self.batch) if hasattr(model, "probe") else {}
            reading["dead"] = {k: dead_units(h) for k, (h, _) in states.items()}
            reading["saturated"] = {k: saturated_units(h) for k, (h, _) in states.items()}
            slopes = [norm(dh) for _, dh in states.values()]  # one a layer
            for _, dh in states.values():
                if dh.ndim == 3:
                    slopes = norm(dh, axis=(0, 2))  # (T,) one a time
            if len(slopes) > 1:
                reading["reach"] = float((slopes[0] + 1e-300) / (slopes[-1] + 1e-300))
                reading["growth"] = reading["reach"] ** (1 / (len(slopes) - 1))
        self.history.probes.append(reading)


# %% 9. Diagnose
# A checklist, from cause to effect, so that the first fault found explains the later ones. In this
# order, because:
#   1 data      They come first in the program, and no training mends them. Look at rows by eye.
#   2 start     A state that no gradient can leave makes every later reading meaningless.
#   3 gradient  A wrong gradient may still make the loss fall; so it is checked, not watched.
#   4 steps     The gradient is right: is it what moves the weights, and how far?
#   5 outcome   All the machinery works. Only now ask if the model is too large or too small.
#   6 doubt     Something is off, and it is none of the above: say so, and say where to look.
# `diagnose` follows it, a function a part. A reading that was not taken is nan, and a comparison
# with nan is False: it speaks neither for a run nor against it. The thresholds stand between the
# values (beside them) of runs at seeds 100 to 119 and 200 to 219; the report's seeds are others.
Finding = namedtuple("Finding", "name evidence remedy")  # evidence: a sentence with its numbers
KNOWN = 26  # different names in the four parts below
DOUBT, NOTHING = "something is wrong", "nothing found"
COMPARE = "is held-out text prepared like training text, from the same source? Compare some rows"
COPY = 0.65  # between the last character of a text (0.1 to 0.25) and a copy in 9 rows of 10
SKIPPED = 4  # standard errors: by chance once in 30,000
NOISE = 0.25  # nats: a clean stream 0.00 ± 0.13; with 30 % of the labels drawn anew 0.48 and more
INFORMED = 0.02  # of the target: shuffled labels 0.003 at most, a noisy text 0.05
FOREIGN = 0.5  # nats: parts of one text 0.1 at most, a text with other numbers 1.4 and more
SHARED = 0.3  # of the rows that need not be shared: 0.1 at most, or 1
DIFFERENT = 1e-3  # of the weights: what random units differ by is near 1
IDLE = 0.5  # of a layer's units: in a sane start hardly any unit is dead or saturated
SLOPE_ERROR = 1e-3  # rounding leaves 1e-7, a wrong line 1e-2
GROWTH = 1.2  # 1.2¹⁰ = 6.2, and over 60 steps 1.2⁶⁰ = 56,000
GROWN = 3  # in all: three layers without recurrence may have 2.5, exploding ones have 50 and more
REACH = 0.01  # sane starts 0.04 and more, too small ones 0.004 and less
UPHILL = -0.1  # median cosine: working optimizers 0.02 and more, ascent -0.4 and less
SHRINK = 0.5  # in the first steps: working runs 0.1, weight decay of 10 0.97
PILED = 7  # gradient given over the sample's: working runs 4 at most, sums 16 and more
CUT = 0.1  # the same: below a tenth, with norms that are
ALIKE = 1e-3  # relative spread of norms: different batches make 0.03 at least
LONG = 0.1  # of the weights: a long step
JUMP = 0.3  # nats: several times the noise of a batch
ABOVE = 0.15  # nats: what ends so far above the unigram line has unlearned even the biases
DEAF = 0.97  # of the unigram line: sampling moves it by 1 %, working models are 5 % below
ERASED = 5  # times their own length that weights have moved: nothing of the start is left
UNMOVED = 0.1  # the same: weights cannot have changed by more than about a tenth
WAVE = 0.45  # nats between sample and batches, at any probe: random batches 0.25 at most
APART = 0.5  # nats between two losses of one model: far above the noise of a sample
LOST = 0.25  # nats of held-out loss since its best: several times the noise of 500 rows
WALKED = 2.5  # times their own length that weights have moved: far more than learning needs
RESTLESS = 0.0125  # of the weights in a middling late step: working runs 0.012 at most
LEVEL = 0.1  # nats above the table of one column: four times the noise of both
USED = 0.06  # nats that the inputs help: shuffled labels 0.04 at most, working models 0.5 and more
ENOUGH = 0.5  # times their own length: so far weights must have come to call a model small


def rule(found, holds, name, evidence, remedy):
    """Add a Finding to the list found if the condition holds."""
    if holds:
        found.append(Finding(name, evidence, remedy))


def extreme(reading, pick=max):
    """(value, name) of the largest (or smallest) entry of a dict of readings; (nan, '') if none."""
    entries = [(value, name) for name, value in (reading or {}).items() if value == value]
    return pick(entries, default=(math.nan, ""))


def measured(values):
    """The numbers that are not nan; [nan] if there are none."""
    numbers = np.asarray([value for value in values if value == value], float)
    return numbers if len(numbers) else np.array([math.nan])


class Readings:
    """A History in the numbers that the parts below ask for."""

    def __init__(self, history):
        self.probes = history.probes or [{}]
        self.first, self.last = self.probes[0], self.probes[-1]
        self.arrays = history.arrays
        self.known = history.audit
        self.audit = {name: math.nan for name in SHAPE["audit"]}
        self.audit |= {"determined": [], "constant": [], **history.audit}
        self.unigram, self.column = self.audit["unigram"], self.audit["column"]
        # the loss
        self.losses = np.asarray(history.losses, float)
        self.steps = len(self.losses)
        self.start = float(self.losses[0])
        self.end = float(self.losses[-max(1, self.steps // 10) :].mean())
        self.peak = float(self.losses.max()) if np.isfinite(self.losses).all() else math.inf
        self.story = f"loss {self.start:.2f} to {self.end:.2f}"
        self.train = [probe.get("train", math.nan) for probe in self.probes]
        self.held_out = [probe.get("held_out", math.nan) for probe in self.probes]
        self.use = self.last.get("mixed", math.nan) - self.train[-1]  # nats that the inputs help
        # the steps
        self.rates = np.asarray(history.lr, float)
        self.ratios = np.asarray(list(history.ratios) or [math.nan] * self.steps, float)
        self.longest = measured(self.ratios).max()
        self.path = measured(self.ratios).sum()  # all steps end to end
        self.late = np.median(measured(self.ratios[self.steps // 2 :]))
        self.cosine = np.median(measured(history.cosines))
        self.shrink = np.median(measured(history.shrinks[:5]))
        self.peak_first = self.rates[0] >= 0.99 * self.rates.max()
        self.peak_last = self.rates[-1] >= 0.99 * self.rates.max()
        # the gradient: the norm that the optimizer was given, over that of the training sample
        self.norms = np.asarray(history.norms, float)
        given, places = [], {step: place for place, step in enumerate(history.step)}
        for probe in self.probes:
            sample = math.sqrt(sum(g * g for g in probe.get("gradients", {}).values()))
            if probe.get("step") in places and sample > 0:
                given.append(self.norms[places[probe["step"]]] / sample)
        self.given = np.median(measured(given))


# fmt: off
def data_findings(r):
    """Part 1: the data, by the audit alone."""
    found, audit = [], r.audit
    *early, last = audit["determined"] or [math.nan]
    share, column = max(zip(early, range(len(early))), default=(math.nan, 0))
    rule(found, share > COPY, "leak", f"input column {column} alone fixes {share:.0%} of y",
         "find how the answer gets into that input column: a mask, a slice, a feature")
    side_by_side = "print inputs and targets side by side: y must follow the last input"
    rule(found, last > COPY, "off-by-one targets",
         f"the last input alone fixes {last:.0%} of y", side_by_side)
    rule(found, audit["skip"] > SKIPPED, "off-by-one targets",
         f"y is 2 after the last input, by {audit['skip']:.0f} standard errors", side_by_side)
    columns = ", ".join(f"{j:.0f}" for j in audit["constant"])
    rule(found, columns, "constant inputs", f"one and the same id all over column {columns}",
         "print some inputs: a wrong index, a mask, padding where there should be text")
    rule(found, audit["surprise"] > NOISE and last > INFORMED, "label noise",
         f"y surprises by {audit['surprise']:.2f} nats more than steps inside the inputs do",
         "read rows that the model finds hardest; find out how they were labelled")
    shared, natural = audit["shared"], audit["natural"]
    rule(found, shared - natural > SHARED * (1 - natural), "shared rows",
         f"{shared:.0%} of held-out rows are training rows; {natural:.0%} would be natural",
         "split before anything is copied or shuffled; held-out loss measures memory now")
    rule(found, audit["foreign"] > FOREIGN, "held-out differs",
         f"its pairs (x_T, y) surprise by {audit['foreign']:.2f} nats more than training pairs",
         COMPARE)
    return found


def start_findings(r):
    """Parts 2 and 3: the state before any step, and the gradient."""
    found = []
    spread, where = extreme(r.last.get("spread"), min)
    rule(found, spread < DIFFERENT, "zero init", f"units of {where} differ by only {spread:.0e}",
         "draw weights at random, so that units differ")
    share, where = extreme(r.first.get("dead"))
    rule(found, share > IDLE, "dead units", f"{share:.0%} of {where} are 0 on every example",
         "start biases at 0 and weights at variance 2/fan_in; or use a leaky ReLU")
    share, where = extreme(r.first.get("saturated"))
    rule(found, share > IDLE, "saturating init", f"{share:.0%} of {where} start at ±1",
         "start weights at variance 1/fan_in")
    worst = sorted(extreme(probe["errors"]) for probe in r.probes if probe.get("errors"))
    error, where = worst[len(worst) // 2] if worst else (math.nan, "")  # luck can hide it: median
    rule(found, error > SLOPE_ERROR, "backward bug", f"the slope along {where} is off {error:.1%}",
         "derive that gradient again; until the check passes nothing else means much")
    growth, reach = r.first.get("growth", math.nan), r.first.get("reach", math.nan)
    rule(found, growth > GROWTH and reach > GROWN, "exploding recurrence",
         f"the gradient grows {growth:.2f}-fold a step back",
         "orthogonal recurrent weights, gradient clipping, or a gated cell")
    rule(found, reach < REACH, "vanishing gradients",
         f"the first state gets {reach:.0e} of the gradient of the last, {growth:.2f} a step back",
         "larger initial weights (variance 1/fan_in, orthogonal), residual paths, a gated cell")
    return found


def step_findings(r):
    """Part 4: do the steps follow the gradient, and how far do they go?"""
    found = []
    rule(found, r.cosine < UPHILL, "uphill", f"cos(step, -gradient) is {r.cosine:.2f}",
         "look for a wrong sign: in the update, or in the loss that is differentiated")
    still = [k for k, ratios in r.arrays.items() if len(ratios) and not np.greater(ratios, 0).any()]
    rule(found, still and r.steps >= 10, "frozen weights", f"{', '.join(still)} never moved",
         "if it is not meant to be: is it passed to the optimizer, under the right name?")
    rule(found, r.shrink > SHRINK, "weight decay", f"steps lead to 0: cosine {r.shrink:.2f}",
         "divide weight_decay by 100: usual is 0.01 to 0.1")
    rule(found, r.given > PILED, "gradients pile up",
         f"the optimizer gets {r.given:.0f} times the gradient of the training sample",
         "set the gradients to zero before every backward")
    norms = r.norms[r.steps // 2 :]
    alike = norms.std() < ALIKE * norms.mean()
    rule(found, r.given < CUT and alike, "gradient clipped", f"all norms are {norms.mean():.1e}",
         "clip at a norm that only outliers reach: look at the norms first; usual is 1")
    broken = ~(np.isfinite(r.losses) & np.isfinite(r.norms))
    before = r.ratios[: broken.argmax()]
    short_before = broken.any() and before[np.isfinite(before)].max(initial=0) < LONG
    overflow = bool(short_before and (broken[0] or not math.isnan(r.path)))
    rule(found, overflow, "overflow", f"not finite at step {broken.argmax()}, after short steps",
         "look at that batch, at float16 and its loss scale, at log 0 and at 0/0")

    # The run was thrown off if its loss jumped, or if it ends at the unigram line with units dead
    # or saturated. A step longer than the weights erases them: no warmup cures that, nor an end
    # above that line, nor a rate that is still at its peak when the units have died.
    jumped = r.peak - r.start > JUMP
    units_died = max(extreme(r.last.get(sign))[0] for sign in SIGNS) > 0.9
    thrown_off = (jumped or (units_died and r.end > DEAF * r.unigram)) and not overflow
    ends_above = r.end - r.unigram > ABOVE
    curable = LONG < r.longest <= 1 and not ends_above and (jumped or not r.peak_last)
    no_warmup = thrown_off and r.peak_first and curable
    steps = "not measured" if math.isnan(r.longest) else f"the longest {r.longest:.2g} of ‖θ‖"
    story = f"loss {r.start:.2f}, then {r.peak:.3g}, {r.end:.2f} in the end; steps: {steps}"
    rule(found, no_warmup, "no warmup", story + ", at full rate from the first",
         "raise the rate linearly from 0 over the first tenth of the run or longer")
    by_steps = thrown_off and not r.longest <= LONG
    high = not no_warmup and (by_steps or (ends_above and r.path > ERASED))
    rule(found, high, "rate too high", story, "divide it by 3 to 10; see lr_range_test")
    stuck = r.steps >= 10 and r.end > 0.98 * r.start and r.losses.std() > 0
    steadily = stuck and np.corrcoef(range(r.steps), r.losses)[0, 1] < -0.5
    low = r.path < UNMOVED or (math.isnan(r.path) and steadily)
    rule(found, low and not thrown_off, "rate too low", f"{r.story}; all steps {r.path:.1g} of ‖θ‖",
         "multiply it by 10 and more; see lr_range_test")
    return found


def outcome_findings(r):
    """Part 5: the machinery works; what has become of the model?"""
    found, gaps = [], []
    for probe, train in zip(r.probes[2:], r.train[2:]):
        step = int(probe.get("step", 0))
        gaps.append(abs(train - np.median(r.losses[max(0, step - 4) : step + 5])))
    gap = measured(gaps).max()
    rule(found, WAVE < gap < math.inf, "batches differ",
         f"{r.story}; at some time {gap:.2f} nats lie between batches and training sample",
         "draw every batch at random from all rows: not always the same one, not in order")
    held_out, best = r.held_out[-1], measured(r.held_out).min()
    train = r.end if math.isnan(r.train[-1]) else r.train[-1]
    story = f"{r.story}, held-out {held_out:.2f}, at best {best:.2f}"
    over = held_out - r.end > APART and held_out - best > LOST
    rule(found, over, "overfitting", story, "early_stop at the best; more data, weight decay")
    rule(found, held_out - train > APART and not over, "held-out differs", story, COMPARE)
    at_line = r.end < r.unigram + ABOVE and min(r.end, held_out) > DEAF * r.unigram
    uninformed = measured(r.audit["determined"]).max() < INFORMED and not r.use > USED
    rule(found, at_line and uninformed, "shuffled labels",
         f"{story}: at the unigram line {r.unigram:.2f}",
         "check that x and y stay paired through every shuffle, sort and join")
    above = (train + r.end) / 2 - r.column
    kept = r.peak_last and r.path > WALKED and (r.late > RESTLESS or above > LEVEL)
    rule(found, kept, "rate kept up", f"{r.story}; to the end a step is {r.late:.1%} of ‖θ‖",
         "let the rate fall towards 0 over the run")
    level = len(r.train) >= 4 and r.train[-3] - r.train[-1] < above / 4  # it will not get there
    small = above > LEVEL and level and r.use > USED and r.path > ENOUGH and not kept
    rule(found, small, "underfitting", f"{r.story}, level; one column gives {r.column:.2f}",
         "a wider or deeper model; less weight decay or dropout")
    return found


def measuring_doubts(r):
    """Part 6, in words: what must be settled before the outcome is judged."""
    told = []
    if "held_out" in r.last and math.isfinite(r.train[-1]) and not math.isfinite(r.held_out[-1]):
        told.append(f"held-out loss {r.held_out[-1]}: are there held-out rows, and valid?")
    if abs(r.start - r.train[0]) > APART:
        told.append(f"the first loss is {r.start:.2f}, measured {r.train[0]:.2f}: is it scaled?")
    if r.steps >= 10 and (r.ratios[r.steps // 2 :] == 0).all():
        told.append("nothing moved in the second half: look at the rates")
    return told


def outcome_doubts(r):
    """Part 6, too: an outcome that no known cause explains."""
    told = []
    if r.peak - r.start > JUMP:
        told.append(f"the loss went to {r.peak:.3g}, by no long step: look at that batch")
    if r.end - r.unigram > ABOVE:
        told.append(f"it ends above the unigram line {r.unigram:.2f}: train longer, or see why")
    elif r.end > DEAF * r.unigram > 0:
        told.append(f"it ends at the unigram line {r.unigram:.2f}, although inputs tell of y: are "
                    "x and y paired in the batches, did it train long enough?")
    if r.steps >= 10 and r.end > 0.98 * r.start:
        told.append("no progress: try overfit_one_batch and gradient_check")
    return told


# fmt: on
def diagnose(history):
    """Findings from a History alone, causes before symptoms. If there is no known cause, one
    Finding says what looks wrong, or that nothing does, and what was not measured."""
    if not isinstance(history, History):
        raise ValueError(f"expected a History, got {history!r}")
    history.check()
    if len(history.losses) == 0:
        raise ValueError("expected a history of at least one step, got none")
    r = Readings(history)
    with np.errstate(all="ignore"):
        found = data_findings(r) + start_findings(r) + step_findings(r)
        told = measuring_doubts(r)
        if not told:
            found += outcome_findings(r)
        if not told and not found:
            told = outcome_doubts(r)
    if told:
        found.append(Finding(DOUBT, f"{r.story}; " + "; ".join(told), "settle this first"))
    if found:
        return found
    parts = {"steps": math.isnan(r.longest), "probes": not history.probes, "data": not r.known}
    absent = ", ".join(name for name, is_absent in parts.items() if is_absent)
    story = f"none of the {KNOWN} known causes, {r.story}; what was measured looks normal"
    return [Finding(NOTHING, story + (f"; not measured: {absent}" if absent else ""), "train on")]


# %% 10. The clinic
# All else about a broken run is drawn at random from what is healthy: task, body, depth, width,
# activation, optimiser, rate, schedule. So are the controls, with traps among them: an output layer
# that starts at 0 (as in zero init), a task whose loss really goes to 0 (as with a leak), and, in
# one of five, runs like those of "no warmup", drawn in the same way, only with warmup.
DISEASES = ("leak", "off-by-one targets", "zero init", "dead units", "saturating init",
            "backward bug", "exploding recurrence", "no warmup", "rate too high", "rate too low",
            "overfitting", "shuffled labels", "vanishing gradients", "underfitting")  # fmt: skip
# A second clinic breaks runs in ways that are none of these. What may be said of such a run is a
# cause that is true of it (named here), or DOUBT; what may not is another cause, or NOTHING.
ACCIDENTS = {
    "steps too small": ("rate too low",),
    "no held-out rows": (),
    "held-out from elsewhere": ("held-out differs",),
    "weight decay 10": ("weight decay",),
    "float16 overflow": ("overflow",),
    "one layer frozen": ("frozen weights",),
    "all frozen but a bias": ("frozen weights",),
    "held-out rows trained on": ("shared rows",),
    "one batch for ever": ("batches differ",),
    "clipping at 0.0001": ("gradient clipped",),
    "rate kept at its peak": ("rate kept up", "rate too high"),
    "30 % label noise": ("label noise",),
    "gradient ascent": ("uphill",),
    "no zero_grad": ("gradients pile up",),
    "sorted data": ("batches differ",),
    "constant inputs": ("constant inputs",),
    "other data half-way": ("batches differ",),
    "batches paired wrongly": ("shuffled labels",),
    "rate 0 after a tenth": ("rate too low",),
    "loss divided by 8": (),
}
BOTH = ("healthy", "rate too low", "leak", "off-by-one targets", "shuffled labels", "backward bug")


@lru_cache
def corpus(name, context):
    """(x (N, T), y (N,), V): every run of T symbols of data/<name>.txt and the symbol after it."""
    text = (Path(__file__).resolve().parent / "data" / f"{name}.txt").read_text(encoding="utf-8")
    characters, symbols = np.unique([ord(c) for c in text], return_inverse=True)
    w = np.lib.stride_tricks.sliding_window_view(symbols, context + 1)
    return w[:, :-1], w[:, -1], len(characters)


def sabotage(kind):
    """layer_backward with one line wrong: the slope forgotten, a sign flipped, a bias averaged."""

    def backward(dh, cache):
        dx, dw, db = layer_backward(dh, cache)
        slopeless = dh @ cache[1].T, cache[0].T @ dh, dh.sum(0)
        return {"slope": slopeless, "sign": (-dx, dw, db), "bias": (dx, dw, db / len(dh))}[kind]

    return backward


def clinic_run(name, seed, copy=0, steps=200):
    """Draw a run, break it as `name` says (or 'healthy': not), train it; its History."""
    known = ("healthy", *DISEASES, *ACCIDENTS)
    if name not in known:
        raise ValueError(f"expected one of {known}, got {name!r}")
    rng = np.random.default_rng([seed, known.index(name), copy])
    steep = name == "no warmup" or (name == "healthy" and copy % 5 == 0)
    exploding, saturating = name == "exploding recurrence", name == "saturating init"
    vanishing = name == "vanishing gradients"
    recurrent = exploding or (vanishing and rng.random() < 0.5)
    if name in BOTH and not steep:
        recurrent = rng.random() < 0.25
    stream = steep or exploding or name in ("off-by-one targets", "overfitting", "underfitting")
    tasks = ["stories", "names"]
    if not stream and name in known[:13]:
        tasks.append("sum")
    elif name == "underfitting":
        tasks.remove("names")  # there one unit does nearly as well as a column of counts
    task = rng.choice(tasks)
    relu = steep or exploding or name == "dead units" or rng.random() < 0.5
    relu = relu and name not in ("saturating init", "underfitting")  # a single ReLU may start dead
    kind = "adam" if steep or rng.random() < 0.5 else "sgd"

    if task == "sum":  # y = first + last, modulo 3: no column alone says anything about y
        size, context = 3, 3 if name == "leak" else 2
        x = rng.integers(size, size=(12000, context))
        y = (x[:, 0] + x[:, -1]) % size
    else:
        context = 8 if recurrent else 6
        x, y, size = corpus(task, context)
        first, some = rng.integers(max(1, len(y) + context - 60000)), 60000 - context
        x, y = (a[first : first + some].copy() for a in (x, y))
    if name == "off-by-one targets":  # the character after the next, or the last one seen
        x, y = (x[:-1], y[1:]) if rng.random() < 0.5 else (x, x[:, -1].copy())
    elif name == "shuffled labels":
        y = rng.permutation(y)
    elif name == "leak":
        leaky = rng.random(len(y)) < rng.uniform(0.9, 1)
        x[leaky, rng.integers(context - 1)] = y[leaky]
    elif name == "30 % label noise":
        noisy = rng.random(len(y)) < 0.3
        y[noisy] = rng.integers(size, size=noisy.sum())
    elif name == "constant inputs":
        x[:] = x[0, 0]
    n = int(0.9 * len(y))
    rows = rng.permutation(n)[: rng.integers(32, 80) if name == "overfitting" else n]
    later = n + rng.permutation(len(y) - n)[:500]
    if name == "underfitting":
        steps = 3 * steps  # enough to get as far as it can
    if name == "held-out rows trained on":
        later = rng.choice(rows, 500)
    held_x, held_y = x[later], y[later]
    if name == "no held-out rows":
        held_x, held_y = held_x[:0], held_y[:0]
    elif name == "held-out from elsewhere":  # the same characters, but numbered otherwise
        other = rng.permutation(size)
        held_x, held_y = other[held_x], other[held_y]

    gain = rng.uniform(2.5, 4) if exploding else rng.uniform(8, 20) if saturating else 1
    width, depth = int(rng.choice([24, 32, 48])), int(rng.integers(2 if steep else 1, 4))
    if vanishing:
        gain = rng.uniform(0.15, 0.35)
        depth = int(rng.integers(5, 9))
    elif name == "underfitting":
        width = depth = 1  # one unit
    embed, activation = int(rng.choice([8, 12])), "relu" if relu else "tanh"
    shape = width, depth, embed, activation, recurrent
    model = LanguageModel(size, context, *shape, gain, [seed, copy])
    p = model.params
    if name == "zero init":  # or one small constant
        value = rng.choice([0, 0.02])
        model.params = {k: np.full_like(w, value * (w.ndim > 1)) for k, w in p.items()}
    elif name == "dead units":
        p[f"b{rng.integers(1, model.depth + 1)}"] -= 30
    elif name == "backward bug":
        model.layer_backward = sabotage(rng.choice(["slope", "sign", "bias"]))
    elif name == "healthy" and rng.random() < 0.2:
        p["Wo"][:] = 0

    low, high = (0.15, 0.18) if steep else (4e-3, 2e-2) if kind == "adam" else (0.03, 0.15)
    if name == "rate too high":
        low, high = (0.7, 3) if kind == "adam" else (2, 10)
    elif name == "rate kept at its peak":
        low, high = (0.05, 0.1) if kind == "adam" else (0.4, 0.8)
    factor = {"rate too low": 0.002, "steps too small": rng.uniform(0.02, 0.1)}.get(name, 1)
    rate = factor * math.exp(rng.uniform(math.log(low), math.log(high)))
    warmup = 0 if name == "no warmup" else 0.4 * steps if steep else rng.choice([0, 0.1 * steps])
    decay = steep or (rng.random() < 0.5 and name != "rate kept at its peak")
    rates = schedule(rate, steps, warmup, decay)
    if name == "rate 0 after a tenth":
        rates[steps // 10 :] = 0

    trained = list(model.params)
    if name == "one layer frozen":
        trained.remove(rng.choice(["E", "W1", "Wo"]))
    elif name == "all frozen but a bias":
        trained = [rng.choice(["b1", "bo"])]
    order = rng.choice(rows, (steps, 64))
    if name == "sorted data":
        key = y if rng.random() < 0.5 else x[:, -1]
        order = order.ravel()[np.argsort(key[order.ravel()], kind="stable")].reshape(steps, 64)
    elif name == "one batch for ever":
        order[:] = order[0]
    optimizer, sums = Optimizer(kind), {}
    monitor = Monitor(model, (x[rows], y[rows]), (held_x, held_y), size, max(1, steps // 6))
    for t, rate in enumerate(rates):
        ys = y[order[t]]
        if name == "other data half-way" and t >= steps // 2:
            ys = (ys + 1) % size
        elif name == "batches paired wrongly":
            ys = rng.permutation(ys)
        with np.errstate(all="ignore"):
            loss, grads = model.loss_and_grads(x[order[t]], ys)
            norm = np.linalg.norm(flat(grads))
            for k, g in grads.items():
                if name == "clipping at 0.0001":
                    grads[k] = g * min(1, 1e-4 / norm)
                elif name == "no zero_grad":
                    grads[k] = sums[k] = sums.get(k, 0) + g
                elif name == "float16 overflow":  # a loss scale that doubles, never halves
                    scale = 2.0 ** (10 + t // 10)
                    grads[k] = (g * scale).astype(np.float16).astype(np.float32) / scale
            used = {k: grads[k] for k in trained}
            if name == "weight decay 10" and kind == "sgd":  # there added to the gradient
                used = {k: g + 10 * model.params[k] for k, g in used.items()}
            elif name == "weight decay 10":
                for w in model.params.values():
                    w *= 1 - 10 * rate
            optimizer.step(model.params, used, -rate if name == "gradient ascent" else rate)
            monitor(t, loss / 8 if name == "loss divided by 8" else loss, grads, rate)
    return monitor.history


# %% Demonstration
def progress(message, last=False):
    """One line overwritten in place on a terminal; when piped, only the last message is printed."""
    if sys.stdout.isatty():
        print(f"\r{message:<78}", end="\n" if last else "", flush=True)
    elif last:
        print(message, flush=True)


def curve(losses, width=24):
    """A loss curve as a line of text, drawn from its lowest value to at most twice its first."""
    losses = np.nan_to_num(np.minimum(losses, 2 * losses[0]), nan=2 * losses[0])
    heights = np.array([piece.mean() for piece in np.array_split(losses, min(width, len(losses)))])
    heights = (heights - heights.min()) / (np.ptp(heights) or 1)
    return "".join("▁▂▃▄▅▆▇█"[int(7.99 * height)] for height in heights)


def clinic(runs, seeds):
    """Train and diagnose runs {name: (true findings, copies)}; print an example of each, then a
    table of all, whose lines are returned."""
    told = f"seeds {seeds[0]} to {seeds[-1]}"
    table = [f"{told:<26} true  doubt  wrong   none     wrong ones"]
    totals = np.zeros(4, int)
    for name, (truths, copies) in runs.items():
        counts, wrong = np.zeros(4, int), []
        for seed, copy in product(seeds, range(copies)):
            progress(f"   {name}, seed {seed}")
            history = clinic_run(name, seed, copy)
            finding = diagnose(history)[0]
            if (seed, copy) == (seeds[0], 0):
                words = textwrap.wrap(f"{finding.name}: {finding.evidence}", 46)
                shown = [f"   {name:<24} {curve(history.losses)} {words[0]}", *words[1:]]
            kinds = finding.name in truths, finding.name == DOUBT, finding.name != NOTHING, True
            counts[kinds.index(True)] += 1
            if kinds.index(True) == 2:
                wrong.append(finding.name)
        progress(("\n" + " " * 53).join(shown), last=True)
        totals += counts
        cells = "  ".join(f"{count or '.':>5}" for count in counts)
        table.append(f"{name:<25}{cells}     {', '.join(sorted(wrong))}".rstrip())
    table.append(f"{f'of {totals.sum()}':<25}" + "  ".join(f"{count:>5}" for count in totals))
    print("\n   " + "\n   ".join(table))
    return table


FIRST = {name: ((name,), 1) for name in DISEASES} | {"healthy": ((NOTHING,), 5)}
SECOND = {name: (truths, 1) for name, truths in ACCIDENTS.items()}


def report(args):
    """Six numbered parts; with --clinic, only the last two, at twenty and ten seeds."""
    seed, fast, context = args.seed, args.fast, 8
    x, y, size = corpus("stories", context)
    corpus("names", context)
    if args.clinic:
        return clinic(FIRST, range(seed, seed + 20)), clinic(SECOND, range(seed, seed + 10))

    split = int(0.9 * (len(y) + context)) - context  # every held-out character once
    held_x, held_y, rng = x[split:], y[split:], np.random.default_rng(seed)

    def batch(rows=128):
        chosen = rng.integers(split, size=rows)
        return x[chosen], y[chosen]

    def new_model(gain=1.0):
        return LanguageModel(size, context, 256, 1, 24, "relu", False, gain, seed, np.float32)

    def fit(model, steps, rate, monitor=None):
        for reading in training(model, batch, schedule(rate, steps, 0.05 * steps)):
            if monitor:
                monitor(*reading)  # the one line
            if not math.isfinite(reading[1]):
                progress(f"   step {reading[0]}: the loss is {reading[1]}", last=True)
                break
            if reading[0] % 100 == 0:
                progress(f"   step {reading[0]} of {steps}, loss {reading[1]:.3f}")
        return model.loss_and_grads(*sample)[0]

    line = unigram_entropy(y[:split])
    print(f"1. Before training: ln V = {math.log(size):.3f}, unigram line {line:.3f}")
    for gain in (1, 3, 30):
        c = check_initialization(new_model(gain), *batch(2000), size)
        verdict = "sane" if c["ok"] else "NOT sane"
        print(f"   weights x {gain:<3} loss {c['loss']:6.3f}  spread {c['spread']:5.2f}  {verdict}")
    reached, losses = overfit_one_batch(new_model(), *batch(32), steps=60)
    verdict = f"{'' if reached else 'NOT '}learned by heart in {len(losses)} steps"
    print(f"   one batch of 32: loss {losses[0]:.2f} to {losses[-1]:.2f}, {verdict}")

    print("\n2. Learning-rate range test (Adam): rate, smoothed loss")
    found = lr_range_test(new_model, [batch() for _ in range(30)], steps=20 if fast else 150)
    for i in np.linspace(0, len(found.rates) - 1, 12).astype(int):
        bar = "#" * int(12 * min(6, found.losses[i]))
        print(f"   {found.rates[i]:9.1e} {found.losses[i]:6.2f} {bar}")
    print(textwrap.indent(textwrap.fill(found.reason, 94), "   "))
    some, few, rate = rng.integers(len(held_y), size=1000), 3 if fast else 500, found.suggested
    sample, rate = (held_x[some], held_y[some]), rate or 1e-3
    for factor in (0.1, 1, 10):
        loss = fit(new_model(), few, factor * rate)
        progress(f"   {few} steps at {factor:>4} x {rate:.2g}: held-out {loss:.3f}", last=True)

    def critical_batches(model):
        rows, small = (128, 16) if fast else (4096, 64)
        scales = [gradient_noise_scale(model, *batch(rows), small)[0] for _ in range(4)]
        return f"{min(scales):.2g} to {max(scales):.2g}"

    print("\n3. Training with the Monitor")
    print("    step  loss  held-out     rate   |g|   update  dead   |g| in E, W1, Wo")
    model, steps = new_model(), 30 if fast else 5000
    noise = [critical_batches(model)]
    monitor = Monitor(model, (x[:split], y[:split]), sample, size, steps // 6)
    fit(model, steps, rate, monitor)
    noise.append(critical_batches(model))
    history = monitor.history
    trend = smooth(history.losses, 0.98)
    for p in history.probes[1:]:
        t, norms = p["step"], "  ".join(f"{p['gradients'][k]:.2f}" for k in ("E", "W1", "Wo"))
        print(f"   {t + 1:5d} {trend[t]:5.2f} {p['held_out']:9.2f}  {history.lr[t]:.1e} ", end="")
        print(f"{history.norms[t]:5.2f}  {history.ratios[t]:.1e} {p['dead']['h1']:5.0%}   {norms}")
    for finding in diagnose(history):
        words = f"diagnosis: {finding.name} ({finding.evidence}); {finding.remedy}"
        print(textwrap.indent(textwrap.fill(words, 94), "   "))
    print(f"   critical batch size, four samples: {noise[0]} before training, {noise[1]} after")

    print("\n4. The edge of stability: full-batch gradient descent, top eigenvalue of H")
    stride, few = 4 if fast else 300, (x[:192, 4:], y[:192])
    print("   rate  2/rate   at step" + "".join(f"{i * stride:8d}" for i in range(6)) + "    loss")
    for rate in (1.5, 2.0, 3.0):
        edge = LanguageModel(size, 4, 24, 1, 6, seed=seed)
        row, tries = f"   {rate:4} {2 / rate:7.2f}{'':10}", 5 if fast else 60
        for t in range(5 * stride + 1):
            loss, grads = edge.loss_and_grads(*few)
            if t % stride == 0:
                row += f"{top_hessian_eigenvalue(*flat_gradient(edge, *few), tries, 1e-3)[0]:8.2f}"
                progress(f"   rate {rate}, step {t}")
            for k, g in grads.items():
                edge.params[k] -= rate * g
        progress(f"{row}{loss:8.2f}", last=True)

    print("\n5. Diseases and healthy controls: loss, first finding. The table counts true ones,")
    print("   doubts, wrong causes, none. Thresholds were set at seeds 100 to 119, 200 to 219.")
    few = {name: FIRST[name] for name in ("zero init", "dead units")}
    clinic(few if fast else FIRST, range(seed, seed + 1 if fast else seed + 2))
    print("\n6. Accidents that are none of these: is a true cause found, or a doubt raised?")
    few = {name: SECOND[name] for name in ("one layer frozen", "gradient ascent")}
    clinic(few if fast else SECOND, [seed])
    nats = model.loss_and_grads(held_x, held_y)[0]
    print(f"\nheld-out: {nats:.3f} nats/char | {nats / math.log(2):.3f} bits/char | ", end="")
    print(f"perplexity {math.exp(nats):.2f}   (stage 8, feed-forward, context {context})")


def drop_unwritten():
    """Forget what stdout cannot take, so that Python's own flush at the end does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:  # a closed pipe, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv=None):
    """The report; see --help."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it was closed before the start
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    parser = argparse.ArgumentParser(description="Stage 8: why training fails, and how to see it.")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    parser.add_argument("--fast", action="store_true", help="a smoke run, under three seconds")
    parser.add_argument("--clinic", action="store_true", help="both clinics only, more seeds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default 0)")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"--seed must be at least 0, got {args.seed}")
    try:
        report(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever was reading has seen enough
        drop_unwritten()
    except KeyboardInterrupt:
        drop_unwritten()
        parser.exit(130, "\n")
    except OSError as error:
        drop_unwritten()
        parser.error(str(error))


# %% What to take away
# ln V and H(q) stand beside every loss: where one starts, and what it is worth without an input.
# ‖Δθ‖/‖θ‖ near 1e-3 is healthy, near 1 erases the weights; lr·λ_max < 2, or descent swings.
# The gradient that arrives is γᵀ of the one sent: keep γ near 1 by the initial weights.
# Check in the order data, start, gradient, steps, outcome: the first fault explains the later ones.
# "Nothing found" is a statement about the list of causes and readings, not about the run.

# %% Common mistakes
# 1. Judging a run by its falling loss: biases alone fall to the unigram line. (`unigram_entropy`)
# 2. Smoothing without bias correction: the curve starts near 0 and seems to rise. (`smooth`)
# 3. A gradient check in float32, or at a ReLU's kink: "bugs" that are none. (`gradient_check`)
# 4. Calling a ReLU dead after one example; it must be 0 on all of a good sample. (`dead_units`)
# 5. Keeping the last weights, not the best: overfitting looks like a bad model. (`early_stop`)
# 6. A lower rate for an early spike that warmup cures: slow for ever. (`step_findings`)
# 7. Taking a large negative λ for sharpness: it bounds no rate. (`top_hessian_eigenvalue`)
# 8. Thresholds set on the runs that are reported: perfect tables, wrong diagnoses. (section 9)
# 9. Taking a reading that was not made for 0: "the weights did not move". (`History.record`)

# %% Exercises
#  1. ★ Predict the four losses of `descend(1.9)` on paper. What do `guess` and `judge` say of it?
#  2. ★ Show that the bias-corrected average of a constant sequence is that constant everywhere.
#  3. ★ Predict the first loss at gain 100 in part 1 from s²/2. Why is the true one different?
#  4. ★ Which rules of `diagnose` still work if only losses and rates were recorded? Try it.
#  5. ★★ Add a GELU to layer_forward and layer_backward; let `gradient_check` find your mistakes.
#  6. ★★ Derive the 0.23 of section 4: the rms of m/√v when gradients are independent noise.
#  7. ★★ Clip the gradient norm at 1 in `training`. Which diseases does it cure, which does it hide?
#  8. ★★ With tanh, "exploding recurrence" turns into saturation. Plot growth against gain; say why.
#  9. ★★ With heavy-ball momentum β the bound of section 7 is 2(1+β)/lr. Derive it, then measure λ.
# 10. ★★ Add "batch too small" to the accidents. Which reading names it? (section 6)
# 11. ★★★ Make the leak indirect: the sum of two columns. Which reading would find it?
# 12. ★★★ "One layer frozen" looks healthy without `arrays`. Find it from the probes alone.
# 13. ★★★ Learn a decision tree from readings at seeds 100 to 199. Better than the rules elsewhere?
# 14. ★★★ Diagnose from the first tenth of a run. Which causes can be named that early?

# %% Where this leads
# Stage 9 takes a healthy trained model and adapts it with a thousandth of its parameters; stage 10
# aligns it. Large runs are watched with the same readings: loss spikes, gradient norms, update
# ratios and held-out loss, logged every step, with an alarm on each.

if __name__ == "__main__":
    sys.exit(main())
