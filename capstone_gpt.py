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
    14 files of weights         15 tokenizer files     16 texts larger than memory
    17 training runs            18 the command line

    python capstone_gpt.py                            train on data/stories.txt, a few minutes
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
import ctypes
import dataclasses
import difflib
import functools
import heapq
import itertools
import json
import math
import numbers
import os
import re
import shlex
import shutil
import signal
import sys
import time
import unicodedata
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent

# %% 1. The whole file in small
#
# A language model gives every possible next token a score, and training raises the scores of the
# tokens that really came next. The smallest model that does this is a table: W[a, b] is the score
# of token b after token a. Here is one training step of it, complete. A score becomes a probability
# by the softmax, the loss is the mean of -log p over the tokens that came, and its derivative by
# the scores is p, less 1 at the token that came (derived in section 2, at cross-entropy). A step
# against the derivative makes the loss smaller.


def table_step(W, tokens, learning_rate):
    """Train the table W (V, V) on token ids in place; the loss before the step, nats per token."""
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
# token, with a hundred thousand weights or more, and the step by a better one. The idea stays.

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
    return dx, flat_x.T @ flat_dy, db


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
#     r = 1/√(mean(x²) + ε),   x̂ = x r,   y = x̂γ.
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
    dx -= xhat * mean_a_xhat[..., None]
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


# GELU. x Φ(x), with Φ the normal distribution function, in GPT-2's tanh form:
#     y = x h,   h = ½(1 + tanh u),   u = c(x + k x³),   c = √(2/π),   k = 0.044715.
# tanh' = 1 - tanh², and 1 - tanh² = (1 + tanh)(1 - tanh) = 4h(1 - h), so h' = 2h(1 - h)u' and
#     slope = y' = h + x h' = h (1 + 2x (1 - h) u'),   u' = c(1 + 3k x²).
# The forward computes this slope while x and h are at hand: the backward is one product. x³ is
# written as products: NumPy's x**3 calls pow() for every element and takes fifty times as long.


def gelu_forward(x):
    """GELU of x (..., F), tanh form; the cache is the slope."""
    c, k = math.sqrt(2 / math.pi), 0.044715
    flat_x = x.reshape(-1, x.shape[-1])
    y, slope = np.empty_like(flat_x), np.empty_like(flat_x)
    for rows in tiles(*flat_x.shape):
        x_rows = flat_x[rows]
        x_squared = x_rows * x_rows
        u = x_rows * (c + c * k * x_squared)
        h = 0.5 + 0.5 * np.tanh(u)
        u_slope = c + 3 * c * k * x_squared
        y[rows] = x_rows * h
        slope[rows] = h * (1 + 2 * x_rows * (1 - h) * u_slope)
    return y.reshape(x.shape), slope.reshape(x.shape)


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


# Cross-entropy. The softmax p = e^z / Σₖ e^zₖ turns logits into probabilities and the loss of one
# token is -log p[target] = log Σₖ e^zₖ - z[target]. Differentiating the two terms:
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
    weight = np.zeros(len(targets), e.dtype)
    weight[kept] = dloss / max(1, len(kept))
    dz = e * (weight / total)[:, None]  # p / n
    dz[kept, targets[kept]] -= weight[kept]
    return dz.reshape(shape)


# %% 3. Attention
#
# Every query qᵢ scores the keys of its own and of earlier positions, the softmax turns the scores
# into weights P, and the output is the mean of the values under these weights. For j ≤ i
#     sᵢⱼ = qᵢ·kⱼ/√D,   Eᵢⱼ = exp(sᵢⱼ - maxⱼ sᵢⱼ),   lᵢ = Σⱼ Eᵢⱼ,   Pᵢⱼ = Eᵢⱼ/lᵢ,   yᵢ = Σⱼ Pᵢⱼ vⱼ
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
    B, H, Tq, D = y.shape
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
        dk[..., :end, :] += (ds.swapaxes(-1, -2) @ q[..., rows, :]).sum(2, keepdims=True)
        dv[..., :end, :] += (masked_E.swapaxes(-1, -2) @ g).sum(2, keepdims=True)
    dq *= q.dtype.type(1 / math.sqrt(D))
    return dq.reshape(y.shape), dk[:, :, 0], dv[:, :, 0]


# RoPE. Attention alone does not know which key is near. Llama tells it by a rotation: the channel
# pair (a, b) of a head turns by the angle pθᵢ at position p, for i = 0 .. D/2 - 1 and
# θᵢ = theta^(-2i/D), slower for later pairs:
#     (a, b) → (a cos - b sin, b cos + a sin), a matrix R(p) with the inverse R(-p) = R(p)ᵀ.
# Turning by -α and then by β is turning by β - α. So the score of a query q at position α and a key
# k at β knows only their distance:
#     (R(α)q)·(R(β)k) = qᵀR(α)ᵀR(β)k = q·R(β - α)k.
# The backward of y = Rx is dx = Rᵀdy, the rotation back. a and b are the two halves of the head
# ("half-split"), as Hugging Face stores Llama's weights.
#
# Llama 3.1 stretches the positions of a model trained on short texts. A pair that makes few turns
# in the original context (less than low_freq_factor) turns `factor` times more slowly; a pair that
# makes many (more than high_freq_factor) knows only near distances and stays; between them the
# share that stays grows linearly with the number of turns.


def rope_frequencies(D, theta, scaling=None):
    """θᵢ, radians a position, of the D/2 pairs; scaling: GPTConfig.rope_scaling or None."""
    frequencies = theta ** (-np.arange(0, D, 2) / D)
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
# One layer of the transformer reads the residual stream x, and adds to it twice:
#     x ← x + attention(norm(x)) W_out,      x ← x + mlp(norm(x)).
# In the backward a sum copies its gradient to both terms, so dx flows past each branch unchanged
# *and* through it: this identity path is what lets gradients reach the first layer of a deep model.
# p holds one block's weights as (in, out) matrices under names of our own; qkv stacks the three
# projections side by side and llama's `up` stacks [gate, up], so each is one product. config is the
# GPTConfig of section 5, which says the family (arch) and the sizes.
#
# When text is generated, the keys and values of a position never change once later tokens arrive,
# so they are kept in kv: a new token costs one column of work instead of the whole window.


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
    dx = dy + dh  # past the mlp, and through it
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


def check_value(name, value, kind, lowest=-1e300, below=1e300):
    """value as int, float, bool or str; ValueError unless it is one, and lowest ≤ value < below."""
    accepted = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        what = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
        raise ValueError(f"{name} must be {what[kind]}, not {value!r:.60}")
    if kind in (int, float) and not lowest <= value < below:
        upper = "" if below == 1e300 else f" and below {below}"
        raise ValueError(f"{name} must be at least {lowest}{upper}, not {value!r:.60}")
    return kind(value)


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
        for name in ("vocab_size", "block_size", "n_head", "n_embd"):
            setattr(self, name, check_value(name, getattr(self, name), int, 1))
        self.n_layer = check_value("n_layer", self.n_layer, int, 1, 10_000)
        gpt2, C, H = self.arch == "gpt2", self.n_embd, self.n_head
        if self.n_kv_head is None:
            self.n_kv_head = H
        if self.n_hidden is None:
            unit = max(1, C // 16)
            self.n_hidden = 4 * C if gpt2 else unit * -(-8 * C // (3 * unit))  # -(-a//b): up
        Hkv = self.n_kv_head = check_value("n_kv_head", self.n_kv_head, int, 1)
        self.n_hidden = check_value("n_hidden", self.n_hidden, int, 1)
        self.bias = check_value("bias", self.bias, bool)
        self.tie_weights = check_value("tie_weights", self.tie_weights, bool)
        self.dropout = check_value("dropout", self.dropout, float, 0, 1)
        self.norm_eps = check_value("norm_eps", self.norm_eps, float, 1e-30)
        self.rope_theta = check_value("rope_theta", self.rope_theta, float, 1e-30)
        need(
            self.n_layer * C**2 < 1e12, f"{self.n_layer} layers of {C} channels: beyond any memory"
        )
        need(C % H == 0, f"n_embd must be a multiple of n_head, not {C} with {H} heads")
        need(H % Hkv == 0, f"n_head must be a multiple of n_kv_head, not {H} and {Hkv}")
        need(not gpt2 or H == Hkv, f"gpt2 has no grouped queries: n_kv_head must be {H}, not {Hkv}")
        need(gpt2 or not self.bias, "llama has no biases: bias must be False")
        need(gpt2 or C // H % 2 == 0, f"rotary positions need an even head size, not {C // H}")
        if self.rope_scaling is not None:
            self._check_rope_scaling()

    def _check_rope_scaling(self):
        names = [
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ]
        scaling = self.rope_scaling
        need(self.arch == "llama", "rope_scaling belongs to llama")
        if not isinstance(scaling, dict) or sorted(scaling) != sorted(names):
            raise ValueError(f"rope_scaling must have {', '.join(names)}, not {scaling!r:.60}")
        self.rope_scaling = {name: check_value(name, scaling[name], float, 1e-30) for name in names}
        low, high = self.rope_scaling["low_freq_factor"], self.rope_scaling["high_freq_factor"]
        need(low < high, f"low_freq_factor must be below high_freq_factor, not {low} and {high}")

    @property
    def head_size(self):
        """D, channels per head."""
        return self.n_embd // self.n_head


# %% 6. The model


class GPT:
    """A decoder-only transformer: tokens (B, T) to logits over the next token (B, T, V).

    .params is {name: array}, views into the one vector .flat. Weights start as N(0, 0.02²); the two
    projections of each block that write into the residual stream are divided by √(2L): the stream
    is a sum of 2L such writes and its variance would grow with depth (Radford et al. 2019). Norm
    weights start at 1, biases at 0; with seed None all at 0, about to be read from a file. .files
    holds what was read beside the weights and is saved again as it was (section 14).
    """

    def __init__(self, config, seed=0, dtype=np.float32):
        dtype = np.dtype(dtype)
        need(dtype in (np.float32, np.float64), f"dtype must be float32 or float64, not {dtype}")
        total = sum(math.prod(shape) for shape in param_shapes(config).values())
        self.config, self.files = config, {}
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

    @property
    def dtype(self):
        """The parameters' dtype, and so that of every activation."""
        return self.flat.dtype

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

    def loss_and_grads(self, idx, targets, rngs=None):
        """The loss and {name: ∂loss/∂parameter}, the gradients views into one vector, `.flat`.

        rngs, one numpy Generator a sequence, draw the dropout masks; None switches dropout off.
        """
        loss, (embed, drop, caches, last, head, entropy) = self._loss(idx, targets, rngs, keep=True)
        grads = ParamDict(self.config, np.zeros_like(self.flat))
        top = grads.top
        dx, dhead, _ = linear_backward(cross_entropy_backward(1.0, entropy), head)
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
        top["embedding.weight"][...] = embedding_backward(dx, embed)
        top["head.weight"] += dhead.T  # when tied, the same memory: its two gradients add
        return loss, grads

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=None):
        """Continue every row of idx (B, T): returns (B, T + max_new_tokens).

        temperature 0 takes the most likely token; top_k keeps the k most likely; top_p the fewest
        whose probabilities reach p. Each token sees the block_size tokens before it. The same seed
        gives the same text.
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
        if isinstance(seed, int):
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
# shape there, (in, out) for gpt2 and (out, in) for llama. K is the size of all key heads.

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
        self.config, self.flat, self.top, starts, end = config, flat, {}, {}, 0
        self.blocks = [{} for _ in range(config.n_layer)]
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
# in float64 good to ten digits. Every parameter of a tiny model of each family is wiggled, dropout
# included (the same seed draws the same masks), one target masked, queries grouped.


def gradcheck_model(config, h=1e-5):
    """Rows (parameter, shape, relative error), one for every parameter tensor of a small model."""
    model, rng = GPT(config, dtype=np.float64), np.random.default_rng(0)
    model.flat[:] += rng.normal(0, 0.3, model.flat.shape)  # away from the symmetric start
    idx, targets = rng.integers(0, config.vocab_size, (2, 2, config.block_size))
    targets[0, 0] = -1

    def generators():
        return [np.random.default_rng(1), np.random.default_rng(2)]

    _, grads = model.loss_and_grads(idx, targets, generators())
    numeric = ParamDict(config, np.empty_like(model.flat))
    for i, w in enumerate(model.flat.copy()):
        model.flat[i] = w + h
        up = model.loss(idx, targets, generators())
        model.flat[i] = w - h
        down = model.loss(idx, targets, generators())
        model.flat[i] = w
        numeric.flat[i] = (up - down) / (2 * h)
    for name, g in grads.items():
        scale = np.linalg.norm(g) + np.linalg.norm(numeric[name]) + 1e-12
        yield name, g.shape, np.linalg.norm(g - numeric[name]) / scale


def gradcheck():
    """Rows (model, parameter, shape, relative error) for a tiny model of each family."""
    sizes = {"vocab_size": 7, "block_size": 5, "n_layer": 2, "n_head": 4, "n_embd": 8}
    models = {
        "gpt2": GPTConfig("gpt2", dropout=0.2, **sizes),
        "gpt2, no bias": GPTConfig("gpt2", dropout=0.2, bias=False, tie_weights=False, **sizes),
        "llama": GPTConfig("llama", dropout=0.2, n_kv_head=2, **sizes),
    }
    return [(label, *row) for label, config in models.items() for row in gradcheck_model(config)]


# %% 9. The draw
#
# A draw inverts the distribution function: with F(i) = p₀ + ... + pᵢ and u uniform in [0, 1), the
# smallest i with F(i) > u is token i exactly when F(i-1) ≤ u < F(i), an interval of length pᵢ.


def sample_token(logits, temperature, top_k, top_p, rng):
    """Draw one token per row of logits (B, V): (B,)."""
    z = logits.astype(np.float64)
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
        p[np.cumsum(p, -1) - p >= top_p] = 0  # what came before already reaches top_p
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
        known = [(merges[p][0], i) for i, p in enumerate(zip(ids, ids[1:])) if p in merges]
        if not known:
            return ids
        rank, i = min(known)
        ids[i : i + 2] = [merges[ids[i], ids[i + 1]][1]]


#     ids        e 0   l 1   o 2   r 3   s 4   w 5   lo 6   low 7   er 8
#     merges     l+o: rank 0     lo+w: rank 1     e+r: rank 2
#
#     lower      1 2 5 0 3    ->  6 5 0 3    ->  7 0 3    ->  7 8      low|er
#     slower     4 1 2 5 0 3  ->  4 6 5 0 3  ->  4 7 0 3  ->  4 7 8    s|low|er, never seen before
#
# Each round looks at the whole word: n bytes take up to n² steps. The fast form finds the next pair
# in a heap of (rank, place). Each place knows the one before it and the one after it, so that two
# neighbours become one without moving the others. A merge creates at most two pairs, with its
# neighbours; they go into the heap. A pair that lost a side meanwhile is noticed when it is due.


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


# Merges never reach across pre-tokens: a word with the space before it, a run of digits, of marks,
# of blanks. These patterns cut a text into them: GPT-2's, the one of GPT-4 and Llama 3, and GPT-2's
# with every digit alone, for SmolLM. \p{L} is a letter, \p{N} a number of any kind (½, Ⅷ), \s a
# blank; \s+(?!\S) lets a run of blanks give back its last one, which leads the next word. Python's
# re has no \p, and its \s takes U+001C to U+001F; so splitter() spells the classes out as ranges.

PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "digits": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
}


@functools.cache
def splitter(pattern, ascii_only):
    """The compiled pattern; for ASCII text, classes of ASCII alone do the same and start faster."""
    kinds = [unicodedata.category(chr(code))[0] for code in range(128 if ascii_only else 0x110000)]
    ranges = {"L": "", "N": "", "Z": r"\t-\r" if ascii_only else r"\t-\r\x85"}
    start = 0
    for kind, run in itertools.groupby(kinds):  # letters, numbers, blanks as "a-z..."
        end = start + len(list(run))
        if kind in ranges:
            ranges[kind] += rf"\U{start:08x}-\U{end - 1:08x}"
        start = end
    source = PATTERNS[pattern].replace(r"\S", r"[^\s]")  # then put lone classes into brackets
    source = re.sub(r"(\[.*?\])|(\\p\{.\}|\\s)", lambda m: m[1] or f"[{m[2]}]", source)
    for name, kind in ((r"\p{L}", "L"), (r"\p{N}", "N"), (r"\s", "Z")):
        source = source.replace(name, ranges[kind])
    return re.compile(source)


class Tokenizer:
    """What both kinds share; files {name: bytes} is what save writes and load_tokenizer reads."""

    def __init__(self, tokens, added, template, files):
        self.tokens = tokens  # {id: its bytes}
        self.vocab_size = max(tokens) + 1
        self.added = added  # [{"id", "content", ...}], looked for in a text before it is split
        self.special_tokens = {token["content"]: token["id"] for token in added}
        self.template = template  # ids that add_special_tokens puts before a text, and after it
        self.files = files

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
        super().__init__(tokens, [], ([], []), character_files(self.ids))

    def encode(self, text, add_special_tokens=False):
        """Token ids (T,); ValueError naming the characters that are not in the vocabulary."""
        unknown = sorted(set(text) - self.ids.keys())
        names = ", ".join(map(repr, unknown[:10])) + ", ..." * (len(unknown) > 10)
        need(not unknown, f"characters the model was not trained on: {names}")
        return np.array([self.ids[c] for c in text], dtype=np.int64)

    def encode_stream(self, texts):
        """Yield the ids of each text."""
        return map(self.encode, texts)


class BPETokenizer(Tokenizer):
    """Byte-level BPE: vocab {token: id}, [left token, right token] of each merge, key of PATTERNS.

    Bytes are written in GPT-2's alphabet (section 15). ignore_merges: a pre-token that is a token
    needs no merges (Llama 3).
    """

    def __init__(self, vocab, merges, pattern, added, template, ignore_merges=False, files=None):
        tokens = {i: token_bytes(token) for token, i in vocab.items()}
        tokens |= {token["id"]: token["content"].encode() for token in added}
        super().__init__(tokens, added, template, files)
        self.vocab, self.pattern, self.ignore_merges = vocab, pattern, ignore_merges
        self.byte_ids = [vocab[BYTE_TO_CHAR[byte]] for byte in range(256)]
        self.merges = {
            (vocab[left], vocab[right]): (rank, vocab[left + right])
            for rank, (left, right) in enumerate(merges)
        }
        longest_first = sorted(map(re.escape, self.special_tokens), key=len, reverse=True)
        self.cutter = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
        self.known_word = functools.lru_cache(1 << 17)(self.encode_word)

    def encode_word(self, word):
        """The list of ids of a pre-token."""
        data = word.encode()
        if self.ignore_merges and to_alphabet(data) in self.vocab:
            return [self.vocab[to_alphabet(data)]]
        return merge_fast([self.byte_ids[byte] for byte in data], self.merges)

    def encode(self, text, add_special_tokens=False):
        """Token ids (T,); special tokens in the text are found. ValueError for half a surrogate."""
        ids = []
        for n, piece in enumerate(self.cutter.split(text)):
            if n % 2:  # text, special token, text, special token, ..., text
                ids.append(self.special_tokens[piece])
                continue
            for word in splitter(self.pattern, piece.isascii()).findall(piece):
                ids += self.known_word(word) if len(word) < 64 else self.encode_word(word)
        before, after = self.template if add_special_tokens else ([], [])
        return np.array([*before, *ids, *after], dtype=np.int64)

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
        held, enough = "", 1 << 16
        longest = max(map(len, self.special_tokens), default=1)
        for text in texts:
            held += text
            if len(held) < enough:
                continue
            cut = len(held) - longest
            while cut > 0 and not self.may_cut(held, cut):
                cut -= 1
            if cut > 0:
                yield self.encode(held[:cut])
                held = held[cut:]
            enough = max(1 << 16, 2 * len(held))  # what has no such place is seldom searched again
        yield self.encode(held)


def load(directory):
    """The model and the tokenizer of a checkpoint; ValueError if they do not fit together."""
    model, tokenizer = GPT.from_pretrained(directory), load_tokenizer(directory)
    n, V = tokenizer.vocab_size, model.config.vocab_size
    need(n == V, f"{directory}: {n} characters for a vocabulary of {V}")
    return model, tokenizer


def read_text(path):
    """A UTF-8 text file; ValueError if it is missing, empty or something else."""
    need(Path(path).exists(), f"{path}: no such file")
    need(not Path(path).is_dir(), f"{path}: a directory, expected a text file")
    try:
        text = Path(path).read_bytes().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (at byte {error.start})") from None
    need(text, f"{path}: the file is empty")
    return text


def split_text(text, tokenizer):
    """Token ids to train on, ids held out (the last tenth of the text), characters held out."""
    n = int(0.9 * len(text))
    return tokenizer.encode(text[:n]), tokenizer.encode(text[n:]), len(text) - n


# %% 11. The optimizer
#
# AdamW. Two running means over the steps, of the gradient and of its square,
#     m ← β₁m + (1 - β₁)g,    v ← β₂v + (1 - β₂)g²,
# both started at 0 and so too small by the factors 1 - β₁ᵗ and 1 - β₂ᵗ at step t. Divided by them,
# which a hat marks, they make the update
#     w ← w - η λ w - η m̂/(√v̂ + ε):
# each weight moves by about η whatever its gradient's scale, and decays towards 0 apart from it. In
# code the corrections fold into two scalars, m̂/(√v̂ + ε) = m √(1-β₂ᵗ)/(1-β₁ᵗ) / (√v + ε√(1-β₂ᵗ)),
# and clipping (g is scaled down when its norm exceeds a limit) into a third. Matrices decay; norm
# weights and biases do not.


class AdamW:
    """AdamW on one flat parameter vector (Loshchilov & Hutter 2019), clipping by norm included."""

    def __init__(self, params, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, grad_clip=1.0):
        self.params, self.betas, self.eps = params, betas, eps
        self.weight_decay, self.grad_clip, self.t = weight_decay, grad_clip, 0
        self.m, self.v = np.zeros_like(params.flat), np.zeros_like(params.flat)

    def step(self, gradient, norm, learning_rate):
        """Update the parameters in place by the gradient vector, whose norm is given."""
        self.t += 1
        beta1, beta2 = self.betas
        scale = min(1.0, self.grad_clip / norm) if self.grad_clip and norm else 1.0
        correction = math.sqrt(1 - beta2**self.t)
        rate, eps = learning_rate * correction / (1 - beta1**self.t), self.eps * correction
        keep = 1 - learning_rate * self.weight_decay
        for tile in tiles(len(gradient), 1):
            w, m, v, g = self.params.flat[tile], self.m[tile], self.v[tile], gradient[tile] * scale
            m *= beta1
            m += (1 - beta1) * g
            v *= beta2
            v += (1 - beta2) * (g * g)
            w[: max(0, self.params.decayed - tile.start)] *= keep
            w -= rate * m / (np.sqrt(v) + eps)


def warmup_cosine(step, peak, floor, warmup, decay):
    """Learning rate: linear to peak over `warmup` steps, then half a cosine to floor at `decay`."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, decay - warmup))
    return floor + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - floor)


# %% 12. The training step
#
# All of the above in one loop: windows of text, loss and gradient, one step of the optimizer. The
# gradient of a mean is the mean of the gradients, so a batch too large for the memory is taken in
# pieces of one size, whose gradients are averaged.
#
# Every sequence has a generator of its own, seeded with the run's seed, the step and its place in
# the step's batch. It draws where the window begins and then the dropout masks. So a step is the
# same whatever came before it, and whoever computes it: a run can stop and go on.


def draw_batch(ids, block_size, batch_size, seed, step, first=0):
    """Sequences first, first + 1, ... of a step: inputs, targets (B, T), their B generators."""
    places = range(first, first + batch_size)
    rngs = [np.random.default_rng((seed, step, place)) for place in places]
    starts = np.array([rng.integers(len(ids) - block_size) for rng in rngs])
    at = starts[:, None] + np.arange(block_size)  # (B, T)
    return ids[at], ids[at + 1], rngs  # a target is the token one place later


def training_step(model, optimizer, batches, learning_rate):
    """One update from the mean over batches, an iterable of what draw_batch returns.

    Returns the mean loss in nats and the norm of the gradient. If either is not finite, raises
    FloatingPointError and changes nothing.
    """
    losses, gradient = [], None
    for idx, targets, rngs in batches:
        loss, grads = model.loss_and_grads(idx, targets, rngs)
        losses.append(loss)
        if gradient is None:
            gradient = grads.flat
        else:
            gradient += grads.flat
    gradient /= len(losses)
    loss, norm = sum(losses) / len(losses), math.sqrt(gradient @ gradient)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FloatingPointError(f"loss {loss:.4g}, gradient norm {norm:.4g}")
    optimizer.step(gradient, norm, learning_rate)
    return loss, norm


# %% 13. The yardstick
#
# Before a network earns its place it must beat counting. With c(h, w) the times w followed the
# context h, N(h) = Σ c(h, w) and U(h) the number of *different* w seen after h, Witten-Bell
# smoothing (stage 1) reserves U/(N + U) for what the next shorter context h' says:
#     p(w | h) = (c(h, w) + U(h) p(w | h')) / (N(h) + U(h)),    p(w | no context at all) = 1/V.


def ngram_nats(train, held_out, vocab_size, order=5):
    """Mean nats per token of held_out (n,) under an `order`-gram counter fitted to train."""
    ids = np.concatenate([train, held_out]).astype(np.int64)
    n, p = len(train), np.full(len(held_out), 1 / vocab_size)
    context = np.zeros(len(ids), np.int64)  # numbers the tokens before each one: at first, none
    for _ in range(order):
        gram = np.unique(context * vocab_size + ids, return_inverse=True)[1]
        c, N = np.bincount(gram[:n], minlength=gram.max() + 1), np.bincount(context[:n])
        U = np.bincount(context[:n][np.unique(gram[:n], return_index=True)[1]])
        N, U = (np.append(a, np.zeros(len(ids) + 1 - len(a)))[context[n:]] for a in (N, U))
        seen = N > 0  # an unseen context has nothing to add
        p[seen] = ((c[gram[n:]] + U * p) / np.maximum(N + U, 1))[seen]
        context = np.concatenate([[gram.max() + 1], gram[:-1]])  # one token longer
    return float(-np.log(p).mean())


def evaluate(model, ids, first, stride, max_windows=None):
    """Summed nats and number of the tokens ids[first:], each predicted exactly once.

    Windows of block_size tokens move on by `stride` and score their last `stride` targets: a token
    sees at least block_size - stride tokens before it. max_windows takes that many, evenly spaced.
    """
    starts = np.arange(first, len(ids), stride)
    ends = np.minimum(starts + stride, len(ids))
    if max_windows and len(ends) > max_windows:
        chosen = np.linspace(0, len(ends) - 1, max_windows).round().astype(int)
        starts, ends = starts[chosen], ends[chosen]
    T = min(model.config.block_size, int(ends.min()) - 1)
    nats, batch = 0.0, max(1, 8192 // T)
    for i in range(0, len(ends), batch):
        at = ends[i : i + batch, None] - T + np.arange(T)  # positions of the targets (B, T)
        targets = np.where(at >= starts[i : i + batch, None], ids[at], -1)
        nats += model.loss(ids[at - 1], targets) * int((targets != -1).sum())
    return nats, int((ends - starts).sum())


def held_out_nats(model, split, stride, max_windows=None):
    """Nats per held-out character; the first ones may look back into the training text."""
    train, held, chars = split
    ids = np.concatenate([train[-model.config.block_size :], held])
    nats, tokens = evaluate(model, ids, len(ids) - len(held), stride, max_windows)
    return nats / tokens * len(held) / chars


# %% 14. Checkpoints
#
# A model is kept as Hugging Face keeps it: a directory with config.json, model.safetensors and the
# tokenizer's files. transformers opens ours, we open theirs.
#
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


def safetensors_header(entries, metadata=None):
    """The bytes before the arrays, for {name: (dtype, shape)} in their order and {text: text}."""
    names = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}
    metadata, end = {"format": "pt"} | (metadata or {}), 0
    if not all(isinstance(text, str) for text in [*metadata, *metadata.values()]):
        raise ValueError(f"safetensors metadata must be texts, not {metadata!r:.60}")
    header = {"__metadata__": metadata}
    for name, (dtype, shape) in entries.items():
        need(isinstance(name, str) and name not in header, f"{name!r:.60} cannot name a tensor")
        need(dtype in names, f"{name}: safetensors cannot hold an array of type {dtype}")
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the arrays start on a multiple of 8 bytes
    need(len(text) <= LONGEST_HEADER, f"{len(text)} bytes are too many for a safetensors header")
    return len(text).to_bytes(8, "little") + text


def write_safetensors(path, tensors, metadata=None):
    """Write {name: array} and the metadata {text: text} in the safetensors format."""
    tensors = dict(
        sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    )  # so all stay aligned
    header = safetensors_header({n: (t.dtype, t.shape) for n, t in tensors.items()}, metadata)
    arrays = (np.ascontiguousarray(t).reshape(-1).view(np.uint8) for t in tensors.values())
    write_file(path, itertools.chain([header], arrays))


def parse_json(text, kind, complaint):
    """The JSON value in text, str or UTF-8 bytes; ValueError(complaint) unless it is of that kind.

    Stricter than Python, as strict as safetensors: fields given twice, numbers that are not finite
    and halves of surrogate pairs are refused, and -0 is no whole number.
    """

    def unique(pairs):
        fields = dict(pairs)
        need(len(fields) == len(pairs), "a field is given twice")
        return fields

    def finite(word):
        need(math.isfinite(float(word)), f"{word[:40]} is not a finite number")
        return float(word)

    def whole(word):
        return -0.0 if word == "-0" else int(word)

    hooks = {"parse_int": whole, "parse_float": finite, "parse_constant": finite}
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=unique, **hooks)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{complaint} ({error})") from None
    need(isinstance(value, kind), complaint)
    return value


def read_json(path):
    """A JSON object from a file; ValueError if it is missing or damaged."""
    need(Path(path).is_file(), f"{path}: no such file")
    return parse_json(Path(path).read_bytes(), dict, f"{path}: expected a JSON object")


class TensorFile(collections.abc.Mapping):
    """{name: read-only array} of an open safetensors file; BF16 becomes float32.

    An array costs memory from when it is asked for until it is forgotten. The file may be replaced
    meanwhile: this is still the old one. .entries holds {name: (type, shape, first byte)}.
    """

    def __init__(self, file):
        self.file, self.entries = file, {}

    def __getitem__(self, name):
        kind, shape, start = self.entries[name]
        if 0 in shape:  # nothing to map
            array = np.empty(shape, DTYPES[kind])
        else:
            array = np.asarray(np.memmap(self.file, DTYPES[kind], "r", start, shape))
        if kind == "BF16":  # the upper half of a float32
            array = array.astype("<u4")
            array <<= 16
            array = array.view("<f4")
        array.flags.writeable = False
        return array

    def __iter__(self):
        return iter(self.entries)

    def __len__(self):
        return len(self.entries)

    def __del__(self):
        self.file.close()


def read_safetensors(path):
    """(TensorFile, metadata) of a safetensors file.

    Raises ValueError naming the file when any length, offset, shape or type does not hold.
    """
    need(Path(path).is_file(), f"{path}: no such file")
    tensors, bad = TensorFile(open(path, "rb")), f"{path}: damaged safetensors file:"
    size = os.fstat(tensors.file.fileno()).st_size
    length = int.from_bytes(tensors.file.read(8), "little")
    if size < 8 or length > min(size - 8, LONGEST_HEADER):
        raise ValueError(f"{bad} a header of {length} bytes in a file of {size}")
    text, size = tensors.file.read(length), size - 8 - length
    need(text.startswith(b"{"), f"{bad} the header does not begin with {{")
    header = parse_json(text, dict, f"{bad} the header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{bad} its metadata are not texts")
    spans, end = [], 0
    for name, entry in header.items():
        here = f"{bad} {name!r:.80}"
        need(isinstance(entry, dict), f"{here} is not described by an object")
        kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(kind, str) or kind not in DTYPES:
            raise ValueError(f"{here} is of type {kind!r:.40}, not one of {', '.join(DTYPES)}")
        for sizes in (shape, offsets):
            if not isinstance(sizes, list) or not all(type(n) is int and n >= 0 for n in sizes):
                raise ValueError(f"{here}: shape and data_offsets must be lists of whole numbers")
        if len(shape) > 64 or math.prod(n or 1 for n in shape) >= 2**60:
            raise ValueError(f"{here}: no array has the shape {shape!r:.80}")
        if len(offsets) != 2 or not offsets[0] <= offsets[1] <= size:
            raise ValueError(f"{here}: data_offsets {offsets!r:.80} in {size} bytes")
        count = math.prod(shape) * np.dtype(DTYPES[kind]).itemsize
        need(offsets[1] - offsets[0] == count, f"{here}, {shape!r:.80}, has another length")
        tensors.entries[name] = kind, tuple(shape), 8 + length + offsets[0]
        spans.append(tuple(offsets))
    for start, stop in sorted(spans):
        need(start == end, f"{bad} a gap or an overlap in its arrays at byte {end}")
        end = stop
    need(end == size, f"{bad} {size} bytes of arrays, {end} of them described")
    return tensors, metadata


def copy_tensor(tensors, name, array):
    """Copy a TensorFile's tensor into array; ValueError unless it is finite and of that shape."""
    kind, shape, _ = tensors.entries[name]
    where = f"{tensors.file.name}: {name!r:.80}"
    if kind not in ("F64", "F32", "F16", "BF16") or shape != array.shape:
        raise ValueError(f"{where} is {kind} {shape!r:.80}, expected floats {array.shape}")
    with np.errstate(over="ignore"):
        array[...] = tensors[name]
    extremes = [array.min(initial=0), array.max(initial=0)]  # nan if there is one
    need(np.isfinite(extremes).all(), f"{where} holds a number that is not finite")


# config.json: the keys that say what to compute, the values that others must have, and the keys
# that cannot change the logits. Any other key is refused unless it is null, false or empty.

HF_FIELDS = {
    "gpt2": {
        "vocab_size": ("vocab_size", int),
        "n_positions": ("block_size", int),
        "n_layer": ("n_layer", int),
        "n_head": ("n_head", int),
        "n_embd": ("n_embd", int),
        "n_inner": ("n_hidden", int),
        "bias": ("bias", bool),  # nanoGPT's: transformers always has biases, so we write zeros
        "resid_pdrop": ("dropout", float),
        "layer_norm_epsilon": ("norm_eps", float),
        "tie_word_embeddings": ("tie_weights", bool),
    },
    "llama": {
        "vocab_size": ("vocab_size", int),
        "max_position_embeddings": ("block_size", int),
        "num_hidden_layers": ("n_layer", int),
        "num_attention_heads": ("n_head", int),
        "hidden_size": ("n_embd", int),
        "num_key_value_heads": ("n_kv_head", int),
        "intermediate_size": ("n_hidden", int),
        "attention_dropout": ("dropout", float),
        "rms_norm_eps": ("norm_eps", float),
        "tie_word_embeddings": ("tie_weights", bool),
    },
}
HF_FIXED = {  # what may stand there; the first is what we write
    "gpt2": {
        "architectures": (["GPT2LMHeadModel"], ["GPT2Model"], None),
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", None),
        "scale_attn_weights": (True, None),
    },
    "llama": {
        "architectures": (["LlamaForCausalLM"], ["LlamaModel"], ["LLaMAForCausalLM"], None),
        "hidden_act": ("silu", None),
        "pretraining_tp": (1, None),
    },
}
HF_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
HF_IDLE = """model_type dtype torch_dtype transformers_version use_cache initializer_range
    bos_token_id eos_token_id pad_token_id _name_or_path _commit_hash return_dict output_past
    id2label label2id num_labels _num_labels task_specific_params gradient_checkpointing
    chunk_size_feed_forward do_sample max_length temperature top_k top_p repetition_penalty
    tokenizer_class prefix _attn_implementation_autoset is_llama_config transformers.js_config
    unsloth_version unsloth_fixed summary_type summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout embd_pdrop attn_pdrop""".split()
HF_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
FILES = """config.json generation_config.json tokenizer.json tokenizer_config.json vocab.json
    merges.txt special_tokens_map.json added_tokens.json chat_template.jinja chat_template.json
    tokenizer""".split()  # what a model keeps beside its weights


def rope_from_json(path, j):
    """The rotary fields of GPTConfig, in the form of transformers 4 or 5."""
    rope = {} if j.get("rope_theta") is None else {"rope_theta": j["rope_theta"]}
    for key in ("rope_scaling", "rope_parameters"):
        settings = {} if j.get(key) is None else j[key]
        if not isinstance(settings, dict):
            raise ValueError(f"{path}: {key} must be an object, not {settings!r:.60}")
        for name, value in settings.items():
            if rope.setdefault(name, value) != value:
                raise ValueError(f"{path}: {name!r:.60} is given twice, differently")
    old_kind = rope.pop("type", "default")
    kind = rope.pop("rope_type", old_kind)
    theta = rope.pop("rope_theta", 10000.0)
    if kind not in ("default", "llama3") or (kind == "default" and rope):
        rope = {"rope_type": kind, **rope}
        raise ValueError(f"{path}: rotary positions are default or llama3, not {rope!r:.80}")
    return {"rope_theta": theta, "rope_scaling": rope if kind == "llama3" else None}


def config_from_json(path, j):
    """The GPTConfig of a config.json's object j; ValueError for what this file does not compute."""
    arch = j.get("model_type")
    if arch not in list(HF_FIELDS):
        raise ValueError(f"{path}: model_type must be gpt2 or llama, not {arch!r:.60}")
    fields = {"dropout": 0.1} if arch == "gpt2" else {"norm_eps": 1e-6}  # transformers' defaults
    for theirs, (ours, kind) in HF_FIELDS[arch].items():
        if j.get(theirs) is not None:
            fields[ours] = check_value(f"{path}: {theirs}", j[theirs], kind)
        elif ours in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            raise ValueError(f"{path} lacks {theirs}")
    if arch == "llama":
        fields |= rope_from_json(path, j)
    try:
        config = GPTConfig(arch, **fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    fixed = HF_FIXED[arch] | {"n_ctx": (config.block_size, None)}
    fixed["head_dim"] = (config.head_size, None)
    known = {*HF_FIELDS[arch], *HF_IDLE, *(HF_ROPE if arch == "llama" else ())}
    for key in j.keys() - known:
        handled = fixed.get(key, (None, False, "", [], {}))
        if not any(j[key] == value and type(j[key]) is type(value) for value in handled):
            handled = ", ".join(map(json.dumps, handled))
            raise ValueError(f"{path}: {key!r:.60} is {j[key]!r:.60}; handled: {handled}")
    return config


def config_to_json(model):
    """config.json as bytes: as it was read, changed where the model is not what it was."""
    config, text = model.config, model.files.get("config.json")
    if text is None:
        j, was = {"model_type": config.arch, "bos_token_id": None, "eos_token_id": None}, None
        j |= {key: handled[0] for key, handled in HF_FIXED[config.arch].items()}
    else:
        j = parse_json(text, dict, "config.json: expected a JSON object")
        was = config_from_json("config.json", j)
    new = dict(j)
    for theirs, (ours, _) in HF_FIELDS[config.arch].items():
        if was is None or getattr(was, ours) != getattr(config, ours):
            new[theirs] = getattr(config, ours)
            if theirs == "resid_pdrop":
                new["embd_pdrop"] = new["attn_pdrop"] = config.dropout
    rope = (config.rope_theta, config.rope_scaling)
    if config.arch == "llama" and (was is None or rope != (was.rope_theta, was.rope_scaling)):
        scaling = config.rope_scaling and {"rope_type": "llama3", **config.rope_scaling}
        new |= {"rope_theta": config.rope_theta, "rope_scaling": scaling, "rope_parameters": None}
    for key in ("dtype", "torch_dtype"):  # transformers converts the weights to it
        if j.get(key) is not None:
            new[key] = model.dtype.name
    return text if new == j and text else (json.dumps(new, indent=2) + "\n").encode()


def save_model(directory, model):
    """Write config.json, the files the model came with and, last, model.safetensors.

    A directory that holds the same model gets new weights in one step. ValueError if it holds
    another one: between two steps it would be neither the old nor the new.
    """
    directory, config, tensors = Path(directory), model.config, dict(model.params)
    need(not directory.is_file(), f"{directory} is a file, a model needs a directory")
    directory.mkdir(parents=True, exist_ok=True)
    path, files = directory / "config.json", model.files | {"config.json": config_to_json(model)}
    present = [name for name in files if (directory / name).is_file()]
    changed = [name for name in present if (directory / name).read_bytes() != files[name]]
    if "config.json" in changed:
        found = config_from_json(path, read_json(path))
        if dataclasses.replace(found, dropout=config.dropout) == config:
            changed.remove("config.json")  # what changed has no part in the logits
    elif not path.exists() and (directory / "model.safetensors").exists():
        changed.append("config.json")
    if changed:
        raise ValueError(
            f"{directory} holds another model, its {changed[0]} differs: choose another"
        )
    if config.arch == "gpt2" and not config.bias:  # transformers has biases: zeros
        full = param_shapes(dataclasses.replace(config, bias=True))
        tensors = {n: tensors.get(n, np.zeros(shape, model.dtype)) for n, shape in full.items()}
    for name, content in files.items():
        if name not in present or name == "config.json":
            write_file(directory / name, [content])
    write_safetensors(directory / "model.safetensors", tensors)


def open_weights(directory, arch):
    """{name as transformers has it: the TensorFile that holds it}, of one file or of several."""
    directory, files, found = Path(directory), ["model.safetensors"], {}
    index = directory / "model.safetensors.index.json"
    if index.is_file() and not (directory / files[0]).exists():
        files = read_json(index).get("weight_map")
        files = sorted(set(map(str, files.values()))) if isinstance(files, dict) else [""]
        if not all(name and Path(name).name == name for name in files):
            raise ValueError(f"{index}: weight_map must name files of this directory")
    prefix = "transformer." if arch == "gpt2" else "model."
    for file in files:
        tensors, _ = read_safetensors(directory / file)
        for stored in list(tensors):
            name = stored.replace("_orig_mod.", "")  # torch.compile's
            if not name.startswith((prefix, "lm_head.")):  # the file of a model without a head
                name = prefix + name
            need(name not in found, f"{directory / file}: {stored!r:.80} is there twice")
            tensors.entries[name] = tensors.entries.pop(stored)
            found[name] = tensors
    return found


def load_model(directory, dtype=None):
    """The gpt2 or llama model in a directory written here or by transformers, as a GPT.

    dtype None is float64 for a float64 file and float32 otherwise. ValueError if anything is
    damaged or would have to be ignored; nothing is allocated before names and shapes agree.
    """
    directory = Path(directory)
    need(directory.is_dir(), f"{directory}: no such model directory")
    config = config_from_json(directory / "config.json", read_json(directory / "config.json"))
    found = open_weights(directory, config.arch)
    if config.n_layer > len(found):
        raise ValueError(f"{directory}: {config.n_layer} layers, but {len(found)} tensors")
    shapes, head = param_shapes(config), "lm_head.weight"
    if config.tie_weights and head in found:
        embedding = next(iter(shapes))  # comes first
        if embedding in found and np.array_equal(found[head][head], found[embedding][embedding]):
            del found[head]
        else:  # as transformers does it
            config = dataclasses.replace(config, tie_weights=False)
            shapes = param_shapes(config)
    for name, shape in shapes.items():
        need(name in found, f"{directory}: the weights lack {name}")
        there = found[name].entries[name][1]
        if there != shape:
            raise ValueError(f"{directory}: {name} is {there!r:.60}, config.json says {shape}")
    for name in found.keys() - shapes.keys():  # all else must be without effect on the logits
        zero = config.arch == "gpt2" and not config.bias and name.endswith(".bias")
        idle = name.endswith(HF_BUFFERS) or (zero and not np.any(found[name][name]))
        need(idle, f"{directory}: {name!r:.80} has no place in this model")
    if dtype is None:
        double = any(found[name].entries[name][0] == "F64" for name in shapes)
        dtype = np.float64 if double else np.float32
    model = GPT(config, None, dtype)
    for name, array in model.params.items():
        copy_tensor(found[name], name, array)
    model.files = {n: (directory / n).read_bytes() for n in FILES if (directory / n).is_file()}
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


# %% 15. Tokenizer files
#
# tokenizer.json holds everything; GPT-2 came as vocab.json (token: id) and merges.txt (by rank).
# Both are text, but a token may be half a character. So GPT-2 writes each byte as one printable
# character: those of Latin-1 that print stand for themselves, the 68 others take U+0100 and on, in
# order. A space becomes Ġ, a newline Ċ, and é, in UTF-8 the bytes C3 A9, Ã©. Whatever could change
# an id is handled here or refused, key by key.

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_TO_CHAR = {byte: chr(byte) for byte in PRINTABLE}
BYTE_TO_CHAR |= {b: chr(0x100 + n) for n, b in enumerate(sorted({*range(256)} - {*PRINTABLE}))}
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
BYTE_LEVEL_KEYS = [*BYTE_LEVEL, "trim_offsets"]
ONLY_BYTES = {**BYTE_LEVEL, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": PATTERNS["gpt4"]}}
PRE_TOKENIZERS = [
    ("gpt2", [BYTE_LEVEL]),
    ("gpt4", [{**SPLIT, "behavior": "Isolated", "invert": False}, ONLY_BYTES]),
    ("gpt4", [{**SPLIT, "behavior": "Removed", "invert": True}, ONLY_BYTES]),  # no gap is removed
    ("digits", [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]),
]
TOKENIZER_FILES = [name for name in FILES if name not in ("config.json", "generation_config.json")]
# With these, transformers follows tokenizer.json (with the last two if it is byte-level); with
# GPT-2's it takes the vocabulary and the merges out of it and splits as GPT-2, whatever it says.
GENERIC_CLASSES = ["PreTrainedTokenizerFast", "TokenizersBackend"]
GENERIC_CLASSES += ["LlamaTokenizer", "LlamaTokenizerFast"]
GPT2_CLASSES = ["GPT2Tokenizer", "GPT2TokenizerFast"]
HARMLESS = (  # keys of tokenizer_config.json that change no id
    "backend chat_template clean_up_tokenization_spaces errors is_local legacy local_files_only "
    "max_length model_input_names model_max_length name_or_path pad_to_multiple_of "
    "pad_token_type_id padding_side processor_class sp_model_kwargs spaces_between_special_tokens "
    "special_tokens_map_file stride tokenizer_file trim_offsets truncation_side "
    "truncation_strategy use_default_system_prompt vocab_size"
).split()


def to_alphabet(data):
    """Bytes in GPT-2's printable alphabet: b" fox" -> "Ġfox"."""
    return data.decode("latin-1").translate(BYTE_TO_CHAR)


def token_bytes(token):
    """The bytes behind a token of a vocabulary; one that is not in the alphabet is plain text."""
    if CHAR_TO_BYTE.keys() >= set(token):
        return bytes(map(CHAR_TO_BYTE.get, token))
    return token.encode()


def character_files(vocab):
    """The files of a CharTokenizer: for the tokenizers library it is BPE without merges."""
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    parts = {"version": "1.0", "added_tokens": [], "decoder": {"type": "Fuse"}, "model": model}
    config = {"tokenizer_class": GENERIC_CLASSES[0]}
    return {
        "tokenizer.json": json.dumps(parts, ensure_ascii=False, indent=1).encode(),
        "tokenizer_config.json": json.dumps(config, indent=1).encode(),
    }


def refuse_others(where, found, handled, harmless=()):
    """ValueError if the object `found` has another key whose value is not null, false or empty."""
    need(isinstance(found, dict), f"{where} {found!r:.80} is not an object")
    for key, value in found.items():
        if value and key not in handled and key not in harmless:
            handles = f"handled here: {', '.join(handled)}"
            raise ValueError(f"{where} {key!r:.60} is {value!r:.80}; {handles}")


def read_pattern(pre):
    """The key of PATTERNS for the pre_tokenizer of a tokenizer.json."""
    steps = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    steps = [{k: v for k, v in step.items() if k != "trim_offsets"} for step in steps]
    steps[-1] = {"use_regex": True, **steps[-1]}
    for pattern, known in PRE_TOKENIZERS:
        if steps == known:
            return pattern
    handles = "handled here: the patterns of GPT-2 and Llama 3, or single Digits before GPT-2's"
    raise ValueError(f"pre_tokenizer is {pre!r:.160}; {handles}")


def check_added(added, vocab):
    """ValueError if the added_tokens of a tokenizer.json are not found and numbered as here."""
    texts, ids = set(), set(vocab.values())
    next_id = len(vocab)
    for token in added:
        refuse_others("added_tokens", token, ["id", "content", "normalized", "special"])
        text, i = token["content"], token["id"]
        need(text and text not in texts, f"added_tokens: {text!r:.80} is empty or there twice")
        expected = vocab.get(text, next_id)  # the rule by which the tokenizers library counts on
        right = type(i) is int and i == expected and (text in vocab or i not in ids)
        need(right, f"added_tokens: {text!r:.80} has the id {i!r:.80}, not {expected}")
        texts.add(text)
        next_id = max(next_id, i + 1)
    mixed = len({token.get("normalized") for token in added}) > 1  # two searches in transformers
    need(not mixed, "added_tokens: some are normalized; handled here: all or none")


def read_template(post, ids):
    """(ids before a text, ids after it), as the post_processor of a tokenizer.json adds them."""
    steps = post["processors"] if post and post["type"] == "Sequence" else [post]
    sides = []
    for step in filter(None, steps):
        if step["type"] == "ByteLevel":  # it moves offsets
            refuse_others("post_processor", step, BYTE_LEVEL_KEYS)
            continue
        known = step["type"] == "TemplateProcessing" and not sides
        need(known, f"post_processor is {step!r:.80}; handled here: one TemplateProcessing")
        refuse_others("post_processor", step, ["type", "single", "pair", "special_tokens"])
        sides = [[]]
        for part in step["single"]:
            if "Sequence" in part:  # the text
                sides.append([])
            else:
                sides[-1] += step["special_tokens"][part["SpecialToken"]["id"]]["ids"]
        right = len(sides) == 2 and all(type(i) is int and i in ids for i in sides[0] + sides[1])
        need(right, f"post_processor: {step['single']!r:.80} is not one text between tokens")
    return sides or ([], [])


def read_tokenizer(parts):
    """The tokenizer in the object of a tokenizer.json; ValueError."""
    model, decoder = parts["model"], parts.get("decoder") or {}
    pre, post = parts.get("pre_tokenizer") or {}, parts.get("post_processor")
    kind, version = model.get("type", "BPE"), parts.get("version", "1.0")
    need(version == "1.0", f"version is {version!r:.80}; handled here: 1.0")
    need(kind == "BPE", f"model is {kind!r:.80}; handled here: BPE")
    if parts.get("normalizer") == {"type": "Sequence", "normalizers": []}:
        parts = {**parts, "normalizer": None}
    keys = ["version", "added_tokens", "pre_tokenizer", "post_processor", "decoder", "model"]
    refuse_others("key", parts, keys)
    is_characters = decoder == {"type": "Fuse"} and not pre
    unknown = [] if is_characters else ["unk_token", "fuse_unk", "byte_fallback"]  # no byte is
    refuse_others("model", model, ["type", "vocab", "merges", "ignore_merges"], unknown)
    vocab, merges, added = model["vocab"], model["merges"], parts["added_tokens"]
    bad = [(token, i) for token, i in vocab.items() if type(i) is not int or not 0 <= i < 2**32]
    need(not bad, f"vocab: {bad[:1]!r:.80} is not an id from 0 to 2³²")
    need(len({*vocab.values()}) == len(vocab), "vocab: two tokens have the same id")
    if is_characters:
        tokenizer = CharTokenizer("".join(vocab))
        right = tokenizer.ids == vocab and not merges and not added and not post
        need(right, "decoder is Fuse; handled here: sorted characters without merges, ByteLevel")
        return tokenizer
    need(decoder.get("type") == "ByteLevel", f"decoder is {decoder!r:.60}, handled: ByteLevel")
    refuse_others("decoder", decoder, BYTE_LEVEL_KEYS)
    lacking = [byte for byte, char in BYTE_TO_CHAR.items() if char not in vocab]
    need(not lacking, f"vocab: no token for the bytes {lacking!r:.80}; all 256 are needed")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    bad = [pair for pair in merges if type(pair) is not list or len(pair) != 2]
    need(not bad, f"merges: {bad[:1]!r:.80} is not a pair")
    check_added(added, vocab)
    template = read_template(post, {*vocab.values(), *(token["id"] for token in added)})
    ignore_merges = check_value("ignore_merges", model.get("ignore_merges") or False, bool)
    return BPETokenizer(vocab, merges, read_pattern(pre), added, template, ignore_merges)


def gpt2_parts(vocab, merges):
    """vocab.json and the text of merges.txt as a tokenizer.json would hold them."""
    lines = re.split("\r?\n", merges)
    merges = [line for line in lines if line and not line.startswith("#version")]
    added = [{"id": vocab["<|endoftext|>"], "content": "<|endoftext|>"}]
    model = {"type": "BPE", "vocab": vocab, "merges": merges}
    parts = {"added_tokens": added, "pre_tokenizer": BYTE_LEVEL, "decoder": BYTE_LEVEL}
    return {**parts, "model": model}


def check_config(config, tokenizer, classes):
    """ValueError if a tokenizer_config.json or special_tokens_map.json would change an id."""
    config = dict(config)
    kind, handles = config.pop("tokenizer_class", None), f"handled here: {', '.join(classes)}"
    need(kind in [None, *classes], f"tokenizer_class is {kind!r:.60}; {handles}")
    for key, ids in zip(("add_bos_token", "add_eos_token"), tokenizer.template):
        need(not config.pop(key, None) or ids, f"{key} is true, but tokenizer.json adds none")
    for i, token in config.pop("added_tokens_decoder", {}).items():
        refuse_others("added_tokens_decoder", token, ["content", "normalized", "special"])
        text, others = token["content"], tokenizer.added[1:]
        same = all(token.get("normalized") == other.get("normalized") for other in others)
        same = same and tokenizer.special_tokens.get(text) == int(i)
        need(same, f"added_tokens_decoder: {i} {token!r:.80} is not in tokenizer.json")
    lists = "additional_special_tokens", "extra_special_tokens"
    named = [config.pop(key) for key in [*config] if key.endswith("_token") or key in lists]
    while named:
        token = named.pop()
        token = token.get("content", [*token.values()]) if isinstance(token, dict) else token
        if isinstance(token, list):
            named += token
        elif token is not None:  # transformers would add it with a new id
            there = token in tokenizer.special_tokens
            need(there, f"the token {token!r:.80} is not among the added_tokens")
    refuse_others("key", config, ["tokenizer_class", "*_token", *lists], HARMLESS)


def load_tokenizer(directory):
    """The tokenizer in a directory written here, by stage 7 or by transformers.

    ValueError for a damaged file, and for what is not handled here and could change an id.
    """
    directory = Path(directory)
    files = {n: (directory / n).read_bytes() for n in TOKENIZER_FILES if (directory / n).is_file()}
    name = next((n for n in ("tokenizer.json", "vocab.json", "tokenizer") if n in files), None)
    need(name, f"{directory}: no tokenizer.json, so text cannot be turned into tokens")
    try:
        if name == "tokenizer":  # how characters were kept until 2026
            return CharTokenizer(parse_json(files[name], str, "expected a JSON string"))
        parts = parse_json(files[name], dict, "expected a JSON object")
        if name == "vocab.json":
            parts = gpt2_parts(parts, files["merges.txt"].decode())
        tokenizer = read_tokenizer(parts)
        classes = GENERIC_CLASSES + GPT2_CLASSES
        if isinstance(tokenizer, CharTokenizer):
            classes = GENERIC_CLASSES[:2]
        elif "tokenizer.json" not in files:
            classes = GPT2_CLASSES
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            config = parse_json(files.get(name, b"{}"), dict, "expected a JSON object")
            check_config(config, tokenizer, classes)
        name = "added_tokens.json"
        others = parse_json(files.get(name, b"{}"), dict, "expected a JSON object")
        need(others.items() <= tokenizer.special_tokens.items(), "not those of tokenizer.json")
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        what = error if isinstance(error, ValueError) else f"damaged: {error!r:.80}"
        raise ValueError(f"{directory / name}: {what}") from None
    is_gpt2 = tokenizer.special_tokens.keys() == {"<|endoftext|>"} and tokenizer.pattern == "gpt2"
    if not is_gpt2 or tokenizer.ignore_merges:
        classes = GENERIC_CLASSES
    if config.get("tokenizer_class") not in classes:  # or transformers would not follow the files
        config = {**config, "tokenizer_class": classes[0]}
        files["tokenizer_config.json"] = json.dumps(config, indent=1).encode()
    tokenizer.files = files
    return tokenizer


# %% 15. Training runs
#
# Every number of a run follows from its settings: step s draws its batch and its dropout masks from
# a generator seeded with (seed, s), so a run that stopped and resumed at step s computes exactly
# what the uninterrupted one would have. What is kept: the weights, AdamW's m and v, and the step.

SETTINGS = {  # name: (default, smallest, what it is); the names are nanoGPT's where it has one
    "data": (str(HERE / "data" / "stories.txt"), None, "a UTF-8 text; its last tenth is held out"),
    "out_dir": ("", None, "directory of the run (default: out/NAME-OF-DATA, numbered)"),
    "seed": (0, 0, "fixes weights, batches, dropout and samples"),
    "arch": ("llama", None, "gpt2 or llama"),
    "n_layer": (3, 1, "blocks"),
    "n_head": (4, 1, "attention heads"),
    "n_kv_head": (0, 0, "key/value heads (llama; 0: as many as heads)"),
    "n_embd": (96, 1, "channels"),
    "n_hidden": (0, 0, "MLP width (0: the family's rule)"),
    "block_size": (64, 1, "context length in tokens"),
    "bias": (False, None, "biases in linear layers and norms (gpt2)"),
    "dropout": (0.0, 0, "fraction of activations dropped in training"),
    "tie_weights": (True, None, "one matrix for the embedding and the head"),
    "batch_size": (16, 1, "sequences in a batch"),
    "gradient_accumulation_steps": (1, 1, "batches whose gradients are averaged for one update"),
    "max_iters": (2600, 1, "updates"),
    "learning_rate": (2.5e-3, 1e-30, "peak learning rate"),
    "min_lr": (1e-4, 0, "learning rate at the end of the cosine"),
    "warmup_iters": (100, 0, "updates of linear warmup"),
    "lr_decay_iters": (0, 0, "where the cosine ends (0: at max_iters)"),
    "beta1": (0.9, 0, "AdamW: memory of the gradient, below 1"),
    "beta2": (0.99, 0, "AdamW: memory of its square, below 1"),
    "weight_decay": (0.1, 0, "AdamW: decay of the matrices"),
    "grad_clip": (1.0, 0, "largest gradient norm (0: no clipping)"),
    "eval_interval": (200, 1, "updates between evaluations, each followed by a checkpoint"),
    "eval_iters": (20, 1, "batches in an evaluation while training"),
    "sample_interval": (600, 1, "updates between samples"),
}
PRESETS = {
    "stories": {},
    "nanogpt-cpu": {  # the CPU setting of nanoGPT's README
        "arch": "gpt2", "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "bias": False,
        "dropout": 0.0, "batch_size": 12, "max_iters": 2000, "learning_rate": 1e-3, "min_lr": 1e-4,
        "warmup_iters": 100, "beta2": 0.99, "weight_decay": 0.1, "grad_clip": 1.0,
        "eval_interval": 250, "sample_interval": 1000,
    },
    "fast": {
        "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "batch_size": 8, "max_iters": 60,
        "warmup_iters": 10, "eval_interval": 20, "eval_iters": 4, "sample_interval": 40,
    },
}  # fmt: skip
MODEL_SETTINGS = [f.name for f in dataclasses.fields(GPTConfig) if f.name in SETTINGS]


def check_settings(settings):
    """Raise ValueError for a training setting of the wrong type or size."""
    for name, (default, smallest, _) in SETTINGS.items():
        value, kind = settings[name], type(default)
        right = type(value) is kind or (kind is float and type(value) is int)
        need(right, f"{name} must be of type {kind.__name__}, not {value!r}")
        if smallest is not None:
            below = 1 if name in ("beta1", "beta2", "dropout") else math.inf
            what = "positive" if 0 < smallest < 1 else f"at least {smallest}"
            inside = smallest <= value < below
            need(inside, f"{name} must be {what} and below {below}, not {value}")


def keep_freed_memory():
    """Ask glibc to keep freed arrays in the process: no page faults at every step."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
    except (AttributeError, TypeError, OSError):
        pass


class Diverged(Exception):
    """A loss or a gradient that is not finite, with what to try."""

    def __init__(self, step, loss, norm, rate):
        measured = f"loss {loss:.4g}, gradient norm {norm:.4g}, learning rate {rate:.2e}"
        advice = "try a lower --learning_rate or more --warmup_iters"
        super().__init__(f"not finite at step {step}: {measured}; {advice}")


class Run:
    """A training run: settings, text, model, optimizer, and the directory they are kept in."""

    def __init__(self, settings, resumed=None):
        check_settings(settings)
        s = self.settings = settings
        s["data"] = os.path.abspath(s["data"])  # to resume from another directory
        self.out, text = Path(s["out_dir"]), read_text(s["data"])
        self.step, self.best, self.sum, self.count = 0, math.inf, 0.0, 0
        if resumed:
            self.model, self.tokenizer = load(resumed)
        else:
            self.tokenizer = CharTokenizer(text)
            fields = {name: s[name] for name in MODEL_SETTINGS}
            fields |= {name: s[name] or None for name in ("n_kv_head", "n_hidden")}
            self.model = GPT(GPTConfig(vocab_size=self.tokenizer.vocab_size, **fields), s["seed"])
        self.split, self.text_crc = split_text(text, self.tokenizer), zlib.crc32(text.encode())
        n, T = len(self.split[0]), self.model.config.block_size
        hint = f"; use a longer text or a --block_size below {n}" if n > 1 else ""
        need(n > T, f"{s['data']}: {n} tokens are too few for a block of {T}{hint}")
        decay, clip = s["weight_decay"], s["grad_clip"]
        self.optimizer = AdamW(self.model.params, (s["beta1"], s["beta2"]), 1e-8, decay, clip)

    @classmethod
    def resume(cls, out_dir, changes):
        """The run as its last checkpoint left it, with some settings changed if wished."""
        last = find_checkpoint(Path(out_dir) / "last")
        state = read_json(last / "training_state.json")
        fixed = ", ".join(sorted(changes.keys() & {"seed", *MODEL_SETTINGS}))
        need(not fixed, f"a resumed run keeps its {fixed}; start a new one instead")
        try:
            settings = {name: state["settings"][name] for name in SETTINGS} | changes
            step, count, crc, total = (state[k] for k in ("step", "count", "text", "sum"))
            total, best = float(total), float("inf" if state["best"] is None else state["best"])
            need(type(step) is type(count) is int and min(step, count) >= 0, "")
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{last}: training_state.json is not that of a run") from None
        run = cls(settings | {"out_dir": str(out_dir)}, resumed=last)
        same = crc == run.text_crc
        need(same, f"{run.settings['data']} is not the text this run was trained on")
        run.step, run.best, run.sum, run.count, run.optimizer.t = step, best, total, count, step
        tensors, _ = read_safetensors(last / "training_state.safetensors")
        for name, view in run.moments().items():
            fits = name in tensors and tensors[name].shape == view.shape
            need(fits, f"{last}: training_state.safetensors lacks {name}")
            view[...] = tensors[name]
        run.forget_metrics()
        return run

    def forget_metrics(self):
        """Drop from metrics.jsonl what came after this step, and any line that is not a record."""
        path, kept = self.out / "metrics.jsonl", []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                kept += [line + "\n"] * (json.loads(line)["step"] <= self.step)
            except (ValueError, KeyError, TypeError):
                continue
        path.with_suffix(".new").write_text("".join(kept))
        os.replace(path.with_suffix(".new"), path)

    def moments(self):
        """AdamW's m and v as named tensors."""
        config, o = self.model.config, self.optimizer
        named = {"exp_avg": ParamDict(config, o.m), "exp_avg_sq": ParamDict(config, o.v)}
        return {f"{kind}.{name}": t for kind, ts in named.items() for name, t in ts.items()}

    def save(self):
        """Write the checkpoint `last`: the model and all it takes to go on."""
        best = self.best if self.best < math.inf else None
        state = dict(step=self.step, best=best, sum=self.sum, count=self.count, text=self.text_crc)
        state["settings"] = self.settings
        write_checkpoint(self.out / "last", self.model, self.tokenizer, self.moments(), state)

    def update(self):
        """One step: (gradient norm, learning rate); Diverged instead of a bad step."""
        s, B, T = self.settings, self.settings["batch_size"], self.model.config.block_size
        decay = s["lr_decay_iters"] or s["max_iters"]
        rate = warmup_cosine(self.step, s["learning_rate"], s["min_lr"], s["warmup_iters"], decay)
        batches = (
            draw_batch(self.split[0], T, B, s["seed"], self.step, piece * B)
            for piece in range(s["gradient_accumulation_steps"])
        )
        try:
            loss, norm = training_step(self.model, self.optimizer, batches, rate)
        except FloatingPointError as error:
            raise Diverged(self.step, math.nan, math.nan, rate) from error
        self.step, self.sum, self.count = self.step + 1, self.sum + loss, self.count + 1
        return norm, rate

    def held_out(self, batches, norm=0.0, rate=0.0):
        """Nats per held-out character on fixed batches; Diverged if they are not finite."""
        stride, windows = self.model.config.block_size, batches * self.settings["batch_size"]
        loss = held_out_nats(self.model, self.split, stride, windows)
        if not math.isfinite(loss):
            raise Diverged(self.step, loss, norm, rate)
        return loss

    def sample(self, length, seed):
        """A text of `length` tokens from the start of a line."""
        start = self.tokenizer.encode(self.tokenizer.start)
        tokens = self.model.generate(start[None], length, temperature=0.8, seed=seed)
        return self.tokenizer.decode(tokens[0, len(start) :]).strip("\n")

    def train(self):
        """Train to max_iters; Ctrl-C stops after the step at hand. True if it went to the end."""
        s, started, first, interrupted = self.settings, time.time(), self.step, []
        tokens = s["batch_size"] * s["gradient_accumulation_steps"] * self.model.config.block_size
        norm, rate = 0.0, 0.0
        handler = signal.signal(signal.SIGINT, lambda *_: interrupted.append(True))
        print("  step     train  held-out  bits/char   tokens/s  time left   (losses in nats)")
        try:
            if self.step == 0:
                self.checkpoint()
            while self.step < s["max_iters"] and not interrupted:
                norm, rate = self.update()
                speed = (self.step - first) * tokens / (time.time() - started)
                left = round((s["max_iters"] - self.step) * tokens / speed)
                pace = f"{speed:9,.0f}  {left // 60:6d}:{left % 60:02d}"
                if self.step % s["eval_interval"] == 0 or self.step == s["max_iters"]:
                    self.checkpoint(pace, norm, rate, speed)
                elif sys.stdout.isatty() and self.step % 10 == 0:
                    row = f"\r{self.step:6d}  {self.sum / self.count:8.4f}{'':21}  {pace}"
                    print(row, end="", flush=True)
        finally:
            signal.signal(signal.SIGINT, handler)
        if self.step < s["max_iters"]:
            self.held_out(1, norm, rate)
            self.save()
            print(f"\nstopped after step {self.step} and saved; to go on:")
            print(f"    python capstone_gpt.py train --resume {shlex.quote(str(self.out))}")
        return self.step >= s["max_iters"]

    def checkpoint(self, pace="", norm=0.0, rate=0.0, speed=None):
        """Evaluate, print and record a row, save; now and then show a sample."""
        s, trained = self.settings, self.sum / self.count if self.count else None
        loss = self.held_out(s["eval_iters"], norm, rate)
        row = f"{self.step:6d}  {'-' if trained is None else format(trained, '.4f'):>8}"
        print("\r" * sys.stdout.isatty() + f"{row}  {loss:8.4f}  {loss / math.log(2):9.4f}  {pace}")
        record = dict(step=self.step, train_loss=trained, held_out_loss=loss)
        if speed:
            record |= dict(learning_rate=rate, grad_norm=norm, tokens_per_second=speed)
        self.sum, self.count = 0.0, 0
        with open(self.out / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        if loss < self.best:
            self.best = loss
            write_checkpoint(self.out / "best", self.model, self.tokenizer)
        self.save()
        if self.step % s["sample_interval"] == 0 and 0 < self.step < s["max_iters"]:
            print("        | " + self.sample(160, self.step).replace("\n", "\n        | "))
        sys.stdout.flush()


# %% 16. The command line


def latest_run():
    """The run in out/ that was saved last, smoke runs only if there is no other."""
    saved = {path: path.stat().st_mtime for path in Path("out").glob("*/last/config.json")}
    need(saved, "no run in out/ yet: train one first, or name a directory")
    return max(saved, key=lambda path: ("-fast" not in path.parts[1], saved[path])).parent.parent


def checkpoint_of(source):
    """The checkpoint DIR means: itself or a run's `best`; without DIR that of the latest run."""
    run = Path(source or latest_run())
    return run / "best" if (run / "best").is_dir() else run


def held_out_line(nats, what):
    """The line of the ladder: three faces of one number."""
    nats += 0.0  # no "-0.000"
    faces = f"{nats:.3f} nats/char | {nats / math.log(2):.3f} bits/char"
    return f"{faces} | perplexity {math.exp(min(nats, 700)):.2f}   ({what})"


def new_run(settings, suffix=""):
    """A Run in a directory of its own, which no other run has or gets."""
    given, name, n = settings["out_dir"], Path(settings["data"]).stem + suffix, 1
    out = Path(given or f"out/{name}")
    need(not out.is_file(), f"{out} is a file, a run needs a directory")
    used = given and any((out / x).exists() for x in ("last", ".last.old", "config.json"))
    need(not used, f"{out} holds an earlier run: say --resume {out}, or another --out_dir")
    run = Run(settings)
    while True:
        try:
            out.mkdir(parents=True, exist_ok=bool(given))
            break
        except FileExistsError:
            n += 1
            out = out.with_name(f"{name}-{n}")
    run.out, settings["out_dir"] = out, str(out)
    return run


def train_command(args):
    """A new run, or with --resume an old one."""
    given = {name: value for name, value in vars(args).items() if name in SETTINGS}
    if args.resume is None:
        settings = {name: default for name, (default, _, _) in SETTINGS.items()}
        suffix = "-fast" if args.preset == "fast" else ""  # a smoke run is not the run to sample
        run = new_run(settings | PRESETS[args.preset or "stories"] | given, suffix)
    else:
        out = Path(args.resume or given.get("out_dir") or latest_run())
        own = not args.preset and given.pop("out_dir", str(out)) == str(out)
        need(own, f"--resume {out} goes on with its own settings in its own directory")
        run = Run.resume(out.parent if (out / "training_state.json").exists() else out, given)
    keep_freed_memory()
    c, s, (train, held, chars) = run.model.config, run.settings, run.split
    what = f"{c.arch}, {c.n_layer} layers, {c.n_embd} channels, context {c.block_size}"
    print(f"data   {s['data']}: {len(train) + len(held):,} tokens, {c.vocab_size} distinct")
    print(f"model  {what}: {run.model.num_params():,} parameters")
    print(f"run    {run.out}: {s['max_iters']:,} steps, {run.step:,} done\n")
    try:
        if not run.train():
            return 0
    except Diverged as error:
        kept = f"{run.out / 'last'} keeps the last checkpoint whose loss was finite"
        print(f"\ncapstone_gpt.py: {error}. {kept}", file=sys.stderr)
        return 1
    run.model = GPT.from_pretrained(run.out / "best")
    print(f"\na sample of {run.out / 'best'}, the checkpoint with the lowest held-out loss:")
    print(f"\n{run.sample(500, s['seed'])}\n")
    print(f"more of it: python capstone_gpt.py sample --from {shlex.quote(str(run.out))}\n")
    if args.preset == "fast":
        print("(a smoke run: too short to beat the counter)")
    counted = ngram_nats(train, held, c.vocab_size) * len(held) / chars
    nats = held_out_nats(run.model, run.split, max(1, c.block_size // 2))
    print(f"5-gram:   {held_out_line(counted, 'counted, Witten-Bell smoothing')}")
    print(f"held-out: {held_out_line(nats, 'capstone, ' + what)}")
    return 0


def sample_command(args):
    """Text from a checkpoint, shown as it is made."""
    model, tokenizer = load(checkpoint_of(args.source))
    prompt = tokenizer.encode(args.prompt or tokenizer.start)[None]
    need(args.num_samples >= 1, f"num_samples must be at least 1, not {args.num_samples}")
    for i in range(args.num_samples):
        seed = None if args.seed is None else args.seed + i
        sampling = (args.temperature, args.top_k, args.top_p, seed)
        tokens = model.stream(prompt, args.max_new_tokens, *sampling)
        print(("-" * 40 + "\n" if i else "") + args.prompt, end="", flush=True)
        for token in tokens:
            print(tokenizer.decode(token), end="", flush=True)
        print()
    return 0


def eval_command(args):
    """The held-out line of a checkpoint."""
    directory = checkpoint_of(args.source)
    model, tokenizer = load(directory)
    split = split_text(read_text(args.data), tokenizer)
    need(len(split[0]), f"{args.data}: too short to hold anything out")
    nats = held_out_nats(model, split, max(1, model.config.block_size // 2))
    print(f"held-out: {held_out_line(nats, f'capstone, {directory}')}")
    return 0


def gradcheck_command(args):
    """Every gradient against central differences; exit status 1 if any is wrong."""
    rows, tolerance = gradcheck(), 1e-6
    print(f"{'model':14} {'parameter':48} {'shape':>10} {'relative error':>15}")
    for model, name, shape, error in rows:
        print(f"{model:14} {name:48} {' x '.join(map(str, shape)):>10} {error:15.1e}")
    wrong = sum(not error < tolerance for *_, error in rows)
    print(f"\n{len(rows)} tensors, {wrong} with a relative error of {tolerance:g} or more")
    return 1 if wrong else 0


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, with a suggestion for a mistyped flag."""

    def error(self, message):
        self.exit(2, f"capstone_gpt.py: {message} (--help lists what there is)\n")

    def refuse(self, word):
        """Exit over a word that means nothing here."""
        flag = word.split("=")[0]
        close = difflib.get_close_matches(flag, [*self._option_string_actions], 1)
        hint = f", did you mean {close[0]}?" if close else ""
        self.error(f"unknown flag {flag}{hint}" if flag.startswith("-") else f"unexpected {word!r}")


def boolean(text):
    """True or False, as nanoGPT's flags write it."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, not {text!r}")
    return text.lower() == "true"


SOURCE = {"from": (str, "", "DIR", "a run or checkpoint [the latest run]")}
SAMPLE_FLAGS = SOURCE | {  # flag: (type, default, placeholder, what it is)
    "prompt": (str, "", "TEXT", "the text to continue"),
    "num_samples": (int, 1, "N", "how many texts [1]"),
    "max_new_tokens": (int, 500, "N", "tokens each [500]"),
    "temperature": (float, 0.8, "X", "0: the likeliest [0.8]"),
    "top_k": (int, None, "K", "draw from the K likeliest"),
    "top_p": (float, None, "P", "draw from the likeliest that reach P"),
    "seed": (int, None, "N", "fixes the draw [a new one each time]"),
}
EVAL_FLAGS = SOURCE | {"data": (str, SETTINGS["data"][0], "FILE", "its last tenth is scored")}


def train_flags():
    """SETTINGS as flags; what is not given is left to the preset."""
    for name, (default, _, text) in SETTINGS.items():
        kind = boolean if isinstance(default, bool) else type(default)
        shown = f" [{Path(default).name if name == 'data' else default}]" if default != "" else ""
        value = {"data": "FILE", "out_dir": "DIR"}.get(name, "N" if kind is int else "X")
        yield name, (kind, argparse.SUPPRESS, value, text + shown)


def build_parser():
    """The command line: train, sample, eval, gradcheck."""
    text = __doc__[__doc__.index("    python") : __doc__.index("\n\nPapers")]
    text = f"A GPT in NumPy. Without a command: train.\n\n{text}"
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="capstone_gpt.py", description=text, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", parser_class=Parser, required=True)
    for function, flags in {
        train_command: dict(train_flags()),
        sample_command: SAMPLE_FLAGS,
        eval_command: EVAL_FLAGS,
        gradcheck_command: {},
    }.items():
        name, text = function.__name__.removesuffix("_command"), function.__doc__
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(function=function, parser=sub)
        if function is train_command:
            latest = dict(nargs="?", const="", metavar="DIR", help="go on with a run [the latest]")
            smoke = dict(dest="preset", const="fast", help="a smoke run of seconds")
            sub.add_argument("--preset", choices=PRESETS, help="a set of defaults [stories]")
            sub.add_argument("--fast", action="store_const", **smoke)
            sub.add_argument("--resume", **latest)
        for flag, (kind, default, value, text) in flags.items():
            options = dict(type=kind, default=default, metavar=value, help=text)
            sub.add_argument(f"--{flag}", dest={"from": "source"}.get(flag, flag), **options)
    return parser


def main(argv=None):
    """Run the command line; returns the exit status."""
    sys.stdout = sys.stdout or open(os.devnull, "w")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv.insert(0, "train")
    for i, word in enumerate(argv):  # --num-samples is --num_samples
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and " " not in flag:
            argv[i] = "--" + flag[2:].replace("-", "_") + equals + value
    args, extra = build_parser().parse_known_args(argv)
    if extra:
        args.parser.refuse(extra[0])
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # a loss that is not finite is reported
            return args.function(args)
    except BrokenPipeError:  # whoever was reading has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print()
        return 130
    except (ValueError, OSError, MemoryError) as error:
        if isinstance(error, MemoryError):
            error = "not enough memory for this model and batch"
        print(f"capstone_gpt.py: {error}", file=sys.stderr)
        return 2


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
#    nobody else reaches on new text. `best` is chosen on the development piece (section 17).
# 8. Comparing the loss per token of models with different tokens. Symptom: the larger vocabulary
#    looks worse. Divide by characters (section 13).
# 9. Writing a checkpoint over the old one. Symptom: after a crash, neither (section 14).
# 10. x**3. Symptom: none but the clock (section 2, GELU).

# %% Exercises
#
#  1. ★ Do the second step of table_step (section 1) on paper; check it with the function.
#  2. ★ Print the shapes in block_forward for B=2, T=3, C=8, H=2. Which array is the largest?
#  3. ★ Train with --tie_weights False. What happens to the parameter count and the held-out loss?
#  4. ★ Plot metrics.jsonl of three runs with learning rates 3e-4, 3e-3 and 3e-2.
#  5. ★ Train on data/names.txt with --tokenizer char and a block of 16. How many of 100 sampled
#     names are in the file?
#  6. ★★ Break one backward by a factor of 1.01. Which rows of gradcheck notice, and why those?
#  7. ★★ Derive the backward of y = x Wᵀ, W (out, in), and show that linear_backward with W.T gives
#     it.
#  8. ★★ Replace GELU by ReLU², forward and backward, and run the gradient check.
#  9. ★★ Add z-loss, 1e-4 (log Σ e^z)², to the cross-entropy and derive its gradient.
# 10. ★★ Save a run here, open it with transformers, and compare the logits (benchmarks/ shows how).
# 11. ★★ Learn a vocabulary of 512 and one of 2,048 tokens with stage 7 and train on each. Why can
#     the losses per token not be compared, and which model is better?
# 12. ★★★ Let llama keep its cache when the window slides. Why may the text differ?
# 13. ★★★ Replace AdamW by Muon for the matrices (stage 4). Which learning rate suits it?
# 14. ★★★ Which lowers the held-out loss more at equal seconds, twice the channels or twice the
#     steps? Fit a scaling law to ten small runs (stage 6) and predict the eleventh.

# %% Where this leads
#
# What separates this file from the models in use is scale and engineering, not new mathematics: the
# same block, with more of them, trained on more tokens by machines that share the work. Stage 9
# adapts such a model to a new voice at a hundredth of the parameters; stage 10 bends it towards
# what people prefer.


if __name__ == "__main__":
    sys.exit(main())
