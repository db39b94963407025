# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 3: embed. How can a model predict after a context that it has never seen?

A table of counts keeps one row per context and shares nothing between rows: what it learned after
"the dog s" does not help it after "the cat s". Bengio's answer: give every symbol a list of
learned numbers, its embedding, and compute the prediction from the embeddings by one smooth
function. Contexts made of similar symbols then get similar predictions, seen or not. This file
derives that network, its loss and its gradient by hand, and trains it on 185 stories.

  Why:    1 counting, and where it fails        2 the network
  Loss:   3 softmax without overflow            4 cross-entropy, and its gradient p - y
  Layers: 5 embedding, linear, tanh             6 how large the first weights should be
  Whole:  7 NeuralLM                            8 training      9 a map of the letters

Prints how fast counts run out, what a bad initialisation costs, the network against counts from
bigram to 7-gram, the contexts where it wins, its map of the alphabet, invented names, a sample
(under a minute; --fast: a smoke run, --seed N, --text FILE: train on a text of yours).

Rests on: Bengio, Ducharme, Vincent, Jauvin, "A neural probabilistic language model" (2003);
Witten, Bell, "The zero-frequency problem" (1991), the counts to beat; LeCun, Bottou, Orr, Müller,
"Efficient BackProp" (1998) and Glorot, Bengio, "Understanding the difficulty of training deep
feedforward neural networks" (2010), the size of the first weights.
"""

import argparse
import math
import numbers
import os
import sys
import textwrap
import time
from pathlib import Path

import numpy as np

# %% 1. Counting, and where it fails
#
# The chain rule of probability splits a text into predictions, one symbol at a time; an n-gram
# model lets each see only the n-1 symbols before it, its context h:
#
#     P(w₁...w_N) = Πₜ P(wₜ | w₁...wₜ₋₁) ≈ Πₜ P(wₜ | hₜ).
#
# The plain estimate is N(hc)/N(h): how often c came after h, over how often h came (section 4
# proves it the best fit). With V symbols there are Vⁿ⁻¹ contexts, but a text of N symbols visits at
# most N of them. Vⁿ⁻¹ multiplies by V with every symbol of context and N stays, so almost all rows
# stay empty: the curse of dimensionality. (The report measures it.)
#
# The remedy of counting is to fall back on shorter contexts, and Witten-Bell smoothing is a good
# one. Among the N(h) symbols that came after h, T(h) were new at that moment (each of the T(h)
# distinct ones was new once). So the chance that the next is new again is put at T/(N+T), and that
# share is handed to h′, which is h without its oldest symbol:
#
#     P(c|h) = (N(hc) + T(h)·P(c|h′)) / (N(h) + T(h)),     P(c|nothing) = 1/V below the unigram.
#
# Over all c the numerators add up to N + T·1, so P sums to 1. Where h was never seen, P(c|h′) is
# used as it is. Backing off forgets; it never asks whether another context works the same way.
# That is what the rest of the file does.
#
# Counts and network get the very same examples: some symbols of context, and the one that follows.
# A text of T ids has T - n of them (n now counts the context alone): the first n ids have no full
# context, so they are context only, never predicted. (The names of the report are padded instead:
# n line breaks go in front of each, so that its first letter is predicted too.)


def check_size(name, value, least=1):
    """ValueError unless value is an integer of at least `least`."""
    if not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")


def check_ids(name, ids, vocab_size):
    """The ids as an integer array; ValueError if there are none, or one outside 0..vocab_size-1."""
    ids = np.asarray(ids)
    if ids.size == 0:
        raise ValueError(f"{name} is empty; expected at least one id")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} has dtype {ids.dtype}; expected integer ids")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise ValueError(f"{name} contains the id {bad}; expected 0 to {vocab_size - 1}")
    return ids


def make_examples(ids, context):
    """All (context, next id) pairs of a text: X (N, context), Y (N,) with N = len(ids) - context.

    X[i] = ids[i : i + context], Y[i] = ids[i + context]. The first `context` ids are skipped as
    targets; to have them predicted, put `context` ids of padding in front. X is a read-only view.
    ValueError: context < 1, ids not one-dimensional, or not more ids than the context is long.
    """
    check_size("context", context)
    ids = np.asarray(ids)
    if ids.ndim != 1 or len(ids) <= context:
        raise ValueError(f"ids have shape {ids.shape}; expected 1-D, at least {context + 1} ids")
    ids = check_ids("ids", ids, np.iinfo(np.int64).max)
    X = np.lib.stride_tricks.sliding_window_view(ids[:-1], context)  # (N, context), copies nothing
    return X, ids[context:]


def count_models(X, Y, X_held, Y_held, vocab_size):
    """Witten-Bell n-grams, n = 1..context+1, counted on (X, Y), scored on (X_held, Y_held).

    X (N, context), Y (N,), X_held (M, context), Y_held (M,). Returns one (grams, new, p, n_h) for
    each n: the distinct n-grams counted, the share of held-out n-grams never counted, P of each
    held-out symbol (M,), how often its context was counted (M,). An n-gram is packed into one
    integer, its digits in base V. ValueError: a bad id or shape, or Vⁿ too large for 64 bits.
    """
    shapes, n_max = (np.shape(X), np.shape(X_held)), np.shape(X)[-1] + 1
    if shapes != ((len(Y), n_max - 1), (len(Y_held), n_max - 1)):
        wanted = f"({len(Y)}, context) and ({len(Y_held)}, context)"
        raise ValueError(f"X and X_held have shapes {shapes}; expected {wanted}")
    if n_max * math.log2(vocab_size) >= 63:
        raise ValueError(f"{n_max} of {vocab_size} different symbols do not fit into 64 bits")
    X, X_held = check_ids("X", X, vocab_size), check_ids("X_held", X_held, vocab_size)
    packed = check_ids("Y", Y, vocab_size).astype(np.int64)  # (N,) the last symbol of each n-gram
    wanted = check_ids("Y_held", Y_held, vocab_size).astype(np.int64)  # (M,)

    def look_up(keys, counts, wanted):
        i = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[i] == wanted, counts[i], 0)

    p, models = np.full(len(wanted), 1 / vocab_size), []
    for n in range(1, n_max + 1):
        if n > 1:  # one more symbol in front, the one n-1 places back
            packed = packed + X[:, 1 - n] * vocab_size ** (n - 1)
            wanted = wanted + X_held[:, 1 - n] * vocab_size ** (n - 1)
        grams, counts = np.unique(packed, return_counts=True)
        contexts, row = np.unique(grams // vocab_size, return_inverse=True)  # the last digit off
        n_hc = look_up(grams, counts, wanted)  # (M,)
        n_h = look_up(contexts, np.bincount(row, weights=counts), wanted // vocab_size)  # (M,)
        t_h = look_up(contexts, np.bincount(row), wanted // vocab_size)  # (M,)
        p = np.where(n_h > 0, (n_hc + t_h * p) / np.maximum(n_h + t_h, 1), p)
        models.append((len(grams), np.mean(n_hc == 0), p, n_h))
    return models


# %% 2. The network
#
# Bengio's model looks at the last n symbols, in three parts.
#
#     x = (C[w₁], ..., C[wₙ])      every symbol is replaced by its row of a table C: D learned
#                                  numbers, the same row at every place. Side by side: n·D numbers.
#     h = tanh(d + x·H)            K hidden features of the context, each a soft yes-or-no question.
#     z = b + x·W + h·U            one score for each possible next symbol; softmax (section 3)
#                                  turns the V scores into probabilities. (Bengio's equation 1.)
#
# C, H, d, U, b, W are all the model has: V·D + nD·K + K + K·V + V + nD·V numbers, which grow in
# proportion to n and to V, while a table of counts grows like Vⁿ. x·W, the direct connections, lets
# the embeddings reach the scores past the questions (an option in the paper; direct=False here).
#
# Why it can generalise: z is a smooth function of x. If two symbols have nearly the same row in C,
# exchanging them hardly moves x, so it hardly moves the prediction: what was learned in one context
# holds in its look-alikes. And if exchanging them is what the data want, the gradient pulls the
# rows together. Nobody says which symbols are alike; the model finds out, because it pays.

# %% 3. Softmax without overflow
#
# Scores z are any V real numbers; wanted are probabilities. Ask that the difference of two scores
# be the logarithm of the odds: ln(pᵢ/pⱼ) = zᵢ - zⱼ. Then pᵢ/e^(zᵢ) is the same number for all i,
# and that the p add up to 1 fixes it:
#
#     softmax(z)ᵢ = pᵢ = e^(zᵢ) / Σⱼ e^(zⱼ).
#
# Adding a constant m to all scores multiplies numerator and denominator by eᵐ: p does not change.
# That is useful, as e⁸⁹ is too large for float32. Subtract the largest score m: now every exponent
# is at most 0, no term exceeds 1, and one of them is exactly 1, so the sum lies in [1, V] and there
# is neither overflow nor division by zero. For the logarithm ln pᵢ = zᵢ - LSE(z), the same shift:
#
#     LSE(z) = ln Σⱼ e^(zⱼ) = m + ln Σⱼ e^(zⱼ - m),       so   m ≤ LSE(z) ≤ m + ln V.
#
# (A soft maximum, whence softmax.) Never take np.log(softmax(z)): a p that rounded to 0 gives -∞.


def log_sum_exp(z, axis=-1):
    """ln Σ e^z along an axis, kept with length 1, computed without overflow."""
    m = z.max(axis=axis, keepdims=True)
    return m + np.log(np.exp(z - m).sum(axis=axis, keepdims=True))


def softmax(z, axis=-1):
    """e^z / Σ e^z along an axis of finite scores: same shape and dtype. ValueError if empty."""
    z = np.asarray(z)
    if z.ndim == 0 or z.shape[axis] == 0:
        raise ValueError(f"scores have shape {z.shape}; expected at least one along axis {axis}")
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


# %% 4. Cross-entropy, and its gradient p - y
#
# Which parameters are best? The likeliest: those that give the text the highest probability,
# Π P(yᵢ|xᵢ) (maximum likelihood). The logarithm makes the product a sum, a minus makes high
# low, 1/N makes it a mean; none of them moves the optimum. That is the cross-entropy, in nats:
#
#     L = -(1/N)·Σᵢ ln P(yᵢ|xᵢ) = (1/N)·Σᵢ (LSE(zᵢ) - zᵢ[yᵢ]).
#
# Counting minimises the very same L, if every context may choose its p freely. Let f(c) be the
# frequencies seen after h. ln u ≤ u - 1 (the tangent of ln at 1 lies above it) gives
#
#     Σ f·ln p - Σ f·ln f = Σ f·ln(p/f) ≤ Σ f·(p/f - 1) = Σ p - Σ f ≤ 0    (sums over c with f > 0).
#
# So no p beats p = f = N(hc)/N(h). ∎  The network has the same goal as the table. But it has one
# set of knobs for all contexts, so what it learns in one moves its predictions in the others.
#
# Its gradient. For one example, ∂LSE/∂zⱼ = e^(zⱼ)/Σ e^(zₖ) = pⱼ (chain rule on the logarithm), and
# ∂z[y]/∂zⱼ is 1 for j = y and 0 otherwise, which is the one-hot vector of the target, yⱼ. Hence
#
#     ∂L/∂zⱼ = (pⱼ - yⱼ)/N:      probability given, minus probability due.
#
# Each row adds up to 1 - 1 = 0: what the right symbol gains, the others lose in the proportion
# in which they were trusted. At p = y there is nothing left to learn.


def cross_entropy_forward(logits, targets):
    """Mean nats per target: logits (..., V), integer targets (...). Returns (loss, cache).

    ValueError: the shapes do not match, there is no target, or one is not in 0..V-1.
    """
    logits = np.asarray(logits)
    if logits.ndim == 0 or np.shape(targets) != logits.shape[:-1]:
        rows, shape = logits.shape[:-1], np.shape(targets)
        raise ValueError(f"targets have shape {shape}; expected {rows}, one for each row of logits")
    targets = check_ids("targets", targets, logits.shape[-1])
    lse = log_sum_exp(logits)  # (..., 1)
    z_y = np.take_along_axis(logits, targets[..., None], axis=-1)  # (..., 1)
    return np.mean(lse - z_y), (logits, targets, lse)


def cross_entropy_backward(dloss, cache):
    """(p - y)/N, times dloss: the gradient in the logits, shaped like them."""
    logits, targets, lse = cache
    dlogits = np.exp(logits - lse)  # p, since ln p = z - LSE
    at_target = np.take_along_axis(dlogits, targets[..., None], axis=-1)
    np.put_along_axis(dlogits, targets[..., None], at_target - 1, axis=-1)
    dlogits *= dloss / targets.size
    return dlogits


# %% 5. Three layers
#
# A backward gets dy = ∂L/∂y and must return ∂L/∂ each input. The one rule it needs is the chain
# rule: add up, over all outputs that an input touches, dy times the slope of that output.
#
# LINEAR. y = x·w + b for N rows: yᵢⱼ = Σₖ xᵢₖ·wₖⱼ + bⱼ. The entry xᵢₖ touches yᵢⱼ for all j, with
# slope wₖⱼ; wₖⱼ touches yᵢⱼ for all i, with slope xᵢₖ; bⱼ touches yᵢⱼ for all i, with slope 1:
#
#     dxᵢₖ = Σⱼ dyᵢⱼ·wₖⱼ = (dy·wᵀ)ᵢₖ,    dwₖⱼ = Σᵢ xᵢₖ·dyᵢⱼ = (xᵀ·dy)ₖⱼ,    dbⱼ = Σᵢ dyᵢⱼ.


def linear_forward(x, w, b):
    """y = x·w + b: x (N, I), w (I, O), b (O,) -> (y (N, O), cache)."""
    return x @ w + b, (x, w)


def linear_backward(dy, cache):
    """dy (N, O) -> (dx (N, I), dw (I, O), db (O,))."""
    x, w = cache
    return dy @ w.T, x.T @ dy, dy.sum(axis=0)


# TANH. t = (eᵃ - e⁻ᵃ)/(eᵃ + e⁻ᵃ) runs from -1 to 1. Call numerator s and denominator c: s′ = c and
# c′ = s, so by the quotient rule t′ = (s′c - sc′)/c² = (c² - s²)/c² = 1 - t². The slope needs only
# the output, so the output is all we keep. Near 0 it is 1; at t = ±1 it is gone: saturation.


def tanh_forward(a):
    """t = tanh(a), entry by entry -> (t, cache)."""
    t = np.tanh(a)
    return t, t


def tanh_backward(dt, t):
    """da = dt·(1 - t²)."""
    return dt * (1 - t * t)


# EMBEDDING. Row i of x is the row of C that idᵢ names. Written as a product: x = E·C, where E is
# (N, V) and one-hot, Eᵢᵥ = 1 if idᵢ = v, else 0. So a lookup is a linear layer that nobody
# multiplies out, and its gradient is the one above:
#
#     dC = Eᵀ·dx,     that is  dC[v] = Σ dxᵢ over all i with idᵢ = v:  a scatter-add.
#
# Note the sum: a symbol used five times gets five contributions (dC[ids] += dx would keep one).
# np.add.at(dC, ids, dx) says it literally; at our V the product with Eᵀ is faster, as matrix
# products are what machines do best. At V = 50,000 Eᵀ would be a large array of zeros.


def embedding_forward(ids, C):
    """x = C[ids]: integer ids (...), C (V, D) -> (x (..., D), cache)."""
    return C[ids], (ids, C.shape[0])


def embedding_backward(dx, cache):
    """dx (..., D) -> dC (V, D), each row the sum of the gradients of its uses."""
    ids, vocab_size = cache
    Et = (np.arange(vocab_size)[:, None] == ids.reshape(-1)).astype(dx.dtype)  # (V, N)
    return Et @ dx.reshape(-1, dx.shape[-1])


# %% 6. How large the first weights should be
#
# All zeros is a trap: with H = 0 and U = 0, h = 0 makes dU = hᵀ·dz = 0, and U = 0 makes
# dh = dz·Uᵀ = 0 and with it dH, for ever. So weights start at random; but how large? Take one
# a = Σₖ xₖ·wₖ over m inputs, the wₖ drawn independently of each other and of x, with mean 0 and
# variance s². Write E for the mean over draws. E[a] = 0, and in a² = Σₖ Σₗ xₖxₗwₖwₗ every term with
# k ≠ l has mean E[xₖxₗ]·E[wₖ]·E[wₗ] = 0. What remains is
#
#     Var(a) = E[a²] = Σₖ E[xₖ²]·E[wₖ²] = m·E[x²]·s².
#
# C is drawn with variance 1, so E[x²] = 1, and Var(a) is 1 if s² = 1/m: tanh works where it bends
# and is not flat. Ten times more, and most units sit near ±1, with slope 1 - t² near 0: hardly any
# gradient passes. Ten times less, and tanh is a straight line. The same count backwards, over the O
# outputs of a layer, asks for s² = 1/O; Glorot's compromise is 2/(m + O). Here forward is enough.
#
# The output is different: it should start knowing nothing. If z ≈ 0, p ≈ 1/V and the first loss is
# ln V; larger scores are confident guesses about nothing, which training must first take back. So U
# is ten times smaller than 1/√(its inputs), and W and b start at 0, which is harmless there: their
# gradients xᵀ·dz and Σdz are not 0. A first loss far from ln V is a bug.


def init_params(vocab_size, context, n_embd, n_hidden, rng, dtype, direct):
    """The arrays of section 2 by name, at the sizes derived above."""
    inputs = context * n_embd
    params = {
        "C": rng.normal(0, 1, (vocab_size, n_embd)),
        "H": rng.normal(0, 1 / math.sqrt(inputs), (inputs, n_hidden)),
        "d": np.zeros(n_hidden),
        "U": rng.normal(0, 0.1 / math.sqrt(n_hidden), (n_hidden, vocab_size)),
        "b": np.zeros(vocab_size),
    }
    if direct:
        params["W"] = np.zeros((inputs, vocab_size))
    return {name: value.astype(dtype) for name, value in params.items()}


# %% 7. The whole network
#
# Forward is section 2, line by line. Backward walks the same lines in reverse, and where a value
# was used twice (x feeds both H and W) its two gradients add. Sampling divides the scores by a
# temperature (below 1: more cautious), may keep only the top_k likeliest symbols, and of those the
# fewest whose probabilities reach top_p; stage 1 explains all three.


class NeuralLM:
    """The neural n-gram of Bengio et al. (2003): z = b + x·W + tanh(d + x·H)·U, x = C[context].

    params: C (V, D), H (context·D, n_hidden), d (n_hidden,), U (n_hidden, V), b (V,) and, unless
    direct=False, W (context·D, V). ValueError: a size below 1, or a dtype that is not a float.
    """

    def __init__(
        self, vocab_size, context, n_embd, n_hidden, seed=0, dtype=np.float32, direct=True
    ):
        sizes = dict(vocab_size=vocab_size, context=context, n_embd=n_embd, n_hidden=n_hidden)
        for name, size in sizes.items():
            check_size(name, size)
        if not np.issubdtype(dtype, np.floating):
            raise ValueError(f"dtype is {dtype}; expected a floating-point type")
        self.vocab_size, self.context = int(vocab_size), int(context)
        rng = np.random.default_rng(seed)
        self.params = init_params(vocab_size, context, n_embd, n_hidden, rng, dtype, direct)

    def _forward(self, X):
        X, P = check_ids("X", X, self.vocab_size), self.params
        if X.ndim != 2 or X.shape[1] != self.context:
            raise ValueError(f"X has shape {X.shape}; expected (N, {self.context}), the context")
        x, embedding = embedding_forward(X, P["C"])  # (N, context, D)
        x = x.reshape(len(X), -1)  # (N, context·D), side by side
        a, hidden = linear_forward(x, P["H"], P["d"])  # (N, n_hidden)
        h, tanh = tanh_forward(a)  # (N, n_hidden)
        z, output = linear_forward(h, P["U"], P["b"])  # (N, V)
        if "W" in P:
            z += x @ P["W"]
        return z, (embedding, x, hidden, tanh, output)

    def logits(self, X):
        """Scores (N, V) of the next symbol after each context in X (N, context)."""
        return self._forward(X)[0]

    def loss(self, X, Y):
        """Mean nats per target: X (N, context), Y (N,)."""
        return float(cross_entropy_forward(self.logits(X), Y)[0])

    def loss_and_grads(self, X, Y):
        """The loss, and ∂loss/∂ each array of params in a dict with the same keys."""
        z, (embedding, x, hidden, tanh, output) = self._forward(X)
        loss, cache = cross_entropy_forward(z, Y)
        P, grads = self.params, {}
        dz = cross_entropy_backward(1.0, cache)  # (N, V)
        dh, grads["U"], grads["b"] = linear_backward(dz, output)  # dh (N, n_hidden)
        da = tanh_backward(dh, tanh)  # (N, n_hidden)
        dx, grads["H"], grads["d"] = linear_backward(da, hidden)  # dx (N, context·D)
        if "W" in P:
            grads["W"] = x.T @ dz
            dx += dz @ P["W"].T
        grads["C"] = embedding_backward(dx.reshape(-1, P["C"].shape[1]), embedding)
        return float(loss), grads

    def log_probs(self, ids):
        """ln P of every id that has a full context before it: (len(ids) - context,), in float64."""
        X, Y = make_examples(ids, self.context)
        check_ids("ids", Y, self.vocab_size)
        parts = []
        for i in range(0, len(X), 4096):  # in pieces, so that memory does not grow with the text
            z = self.logits(X[i : i + 4096]).astype(np.float64)  # (n, V)
            parts.append(z[np.arange(len(z)), Y[i : i + 4096]] - log_sum_exp(z)[:, 0])
        return np.concatenate(parts)

    def perplexity(self, ids):
        """e to the mean nats per id, over every id that has a full context before it.

        To score a held-out part whole, pass it with the `context` ids that precede it.
        ValueError: not more ids than the context is long, or an id outside the vocabulary.
        """
        with np.errstate(over="ignore"):  # past e^709 the perplexity is inf, and says so
            return float(np.exp(-self.log_probs(ids).mean()))

    def generate(self, n, context=(), temperature=1.0, top_k=None, top_p=None, seed=None):
        """n sampled ids (n,), continuing the given ids; the model sees the last `self.context`.

        Where fewer are given, id 0 fills up on the left: in our vocabularies it is the line break,
        so an empty context means the start of a line. temperature 0 takes the likeliest symbol.
        seed: an integer or a np.random.Generator. ValueError: an argument out of range.
        """
        check_size("n", n, least=0)
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature is {temperature!r}; expected 0 or more, and finite")
        if top_k is not None:
            check_size("top_k", top_k)
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p!r}; expected 0 < top_p <= 1")
        if np.ndim(context) != 1:
            raise ValueError(f"context has shape {np.shape(context)}; expected a list of ids")
        given = check_ids("context", context, self.vocab_size).tolist() if len(context) else []
        rng, ids = np.random.default_rng(seed), [0] * self.context + given
        keep = 1 if temperature == 0 else top_k
        for _ in range(n):
            z = self.logits(np.array([ids[-self.context :]]))[0].astype(np.float64)  # (V,)
            order = np.argsort(-z, kind="stable")[:keep]
            with np.errstate(over="ignore"):  # a tiny temperature may send scores to -∞, rightly
                p = softmax((z[order] - z[order[0]]) / (temperature or 1))
            if top_p is not None:  # the first place where the running sum reaches top_p
                p = p[: np.searchsorted(np.cumsum(p), top_p) + 1]
            ids.append(int(rng.choice(order[: len(p)], p=p / p.sum())))
        return np.array(ids[self.context + len(given) :], dtype=np.int64)


# %% 8. Training: stochastic gradient descent
#
# Against the gradient the loss falls fastest (stage 4 proves it): θ ← θ - η·∂L/∂θ, η the learning
# rate. The gradient over all N examples costs N forward passes for one step. Over a random batch of
# B it costs B, and is right on average: each example is in the batch with the same probability, so
# the mean of the batch means is the mean over all. The noise that is left shakes θ about, with an
# amplitude that grows with η; so η is large for the first half, to get far, and then shrinks to 0
# in a straight line, to settle. Batches are cut from a shuffled list: every example once per epoch.


def progress(message, last=False):
    """One line overwritten in place on a terminal; when piped, only the last message is printed."""
    if sys.stdout.isatty():
        print(f"\r{message:<78}", end="\n" if last else "", flush=True)
    elif last:
        print(message, flush=True)


def train(model, X, Y, steps, learning_rate=0.2, batch_size=64, seed=0, name=None):
    """Plain SGD on the model's params, in place. Returns the loss of every batch: (steps,).

    name: what the progress line calls it; None prints nothing. ValueError: steps, batch_size or
    learning_rate not above 0, or X and Y of different length.
    """
    check_size("steps", steps)
    check_size("batch_size", batch_size)
    X, Y = np.asarray(X), np.asarray(Y)
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate is {learning_rate!r}; expected a number above 0")
    if len(X) != len(Y) or len(X) == 0:
        raise ValueError(f"{len(X)} contexts and {len(Y)} targets; expected as many, at least one")
    rng, order, losses, start = np.random.default_rng(seed), [], np.empty(steps), time.time()
    for step in range(steps):
        if len(order) < min(batch_size, len(X)):
            order = rng.permutation(len(X))  # a new epoch
        batch, order = order[:batch_size], order[batch_size:]
        losses[step], grads = model.loss_and_grads(X[batch], Y[batch])
        rate = learning_rate * min(1, 2 * (1 - step / steps))
        for key, grad in grads.items():
            model.params[key] -= rate * grad
        if name and (step % 250 == 0 or step == steps - 1):
            recent = losses[max(0, step - 999) : step + 1].mean() / math.log(2)
            seconds, last = time.time() - start, step == steps - 1
            message = f"{name}: step {step + 1:,} of {steps:,}, training loss {recent:.3f} bits"
            progress(f"{message}, {seconds:.1f} s", last)
    return losses


# %% 9. A map of the letters
#
# How alike are two symbols? Ask for the angle between their rows of C, after subtracting the mean
# row: cos = u·v/(‖u‖‖v‖), 1 for the same direction, about 0 for unrelated ones (random directions
# in D dimensions have cosines of standard deviation 1/√D). To draw the rows in two dimensions, take
# the plane in which they are most spread out: its axes are the first two right singular vectors of
# the centred table (principal components; Eckart and Young proved that no plane keeps more).


def cosines(C):
    """Cosine (V, V) of the angle between any two rows of C, minus its mean row; 0 for a zero."""
    E = C - C.mean(axis=0)
    E = E / np.maximum(np.linalg.norm(E, axis=1, keepdims=True), 1e-12)
    return E @ E.T


def text_map(labels, C, width=72, height=17):
    """The rows of C, shown as one-character labels on their two principal axes: a string."""
    E = C - C.mean(axis=0)
    xy = E @ np.linalg.svd(E, full_matrices=False)[2][:2].T  # (V, 2)
    low, high = xy.min(axis=0), xy.max(axis=0)
    cells = (xy - low) / np.maximum(high - low, 1e-12) * (width - 1, height - 1)
    grid = [[" "] * width for _ in range(height)]
    for label, (column, row) in zip(labels, np.rint(cells).astype(int)):
        free = [c for c in range(width) if grid[row][c] == " "]
        grid[row][min(free, key=lambda c: abs(c - column))] = label  # beside it if taken
    return "\n".join("".join(line).rstrip() for line in grid)


# %% Demonstration

DATA = Path(__file__).resolve().parent / "data"


def encode(text):
    """(ids (T,), symbols): every character by its place in the sorted alphabet of the text."""
    if not text:
        raise ValueError("the text is empty; expected at least one character")
    symbols = sorted(set(text))
    place = {symbol: i for i, symbol in enumerate(symbols)}
    return np.array([place[symbol] for symbol in text]), symbols


def bits(p):
    """Mean bits per symbol of the probabilities p."""
    return -np.log2(p).mean()


def report_counts(models, vocab_size):
    """Section 1 in numbers: how fast the rows of a table run out."""
    print("\nCounting: n-grams of the training text, and how they do on the held-out text")
    print("  n   possible   ever seen   new among held-out   bits/char (Witten-Bell)")
    for n, (grams, new, p, _) in enumerate(models, 1):
        print(f"  {n}   {vocab_size**n:8.1e}  {grams:10,}   {new:18.2%}   {bits(p):23.3f}")
    print("  Longer contexts say more, until most are new and there is nothing to look up.")


def report_init(sizes, X, Y, steps):
    """Section 6 in numbers: H and U at ten times the derived size, at the size, at a tenth."""
    print(f"\nInitialisation: H and U at k times the derived size; loss in bits, {steps} steps")
    print("     k   std of x·H   std of tanh   mean slope 1-t²   first loss   last loss")
    for k in (10.0, 1.0, 0.1):
        model = NeuralLM(*sizes)
        P = model.params
        P["H"] *= k
        P["U"] *= k
        a = P["C"][X[:1000]].reshape(len(X[:1000]), -1) @ P["H"]  # (1000, n_hidden)
        t = np.tanh(a)
        losses = train(model, X, Y, steps) / math.log(2)
        shown = (a.std(), t.std(), np.mean(1 - t * t), losses[0], losses[-steps // 4 :].mean())
        print("  {:4}   {:10.2f}   {:11.2f}   {:15.2f}   {:10.2f}   {:9.2f}".format(k, *shown))
    print(f"  log₂ V = {math.log2(model.vocab_size):.2f} is the loss of knowing nothing.")


def report_scores(models, p_model):
    """The network against the counts, and the average of the two."""
    print("\nHeld-out score, bits per character")
    best = min((p for _, _, p, _ in models), key=bits)
    names = {2: "bigram", 3: "trigram"}
    rows = [(f"{names.get(n, f'{n}-gram')} counts", model[2]) for n, model in enumerate(models, 1)]
    rows += [("the network", p_model), ("mean of it and the best counts", (p_model + best) / 2)]
    for name, p in rows[1:]:
        print(f"  {name:32}{bits(p):.3f}")


def report_contexts(models, p_model, k):
    """Scores of the network and of the counts by how often they have seen the context."""
    print(f"  by how often its last {k} characters occur in training:")
    print(f"  times seen   share   bits: trigram   {k + 1}-gram   network")
    n_h = models[k][3]
    buckets = zip((0, 1, 10, 100), (0, 9, 99, 1e9), ("never", "1-9", "10-99", "100+"))
    for low, high, label in buckets:
        rows = (n_h >= low) & (n_h <= high)
        if rows.any():
            scores = [bits(p[rows]) for p in (models[2][2], models[k][2], p_model)]
            print("  {:>10}{:8.1%}{:16.3f}{:9.3f}{:10.3f}".format(label, rows.mean(), *scores))
    print("  Compare the rows: a full table is hard to beat, an empty one can only fall back.")


def report_neighbours(C, symbols, wanted):
    """The nearest symbols in embedding space, two columns."""
    alike = cosines(C) - 2 * np.eye(len(C))  # nobody is its own neighbour
    cells = []
    for i in map(symbols.index, wanted):
        near = "  ".join(f"{symbols[j]!r} {alike[i, j]:.2f}" for j in np.argsort(-alike[i])[:3])
        cells.append(f"{symbols[i]!r}: {near}")
    for i in range(0, len(cells), 2):
        print("  " + "".join(f"{cell:38}" for cell in cells[i : i + 2]).rstrip())


def report_names(lines, steps, seed):
    """A small model learns names, where data are scarce; each starts from a row of line breaks."""
    (ids, symbols), context = encode("\n".join(lines) + "\n"), 4
    blank = np.zeros(context, dtype=ids.dtype)  # "\n" is id 0, as it sorts before the letters
    words = np.split(ids, np.flatnonzero(ids == 0)[:-1] + 1)
    pairs = [make_examples(np.concatenate([blank, word]), context) for word in words]
    cut = int(0.9 * len(words))
    X, Y = (np.concatenate(part) for part in zip(*pairs[:cut]))  # (N, context), (N,)
    X_held, Y_held = (np.concatenate(part) for part in zip(*pairs[cut:]))
    model = NeuralLM(len(symbols), context, 8, 64, seed)
    print(f"\nNames: {len(lines):,} of them, {len(Y):,} characters to train on, context {context}")
    train(model, X, Y, steps, batch_size=32, seed=seed, name="  names")
    models = count_models(X, Y, X_held, Y_held, len(symbols))
    p_all = softmax(model.logits(X_held).astype(np.float64))  # (M, V)
    p_model = p_all[np.arange(len(Y_held)), Y_held]
    report_scores(models, p_model)
    report_contexts(models, p_model, 3)
    unseen = np.flatnonzero(models[3][3] == 0)
    print("  Six that were never seen: after / came / 4-gram / network / its first guesses")
    for row in unseen[np.linspace(0, len(unseen) - 1, 6).astype(int)]:
        before = "".join(symbols[i] for i in X_held[row]).replace("\n", "·")
        best = np.argsort(-p_all[row])[:4]
        guesses = "  ".join(f"{symbols[i]!r} {p_all[row, i]:.2f}" for i in best)
        came, counted = repr(symbols[Y_held[row]]), models[3][2][row]
        print(f"    {before:6} {came:>5} {counted:8.3f} {p_model[row]:8.3f}     {guesses}")

    C = model.params["C"]  # (V, 8)
    letters = [i for i, symbol in enumerate(symbols) if symbol.isalpha()]
    vowels, alike = [i for i in letters if symbols[i] in "aeiou"], cosines(C)
    others = [i for i in letters if i not in vowels]
    among = alike[np.ix_(vowels, vowels)][~np.eye(len(vowels), dtype=bool)].mean()
    print("\nIts alphabet: mean cosine of the embeddings of two vowels", end=" ")
    print(f"{among:+.2f}, of vowel and consonant {alike[np.ix_(vowels, others)].mean():+.2f};")
    print("  nobody told the model what a vowel is. Nearest neighbours, and the map of section 9:")
    report_neighbours(C, symbols, "aeioudtnmr")
    print(text_map([symbols[i] for i in letters], C[letters]))

    rng = np.random.default_rng(seed)  # each name starts from an empty context, as in training
    samples = [model.generate(20, temperature=0.8, seed=rng) for _ in range(24)]
    names = ["".join(symbols[i] for i in sample).split("\n")[0] for sample in samples]
    new = [name for name in names if name not in lines]
    print(f"\n  {len(names)} names sampled at temperature 0.8; {len(new)} (*) are not in the list:")
    for i in range(0, len(names), 6):
        print("  " + "".join(f"{s + '*' * (s in new):15}" for s in names[i : i + 6]).rstrip())


def report(args):
    """Everything in the order of the sections; the last line is the ladder's."""
    text, context = Path(args.text).read_text(encoding="utf-8")[: 40000 if args.fast else None], 6
    n_embd, n_hidden, steps = (12, 64, 1500) if args.fast else (24, 512, 20000)
    ids, symbols = encode(text)
    cut = int(0.9 * len(ids))
    if cut < 100:
        raise ValueError(f"the text has {len(text)} characters; expected at least 112")
    held = ids[cut - context :]  # the first held-out symbols have training text as context
    X, Y = make_examples(ids[:cut], context)  # (N, context), (N,)

    sizes = (len(symbols), context, n_embd, n_hidden, args.seed)
    print(f"Stage 3: a neural n-gram on {Path(args.text).name}: {len(text):,} characters,", end=" ")
    print(f"{len(symbols)} different, the last tenth held out")
    models = count_models(X, Y, *make_examples(held, context), len(symbols))
    report_counts(models, len(symbols))
    report_init(sizes, X, Y, 40 if args.fast else 600)

    model = NeuralLM(*sizes)
    size = sum(value.size for value in model.params.values())
    print(
        f"\nThe network: context {context}, {n_embd} numbers a symbol, {n_hidden} hidden", end=", "
    )
    print(f"{size:,} parameters (full table: {len(symbols) ** (context + 1):.0e})")
    train(model, X, Y, steps, seed=args.seed, name="  stories")
    log_p = model.log_probs(held)  # (M,): each held-out symbol once
    report_scores(models, np.exp(log_p))
    report_contexts(models, np.exp(log_p), 4)
    lines = (DATA / "names.txt").read_text(encoding="utf-8").split()
    report_names(lines, 300 if args.fast else 6000, args.seed)

    print("\nThe stories again: a sample from the start of a line, temperature 0.7")
    sample = "".join(symbols[i] for i in model.generate(480, temperature=0.7, seed=args.seed))
    for line in sample.split("\n"):
        print(textwrap.fill(line, 90, initial_indent="  ", subsequent_indent="  "))
    nats = abs(log_p.mean())  # log P is never above 0, and abs turns -0.0 into 0.0
    print(
        f"\nheld-out: {nats:.3f} nats/char | {nats / math.log(2):.3f} bits/char | "
        f"perplexity {math.exp(nats):.2f}   (stage 3, neural n-gram, context {context})"
    )


def drop_unwritten():
    """Forget what stdout cannot take, so that Python's own flush at the end does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:  # a closed pipe, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv=None):
    """Train on the stories and on the names, and report (under a minute)."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it was closed before the start
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    parser = argparse.ArgumentParser(description="Stage 3: a neural n-gram, derived and trained.")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    parser.add_argument("--fast", action="store_true", help="a smoke run of a few seconds")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice [0]")
    parser.add_argument("--text", default=DATA / "stories.txt", help="what to learn [the stories]")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"--seed is {args.seed}; expected 0 or more")
    try:
        report(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever was reading has seen enough
        drop_unwritten()
    except KeyboardInterrupt:
        drop_unwritten()
        parser.exit(130, "\n")
    except (OSError, ValueError) as error:
        drop_unwritten()
        parser.error(str(error))


# %% Common mistakes
#
# 1. `dC[ids] += dx`. A symbol that occurs twice in a batch gets one of its two gradients; training
#    works, but badly. See embedding_backward.
# 2. np.log(softmax(z)): an infinite loss once a score trails by 104 in float32. See log_sum_exp.
# 3. Forgetting the 1/N of the batch mean: the gradient, and so the best learning rate, changes
#    with the batch size. See `/ targets.size` in cross_entropy_backward.
# 4. Examples off by one: the target is inside its own context. The loss falls towards 0, samples
#    are rubbish. See make_examples: X[i] ends where Y[i] begins.
# 5. Weights that start at zero, or at a size by feel: a loss that stays at ln V, or starts far
#    above it. Print the first loss. See init_params.
# 6. A gradient of x from one of its two users only (H, and not W): nothing crashes, only the check
#    against central differences fails. See `dx +=` in loss_and_grads.
# 7. Holding out random windows: they overlap others in training and score too well. See `cut`.

# %% Exercises
#
#  1. (reading) Name the shape of every gradient in loss_and_grads. Which lines go if direct=False?
#  2. (pencil) Show that p - y is also the gradient for soft targets: any y that adds up to 1.
#  3. (pencil) For two symbols, softmax is a sigmoid. Of what? Derive p - y again from that.
#  4. (pencil) At which vocabulary size does a table of trigrams outgrow this network?
#  5. (code) Train with direct=False; then with W alone, without h. What kind of model is that?
#  6. (code) Plot held-out bits against the context 1..12. Why does longer stop helping here?
#  7. (code) Add dropout on h. Does it narrow the gap between training and held-out loss?
#  8. (measurement) At which V does np.add.at overtake the product in embedding_backward?
#  9. (experiment) Words, not characters, rare ones as <unk>: what are the neighbours of "king"?
# 10. (experiment) Let the ½ in the mean of network and counts depend on n_h. What does it gain?
# 11. (research) Share C with the output, z = b + f(h)·Cᵀ (Press, Wolf, 2017). When does it help?

# %% Where this leads
#
# The network sees a fixed window, and each place in it has its own rows of H: what it learns about
# a letter three places back it must learn again for four. Stage 5 replaces the window by attention,
# which looks wherever it wants with the same weights; the rest (embed, predict by softmax, train by
# p - y) is unchanged in every language model in use today. First, stage 4: better ways down.

if __name__ == "__main__":
    main()
