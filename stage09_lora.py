# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 9: adapt. How does a trained model learn something new without being trained again?

A model that tells stories should now write verse. Full fine-tuning moves every weight: it needs
four numbers of memory for each, and every new voice is a full copy of the model. Must all of them
move? One can freeze them and train a small layer plugged into the model instead. The best known
plug is LoRA, which adds to a matrix the product of two thin ones, ΔW = (α/r)·AB. This file derives
it and its relatives, plugs each into one small GPT with a hand-written backward, and measures what
each costs, what it learns, and what it makes the model forget. You should know a transformer
(stages 5 and 6) and the chain rule (stage 2).

  1 one update by hand   2 a small GPT with sockets   3 LoRA, rsLoRA   4 DoRA   5 a base in 4 bits
  6 prompts, scales, biases   7 files   8 training   9 which method, where, which rank and alpha

    python stage09_lora.py [--fast] [--seed N]     half a minute; --fast: a second
    python stage09_lora.py adapt --base DIR --data FILE --method lora --out ADAPTER   your own model
    python stage09_lora.py merge --base DIR --adapter ADAPTER --out DIR          one model of both

DIR: a checkpoint of the capstone or of transformers. FILE: a text, or .jsonl with {"prompt": ...,
"response": ...} a line; the last tenth is held out. Both commands need capstone_gpt.py beside this
file.

Rests on: Hu et al. (2021), "LoRA"; Kalajdzievski (2023), rsLoRA; Liu et al. (2024), "DoRA";
Dettmers et al. (2023), "QLoRA"; Lester et al. (2021), prompt tuning; Ben Zaken et al. (2021),
"BitFit"; Liu et al. (2022), (IA)³; Biderman et al. (2024), "LoRA learns less and forgets less";
Aghajanyan et al. (2020), on intrinsic dimensions; Schulman et al. (2025), "LoRA without regret".
"""

import argparse
import contextlib
import json
import math
import numbers
import os
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path
from statistics import NormalDist

import numpy as np


# %% 1. One update by hand
# A trained layer is a matrix W, and y = xW. It should answer differently now, but W must not be
# touched. So two thin matrices go beside it, A with r columns and B with r rows, and only those
# are trained: y = xW + (xA)B. With r = 1, A is one column and B one row.
def lora_step(x, wanted, W, A, B, learning_rate):
    """One step down on ½‖y - wanted‖² for one x (in,): y before the step, and the new A and B."""
    h = x @ A  # (r,) what A hears of x
    y = x @ W + h @ B  # (out,)
    dy = y - wanted  # the slope of ½(y - wanted)²
    dA = np.outer(x, B @ dy)  # h is worth B·dy to the loss, and A[i] moved h by x[i]
    dB = np.outer(h, dy)  # B[j] moved y[j] by h
    return y, A - learning_rate * dA, B - learning_rate * dB


#     W = [[1, 0], [2, 1]]    x = [2, 1]    wanted = [4, 3]    learning_rate = 1/8
#     A = [1, 0]  B = [0, 0]         h = 2  y = [4, 1]      dB = [0, -4]     dA = [0, 0]
#     A = [1, 0]  B = [0, 0.5]       h = 2  y = [4, 2]      dB = [0, -2]     dA = [-1, -0.5]
#     A = [1.125, 0.0625]  B = [0, 0.75]    y = [4, 2.734]  and so on, towards [4, 3]
# B starts at zero, so the layer begins as it was. A has to wait for B: with B = 0, h has no say in
# y, and dA = 0. Training W itself would have used G = x·dy, a full matrix, [[0, -4], [0, -2]] at
# first. A and B see two shadows of it, dB = Aᵀ·G and dA = G·Bᵀ, and never need it. At the end the
# update is MERGED into one matrix again, which costs nothing to run:
#     W + AB = [[1, 0], [2, 1]] + [[0, 0.844], [0, 0.047]] = [[1, 0.844], [2, 1.047]],
# and x times that is [4, 2.734]. In two by two nothing is saved. For a W of 1000 by 1000, a million
# numbers, A and B with r = 4 have 8,000.


# %% 2. A small GPT with sockets
# Shapes: B sequences, T tokens, C channels, H heads of size D, V vocabulary, r rank. (B is also
# LoRA's second factor, as in its paper: a shape is never a matrix.) A layer is a pair of functions.
# The forward returns its output and a cache; the backward turns dy = ∂L/∂y into dx = ∂L/∂x and the
# gradients of its parameters by the chain rule, ∂L/∂xᵢ = Σⱼ ∂L/∂yⱼ · ∂yⱼ/∂xᵢ.
def check_count(value, name):
    """value as an int (NumPy's would wrap); ValueError unless it is whole and at least 1."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    return int(value)


def check_ids(ids, name, vocab_size, lowest=0):
    """ids as int64; ValueError unless they are integers in lowest..vocab_size - 1."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, not {ids.dtype} {ids.shape}")
    if ids.size and not lowest <= ids.min() <= ids.max() < vocab_size:
        found = f"{ids.min()}..{ids.max()}"
        raise ValueError(f"{name} must lie in {lowest}..{vocab_size - 1}, not {found}")
    return ids.astype(np.int64)


def rows(x):
    """x (..., C) as a matrix of rows (N, C)."""
    return x.reshape(-1, x.shape[-1])


# LINEAR. yⱼ = Σᵢ xᵢWᵢⱼ. A change of xᵢ moves every yⱼ by Wᵢⱼ; a change of Wᵢⱼ moves yⱼ by xᵢ, in
# every row of x. So
#     ∂L/∂xᵢ = Σⱼ dyⱼWᵢⱼ,  that is dx = dy·Wᵀ,    and  ∂L/∂Wᵢⱼ = Σ xᵢdyⱼ over rows,  dW = xᵀ·dy.
# A frozen W needs only the first. That saves a third of a layer's work, and all of this stage's
# methods save it but full fine-tuning and DoRA.
def linear_forward(x, W):
    """y = xW for x (..., I), W (I, O); W may be in four bits (section 5)."""
    W = dense(W)
    return (rows(x) @ W).reshape(*x.shape[:-1], W.shape[1]), (x, W)


def linear_backward(dy, cache, need_dW=True):
    """dx (..., I), dW (I, O) or None."""
    x, W = cache
    dx = (rows(dy) @ W.T).reshape(x.shape)
    return dx, rows(x).T @ rows(dy) if need_dW else None


# LAYERNORM. x̂ = (x - mean)·ρ with ρ = 1/√(var + ε), and y = x̂·weight + bias. What does xᵢ move?
# The mean, by 1/C. The variance (1/C)·Σⱼ(xⱼ - mean)², by 2(xᵢ - mean)/C: that xᵢ also moves the
# mean in each of its brackets adds -(2/C²)·Σⱼ(xⱼ - mean), and deviations from a mean sum to zero.
# Hence ∂ρ/∂xᵢ = -½ρ³·2(xᵢ - mean)/C = -ρ²x̂ᵢ/C, and with dx̂ = dy·weight
#     dxᵢ = Σⱼ dx̂ⱼ·[ρ(1[i=j] - 1/C) + (xⱼ - mean)(-ρ²x̂ᵢ/C)] = ρ(dx̂ᵢ - mean(dx̂) - x̂ᵢ·mean(dx̂·x̂)).
def layernorm_forward(x, weight, bias, eps=1e-5):
    """Rows of x (..., C) to mean 0 and variance 1, times weight (C,), plus bias (C,)."""
    centred = x - x.mean(-1, keepdims=True)
    rho = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)  # (..., 1)
    xhat = centred * rho
    return xhat * weight + bias, (xhat, rho, weight)


def layernorm_backward(dy, cache):
    """dx (..., C), dweight (C,), dbias (C,)."""
    xhat, rho, weight = cache
    dxhat = dy * weight
    along = (dxhat * xhat).mean(-1, keepdims=True)
    dx = rho * (dxhat - dxhat.mean(-1, keepdims=True) - xhat * along)
    return dx, rows(dy * xhat).sum(0), rows(dy).sum(0)


# GELU, GPT-2's form: y = ½x(1 + tanh f), f = √(2/π)·(x + 0.044715x³). As tanh′ = 1 - tanh²,
#     y′ = ½(1 + tanh f) + ½x(1 - tanh² f)·f′,    f′ = √(2/π)·(1 + 3·0.044715x²).
def gelu_forward(x):
    """GELU of x; the cache is its slope y′, so the backward is dy times the cache."""
    root, square = math.sqrt(2 / math.pi), 0.044715 * x * x
    tanh = np.tanh(root * x * (1 + square))
    slope = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * root * (1 + 3 * square)
    return 0.5 * x * (1 + tanh), slope


# SOFTMAX, Pⱼ = e^zⱼ / Σₘ e^zₘ, has the slopes ∂Pⱼ/∂zᵢ = Pⱼ(1[i=j] - Pᵢ) by the quotient rule, so
#     dzᵢ = Σⱼ dPⱼ·Pⱼ(1[i=j] - Pᵢ) = Pᵢ(dPᵢ - Σⱼ PⱼdPⱼ).
# ATTENTION. zᵢⱼ = qᵢ·kⱼ/√D where i may see j, P = softmax of each row, y = P·v. A product is linear
# in both factors: dv = Pᵀ·dy, dP = dy·vᵀ, and after the softmax dq = dz·k/√D, dk = dzᵀ·q/√D.
def attention_forward(q, k, v):
    """Causal attention of q over k and v, (B, H, T, D) each: y (B, H, T, D)."""
    T, D = q.shape[2:]
    z = q @ k.swapaxes(-1, -2) / math.sqrt(D)  # (B, H, T, T)
    z += np.triu(np.full((T, T), -np.inf, z.dtype), 1)
    P = np.exp(z - z.max(-1, keepdims=True))
    P /= P.sum(-1, keepdims=True)
    return P @ v, (q, k, v, P)


def attention_backward(dy, cache):
    """dq, dk, dv (B, H, T, D)."""
    q, k, v, P = cache
    dP = dy @ v.swapaxes(-1, -2)
    dz = P * (dP - (P * dP).sum(-1, keepdims=True)) / math.sqrt(q.shape[-1])
    return dz @ k, dz.swapaxes(-1, -2) @ q, P.swapaxes(-1, -2) @ dy


# CROSS-ENTROPY. A token's loss is -log P[target] = log Σₘ e^zₘ - z[target]. Its slope in zⱼ is
# Pⱼ - 1[j = target], for a mean divided by the count.
def cross_entropy(logits, targets):
    """Mean loss in nats of targets (B, T), -1 for each to be ignored, and dlogits (B, T, V)."""
    targets = check_ids(targets, "targets", logits.shape[-1], -1)
    kept = np.flatnonzero(targets >= 0)
    if len(kept) == 0:
        raise ValueError("targets must hold at least one that is not -1")
    z = rows(logits)[kept]  # (kept, V)
    z = z - z.max(-1, keepdims=True)  # now exp cannot overflow
    total = np.exp(z).sum(-1, keepdims=True)
    right = np.arange(len(kept)), targets.ravel()[kept]
    loss = float((np.log(total[:, 0]) - z[right]).mean())
    dz = np.exp(z) / total
    dz[right] -= 1
    dlogits = np.zeros_like(rows(logits))
    dlogits[kept] = dz / len(kept)
    return loss, dlogits.reshape(logits.shape)


# THE MODEL has GPT-2's shape and Hugging Face's names, with matrices as (in, out). What makes it
# adaptable are sockets: whatever sits in the dict `adapters` under the name of a place runs there.
# A plug has .params {name: array}, .forward(x) -> (y, cache) and .backward(dy, cache) -> (dx,
# {name: gradient}); so every method of this stage is a dict of plugs:
#     transformer.prompt                 on the embedded text (B, T, C)
#     transformer.h.N.attn.c_attn.weight (and the other three matrices) instead of x @ W
#     transformer.h.N.attn.kv            on keys and values, side by side (B, T, 2C)
#     transformer.h.N.mlp.act            on the hidden units after GELU (B, T, 4C)
def init_params(vocab_size, block_size, n_layer, width, seed=0, dtype=np.float32):
    """A fresh gpt2-shaped model: N(0, 0.02²), c_proj divided by √(2L), biases zero."""
    C, shapes = width, {"wte": (vocab_size, width), "wpe": (block_size, width)}
    for h in (f"h.{i}" for i in range(n_layer)):
        shapes |= {f"{h}.ln_1": (C,), f"{h}.attn.c_attn": (C, 3 * C), f"{h}.attn.c_proj": (C, C)}
        shapes |= {f"{h}.ln_2": (C,), f"{h}.mlp.c_fc": (C, 4 * C), f"{h}.mlp.c_proj": (4 * C, C)}
    shapes["ln_f"] = (C,)
    rng, params = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        std = 0.02 / math.sqrt(2 * n_layer) if "c_proj" in name else 0.02
        weight = np.ones(shape) if "ln_" in name else rng.normal(0, std, shape)
        params[f"transformer.{name}.weight"] = weight.astype(dtype)
        if name not in ("wte", "wpe"):
            params[f"transformer.{name}.bias"] = np.zeros(shape[-1], dtype)
    return params


def layers_of(params):
    """The names of the model's blocks, such as transformer.h.0."""
    return [name.removesuffix(".ln_1.weight") for name in params if name.endswith(".ln_1.weight")]


def gpt_forward(params, idx, n_head, adapters=None):
    """Logits (B, T, V) for token ids idx (B, T), and a cache with an entry per place in use."""
    adapters = adapters or {}
    wte, wpe = params["transformer.wte.weight"], params["transformer.wpe.weight"]
    idx, H, C = check_ids(idx, "idx", len(wte)), n_head, wte.shape[1]
    T, cache = idx.shape[1], {"model": (params, adapters, H, idx)}

    def run(place, x):
        """What is plugged in at this place, else the model's own layer, else x as it is."""
        weight, bias = params.get(place), params.get(place.replace("weight", "bias"))
        if place in adapters:
            x, cache[place] = adapters[place].forward(x)
        elif ".ln_" in place:
            x, cache[place] = layernorm_forward(x, weight, bias)
        elif ".c_" in place:
            x, cache[place] = linear_forward(x, weight)
        return x + bias if ".c_" in place else x

    x = run("transformer.prompt", wte[idx] + wpe[:T])  # (B, T, C), longer by a prompt if any
    for h in layers_of(params):
        qkv = run(f"{h}.attn.c_attn.weight", run(f"{h}.ln_1.weight", x))  # (B, T, 3C)
        qkv = np.concatenate([qkv[..., :C], run(f"{h}.attn.kv", qkv[..., C:])], -1)
        qkv = qkv.reshape(*x.shape[:2], 3, H, C // H).transpose(2, 0, 3, 1, 4)
        y, cache[f"{h}.attn"] = attention_forward(*qkv)  # (B, H, T, D)
        y = y.transpose(0, 2, 1, 3).reshape(x.shape)
        x = x + run(f"{h}.attn.c_proj.weight", y)
        y = run(f"{h}.mlp.c_fc.weight", run(f"{h}.ln_2.weight", x))  # (B, T, 4C)
        y, cache[f"{h}.mlp"] = gelu_forward(y)
        x = x + run(f"{h}.mlp.c_proj.weight", run(f"{h}.mlp.act", y))
    x = run("transformer.ln_f.weight", x)
    if not adapters.keys() <= cache.keys():
        raise ValueError(f"the model has no place {adapters.keys() - cache.keys()}")
    # Tied: the embedding scores the tokens. A prompt itself predicts nothing.
    logits, cache["head"] = linear_forward(x[:, -T:], wte.T)
    return logits, cache


# The backward walks the same lines from the bottom up. A sum copies its gradient to both terms, so
# dx flows past each branch and through it. The embedding is used twice, so its gradient has two
# terms: one from the head, and one that adds up, for each token, the dx of wherever it stood.
def gpt_backward(dlogits, cache, trainable=()):
    """{name: gradient} of the base's `trainable` parameters and of "place:param" for every plug."""
    params, adapters, H, idx = cache["model"]
    wte, wpe = "transformer.wte.weight", "transformer.wpe.weight"
    T, trainable, grads = idx.shape[1], set(trainable), {}

    def back(place, dy):
        """dx of what ran at this place; its gradients go into grads."""
        bias = place.replace("weight", "bias")
        if ".c_" in place:
            grads[bias] = rows(dy).sum(0)
        if place in adapters:
            dy, own = adapters[place].backward(dy, cache[place])
            grads.update({f"{place}:{name}": grad for name, grad in own.items()})
        elif ".ln_" in place:
            dy, grads[place], grads[bias] = layernorm_backward(dy, cache[place])
        elif ".c_" in place:
            dy, grads[place] = linear_backward(dy, cache[place], place in trainable)
        return dy

    dx, dhead = linear_backward(dlogits, cache["head"], wte in trainable)
    prompt = cache["transformer.ln_f.weight"][0].shape[1] - T  # its length; it predicted nothing
    dx = back("transformer.ln_f.weight", np.pad(dx, ((0, 0), (prompt, 0), (0, 0))))
    for h in reversed(layers_of(params)):
        dy = back(f"{h}.mlp.act", back(f"{h}.mlp.c_proj.weight", dx)) * cache[f"{h}.mlp"]
        dx = dx + back(f"{h}.ln_2.weight", back(f"{h}.mlp.c_fc.weight", dy))
        dy = back(f"{h}.attn.c_proj.weight", dx)
        dy = dy.reshape(*dy.shape[:2], H, -1).transpose(0, 2, 1, 3)
        dqkv = np.stack(attention_backward(dy, cache[f"{h}.attn"]))  # (3, B, H, T, D)
        dqkv = dqkv.transpose(1, 3, 0, 2, 4).reshape(*dx.shape[:2], -1)  # (B, T, 3C)
        C = dx.shape[-1]
        dqkv = np.concatenate([dqkv[..., :C], back(f"{h}.attn.kv", dqkv[..., C:])], -1)
        dy = back(f"{h}.attn.c_attn.weight", dqkv)
        dx = dx + back(f"{h}.ln_1.weight", dy)
    dx = back("transformer.prompt", dx)
    if wte in trainable:
        grads[wte] = np.ascontiguousarray(dhead.T)
        np.add.at(grads[wte], idx.ravel(), rows(dx))
    if wpe in trainable:
        grads[wpe] = np.zeros_like(params[wpe])
        grads[wpe][:T] = dx.sum(0)
    return {name: grad for name, grad in grads.items() if name in trainable or ":" in name}


# %% 3. LoRA: learn a low-rank update
# WHAT A TRAINED NUMBER COSTS. AdamW holds it, its gradient, and running means of the gradient and
# its square: 16 bytes in float32. A frozen number costs 4, and in NF4 (section 5) about ½.
#
# WHY A LOW RANK MAY DO. Aghajanyan et al. (2020) let all parameters together move only inside a
# random subspace: with 200 dimensions RoBERTa still reached 90 % of its score on a task (MRPC). So
# few directions can suffice, of whatever rank. Hu et al. (2021) suppose more: each matrix's update
# ΔW can be close to one of low rank. The singular value decomposition writes ΔW = Σᵢ σᵢMᵢ with
# σ₁ ≥ σ₂ ≥ ... ≥ 0 and Mᵢ of rank one and length one, perpendicular to each other. So Pythagoras
# gives ‖ΔW‖² = Σᵢ σᵢ², and the nearest matrix of rank r keeps the first r (Eckart & Young 1936).
# The report cuts a real ΔW like this: what is near in length may be far in use.
def low_rank(matrix, rank):
    """The nearest matrix of that rank or less, and the share of ‖matrix‖² that it keeps."""
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    share = (sigma[:rank] @ sigma[:rank]) / (sigma @ sigma)
    return (left[:, :rank] * sigma[:rank]) @ right[:rank], float(share)


# LORA makes ΔW low-rank from the start. With W (in, out) frozen, as in section 1,
#     y = xW + s·(xA)B,      A (in, r),  B (r, out),  s = α/r:
# r·(in + out) trained numbers instead of in·out. These are two linear layers in a row; with h = xA,
#     dB = s·hᵀ·dy,     dh = s·dy·Bᵀ,     dA = xᵀ·dh,     dx = dy·Wᵀ + dh·Aᵀ.
# dW never appears. With G = xᵀ·dy, the gradient W would have had, dA = s·G·Bᵀ and dB = s·Aᵀ·G.
#
# HOW TO BEGIN. B = 0, as in section 1: were A zero as well, both gradients would vanish for ever;
# were neither, training would start from a model damaged by noise. A is N(0, 1/in), so that h = xA
# is of the size of x: Var(hₖ) = Σᵢ xᵢ²/in = mean(x²).
#
# WHY s = α/r, AND rsLoRA's α/√r. One step of gradient descent from B = 0 gives B = -ηs·Aᵀ·G, so
#     ΔW = sAB = -ηs²·AAᵀ·G,   E[(AAᵀ)ᵢⱼ] = Σₖ E[AᵢₖAⱼₖ] = (r/in)·1[i=j],   E[ΔW] = -η(s²r/in)·G:
# full fine-tuning's step seen through r random directions. Its size does not depend on the rank if
# s²r is constant: s = α/√r (Kalajdzievski 2023); with s = α/r it shrinks like 1/r. Adam muddies
# this: its first step moves every entry of B by η against its gradient's sign, so each of the r
# terms of AB points along -G on average, ΔW grows like ηsr, and it is α/r that keeps it constant.
# Under the right s the best rate stays where it is when the rank changes: section 9 has the answer.
def lora_forward(x, W, A, B, scale):
    """y (..., O) = xW + scale·(xA)B for W (I, O), A (I, r), B (r, O); and the cache."""
    y = rows(x) @ W + (rows(x) @ A) @ (scale * B)
    return y.reshape(*x.shape[:-1], W.shape[1]), (x, W, A, B, scale)


def lora_backward(dy, cache):
    """dx (..., I), dA (I, r), dB (r, O); the frozen W gets no gradient."""
    x, W, A, B, scale = cache
    h = rows(x) @ A  # (N, r)
    dh = scale * (rows(dy) @ B.T)  # (N, r)
    dx = rows(dy) @ W.T + dh @ A.T
    return dx.reshape(x.shape), rows(x).T @ dh, scale * (h.T @ rows(dy))


# MERGING. W + sAB is one matrix again, at no cost at run time. merge() makes a new array: other
# adapters may share the base, and adding sAB in place and taking it off again leaves rounding dust.
class LoRALinear:
    """y = xW + s(xA)B over a frozen weight (in, out), s = alpha/rank or, with rslora, alpha/√rank.

    weight: a matrix of float32 or float64 (float16 is too coarse for AdamW) or its NF4 form, never
    modified. .params: {"A": (in, r), "B": (r, out)}. ValueError for anything else.
    """

    def __init__(self, weight, rank, alpha, seed=0, rslora=False):
        self.base = weight if isinstance(weight, NF4) else np.asarray(weight)
        W = dense(self.base)
        if W.ndim != 2 or not W.size or W.dtype not in (np.float32, np.float64):
            raise ValueError(f"weight must be a float matrix (in, out), not {W.dtype} {W.shape}")
        real = isinstance(alpha, numbers.Real) and not isinstance(alpha, bool)
        if not real or not abs(alpha) <= sys.float_info.max:
            raise ValueError(f"alpha must be a finite number, not {alpha!r:.50}")
        self.rank, self.alpha, self.rslora = check_count(rank, "rank"), float(alpha), rslora
        self.scale = self.alpha / (math.sqrt(self.rank) if rslora else self.rank)
        A = np.random.default_rng(seed).normal(0, 1 / math.sqrt(len(W)), (len(W), self.rank))
        self.params = {"A": A.astype(W.dtype), "B": np.zeros((self.rank, W.shape[1]), W.dtype)}

    def merge(self):
        """W + sAB (in, out), a new array."""
        return dense(self.base) + (self.scale * self.params["A"]) @ self.params["B"]

    def forward(self, x):
        """y (..., out) of x (..., in), and the cache."""
        return lora_forward(x, dense(self.base), self.params["A"], self.params["B"], self.scale)

    def backward(self, dy, cache):
        """dx (..., in) and gradients like .params."""
        dx, dA, dB = lora_backward(dy, cache)
        return dx, {"A": dA, "B": dB}

    def gradients(self, G):
        """Gradients like .params from G (in, out), the gradient of the merged matrix."""
        A, B = self.params["A"], self.params["B"]
        return {"A": self.scale * (G @ B.T), "B": self.scale * (A.T @ G)}


def apply_lora(params, targets, rank, alpha, seed=0, rslora=False, layer=LoRALinear):
    """{weight name: layer} for every matrix of params whose module name ends in one of targets, as
    PEFT's target_modules do. ValueError if there is none, and from `layer`."""
    endings = tuple(f".{target}.weight" for target in targets)
    names = [n for n in params if f".{n}".endswith(endings) and len(params[n].shape) == 2]
    if not names:
        raise ValueError(f"{targets!r:.60} match no matrix; expected names such as 'attn.c_attn'")
    rng = np.random.default_rng(seed)
    return {name: layer(params[name], rank, alpha, rng, rslora) for name in names}


# %% 4. DoRA: direction and magnitude apart
# Column j of a matrix makes output j: its direction says what to look for, its length how loud to
# answer. DoRA (Liu et al. 2024) lets LoRA turn the columns, V = W + sAB, and learns the lengths m
# beside them. So y = xM, where column j of M has V's direction and the length mⱼ:
#     Mᵢⱼ = Vᵢⱼgⱼ,    gⱼ = mⱼ/nⱼ,    nⱼ = √(Σᵢ Vᵢⱼ²),    m = n at first, so that M = W.
# Backward, from G = xᵀ·dy, the gradient of M:
#     dgⱼ = Σᵢ GᵢⱼVᵢⱼ,     dm = dg/n,     dn = -dg·m/n² = -dg·g/n,
#     ∂nⱼ/∂Vᵢⱼ = Vᵢⱼ/nⱼ,   so   dV = G·g + V·(dn/n) = G·g - V·dg·g/n²,
# and V = W + sAB gives dA = s·dV·Bᵀ, dB = s·Aᵀ·dV. The price is G, as large as W: DoRA saves memory
# of AdamW, but not the work of a full backward. (The paper saves a part: it holds n constant.)
class DoRALinear(LoRALinear):
    """LoRALinear with .params["m"] (out,), the learned length of each output's column."""

    def __init__(self, weight, rank, alpha, seed=0, rslora=False):
        super().__init__(weight, rank, alpha, seed, rslora)
        self.params["m"] = np.linalg.norm(dense(self.base), axis=0)
        if not self.params["m"].all():
            raise ValueError("weight has a column of zeros; expected one with a direction")

    def merge(self):
        """M = V m/‖V‖ (in, out), a new array."""
        V = super().merge()
        return V * (self.params["m"] / np.linalg.norm(V, axis=0))

    def forward(self, x):
        return linear_forward(x, self.merge())

    def backward(self, dy, cache):
        dx, G = linear_backward(dy, cache)
        return dx, self.gradients(G)

    def gradients(self, G):
        V = super().merge()
        n = np.linalg.norm(V, axis=0)  # (out,)
        g = self.params["m"] / n
        dg = (G * V).sum(0)
        dV = G * g - V * (dg * g / (n * n))
        return {**super().gradients(dV), "m": dg / n}


# %% 5. QLoRA: the frozen base in four bits
# What is never trained need not be stored well. Four bits name 16 levels: cut W into blocks of 64
# numbers, divide each block by its largest |w|, store the nearest level. That is 4 + 32/64 = 4.5
# bits a weight. Which levels? Trained weights look normal, so NF4 (Dettmers et al. 2023) takes
# quantiles of the normal distribution: 7 below zero, 8 above, and 0 itself, all scaled to end at
# -1 and 1. The last quantile leaves a tail, the mean of 1/32 and 1/30 (half a cell of 16 and of
# 15). For normal numbers on the scale of the quantiles the 16 levels would be about equally likely.
# But a block's largest |w| mostly lies further out: for blocks of 64 normal numbers level 1 gets
# 1.7 % of the weights, and the level below 0 gets 9.2 %. A and B stay in full precision and learn
# around the errors.
BELOW, ABOVE = (  # 7 and 8 quantiles, at probabilities in even steps from 0.5 to the tail
    [NormalDist().inv_cdf(x) for x in np.linspace(0.5, 1 - (1 / 32 + 1 / 30) / 2, count + 1)[1:]]
    for count in (7, 8)
)
LEVELS = np.array([*np.negative(BELOW[::-1]), 0, *ABOVE]) / ABOVE[-1]
# packed: uint8 (⌈numbers/2⌉,), the earlier code in the high half; absmax: a scale per block
NF4 = namedtuple("NF4", "packed absmax shape block_size")


def quantize_nf4(W, block_size=64):
    """NF4 of a float array W. Raises ValueError if W is not finite floats or block_size < 1."""
    W = np.asarray(W)
    block_size = check_count(block_size, "block_size")
    if W.dtype.kind != "f" or not np.isfinite(W).all():
        raise ValueError(f"W must be finite floats, not {W.dtype} {W.ravel()[:4]}")
    blocks = np.zeros((-(-W.size // block_size), block_size), W.dtype)
    blocks.ravel()[: W.size] = W.ravel()
    absmax = abs(blocks).max(-1)  # (blocks,)
    scaled = blocks / np.where(absmax > 0, absmax, 1)[:, None]
    between = (LEVELS[1:] + LEVELS[:-1]) / 2
    codes = np.searchsorted(between, scaled.ravel()).astype(np.uint8)
    codes = np.pad(codes, (0, codes.size % 2))
    return NF4(codes[::2] << 4 | codes[1::2], absmax, W.shape, block_size)


def dequantize_nf4(quantized):
    """The array that an NF4 stands for; ValueError if block_size is no count."""
    packed, absmax, shape, block_size = quantized
    held = len(absmax) * check_count(block_size, "block_size")  # with the last block's padding
    codes = np.stack([packed >> 4, packed & 15], -1).ravel()[:held]
    values = LEVELS.astype(absmax.dtype)[codes].reshape(-1, block_size) * absmax[:, None]
    return values.ravel()[: math.prod(shape)].reshape(shape)


def dense(W):
    """W itself, or the array it stands for if it is kept in four bits."""
    return dequantize_nf4(W) if isinstance(W, NF4) else W


# %% 6. Prompts, scales, biases
# PROMPT TUNING (Lester et al. 2021) trains free vectors in front of the embedded text, which keeps
# its positions. Prompts start better from real text than from noise (Lester et al., 3.2). That
# means text with its positions: the model has never seen a vector without one, attention looks at
# it about twice as much, and training starts far worse than at the base. The batch shares the
# prompt, so the backward sums the front piece of dy over the batch. (Prefixes, Li & Liang 2021, are
# keys and values in front of every layer's own; adapters, Houlsby et al. 2019, are small layers
# behind attention and MLP, y = x + GELU(x·A)·B.)
class PromptTuning:
    """Learned vectors before x (B, T, C): y (B, length + T, C). start: the first (length, C)."""

    def __init__(self, start):
        self.params = {"prompt": start}

    def forward(self, x):
        prompt = self.params["prompt"]
        y = np.concatenate([np.broadcast_to(prompt, (len(x), *prompt.shape)), x], 1)
        return y, len(prompt)

    def backward(self, dy, length):
        return dy[:, length:], {"prompt": dy[:, :length].sum(0)}


# (IA)³ (Liu et al. 2022): y = x·l on keys, values and the MLP's hidden units, with l = 1 at first.
# dx = dy·l, and dl = dy·x, summed over the batch and all times, which share l.
# BITFIT (Ben Zaken et al. 2021) needs no plug: it trains the biases that are there.
class IA3:
    """A learned scale for every channel of x (..., width). .params: {"l": (width,)}"""

    def __init__(self, width, dtype=np.float32):
        self.params = {"l": np.ones(width, dtype)}

    def forward(self, x):
        return x * self.params["l"], x

    def backward(self, dy, x):
        return dy * self.params["l"], {"l": rows(dy * x).sum(0)}


# %% 7. Files that other programs read
# PEFT keeps an adapter in two files: adapter_config.json, and the arrays in safetensors, which the
# capstone explains, writes and reads. torch's layers keep (out, in), so lora_A.weight (r, in) and
# lora_B.weight (out, r) are our A and B transposed. The matrices they change are (out, in) in
# Llama and (in, out) in GPT-2. The config calls that fan_in_fan_out, but a matrix's name tells it.
PEFT_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector"}
PEFT_ROOT = "base_model.model."
GPT2_MATRICES = ("c_attn", "c_proj", "c_fc")  # (in, out)
LLAMA_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def matrices_of(params):
    """The names of the matrices in the blocks."""
    kinds = tuple(f".{kind}.weight" for kind in GPT2_MATRICES + LLAMA_MATRICES)
    return [name for name in params if name.endswith(kinds)]


def as_in_out(params, name):
    """A view of the matrix `name` as (in, out): Llama's are stored the other way round."""
    return params[name].T if name.removesuffix(".weight").endswith(LLAMA_MATRICES) else params[name]


def save_adapter(directory, adapters, base=None):
    """Write {weight name: LoRA or DoRA layer}, all of one kind, as PEFT's two files over a base."""
    import capstone_gpt as gpt

    kinds = {(type(a), a.rank, a.alpha, a.rslora) for a in adapters.values()}
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
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    gpt.write_safetensors(folder / "adapter_model.safetensors", tensors)
    gpt.write_file(folder / "adapter_config.json", [json.dumps(config, indent=2).encode()])


# What adapter_config.json may say: keys that load_adapter reads, values that it can follow, and
# keys that change nothing after training. Any other is refused unless it is null, false or empty.
# (init_lora_weights may be PiSSA or its like: they move the base, so the adapter needs another.)
CONFIG_READ = {"r": 0, "lora_alpha": None, "rank_pattern": {}, "alpha_pattern": {}}  # defaults
CONFIG_VALUES = {
    "peft_type": ["LORA"], "bias": ["none"], "use_rslora": [True, False], "use_dora": [True, False],
    "fan_in_fan_out": [True, False], "init_lora_weights": [True, False, "gaussian", "eva"],
}  # fmt: skip
CONFIG_IDLE = """task_type auto_mapping peft_version base_model_name_or_path revision inference_mode
    lora_dropout megatron_core qalora_group_size eva_config""".split()


def check_config(path, config):
    """PEFT's configuration of a LoRA, completed; ValueError names a key that cannot be followed."""
    config = CONFIG_READ | {"peft_type": None, "target_modules": None} | config
    for key, value in config.items():
        handled = [json.dumps(v) for v in CONFIG_VALUES.get(key, [None, False, "", [], {}])]
        followed = key in CONFIG_READ or key in CONFIG_IDLE or json.dumps(value) in handled
        if key == "target_modules":
            followed = value in (None, "all-linear") or isinstance(value, list)
        if key in ("rank_pattern", "alpha_pattern"):  # PEFT's expressions, if they are names
            followed = isinstance(value, dict) and not set("".join(value)) & set("^$*+?()[]{}|\\")
        if not followed:
            raise ValueError(f"{path}: this stage cannot follow {key} = {value!r:.60}")
    return config


def first_match(names, module):
    """The first of names that the module's name is, or ends in after a dot, as in PEFT; or None."""
    return next((name for name in names if f".{module}".endswith(f".{name}")), None)


def load_adapter(directory, params):
    """{weight name: layer} over params, from PEFT's two files; ValueError if they do not fit."""
    import capstone_gpt as gpt

    path = Path(directory) / "adapter_config.json"
    read = gpt.parse_json(path.read_bytes(), dict, f"{path}: expected PEFT's configuration")
    config, adapters = check_config(path, read), {}
    ranks, alphas = config["rank_pattern"], config["alpha_pattern"]
    tensors, _ = gpt.read_safetensors(path.with_name("adapter_model.safetensors"))
    modules = sorted({name.removeprefix(PEFT_ROOT).rsplit(".lora_", 1)[0] for name in tensors})
    if not modules:
        raise ValueError(f"{path.parent}: adapter_model.safetensors holds no arrays")
    for module in modules:
        if f"{module}.weight" not in params:
            raise ValueError(f"adapter for {module!r}, which this model does not have")
        names = config["target_modules"]
        named = not isinstance(names, list) or first_match(names, module)
        if not named or not module.endswith(GPT2_MATRICES + LLAMA_MATRICES):
            raise ValueError(f"adapter for {module!r}: no target_modules, or no matrix of a block")
        W = as_in_out(params, f"{module}.weight")
        rank = ranks.get(first_match(ranks, module), config["r"])
        alpha = alphas.get(first_match(alphas, module), config["lora_alpha"])
        shapes = {"A": (rank, len(W)), "B": (W.shape[1], rank)}
        if config.get("use_dora"):
            shapes["m"] = W.shape[1:]
        labels = {key: f"{PEFT_ROOT}{module}.{PEFT_NAMES[key]}" for key in shapes}
        for key, label in labels.items():  # before anything of that size is allocated
            found = tensors[label].shape if label in tensors else "none"
            if found != shapes[key]:
                raise ValueError(f"{label}: expected the shape {shapes[key]}, found {found}")
        layer = DoRALinear if config.get("use_dora") else LoRALinear
        plug = layer(W, rank, alpha, rslora=config.get("use_rslora", False))
        for key, label in labels.items():
            gpt.copy_tensor(tensors, label, plug.params[key].T)
            del tensors[label]
        adapters[f"{module}.weight"] = plug
    if tensors:
        raise ValueError(f"{path.parent}: unexpected arrays {sorted(tensors)[:3]}")
    return adapters


# %% 8. Training and scoring
def adamw_step(p, grad, mean, square, t, rate, decay):
    """Step t = 1, 2, ... of AdamW (Loshchilov & Hutter 2019), in place on p and both running means:
    they start at 0, and after t steps hold only 1 - βᵗ of their weight."""
    mean += (1 - 0.9) * (grad - mean)
    square += (1 - 0.99) * (grad * grad - square)
    p *= 1 - rate * decay
    p -= rate * (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.99**t)) + 1e-8)


def tuned_arrays(params, adapters, trainable):
    """{name: array} of all that training moves, named as in gpt_backward."""
    tuned = {name: params[name] for name in trainable}
    for place, plug in adapters.items():
        tuned |= {f"{place}:{name}": p for name, p in plug.params.items()}
    return tuned


def train(tuned, loss_and_grads, steps, learning_rate):
    """Move tuned {name: array} in place by loss_and_grads() -> (loss, {name: gradient}); seconds.

    The rate climbs for a tenth of the steps, then falls along a cosine to a tenth. Gradients longer
    than 1 are cut to 1, only matrices of the base decay. ValueError if the loss is not finite."""
    averages = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in tuned.items()}
    began = time.perf_counter()
    for t in range(1, check_count(steps, "steps") + 1):
        loss, grads = loss_and_grads()
        norm = math.sqrt(sum(float(np.vdot(grad, grad)) for grad in grads.values()))
        if not math.isfinite(loss + norm):
            found = f"the loss is {loss:.4g}, the gradient's norm {norm:.4g}"
            raise ValueError(f"step {t}: {found}; try a lower learning_rate")
        rate = learning_rate * min(1, t / max(1, steps // 10))
        rate *= 0.55 + 0.45 * math.cos(math.pi * t / steps)
        for name, p in tuned.items():
            decay = 0.1 if p.ndim == 2 and ":" not in name else 0
            adamw_step(p, grads[name] / max(1, norm), *averages[name], t, rate, decay)
        if sys.stdout.isatty():  # overwritten by whatever is printed next
            print(f"{f'step {t}/{steps}, loss {loss:.3f} nats':<78}", end="\r", flush=True)
    return time.perf_counter() - began


def fit(params, ids, n_head, steps, learning_rate, rng, adapters=None, trainable=(), batch=8):
    """Train in place base parameters `trainable` and every plug on windows of ids (N,); seconds."""
    adapters, T = adapters or {}, len(params["transformer.wpe.weight"])
    ids = check_ids(ids, "ids", len(params["transformer.wte.weight"]))

    def loss_and_grads():
        windows = rng.integers(0, len(ids) - T, batch)[:, None] + np.arange(T)  # (B, T)
        logits, cache = gpt_forward(params, ids[windows], n_head, adapters)
        loss, dlogits = cross_entropy(logits, ids[windows + 1])
        return loss, gpt_backward(dlogits, cache, trainable)

    tuned = tuned_arrays(params, adapters, trainable)
    return train(tuned, loss_and_grads, steps, learning_rate)


def score(params, ids, first, n_head, adapters=None):
    """Mean nats of ids[first:], each predicted once, from at least half a window of context."""
    T = len(params["transformer.wpe.weight"])
    ids = check_ids(ids, "ids", len(params["transformer.wte.weight"]))
    total, stride = 0.0, max(1, T // 2)
    starts = np.arange(first, len(ids), stride)
    for some in np.array_split(starts, -(-len(starts) // 64)):
        ends = np.minimum(some + stride, len(ids))  # row by row, predict ids[some:ends]
        places = ends[:, None] + np.arange(-T, 0)  # (B, T) of the targets
        targets = np.where(places >= some[:, None], ids[places], -1)
        logits, _ = gpt_forward(params, ids[places - 1], n_head, adapters)
        total += cross_entropy(logits, targets)[0] * (targets >= 0).sum()
    return total / (len(ids) - first)


# %% 9. Which method, where, which rank and alpha
# The report runs one seed. benchmarks/stage09_sweep.py ran three, every row at its best rate, and
# keeps what it found in results/stage09_sweep.md. For this model and these texts:
#     METHOD. Full fine-tuning gains most, and for an equal gain it forgets least: when it has made
#         three quarters of its gain on verses it has lost 0.012 bits on stories, LoRA 0.056. Use it
#         where memory allows. LoRA makes 92 % of that gain with 7 % of the numbers, DoRA 94 %, LoRA
#         over NF4 89 %: for models too large to be trained whole, and for many voices on one base.
#         BitFit makes 66 %, (IA)³ 57 %, with about 1 %: for very many voices. A prompt makes 10 %.
#     WHERE. In all matrices. With about as many numbers, in attention alone it makes 77 %, in the
#         MLP alone 87 %.
#     RANK. 1, 4 and 16 make 83 %, 92 % and 98 %. Begin with 8 or 16; go up while that helps.
#     ALPHA is a learning rate once more: with 2, 8 and 32 LoRA makes 91 %, 92 % and 88 %, at rates
#         of 0.032, 0.016 and 0.004. So fix it, at 2r say, and tune the rate.
#     RATE. LoRA's best is 16 times that of full fine-tuning. From rank 1 to rank 16 it falls from
#         0.016 to 0.008 under α/r, and to 0.004 under α/√r: with Adam, α/r keeps it better.
# Large models agree in part. Biderman et al. (2024) find LoRA and full fine-tuning on one curve of
# learning against forgetting (LoRA forgets less where it learns less), and updates of high rank.
# Schulman et al. (2025) find LoRA in all matrices as good as full fine-tuning where the data are
# few, at about ten times its rate.


# %% Demonstration
# The rates are the sweep's: each the best of a grid on the last tenth of the verses' training part.
DEFAULTS = (None, 4, 8, False, ("c_attn", "c_proj", "c_fc"))
Recipe = namedtuple("Recipe", "rate layer rank alpha rslora targets", defaults=DEFAULTS)
METHODS = {  # at rank 1, rsLoRA is LoRA
    "full fine-tuning": Recipe(0.001),
    "LoRA": Recipe(0.016, LoRALinear),
    "LoRA, rank 1": Recipe(0.016, LoRALinear, 1),
    "LoRA, rank 16": Recipe(0.008, LoRALinear, 16),
    "LoRA, attention": Recipe(0.032, LoRALinear, 11, targets=("c_attn", "attn.c_proj")),
    "LoRA, MLP": Recipe(0.016, LoRALinear, 6, targets=("c_fc", "mlp.c_proj")),
    "LoRA on NF4 base": Recipe(0.008, LoRALinear),
    "rsLoRA": Recipe(0.008, LoRALinear, rslora=True),
    "rsLoRA, rank 16": Recipe(0.004, LoRALinear, 16, rslora=True),
    "DoRA": Recipe(0.008, DoRALinear),
    "prompt tuning": Recipe(0.256),
    "BitFit": Recipe(0.032),
    "(IA)^3": Recipe(0.064),
}


def sizes(fast):
    """(layers, channels, heads, context) of the base, its steps, and the steps of a method."""
    return ((1, 16, 2, 16), 20, 2) if fast else ((1, 64, 4, 32), 1400, 150)


def read_corpora(fast):
    """{name: (ids, first)}, ids[:first] to train on (fast: 4,000), and the vocabulary's size."""
    folder = Path(__file__).resolve().parent / "data"
    texts = {name: (folder / f"{name}.txt").read_text("utf-8") for name in ("stories", "verses")}
    place = {letter: i for i, letter in enumerate(sorted(set(texts["stories"])))}
    corpora = {}
    for name, text in texts.items():
        ids, first = np.array([place[letter] for letter in text]), int(0.9 * len(text))
        corpora[name] = (ids[first - 4000 : first + 200], 4000) if fast else (ids, first)
    return corpora, len(place)


def prepare(method, params, text, seed):
    """(params, adapters, trainable) ready for `fit`; what will be trained is copied first."""
    recipe = METHODS[method]
    wte, wpe = params["transformer.wte.weight"], params["transformer.wpe.weight"]
    C, adapters, trainable = wte.shape[1], {}, []
    if recipe.layer:
        if "NF4" in method:
            params = params | {name: quantize_nf4(params[name]) for name in matrices_of(params)}
        _, layer, rank, alpha, rslora, targets = recipe
        adapters = apply_lora(params, targets, rank, alpha, seed, rslora, layer)
    elif method == "prompt tuning":
        adapters["transformer.prompt"] = PromptTuning(wte[text[:8]] + wpe[:8])
    elif method == "(IA)^3":
        for h in layers_of(params):
            adapters |= {f"{h}.attn.kv": IA3(2 * C), f"{h}.mlp.act": IA3(4 * C)}
    elif method == "BitFit":
        trainable = [name for name in params if name.endswith("bias")]
    else:
        trainable = list(params)
    return params | {name: params[name].copy() for name in trainable}, adapters, trainable


def pretrain(corpora, vocab_size, size, steps, seed, learning_rate=8e-3):
    """(params, seconds): a model of size (L, C, H, T) trained on the stories' training part."""
    L, C, H, T = size
    ids, first = corpora["stories"]
    params, rng = init_params(vocab_size, T, L, C, seed), np.random.default_rng([seed, 0])
    return params, fit(params, ids[:first], H, steps, learning_rate, rng, {}, list(params), 16)


def adapt(method, params, n_head, text, steps, seed, factor=1.0):
    """((params, adapters) after `steps` on text at factor × the method's rate, numbers, seconds)"""
    params, adapters, trainable = prepare(method, params, text, seed)
    rate = factor * METHODS[method].rate
    rng = np.random.default_rng([seed, 1])
    seconds = fit(params, text, n_head, steps, rate, rng, adapters, trainable)
    trained = sum(p.size for p in tuned_arrays(params, adapters, trainable).values())
    return (params, adapters), trained, seconds


def forgetting(curve, gain):
    """The rise of the old text's bits where the new text's have fallen by `gain`; nan if they never
    did. curve: a (gain, rise) of every finished run; between them, and from (0, 0), a line."""
    gains, rises = zip(*sorted([(0.0, 0.0), *curve]))
    return float(np.interp(gain, gains, rises)) if gain <= gains[-1] else math.nan


def report_methods(base, size, bits, run):
    """Run and print every method; full fine-tuning's model and {method: curve for `forgetting`}."""
    print("method             trained   share seconds  verses stories")
    print(f"{'the base itself':<42}{base[1]:>8.3f}{base[0]:>8.3f}")
    models, curves = [], {}
    for method in METHODS:
        curves[method] = []
        for part in (1,) if "," in method else (1 / 8, 1 / 3, 1):  # of the method's rate
            tuned, trained, seconds = run(method, part)
            stories, verses = bits(*tuned)
            curves[method].append((base[1] - verses, stories - base[0]))
        models.append(tuned[0])
        row = f"{method:<18}{trained:>8,}{trained / size:>8.1%}{seconds:>8.1f}"
        print(f"{row}{verses:>8.3f}{stories:>8.3f}", flush=True)
    return models[0], curves


def report_forgetting(curves):
    """Plot what the stories lost over what the verses gained; compare LoRA and full fine-tuning."""
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    best = max(gain for curve in curves.values() for gain, _ in curve)
    gains = np.linspace(0, best, 72)
    rises = {name: [forgetting(curve, gain) for gain in gains] for name, curve in curves.items()}
    low, high = np.nanmin([*rises.values()]), np.nanmax([*rises.values()])
    canvas, marks = np.full((12, 72), " "), "FLQRDPBI"
    for mark, row in reversed([*zip(marks, rises.values())]):
        for column in np.flatnonzero(np.isfinite(row)):
            canvas[round(11 * (high - row[column]) / (high - low or 1)), column] = mark
    print(f"\nBits lost on stories, {low:.3f} to {high:.3f} (up), over bits gained on verses, 0 to")
    print(f"{best:.3f} (right).")
    print(", ".join(f"{mark} {method}" for mark, method in zip(marks, rises)))
    print("\n".join("  |" + "".join(line).rstrip() for line in canvas))
    print("  +" + "-" * 72)
    full, lora = curves["full fine-tuning"], curves["LoRA"]
    goal = 0.9 * min(full[-1][0], lora[-1][0])
    lost = {"full fine-tuning": forgetting(full, goal), "LoRA": forgetting(lora, goal)}
    less, more = sorted(lost, key=lost.get)
    share = lora[-1][0] / full[-1][0]
    print(f"LoRA gains {share:.0%} of what full fine-tuning gains. For the same gain of {goal:.3f}")
    print(f"{less} loses {lost[less]:.3f} bits on stories, {more} {lost[more]:.3f}.")


def report_ranks(params, full, bits):
    """Is the update that full fine-tuning found low-rank? Cut it and see."""
    updates = {name: full[name] - params[name] for name in matrices_of(params)}
    ranks, kept, scores = (0, 1, 2, 4, 8, 16, 32, 64), [], []
    print("\nThe full update ΔW of every matrix cut to a rank, all else as tuned")
    for rank in ranks:
        cuts = {name: low_rank(update, rank) for name, update in updates.items()}
        model = full | {name: params[name] + cut for name, (cut, _) in cuts.items()}
        kept.append(float(np.mean([share for _, share in cuts.values()])))
        scores.append(bits(model)[1])
        print(f"rank {rank:>2}: {kept[-1]:>6.1%} of ‖ΔW‖², verses {scores[-1]:.3f}")
    near = next(rank for rank, share in zip(ranks, kept) if share >= 0.9)
    goal = scores[0] - 0.9 * (scores[0] - scores[-1])
    good = next((rank for rank, score in zip(ranks, scores) if score <= goal), ranks[-1])
    print(f"Nine tenths of ‖ΔW‖² take rank {near}, nine tenths of the gain take rank {good}.")
    if good < near:
        print("So the gain takes a lower rank than ΔW itself: most of ΔW is of little use.")
    else:
        print("So the gain needs as high a rank as ΔW itself.")


def report(fast, seed):
    """Pre-train, adapt in every way, print."""
    shape, steps, adapt_steps = sizes(fast)
    L, C, H, T = shape
    corpora, vocab_size = read_corpora(fast)
    params, seconds = pretrain(corpora, vocab_size, shape, steps, seed)
    verses = corpora["verses"][0][: corpora["verses"][1]]  # to train on

    def bits(params, adapters=None):
        """Held-out bits a character of stories and of verses."""
        return [score(params, *corpus, H, adapters) / math.log(2) for corpus in corpora.values()]

    def run(method, factor):
        return adapt(method, params, H, verses, adapt_steps, seed, factor)

    base, size = bits(params), sum(p.size for p in params.values())
    print(f"Base: {L} layer, {C} channels, {H} heads, context {T}, {size:,} parameters;")
    print(f"{steps} steps on stories took {seconds:.1f}s, while AdamW held {16 * size:,} bytes.")
    print(f"\nThe base adapted to verses, {adapt_steps} steps each; held-out bits/char\n")
    full, curves = report_methods(base, size, bits, run)
    report_forgetting(curves)
    _, plugs, _ = prepare("prompt tuning", params, verses, seed)
    placed = bits(params, plugs)[1]
    plugs["transformer.prompt"].params["prompt"] -= params["transformer.wpe.weight"][:8]
    bare = bits(params, plugs)[1]
    print(f"\nUntrained, a prompt is at {placed:.3f}, and without its positions at {bare:.3f}.")
    report_ranks(params, full, bits)
    nats = base[0] * math.log(2)
    print(f"\nheld-out: {nats:.3f} nats/char | {base[0]:.3f} bits/char | perplexity", end=" ")
    print(f"{math.exp(nats):.2f}   (stage 9, transformer before adapting, context {T})")


# %% Your own model
# The capstone opens the checkpoint and computes the loss and G = ∂L/∂W for every matrix. No more is
# needed: the gradients of A, B and m follow from G. (So the time for G is not spared here.)
def open_checkpoint(args):
    """(the capstone, its directory, model and tokenizer) of args.base."""
    import capstone_gpt as gpt

    source = gpt.checkpoint_of(args.base)
    model, tokenizer = gpt.load(source)
    if args.nf4:
        for name in matrices_of(model.params):
            model.params[name][...] = dense(quantize_nf4(model.params[name]))
    return gpt, str(source), model, tokenizer


def merge_into(params, plugs):
    """Put the plugs' merged matrices into params, in place."""
    for name, plug in plugs.items():
        as_in_out(params, name)[...] = plug.merge()


def checkpoint_gradients(model, plugs, batch):
    """Mean loss of a batch of examples, and {name: gradient} of the plugs or, without, of all."""
    total, grads = 0.0, {}
    for idx, targets in batch:
        loss, found = model.loss_and_grads(idx, targets, scale=1 / len(batch))
        total += loss / len(batch)
        slopes = {} if plugs else found
        for name, plug in plugs.items():
            for key, slope in plug.gradients(as_in_out(found, name)).items():
                slopes[f"{name}:{key}"] = slope
        for name, slope in slopes.items():
            grads[name] = grads.get(name, 0) + slope
    return total, grads


def say(line):
    """Print a line. Where nobody reads any more, training goes on and saves what it has learned."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


@contextlib.contextmanager
def new_directory(out):
    """Within `with`, a name for a directory that becomes `out` at its end, or else vanishes."""
    out = Path(out)
    if out.exists():
        raise ValueError(f"--out {out} exists already; expected the name of a new directory")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        part = Path(folder) / out.name
        yield part
        os.replace(part, out)


def example(ids, first=1):
    """(idx, targets), (1, T) each, to predict ids[first:]; what stands before is -1, ignored."""
    targets = np.array(ids[1:])
    targets[: first - 1] = -1
    return np.array(ids[:-1])[None], targets[None]


def read_answers(path, text, tokenizer, end):
    """Examples from lines {"prompt": ..., "response": ...}; ValueError names the damaged lines."""
    examples, damaged = [], []
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
            examples.append(example(ids, max(1, len(start))))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            damaged.append(f"line {number} ({error!r:.100})")
    if damaged:
        found = f"{len(damaged)} damaged lines, such as {', '.join(damaged[:4])}"
        raise ValueError(f'{path}: expected {{"prompt": "...", "response": "..."}} a line; {found}')
    return examples


def read_examples(gpt, path, model, tokenizer):
    """(examples to learn from, the last tenth, held out); ValueError if either would be empty."""
    text, T = "".join(gpt.stream_text(path)), model.config.block_size
    if str(path).endswith(".jsonl"):
        end = [int(i) for i in gpt.bos_and_eos(model)[1][:1] or tokenizer.encode("\n\n")]
        examples = read_answers(path, text, tokenizer, end)
        found = [(idx, targets) for idx, targets in examples if idx.size <= T]
        long = len(examples) - len(found)
        say(f"{long} examples are left out, longer than {T} tokens. Answers end with token {end}.")
        cut = min(len(found) - 1, math.ceil(0.9 * len(found)))
        parts = found[:cut], found[cut:]
    else:
        cut = int(0.9 * len(text))
        halves = [tokenizer.encode(half) for half in (text[:cut], text[cut:])]
        parts = [[example(ids[i : i + T + 1]) for i in range(0, len(ids) - 1, T)] for ids in halves]
    if not all(parts):
        raise ValueError(f"{path}: expected at least two examples, one of them to be held out")
    return parts


def adapt_command(args):
    """Adapt a checkpoint to a text or to answers; save PEFT's two files or, with full, a model."""
    with new_directory(args.out) as part:
        gpt, source, model, tokenizer = open_checkpoint(args)
        examples, held = read_examples(gpt, args.data, model, tokenizer)
        plugs, tuned = {}, dict(model.params)
        rng = np.random.default_rng(args.seed)
        if args.method != "full":
            layer = DoRALinear if args.method == "dora" else LoRALinear
            rslora = args.method == "rslora"
            for name in matrices_of(model.params):
                W = as_in_out(model.params, name).copy()
                plugs[name] = layer(W, args.rank, args.alpha, rng, rslora)
            tuned = tuned_arrays({}, plugs, [])

        def held_out():
            counts = [(targets >= 0).sum() for _, targets in held]
            return np.average([model.loss(*example) for example in held], weights=counts)

        def loss_and_grads():
            merge_into(model.params, plugs)
            chosen = rng.integers(0, len(examples), args.batch_size)
            return checkpoint_gradients(model, plugs, [examples[i] for i in chosen])

        before, size = held_out(), sum(p.size for p in tuned.values())
        say(f"{len(examples)} examples to learn from, {len(held)} held out")
        say(f"held out before: {before:.3f} nats a token ({size:,} numbers will be trained)")
        seconds = train(tuned, loss_and_grads, args.steps, args.learning_rate)
        merge_into(model.params, plugs)
        after = held_out()
        say(f"held out after: {after:.3f} nats a token ({args.steps} steps, {seconds:.0f} s)")
        if not after < before:
            say("That is no better: try fewer steps, another rate, or more examples.")
        if plugs:
            save_adapter(part, plugs, source)
        else:
            model.save_pretrained(part)
    say(f"Saved in {args.out}.")


def merge_command(args):
    """Fold an adapter into its base: a checkpoint that the capstone and transformers open."""
    with new_directory(args.out) as part:
        _, _, model, _ = open_checkpoint(args)
        merge_into(model.params, load_adapter(args.adapter, model.params))
        if not np.isfinite(model.flat).all():
            raise ValueError(f"{args.adapter}: merged, it makes weights that are not finite")
        model.save_pretrained(part)
    say(f"Saved in {args.out}.")


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, whatever it is that they quote."""

    def error(self, message):
        line = " ".join(f"stage09_lora.py: error: {message}".split())
        self.exit(2, f"{line:.400}\n")


def build_parser():
    """The command line: without a command the report, else adapt or merge."""
    parser = Parser("stage09_lora.py", description="Adapt a small GPT in many ways, or your own.")
    parser.set_defaults(run=lambda args: report(args.fast, args.seed))
    parser.add_argument("--fast", action="store_true", help="a smoke run in miniature")
    parser.add_argument("--seed", type=int, default=0, help="fixes every random choice")
    commands = parser.add_subparsers(title="commands for a model of your own")
    adapter = commands.add_parser("adapt", help="fine-tune on a text, or on prompts and responses")
    adapter.set_defaults(run=adapt_command)
    merger = commands.add_parser("merge", help="fold an adapter into its base")
    merger.set_defaults(run=merge_command)
    merger.add_argument("--adapter", required=True, help="a directory with PEFT's two files")
    for sub in (adapter, merger):
        add = sub.add_argument
        add("--base", required=True, help="a GPT-2 or Llama of the capstone or of transformers")
        add("--out", required=True, help="a new directory for the result")
        add("--nf4", action="store_true", help="round the base to four bits first; then merge, too")
    add = adapter.add_argument
    add("--data", required=True, help="a text, or .jsonl: a prompt and a response a line")
    add("--method", choices=["lora", "rslora", "dora", "full"], default="lora", help="[lora]")
    add("--rank", type=int, default=8, help="the columns of A [8]")
    add("--alpha", type=float, default=16.0, help="LoRA's scale times the rank [16]")
    add("--steps", type=int, default=200, help="updates [200]")
    add("--batch_size", type=int, default=8, help="examples an update [8]")
    add("--learning_rate", type=float, default=1e-3, help="the highest; of full, try 3e-5 [1e-3]")
    add("--seed", type=int, default=argparse.SUPPRESS, help="fixes every random choice [0]")
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
            lowest = 0 if name == "seed" else 1
            if type(value) is int and not lowest <= value < 2**63:
                raise ValueError(f"--{name} must be at least {lowest}, below 2**63, not {value}")
            if type(value) is float and not 0 < value < 2**63:
                raise ValueError(f"--{name} must be above 0 and below 2**63, not {value}")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named
            args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever was reading has seen enough
        pass
    except KeyboardInterrupt:
        parser.exit(130, "\n")
    except ImportError:
        parser.error("adapt and merge need capstone_gpt.py beside this file")
    except (OSError, ValueError, MemoryError) as error:
        parser.error(str(error) or "there is not enough memory")
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # a closed pipe, a full disk: what still waits goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# %% What to take away
# LoRA: y = xW + s(xA)B with s = α/r or α/√r, B = 0 at first; dB = s·Aᵀ·G, dA = s·G·Bᵀ with W's own
# gradient G; and W + sAB is one matrix again. DoRA learns the columns' lengths beside it, QLoRA
# keeps W in 4.5 bits a number. Plugs save memory and files; here they did not save from forgetting.
# Every method has its own best learning rate: at one rate for all, nothing is compared.

# %% Common mistakes
# 1. B not zero at first. Symptom: the loss is worse than the base's before any training.
#    A zero as well. Symptom: every gradient is 0 for ever. `LoRALinear.__init__` does neither.
# 2. The scale forgotten in the backward. Symptom: it trains, but central differences disagree and
#    the best rate changes with alpha. `lora_backward` has it once in dh and once in dB.
# 3. Merging into the shared base. Symptom: the next adapter speaks with the last one's accent.
#    `LoRALinear.merge` makes a new matrix.
# 4. Training the base along. Symptom: a saved adapter is useless over a fresh base. `train`
#    moves only what is in `tuned`.
# 5. A file's matrices transposed. Symptom: shapes that do not fit or, if square, nonsense without
#    an error. `save_adapter` writes p.T; benchmarks/check_peft.py asks PEFT.
# 6. A prompt that the model has never seen the like of. Symptom: it starts worse than the base.
#    `prepare` starts it from text with its positions.
# 7. Full fine-tuning at LoRA's rate, or the other way round. Symptom: one of them looks bad. Their
#    best rates in METHODS lie far apart.

# %% Exercises
# They are in exercises/stage09.py, and `python exercises` checks them.
#  1. ★ (by hand) Two steps with a plug
#  2. ★ (by hand) When LoRA saves nothing
#  3. ★ (explain) The other way round
#  4. ★★ (derive) Two shadows of one gradient
#  5. ★★ (find the bug) It trains, and the check complains
#  6. ★★ (implement) A layer that cannot be merged
#  7. ★★ (derive) Four bits and a little more
#  8. ★★ (implement) Eight bits, row by row
#  9. ★★ (measure) Blocks of 64, or of 512
# 10. ★★★ (implement) Two voices in one adapter
# 11. ★★★ (derive) Starting from W's own directions
# 12. ★★ (research) A tenth of the old text
# 13. ★★★ (project) A voice in a thousand numbers

# %% Where this leads
# An adapter teaches a model a text's manner; nobody has said yet which of two answers is *better*.
# Stage 10 learns from such preferences. LoRA over a four-bit base is how most open models are tuned
# today, and a server keeps one base in memory with hundreds of adapters at hand.

if __name__ == "__main__":
    main()
