"""Checks of the exercises of stage 1."""

import judge
import numpy as np
import pytest

import stage01_markov as stage


def test_1(answers):
    levels = stage.count_levels([0, 1, 0, 1], 1, 2)[0]
    keys = levels[1].keys[:-1]
    found = judge.numeric("ANSWER_1", judge.answer(answers, "ANSWER_1")).tolist()
    places = "these are the keys of all pairs in the order of the text; sort the different ones"
    if found == [1, 2, 1]:
        judge.wrong(f"ANSWER_1: {places}")
    swapped = "c and h are exchanged: a key is rank(h)·V + c" if found == [2, 1] else ""
    if swapped:
        judge.wrong(f"ANSWER_1: {swapped}")
    judge.array("ANSWER_1", found, keys)
    counts = levels[1].n_hc[:-1]
    mistakes = {"this is how often each symbol occurs, not each pair": [2, 2]}
    judge.array("ANSWER_1B", judge.answer(answers, "ANSWER_1B"), counts, mistakes=mistakes)


def test_2(answers):
    bits = -np.log2([1 / 2, 1 / 4, 1 / 8, 1 / 2])
    mistakes = {"the mean of the probabilities has no meaning here; average the surprises": 11 / 32}
    mistakes["surprise is the logarithm of 1/p, and there are four of them"] = np.log2(32 / 11)
    judge.number(answers, "ANSWER_2", bits.mean(), n=4, mistakes=mistakes, unit="bits")
    mistakes = {
        "the surprise is in bits, so raise 2, not e": np.exp(bits.mean()),
        "perplexity is for each letter, not for the word": 2 ** bits.sum(),
    }
    judge.number(answers, "ANSWER_2B", 2 ** bits.mean(), mistakes=mistakes)


def test_3(answers, rng):
    for _ in range(20):
        V = int(rng.integers(2, 40))
        counts = rng.integers(0, 4, V)
        counts[0] += 1
        d_h, n_h = np.count_nonzero(counts), counts.sum()
        k = judge.numeric(
            "k_for_witten_bell", judge.call(answers, "k_for_witten_bell", d_h, V), "a number"
        )
        if k.size != 1:
            judge.wrong(f"k_for_witten_bell returns {k.tolist()!r:.60}; expected one number")
        if np.isclose(k, d_h) and V != 1:
            judge.wrong("k_for_witten_bell: that is k·V; what is added to each single count?")
        witten_bell = (counts + d_h / V) / (n_h + d_h)
        judge.array("add-k with this k", (counts + k) / (n_h + k * V), witten_bell)


def test_4(answers, rng):
    below = rng.dirichlet(np.ones(6))
    unseen = judge.numeric(
        "kneser_ney", judge.call(answers, "kneser_ney", np.zeros(6), below.copy(), 0.75)
    )
    if not np.all(np.isfinite(unseen)):
        judge.wrong(
            "kneser_ney: no symbol came after h; there P(c|h) = P(c|h′), nothing is divided"
        )
    judge.array("kneser_ney where h was never seen", unseen, below)
    for _ in range(20):
        V = int(rng.integers(2, 12))
        counts = rng.integers(0, 4, V)
        counts[int(rng.integers(V))] += 1
        below, d = rng.dirichlet(np.ones(V)), rng.uniform(0.1, 1)
        n_h, d_h = counts.sum(), np.count_nonzero(counts)
        kept = np.maximum(counts - d, 0) / n_h
        expected = kept + d * d_h / n_h * below
        mistakes = {
            "counts below d must not become negative: (x)⁺": (counts - d) / n_h
            + d * d_h / n_h * below,
            "the reserve is divided by N(h), too": kept + d * d_h * below,
            "D(h) is the number of different symbols after h, not of symbols in all": kept
            + d * V / n_h * below,
            "the reserve's size is d·D(h)/N(h), not d": kept + d * below,
            "what is kept has to be discounted": counts / n_h + d * d_h / n_h * below,
        }
        found = judge.call(answers, "kneser_ney", counts, below, d)
        judge.array("kneser_ney", found, expected, mistakes=mistakes)


def test_5(answers, rng):
    p = np.array([0.5, 0.3, 0.15, 0.05])
    cases = [(0.4, 1), (0.6, 2), (0.8, 2), (0.81, 3), (1.0, 4), (1e-9, 1)]
    for top_p, n in cases:
        found = judge.numeric("nucleus", judge.call(answers, "nucleus", p.copy(), top_p))
        if not np.all(np.isfinite(found)):
            judge.wrong(f"nucleus({p.tolist()}, {top_p}): it keeps nothing, and divides by 0")
        kept = np.count_nonzero(found)
        if kept != n:
            few = "few" if kept < n else "many"
            judge.wrong(f"nucleus({p.tolist()}, {top_p}) keeps {kept}, too {few}")
    for _ in range(20):
        p, top_p = rng.dirichlet(np.ones(9)), rng.uniform(0.05, 1)
        judge.array(
            "nucleus", judge.call(answers, "nucleus", p, top_p), stage.tempered(p, top_p=top_p)
        )


def test_6(answers, rng):
    for tau in (0.5, 1.0, 3.0):
        p = rng.dirichlet(np.ones(5))
        q = stage.tempered(p, tau)
        least = float(np.sum(q * -np.log(p)) - tau * stage.entropy(q))
        z = np.sum(p ** (1 / tau))
        mistakes = {
            "the factor τ is missing": -np.log(z),
            "this is the mean energy; τ times the entropy is still to be taken off": float(
                np.sum(q * -np.log(p))
            ),
            "the entropy is added where it should be taken off": float(
                np.sum(q * -np.log(p)) + tau * stage.entropy(q)
            ),
        }
        found = judge.call(answers, "least_free_energy", p, tau)
        judge.array("least_free_energy", found, least, 1e-9, mistakes=mistakes)


def test_7(answers):
    remarks = {
        "a": "no new text has a chance: every one holds something that the table calls impossible",
        "b": "look at (4) for a context that was seen once",
        "c": "by (4) the shares after each context add up to 1; test it with `distribution`",
        "d": "count them: both parts have the same symbols, or nearly",
    }
    judge.choice(answers, "ANSWER_7", 7, "5f40e7f83242", remarks)


def test_8(answers, rng):
    for V in (2, 3, 7):
        P = rng.dirichlet(np.ones(V), size=V)
        shares = np.linalg.matrix_power(P, 4000)[0]
        columns = np.linalg.matrix_power(P.T / P.T.sum(1, keepdims=True), 4000)[0]
        mistakes = {
            "P is used the wrong way round: its rows are the contexts": columns,
            "all alike: that is P·π = π, with π at the right of P": np.full(V, 1 / V),
            "these are the means of the columns of P, one step from equal shares": P.mean(0),
        }
        found = judge.call(answers, "stationary", P)
        judge.array("stationary", found, shares, 1e-6, mistakes=mistakes)


def test_9(answers):
    judge.answer(answers, "ANSWER_9")  # before the work
    text = (stage.Path(stage.__file__).parent / "data" / "stories.txt").read_text("utf-8")
    symbols = sorted(set(text))
    ids = stage.encode(text, symbols)
    bits = []
    for n in (50_000, 100_000):
        chain = stage.MarkovChain(5, len(symbols), discount=0.8).fit(ids[:n])
        bits.append(np.log2(chain.perplexity(ids[-20_000:])))
    judge.number(answers, "ANSWER_9", bits[0] - bits[1], digits=2, unit="bits")


def test_10(answers):
    mistakes = {
        "that is the share of a (4): nothing was held before reading": 3 / 4,
        "that is k = 1; here k = 1/2": 4 / 6,
        "that is the most plausible θ; the mean is asked for": 2.5 / 3,
    }
    judge.number(answers, "ANSWER_10", (3 + 0.5) / (4 + 2 * 0.5), mistakes=mistakes)


@pytest.mark.project
def test_11(answers):
    names = (stage.Path(stage.__file__).parent / "data" / "names.txt").read_text("utf-8").split()
    some, others = names[: len(names) * 9 // 10], names[len(names) * 9 // 10 :]
    symbols = [stage.START, stage.END, *"abcdefghijklmnopqrstuvwxyz"]
    chain = stage.MarkovChain(3, len(symbols)).fit(stage.names_row(some, symbols, 3))
    row = stage.names_row(others, symbols, 3)
    theirs = np.exp(-chain.log_probabilities(row)[row != 0].mean())
    next_letter = judge.call(answers, "names_model", list(some))
    surprise = []
    for name in others:
        for i, c in enumerate([*name, "end"]):
            p = np.asarray(next_letter(name[:i]), dtype=np.float64)
            if p.shape != (27,) or not np.all(p >= 0) or abs(p.sum() - 1) > 1e-6:
                judge.wrong(f"next_letter({name[:i]!r}) is no distribution over 27 symbols")
            surprise.append(-np.log(p[26 if c == "end" else ord(c) - 97]))
    ours = np.exp(np.mean(surprise))
    if not ours < theirs:
        judge.wrong(f"perplexity {ours:.3f}; the stage's is {theirs:.3f}: not better yet")
