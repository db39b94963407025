# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 10: align. How does a model learn to write what people prefer?

Nobody has a formula for "better", but anybody can say which of two answers they like. So take every
choice for a noisy comparison of two hidden rewards (Bradley-Terry). Either fit that reward, and
raise it by trial and error while staying near the model we came from (PPO, GRPO); or notice that
the best policy for a reward *contains* the reward, and fit the policy to the choices (DPO). Where
the truth can be computed, use it as the reward. You should know log-probabilities, the n-gram of
stage 3 and Adam (stage 4). We work with first names: the prompt is the first letter, the answer the
rest, `true_reward` a taste that only section 13 is told. So the best possible trade of reward
against distance from the start can be computed, and every method judged by it.

  Begin:       1 one pair on paper   2 why align, and the whole road   3 the world
  Foundations: 4 language model  5 Bradley-Terry, reward model  6 KL  7 optimal policy  8 best-of-n
  By trial:    9 policy gradient, GAE   10 PPO   11 GRPO   12 the loop   13 verifiable rewards
  From pairs:  14 DPO, IPO   15 KTO, ORPO, SimPO

    python stage10_dpo.py [--fast] [--seed N] [--names FILE]              the report, half a minute
    python stage10_dpo.py dpo --base DIR --pairs pairs.jsonl --out DIR    your own preferences
A line of pairs.jsonl: {"prompt": ..., "chosen": ..., "rejected": ...}, the answers without the
prompt. `dpo` needs capstone_gpt.py beside this file.

Rests on: Bradley, Terry (1952); Williams (1992), REINFORCE; Schulman et al. (2016), GAE; (2017),
PPO; Ouyang et al. (2022), InstructGPT; Gao et al. (2023), over-optimisation; Rafailov et al.
(2023), DPO; Shao et al. (2024), GRPO; and those named in their sections.
"""

import argparse
import functools
import json
import math
import numbers
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

# %% 1. One pair on paper
# A prompt has three possible answers, and we pretend to know their rewards: r = 1, 0 and -1. How
# often does somebody prefer one answer, y, to another, y′? Bradley and Terry's answer is
#     P(y preferred to y′) = σ(r(y) - r(y′)),    σ(d) = 1/(1 + e⁻ᵈ).
# The first beats the second with probability σ(1) = 0.731, and the third with σ(2) = 0.881.
# A model π_ref writes them with probabilities 0.2, 0.3 and 0.5: it likes the worst one best. We do
# not tell it the rewards. We only say: of the first and the third, somebody chose the first. DPO
# asks how much likelier each of the two has become since π_ref, u = log π(y) - log π_ref(y), takes
# the margin h = u_winner - u_loser, and wants the choice to be likely: the loss is -log σ(βh).
# Its slope in h is -β σ(-βh). With logits z, log π = z - log Σ eᶻ. The sum cancels in h; so dz, the
# slope of the loss in z, is -β σ(-βh) for the winner, β σ(-βh) for the loser, 0 for the second.


def one_pair(z, log_reference, winner, loser, beta):
    """DPO for one pair of answers with logits z (3,): (loss, dz (3,), probabilities (3,))."""
    log_policy = z - np.log(np.exp(z).sum())
    u = log_policy - log_reference  # (3,) how much likelier, in nats
    h = u[winner] - u[loser]
    disagreement = 1 / (1 + np.exp(beta * h))  # σ(-βh)
    dz = np.zeros(3)
    dz[winner] = -beta * disagreement
    dz[loser] = beta * disagreement
    return -np.log(1 - disagreement), dz, np.exp(log_policy)


#     z = log_reference = log [0.2, 0.3, 0.5],  winner 0,  loser 2,  β = 0.5,  step z -= 1·dz
#     step   h      loss    dz                    probabilities
#     0      0      0.693   -0.25    0   0.25     0.200  0.300  0.500
#     1      0.5    0.576   -0.219   0   0.219    0.271  0.317  0.412
#     2      0.938  0.486   -0.192   0   0.192    0.343  0.322  0.335
#
# The pull weakens as the policy comes to agree. Where does it end? The first wins 88.1 % of the
# time and loses the rest; the pulls of both balance at βh = 2, the difference of the rewards.
# Trained on all pairs, the policy ends at 0.801, 0.163, 0.037. That is π_ref e^(r/β), made to sum
# to 1: the rewards have entered the policy, though no one named them. Section 7 derives this end,
# section 14 the loss. The rest is answers of many tokens, and rewards that are only guessed.

# %% 2. Why align, and the whole road
# A model that imitates its text answers like the average of its authors, errors included. What we
# want is seldom the average, and easier to recognise than to write. Assistants come this road:
#     pre-training              imitate everything                   `pretrain`, section 4
#     supervised fine-tuning    imitate only good answers            `imitate_best`, section 8
#     preferences               prefer better to worse               sections 5 to 12, 14, 15
#     verifiable rewards        be right where that can be checked   section 13
# (The second usually imitates answers that people wrote; ours, by the same loop, the model's best.)

# %% 3. The world: names, and a taste that nobody is told
# A name is a row of tokens: 1-26 for a-z, 0 for "the end" and for the empty places after it. Column
# 0 is the prompt x (the first letter), columns 1.. the response y, at most LONGEST tokens of it.
END, VOCABULARY, LONGEST = 0, 27, 15


def encode(names):
    """A list of names -> tokens (B, 1 + LONGEST), padded with END. ValueError on anything else."""
    if not isinstance(names, (list, tuple)):
        raise ValueError(f"names = {names!r:.40}: expected a list of names")
    tokens = np.zeros((len(names), 1 + LONGEST), dtype=np.int64)
    for row, name in zip(tokens, names):
        if not isinstance(name, str) or not re.fullmatch("[a-z]+", name) or len(name) > LONGEST:
            raise ValueError(f"name {name!r}: expected 1 to {LONGEST} letters from a to z")
        row[: len(name)] = [ord(letter) - 96 for letter in name]
    return tokens


def check_tokens(tokens, ndim=2, vocabulary=VOCABULARY):
    """tokens as int64; ValueError unless an ndim-dimensional array of integers below vocabulary."""
    tokens = np.asarray(tokens)
    if tokens.ndim != ndim or tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens are {tokens.dtype} {tokens.shape}: expected {ndim}-d integers")
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocabulary):
        raise ValueError(f"tokens {tokens.min()}..{tokens.max()}: expected 0 to {vocabulary - 1}")
    return tokens.astype(np.int64)


def decode(tokens):
    """Tokens (B, 1 + n) -> names; the inverse of encode."""
    tokens = check_tokens(tokens)
    return ["".join(chr(96 + t) for t in row if t != END) for row in tokens.tolist()]


def true_reward(name):
    """The hidden taste: +1 for each soft consonant (l m n r), at most three; +1.5 for a vowel at
    the end; -0.6 for each letter more or fewer than six; -1.5 for each use of a letter beyond its
    second, and for each three consonants, or vowels, in a row."""
    if not isinstance(name, str) or not re.fullmatch("[a-z]+", name):
        raise ValueError(f"name {name!r}: expected letters from a to z, and at least one")
    soft = min(3, sum(name.count(letter) for letter in "lmnr"))
    mumbled = sum(max(0, name.count(letter) - 2) for letter in set(name))
    vowel = [letter in "aeiou" for letter in name]
    crowded = sum(a == b == c for a, b, c in zip(vowel, vowel[1:], vowel[2:]))
    ending = 1.5 if vowel[-1] else 0.0
    return soft + ending - 0.6 * abs(len(name) - 6) - 1.5 * mumbled - 1.5 * crowded


def true_rewards(tokens):
    """true_reward of every row: tokens (B, 1 + n) -> (B,)."""
    return np.array([true_reward(name) for name in decode(tokens)])


# %% 4. A small language model, its backward by hand
# Stage 3's neural n-gram: the CONTEXT tokens before a place are looked up in a table E, laid side
# by side, and sent through one tanh layer. With one output instead of 27 the same body serves as
# reward model and as critic. (In InstructGPT all are transformers: policies of up to 175 billion
# parameters, the reward model and the critic with 6 billion.)
#   x = E[c₁] ⊕ … ⊕ E[c_K]      h = tanh(x W₁ + b₁)      z = h W₂ + b₂
# Backward, from dz = ∂L/∂z, with tanh' = 1 - tanh² and da = ∂L/∂(x W₁ + b₁):
#   dW₂ = hᵀ dz    db₂ = Σ dz    da = (dz W₂ᵀ)(1 - h²)    dW₁ = xᵀ da    db₁ = Σ da    dx = da W₁ᵀ
#   dE[v] = the sum of dx over all places that hold token v = (one-hot tokens)ᵀ dx.
CONTEXT, EMBEDDING, HIDDEN = 8, 10, 64


def new_network(rng, n_out, dtype=np.float32):
    """Fresh parameters for the body above with n_out outputs."""
    wide = CONTEXT * EMBEDDING
    return {
        "E": rng.normal(0, 0.3, (VOCABULARY, EMBEDDING)).astype(dtype),
        "W1": rng.normal(0, wide**-0.5, (wide, HIDDEN)).astype(dtype),
        "b1": np.zeros(HIDDEN, dtype),
        "W2": rng.normal(0, 0.1 * HIDDEN**-0.5, (HIDDEN, n_out)).astype(dtype),
        "b2": np.zeros(n_out, dtype),
    }


def network_forward(params, contexts):
    """Places' contexts (places, CONTEXT) -> (z (places, n_out), x before the layer, h after it)."""
    x = params["E"][contexts].reshape(len(contexts), CONTEXT * EMBEDDING)
    h = np.tanh(x @ params["W1"] + params["b1"])
    return h @ params["W2"] + params["b2"], x, h


# Responses differ in length, so a batch carries a mask. Only its places go through the network; the
# ones after them stay 0 and receive no gradient.
def response_mask(tokens):
    """True on the response's tokens up to and with its END: tokens (B, 1 + n) -> (B, n)."""
    mask = np.ones((len(tokens), tokens.shape[1] - 1), dtype=bool)
    mask[:, 1:] = np.logical_and.accumulate(tokens[:, 1:-1] != END, axis=1)
    return mask


def places_forward(params, tokens):
    """The network at every place of every response: tokens (B, 1 + n) -> (z (B, T, n_out), mask
    (B, T), cache), T being the batch's longest response with its END."""
    tokens = check_tokens(tokens)
    mask = response_mask(tokens)
    mask = mask[:, : int(mask.sum(1).max())]  # (B, T)
    padded = np.pad(tokens[:, : mask.shape[1]], ((0, 0), (CONTEXT - 1, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT, axis=1)  # (B, T, CONTEXT)
    rows, x, h = network_forward(params, windows[mask])
    z = np.zeros((*mask.shape, rows.shape[1]), dtype=rows.dtype)
    z[mask] = rows
    return z, mask, (params, mask, windows[mask], x, h)


def places_backward(dz, cache):
    """dz (B, T, n_out) -> gradients by parameter name."""
    params, mask, contexts, x, h = cache
    dz = dz[mask].astype(h.dtype)  # (places, n_out)
    da = (dz @ params["W2"].T) * (1 - h * h)  # (places, HIDDEN)
    dx = (da @ params["W1"].T).reshape(-1, EMBEDDING)  # (places·CONTEXT, EMBEDDING)
    one_hot = (np.arange(VOCABULARY)[:, None] == contexts.reshape(-1)).astype(dx.dtype)
    return {"E": one_hot @ dx, "W1": x.T @ da, "b1": da.sum(0), "W2": h.T @ dz, "b2": dz.sum(0)}


# log π(y|x) = Σ_t log π(y_t|x, y_<t), each z[y] - log Σ_v exp z_v with ∂/∂z_v = 1[v = y] - π(v).
def log_softmax(z):
    """log softmax over the last axis, shifted by the largest entry so that nothing overflows."""
    z = np.asarray(z) - np.max(z, -1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def sequence_logprob(logits, tokens, mask=None, per_token=False):
    """log π(y|x) in nats, (B,), of tokens (B, T) under logits (B, T, V) of the same places; with
    per_token its terms (B, T), 0 outside the mask (B, T), which is all ones if None."""
    logits = np.asarray(logits)
    tokens = check_tokens(tokens, vocabulary=logits.shape[-1])
    mask = np.ones(tokens.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if logits.ndim != 3 or not logits.shape[:2] == tokens.shape == mask.shape:
        shapes = f"logits {logits.shape}, tokens {tokens.shape}, mask {mask.shape}"
        raise ValueError(f"{shapes}: expected (B, T, V), (B, T), (B, T)")
    terms = np.take_along_axis(log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
    return np.where(mask, terms, 0) if per_token else np.where(mask, terms, 0).sum(-1)


def policy_forward(policy, tokens):
    """Tokens (B, 1 + n) -> (log π of every response token (B, T), mask (B, T), cache)."""
    logits, mask, inner = places_forward(policy, tokens)
    targets = np.asarray(tokens)[:, 1 : 1 + mask.shape[1]]
    logp = sequence_logprob(logits, targets, mask, per_token=True)
    return logp, mask, (logits, targets, inner)


def policy_backward(dlogp, cache):
    """dlogp (B, T), one for each token's term -> gradients by parameter name."""
    logits, targets, inner = cache
    if np.shape(dlogp) != targets.shape:
        raise ValueError(f"dlogp has shape {np.shape(dlogp)}: expected {targets.shape}")
    one_hot = np.arange(logits.shape[-1]) == targets[..., None]  # (B, T, V)
    return places_backward(dlogp[..., None] * (one_hot - np.exp(log_softmax(logits))), inner)


def sample(policy, prompts, rng):
    """One response per prompt: first letters (B,) -> tokens (B, 1 + LONGEST)."""
    prompts = check_tokens(prompts, ndim=1)
    padded = np.zeros((len(prompts), CONTEXT + LONGEST), dtype=np.int64)
    padded[:, CONTEXT - 1] = prompts
    alive = np.arange(len(prompts))  # the rows that have not ended
    for t in range(CONTEXT, CONTEXT + LONGEST):
        logits, _, _ = network_forward(policy, padded[alive, t - CONTEXT : t])
        # argmax(z + Gumbel noise) is an exact draw from softmax(z): section 5 proves it for two.
        padded[alive, t] = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
        alive = alive[padded[alive, t] != END]
    return padded[:, CONTEXT - 1 :]


class Adam:
    """Adam with weight decay and clipping (stage 4); 20 steps of warmup, then a fall to 0."""

    def __init__(self, params, learning_rate, steps, weight_decay=0.0):
        check_number("steps", steps, 1, kind=numbers.Integral)
        self.params, self.learning_rate = params, learning_rate
        self.steps, self.weight_decay = steps, weight_decay
        self.t = 0
        self.m = dict.fromkeys(params, 0.0)
        self.v = dict.fromkeys(params, 0.0)

    def step(self, grads):
        """Update the parameters in place. ValueError, naming the step, for a slope not finite."""
        self.t += 1
        rate = self.learning_rate * min(1, self.t / 20) * (1 - (self.t - 1) / self.steps)
        norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
        if not math.isfinite(norm):
            raise ValueError(f"gradient's norm is {norm} at step {self.t}: lower the learning rate")
        for name, p in self.params.items():
            g = grads[name] / max(1.0, norm)
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.v[name] = 0.99 * self.v[name] + 0.01 * g * g
            m = self.m[name] / (1 - 0.9**self.t)  # both began at 0, and are corrected for it
            v = self.v[name] / (1 - 0.99**self.t)
            p -= rate * (m / (np.sqrt(v) + 1e-8) + self.weight_decay * p)


def imitate(policy, tokens, steps, rng, learning_rate=4e-3, weight_decay=0.02):
    """Maximum likelihood on names, tokens (N, 1 + n): the policy is changed in place."""
    optimizer = Adam(policy, learning_rate, steps, weight_decay)
    for _ in range(steps):
        logp, mask, cache = policy_forward(policy, tokens[rng.integers(0, len(tokens), 128)])
        optimizer.step(policy_backward(np.full_like(logp, -1 / mask.sum()), cache))
    return policy


def pretrain(tokens, steps, rng):
    """The reference π_ref: it imitates real names, as in every stage before this one."""
    return imitate(new_network(rng, VOCABULARY), tokens, steps, rng)


# %% 5. Bradley-Terry and the reward model
# Give each response a reward r(x, y), and let each look at it add Gumbel noise ε, whose
# distribution function is F(ε) = exp(-e^{-ε}), density e^{-ε} exp(-e^{-ε}). The larger r + ε wins.
# With d = r_w - r_l, and the substitution s = e^{-ε} in the last line:
#   P(w preferred to l) = P(ε_l < ε_w + d) = ∫ F(ε + d) e^{-ε} exp(-e^{-ε}) dε
#                       = ∫₀^∞ exp(-s e^{-d}) exp(-s) ds = 1/(1 + e^{-d}) = σ(d).
# Only differences within one prompt matter: a reward is known up to a constant c(x). And even the
# truth predicts a choice only with probability max(σ(d), σ(-d)), whose mean is the Bayes limit.
# Maximum likelihood: L = -mean log σ(d) over the batch of B pairs. As log σ(d) = -log(1 + e^{-d})
# has slope e^{-d}/(1 + e^{-d}) = σ(-d), it follows that ∂L/∂r_w = -σ(-d)/B and ∂L/∂r_l = σ(-d)/B.
# A pair pulls with the probability that the model still gives to the wrong order.
def log_sigmoid(x):
    """log σ(x) = -log(1 + e⁻ˣ), without overflow on either side."""
    return -np.logaddexp(0, -1.0 * np.asarray(x))  # 1.0: an unsigned 3 has no -3


def sigmoid(x):
    """σ(x) = 1/(1 + e⁻ˣ)."""
    return np.exp(log_sigmoid(x))


def checked(**arrays):
    """The arrays as floats; ValueError unless they share one shape, are not empty, and finite."""
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    shape = next(iter(arrays.values())).shape
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or array.shape != shape or array.size == 0:
            found = f"{name} is {array.dtype} {array.shape}"
            raise ValueError(f"{found}: expected numbers, at least one, of shape {shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} contains nan or inf: expected finite numbers")
    return [array * 1.0 for array in arrays.values()]


def check_number(name, value, low, high=1e38, above=False, kind=numbers.Real):
    """ValueError unless value is a number of that kind in [low, high] (in (low, high] if above)."""
    if isinstance(value, np.floating):
        value = float(value)
    right_kind = isinstance(value, kind) and not isinstance(value, bool)
    if not right_kind or not low <= value <= high or (above and value == low):
        what = "a number" if kind == numbers.Real else "a whole number"
        bounds = f"{'>' if above else '>='} {low:g}" + (f" and <= {high:g}" if high < 1e38 else "")
        raise ValueError(f"{name} = {value!r:.20}: expected {what} {bounds}")


def reward_loss(chosen_rewards, rejected_rewards):
    """Bradley-Terry on rewards (B,): (mean loss in nats, dchosen, drejected)."""
    r_w, r_l = checked(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    d = r_w - r_l
    pull = sigmoid(-d) / d.size
    return float(-log_sigmoid(d).mean()), -pull, pull


def learned_rewards(params, tokens):
    """r_φ(x, y), the one-output network summed over y's places: tokens (B, 1 + n) -> (B,)."""
    return places_forward(params, tokens)[0].sum((1, 2))


def train_reward_model(chosen, rejected, steps, rng):
    """Fit r_φ to preference pairs, tokens (N, 1 + n) each."""
    params = new_network(rng, 1)
    optimizer = Adam(params, 3e-3, steps, weight_decay=0.05)
    for _ in range(steps):
        pick = rng.integers(0, len(chosen), 128)
        z, _, cache = places_forward(params, np.concatenate([chosen[pick], rejected[pick]]))
        _, *slopes = reward_loss(*np.split(z.sum((1, 2)), 2))
        dz = np.concatenate(slopes)[:, None, None] + np.zeros_like(z)  # a sum passes its slope on
        optimizer.step(places_backward(dz, cache))
    return params


def prefer(policy, prompts, rng):
    """Two responses per prompt, and the hidden taste's noisy choice: tokens (chosen, rejected)."""
    a, b = sample(policy, prompts, rng), sample(policy, prompts, rng)
    a_wins = rng.random(len(a)) < sigmoid(true_rewards(a) - true_rewards(b))
    return np.where(a_wins[:, None], a, b), np.where(a_wins[:, None], b, a)


# %% 6. The KL divergence: how far has a policy moved?
# KL(p‖q) = Σ_v p(v) log(p(v)/q(v)), the nats lost by coding p's samples with q's code. It is never
# negative: log a ≤ a - 1 gives -KL = Σ p log(q/p) ≤ Σ p (q/p - 1) = 0, with equality only at q = p.
# For sequences log π(y) = Σ_t log π(y_t|y_<t), and hence, 𝔼 being the mean over samples y of π,
#   KL(π‖π_ref) = 𝔼 Σ_t log(π/π_ref)(y_t|y_<t) = 𝔼 Σ_t KL(π(·|y_<t) ‖ π_ref(·|y_<t)).
# The last form needs samples only for the path, and sums each token's distribution exactly.
# From log-probabilities of samples of p alone, with d = log q - log p (Schulman 2020, a blog post):
#   k1 = -d has mean KL, though single values may be negative;
#   k3 = eᵈ - 1 - d: as eᵈ has mean Σ p q/p = 1, its mean is KL too, and eᵈ ≥ 1 + d makes it ≥ 0.
def kl_divergence(logp, logq):
    """KL(p‖q) in nats, exact, from log-probabilities or logits (..., V) -> (...)."""
    logp, logq = (log_softmax(a) for a in checked(logp=logp, logq=logq))
    return (np.exp(logp) * (logp - logq)).sum(-1)


# %% 7. The optimal policy
# A policy that chases reward and nothing else leaves the language behind (the report shows how). So
# charge a price β for distance from the reference. For each prompt, maximise over π
#   J(π) = 𝔼 r(y) - β KL(π‖π_ref) = -β 𝔼 log [ π(y) / (π_ref(y) e^{r(y)/β}) ].
# Dividing π_ref e^{r/β} by its sum Z = Σ_y π_ref(y) e^{r(y)/β} makes it a distribution, so
#   π*(y) = π_ref(y) e^{r(y)/β} / Z      and      J(π) = -β KL(π‖π*) + β log Z.
# β log Z does not depend on π, and KL ≥ 0 is 0 only at π*. So π* is the optimum, whatever r is. We
# cannot sum over all y, but M samples of π_ref stand for π_ref with 1/M each, and π* gives them the
# weights w = softmax(r/β). Then its mean reward is Σ w_i r_i, and KL(π*‖π_ref) = Σ w_i log(M w_i).
# Sweeping β draws the frontier: a policy above it would beat J's optimum at that β.
def frontier(rewards, prompt_weights, betas):
    """π* for rewards (P, M), M samples for each of P prompts: a row (KL, mean reward) for each
    beta. The means over prompts use prompt_weights (P,)."""
    (rewards,) = checked(rewards=rewards)
    rows = []
    for beta in betas:
        check_number("beta", beta, 0, above=True)
        logw = log_softmax(rewards / beta)  # (P, M)
        kl = (np.exp(logw) * (logw + math.log(rewards.shape[-1]))).sum(-1)
        mean = (np.exp(logw) * rewards).sum(-1)
        rows.append((kl @ prompt_weights, mean @ prompt_weights))
    return np.array(rows)


# %% 8. Best-of-n, and imitating the best
# The simplest improvement trains nothing: draw n responses, keep the one with the highest reward.
# Let f ∈ (0, 1) be the share of π_ref's responses with a lower reward. f is uniform, the best of n
# lies below f with probability fⁿ, so its density against π_ref is n fⁿ⁻¹. Without ties,
#   KL = ∫₀¹ n fⁿ⁻¹ log(n fⁿ⁻¹) df = log n + (n-1) ∫₀¹ n fⁿ⁻¹ log f df = log n - (n-1)/n,
# since ∫₀¹ n fⁿ⁻¹ log f df = [fⁿ log f]₀¹ - ∫₀¹ fⁿ⁻¹ df = -1/n. Ties only make it smaller (Beirami
# et al. 2024). Distance grows like log n, cost like n, and it is paid for every answer. Of the gain
# that is possible at its KL it has 78 % in our world (three seeds; benchmarks/stage10_seeds.py).
def best_of_n(rewards, measured, n):
    """Keep the best by `rewards` of each n among (P, M) samples (M mod n are left over): (mean of
    `measured` over those kept (P,), the bound on KL)."""
    check_number("n", n, 1, kind=numbers.Integral)
    rewards, measured = checked(rewards=rewards, measured=measured)
    if rewards.ndim != 2 or rewards.shape[1] < n:
        raise ValueError(f"rewards have shape {rewards.shape}: expected (P, M) with M >= n = {n}")
    P, M = rewards.shape
    n = int(n)
    rewards, measured = (a[:, : M - M % n].reshape(P, -1, n) for a in (rewards, measured))
    kept = np.take_along_axis(measured, rewards.argmax(-1)[..., None], -1)  # (P, M/n, 1)
    return kept.mean((1, 2)), math.log(n) - (n - 1) / n


# Or pay once, and let the model imitate its best answers: fine-tuning by rejection sampling (RAFT,
# Dong et al. 2023; Llama 2 used it before PPO).
def imitate_best(reference, reward, prompts, n, steps, rng, learning_rate=2e-3):
    """Draw n answers to each prompt (N,), fine-tune the reference on those that reward(tokens), a
    function to (B,), likes best: (policy, number of tokens drawn)."""
    drawn = sample(reference, np.repeat(prompts, n), rng)  # (N·n, 1 + LONGEST)
    best = reward(drawn).reshape(-1, n).argmax(1) + n * np.arange(len(prompts))  # rows of `drawn`
    policy = {name: p.copy() for name, p in reference.items()}
    policy = imitate(policy, drawn[best], steps, rng, learning_rate)
    return policy, int(response_mask(drawn).sum())


# %% 9. Policy gradient, baseline, advantage
# Sampling cannot be differentiated, but J(π) = 𝔼 R(y) can: ∇π = π ∇log π (Williams 1992) makes
#   ∇J = Σ_y R(y) ∇π(y) = Σ_y π(y) R(y) ∇log π(y) = 𝔼 [R(y) ∇log π(y)]:
# make each sample likelier in proportion to its reward. With R = r - β log(π/π_ref) the R inside
# depends on π too, but that adds only -β 𝔼[∇log π] = 0, because 𝔼[∇log π] = Σ ∇π = ∇1 = 0.
# The same zero allows a baseline: for any b that does not depend on the token drawn, R - b has the
# same mean gradient and, with b near the expected R, far less noise. Token t cannot change rewards
# before it, so the natural baseline is V_t, a critic's guess of what is still to come. What remains
# is the advantage A_t: how much better than expected did it go?
# Take three tokens, whose only reward comes with the last: 0, 0, 1. The critic expected 0.2 before
# the first, 0.5 before the second, 0.7 before the third. There are two ways to judge a token:
#     wait for the end:    1 - 0.2, 1 - 0.5, 1 - 0.7            =  0.8    0.5   0.3
#     look one step ahead: 0.5 - 0.2, 0.7 - 0.5, 1 - 0.7        =  0.3    0.2   0.3
# The first is unbiased, but blames a token for the luck of all later ones; the second is calm, but
# as biased as the critic. GAE lies between. With λ = 0.5 it adds to each step half of what follows:
# from the end 0.3, then 0.2 + 0.5·0.3 = 0.35, then 0.3 + 0.5·0.35 = 0.475.
# In general, with a discount γ, one step ahead is δ_t = r_t + γ V_{t+1} - V_t, and k steps ahead is
# a sum of δs, in which all V but the first and the last cancel:
#   A⁽ᵏ⁾_t = r_t + … + γᵏ⁻¹ r_{t+k-1} + γᵏ V_{t+k} - V_t = Σ_{l<k} γˡ δ_{t+l}.
# GAE averages all k with weights (1-λ) λᵏ⁻¹, which sum to 1. δ_{t+l} is in every A⁽ᵏ⁾ with k > l,
# and (1-λ) Σ_{k>l} λᵏ⁻¹ = λˡ, so A_t = Σ_l (γλ)ˡ δ_{t+l} = δ_t + γλ A_{t+1}.
def gae(rewards, values, gamma, lam):
    """Generalised advantage estimation: (advantages, returns = advantages + values), (..., T) each,
    of rewards (..., T) and values (..., T); after the end the value is 0."""
    check_number("gamma", gamma, 0, 1)
    check_number("lam", lam, 0, 1)
    rewards, values = checked(rewards=np.atleast_1d(rewards), values=np.atleast_1d(values))
    delta = rewards - values
    delta[..., :-1] += gamma * values[..., 1:]
    advantages, following = np.empty_like(delta), 0.0
    for t in reversed(range(delta.shape[-1])):
        following = delta[..., t] + gamma * lam * following
        advantages[..., t] = following
    return advantages, advantages + values


# %% 10. PPO: several steps on one batch, each kept small
# Reuse. Samples are dear, so we want several updates from one batch, though it was drawn by the
# policy before them, π_old. The ratio ρ = π/π_old repairs the mean: Σ π_old ρ A = Σ π A.
# Caution. As π moves on, a few large ρ come to rule. So a token earns nothing further once it has
# moved by ε in the direction that its advantage wants,
#   L = -mean min(ρ A, clip(ρ, 1-ε, 1+ε) A).
# The min keeps the other direction open: a token that moved the wrong way is still pulled back.
# Slope. dρ/dlog π = ρ, so with n tokens ∂L/∂log π = -ρ A/n where the first branch is the smaller,
# and 0 where the clipped one is: for A > 0 and ρ > 1+ε, or for A < 0 and ρ < 1-ε. At ρ = 1, in the
# first update, this is the policy gradient itself.
def ppo_loss(logp, old_logp, advantages, clip=0.2, mask=None):
    """Clipped PPO objective over tokens: (loss, dlogp, clipped share), arrays of one shape. mask
    marks the tokens that count, or weighs them; what stands in the others is not looked at."""
    mask = np.ones(np.shape(logp)) if mask is None else np.asarray(mask)
    logp, old, A = (np.where(mask, array, 0) for array in (logp, old_logp, advantages))
    mask, logp, old, A = checked(mask=mask, logp=logp, old_logp=old, advantages=A)
    check_number("clip", clip, 0, above=True)
    check_number("smallest weight in mask", mask.min(), 0)
    check_number("sum of mask", mask.sum(), 0, above=True)
    largest = int(0.9 * math.log(np.finfo(logp.dtype).max))  # e⁷⁹ fits a float32
    check_number("largest log π/π_old", (logp - old).max(), -math.inf, largest)
    weight = (mask / mask.sum()).astype(logp.dtype)
    ratio = np.exp(logp - old)
    free = ratio * A
    held = np.clip(ratio, 1 - clip, 1 + clip) * A
    loss = -(np.minimum(free, held) * weight).sum()
    return float(loss), np.where(free <= held, -free, 0) * weight, float(weight[free > held].sum())


# %% 11. GRPO: the group is the critic
# Draw G responses to each prompt, and the group's mean is a baseline without any critic:
#   A_i = (r_i - mean r) / std r, for every token of response i          (Shao et al. 2024).
# Dividing by std gives easy and hard prompts an equal say; Liu et al. 2025 (Dr. GRPO) argue against
# it, hence the switch. A group whose rewards are all equal teaches nothing.
# Length. The policy gradient gives each token of a response the same A, however many there are. The
# paper's loss first takes the mean within each response, so a token counts 1/|y|. Let two wrong
# answers with A = -1 have 2 and 8 tokens: each token of the first is pushed down by 1/2, of the
# second by 1/8. Long is the mildest way to be wrong and short, by the same sum, the best way to be
# right. A mean over all tokens of the batch (DAPO, Yu et al. 2025) or a division by a constant (Dr.
# GRPO) treats tokens alike. We do the former; `by_response` is the paper's mean. In our world the
# bias does not show: asked for a vowel at the end and nothing else, names of 5.8 letters end with
# 4.8 under the paper's mean and 4.7 under ours (24 runs each; benchmarks/stage10_seeds.py).
# The price of KL. PPO pays through its rewards: each token costs β log(π_old/π_ref) on the spot,
# the verdict comes with the last (Ouyang et al. 2022). GRPO adds β·mean k3 to the loss. By section
# 6, ∂k3/∂log π = 1 - π_ref/π. A catch: averaged over samples of π this is
# 𝔼[(1 - π_ref/π) ∇log π] = -Σ π_ref ∇log π = ∇KL(π_ref‖π), the gradient of the *other* KL (the
# samples depend on π as well, and that is ignored). It too is zero only at π_ref; but elsewhere it
# asks for something else than section 7's optimum, and the report shows what that costs.
def grpo_advantages(rewards, normalize=True, eps=1e-8):
    """Rewards (..., G), a group per row -> advantages of mean 0 and, if normalize, deviation 1."""
    (rewards,) = checked(rewards=np.atleast_1d(rewards))
    # Less the first of its group, so that equal rewards are exactly 0, in any dtype.
    centred = rewards.astype(np.float64) - rewards[..., :1]
    centred = centred - centred.mean(-1, keepdims=True)
    if normalize:
        centred = centred / (centred.std(-1, keepdims=True) + eps)
    return centred.astype(rewards.dtype)


# %% 12. The loop, and a price that adapts
# Which β keeps the policy at, say, 1.5 nats? Nobody knows beforehand. Ziegler et al. (2019) name
# the distance, and after each batch β follows the KL seen in it, by up to 20 % here:
#   β ← β (1 + 0.2 clip(KL/target - 1, -1, 1)):    too far is made dearer, too near cheaper.
def train_rl(
    kind, reference, reward, prompts, beta, iterations, rng, learning_rate=2e-3,
    kl_in_loss=False, by_response=False, target_kl=None,
):  # fmt: skip
    """Raise a reward by "ppo" or "grpo", KL priced at beta: (policy, number of tokens drawn).

    reward maps tokens (B, 1 + n) to (B,). An iteration draws 16 responses to each of 16 prompts and
    passes over them twice. kl_in_loss: k3 instead of a price in the rewards; by_response: the mean
    within responses; target_kl (nats): beta adapts."""
    if kind not in ("ppo", "grpo"):
        raise ValueError(f"kind = {kind!r}: expected 'ppo' or 'grpo'")
    check_number("beta", beta, 0)
    check_number("iterations", iterations, 1, kind=numbers.Integral)
    policy = {name: p.copy() for name, p in reference.items()}
    critic = new_network(rng, 1)
    steps = 8 * iterations  # four an iteration, so the rate falls to a half, not to zero
    optimizer, critic_optimizer = Adam(policy, learning_rate, steps), Adam(critic, 1e-2, steps)
    drawn = 0
    for _ in range(iterations):
        tokens = sample(policy, np.repeat(rng.choice(prompts, 16), 16), rng)  # (B, 1 + n)
        old, mask, _ = policy_forward(policy, tokens)  # (B, T)
        ref, _, _ = policy_forward(reference, tokens)
        rewards = np.zeros_like(old) if kl_in_loss else -beta * (old - ref)  # (B, T)
        rewards[np.arange(len(tokens)), mask.sum(1) - 1] += reward(tokens)
        if kind == "ppo":
            values = places_forward(critic, tokens)[0][..., 0]  # (B, T), 0 after the end
            advantages, returns = gae(rewards, values, 1.0, 0.95)
            advantages = (advantages - advantages[mask].mean()) / (advantages[mask].std() + 1e-8)
        else:
            groups = rewards.sum(1).reshape(16, 16)
            advantages = grpo_advantages(groups).reshape(-1, 1) * mask
        weights = mask / mask.sum(1, keepdims=True) if by_response else mask * 1.0
        for rows in np.split(rng.permutation(len(tokens)), 2) * 2:
            logp, inside, cache = policy_forward(policy, tokens[rows])
            T = inside.shape[1]
            weight = weights[rows, :T]
            _, dlogp, _ = ppo_loss(logp, old[rows, :T], advantages[rows, :T], mask=weight)
            if kl_in_loss:
                dlogp += beta * (1 - np.exp(ref[rows, :T] - logp)) * weight / weight.sum()
            optimizer.step(policy_backward(dlogp, cache))
            if kind == "ppo":  # the critic minimises ½ mean (V - return)²
                value, _, cache = places_forward(critic, tokens[rows])
                dvalue = (value[..., 0] - returns[rows, :T]) * inside / inside.sum()
                critic_optimizer.step(places_backward(dvalue[..., None], cache))
        drawn += int(mask.sum())
        if target_kl is not None:
            too_far = float((old - ref).sum(1).mean()) / target_kl - 1  # k1 of section 6
            beta *= 1 + 0.2 * min(max(too_far, -1.0), 1.0)
    return policy, drawn


# %% 13. Rewards that can be verified
# Where a program can check an answer (is the sum right? do the tests pass?), the same loop takes
# that check as its reward: no pairs, no reward model, and nothing to over-optimise, since what is
# raised is what is meant. So are reasoning models trained (Lambert et al. 2024; DeepSeek-AI 2025).
# In our world the check is `true_rewards`:
#     train_rl("ppo", reference, true_rewards, prompts, beta, iterations, rng)
# Between the two stands AI feedback (Bai et al. 2022): a model makes the choices of section 5 and
# the rest stays as it is, so that the policy comes as near to the truth as that model's taste.


# %% 14. DPO: the policy is its own reward model
# Section 7 turned a reward into its best policy. Turn the formula round: π* = π_ref e^{r/β}/Z says
#   r(x, y) = β log(π*(y|x)/π_ref(y|x)) + β log Z(x).
# Every policy is optimal for *some* reward: this one. Bradley-Terry needs only differences within a
# prompt, where the impossible Z(x) cancels: r_w - r_l = βh with
#   h = u_w - u_l,      u = log π(y|x) - log π_ref(y|x).
# So fit the policy by maximum likelihood, L = mean ℓ(h) with ℓ = -log σ(βh): no reward model, no
# sampling, no critic (Rafailov et al. 2023). h has slope ±1 in the two log π, so all we need is ℓ':
#   sigmoid  ℓ = -log σ(βh)           ℓ' = -β σ(-βh), β times the probability of the wrong order
# Where a pair is always chosen the same way, -log σ has no minimum: h → ∞, whatever β. IPO (Azar et
# al. 2024) asks for a finite margin. Let the reward of an answer be the probability p that it is
# preferred. Then section 7 makes the best margin h = (p_w - p_l)/β. We do not know p. But over
# random pairs h·label has the same mean as h·(p - p′), for every h that is a difference u - u′, and
# least squares needs no more. Show each pair in both orders. In the order (winner, loser) the label
# is 1, the margin h, and the error h - 1/β. In the order (loser, winner) the label is 0, the margin
# -h, and the error -h - 0. Half the sum of their squares is
#   ½(h - 1/β)² + ½h² = h² - h/β + 1/(2β²) = (h - 1/(2β))² + constant.
#   ipo      ℓ = (h - 1/(2β))²        ℓ' = 2(h - 1/(2β))      pulls back when h > 1/(2β)
# If a share ε of the labels is flipped, the expected loss is (1-ε) ℓ(h) + ε ℓ(-h). With the sigmoid
# that is conservative DPO (Mitchell 2023), whose best margin is finite, too: σ(βh) = 1-ε.
# TRL divides log π by the length for IPO; the paper, and we, do not. Another ℓ, the hinge
# max(0, 1 - βh), is RSO's (Liu et al. 2024); SLiC (Zhao et al. 2023) has it without a reference.
def dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta, kind="sigmoid"):
    """DPO or IPO: (mean loss, dchosen, drejected, chosen_rewards, rejected_rewards).

    The four inputs (B,) are log π(y|x) summed over tokens, in nats; rewards are β u; kind is
    "sigmoid" or "ipo"."""
    u_w = np.subtract(*checked(policy_chosen=policy_chosen, ref_chosen=ref_chosen))
    u_l = np.subtract(*checked(policy_rejected=policy_rejected, ref_rejected=ref_rejected))
    checked(policy_chosen=u_w, policy_rejected=u_l)
    check_number("beta", beta, 0, above=True)
    h = u_w - u_l
    if kind == "sigmoid":
        loss, slope = -log_sigmoid(beta * h), -beta * sigmoid(-beta * h)
    elif kind == "ipo":
        error = h - 1 / (2 * beta)
        loss, slope = error**2, 2 * error
    else:
        raise ValueError(f"kind = {kind!r}: expected 'sigmoid' or 'ipo'")
    dh = slope / h.size
    return float(loss.mean()), dh, -dh, beta * u_w, beta * u_l


# %% 15. KTO, ORPO, SimPO: no pairs, no reference
# KTO needs no pairs, only responses marked good or bad. After Kahneman & Tversky, gains and losses
# are felt from a reference point z, here the policy's average u, KL(π‖π_ref); loss = 1 - value:
#   good  w_D (1 - σ(β(u - z)))        bad  w_U (1 - σ(β(z - u)))        (Ethayarajh et al. 2024)
# As σ' = σ(1-σ), the slopes in log π are -w_D β σ(1-σ) and w_U β σ(1-σ): unlike DPO's they vanish
# on *both* sides, so hopeless examples, often wrong labels, are given up. The paper and TRL take z
# from mismatched pairs, the prompt of one example with the answer of the next. Here the mean u of
# the batch itself stands in, not below 0; pass `kl` for another estimate. z gets no gradient.
def kto_loss(
    policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta, kl=None, weights=(1.0, 1.0)
):
    """KTO, the mean over examples; inputs and returns as dpo_loss, but good (chosen) and bad
    (rejected) may differ in number. kl is z in nats (None: from the batch), weights (w_D, w_U)."""
    good = np.subtract(*checked(policy_chosen=policy_chosen, ref_chosen=ref_chosen))
    bad = np.subtract(*checked(policy_rejected=policy_rejected, ref_rejected=ref_rejected))
    check_number("beta", beta, 0, above=True)
    n = good.size + bad.size
    z = max(0.0, float(good.sum() + bad.sum()) / n) if kl is None else kl
    check_number("kl", z, 0)
    if np.shape(weights) != (2,):
        raise ValueError(f"weights = {weights!r}: expected two numbers, for good and for bad")
    for weight in weights:
        check_number("a weight", weight, 0)
    w_D, w_U = map(float, weights)
    s_good, s_bad = sigmoid(beta * (good - z)), sigmoid(beta * (z - bad))
    loss = float(w_D * (1 - s_good).sum() + w_U * (1 - s_bad).sum()) / n
    dchosen = -w_D * beta * s_good * (1 - s_good) / n
    drejected = w_U * beta * s_bad * (1 - s_bad) / n
    return loss, dchosen, drejected, beta * good, beta * bad


# ORPO folds fine-tuning and preference into one loss. With m = log π(y|x)/|y|, the mean per token,
# P = eᵐ, odds = P/(1-P), so log odds = m - log(1 - eᵐ)                   (Hong et al. 2024):
#   L = mean[-m_w - β log σ(o)],      o = log odds(P_w) - log odds(P_l).
# d log odds/dm = 1 + eᵐ/(1-eᵐ) = 1/(1-P), so with s = σ(-o)
#   ∂L/∂m_w = -(1 + β s/(1-P_w))/B,      ∂L/∂m_l = β s/(1-P_l)/B.
# The first term, fine-tuning on the chosen, is all that stands in for the reference.
def orpo_loss(chosen_mean, rejected_mean, beta=0.1):
    """ORPO on means per token, log π(y|x)/|y| < 0, (B,); returns as dpo_loss, slopes in means."""
    m_w, m_l = checked(chosen_mean=chosen_mean, rejected_mean=rejected_mean)
    check_number("beta", beta, 0, above=True)
    if (top := max(m_w.max(), m_l.max())) >= 0:
        raise ValueError(f"chosen_mean, rejected_mean reach {top}: expected log-probabilities < 0")
    rest_w, rest_l = -np.expm1(m_w), -np.expm1(m_l)  # 1 - P
    o = (m_w - np.log(rest_w)) - (m_l - np.log(rest_l))
    s = sigmoid(-o) / o.size
    loss = float((-m_w - beta * log_sigmoid(o)).mean())
    return loss, -1 / o.size - beta * s / rest_w, beta * s / rest_l, beta * m_w, beta * m_l


# SimPO drops the reference too: its implicit reward is βm itself, divided by |y| so that shortness
# gains nothing, and a margin γ asks the winner to win clearly (Meng et al. 2024):
#   L = -mean log σ(g),      g = β m_w - β m_l - γ,      ∂L/∂m_w = -β σ(-g)/B = -∂L/∂m_l.
# So it fits βm to r, whatever was likely before: a larger β means flatter, not nearer to π_ref!
def simpo_loss(chosen_mean, rejected_mean, beta=2.0, gamma=0.5):
    """SimPO on means per token, log π(y|x)/|y|, (B,); returns as dpo_loss, slopes in the means."""
    m_w, m_l = checked(chosen_mean=chosen_mean, rejected_mean=rejected_mean)
    check_number("beta", beta, 0, above=True)
    check_number("gamma", gamma, 0)
    g = beta * m_w - beta * m_l - gamma
    dm = -beta * sigmoid(-g) / g.size
    return float(-log_sigmoid(g).mean()), dm, -dm, beta * m_w, beta * m_l


def train_on_pairs(loss, reference, chosen, rejected, steps, rng, learning_rate=2e-3, **options):
    """Fit a policy to preference pairs, tokens (N, 1 + n) each, starting from the reference."""
    policy = {name: p.copy() for name, p in reference.items()}
    optimizer = Adam(policy, learning_rate, steps)
    pairs = np.stack([chosen, rejected])  # (2, N, 1 + n)
    ref = np.stack([policy_forward(reference, side)[0].sum(1) for side in pairs])  # (2, N)
    per_token = loss in (orpo_loss, simpo_loss)  # these want the mean per token, and no reference
    for _ in range(steps):
        pick = rng.integers(0, len(chosen), 128)
        logp, mask, cache = policy_forward(policy, np.concatenate(pairs[:, pick]))  # (256, T)
        length = mask.sum(1) if per_token else np.ones(len(mask))
        given = () if per_token else ref[:, pick]
        policy_chosen, policy_rejected = np.split(logp.sum(1) / length, 2)
        _, dchosen, drejected, _, _ = loss(policy_chosen, policy_rejected, *given, **options)
        slope = np.concatenate([dchosen, drejected]) / length  # the same for each token of y
        optimizer.step(policy_backward(slope[:, None] * mask, cache))
    return policy


# %% Demonstration
# benchmarks/stage10_seeds.py chose what stands here, on other seeds: for each method the rate that
# led to the best shares, and the settings nearest to 0.6, 1.2 and 2.4 nats. (β = 0 was not chosen.)

say = functools.partial(print, flush=True)  # the report grows as it is computed
FULL = {"pretrain": 400, "pairs": 2000, "steps": 160, "iterations": 40, "bank": 2048, "judge": 4000}
FAST = {"pretrain": 60, "pairs": 200, "steps": 4, "iterations": 3, "bank": 64, "judge": 100}
METHODS = {  # name: values of β (of n), options (the learning rate is 2e-3 unless it stands here)
    "imitate best": ((4, 8, 32), {}),
    "PPO": ((0.7, 0.5, 0.35, 0), {"kind": "ppo", "learning_rate": 1e-3}),
    "GRPO, k3": ((0.7, 0.42, 0.35), {"kind": "grpo", "kl_in_loss": True, "learning_rate": 5e-4}),
    "GRPO, KL paid": ((0.7, 0.5, 0.35), {"kind": "grpo", "learning_rate": 1e-3}),
    "DPO": ((1, 0.5, 0.25), {"loss": dpo_loss}),
    "IPO": ((0.14, 0.1, 0.05), {"loss": dpo_loss, "kind": "ipo"}),
    "KTO": ((1.8, 0.7, 0.27), {"loss": kto_loss}),
    "ORPO": ((2, 8, 32), {"loss": orpo_loss, "learning_rate": 4e-3}),
    "SimPO": ((4, 0.5, 0.25), {"loss": simpo_loss, "gamma": 0.5, "learning_rate": 5e-4}),
    "PPO, verified": ((1, 0.5, 0.35, 0), {"kind": "ppo"}),
}


def make_world(tokens, size, rng):
    """Reference, choices, reward model and frontier, from names: tokens (N, 1 + LONGEST)."""
    train, held = np.split(rng.permutation(tokens), [int(0.9 * len(tokens))])
    reference = pretrain(train, size["pretrain"], rng)
    prompts = train[:, 0]
    pairs = prefer(reference, rng.choice(prompts, size["pairs"]), rng)
    begin = time.perf_counter()
    model = train_reward_model(*pairs, 2 * size["steps"], rng)
    seconds = time.perf_counter() - begin
    # What only the judge knows: many answers to every prompt, with their true rewards.
    letters, count = np.unique(prompts, return_counts=True)
    weights = count / count.sum()  # (P,)
    bank = sample(reference, np.repeat(letters, size["bank"]), rng)
    truth = true_rewards(bank).reshape(len(letters), -1)  # (P, M)
    learned = learned_rewards(model, bank).reshape(len(letters), -1)
    return SimpleNamespace(
        size=size, held=held, prompts=prompts, reference=reference, pairs=pairs, model=model,
        seconds=seconds, weights=weights, truth=truth, learned=learned,
        best=frontier(truth, weights, np.geomspace(20, 0.2, 60)),
        start=truth.mean(1) @ weights, start_learned=learned.mean(1) @ weights,
        judged=rng.choice(prompts, size["judge"]),
    )  # fmt: skip


def share_of(true, kl, world):
    """The gain in true reward as a share of what is possible at that KL; nan beyond the frontier's
    end, or where nothing can be gained."""
    possible = np.interp(kl, *world.best.T) - world.start
    if kl > world.best[-1, 0] or possible <= 0:
        return math.nan
    return (true - world.start) / possible


def judge(policy, world, rng):
    """(true reward, gain the reward model believes in, KL, three names), of fresh samples."""
    drawn = sample(policy, world.judged, rng)
    logits, reference_logits = (places_forward(p, drawn)[0] for p in (policy, world.reference))
    kl = kl_divergence(logits, reference_logits).sum(1).mean()  # both are 0 after the end
    believed = learned_rewards(world.model, drawn).mean() - world.start_learned
    return true_rewards(drawn).mean(), believed, kl, " ".join(decode(drawn[:3]))


def train(method, setting, world, rng, **changes):
    """What a row of the table judges: (policy, tokens drawn, seconds with the reward model's)."""
    options = {"reference": world.reference, "rng": rng, **METHODS[method][1], **changes}
    steps, verified = world.size["steps"], method == "PPO, verified"
    reward = true_rewards if verified else functools.partial(learned_rewards, world.model)
    begin = time.perf_counter()
    if "loss" in options:
        options |= {"chosen": world.pairs[0], "rejected": world.pairs[1]}
        policy, drawn = train_on_pairs(steps=steps, beta=setting, **options), 0
    elif method == "imitate best":
        options["prompts"] = rng.choice(world.prompts, world.size["pairs"])
        policy, drawn = imitate_best(steps=steps, n=setting, reward=reward, **options)
    else:
        options |= {"prompts": world.prompts, "iterations": world.size["iterations"]}
        policy, drawn = train_rl(beta=setting, reward=reward, **options)
    seconds = time.perf_counter() - begin
    if not (verified or "loss" in options):
        seconds += world.seconds
    return policy, drawn, seconds


def report_methods(world, rng, fast):
    """The table, and what follows from it."""
    say("\nMETHODS  judged by the true reward. Believed: the gain in learned reward. KL: in nats.")
    say("Share: of the gain possible at that KL, where that is known. Tokens: drawn to learn.")
    say("Seconds: with the reward model's, where one is used.\n")
    say("method         β or n   true believed    KL   share   tokens  seconds  three names")
    rows = {method: [] for method in METHODS}
    for method, (settings, _) in METHODS.items():
        for setting in settings[-1:] if fast else settings:
            policy, tokens, seconds = train(method, setting, world, rng)
            true, believed, kl, names = judge(policy, world, rng)
            share = 100 * share_of(true, kl, world)
            rows[method].append((setting, true, believed, share))
            shown = f"{share:5.0f} %" if math.isfinite(share) else "      -"
            say(f"{method:14s}{setting:7g}{true:7.2f}{believed:+9.2f}{kl:6.2f} {shown}", end="")
            say(f"{tokens:9d}{seconds:9.1f}  {names}")
    say("\nMean shares on this seed:")
    for one, other, question in (
        ("DPO", "PPO", "Is it worth while to fit a reward first?"),
        ("GRPO, k3", "GRPO, KL paid", "May the price of KL stand in the loss?"),
        ("PPO", "PPO, verified", "What does it cost to guess the reward?"),
    ):
        finite = ([row[3] for row in rows[m] if math.isfinite(row[3])] for m in (one, other))
        a, b = (np.mean(shares or math.nan) for shares in finite)
        verdict = "is ahead of" if a > b + 2 else "is behind" if a < b - 2 else "is level with"
        if math.isfinite(a + b):
            say(f"{question} {one} ({a:.0f} %) {verdict} {other} ({b:.0f} %).")
    beta, true, believed, _ = rows["PPO"][-1]
    top, at = max((row[1], row[0]) for row in rows["PPO"])
    say(f"At β = {beta:g} PPO believes in a gain of {believed:.1f}; the truth goes from", end="")
    say(f" {world.start:.1f} to {true:.1f}.")
    if true < top - 0.5:
        say(f"At β = {at:g} it went to {top:.1f}: the learned reward is over-optimised.")
    say(f"With the truth as reward it goes to {rows['PPO, verified'][-1][1]:.1f}.")


def report(args):
    """The world and its reward model, then every method."""
    tokens = encode(Path(args.names).read_text(encoding="utf-8").split())
    check_number(f"number of names in {args.names}", len(tokens), 20)
    rng = np.random.default_rng(args.seed)
    say(f"THE WORLD  {len(tokens)} names. Training a reference and a reward model ...")
    world = make_world(tokens, FAST if args.fast else FULL, rng)
    logp, mask, _ = policy_forward(world.reference, world.held)
    names = decode(sample(world.reference, world.judged[:6], rng))
    say(f"The reference has {-logp.sum() / mask.sum():.2f} nats a held-out token.", end="")
    say(f" It writes names of true reward {world.start:.2f}, such as")
    say("   " + "   ".join(f"{name} {true_reward(name):+.1f}" for name in names))
    chosen, rejected = prefer(world.reference, rng.choice(world.prompts, 2000), rng)
    gap = learned_rewards(world.model, chosen) - learned_rewards(world.model, rejected)
    right = 50 + 50 * np.sign(gap).mean()  # a tie counts half
    bayes = 100 * sigmoid(np.abs(true_rewards(chosen) - true_rewards(rejected))).mean()
    drawn = sum(response_mask(side).sum() for side in world.pairs)
    say(f"\nREWARD MODEL  After {len(world.pairs[0])} choices ({drawn} tokens) it predicts", end="")
    say(f" {right:.1f} % of others; the truth itself, {bayes:.1f} %.")
    report_methods(world, rng, args.fast)


# %% Your own preferences
# The command `dpo` trains a checkpoint on pairs of answers. The capstone gives the mean of -log π
# over an answer's tokens, and its gradient in all weights. No more is needed: DPO's gradient is a
# weighted sum of such gradients, and its weights are the slopes that dpo_loss returns,
#   ∂L/∂θ = Σ over pairs of (∂L/∂log π(y_w)) ∇log π(y_w) + (∂L/∂log π(y_l)) ∇log π(y_l).
def read_pairs(path, text, tokenizer, end):
    """[(chosen, rejected)] from lines {"prompt": ..., "chosen": ..., "rejected": ...}, where each
    answer is (idx, targets), (1, T), -1 for what is ignored; ValueError names the damaged lines."""
    pairs, damaged = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            prompt, *answers = (entry[field] for field in ("prompt", "chosen", "rejected"))
            if not all(isinstance(words, str) for words in (prompt, *answers)):
                raise TypeError("prompt, chosen and rejected must be texts")
            if answers[0] == answers[1]:
                raise ValueError("chosen and rejected are the same")
            start, pair = [*tokenizer.encode(prompt, add_special_tokens=True)], []
            if not start:
                raise ValueError("the prompt is empty, and the model has no token to begin with")
            for answer in answers:
                ids = np.array([*start, *tokenizer.encode(answer), *end])
                targets = ids[1:].copy()
                targets[: len(start) - 1] = -1
                pair.append((ids[None, :-1], targets[None]))
            pairs.append(pair)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            damaged.append(f"line {number} ({error!r:.100})")
    if damaged:
        found = f"{len(damaged)} damaged lines, such as {', '.join(damaged[:4])}"
        raise ValueError(f"{path}: expected prompt, chosen and rejected in every line; {found}")
    return pairs


def answers_logprob(model, pairs):
    """log π(y|x) of every answer, (N, 2)."""
    both = [[-model.loss(*answer) * (answer[1] >= 0).sum() for answer in pair] for pair in pairs]
    if not np.isfinite(both).all():
        raise ValueError("the model's losses are no longer finite: lower --learning_rate")
    return np.array(both)


def dpo_step(model, pairs, reference, beta):
    """The mean DPO loss of pairs, given log π_ref (N, 2), and its gradient, like model.flat."""
    logps = answers_logprob(model, pairs)
    loss, dchosen, drejected, _, _ = dpo_loss(*logps.T, *reference.T, beta)
    gradient = np.zeros_like(model.flat)
    for pair, *weights in zip(pairs, dchosen, drejected):
        for (idx, targets), weight in zip(pair, weights):
            length = (targets >= 0).sum()  # the model's loss is -log π(y|x) / length
            _, grads = model.loss_and_grads(idx, targets, scale=-float(weight * length))
            gradient += grads.flat
    return loss, gradient


def drawn_kl(model, base, prompts, end, rng, longest=32):
    """KL(π‖π_ref) in nats of π's answers to prompts (1, T): one is drawn for each, and the exact KL
    of its tokens' distributions summed, of at most `longest` tokens; the mean over the prompts."""
    kls = []
    for prompt in prompts:
        answer, room = [], model.config.block_size - prompt.shape[1]
        for token in model.stream(prompt, min(longest, room + 1), seed=rng):
            answer.append(int(token[0]))
            if answer[-len(end) :] == end:
                break
        idx = np.concatenate([prompt, [answer[:-1]]], 1).astype(np.int64)
        logits, base_logits = (m.logits(idx)[0, prompt.shape[1] - 1 :] for m in (model, base))
        kls.append(kl_divergence(logits, base_logits).sum())
    return float(np.mean(kls))


def tell(line):
    """Print a line. Where nobody reads any more, training goes on and saves what it has learned."""
    try:
        print(line, flush=True)
    except OSError:
        drop_unwritten()


def tell_held_out(model, base, pairs, reference, beta, end, rng):
    """Rewards, accuracy and KL on pairs that were not learned from."""
    logps = answers_logprob(model, pairs)
    loss, _, _, chosen, rejected = dpo_loss(*logps.T, *reference.T, beta)
    margins = chosen - rejected
    right = 50 + 50 * np.sign(margins).mean()  # a tie counts half
    prompts = [idx[:, : (targets < 0).sum() + 1] for (idx, targets), _ in pairs[:16]]
    kl = drawn_kl(model, base, prompts, end, rng)
    tell(f"held out: loss {loss:.3f}, {right:.0f} % of pairs in the right order,")
    tell(f"rewards {chosen.mean():+.3f} and {rejected.mean():+.3f}, margin {margins.mean():+.3f};")
    tell(f"KL from the base {kl:.3f} nats in an answer's first tokens, up to 32")
    if chosen.mean() < 0:
        tell("The chosen answers, too, have become less likely: try a lower --learning_rate.")


def dpo_command(args):
    """Train a checkpoint on preference pairs and save it."""
    try:
        import capstone_gpt as gpt
    except ImportError:
        raise ValueError("dpo needs capstone_gpt.py beside this file") from None
    out, rng = Path(args.out), np.random.default_rng(args.seed)
    if out.exists():
        raise ValueError(f"--out {out} exists already; expected the name of a new directory")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        (base, tokenizer), (model, _) = (gpt.load(gpt.checkpoint_of(args.base)) for _ in range(2))
        _, ends = gpt.bos_and_eos(base)
        end = [*(ends[:1] or tokenizer.encode("\n\n"))]
        read = read_pairs(args.pairs, "".join(gpt.stream_text(args.pairs)), tokenizer, end)
        T = base.config.block_size
        pairs = [pair for pair in read if max(idx.shape[1] for idx, _ in pair) <= T]
        cut = min(len(pairs) - 1, math.ceil(0.9 * len(pairs)))
        if cut < 1:
            raise ValueError(f"{args.pairs}: expected two pairs or more that fit, one held out")
        what = f"the token {ends[0]}" if ends else "a blank line, as the model has no end token"
        tell(f"Every answer ends with {what}.")
        tell(f"{len(read) - len(pairs)} pairs are left out, longer than {T} tokens. {cut} are")
        tell(f"learned from, {len(pairs) - cut} are held out. The loss begins at log 2 = 0.693.")
        reference = answers_logprob(base, pairs)  # (N, 2)
        optimizer, rate = gpt.AdamW(model.params, weight_decay=0.0), args.learning_rate
        for step in range(args.steps):
            pick = rng.integers(0, cut, args.batch_size)
            loss, gradient = dpo_step(model, [pairs[i] for i in pick], reference[pick], args.beta)
            now = gpt.warmup_cosine(step, rate, rate / 10, args.steps // 10, args.steps)
            optimizer.step(gradient, float(np.linalg.norm(gradient)), now)
            if (step + 1) % max(1, args.steps // 10) == 0:
                tell(f"step {step + 1} of {args.steps}: loss {loss:.3f}")
        tell_held_out(model, base, pairs[cut:], reference[cut:], args.beta, end, rng)
        part = Path(folder) / out.name
        model.save_pretrained(part)
        os.replace(part, out)
    tell(f"Saved in {out}.")


def drop_unwritten():
    """Forget what stdout cannot take, so that Python's own flush at the end does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:  # a closed pipe, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, whatever it is that they quote."""

    def error(self, message):
        line = " ".join(f"stage10_dpo.py: error: {message}".split())
        self.exit(2, f"{line:.400}\n")


def build_parser():
    """The command line: without a command the report, else dpo."""
    parser = Parser("stage10_dpo.py", description="Stage 10: from preferences to policies.")
    parser.set_defaults(run=report)
    parser.add_argument("--fast", action="store_true", help="a smoke run of every part, 2 s")
    parser.add_argument("--seed", type=int, default=0, help="fixes every random choice [0]")
    data = Path(__file__).resolve().parent / "data" / "names.txt"
    parser.add_argument("--names", default=data, help="a file of lower-case names, one a line")
    commands = parser.add_subparsers(title="a command for a model of your own")
    text = "train a model on pairs of answers, one chosen and one rejected"
    dpo = commands.add_parser("dpo", help=text, description=text)
    dpo.set_defaults(run=dpo_command)
    add = dpo.add_argument
    add("--base", required=True, help="a checkpoint of the capstone or transformers (GPT-2, Llama)")
    add("--pairs", required=True, help=".jsonl with prompt, chosen and rejected in every line")
    add("--out", required=True, help="a new directory for the trained model")
    add("--beta", type=float, default=0.1, help="the price of distance from the base [0.1]")
    add("--steps", type=int, default=100, help="updates [100]")
    add("--batch_size", type=int, default=8, help="pairs an update [8]")
    add("--learning_rate", type=float, default=1e-5, help="the highest [1e-5]")
    add("--seed", type=int, default=argparse.SUPPRESS, help="fixes every random choice [0]")
    return parser


def main(argv=None):
    """Run the report or the command; see --help."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it was closed before the start
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        for name, value in vars(args).items():
            if type(value) in (int, float):
                check_number(f"--{name}", value, 0, 2**63 - 1, above=name != "seed")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named
            args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # whoever was reading has seen enough
    except KeyboardInterrupt:
        parser.exit(130, "\n")
    except (OSError, ValueError, MemoryError) as error:
        parser.error(str(error) or "there is not enough memory")
    finally:
        drop_unwritten()


# %% What to take away
# - A choice is a noisy comparison of rewards: P = σ(r_w - r_l). Only differences can be learned.
# - The best policy at price β is π* ∝ π_ref e^{r/β}; compare methods at equal distance from π_ref.
# - A check you can run beats any reward you can guess: verify where you can, PPO or GRPO on that.
# - Only pairs? DPO. Only marks? KTO. A reward model? Best-of-n, imitating the best, then PPO.

# %% Common mistakes
# 1. Scoring the prompt or the padding: losses change with the padding. See `places_forward`'s mask.
# 2. Leaving out END: responses grow, as stopping is never rewarded. The same mask includes it.
# 3. A reference that is the policy and not a copy: h stays 0, the loss log 2. See `train_on_pairs`.
# 4. Sums in ORPO and SimPO: 1 - P rounds to 1 and short responses win. `length` divides them.
# 5. Judging by the learned reward: it rises while the text decays. `judge` asks the truth.
# 6. old_logp renewed after each update: ρ is 1, nothing is clipped. `train_rl` computes it once.
# 7. One β for all: it means different things. Compare at equal KL, as `share_of` does.

# %% Exercises
# They are in exercises/stage10.py, and `python exercises` checks them.
#  1. ★ (by hand) What a majority says
#  2. ★ (by hand) Who deserves the reward?
#  3. ★ (explain) No brake, and no accident
#  4. ★★ (derive) The best policy that stays near
#  5. ★★ (implement) DPO
#  6. ★★ (find the bug) Clipped on the wrong side, too
#  7. ★★ (derive) When some labels are wrong
#  8. ★★ (derive) Best of sixteen
#  9. ★★ (measure) Two ways to estimate a distance
# 10. ★★★ (implement) A token's say
# 11. ★★★ (derive) The calmest baseline
# 12. ★★ (research) A verifier that errs
# 13. ★★★ (project) Without the truth

# %% Where this leads
# These losses align the models in daily use: InstructGPT's heirs with PPO, many open models with
# DPO, reasoning models with GRPO and verifiers. The capstone trains a GPT to do it to.

if __name__ == "__main__":
    main()
