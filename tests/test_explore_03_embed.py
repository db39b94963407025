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


def test_training_and_going_back(visit, examples):
    names, symbols, seen, dev = examples
    visit.open("embed")
    visit.trained("after this many steps")
    spans = visit.window.locator('[data-name="written"] span')
    for n_embd, rate, moment in ((2, 0.2, 40), (4, 1.0, 17), (16, 0.02, 0)):
        visit.choose("numbers per letter", str(n_embd))
        visit.choose("learning rate", f"{rate:g}")
        model = learned(examples, n_embd, rate, STEPS)
        visit.shows("dev", model.loss(*dev) / math.log(2), rel=1e-5)
        visit.slide("after this many steps", moment)
        model = learned(examples, n_embd, rate, EVERY * moment)
        visit.shows("dev", model.loss(*dev) / math.log(2), rel=1e-5)
        some = np.random.default_rng(0).permutation(len(seen[1]))[: len(dev[1])]
        visit.shows("seen", model.loss(seen[0][some], seen[1][some]) / math.log(2), rel=1e-5)
        visit.shows("vowels", nearest_are_vowels(model, symbols))
        visit.equals(spans.all_inner_texts, written(model, symbols, "", 0), "the names")
        visit.says(f"The 26 letters after {EVERY * moment} steps")


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
    _, symbols, _, _ = examples
    visit.open("embed")
    visit.trained("after this many steps")
    model = learned(examples, 2, 0.2, STEPS)
    spans = visit.window.locator('[data-name="written"] span')
    visit.fill("beginning with", "mar")
    visit.slide("seed", 4)
    visit.equals(spans.all_inner_texts, written(model, symbols, "mar", 4), "the names")
    visit.fill("beginning with", "Ma3")
    visit.refuses("'M' is not among the model's 27 symbols")
