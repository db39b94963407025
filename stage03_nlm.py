# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 3: embed. How can a model predict after a context that it has never seen?

A table of counts keeps one row per context and shares nothing between rows: what it learned after
"the dog s" does not help it after "the cat s". Bengio's answer: give every symbol a list of
learned numbers, its embedding, and compute the prediction from the embeddings by one smooth
function. Contexts made of similar symbols then get similar predictions, seen or not. This file
derives that network and its gradient by hand, trains it on stories and on names, and asks what it
can do that counting cannot. You should know what stage 1 counts, and stage 2's chain rule.

  Begin:  1 a table is a network of one layer    2 what a table cannot do, and the network
  Loss:   3 softmax without overflow             4 cross-entropy, and its gradient p - y
  Layers: 5 linear, tanh, embedding              6 how large the first weights should be
  Whole:  7 NeuralLM                             8 training, and overfitting
  Judge:  9 looking inside                      10 the counts to beat

    python stage03_nlm.py                a report on the stories (half a minute; --fast: seconds)
    python stage03_nlm.py --text FILE    the same on a text of yours; --help shows all options
    python stage03_nlm.py --names FILE   learn a list, one name a line, and write new ones

Rests on: Bengio, Ducharme, Vincent, Jauvin, "A neural probabilistic language model" (2003); LeCun,
Bottou, Orr, Müller, "Efficient BackProp" (1998), section 6; Srivastava et al., "Dropout" (2014).
"""

import argparse
import io
import math
import numbers
import os
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import numpy as np

# %% 1. A table is a network of one layer
#
# Take two names, "ab" and "aa", and put a dot before and after each, to mark where it starts and
# ends. Count what follows what. Divided by its row's sum, a count becomes P(c|h) = N(hc)/N(h):
#
#     N(hc)    c = .   a   b             P(c|h)    c = .    a    b
#     h = .        0   2   0             h = .         0    1    0
#     h = a        1   1   1             h = a       1/3  1/3  1/3
#     h = b        1   0   0             h = b         1    0    0
#
# There are 6 pairs. The loss is their mean surprise -ln P(c|h): (3·ln 1 + 3·ln 3)/6 = 0.549 nats.
#
# Now learn the same table instead of counting it. Give the network one knob for every pair, a score
# W[h, c] for c after h. The scores in row h become probabilities by softmax: take e to each score,
# which is positive, and divide by the row's sum. (This is a network of one layer. Its input is a
# row of zeros with a single 1 at the place of h, "one-hot"; times the matrix W, that picks row h.)
# All scores start at 0. Then turn every knob a little in the direction that lowers the loss, again
# and again. The slope of the loss in a knob is wonderfully simple (section 4 derives it):
#
#     dW[h, c] = (N(h)·P(c|h) - N(hc)) / number of pairs,
#
# how often the network expects c after h, minus how often c came. Expected too often: down.


def learn_table(counts, steps, learning_rate):
    """Scores W (V, V), learned from counts (V, V): softmax(W[h]) predicts what follows h."""
    W = np.zeros(counts.shape)  # (V, V)
    for _ in range(steps):
        P = np.exp(W) / np.exp(W).sum(axis=1, keepdims=True)  # (V, V) each row adds up to 1
        expected = counts.sum(axis=1, keepdims=True) * P  # (V, V) N(h)·P(c|h)
        W -= learning_rate * (expected - counts) / counts.sum()
    return W


#     Before:  W = 0, every P = 1/3, loss ln 3 = 1.099
#     Slopes:  row . = [0.111, -0.222, 0.111]    row a = [0, 0, 0]    row b = [-0.111, 0.056, 0.056]
#     A step:  learning_rate = 3 makes row . = [-0.333, 0.667, -0.333], so P(a|.) = 0.576;
#              row b = [0.333, -0.167, -0.167], so P(.|b) = 0.452; and the loss is 0.866
#     After 1,000 steps: loss 0.550. It creeps towards 0.549, the counted loss, from above.
#
# It comes to rest only where all slopes are 0, which is where P(c|h) = N(hc)/N(h): at the counted
# table. (It never quite arrives, because no score makes e^score 0.) So a network is not cleverer
# than a table; this one *is* the table, found by a slower route. The report does the same with the
# 27 symbols of data/names.txt. What is won is freedom: the scores need not come from a row of knobs
# for each context. Any smooth function may compute them.

# %% 2. What a table cannot do, and the network
#
# Longer contexts predict better, but a table needs a row for each. There are Vⁿ contexts of n
# symbols, if there are V symbols, and a text of T symbols visits at most T of them. One symbol more
# multiplies Vⁿ by V and leaves T as it is, so almost all rows stay empty: the curse of
# dimensionality. Stage 1 falls back on a shorter context then; it never asks whether another one
# works the same way. Bengio's model computes the scores from the last n symbols, w₁...wₙ:
#
#     x = (C[w₁], ..., C[wₙ])      every symbol is replaced by its row of a table C: D learned
#                                  numbers, the same row at every place. Side by side: n·D numbers.
#     h = tanh(d + x·H)            K hidden features of the context, each a soft yes-or-no question.
#     z = b + h·U                  one score for each possible next symbol, then softmax: Bengio's
#                                  equation 1 without its optional direct connections from x to z.
#
# (h is a row of features here, no longer a context.) C, H, d, U, b are all the model has: V·D +
# nD·K + K + K·V + V numbers. That grows like n and like V; the table of (n+1)-grams like Vⁿ⁺¹.
#
# Why can it generalise? z is a smooth function of x. If two symbols have nearly the same row in C,
# exchanging them hardly moves x, so it hardly moves the prediction: what was learned in one context
# holds in its look-alikes. And if exchanging them is what the data want, the gradient pulls the
# rows together. Nobody says which symbols are alike; the model finds out, because it pays.


def check_size(name, value, least=1):
    """ValueError unless value is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")


def is_number(value):
    """Is value a finite real number? (True, False and strings are not.)"""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return -math.inf < value < math.inf


def check_ids(name, ids, vocab_size):
    """The ids as int64; ValueError if there are none, or one is no integer in 0..vocab_size-1."""
    ids = np.asarray(ids)
    if ids.size == 0:
        raise ValueError(f"{name} is empty; expected at least one id")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} has dtype {ids.dtype}; expected integer ids")
    for extreme in (int(ids.min()), int(ids.max())):
        if not 0 <= extreme < vocab_size:
            raise ValueError(f"{name} contains the id {extreme}; expected 0 to {vocab_size - 1}")
    return ids.astype(np.int64, copy=False)


def make_examples(ids, context):
    """X[i] = ids[i : i + context] and Y[i] = ids[i + context]: X (N, context), Y (N,).

    N = len(ids) - context; the first ids are context only. ValueError: no example, or bad ids.
    """
    check_size("context", context)
    if np.ndim(ids) != 1 or len(ids) <= context:
        raise ValueError(f"ids have shape {np.shape(ids)}; expected one row, {context + 1} or more")
    ids = check_ids("ids", ids, 2**63)
    X = np.lib.stride_tricks.sliding_window_view(ids[:-1], context)  # (N, context), copies nothing
    return X, ids[context:]


# %% 3. Softmax without overflow
#
# Scores z are any V real numbers; wanted are probabilities. Ask that the difference of two scores
# be the log of the odds: ln(pᵢ/pⱼ) = zᵢ - zⱼ. Then pᵢ/e^(zᵢ) is the same for all i, and Σ p = 1:
#
#     softmax(z)ᵢ = pᵢ = e^(zᵢ) / Σⱼ e^(zⱼ).
#
# Adding a constant m to all scores multiplies numerator and denominator by eᵐ: p does not change.
# That is useful, as e⁸⁹ is too large for float32. Subtract the largest score m: no term exceeds 1
# now and one is exactly 1, so the sum lies in [1, V]. The same shift for the logarithm of the sum:
#
#     LSE(z) = ln Σⱼ e^(zⱼ) = m + ln Σⱼ e^(zⱼ - m),       so   m ≤ LSE(z) ≤ m + ln V.
#
# A soft maximum, whence softmax. ln pᵢ = zᵢ - LSE(z); np.log(softmax(z)) is -∞ where p rounds to 0.


def as_scores(z, axis=-1):
    """z as an array of floats; ValueError unless it has at least one number along the axis."""
    z = np.asarray(z)
    if z.dtype.kind not in "iuf":
        raise ValueError(f"scores have dtype {z.dtype}; expected numbers")
    if not -z.ndim <= axis < z.ndim or z.shape[axis] == 0:
        raise ValueError(f"scores have shape {z.shape}; expected at least one along axis {axis}")
    return z if z.dtype.kind == "f" else z.astype(np.float64)


def log_sum_exp(z, axis=-1):
    """ln Σ e^z along an axis, kept with length 1, without overflow. ValueError if it is empty."""
    z = as_scores(z, axis)
    m = z.max(axis=axis, keepdims=True)
    return m + np.log(np.exp(z - m).sum(axis=axis, keepdims=True))


def softmax(z, axis=-1):
    """e^z / Σ e^z along an axis of finite scores: same shape. ValueError if it is empty."""
    z = as_scores(z, axis)
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


# %% 4. Cross-entropy, and its gradient p - y
#
# The best knobs are those that give the text the highest probability, Π P(yᵢ|xᵢ). The logarithm
# makes the product a sum, a minus makes high low, 1/N makes it a mean: the cross-entropy, in nats,
#
#     L = -(1/N)·Σᵢ ln P(yᵢ|xᵢ) = (1/N)·Σᵢ (LSE(zᵢ) - zᵢ[yᵢ]).
#
# It is the loss of counting, too: stage 1 proves that the shares N(hc)/N(h) are its minimum if each
# context may choose its p freely. The network shares one set of knobs among all contexts.
#
# Its gradient. For one example, ∂LSE/∂zⱼ = e^(zⱼ)/Σ e^(zₖ) = pⱼ (chain rule on the logarithm), and
# ∂z[y]/∂zⱼ is 1 for j = y and 0 otherwise, which is the one-hot vector of the target, yⱼ. Hence
#
#     ∂L/∂zⱼ = (pⱼ - yⱼ)/N:      probability given, minus probability due.
#
# Each row adds up to 1 - 1 = 0: what the right symbol gains, the others lose in the proportion
# in which they were trusted. In section 1 all pairs that begin with h share the scores W[h]; their
# gradients add up to (N(h)·P(c|h) - N(hc))/N, which is what was claimed there. ∎


def cross_entropy_forward(logits, targets):
    """Mean nats per target: logits (..., V), ids (...) -> (loss, cache). ValueError: a bad id."""
    logits = as_scores(logits)
    if np.shape(targets) != logits.shape[:-1]:
        rows, shape = logits.shape[:-1], np.shape(targets)
        raise ValueError(f"targets have shape {shape}; expected {rows}, one for each row of logits")
    targets = check_ids("targets", targets, logits.shape[-1])
    lse = log_sum_exp(logits)  # (..., 1)
    z_y = np.take_along_axis(logits, targets[..., None], axis=-1)  # (..., 1)
    return np.mean(lse - z_y), (logits, targets)


def cross_entropy_backward(dloss, cache):
    """(p - y)/N, times dloss: the gradient in the logits, shaped like them."""
    logits, targets = cache
    dlogits = softmax(logits)  # p
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
# (N, V) and one-hot, Eᵢᵥ = 1 if idᵢ = v, else 0. So a lookup is a linear layer, and its gradient is
# dC = Eᵀ·dx: row v of dC is the sum of dxᵢ over all i with idᵢ = v. A symbol used five times gets
# five contributions (dC[ids] += dx would keep one; np.add.at(dC, ids, dx) is right, but slower).


def embedding_forward(ids, C):
    """x = C[ids]: integer ids (...), C (V, D) -> (x (..., D), cache). ValueError: a bad id."""
    ids = check_ids("ids", ids, C.shape[0])
    return C[ids], (ids, C.shape[0])


def embedding_backward(dx, cache):
    """dx (..., D) -> dC (V, D), each row the sum of the gradients of its uses."""
    ids, vocab_size = cache
    used = np.unique(ids)
    Et = (used[:, None] == ids.reshape(-1)).astype(dx.dtype)  # (used, N)
    dC = np.zeros((vocab_size, dx.shape[-1]), dtype=dx.dtype)
    dC[used] = Et @ dx.reshape(-1, dx.shape[-1])
    return dC


# %% 6. How large the first weights should be
#
# All zeros is a trap: with H = 0 and U = 0, h = 0 makes dU = hᵀ·dz = 0, and U = 0 makes
# dh = dz·Uᵀ = 0 and with it dH, for ever. So weights start at random; but how large? Take one
# a = Σₖ xₖ·wₖ over m inputs, the wₖ drawn independently of each other and of x, with mean 0 and
# variance s². In a² = Σₖ Σₗ xₖxₗwₖwₗ every term with k ≠ l has mean E[xₖxₗ]·E[wₖ]·E[wₗ] = 0. Hence
#
#     Var(a) = E[a²] = Σₖ E[xₖ²]·E[wₖ²] = m·E[x²]·s².
#
# C is drawn with variance 1, so E[x²] = 1, and Var(a) is 1 if s² = 1/m: tanh works where it bends
# and is not flat. Ten times more, and most units sit near ±1, with slope 1 - t² near 0: hardly any
# gradient passes. Ten times less, and tanh is a straight line.
#
# The output is different: it should start knowing nothing. If z ≈ 0, p ≈ 1/V and the first loss is
# ln V; larger scores are confident guesses about nothing, which training must first take back. So U
# is ten times smaller than 1/√(its inputs), and b is 0. A first loss far from ln V is a bug.


def init_params(vocab_size, context, n_embd, n_hidden, rng, dtype):
    """The arrays of section 2 by name, at the sizes derived above."""
    inputs = context * n_embd
    params = {
        "C": rng.normal(0, 1, (vocab_size, n_embd)),
        "H": rng.normal(0, 1 / math.sqrt(inputs), (inputs, n_hidden)),
        "d": np.zeros(n_hidden),
        "U": rng.normal(0, 0.1 / math.sqrt(n_hidden), (n_hidden, vocab_size)),
        "b": np.zeros(vocab_size),
    }
    return {name: value.astype(dtype) for name, value in params.items()}


# %% 7. The whole network
#
# To write, draw from softmax(z/τ), append, predict again. Stage 1 explains the temperature τ (below
# 1: more cautious), top_k (keep the k likeliest), top_p (keep the fewest whose sum reaches p).


def next_symbol(z, temperature=1.0, top_k=None, top_p=None):
    """softmax(z/τ) cut by top_k, then by top_p, in float64: z (V,) -> probabilities (V,).

    temperature 0 is the limit: all on the likeliest symbol. top_p drops a symbol if the likelier
    ones already add up to it. ValueError: an argument out of range.
    """
    if not is_number(temperature) or temperature < 0:
        raise ValueError(f"temperature is {temperature!r}; expected a number of at least 0")
    if top_k is not None:
        check_size("top_k", top_k)
    if top_p is not None and not (is_number(top_p) and 0 < top_p <= 1):
        raise ValueError(f"top_p is {top_p!r}; expected 0 < top_p <= 1")
    z = as_scores(z).astype(np.float64)
    if z.ndim != 1 or not np.isfinite(z).all():
        raise ValueError(f"scores are {z}; expected one row of finite numbers")
    order = np.argsort(-z, kind="stable")  # (V,) the likeliest first
    with np.errstate(over="ignore"):  # a tiny temperature may send scores to -∞, rightly
        kept = softmax((z[order] - z[order[0]]) / (float(temperature) or 1.0))
    kept = kept[: 1 if temperature == 0 else top_k]
    kept = kept / kept.sum()
    if top_p is not None:
        likelier = np.cumsum(kept) - kept  # what those before it add up to
        kept = kept[: max(1, np.count_nonzero(likelier < top_p - 1e-9))]
    p = np.zeros(len(z))
    p[order[: len(kept)]] = kept / kept.sum()
    return p


def read_npz(path):
    """The arrays of an .npz file by name; nothing is unpickled. ValueError if it is damaged."""
    content = Path(path).read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            claimed = sum(entry.file_size for entry in file.infolist())
            if claimed > len(content) or file.testzip() is not None:
                raise ValueError("a size or a checksum is wrong")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # damage shows itself in a dozen ways
        raise ValueError(f"{path} is damaged, or no model of this stage: {error}") from None


class NeuralLM:
    """The neural n-gram of Bengio et al. (2003): z = b + tanh(d + x·H)·U, x = C[context].

    params: C (V, D), H (context·D, n_hidden), d (n_hidden,), U (n_hidden, V), b (V,). symbols: None
    until you set the V characters that the ids stand for; save keeps them. ValueError: a size below
    1, or another dtype than float32 and float64.
    """

    def __init__(self, vocab_size, context, n_embd, n_hidden, seed=0, dtype=np.float32):
        sizes = dict(vocab_size=vocab_size, context=context, n_embd=n_embd, n_hidden=n_hidden)
        for name, size in sizes.items():
            check_size(name, size)
            setattr(self, name, int(size))
        if dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype is {dtype!r}; expected numpy.float32 or numpy.float64")
        rng = np.random.default_rng(seed)  # which passes a Generator on as it is
        self.params = init_params(vocab_size, context, n_embd, n_hidden, rng, dtype)
        self.symbols = None

    def __repr__(self):
        size = sum(value.size for value in self.params.values())
        sizes = f"{self.vocab_size} symbols, context {self.context}, n_embd {self.n_embd}"
        return f"NeuralLM({sizes}, n_hidden {self.n_hidden}: {size:,} parameters)"

    def _forward(self, X, mask=None):
        """Section 2, line by line: (z (N, V), cache)."""
        if np.ndim(X) != 2 or np.shape(X)[1] != self.context:
            raise ValueError(f"X has shape {np.shape(X)}; expected (N, {self.context})")
        P = self.params
        x, embedding = embedding_forward(X, P["C"])  # (N, context, D)
        a, hidden = linear_forward(x.reshape(len(X), -1), P["H"], P["d"])  # (N, n_hidden)
        h, tanh = tanh_forward(a)  # (N, n_hidden)
        if mask is not None:  # dropout, section 8
            h = h * mask
        z, output = linear_forward(h, P["U"], P["b"])  # (N, V)
        return z, (embedding, hidden, tanh, output)

    def _gradients(self, X, Y, mask=None):
        """The same lines in reverse: (loss, grads, dx (N, context, D))."""
        z, (embedding, hidden, tanh, output) = self._forward(X, mask)
        loss, cache = cross_entropy_forward(z, Y)
        dz, grads = cross_entropy_backward(1.0, cache), {}  # dz (N, V)
        dh, grads["U"], grads["b"] = linear_backward(dz, output)  # dh (N, n_hidden)
        if mask is not None:
            dh = dh * mask
        da = tanh_backward(dh, tanh)  # (N, n_hidden)
        dx, grads["H"], grads["d"] = linear_backward(da, hidden)  # dx (N, context·D)
        dx = dx.reshape(len(z), self.context, self.n_embd)
        grads["C"] = embedding_backward(dx, embedding)
        return float(loss), grads, dx

    def logits(self, X):
        """Scores (N, V) of the next symbol after each context in X (N, context)."""
        return self._forward(X)[0]

    def loss_and_grads(self, X, Y, mask=None):
        """Mean nats per target Y (N,), and its slope in each of params; mask multiplies h."""
        return self._gradients(X, Y, mask)[:2]

    def input_gradients(self, X, Y):
        """∂(-ln P[y])/∂x of every example: (N, context, D), one row for each place of context."""
        return len(X) * self._gradients(X, Y)[2]

    def log_likelihoods(self, X, Y):
        """ln P of each target Y (N,) after its context X (N, context): (N,), in float64."""
        Y = check_ids("Y", Y, self.vocab_size)
        if len(X) != len(Y):
            raise ValueError(f"{len(X)} contexts and {len(Y)} targets; expected as many of each")
        parts = []
        for i in range(0, len(Y), 4096):  # in pieces, so that memory does not grow with the text
            z = self.logits(X[i : i + 4096]).astype(np.float64)  # (n, V)
            parts.append(z[np.arange(len(z)), Y[i : i + 4096]] - log_sum_exp(z)[:, 0])
        return np.concatenate(parts)

    def loss(self, X, Y):
        """Mean nats per target: X (N, context), Y (N,)."""
        return -float(self.log_likelihoods(X, Y).mean())

    def generate(self, n, context=(), temperature=1.0, top_k=None, top_p=None, seed=None):
        """n sampled ids (n,) that continue the given ones; options as in next_symbol.

        Id 0 fills up a short context: in our vocabularies the line break, the start of a line.
        """
        check_size("n", n, least=0)
        rng = np.random.default_rng(seed)
        if np.ndim(context) != 1:
            raise ValueError(f"context has shape {np.shape(context)}; expected a list of ids")
        given = check_ids("context", context, self.vocab_size).tolist() if len(context) else []
        ids = [0] * self.context + given
        for _ in range(n):
            z = self.logits([ids[-self.context :]])[0]  # (V,)
            p = next_symbol(z, temperature, top_k, top_p)
            ids.append(int(rng.choice(self.vocab_size, p=p)))
        return np.array(ids[self.context + len(given) :], dtype=np.int64)

    def save(self, path):
        """Write params and symbols into one .npz file: whole, or not at all."""
        arrays = dict(self.params)
        if self.symbols is not None:
            arrays["symbols"] = np.array([ord(symbol) for symbol in self.symbols])
        with open(f"{path}.tmp", "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())  # on the disk, before it takes the place of another
        os.replace(f"{path}.tmp", path)

    @classmethod
    def load(cls, path):
        """The model that `save` wrote. ValueError, naming the fault, if the file is damaged."""
        arrays = read_npz(path)
        codes = arrays.pop("symbols", None)
        if sorted(arrays) != ["C", "H", "U", "b", "d"]:
            raise ValueError(f"{path} holds {sorted(arrays)}; expected C, H, U, b and d")
        C, H, d = arrays["C"], arrays["H"], arrays["d"]
        if C.ndim != 2 or H.ndim != 2 or d.ndim != 1 or C.size == 0 or len(H) % C.shape[1] != 0:
            raise ValueError(f"{path}: C {C.shape}, H {H.shape}, d {d.shape} do not fit together")
        (V, D), K = C.shape, len(d)
        shapes = {"C": (V, D), "H": (len(H), K), "d": (K,), "U": (K, V), "b": (V,)}
        for name, value in arrays.items():
            if value.shape != shapes[name] or value.dtype != C.dtype or C.dtype.kind != "f":
                found = f"{value.dtype} {value.shape}"
                raise ValueError(f"{path}: {name} is {found}; expected floats {shapes[name]}")
            if not np.isfinite(value).all():
                raise ValueError(f"{path}: {name} holds a number that is not finite")
        model = cls(V, len(H) // D, D, K, dtype=C.dtype.type)
        model.params = {name: arrays[name].astype(C.dtype.type) for name in shapes}
        if codes is not None:
            codes = check_ids(f"{path}: symbols", codes, sys.maxunicode + 1)
            if codes.shape != (V,) or len(np.unique(codes)) != V:
                raise ValueError(f"{path}: symbols are not {V} different characters")
            model.symbols = [chr(code) for code in codes]
        return model


# %% 8. Training, and overfitting
#
# Against the gradient the loss falls fastest (stage 4 proves it): θ ← θ - η·∂L/∂θ, η the learning
# rate. The gradient over all N examples costs N forward passes for one step. Over a random batch of
# B it costs B, and is right on average: each example is in the batch with the same probability. The
# noise that is left shakes θ about, with an amplitude that grows with η; so η is large for the
# first half, to get far, and then shrinks to 0 in a straight line, to settle. Batches are cut from
# shuffled lists of all examples, one list after the other: each example comes once per epoch.
#
# OVERFITTING. With many knobs and few examples, a network can learn the examples by heart, their
# accidents included. Two losses show it: on the training text the loss keeps falling, on a text it
# does not train on it turns round and rises. Three remedies:
#
# EARLY STOPPING. Measure on a development piece, cut from the training text; stop at the turn.
#
# WEIGHT DECAY. To bend sharply around single examples takes large weights. Add (λ/2)·Σθ² to the
# loss. Its slope is λ·θ, so the step becomes θ ← θ - η·(∂L/∂θ + λ·θ) = (1 - η·λ)·θ - η·∂L/∂θ: each
# step shrinks every weight a little, and what the data do not pull up fades. (Biases are spared.)
#
# DROPOUT. At every training step each hidden feature is set to 0 with probability r, and the others
# are divided by 1 - r. No feature can count on another one being there, so each must be of use by
# itself. On average a feature is r·0 + (1 - r)·h/(1 - r) = h: for predicting, all stay as they are.


def train(
    model, X, Y, steps, learning_rate=0.2, batch_size=64, seed=0, weight_decay=0.0, dropout=0.0,
    watch=None, title=None,
):  # fmt: skip
    """Plain SGD on the model's params, in place. Returns the loss of every batch: (steps,).

    watch(steps done) is called after each step and stops the training by returning True. title:
    for the progress line; None prints none. ValueError: a bad argument, or a loss past all bounds.
    """
    check_size("steps", steps)
    check_size("batch_size", batch_size)
    if not is_number(learning_rate) or learning_rate <= 0:
        raise ValueError(f"learning_rate is {learning_rate!r}; expected a number above 0")
    if not is_number(weight_decay) or weight_decay < 0:
        raise ValueError(f"weight_decay is {weight_decay!r}; expected a number of at least 0")
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout!r}; expected 0 <= dropout < 1")
    X, Y = check_ids("X", X, model.vocab_size), check_ids("Y", Y, model.vocab_size)
    if len(X) != len(Y):
        raise ValueError(f"{len(X)} contexts and {len(Y)} targets; expected as many of each")
    rng, dtype = np.random.default_rng(seed), model.params["C"].dtype
    size, order = min(batch_size, len(X)), np.empty(0, dtype=np.int64)
    losses, start, bound = [], time.time(), 1000 * (1 + math.log(model.vocab_size))  # nats
    for step in range(steps):
        if len(order) < size:
            order = np.concatenate([order, rng.permutation(len(X))])  # a new epoch
        batch, order = order[:size], order[size:]
        mask = None
        if dropout > 0:  # one coin for each feature of each example
            kept = rng.random((size, model.n_hidden), dtype=np.float32) >= dropout
            mask = kept.astype(dtype) / dtype.type(1 - dropout)
        rate = learning_rate * min(1, 2 * (1 - step / steps))
        with np.errstate(over="ignore", invalid="ignore"):  # named below
            loss, grads = model.loss_and_grads(X[batch], Y[batch], mask)
            for name, value in model.params.items():
                if value.ndim == 2:
                    value *= 1 - rate * weight_decay
                value -= rate * grads[name]
        if not (loss < bound and np.isfinite(model.params["b"]).all()):  # bound: far past sense
            raise ValueError(f"loss {loss} at step {step + 1}: {learning_rate=} is too large")
        losses.append(loss)
        stop = watch is not None and watch(step + 1) is True
        last, terminal = stop or step + 1 == steps, sys.stdout.isatty()
        if title and (last or terminal and step % 250 == 0):
            line = f"   {title}: step {step + 1:,}, training loss "
            line += f"{np.mean(losses[-1000:]) / math.log(2):.3f} bits, {time.time() - start:.1f} s"
            print("\r" * terminal + line, end="\n" if last else "", flush=True)
        if stop:
            break
    return np.array(losses)


# %% 9. Looking inside
#
# WHICH LETTERS ARE ALIKE? Ask for the angle between their rows of C, after subtracting the mean
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
    """The rows of C by one-character labels, in the plane of their principal axes: a string."""
    if len(labels) != len(C) or len(C) > width * height:
        raise ValueError(f"{len(labels)} labels and {len(C)} rows for {width * height} cells")
    E = C - C.mean(axis=0)
    axes = np.linalg.svd(E, full_matrices=False)[2][:2]  # (2, D); (1, D) if V or D is 1
    xy = np.zeros((len(C), 2))
    xy[:, : len(axes)] = E @ axes.T
    cells = (xy - xy.min(axis=0)) / np.maximum(np.ptp(xy, axis=0), 1e-12) * (width - 1, height - 1)
    free = list(np.ndindex(height, width))
    grid = np.full((height, width), " ")
    for label, (x, y) in zip(labels, cells):
        cell = min(free, key=lambda cell: 2 * abs(cell[0] - y) + abs(cell[1] - x))
        grid[cell] = label
        free.remove(cell)
    return "\n".join("".join(line).rstrip() for line in grid)


# ANALOGIES. "A is to a as B is to ...": if C[a] - C[A] were the step from any capital to its small
# letter, C[B] + C[a] - C[A] would lie nearest to C[b]. Two things make such tests look better than
# they are. The three given rows are left out of the search; and the answer may be the nearest
# neighbour of B anyway, so that the step did nothing. So count both, beside chance.


def analogies(C, pairs):
    """Over all two pairs (a, b), (c, d): how often is d found, a, b and c left out of the search?

    Returns three shares: nearest to C[c] + C[b] - C[a]; nearest to C[c]; by chance, 1/(V - 3).
    """
    found = []
    for a, b, c, d in [(*first, *second) for first in pairs for second in pairs]:
        if a != c:
            distances = np.linalg.norm(C - [[C[c] + C[b] - C[a]], [C[c]]], axis=2)  # (2, V)
            distances[:, [a, b, c]] = np.inf
            found.append(distances.argmin(axis=1) == d)
    return *np.mean(found, axis=0).tolist(), 1 / (len(C) - 3)


# WHICH PLACE OF THE CONTEXT MATTERS? Backward gives the slope of every loss in x, which has a row
# for each place: the longer the row, the more a small change there moves the prediction. (See
# input_gradients. A slope is a local answer; exercise 5 asks a blunter question.)

# %% 10. The counts to beat
#
# A fair opponent is not the plain table but the best of stage 1, Kneser-Ney smoothing. It takes δ
# off every count, and what that frees goes to h′, the context h without its oldest symbol:
#
#     P(c|h) = (max(N(hc) - δ, 0) + δ·T(h)·P(c|h′)) / N(h),
#
# where N(hc) is how often c came after h, and T(h) how many different c did. P(c|h′) has the same
# form, but asks after how many different symbols h′c came, not how often: there, each different
# longer gram counts once. Below the empty context stands 1/V, and where h was never seen, P(c|h′).
#
# To count, number the different n-grams. In base V that overflows 64 bits as soon as n·log₂ V > 63,
# as 7 symbols of 512 do. So number one symbol at a time: an n-gram is its first symbol and the
# number of the rest; sort all such pairs, those of the held-out text too, and number them from 0.


def tally(gram, h, rows, n_train):
    """N(hc), N(h), T(h) among the examples `rows`, for each example from place n_train on."""
    n_hc = np.bincount(gram[rows], minlength=gram.max() + 1)
    n_h = np.bincount(h[rows], minlength=h.max() + 1)
    h_of = np.zeros(len(n_hc), dtype=np.int64)
    h_of[gram] = h  # the context of each n-gram
    t_h = np.bincount(h_of[n_hc > 0], minlength=len(n_h))
    return n_hc[gram[n_train:]], n_h[h[n_train:]], t_h[h[n_train:]]


def count_models(X, Y, X_held, Y_held, vocab_size, discounts=(0.75,)):
    """Kneser-Ney n-grams, n = 1..context+1, counted on (X, Y), for each held-out (X_held, Y_held).

    X (N, context), Y (N,), X_held (M, context), Y_held (M,). Returns for each n: how many different
    n-grams were counted; N(hc) (M,); N(h) (M,); P of each Y_held, a row for each discount (R, M).
    """
    context, delta = np.shape(X)[-1], np.array(discounts)[:, None]  # delta (R, 1)
    for name, x, y in (("X", X, Y), ("X_held", X_held, Y_held)):
        if np.shape(x) != (len(y), context):
            raise ValueError(f"{name} has shape {np.shape(x)}; expected ({len(y)}, {context})")
    parts = {"X": X, "X_held": X_held, "Y": Y, "Y_held": Y_held}
    X, X_held, Y, Y_held = (check_ids(name, ids, vocab_size) for name, ids in parts.items())
    contexts = np.concatenate([X, X_held])  # (N + M, context)
    gram = np.unique(np.concatenate([Y, Y_held]), return_inverse=True)[1]  # (N + M,) number, n = 1
    if vocab_size * len(gram) >= 2**63:
        raise ValueError(f"vocab_size is {vocab_size}; pairs of so many do not fit into 64 bits")
    h = np.zeros_like(gram)  # (N + M,) that of its context, the n-gram without its last symbol
    below, train, models = 1 / vocab_size, np.arange(len(Y)), []

    def smoothed(n_hc, n_h, t_h):
        kept = np.maximum(n_hc - delta, 0)
        return np.where(n_h > 0, (kept + delta * t_h * below) / np.maximum(n_h, 1), below)  # (R, M)

    for n in range(1, context + 2):
        n_hc, n_h, t_h = tally(gram, h, train, len(Y))
        models.append((len(np.unique(gram[train])), n_hc, n_h, smoothed(n_hc, n_h, t_h)))
        if n <= context:
            first = contexts[:, -n]  # the symbol in front of each n-gram
            longer = np.unique(first * (gram.max() + 1) + gram, return_inverse=True)[1]
            once = np.unique(longer[train], return_index=True)[1]  # each (n+1)-gram once
            below = smoothed(*tally(gram, h, once, len(Y)))
            h = np.unique(first * (h.max() + 1) + h, return_inverse=True)[1]
            gram = longer
    return models


# %% Demonstration

DATA = Path(__file__).resolve().parent / "data"
DISCOUNTS = (0.55, 0.65, 0.75, 0.85, 0.95, 1.0)


def encode(text, symbols=None):
    """(ids (T,), symbols): each character's place among the symbols, if none are given its own,
    "\\n" first. ValueError: the text is empty, or a character is not among the symbols."""
    if symbols is None:
        symbols = sorted(set(text), key=lambda symbol: (symbol != "\n", symbol))
    if not symbols:
        raise ValueError("the text is empty; expected at least one character")
    place = {symbol: i for i, symbol in enumerate(symbols)}
    for symbol in text:
        if symbol not in place:
            raise ValueError(f"{symbol!r} is not among the model's {len(symbols)} symbols")
    return np.array([place[symbol] for symbol in text], dtype=np.int64), symbols


def bits(p):
    """Mean bits per symbol of the probabilities p."""
    return -np.log2(p).mean()


def report_table(names, steps):
    """Section 1: the bigram table of the names, counted and learned."""
    ids, symbols = encode("\n" + "\n".join(names) + "\n")
    V, pairs = len(symbols), (ids[:-1], ids[1:])
    counts = np.bincount(ids[:-1] * V + ids[1:], minlength=V * V).reshape(V, V)
    counted = counts / counts.sum(axis=1, keepdims=True)
    learned = softmax(learn_table(counts, steps, learning_rate=50.0))
    print(f"\n1. One layer: what follows what in {len(names):,} names; bits per character")
    print(f"   counted {bits(counted[pairs]):.4f}, learned in {steps:,} steps", end=" ")
    print(f"{bits(learned[pairs]):.4f}; largest difference {np.abs(learned - counted).max():.4f}")


def best_counts(X, Y, cut, X_held, Y_held, V):
    """(models, name, P (M,)): count_models of all examples, and the one of the best order and
    discount. Best: the examples before `cut` predict those from `cut` on best."""
    dev = count_models(X[:cut], Y[:cut], X[cut:], Y[cut:], V, DISCOUNTS)
    scores = [[bits(p) for p in by_discount] for *_, by_discount in dev]  # a row for each n
    n, r = divmod(int(np.argmin(scores)), len(DISCOUNTS))
    models = count_models(X, Y, X_held, Y_held, V, DISCOUNTS[r : r + 1])
    return models, f"{n + 1}-gram counts, δ = {DISCOUNTS[r]}", models[n][3][0]


def report_scores(models, name, p_count, p_model, k):
    """The network beside the best counts, then by how often the last k symbols were seen."""
    mixed = (p_model + p_count) / 2
    for title, p in ((name, p_count), ("the network", p_model), ("mean of the two", mixed)):
        print(f"     {title:32}{bits(p):.3f}")
    ahead = bits(p_count) - bits(p_model)
    better, worse = ("The network", "counting") if ahead > 0 else ("Counting", "the network")
    print(f"   {better} beats {worse} by {abs(ahead):.3f} bits.", end=" ")
    gain = min(bits(p_count), bits(p_model)) - bits(mixed)
    print(f"Their mean is {abs(gain):.3f} {'better' if gain > 0 else 'worse'} than the better one.")
    print(f"   By how often the last {k} characters occur in training:")
    print("     times seen    share   counting   network     mean")
    where = []
    for low, high, label in ((0, 0, "0"), (1, 9, "1-9"), (10, 99, "10-99"), (100, 1e9, "100+")):
        rows = (models[k][2] >= low) & (models[k][2] <= high)  # by N(h), h of k symbols
        if rows.any():
            scores = [bits(p[rows]) for p in (p_count, p_model, mixed)]
            print("     {:>10}{:9.1%}{:11.3f}{:10.3f}{:9.3f}".format(label, rows.mean(), *scores))
            if scores[1] < scores[0]:
                where.append(label)
    print(f"   The network is ahead where they were seen: {', '.join(where) or 'nowhere'}.")


def report_inside(model, X, Y, ids):
    """Section 9: the places of the context; the step from capital to small letters."""
    slopes = np.linalg.norm(model.input_gradients(X[:4000], Y[:4000]), axis=2).mean(axis=0)
    print("   Slope of the loss at each place of the context, the last first (the largest: 1):")
    print("     " + "".join(f"{value:7.2f}" for value in slopes[::-1] / (slopes.max() or 1)))
    often = np.bincount(ids, minlength=model.vocab_size) >= 30
    place = {symbol: i for i, symbol in enumerate(model.symbols) if often[i]}
    pairs = [(i, place[s.lower()]) for s, i in place.items() if s != s.lower() in place]
    if len(pairs) > 1:
        step, neighbour, chance = analogies(model.params["C"], pairs)
        verdict = "there is a" if step > 2 * max(neighbour, chance) else "there is no"
        print(f"   A is to a as B is to b: the step from A to a finds b in {step:.1%}, no", end=" ")
        print(f"step in {neighbour:.1%},\n   chance in {chance:.1%}: {verdict} common step.")


def report_letters(model):
    """Section 9: vowels and consonants, and the map."""
    C, alike = model.params["C"], cosines(model.params["C"])
    letters = [i for i, symbol in enumerate(model.symbols) if symbol.isalpha()]
    vowels = [i for i in letters if model.symbols[i] in "aeiou"]
    others = [i for i in letters if i not in vowels]
    among = alike[np.ix_(vowels, vowels)][~np.eye(len(vowels), dtype=bool)].mean()
    print(f"   Mean cosine of two vowels {among:+.2f}, of vowel and consonant", end=" ")
    print(f"{alike[np.ix_(vowels, others)].mean():+.2f}. The map of section 9:")
    print(text_map([model.symbols[i] for i in letters], C[letters]))


def name_examples(names, symbols, context):
    """X (N, context), Y (N,) of the names: `context` line breaks start each, and one ends it."""
    padded = ["\n" * context + name + "\n" for name in names]
    X, Y = zip(*(make_examples(encode(name, symbols)[0], context) for name in padded))
    return np.concatenate(X), np.concatenate(Y)


def learn_names(names, context, steps, seed):
    """Overfitting and its remedies; then the best one's model, on all but a held-out tenth."""
    names = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    cut = int(0.9 * len(names))
    if cut < 10:
        raise ValueError(f"there are {len(names)} names; expected at least 12 different ones")
    symbols = encode("\n" + "".join(names))[1]
    X, Y = name_examples(names[:cut], symbols, context)
    dev = len(name_examples(names[: int(0.9 * cut)], symbols, context)[1])  # where it begins
    sizes = dict(vocab_size=len(symbols), context=context, n_embd=16, n_hidden=128, seed=seed)
    run = dict(steps=steps, batch_size=32, seed=seed)
    remedies = {"none": {}, "dropout": {"dropout": 0.5}, "weight decay": {"weight_decay": 0.001}}
    curves = {name: [] for name in remedies}
    for name, remedy in remedies.items():
        model = NeuralLM(**sizes)

        def watch(done, model=model, curve=curves[name]):
            if done % max(1, steps // 8) == 0:
                rest, seen = model.loss(X[dev:], Y[dev:]), model.loss(X[:dev], Y[:dev])
                curve.append((rest / math.log(2), done, seen / math.log(2)))

        options = run | remedy | {"title": f"remedy {name}", "watch": watch}
        train(model, X[:dev], Y[:dev], **options)
    print("   Bits per character, training part / development piece, by remedy:")
    print("       steps" + "".join(f"{name:>18}" for name in remedies))
    for row in zip(*curves.values()):
        print(f"   {row[0][1]:9,}" + "".join(f"{seen:10.3f} /{rest:6.3f}" for rest, _, seen in row))
    rise = curves["none"][-1][0] - min(curves["none"])[0]
    (_, stop, _), name = min((min(curve), name) for name, curve in curves.items())
    print(f"   Without a remedy, not stopping at the best step costs {rise:.3f} bits. The best is")
    print(f"   {name}, {stop:,} steps. So again, on the whole training part; then held out:")
    model = NeuralLM(**sizes)
    model.symbols = symbols
    options = run | remedies[name] | {"title": "names", "watch": lambda done: done == stop}
    train(model, X, Y, **options)
    held = name_examples(names[cut:], symbols, context)
    p_model = np.exp(model.log_likelihoods(*held))
    report_scores(*best_counts(X, Y, dev, *held, len(symbols)), p_model, min(3, context))
    return model


def write_names(model, names, prompt, length, seed):
    """New names, each from the start; says how many are in the file."""
    rng, given, written = np.random.default_rng(seed), encode(prompt, model.symbols)[0], []
    for _ in range(200):
        ids = model.generate(length, context=given, temperature=0.8, seed=rng)
        written.append((prompt + "".join(model.symbols[i] for i in ids)).split("\n")[0])
    marked = [name + "*" if name in names else name for name in written]
    print(f"   {len(written)} names written at temperature 0.8, ", end="")
    print(f"{sum(name in names for name in written)} of them in the file (*); the first:")
    for i in range(0, 24, 6):
        print("     " + "".join(f"{name:15}" for name in marked[i : i + 6]).rstrip())


def write_text(model, prompt, length, seed):
    """A sample at temperature 0.7 that continues the prompt."""
    given = encode(prompt, model.symbols)[0]
    ids = model.generate(length, context=given, temperature=0.7, seed=seed)
    for line in (prompt + "".join(model.symbols[i] for i in ids)).split("\n"):
        print(textwrap.fill(line, 90, initial_indent="   ", subsequent_indent="   "))


def read_names(path):
    """The different lines of a file that are not empty, in order."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def report(args):
    """Everything in the order of the sections; the last line is the ladder's."""
    text = Path(args.text).read_text(encoding="utf-8")[: 40000 if args.fast else None]
    (ids, symbols), context = encode(text), args.context or 5
    cut, V, names = int(0.9 * len(ids)), len(symbols), read_names(DATA / "names.txt")
    names = names[: 600 if args.fast else None]
    if cut < 100 + context:
        raise ValueError(f"the text has {len(text)} characters, too few for context {context}")
    encode(args.prompt, symbols)  # a strange character is refused now, not after the training
    X, Y = make_examples(ids[:cut], context)  # (N, context), (N,)
    X_held, Y_held = make_examples(ids[cut - context :], context)  # the first see training text
    print(f"Stage 3: a neural n-gram on {Path(args.text).name}: {len(text):,} characters,", end=" ")
    print(f"{V} different, the last tenth held out")
    report_table(names, 1000 if args.fast else 10000)
    history = max(context, 9)  # the counts may look further back
    far, held = make_examples(ids[:cut], history), make_examples(ids[cut - history :], history)
    models, *best = best_counts(*far, int(0.9 * len(far[1])), *held, V)
    print("\n2. Counting: n-grams of the training text, and the held-out text by Kneser-Ney")
    print("   n   possible   ever seen   new among held-out   bits/char")
    for n, (grams, n_hc, _, p) in enumerate(models, 1):
        possible = f"10^{n * math.log10(V):.1f}"
        new = np.mean(n_hc == 0)
        print(f"  {n:2} {possible:>10} {grams:11,} {new:20.2%} {bits(p):11.3f}")
    model = NeuralLM(V, context, 24, 64 if args.fast else 512, args.seed)
    model.symbols = symbols
    print(f"\n3. {model!r}; held out:")
    steps = args.steps or (1000 if args.fast else 24000)
    train(model, X, Y, steps, seed=args.seed, title="stories")
    p_model = np.exp(model.log_likelihoods(X_held, Y_held))  # (M,): each held-out symbol once
    report_scores(models, *best, p_model, min(4, context))
    report_inside(model, X_held, Y_held, ids[:cut])
    print("\n4. Names")
    names_model = learn_names(names, 6, 400 if args.fast else 8000, args.seed)
    report_letters(names_model)
    write_names(names_model, names, "", 20, args.seed)
    print("\n5. The stories again, written at temperature 0.7")
    write_text(model, args.prompt, args.length or 480, args.seed)
    nats = abs(np.log(p_model).mean())  # ln P is never above 0, and abs turns -0.0 into 0.0
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
    """Train on the stories and on the names, and report (half a minute); --help shows more."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it was closed before the start
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    parser = argparse.ArgumentParser(description="Stage 3: a neural n-gram, derived and trained.")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    flag = parser.add_argument
    flag("--fast", action="store_true", help="a smoke run of a few seconds")
    flag("--seed", type=int, default=0, help="of every random choice [0]")
    flag("--text", default=DATA / "stories.txt", help="what to learn [the stories]")
    flag("--names", help="a file with a name a line: learn these, write new ones")
    flag("--context", type=int, help="how many symbols the model sees [5; names 6]")
    flag("--steps", type=int, help="how long to train [24,000; names 8,000]")
    flag("--prompt", default="", help="how the text, or each name, begins [at the start]")
    flag("--length", type=int, help="characters to write [480; of a name at most 20]")
    args = parser.parse_args(argv)
    try:
        check_size("--seed", args.seed, least=0)
        for name in ("context", "steps", "length"):
            if getattr(args, name) is not None:
                check_size(f"--{name}", getattr(args, name))
        if args.names:
            names, steps = read_names(args.names), args.steps or (400 if args.fast else 8000)
            model = learn_names(names, args.context or 6, steps, args.seed)
            write_names(model, names, args.prompt, args.length or 20, args.seed)
        else:
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


# %% What to take away
#
# - The loss of a row of scores is LSE(z) - z[y], and its gradient p - y: given minus due.
# - One layer on a one-hot context is a table. What generalises is that contexts share weights.
# - First weights of variance 1/(number of inputs), a small last layer: the first loss is ln V.
# - Few data: watch a development loss; decay weights or drop features; stop at the turn.
# - Judge against the best counts: hard to beat on much text, beaten on little (names).

# %% Common mistakes
#
# 1. `dC[ids] += dx`. A symbol that occurs twice in a batch gets one of its two gradients; training
#    works, but badly. See embedding_backward.
# 2. np.log(softmax(z)): an infinite loss once a score trails by 104 in float32. See log_sum_exp.
# 3. Examples off by one: the target is inside its own context. The loss falls towards 0, samples
#    are rubbish. See make_examples: X[i] ends where Y[i] begins.
# 4. Weights that start at zero, or at a size by feel: a loss that stays at ln V, or starts far
#    above it. Print the first loss. See init_params.
# 5. Holding out random windows: they overlap others in training and score too well. See `cut`.

# %% Exercises
#
#  1. (reading) Name the shape of every gradient in _gradients.
#  2. (pencil) Show that p - y is also the gradient for soft targets: any y that adds up to 1.
#  3. (code) Add Bengio's direct connections: z = b + x·W + h·U, forward and backward. Do they pay?
#  4. (measurement) Multiply H and U by 10, by 0.1: first loss, mean of 1 - t², loss in 500 steps?
#  5. (measurement) Shuffle one place of X among the examples: does the loss rise as slopes say?
#  6. (experiment) Words, not characters, rare ones as <unk>: what are the neighbours of "king"?
#  7. (experiment) Let the ½ in the mean of network and counts depend on N(h). What does it gain?
#  8. (research) Share C with the output, z = b + f(h)·Cᵀ (Press, Wolf, 2017). When does it help?

# %% Where this leads
#
# The network sees a fixed window, and each place in it has its own rows of H: what it learns about
# a letter three places back it must learn again for four. Stage 5 replaces the window by attention,
# which looks wherever it wants; embedding, softmax, p - y stay. First, stage 4: better ways down.

if __name__ == "__main__":
    main()
