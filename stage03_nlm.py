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
import itertools
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


def check_number(name, value, fits, expected):
    """value as a float; ValueError unless it is a finite real number for which fits is true."""
    try:
        number = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:  # an integer of more than 308 digits
        number = math.inf
    if isinstance(value, bool) or not math.isfinite(number) or not fits(number):
        raise ValueError(f"{name} is {value!r}; expected {expected}")
    return number


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


def check_examples(X, Y, vocab_size):
    """X and Y as int64; ValueError for bad ids, or unless Y has one target for each row of X."""
    X, Y = check_ids("X", X, vocab_size), check_ids("Y", Y, vocab_size)
    if X.ndim != 2 or Y.shape != X.shape[:1]:
        raise ValueError(f"X has shape {X.shape}, Y {Y.shape}; expected (N, context) and (N,)")
    return X, Y


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
# Scores z are any V real numbers; wanted are probabilities p. Let the difference of two scores be
# the logarithm of the odds: ln(pᵢ/pⱼ) = zᵢ - zⱼ. Then pᵢ/e^(zᵢ) = pⱼ/e^(zⱼ) is one number for all
# symbols; it must be 1/Σⱼ e^(zⱼ), as the p add up to 1:
#
#     softmax(z)ᵢ = pᵢ = e^(zᵢ) / Σⱼ e^(zⱼ).
#
# A constant added to all scores multiplies numerator and denominator by the same factor: p stays.
# We need that, for e⁸⁹ is too large for float32. Subtract the largest score, m. Now no term exceeds
# 1, and one is exactly 1, so the sum lies between 1 and V. The same shift in the logarithm of it:
#
#     LSE(z) = ln Σⱼ e^(zⱼ) = m + ln Σⱼ e^(zⱼ - m),       so   m ≤ LSE(z) ≤ m + ln V.
#
# That is a soft maximum, which gave softmax its name. The logarithm of a probability is then
# ln pᵢ = zᵢ - LSE(z). It is always finite; np.log(softmax(z)) is -∞ as soon as pᵢ rounds to 0.


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
# The best knobs give the text the highest probability: the product Π P(Yᵢ|Xᵢ) over all examples, a
# target Yᵢ after a context Xᵢ. The logarithm turns the product into a sum, a minus sign makes the
# best the lowest, and 1/N makes a mean of the sum. This is the cross-entropy, in nats:
#
#     L = -(1/N)·Σᵢ ln P(Yᵢ|Xᵢ) = (1/N)·Σᵢ (LSE(zᵢ) - zᵢ[Yᵢ]),      zᵢ the scores after Xᵢ.
#
# Its gradient, for one example with scores z and target Y. By the chain rule on the logarithm,
# ∂LSE/∂zⱼ = e^(zⱼ)/Σₖ e^(zₖ) = pⱼ. And ∂z[Y]/∂zⱼ is 1 for j = Y and 0 for every other j; call this
# one-hot row y. The loss is the mean of N examples, so each has a share of 1/N in it:
#
#     ∂L/∂zⱼ = (pⱼ - yⱼ)/N:      probability given, minus probability due.
#
#     One example:  z = [2, 1, 0], Y = 1.  LSE(z) = 2.408, so the loss is 2.408 - 1 = 1.408
#     Its gradient: p = [0.665, 0.245, 0.090], y = [0, 1, 0], p - y = [0.665, -0.755, 0.090]
#
# Each row adds up to 1 - 1 = 0: what the target gains, the others lose, most where p is largest. In
# section 1 all pairs that begin with h share the scores W[h]; their gradients add up to
# (N(h)·P(c|h) - N(hc))/N, which is what was claimed there. ∎


def cross_entropy_forward(logits, targets):
    """Mean nats per target: logits (..., V), ids (...) -> (loss, cache). ValueError: a bad id."""
    logits = as_scores(logits)
    if np.shape(targets) != logits.shape[:-1]:
        raise ValueError(f"targets have shape {np.shape(targets)}; expected {logits.shape[:-1]}")
    targets = check_ids("targets", targets, logits.shape[-1])
    lse = log_sum_exp(logits)  # (..., 1)
    z_target = np.take_along_axis(logits, targets[..., None], axis=-1)  # (..., 1)
    return np.mean(lse - z_target), (logits, targets)


def cross_entropy_backward(dloss, cache):
    """(p - y)/N, times dloss: the gradient in the logits, shaped like them."""
    logits, targets = cache
    p, y = softmax(logits), np.zeros_like(logits)
    np.put_along_axis(y, targets[..., None], 1, axis=-1)  # one-hot rows
    return (p - y) * float(dloss / targets.size)


# %% 5. Three layers
#
# From here on y is the output of a layer. Its backward is given dy = ∂L/∂y and must return ∂L/∂ of
# each input. It needs one rule, the chain rule: an input that touches several outputs gets the sum,
# over these outputs, of dy times the slope of the output in the input.
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


# TANH. t = (eᵃ - e⁻ᵃ)/(eᵃ + e⁻ᵃ) runs from -1 to 1. Call the numerator u, the denominator v. Then
# u′ = v and v′ = u, so by the quotient rule t′ = (u′v - uv′)/v² = (v² - u²)/v² = 1 - t². The slope
# needs only the output. It is 1 at a = 0; near t = ±1 hardly any gradient passes: saturation.


def tanh_forward(a):
    """t = tanh(a), entry by entry -> (t, cache)."""
    t = np.tanh(a)
    return t, t


def tanh_backward(dt, t):
    """da = dt·(1 - t²)."""
    return dt * (1 - t * t)


# EMBEDDING. Row i of x is the row of C that idᵢ names. Written as a product, x = E·C, where E has a
# one-hot row for each id: Eᵢᵥ = 1 if idᵢ = v, else 0. So a lookup is a linear layer, and its
# gradient is dC = Eᵀ·dx: row v of dC is the sum of dxᵢ over all i with idᵢ = v. For example,
#
#     ids = [2, 0, 2]     dx = [[1, 2], [3, 4], [5, 6]]     dC = [[3, 4], [0, 0], [6, 8]].


def embedding_forward(ids, C):
    """x = C[ids]: integer ids (...), C (V, D) -> (x (..., D), cache). ValueError: a bad id."""
    ids = check_ids("ids", ids, C.shape[0])
    return C[ids], (ids, C.shape[0])


def embedding_backward(dx, cache):
    """dx (..., D) -> dC (V, D), each row the sum of the gradients of its uses."""
    ids, vocab_size = cache
    Et = (np.arange(vocab_size)[:, None] == ids.reshape(-1)).astype(dx.dtype)  # (V, N) one-hot
    return Et @ dx.reshape(-1, dx.shape[-1])


# %% 6. How large the first weights should be
#
# All zeros is a trap. If H, d and U are 0, then h is 0, so dU = hᵀ·dz is 0; and as U is 0, so is
# dh = dz·Uᵀ, and with it dH, dd and dC. Only b would ever learn. So weights start at random; but
# how large? Take one feature before tanh, a = Σₖ xₖ·wₖ over m inputs. Draw the wₖ independently of
# each other and of x, with mean 0 and variance s². Then a has mean 0, and its variance is the mean
# of a² = Σₖ Σₗ xₖxₗwₖwₗ. There E[xₖxₗ]·E[wₖ]·E[wₗ] = 0 if k ≠ l; the terms with k = l are left:
#
#     Var(a) = E[a²] = Σₖ E[xₖ²]·E[wₖ²] = m·E[x²]·s².
#
# C is drawn with variance 1, so E[x²] = 1, and Var(a) is 1 if s² = 1/m: tanh works where it bends.
# With ten times larger weights most features are near ±1 and pass hardly any gradient; with ten
# times smaller ones, tanh is a straight line.
#
# The output is different: it should start by knowing nothing. If z ≈ 0, then p ≈ 1/V, and the
# first loss is ln V. Larger scores are confident guesses about nothing, which training must take
# back. So U is ten times smaller than 1/√(its inputs), b is 0, and another first loss is a bug.


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
    temperature = check_number("temperature", temperature, lambda t: t >= 0, "a number from 0 on")
    if top_k is not None:
        check_size("top_k", top_k)
    if top_p is not None:
        top_p = check_number("top_p", top_p, lambda share: 0 < share <= 1, "0 < top_p <= 1")
    z = as_scores(z).astype(np.float64)
    if z.ndim != 1 or not np.isfinite(z).all():
        raise ValueError(f"scores are {z}; expected one row of finite numbers")
    order = np.argsort(-z, kind="stable")  # (V,) the likeliest first
    behind = z[order] - z[order[0]]  # (V,) 0 for the likeliest, below 0 for the others
    if temperature == 0:
        kept = np.ones(1)
    else:
        with np.errstate(over="ignore"):  # a tiny temperature may send scores to -∞, rightly
            kept = softmax(behind / temperature)[:top_k]  # all, if top_k is None
    kept = kept / kept.sum()
    if top_p is not None:
        likelier = np.cumsum(kept) - kept  # what those before it add up to; 0 for the first
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
            return {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # damage shows itself in a dozen ways
        raise ValueError(f"{path} is damaged, or no model of this stage: {error}") from None


class NeuralLM:
    """The neural n-gram of Bengio et al. (2003): z = b + tanh(d + x·H)·U, x = C[context].

    params: C (V, D), H (context·D, n_hidden), d (n_hidden,), U (n_hidden, V), b (V,). symbols: None
    until you set the V characters that the ids stand for; save keeps them. ValueError: a bad size.
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
        dx = self._gradients(X, Y)[2]  # of the mean, so each example has 1/N in it
        return len(dx) * dx

    def log_likelihoods(self, X, Y):
        """ln P of each target Y (N,) after its context X (N, context): (N,), in float64."""
        X, Y = check_examples(X, Y, self.vocab_size)
        parts = []
        for i in range(0, len(Y), 4096):  # in pieces, so that memory does not grow with the text
            z = self.logits(X[i : i + 4096]).astype(np.float64)  # (n, V)
            parts.append(z[np.arange(len(z)), Y[i : i + 4096]] - log_sum_exp(z)[:, 0])
        return np.concatenate(parts)

    def loss(self, X, Y):
        """Mean nats per target: X (N, context), Y (N,)."""
        return -float(self.log_likelihoods(X, Y).mean())

    def generate(self, n, context=(), temperature=1.0, top_k=None, top_p=None, seed=None):
        """n sampled ids (n,) that continue the given ones; options as in next_symbol."""
        check_size("n", n, least=0)
        rng = np.random.default_rng(seed)
        if np.ndim(context) != 1:
            raise ValueError(f"context has shape {np.shape(context)}; expected a list of ids")
        given = check_ids("context", context, self.vocab_size).tolist() if len(context) else []
        ids = [0] * self.context + given  # a short context is filled up with id 0, the line break
        for _ in range(n):
            z = self.logits([ids[-self.context :]])[0]  # (V,)
            p = next_symbol(z, temperature, top_k, top_p)
            ids.append(int(rng.choice(self.vocab_size, p=p)))
        return np.array(ids[self.context + len(given) :], dtype=np.int64)

    def save(self, path):
        """Write params and symbols into one .npz file: whole, or not at all."""
        arrays = dict(self.params)
        if self.symbols is not None:
            if [len(symbol) for symbol in dict.fromkeys(self.symbols)] != [1] * self.vocab_size:
                raise ValueError(f"symbols are not {self.vocab_size} different characters")
            arrays["symbols"] = np.array([ord(symbol) for symbol in self.symbols])
        with open(f"{Path(path)}.tmp", "wb") as file:
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
# Against the gradient the loss falls fastest (stage 4 proves it). So a step moves every knob θ by
# θ ← θ - η·∂L/∂θ, where η is the learning rate. The gradient over all N examples costs N forward
# passes. Over a random batch of B examples it costs B, and it is right on average, because each
# example is as likely to be in it. The noise that is left shakes θ about, the more the larger η is.
# So η is large for the first half, to get far, and then shrinks in a straight line towards 0, to
# settle. Batches are cut from shuffled lists of all examples, one list (an epoch) after another.
#
# OVERFITTING. With many knobs and few examples, a network can learn the examples by heart, their
# accidents included. Two losses show it: on the training text the loss goes on falling, on a text
# that it does not train on it turns round and rises. There are three remedies. EARLY STOPPING is to
# measure the loss on a development piece, cut from the training text, and to stop where it turns.
#
# WEIGHT DECAY. To bend sharply around single examples takes large weights, so let them cost
# something: add (λ/2)·Σθ² to the loss. Its slope is λ·θ, so the step becomes
# θ ← θ - η·(∂L/∂θ + λ·θ) = (1 - η·λ)·θ - η·∂L/∂θ. Each step shrinks every weight a little, and what
# the data do not pull up again fades. (Biases bend nothing, and are spared.)
#
# DROPOUT. At every training step each hidden feature is set to 0 with probability r, and the others
# are divided by 1 - r. No feature can count on another one being there, so each must be of use by
# itself. On average a feature is r·0 + (1 - r)·h/(1 - r) = h: for predicting, all stay as they are.


def train(
    model, X, Y, steps, learning_rate=0.2, batch_size=64, seed=0, weight_decay=0.0, dropout=0.0,
    watch=None, title=None,
):  # fmt: skip
    """Plain SGD on the model's params, in place. Returns the loss of every batch: (steps,).

    watch(steps done) is called after each step, and stops the training by returning True. title:
    for the progress line; None prints none. ValueError: a bad argument, or a loss past all bounds.
    """
    check_size("steps", steps)
    check_size("batch_size", batch_size)
    learning_rate = check_number("learning_rate", learning_rate, lambda x: x > 0, "a value above 0")
    weight_decay = check_number("weight_decay", weight_decay, lambda x: x >= 0, "0 or more")
    dropout = check_number("dropout", dropout, lambda x: 0 <= x < 1, "0 <= dropout < 1")
    X, Y = check_examples(X, Y, model.vocab_size)
    rng, dtype = np.random.default_rng(seed), model.params["C"].dtype
    size = min(batch_size, len(X))
    order = np.empty(0, dtype=np.int64)  # the examples that wait for their turn
    losses, start, is_terminal = [], time.time(), title and sys.stdout.isatty()
    bound = 1000 * (1 + math.log(model.vocab_size))  # nats: no loss that can recover is as large
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
                if value.ndim == 2:  # a weight, not a bias
                    value *= 1 - rate * weight_decay
                value -= rate * grads[name]
        is_finite = all(np.isfinite(value).all() for value in model.params.values())
        if not (loss < bound and is_finite):
            tried = f"{learning_rate=} is too large, with {weight_decay=}"
            raise ValueError(f"loss {loss} at step {step + 1}: {tried}")
        losses.append(loss)
        stop = watch is not None and bool(watch(step + 1))
        last = stop or step + 1 == steps
        if title and (last or (is_terminal and step % 250 == 0)):
            line = f"   {title}: step {step + 1:,}, training loss "
            line += f"{np.mean(losses[-1000:]) / math.log(2):.3f} bits, {time.time() - start:.1f} s"
            print(f"\r{line}" if is_terminal else line, end="\n" if last else "", flush=True)
        if stop:
            break
    return np.array(losses)


# %% 9. Looking inside
#
# WHICH LETTERS ARE ALIKE? Draw the rows of C in the plane in which they are most spread out. Its
# axes are the first two right singular vectors of C minus its mean row (Eckart and Young, 1936).


def text_map(labels, C, width=72, height=17):
    """The rows of C by one-character labels, in the plane of their principal axes: a string."""
    if len(labels) != len(C) or len(C) > width * height:
        raise ValueError(f"{len(labels)} labels and {len(C)} rows for {width * height} cells")
    E = C - np.mean(C, axis=0)
    axes = np.linalg.svd(E, full_matrices=False)[2][:2]  # (2, D); (1, D) if V or D is 1
    xy = np.zeros((len(C), 2))
    xy[:, : len(axes)] = E @ axes.T
    xy -= xy.min(axis=0)
    columns, rows = (xy / np.maximum(xy.max(axis=0), 1e-12) * [width - 1, height - 1]).T
    grid = np.full((height, width), " ")
    free = list(np.ndindex(height, width))
    for label, x, y in zip(labels, columns, rows):  # a line is as high as two columns are wide
        distances = [2 * abs(i - y) + abs(j - x) for i, j in free]
        grid[free.pop(np.argmin(distances))] = label
    return "\n".join("".join(line).rstrip() for line in grid)


# ANALOGIES. "A is to a as B is to ...": if C[a] - C[A] were the step from any capital to its small
# letter, C[B] + C[a] - C[A] would lie nearest to C[b]. Two things make such tests look better than
# they are. The three given rows are left out of the search; and b may be the nearest neighbour of B
# anyway, so that the step adds nothing. So count both, beside what chance would find.


def analogies(C, pairs):
    """Over all two pairs (a, b), (c, d): how often is d found, a, b and c left out of the search?

    Returns three shares: nearest to C[c] + C[b] - C[a]; nearest to C[c]; by chance, 1/(V - 3).
    """
    pairs = check_ids("pairs", pairs, len(C))
    if len(C) < 4 or pairs.shape[1:] != (2,) or len(pairs) < 2:
        raise ValueError(f"pairs have shape {pairs.shape}, of {len(C)} rows; expected (2+, 2)")
    by_step, by_neighbour = [], []
    for (a, b), (c, d) in itertools.permutations(pairs, 2):
        for goal, found in ((C[c] + C[b] - C[a], by_step), (C[c], by_neighbour)):
            distances = np.linalg.norm(C - goal, axis=1)  # (V,)
            distances[[a, b, c]] = np.inf
            found.append(distances.argmin() == d)
    return float(np.mean(by_step)), float(np.mean(by_neighbour)), 1 / (len(C) - 3)


# WHICH PLACE OF THE CONTEXT MATTERS? input_gradients has the slope of every loss in x, a row for
# each place. The longer the row, the more a small change of the embedding there moves the loss.

# %% 10. The counts to beat
#
# A fair opponent is the best of stage 1, Kneser-Ney smoothing. It takes a discount δ off a count;
# what that frees is dealt out as the shorter context h′ predicts, h without its oldest symbol:
#
#     P(c|h) = (max(N(hc) - δ, 0) + δ·T(h)·P(c|h′)) / N(h).
#
# N(hc) is how often c came after h, and T(h) how many different symbols did. P(c|h′) is the same
# formula with another N(h′c): how many different symbols came before h′c, because what came in many
# places will sooner come in a new one (stage 1). N(h′) is the sum of these. Where h was never seen,
# P(c|h) is P(c|h′); and the empty context, which has no shorter one, falls back on 1/V.
#
# To count n-grams, number them. As digits of one number in base V they overflow 64 bits as soon as
# n·log₂ V > 63, as 7 symbols of 512 do. So take one more symbol at a time: an n-gram is its first
# symbol and the number of the rest. Sort all such pairs, the held-out ones too; number them from 0.


def tally(gram, h, rows, n_train):
    """N(hc), N(h), T(h) among the examples `rows`, for each example from place n_train on."""
    n_hc = np.bincount(gram[rows], minlength=gram.max() + 1)
    n_h = np.bincount(h[rows], minlength=h.max() + 1)
    h_of = np.zeros(len(n_hc), dtype=np.int64)
    h_of[gram] = h  # the context of each n-gram
    t_h = np.bincount(h_of[n_hc > 0], minlength=len(n_h))
    return n_hc[gram[n_train:]], n_h[h[n_train:]], t_h[h[n_train:]]


def smoothed(counts, delta, shorter):
    """The formula above: counts as tally returns them, delta (R, 1), shorter is P(c|h′): (R, M)."""
    n_hc, n_h, t_h = counts
    taken_off = np.maximum(n_hc - delta, 0)
    return np.where(n_h > 0, (taken_off + delta * t_h * shorter) / np.maximum(n_h, 1), shorter)


def count_models(X, Y, X_held, Y_held, vocab_size, discounts=(0.75,)):
    """Kneser-Ney n-grams, n = 1..context+1, counted on (X, Y), for each held-out (X_held, Y_held).

    X (N, context), Y (N,), X_held (M, context), Y_held (M,). Returns for each n: how many different
    n-grams were counted; N(hc) (M,); N(h) (M,); P of each Y_held, a row for each discount (R, M).
    """
    check_size("vocab_size", vocab_size)
    for discount in np.atleast_1d(discounts):
        check_number("discount", discount, lambda d: 0 <= d <= 1, "0 to 1")
    delta = np.reshape(discounts, (-1, 1)).astype(np.float64)  # (R, 1)
    X, Y = check_examples(X, Y, vocab_size)
    X_held, Y_held = check_examples(X_held, Y_held, vocab_size)
    context, every = X.shape[1], np.arange(len(Y))
    if vocab_size * (len(Y) + len(Y_held)) >= 2**63:
        raise ValueError(f"vocab_size is {vocab_size}; pairs of so many do not fit into 64 bits")
    contexts = np.concatenate([X, X_held])  # (N + M, context)
    gram = np.unique(np.concatenate([Y, Y_held]), return_inverse=True)[1]  # (N + M,) numbers, n = 1
    h = np.zeros_like(gram)  # (N + M,) numbers of their contexts: at first, the empty one
    shorter, models = 1 / vocab_size, []
    for n in range(1, context + 2):
        counts = tally(gram, h, every, len(Y))
        n_grams = len(np.unique(gram[every]))
        models.append((n_grams, counts[0], counts[1], smoothed(counts, delta, shorter)))
        if n <= context:
            first = contexts[:, -n]  # the symbol in front of each n-gram
            longer = np.unique(first * (gram.max() + 1) + gram, return_inverse=True)[1]
            once = np.unique(longer[every], return_index=True)[1]  # one of each (n+1)-gram
            shorter = smoothed(tally(gram, h, once, len(Y)), delta, shorter)
            h = np.unique(first * (h.max() + 1) + h, return_inverse=True)[1]
            gram = longer
    return models


# %% Demonstration

DATA = Path(__file__).resolve().parent / "data"
DISCOUNTS = (0.55, 0.65, 0.75, 0.85, 0.95, 1.0)
TIMES_SEEN = (("0", 0, 0), ("1-9", 1, 9), ("10-99", 10, 99), ("100+", 100, math.inf))
REMEDIES = {"no remedy": {}, "dropout": {"dropout": 0.5}, "weight decay": {"weight_decay": 0.001}}


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
    return 0.0 - np.log2(p).mean()  # 0.0 - 0.0 is 0.0, but -(0.0) would be printed as -0.0


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
    """All n-grams with the discount that is best from `cut` on; the best n's name and P (M,)."""
    scores = []
    for n, model in enumerate(count_models(X[:cut], Y[:cut], X[cut:], Y[cut:], V, DISCOUNTS), 1):
        scores += [(bits(p), n, discount) for p, discount in zip(model[3], DISCOUNTS)]
    _, n, discount = min(scores)
    models = count_models(X, Y, X_held, Y_held, V, (discount,))
    return models, f"{n}-gram counts, δ = {discount}", models[n - 1][3][0]


def report_scores(models, name, p_count, p_model, k):
    """The network beside the best counts, then by how often the last k symbols were seen."""
    columns = (p_count, p_model, (p_count + p_model) / 2)
    counting, network, mean = (round(bits(p), 3) for p in columns)
    for title, score in ((name, counting), ("the network", network), ("mean of the two", mean)):
        print(f"     {title:32}{score:.3f}")
    verdict = "Counting and the network are level."
    if network < counting:
        verdict = f"The network beats counting by {counting - network:.3f} bits."
    if counting < network:
        verdict = f"Counting beats the network by {network - counting:.3f} bits."
    gain = min(counting, network) - mean
    word = "better" if gain > 0 else "worse"
    print(f"   {verdict} Their mean is {abs(gain):.3f} {word} than the better one.")
    print(f"   By how often the last {k} characters occur in training:")
    print("     times seen    share   counting   network     mean")
    times_seen, ahead = models[k][2], []  # N(h), h of k symbols
    for label, low, high in TIMES_SEEN:
        rows = (times_seen >= low) & (times_seen <= high)
        if rows.any():
            counting, network, mean = (round(bits(p[rows]), 3) for p in columns)
            print(f"     {label:>10}{rows.mean():9.1%}{counting:11.3f}{network:10.3f}{mean:9.3f}")
            if network < counting:
                ahead.append(label)
    print(f"   The network is ahead where they were seen: {', '.join(ahead) or 'nowhere'}.")


def report_analogies(model, ids):
    """Section 9: the step from capital to small letters, for those seen 30 times or more."""
    often = np.bincount(ids, minlength=model.vocab_size) >= 30
    id_of = {symbol: i for i, symbol in enumerate(model.symbols) if often[i]}
    capitals = [symbol for symbol in id_of if symbol.lower() != symbol and symbol.lower() in id_of]
    pairs = [(id_of[symbol], id_of[symbol.lower()]) for symbol in capitals]
    if len(pairs) < 2 or model.vocab_size < 4:
        return
    step, neighbour, chance = analogies(model.params["C"], pairs)
    verdict = "one" if step > 2 * max(neighbour, chance) else "none"
    print(f"   A is to a as B is to b: the step from A to a finds b in {step:.1%}, no", end=" ")
    print(f"step in {neighbour:.1%},\n   chance in {chance:.1%}. A common step should", end=" ")
    print(f"find b twice as often as both of these: there is {verdict}.")


def name_examples(names, symbols, context):
    """X (N, context), Y (N,) of the names: `context` line breaks start each, and one ends it."""
    padded = ["\n" * context + name + "\n" for name in names]
    X, Y = zip(*(make_examples(encode(name, symbols)[0], context) for name in padded))
    return np.concatenate(X), np.concatenate(Y)


def follow_training(model, seen, dev, steps, **options):
    """Train on the examples `seen`; about eight times (bits on dev, steps done, bits on seen)."""
    curve = []

    def watch(done):
        if done % max(1, steps // 8) == 0 or done == steps:
            curve.append((model.loss(*dev) / math.log(2), done, model.loss(*seen) / math.log(2)))

    train(model, *seen, steps, watch=watch, **options)
    return curve


def learn_names(names, context, steps, seed):
    """Overfitting and its remedies; then the best one's model, on all but a held-out tenth."""
    names = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    cut = int(0.9 * len(names))
    if cut < 10:
        raise ValueError(f"there are {len(names)} names; expected at least 12 different ones")
    symbols = encode("\n" + "".join(names))[1]
    X, Y = name_examples(names[:cut], symbols, context)
    X_held, Y_held = name_examples(names[cut:], symbols, context)
    dev_start = len(name_examples(names[: int(0.9 * cut)], symbols, context)[1])
    seen, dev = (X[:dev_start], Y[:dev_start]), (X[dev_start:], Y[dev_start:])
    options = {"steps": steps, "batch_size": 32, "seed": seed}
    curves = {}
    for remedy, settings in REMEDIES.items():
        model = NeuralLM(len(symbols), context, 16, 128, seed)
        curves[remedy] = follow_training(model, seen, dev, title=remedy, **options, **settings)
    print("   Bits per character, training part / development piece, by remedy:")
    print("       steps" + "".join(f"{remedy:>18}" for remedy in REMEDIES))
    for row in zip(*curves.values()):
        cells = [f"{seen_bits:10.3f} /{dev_bits:6.3f}" for dev_bits, _, seen_bits in row]
        print(f"   {row[0][1]:9,}" + "".join(cells))
    cost = curves["no remedy"][-1][0] - min(curves["no remedy"])[0]
    remedy = min(curves, key=lambda name: min(curves[name]))  # the lowest of all on dev
    _, stop, _ = min(curves[remedy])
    print(f"   Without a remedy, not stopping at the best step costs {cost:.3f} bits. Best is")
    print(f"   {remedy}, {stop:,} steps. So again, on all of the training part; then held out:")
    model = NeuralLM(len(symbols), context, 16, 128, seed)
    model.symbols = symbols
    run = {"title": "names", "watch": lambda done: done == stop}
    train(model, X, Y, **run, **options, **REMEDIES[remedy])
    p_model = np.exp(model.log_likelihoods(X_held, Y_held))
    counts = best_counts(X, Y, dev_start, X_held, Y_held, len(symbols))
    report_scores(*counts, p_model, min(3, context))
    return model


def write_names(model, names, prompt, length, seed):
    """New names, each from the start; says how many are in the file."""
    rng, given = np.random.default_rng(seed), encode(prompt, model.symbols)[0]
    known, written = set(names), []
    for _ in range(200):
        ids = model.generate(length, context=given, temperature=0.8, seed=rng)
        written.append((prompt + "".join(model.symbols[i] for i in ids)).split("\n")[0])
    marked = [name + "*" if name in known else name for name in written]
    print(f"   {len(written)} names written at temperature 0.8, ", end="")
    print(f"{sum(name in known for name in written)} of them in the file (*); the first:")
    for i in range(0, 24, 6):
        print("     " + "".join(f"{name:15}" for name in marked[i : i + 6]).rstrip())


def read_names(path):
    """The different lines of a file, without empty ones; "-sig" skips a byte-order mark."""
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def report(args):
    """Everything in the order of the sections; the last line is the ladder's."""
    text, names = Path(args.text).read_text(encoding="utf-8-sig"), read_names(DATA / "names.txt")
    if args.fast:
        text, names = text[:40000], names[:600]
    ids, symbols = encode(text)
    cut, V, context = int(0.9 * len(ids)), len(symbols), args.context or 5
    if cut < 100 + context:
        raise ValueError(f"the text has {len(text)} characters, too few for context {context}")
    prompt = encode(args.prompt, symbols)[0]  # a strange character is refused before training
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
        print(f"  {n:2}    10^{n * math.log10(V):<4.1f}", end=" ")
        print(f"{grams:11,} {np.mean(n_hc == 0):20.2%} {bits(p):11.3f}")
    model = NeuralLM(V, context, 24, 64 if args.fast else 512, args.seed)
    model.symbols = symbols
    print(f"\n3. {model!r}; held out:")
    steps = args.steps or (1000 if args.fast else 24000)
    train(model, X, Y, steps, seed=args.seed, title="stories")
    p_model = np.exp(model.log_likelihoods(X_held, Y_held))  # (M,): each held-out symbol once
    report_scores(models, *best, p_model, min(4, context))
    slopes = np.linalg.norm(model.input_gradients(X_held[:4000], Y_held[:4000]), axis=2)
    slopes = slopes.mean(axis=0)[::-1]  # (context,)
    print("   Slope of the loss at each place of the context, the last first (the largest: 1):")
    print("     " + "".join(f"{slope:7.2f}" for slope in slopes / max(slopes.max(), 1e-30)))
    report_analogies(model, ids[:cut])
    print("\n4. Names")
    names_model = learn_names(names, 6, 400 if args.fast else 8000, args.seed)
    letters = [i for i, symbol in enumerate(names_model.symbols) if symbol.isalpha()]
    print("   The letters by their rows of C, in the plane of section 9:")
    print(text_map([names_model.symbols[i] for i in letters], names_model.params["C"][letters]))
    write_names(names_model, names, "", 20, args.seed)
    print("\n5. The stories again, written at temperature 0.7")
    sample = model.generate(args.length or 480, prompt, temperature=0.7, seed=args.seed)
    for line in "".join(symbols[i] for i in [*prompt, *sample]).split("\n"):
        print(textwrap.fill(line, 90, initial_indent="   ", subsequent_indent="   "))
    nats = bits(p_model) * math.log(2)
    print(f"\nheld-out: {nats:.3f} nats/char | {bits(p_model):.3f} bits/char |", end=" ")
    print(f"perplexity {math.exp(nats):.2f}   (stage 3, neural n-gram, context {context})")


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
        if args.context is not None and args.context > 64:  # the counts would take all memory
            raise ValueError(f"--context is {args.context}; expected at most 64")
        if args.names:
            names, steps = read_names(args.names), args.steps or (400 if args.fast else 8000)
            encode(args.prompt, encode("\n" + "".join(names))[1])  # refused before training
            model = learn_names(names, args.context or 6, steps, args.seed)
            write_names(model, names, args.prompt, args.length or 20, args.seed)
        else:
            report(args)
        sys.stdout.flush()
    except (OSError, ValueError, KeyboardInterrupt) as error:
        try:  # forget what stdout cannot take, or Python's own flush at the end would fail again
            sys.stdout.flush()
        except OSError:  # a closed pipe, a full disk
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, KeyboardInterrupt):
            parser.exit(130, "\n")
        if not isinstance(error, BrokenPipeError):  # its reader has only seen enough
            parser.error(str(error))


# %% What to take away
# - The loss of a row of scores is LSE(z) - z[Y], and its gradient p - y: given minus due.
# - One layer on a one-hot context is a table. What generalises is that contexts share weights.
# - First weights of variance 1/(number of inputs), a small last layer: the first loss is ln V.
# - With few data, decay weights or drop features, stop at the turn, and beat the best counts.

# %% Common mistakes
# 1. `dC[ids] += dx` keeps one of a symbol's gradients; training goes badly. See embedding_backward.
# 2. np.log(softmax(z)): an infinite loss once a score trails by 104 in float32. See log_sum_exp.
# 3. Examples off by one. With its target inside, a context gives a loss near 0. See make_examples.
# 4. First weights of 0: only b learns. Too large: the first loss is far above ln V (init_params).
# 5. Holding out random windows: they overlap others in training and score too well. See `cut`.

# %% Exercises
# They are in exercises/stage03.py, and `python exercises` checks them.
#  1. ★ (by hand) One step from nothing
#  2. ★ (by hand) How many numbers?
#  3. ★ (derive) Truth in shares
#  4. ★★ (find the bug) Right, until two rows meet
#  5. ★★ (implement) Straight to the scores
#  6. ★★ (explain) Seen most, and predicted worse
#  7. ★★ (measure) A place shuffled
#  8. ★★ (implement) How far to trust the network
#  9. ★★★ (derive) What dropout costs
# 10. ★ (research) One table for two purposes
# 11. ★★★ (project) Names, better than one network

# %% Where this leads
# Each place of the window has its own rows of H: what is learned about a letter three places back
# must be learned again for four. Stage 5 attends instead; but first, stage 4: better ways down.

if __name__ == "__main__":
    main()
