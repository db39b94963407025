"""Checks of the exercises of stage 9."""

import math

import judge
import numpy as np
import pytest

import stage09_lora as stage


def test_1(answers):
    first = judge.answer(answers, "ANSWER_1")
    x, wanted, W = np.array([1.0, 2.0]), np.array([3.0, 2.0]), np.eye(2)
    A, B = np.array([[1.0], [1.0]]), np.zeros((1, 2))
    _, _, B1 = stage.lora_step(x, wanted, W, A, B, 1 / 6)
    mistakes = {
        "h = xA multiplies dy, too": -B1[0] / 3,
        "that is dB, before it is multiplied by the learning rate": B1[0] * 6,
        "the step goes down: against the gradient": -B1[0],
        "h = x·A is 1·1 + 2·1": B1[0] * 2 / 3,
    }
    judge.array(
        "ANSWER_1", np.ravel(judge.numeric("ANSWER_1", first)), B1[0], 1e-3, mistakes=mistakes
    )
    second = judge.answer(answers, "ANSWER_1B")
    _, A2, _ = stage.lora_step(x, wanted, W, A, B1, 1 / 6)
    mistakes = {
        "in the second step B is no longer 0, so A moves": A[:, 0],
        "the step goes down: against the gradient": 2 * A[:, 0] - A2[:, 0],
        "dA[i] has the factor x[i]": A[:, 0] - 1 / 6,
    }
    given = np.ravel(judge.numeric("ANSWER_1B", second))
    judge.array("ANSWER_1B", given, A2[:, 0], 1e-3, mistakes=mistakes)


def test_2(answers):
    mistakes = {
        "A is (in, r) and B is (r, out): they have r·(in + out) numbers": 64.0,
        "both thin matrices count": 64.0 * 256 / 256,
        "LoRA trains two matrices; this counts one of them": 256.0,
    }
    judge.number(answers, "ANSWER_2", 64 * 256 / (64 + 256), mistakes=mistakes)


def test_3(answers):
    remarks = {
        "a": "one of the two gradients is not 0; which?",
        "b": "compute both gradients with A = 0",
        "c": "what is AB if A = 0?",
        "d": "one of the two gradients is 0 as long as A is",
    }
    judge.choice(answers, "ANSWER_3", 3, "c33a1ba17d71", remarks)


def test_4(answers, rng):
    G, A, B = rng.normal(size=(5, 7)), rng.normal(size=(5, 2)), rng.normal(size=(2, 7))
    scale = 1.7
    result = judge.call(answers, "lora_gradients", G, A, B, scale)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        judge.wrong("lora_gradients: expected two arrays")
    lost = "the scale s is missing"
    judge.array("∂L/∂A", result[0], scale * G @ B.T, mistakes={lost: G @ B.T})
    judge.array("∂L/∂B", result[1], scale * A.T @ G, mistakes={lost: A.T @ G})


def test_5(answers, rng):
    for _ in range(3):
        x, W = rng.normal(size=(4, 5)), rng.normal(size=(5, 3))
        A, B, scale = rng.normal(size=(5, 2)), rng.normal(size=(2, 3)), 1.3
        dy = rng.normal(size=(4, 3))
        result = judge.call(answers, "lora_back", dy, x, W, A, B, scale)
        if not isinstance(result, (tuple, list)) or len(result) != 3:
            judge.wrong("lora_back: expected three arrays")
        names = ("dx", "dA", "dB")
        right = stage.lora_backward(dy, stage.lora_forward(x, W, A, B, scale)[1])
        through_w = {"that is the path through W alone": dy @ W.T}
        for name, found, expected in zip(names, result, right):
            judge.array(name, found, expected, mistakes=through_w if name == "dx" else {})


def test_6(answers, rng):
    x, down, up = rng.normal(size=(4, 6)), rng.normal(size=(6, 3)), rng.normal(size=(3, 6))
    result = judge.call(answers, "adapter_forward", x, down, up)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        judge.wrong("adapter_forward: expected two things, y and a cache")
    a, slope = stage.gelu_forward(x @ down)
    mistakes = {
        "x itself has to be added": a @ up,
        "GELU is missing": x + x @ down @ up,
    }
    judge.array("y", result[0], x + a @ up, mistakes=mistakes)
    dy = rng.normal(size=x.shape)
    grads = judge.call(answers, "adapter_backward", dy, result[1])
    if not isinstance(grads, (tuple, list)) or len(grads) != 3:
        judge.wrong("adapter_backward: expected three arrays")
    du = dy @ up.T * slope
    no_slope = "the slope of GELU is missing"
    mistakes = {
        "x reaches y straight, too": du @ down.T,
        no_slope: dy + dy @ up.T @ down.T,
        "x reaches y through the two matrices, too": dy,
    }
    judge.array("dx", grads[0], dy + du @ down.T, mistakes=mistakes)
    judge.array("ddown", grads[1], x.T @ du, mistakes={no_slope: x.T @ (dy @ up.T)})
    judge.array(
        "dup", grads[2], a.T @ dy, mistakes={"what up sees is GELU's output": (x @ down).T @ dy}
    )


def test_7(answers):
    mistakes = {
        "a block's scale is shared by its 64 weights": 36.0,
        "the codes themselves take 4 bits, too": 0.5,
    }
    judge.number(answers, "ANSWER_7", 4 + 32 / 64, mistakes=mistakes)
    mistakes = {
        "the scales' own scales are missing: 32 bits for 256 blocks": 4 + 8 / 64,
        "256 scales, not 256 weights, share the 32 bits": 4 + 8 / 64 + 32 / 256,
    }
    judge.number(answers, "ANSWER_7B", 4 + 8 / 64 + 32 / 64 / 256, digits=5, mistakes=mistakes)


def test_8(answers, rng):
    W = rng.normal(size=(5, 40)) * np.array([[1], [10], [0.01], [3], [0]])
    result = judge.call(answers, "quantize_rows", W.copy())
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        judge.wrong("quantize_rows: expected codes and scales")
    codes, scales = (np.asarray(part) for part in result)
    if codes.dtype != np.int8:
        judge.wrong(f"the codes are {codes.dtype}; expected int8")
    if codes.shape != W.shape:
        judge.wrong(f"the codes have the shape {codes.shape}; expected {W.shape}")
    largest = np.abs(W).max(1)
    expected = np.where(largest > 0, largest / 127, 1.0)
    mistakes = {
        "the largest |w| becomes ±127, not ±128": np.where(largest > 0, largest / 128, 1.0),
        "one scale for the whole matrix; each row has its own": np.full(5, largest.max() / 127),
        "the largest |w|, not the largest w": np.where(largest > 0, W.max(1) / 127, 1.0),
    }
    judge.array("the scales", scales, expected, mistakes=mistakes)
    error = np.abs(codes * scales[:, None] - W)
    if not np.all(error <= 0.5001 * expected[:, None]):
        cut = np.all(np.abs(codes) <= np.abs(W / expected[:, None]) + 1e-9)
        judge.wrong(
            "an error is more than half a scale" + (": cut off, not rounded" if cut else "")
        )


def test_9(answers):
    judge.answer(answers, "ANSWER_9")
    W = np.random.default_rng(0).normal(size=(512, 512))
    errors = []
    for block_size in (512, 64):
        stored = stage.dequantize_nf4(stage.quantize_nf4(W, block_size))
        errors.append(np.linalg.norm(stored - W) / np.linalg.norm(W))
    right = errors[0] / errors[1]
    judge.number(answers, "ANSWER_9", right, mistakes={
        "the other way round": 1 / right,
        "that is the quotient of the squares; take the root": right**2,
    })  # fmt: skip


def test_10(answers, rng):
    A1, B1 = rng.normal(size=(6, 2)), rng.normal(size=(2, 5))
    A2, B2 = rng.normal(size=(6, 3)), rng.normal(size=(3, 5))
    result = judge.call(answers, "joined", A1, B1, 0.5, A2, B2, 2.0)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        judge.wrong("joined: expected two matrices")
    A, B = (judge.numeric("joined", part) for part in result)
    if A.shape != (6, 5) or B.shape != (5, 5):
        judge.wrong(f"joined has the shapes {A.shape} and {B.shape}; expected (6, 5) and (5, 5)")
    mistakes = {
        "the scales are missing": A1 @ B1 + A2 @ B2,
        "a scale stands on both sides": 0.25 * A1 @ B1 + 4 * A2 @ B2,
        "the two scales are exchanged": 2.0 * A1 @ B1 + 0.5 * A2 @ B2,
    }
    judge.array("AB", A @ B, 0.5 * A1 @ B1 + 2.0 * A2 @ B2, mistakes=mistakes)


def test_11(answers, rng):
    for shape, rank in (((6, 9), 2), ((8, 5), 3)):
        W = rng.normal(size=shape)
        result = judge.call(answers, "pissa", W.copy(), rank)
        if not isinstance(result, (tuple, list)) or len(result) != 3:
            judge.wrong("pissa: expected three matrices, rest, A and B")
        rest, A, B = (judge.numeric("pissa", part) for part in result)
        if A.shape != (shape[0], rank) or B.shape != (rank, shape[1]):
            judge.wrong(f"A is {A.shape} and B is {B.shape} for a W of {shape} and rank {rank}")
        judge.array("rest + AB", rest + A @ B, W, mistakes={"rest is W less AB": W + A @ B})
        nearest, _ = stage.low_rank(W, rank)
        _, sigma, _ = np.linalg.svd(W)
        judge.array("AB", A @ B, nearest, 1e-9, mistakes={
            "the singular values count twice: √σ for each of A and B":
                stage.low_rank(W @ W.T @ W, rank)[0],
        })  # fmt: skip
        uneven = "the singular values stand on one side only; share them"
        judge.array("AᵀA", A.T @ A, np.diag(sigma[:rank]), 1e-9, mistakes={
            uneven: np.diag(sigma[:rank] ** 2),
            "the singular values stand on the side of B only; share them": np.eye(rank),
        })  # fmt: skip


@pytest.mark.project
def test_13(answers):
    judge.answer(answers, "my_plugs")
    corpora, vocab_size = stage.read_corpora(False)
    size, steps, adapt_steps = stage.sizes(False)
    params, _ = stage.pretrain(corpora, vocab_size, size, steps, 0)
    n_head = size[2]
    ids, first = corpora["verses"]

    def bits(params, adapters=None):
        return stage.score(params, ids, first, n_head, adapters) / math.log(2)

    result = judge.call(answers, "my_plugs", params, n_head)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        judge.wrong("my_plugs: expected a dict of plugs and a learning rate")
    adapters, rate = result
    trained = sum(p.size for plug in adapters.values() for p in plug.params.values())
    if trained > 1100:
        judge.wrong(f"my_plugs trains {trained:,} numbers; expected at most 1,100")
    base = bits(params)
    full, _, _ = stage.adapt("full fine-tuning", params, n_head, ids[:first], adapt_steps, 0)
    rng = np.random.default_rng([0, 1])
    stage.fit(params, ids[:first], n_head, adapt_steps, rate, rng, adapters)
    share = (base - bits(params, adapters)) / (base - bits(*full[:2]))
    if share < 0.85:
        judge.wrong(f"{trained:,} numbers make {share:.0%} of the gain; expected 85 %")
