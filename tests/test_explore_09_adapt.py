"""Page 9 in the browser: its numbers are those of stage09_lora's own functions."""

import math

import numpy as np
import pytest

import stage09_lora as stage

SHAPE, STEPS, FEW = stage.sizes(True)
HEADS = SHAPE[2]
RANKS = [0, 1, 2, 3, 4, 6, 8, 12, 16]


@pytest.fixture(scope="module")
def world():
    """The corpora and the models that the page trains with --fast, by the stage's functions."""
    corpora, vocab_size = stage.read_corpora(True)
    base, _ = stage.pretrain(corpora, vocab_size, SHAPE, STEPS, 0)
    verses = corpora["verses"][0][: corpora["verses"][1]]

    def adapted(method):
        return stage.adapt(method, base, HEADS, verses, FEW, 0)[0]

    return corpora, base, adapted


def bits(corpora, params, plugs=None):
    return stage.score(params, *corpora["verses"], HEADS, plugs) / math.log(2)


def test_ranks_of_the_update(visit, world):
    corpora, base, adapted = world
    full, _ = adapted("full fine-tuning")
    visit.open("adapt")
    visit.window.wait_for_selector('output[data-name="share"]', timeout=60_000)
    for rank, name in ((3, "transformer.h.0.mlp.c_fc.weight"), (16, None)):
        if name:
            visit.choose("matrix", name)
            chosen = name
        visit.slide("rank kept", RANKS.index(rank))  # a slider of steps counts them
        model, shares = dict(full), {}
        for matrix in stage.matrices_of(base):
            cut, shares[matrix] = stage.low_rank(full[matrix] - base[matrix], rank)
            model[matrix] = base[matrix] + cut
        visit.shows("share", shares[chosen], rel=1e-6)
        visit.shows("mean_share", np.mean(list(shares.values())), rel=1e-6)
        visit.shows("cut_bits", bits(corpora, model), rel=1e-6)
    sigma = np.linalg.svd(full[chosen] - base[chosen], compute_uv=False)
    visit.says(f"The {len(sigma)} singular values of ΔW; the 16 largest are kept.")


def test_an_adapter_turned_up(visit, world):
    corpora, base, adapted = world
    visit.open("adapt")
    visit.window.wait_for_selector('output[data-name="on_bits"]', timeout=60_000)
    visit.shows("base_bits", bits(corpora, base), rel=1e-6)
    for rank, method in ((1, "LoRA, rank 1"), (16, "LoRA, rank 16"), (4, "LoRA")):
        _, plugs = adapted(method)
        visit.choose("LoRA of", f"rank {rank}")
        visit.shows("on_bits", bits(corpora, base, plugs), rel=1e-6)
    visit.slide("strength", 1.7)
    for plug in plugs.values():
        plug.scale *= 1.7
    visit.shows("on_bits", bits(corpora, base, plugs), rel=1e-6)
    visit.slide("strength", 0)
    visit.shows("on_bits", bits(corpora, base), rel=1e-6)
    assert visit.bars("on") == visit.bars("off")


def test_what_comes_next_and_how_it_goes_on(visit, world):
    """Twelve letters are drawn, as the page's own text says, from softmax of the stage's logits."""
    _, base, adapted = world
    _, plugs = adapted("LoRA")
    folder = stage.Path(stage.__file__).parent / "data"
    alphabet = sorted(set((folder / "stories.txt").read_text("utf-8")))
    visit.open("adapt")
    visit.window.wait_for_selector('output[data-name="on_bits"]', timeout=60_000)
    visit.fill("a beginning", "On a long cold winter's night ")
    visit.slide("seed", 3)
    for name, adapter in (("off", {}), ("on", plugs)):
        ids = [alphabet.index(letter) for letter in "On a long cold winter's night "]
        rng = np.random.default_rng(3)
        for step in range(160):
            logits, _ = stage.gpt_forward(base, np.array([ids[-SHAPE[3] :]]), HEADS, adapter)
            e = np.exp(logits[0, -1].astype(float) - logits[0, -1].max())
            p = e / e.sum()
            if step == 0:
                first = {alphabet[i]: p[i] for i in np.argsort(-p, kind="stable")[:8]}
                visit.shows_bars(name, first, rel=1e-5)
            ids.append(rng.choice(len(p), p=p))
        written = visit.window.locator(f'[data-name="{name}_text"]')
        expected = "".join(alphabet[i] for i in ids[-160:])
        visit.equals(written.text_content, expected, f"what the {name} model wrote")


def test_beginnings_that_the_model_cannot_read(visit):
    visit.open("adapt")
    visit.window.wait_for_selector('output[data-name="on_bits"]', timeout=60_000)
    visit.fill("a beginning", "")
    visit.refuses("The beginning is empty")
    visit.fill("a beginning", "naïve")
    visit.refuses("The model has no letter 'ï'")
    visit.fill("a beginning", "A")
    visit.until(lambda: visit.bars("on"), "bars again")
