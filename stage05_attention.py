# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 5: attend. How can a model look back at any earlier token and choose which one matters?

The answer is a dictionary made soft. Every token asks a question (a query), wears a label (a key)
and holds something to hand over (a value). It receives the average of all values, weighted by how
well their keys fit its query. That sentence does not say how many tokens there are, so one set of
weights serves texts of any length; and all of it has a derivative, so a model can learn what to
ask, how to label and what to hand over. You need matrix products and the chain rule (stage 2).

     1 one query, three keys    2 why not recurrence    3 soft lookup    4 why √D    5 attention
     6 positions    7 longer than trained    8 heads, cache, window    9 tiles
    10 two layers learn to recall    11 what single heads do

Run `python stage05_attention.py [--fast] [--seed N]`: the report, well under a minute.
It rests on: Bahdanau, Cho & Bengio 2014, Neural Machine Translation by Jointly Learning to Align
and Translate; Vaswani et al. 2017, Attention Is All You Need; Su et al. 2021, RoFormer; Olsson et
al. 2022, In-context Learning and Induction Heads; Dao et al. 2022, FlashAttention.
"""

import argparse
import math
import os
import sys
import tracemalloc

import numpy as np

# %% 1. One query, three keys
# Somebody reads "Mia saw Tom, and she" and wonders who "she" is. Each earlier word wears a label of
# two numbers, its key: how female it is (male counts as negative), and how much of an action. The
# query of "she" is [2, 0]: it asks for someone female and does not care about actions. The larger
# the dot product of query and key, the better they fit. Each word hands over a value, here [1, 0]
# for Mia, [0, 1] for Tom, and nothing for saw.


def attend(q, keys, values):
    """Weights (N,), and the mixture y (C,) of values (N, C), for a query q (D,), keys (N, D)."""
    scores = keys @ q  # (N,) how well each key fits
    weights = np.exp(scores) / np.exp(scores).sum()  # (N,) positive, adding up to 1
    return weights, weights @ values


def attend_backward(dy, weights, q, keys, values):
    """dq (D,), dkeys (N, D) and dvalues (N, C) from dy (C,); dx means ∂L/∂x for a loss L."""
    dweights = values @ dy  # (N,) what each weight is worth
    dscores = weights * (dweights - weights @ dweights)  # (N,)
    return dscores @ keys, np.outer(dscores, q), np.outer(weights, dy)


#              key        value      score of q = [2, 0]      weight
#     Mia      [ 1, 0]    [1, 0]      2                       exp(2)/8.52  = 0.867
#     saw      [ 0, 1]    [0, 0]      0                       exp(0)/8.52  = 0.117
#     Tom      [-1, 0]    [0, 1]     -2                       exp(-2)/8.52 = 0.016
#     y = 0.867·[1, 0] + 0.117·[0, 0] + 0.016·[0, 1] = [0.867, 0.016]: Mia, almost surely.
#
# Backward. Suppose the loss wants more of y₀, so that dy = [1, 0]. A weight is worth what its value
# adds: dweights = [1, 0, 0]. But the weights add up to 1, so one can only grow at the cost of the
# others. What counts is how far it lies above the average, Σ weight·dweight = 0.867 (section 3
# proves it):
#     dscores = weights·(dweights - 0.867) = [0.115, -0.102, -0.014]
#     dq = Σ dscore·key = [0.129, -0.102]: ask for female more, and for actions less.
#     dkeys = dscore·q, one row a word: [0.231, 0], [-0.203, 0], [-0.028, 0].
#     dvalues = weight·dy, one row a word: [0.867, 0], [0.117, 0], [0.016, 0].
#
# Two heads. Let "she" also ask what happened, with the query [0, 2]. Both questions in one query,
# [2, 2], have the scores 2, 2, -2 and the weights 0.495, 0.495, 0.009: a blend of Mia and saw in
# which nobody can tell the one from the other. So ask twice. Each head owns half of every query,
# key and value; the two answers are laid side by side, and one more matrix Wo mixes them.


def two_heads(q, keys, values, Wo):
    """y = [answer of head 1, answer of head 2] Wo; the first half of each row is head 1's."""
    q1, q2 = np.split(q, 2)
    keys1, keys2 = np.split(keys, 2, axis=1)
    values1, values2 = np.split(values, 2, axis=1)
    _, y1 = attend(q1, keys1, values1)
    _, y2 = attend(q2, keys2, values2)
    return np.concatenate([y1, y2]) @ Wo


#     head 1, with the keys, query and values of the table: y1 = [0.867, 0.016]
#     head 2, with the same keys, q = [0, 2], and values [0, 0], [1, 0], [0, 0]:
#         scores [0, 2, 0]    weights [0.107, 0.787, 0.107]    y2 = [0.787, 0]
#     Wo = [[1], [0], [1], [0]] adds "a woman was found" to "an action was found": y = 1.654
# Backward with dy = [1]: Wo hands back Wo·dy = [1, 0, 1, 0], of which each head gets its own half,
# [1, 0]. For head 1 that is the backward computed above. Head 2 has dweights [0, 1, 0], hence
# dscores = [-0.084, 0.168, -0.084] and dq = [0, 0.168]: ask for actions more, and leave "female"
# alone, as Mia and Tom pull in opposite directions. The rest of the file is this function for many
# queries at once, with a softmax that cannot overflow, a way to say who stands where, and speed.

# %% 2. Why recurrence was not enough
# A recurrent network reads as we do, word after word: h_t = f(h_{t-1}, x_t). All it knows is in its
# state h, C numbers. The translation programs of 2014 put a sentence into one such state and
# wrote the translation from it; the longer the sentence, the worse. Bahdanau let the writer look
# back at all states with weights like those above, and in 2017 the recurrence itself was dropped.
#     T tokens, one layer  multiplications  steps in a row    from the first token to the last
#     recurrence           2TC²             T                 T - 1 steps
#     window of N          NTC²             1                 (T - 1)/(N - 1) layers
#     attention            4TC² + 2T²C      1                 one layer
#
# The path matters because every step multiplies the gradient by one more derivative. Where each is
# about 0.9, a thousand tokens leave 0.9⁹⁹⁹ = 1.9e-46 of it, which float32 rounds to 0; where it is
# 1.1, they make 2.2e41 of it, more than float32 can hold. The gates of an LSTM (Hochreiter &
# Schmidhuber 1997) hold the factor near 1, but two problems remain. T steps in a row leave a
# machine idle that could do a thousand at once: with 512 channels, attention multiplies four times
# as much as the recurrence, in one step instead of a thousand. And a state of fixed size forgets.
#
# The window is stage 3's. Each of its N places has rows of its own in the weight matrix, so what it
# learns of a name three tokens back it must learn again for four. Attention pays for its freedom
# with T², as every token looks at every other; sections 8 and 9 are about that.
#
# From here on there are B sequences, Tq queries and Tk keys in each (T where both are equal), C
# channels, H heads of size D, and Hkv heads of keys and values. A layer is a pair of functions,
# name_forward(x) -> (y, cache) and name_backward(dy, cache) -> dx. The cache holds what the
# backward must remember (section 8's KV cache is another thing).

# %% 3. Soft lookup
# A Python dictionary returns the value whose key is equal to the query: out = Σⱼ 1[q = kⱼ] vⱼ,
# where 1[...] is 1 if what it holds is true, else 0. This jump has the derivative 0 wherever it has
# one, so nothing can be learned from it. Replace "equal" by "similar", the dot product sⱼ = q·kⱼ,
# and the jump by a smooth function whose values are positive and add up to one, the softmax:
#     pⱼ = exp(sⱼ) / Σₘ exp(sₘ)          out = Σⱼ pⱼ vⱼ
# The dictionary is still inside. Multiply all scores by β: then pⱼ/pₘ = exp(β(sⱼ - sₘ)), and as β
# grows the largest score takes all the weight. Adding c to every score multiplies numerator and
# denominator by exp(c) and does not change p. So subtract the maximum, and nothing overflows.
#
# A score of -∞ has weight 0: this key must not be seen. A row of nothing but -∞ would be 0/0; we
# give it weights of 0, so that a query with nothing to see gets zeros, not NaN. In the code the
# maximum starts at the lowest finite number instead of -∞. The sum of exponentials is then 0 for
# such a row, and at least 1 for any other, as the maximum itself adds exp(0) = 1.
#
# Backward. With Z = Σₘ exp(sₘ), the quotient rule gives
#     ∂pᵢ/∂sⱼ = (1[i=j] exp(sᵢ) Z - exp(sᵢ) exp(sⱼ)) / Z² = pᵢ (1[i=j] - pⱼ)
#     dsⱼ = Σᵢ dpᵢ ∂pᵢ/∂sⱼ = pⱼ (dpⱼ - Σᵢ pᵢ dpᵢ):
# the weight, times what it is worth beyond what the weights are worth on average.


def check_count(name, value, lowest=1):
    """value as an int; ValueError unless it is a whole number, and at least the lowest."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < lowest:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {lowest}")
    return int(value)  # an np.uint8 would wrap at 256, and below 0


def check_number(name, value, above=-math.inf):
    """value as a float; ValueError unless it is a finite number, and above the bound."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not above < value < math.inf:
        least = f" above {above:g}" if above > -math.inf else ""
        raise ValueError(f"{name} is {value!r}; expected a finite number{least}")
    return float(value)


def as_floats(name, x):
    """x as an array; integers become float64. ValueError for other things than numbers, and for
    float16, in which a score above 65,504 would overflow."""
    x = np.asarray(x)
    if x.dtype.kind in "iu":
        x = x.astype(np.float64)
    if x.dtype.kind != "f" or x.dtype.itemsize < 4:
        raise ValueError(f"{name} holds {x.dtype}; expected float32, float64 or integers")
    return x


def as_gradient(name, given, like):
    """given in the dtype of `like`; ValueError unless it has its shape: NumPy would repeat it."""
    if np.shape(given) != like.shape:
        raise ValueError(f"{name} has shape {np.shape(given)}; expected {like.shape}")
    return as_floats(name, given).astype(like.dtype, copy=False)


def softmax_forward(s):
    """Rows of scores (..., N) to weights (..., N) that sum to 1; rows of nothing but -inf to 0."""
    s = as_floats("scores", s)
    if s.ndim == 0:
        raise ValueError(f"scores are the number {s}; expected at least one row (..., N)")
    p = s - s.max(axis=-1, keepdims=True, initial=np.finfo(s.dtype).min)
    np.exp(p, out=p)
    Z = p.sum(axis=-1, keepdims=True)  # (..., 1)
    p /= np.maximum(Z, 1)
    return p, p


def softmax_backward(dp, cache):
    """ds (..., N) from dp (..., N)."""
    p = cache
    dp = as_gradient("dp", dp, p)
    return p * (dp - np.sum(p * dp, axis=-1, keepdims=True))


# %% 4. Why the scores are divided by √D
# Let q and k have D independent entries of mean 0 and variance 1, as at initialisation. The mean of
# a product of independent numbers is the product of their means, so for q·k = Σ_d q_d k_d
#     E[q_d k_d] = E[q_d] E[k_d] = 0,  hence  E[q·k] = 0
#     E[(q_d k_d)²] = E[q_d²] E[k_d²] = 1, and for d ≠ e  E[q_d k_d q_e k_e] = 0·0·0·0,
#     hence  Var(q·k) = E[(Σ_d q_d k_d)²] = Σ_d 1 = D.
# So scores spread like √D, by ±8 at D = 64. As exp(8) is about 3,000, most queries give most of
# their weight to one key before training has begun, and are hard to teach otherwise: by section 3
# the softmax has the derivatives J = diag(p) - p pᵀ, and their trace, Σᵢ pᵢ(1 - pᵢ) = 1 - Σᵢ pᵢ²,
# measures how much gradient passes. As q·k/√D has variance D/D = 1 for every D, that is what we
# use. With 64 random keys the function below then finds 0.96, whatever D is; without the division,
# 0.30 at D = 64 and 0.15 at D = 256. Such a model still learns, only slower.


def scale_statistics(D, scale, rng, n_keys=64, n_queries=512):
    """(variance of the scores, trace of the softmax's derivatives) for random queries and keys."""
    D, scale = check_count("D", D), check_number("scale", scale)
    q = rng.normal(size=(n_queries, 1, D))
    k = rng.normal(size=(n_queries, D, n_keys))  # each query has keys of its own
    s = scale * (q @ k)[:, 0]  # (n_queries, n_keys)
    p, _ = softmax_forward(s)
    return float(s.var()), float(1 - np.sum(p * p, axis=-1).mean())


# %% 5. Attention and its backward
# All queries at once, with a scale α = 1/√D and a mask mᵢⱼ, 0 where query i may see key j, or -∞:
#     sᵢⱼ = α qᵢ·kⱼ + mᵢⱼ        pᵢ = softmax(sᵢ)        oᵢ = Σⱼ pᵢⱼ vⱼ
# Self-attention takes q, k and v from one sequence; cross-attention takes q from one (a translation
# being written), k and v from another (the sentence to translate). The formula does not care.
#
# The causal mask. Whoever predicts the next token must not see it. The queries are the LAST Tq of
# the Tk positions: all of them in training, only the newest when a model writes. So query i stands
# at i + Tk - Tq and may look at keys up to there. The mask must be -∞, and come before the softmax.
# A score set to 0 would still leave exp(0) = 1, the weight of an ordinary key. A weight set to 0
# after the softmax would leave the future in the denominator Σⱼ exp(sᵢⱼ), and a row's sum, by as
# much as it lacks of 1, would tell what comes next.
#
# Backward, from do = ∂L/∂o. Each line asks: where does this variable enter, with which factor?
#     vⱼ enters oᵢ times pᵢⱼ:                     dvⱼ = Σᵢ pᵢⱼ doᵢ            dv = pᵀ do
#     pᵢⱼ enters oᵢ times vⱼ:                     dpᵢⱼ = doᵢ·vⱼ               dp = do vᵀ
#     softmax, row by row (section 3):            dsᵢⱼ = pᵢⱼ (dpᵢⱼ - Σₘ pᵢₘ dpᵢₘ)
#     qᵢ enters sᵢⱼ times αkⱼ, kⱼ times αqᵢ:      dqᵢ = α Σⱼ dsᵢⱼ kⱼ           dkⱼ = α Σᵢ dsᵢⱼ qᵢ
# With one query these are the lines of attend_backward.
#
# Shared heads. With fewer key heads than query heads (section 8 says why), G = H/Hkv query heads in
# a row share one. A key does not mind how many queries look at it, so lay the G heads end to end,
# as G·Tq queries of one head. The products dsᵀ q and pᵀ do then add up the group's dk and dv, too.


def grouped(x, Hkv):
    """(B, H, T, D) -> (B, Hkv, G·T, D): the query heads that share a key head, end to end."""
    B, H, T, D = x.shape
    return x.reshape(B, Hkv, H // Hkv * T, D)


def check_qkv(q, k, v, causal, scale):
    """q, k, v in one dtype, and the scale; ValueError if they do not fit together."""
    if not isinstance(causal, (bool, np.bool_)):
        raise ValueError(f"causal is {causal!r}; expected True or False")
    q, k, v = as_floats("q", q), as_floats("k", k), as_floats("v", v)
    fit = q.ndim == k.ndim == 4 and k.shape == v.shape
    fit = fit and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3] > 0
    if not fit or k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        expected = "q (B, H, Tq, D), k and v (B, Hkv, Tk, D), Hkv dividing H"
        raise ValueError(f"q {q.shape}, k {k.shape}, v {v.shape} do not fit; expected {expected}")
    dtype = np.result_type(q, k, v)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else check_number("scale", scale)
    q, k, v = (x.astype(dtype, copy=False) for x in (q, k, v))
    return q, k, v, scale


def check_fits(name, x, shape):
    """ValueError unless NumPy can repeat (broadcast) the array x to this shape."""
    try:
        fits = np.broadcast_shapes(x.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name} has shape {x.shape}; expected one that fits {shape}")


def sliding_window_mask(Tq, Tk, window=None):
    """Boolean (Tq, Tk): each of the last Tq of Tk positions sees the last `window` up to itself."""
    Tq, Tk = check_count("Tq", Tq, 0), check_count("Tk", Tk, 0)
    distance = np.arange(Tk - Tq, Tk)[:, None] - np.arange(Tk)  # (Tq, Tk), negative in the future
    if window is None:  # the causal mask
        return distance >= 0
    return (distance >= 0) & (distance < check_count("window", window))


def attention_forward(q, k, v, causal=False, mask=None, scale=None):
    """Scaled dot-product attention (Vaswani et al. 2017): out (B, H, Tq, D) and the cache.

    q (B, H, Tq, D), k and v (B, Hkv, Tk, D), Hkv dividing H. causal: the queries are the last Tq of
    Tk positions and see nothing later than themselves. mask, broadcastable to (B, H, Tq, Tk):
    boolean (True = may attend) or floating (added to the scaled scores, below +inf); with causal,
    both apply. scale: None for 1/√D. A query that may see nothing gets zeros and no gradient.
    """
    q, k, v, scale = check_qkv(q, k, v, causal, scale)
    Hkv, Tq, Tk = k.shape[1], q.shape[2], k.shape[2]
    s = (grouped(q, Hkv) @ k.swapaxes(-1, -2)).reshape(*q.shape[:3], Tk)  # (B, H, Tq, Tk)
    s *= s.dtype.type(scale)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype.kind not in "bf" or not np.all(mask < np.inf):
            raise ValueError(f"mask of dtype {mask.dtype}; expected booleans, or floats below +inf")
        check_fits("mask", mask, s.shape)
        if mask.dtype.kind == "b":
            np.copyto(s, -np.inf, where=~mask)
        else:
            s += mask
    if causal:
        np.copyto(s, -np.inf, where=~sliding_window_mask(Tq, Tk))
    p, _ = softmax_forward(s)
    out = (grouped(p, Hkv) @ v).reshape(q.shape)
    return out, (q, k, v, p, scale)


def attention_backward(dout, cache):
    """dq (B, H, Tq, D), dk and dv (B, Hkv, Tk, D) from dout (B, H, Tq, D)."""
    q, k, v, p, scale = cache
    Hkv = k.shape[1]
    do = grouped(as_gradient("dout", dout, q), Hkv)  # (B, Hkv, G·Tq, D)
    p = grouped(p, Hkv)  # (B, Hkv, G·Tq, Tk)
    dv = p.swapaxes(-1, -2) @ do
    ds = softmax_backward(do @ v.swapaxes(-1, -2), p)
    ds *= ds.dtype.type(scale)
    dq = (ds @ k).reshape(q.shape)
    dk = ds.swapaxes(-1, -2) @ grouped(q, Hkv)
    return dq, dk, dv


# %% 6. Positions: putting order back
# Attention alone cannot tell "dog bites man" from "man bites dog". Let the matrix Π reorder the
# rows of X, and Q = XW_q and so on. The scores S = αQKᵀ become α(ΠQ)(ΠK)ᵀ = ΠSΠᵀ; the softmax works
# row by row and in any order, so P becomes ΠPΠᵀ; and, as ΠᵀΠ = I, the output is
#     (ΠPΠᵀ)(ΠV) = ΠP(ΠᵀΠ)V = Π(PV):
# the same vectors, in the new order. The causal mask breaks that symmetry, but says only what is
# earlier, never how much earlier. There are four classic ways to say where a token stands.
#
# 1. Learned: a table with one row per position (GPT-2), and none beyond the longest training text.
# 2. Sinusoidal: add to each token the sines and cosines of its position at C/2 speeds.
# 3. ALiBi: subtract from each score a penalty that grows with distance, μ|i - j|, with one slope μ
#    a head: some heads see far, some near (Press et al. 2021).
# 4. Rotary (RoPE), today the usual one: turn the queries and keys themselves, like clock hands.
#    R_t turns the pair of numbers x[i], x[i + D/2] by the angle tθᵢ, where θᵢ = base^(-2i/D):
#        y[i]       = x[i] cos tθᵢ - x[i + D/2] sin tθᵢ
#        y[i + D/2] = x[i] sin tθᵢ + x[i + D/2] cos tθᵢ
#    Rotations add up, R_m R_n = R_{m+n}, and their transpose undoes them, R_mᵀ = R_{-m}. Hence
#        (R_m q)·(R_n k) = qᵀ R_mᵀ R_n k = qᵀ R_{n-m} k:
#    the score depends on the offset n - m alone. Values are not turned: position decides who is
#    heard, not what is said. The backward of y = R_t x is dx = R_tᵀ dy = R_{-t} dy. (What forms a
#    pair is a convention: halves here and in Llama on Hugging Face, neighbours in the paper.)


def rope_frequencies(D, base=10000.0):
    """(D/2,) θᵢ in radians a position, from 1 down to nearly 1/base; D even."""
    D = check_count("D", D, 2)
    if D % 2:
        raise ValueError(f"D is {D}; expected an even number")
    return check_number("base", base, above=0) ** (-np.arange(0, D, 2) / D)


def rope_forward(x, positions, frequencies=None):
    """Rotary positions, half-split pairs (Su et al. 2021): y like x (..., T, D), and the cache.

    positions: (T,), or what broadcasts to (..., T). frequencies: None for rope_frequencies(D).
    """
    x, positions = as_floats("x", x), as_floats("positions", positions)
    D = x.shape[-1] if x.ndim else 0
    frequencies = rope_frequencies(D) if frequencies is None else frequencies
    frequencies = as_floats("frequencies", frequencies)
    if 2 * frequencies.size != D or frequencies.ndim != 1:
        raise ValueError(f"frequencies {frequencies.shape} for D = {D}; expected ({D / 2:g},)")
    check_fits("positions", positions, x.shape[:-1])
    angle = positions[..., None].astype(np.float64) * frequencies  # (..., T, D/2)
    if not np.isfinite(angle).all():
        raise ValueError("positions or frequencies are not finite; expected finite numbers")
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    a, b = x[..., : D // 2], x[..., D // 2 :]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1), (positions, frequencies)


def rope_backward(dy, cache):
    """dx like dy (..., T, D): the same rotation the other way round."""
    positions, frequencies = cache
    return rope_forward(dy, -positions, frequencies)[0]


# %% 7. Longer than trained: scaling the rotations
# In a training text of L tokens, pair i turns Lθᵢ/2π times. A pair that went round often has shown
# the model all of its angles. One that did not get round once will show new ones in a text F times
# as long, angles that no weight was trained for. Three rules slow the rotations down to make F·L
# tokens fit. With D = 8, base = 10000, L = 2048 and F = 4 (factor in the code):
#     θᵢ       turns in L    linear      ntk        llama3
#     1        326           0.25        1          1
#     0.1      32.6          0.025       0.0630     0.1
#     0.01     3.26          0.0025      0.00397    0.00815
#     0.001    0.326         0.00025     0.00025    0.00025
#
# - linear, or position interpolation (Chen et al. 2023): θᵢ/F, as if position m were m/F. No angle
#   is new, but the fast pairs, which tell neighbours apart, now do so F times worse.
# - ntk (bloc97 2023, in a forum): leave the fastest pair alone, divide the slowest by F, and the
#   others by what lies between in equal ratios: pair i of n = D/2 by F^(i/(n - 1)). Since i/(n - 1)
#   = 2i/(D - 2), this is the same as another base, base·F^(D/(D-2)).
# - llama3 (Llama 3.1, 2024, after the parts of YaRN, Peng et al. 2023) decides pair by pair. A pair
#   that turned more than 4 times in L is left alone, one that did not get round once is divided by
#   F, and those between get a mixture: t parts of θᵢ, 1 - t of θᵢ/F, with t = (turns - 1)/(4 - 1).


def scaled_frequencies(frequencies, factor, rule, trained_length=None, low=1.0, high=4.0):
    """(D/2,) rotations for texts `factor` times as long; D >= 4. rule: linear, ntk or llama3. For
    llama3, pairs of at most `low` turns in trained_length are slowed, of `high` left alone."""
    frequencies = as_floats("frequencies", frequencies)
    factor = check_number("factor", factor, above=0)
    n = frequencies.size
    if frequencies.shape != (n,) or n < 2:
        raise ValueError(f"frequencies have shape {frequencies.shape}; expected (D/2,), D >= 4")
    if rule == "linear":
        return frequencies / factor
    if rule == "ntk":
        return frequencies / factor ** (np.arange(n) / (n - 1))
    if rule != "llama3":
        raise ValueError(f"rule is {rule!r}; expected linear, ntk or llama3")
    low, high = check_number("low", low), check_number("high", high, above=low)
    turns = check_count("trained_length", trained_length) * frequencies / (2 * math.pi)  # (D/2,)
    t = np.clip((turns - low) / (high - low), 0, 1)  # 0: slow it down, 1: leave it alone
    return (1 - t) * frequencies / factor + t * frequencies


# %% 8. Heads, and what to remember
# Section 1 split the channels between two heads. H heads of size D = C/H work in the same way, and
# cost no more than one: all their scores take H·T²D = T²C multiplications.
#
# The KV cache. A model that writes gets its tokens one at a time. The key and value of token j are
# functions of its own input, which under a causal mask does not depend on what comes later: compute
# them once and keep them. The token at T then costs one row of every product, about 4C² + 2TC
# multiplications; without a cache, T rows are computed and T - 1 of them thrown away.
#
# What limits writing is then reading that cache, 2·Hkv·D numbers a token and layer. Three cures:
# - Shared heads. Hkv = H is multi-head attention, Hkv = 1 multi-query (Shazeer 2019), anything
#   between grouped-query attention (Ainslie et al. 2023).
# - Latent heads (MLA, DeepSeek-V2 2024): cache one short vector a token, c = x W_c, of which each
#   head makes its key c W_k and value c W_v, or looks at c itself: q·(c W_k) = (q W_kᵀ)·c.
# - A sliding window. A query sees w positions, its own included, and the cache holds w - 1. Each
#   layer hands on what it saw, so L layers reach L(w - 1) back.


def split_heads(x, n_head):
    """(B, T, n_head·D) -> (B, n_head, T, D), a view."""
    B, T, C = x.shape
    return x.reshape(B, T, n_head, C // n_head).swapaxes(1, 2)


def merge_heads(x):
    """(B, n_head, T, D) -> (B, T, n_head·D)."""
    B, H, T, D = x.shape
    return x.swapaxes(1, 2).reshape(B, T, H * D)


def matmul(x, W):
    """x (B, T, I) times W (I, O) as one product of B·T rows, in the dtype of x."""
    return np.tensordot(x, W.astype(x.dtype, copy=False), axes=1)


def weight_grad(x, dy):
    """dW = xᵀ dy (I, O) for y = xW, from x (B, T, I) and dy (B, T, O): a sum over all B·T rows."""
    return np.tensordot(x, dy, axes=((0, 1), (0, 1)))


def seen_tokens(kv_cache):
    """How many tokens a KV cache has seen; ValueError if it is not {} or what step returned."""
    if not isinstance(kv_cache, dict) or kv_cache and kv_cache.keys() != {"k", "v", "length"}:
        found = str(kv_cache)[:60]
        raise ValueError(f"kv_cache is {found}; expected None, or k, v, length as step gave them")
    return check_count("kv_cache's length", kv_cache.get("length", 0), 0)


class MultiHeadAttention:
    """y = [head 1, ..., head H] Wo, with n_kv_head heads of keys and values (None: as many).

    params, float64: Wq and Wo (C, C), Wk and Wv (C, n_kv_head·D), C = n_embd, D = n_embd/n_head.
    frequencies: (D/2,) as of rope_frequencies(D), by which queries and keys are rotated (None: not
    at all); they may be replaced at any time. window: how many positions a query sees, its own
    included (None: all). ValueError for sizes that do not divide, a window that is not causal.
    """

    def __init__(
        self, n_embd, n_head, n_kv_head=None, causal=True, frequencies=None, window=None, seed=0
    ):
        C, n_head = check_count("n_embd", n_embd), check_count("n_head", n_head)
        n_kv_head = n_head if n_kv_head is None else check_count("n_kv_head", n_kv_head)
        if C % n_head or n_head % n_kv_head:
            found = f"n_embd, n_head, n_kv_head are {C}, {n_head}, {n_kv_head}"
            raise ValueError(f"{found}; expected each to divide the one before")
        if not isinstance(causal, (bool, np.bool_)):
            raise ValueError(f"causal is {causal!r}; expected True or False")
        if window is not None and not causal:
            raise ValueError(f"window is {window} without a causal mask; expected None")
        self.n_head = n_head
        self.n_kv_head = n_kv_head
        self.causal = causal
        self.frequencies = frequencies
        self.window = None if window is None else check_count("window", window)
        rng = np.random.default_rng(check_count("seed", seed, 0))
        width = C // n_head * n_kv_head
        shapes = {"Wq": (C, C), "Wk": (C, width), "Wv": (C, width), "Wo": (C, C)}
        # A sum of C terms of variance 1/C has variance 1: what section 4 assumed of q and k.
        self.params = {name: rng.normal(size=shape) / C**0.5 for name, shape in shapes.items()}

    def _qkv(self, x, start):
        """q (B, H, T, D), k and v (B, Hkv, T, D) of x (B, T, C), and the rotation's cache."""
        C = len(self.params["Wq"])
        if x.ndim != 3 or x.shape[2] != C:
            raise ValueError(f"input has shape {x.shape}; expected (B, T, {C})")
        q = split_heads(matmul(x, self.params["Wq"]), self.n_head)
        k = split_heads(matmul(x, self.params["Wk"]), self.n_kv_head)
        v = split_heads(matmul(x, self.params["Wv"]), self.n_kv_head)
        if self.frequencies is None:
            return q, k, v, None
        positions = np.arange(start, start + x.shape[1])
        q, rotation = rope_forward(q, positions, self.frequencies)
        k, _ = rope_forward(k, positions, self.frequencies)
        return q, k, v, rotation

    def forward(self, x):
        """y (B, T, C) and the cache, for x (B, T, C)."""
        x = as_floats("input", x)
        q, k, v, rotation = self._qkv(x, start=0)
        T = x.shape[1]
        mask = sliding_window_mask(T, T, self.window) if self.causal else None
        out, attention = attention_forward(q, k, v, mask=mask)
        merged = merge_heads(out)  # (B, T, C)
        return matmul(merged, self.params["Wo"]), (x, rotation, attention, merged)

    def backward(self, dy, cache):
        """dx (B, T, C) and grads, keyed like params, from dy (B, T, C)."""
        x, rotation, attention, merged = cache
        dy = as_gradient("dy", dy, merged)
        dmerged = matmul(dy, self.params["Wo"].T)  # (B, T, C)
        dq, dk, dv = attention_backward(split_heads(dmerged, self.n_head), attention)
        if rotation is not None:
            dq, dk = rope_backward(dq, rotation), rope_backward(dk, rotation)
        dx, grads = np.zeros_like(x), {}
        for name, d in (("Wq", dq), ("Wk", dk), ("Wv", dv)):
            d = merge_heads(d)  # (B, T, width)
            grads[name] = weight_grad(x, d)
            dx += matmul(d, self.params[name].T)  # x entered three times: its gradients add up
        grads["Wo"] = weight_grad(merged, dy)
        return dx, grads

    def step(self, x_t, kv_cache=None):
        """The next row or rows of forward(): y_t like x_t (B, C) or (B, t, C), and the new cache.

        kv_cache: None at the first token, then what the last call returned. It is copied, not
        changed: two continuations may share a beginning, and reading it costs as much anyway.
        """
        if not self.causal:
            raise ValueError("causal is False; expected True, or each new token changes old rows")
        x_t = as_floats("input", x_t)
        x = x_t[:, None] if x_t.ndim == 2 else x_t  # (B, t, C)
        start = 0 if kv_cache is None else seen_tokens(kv_cache)
        q, k, v, _ = self._qkv(x, start)
        B, Hkv, t, D = k.shape
        if kv_cache:
            kept = start if self.window is None else min(start, self.window - 1)
            old_k = as_floats("kv_cache's k", kv_cache["k"])
            old_v = as_floats("kv_cache's v", kv_cache["v"])
            if not old_k.shape == old_v.shape == (B, Hkv, kept, D):
                found = f"keys {old_k.shape} and values {old_v.shape}"
                raise ValueError(f"kv_cache holds {found}; expected {(B, Hkv, kept, D)}")
            k = np.concatenate([old_k, k], axis=2)  # (B, Hkv, kept + t, D)
            v = np.concatenate([old_v, v], axis=2)
        mask = sliding_window_mask(t, k.shape[2], self.window)
        out, _ = attention_forward(q, k, v, mask=mask)
        y = matmul(merge_heads(out), self.params["Wo"])
        if self.window is not None:  # the next query sees window - 1 positions before its own
            first = max(0, k.shape[2] - (self.window - 1))
            k, v = k[:, :, first:], v[:, :, first:]
        return (y[:, 0] if x_t.ndim == 2 else y), {"k": k, "v": v, "length": start + t}


# %% 9. Attention in tiles
# The T × T weights are by far the largest array above: written, read, kept for the backward, and
# never wanted. Can we take the keys a block at a time? The softmax seems to need all scores first,
# for their maximum and sum. It does not. For one query and the keys seen so far, hold
#     m = max sⱼ        l = Σⱼ exp(sⱼ - m)        o = Σⱼ exp(sⱼ - m) vⱼ        (so far, out = o/l)
# A new block arrives. The maximum becomes m' = max(m, max of the new sⱼ), and since
#     exp(sⱼ - m') = exp(sⱼ - m) · exp(m - m'),
# all old terms change by one factor c = exp(m - m'), which we can apply to their sums:
#     l' = c l + Σ_new exp(sⱼ - m')        o' = c o + Σ_new exp(sⱼ - m') vⱼ
# After the last block o/l is exact (Milakov & Gimelshein 2018 for l, Dao et al. 2022). For each
# query keep one more number, log Z = log Σⱼ exp(sⱼ) = m + log l. From it the backward has pᵢⱼ =
# exp(sᵢⱼ - log Zᵢ) again, tile by tile. It also needs Σⱼ pᵢⱼ dpᵢⱼ, over all keys; but
#     δᵢ = Σⱼ pᵢⱼ (doᵢ·vⱼ) = doᵢ · Σⱼ pᵢⱼ vⱼ = doᵢ·oᵢ:
# the output, which we have, is enough. Each tile then adds its share:
#     dsᵢⱼ = pᵢⱼ (doᵢ·vⱼ - δᵢ)   dqᵢ += α Σⱼ dsᵢⱼ kⱼ   dkⱼ += α Σᵢ dsᵢⱼ qᵢ   dvⱼ += Σᵢ pᵢⱼ doᵢ
# Memory: q, k, v, o, log Z, their gradients and one tile, O(T). Time: scores are computed twice,
# but the future is skipped. A query that sees nothing keeps l = o = 0, and exp(-∞ - log Z) = 0.


def score_tiles(q, k, i, causal, block, scale):
    """For the query tile at i, key tile after key tile: its slice and scores (B, Hkv, G·bq, bk)."""
    q_i, Tk = q[:, :, i : i + block], k.shape[2]
    bq = q_i.shape[2]
    first = i + Tk - q.shape[2]  # the position of the tile's first query
    end = min(first + bq, Tk) if causal else Tk  # what lies in the future is skipped
    for j in range(0, end, block):
        cols = slice(j, min(j + block, Tk))
        s = grouped(q_i, k.shape[1]) @ k[:, :, cols].swapaxes(-1, -2)
        s *= s.dtype.type(scale)
        if causal and first < cols.stop - 1:  # some query of the tile does not see all its keys
            future = np.arange(j, cols.stop) > np.arange(first, first + bq)[:, None]  # (bq, bk)
            np.copyto(s.reshape(-1, bq, cols.stop - j), -np.inf, where=future)
        yield cols, s


def flash_attention_forward(q, k, v, causal=False, block=64, scale=None):
    """attention_forward without a mask, in O(T) extra memory; block: the side of a tile."""
    q, k, v, scale = check_qkv(q, k, v, causal, scale)
    block = check_count("block", block)
    out, log_Z = np.empty_like(q), np.empty((*q.shape[:3], 1), q.dtype)
    for i in range(0, q.shape[2], block):
        rows = slice(i, i + block)
        o = grouped(np.zeros_like(q[:, :, rows]), k.shape[1])  # (B, Hkv, G·bq, D)
        l = np.zeros_like(o[..., :1])  # (B, Hkv, G·bq, 1)
        m = np.full_like(l, np.finfo(q.dtype).min)
        for cols, s in score_tiles(q, k, i, causal, block, scale):
            m_new = np.maximum(m, s.max(axis=-1, keepdims=True))
            c = np.exp(m - m_new)
            s -= m_new
            np.exp(s, out=s)
            l = c * l + s.sum(axis=-1, keepdims=True)
            o = c * o + s @ v[:, :, cols]
            m = m_new
        l = np.maximum(l, 1)  # it is at least 1 already, or 0 if nothing was seen
        out[:, :, rows] = (o / l).reshape(out[:, :, rows].shape)
        log_Z[:, :, rows] = (m + np.log(l)).reshape(log_Z[:, :, rows].shape)
    return out, (q, k, v, out, log_Z, causal, block, scale)


def flash_attention_backward(dout, cache):
    """dq, dk, dv as attention_backward gives them, in O(T) extra memory."""
    q, k, v, out, log_Z, causal, block, scale = cache
    dout = as_gradient("dout", dout, q)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    Hkv = k.shape[1]
    for i in range(0, q.shape[2], block):
        rows = slice(i, i + block)
        q_i = grouped(q[:, :, rows], Hkv)  # (B, Hkv, G·bq, D)
        do_i = grouped(dout[:, :, rows], Hkv)
        log_Z_i = grouped(log_Z[:, :, rows], Hkv)  # (B, Hkv, G·bq, 1), as delta
        delta = np.sum(do_i * grouped(out[:, :, rows], Hkv), axis=-1, keepdims=True)
        for cols, s in score_tiles(q, k, i, causal, block, scale):
            p = np.exp(s - log_Z_i)  # (B, Hkv, G·bq, bk)
            dv[:, :, cols] += p.swapaxes(-1, -2) @ do_i
            ds = do_i @ v[:, :, cols].swapaxes(-1, -2)  # dp so far
            ds -= delta
            ds *= p * p.dtype.type(scale)  # with the scale α, so that dq and dk need none
            dq[:, :, rows] += (ds @ k[:, :, cols]).reshape(dq[:, :, rows].shape)
            dk[:, :, cols] += ds.swapaxes(-1, -2) @ q_i
    return dq, dk, dv


# %% 10. Two layers learn to recall
# A text that once said "Mr Finch" will likely follow "Mr" with "Finch" again. In the purest form:
# letters, each with a random digit, then letters again; say which digit stood after each:
#     a3 f0 c7 ... c7 a3 ...
# One head in one layer cannot do it, whatever its weights and positions. Proof. Take letters a, b
# and digits x, y. Here are four texts, each followed by the query a, with the right answer:
#     axby → x        aybx → y        bxay → y        byax → x
# In one layer, the score sⱼ and the value at place j depend on the query (the same in all four), on
# j and on the token at j. With c the query's own part and wⱼ that of place j, the logits x and y
# differ by
#     Δ = c + (1/Z) Σⱼ exp(sⱼ) wⱼ = (1/Z) Σⱼ exp(sⱼ) (c + wⱼ),      Z = Σⱼ exp(sⱼ) > 0:
# its sign is that of a sum to which each place contributes by itself. Let A be what the letters and
# the query's place contribute if a comes before b, and A' the same if b comes first; let X be what
# the digits contribute if x comes before y, and X' if y does. All four answers are right only if
#     A + X > 0        A + X' < 0        A' + X < 0        A' + X' > 0.
# The outer two say A + A' + X + X' > 0, the inner two that it is < 0. ∎ (More heads have more Z's,
# and this argument fails; but one layer must be very large: Sanford, Hsu & Telgarsky 2024.) So one
# layer learns to count: the report finds it naming a most frequent digit.
#
# Two layers can. In the first, a previous-token head copies to each digit the letter before it; in
# the second, the query looks for the place whose *copied* letter equals itself and passes on the
# digit there: an induction head (Olsson et al. 2022). Nobody builds it in. Our model,
#     x₀ = E[token]        x_{l+1} = x_l + attention_l(x_l)        logits = x_L U
# has nothing but causal attention with rotary positions inside (of base 30, as texts are short),
# and descending the cross-entropy -log p[answer] finds it.
#
# Backward. With p = softmax(logits) and section 3,
#     ∂(-log p_y)/∂logitᵢ = -p_y (1[i=y] - pᵢ)/p_y = pᵢ - 1[i=y]
# Then dU = x_Lᵀ dlogits and dx_L = dlogits Uᵀ. As x + f(x) has the derivative 1 + f', each layer
# ADDS its dx to what arrives. Looking up rows is a product, x₀ = onehot E, hence dE = onehotᵀ dx₀.

LETTERS = "abcdefghijkl"
TOKENS = LETTERS + "0123456789"


def recall_batch(rng, B, n_pairs):
    """(B, 4·n_pairs) ids: n_pairs distinct letters with digits, then as many pairs redrawn."""
    B, n_pairs = check_count("B", B), check_count("n_pairs", n_pairs)
    if n_pairs > len(LETTERS):
        raise ValueError(f"n_pairs is {n_pairs}; expected at most {len(LETTERS)}, one a letter")
    letters = rng.permuted(np.tile(np.arange(len(LETTERS)), (B, 1)), axis=1)[:, :n_pairs]
    digits = rng.integers(len(LETTERS), len(TOKENS), size=(B, n_pairs))
    pairs = np.stack([letters, digits], axis=-1)  # (B, n_pairs, 2)
    redrawn = pairs[np.arange(B)[:, None], rng.integers(n_pairs, size=(B, n_pairs))]
    return np.concatenate([pairs, redrawn], axis=1).reshape(B, -1)


def check_ids(ids, texts=True):
    """ids (B, T) as an array; ValueError if they are none, or no texts as of recall_batch."""
    ids, last = np.asarray(ids), len(TOKENS) - 1
    if ids.dtype.kind not in "iu" or ids.ndim != 2:
        raise ValueError(f"ids are {ids.dtype} {ids.shape}; expected integers (B, T)")
    if ids.size and not 0 <= ids.min() <= ids.max() <= last:
        raise ValueError(f"ids go from {ids.min()} to {ids.max()}; expected 0..{last}")
    if texts and (0 in ids.shape or ids.shape[1] % 4):
        raise ValueError(f"ids have shape {ids.shape}; expected some texts (B, 4·n_pairs)")
    return ids.astype(np.int64)


class AttentionOnly:
    """Embeddings, n_layer attention layers on a residual stream, an unembedding; nothing else."""

    def __init__(self, n_embd, n_head, n_layer, base=30.0, seed=0, dtype=np.float32):
        C, V = check_count("n_embd", n_embd), len(TOKENS)
        n_head, n_layer = check_count("n_head", n_head), check_count("n_layer", n_layer)
        if dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype is {dtype!r}; expected np.float32 or np.float64")
        rng = np.random.default_rng(check_count("seed", seed, 0))
        E = 0.5 * rng.normal(size=(V, C))
        U = rng.normal(size=(C, V)) / C**0.5
        self.params = {"token": E.astype(dtype), "unembed": U.astype(dtype)}
        self.layers = []
        frequencies = rope_frequencies(C // n_head, base)
        for i in range(n_layer):
            layer = MultiHeadAttention(C, n_head, frequencies=frequencies, seed=int(seed) + 1 + i)
            for name, W in layer.params.items():
                layer.params[name] = W.astype(dtype)
                self.params[f"{i}.{name}"] = layer.params[name]  # the same array
            self.layers.append(layer)

    def embed(self, ids):
        """x₀ (B, T, C) for token ids (B, T)."""
        return self.params["token"][check_ids(ids, texts=False)]

    def forward(self, ids):
        """logits (B, T, V), the last x (B, T, C), the layers' caches, for token ids (B, T)."""
        x, caches = self.embed(ids), []
        for layer in self.layers:
            y, cache = layer.forward(x)
            x = x + y  # (B, T, C)
            caches.append(cache)
        return matmul(x, self.params["unembed"]), x, caches

    def loss_and_grads(self, ids):
        """Mean -log p of the answers (the digits of the second half), share right, gradients."""
        ids = check_ids(ids)
        half = ids.shape[1] // 2
        logits, x, caches = self.forward(ids)
        p, _ = softmax_forward(logits[:, half::2])  # (B, n, V) at the letters of the second half
        y = ids[:, half + 1 :: 2, None]  # (B, n, 1), the digits that follow them
        right = float(np.mean(p.argmax(axis=-1) == y[..., 0]))
        p_y = np.take_along_axis(p, y, axis=-1)
        loss = float(-np.log(np.maximum(p_y, 1e-30)).mean())
        np.put_along_axis(p, y, p_y - 1, axis=-1)  # p - onehot
        dlogits = np.zeros_like(logits)  # (B, T, V), no loss in the first half
        dlogits[:, half::2] = p / y.size
        grads = {"unembed": weight_grad(x, dlogits)}
        dx = matmul(dlogits, self.params["unembed"].T)
        for i in reversed(range(len(self.layers))):
            d, layer_grads = self.layers[i].backward(dx, caches[i])
            dx = dx + d
            grads |= {f"{i}.{name}": grad for name, grad in layer_grads.items()}
        grads["token"] = weight_grad(np.eye(len(TOKENS), dtype=dx.dtype)[ids], dx)
        return loss, right, grads


def progress(message, last=False):
    """One line overwritten in place on a terminal; when piped, only the last message is printed."""
    if sys.stdout.isatty():
        print(f"\r{message:<96}", end="\n" if last else "", flush=True)
    elif last:
        print(message, flush=True)


def train(model, steps, n_pairs, seed, name="", learning_rate=1e-2, B=32):
    """Adam (stage 4) on fresh batches; ValueError if the loss is not finite any more."""
    steps = check_count("steps", steps)
    learning_rate = check_number("learning_rate", learning_rate, above=0)
    rng = np.random.default_rng(check_count("seed", seed, 0))
    mean = {key: np.zeros_like(W) for key, W in model.params.items()}
    mean_square = {key: np.zeros_like(W) for key, W in model.params.items()}
    for t in range(1, steps + 1):
        loss, right, grads = model.loss_and_grads(recall_batch(rng, B, n_pairs))
        if not math.isfinite(loss):
            raise ValueError(f"step {t}: loss {loss}; expected a finite one: lower learning_rate")
        rate = learning_rate * min(1, t / 50) * (1 - 0.9 * t / steps)  # warm up, then decay
        for key, W in model.params.items():
            mean[key] += 0.1 * (grads[key] - mean[key])
            mean_square[key] += 0.02 * (grads[key] * grads[key] - mean_square[key])
            typical = np.sqrt(mean_square[key] / (1 - 0.98**t))  # size of the gradient
            W -= rate * (mean[key] / (1 - 0.9**t)) / (typical + 1e-8)
        if t % 20 == 0:
            progress(f"{name}: step {t} of {steps}, loss {loss:.3f}, right {right:.1%}")


# %% 11. What single heads do
# A map shows where a head looks, not whether anybody needs what it brings back. So intervene:
# change the weights p of a head, leave all else as it was learned, and count the right answers.
# - Silenced: p = 0, and the head hands over nothing. What is lost is what only this head can do.
#   (Heads can stand in for each other, so silence the whole layer, too.)
# - Frozen: p = its average over a thousand texts. The head then looks wherever it usually looks,
#   whatever the text says. If that costs less than half of what silencing costs, the report says
#   that it goes by positions; otherwise, by content.
# What a head looks for shows in two averages of its weights: from a digit of the first half to the
# letter before it (a previous-token head), and from a letter of the second half to all digits that
# have followed it so far (an induction head).


def right_with(edit, model, ids, layer, heads):
    """Share right with edit(p) in place of the weights p (B, h, T, T) of these heads of a layer."""
    if layer not in range(len(model.layers)):
        raise ValueError(f"layer is {layer!r}; expected 0..{len(model.layers) - 1}")
    ids = check_ids(ids)
    x, half = model.embed(ids), ids.shape[1] // 2
    for i, attention in enumerate(model.layers):
        _, _, (_, _, v, p, _), _ = attention.forward(x)[1]
        if i == layer:
            p[:, heads] = edit(p[:, heads])
        x = x + matmul(merge_heads(p @ v), attention.params["Wo"])
    logits = matmul(x, model.params["unembed"])[:, half::2]  # (B, n, V)
    return float(np.mean(logits.argmax(axis=-1) == ids[:, half + 1 :: 2]))


def looks(p, ids):
    """Mean weights of p (B, T, T): (from a digit to its letter, from a letter to its digits)."""
    ids = check_ids(ids)
    half = ids.shape[1] // 2
    previous = p[:, range(1, half, 2), range(0, half, 2)]  # (B, n)
    same = ids[:, half::2, None] == ids[:, None, :-1]  # (B, n, T - 1): where the letter stood
    induction = np.sum(p[:, half::2, 1:] * same, axis=-1)  # (B, n), one place further on
    return float(previous.mean()), float(induction.mean())


# %% Demonstration
def report_recall(seed, n_pairs, steps, width):
    """One layer against two on the recall task. Returns the model of two layers and the texts."""
    print(f"1. Recall. {n_pairs} pairs, then {n_pairs} letters to answer; {steps} training steps")
    print(f"{'':<36}{'weights':>10}{'loss':>10}{'right':>10}")
    texts, half = recall_batch(np.random.default_rng(seed + 1), 1000, n_pairs), 2 * n_pairs
    counts = np.sum(texts[:, 1:half:2, None] == np.arange(len(TOKENS)), axis=1)  # (B, V) of digits
    guess = np.mean(counts.argmax(axis=1)[:, None] == texts[:, half + 1 :: 2])
    print(f"{'a most frequent digit':<36}{0:>10}{'':>10}{guess:>10.1%}")
    wide = 2 * math.ceil(width / 2**0.5)  # √2 times the width: one layer then weighs as much as two
    counted = []
    for n_layer, n_head, C in ((1, 1, wide), (1, 2, wide), (2, 2, width)):
        name = f"layers {n_layer}, heads each {n_head}, channels {C}"
        model = AttentionOnly(C, n_head, n_layer, seed=seed)
        train(model, steps, n_pairs, seed, name)
        loss, right, _ = model.loss_and_grads(texts)
        size = sum(W.size for W in model.params.values())
        progress(f"{name:<36}{size:>10,}{loss:>10.3f}{right:>10.1%}", last=True)
        answers = model.forward(texts)[0][:, half::2].argmax(axis=-1)  # (B, n)
        often = np.take_along_axis(counts, answers, axis=1) == counts.max(axis=1, keepdims=True)
        counted.append(np.mean(often))
    lesson = "it learned to count" if min(counted[:2]) > 0.85 else "it does not only count"
    print(f"One layer names a most frequent digit in {min(counted[:2]):.1%} of cases: {lesson}.")
    return model, texts


def report_heads(model, texts):
    """What each head looks at, and how many answers are right without it."""
    maps = [attention[3] for _, _, attention, _ in model.forward(texts)[2]]  # two (B, H, T, T)
    every = list(range(maps[0].shape[1]))
    first = max(every, key=lambda h: looks(maps[0][:, h], texts)[0])  # best at the previous token
    second = max(every, key=lambda h: looks(maps[1][:, h], texts)[1])  # best at induction
    drawn = [maps[0][0, first], maps[1][0, second]]  # (T, T) each, of the first text
    print("\nWhere they look: a row asks, a column is looked at, from . for 10 % to @ for 90 %")
    print(f"Left: layer 1, head {first + 1}. Right: layer 2, head {second + 1}.")
    tokens, shades = "".join(TOKENS[i] for i in texts[0]), " .:-=+*#%@"
    print(f"  {tokens}        {tokens}")
    for i, token in enumerate(tokens):
        rows = ("".join(shades[min(9, int(10 * w))] for w in p[i]) for p in drawn)
        print("      ".join(f"{token} {row}" for row in rows).rstrip())
    whole = model.loss_and_grads(texts)[1]
    print(f"\n2. Heads of the model with two layers, which has {whole:.1%} right")
    print(f"{'':<15}{'weight, digit to':>19}{'letter to its':>16}{'% right if':>15}")
    print(f"{'':<15}{'letter before it':>19}{'digits so far':>16}{'silenced':>15}{'frozen':>9}")
    for i, p in enumerate(maps):
        rights = []
        for heads in [*([h] for h in every), every]:
            previous, induction = looks(p[:, heads].mean(axis=1), texts)
            silenced = right_with(np.zeros_like, model, texts, i, heads)
            frozen = right_with(lambda w: w.mean(axis=0), model, texts, i, heads)
            rights.append(100 * silenced)
            name = f"layer {i + 1}, " + (f"head {heads[0] + 1}" if heads != every else "all")
            print(f"{name:<15}{previous:>19.2f}{induction:>16.2f}{silenced:>15.1%}{frozen:>9.1%}")
        # The last row, and so silenced and frozen, was that of the whole layer.
        how = "positions" if whole - frozen < (whole - silenced) / 2 else "content"
        head, layer = 100 * whole - min(rights[:-1]), 100 * whole - rights[-1]
        cost = f"Without it {layer:.0f} points are lost, without one head at most {head:.0f}"
        print(f"Layer {i + 1} goes by {how}. {cost}.")


def report_longer(model, seed, n_pairs):
    """The model with two layers on texts twice as long as those it was trained on."""
    texts, T = recall_batch(np.random.default_rng(seed + 2), 500, 2 * n_pairs), 4 * n_pairs
    print(f"\n3. Longer than trained. The same model reads {2 * T} tokens instead of {T}, % right:")
    usual, rights = model.layers[0].frequencies, {"as trained": model.loss_and_grads(texts)[1]}
    for rule in ("linear", "ntk", "llama3"):
        for layer in model.layers:
            layer.frequencies = scaled_frequencies(usual, 2, rule, trained_length=T)
        rights[rule] = model.loss_and_grads(texts)[1]
    for layer in model.layers:
        layer.frequencies = usual
    print("rotations " + ", ".join(f"{rule} {right:.1%}" for rule, right in rights.items()))
    print(f"Best, without any further training: {max(rights, key=rights.get)}.")


def report_costs(seed, lengths, n_head=2, D=64):
    """Peak memory of a forward and backward pass with the whole matrix of weights and in tiles."""
    print(f"\n4. Memory of forward and backward, {n_head} heads of size {D}, in MiB")
    print(f"{'T':>6}{'matrix':>12}{'tiles':>12}{'results differ by':>20}")
    plain = attention_forward, attention_backward
    tiled = flash_attention_forward, flash_attention_backward
    for T in lengths:
        data = np.random.default_rng(seed).normal(size=(4, 1, n_head, T, D)).astype(np.float32)
        (q, k, v, dout), peaks, results = data, [], []
        for forward, backward in (plain, tiled):
            tracemalloc.start()
            out, cache = forward(q, k, v, causal=True)
            results.append((out, *backward(dout, cache)))
            peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
            tracemalloc.stop()
        apart = max(float(np.abs(a - b).max()) for a, b in zip(*results))
        print(f"{T:>6}{peaks[0]:>12.1f}{peaks[1]:>12.1f}{apart:>20.0e}", flush=True)
    print(f"At the last T, tiles take {peaks[1] / peaks[0]:.1%} of the memory.")


def main(argv=None):
    """The report; --fast for a miniature, --seed for other random choices."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it was closed before the start
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    parser = argparse.ArgumentParser(description="Stage 5: attention, derived and measured.")
    parser.error = lambda message: parser.exit(2, f"stage05_attention.py: error: {message}\n")
    parser.add_argument("--fast", action="store_true", help="a smoke run of a few seconds")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (default 0)")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"--seed is {args.seed}; expected 0 or more")
    try:
        n_pairs, steps, width = (3, 120, 48) if args.fast else (6, 400, 64)
        model, texts = report_recall(args.seed, n_pairs, steps, width)
        report_heads(model, texts)
        report_longer(model, args.seed, n_pairs)
        report_costs(args.seed, (64, 128, 256) if args.fast else (512, 1024, 2048, 4096))
        sys.stdout.flush()
    except KeyboardInterrupt:
        parser.exit(130, "\n")
    except OSError as error:  # a closed pipe, a full disk: Python's last flush must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # then whoever was reading has seen enough
            parser.error(str(error))


# %% What to take away
# - out = softmax(q·k/√D + mask) v: a dictionary that compares softly, so that it can be learned.
#   Backward: dv = pᵀ do, dp = do vᵀ, ds = p (dp - Σ p dp), dq = α ds k, dk = α dsᵀ q.
# - √D keeps the scores' variance at 1. The mask is -∞, before the softmax. RoPE gives order.
# - Training costs T²: take tiles. Writing costs the cache: share heads, or slide a window.
# - One layer blends what tokens say. Two layers compose: previous-token head, then induction.

# %% Common mistakes
# 1. Masking after the softmax, or with 0 for -∞: training loss far too good, samples poor, as the
#    future leaks. In attention_forward -∞ enters s before softmax_forward.
# 2. A row of nothing but -∞, as padding makes it: NaN one step later. See softmax_forward.
# 3. A causal mask aligned at the left when Tq < Tk: good training, nonsense with a cache, where the
#    new query sees only key 0. See Tk - Tq in sliding_window_mask.
# 4. Cached tokens rotated as if at position 0, or at their place in a window: step and forward
#    differ. In step, positions count from the first token ever: start.
# 5. reshape to (B, H, T, D) without a swap: heads mix places and see the future. See split_heads.

# %% Exercises
# They are in exercises/stage05.py, and `python exercises` checks them.
#  1. ★ (by hand) A question that asks nothing
#  2. ★ (by hand) What a writer must carry
#  3. ★ (implement) Further away, quieter
#  4. ★★ (find the bug) Who shares with whom
#  5. ★★ (explain) A frozen layer
#  6. ★★ (derive) A temperature that learns
#  7. ★★ (implement) Does it see the future?
#  8. ★★ (implement) Two halves of one softmax
#  9. ★★ (derive) A place to look when there is nothing to find
# 10. ★★★ (implement) Latent heads that never unpack
# 11. ★★★ (research) One layer after all?
# 12. ★★★ (project) Weights written by hand

# %% Where this leads
# Stage 6 gives each attention layer a norm and a small network, and stacks them: a transformer.

if __name__ == "__main__":
    main()
