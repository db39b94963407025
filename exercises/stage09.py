"""The exercises of stage 9: adapt. `python exercises 9` checks them."""

import math

import numpy as np

import stage09_lora as stage

# %% 1. ★ (by hand) Two steps with a plug
# As on the first page: y = xW + (xA)B, one step down on ½‖y - wanted‖² at a time. W is the unit
# matrix [[1, 0], [0, 1]], x = [1, 2], wanted = [3, 2], the learning rate is 1/6, and A = [1, 1]
# (a column), B = [0, 0] (a row) at first. Do two steps on paper.
# ANSWER_1:  B after the first step, a list of two numbers.
# ANSWER_1B: A after the second step, a list of two numbers, to three digits.
ANSWER_1 = None
ANSWER_1B = None


# %% 2. ★ (by hand) When LoRA saves nothing
# A matrix has 64 rows and 256 columns.
# ANSWER_2: at which rank would LoRA train exactly as many numbers as the matrix has? (Ranks are
# whole; give the fraction to three digits.)
ANSWER_2 = None


# %% 3. ★ (explain) The other way round
# Somebody starts LoRA with A = 0 and B random instead. What happens?
#   a  nothing is ever learned: both gradients stay 0
#   b  it starts at the base as well; the first step moves A only, and B follows
#   c  it starts at a damaged model, since B is noise
#   d  it starts at the base, and the first step moves A and B
# ANSWER_3: one letter, as a string.
ANSWER_3 = None


# %% 4. ★★ (derive) Two shadows of one gradient
# Let L be a function of the matrix W + s·AB alone, and G its gradient there, Gᵢⱼ = ∂L/∂(W + sAB)ᵢⱼ.
# Derive ∂L/∂A and ∂L/∂B without any x.
def lora_gradients(G, A, B, scale):
    """∂L/∂A (in, r) and ∂L/∂B (r, out). G (in, out), A (in, r), B (r, out); scale: s."""
    raise NotImplementedError


# %% 5. ★★ (find the bug) It trains, and the check complains
# LoRA's backward, broken in one line. It learns, slowly; central differences disagree.
def lora_back(dy, x, W, A, B, scale):
    """dx (N, in), dA (in, r), dB (r, out) of y = xW + scale·(xA)B. dy (N, out), x (N, in)."""
    h = x @ A
    dh = scale * (dy @ B.T)
    dx = dy @ W.T
    return dx, x.T @ dh, scale * (h.T @ dy)


# %% 6. ★★ (implement) A layer that cannot be merged
# Houlsby et al. (2019) put small adapters into the network: y = x + GELU(x·down)·up, with up = 0 at
# first. Write forward and backward for rows x (N, C). stage.gelu_forward gives GELU and its slope.
def adapter_forward(x, down, up):
    """y (N, C) and a cache. x (N, C), down (C, r), up (r, C)."""
    raise NotImplementedError


def adapter_backward(dy, cache):
    """dx (N, C), ddown (C, r), dup (r, C)."""
    raise NotImplementedError


# %% 7. ★★ (derive) Four bits and a little more
# NF4 keeps a code of 4 bits for each weight, and for each block of 64 weights its largest |w|.
# QLoRA quantises these, too ("double quantisation"): 8 bits each, and one number of 32 bits for
# every 256 of them.
# ANSWER_7:  bits a weight with a scale of 32 bits for each block of 64.
# ANSWER_7B: bits a weight with double quantisation, to four digits.
ANSWER_7 = None
ANSWER_7B = None


# %% 8. ★★ (implement) Eight bits, row by row
# A simpler way to store a matrix: for each row a scale, its largest |w| divided by 127, and w/scale
# rounded to the nearest whole number. A row of zeros has the scale 1.
def quantize_rows(W):
    """(codes int8 (in, out), scales (in,)) of a matrix W (in, out): W is about codes·scale."""
    raise NotImplementedError


# %% 9. ★★ (measure) Blocks of 64, or of 512
# Draw np.random.default_rng(0).normal(size=(512, 512)) and store it in NF4 with blocks of 64 and of
# 512. The relative error is ‖stored - W‖/‖W‖.
# ANSWER_9: the relative error with blocks of 512 divided by that with blocks of 64, three digits.
ANSWER_9 = None


# %% 10. ★★★ (implement) Two voices in one adapter
# Two LoRA updates of the same matrix, s₁·A₁B₁ + s₂·A₂B₂, are one update of a higher rank. Make the
# pair of thin matrices for it, to be used with scale 1, without forming any (in, out) matrix.
def joined(A1, B1, s1, A2, B2, s2):
    """A (in, r₁ + r₂), B (r₁ + r₂, out) with AB = s₁A₁B₁ + s₂A₂B₂."""
    raise NotImplementedError


# %% 11. ★★★ (derive) Starting from W's own directions
# PiSSA (Meng et al. 2024) trains the most important part of W itself. Split W = rest + AB, where AB
# is the nearest matrix of rank r, and its singular values are shared equally: AᵀA = BBᵀ = diag(σ).
def pissa(W, rank):
    """rest (in, out), A (in, r), B (r, out) for a matrix W (in, out)."""
    raise NotImplementedError


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
    raise NotImplementedError
