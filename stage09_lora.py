# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 9: adapt. How does a trained model learn something new without being trained again?

The question: a model that tells stories should now write verse. Full fine-tuning moves every
weight; AdamW then holds four numbers for each, every new voice is a full copy of the model, and
what it knew wears away. Must all the weights move?

The answer: no. Freeze the model and train a small layer plugged into it. The best known plug is
LoRA: the update of a matrix is a product of two thin ones, ΔW = (α/r) A B. This file derives it
and its relatives, plugs each into one small GPT (whose backward is written by hand below), and
measures what each costs, what it learns, and what it makes the model forget.

The map:  1 a small GPT with sockets      2 what full fine-tuning costs     3 LoRA and rsLoRA
          4 DoRA     5 a base in 4 bits   6 adapters, prefixes, prompts, scales
          7 files    8 training           then the demonstration, common mistakes, exercises

    python stage09_lora.py                  pre-train on stories, adapt to verses in ten ways
    python stage09_lora.py --fast           the same in miniature, about two seconds
    python stage09_lora.py --voice my.txt   adapt to a text of your own
    python stage09_lora.py --out DIR        keep base and adapter as transformers and PEFT read them

Papers: Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP; Li & Liang 2021,
Prefix- Tuning; Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning; Hu et
al. 2021, LoRA; Ben Zaken et al. 2021, BitFit; Liu et al. 2022, Few-Shot Parameter-Efficient
Fine-Tuning (IA³); Dettmers et al. 2023, QLoRA; Kalajdzievski 2023, rank-stabilized LoRA; Liu et
al. 2024, DoRA."""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent


# %% 1. A small GPT with sockets
# Shapes: B sequences, T tokens, C channels, H heads of size D, V vocabulary, r rank. A layer is a
# pair: the forward returns its output and a cache, the backward turns dy = ∂L/∂y into dx = ∂L/∂x
# and the gradients of its parameters by the chain rule, ∂L/∂xᵢ = Σⱼ ∂L/∂yⱼ · ∂yⱼ/∂xᵢ.
def rows(x):
    """x (..., C) as a matrix of rows (N, C)."""
    return x.reshape(-1, x.shape[-1])


def check_positive_int(value, name):
    """ValueError unless value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def dense(W):
    """W itself, or its dequantised copy if it is kept in four bits (section 5)."""
    return dequantize_nf4(W) if isinstance(W, NF4) else W


# Linear. yⱼ = Σᵢ xᵢWᵢⱼ. A change of xᵢ moves every yⱼ by Wᵢⱼ; a change of Wᵢⱼ moves yⱼ by xᵢ, in
# every row n:
#     ∂L/∂xᵢ = Σⱼ dyⱼWᵢⱼ  so  dx = dy Wᵀ,        ∂L/∂Wᵢⱼ = Σₙ xₙᵢ dyₙⱼ  so  dW = xᵀdy.
# A frozen W needs only the first, and that is the time every method below saves.
def linear_forward(x, W):
    """y = xW for x (..., I), W (I, O)."""
    return (rows(x) @ W).reshape(*x.shape[:-1], W.shape[1]), (x, W)


def linear_backward(dy, cache, need_dW=True):
    """dx (..., I), dW (I, O) or None."""
    x, W = cache
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
    a = dy * weight
    dx = r * (a - (a @ mean)[..., None] - xhat * (a * xhat @ mean)[..., None])
    return dx, rows(dy * xhat).sum(0), rows(dy).sum(0)


# GELU, GPT-2's tanh form: y = ½x(1 + t), t = tanh(u), u = c(x + kx³), and tanh' = 1 - t², so
#     y' = ½(1 + t) + ½x(1 - t²) c(1 + 3kx²).
def gelu_forward(x):
    """GELU of x; the cache is its slope. In pieces that stay in the processor's cache."""
    c, k = math.sqrt(2 / math.pi), 0.044715
    y, slope = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    for i in range(0, x.size, 16384):
        piece = slice(i, i + 16384)
        v = x.reshape(-1)[piece]
        vv = v * v
        t = np.tanh(v * (c + c * k * vv))
        half = 0.5 + 0.5 * t
        y.reshape(-1)[piece] = v * half
        slope.reshape(-1)[piece] = half + v * (0.5 - 0.5 * t * t) * (c + 3 * c * k * vv)
    return y, slope


# Attention. sᵢⱼ = qᵢ·kⱼ/√D where i may see j, P = softmax of each row of s, y = Pv. Backward: a
# product is linear in both factors, dv = Pᵀdy and dP = dy vᵀ; Pⱼ = e^sⱼ/Σₘe^sₘ has ∂Pⱼ/∂sₖ =
# Pⱼ(1[j=k] - Pₖ) by the quotient rule, so
#     dsₖ = Σⱼ dPⱼPⱼ(1[j=k] - Pₖ) = Pₖ(dPₖ - Σⱼ PⱼdPⱼ),
# and s = qkᵀ/√D gives dq = ds k/√D, dk = dsᵀq/√D. With more keys than queries (a prefix, section 6)
# the extra keys come first and everyone sees them.
def attention_forward(q, k, v):
    """Causal attention of q (B, H, Tq, D) over k, v (B, H, Tk, D), Tk ≥ Tq: y (B, H, Tq, D)."""
    Tq, Tk = q.shape[2], k.shape[2]
    s = q @ k.swapaxes(-1, -2)  # (B, H, Tq, Tk)
    s *= q.shape[-1] ** -0.5
    s += np.triu(np.full((Tq, Tk), -np.inf, s.dtype), 1 + Tk - Tq)
    s -= s.max(-1, keepdims=True)
    P = np.exp(s, out=s)
    P /= P.sum(-1, keepdims=True)
    return P @ v, (q, k, v, P)


def attention_backward(dy, cache):
    """dq (B, H, Tq, D), dk, dv (B, H, Tk, D)."""
    q, k, v, P = cache
    dP = dy @ v.swapaxes(-1, -2)
    dP -= np.vecdot(P, dP)[..., None]
    ds = np.multiply(dP, P, out=dP)
    ds *= q.shape[-1] ** -0.5
    return ds @ k, ds.swapaxes(-1, -2) @ q, P.swapaxes(-1, -2) @ dy


# Cross-entropy. A token's loss is -log p[target] = log Σₖ e^zₖ - z[target]; differentiating the two
# terms gives dzⱼ = e^zⱼ / Σₖ e^zₖ - 1[j = target] = pⱼ - 1[j = target], over the count for a mean.
def cross_entropy(logits, targets):
    """Mean loss in nats of targets (B, T), -1 to ignore, and dlogits (B, T, V)."""
    z, t = rows(logits), targets.ravel()
    kept = np.flatnonzero(t >= 0)
    z = z - z.max(-1, keepdims=True)  # changes no probability, and exp cannot overflow
    p = np.exp(z)
    total = p.sum(-1, keepdims=True)
    loss = float((np.log(total[kept, 0]) - z[kept, t[kept]]).mean())
    p /= total
    p[kept, t[kept]] -= 1
    p[t < 0] = 0
    return loss, (p / len(kept)).reshape(logits.shape)


# The model has GPT-2's shape and Hugging Face's names, matrices as (in, out). Its sockets: whatever
# sits in the dict `adapters` under the name of a place is run there. A plug has .params,
# .forward(x) -> (y, cache), .backward(dy, cache) -> (dx, grads), nothing else, so every method of
# this stage is a dict of plugs:
#
#     transformer.prompt                 on the embeddings (B, T, C)
#     transformer.h.N.attn.c_attn.weight (and the other three matrices) instead of x @ W
#     transformer.h.N.attn.kv            on keys and values (2, B, H, T, D)
#     transformer.h.N.attn.adapter       on what attention writes to the residual stream (B, T, C)
#     transformer.h.N.mlp.act            on the hidden units after GELU (B, T, 4C)
#     transformer.h.N.mlp.adapter        on what the MLP writes to the residual stream (B, T, C)

MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def init_params(vocab_size, block_size, n_layer, width, seed=0, dtype=np.float32):
    """A fresh gpt2-shaped model: N(0, 0.02²), c_proj divided by √(2L), biases zero."""
    rng, C = np.random.default_rng(seed), width
    names = {"transformer.wte.weight": (vocab_size, C), "transformer.wpe.weight": (block_size, C)}
    shapes = {"ln_1": (C,), "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C)}
    shapes |= {"ln_2": (C,), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
    for i in range(n_layer):
        for part, shape in shapes.items():
            names[f"transformer.h.{i}.{part}.weight"] = shape
            names[f"transformer.h.{i}.{part}.bias"] = shape[-1:]
    names |= {"transformer.ln_f.weight": (C,), "transformer.ln_f.bias": (C,)}
    params = {}
    for name, shape in names.items():
        std = 0.02 / math.sqrt(2 * n_layer) if "c_proj" in name else 0.02
        start = rng.normal(0, std, shape) if len(shape) == 2 else np.full(shape, "weight" in name)
        params[name] = start.astype(dtype)
    return params


def layers_of(params):
    """["transformer.h.0", "transformer.h.1", ...]."""
    return [f"transformer.h.{i}" for i in range(sum("ln_1.weight" in name for name in params))]


def block_matrices(params):
    """The names of the matrices inside the blocks."""
    return [n for n in params if n.startswith("transformer.h.") and len(params[n].shape) == 2]


def gpt_forward(params, idx, n_head, adapters=None):
    """Logits (B, T, V) for token ids idx (B, T), and a cache with an entry per place.

    adapters: {place: plug}, see above. Raises ValueError for ids that are not integers (B, T) in
    range, with T at most the number of positions, or an adapter at a place the model lacks.
    """
    adapters = adapters or {}
    wte, wpe = params["transformer.wte.weight"], params["transformer.wpe.weight"]
    idx = np.asarray(idx)
    if idx.ndim != 2 or idx.dtype.kind not in "iu" or not 1 <= idx.shape[1] <= len(wpe):
        shape = f"{idx.dtype} {idx.shape}"
        raise ValueError(f"idx must be integers (B, T), T in 1..{len(wpe)}, not {shape}")
    if idx.size and not 0 <= idx.min() <= idx.max() < len(wte):
        raise ValueError(f"idx must lie in 0..{len(wte) - 1}, not {idx.min()}..{idx.max()}")
    T, C = idx.shape[1], wte.shape[1]
    cache = {"model": (params, adapters, n_head, idx)}

    def run(place, forward, *inputs):
        y, cache[place] = forward(*inputs)
        return y

    def plug(place, x):
        return run(place, adapters[place].forward, x) if place in adapters else x

    def linear(name, x):
        W = f"{name}.weight"
        y = plug(W, x) if W in adapters else run(W, linear_forward, x, dense(params[W]))
        return y + params[f"{name}.bias"]

    def norm(name, x):
        return run(name, layernorm_forward, x, params[f"{name}.weight"], params[f"{name}.bias"])

    x = plug("transformer.prompt", wte[idx] + wpe[:T])  # (B, P+T, C), P prompt vectors if any
    for h in layers_of(params):
        qkv = linear(f"{h}.attn.c_attn", norm(f"{h}.ln_1", x))  # (B, P+T, 3C)
        qkv = qkv.reshape(*x.shape[:2], 3, n_head, C // n_head).transpose(2, 0, 3, 1, 4)
        k, v = plug(f"{h}.attn.kv", qkv[1:])  # (B, H, keys, D) each
        y = run(f"{h}.attn", attention_forward, qkv[0], k, v)  # (B, H, P+T, D)
        y = linear(f"{h}.attn.c_proj", y.transpose(0, 2, 1, 3).reshape(x.shape))
        x = x + plug(f"{h}.attn.adapter", y)
        hidden = run(f"{h}.mlp", gelu_forward, linear(f"{h}.mlp.c_fc", norm(f"{h}.ln_2", x)))
        y = linear(f"{h}.mlp.c_proj", plug(f"{h}.mlp.act", hidden))
        x = x + plug(f"{h}.mlp.adapter", y)
    x = norm("transformer.ln_f", x)[:, -T:]  # the prompt itself predicts nothing
    if nowhere := [place for place in adapters if place not in cache]:
        raise ValueError(f"adapter at {nowhere[0]!r}: the model has no such place")
    return run("head", linear_forward, x, wte.T), cache  # tied: the embedding scores the tokens


# The backward walks the same lines from the bottom up. A sum copies its gradient to both terms, so
# dx flows past each branch and through it. Only what is asked for is computed: a frozen matrix
# costs no dW.
def gpt_backward(dlogits, cache, trainable=()):
    """{name: gradient} of the base's `trainable` parameters and of "place:param" for every plug."""
    params, adapters, n_head, idx = cache["model"]
    grads = {}

    def unplug(place, dy):
        if place not in adapters:
            return dy
        dx, of_plug = adapters[place].backward(dy, cache[place])
        grads.update({f"{place}:{name}": g for name, g in of_plug.items()})
        return dx

    def linear(name, dy):
        W, b = f"{name}.weight", f"{name}.bias"
        if b in trainable:
            grads[b] = rows(dy).sum(0)
        if W in adapters:
            return unplug(W, dy)
        dx, dW = linear_backward(dy, cache[W], W in trainable)
        grads.update({W: dW} if W in trainable else {})
        return dx

    def norm(name, dy):
        dx, dweight, dbias = layernorm_backward(dy, cache[name])
        both = {f"{name}.weight": dweight, f"{name}.bias": dbias}
        grads.update({k: g for k, g in both.items() if k in trainable})
        return dx

    wte, wpe = "transformer.wte.weight", "transformer.wpe.weight"
    dx, dhead = linear_backward(dlogits, cache["head"], wte in trainable)
    whole = np.zeros(cache["transformer.ln_f"][0].shape, dx.dtype)  # (B, P+T, C)
    whole[:, -idx.shape[1] :] = dx
    dx = norm("transformer.ln_f", whole)
    for h in reversed(layers_of(params)):
        dy = linear(f"{h}.mlp.c_proj", unplug(f"{h}.mlp.adapter", dx))
        dy = unplug(f"{h}.mlp.act", dy) * cache[f"{h}.mlp"]  # GELU
        dx = dx + norm(f"{h}.ln_2", linear(f"{h}.mlp.c_fc", dy))
        dy = linear(f"{h}.attn.c_proj", unplug(f"{h}.attn.adapter", dx))
        dy = dy.reshape(*dy.shape[:2], n_head, -1).transpose(0, 2, 1, 3)
        dq, dk, dv = attention_backward(dy, cache[f"{h}.attn"])
        dkv = unplug(f"{h}.attn.kv", np.stack([dk, dv]))
        dqkv = np.concatenate([dq[None], dkv]).transpose(1, 3, 0, 2, 4)  # (B, P+T, 3, H, D)
        dy = linear(f"{h}.attn.c_attn", dqkv.reshape(*dx.shape[:2], -1))
        dx = dx + norm(f"{h}.ln_1", dy)
    dx = unplug("transformer.prompt", dx)
    if wte in trainable:
        onehot = np.eye(len(params[wte]), dtype=dx.dtype)[idx.ravel()]  # (B T, V): picks the rows
        grads[wte] = dhead.T + onehot.T @ rows(dx)
    if wpe in trainable:
        grads[wpe] = np.zeros_like(params[wpe])
        grads[wpe][: idx.shape[1]] = dx.sum(0)
    return grads


# %% 2. What full fine-tuning costs, and why a low rank may do
# AdamW holds, for each number it trains, the number, its gradient, and running means of g and g²:
# 16 bytes in float32. A frozen number costs 4 (in NF4, section 5, about ½). And each new voice is a
# full copy on disk.
#
# The hypothesis (Aghajanyan et al. 2020; Hu et al. 2021): the update ΔW that fine-tuning finds is
# close to a matrix of low rank. "Close" has an exact meaning. Write ΔW = Σᵢ σᵢ uᵢvᵢᵀ, σ₁ ≥ σ₂ ≥
# ..., with orthonormal uᵢ and vᵢ (the singular value decomposition). The rank-one pieces are
# orthogonal, so ‖ΔW‖² = Σᵢ σᵢ² by Pythagoras, and the best rank-k matrix keeps the first k (Eckart
# & Young 1936): the share it keeps is
#     share(k) = Σᵢ≤ₖ σᵢ² / Σᵢ σᵢ².
# We need not believe it: the demonstration takes the ΔW of a real full fine-tuning, cuts it to rank
# k, and scores the model again, beside random matrices of the same shapes, whose energy is spread
# over every σ.
def low_rank(matrix, k):
    """The nearest matrix of rank ≤ k, and the share of ‖matrix‖² it keeps (1 for all zeros)."""
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
# Why B starts at zero. Then ΔW = 0 and training starts exactly at the model we have. dA = s G Bᵀ =
# 0 at the first step, but dB = s AᵀG is not, so B moves and A follows. Were both zero, both
# gradients would vanish for ever; were neither, training would start from a model damaged by noise.
# A is N(0, 1/in), so that h = xA is of the size of x: Var(hₖ) = Σᵢ xᵢ²/in = mean(x²).
#
# Why s = α/r, and rsLoRA's α/√r. One step of gradient descent from B = 0 gives B = -ηs AᵀG, so
#     ΔW = sAB = -η s² AAᵀ G,   E[(AAᵀ)ᵢⱼ] = Σₖ E[AᵢₖAⱼₖ] = (r/in) 1[i=j],   E[ΔW] = -η (s² r/in) G:
# full fine-tuning's step seen through r random directions. Its size does not depend on the rank if
# s²r is constant: s = α/√r (Kalajdzievski 2023). With s = α/r it shrinks like 1/r, and a larger
# rank learns more slowly for no reason of its own. Adam muddies this: its first step moves every
# entry of B by η against the sign of its gradient, whatever the gradient's size. On average each of
# the r terms of A B still points along -G, so |ΔW| grows like η s r, and it is α/r that keeps it
# constant. The report trains both scalings at several ranks: judge for yourself.
def lora_forward(x, W, A, B, scale):
    """y = xW + scale·(xA)B for x (..., I), W (I, O), A (I, r), B (r, O): y (..., O), cache.

    Raises ValueError if the shapes do not match. Source: Hu et al. 2021.
    """
    I, O, r = W.shape[:1], W.shape[1:], A.shape[1:]
    if W.ndim != 2 or (x.shape[-1:], A.shape, B.shape) != (I, I + r, r + O):
        shapes = f"x {x.shape}, W {W.shape}, A {A.shape}, B {B.shape}"
        raise ValueError(f"expected x (..., I), W (I, O), A (I, r), B (r, O), not {shapes}")
    y = rows(x) @ W
    y += (rows(x) @ A) @ (scale * B)
    return y.reshape(*x.shape[:-1], W.shape[1]), (x, W, A, B, scale)


def lora_backward(dy, cache):
    """dx (..., I), dA (I, r), dB (r, O); the frozen W gets no gradient."""
    x, W, A, B, scale = cache
    if dy.shape != (*x.shape[:-1], W.shape[1]):
        raise ValueError(f"dy must be {(*x.shape[:-1], W.shape[1])} like y, not {dy.shape}")
    x2, dy2 = rows(x), rows(dy)
    h = x2 @ A  # (N, r)
    g = scale * (dy2 @ B.T)  # (N, r)
    dx = dy2 @ W.T
    dx += g @ A.T
    return dx.reshape(x.shape), x2.T @ g, scale * (h.T @ dy2)


# Merging. W' = W + sAB is one matrix again: no cost at run time. merge() makes a new array,
# unmerge() returns to the old one, which was never touched: subtracting sAB again would leave
# rounding dust in every weight, and other adapters may share that base.
class LoRALinear:
    """y = xW + s(xA)B over a frozen weight (in, out); s = alpha/rank, alpha/√rank with rslora.

    weight: a float matrix or its NF4 form, never modified. .params: {"A": (in, r), "B": (r, out)}.
    Raises ValueError for a weight that is not a float matrix, rank < 1, alpha not a finite number.
    """

    def __init__(self, weight, rank, alpha, seed=0, rslora=False):
        W = np.asarray(dense(weight))
        if W.ndim != 2 or W.size == 0 or W.dtype.kind != "f":
            raise ValueError(f"weight must be a float matrix (in, out), not {W.dtype} {W.shape}")
        check_positive_int(rank, "rank")
        if not isinstance(alpha, (int, float, np.integer, np.floating)) or not math.isfinite(alpha):
            raise ValueError(f"alpha must be a finite number, not {alpha!r}")
        self.base = weight if isinstance(weight, NF4) else W
        self.rank, self.alpha, self.rslora = int(rank), float(alpha), rslora
        self.scale = self.alpha / (math.sqrt(rank) if rslora else rank)
        A = np.random.default_rng(seed).normal(0, 1 / math.sqrt(len(W)), (len(W), rank))
        self.params = {"A": A.astype(W.dtype), "B": np.zeros((rank, W.shape[1]), W.dtype)}
        self.merged = None

    @property
    def weight(self):
        """The matrix x is multiplied with (in, out): the base, or base and update once merged."""
        return dense(self.base) if self.merged is None else self.merged

    def combined(self):
        """W + sAB (in, out)."""
        return dense(self.base) + (self.scale * self.params["A"]) @ self.params["B"]

    def merge(self):
        """Fold the update into one new matrix, returned; a second call changes nothing."""
        if self.merged is None:
            self.merged = self.combined()
        return self.merged

    def unmerge(self):
        """Back to the base, bit for bit."""
        self.merged = None

    def forward(self, x):
        """y (..., out) of x (..., in), and the cache; None when merged."""
        if self.merged is not None:
            return linear_forward(x, self.merged)[0], None
        return lora_forward(x, self.weight, self.params["A"], self.params["B"], self.scale)

    def backward(self, dy, cache):
        """dx (..., in) and {"A": dA, "B": dB}. ValueError for the cache of a merged layer."""
        if cache is None:
            raise ValueError("a merged layer has no gradients: unmerge() before the forward")
        dx, dA, dB = lora_backward(dy, cache)
        return dx, {"A": dA, "B": dB}


def apply_lora(params, targets, rank, alpha, seed=0, rslora=False, layer=LoRALinear):
    """{weight name: layer} for every matrix of params whose module name ends in one of targets.

    targets: "c_attn", "mlp.c_proj", ..., matched like PEFT's target_modules. params stays as it is.
    Raises ValueError for a target that matches no matrix, and whatever `layer` raises.
    """
    rng, chosen = np.random.default_rng(seed), set()
    targets = [targets] if isinstance(targets, str) else list(targets)
    if not targets:
        raise ValueError("targets is empty; expected names such as 'attn.c_attn'")
    for target in targets:
        ending = f".{target.removesuffix('.weight')}.weight"
        found = {n for n in params if f".{n}".endswith(ending) and len(params[n].shape) == 2}
        if not found:
            raise ValueError(f"{target!r} matches no matrix; expected one such as 'attn.c_attn'")
        chosen |= found
    return {n: layer(params[n], rank, alpha, rng, rslora) for n in params if n in chosen}


# %% 4. DoRA: direction and magnitude apart
# Column j of a matrix makes output j: its direction says what to look for, its length how loud to
# answer. DoRA (Liu et al. 2024) lets LoRA turn the columns, V = W + sAB, and learns the lengths m
# beside them:
#     yⱼ = mⱼ uⱼ/nⱼ,    u = xV,    nⱼ = √(Σᵢ Vᵢⱼ²),    m = n at first, so that y = xW.
# Backward, with the gain g = m/n, y = u g:
#     du = dy g,     dgⱼ = Σₙ dyₙⱼuₙⱼ  over rows,     dm = dg/n,     dn = -dg m/n² = -dg g/n,
#     ∂nⱼ/∂Vᵢⱼ = Vᵢⱼ/nⱼ   so   dV = xᵀdu + V (dn/n) = xᵀdu - V dg g/n²,
# and V = W + sAB gives dA = s dV Bᵀ, dB = s AᵀdV. Each column of dV is orthogonal to the same
# column of V (the sum Σᵢ Vᵢⱼ dVᵢⱼ = dgⱼgⱼ - nⱼ² dgⱼgⱼ/nⱼ² = 0): the length has become m's business
# alone. dV is as large as W, which LoRA avoids; the paper holds n constant in the backward to save
# it. We keep the true gradient.
class DoRALinear(LoRALinear):
    """LoRALinear with .params["m"] (out,), the learned length of each output's column."""

    def __init__(self, weight, rank, alpha, seed=0, rslora=False):
        super().__init__(weight, rank, alpha, seed, rslora)
        self.params["m"] = np.linalg.norm(self.weight, axis=0)
        if not self.params["m"].all():
            raise ValueError("weight has a column of zeros; DoRA expected one with a direction")

    def combined(self):
        """m V/‖V‖ (in, out)."""
        V = super().combined()
        return V * (self.params["m"] / np.linalg.norm(V, axis=0))

    def forward(self, x):
        """y (..., out) of x (..., in), and the cache; None when merged."""
        if self.merged is not None:
            return super().forward(x)
        V = super().combined()
        n = np.linalg.norm(V, axis=0)  # (out,)
        u, _ = linear_forward(x, V)
        return u * (self.params["m"] / n), (x, V, n, u)

    def backward(self, dy, cache):
        """dx (..., in) and {"A": dA, "B": dB, "m": dm}."""
        if cache is None:
            return super().backward(dy, cache)
        x, V, n, u = cache
        g = self.params["m"] / n
        dg = rows(dy * u).sum(0)  # (out,)
        dx, dV = linear_backward(dy * g, (x, V))
        dV -= V * (dg * g / (n * n))
        A, B = self.params["A"], self.params["B"]
        return dx, {"A": self.scale * (dV @ B.T), "B": self.scale * (A.T @ dV), "m": dg / n}


# %% 5. QLoRA: the frozen base in four bits
# What is never trained need not be stored well. Four bits name 16 levels: cut W into blocks of 64
# numbers, divide each block by its largest |w|, store the nearest level. That is 4 + 32/64 = 4.5
# bits a weight. Which levels? Trained weights look normal, so NF4 (Dettmers et al. 2023) takes
# quantiles of the normal distribution, each about equally likely to be used: 7 below zero, 8 above,
# and 0 itself (padding must come back exact), scaled to end at -1 and 1. The tail δ is the mean of
# 1/32 and 1/30, half a cell of 16 and of 15. One weight's error is at most absmax · (widest gap)/2;
# the demonstration measures the usual one, beside 15 even steps. A and B stay in full precision and
# learn around it.
def upper_quantiles(n, delta=(1 / 32 + 1 / 30) / 2):
    """n positive normal quantiles, evenly spaced in probability up to 1 - delta."""
    return [NormalDist().inv_cdf(p) for p in np.linspace(0.5, 1 - delta, n + 1)[1:]]


LEVELS = np.array([*(-q for q in reversed(upper_quantiles(7))), 0, *upper_quantiles(8)])
LEVELS /= LEVELS[-1]


class NF4(NamedTuple):
    """An array in four bits: two codes a byte, a scale per block, the shape to return to."""

    packed: np.ndarray  # uint8 (⌈numbers/2⌉,), the earlier code in the high half
    absmax: np.ndarray  # (blocks,), in the dtype of the original
    shape: tuple
    block_size: int


def quantize_nf4(W, block_size=64):
    """NF4 of a float array W. Raises ValueError if W is not finite floats or block_size < 1."""
    W = np.asarray(W)
    check_positive_int(block_size, "block_size")
    if W.dtype.kind != "f" or not np.isfinite(W).all():
        raise ValueError(f"W must be finite floats, not {W.dtype} {W.ravel()[:4]}")
    blocks = np.zeros((-(-W.size // block_size), block_size), W.dtype)
    blocks.ravel()[: W.size] = W.ravel()
    absmax = abs(blocks).max(-1)  # (blocks,)
    scaled = blocks / np.where(absmax > 0, absmax, 1)[:, None]
    codes = np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, scaled.ravel()).astype(np.uint8)
    codes = np.append(codes, np.zeros(codes.size % 2, np.uint8))
    return NF4(codes[::2] << 4 | codes[1::2], absmax, W.shape, int(block_size))


def dequantize_nf4(q, *fields):
    """The array that q = quantize_nf4(W) stands for; dequantize_nf4(*q) does the same.

    Raises ValueError if there are not as many codes and scales as the shape needs.
    """
    packed, absmax, shape, block_size = NF4(q, *fields) if fields else q
    size, blocks = math.prod(shape), len(absmax)
    if blocks != -(-size // block_size) or len(packed) != (blocks * block_size + 1) // 2:
        raise ValueError(f"{len(packed)} bytes and {blocks} scales do not fit shape {shape}")
    codes = np.stack([packed >> 4, packed & 15], -1).ravel()[: blocks * block_size]
    values = LEVELS.astype(absmax.dtype)[codes].reshape(blocks, block_size) * absmax[:, None]
    return values.ravel()[:size].reshape(shape)


# %% 6. Adapters, prefixes, prompts, scales
# Adapter (Houlsby et al. 2019): y = x + GELU(xD + b)U + c after each half of a block, a bottleneck
# of m channels; U = 0 and c = 0, so y = x at first. Two linear layers; with z = xD + b, a =
# GELU(z):
#     dU = aᵀdy,  dc = Σₙ dy,  dz = (dy Uᵀ) GELU'(z),  dD = xᵀdz,  db = Σₙ dz,  dx = dy + dz Dᵀ.
# It cannot be merged: a nonlinearity stands in between.
class Adapter:
    """A bottleneck on (..., width). .params: {"D": (C, m), "b": (m,), "U": (m, C), "c": (C,)}."""

    def __init__(self, width, bottleneck, seed=0, dtype=np.float32):
        check_positive_int(width, "width")
        check_positive_int(bottleneck, "bottleneck")
        D = np.random.default_rng(seed).normal(0, 1 / math.sqrt(width), (width, bottleneck))
        self.params = {"D": D.astype(dtype), "b": np.zeros(bottleneck, dtype)}
        self.params |= {"U": np.zeros((bottleneck, width), dtype), "c": np.zeros(width, dtype)}

    def forward(self, x):
        """y (..., C), cache."""
        z, first = linear_forward(x, self.params["D"])
        a, slope = gelu_forward(z + self.params["b"])
        y, second = linear_forward(a, self.params["U"])
        return x + y + self.params["c"], (first, slope, second)

    def backward(self, dy, cache):
        """dx (..., C), gradients like .params."""
        first, slope, second = cache
        da, dU = linear_backward(dy, second)
        dz = da * slope
        dx, dD = linear_backward(dz, first)
        return dy + dx, {"D": dD, "b": rows(dz).sum(0), "U": dU, "c": rows(dy).sum(0)}


# Prompt tuning (Lester et al. 2021) trains P vectors in front of the embedded text. They are free,
# so they need no position added, and the text keeps positions 0..T-1. Prefix tuning (Li & Liang
# 2021) trains P keys and values in front of every layer's own: all that a prompt could bring about,
# without the detour. Both concatenate along time something that the whole batch shares, so the
# backward cuts dy in two and sums the shared piece over the batch. Both start better from real text
# than from noise (Lester et al., section 3.2): the demonstration copies in embeddings, keys and
# values.
class PromptTuning:
    """Learned vectors before x (B, T, C): y (B, P+T, C). .params: {"prompt": (P, C)}."""

    batch_axis = 0

    def __init__(self, length, width, seed=0, dtype=np.float32):
        self._start("prompt", (length, width), seed, dtype)

    def _start(self, name, shape, seed, dtype):
        for size in shape:
            check_positive_int(size, f"{name} size")
        self.params = {name: np.random.default_rng(seed).normal(0, 0.02, shape).astype(dtype)}

    def forward(self, x):
        """x with the learned part in front, cache."""
        (learned,) = self.params.values()
        shared = np.expand_dims(learned, self.batch_axis)
        shared = np.broadcast_to(shared, (*x.shape[:-2], *learned.shape[-2:]))
        return np.concatenate([shared, x], -2), learned.shape[-2]

    def backward(self, dy, P):
        """dx, and the learned part's gradient."""
        return dy[..., P:, :], {k: dy[..., :P, :].sum(self.batch_axis) for k in self.params}


class PrefixTuning(PromptTuning):
    """Learned keys and values before (2, B, H, T, D). .params: {"prefix": (2, H, P, D)}."""

    batch_axis = 1

    def __init__(self, length, n_head, head_size, seed=0, dtype=np.float32):
        self._start("prefix", (2, n_head, length, head_size), seed, dtype)


# (IA)³ (Liu et al. 2022): y = x l on keys, values and the MLP's hidden units, l = 1 at first. dx =
# dy l; one l serves many entries, so dl sums dy x over every axis along which l was repeated.
# BitFit (Ben Zaken et al. 2021) is no plug: it trains the biases that are there, `trainable` =
# their names.
class IA3:
    """Learned scales on x, broadcast from `shape`. .params: {"l": shape}."""

    def __init__(self, shape, dtype=np.float32):
        self.params = {"l": np.ones(shape, dtype)}

    def forward(self, x):
        """x l, cache."""
        return x * self.params["l"], x

    def backward(self, dy, x):
        """dx, {"l": dl}."""
        l = self.params["l"]
        padded = (1,) * (dy.ndim - l.ndim) + l.shape
        repeated = tuple(axis for axis, size in enumerate(padded) if size == 1)
        return dy * l, {"l": (dy * x).sum(repeated).reshape(l.shape)}


# %% 7. Files that other programs read
# safetensors: 8 bytes of header length (little-endian), a header in JSON {name: {dtype, shape,
# data_offsets}}, the arrays' raw bytes. Reading one runs no code, unlike a pickle, and every number
# in the header is checked. PEFT keeps adapter_model.safetensors beside adapter_config.json. torch
# stores (out, in), so its lora_A.weight (r, in) and lora_B.weight (out, r) are our A and B
# transposed. GPT-2's own matrices are (in, out) even there, which the config calls fan_in_fan_out.

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
PREFIX = "base_model.model."
PEFT_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector"}


def write_file(path, data):
    """Write bytes under a temporary name, then move into place: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_safetensors(path, tensors):
    """Write {name: array} to path. Raises ValueError for a dtype not in DTYPES."""
    header, chunks, end = {"__metadata__": {"format": "pt"}}, [], 0
    codes = {np.dtype(numpy_name): code for code, numpy_name in DTYPES.items()}
    for name, array in tensors.items():
        if (array := np.asarray(array)).dtype not in codes:
            raise ValueError(f"{name} is {array.dtype}; expected one of {', '.join(DTYPES)}")
        chunks.append(array.tobytes())
        start, end = end, end + array.nbytes
        header[name] = {"dtype": codes[array.dtype], "shape": array.shape}
        header[name]["data_offsets"] = (start, end)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    write_file(Path(path), len(text).to_bytes(8, "little") + text + b"".join(chunks))


def load_safetensors(path):
    """{name: array}. Raises ValueError for a file that is cut off or contradicts itself."""
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    body, tensors, used = data[8 + size :], {}, 0
    try:
        header = json.loads(data[8 : 8 + size])
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape = np.dtype(DTYPES[entry["dtype"]]), entry["shape"]
            start, end = entry["data_offsets"]
            if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
                raise ValueError(f"{name}: sizes and offsets must be whole and not negative")
            if start != used or end > len(body) or end - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name}: {entry['dtype']} {shape} cannot be bytes {start}..{end}")
            tensors[name] = np.frombuffer(body[start:end], dtype).reshape(shape).copy()
            used = end
        if used != len(body):
            raise ValueError(f"{len(body)} bytes of arrays, but the header describes {used}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a safetensors file this stage reads: {error!r}") from None
    return tensors


def save_base(directory, params, n_head):
    """Write the model as transformers' GPT2LMHeadModel reads it."""
    (V, C), (T, _) = (params[f"transformer.{n}.weight"].shape for n in ("wte", "wpe"))
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_head": n_head}
    config |= {"vocab_size": V, "n_positions": T, "n_embd": C, "n_layer": len(layers_of(params))}
    config |= {"bos_token_id": None, "eos_token_id": None}
    save_safetensors(Path(directory) / "model.safetensors", params)
    write_file(Path(directory) / "config.json", json.dumps(config, indent=2).encode())


def save_adapter(directory, adapters):
    """Write {weight name: LoRALinear or DoRALinear} as PEFT's two files.

    Raises ValueError for none, for other plugs, or for layers that differ in kind, rank or alpha.
    """
    plugs = adapters.values()
    kinds = {isinstance(a, LoRALinear) and (type(a), a.rank, a.alpha, a.rslora) for a in plugs}
    if len(kinds) != 1 or False in kinds:
        raise ValueError(f"expected LoRA layers of one kind, rank and alpha to save, not {kinds}")
    ((kind, rank, alpha, rslora),) = kinds
    modules = sorted(name.removesuffix(".weight") for name in adapters)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": modules}
    config |= {"r": rank, "lora_alpha": alpha, "use_rslora": rslora, "use_dora": kind is DoRALinear}
    config |= {"lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": True, "inference_mode": True}
    tensors = {
        f"{PREFIX}{name.removesuffix('weight')}{PEFT_NAMES[key]}": p.T
        for name, layer in adapters.items()
        for key, p in layer.params.items()
    }
    save_safetensors(Path(directory) / "adapter_model.safetensors", tensors)
    write_file(Path(directory) / "adapter_config.json", json.dumps(config, indent=2).encode())


def load_adapter(directory, params):
    """{weight name: layer} over params, from PEFT's two files; ValueError if they do not fit."""
    path = Path(directory) / "adapter_config.json"
    try:
        config = json.loads(path.read_bytes())
        if config["peft_type"] != "LORA" or config.get("bias", "none") != "none":
            raise ValueError("peft_type must be LORA and bias none")
        rank, alpha, rslora = config["r"], config["lora_alpha"], config.get("use_rslora", False)
        layer = DoRALinear if config.get("use_dora") else LoRALinear
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected PEFT's LoRA configuration ({error!r})") from None
    tensors = load_safetensors(path.with_name("adapter_model.safetensors"))
    adapters = {}
    for module in sorted({n.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for n in tensors}):
        name = f"{module}.weight"
        if name not in params:
            raise ValueError(f"adapter for {module!r}, which this model does not have")
        adapters[name] = layer(params[name], rank, alpha, rslora=rslora)
        for key, p in adapters[name].params.items():
            stored = tensors.pop(f"{PREFIX}{module}.{PEFT_NAMES[key]}", np.zeros(0))
            if stored.shape != p.T.shape:
                expected = f"expected {p.T.shape}, found {stored.shape}"
                raise ValueError(f"{module}.{PEFT_NAMES[key]}: {expected}")
            p[...] = stored.T
    if tensors:
        raise ValueError(f"{path.parent}: unexpected arrays {sorted(tensors)[:3]}")
    return adapters


# %% 8. Training and scoring
# AdamW (Loshchilov & Hutter 2019): m and v are running means of g and g², divided by 1 - βᵗ because
# they start at 0; a number moves by m̂/√v̂, about ±1, times the rate. Decay pulls matrices toward
# 0.
def fit(params, ids, n_head, steps, learning_rate, rng, adapters=None, trainable=(), batch=8):
    """Train in place the base parameters named in `trainable` and every plug; returns seconds.

    ids: the training text (N,), cut into random windows. Base matrices decay by 0.1, plugs do not.
    """
    adapters, block = adapters or {}, len(params["transformer.wpe.weight"])
    if len(ids) <= block:
        raise ValueError(f"expected more than {block} characters to train on, not {len(ids)}")
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
        warmup = min(1, t / max(1, steps // 10))
        rate = learning_rate * warmup * (0.55 + 0.45 * math.cos(math.pi * t / steps))
        for name, p in tuned.items():
            (m, v), g = means[name], grads[name] * min(1, 1 / (norm + 1e-6))
            m += 0.1 * (g - m)
            v += 0.01 * (g * g - v)
            if name in params and p.ndim == 2:
                p *= 1 - 0.1 * rate
            p -= rate / (1 - 0.9**t) * m / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        if t % 20 == 0:
            progress(f"training {len(tuned)} arrays: step {t}/{steps}, loss {loss:.3f} nats")
    return time.perf_counter() - began


def score(params, ids, first, n_head, adapters=None):
    """Mean nats of ids[first:], each predicted once, from at least half a window of context."""
    block = len(params["transformer.wpe.weight"])
    if not block <= first < len(ids):
        raise ValueError(f"{len(ids)} characters, {first} to train on, are too few for {block}")
    total, starts = 0.0, np.arange(first, len(ids), max(1, block // 2))
    for some in np.array_split(starts, -(-len(starts) // 64)):
        ends = np.minimum(some + max(1, block // 2), len(ids))  # row by row, predict ids[some:ends]
        at = ends[:, None] + np.arange(-block, 0)  # (B, T) places of the targets
        targets = np.where(at >= some[:, None], ids[at], -1)
        logits, _ = gpt_forward(params, ids[at - 1], n_head, adapters)
        total += cross_entropy(logits, targets)[0] * (targets >= 0).sum()
    return total / (len(ids) - first)


def generate(params, ids, count, n_head, rng, adapters=None, temperature=0.7):
    """ids (a list) followed by `count` sampled ids."""
    ids, block = list(ids), len(params["transformer.wpe.weight"])
    for _ in range(count):  # the argmax of z + Gumbel noise is a draw from softmax(z)
        logits, _ = gpt_forward(params, np.array([ids[-block:]]), n_head, adapters)
        ids.append(int(np.argmax(logits[0, -1] / temperature + rng.gumbel(size=logits.shape[-1]))))
    return ids


# %% Demonstration

METHODS = {  # with learning rates, each the best of four tried on another seed
    "full fine-tuning": 2e-3, "LoRA": 1e-2, "rsLoRA": 5e-3, "DoRA": 1e-2, "LoRA on NF4 base": 1e-2,
    "Houlsby adapters": 2e-2, "prefix tuning": 6e-2, "prompt tuning": 6e-2, "BitFit": 3e-2,
    "(IA)^3": 3e-2,
}  # fmt: skip


def progress(message):
    """One line on a terminal, overwritten by whatever is printed next; nothing when piped."""
    if sys.stdout.isatty():
        print(f"{message:<99}", end="\r", flush=True)


def prepare(method, params, n_head, text, rank, seed):
    """(params, adapters, trainable) ready for `fit`; what will be trained is copied first."""
    C, layers = params["transformer.wte.weight"].shape[1], layers_of(params)
    adapters, trainable = {}, ()
    if "LoRA" in method or method == "DoRA":
        if "NF4" in method:
            params = params | {n: quantize_nf4(params[n]) for n in block_matrices(params)}
        layer = DoRALinear if method == "DoRA" else LoRALinear
        adapters = apply_lora(params, MATRICES, rank, 8, seed, method == "rsLoRA", layer)
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
        prompt.params["prompt"][...] = params["transformer.wte.weight"][text[:8]]
    elif method == "(IA)^3":
        adapters = {f"{h}.attn.kv": IA3((2, 1, n_head, 1, C // n_head)) for h in layers}
        adapters |= {f"{h}.mlp.act": IA3((4 * C,)) for h in layers}
    else:
        trainable = [n for n in params if method == "full fine-tuning" or n.endswith("bias")]
    return params | {n: params[n].copy() for n in trainable}, adapters, trainable


def read_corpora(*paths):
    """(vocabulary of the first text, [(ids, number of training characters), ...])."""
    texts = [Path(path).read_text(encoding="utf-8") for path in paths]
    vocabulary = sorted(set(texts[0]))
    number = {c: i for i, c in enumerate(vocabulary)}
    for path, text in zip(paths, texts):
        if len(text) < 400:
            raise ValueError(f"{path}: expected at least 400 characters, not {len(text)}")
        if strange := sorted(set(text) - set(vocabulary)):
            raise ValueError(f"{path}: {strange[0]!r} is not in the vocabulary of {paths[0]}")
    return vocabulary, [(np.array([number[c] for c in t]), int(0.9 * len(t))) for t in texts]


def report(fast, seed, voice, out):
    """Pre-train, adapt in every way, print."""
    L, C, H, T, rank = (1, 16, 2, 16, 2) if fast else (1, 64, 4, 32, 4)
    steps, adapt_steps = (20, 2) if fast else (1400, 150)
    paths = [HERE / "data" / name for name in ("stories.txt", "verses.txt", "names.txt")]
    vocabulary, corpora = read_corpora(paths[0], voice or paths[1], paths[2])
    if fast:  # score a few hundred characters only
        corpora = [(ids[max(0, n - 4000) : n + 200], min(n, 4000)) for ids, n in corpora]
    (stories, n_stories), (verses, n_verses), (names, n_names) = corpora
    params = init_params(len(vocabulary), T, L, C, seed)
    size = sum(p.size for p in params.values())

    def bits(params, adapters=None, which=(0, 1)):
        """Held-out bits a character on stories, verses, names."""
        return [score(params, *corpora[i], H, adapters) / math.log(2) for i in which]

    def adapt(method, rank=rank, ids=verses[:n_verses]):
        """(params, adapters, seconds) after training."""
        tuned, adapters, trainable = prepare(method, params, H, ids, rank, seed)
        rng = np.random.default_rng([seed, 1])
        rate = METHODS[method]
        return tuned, adapters, fit(tuned, ids, H, adapt_steps, rate, rng, adapters, trainable)

    rng = np.random.default_rng([seed, 0])
    seconds = fit(params, stories[:n_stories], H, steps, 8e-3, rng, {}, list(params), 16)
    base = bits(params)
    print(f"Base: {L} layer, {C} channels, {H} heads, context {T}, {size:,} parameters;")
    print(f"{steps} steps on stories took {seconds:.1f}s, while AdamW held {16 * size:,} bytes.")

    print(f"\nThe base adapted to verses, {adapt_steps} steps each; held-out bits/char")
    print(f"{'':<45}verses  verses  stories")
    print("method             trained   share    bytes  before   after    after  seconds")
    print(f"{'the base itself':<43}{base[1]:>8.3f}{'':>8}{base[0]:>9.3f}")
    results = {}
    for method in METHODS:
        start, plugs, trainable = prepare(method, params, H, verses, rank, seed)
        count = sum(p.size for plug in plugs.values() for p in plug.params.values())
        count += sum(params[name].size for name in trainable)
        (before,) = bits(start, plugs, [1])
        *results[method], seconds = adapt(method)
        kept, after = bits(*results[method])
        row = f"{method:<18}{count:>8,}{count / size:>8.1%}{4 * count:>9,}{before:>8.3f}"
        print(f"{row}{after:>8.3f}{kept:>9.3f}{seconds:>9.1f}")
    print("Forgetting is the rise of `stories after` over the base's own number.")

    full = results["full fine-tuning"][0]
    updates = {n: full[n] - params[n] for n in block_matrices(params)}
    print(f"\nIs the full update low-rank? {len(updates)} matrices cut to rank k, rest as tuned")
    print("    k   kept of ΔW   of random noise   verses")
    for k in (0, 1, 2, 4, 8, 16, 32, 64):
        cuts = {n: low_rank(d, k) for n, d in updates.items()}
        noise = np.mean([low_rank(rng.normal(size=d.shape), k)[1] for d in updates.values()])
        (loss,) = bits(full | {n: params[n] + cut for n, (cut, _) in cuts.items()}, None, [1])
        kept = np.mean([share for _, share in cuts.values()])
        print(f"{k:>5}{kept:>13.1%}{noise:>18.1%}{loss:>9.3f}")

    ranks = (1, 2) if fast else (1, 4, 16)
    print(f"\n{'verses after at rank':<22}" + "".join(f"{r:>8}" for r in ranks) + "   (α = 8)")
    for method, scale in (("LoRA", "α/r"), ("rsLoRA", "α/√r")):
        fits = [results[method] if r == rank else adapt(method, r)[:2] for r in ranks]
        losses = "".join(f"{bits(*tuned, [1])[0]:>8.3f}" for tuned in fits)
        print(f"{method + ', scale ' + scale:<22}{losses}")

    W = np.concatenate([params[n].ravel() for n in updates])  # whole blocks of 64
    blocks, q = W.reshape(-1, 64), quantize_nf4(W)
    step = q.absmax[:, None] / 7
    errors = dequantize_nf4(q) - W, (np.round(blocks / step) * step - blocks).ravel()
    nf4, even = (np.linalg.norm(e) / np.linalg.norm(W) for e in errors)
    print(f"\nFour bits: error of NF4 {nf4:.2%}, of 15 even steps {even:.2%} of the weights' norm;")
    print(f"the matrices take {q.packed.nbytes + q.absmax.nbytes:,} bytes instead of {W.nbytes:,}.")

    lora, text = results["LoRA"][1], verses[None, n_verses : n_verses + T]
    apart, _ = gpt_forward(params, text, H, lora)
    merged, _ = gpt_forward(params | {n: a.merge() for n, a in lora.items()}, text, H)
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(out or directory)
        save_base(directory / "base", params, H)
        save_adapter(directory / "adapter", lora)
        size = sum(f.stat().st_size for f in (directory / "adapter").iterdir())
        lora = load_adapter(directory / "adapter", params)
    same = np.array_equal(apart, gpt_forward(params, text, H, lora)[0])
    print(
        f"Merged and plugged in, logits differ by at most {abs(apart - merged).max():.1e}. Saved as"
    )
    print(f"{size:,} bytes and read back, they are {'equal bit for bit' if same else 'DIFFERENT'}.")

    print("\nOne base, adapters swapped: held-out bits/char by corpus, and a sample")
    print("adapter   stories  verses   names")
    of_names = adapt("LoRA", ids=names[:n_names])[1]
    for name, plugs in {"none": {}, "verses": lora, "names": of_names}.items():
        numbers = "".join(f"{b:>8.3f}" for b in bits(params, plugs, (0, 1, 2)))
        ids = generate(params, [0], 60, H, np.random.default_rng(seed), plugs)
        sample = "".join(vocabulary[i] for i in ids[1:]).replace("\n", "/")
        print(f"{name:<9}{numbers}   {sample}")
    nats, label = base[0] * math.log(2), f"transformer before adapting, context {T}"
    print(f"\nheld-out: {nats:.3f} nats/char | {base[0]:.3f} bits/char | ", end="")
    print(f"perplexity {math.exp(nats):.2f}   (stage 9, {label})")


class Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv=None):
    """The command line; see --help."""
    parser = Parser(description="Adapt a small GPT to a new voice in ten ways.")
    parser.add_argument("--fast", action="store_true", help="a smoke run in miniature")
    parser.add_argument("--seed", type=int, default=0, help="fixes every random choice")
    parser.add_argument("--voice", metavar="FILE", help="adapt to this text instead of the verses")
    parser.add_argument("--out", metavar="DIR", help="keep the base and the LoRA adapter here")
    args = parser.parse_args(argv)
    try:
        if args.seed < 0:
            raise ValueError(f"--seed must be at least 0, not {args.seed}")
        report(args.fast, args.seed, args.voice, args.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))


# %% Common mistakes
# 1. B not zero at first. Symptom: before training the loss is already worse than the base's.
#    `LoRALinear.__init__` draws A and leaves B zero.
# 2. A zero as well. Symptom: every gradient is exactly 0 for ever. The same line.
# 3. The scale forgotten in the backward. Symptom: it trains, but central differences disagree and
#    the best rate changes with alpha. `lora_backward` has it once in g and once in dB.
# 4. Merging into the shared base in place. Symptom: the next adapter speaks with the last one's
#    accent. `LoRALinear.merge` makes a new matrix, `unmerge` drops it.
# 5. Training the base along with the plug. Symptom: a saved adapter is useless over a fresh base.
#    `fit` updates what is in `tuned` and nothing else; the report reads its own file back.
# 6. Transposing the wrong side in a file. Symptom: shapes that do not fit or, for square matrices,
#    nonsense without an error. `save_adapter` writes p.T; benchmarks/check_peft.py asks PEFT.
# 7. A prefix behind the causal mask. Symptom: early queries ignore it. `attention_forward` shifts
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
