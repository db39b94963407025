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
    for label, matrix, rank in (
        ("attn.c_attn: attention's queries, keys and values", "attn.c_attn.weight", 0),
        ("mlp.c_fc: the MLP's first matrix", "mlp.c_fc.weight", 3),
        ("mlp.c_proj: the MLP's second matrix", "mlp.c_proj.weight", 16),
    ):
        visit.choose("ΔW of", label)
        visit.slide("rank kept", RANKS.index(rank))  # a slider of steps counts them
        model, shares = dict(full), {}
        for name in stage.matrices_of(base):
            left, sigma, right = np.linalg.svd(full[name] - base[name], full_matrices=False)
            model[name] = base[name] + left[:, :rank] @ np.diag(sigma[:rank]) @ right[:rank]
            shares[name] = (sigma[:rank] ** 2).sum() / (sigma**2).sum()
        visit.shows("share", shares[f"transformer.h.0.{matrix}"], rel=1e-5)
        visit.shows("mean_share", np.mean(list(shares.values())), rel=1e-5)
        visit.shows("cut_bits", bits(corpora, model), rel=1e-6)
        visit.shows("base_cost", bits(corpora, base), rel=1e-6)
        visit.says(f"the {rank} largest are kept" if rank else "none is kept")
        kept = visit.window.locator("figure rect.kept")
        visit.equals(kept.count, rank, "blue bars")


def test_an_adapter_turned_up(visit, world):
    corpora, base, adapted = world
    visit.open("adapt")
    visit.window.wait_for_selector('output[data-name="on_bits"]', timeout=60_000)
    assert visit.bars("on") != visit.bars("off")
    visit.shows("base_bits", bits(corpora, base), rel=1e-6)
    for rank, method in ((1, "LoRA, rank 1"), (16, "LoRA, rank 16"), (4, "LoRA")):
        _, plugs = adapted(method)
        visit.choose("LoRA of", f"rank {rank}")
        visit.shows("on_bits", bits(corpora, base, plugs), rel=1e-6)
    visit.slide("strength", 1.7)
    trained = bits(corpora, base, plugs)
    for plug in plugs.values():
        plug.scale *= 1.7
    visit.shows("on_bits", bits(corpora, base, plugs), rel=1e-6)
    visit.shows("trained_bits", trained, rel=1e-6)
    visit.slide("strength", 0)
    visit.shows("on_bits", bits(corpora, base), rel=1e-6)
    assert visit.bars("on") == visit.bars("off")


def test_what_comes_next_and_how_it_goes_on(visit, world):
    """160 letters are drawn, one by one, from the softmax of the stage's logits."""
    _, base, adapted = world
    _, plugs = adapted("LoRA")
    folder = stage.Path(stage.__file__).parent / "data"
    alphabet = sorted(set((folder / "stories.txt").read_text("utf-8")))
    visit.open("adapt")
    visit.window.wait_for_selector('output[data-name="on_bits"]', timeout=60_000)
    visit.fill("a beginning", "On a long cold winter's night ")
    visit.slide("seed of the draws", 3)
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
    visit.fill("a beginning", "a" * 1001)
    visit.refuses("The beginning has 1,001 letters; at most 1,000 go here.")
    visit.fill("a beginning", "A")
    visit.until(lambda: visit.bars("on"), "bars again")


def test_the_verdict_is_computed():
    pytest.importorskip("marimo")
    pytest.importorskip("matplotlib")
    from explorer import page09_adapt as page

    ranks, lengths = (0, 1, 2, 4), np.array([0, 0.4, 0.7, 1])
    said = page.verdict(np.array([3.0, 2.85, 2.05, 2.0]), lengths, ranks)
    assert "squared length of ΔW take rank 4." in said and "on new verses take rank 2:" in said
    assert said.endswith("most of the update is of little use.")
    said = page.verdict(np.array([3.0, 2.85, 2.2, 2.0]), lengths, ranks)
    assert said.endswith("its use needs as many directions as its length.")
    assert "has gained nothing" in page.verdict(np.array([3.0, 2, 2, 3.0]), lengths, ranks)
