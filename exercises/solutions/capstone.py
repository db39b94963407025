"""Solutions of the exercises of the capstone. `python exercises capstone` checks them."""

import math
from pathlib import Path

import numpy as np

import capstone_gpt as capstone

# %% 1. ★ (by hand) The second step
# Section 1 does one step of table_step on the text [0, 1, 0, 1] with learning rate 3, on paper. Its
# table is then [[-1, 1], [1/2, -1/2]]. Do the next step, with the same text and the same rate.
# ANSWER_1: the table after it, a list of two rows, to three digits after the point.
ANSWER_1 = [[-1.238, 1.238], [0.769, -0.769]]
# > After a, p = [e⁻¹, e¹]/(e⁻¹ + e¹) = [0.119, 0.881]. b came twice: the row of the gradient is
# > 2·[0.119, 0.881 - 1]/3 = [0.0795, -0.0795], and three times that is taken off: -1 - 0.238. After
# > b, p = [0.731, 0.269]; a came once: [0.731 - 1, 0.269]/3 = [-0.0896, 0.0896].
HINTS_1 = [
    "First the probabilities: the softmax of each row of the table.",
    "The row of a has two targets, the row of b one; both are divided by all three targets.",
    "The gradient of a's row is 2·(p - [0, 1])/3. Three times that is subtracted.",
]

# %% 2. ★ (by hand) Count the weights
# A small gpt2: V = 100 tokens, block_size 16, one layer, 2 heads, C = 8 channels, an MLP of 4C; all
# biases, and the head tied to the embedding. The table of section 7 lists the arrays.
# ANSWER_2: the number of parameters. (Check: capstone.GPT(config).num_params().)
ANSWER_2 = 1816
# > Embedding 100·8, positions 16·8; two norms of 8 + 8; qkv 8·24 + 24; out 8·8 + 8; up 8·32 + 32;
# > down 32·8 + 8; the last norm 8 + 8: 800 + 128 + 32 + 216 + 72 + 288 + 264 + 16 = 1,816.
HINTS_2 = [
    "Go through the rows of section 7, first column gpt2: a matrix also has a bias of its width.",
    "Norms have a weight and a bias of C each, and there are three of them.",
    "The tied head is the embedding itself: it counts once.",
]

# %% 3. ★ (explain) Which model is better?
# Two models of the same text: one with 512 tokens has a held-out loss of 2.65 nats a token, one
# with 2,048 tokens has 3.55 nats a token. On this text the first tokenizer makes 2.4 characters a
# token, the second 3.4. What follows?
#   a  the first is better: its loss is lower
#   b  the second is better: its loss per character is lower
#   c  they cannot be compared, since they predict different things
#   d  the first is better: 2.65·2.4 is less than 3.55·3.4
# ANSWER_3: one letter, as a string.
ANSWER_3 = "b"
# > A nat a token is worth what the token spells. 2.65/2.4 = 1.104 nats a character against 3.55/3.4
# > = 1.044: both say how surprised the model is by the same text, and the second is less so.
HINTS_3 = [
    "What both models predict is the same text; how surprised is each by all of it?",
    "A text of n characters has n/2.4 tokens for the first model.",
    "Divide each loss by the characters a token.",
]


# %% 4. ★★ (implement) ReLU²
# Some models use y = max(x, 0)² in place of GELU (Primer, So et al. 2021). Write the pair, as
# section 2 does: the forward returns y and a cache, the backward dx.
def relu2_forward(x):
    """y = max(x, 0)² for x of any shape, and a cache. x itself must not change."""
    positive = np.maximum(x, 0)
    return positive * positive, positive


def relu2_backward(dy, cache):
    """dx = ∂L/∂x, shaped like dy = ∂L/∂y."""
    return dy * 2 * cache


# > The slope is 2x for x > 0 and 0 below; at 0 both sides agree, unlike ReLU's. The cache holds
# > max(x, 0), from which both y and the slope follow.
HINTS_4 = [
    "Keep max(x, 0): it is all that the backward needs.",
    "d(u²)/dx = 2u · du/dx, and du/dx is 1 where x > 0.",
    "Upstream times slope: do not forget dy.",
]


# %% 5. ★★ (derive) The z-loss
# To keep the scores from growing, PaLM (Chowdhery et al. 2022) adds c·(log Z)², Z = Σ e^z, to the
# loss of each token. Derive the gradient of its mean over the N rows of logits.
def z_loss_gradient(logits, c):
    """∂/∂logits of the mean over rows of c·(log Σ e^z)². logits (N, V); returns (N, V)."""
    top = logits.max(-1, keepdims=True)
    e = np.exp(logits - top)
    total = e.sum(-1, keepdims=True)
    log_z = np.log(total) + top  # (N, 1)
    return 2 * c * log_z * e / total / len(logits)


# > ∂(log Z)/∂zⱼ = e^zⱼ/Z = pⱼ (section 2, at cross-entropy). So by the chain rule the gradient is
# > 2c·log Z·pⱼ, divided by N for the mean. While log Z is above 0, a step pushes all scores down,
# > in proportion to pⱼ; while it is below, up.
HINTS_5 = [
    "The chain rule: 2c·log Z times ∂(log Z)/∂zⱼ.",
    "Section 2 has derived ∂/∂zⱼ log Σ e^z, at cross-entropy.",
    "Subtract the row's maximum before exp, and add it to log Z again. A mean over N rows: 1/N.",
]


# %% 6. ★★ (derive) Matrices the other way round
# Llama stores a linear layer's matrix as (out, in): y = x Wᵀ. Derive both gradients, as
# matrix products.
def transposed_linear_backward(dy, x, W):
    """dx (N, I), dW (O, I) for y = x Wᵀ. dy (N, O), x (N, I), W (O, I)."""
    return dy @ W, dy.T @ x


# > yₙⱼ = Σᵢ xₙᵢWⱼᵢ. A change of xₙᵢ moves every yₙⱼ by Wⱼᵢ: dxₙᵢ = Σⱼ dyₙⱼWⱼᵢ, so dx = dy W.
# > A change of Wⱼᵢ moves yₙⱼ by xₙᵢ in every row: dWⱼᵢ = Σₙ dyₙⱼxₙᵢ, so dW = dyᵀx. This is
# > linear_backward with W.T in place of W, and its dW transposed: (xᵀdy)ᵀ = dyᵀx.
HINTS_6 = [
    "Write yₙⱼ as a sum, and differentiate by xₙᵢ and by Wⱼᵢ.",
    "The shapes leave one possibility only: dx is (N, I), dW is (O, I).",
    "dx = dy W needs no transpose at all.",
]


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
        v_hat = v / (1 - betas[1] ** t)  # was: v_hat = v / (1 - betas[1])
        w -= learning_rate * weight_decay * w
        w -= learning_rate * m_hat / (np.sqrt(v_hat) + eps)
    return w


# > With 1 - β₂ the correction is right in the first step only. After that v̂ comes out up to
# > 1/(1 - β₂) = 100 times too large, and steps up to ten times too small.
HINTS_7 = [
    "Follow a constant gradient of 1 through two steps on paper: what should m̂ and v̂ be?",
    "For a constant g, section 11 says what m and v are after t steps.",
    "One of the two corrections does not know which step it is.",
]

# %% 8. ★★ (explain) Who notices?
# In block_backward somebody multiplies by 1.01 the dx of the output projection, which goes down to
# the heads, but leaves the projection's dW as it is. Which rows of the gradient check of a model
# with 2 blocks fail?
#   a  those of the output projections, since that is where the fault is
#   b  all of them, since every gradient comes from the same loss
#   c  qkv and norm1 of block 2, and all that lies below: block 1 and the embedding
#   d  those of the MLPs, which come after attention
# ANSWER_8: one letter, as a string.
ANSWER_8 = "c"
# > The backward runs from the loss down. What it has passed before it meets the fault is right: the
# > head, the last norm, block 2's MLP, its norm2 and its output projection, whose dW is made from
# > dy and not from dx. What hangs on the wrong dx is wrong: block 2's qkv and norm1, and through x
# > everything in block 1, and the embedding.
HINTS_8 = [
    "In which order does the backward meet the layers?",
    "A parameter's gradient is made of what comes down to its layer. What has passed the fault?",
    "dW of the output projection is made from its dy, which is still right.",
]


# %% 9. ★★ (measure) Characters a token
# How many characters of the held-out tenth of data/stories.txt (its last tenth, by characters) does
# a token of the repository's own tokenizer (data/tokenizer) stand for?
# ANSWER_9: characters a token, to three digits.
ANSWER_9 = 2.99
# > text[int(0.9 * len(text)):], load_tokenizer("data/tokenizer").encode, and the quotient of the
# > lengths. So a context of 64 tokens sees about 190 characters.
HINTS_9 = [
    "capstone.load_tokenizer opens the directory.",
    "The last tenth begins at int(0.9 * len(text)).",
    "len(piece) / len(tokenizer.encode(piece))",
]


# %% 10. ★★★ (implement) Every token once
# Section 13: windows of block_size targets move on by `stride` and count only their last `stride`
# targets (the first window counts from `first` on, the last may count fewer). Write it plainly, one
# window at a time, with model.loss(idx, targets), which takes the mean over the targets that are
# not -1. Windows begin at `first`, as early as there is text: a target in place i is ids[i], and
# the input that predicts it is in place i - 1.
def held_out_nats(model, ids, first, block_size, stride):
    """Summed nats of ids[first:], each predicted exactly once. ids (n,), 1 ≤ first < n."""
    total = 0.0
    for start in range(first, len(ids), stride):
        end = min(start + stride, len(ids))
        begin = max(1, end - block_size)  # the place of the window's first target
        targets = ids[begin:end].copy()
        targets[: start - begin] = -1
        inputs = ids[begin - 1 : end - 1]
        total += (end - start) * model.loss(inputs[None], targets[None])
    return total


# > The window that counts the targets start..end-1 ends with them; it reaches back block_size
# > targets, or to the beginning of the text. What was counted before is set to -1; model.loss is a
# > mean, so it is multiplied by how many counted.
HINTS_10 = [
    "For each start in range(first, len(ids), stride): which targets count? Where does it end?",
    "The window ends with the targets that count, and reaches back block_size places, or to 1.",
    "Set the targets before `start` to -1, and multiply the mean by how many are left.",
]


# %% 11. ★★★ (project) A model of your own text
# Train a small GPT on a text that you choose, at least 50,000 characters, and better than counting
# letters: `python exercises --project capstone` predicts the last tenth of your text with it and
# with the frequencies of its letters. (A text of your own, in English or not; data/verses.txt will
# do for a start. The default run on your text is `python capstone_gpt.py train --data my.txt
# --out_dir out/mine`.)
def my_model(directory):
    """(directory of the checkpoint, path of the text). directory: an empty one you may write to."""
    text = Path(capstone.__file__).parent / "data" / "verses.txt"
    words = f"train --data {text} --out_dir {directory}/run --max_iters 300 --n_layer 2 --workers 1"
    capstone.main(words.split())
    return Path(directory) / "run" / "best", text


# > The best checkpoint of a run is what `sample` and `eval` read; it opens in transformers, too.
HINTS_11 = [
    "Train from the command line and return the paths; nothing needs to happen in the function.",
    "The checkpoint to use is in the run's directory, under best/.",
]
