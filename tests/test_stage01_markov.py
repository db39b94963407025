"""Stage 1: counting, the five smoothings by brute force, measures, sampling, the long run."""

import itertools
import math
import runpy
import sys
import warnings
from collections import Counter, defaultdict
from contextlib import redirect_stdout

import numpy as np
import pytest
from conftest import ROOT, check_held_out_line

import stage01_markov as s1

V = 4
TEXT = np.random.default_rng(5).choice(V - 1, 80, p=[0.6, 0.3, 0.1])  # id 3 never occurs
SMOOTHED = [name for name in s1.SMOOTHINGS if name != "mle"]
every = pytest.mark.parametrize("smoothing", s1.SMOOTHINGS)
smoothed = pytest.mark.parametrize("smoothing", SMOOTHED)


@pytest.fixture(autouse=True)
def no_warnings():
    """A NumPy warning (log of 0, 0/0) fails the test in which it appears."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def contexts(longest, ids=range(V)):
    return [h for n in range(longest + 1) for h in itertools.product(ids, repeat=n)]


# The five models, written down again with dictionaries and recursion


def reference(smoothing, text, h, c, weights=None, k=1.0, d=0.75, V=V):
    """P(c|h) straight from the definitions, one gram at a time, where h is the whole context."""
    text = tuple(text)

    def counts(h):
        return Counter(
            text[i + len(h)] for i in range(len(text) - len(h)) if text[i : i + len(h)] == h
        )

    def continuations(h):
        """c -> how many different symbols come before hc."""
        n = len(h) + 2
        grams = {text[i : i + n] for i in range(len(text) - n + 1)}
        return Counter(gram[-1] for gram in grams if gram[1:-1] == h)

    def p(h, top):
        N = counts(h) if top or smoothing != "kneser-ney" else continuations(h)
        total, kinds = sum(N.values()), len(N)
        if smoothing == "add-k":
            return (N[c] + k) / (total + k * V)
        below = p(h[1:], False) if h else 1 / V
        if total == 0:
            return below
        if smoothing == "mle":
            return N[c] / total
        if smoothing == "witten-bell":
            return (N[c] + kinds * below) / (total + kinds)
        if smoothing == "interpolated":
            weight = weights[len(h)][int(math.log2(total)) + 1]
            return weight * N[c] / total + (1 - weight) * below
        return max(N[c] - d, 0) / total + d * kinds / total * below

    return p(tuple(h), True)


@every
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_distribution_is_the_definition(smoothing, order):
    chain = s1.MarkovChain(order, V, smoothing, k=0.3, discount=0.6).fit(TEXT)
    weights = getattr(chain, "weights", None)
    for h in contexts(order):
        expected = [reference(smoothing, TEXT, h, c, weights, 0.3, 0.6) for c in range(V)]
        assert chain.distribution(h) == pytest.approx(expected, abs=1e-13), h


@every
@pytest.mark.parametrize("order", [0, 1, 4])
def test_every_distribution_adds_up_to_one(smoothing, order):
    for text in (TEXT, TEXT[:1], TEXT[:3], [2] * 30):
        chain = s1.MarkovChain(order, V, smoothing).fit(text)
        for h in contexts(5, ids=(0, 3)):
            p = chain.distribution(h)
            assert p.shape == (V,) and p.min() >= 0 and p.sum() == pytest.approx(1, abs=1e-12)
            assert smoothing == "mle" or p.min() > 0  # id 3, never seen, has its share


@every
def test_a_shorter_context_gets_the_shorter_model_and_of_a_longer_one_the_end_counts(smoothing):
    models = [s1.MarkovChain(order, V, smoothing).fit(TEXT) for order in range(4)]
    for h in contexts(4):
        p = models[min(len(h), 3)].distribution(h)
        assert models[3].distribution(h) == pytest.approx(p, abs=1e-15)
        assert models[3].distribution(h) == pytest.approx(models[3].distribution(h[-3:]))


@every
@pytest.mark.parametrize("order", [0, 1, 3, 6])
def test_log_likelihood_is_the_sum_over_distributions(smoothing, order, rng):
    chain = s1.MarkovChain(order, V, smoothing).fit(TEXT)
    for ids in (TEXT, TEXT[:2], rng.integers(0, V, 30), [3]):
        p = np.array([chain.distribution(ids[:t])[ids[t]] for t in range(len(ids))])
        with np.errstate(divide="ignore"):
            expected = np.log(p).sum()
        assert chain.log_likelihood(ids) == pytest.approx(expected, rel=1e-12)
        assert chain.perplexity(ids) == pytest.approx(math.exp(-expected / len(ids)))


@smoothed
def test_the_probabilities_of_all_texts_of_a_length_add_up_to_one(smoothing):
    chain = s1.MarkovChain(2, 3, smoothing).fit(TEXT)
    texts = itertools.product(range(3), repeat=4)
    assert sum(math.exp(chain.log_likelihood(text)) for text in texts) == pytest.approx(1)


def test_mle_is_the_maximum(rng):
    """No other row of probabilities makes the training text likelier."""
    best = s1.MarkovChain(1, 3, "mle").fit(TEXT)
    N = np.zeros((3, 3))
    np.add.at(N, (TEXT[:-1], TEXT[1:]), 1)
    P = np.array([best.distribution([h]) for h in range(3)])
    assert P == pytest.approx(N / N.sum(axis=1, keepdims=True))
    mine = best.log_likelihood(TEXT) - math.log(best.distribution()[TEXT[0]])
    for _ in range(50):
        other = 0.8 * P + 0.2 * rng.dirichlet(np.ones(3), 3)
        assert np.log(other[TEXT[:-1], TEXT[1:]]).sum() < mine


@pytest.mark.parametrize("ids", [[3], [0, 3], [0, 1, 0, 3, 0], [3, 3, 3, 3]])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_mle_finds_the_unseen_impossible(ids, order):
    chain = s1.MarkovChain(order, V, "mle").fit(TEXT)
    assert chain.perplexity(ids) == math.inf and chain.log_likelihood(ids) == -math.inf


def test_add_k_is_the_mean_of_the_dirichlet_posterior(rng):
    """Draw θ from the prior, weigh each by the likelihood of the counts, average."""
    chain = s1.MarkovChain(0, 3, "add-k", k=0.5).fit([0, 0, 0, 1, 0, 2, 0])
    theta = rng.dirichlet(np.full(3, 0.5), 200_000)
    weight = theta[:, 0] ** 5 * theta[:, 1] * theta[:, 2]
    assert chain.distribution() == pytest.approx(weight @ theta / weight.sum(), abs=0.01)
    assert chain.distribution() == pytest.approx([5.5 / 8.5, 1.5 / 8.5, 1.5 / 8.5])


def test_kneser_ney_keeps_the_shares_of_the_text():
    """(13): Σ_h N(h)/N·P(c|h) = N(c)/N, on a ring of symbols, which has no ends."""
    ring = np.append(TEXT, TEXT[0])
    chain = s1.MarkovChain(1, 3, discount=0.75).fit(ring)
    pairs = Counter(zip(ring[:-1].tolist(), ring[1:].tolist()))
    before = np.array([sum(c == pair[1] for pair in pairs) for c in range(3)])
    shares, P = np.bincount(TEXT, minlength=3) / len(TEXT), np.zeros((3, 3))
    for (h, c), n in pairs.items():
        P[h, c] += (n - 0.75) / np.sum(TEXT == h)
    for h in range(3):  # with the undiscounted lower level the identity is exact
        kinds = sum(h == pair[0] for pair in pairs)
        P[h] += 0.75 * kinds / np.sum(TEXT == h) * before / len(pairs)
    assert shares @ P == pytest.approx(shares, abs=1e-14)
    near = np.array([chain.distribution([h]) for h in range(3)])
    assert shares @ near == pytest.approx(shares, abs=0.02)


def test_the_continuation_counts_tell_francisco_from_a_common_word():
    """b and c are equally frequent, but b follows a only: an unseen context expects c."""
    text = [0, 1, 0, 1, 0, 1, 0, 1, 2, 4, 2, 3, 2, 5, 2, 6, 0, 0]  # 1 after 0 only, 2 after many
    assert text.count(1) == text.count(2)
    p = s1.MarkovChain(2, 8).fit(text).distribution([7, 6])  # 6 came once, before 0
    assert p[2] > 2 * p[1]


def test_interpolation_weights_are_where_the_slope_of_the_likelihood_is_zero(rng):
    seen, below, group = rng.random(500), rng.random(500), rng.integers(0, 2, 500)
    weight = s1.find_weight(seen, below, group, 3, rounds=500)
    for g in (0, 1):  # the two imagined events add 1/λ and -1/(1 - λ)
        s, b, w = seen[group == g], below[group == g], weight[g]
        slope = np.sum((s - b) / (w * s + (1 - w) * b)) + 1 / w - 1 / (1 - w)
        assert abs(slope) < 1e-5
    assert weight[2] == 0.5


# Counting


@pytest.mark.parametrize("vocab_size", [3, 50_000, 2**31 - 1])
def test_huge_vocabularies_do_not_collide(vocab_size, rng):
    """V^(order+1) is far beyond 64 bits; the counts must not notice. Ids sit at both ends."""
    small = rng.integers(0, 3, 300)
    ids = np.where(small == 2, vocab_size - 1, small)
    occurs, follows = s1.count_levels(ids, 8, vocab_size)
    text = tuple(ids.tolist())
    for n, (level, before) in enumerate(zip(occurs, follows)):
        grams = [text[i : i + n + 1] for i in range(len(text) - n)]
        longer = {text[i : i + n + 2] for i in range(len(text) - n - 1)}
        *_, (_, h, rank) = s1.walk(occurs[: n + 1], ids, vocab_size)
        counted, left = Counter(grams), Counter(gram[1:] for gram in longer)
        followers = defaultdict(Counter)
        for gram in grams:
            followers[gram[:-1]][gram[-1]] += 1
        assert level.n_hc[rank].tolist() == [counted[gram] for gram in grams]
        assert level.n_h[h].tolist() == [sum(followers[gram[:-1]].values()) for gram in grams]
        assert level.t_h[h].tolist() == [len(followers[gram[:-1]]) for gram in grams]
        if n < 8:
            assert before.n_hc[rank].tolist() == [left[gram] for gram in grams]


@every
def test_a_high_order_in_a_large_vocabulary(smoothing):
    """Ids at the top of a vocabulary of 5,000, order 7: 5,000⁸ has 98 bits."""
    text, asked = TEXT + 4996, range(7, 80, 6)
    chain = s1.MarkovChain(7, 5000, smoothing, k=0.1).fit(text)
    weights = getattr(chain, "weights", None)
    for t in asked:
        p = chain.distribution(text[:t])
        for c in (0, text[t], 4999):
            expected = reference(smoothing, text, text[t - 7 : t], c, weights, 0.1, V=5000)
            assert p[c] == pytest.approx(expected, rel=1e-12)


@every
def test_fit_replaces_and_returns_the_chain_and_leaves_the_ids_alone(smoothing):
    ids = TEXT.copy()
    chain = s1.MarkovChain(2, V, smoothing)
    assert chain.fit([1, 1, 1, 1]) is chain and chain.fit(ids) is chain
    again = s1.MarkovChain(2, V, smoothing).fit(tuple(ids.tolist()))
    assert chain.log_likelihood(TEXT) == again.log_likelihood(TEXT)
    assert np.array_equal(ids, TEXT)


@every
def test_one_symbol_texts(smoothing):
    chain = s1.MarkovChain(3, 1, smoothing).fit([0] * 20)
    assert chain.perplexity([0] * 9) == pytest.approx(1)
    assert chain.generate(5).tolist() == [0] * 5


# Surprise


def test_entropy_of_known_distributions():
    assert s1.entropy([0.5, 0.5], base=2) == pytest.approx(1)
    assert s1.entropy([0.5, 0.25, 0.25]) == pytest.approx(1.5 * math.log(2))
    assert s1.entropy([0.0, 1.0]) == 0 and math.copysign(1, s1.entropy([0.0, 1.0])) == 1
    assert s1.entropy(np.full((3, 7), 1 / 7)) == pytest.approx([math.log(7)] * 3)


@pytest.mark.parametrize("base", [math.e, 2, 10])
def test_gibbs(rng, base):
    for p, q in rng.dirichlet(np.ones(5), (40, 2)):
        kl = s1.kl_divergence(p, q, base)
        assert kl > 0 and s1.kl_divergence(p, p, base) == 0
        assert kl == pytest.approx(np.sum(p * np.log(p / q)) / math.log(base))
        assert kl == pytest.approx(s1.cross_entropy(p, q, base) - s1.entropy(p, base))
        assert s1.entropy(p, base) < math.log(5, base)
    assert s1.kl_divergence([0.5, 0.5, 0], [1, 0, 0]) == math.inf
    assert s1.cross_entropy([1, 0, 0], [0.5, 0.5, 0]) == pytest.approx(math.log(2))


@pytest.mark.parametrize("sides", [1, 2, 61])
def test_the_perplexity_of_a_fair_die_is_its_sides(sides):
    chain = s1.MarkovChain(0, sides, "mle").fit(np.tile(np.arange(sides), 5))
    assert chain.perplexity(np.arange(sides)) == pytest.approx(sides)


# Sampling


@pytest.mark.parametrize("T", [0.1, 0.7, 1.0, 3.0])
def test_temperature_minimises_the_free_energy(rng, T):
    p = np.array([0.5, 0.3, 0.2, 0.0])

    def free_energy(q):
        return s1.cross_entropy(q, p) - T * s1.entropy(q)

    q = s1.tempered(p, T)
    assert q[:3] == pytest.approx(p[:3] ** (1 / T) / np.sum(p[:3] ** (1 / T))) and q[3] == 0
    others = np.column_stack([rng.dirichlet(np.ones(3), 200), np.zeros(200)])
    assert all(free_energy(other) > free_energy(q) for other in others)


@pytest.mark.parametrize(
    "options, expected",
    [
        (dict(), [0.2, 0.5, 0.0, 0.3]),
        (dict(temperature=0), [0, 1, 0, 0]),
        (dict(temperature=1e-300), [0, 1, 0, 0]),
        (dict(temperature=1e300), [1 / 3, 1 / 3, 0, 1 / 3]),
        (dict(temperature=0.5), [4 / 38, 25 / 38, 0, 9 / 38]),
        (dict(top_k=1), [0, 1, 0, 0]),
        (dict(top_k=2), [0, 5 / 8, 0, 3 / 8]),
        (dict(top_k=99), [0.2, 0.5, 0, 0.3]),
        (dict(top_p=0.4), [0, 1, 0, 0]),
        (dict(top_p=0.5), [0, 1, 0, 0]),
        (dict(top_p=0.51), [0, 5 / 8, 0, 3 / 8]),
        (dict(top_p=0.8), [0, 5 / 8, 0, 3 / 8]),
        (dict(top_p=1.0), [0.2, 0.5, 0, 0.3]),
        (dict(top_k=2, top_p=0.62), [0, 1, 0, 0]),  # 5/8 of what top_k kept
    ],
)
def test_the_cuts(options, expected):
    assert s1.tempered([0.2, 0.5, 0.0, 0.3], **options) == pytest.approx(expected)


def test_ties_go_to_the_first_and_top_k_keeps_exactly_k():
    assert s1.tempered([0.25] * 4, top_k=2).tolist() == [0.5, 0.5, 0, 0]
    assert s1.sample([0.1, 0.45, 0.45], temperature=0) == 1


def test_sample_draws_with_the_frequencies_of_p():
    p, rng = np.array([0.0, 0.1, 0.2, 0.7, 0.0]), np.random.default_rng(3)
    drawn = np.bincount([s1.sample(p, seed=rng) for _ in range(2000)], minlength=5)
    assert drawn[0] == drawn[4] == 0
    assert drawn / 2000 == pytest.approx(p, abs=4 * math.sqrt(0.25 / 2000))
    assert s1.sample(p, seed=1) == s1.sample(p, seed=np.random.default_rng(1))
    assert type(s1.sample(p, seed=1)) is int


def test_generate_follows_seed_and_context():
    chain = s1.MarkovChain(2, V).fit(TEXT)
    out = chain.generate(40, context=[0, 1], seed=7)
    assert out.shape == (40,) and np.issubdtype(out.dtype, np.integer)
    assert np.array_equal(out, chain.generate(40, context=[2, 2, 0, 1], seed=7))  # the end counts
    assert not np.array_equal(out, chain.generate(40, context=[0, 1], seed=8))
    assert chain.generate(0).tolist() == []
    greedy, ids = chain.generate(6, [0], temperature=0).tolist(), [0]
    for _ in range(6):
        ids.append(int(chain.distribution(ids).argmax()))
    assert greedy == ids[1:]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_what_it_writes_is_distributed_like_its_predictions(order):
    chain = s1.MarkovChain(order, V).fit(TEXT)
    ids = chain.generate(2000, seed=0)
    rows = [t for t in range(2, 2000) if tuple(ids[t - order : t]) == (0,) * order]
    drawn = np.bincount(ids[rows], minlength=V) / len(rows)
    assert drawn == pytest.approx(chain.distribution([0] * order), abs=2.2 / math.sqrt(len(rows)))


def test_mle_writes_only_what_it_has_read():
    text = np.tile([0, 1, 2, 3, 1], 20)
    ids = s1.MarkovChain(2, V, "mle").fit(text).generate(300, [0, 1], seed=0)
    grams = {tuple(text[i : i + 3]) for i in range(len(text) - 2)}
    assert {tuple(ids[i : i + 3]) for i in range(298)} <= grams


# The long run


@pytest.mark.parametrize("size", [1, 2, 9])
def test_stationary_distribution_is_where_all_starts_end(rng, size):
    P = rng.dirichlet(np.ones(size), size)
    pi = s1.stationary_distribution(P)
    assert pi @ P == pytest.approx(pi, abs=1e-14) and pi.sum() == pytest.approx(1)
    assert np.linalg.matrix_power(P, 300) == pytest.approx(np.tile(pi, (size, 1)))
    delta, mu = P.min(axis=0).sum(), rng.dirichlet(np.ones(size), 20)  # (16)
    assert np.all(
        np.abs(mu @ P - pi).sum(axis=1) <= (1 - delta) * np.abs(mu - pi).sum(axis=1) + 1e-14
    )


@pytest.mark.parametrize(
    "P, pi",
    [
        ([[0, 1], [1, 0]], [0.5, 0.5]),
        ([[0, 1, 0], [0, 0, 1], [1, 0, 0]], [1 / 3] * 3),
        ([[0.9, 0.1], [0.5, 0.5]], [5 / 6, 1 / 6]),
        ([[1, 0], [0.5, 0.5]], [1, 0]),
        (np.eye(3), [1 / 3] * 3),
        ([[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]], [1 / 3, 1 / 3, 1 / 3]),
        ([[1.0]], [1.0]),
    ],
)
def test_stationary_distribution_of_cycles_and_parts(P, pi):
    found = s1.stationary_distribution(P)
    assert found == pytest.approx(pi, abs=1e-14) and found.min() >= 0


def test_entropy_rate():
    assert s1.entropy_rate(np.full((4, 4), 0.25), base=2) == pytest.approx(2)
    assert s1.entropy_rate([[0, 1], [1, 0]]) == 0
    p = np.array([0.2, 0.3, 0.5])
    assert s1.entropy_rate(np.tile(p, (3, 1))) == pytest.approx(s1.entropy(p))
    chain = s1.MarkovChain(1, 3, "mle").fit(np.append(TEXT, TEXT[0]))  # a ring has no ends
    P = np.array([chain.distribution([h]) for h in range(3)])
    assert s1.stationary_distribution(P) == pytest.approx(np.bincount(TEXT) / len(TEXT))
    surprise = -np.log(P[TEXT, np.roll(TEXT, -1)]).mean()
    assert s1.entropy_rate(P) == pytest.approx(surprise)


# Bad input


def fitted():
    return s1.MarkovChain(2, V).fit(TEXT)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: s1.MarkovChain(-1, V), "order is -1; expected an integer of at least 0"),
        (lambda: s1.MarkovChain(1.5, V), "order is 1.5"),
        (lambda: s1.MarkovChain(1, 0), "vocab_size is 0; expected an integer of at least 1"),
        (lambda: s1.MarkovChain(1, V, "laplace"), "smoothing is 'laplace'; expected one of knes"),
        (lambda: s1.MarkovChain(1, V, "add-k", k=0), "k is 0; expected a number above 0"),
        (lambda: s1.MarkovChain(1, V, "add-k", k=math.nan), "k is nan"),
        (lambda: s1.MarkovChain(1, V, discount=1.5), "discount is 1.5; expected 0 < discount"),
        (lambda: s1.MarkovChain(1, V).fit([]), "length of ids is 0; expected at least 1"),
        (lambda: s1.MarkovChain(1, V).fit([0, 4]), "an id in ids is 4; expected 0 to 3"),
        (lambda: s1.MarkovChain(1, V).fit([-1]), "an id in ids is -1; expected 0 to 3"),
        (lambda: s1.MarkovChain(1, V).fit([0.5]), "type of ids is 'float64'; expected integers"),
        (lambda: s1.MarkovChain(1, V).fit([[0]]), r"shape of ids is \(1, 1\); expected one dim"),
        (lambda: s1.MarkovChain(1, V).distribution(), "the chain is 'not fitted'; expected a call"),
        (lambda: s1.MarkovChain(1, V).perplexity([0]), "the chain is 'not fitted'"),
        (lambda: s1.MarkovChain(1, V).generate(1), "the chain is 'not fitted'"),
        (lambda: fitted().distribution([4]), "an id in context is 4; expected 0 to 3"),
        (lambda: fitted().distribution([9, 0, 0, 0]), "an id in context is 9"),
        (lambda: fitted().distribution(3), r"shape of context is \(\)"),
        (lambda: fitted().log_likelihood([0, 4]), "an id in ids is 4"),
        (lambda: fitted().log_likelihood([]), "length of ids is 0; expected at least 1"),
        (lambda: fitted().perplexity([]), "length of ids is 0; expected at least 1"),
        (lambda: fitted().generate(-1), "n is -1; expected an integer of at least 0"),
        (lambda: fitted().generate(0, [7]), "an id in context is 7"),
        (lambda: fitted().generate(1, temperature=-0.1), "temperature is -0.1; expected 0 or more"),
        (lambda: fitted().generate(1, top_k=0), "top_k is 0; expected an integer of at least 1"),
        (lambda: fitted().generate(1, top_p=0.0), "top_p is 0.0; expected None or 0 < top_p <= 1"),
        (lambda: s1.sample([0.5, 0.4]), "a sum of p is 0.9; expected 1"),
        (lambda: s1.sample([[0.5, 0.5]]), r"shape of p is \(1, 2\); expected one dimension"),
        (lambda: s1.sample([1.0], temperature=math.inf), "temperature is inf"),
        (lambda: s1.sample([1.0], temperature=math.nan), "temperature is nan"),
        (lambda: s1.sample([1.0], top_p=1.1), "top_p is 1.1"),
        (lambda: s1.entropy([]), r"shape of p is \(0,\); expected at least one probability"),
        (lambda: s1.entropy([1.5, -0.5]), "least entry of p is -0.5; expected 0 or more"),
        (lambda: s1.entropy([math.nan, 1.0]), "least entry of p is nan"),
        (lambda: s1.entropy([1.0], base=1), "base is 1; expected e"),
        (lambda: s1.cross_entropy([1.0], [0.5, 0.5]), r"shape of q is \(2,\); expected that of p"),
        (lambda: s1.kl_divergence([1.0], [0.7]), "a sum of q is 0.7"),
        (
            lambda: s1.stationary_distribution([[0.5, 0.5]]),
            r"shape of P is \(1, 2\); expected a sq",
        ),
        (lambda: s1.stationary_distribution([[0.5, 0.4], [0, 1]]), "a sum of P is 0.9"),
        (lambda: s1.entropy_rate([[1.5, -0.5], [0, 1]]), "least entry of P is -0.5"),
    ],
)
def test_bad_input_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The report


@pytest.fixture(scope="module")
def fast_report(tmp_path_factory):
    path = tmp_path_factory.mktemp("stage01") / "report.txt"
    with path.open("w+", encoding="utf-8") as out, redirect_stdout(out):
        assert not s1.main(["--fast", "--seed", "3"])
    return path.read_text(encoding="utf-8")


def test_report_is_complete(fast_report):
    for heading in ("1. How much", "2. What they", "3. Temper", "4. Words", "5. The long run"):
        assert heading in fast_report
    check_held_out_line(fast_report)
    assert fast_report.splitlines()[-1].startswith("held-out:")
    assert max(map(len, fast_report.splitlines())) <= 100
    assert fast_report.count("inf ") >= 4  # maximum likelihood, said so


def test_report_is_deterministic(fast_report, capsys):
    s1.main(["--fast", "--seed", "3"])
    assert capsys.readouterr().out == fast_report


@pytest.mark.parametrize("text", ["a" * 300, "\u2028\0" * 120])
def test_any_text_is_a_text(tmp_path, capsys, text):
    path = tmp_path / "odd.txt"
    path.write_text(text, encoding="utf-8")
    s1.main(["--fast", "--text", str(path)])
    assert check_held_out_line(capsys.readouterr().out) < 0.2


@pytest.mark.parametrize(
    "content, message",
    [(b"", "is 0; expected at least 100"), (b"short", "is 5; expected"), (b"\xff\xfe", "utf-8")],
)
def test_a_bad_text_is_one_clean_line(tmp_path, capsys, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        s1.main(["--text", str(path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("argv", [["--seed", "-1"], ["--wrong"], ["--text", "/no/such/file"]])
def test_a_bad_command_line_is_one_clean_line(monkeypatch, capsys, argv):
    monkeypatch.setattr(sys, "argv", ["stage01_markov.py", *argv])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "stage01_markov.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error
