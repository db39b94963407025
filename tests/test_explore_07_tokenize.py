"""Page 7 in the browser: its tokens, merges and cuts are those of stage07_bpe.py's functions."""

import base64
import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT

import stage07_bpe as stage

STORIES = (ROOT / "data" / "stories.txt").read_text(encoding="utf-8")
SIZES = (256, 384, 512)  # explore.py --fast
PATH = "any tokenizer.json, its folder, or a *.tiktoken (press enter)"
ODD = "e\u0301 👩\u200d🔬 狐狸\t  x\n\n1\u00a02"


def trained(size):
    return {kind.model_type: kind.train(STORIES[:24_000], size) for kind in stage.KINDS.values()}


def shown_ids(visit, name):
    """The ids that the tokens' titles say: "id 97, bytes 61"."""
    return [int(title.split()[1].strip(",")) for _, title in visit.pieces(f"{name} text")]


def shows_tokens(visit, name, tokenizer, text):
    """The panel's numbers, and every token in it, are the stage's."""
    row = stage.compare([tokenizer], text)[0]
    visit.shows(f"{name} tokens", row["tokens"])
    visit.shows(f"{name} characters", row["chars_per_token"])
    visit.equals(lambda: shown_ids(visit, name), tokenizer.encode(text), f"the ids of {name}")


def enter(visit, path):
    visit.fill(PATH, str(path))
    visit.window.get_by_label(PATH, exact=True).press("Enter")


def rows(visit, name):
    """The cells of a table, row by row."""
    found = visit.window.locator(f'table[data-name="{name}"] tbody tr')
    return found.evaluate_all(
        "all => all.map(r => [...r.querySelectorAll('td')].map(e => e.textContent))"
    )


def test_one_text_in_four_tokenizers(visit):
    visit.open("tokenize")
    text = visit.window.get_by_label("the text", exact=True).input_value()
    file = stage.Tokenizer.load(ROOT / "data" / "tokenizer")
    for place, size in enumerate(SIZES):
        visit.slide("vocabulary", place)  # the keys go from one size to the next
        tokenizers = {**trained(size), "File": file}
        for name, tokenizer in tokenizers.items():
            shows_tokens(visit, name, tokenizer, text)
        counts = {name: len(t.encode(text)) for name, t in tokenizers.items()}
        visit.shows_bars("tokens", counts)
    visit.fill("the text", ODD)
    for name, tokenizer in tokenizers.items():
        shows_tokens(visit, name, tokenizer, ODD)
    pieces = visit.pieces("BPE text")
    assert ["\\xf0", "id 240, bytes F0, part of 👩"] in pieces
    assert ["x", "id 120, bytes 78"] in pieces
    assert visit.text().count("Decoding gives the text back.") == 4
    visit.tick("show the ids")
    ids = tokenizers["Unigram"].encode(ODD)
    visit.equals(
        lambda: [piece for piece, _ in visit.pieces("Unigram text")],
        [f" {i} " for i in ids],
        "the ids",
    )
    visit.fill("the text", "")
    visit.refuses("The text is empty")
    visit.fill("the text", "狐" * 2_001)
    visit.refuses("The text has 2,001 characters; at most 2,000 go here.")
    visit.fill("the text", "the fox " * 250)
    visit.shows("BPE tokens", len(tokenizers["BPE"].encode("the fox " * 250)))
    assert len(visit.pieces("BPE text")) == 400 and "The first 400 tokens" in visit.text()


def test_other_peoples_files(visit, tmp_path):
    visit.open("tokenize")
    visit.fill("the text", "A fox, 狐")
    made = trained(384)["BPE"]
    model = made.model
    gpt2 = tmp_path / "gpt2"
    gpt2.mkdir()
    (gpt2 / "vocab.json").write_text(json.dumps(model["vocab"]))
    (gpt2 / "merges.txt").write_text("\n".join(map(" ".join, model["merges"])) + "\n")
    enter(visit, gpt2)
    shows_tokens(visit, "File", made, "A fox, 狐")
    lines = [base64.b64encode(token).decode() + f" {i}" for i, token in made.vocab.items()]
    (tmp_path / "ranks.tiktoken").write_text("\n".join(lines))
    enter(visit, tmp_path / "ranks.tiktoken")
    for pattern in ("gpt4", "gpt2", "gpt4o"):
        visit.choose("its pattern", pattern)
        tokenizer = stage.Tokenizer.load(tmp_path / "ranks.tiktoken", pattern)
        text = f"A FoxCub's 12345 {pattern}"
        visit.fill("the text", text)
        shows_tokens(visit, "File", tokenizer, text)
    bert = {
        "model": {
            "type": "WordPiece",
            "vocab": {"[UNK]": 0, "fox": 1},
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        "decoder": {"type": "WordPiece", "prefix": "##"},
    }
    (tmp_path / "bert.json").write_text(json.dumps(bert))
    enter(visit, tmp_path / "bert.json")
    visit.fill("the text", "fog")
    visit.says("Decoding gives another text: '[UNK]'")
    unigram = {"model": {"type": "Unigram", "vocab": [["fox", -1.0]]}}
    (tmp_path / "unigram.json").write_text(json.dumps(unigram))
    enter(visit, tmp_path / "unigram.json")
    visit.refuses("File cannot write this text: text has 'fog': no token can write it")
    visit.shows("BPE tokens", len(made.encode("fog")))  # the others still do


def test_files_that_are_refused(visit, tmp_path):
    visit.open("tokenize")
    for name, content, message in (
        ("no.json", None, "there is no such file or folder"),
        ("cut.json", b'{"model": {"ty', "not JSON"),
        ("binary.json", b"\x89PNG\r\n\x1a\n" + bytes(9), "can't decode byte"),
        ("list.json", b"[1, 2]", "expected an object"),
        ("rnn.json", b'{"model": {"type": "RNN"}}', "model 'RNN'; handled here: BPE"),
        ("bad.tiktoken", b"one two three\n", "line 1 is"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        enter(visit, tmp_path / name)
        visit.refuses(message)
        assert name in visit.problem()
    enter(visit, tmp_path)
    visit.refuses("is a folder that has no tokenizer.json")
    (tmp_path / "vocab.json").write_text("{}")
    enter(visit, f"{tmp_path}/")
    visit.refuses("damaged, or no tokenizer: FileNotFoundError")
    enter(visit, "/dev/zero")
    visit.refuses("/dev/zero: neither a file nor a folder of files")
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(10**9)  # takes no room on the disk
    enter(visit, tmp_path / "huge.json")
    visit.refuses("has 1,000,000,000 bytes; at most 100,000,000")
    enter(visit, "a" * 5000)
    visit.refuses(f"{'a' * 200}: File name too long.")
    wide = visit.window.evaluate("document.querySelector('#App').scrollWidth")
    assert wide <= visit.window.viewport_size["width"]
    enter(visit, "")
    visit.refuses("No path is given")
    enter(visit, "data/tokenizer")
    visit.until(lambda: shown_ids(visit, "File"), "the tokens of the file")


def test_merges_one_at_a_time(visit):
    visit.open("tokenize")
    for text, other in (("banana bandana", "cabana"), ("low é low", "slow é")):
        visit.fill("learn merges from", text)
        visit.fill("write with these merges", other)
        merges = stage.textbook_merges(text, 99)
        visit.shows("symbols", len(stage.textbook_encode(text, merges[:1])))  # a new slider
        visit.slide("merges made", 0)
        slider = visit.window.get_by_role("slider", name="merges made", exact=True)
        for n in range(len(merges) + 1):
            ids = stage.textbook_encode(text, merges[:n])
            visit.shows("symbols", len(ids))
            visit.shows("written", len(stage.textbook_encode(other, merges[:n])))
            visit.equals(
                lambda: [int(title.split()[1].strip(",")) for _, title in visit.pieces("merged")],
                ids,
                "the symbols",
            )
            newest = visit.window.locator('.symbols[data-name="merged"] [style*="orange"]')
            visit.equals(newest.count, ids.count(255 + n) if n else 0, "the newest in orange")
            if n < len(merges):
                a, b = merges[n]
                times = Counter(zip(ids, ids[1:]))[a, b]
                visit.equals(
                    lambda: rows(visit, "pairs")[0][1:],
                    [f"{a}, {b}", str(times), "merged next"],
                    "the pair that is merged next",
                )
                slider.press("ArrowRight")
        visit.says("One symbol is left")
        newest = [str(255 + n), stage.spell([text.encode()])]
        assert rows(visit, "learned")[0][:2] == newest
    for text, message in (
        ("", "has no two neighbours"),
        ("a", "'a' has no two neighbours"),
        ("ab" * 101, "it has 202 characters; at most 200"),
    ):
        visit.fill("learn merges from", text)
        visit.refuses(message)
    visit.fill("learn merges from", "abab")
    visit.fill("write with these merges", "")
    visit.refuses("0 characters stand here: expected 1 to 200.")


def test_one_word_many_cuts(visit):
    visit.open("tokenize")
    visit.slide("vocabulary", 2)
    tokenizer = trained(512)["Unigram"]
    for word, temperature in ((" gardening", 2), ("foxé", 1)):
        visit.fill("one word (with the space before it)", word)
        visit.slide("temperature of the cuts", temperature)
        letters = stage.to_alphabet(word.encode())
        p = {}  # of every cut there is
        for ends in itertools.product((False, True), repeat=len(letters) - 1):
            cut = [letters[0]]
            for letter, end in zip(letters[1:], ends):
                if end:
                    cut.append(letter)
                else:
                    cut[-1] += letter
            if all(piece in tokenizer.score for piece in cut):
                total = sum(tokenizer.score[piece] for piece in cut)
                p[tuple(cut)] = math.exp(total / temperature)
        rng = np.random.default_rng(0)
        drawn = Counter(
            tuple(stage.sample_cut(letters, tokenizer.score, tokenizer.longest, temperature, rng))
            for _ in range(100)
        )
        best = tuple(stage.viterbi(letters, tokenizer.score, tokenizer.longest)[1])
        likely = sorted({best, *drawn}, key=lambda cut: (-p[cut], cut))[:8]
        name = {cut: stage.spell([*map(stage.from_alphabet, cut)]) for cut in likely}
        visit.shows_bars("likely", {name[cut]: p[cut] / sum(p.values()) for cut in likely})
        visit.shows_bars("drawn", {name[cut]: drawn[cut] for cut in likely})
        visit.shows("different", len(drawn))
        visit.shows("together", sum(p[cut] for cut in likely) / sum(p.values()))
    for word, message in (
        ("", "it has 0 bytes"),
        ("a fox", "a|·fox is cut before"),
        ("a" * 41, "it has 41 bytes; expected 1 to 40"),
    ):
        visit.fill("one word (with the space before it)", word)
        visit.refuses(message)


def test_the_pairs_are_counted_as_the_textbook_counts_them():
    pytest.importorskip("marimo")
    pytest.importorskip("matplotlib")
    from explorer import page07_tokenize as page

    parts = [b"fox ", *(bytes([byte]) for byte in "狐🦊".encode())]
    said = [title.split("part of ")[-1] for title in page.titles_of(range(8), parts)]
    assert said == ["id 0, bytes 66 6F 78 20", *"狐狐狐🦊🦊🦊🦊"]
    for text in ("aaaaa", "abab baba", STORIES[:200], "狐狸在河边一直等到月亮升起。🦊"):
        merges, states = page.merge_all(text)
        assert merges == stage.textbook_merges(text, 10**6)
        for n, ids in enumerate(states):
            assert ids == stage.textbook_encode(text, merges[:n])
            pairs = page.count_pairs(ids)
            assert dict(pairs) == Counter(zip(ids, ids[1:]))
            assert [pair for pair, _ in pairs[:1]] == merges[n : n + 1]


def test_what_the_hint_says():
    made = {
        kind: stage.KINDS[kind].train(STORIES[: int(0.9 * len(STORIES))], 1024)
        for kind in ("bpe", "unigram")
    }
    cut = {kind: stage.show(t, t.encode(" Grandmother")) for kind, t in made.items()}
    assert cut == {"bpe": "·G|randmother", "unigram": "·Grandmother"}
    assert STORIES.isascii()  # so that no é, no 狐 and no 🦊 can be a token
