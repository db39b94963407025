# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Capstone: a GPT, trained end to end, with every backward pass written by hand.

The question: what, exactly, happens when a language model is trained? The answer is this file. A
transformer is about a dozen differentiable functions in a row. For each we derive its derivative on
paper, write it below the derivation as code, and check it against a numerical derivative. Text
goes in, one number comes out (how surprised the model was), and the chain rule carries that number
back to every parameter. The rest is bookkeeping done with care: batches, an optimizer, checkpoints
that survive kill -9, and text drawn from the result.

The two families in use today are built from one set of layers:

    gpt2    learned positions, LayerNorm, GELU, biases                (Radford et al. 2019)
    llama   rotary positions, RMSNorm, SwiGLU, grouped queries        (Touvron et al. 2023)

You should know what a derivative and a matrix product are (stage 2 recalls both). Each stage that
explains an idea at leisure is named where the idea is used.

    The lesson, to be read in order:
     1 the whole file in small   2 layers by hand       3 attention           4 the block
     5 configuration             6 the model            7 names and shapes    8 the gradient check
     9 the draw                 10 text and tokens     11 the optimizer      12 the training step
    13 the yardstick
    The engine room, to be looked up:
    14 files of weights         15 tokenizers          16 texts larger than memory
    17 the team                 18 the machine         19 training runs
    20 the command line

    python capstone_gpt.py                            train on data/stories.txt, two minutes
    python capstone_gpt.py train --data my.txt        train on any UTF-8 text
    python capstone_gpt.py sample --prompt "The fox"  continue a text, token by token
    python capstone_gpt.py eval                       held-out bits per character of a checkpoint
    python capstone_gpt.py gradcheck                  every gradient against central differences

Papers: Vaswani et al. 2017, Attention Is All You Need; Ba et al. 2016, Layer Normalization; Zhang &
Sennrich 2019, Root Mean Square Layer Normalization; Hendrycks & Gimpel 2016, Gaussian Error Linear
Units; Shazeer 2020, GLU Variants Improve Transformer; Su et al. 2021, RoFormer; Ainslie et al.
2023, GQA; Dao et al. 2022, FlashAttention; Loshchilov & Hutter 2019, Decoupled Weight Decay.
"""

import argparse
import codecs
import collections
import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import heapq
import itertools
import json
import math
import mmap
import numbers
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
if not DATA.is_dir():  # installed by pip
    DATA = HERE / "capstone_gpt_data"

# %% 1. The whole file in small
#
# A language model gives every possible next token a score, and training raises the scores of the
# tokens that really came next. The smallest model that does this is a table: W[a, b] is the score
# of token b after token a. Here is one training step of it, complete. A score becomes a probability
# by the softmax. The loss is the mean of -log p over the tokens that came. The logarithm is the
# natural one, so its unit is the nat; divided by ln 2 it is in bits. Its derivative with respect to
# the scores is p, less 1 at the token that came (derived in section 2, at cross-entropy). A step
# against the derivative makes the loss smaller.


def table_step(W, tokens, learning_rate):
    """Train W (V, V) on token ids, in place; returns the loss before the step, nats per token."""
    inputs, targets = tokens[:-1], tokens[1:]
    loss, gradient = 0.0, np.zeros_like(W)
    for a, b in zip(inputs, targets):
        p = np.exp(W[a]) / np.exp(W[a]).sum()  # the probabilities of every next token
        loss += -np.log(p[b])
        gradient[a] += p
        gradient[a, b] -= 1
    W -= learning_rate * gradient / len(targets)
    return loss / len(targets)


# The text "abab" is [0, 1, 0, 1]. With W = 0 both tokens have probability ½: the loss is ln 2 =
# 0.693. Token a is followed by b twice, so its row of the gradient is 2·[½, ½ - 1]/3 = [⅓, -⅓]; b
# is followed by a once: 1·[½ - 1, ½]/3 = [-⅙, ⅙]. A step with learning rate 3 makes the table
# [[-1, 1], [½, -½]], and the loss falls to 0.189: the model has seen that a and b take turns.
#
# All that follows replaces the table by a function that looks at all of the text before the next
# token (half a million weights in the default run), and the step by a better one. The idea stays.

# %% 2. Layers by hand
#
# Shapes: B sequences in a batch, T tokens in each, C channels, V vocabulary, H heads of size D, F
# hidden units. L is the loss, the one number at the end. A layer is a pair of pure functions. The
# forward returns its output y and a cache, whatever the backward needs; the backward receives dy =
# ∂L/∂y and returns dx = ∂L/∂x, then the gradients of the layer's parameters. Every derivation is
# the chain rule, a sum over all that x touches: ∂L/∂xᵢ = Σⱼ ∂L/∂yⱼ · ∂yⱼ/∂xᵢ.
#
# Two habits make NumPy fast here and cost nothing to read: sums over rows are products with a
# vector (x @ ones, or np.vecdot(x, y) for Σᵢ xᵢyᵢ row by row), which beat x.sum(-1), and long
# elementwise chains walk over tiles of rows small enough to stay in the cache.


def need(condition, message):
    """Raise ValueError(message) unless the condition holds: how this file refuses bad input."""
    if not condition:
        raise ValueError(message)


def tiles(rows, columns, floats=65536):
    """Slices that cut `rows` rows of `columns` numbers into pieces of about `floats` numbers."""
    step = max(1, floats // max(1, columns))
    return (slice(i, i + step) for i in range(0, rows, step))


# Linear. y = xW + b, in one row's coordinates yⱼ = Σᵢ xᵢWᵢⱼ + bⱼ. A change of xᵢ moves every yⱼ by
# Wᵢⱼ, a change of Wᵢⱼ moves only yⱼ, by xᵢ, and does so for every row n of the batch:
#     ∂L/∂xᵢ  = Σⱼ dyⱼ Wᵢⱼ         dx = dy Wᵀ
#     ∂L/∂Wᵢⱼ = Σₙ xₙᵢ dyₙⱼ        dW = xᵀ dy
#     ∂L/∂bⱼ  = Σₙ dyₙⱼ            db = 1ᵀ dy
# dW is laid out in memory as W is. Llama's weights and the head's are transposed views; for them
# dWᵀ = dyᵀx is computed, so that putting it in its place is a plain copy and not a shuffle.


def linear_forward(x, W, b=None):
    """y = xW + b for x (..., I), W (I, O), b (O,) or None: y (..., O)."""
    y = x.reshape(-1, x.shape[-1]) @ W
    if b is not None:
        y += b
    return y.reshape(*x.shape[:-1], W.shape[1]), (x, W, b)


def linear_backward(dy, cache):
    """dx (..., I), dW (I, O), db (O,) or None."""
    x, W, b = cache
    flat_x, flat_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dx = (flat_dy @ W.T).reshape(x.shape)
    db = None if b is None else np.ones(len(flat_dy), dy.dtype) @ flat_dy
    dW = (flat_dy.T @ flat_x).T if W.flags.f_contiguous else flat_x.T @ flat_dy
    return dx, dW, db


# Embedding. y = W[i] picks row i, which is the linear layer for a one-hot input x. Its dW = xᵀdy
# adds each dy to the row its token came from; a token met twice collects twice: rows are *added*.
# With few different tokens the product with the one-hot x is fastest, with many a loop over tokens.


def embedding_forward(idx, W):
    """Rows of W (V, C) for token ids idx (...): y (..., C)."""
    return W[idx], (idx, W)


def embedding_backward(dy, cache):
    """dW (V, C); ids have no derivative."""
    idx, W = cache
    flat_dy = dy.reshape(-1, dy.shape[-1])
    if len(W) <= 256:
        one_hot = np.arange(len(W))[:, None] == idx.ravel()  # (V, N)
        return one_hot.astype(dy.dtype) @ flat_dy
    dW = np.zeros(W.shape, dy.dtype)
    for i, d in zip(idx.ravel().tolist(), flat_dy):  # np.add.at is slower
        dW[i] += d
    return dW


# RMSNorm. For each row of C numbers
#     r = 1/√(mean(x²) + ε),   x̂ = x r,   y = x̂γ      (γ is `weight` in the code).
# γ is scaled by x̂ in every row n, so dγ = Σₙ dy x̂. For x let a = ∂L/∂x̂ = dy γ. Every xᵢ moves r:
# ∂mean(x²)/∂xᵢ = 2xᵢ/C, so ∂r/∂xᵢ = -½r³ · 2xᵢ/C = -r² x̂ᵢ/C, and by the product rule
#     ∂x̂ⱼ/∂xᵢ = r 1[i=j] + xⱼ(-r² x̂ᵢ/C) = r(1[i=j] - x̂ⱼx̂ᵢ/C)
#     dxᵢ = Σⱼ aⱼ ∂x̂ⱼ/∂xᵢ = r( aᵢ - x̂ᵢ mean(a x̂) ):
# a loses (exactly so for ε = 0) its component along x̂, because the layer ignores the length of x.
# With a = dy γ the mean is a product of dy x̂ with γ/C.


def rmsnorm_forward(x, weight, eps=1e-5, out=None):
    """Rows of x (..., C) to root mean square 1, times weight (C,); out: where x̂ goes, even x."""
    r = 1 / np.sqrt(np.vecdot(x, x) / x.shape[-1] + eps)  # (...,)
    xhat = np.multiply(x, r[..., None], out=out)
    return xhat * weight, (xhat, r, weight)


def rmsnorm_backward(dy, cache):
    """dx (..., C), dweight (C,)."""
    xhat, r, weight = cache
    C = dy.shape[-1]
    dy_xhat = dy * xhat
    dweight = np.ones(dy.size // C, dy.dtype) @ dy_xhat.reshape(-1, C)
    mean_a_xhat = dy_xhat @ (weight / C)
    dx = dy * weight
    dx -= np.multiply(xhat, mean_a_xhat[..., None], out=dy_xhat)
    dx *= r[..., None]
    return dx, dweight


# LayerNorm also removes the mean, and adds a bias: with z = x - mean(x), whose mean square is the
# variance of x, it is rmsnorm(z) + β. Again dβ = Σₙ dy. From dz to dx: ∂zⱼ/∂xᵢ = 1[i=j] - 1/C, so
#     dxᵢ = Σⱼ dzⱼ (1[i=j] - 1/C) = dzᵢ - mean(dz).


def row_mean(x):
    """The mean of every row of x (..., C): (..., 1)."""
    C = x.shape[-1]
    return (x @ np.full(C, 1 / C, x.dtype))[..., None]


def layernorm_forward(x, weight, bias=None, eps=1e-5):
    """Rows of x (..., C) to mean 0 and variance 1, times weight (C,), plus bias (C,) or None."""
    z = x - row_mean(x)
    y, cache = rmsnorm_forward(z, weight, eps, out=z)
    if bias is not None:
        y += bias
    return y, (cache, bias)


def layernorm_backward(dy, cache):
    """dx (..., C), dweight (C,), dbias (C,) or None."""
    rms_cache, bias = cache
    C = dy.shape[-1]
    dx, dweight = rmsnorm_backward(dy, rms_cache)
    dx -= row_mean(dx)
    dbias = None if bias is None else np.ones(dy.size // C, dy.dtype) @ dy.reshape(-1, C)
    return dx, dweight, dbias


# GELU. x Φ(x), with Φ(x) the chance that a standard normal number is below x, in GPT-2's form:
#     y = x h,   h = ½(1 + tanh u),   u = c(x + k x³),   c = √(2/π),   k = 0.044715.
# tanh' = 1 - tanh², and 1 - tanh² = (1 + tanh)(1 - tanh) = 4h(1 - h), so h' = 2h(1 - h)u' and
#     slope = y' = h + x h' = h (1 + 2x (1 - h) u'),   u' = c(1 + 3k x²).
# The forward computes this slope while x and h are at hand: the backward is one product. x³ is
# written as products: NumPy's x**3 calls pow() for every element and takes fifty times as long.
# plain_gelu is the formulas as they stand. gelu_forward takes the same steps in place, on tiles
# that stay in the cache: that halves its time, and it is the largest part after the products.


def plain_gelu(x):
    """GELU of x, tanh form, and its slope."""
    c, k = math.sqrt(2 / math.pi), 0.044715
    h = 0.5 * (1 + np.tanh(c * (x + k * x * x * x)))
    u_slope = c * (1 + 3 * k * x * x)
    return x * h, h * (1 + 2 * x * (1 - h) * u_slope)


def gelu_forward(x):
    """GELU of x (..., F), tanh form; the cache is the slope."""
    c, k = math.sqrt(2 / math.pi), 0.044715
    y, slope = np.empty_like(x), np.empty_like(x)
    flat_x, flat_y, flat_slope = (array.reshape(-1, x.shape[-1]) for array in (x, y, slope))
    for rows in tiles(*flat_x.shape):
        x_rows, h, s = flat_x[rows], flat_y[rows], flat_slope[rows]
        u = np.clip(x_rows, -10, 10)  # beyond, h is 0 or 1 in any case, and x² may overflow
        u *= u
        np.multiply(u, 6 * c * k, out=s)
        s += 2 * c  # s = 2u'
        u *= c * k
        u += c
        u *= x_rows  # u itself
        np.tanh(u, out=h)
        h *= 0.5
        h += 0.5  # h itself
        s *= x_rows
        s *= np.subtract(1, h, out=u)
        s += 1
        s *= h  # s = h (1 + 2x (1 - h) u')
        h *= x_rows  # y, in h's place
    return y, slope


def gelu_backward(dy, slope):
    """dx (..., F)."""
    return dy * slope


# SwiGLU. y = silu(g)u, silu(g) = g s, s = 1/(1 + e⁻ᵍ) the sigmoid: one half of the input opens a
# gate on the other. With s' = e⁻ᵍ/(1 + e⁻ᵍ)² = s(1 - s),
#     silu'(g) = s + g s(1 - s) = s + silu(g)(1 - s),    dg = dy u silu'(g),    du = dy silu(g).
# s is computed as ½(1 + tanh(g/2)), which cannot overflow and is the same: tanh(g/2) is
# (e^(g/2) - e^(-g/2))/(e^(g/2) + e^(-g/2)) = (1 - e⁻ᵍ)/(1 + e⁻ᵍ) = 2s - 1.


def swiglu_forward(x):
    """silu(g) * u for x = [g, u] (..., 2F): y (..., F)."""
    F = x.shape[-1] // 2
    flat_x = x.reshape(-1, 2 * F)
    y, silu, slope = (np.empty((len(flat_x), F), x.dtype) for _ in range(3))
    for rows in tiles(len(flat_x), F):
        g, u = flat_x[rows, :F], flat_x[rows, F:]
        s = 0.5 * np.tanh(0.5 * g) + 0.5
        silu_rows = g * s
        silu[rows] = silu_rows
        slope[rows] = u * (s + silu_rows * (1 - s))  # what dg needs besides dy
        y[rows] = silu_rows * u
    return y.reshape(*x.shape[:-1], F), (silu, slope)


def swiglu_backward(dy, cache):
    """dx = [dg, du] (..., 2F)."""
    silu, slope = cache
    F = dy.shape[-1]
    dx = np.empty((len(silu), 2 * F), dy.dtype)
    np.multiply(dy.reshape(-1, F), slope, out=dx[:, :F])
    np.multiply(dy.reshape(-1, F), silu, out=dx[:, F:])
    return dx.reshape(*dy.shape[:-1], 2 * F)


# Dropout. Zero each number with probability p and divide the rest by 1 - p, so that E[y] = x stays.
# It is a product with a random constant m: dx = m dy.


def dropout_forward(x, p, rngs):
    """x (B, ...) with a fraction p of its numbers zeroed, the rest scaled by 1/(1-p).

    rngs: B generators, one draws each sequence's mask; None switches dropout off.
    """
    if rngs is None or p == 0:
        return x, None
    uniform = np.stack([rng.random(x.shape[1:], dtype=np.float32) for rng in rngs])
    mask = (uniform >= p) * x.dtype.type(1 / (1 - p))
    return x * mask, mask


def dropout_backward(dy, mask):
    """dx, shaped like dy."""
    return dy if mask is None else dy * mask


# Cross-entropy. The softmax p = e^z / Σₖ e^zₖ turns scores z, also called logits, into
# probabilities, and the loss of one token is -log p[target] = log Σₖ e^zₖ - z[target]. The two
# terms have the derivatives
#     ∂/∂zⱼ log Σₖ e^zₖ = e^zⱼ / Σₖ e^zₖ = pⱼ,    ∂/∂zⱼ z[target] = 1[j = target]
#     dzⱼ = (pⱼ - 1[j = target]) / n      for the mean over the n targets that count.
# Subtracting the row's maximum from z changes neither, and keeps e^z from overflowing.


def cross_entropy_forward(logits, targets):
    """Mean nats of targets (...) under logits (..., V); -1 is ignored, with no target it is 0."""
    z = logits.reshape(-1, logits.shape[-1])
    targets = targets.ravel()
    kept = np.flatnonzero(targets != -1)
    e = z - z.max(-1, keepdims=True)  # (N, V)
    picked = e[kept, targets[kept]]
    np.exp(e, out=e)
    total = e @ np.ones(e.shape[1], e.dtype)  # (N,)
    loss = float((np.log(total[kept]) - picked).mean()) if len(kept) else 0.0
    return loss, (e, total, targets, kept, logits.shape)


def cross_entropy_backward(dloss, cache):
    """dlogits (..., V) for an upstream scalar dloss."""
    e, total, targets, kept, shape = cache
    share = np.zeros(len(targets), e.dtype)
    share[kept] = dloss / max(1, len(kept))
    dz = e * (share / total)[:, None]  # p / n
    dz[kept, targets[kept]] -= share[kept]
    return dz.reshape(shape)


# %% 3. Attention
#
# So far every layer treats each position alone. Attention is where positions talk. From its own row
# each position makes three vectors by linear layers: a query (what it looks for), a key (how it is
# found) and a value (what it gives). Several such readings, with D channels each, run side by side;
# each is a head.
#
# Every query qᵢ scores the keys of its own and of earlier positions, the softmax turns the scores
# into weights P, and the output is the mean of the values under these weights. For j ≤ i
#     sᵢⱼ = qᵢ·kⱼ/√D,   Eᵢⱼ = exp(sᵢⱼ - maxₖ sᵢₖ),   lᵢ = Σⱼ Eᵢⱼ,   Pᵢⱼ = Eᵢⱼ/lᵢ,   yᵢ = Σⱼ Pᵢⱼ vⱼ
# (1/√D: a sum of D products of unit variance has variance D; see stage 5). In plain NumPy:


def plain_attention(q, k, v):
    """Causal attention as the formulas say it, for q, k, v (..., T, D): y (..., T, D)."""
    T, D = q.shape[-2:]
    s = q @ k.swapaxes(-1, -2) / math.sqrt(D)  # (..., T, T)
    s = np.where(np.tri(T, dtype=bool), s, -np.inf)  # a score of -∞ is a weight of 0
    E = np.exp(s - s.max(-1, keepdims=True))
    return E / E.sum(-1, keepdims=True) @ v


# Backward, from right to left. y = Pv is a linear layer twice over: dv = Pᵀdy and dPᵢⱼ = dyᵢ·vⱼ.
# The softmax has ∂Pᵢⱼ/∂sᵢₖ = Pᵢⱼ(1[j=k] - Pᵢₖ), hence
#     dsᵢₖ = Σⱼ dPᵢⱼ Pᵢⱼ (1[j=k] - Pᵢₖ) = Pᵢₖ (dPᵢₖ - δᵢ),
#     δᵢ = Σⱼ Pᵢⱼ dPᵢⱼ = Σⱼ Pᵢⱼ dyᵢ·vⱼ = dyᵢ·yᵢ,      a sum over D numbers instead of T,
# and s = qkᵀ/√D gives dq = ds k/√D and dk = dsᵀq/√D.
#
# The fast form below computes the same numbers and saves work in two places. First, nothing of size
# T×T is divided by l. Forward, y = (E v)/l. Backward, let g = dy/l: then
#     ds = P(dP - δ) = (E/l)(dy vᵀ - δ) = E(g vᵀ - δ/l),   δ/l = g·y,   dv = Eᵀg.
# Its q is divided by √D once, at the start, so dk = dsᵀq needs no factor. Second, queries go in
# blocks of 64. A block needs the keys up to its own end and no others, so most of the upper
# triangle, which is all zeros, is never computed.
#
# Dropout on P multiplies Eᵢⱼ by a mask mᵢⱼ before the product with v, but leaves l alone; then
# dP = m(dy vᵀ), and δ = dy·y still holds because y contains the same mask.
#
# Grouped queries (GQA): H/Hkv query heads share one key head and one value head. The axes are
# (B, Hkv, H/Hkv, T, D), and a shared key's gradient is the sum over its group. With a cache of past
# keys there are fewer queries than keys: the queries are the *last* Tq positions.

BLOCK = 64
CAUSAL = np.triu(np.full((BLOCK, BLOCK), -np.inf, np.float32), 1)


def attention_forward(q, k, v, p=0.0, rngs=None):
    """Causal attention of q (B, H, Tq, D) over k, v (B, Hkv, Tk, D), Hkv dividing H, Tq ≤ Tk.

    p and rngs drop attention weights. Returns y (B, H, Tq, D), laid out in memory as (B, Tq, H, D).
    """
    B, H, Tq, D = q.shape
    Hkv, Tk = k.shape[1:3]
    past = Tk - Tq
    k, v = k[:, :, None], v[:, :, None]  # (B, Hkv, 1, Tk, D)
    q = (q * q.dtype.type(1 / math.sqrt(D))).reshape(B, Hkv, H // Hkv, Tq, D)
    y = np.empty((B, Tq, H, D), q.dtype).transpose(0, 2, 1, 3)  # (B, H, Tq, D)
    blocks = []
    for i in range(0, Tq, BLOCK):
        rows = slice(i, min(i + BLOCK, Tq))
        n, end = rows.stop - i, past + rows.stop  # queries in this block, keys they may see
        E = q[..., rows, :] @ k[..., :end, :].swapaxes(-1, -2)  # (B, Hkv, H/Hkv, n, end)
        E[..., past + i :] += CAUSAL[:n, :n]
        E -= E.max(-1, keepdims=True)
        np.exp(E, out=E)
        l = (E @ np.ones(end, E.dtype))[..., None]  # (B, Hkv, H/Hkv, n, 1)
        masked_E, mask = dropout_forward(E, p, rngs)
        y[:, :, rows] = ((masked_E @ v[..., :end, :]) / l).reshape(B, H, n, D)
        blocks.append((rows, end, E, mask, l))
    return y, (q, k, v, y, blocks)


def attention_backward(dy, cache):
    """dq (B, H, Tq, D), dk and dv (B, Hkv, Tk, D)."""
    q, k, v, y, blocks = cache
    B, Hkv, D = len(y), k.shape[1], y.shape[-1]
    dq, dk, dv = np.empty_like(q), np.zeros(k.shape, k.dtype), np.zeros(v.shape, v.dtype)
    for rows, end, E, mask, l in blocks:
        block = (*q.shape[:3], -1, D)
        g = dy[:, :, rows].reshape(block) / l  # (B, Hkv, H/Hkv, n, D)
        delta_over_l = np.vecdot(g, y[:, :, rows].reshape(block))[..., None]
        dP_over_l = dropout_backward(g @ v[..., :end, :].swapaxes(-1, -2), mask)
        dP_over_l -= delta_over_l
        ds = np.multiply(E, dP_over_l, out=dP_over_l)  # (B, Hkv, H/Hkv, n, end)
        masked_E = dropout_backward(E, mask)
        dq[..., rows, :] = ds @ k[..., :end, :]
        group_q = q[..., rows, :].reshape(B, Hkv, -1, D)  # the group's queries in one row
        group_ds = ds.reshape(B, Hkv, -1, end)
        dk[:, :, 0, :end] += group_ds.swapaxes(-1, -2) @ group_q
        group_E = masked_E.reshape(B, Hkv, -1, end)
        dv[:, :, 0, :end] += group_E.swapaxes(-1, -2) @ g.reshape(B, Hkv, -1, D)
    dq *= q.dtype.type(1 / math.sqrt(D))
    return dq.reshape(y.shape), dk[:, :, 0], dv[:, :, 0]


# RoPE. Attention alone does not know which key is near. Llama tells it by a rotation: the channel
# pair (a, b) of a head turns by the angle pθᵢ at position p, for i = 0 .. D/2 - 1 and
# θᵢ = base^(-2i/D), slower for later pairs (base is rope_theta in a configuration):
#     (a, b) → (a cos - b sin, b cos + a sin), a matrix R(p) with the inverse R(-p) = R(p)ᵀ.
# Turning back by m positions and then forward by n is turning by n - m. So the score of a query q
# at position m and a key k at n knows only their distance:
#     (R(m)q)·(R(n)k) = qᵀR(m)ᵀR(n)k = q·R(n - m)k.
# The backward of y = Rx is dx = Rᵀdy, the rotation back. a and b are the two halves of the head
# ("half-split"), as Hugging Face stores Llama's weights.
#
# Llama 3.1 stretches the positions of a model trained on short texts. A pair that makes few turns
# in the original context (less than low_freq_factor) turns `factor` times more slowly; a pair that
# makes many (more than high_freq_factor) knows only near distances and stays; between them the
# share that stays grows linearly with the number of turns.


def rope_frequencies(D, base, scaling=None):
    """θᵢ, radians a position, of the D/2 pairs; scaling: GPTConfig.rope_scaling or None."""
    frequencies = base ** (-np.arange(0, D, 2) / D)
    if scaling:
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        stays = np.clip((turns - low) / (high - low), 0, 1)
        frequencies *= stays + (1 - stays) / scaling["factor"]
    return frequencies


def rope_tables(positions, frequencies, dtype):
    """[cos, cos] and [-sin, sin] (T, 1, D) of the angles position · frequency."""
    angles = np.asarray(positions, np.float64)[:, None, None] * frequencies
    cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    return np.concatenate([cos, cos], -1), np.concatenate([-sin, sin], -1)


def rope_forward(x, cos, signed_sin):
    """Rotate x (B, T, H, D): halves [a, b] become [a cos - b sin, b cos + a sin] in every head."""
    ab = x.reshape(*x.shape[:-1], 2, -1)
    y = ab[..., ::-1, :].copy().reshape(x.shape)  # [b, a]
    y *= signed_sin
    y += x * cos
    return y, (cos, signed_sin)


def rope_backward(dy, cache):
    """dx (B, T, H, D): the rotation back."""
    cos, signed_sin = cache
    return rope_forward(dy, cos, -signed_sin)[0]


# %% 4. The block
#
# x, one row of C numbers for each position, is called the residual stream. One layer of the
# transformer reads it, and adds to it twice:
#     x ← x + attention(norm(x)) W_out,      x ← x + mlp(norm(x)).
# The mlp, two linear layers with GELU or SwiGLU between them, works on each position alone.
# In the backward a sum copies its gradient to both terms, so dx flows past each branch unchanged
# *and* through it: this identity path is what lets gradients reach the first layer of a deep model.
# p holds one block's weights as (in, out) matrices under names of our own; qkv stacks the three
# projections side by side and llama's `up` stacks [gate, up], so each is one product. config is the
# GPTConfig of section 5, which says the family (arch) and the sizes.
#
# When text is generated, the keys and values of a position never change once later tokens arrive,
# so they are kept in kv: a new token costs the work of one position instead of all of them.


def norm_forward(x, p, name, config):
    """The family's normalisation of x (..., C) with the weights called `name`."""
    weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
    if config.arch == "gpt2":
        return layernorm_forward(x, weight, bias, config.norm_eps)
    return rmsnorm_forward(x, weight, config.norm_eps)


def norm_backward(dy, cache, config):
    """dx (..., C), dweight (C,), dbias (C,) or None."""
    if config.arch == "gpt2":
        return layernorm_backward(dy, cache)
    return *rmsnorm_backward(dy, cache), None


def block_forward(x, p, config, rope=None, rngs=None, kv=None, past=0):
    """One transformer block on x (B, T, C): y (B, T, C).

    rope: the two tables of these positions (llama). rngs: B generators that draw dropout masks.
    kv: keys and values (2, B, Hkv, size, D), `past` positions of which are filled; x adds its own.
    """
    B, T, C = x.shape
    H, Hkv, D = config.n_head, config.n_kv_head, config.head_size
    h, norm1 = norm_forward(x, p, "norm1", config)
    h, proj = linear_forward(h, p["qkv.weight"], p.get("qkv.bias"))
    qkv = h.reshape(B, T, H + 2 * Hkv, D)
    qk, v = qkv[:, :, : H + Hkv], qkv[:, :, H + Hkv :]
    if rope:
        qk, _ = rope_forward(qk, *rope)
    q, k = qk[:, :, :H], qk[:, :, H:]
    q, k, v = (t.transpose(0, 2, 1, 3) for t in (q, k, v))  # (B, H or Hkv, T, D)
    if kv is not None:
        kv[0, :, :, past : past + T] = k
        kv[1, :, :, past : past + T] = v
        k, v = kv[:, :, :, : past + T]
    h, attention = attention_forward(q, k, v, config.dropout, rngs)
    h = h.transpose(0, 2, 1, 3).reshape(B, T, C)
    h, out = linear_forward(h, p["out.weight"], p.get("out.bias"))
    h, drop1 = dropout_forward(h, config.dropout, rngs)
    x = x + h
    h, norm2 = norm_forward(x, p, "norm2", config)
    h, up = linear_forward(h, p["up.weight"], p.get("up.bias"))
    h, act = gelu_forward(h) if config.arch == "gpt2" else swiglu_forward(h)
    h, down = linear_forward(h, p["down.weight"], p.get("down.bias"))
    h, drop2 = dropout_forward(h, config.dropout, rngs)
    h += x
    return h, (norm1, proj, rope, attention, out, drop1, norm2, up, act, down, drop2, config)


def block_backward(dy, cache):
    """dx (B, T, C) and the gradients of p, under p's names."""
    norm1, proj, rope, attention, out, drop1, norm2, up, act, down, drop2, config = cache
    B, T, _ = dy.shape
    H, Hkv, D = config.n_head, config.n_kv_head, config.head_size
    g = {}
    dh = dropout_backward(dy, drop2)
    dh, g["down.weight"], g["down.bias"] = linear_backward(dh, down)
    dh = gelu_backward(dh, act) if config.arch == "gpt2" else swiglu_backward(dh, act)
    dh, g["up.weight"], g["up.bias"] = linear_backward(dh, up)
    dh, g["norm2.weight"], g["norm2.bias"] = norm_backward(dh, norm2, config)
    dx = dh
    dx += dy  # past the mlp, and through it
    dh = dropout_backward(dx, drop1)
    dh, g["out.weight"], g["out.bias"] = linear_backward(dh, out)
    dh = dh.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    dqkv = np.concatenate(attention_backward(dh, attention), 1).transpose(0, 2, 1, 3)
    if rope:
        dqk, dv = dqkv[:, :, : H + Hkv], dqkv[:, :, H + Hkv :]
        dqkv = np.concatenate([rope_backward(dqk, rope), dv], 2)
    dh, g["qkv.weight"], g["qkv.bias"] = linear_backward(dqkv.reshape(B, T, -1), proj)
    dh, g["norm1.weight"], g["norm1.bias"] = norm_backward(dh, norm1, config)
    dx += dh  # past the attention, and through it
    return dx, {name: gradient for name, gradient in g.items() if gradient is not None}


# %% 5. Configuration
#
# All that a model's shape depends on is one object. What is left out is GPT-2's or Llama's.

FAMILIES = {  # GPT-2 124M and Llama-2 7B
    "gpt2": {
        "vocab_size": 50257, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768,
        "bias": True, "tie_weights": True,
    },
    "llama": {
        "vocab_size": 32000, "block_size": 4096, "n_layer": 32, "n_head": 32, "n_embd": 4096,
        "bias": False, "tie_weights": False,
    },
}  # fmt: skip


@dataclasses.dataclass
class GPTConfig:
    """The shape of a model. What is left None takes the value of GPT-2 124M or of Llama-2 7B.

    n_kv_head: key/value heads (llama; default n_head). n_hidden: MLP width (default: gpt2 4C; llama
    8C/3, which gives its three matrices the weights of gpt2's two, rounded up to a multiple of
    C/16). bias: gpt2 only; False is nanoGPT's bias-free variant. rope_scaling: None or Llama 3.1's
    four numbers (section 3). Raises ValueError for combinations that are not a model.
    """

    arch: str = "gpt2"
    vocab_size: int | None = None
    block_size: int | None = None
    n_layer: int | None = None
    n_head: int | None = None
    n_embd: int | None = None
    n_kv_head: int | None = None
    n_hidden: int | None = None
    bias: bool | None = None
    dropout: float = 0.0
    tie_weights: bool | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None

    def __post_init__(self):
        if self.arch not in ("gpt2", "llama"):
            raise ValueError(f"arch must be 'gpt2' or 'llama', not {self.arch!r:.60}")
        for name, value in FAMILIES[self.arch].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name, limits in FIELD_LIMITS.items():
            value = getattr(self, name)
            if value is None and name in ("n_kv_head", "n_hidden"):
                continue  # follow from the others, below
            setattr(self, name, check_value(name, value, *limits))
        gpt2, C, H = self.arch == "gpt2", self.n_embd, self.n_head
        if self.n_kv_head is None:
            self.n_kv_head = H
        if self.n_hidden is None and gpt2:
            self.n_hidden = 4 * C
        elif self.n_hidden is None:
            unit = max(1, C // 16)
            self.n_hidden = unit * math.ceil(8 * C / (3 * unit))
        Hkv = self.n_kv_head
        need(C % H == 0, f"n_embd must be a multiple of n_head, not {C} with {H} heads")
        need(H % Hkv == 0, f"n_head must be a multiple of n_kv_head, not {H} and {Hkv}")
        need(not gpt2 or H == Hkv, f"gpt2 has no grouped queries: n_kv_head must be {H}, not {Hkv}")
        need(gpt2 or not self.bias, "llama has no biases: bias must be False")
        need(gpt2 or C // H % 2 == 0, f"rotary positions need an even head size, not {C // H}")
        scaling = self.rope_scaling
        if scaling is not None:
            need(not gpt2, "rope_scaling belongs to llama")
            if not isinstance(scaling, dict) or scaling.keys() != ROPE_SCALING.keys():
                names = ", ".join(ROPE_SCALING)
                raise ValueError(f"rope_scaling must have {names}, not {scaling!r:.60}")
            limits = {name: (kind, 1e-30) for name, kind in ROPE_SCALING.items()}
            scaling = {name: check_value(name, scaling[name], *limits[name]) for name in limits}
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            need(low < high, f"low_freq_factor must be below high_freq_factor: {low} and {high}")
            self.rope_scaling = scaling

    @property
    def head_size(self):
        """D, channels per head."""
        return self.n_embd // self.n_head


# %% 6. The model
#
# The embedding, the blocks, a last norm, and the head, a linear layer that scores every token. The
# backward goes the same way back.


class GPT:
    """A decoder-only transformer: tokens (B, T) to logits over the next token (B, T, V).

    .params is {name: array}, views into the one vector .flat. Weights start as N(0, 0.02²); the two
    projections of each block that write into the residual stream are divided by √(2 · n_layer): the
    stream is a sum of 2 · n_layer writes, its variance would grow (Radford et al. 2019). Norm
    weights start at 1, biases at 0; with seed None all at 0, about to be read from a file. .files
    holds what was read beside the weights and is saved again as it was (section 14).
    """

    def __init__(self, config, seed=0, dtype=np.float32):
        dtype = np.dtype(dtype)
        need(dtype in (np.float32, np.float64), f"dtype must be float32 or float64, not {dtype}")
        total = sum(math.prod(shape) for shape in param_shapes(config).values())
        self.config, self.dtype, self.files = config, dtype, {}
        self.params = ParamDict(config, np.zeros(total, dtype.type))
        self.flat = self.params.flat
        if seed is not None:
            self._start(np.random.default_rng(seed))

    def _start(self, rng):
        for name, p in self.params.items():
            if p.ndim == 2:
                residual = name.endswith(("c_proj.weight", "o_proj.weight", "down_proj.weight"))
                std = 0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02
                p[...] = rng.normal(0, std, p.shape)
            elif name.endswith("weight"):
                p[...] = 1

    def num_params(self):
        """Number of parameters; a tied head counts once."""
        return self.flat.size

    def _check(self, idx, name="idx", lowest=0):
        """idx as int64; ValueError unless it is a (B, T) array of token ids."""
        idx, V = np.asarray(idx), self.config.vocab_size
        if idx.ndim != 2 or idx.dtype.kind not in "iu" or idx.size == 0:
            found = f"{idx.dtype} {idx.shape}"
            raise ValueError(f"{name} must be a (B, T) array of integers, not {found}")
        low, high = idx.min(), idx.max()
        if low < lowest or high >= V:
            raise ValueError(f"{name} must lie in {lowest}..{V - 1}, not {low}..{high}")
        return idx.astype(np.int64)

    def _forward(self, idx, rngs=None, kv=None, past=0, keep=False):
        """Final normalised states (B, T, C) and, if keep, the caches a backward pass needs."""
        c, p, end = self.config, self.params, past + idx.shape[1]
        need(end <= c.block_size, f"{end} tokens are more than block_size={c.block_size}")
        x, embed = embedding_forward(idx, p.top["embedding.weight"])
        rope, caches = None, []
        if c.arch == "gpt2":
            x += p.top["positions.weight"][past:end]
        else:  # the tables for the heads of q and k side by side
            frequencies = rope_frequencies(c.head_size, c.rope_theta, c.rope_scaling)
            tables = rope_tables(np.arange(past, end), frequencies, self.dtype)
            rope = [np.repeat(table, c.n_head + c.n_kv_head, 1) for table in tables]
        x, drop = dropout_forward(x, c.dropout, rngs)
        for i, weights in enumerate(p.blocks):
            x, cache = block_forward(x, weights, c, rope, rngs, None if kv is None else kv[i], past)
            if keep:
                caches.append(cache)
        x, last = norm_forward(x, p.top, "norm", c)
        return x, (embed, drop, caches, last)

    def logits(self, idx):
        """Scores of the next token after each position, (B, T) -> (B, T, V)."""
        x, _ = self._forward(self._check(idx))
        return linear_forward(x, self.params.top["head.weight"].T)[0]

    def loss(self, idx, targets, rngs=None):
        """Mean cross-entropy in nats of targets (B, T); -1 marks a target to ignore."""
        return self._loss(idx, targets, rngs, keep=False)[0]

    def _loss(self, idx, targets, rngs, keep):
        idx, targets = self._check(idx), self._check(targets, "targets", lowest=-1)
        if idx.shape != targets.shape:
            raise ValueError(f"idx {idx.shape} and targets {targets.shape} must have one shape")
        x, cache = self._forward(idx, rngs, keep=keep)
        logits, head = linear_forward(x, self.params.top["head.weight"].T)
        loss, entropy = cross_entropy_forward(logits, targets)
        return loss, (*cache, head, entropy)

    def loss_and_grads(self, idx, targets, rngs=None, scale=1.0, grads=None):
        """The loss and {name: scale · ∂loss/∂parameter}, views into one vector, `.flat`.

        rngs, one numpy Generator a sequence, draw the dropout masks; None switches dropout off.
        grads: what an earlier call returned, to be written over.
        """
        loss, (embed, drop, caches, last, head, entropy) = self._loss(idx, targets, rngs, keep=True)
        if grads is None:
            grads = ParamDict(self.config, np.empty_like(self.flat))
        top = grads.top
        dx, dhead, _ = linear_backward(cross_entropy_backward(scale, entropy), head)
        dx, top["norm.weight"][...], dbias = norm_backward(dx, last, self.config)
        if dbias is not None:
            top["norm.bias"][...] = dbias
        for block, cache in zip(reversed(grads.blocks), reversed(caches)):
            dx, found = block_backward(dx, cache)
            for name, gradient in found.items():
                block[name][...] = gradient
        dx = dropout_backward(dx, drop)
        if self.config.arch == "gpt2":
            top["positions.weight"][: dx.shape[1]] = dx.sum(0)
            top["positions.weight"][dx.shape[1] :] = 0
        top["embedding.weight"][...] = embedding_backward(dx, embed)
        if self.config.tie_weights:  # the same memory: its two gradients add
            top["head.weight"] += dhead.T
        else:
            top["head.weight"][...] = dhead.T
        return loss, grads

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=None):
        """Continue every row of idx (B, T): returns (B, T + max_new_tokens).

        temperature 0 takes the most likely token; top_k keeps the k most likely; top_p the fewest
        whose probabilities reach top_p. Each token sees the block_size tokens before it. The same
        seed gives the same text.
        """
        tokens = self.stream(idx, max_new_tokens, temperature, top_k, top_p, seed)
        return np.concatenate([self._check(idx), *(token[:, None] for token in tokens)], 1)

    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=None):
        """Iterate over max_new_tokens arrays (B,): the next token of every row; see generate."""
        idx, n = self._check(idx), check_value("max_new_tokens", max_new_tokens, int, 0)
        temperature = check_value("temperature", temperature, float, 0)
        if top_k is not None:
            top_k = check_value("top_k", top_k, int, 1)
        if top_p is not None and not 0 < check_value("top_p", top_p, float) <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
        if isinstance(seed, (int, float, str)):
            check_value("seed", seed, int, 0)
        return self._stream(idx, n, (temperature, top_k, top_p, np.random.default_rng(seed)))

    def _stream(self, idx, n, sampling):
        c, past = self.config, 0
        size = min(c.block_size, idx.shape[1] + n)
        kv = np.empty((c.n_layer, 2, len(idx), c.n_kv_head, size, c.head_size), self.dtype)
        idx = fresh = idx[:, -c.block_size :]
        for _ in range(n):
            x, _ = self._forward(fresh, kv=kv, past=past)
            past += fresh.shape[1]
            token = sample_token(x[:, -1] @ self.params.top["head.weight"].T, *sampling)  # (B,)
            yield token
            fresh = token[:, None]
            idx = np.concatenate([idx, fresh], 1)[:, -c.block_size :]
            if past == c.block_size:  # full: the window slides, every token moves one position
                past, fresh = 0, idx  # back, and all that follows from it is computed anew

    def save_pretrained(self, directory):
        """Write config.json, model.safetensors and the files it came with; see save_model."""
        save_model(directory, self)

    @classmethod
    def from_pretrained(cls, directory, dtype=None):
        """Read a gpt2 or llama checkpoint written here or by transformers; see load_model."""
        return load_model(directory, dtype)


# %% 7. Names and shapes
#
# Every weight: our name, the name Hugging Face stores it under (* is the layer's number), and its
# shape there. The matrices of a block are (in, out) for gpt2 and (out, in) for llama; embedding and
# head have a row for each token in both. F is the MLP's width, K the size of all key heads
# together, and T here is block_size.

LAYOUT = {
    "gpt2": """
        embedding  transformer.wte              V C
        positions  transformer.wpe              T C
        norm1      transformer.h.*.ln_1         C
        qkv        transformer.h.*.attn.c_attn  C 3C
        out        transformer.h.*.attn.c_proj  C C
        norm2      transformer.h.*.ln_2         C
        up         transformer.h.*.mlp.c_fc     C F
        down       transformer.h.*.mlp.c_proj   F C
        norm       transformer.ln_f             C
        head       lm_head                      V C""",
    "llama": """
        embedding  model.embed_tokens                       V C
        norm1      model.layers.*.input_layernorm           C
        qkv        model.layers.*.self_attn.q_proj          C C
        qkv        model.layers.*.self_attn.k_proj          K C
        qkv        model.layers.*.self_attn.v_proj          K C
        out        model.layers.*.self_attn.o_proj          C C
        norm2      model.layers.*.post_attention_layernorm  C
        up         model.layers.*.mlp.gate_proj             F C
        up         model.layers.*.mlp.up_proj               F C
        down       model.layers.*.mlp.down_proj             C F
        norm       model.norm                               C
        head       lm_head                                  V C""",
}


def param_table(config):
    """Rows (Hugging Face name, shape, layer or None, our name), all matrices before all vectors.

    Matrices decay (section 11), vectors do not: each kind is one piece of memory.
    """
    C, rows = config.n_embd, []
    size = {"C": C, "3C": 3 * C, "K": config.n_kv_head * config.head_size, "F": config.n_hidden}
    size |= {"V": config.vocab_size, "T": config.block_size}
    for layer in [None, *range(config.n_layer)]:
        for line in LAYOUT[config.arch].strip().splitlines():
            ours, theirs, *letters = line.split()
            belongs_to_a_layer = "*" in theirs
            if belongs_to_a_layer != (layer is not None):
                continue
            if ours == "head" and config.tie_weights:
                continue
            name, shape = theirs.replace("*", str(layer)), tuple(size[s] for s in letters)
            rows.append((f"{name}.weight", shape, layer, f"{ours}.weight"))
            if config.bias and ours not in ("embedding", "positions", "head"):
                rows.append((f"{name}.bias", shape[-1:], layer, f"{ours}.bias"))
    return sorted(rows, key=lambda row: -len(row[1]))


def param_shapes(config):
    """{Hugging Face name: shape}, as in GPT2LMHeadModel and LlamaForCausalLM."""
    return {name: shape for name, shape, *_ in param_table(config)}


class ParamDict(dict):
    """{Hugging Face name: array}, every array a view into one contiguous vector, `.flat`.

    `.blocks[i]` shows layer i under the names of block_forward, as (in, out) matrices, and `.top`
    the rest: the same memory, where needed transposed and joined with the neighbour of one name.
    """

    def __init__(self, config, flat):
        super().__init__()
        self.config, self.flat = config, flat
        self.top, self.blocks = {}, [{} for _ in range(config.n_layer)]
        starts, end = {}, 0
        for name, shape, layer, ours in param_table(config):
            start, end = end, end + math.prod(shape)
            self[name] = flat[start:end].reshape(shape)
            first = starts.setdefault((layer, ours), start)  # q, k and v are one name: one matrix
            joined = flat[first:end].reshape(-1, *shape[1:])
            if layer is None:
                self.top[ours] = joined
            else:
                self.blocks[layer][ours] = joined if config.arch == "gpt2" else joined.T
        self.top.setdefault("head.weight", self.top["embedding.weight"])
        self.decayed = sum(p.size for p in self.values() if p.ndim == 2)  # matrices come first

    def __reduce__(self):  # a copy or a pickle makes its own views into its own vector
        return ParamDict, (self.config, self.flat)


# %% 8. The gradient check
#
# The definition of the derivative is the referee: (L(w + h) - L(w - h)) / 2h is ∂L/∂w up to O(h²),
# in float64 good to ten digits. We nudge every parameter of a tiny model of each family. The models
# have dropout (the same seed draws the same masks), an ignored target and, in llama, grouped
# queries. Each entry is judged by its own size, but for what rounding hides: it leaves ε L / h in a
# difference, so ten times that, over the tolerance, counts as the least size.


def gradcheck_model(config, h=1e-5):
    """Rows (parameter, shape, relative error of its worst entry, which one) of a small model."""
    model, rng = GPT(config, dtype=np.float64), np.random.default_rng(0)
    model.flat[:] += rng.normal(0, 0.3, model.flat.shape)  # away from the symmetric start
    idx, targets = rng.integers(0, config.vocab_size, (2, 2, config.block_size))
    targets[0, 0] = -1

    def generators():
        return [np.random.default_rng(1), np.random.default_rng(2)]

    loss, grads = model.loss_and_grads(idx, targets, generators())
    numeric = ParamDict(config, np.empty_like(model.flat))
    for i, w in enumerate(model.flat.copy()):
        model.flat[i] = w + h
        above = model.loss(idx, targets, generators())
        model.flat[i] = w - h
        below = model.loss(idx, targets, generators())
        model.flat[i] = w
        numeric.flat[i] = (above - below) / (2 * h)
    for name, g in grads.items():
        least = 10 * np.finfo(float).eps * loss / h / 1e-6
        error = np.abs(g - numeric[name]) / (np.maximum(np.abs(g), np.abs(numeric[name])) + least)
        worst = np.unravel_index(error.argmax(), g.shape)  # of nan, too
        yield name, g.shape, error[worst], tuple(map(int, worst))


def gradcheck():
    """Rows (model, parameter, shape, relative error, entry) for a tiny model of each family."""
    sizes = {"vocab_size": 7, "block_size": 5, "n_layer": 2, "n_head": 4, "n_embd": 8}
    models = {
        "gpt2": GPTConfig("gpt2", dropout=0.2, **sizes),
        "gpt2, no bias": GPTConfig("gpt2", dropout=0.2, bias=False, tie_weights=False, **sizes),
        "llama": GPTConfig("llama", dropout=0.2, n_kv_head=2, **sizes),
    }
    return [(label, *row) for label, config in models.items() for row in gradcheck_model(config)]


# %% 9. The draw
#
# To draw a token, add up the probabilities in order, cᵢ = p₀ + ... + pᵢ, throw u evenly in [0, 1),
# and take the first i with cᵢ > u. That is token i exactly when cᵢ₋₁ ≤ u < cᵢ, an interval of
# length pᵢ. Before that the scores are divided by the temperature (below 1 the likely tokens gain),
# and top_k or top_p drop the unlikely ones.


def sample_token(logits, temperature, top_k, top_p, rng):
    """Draw one token per row of logits (B, V): (B,)."""
    z = logits.astype(np.float64)
    need(np.isfinite(z).all(), "the model's scores are not finite: its weights are damaged")
    if temperature == 0:
        return z.argmax(-1)
    with np.errstate(over="ignore"):  # a tiny temperature may send the others to -∞, as it should
        z = (z - z.max(-1, keepdims=True)) / temperature
    order = np.argsort(-z, axis=-1, kind="stable")
    p = np.exp(np.take_along_axis(z, order, -1))  # descending
    if top_k is not None:
        p[:, int(top_k) :] = 0
    p /= p.sum(-1, keepdims=True)
    if top_p is not None:
        p[:, 1:][np.cumsum(p, -1)[:, :-1] >= top_p - 1e-9] = 0  # what came before reaches top_p
    cdf = np.cumsum(p, -1)
    u = rng.random((len(p), 1)) * cdf[:, -1:]
    return np.take_along_axis(order, (cdf <= u).sum(-1, keepdims=True), -1)[:, 0]


# %% 10. Text and tokens
#
# A model reads and writes integers, the ids of tokens; each has a row in the embedding. One token a
# character is the simplest choice, but texts become long. One token a word makes them short, but no
# list of words is complete. Subwords lie between: begin with the 256 bytes, which can write any
# text in UTF-8, and join pairs that often stand side by side into new tokens, again and again. This
# is byte-pair encoding (BPE), the tokenizer of GPT-2, GPT-4 and Llama 3. Stage 7 derives how the
# merges are learned; here they are used. Of all known pairs in a word, the one that was learned
# first, which has the lowest rank, is joined (the leftmost, if it stands in several places). Then
# look again, until no pair is known.


def merge(ids, merges):
    """The list of ids after all merges {(left id, right id): (rank, new id)}; plain and slow."""
    ids = list(ids)
    while True:
        pairs = list(zip(ids, ids[1:]))
        known = [(merges[pair][0], i) for i, pair in enumerate(pairs) if pair in merges]
        if not known:
            return ids
        _, i = min(known)  # the lowest rank, then the leftmost
        ids[i : i + 2] = [merges[ids[i], ids[i + 1]][1]]


#     ids        e 0   l 1   o 2   r 3   s 4   w 5   lo 6   low 7   er 8
#     merges     l+o: rank 0     lo+w: rank 1     e+r: rank 2
#
#     lower      1 2 5 0 3    ->  6 5 0 3    ->  7 0 3    ->  7 8      low|er
#     slower     4 1 2 5 0 3  ->  4 6 5 0 3  ->  4 7 0 3  ->  4 7 8    s|low|er, never seen before
#
# A whole text is first cut into pre-tokens: a word with the space before it, a run of digits, of
# marks, of blanks. No merge reaches across a cut, so "dog", "dog." and "dog!" share their tokens,
# and each different word needs to be merged only once. Where exactly to cut is a convention of each
# model, and with another one it would read ids that it was not trained on. The engine room has
# those of GPT-2 and Llama 3 and a faster merge, and reads other people's tokenizers (section 15).

# %% 11. The optimizer
#
# AdamW. Two running means over the steps, of the gradient and of its square,
#     m ← β₁m + (1 - β₁)g,    v ← β₂v + (1 - β₂)g²,
# both started at 0. For a constant g, step t has m = (1 - β₁ᵗ)g and v = (1 - β₂ᵗ)g²: they are too
# small by exactly these factors. Divided by them, which a hat marks, they make the update
#     w ← w - η λ w - η m̂/(√v̂ + ε)
# with the learning rate η, the weight decay λ, and ε against a division by 0:
# each weight moves by about η whatever its gradient's scale, and decays towards 0 apart from it. In
# code the corrections fold into two scalars, m̂/(√v̂ + ε) = m √(1-β₂ᵗ)/(1-β₁ᵗ) / (√v + ε√(1-β₂ᵗ)),
# and clipping (g is scaled down when its norm exceeds a limit) into a third. Matrices decay; norm
# weights and biases do not.


class AdamW:
    """AdamW on one flat parameter vector (Loshchilov & Hutter 2019), clipping by norm included."""

    def __init__(self, params, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, grad_clip=1.0):
        self.params, self.eps, self.t = params, eps, 0
        self.betas = tuple(check_value("a beta", beta, float, 0, 1) for beta in betas)
        self.weight_decay = check_value("weight_decay", weight_decay, float, 0)
        self.grad_clip = check_value("grad_clip", grad_clip, float, 0)
        self.m, self.v = np.zeros_like(params.flat), np.zeros_like(params.flat)

    def step(self, gradient, norm, learning_rate, start=0):
        """Update weights in place, from `start` on, by their gradient; norm is that of them all."""
        self.t += 1
        beta1, beta2 = self.betas
        scale = min(1.0, self.grad_clip / norm) if self.grad_clip and norm else 1.0
        correction = math.sqrt(1 - beta2**self.t)
        rate, eps = learning_rate * correction / (1 - beta1**self.t), self.eps * correction
        keep = 1 - learning_rate * self.weight_decay
        shard = slice(start, start + len(gradient))
        weights, ms, vs = self.params.flat[shard], self.m[shard], self.v[shard]
        for tile in tiles(len(gradient), 1):
            w, m, v, g = weights[tile], ms[tile], vs[tile], gradient[tile]
            m *= beta1
            m += (1 - beta1) * scale * g
            v *= beta2
            v += (1 - beta2) * scale**2 * (g * g)
            matrices = max(0, self.params.decayed - start - tile.start)  # they come first
            w[:matrices] *= keep
            w -= rate * m / (np.sqrt(v) + eps)


# The first steps are small because m and v know few gradients yet; the last ones are small so that
# the weights settle.


def warmup_cosine(step, peak, floor, warmup, end):
    """Learning rate: linear to peak over `warmup` steps, then half a cosine to floor at `end`."""
    step, warmup, end = (check_value("a step", n, int, 0) for n in (step, warmup, end))
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, end - warmup))
    return floor + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - floor)


# %% 12. The training step
#
# One step puts all of the above together: windows of text, loss and gradient, the optimizer. The
# loss of a step is the mean over its sequences, and the derivative of a sum is the sum of the
# derivatives. So the sequences may be taken in batches, when the memory is too small for all of
# them, or by several processes (section 17): each batch counts for the sequences it holds.
#
# Every sequence has a generator of its own, seeded with the run's seed, the step and its place
# among the step's sequences. It draws where the window begins and then the dropout masks. So a step
# is the same whatever came before it, and whoever computes it: a run can stop and go on.


def draw_batch(ids, block_size, batch_size, seed, step, first=0):
    """Sequences first, first + 1, ... of a step: inputs, targets (B, T), their B generators."""
    need(len(ids) > block_size, f"{len(ids)} tokens are too few for a block of {block_size}")
    places = range(first, first + batch_size)
    rngs = [np.random.default_rng((seed, step, place)) for place in places]
    starts = np.array([rng.integers(len(ids) - block_size) for rng in rngs])
    at = starts[:, None] + np.arange(block_size)  # (B, T)
    return ids[at], ids[at + 1], rngs  # a target is the token one place later


def training_step(model, optimizer, batches, learning_rate, team=None):
    """One update from the mean over all sequences in batches, an iterable of what draw_batch gives.

    team: who else has batches of this step. Returns the mean loss in nats and the norm of the
    gradient. If either is not finite, raises FloatingPointError and changes nothing.
    """
    team = team or Alone()
    loss, count, gradient = 0.0, 0, None
    for idx, targets, rngs in batches:
        n = len(idx)  # sums of n losses and gradients now, divided by their whole count below
        into = team.grads if gradient is None else None
        batch_loss, grads = model.loss_and_grads(idx, targets, rngs, scale=n, grads=into)
        loss += n * batch_loss
        count += n
        if gradient is None:
            gradient = grads.flat
        else:
            gradient += grads.flat
    start, gradient = team.sum_gradients(gradient)
    loss, count, squares = team.sum_numbers(loss, count, gradient @ gradient)
    gradient /= count
    loss, norm = loss / count, math.sqrt(squares) / count
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FloatingPointError(f"loss {loss:.4g}, gradient norm {norm:.4g}")
    optimizer.step(gradient, norm, learning_rate, start)
    team.gather(model.flat)
    return loss, norm


# A whole training is this; section 19 adds evaluations, checkpoints and signals:
#     for step in range(max_iters):
#         batch = draw_batch(ids, block_size, batch_size, seed, step)
#         rate = warmup_cosine(step, 3e-3, 1e-4, 100, max_iters)
#         loss, norm = training_step(model, optimizer, [batch], rate)


# %% 13. The yardstick
#
# A network is judged by tokens it has not seen, each predicted once from those before it. It looks
# at block_size tokens at a time. If such windows stood side by side, the first target of each would
# be predicted from a single token; so they overlap, and only the last `stride` targets of each
# count. Ids may be a file on disk: the memory needed at once does not grow with the text.

LOGITS = 1 << 22  # at most so many are computed at once, unless one window has more


def evaluate(model, ids, first, block_size, stride, max_windows=None):
    """Summed nats and number of the tokens ids[first:], each predicted exactly once.

    Windows of block_size tokens move on by `stride` and score their last `stride` targets: a token
    sees at least the block_size - stride + 1 tokens before it, or all there are. max_windows takes
    that many, evenly spaced. ids (n,) are integers, in memory or mapped; first is at least 1.
    """
    first = check_value("first", first, int, 1)  # token 0 has nothing to be predicted from
    block_size = check_value("block_size", block_size, int, 1)
    stride = check_value("stride", stride, int, 1, block_size + 1)
    T = max(1, min(block_size, len(ids) - 1))
    windows = range(first, len(ids), stride)
    if max_windows and len(windows) > max_windows:
        chosen = np.linspace(0, len(windows) - 1, max_windows).round().astype(int)
        windows = [windows[i] for i in chosen]
    batch = max(1, min(8192, LOGITS // model.config.vocab_size) // T)
    nats, tokens = 0.0, 0
    for i in range(0, len(windows), batch):
        start = np.array(windows[i : i + batch])[:, None]  # (B, 1) the first target that counts
        end = np.minimum(start + stride, len(ids))
        at = np.maximum(end - T, 1) + np.arange(T)  # (B, T) the places of all targets
        counted = (start <= at) & (at < end)
        targets, n = np.where(counted, ids[at].astype(np.int64), -1), int(counted.sum())
        nats += n * model.loss(ids[at - 1], targets)
        tokens += n
    return nats, tokens


# Before a network earns its place it must beat counting. Let c(h, w) be how often the token w came
# after the context h in the training text, N(h) = Σ c(h, w) how often anything did, and U(h) how
# many *different* tokens did. The share c/N leaves nothing for what never came after h. But grams
# (h, w) that came r times in one text come about r - D times in another, with much the same D < 1
# for every r (Church & Gale 1991). So take D off each of the U(h) counts, and let what that frees,
# D U(h), go where h' says, which is the context h without its first token:
#     p(w | h) = (max(c(h, w) - D, 0) + D U(h) p(w | h')) / N(h),    p(w | no context at all) = 1/V.
# The first terms add up to N(h) - D U(h), the second to D U(h): the sum over w is 1. An h that was
# never seen leaves all to h'.
#
# How large is D? Take one token out of the text and let the rest predict it. If its gram came once,
# it is now new and its chance in proportion to D; if twice, to 1 - D. With n₁ grams seen once and
# n₂ twice, that makes D^n₁ (1 - D)^(2n₂), largest where the slope of its logarithm is 0: n₁/D =
# 2n₂/(1 - D), hence D = n₁/(n₁ + 2n₂). With 1 more above and 2 more below, D is strictly between 0
# and 1 for any text. Grams of every length have their own.
#
# Should h' count as h does? "Francisco" is frequent, but only after "San", where the longer context
# has it covered. The shorter one is asked when the longer one fails: how likely is w after
# something *new*? As likely as it has come after many *different* tokens. So for all contexts but
# the longest, c(h', w) is the number of different tokens v that came before (h', w). With any other
# choice the model's tokens would not be as frequent as the text's (derived in stage 1). N and U are
# sums over these c. This is Kneser-Ney smoothing (Kneser & Ney 1995). With three tokens a, b, d,
# the text a b a b and grams of 2:
#     c(a, b) = 2, c(b, a) = 1                                 n₁ = 1, n₂ = 1, D = 2/5
#     c(b) = 1, as b came twice but after a alone; c(a) = 1    n₁ = 2, n₂ = 0, D = 3/4
#     p(b) = (1 - 3/4 + 3/4 · 2 · 1/3) / 2 = 0.375             p(a) = 0.375, p(d) = 0.25
#     p(b | a) = (2 - 2/5 + 2/5 · 1 · 0.375) / 2 = 0.875       p(a | a) = 0.075, p(d | a) = 0.05
#     p(a | b) = (1 - 2/5 + 2/5 · 1 · 0.375) / 1 = 0.75        p(b | b) = 0.15, p(d | b) = 0.1


def kneser_ney(c, contexts, h, hw, p):
    """p(w | h), given p = p(w | h'), for grams numbered hw and their contexts numbered h.

    c (grams,) are the counts of all grams, contexts (grams,) the numbers of their contexts.
    """
    N, U = np.bincount(contexts, c), np.bincount(contexts, c > 0)
    once, twice = np.sum(c == 1), np.sum(c == 2)
    D = (once + 1) / (once + 2 * twice + 2)
    longer = (np.maximum(c[hw] - D, 0) + D * U[h] * p) / np.maximum(N[h], 1)
    return np.where(N[h] > 0, longer, p)


def kneser_ney_nats(train, rows, vocab_size, order):
    """Summed nats of rows[:, order - 1:] under the grams of train, for each order 1 ... `order`.

    train (n,) and rows (R, T) are token ids; the first order - 1 of each row are context only.
    """
    # All grams of one length are numbered at once, those of the rows, too: what the training text
    # lacks has a count of 0. hw numbers the gram that ends at each place, h the context before it.
    n, V, nats = len(train), check_value("vocab_size", vocab_size, int, 1), []
    order = check_value("order", order, int, 1, n + 2)
    for ids in map(np.asarray, (train, rows)):
        known = ids.dtype.kind in "iu" and 0 <= ids.min(initial=0) and ids.max(initial=0) < V
        need(known, f"token ids must be integers in 0..{V - 1}")
    text = np.concatenate([train, rows.ravel()]).astype(np.int64)
    scored = np.arange(n, len(text)).reshape(rows.shape)[:, order - 1 :]  # places
    counted = slice(order - 1, n)  # places, the same for all lengths
    h, p = np.zeros_like(text), np.full(scored.shape, 1 / V)
    for k in range(1, order + 1):
        grams, hw = np.unique(h * V + text, return_inverse=True)
        times = np.bincount(hw[counted], minlength=len(grams))
        # as the longest context, with plain counts; then as a shorter one, with different tokens
        nats.append(-np.log(kneser_ney(times, grams // V, h[scored], hw[scored], p)).sum())
        if k < order:
            preceded = np.sort(hw[counted] * V + text[order - 1 - k : n - k])  # (v, h, w)
            different = preceded[np.diff(preceded, prepend=-1) > 0]
            kinds = np.bincount(different // V, minlength=len(grams))
            p = kneser_ney(kinds, grams // V, h[scored], hw[scored], p)
            h = np.roll(hw, 1)  # contexts of one token more, right from place k on
    return np.array(nats)


# %% 14. Files of weights
#
# A model is kept as Hugging Face keeps it: a directory with config.json, model.safetensors and the
# tokenizer's files. transformers opens ours, we open theirs.

FIELD_LIMITS = {  # of GPTConfig's fields: type, smallest value, and what it must stay below
    "vocab_size": (int, 1), "block_size": (int, 1), "n_layer": (int, 1, 10_000),
    "n_head": (int, 1), "n_embd": (int, 1, 10**6), "n_kv_head": (int, 1), "n_hidden": (int, 1),
    "bias": (bool,), "dropout": (float, 0, 1), "tie_weights": (bool,),
    "norm_eps": (float, 1e-30), "rope_theta": (float, 1e-30),
}  # fmt: skip
ROPE_SCALING = {
    "factor": float, "low_freq_factor": float, "high_freq_factor": float,
    "original_max_position_embeddings": int,
}  # fmt: skip


def check_value(name, value, kind, lowest=-1e300, below=1e300):
    """value as int, float, bool or str; ValueError unless it is one, and lowest ≤ value < below."""
    accepted = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        what = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
        raise ValueError(f"{name} must be {what[kind]}, not {value!r:.60}")
    if kind in (int, float) and not lowest <= value < below:
        limits = f"at least {lowest:g} and below {below:g}"
        raise ValueError(f"{name} must be {limits}, not {value!r:.60}")
    return kind(value)


# safetensors: 8 bytes of little-endian header length N, N bytes of JSON {name: {dtype, shape,
# data_offsets}}, then the arrays' raw bytes, without gaps. An array is mapped into memory when it
# is asked for, and nothing in the file is trusted before it is checked: no pickle, no code, no
# offset out of bounds.

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # bytes, the reference library's limit


def write_file(path, pieces):
    """Write pieces of bytes to path: whenever the power fails, the old file is there or the new.

    They go to a temporary name, onto the disk, and then take the old file's place in one step.
    """
    path = Path(path)
    for left_over in path.parent.glob(f".{path.name}.*.tmp"):  # by a writer that was killed
        left_over.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        message = f"{error.strerror}; what was there before is kept"
        raise OSError(error.errno, message, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the new name is on the disk when the directory is
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


def write_safetensors(path, tensors, metadata=None):
    """Write {name: array} and the metadata {text: text} in the safetensors format."""
    kinds = {np.dtype(code): kind for kind, code in DTYPES.items() if kind != "BF16"}
    header, end = {"__metadata__": {"format": "pt", **(metadata or {})}}, 0
    by_size = sorted(tensors.items(), key=lambda item: -item[1].itemsize)  # so all are aligned
    for name, t in by_size:
        need(t.dtype in kinds, f"{path}: {name!r:.80} is {t.dtype}, which safetensors cannot hold")
        start, end = end, end + t.nbytes
        header[name] = {"dtype": kinds[t.dtype], "shape": t.shape, "data_offsets": (start, end)}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the arrays start on a multiple of 8 bytes
    arrays = (np.ascontiguousarray(t).reshape(-1).view(np.uint8) for _, t in by_size)
    write_file(path, itertools.chain([len(text).to_bytes(8, "little") + text], arrays))


def parse_json(text, kind, complaint):
    """The JSON value in text, str or UTF-8 bytes; ValueError(complaint) unless it is of that kind.

    Stricter than Python, as strict as safetensors: fields given twice, numbers that are not finite
    and halves of surrogate pairs are refused, and -0 is no whole number.
    """

    def unique(pairs):
        fields = dict(pairs)
        need(len(fields) == len(pairs), "a field is given twice")
        return fields

    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(
            text, object_pairs_hook=unique, parse_int=lambda n: -0.0 if n == "-0" else int(n)
        )
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # or it is refused
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{complaint} ({error})") from None
    need(isinstance(value, kind), complaint)
    return value


# An array in an open file: its type, which is a key of DTYPES, its shape, and where it starts. If
# another file takes the name meanwhile, this is still the old one.
StoredTensor = collections.namedtuple("StoredTensor", "file kind shape start")


def read_tensor(stored):
    """The array of a StoredTensor, read-only and mapped into memory; BF16 becomes float32."""
    mapped = np.memmap(stored.file, DTYPES[stored.kind], "r", stored.start, stored.shape)
    array = np.asarray(mapped)
    if stored.kind == "BF16":  # the upper half of a float32
        array = array.astype("<u4")
        array <<= 16
        array = array.view("<f4")
        array.flags.writeable = False
    return array


def read_safetensors(path):
    """({name: StoredTensor}, metadata) of a safetensors file.

    Raises ValueError naming the file when any length, offset, shape or type does not hold.
    """
    need(Path(path).is_file(), f"{path}: no such file")
    file, bad = open(path, "rb"), f"{path}: damaged safetensors file:"
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, LONGEST_HEADER):
        raise ValueError(f"{bad} a header of {length} bytes in a file of {size}")
    text = file.read(length)
    need(text.startswith(b"{"), f"{bad} the header does not begin with {{")
    header = parse_json(text, dict, f"{bad} the header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{bad} its metadata are not texts")
    rows = []
    for name, entry in header.items():
        here = f"{bad} {name!r:.80}"
        need(isinstance(entry, dict), f"{here} is not described by an object")
        kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(kind, str) or kind not in DTYPES:
            raise ValueError(f"{here} is of type {kind!r:.40}, not one of {', '.join(DTYPES)}")
        lists = isinstance(shape, list) and isinstance(offsets, list)
        if not lists or not all(type(n) is int and n >= 0 for n in shape + offsets):
            raise ValueError(f"{here}: shape and data_offsets must be lists of whole numbers")
        if len(shape) > 64 or math.prod(n or 1 for n in shape) >= 2**60:  # NumPy's limits
            raise ValueError(f"{here}: no array has the shape {shape!r:.80}")
        rows.append((offsets, name, kind, tuple(shape)))
    tensors, end = {}, 0
    for offsets, name, kind, shape in sorted(rows):  # each begins where the one before it ends
        start, end = end, end + math.prod(shape) * np.dtype(DTYPES[kind]).itemsize
        if offsets != [start, end]:
            found = f"data_offsets {offsets!r:.80}, expected [{start}, {end}]"
            raise ValueError(f"{bad} {kind} {name!r:.80} of shape {shape!r:.80} has {found}")
        tensors[name] = StoredTensor(file, kind, shape, 8 + length + start)
    data = size - 8 - length
    need(data == end, f"{bad} {data} bytes of arrays, {end} of them described")
    return tensors, metadata


def copy_tensor(tensors, name, array):
    """Copy the stored tensor `name` into array; ValueError unless it is finite and of its shape."""
    file, kind, shape, _ = tensors[name]
    where = f"{file.name}: {name!r:.80}"
    if kind not in ("F64", "F32", "F16", "BF16") or shape != array.shape:
        raise ValueError(f"{where} is {kind} {shape!r:.80}, expected floats {array.shape}")
    with np.errstate(over="ignore"):
        array[...] = read_tensor(tensors[name])
    extremes = [array.min(initial=0), array.max(initial=0)]  # nan if there is one
    need(np.isfinite(extremes).all(), f"{where} holds a number that is not finite")


# config.json: HF_FIELDS are the keys that say what to compute, HF_FIXED those that must have this
# value or be null, HF_IDLE those that cannot change the logits. Any other key is refused unless it
# is null, false or empty. HF_BUFFERS are how tensors end that are stored, but no weights.

HF_FIELDS = {  # their key: our field
    "gpt2": {
        "vocab_size": "vocab_size", "n_positions": "block_size", "n_layer": "n_layer",
        "n_head": "n_head", "n_embd": "n_embd", "n_inner": "n_hidden", "bias": "bias",
        "resid_pdrop": "dropout", "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_weights",
    },
    "llama": {
        "vocab_size": "vocab_size", "max_position_embeddings": "block_size",
        "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "hidden_size": "n_embd",
        "num_key_value_heads": "n_kv_head", "intermediate_size": "n_hidden",
        "attention_dropout": "dropout", "rms_norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_weights",
    },
}  # fmt: skip
HF_FIXED = {
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new",
        "scale_attn_weights": True,
    },
    "llama": {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "pretraining_tp": 1},
}  # fmt: skip
HF_IDLE = """model_type dtype torch_dtype transformers_version use_cache initializer_range
    bos_token_id eos_token_id pad_token_id _name_or_path id2label label2id _num_labels output_past
    task_specific_params n_special predict_special_tokens summary_type summary_use_proj
    summary_activation summary_proj_to_labels summary_first_dropout embd_pdrop attn_pdrop
    max_sequence_length is_llama_config transformers.js_config unsloth_fixed unsloth_version
    _attn_implementation_autoset _commit_hash return_dict num_labels gradient_checkpointing
    do_sample max_length temperature top_k top_p repetition_penalty tokenizer_class
    prefix""".split()
HF_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
FILES = """config.json generation_config.json tokenizer.json tokenizer_config.json vocab.json
    merges.txt special_tokens_map.json added_tokens.json chat_template.jinja chat_template.json
    tokenizer.model tokenizer""".split()  # what a model keeps beside its weights


def rope_from_json(j):
    """The rotary fields of GPTConfig: transformers 5 has in one key what stood in two before."""
    rope = {"rope_theta": j.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        settings = {} if j.get(key) is None else j[key]
        need(isinstance(settings, dict), f"{key} must be an object, not {settings!r:.60}")
        for name, value in settings.items():
            need(rope.get(name) in (None, value), f"{name!r:.60} is given twice, differently")
            rope[name] = value
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type", "default")
    if kind not in ("default", "llama3") or (kind == "default" and rope):
        found = f"{kind!r:.60} with {rope!r:.80}"
        raise ValueError(f"rotary positions must be default or llama3, not {found}")
    theta = 10000.0 if theta is None else theta
    return {"rope_theta": theta, "rope_scaling": rope if kind == "llama3" else None}


def config_from_json(j):
    """The GPTConfig of a config.json's object j; ValueError for what this file does not compute."""
    arch = j.get("model_type")
    need(arch in list(HF_FIELDS), f"model_type must be gpt2 or llama, not {arch!r:.60}")
    fields = {"dropout": 0.1} if arch == "gpt2" else {"norm_eps": 1e-6}  # transformers' defaults
    for theirs, ours in HF_FIELDS[arch].items():
        limits = FIELD_LIMITS[ours]
        if j.get(theirs) is not None:
            fields[ours] = check_value(theirs, j[theirs], *limits)
        elif limits[0] is int and theirs not in ("n_inner", "num_key_value_heads"):
            raise ValueError(f"{theirs} is missing")
    known = {*HF_FIELDS[arch], *HF_IDLE}
    if arch == "llama":
        fields |= rope_from_json(j)
        known |= {"rope_theta", "rope_scaling", "rope_parameters"}
    config = GPTConfig(arch, **fields)
    fixed = {**HF_FIXED[arch], "n_ctx": config.block_size, "head_dim": config.head_size}
    for key, value in j.items():
        handled = [fixed[key], None] if key in fixed else [None, False, "", [], {}]
        texts = [json.dumps(v) for v in handled]  # in JSON, 1 is neither true nor 1.0
        if key not in known and json.dumps(value) not in texts:
            raise ValueError(f"{key!r:.60} is {value!r:.60}; handled: {', '.join(texts)}")
    return config


def config_to_json(model):
    """config.json as bytes: as it was read, with new fields where the model is not what it was."""
    config, text = model.config, model.files.get("config.json")
    j, was = {"model_type": config.arch, "bos_token_id": None, "eos_token_id": None}, None
    if text is None:
        j |= HF_FIXED[config.arch]
    else:
        j = parse_json(text, dict, "config.json: expected a JSON object")
        was = config_from_json(j)
    new = dict(j)
    if was != config:
        new |= {theirs: getattr(config, ours) for theirs, ours in HF_FIELDS[config.arch].items()}
        if config.arch == "llama":
            scaling = config.rope_scaling and {"rope_type": "llama3", **config.rope_scaling}
            rope = {"rope_theta": config.rope_theta, "rope_scaling": scaling}
            new |= {**rope, "rope_parameters": None}
        else:
            new["n_ctx"] = config.block_size  # n_positions, as llama.cpp knows it
            if was is None or was.dropout != config.dropout:
                new["embd_pdrop"] = new["attn_pdrop"] = config.dropout
    for key in {"dtype", "torch_dtype"} & j.keys():  # transformers converts the weights to it
        new[key] = model.dtype.name
    return text if new == j else (json.dumps(new, indent=2) + "\n").encode()


def save_model(directory, model):
    """Write config.json, the files the model came with and, last, model.safetensors.

    Only the weights are ever replaced, and in one step: the directory is whole at every instant.
    ValueError if it holds anything that is not of this model.
    """
    directory, config = Path(directory), model.config
    need(not directory.is_file(), f"{directory} is a file, a model needs a directory")
    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / "model.safetensors"
    files = {**model.files, "config.json": config_to_json(model)}
    for name, content in files.items():
        path = directory / name
        changes = path.exists() and path.read_bytes() != content
        comes_late = weights.exists() and not path.exists()
        if changes or comes_late:
            raise ValueError(f"{path} would change, and only weights may: choose another directory")
    for name, content in files.items():
        if not (directory / name).exists():
            write_file(directory / name, [content])
    tensors = dict(model.params)
    if config.arch == "gpt2" and not config.bias:  # transformers has biases: zeros
        full = param_shapes(dataclasses.replace(config, bias=True))
        tensors = {n: tensors.get(n, np.zeros(shape, model.dtype)) for n, shape in full.items()}
    write_safetensors(weights, tensors)


def open_weights(directory, arch):
    """{name as transformers has it: StoredTensor}, of one file or of the parts it was cut into."""
    paths, found = [directory / "model.safetensors"], {}
    if not paths[0].exists():
        paths = sorted(directory.glob("model-*-of-*.safetensors")) or paths
    prefix = "transformer." if arch == "gpt2" else "model."
    for path in paths:
        tensors, _ = read_safetensors(path)
        for key, stored in tensors.items():
            name = key.replace("_orig_mod.", "")  # torch.compile's
            if not name.startswith((prefix, "lm_head.")):  # the file of a model without a head
                name = prefix + name
            need(name not in found, f"{path}: {key!r:.80} is there twice")
            found[name] = stored
    return found


def load_model(directory, dtype=None):
    """The gpt2 or llama model in a directory written here or by transformers, as a GPT.

    dtype None is float64 for a float64 file and float32 otherwise. ValueError if anything is
    damaged or would have to be ignored; nothing is allocated before names and shapes agree.
    """
    directory = Path(directory)
    files = {n: (directory / n).read_bytes() for n in FILES if (directory / n).is_file()}
    need("config.json" in files, f"{directory}: no config.json, so this is not a model's directory")
    try:
        j = parse_json(files["config.json"], dict, "expected a JSON object")
        config = config_from_json(j)
    except ValueError as error:
        raise ValueError(f"{directory / 'config.json'}: {error}") from None
    found = open_weights(directory, config.arch)
    if config.n_layer > len(found):
        raise ValueError(f"{directory}: {config.n_layer} layers do not fit {len(found)} tensors")
    shapes = param_shapes(config)
    for name, shape in shapes.items():
        need(name in found, f"{directory}: the weights lack {name}")
        there = found[name].shape
        if there != shape:
            raise ValueError(f"{directory}: {name} is {there!r:.60}, config.json says {shape}")
    embedding = next(iter(shapes))  # it comes first
    for name in sorted(found.keys() - shapes.keys()):  # may not have an effect on the logits
        tensor = read_tensor(found[name])
        buffer = name.endswith(HF_BUFFERS)
        zero = name.endswith(".bias") and not tensor.any()
        tied = name == "lm_head.weight" and np.array_equal(tensor, read_tensor(found[embedding]))
        need(buffer or zero or tied, f"{directory}: {name!r:.80} has no place in this model")
    if dtype is None:
        double = any(found[name].kind == "F64" for name in shapes)
        dtype = np.float64 if double else np.float32
    model = GPT(config, None, dtype)
    for name, array in model.params.items():
        copy_tensor(found, name, array)
    model.files = files
    return model


def bos_and_eos(model):
    """The id a text begins with, or None, and a tuple of those it ends with; from model.files."""
    name = "generation_config.json" if "generation_config.json" in model.files else "config.json"
    j = parse_json(model.files.get(name, b"{}"), dict, f"{name}: expected a JSON object")
    bos, eos = j.get("bos_token_id"), j.get("eos_token_id")
    if not isinstance(eos, list):
        eos = [] if eos is None else [eos]
    for token in eos if bos is None else [bos, *eos]:
        check_value(f"{name}: a token id", token, int, 0, model.config.vocab_size)
    return bos, tuple(eos)


# %% 15. Tokenizers
#
# Section 10's merge looks at the whole word in each round: n bytes take up to n² steps. The fast
# form finds the next pair in a heap of (rank, place). Each place knows the one before it and the
# one after it, so that two neighbours become one without moving the others. A merge creates at most
# two pairs, with its neighbours; they go into the heap. A pair that lost a side meanwhile is
# noticed when it is due.


def merge_fast(ids, merges):
    """What merge() computes, in about n log n steps for n ids."""
    n, ids = len(ids), [*ids, -1]  # the last one is in no pair; it also stands before the first
    before, after = list(range(-1, n)), list(range(1, n + 2))
    heap = [(*merges[p], i, p) for i, p in enumerate(zip(ids, ids[1:])) if p in merges]
    heapq.heapify(heap)
    while heap:
        _, new, i, pair = heapq.heappop(heap)
        j = after[i]
        if (ids[i], ids[j]) == pair:
            k = after[j]
            ids[i], ids[j] = new, -1
            after[i], before[k] = k, i
            for left, right in ((before[i], i), (i, k)):
                pair = ids[left], ids[right]
                if pair in merges:
                    heapq.heappush(heap, (*merges[pair], left, pair))
    return [i for i in ids if i >= 0]


# Pre-tokens are what these patterns find, one after another: GPT-2's, the one of GPT-4 and Llama 3,
# and GPT-2's with every digit alone, for SmolLM. \p{L} is a letter of any script, \p{N} a number of
# any kind (½, Ⅷ), \s a blank; \s+(?!\S) lets a run of blanks give back its last one, which leads
# the next word. Python's re has no \p. But a pattern only asks of what kind a character is; so it
# runs over the text with an ASCII character of the same kind in each place.

PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "digits": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
}


# A tab is a blank that no pattern mentions, U+0085 is one, and ſ an s where case does not count.
KINDS = {"L": "z", "N": "0", "Z": "\t", "\x85": "\t", "ſ": "S"}


@functools.cache
def ascii_of_its_kind(char):
    """An ASCII character that no pattern can tell from char."""
    if char.isascii():
        return char
    return KINDS.get(char) or KINDS.get(unicodedata.category(char)[0], "!")


def pre_tokens(text, pattern):
    """Yield the pieces into which PATTERNS[pattern] cuts a text."""
    source = PATTERNS[pattern].replace(r"\p{N}", r"\d")
    source = source.replace(r"\p{L}\d", r"a-zA-Z\d").replace(r"\p{L}", "[a-zA-Z]")
    start = 0
    for found in re.findall(source, "".join(map(ascii_of_its_kind, text)), re.ASCII):
        end = start + len(found)
        yield text[start:end]
        start = end


# A token may end within a character: é is two bytes, and they need not be in one token. So when
# tokens become text one by one, the first byte of a character waits until the others are there.


class Tokenizer:
    """What both kinds share: from ids back to text, and onto the disk."""

    def __init__(self, tokens, special_tokens, bos, files):
        self.tokens = tokens  # {id: its bytes}
        self.vocab_size = max(tokens) + 1
        self.special_tokens = special_tokens  # {text: id} of those that are never cut or merged
        self.bos = bos  # the ids that add_special_tokens puts before a text
        self.files = files  # {name: bytes}, what save writes and load_tokenizer reads

    def decode_stream(self, ids):
        """Yield the text of ids, never half a character; what is no character becomes U+FFFD."""
        text = codecs.getincrementaldecoder("utf-8")("replace")
        for i in ids:
            if piece := text.decode(self.tokens.get(int(i), b"\xef\xbf\xbd")):
                yield piece
        if rest := text.decode(b"", final=True):
            yield rest

    def decode(self, ids):
        """The text of token ids (T,)."""
        ids = np.asarray(ids)
        need(ids.dtype.kind in "iu" or ids.size == 0, f"token ids are {ids.dtype}, not integers")
        return "".join(self.decode_stream(ids))

    def save(self, directory):
        """Write the files into a directory that exists."""
        for name, content in self.files.items():
            write_file(Path(directory, name), [content])


class CharTokenizer(Tokenizer):
    """One token per character: the sorted distinct characters of a text are the vocabulary."""

    def __init__(self, characters):
        need(characters, "a vocabulary needs at least one character")
        self.ids = {c: i for i, c in enumerate(sorted(set(characters)))}
        tokens = {i: c.encode() for c, i in self.ids.items()}
        super().__init__(tokens, {}, [], character_files(self.ids))

    def encode(self, text, add_special_tokens=False):
        """Token ids (T,); ValueError naming the characters that are not in the vocabulary."""
        unknown = sorted(set(text) - self.ids.keys())
        names = [repr(c) for c in unknown]
        if len(names) > 10:
            names[10:] = ["..."]
        need(not unknown, f"characters the model was not trained on: {', '.join(names)}")
        return np.array([self.ids[c] for c in text], dtype=np.int64)

    def encode_stream(self, texts):
        """Yield the ids of each text."""
        return map(self.encode, texts)


class BPETokenizer(Tokenizer):
    """Byte-level BPE: vocab {token: id}, [left token, right token] of each merge, key of PATTERNS.

    Bytes are written in GPT-2's alphabet (below). ignore_merges: a pre-token that is a token needs
    no merges (Llama 3).
    """

    def __init__(self, vocab, merges, pattern, special_tokens, bos=(), ignore_merges=False):
        tokens = {i: text.encode() for text, i in special_tokens.items()}
        for token, i in vocab.items():
            if token not in special_tokens:
                tokens[i] = bytes(CHAR_TO_BYTE[char] for char in token)
        super().__init__(tokens, special_tokens, bos, {})
        self.vocab, self.pattern, self.ignore_merges = vocab, pattern, ignore_merges
        self.merges = {
            (vocab[left], vocab[right]): (rank, vocab[left + right])
            for rank, (left, right) in enumerate(merges)
        }
        longest_first = sorted(map(re.escape, special_tokens), key=len, reverse=True)
        self.cutter = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
        self.known_word = functools.lru_cache(1 << 17)(self.encode_word)

    def encode_word(self, word):
        """The list of ids of a pre-token."""
        letters = word.encode().decode("latin-1").translate(BYTE_TO_CHAR)  # one a byte
        if self.ignore_merges and letters in self.vocab:
            return [self.vocab[letters]]
        return merge_fast([self.vocab[letter] for letter in letters], self.merges)

    def encode(self, text, add_special_tokens=False):
        """Token ids (T,); special tokens in the text are found. ValueError for half a surrogate."""
        ids = list(self.bos) if add_special_tokens else []
        for n, piece in enumerate(self.cutter.split(text)):
            if n % 2:  # text, special token, text, special token, ..., text
                ids.append(self.special_tokens[piece])
                continue
            for word in pre_tokens(piece, self.pattern):
                ids += self.known_word(word) if len(word) < 64 else self.encode_word(word)
        return np.array(ids, dtype=np.int64)

    def may_cut(self, text, i):
        """Whether text[:i] and text[i:] have together the ids of text, whatever follows text.

        So it is where something else follows a letter or digit: no pattern has a pre-token that
        goes on there, nor one before it that looks further. But no special token may be cut.
        """
        if not text[i - 1].isalnum() or text[i].isalnum():
            return False
        return not any(
            s in text[max(0, i - len(s) + 1) : i + len(s) - 1] for s in self.special_tokens
        )

    def encode_stream(self, texts):
        """Yield the ids of "".join(texts) in parts; constant memory while letters come by."""
        held, longest = "", max(map(len, self.special_tokens), default=1)
        for text in texts:
            held += text
            # Look for the last place to cut; those before the new text were looked at before.
            for i in range(len(held) - longest, max(0, len(held) - len(text) - longest), -1):
                if self.may_cut(held, i):
                    yield self.encode(held[:i])
                    held = held[i:]
                    break
        yield self.encode(held)


# Files. tokenizer.json holds everything; GPT-2 came as vocab.json (token: id) and merges.txt (by
# rank). Both are text, but a token may be half a character. So GPT-2 writes each byte as one
# printable character: those of Latin-1 that print stand for themselves, the 68 others take U+0100
# and on, in order. A space becomes Ġ, a newline Ċ, and é, in UTF-8 the bytes C3 A9, Ã©.

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_TO_CHAR = {byte: chr(byte) for byte in PRINTABLE}
BYTE_TO_CHAR |= {b: chr(0x100 + n) for n, b in enumerate(sorted({*range(256)} - {*PRINTABLE}))}
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}

# Whatever could change an id is handled here or refused. A table says what is handled: each key
# with the values that it may have, a table of its own, or ... for any value, because the code below
# reads it or because it changes no id. Every other key must be null, false or empty.

BYTE_LEVEL = {"type": ["ByteLevel"], "add_prefix_space": ..., "trim_offsets": ..., "use_regex": ...}
TEMPLATE = {"type": ["TemplateProcessing"], "single": ..., "pair": ..., "special_tokens": ...}
ADDED_TOKEN = {"__type": ..., "id": ..., "content": ..., "normalized": ..., "special": ...}
BYTES = {
    "version": ["1.0"], "added_tokens": ..., "pre_tokenizer": ..., "post_processor": ...,
    "decoder": BYTE_LEVEL,
    "model": {
        "type": ["BPE"], "vocab": ..., "merges": ..., "ignore_merges": [True, False, None],
        "unk_token": ..., "fuse_unk": ..., "byte_fallback": ...,  # no byte is unknown
    },
}  # fmt: skip
CHARACTERS = {"version": ["1.0"], "decoder": ..., "model": {"type": ["BPE"], "vocab": ...}}
CONFIG = """added_tokens_decoder backend chat_template clean_up_tokenization_spaces errors is_local
    legacy max_length model_input_names model_max_length name_or_path pad_to_multiple_of
    pad_token_type_id padding_side processor_class sp_model_kwargs spaces_between_special_tokens
    special_tokens_map_file stride tokenizer_file trim_offsets truncation_side truncation_strategy
    vocab_size""".split()

GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}  # cuts as GPT-2
ONLY_BYTES = {**GPT2, "use_regex": False}  # does not cut
GPT4 = {"type": "Split", "pattern": {"Regex": PATTERNS["gpt4"]}}
PRE_TOKENIZERS = [
    ("gpt2", [GPT2]),
    ("gpt4", [{**GPT4, "behavior": "Isolated", "invert": False}, ONLY_BYTES]),
    ("gpt4", [{**GPT4, "behavior": "Removed", "invert": True}, ONLY_BYTES]),  # nothing is removed
    ("digits", [{"type": "Digits", "individual_digits": True}, GPT2]),
]
TOKENIZER_FILES = [name for name in FILES if name not in ("config.json", "generation_config.json")]
# Values of tokenizer_class. With the first two, transformers follows tokenizer.json, with the last
# two it takes the vocabulary and the merges and cuts as GPT-2, whatever else tokenizer.json says.
CLASSES = ["PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast"]
CLASSES += ["GPT2Tokenizer", "GPT2TokenizerFast"]


def check_keys(where, found, table):
    """ValueError unless the object `found` has only the keys and the values of the table."""
    need(isinstance(found, dict), f"{where} {found!r:.80} is not an object")
    for key, value in found.items():
        handled = table.get(key, [None, False, "", [], {}])
        if isinstance(handled, dict):
            check_keys(key, value, handled)
        elif handled is not ...:
            texts = [json.dumps(v) for v in handled]  # in JSON, 1 is neither true nor 1.0
            handles = f"handled here: {', '.join(texts)}"
            need(json.dumps(value) in texts, f"{where} {key!r:.60} is {value!r:.80}; {handles}")


def character_files(vocab):
    """The files of a CharTokenizer: for the tokenizers library it is BPE without merges."""
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    whole = {"version": "1.0", "added_tokens": [], "decoder": {"type": "Fuse"}, "model": model}
    files = {"tokenizer.json": whole, "tokenizer_config.json": {"tokenizer_class": CLASSES[0]}}
    return {n: json.dumps(j, ensure_ascii=False, indent=1).encode() for n, j in files.items()}


def read_pattern(pre):
    """The key of PATTERNS for the pre_tokenizer of a tokenizer.json."""
    steps = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    steps = [{k: v for k, v in step.items() if k != "trim_offsets"} for step in steps]
    steps[-1] = {"use_regex": True, **steps[-1]}
    for pattern, known in PRE_TOKENIZERS:
        if steps == known:
            return pattern
    handles = "handled here: the patterns of GPT-2 and Llama 3, or single Digits before GPT-2's"
    raise ValueError(f"pre_tokenizer is {pre!r:.160}; {handles}")


def read_bos(post):
    """The ids that the post_processor of a tokenizer.json puts before a text."""
    bos = None
    for step in post["processors"] if post["type"] == "Sequence" else [post]:
        if step["type"] == "ByteLevel":  # it moves offsets
            check_keys("post_processor", step, BYTE_LEVEL)
            continue
        check_keys("post_processor", step, TEMPLATE)
        *before, text = step["single"]
        need("Sequence" in text, f"post_processor: {text!r:.80} after a text; handled here: before")
        need(bos is None, "post_processor: handled here: one TemplateProcessing, not several")
        names = [part["SpecialToken"]["id"] for part in before]
        bos = [i for name in names for i in step["special_tokens"][name]["ids"]]
    return bos or []


def check_normalized(added):
    """ValueError if some added tokens are normalized and some not: there would be two searches."""
    flags = {token["content"]: bool(token.get("normalized")) for token in added}
    need(len({*flags.values()}) < 2, "added_tokens: some are normalized; handled here: all or none")


def read_tokenizer(j):
    """The tokenizer in the object of a tokenizer.json; ValueError."""
    kind = j["model"].get("type", "BPE")
    need(kind == "BPE", f"model's type is {kind!r:.80}; handled here: BPE")
    vocab, merges, added = j["model"]["vocab"], j["model"]["merges"], j["added_tokens"]
    if j.get("decoder") == {"type": "Fuse"}:
        check_keys("key", j, CHARACTERS)
        tokenizer = CharTokenizer("".join(vocab))
        need(tokenizer.ids == vocab, "vocab: handled here with the decoder Fuse: sorted characters")
        return tokenizer
    check_keys("key", {**j, "decoder": {"type": None, **(j.get("decoder") or {})}}, BYTES)
    bad = [(token, i) for token, i in vocab.items() if type(i) is not int or not 0 <= i < 2**32]
    need(not bad, f"vocab: {bad[:1]!r:.80} is not an id from 0 to 2³²")
    need(len({*vocab.values()}) == len(vocab), "vocab: two tokens have the same id")
    lacking = [byte for byte, char in BYTE_TO_CHAR.items() if char not in vocab]
    need(not lacking, f"vocab: no token for the bytes {lacking!r:.80}; all 256 are needed")
    ids, next_id = dict(vocab), max(vocab.values()) + 1
    for token in added:
        check_keys("added_tokens", token, ADDED_TOKEN)
        text, i = token["content"], token["id"]
        expected = ids.setdefault(text, next_id)  # as the tokenizers library counts on
        if not text or type(i) is not int or i != expected:
            raise ValueError(f"added_tokens: {text!r:.80} has the id {i!r:.80}, not {expected}")
        next_id = max(next_id, expected + 1)
    check_normalized(added)
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    bad = [pair for pair in merges if type(pair) is not list or len(pair) != 2]
    need(not bad, f"merges: {bad[:1]!r:.80} is not a pair")
    bos = read_bos(j.get("post_processor") or {"type": "ByteLevel"})
    if not all(type(i) is int and i in ids.values() for i in bos):
        raise ValueError(f"post_processor: {bos!r:.80} are not ids of tokens")
    pattern = read_pattern(j.get("pre_tokenizer") or {"type": None})
    special = {token["content"]: token["id"] for token in added}
    return BPETokenizer(vocab, merges, pattern, special, bos, j["model"].get("ignore_merges"))


def check_config(config, special_tokens, added, table):
    """ValueError if a tokenizer_config.json or special_tokens_map.json would change an id."""
    listed = config.get("added_tokens_decoder") or {}
    listed = [{"id": int(i), **token} for i, token in listed.items()]
    check_normalized([*added, *listed])
    named, table = [*listed], dict(table)
    for key, value in config.items():
        if key in ("additional_special_tokens", "extra_special_tokens"):
            named += value or []
        elif key.endswith("_token") and type(value) is not bool:
            named += [value] if value else []
        else:
            continue
        table[key] = ...
    check_keys("key", config, table)
    for token in named:  # transformers would add others with a new id
        token = {"content": token} if isinstance(token, str) else token
        check_keys("token", token, ADDED_TOKEN)
        i = special_tokens.get(token["content"])
        if i is None or i != token.get("id", i):
            raise ValueError(f"the token {token!r:.80} is not among the added_tokens")


def load_tokenizer(directory):
    """The tokenizer in a directory written here, by stage 7 or by transformers.

    ValueError for a damaged file, and for what is not handled here and could change an id.
    """
    directory = Path(directory)
    files = {n: (directory / n).read_bytes() for n in TOKENIZER_FILES if (directory / n).is_file()}
    name = next((n for n in ("tokenizer.json", "vocab.json", "tokenizer") if n in files), None)
    need(name, f"{directory}: no tokenizer.json, so text cannot be turned into tokens")
    classes, kept = CLASSES, CLASSES[:2]  # others become kept[0], so that the files are followed
    try:
        if name == "tokenizer":  # how characters were kept until 2026
            return CharTokenizer(parse_json(files[name], str, "expected a JSON string"))
        j = parse_json(files[name], dict, "expected a JSON object")
        if name == "vocab.json":
            classes = kept = CLASSES[-2:]
            lines = re.split("\r?\n", files["merges.txt"].decode())
            lines = [line for line in lines if line and not line.startswith("#version")]
            added = [{"id": j["<|endoftext|>"], "content": "<|endoftext|>"}]
            j = {"added_tokens": added, "model": {"vocab": j, "merges": lines}}
            j |= {"pre_tokenizer": GPT2, "decoder": GPT2}
        tokenizer = read_tokenizer(j)
        if isinstance(tokenizer, CharTokenizer):
            classes = kept
        table = dict.fromkeys(CONFIG, ...) | {"tokenizer_class": [None, *classes]}
        if tokenizer.bos:
            table["add_bos_token"] = ...
        for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
            config = parse_json(files.get(name, b"{}"), dict, "expected a JSON object")
            if name == "added_tokens.json":
                check_keys("token", config, {t: [i] for t, i in tokenizer.special_tokens.items()})
            else:
                check_config(config, tokenizer.special_tokens, j["added_tokens"], table)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        what = error if isinstance(error, ValueError) else f"damaged: {error!r:.80}"
        raise ValueError(f"{directory / name}: {what}") from None
    if config.get("tokenizer_class") not in kept:
        config = {**config, "tokenizer_class": kept[0]}
        files["tokenizer_config.json"] = json.dumps(config, indent=1).encode()
    tokenizer.files = files
    return tokenizer


# %% 16. Texts larger than memory
#
# A text is read in pieces, and its token ids go to a file that is mapped into memory: an array that
# the system reads from disk where it is looked at, and forgets when space runs short. The file says
# in its metadata which text and which tokenizer it was made from, and is used again for the same.
#
# A Split is such a text: ids (n,), uint16 or uint32, and its pieces as views of them. held is the
# last tenth of the characters, train what comes before, less dev, which is cut from its end.
Split = collections.namedtuple(
    "Split", "ids train dev held train_chars dev_chars held_chars vocab_size text_hash"
)


def stream_text(path):
    """Yield a UTF-8 file as pieces of str; ValueError if it is missing, empty or something else.

    Every end of a line becomes "\\n"; a byte order mark at the beginning is no part of the text.
    """
    need(Path(path).exists(), f"{path}: no such file")
    need(Path(path).is_file(), f"{path}: a directory or a stream, expected a text file")
    with open(path, encoding="utf-8-sig") as file:
        try:
            text = file.read(1 << 20)
            need(text, f"{path}: the file is empty")
            while text:
                yield text
                text = file.read(1 << 20)
        except UnicodeDecodeError as error:
            at = file.buffer.tell() - len(error.object) + error.start
            raise ValueError(f"{path}: not UTF-8 text (at byte {at})") from None


def sum_of(ids, cuts):
    """The sha256 of token ids and of where they are cut, a text."""
    total = hashlib.sha256(ids)
    total.update(cuts.encode())
    return total.hexdigest()


def sum_of_files(files):
    """The sha256 of {name: bytes}."""
    named = [(name, data.hex()) for name, data in sorted(files.items())]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def split_file(path, tokenizer, cache, dev_fraction=0.0):
    """The Split of a text through the token file `cache`, made or used again; ValueError."""
    text_sum, chars = hashlib.sha256(), 0
    for text in stream_text(path):
        text_sum.update(text.encode())
        chars += len(text)
    text_hash, seen = text_sum.hexdigest(), int(0.9 * chars)
    dev = int(dev_fraction * seen)
    lengths = [seen - dev, dev, chars - seen]
    source = json.dumps([text_hash, sum_of_files(tokenizer.files), lengths])

    def read():
        tensors, found = read_safetensors(cache)
        ids = read_tensor(tensors["ids"])
        if found["source"] != source or found["sum"] != sum_of(ids, found["cuts"]):
            raise ValueError(f"{cache}: not the tokens of {path}")
        return ids, *np.split(ids, json.loads(found["cuts"]))

    try:
        pieces = read()
    except (ValueError, KeyError):  # missing, damaged, or of another text or tokenizer
        encode_file(path, tokenizer, lengths, cache, source)
        pieces = read()
    return Split(*pieces, *lengths, tokenizer.vocab_size, text_hash)


def encode_file(path, tokenizer, lengths, cache, source):
    """Write the token file of a text, whose pieces have so many characters."""
    raw, n, cuts, started = Path(f"{cache}.raw"), 0, [], time.time()
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    due = started + 2

    def characters(begin, end):
        nonlocal due
        at = 0
        for text in stream_text(path):
            yield text[max(0, begin - at) : max(0, end - at)]
            at += len(text)
            if begin < at < end and time.time() > due:
                print(f"encoding {path}: {at / sum(lengths):4.0%}", flush=True)
                due += due - started  # the next line after as long again

    def tokens():
        nonlocal n
        for begin, end in itertools.pairwise([0, *itertools.accumulate(lengths)]):
            for ids in tokenizer.encode_stream(characters(begin, end)):
                n += len(ids)
                yield ids.astype(dtype)
            cuts.append(n)

    try:
        write_file(raw, tokens())  # only then it is known how many there are
        ids, cuts = np.memmap(raw, dtype, "r"), json.dumps(cuts[:2])
        found = {"source": source, "cuts": cuts, "sum": sum_of(ids, cuts)}
        write_safetensors(cache, {"ids": ids}, found)
    finally:
        raw.unlink(missing_ok=True)


# %% 17. The team
#
# A step's sequences can be shared out among several processes, the members of a team. Let member r
# have nᵣ of the N sequences, with mean loss Lᵣ. Then
#     L = Σᵣ (nᵣ/N) Lᵣ,      ∂L/∂w = Σᵣ (nᵣ/N) ∂Lᵣ/∂w,
# whatever the nᵣ, which differ by one when N is no multiple of the team's size R. The factor nᵣ is
# the derivative with which the backward pass begins, and so costs nothing.
#
# What remains is to add up R gradients of P numbers and to update P weights once. Each member does
# that for its *shard*, the r-th of R pieces of the flat vector:
#     reduce-scatter   every member gets the others' gradients of its shard, and adds them up
#     two numbers      the loss, and ‖g‖² = Σᵣ ‖g on shard r‖², which clipping must know before
#     AdamW            each member updates its shard, with its part of m and v: 1/R of the work
#     all-gather       every member gets the others' new weights
# In the first and in the last a member sends (R-1)/R · P numbers, together less than 2P however
# large the team. Its arithmetic is 6P operations a token, so the more tokens a member has in a
# step, the less the sending counts; and every step is as slow as the slowest member.
#
# Workers on one machine are forked: each starts as a copy of this process, and they send by writing
# into memory that all of them see. It pays because NumPy gives several cores to matrix products and
# to nothing else: in one process all that stands between two products has one core, in two
# processes it has two. The price is a gradient and a copy of Python's own memory for every worker,
# and four waits a step. MPI ranks live on any machines that a network connects: 10⁷ parameters are
# 80 MB a step, 0.06 s at ten gigabits a second, and 1,000 tokens 0.6 s of arithmetic at 100 GF/s.
#
# Sums are taken in the same order every time, so for one size of team a run is the same bit for
# bit; between two sizes it differs by rounding.


class Alone:
    """The team of one: whatever is to be summed over its members is summed already."""

    grads = None  # where gradients are written; None: into new memory

    def sum_gradients(self, gradient):
        """Where this member's shard of the weights begins, and the summed gradient of the shard."""
        return 0, gradient

    def sum_numbers(self, *numbers):
        """The sum of every number over the members."""
        return numbers

    def gather(self, vector):
        """Bring everybody's shard of the vector to everybody."""


def wait_until(done, look=lambda: None):
    """Return when done(): ask again and again for some milliseconds, then between longer naps.

    look() is called before every nap, to raise an exception if the wait is in vain.
    """
    tries = 0
    while not done():
        tries += 1
        if tries > 1000:
            look()
            time.sleep(min(1e-5 * (tries - 1000), 5e-3))


class Team(Alone):
    """A team of one, and what all teams have in common. Rank 0, the leader, calls step and collect.

    ids: the tokens to train on; settings: those of a run. Between the batches of a step the leader
    asks stopping(); if that is true, step raises KeyboardInterrupt and has changed nothing.
    """

    rank, size, threads = 0, 1, None  # threads: BLAS threads of a member; None: as they are

    def __init__(self, model, optimizer, ids, settings, stopping=lambda: False):
        keep_freed_memory()
        self.model, self.optimizer, self.ids = model, optimizer, ids
        self.settings, self.stopping = settings, stopping
        self.grads = ParamDict(model.config, np.empty_like(model.flat))

    def step(self, step, learning_rate):
        """One step of all members together: what training_step returns, and raises."""
        try:
            self.tell(step, learning_rate)
            return self.work(step, learning_rate)
        except FloatingPointError:  # all members got it, at the same place
            raise
        except BaseException:  # the others are in the middle of a step that will not be
            self.close()
            raise

    def tell(self, *command):
        """Give the leader's two numbers to the other members, who hear them by the same call."""

    def work(self, step, learning_rate):
        """This member's part of a step."""
        before = blas_threads(self.threads)
        try:
            batches = self.batches(int(step))
            return training_step(self.model, self.optimizer, batches, learning_rate, self)
        finally:
            blas_threads(before)

    def batches(self, step):
        """This member's share of every batch of a step."""
        s = self.settings
        first, end = self.shard(s["batch_size"])
        for i in range(s["gradient_accumulation_steps"]):
            if i and self.stopping():
                raise KeyboardInterrupt
            place = i * s["batch_size"] + first
            yield draw_batch(self.ids, s["block_size"], end - first, s["seed"], step, place)

    def shard(self, n):
        """Where this member's part of n things begins and ends."""
        return n * self.rank // self.size, n * (self.rank + 1) // self.size

    def collect(self):
        """See that m and v are complete in this process, in order to save them."""

    def close(self):
        """End the team; the model and the optimizer remain."""


def shared(array):
    """A copy of the array in memory that this process and those it forks have in common."""
    copy = np.frombuffer(mmap.mmap(-1, array.nbytes), array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Workers(Team):
    """A team of `size` processes on this machine, this one and those it forks (Linux).

    The model's weights and the optimizer's m and v move into shared memory. The workers end with
    this process, however it ends. When one fails, step raises ChildProcessError, an OSError.
    """

    def __init__(self, model, optimizer, ids, settings, stopping=lambda: False, size=2):
        self.size, self.threads = size, max(1, usable_cores() // size)
        super().__init__(model, optimizer, ids, settings, stopping)
        model.params = optimizer.params = ParamDict(model.config, shared(model.flat))
        model.flat, optimizer.m = model.params.flat, shared(optimizer.m)
        optimizer.v = shared(optimizer.v)
        self.gradients = shared(np.zeros((size, model.flat.size), model.dtype))
        self.grads = ParamDict(model.config, self.gradients[0])
        self.arrived = shared(np.zeros(size, np.int64))  # the barriers that each has reached
        self.numbers, self.command = shared(np.zeros((size, 3))), shared(np.zeros(2))
        self.last_words, self.leader, self.pids = mmap.mmap(-1, 300), os.getpid(), {}
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the leader answers them
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # for ever in the workers
        if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:  # nobody would hear of their end
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            for rank in range(1, size):
                pid = os.fork()
                if pid == 0:
                    self.live(rank)
                self.pids[rank] = pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def live(self, rank):
        """The life of a worker. It holds no files, above all not the lock of the run."""
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the leader
            for name in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):  # the listing's own is closed already
                    os.close(max(3, int(name)))
            self.rank, self.grads = rank, ParamDict(self.model.config, self.gradients[rank])
            while True:
                with contextlib.suppress(FloatingPointError):  # the leader gets one, too
                    self.work(*self.tell())
        except BaseException as error:
            self.last_words.write(f"{type(error).__name__}: {error}".encode()[:300])
        finally:
            os._exit(1)

    def barrier(self):
        """Wait until every member has come here."""
        self.arrived[self.rank] += 1
        wait_until(lambda: self.arrived.min() >= self.arrived[self.rank], self.look)

    def look(self):
        """See whether those that are waited for are still there."""
        if self.rank > 0 and os.getppid() != self.leader:
            os._exit(1)
        for rank, pid in self.pids.items() if self.rank == 0 else ():
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self.pids[rank]
                words = self.last_words[:].rstrip(b"\0").decode(errors="replace")
                why = words or "killed, perhaps for want of memory"
                raise ChildProcessError(f"worker {rank} of {self.size} ended: {why}")

    def tell(self, *command):
        if command:
            self.command[:] = command
        self.barrier()
        return self.command.tolist()

    def sum_gradients(self, gradient):
        self.barrier()
        start, end = self.shard(gradient.size)
        total = self.gradients[0, start:end]
        for others in self.gradients[1:, start:end]:
            total += others
        return start, total

    def sum_numbers(self, *numbers):
        self.numbers[self.rank] = numbers
        self.barrier()
        return self.numbers.sum(0).tolist()

    def gather(self, vector):
        self.barrier()  # the vector is shared

    def close(self):
        while self.pids:
            _, pid = self.pids.popitem()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


COLLECT, END = -1, -2  # what rank 0 may tell the others instead of the number of a step


def tell_ranks(MPI, *command):
    """Rank 0's two numbers to all ranks, which wait for them without keeping a core busy."""
    numbers = np.array(command or (0, 0), np.float64)
    wait_until(MPI.COMM_WORLD.Ibcast(numbers).Test)
    return numbers.tolist()


@contextlib.contextmanager
def or_abort(MPI):
    """What goes wrong within `with` in one rank ends them all."""
    try:
        yield
    except FloatingPointError:  # which all of them get, at the same place
        raise
    except BaseException as error:
        complain(f"rank {MPI.COMM_WORLD.rank}: {type(error).__name__}: {error}")
        time.sleep(0.5)  # until mpiexec has passed the words on: Abort ends it, too
        MPI.COMM_WORLD.Abort(1)
        os._exit(1)


class Ranks(Team):
    """The processes that mpiexec started, on one machine or on several.

    Rank 0 gives what a Team is made of. It is pickled and sent to the others, who `follow`, and has
    to fit into the memory of each.
    """

    def __init__(self, MPI, *run):
        self.MPI, self.world = MPI, MPI.COMM_WORLD
        self.rank, self.size = self.world.rank, self.world.size
        if self.rank == 0:
            self.tell(0, 0)
        sent = self.world.bcast(run)
        super().__init__(*(sent if self.rank else run))
        start, end = self.shard(self.model.flat.size)
        self.counts = self.world.allgather(end - start)
        here = self.world.Split_type(MPI.COMM_TYPE_SHARED).size  # ranks on this machine
        self.threads = max(1, usable_cores() // here)

    def tell(self, *command):
        return tell_ranks(self.MPI, *command)

    def work(self, step, learning_rate):
        with or_abort(self.MPI):
            if step != COLLECT:
                return super().work(step, learning_rate)
            self.gather(self.optimizer.m)
            self.gather(self.optimizer.v)

    def collect(self):
        self.step(COLLECT, 0)

    def sum_gradients(self, gradient):
        start, end = self.shard(gradient.size)
        total = np.empty(end - start, gradient.dtype)
        self.world.Reduce_scatter(gradient, total, self.counts)
        return start, total

    def sum_numbers(self, *numbers):
        return np.sum(self.world.allgather(numbers), 0).tolist()

    def gather(self, vector):
        start, end = self.shard(vector.size)
        self.world.Allgatherv(vector[start:end].copy(), [vector, self.counts])


def follow(MPI):
    """What ranks above 0 do: take part in the run that rank 0 has, if it has one."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # rank 0 answers them
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with or_abort(MPI):
        if tell_ranks(MPI)[0] == END:
            return
        team = Ranks(MPI)
        while (command := team.tell())[0] != END:
            with contextlib.suppress(FloatingPointError):  # rank 0 gets one, too
                team.work(*command)


def team_size(settings):
    """How many members the team will have; ValueError if that is more than a batch has sequences.

    settings["workers"] 0 becomes as many as there are cores to use and sequences in a batch.
    """
    MPI, B = mpi(), settings["batch_size"]
    if sys.platform != "linux":
        settings["workers"] = 1
    settings["workers"] = settings["workers"] or min(usable_cores(), B)
    size = MPI.COMM_WORLD.size if MPI else settings["workers"]
    need(size <= B, f"a batch_size of {B} is too small for {size} processes")
    return size


def make_team(model, optimizer, ids, settings, stopping=lambda: False):
    """The team that mpiexec or settings["workers"] ask for: see Team."""
    MPI, run = mpi(), (model, optimizer, ids, settings)
    if MPI:
        with or_abort(MPI):
            return Ranks(MPI, *run)
    size = settings["workers"]
    return Workers(*run, stopping, size) if size > 1 else Team(*run, stopping)


# %% 18. The machine
#
# What NumPy, glibc, the kernel and MPI are asked for the sake of the team. Where something is not
# there, training goes on without it.


def keep_freed_memory():
    """Ask glibc to keep freed arrays in the process: no page faults at every step."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
    except (AttributeError, TypeError, OSError):
        pass


def usable_cores(root="/"):
    """Cores this process may use: those of its affinity, or fewer under a cgroup's quota."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores, groups = len(os.sched_getaffinity(0)), Path(root, "proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, group = line.split(":", 2)
        at = Path(root, "sys/fs/cgroup", controllers, group[1:])
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        for directory in (at, *at.parents):  # inside a container the group is the mount itself
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no quota
                words = " ".join((directory / name).read_text() for name in names).split()
                quota, period = map(int, words)
                if quota > 0:
                    cores = min(cores, -(-quota // period))  # rounded up
    return cores


@functools.cache
def openblas():
    """Functions that get and set the number of threads of NumPy's OpenBLAS; None if not found."""
    with contextlib.suppress(OSError, StopIteration):
        maps = Path("/proc/self/maps").read_text().splitlines()
        paths = (line.split(None, 5)[-1] for line in maps)
        path = next(path for path in paths if "openblas" in Path(path).name)
        library = ctypes.CDLL(path)
        for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads"):
            if hasattr(library, name.format("set")):
                return [getattr(library, name.format(what)) for what in ("get", "set")]
    return None


def blas_threads(n):
    """Let matrix products use n threads; returns how many they used. None changes nothing."""
    if n is None or openblas() is None:
        return None
    get, put = openblas()
    before = get()
    put(n)
    return before


def mpi():
    """mpi4py's MPI if mpiexec started several processes, else None; ValueError without mpi4py."""
    for size, rank in (("PMI_SIZE", "PMI_RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")):
        started = int(os.environ.get(size) or 1)
        if started == 1:
            continue
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError):
            if int(os.environ.get(rank) or 0) > 0:  # rank 0 says it for all
                sys.exit(2)
            raise ValueError("mpiexec needs mpi4py: python -m pip install mpi4py mpich") from None
        found = MPI.COMM_WORLD.size
        need(found == started, f"mpiexec started {started} processes, but mpi4py finds {found}")
        return MPI
    return None


# %% 19. Training runs
#
# Every number of a run follows from its settings: what step s draws comes from generators seeded
# with s (section 12), so a run that stopped and resumed at step s computes exactly what the
# uninterrupted one would have. Its directory holds
#     best/              the model to use, as Hugging Face lays it out; only its weights ever change
#     last.safetensors   all it takes to go on: weights, AdamW's m and v, the rest as metadata
#     tokens.safetensors, metrics.jsonl, lock    the text as tokens, the curve, who is at work here
# Files are replaced one at a time, each at one instant, so whatever happens, what is there can be
# used: a signal costs at most the step at hand, kill -9 the steps since the last evaluation.

SETTINGS = {  # name: (default, smallest, what it is); the names are nanoGPT's where it has one
    "data": (str(DATA / "stories.txt"), None, "a UTF-8 text; its last tenth is held out"),
    "tokenizer": (str(DATA / "tokenizer"), None, "a tokenizer's directory, or: char"),
    "init_from": ("", None, "a checkpoint to start from, with its tokenizer and its shape"),
    "seed": (0, 0, "fixes weights, batches, dropout and samples"),
    "dev_fraction": (0.05, 0, "end of the training part that only chooses the best step"),
    "arch": ("llama", None, "gpt2 or llama"),
    "n_layer": (4, 1, "blocks"),
    "n_head": (4, 1, "attention heads"),
    "n_kv_head": (0, 0, "key/value heads (llama; 0: as many as heads)"),
    "n_embd": (96, 1, "channels"),
    "n_hidden": (0, 0, "MLP width (0: the family's rule)"),
    "block_size": (64, 1, "context length in tokens (with --init_from: the model's)"),
    "bias": (False, None, "biases in linear layers and norms (gpt2)"),
    "dropout": (0.1, 0, "fraction of activations dropped (with --init_from: the model's)"),
    "tie_weights": (True, None, "one matrix for the embedding and the head"),
    "batch_size": (16, 1, "sequences in a batch"),
    "gradient_accumulation_steps": (1, 1, "batches whose gradients are averaged for one update"),
    "workers": (0, 0, "processes that share every batch (0: one for every usable core)"),
    "max_iters": (2600, 1, "updates"),
    "learning_rate": (2.5e-3, 1e-30, "peak learning rate (with --init_from: 3e-5)"),
    "min_lr": (1e-4, 0, "learning rate at the end of the cosine"),
    "warmup_iters": (100, 0, "updates of linear warmup"),
    "lr_decay_iters": (0, 0, "where the cosine ends (0: at max_iters)"),
    "beta1": (0.9, 0, "AdamW: memory of the gradient, below 1"),
    "beta2": (0.99, 0, "AdamW: memory of its square, below 1"),
    "weight_decay": (0.1, 0, "AdamW: decay of the matrices"),
    "grad_clip": (1.0, 0, "largest gradient norm (0: no clipping)"),
    "eval_interval": (200, 1, "updates between evaluations, each followed by a checkpoint"),
    "eval_iters": (20, 1, "batches in an evaluation while training"),
}
PRESETS = {
    "stories": {  # chosen on a development piece by benchmarks/sweep_capstone.py
        "dev_fraction": 0.0, "dropout": 0.2, "weight_decay": 0.5, "learning_rate": 3e-3,
    },
    "nanogpt-cpu": {  # the CPU setting of nanoGPT's README
        "tokenizer": "char", "dev_fraction": 0.0, "arch": "gpt2", "n_layer": 4, "n_head": 4,
        "n_embd": 128, "block_size": 64, "bias": False, "dropout": 0.0, "batch_size": 12,
        "max_iters": 2000, "learning_rate": 1e-3, "min_lr": 1e-4, "warmup_iters": 100,
        "beta2": 0.99, "weight_decay": 0.1, "grad_clip": 1.0, "eval_interval": 250,
    },
    "fast": {
        "dev_fraction": 0.0, "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32,
        "batch_size": 8, "max_iters": 60, "warmup_iters": 10, "eval_interval": 20, "eval_iters": 4,
    },
}  # fmt: skip
FINE_TUNING = {"learning_rate": 3e-5, "min_lr": 3e-6}  # with --init_from
SHAPE = [field.name for field in dataclasses.fields(GPTConfig) if field.name in SETTINGS]
STATE = {"step": int, "count": int, "sum": float, "best": float, "text_hash": str}  # of a run
SIGPIPE = 13  # would be sent when nobody reads standard output, were Python not to ignore it


def check_settings(settings):
    """The settings, each as its type; ValueError if one is missing, unknown or wrong."""
    odd = ", ".join(sorted(settings.keys() ^ SETTINGS.keys()))
    need(not odd, f"settings that are missing or unknown: {odd:.200}")
    checked = {}
    for name, (default, lowest, _) in SETTINGS.items():
        fraction = name in ("beta1", "beta2", "dropout", "dev_fraction")
        below = 1 if fraction else 2**63 if type(default) is int else 1e300
        checked[name] = check_value(name, settings[name], type(default), lowest, below)
        if type(default) is str and re.search("[\ud800-\udfff]", checked[name]):
            raise ValueError(f"{name} is not UTF-8: {checked[name]!r:.200}")
    checked["data"] = os.path.abspath(checked["data"])  # to resume from another directory
    if checked["min_lr"] > checked["learning_rate"]:
        checked["min_lr"] = checked["learning_rate"] / 10
        print(f"min_lr goes down with the learning rate, to a tenth of it: {checked['min_lr']:g}")
    return checked


def complain(message):
    """Print one line on standard error, if there is still anyone to read it."""
    try:
        line = f"capstone_gpt.py: {' '.join(str(message).split()):.500}\n"
        print(line, end="", file=sys.stderr, flush=True)  # one write: an MPI abort may follow
    except (OSError, RuntimeError):  # closed; or a signal came in the middle of another line
        pass


def hold(out):
    """The lock file of a run, held until it is closed; ValueError if another process has it."""
    file = open(out / "lock", "a+")
    try:
        import fcntl  # not on every system

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        pid = file.read(20).strip()
        file.close()
        raise ValueError(f"{out}: process {pid} is at work on this run") from None
    except (ImportError, OSError):
        pass  # where there are no such locks, nothing can be held
    file.truncate(0)
    print(os.getpid(), file=file, flush=True)
    return file


@contextlib.contextmanager
def noted_signals():
    """Within `with`, a list of the signals that came, each a wish to stop; the third ends all."""
    signals = []

    def note(number, _):
        signals.append(number)
        if len(signals) > 2:
            raise SystemExit(128 + signals[0])
        again = "" if len(signals) == 1 else "; once more ends it without"
        complain(f"this step is finished, then the run is saved{again}")

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    wanted = [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def load(directory):
    """The model and the tokenizer of a checkpoint; ValueError if they do not fit together."""
    model, tokenizer = GPT.from_pretrained(directory), load_tokenizer(directory)
    n, V = tokenizer.vocab_size, model.config.vocab_size
    need(n <= V, f"{directory}: {n} tokens in the tokenizer for a vocabulary of {V}")
    bos_and_eos(model)  # to be refused now, and not when a text is begun
    return model, tokenizer


def load_for_training(s, given):
    """Model and tokenizer of the checkpoint s["init_from"], which also settles its part of s.

    given: the settings that someone asked for. Its shape is not to be asked for.
    """
    fixed = ", ".join(sorted(given.keys() & {"tokenizer", *SHAPE} - {"block_size", "dropout"}))
    need(not fixed, f"--init_from takes the checkpoint's own {fixed}")
    model, tokenizer = load(checkpoint_of(s["init_from"]))
    s |= {name: getattr(model.config, name) for name in SHAPE if name not in given}
    if model.config.arch == "gpt2" and "dropout" not in given:
        read = json.loads(model.files["config.json"])
        if {read.get("embd_pdrop", 0.1), read.get("attn_pdrop", 0.1)} != {s["dropout"]}:
            raise ValueError(f"{s['init_from']} has several dropouts, so --dropout must be given")
    return model, tokenizer


def fresh_model(s):
    """Random weights in the shape of settings s, and the tokenizer."""
    if s["tokenizer"] == "char":
        tokenizer = CharTokenizer(set().union(*map(set, stream_text(s["data"]))))
    else:
        tokenizer = load_tokenizer(s["tokenizer"])
    shape = {name: s[name] for name in SHAPE}
    shape |= {name: s[name] or None for name in ("n_kv_head", "n_hidden")}
    return GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape), s["seed"]), tokenizer


def continued(model, tokenizer, prompt, length, sampling, to_the_end=False):
    """Yield what follows the prompt, as text: `length` tokens or those before an end token.

    sampling: what GPT.stream takes; to_the_end goes on after end tokens. An empty prompt becomes
    the token that the model's texts begin with, or else a new line.
    """
    bos, ends = bos_and_eos(model)
    ids = tokenizer.encode(prompt, add_special_tokens=True)
    if len(ids) == 0 and bos is None:
        with contextlib.suppress(ValueError):  # characters without it
            ids = tokenizer.encode("\n")
    if len(ids) == 0:
        ids = np.array([bos or 0])
    tokens = (int(token[0]) for token in model.stream(ids[None], length, *sampling))
    if not to_the_end:
        tokens = itertools.takewhile(lambda token: token not in ends, tokens)
    return tokenizer.decode_stream(tokens)


def nats_per_char(model, ids, first, chars, block_size, stride, max_windows=None):
    """Nats per character of ids[first:], a text of so many characters; see evaluate."""
    nats, tokens = evaluate(model, ids, first, block_size, stride, max_windows)
    loss = nats / tokens * (len(ids) - first) / chars
    if not math.isfinite(loss):
        raise FloatingPointError(f"loss {loss:.4g}")
    return loss


COUNTED = 2_000_000  # training tokens that the yardstick counts at most: the last ones
SCORED = 200_000  # tokens that it scores at most: 100 stretches, evenly spaced


def yardstick(split):
    """Kneser-Ney on the held-out piece: (nats per character, order, training tokens counted).

    The order, 10 at most, is the best on the development piece or, without one, on the last 5 % of
    the training tokens, which are counted only afterwards.
    """
    ids, end, first = split.ids, len(split.train), len(split.ids) - len(split.held)

    def nats_per_token(counted, first, last, order):
        stretches = 1 if last - first <= SCORED else 100
        size = min(last - first, SCORED) // stretches
        starts = np.linspace(first, last - size, stretches).astype(int)
        rows = ids[starts[:, None] + np.arange(1 - order, size)]  # each with its first context
        train = ids[max(0, counted - COUNTED) : counted]
        return kneser_ney_nats(train, rows, split.vocab_size, order) / max(1, stretches * size)

    counted = end if len(split.dev) else end - end // 20
    longest = min(10, 1 + counted)  # at most all that stands before the first token
    order = 1 + int(np.argmin(nats_per_token(counted, counted, first, longest)))
    nats = nats_per_token(end, first, len(ids), order)[-1] * len(split.held)
    return float(nats / split.held_chars), order, min(end, COUNTED)


def held_out_line(nats, what):
    """The line of the ladder: three faces of one number."""
    bits, perplexity = nats / math.log(2), np.exp(nats)
    return f"{nats:.3f} nats/char | {bits:.3f} bits/char | perplexity {perplexity:.2f}   ({what})"


class Run:
    """A training run: settings, text, model, optimizer, and the directory they are kept in."""

    def __init__(self, out, settings, model, tokenizer):
        self.out, self.settings, self.model, self.tokenizer = out, settings, model, tokenizer
        s, T, longest = settings, settings["block_size"], model.config.block_size
        need(T <= longest, f"block_size={T} is more than the model's {longest}")
        model.config.dropout = s["dropout"]
        dev = s["dev_fraction"]
        self.split = split_file(s["data"], tokenizer, out / "tokens.safetensors", dev)
        self.text_hash, n = self.split.text_hash, len(self.split.train)
        need(n > T, f"{s['data']}: {n} tokens are too few for a block of {T}")
        self.choosing = dev > 0  # the best step, by its loss on the development piece
        self.watched = "dev" if dev > 0 else "held"  # the piece that is evaluated on the way
        if self.choosing and len(self.split.dev) == 0:
            raise ValueError(f"{s['data']}: a --dev_fraction of {dev} is less than a token")
        betas, decay, clip = (s["beta1"], s["beta2"]), s["weight_decay"], s["grad_clip"]
        self.optimizer = AdamW(model.params, betas, 1e-8, decay, clip)
        self.step, self.best = 0, math.inf  # the lowest loss so far
        self.sum, self.count = 0.0, 0  # of the losses of steps since the last evaluation
        self.members = team_size(s)

    @classmethod
    def start(cls, out, settings, given):
        """A new run in the directory out; given: those of the settings that someone asked for."""
        if settings["init_from"]:
            return cls(out, settings, *load_for_training(settings, given))
        run = cls(out, settings, *fresh_model(settings))
        run.model.files = dict(run.tokenizer.files)
        end, train = run.tokenizer.special_tokens.get("<|endoftext|>"), run.split.train
        if any((train[piece] == end).any() for piece in tiles(len(train), 1)):
            config = json.loads(config_to_json(run.model))
            config["bos_token_id"] = config["eos_token_id"] = end
            run.model.files["config.json"] = json.dumps(config, indent=2).encode()
        return run

    @classmethod
    def resume(cls, out, changes):
        """The run as its last checkpoint left it, with some settings changed if wished."""
        fixed = changes.keys() & {"seed", "tokenizer", "dev_fraction", "init_from", *SHAPE}
        need(not fixed, f"a resumed run keeps its {', '.join(sorted(fixed))}")
        path = out / "last.safetensors"
        tensors, metadata = read_safetensors(path)
        try:
            settings, state = (
                parse_json(metadata.get(part, ""), dict, f"its {part} are not those of a run")
                for part in ("settings", "state")
            )
            settings = check_settings(settings)
            need(state.keys() == STATE.keys(), f"its state is not {', '.join(STATE)}")
            for name, kind in STATE.items():
                state[name] = check_value(name, state[name], kind, 0, 2**63)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        run = cls(out, check_settings(settings | changes), *load(out / "best"))
        need(metadata.get("best") == run.best_sum(), f"{out / 'best'} is not the model of this run")
        if state["text_hash"] != run.text_hash:
            raise ValueError(f"{run.settings['data']} is not the text this run was trained on")
        vars(run).update(state)
        run.optimizer.t, named = run.step, run.tensors()
        need(tensors.keys() == named.keys(), f"{path}: its tensors are not those of {out / 'best'}")
        for name, array in named.items():
            copy_tensor(tensors, name, array)
        run.keep_metrics()
        return run

    def keep_metrics(self):
        """Drop from metrics.jsonl what came after this step, and every line that is damaged."""
        path, kept, last = self.out / "metrics.jsonl", [], -1
        for line in path.read_bytes().splitlines() if path.exists() else []:
            try:
                last = check_value("step", json.loads(line)["step"], int, last + 1, self.step + 1)
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            kept.append(line + b"\n")
        write_file(path, kept)

    def tensors(self):
        """The arrays in last.safetensors: the weights, and AdamW's m and v, flat."""
        moments = {"exp_avg": self.optimizer.m, "exp_avg_sq": self.optimizer.v}
        return {**self.model.params, **moments}

    def best_sum(self):
        """The sha256 of what stands in best/ beside the weights."""
        return sum_of_files({**self.model.files, "config.json": config_to_json(self.model)})

    def save(self, best):
        """Write last.safetensors and, if this is the best step, the weights in best/."""
        if not np.isfinite(self.model.flat).all():
            raise FloatingPointError("weights that are not finite")
        if best:
            save_model(self.out / "best", self.model)
        self.team.collect()
        state = {name: getattr(self, name) for name in STATE}
        metadata = {"settings": json.dumps(self.settings), "state": json.dumps(state)}
        metadata["best"] = self.best_sum()
        write_safetensors(self.out / "last.safetensors", self.tensors(), metadata)

    def loss(self, piece, stride, max_windows=None):
        """Nats per character of a piece of the text, "dev" or "held"."""
        split, T, n = self.split, self.settings["block_size"], len(getattr(self.split, piece))
        ids = split.ids if piece == "held" else split.ids[: len(split.train) + n]
        chars = getattr(split, f"{piece}_chars")
        return nats_per_char(self.model, ids, len(ids) - n, chars, T, stride, max_windows)

    def describe(self):
        """The model in a few words."""
        c, T = self.model.config, self.settings["block_size"]
        return f"{c.arch}, {c.n_layer} layers, {c.n_embd} channels, context {T}"

    def introduce(self):
        """Say what the run is made of, and what the columns of its table are."""
        s, split = self.settings, self.split
        tokens, chars = len(split.ids), split.train_chars + split.dev_chars + split.held_chars
        lines = [f"data   {s['data']}: {tokens:,} tokens of {chars / tokens:.2f} characters"]
        if chars < 2 * tokens and s["tokenizer"] == SETTINGS["tokenizer"][0] and not s["init_from"]:
            learn = f"train {shlex.quote(s['data'])} --fraction 0.85 --out my_tokens"
            lines += [
                "       These are short. To learn longer ones, for --tokenizer my_tokens:",
                f"           python stage07_bpe.py {learn}",
            ]
        columns = ("train", self.watched, "bits/char", "min left")
        lines += [
            f"model  {self.describe()}: {self.model.num_params():,} parameters",
            f"team   processes: {self.members}, sequences in a batch: {s['batch_size']}",
            f"run    {self.out}: {s['max_iters']:,} steps, {self.step:,} done",
            "",
            "  step" + "".join(f"{column:>10}" for column in columns),
        ]
        print("\n".join(lines))

    def show(self, *numbers, end="\n"):
        """Print a row of the table, losses in nats per character, "-" for None."""
        cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
        print(f"{self.step:6d}" + "".join(f"{cell:>10}" for cell in cells), end=end, flush=True)

    def trained(self):
        """Mean loss of the steps since the last evaluation, in nats per character, or None."""
        if not self.count:
            return None
        return self.sum / self.count * len(self.split.train) / self.split.train_chars

    def checkpoint(self, minutes_left=None, **how):
        """Evaluate, record, save and print a row. how: more to record."""
        s, trained = self.settings, self.trained()
        loss = self.loss(self.watched, s["block_size"], s["eval_iters"] * s["batch_size"])
        name = "dev_loss" if self.choosing else "held_out_loss"
        row = {"step": self.step, "train_loss": trained, name: loss, **how}
        with open(self.out / "metrics.jsonl", "a" if self.step else "w") as file:
            file.write(json.dumps(row) + "\n")
        best = loss < self.best or not self.choosing
        self.sum, self.count, self.best = 0.0, 0, min(loss, self.best)
        self.save(best)
        self.show(trained, loss, loss / math.log(2), minutes_left)

    def take_steps(self, signals):
        """Train to max_iters, or until there are signals."""
        s, first, began = self.settings, self.step, time.perf_counter()
        rates = (s["learning_rate"], s["min_lr"], s["warmup_iters"])
        decay = s["lr_decay_iters"] or s["max_iters"]
        tokens = s["batch_size"] * s["gradient_accumulation_steps"] * s["block_size"]
        while self.step < s["max_iters"] and not signals:
            rate = warmup_cosine(self.step, *rates, decay)
            try:
                loss, norm = self.team.step(self.step, rate)
            except KeyboardInterrupt:  # there are signals, and this step has changed nothing
                return
            self.step, self.sum, self.count = self.step + 1, self.sum + loss, self.count + 1
            seconds = max(1e-9, time.perf_counter() - began) / (self.step - first)
            left = (s["max_iters"] - self.step) * seconds / 60
            if self.step % s["eval_interval"] == 0 or self.step == s["max_iters"]:
                speed = tokens / seconds
                self.checkpoint(left, learning_rate=rate, grad_norm=norm, tokens_per_second=speed)
            elif sys.stdout.isatty() and self.step % 10 == 0:
                self.show(self.trained(), None, None, left, end="\r")  # to be overwritten

    def save_early(self):
        """Save what there is, between two evaluations."""
        self.loss(self.watched, self.settings["block_size"], 1)  # not finite: not to be saved
        self.save(best=not self.choosing)

    def train(self):
        """Train to max_iters, or until something prevents it: the status to exit with."""
        run = (self.model, self.optimizer, self.split.train, self.settings)
        with noted_signals() as signals:
            with contextlib.closing(make_team(*run, lambda: signals)) as self.team:
                try:
                    if self.best == math.inf:  # a new run
                        self.checkpoint()
                    self.take_steps(signals)
                    if signals:
                        self.save_early()
                except BrokenPipeError:
                    self.save_early()
                    signals.append(SIGPIPE)
        command = f"python capstone_gpt.py train --resume {shlex.quote(str(self.out))}"
        stopped = f"stopped after step {self.step} and saved; to go on: {command}"
        if SIGPIPE in signals:
            complain(f"nobody reads standard output: {stopped}")
        elif signals:
            print(stopped)
        return 128 + signals[0] if signals else 0

    def conclude(self):
        """The end of a run: its best checkpoint speaks, and is measured beside counting."""
        s, best = self.settings, self.out / "best"
        self.model = GPT.from_pretrained(best)
        which = "the lowest loss on the development piece" if self.choosing else "the last step"
        print(f"\na sample of {best}, {which}:\n")
        print(*continued(self.model, self.tokenizer, "", 300, (0.8, None, None, s["seed"])), sep="")
        print(f"\nmore of it: python capstone_gpt.py sample --from {shlex.quote(str(self.out))}\n")
        counted, order, tokens = yardstick(self.split)
        some = f" of {tokens:,} tokens" if tokens < len(self.split.train) else ""
        what = f"interpolated Kneser-Ney, order {order}{some}"
        print(f"counted:  {held_out_line(counted, what)}")
        stride = max(1, s["block_size"] // 2)
        nats = self.loss("held", stride, 1 + SCORED // stride)  # a long text is measured in part
        print(f"held-out: {held_out_line(nats, f'capstone, {self.describe()}')}")


# %% 20. The command line


def latest_run():
    """The run in out/ that was saved last, smoke runs only if there is no other."""
    saved = {path.parent: path.stat().st_mtime for path in Path("out").glob("*/last.safetensors")}
    need(saved, "no run in out/ yet: train one first, or name a directory")
    return max(saved, key=lambda run: ("-fast" not in run.name, saved[run]))


def checkpoint_of(source):
    """The checkpoint DIR means: itself or a run's `best`; without DIR that of the latest run."""
    run = Path(source or latest_run())
    return run / "best" if (run / "best").is_dir() else run


def new_settings(preset, given):
    """Settings of a new run: what is given, else the preset's, else the defaults."""
    settings = {name: default for name, (default, _, _) in SETTINGS.items()}
    if given.get("init_from"):
        need(not preset, "a preset has a shape of its own, --init_from that of its checkpoint")
        settings |= FINE_TUNING
    elif preset or "data" not in given:
        settings |= PRESETS[preset or "stories"]
    return check_settings(settings | given)


def new_directory(name):
    """A directory that no other run has or gets: out/NAME, or else out/NAME-2, out/NAME-3, ..."""
    Path("out").mkdir(exist_ok=True)
    for n in itertools.count(1):
        out = Path("out", name if n == 1 else f"{name}-{n}")
        with contextlib.suppress(FileExistsError):
            out.mkdir()
            return out


def train_command(args):
    """A new run, or with --resume an old one."""
    given = {name: value for name, value in vars(args).items() if name in SETTINGS}
    need("workers" not in given or not mpi(), "--workers is for one machine; mpiexec has -n")
    if args.resume is None:
        settings = new_settings(args.preset, given)
        suffix = "-fast" if args.preset == "fast" else ""  # a smoke run is not the run to sample
        out = Path(args.out_dir or new_directory(Path(settings["data"]).stem + suffix))
        need(not out.is_file(), f"{out} is a file, a run needs a directory")
        out.mkdir(parents=True, exist_ok=True)
    else:
        if args.preset or args.out_dir:
            raise ValueError("a resumed run goes on with its own settings in its own directory")
        out = Path(args.resume or latest_run())
        old = out / "last"
        need(not old.is_dir(), f"{old} is of an older version of this file, which can resume it")
        if not (out / "last.safetensors").exists():
            raise ValueError(f"{out}: no run to resume, it has no last.safetensors")
    with hold(out):
        if args.resume is not None:
            run = Run.resume(out, given)
        else:
            if (out / "last.safetensors").exists():
                raise ValueError(f"{out} holds a run: say --resume {out}, or another --out_dir")
            used = (out / "best").exists()  # a run that could not save its first checkpoint, say
            need(not used, f"{out}/best is there already: remove it, or name another --out_dir")
            try:
                run = Run.start(out, settings, given)
            except BaseException:
                if not args.out_dir:
                    shutil.rmtree(out, ignore_errors=True)
                raise
        run.introduce()
        try:
            status = run.train()
        except (FloatingPointError, OSError) as error:
            advice = ""
            if isinstance(error, FloatingPointError):
                advice = f"; try a --learning_rate below {run.settings['learning_rate']:g}"
            kept = f"{out} keeps the last checkpoint, if it has one"
            complain(f"step {run.step}: {error}{advice}; {kept}")
            return 1
        if status == 0:
            run.conclude()
        return status


def until(texts, stop):
    """Yield pieces of text up to `stop`, which may begin in one piece and end in another."""
    text = ""
    for piece in texts:
        text, found, _ = (text + piece).partition(stop)
        safe = len(text) if found else max(0, len(text) - len(stop) + 1)  # the rest may begin it
        yield text[:safe]
        if found:
            return
        text = text[safe:]
    yield text


def sample_command(args):
    """Continue a text with a checkpoint, shown as it is made."""
    model, tokenizer = load(checkpoint_of(args.source))
    check_value("num_samples", args.num_samples, int, 1)
    need(args.stop != "", "--stop needs a text")
    prompt = args.prompt
    if prompt == "-":
        sys.stdin.reconfigure(encoding="utf-8", newline=None)  # "\r\n" becomes "\n"
        prompt = sys.stdin.read().removeprefix("\ufeff").removesuffix("\n")
    for i in range(args.num_samples):
        seed = None if args.seed is None else args.seed + i
        sampling = (args.temperature, args.top_k, args.top_p, seed)
        rest = (args.max_new_tokens, sampling, args.ignore_eos)
        texts = continued(model, tokenizer, prompt, *rest)
        if i > 0:
            print("-" * 40)
        print(prompt, end="", flush=True)
        for text in until(texts, args.stop) if args.stop else texts:
            print(text, end="", flush=True)
        print()
    return 0


def eval_command(args):
    """Measure a checkpoint on a text: the held-out line."""
    directory = checkpoint_of(args.source)
    model, tokenizer = load(directory)
    T = model.config.block_size
    with tempfile.TemporaryDirectory() as folder:
        split = split_file(args.data, tokenizer, Path(folder) / "tokens.safetensors")
        first, chars = len(split.train), split.held_chars
        if args.whole:  # the first token has nothing before it to be predicted from
            first, chars = 1, split.train_chars + split.held_chars
        need(1 <= first < len(split.ids), f"{args.data}: too short to measure anything")
        nats = nats_per_char(model, split.ids, first, chars, T, max(1, T // 2))
    print(f"held-out: {held_out_line(nats, f'capstone, {directory} on {args.data}')}")
    return 0


def gradcheck_command(args):
    """Compare every gradient with central differences; exit status 1 if any is wrong."""
    rows, tolerance = gradcheck(), 1e-6
    print(f"{'model':14} {'parameter':48} {'shape':>10} {'relative error':>15} at")
    for model, name, shape, error, at in rows:
        print(f"{model:14} {name:48} {' x '.join(map(str, shape)):>10} {error:15.1e} {at}")
    wrong = sum(not error < tolerance for *_, error, _ in rows)
    print(f"\n{len(rows)} tensors, {wrong} with a relative error of {tolerance:g} or more")
    return 1 if wrong else 0


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message):
        raise ValueError(f"{message:.300} (--help lists what there is)")


def build_parser():
    """The command line: train, sample, eval, gradcheck."""
    parser = Parser(prog="capstone_gpt.py", description="A GPT in NumPy. Without a command: train.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(function, name, text):
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(function=function)
        return sub.add_argument

    add = command(train_command, "train", "train a model: a new run, or with --resume an old one")
    add("--preset", choices=PRESETS, help="a set of defaults [stories, if there is no --data]")
    add("--fast", action="store_const", dest="preset", const="fast", help="a run of seconds")
    add("--resume", nargs="?", const="", metavar="DIR", help="go on with a run [the latest]")
    add("--out_dir", metavar="DIR", help="directory of a new run [out/NAME-OF-DATA, numbered]")
    truths = {"True": True, "true": True, "False": False, "false": False}
    for name, (default, _, text) in SETTINGS.items():
        kind = (lambda text: truths.get(text, text)) if type(default) is bool else type(default)
        shown = f" [{default}]" if default != "" and not str(default).startswith(str(HERE)) else ""
        add(f"--{name}", type=kind, default=argparse.SUPPRESS, metavar="X", help=text + shown)

    add = command(sample_command, "sample", "continue a text with a checkpoint")
    add("--from", dest="source", metavar="DIR", help="a run or checkpoint [the latest run]")
    add("--prompt", default="", metavar="TEXT", help="the text to continue; - reads it from stdin")
    add("--num_samples", type=int, default=1, metavar="N", help="how many texts [1]")
    add("--max_new_tokens", type=int, default=500, metavar="N", help="tokens each [500]")
    add("--temperature", type=float, default=0.8, metavar="X", help="0: the likeliest [0.8]")
    add("--top_k", type=int, metavar="K", help="draw from the K likeliest")
    add("--top_p", type=float, metavar="P", help="draw from the likeliest that reach P")
    add("--seed", type=int, metavar="N", help="fixes the draw [a new one each time]")
    add("--stop", metavar="TEXT", help="end before this text")
    add("--ignore_eos", action="store_true", help="go on after the model's end token")

    add = command(eval_command, "eval", "measure a checkpoint on a text")
    add("--from", dest="source", metavar="DIR", help="a run or checkpoint [the latest run]")
    add("--data", default=SETTINGS["data"][0], metavar="FILE", help="its last tenth is scored")
    add("--whole", action="store_true", help="score all of it")

    command(gradcheck_command, "gradcheck", "compare every gradient with central differences")
    return parser


def run_command(words):
    """Run the command that these words mean; returns the exit status."""
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "train")
    flag = re.compile("^--[a-z_-]+(?==|$)")  # --num-samples is --num_samples
    words = [flag.sub(lambda found: "--" + found[0][2:].replace("-", "_"), w) for w in words]
    args = build_parser().parse_args(words)
    try:
        return args.function(args)
    except BrokenPipeError:  # whoever was reading has seen enough
        if args.function is not train_command:
            return 0
        complain("nobody reads standard output")
        return 128 + SIGPIPE


def main(argv=None):
    """Run the command line; returns the exit status. Under mpiexec, rank 0 does, others follow."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it was closed before the start
    sys.stderr = sys.stderr or open(os.devnull, "w")
    sys.stdin = sys.stdin or open(os.devnull)
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that lacks a letter stops nothing
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    MPI = None
    try:
        MPI = mpi()
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is reported
            if MPI and MPI.COMM_WORLD.rank > 0:
                return follow(MPI)
            return run_command(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        complain(str(error) or "not enough memory for this model and batch")
        return 2
    finally:
        if MPI and MPI.COMM_WORLD.rank == 0:
            tell_ranks(MPI, END, 0)
        try:
            sys.stdout.flush()
        except OSError:  # nobody reads it or its disk is full: what still waits goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# %% What to take away
#
# y = xW:        dx = dy Wᵀ,  dW = xᵀdy.          Two paths to one weight: its gradients add.
# softmax, loss: dz = p - 1[target].              Attention: ds = P(dP - dy·y).
# normalising:   dx loses its component along x̂ (and, for LayerNorm, its mean).
# AdamW:         w ← w - ηλw - η m̂/(√v̂ + ε).      A step moves every weight by about η.
# Believe a backward when central differences agree with it, a loss when the text is held out, and a
# checkpoint when the process that wrote it has been killed at its worst moment.

# %% Common mistakes
#
# 1. Reporting the loss on text the model has seen. It falls for ever. Symptom: train and held-out
#    part ways. Here every reported number is held out (section 13, evaluate).
# 2. An attention that sees the future. Symptom: a loss near 0 and samples of rubbish. CAUSAL sets
#    the scores to -∞ before the softmax (section 3); a test changes token t and watches the past.
# 3. Writing a shared weight's gradient with = where two paths reach it. Symptom: training works, a
#    little worse than it should. The tied head adds with += (section 6, loss_and_grads).
# 4. e^z without subtracting the maximum. Symptom: nan after some thousand good steps (section 2).
# 5. Decaying biases and norm weights, or starting m and v at 0 without the correction. Symptom: a
#    slow start, norms that shrink (section 11).
# 6. Drawing batches from a generator whose state is not saved. Symptom: a resumed run that drifts
#    from the uninterrupted one. Here every sequence of a step has its own generator (section 12).
# 7. Choosing the best checkpoint, or a learning rate, by the held-out loss. Symptom: numbers that
#    nobody else reaches on new text. With a --dev_fraction `best` is chosen on the development
#    piece, without one it is the last step (section 19).
# 8. Comparing the loss per token of models with different tokens. Symptom: the larger vocabulary
#    looks worse. Divide by characters (section 13).
# 9. Writing a checkpoint over the old one. Symptom: after a crash, neither (section 14).
# 10. x**3. Symptom: none but the clock (section 2, GELU).

# %% Exercises
# They are in exercises/capstone.py, and `python exercises` checks them.
#  1. ★ (by hand) The second step
#  2. ★ (by hand) Count the weights
#  3. ★ (explain) Which model is better?
#  4. ★★ (implement) ReLU²
#  5. ★★ (derive) The z-loss
#  6. ★★ (derive) Matrices the other way round
#  7. ★★ (find the bug) AdamW
#  8. ★★ (explain) Who notices?
#  9. ★★ (measure) Characters a token
# 10. ★★★ (implement) Every token once
# 11. ★★★ (project) A model of your own text

# %% Where this leads
#
# What separates this file from the models in use is scale and engineering, not new mathematics: the
# same block, with more of them, trained on more tokens by machines that share the work. Stage 9
# adapts such a model to a new voice at a hundredth of the parameters; stage 10 bends it towards
# what people prefer.


if __name__ == "__main__":
    sys.exit(main())
