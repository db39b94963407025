"""Solutions of the exercises of stage 9: adapt. `python exercises 9` checks them."""

import math

import numpy as np

import stage09_lora as stage

# %% 1. ★ (by hand) Two steps with a plug
# As on the first page: y = xW + (xA)B, one step down on ½‖y - wanted‖² at a time. W is the unit
# matrix [[1, 0], [0, 1]], x = [1, 2], wanted = [3, 2], the learning rate is 1/6, and A = [1, 1]
# (a column), B = [0, 0] (a row) at first. Do two steps on paper.
# ANSWER_1:  B after the first step, a list of two numbers.
# ANSWER_1B: A after the second step, a list of two numbers, to three digits.
ANSWER_1 = [1, 0]
ANSWER_1B = [0.833, 0.667]
# > y = [1, 2], so dy = [-2, 0]. h = xA = 3 and dB = h·dy = [-6, 0]: B becomes [1, 0]. A does not
# > move, since dA = x·(B·dy) = 0. Now y = [1, 2] + 3·[1, 0] = [4, 2], dy = [1, 0], and dA =
# > [1, 2]·1: A becomes [1 - 1/6, 1 - 2/6].
HINTS_1 = [
    "First y, then dy = y - wanted. With B = 0 the plug adds nothing yet.",
    "dB = h·dy with h = xA. A waits: with B = 0 its gradient is 0.",
    "In the second step B = [1, 0], and dA[i] = x[i]·(B·dy).",
]

# %% 2. ★ (by hand) When LoRA saves nothing
# A matrix has 64 rows and 256 columns.
# ANSWER_2: at which rank would LoRA train exactly as many numbers as the matrix has? (Ranks are
# whole; give the fraction to three digits.)
ANSWER_2 = 51.2
# > r·(64 + 256) = 64·256 at r = 16,384/320 = 51.2. From rank 52 on, LoRA trains more than W has.
HINTS_2 = [
    "A is (in, r), B is (r, out).",
    "Set r·(in + out) equal to in·out.",
]

# %% 3. ★ (explain) The other way round
# Somebody starts LoRA with A = 0 and B random instead. What happens?
#   a  nothing is ever learned: both gradients stay 0
#   b  it starts at the base as well; the first step moves A only, and B follows
#   c  it starts at a damaged model, since B is noise
#   d  it starts at the base, and the first step moves A and B
# ANSWER_3: one letter, as a string.
ANSWER_3 = "b"
# > AB = 0 all the same, so it starts at the base. dB = s·Aᵀ·G is 0 while A is; dA = s·G·Bᵀ is not.
# > The two starts mirror each other.
HINTS_3 = [
    "What is ΔW = s·AB if one of the two is 0?",
    "Look at dA = s·G·Bᵀ and dB = s·Aᵀ·G: which of them is 0 in the first step?",
    "After that step, is the other one still 0?",
]


# %% 4. ★★ (derive) Two shadows of one gradient
# Let L be a function of the matrix W + s·AB alone, and G its gradient there, Gᵢⱼ = ∂L/∂(W + sAB)ᵢⱼ.
# Derive ∂L/∂A and ∂L/∂B without any x.
def lora_gradients(G, A, B, scale):
    """∂L/∂A (in, r) and ∂L/∂B (r, out). G (in, out), A (in, r), B (r, out); scale: s."""
    return scale * G @ B.T, scale * A.T @ G


# > (AB)ᵢⱼ = Σₖ AᵢₖBₖⱼ. A change of Aᵢₖ moves the entries of row i, by s·Bₖⱼ each: dAᵢₖ is
# > Σⱼ Gᵢⱼ·s·Bₖⱼ, which is (s·G·Bᵀ)ᵢₖ. A change of Bₖⱼ moves column j, by s·Aᵢₖ: dBₖⱼ = Σᵢ s·AᵢₖGᵢⱼ.
HINTS_4 = [
    "Write (AB)ᵢⱼ as a sum over k. Which entries does Aᵢₖ move, and by how much?",
    "Aᵢₖ moves row i: the entry in column j by s·Bₖⱼ. Sum over j.",
    "The shapes leave one possibility: dA is (in, r), dB is (r, out).",
]


# %% 5. ★★ (find the bug) It trains, and the check complains
# LoRA's backward, broken in one line. It learns, slowly; central differences disagree.
def lora_back(dy, x, W, A, B, scale):
    """dx (N, in), dA (in, r), dB (r, out) of y = xW + scale·(xA)B. dy (N, out), x (N, in)."""
    h = x @ A
    dh = scale * (dy @ B.T)
    dx = dy @ W.T + dh @ A.T  # was: dx = dy @ W.T
    return dx, x.T @ dh, scale * (h.T @ dy)


# > x reaches y by two paths, through W and through A and B. The broken line forgets the second, so
# > whatever lies below this layer learns from a wrong gradient.
HINTS_5 = [
    "Compare each of the three with central differences on a small case. Which one is off?",
    "By how many paths does x reach y?",
    "dx has a part through W and a part through A.",
]


# %% 6. ★★ (implement) A layer that cannot be merged
# Houlsby et al. (2019) put small adapters into the network: y = x + GELU(x·down)·up, with up = 0 at
# first. Write forward and backward for rows x (N, C). stage.gelu_forward gives GELU and its slope.
def adapter_forward(x, down, up):
    """y (N, C) and a cache. x (N, C), down (C, r), up (r, C)."""
    a, slope = stage.gelu_forward(x @ down)
    return x + a @ up, (x, down, up, a, slope)


def adapter_backward(dy, cache):
    """dx (N, C), ddown (C, r), dup (r, C)."""
    x, down, up, a, slope = cache
    du = (dy @ up.T) * slope
    return dy + du @ down.T, x.T @ du, a.T @ dy


# > The bend between the two matrices is why it cannot be merged: no single matrix does what down,
# > GELU and up do. So an adapter costs time at every use.
HINTS_6 = [
    "u = x·down, a = GELU(u), y = x + a·up. Go backward in the other order.",
    "dup = aᵀ·dy, da = dy·upᵀ, du = da·slope.",
    "x reaches y straight and through u: dx has two terms.",
]

# %% 7. ★★ (derive) Four bits and a little more
# NF4 keeps a code of 4 bits for each weight, and for each block of 64 weights its largest |w|.
# QLoRA quantises these, too ("double quantisation"): 8 bits each, and one number of 32 bits for
# every 256 of them.
# ANSWER_7:  bits a weight with a scale of 32 bits for each block of 64.
# ANSWER_7B: bits a weight with double quantisation, to four digits.
ANSWER_7 = 4.5
ANSWER_7B = 4.127
# > 4 + 32/64 = 4.5. With double quantisation 4 + 8/64 + 32/(64·256) = 4.127: it saves 0.373 bits a
# > weight, 3 GB for a model of 65 billion.
HINTS_7 = [
    "Share what a block costs among its 64 weights.",
    "Double: 8 bits a block, and 32 bits for 256 blocks of 64 weights.",
]


# %% 8. ★★ (implement) Eight bits, row by row
# A simpler way to store a matrix: for each row a scale, its largest |w| divided by 127, and w/scale
# rounded to the nearest whole number. A row of zeros has the scale 1.
def quantize_rows(W):
    """(codes int8 (in, out), scales (in,)) of a matrix W (in, out): W is about codes·scale."""
    largest = np.abs(W).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1.0)
    return np.round(W / scales[:, None]).astype(np.int8), scales


# > The largest |w| of each row becomes ±127, so the error of a weight is at most half a scale.
HINTS_8 = [
    "A row is one input: the maximum is over axis 1.",
    "Divide each row by its own scale: scales[:, None].",
    "Round before you turn it into int8: a cast cuts off.",
]

# %% 9. ★★ (measure) Blocks of 64, or of 512
# Draw np.random.default_rng(0).normal(size=(512, 512)) and store it in NF4 with blocks of 64 and of
# 512. The relative error is ‖stored - W‖/‖W‖.
# ANSWER_9: the relative error with blocks of 512 divided by that with blocks of 64, three digits.
ANSWER_9 = 1.107
# > A larger block has a larger largest |w|, so the levels lie further apart for all the others.
# > That is why QLoRA pays for many scales.
HINTS_9 = [
    "stage.dequantize_nf4(stage.quantize_nf4(W, block_size)) is what is stored.",
    "np.linalg.norm of a matrix is the root of the sum of its squares.",
]


# %% 10. ★★★ (implement) Two voices in one adapter
# Two LoRA updates of the same matrix, s₁·A₁B₁ + s₂·A₂B₂, are one update of a higher rank. Make the
# pair of thin matrices for it, to be used with scale 1, without forming any (in, out) matrix.
def joined(A1, B1, s1, A2, B2, s2):
    """A (in, r₁ + r₂), B (r₁ + r₂, out) with AB = s₁A₁B₁ + s₂A₂B₂."""
    return np.concatenate([s1 * A1, s2 * A2], axis=1), np.concatenate([B1, B2], axis=0)


# > A product of block matrices: [s₁A₁ | s₂A₂] times B₁ over B₂ is s₁A₁B₁ + s₂A₂B₂.
HINTS_10 = [
    "What is the product of [A₁ | A₂], side by side, and B₁ above B₂?",
    "Each scale has to stand on one side only.",
    "np.concatenate along axis 1 and along axis 0.",
]


# %% 11. ★★★ (derive) Starting from W's own directions
# PiSSA (Meng et al. 2024) trains the most important part of W itself. Split W = rest + AB, where AB
# is the nearest matrix of rank r, and its singular values are shared equally: AᵀA = BBᵀ = diag(σ).
def pissa(W, rank):
    """rest (in, out), A (in, r), B (r, out) for a matrix W (in, out)."""
    left, sigma, right = np.linalg.svd(W, full_matrices=False)
    root = np.sqrt(sigma[:rank])
    A, B = left[:, :rank] * root, root[:, None] * right[:rank]
    return W - A @ B, A, B


# > W = Σ σᵢuᵢvᵢᵀ; the first r terms are the nearest matrix of rank r (Eckart & Young). With √σᵢ on
# > both sides, the columns of A and the rows of B have the same lengths, so that one learning rate
# > suits both. The layer starts as it was, since rest + AB = W.
HINTS_11 = [
    "np.linalg.svd(W, full_matrices=False) gives U, σ and Vᵀ.",
    "Keep the first r; each σ has to be shared between A and B.",
    "√σ for each: A = U·√σ, column by column, and B = √σ·Vᵀ, row by row.",
]

# %% 12. ★★ (research) A tenth of the old text
# Let a tenth of what is trained on be stories while the model learns verses. How much forgetting
# does that undo? Here, with seed 0 and the report's rates, full fine-tuning ended at 2.255 bits on
# stories instead of 2.273, LoRA at 2.256 instead of 2.272, and neither was worse on verses (2.439
# and 2.454 instead of 2.452 and 2.459). How does it go with a half, and after ten times the steps?


# %% 13. ★★★ (project) A voice in a thousand numbers
# Find plugs with at most 1,100 trained numbers that make at least 85 % of full fine-tuning's gain
# on the held-out verses, in the report's 150 steps. Choose on a piece of the verses' training part.
# `python exercises --project 9` trains the base, full fine-tuning and yours (half a minute).
def my_plugs(params, n_head):
    """(adapters {place: plug}, learning rate) for the report's base. params: its weights."""
    matrices = ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")
    return stage.apply_lora(params, matrices, rank=1, alpha=8), 0.016


# > LoRA of rank 1 on all four matrices has 1,024 numbers.
HINTS_13 = [
    "stage.apply_lora makes the plugs; count the numbers in plug.params.",
    "Rank 1 on every matrix costs Σ (in + out) numbers. Which rate suits it?",
    "The stage's section on choosing has the shares of rank 1, 4 and 16.",
]
