"""Checks of the exercises of the capstone."""

import math
import tempfile
from collections import Counter
from pathlib import Path

import judge
import numpy as np
import pytest

import capstone_gpt as capstone


def test_1(answers):
    found = judge.answer(answers, "ANSWER_1")
    W, tokens = np.zeros((2, 2)), [0, 1, 0, 1]
    capstone.table_step(W, tokens, 3)
    before = W.copy()
    capstone.table_step(W, tokens, 3)
    mistakes = {
        "this goes up the gradient, so the loss rises": 2 * before - W,
        "this is the change; the table after it was asked for": W - before,
        "the gradient is divided by the number of targets, 3": before + 3 * (W - before),
        "the gradient is not yet multiplied by the learning rate": before + (W - before) / 3,
        "each row is divided by all 3 targets, not by its own": before
        + (W - before) * np.array([[3 / 2], [3]]),
    }
    judge.array("ANSWER_1", found, W, 1e-3, mistakes=mistakes)


def test_2(answers):
    judge.answer(answers, "ANSWER_2")
    sizes = {"vocab_size": 100, "block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 8}
    right = capstone.GPT(capstone.GPTConfig("gpt2", **sizes)).num_params()
    bare = capstone.GPT(capstone.GPTConfig("gpt2", bias=False, **sizes)).num_params()
    mistakes = {
        "the head is tied: it counts once, as the embedding": right + 800,
        "the biases are missing": bare,
        "the last norm, behind the block, is missing": right - 16,
        "the positions are missing": right - 128,
        "the embedding is missing": right - 800,
    }
    judge.number(answers, "ANSWER_2", right, digits=5, mistakes=mistakes)


def test_3(answers):
    remarks = {
        "a": "a token of the second model spells more characters, so it may surprise more",
        "b": "what is the loss for each character?",
        "c": "they predict the same text, cut differently; what is comparable about a text?",
        "d": "a loss a token times characters a token is no loss of anything",
    }
    judge.choice(answers, "ANSWER_3", 3, "98e689a444cc", remarks)


def test_4(answers, rng):
    x = rng.normal(size=(3, 5))
    before = x.copy()
    result = judge.lend(answers, "relu2_forward", x)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        judge.wrong("relu2_forward: expected two things, y and a cache")
    y, cache = result
    if not np.array_equal(x, before):
        judge.wrong("relu2_forward changed its input")
    mistakes = {
        "that is max(x, 0); its square was asked for": np.maximum(x, 0),
        "negative x give 0, too": x * x,
    }
    judge.array("relu2_forward", y, np.maximum(x, 0) ** 2, mistakes=mistakes)
    dy = rng.normal(size=x.shape)
    expected = 2 * np.maximum(x, 0) * dy
    mistakes = {
        "the slope alone; it has to be multiplied by dy": 2 * np.maximum(x, 0),
        "where x < 0 nothing moves y": 2 * x * dy,
        "that is the slope of max(x, 0); the square has another": (x > 0) * dy,
    }
    found = judge.call(answers, "relu2_backward", dy, cache)
    judge.array("relu2_backward", found, expected, mistakes=mistakes)


def test_5(answers, rng):
    logits, c = rng.normal(size=(4, 6)), 1e-2
    found = judge.call(answers, "z_loss_gradient", logits, c)
    log_z = np.log(np.exp(logits).sum(-1, keepdims=True))
    p = np.exp(logits - log_z)
    mistakes = {
        "the mean over the rows is missing (1/N)": 2 * c * log_z * p,
        "the mean is over the N rows, not over all entries": 2 * c * log_z * p / logits.size,
        "after subtracting the maximum, it has to be added to log Z again": 2
        * c
        * (log_z - logits.max(-1, keepdims=True))
        * p
        / 4,
        "the derivative of a square has a factor": c * log_z * p / 4,
        "log Z itself is the factor, not its square": 2 * c * log_z**2 * p / 4,
        "what is ∂(log Z)/∂z? e^z alone is ∂Z/∂z": 2 * c * log_z * np.exp(logits) / 4,
        "Σ e^z is over each row, not over the whole array": 2
        * c
        * np.log(np.exp(logits).sum())
        * np.exp(logits)
        / np.exp(logits).sum()
        / 4,
    }
    judge.array("z_loss_gradient", found, 2 * c * log_z * p / 4, 1e-9, mistakes=mistakes)

    def loss():
        return float(np.mean(c * np.log(np.exp(logits).sum(-1)) ** 2))

    judge.gradient("z_loss_gradient", loss, logits, found)
    large = judge.call(answers, "z_loss_gradient", 1000 + logits, c)
    if not np.all(np.isfinite(large)):
        judge.wrong("z_loss_gradient: logits of 1,000 overflow exp; subtract each row's maximum")
    judge.array("z_loss_gradient", large, 2 * c * (1000 + log_z) * p / 4, mistakes={
        "after subtracting the maximum, it has to be added to log Z again":
            2 * c * (log_z - logits.max(-1, keepdims=True)) * p / 4,
    })  # fmt: skip


def test_6(answers, rng):
    dy, x, W = rng.normal(size=(7, 3)), rng.normal(size=(7, 5)), rng.normal(size=(3, 5))
    result = judge.call(answers, "transposed_linear_backward", dy, x, W)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        judge.wrong("transposed_linear_backward: expected two arrays, dx and dW")
    judge.array("dx", result[0], dy @ W)
    judge.array("dW", result[1], dy.T @ x, n=7)


def test_7(answers, rng):
    w = rng.normal(size=(4, 3))
    gradients = [rng.normal(size=w.shape) for _ in range(5)]
    config = capstone.GPTConfig("gpt2", vocab_size=4, block_size=1, n_layer=1, n_head=1, n_embd=3)
    params = capstone.ParamDict(config, np.zeros(config_size(config)))
    params.flat[:12] = w.ravel()  # the embedding comes first, and decays
    optimizer = capstone.AdamW(params, grad_clip=0.0)
    expected = []
    for g in gradients:
        everything = np.zeros_like(params.flat)
        everything[:12] = g.ravel()
        optimizer.step(everything, 1.0, 0.01)
        expected.append(params.flat[:12].reshape(4, 3).copy())
    for n in (1, 2, 5):
        found = judge.call(answers, "adamw", w, gradients[:n], 0.01)
        steps = "one step" if n == 1 else f"{n} steps"
        judge.array(f"the weights after {steps}", found, expected[n - 1], 1e-9)


def config_size(config):
    """How many parameters a model of this shape has."""
    return sum(math.prod(shape) for shape in capstone.param_shapes(config).values())


def test_8(answers):
    remarks = {
        "a": "their own gradient is made from dy, which reaches them unharmed",
        "b": "what the backward has passed before it meets the fault is already right",
        "c": "follow dx from the fault downwards",
        "d": "the backward comes from above: it meets a block's MLP first",
    }
    judge.choice(answers, "ANSWER_8", 8, "38bdf4a92854", remarks)


def test_9(answers):
    judge.answer(answers, "ANSWER_9")
    data = Path(capstone.__file__).parent / "data"
    text = (data / "stories.txt").read_text("utf-8")
    tokenizer = capstone.load_tokenizer(data / "tokenizer")
    piece = text[int(0.9 * len(text)) :]
    right = len(piece) / len(tokenizer.encode(piece))
    judge.number(answers, "ANSWER_9", right, mistakes={
        "that is tokens a character; characters a token were asked for": 1 / right,
        "that is the whole text; only its last tenth was asked for":
            len(text) / len(tokenizer.encode(text)),
    })  # fmt: skip


def test_10(answers, rng):
    sizes = {"vocab_size": 11, "block_size": 6, "n_layer": 1, "n_head": 2, "n_embd": 8}
    model = capstone.GPT(capstone.GPTConfig("gpt2", **sizes), dtype=np.float64)
    model.flat[:] += rng.normal(0, 0.3, model.flat.shape)
    ids = rng.integers(0, 11, 40)
    kept = ids.copy()
    for first, block_size, stride in [(20, 6, 3), (1, 6, 6), (23, 5, 2), (39, 4, 4)]:
        arguments = model, ids, first, block_size, stride
        found = judge.lend(answers, "held_out_nats", *arguments)
        if not np.array_equal(ids, kept):
            judge.wrong("held_out_nats changed ids; copy the slice before you write -1 into it")
        expected, n = capstone.evaluate(*arguments)
        all_of_them = sum(
            block * model.loss(ids[None, at - 1 : at - 1 + block], ids[None, at : at + block])
            for at in range(max(1, first), len(ids), stride)
            for block in [min(block_size, len(ids) - at)]
        )
        mistakes = {
            "targets are counted several times: only the last `stride` of a window count": (
                all_of_them
            ),
            "this is the mean; the sum was asked for": expected / n,
        }
        where = f"held_out_nats with first={first}, block_size={block_size}, stride={stride}"
        judge.array(where, found, expected, 1e-9, mistakes=mistakes)


@pytest.mark.project
def test_11(answers):
    with tempfile.TemporaryDirectory() as directory:
        result = judge.call(answers, "my_model", directory)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            judge.wrong("my_model: expected two paths, of the checkpoint and of the text")
        checkpoint, path = map(Path, result)
        try:
            text = path.read_text("utf-8").replace("\r\n", "\n")
            model = capstone.load_model(checkpoint)
            tokenizer = capstone.load_tokenizer(checkpoint)
        except (OSError, ValueError) as error:
            judge.wrong(f"my_model: {error}")
    if len(text) < 50_000:
        judge.wrong(f"the text has {len(text):,} characters; expected at least 50,000")
    cut = int(0.9 * len(text))
    train, held = text[:cut], text[cut:]
    counts = Counter(train)
    letters = len({*train, *held})
    counting = sum(math.log((len(train) + letters) / (counts[c] + 1)) for c in held) / len(held)
    ids, first = tokenizer.encode(text), len(tokenizer.encode(train))
    size = model.config.block_size
    nats, _ = capstone.evaluate(model, ids, first, size, max(1, size // 2))
    ours = nats / len(held)
    told = f"{ours / math.log(2):.3f} bits a character; letters alone: {counting / math.log(2):.3f}"
    if not ours < counting:
        judge.wrong(f"{told}: not better yet")
    print(told)
