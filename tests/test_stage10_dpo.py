"""Stage 10: the losses against closed forms, central differences and exact enumeration."""

import copy
import functools
import math
import re
from types import SimpleNamespace

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


# ---------------------------------------------------------------------------------- the first page


def test_the_first_page_computes_what_stands_beside_it():
    reference = np.log([0.2, 0.3, 0.5])
    z = reference.copy()
    for loss, slope, probabilities in (
        (0.693, 0.25, [0.200, 0.300, 0.500]),
        (0.576, 0.219, [0.271, 0.317, 0.412]),
        (0.486, 0.192, [0.343, 0.322, 0.335]),
    ):
        found, dz, p = s.one_pair(z, reference, 0, 2, 0.5)
        assert found == pytest.approx(loss, abs=5e-4)
        np.testing.assert_allclose(dz, [-slope, 0, slope], atol=5e-4)
        np.testing.assert_allclose(p, probabilities, atol=5e-4)
        np.testing.assert_allclose(p.sum(), 1)
        z -= dz
    _, dz, _ = s.one_pair(z, reference, 0, 2, 0.5)
    numeric = central_difference(lambda: s.one_pair(z, reference, 0, 2, 0.5)[0], z)
    assert relative_error(dz, numeric) < 1e-6
    assert [round(float(s.sigmoid(d)), 3) for d in (1, 2)] == [0.731, 0.881]


def test_the_first_page_ends_at_the_policy_that_it_names():
    """All ordered pairs, weighted by how often they are chosen, drive z to π_ref e^(r/β)."""
    reward, beta = np.array([1.0, 0.0, -1.0]), 0.5
    reference = np.log([0.2, 0.3, 0.5])
    z = reference.copy()
    for _ in range(3000):
        pull = np.zeros(3)
        for winner in range(3):
            for loser in range(3):
                chosen = s.sigmoid(reward[winner] - reward[loser]) if winner != loser else 0
                pull += chosen * s.one_pair(z, reference, winner, loser, beta)[1]
        z -= pull
    p = s.one_pair(z, reference, 0, 2, beta)[2]
    np.testing.assert_allclose(p, [0.801, 0.163, 0.037], atol=5e-4)
    best = np.exp(reference + reward / beta)
    np.testing.assert_allclose(p, best / best.sum(), rtol=1e-6)


# ---------------------------------------------------------------------------------- pair losses

LOSSES = {
    "sigmoid": lambda a, b, c, d: s.dpo_loss(a, b, c, d, 0.3),
    "ipo": lambda a, b, c, d: s.dpo_loss(a, b, c, d, 0.2, kind="ipo"),
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
        assert np.abs(numeric).max() > 1e-9


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
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


def test_the_margin_of_conservative_dpo_is_what_the_file_says():
    """The expected loss under flips, written out with dpo_loss, is flat where σ(βh) = 1-ε."""
    zero, beta, flipped = np.zeros(1), 0.5, 0.1
    h = np.array([math.log((1 - flipped) / flipped) / beta])
    right = s.dpo_loss(h, zero, zero, zero, beta)[1]
    wrong = s.dpo_loss(zero, h, zero, zero, beta)[2]
    assert abs((1 - flipped) * right + flipped * wrong) < 1e-15


def test_a_label_may_stand_for_the_difference_of_preferences_in_ipo(rng):
    """Over random pairs h·label has the mean of h·(p - p′), if h is a difference: enumerated."""
    u, reward = rng.normal(size=(2, 5))
    wins = s.sigmoid(reward[:, None] - reward)  # (y, y′)
    p = wins.mean(1)
    h = u[:, None] - u
    np.testing.assert_allclose((h * wins).mean(), (h * (p[:, None] - p)).mean(), rtol=1e-12)


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


def test_defaults_are_those_of_the_papers(rng):
    a, b, c, d = logprobs(rng, 4)
    assert s.orpo_loss(a, b)[0] == s.orpo_loss(a, b, 0.1)[0]
    assert s.simpo_loss(a, b)[0] == s.simpo_loss(a, b, 2.0, 0.5)[0]
    assert s.ppo_loss(a, b, c)[0] == s.ppo_loss(a, b, c, 0.2, np.ones(4))[0]
    assert s.dpo_loss(a, b, c, d, 0.3)[0] == s.dpo_loss(a, b, c, d, 0.3, "sigmoid")[0]
    assert s.kto_loss(a, b, c, d, 0.3)[0] == s.kto_loss(a, b, c, d, 0.3, None, (1, 1))[0]


def test_simpo_margin_is_met_at_loss_log_2():
    m_l = np.array([-2.0, -1.0])
    assert s.simpo_loss(m_l + 0.5 / 2.0, m_l, 2.0, 0.5)[0] == pytest.approx(math.log(2))


def test_reward_loss_knows_only_differences(rng):
    a, b, c, _ = logprobs(rng, 6)
    assert s.reward_loss(a + c, b + c)[0] == pytest.approx(s.reward_loss(a, b)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_follows_the_inputs(dtype, rng):
    inputs = [x.astype(dtype) for x in logprobs(rng, 3)]
    for name, loss in LOSSES.items():
        assert {g.dtype for g in loss(*inputs)[1:]} == {np.dtype(dtype)}, name
    found = s.kto_loss(*inputs, 0.3, weights=np.array([1.0, 0.5]))[1:]
    assert {g.dtype for g in found} == {np.dtype(dtype)}


# ---------------------------------------------------------------------------------- KL, optimum


def test_kl_exact_and_its_estimators(rng):
    p, q = rng.normal(size=(2, 6))
    p_, q_ = s.log_softmax(p), s.log_softmax(q)
    exact = sum(math.exp(a) * (a - b) for a, b in zip(p_, q_))
    assert s.kl_divergence(p, q) == pytest.approx(exact)
    assert s.kl_divergence(p_, q_) == pytest.approx(exact)
    d = q_ - p_  # the two estimators that the file names, enumerated
    for estimate in (-d, np.exp(d) - 1 - d):
        assert np.exp(p_) @ estimate == pytest.approx(exact)
    assert (-d).min() < 0 <= (np.exp(d) - 1 - d).min()
    assert s.kl_divergence(rng.normal(size=(3, 2, 4)), rng.normal(size=(3, 2, 4))).shape == (3, 2)
    np.testing.assert_allclose(s.kl_divergence(p, p + 3), 0, atol=1e-15)


def test_frontier_points_beat_every_other_policy(rng):
    """On a uniform reference over M outcomes the rows are exact, and no random policy is above."""
    rewards = rng.normal(size=(1, 8))
    beta = 0.7
    ((kl, mean),) = s.frontier(rewards, np.ones(1), [beta])
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
    rewards, values = rng.normal(size=(2, *shape))
    advantages, returns = s.gae(rewards, values, gamma, lam)
    delta = rewards + gamma * np.append(values[..., 1:], 0 * values[..., :1], -1) - values
    for t in range(T):
        direct = sum((gamma * lam) ** l * delta[..., t + l] for l in range(T - t))
        np.testing.assert_allclose(advantages[..., t], direct, atol=1e-12)
    np.testing.assert_allclose(returns, advantages + values)


def test_gae_limits(rng):
    rewards, values = rng.normal(size=(2, 6))
    monte_carlo = [sum(0.9**k * r for k, r in enumerate(rewards[t:])) for t in range(6)]
    np.testing.assert_allclose(s.gae(rewards, values, 0.9, 1.0)[1], monte_carlo)
    td = rewards + 0.9 * np.append(values[1:], 0) - values
    np.testing.assert_allclose(s.gae(rewards, values, 0.9, 0.0)[0], td)


def test_gae_on_three_tokens_is_what_the_file_says():
    rewards, values = [0.0, 0.0, 1.0], [0.2, 0.5, 0.7]
    for lam, expected in (
        (1.0, [0.8, 0.5, 0.3]),
        (0.0, [0.3, 0.2, 0.3]),
        (0.5, [0.475, 0.35, 0.3]),
    ):
        np.testing.assert_allclose(s.gae(rewards, values, 1.0, lam)[0], expected)


def test_ppo_looks_at_nothing_outside_the_mask():
    logp, old, advantages = np.float32([[100, 0], [0, 0], [-1, 1]])
    for outside in (100, -100, np.nan, np.inf, 1e30):
        logp[0] = outside
        loss, dlogp, clipped = s.ppo_loss(logp, old, advantages, mask=[0, 1])
        assert loss == -1 and clipped == 0 and dlogp.dtype == np.float32
        np.testing.assert_array_equal(dlogp, [0, -1])
    with pytest.raises(ValueError, match="largest log π/π_old = 100.0: .*<= 79"):
        s.ppo_loss(np.float32([100]), np.float32([0]), np.float32([-1]))


def test_ppo_weights_can_take_the_mean_within_each_response():
    """Two wrong answers of 2 and 8 tokens: 1/2 a token against 1/8, or all tokens alike."""
    mask = np.arange(8) < np.array([[2], [8]])
    zero = np.zeros((2, 8))
    _, within, _ = s.ppo_loss(zero, zero, -1.0 * mask, mask=mask / mask.sum(1, keepdims=True))
    np.testing.assert_allclose(2 * within[:, 0], [1 / 2, 1 / 8])  # over 2 responses
    _, alike, _ = s.ppo_loss(zero, zero, -1.0 * mask, mask=mask)
    np.testing.assert_allclose(alike, mask / 10)


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
    np.testing.assert_allclose(s.grpo_advantages([1, 0, 0, 1]), [1, -1, -1, 1])
    assert s.grpo_advantages(3.0) == 0  # a group of one
    plain = s.grpo_advantages(rewards, normalize=False)
    np.testing.assert_allclose(plain, rewards - rewards.mean(1, keepdims=True), atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("value", [0.1, 3, 200, 6e4])
def test_equal_rewards_have_no_advantage_in_any_dtype(dtype, value):
    if np.dtype(dtype).kind == "f" or value in (3, 200):
        for normalize in (True, False):
            found = s.grpo_advantages(np.full((2, 7), value, dtype), normalize)
            assert not found.any()


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


# ---------------------------------------------------------------------------------- the loops


class Recorder:
    """Stands in for Adam: keeps parameters and gradients of every step, then moves at random."""

    made = []

    def __init__(self, params, learning_rate, steps, weight_decay=0.0):
        self.params, self.learning_rate, self.steps = params, learning_rate, steps
        self.seen, self.rng = [], np.random.default_rng(len(Recorder.made))
        Recorder.made.append(self)

    def step(self, grads):
        self.seen.append((copy.deepcopy(self.params), copy.deepcopy(grads)))
        for p in self.params.values():
            p += self.rng.normal(0, 0.1, p.shape)


@pytest.fixture
def recorded(monkeypatch):
    """Small float64 networks, and Recorders instead of Adam."""
    shrink(monkeypatch)
    monkeypatch.setattr(s, "new_network", functools.partial(s.new_network, dtype=np.float64))
    monkeypatch.setattr(s, "Adam", Recorder)
    Recorder.made = []
    return Recorder.made


class Ordered(np.random.Generator):
    """A generator that does not shuffle."""

    def permutation(self, n):
        return np.arange(n)


def assert_step(step, loss, *given):
    """The recorded gradients are the central differences of loss(params, *given) at that step."""
    params, grads = step
    for name in ("W1", "b2"):
        numeric = central_difference(lambda: loss(params, *given), params[name])
        assert relative_error(grads[name], numeric) < 1e-5, name  # kinks are near


def total(policy, tokens):
    return s.policy_forward(policy, tokens)[0].sum(1)


def mean(policy, tokens):
    logp, mask, _ = s.policy_forward(policy, tokens)
    return logp.sum(1) / mask.sum(1)


CHOSEN, REJECTED = ["kia", "bola", "tunasu", "e"], ["kixar", "bo", "tunx", "ed"]
INDEPENDENT = {  # each loss written out once more, on a policy, a reference and tokens
    "dpo": lambda p, r, w, l: (
        -np.log(s.sigmoid(0.7 * (total(p, w) - total(r, w) - total(p, l) + total(r, l)))).mean()
    ),
    "ipo": lambda p, r, w, l: (
        (total(p, w) - total(r, w) - total(p, l) + total(r, l) - 1 / (2 * 0.7)) ** 2
    ).mean(),
    "orpo": lambda p, r, w, l: np.mean(
        -mean(p, w)
        - 0.7
        * np.log(
            s.sigmoid(
                (mean(p, w) - np.log(1 - np.exp(mean(p, w))))
                - (mean(p, l) - np.log(1 - np.exp(mean(p, l))))
            )
        )
    ),
    "simpo": lambda p, r, w, l: -np.log(s.sigmoid(0.7 * (mean(p, w) - mean(p, l)) - 0.3)).mean(),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_training_on_pairs_takes_the_slope_of_its_loss(name, rng, recorded):
    """Every step, also away from the reference: its own pairs, its reference, its lengths."""
    reference = tiny(rng, s.VOCABULARY)
    before = copy.deepcopy(reference)
    chosen, rejected = s.encode(CHOSEN), s.encode(REJECTED)
    loss = {"dpo": s.dpo_loss, "ipo": s.dpo_loss, "orpo": s.orpo_loss, "simpo": s.simpo_loss}[name]
    options = {"ipo": {"kind": "ipo"}, "simpo": {"gamma": 0.3}}.get(name, {})
    s.train_on_pairs(
        loss, reference, chosen, rejected, 2, np.random.default_rng(5), 0.01, beta=0.7, **options
    )
    (optimizer,) = recorded
    assert (optimizer.learning_rate, optimizer.steps, len(optimizer.seen)) == (0.01, 2, 2)
    rng = np.random.default_rng(5)
    for step in optimizer.seen:
        pick = rng.integers(0, 4, 128)
        assert_step(step, INDEPENDENT[name], before, chosen[pick], rejected[pick])
    for key, p in before.items():
        np.testing.assert_array_equal(reference[key], p)
        np.testing.assert_array_equal(optimizer.seen[0][0][key], p)  # it starts at the reference


def test_the_reward_model_takes_the_slope_of_bradley_terry(recorded):
    chosen, rejected = s.encode(CHOSEN), s.encode(REJECTED)
    s.train_reward_model(chosen, rejected, 2, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    s.new_network(rng, 1)

    def loss(params, better, worse):
        gap = s.learned_rewards(params, better) - s.learned_rewards(params, worse)
        return -np.log(s.sigmoid(gap)).mean()

    for step in recorded[0].seen:
        pick = rng.integers(0, 4, 128)
        assert_step(step, loss, chosen[pick], rejected[pick])


def test_imitation_takes_the_slope_of_the_mean_token(recorded):
    names = s.encode(CHOSEN)
    s.pretrain(names, 2, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    s.new_network(rng, s.VOCABULARY)

    def loss(params, tokens):
        logp, mask, _ = s.policy_forward(params, tokens)
        return -logp.sum() / mask.sum()

    for step in recorded[0].seen:
        assert_step(step, loss, names[rng.integers(0, 4, 128)])


RULES = [("ppo", False, False), ("grpo", False, False), ("grpo", True, False), ("grpo", True, True)]


@pytest.mark.parametrize("kind, kl_in_loss, by_response", RULES)
def test_reinforcement_takes_the_slopes_that_the_file_derives(
    kind, kl_in_loss, by_response, rng, recorded
):
    """Third iteration: the policy has left the reference, and β has followed its target twice."""
    reference = tiny(rng, s.VOCABULARY)
    beta, target, drawn = 0.4, 0.9, []

    def reward(tokens):
        drawn.append(tokens)
        return s.true_rewards(tokens)

    _, count = s.train_rl(
        kind, reference, reward, np.array([1, 2, 3]), beta, 3, Ordered(np.random.PCG64(1)), 0.01,
        kl_in_loss, by_response, target,
    )  # fmt: skip
    policy_optimizer, critic_optimizer = recorded
    assert len(policy_optimizer.seen) == 12  # four an iteration
    policies = [policy_optimizer.seen[4 * i][0] for i in range(3)]
    assert (policy_optimizer.learning_rate, policy_optimizer.steps) == (0.01, 24)
    assert len(critic_optimizer.seen) == (12 if kind == "ppo" else 0)
    assert (policies[0]["W1"] == reference["W1"]).all()
    assert (critic_optimizer.learning_rate, critic_optimizer.steps) == (0.01, 24)
    masks = [s.policy_forward(reference, tokens)[1] for tokens in drawn]
    assert count == sum(mask.sum() for mask in masks)
    for i in (0, 1):  # the KL seen in the batches before
        seen = total(policies[i], drawn[i]) - total(reference, drawn[i])
        beta *= 1 + 0.2 * np.clip(seen.mean() / target - 1, -1, 1)
    tokens, mask = drawn[2], masks[2]
    assert len(tokens) == 256 and (tokens.reshape(16, 16, -1)[:, :, 0].std(1) == 0).all()
    old = s.policy_forward(policies[2], tokens)[0]
    ref = s.policy_forward(reference, tokens)[0]
    rewards = np.zeros_like(old)
    for b in range(256):
        n = mask[b].sum()
        if not kl_in_loss:
            rewards[b, :n] = -beta * (old[b, :n] - ref[b, :n])
        rewards[b, n - 1] += s.true_reward(s.decode(tokens[b : b + 1])[0])
    if kind == "ppo":
        critic = critic_optimizer.seen[8][0]
        values = s.places_forward(critic, tokens)[0][..., 0]
        advantages, returns = s.gae(rewards, values, 1, 0.95)
        advantages = (advantages - advantages[mask].mean()) / advantages[mask].std()
    else:
        groups = rewards.sum(1).reshape(16, 16)
        one = (groups - groups.mean(1, keepdims=True)) / groups.std(1, keepdims=True)
        advantages = one.reshape(-1, 1) * np.ones_like(old)

    def loss(params, tokens, old, ref, A, weight):
        logp = s.policy_forward(params, tokens)[0]
        ratio = np.exp(logp - old)
        each = -np.minimum(ratio * A, np.clip(ratio, 0.8, 1.2) * A)
        if kl_in_loss:
            each = each + beta * (np.exp(ref - logp) - 1 - (ref - logp))
        return (each * weight).sum() / weight.sum()

    def critic_loss(params, tokens, returns, inside):
        V = s.places_forward(params, tokens)[0][..., 0]
        return ((V - returns)[inside] ** 2).mean() / 2

    for j, half in enumerate((slice(0, 128), slice(128, 256)) * 2):
        inside = s.policy_forward(reference, tokens[half])[1]
        cut = half, slice(0, inside.shape[1])
        weight = inside / inside.sum(1, keepdims=True) if by_response else inside / 1.0
        given = tokens[half], old[cut], ref[cut], advantages[cut], weight
        assert_step(policy_optimizer.seen[8 + j], loss, *given)
        if kind == "ppo":
            assert_step(
                critic_optimizer.seen[8 + j], critic_loss, tokens[half], returns[cut], inside
            )


def test_adam_by_hand():
    """Warmup over 20 steps, a fall to 0, clipping at norm 1, corrected moments, decay beside."""
    params = {"a": np.array([1.0, -2.0])}
    adam = s.Adam(params, 0.5, 10, weight_decay=0.1)
    adam.step({"a": np.array([3.0, 4.0])})  # norm 5, clipped to [0.6, 0.8]
    step = np.array([1, 1]) + 0.1 * np.array([1.0, -2.0])  # m/√v is the sign at first
    first = np.array([1.0, -2.0]) - 0.5 / 20 * step
    np.testing.assert_allclose(params["a"], first, rtol=1e-6)
    adam.step({"a": np.array([0.3, 0.0])})  # norm below 1: left as it is
    m = (0.9 * 0.1 * np.array([0.6, 0.8]) + 0.1 * np.array([0.3, 0])) / (1 - 0.9**2)
    v = (0.99 * 0.01 * np.array([0.36, 0.64]) + 0.01 * np.array([0.09, 0])) / (1 - 0.99**2)
    rate = 0.5 * 2 / 20 * (1 - 1 / 10)
    second = first - rate * (m / (np.sqrt(v) + 1e-8) + 0.1 * first)
    np.testing.assert_allclose(params["a"], second, rtol=1e-8)
    late = {"b": np.array([0.0])}
    adam = s.Adam(late, 1.0, 40)
    for _ in range(40):
        before = late["b"].copy()
        adam.step({"b": np.array([0.5])})
    assert late["b"] < before  # downhill
    np.testing.assert_allclose(before - late["b"], 1 / 40, rtol=1e-6)  # the last step's rate


def names_of(rng, n=400):
    """Names of consonant, vowel, consonant, vowel: easy to learn."""
    rows = rng.integers(0, 4, (n, 4))
    return s.encode(
        ["".join((c[i] for c, i in zip(("bdkm", "aeio", "lnrs", "aeiu"), r))) for r in rows]
    )


def test_pretraining_lowers_the_loss_of_names_it_never_saw(rng):
    train, held = names_of(rng), names_of(rng, 100)
    losses = []
    for steps in (1, 60):
        logp, mask, _ = s.policy_forward(s.pretrain(train, steps, rng), held)
        losses.append(-logp.sum() / mask.sum())
    assert losses[0] > 3 and losses[1] < 1.8


def test_choices_agree_with_the_truth_as_often_as_bradley_terry_says(rng):
    policy = s.pretrain(names_of(rng), 20, rng)
    prompts = np.repeat([2, 4, 11, 13], 1500)
    chosen, rejected = s.prefer(policy, prompts, rng)
    np.testing.assert_array_equal(chosen[:, 0], prompts)
    np.testing.assert_array_equal(rejected[:, 0], prompts)
    gap = s.true_rewards(chosen) - s.true_rewards(rejected)
    differ = gap != 0
    limit = s.sigmoid(np.abs(gap[differ])).mean()
    assert limit > 0.6 and (gap[differ] > 0).mean() == pytest.approx(limit, abs=0.03)


def test_imitating_the_best_learns_from_the_best_of_each_group(rng, monkeypatch):
    reference = s.new_network(rng, s.VOCABULARY)
    drawn, kept = [], []

    def reward(tokens):
        drawn.append(tokens)
        return s.true_rewards(tokens)

    def imitate(policy, tokens, steps, rng, learning_rate):
        kept.append((tokens, steps, learning_rate))
        policy["b2"] += 1
        return policy

    monkeypatch.setattr(s, "imitate", imitate)
    prompts = np.array([1, 5, 20])
    policy, count = s.imitate_best(reference, reward, prompts, 6, 7, rng, 0.03)
    ((tokens, steps, learning_rate),) = kept
    assert (steps, learning_rate) == (7, 0.03)
    assert count == s.policy_forward(reference, drawn[0])[1].sum()
    groups = drawn[0].reshape(3, 6, -1)
    np.testing.assert_array_equal(groups[:, :, 0], prompts[:, None] + np.zeros((1, 6), int))
    np.testing.assert_array_equal(tokens[:, 0], prompts)
    for group, best in zip(groups, tokens):
        assert s.true_rewards(best[None])[0] == s.true_rewards(group).max()
    assert (policy["b2"] == reference["b2"] + 1).all()  # a copy was changed


def test_best_of_n_keeps_what_the_first_argument_likes_and_leaves_the_rest_over():
    rewards = np.array([[1.0, 2, 5, 4, 9], [3, 0, 0, 7, 9]])
    measured = np.array([[10.0, 20, 30, 40, 99], [50, 60, 70, 80, 99]])
    means, kl = s.best_of_n(rewards, measured, 2)
    np.testing.assert_array_equal(means, [25, 65])
    assert kl == pytest.approx(math.log(2) - 0.5)
    np.testing.assert_array_equal(s.best_of_n(rewards, measured, 5)[0], [99, 99])


@pytest.fixture(scope="module")
def world():
    """A small world, with a reference worth the name."""
    rng = np.random.default_rng(3)
    size = {**s.FAST, "pretrain": 80, "steps": 60, "iterations": 8, "judge": 500, "bank": 200}
    return s.make_world(names_of(rng, 300), {**size, "pairs": 600}, rng)


def test_kl_falls_as_the_price_rises_and_verified_rewards_rise(world):
    for method in ("PPO", "GRPO, k3", "DPO", "PPO, verified"):
        found = []
        for beta in (0.1, 3.0):
            policy, _, _ = s.train(method, beta, world, np.random.default_rng(0))
            found.append(s.judge(policy, world, np.random.default_rng(1)))
        cheap, dear = found
        assert cheap[2] > 1.3 * dear[2] > 0, method
        raised = 0 if "verified" in method else 1  # the truth, or what the reward model believes
        assert cheap[raised] > dear[raised], method


def test_a_world_is_split_before_anything_is_learned(monkeypatch):
    """The reference sees nine tenths, the judge's tables are π_ref's answers to each prompt."""
    seen = []
    original = s.pretrain

    def pretrain(tokens, steps, rng):
        seen.append(tokens)
        return original(tokens, steps, rng)

    monkeypatch.setattr(s, "pretrain", pretrain)
    names = np.unique(names_of(np.random.default_rng(0), 300), axis=0)
    world = s.make_world(names, s.FAST, np.random.default_rng(0))
    train, held = ({tuple(row) for row in part} for part in (seen[0], world.held))
    assert not train & held and train | held == {tuple(row) for row in names}
    assert len(train) == int(0.9 * len(names))
    np.testing.assert_array_equal(world.prompts, seen[0][:, 0])
    letters, counts = np.unique(world.prompts, return_counts=True)
    np.testing.assert_allclose(world.weights, counts / counts.sum())
    assert world.truth.shape == world.learned.shape == (len(letters), s.FAST["bank"])
    assert world.start == pytest.approx(world.truth.mean(1) @ world.weights)
    assert len(world.pairs[0]) == s.FAST["pairs"]
    assert set(world.judged) <= set(letters) and len(world.judged) == s.FAST["judge"]
    assert (np.diff(world.best[:, 0]) > 0).all() and (np.diff(world.best[:, 1]) > 0).all()


def test_the_methods_run_with_what_the_sweep_chose():
    """Rates and settings are those of the kept table: the rate in bold, and its settings."""
    table = (ROOT / "benchmarks" / "results" / "stage10_sweep.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    rows = [row for row in rows if len(row) == 9]
    rates = rows[0][1:7]
    assert {row[0] for row in rows[2:]} == set(s.METHODS)
    for method, *scores, chosen, _ in rows[2:]:
        settings, options = s.METHODS[method]
        (best,) = (float(rate) for rate, cell in zip(rates, scores) if cell.startswith("**"))
        assert options.get("learning_rate", 2e-3) == best, method
        np.testing.assert_allclose(
            [a for a in settings if a], [float(a) for a in chosen.split(", ")]
        )


def test_the_judge_asks_the_truth(world):
    policy = s.train_on_pairs(
        s.dpo_loss, world.reference, *world.pairs, 20, np.random.default_rng(0), beta=0.3
    )
    true, believed, kl, names = s.judge(policy, world, np.random.default_rng(7))
    drawn = s.sample(policy, world.judged, np.random.default_rng(7))
    assert true == pytest.approx(np.mean([s.true_reward(name) for name in s.decode(drawn)]))
    learned = s.learned_rewards(world.model, drawn)
    assert believed == pytest.approx(learned.mean() - world.learned.mean(1) @ world.weights)
    assert names.split() == s.decode(drawn[:3])
    sampled = total(policy, drawn) - total(world.reference, drawn)
    assert kl == pytest.approx(sampled.mean(), abs=4 * float(sampled.std()) / len(drawn) ** 0.5)
    assert kl > 0.05


def test_a_share_is_that_of_the_possible_gain():
    curve = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 4.0]])
    world = SimpleNamespace(start=1.0, best=curve)
    assert s.share_of(2.0, 1.0, world) == 0.5
    assert s.share_of(2.0, 0.5, world) == 1.0
    assert s.share_of(0.5, 2.0, world) == pytest.approx(-1 / 6)
    assert math.isnan(s.share_of(2.0, 2.1, world))
    assert math.isnan(s.share_of(1.0, 0.0, world))


# ---------------------------------------------------------------------------------- the report


def told(world, monkeypatch, capsys, shares):
    """The table's text when each method has the share of the gain that `shares` names, which may
    depend on the setting."""
    monkeypatch.setattr(s, "train", lambda method, a, world, rng: ((method, a), 12345, 6.7))

    def judge(policy, world, rng):
        method, setting = policy
        share = shares.get(method, 0.5)
        if isinstance(share, dict):
            share = share[setting]
        true = world.start + share * (np.interp(1, *world.best.T) - world.start)
        return true, 0.25, 1.0, "one two three"

    monkeypatch.setattr(s, "judge", judge)
    s.report_methods(world, np.random.default_rng(0), False)
    return capsys.readouterr().out


def test_the_table_shows_what_was_judged_and_says_who_is_ahead(world, monkeypatch, capsys):
    out = told(world, monkeypatch, capsys, {"DPO": 0.9, "PPO": 0.7, "PPO, verified": 0.71})
    rows = {line[:14].strip(): line[14:].split() for line in out.splitlines() if "one two" in line}
    assert set(rows) == set(s.METHODS)
    setting, true, believed, kl, share, percent, *rest = rows["DPO"]
    assert float(setting) == s.METHODS["DPO"][0][-1] and percent.startswith("%")
    gain = np.interp(1, *world.best.T) - world.start
    assert float(true) == pytest.approx(world.start + 0.9 * gain, abs=0.006)
    assert (believed, kl, share, *rest[-5:]) == (
        "+0.25",
        "1.00",
        "90",
        *"12345 6.7 one two three".split(),
    )
    assert "METHODS  judged by the true reward" in out and "Share: of the gain possible" in out
    assert "DPO (90 %) is ahead of PPO (70 %)" in out
    assert "PPO (70 %) is level with PPO, verified (71 %)" in out
    assert "GRPO, k3 (50 %) is level with GRPO, KL paid (50 %)" in out


def test_the_table_says_the_opposite_when_the_numbers_do(world, monkeypatch, capsys):
    shares = {"DPO": 0.6, "PPO": 0.9, "PPO, verified": 0.8, "GRPO, k3": 0.6}
    out = told(world, monkeypatch, capsys, shares)
    assert "DPO (60 %) is behind PPO (90 %)" in out
    assert "PPO (90 %) is ahead of PPO, verified (80 %)" in out
    assert "GRPO, k3 (60 %) is ahead of GRPO, KL paid (50 %)" in out


def test_over_optimisation_is_told_from_the_run(world, monkeypatch, capsys):
    settings = s.METHODS["PPO"][0]
    assert settings[-1] == 0 == s.METHODS["PPO, verified"][0][-1]
    gain = np.interp(1, *world.best.T) - world.start
    for shares, collapsed in (((0.5, 0.9, 0.7, -4.0), True), ((0.5, 0.6, 0.7, 0.8), False)):
        ppo = dict(zip(settings, shares))
        out = told(world, monkeypatch, capsys, {"PPO": ppo, "PPO, verified": 0.95})
        truth = [f"{world.start + share * gain:.1f}" for share in shares]
        assert (
            f"At β = 0 PPO believes in a gain of 0.2; the truth goes from {world.start:.1f}" in out
        )
        assert f"to {truth[-1]}." in out
        said = (
            f"At β = {settings[1]:g} it went to {truth[1]}: the learned reward is over-optimised."
        )
        assert (said in out) == collapsed == ("over-optimised" in out)
        assert f"With the truth as reward it goes to {world.start + 0.95 * gain:.1f}." in out


def test_a_verifier_gets_more_than_a_guess_of_the_reward(world):
    """The same loop: what the learned reward misses is missing from its policy."""
    found = {}
    for method in ("PPO", "PPO, verified"):
        policy, drawn, _ = s.train(method, 0.3, world, np.random.default_rng(0))
        assert drawn > 1000
        true, _, kl, _ = s.judge(policy, world, np.random.default_rng(1))
        found[method] = s.share_of(true, kl, world)
    assert found["PPO, verified"] > found["PPO"] + 0.02


def test_seconds_and_tokens_are_those_of_the_method(world, monkeypatch):
    """The reward model's seconds count where one is used, and only there."""
    ticks = iter(range(0, 1000, 2))
    monkeypatch.setattr(s.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(world, "seconds", 100.0)
    monkeypatch.setattr(world, "size", s.FAST)
    for method in s.METHODS:
        _, drawn, seconds = s.train(
            method, s.METHODS[method][0][0], world, np.random.default_rng(0)
        )
        guesses = "loss" not in s.METHODS[method][1] and method != "PPO, verified"
        assert seconds == (102 if guesses else 2), method
        assert (drawn == 0) == ("loss" in s.METHODS[method][1]), method


@pytest.mark.parametrize("model", ["knows nothing", "knows the truth"])
def test_the_report_scores_the_reference_and_the_reward_model(world, monkeypatch, capsys, model):
    def learned_rewards(params, tokens):
        return s.true_rewards(tokens) if model == "knows the truth" else np.zeros(len(tokens))

    monkeypatch.setattr(s, "make_world", lambda tokens, size, rng: world)
    monkeypatch.setattr(s, "learned_rewards", learned_rewards)
    monkeypatch.setattr(s, "report_methods", lambda *_: None)
    s.main(["--seed", "3"])
    out = " ".join(capsys.readouterr().out.split())
    logp, mask, _ = s.policy_forward(world.reference, world.held)
    assert f"The reference has {-logp.sum() / mask.sum():.2f} nats a held-out token." in out
    assert f"names of true reward {world.start:.2f}, such as" in out
    found = re.search(
        r"600 choices \(\d+ tokens\) it predicts (\S+) % of others; the truth itself, (\S+) %", out
    )
    right, truth = map(float, found.groups())
    assert 60 < truth < 90
    assert right == (50 if model == "knows nothing" else pytest.approx(truth, abs=4))


def test_twenty_equal_names_make_a_report(tmp_path, capsys):
    path = tmp_path / "names.txt"
    path.write_text("anna\n" * 20)
    with np.errstate(all="raise", under="ignore"):
        s.main(["--fast", "--names", str(path)])
    out = capsys.readouterr().out
    assert "With the truth as reward it goes to" in out and "nan %" not in out


def test_where_nothing_can_be_gained_no_share_is_shown(world, monkeypatch, capsys):
    """A reference that writes one name only: no percentages, and nobody is ahead."""
    monkeypatch.setattr(world, "truth", np.full_like(world.truth, 4.5))
    monkeypatch.setattr(world, "best", np.array([[0.0, 4.5], [5.0, 4.5]]))
    monkeypatch.setattr(world, "start", 4.5)
    out = told(world, monkeypatch, capsys, {})
    table = [line for line in out.splitlines() if "one two" in line]
    assert all(" -  " in line and "%" not in line for line in table)
    assert "ahead" not in out and "level" not in out and "nan" not in out


# ---------------------------------------------------------------------------------- bad input

ONE, TWO, NAN = np.zeros(1) - 1, np.zeros(2) - 1, np.array([np.nan])
BAD = [
    (lambda: s.dpo_loss(ONE, ONE, ONE, ONE, 0.0), "beta = 0.0.*> 0"),
    (lambda: s.dpo_loss(ONE, ONE, ONE, ONE, -1), "beta = -1"),
    (lambda: s.dpo_loss(ONE, ONE, ONE, ONE, math.nan), "beta = nan"),
    (lambda: s.dpo_loss(ONE, ONE, ONE, ONE, math.inf), "beta = inf"),
    (lambda: s.dpo_loss([], [], [], [], 0.1), r"policy_chosen is float64 \(0,\): .*at least one"),
    (lambda: s.dpo_loss(TWO, ONE, TWO, ONE, 0.1), r"policy_rejected is float64 \(1,\).*\(2,\)"),
    (lambda: s.dpo_loss(ONE, ONE, TWO, ONE, 0.1), r"ref_chosen is float64 \(2,\).*\(1,\)"),
    (lambda: s.dpo_loss(ONE, ONE, ONE, NAN, 0.1), "ref_rejected contains nan"),
    (lambda: s.dpo_loss(ONE, -np.inf * TWO[:1], ONE, ONE, 0.1), "policy_rejected contains"),
    (lambda: s.dpo_loss(ONE, ONE, ONE, ONE, 0.1, kind="dpo"), "kind = 'dpo'.*sigmoid"),
    (lambda: s.kto_loss(ONE, ONE, ONE, ONE, 0), "beta = 0"),
    (lambda: s.kto_loss(ONE, [], ONE, [], 0.1), r"policy_rejected is float64 \(0,\)"),
    (lambda: s.kto_loss(ONE, ONE, ONE, ONE, 0.1, kl=-1), "kl = -1"),
    (lambda: s.kto_loss(ONE, ONE, ONE, ONE, 0.1, weights=(-1, 1)), "weight = -1"),
    (lambda: s.orpo_loss(ONE, ONE, -0.1), "beta = -0.1"),
    (lambda: s.orpo_loss(ONE + 1, ONE), "chosen_mean"),
    (lambda: s.simpo_loss(ONE, TWO), r"rejected_mean is float64 \(2,\)"),
    (lambda: s.simpo_loss(ONE, ONE, gamma=-1), "gamma = -1"),
    (lambda: s.reward_loss([], []), r"chosen_rewards is float64 \(0,\)"),
    (lambda: s.reward_loss(NAN, ONE), "chosen_rewards contains nan"),
    (lambda: s.gae(TWO, np.zeros(4), 1, 1), r"values is float64 \(4,\).*\(2,\)"),
    (lambda: s.gae(TWO, TWO, 1.5, 1), "gamma = 1.5"),
    (lambda: s.gae(TWO, TWO, 1, -0.1), "lam = -0.1"),
    (lambda: s.gae([], [], 1, 1), r"rewards is float64 \(0,\)"),
    (lambda: s.ppo_loss(ONE, ONE, ONE, clip=0), "clip = 0"),
    (lambda: s.ppo_loss(ONE, TWO, ONE), r"old_logp is float64 \(2,\).*\(1,\)"),
    (lambda: s.ppo_loss(None, ONE, ONE), "logp is object"),
    (lambda: s.ppo_loss(ONE, ONE, ONE, mask=np.zeros(1)), "mask"),
    (lambda: s.grpo_advantages([]), r"rewards is float64 \(0,\)"),
    (lambda: s.kl_divergence(ONE, TWO), r"logq is float64 \(2,\)"),
    (lambda: s.sequence_logprob(np.zeros((1, 2, 3)), [[0, 3]]), r"tokens 0\.\.3: expected 0 to 2"),
    (lambda: s.sequence_logprob(np.zeros((1, 2, 3)), [[0]]), r"\(B, T, V\)"),
    (lambda: s.frontier(TWO[None], np.ones(1), [0]), "beta = 0"),
    (lambda: s.best_of_n(TWO[None], TWO[None], 0), "n = 0"),
    (lambda: s.best_of_n(TWO[None], TWO[None], 3), r"\(1, 2\).*M >= n = 3"),
    (lambda: s.kto_loss(ONE, ONE, ONE, ONE, 0.1, weights=(1, math.nan)), "weight = nan"),
    (lambda: s.kto_loss(ONE, ONE, ONE, ONE, 0.1, weights=None), "weights = None"),
    (lambda: s.kto_loss(ONE, ONE, ONE, ONE, 0.1, weights=(1, 2, 3)), "weights = .*two numbers"),
    (lambda: s.check_number("--seed", 10**400, 0), "--seed = 1000.*expected a number >= 0"),
    (lambda: s.check_number("beta", -(10**400), 0), "beta = -1000"),
    (lambda: s.ppo_loss(TWO, TWO, TWO, mask=[1, -1]), "smallest weight in mask = -1"),
    (lambda: s.true_reward("Anna"), "name 'Anna'"),
    (lambda: s.frontier(TWO[None], [0.5, 0.5], [1]), "size 2"),
    (lambda: s.dpo_loss(ONE, ONE, ONE, ONE, 0.1, kind=["ipo"]), r"kind = \['ipo'\]"),
    (lambda: s.ppo_loss(np.float16([20]), np.float16([1]), np.float16([1])), "= 19.0: .*<= 9"),
    (lambda: s.true_reward(None), "name None"),
    (lambda: s.true_reward(["a"]), r"name \['a'\]"),
    (lambda: s.encode(["Anna"]), "'Anna'.*a to z"),
    (lambda: s.encode(None), "names = None: expected a list"),
    (lambda: s.encode("anna"), "names = 'anna': expected a list"),
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


def test_fast_report_is_whole_and_repeats(capsys, monkeypatch):
    monkeypatch.setattr(s.time, "perf_counter", lambda: 0.0)

    def report(seed):
        assert s.main(["--fast", "--seed", seed]) in (None, 0)
        return capsys.readouterr().out

    first = report("0")
    assert first == report("0") != report("1")
    for word in ("the truth itself", *s.METHODS):
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
    never = np.array([[[0.0, -math.inf], [5.0, -math.inf]]])  # a token that is nowhere possible
    assert s.sequence_logprob(never, [[0, 0]]) == 0


def test_upstream_gradients_of_another_shape_are_refused(rng):
    policy = s.new_network(rng, 27)
    logp, _, cache = s.policy_forward(policy, s.encode(["anna", "li"]))
    for wrong in ((2, 1), (1, logp.shape[1]), logp.shape[::-1], logp.size):
        with pytest.raises(ValueError, match=r"dlogp has shape .*: expected \(2, 4\)"):
            s.policy_backward(np.ones(wrong), cache)


def test_wrong_numbers_are_named(rng):
    policy, R = s.new_network(rng, 27), np.zeros((2, 6))
    tokens, zero = s.encode(["anna", "li"]), [0.0]

    def rl(kind="ppo", beta=0.1, iterations=1):
        s.train_rl(kind, policy, s.true_rewards, tokens[:, 0], beta, iterations, rng)

    for call, said in (
        (lambda: s.encode([None]), "name None"),
        (lambda: s.true_reward(""), "name ''"),
        (lambda: s.reward_loss(["a"], [1]), "chosen_rewards is <U1 .*expected numbers"),
        (lambda: s.reward_loss(None, [1]), "chosen_rewards is object .*expected numbers"),
        (lambda: s.frontier(R, [0.5, 0.5], "1"), "beta = '1'"),
        (lambda: s.frontier(R, [0.5, 0.5], [None]), "beta = None"),
        (lambda: s.frontier(R, [0.5, 0.5], [True]), "beta = True"),
        (lambda: s.best_of_n(R, R, 2.0), "n = 2.0"),
        (lambda: s.best_of_n(R, R, "2"), "n = '2'"),
        (lambda: s.best_of_n(R, R, 7), "n = 7"),
        (lambda: s.gae([1.0], [1.0], "a", 1), "gamma = 'a'"),
        (lambda: s.gae([1.0], [1.0], 1, None), "lam = None"),
        (lambda: s.ppo_loss([1.0], [1.0], [1.0], "a"), "clip = 'a'"),
        (lambda: s.dpo_loss(zero, zero, zero, zero, "a"), "beta = 'a'"),
        (lambda: s.kto_loss(zero, zero, zero, zero, 1, "a"), "kl = 'a'"),
        (lambda: s.kto_loss(zero, zero, zero, zero, 1, 0, ("a", 1)), "a weight = 'a'"),
        (lambda: rl(kind="PPO"), "kind = 'PPO'"),
        (lambda: rl(beta="a"), "beta = 'a'"),
        (lambda: rl(beta=math.nan), "beta = nan"),
        (lambda: rl(iterations="a"), "iterations = 'a'"),
        (lambda: s.pretrain(tokens, "a", rng), "steps = 'a'"),
        (lambda: s.train_reward_model(tokens, tokens, 0, rng), "steps = 0"),
        (lambda: s.train_on_pairs(s.dpo_loss, policy, tokens, tokens, 1.5, rng), "steps = 1.5"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_training_that_diverges_is_stopped_and_not_returned(rng, monkeypatch):
    class Wild(s.Adam):
        def __init__(self, params, rate, *rest, **named):
            super().__init__(params, 1e30, *rest, **named)

    with pytest.raises(ValueError, match="norm is nan at step 1"):
        s.Adam({"a": np.ones(1)}, 0.1, 9).step({"a": np.array([math.nan])})
    monkeypatch.setattr(s, "Adam", Wild)
    policy = s.new_network(rng, 27)
    reward = functools.partial(s.learned_rewards, s.new_network(rng, 1))
    tokens = s.encode(["anna", "otto", "li", "bob"] * 9)
    with np.errstate(all="ignore"):
        for train in (
            lambda: s.pretrain(tokens, 9, rng),
            lambda: s.train_reward_model(tokens, tokens[::-1], 9, rng),
            lambda: s.train_rl("ppo", policy, reward, tokens[:, 0], 0.1, 3, rng),
        ):
            with pytest.raises(ValueError, match="nan"):
                train()
