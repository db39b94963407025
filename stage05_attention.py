# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 5: attend. How can a model look back at any earlier token and choose which one matters?

The answer is a dictionary made differentiable. Every token asks a question (a query q), advertises
what it holds (a key k) and offers something to hand over (a value v). A token's output is the
average of all values, weighted by the softmax of q·k. That sentence does not say how many tokens
there are, so one set of weights serves any length; and all of it has a derivative, so what to ask,
advertise and hand over can be learned. Below, attention, its backward and what they entail:

          1 the fixed window    2 soft lookup        3 why √D    4 attention and its backward
          5 positions           6 heads and cache    7 tiles     8 two layers learn to recall

    python stage05_attention.py           the report, well under a minute
    python stage05_attention.py --fast    the same in miniature, a few seconds

It prints what the scale does to a softmax; one layer failing and two layers learning to recall,
with their maps; the cost with and without tiles, and of a new token with and without a cache.

Papers: Bahdanau, Cho & Bengio 2014, Neural Machine Translation by Jointly Learning to Align and
Translate; Vaswani et al. 2017, Attention Is All You Need; Shazeer 2019, Fast Transformer Decoding;
Su et al. 2021, RoFormer; Press, Smith & Lewis 2021, Train Short, Test Long; Olsson et al. 2022,
In-context Learning and Induction Heads; Dao et al. 2022, FlashAttention; Ainslie et al. 2023, GQA.
"""

import argparse
import math
import os
import sys
import timeit
import tracemalloc

import numpy as np

# %% 1. The fixed window
#
# The neural n-gram of stage 3 lays the last N characters' embeddings end to end and multiplies them
# by one matrix. A longer memory costs more weights, and each place owns its rows: what it learns of
# a name three characters back is news four characters back. The plain average of all embeddings has
# neither fault, but listens to every token equally. So keep the average and choose its weights by
# what we look for: out = Σⱼ pⱼ vⱼ with pⱼ ≥ 0 and Σⱼ pⱼ = 1.
#
# Shapes: B sequences, Tq queries, Tk keys (T when they are equal), C channels, H heads of size D,
# Hkv heads of keys and values. dx means ∂L/∂x for the loss L. A layer is a pair name_forward(x) ->
# (y, cache), name_backward(dy, cache) -> dx; the cache holds what the backward must remember.

# %% 2. Soft lookup
#
# A Python dictionary compares a query with every key and returns the value whose key is equal:
#     out = Σⱼ 1[q = kⱼ] vⱼ
# The comparison jumps from 0 to 1; its derivative is 0 wherever it exists, so nothing can be
# learned through it. Replace "equal" by "similar", the dot product sⱼ = q·kⱼ, and the jump by a
# smooth function that makes any scores into positive weights that sum to one, the softmax:
#     pⱼ = exp(sⱼ) / Σₘ exp(sₘ)          out = Σⱼ pⱼ vⱼ
# The dictionary is still inside: with all scores times β, pⱼ/pₘ = exp(β(sⱼ - sₘ)), and as β grows
# the largest takes all the weight. Adding c to every score multiplies numerator and denominator by
# exp(c), so p does not change: subtract the maximum, and no exponential can overflow.
#
# A score of -∞ gets a weight of exactly 0. A row of nothing but -∞ would be 0/0; we define its
# weights to be 0, a sum over no keys: a query with nothing to see gets zeros instead of NaN. In the
# code the maximum starts at the lowest finite number, not at -∞, and then Σₘ exp(xₘ - max) is 0 for
# such a row and at least 1 for any other, where the maximum itself adds exp(0).
#
# Backward. With Z = Σₘ exp(xₘ), the quotient rule gives
#     ∂pᵢ/∂xⱼ = (1[i=j] exp(xᵢ) Z - exp(xᵢ) exp(xⱼ)) / Z² = pᵢ (1[i=j] - pⱼ)
#     dxⱼ = Σᵢ dpᵢ ∂pᵢ/∂xⱼ = pⱼ (dpⱼ - Σᵢ pᵢ dpᵢ):
# what its own weight is worth, minus what the weights are worth on average. Zero weights give zero.


def check_count(name, value, lowest=1):
    """value as an int; ValueError unless it is a whole number, and at least the lowest."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < lowest:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {lowest}")
    return int(value)  # an np.uint8 would wrap at 256, and below 0


def check_number(name, value):
    """ValueError unless value is a finite number."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; expected a finite number")


def check_shape(name, given, shape):
    """ValueError unless the array has exactly this shape: NumPy would repeat it to fit."""
    if np.shape(given) != shape:
        raise ValueError(f"{name} has shape {np.shape(given)}; expected {shape}")


def softmax_forward(x):
    """Rows of x (..., N) to weights p (..., N) that sum to 1; rows of nothing but -inf to zeros."""
    x = np.asarray(x)
    if x.dtype.kind not in "fiu" or x.ndim == 0:
        raise ValueError(f"scores are {x.dtype} {x.shape}; expected numbers (..., N)")
    x = x if x.dtype.kind == "f" else x.astype(np.float64)
    p = x - x.max(axis=-1, keepdims=True, initial=np.finfo(x.dtype).min)
    np.exp(p, out=p)
    Z = p.sum(axis=-1, keepdims=True)  # (..., 1)
    p /= np.maximum(Z, 1)
    return p, p


def softmax_backward(dp, cache):
    """dx (..., N) from dp (..., N)."""
    p = cache
    check_shape("dp", dp, p.shape)
    return p * (dp - np.sum(p * dp, axis=-1, keepdims=True))


# %% 3. Why the scores are divided by √D
#
# Let q and k have D independent entries of mean 0 and variance 1, as at initialisation. The mean of
# a product of independent numbers is the product of their means, so for q·k = Σ_d q_d k_d
#     E[q_d k_d] = E[q_d] E[k_d] = 0,  hence  E[q·k] = 0
#     E[(q_d k_d)²] = E[q_d²] E[k_d²] = 1, and for d ≠ e  E[q_d k_d q_e k_e] = 0·0·0·0,
#     hence  Var(q·k) = E[(Σ_d q_d k_d)²] = Σ_d 1 = D.
# So scores spread like √D, by ±8 at D = 64. As exp(8) is about 3,000, the softmax has chosen one
# key before training has begun, and it cannot change its mind: by section 2 its derivatives are the
# matrix J = diag(p) - p pᵀ, with trace Σᵢ pᵢ(1 - pᵢ) = 1 - Σᵢ pᵢ²; once one weight is near 1, every
# term is near 0 and no gradient passes. q·k/√D has variance D/D = 1 for every D: we use that.


def scale_statistics(D, scale, rng, n_keys=64, n_queries=512):
    """(variance of the scores, entropy of the weights in nats, trace of the softmax's Jacobian)."""
    D = check_count("D", D)
    q, k = rng.normal(size=(n_queries, 1, D)), rng.normal(size=(n_queries, D, n_keys))
    s = scale * (q @ k)[:, 0]  # (n_queries, n_keys), fresh keys for every query
    p, _ = softmax_forward(s)
    entropy = -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)
    return float(s.var()), float(entropy.mean()), float(np.mean(1 - np.sum(p * p, axis=-1)))


# %% 4. Attention and its backward
#
# All queries at once, with a scale α = 1/√D and a mask mᵢⱼ, 0 where query i may see key j, or -∞:
#     sᵢⱼ = α qᵢ·kⱼ + mᵢⱼ        pᵢ = softmax(sᵢ)        oᵢ = Σⱼ pᵢⱼ vⱼ
# Self-attention takes q, k and v from one sequence; cross-attention takes q from one (a translation
# being written), k and v from another (the sentence to translate). The formula does not care.
#
# The causal mask. Whoever predicts the next token must not see it. If the queries are the LAST Tq
# of the Tk positions (all of them in training, one when a cache holds the rest), query i stands at
# i + Tk - Tq and may look at keys j ≤ i + Tk - Tq. The mask must be -∞ and precede the softmax:
#   - scores set to 0 leave exp(0) = 1, the weight of an average key;
#   - weights set to 0 after it leave the future in the denominator Σⱼ exp(sᵢⱼ): the rows no longer
#     sum to 1, and how much is missing tells of what comes next;
#   - -∞ before it makes exp(-∞) = 0 above and below the line, and the future is gone.
#
# Backward, from do = ∂L/∂o. Each line asks: where does this variable enter, with which factor?
#     vⱼ enters oᵢ times pᵢⱼ:                     dvⱼ = Σᵢ pᵢⱼ doᵢ            dv = pᵀ do
#     pᵢⱼ enters oᵢ times vⱼ:                     dpᵢⱼ = doᵢ·vⱼ               dp = do vᵀ
#     softmax, row by row (section 2):            dsᵢⱼ = pᵢⱼ (dpᵢⱼ - Σₘ pᵢₘ dpᵢₘ)
#     qᵢ enters sᵢⱼ times αkⱼ, kⱼ times αqᵢ:      dqᵢ = α Σⱼ dsᵢⱼ kⱼ           dkⱼ = α Σᵢ dsᵢⱼ qᵢ
#
# Shared heads. With fewer key heads than query heads (section 6 says why), G = H/Hkv query heads in
# a row share one. Keys do not mind how many queries look at them: lay the G heads end to end as
# G·Tq queries of one head. The sum over the group in dk, dv is then already inside dsᵀ q and pᵀ do.


def grouped(x, Hkv):
    """(B, H, T, D) -> (B, Hkv, G·T, D): the query heads that share a key head, end to end."""
    B, H, T, D = x.shape
    return x.reshape(B, Hkv, H // Hkv * T, D)


def check_qkv(q, k, v, scale):
    """The three as arrays and the scale as a number; ValueError if they do not fit together."""
    q, k, v = np.asarray(q), np.asarray(k), np.asarray(v)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or x.dtype.kind != "f":
            raise ValueError(f"{name} is {x.dtype} {x.shape}; expected floats (B, heads, T, D)")
    (B, H, _, D), Hkv = q.shape, k.shape[1]
    if k.shape != v.shape or k.shape[::3] != (B, D) or D < 1 or Hkv < 1 or H % Hkv:
        expected = "q (B, H, Tq, D), k and v (B, Hkv, Tk, D), Hkv dividing H"
        raise ValueError(f"q {q.shape}, k {k.shape}, v {v.shape} do not fit; expected {expected}")
    scale = 1 / math.sqrt(D) if scale is None else scale  # None for 1/√D
    check_number("scale", scale)
    return q, k, v, float(scale)


def sliding_window_mask(Tq, Tk, window=None):
    """Boolean (Tq, Tk): True where a query, one of the last Tq of Tk positions, may look.

    It sees itself and what came before, `window` positions in all (None: all, the causal mask).
    """
    Tq, Tk = check_count("Tq", Tq, 0), check_count("Tk", Tk, 0)
    window = None if window is None else check_count("window", window)  # None for no limit
    distance = np.arange(Tk - Tq, Tk)[:, None] - np.arange(Tk)  # (Tq, Tk), negative in the future
    return (distance >= 0) & (distance < (window or Tk + 1))


def attention_forward(q, k, v, causal=False, mask=None, scale=None):
    """Scaled dot-product attention (Vaswani et al. 2017): out (B, H, Tq, D) and the cache.

    q (B, H, Tq, D), k and v (B, Hkv, Tk, D) with Hkv dividing H. causal: the queries are the last
    Tq of Tk positions and see nothing later than themselves. mask, broadcastable to (B, H, Tq, Tk):
    boolean (True = may attend) or floating (added to the scaled scores); with causal, both apply.
    scale: None for 1/√D. A query that may see nothing (as the first Tq - Tk of a causal Tq > Tk)
    gets zeros and sends no gradient. ValueError for shapes that do not fit, a mask of another dtype
    or holding NaN or +inf, a scale that is not finite.
    """
    q, k, v, scale = check_qkv(q, k, v, scale)
    Hkv, Tq, Tk = k.shape[1], q.shape[2], k.shape[2]
    s = (grouped(q, Hkv) @ k.swapaxes(-1, -2)).reshape(*q.shape[:3], Tk)  # (B, H, Tq, Tk)
    s *= s.dtype.type(scale)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype.kind == "b":
            mask = np.where(mask, 0, -np.inf).astype(s.dtype)
        if mask.dtype.kind != "f" or not np.all(mask < np.inf):
            raise ValueError(f"mask of dtype {mask.dtype}; expected booleans, or floats below +inf")
        if np.broadcast_shapes(mask.shape, s.shape) != s.shape:  # raises, too, if there is none
            raise ValueError(f"mask has shape {mask.shape}; expected one that fits {s.shape}")
        s += mask
    if causal:
        np.copyto(s, -np.inf, where=~sliding_window_mask(Tq, Tk))
    p, _ = softmax_forward(s)
    out = (grouped(p, Hkv) @ v).reshape(q.shape)
    return out, (q, k, v, p, scale)


def attention_backward(dout, cache):
    """dq (B, H, Tq, D), dk and dv (B, Hkv, Tk, D) from dout (B, H, Tq, D)."""
    q, k, v, p, scale = cache
    check_shape("dout", dout, q.shape)
    Hkv = k.shape[1]
    do, p = grouped(dout, Hkv), grouped(p, Hkv)  # (B, Hkv, G·Tq, D), (B, Hkv, G·Tq, Tk)
    dv = p.swapaxes(-1, -2) @ do
    ds = softmax_backward(do @ v.swapaxes(-1, -2), p)
    ds *= ds.dtype.type(scale)
    dq = (ds @ k).reshape(q.shape)
    dk = ds.swapaxes(-1, -2) @ grouped(q, Hkv)
    return dq, dk, dv


# %% 5. Positions: putting order back
#
# Attention alone cannot tell "dog bites man" from "man bites dog". Let the matrix Π reorder the
# rows of X, and Q = XW_q and so on. The scores S = αQKᵀ become α(ΠQ)(ΠK)ᵀ = ΠSΠᵀ; the softmax works
# row by row and in any order, so P becomes ΠPΠᵀ; and, as ΠᵀΠ = I, the output is
#     (ΠPΠᵀ)(ΠV) = ΠP(ΠᵀΠ)V = Π(PV):
# the same vectors, in the new order. The causal mask breaks that symmetry, but says only what is
# earlier, never how much earlier. There are four classic ways to say where a token stands.
#
# 1. Learned: a table with one row per position, added to the embeddings. Simple (section 8 uses
#    it), but there is no row for the first position after those trained on.
# 2. Sinusoidal: fixed rows of C/2 clock hands (sin ωᵢt, cos ωᵢt) with speeds ωᵢ = 10000^(-2i/C).
#    By the angle sums, a shift by n is a rotation by ωn, one matrix whatever t is:
#        sin ω(t+n) =  cos ωn · sin ωt + sin ωn · cos ωt
#        cos ω(t+n) = -sin ωn · sin ωt + cos ωn · cos ωt
# 3. Rotary (RoPE): if a shift is a rotation, rotate the queries and keys themselves. R_t turns the
#    pair (xᵢ, xᵢ₊D/2) by the angle tθᵢ, θᵢ = theta^(-2i/D):
#        yᵢ = xᵢ cos tθᵢ - xᵢ₊D/2 sin tθᵢ        yᵢ₊D/2 = xᵢ sin tθᵢ + xᵢ₊D/2 cos tθᵢ
#    Rotations add up, R_m R_n = R_{m+n}, and their transpose undoes them, R_mᵀ = R_{-m}. Hence
#        (R_m q)·(R_n k) = qᵀ R_mᵀ R_n k = qᵀ R_{n-m} k:
#    the score depends on the offset n - m alone. Values are not turned: position decides who is
#    heard, not what is said. The backward of y = R_t x is dx = R_tᵀ dy = R_{-t} dy. (What forms a
#    pair is a convention: halves here and in Llama on Hugging Face, neighbours in the paper.)
# 4. ALiBi: subtract a penalty that grows with distance, s - μ|i - j|, with a slope μ for each head,
#    2^(-8/H), 2^(-16/H), ..., 2^(-8) if H is a power of two: some heads see far, some near. For
#    other H, the slopes of the largest power of two P < H, then every second one of 2P heads.


def sinusoidal_positions(T, C):
    """(T, C) table: sin ωᵢt in column 2i, cos ωᵢt in 2i + 1 (Vaswani et al. 2017); C even."""
    T, C = check_count("T", T, 0), check_count("C", C, 2)
    if C % 2:
        raise ValueError(f"T is {T} and C is {C}; expected T >= 0 and an even C >= 2")
    omega = 10000.0 ** (-np.arange(0, C, 2) / C)  # (C/2,)
    angle = np.arange(T)[:, None] * omega  # (T, C/2)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(T, C)


def rope_forward(x, positions, theta=10000.0):
    """Rotary positions, half-split pairs (Su et al. 2021): y like x (..., T, D), and the cache.

    positions: (T,), or another shape that broadcasts to (..., T), as (B, 1, T). D must be even.
    """
    x, positions = np.asarray(x), np.asarray(positions, dtype=np.float64)
    D = x.shape[-1] if x.ndim else 0
    check_number("theta", theta)
    if x.dtype.kind != "f" or not np.isfinite(positions).all():
        found = f"x is {x.dtype}, positions are {positions}"
        raise ValueError(f"{found:.200}; expected floats, and positions that are finite")
    if D < 2 or D % 2 or not 0 < theta < math.inf:
        raise ValueError(f"D is {D} and theta {theta}; expected an even D >= 2 and a theta > 0")
    if np.broadcast_shapes(positions.shape, x.shape[:-1]) != x.shape[:-1]:
        raise ValueError(f"positions have shape {positions.shape}; expected {x.shape[:-1]} at most")
    angle = positions[..., None] * float(theta) ** (-np.arange(0, D, 2) / D)  # (..., T, D/2)
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    a, b = x[..., : D // 2], x[..., D // 2 :]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1), (positions, theta)


def rope_backward(dy, cache):
    """dx like dy (..., T, D): the same rotation the other way round."""
    positions, theta = cache
    return rope_forward(dy, -positions, theta)[0]


def alibi_bias(n_head, Tq, Tk):
    """(n_head, Tq, Tk) to add to scores, -slope·|distance|; the queries are the last Tq of Tk.

    It hides nothing: pass it as a mask together with causal=True (Press, Smith & Lewis 2021).
    """
    n_head, Tq, Tk = (
        check_count("n_head", n_head),
        check_count("Tq", Tq, 0),
        check_count("Tk", Tk, 0),
    )
    P = 2 ** int(math.log2(n_head))
    exponents = [8 * h / P for h in range(1, P + 1)] + [4 * h / P for h in range(1, 2 * P, 2)]
    slopes = 2.0 ** -np.array(exponents[:n_head])  # (n_head,)
    distance = np.abs(np.arange(Tk - Tq, Tk)[:, None] - np.arange(Tk))  # (Tq, Tk)
    return -slopes[:, None, None] * distance


# %% 6. Heads, and what to remember
#
# One softmax gives one average. A token that needs its subject and its tense needs two, so the C
# channels are split among H heads of D = C/H that attend separately; their outputs are laid side by
# side and mixed by W_o. The cost stays that of one head: H score matrices take H · T²D = T²C.
#
# The KV cache. A model that writes gets its tokens one at a time. The key and value of token j are
# functions of its own input, which under a causal mask does not depend on what comes later: compute
# them once and keep them. The token at T then costs one row of every product, about 4C² + 2TC
# multiplications; without a cache, T rows are computed and T - 1 of them thrown away.
#
# What limits writing is then reading that cache, 2·Hkv·D numbers per token and layer. So let query
# heads share keys and values: Hkv = H is multi-head, Hkv = 1 multi-query (Shazeer 2019), anything
# between grouped-query attention (Ainslie et al. 2023). Or slide a window: look only at the last w
# positions (sliding_window_mask); each layer hands on what it saw, so L layers reach L(w - 1) back.


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


class MultiHeadAttention:
    """y = concat(heads) W_o: n_head query heads over n_kv_head key and value heads (None: as many).

    params, float64: Wq and Wo (C, C), Wk and Wv (C, n_kv_head·D), C = n_embd, D = n_embd/n_head.
    rope turns queries and keys by position. ValueError for sizes that do not divide.
    """

    def __init__(self, n_embd, n_head, n_kv_head=None, causal=True, rope=False, seed=0):
        n_kv_head = n_head if n_kv_head is None else n_kv_head
        n_embd, n_head = check_count("n_embd", n_embd), check_count("n_head", n_head)
        n_kv_head = check_count("n_kv_head", n_kv_head)
        sizes = (n_embd, n_head, n_kv_head)
        if n_embd % n_head or n_head % n_kv_head or (rope and n_embd // n_head % 2):
            expected = "each to divide the one before, and an even n_embd/n_head for rope"
            raise ValueError(f"n_embd, n_head, n_kv_head are {sizes}; expected {expected}")
        self.n_head, self.n_kv_head, self.causal, self.rope = n_head, n_kv_head, causal, rope
        rng, width = np.random.default_rng(seed), n_embd // n_head * n_kv_head
        shapes = {"Wq": n_embd, "Wk": width, "Wv": width, "Wo": n_embd}
        # A sum of C terms of variance 1/C has variance 1: what section 3 assumed of q and k.
        self.params = {n: rng.normal(size=(n_embd, w)) / n_embd**0.5 for n, w in shapes.items()}

    def _project(self, x, source, start=None):
        """q (B, H, T, D) of x, k and v (B, Hkv, Tk, D) of source, and rope's cache, if any."""
        C = len(self.params["Wq"])
        for a in (x, source):
            if a.ndim != 3 or a.shape[2] != C or a.dtype.kind != "f":
                raise ValueError(f"input is {a.dtype} {a.shape}; expected floats (B, T, {C})")
        q = split_heads(matmul(x, self.params["Wq"]), self.n_head)
        k, v = (split_heads(matmul(source, self.params[W]), self.n_kv_head) for W in ("Wk", "Wv"))
        turned = None
        if self.rope and start is not None:
            positions = np.arange(start, start + x.shape[1])
            (q, turned), (k, _) = rope_forward(q, positions), rope_forward(k, positions)
        return q, k, v, turned

    def forward(self, x, context=None):
        """y (B, T, C) and the cache, for x (B, T, C).

        context (B, Tk, C), if given, supplies keys and values (cross-attention). Nothing in it is
        earlier or later than x, so neither the causal mask nor rope applies.
        """
        x, crossed = np.asarray(x), context is not None
        source = np.asarray(context) if crossed else x
        q, k, v, turned = self._project(x, source, None if crossed else 0)
        out, attention = attention_forward(q, k, v, causal=self.causal and not crossed)
        merged = merge_heads(out)  # (B, T, C)
        return matmul(merged, self.params["Wo"]), (x, source, crossed, turned, attention, merged)

    def backward(self, dy, cache):
        """dx (B, T, C) and grads, keyed like params; with a context also grads["context"]."""
        x, source, crossed, turned, attention, merged = cache
        check_shape("dy", dy, x.shape)
        dmerged = matmul(dy, self.params["Wo"].T)  # (B, T, C)
        dq, dk, dv = attention_backward(split_heads(dmerged, self.n_head), attention)
        if turned is not None:
            dq, dk = rope_backward(dq, turned), rope_backward(dk, turned)
        dq, dk, dv = merge_heads(dq), merge_heads(dk), merge_heads(dv)
        grads = {"Wq": weight_grad(x, dq), "Wk": weight_grad(source, dk)}
        grads |= {"Wv": weight_grad(source, dv), "Wo": weight_grad(merged, dy)}
        dx = matmul(dq, self.params["Wq"].T)
        dsource = matmul(dk, self.params["Wk"].T) + matmul(dv, self.params["Wv"].T)
        # In self-attention x entered three times, and its three gradients add up.
        return (dx, grads | {"context": dsource}) if crossed else (dx + dsource, grads)

    def step(self, x_t, kv_cache=None):
        """The next row or rows of forward(): (y_t, kv_cache).

        x_t (B, C) or (B, t, C), y_t alike. kv_cache: None or {} at the first token, then what the
        last call returned; it is extended in place.
        """
        x, kv = np.asarray(x_t), {} if kv_cache is None else kv_cache
        if not self.causal:
            raise ValueError("causal is False; expected True, or each new token changes old rows")
        x, single = (x[:, None], True) if x.ndim == 2 else (x, False)  # (B, t, C)
        start = kv.get("length", 0)
        q, k, v, _ = self._project(x, x, start)
        end = start + k.shape[2]
        for name, new in (("k", k), ("v", v)):
            old = kv.get(name, new[:, :, :0])  # (B, Hkv, room, D)
            if len(old) != len(new):
                raise ValueError(f"x_t has batch size {len(new)}; expected the cache's, {len(old)}")
            if end > old.shape[2]:  # move to twice the room: about one copy per token on average
                kv[name] = np.empty((*new.shape[:2], 2 * end, new.shape[3]), new.dtype)
                kv[name][:, :, :start] = old[:, :, :start]
            kv[name][:, :, start:end] = new
        kv["length"] = end
        out, _ = attention_forward(q, kv["k"][:, :, :end], kv["v"][:, :, :end], causal=True)
        y = matmul(merge_heads(out), self.params["Wo"])
        return (y[:, 0] if single else y), kv


# %% 7. Attention in tiles
#
# The T × T weights are by far the largest array above: written, read, kept for the backward, and
# never wanted. Can we take the keys a block at a time? The softmax seems to need all scores first,
# for their maximum and sum. It does not. For one query and the keys seen so far, hold
#     m = max sⱼ        l = Σⱼ exp(sⱼ - m)        o = Σⱼ exp(sⱼ - m) vⱼ        (so far, out = o/l)
# A new block arrives. The maximum becomes m' = max(m, max of the new sⱼ), and since
#     exp(sⱼ - m') = exp(sⱼ - m) · exp(m - m'),
# all old terms change by one factor c = exp(m - m'), which we can apply to their sums:
#     l' = c l + Σ_new exp(sⱼ - m')        o' = c o + Σ_new exp(sⱼ - m') vⱼ
# After the last block o/l is exact (Milakov & Gimelshein 2018 for l, Dao et al. 2022). For each
# query keep one more number, Λ = m + log l = log Σⱼ exp(sⱼ): with it the backward can have
#     pᵢⱼ = exp(sᵢⱼ - Λᵢ)
# again, tile by tile. It also needs Σⱼ pᵢⱼ dpᵢⱼ, which runs over all keys. But dpᵢⱼ = doᵢ·vⱼ, so
#     δᵢ = Σⱼ pᵢⱼ (doᵢ·vⱼ) = doᵢ · Σⱼ pᵢⱼ vⱼ = doᵢ·oᵢ:
# the output, which we have, is enough. Then each tile adds its share:
#     dsᵢⱼ = pᵢⱼ (doᵢ·vⱼ - δᵢ)   dqᵢ += α Σⱼ dsᵢⱼ kⱼ   dkⱼ += α Σᵢ dsᵢⱼ qᵢ   dvⱼ += Σᵢ pᵢⱼ doᵢ
# Memory: q, k, v, o, Λ, their gradients and one tile, O(T). Time: scores are computed twice, but
# the future is skipped. A query that sees nothing keeps l = o = 0; Λ = +∞ makes its exp(s - Λ) = 0.


def score_tiles(q, k, i, causal, block, scale):
    """For the query tile at i, key tile after key tile: its slice and scores (B, Hkv, G·bq, bk)."""
    q_i, Tk = q[:, :, i : i + block], k.shape[2]
    bq, first = q_i.shape[2], i + Tk - q.shape[2]  # first: the position of the tile's first query
    for j in range(0, first + bq if causal else Tk, block):  # what lies in the future is skipped
        cols = slice(j, min(j + block, Tk))
        s = grouped(q_i, k.shape[1]) @ k[:, :, cols].swapaxes(-1, -2)
        s *= s.dtype.type(scale)
        if causal and first < cols.stop - 1:  # some query of the tile does not see all its keys
            future = np.arange(j, cols.stop) > np.arange(first, first + bq)[:, None]  # (bq, bk)
            np.copyto(s.reshape(-1, bq, cols.stop - j), -np.inf, where=future)
        yield cols, s


def flash_attention_forward(q, k, v, causal=False, block=64, scale=None):
    """attention_forward without a mask, in O(T) extra memory: out (B, H, Tq, D) and the cache.

    The shapes and rules of attention_forward. block, the side of a tile, need not divide anything.
    """
    q, k, v, scale = check_qkv(q, k, v, scale)
    block = check_count("block", block)
    out, lam = np.empty_like(q), np.empty((*q.shape[:3], 1), q.dtype)
    for i in range(0, q.shape[2], block):
        o_i, lam_i = out[:, :, i : i + block], lam[:, :, i : i + block]  # views of this tile
        o = grouped(np.zeros_like(o_i), k.shape[1])  # (B, Hkv, G·bq, D)
        l, m = np.zeros_like(o[..., :1]), np.full_like(o[..., :1], np.finfo(q.dtype).min)
        for cols, s in score_tiles(q, k, i, causal, block, scale):
            m_new = np.maximum(m, s.max(axis=-1, keepdims=True))
            c = np.exp(m - m_new)
            s -= m_new
            np.exp(s, out=s)
            l = c * l + s.sum(axis=-1, keepdims=True)
            o = c * o + s @ v[:, :, cols]
            m = m_new
        o_i[...] = (o / np.maximum(l, 1)).reshape(o_i.shape)  # l >= 1, or 0 if nothing was seen
        lam_i[...] = np.where(l > 0, m + np.log(np.maximum(l, 1)), np.inf).reshape(lam_i.shape)
    return out, (q, k, v, out, lam, causal, block, scale)


def flash_attention_backward(dout, cache):
    """dq, dk, dv as attention_backward gives them, in O(T) extra memory."""
    q, k, v, out, lam, causal, block, scale = cache
    check_shape("dout", dout, q.shape)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for i in range(0, q.shape[2], block):
        rows = slice(i, i + block)
        tile = (grouped(x[:, :, rows], k.shape[1]) for x in (q, out, lam, dout))
        q_i, o_i, lam_i, do_i = tile  # (B, Hkv, G·bq, D), lam_i (B, Hkv, G·bq, 1)
        delta = np.sum(do_i * o_i, axis=-1, keepdims=True)
        for cols, s in score_tiles(q, k, i, causal, block, scale):
            p = np.exp(s - lam_i)
            dv[:, :, cols] += p.swapaxes(-1, -2) @ do_i
            ds = do_i @ v[:, :, cols].swapaxes(-1, -2)  # dp so far
            ds -= delta
            ds *= p * p.dtype.type(scale)
            dq[:, :, rows] += (ds @ k[:, :, cols]).reshape(dq[:, :, rows].shape)
            dk[:, :, cols] += ds.swapaxes(-1, -2) @ q_i
    return dq, dk, dv


# %% 8. Two layers learn to recall
#
# A text that once said "Mr Finch" will likely follow "Mr" with "Finch" again. In the purest form:
# letters, each with a random digit, then letters again; say which digit stood after each:
#     a3 f0 c7 ... c7 a3 ...
# One head in one layer cannot do it, whatever its weights and its positions. Proof. Take letters a,
# b, digits x, y and four texts, each followed by the query a, with the right answer:
#     axby → x        aybx → y        bxay → y        byax → x
# In one layer, the score sⱼ and the value at place j depend on the query (the same in all four), on
# j and on the token at j. With c the query's own part and wⱼ that of place j, the logit of x minus
# that of y is
#     Δ = c + (1/Z) Σⱼ exp(sⱼ) wⱼ = (1/Z) Σⱼ exp(sⱼ) (c + wⱼ),      Z = Σⱼ exp(sⱼ) > 0:
# its sign is that of a sum to which each place contributes alone. Say A for a first and b third, A'
# for b first and a third (the query's place counted in both), X for x second and y fourth, X' for y
# second and x fourth. All four answers are right only if
#     A + X > 0        A + X' < 0        A' + X < 0        A' + X' > 0.
# The outer two say A + A' + X + X' > 0, the inner two that it is < 0. ∎  (More heads have more Z's,
# and this argument fails; but one layer must be very large: Sanford, Hsu & Telgarsky 2024.)
#
# Two layers can. In the first, a previous-token head copies to each digit the letter before it; in
# the second, the query looks for the place whose *copied* letter equals itself and passes on the
# digit there: an induction head (Olsson et al. 2022). Nobody builds it in. The model
#     x₀ = E[token] + P[position]        x_{l+1} = x_l + attention_l(x_l)        logits = x_L U
# has nothing but attention inside, and descending the cross-entropy -log p[answer] finds it.
#
# Backward. With p = softmax(logits) and section 2,
#     ∂(-log p_y)/∂logitᵢ = -p_y (1[i=y] - pᵢ)/p_y = pᵢ - 1[i=y]
# Then dU = x_Lᵀ dlogits and dx_L = dlogits Uᵀ; x + f(x) has the derivative 1 + f', so each layer
# ADDS its dx to what arrives; and x₀ = onehot E + P gives dE = onehotᵀ dx₀, dP = Σ_b dx₀.

LETTERS = "abcdefghijkl"
TOKENS = LETTERS + "0123456789"


def recall_batch(rng, B, n_pairs):
    """(B, 4·n_pairs) ids: n_pairs distinct letters with digits, then as many pairs redrawn."""
    n_pairs = check_count("n_pairs", n_pairs)
    if n_pairs > len(LETTERS):
        raise ValueError(f"n_pairs is {n_pairs}; expected at most {len(LETTERS)}, one a letter")
    letters = rng.permuted(np.tile(np.arange(len(LETTERS)), (B, 1)), axis=1)[:, :n_pairs]
    digits = rng.integers(len(LETTERS), len(TOKENS), size=(B, n_pairs))
    pairs = np.stack([letters, digits], axis=-1)  # (B, n_pairs, 2)
    redrawn = pairs[np.arange(B)[:, None], rng.integers(n_pairs, size=(B, n_pairs))]
    return np.concatenate([pairs, redrawn], axis=1).reshape(B, -1)


class AttentionOnly:
    """Embeddings, n_layer attention layers on a residual stream, an unembedding; nothing else."""

    def __init__(self, T, n_embd, n_head, n_layer, seed=0, dtype=np.float32):
        T, n_layer = check_count("T", T), check_count("n_layer", n_layer)
        rng, V, C = np.random.default_rng(seed), len(TOKENS), check_count("n_embd", n_embd)
        init = {"token": ((V, C), 0.5), "position": ((T, C), 0.5), "unembed": ((C, V), C**-0.5)}
        self.params = {n: (a * rng.normal(size=s)).astype(dtype) for n, (s, a) in init.items()}
        self.layers = [MultiHeadAttention(C, n_head, seed=seed + 1 + i) for i in range(n_layer)]
        for i, layer in enumerate(self.layers):  # the same arrays under two names
            layer.params = {name: p.astype(dtype) for name, p in layer.params.items()}
            self.params |= {f"{i}.{name}": p for name, p in layer.params.items()}

    def forward(self, idx):
        """logits (B, T, V), the last x (B, T, C), the layers' caches, for token ids (B, T)."""
        idx, T = np.asarray(idx), len(self.params["position"])
        if idx.ndim != 2 or idx.shape[1] != T or idx.dtype.kind not in "iu":
            raise ValueError(f"idx is {idx.dtype} {idx.shape}; expected integers (B, {T})")
        if idx.size and not 0 <= idx.min() <= idx.max() < len(TOKENS):
            found = f"from {idx.min()} to {idx.max()}"
            raise ValueError(f"idx holds ids {found}; expected 0..{len(TOKENS) - 1}")
        x, caches = self.params["token"][idx] + self.params["position"], []
        for layer in self.layers:
            y, cache = layer.forward(x)
            x = x + y  # (B, T, C)
            caches.append(cache)
        return matmul(x, self.params["unembed"]), x, caches

    def loss_and_grads(self, idx):
        """Mean -log p of the answers (the digits of the second half), share right, gradients."""
        logits, x, caches = self.forward(idx)
        idx = np.asarray(idx).astype(np.int64)
        half = idx.shape[1] // 2
        p, _ = softmax_forward(logits[:, half::2])  # (B, n, V) at the letters of the second half
        y = idx[:, half + 1 :: 2, None]  # (B, n, 1), the digits that follow them
        p_y = np.take_along_axis(p, y, axis=-1)
        right = float(np.mean(p.argmax(axis=-1) == y[..., 0]))
        loss = float(-np.log(np.maximum(p_y, 1e-30)).mean())
        np.put_along_axis(p, y, p_y - 1, axis=-1)  # p - onehot
        dlogits = np.zeros_like(logits)  # (B, T, V), no loss in the first half
        dlogits[:, half::2] = p / y.size
        grads, dx = {"unembed": weight_grad(x, dlogits)}, matmul(dlogits, self.params["unembed"].T)
        for i in reversed(range(len(self.layers))):
            d, layer_grads = self.layers[i].backward(dx, caches[i])
            dx = dx + d
            grads |= {f"{i}.{name}": grad for name, grad in layer_grads.items()}
        grads["token"] = weight_grad(np.eye(len(TOKENS), dtype=dx.dtype)[idx], dx)
        grads["position"] = dx.sum(axis=0)
        return loss, right, grads


def progress(message, last=False):
    """One line overwritten in place on a terminal; when piped, only the last message is printed."""
    if sys.stdout.isatty():
        print(f"\r{message:<96}", end="\n" if last else "", flush=True)
    elif last:
        print(message, flush=True)


def train(model, steps, n_pairs, seed, name="", learning_rate=1e-2, B=32):
    """Adam (stage 4) on fresh batches; the share right in each eighth of the steps.

    ValueError, naming the step, if the loss is not finite any more."""
    steps = check_count("steps", steps)
    check_number("learning_rate", learning_rate)
    rng, rights = np.random.default_rng(seed), []
    m, s = ({key: np.zeros_like(p) for key, p in model.params.items()} for _ in range(2))
    for t in range(1, steps + 1):
        loss, right, grads = model.loss_and_grads(recall_batch(rng, B, n_pairs))
        if not math.isfinite(loss):
            raise ValueError(f"step {t}: loss {loss}; expected a finite one: lower learning_rate")
        rate = learning_rate * min(1, t / 50) * (1 - 0.9 * t / steps)  # warm up, then decay
        for key, p in model.params.items():
            m[key] += 0.1 * (grads[key] - m[key])
            s[key] += 0.02 * (grads[key] * grads[key] - s[key])
            p -= rate * (m[key] / (1 - 0.9**t)) / (np.sqrt(s[key] / (1 - 0.98**t)) + 1e-8)
        rights.append(right)
        if t % 20 == 0:
            progress(f"{name}: step {t} of {steps}, loss {loss:.3f}, right {right:.1%}")
    return [float(np.mean(part)) for part in np.array_split(rights, 8)]


# %% Demonstration


def report_scale(seed):
    """What 1/√D does to the scores, the entropy and the gradient."""
    print("1. The scale. Scores of 64 random keys, as they are (q·k) and divided by √D (scaled)")
    print(f"{'':>5}   {'variance':^15}   {'entropy, nats':^15}   {'gradient passed':^15}")
    print(f"{'D':>5}" + f"   {'q·k':>7} {'scaled':>7}" * 3)
    for D in (4, 16, 64, 256):
        rng = np.random.default_rng(seed)
        pairs = zip(*(scale_statistics(D, scale, rng) for scale in (1.0, D**-0.5)))
        print(f"{D:>5}" + "".join(f"   {raw:>7.2f} {scaled:>7.2f}" for raw, scaled in pairs))
    print(f"Equal weights have entropy ln 64 = {math.log(64):.2f}. Gradient passed is 1 - Σp².")


def report_recall(seed, n_pairs, steps, width):
    """One layer against two on the recall task, and what the two look at."""
    print(f"\n2. Recall. {n_pairs} pairs, then {n_pairs} letters to answer; {steps} training steps")
    print(f"{'':<36} {'weights':>7} {'loss':>6} {'right':>6}   % right, by eighths of training")
    check = recall_batch(np.random.default_rng(seed + 1), 1000, n_pairs)
    digits, answers = check[:, 1 : 2 * n_pairs : 2], check[:, 2 * n_pairs + 1 :: 2]
    guess = np.mean([row == np.bincount(seen).argmax() for row, seen in zip(answers, digits)])
    print(f"{'the most frequent digit so far':<36} {0:>7} {'':>6} {guess:>6.1%}")
    wide = 2 * math.ceil(width / 2**0.5)  # one layer of √2 times the width has twice the weights
    for n_layer, n_head, C in ((1, 1, wide), (1, 2, wide), (2, 1, width)):
        name = f"layers {n_layer}, heads each {n_head}, channels {C}"
        model = AttentionOnly(4 * n_pairs, C, n_head, n_layer, seed)
        course = train(model, steps, n_pairs, seed, name)
        loss, right, _ = model.loss_and_grads(check)
        size = sum(p.size for p in model.params.values())
        eighths = "".join(f"{100 * share:>4.0f}" for share in course)
        progress(f"{name:<36} {size:>7,} {loss:>6.3f} {right:>6.1%}  {eighths}", last=True)
    maps = [cache[4][3][0, 0] for cache in model.forward(check[:1])[2]]  # p of each layer's head
    print("\nWhere it looks (a row asks, a column is looked at): left layer 1, right layer 2")
    text, shades = "".join(TOKENS[i] for i in check[0]), " .:-=+*#%@"
    print(f"  {text}        {text}")
    for i, token in enumerate(text):
        drawn = ("".join(shades[min(9, int(10 * p))] for p in w[i]) for w in maps)
        print("      ".join(f"{token} {row}" for row in drawn).rstrip())
    half, ids, last = 2 * n_pairs, check[0], maps[1]
    before = maps[0][range(1, half, 2), range(0, half, 2)].mean()
    found = (last[:, 1:] * (ids[:, None] == ids[:-1]))[half::2].sum() / n_pairs
    print(f"Layer 1, from a digit to the letter before it:           weight {before:.2f}")
    print(f"Layer 2, from a letter to the digits that followed it:   weight {found:.2f}")


def best_ms(f, *args):
    """Milliseconds of the fastest of four calls of f."""
    return 1000 * min(timeit.repeat(lambda: f(*args), number=1, repeat=4))


def report_tiles(seed, lengths):
    """Time and peak memory of forward and backward, with the T × T matrix and in tiles."""
    print("\n3. Tiles. Causal, 2 heads of size 64, float32, forward and backward together")
    print(f"{'T':>6}{'matrix ms':>13}{'tiles':>9}{'matrix MiB':>13}{'tiles':>9}{'difference':>14}")

    def run(forward, backward, q, k, v, dout):
        out, cache = forward(q, k, v, causal=True)
        return out, *backward(dout, cache)

    flash = flash_attention_forward, flash_attention_backward
    for T in lengths:
        data = np.random.default_rng(seed).normal(size=(4, 1, 2, T, 64)).astype(np.float32)
        ms, mib, results = [], [], []
        for pair in ((attention_forward, attention_backward), flash):
            ms.append(best_ms(run, *pair, *data))
            tracemalloc.start()
            results.append(run(*pair, *data))
            mib.append(tracemalloc.get_traced_memory()[1] / 2**20)
            tracemalloc.stop()
        apart = max(float(np.abs(a - b).max()) for a, b in zip(*results))
        columns = "".join(f"{a:>13.1f}{b:>9.1f}" for a, b in (ms, mib))
        print(f"{T:>6}{columns}{apart:>14.0e}", flush=True)
    print("Read down the MiB: twice the T is four times the matrix, but twice the tiles.")


def report_cache(seed, lengths, C=256, n_head=8):
    """Milliseconds for the next token without and with a cache, and the size of the cache."""
    print(f"\n4. Cache. One layer, {C} channels, {n_head} query heads: time for the T-th token")
    kinds = {"multi-head": n_head, "grouped": 2, "multi-query": 1}
    print(f"{'T':>6} {'no cache':>12}" + "".join(f"{kind:>22}" for kind in kinds))
    for T in lengths:
        x, line = np.random.default_rng(seed).normal(size=(1, T, C)).astype(np.float32), ""
        for n_kv_head in kinds.values():
            layer = MultiHeadAttention(C, n_head, n_kv_head, rope=True, seed=seed)
            layer.params = {name: p.astype(np.float32) for name, p in layer.params.items()}
            line = line or f"{T:>6} {best_ms(layer.forward, x):>9.2f} ms"
            _, kv = layer.step(x[:, :-1])
            kib = 2 * 4 * n_kv_head * (C // n_head) * T / 1024  # k and v, 4 bytes a number
            line += f"{best_ms(layer.step, x[:, -1], kv):>9.3f} ms {kib:>5.0f} KiB"
        print(line, flush=True)


def report(args):
    """Scale, recall, tiles and cache, in this order."""
    report_scale(args.seed)
    report_recall(args.seed, *((3, 110, 48) if args.fast else (6, 400, 64)))
    report_tiles(args.seed, (64, 128, 256) if args.fast else (512, 1024, 2048, 4096))
    report_cache(args.seed, (64, 128) if args.fast else (64, 256, 1024, 2048))


def drop_unwritten():
    """Forget what stdout cannot take, so that Python's own flush at the end does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:  # a closed pipe, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
#
# 1. Masking after the softmax, or with 0 for -∞. Symptom: training loss far too good, samples poor.
#    In attention_forward -∞ enters s before softmax_forward.
# 2. No 1/√D. Symptom: maps near one-hot from the first step, hardly any learning. See check_qkv.
# 3. A row of nothing but -∞, as padding makes. Symptom: NaN one step later. See softmax_forward.
# 4. A causal mask aligned at the left when Tq < Tk. Symptom: good training, nonsense with a cache,
#    where the new query sees only key 0. See the offset Tk - Tq in sliding_window_mask.
# 5. Cached tokens rotated as if at position 0. Symptom: step and forward differ. See step.
# 6. reshape to (B, H, T, D) without a swap. Symptom: shapes fit, but heads mix places and see the
#    future. split_heads splits the last axis, then swaps two.

# %% Exercises
#
#  1. (reading) Where in attention_forward is it decided that this is self- or cross-attention?
#  2. Show that each row of softmax_backward sums to 0. Which invariance of section 2 is that?
#  3. Zero the weights after the softmax instead of masking. Show two inputs where the future leaks.
#  4. Print p for scores β(1, 2, 3) as β goes through 0, 1, 10, 100. Where does its gradient vanish?
#  5. Let keys see their neighbour: kⱼ + λkⱼ₋₁ with a learned λ. Does one layer recall now? Why?
#  6. Give AttentionOnly rope, then ALiBi, for its table. Train on 6 pairs, test on 12: which holds?
#  7. Write down weights, without training, with which two layers answer every recall question.
#  8. Return ∂L/∂mask from attention_backward and learn a bias per distance, as T5 does.
#  9. Add a window to MultiHeadAttention and a rolling buffer to step; is the reach L(w-1)?
# 10. Store cached keys in 8 bits with a scale per key, then in 4. When does recall break?
# 11. (research) When does each head of section 8 appear? Must the first precede the second?

# %% Where this leads
#
# Stage 6 adds a normalisation and a small network to each attention layer, stacks the result, and
# has a transformer. Llama's attention is the one here: rotary, grouped, cached, trained in tiles.

if __name__ == "__main__":
    main()
