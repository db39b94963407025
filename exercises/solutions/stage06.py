"""Solutions of the exercises of stage 6: stack. `python exercises 6` checks them."""

import math

import numpy as np

import stage06_transformer as stage
from stage06_transformer import Tensor

# %% 1. ★ (by hand) One token through a block
# Section 1 sends two tokens through small_block. Send a single one, x = [[7, -1]], with the same
# up = [[1], [-1]] and down = [[0, 1]].
# ANSWER_1: the row that comes out, a list of two numbers.
ANSWER_1 = [8.4, 0.4]
# > The root mean square of [7, -1] is √((49 + 1)/2) = 5: at size 1 the row is [1.4, -0.2]. A single
# > token sees itself alone, so attention returns [1.4, -0.2], and the sum is [8.4, -1.2]. At size 1
# > that is [1.4, -0.2] again; 1.4·1 + (-0.2)·(-1) = 1.6 is positive, and down adds [0, 1.6].
HINTS_1 = [
    "Bring the row to size 1: divide it by its root mean square.",
    "One token has one score; whatever it is, its weight after the softmax is 1.",
    "The MLP reads the new row at size 1, not as it is, and its result is added.",
]

# %% 2. ★ (by hand) Where GPT-2's weights are
# GPT-2 has C = 768 channels, L = 12 layers, V = 50,257 tokens, 1,024 positions, biases everywhere,
# and its head is tied to the embedding.
# ANSWER_2:  the number of weights of one block, exactly.
# ANSWER_2B: the share of all weights that is in the embedding of the tokens, to three digits.
ANSWER_2 = 7_087_872
ANSWER_2B = 0.310
# > Two norms, 4C; qkv 3C² + 3C; out C² + C; up 4C² + 4C; down 4C² + C: 12C² + 13C = 7,087,872.
# > The table has V·C = 38,597,376 of all 124,439,808 weights, 31 %.
HINTS_2 = [
    "A block's matrices have 12C² weights (section 9). What has it besides?",
    "Each matrix has a bias as long as its output; each of the two norms has a weight and a bias.",
    "All of it: V·C + 1024·C + 12 blocks + the last norm.",
]

# %% 3. ★ (by hand) The cache of Llama 3 8B
# It has 32 layers, 32 heads of 128 channels, 8 heads of keys and values, and reads 8,192 tokens.
# ANSWER_3:  bytes of its KV cache for one text at full context, with numbers of 2 bytes.
# ANSWER_3B: how many times larger it would be if every head had keys and values of its own.
ANSWER_3 = 1_073_741_824
ANSWER_3B = 4
# > A token leaves a key and a value of 8·128 numbers in each layer: 2·32·8·128 = 65,536 numbers.
# > Times 8,192 tokens and 2 bytes that is 2³⁰ bytes. With 32 heads of them, 32/8 times as much.
HINTS_3 = [
    "What must be kept of a token in each layer so that later tokens can attend to it?",
    "A key and a value: two rows of (heads of keys and values)·(head size) numbers.",
    "Layers · 2 · 8 · 128 numbers a token; times tokens, times bytes.",
]

# %% 4. ★ (explain) Post-norm loses its way
# In the report's first table, the cosine between the gradient at the top and at the bottom of 12
# random post-norm layers is about 0.01; pre-norm's is about 0.24. What has become of the gradient?
#   a  it has become so short that rounding destroyed it
#   b  it has nearly its length, but most of it came through the random f's and points elsewhere
#   c  it has grown too large and was clipped
#   d  it cannot pass a norm, whose gradient is 0 along the row
# ANSWER_4: one letter, as a string.
ANSWER_4 = "b"
# > A cosine says nothing about length. Each addition mixes the straight gradient with one that came
# > through f, a share 1/(1 + b²) of the squared length stays straight, and post-norm brings the sum
# > to size 1 before the next: so the straight share falls exponentially. In pre-norm the stream
# > grows, and what an f adds counts for less and less.
HINTS_4 = [
    "Which property of a vector does the cosine ignore?",
    "Section 6: of |g|² a share 1/(1 + b²) came straight, 2L times. Where did the rest come from?",
    "Norms shrink all gradients alike; none is clipped in this measurement.",
]


# %% 5. ★★ (derive) What LayerNorm does not feel
# LayerNorm ignores two ways of moving its input x. So by (J), with γ = 1 and ε = 0, two directions
# of dy give dx = 0. Which? Return them as the rows of an array, for a row x that is not constant.
def null_directions(x):
    """Two independent directions dy with dx = 0. x (C,), C ≥ 3; returns (2, C)."""
    xhat = (x - x.mean()) / x.std()
    return np.stack([np.ones_like(x), xhat])


# > x + c has the same x̂, and so does c·x for c > 0: x̂ answers neither to 1, a shift of all
# > channels, nor to x - mean(x), a stretch. (J) is symmetric, so the same two directions of dy have
# > dx = 0: dy = 1 gives r·(1 - 1 - x̂·mean(x̂)) = 0, and dy = x̂ gives r·(x̂ - 0 - x̂·mean(x̂²)) = 0.
HINTS_5 = [
    "What can you do to all channels of x without changing x̂?",
    "Shift them, or stretch them about their mean. As directions: 1 and x - mean(x).",
    "(J) is symmetric in i and j; so what it ignores in x it also ignores in dy.",
]


# %% 6. ★★ (implement) A new operation for the tape
# Add a power to the operations of section 2: y = x^k for a number k. The result must be a Tensor
# that remembers its parent and how to pull a gradient back.
def power(x, k):
    """The Tensor x^k, entry by entry, for a Tensor x of positive numbers and a number k."""
    return Tensor(x.data**k, (x,), lambda dy: (dy * k * x.data ** (k - 1),))


# > pull returns a tuple with one gradient a parent: upstream dy times the slope k·x^(k-1).
HINTS_6 = [
    "Tensor(data, parents, pull), as in __mul__; parents is a tuple, of one here.",
    "pull(dy) returns a tuple, too: a gradient for each parent.",
    "The gradient is dy times the slope k·x^(k-1), taken at x's data.",
]


# %% 7. ★★ (implement) Attention and MLP side by side
# PaLM (Chowdhery et al. 2022) lets both halves of a block read the same row:
#     x + attention(norm(x)) + mlp(norm(x)),     one norm for both.
# Write it for llama's parts, to be put into Transformer.block; the second norm is not used.
def parallel_block(x, p, config, mask, post_norm=False, balances=None):
    """x (B, T, C) after one parallel block; p has the layer's tensors, as in `block`."""
    weight = p["input_layernorm.weight"]
    h = stage.normalise(x, weight, None, config.norm_eps, centre=False)
    return x + stage.attention(h, p, config, mask) + stage.mlp(h, p, config)


# > One norm, one sum. It saves a norm and lets the matrices that read h be joined into one product.
HINTS_7 = [
    "stage.normalise(..., centre=False) is RMSNorm; the weight is p['input_layernorm.weight'].",
    "The MLP must not see what attention has added.",
    "stage.attention(h, p, config, mask) and stage.mlp(h, p, config) return what is to be added.",
]


# %% 8. ★★ (find the bug) The ring
# Section 12's ring_sum, broken in one line. Draw three workers with three pieces and follow them.
def ring(arrays):
    """The sum of all arrays, as each of the n workers holds it: a list of n arrays."""
    n = len(arrays)
    held = [np.array_split(array.ravel(), n) for array in arrays]
    for t in range(2 * (n - 1)):
        for w in range(n):
            piece, right = (w - t) % n, (w + 1) % n
            own = held[right][piece] if t < n - 1 else 0  # was: own = held[right][piece]
            held[right][piece] = held[w][piece] + own
    return [np.concatenate(pieces).reshape(arrays[0].shape) for pieces in held]


# > In the first n - 1 rounds pieces are added up; in the others finished pieces are handed on, and
# > must replace what the right neighbour has. The broken line adds there, too, so parts of the sum
# > are counted twice.
HINTS_8 = [
    "Try it with two workers that hold [1, 10] and [2, 20]. What should both hold at the end?",
    "The rounds have two halves. What is different about the second?",
    "A finished piece replaces the neighbour's; it is not added to it.",
]


# %% 9. ★★ (derive) The bubble
# Section 12: a pipeline of S stages and M micro-batches is idle for a share of its time.
# ANSWER_9: how many micro-batches 8 stages need at least, so that less than a tenth is idle.
ANSWER_9 = 64
# > (S - 1)/(M + S - 1) < 1/10 says 10·7 < M + 7, so M > 63.
HINTS_9 = [
    "The share is (S - 1)/(M + S - 1); solve for M.",
    "Less than a tenth, not at most a tenth.",
]

# %% 10. ★★ (measure) The law against the blocks
# Section 6's law for pre-norm is checked in the report with random blocks. Do it for 24 layers:
# stage.depth_probe(24, seed=0) gives the stream's variances and the measured cosine; b² is 1/c - 1,
# where c is the measured cosine of one post-norm layer, stage.depth_probe(1, 0, post_norm=True).
# ANSWER_10: stage.pre_norm_law's cosine divided by the measured one, to three digits.
ANSWER_10 = 0.969
# > Both go like one over the square root of the depth; the law misses by 3 % here, since real
# > blocks' outputs are not quite independent of x and of each other.
HINTS_10 = [
    "depth_probe returns a pair: the variances, and the cosine.",
    "pre_norm_law takes b² and the variances.",
]


# %% 11. ★★★ (derive) The best size for a bill
# With L = E + A/N^α + B/D^β and K = 6ND operations to spend (section 10), find the N with the
# smallest loss, in closed form.
def best_size(K, A, B, alpha, beta):
    """N > 0 with the smallest A/N^alpha + B/D^beta where 6·N·D = K."""
    return (alpha * A / (beta * B) * (K / 6) ** beta) ** (1 / (alpha + beta))


# > With D = K/6N, L = E + A·N^-α + B·(6N/K)^β. dL/dN = -αA·N^(-α-1) + βB·(6/K)^β·N^(β-1) = 0 says
# > N^(α+β) = αA/(βB)·(K/6)^β.
HINTS_11 = [
    "Put D = K/(6N) into L: then L depends on N alone.",
    "Set dL/dN = 0 and multiply by N: αA/N^α = βB/D^β.",
    "Replace D again and solve for N^(α+β).",
]


# %% 12. ★★★ (derive) Infinitely deep
# GPT-2 divides what writes to the stream by √(2L). So each of the 2L additions adds s²/(2L) to the
# variance v, which starts at 1, and has b²/(2L) in place of b². What is section 6's cosine for
# pre-norm, Π (1 + b²/(2L·v))^(-½), when L goes to infinity?
def cosine_without_end(s2, b2):
    """The limit of the cosine, for s² > 0 and b² > 0."""
    return (1 + s2) ** (-b2 / (2 * s2))


# > The logarithm is -½·Σ ln(1 + b²/(2L·v)) → -½·Σ b²/(2L·v), as ln(1 + u) ≈ u for small u. With u =
# > k/(2L) going from 0 to 1 in steps of 1/(2L) and v = 1 + s²·u, the sum becomes an integral,
# > ∫₀¹ b²/(1 + s²u) du = b²/s²·ln(1 + s²). So the cosine tends to (1 + s²)^(-b²/(2s²)), which does
# > not depend on the depth any more.
HINTS_12 = [
    "Take the logarithm: a sum of 2L small terms. ln(1 + u) is about u for small u.",
    "After k additions v = 1 + s²·k/(2L). The sum over k is an integral over u = k/(2L), 0 to 1.",
    "∫ du/(1 + s²u) = ln(1 + s²u)/s².",
]

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
    return {"arch": "llama", "n_layer": 1, "n_head": 2, "n_embd": 32}, 0.04


# > Two heads instead of one, and twice the rate, which so short a training can bear. Two layers of
# > 24 channels with a tied head are about as good.
HINTS_14 = [
    "Heads cost no weights. Tying the head frees some.",
    "The rate was chosen for longer training and larger models; try it, too.",
    "stage.train and stage.held_out_loss are what the report uses.",
]
