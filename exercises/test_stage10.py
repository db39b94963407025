"""Checks of the exercises of stage 10."""

import math
from pathlib import Path

import judge
import numpy as np
import pytest

import stage10_dpo as stage


def test_1(answers):
    mistakes = {
        "that is the probability; the difference of the rewards was asked for": 0.8,
        "those are the odds; take their logarithm": 4.0,
        "σ is applied where its inverse should be": 1 / (1 + math.exp(-0.8)),
        "that is log P, not the logarithm of the odds": math.log(0.8),
    }
    judge.number(answers, "ANSWER_1", math.log(4), mistakes=mistakes)


def test_2(answers):
    found = judge.answer(answers, "ANSWER_2")
    rewards, values = np.array([0.0, 0.0, 2.0]), np.array([1.0, 1.0, 1.5])
    right, returns = stage.gae(rewards, values, 1.0, 0.5)
    mistakes = {
        "that looks one step ahead only (λ = 0)": stage.gae(rewards, values, 1.0, 0.0)[0],
        "that waits for the end (λ = 1)": stage.gae(rewards, values, 1.0, 1.0)[0],
        "the critic's guess has to be taken off": returns,
        "first token first": right[::-1],
    }
    judge.array("ANSWER_2", judge.numeric("ANSWER_2", found), right, 1e-3, mistakes=mistakes)


def test_3(answers):
    remarks = {
        "a": "it is a fixed function of the answer: two calls agree",
        "b": "compare what PPO believes it has gained with what it has",
        "c": "its believed gain keeps rising, so there is a gradient",
        "d": "look at true_reward: it knows nothing of the reference",
    }
    judge.choice(answers, "ANSWER_3", 3, "dfd3e0040128", remarks)


def test_4(answers, rng):
    for beta in (0.3, 1.0, 4.0):
        reference, rewards = rng.dirichlet(np.ones(5)), rng.normal(size=5)
        right = reference * np.exp(rewards / beta)
        right /= right.sum()
        flat = np.exp(rewards / beta)
        times = reference * np.exp(rewards * beta)
        mistakes = {
            "the reference has no say": flat / flat.sum(),
            "the reward is divided by β, not multiplied": times / times.sum()
            if beta != 1
            else flat,
            "it has to be divided by its sum": reference * np.exp(rewards / beta),
        }
        found = judge.call(answers, "best_policy", reference, rewards, beta)
        judge.array("best_policy", found, right, mistakes=mistakes)
    with np.errstate(all="ignore"):
        large = judge.call(answers, "best_policy", reference, np.array([1e3, -1e3, 0, 0, 1e3]), 0.1)
    if not np.all(np.isfinite(large)):
        judge.wrong("best_policy: with rewards of ±1,000 and β = 0.1, exp overflows")
    both = reference * np.array([1, 0, 0, 0, 1])
    judge.array("best_policy with rewards of ±1,000", large, both / both.sum())


def test_5(answers, rng):
    for B in (1, 6):
        logs = [-rng.uniform(1, 9, B) for _ in range(4)]
        result = judge.call(answers, "dpo", *logs, 0.4)
        if not isinstance(result, (tuple, list)) or len(result) != 3:
            judge.wrong("dpo: expected the loss, dchosen and drejected")
        loss, dchosen, drejected, *_ = stage.dpo_loss(*logs, 0.4)
        h = (logs[0] - logs[2]) - (logs[1] - logs[3])
        no_reference = float(-stage.log_sigmoid(0.4 * (logs[0] - logs[1])).mean())
        mistakes = {
            "the reference is ignored": no_reference,
            "chosen and rejected are exchanged": float(-stage.log_sigmoid(-0.4 * h).mean()),
            "β is missing": float(-stage.log_sigmoid(h).mean()),
        }
        judge.array("the loss", result[0], loss, 1e-9, n=B, mistakes=mistakes)
        slopes = {
            "β is a factor of the slope, too": dchosen / 0.4,
            "that is σ(βh), the probability of the right order; the wrong one pulls": -0.4
            * stage.sigmoid(0.4 * h)
            / B,
        }
        judge.array("dchosen", result[1], dchosen, 1e-9, n=B, mistakes=slopes)
        judge.array("drejected", result[2], drejected, 1e-9, n=B)


def test_6(answers, rng):
    old = -rng.uniform(1, 3, 12)
    logp = old + np.array([0, 0.5, -0.5, 0.5, -0.5, 0.1, -0.1, 1, -1, 1, -1, 0.05])
    advantages = np.array([1, 1, 1, -1, -1, 1, -1, -2, 2, 2, -2, 0.5])
    result = judge.call(answers, "ppo", logp, old, advantages)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        judge.wrong("ppo: expected the loss and its slope")
    loss, dlogp, _ = stage.ppo_loss(logp, old, advantages)
    judge.array("the loss", result[0], loss, 1e-9, n=12)
    ratio = np.exp(logp - old)
    if judge.same(np.asarray(result[1]), dlogp / ratio, 1e-9):
        judge.wrong("dlogp: that is the slope in ρ; in log π it has a factor")
    for name, way, chosen in (
        ("went the wrong way", "it must be pulled back", (dlogp != 0) & (abs(logp - old) > 0.2)),
        ("went far enough the right way", "it earns nothing more", dlogp == 0),
    ):
        found = np.asarray(result[1])[chosen]
        if not np.allclose(found, dlogp[chosen]):
            judge.wrong(f"dlogp of a token that {name}: {way}")
    judge.array("dlogp", result[1], dlogp, 1e-9, n=12)


def test_7(answers, rng):
    for _ in range(10):
        epsilon, beta = rng.uniform(0.01, 0.45), rng.uniform(0.1, 3)
        right = math.log((1 - epsilon) / epsilon) / beta
        mistakes = {
            "β divides": right * beta,
            "β divides, it does not multiply": right * beta * beta,
            "σ(βh) = 1 - ε is a probability; solve it for h": (1 - epsilon),
        }
        found = judge.call(answers, "smoothed_margin", epsilon, beta)
        judge.array("smoothed_margin", found, right, 1e-9, mistakes=mistakes)


def test_8(answers):
    right = math.log(16) - 15 / 16
    mistakes = {
        "log n alone is only the bound": math.log(16),
        "(n - 1)/n is taken off, not added": math.log(16) + 15 / 16,
    }
    judge.number(answers, "ANSWER_8", right, mistakes=mistakes)
    mistakes = {
        "that is the median's place, not the mean's": 0.5 ** (1 / 16),
        "(n - 1)/n is what the KL has; here a mean under n·f^(n-1) is asked for": 15 / 16,
    }
    judge.number(answers, "ANSWER_8B", 16 / 17, digits=3, mistakes=mistakes)


def test_9(answers):
    judge.answer(answers, "ANSWER_9")
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    deviations, plain = [], []
    d = np.log(q / p)
    for k in (-d, np.exp(d) - 1 - d):
        deviations.append(math.sqrt(p @ k**2 - (p @ k) ** 2))
        plain.append(k.std())
    right = deviations[0] / deviations[1]
    judge.number(answers, "ANSWER_9", right, mistakes={
        "the other way round": 1 / right,
        "that is the quotient of the variances": right**2,
        "the three tokens are not equally likely: weigh them with p": plain[0] / plain[1],
    })  # fmt: skip


def test_10(answers, rng):
    for _ in range(5):
        lengths = [int(n) for n in rng.integers(1, 9, 4)]
        longest = 12
        expected = {
            "response": [1 / (4 * n) for n in lengths],
            "token": [1 / sum(lengths)] * 4,
            "constant": [1 / (4 * longest)] * 4,
        }
        for how, weights in expected.items():
            found = judge.call(answers, "token_weights", lengths, how, longest)
            if not isinstance(found, (list, tuple)):
                judge.wrong(f"{how}: expected a list of arrays, one for each answer")
            if len(found) != 4 or [np.shape(w) for w in found] != [(n,) for n in lengths]:
                judge.wrong(f"{how}: expected an array of each answer's length")
            right = np.concatenate([np.full(n, w) for n, w in zip(lengths, weights)])
            mistakes = {
                "the answers' means have to be averaged, too": right * 4,
                "the longest is given; it is not that of the batch": np.full(
                    right.shape, 1 / (4 * max(lengths))
                ),
                "an answer's own length has no say here": np.concatenate(
                    [np.full(n, 1 / (4 * n)) for n in lengths]
                ),
            }
            if how == "response":
                mistakes = {"the answers' means have to be averaged, too": right * 4}
            judge.array(how, np.concatenate(found), right, mistakes=mistakes)


def test_11(answers, rng):
    for V in (5, 2):
        p, rewards = rng.dirichlet(np.ones(V)), rng.normal(size=V) + 3
        gradient = np.eye(V) - p  # a row for each token drawn

        def variance(b, p=p, rewards=rewards, gradient=gradient):
            estimates = (rewards - b)[:, None] * gradient
            mean = p @ estimates
            return float(p @ (estimates**2).sum(1) - mean @ mean)

        bs = np.array([0.0, 1.0, 2.0])  # the variance is a parabola in b
        a2, a1, _ = np.polyfit(bs, [variance(b) for b in bs], 2)
        right = -a1 / (2 * a2)
        mistakes = {
            "that is the mean reward; it is near, but not the calmest": p @ rewards,
            "the mean over tokens has to be weighted with their probabilities": rewards.mean(),
        }
        found = judge.call(answers, "best_baseline", p, rewards)
        judge.array("best_baseline", found, right, 1e-7, mistakes=mistakes)


@pytest.mark.project
def test_13(answers):
    judge.answer(answers, "my_policy")
    names = Path(stage.__file__).parent / "data" / "names.txt"
    tokens = stage.encode(names.read_text("utf-8").split())
    world = stage.make_world(tokens, stage.FULL, np.random.default_rng(0))
    policy = judge.call(answers, "my_policy", world, np.random.default_rng(1))
    if not isinstance(policy, dict) or policy.keys() != world.reference.keys():
        judge.wrong("my_policy: expected a dict of parameters like world.reference")
    true, _, kl, _ = stage.judge(policy, world, np.random.default_rng(2))
    share = stage.share_of(world.best, true, kl, world)
    told = f"true reward {true:.2f} at a KL of {kl:.2f} nats, {share:.0%} of the possible gain"
    if kl > 1.5:
        judge.wrong(f"{told}; expected a KL of at most 1.5")
    if not share >= 0.8:
        judge.wrong(f"{told}; expected at least 80 %")
