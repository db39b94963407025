"""Stage 10: the losses against closed forms, central differences and exact enumeration."""

import math
import re

import numpy as np
import pytest
from conftest import ROOT, central_difference, relative_error

import stage10_dpo as s


def logprobs(rng, n, low=-12.0, high=-1.0):
    return [rng.uniform(low, high, n) for _ in range(4)]


def tiny(rng, n_out):
    """A float64 network whose outputs are far from flat, so that gradients are worth checking."""
    params = s.new_network(rng, n_out, dtype=np.float64)
    params["W2"] *= 20
    return params


def shrink(monkeypatch):
    """Small layers, so that every parameter can be perturbed."""
    for name, size in (("CONTEXT", 3), ("EMBEDDING", 2), ("HIDDEN", 4)):
        monkeypatch.setattr(s, name, size)


# ---------------------------------------------------------------------------------- pair losses

LOSSES = {
    "sigmoid": lambda a, b, c, d: s.dpo_loss(a, b, c, d, 0.3),
    "smoothed": lambda a, b, c, d: s.dpo_loss(a, b, c, d, 0.7, 0.2),
    "ipo": lambda a, b, c, d: s.dpo_loss(a, b, c, d, 0.2, kind="ipo"),
    "ipo smoothed": lambda a, b, c, d: s.dpo_loss(a, b, c, d, 0.2, 0.1, "ipo"),
    "hinge": lambda a, b, c, d: s.dpo_loss(a, b, c, d, 0.4, 0.0, "hinge"),
    "kto": lambda a, b, c, d: s.kto_loss(a, b, c, d, 0.3, kl=0.5, weights=(1.3, 0.7)),
    "orpo": lambda a, b, c, d: s.orpo_loss(a, b, 0.6),
    "simpo": lambda a, b, c, d: s.simpo_loss(a, b, 2.0, 0.5),
    "reward": lambda a, b, c, d: s.reward_loss(a, b),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("n", [1, 7])
def test_slopes_are_central_differences_of_the_mean_loss(name, n, rng):
    inputs = logprobs(rng, n)
    _, dchosen, drejected, *_ = LOSSES[name](*inputs)
    for x, grad in zip(inputs, (dchosen, drejected)):
        numeric = central_difference(lambda: LOSSES[name](*inputs)[0], x)
        assert relative_error(grad, numeric) < 1e-6
        assert n == 1 or np.abs(numeric).max() > 1e-9  # one hinge alone may be flat


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge"])
def test_dpo_kinds_against_their_definitions(kind, rng):
    pc, pr, rc, rr = logprobs(rng, 5)
    beta = 0.37
    loss, _, _, chosen, rejected = s.dpo_loss(pc, pr, rc, rr, beta, kind=kind)
    expected = []
    for a, b, c, d in zip(pc, pr, rc, rr):
        h = (a - b) - (c - d)  # the order of TRL: policy log-ratio minus reference log-ratio
        expected.append(
            {
                "sigmoid": -math.log(1 / (1 + math.exp(-beta * h))),
                "ipo": (h - 1 / (2 * beta)) ** 2,
                "hinge": max(0.0, 1 - beta * h),
            }[kind]
        )
    assert loss == pytest.approx(np.mean(expected), rel=1e-12)
    assert isinstance(loss, float)
    np.testing.assert_allclose(chosen, beta * (pc - rc))
    np.testing.assert_allclose(rejected, beta * (pr - rr))


def test_dpo_starts_at_log_2_with_half_beta_weights(rng):
    pc, pr, _, _ = logprobs(rng, 4)
    loss, dchosen, drejected, chosen, _ = s.dpo_loss(pc, pr, pc, pr, 0.1)
    assert loss == pytest.approx(math.log(2))
    np.testing.assert_allclose(dchosen, -0.05 / 4)
    np.testing.assert_array_equal(drejected, -dchosen)
    np.testing.assert_array_equal(chosen, 0)


def test_conservative_dpo_is_the_expected_loss_under_flips(rng):
    pc, pr, rc, rr = logprobs(rng, 6)
    smooth = s.dpo_loss(pc, pr, rc, rr, 0.5, 0.1)[0]
    right, wrong = s.dpo_loss(pc, pr, rc, rr, 0.5)[0], s.dpo_loss(pr, pc, rr, rc, 0.5)[0]
    assert smooth == pytest.approx(0.9 * right + 0.1 * wrong)
    zero = np.zeros(1)
    h = math.log(0.9 / 0.1) / 0.5  # where σ(βh) = 1 - ε the slope vanishes
    assert abs(s.dpo_loss(np.array([h]), zero, zero, zero, 0.5, 0.1)[1][0]) < 1e-15


def test_ipo_rests_at_its_target_gap():
    zero = np.zeros(3)
    loss, dchosen, _, _, _ = s.dpo_loss(zero + 1 / (2 * 0.25), zero, zero, zero, 0.25, kind="ipo")
    assert loss == 0 and not dchosen.any()


def test_dpo_extremes_stay_finite():
    zero = np.zeros(2)
    for gap in (-1e4, 1e4):
        loss, dchosen, _, _, _ = s.dpo_loss(zero + gap, zero, zero, zero, 1.0)
        assert loss == (0 if gap > 0 else 1e4)
        np.testing.assert_allclose(dchosen, 0 if gap > 0 else -0.5)


def test_dpo_recovers_the_optimal_policy_from_exact_preferences():
    """Full-batch DPO over all pairs, weighted by Bradley-Terry, ends at π* ∝ π_ref exp(r/β)."""
    reward, beta = np.array([0.0, 1.0, -0.5, 2.0]), 0.8
    ref = np.log([0.4, 0.3, 0.2, 0.1])
    i, j = (a.ravel() for a in np.meshgrid(range(4), range(4)))
    weight = s.sigmoid(reward[i] - reward[j])
    z = ref.copy()
    for _ in range(4000):
        logp = s.log_softmax(z)
        dchosen = s.dpo_loss(logp[i], logp[j], ref[i], ref[j], beta)[1] * weight
        g = np.bincount(i, dchosen, 4) - np.bincount(j, dchosen, 4)
        z -= 5 * (g - np.exp(logp) * g.sum())
    np.testing.assert_allclose(s.log_softmax(z), s.log_softmax(ref + reward / beta), atol=1e-6)


def test_kto_formula_its_batch_reference_point_and_unpaired_sizes(rng):
    pc, _, rc, _ = logprobs(rng, 3)
    pr, _, rr, _ = logprobs(rng, 5)
    for kl in (None, 0.0, 1.5):
        z = kl if kl is not None else max(0, np.mean(np.concatenate([pc - rc, pr - rr])))
        good, bad = s.sigmoid(0.2 * (pc - rc - z)), s.sigmoid(0.2 * (z - pr + rr))
        loss, dchosen, drejected, _, _ = s.kto_loss(pc, pr, rc, rr, 0.2, kl=kl)
        assert loss == pytest.approx(np.mean(np.concatenate([1 - good, 1 - bad])))
        assert dchosen.shape == (3,) and drejected.shape == (5,)
        assert (dchosen < 0).all() and (drejected > 0).all()


def test_orpo_is_nll_plus_odds_ratio(rng):
    m_w, m_l, _, _ = logprobs(rng, 4, -3, -0.1)
    odds = [np.exp(m) / (1 - np.exp(m)) for m in (m_w, m_l)]
    expected = -m_w.mean() - 0.3 * np.log(s.sigmoid(np.log(odds[0] / odds[1]))).mean()
    assert s.orpo_loss(m_w, m_l, 0.3)[0] == pytest.approx(expected)


def test_simpo_margin_is_met_at_loss_log_2():
    m_l = np.array([-2.0, -1.0])
    assert s.simpo_loss(m_l + 0.5 / 2.0, m_l, 2.0, 0.5)[0] == pytest.approx(math.log(2))


def test_reward_loss_knows_only_differences(rng):
    a, b, c, _ = logprobs(rng, 6)
    assert s.reward_loss(a + c, b + c)[0] == pytest.approx(s.reward_loss(a, b)[0])


def test_gumbel_noise_makes_bradley_terry(rng):
    noise = rng.gumbel(size=(2, 200_000))
    assert np.mean(noise[0] + 0.8 > noise[1]) == pytest.approx(s.sigmoid(0.8), abs=0.005)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_follows_the_inputs(dtype, rng):
    inputs = [x.astype(dtype) for x in logprobs(rng, 3)]
    for name, loss in LOSSES.items():
        assert {g.dtype for g in loss(*inputs)[1:]} == {np.dtype(dtype)}, name


# ---------------------------------------------------------------------------------- KL, optimum


def test_kl_exact_and_its_estimators(rng):
    p, q = rng.normal(size=(2, 6))
    p_, q_ = s.log_softmax(p), s.log_softmax(q)
    exact = sum(math.exp(a) * (a - b) for a, b in zip(p_, q_))
    assert s.kl_divergence(p, q) == pytest.approx(exact)
    assert s.kl_divergence(p_, q_) == pytest.approx(exact)
    for kind in ("k1", "k3"):  # unbiased: their expectation under p, enumerated
        assert np.exp(p_) @ s.kl_divergence(p_, q_, kind) == pytest.approx(exact)
    assert (s.kl_divergence(p_, q_, "k3") >= 0).all()
    assert (s.kl_divergence(p_, q_, "k1") < 0).any()
    np.testing.assert_allclose(s.kl_divergence(p_, q_, "k2"), (p_ - q_) ** 2 / 2)
    assert s.kl_divergence(rng.normal(size=(3, 2, 4)), rng.normal(size=(3, 2, 4))).shape == (3, 2)
    np.testing.assert_allclose(s.kl_divergence(p, p + 3), 0, atol=1e-15)


def test_frontier_points_beat_every_other_policy(rng):
    """On a uniform reference over M outcomes the rows are exact, and no random policy is above."""
    rewards = rng.normal(size=(1, 8))
    beta = 0.7
    ((kl, mean),) = s.frontier(rewards, rewards, np.ones(1), [beta])
    z = np.log(np.mean(np.exp(rewards / beta)))
    assert mean - beta * kl == pytest.approx(beta * z)  # J(π*) = β log Z
    for _ in range(200):
        p = rng.dirichlet(np.full(8, 0.5)) + 1e-300
        assert p @ rewards[0] - beta * (p @ np.log(p * 8)) <= mean - beta * kl + 1e-12


def test_best_of_n_bound_is_exact_without_ties(rng):
    u = rng.random((1, 120_000))
    M, n = 4000, 5  # the best of n draws from 1..M, enumerated
    cdf = (np.arange(M + 1) / M) ** n
    p = np.diff(cdf)
    assert (p * np.log(p * M)).sum() == pytest.approx(s.best_of_n(u, u, n)[1], abs=1e-3)
    assert s.best_of_n(u, u, n)[0] == pytest.approx(n / (n + 1), abs=0.005)
    assert s.best_of_n(u, -u, 1) == (pytest.approx(-u.mean()), 0)


# ---------------------------------------------------------------------------------- GAE, PPO, GRPO


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 4)])
def test_gae_is_its_direct_sum(gamma, lam, shape, rng):
    T = shape[-1]
    rewards, values = rng.normal(size=shape), rng.normal(size=(*shape[:-1], T + 1))
    advantages, returns = s.gae(rewards, values, gamma, lam)
    delta = rewards + gamma * values[..., 1:] - values[..., :-1]
    for t in range(T):
        direct = sum((gamma * lam) ** l * delta[..., t + l] for l in range(T - t))
        np.testing.assert_allclose(advantages[..., t], direct, atol=1e-12)
    np.testing.assert_allclose(returns, advantages + values[..., :-1])
    values[..., -1] = 0
    for a, b in zip(
        s.gae(rewards, values, gamma, lam), s.gae(rewards, values[..., :-1], gamma, lam)
    ):
        np.testing.assert_array_equal(a, b)


def test_gae_limits(rng):
    rewards, values = rng.normal(size=(2, 6))
    monte_carlo = [sum(0.9**k * r for k, r in enumerate(rewards[t:])) for t in range(6)]
    np.testing.assert_allclose(s.gae(rewards, values, 0.9, 1.0)[1], monte_carlo)
    td = rewards + 0.9 * np.append(values[1:], 0) - values
    np.testing.assert_allclose(s.gae(rewards, values, 0.9, 0.0)[0], td)


def test_ppo_slope_and_value(rng):
    logp, old, advantages = rng.normal(size=(3, 4, 5)) * 0.3
    mask = rng.random((4, 5)) < 0.7
    loss, dlogp, clipped = s.ppo_loss(logp, old, advantages, 0.2, mask)
    terms = [
        min(r * a, min(max(r, 0.8), 1.2) * a)
        for r, a in zip(np.exp(logp - old)[mask], advantages[mask])
    ]
    assert loss == pytest.approx(-np.mean(terms))
    numeric = central_difference(lambda: s.ppo_loss(logp, old, advantages, 0.2, mask)[0], logp)
    assert relative_error(dlogp, numeric) < 1e-6
    assert 0 < clipped < 1 and clipped == pytest.approx(np.mean(dlogp[mask] == 0))
    assert not dlogp[~mask].any()


def test_ppo_at_ratio_one_is_the_policy_gradient(rng):
    logp, advantages = rng.normal(size=(2, 7))
    _, dlogp, clipped = s.ppo_loss(logp, logp, advantages)
    np.testing.assert_allclose(dlogp, -advantages / 7)
    assert clipped == 0


@pytest.mark.parametrize("ratio, advantage, slope", [(1.5, 1, 0), (1.5, -1, 1.5), (0.5, -1, 0)])
def test_ppo_clips_only_the_good_direction(ratio, advantage, slope):
    dlogp = s.ppo_loss(np.log([ratio]), np.zeros(1), np.array([advantage]))[1]
    assert dlogp[0] == pytest.approx(slope)


def test_grpo_advantages(rng):
    rewards = rng.normal(3, 2, size=(4, 6))
    rewards[2] = 0.1
    a = s.grpo_advantages(rewards)
    np.testing.assert_allclose(a.mean(1), 0, atol=1e-8)
    np.testing.assert_allclose(np.delete(a.std(1), 2), 1, rtol=1e-6)
    np.testing.assert_allclose(a[2], 0, atol=1e-6)
    np.testing.assert_allclose(s.grpo_advantages(5 * rewards[:2] + 7), a[:2], rtol=1e-6)
    plain = s.grpo_advantages(rewards, normalize=False)
    np.testing.assert_allclose(plain, rewards - rewards.mean(1, keepdims=True))


# ---------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("names", [["a"], ["q", "anna", "zed"]])
def test_policy_backward_is_its_central_difference(names, rng, monkeypatch):
    shrink(monkeypatch)
    policy, tokens = tiny(rng, s.VOCABULARY), s.encode(names)
    logp, _, cache = s.policy_forward(policy, tokens)
    w = rng.normal(size=logp.shape)
    grads = s.policy_backward(w, cache)
    for name, p in policy.items():
        numeric = central_difference(lambda: (w * s.policy_forward(policy, tokens)[0]).sum(), p)
        assert relative_error(grads[name], numeric) < 1e-6, name


def test_reward_network_backward_is_its_central_difference(rng, monkeypatch):
    shrink(monkeypatch)
    params, tokens = tiny(rng, 1), s.encode(["bob", "eve", "o"])
    w = rng.normal(size=3)
    z, _, cache = s.places_forward(params, tokens)
    grads = s.places_backward(w[:, None, None] + np.zeros_like(z), cache)
    for name, p in params.items():
        numeric = central_difference(lambda: w @ s.learned_rewards(params, tokens), p)
        assert relative_error(grads[name], numeric) < 1e-6, name


def test_masked_rows_equal_names_taken_one_by_one(rng):
    policy = tiny(rng, s.VOCABULARY)
    names = ["io", "bartholomew", "x", "abcdefghijklmno"]
    together, mask, _ = s.policy_forward(policy, s.encode(names))
    np.testing.assert_array_equal(mask.sum(1), [2, 11, 1, 15])
    for i, name in enumerate(names):
        alone, _, _ = s.policy_forward(policy, s.encode([name]))
        np.testing.assert_allclose(together[i, : alone.shape[1]], alone[0], rtol=1e-12)
        assert not together[i, alone.shape[1] :].any()


def test_sequence_logprob_sums_the_masked_terms(rng):
    logits, tokens = rng.normal(size=(2, 3, 5)), rng.integers(0, 5, (2, 3))
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = [
        sum(math.log(p[b, t, tokens[b, t]]) for t in range(3) if mask[b, t]) for b in range(2)
    ]
    np.testing.assert_allclose(s.sequence_logprob(logits, tokens, mask), expected)
    np.testing.assert_allclose(
        s.sequence_logprob(logits + 1e4, tokens), s.sequence_logprob(logits, tokens), rtol=1e-6
    )


def test_samples_follow_the_policy_and_stop_at_end(rng):
    policy = tiny(rng, s.VOCABULARY)
    tokens = s.sample(policy, np.full(20_000, 3), rng)
    logits, _, _ = s.places_forward(policy, tokens[:1])
    share = np.bincount(tokens[:, 1], minlength=s.VOCABULARY) / len(tokens)
    np.testing.assert_allclose(share, np.exp(s.log_softmax(logits[0, 0])), atol=0.015)
    ended = np.cumsum(tokens[:, 1:] == s.END, axis=1) > 0
    assert not tokens[:, 1:][ended].any()
    np.testing.assert_array_equal(tokens[:, 0], 3)


def test_encode_decode_and_the_hidden_taste():
    names = ["a", "marina", "lllllllllllllll"]
    assert s.decode(s.encode(names)) == names
    assert s.true_reward("marina") == pytest.approx(4.5)  # m r n, ends in a vowel, six letters
    assert s.true_reward("nananana") == pytest.approx(3 + 1.5 - 1.2 - 1.5 * 4)  # four n, four a
    assert s.true_reward("strix") == pytest.approx(1 - 0.6 - 1.5)  # s-t-r is crowded
    np.testing.assert_array_equal(s.true_rewards(s.encode(["marina"])), [4.5])


def test_each_training_loop_moves_towards_its_goal(rng):
    """A few steps of every method raise the probability of names that end in a, as preferred."""
    reference = s.new_network(rng, s.VOCABULARY)
    chosen, rejected = s.encode(["kia", "bola", "tuna"] * 4), s.encode(["kix", "bolx", "tunx"] * 4)

    def gap(policy):
        return np.subtract(
            *(s.policy_forward(policy, t)[0].sum(1).mean() for t in (chosen, rejected))
        )

    before = gap(reference)
    methods = [(s.dpo_loss, {}), (s.dpo_loss, {"kind": "ipo"}), (s.kto_loss, {})]
    for loss, options in [*methods, (s.orpo_loss, {}), (s.simpo_loss, {})]:
        policy = s.train_on_pairs(loss, reference, chosen, rejected, 12, rng, beta=0.5, **options)
        assert gap(policy) > before + 0.05, loss.__name__
    assert gap(reference) == before  # the reference itself is untouched
    model = s.train_reward_model(chosen, rejected, 30, rng)
    assert (s.learned_rewards(model, chosen) > s.learned_rewards(model, rejected)).all()
    for kind in ("ppo", "grpo"):
        policy = s.train_rl(kind, reference, model, chosen[:, 0], 0.01, 6, rng)
        drawn = (s.sample(p, rng.choice(chosen[:, 0], 400), rng) for p in (policy, reference))
        after, start = (s.learned_rewards(model, t).mean() for t in drawn)
        assert after > start, kind


# ---------------------------------------------------------------------------------- bad input

ONE, TWO, NAN = np.zeros(1) - 1, np.zeros(2) - 1, np.array([np.nan])
BAD = [
    (lambda: s.dpo_loss(ONE, ONE, ONE, ONE, 0.0), "beta = 0.0.*> 0"),
    (lambda: s.dpo_loss(ONE, ONE, ONE, ONE, -1), "beta = -1"),
    (lambda: s.dpo_loss(ONE, ONE, ONE, ONE, math.nan), "beta = nan"),
    (lambda: s.dpo_loss(ONE, ONE, ONE, ONE, math.inf), "beta = inf"),
    (lambda: s.dpo_loss([], [], [], [], 0.1), "policy_chosen is empty"),
    (lambda: s.dpo_loss(TWO, ONE, TWO, ONE, 0.1), r"policy_rejected has shape \(1,\).*\(2,\)"),
    (lambda: s.dpo_loss(ONE, ONE, TWO, ONE, 0.1), r"ref_chosen has shape \(2,\)"),
    (lambda: s.dpo_loss(ONE, ONE, ONE, NAN, 0.1), "ref_rejected contains nan"),
    (lambda: s.dpo_loss(ONE, -np.inf * TWO[:1], ONE, ONE, 0.1), "policy_rejected contains"),
    (lambda: s.dpo_loss(ONE, ONE, ONE, ONE, 0.1, 0.7), "label_smoothing = 0.7.*<= 0.5"),
    (lambda: s.dpo_loss(ONE, ONE, ONE, ONE, 0.1, kind="dpo"), "kind = 'dpo'.*sigmoid"),
    (lambda: s.kto_loss(ONE, ONE, ONE, ONE, 0), "beta = 0"),
    (lambda: s.kto_loss(ONE, [], ONE, [], 0.1), "policy_rejected is empty"),
    (lambda: s.kto_loss(ONE, ONE, ONE, ONE, 0.1, kl=-1), "kl = -1"),
    (lambda: s.kto_loss(ONE, ONE, ONE, ONE, 0.1, weights=(-1, 1)), "weight = -1"),
    (lambda: s.orpo_loss(ONE, ONE, -0.1), "beta = -0.1"),
    (lambda: s.orpo_loss(ONE + 1, ONE), "chosen_mean"),
    (lambda: s.simpo_loss(ONE, TWO), "rejected_mean has shape"),
    (lambda: s.simpo_loss(ONE, ONE, gamma=-1), "gamma = -1"),
    (lambda: s.reward_loss([], []), "chosen_rewards is empty"),
    (lambda: s.reward_loss(NAN, ONE), "chosen_rewards contains nan"),
    (lambda: s.gae(TWO, np.zeros(4), 1, 1), r"rewards \(2,\), values \(4,\)"),
    (lambda: s.gae(TWO, TWO, 1.5, 1), "gamma = 1.5"),
    (lambda: s.gae(TWO, TWO, 1, -0.1), "lam = -0.1"),
    (lambda: s.gae([], [], 1, 1), "rewards is empty"),
    (lambda: s.ppo_loss(ONE, ONE, ONE, clip=0), "clip = 0"),
    (lambda: s.ppo_loss(ONE, TWO, ONE), "old_logp has shape"),
    (lambda: s.ppo_loss(ONE, ONE, ONE, mask=np.zeros(1)), "mask"),
    (lambda: s.grpo_advantages([]), "rewards is empty"),
    (lambda: s.kl_divergence(ONE, TWO), "logq has shape"),
    (lambda: s.kl_divergence(ONE, ONE, "k9"), "kind = 'k9'"),
    (lambda: s.sequence_logprob(np.zeros((1, 2, 3)), [[0, 3]]), "from 0 to 2"),
    (lambda: s.sequence_logprob(np.zeros((1, 2, 3)), [[0]]), r"\(B, T, V\)"),
    (lambda: s.frontier(TWO[None], TWO[None], np.ones(1), [0]), "beta = 0"),
    (lambda: s.best_of_n(TWO[None], TWO[None], 0), "n = 0"),
    (lambda: s.encode(["Anna"]), "'Anna'.*a to z"),
]


@pytest.mark.parametrize("call, message", BAD)
def test_bad_input_names_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("text", [None, "", "anna\nBob\n", "anna\n"])
def test_bad_names_end_with_one_clean_line(text, tmp_path, capsys):
    path = tmp_path / "names.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        s.main(["--fast", "--names", str(path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "error:" in error and "Traceback" not in error


def test_fast_report_is_whole_and_repeats(capsys):
    def report(seed):
        assert s.main(["--fast", "--seed", seed]) in (None, 0)
        return re.sub(r" +[\d.]+ s\b", "", capsys.readouterr().out)

    first = report("0")
    assert first == report("0") != report("1")
    for word in ("Bayes limit", "OVER-OPTIMISATION", *s.METHODS, "best-of-n"):
        assert word in first
    assert "held-out:" not in first and (ROOT / "data" / "names.txt").exists()


# Inputs at the corners: the right value, or a sentence that says what was expected.


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64])
def test_tokens_of_any_width_are_the_same_tokens(rng, dtype):
    policy, tokens = s.new_network(rng, 27), s.encode(["anna", "otto", "li"])
    narrow = tokens.astype(dtype)
    logp, mask, _ = s.policy_forward(policy, tokens)
    for same in (narrow, tokens.tolist()):
        assert np.array_equal(s.policy_forward(policy, same)[0], logp)
        assert np.array_equal(s.learned_rewards(policy, same), s.learned_rewards(policy, tokens))
        assert s.decode(same) == ["anna", "otto", "li"]
    drawn = [s.sample(policy, t[:, 0], np.random.default_rng(0)) for t in (tokens, narrow)]
    assert np.array_equal(*drawn)
    logits = rng.normal(size=(3, 4, 27))
    wide = s.sequence_logprob(logits, tokens[:, :4])
    assert np.array_equal(s.sequence_logprob(logits, narrow[:, :4]), wide)


@pytest.mark.parametrize(
    "wrong", [lambda t: t * 1.0, lambda t: t > 0, lambda t: t - 1, lambda t: t + 20, lambda t: t[0]]
)
def test_what_is_no_token_is_refused(rng, wrong):
    policy, tokens = s.new_network(rng, 27), s.encode(["anna", "otto"])
    bad = wrong(tokens)
    calls = [lambda: s.policy_forward(policy, bad), lambda: s.learned_rewards(policy, bad)]
    calls += [lambda: s.decode(bad), lambda: s.sample(policy, bad[..., 1] - 99, rng)]
    calls += [lambda: s.sequence_logprob(np.zeros((2, 16, 27)), bad)]
    calls += [lambda: s.network_forward(policy, bad[..., :8])]
    for call in calls:
        with pytest.raises(ValueError, match="tokens"):
            call()


def test_small_integers_are_numbers_like_any_others():
    eight = [np.array([n], np.uint8) for n in (1, 3, 5, 2)]
    assert s.log_sigmoid(np.uint8(3)) == s.log_sigmoid(3) == s.log_sigmoid([3])[0]
    assert s.log_sigmoid(3) == pytest.approx(-math.log1p(math.exp(-3)))
    assert s.reward_loss(*eight[:2])[0] == s.reward_loss([1], [3])[0]
    assert s.dpo_loss(*eight, 1)[0] == s.dpo_loss([1], [3], [5], [2], 1)[0]
    np.testing.assert_allclose(s.grpo_advantages(np.array([0, 255], np.uint8)), [-1, 1])
    R = np.arange(12.0).reshape(2, 6)
    assert s.best_of_n(R.tolist(), R, np.uint8(3))[1] == math.log(3) - 2 / 3


def test_logarithms_of_zero_and_of_nothing_else():
    assert s.log_sigmoid(-math.inf) == -math.inf and s.sigmoid(-math.inf) == 0
    assert s.log_sigmoid(math.inf) == 0 and s.sigmoid(math.inf) == 1
    np.testing.assert_array_equal(s.log_softmax([0.0, -math.inf]), [0, -math.inf])
    logits = np.array([[[0.0, -math.inf], [-math.inf, 3.0]]])
    np.testing.assert_array_equal(s.sequence_logprob(logits, [[0, 1]], None, True), [[0, 0]])
    assert s.sequence_logprob(logits, [[1, 1]]) == -math.inf
    for impossible in (-math.inf, math.inf, math.nan):
        logits[0, 1] = impossible
        with pytest.raises(ValueError, match="1 rows of logits nan or inf"):
            s.sequence_logprob(logits, [[0, 1]])


def test_upstream_gradients_of_another_shape_are_refused(rng):
    policy = s.new_network(rng, 27)
    logp, _, cache = s.policy_forward(policy, s.encode(["anna", "li"]))
    for wrong in ((2, 1), (1, logp.shape[1]), logp.shape[::-1], logp.size):
        with pytest.raises(ValueError, match=r"dlogp has shape .*: expected \(2, 4\)"):
            s.policy_backward(np.ones(wrong), cache)


def test_wrong_numbers_are_named(rng):
    policy, R = s.new_network(rng, 27), np.zeros((2, 6))
    model, tokens, zero = s.new_network(rng, 1), s.encode(["anna", "li"]), [0.0]

    def rl(kind="ppo", beta=0.1, iterations=1):
        s.train_rl(kind, policy, model, tokens[:, 0], beta, iterations, rng)

    for call, said in (
        (lambda: s.encode([None]), "name None"),
        (lambda: s.true_reward(""), "name ''"),
        (lambda: s.reward_loss(["a"], [1]), "chosen_rewards is <U1: expected numbers"),
        (lambda: s.reward_loss(None, [1]), "chosen_rewards is object: expected numbers"),
        (lambda: s.frontier(R, R, [0.5, 0.5], "1"), "beta = '1'"),
        (lambda: s.frontier(R, R, [0.5, 0.5], [None]), "beta = None"),
        (lambda: s.frontier(R, R, [0.5, 0.5], [True]), "beta = True"),
        (lambda: s.best_of_n(R, R, 2.0), "n = 2.0"),
        (lambda: s.best_of_n(R, R, "2"), "n = '2'"),
        (lambda: s.best_of_n(R, R, 4), "n = 4 to divide M"),
        (lambda: s.gae([1.0], [1.0], "a", 1), "gamma = 'a'"),
        (lambda: s.gae([1.0], [1.0], 1, None), "lam = None"),
        (lambda: s.ppo_loss([1.0], [1.0], [1.0], "a"), "clip = 'a'"),
        (lambda: s.grpo_advantages(3.0), "rewards = 3.0"),
        (lambda: s.dpo_loss(zero, zero, zero, zero, "a"), "beta = 'a'"),
        (lambda: s.dpo_loss(zero, zero, zero, zero, 1, None), "label_smoothing = None"),
        (lambda: s.dpo_loss(zero, zero, zero, zero, 1, 0, ["ipo"]), r"kind = \['ipo'\]"),
        (lambda: s.kto_loss(zero, zero, zero, zero, 1, "a"), "kl = 'a'"),
        (lambda: s.kto_loss(zero, zero, zero, zero, 1, 0, ("a", 1)), "a weight = 'a'"),
        (lambda: rl(kind="PPO"), "kind = 'PPO'"),
        (lambda: rl(beta="a"), "beta = 'a'"),
        (lambda: rl(beta=math.nan), "beta = nan"),
        (lambda: rl(iterations="a"), "iterations = 'a'"),
        (lambda: s.pretrain(tokens, "a", rng), "steps = 'a'"),
        (lambda: s.train_reward_model(tokens, tokens, 0, rng), "steps = 0"),
        (lambda: s.train_on_pairs(s.dpo_loss, policy, tokens, tokens, 1.5, rng), "steps = 1.5"),
        (lambda: s.text_plot([]), "points are empty"),
        (lambda: s.text_plot([(1.0, math.nan, "a")]), "points that are finite"),
        (lambda: s.text_plot([(-1.0, 0.0, "a")]), "with x >= 0"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_a_constant_and_a_single_point_are_drawn():
    lines = s.text_plot([(0.0, 2.0, "a"), (3.0, 2.0, "b")], width=12, height=6)
    assert lines[6].split("|")[1] == "a" + " " * 11 + "b"
    assert "a" in "".join(s.text_plot([(0.0, 0.0, "a")]))


def test_training_that_diverges_is_stopped_and_not_returned(rng, monkeypatch):
    class Wild(s.Adam):
        def __init__(self, params, rate, *rest, **named):
            super().__init__(params, 1e30, *rest, **named)

    with pytest.raises(ValueError, match="norm is nan at step 1"):
        s.Adam({"a": np.ones(1)}, 0.1, 9).step({"a": np.array([math.nan])})
    monkeypatch.setattr(s, "Adam", Wild)
    policy, model = s.new_network(rng, 27), s.new_network(rng, 1)
    tokens = s.encode(["anna", "otto", "li", "bob"] * 9)
    with np.errstate(all="ignore"):
        for train in (
            lambda: s.pretrain(tokens, 9, rng),
            lambda: s.train_reward_model(tokens, tokens[::-1], 9, rng),
            lambda: s.train_rl("ppo", policy, model, tokens[:, 0], 0.1, 3, rng),
            lambda: s.train_rl("grpo", policy, model, tokens[:, 0], 0.1, 3, rng),
        ):
            with pytest.raises(ValueError, match="nan"):
                train()
