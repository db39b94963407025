"""Stage 1: the first page, counting, the five smoothings by brute force, sampling, commands."""

import io
import itertools
import json
import math
import os
import re
import runpy
import sys
import warnings
import zipfile
from collections import Counter, defaultdict
from contextlib import redirect_stdout
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from conftest import ROOT, assert_bad_text_is_one_clean_line, check_held_out_line

import stage01_markov as s1

V = 4
TEXT = np.random.default_rng(5).choice(V - 1, 80, p=[0.6, 0.3, 0.1])  # id 3 never occurs
SMOOTHED = [name for name in s1.SMOOTHINGS if name != "mle"]
every = pytest.mark.parametrize("smoothing", s1.SMOOTHINGS)
smoothed = pytest.mark.parametrize("smoothing", SMOOTHED)
LETTERS = "abcdr"
ABRACADABRA = [LETTERS.index(letter) for letter in "abracadabra"]


@pytest.fixture(autouse=True)
def no_warnings():
    """A NumPy warning (log of 0, 0/0) fails the test in which it appears."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def contexts(longest, ids=range(V)):
    return [h for n in range(longest + 1) for h in itertools.product(ids, repeat=n)]


def log_likelihood(chain, ids):
    return chain.log_probabilities(ids).sum()


# The numbers that stand in the file


def test_the_first_page():
    followers = s1.count_followers("abracadabra")
    assert followers == {"a": {"b": 2, "c": 1, "d": 1}, "b": {"r": 2}, "r": {"a": 2}} | {
        letter: {"a": 1} for letter in "cd"
    }
    assert [s1.share(followers, "a", letter) for letter in "abcdr"] == [0, 0.5, 0.25, 0.25, 0]
    assert s1.word_perplexity(followers, "cabra") == pytest.approx(2 ** (1 / 4))
    assert round(s1.word_perplexity(followers, "cabra"), 2) == 1.19
    assert s1.word_perplexity(followers, "dacab") == pytest.approx(8 ** (1 / 4))
    assert round(s1.word_perplexity(followers, "dacab"), 2) == 1.68
    assert s1.word_perplexity(followers, "bard") == math.inf


def test_the_first_page_writes_with_the_shares_of_its_table(rng):
    followers = s1.count_followers("abracadabra")
    word = s1.draw_word(followers, "a", 3000, rng)
    assert len(word) == 3000 and word[0] == "a" and type(word) is str
    again = s1.count_followers(word)
    assert {(a, b) for a in again for b in again[a]} == {
        (a, b) for a in followers for b in followers[a]
    }
    assert s1.share(again, "a", "b") == pytest.approx(0.5, abs=0.05)
    assert s1.draw_word(followers, "abra", 4, rng) == "abra"


def test_the_first_page_takes_letters_that_it_has_never_seen(rng):
    followers = s1.count_followers("abracadabrax")
    before = dict(followers)
    assert s1.share(followers, "z", "a") == s1.share(followers, "x", "a") == 0
    assert s1.word_perplexity(followers, "zebra") == math.inf
    assert s1.draw_word(followers, "x", 5, rng) == "x"  # nothing ever came after it
    assert followers == before  # to ask is not to count


def test_the_first_page_is_the_chain_of_order_1():
    """The plain form and the fast one."""
    followers = s1.count_followers("abracadabra")
    chain = s1.MarkovChain(1, 5, "mle").fit(ABRACADABRA)
    for i, letter in enumerate(LETTERS):
        expected = [s1.share(followers, letter, other) for other in LETTERS]
        assert chain.distribution([i]) == pytest.approx(expected, abs=1e-15)
    for word in ("cabra", "dacab", "bard"):
        surprise = -chain.log_probabilities([LETTERS.index(letter) for letter in word])[1:].mean()
        with np.errstate(over="ignore"):
            assert np.exp(surprise) == pytest.approx(s1.word_perplexity(followers, word))


def test_section_3_shares_make_the_text_likeliest():
    def probability(b, c, d):
        return b * b * c * d

    assert probability(1 / 2, 1 / 4, 1 / 4) == 1 / 64 and round(1 / 64, 4) == 0.0156
    assert round(probability(0.6, 0.2, 0.2), 4) == 0.0144


def test_section_4_in_bits():
    p, q = [1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 4, 1 / 2]
    assert s1.entropy(p, 2) == pytest.approx(1.5, abs=1e-14)
    assert s1.cross_entropy(p, q, 2) == pytest.approx(1.75, abs=1e-14)
    assert s1.kl_divergence(p, q, 2) == pytest.approx(0.25, abs=1e-14)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_section_5_darts(k, rng):
    """Throw k·V - 1 darts, each k-th a border, and two more. If both hit b, where is a third?"""
    thrown = rng.random((150_000, 3 * k - 1))
    borders = np.sort(thrown, axis=1)[:, k - 1 :: k]  # (n, 2)
    hit = (rng.random((150_000, 3, 1)) > borders[:, None, :]).sum(
        axis=2
    )  # (n, 3) 0, 1, 2 = a, b, c
    third = hit[(hit[:, 0] == 1) & (hit[:, 1] == 1), 2]
    expected = s1.MarkovChain(0, 3, "add-k", k=k).fit([1, 1]).distribution()
    assert expected == pytest.approx(np.array([k, k + 2, k]) / (2 + 3 * k))
    assert np.bincount(third, minlength=3) / len(third) == pytest.approx(expected, abs=0.015)


def test_section_5_and_6_tables():
    def after_a(smoothing, **settings):
        return s1.MarkovChain(1, 5, smoothing, **settings).fit(ABRACADABRA).distribution([0])

    assert after_a("mle").tolist() == [0, 0.5, 0.25, 0.25, 0]
    assert after_a("add-k") == pytest.approx(np.array([1, 3, 2, 2, 1]) / 9)
    assert after_a("kneser-ney").round(3).tolist() == [0.241, 0.393, 0.143, 0.143, 0.080]
    assert after_a("witten-bell").round(3).tolist() == [0.161, 0.366, 0.196, 0.196, 0.080]
    follows = s1.count_levels(ABRACADABRA, 1, 5)[1][0]
    assert follows.n_hc.tolist() == [3, 1, 1, 1, 1, 0]  # the last row: never seen
    assert (follows.n_h[0], follows.d_h[0]) == (7, 5)
    empty = (np.array([3, 1, 1, 1, 1]) - 0.75 + 0.75 * 5 / 5) / 7
    assert empty.round(3).tolist() == [0.429, 0.143, 0.143, 0.143, 0.143]


def test_section_7_greedy_is_not_the_likeliest_text():
    begin, P = np.array([0.6, 0.4, 0]), np.array([[1 / 3] * 3, [0, 0, 1], [1, 0, 0]])
    first = int(s1.tempered(begin, temperature=0).argmax())
    assert (first, begin[first] * P[first].max()) == (0, pytest.approx(0.2))
    probability, pair = max((begin[a] * P[a, b], (a, b)) for a in range(3) for b in range(3))
    assert (probability, pair) == (0.4, (1, 2))
    assert s1.tempered([1 / 2, 1 / 4, 1 / 4], 1 / 2) == pytest.approx([2 / 3, 1 / 6, 1 / 6])


def test_section_8_table_of_keys_and_ranks():
    occurs, _ = s1.count_levels(ABRACADABRA, 2, 5)
    (_, rank), (_, pair), (_, _) = s1.look_up(occurs, np.array(ABRACADABRA), 5)
    assert rank.tolist() == ABRACADABRA == [0, 1, 4, 0, 2, 0, 3, 0, 1, 4, 0]
    assert pair.tolist() == [0, 3, 6, 1, 4, 2, 5, 0, 3, 6]
    assert occurs[1].keys[pair].tolist() == [1, 9, 20, 2, 10, 3, 15, 1, 9, 20]
    assert occurs[1].keys[:-1].tolist() == [1, 2, 3, 9, 10, 15, 20]
    triple = s1.look_up(occurs, np.array(ABRACADABRA), 5)[2][1]
    assert occurs[2].keys[triple].tolist() == [4, 15, 32, 5, 23, 10, 26, 4, 15]


# The five models, written down again with dictionaries and recursion


def reference(smoothing, text, h, c, k=1.0, weight=0.7, d=0.75, V=V):
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
            return weight * N[c] / total + (1 - weight) * below
        return max(N[c] - d, 0) / total + d * kinds / total * below

    return p(tuple(h), True)


@every
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_distribution_is_the_definition(smoothing, order):
    chain = s1.MarkovChain(order, V, smoothing, k=0.3, weight=0.55, discount=0.6).fit(TEXT)
    for h in contexts(order):
        expected = [reference(smoothing, TEXT, h, c, 0.3, 0.55, 0.6) for c in range(V)]
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
def test_log_probabilities_are_those_of_the_distributions(smoothing, order, rng):
    chain = s1.MarkovChain(order, V, smoothing).fit(TEXT)
    for ids in (TEXT, TEXT[:2], rng.integers(0, V, 30), [3]):
        p = np.array([chain.distribution(ids[:t])[ids[t]] for t in range(len(ids))])
        with np.errstate(divide="ignore"):
            assert chain.log_probabilities(ids) == pytest.approx(np.log(p), rel=1e-12)
            assert chain.perplexity(ids) == pytest.approx(math.exp(-np.log(p).mean()))


@smoothed
def test_the_probabilities_of_all_texts_of_a_length_add_up_to_one(smoothing):
    chain = s1.MarkovChain(2, 3, smoothing).fit(TEXT)
    texts = itertools.product(range(3), repeat=4)
    assert sum(math.exp(log_likelihood(chain, text)) for text in texts) == pytest.approx(1)


def test_mle_is_the_maximum(rng):
    """No other row of probabilities makes the training text likelier."""
    best = s1.MarkovChain(1, 3, "mle").fit(TEXT)
    N = np.zeros((3, 3))
    np.add.at(N, (TEXT[:-1], TEXT[1:]), 1)
    P = np.array([best.distribution([h]) for h in range(3)])
    assert P == pytest.approx(N / N.sum(axis=1, keepdims=True))
    mine = best.log_probabilities(TEXT)[1:].sum()
    for _ in range(50):
        other = 0.8 * P + 0.2 * rng.dirichlet(np.ones(3), 3)
        assert np.log(other[TEXT[:-1], TEXT[1:]]).sum() < mine


@pytest.mark.parametrize("ids", [[3], [0, 3], [0, 1, 0, 3, 0], [3, 3, 3, 3]])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_mle_finds_the_unseen_impossible(ids, order):
    chain = s1.MarkovChain(order, V, "mle").fit(TEXT)
    assert chain.perplexity(ids) == math.inf and log_likelihood(chain, ids) == -math.inf


def test_add_k_is_the_mean_of_the_dirichlet_posterior(rng):
    """Draw θ from the prior, weigh each by the likelihood of the counts, average."""
    chain = s1.MarkovChain(0, 3, "add-k", k=0.5).fit([0, 0, 0, 1, 0, 2, 0])
    theta = rng.dirichlet(np.full(3, 0.5), 200_000)
    weight = theta[:, 0] ** 5 * theta[:, 1] * theta[:, 2]
    assert chain.distribution() == pytest.approx(weight @ theta / weight.sum(), abs=0.01)
    assert chain.distribution() == pytest.approx([5.5 / 8.5, 1.5 / 8.5, 1.5 / 8.5])


@pytest.mark.parametrize("discount", [0.2, 0.75, 1.0])
def test_kneser_ney_keeps_the_shares_of_the_text(discount):
    """(12): Σ_h N(h)/N·P(c|h) = N(c)/N, on a ring of symbols, which has no ends.

    Exact where all V symbols occur: the empty context frees d·D/V = d for each, as it takes d.
    """
    ring = np.append(TEXT, TEXT[0])
    chain = s1.MarkovChain(1, 3, discount=discount).fit(ring)
    shares = np.bincount(TEXT) / len(TEXT)
    P = np.array([chain.distribution([h]) for h in range(3)])
    assert shares @ P == pytest.approx(shares, abs=1e-14)
    rival = s1.MarkovChain(1, 3, "witten-bell").fit(ring)
    P = np.array([rival.distribution([h]) for h in range(3)])
    assert shares @ P != pytest.approx(shares, abs=1e-4)


def test_the_continuation_counts_tell_francisco_from_a_common_word():
    """b and c are equally frequent, but b follows a only: an unseen context expects c."""
    text = [0, 1, 0, 1, 0, 1, 0, 1, 2, 4, 2, 3, 2, 5, 2, 6, 0, 0]  # 1 after 0 only, 2 after many
    assert text.count(1) == text.count(2)
    p = s1.MarkovChain(2, 8).fit(text).distribution([7, 6])  # 6 came once, before 0
    assert p[2] > 2 * p[1]


# Counting


@pytest.mark.parametrize("vocab_size", [3, 50_000, 2**31 - 1])
def test_huge_vocabularies_do_not_collide(vocab_size, rng):
    """V^(order+1) is far beyond 64 bits; the counts must not notice. Ids sit at both ends."""
    small = rng.integers(0, 3, 300)
    ids = np.where(small == 2, vocab_size - 1, small)
    occurs, follows = s1.count_levels(ids, 8, vocab_size)
    assert (len(occurs), len(follows)) == (9, 8)
    text = tuple(ids.tolist())
    for n, level in enumerate(occurs):
        grams = [text[i : i + n + 1] for i in range(len(text) - n)]
        longer = {text[i : i + n + 2] for i in range(len(text) - n - 1)}
        h, rank = s1.look_up(occurs, ids, vocab_size)[n]
        counted, left = Counter(grams), Counter(gram[1:] for gram in longer)
        followers = defaultdict(Counter)
        for gram in grams:
            followers[gram[:-1]][gram[-1]] += 1
        assert level.n_hc[rank].tolist() == [counted[gram] for gram in grams]
        assert level.n_h[h].tolist() == [sum(followers[gram[:-1]].values()) for gram in grams]
        assert level.d_h[h].tolist() == [len(followers[gram[:-1]]) for gram in grams]
        if n < 8:
            assert follows[n].n_hc[rank].tolist() == [left[gram] for gram in grams]


@every
def test_a_high_order_in_a_large_vocabulary(smoothing):
    """Ids at the top of a vocabulary of 5,000, order 7: 5,000⁸ has 98 bits."""
    text, asked = TEXT + 4996, range(7, 80, 6)
    chain = s1.MarkovChain(7, 5000, smoothing, k=0.1).fit(text)
    for t in asked:
        p = chain.distribution(text[:t])
        for c in (0, text[t], 4999):
            expected = reference(smoothing, text, text[t - 7 : t], c, 0.1, V=5000)
            assert p[c] == pytest.approx(expected, rel=1e-12)


@every
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint32", "uint64"])
def test_ids_of_any_width_are_counted_alike(smoothing, dtype):
    """Packed keys leave uint8 and uint16, and uint64 with int64 would become floats."""
    ids = TEXT * 30 + 1  # up to 61
    chain = s1.MarkovChain(4, 100, smoothing).fit(ids)
    same = s1.MarkovChain(4, 100, smoothing).fit(ids.astype(dtype))
    assert np.array_equal(same.log_probabilities(ids.astype(dtype)), chain.log_probabilities(ids))
    assert np.array_equal(same.distribution(ids[:9].astype(dtype)), chain.distribution(ids[:9]))
    for level, other in zip(*(s1.count_levels(i, 4, 100)[0] for i in (ids, ids.astype(dtype)))):
        assert np.array_equal(level.keys, other.keys)


@every
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint64"])
def test_settings_of_any_width_are_plain_numbers(smoothing, dtype):
    """An unsigned or narrow order or V would wrap around or turn the keys into floats."""
    order, size = np.array([2, 100]).astype(dtype)
    ids = np.tile(TEXT, 4)
    plain = s1.MarkovChain(2, 100, smoothing, k=1 / 2, weight=1 / 4, discount=3 / 4).fit(ids)
    for kind in (np.float16, Fraction):
        settings = {"k": kind(1 / 2), "weight": kind(1 / 4), "discount": kind(3 / 4)}
        chain = s1.MarkovChain(order, size, smoothing, **settings).fit(ids)
        assert asdict(chain) == asdict(plain) and repr(chain) == repr(plain)
        assert np.array_equal(chain.log_probabilities(ids), plain.log_probabilities(ids))
        written = chain.generate(size.astype(dtype), np.random.default_rng(0), ids)  # after 320
        assert written.tolist() == plain.generate(100, np.random.default_rng(0), ids).tolist()
    for level, other in zip(s1.count_levels(ids, order, size)[0], plain.occurs):
        assert np.array_equal(level.keys, other.keys)


def test_a_large_vocabulary_with_a_narrow_k():
    """float16 ends at 65,504."""
    chain = s1.MarkovChain(0, 10**5, "add-k", k=np.float16(1)).fit([7])
    assert chain.distribution()[7] == pytest.approx(2 / (1 + 10**5))


@every
def test_an_order_beyond_the_text_is_the_order_of_the_text(smoothing):
    text = [0, 1, 2, 1]
    chain = s1.MarkovChain(2**70, V, smoothing).fit(text)
    for h in ([], [1], [1, 2], [0, 1, 2], [0, 1, 2, 1], [3, 3, 0, 1, 2, 1, 2]):
        expected = [reference(smoothing, text, h, c) for c in range(V)]
        assert chain.distribution(h) == pytest.approx(expected)
    assert len(chain.generate(12, np.random.default_rng(0))) == 12


@every
def test_fit_replaces_and_returns_the_chain_and_leaves_the_ids_alone(smoothing):
    ids = TEXT.copy()
    chain = s1.MarkovChain(2, V, smoothing)
    assert chain.fit([1, 1, 1, 1]) is chain and chain.fit(ids) is chain
    again = s1.MarkovChain(2, V, smoothing).fit(tuple(ids.tolist()))
    assert np.array_equal(chain.log_probabilities(TEXT), again.log_probabilities(TEXT))
    assert np.array_equal(ids, TEXT)
    ids[:] = 0  # the chain has its own
    assert np.array_equal(chain.ids, TEXT)


@every
def test_one_symbol_texts(smoothing):
    chain = s1.MarkovChain(3, 1, smoothing).fit([0] * 20)
    assert chain.perplexity([0] * 9) == pytest.approx(1)
    assert chain.generate(5, np.random.default_rng(0)).tolist() == [0] * 5


@every
@pytest.mark.parametrize("order", [0, 2, 4])
def test_a_variant_is_a_chain_fitted_with_its_settings(smoothing, order):
    counted = s1.MarkovChain(4, V, "kneser-ney").fit(TEXT)
    settings = dict(order=order, smoothing=smoothing, k=0.2, weight=0.4, discount=0.9)
    variant, fresh = counted.variant(**settings), s1.MarkovChain(vocab_size=V, **settings).fit(TEXT)
    assert asdict(variant) == asdict(fresh) and len(variant.occurs) == order + 1
    for h in contexts(4, ids=(0, 1)):
        assert np.array_equal(variant.distribution(h), fresh.distribution(h))
    assert np.array_equal(variant.log_probabilities(TEXT), fresh.log_probabilities(TEXT))
    assert asdict(counted) == asdict(s1.MarkovChain(4, V)) and len(counted.occurs) == 5


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


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0])
def test_temperature_minimises_the_free_energy(rng, temperature):
    p = np.array([0.5, 0.3, 0.2, 0.0])

    def free_energy(q):
        return s1.cross_entropy(q, p) - temperature * s1.entropy(q)

    q, powers = s1.tempered(p, temperature), p[:3] ** (1 / temperature)
    assert q[:3] == pytest.approx(powers / powers.sum()) and q[3] == 0
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
        (dict(top_k=2**31), [0.2, 0.5, 0, 0.3]),
        (dict(top_k=2**70), [0.2, 0.5, 0, 0.3]),
        (dict(top_p=1e-12), [0, 1, 0, 0]),
        (dict(top_p=5e-324), [0, 1, 0, 0]),
        (dict(top_p=np.float32(0.5)), [0, 1, 0, 0]),  # 1e-9 must not vanish beside it
        (dict(top_p=Fraction(1, 2), temperature=Fraction(1, 1)), [0, 1, 0, 0]),
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


def test_top_p_drops_what_comes_after_a_sum_of_top_p(rng):
    """The rule of the house, one symbol at a time; twentieths tie all the time."""
    example = s1.tempered([0.5, 0.3, 0.15, 0.05], top_p=0.8)
    assert example == pytest.approx([5 / 8, 3 / 8, 0, 0]) and np.count_nonzero(example) == 2
    for _ in range(200):
        p, top_p = rng.multinomial(20, rng.dirichlet(np.ones(6))) / 20, rng.integers(1, 20) / 20
        kept, before = np.zeros(6), 0.0
        for i in np.argsort(-p, kind="stable"):
            if before < top_p - 1e-9:
                kept[i] = p[i]
            before += p[i]
        assert s1.tempered(p, top_p=top_p) == pytest.approx(kept / kept.sum(), abs=1e-9)


@pytest.mark.parametrize("top_p", [1e-12, 1e-9, 5e-324])
def test_the_smallest_top_p_still_keeps_one_symbol(top_p):
    """The tolerance of the rule is 1e-9, and more than such a top_p."""
    for V in (1, 2, 1000):
        assert s1.tempered(np.full(V, 1 / V), top_p=top_p).tolist() == [1] + [0] * (V - 1)


def test_a_narrow_top_p_has_the_tolerance_too():
    p = np.full(20, 0.05)
    short = np.cumsum(p)[9]  # of 0.5, by rounding: without the tolerance, one more is kept
    assert short < 0.5
    assert np.count_nonzero(s1.tempered(p, top_p=np.float32(0.5))) == 10


def test_the_plain_draw_is_at_temperature_1():
    p = [0.05, 0.15, 0.3, 0.5]
    plain, warm = np.random.default_rng(1), np.random.default_rng(1)
    assert [s1.sample(p, plain) for _ in range(400)] == [
        s1.sample(p, warm, temperature=1.0) for _ in range(400)
    ]
    chain = s1.MarkovChain(1, V).fit(TEXT)
    expected = chain.generate(400, np.random.default_rng(1), temperature=1.0)
    assert np.array_equal(chain.generate(400, np.random.default_rng(1)), expected)
    assert s1.tempered(p).tolist() == s1.tempered(p, 1.0).tolist()


def test_ties_go_to_the_first_and_top_k_keeps_exactly_that_many(rng):
    assert s1.tempered([0.25] * 4, top_k=2).tolist() == [0.5, 0.5, 0, 0]
    assert s1.sample([0.1, 0.45, 0.45], rng, temperature=0) == 1


def test_sample_draws_with_the_frequencies_of_p():
    p, rng = np.array([0.0, 0.1, 0.2, 0.7, 0.0]), np.random.default_rng(3)
    drawn = np.bincount([s1.sample(p, rng) for _ in range(2000)], minlength=5)
    assert drawn[0] == drawn[4] == 0
    assert drawn / 2000 == pytest.approx(p, abs=4 * math.sqrt(0.25 / 2000))
    assert type(s1.sample(p, rng)) is int


def test_generate_follows_seed_and_context():
    def generate(n, seed, **options):
        return chain.generate(n, np.random.default_rng(seed), **options)

    chain = s1.MarkovChain(2, V).fit(TEXT)
    out = generate(40, 7, context=[0, 1])
    assert out.shape == (40,) and np.issubdtype(out.dtype, np.integer)
    assert np.array_equal(out, generate(40, 7, context=[2, 2, 0, 1]))  # the end counts
    assert not np.array_equal(out, generate(40, 8, context=[0, 1]))
    assert generate(0, 7).tolist() == []
    greedy, ids = generate(6, 7, context=[0], temperature=0).tolist(), [0]
    for _ in range(6):
        ids.append(int(chain.distribution(ids).argmax()))
    assert greedy == ids[1:] == generate(6, 8, context=[0], top_k=1).tolist()


@pytest.mark.parametrize("order", [0, 1, 2])
def test_what_it_writes_is_distributed_like_its_predictions(order):
    chain = s1.MarkovChain(order, V).fit(TEXT)
    ids = chain.generate(2000, np.random.default_rng(0))
    rows = [t for t in range(2, 2000) if tuple(ids[t - order : t]) == (0,) * order]
    drawn = np.bincount(ids[rows], minlength=V) / len(rows)
    assert drawn == pytest.approx(chain.distribution([0] * order), abs=2.2 / math.sqrt(len(rows)))


def test_mle_writes_only_what_it_has_read(rng):
    text = np.tile([0, 1, 2, 3, 1], 20)
    ids = s1.MarkovChain(2, V, "mle").fit(text).generate(300, rng, [0, 1])
    grams = {tuple(text[i : i + 3]) for i in range(len(text) - 2)}
    assert {tuple(ids[i : i + 3]) for i in range(298)} <= grams


# Saved and loaded


@every
def test_a_loaded_chain_is_the_one_that_was_saved(smoothing, tmp_path):
    chain = s1.MarkovChain(np.int64(3), V, smoothing, k=0.5, weight=np.float32(0.5), discount=0.6)
    chain.fit(TEXT)
    symbols = ["a", "\0", "汉", "<end>"]
    s1.save_chain(tmp_path / "chain.npz", chain, symbols)
    loaded, read = s1.load_chain(tmp_path / "chain.npz")
    assert read == symbols and asdict(loaded) == asdict(chain)
    assert np.array_equal(loaded.ids, TEXT)
    assert np.array_equal(loaded.log_probabilities(TEXT), chain.log_probabilities(TEXT))
    assert os.listdir(tmp_path) == ["chain.npz"]


@pytest.mark.parametrize("vocab_size, width", [(256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_a_file_has_as_few_bytes_an_id_as_will_do(tmp_path, vocab_size, width):
    chain = s1.MarkovChain(0, vocab_size).fit([vocab_size - 1, 0])
    s1.save_chain(tmp_path / "a", chain, list(map(str, range(vocab_size))))
    with np.load(tmp_path / "a") as arrays:
        assert arrays["ids"].dtype.itemsize == width
    assert s1.load_chain(tmp_path / "a")[0].ids.tolist() == [vocab_size - 1, 0]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path, chain = tmp_path / "chain.npz", s1.MarkovChain(1, V).fit(TEXT)
    path.write_bytes(b"old")

    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        s1.save_chain(path, chain, list("abcd"))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["chain.npz"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    calls, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
    s1.save_chain(tmp_path / "chain.npz", fitted(), list("abcd"))
    assert calls == ["fsync", "replace"]


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def settings(**changes):
    values = {**asdict(s1.MarkovChain(1, 2)), "symbols": ["a", "b"], **changes}
    return np.frombuffer(json.dumps(values).encode(), dtype=np.uint8)


IDS = np.zeros(5, dtype=np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no zip at all",
        npz(ids=IDS),
        npz(ids=IDS, settings=settings(), more=IDS),
        npz(ids=IDS, settings=np.frombuffer(b"[]", dtype=np.uint8)),
        npz(ids=IDS, settings=np.frombuffer(b"\xff", dtype=np.uint8)),
        npz(ids=np.array([0, None]), settings=settings()),  # would need a pickle
        npz(ids=IDS.astype(float), settings=settings()),
        npz(ids=IDS + 2, settings=settings()),
        npz(ids=IDS[:0], settings=settings()),
        npz(ids=IDS, settings=settings(order="1")),
        npz(ids=IDS, settings=settings(extra=1)),
        npz(ids=IDS, settings=settings(symbols=["a"])),
        npz(ids=IDS, settings=settings(symbols=["a", "a"])),
        npz(ids=IDS, settings=settings(symbols=["a", "b", "b"])),
        npz(ids=IDS, settings=settings(symbols=["a", 1])),
        npz(ids=IDS, settings=settings(symbols=None)),
        npz(ids=IDS, settings=settings(symbols="ab")),
        npz(ids=IDS, settings=settings(symbols={"a": 0, "b": 1})),
        npz(ids=IDS, settings=settings(order=101)),
        npz(ids=IDS, settings=settings(order=2**70)),
    ],
)
def test_another_file_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="other.npz is damaged or no saved chain: ."):
        s1.load_chain(path)


def test_a_zip_that_unfolds_to_more_than_itself_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in (("ids", np.zeros(10**6, dtype=np.uint8)), ("settings", settings())):
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(f"{name}.npy", file.getvalue())
    with pytest.raises(ValueError, match="longer than the file"):
        s1.load_chain(tmp_path / "bomb.npz")


def test_damage_anywhere_is_noticed_or_harmless(tmp_path, rng):
    path, chain = tmp_path / "chain.npz", s1.MarkovChain(2, V).fit(TEXT)
    s1.save_chain(path, chain, list("abcd"))
    data, refused = path.read_bytes(), 0
    for _ in range(150):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            loaded, symbols = s1.load_chain(path)
        except ValueError as error:
            refused += "chain.npz is damaged" in str(error)
        else:
            assert np.array_equal(loaded.ids, TEXT) and symbols == list("abcd")
            assert asdict(loaded) == asdict(chain)
    assert refused > 100
    for length in range(0, len(data), 37):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="damaged"):
            s1.load_chain(path)


# Names


def test_a_row_of_names_has_starts_and_ends():
    symbols = [s1.START, s1.END, "a", "b"]
    assert s1.names_row(["ab", "b"], symbols, 2).tolist() == [0, 0, 2, 3, 1, 0, 0, 3, 1]
    assert s1.names_row(["ab", "b"], symbols, 0).tolist() == [2, 3, 1, 3, 1]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_names_begin_and_end_as_the_counted_ones_do(order, rng):
    """Without smoothing and with one letter between them, only counted names can be written."""
    names, symbols = ["ab", "cd", "efg", "ab"], [s1.START, s1.END, *"abcdefg"]
    chain = s1.MarkovChain(order, len(symbols), "mle").fit(s1.names_row(names, symbols, order))
    written = Counter(s1.write_name(chain, symbols, rng) for _ in range(400))
    assert set(written) == {"ab", "cd", "efg"}
    assert written["ab"] / 400 == pytest.approx(0.5, abs=0.1)
    assert {s1.write_name(chain, symbols, rng, "e") for _ in range(5)} == {"efg"}


def test_a_name_that_does_not_end_is_cut_off(rng):
    symbols = [s1.START, s1.END, "a"]
    chain = s1.MarkovChain(1, 3, "mle").fit([0, 2, 2, 2, 2])
    assert s1.write_name(chain, symbols, rng, longest=7) == "a" * 7


def test_a_start_symbol_ends_a_name_too(rng):
    chain = s1.MarkovChain(1, 3, "mle").fit([0, 2, 0, 2, 0])
    assert s1.write_name(chain, [s1.START, s1.END, "a"], rng) == "a"


# What the report and the commands choose and count


@pytest.mark.parametrize("given", [-1, 0])
def test_development_finds_the_settings_that_predict_best(given):
    counted = s1.MarkovChain(2, V).fit(TEXT[:60])
    tried = [{"order": order, "discount": d} for order in range(3) for d in (0.1, 0.9)]
    tried.append({"smoothing": "add-k", "k": 3.0})
    nats, best = s1.develop(counted, TEXT[60:], tried, given)
    scores = {}
    for settings in tried:
        fresh = s1.MarkovChain(**{"order": 2, "vocab_size": V, **settings}).fit(TEXT[:60])
        judged = [
            -math.log(fresh.distribution(TEXT[60 : 60 + t])[c])
            for t, c in enumerate(TEXT[60:])
            if c != given
        ]
        scores[np.mean(judged)] = asdict(fresh)
    assert nats == pytest.approx(min(scores)) and best == scores[min(scores)]


@pytest.fixture(scope="module")
def story():
    """(train, held, V) of the ids of a part of the stories."""
    text = (ROOT / "data" / "stories.txt").read_text(encoding="utf-8")[:6000]
    symbols = sorted(set(text))
    ids = s1.encode(text, symbols)
    return ids[:5000], ids[5000:], len(symbols)


def orders_report(train, held, V):
    out = io.StringIO()
    with redirect_stdout(out):
        chain, chains = s1.report_orders(train, held, V, range(4))
    return chain, chains, out.getvalue()


def test_the_orders_report_chooses_on_the_last_tenth_of_the_training_part(story):
    train, held, V = story
    chain, chains, _ = orders_report(train, held, V)
    scores = {}
    for order, tried in itertools.product(range(4), s1.COLUMNS.values()):
        for settings in tried:
            rival = s1.MarkovChain(order, V, **settings).fit(train[:4500])
            scores[json.dumps(asdict(rival))] = rival.perplexity(train[4500:])
    assert asdict(chain) == json.loads(min(scores, key=scores.get))
    assert np.array_equal(chain.ids, train)  # and then counts all of it
    for order, best in enumerate(chains):
        mine = [s1.MarkovChain(order, V, **settings) for settings in s1.KNESER_NEYS]
        best_score = min(scores[json.dumps(asdict(rival))] for rival in mine)
        assert scores[json.dumps(asdict(best))] == best_score
    other, _, _ = orders_report(train, held[::-1], V)  # the held-out text has no say
    assert asdict(other) == asdict(chain)


def test_the_orders_report_shows_what_it_says(story):
    train, held, V = story
    chain, chains, text = orders_report(train, held, V)
    rows = [line.replace("|", "").split() for line in text.splitlines() if "%" in line]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    for order, row in enumerate(rows):
        seen = {tuple(train[i : i + order + 1]) for i in range(len(train) - order)}
        asked = [tuple(held[i : i + order + 1]) for i in range(len(held) - order)]
        before = {gram[:-1] for gram in seen}
        assert row[1] == f"{len(before):,}"
        assert row[2] == f"{np.mean([gram not in seen for gram in asked]):.1%}"
        mle = s1.MarkovChain(order, V, "mle").fit(train)
        assert row[3] == f"{mle.perplexity(train):.2f}" and row[4] == f"{mle.perplexity(held):.2f}"
        assert row[5] == f"{s1.MarkovChain(order, V, 'add-k').fit(train).perplexity(held):.2f}"
        k = s1.MarkovChain(order, V, "add-k", k=float(row[10])).fit(train)
        assert row[6] == f"{k.perplexity(held):.2f}"
        assert (
            row[8] == f"{s1.MarkovChain(order, V, 'witten-bell').fit(train).perplexity(held):.2f}"
        )
        assert row[9] == f"{chains[order].perplexity(held):.2f}"
        assert row[11] == str(chains[order].discount)
    best = re.findall(r"([a-z]\S+) (\d)(?:,|\n)", text.partition("Best orders")[2])
    assert [name for name, _ in best] == list(s1.COLUMNS)
    for column, (_, order) in enumerate(best):
        values = [float(row[4 + column]) for row in rows]
        assert values[int(order)] == min(values)
    line = f"chose {chain.smoothing}, order {chain.order}: {chain.perplexity(held):.3f} on new text"
    assert line in text
    lowest = min(float(value) for row in rows for value in row[4:10])
    shown = re.search(r"lowest in the table: (\S+)\)", text)[1]
    assert float(shown) == pytest.approx(lowest, abs=0.006)


def test_section_6_counts_that_one_half_of_the_stories_has_and_the_other_lacks():
    text = (ROOT / "data" / "stories.txt").read_text(encoding="utf-8")
    text = text[: int(0.9 * len(text))]
    half = len(text) // 2
    lost = {}
    for n in (3, 7):
        first = Counter(text[i : i + n] for i in range(half - n + 1))
        second = Counter(text[i : i + n] for i in range(half, 2 * half - n + 1))
        lost[n] = np.mean([c - second[gram] for gram, c in first.items() if 2 <= c <= 4])
    assert {n: round(float(mean), 2) for n, mean in lost.items()} == {3: 0.03, 7: 0.94}


# Bad input


def fitted():
    return s1.MarkovChain(2, V).fit(TEXT)


def generate(n=1, context=(), **options):
    return fitted().generate(n, np.random.default_rng(0), context, **options)


def sample(p, **options):
    return s1.sample(p, np.random.default_rng(0), **options)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: s1.MarkovChain(-1, V), "order is -1; expected an integer of at least 0"),
        (lambda: s1.MarkovChain(1.5, V), "order is 1.5"),
        (lambda: s1.MarkovChain(True, V), "order is True"),
        (lambda: s1.MarkovChain("2", V), "order is '2'; expected an integer of at least 0"),
        (lambda: s1.MarkovChain(1, None), "vocab_size is None; expected an integer of at least 1"),
        (lambda: s1.MarkovChain(1, 0), "vocab_size is 0; expected an integer of at least 1"),
        (lambda: s1.MarkovChain(1, 2**31), r"vocab_size is 2147483648; expected less than 2\*\*31"),
        (lambda: s1.MarkovChain(1, V, "laplace"), "smoothing is 'laplace'; expected one of .'knes"),
        (lambda: s1.MarkovChain(1, V, None), "smoothing is None; expected one of .'knes"),
        (lambda: s1.MarkovChain(1, V, "add-k", k=0), "k is 0; expected 0 < k"),
        (lambda: s1.MarkovChain(1, V, "add-k", k=math.nan), "k is nan"),
        (lambda: s1.MarkovChain(1, V, "add-k", k=10**400), "k is 1000.*; expected 0 < k < 1e100"),
        (lambda: s1.MarkovChain(1, V, "add-k", k="1"), "k is '1'; expected 0 < k"),
        (lambda: s1.MarkovChain(1, V, "add-k", k=None), "k is None; expected 0 < k"),
        (lambda: s1.MarkovChain(1, V, weight=1), "weight is 1; expected 0 < weight < 1"),
        (lambda: s1.MarkovChain(1, V, weight=0), "weight is 0; expected 0 < weight < 1"),
        (lambda: s1.MarkovChain(1, V, weight="x"), "weight is 'x'; expected 0 < weight < 1"),
        (lambda: s1.MarkovChain(1, V, discount=1.5), "discount is 1.5; expected 0 < discount"),
        (lambda: s1.MarkovChain(1, V, discount=0), "discount is 0; expected 0 < discount"),
        (lambda: s1.MarkovChain(1, V, discount="half"), "discount is 'half'; expected 0 < disc"),
        (lambda: s1.MarkovChain(1, V, discount=True), "discount is True"),
        (lambda: s1.MarkovChain(1, V).fit([]), r"shape of ids is \(0,\); expected a row, 1 or lon"),
        (lambda: s1.MarkovChain(1, V).fit([0, 4]), "an id in ids is 4; expected 0 to 3"),
        (lambda: s1.MarkovChain(1, V).fit([-1]), "an id in ids is -1; expected 0 to 3"),
        (lambda: s1.MarkovChain(1, V).fit([0.5]), "type of ids is float64; expected integers"),
        (lambda: s1.MarkovChain(1, V).fit([True]), "type of ids is bool; expected integers"),
        (lambda: s1.MarkovChain(1, V).fit("abc"), r"shape of ids is \(\); expected a row"),
        (lambda: s1.MarkovChain(1, V).fit(None), r"shape of ids is \(\); expected a row"),
        (lambda: s1.MarkovChain(1, V).fit(["a"]), "type of ids is <U1; expected integers"),
        (lambda: s1.MarkovChain(1, V).fit([2**70]), "type of ids is object; expected integers"),
        (
            lambda: s1.MarkovChain(1, V).fit(np.uint64([2**63])),
            "an id in ids is 9223372036854775808",
        ),
        (lambda: s1.MarkovChain(1, V).fit([[0]]), r"shape of ids is \(1, 1\); expected a row"),
        (lambda: s1.count_levels([0, -2], 1, V), "an id in ids is -2"),
        (
            lambda: s1.MarkovChain(1, V).distribution(),
            "the chain has counted nothing yet; expected",
        ),
        (lambda: s1.MarkovChain(1, V).perplexity([0]), "the chain has counted nothing yet"),
        (lambda: s1.MarkovChain(1, V).variant(k=2.0), "the chain has counted nothing yet"),
        (lambda: s1.save_chain("x", s1.MarkovChain(1, V), []), "the chain has counted nothing yet"),
        (lambda: s1.save_chain("x", fitted(), ["a"]), "'a'. is no list of 4 different strings"),
        (lambda: s1.save_chain("x", fitted(), "abcd"), "'abcd' is no list of 4 different"),
        (lambda: s1.save_chain("x", fitted(), list("abca")), "is no list of 4 different strings"),
        (lambda: s1.save_chain("x", fitted(), [1, 2, 3, 4]), "is no list of 4 different strings"),
        (
            lambda: s1.save_chain("x", s1.MarkovChain(101, V).fit(TEXT), list("abcd")),
            "order is 101; expected at most 100 in a file",
        ),
        (lambda: s1.count_levels(TEXT, None, V), "order is None; expected an integer"),
        (lambda: s1.count_levels(TEXT, 1, "4"), "vocab_size is '4'; expected an integer"),
        (lambda: s1.count_levels(TEXT, 1, 2**40), "vocab_size is .*; expected less than"),
        (lambda: fitted().variant(order=3), r"order=2.* has no counts for .*order=3"),
        (lambda: fitted().variant(vocab_size=5), "has no counts for .*vocab_size=5"),
        (lambda: fitted().variant(discount=2), "discount is 2"),
        (lambda: fitted().distribution([4]), "an id in context is 4; expected 0 to 3"),
        (lambda: fitted().distribution([9, 0, 0, 0]), "an id in context is 9"),
        (lambda: fitted().distribution(3), r"shape of context is \(\)"),
        (lambda: fitted().log_probabilities([0, 4]), "an id in ids is 4"),
        (lambda: fitted().log_probabilities([]), r"shape of ids is \(0,\); expected a row, 1 or"),
        (lambda: fitted().perplexity([]), r"shape of ids is \(0,\); expected a row, 1 or longer"),
        (lambda: generate(-1), "n is -1; expected an integer of at least 0"),
        (lambda: generate(0, [7]), "an id in context is 7"),
        (lambda: fitted().generate(1, 0), r"rng is 0; expected a np.random.Generator"),
        (lambda: fitted().generate(1, None), r"rng is None; expected a np.random.Generator"),
        (
            lambda: generate(temperature=-0.1),
            "temperature is -0.1; expected a finite number, 0 or more",
        ),
        (lambda: generate(temperature="hot"), "temperature is 'hot'; expected a finite number, 0"),
        (lambda: generate(temperature=None), "temperature is None; expected a finite number, 0"),
        (lambda: generate(top_k=0), "top_k is 0; expected an integer of at least 1"),
        (lambda: generate(top_k="5"), "top_k is '5'; expected an integer of at least 1"),
        (lambda: generate(top_p=0.0), "top_p is 0.0; expected None or 0 < top_p <= 1"),
        (lambda: generate(top_p="all"), "top_p is 'all'; expected None or 0 < top_p <= 1"),
        (lambda: sample([0.5, 0.4]), "a sum of p is 0.9; expected 1"),
        (lambda: sample([[0.5, 0.5]]), r"shape of p is \(1, 2\); expected one dimension"),
        (lambda: sample([1.0], temperature=math.inf), "temperature is inf"),
        (lambda: sample([1.0], temperature=math.nan), "temperature is nan"),
        (lambda: sample([1.0], top_p=1.1), "top_p is 1.1"),
        (lambda: sample("p"), "p is 'p'; expected probabilities"),
        (lambda: sample(None), "p is None; expected probabilities"),
        (lambda: sample(["0.5", "0.5"]), r"p is \['0.5', '0.5'\]; expected probabilities"),
        (lambda: s1.entropy([0.5, 0.5 + 1j]), "p is .*; expected probabilities"),
        (lambda: s1.entropy([10**400, 1]), "p is .1000.*; expected probabilities"),
        (lambda: s1.entropy([[0.5], [0.5, 0.5]]), "p is .*; expected probabilities"),
        (lambda: s1.entropy(0.5), r"shape of p is \(\); expected at least one probability"),
        (lambda: s1.entropy({}), "p is {}; expected probabilities"),
        (lambda: s1.entropy([]), r"shape of p is \(0,\); expected at least one probability"),
        (lambda: s1.entropy([1.5, -0.5]), "least entry of p is -0.5; expected 0 or more"),
        (lambda: s1.entropy([math.nan, 1.0]), "least entry of p is nan"),
        (lambda: s1.entropy([math.inf, 1.0]), "a sum of p is inf"),
        (lambda: s1.entropy([1.0], base=1), "base is 1; expected e"),
        (lambda: s1.entropy([1.0], base="2"), "base is '2'; expected e"),
        (lambda: s1.entropy([1.0], base=None), "base is None; expected e"),
        (lambda: s1.entropy([1.0], base=math.inf), "base is inf; expected e"),
        (lambda: s1.cross_entropy([1.0], [0.5, 0.5]), r"shape of q is \(2,\); expected that of p"),
        (lambda: s1.kl_divergence([1.0], [0.7]), "a sum of q is 0.7"),
        (lambda: s1.encode("abz", ["a", "b"]), "'z' was never counted; expected only symbols"),
    ],
)
def test_bad_input_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_chain_shows_its_settings():
    assert repr(fitted()) == (
        "MarkovChain(order=2, vocab_size=4, smoothing='kneser-ney', k=1.0, weight=0.7, "
        "discount=0.75)"
    )


# The report


@pytest.fixture(scope="module")
def fast_report(tmp_path_factory):
    path = tmp_path_factory.mktemp("stage01") / "report.txt"
    with path.open("w+", encoding="utf-8") as out, redirect_stdout(out):
        assert not s1.main(["--fast", "--seed", "3"])
    return path.read_text(encoding="utf-8")


def test_report_is_complete(fast_report):
    for heading in ("1. How much", "2. What they", "3. Temper"):
        assert heading in fast_report
    assert fast_report.splitlines()[-1].startswith("held-out:")
    assert max(map(len, fast_report.splitlines())) <= 100
    assert fast_report.count("inf ") >= 4  # maximum likelihood, said so
    assert fast_report.startswith("Stage 1: stories.txt, 27,000 characters to count, 3,000 to pre")


def test_report_ends_with_the_held_out_score_of_the_chain_that_development_chose(fast_report):
    name, order = re.search(r"chose (\S+), order (\d)", fast_report).groups()
    assert f"(stage 1, {name} order {order})" in fast_report.splitlines()[-1]
    shown = float(re.search(r"(\S+) on new text", fast_report)[1])
    assert 2 ** check_held_out_line(fast_report) == pytest.approx(shown, rel=1e-3)


def test_report_of_temperatures(fast_report):
    """Entropy rises with temperature, words get less real; a cut lowers the entropy."""
    rows = re.findall(r"^   (temperature|top_\w) +(\S+) +(\S+) +(\S+)%$", fast_report, re.M)
    bits = {(name, value): float(row[0]) for name, value, *row in rows}
    heat = [bits["temperature", value] for value in ("0.0", "0.3", "0.6", "1.0", "1.5")]
    assert heat == sorted(heat) and heat[0] == 0 < heat[1] and len(rows) == 7
    assert max(bits["top_k", "5"], bits["top_p", "0.9"]) < heat[3]
    assert rows[0][3] == "100.0" and float(rows[4][3]) < 90  # real words at τ = 0 and τ = 1.5


def test_report_is_deterministic(fast_report, capsys):
    s1.main(["--fast", "--seed", "3"])
    assert capsys.readouterr().out == fast_report


@pytest.mark.parametrize("text", ["a" * 300, "\u2028\0" * 120])
def test_any_text_is_a_text(tmp_path, capsys, text):
    path = tmp_path / "odd.txt"
    path.write_text(text, encoding="utf-8")
    s1.main(["--fast", "--text", str(path)])
    assert check_held_out_line(capsys.readouterr().out) < 0.2


def test_a_text_of_many_characters(tmp_path, capsys):
    path = tmp_path / "chinese.txt"
    path.write_text("".join(chr(0x4E00 + i * i % 997) for i in range(3000)), encoding="utf-8-sig")
    s1.main(["--fast", "--text", str(path)])
    out = capsys.readouterr().out
    assert "chinese.txt, 2,700 characters" in out and check_held_out_line(out) < 12  # no BOM


# The commands


@pytest.fixture
def run(capsys):
    def call(*argv):
        assert s1.main(list(map(str, argv))) is None
        return capsys.readouterr().out

    return call


@pytest.fixture
def verse(tmp_path):
    path = tmp_path / "verse.txt"
    path.write_text("one two three four\r\n" * 30, encoding="utf-8", newline="")
    return path


def test_a_prompt_is_continued(run, verse):
    out = run("--text", verse, "--prompt", "one t", "--length", 40, "--temperature", 0)
    assert out == "one two three four\none two three four\none two\n"
    assert run("--text", verse, "--length", 5, "--top_k", 1) == "one t\n"  # from a line's start
    often = run("--text", verse, "--order", 0, "--length", 9, "--temperature", 0)
    assert often == " " * 9 + "\n"  # as frequent as e and o, and the first of equals
    assert len(run("--text", verse, "--prompt", "")) == 301
    assert run("--text", verse, "--prompt", "four", "--length", 0) == "four\n"


def test_wrong_options_are_refused_before_the_counting(monkeypatch, capsys):
    monkeypatch.setattr(s1, "count_text", None)
    for flag, value in (("--temperature", "nan"), ("--top_k", "0"), ("--top_p", "0")):
        with pytest.raises(SystemExit):
            s1.main([flag, value, "--length", "0"])
        assert f"{flag[2:]} is {value}" in capsys.readouterr().err


def test_order_seed_and_top_p_reach_the_writing(run, verse):
    wild = ["--text", verse, "--order", 0, "--length", 60]
    assert run(*wild, "--seed", 1) == run(*wild, "--seed", 1) != run(*wild, "--seed", 2)
    assert len(set(run(*wild, "--top_p", 0.01))) == 2 < len(set(run(*wild)))  # one symbol, line end
    assert "two three" not in run(*wild) and "two three" in run(*wild[:2], "--order", 3)


def test_settings_of_the_writing_are_chosen_on_the_end_of_the_text(tmp_path):
    text = "".join(np.random.default_rng(0).choice(list("ab\n"), 400)) + "abab" * 25
    (tmp_path / "text").write_text(text)
    parsed = s1.argparse.Namespace(text=tmp_path / "text", order=None)
    chain, symbols = s1.count_text(parsed)
    ids = s1.encode(text, symbols)
    assert symbols == ["\n", "a", "b"] and np.array_equal(chain.ids, ids)
    rivals = [
        s1.MarkovChain(order, 3, **settings) for order in range(10) for settings in s1.KNESER_NEYS
    ]
    best = min(rivals, key=lambda rival: rival.fit(ids[:450]).perplexity(ids[450:]))
    assert asdict(chain) == asdict(best)
    parsed.order = 1
    assert s1.count_text(parsed)[0].order == 1


NAMES = "anna\nhanna\n\nsusanna\nhannes\n  johanna \njohann\nann\nsusann\nannes\nhans\njohannes\n"


def test_names_are_written_and_those_in_the_file_counted(run, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text(NAMES * 3, encoding="utf-8")
    out = run("--names", path, "--length", 30)
    header, *written = out.splitlines()
    written, summary = written[1:31], written[-1]
    assert header.startswith("33 names. Nine tenths predict the others best by order ")
    old = sum(name in NAMES.split() for name in written)
    assert summary == f"{old} of these 30 names are in the file, {30 - old} are new."
    assert all(set(name) <= set(NAMES) for name in written)
    out = run("--names", path, "--prompt", "jo", "--temperature", 0)
    assert out.count("johann") == 20 and "20 of these 20 names are in the file, 0 are new." in out


@pytest.mark.parametrize("order", [None, 0, 2])
def test_order_and_discount_of_names_are_chosen_on_a_tenth_of_them(tmp_path, capsys, order):
    (tmp_path / "names").write_text(NAMES * 10)
    parsed = s1.argparse.Namespace(names=tmp_path / "names", order=order)
    chain, symbols = s1.count_names(parsed, np.random.default_rng(3))
    names = [name.strip() for name in NAMES.split("\n") if name.strip()] * 10
    np.random.default_rng(3).shuffle(names)
    assert symbols == [s1.START, s1.END, *sorted(set("".join(names)))]
    scores = []
    for n, settings in itertools.product(
        [order] if order is not None else range(7), s1.KNESER_NEYS
    ):
        rival = s1.MarkovChain(n, len(symbols), **settings)
        rival.fit(s1.names_row(names[:99], symbols, n))  # the last 11 are the tenth
        surprises = []
        for name in names[99:]:
            ids = [0] * n + [symbols.index(letter) for letter in name] + [1]
            surprises += [
                -math.log(rival.distribution(ids[:t])[ids[t]]) for t in range(n, len(ids))
            ]
        scores.append((np.mean(surprises), n, settings["discount"]))
    nats, best_order, discount = min(scores)
    assert (chain.order, chain.discount) == (best_order, discount)
    assert f"{nats / math.log(2):.3f} bits a letter" in capsys.readouterr().out
    assert np.array_equal(chain.ids, s1.names_row(names, symbols, best_order))


def test_names_in_any_script(run, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(["Ольга", "Анна", "小明", "François"] * 9), encoding="utf-8-sig")
    assert "36 names" in run("--names", path, "--length", 3)


def test_what_was_saved_writes_the_same(run, tmp_path, verse):
    kept, names = tmp_path / "kept.npz", tmp_path / "names.txt"
    names.write_text(NAMES * 3, encoding="utf-8")
    written = run("--text", verse, "--length", 50, "--order", 2, "--save", kept)
    assert written == run("--load", kept, "--length", 50)
    run("--names", names, "--save", kept, "--length", 0)
    assert run("--load", kept, "--length", 4).count("\n") == 6


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "bad.txt has 0 characters; expected at least 100"),
        (b"short", "bad.txt has 5 characters"),
        (b"\xff\xfe", "bad.txt is not UTF-8"),
    ],
)
@pytest.mark.parametrize("flag", ["--text", "--names"])
def test_a_bad_text_is_one_clean_line(tmp_path, capsys, content, message, flag):
    assert_bad_text_is_one_clean_line(s1.main, flag, content, message, tmp_path, capsys)


NO_FILE = "/no/such/file"


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--seed", "-1"], "--seed is -1"),
        (["--wrong"], "--wrong"),
        (["--text", NO_FILE], NO_FILE),
        (["--names", NO_FILE], NO_FILE),
        (["--load", NO_FILE], NO_FILE),
        (["--load", NO_FILE, "--order", "2"], "--load brings its own text"),
        (["--load", NO_FILE, "--names", "x"], "--load brings its own text"),
        (["--load", NO_FILE, "--text", "x"], "--load brings its own text"),
        (["--load", ""], "Is a directory"),
        (["--text", "VERSE", "--save", ""], "empty name"),
        (["--text", "VERSE", "--names", "VERSE"], "expected one of them"),
        (["--load", "VERSE"], "damaged or no saved chain"),
        (["--text", "VERSE", "--prompt", "zebra"], "'z' was never counted"),
        (["--text", "VERSE", "--order", "-1"], "order is -1"),
        (["--text", "VERSE", "--order", "101"], "--order is 101; expected at most 100"),
        (["--text", "VERSE", "--length", "-1"], "--length is -1"),
        (["--text", "VERSE", "--temperature", "-1"], "temperature is -1.0"),
        (["--text", "VERSE", "--top_k", "0"], "top_k is 0"),
        (["--text", "VERSE", "--top_p", "2"], "top_p is 2.0"),
        (["--names", "VERSE", "--length", "-1"], "--length is -1"),
        (["--text", "VERSE", "--save", "/no/such/place"], "/no/such"),
    ],
)
def test_a_bad_command_line_is_one_clean_line(monkeypatch, capsys, verse, argv, message):
    argv = [str(verse) if arg == "VERSE" else arg for arg in argv]
    monkeypatch.setattr(sys, "argv", ["stage01_markov.py", *argv])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "stage01_markov.py"), run_name="__main__")
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error
    assert message in error and error.startswith("stage01_markov.py: error: ")


def test_too_few_names(tmp_path, capsys):
    (tmp_path / "names").write_text("a" * 200 + "\n" + "b\n" * 8)
    with pytest.raises(SystemExit):
        s1.main(["--names", str(tmp_path / "names")])
    assert "has 9 names; expected at least 10, one a line" in capsys.readouterr().err
