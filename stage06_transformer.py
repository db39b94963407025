# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 6: the transformer. What does stacking attention buy, and what does a bigger stack cost?

Stage 5 built one layer in which every position looks back at every earlier one. A language model
is such layers in a row, each adding a little to a running sum, the residual stream. This stage
stacks them in the two families in use today, gpt2 and llama, and answers what a builder asks before
paying for one: how many weights, how much arithmetic, how many bytes, and how low will the loss go?
The gradients come from an autograd over whole arrays, stage 2's idea in a hundred lines; the
capstone derives them by hand, and a test gives both the same weights and compares every number.

The map:  1 an array that remembers     2 the parts of a block    3 configuration and names
          4 the block and its depth     5 masks and objectives    6 the model
          7 counting before building    8 scaling laws            9 training and scoring

    python stage06_transformer.py           the report, under a minute (--fast: three seconds)

Papers: Vaswani et al. 2017, Attention Is All You Need; Radford et al. 2019 (GPT-2); Xiong et al.
2020, On Layer Normalization in the Transformer Architecture; Shazeer 2020, GLU Variants Improve
Transformer; Kaplan et al. 2020 and Hoffmann et al. 2022 (Chinchilla) on scaling laws.
"""

import argparse
import contextlib
import ctypes
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np


# %% 1. An array that remembers
# Shapes throughout: B sequences, T tokens, C channels, H heads of D = C/H channels, Hkv heads of
# keys and values, F hidden units in the MLP, V vocabulary, L layers; N counts weights.
# A computation is a row of steps, each making one array from earlier ones. A tape keeps them in
# order, and with each array how to turn dy = ∂loss/∂itself into one gradient per parent (`pull`).
# Rewind the tape: when an array's turn comes, every path from the loss to it has been added up, and
# that is the chain rule, ∂loss/∂x = Σ ∂loss/∂y · ∂y/∂x over the children y of x. Stage 2 did this
# number by number; with an array per step Python's overhead is paid per layer.
class Tensor:
    """An array, its parents and pull(dy) -> one gradient for each, on the parents' tape if any."""

    def __init__(self, data, parents=(), pull=None, tape=None):
        self.data = np.asarray(data)
        self.shape, self.grad = self.data.shape, None
        self.tape = next((parent.tape for parent in parents if parent.tape is not None), tape)
        if self.tape is not None:
            self.parents, self.pull = parents, pull
            self.tape.append(self)

    def backward(self):
        """Rewind the tape, leaving ∂self/∂leaf in each leaf's .grad; self holds one number."""
        if self.tape is None or self.data.size != 1:
            raise ValueError(f"backward needs one number on a tape, not {self.shape}")
        self.grad, tape = np.ones_like(self.data), self.tape
        while tape:
            node = tape.pop()
            if node.pull and node.grad is not None:
                for parent, grad in zip(node.parents, node.pull(node.grad)):
                    if np.shape(grad) != parent.shape:
                        found = f"{np.shape(grad)} for an array of shape {parent.shape}"
                        raise ValueError(f"a pull must return gradients like its parents: {found}")
                    parent.grad = grad if parent.grad is None else parent.grad + grad
                node.grad = None  # used up; only leaves keep theirs

    # y = a + b hands dy to both terms, y = ab hands dy b to a. An array repeated (broadcast) to
    # reach y's shape lent each number to many places, and receives the sum of their gradients.
    def __add__(self, other):
        a, b = self.data, other.data
        return Tensor(a + b, (self, other), lambda dy: [unbroadcast(dy, x.shape) for x in (a, b)])

    def __mul__(self, other):
        if not isinstance(other, Tensor):  # a constant
            return Tensor(self.data * other, (self,), lambda dy: (dy * other,))
        a, b = self.data, other.data
        if a.shape != b.shape:  # here no other product is needed
            raise ValueError(f"a product needs two arrays of one shape, not {a.shape}, {b.shape}")
        return Tensor(a * b, (self, other), lambda dy: (dy * b, dy * a))

    # y = ab for matrices: yᵢⱼ = Σₖ aᵢₖbₖⱼ, so ∂loss/∂aᵢₖ = Σⱼ dyᵢⱼ bₖⱼ and ∂loss/∂bₖⱼ = Σᵢ aᵢₖ
    # dyᵢⱼ, that is da = dy bᵀ, db = aᵀ dy. Stacks of matrices multiply pair by pair; a stack times
    # one weight matrix is one product of all its rows, which is faster.
    def __matmul__(self, other):
        a, b = self.data, other.data
        a = a.reshape(-1, a.shape[-1]) if b.ndim == 2 else a

        def pull(dy):
            dy = dy.reshape(*a.shape[:-1], -1)
            da, db = dy @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ dy
            return da.reshape(self.shape), unbroadcast(db, b.shape)

        return Tensor((a @ b).reshape(*self.shape[:-1], -1), (self, other), pull)

    # Moving numbers moves their gradients back. A slice gives 0 to what it left out, and a row
    # looked up several times collects the sum.
    def reshape(self, *shape):
        return Tensor(self.data.reshape(shape), (self,), lambda dy: (dy.reshape(self.shape),))

    def transpose(self, *axes):
        back = np.argsort(np.mod(axes, len(axes)))  # -1 is the last axis
        return Tensor(self.data.transpose(axes), (self,), lambda dy: (dy.transpose(back),))

    def __getitem__(self, index):
        parts = index if isinstance(index, tuple) else (index,)
        slices = all(isinstance(part, (int, slice, type(...))) for part in parts)

        def pull(dy):
            dx = np.zeros(self.shape, dy.dtype)
            if slices:  # no number is picked twice
                dx[index] = dy
            else:
                np.add.at(dx, index, dy)
            return (dx,)

        return Tensor(self.data[index], (self,), pull)


def unbroadcast(grad, shape):
    """Sum grad over the axes along which an array of this shape was repeated."""
    grad = grad.sum(tuple(range(grad.ndim - len(shape)))) if grad.ndim > len(shape) else grad
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and grad.shape[i] > 1)
    return grad.sum(axes, keepdims=True) if axes else grad


# %% 2. The parts of a block
# As one step each, not composed, these are faster and keep fewer arrays. LayerNorm gives each row
# mean 0 and variance 1, whatever the scale of what came before:
#     μ = mean(x),   r = 1/√(mean((x - μ)²) + ε),   x̂ = (x - μ) r,   y = x̂ γ + β.
# With ∂μ/∂xⱼ = 1/C and ∂r/∂xⱼ = -½ r³ · 2(xⱼ - μ)/C = -r² x̂ⱼ/C its Jacobian is
#     ∂x̂ᵢ/∂xⱼ = r (1[i=j] - 1/C) + (xᵢ - μ)(-r² x̂ⱼ/C) = r ( 1[i=j] - 1/C - x̂ᵢx̂ⱼ/C ),         (J)
# so with a = ∂loss/∂x̂ = dy γ:  dx = r ( a - mean(a) - x̂ mean(a x̂) ),  dγ = Σ dy x̂,  dβ = Σ dy.
# RMSNorm keeps the mean: r = 1/√(mean(x²) + ε), y = x r γ; in (J) the term 1/C goes, in dx mean(a).
# It fixes the scale, the part that matters, with less work (Zhang & Sennrich 2019).
def normalise(x, weight, bias=None, eps=1e-5, centre=True):
    """LayerNorm over the last axis of x (..., C), or RMSNorm with centre=False."""
    C, gamma = x.shape[-1], weight.data
    mean = np.full(C, 1 / C, x.data.dtype)  # x @ mean: a product is NumPy's fastest row sum
    xhat = x.data - (x.data @ mean)[..., None] if centre else x.data.copy()
    r = (1 / np.sqrt(np.vecdot(xhat, xhat) / C + eps))[..., None]  # (..., 1)
    xhat *= r
    y = xhat * gamma if bias is None else xhat * gamma + bias.data

    def pull(dy):
        ones, a = np.ones(dy.size // C, dy.dtype), dy * gamma
        dx = a - xhat * (np.vecdot(a, xhat) / C)[..., None]
        if centre:
            dx -= (a @ mean)[..., None]
        dx *= r
        return dx, ones @ (dy * xhat).reshape(-1, C), ones @ dy.reshape(-1, C)

    return Tensor(y, (x, weight, bias)[: 2 + (bias is not None)], pull)


# The MLP works on each position alone: up from C to F units, a bend, and down again. The bends:
#     GELU (gpt2)    y = ½x(1 + t),  t = tanh u,  u = c(x + kx³),  c = √(2/π),  k = 0.044715;
#                    tanh' = 1 - t², so y' = ½(1 + t) + ½x(1 - t²) c(1 + 3kx²)
#     SiLU (llama)   y = xσ(x),  σ = 1/(1 + e⁻ˣ) = ½(1 + tanh(x/2)), a form that cannot overflow;
#                    σ' = σ(1 - σ), so y' = σ + y(1 - σ)
# The slope is computed with the value; the backward is one product. llama's MLP is SwiGLU,
# down(silu(gate(x)) · up(x)): one linear map opens a gate on another. Three matrices instead of
# two: equal parameters, 3CF' = 2C·4C, ask for F' = 8C/3.
def gelu(x):
    """Gaussian error linear unit in GPT-2's tanh form."""
    c, k, a = math.sqrt(2 / math.pi), 0.044715, x.data
    square = a * a
    t = np.tanh(c * a * (1 + k * square))
    slope = 0.5 * (1 + t) + (0.5 * c) * a * (1 - t * t) * (1 + 3 * k * square)
    return Tensor(0.5 * a * (1 + t), (x,), lambda dy: (dy * slope,))


def silu(x):
    """Sigmoid linear unit, x σ(x)."""
    sigmoid = 0.5 * np.tanh(0.5 * x.data) + 0.5
    y = x.data * sigmoid
    slope = sigmoid + y * (1 - sigmoid)
    return Tensor(y, (x,), lambda dy: (dy * slope,))


# Softmax p = e^s/Σe^s has ∂pᵢ/∂sⱼ = pᵢ(1[i=j] - pⱼ), hence ds = p (dp - Σᵢ dpᵢpᵢ). A mask of -∞
# added to s gives p = 0 and, by that factor p, ds = 0: neither information nor gradient.
def softmax(s, mask=0.0):
    """Softmax of s + mask over the last axis, the row's maximum subtracted first."""
    p = s.data + mask
    p -= np.maximum(p.max(-1, keepdims=True), np.finfo(p.dtype).min)  # a row of -∞ gets zeros
    np.exp(p, out=p)
    p /= np.maximum(p @ np.ones(p.shape[-1], p.dtype), 1)[..., None]  # the maximum adds e⁰ = 1
    return Tensor(p, (s,), lambda dp: ((dp - np.vecdot(dp, p)[..., None]) * p,))


# Cross-entropy, the mean over the n targets that count, -Σ log p[target]/n: since log p[target] =
# z[target] - log Σₖ e^zₖ, the derivative is dzⱼ = (pⱼ - 1[j = target])/n.
def cross_entropy(logits, targets):
    """Mean of -log p[target] in nats, targets (B, T), logits (B, T, V); a target -1 is skipped."""
    z = logits.data.reshape(-1, logits.shape[-1])
    targets = check_ids("targets", targets, z.shape[1], -1)
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets must have the shape {logits.shape[:-1]}, not {targets.shape}")
    kept = np.flatnonzero(targets.ravel() != -1)
    picked, n = targets.ravel()[kept], max(1, len(kept))
    logp = z - z.max(-1, keepdims=True)  # (B·T, V)
    logp -= np.log(np.exp(logp) @ np.ones(z.shape[1], z.dtype))[:, None]

    def pull(dy):
        dz = np.zeros_like(logp)
        dz[kept] = np.exp(logp[kept])
        dz[kept, picked] -= 1
        return (dz.reshape(logits.shape) * (dy / n),)

    return Tensor(-logp[kept, picked].sum() / n, (logits,), pull)


# RoPE (stage 5) turns channel pair (i, i + D/2) of each head at position t by the angle
# t·θ^(-2i/D), so that scores depend on distances alone. With S the matrix that takes [a, b] to [-b,
# a], y = x cos + (xS) sin; the backward is the rotation back, -sin.
def rotate(x, cos, sin):
    """Rotate the heads side by side in x (B, T, H·D), given cos and sin (T, D) of the angles."""
    D, heads = cos.shape[1], x.shape[-1] // cos.shape[1]
    S = np.roll(np.eye(D, dtype=cos.dtype), D // 2, 1)
    S[D // 2 :] *= -1
    cos, sin = np.tile(cos, heads), np.tile(sin, heads)  # (T, H·D)
    turn = lambda a, sin: a * cos + (a.reshape(-1, D) @ S).reshape(a.shape) * sin  # noqa: E731
    return Tensor(turn(x.data, sin), (x,), lambda dy: (turn(dy, -sin),))


# %% 3. Configuration and names
@dataclass
class TransformerConfig:
    """The shape of a model, or ValueError; None takes the value of GPT-2 124M or Llama-2 7B.

    n_kv_head: default n_head. n_hidden, F: default 4C, or 8C/3 rounded up to a multiple of C/16.
    dropout is carried for the capstone's sake; nothing is dropped here.
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

    def __post_init__(self):
        if self.arch not in ("gpt2", "llama"):
            raise ValueError(f"arch must be 'gpt2' or 'llama', not {self.arch!r}")
        llama, sizes = self.arch == "llama", "vocab_size block_size n_layer n_head n_embd".split()
        gpt2_124m, llama_7b = (50257, 1024, 12, 12, 768), (32000, 4096, 32, 32, 4096)
        defaults = dict(zip(sizes, llama_7b if llama else gpt2_124m))
        for name, value in (defaults | {"bias": not llama, "tie_weights": not llama}).items():
            setattr(self, name, value if getattr(self, name) is None else getattr(self, name))
            if name in sizes:
                setattr(self, name, check_count(name, getattr(self, name)))
            elif not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name in ("dropout", "norm_eps", "rope_theta"):
            check_number(name, getattr(self, name))
        C, H, step = self.n_embd, self.n_head, max(1, self.n_embd // 16)
        if self.n_hidden is None:
            self.n_hidden = -(-8 * C // (3 * step)) * step if llama else 4 * C
        self.n_hidden = check_count("n_hidden", self.n_hidden)
        Hkv = check_count("n_kv_head", H if self.n_kv_head is None else self.n_kv_head)
        self.n_kv_head = Hkv
        for holds, message in (
            (C % H == 0, f"n_embd must be a multiple of n_head={H}, not {C}"),
            (H % Hkv == 0, f"n_head must be a multiple of n_kv_head={Hkv}, not {H}"),
            (llama or H == Hkv, f"n_kv_head of gpt2 must be n_head={H}, not {Hkv}"),
            (not (llama and self.bias), "bias must be False, not True: llama has no biases"),
            (not llama or C // H % 2 == 0, f"head size must be even for RoPE, not {C // H}"),
            (0 <= self.dropout < 1, f"dropout must be in [0, 1), not {self.dropout}"),
            (self.norm_eps > 0 and self.rope_theta > 0, "norm_eps and rope_theta must be positive"),
        ):
            if not holds:
                raise ValueError(message)


def check_count(name, value, lowest=1, highest=math.inf):
    """The whole number value as an int (NumPy's would wrap), if it lies in lowest..highest;
    ValueError otherwise."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not (whole and lowest <= value <= highest):
        raise ValueError(f"{name} must be a whole number in {lowest}..{highest}, not {value!r}")
    return int(value)


def check_number(name, value):
    """ValueError unless value is a finite number."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value!r}")


def check_ids(name, ids, vocab_size, lowest=0):
    """ids as int64; ValueError unless they are integers in lowest..vocab_size - 1."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu" or ids.size == 0:
        raise ValueError(f"{name} must be integers, not {ids.dtype} of {ids.shape}")
    check_count(f"the smallest of {name}", ids.min(), lowest)
    check_count(f"the largest of {name}", ids.max(), lowest, vocab_size - 1)
    return ids.astype(np.int64)


PRESETS = {
    "gpt2": TransformerConfig(),
    "gpt2-medium": TransformerConfig(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": TransformerConfig(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": TransformerConfig(n_layer=48, n_head=25, n_embd=1600),
    "llama-2-7b": TransformerConfig("llama"),
    "llama-3-8b": TransformerConfig(
        "llama", 128256, 8192, None, None, None, 8, 14336, rope_theta=5e5
    ),
}


# Names and orientation are those of the checkpoints Hugging Face publishes: gpt2 stores its
# matrices as (in, out), llama as (out, in).
def param_shapes(config):
    """{name: shape} of every weight, in the order of the computation; a tied head is not listed."""
    C, F, V = config.n_embd, config.n_hidden, config.vocab_size
    kv = C // config.n_head * config.n_kv_head
    tables = ("transformer.wte", "transformer.wpe", "model.embed_tokens", "lm_head")
    if config.arch == "gpt2":
        layer, last = "transformer.h", "transformer.ln_f"
        shapes = {tables[0]: (V, C), tables[1]: (config.block_size, C)}
        block = {"ln_1": (C,), "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C)}
        block |= {"ln_2": (C,), "mlp.c_fc": (C, F), "mlp.c_proj": (F, C)}
    else:
        layer, last, shapes = "model.layers", "model.norm", {tables[2]: (V, C)}
        block = {"input_layernorm": (C,), "self_attn.q_proj": (C, C), "self_attn.k_proj": (kv, C)}
        block |= {"self_attn.v_proj": (kv, C), "self_attn.o_proj": (C, C)}
        block |= {"post_attention_layernorm": (C,), "mlp.gate_proj": (F, C), "mlp.up_proj": (F, C)}
        block["mlp.down_proj"] = (C, F)
    for i in range(config.n_layer):
        shapes |= {f"{layer}.{i}.{name}": shape for name, shape in block.items()}
    shapes |= {last: (C,)} | ({} if config.tie_weights else {"lm_head": (V, C)})
    named = {}
    for name, shape in shapes.items():
        named[f"{name}.weight"] = shape
        named |= {f"{name}.bias": shape[-1:]} if config.bias and name not in tables else {}
    return named


# %% 4. The block and its depth
# A block does not replace x, it adds to it, twice: attention f moves information between positions,
# the MLP f works on each position. Where does the normalisation go?
#     post-norm (Vaswani et al. 2017)  x ← norm(x + f(x))    pre-norm (GPT-2 on)  x ← x + f(norm(x))
# Follow a gradient g back through the 2L additions of L layers. Let x start with variance 1, let f
# turn variance 1 into s², independent of x, and so does its transpose to g.
# Pre-norm. The k-th addition finds variance 1 + ks² and its norm divides by √(1 + ks²), so on its
# way back g gains something independent of s²/(1 + ks²) · |g|². The squared length grows by (1 +
# (k+1)s²)/(1 + ks²), the product telescopes, and |g|² ends 1 + 2Ls² times as large, the growth of
# the stream's own variance. The original g is inside it, unchanged: between top and bottom
#     cosine = 1/√(1 + 2Ls²)           (pre-norm: falls like a square root of the depth).
# Post-norm. Each norm divides the sum by √(1 + s²) and by (J) multiplies g by r = 1/√(1 + s²),
# while f's part restores the length. |g| stays, but 2L times the direct part shrinks:
#     cosine = (1 + s²)^(-L)           (post-norm: falls exponentially).
# The gradient does not vanish, it arrives as noise, scrambled by random f's; the report measures
# both laws and what they do to training. Small initial weights or a slow warmup keep s small and
# rescue post-norm (Xiong et al. 2020). The price of pre-norm is the growing stream, so GPT-2
# divides the initial weights of the two matrices that write to it by √(2L): with s²/(2L) for s²,
# variance and cosine are the same at every depth. Other matrices start as N(0, 0.02²), norm weights
# at 1, biases at 0.
def block(x, p, config, mask, rope=None, post_norm=False):
    """One layer on the stream x (B, T, C); p: the layer's {name: tensor}; mask (T, T), added to the
    scores; rope: cos and sin (T, D), for llama."""
    gpt2, (B, T, C) = config.arch == "gpt2", x.shape
    H, Hkv, D = config.n_head, config.n_kv_head, C // config.n_head

    def project(h, name):
        W, b = p[f"{name}.weight"], p.get(f"{name}.bias")
        y = h @ (W if gpt2 else W.transpose(1, 0))
        return y + b if b else y

    def attention(h):
        if gpt2:
            qkv = project(h, "attn.c_attn")  # (B, T, 3C)
            q, k, v = (qkv[..., i : i + C] for i in (0, C, 2 * C))
        else:
            q, k, v = (project(h, f"self_attn.{name}_proj") for name in "qkv")
            q, k = rotate(q, *rope), rotate(k, *rope)
        q = q.reshape(B, T, Hkv, H // Hkv, D).transpose(0, 2, 3, 1, 4)  # (B, Hkv, H/Hkv, T, D)
        k = k.reshape(B, T, Hkv, 1, D).transpose(0, 2, 3, 4, 1)  # (B, Hkv, 1, D, T)
        v = v.reshape(B, T, Hkv, 1, D).transpose(0, 2, 3, 1, 4)  # (B, Hkv, 1, T, D)
        weights = softmax((q * (1 / math.sqrt(D))) @ k, mask)  # (B, Hkv, H/Hkv, T, T)
        y = (weights @ v).transpose(0, 3, 1, 2, 4)  # (B, T, Hkv, H/Hkv, D)
        return project(y.reshape(B, T, C), "attn.c_proj" if gpt2 else "self_attn.o_proj")

    def mlp(h):  # (B, T, C) -> (B, T, F) -> (B, T, C)
        if gpt2:
            return project(gelu(project(h, "mlp.c_fc")), "mlp.c_proj")
        return project(
            silu(project(h, "mlp.gate_proj")) * project(h, "mlp.up_proj"), "mlp.down_proj"
        )

    names = ("ln_1", "ln_2") if gpt2 else ("input_layernorm", "post_attention_layernorm")
    for name, f in zip(names, (attention, mlp)):
        norm = p[f"{name}.weight"], p.get(f"{name}.bias"), config.norm_eps, gpt2
        x = normalise(x + f(x), *norm) if post_norm else x + f(normalise(x, *norm))
    return x


# %% 5. Masks and objectives: one block, every architecture
# Let position i see position j if j ≤ i or j < prefix. This one number, with targets of -1 where
# nothing is asked, names a whole family of pre-training objectives:
#     causal   prefix = 0      decoder (GPT): predict every next token; all T positions teach
#     masked   prefix = T      encoder (BERT): hide 15 % of the tokens, guess them from both sides
#     prefix   0 < prefix < T  read the first part both ways (targets -1), predict the rest
# An encoder-decoder (Vaswani et al. 2017; Raffel et al. 2020) writes source and target one after
# the other: the source sees itself, the target all of the source (cross-attention) and its own
# past. That is the prefix mask; only, its encoder and decoder own separate weights and
# cross-attention is a softmax of its own.
def attention_mask(T, prefix=0):
    """(T, T): 0 where row i may look at column j, -inf elsewhere."""
    T = check_count("T", T)
    check_count("prefix", prefix, 0, T)
    i, j = np.ogrid[:T, :T]
    return np.where((j <= i) | (j < prefix), 0.0, -np.inf)


# %% 6. The model
# Ids pick rows of an embedding table (V, C); gpt2 adds a learned row per position; L blocks; a last
# norm; and the head scores each entry of the vocabulary by a dot product, logits = xWᵀ. Weight
# tying (Press & Wolf 2017) takes the embedding for W: how a token is read is how it is predicted.
# It saves V·C weights, a third of GPT-2 124M, and the table's gradient is the sum over both uses.
class Transformer:
    """A stack of blocks. .params: {name: array} as in param_shapes; all is computed in its dtype.
    The methods take token ids (B, T), ValueError for others, and section 5's prefix."""

    def __init__(self, config, seed=0, dtype=np.float32, post_norm=False):
        self.config, self.post_norm, self.params = config, post_norm, {}
        rng = np.random.default_rng(seed)
        for name, shape in param_shapes(config).items():
            start = np.full(shape, 0.0 if name.endswith("bias") else 1.0)
            if len(shape) == 2:
                writes = name.endswith(("c_proj.weight", "o_proj.weight", "down_proj.weight"))
                start = rng.normal(0, 0.02 / math.sqrt(2 * config.n_layer if writes else 1), shape)
            self.params[name] = start.astype(dtype)

    def _check(self, idx, name="idx", lowest=0):
        idx = np.asarray(idx)
        if idx.ndim != 2 or idx.dtype.kind not in "iu" or idx.size == 0:
            raise ValueError(f"{name} must be (B, T) integers, not {idx.dtype} of {idx.shape}")
        check_count("T", idx.shape[1], 1, self.config.block_size)
        return check_ids(name, idx, self.config.vocab_size, lowest)

    def _run(self, idx, targets=None, tape=None, prefix=0):
        """The logits, or with targets the loss, as a tensor, and {name: tensor} of the weights."""
        c, gpt2, idx = self.config, self.config.arch == "gpt2", self._check(idx)
        T, D, dtype = idx.shape[1], c.n_embd // c.n_head, next(iter(self.params.values())).dtype
        P = {name: Tensor(p, tape=tape) for name, p in self.params.items()}
        embedding = P["transformer.wte.weight" if gpt2 else "model.embed_tokens.weight"]
        x = embedding[idx]  # (B, T, C)
        if gpt2:
            x = x + P["transformer.wpe.weight"][:T]
        angles = np.arange(T)[:, None] * c.rope_theta ** (-np.arange(0, D, 2) / D)  # (T, D/2)
        rope = [np.tile(f(angles), 2).astype(dtype) for f in (np.cos, np.sin)]  # each (T, D)
        mask = attention_mask(T, prefix).astype(dtype)
        for i in range(c.n_layer):
            layer = f"transformer.h.{i}." if gpt2 else f"model.layers.{i}."
            p = {name.removeprefix(layer): t for name, t in P.items() if name.startswith(layer)}
            x = block(x, p, c, mask, rope, self.post_norm)
        last = "transformer.ln_f" if gpt2 else "model.norm"
        x = normalise(x, P[f"{last}.weight"], P.get(f"{last}.bias"), c.norm_eps, gpt2)
        logits = x @ (embedding if c.tie_weights else P["lm_head.weight"]).transpose(1, 0)
        if targets is None:
            return logits, P
        targets = self._check(targets, "targets", lowest=-1)
        if idx.shape != targets.shape:
            raise ValueError(f"targets must have idx's shape {idx.shape}, not {targets.shape}")
        return cross_entropy(logits, targets), P

    def logits(self, idx, prefix=0):
        """Scores of the token after each position, (B, T) -> (B, T, V)."""
        return self._run(idx, prefix=prefix)[0].data

    def loss(self, idx, targets, prefix=0):
        """Mean cross-entropy in nats over the targets (B, T) that are not -1."""
        return float(self._run(idx, targets, prefix=prefix)[0].data)

    def loss_and_grads(self, idx, targets, prefix=0):
        """The loss and {name: ∂loss/∂parameter} under the names of .params."""
        loss, P = self._run(idx, targets, [], prefix)
        loss.backward()
        return float(loss.data), {name: tensor.grad for name, tensor in P.items()}

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, seed=None):
        """Continue idx (B, T) to (B, T + max_new_tokens), reading all anew each time (no cache).

        temperature 0: the likeliest; top_k keeps the k likeliest, top_p the fewest that reach p
        (but for rounding: 0.5 + 0.3 reaches 0.8).
        """
        idx, window, rng = np.asarray(idx), self.config.block_size, np.random.default_rng(seed)
        self._check(idx[..., -window:] if idx.ndim else idx)
        idx = idx.astype(np.int64)
        check_count("max_new_tokens", max_new_tokens, 0)
        check_number("temperature", temperature)
        check_number("top_p", 1 if top_p is None else top_p)
        k = self.config.vocab_size if top_k is None else check_count("top_k", top_k)
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0 and finite, not {temperature}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
        for _ in range(max_new_tokens):
            z = self.logits(idx[:, -window:])[:, -1].astype(np.float64)  # (B, V)
            order = np.argsort(-z, -1, kind="stable")[:, : k if temperature else 1]
            z = np.take_along_axis(z, order, -1)
            p = np.exp((z - z[:, :1]) / (temperature or 1))
            p /= p.sum(-1, keepdims=True)
            if top_p is not None:  # drop those whose likelier ones already reach top_p
                p[:, 1:] *= np.cumsum(p, -1)[:, :-1] < top_p - 1e-9
            edges = np.cumsum(p, -1)
            choice = (edges <= rng.random((len(p), 1)) * edges[:, -1:]).sum(-1, keepdims=True)
            idx = np.concatenate([idx, np.take_along_axis(order, choice, -1)], 1)
        return idx


# %% 7. Counting before building
# Weights. A gpt2 block has 3C² + C² (attention) and 2·4C² (MLP): N is about 12LC² plus the tables;
# exactly, it is the sum over the shapes, and nothing need be allocated.
# Arithmetic. A weight in a product costs one multiplication and one addition per token forward, and
# twice that backward (dx and dW): 6 for each. Looking up a row costs nothing, so a table counts
# only as a head. Attention's scores and weighted means are two products of T·D per head and token,
# 2·2·T·C forward, 12LCT in all (as Chowdhery et al. 2022 count; the causal half is not taken off).
def count_params(config):
    """N, exactly; a tied head counts once."""
    return sum(math.prod(shape) for shape in param_shapes(config).values())


def flops_per_token(config):
    """Floating-point operations to train on one token at full context; forward alone is a third."""
    C, T, V = config.n_embd, config.block_size, config.vocab_size
    shapes = param_shapes(config).values()
    matrices = sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    lookups = T * C * (config.arch == "gpt2") + V * C * (not config.tie_weights)
    return 6 * (matrices - lookups) + 12 * config.n_layer * C * T


# Bytes. Weights N, gradients N; SGD keeps nothing more, momentum (also Lion's and Muon's) one
# number per weight, Adam two. The tape keeps every array until the backward. Per token and layer:
#     both     norms 4C | q, k, v | q/√D C | attention's output, twice 2C | projections, sums 4C
#     gpt2     14C + 3F + 2HT            k, v | up, GELU, slope | scores, softmax (biases: 5C + F)
#     llama    13C + 3Hkv·D + 5F + 2HT   q turned | k, k turned, v | gate, SiLU, slope, up, product
# Around the blocks: embedding C (gpt2: 2C), last norm 2C, logits and log p 2V. The KV cache (stage
# 5) holds k and v, 2L·Hkv·D numbers per token. A test measures the sum with tracemalloc.
STATE = {"none": 0, "sgd": 0, "momentum": 1, "lion": 1, "muon": 1, "adam": 2, "adamw": 2}


def memory_budget(config, batch=1, optimizer="adamw", bytes_per_number=4):
    """Bytes at full context: {"weights", "gradients", "optimizer", "activations", "kv_cache"} and
    the totals {"training", "generation"}. optimizer: a key of STATE; "none" does not train."""
    batch = check_count("batch", batch)
    bytes_per_number = check_count("bytes_per_number", bytes_per_number)
    if optimizer not in STATE:
        raise ValueError(f"optimizer must be one of {', '.join(STATE)}, not {optimizer!r}")
    C, F, L, N = config.n_embd, config.n_hidden, config.n_layer, count_params(config)
    gpt2, tokens = config.arch == "gpt2", batch * config.block_size
    kv, maps = C // config.n_head * config.n_kv_head, 2 * config.n_head * config.block_size
    layer = 14 * C + 3 * F + config.bias * (5 * C + F) if gpt2 else 13 * C + 3 * kv + 5 * F
    kept = L * (layer + maps) + (3 + gpt2) * C + 2 * config.vocab_size  # numbers per token
    trains, cache = optimizer != "none", tokens * 2 * L * kv
    numbers = {"weights": N, "gradients": N * trains, "optimizer": N * STATE[optimizer]}
    numbers["activations"] = tokens * kept * trains
    numbers |= {"kv_cache": cache, "training": sum(numbers.values()), "generation": N + cache}
    return {name: bytes_per_number * number for name, number in numbers.items()}


# %% 8. Scaling laws
# The loss falls as a power of what is spent (Kaplan et al. 2020). With N weights and D tokens
# Hoffmann et al. (2022) write L = E + A/N^α + B/D^β: E is the text's own entropy, A/N^α what a
# small model cannot express, B/D^β what a short training has not told it. Training costs 6ND
# operations (section 7). At a fixed cost 6ND = K put D = K/6N, set dL/dN = 0:
#     αA/N^α = βB/D^β,   so   N ∝ K^(β/(α+β))   and   D ∝ K^(α/(α+β)).
# If α ≈ β, model and data grow alike, by √K. Their approach 1 reads the exponents off the lower
# envelope of training curves, 0.50 and 0.50 (Kaplan: 0.73 for N), and Chinchilla, built by it, had
# 70 billion weights and 1.4 trillion tokens: 20 a weight. Hence K = 6N·20N.
def chinchilla_optimal(compute):
    """(weights, tokens) that spend `compute` operations best: Hoffmann et al. 2022, approach 1."""
    check_number("compute", compute)
    if compute <= 0:
        raise ValueError(f"compute must be a positive number of operations, not {compute}")
    params = math.sqrt(compute / (6 * 20))
    return params, 20 * params


# Fitting L(N) = E + A/N^α. Given α this is a line in u = N^-α, whose best slope and intercept have
# a closed form; so only α is searched, on ever finer grids. E, A ≥ 0: else 0 is best.
def fit_power_law(sizes, losses):
    """(E, A, alpha) of L(N) = E + A/N^alpha by least squares; E, A ≥ 0, alpha in 0.01..10."""
    N, L = np.asarray(sizes, np.float64), np.asarray(losses, np.float64)
    fine = N.ndim == 1 and N.shape == L.shape and len(np.unique(N)) >= 3 and N.min() > 0
    if not fine or not np.isfinite([N, L]).all():
        raise ValueError(f"need 3 positive sizes or more, each with a loss, not {sizes}, {losses}")
    unit = math.exp(np.log(N).mean())  # N in units of its geometric mean keeps u near 1

    def line(alpha):
        u = (N / unit) ** -alpha
        A = (u - u.mean()) @ (L - L.mean()) / ((u - u.mean()) @ (u - u.mean()))
        E = L.mean() - A * u.mean()
        E, A = (0.0, u @ L / (u @ u)) if E < 0 else (L.mean(), 0.0) if A < 0 else (E, A)
        return ((E + A * u - L) ** 2).sum(), float(E), float(A * unit**alpha)

    low, high = 0.01, 10.0
    for _ in range(12):
        grid = np.geomspace(low, high, 101)
        best = int(np.argmin([line(alpha)[0] for alpha in grid]))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 100)]
    return *line(grid[best])[1:], float(grid[best])


# %% 9. Training and scoring
# Tables and vectors take Adam steps, the blocks' matrices Muon's (stage 4): the running gradient
# UΣVᵀ becomes about UVᵀ, every direction equally long. An odd polynomial of a matrix acts on its
# singular values alone; five rounds of ax + bx³ + cx⁵ carry all of them near 1.
def orthogonal(G):
    """About UVᵀ for a matrix G = UΣVᵀ."""
    if np.ndim(G) != 2:
        raise ValueError(f"G must be a matrix, not of shape {np.shape(G)}")
    X = (G.T if len(G) > G.shape[1] else G) / (np.linalg.norm(G) + 1e-7)
    aI = 3.4445 * np.eye(len(X), dtype=X.dtype)
    for _ in range(5):
        A = X @ X.T  # X, AX and A²X have the powers 1, 3 and 5 of the singular values
        X = (aI - 4.7750 * A + 2.0315 * (A @ A)) @ X
    return X.T if len(G) > G.shape[1] else X


def train(model, ids, steps, batch, learning_rate=0.02, label=None, seed=0):
    """`steps` updates on random windows of ids, learning rate up for a tenth, then down to 0;
    returns the loss in nats of every step. ValueError, naming the step, once it is not finite."""
    ids = check_ids("ids", ids, model.config.vocab_size)
    check_count("the number of ids", len(ids), model.config.block_size + 1)
    steps, batch = check_count("steps", steps, 0), check_count("batch", batch)
    check_number("learning_rate", learning_rate)
    T, rng, losses = model.config.block_size, np.random.default_rng(seed), []
    state = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in model.params.items()}
    for step in range(1, steps + 1):
        starts = rng.integers(0, len(ids) - T, batch)
        window = ids[starts[:, None] + np.arange(T + 1)]  # (B, T + 1)
        loss, grads = model.loss_and_grads(window[:, :-1], window[:, 1:])
        losses.append(loss)
        if not math.isfinite(loss):
            raise ValueError(f"step {step}: the loss is {loss}; try a lower learning_rate")
        clip = min(1, 1 / math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values())))
        rate = learning_rate * min(10 * step / steps, (steps + 1 - step) / (0.9 * steps))
        for name, p in model.params.items():
            g, (m, v) = grads[name] * clip, state[name]
            if p.ndim == 2 and (".h." in name or ".layers." in name):
                m += g - 0.05 * m
                p -= (rate * 0.1 * math.sqrt(max(p.shape))) * orthogonal(g + 0.95 * m)
            else:
                m += 0.1 * (g - m)
                v += 0.03 * (g * g - v)
                p -= (rate / (1 - 0.9**step)) * m / (np.sqrt(v / (1 - 0.97**step)) + 1e-8)
        if label and step % 10 == 0:
            progress(f"  {label}: step {step} of {steps}, loss {np.mean(losses[-50:]):.3f} nats")
    return losses


def held_out_loss(model, ids, start):
    """Nats per character of ids[start:], each predicted once from T/2 to T characters before it."""
    T, ids = model.config.block_size, check_ids("ids", ids, model.config.vocab_size)
    check_count("the number of ids", len(ids), T + 1)
    start = check_count("start", start, T - T // 2 + 1, len(ids) - 1)
    ends, total = list(range(start + T // 2, len(ids), T // 2)) + [len(ids)], 0.0
    firsts = np.array([start, *ends[:-1]])
    for i in range(0, len(ends), 32):
        at = np.array(ends[i : i + 32])[:, None] + np.arange(-T, 0)  # (32, T): targets' places
        targets = np.where(at >= firsts[i : i + 32, None], ids[at], -1)
        total += model.loss(ids[at - 1], targets) * (targets >= 0).sum()
    return total / (len(ids) - start)


# %% Demonstration
def progress(message, last=False):
    """One line overwritten in place on a terminal; when piped, only the last message is printed."""
    if sys.stdout.isatty():
        print(f"\r{message:<78}", end="\n" if last else "", flush=True)
    elif last:
        print(message, flush=True)


def unit_weights(model, scaled=False):
    """The model with matrices of variance 1/inputs: f keeps a variance, so s is near 1."""
    for name, p in model.params.items():
        if p.ndim == 2:
            undo = "c_proj" in name and not scaled  # GPT-2's 1/√(2L)
            p *= 50 * (math.sqrt(2 * model.config.n_layer) if undo else 1)
            p /= math.sqrt(len(p) if ".h." in name else p.shape[1] if "head" in name else 1)
    return model


def depth_probe(n_layer, seed, post_norm=False, scaled=False, T=32, C=64):
    """The stream's root mean square at the top, and section 4's cosine, for random weights."""
    config, rng = TransformerConfig("gpt2", 1, T, n_layer, 2, C), np.random.default_rng(seed)
    params = unit_weights(Transformer(config, seed), scaled).params
    bottom = x = Tensor(rng.normal(size=(4, T, C)), tape=[])
    for i in range(n_layer):
        layer = f"transformer.h.{i}."
        p = {k.removeprefix(layer): Tensor(v) for k, v in params.items() if k.startswith(layer)}
        x = block(x, p, config, attention_mask(T), post_norm=post_norm)
    g = rng.normal(size=(x.data.size, 1))  # the gradient at the top, of the loss x·g
    (x.reshape(1, -1) @ Tensor(g)).backward()
    cosine = bottom.grad.ravel() @ g[:, 0] / (np.linalg.norm(bottom.grad) * np.linalg.norm(g))
    return math.sqrt((x.data * x.data).mean()), cosine


def report(args):
    """Depth, masks, counting, a scaling law, and a model for the ladder."""
    fast, seed = args.fast, check_count("--seed", args.seed, 0)
    text = (Path(__file__).resolve().parent / "data" / "stories.txt").read_text("utf-8")
    with contextlib.suppress(OSError, AttributeError, TypeError):  # glibc: keep freed memory
        ctypes.CDLL(None).mallopt(-3, 1 << 30)
        ctypes.CDLL(None).mallopt(-1, (1 << 31) - 1)
    vocab, n = sorted(set(text)), int(0.9 * len(text))
    ids = np.searchsorted(vocab, list(text))
    scored = ids[: n + 640] if fast else ids
    print("1. Depth: cosine of the gradient at top and bottom, for random weights with s near 1")
    print("   layers   pre-norm  (law)    post-norm  (law)    with 1/√2L   trained: pre       post")
    for L in (2, 4) if fast else (2, 6, 12):
        (rms, pre), (_, post) = depth_probe(L, seed), depth_probe(L, seed, post_norm=True)
        kept, s2, losses = depth_probe(L, seed, scaled=True)[1], (rms * rms - 1) / (2 * L), []
        for post_norm in (False, True):
            config = TransformerConfig("gpt2", len(vocab), 32, L, 2, 32, tie_weights=False)
            model = unit_weights(Transformer(config, seed, post_norm=post_norm))
            losses += train(model, ids[:n], 2 if fast else 40, 8, 0.01, f"{L} layers", seed)[-1:]
        line = f"{L:8d} {pre:10.3f} ({1 / rms:.3f}) {post:10.3f} ({(1 + s2) ** -L:.3f})"
        progress(f"{line} {kept:12.3f} {losses[0]:15.2f} {losses[1]:9.2f}", last=True)
    print("\n2. Masks: who sees whom (#) under a causal, a prefix (3) and a masked objective")
    for rows in zip(*(np.where(attention_mask(6, prefix) == 0, "#", ".") for prefix in (0, 3, 6))):
        print("   " + "      ".join("".join(row) for row in rows))
    print("\n3. Counting, nothing allocated (float32, batch 1, full context, AdamW)")
    print(f"{'weights':>29}{'GFLOP/token':>12}{'training GB':>13}{'KV GB':>11}{'tokens (20N)':>18}")
    for name, config in PRESETS.items():
        N, budget = count_params(config), memory_budget(config)
        line = f"   {name:12}{N:14,}{flops_per_token(config) / 1e9:12.2f}"
        line += f"{budget['training'] / 1e9:13.1f}{budget['kv_cache'] / 1e9:11.2f}"
        print(f"{line}{20 * N / 1e9:10,.1f} billion")
    print("\n4. A scaling law: one layer, ever wider, trained alike; the last size is predicted")
    sizes, losses = [], []
    for C in (8, 12, 16, 24, 32, 48):
        model = Transformer(TransformerConfig("llama", len(vocab), 32, 1, 1, C), seed)
        train(model, ids[:n], 2 if fast else 250, 16, 0.02, f"{C} channels", seed)
        sizes.append(count_params(model.config))
        losses.append(held_out_loss(model, scored, n))
        line = f"   {C:2d} channels {sizes[-1]:8,} weights   held-out {losses[-1]:.3f} nats/char"
        progress(line, last=True)
    E, A, alpha = fit_power_law(sizes[:-1], losses[:-1])
    print(f"   The first five say L(N) = {E:.3f} + {A:.3g}/N^{alpha:.3f}. For the sixth that gives")
    print(f"   {E + A / sizes[-1] ** alpha:.3f} nats; measured: {losses[-1]:.3f}.")
    config = TransformerConfig("llama", len(vocab), 32, 3, 2, 64)
    print(f"\n5. A llama of 3 layers and {count_params(config):,} weights, and what it writes")
    model = Transformer(config, seed)
    train(model, ids[:n], 3 if fast else 600, 32, 0.03, "training", seed)
    start = np.searchsorted(vocab, list("The Fox and the"))[None]
    written = model.generate(start, 20 if fast else 240, 0.8, top_p=0.95, seed=seed)[0]
    progress("".join(vocab[i] for i in written), last=True)
    nats = held_out_loss(model, scored, n)
    line = f"{nats:.3f} nats/char | {nats / math.log(2):.3f} bits/char"
    line += f" | perplexity {math.exp(nats):.2f}   (stage 6, transformer, context 32)"
    print(f"\nheld-out: {line}")


def drop_unwritten():
    """Forget what stdout cannot take, so that Python's own flush at the end does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:  # a closed pipe, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv=None):
    """The report: depth, masks, counting, a scaling law, and a model for the ladder."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it was closed before the start
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    parser = argparse.ArgumentParser(description="Stage 6: the transformer, stacked and measured.")
    parser.error = lambda message: parser.exit(2, f"stage06_transformer.py: {message}\n")
    parser.add_argument("--fast", action="store_true", help="a smoke run of every part, under 3 s")
    parser.add_argument("--seed", type=int, default=0, help="fixes every random choice (default 0)")
    args = parser.parse_args(argv)
    try:
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


# %% Common mistakes
# - Post-norm, deep, unwarmed: the loss stays at that of letter frequencies. block norms first.
# - A mask after the softmax: rows no longer sum to 1, the future leaks. softmax adds it before.
# - Forgetting √(2L): the stream's rms grows with depth (report 1). Transformer.__init__ divides.
# - Counting a tied head twice, or tables as arithmetic: param_shapes and flops_per_token do not.
# - NumPy's float64 scalars (np.sqrt(D)) turn float32 into float64: block takes math.sqrt.
# - Comparing a fit with the points it was made from: the report holds the largest model out.

# %% Exercises
#  1. Read backward: why must an array be popped only after everything made from it?
#  2. By hand: count gpt2's 124,439,808 weights from C = 768, L = 12. What share is the table?
#  3. Which preset's KV cache does n_kv_head shrink, by how much? Check with memory_budget.
#  4. Show that LayerNorm equals RMSNorm of x - mean(x), and that (J) has two null directions.
#  5. Build softmax and normalise from section 1 plus exp and power; compare gradients and time.
#  6. Derive section 4's cosine for pre-norm with GPT-2's initial weights, and measure it.
#  7. Add warmup to post-norm, or start from N(0, 0.02²): from which depth on does it train?
#  8. Train with prefix = T and 15 % of inputs hidden (BERT). Bits per hidden character?
#  9. Tie the weights of the last model. Better or worse at equal steps? At equal weights?
# 10. Fit L = E + A/N^α + B/D^β over sizes and lengths; is 20 tokens a weight right for stories?
# 11. Research: does parallel x + attention(norm(x)) + mlp(norm(x)) (PaLM) cost loss at this size?
# %% Where this leads
# Stage 7 replaces characters by tokens, so that T reaches further; the capstone writes the backward
# of these blocks by hand and trains them longer. 32 such blocks and 15 trillion tokens: Llama 3.

if __name__ == "__main__":
    sys.exit(main())
