# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 10: from preferences to policies: reward models, PPO, GRPO, DPO and their relatives.

The question: a language model imitates its training text. How do we make it write what people
prefer, when nobody has a formula for "better", but anybody can say which of two answers they like?

The answer: treat every choice as a noisy comparison of two hidden rewards (Bradley-Terry). Either
fit that reward and raise it by trial and error while staying near the model we started from (PPO,
GRPO), or notice that the best policy for a reward *contains* that reward and fit the policy to the
choices directly (DPO, IPO, KTO, ORPO, SimPO). To judge them we work in a world whose true reward we
wrote ourselves and hide from every method: first names. The prompt x is the first letter, the
response y the rest, `true_reward` an imaginary parent's taste, and the best possible trade of
reward against distance can be computed, and drawn.

The map:  1 the world, 2 a small language model, 3 Bradley-Terry and the reward model, 4 KL, 5 the
optimal policy, 6 best-of-n, 7 policy gradient and GAE, 8 PPO, 9 GRPO, 10 DPO, 11 KTO, ORPO, SimPO

    python stage10_dpo.py         every method judged by the truth, the frontier, over-optimisation
    python stage10_dpo.py --fast  every part in two seconds, too small to mean anything

Papers: Schulman et al. 2016, High-Dimensional Continuous Control Using GAE; Schulman et al. 2017,
Proximal Policy Optimization; Ouyang et al. 2022, Training LMs to Follow Instructions; Gao et al.
2023, Scaling Laws for Reward Model Overoptimization; Rafailov et al. 2023, Direct Preference
Optimization; Azar et al. 2024, A General Theoretical Paradigm (IPO); Ethayarajh et al. 2024, KTO;
Hong et al. 2024, ORPO; Meng et al. 2024, SimPO; Shao et al. 2024, DeepSeekMath (GRPO).
"""

import argparse
import functools
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# %% 1. The world: names, and a taste that nobody is told
# A name is a row of tokens: 1-26 for a-z, 0 for "the end" and for the empty places after it. Column
# 0 is the prompt x (the first letter), columns 1.. the response y, at most LONGEST tokens of it.

END, VOCABULARY, LONGEST = 0, 27, 15


def encode(names):
    """Names (1 to LONGEST letters a-z) -> tokens (B, 1 + LONGEST), padded with END."""
    tokens = np.zeros((len(names), 1 + LONGEST), dtype=np.int64)
    for row, name in zip(tokens, names):
        fits = isinstance(name, str) and 1 <= len(name) <= LONGEST
        if not fits or not all("a" <= letter <= "z" for letter in name):
            raise ValueError(f"name {name!r}: expected 1 to {LONGEST} letters from a to z")
        row[: len(name)] = [ord(letter) - 96 for letter in name]
    return tokens


def check_tokens(tokens, ndim=2):
    """tokens as int64; ValueError unless they are an ndim-dimensional array of integers 0-26."""
    tokens = np.asarray(tokens)
    if tokens.ndim != ndim or tokens.dtype.kind not in "iu":
        found = f"{tokens.dtype} {tokens.shape}"
        raise ValueError(f"tokens are {found}: expected integers in {ndim} dimensions")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < VOCABULARY:
        found = f"{tokens.min()}..{tokens.max()}"
        raise ValueError(f"tokens {found}: expected tokens from 0 to {VOCABULARY - 1}")
    return tokens.astype(np.int64)


def decode(tokens):
    """Tokens (B, 1 + n) -> names; the inverse of encode."""
    tokens = check_tokens(tokens)
    return ["".join(chr(96 + t) for t in row if t != END) for row in tokens.tolist()]


@functools.cache
def true_reward(name):
    """The hidden taste: about six letters, soft, open at the end, nothing mumbled or crowded.

    +1.0 for each soft consonant (l m n r), but only for the first three
    +1.5 for a vowel (a e i o u) at the end
    -0.6 for each letter more or fewer than six
    -1.5 for each use of a letter beyond its second
    -1.5 for each three consonants, or three vowels, in a row
    """
    if not name:
        raise ValueError("name '': expected at least one letter")
    soft = min(3, sum(name.count(letter) for letter in "lmnr"))
    mumbled = sum(max(0, name.count(letter) - 2) for letter in set(name))
    vowel = [letter in "aeiou" for letter in name]
    crowded = sum(a == b == c for a, b, c in zip(vowel, vowel[1:], vowel[2:]))
    return soft + 1.5 * vowel[-1] - 0.6 * abs(len(name) - 6) - 1.5 * mumbled - 1.5 * crowded


def true_rewards(tokens):
    """true_reward of every row: tokens (B, 1 + n) -> (B,)."""
    return np.array([true_reward(name) for name in decode(tokens)])


# %% 2. A small language model, its backward by hand
# Stage 3's neural n-gram: the CONTEXT tokens before a place are looked up in a table E, laid side
# by side, and sent through one tanh layer. With one output instead of 27 the same body serves as
# reward model and as critic (in InstructGPT all three are copies of one transformer).
#   x = E[c₁] ⊕ … ⊕ E[c_K]      h = tanh(x W₁ + b₁)      z = h W₂ + b₂
# Backward, from dz = ∂L/∂z, with tanh' = 1 - tanh² and da = ∂L/∂(x W₁ + b₁):
#   dW₂ = hᵀ dz    db₂ = Σ dz    da = (dz W₂ᵀ)(1 - h²)    dW₁ = xᵀ da    db₁ = Σ da    dx = da W₁ᵀ
#   dE[v] = the sum of dx over all places that hold token v = (one-hot tokens)ᵀ dx.

CONTEXT, EMBEDDING, HIDDEN = 8, 10, 64


def new_network(rng, n_out, dtype=np.float32):
    """Fresh parameters for the body above with n_out outputs."""
    E, wide = rng.normal(0, 0.3, (VOCABULARY, EMBEDDING)).astype(dtype), CONTEXT * EMBEDDING
    W1 = rng.normal(0, wide**-0.5, (wide, HIDDEN)).astype(dtype)
    W2 = rng.normal(0, 0.1 * HIDDEN**-0.5, (HIDDEN, n_out)).astype(dtype)
    return {"E": E, "W1": W1, "b1": np.zeros(HIDDEN, dtype), "W2": W2, "b2": np.zeros(n_out, dtype)}


def network_forward(params, contexts):
    """contexts (N, CONTEXT) of tokens -> (z (N, n_out), cache)."""
    contexts = check_tokens(contexts)
    x = params["E"][contexts].reshape(len(contexts), CONTEXT * EMBEDDING)  # (N, K·E)
    h = np.tanh(x @ params["W1"] + params["b1"])  # (N, HIDDEN)
    return h @ params["W2"] + params["b2"], (params, contexts, x, h)


def network_backward(dz, cache):
    """dz (N, n_out) -> gradients by parameter name."""
    params, contexts, x, h = cache
    da = (dz @ params["W2"].T) * (1 - h * h)  # (N, HIDDEN)
    dx = (da @ params["W1"].T).reshape(-1, EMBEDDING)  # (N·K, E)
    one_hot = (np.arange(VOCABULARY)[:, None] == contexts.reshape(-1)).astype(dx.dtype)
    return {"E": one_hot @ dx, "W1": x.T @ da, "b1": da.sum(0), "W2": h.T @ dz, "b2": dz.sum(0)}


# Responses differ in length, so a batch carries a mask: True on y's tokens up to and with its END.
# Only those places go through the network; the ones after stay 0 and receive no gradient.
def places_forward(params, tokens):
    """The network at every place of every response: tokens (B, 1 + n) -> (z (B, T, n_out), mask
    (B, T), cache), T being the batch's longest response with its END."""
    tokens = check_tokens(tokens)
    mask = np.ones((len(tokens), tokens.shape[1] - 1), dtype=bool)
    mask[:, 1:] = np.logical_and.accumulate(tokens[:, 1:-1] != END, axis=1)
    mask = mask[:, : int(mask.sum(1).max())]  # (B, T)
    padded = np.pad(tokens[:, : mask.shape[1]], ((0, 0), (CONTEXT - 1, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT, axis=1)  # (B, T, K)
    rows, cache = network_forward(params, windows[mask])
    z = np.zeros((*mask.shape, rows.shape[1]), dtype=rows.dtype)
    z[mask] = rows
    return z, mask, (mask, cache)


def places_backward(dz, cache):
    """dz (B, T, n_out) -> gradients by parameter name."""
    mask, inner = cache
    return network_backward(dz[mask].astype(inner[-1].dtype), inner)


# log π(y|x) = Σ_t log π(y_t|x, y_<t), each z[y] - log Σ_v exp z_v with ∂/∂z_v = 1[v = y] - π(v).
def log_softmax(z):
    """log softmax over the last axis, shifted by the largest entry so that nothing overflows."""
    z = np.asarray(z) - np.max(z, -1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def sequence_logprob(logits, tokens, mask=None, per_token=False):
    """log π(y|x) in nats, (B,); with per_token its terms (B, T), 0 outside the mask.

    logits (B, T, V), place t predicting tokens[:, t]; tokens, mask (B, T), mask all ones if None.
    ValueError on shapes that do not match, on nan, on a place where no token is possible (logits of
    nothing but -inf), and on tokens outside the vocabulary."""
    logits, tokens = np.asarray(logits), np.asarray(tokens)
    mask = np.ones(tokens.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if logits.ndim != 3 or not logits.shape[:2] == tokens.shape == mask.shape:
        shapes = logits.shape, tokens.shape, mask.shape
        raise ValueError(f"logits, tokens, mask {shapes}: expected (B, T, V), (B, T), (B, T)")
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens are {tokens.dtype}: expected integers")
    possible = np.isfinite(logits.max(-1))  # nan, +inf and nothing but -inf have no softmax
    if not possible.all() or (tokens < 0).any() or (tokens >= logits.shape[2]).any():
        seen = (
            f"tokens {tokens.min()}..{tokens.max()}, {(~possible).sum()} rows of logits nan or inf"
        )
        raise ValueError(f"{seen}: expected tokens from 0 to {logits.shape[2] - 1} and no nan")
    terms = np.take_along_axis(log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
    return np.where(mask, terms, 0) if per_token else np.where(mask, terms, 0).sum(-1)


def policy_forward(policy, tokens):
    """Tokens (B, 1 + n) -> (log π of every response token (B, T), mask (B, T), cache)."""
    tokens = check_tokens(tokens)
    logits, mask, inner = places_forward(policy, tokens)
    targets = tokens[:, 1 : 1 + mask.shape[1]]
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
        logits, _ = network_forward(policy, padded[alive, t - CONTEXT : t])
        # argmax(z + Gumbel noise) is an exact draw from softmax(z): section 3 proves it for two.
        padded[alive, t] = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
        alive = alive[padded[alive, t] != END]
    return padded[:, CONTEXT - 1 :]


class Adam:
    """Adam with weight decay and clipping (stage 4); 20 steps of warmup, then a fall to 0."""

    def __init__(self, params, learning_rate, steps, weight_decay=0.0):
        self.params, self.rate, self.steps, self.decay = params, learning_rate, steps, weight_decay
        self.t, self.m, self.v = 0, dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)

    def step(self, grads):
        """Update the parameters in place. ValueError, naming the step, for a slope not finite."""
        self.t += 1
        rate = self.rate * min(1, self.t / 20) * (1 - (self.t - 1) / self.steps)
        norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
        if not math.isfinite(norm):
            found = f"the gradient's norm is {norm} at step {self.t}"
            raise ValueError(f"{found}: expected a finite one; lower the learning rate")
        for name, p in self.params.items():
            g = grads[name] / max(1.0, norm)
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.v[name] = 0.99 * self.v[name] + 0.01 * g * g
            m, v = self.m[name] / (1 - 0.9**self.t), self.v[name] / (1 - 0.99**self.t)
            p -= rate * (m / (np.sqrt(v) + 1e-8) + self.decay * p)


def pretrain(tokens, steps, rng):
    """The reference π_ref: maximum likelihood on real names, as in every stage before this one."""
    steps, policy = check_count("steps", steps), new_network(rng, VOCABULARY)
    optimizer = Adam(policy, 4e-3, steps, weight_decay=0.02)
    for _ in range(steps):
        logp, mask, cache = policy_forward(policy, tokens[rng.integers(0, len(tokens), 128)])
        optimizer.step(policy_backward(np.full_like(logp, -1 / mask.sum()), cache))
    return policy


# %% 3. Bradley-Terry and the reward model
# Give each response a reward r(x, y), and let each look at it add Gumbel noise ε, whose
# distribution function is F(ε) = exp(-e^{-ε}), density e^{-ε} exp(-e^{-ε}). The larger r + ε wins:
#   P(y_w ≻ y_l) = P(ε_l < ε_w + d) = ∫ F(ε + d) e^{-ε} exp(-e^{-ε}) dε        with d = r_w - r_l
#                = ∫₀^∞ exp(-u e^{-d}) exp(-u) du = 1/(1 + e^{-d}) = σ(d)       by u = e^{-ε}.
# Two facts to keep: only differences within one prompt matter, so a reward is known only up to a
# constant c(x); and even the true reward predicts a choice only with probability max(σ(d), σ(-d)).
# The mean of that is the Bayes limit: no reward model can score higher on noisy pairs.
# Maximum likelihood: L = -mean log σ(d). As log σ(d) = -log(1 + e^{-d}) has slope
# e^{-d}/(1 + e^{-d}) = σ(-d), ∂L/∂r_w = -σ(-d)/B and ∂L/∂r_l = σ(-d)/B: misjudged pairs pull.
def log_sigmoid(x):
    """log σ(x) = -log(1 + e⁻ˣ), without overflow on either side."""
    return -np.logaddexp(0, -1.0 * np.asarray(x))  # 1.0: an unsigned 3 has no -3


def sigmoid(x):
    """σ(x) = 1/(1 + e⁻ˣ)."""
    return np.exp(log_sigmoid(x))


def checked(**arrays):
    """The arrays as floats; ValueError unless they share one shape, are not empty, and finite."""
    found = {}
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} is {array.dtype}: expected numbers")
        found[name] = array * 1.0
    first = next(iter(found))
    for name, a in found.items():
        if a.size == 0:
            raise ValueError(f"{name} is empty, shape {a.shape}: expected at least one entry")
        if a.shape != found[first].shape:
            raise ValueError(f"{name} has shape {a.shape}: expected {first}'s {found[first].shape}")
        if not np.isfinite(a).all():
            raise ValueError(f"{name} contains {a[~np.isfinite(a)][0]}: expected finite numbers")
    return list(found.values())


def check_range(name, value, low, high=math.inf, above=False):
    """ValueError unless value is finite and low <= value <= high (low < value when above)."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real:
        raise ValueError(f"{name} = {value!r}: expected a number")
    if not (low <= value <= high and math.isfinite(value)) or (above and value == low):
        top = "" if high == math.inf else f" and <= {high}"
        raise ValueError(f"{name} = {value}: expected a number {'>' if above else '>='} {low}{top}")


def check_count(name, value):
    """value as an int; ValueError unless it is a whole number of at least 1."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(f"{name} = {value!r}: expected a whole number >= 1")
    return int(value)


def reward_loss(chosen_rewards, rejected_rewards):
    """Bradley-Terry on rewards (B,): (mean loss in nats, dchosen, drejected). ValueError on empty
    batches, shapes that differ, nan."""
    r_w, r_l = checked(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    d = r_w - r_l
    pull = sigmoid(-d) / d.size
    return float(-log_sigmoid(d).mean()), -pull, pull


def learned_rewards(params, tokens):
    """r_φ(x, y), the one-output network summed over y's places: tokens (B, 1 + n) -> (B,)."""
    return places_forward(params, tokens)[0].sum((1, 2))


def train_reward_model(chosen, rejected, steps, rng):
    """Fit r_φ to preference pairs, tokens (N, 1 + n) each."""
    steps, params = check_count("steps", steps), new_network(rng, 1)
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
    first = rng.random(len(a)) < sigmoid(true_rewards(a) - true_rewards(b))
    return np.where(first[:, None], a, b), np.where(first[:, None], b, a)


# %% 4. The KL divergence: how far has a policy moved?
# KL(p‖q) = Σ_v p(v) log(p(v)/q(v)), the nats lost by coding p's samples with q's code. Never
# negative: log u ≤ u - 1, so -KL = Σ p log(q/p) ≤ Σ p (q/p - 1) = 0, with equality only at q = p.
# For sequences log π(y) = Σ_t log π(y_t|y_<t), hence
#   KL(π‖π_ref) = E_{y~π} Σ_t log(π/π_ref)(y_t|y_<t) = E_{y~π} Σ_t KL(π(·|y_<t) ‖ π_ref(·|y_<t)):
# the last form needs samples only for the path and sums each token's distribution exactly.
# From log-probabilities of samples of p alone, with d = log q - log p (Schulman 2020, a blog post):
#   k1 = -d            E[k1] = KL, but single values may be negative
#   k2 = d²/2          biased, little when p ≈ q
#   k3 = eᵈ - 1 - d    E[eᵈ] = Σ p q/p = 1, so E[k3] = KL too; eᵈ ≥ 1 + d makes each value ≥ 0
def kl_divergence(logp, logq, kind="exact"):
    """KL(p‖q) in nats: "exact" from log-probabilities or logits (..., V) of distributions -> (...);
    "k1", "k2", "k3" from the log-probabilities p and q give to samples of p -> one estimate each.
    ValueError on unknown kinds, shapes that differ, nan, empty input."""
    logp, logq = checked(logp=logp, logq=logq)
    if kind == "exact":
        logp, logq = log_softmax(logp), log_softmax(logq)
        return (np.exp(logp) * (logp - logq)).sum(-1)
    d = logq - logp
    kinds = {"k1": -d, "k2": d * d / 2, "k3": np.expm1(d) - d}
    if kind not in kinds:
        raise ValueError(f"kind = {kind!r}: expected 'exact', 'k1', 'k2' or 'k3'")
    return kinds[kind]


# %% 5. The optimal policy
# A policy that chases reward and nothing else leaves the language behind (the demonstration shows
# how). So charge a price β for distance from the reference. For each prompt, maximise
#   J(π) = E_{y~π} r(y) - β KL(π‖π_ref) = -β E_{y~π} log [ π(y) / (π_ref(y) e^{r(y)/β}) ].
# Dividing π_ref e^{r/β} by its sum Z = Σ_y π_ref(y) e^{r(y)/β} makes it a distribution, so
#   π*(y) = π_ref(y) e^{r(y)/β} / Z      and      J(π) = -β KL(π‖π*) + β log Z.
# β log Z does not depend on π; KL ≥ 0, and 0 only at π*. So π* is the optimum, whatever r is. We
# cannot sum over all y, but M samples of π_ref stand for π_ref with 1/M each, and π* gives them the
# weights w = softmax(r/β). Then E_π*[r] = Σ w_i r_i and KL(π*‖π_ref) = Σ w_i log(M w_i). Sweeping β
# draws the frontier: a policy with more reward at the same KL would beat J's optimum at that β.
def frontier(rewards, judged, prompt_weights, betas):
    """π* for rewards (P, M), M samples for each prompt: one row (KL, mean `judged`) per beta."""
    (rewards,), rows = checked(rewards=rewards), []
    for beta in betas:
        check_range("beta", beta, 0, above=True)
        logw = log_softmax(rewards / beta)  # (P, M)
        terms = np.exp(logw) * np.stack([logw + math.log(rewards.shape[1]), judged])  # (2, P, M)
        rows.append(terms.sum(-1) @ prompt_weights)
    return np.array(rows)


# %% 6. Best-of-n
# The simplest improvement trains nothing: draw n responses, keep the one the reward model likes
# most. Let u ∈ (0, 1) be the share of π_ref's responses with a lower reward. u is uniform, the best
# of n lies below u with probability uⁿ, so its density against π_ref is n uⁿ⁻¹. Without ties,
#   KL = ∫₀¹ n uⁿ⁻¹ log(n uⁿ⁻¹) du = log n + (n-1) ∫₀¹ n uⁿ⁻¹ log u du = log n - (n-1)/n,
# since ∫₀¹ n uⁿ⁻¹ log u du = [uⁿ log u]₀¹ - ∫₀¹ uⁿ⁻¹ du = -1/n. Ties only make it smaller (Beirami
# et al. 2024). Distance grows like log n, cost like n.
def best_of_n(learned, judged, n):
    """Keep the best by `learned` of each n among (P, M) samples: (mean `judged` (P,), KL bound)."""
    n, (learned, judged) = check_count("n", n), checked(learned=learned, judged=judged)
    if learned.ndim != 2 or learned.shape[1] % n:
        raise ValueError(f"samples {learned.shape}: expected (P, M), and n = {n} to divide M")
    best = learned.reshape(len(learned), -1, n).argmax(-1)[..., None]
    kept = np.take_along_axis(judged.reshape(len(judged), -1, n), best, -1)
    return kept.mean((1, 2)), math.log(n) - (n - 1) / n


# %% 7. Policy gradient, baseline, advantage
# To raise J(π) = E_{y~π} R(y) we need its gradient, though sampling cannot be differentiated. As
# ∇π = π ∇log π (REINFORCE, Williams 1992),
#   ∇J = Σ_y R(y) ∇π(y) = E_{y~π} [R(y) ∇log π(y)]:
# make each sample likelier in proportion to its reward. With R = r - β log(π/π_ref) the R inside
# depends on π too, but that adds only -β E[∇log π] = 0, because E_π[∇log π] = Σ ∇π = ∇1 = 0.
# The same zero allows a baseline: for any b that does not depend on the token drawn, R - b has the
# same mean gradient and, with b near the expected R, far less noise. Token t cannot change rewards
# before it, so the natural baseline is V_t, a critic's guess of what is still to come. What remains
# is the advantage A_t: how much better than expected did it go?
# Two guesses of A_t: wait for the end (unbiased, noisy), or look one step ahead and trust the
# critic, δ_t = r_t + γ V_{t+1} - V_t (calm, biased). Looking k steps ahead, δs telescope:
#   A⁽ᵏ⁾_t = r_t + … + γᵏ⁻¹ r_{t+k-1} + γᵏ V_{t+k} - V_t = Σ_{l<k} γˡ δ_{t+l}.
# GAE averages all k with weights (1-λ) λᵏ⁻¹, which sum to 1. δ_{t+l} is in every A⁽ᵏ⁾ with k > l,
# and (1-λ) Σ_{k>l} λᵏ⁻¹ = λˡ, so A_t = Σ_l (γλ)ˡ δ_{t+l} = δ_t + γλ A_{t+1}.
def gae(rewards, values, gamma, lam):
    """Generalised advantage estimation along the last axis: (advantages, returns), (..., T) each.

    rewards (..., T); values (..., T), or (..., T + 1) with the value of the state after the end;
    returns = advantages + values. ValueError on shapes, nan, and gamma or lam outside [0, 1]."""
    check_range("gamma", gamma, 0, 1)
    check_range("lam", lam, 0, 1)
    (rewards,), (values,) = checked(rewards=rewards), checked(values=values)
    if values.shape == rewards.shape and rewards.ndim:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    if not rewards.ndim or values.shape != (*rewards.shape[:-1], rewards.shape[-1] + 1):
        shapes = f"rewards {rewards.shape}, values {values.shape}"
        raise ValueError(f"{shapes}: expected (..., T) and (..., T) or (..., T + 1)")
    delta = rewards + gamma * values[..., 1:] - values[..., :-1]
    advantages, following = np.empty_like(delta), 0.0
    for t in reversed(range(delta.shape[-1])):
        advantages[..., t] = following = delta[..., t] + gamma * lam * following
    return advantages, advantages + values[..., :-1]


# %% 8. PPO: several steps on one batch, each kept small
# Samples are dear, so we want several updates from one batch of π_old. Weighting by ρ = π/π_old
# corrects the mean, E_{π_old}[ρ A]; but a few large ρ come to rule. PPO takes the worse of two,
#   L = -mean min(ρ A, clip(ρ, 1-ε, 1+ε) A),
# so a token earns nothing more once it has moved by ε the way its advantage wants. dρ/dlog π = ρ,
# so ∂L/∂log π = -ρ A/N where the first branch is the smaller, and 0 where the clipped one is (A > 0
# and ρ > 1+ε, or A < 0 and ρ < 1-ε). At ρ = 1 it is the policy gradient itself.
def ppo_loss(logp, old_logp, advantages, clip=0.2, mask=None):
    """Clipped PPO objective over tokens: (loss, dlogp, clipped share), arrays of one shape.

    mask marks the tokens that count (all if None). ValueError on shapes, nan, clip, no token."""
    mask = np.ones(np.shape(logp)) if mask is None else mask
    logp, old, A, mask = checked(logp=logp, old_logp=old_logp, advantages=advantages, mask=mask)
    check_range("clip", clip, 0, above=True)
    check_range("sum of mask", mask.sum(), 0, above=True)
    ratio, weight = np.exp(logp - old), mask / mask.sum()
    free, held = ratio * A, np.clip(ratio, 1 - clip, 1 + clip) * A
    loss = -(np.minimum(free, held) * weight).sum()
    return float(loss), np.where(free <= held, -free, 0) * weight, float(weight[free > held].sum())


# %% 9. GRPO: the group is the critic
# Draw G responses to each prompt, and the group's mean is a baseline without any critic:
#   A_i = (r_i - mean r) / std r, for every token of response i          (Shao et al. 2024).
# Dividing by std gives easy and hard prompts an equal say; Liu et al. 2025 (Dr. GRPO) argue against
# it, hence the switch. A group whose rewards are all equal teaches nothing.
# PPO pays for KL through its rewards: each token costs β log(π_old/π_ref) on the spot, the reward
# model's verdict comes with the last token (Ouyang et al. 2022). GRPO adds β·mean k3 to the loss.
# By section 4, ∂k3/∂log π = 1 - π_ref/π. A catch: averaged over samples of π this is
# E_π[(1 - π_ref/π) ∇log π] = -Σ π_ref ∇log π = ∇KL(π_ref‖π), the gradient of the *other* KL (the
# samples depend on π as well, and that is ignored). It too is zero only at π_ref.
def grpo_advantages(rewards, normalize=True, eps=1e-8):
    """Rewards (..., G), a group per row -> advantages of mean 0 and, if normalize, of standard
    deviation 1 (0 where all rewards are equal)."""
    (rewards,) = checked(rewards=rewards)
    if rewards.ndim == 0:
        raise ValueError(f"rewards = {rewards}: expected groups (..., G)")
    centred = rewards - rewards.mean(-1, keepdims=True)
    return centred / (rewards.std(-1, keepdims=True) + eps) if normalize else centred


def train_rl(kind, reference, model, prompts, beta, iterations, rng, report=lambda *_: None):
    """Raise the reward model's reward by "ppo" or "grpo", KL priced at beta; returns the policy.

    An iteration draws 16 responses to each of 16 prompts and passes over them twice."""
    if kind not in ("ppo", "grpo"):
        raise ValueError(f"kind = {kind!r}: expected 'ppo' or 'grpo'")
    check_range("beta", beta, 0)
    iterations = check_count("iterations", iterations)
    policy, critic = {name: p.copy() for name, p in reference.items()}, new_network(rng, 1)
    steps = 8 * iterations  # four an iteration, so the rate falls to a half, not to zero
    optimizer, critic_optimizer = Adam(policy, 3e-3, steps), Adam(critic, 1e-2, steps)
    for iteration in range(iterations):
        report(iteration, policy)
        tokens = sample(policy, np.repeat(rng.choice(prompts, 16), 16), rng)  # (B, 1 + n)
        old, mask, _ = policy_forward(policy, tokens)  # (B, T)
        ref, _, _ = policy_forward(reference, tokens)
        scores = learned_rewards(model, tokens)  # (B,)
        if kind == "ppo":
            rewards = -beta * (old - ref)
            rewards[np.arange(len(tokens)), mask.sum(1) - 1] += scores
            values = places_forward(critic, tokens)[0][..., 0]  # (B, T), 0 after the end
            advantages, returns = gae(rewards, values, 1.0, 0.95)
            advantages = (advantages - advantages[mask].mean()) / advantages[mask].std()
        else:
            advantages = grpo_advantages(scores.reshape(16, 16)).reshape(-1, 1) * mask
        for rows in np.split(rng.permutation(256), 2) * 2:
            logp, inside, cache = policy_forward(policy, tokens[rows])
            T = inside.shape[1]
            _, dlogp, _ = ppo_loss(logp, old[rows, :T], advantages[rows, :T], mask=inside)
            if kind == "grpo":
                dlogp += beta * (1 - np.exp(ref[rows, :T] - logp)) * inside / inside.sum()
            optimizer.step(policy_backward(dlogp, cache))
            if kind == "ppo":  # the critic minimises ½ mean (V - return)²
                value, _, cache = places_forward(critic, tokens[rows])
                dvalue = (value[..., 0] - returns[rows, :T]) / inside.sum()
                critic_optimizer.step(places_backward(dvalue[..., None], cache))
    report(iterations, policy)
    return policy


# %% 10. DPO: the policy is its own reward model
# Section 5 turned a reward into its best policy. Turn the formula round: π* = π_ref e^{r/β}/Z says
#   r(x, y) = β log(π*(y|x)/π_ref(y|x)) + β log Z(x).
# Every policy is optimal for *some* reward: this one. Bradley-Terry needs only differences within a
# prompt, where the impossible Z(x) cancels: r_w - r_l = β h with
#   h = u_w - u_l,      u = log π(y|x) - log π_ref(y|x).
# So fit the policy by maximum likelihood, L = mean ℓ(h) with ℓ = -log σ(βh): no reward model, no
# sampling, no critic (Rafailov et al. 2023). h has slope ±1 in the two log π, so all we need is ℓ':
#   sigmoid  ℓ = -log σ(βh)           ℓ' = -β σ(-βh)
# The weight σ(-βh) is the probability the policy's implicit reward gives to the *wrong* order:
# pairs ranked wrongly pull with up to β, pairs ranked rightly by a margin hardly at all. Without it
# ("up with y_w, down with y_l", always) nothing ever stops, and the text falls apart.
#
# Where a pair is always chosen the same way, -log σ has no minimum: h → ∞, whatever β. IPO asks for
# less: raise p(y), the probability of being preferred, which cannot exceed 1. With p as reward,
# section 5 gives h = (p_w - p_l)/β, and a single label I ∈ {0, 1} may stand in for p_w - p_l on
# average (Azar et al. 2024). Over both orders of a pair (h with I = 1, -h with I = 0):
#   ½(h - 1/β)² + ½(-h - 0)² = h² - h/β + 1/(2β²) = (h - 1/(2β))² + constant.
#   ipo      ℓ = (h - 1/(2β))²        ℓ' = 2(h - 1/(2β))      pulls back when h > 1/(2β)
#   hinge    ℓ = max(0, 1 - βh)       ℓ' = -β [βh < 1]        SLiC, Zhao et al. 2023
#
# Label smoothing: if a share ε of the labels is flipped, the expected loss is (1-ε) ℓ(h) + ε ℓ(-h),
# with slope (1-ε) ℓ'(h) - ε ℓ'(-h). For sigmoid, where TRL has it too, this is conservative DPO
# (Mitchell 2023); its minimum is finite, σ(βh) = 1-ε.

PAIR_LOSSES = {
    "sigmoid": lambda h, beta: (-log_sigmoid(beta * h), -beta * sigmoid(-beta * h)),
    "ipo": lambda h, beta: ((h - 1 / (2 * beta)) ** 2, 2 * (h - 1 / (2 * beta))),
    "hinge": lambda h, beta: (np.maximum(0, 1 - beta * h), -beta * (beta * h < 1).astype(h.dtype)),
}


def dpo_loss(
    policy_chosen, policy_rejected, ref_chosen, ref_rejected,
    beta, label_smoothing=0.0, kind="sigmoid",
):  # fmt: skip
    """DPO and its kin: (loss, dchosen, drejected, chosen_rewards, rejected_rewards).

    The four inputs (B,) are log π(y|x) summed over tokens, in nats. loss is the mean over pairs;
    dchosen, drejected its derivatives in policy_chosen, policy_rejected; rewards are β u. kind is
    "sigmoid", "ipo" or "hinge"; label_smoothing in [0, 0.5] the share of flipped labels. ValueError
    on beta <= 0, empty batches, shapes that differ, nan."""
    u_w = np.subtract(*checked(policy_chosen=policy_chosen, ref_chosen=ref_chosen))
    u_l = np.subtract(*checked(policy_rejected=policy_rejected, ref_rejected=ref_rejected))
    checked(policy_chosen=u_w, policy_rejected=u_l)
    check_range("beta", beta, 0, above=True)
    check_range("label_smoothing", label_smoothing, 0, 0.5)
    if not isinstance(kind, str) or kind not in PAIR_LOSSES:
        raise ValueError(f"kind = {kind!r}: expected one of {', '.join(map(repr, PAIR_LOSSES))}")
    h = u_w - u_l
    right, slope_right = PAIR_LOSSES[kind](h, beta)
    wrong, slope_wrong = PAIR_LOSSES[kind](-h, beta)
    loss = (1 - label_smoothing) * right + label_smoothing * wrong
    dh = ((1 - label_smoothing) * slope_right - label_smoothing * slope_wrong) / h.size
    return float(loss.mean()), dh, -dh, beta * u_w, beta * u_l


# %% 11. KTO, ORPO, SimPO: no pairs, no reference
# KTO needs no pairs, only responses marked good or bad. After Kahneman & Tversky, gains and losses
# are felt from a reference point z, here the policy's average u, KL(π‖π_ref); loss = 1 - value:
#   good  w_D (1 - σ(β(u - z)))        bad  w_U (1 - σ(β(z - u)))        (Ethayarajh et al. 2024)
# As σ' = σ(1-σ), the slopes in log π are -w_D β σ(1-σ) and w_U β σ(1-σ): unlike DPO's they vanish
# on *both* sides, so hopeless examples, often wrong labels, are given up. z is estimated by max(0,
# mean u over the batch), here mostly 0 as the batch is π_ref's, and receives no gradient.
def kto_loss(
    policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta, kl=None, weights=(1.0, 1.0)
):
    """KTO, the mean over examples; inputs and returns as dpo_loss, but good (chosen) and bad
    (rejected) may differ in number. kl is z in nats (None: from the batch), weights (w_D, w_U)."""
    good = np.subtract(*checked(policy_chosen=policy_chosen, ref_chosen=ref_chosen))
    bad = np.subtract(*checked(policy_rejected=policy_rejected, ref_rejected=ref_rejected))
    check_range("beta", beta, 0, above=True)
    n = good.size + bad.size
    z = max(0.0, float(good.sum() + bad.sum()) / n) if kl is None else kl
    check_range("kl", z, 0)
    for weight in weights:
        check_range("a weight", weight, 0)
    s_good, s_bad = sigmoid(beta * (good - z)), sigmoid(beta * (z - bad))
    loss = float(weights[0] * (1 - s_good).sum() + weights[1] * (1 - s_bad).sum()) / n
    dchosen = -weights[0] * beta * s_good * (1 - s_good) / n
    drejected = weights[1] * beta * s_bad * (1 - s_bad) / n
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
    check_range("beta", beta, 0, above=True)
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
    check_range("beta", beta, 0, above=True)
    check_range("gamma", gamma, 0)
    g = beta * m_w - beta * m_l - gamma
    dm = -beta * sigmoid(-g) / g.size
    return float(-log_sigmoid(g).mean()), dm, -dm, beta * m_w, beta * m_l


def train_on_pairs(loss, reference, chosen, rejected, steps, rng, **options):
    """Fit a policy to preference pairs, tokens (N, 1 + n) each, starting from the reference."""
    steps, policy = check_count("steps", steps), {name: p.copy() for name, p in reference.items()}
    optimizer = Adam(policy, 2e-3, steps)
    pairs = np.stack([chosen, rejected])  # (2, N, 1 + n)
    ref = np.stack([policy_forward(reference, side)[0].sum(1) for side in pairs])  # (2, N)
    means = loss in (orpo_loss, simpo_loss)  # these two want log π per token and no reference
    for _ in range(steps):
        pick = rng.integers(0, len(chosen), 128)
        logp, mask, cache = policy_forward(policy, np.concatenate(pairs[:, pick]))
        size = mask.sum(1) if means else np.ones(len(mask))  # (256,), m = log π/|y|
        given = () if means else ref[:, pick]
        _, *slopes, _, _ = loss(*np.split(logp.sum(1) / size, 2), *given, **options)
        optimizer.step(policy_backward((np.concatenate(slopes) / size)[:, None] * mask, cache))
    return policy


# %% Demonstration

METHODS = {  # letter in the plot, the loss on pairs, its options, three values of beta
    "PPO": ("P", None, {}, (1.0, 0.5, 0.25)),
    "GRPO": ("G", None, {}, (1.0, 0.6, 0.4)),
    "DPO": ("D", dpo_loss, {}, (1.0, 0.5, 0.25)),
    "IPO": ("I", dpo_loss, {"kind": "ipo"}, (0.3, 0.1, 0.05)),
    "KTO": ("K", kto_loss, {}, (2.0, 0.5, 0.25)),
    "ORPO": ("O", orpo_loss, {}, (1.0, 4.0, 16.0)),
    "SimPO": ("S", simpo_loss, {"gamma": 0.5}, (4.0, 2.0, 1.0)),
}


def text_plot(points, width=72, height=18):
    """Lines of a plot of (x, y, letter); later points are drawn over earlier ones."""
    if len(points) == 0:
        raise ValueError("points are empty: expected at least one (x, y, letter)")
    x, y, letters = zip(*points)
    if not np.isfinite([x, y]).all() or min(x) < 0:
        raise ValueError("expected points that are finite, with x >= 0")
    low, high, right = min(y), max(y), max(x) or 1.0
    high = high if high > low else low + 1.0  # a constant lies at the bottom
    grid = [[" "] * (width + 1) for _ in range(height + 1)]
    for a, b, letter in zip(x, y, letters):
        grid[round((high - b) / (high - low) * height)][round(a / right * width)] = letter
    ticks = (f"{high - (high - low) * i / height:5.1f}" if i % 6 == 0 else "" for i in range(99))
    axis = "".join(f"{right * i / 6:<{width // 6}.1f}" for i in range(7))
    rows = [f"{tick:>6s} |{''.join(row)}" for tick, row in zip(ticks, grid)]
    return [*rows, "       +" + "-" * width, "        " + axis]


def report(args):
    """The world, the reward model, every method, the frontier, over-optimisation."""
    tokens = encode(Path(args.names).read_text(encoding="utf-8").split())
    check_range("--seed", args.seed, 0)
    check_range(f"number of names in {args.names}", len(tokens), 20)
    sizes = (60, 200, 4, 3, 64, 100) if args.fast else (400, 2000, 160, 40, 2048, 4000)
    n_pretrain, n_pairs, n_steps, n_rl, n_bank, n_judge = sizes
    rng = np.random.default_rng(args.seed)
    say = functools.partial(print, flush=True)  # the report grows as it is computed
    train, held = np.split(rng.permutation(tokens), [int(0.9 * len(tokens))])
    prompts, reference = train[:, 0], pretrain(train, n_pretrain, rng)
    logp, mask, _ = policy_forward(reference, held)
    letters, count = np.unique(prompts, return_counts=True)
    share = count / count.sum()  # (P,)
    bank = sample(reference, np.repeat(letters, n_bank), rng)  # n_bank responses to every prompt
    truth = true_rewards(bank).reshape(-1, n_bank)  # (P, M)
    start = truth.mean(1) @ share
    say(f"THE WORLD  {len(tokens)} names; the first letter is the prompt, the rest the response.")
    say(f"The reference ({-logp.sum() / mask.sum():.2f} nats a token, {len(held)} held-out names)")
    say(f"writes names of true reward {start:.2f} ± {truth.std():.2f}, for example")
    spread = decode(bank[np.argsort(true_rewards(bank))[:: -(len(bank) // 6)]])
    say("   " + "   ".join(f"{name} {true_reward(name):+.1f}" for name in spread))
    pairs = prefer(reference, rng.choice(prompts, n_pairs), rng)
    test = prefer(reference, rng.choice(prompts, 2 * n_pairs), rng)
    model = train_reward_model(*pairs, 2 * n_steps, rng)
    learned = learned_rewards(model, bank).reshape(-1, n_bank)
    start_learned = learned.mean(1) @ share
    gaps = (learned_rewards(model, a) - learned_rewards(model, b) for a, b in (pairs, test))
    fitted, right = (50 + 50 * np.sign(gap).mean() for gap in gaps)  # a tie counts half
    bayes = 100 * sigmoid(np.abs(true_rewards(test[0]) - true_rewards(test[1]))).mean()
    say(f"\nREWARD MODEL  predicts {right:.1f} % of held-out choices, Bayes limit {bayes:.1f} %;")
    say(f"{fitted:.1f} % of the {n_pairs} noisy training pairs; correlation with the truth", end="")
    say(f" {np.corrcoef(learned.ravel(), truth.ravel())[0, 1]:.2f}")
    betas = np.geomspace(20, 0.2, 60)
    best, reachable = frontier(truth, truth, share, betas), frontier(learned, truth, share, betas)
    points = [(*p, ".") for p in best] + [(*p, ":") for p in reachable]
    judge_prompts = rng.choice(prompts, n_judge)

    def judge(policy):
        """(true reward, learned gain, KL, three names) from n_judge fresh samples."""
        drawn = sample(policy, judge_prompts, rng)
        logits, reference_logits = (places_forward(p, drawn)[0] for p in (policy, reference))
        kl = kl_divergence(logits, reference_logits).sum(1).mean()  # both are 0 after the end
        gain = learned_rewards(model, drawn).mean() - start_learned
        return true_rewards(drawn).mean(), gain, kl, " ".join(decode(drawn[:3]))

    def row(method, letter, setting, samples, seconds, true, gain, kl, names=""):
        used = 100 * (true - start) / (np.interp(kl, *best.T) - start)
        used = f"{used:4.0f} %" if kl <= best[-1, 0] else "     -"
        points.append((kl, true, letter))
        say(f"{method:10s}{setting:>7s}{true:7.2f}{gain:+9.2f}{kl:6.2f} {used}", end="")
        say(f"{samples:9d}{seconds:6.1f} s  {names}")

    say("\nMETHODS  true reward; gain the learned reward believes in; KL in nats; used = share of")
    say("the gain possible at that KL; samples drawn to learn (best-of-n: per answer); seconds")
    say(f"\n{'true':>24s}     gain    KL   used  samples    time  names")
    for n in (4, 16, 64):
        (true, kl), (gain, _) = (best_of_n(learned, judged, n) for judged in (truth, learned))
        row("best-of-n", "B", f"n={n}", n, 0, true @ share, gain @ share - start_learned, kl)
    for method, (letter, loss, options, betas) in METHODS.items():
        for beta in betas[: 1 if args.fast else 3]:
            begin = time.perf_counter()
            if loss is None:
                policy = train_rl(method.lower(), reference, model, prompts, beta, n_rl, rng)
            else:
                policy = train_on_pairs(loss, reference, *pairs, n_steps, rng, beta=beta, **options)
            seconds = time.perf_counter() - begin
            row(method, letter, f"β={beta:g}", 0 if loss else 256 * n_rl, seconds, *judge(policy))
    say("\nFRONTIER  true reward over KL; . the best possible, : the best for the learned reward,")
    say("B best-of-n (at its KL bound), P PPO, G GRPO, D DPO, I IPO, K KTO, O ORPO, S SimPO.")
    say("From . to : is lost by the reward model, from : to P or G by the optimiser.\n")
    say("\n".join(text_plot([p for p in points if p[0] <= best[-1, 0]])))
    say("\nOVER-OPTIMISATION  PPO without and with a price on KL: watch belief and truth part")

    def watch(iteration, policy):
        if iteration in {n_rl * part // 16 for part in (0, 1, 2, 4, 8, 16)}:
            true, gain, kl, names = judge(policy)
            say(f"{iteration:12d}{gain:+15.2f}{true:8.2f}{kl:8.2f}   {names}")

    for beta in (0.0, 0.5):
        say(f"\nβ = {beta}  iteration  gain believed    true      KL   names")
        train_rl("ppo", reference, model, prompts, beta, n_rl, rng, watch)


# %% Your own preferences
# The command `dpo` trains a checkpoint that the capstone trained or transformers wrote on pairs of
# answers. The capstone gives the mean of -log π over an answer's tokens, and its gradient in all
# weights. No more is needed, because DPO's gradient is a weighted sum of such gradients,
#   ∂L/∂θ = Σ over pairs of (∂L/∂log π(y_w)) ∇log π(y_w) + (∂L/∂log π(y_l)) ∇log π(y_l),
# and dpo_loss computes the weights.
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
            if not all(isinstance(text, str) for text in (prompt, *answers)):
                raise TypeError("prompt, chosen and rejected must be texts")
            if answers[0] == answers[1]:
                raise ValueError("chosen and rejected are the same")
            start, pair = [*tokenizer.encode(prompt, add_special_tokens=True)], []
            for answer in answers:
                ids = np.array([*start, *tokenizer.encode(answer), *end])
                targets = ids[1:].copy()
                targets[: max(0, len(start) - 1)] = -1
                pair.append((ids[None, :-1], targets[None]))
            pairs.append(pair)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            damaged.append(f"line {number} ({error!r:.100})")
    if damaged:
        found = f"{len(damaged)} damaged lines, such as {', '.join(damaged[:4])}"
        raise ValueError(f"{path}: expected prompt, chosen and rejected in every line; {found}")
    return pairs


def dpo_step(model, pairs, reference, beta):
    """The mean DPO loss of pairs, given log π_ref (N, 2), and its gradient, like model.flat."""
    total, gradient = 0.0, np.zeros_like(model.flat)
    for pair, ref in zip(pairs, reference):
        logps, slopes = [], []
        for idx, targets in pair:
            length = (targets >= 0).sum()
            loss, grads = model.loss_and_grads(idx, targets, scale=-length)
            if not math.isfinite(loss):
                raise ValueError(f"the loss has become {loss}: lower --learning_rate")
            logps.append([-loss * length])  # log π(y|x), and ∇log π(y|x)
            slopes.append(grads.flat)
        loss, *weights, _, _ = dpo_loss(*logps, *ref[:, None], beta)
        total += loss / len(pairs)
        for weight, slope in zip(weights, slopes):
            gradient += float(weight[0]) / len(pairs) * slope
    return total, gradient


def answers_logprob(model, pairs):
    """log π(y|x) of every answer, (N, 2)."""
    both = [[-model.loss(*answer) * (answer[1] >= 0).sum() for answer in pair] for pair in pairs]
    return np.array(both)


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
            norm = math.sqrt(float(gradient @ gradient))
            if not math.isfinite(norm):
                raise ValueError(f"the gradient has become {norm}: lower --learning_rate")
            now = gpt.warmup_cosine(step, rate, rate / 10, args.steps // 10, args.steps)
            optimizer.step(gradient, norm, now)
            if (step + 1) % max(1, args.steps // 10) == 0:
                tell(f"step {step + 1} of {args.steps}: loss {loss:.3f}")
        held = pairs[cut:]
        logps = answers_logprob(model, held)
        loss, _, _, chosen, rejected = dpo_loss(*logps.T, *reference[cut:].T, args.beta)
        right = 50 + 50 * np.sign(chosen - rejected).mean()  # a tie counts half
        prompts = [pair[0][0][:, : (pair[0][1] < 0).sum() + 1] for pair in held[:16]]
        kl = drawn_kl(model, base, prompts, end, rng)
        gap = np.mean(chosen - rejected)
        tell(f"held out: loss {loss:.3f}, {right:.0f} % of pairs in the right order,")
        tell(f"rewards {chosen.mean():+.3f} and {rejected.mean():+.3f}, margin {gap:+.3f};")
        tell(f"KL from the base {kl:.3f} nats in an answer's first tokens, up to 32")
        if chosen.mean() < 0:
            tell("The chosen answers, too, have become less likely: try a lower --learning_rate.")
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
            lowest = 0 if name == "seed" else 1e-30
            if type(value) in (int, float) and not lowest <= value < 2**63:
                limits = f"at least {lowest:g} and below 2**63"
                raise ValueError(f"--{name} must be {limits}, not {value}")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named
            args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever was reading has seen enough
        drop_unwritten()
    except KeyboardInterrupt:
        drop_unwritten()
        parser.exit(130, "\n")
    except (OSError, ValueError, MemoryError) as error:
        drop_unwritten()
        parser.error(str(error) or "there is not enough memory")


# %% Common mistakes
# 1. Scoring the prompt or the padding: losses change with the padding. See `places_forward`'s mask.
# 2. Leaving out END: responses grow, as stopping is never rewarded. The same mask includes it.
# 3. A reference that is the policy and not a copy: h stays 0, the loss log 2. See `train_on_pairs`.
# 4. Sums in ORPO and SimPO: 1 - P rounds to 1 and short responses win. There, `size` divides them.
# 5. Judging by the learned reward: it rises while the text decays. `judge` asks the truth.
# 6. old_logp renewed after each update: ρ is 1, nothing is clipped. `train_rl` computes it once.
# 7. One β for all: it means different things. Compare at equal KL, as the plot in `report` does.

# %% Exercises
#  1. Read: which line of `train_rl` makes the reward model's verdict arrive with the last token?
#  2. By hand: dpo_loss where log π = log π_ref in all pairs. Why is it log 2 whatever β?
#  3. Show that adding any c(x) to the reward changes neither reward_loss nor π*.
#  4. Check `ppo_loss` and the hinge against central differences; where does that fail, and why?
#  5. Print σ(-βh) for every training pair after DPO. Which still pull? Are their labels wrong?
#  6. Flip 30 % of the labels. Compare label_smoothing 0 and 0.3, DPO and IPO, by true reward.
#  7. Measure the noise of the policy gradient without baseline, with the batch mean, with a critic.
#  8. Put GRPO's KL into the rewards, as PPO does. Does G move up towards the ':' curve?
#  9. Fit reward models to 250, 1000 and 4000 pairs: at which KL does the true reward peak in each?
# 10. Iterate: sample new pairs from the DPO policy, label, train again. How far above ':' is that?
# 11. Average the rewards of five reward models. Does it delay over-optimisation?
# 12. Research: estimate, from pairs alone, the KL at which the true reward is about to fall.

# %% Where this leads
# These losses, unchanged, align the models in daily use: InstructGPT and its heirs with PPO, many
# open models with DPO, reasoning models with GRPO, whose reward is a verifier: there the truth can
# be computed. The capstone is the model one would do it to: a GPT, trained end to end.

if __name__ == "__main__":
    main()
