# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 6: stack. What does stacking attention buy, and what does a bigger stack cost?

Stage 5 built one layer in which every token looks back at every earlier one. A language model is
such layers in a row, and each adds a little to a running sum, the residual stream. This file stacks
them in the two families in use today, gpt2 and llama. Then it answers what a builder asks before
paying for one: how many weights, how much arithmetic, how many bytes, how low will the loss go, how
do many machines share the work? It builds on stages 2 and 5; gradients come from a small autograd
over arrays, and the capstone derives the same ones by hand.

  The stack:  1 one block, two tokens  2 an array that remembers  3 the parts of a block
              4 configuration  5 two halves  6 the block, its depth  7 masks  8 the model
  Its price:  9 counting  10 scaling laws  11 training and scoring  12 scale

Run `python stage06_transformer.py [--fast] [--seed N]`: the report, in under a minute.

Rests on: Vaswani et al., "Attention is all you need" (2017); Radford et al. (GPT-2, 2019); Xiong et
al., "On layer normalization in the transformer architecture" (2020); Shazeer, "GLU variants improve
transformer" (2020); Kaplan et al. (2020), Hoffmann et al. (2022) on scaling; others where used.
"""

import argparse
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np


# %% 1. One block on two tokens
# A token enters as a row of C numbers. A block lets the rows exchange what they know, and then lets
# each think for itself. Both times the result is ADDED to the row, so that nothing is lost. Before
# each step a copy of the row is brought to size 1, so that loud rows do not drown quiet ones.
def small_block(x, up, down):
    """Rows x (T, C) after attention (with q = k = v) and an MLP, up (C, F) and down (F, C)."""
    h = x / np.sqrt((x * x).mean(-1, keepdims=True))
    y = x.copy()
    for i in range(len(x)):  # row i looks at the rows up to itself
        scores = h[: i + 1] @ h[i] / math.sqrt(x.shape[1])
        weights = np.exp(scores) / np.exp(scores).sum()
        y[i] = x[i] + weights @ h[: i + 1]
    h = y / np.sqrt((y * y).mean(-1, keepdims=True))
    return y + np.maximum(h @ up, 0) @ down


# Two tokens, "red fox", and two channels, (colour, animal):  red = [7, 1],  fox = [1, 7].
#     size 1      the root mean square of [7, 1] is √((49 + 1)/2) = 5, so h = [1.4, 0.2], [0.2, 1.4]
#     attention   red sees itself alone and becomes [7, 1] + [1.4, 0.2] = [8.4, 1.2];
#                 fox has the scores [0.56, 2.00]/√2, their softmax [0.265, 0.735], the mixture
#                 [0.518, 1.082], and becomes [1.518, 8.082]: an animal that has heard of a colour
#     MLP         up = [[1], [-1]] fires where colour outweighs animal; down = [[0, 1]].
#                 red, at size 1 again [1.4, 0.2], fires by 1.2: [8.4, 2.4]. fox does not fire
# Backward, for the loss L = fox's colour: the sum hands the gradient on twice, unchanged to fox's
# own row and through attention to both rows. Per unit of the rows' channels L changes by
#     -0.0053, 0.0370 for red        1.1885, -0.0269 for fox.
# The 1 in 1.1885 is the straight path; red counts because fox attends to it. The general block has
# matrices for q, k and v, heads, positions, batches and learned scales, and it is stacked.


# %% 2. An array that remembers
# Shapes throughout: B sequences, T tokens, C channels, H heads of D = C/H channels, Hkv heads of
# keys and values, F hidden units in the MLP, V vocabulary, L layers; N counts weights.
# A computation makes arrays from earlier arrays. A tape keeps them in order, and with each a
# function `pull`: from dy = ∂loss/∂(this array) it makes a gradient for each array that this one
# was made from. Rewind the tape: when an array's turn comes, all that was made from it has had its
# turn, so every path from the loss to it has been added up: stage 2's chain rule, an array a step.
class Tensor:
    """An array of float32 or float64 and, on a tape, its parents and pull(dy) -> their gradients.
    What is made from it is on its tape, too. Without a tape nothing is remembered."""

    __array_ufunc__ = None  # NumPy must not take `array * tensor` for a matter of its own

    def __init__(self, data, parents=(), pull=None, tape=None):
        self.data = np.asarray(data)
        if self.data.dtype not in (np.float32, np.float64):  # float16: squares overflow from 256 on
            raise ValueError(f"a Tensor holds float32 or float64, not {self.data.dtype}")
        self.shape = self.data.shape
        self.grad = None
        tapes = [t for t in (tape, *(parent.tape for parent in parents)) if t is not None]
        if any(t is not tapes[0] for t in tapes):
            raise ValueError("these arrays are on two different tapes")
        self.tape = tapes[0] if tapes else None
        if self.tape is not None:
            self.parents = parents
            self.pull = pull
            self.tape.append(self)

    def backward(self, dy=None):
        """Rewind the tape: each leaf's .grad becomes ∂(Σ dy·self)/∂leaf; for one number, dy is 1.
        Then the tape is used up, and its arrays count as constants in whatever is made later."""
        if not self.tape:
            raise ValueError("backward needs an array on a tape, and a tape is rewound only once")
        one = dy is None and self.data.size == 1
        self.grad = np.ones_like(self.data) if one else np.asarray(dy, self.data.dtype)
        if self.grad.shape != self.shape:
            raise ValueError(f"backward needs one number, or dy of the array's shape {self.shape}")
        tape = self.tape
        while tape:
            node = tape.pop()
            if node.pull and node.grad is not None:
                for parent, grad in zip(node.parents, node.pull(node.grad), strict=True):
                    grad = unbroadcast(grad, parent.shape)
                    if parent.tape is not None:
                        parent.grad = grad if parent.grad is None else parent.grad + grad
                node.grad = None  # used up; only leaves keep theirs
            node.tape = None

    def operand(self, other):
        """other, if it is a tensor, or a number or an array as a constant of this one's dtype."""
        if isinstance(other, Tensor):
            return other
        if np.asarray(other).dtype.kind not in "iuf":
            raise ValueError(f"a Tensor goes with a Tensor, a number or an array, not {other!r}")
        return Tensor(np.asarray(other, self.data.dtype))

    # y = a + b hands dy to both terms; y = ab hands dy·b to a and dy·a to b.
    def __add__(self, other):
        other = self.operand(other)
        return Tensor(self.data + other.data, (self, other), lambda dy: (dy, dy))

    def __mul__(self, other):
        other = self.operand(other)
        a, b = self.data, other.data
        return Tensor(a * b, (self, other), lambda dy: (dy * b, dy * a))

    # For matrices yᵢⱼ = Σₖ aᵢₖbₖⱼ. The entry aᵢₖ is in row i of y alone, so ∂loss/∂aᵢₖ = Σⱼ
    # dyᵢⱼbₖⱼ, that is da = dy·bᵀ. The entry bₖⱼ is in column j alone, so ∂loss/∂bₖⱼ = Σᵢ aᵢₖdyᵢⱼ,
    # that is db = aᵀ·dy. Stacks of matrices are multiplied pair by pair.
    def __matmul__(self, other):
        other = self.operand(other)
        a, b = self.data, other.data
        if a.ndim < 2 or b.ndim < 2:
            raise ValueError(f"a product needs matrices, not shapes {a.shape} and {b.shape}")
        if a.ndim > 2 and b.ndim == 2:  # one product of all rows is faster
            rows = self.reshape(math.prod(a.shape[:-1]), a.shape[-1])
            return (rows @ other).reshape(*a.shape[:-1], b.shape[1])
        at, bt = a.swapaxes(-1, -2), b.swapaxes(-1, -2)
        return Tensor(a @ b, (self, other), lambda dy: (dy @ bt, at @ dy))

    # Moving numbers moves their gradients back. What a slice leaves out gets 0. A row looked up
    # several times collects the sum: np.add.at adds, where dx[index] = dy would keep the last.
    def reshape(self, *shape):
        return Tensor(self.data.reshape(shape), (self,), lambda dy: (dy.reshape(self.shape),))

    def transpose(self, *axes):
        back = np.argsort(np.mod(axes, len(axes)))  # axis -1 is the last
        return Tensor(self.data.transpose(axes), (self,), lambda dy: (dy.transpose(back),))

    def __getitem__(self, index):
        parts = index if isinstance(index, tuple) else (index,)
        once = all(isinstance(part, (int, slice, type(...))) for part in parts)

        def pull(dy):
            dx = np.zeros(self.shape, dy.dtype)
            if once:  # no number is picked twice
                dx[index] = dy
            else:
                np.add.at(dx, index, dy)
            return (dx,)

        return Tensor(self.data[index], (self,), pull)


# An array that NumPy repeated (broadcast), to fit another, lent each of its numbers to many places,
# and receives the sum of their gradients.
def unbroadcast(grad, shape):
    """Sum grad over the axes along which an array of this shape was repeated."""
    if grad.shape == shape:
        return grad
    total = grad.sum(tuple(range(grad.ndim - len(shape))))
    repeated = tuple(i for i, n in enumerate(shape) if n == 1 and i < total.ndim)
    total = total.sum(repeated, keepdims=True)
    if total.shape != shape:
        raise ValueError(f"a gradient of shape {grad.shape} for an array of shape {shape}")
    return total


# %% 3. The parts of a block
# LayerNorm gives each row mean 0 and variance 1, whatever the scale of what came before:
#     μ = mean(x),   r = 1/√(mean((x - μ)²) + ε),   x̂ = (x - μ)·r,   y = x̂·γ + β.
# x̂ᵢ answers to xⱼ directly if i = j, through the mean, ∂μ/∂xⱼ = 1/C, and through the scale, ∂r/∂xⱼ
# = -½r³·2(xⱼ - μ)/C = -r²x̂ⱼ/C. Together
#     ∂x̂ᵢ/∂xⱼ = r·(1[i=j] - 1/C) + (xᵢ - μ)·(-r²x̂ⱼ/C) = r·( 1[i=j] - 1/C - x̂ᵢx̂ⱼ/C ).         (J)
# So with a = ∂loss/∂x̂ = dy·γ:   dx = r·( a - mean(a) - x̂·mean(a·x̂) ),   dγ = Σ dy·x̂,   dβ = Σ
# dy. RMSNorm leaves the mean in: r = 1/√(mean(x²) + ε), y = x·r·γ. Then (J) lacks its 1/C, and dx
# its mean(a). It fixes the scale, the part that matters, with less work (Zhang & Sennrich 2019).
def normalise(x, weight, bias=None, eps=1e-5, centre=True):
    """LayerNorm over the last axis of x (..., C), RMSNorm with centre=False; |x| up to 1e18."""
    C, gamma = x.shape[-1], weight.data
    mean = np.full(C, 1 / C, x.data.dtype)  # x @ mean: a product is NumPy's fastest row sum
    xhat = x.data - (x.data @ mean)[..., None] if centre else x.data.copy()
    r = (1 / np.sqrt(np.vecdot(xhat, xhat) / C + eps))[..., None]  # (..., 1)
    xhat *= r
    y = xhat * gamma if bias is None else xhat * gamma + bias.data

    def pull(dy):
        a = dy * gamma
        dx = a - xhat * (np.vecdot(a, xhat) / C)[..., None]
        if centre:
            dx -= (a @ mean)[..., None]
        dx *= r
        rows, ones = dy.reshape(-1, C), np.ones(dy.size // C, dy.dtype)
        dgamma, dbeta = ones @ (rows * xhat.reshape(-1, C)), ones @ rows
        return (dx, dgamma) if bias is None else (dx, dgamma, dbeta)

    return Tensor(y, (x, weight) if bias is None else (x, weight, bias), pull)


# BatchNorm (Ioffe & Szegedy 2015), the norm of image networks, gives each CHANNEL mean 0 and
# variance 1 over all rows of the batch. It is LayerNorm of the transpose:
#     rows [3, 1] and [0, 4]:  both norms give [1, -1] and [-1, 1];
#     rows [3, 1] and [5, 1]:  LayerNorm's first row stays [1, -1], BatchNorm's becomes [-1, 0].
# Rows are tokens, so a token would depend on tokens to come, and on other texts in its batch.
#
# The MLP works on each position alone: up from C to F units, a bend, and down again. Both bends are
# x times a gate between 0 and 1, the sigmoid σ(u) = 1/(1 + e⁻ᵘ), whose slope is σ(1 - σ):
#     y = x·σ(u),   y' = σ + x·σ(1 - σ)·u',   SiLU (llama): u = x,   GELU (gpt2): u = 2c(x + kx³)
# with c = √(2/π), k = 0.044715. (GPT-2 writes ½(1 + tanh(u/2)), which is σ(u).) llama's MLP is
# SwiGLU, down(silu(gate(x))·up(x)): one linear map opens a gate on another. It has three matrices,
# not two; equal parameters, 3CF' = 2C·4C, ask for F' = 8C/3.
def gated(x, u, slope_of_u):
    """x·σ(u) for a tensor x and arrays u(x), u'(x)."""
    e = np.exp(-np.abs(u))  # never overflows
    gate = np.where(u > 0, 1, e) / (1 + e)
    slope = gate + x.data * (gate * (1 - gate) * slope_of_u)
    return Tensor(x.data * gate, (x,), lambda dy: (dy * slope,))


def silu(x):
    """Sigmoid linear unit."""
    return gated(x, x.data, 1)


def gelu(x):
    """Gaussian error linear unit in GPT-2's form."""
    c, k = math.sqrt(2 / math.pi), 0.044715
    a = np.clip(x.data, -30, 30)  # beyond, the gate is 0 or 1, and squares could overflow
    return gated(x, 2 * c * a * (1 + k * a * a), 2 * c * (1 + 3 * k * a * a))


# Softmax p = e^s/Σe^s has ∂pᵢ/∂sⱼ = pᵢ(1[i=j] - pⱼ), hence ds = p·(dp - Σᵢ dpᵢpᵢ). A mask of -∞
# added to s gives p = 0 and, by that factor p, ds = 0: neither information nor gradient passes.
def softmax(s, mask=0.0):
    """Softmax of s + mask over the last axis; a row that is masked whole becomes zeros."""
    p = s.data + mask
    p -= np.maximum(p.max(-1, keepdims=True), np.finfo(p.dtype).min)  # not -∞ - (-∞)
    np.exp(p, out=p)
    p /= np.maximum(p @ np.ones(p.shape[-1], p.dtype), 1)[..., None]  # the largest adds e⁰ = 1
    return Tensor(p, (s,), lambda dp: ((dp - np.vecdot(dp, p)[..., None]) * p,))


# Cross-entropy is the mean of -log p[target] over the n targets that count. Since log p[target] =
# z[target] - log Σₖ e^zₖ, the derivative is dzⱼ = (pⱼ - 1[j = target])/n.
def cross_entropy(logits, targets):
    """Mean of -log p[target] in nats, targets (B, T), logits (B, T, V); a target -1 is skipped."""
    z = logits.data.reshape(-1, logits.shape[-1])  # (B·T, V)
    targets = check_ids("targets", targets, z.shape[1], -1)
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets must have the shape {logits.shape[:-1]}, not {targets.shape}")
    kept = np.flatnonzero(targets.ravel() != -1)
    picked = targets.ravel()[kept]
    n = max(1, len(kept))
    logp = z - z.max(-1, keepdims=True)
    logp -= np.log(np.exp(logp) @ np.ones(z.shape[1], z.dtype))[:, None]

    def pull(dy):
        dz = np.zeros_like(logp)
        dz[kept] = np.exp(logp[kept])
        dz[kept, picked] -= 1
        return (dz.reshape(logits.shape) * (dy / n),)

    return Tensor(-logp[kept, picked].sum() / n, (logits,), pull)


# RoPE (stage 5) turns the channel pair (x[i], x[i + D/2]) of each head at position t by the angle
# t·θ^(-2i/D), so that scores depend on distances alone. The backward turns back.
def rotate(x, theta):
    """The heads of x (B, T, H, D), turned."""
    _, T, _, D = x.shape
    angles = np.arange(T)[:, None, None] * theta ** (-np.arange(0, D, 2) / D)  # (T, 1, D/2)
    cos, sin = np.cos(angles).astype(x.data.dtype), np.sin(angles).astype(x.data.dtype)

    def turn(a, sin):
        first, second = a[..., : D // 2], a[..., D // 2 :]
        return np.concatenate([first * cos - second * sin, first * sin + second * cos], -1)

    return Tensor(turn(x.data, sin), (x,), lambda dy: (turn(dy, -sin),))


# %% 4. Configuration and names
GPT2_124M = {"vocab_size": 50257, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768}
LLAMA_2_7B = {"vocab_size": 32000, "block_size": 4096, "n_layer": 32, "n_head": 32, "n_embd": 4096}


@dataclass
class TransformerConfig:
    """The shape of a model, or ValueError; None takes the value of GPT-2 124M or Llama-2 7B.

    n_kv_head: default n_head. n_hidden, F: default 4C, or 8C/3 rounded up to a multiple of C/16.
    n_expert: 0, or the number of llama MLPs side by side; a token visits n_active (section 5).
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
    tie_weights: bool | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    qk_norm: bool = False
    n_expert: int = 0
    n_active: int = 2

    def __post_init__(self):
        if self.arch not in ("gpt2", "llama"):
            raise ValueError(f"arch must be 'gpt2' or 'llama', not {self.arch!r}")
        llama = self.arch == "llama"
        defaults = dict(LLAMA_2_7B if llama else GPT2_124M)
        defaults["bias"] = defaults["tie_weights"] = not llama
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name in GPT2_124M:
            setattr(self, name, check_count(name, getattr(self, name)))
        for name in ("bias", "tie_weights", "qk_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        check_number("norm_eps", self.norm_eps, above=0)
        check_number("rope_theta", self.rope_theta, above=0)
        C, H = self.n_embd, self.n_head
        if C % H != 0:
            raise ValueError(f"n_embd must be a multiple of n_head={H}, not {C}")
        if llama and C // H % 2 != 0:
            raise ValueError(f"head size must be even for RoPE, not {C // H}")
        if self.n_hidden is None:
            step = max(1, C // 16)
            self.n_hidden = math.ceil(8 * C / (3 * step)) * step if llama else 4 * C
        self.n_hidden = check_count("n_hidden", self.n_hidden)
        self.n_kv_head = check_count("n_kv_head", H if self.n_kv_head is None else self.n_kv_head)
        if H % self.n_kv_head != 0:
            raise ValueError(f"n_head must be a multiple of n_kv_head={self.n_kv_head}, not {H}")
        self.n_expert = check_count("n_expert", self.n_expert, 0)
        self.n_active = check_count("n_active", self.n_active, 1, self.n_expert or math.inf)
        if llama and self.bias:
            raise ValueError("bias must be False, not True: llama has no biases")
        elif not llama and (self.n_kv_head != H or self.qk_norm or self.n_expert):
            raise ValueError(f"gpt2 has n_kv_head = n_head = {H}, no qk_norm and no experts")


def check_count(name, value, lowest=1, highest=math.inf):
    """value as an int (NumPy's would wrap), if it is a whole number in lowest..highest."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not (whole and lowest <= value <= highest):
        raise ValueError(f"{name} must be a whole number in {lowest}..{highest}, not {value!r}")
    return int(value)


def check_number(name, value, above=-math.inf):
    """ValueError unless value is a finite number above this."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not above < value < math.inf:
        raise ValueError(f"{name} must be a finite number above {above}, not {value!r}")


def check_ids(name, ids, vocab_size, lowest=0, longest=None):
    """ids as int64, if in lowest..vocab_size - 1; with `longest`, of shape (B, T <= longest)."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu" or ids.size == 0 or (longest and ids.ndim != 2):
        shape = " (B, T)" if longest else ""
        raise ValueError(f"{name} must be integers{shape}, not {ids.dtype} of {ids.shape}")
    check_count("T", ids.shape[-1], 1, longest or math.inf)
    check_count(f"the smallest of {name}", ids.min(), lowest)
    check_count(f"the largest of {name}", ids.max(), lowest, vocab_size - 1)
    return ids.astype(np.int64)


LLAMA_3_8B = {"vocab_size": 128256, "block_size": 8192, "n_kv_head": 8, "n_hidden": 14336}
MIXTRAL = {"block_size": 32768, "n_kv_head": 8, "n_hidden": 14336, "n_expert": 8, "n_active": 2}
PRESETS = {
    "gpt2": TransformerConfig(),
    "gpt2-xl": TransformerConfig(n_layer=48, n_head=25, n_embd=1600),
    "llama-2-7b": TransformerConfig("llama"),
    "llama-3-8b": TransformerConfig("llama", **LLAMA_3_8B, rope_theta=5e5),
    "mixtral-8x7b": TransformerConfig("llama", **MIXTRAL, rope_theta=1e6),
}


# Names and orientation are those of the checkpoints Hugging Face publishes: gpt2's matrices are
# (in, out), llama's (out, in); experts have Mixtral's names, norms of queries and keys Qwen3's.
def param_shapes(config):
    """{name: shape} of every weight, in the order of the computation; a tied head is not listed."""
    C, F, V, D = config.n_embd, config.n_hidden, config.vocab_size, config.n_embd // config.n_head
    kv = D * config.n_kv_head
    if config.arch == "gpt2":
        layer, last = "transformer.h", "transformer.ln_f"
        shapes = {"transformer.wte": (V, C), "transformer.wpe": (config.block_size, C)}
        block = {"ln_1": (C,), "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C)}
        block |= {"ln_2": (C,), "mlp.c_fc": (C, F), "mlp.c_proj": (F, C)}
    else:
        layer, last, shapes = "model.layers", "model.norm", {"model.embed_tokens": (V, C)}
        block = {"input_layernorm": (C,), "self_attn.q_proj": (C, C), "self_attn.k_proj": (kv, C)}
        block |= {"self_attn.v_proj": (kv, C), "self_attn.o_proj": (C, C)}
        if config.qk_norm:
            block |= {"self_attn.q_norm": (D,), "self_attn.k_norm": (D,)}
        block["post_attention_layernorm"] = (C,)
        if config.n_expert == 0:
            block |= {"mlp.gate_proj": (F, C), "mlp.up_proj": (F, C), "mlp.down_proj": (C, F)}
        else:
            block["block_sparse_moe.gate"] = (config.n_expert, C)
        for e in range(config.n_expert):
            expert = f"block_sparse_moe.experts.{e}"
            block |= {f"{expert}.w1": (F, C), f"{expert}.w3": (F, C), f"{expert}.w2": (C, F)}
    tables = [*shapes, "lm_head"]
    for i in range(config.n_layer):
        shapes |= {f"{layer}.{i}.{name}": shape for name, shape in block.items()}
    shapes |= {last: (C,)} if config.tie_weights else {last: (C,), "lm_head": (V, C)}
    named = {}
    for name, shape in shapes.items():
        named[f"{name}.weight"] = shape
        if config.bias and name not in tables:
            named[f"{name}.bias"] = shape[-1:]
    return named


# %% 5. The two halves of a block
# Attention is stage 5's; H/Hkv heads of queries share one head of keys and values. QK-norm (Henry
# et al. 2020; Qwen3) brings each head's queries and keys to size 1, |q| = |k| = √D, times learned
# scales, so |q·k|/√D is at most √D times those. Without it scores can grow in training until
# softmax picks one key alone and passes no gradient, one cause of the loss spikes of section 12.
def linear(h, p, name, config):
    """h (..., in) through the matrix p[name], with its bias if there is one: (..., out)."""
    W, b = p[f"{name}.weight"], p.get(f"{name}.bias")
    y = h @ (W if config.arch == "gpt2" else W.transpose(1, 0))
    return y if b is None else y + b


def attention(h, p, config, mask):
    """h (B, T, C) -> (B, T, C), mask (T, T); with as many heads as p's matrices have rows for."""
    B, T, _ = h.shape
    D = config.n_embd // config.n_head
    if config.arch == "gpt2":
        qkv = linear(h, p, "attn.c_attn", config)  # (B, T, 3C)
        C = qkv.shape[-1] // 3
        q, k, v = qkv[..., :C], qkv[..., C : 2 * C], qkv[..., 2 * C :]
    else:
        q, k, v = (linear(h, p, f"self_attn.{name}_proj", config) for name in "qkv")
    H, Hkv = q.shape[-1] // D, k.shape[-1] // D
    if config.arch == "llama":
        q, k = q.reshape(B, T, H, D), k.reshape(B, T, Hkv, D)
        if config.qk_norm:
            q = normalise(q, p["self_attn.q_norm.weight"], None, config.norm_eps, centre=False)
            k = normalise(k, p["self_attn.k_norm.weight"], None, config.norm_eps, centre=False)
        q, k = rotate(q, config.rope_theta), rotate(k, config.rope_theta)
    q = q.reshape(B, T, Hkv, H // Hkv, D).transpose(0, 2, 3, 1, 4)  # (B, Hkv, H/Hkv, T, D)
    k = k.reshape(B, T, Hkv, 1, D).transpose(0, 2, 3, 4, 1)  # (B, Hkv, 1, D, T)
    v = v.reshape(B, T, Hkv, 1, D).transpose(0, 2, 3, 1, 4)  # (B, Hkv, 1, T, D)
    weights = softmax((q * (1 / math.sqrt(D))) @ k, mask)  # (B, Hkv, H/Hkv, T, T)
    y = (weights @ v).transpose(0, 3, 1, 2, 4).reshape(B, T, H * D)
    return linear(y, p, "attn.c_proj" if config.arch == "gpt2" else "self_attn.o_proj", config)


def mlp(h, p, config, names=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")):
    """h (..., C) -> (..., C), each position for itself; names: of llama's three matrices."""
    if config.arch == "gpt2":
        return linear(gelu(linear(h, p, "mlp.c_fc", config)), p, "mlp.c_proj", config)
    gate, up = linear(h, p, names[0], config), linear(h, p, names[1], config)
    return linear(silu(gate) * up, p, names[2], config)


# Mixture of experts (Shazeer et al. 2017). The MLP holds most of the weights, and every token pays
# for all of them. Instead, keep E MLPs and let a router, one matrix (E, C), choose k a token:
#     z = W·h,   w = softmax of z over its k largest entries,   y = Σ w_e·MLP_e(h) over those k.
# The choice is a jump and passes no gradient; the router learns through w, from experts it chose.
# That feeds on itself: who is chosen often learns most and is chosen more, until few do all the
# work. Switch transformers (Fedus et al. 2021) add a loss against it. With f_e the share of tokens
# sent to expert e (adding up to k) and P_e its mean probability (a softmax over all E),
#     balance = E/k·Σ f_e·P_e,   which is 1 if all are alike, and up to E if (k = 1) one has all.
# f counts and has no gradient; ∂balance/∂P_e = E/k·f_e is largest for the busiest expert.
#     Two tokens, E = 2, k = 1, both z = [1, 0]: f = [1, 0], P = [0.731, 0.269], balance 1.462. A
#     token has half of each P, so dp = ½·[2, 0] and, through softmax, dz = [0.197, -0.197]: descent
#     takes from expert 0 and gives to expert 1.
def experts(h, p, config, balances=None):
    """The mixture's output, like h (..., C); its balance loss is appended to the list balances."""
    E, k, name = config.n_expert, config.n_active, "block_sparse_moe"
    rows = h.reshape(-1, h.shape[-1])  # (n, C)
    z = linear(rows, p, f"{name}.gate", config)  # (n, E)
    mask = np.full(z.shape, -np.inf, z.data.dtype)  # 0 where the router sends a token
    np.put_along_axis(mask, np.argsort(-z.data, -1, kind="stable")[:, :k], 0, -1)
    weights = softmax(z, mask)  # (n, E)
    total, outputs, places = np.zeros(rows.shape, mask.dtype), [], []
    for e in range(E):
        sent = np.flatnonzero(mask[:, e] == 0)  # the tokens of expert e
        y = mlp(rows[sent], p, config, [f"{name}.experts.{e}.{w}" for w in ("w1", "w3", "w2")])
        outputs.append(y * weights[sent, e].reshape(-1, 1))
        places.append(sent)
        total[sent] += outputs[-1].data
    if balances is not None:
        f = (mask == 0).mean(0, dtype=mask.dtype)[:, None]  # (E, 1)
        P = Tensor(np.full((1, len(mask)), 1 / len(mask), mask.dtype)) @ softmax(z)  # (1, E)
        balances.append((P @ Tensor(f)) * (E / k))
    return Tensor(total, outputs, lambda dy: [dy[sent] for sent in places]).reshape(*h.shape)


# %% 6. The block and its depth
# A block does not replace x, it adds f(x) to it twice: attention, then the MLP. Where is the norm?
#     post-norm (Vaswani et al. 2017)  x ← norm(x + f(x))    pre-norm (GPT-2 on)  x ← x + f(norm(x))
def block(x, p, config, mask, post_norm=False, balances=None):
    """One layer on the stream x (B, T, C); p: the layer's {name: tensor}."""
    gpt2 = config.arch == "gpt2"

    def norm(x, name):
        weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
        return normalise(x, weight, bias, config.norm_eps, centre=gpt2)

    def think(h):
        return experts(h, p, config, balances) if config.n_expert else mlp(h, p, config)

    first = "ln_1" if gpt2 else "input_layernorm"
    second = "ln_2" if gpt2 else "post_attention_layernorm"
    if post_norm:
        x = norm(x + attention(x, p, config, mask), first)
        return norm(x + think(x), second)
    x = x + attention(norm(x, first), p, config, mask)
    return x + think(norm(x, second))


# Follow a gradient g from the top of L random layers down through their 2L additions. Let f turn an
# input of variance 1 into an output of variance s², independent of x, and let f's backward turn a
# gradient of variance 1 into one of variance b², independent of g. (s ≠ b: attention averages,
# which makes its output small, but gradient also comes through the scores. In the report's random
# blocks s², b² are 0.20, 0.47 in attention, 0.43, 0.46 in the MLP.)
# Pre-norm. Say an addition finds a stream of variance v. Its norm divides by √v, so by (J) what
# comes back through f has b²/v times the squared length of g, and |g|² grows by 1 + b²/v. The
# original g is in the sum, unchanged, so between bottom and top
#     cosine = Π (1 + b²/v)^(-½)     over the 2L additions.
# v grows to 1 + ks² after k independent outputs. Were b = s, the factors (1 + (k+1)s²)/(1 + ks²)
# would telescope to a cosine of 1/√(1 + 2Ls²): it falls like a square root of the depth.
# Post-norm. Now v = 1 before each addition and 1 + s² after it, and the norm shrinks all gradients
# alike. Of |g|² a share 1/(1 + b²) came straight, 2L times:
#     cosine = (1 + b²)^(-L)         falls exponentially.
# The gradient does not vanish, it arrives as noise, scrambled by random f's. Xiong et al. found a
# second trouble: at the start post-norm's gradients are large near the output, so that a full
# learning rate overshoots and a slow warmup is needed. The price of pre-norm is the growing stream.
# GPT-2 therefore divides the initial weights of the two matrices that write to it by √(2L): with
# s²/(2L) and b²/(2L), variance and cosine are about the same at every depth. Other matrices start
# as N(0, 0.02²), norm weights at 1, biases at 0.
def pre_norm_law(b2, variances):
    """The cosine above; variances (L + 1,): of the stream below each layer and at the top."""
    v = np.asarray(variances)
    middle = (v[:-1] + v[1:]) / 2  # what a layer's second addition finds
    return float(np.prod((1 + b2 / v[:-1]) * (1 + b2 / middle)) ** -0.5)


# Depth or width? A block has about 12C² weights, so 12LC² can be spent on layers or on channels.
# Depth composes. In one variable n ReLUs in ONE layer make a line with at most n bends. Take the
# tent 2·relu(x) - 4·relu(x - ½), up from 0 to 1 on the first half of 0..1 and down on the second.
# Each half covers all of 0..1, so a tent of a tent is two tents, and k of them, 2k ReLUs, bend
# 2^k - 1 times, for which one layer needs as many ReLUs (Telgarsky 2016). But layers wait for each
# other; channels are computed side by side. Shape matters little at a fixed number of
# weights: 6 layers of 4,288 channels came within 3 % of the loss of 48 of 1,600 (Kaplan et al.).


# %% 7. Masks and objectives: one block, every architecture
# Let position i see position j if j <= i or j < prefix. This one number, with targets of -1 where
# nothing is asked, names a whole family of pre-training objectives:
#     causal   prefix = 0      decoder (GPT): predict every next token; all T positions teach
#     masked   prefix = T      encoder (BERT): hide 15 % of the tokens, guess them from both sides
#     span     0 < prefix < T  (T5) cut a piece out; read the rest both ways, then write the piece
# An encoder-decoder is much like a prefix mask, but its two halves own separate weights.
def attention_mask(T, prefix=0):
    """(T, T): 0 where row i may look at column j, -inf elsewhere."""
    T, prefix = check_count("T", T), check_count("prefix", prefix, 0, T)
    i, j = np.ogrid[:T, :T]
    return np.where((j <= i) | (j < prefix), 0.0, -np.inf)


def ask(windows, objective, rng, hidden):
    """What to read and what to answer: (inputs, targets, prefix) from ids windows (B, T + 1).
    The id `hidden` (▒) stands in for what is taken away. T = 8, "the fox s", _ the space, · a -1:
        causal   reads the_fox_  answers he_fox_s      masked   th▒_f▒x_  ··e··o··
        span     reads the▒ox▒_  answers ······_f      (the piece "_f", written at the end)
    """
    windows = check_ids("windows", windows, hidden + 1, 0, math.inf)
    B, T = len(windows), check_count("T", windows.shape[1] - 1)
    x = windows[:, :T]
    if objective == "causal":
        return x, windows[:, 1:], 0
    if objective == "masked":
        hide = rng.random(x.shape) < 0.15
        hide[np.arange(B), rng.integers(0, T, B)] = True  # at least one
        return np.where(hide, hidden, x), np.where(hide, x, -1), T
    if objective != "span":
        raise ValueError(f"objective must be causal, masked or span, not {objective!r}")
    n = check_count("a quarter of block_size", T // 4)  # the length of the piece
    inputs, targets = [], []
    for row, start in zip(x[:, : T - 1], rng.integers(0, T - n, B)):
        piece, rest = row[start : start + n], np.delete(row, np.s_[start : start + n])
        inputs.append([*rest[:start], hidden, *rest[start:], hidden, *piece[:-1]])
        targets.append([-1] * (T - n) + [*piece])
    return np.array(inputs), np.array(targets), T - n + 1


# %% 8. The model
# Ids pick rows of an embedding table (V, C); gpt2 adds a learned row per position; then L blocks, a
# last norm, and the head, which scores each entry of the vocabulary by a dot product, logits = xWᵀ.
# Weight tying (Press & Wolf 2017) takes the embedding for W: how a token is read is how it is
# predicted. That saves V·C weights, and the table's gradient is the sum over both uses.
BALANCE = 0.01  # weight of the experts' mean balance loss beside the cross-entropy


class Transformer:
    """A stack of blocks. .params: {name: array} as in param_shapes; all is computed in its dtype.
    The methods take token ids (B, T), ValueError for others, and section 7's prefix."""

    def __init__(self, config, seed=0, dtype=np.float32, post_norm=False):
        if dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, not {dtype}")
        self.config = config
        self.post_norm = post_norm
        self.block = block  # section 12 puts others there
        self.params = {}
        rng = np.random.default_rng(seed)
        writing = ("c_proj.weight", "o_proj.weight", "down_proj.weight", "w2.weight")
        for name, shape in param_shapes(config).items():
            if len(shape) == 2:
                scale = 0.02 / math.sqrt(2 * config.n_layer) if name.endswith(writing) else 0.02
                start = rng.normal(0, scale, shape)
            else:
                start = np.full(shape, 0.0 if name.endswith("bias") else 1.0)
            self.params[name] = start.astype(dtype)

    def _run(self, idx, prefix=0, tape=None):
        """(logits (B, T, V), {name: tensor} of the weights, list of balance losses)."""
        c, gpt2 = self.config, self.config.arch == "gpt2"
        idx = check_ids("idx", idx, c.vocab_size, 0, c.block_size)
        T = idx.shape[1]
        P = {name: Tensor(p, tape=tape) for name, p in self.params.items()}
        embedding = P["transformer.wte.weight" if gpt2 else "model.embed_tokens.weight"]
        x = embedding[idx]  # (B, T, C)
        if gpt2:
            x = x + P["transformer.wpe.weight"][:T]
        mask = attention_mask(T, prefix).astype(x.data.dtype)
        balances = [] if c.n_expert else None
        for i in range(c.n_layer):
            layer = f"transformer.h.{i}." if gpt2 else f"model.layers.{i}."
            p = {name.removeprefix(layer): t for name, t in P.items() if name.startswith(layer)}
            x = self.block(x, p, c, mask, self.post_norm, balances)
        last = "transformer.ln_f" if gpt2 else "model.norm"
        x = normalise(x, P[f"{last}.weight"], P.get(f"{last}.bias"), c.norm_eps, centre=gpt2)
        logits = x @ (embedding if c.tie_weights else P["lm_head.weight"]).transpose(1, 0)
        return logits, P, balances

    def logits(self, idx, prefix=0):
        """Scores of the token after each position, (B, T) -> (B, T, V)."""
        return self._run(idx, prefix)[0].data

    def loss(self, idx, targets, prefix=0):
        """Mean cross-entropy in nats over the targets (B, T) that are not -1."""
        return float(cross_entropy(self._run(idx, prefix)[0], targets).data)

    def loss_and_grads(self, idx, targets, prefix=0):
        """The loss and {name: ∂loss/∂parameter} under the names of .params. With experts they are
        gradients of the loss + BALANCE times the mean balance loss."""
        logits, P, balances = self._run(idx, prefix, tape=[])
        total = loss = cross_entropy(logits, targets)
        for balance in balances or []:
            total = total + balance * (BALANCE / len(balances))
        total.backward()
        grads = {}
        for name, tensor in P.items():  # what was not used has none
            grads[name] = np.zeros_like(tensor.data) if tensor.grad is None else tensor.grad
        return float(loss.data), grads

    def generate(self, idx, max_new_tokens, temperature=1.0, seed=None):
        """Continue idx (B, T) to (B, T + max_new_tokens), reading all anew each time (no cache).
        Temperature 0 takes the likeliest token; stage 1 has top-k and top-p."""
        rng = np.random.default_rng(seed)
        idx = check_ids("idx", idx, self.config.vocab_size, 0, math.inf)
        check_number("temperature", temperature)
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, not {temperature}")
        for _ in range(check_count("max_new_tokens", max_new_tokens, 0)):
            z = self.logits(idx[:, -self.config.block_size :])[:, -1].astype(np.float64)  # (B, V)
            if temperature == 0:
                choice = z.argmax(-1)
            else:
                p = np.exp((z - z.max(-1, keepdims=True)) / temperature)
                edges = np.cumsum(p, -1)
                choice = (edges <= rng.random((len(p), 1)) * edges[:, -1:]).sum(-1)
            idx = np.concatenate([idx, choice[:, None]], 1)
        return idx


# %% 9. Counting before building
# Weights. A gpt2 block has 3C² + C² (attention) and 2·4C² (MLP), so N is about 12LC² plus the
# tables; exactly, it is the sum over the shapes. Those that one token meets are called active.
# Arithmetic. A weight in a product costs one multiplication and one addition per token forward, and
# twice that backward (dx and dW): 6 if active, while looking up a row costs nothing. Attention's
# scores and weighted means are two products of T·D per head and token, 2·2·T·C forward, 12LCT in
# all (as Chowdhery et al. 2022 count; the half that the causal mask hides is not taken off).
def count_params(config, active=False):
    """N, exactly (a tied head counts once), or without the experts that a token does not visit."""
    unvisited = max(0, config.n_expert - config.n_active) if active else 0
    every = sum(math.prod(shape) for shape in param_shapes(config).values())
    return every - config.n_layer * unvisited * 3 * config.n_embd * config.n_hidden


def flops_per_token(config):
    """Floating-point operations to train on one token at full context; forward alone is a third."""
    C, T, V = config.n_embd, config.block_size, config.vocab_size
    idle = sum(shape[0] for shape in param_shapes(config).values() if len(shape) == 1)
    if config.arch == "gpt2":
        idle += T * C  # looked up
    if not config.tie_weights:
        idle += V * C
    return 6 * (count_params(config, active=True) - idle) + 12 * config.n_layer * C * T


# Bytes. Weights N, gradients N. SGD keeps nothing more, momentum and Lion one number a weight, Adam
# two, Muon one for the blocks' matrices and Adam's two for the rest. The tape keeps every array
# until the backward; per token and layer these are
#     both     norms 4C | q, k, v | q/√D C | attention's output, twice 2C | projections, sums 4C
#     gpt2     14C + 3F + 2HT            k, v | up, GELU, slope | scores, softmax (biases: 5C + F)
#     llama    13C + 3Hkv·D + 5F + 2HT   q turned | k, k turned, v | gate, SiLU, slope, up, product
#     besides  QK-norm 2C + 2Hkv·D | experts k(5F + 3C) instead of 5F, and 3E for the router
# Around the blocks: embedding C (gpt2: 2C), last norm 2C, logits and log p 2V. Tiles (stage 5)
# avoid the maps, 2HT; recomputed blocks (section 12) leave C a layer and one layer's arrays. The
# KV cache (stage 5) has 2L·Hkv·D a token. A test measures with tracemalloc.
STATE = {"sgd": 0, "momentum": 1, "lion": 1, "muon": 1, "adam": 2, "adamw": 2}


def memory_budget(config, batch=1, optimizer="adamw", width=4, tiles=False, recompute=False):
    """Bytes at full context, in numbers of `width` bytes, and their sums "training", "generation";
    "maps" are the part of "activations" that tiles=True avoids. optimizer: a key of STATE."""
    tokens, width = check_count("batch", batch) * config.block_size, check_count("width", width)
    if optimizer not in list(STATE):
        raise ValueError(f"optimizer must be one of {', '.join(STATE)}, not {optimizer!r}")
    C, F, L, N = config.n_embd, config.n_hidden, config.n_layer, count_params(config)
    kv, state = C // config.n_head * config.n_kv_head, STATE[optimizer] * N
    if optimizer == "muon":
        shapes = param_shapes(config).items()
        state += sum(math.prod(shape) for name, shape in shapes if not is_inner(name, shape))
    if config.arch == "gpt2":
        layer, around = 14 * C + 3 * F, 4 * C + 2 * config.vocab_size
    else:
        layer, around = 13 * C + 3 * kv + 5 * F, 3 * C + 2 * config.vocab_size
    if config.bias:
        layer += 5 * C + F
    if config.qk_norm:
        layer += 2 * C + 2 * kv
    if config.n_expert:
        layer += config.n_active * (5 * F + 3 * C) - 5 * F + 3 * config.n_expert
    maps = 0 if tiles else 2 * config.n_head * config.block_size
    depth, streams = (1, L * C) if recompute else (L, 0)
    numbers = {"weights": N, "gradients": N, "optimizer": state}
    numbers["activations"] = tokens * (depth * (layer + maps) + streams + around)
    numbers |= {"training": sum(numbers.values()), "maps": tokens * depth * maps}
    numbers |= {"kv_cache": tokens * 2 * L * kv, "generation": N + tokens * 2 * L * kv}
    return {name: width * number for name, number in numbers.items()}


# %% 10. Scaling laws
# The loss falls as a power of what is spent (Kaplan et al. 2020). With N weights and D tokens
# Hoffmann et al. (2022) write L = E + A/N^α + B/D^β: E is the text's own entropy, A/N^α what a
# small model cannot express, B/D^β what a short training has not told it. (L, B, D, E are their
# letters.) Training costs K = 6ND operations. At fixed K put D = K/6N and set dL/dN = 0:
#     αA/N^α = βB/D^β,   so   N ∝ K^(β/(α+β))   and   D ∝ K^(α/(α+β)).
# If α ≈ β, model and data grow alike, by √K. Their approach 1 reads off training curves 0.50 and
# 0.50 (Kaplan: 0.73 for N); Chinchilla had 70 billion weights and 1.4 trillion tokens, 20 a weight.
# Fitting L(N) = E + A/N^α. Given α this is a line in u = N^-α, whose best slope and intercept have
# a closed form, so only α is searched, on ever finer grids. We ask for E, A >= 0: the squared error
# is a bowl, so if its bottom breaks one of these, the best allowed line has that number 0. The form
# holds for long training. At first wider models also learn faster a step, the curve hardly
# flattens, and E comes out 0: so after the report's 250 steps. After 1,000 it is 0.9 to 1.4 on five
# seeds (benchmarks/stage06_scaling.py): a floor of these one-layer models, not of the text.
def fit_power_law(sizes, losses):
    """(E, A, alpha) of L(N) = E + A/N^alpha by least squares; E, A >= 0, alpha in 0.01..10."""
    N, L = np.asarray(sizes, np.float64), np.asarray(losses, np.float64)
    fine = N.ndim == 1 and N.shape == L.shape and len(np.unique(N)) >= 3 and N.min() > 0
    if not fine or not np.isfinite([N, L]).all():
        raise ValueError(f"need 3 positive sizes or more, each with a loss, not {sizes}, {losses}")
    unit = math.exp(np.log(N).mean())  # N in units of its geometric mean keeps u near 1

    def line(alpha):
        u = (N / unit) ** -alpha
        A, E = np.polyfit(u, L, 1)
        if E < 0:
            E, A = 0.0, max(0.0, u @ L / (u @ u))
        elif A < 0:
            E, A = max(0.0, L.mean()), 0.0
        return ((E + A * u - L) ** 2).sum(), float(E), float(A * unit**alpha)

    low, high = 0.01, 10.0
    for _ in range(12):
        grid = np.geomspace(low, high, 101)
        best = int(np.argmin([line(alpha)[0] for alpha in grid]))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 100)]
    _, E, A = line(grid[best])
    return E, A, float(grid[best])


# %% 11. Training and scoring
# Tables and vectors take Adam steps, the blocks' matrices Muon's (stage 4). The running gradient
# UΣVᵀ becomes about UVᵀ, every direction equally long: an odd polynomial of a matrix acts on its
# singular values, and five rounds of ax + bx³ + cx⁵ carry those above 0.002 to 0.68..1.21. UVᵀ of
# m x n has min(m, n) directions of length 1, so its root mean square is √(min/mn) = 1/√max(m, n).
# Times √max it moves weights by about the rate, as Adam does (Liu et al. 2025); here by a tenth.
def orthogonal(G):
    """About UVᵀ for a matrix G = UΣVᵀ."""
    G = Tensor(G).data  # float32 or float64
    if G.ndim != 2:
        raise ValueError(f"G must be a matrix, not of shape {G.shape}")
    tall = len(G) > G.shape[1]
    X = (G.T if tall else G) / (np.linalg.norm(G) + 1e-7)
    for _ in range(5):
        A = X @ X.T  # X, AX and A²X have the powers 1, 3 and 5 of the singular values
        X = 3.4445 * X + (2.0315 * (A @ A) - 4.7750 * A) @ X
    return X.T if tall else X


def is_inner(name, shape):
    """Is this weight Muon's, a matrix inside a block?"""
    return len(shape) == 2 and (".h." in name or ".layers." in name)


def schedule(step, steps):
    """The share of the learning rate at this step of 1..steps: up for a tenth, then down to 0."""
    return min(1.0, 10 * step / steps, (steps + 1 - step) / (0.9 * steps))


def draw(model, ids, batch, rng, objective="causal"):
    """ask() about `batch` random windows of ids; the vocabulary's last id hides."""
    T = model.config.block_size
    ids = check_ids("ids", ids, model.config.vocab_size)
    check_count("the number of ids", len(ids), T + 1)
    starts = rng.integers(0, len(ids) - T, check_count("batch", batch))
    windows = ids[starts[:, None] + np.arange(T + 1)]  # (B, T + 1)
    return ask(windows, objective, rng, model.config.vocab_size - 1)


def train(model, ids, steps, batch, learning_rate=0.02, label=None, seed=0, objective="causal"):
    """The loss in nats of each of `steps` updates; ValueError at the first that is not finite."""
    check_number("learning_rate", learning_rate, above=0)
    rng, losses, params = np.random.default_rng(seed), [], model.params
    m = {name: np.zeros_like(p) for name, p in params.items()}
    v = {name: np.zeros_like(p) for name, p in params.items() if not is_inner(name, p.shape)}
    for step in range(1, check_count("steps", steps, 0) + 1):
        loss, grads = model.loss_and_grads(*draw(model, ids, batch, rng, objective))
        losses.append(loss)
        if not math.isfinite(loss):
            raise ValueError(f"step {step}: the loss is {loss}; try a lower learning_rate")
        length = math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
        rate = learning_rate * schedule(step, steps)
        for name, p in params.items():
            g = grads[name] / max(1, length)  # clipped to length 1
            if name in v:
                m[name] += 0.1 * (g - m[name])
                v[name] += 0.03 * (g * g - v[name])
                spread = np.sqrt(v[name] / (1 - 0.97**step)) + 1e-8
                p -= (rate / (1 - 0.9**step)) * m[name] / spread
            else:
                m[name] += g - 0.05 * m[name]
                p -= (rate * 0.1 * math.sqrt(max(p.shape))) * orthogonal(g + 0.95 * m[name])
        if label and step % 10 == 0:
            progress(f"  {label}: step {step} of {steps}, loss {np.mean(losses[-50:]):.3f} nats")
    return losses


def held_out_loss(model, ids, start):
    """Nats per character of ids[start:], each predicted once from T/2 to T characters before it."""
    T, ids = model.config.block_size, check_ids("ids", ids, model.config.vocab_size)
    stride = max(1, T // 2)
    check_count("the number of ids", len(ids), T + 1)
    start = check_count("start", start, T + 1 - stride, len(ids) - 1)
    ends = [*range(start + stride, len(ids), stride), len(ids)]
    firsts = np.array([start, *ends[:-1]])  # window i scores what comes from firsts[i] on
    total = 0.0
    for i in range(0, len(ends), 32):
        at = np.array(ends[i : i + 32])[:, None] + np.arange(-T, 0)  # (32, T): targets' places
        targets = np.where(at >= firsts[i : i + 32, None], ids[at], -1)
        total += model.loss(ids[at - 1], targets) * (targets >= 0).sum()
    return float(total / (len(ids) - start))


# %% 12. Scale
# Each idea is code on arrays here; tests hold the pieces to the whole's numbers. First, activation
# recomputation (Chen et al. 2016). The backward needs what the forward computed, but need not have
# kept it. Keep each block's input and, when the backward reaches the block, run its forward again
# on a tape of its own. That stores C numbers a layer and token instead of section 9's long list.
# The price is one more forward: 8 operations a weight and token, not 6.
def recomputed_block(x, p, config, *rest):
    """block, to be put into Transformer.block: the same numbers, and nothing inside is kept."""
    if config.n_expert:
        raise ValueError("recomputed_block handles no experts: their balance loss is inside")

    def run(tape):
        inputs = Tensor(x.data, tape=tape)
        weights = {name: Tensor(w.data, tape=tape) for name, w in p.items()}
        return inputs, weights, block(inputs, weights, config, *rest)

    def pull(dy):
        inputs, weights, y = run([])
        y.backward(dy)
        return [inputs.grad, *(w.grad for w in weights.values())]

    return Tensor(run(None)[2].data, [x, *p.values()], pull)


# Data parallelism. The loss is a mean over sequences, and the gradient of a mean is the mean of the
# gradients. So n workers with the same weights take B/n sequences each, average their gradients,
# and make the same step. To add them up, stand in a ring and cut the gradient into n pieces. In
# round t worker w passes piece w - t to its right, who adds its own. After n - 1 rounds each holds
# one finished piece, and n - 1 rounds of passing on give all to all. Each sends 2(n - 1)/n·N
# numbers. (Between the halves each may update its own piece's weights alone, so that Adam's state
# is kept once in all: ZeRO, Rajbhandari et al. 2020.)
def ring_sum(arrays):
    """(the sum of all arrays as each of n workers holds it, the numbers that each has sent)."""
    n = len(arrays)
    held = [np.array_split(array.ravel(), n) for array in arrays]  # held[worker][piece]
    sent = [0] * n
    for t in range(2 * (n - 1)):
        for w in range(n):
            piece, right = (w - t) % n, (w + 1) % n
            own = held[right][piece] if t < n - 1 else 0
            held[right][piece] = held[w][piece] + own
            sent[w] += held[w][piece].size
    return [np.concatenate(pieces).reshape(arrays[0].shape) for pieces in held], sent


# Tensor parallelism. When one block is too large, split its matrices (Shoeybi et al. 2019). The
# hidden units of an MLP do not look at each other, and neither do heads. So a worker gets some of
# them: their rows of the matrices that read h, their columns of the one that writes, and
#     down·a(up·h) = Σ over workers  down[:, mine]·a(up[mine]·h).
# One sum over workers (a ring_sum of T·C numbers a sequence) in each half of the block makes x
# whole again. The backward has the same two sums, for the gradient of h.
def tensor_parallel_block(x, p, config, mask, post_norm=False, balances=None, n=2):
    """block for llama, pre-norm, by n workers."""
    if config.n_kv_head % n or config.n_hidden % n:
        raise ValueError(f"{n} workers cannot share {config.n_kv_head}, {config.n_hidden} units")
    workers = [{} for _ in range(n)]
    for name, w in p.items():
        rows, columns = w.shape[0] // n, w.shape[-1] // n
        for i, mine in enumerate(workers):
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                mine[name] = w[:, i * columns : (i + 1) * columns]
            else:
                mine[name] = w[i * rows : (i + 1) * rows] if "_proj" in name else w
    h = normalise(x, p["input_layernorm.weight"], None, config.norm_eps, centre=False)
    for mine in workers:  # at the same time; this sum and the next are the only messages
        x = x + attention(h, mine, config, mask)
    h = normalise(x, p["post_attention_layernorm.weight"], None, config.norm_eps, centre=False)
    for mine in workers:
        x = x + mlp(h, mine, config)
    return x


# Pipeline parallelism. When all blocks together are too large, give each of S stages some of them.
# A stage must wait for the one before it; so cut the batch into M micro-batches, and stage s works
# on number m at tick s + m, while its neighbours work on others (Huang et al. 2019). In M + S - 1
# ticks each stage works M: a share (S - 1)/(M + S - 1) is idle, the bubble. The backward is the
# same timetable read from its end, and the gradients of micro-batches add up.
def pipeline(stages, params, inputs, top_gradient):
    """One step of S stages, functions (x, weights) -> y of tensors, over M arrays `inputs`.
    params: a dict of arrays a stage; top_gradient(m, y) -> ∂loss/∂y for micro-batch m. Returns the
    weights' gradients, a dict a stage, and for each tick the list of (stage, m) at work."""
    check_count("the number of dicts in params", len(params), len(stages), len(stages))
    grads = [{name: np.zeros_like(w) for name, w in weights.items()} for weights in params]
    wire = {(0, m): x for m, x in enumerate(inputs)}  # (stage, micro-batch): what it is sent
    kept, timetable = {}, []
    for tick in range(len(inputs) + len(stages) - 1):
        jobs = [(s, tick - s) for s in range(len(stages)) if 0 <= tick - s < len(inputs)]
        timetable.append(jobs)
        for s, m in jobs:
            tape = []
            x = Tensor(wire[s, m], tape=tape)
            weights = {name: Tensor(w, tape=tape) for name, w in params[s].items()}
            y = stages[s](x, weights)
            kept[s, m] = x, weights, y
            wire[s + 1, m] = y.data
    for s, m in (job for jobs in reversed(timetable) for job in jobs):
        x, weights, y = kept.pop((s, m))
        y.backward(top_gradient(m, y.data) if s == len(stages) - 1 else wire[s + 1, m])
        wire[s, m] = x.grad
        for name, tensor in weights.items():
            grads[s][name] += tensor.grad
    return grads, timetable


# Few bits. Numbers of 16 bits take half the memory and, on the right hardware, a fraction of the
# time. float16 keeps 11 significant bits from 6e-5 to 65,504, and fewer down to 6e-8; bfloat16
# keeps 8 and has float32's range. A step of less than half the gap to the next number is lost, so
# weights stay in float32 and copies are rounded. And in float16 small gradients are 0. So multiply
# the loss, hence by the chain rule every gradient, by a scale, and divide by it in float32
# (Micikevicius et al. 2018). If one overflows, torch's GradScaler skips the step and halves the
# scale; after 2,000 good steps in a row it doubles it.
def through_float16(grads, scale):
    """{name: gradient} as float16 carries them when the loss is times scale; ±inf: too large."""
    check_number("scale", scale, above=0)
    with np.errstate(over="ignore"):
        halves = {name: (g * scale).astype(np.float16) for name, g in grads.items()}
    return {name: half.astype(np.float32) / scale for name, half in halves.items()}


# Loss spikes. The loss of large runs sometimes jumps, and returns slowly or never. One cause is
# Adam's memory. After a quiet time m and v are tiny; let gradients of size G arrive. After t of
# them m = (1 - β₁ᵗ)·G and v = (1 - β₂ᵗ)·G², and the step m/√v, which should be about 1, is 3.2 at t
# = 1 and 6.6 at t = 12 for β = (0.9, 0.999). With β₂ = 0.95, which large models take, it is at most
# 1.1. Other cures are clipping, warmup, QK-norm, and a small loss on log²Σe^z against drift. PaLM's
# makers went back and skipped the batches, some twenty times (Chowdhery et al. 2022).
# The bill. Operations are counted; a device does at best a published number of them a second, and a
# good job reaches 30 to 50 % of it. Llama 3 8B: 15e12 tokens of 58 GFLOP, 610,000 hours of an H100
# at 40 %. Meta's model card says 1.3 million, but not what these hours include.
def run_cost(config, tokens, devices, peak=989e12, share=0.4, rent=2.0):
    """(operations, days, dollars) at a share of the peak (an H100 in bfloat16) and hourly rent."""
    for name, value in (("tokens", tokens), ("peak", peak), ("share", share), ("rent", rent)):
        check_number(name, value, above=0)
    operations = flops_per_token(config) * tokens
    hours = operations / (peak * share) / 3600
    return operations, hours / check_count("devices", devices) / 24, hours * rent


# %% Demonstration
def progress(message, last=False):
    """One line overwritten in place on a terminal; when piped, only the last message is printed."""
    if sys.stdout.isatty():
        print(f"\r{message:<90}", end="\n" if last else "", flush=True)
    elif last:
        print(message, flush=True)


def unit_weights(model, scaled=False):
    """The gpt2 model with matrices of variance 1/inputs, which keep a variance; scaled: /√(2L)."""
    for name, p in model.params.items():
        if p.ndim == 2:
            undo = "c_proj" in name and not scaled  # GPT-2's 1/√(2L)
            p *= 50 * (math.sqrt(2 * model.config.n_layer) if undo else 1)  # 50·0.02 = 1
            inputs = {"transformer.wte": 1, "transformer.wpe": 1, "lm_head": p.shape[1]}
            p /= math.sqrt(inputs.get(name.removesuffix(".weight"), len(p)))
    return model


def depth_probe(n_layer, seed, post_norm=False, scaled=False, T=32, C=64):
    """(the stream's variances below each layer and at the top, section 6's cosine), at random."""
    config, rng = TransformerConfig("gpt2", 1, T, n_layer, 2, C), np.random.default_rng(seed)
    params = unit_weights(Transformer(config, seed), scaled).params
    bottom = x = Tensor(rng.normal(size=(4, T, C)), tape=[])
    variances = [np.mean(x.data * x.data)]
    for i in range(n_layer):
        layer = f"transformer.h.{i}."
        p = {k.removeprefix(layer): Tensor(v) for k, v in params.items() if k.startswith(layer)}
        x = block(x, p, config, attention_mask(T), post_norm)
        variances.append(np.mean(x.data * x.data))
    g = rng.normal(size=x.shape)
    x.backward(g)
    return variances, np.vdot(bottom.grad, g) / np.linalg.norm(bottom.grad) / np.linalg.norm(g)


class Lab:
    """What all parts of the report share: the stories as ids, the seed, a way to train."""

    def __init__(self, fast, seed):
        text = (Path(__file__).resolve().parent / "data" / "stories.txt").read_text("utf-8")
        self.fast = fast
        self.seed = seed
        self.letters = [*sorted(set(text)), "▒"]  # the last one hides others (section 7)
        self.start = int(0.9 * len(text))  # where the held-out tenth begins
        self.ids = self.encode(text[: self.start + 640] if fast else text)

    def encode(self, text):
        return np.searchsorted(self.letters[:-1], list(text))

    def train(self, steps, batch=16, rate=0.02, objective="causal", unit=None, **shape):
        """(model, mean loss of its last ten steps); unit: a "pre" or "post" norm, unit_weights."""
        shape = {"arch": "llama", "vocab_size": len(self.letters) - 1, "block_size": 32} | shape
        model = Transformer(TransformerConfig(**shape), self.seed, post_norm=unit == "post")
        if unit:
            unit_weights(model)
        label = f"{model.config.n_layer} layers of {model.config.n_embd} channels, {objective}"
        ids, steps = self.ids[: self.start], 2 if self.fast else steps
        losses = train(model, ids, steps, batch, rate, label, self.seed, objective)
        return model, np.mean(losses[-10:])


def report_depth(lab):
    """Pre-norm and post-norm beside section 6's laws, at random weights, and then trained."""
    b2 = 1 / depth_probe(1, lab.seed, post_norm=True)[1] - 1  # post-norm's law, at one layer
    print(f"1. Depth: cosine of the gradient at top and bottom, random weights, b² = {b2:.2f}")
    print("            pre-norm         post-norm     pre-norm    loss at the end, nats")
    print("   layers   cosine    law    cosine    law   with 1/√2L      pre      post")
    gaps, shape = [], {"arch": "gpt2", "n_head": 2, "n_embd": 32, "tie_weights": False}
    for L in (2, 4) if lab.fast else (2, 6, 12):
        variances, pre = depth_probe(L, lab.seed)
        _, post = depth_probe(L, lab.seed, post_norm=True)
        _, scaled = depth_probe(L, lab.seed, scaled=True)
        pre_law, post_law = pre_norm_law(b2, variances), (1 + b2) ** -L
        gaps.append(abs(pre_law / pre - 1))
        _, pre_loss = lab.train(40, 8, 0.01, unit="pre", n_layer=L, **shape)
        _, post_loss = lab.train(40, 8, 0.01, unit="post", n_layer=L, **shape)
        line = f"{L:8d} {pre:9.3f} {pre_law:7.3f} {post:8.3f} {post_law:7.3f} {scaled:11.3f}"
        progress(f"{line} {pre_loss:11.2f} {post_loss:8.2f}", last=True)
    side = "above" if post_loss > pre_loss else "below"
    print(f"   Pre-norm's law is off by up to {max(gaps):.0%}. The deepest post-norm ends", end="")
    print(f" {abs(post_loss - pre_loss):.2f} nats {side} pre-norm.")


def report_objectives(lab):
    """Three masks, and a model trained under each, scored on what it is asked."""
    print("\n2. Masks: who sees whom (#) under a causal, a span (prefix 3) and a masked objective")
    pictures = [np.where(attention_mask(6, prefix) == 0, "#", ".") for prefix in (0, 3, 6)]
    for rows in zip(*pictures):
        print("   " + "      ".join("".join(row) for row in rows))
    losses, shape = {}, {"vocab_size": len(lab.letters), "n_layer": 2, "n_head": 2, "n_embd": 32}
    for name in ("causal", "span", "masked"):
        model, _ = lab.train(200, objective=name, **shape)
        asked = draw(model, lab.ids[lab.start :], 256, np.random.default_rng(lab.seed), name)
        losses[name] = model.loss(*asked)
        progress(f"   {name:7}{losses[name]:5.2f} nats for each character it asks for", last=True)
    print(f"   After equal steps {min(losses, key=losses.get)} guesses best.")


def report_counting(lab):
    """Weights, operations and bytes of the presets, and the bill of one; nothing is run."""
    print("\n3. Counting, nothing allocated (float32, batch 1, full context, AdamW)")
    print("                                GFLOP     GB to train, keeping       KV   tokens")
    print("                       weights /token      all  no maps   inputs     GB  20N, 10⁹")
    for name, config in PRESETS.items():
        N = count_params(config)
        every, tiled = memory_budget(config), memory_budget(config, tiles=True)
        least = memory_budget(config, tiles=True, recompute=True)
        line = f"   {name:12}{N:15,}{flops_per_token(config) / 1e9:7.2f}"
        line += "".join(f"{budget['training'] / 1e9:9.1f}" for budget in (every, tiled, least))
        print(f"{line}{every['kv_cache'] / 1e9:7.2f}{20 * N / 1e9:10,.1f}")
    llama, active = PRESETS["llama-3-8b"], count_params(PRESETS["mixtral-8x7b"], active=True)
    budget, (operations, days, dollars) = memory_budget(llama), run_cost(llama, 15e12, 1024)
    whole, maps = budget["training"] / 1e9, budget["maps"] / 1e9
    print(f"   llama-3-8b: {maps:.0f} of the {whole:.0f} GB are attention maps, which tiles avoid.")
    print(f"   15·10¹² tokens: {operations:.2g} operations; 1,024 H100 at 40 %: {days:.0f} days,")
    print(f"   {dollars / 1e6:.1f} million dollars at 2 an hour. mixtral uses {active:,} weights.")


def report_scaling(lab):
    """Section 10's law, fitted to five sizes; the sixth says how well it predicts."""
    print("\n4. A scaling law: one layer, ever wider, trained alike; the last size is predicted")
    models = [lab.train(250, n_layer=1, n_head=1, n_embd=C)[0] for C in (8, 12, 16, 24, 32, 48)]
    N = np.array([count_params(model.config) for model in models])
    nats = np.array([held_out_loss(model, lab.ids, lab.start) for model in models])
    E, A, alpha = fit_power_law(N[:-1], nats[:-1])
    errors = nats - (E + A / N**alpha)
    print(f"   The first five give L(N) = {E:.3f} + {A:.3g}/N^{alpha:.3f}.")
    print("   weights   " + "".join(f"{n:9,}" for n in N))
    print("   held-out  " + "".join(f"{loss:9.3f}" for loss in nats) + "  nats/char")
    print("   minus law " + "".join(f"{error:+9.3f}" for error in errors))
    print(f"   So it is good to about {np.abs(errors).max():.2f} nats, at this seed.", end=" ")
    print("No floor shows after so few steps." if E == 0 else f"The floor is {E:.2f}.")


def report_model(lab):
    """The model that stands in README's ladder."""
    print("\n5. A llama of 3 layers, and what it writes")
    model, _ = lab.train(600, 32, 0.03, n_layer=3, n_head=2, n_embd=64)
    prompt = lab.encode("The Fox and the")[None]
    written = model.generate(prompt, 20 if lab.fast else 240, temperature=0.7, seed=lab.seed)[0]
    progress("".join(lab.letters[i] for i in written), last=True)
    nats = held_out_loss(model, lab.ids, lab.start)
    print(f"\nheld-out: {nats:.3f} nats/char | {nats / math.log(2):.3f} bits/char", end=" ")
    print(f"| perplexity {math.exp(nats):.2f}   (stage 6, transformer, context 32)")


def drop_unwritten():
    """Forget what stdout cannot take, so that Python's own flush at the end does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:  # a closed pipe, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv=None):
    """Depth, objectives, counting, a scaling law, and a model for the ladder."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it was closed before the start
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    parser = argparse.ArgumentParser(description="Stage 6: the transformer, stacked and measured.")
    parser.error = lambda message: parser.exit(2, f"stage06_transformer.py: {message}\n")
    parser.add_argument("--fast", action="store_true", help="a smoke run of every part, under 3 s")
    parser.add_argument("--seed", type=int, default=0, help="fixes every random choice (default 0)")
    args = parser.parse_args(argv)
    try:
        lab = Lab(args.fast, check_count("--seed", args.seed, 0))
        report_depth(lab)
        report_objectives(lab)
        report_counting(lab)
        report_scaling(lab)
        report_model(lab)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever was reading has seen enough
        drop_unwritten()
    except KeyboardInterrupt:
        drop_unwritten()
        parser.exit(130, "\n")
    except (OSError, ValueError) as error:
        drop_unwritten()
        parser.error(str(error))


# %% What to take away
# - Pre-norm, x ← x + f(norm(x)), passes the gradient on unchanged; what writes to x starts small.
# - 12LC² weights and the tables; 6N + 12LCT operations a token; with Adam 16 bytes a weight.
# - For a fixed bill, about 20 tokens a weight; more tokens if the model will be used much.
# - Out of memory: tiles, recomputation, then split data, layers (pipeline), matrices (close by).

# %% Common mistakes
# - Post-norm, deep, unwarmed: the loss stays at that of letter frequencies. block norms first.
# - A mask after the softmax: rows no longer sum to 1, the future leaks. softmax adds it before.
# - Forgetting √(2L): the stream's size grows with depth (report 1). Transformer.__init__ divides.
# - `dx[rows] += dy` for repeated rows: only the last counts. __getitem__ uses np.add.at.
# - NumPy's float64 scalars (np.sqrt(D)) turn float32 into float64: attention takes math.sqrt.

# %% Exercises
# They are in exercises/stage06.py, and `python exercises` checks them.
#  1. ★ (by hand) One token through a block
#  2. ★ (by hand) Where GPT-2's weights are
#  3. ★ (by hand) The cache of Llama 3 8B
#  4. ★ (explain) Post-norm loses its way
#  5. ★★ (derive) What LayerNorm does not feel
#  6. ★★ (implement) A new operation for the tape
#  7. ★★ (implement) Attention and MLP side by side
#  8. ★★ (find the bug) The ring
#  9. ★★ (derive) The bubble
# 10. ★★ (measure) The law against the blocks
# 11. ★★★ (derive) The best size for a bill
# 12. ★★★ (derive) Infinitely deep
# 13. ★★ (research) Does the parallel block cost loss here?
# 14. ★★★ (project) Better than the curve

# %% Where this leads
# Stage 7 replaces characters by tokens, so that T reaches further; the capstone writes the backward
# of these blocks by hand and trains them longer. Llama 3 8B has 32, wider.

if __name__ == "__main__":
    sys.exit(main())
