"""The exercises of stage 6: stack. `python exercises 6` checks them."""

import math

import numpy as np

import stage06_transformer as stage
from stage06_transformer import Tensor

# %% 1. ★ (by hand) One token through a block
# Section 1 sends two tokens through small_block. Send a single one, x = [[7, -1]], with the same
# up = [[1], [-1]] and down = [[0, 1]].
# ANSWER_1: the row that comes out, a list of two numbers.
ANSWER_1 = None


# %% 2. ★ (by hand) Where GPT-2's weights are
# GPT-2 has C = 768 channels, L = 12 layers, V = 50,257 tokens, 1,024 positions, biases everywhere,
# and its head is tied to the embedding.
# ANSWER_2:  the number of weights of one block, exactly.
# ANSWER_2B: the share of all weights that is in the embedding of the tokens, to three digits.
ANSWER_2 = None
ANSWER_2B = None


# %% 3. ★ (by hand) The cache of Llama 3 8B
# It has 32 layers, 32 heads of 128 channels, 8 heads of keys and values, and reads 8,192 tokens.
# ANSWER_3:  bytes of its KV cache for one text at full context, with numbers of 2 bytes.
# ANSWER_3B: how many times larger it would be if every head had keys and values of its own.
ANSWER_3 = None
ANSWER_3B = None


# %% 4. ★ (explain) Post-norm loses its way
# In the report's first table, the cosine between the gradient at the top and at the bottom of 12
# random post-norm layers is about 0.01; pre-norm's is about 0.24. What has become of the gradient?
#   a  it has become so short that rounding destroyed it
#   b  it has nearly its length, but most of it came through the random f's and points elsewhere
#   c  it has grown too large and was clipped
#   d  it cannot pass a norm, whose gradient is 0 along the row
# ANSWER_4: one letter, as a string.
ANSWER_4 = None


# %% 5. ★★ (derive) What LayerNorm does not feel
# LayerNorm ignores two ways of moving its input x. So by (J), with γ = 1 and ε = 0, two directions
# of dy give dx = 0. Which? Return them as the rows of an array, for a row x that is not constant.
def null_directions(x):
    """Two independent directions dy with dx = 0. x (C,), C ≥ 3; returns (2, C)."""
    raise NotImplementedError


# %% 6. ★★ (implement) A new operation for the tape
# Add a power to the operations of section 2: y = x^k for a number k. The result must be a Tensor
# that remembers its parent and how to pull a gradient back.
def power(x, k):
    """The Tensor x^k, entry by entry, for a Tensor x of positive numbers and a number k."""
    raise NotImplementedError


# %% 7. ★★ (implement) Attention and MLP side by side
# PaLM (Chowdhery et al. 2022) lets both halves of a block read the same row:
#     x + attention(norm(x)) + mlp(norm(x)),     one norm for both.
# Write it for llama's parts, to be put into Transformer.block; the second norm is not used.
def parallel_block(x, p, config, mask, post_norm=False, balances=None):
    """x (B, T, C) after one parallel block; p has the layer's tensors, as in `block`."""
    raise NotImplementedError


# %% 8. ★★ (find the bug) The ring
# Section 12's ring_sum, broken in one line. Draw three workers with three pieces and follow them.
def ring(arrays):
    """The sum of all arrays, as each of the n workers holds it: a list of n arrays."""
    n = len(arrays)
    held = [np.array_split(array.ravel(), n) for array in arrays]
    for t in range(2 * (n - 1)):
        for w in range(n):
            piece, right = (w - t) % n, (w + 1) % n
            own = held[right][piece]
            held[right][piece] = held[w][piece] + own
    return [np.concatenate(pieces).reshape(arrays[0].shape) for pieces in held]


# %% 9. ★★ (derive) The bubble
# Section 12: a pipeline of S stages and M micro-batches is idle for a share of its time.
# ANSWER_9: how many micro-batches 8 stages need at least, so that less than a tenth is idle.
ANSWER_9 = None


# %% 10. ★★ (measure) The law against the blocks
# Section 6's law for pre-norm is checked in the report with random blocks. Do it for 24 layers:
# stage.depth_probe(24, seed=0) gives the stream's variances and the measured cosine; b² is 1/c - 1,
# where c is the measured cosine of one post-norm layer, stage.depth_probe(1, 0, post_norm=True).
# ANSWER_10: stage.pre_norm_law's cosine divided by the measured one, to three digits.
ANSWER_10 = None


# %% 11. ★★★ (derive) The best size for a bill
# With L = E + A/N^α + B/D^β and K = 6ND operations to spend (section 10), find the N with the
# smallest loss, in closed form.
def best_size(K, A, B, alpha, beta):
    """N > 0 with the smallest A/N^alpha + B/D^beta where 6·N·D = K."""
    raise NotImplementedError


# %% 12. ★★★ (derive) Infinitely deep
# GPT-2 divides what writes to the stream by √(2L). So each of the 2L additions adds s²/(2L) to the
# variance v, which starts at 1, and has b²/(2L) in place of b². What is section 6's cosine for
# pre-norm, Π (1 + b²/(2L·v))^(-½), when L goes to infinity?
def cosine_without_end(s2, b2):
    """The limit of the cosine, for s² > 0 and b² > 0."""
    raise NotImplementedError


# %% 13. ★★ (research) Does the parallel block cost loss here?
# Put exercise 7's block into a llama of 3 layers, 2 heads and 32 channels and train it as the
# report does: 250 steps of 16 windows. Here, on a development piece and with seeds 0 to 2, it ended
# at 1.882, 1.899 and 1.876 nats, the usual block at 1.819, 1.824 and 1.810. PaLM's makers saw no
# loss at their size. How does the gap change with more layers, and with more steps?


# %% 14. ★★★ (project) Better than the curve
# The report's fourth part trains one layer of 32 channels, 16,352 weights, for 250 steps of 16
# windows. Find a model of at most 17,000 weights that is better after as many steps. Choose on a
# development piece, the end of the training part. `python exercises --project 6` trains yours and
# the report's on the training part and scores both on the held-out tenth.
def my_setting():
    """(dict of fields of TransformerConfig, learning rate); vocab_size and block_size are given."""
    raise NotImplementedError
