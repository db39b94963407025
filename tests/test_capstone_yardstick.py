"""The yardstick: evaluation, Kneser-Ney counts, and texts larger than memory."""

import dataclasses
import math

import numpy as np
import pytest

import capstone_gpt as gpt
import stage07_bpe


class Characters(gpt.CharTokenizer):
    """Stand-in until tokens is merged."""

    @property
    def files(self):
        return {"tokenizer": self.characters.encode()}

    def encode_stream(self, texts):
        return (self.encode(text) for text in texts)


# ---------------------------------------------------------------- evaluation


def make(vocab_size=11, block_size=8, **fields):
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": block_size}
    model = gpt.GPT(
        gpt.GPTConfig("llama", vocab_size=vocab_size, **sizes, **fields), dtype=np.float64
    )
    model.flat[:] += np.random.default_rng(1).normal(0, 0.3, model.flat.size)
    return model


def one_by_one(model, ids, first, size):
    """Each token on its own, from the `size` tokens before it at most."""
    nats = 0.0
    for i in range(first, len(ids)):
        row = ids[None, max(0, i - size) : i + 1]
        targets = np.full_like(row[:, 1:], -1)
        targets[0, -1] = ids[i]
        nats += model.loss(row[:, :-1], targets)
    return nats


@pytest.mark.parametrize("first, size", [(60, 8), (60, 5), (1, 8), (3, 8), (99, 8)])
def test_every_token_is_predicted_once_from_all_that_stands_before_it(rng, first, size):
    model, ids = make(), rng.integers(0, 11, 100).astype(np.uint16)
    nats, tokens = gpt.evaluate(model, ids, first, size, stride=1)
    assert tokens == 100 - first
    assert nats == pytest.approx(one_by_one(model, ids.astype(int), first, size))


def test_any_stride_scores_every_token_once(rng):
    model, ids = make(), rng.integers(0, 11, 100)
    exact = [gpt.evaluate(model, ids[: i + 1], i, 8, 1)[0] for i in range(60, 100)]
    for stride in (1, 3, 4, 8):
        nats, tokens = gpt.evaluate(model, ids, 60, 8, stride)
        assert tokens == 40 and abs(nats - sum(exact)) < 2 * stride
    assert gpt.evaluate(model, ids, 60, 8, 8, max_windows=2)[1] == 16
    assert gpt.evaluate(model, ids, 100, 8, 8) == (0, 0)
    with pytest.raises(ValueError, match="the first token"):
        gpt.evaluate(model, ids, 0, 8, 8)


# ---------------------------------------------------------------- Kneser-Ney


def test_the_worked_example():
    text = np.array([0, 1, 0, 1])  # a b a b
    levels = gpt.count_grams(text, 3, 2)
    (_, c1, N1, U1, D1), (_, c2, N2, U2, D2) = levels
    assert c1.tolist() == [1, 1, 0] and (N1[0], U1[0], D1) == (2, 2, 3 / 4)
    assert c2.tolist() == [2, 1, 0] and N2.tolist() == [2, 1, 0] and D2 == 2 / 5

    def p(context, order):
        ids = np.array(context)
        return [
            math.exp(-gpt.kneser_ney_nats(text, np.append(ids, w), len(ids), 3, order))
            for w in range(3)
        ]

    assert p([0], 2) == pytest.approx([0.075, 0.875, 0.05])
    assert p([1], 2) == pytest.approx([0.75, 0.15, 0.1])
    assert p([2], 2) == pytest.approx([0.375, 0.375, 0.25])  # never seen: what h' says
    assert p([0, 1, 2], 2) == p([2], 2)


@pytest.mark.parametrize("order", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("n, V", [(0, 5), (1, 5), (3, 5), (4, 5), (40, 3), (500, 4), (300, 90000)])
def test_agrees_with_stage_7(rng, n, V, order):
    ids = np.sort(rng.integers(0, V, 30))[
        rng.integers(0, 30, n + 60) if n else rng.integers(0, 30, 60)
    ]
    ids = rng.permutation(ids)
    ids[-1] = V - 1
    train, held = ids[:n], ids[n:]
    nats = gpt.kneser_ney_nats(train, ids, n, V, order)
    if n < order - 1:  # stage 7 leaves out the tokens that lack a context
        assert nats == pytest.approx(60 * math.log(V), abs=1e-9)
    else:
        theirs = stage07_bpe.kneser_ney_nats(train.tolist(), held.tolist(), V, order)
        assert nats == pytest.approx(theirs, abs=1e-9)


# ---------------------------------------------------------------- texts larger than memory


def test_a_text_becomes_a_file_of_tokens(tmp_path):
    text = "the fox\nand the hen, é and 狐\n" * 50
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    tokenizer = Characters(text)
    split = gpt.split_file(tmp_path / "a.txt", tokenizer, tmp_path / "tokens.safetensors", 0.1)
    n, m = int(0.9 * len(text)), int(0.1 * int(0.9 * len(text)))
    assert (split.train_chars, split.dev_chars, split.held_chars) == (n - m, m, len(text) - n)
    assert tokenizer.decode(split.train) == text[: n - m]
    assert tokenizer.decode(split.dev) == text[n - m : n]
    assert tokenizer.decode(split.held) == text[n:]
    again = gpt.split_file(tmp_path / "a.txt", tokenizer, tmp_path / "tokens.safetensors", 0.1)
    assert dataclasses.asdict(again).keys() == dataclasses.asdict(split).keys()
    nats, order, counted = gpt.yardstick(split)
    assert 0 < nats < 0.2 and order > 3 and counted == n - m
