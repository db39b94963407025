# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 9: adapt. How does a trained model learn something new without being trained again?

A model that tells stories should now write verse. Full fine-tuning moves every weight; AdamW then
holds four numbers for each, every new voice is a full copy of the model, and what it knew wears
away. Must all the weights move? No: freeze them and train a small layer plugged into the model.
The best known plug is LoRA: the update of a matrix is a product of two thin ones, ΔW = (α/r) AB.
This file derives it and its relatives, plugs each into one small GPT with a hand-written backward,
and measures what each costs, what it learns, and what it makes the model forget.

The map: 1 a small GPT with sockets, 2 what full fine-tuning costs, 3 LoRA and rsLoRA, 4 DoRA, 5 a
base in 4 bits, 6 adapters, prompts, prefixes, scales, 7 files, 8 training; then the demonstration.

    python stage09_lora.py           pre-train on stories, adapt to verses in ten ways
    python stage09_lora.py --fast    the same in miniature, in about two seconds

Papers: Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP; Li & Liang 2021,
Prefix-Tuning; Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning; Hu et
al. 2021, LoRA; Ben Zaken et al. 2021, BitFit; Liu et al. 2022, Few-Shot Parameter-Efficient
Fine-Tuning (IA³); Dettmers et al. 2023, QLoRA; Kalajdzievski 2023, rsLoRA; Liu et al. 2024,
DoRA."""

import argparse
import contextlib
import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path
from statistics import NormalDist

import numpy as np


# %% 1. A small GPT with sockets
# Shapes: B sequences, T tokens, C channels, H heads of size D, V vocabulary, r rank. A layer is a
# pair: the forward returns its output and a cache, the backward turns dy = ∂L/∂y into dx = ∂L/∂x
# and the gradients of its parameters by the chain rule, ∂L/∂xᵢ = Σⱼ ∂L/∂yⱼ · ∂yⱼ/∂xᵢ.
def check(ok, message):
    """ValueError with this message unless ok."""
    if not ok:
        raise ValueError(message)


def check_count(value, name):
    """value as an int (NumPy's would wrap); ValueError unless it is whole and at least 1."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    check(whole and value >= 1, f"{name} must be a whole number of at least 1, not {value!r}")
    return int(value)


def check_number(value, name):
    """ValueError unless value is a finite number."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    check(real and math.isfinite(value), f"{name} must be a finite number, not {value!r}")


def check_shape(array, shape, name):
    """ValueError unless the array has exactly this shape: NumPy would repeat it to fit."""
    check(np.shape(array) == shape, f"{name} must have the shape {shape}, not {np.shape(array)}")


def check_ids(ids, name, vocab_size, lowest=0):
    """ids as int64; ValueError unless they are integers in lowest..vocab_size - 1."""
    ids = np.asarray(ids)
    check(ids.dtype.kind in "iu", f"{name} must be integers, not {ids.dtype} {ids.shape}")
    low, high = ids.min(initial=0), ids.max(initial=0)
    expected = f"{name} must lie in {lowest}..{vocab_size - 1}"
    check(lowest <= low and high < vocab_size, f"{expected}, not {low}..{high}")
    return ids.astype(np.int64)


def rows(x):
    """x (..., C) as a matrix of rows (N, C)."""
    return x.reshape(-1, x.shape[-1])


# Linear. yⱼ = Σᵢ xᵢWᵢⱼ. A change of xᵢ moves every yⱼ by Wᵢⱼ; a change of Wᵢⱼ moves yⱼ by xᵢ, in
# every row n:
#     ∂L/∂xᵢ = Σⱼ dyⱼWᵢⱼ  so  dx = dy Wᵀ,        ∂L/∂Wᵢⱼ = Σₙ xₙᵢ dyₙⱼ  so  dW = xᵀdy.
# A frozen W needs only the first, and that is the time every method below saves.
def linear_forward(x, W):
    """y = xW for x (..., I), W (I, O); W may be in four bits (section 5)."""
    W = dense(W)
    return (rows(x) @ W).reshape(*x.shape[:-1], W.shape[1]), (x, W)


def linear_backward(dy, cache, need_dW=True):
    """dx (..., I), dW (I, O) or None."""
    x, W = cache
    check_shape(dy, (*x.shape[:-1], W.shape[1]), "dy")
    dx = (rows(dy) @ W.T).reshape(x.shape)
    return dx, rows(x).T @ rows(dy) if need_dW else None


# LayerNorm. x̂ = (x - mean) r with r = 1/√(var + ε), y = x̂γ + β. Mean and r depend on every
# channel: ∂mean/∂xᵢ = 1/C and ∂r/∂xᵢ = -½r³ · 2(xᵢ - mean)/C = -r²x̂ᵢ/C. With a = dx̂ = dy γ,
#     dxᵢ = Σⱼ aⱼ [r(1[i=j] - 1/C) + (xⱼ - mean)(-r²x̂ᵢ/C)] = r (aᵢ - mean(a) - x̂ᵢ mean(a x̂)).
def layernorm_forward(x, weight, bias, eps=1e-5):
    """Rows of x (..., C) to mean 0 and variance 1, times weight (C,), plus bias (C,)."""
    mean = np.full(x.shape[-1], 1 / x.shape[-1], x.dtype)  # x @ mean is faster than x.mean(-1)
    xhat = x - (x @ mean)[..., None]
    r = 1 / np.sqrt((xhat * xhat @ mean)[..., None] + eps)  # (..., 1)
    xhat *= r
    return xhat * weight + bias, (xhat, r, weight, mean)


def layernorm_backward(dy, cache):
    """dx (..., C), dweight (C,), dbias (C,)."""
    xhat, r, weight, mean = cache
    check_shape(dy, xhat.shape, "dy")
    a = dy * weight
    dx = r * (a - (a @ mean)[..., None] - xhat * (a * xhat @ mean)[..., None])
    return dx, rows(dy * xhat).sum(0), rows(dy).sum(0)


# GELU, GPT-2's tanh form: y = ½x(1 + t), t = tanh(u), u = c(x + kx³), and tanh' = 1 - t², so
#     y' = ½(1 + t) + ½x(1 - t²) c(1 + 3kx²).
def gelu_forward(x):
    """GELU of x; the cache is its slope y', so the backward is dy times the cache."""
    c, k, xx = math.sqrt(2 / math.pi), 0.044715, x * x
    t = np.tanh(x * (c + c * k * xx))
    half = 0.5 + 0.5 * t
    return x * half, half + x * (0.5 - 0.5 * t * t) * (c + 3 * c * k * xx)


# Attention. sᵢⱼ = qᵢ·kⱼ/√D where i may see j, P = softmax of each row of s, y = Pv. Backward: a
# product is linear in both factors, so dv = Pᵀdy and dP = dy vᵀ. Pⱼ = e^sⱼ/Σₘe^sₘ has ∂Pⱼ/∂sₖ =
# Pⱼ(1[j=k] - Pₖ) by the quotient rule, so
#     dsₖ = Σⱼ dPⱼPⱼ(1[j=k] - Pₖ) = Pₖ(dPₖ - Σⱼ PⱼdPⱼ),
# and s = qkᵀ/√D gives dq = ds k/√D, dk = dsᵀq/√D. With more keys than queries (a prefix, section 6)
# the extra keys come first and everyone sees them.
def attention_forward(q, k, v):
    """Causal attention of q (B, H, Tq, D) over k, v (B, H, Tk, D), Tk ≥ Tq: y (B, H, Tq, D)."""
    Tq, Tk = q.shape[2], k.shape[2]
    s = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5  # (B, H, Tq, Tk)
    s += np.triu(np.full((Tq, Tk), -np.inf, s.dtype), 1 + Tk - Tq)
    P = np.exp(s - s.max(-1, keepdims=True))
    P /= P.sum(-1, keepdims=True)
    return P @ v, (q, k, v, P)


def attention_backward(dy, cache):
    """dq (B, H, Tq, D), dk, dv (B, H, Tk, D)."""
    q, k, v, P = cache
    check_shape(dy, q.shape, "dy")
    dP = dy @ v.swapaxes(-1, -2)
    ds = P * (dP - np.vecdot(P, dP)[..., None]) * q.shape[-1] ** -0.5
    return ds @ k, ds.swapaxes(-1, -2) @ q, P.swapaxes(-1, -2) @ dy


# Cross-entropy. A token's loss is -log p[target] = log Σₖ e^zₖ - z[target]; differentiating the two
# terms gives dzⱼ = e^zⱼ / Σₖ e^zₖ - 1[j = target] = pⱼ - 1[j = target], over the count for a mean.
def cross_entropy(logits, targets):
    """Mean loss in nats of targets (B, T), -1 to ignore, and dlogits (B, T, V). ValueError if all
    are to be ignored, or one is no id."""
    targets = check_ids(targets, "targets", logits.shape[-1], -1)
    check_shape(targets, logits.shape[:-1], "targets")
    z, t = rows(logits - logits.max(-1, keepdims=True)), targets.ravel()  # exp cannot overflow
    kept = np.flatnonzero(t >= 0)
    check(len(kept) > 0, "targets must hold at least one that is not -1")
    p = np.exp(z)
    total = p.sum(-1, keepdims=True)
    loss = float((np.log(total[kept, 0]) - z[kept, t[kept]]).mean())
    dz = p / total * (t >= 0)[:, None]
    dz[kept, t[kept]] -= 1
    return loss, (dz / len(kept)).reshape(logits.shape)


# The model has GPT-2's shape and Hugging Face's names, with matrices as (in, out). What makes it
# adaptable are sockets: whatever sits in the dict `adapters` under the name of a place runs there.
# A plug has .params {name: array}, .forward(x) -> (y, cache) and .backward(dy, cache) -> (dx,
# {name: gradient}); so every method of this stage is a dict of plugs:
#     transformer.prompt                 on the embedded text (B, T, C)
#     transformer.h.N.attn.c_attn.weight (and the other three matrices) instead of x @ W
#     transformer.h.N.attn.kv            on keys and values (2, B, H, T, D)
#     transformer.h.N.attn.adapter       on what attention writes to the residual stream (B, T, C)
#     transformer.h.N.mlp.act            on the hidden units after GELU (B, T, 4C)
#     transformer.h.N.mlp.adapter        on what the MLP writes to the residual stream (B, T, C)
def init_params(vocab_size, block_size, n_layer, width, seed=0, dtype=np.float32):
    """A fresh gpt2-shaped model: N(0, 0.02²), c_proj divided by √(2L), biases zero."""
    vocab_size, block_size = (
        check_count(vocab_size, "vocab_size"),
        check_count(block_size, "block_size"),
    )
    n_layer, C = check_count(n_layer, "n_layer"), check_count(width, "width")
    rng, params = np.random.default_rng(seed), {}
    shapes = {"wte": (vocab_size, C), "wpe": (block_size, C)}
    for h in (f"h.{i}" for i in range(n_layer)):
        shapes |= {f"{h}.ln_1": (C,), f"{h}.attn.c_attn": (C, 3 * C), f"{h}.attn.c_proj": (C, C)}
        shapes |= {f"{h}.ln_2": (C,), f"{h}.mlp.c_fc": (C, 4 * C), f"{h}.mlp.c_proj": (4 * C, C)}
    for name, shape in (shapes | {"ln_f": (C,)}).items():
        std = 0.02 / math.sqrt(2 * n_layer) if "c_proj" in name else 0.02
        weight = np.ones(shape) if "ln_" in name else rng.normal(0, std, shape)
        params[f"transformer.{name}.weight"] = weight.astype(dtype)
        if name not in ("wte", "wpe"):
            params[f"transformer.{name}.bias"] = np.zeros(shape[-1], dtype)
    return params


def gpt_forward(params, idx, n_head, adapters=None):
    """Logits (B, T, V) for token ids idx (B, T), and a cache with an entry per place in use.

    Raises ValueError for ids that are not whole numbers in range, or T or a place not in the model.
    """
    adapters, idx = adapters or {}, np.asarray(idx)
    wte, wpe = params["transformer.wte.weight"], params["transformer.wpe.weight"]
    ok = idx.ndim == 2 and idx.dtype.kind in "iu" and 1 <= idx.shape[1] <= len(wpe)
    check(ok, f"idx must be integers (B, T), T in 1..{len(wpe)}, not {idx.dtype} {idx.shape}")
    idx, n_head = check_ids(idx, "idx", len(wte)), check_count(n_head, "n_head")
    T, C = idx.shape[1], wte.shape[1]
    check(C % n_head == 0, f"n_head must divide the {C} channels, not be {n_head}")
    layers = [name.removesuffix(".ln_1.weight") for name in params if ".ln_1.w" in name]
    cache = {"model": (params, adapters, layers, n_head, idx)}

    def at(place, x):
        """What is plugged in at this place, else the model's own layer, else x as it is."""
        W, b = params.get(place), params.get(place.replace("weight", "bias"))
        if place in adapters:
            x, cache[place] = adapters[place].forward(x)
        elif ".ln_" in place:
            x, cache[place] = layernorm_forward(x, W, b)
        elif ".c_" in place:
            x, cache[place] = linear_forward(x, W)
        return x + b if ".c_" in place else x

    x = at("transformer.prompt", wte[idx] + wpe[:T])  # (B, P+T, C), P prompt vectors if any
    for h in layers:
        qkv = at(f"{h}.attn.c_attn.weight", at(f"{h}.ln_1.weight", x))  # (B, P+T, 3C)
        qkv = qkv.reshape(*x.shape[:2], 3, n_head, C // n_head).transpose(2, 0, 3, 1, 4)
        k, v = at(f"{h}.attn.kv", qkv[1:])  # (B, H, keys, D) each
        y, cache[f"{h}.attn"] = attention_forward(qkv[0], k, v)  # (B, H, P+T, D)
        y = at(f"{h}.attn.c_proj.weight", y.transpose(0, 2, 1, 3).reshape(x.shape))
        x = x + at(f"{h}.attn.adapter", y)
        a, cache[f"{h}.mlp"] = gelu_forward(at(f"{h}.mlp.c_fc.weight", at(f"{h}.ln_2.weight", x)))
        y = at(f"{h}.mlp.c_proj.weight", at(f"{h}.mlp.act", a))  # a (B, P+T, 4C)
        x = x + at(f"{h}.mlp.adapter", y)
    x = at("transformer.ln_f.weight", x)[:, -T:]  # the prompt itself predicts nothing
    for place in adapters:
        check(place in cache, f"adapter at {place!r}: the model has no such place")
    logits, cache["head"] = linear_forward(x, wte.T)  # tied: the embedding scores the tokens
    return logits, cache


# The backward walks the same lines from the bottom up. A sum copies its gradient to both terms, so
# dx flows past each branch and through it. The embedding is used twice, so its gradient has two
# terms: from the head, and from the rows picked, where a product with 0s and 1s sums each one's dx.
def gpt_backward(dlogits, cache, trainable=()):
    """{name: gradient} of the base's `trainable` parameters and of "place:param" for every plug."""
    (params, adapters, layers, n_head, idx), grads = cache["model"], {}
    check_shape(dlogits, (*idx.shape, len(params["transformer.wte.weight"])), "dlogits")

    def at(place, dy):
        """dx at this place; the gradients wanted on the way go into grads."""
        b = place.replace("weight", "bias")
        if ".c_" in place and b in trainable:
            grads[b] = rows(dy).sum(0)
        if place in adapters:
            dy, found = adapters[place].backward(dy, cache[place])
            grads.update({f"{place}:{name}": g for name, g in found.items()})
        elif ".ln_" in place:
            dy, *found = layernorm_backward(dy, cache[place])
            grads.update({name: g for name, g in zip((place, b), found) if name in trainable})
        elif ".c_" in place:
            dy, dW = linear_backward(dy, cache[place], place in trainable)
            grads.update({place: dW} if place in trainable else {})
        return dy

    wte, wpe = "transformer.wte.weight", "transformer.wpe.weight"
    dx, dhead = linear_backward(dlogits, cache["head"], wte in trainable)
    P = (
        cache["transformer.ln_f.weight"][0].shape[1] - idx.shape[1]
    )  # prompt vectors predict nothing
    dx = at("transformer.ln_f.weight", np.pad(dx, ((0, 0), (P, 0), (0, 0))))
    for h in reversed(layers):
        da = at(f"{h}.mlp.act", at(f"{h}.mlp.c_proj.weight", at(f"{h}.mlp.adapter", dx)))
        dx = dx + at(f"{h}.ln_2.weight", at(f"{h}.mlp.c_fc.weight", da * cache[f"{h}.mlp"]))
        dy = at(f"{h}.attn.c_proj.weight", at(f"{h}.attn.adapter", dx))
        dy = dy.reshape(*dy.shape[:2], n_head, -1).transpose(0, 2, 1, 3)
        dq, dk, dv = attention_backward(dy, cache[f"{h}.attn"])
        dkv = at(f"{h}.attn.kv", np.stack([dk, dv]))
        dqkv = np.concatenate([dq[None], dkv]).transpose(1, 3, 0, 2, 4)  # (B, P+T, 3, H, D)
        dy = at(f"{h}.attn.c_attn.weight", dqkv.reshape(*dx.shape[:2], -1))
        dx = dx + at(f"{h}.ln_1.weight", dy)
    dx = at("transformer.prompt", dx)
    if wte in trainable:
        grads[wte] = dhead.T + np.eye(len(params[wte]), dtype=dx.dtype)[:, idx.ravel()] @ rows(dx)
    if wpe in trainable:
        grads[wpe] = np.pad(dx.sum(0), ((0, len(params[wpe]) - idx.shape[1]), (0, 0)))
    return grads


# %% 2. What full fine-tuning costs, and why a low rank may do
# For each number it trains AdamW holds the number, its gradient, and running means of g and g²: 16
# bytes in float32. A frozen number costs 4, in NF4 (section 5) about ½.
#
# The hypothesis (Aghajanyan et al. 2020; Hu et al. 2021): the update ΔW that fine-tuning finds is
# close to a matrix of low rank. "Close" has an exact meaning. Write ΔW = Σᵢ σᵢ uᵢvᵢᵀ, σ₁ ≥ σ₂ ≥
# ..., with orthonormal uᵢ and vᵢ (the singular value decomposition). These rank-one pieces are
# orthogonal, so ‖ΔW‖² = Σᵢ σᵢ² by Pythagoras, and the nearest rank-k matrix keeps the first k
# (Eckart & Young 1936): a share Σᵢ≤ₖ σᵢ² / Σᵢ σᵢ². The demonstration cuts the ΔW of a real full
# fine-tuning to rank k and scores the model again, beside the share of random matrices.
def low_rank(matrix, k):
    """The nearest matrix of rank ≤ k, and the share of ‖matrix‖² it keeps (1 for all zeros)."""
    check(np.ndim(matrix) == 2, f"expected a matrix, not an array of shape {np.shape(matrix)}")
    k = check_count(k, "k") if k != 0 else 0
    U, sigma, Vt = np.linalg.svd(matrix, full_matrices=False)
    energy = float(sigma @ sigma)
    share = float(sigma[:k] @ sigma[:k]) / energy if energy else 1.0
    return (U[:, :k] * sigma[:k]) @ Vt[:k], share


# %% 3. LoRA: learn the low-rank update itself
# Why compute a full ΔW and cut it? Parametrise it by its factors, and freeze W (in, out):
#     y = xW + s (xA)B,      A (in, r),  B (r, out),  s = α/r.
# r(in + out) numbers instead of in·out. Two linear layers in a row: with h = xA and g = s dy Bᵀ,
#     dB = s hᵀdy,     dA = xᵀg,     dx = dy Wᵀ + g Aᵀ.
# dW never appears. With G = xᵀdy, the gradient W would have had, they read dA = s G Bᵀ, dB = s AᵀG.
#
# Why B starts at zero. Then ΔW = 0 and training starts exactly at the model we have. At the first
# step dA = s G Bᵀ = 0, but dB = s AᵀG is not, so B moves and A follows. Were both zero, both
# gradients would vanish for ever; were neither, training would start from a model damaged by noise.
# A is N(0, 1/in), so that h = xA is of the size of x: Var(hₖ) = Σᵢ xᵢ²/in = mean(x²).
#
# Why s = α/r, and rsLoRA's α/√r. One step of gradient descent from B = 0 gives B = -ηs AᵀG, so
#     ΔW = sAB = -η s² AAᵀ G,   E[(AAᵀ)ᵢⱼ] = Σₖ E[AᵢₖAⱼₖ] = (r/in) 1[i=j],   E[ΔW] = -η (s² r/in) G:
# full fine-tuning's step seen through r random directions. Its size does not depend on the rank if
# s²r is constant: s = α/√r (Kalajdzievski 2023); with s = α/r it shrinks like 1/r. Adam muddies
# this: its first step moves every entry of B by η against its gradient's sign, so each of the r
# terms of AB points along -G on average, |ΔW| grows like η s r, and it is α/r that keeps it
# constant. The report trains both at several ranks: judge for yourself.
def lora_forward(x, W, A, B, scale):
    """y (..., O) = xW + scale·(xA)B, cache. ValueError unless the shapes match (Hu et al. 2021)."""
    I, O, r = W.shape[:1], W.shape[1:], A.shape[1:]
    fit = W.ndim == 2 and (x.shape[-1:], A.shape, B.shape) == (I, I + r, r + O)
    shapes = f"x {x.shape}, W {W.shape}, A {A.shape}, B {B.shape}"
    check(fit, f"expected x (..., I), W (I, O), A (I, r), B (r, O), not {shapes}")
    y = rows(x) @ W + (rows(x) @ A) @ (scale * B)
    return y.reshape(*x.shape[:-1], W.shape[1]), (x, W, A, B, scale)


def lora_backward(dy, cache):
    """dx (..., I), dA (I, r), dB (r, O); the frozen W gets no gradient."""
    x, W, A, B, scale = cache
    expected = (*x.shape[:-1], W.shape[1])
    check(dy.shape == expected, f"dy must be {expected} like y, not {dy.shape}")
    h = rows(x) @ A  # (N, r)
    g = scale * (rows(dy) @ B.T)  # (N, r)
    dx = rows(dy) @ W.T + g @ A.T
    return dx.reshape(x.shape), rows(x).T @ g, scale * (h.T @ rows(dy))


# Merging. W' = W + sAB is one matrix again, at no cost at run time. merge() makes a new array and
# unmerge() drops it: subtracting sAB from a sum made in place would leave rounding dust in every
# weight, and other adapters may share that base.
class LoRALinear:
    """y = xW + s(xA)B over a frozen weight (in, out), s = alpha/rank or, with rslora, alpha/√rank.

    weight: a float matrix or its NF4 form, never modified. .params: {"A": (in, r), "B": (r, out)}.
    ValueError for a weight that is no float matrix, rank < 1, alpha not a finite number.
    """

    pair = lora_forward, lora_backward

    def __init__(self, weight, rank, alpha, seed=0, rslora=False):
        self.base = weight if isinstance(weight, NF4) else np.asarray(weight)
        W = dense(self.base)
        matrix = W.ndim == 2 and W.size and W.dtype.kind == "f"
        check(matrix, f"weight must be a float matrix (in, out), not {W.dtype} {W.shape}")
        rank = check_count(rank, "rank")
        check_number(alpha, "alpha")
        self.rank, self.alpha, self.rslora, self.merged = rank, float(alpha), rslora, None
        self.scale = self.alpha / (math.sqrt(rank) if rslora else rank)
        A = np.random.default_rng(seed).normal(0, 1 / math.sqrt(len(W)), (len(W), rank))
        self.params = {"A": A.astype(W.dtype), "B": np.zeros((rank, W.shape[1]), W.dtype)}

    def combined(self):
        """W + sAB (in, out)."""
        return dense(self.base) + (self.scale * self.params["A"]) @ self.params["B"]

    def merge(self):
        """Fold the update into one new matrix, returned; a second call changes nothing."""
        self.merged = self.combined() if self.merged is None else self.merged
        return self.merged

    def unmerge(self):
        """Back to the base, bit for bit."""
        self.merged = None

    def forward(self, x):
        """y (..., out) of x (..., in), and the cache; None when merged."""
        if self.merged is not None:
            return linear_forward(x, self.merged)[0], None
        return self.pair[0](x, dense(self.base), *self.params.values(), self.scale)

    def backward(self, dy, cache):
        """dx (..., in) and gradients like .params. ValueError for the cache of a merged layer."""
        check(cache is not None, "a merged layer has no gradients: unmerge() before the forward")
        dx, *grads = self.pair[1](dy, cache)
        return dx, dict(zip(self.params, grads))


def apply_lora(params, targets, rank, alpha, seed=0, rslora=False, layer=LoRALinear):
    """{weight name: layer} for every matrix of params whose module name ends in one of targets.

    They match like PEFT's target_modules. ValueError for one that fits no matrix, and from `layer`.
    """
    rng, chosen = np.random.default_rng(seed), set()
    targets = [targets] if isinstance(targets, str) else list(targets or ())
    check(targets, "targets is empty; expected names such as 'attn.c_attn'")
    for target in targets:
        ending = f".{target.removesuffix('.weight')}.weight"
        found = {n for n in params if f".{n}".endswith(ending) and len(params[n].shape) == 2}
        check(found, f"{target!r} matches no matrix; expected one such as 'attn.c_attn'")
        chosen |= found
    return {n: layer(params[n], rank, alpha, rng, rslora) for n in params if n in chosen}


# %% 4. DoRA: direction and magnitude apart
# Column j of a matrix makes output j: its direction says what to look for, its length how loud to
# answer. DoRA (Liu et al. 2024) lets LoRA turn the columns, V = W + sAB, and learns the lengths m
# beside them:
#     yⱼ = uⱼ gⱼ,    u = xV,    gⱼ = mⱼ/nⱼ,    nⱼ = √(Σᵢ Vᵢⱼ²),    m = n at first, so that y = xW.
# Backward, from the end:
#     du = dy g,     dgⱼ = Σₙ dyₙⱼuₙⱼ  over rows,     dm = dg/n,     dn = -dg m/n² = -dg g/n,
#     ∂nⱼ/∂Vᵢⱼ = Vᵢⱼ/nⱼ   so   dV = xᵀdu + V (dn/n) = xᵀdu - V dg g/n²,
# and V = W + sAB gives dA = s dV Bᵀ, dB = s AᵀdV. Each column of dV is orthogonal to V's, because
# Σᵢ Vᵢⱼ(xᵀdu)ᵢⱼ = Σₙ uₙⱼduₙⱼ = dgⱼgⱼ and Σᵢ Vᵢⱼ² dgⱼgⱼ/nⱼ² = dgⱼgⱼ cancel: lengths are m's business
# alone. The price is dV, as large as W; the paper saves part of it by holding n constant in the
# backward. We keep the true gradient.
def dora_forward(x, W, A, B, m, scale):
    """y = x V m/‖V‖ for V = W + scale·AB, lengths by column: y (..., O), cache."""
    V = W + (scale * A) @ B
    n = np.linalg.norm(V, axis=0)  # (O,)
    u, _ = linear_forward(x, V)
    return u * (m / n), (x, V, n, u, A, B, m, scale)


def dora_backward(dy, cache):
    """dx (..., I), dA (I, r), dB (r, O), dm (O,)."""
    x, V, n, u, A, B, m, scale = cache
    g = m / n
    dg = rows(dy * u).sum(0)  # (O,)
    dx, dV = linear_backward(dy * g, (x, V))
    dV -= V * (dg * g / (n * n))
    return dx, scale * (dV @ B.T), scale * (A.T @ dV), dg / n


class DoRALinear(LoRALinear):
    """LoRALinear with .params["m"] (out,), the learned length of each output's column."""

    pair = dora_forward, dora_backward

    def __init__(self, weight, rank, alpha, seed=0, rslora=False):
        super().__init__(weight, rank, alpha, seed, rslora)
        self.params["m"] = np.linalg.norm(dense(self.base), axis=0)
        check(self.params["m"].all(), "weight has a column of zeros; expected one with a direction")

    def combined(self):
        """m V/‖V‖ (in, out)."""
        V = super().combined()
        return V * (self.params["m"] / np.linalg.norm(V, axis=0))


# %% 5. QLoRA: the frozen base in four bits
# What is never trained need not be stored well. Four bits name 16 levels: cut W into blocks of 64
# numbers, divide each block by its largest |w|, store the nearest level. That is 4 + 32/64 = 4.5
# bits a weight. Which levels? Trained weights look normal, so NF4 (Dettmers et al. 2023) takes
# quantiles of the normal distribution, each about equally likely to be used: 7 below zero, 8 above,
# and 0 itself, all scaled to end at -1 and 1. The last leaves a tail of δ, the mean of 1/32 and
# 1/30: half a cell of 16 and of 15. One weight's error is at most absmax · (widest gap)/2; the
# demonstration measures the usual one. A and B stay in full precision and learn around it.
EVEN = [np.linspace(0.5, 1 - (1 / 32 + 1 / 30) / 2, n + 1)[1:] for n in (7, 8)]  # in probability
BELOW, ABOVE = ([NormalDist().inv_cdf(p) for p in even] for even in EVEN)
LEVELS = np.array([*(-q for q in reversed(BELOW)), 0, *ABOVE]) / ABOVE[-1]
# packed: uint8 (⌈numbers/2⌉,), the earlier code in the high half; absmax: a scale per block
NF4 = namedtuple("NF4", "packed absmax shape block_size")


def quantize_nf4(W, block_size=64):
    """NF4 of a float array W. Raises ValueError if W is not finite floats or block_size < 1."""
    W = np.asarray(W)
    block_size = check_count(block_size, "block_size")
    finite = W.dtype.kind == "f" and np.isfinite(W).all()
    check(finite, f"W must be finite floats, not {W.dtype} {W.ravel()[:4]}")
    blocks = np.zeros((-(-W.size // block_size), block_size), W.dtype)
    blocks.ravel()[: W.size] = W.ravel()
    absmax = abs(blocks).max(-1)  # (blocks,)
    scaled = blocks / np.where(absmax > 0, absmax, 1)[:, None]
    codes = np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, scaled.ravel()).astype(np.uint8)
    codes = np.pad(codes, (0, codes.size % 2))
    return NF4(codes[::2] << 4 | codes[1::2], absmax, W.shape, block_size)


def dequantize_nf4(q, *fields):
    """The array q = quantize_nf4(W), or *q, stands for; ValueError if its fields do not fit."""
    packed, absmax, shape, block_size = NF4(q, *fields) if fields else q
    size, blocks = math.prod(shape), len(absmax)
    block_size = check_count(block_size, "block_size")
    fit = blocks == -(-size // block_size) and len(packed) == (blocks * block_size + 1) // 2
    check(fit, f"{len(packed)} bytes and {blocks} scales do not fit shape {shape}")
    codes = np.stack([packed >> 4, packed & 15], -1).ravel()[: blocks * block_size]
    values = LEVELS.astype(absmax.dtype)[codes].reshape(blocks, block_size) * absmax[:, None]
    return values.ravel()[:size].reshape(shape)


def dense(W):
    """W itself, or the array it stands for if it is kept in four bits."""
    return dequantize_nf4(W) if isinstance(W, NF4) else W


# %% 6. Adapters, prompts, prefixes, scales
# Adapter (Houlsby et al. 2019): y = x + GELU(xD + b)U + c after each half of a block, a bottleneck
# of m channels. U and c start at zero, so y = x. Two linear layers: with z = xD + b, a = GELU(z),
#     dU = aᵀdy,  dc = Σₙ dy,  dz = (dy Uᵀ) GELU'(z),  dD = xᵀdz,  db = Σₙ dz,  dx = dy + dz Dᵀ.
# It cannot be merged into W: a nonlinearity stands in between.
class Adapter:
    """A bottleneck on (..., width). .params: {"D": (C, m), "b": (m,), "U": (m, C), "c": (C,)}."""

    def __init__(self, width, bottleneck, seed=0, dtype=np.float32):
        check_count(width, "width"), check_count(bottleneck, "bottleneck")
        D = np.random.default_rng(seed).normal(0, 1 / math.sqrt(width), (width, bottleneck))
        self.params = {"D": D.astype(dtype), "b": np.zeros(bottleneck, dtype)}
        self.params |= {"U": np.zeros((bottleneck, width), dtype), "c": np.zeros(width, dtype)}

    def forward(self, x):
        z, first = linear_forward(x, self.params["D"])
        a, slope = gelu_forward(z + self.params["b"])
        y, second = linear_forward(a, self.params["U"])
        return x + y + self.params["c"], (first, slope, second)

    def backward(self, dy, cache):
        first, slope, second = cache
        da, dU = linear_backward(dy, second)
        dz = da * slope
        dx, dD = linear_backward(dz, first)
        return dy + dx, {"D": dD, "b": rows(dz).sum(0), "U": dU, "c": rows(dy).sum(0)}


# Prompt tuning (Lester et al. 2021) trains P free vectors in front of the embedded text, which
# keeps its positions 0..T-1. Prefix tuning (Li & Liang 2021) trains P keys and values in front of
# every layer's own: all that a prompt could bring about there, without the detour. Both concatenate
# along time something the whole batch shares, so the backward cuts dy in two and sums the shared
# piece over the batch. Both start better from real text than from noise (Lester et al., 3.2).
class PromptTuning:
    """Learned vectors before x (B, T, C): y (B, P+T, C). .params: {"prompt": (P, C)}."""

    name, batch_axis = "prompt", 0

    def __init__(self, length, width, seed=0, dtype=np.float32, before=()):
        for size in (shape := (*before, length, width)):
            check_count(size, f"{self.name} size")
        self.params = {self.name: np.random.default_rng(seed).normal(0, 0.02, shape).astype(dtype)}

    def forward(self, x):
        shared = np.stack([self.params[self.name]] * x.shape[self.batch_axis], self.batch_axis)
        y = np.concatenate([shared, x], -2)
        return y, (shared.shape[-2], y.shape)

    def backward(self, dy, cache):
        P, shape = cache
        check_shape(dy, shape, "dy")
        return dy[..., P:, :], {self.name: dy[..., :P, :].sum(self.batch_axis)}


class PrefixTuning(PromptTuning):
    """Learned keys and values before (2, B, H, T, D). .params: {"prefix": (2, H, P, D)}."""

    name, batch_axis = "prefix", 1

    def __init__(self, length, n_head, head_size, seed=0, dtype=np.float32):
        super().__init__(length, head_size, seed, dtype, (2, n_head))


# (IA)³ (Liu et al. 2022): y = x l on keys, values and the MLP's hidden units, l = 1 at first, so
# dx = dy l. One l serves many entries, so dl sums dy x over every axis along which l is repeated.
# BitFit (Ben Zaken et al. 2021) needs no plug: it trains the biases that are there.
class IA3:
    """Learned scales on x, broadcast from `shape`. .params: {"l": shape}."""

    def __init__(self, shape, dtype=np.float32):
        self.params = {"l": np.ones(shape, dtype)}

    def forward(self, x):
        return x * self.params["l"], x

    def backward(self, dy, x):
        l = self.params["l"]
        check_shape(dy, x.shape, "dy")
        repeated = tuple(i for i in range(-dy.ndim, 0) if -i > l.ndim or l.shape[i] == 1)
        return dy * l, {"l": (dy * x).sum(repeated).reshape(l.shape)}


# %% 7. Files that other programs read
# safetensors: 8 bytes of header length (little-endian), a header in JSON {name: {dtype, shape,
# data_offsets}}, the arrays' raw bytes. Reading one runs no code, unlike a pickle, but every number
# in the header must be checked. PEFT puts adapter_config.json beside it. torch's linear layers keep
# (out, in), so PEFT's lora_A.weight (r, in) and lora_B.weight (out, r) are our A and B transposed.
# The matrices they change are (out, in) in Llama; GPT-2's are (in, out) even there, which the
# config calls fan_in_fan_out, but the name of the matrix says it as well.
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "|u1"
}  # fmt: skip
PEFT_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector"}
PEFT_ROOT = "base_model.model."
GPT2_MATRICES = ("c_attn", "c_proj", "c_fc")  # (in, out)
LLAMA_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BROKEN = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


def write_file(path, pieces):
    """Write pieces of bytes under a temporary name, then move into place: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_safetensors(path, tensors):
    """Write {name: array} to path. Raises ValueError for a dtype not in DTYPES."""
    codes = {np.dtype(numpy_name): code for code, numpy_name in DTYPES.items() if code != "BF16"}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, array in tensors.items():
        if array.dtype not in codes:
            raise ValueError(
                f"{name} is {array.dtype}; expected one of {', '.join(codes.values())}"
            )
        start, end = end, end + array.nbytes
        header[name] = {"dtype": codes[array.dtype], "shape": array.shape}
        header[name]["data_offsets"] = (start, end)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    arrays = (array.tobytes() for array in tensors.values())  # one at a time
    write_file(Path(path), itertools.chain([len(text).to_bytes(8, "little"), text], arrays))


def load_safetensors(path):
    """{name: array}, BF16 as float32. ValueError for a file cut off or in conflict with itself."""
    tensors, used = {}, 0
    try:
        data = np.memmap(path, mode="r")  # from the disk as it is needed
        length = int.from_bytes(bytes(data[:8]), "little")
        if length > len(data) - 8:
            raise ValueError(f"a header of {length} bytes in a file of {len(data)}")
        header, body = json.loads(bytes(data[8 : 8 + length])), data[8 + length :]
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape = np.dtype(DTYPES[entry["dtype"]]), entry["shape"]
            start, end = entry["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in (*shape, start, end))
            fits = start == used and end - start == math.prod(shape) * dtype.itemsize
            if not whole or not fits or end > len(body):
                raise ValueError(f"{name}: {entry} does not fit {len(body)} bytes from {used} on")
            array = np.frombuffer(body[start:end], dtype).reshape(shape).copy()
            if entry["dtype"] == "BF16":  # the upper half of a float32
                array = (array.astype("<u4") << 16).view("<f4")
            tensors[name] = array
            used = end
        if used != len(body):
            raise ValueError(f"{len(body)} bytes of arrays, but the header describes {used}")
    except BROKEN as error:
        told = f"{error!r:.200}"
        raise ValueError(f"{path} is not a safetensors file this stage reads: {told}") from None
    return tensors


def as_in_out(params, name):
    """A view of the matrix `name` as (in, out): Llama's are stored the other way round."""
    return params[name].T if name.removesuffix(".weight").endswith(LLAMA_MATRICES) else params[name]


def save_adapter(directory, adapters, base=None):
    """Write {weight name: LoRALinear or DoRALinear}, all of one kind, as PEFT's two files, and into
    its configuration the name or directory of their base."""
    plugs = adapters.values()
    kinds = {isinstance(a, LoRALinear) and (type(a), a.rank, a.alpha, a.rslora) for a in plugs}
    if len(kinds) != 1 or not all(kinds):
        raise ValueError(f"expected LoRA layers of one kind, rank and alpha to save, not {kinds}")
    ((kind, rank, alpha, rslora),) = kinds
    modules = sorted(name.removesuffix(".weight") for name in adapters)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "target_modules": modules, "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0,
        "use_rslora": rslora, "use_dora": kind is DoRALinear, "bias": "none",
        "fan_in_fan_out": modules[0].endswith(GPT2_MATRICES), "inference_mode": True,
    }  # fmt: skip
    tensors = {}
    for name, layer in adapters.items():
        start = PEFT_ROOT + name.removesuffix("weight")
        tensors |= {start + PEFT_NAMES[key]: p.T for key, p in layer.params.items()}
    save_safetensors(Path(directory) / "adapter_model.safetensors", tensors)
    write_file(Path(directory) / "adapter_config.json", [json.dumps(config, indent=2).encode()])


# What adapter_config.json may say: keys that load_adapter reads, values that it can follow, and
# keys that change nothing once the adapter is trained. Any other key is refused unless it is null,
# false or empty. (PiSSA, OLoRA, CorDA and LoftQ, values of init_lora_weights, move the base before
# the training; over the base as it was, such an adapter would be wrong.)
CONFIG_READ = "r lora_alpha rank_pattern alpha_pattern target_modules".split()
CONFIG_VALUES = {
    "peft_type": ["LORA"], "bias": ["none"], "use_rslora": [True, False], "use_dora": [True, False],
    "fan_in_fan_out": [True, False], "init_lora_weights": [True, False, "gaussian", "eva"],
}  # fmt: skip
CONFIG_IDLE = """task_type auto_mapping peft_version base_model_name_or_path revision inference_mode
    lora_dropout megatron_core qalora_group_size eva_config""".split()


def read_config(path):
    """PEFT's configuration of a LoRA; ValueError names the first key that cannot be followed."""
    config = {"peft_type": None, "rank_pattern": {}, "alpha_pattern": {}, "target_modules": None}
    try:
        config |= json.loads(path.read_bytes())
        numbers = [("r", config["r"]), ("lora_alpha", config["lora_alpha"])]
        numbers += [*config["rank_pattern"].items(), *config["alpha_pattern"].items()]
    except BROKEN as error:
        raise ValueError(f"{path}: expected PEFT's LoRA configuration ({error!r:.200})") from None
    for key, value in config.items():
        handled = [json.dumps(v) for v in CONFIG_VALUES.get(key, [None, False, "", [], {}])]
        if key not in CONFIG_READ + CONFIG_IDLE and json.dumps(value) not in handled:
            raise ValueError(f"{path}: {key} is {value!r:.60}; handled: {', '.join(handled)}")
    for key, number in numbers:  # to PEFT, the keys of patterns are regular expressions
        if not key.replace(".", "").replace("_", "").isalnum():
            raise ValueError(f"{path}: the pattern {key!r:.60}; handled: names of modules")
        if type(number) not in (int, float) or not abs(number) < 1e30:
            raise ValueError(f"{path}: {key} is {number!r:.60}; expected a finite number")
    names = config["target_modules"]
    if names not in (None, "all-linear") and not isinstance(names, list):
        raise ValueError(f"{path}: target_modules is {names!r:.60}; handled: a list of names")
    return config


def first_match(names, module):
    """The first of names that the module's name is, or ends in after a dot, as in PEFT; or None."""
    return next((name for name in names if f".{module}".endswith(f".{name}")), None)


def load_adapter(directory, params):
    """{weight name: layer} over params, from PEFT's two files; ValueError if they do not fit.

    Nothing is allocated for a rank before the arrays in the file are known to have it."""
    path = Path(directory) / "adapter_config.json"
    config, adapters = read_config(path), {}
    names, ranks = config["target_modules"], config["rank_pattern"]
    alphas = config["alpha_pattern"]
    layer = DoRALinear if config.get("use_dora") else LoRALinear
    tensors = load_safetensors(path.with_name("adapter_model.safetensors"))
    modules = sorted({n.removeprefix(PEFT_ROOT).rsplit(".lora_", 1)[0] for n in tensors})
    if not modules:
        raise ValueError(f"{path.parent}: adapter_model.safetensors holds no arrays")
    for module in modules:
        if f"{module}.weight" not in params:
            raise ValueError(f"adapter for {module!r}, which this model does not have")
        named = not isinstance(names, list) or first_match(names, module)
        if not named or not module.endswith(GPT2_MATRICES + LLAMA_MATRICES):
            raise ValueError(
                f"adapter for {module!r}: not in target_modules, or no matrix of a block"
            )
        W = as_in_out(params, f"{module}.weight")
        rank = ranks.get(first_match(ranks, module), config["r"])
        alpha = alphas.get(first_match(alphas, module), config["lora_alpha"])
        shapes, found = {"A": (rank, W.shape[0]), "B": (W.shape[1], rank)}, {}
        if layer is DoRALinear:
            shapes["m"] = W.shape[1:]
        for key, shape in shapes.items():
            label = f"{module}.{PEFT_NAMES[key]}"
            found[key] = array = tensors.pop(PEFT_ROOT + label, np.zeros(0))
            if array.shape != shape or array.dtype.kind != "f":
                raise ValueError(f"{label}: expected {shape}, found {array.shape} {array.dtype}")
            if not np.isfinite(array).all():
                raise ValueError(f"{label} holds a number that is not finite")
        plug = layer(W, rank, alpha, rslora=config.get("use_rslora", False))
        for key, p in plug.params.items():
            p[...] = found[key].T
        adapters[f"{module}.weight"] = plug
    if tensors:
        raise ValueError(f"{path.parent}: unexpected arrays {sorted(tensors)[:3]}")
    return adapters


# %% 8. Training and scoring
# AdamW (Loshchilov & Hutter 2019): m and v are running means of g and g², divided by 1 - βᵗ because
# they start at 0; a number moves by the rate times m̂/√v̂, which is about ±1. The rate climbs for a
# tenth of the steps, then falls along a cosine to a tenth; gradients longer than 1 are cut to 1.
# Matrices of the base decay by 0.1 a unit of rate, plugs do not.
def fit(params, ids, n_head, steps, learning_rate, rng, adapters=None, trainable=(), batch=8):
    """Train in place base parameters `trainable` and every plug on windows of ids (N,); seconds.

    ValueError, naming the step, once the loss or a gradient is not finite."""
    adapters, block = adapters or {}, len(params["transformer.wpe.weight"])
    ids = check_ids(ids, "ids", len(params["transformer.wte.weight"]))
    steps, batch = check_count(steps, "steps"), check_count(batch, "batch")
    check_number(learning_rate, "learning_rate")
    check(len(ids) > block, f"expected more than {block} characters to train on, not {len(ids)}")
    tuned = {name: params[name] for name in trainable}
    tuned |= {f"{at}:{k}": p for at, plug in adapters.items() for k, p in plug.params.items()}
    means = {k: (np.zeros_like(p), np.zeros_like(p)) for k, p in tuned.items()}
    began = time.perf_counter()
    for t in range(1, steps + 1):
        at = rng.integers(0, len(ids) - block, batch)[:, None] + np.arange(block)  # (B, T)
        logits, cache = gpt_forward(params, ids[at], n_head, adapters)
        loss, dlogits = cross_entropy(logits, ids[at + 1])
        grads = gpt_backward(dlogits, cache, trainable)
        norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
        found = f"the loss is {loss:.4g}, the gradient's norm {norm:.4g}"
        finite = math.isfinite(loss) and math.isfinite(norm)
        check(finite, f"step {t}: {found}; try a lower learning_rate")
        rate = learning_rate * min(1, t / max(1, steps // 10))
        rate *= 0.55 + 0.45 * math.cos(math.pi * t / steps)
        for name, p in tuned.items():
            (m, v), g = means[name], grads[name] * min(1, 1 / (norm + 1e-6))
            m += 0.1 * (g - m)
            v += 0.01 * (g * g - v)
            if name in params and p.ndim == 2:
                p *= 1 - 0.1 * rate
            p -= rate / (1 - 0.9**t) * m / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        if t % 20 == 0 and sys.stdout.isatty():  # overwritten by whatever is printed next
            print(f"{f'step {t}/{steps}, loss {loss:.3f} nats':<78}", end="\r", flush=True)
    return time.perf_counter() - began


def score(params, ids, first, n_head, adapters=None):
    """Mean nats of ids[first:], each predicted once, from at least half a window of context."""
    block = len(params["transformer.wpe.weight"])
    ids = check_ids(ids, "ids", len(params["transformer.wte.weight"]))
    first = check_count(first, "first")
    ok = block <= first < len(ids)
    check(ok, f"{len(ids)} characters, {first} to train on, are too few for {block}")
    total, stride = 0.0, max(1, block // 2)
    starts = np.arange(first, len(ids), stride)
    for some in np.array_split(starts, -(-len(starts) // 64)):
        ends = np.minimum(some + stride, len(ids))  # row by row, predict ids[some:ends]
        at = ends[:, None] + np.arange(-block, 0)  # (B, T) places of the targets
        targets = np.where(at >= some[:, None], ids[at], -1)
        logits, _ = gpt_forward(params, ids[at - 1], n_head, adapters)
        total += cross_entropy(logits, targets)[0] * (targets >= 0).sum()
    return total / (len(ids) - first)


# %% Demonstration
# The learning rate of each method is the best of the three or four we tried, judged on these same
# verses, so every row of the report is slightly optimistic.
METHODS = {
    "full fine-tuning": 2e-3, "LoRA": 1e-2, "rsLoRA": 5e-3, "DoRA": 1e-2, "LoRA on NF4 base": 1e-2,
    "Houlsby adapters": 2e-2, "prefix tuning": 6e-2, "prompt tuning": 6e-2, "BitFit": 3e-2,
    "(IA)^3": 3e-2,
}  # fmt: skip


def prepare(method, params, n_head, text, rank, seed):
    """(params, adapters, trainable) ready for `fit`; what will be trained is copied first."""
    check(method in METHODS, f"method must be one of {', '.join(METHODS)}, not {method!r}")
    wte, adapters, trainable = params["transformer.wte.weight"], {}, []
    layers = [name.removesuffix(".ln_1.weight") for name in params if ".ln_1.w" in name]
    C = wte.shape[1]
    if "LoRA" in method or method == "DoRA":
        matrices = {n: p for n, p in params.items() if ".c_" in n and n.endswith("weight")}
        if "NF4" in method:
            params = params | {n: quantize_nf4(p) for n, p in matrices.items()}
        layer = DoRALinear if method == "DoRA" else LoRALinear
        adapters = apply_lora(params, matrices, rank, 8, seed, method == "rsLoRA", layer)
    elif method == "Houlsby adapters":
        places = [f"{h}.{half}.adapter" for h in layers for half in ("attn", "mlp")]
        adapters = {place: Adapter(C, 2 * rank, [seed, i]) for i, place in enumerate(places)}
    elif method == "prefix tuning":
        _, cache = gpt_forward(params, text[None, :8], n_head)
        for h in layers:
            adapters[f"{h}.attn.kv"] = prefix = PrefixTuning(8, n_head, C // n_head)
            prefix.params["prefix"][...] = np.concatenate(cache[f"{h}.attn"][1:3])
    elif method == "prompt tuning":
        adapters["transformer.prompt"] = prompt = PromptTuning(8, C)
        prompt.params["prompt"][...] = wte[text[:8]]
    elif method == "(IA)^3":
        adapters = {f"{h}.attn.kv": IA3((2, 1, n_head, 1, C // n_head)) for h in layers}
        adapters |= {f"{h}.mlp.act": IA3((4 * C,)) for h in layers}
    else:
        trainable = [n for n in params if method == "full fine-tuning" or n.endswith("bias")]
    return params | {n: params[n].copy() for n in trainable}, adapters, trainable


def report(fast, seed):
    """Pre-train, adapt in every way, print."""
    L, C, H, T, rank = (1, 16, 2, 16, 2) if fast else (1, 64, 4, 32, 4)
    steps, adapt_steps = (20, 2) if fast else (1400, 150)
    data = Path(__file__).resolve().parent / "data"
    texts = [(data / f"{name}.txt").read_text("utf-8") for name in ("stories", "verses", "names")]
    letters = "".join(sorted(set(texts[0])))
    corpora = [(np.array([letters.index(c) for c in t]), int(0.9 * len(t))) for t in texts]
    if fast:  # score a few hundred characters only
        corpora = [(ids[max(0, n - 4000) : n + 200], min(n, 4000)) for ids, n in corpora]
    stories, verses, names = (ids[:n] for ids, n in corpora)  # to train on
    params, rng = init_params(len(letters), T, L, C, seed), np.random.default_rng([seed, 0])
    size = sum(p.size for p in params.values())

    def bits(params, adapters=None, which=(0, 1)):
        """Held-out bits a character on stories, verses, names."""
        return [score(params, *corpora[i], H, adapters) / math.log(2) for i in which]

    def adapt(method, rank=rank, ids=verses):
        """params, adapters, numbers trained, bits on verses before, seconds."""
        tuned, plugs, trainable = prepare(method, params, H, ids, rank, seed)
        count = sum(tuned[n].size for n in trainable)
        count += sum(p.size for plug in plugs.values() for p in plug.params.values())
        (before,), rng = bits(tuned, plugs, [1]), np.random.default_rng([seed, 1])
        seconds = fit(tuned, ids, H, adapt_steps, METHODS[method], rng, plugs, trainable)
        return tuned, plugs, count, before, seconds

    seconds = fit(params, stories, H, steps, 8e-3, rng, {}, list(params), 16)
    base = bits(params)
    print(f"Base: {L} layer, {C} channels, {H} heads, context {T}, {size:,} parameters;")
    print(f"{steps} steps on stories took {seconds:.1f}s, while AdamW held {16 * size:,} bytes.")

    print(f"\nThe base adapted to verses, {adapt_steps} steps each; held-out bits/char")
    print(f"{'':<45}verses  verses  stories")
    print("method             trained   share    bytes  before   after    after  seconds")
    print(f"{'the base itself':<43}{base[1]:>8.3f}{'':>8}{base[0]:>9.3f}")
    results = {}
    for method in METHODS:
        *results[method], count, before, seconds = adapt(method)
        kept, after = bits(*results[method])
        row = f"{method:<18}{count:>8,}{count / size:>8.1%}{4 * count:>9,}{before:>8.3f}"
        print(f"{row}{after:>8.3f}{kept:>9.3f}{seconds:>9.1f}")
    print("Forgetting is the rise of `stories after` over the base's own number.")

    full, lora = results["full fine-tuning"][0], results["LoRA"][1]
    updates = {n: full[n] - params[n] for n in lora}
    print(f"\nIs the full update low-rank? {len(updates)} matrices cut to rank k, rest as tuned")
    print("    k   kept of ΔW   of random noise   verses")
    for k in (0, 1, 2, 4, 8, 16, 32, 64):
        cuts = {n: low_rank(d, k) for n, d in updates.items()}
        noise = np.mean([low_rank(rng.normal(size=d.shape), k)[1] for d in updates.values()])
        (loss,) = bits(full | {n: params[n] + cut for n, (cut, _) in cuts.items()}, None, [1])
        print(f"{k:>5}{np.mean([c[1] for c in cuts.values()]):>13.1%}{noise:>18.1%}{loss:>9.3f}")

    ranks = (1, rank, 4 * rank)
    print(f"\n{'verses after at rank':<22}" + "".join(f"{r:>8}" for r in ranks) + "   (α = 8)")
    for method, scale in (("LoRA", "α/r"), ("rsLoRA", "α/√r")):
        fits = [results[method] if r == rank else adapt(method, r)[:2] for r in ranks]
        losses = "".join(f"{bits(*tuned, [1])[0]:>8.3f}" for tuned in fits)
        print(f"{method + ', scale ' + scale:<22}{losses}")

    W = np.concatenate([params[n].reshape(-1, 64) for n in lora])  # blocks
    q, step = quantize_nf4(W), abs(W).max(-1, keepdims=True) / 7
    errors = dequantize_nf4(q) - W, np.round(W / step) * step - W
    nf4, even = (np.linalg.norm(e) / np.linalg.norm(W) for e in errors)
    print(f"\nFour bits: error of NF4 {nf4:.2%}, of 15 even steps {even:.2%} of the weights' norm;")
    print(f"the matrices take {q.packed.nbytes + q.absmax.nbytes:,} bytes instead of {W.nbytes:,}.")

    with tempfile.TemporaryDirectory() as directory:
        save_adapter(directory, lora)
        stored = sum(f.stat().st_size for f in Path(directory).iterdir())
        loaded = load_adapter(directory, params)
    merged = params | {n: a.merge() for n, a in lora.items()}
    [a.unmerge() for a in lora.values()]
    versions = (params, lora), (params, loaded), (merged, {})
    apart, again, merged = (gpt_forward(p, verses[None, -T:], H, a)[0] for p, a in versions)
    same = "equal bit for bit" if np.array_equal(apart, again) else "DIFFERENT"
    print(f"Merged and plugged in, logits differ by at most {abs(apart - merged).max():.1e};")
    print(f"saved as {stored:,} bytes and read back, they are {same}.")

    print("\nOne base, adapters swapped: held-out bits/char")
    print("adapter   stories  verses   names")
    plugged = {"none": {}, "verses": loaded, "names": adapt("LoRA", ids=names)[1]}
    for name, plugs in plugged.items():
        print(f"{name:<9}" + "".join(f"{b:>8.3f}" for b in bits(params, plugs, (0, 1, 2))))
    nats = base[0] * math.log(2)
    print(f"\nheld-out: {nats:.3f} nats/char | {base[0]:.3f} bits/char | perplexity", end=" ")
    print(f"{math.exp(nats):.2f}   (stage 9, transformer before adapting, context {T})")


# %% Your own model
# The commands `adapt` and `merge` work on checkpoints that the capstone trained or transformers
# wrote. The capstone opens them and computes the loss and G = ∂L/∂W for every matrix. No more is
# needed: LoRA has dA = s G Bᵀ and dB = s AᵀG, and DoRA's dV follows from G, too. Only the plugs'
# numbers have running means in the optimizer and are saved; the time for G is not spared here.
def plug_gradients(layer, G):
    """Gradients named like layer.params from G (in, out), the gradient of its merged matrix."""
    A, B, s = layer.params["A"], layer.params["B"], layer.scale
    if not isinstance(layer, DoRALinear):
        return {"A": s * (G @ B.T), "B": s * (A.T @ G)}
    V = layer.base + (s * A) @ B
    n = np.linalg.norm(V, axis=0)
    g, dg = layer.params["m"] / n, (G * V).sum(0)
    dV = G * g - V * (dg * g / (n * n))
    return {"A": s * (dV @ B.T), "B": s * (A.T @ dV), "m": dg / n}


class Plugged:
    """A model with plugs as the capstone's training step sees it: .flat holds the plugs' numbers.

    write() puts the merged matrices into the model."""

    def __init__(self, model, plugs):
        self.model, self.plugs, self.decayed, start = model, plugs, 0, 0
        places = [(plug.params, key) for plug in plugs.values() for key in plug.params]
        self.flat = np.concatenate([params[key].ravel() for params, key in places])
        for params, key in places:  # each becomes a view, to be moved with .flat
            end = start + params[key].size
            params[key], start = self.flat[start:end].reshape(params[key].shape), end

    def loss_and_grads(self, idx, targets, rngs=None, scale=1.0, grads=None):
        """The loss, and an object whose .flat is its gradient in .flat."""
        loss, found = self.model.loss_and_grads(idx, targets, rngs, scale)
        slopes = [plug_gradients(p, as_in_out(found, name)) for name, p in self.plugs.items()]
        flat = np.concatenate([dp.ravel() for slope in slopes for dp in slope.values()])
        return loss, namedtuple("Gradient", "flat")(flat)

    def write(self):
        """Put the merged matrices into the model."""
        for name, plug in self.plugs.items():
            as_in_out(self.model.params, name)[...] = getattr(plug, "combined", plug.merge)()


def open_checkpoint(args):
    """capstone_gpt, the model in args.base, its tokenizer, the names of its blocks' matrices."""
    try:
        import capstone_gpt as gpt
    except ImportError:
        raise ValueError("adapt and merge need capstone_gpt.py beside this file") from None
    model, tokenizer = gpt.load(gpt.checkpoint_of(args.base))
    kinds = tuple(f"{kind}.weight" for kind in GPT2_MATRICES + LLAMA_MATRICES)
    matrices = [name for name in model.params if name.endswith(kinds)]
    for name in matrices if args.nf4 else ():
        model.params[name][...] = dense(quantize_nf4(model.params[name]))
    return gpt, model, tokenizer, matrices


@contextlib.contextmanager
def new_directory(out):
    """Within `with`, a directory that becomes `out` at its end, or vanishes if something fails."""
    out = Path(out)
    if out.exists():
        raise ValueError(f"--out {out} exists already; expected the name of a new directory")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        part = Path(folder) / out.name
        part.mkdir()
        yield part
        os.replace(part, out)


# An example is (idx, targets, None), (1, T) each, as the capstone's training step takes it: in a
# text every token is a target, in a .jsonl file the response and its end are, for -1 is ignored.
def example(ids, first=1):
    """The example that predicts ids[first:]."""
    targets = np.array(ids[1:])
    targets[: first - 1] = -1
    return np.array(ids[:-1])[None], targets[None], None


def read_answers(path, text, tokenizer, end, longest):
    """Examples from lines {"prompt": ..., "response": ...}; ValueError names the damaged lines."""
    examples, damaged, long = [], [], 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            prompt, response = entry["prompt"], entry["response"]
            if not isinstance(prompt, str) or not isinstance(response, str):
                raise TypeError("prompt and response must be texts")
            start = [*tokenizer.encode(prompt, add_special_tokens=True)]
            ids = [*start, *tokenizer.encode(response), *end]
            if len(ids) > longest:
                long += 1
            else:
                examples.append(example(ids, max(1, len(start))))
        except BROKEN as error:
            damaged.append(f"line {number} ({error!r:.100})")
    if damaged:
        found = f"{len(damaged)} damaged lines, such as {', '.join(damaged[:4])}"
        raise ValueError(f'{path}: expected {{"prompt": "...", "response": "..."}} a line; {found}')
    say(f"{long} examples are left out: they are longer than {longest} tokens.")
    return examples


def read_examples(path, gpt, model, tokenizer):
    """(examples to learn from, the last tenth, held out); ValueError if either would be empty."""
    text, T = "".join(gpt.stream_text(path)), model.config.block_size
    if str(path).endswith(".jsonl"):
        _, ends = gpt.bos_and_eos(model)
        what = f"the token {ends[0]}" if ends else "a blank line, as the model has no end token"
        say(f"Every response ends with {what}.")
        end = ends[:1] or tokenizer.encode("\n\n")
        found = read_answers(path, text, tokenizer, end, T + 1)
        cut = min(len(found) - 1, math.ceil(0.9 * len(found)))
        parts = found[:cut], found[cut:]
    else:
        cut = int(0.9 * len(text))
        halves = [tokenizer.encode(half) for half in (text[:cut], text[cut:])]
        parts = [[example(ids[i : i + T + 1]) for i in range(0, len(ids) - 1, T)] for ids in halves]
    if not all(parts):
        raise ValueError(f"{path}: expected at least two examples, one of them to be held out")
    return parts


def say(line):
    """Print a line. Where nobody reads any more, training goes on and saves what it has learned."""
    try:
        print(line, flush=True)
    except OSError:
        drop_unwritten()


def adapt_command(args):
    """Adapt a checkpoint to a text or to answers; save PEFT's two files or, with full, a model."""
    with new_directory(args.out) as part:
        gpt, model, tokenizer, matrices = open_checkpoint(args)
        train, held = read_examples(args.data, gpt, model, tokenizer)
        tuned, optimizer, began = model, gpt.AdamW(model.params), time.perf_counter()
        if args.method != "full":
            bases = {name: as_in_out(model.params, name).copy() for name in matrices}
            narrowest = min(min(W.shape) for W in bases.values())
            if args.rank > narrowest:
                raise ValueError(f"--rank must be at most {narrowest} here, not {args.rank}")
            layer = DoRALinear if args.method == "dora" else LoRALinear
            rslora = args.method == "rslora"
            plugs = apply_lora(bases, matrices, args.rank, args.alpha, args.seed, rslora, layer)
            tuned = Plugged(model, plugs)
            optimizer = gpt.AdamW(tuned)

        def held_out():
            counts = [(targets >= 0).sum() for _, targets, _ in held]
            return np.average([model.loss(*example) for example in held], weights=counts)

        before, rng = held_out(), np.random.default_rng(args.seed)
        say(f"{len(train)} examples to learn from, {len(held)} held out. {args.method} trains")
        say(f"{tuned.flat.size:,} numbers, the model has {model.flat.size:,}.")
        say(f"held out before: {before:.3f} nats a token")
        for step in range(args.steps):
            batch = [train[i] for i in rng.integers(0, len(train), args.batch_size)]
            rate = args.learning_rate
            rate = gpt.warmup_cosine(step, rate, rate / 10, args.steps // 10, args.steps)
            loss, _ = gpt.training_step(tuned, optimizer, batch, rate)
            if tuned is not model:
                tuned.write()
            if (step + 1) % max(1, args.steps // 10) == 0:
                seconds = time.perf_counter() - began
                say(f"step {step + 1} of {args.steps}: {loss:.3f} nats a token, {seconds:.0f} s")
        after = held_out()
        say(f"held out after: {after:.3f} nats a token")
        if not after < before:
            say("That is no better: try fewer steps, another rate, or more examples.")
        if tuned is model:
            model.save_pretrained(part)
        else:
            save_adapter(part, plugs, args.base)
    say(f"Saved in {args.out}.")


def merge_command(args):
    """Fold an adapter into its base: a checkpoint that the capstone and transformers open."""
    with new_directory(args.out) as part:
        _, model, _, _ = open_checkpoint(args)
        Plugged(model, load_adapter(args.adapter, model.params)).write()
        if not np.isfinite(model.flat).all():
            raise ValueError(f"{args.adapter}: merged, it makes weights that are not finite")
        model.save_pretrained(part)
    say(f"Saved in {args.out}.")


def drop_unwritten():
    """Forget what stdout cannot take, so that Python's own flush at the end does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:  # a closed pipe, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, whatever it is that they quote."""

    def error(self, message):
        line = " ".join(f"stage09_lora.py: error: {message}".split())
        self.exit(2, f"{line:.400}\n")


def build_parser():
    """The command line: without a command the report, else adapt or merge."""
    parser = Parser("stage09_lora.py", description="Adapt a GPT to a new voice in ten ways.")
    parser.set_defaults(run=lambda args: report(args.fast, args.seed))
    parser.add_argument("--fast", action="store_true", help="a smoke run in miniature")
    parser.add_argument("--seed", type=int, default=0, help="fixes every random choice")
    commands = parser.add_subparsers(title="commands for a model of your own")

    def command(name, run, text):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        base = "a checkpoint of the capstone or of transformers (GPT-2 or Llama)"
        sub.add_argument("--base", required=True, help=base)
        sub.add_argument("--out", required=True, help="a new directory for the result")
        sub.add_argument("--nf4", action="store_true", help="first round the base to four bits")
        return sub.add_argument

    add = command("merge", merge_command, "fold an adapter into its base")
    add("--adapter", required=True, help="a directory with PEFT's two files")
    add = command("adapt", adapt_command, "fine-tune on a text, or on prompts and responses")
    add("--data", required=True, help="a text, or .jsonl: a prompt and a response a line")
    add("--method", choices=["lora", "rslora", "dora", "full"], default="lora", help="[lora]")
    add("--rank", type=int, default=8, help="the columns of A [8]")
    add("--alpha", type=float, default=16.0, help="LoRA's scale times the rank [16]")
    add("--steps", type=int, default=200, help="updates [200]")
    add("--batch_size", type=int, default=8, help="examples an update [8]")
    add("--learning_rate", type=float, default=1e-3, help="the highest; of full, try 3e-5 [1e-3]")
    add("--seed", type=int, default=0, help="fixes every random choice [0]")
    return parser


def main(argv=None):
    """The command line; see --help."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it was closed before the start
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        for name, value in vars(args).items():
            lowest = 0 if name == "seed" else 1e-30
            if type(value) in (int, float) and not lowest <= value < 2**63:
                limits = f"at least {lowest:g} and below 2**63"
                raise ValueError(f"--{name} must be {limits}, not {value}")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named
            args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever was reading has seen enough
        drop_unwritten()
    except KeyboardInterrupt:
        drop_unwritten()
        parser.exit(130, "\n")
    except (OSError, ValueError, FloatingPointError, MemoryError) as error:
        advice = "; lower --learning_rate" if isinstance(error, FloatingPointError) else ""
        drop_unwritten()
        parser.error(f"{error}{advice}")


# %% Common mistakes
# 1. B not zero at first. Symptom: the loss is worse than the base's before any training.
#    A zero as well. Symptom: every gradient is 0 for ever. `LoRALinear.__init__` does neither.
# 2. The scale forgotten in the backward. Symptom: it trains, but central differences disagree and
#    the best rate changes with alpha. `lora_backward` has it once in g and once in dB.
# 3. Merging into the shared base. Symptom: the next adapter speaks with the last one's accent.
#    `LoRALinear.merge` makes a new matrix.
# 4. Training the base along. Symptom: a saved adapter is useless over a fresh base. `fit` moves
#    only what is in `tuned`.
# 5. A file's matrices transposed. Symptom: shapes that do not fit or, if square, nonsense without
#    an error. `save_adapter` writes p.T; benchmarks/check_peft.py asks PEFT.
# 6. A prefix behind the causal mask. Symptom: early queries ignore it. `attention_forward` shifts
#    its triangle by Tk - Tq.

# %% Exercises
#  1. Read: which arrays does `lora_backward` use that `linear_backward` does not?
#  2. At which rank does LoRA on a (64, 256) matrix train as many numbers as the matrix has?
#  3. Predict, then run: B random and A zero. What do the first two steps change?
#  4. Derive dA = s G Bᵀ and dB = s AᵀG from L(W + sAB) alone, without x.
#  5. LoRA on c_attn alone, with as many numbers as on all four at rank 4: which is better?
#  6. LoRA+ (Hayou et al. 2024) gives B a larger rate than A. Find the best ratio here.
#  7. Hold n constant in DoRA's backward, as the paper does. Measure loss and seconds.
#  8. Quantise absmax too ("double quantisation", Dettmers et al. 2023). Bits saved, error added?
#  9. Merge the verses and the names update into one base (Ilharco et al. 2022). Who speaks?
# 10. Mix a tenth of stories into every batch of verses. How much forgetting does that undo?
# 11. Start A and B from W's first r singular vectors, freeze the rest (PiSSA, Meng et al. 2024).
# 12. Research: share out a budget of ranks among the matrices by their spectra (AdaLoRA, Zhang et
#     al. 2023). Does it pay at this size, and how would you know before training?

# %% Where this leads
# An adapter teaches a model a text's manner; nobody has said yet which of two answers is *better*.
# Stage 10 learns from such preferences. LoRA over a four-bit base is how most open models are tuned
# today, and a server keeps one base in memory with hundreds of adapters at hand.

if __name__ == "__main__":
    main()
