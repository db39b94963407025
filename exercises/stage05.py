"""The exercises of stage 5: attend. `python exercises 5` checks them."""

import math

import numpy as np

import stage05_attention as stage

# %% 1. ★ (by hand) A question that asks nothing
# Take section 1's three words, keys and values, but the query q = [0, 0], and dy = [1, 0].
# ANSWER_1:  y, a list of two numbers. As everywhere here: fractions, or three digits.
# ANSWER_1B: dscores of Mia, saw and Tom, a list of three.
# ANSWER_1C: dq, a list of two.
ANSWER_1 = None
ANSWER_1B = None
ANSWER_1C = None


# %% 2. ★ (by hand) What a writer must carry
# Section 8. A model has 32 layers with 32 heads of size 128 for queries, and 8 heads of the same
# size for keys and values. A number has 2 bytes. It has written 10,000 tokens of one text.
# ANSWER_2:  how large is its KV cache, in gigabytes (10⁹ bytes), to three digits?
# ANSWER_2B: latent heads would keep one vector c of 512 numbers a token and layer. How many times
#            smaller is their cache than one with 32 heads of keys and values?
ANSWER_2 = None
ANSWER_2B = None


# %% 3. ★ (implement) Further away, quieter
# ALiBi (section 6) as a mask for attention_forward, for one head of this slope. It shall be causal
# by itself, and know that the queries are the last Tq of Tk positions.
def alibi(Tq, Tk, slope):
    """(Tq, Tk) floats to add to the scores: -slope·distance in the past, -inf in the future."""
    raise NotImplementedError


# %% 4. ★★ (find the bug) Who shares with whom
# Attention with shared heads (sections 5 and 8), without a mask. With Hkv = H and with Hkv = 1 it
# agrees with attention_forward, otherwise it does not. Somebody broke one line. Which?
def shared_attention(q, k, v):
    """out (B, H, Tq, D) for q (B, H, Tq, D), k and v (B, Hkv, Tk, D), Hkv dividing H."""
    H, Hkv = q.shape[1], k.shape[1]
    used = np.arange(H) % Hkv
    k, v = k[:, used], v[:, used]  # (B, H, Tk, D)
    s = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])  # (B, H, Tq, Tk)
    p, _ = stage.softmax_forward(s)
    return p @ v


# %% 5. ★★ (explain) A frozen layer
# From the report at seed 0: of the two-layer model, which answers 100.0 % right, silencing all of
# layer 2 leaves 14.3 % and freezing it leaves 33.4 %. Naming a most frequent digit: 33.5 %. Why is
# the frozen layer so much better than the silenced one, and no better than that?
#   a  layer 1 alone knows a third of the answers; a frozen layer 2 lets them through
#   b  frozen weights look at the future as well, where a third of the answers stand
#   c  a frozen layer still hands over a blend of the digits, in which the most frequent one wins
#   d  a third is what guessing gives: six pairs, of which two have the same digit
# ANSWER_5: one letter, as a string.
ANSWER_5 = None


# %% 6. ★★ (derive) A temperature that learns
# Let the scale α of section 5 be a parameter, one for all heads, so that a model may learn how
# sharply it looks. Derive ∂L/∂α. Mind that ds in section 5 is the gradient of the scaled scores.
def scale_gradient(q, k, v, scale, dout):
    """∂L/∂α, one number, at α = scale; no mask. q, k, v (B, H, T, D); dout = ∂L/∂out, like q."""
    raise NotImplementedError


# %% 7. ★★ (implement) Does it see the future?
# A model that sees the future trains beautifully and is worth nothing. Write the test for it, which
# knows nothing of the attention's inside: change what is later, and see what changes earlier.
def sees_the_future(attention, Tq, Tk):
    """True if any query's output depends on a later key or value, else False.

    attention(q, k, v) takes q (1, 1, Tq, D), k and v (1, 1, Tk, D) with any D, and returns an
    output like q; the queries are the last Tq of the Tk positions.
    """
    raise NotImplementedError


# %% 8. ★★ (implement) Two halves of one softmax
# The keys lie on two machines. Each has computed its own output and log Z = log Σ exp(s), as in
# section 9. Put the halves together, exactly. Scores may be as large as 2,000.
def merge(out1, log_Z1, out2, log_Z2):
    """(out, log_Z) over all keys. out1, out2 (T, D): averages; log_Z1, log_Z2 (T, 1).

    Where a half saw no key, its out is 0 and its log_Z is -inf; this is never so in both halves.
    """
    raise NotImplementedError


# %% 9. ★★ (derive) A place to look when there is nothing to find
# Weights add up to 1, so a head that finds nothing still looks somewhere, often at the first tokens
# (sinks; Xiao et al. 2023). Add exp(a) to Z, a being learned (gpt-oss 2025):
#     pⱼ = exp(sⱼ)/(exp(a) + Σₘ exp(sₘ)), so that a row's weights add up to less than 1.
# Derive the backward: ds for the scores and da = ∂L/∂a. a is one number for all rows.
def sink_backward(s, a, dp):
    """(ds (T, N), da) for scores s (T, N), moderate in size, and dp = ∂L/∂p (T, N)."""
    raise NotImplementedError


# %% 10. ★★★ (implement) Latent heads that never unpack
# Section 8: the cache holds one short vector c a token. Head h has the keys c Wk[h] and the values
# c Wv[h]. Attend with one new query a head, and never make the keys or the values of even one head:
# these T·D numbers would be larger than all that is needed.
def latent_attention(q, c, Wk, Wv):
    """out (H, D) for q (H, D), c (T, R), Wk and Wv (H, R, D), R < D; scale 1/√D, no mask."""
    raise NotImplementedError


# %% 11. ★★★ (research) One layer after all?
# Section 10 proves that one head in one layer cannot recall. Let a key see its neighbour: kⱼ +
# λ·kⱼ₋₁ before the rotation, λ a learned number that begins at 0 (its gradient is Σ dkⱼ·kⱼ₋₁).
# Which step of the proof fails now? Tried here: one layer, one head, 92 channels, trained like the
# report's models, from three seeds: 100.0 % right each time, loss below 0.00001, λ = -0.71, -0.68
# and -0.62. Why below 0? (The letter itself has the key kⱼ, the digit after it holds λ·kⱼ₋₁: what
# draws the query to one pushes it away from the other.) State-space models have such a short
# convolution.


# %% 12. ★★★ (project) Weights written by hand
# An AttentionOnly of two layers that answers every recall question, its weights written down by you
# and not trained. `python exercises --project 5` asks it about texts of 1 to 12 pairs; all answers
# must be right. The layers' frequencies may be set, too.
def recall_model():
    """A stage.AttentionOnly with two layers, at most 256 channels, and weights in its params."""
    raise NotImplementedError
