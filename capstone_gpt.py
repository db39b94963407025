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
import contextlib
import ctypes
import dataclasses
import difflib
import functools
import json
import math
import mmap
import numbers
import os
import shlex
import shutil
import signal
import sys
import time
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
#     slope = y' = h + x h' = h + (1 - h) y 2u',   u' = c(1 + 3k x²).
# The forward computes this slope while x and h are at hand: the backward is one product. x³ is
# written as products: NumPy's x**3 calls pow() for every element and takes fifty times as long.


def gelu_forward(x):
    """GELU of x (..., F), tanh form; the cache is the slope."""
    c, k = math.sqrt(2 / math.pi), 0.044715
    flat_x = x.reshape(-1, x.shape[-1])
    y, slope = np.empty_like(flat_x), np.empty_like(flat_x)
    for rows in tiles(*flat_x.shape):  # in place, which saves a third of the time
        x_rows, y_rows, slope_rows = flat_x[rows], y[rows], slope[rows]
        x_squared = x_rows * x_rows
        h = c * k * x_squared
        h += c
        h *= x_rows  # u
        np.tanh(h, out=h)
        h *= 0.5
        h += 0.5  # h = ½(1 + tanh u)
        np.multiply(x_rows, h, out=y_rows)  # y = x h
        x_squared *= 6 * c * k
        x_squared += 2 * c  # 2u'
        x_squared *= y_rows
        np.subtract(1, h, out=slope_rows)
        slope_rows *= x_squared
        slope_rows += h  # h + (1 - h) y 2u'
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

    def loss_and_grads(self, idx, targets, rngs=None, weight=1.0, grads=None):
        """The loss and {name: weight · ∂loss/∂parameter}, views into one vector, `.flat`.

        rngs, one numpy Generator a sequence, draw the dropout masks; None switches dropout off.
        grads: what an earlier call returned, to be written over.
        """
        loss, (embed, drop, caches, last, head, entropy) = self._loss(idx, targets, rngs, keep=True)
        if grads is None:
            grads = ParamDict(self.config, np.empty_like(self.flat))
        top = grads.top
        dx, dhead, _ = linear_backward(cross_entropy_backward(weight, entropy), head)
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
        """Write config.json and model.safetensors atomically; other files there are kept."""
        write_checkpoint(directory, self)

    @classmethod
    def from_pretrained(cls, directory, dtype=None):
        """Read a gpt2 or llama checkpoint written here or by transformers.

        dtype None is float64 for a float64 file and float32 otherwise. Raises ValueError for files
        that are damaged or describe another kind of model.
        """
        directory, tensors, files = find_checkpoint(directory), {}, ["model.safetensors"]
        config = config_from_json(read_json(directory / "config.json"))
        index = directory / "model.safetensors.index.json"
        if index.exists():  # large models come in several files
            where = read_json(index).get("weight_map")
            files = [*where.values()] if isinstance(where, dict) else [None]
            plain = all(isinstance(name, str) and Path(name).name == name for name in files)
            need(plain, f"{index}: weight_map must name files of this directory")
        for name in sorted(set(files)):
            tensors |= read_safetensors(directory / name)[0]
        gpt2 = config.arch == "gpt2"
        if gpt2 and "wte.weight" in tensors:  # the names of the original GPT-2 files
            tensors = {f"transformer.{name}": t for name, t in tensors.items()}
        if dtype is None:
            double = any(t.dtype == np.float64 for t in tensors.values())
            dtype = np.float64 if double else np.float32
        model = cls(config, seed=None, dtype=dtype)
        for name, p in model.params.items():
            need(name in tensors, f"{directory}: the weights lack {name}")
            t = tensors.pop(name)
            fits = t.shape == p.shape
            need(fits, f"{directory}: {name} is {t.shape}, config.json makes it {p.shape}")
            p[...] = t
        for name, t in tensors.items():  # all else must be without effect on the logits
            buffer = name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"))
            tied_head = name == "lm_head.weight" and config.tie_weights
            zero_bias = gpt2 and not config.bias and name.endswith(".bias") and not np.any(t)
            idle = buffer or tied_head or zero_bias
            need(idle, f"{directory}: {name} has no place in this model")
        return model


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


class CharTokenizer:
    """One token per character: the sorted distinct characters of a text are the vocabulary."""

    def __init__(self, characters):
        self.characters = "".join(sorted(set(characters)))
        self.ids = {c: i for i, c in enumerate(self.characters)}
        self.vocab_size = len(self.characters)
        self.start = "\n" if "\n" in self.ids else self.characters[0]  # what an empty prompt means

    def encode(self, text):
        """Token ids (T,); ValueError naming the characters that are not in the vocabulary."""
        unknown = sorted(set(text) - self.ids.keys())
        names = ", ".join(map(repr, unknown[:10])) + ", ..." * (len(unknown) > 10)
        need(not unknown, f"characters the model was not trained on: {names}")
        return np.array([self.ids[c] for c in text], dtype=np.int64)

    def decode(self, ids):
        """The text of token ids (T,)."""
        return "".join(self.characters[i] for i in ids)

    def save(self, directory):
        """Write the vocabulary to the file `tokenizer`, as a JSON string."""
        Path(directory, "tokenizer").write_text(json.dumps(self.characters) + "\n")


def load_tokenizer(directory):
    """The tokenizer of a checkpoint; the place where a tokenizer.json of stage 7 will be read."""
    path = find_checkpoint(directory) / "tokenizer"
    need(path.is_file(), f"{directory}: no tokenizer file, so text cannot be turned into tokens")
    bad = f"{path}: damaged tokenizer file, expected a JSON string of characters"
    characters = parse_json(path.read_bytes(), str, bad)
    need(characters, bad)
    return CharTokenizer(characters)


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

    def step(self, gradient, norm, learning_rate, start=0):
        """Update the weights from `start` on in place by their gradient; norm: that of all."""
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
            w[: max(0, self.params.decayed - start - tile.start)] *= keep
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
# loss of a step is the mean over its sequences, and the derivative of a sum is the sum of the
# derivatives. So the sequences may be taken in batches, when the memory is too small for all of
# them, or by several processes (section 13): each batch counts for the sequences it holds.
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


def training_step(model, optimizer, batches, learning_rate, team=Alone()):  # noqa: B008
    """One update from the mean over all sequences in batches, an iterable of what draw_batch gives.

    team: who else has batches of this step. Returns the mean loss in nats and the norm of the
    gradient. If either is not finite, raises FloatingPointError and changes nothing.
    """
    loss, count, gradient = 0.0, 0, None
    for idx, targets, rngs in batches:
        n = len(idx)
        into = team.grads if gradient is None else None
        batch_loss, grads = model.loss_and_grads(idx, targets, rngs, n, into)
        loss, count = loss + n * batch_loss, count + n
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


# %% 13. The team
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
# 80 MB a step, 0.1 s at ten gigabits a second, and 1,000 tokens 0.6 s of arithmetic at 100 GF/s.
#
# Sums are taken in the same order every time, so for one size of team a run is the same bit for
# bit; between two sizes it differs by rounding.


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


COLLECT, END = -1, -2  # what the leader may say instead of the number of a step


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
        return self.do(*self.hear(step, learning_rate))

    def collect(self):
        """See that m and v are complete in this process, in order to save them."""
        self.do(*self.hear(COLLECT, 0))

    def close(self):
        """End what the team consists of besides this process."""

    def serve(self):
        """The life of the other members: their part of everything, until the leader says END."""
        while True:
            command, learning_rate = self.hear()
            if command == END:
                return
            with contextlib.suppress(FloatingPointError):  # the leader gets one, too
                self.do(command, learning_rate)

    def hear(self, *command):
        """The two numbers that the leader gives here; every member hears them."""
        return command

    def do(self, command, learning_rate):
        """This member's part of a command."""
        if command == COLLECT:
            self.gather(self.optimizer.m)
            self.gather(self.optimizer.v)
            return None
        before = blas_threads(self.threads)
        try:
            batches = self.batches(int(command))
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
        self.arrived = shared(np.zeros(size, np.int64))  # the barriers that each has reached
        self.numbers, self.command = shared(np.zeros((size, 3))), shared(np.zeros(2))
        self.last_words, self.leader, self.pids = mmap.mmap(-1, 300), os.getpid(), {}
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # which the leader understands,
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # and no worker ever sees
        try:
            for rank in range(1, size):
                pid = os.fork()
                if pid == 0:
                    self.live(rank)
                self.pids[rank] = pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.grads = ParamDict(model.config, self.gradients[0])

    def live(self, rank):
        """The life of a worker. It holds no files, above all not the lock of the run."""
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the leader
            for name in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):  # the listing's own is closed already
                    os.close(max(3, int(name)))
            self.rank, self.grads = rank, ParamDict(self.model.config, self.gradients[rank])
            self.serve()
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
        if self.rank and os.getppid() != self.leader:
            os._exit(1)
        for rank, pid in self.pids.items() if self.rank == 0 else ():
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self.pids[rank]
                words = self.last_words[:].rstrip(b"\0").decode(errors="replace")
                why = words or "killed, perhaps for want of memory"
                raise ChildProcessError(f"worker {rank} of {self.size} ended: {why}")

    def close(self):
        while self.pids:
            _, pid = self.pids.popitem()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def hear(self, *command):
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


def tell(MPI, *command):
    """Rank 0's two numbers to all ranks, which wait for them without keeping a core busy."""
    numbers = np.array(command or (0, 0), np.float64)
    wait_until(MPI.COMM_WORLD.Ibcast(numbers).Test)
    return numbers.tolist()


@contextlib.contextmanager
def or_abort(MPI):
    """What goes wrong within `with` in one rank ends them all, unless it is the step's own nan."""
    try:
        yield
    except FloatingPointError:
        raise
    except BaseException as error:
        what = f"rank {MPI.COMM_WORLD.rank}: {type(error).__name__}: {error}"
        print(f"capstone_gpt.py: {what:.300}", file=sys.stderr, flush=True)
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
            tell(MPI, 0, 0)
        sent = self.world.bcast(run)
        super().__init__(*(sent if self.rank else run))
        start, end = self.shard(self.model.flat.size)
        self.counts = self.world.allgather(end - start)
        here = self.world.Split_type(MPI.COMM_TYPE_SHARED).size  # ranks on this machine
        self.threads = max(1, usable_cores() // here)

    def hear(self, *command):
        return tell(self.MPI, *command)

    def do(self, *command):
        with or_abort(self.MPI):
            return super().do(*command)

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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 understands it
    with or_abort(MPI):
        if tell(MPI)[0] != END:
            Ranks(MPI).serve()


def make_team(model, optimizer, ids, settings, stopping=lambda: False):
    """The team that mpiexec or settings["workers"] ask for; ValueError if it is too large."""
    MPI, run = mpi(), (model, optimizer, ids, settings)
    size = MPI.COMM_WORLD.size if MPI else settings["workers"]
    few = settings["batch_size"] < size
    need(not few, f"batch_size must be at least {size}, a sequence for each of {size} processes")
    if MPI:
        return Ranks(MPI, *run)
    return Workers(*run, stopping, size) if size > 1 else Team(*run, stopping)


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
# A checkpoint is a directory as Hugging Face lays it out: transformers opens ours, we open theirs.
#
# safetensors: 8 bytes of little-endian header length N, N bytes of JSON {name: {dtype, shape,
# data_offsets}}, then the arrays' raw bytes. It is read through a memory map, so an array costs
# memory when it is used, and nothing in the file is trusted before it is checked: no pickle, no
# code, no offset out of bounds.

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
DTYPES |= {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1"}


def write_safetensors(path, tensors, metadata=None):
    """Write {name: array} to path in the safetensors format."""
    names = {np.dtype(code): name for name, code in DTYPES.items()}
    header, end = {"__metadata__": {"format": "pt"} | (metadata or {})}, 0
    for name, t in tensors.items():
        start, end = end, end + t.nbytes
        header[name] = {"dtype": names[t.dtype], "shape": t.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # arrays start on a multiple of 8 bytes
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for t in tensors.values():
            file.write(np.ascontiguousarray(t).data)
        file.flush()
        os.fsync(file.fileno())


def parse_json(text, kind, complaint):
    """The JSON value in text, str or bytes; ValueError(complaint) unless it is of that kind."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{complaint} ({error})") from None
    need(isinstance(value, kind), complaint)
    return value


def read_json(path):
    """A JSON object from a file; ValueError if it is missing or damaged."""
    need(Path(path).is_file(), f"{path}: no such file")
    return parse_json(Path(path).read_bytes(), dict, f"{path}: expected a JSON object")


def read_safetensors(path):
    """({name: read-only array}, metadata) of a safetensors file; BF16 becomes float32.

    Raises ValueError naming the file when any length, offset, shape or type does not hold.
    """
    need(Path(path).is_file(), f"{path}: no such file")
    size, bad = os.path.getsize(path), f"{path}: damaged safetensors file:"
    need(size >= 8, f"{bad} {size} bytes are too few")
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(data[:8], "little")
    need(start <= size, f"{bad} a header of {start - 8} bytes in a file of {size}")
    header = parse_json(data[8:start], dict, f"{bad} the header is not a JSON object")
    metadata, tensors, spans = header.pop("__metadata__", {}), {}, []
    need(isinstance(metadata, dict), f"{bad} the metadata is not a JSON object")
    for name, entry in header.items():
        known = isinstance(entry, dict) and entry.get("dtype") in [*DTYPES]
        need(known, f"{bad} type of {name}")
        shape, offsets = entry.get("shape"), entry.get("data_offsets")
        for ns in (shape, offsets):
            right = isinstance(ns, list) and len(ns) <= 32
            right = right and all(type(n) is int and 0 <= n <= size for n in ns)
            need(right, f"{bad} shape or offsets of {name}")
        right = len(offsets) == 2 and offsets[0] <= offsets[1] <= size - start
        need(right, f"{bad} offsets of {name}")
        dtype, count = np.dtype(DTYPES[entry["dtype"]]), math.prod(shape)
        right = offsets[1] - offsets[0] == count * dtype.itemsize
        need(right, f"{bad} {name} is {shape} but has another length")
        array = np.frombuffer(data, dtype, count, start + offsets[0]).reshape(shape)
        if entry["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array
        spans.append(offsets)
    begins, ends = zip(*sorted(spans), (size - start, None))
    right = begins == (0, *ends[:-1])  # each begins where the one before it ends
    need(right, f"{bad} the arrays do not fill its {size - start} bytes one after the other")
    return tensors, metadata


# config.json, field by field: our name for each of theirs, and the values that this file computes.

HF_FIELDS = {
    "gpt2": dict(vocab_size="vocab_size", n_positions="block_size", n_layer="n_layer")
    | dict(n_head="n_head", n_embd="n_embd", n_inner="n_hidden", bias="bias")
    | dict(resid_pdrop="dropout", layer_norm_epsilon="norm_eps", tie_word_embeddings="tie_weights"),
    "llama": dict(vocab_size="vocab_size", max_position_embeddings="block_size")
    | dict(num_hidden_layers="n_layer", num_attention_heads="n_head", hidden_size="n_embd")
    | dict(num_key_value_heads="n_kv_head", intermediate_size="n_hidden", rope_theta="rope_theta")
    | dict(attention_dropout="dropout", rms_norm_eps="norm_eps", tie_word_embeddings="tie_weights"),
}
HF_FIXED = {
    "gpt2": {"architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new"}
    | {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    "llama": {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
    | {"attention_bias": False, "mlp_bias": False},
}


def config_to_json(config):
    """config.json as transformers has it for GPT2LMHeadModel and LlamaForCausalLM."""
    fields = {theirs: getattr(config, ours) for theirs, ours in HF_FIELDS[config.arch].items()}
    if config.arch == "gpt2":
        fields |= {"embd_pdrop": config.dropout, "attn_pdrop": config.dropout}
    fields |= {"bos_token_id": None, "eos_token_id": None}
    return {"model_type": config.arch} | HF_FIXED[config.arch] | fields


def config_from_json(j):
    """The GPTConfig of a config.json; ValueError for anything this file does not compute."""
    arch = j.get("model_type")
    known = arch in [*HF_FIELDS]
    need(known, f"config.json: model_type must be gpt2 or llama, not {arch!r}")
    fields = {} if arch == "gpt2" else {"norm_eps": 1e-6}  # transformers' default
    for theirs, ours in HF_FIELDS[arch].items():
        if j.get(theirs) is not None:
            fields[ours] = j[theirs]
        optional = ours not in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
        need(optional or ours in fields, f"config.json lacks {theirs}")
    rope = j.get("rope_parameters") or j.get("rope_scaling") or {}  # transformers 5 and 4
    need(isinstance(rope, dict), f"config.json: rotary settings {rope!r} are not an object")
    plain = rope.get("rope_type", rope.get("type", "default")) == "default"
    need(plain, f"config.json: scaled rotary positions are not supported: {rope}")
    if "rope_theta" in rope:
        fields["rope_theta"] = rope["rope_theta"]
    config = GPTConfig(arch, **fields)
    for name, value in (HF_FIXED[arch] | {"head_dim": config.head_size}).items():
        found = None if name == "architectures" else j.get(name)
        message = f"config.json: {name}={found!r} is not supported, only {value!r}"
        need(found in (None, value), message)
    return config


# Several files cannot be replaced at one instant, but one directory can: the new checkpoint is
# written beside the old one, complete, and the two change places in a single system call. Linux has
# one for that (renameat2 with RENAME_EXCHANGE); elsewhere two renames do it, and a reader who comes
# between them finds the old directory under its other name.


def siblings(directory):
    """A directory's real path, the name its new version is written under, its old one's name."""
    path = Path(os.path.realpath(directory))
    return path, path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


def find_checkpoint(directory):
    """The directory to read; ValueError if it is none."""
    path, _, old = siblings(directory)
    found = path if path.is_dir() else old
    need(found.is_dir(), f"{directory}: no such checkpoint directory")
    return found


def exchange(a, b):
    """Swap two paths atomically; False where the system cannot."""
    try:
        call = ctypes.CDLL(None).renameat2  # AT_FDCWD is -100, RENAME_EXCHANGE is 2
        return call(-100, os.fsencode(a), -100, os.fsencode(b), 2) == 0
    except (AttributeError, TypeError, OSError):
        return False


def write_checkpoint(directory, model, tokenizer=None, state=None, settings=None):
    """Write a checkpoint atomically: model, config and, if given, tokenizer and training state.

    state: {name: array} for training_state.safetensors; settings: a dict for training_state.json.
    Other files that are there already are kept, but for the training state of older weights.
    """
    (path, new, old), cwd = siblings(directory), Path.cwd().resolve()
    alone = path not in (cwd, *cwd.parents)
    need(alone, f"{directory}: give the checkpoint a directory of its own")
    free = path.is_dir() or not path.exists()
    need(free, f"{directory}: is a file, a checkpoint is a directory")
    path.parent.mkdir(parents=True, exist_ok=True)
    if old.is_dir() and not path.is_dir():
        os.rename(old, path)  # an earlier writer died between its two renames
    shutil.rmtree(new, ignore_errors=True)
    config, tensors = model.config, dict(model.params)
    if config.arch == "gpt2" and not config.bias:  # transformers has biases: zeros
        full = param_shapes(dataclasses.replace(config, bias=True))
        tensors = {n: tensors.get(n, np.zeros(shape, model.dtype)) for n, shape in full.items()}
    try:
        if path.is_dir():
            ours = ["model.safetensors*", "config.json", "training_state.*"]
            ours += ["tokenizer"] * bool(tokenizer)
            shutil.copytree(path, new, symlinks=True, ignore=shutil.ignore_patterns(*ours))
        else:
            new.mkdir()
        write_safetensors(new / "model.safetensors", tensors)
        (new / "config.json").write_text(json.dumps(config_to_json(config), indent=2) + "\n")
        if tokenizer:
            tokenizer.save(new)
        if state:
            write_safetensors(new / "training_state.safetensors", state)
            (new / "training_state.json").write_text(json.dumps(settings, indent=2) + "\n")
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if not path.exists():
        os.rename(new, path)
    elif exchange(new, path):
        shutil.rmtree(new)
    else:
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
        os.rename(new, path)
        shutil.rmtree(old)


# %% 17. The machine
#
# What NumPy, glibc, the kernel and MPI are asked for training (section 13). All of it is optional:
# where something is not there, the run goes on without it.


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
        path = next(line.split(None, 5)[5] for line in maps if "openblas" in line)
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
        started = int(os.environ.get(size, 1))
        if started == 1:
            continue
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError):
            if int(os.environ[rank]) > 0:  # rank 0 says it for all
                sys.exit(2)
            raise ValueError("mpiexec needs mpi4py: python -m pip install mpi4py mpich") from None
        found = MPI.COMM_WORLD.size
        need(found == started, f"mpiexec started {started} processes, but mpi4py finds {found}")
        return MPI
    return None


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
