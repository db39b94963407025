"""Page 1 in the browser: its numbers are those of stage01_markov's own functions."""

import math

import numpy as np
import pytest
from conftest import ROOT

import stage01_markov as stage

TEXT = (ROOT / "data" / "stories.txt").read_text(encoding="utf-8")
SYMBOLS = sorted(set(TEXT))


@pytest.fixture(scope="module")
def chain():
    return stage.MarkovChain(8, len(SYMBOLS)).fit(stage.encode(TEXT, SYMBOLS))


def likeliest(p, by, n=12):
    return {SYMBOLS[i]: p[i] for i in np.argsort(-by, kind="stable")[:n]}


def test_order_smoothing_and_context(visit, chain):
    visit.open("count")
    p = chain.variant(order=4).distribution(stage.encode("The fox ", SYMBOLS))
    visit.shows_bars("counted", likeliest(p, p))
    for order, smoothing in ((0, "mle"), (3, "witten-bell"), (8, "add-k"), (2, "interpolated")):
        visit.slide("order", order)
        visit.choose("smoothing", smoothing)
        visit.fill("after this context", "in the ")
        p = chain.variant(order=order, smoothing=smoothing).distribution(
            stage.encode("in the ", SYMBOLS)
        )
        visit.shows_bars("counted", likeliest(p, p))
        visit.shows("entropy", stage.entropy(p, 2))


def test_temperature_and_cuts(visit, chain):
    visit.open("count")
    p = chain.variant(order=4).distribution(stage.encode("The fox ", SYMBOLS))
    visit.slide("temperature", 0.7)
    visit.slide("top-k (0: all)", 5)
    visit.slide("top-p", 0.8)
    q = stage.tempered(p, 0.7, 5, 0.8)
    visit.shows_bars("drawn", likeliest(q, p))
    visit.shows("entropy_drawn", stage.entropy(q, 2))
    cut = visit.window.locator('table[data-name="drawn"] tr.cut').count()
    assert cut == 12 - np.count_nonzero(q)  # the likeliest twelve stand there, the rest greyed


def test_writing_by_choice_and_by_chance(visit, chain):
    visit.open("count")
    field = visit.window.get_by_label("after this context", exact=True)
    visit.press("w")
    visit.equals(field.input_value, "The fox w", "the context")
    for button, n in (("draw one letter", 1), ("draw 50 letters", 50)):
        before = field.input_value()
        visit.press(button)
        rng = np.random.default_rng([0, len(before)])
        ids = chain.variant(order=4).generate(n, rng, stage.encode(before, SYMBOLS))
        after = before + "".join(SYMBOLS[i] for i in ids)
        if "\n" not in after:  # a field of one line drops them
            visit.equals(field.input_value, after, "the context")


def test_a_sentence_symbol_by_symbol(visit, chain):
    visit.open("count")
    visit.fill("a sentence", "The hen sang.")
    bits = -chain.variant(order=4).log_probabilities(stage.encode("The hen sang.", SYMBOLS)) / (
        math.log(2)
    )
    visit.shows("bits", bits.mean())
    visit.shows("perplexity", 2 ** bits.mean())
    assert visit.pieces("surprise") == [[c, f"{b:.2f} bits"] for c, b in zip("The hen sang.", bits)]
    visit.slide("order", 8)
    visit.choose("smoothing", "mle")
    visit.shows("perplexity", math.inf)


def test_your_own_text(visit):
    visit.open("count")
    visit.choose("text to count", "your own")
    visit.refuses("Your own text is empty")
    visit.fill("your own text", "abracadabra")
    visit.fill("after this context", "abr")
    visit.slide("order", 1)
    visit.choose("smoothing", "mle")
    visit.shows_bars("counted", {"a": 1, "b": 0, "c": 0, "d": 0, "r": 0})


def test_letters_never_counted(visit):
    visit.open("count")
    visit.fill("after this context", "the Ω")
    visit.refuses("'Ω' was never counted")
    visit.fill("after this context", "")
    visit.until(lambda: visit.bars("counted"), "bars without a context")
    visit.fill("a sentence", "")
    visit.refuses("the sentence is empty")
