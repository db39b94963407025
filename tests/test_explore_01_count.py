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
    for order, smoothing in ((0, "mle"), (8, "add-k"), (2, "interpolated")):
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
        visit.equals(field.input_value, after, "the context")
    visit.fill("after this context", "The fox ")
    visit.slide("seed of the draws", 3)
    visit.slide("temperature", 0.5)
    visit.press("draw one letter")
    rng = np.random.default_rng([3, 8])
    context = stage.encode("The fox ", SYMBOLS)
    (drawn,) = chain.variant(order=4).generate(1, rng, context, temperature=0.5)
    visit.equals(field.input_value, f"The fox {SYMBOLS[drawn]}", "the context")


def test_a_sentence_symbol_by_symbol(visit, chain):
    visit.open("count")
    visit.fill("a sentence", "The hen sang.")
    bits = -chain.variant(order=4).log_probabilities(stage.encode("The hen sang.", SYMBOLS)) / (
        math.log(2)
    )
    visit.shows("bits", bits.mean())
    visit.shows("perplexity", 2 ** bits.mean())
    assert visit.pieces("surprise") == [[c, f"{b:.2f} bits"] for c, b in zip("The hen sang.", bits)]
    visit.slide("order", 1)
    visit.choose("smoothing", "mle")
    visit.fill("a sentence", "The xq")
    visit.shows("perplexity", math.inf)
    visit.says("“x” was never counted after “␣”, so")


def test_your_own_text(visit):
    visit.open("count")
    visit.choose("text to count", "your own")
    visit.refuses("Your own text is empty")
    visit.fill("your own text", "abracadabra")
    visit.fill("after this context", "abr")
    visit.slide("order", 1)
    visit.choose("smoothing", "mle")
    visit.shows_bars("counted", {"a": 1, "b": 0, "c": 0, "d": 0, "r": 0})
    visit.says("P(next | r) by counting")
    assert visit.window.locator("tr.cut").count() == 0  # what is impossible need not be cut


def test_letters_never_counted(visit):
    visit.open("count")
    visit.fill("after this context", "the Ω")
    visit.refuses("'Ω' was never counted")
    visit.fill("after this context", "")
    visit.until(lambda: visit.bars("counted"), "bars without a context")
    visit.fill("a sentence", "")
    visit.refuses("This sentence cannot be measured: it is empty.")
    visit.fill("a sentence", "a" * 1001)
    visit.refuses("it has 1,001 symbols; at most 1,000")


def test_what_the_hint_says(chain):
    ids = stage.encode("The owl and the king of Bulgaria had soup.", SYMBOLS)
    orders = [chain.variant(order=order).perplexity(ids) for order in range(9)]
    assert orders.index(min(orders)) == 5 and orders[8] > orders[5]
    for order in range(9):
        impossible = chain.variant(order=order, smoothing="mle").perplexity(ids) == math.inf
        assert impossible == (order > 0)
