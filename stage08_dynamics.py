# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 8. Dynamics: why does training fail, and how do you see it?

A broken run rarely crashes. It prints losses, they even fall, and something is wrong: the rate, the
initialisation, the data, one line of one backward. This file derives what health looks like (the
first loss, the size of a step, the state of the units, the curvature a rate can bear), takes these
readings with a `Monitor`, one line of a training loop, and names the cause from them alone with
`diagnose`. Then it opens a clinic: twelve ways to break a run, each really trained, and controls.

Map: 1 the patient, 2 loss curves, 3 vital signs, 4 tests made on purpose, 5 gradient noise,
6 curvature, 7 History and Monitor, 8 diagnose, 9 the clinic. Run it as it is for the report (under
a minute), with --fast for a smoke run, with --clinic for the clinic alone, at twenty seeds.

Papers: Pascanu, Mikolov & Bengio (2013), On the difficulty of training recurrent neural networks.
Smith (2017), Cyclical learning rates. McCandlish et al. (2018), An empirical model of large-batch
training. Cohen et al. (2021), Gradient descent on neural networks typically occurs at the edge of
stability. Karpathy (2019), A recipe for training neural networks.
"""

import argparse
import json
import math
import os
import re
import sys
from collections import namedtuple
from copy import copy as shallow_copy
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import cycle
from pathlib import Path

import numpy as np


def require(ok, message):
    """Raise ValueError(message) unless ok."""
    if not ok:
        raise ValueError(message)


def check_count(name, value, lowest=1):
    """value as an int; ValueError unless it is a whole number, and at least the lowest."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    require(whole, f"expected a whole number as {name}, got {value!r}")
    require(value >= lowest, f"expected {name} >= {lowest}, got {value!r}")
    return int(value)  # an np.uint8 would wrap at 256


def check_number(name, value, lowest=-math.inf):
    """ValueError unless value is a finite number, and at least the lowest."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    require(real and math.isfinite(value), f"expected a finite number as {name}, got {value!r}")
    require(value >= lowest, f"expected {name} >= {lowest}, got {value!r}")


def check_ids(name, ids, vocab_size):
    """ids as int64; ValueError unless they are integers in 0..vocab_size - 1."""
    ids = np.asarray(ids)
    require(ids.dtype.kind in "iu", f"expected integers as {name}, got {ids.dtype}")
    low, high = ids.min(initial=0), ids.max(initial=0)
    expected = f"expected {name} in 0..{vocab_size - 1}"
    require(0 <= low and high < vocab_size, f"{expected}, got {low}..{high}")
    return ids.astype(np.int64)


# %% 1. The patient
# A window x of T characters, the next character y, V characters in all. Each is looked up in a
# table E. Layers hₗ = φ([feedₗ, hₗ₋₁] W + b) follow, in one of two bodies:
#   feed-forward   layer 1 is fed all of E[x₁], …, E[x_T], later ones nothing; each has its own W
#   recurrent      T layers that share one W; layer t is fed E[x_t]; h₀ = 0
# and logits = h Wo + bo. The slope of φ can be read from h: tanh' = 1 - h², ReLU' = [h > 0].
# Backward, with z = x W + b, that is zᵢⱼ = Σₖ xᵢₖ Wₖⱼ + bⱼ, and dz = dh ⊙ φ'(z):
#   ∂L/∂xᵢₖ = Σⱼ dzᵢⱼ Wₖⱼ,  ∂L/∂Wₖⱼ = Σᵢ xᵢₖ dzᵢⱼ,  ∂L/∂bⱼ = Σᵢ dzᵢⱼ.
def layer_forward(x, w, b, activation):
    """h = φ(x W + b) for x (B, K), W (K, C), b (C,); returns (h (B, C), cache)."""
    require(activation in ("tanh", "relu"), f"expected 'tanh' or 'relu', got {activation!r}")
    z = x @ w + b  # (B, C)
    h = np.tanh(z) if activation == "tanh" else np.maximum(z, 0)
    return h, (x, w, h, activation)


def layer_backward(dh, cache):
    """(dx, dW, db) from dh (B, C)."""
    x, w, h, activation = cache
    require(np.shape(dh) == h.shape, f"expected dh of shape {h.shape}, got {np.shape(dh)}")
    dz = dh * (1 - h * h) if activation == "tanh" else dh * (h > 0)  # (B, C)
    return dz @ w.T, x.T @ dz, dz.sum(0)


# Cross-entropy with p = softmax(logits): L = -(1/B) Σᵢ ln pᵢ[yᵢ]. Since ln pᵢ[y] = logitᵢ[y] -
# ln Σⱼ exp(logitᵢⱼ), ∂L/∂logitᵢⱼ = (pᵢⱼ - [j = yᵢ]) / B. Taking the row maximum off first leaves p
# as it is and keeps exp from overflowing.
def cross_entropy_forward(logits, y):
    """Mean -ln p[y] in nats for logits (B, V), y (B,); returns (loss, cache)."""
    ok = np.ndim(logits) == 2 and np.shape(y) == (len(logits),)
    require(ok, f"expected logits (B, V) and y (B,), got {np.shape(logits)} and {np.shape(y)}")
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
        require(activation in ("tanh", "relu"), f"expected 'tanh' or 'relu', got {activation!r}")
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
        require(kind in ("adam", "sgd"), f"expected kind 'adam' or 'sgd', got {kind!r}")
        self.adam, self.t, self.m, self.v = kind == "adam", 0, {}, {}

    def step(self, params, grads, learning_rate):
        """Move every array of `params` in place."""
        check_number("learning_rate", learning_rate)
        for k, g in grads.items():
            shapes = np.shape(params[k]), np.shape(g)
            require(shapes[0] == shapes[1], f"{k}: expected shape {shapes[0]}, got {shapes[1]}")
        self.t += 1
        for k, g in grads.items():
            m = self.m[k] = 0.9 * self.m.get(k, 0) + (0.1 if self.adam else 1) * g
            if self.adam:
                v = self.v[k] = 0.999 * self.v.get(k, 0) + 0.001 * g * g
                m = m / (1 - 0.9**self.t) / (np.sqrt(v / (1 - 0.999**self.t)) + 1e-8)
            params[k] -= (learning_rate * m).astype(params[k].dtype)


def training(model, batch, rates, kind="adam"):
    """The loop of this file: yields (step, loss, grads, rate) after each update on batch()."""
    optimizer = Optimizer(kind)
    for t, rate in enumerate(map(float, rates)):
        loss, grads = model.loss_and_grads(*batch())
        optimizer.step(model.params, grads, rate)
        yield t, loss, grads, rate


def schedule(rate, steps, warmup, decay=True):
    """Rates (steps,): a linear rise over `warmup` steps, then level, or falling towards 0."""
    check_number("rate", rate)
    check_number("warmup", warmup, 0)
    t = np.arange(check_count("steps", steps, 0))
    return rate * np.minimum(1, (t + 1) / (warmup or 1)) * (1 - t / steps if decay else 1)


# %% 2. The loss curve
# Two lines belong in every loss plot, and both are known before the first step.
#   uniform   knowing nothing, p = 1/V for every character: loss -ln(1/V) = ln V. A sane start is
#             there, or slightly above: for logits that are Gaussian with variance s², E[exp z] =
#             exp(s²/2), so the loss is about ln V + s²/2. A start at ln V + 5 means s = √10: the
#             model is confidently wrong and must first unlearn that.
#   unigram   the best without looking at the input: if the targets have frequencies qc, a constant
#             p has loss -Σ qc ln pc = H(q) + KL(q‖p) ≥ H(q) = -Σ qc ln qc (Gibbs). Output biases
#             alone get there. Until a model is below H(q) it has learned nothing from its input.
def unigram_entropy(y):
    """H(q) in nats for the frequencies q of the targets y."""
    y = np.asarray(y)
    require(y.size > 0, "expected at least one target, got none")
    q = np.unique(y, return_counts=True)[1] / y.size
    return float(-(q * np.log(q)).sum())


def check_initialization(model, x, y, vocab_size, tolerance=0.5):
    """First loss against ln V in nats: a dict; spread is the s above, excess 0.5 is s = 1."""
    vocab_size = check_count("vocab_size", vocab_size, 2)
    loss, expected = float(model.loss_and_grads(x, y)[0]), math.log(vocab_size)
    excess = loss - expected
    spread = math.sqrt(2 * max(excess, 0))
    return {"loss": loss, "expected": expected, "excess": excess, "spread": spread,
            "ok": abs(excess) <= tolerance}  # fmt: skip


# Smoothing. s_t = β s_t₋₁ + (1-β) L_t from s₀ = 0 unrolls to s_t = (1-β) Σₖ βᵏ L_t₋ₖ (k = 0 … t-1),
# whose weights sum to 1-βᵗ: divide by that. The average looks back about 1/(1-β) steps.
def smooth(losses, beta=0.9):
    """Bias-corrected exponential moving average of a sequence, same length."""
    check_number("beta", beta)
    require(0 <= beta < 1, f"expected beta in [0, 1), got {beta}")
    s, out = 0.0, []
    for t, value in enumerate(losses, 1):
        s = beta * s + (1 - beta) * float(value)
        out.append(s / (1 - beta**t))
    return np.array(out)


def early_stop(held_out, patience=3, min_delta=0.0):
    """(best index, stop index or None): stop when `patience` losses running miss the best."""
    require(len(held_out) > 0, "expected at least one held-out loss, got none")
    patience = check_count("patience", patience)
    best, held_out = 0, [float(value) for value in held_out]
    for i, value in enumerate(held_out):
        if value < held_out[best] - min_delta or math.isnan(held_out[best]):  # nan is never best
            best = i
        elif i - best >= patience:
            return best, i
    return best, None


# %% 3. Vital signs
# Gradients by layer: backward multiplies by W and φ' once per layer, so norms shrink or grow
# geometrically with depth. Similar magnitudes from layer to layer are health.
# Units: a ReLU at 0 on every example has slope 0 there, so its weights get no gradient and it stays
# dead. A tanh at |h| > 0.97 has slope 1 - h² < 0.06: it hardly learns or passes anything back.
# Updates: what matters is the size of a step relative to what it changes, r = ‖Δθ‖ / ‖θ‖. Adam's
# first step is ±lr in every coordinate (m/√v = g/|g|), so r = lr / rms(θ). Later, where gradients
# are mostly noise, m averages them, rms √((1-β₁)/(1+β₁)) = 0.23 of one, and v does not: the first
# steps at a given rate are four times as long as later ones. One reason why warmup exists.
def gradient_stats(grads):
    """{name: {'norm', 'rms', 'max', 'zeros'}}; zeros is the share of entries that are exactly 0."""
    stats = {}
    for k, g in grads.items():
        a, n = np.abs(np.asarray(g) * 1.0), max(np.size(g), 1)  # * 1.0: integers become floats
        norm = float(np.linalg.norm(a))
        stats[k] = {"norm": norm, "rms": norm / math.sqrt(n), "max": float(a.max(initial=0))}
        stats[k]["zeros"] = float(np.sum(a == 0)) / n
    return stats


def _by_unit(h):
    h = np.asarray(h) * 1.0  # integers become floats: |-128| does not fit into eight bits
    require(h.ndim >= 2 and h.size > 0, f"expected activations (examples, units), got {h.shape}")
    return np.abs(h.reshape(-1, h.shape[-1]))


def dead_units(h):
    """Share of units that are exactly 0 on every example of h (..., C)."""
    return float(np.mean(_by_unit(h).max(0) == 0))


def saturated_units(h, threshold=0.97):
    """Share of units with |h| > threshold on most examples, and never above the ceiling 1."""
    check_number("threshold", threshold)
    require(0 < threshold < 1, f"expected threshold between 0 and 1, got {threshold}")
    a = _by_unit(h)
    return float(np.mean((np.mean(a > threshold, axis=0) > 0.5) & (a.max(0) <= 1)))


def activation_stats(activations):
    """{name: {'mean', 'std', 'dead', 'saturated'}} for {name: h (..., C)}."""
    readings = {"mean": np.mean, "std": np.std, "dead": dead_units, "saturated": saturated_units}
    return {k: {r: float(f(h)) for r, f in readings.items()} for k, h in activations.items()}


def update_ratios(before, after):
    """{name: ‖after - before‖ / ‖before‖} for two dicts of arrays; nan where before is all 0."""
    require(before.keys() == after.keys(), f"expected names {list(before)}, got {list(after)}")
    ratios = {}
    for k, old in before.items():
        old_shape, shape, size = np.shape(old), np.shape(after[k]), np.linalg.norm(old)
        require(old_shape == shape, f"{k}: expected shape {old_shape}, got {shape}")
        moved = np.linalg.norm(np.asarray(after[k]) * 1.0 - old)
        ratios[k] = float(moved / size) if size > 0 else math.nan
    return ratios


# %% 4. Tests made on purpose
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
    require(len(x) == len(y) > 0, f"expected equally many x and y, not 0; got {len(x)}, {len(y)}")
    steps = check_count("steps", steps)
    check_number("learning_rate", learning_rate)
    require(learning_rate > 0, f"expected learning_rate > 0, got {learning_rate}")
    losses = []
    for t, loss, _, _ in training(model, lambda: (x, y), [learning_rate] * steps, kind):
        losses.append(float(loss))
        require(math.isfinite(loss), f"expected a finite loss, got {loss} at step {t + 1}")
        if loss < target:
            break
    return losses[-1] < target, losses


# Range test (Smith 2017). Let the rate grow geometrically from harmless to absurd in one short run:
# the smoothed loss is flat, falls, turns, explodes. Where it turns gain and damage cancel; we take
# the rate at which 95 % of the fall was done, as the bottom itself is flat, and suggest a third of
# it: curvature grows during training (section 6) and needs room. The report tests the advice.
LRRange = namedtuple("LRRange", "rates losses suggested reason")  # losses smoothed; suggested: None


def lr_range_test(make_model, batches, low=1e-5, high=10.0, steps=120, beta=0.8, kind="adam"):
    """LRRange from training make_model() on batches (x, y), cycled, at rates low to high."""
    batches, rates, losses = list(batches), [], []
    require(batches, "expected at least one batch (x, y), got none")
    check_number("low", low)
    check_number("high", high)
    require(0 < low < high, f"expected 0 < low < high, got {low}, {high}")
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


# %% 5. Gradient noise and the critical batch size
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
    require(len(x) == len(y), f"expected equally many x and y, got {len(x)}, {len(y)}")
    require(pieces >= 2, f"expected two batches of {small}, got {len(x)} rows")
    total, squares, big = 0.0, 0.0, pieces * small
    for i in range(0, big, small):
        g = flat(model.loss_and_grads(x[i : i + small], y[i : i + small])[1])
        total, squares = total + g, squares + float(g @ g)
    small_norm, big_norm = squares / pieces, float(np.sum(np.square(total / pieces)))
    trace = (small_norm - big_norm) / (1 / small - 1 / big)
    norm = (big * big_norm - small * small_norm) / (big - small)
    return trace / norm if norm > 0 else math.inf, trace, norm


# %% 6. Curvature and the edge of stability
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
    require(theta.ndim == 1 and theta.size > 0, f"expected a vector θ, got shape {theta.shape}")
    iterations = check_count("iterations", iterations)
    check_number("epsilon", epsilon)
    require(epsilon > 0, f"expected epsilon > 0, got {epsilon}")
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


# %% 7. History and Monitor
# What is recorded is all that the diagnosis may use. Every step: loss, rate, gradient norm, update
# ratio. Now and then a probe: held-out loss, dead and saturated units, gradient check, and
#   growth   in the recurrent body ∂L/∂h_t₋₁ = (∂L/∂h_t ⊙ φ') Wₕᵀ, T times the same matrix. If each
#            factor stretches by γ, early states get γᵀ times the gradient of late ones (Pascanu et
#            al. 2013): γ = (‖∂L/∂h₁‖ / ‖∂L/∂h_T‖)^(1/(T-1)).
#   spread   two equal columns of W (both 0, say) make two units that compute the same, get the same
#            gradient and stay equal. ‖W - mean column‖ / ‖W‖ = 0: all units are one unit.
# And once an audit of the data, for the first rule is to look at the data before the model:
#   determined[j]   how far x_j alone fixes y: the mutual information I(x_j; y) over H(y). Counts
#                   show some by chance, I₀ if y is permuted; (I - I₀)/(H - I₀) is about 0 for
#                   independence, 1 for a copy.
#   skip            the windows show how the stream goes from one character to the next (x_j, x_j₊₁)
#                   and to the next but one (x_j, x_j₊₂). If (x_T, y) obeys the second law rather
#                   than the first, or none, one was skipped: mean gain in ln p, in standard errors.
def audit_data(x, y, vocab_size, seed=0):
    """{'uniform', 'unigram' (nats), 'determined' (a share per column), 'skip' (or None)}."""
    x, y = np.asarray(x), np.asarray(y)
    ok = x.ndim == 2 and y.shape == x.shape[:1] and x.size > 0
    require(ok, f"expected x (N, T) and y (N,), not empty; got {x.shape} and {y.shape}")
    vocab_size = check_count("vocab_size", vocab_size)
    x, y = check_ids("x", x, vocab_size), check_ids("y", y, vocab_size)  # packed in pairs below
    rng, entropy, determined, skip = np.random.default_rng(seed), unigram_entropy(y), [], None
    shape = vocab_size, vocab_size

    def information(a, b):
        joint = np.bincount(a * vocab_size + b, minlength=vocab_size**2).reshape(shape) / len(a)
        independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        seen = joint > 0
        return float((joint[seen] * np.log(joint[seen] / independent[seen])).sum())

    for column in x.T:
        chance = np.mean([information(column, rng.permutation(y)) for _ in range(3)])
        found = information(column, y)
        determined.append(float((found - chance) / max(entropy - chance, 1e-9)))
    if x.shape[1] >= 3:
        scores = [np.log(np.bincount(y, minlength=vocab_size)[y] / len(y))]  # obeying none
        for lag in (1, 2):
            pairs = np.full(shape, 0.5)
            np.add.at(pairs, (x[:, :-lag], x[:, lag:]), 1.0)
            scores.append(np.log(pairs / pairs.sum(1, keepdims=True))[x[:, -1], y])
        gains = [scores[2] - other for other in scores[:2]]
        skip = min(float(g.mean() / (g.std() / math.sqrt(len(y)) + 1e-9)) for g in gains)
    uniform = math.log(vocab_size)
    return {"uniform": uniform, "unigram": entropy, "determined": determined, "skip": skip}


SIGNS = ("dead", "saturated")  # the two readings of units


@dataclass
class History:
    """Per step `step`, `losses`, `lr`, `norms` and, if measured, `ratios`; `probes`; an `audit`."""

    step: list = field(default_factory=list)
    losses: list = field(default_factory=list)
    lr: list = field(default_factory=list)
    norms: list = field(default_factory=list)
    ratios: list = field(default_factory=list)
    probes: list = field(default_factory=list)
    audit: dict = field(default_factory=dict)

    def record(self, step, loss, lr, norm, ratio=math.nan):
        """Append one step: its loss, learning rate, gradient norm and update ratio."""
        self.step.append(int(step))
        for column, value in ("losses", loss), ("lr", lr), ("norms", norm), ("ratios", ratio):
            getattr(self, column).append(float(value))

    def check(self):
        """ValueError unless the columns are equally long (`ratios` may be empty)."""
        columns = ("step", "losses", "lr", "norms") + (("ratios",) if len(self.ratios) else ())
        lengths = {k: len(getattr(self, k)) for k in columns}
        require(len(set(lengths.values())) == 1, f"expected columns of equal length, got {lengths}")

    def save(self, path):
        """Write JSON under a temporary name, then move it into place; nan becomes "NaN"."""
        self.check()
        strict = json.loads(json.dumps(asdict(self)), parse_constant=str)  # JSON has no nan, no inf
        temporary = Path(f"{path}.tmp")
        temporary.write_text(json.dumps(strict, allow_nan=False), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path):
        """Read what `save` wrote; ValueError if it is anything else."""
        text = Path(path).read_text(encoding="utf-8")
        try:
            history = cls(**json.loads(re.sub(r'"(NaN|-?Infinity)"', r"\1", text)))
            history.check()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected a saved History, got: {error}") from None
        return history


class Monitor:
    """Call it after every update: `monitor(step, loss, grads, lr)`; then read `.history`. train and
    held_out are samples (x, y); probes come first and then after every `every` steps."""

    def __init__(self, model, train, held_out, vocab_size, every=25, sample=64, seed=0):
        every, sample = check_count("every", every), check_count("sample", sample)
        self.model, self.held_out, self.every = model, held_out, every
        self.batch, self.rng = (train[0][:sample], train[1][:sample]), np.random.default_rng(seed)
        x, y = (np.concatenate(pair) for pair in zip(train, held_out))
        self.history = History(audit=audit_data(x, y, vocab_size, seed))
        self.before = {"θ": flat(model.params)}
        self.probe(-1)

    def __call__(self, step, loss, grads, lr):
        after = {"θ": flat(self.model.params)}
        with np.errstate(all="ignore"):
            ratio = update_ratios(self.before, after)["θ"]
            self.history.record(step, loss, lr, np.linalg.norm(flat(grads)), ratio)
        self.before = after
        if len(self.history.step) % self.every == 0:
            self.probe(step)

    def probe(self, step):
        """Take the readings of this section now and append them to history.probes."""
        model, norm = self.model, np.linalg.norm
        with np.errstate(all="ignore"):
            pairs = model.probe(*self.batch) if hasattr(model, "probe") else {}
            units = activation_stats({k: h for k, (h, _) in pairs.items()})
            grads = gradient_stats(model.loss_and_grads(*self.batch)[1])
            reading = {
                "step": int(step),
                "held_out": float(model.loss_and_grads(*self.held_out)[0]),
                "gradients": {k: s["norm"] for k, s in grads.items()},
                "errors": slope_check(model, *self.batch, self.rng),
                "spread": {k: float(norm(w - w.mean(1, keepdims=True)) / (norm(w) or 1.0))
                           for k, w in model.params.items() if w.ndim == 2 and w.shape[1] > 1},
            } | {sign: {k: s[sign] for k, s in units.items()} for sign in SIGNS}  # fmt: skip
            for h, dh in pairs.values():
                if h.ndim == 3 and h.shape[1] > 1:
                    n = norm(dh, axis=(0, 2)) + 1e-300  # (T,)
                    reading["growth"] = float((n[0] / n[-1]) ** (1 / (len(n) - 1)))
        self.history.probes.append(reading)


# %% 8. Diagnose
# Rules in the order of cause and effect: what is true of the data; of the state before any
# gradient; of the gradient; of the steps; and only then of the outcome. So the first finding names
# the cause, later ones are symptoms. A missing reading is nan, and every comparison with nan is
# False. The thresholds were set at seeds 100 to 117; the report's table is made at other seeds.
REMEDIES = {  # in order of precedence
    "leak": "find how the answer gets into that input column: a mask, a slice, a feature",
    "off-by-one targets": "print inputs and targets side by side: y must follow the last input",
    "zero init": "draw weights at random, so that units differ",
    "dead units": "start biases at 0 and weights at variance 2/fan_in; or use a leaky ReLU",
    "saturating init": "start weights at variance 1/fan_in",
    "backward bug": "derive that gradient again; until the check passes nothing else means much",
    "exploding recurrence": "orthogonal recurrent weights, gradient clipping, or a gated cell",
    "no warmup": "raise the rate linearly from 0 over the first tenth of the run or longer",
    "rate too high": "divide the rate by 3 to 10; lr_range_test shows where it bends",
    "rate too low": "multiply the rate by 10 and more; lr_range_test shows where it bends",
    "overfitting": "early_stop at the best held-out loss; more data, weight decay, dropout",
    "shuffled labels": "check that x and y stay paired through every shuffle, sort and join",
    "no progress": "overfit_one_batch and gradient_check tell whether data or code is at fault",
    "healthy": "train on",
}
Finding = namedtuple("Finding", "name evidence remedy")  # evidence: a sentence with its numbers


def extreme(reading, pick=max):
    """(value, name) of the largest (or smallest) entry of a dict of readings; (nan, '') if none."""
    return pick(((v, k) for k, v in (reading or {}).items() if v == v), default=(math.nan, ""))


def diagnose(history):
    """Findings from a History alone, causes before symptoms; [healthy] if nothing is wrong."""
    history.check()
    require(history.losses, "expected a history of at least one step, got none")
    probes, audit, found = history.probes or [{}], history.audit, []
    losses, lr = np.asarray(history.losses, float), np.asarray(history.lr, float)
    start, n = float(losses[0]), len(losses)
    end = float(losses[-max(1, n // 10) :].mean())

    def rule(wrong, name, evidence):
        if wrong:
            found.append(Finding(name, evidence, REMEDIES[name]))

    # Data. 0.65: between the last character of a text (0.1 to 0.25) and a copy in 9 rows of 10.
    *early, last = audit.get("determined") or [math.nan]
    share, column = max(((s, j) for j, s in enumerate(early)), default=(math.nan, 0))
    rule(share > 0.65, "leak", f"input column {column} alone fixes {share:.0%} of the target")
    rule(last > 0.65, "off-by-one targets", f"the last input alone fixes {last:.0%} of the target")
    skip = audit.get("skip") or math.nan  # 4 standard errors: by chance once in 30,000
    rule(skip > 4, "off-by-one targets", f"target is 2 after the last input, by {skip:.0f} s.e.")
    # Before any gradient. One half: in a sane start hardly any unit is dead or saturated.
    spread, where = extreme(probes[-1].get("spread"), min)
    rule(spread < 1e-3, "zero init", f"the units of {where} still differ by only {spread:.0e}")
    for sign, name in zip(SIGNS, ("dead units", "saturating init")):
        share, where = extreme(probes[0].get(sign))
        rule(share > 0.5, name, f"{share:.0%} of the units of {where} {sign} before the first step")
    # The gradient. 1e-3: rounding leaves 1e-7, a wrong line 1e-2. The median, as luck can hide it.
    errors = sorted(e for e in (extreme(p.get("errors")) for p in probes) if e[1])
    error, where = errors[len(errors) // 2] if errors else (math.nan, "")
    rule(error > 1e-3, "backward bug", f"the slope along {where} is off by {error:.1%}")
    growth = probes[0].get("growth", math.nan)  # 1.2: five-fold over 10 steps, 80,000 over 60
    rule(growth > 1.2, "exploding recurrence", f"the gradient grows {growth:.2f}-fold a step back")

    # Steps. The run was struck if the loss jumped by 0.3 nats, several times a batch's noise, or if
    # it ends at the unigram line with units dead or saturated that were not. A step longer than the
    # weights (ratio > 1) erases them: no warmup cures that, nor a loss that ends above that line.
    unigram = audit.get("unigram", math.nan)
    above, deaf = end - unigram > 0.15, end > 0.97 * unigram
    peak = float(losses.max()) if np.isfinite(losses).all() else math.inf
    lost = max([extreme(probes[-1].get(sign))[0] for sign in SIGNS])
    struck = peak == math.inf or peak - start > 0.3 or (deaf and lost > 0.9 and not found)
    ratios = np.nan_to_num(np.asarray(history.ratios, float), nan=0, posinf=math.inf)
    longest, path = (ratios.max(), ratios.sum()) if len(ratios) else (math.nan, math.nan)
    curable = struck and 0.1 < longest <= 1 and lr[0] >= 0.99 * lr.max() and not above
    story = f"loss {start:.2f}, then {peak:.3g}, {end:.2f} in the end; longest step {longest:.2g}"
    rule(curable, "no warmup", story + " of ‖θ‖ at full rate")
    high = (struck and not curable) or (above and path > 5)
    rule(high, "rate too high", story + " of ‖θ‖")
    # Path Σr < 0.1: the weights cannot have moved by more than about a tenth of their size.
    stuck = n >= 10 and end > 0.98 * start
    falling = stuck and losses.min() < start and np.corrcoef(range(n), losses)[0, 1] < -0.5
    story = f"loss {start:.2f} to {end:.2f}"
    low = (falling if math.isnan(path) else path < 0.1) and not struck
    rule(low, "rate too low", f"{story}; all steps together {path:.1g} of the weights")

    # Outcome. Half a nat behind and a quarter lost since the best, on one held-out sample: far
    # above its noise. Within 3 % of H(q): sampling moves both by 1 %, working models are 5 % below.
    held = [p.get("held_out", math.nan) for p in probes]
    rise = held[-1] - min(held)
    story += f", held-out {held[-1]:.2f}"
    over = held[-1] - end > 0.5 and rise > 0.25 and not high
    rule(over, "overfitting", f"{story}, {rise:.2f} above its best")
    deaf = deaf and held[-1] > 0.97 * unigram and not (above or struck) and path >= 0.1
    rule(deaf, "shuffled labels", f"{story}: at the unigram line {unigram:.2f}, inputs do not help")
    rule(stuck and not found, "no progress", story)
    rule(not found, "healthy", story)
    return found


# %% 9. The clinic
# All else about a broken run is drawn at random from what is healthy: task, body, depth, width,
# activation, optimiser, rate, schedule. So are the controls, with traps among them: an output layer
# that starts at 0 (as in zero init), a task whose loss really goes to 0 (as with a leak), and, in
# one of five, the very runs of "no warmup", only with warmup.
DISEASES = tuple(REMEDIES)[:-2]
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
    require(name in (*DISEASES, "healthy"), f"expected one of {DISEASES}, 'healthy'; got {name!r}")
    rng = np.random.default_rng([seed, tuple(REMEDIES).index(name), copy])
    steep = name == "no warmup" or (name == "healthy" and copy % 5 == 0)
    exploding, saturating = name == "exploding recurrence", name == "saturating init"
    recurrent = exploding or (not steep and name in BOTH and rng.random() < 0.25)
    stream = steep or exploding or name in ("off-by-one targets", "overfitting")
    task = rng.choice(["stories", "names"] + ["sum"] * (not stream))
    relu = steep or exploding or name == "dead units" or rng.random() < 0.5
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
    n = int(0.9 * len(y))
    rows = rng.permutation(n)[: rng.integers(32, 80) if name == "overfitting" else n]
    later = n + rng.permutation(len(y) - n)[:500]

    gain = rng.uniform(2.5, 4) if exploding else rng.uniform(8, 20) if saturating else 1
    width, depth = int(rng.choice([24, 32, 48])), int(rng.integers(2 if steep else 1, 4))
    embed, activation = int(rng.choice([8, 12])), "relu" if relu and not saturating else "tanh"
    model = LanguageModel(
        size, context, width, depth, embed, activation, recurrent, gain, [seed, copy]
    )
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
    factor = 0.002 if name == "rate too low" else 1
    rate = factor * math.exp(rng.uniform(math.log(low), math.log(high)))
    warmup = 0 if name == "no warmup" else 0.4 * steps if steep else rng.choice([0, 0.1 * steps])
    rates = schedule(rate, steps, warmup, decay=steep or rng.random() < 0.5)

    def batch(rows):
        return x[rows], y[rows]

    monitor = Monitor(model, batch(rows[:3000]), batch(later), size, max(1, steps // 6))
    with np.errstate(all="ignore"):
        for reading in training(model, lambda: batch(rng.choice(rows, 64)), rates, kind):
            monitor(*reading)
    return monitor.history


# %% Demonstration
def progress(message, last=False):
    """One line overwritten in place on a terminal; when piped, only the last message is printed."""
    if sys.stdout.isatty():
        print(f"\r{message:<78}", end="\n" if last else "", flush=True)
    elif last:
        print(message, flush=True)


def clinic(names, seeds, controls):
    """Train and diagnose every run; print an example of each disease, then the confusion table."""
    verdicts, right, lines = (*DISEASES, "healthy", "no progress"), {}, []
    letters = dict(zip(verdicts, "abcdefghijklmn"))
    print(f"{'true cause':<21}the first finding at seed {seeds[0]}")
    for name in (*names, "healthy"):
        findings = []
        for seed in seeds:
            for copy in range(controls if name == "healthy" else 1):
                progress(f"{name}, seed {seed}")
                findings.append(diagnose(clinic_run(name, seed, copy))[0])
        progress(f"{name:<21}{findings[0].name}: {findings[0].evidence}"[:100], last=True)
        counts = [sum(f.name == verdict for f in findings) for verdict in verdicts]
        cells = "".join(f"{count or '.':>4}" for count in counts)
        lines.append(f"{letters[name]} {name:<22}{cells}")
        right[name] = counts[verdicts.index(name)]
    print(f"\nSeeds {seeds[0]} to {seeds[-1]}; the thresholds were set at seeds 100 to 117.")
    print("Rows: truth; columns: first finding; n: no progress.")
    print("\n".join([" " * 24 + "".join(f"{c:>4}" for c in letters.values()), *lines]))
    well, controls = right.pop("healthy"), controls * len(seeds)
    sick, named = len(names) * len(seeds), sum(right.values())
    print(f"right cause:           {named} of {sick} ({named / sick:.1%})")
    print(f"healthy found healthy: {well} of {controls} ({well / controls:.1%})")


def report(args):
    """Five numbered parts; with --clinic, only the last, at twenty seeds."""
    seed, fast, context = args.seed, args.fast, 8
    x, y, size = corpus("stories", context)
    corpus("names", context)
    if args.clinic:
        return clinic(DISEASES, range(seed, seed + 20), 5)

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
        c = check_initialization(new_model(gain), *batch(), size)
        verdict = "sane" if c["ok"] else "NOT sane"
        print(f"   weights x {gain:<3} loss {c['loss']:6.3f}  spread {c['spread']:5.2f}  {verdict}")
    reached, losses = overfit_one_batch(new_model(), *batch(32), steps=60)
    verdict = f"{'' if reached else 'NOT '}learned by heart in {len(losses)} steps"
    print(f"   one batch of 32: loss {losses[0]:.2f} to {losses[-1]:.2f}, {verdict}")

    print("\n2. Learning-rate range test (Adam): rate, smoothed loss")
    found = lr_range_test(new_model, [batch() for _ in range(30)], steps=20 if fast else 150)
    for i in np.linspace(0, len(found.rates) - 1, 12).astype(int):
        print(f"   {found.rates[i]:9.1e} {found.losses[i]:6.2f} {'#' * int(12 * found.losses[i])}")
    print(f"   {found.reason}")
    some, few, rate = rng.integers(len(held_y), size=1000), 3 if fast else 500, found.suggested
    sample, rate = (held_x[some], held_y[some]), rate or 1e-3
    for factor in (0.1, 1, 10):
        loss = fit(new_model(), few, factor * rate)
        progress(f"   {few} steps at {factor:>4} x {rate:.2g}: held-out {loss:.3f}", last=True)

    print("\n3. Training with the Monitor")
    print("    step  loss  held-out     rate   |g|   update  dead   |g| in E, W1, Wo")
    model, steps, large = new_model(), 30 if fast else 5000, 256 if fast else 16384
    noise = [gradient_noise_scale(model, *batch(large), large // 64)[0]]
    monitor = Monitor(model, batch(3000), sample, size, steps // 6)
    fit(model, steps, rate, monitor)
    noise.append(gradient_noise_scale(model, *batch(large), large // 64)[0])
    history = monitor.history
    trend = smooth(history.losses, 0.98)
    for p in history.probes[1:]:
        t, norms = p["step"], "  ".join(f"{p['gradients'][k]:.2f}" for k in ("E", "W1", "Wo"))
        print(f"   {t + 1:5d} {trend[t]:5.2f} {p['held_out']:9.2f}  {history.lr[t]:.1e} ", end="")
        print(f"{history.norms[t]:5.2f}  {history.ratios[t]:.1e} {p['dead']['h1']:5.0%}   {norms}")
    for finding in diagnose(history):
        print(f"   diagnosis: {finding.name} ({finding.evidence}); {finding.remedy}")
    print(f"   critical batch size: {noise[0]:.2g} examples before training, {noise[1]:.2g} after")

    print("\n4. The edge of stability: full-batch gradient descent, top eigenvalue of H")
    stride, few = 4 if fast else 300, (x[:192, 4:], y[:192])
    print("   rate  2/rate   at step" + "".join(f"{i * stride:8d}" for i in range(6)) + "    loss")
    for rate in (1.5, 2.0, 3.0):
        edge = LanguageModel(size, 4, 24, 1, 6, seed=seed)
        row, tries = f"   {rate:4} {2 / rate:7.2f}{'':10}", 20 if fast else 60
        for t in range(5 * stride + 1):
            loss, grads = edge.loss_and_grads(*few)
            if t % stride == 0:
                row += f"{top_hessian_eigenvalue(*flat_gradient(edge, *few), tries, 1e-3)[0]:8.2f}"
                progress(f"   rate {rate}, step {t}")
            for k, g in grads.items():
                edge.params[k] -= rate * g
        progress(f"{row}{loss:8.2f}", last=True)

    print("\n5. Twelve diseases and their controls")
    seeds, controls = (1, 1) if fast else (3, 5)
    clinic(DISEASES[2::5] if fast else DISEASES, range(seed, seed + seeds), controls)
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
    parser.add_argument("--clinic", action="store_true", help="only the clinic, at twenty seeds")
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


# %% Common mistakes
# 1. Judging a run by its falling loss: biases alone fall to the unigram line. (`unigram_entropy`)
# 2. Smoothing without bias correction: the curve starts near 0 and seems to rise. (`smooth`)
# 3. A gradient check in float32, or at a ReLU's kink: "bugs" that are none. (`gradient_check`)
# 4. Calling a ReLU dead after one example; it must be 0 on all of a good sample. (`dead_units`)
# 5. Keeping the last weights, not the best: overfitting looks like a bad model. (`early_stop`)
# 6. A lower rate for an early spike that warmup cures: slow for ever. (rule "no warmup")
# 7. Taking a large negative λ for sharpness: it bounds no rate. (`top_hessian_eigenvalue`)
# 8. Thresholds set on the runs that are reported: perfect tables, wrong diagnoses. (section 8)

# %% Exercises
#  1. Read: which rules of `diagnose` still work if only losses and rates were recorded? Try it.
#  2. Predict the first loss at gain 100 in part 1 from s²/2. Why is the true one different?
#  3. Add a GELU to layer_forward and layer_backward; let `gradient_check` find your mistakes.
#  4. Show that the bias-corrected average of a constant sequence is that constant at every step.
#  5. Derive the 0.23 of section 3: the rms of m/√v when gradients are independent noise.
#  6. Add "batch too small" to the clinic. Which reading names it? (section 5)
#  7. Clip the gradient norm at 1 in `training`. Which diseases does it cure, which does it hide?
#  8. Make the leak indirect: the answer plus 1, modulo V; then the sum of two columns. Found?
#  9. With tanh, "exploding recurrence" turns into saturation. Plot growth against gain; say why.
# 10. With heavy-ball momentum β the bound of section 6 is 2(1+β)/lr. Derive it, then measure λ.
# 11. Learn a decision tree from readings at seeds 100 to 199. Better than the rules at 0 to 19?
# 12. Research: diagnose from the first tenth of a run. Which diseases can be named that early?

# %% Where this leads
# Stage 9 takes a healthy trained model and adapts it with a thousandth of its parameters; stage 10
# aligns it. Large runs are watched with the same readings: loss spikes, gradient norms, update
# ratios and held-out loss, logged every step, with an alarm on each.

if __name__ == "__main__":
    sys.exit(main())
