"""The exercises of the capstone. `python exercises capstone` checks them."""

import math
from pathlib import Path

import numpy as np

import capstone_gpt as capstone

# %% 1. ★ (by hand) The second step
# Section 1 does one step of table_step on the text [0, 1, 0, 1] with learning rate 3, on paper. Its
# table is then [[-1, 1], [1/2, -1/2]]. Do the next step, with the same text and the same rate.
# ANSWER_1: the table after it, a list of two rows, to three digits after the point.
ANSWER_1 = None


# %% 2. ★ (by hand) Count the weights
# A small gpt2: V = 100 tokens, block_size 16, one layer, 2 heads, C = 8 channels, an MLP of 4C; all
# biases, and the head tied to the embedding. The table of section 7 lists the arrays.
# ANSWER_2: the number of parameters. (Check: capstone.GPT(config).num_params().)
ANSWER_2 = None


# %% 3. ★ (explain) Which model is better?
# Two models of the same text: one with 512 tokens has a held-out loss of 2.65 nats a token, one
# with 2,048 tokens has 3.55 nats a token. On this text the first tokenizer makes 2.4 characters a
# token, the second 3.4. What follows?
#   a  the first is better: its loss is lower
#   b  the second is better: its loss per character is lower
#   c  they cannot be compared, since they predict different things
#   d  the first is better: 2.65·2.4 is less than 3.55·3.4
# ANSWER_3: one letter, as a string.
ANSWER_3 = None


# %% 4. ★★ (implement) ReLU²
# Some models use y = max(x, 0)² in place of GELU (Primer, So et al. 2021). Write the pair, as
# section 2 does: the forward returns y and a cache, the backward dx.
def relu2_forward(x):
    """y = max(x, 0)² for x of any shape, and a cache. x itself must not change."""
    raise NotImplementedError


def relu2_backward(dy, cache):
    """dx = ∂L/∂x, shaped like dy = ∂L/∂y."""
    raise NotImplementedError


# %% 5. ★★ (derive) The z-loss
# To keep the scores from growing, PaLM (Chowdhery et al. 2022) adds c·(log Z)², Z = Σ e^z, to the
# loss of each token. Derive the gradient of its mean over the N rows of logits.
def z_loss_gradient(logits, c):
    """∂/∂logits of the mean over rows of c·(log Σ e^z)². logits (N, V); returns (N, V)."""
    raise NotImplementedError


# %% 6. ★★ (derive) Matrices the other way round
# Llama stores a linear layer's matrix as (out, in): y = x Wᵀ. Derive both gradients, as
# matrix products.
def transposed_linear_backward(dy, x, W):
    """dx (N, I), dW (O, I) for y = x Wᵀ. dy (N, O), x (N, I), W (O, I)."""
    raise NotImplementedError


# %% 7. ★★ (find the bug) AdamW
# A plain AdamW for one array (section 11). It trains, but not as it should: one line is wrong.
def adamw(w, gradients, learning_rate, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1):
    """w after one update for each of the gradients (a list of arrays shaped like w)."""
    w = w.copy()
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        m_hat = m / (1 - betas[0] ** t)
        v_hat = v / (1 - betas[1])
        w -= learning_rate * weight_decay * w
        w -= learning_rate * m_hat / (np.sqrt(v_hat) + eps)
    return w


# %% 8. ★★ (explain) Who notices?
# In block_backward somebody multiplies by 1.01 the dx of the output projection, which goes down to
# the heads, but leaves the projection's dW as it is. Which rows of the gradient check of a model
# with 2 blocks fail?
#   a  those of the output projections, since that is where the fault is
#   b  all of them, since every gradient comes from the same loss
#   c  qkv and norm1 of block 2, and all that lies below: block 1 and the embedding
#   d  those of the MLPs, which come after attention
# ANSWER_8: one letter, as a string.
ANSWER_8 = None


# %% 9. ★★ (measure) Characters a token
# How many characters of the held-out tenth of data/stories.txt (its last tenth, by characters) does
# a token of the repository's own tokenizer (data/tokenizer) stand for?
# ANSWER_9: characters a token, to three digits.
ANSWER_9 = None


# %% 10. ★★★ (implement) Every token once
# Section 13: windows of block_size targets move on by `stride` and count only their last `stride`
# targets (the first window counts from `first` on, the last may count fewer). Write it plainly, one
# window at a time, with model.loss(idx, targets), which takes the mean over the targets that are
# not -1. Windows begin at `first`, as early as there is text: a target in place i is ids[i], and
# the input that predicts it is in place i - 1.
def held_out_nats(model, ids, first, block_size, stride):
    """Summed nats of ids[first:], each predicted exactly once. ids (n,), 1 ≤ first < n."""
    raise NotImplementedError


# %% 11. ★★★ (project) A model of your own text
# Train a small GPT on a text that you choose, at least 50,000 characters, and better than counting
# letters: `python exercises --project capstone` predicts the last tenth of your text with it and
# with the frequencies of its letters. (A text of your own, in English or not; data/verses.txt will
# do for a start. The default run on your text is `python capstone_gpt.py train --data my.txt
# --out_dir out/mine`.)
def my_model(directory):
    """(directory of the checkpoint, path of the text). directory: an empty one you may write to."""
    raise NotImplementedError
