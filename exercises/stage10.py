"""The exercises of stage 10: align. `python exercises 10` checks them."""

import math

import numpy as np

import stage10_dpo as stage

# %% 1. ★ (by hand) What a majority says
# Of two answers to the same prompt, people prefer the first in 80 of 100 cases.
# ANSWER_1: by how much does its reward exceed the other's, after Bradley and Terry? Three digits.
ANSWER_1 = None


# %% 2. ★ (by hand) Who deserves the reward?
# An answer of three tokens has the rewards 0, 0, 2. The critic expected 1 before the first token,
# 1 before the second and 1.5 before the third. γ = 1, λ = 0.5.
# ANSWER_2: the three advantages by GAE, first token first.
ANSWER_2 = None


# %% 3. ★ (explain) No brake, and no accident
# In the report, PPO at β = 0 ends far below where it started if it raises the learned reward, and
# near the best possible if it raises the true one ("PPO, verified"). Why?
#   a  the learned reward is noisier from one call to the next
#   b  away from the answers it was fitted on, the learned reward praises what is not good; the
#      policy goes where it is praised most
#   c  without β the gradient of the learned reward vanishes
#   d  the true reward has a KL term of its own
# ANSWER_3: one letter, as a string.
ANSWER_3 = None


# %% 4. ★★ (derive) The best policy that stays near
# For one prompt with a finite list of answers: which π maximises Σ π·r - β·KL(π‖π_ref)? Write it so
# that rewards of ±1,000 and a small β do no harm.
def best_policy(reference, rewards, beta):
    """π* (n,) for probabilities reference (n,), all > 0, rewards (n,), beta > 0."""
    raise NotImplementedError


# %% 5. ★★ (implement) DPO
# Write the loss of DPO and its slopes for a batch of pairs.
def dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """(mean loss in nats, dchosen (B,), drejected (B,)); the four inputs are log π(y|x), (B,)."""
    raise NotImplementedError


# %% 6. ★★ (find the bug) Clipped on the wrong side, too
# PPO's loss and its slope in log π, for n tokens. Somebody simplified the slope.
def ppo(logp, old_logp, advantages, clip=0.2):
    """(loss, dlogp (n,)) of the clipped objective."""
    ratio = np.exp(logp - old_logp)
    free = ratio * advantages
    held = np.clip(ratio, 1 - clip, 1 + clip) * advantages
    loss = -np.minimum(free, held).mean()
    dlogp = np.where(held == free, -free, 0)
    return loss, dlogp / len(ratio)


# %% 7. ★★ (derive) When some labels are wrong
# A share ε of all choices is flipped by mistake, so the expected loss of a pair with margin h is
# (1 - ε)·ℓ(h) + ε·ℓ(-h) with DPO's ℓ(h) = -log σ(βh). At which h is it smallest?
def smoothed_margin(epsilon, beta):
    """The best margin h, for 0 < epsilon < 1/2 and beta > 0."""
    raise NotImplementedError


# %% 8. ★★ (derive) Best of sixteen
# Keep the best of n = 16 answers. Rewards have no ties.
# ANSWER_8:  the KL to the reference, in nats, three digits.
# ANSWER_8B: the mean share of the reference's answers that the one kept is better than, three
# digits.
ANSWER_8 = None
ANSWER_8B = None


# %% 9. ★★ (measure) Two ways to estimate a distance
# p = [0.5, 0.3, 0.2] and q = [0.4, 0.4, 0.2]. For a sample v of p, let d = log q(v) - log p(v); k1
# = -d and k3 = eᵈ - 1 - d both have the mean KL(p‖q).
# ANSWER_9: the standard deviation of k1 divided by that of k3, over the samples of p; three digits.
ANSWER_9 = None


# %% 10. ★★★ (implement) A token's say
# A batch has answers of several lengths. Which weight has each token in a loss that is
#   "response"  the mean over answers of each answer's mean over its tokens   (GRPO's paper),
#   "token"     the mean over all tokens                                     (DAPO),
#   "constant"  the sum over all tokens, divided by (answers · longest)      (Dr. GRPO)?
def token_weights(lengths, how, longest):
    """A list with one array (length,) of weights for each answer. lengths: a list of int."""
    raise NotImplementedError


# %% 11. ★★★ (derive) The calmest baseline
# One token is drawn from a softmax with probabilities p, and its reward is R(a). The estimate of
# the gradient in the logits is (R(a) - b)·∇log p(a). Its mean does not depend on b. Which b makes
# its variance, the sum over all logits, smallest?
def best_baseline(p, rewards):
    """b, for p (V,), all > 0 and not all in one, and rewards (V,)."""
    raise NotImplementedError


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
    raise NotImplementedError
