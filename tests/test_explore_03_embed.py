"""Page 3 in the browser: what it shows is what stage03_nlm trains, predicts and writes."""

import math

import numpy as np
import pytest

import stage03_nlm as stage

STEPS = 400
EVERY = 10


@pytest.fixture(scope="module")
def examples():
    """(names, symbols, examples to learn from, those of the development piece): as the stage's."""
    names = stage.read_names(stage.DATA / "names.txt")
    names = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    symbols = stage.encode("\n" + "".join(names))[1]
    cut = int(0.9 * len(names))
    dev = int(0.9 * cut)
    seen = stage.name_examples(names[:dev], symbols, 6)
    return names, symbols, seen, stage.name_examples(names[dev:cut], symbols, 6)


def learned(examples, n_embd, rate, stop):
    """The network after `stop` of STEPS steps."""
    _, symbols, seen, _ = examples
    model = stage.NeuralLM(len(symbols), 6, n_embd, 128, 0)
    if stop:
        options = {"learning_rate": rate, "batch_size": 32, "watch": lambda done: done == stop}
        stage.train(model, *seen, STEPS, **options)
    return model


def written(model, symbols, beginning, seed):
    rng = np.random.default_rng(seed)
    given = [symbols.index(letter) for letter in beginning]
    names = []
    for _ in range(12):
        ids = model.generate(20, context=given, temperature=0.8, seed=rng)
        names.append((beginning + "".join(symbols[i] for i in ids)).split("\n")[0])
    return names


def nearest_are_vowels(model, symbols):
    """The count of the page's sentence, in loops."""
    C, found = model.params["C"], 0
    for vowel in "aeiou":
        others = sorted(
            (math.dist(C[symbols.index(vowel)], C[symbols.index(other)]), other)
            for other in symbols
            if other not in ("\n", vowel)
        )
        found += others[0][1] in "aeiou"
    return found


def letters_stand_at(visit, C, symbols):
    """Whether the letters of the map stand, but for making room, where their two numbers say."""
    middles = (
        visit.window.locator("figure svg")
        .first.locator("text")
        .evaluate_all(
            """all => all.filter(e => /^[a-z]$/i.test(e.textContent)).map(e => {
            const box = e.getBoundingClientRect();
            const red = e.outerHTML.includes("var(--red)");
            return [e.textContent, box.x + box.width / 2, box.y + box.height / 2, red]})"""
        )
    )
    shown, x, y, red = zip(*middles)
    assert [letter.isupper() for letter in shown] == list(red)
    assert sorted(shown) == sorted("AEIOU" + "bcdfghjklmnpqrstvwxyz")
    expected = C[[symbols.index(letter.lower()) for letter in shown]]
    right = np.corrcoef(x, expected[:, 0])[0, 1]
    down = np.corrcoef(y, expected[:, 1])[0, 1]
    return right > 0.98 and down < -0.98


def test_training_and_going_back(visit, examples):
    names, symbols, seen, dev = examples
    visit.open("embed")
    visit.trained("after this many steps")
    spans = visit.window.locator('[data-name="written"] span')
    for n_embd, rate, moment in ((2, 0.2, 5), (4, 1.0, 3), (16, 0.02, 0)):
        visit.choose("numbers per letter", str(n_embd))
        visit.choose("learning rate", f"{rate:g}")
        model = learned(examples, n_embd, rate, STEPS)
        visit.shows("dev", model.loss(*dev) / math.log(2), rel=1e-5)
        visit.trained("after this many steps")
        visit.slide("after this many steps", moment)
        model = learned(examples, n_embd, rate, EVERY * moment)
        visit.shows("dev", model.loss(*dev) / math.log(2), rel=1e-5)
        some = np.random.default_rng(0).permutation(len(seen[1]))[: len(dev[1])]
        visit.shows("seen", model.loss(seen[0][some], seen[1][some]) / math.log(2), rel=1e-5)
        visit.shows("vowels", nearest_are_vowels(model, symbols))
        visit.equals(spans.all_inner_texts, written(model, symbols, "", 0), "the names")
        visit.says(f"The 26 letters after {EVERY * moment} steps")
        if n_embd == 2:
            C = model.params["C"]
            visit.until(lambda C=C: letters_stand_at(visit, C, symbols), "the map")


def test_the_loss_and_its_lowest_point(visit, examples):
    visit.open("embed")
    visit.trained("after this many steps")
    _, _, _, dev = examples
    losses = []
    model = learned(examples, 2, 0.2, 0)
    losses.append(model.loss(*dev))

    def watch(done):
        if done % EVERY == 0:
            losses.append(model.loss(*dev))

    stage.train(model, *examples[2], STEPS, learning_rate=0.2, batch_size=32, watch=watch)
    best = int(np.argmin(losses))
    lowest = losses[best] / math.log(2)
    visit.says(f"the loss is lowest, {lowest:.3f} bits, after {EVERY * best} steps")


def test_beginnings_and_seeds(visit, examples):
    names, symbols, _, _ = examples
    visit.open("embed")
    visit.trained("after this many steps")
    model = learned(examples, 2, 0.2, STEPS)
    spans = visit.window.locator('[data-name="written"] span')
    visit.fill("beginning with", "mar")
    visit.slide("seed", 4)
    expected = written(model, symbols, "mar", 4)
    visit.equals(spans.all_inner_texts, expected, "the names")
    known = [name for name in expected if name in names]
    visit.says(f"In the file stand {', '.join(known)}." if known else "None is in the file.")
    visit.fill("beginning with", "Ma3")
    visit.refuses("'M' is not among the model's 27 symbols")


@pytest.fixture(scope="module")
def page():
    """The page as a module, where marimo and matplotlib are installed."""
    pytest.importorskip("marimo")
    pytest.importorskip("matplotlib")
    from explorer import page03_embed

    return page03_embed


def test_the_plane_is_where_the_letters_are_most_spread_out(page):
    C = np.random.default_rng(0).normal(size=(26, 5)) * [1, 3, 1, 9, 1] + 4
    widest = np.linalg.eigh(np.cov(C.T))[1][:, [-1, -2]]  # (5, 2)
    axes = page.plane(C)
    assert np.abs(axes) == pytest.approx(np.abs(widest), abs=1e-9)
    assert (axes[0] > 0).all()
    assert (page.plane(C[:, :2]) == np.eye(2)).all()


def test_letters_make_room_for_each_other(page):
    apart = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    assert (page.move_apart(apart, 1) == apart).all()
    for places in (np.zeros((2, 2)), np.array([[0.0, 0.0], [0.3, 0.4], [9.0, 9.0]])):
        moved = page.move_apart(places, 1)
        assert np.linalg.norm(moved[0] - moved[1]) == pytest.approx(1, rel=1e-4)
        assert moved.mean(axis=0) == pytest.approx(
            places.mean(axis=0), abs=1e-9
        )  # nobody is favoured
    assert moved[1] - moved[0] == pytest.approx([0.6, 0.8], abs=1e-4)  # the way they stood
