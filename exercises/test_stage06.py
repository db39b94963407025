"""Checks of the exercises of stage 6."""

import judge
import numpy as np
import pytest

import stage06_transformer as stage
from stage06_transformer import Tensor


def test_1(answers):
    found = np.ravel(judge.answer(answers, "ANSWER_1"))
    up, down = np.array([[1.0], [-1.0]]), np.array([[0.0, 1.0]])
    x = np.array([[7.0, -1.0]])
    h = x / 5
    mistakes = {
        "the MLP reads the row at size 1, not as it is": [8.4, -1.2 + 9.6],
        "the row itself is lost: results are added to it": [1.4, -0.2 + 1.6],
        "attention's result is added before the MLP has its turn": [7, -1 + 1.6],
        "the MLP's result is missing": (x + h)[0],
        "attention adds the row at size 1, not the row": [14, -2 + 1.6],
    }
    judge.array("ANSWER_1", found, stage.small_block(x, up, down)[0], 1e-3, mistakes=mistakes)


def test_2(answers):
    shapes = stage.param_shapes(stage.PRESETS["gpt2"])
    block = sum(np.prod(shape) for name, shape in shapes.items() if ".h.0." in name)
    C, N = 768, stage.count_params(stage.PRESETS["gpt2"])
    mistakes = {
        "the norms and biases are missing": 12 * C * C,
        "the biases are missing": 12 * C * C + 4 * C,
        "the norms are missing": 12 * C * C + 9 * C,
    }
    judge.number(answers, "ANSWER_2", block, digits=8, mistakes=mistakes)
    table = 50257 * C
    mistakes = {
        "the head is tied, so the table counts once": 2 * table / (N + table),
        "the table is compared with the other weights, not with all": table / (N - table),
        "all 12 blocks count": table / (table + block),
    }
    judge.number(answers, "ANSWER_2B", table / N, mistakes=mistakes)


def test_3(answers):
    llama = stage.PRESETS["llama-3-8b"]
    right = stage.memory_budget(llama, width=2)["kv_cache"]
    mistakes = {
        "keys and values: both are kept": right / 2,
        "the heads share keys and values: count 8 of them, not 32": 4 * right,
        "every layer has its own": right / 32,
        "a number takes 2 bytes": right / 2,
    }
    judge.number(answers, "ANSWER_3", right, mistakes=mistakes)
    judge.number(answers, "ANSWER_3B", llama.n_head / llama.n_kv_head)


def test_4(answers):
    remarks = {
        "a": "a cosine does not depend on a vector's length",
        "b": "look at what section 6 says of |g|²",
        "c": "nothing clips the gradient in this measurement",
        "d": "one direction a row is lost in each norm, and pre-norm has as many of them",
    }
    judge.choice(answers, "ANSWER_4", 4, "67c91757eb4e", remarks)


def test_5(answers, rng):
    for C in (3, 8):
        x = rng.normal(size=C) * 3 + 1
        found = judge.numeric(
            "null_directions", judge.call(answers, "null_directions", x.copy()), "two rows"
        )
        if found.shape != (2, C):
            judge.wrong(f"null_directions has the shape {found.shape}; expected {(2, C)}")
        if not np.all(np.isfinite(found)):
            judge.wrong("null_directions: a direction is not finite")
        for name, dy in zip(("first", "second"), found):
            tape = []
            row = Tensor(x[None], tape=tape)
            stage.normalise(row, Tensor(np.ones(C)), eps=0.0).backward(dy[None].astype(float))
            size = np.linalg.norm(dy)
            if size == 0:
                judge.wrong(f"the {name} direction is 0 everywhere")
            if np.linalg.norm(row.grad) > 1e-9 * size:
                judge.wrong(f"the {name} direction has dx ≠ 0")
        if np.linalg.matrix_rank(found, tol=1e-9) < 2:
            judge.wrong("the two directions are one and the same, up to a factor")


def test_6(answers, rng):
    data, w = rng.uniform(0.5, 2, (3, 4)), rng.normal(size=(3, 4))
    for k in (2, -0.5, 3.0):
        x = Tensor(data, tape=[])
        y = judge.call(answers, "power", x, k)
        if not isinstance(y, Tensor):
            judge.wrong(f"power returns {type(y).__name__}; expected a Tensor")
        judge.array("power(x, k).data", y.data, data**k)
        if y.tape is None:
            judge.wrong("power: the result is on no tape; name its parents")
        try:
            y.backward(w)
        except (TypeError, ValueError) as error:
            judge.wrong(f"power: backward says: {error} (pull returns one gradient a parent)")
        mistakes = {
            "the upstream gradient dy is missing": k * data ** (k - 1),
            "the factor k is missing": w * data ** (k - 1),
            "the exponent of the slope is k - 1": w * k * data**k,
        }
        judge.array("the gradient of x", x.grad, w * k * data ** (k - 1), mistakes=mistakes)


def test_7(answers, rng):
    judge.answer(answers, "parallel_block")
    shape = {"vocab_size": 7, "block_size": 5, "n_layer": 2, "n_head": 2, "n_embd": 8}
    model = stage.Transformer(stage.TransformerConfig("llama", **shape), 0, np.float64)
    for p in model.params.values():
        p += rng.normal(0, 0.3, p.shape)
    mask, config = stage.attention_mask(5), model.config
    layer = "model.layers.0."
    p = {k[len(layer) :]: Tensor(v) for k, v in model.params.items() if k.startswith(layer)}
    x = Tensor(rng.normal(size=(2, 5, 8)))
    h = stage.normalise(x, p["input_layernorm.weight"], None, config.norm_eps, centre=False)
    last = p["post_attention_layernorm.weight"]
    h2 = stage.normalise(x, last, None, config.norm_eps, centre=False)
    attended, thought = stage.attention(h, p, config, mask), stage.mlp(h, p, config)
    mistakes = {
        "that is the usual block: the MLP sees what attention added": (
            stage.block(x, p, config, mask).data
        ),
        "the row itself is not added": (attended + thought).data,
        "both halves share one norm, the first": (x + attended + stage.mlp(h2, p, config)).data,
        "the row is added twice": (x + x + attended + thought).data,
    }
    found = judge.call(answers, "parallel_block", x, p, config, mask, False, None)
    if not isinstance(found, Tensor):
        judge.wrong(f"parallel_block returns {type(found).__name__}; expected a Tensor")
    expected = (x + attended + thought).data
    judge.array("parallel_block", found.data, expected, mistakes=mistakes)
    model.block = answers.names["parallel_block"]
    idx = rng.integers(0, 7, (2, 5))
    _, grads = model.loss_and_grads(idx, idx)
    unused = grads["model.layers.1.post_attention_layernorm.weight"]
    if np.any(unused) or not np.all(np.isfinite(grads["model.layers.0.mlp.up_proj.weight"])):
        judge.wrong("parallel_block: its gradients are not those of one norm and one sum")


def test_8(answers, rng):
    for n in (1, 2, 3, 5):
        arrays = [rng.normal(size=(3, 4)) for _ in range(n)]
        found = judge.call(answers, "ring", [array.copy() for array in arrays])
        if not isinstance(found, (list, tuple, np.ndarray)):
            judge.wrong(f"ring returns {found!r:.60}; expected a list of {n} arrays")
        if len(found) != n:
            judge.wrong(f"ring: {n} workers, but {len(found)} arrays")
        for w, held in enumerate(found):
            told = f"what worker {w} of {n} holds"
            judge.array(told, held, np.sum(arrays, axis=0), n=n, mistakes={
                "its own array, without the others'": arrays[w],
            })  # fmt: skip


def test_9(answers):
    idle = {M: 7 / (M + 7) for M in range(1, 200)}
    right = min(M for M, share in idle.items() if share < 0.1 - 1e-12)
    judge.number(answers, "ANSWER_9", right, digits=4, mistakes={
        "then exactly a tenth is idle; less was asked for": right - 1,
        "S - 1 ticks are idle, not S": 73,
    })  # fmt: skip


def test_10(answers):
    judge.answer(answers, "ANSWER_10")
    variances, cosine = stage.depth_probe(24, 0)
    b2 = 1 / stage.depth_probe(1, 0, post_norm=True)[1] - 1
    right = stage.pre_norm_law(b2, variances) / cosine
    judge.number(answers, "ANSWER_10", right, digits=3, mistakes={
        "the other way round: the law's divided by the measured one": 1 / right,
    })  # fmt: skip


def test_11(answers, rng):
    for _ in range(10):
        A, B = rng.uniform(100, 500, 2)
        alpha, beta = rng.uniform(0.2, 0.5, 2)
        K = 10 ** rng.uniform(17, 23)
        right = (alpha * A / (beta * B) * (K / 6) ** beta) ** (1 / (alpha + beta))
        mistakes = {
            "that is the best D, not N": K / 6 / right,
            "K = 6ND: the 6 is missing": right * 6 ** (beta / (alpha + beta)),
            "A and B are exchanged": (beta * B / (alpha * A) * (K / 6) ** beta)
            ** (1 / (alpha + beta)),
            "the slopes have the factors α and β": (A / B * (K / 6) ** beta)
            ** (1 / (alpha + beta)),
        }
        found = judge.call(answers, "best_size", K, A, B, alpha, beta)
        judge.array("best_size", found, right, 1e-6, mistakes=mistakes)

        def loss(N, K=K, A=A, B=B, alpha=alpha, beta=beta):
            return A / N**alpha + B / (K / 6 / N) ** beta

        if not loss(found) <= min(loss(found * 0.99), loss(found * 1.01)):
            judge.wrong("best_size: a size one per cent away has a smaller loss")


def test_12(answers, rng):
    for _ in range(5):
        s2, b2 = rng.uniform(0.1, 2, 2)
        additions = 20_000
        v = 1 + s2 * (np.arange(additions) + 0.5) / additions
        right = float(np.exp(-0.5 * np.log1p(b2 / additions / v).sum()))
        mistakes = {
            "the power -½ of each factor is lost": right**2,
            "the stream grows: v does not stay 1": np.exp(-b2 / 2),
            "that is 1/√(1 + s²), which holds for b = s only": (1 + s2) ** -0.5,
        }
        found = judge.call(answers, "cosine_without_end", s2, b2)
        judge.array("cosine_without_end", found, right, 1e-4, mistakes=mistakes)


@pytest.mark.project
def test_14(answers):
    result = judge.call(answers, "my_setting")
    if not isinstance(result, (tuple, list)) or len(result) != 2 or not isinstance(result[0], dict):
        judge.wrong("my_setting: expected a dict of fields and a learning rate")
    lab = stage.Lab(False, 0)
    ids = lab.ids[: lab.start]

    def held_out(shape, rate):
        shape = {**shape, "vocab_size": len(lab.letters) - 1, "block_size": 32}
        model = stage.Transformer(stage.TransformerConfig(**shape), 0)
        weights = stage.count_params(model.config)
        if weights > 17_000:
            judge.wrong(f"my_setting has {weights:,} weights; expected at most 17,000")
        stage.train(model, ids, 250, 16, rate)
        return stage.held_out_loss(model, lab.ids, lab.start)

    ours = held_out(*result)
    theirs = held_out({"arch": "llama", "n_layer": 1, "n_head": 1, "n_embd": 32}, 0.02)
    if not ours < theirs:
        judge.wrong(
            f"{ours:.3f} nats held out; the report's model has {theirs:.3f}: not better yet"
        )
