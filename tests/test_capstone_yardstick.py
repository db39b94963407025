"""The yardstick: evaluation, Kneser-Ney counts, and texts larger than memory."""

import hashlib
import json
import math
import os
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

import capstone_gpt as gpt
import stage07_bpe


class Characters:
    """A tokenizer of one character a token, as quick as NumPy; ids from `shift` on."""

    def __init__(self, text, shift=0):
        self.codes = np.unique(np.array([*map(ord, text)]))
        self.shift, self.vocab_size = shift, len(self.codes) + shift
        self.files = {"tokenizer.json": self.codes.tobytes(), "a": b"b"}
        self.encoded = 0

    def encode_stream(self, texts):
        self.encoded += 1
        for text in texts:
            codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            yield np.searchsorted(self.codes, codes) + self.shift

    def decode(self, ids):
        return "".join(map(chr, self.codes[np.asarray(ids, int) - self.shift]))


# ---------------------------------------------------------------- evaluation


def make(vocab_size=11, block_size=8):
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": block_size}
    model = gpt.GPT(gpt.GPTConfig("llama", vocab_size=vocab_size, **sizes), dtype=np.float64)
    model.flat[:] += np.random.default_rng(1).normal(0, 0.3, model.flat.size)
    return model


def one_by_one(model, ids, first, size, stride=1):
    """Each token on its own: window number n ends `stride` tokens after the one before it."""
    nats = []
    for i in range(first, len(ids)):
        end = min(first + ((i - first) // stride + 1) * stride, len(ids))
        row = ids[None, max(0, end - size - 1) : i + 1]
        targets = np.full_like(row[:, 1:], -1)
        targets[0, -1] = ids[i]
        nats.append(model.loss(row[:, :-1], targets))
    return nats


@pytest.mark.parametrize(
    "first, size, stride",
    [(60, 8, 1), (60, 5, 1), (60, 8, 4), (60, 8, 3), (60, 8, 8), (1, 8, 1), (3, 8, 1), (99, 8, 4)],
)
def test_every_token_is_predicted_once_from_what_stands_before_it(rng, first, size, stride):
    model, ids = make(), rng.integers(0, 11, 100).astype(np.uint16)
    nats, tokens = gpt.evaluate(model, ids, first, size, stride)
    exact = one_by_one(model, ids.astype(int), first, size, stride)
    assert tokens == len(exact) == 100 - first
    assert nats == pytest.approx(sum(exact), rel=1e-12)


def test_the_first_tokens_of_a_text_see_all_there_is_and_no_more(rng):
    """From token 1 on with a stride: the window cannot begin before the text."""
    model, ids = make(), rng.integers(0, 11, 30)
    nats, tokens = gpt.evaluate(model, ids, 1, 8, 4)
    assert tokens == 29
    assert nats == pytest.approx(sum(one_by_one(model, ids, 1, 8, 4)), rel=1e-12)
    nats, tokens = gpt.evaluate(model, ids[:2], 1, 8, 4)
    assert (nats, tokens) == (pytest.approx(one_by_one(model, ids[:2], 1, 8)[0]), 1)


def test_some_windows_are_spread_evenly(rng):
    model, ids = make(), rng.integers(0, 11, 100)
    nats = one_by_one(model, ids, 60, 8, 4)  # ten windows of 4 tokens
    chosen = [0, 2, 4, 7, 9]  # 9 / 4 apart, rounded
    expected = sum(sum(nats[4 * i : 4 * i + 4]) for i in chosen)
    assert gpt.evaluate(model, ids, 60, 8, 4, max_windows=5) == (pytest.approx(expected), 20)
    assert gpt.evaluate(model, ids, 60, 8, 4, max_windows=10)[1] == 40


def test_nothing_to_score_and_nothing_before(rng):
    model, ids = make(), rng.integers(0, 11, 100)
    assert gpt.evaluate(model, ids, 100, 8, 8) == (0, 0)
    assert gpt.evaluate(model, ids[:1], 1, 8, 8) == (0, 0)
    with pytest.raises(ValueError, match="first must be at least 1"):
        gpt.evaluate(model, ids, 0, 8, 8)
    for stride in (0, 9):
        with pytest.raises(
            ValueError, match=f"stride must be at least 1 and below 9, not {stride}"
        ):
            gpt.evaluate(model, ids, 60, 8, stride)


class Listener:
    """A model that only remembers what it is asked: its loss is the mean of the targets."""

    def __init__(self, vocab_size):
        self.config, self.shapes = SimpleNamespace(vocab_size=vocab_size), []

    def loss(self, idx, targets):
        counted = targets >= 0
        assert (idx[:, 1:] == targets[:, :-1])[counted[:, :-1]].all()
        self.shapes.append(idx.shape)
        return float(targets[counted].mean())


@pytest.mark.parametrize(
    "V, T, batch", [(65, 64, 128), (65, 1, 8192), (1024, 1, 4096), (100_000, 64, 1), (9, 9999, 1)]
)
def test_batches_shrink_with_the_vocabulary(V, T, batch):
    """8,192 tokens and 4,194,304 logits at most, but one window at least."""
    ids, model = np.arange(30_000, dtype=np.uint16), Listener(V)
    nats, tokens = gpt.evaluate(model, ids, 10_000, T, T)
    assert tokens == 20_000 and nats == pytest.approx(ids[10_000:].sum())
    assert max(B for B, _ in model.shapes) == batch and {t for _, t in model.shapes} == {T}


# ---------------------------------------------------------------- Kneser-Ney


def nats_after(train, context, V, order):
    """Nats of each next token 0 ... V - 1 after a context."""
    rows = np.array([[*context, w] for w in range(V)])
    return [gpt.kneser_ney_nats(train, row[None], V, order)[-1] for row in rows]


def test_the_worked_example():
    text = np.array([0, 1, 0, 1])  # a b a b
    p = [np.exp(-np.array(nats_after(text, context, 3, 2))) for context in ([0], [1], [2])]
    assert p[0] == pytest.approx([0.075, 0.875, 0.05])
    assert p[1] == pytest.approx([0.75, 0.15, 0.1])
    assert p[2] == pytest.approx([0.375, 0.375, 0.25])  # never seen: what h' says


def test_the_terms_of_the_worked_example():
    """c, the contexts, h and hw of a b and b a, then of c c, of which nothing is known."""
    c, contexts = np.array([2, 1, 0]), np.array([0, 1, 2])
    h, hw, p = np.array([0, 1, 2]), np.array([0, 1, 2]), np.array([0.375, 0.375, 0.25])
    assert gpt.kneser_ney(c, contexts, h, hw, p) == pytest.approx([0.875, 0.75, 0.25])


@pytest.mark.parametrize("order", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("n, V", [(0, 5), (1, 5), (3, 5), (4, 5), (40, 3), (500, 4), (300, 90000)])
def test_it_is_stage_7_s(rng, n, V, order):
    """Whatever is unseen; where the text is as short as the context, nothing is counted."""
    ids = rng.choice(rng.integers(0, V, 30), n + 60)
    ids[-1] = V - 1  # only at the end
    order = min(order, n + 1)
    nats = gpt.kneser_ney_nats(ids[:n], ids[None, n - order + 1 :], V, order)
    assert nats.shape == (order,)
    for k in range(1, order + 1):  # all orders count what ends at token `order` or later
        train, test = ids[order - k : n].tolist(), ids[n:].tolist()
        if n >= order:
            expected = stage07_bpe.kneser_ney_nats(train, test, V, k)
        else:
            expected = 60 * math.log(V)
        assert nats[k - 1] == pytest.approx(expected, abs=1e-9)


def test_rows_are_scored_each_for_itself(rng):
    train, rows = rng.integers(0, 3, 200), rng.integers(0, 3, (4, 30))
    together = gpt.kneser_ney_nats(train.astype(np.uint16), rows.astype(np.uint16), 3, 3)
    assert together == pytest.approx(sum(gpt.kneser_ney_nats(train, r[None], 3, 3) for r in rows))


def test_probabilities_add_up_to_one(rng):
    train = rng.integers(0, 6, 60)
    for context in ([0, 0, 0], [0, 1, 2], [5, 5, 5], train[-3:], train[:3]):
        p = np.exp(-np.array(nats_after(train, context, 6, 4)))
        assert p.sum() == pytest.approx(1, abs=1e-12) and p.min() > 0


def split_of(ids, train, dev, V, chars_per_token=2):
    ids = np.asarray(ids)
    parts = np.split(ids, [train, train + dev])
    return gpt.Split(ids, *parts, *(chars_per_token * len(part) for part in parts), V, "")


def stage_7_nats(ids, end, last, V, order):
    return stage07_bpe.kneser_ney_nats(ids[:end].tolist(), ids[end:last].tolist(), V, order)


@pytest.mark.parametrize("dev", [0, 40])
def test_the_order_is_chosen_before_the_held_out_tokens_are_seen(rng, dev):
    text = np.array([*(b"the fox and the hen " * 40)])
    noise = rng.random(800) < 0.2
    ids = np.unique(np.where(noise, rng.permutation(text), text), return_inverse=True)[1]
    V, end, held = int(ids.max()) + 1, 700 - dev, 700
    fitted = end if dev else 665  # without a development piece the last 5 % stand in
    best = 1 + int(np.argmin([stage_7_nats(ids, fitted, held, V, k) for k in range(1, 11)]))
    nats, order, counted = gpt.yardstick(split_of(ids, end, dev, V))
    assert (order, counted) == (best, end) and 1 < best < 10
    rows = ids[None, held - best + 1 :]
    expected = gpt.kneser_ney_nats(ids[:end], rows, V, best)[-1]
    if not dev:
        assert expected == pytest.approx(stage_7_nats(ids, end, 800, V, best))
    assert nats == pytest.approx(expected / 200)  # 2 characters a token
    other = np.append(ids[:held], rng.integers(0, V, 100))
    assert gpt.yardstick(split_of(other, end, dev, V))[1] == order


@pytest.mark.parametrize("dev, fitted", [(0, 665), (40, 660)])
def test_what_the_yardstick_counts_and_scores(rng, monkeypatch, dev, fitted):
    calls, plain = [], gpt.kneser_ney_nats

    def listen(train, rows, vocab_size, order):
        calls.append((train.tolist(), rows.tolist(), vocab_size, order))
        return plain(train, rows, vocab_size, order)

    monkeypatch.setattr(gpt, "kneser_ney_nats", listen)
    ids = rng.integers(0, 5, 800)
    order = gpt.yardstick(split_of(ids, 700 - dev, dev, 5))[1]
    assert calls == [
        (ids[:fitted].tolist(), [ids[fitted - 9 : 700].tolist()], 5, 10),
        (ids[: 700 - dev].tolist(), [ids[701 - order :].tolist()], 5, order),
    ]


def test_a_long_text_is_counted_and_scored_in_part(rng, monkeypatch):
    monkeypatch.setattr(gpt, "COUNTED", 500)
    monkeypatch.setattr(gpt, "SCORED", 1000)
    ids = rng.integers(0, 4, 4000)
    nats, order, counted = gpt.yardstick(split_of(ids, 1900, 100, 4, 1))
    assert counted == 500
    starts = np.linspace(2000, 4000 - 10, 100).astype(int)
    rows = np.array([ids[start - order + 1 : start + 10] for start in starts])
    expected = gpt.kneser_ney_nats(ids[1400:1900], rows, 4, order)[-1] / 1000
    assert nats == pytest.approx(expected)
    monkeypatch.setattr(gpt, "SCORED", 2000)  # all of it
    expected = gpt.kneser_ney_nats(ids[1400:1900], ids[None, 2000 - order + 1 :], 4, order)
    assert gpt.yardstick(split_of(ids, 1900, 100, 4, 1))[0] == pytest.approx(expected[-1] / 2000)


def test_a_text_of_a_few_tokens(rng):
    for n in (1, 2, 5, 12):
        nats, order, counted = gpt.yardstick(split_of(np.zeros(n, int), n - 1, 0, 7, 1))
        assert counted == n - 1 and 0 < nats <= math.log(7) + 1e-12 and 1 <= order <= 10


# ---------------------------------------------------------------- texts larger than memory


TEXT = "the fox\nand the hen, é and 狐 🦊\n" * 50


def write(folder, data, name="a.txt"):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_a_text_is_read_in_pieces_without_bom_and_with_one_kind_of_line_end(tmp_path):
    long = ("é" * ((1 << 20) - 1) + "\r\n") * 2 + "\r\r\n" + "狐" * 5 + "\r"
    path = write(tmp_path, b"\xef\xbb\xbf" + long.encode())
    pieces = [*gpt.stream_text(path)]
    assert "".join(pieces) == long.replace("\r\n", "\n").replace("\r", "\n")
    assert max(map(len, pieces)) <= 1 << 20 and len(pieces) >= 2
    assert "".join(gpt.stream_text(write(tmp_path, "a\ufeffb"))) == "a\ufeffb"


@pytest.mark.parametrize(
    "before, n, end, words",
    [
        (b"", 0, b"", "the file is empty"),
        (b"\xef\xbb\xbf", 0, b"", "the file is empty"),
        (b"", 1, b"\xff", r"not UTF-8 text \(at byte 2\)"),
        (b"", 30_000, b"\xc3", r"not UTF-8 text \(at byte 60000\)"),  # half a character
        (b"\xef\xbb\xbf", 3_000_000, b"\xe9 ", r"not UTF-8 text \(at byte 6000003\)"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, before, n, end, words):
    data = before + "é".encode() * n + end
    with pytest.raises(ValueError, match=f"a.txt: .*{words}"):
        gpt.split_file(write(tmp_path, data), Characters("a é"), tmp_path / "tokens")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        gpt.split_file(tmp_path / "a.txt", Characters("a"), tmp_path / "tokens")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="a directory or a stream, expected a text file"):
            gpt.split_file(path, Characters("a"), tmp_path / "tokens")


@pytest.mark.parametrize("dev_fraction", [0.0, 0.1, 0.0001])
def test_a_text_becomes_a_file_of_tokens(tmp_path, dev_fraction):
    path, tokenizer = write(tmp_path, TEXT.replace("\n", "\r\n")), Characters(TEXT)
    split = gpt.split_file(path, tokenizer, tmp_path / "tokens.safetensors", dev_fraction)
    n = int(0.9 * len(TEXT))
    m = int(dev_fraction * n)
    assert (split.train_chars, split.dev_chars, split.held_chars) == (n - m, m, len(TEXT) - n)
    assert tokenizer.decode(split.train) == TEXT[: n - m]
    assert tokenizer.decode(split.dev) == TEXT[n - m : n]
    assert tokenizer.decode(split.held) == TEXT[n:]
    assert tokenizer.decode(split.ids) == TEXT and split.vocab_size == tokenizer.vocab_size
    assert split.text_hash == hashlib.sha256(TEXT.encode()).hexdigest()
    assert all(part.base is not None for part in (split.train, split.dev, split.held))
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "tokens.safetensors"]
    tensors, metadata = gpt.read_safetensors(tmp_path / "tokens.safetensors")
    assert [*tensors] == ["ids"] and split.text_hash in metadata["source"]
    assert json.loads(metadata["cuts"]) == [n - m, n]
    nats, order, counted = gpt.yardstick(split)
    assert 0 < nats < 0.3 and order > 3 and counted == n - m


@pytest.mark.parametrize("vocab_size, dtype", [(65536, np.uint16), (65537, np.uint32)])
def test_ids_are_as_narrow_as_the_vocabulary_allows(tmp_path, vocab_size, dtype):
    tokenizer = Characters(TEXT)
    tokenizer = Characters(TEXT, shift=vocab_size - tokenizer.vocab_size)
    split = gpt.split_file(write(tmp_path, TEXT), tokenizer, tmp_path / "tokens")
    assert len(split.dev) == split.dev_chars == 0
    assert split.ids.dtype == dtype and split.ids.max() == vocab_size - 1
    assert tokenizer.decode(split.ids) == TEXT


def test_a_token_file_is_used_again_for_the_same_text_and_tokenizer_only(tmp_path):
    path, cache, tokenizer = write(tmp_path, TEXT), tmp_path / "tokens", Characters(TEXT)

    def encodings(dev_fraction=0.1):
        before = tokenizer.encoded
        split = gpt.split_file(path, tokenizer, cache, dev_fraction)
        assert tokenizer.decode(split.ids) == text
        return tokenizer.encoded - before

    text = TEXT
    assert [encodings(), encodings()] == [3, 0]
    assert [encodings(0.2), encodings(0.2), encodings(), encodings()] == [3, 0, 3, 0]
    text = TEXT.replace("fox", "hen")
    write(tmp_path, text)
    assert [encodings(), encodings()] == [3, 0]
    for files in ({"a": b"c"}, {"b": b"b"}, {"ab": b""}):
        tokenizer.files = files
        assert [encodings(), encodings()] == [3, 0]
    whole = cache.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    no_tokens = whole.replace(b'"cuts"', b'"cots"')
    for damaged in (b"", whole[:100], whole[:-1], no_tokens, whole[:header]):
        cache.write_bytes(damaged)
        assert [encodings(), encodings()] == [3, 0] and cache.read_bytes() == whole


def test_a_failed_encoding_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path, cache, tokenizer = write(tmp_path, TEXT), tmp_path / "tokens", Characters(TEXT)
    gpt.split_file(path, tokenizer, cache)
    whole = cache.read_bytes()

    def fails(texts):
        yield np.zeros(3, int)
        raise ValueError("unknown character")

    tokenizer.encode_stream, tokenizer.files = fails, {}
    with pytest.raises(ValueError, match="unknown character"):
        gpt.split_file(path, tokenizer, cache)
    assert cache.read_bytes() == whole and sorted(os.listdir(tmp_path)) == ["a.txt", "tokens"]


def test_slow_encoding_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    """Each look at the clock takes 1/8 s: nothing for 2 s, then a line after as long again."""
    clock = iter(np.arange(0, 1000, 0.125))
    monkeypatch.setattr(gpt.time, "time", lambda: next(clock))
    n = len(TEXT) // 100
    pieces = [TEXT[i : i + n] for i in range(0, len(TEXT), n)]
    monkeypatch.setattr(gpt, "stream_text", lambda path: iter(pieces))
    gpt.split_file(tmp_path / "a.txt", Characters(TEXT), tmp_path / "tokens")
    done = [17 * n, 33 * n, 65 * n]  # after 2, 4 and 8 s
    lines = [f"encoding {tmp_path / 'a.txt'}: {at / len(TEXT):4.0%}" for at in done]
    assert capsys.readouterr().out.splitlines() == lines


def test_quick_encoding_says_nothing(tmp_path, capsys):
    gpt.split_file(write(tmp_path, TEXT), Characters(TEXT), tmp_path / "tokens")
    assert capsys.readouterr().out == ""


def peak_memory(folder, text):
    """Bytes that encoding, evaluating and counting a text need at most."""
    path, tokenizer, model = (
        write(folder, text, "large.txt"),
        Characters("ab\n0123456789"),
        make(13),
    )
    del text
    tracemalloc.start()
    try:
        split = gpt.split_file(path, tokenizer, folder / f"{path.stat().st_size}.safetensors", 0.05)
        first = len(split.ids) - len(split.held)
        tokens = gpt.evaluate(model, split.ids, first, 8, 8, max_windows=1000)[1]
        counted = gpt.yardstick(split)[2]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 7900 < tokens <= 8000 and counted == gpt.COUNTED
    return peak


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
    """3 MB and 12 MB of text below the same 40 MB; int64 ids of the larger alone would be 96."""
    monkeypatch.setattr(gpt, "COUNTED", 100_000)
    monkeypatch.setattr(gpt, "SCORED", 20_000)
    lines = "".join(f"{'ab'[i % 2]}{i * i % 10**9}\n" for i in range(300_000))
    small = peak_memory(tmp_path, lines)
    large = peak_memory(tmp_path, lines * 4)
    assert large < 1.1 * small and large < 40e6


@pytest.mark.parametrize("change", ["cuts", "ids"])
def test_a_token_file_that_was_damaged_is_made_again(tmp_path, change):
    """One bit moves the held-out piece, or changes a token: neither may pass unseen."""
    path, cache = tmp_path / "text.txt", tmp_path / "tokens.safetensors"
    path.write_text("the cat sat on the mat. " * 50)
    tokenizer = gpt.CharTokenizer(path.read_text())
    whole = gpt.split_file(path, tokenizer, cache, 0.1)
    right = [np.array(piece) for piece in whole[:4]]
    tensors, metadata = gpt.read_safetensors(cache)
    ids = np.array(gpt.read_tensor(tensors["ids"]))
    if change == "cuts":
        first, second = json.loads(metadata["cuts"])
        metadata["cuts"] = json.dumps([first, second + 100])
    else:
        ids[3] ^= 1
    gpt.write_safetensors(cache, {"ids": ids}, metadata)
    again = gpt.split_file(path, tokenizer, cache, 0.1)
    assert all(np.array_equal(a, b) for a, b in zip(again[:4], right))
