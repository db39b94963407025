"""Solutions of the exercises of stage 5: attend. `python exercises 5` checks them."""

import math

import numpy as np

import stage05_attention as stage

# %% 1. ★ (by hand) A question that asks nothing
# Take section 1's three words, keys and values, but the query q = [0, 0], and dy = [1, 0].
# ANSWER_1:  y, a list of two numbers. As everywhere here: fractions, or three digits.
# ANSWER_1B: dscores of Mia, saw and Tom, a list of three.
# ANSWER_1C: dq, a list of two.
ANSWER_1 = [1 / 3, 1 / 3]
ANSWER_1B = [2 / 9, -1 / 9, -1 / 9]
ANSWER_1C = [1 / 3, -1 / 9]
# > All scores are 0 and all weights 1/3. dweights = [1, 0, 0], on average 1/3, so dscores =
# > [1/3·2/3, -1/3·1/3, -1/3·1/3]. dq = 2/9·[1, 0] - 1/9·[0, 1] - 1/9·[-1, 0] = [1/3, -1/9]: all
# > three pull at the query, saw and Tom by pushing. The dscores add up to 0, as they always do: to
# > raise all scores alike changes nothing. And dkeys = dscore·q = 0: who asks nothing teaches no
# > key.
HINTS_1 = [
    "With equal scores all three weights are equal, and add up to 1.",
    "dscores = weights·(dweights - average), the average being Σ weight·dweight.",
    "dq is the sum of three keys, each times its dscore. Do the dscores add up to 0?",
]

# %% 2. ★ (by hand) What a writer must carry
# Section 8. A model has 32 layers with 32 heads of size 128 for queries, and 8 heads of the same
# size for keys and values. A number has 2 bytes. It has written 10,000 tokens of one text.
# ANSWER_2:  how large is its KV cache, in gigabytes (10⁹ bytes), to three digits?
# ANSWER_2B: latent heads would keep one vector c of 512 numbers a token and layer. How many times
#            smaller is their cache than one with 32 heads of keys and values?
ANSWER_2 = 1.31
ANSWER_2B = 16
# > 2·8·128 = 2,048 numbers a token and layer, 65,536 a token, 131 kB: 1.31 GB in all. All of it is
# > read for each new token. With 32 heads it would be 2·32·128 = 8,192 numbers against 512.
HINTS_2 = [
    "2·Hkv·D numbers a token and layer: what is the 2, and which of the two numbers is Hkv?",
    "Numbers a token and layer, times layers, times tokens, times bytes.",
    "The heads of queries do not enter the first answer; the size of the second's c is given.",
]


# %% 3. ★ (implement) Further away, quieter
# ALiBi (section 6) as a mask for attention_forward, for one head of this slope. It shall be causal
# by itself, and know that the queries are the last Tq of Tk positions.
def alibi(Tq, Tk, slope):
    """(Tq, Tk) floats to add to the scores: -slope·distance in the past, -inf in the future."""
    distance = np.arange(Tk - Tq, Tk)[:, None] - np.arange(Tk)
    return np.where(distance >= 0, -slope * distance, -np.inf)


# > Query i stands at i + Tk - Tq. The penalty does not depend on where a token stands, only on how
# > far away, so it can be computed for texts longer than any in training.
HINTS_3 = [
    "Query i stands at position i + Tk - Tq; key j at j. What is their distance?",
    "np.arange(...)[:, None] - np.arange(...) makes a table of differences.",
    "np.where(condition, a, b) takes a where the condition holds, else b.",
]


# %% 4. ★★ (find the bug) Who shares with whom
# Attention with shared heads (sections 5 and 8), without a mask. With Hkv = H and with Hkv = 1 it
# agrees with attention_forward, otherwise it does not. Somebody broke one line. Which?
def shared_attention(q, k, v):
    """out (B, H, Tq, D) for q (B, H, Tq, D), k and v (B, Hkv, Tk, D), Hkv dividing H."""
    H, Hkv = q.shape[1], k.shape[1]
    used = np.arange(H) // (H // Hkv)  # was: used = np.arange(H) % Hkv
    k, v = k[:, used], v[:, used]  # (B, H, Tk, D)
    s = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])  # (B, H, Tq, Tk)
    p, _ = stage.softmax_forward(s)
    return p @ v


# > G query heads in a row share one: with H = 4 and Hkv = 2, heads 0 and 1 use key head 0, heads 2
# > and 3 use key head 1. The broken line deals them out in turn, 0, 1, 0, 1. In training nobody
# > would notice, as the heads would learn it so; but weights of another program would give
# > nonsense.
HINTS_4 = [
    "Print what `used` is for H = 4 and Hkv = 2. Which key head should query head 1 use?",
    "Section 5: G = H/Hkv query heads *in a row* share one.",
    "You want 0, 0, 1, 1. Which operation on 0, 1, 2, 3 and G = 2 gives it?",
]

# %% 5. ★★ (explain) A frozen layer
# From the report at seed 0: of the two-layer model, which answers 100.0 % right, silencing all of
# layer 2 leaves 14.3 % and freezing it leaves 33.4 %. Naming a most frequent digit: 33.5 %. Why is
# the frozen layer so much better than the silenced one, and no better than that?
#   a  layer 1 alone knows a third of the answers; a frozen layer 2 lets them through
#   b  frozen weights look at the future as well, where a third of the answers stand
#   c  a frozen layer still hands over a blend of the digits, in which the most frequent one wins
#   d  a third is what guessing gives: six pairs, of which two have the same digit
# ANSWER_5: one letter, as a string.
ANSWER_5 = "c"
# > Frozen, the weights are the same for every text. They cannot pick the place where this letter
# > stood, but what they hand over are still this text's digits, mixed; the unembedding then names
# > the digit that weighs most. It can be measured: the frozen model names a most frequent digit in
# > 92 % of cases here (90 to 92 % for three seeds), like the models with one layer.
HINTS_5 = [
    "What do frozen weights still depend on, and what no longer? What becomes of the values?",
    "Which of a, b and d is refuted by the 14.3 %, by section 5, by the number of digits?",
    "In the report's first table there is something that reaches a third, too. How does it answer?",
]


# %% 6. ★★ (derive) A temperature that learns
# Let the scale α of section 5 be a parameter, one for all heads, so that a model may learn how
# sharply it looks. Derive ∂L/∂α. Mind that ds in section 5 is the gradient of the scaled scores.
def scale_gradient(q, k, v, scale, dout):
    """∂L/∂α, one number, at α = scale; no mask. q, k, v (B, H, T, D); dout = ∂L/∂out, like q."""
    products = q @ k.swapaxes(-1, -2)  # (B, H, T, T)
    p, cache = stage.softmax_forward(scale * products)
    ds = stage.softmax_backward(dout @ v.swapaxes(-1, -2), cache)
    return np.sum(ds * products)


# > α enters every score, with the factor qᵢ·kⱼ: dα = Σ dsᵢⱼ·(qᵢ·kⱼ), over batch, heads, i and j. By
# > dqᵢ = α Σⱼ dsᵢⱼ kⱼ this is also Σ q·dq/α: what one knows of dq is enough. A model with α and one
# > with q of another length are the same model, and so their gradients must be related.
HINTS_6 = [
    "Where does α enter, and with which factor? Sum over all places where it enters.",
    "sᵢⱼ = α qᵢ·kⱼ, so ∂sᵢⱼ/∂α = qᵢ·kⱼ, without α. ds comes from softmax_backward.",
    "dp = do vᵀ, ds = softmax_backward(dp, p), then one sum of a product over all axes.",
]


# %% 7. ★★ (implement) Does it see the future?
# A model that sees the future trains beautifully and is worth nothing. Write the test for it, which
# knows nothing of the attention's inside: change what is later, and see what changes earlier.
def sees_the_future(attention, Tq, Tk):
    """True if any query's output depends on a later key or value, else False.

    attention(q, k, v) takes q (1, 1, Tq, D), k and v (1, 1, Tk, D) with any D, and returns an
    output like q; the queries are the last Tq of the Tk positions.
    """
    rng = np.random.default_rng(1)
    D = 4
    q = rng.normal(size=(1, 1, Tq, D))
    k, v = rng.normal(size=(2, 1, 1, Tk, D))
    before = attention(q, k, v)
    for i in range(Tq):
        later = i + Tk - Tq + 1  # the first position that query i must not see
        k2, v2 = k.copy(), v.copy()
        k2[:, :, later:] += rng.normal(size=k2[:, :, later:].shape)
        v2[:, :, later:] += rng.normal(size=v2[:, :, later:].shape)
        after = attention(q, k2, v2)
        if not np.allclose(before[:, :, i], after[:, :, i]):
            return True
    return False


# > Keys and values must both be changed, as a weight set to 0 after the softmax leaks through the
# > keys alone. Every query must be tried, each with its own future. Such a test costs a minute to
# > write and runs in a millisecond; the leak it finds may cost a week.
HINTS_7 = [
    "Compute the output twice: once as it is, once with other keys and values at later places.",
    "Query i stands at i + Tk - Tq. Only its own row of the output must stay as it was.",
    "Change keys *and* values, copies of them; compare with np.allclose, query after query.",
]


# %% 8. ★★ (implement) Two halves of one softmax
# The keys lie on two machines. Each has computed its own output and log Z = log Σ exp(s), as in
# section 9. Put the halves together, exactly. Scores may be as large as 2,000.
def merge(out1, log_Z1, out2, log_Z2):
    """(out, log_Z) over all keys. out1, out2 (T, D): averages; log_Z1, log_Z2 (T, 1).

    Where a half saw no key, its out is 0 and its log_Z is -inf; this is never so in both halves.
    """
    log_Z = np.logaddexp(log_Z1, log_Z2)
    return np.exp(log_Z1 - log_Z) * out1 + np.exp(log_Z2 - log_Z) * out2, log_Z


# > out₁ = Σ₁ exp(sⱼ) vⱼ/Z₁, so Z₁·out₁ + Z₂·out₂ is the numerator over all keys, and Z₁ + Z₂ the
# > denominator. The weights Z₁/Z and Z₂/Z are exp(log Z₁ - log Z): differences, which cannot
# > overflow. This is how texts too long for one machine are attended to (ring attention).
HINTS_8 = [
    "Undo the division: Z₁·out₁ is a sum over one half's keys, and Z₂·out₂ over the other's.",
    "Z = Z₁ + Z₂; the halves have the shares Z₁/Z and Z₂/Z, which is exp of a difference of logs.",
    "exp(2000) overflows. Take the larger log Z off before exp, or use np.logaddexp.",
]


# %% 9. ★★ (derive) A place to look when there is nothing to find
# Weights add up to 1, so a head that finds nothing still looks somewhere, often at the first tokens
# (sinks; Xiao et al. 2023). Add exp(a) to Z, a being learned (gpt-oss 2025):
#     pⱼ = exp(sⱼ)/(exp(a) + Σₘ exp(sₘ)), so that a row's weights add up to less than 1.
# Derive the backward: ds for the scores and da = ∂L/∂a. a is one number for all rows.
def sink_backward(s, a, dp):
    """(ds (T, N), da) for scores s (T, N), moderate in size, and dp = ∂L/∂p (T, N)."""
    Z = np.exp(a) + np.exp(s).sum(axis=1, keepdims=True)  # (T, 1)
    p = np.exp(s) / Z
    average = np.sum(p * dp, axis=1, keepdims=True)
    ds = p * (dp - average)
    da = -np.sum(np.exp(a) / Z * average)
    return ds, da


# > exp(a) is one more key, with the score a and the value 0: its weight is worth 0. So section 3
# > holds with dp = 0 there: ds = p(dp - Σ p dp) as before, and da = p_a·(0 - Σ p dp) with p_a =
# > exp(a)/Z, summed over the rows. If what the head brings back does harm (Σ p dp > 0), descent
# > raises a, and the head falls silent.
HINTS_9 = [
    "Think of exp(a) as one more key. What is its score, and what is its weight worth?",
    "Section 3 holds for N + 1 keys. What is dp at the last one?",
    "da is the last entry of that ds, and a is used in every row.",
]


# %% 10. ★★★ (implement) Latent heads that never unpack
# Section 8: the cache holds one short vector c a token. Head h has the keys c Wk[h] and the values
# c Wv[h]. Attend with one new query a head, and never make the keys or the values of even one head:
# these T·D numbers would be larger than all that is needed.
def latent_attention(q, c, Wk, Wv):
    """out (H, D) for q (H, D), c (T, R), Wk and Wv (H, R, D), R < D; scale 1/√D, no mask."""
    D = q.shape[1]
    asked = np.einsum("hd,hrd->hr", q, Wk)  # (H, R), the query in c's own numbers
    p, _ = stage.softmax_forward(asked @ c.T / math.sqrt(D))  # (H, T)
    seen = p @ c  # (H, R)
    return np.einsum("hr,hrd->hd", seen, Wv)


# > q·(c Wk) = (q Wkᵀ)·c on the way in, and Σⱼ pⱼ (cⱼ Wv) = (Σⱼ pⱼ cⱼ) Wv on the way out: products
# > may be taken in any order. The matrices act on one query instead of T tokens. How short may c
# > be? A head's keys c Wk have rank R at most, so with R < D it can tell fewer things apart.
HINTS_10 = [
    "q·(c Wk) = (q Wkᵀ)·c: let Wk act on the query, once, instead of on every c.",
    "The same at the end: average the c first, then one product with Wv.",
    "Shapes: (H, R), then (H, T), then (H, R), then (H, D). √D is that of q.",
]

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
    V, letters = len(stage.TOKENS), len(stage.LETTERS)
    digits = V - letters
    C = 128
    model = stage.AttentionOnly(C, n_head=1, n_layer=2, dtype=np.float64)
    for W in model.params.values():
        W[...] = 0
    # Channels: which token this is, a 1 for all, the token before, and the digit that was found.
    one, before, found = V, V + 1, 2 * V + 1
    model.params["token"][:, :V] = np.eye(V)
    model.params["token"][:, one] = 1
    first, second = model.layers

    # Layer 1: all queries are alike, all keys alike, but turned ahead by one place.
    half = C // 2
    first.params["Wq"][one, :half] = 6
    first.params["Wk"][one, :half] = 6 * np.cos(first.frequencies)
    first.params["Wk"][one, half:] = 6 * np.sin(first.frequencies)
    first.params["Wv"][:V, :V] = np.eye(V)
    first.params["Wo"][:V, before : before + V] = np.eye(V)

    # Layer 2: a letter asks for places after the same letter. Positions play no part.
    second.frequencies = np.zeros(half)
    second.params["Wq"][:letters, :letters] = 40 * np.eye(letters)
    second.params["Wk"][before : before + letters, :letters] = 40 * np.eye(letters)
    second.params["Wv"][letters:V, :digits] = np.eye(digits)
    second.params["Wo"][:digits, found : found + digits] = np.eye(digits)
    model.params["unembed"][found : found + digits, letters:] = 10 * np.eye(digits)
    return model


# > Layer 1. A key turned ahead by one place, at position n, meets a query at m with the score Σᵢ
# > cos(θᵢ(n + 1 - m)), which is largest where n = m - 1: one pair of speeds would come back after a
# > turn, 64 do not. Layer 2 finds all places after this letter, which hold the same digit. At the
# > very first place the head can only look at itself; but that holds a letter, and Wv of layer 2
# > hands over digits alone. 40·40/√128 = 141 makes the softmax as good as hard.
HINTS_12 = [
    "Give every channel a meaning: the token one-hot, a constant 1, the token before, the answer.",
    "Layer 1: one query, one key for all; turn the key by a place (section 6) so that m - 1 wins.",
    "Layer 2: the letter asks, the copied letter is the key, the digit is the value; no rotation.",
]
