"""Page 11 in the browser: its numbers are those of capstone_gpt.py's own functions."""

import json
import math
import shutil

import numpy as np
import pytest
from conftest import LIKE_TRANSFORMERS, ROOT, save_checkpoint

import capstone_gpt as gpt
from stage01_markov import tempered

FOLDER = "directory of a run or a downloaded model (enter opens it)"
PROMPT = "One morning the owl wanted to"
TOKENIZER = gpt.load_tokenizer(ROOT / "data" / "tokenizer")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder as downloaded: grouped queries, and a context that the texts below go beyond."""
    sizes = {"block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
    folder = tmp_path_factory.mktemp("models") / "llama"
    texts = ["The owl had soup.", "The hen sang."]
    return save_checkpoint(folder, "llama", TOKENIZER, sizes, texts, 30, **LIKE_TRANSFORMERS)


def open_folder(visit, folder):
    """Type the folder's name, and press enter."""
    visit.fill(FOLDER, str(folder))
    visit.window.get_by_label(FOLDER, exact=True).press("Enter")
    visit.says(f"{gpt.checkpoint_of(folder)} is a ")


def softmax(z):
    e = np.exp(z.astype(np.float64) - z.max())
    return e / e.sum()


def named(values, p):
    """{token: value} of the twelve likeliest under p."""
    best = np.argsort(-p, kind="stable")[:12]
    texts = [TOKENIZER.tokens[i].decode("utf-8", "backslashreplace") for i in best]
    return {text.replace("\0", r"\x00"): values[i] for text, i in zip(texts, best)}


def test_a_small_one_is_trained_and_writes(visit, kept):
    visit.open("capstone")
    visit.press("train a small one now")
    run = kept / "small-run-fast"
    visit.until(lambda: (run / "best").is_dir(), "the run", 60)
    visit.equals(visit.window.get_by_label(FOLDER, exact=True).input_value, str(run), "the folder")
    model, _ = gpt.load(run / "best")
    visit.shows("parameters", model.num_params())

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 60
    visit.shows("held small-run-fast", rows[-1]["held_out_loss"] / math.log(2))
    visit.shows("train small-run-fast", rows[-1]["train_loss"] / math.log(2))
    visit.shows("lowest small-run-fast", min(r["held_out_loss"] for r in rows) / math.log(2))

    field = visit.window.get_by_label("the prompt", exact=True)
    visit.slide("temperature", 0.7)
    visit.slide("seed", 3)
    visit.press("write 40 tokens more")
    sampling = (0.7, None, None, [3, len(PROMPT)])
    texts = gpt.continued(model, TOKENIZER, PROMPT, 40, sampling, to_the_end=True)
    visit.equals(field.input_value, PROMPT + "".join(texts), "the prompt")
    visit.fill("the prompt", "The owl " * 40)
    n = len(TOKENIZER.encode("The owl " * 40))
    visit.says(f"The prompt has {n} tokens, of which the last 32 are read.")
    visit.until(lambda: len(visit.matrix("attention")) == 20, "the last of them in the table")
    for row in visit.matrix("attention"):  # with what goes to the earlier ones in one column
        assert len(row) == 21 and sum(row) == pytest.approx(1, rel=1e-4)
    visit.fill("the prompt", "")
    visit.refuses("The prompt is empty")


def test_next_tokens_and_their_cut(visit, llama):
    visit.open("capstone")
    open_folder(visit, llama)
    model, _ = gpt.load(llama)
    ids = TOKENIZER.encode("The owl")
    visit.fill("the prompt", "The owl")
    scores = model.logits(ids[None])[0, -1]
    p = softmax(scores)
    # the model's single pass and the page's last row differ by float32's rounding
    visit.shows_bars("next", named(p, p), rel=1e-4)
    for temperature, top_k, top_p in ((1, 0, 1), (0.5, 7, 0.4), (0, 0, 0.1)):
        if top_p < 1:  # else they stand where they begin
            visit.slide("temperature", temperature)
            visit.slide("top-k (0: all)", top_k)
            visit.slide("top-p", top_p)
        options = (temperature, top_k or None, top_p if top_p < 1 else None)
        q = tempered(p, *options)
        visit.shows_bars("cut", named(q, p), rel=1e-4)
        rows = np.repeat(scores[None], 500, 0)
        drawn = gpt.sample_token(rows, *options, np.random.default_rng(0))
        assert (q[drawn] > 0).all()  # what the page calls cut is never drawn
        visit.shows("kept", p[q > 0].sum(), rel=1e-4)
        visit.says(f"keeps {np.count_nonzero(q):,} of 1,024 tokens")


def test_surprise_in_windows(visit, llama):
    visit.open("capstone")
    open_folder(visit, llama)
    model, _ = gpt.load(llama)
    text = "The owl had soup, and the hen sang: “Näh, näh!” until the evening came. " * 2
    visit.fill("a text", text)
    ids = TOKENIZER.encode(text)
    assert len(ids) > 2 * model.config.block_size
    nats, tokens = gpt.evaluate(model, ids, 1, 16, 8)
    assert tokens == len(ids) - 1
    visit.shows("bits", nats / math.log(2), rel=1e-4)
    visit.shows("bits_per_character", nats / math.log(2) / len(text), rel=1e-4)
    pieces = visit.pieces("surprise")
    assert "".join(piece for piece, _ in pieces) == text
    assert pieces[0] == ["The", "given"]
    single = gpt.evaluate(model, ids[:6], 5, 16, 1)[0] / math.log(2)  # the sixth token alone
    assert pieces[5][1] == f"{single:.2f} bits"
    visit.fill("a text", "")
    visit.refuses("too short to be predicted")
    visit.fill("a text", "no " * 700)
    visit.refuses("The text has 2,100 characters")


def test_attention(visit, llama):
    visit.open("capstone")
    open_folder(visit, llama)
    visit.fill("the prompt", "The hen sang to the owl.")
    model, _ = gpt.load(llama)
    ids = TOKENIZER.encode("The hen sang to the owl.")
    T = len(ids)
    _, (_, _, caches, _) = model._forward(ids[None], keep=True)
    heads = []
    for cache in caches:
        q, k, *_ = cache[3]  # (1, Hkv, H/Hkv, T, D), divided by √D; (1, Hkv, 1, T, D)
        P = gpt.plain_attention(q * math.sqrt(q.shape[-1]), k, np.eye(T))
        heads.append(P.reshape(4, T, T))
    for layer, head in ((1, 1), (2, 4), (2, 3)):
        visit.slide("layer", layer)
        visit.slide("head", head)
        P = heads[layer - 1][head - 1]
        assert np.allclose(P.sum(1), 1)
        visit.shows_matrix("attention", P, rel=1e-4)
        visit.shows("most", P[-1].max(), rel=1e-4)
    before = [[np.mean([h[t, t - 1] for t in range(1, T)]) for h in layer] for layer in heads]
    visit.shows_matrix("heads", before, rel=1e-4)
    visit.shows("strongest", np.max(before), rel=1e-4)
    visit.shows("even", np.mean([1 / (t + 1) for t in range(1, T)]))
    visit.fill("the prompt", "The hen sang to the owl. " * 4)  # only the last tokens are listed
    visit.until(lambda: len(visit.matrix("attention")) == 16, "all that the model can read")


def refused(visit, folder):
    """The page says of a folder what the stage says."""
    with pytest.raises(ValueError) as said:
        gpt.load(gpt.checkpoint_of(folder))
    visit.fill(FOLDER, str(folder))
    visit.window.get_by_label(FOLDER, exact=True).press("Enter")
    visit.refuses(str(said.value))


def test_damaged_checkpoints(visit, llama, tmp_path):
    visit.open("capstone")
    open_folder(visit, llama)
    refused(visit, tmp_path / "nowhere")
    damages = (
        ("model.safetensors", lambda content: content[:-1000]),
        ("config.json", lambda content: content.replace(b'"silu"', b'"relu"')),
        ("config.json", lambda content: content.replace(b": 32,", b": 64,")),
        ("config.json", lambda content: content[:50]),
        ("tokenizer.json", None),
    )
    for i, (name, damage) in enumerate(damages):
        folder = shutil.copytree(llama, tmp_path / f"damaged {i}")
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        if damage:
            assert damage(content) != content
            (folder / name).write_bytes(damage(content))
        refused(visit, folder)
    shutil.copy(llama / name, folder)  # mended
    visit.press("open it again")
    visit.says(f"{folder} is a ")
    large = tmp_path / "large"
    large.mkdir()
    with open(large / "model.safetensors", "wb") as file:
        file.truncate(5 * 10**9)  # a hole: no disk is used
    visit.fill(FOLDER, str(large))
    visit.window.get_by_label(FOLDER, exact=True).press("Enter")
    visit.refuses("has 5.0 GB of weights")
    visit.says("python capstone_gpt.py trains a model")


def test_curves_of_several_runs(visit, llama, tmp_path):
    rows = [
        {"step": 10 * i, "train_loss": 2 - i / 9 if i else None, "dev_loss": 2.1 - i / 10}
        for i in range(5)
    ]
    lines = [json.dumps(row) for row in rows]
    files = {
        "whole": "\n".join(lines) + "\n",
        "killed": "\n".join(lines[:4]) + "\n" + lines[4][:20],
        "empty": "",
        "rubbish": "not\nJSON\n",
    }
    for name, content in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(content)
    visit.open("capstone")
    open_folder(visit, llama)
    label = "runs to compare, a directory a line"
    visit.fill(label, f"{tmp_path}/whole\n{tmp_path}/killed")
    visit.says("killed: 1 of the lines of metrics.jsonl cannot be read.")
    visit.says("development piece")
    visit.shows("held whole", 1.7 / math.log(2))
    visit.shows("train whole", (2 - 4 / 9) / math.log(2))
    visit.shows("held killed", 1.8 / math.log(2))
    for name, sentence in (
        ("empty", "the file is empty"),
        ("rubbish", "none of its 2 lines can be read"),
        ("nowhere", "no metrics.jsonl"),
    ):
        visit.fill(label, f"{tmp_path}/{name}\n{tmp_path}/whole")
        visit.refuses(sentence)
        visit.shows("held whole", 1.7 / math.log(2))  # the others are drawn all the same


def test_without_a_run(tmp_path, monkeypatch):
    pytest.importorskip("marimo")
    pytest.importorskip("matplotlib")
    from explorer import page11_capstone as page

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "SMALL_RUN", tmp_path / "small-run")
    assert page.default_run() == "" and page.found_runs() == []
    with pytest.raises(ValueError, match="no run in out/ yet"):
        page.open_checkpoint("")
    for name in ("out/stories", "out/stories-fast", "small-run"):
        (tmp_path / name).mkdir(parents=True)
        assert page.default_run() == ("" if name != "small-run" else str(tmp_path / name))
    (tmp_path / "out/stories-fast/last.safetensors").touch()
    (tmp_path / "out/stories-fast/metrics.jsonl").touch()
    assert page.default_run() == "out/stories-fast" and page.found_runs() == ["out/stories-fast"]
    assert page.names_of(["a/x", "b/x", "c/y"]) == ["a/x", "b/x", "y"]
