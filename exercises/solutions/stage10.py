"""Solutions of the exercises of stage 10: align. `python exercises 10` checks them."""

import math

import numpy as np

import stage10_dpo as stage

# %% 1. ★ (by hand) What a majority says
# Of two answers to the same prompt, people prefer the first in 80 of 100 cases.
# ANSWER_1: by how much does its reward exceed the other's, after Bradley and Terry? Three digits.
ANSWER_1 = 1.386
# > σ(d) = 0.8 says e^d = 0.8/0.2 = 4, so d = ln 4. How high both rewards are, nobody can tell.
HINTS_1 = [
    "P = σ(r - r′) with σ(d) = 1/(1 + e⁻ᵈ). Solve for d.",
    "The odds are P/(1 - P) = eᵈ.",
]

# %% 2. ★ (by hand) Who deserves the reward?
# An answer of three tokens has the rewards 0, 0, 2. The critic expected 1 before the first token,
# 1 before the second and 1.5 before the third. γ = 1, λ = 0.5.
# ANSWER_2: the three advantages by GAE, first token first.
ANSWER_2 = [0.375, 0.75, 0.5]
# > One step ahead: 1 - 1 = 0, 1.5 - 1 = 0.5, 2 - 1.5 = 0.5. From the end: 0.5; 0.5 + 0.5·0.5 =
# > 0.75; 0 + 0.5·0.75 = 0.375.
HINTS_2 = [
    "First look one step ahead: reward now + what is expected next - what was expected.",
    "After the last token nothing more is expected.",
    "Then from the end: each adds half of the one after it.",
]

# %% 3. ★ (explain) No brake, and no accident
# In the report, PPO at β = 0 ends far below where it started if it raises the learned reward, and
# near the best possible if it raises the true one ("PPO, verified"). Why?
#   a  the learned reward is noisier from one call to the next
#   b  away from the answers it was fitted on, the learned reward praises what is not good; the
#      policy goes where it is praised most
#   c  without β the gradient of the learned reward vanishes
#   d  the true reward has a KL term of its own
# ANSWER_3: one letter, as a string.
ANSWER_3 = "b"
# > A reward model is right about answers like those it has seen. Maximising looks for the places
# > where it is most wrong in our favour. A price on KL keeps the policy where the model is right; a
# > reward that can be verified is right everywhere.
HINTS_3 = [
    "What does PPO believe it has gained at β = 0, and what has it gained?",
    "Where were the pairs drawn that the reward model was fitted to?",
    "The learned reward is a fixed function: it has no noise.",
]


# %% 4. ★★ (derive) The best policy that stays near
# For one prompt with a finite list of answers: which π maximises Σ π·r - β·KL(π‖π_ref)? Write it so
# that rewards of ±1,000 and a small β do no harm.
def best_policy(reference, rewards, beta):
    """π* (n,) for probabilities reference (n,), all > 0, rewards (n,), beta > 0."""
    logits = np.log(reference) + rewards / beta
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


# > π* ∝ π_ref·e^{r/β}, divided by its sum. Subtracting the largest logit changes nothing after the
# > division, and keeps e^x from overflowing.
HINTS_4 = [
    "The objective is -β·KL(π‖π*) plus a constant, for which π*?",
    "π* is π_ref·e^{r/β}, divided by its sum.",
    "Work with log π_ref + r/β and subtract the largest before exp.",
]


# %% 5. ★★ (implement) DPO
# Write the loss of DPO and its slopes for a batch of pairs.
def dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """(mean loss in nats, dchosen (B,), drejected (B,)); the four inputs are log π(y|x), (B,)."""
    h = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
    loss = np.logaddexp(0, -beta * h).mean()
    pull = beta / (1 + np.exp(beta * h)) / len(h)
    return loss, -pull, pull


# > -log σ(βh) = log(1 + e^(-βh)), which np.logaddexp(0, -βh) computes without overflow. Its slope
# > in h is -βσ(-βh); h rises with log π of the chosen and falls with that of the rejected; the mean
# > divides by B.
HINTS_5 = [
    "How much likelier has each become since the reference? h is the difference of the two.",
    "loss = mean of -log σ(βh); its slope in h is -β·σ(-βh).",
    "A mean over B pairs: each slope is divided by B. The rejected has the opposite sign.",
]


# %% 6. ★★ (find the bug) Clipped on the wrong side, too
# PPO's loss and its slope in log π, for n tokens. Somebody simplified the slope.
def ppo(logp, old_logp, advantages, clip=0.2):
    """(loss, dlogp (n,)) of the clipped objective."""
    ratio = np.exp(logp - old_logp)
    free = ratio * advantages
    held = np.clip(ratio, 1 - clip, 1 + clip) * advantages
    loss = -np.minimum(free, held).mean()
    dlogp = np.where(free <= held, -free, 0)  # was: dlogp = np.where(held == free, -free, 0)
    return loss, dlogp / len(ratio)


# > The broken line stops every token outside the clip, also one that went the wrong way: ρ > 1 + ε
# > with A < 0, or ρ < 1 - ε with A > 0. There the free branch is the smaller one, the loss still
# > falls if the token turns back, and the slope must say so.
HINTS_6 = [
    "Compare dlogp with central differences of the loss, for tokens with ρ far from 1.",
    "A token with A < 0 has become much likelier. Should it be pulled back?",
    "The slope is that of the smaller branch: -free where free ≤ held, and 0 elsewhere.",
]


# %% 7. ★★ (derive) When some labels are wrong
# A share ε of all choices is flipped by mistake, so the expected loss of a pair with margin h is
# (1 - ε)·ℓ(h) + ε·ℓ(-h) with DPO's ℓ(h) = -log σ(βh). At which h is it smallest?
def smoothed_margin(epsilon, beta):
    """The best margin h, for 0 < epsilon < 1/2 and beta > 0."""
    return math.log((1 - epsilon) / epsilon) / beta


# > The slope is -(1 - ε)·β·σ(-βh) + ε·β·σ(βh), which is 0 where σ(βh)/σ(-βh) = (1 - ε)/ε. That
# > quotient is e^(βh). So βh = log((1 - ε)/ε), or σ(βh) = 1 - ε: the model believes in the choice
# > as much as it deserves.
HINTS_7 = [
    "Set the slope in h to 0: the slope of ℓ(-h) is -ℓ′(-h).",
    "σ(x)/σ(-x) = eˣ.",
    "σ(βh) = 1 - ε at the minimum.",
]

# %% 8. ★★ (derive) Best of sixteen
# Keep the best of n = 16 answers. Rewards have no ties.
# ANSWER_8:  the KL to the reference, in nats, three digits.
# ANSWER_8B: the mean share of the reference's answers that the one kept is better than, three
# digits.
ANSWER_8 = 1.835
ANSWER_8B = 0.941
# > log 16 - 15/16 = 1.835. The share f of answers with a lower reward is uniform, the best of n has
# > the density n·f^(n-1), and its mean is ∫ n·fⁿ df = n/(n + 1) = 16/17.
HINTS_8 = [
    "The stage derives log n - (n - 1)/n.",
    "f, the share of answers with a lower reward, is uniform in (0, 1). The best of n has density?",
    "The mean of f under n·f^(n-1) is an integral of n·fⁿ.",
]

# %% 9. ★★ (measure) Two ways to estimate a distance
# p = [0.5, 0.3, 0.2] and q = [0.4, 0.4, 0.2]. For a sample v of p, let d = log q(v) - log p(v); k1
# = -d and k3 = eᵈ - 1 - d both have the mean KL(p‖q).
# ANSWER_9: the standard deviation of k1 divided by that of k3, over the samples of p; three digits.
ANSWER_9 = 13.89
# > Both means are 0.0253. k1 is 0.223, -0.288 and 0; k3 is 0.0231, 0.0457 and 0: never negative,
# > and much calmer when p and q are near each other.
HINTS_9 = [
    "Make an array of the three d, and from it the three values of k1 and of k3.",
    "Take all three v, each with its probability p(v): no sampling is needed.",
    "The variance is Σ p·k² - (Σ p·k)².",
]


# %% 10. ★★★ (implement) A token's say
# A batch has answers of several lengths. Which weight has each token in a loss that is
#   "response"  the mean over answers of each answer's mean over its tokens   (GRPO's paper),
#   "token"     the mean over all tokens                                     (DAPO),
#   "constant"  the sum over all tokens, divided by (answers · longest)      (Dr. GRPO)?
def token_weights(lengths, how, longest):
    """A list with one array (length,) of weights for each answer. lengths: a list of int."""
    B, total = len(lengths), sum(lengths)
    weights = []
    for length in lengths:
        if how == "response":
            weight = 1 / (B * length)
        elif how == "token":
            weight = 1 / total
        else:
            weight = 1 / (B * longest)
        weights.append(np.full(length, weight))
    return weights


# > Under "response" every answer has the same say, so a token of a long one has less: a wrong
# > answer is punished less per token if it is long. The other two give every token of the batch the
# > same.
HINTS_10 = [
    "The loss is a sum of weight times token loss. What stands before a token's loss in each?",
    "response: 1/(answers · own length). token: 1/(all tokens).",
    "constant: the longest is a fixed number, given to the function, not the batch's.",
]


# %% 11. ★★★ (derive) The calmest baseline
# One token is drawn from a softmax with probabilities p, and its reward is R(a). The estimate of
# the gradient in the logits is (R(a) - b)·∇log p(a). Its mean does not depend on b. Which b makes
# its variance, the sum over all logits, smallest?
def best_baseline(p, rewards):
    """b, for p (V,), all > 0 and not all in one, and rewards (V,)."""
    square = 1 - 2 * p + np.sum(p * p)  # |∇log p(a)|² for every a
    return np.sum(p * square * rewards) / np.sum(p * square)


# > ∇log p(a) = onehot(a) - p, of squared length (1 - p_a)² + Σ_{v≠a} p_v² = 1 - 2p_a + Σp². The
# > mean is fixed, so the variance is smallest where the mean square 𝔼[(R - b)²·g²] is, g² that
# > length: -2·𝔼[(R - b)·g²] = 0, b = 𝔼[R·g²]/𝔼[g²]. It is the mean of R only where g² is the same
# > for all.
HINTS_11 = [
    "∇log p(a) = onehot(a) - p. What is its squared length?",
    "The mean is the same for every b, so minimise 𝔼[(R - b)²·g²], g² being that squared length.",
    "Set the slope in b to 0: a mean of R, weighted with p·g².",
]

# %% 12. ★★ (research) A verifier that errs
# Let the verifier turn the sign of the true reward in a share of its verdicts, and let PPO raise it
# at β = 0 (stage.train_rl). Here, with seed 0, the true reward went from 1.2 to 3.86 without
# errors, to 3.63 with 10 % and to 3.26 with 30 % of them: random errors make it slower, but do not
# mislead. Which errors would?


# %% 13. ★★★ (project) Without the truth
# Align the reference with the 2,000 choices alone (world.pairs; you may fit a reward model, or use
# world.model), so that at a KL of at most 1.5 nats the policy has at least 80 % of the gain in true
# reward that is possible at its KL. `python exercises --project 10` makes the report's world and
# judges. The truth (true_rewards) must not be asked: who knows it needs no choices.
def my_policy(world, rng):
    """The parameters of a policy, a dict like world.reference. rng: for your random choices."""
    chosen, rejected = world.pairs
    return stage.train_on_pairs(
        stage.dpo_loss, world.reference, chosen, rejected, 160, rng, beta=0.5
    )


# > DPO at β = 0.5 has about 85 %; KTO and IPO are as good, PPO on the learned reward a little less.
HINTS_13 = [
    "stage.train_on_pairs with one of the losses, and a β that keeps the KL below 1.5.",
    "stage.judge and stage.share_of say where a policy stands; use them to look, not to choose.",
]
