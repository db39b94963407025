"""Stage 9: every gradient against central differences, every plug against what it claims."""

import json
import math
import re
import time
import tracemalloc

import numpy as np
import pytest
from conftest import (
    ROOT,
    assert_gradients,
    central_difference,
    check_held_out_line,
    relative_error,
    worst_entry,
)

import capstone_gpt as gpt
import stage09_lora as s

H = 2
TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@pytest.fixture
def params(rng):
    """A float64 model of two layers, every entry random so that nothing hides behind a zero."""
    start = s.init_params(vocab_size=7, block_size=6, n_layer=2, width=4, dtype=np.float64)
    return {name: p + rng.normal(0, 0.3, p.shape) for name, p in start.items()}


def shake(plugs, rng):
    """Random values in every parameter of every plug."""
    for plug in plugs.values():
        for p in plug.params.values():
            p += rng.normal(0, 0.5, p.shape)
    return plugs


def plugs_of(kind, params, rng):
    """One plug of each kind at every place it fits."""
    layers = ("transformer.h.0", "transformer.h.1")
    f8 = np.float64
    made = {
        "none": lambda: {},
        "lora": lambda: s.apply_lora(params, TARGETS, 3, 2.0),
        "rslora": lambda: s.apply_lora(params, ["c_attn"], 3, 2.0, rslora=True),
        "dora": lambda: s.apply_lora(params, ["mlp.c_proj"], 2, 2.0, layer=s.DoRALinear),
        "prompt": lambda: {"transformer.prompt": s.PromptTuning(np.zeros((3, 4)))},
        "ia3": lambda: (
            {f"{h}.attn.kv": s.IA3(8, f8) for h in layers}
            | {f"{h}.mlp.act": s.IA3(16, f8) for h in layers}
        ),
    }
    return shake(made[kind](), rng)


KINDS = ("none", "lora", "rslora", "dora", "prompt", "ia3")
IDX = np.array([[1, 2, 3, 2, 6], [0, 5, 5, 4, 1]])


# --- the first page


def test_the_first_page_in_numbers():
    W, x, wanted = np.array([[1.0, 0], [2, 1]]), np.array([2.0, 1]), np.array([4.0, 3])
    A, B = np.array([[1.0], [0]]), np.zeros((1, 2))
    y, A, B = s.lora_step(x, wanted, W, A, B, 1 / 8)
    assert (y == [4, 1]).all() and (A.T == [1, 0]).all() and (B == [0, 0.5]).all()
    y, A, B = s.lora_step(x, wanted, W, A, B, 1 / 8)
    assert (y == [4, 2]).all() and (A.T == [1.125, 0.0625]).all() and (B == [0, 0.75]).all()
    y, _, _ = s.lora_step(x, wanted, W, A, B, 1 / 8)
    np.testing.assert_allclose(y, [4, 2.734], atol=5e-4)
    np.testing.assert_allclose(A @ B, [[0, 0.844], [0, 0.047]], atol=5e-4)
    np.testing.assert_allclose(x @ (W + A @ B), y)
    G = np.outer(x, [0, -2])  # at first
    assert (G == [[0, -4], [0, -2]]).all()


def test_the_step_goes_down_the_measured_slope(rng):
    x, wanted, W, A, B = (rng.normal(size=n) for n in [3, 2, (3, 2), (3, 2), (2, 2)])
    _, newA, newB = s.lora_step(x, wanted, W, A, B, 1.0)
    loss = lambda: 0.5 * ((x @ (W + A @ B) - wanted) ** 2).sum()  # noqa: E731
    assert relative_error(A - newA, central_difference(loss, A)) < 1e-6
    assert relative_error(B - newB, central_difference(loss, B)) < 1e-6


# --- gradients


@pytest.mark.parametrize("kind", KINDS)
def test_whole_model_gradients(kind, params, rng):
    plugs = plugs_of(kind, params, rng)
    targets = np.array([[2, 3, -1, 6, 0], [5, -1, 4, 1, 1]])
    logits, cache = s.gpt_forward(params, IDX, H, plugs)
    _, dlogits = s.cross_entropy(logits, targets)
    # LoRA's and DoRA's matrices are frozen: the plug replaces them
    tuned = {name: p for name, p in params.items() if name not in plugs}
    grads = s.gpt_backward(dlogits, cache, list(tuned))
    tuned |= {f"{at}:{k}": p for at, plug in plugs.items() for k, p in plug.params.items()}
    assert grads.keys() == tuned.keys()

    def loss():
        return s.cross_entropy(s.gpt_forward(params, IDX, H, plugs)[0], targets)[0]

    for name, p in tuned.items():
        flat = p.reshape(-1)
        some, numeric = rng.choice(flat.size, min(3, flat.size), replace=False), []
        for i in some:
            old, h = flat[i], 1e-5
            flat[i] = old + h
            up = loss()
            flat[i] = old - h
            numeric.append((up - loss()) / (2 * h))
            flat[i] = old
        # Rounding leaves ε·loss/h, some 1e-10: below 1e-3 an entry is not known to six digits.
        error, at = worst_entry(grads[name].reshape(-1)[some], numeric, floor=1e-3)
        assert error < 1e-6, (name, some[at])


@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 3, 5), (3, 1, 5)])
@pytest.mark.parametrize("layer", [s.LoRALinear, s.DoRALinear])
def test_linear_plugs_gradients(layer, shape, rng):
    plug = layer(rng.normal(size=(5, 7)), 3, 1.7)
    shake({"": plug}, rng)
    x = rng.normal(size=shape)

    def analytic(dy):
        dx, grads = plug.backward(dy, plug.forward(x)[1])
        return [dx, *(grads[k] for k in plug.params)]

    assert_gradients(lambda: plug.forward(x)[0], [x, *plug.params.values()], analytic)


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: s.PromptTuning(np.zeros((2, 5))), (3, 1, 5)),
        (lambda: s.IA3(5, np.float64), (3, 1, 5)),
        (lambda: s.IA3(4, np.float64), (1, 4)),
    ],
)
def test_other_plugs_gradients(make, shape, rng):
    plug, x = make(), rng.normal(size=shape)
    shake({"": plug}, rng)

    def analytic(dy):
        dx, grads = plug.backward(dy, plug.forward(x)[1])
        assert grads.keys() == plug.params.keys()
        return [dx, *(grads[k] for k in plug.params)]

    assert_gradients(lambda: plug.forward(x)[0], [x, *plug.params.values()], analytic)


def test_attention_gradients(rng):
    q, k, v = (rng.normal(size=(2, 1, 4, 5)) for _ in range(3))
    forward = lambda: s.attention_forward(q, k, v)  # noqa: E731
    assert_gradients(
        lambda: forward()[0], [q, k, v], lambda dy: s.attention_backward(dy, forward()[1])
    )


def test_layer_gradients(rng):
    x, w, b = rng.normal(size=(2, 3, 5)), rng.normal(size=5), rng.normal(size=5)
    norm = lambda: s.layernorm_forward(x, w, b)  # noqa: E731
    assert_gradients(lambda: norm()[0], [x, w, b], lambda dy: s.layernorm_backward(dy, norm()[1]))
    assert_gradients(lambda: s.gelu_forward(x)[0], [x], lambda dy: [dy * s.gelu_forward(x)[1]])
    tiny = s.layernorm_forward(np.array([-0.001, 0.001]), np.ones(2), np.zeros(2))[0]
    np.testing.assert_allclose(tiny, [-1e-3 / 1.1e-5**0.5, 1e-3 / 1.1e-5**0.5])  # var 1e-6, ε 1e-5
    huge = np.array([[[1e4, 0.0, -1e4]]])
    assert (
        s.cross_entropy(huge, np.array([[2]]))[0] == 2e4
        and s.cross_entropy(huge, np.array([[0]]))[0] == 0
    )
    logits, targets = rng.normal(size=(2, 3, 5)), np.array([[0, -1, 4], [-1, 2, 2]])
    numeric = central_difference(lambda: s.cross_entropy(logits, targets)[0], logits)
    assert relative_error(s.cross_entropy(logits, targets)[1], numeric) < 1e-6


# --- what LoRA claims


def test_lora_is_the_dense_update_and_its_gradients_follow_from_the_dense_one(rng):
    x, W, A, B = (rng.normal(size=n) for n in [(4, 3, 5), (5, 7), (5, 2), (2, 7)])
    dy, scale = rng.normal(size=(4, 3, 7)), 1.5
    y, cache = s.lora_forward(x, W, A, B, scale)
    np.testing.assert_allclose(y, x @ (W + scale * A @ B), rtol=1e-12)
    dx, dA, dB = s.lora_backward(dy, cache)
    G = s.rows(x).T @ s.rows(dy)
    for got, want in [
        (dA, scale * G @ B.T),
        (dB, scale * A.T @ G),
        (dx, dy @ (W + scale * A @ B).T),
    ]:
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


def test_layer_starts_at_the_base_and_only_b_moves_first(rng):
    W, x, dy = rng.normal(size=(6, 4)), rng.normal(size=(3, 6)), rng.normal(size=(3, 4))
    layer = s.LoRALinear(W, 2, 8)
    y, cache = layer.forward(x)
    assert np.array_equal(y, x @ W)
    _, grads = layer.backward(dy, cache)
    assert not grads["A"].any() and grads["B"].all()
    assert layer.params["A"].shape == (6, 2) and layer.params["B"].shape == (2, 4)
    np.testing.assert_allclose(s.DoRALinear(W, 2, 8).forward(x)[0], x @ W, rtol=1e-12)


@pytest.mark.parametrize("layer", [s.LoRALinear, s.DoRALinear])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-13)])
def test_merged_equals_plugged_in_and_the_base_is_never_written(layer, dtype, tolerance, rng):
    W = rng.normal(size=(6, 4)).astype(dtype)
    original, x = W.copy(), rng.normal(size=(2, 3, 6)).astype(dtype)
    plug = layer(W, 2, 3.0, seed=1)
    shake({"": plug}, rng)
    apart, together = plug.forward(x)[0], x @ plug.merge()
    assert np.abs(together - apart).max() < tolerance * np.abs(apart).max()
    assert np.abs(together - x @ W).max() > 0.1
    assert np.array_equal(W, original) and plug.base is W and plug.merge() is not plug.merge()
    assert apart.dtype == together.dtype == dtype


def test_scales_and_the_size_of_the_first_step(rng):
    W, G = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    assert s.LoRALinear(W, 4, 6).scale == 1.5
    assert s.LoRALinear(W, 4, 6, rslora=True).scale == 3
    for rank in (1, 9):  # E[s² A Aᵀ G] = s² r/in G, which rsLoRA makes independent of r
        layers = [s.LoRALinear(W, rank, 2, seed, rslora=True) for seed in range(3000)]
        steps = [a.scale**2 * a.params["A"] @ (a.params["A"].T @ G) for a in layers]
        expected = 4 / 20 * G
        assert np.linalg.norm(np.mean(steps, 0) - expected) < 0.14 * np.linalg.norm(expected)


def test_seeds(rng):
    W = rng.normal(size=(4, 4))
    first, again, other = (s.LoRALinear(W, 2, 1, seed).params["A"] for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_dora_separates_length_and_direction(rng):
    plug = s.DoRALinear(rng.normal(size=(6, 4)), 2, 3.0)
    shake({"": plug}, rng)
    np.testing.assert_allclose(np.linalg.norm(plug.merge(), axis=0), abs(plug.params["m"]))
    x = rng.normal(size=(5, 6))
    np.testing.assert_allclose(plug.forward(x)[0], x @ plug.merge(), rtol=1e-11)
    with pytest.raises(ValueError, match="column of zeros"):
        s.DoRALinear(np.zeros((3, 2)), 1, 1)


# --- four bits


def test_nf4_levels_are_quantiles_of_the_normal_distribution():
    assert len(s.LEVELS) == 16 and s.LEVELS[0] == -1 and s.LEVELS[-1] == 1 and s.LEVELS[7] == 0
    assert (np.diff(s.LEVELS) > 0).all()
    np.testing.assert_allclose(s.LEVELS[[1, 8, 14]], [-0.6961928, 0.0795803, 0.7229568], atol=1e-6)
    phi = lambda x: (1 + math.erf(x / math.sqrt(2))) / 2  # noqa: E731
    one = 1 - (1 / 32 + 1 / 30) / 2  # the probability below level 1 on the quantiles' scale
    scale = s.NormalDist().inv_cdf(one)
    below = [phi(level * scale) for level in s.LEVELS]
    np.testing.assert_allclose(np.diff(below[7:]), (one - 0.5) / 8, atol=1e-9)
    np.testing.assert_allclose(np.diff(below[:8]), (one - 0.5) / 7, atol=1e-9)


def test_how_often_blocks_of_normal_numbers_use_the_levels(rng):
    W = rng.normal(size=64 * 8000)
    q = s.quantize_nf4(W)
    codes = np.stack([q.packed >> 4, q.packed & 15], -1).ravel()
    shares = np.bincount(codes, minlength=16) / codes.size
    np.testing.assert_allclose(shares[[15, 6]], [0.017, 0.092], atol=0.0005)
    assert shares.argmin() == 15 and shares.argmax() == 6


def test_nf4_is_nearer_to_normal_weights_than_even_steps(rng):
    W = rng.normal(size=64000)
    error = lambda What: np.sqrt(np.mean((What - W) ** 2))  # noqa: E731
    scale = np.repeat(abs(W.reshape(-1, 64)).max(-1), 64)
    assert error(s.dequantize_nf4(s.quantize_nf4(W))) < error(np.round(W / scale * 7) * scale / 7)
    nearest = s.LEVELS[abs(W[:640, None] / scale[:640, None] - s.LEVELS).argmin(1)] * scale[:640]
    np.testing.assert_allclose(s.dequantize_nf4(s.quantize_nf4(W[:640])), nearest)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (64, 2), (65,), (7, 19), (0, 3)])
@pytest.mark.parametrize("block_size", [1, 3, 64])
def test_nf4_round_trip(shape, block_size, rng):
    W = rng.normal(size=shape).astype(np.float32)
    q = s.quantize_nf4(W, block_size)
    What = s.dequantize_nf4(q)
    assert What.shape == shape and What.dtype == np.float32
    gap = np.diff(s.LEVELS).max() / 2
    bound = np.repeat(q.absmax, block_size)[: W.size].reshape(shape) * gap
    assert (abs(What - W) <= bound * (1 + 1e-5) + 1e-7).all()
    assert np.array_equal(s.dequantize_nf4(s.quantize_nf4(What, block_size)), What), "idempotent"
    assert np.array_equal(s.dequantize_nf4(tuple(q)), What)
    np.testing.assert_allclose(s.dequantize_nf4(s.quantize_nf4(-What * 0, block_size)), 0)


def test_nf4_bytes_and_bad_input(rng):
    q = s.quantize_nf4(np.ones((64, 64), np.float32))
    assert q.packed.nbytes + q.absmax.nbytes == 64 * 64 * 4.5 / 8
    for bad in ([1.0, math.nan], [math.inf], [1, 2]):
        with pytest.raises(ValueError, match="finite floats"):
            s.quantize_nf4(np.array(bad))
    with pytest.raises(ValueError, match="block_size.*not 0"):
        s.quantize_nf4(np.ones(3), 0)
    for block_size in (0, -1, 2.0):
        with pytest.raises(ValueError, match="block_size.*at least 1, not"):
            s.dequantize_nf4(q._replace(block_size=block_size))


def test_lora_over_a_quantised_base(params, rng):
    matrices = {
        n: s.quantize_nf4(p)
        for n, p in params.items()
        if n.startswith("transformer.h") and p.ndim == 2
    }
    rounded = params | {n: s.dequantize_nf4(q) for n, q in matrices.items()}
    bare, _ = s.gpt_forward(params | matrices, IDX, H)
    plugs = s.apply_lora(params | matrices, TARGETS, 2, 4)
    assert isinstance(plugs["transformer.h.0.mlp.c_fc.weight"].base, s.NF4)
    np.testing.assert_allclose(s.gpt_forward(params | matrices, IDX, H, plugs)[0], bare, rtol=1e-12)
    shake(plugs, rng)
    merged = rounded | {n: a.merge() for n, a in plugs.items()}
    apart = s.gpt_forward(params | matrices, IDX, H, plugs)[0]
    np.testing.assert_allclose(s.gpt_forward(merged, IDX, H)[0], apart, rtol=1e-10)


# --- the model with its plugs


@pytest.mark.parametrize("kind", KINDS)
def test_causality(kind, params, rng):
    plugs = plugs_of(kind, params, rng)
    before = s.gpt_forward(params, IDX, H, plugs)[0]
    assert before.shape == (2, 5, 7)
    changed = IDX.copy()
    changed[:, 3] = (changed[:, 3] + 1) % 7
    after = s.gpt_forward(params, changed, H, plugs)[0]
    np.testing.assert_allclose(after[:, :3], before[:, :3], rtol=1e-12)
    assert (abs(after[:, 3:] - before[:, 3:]).max(-1) > 1e-6).all()


def test_frozen_stays_frozen_and_adapters_learn(params):
    f4 = {n: p.astype(np.float32) for n, p in params.items()}
    copies = {n: p.copy() for n, p in f4.items()}
    plugs = s.apply_lora(f4, TARGETS, 2, 4)
    ids = np.tile([1, 2, 3, 4], 40)
    before = s.score(f4, ids, 100, H, plugs)
    s.fit(f4, ids, H, 60, 1e-2, np.random.default_rng(0), plugs)
    assert s.score(f4, ids, 100, H, plugs) < 0.85 * before
    assert all(np.array_equal(f4[n], copies[n]) for n in f4)
    assert s.score(f4, ids, 100, H) == before


def test_two_adapters_share_one_base(params, rng):
    one, two = (s.apply_lora(params, ["c_attn"], 2, 4, seed) for seed in (0, 1))
    name = "transformer.h.0.attn.c_attn.weight"
    assert one[name].base is two[name].base is params[name]
    shake(one, rng), shake(two, rng)
    outputs = [s.gpt_forward(params, IDX, H, plugs)[0] for plugs in (one, two, one)]
    assert np.array_equal(outputs[0], outputs[2]) and not np.allclose(outputs[0], outputs[1])


@pytest.mark.parametrize("length, first", [(40, 6), (41, 7), (23, 22), (50, 11)])
def test_score_predicts_every_character_once(length, first, params, rng):
    ids = rng.integers(0, 7, length)
    uniform = {n: p * 0 for n, p in params.items()}
    assert s.score(uniform, ids, first, H) == pytest.approx(math.log(7))
    total, block = 0.0, 6  # one window per chunk of three, by hand
    for start in range(first, length, 3):
        end = min(start + 3, length)
        logits, _ = s.gpt_forward(params, ids[None, end - block - 1 : end - 1], H)
        z = logits[0, start - end :]
        total += (np.log(np.exp(z).sum(-1)) - z[np.arange(len(z)), ids[start:end]]).sum()
    assert s.score(params, ids, first, H) == pytest.approx(total / (length - first))


@pytest.mark.parametrize("method", s.METHODS)
def test_every_method_trains_what_its_name_says(method):
    base = s.init_params(7, 9, 2, 4)
    text = np.arange(20) % 7
    tuned, plugs, trainable = s.prepare(method, base, text, 0)
    logits, cache = s.gpt_forward(tuned, text[None, :9], H, plugs)
    grads = s.gpt_backward(logits, cache, trainable)
    assert grads and all(np.isfinite(g).all() for g in grads.values())
    assert all(tuned[n] is not base[n] for n in trainable)
    matrices = {n for n in base if ".c_" in n and n.endswith("weight")}  # 4 in each of 2 layers
    if method in ("full fine-tuning", "BitFit"):
        whole = method == "full fine-tuning"
        assert not plugs and set(trainable) == {n for n in base if whole or n.endswith("bias")}
        return
    assert plugs and not trainable
    if "LoRA" in method or method == "DoRA":
        recipe = s.METHODS[method]
        part = {"LoRA, attention": ".attn.", "LoRA, MLP": ".mlp."}.get(method, "")
        assert plugs.keys() == {n for n in matrices if part in n}
        for plug in plugs.values():
            assert type(plug) is (s.DoRALinear if method == "DoRA" else s.LoRALinear)
            assert plug.params["A"].shape[1] == recipe.rank
            root = recipe.rank**0.5 if method.startswith("rs") else recipe.rank
            assert plug.scale == pytest.approx(recipe.alpha / root)
        assert {isinstance(tuned[n], s.NF4) for n in matrices} == {"NF4" in method}
    rank = int(method.rsplit(" ", 1)[1]) if "rank" in method else None
    assert rank is None or s.METHODS[method].rank == rank
    if method == "(IA)^3":
        assert sum(p.size for a in plugs.values() for p in a.params.values()) == 2 * (2 * 4 + 16)
    same = s.gpt_forward(base, text[None, :9], H)[0]  # all but a prompt and NF4 start at the base
    if "prompt" not in method and "NF4" not in method:
        np.testing.assert_allclose(logits, same, atol=1e-6)


def test_a_prompt_starts_as_text_with_its_positions():
    text = np.arange(20) % 7
    small = s.init_params(7, 9, 1, 4)
    _, plugs, _ = s.prepare("prompt tuning", small, text, 0)
    prompt = plugs["transformer.prompt"].params["prompt"]
    wte, wpe = small["transformer.wte.weight"], small["transformer.wpe.weight"]
    np.testing.assert_allclose(prompt, wte[text[:8]] + wpe[:8])


def test_low_rank_pieces(rng):
    W = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 5))
    np.testing.assert_allclose(s.low_rank(W, 2)[0], W, atol=1e-12)
    assert s.low_rank(W, 2)[1] == pytest.approx(1) and s.low_rank(W, 0)[1] == 0
    nearest, share = s.low_rank(W, 1)
    missing = np.linalg.norm(W - nearest) ** 2 / np.linalg.norm(W) ** 2
    assert share == pytest.approx(1 - missing) and np.linalg.matrix_rank(nearest) == 1
    cut, share = s.low_rank(np.diag([3.0, 0, -4]), 1)  # by hand: 16 of 9 + 16
    np.testing.assert_allclose(cut, np.diag([0, 0, -4]), atol=1e-12)
    assert share == pytest.approx(0.64)


# --- bad input


@pytest.mark.parametrize("make", [s.LoRALinear, s.DoRALinear])
@pytest.mark.parametrize(
    "args, message",
    [
        ((np.ones((3, 2)), 0, 1), "rank must be .* at least 1, not 0"),
        ((np.ones((3, 2)), -2, 1), "not -2"),
        ((np.ones((3, 2)), 1.5, 1), "not 1.5"),
        ((np.ones((3, 2)), True, 1), "not True"),
        ((np.ones((3, 2)), 1, math.nan), "alpha must be a finite number, not nan"),
        ((np.ones((3, 2)), 1, -math.inf), "not -inf"),
        ((np.ones((3, 2)), 1, "8"), "not '8'"),
        ((np.ones(3), 1, 1), r"float matrix \(in, out\), not float64 \(3,\)"),
        ((np.ones((3, 2), int), 1, 1), "float matrix .* not int64"),
        ((np.ones((3, 2), np.float16), 1, 1), "float matrix .* not float16"),
        ((np.ones((3, 2)), 1, 10**400), "finite number, not 1000"),
        ((np.ones((0, 2)), 1, 1), "float matrix"),
    ],
)
def test_bad_layers(make, args, message):
    with pytest.raises(ValueError, match=message):
        make(*args)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: s.apply_lora(p, ["c_attn"], 0, 1), "rank"),
        (lambda p: s.apply_lora(p, ["c_attn"], 1, math.inf), "alpha"),
        (lambda p: s.apply_lora(p, ["attn"], 1, 1), r"\['attn'\] match no matrix"),
        (lambda p: s.apply_lora(p, ["ln_1"], 1, 1), r"\['ln_1'\] match no matrix"),
        (lambda p: s.apply_lora(p, [5], 1, 1), r"\[5\] match no matrix"),
        (lambda p: s.gpt_forward(p, np.zeros((1, 7), int), H), "broadcast"),
        (lambda p: s.gpt_forward(p, np.zeros((1, 0), int), H), "zero-size"),
        (lambda p: s.gpt_forward(p, np.zeros((1, 2)), H), "integers"),
        (lambda p: s.gpt_forward(p, np.array([[7]]), H), r"0\.\.6"),
        (lambda p: s.gpt_forward(p, IDX, H, {"nowhere": s.IA3(4)}), "'nowhere'"),
    ],
)
def test_bad_calls(call, message, params):
    with pytest.raises(ValueError, match=message):
        call(params)


def test_targets_match_like_peft(params):
    assert len(s.apply_lora(params, ["c_proj"], 1, 1)) == 4
    assert len(s.apply_lora(params, ["attn.c_proj", "mlp.c_proj", "c_proj"], 1, 1)) == 4
    assert list(s.apply_lora(params, ["h.1.mlp.c_fc"], 1, 1)) == ["transformer.h.1.mlp.c_fc.weight"]


# --- files


@pytest.mark.parametrize("layer", [s.LoRALinear, s.DoRALinear])
@pytest.mark.parametrize("rslora", [False, True])
def test_adapter_round_trip_in_peft_layout(layer, rslora, params, rng, tmp_path):
    plugs = shake(s.apply_lora(params, ["c_attn", "mlp.c_proj"], 3, 5.5, 0, rslora, layer), rng)
    s.save_adapter(tmp_path, plugs)
    back = s.load_adapter(tmp_path, params)
    outputs = [s.gpt_forward(params, IDX, H, a)[0] for a in (plugs, back)]
    assert np.array_equal(*outputs)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    wanted = {
        "peft_type": "LORA",
        "r": 3,
        "lora_alpha": 5.5,
        "fan_in_fan_out": True,
        "bias": "none",
    }
    wanted |= {"task_type": "CAUSAL_LM", "use_rslora": rslora, "use_dora": layer is s.DoRALinear}
    assert wanted.items() <= config.items()
    tensors, _ = gpt.read_safetensors(tmp_path / "adapter_model.safetensors")
    module = "base_model.model.transformer.h.0.attn.c_attn"
    assert tensors[f"{module}.lora_A.weight"].shape == (3, 4)
    assert tensors[f"{module}.lora_B.weight"].shape == (12, 3)
    assert (f"{module}.lora_magnitude_vector" in tensors) == (layer is s.DoRALinear)


def test_adapters_that_cannot_be_saved_or_loaded(params, tmp_path):
    plugs = s.apply_lora(params, ["c_attn"], 2, 4)
    with pytest.raises(ValueError):
        s.save_adapter(tmp_path, plugs | s.apply_lora(params, ["c_fc"], 3, 4))
    s.save_adapter(tmp_path, plugs)
    other = s.init_params(7, 6, 2, 6)
    with pytest.raises(
        ValueError, match=r"lora_A.weight: expected the shape \(2, 6\), found \(2, 4\)"
    ):
        s.load_adapter(tmp_path, other)
    with pytest.raises(ValueError, match="h.1.attn.c_attn.*does not have"):
        s.load_adapter(tmp_path, s.init_params(7, 6, 1, 4))
    path = tmp_path / "adapter_config.json"
    good = json.loads(path.read_text())
    changes = [
        {"peft_type": "IA3"},
        {"r": 0},
        {"r": 3},
        {"lora_alpha": None},
        {"bias": "all"},
        {"r": "2"},
    ]
    for text in [json.dumps(good | change) for change in changes] + ["{", "[]", "{}"]:
        path.write_text(text)
        with pytest.raises(ValueError):
            s.load_adapter(tmp_path, params)
    path.write_text(json.dumps(good))
    stored, _ = gpt.read_safetensors(tmp_path / "adapter_model.safetensors")
    tensors = {name: gpt.read_tensor(tensor).copy() for name, tensor in stored.items()}
    for change in (dict(list(tensors.items())[1:]), tensors | {"stray": np.ones(1)}):
        gpt.write_safetensors(tmp_path / "adapter_model.safetensors", change)
        with pytest.raises(ValueError):
            s.load_adapter(tmp_path, params)


# --- training


def test_the_first_two_steps_of_adamw_by_hand():
    p, mean, square = np.array([1.0]), np.zeros(1), np.zeros(1)
    s.adamw_step(p, np.array([-3.0]), mean, square, 1, 0.5, 0.1)
    assert mean == pytest.approx(-0.3) and square == pytest.approx(0.09)  # 0.1·g, 0.01·g²
    assert p == pytest.approx(1 * (1 - 0.05) + 0.5)  # decayed, then ±rate, whatever the gradient
    s.adamw_step(p, np.array([1.0]), mean, square, 2, 0.5, 0)
    assert mean == pytest.approx(0.9 * -0.3 + 0.1) and square == pytest.approx(0.99 * 0.09 + 0.01)
    move = (-0.17 / 0.19) / math.sqrt(0.0991 / 0.0199)
    assert p == pytest.approx(1.45 - 0.5 * move)


@pytest.mark.parametrize("method", ["full fine-tuning", "LoRA"])
def test_fit_is_adamw_on_windows_with_warmup_cosine_clipping_and_decay(method):
    """Twelve steps, the first as the warmup, beside the textbook's formulas with β 0.9 and 0.99."""
    base, ids = s.init_params(7, 5, 1, 4, dtype=np.float64), np.arange(40) ** 2 % 7
    base = {name: 20 * p for name, p in base.items()}  # far out, so that gradients exceed 1
    runs = [s.prepare(method, base, ids, 0) for _ in range(2)]
    s.fit(runs[0][0], ids, 2, 12, 0.1, np.random.default_rng(3), *runs[0][1:], batch=3)

    params, plugs, trainable = runs[1]
    tuned = s.tuned_arrays(params, plugs, trainable)
    rng, history, clipped = np.random.default_rng(3), [], 0
    for t in range(1, 13):
        starts = rng.integers(0, 35, 3)
        x = np.array([ids[start : start + 5] for start in starts])
        y = np.array([ids[start + 1 : start + 6] for start in starts])
        logits, cache = s.gpt_forward(params, x, 2, plugs)
        grads = s.gpt_backward(s.cross_entropy(logits, y)[1], cache, trainable)
        length = math.sqrt(sum((g**2).sum() for g in grads.values()))
        clipped += length > 1
        history.append({name: g / length if length > 1 else g for name, g in grads.items()})
        rate = 0.1 * (0.1 + 0.9 * (1 + math.cos(math.pi * t / 12)) / 2)
        for name, p in tuned.items():
            mean = sum(0.1 * 0.9 ** (t - i) * g[name] for i, g in enumerate(history, 1))
            square = sum(0.01 * 0.99 ** (t - i) * g[name] ** 2 for i, g in enumerate(history, 1))
            if ":" not in name and p.ndim == 2:
                p -= 0.1 * rate * p
            p -= rate * mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.99**t)) + 1e-8)
    found = s.tuned_arrays(*runs[0])
    assert clipped or method == "LoRA"
    for name, p in tuned.items():
        np.testing.assert_allclose(found[name], p, rtol=1e-8, atol=1e-8, err_msg=name)


def test_the_rate_climbs_for_a_tenth_of_the_steps(monkeypatch):
    rates = []
    monkeypatch.setattr(s, "adamw_step", lambda *args: rates.append(args[5]))
    base, ids = s.init_params(7, 5, 1, 4), np.arange(40) % 7
    s.fit(base, ids, 2, 40, 1.0, np.random.default_rng(0), {}, ["transformer.ln_f.bias"])
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * t / 40)) / 2 for t in range(1, 41)]
    warmup = [min(1, t / 4) for t in range(1, 41)]
    np.testing.assert_allclose(rates, np.multiply(cosine, warmup))


def test_the_last_character_is_a_target_and_never_read_beyond():
    """On 6 ids and windows of 5 there is one window: its targets end with the last id."""
    base = s.init_params(7, 5, 1, 4)
    tuned = {name: p.copy() for name, p in base.items()}
    ids = np.array([1, 1, 1, 1, 1, 6])
    s.fit(tuned, ids, 2, 30, 0.1, np.random.default_rng(0), {}, list(tuned))
    before, after = (s.gpt_forward(p, ids[None, :5], 2)[0][0, -1, 6] for p in (base, tuned))
    assert after > before + 0.5


def test_the_gradient_of_a_large_vocabulary_takes_no_square_of_it():
    params = s.init_params(50_000, 4, 1, 4)
    logits, cache = s.gpt_forward(params, np.array([[7, 49_999, 7]]), 2)
    tracemalloc.start()
    grads = s.gpt_backward(np.zeros_like(logits) + 1e-3, cache, list(params))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert grads["transformer.wte.weight"].shape == (50_000, 4)
    assert peak < 20e6  # np.eye(50_000) has 10 GB


# --- the program


def test_the_corpora_are_split_at_nine_tenths():
    corpora, vocab_size = s.read_corpora(False)
    fast, _ = s.read_corpora(True)
    letters = sorted(set((ROOT / "data" / "stories.txt").read_text()))
    assert vocab_size == len(letters) and list(corpora) == ["stories", "verses"]
    for name, (ids, first) in corpora.items():
        text = (ROOT / "data" / f"{name}.txt").read_text()
        assert first == int(0.9 * len(text))
        assert "".join(letters[i] for i in ids) == text
        short, cut = fast[name]
        assert np.array_equal(short[:cut], ids[first - cut : first]) and cut == 4000
        assert np.array_equal(short[cut:], ids[first : first + 200])


def test_pretraining_lowers_the_loss_on_text_it_has_not_read():
    corpora, vocab_size = s.read_corpora(True)
    params, _ = s.pretrain(corpora, vocab_size, (1, 16, 2, 16), 60, 0)
    fresh = s.init_params(vocab_size, 16, 1, 16, 0)
    for name, better in (("stories", 0.8), ("verses", 0.9)):
        assert s.score(params, *corpora[name], 2) < better * s.score(fresh, *corpora[name], 2)


def test_adapting_lowers_the_verses_and_says_what_it_trained():
    corpora, vocab_size = s.read_corpora(True)
    ids, first = corpora["verses"]
    params, _ = s.pretrain(corpora, vocab_size, (1, 16, 2, 16), 40, 0)
    before = s.score(params, ids, first, 2)
    began = time.perf_counter()
    tuned, trained, seconds = s.adapt("rsLoRA", params, 2, ids[:first], 40, 0)
    assert 0 < seconds <= time.perf_counter() - began
    assert s.score(tuned[0], ids, first, 2, tuned[1]) < before - 0.01
    assert trained == 4 * (16 + 48 + 16 + 16 + 16 + 64 + 64 + 16)
    slower, _, _ = s.adapt("rsLoRA", params, 2, ids[:first], 40, 0, 1 / 16)
    assert s.score(slower[0], ids, first, 2, slower[1]) < before
    place = "transformer.h.0.mlp.c_fc.weight"
    far, near = (abs(made[1][place].params["B"]).max() for made in (tuned, slower))
    assert 8 < far / near < 40
    assert s.adapt("BitFit", params, 2, ids[:first], 1, 0)[1] == 48 + 16 + 64 + 16 + 3 * 16


def test_the_report_trains_on_training_parts_only(monkeypatch, capsys):
    calls, bases, fit = [], [], s.fit

    def record(params, ids, *rest):
        seconds = fit(params, ids, *rest)
        calls.append((ids, rest))
        bases.append({name: p.copy() for name, p in params.items() if not bases})
        return seconds

    monkeypatch.setattr(s, "fit", record)
    s.report(True, 3)
    corpora, _ = s.read_corpora(True)
    (size, base_steps, steps), rates = s.sizes(True), []
    for i, (ids, (n_head, count, rate, *_)) in enumerate(calls):
        whole, first = corpora["verses" if i else "stories"]
        assert np.array_equal(ids, whole[:first])
        assert (n_head, count) == (size[2], steps if i else base_steps)
        rates.append(rate)
    expected = []
    for method, recipe in s.METHODS.items():
        parts = [1] if "," in method else [1 / 8, 1 / 3, 1]
        expected += [part * recipe.rate for part in parts]
    assert rates[1:] == expected
    assert calls[0][1][5:] == (list(bases[0]), 16) and all(len(call[1]) == 6 for call in calls[1:])
    bits = s.score(bases[0], *corpora["stories"], size[2]) / math.log(2)
    assert check_held_out_line(capsys.readouterr().out) == pytest.approx(bits, abs=6e-4)


def sweep_tables():
    """{method: cells after it} of each of the three tables that the sweep left."""
    text = (ROOT / "benchmarks" / "results" / "stage09_sweep.md").read_text(encoding="utf-8")
    for table in text.split("\n## ")[1:]:
        rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")]
        yield {name.strip(): [cell.strip() for cell in cells] for name, *cells in rows[1:]}


def test_rates_and_sizes_are_those_of_the_sweep():
    chosen, held_out, _ = sweep_tables()
    base = s.init_params(50, 32, 1, 64)
    for method, recipe in s.METHODS.items():
        assert float(chosen[method][0]) == float(held_out[method][1]) == recipe.rate
        made = s.prepare(method, base, np.arange(40), 0)
        trained = sum(p.size for p in s.tuned_arrays(*made).values())
        assert method == "full fine-tuning" or f"{trained:,}" == held_out[method][0]
    assert float(chosen["the base itself"][0]) == 0.008
    for _, tried in chosen.values():
        bits = [float(found) for found in re.findall(r": (\d\.\d+)", tried)]
        assert 0 < np.argmin(bits) < len(bits) - 1, "a best rate at the edge of its row"


def test_section_nine_quotes_the_sweep():
    chosen, held_out, lost = sweep_tables()
    text = (ROOT / "stage09_lora.py").read_text(encoding="utf-8")
    if "# %%" not in text:
        pytest.skip("a copy without comments")
    section = text.split("\n# %% 9. ")[1].split("\n# %% Demonstration")[0]
    said = " ".join(section.replace("#", " ").split())

    def share(method):
        return held_out[method][3].split("%")[0] + " %"

    ranks = [share(method) for method in ("LoRA, rank 1", "LoRA", "LoRA, rank 16")]
    alphas = ("LoRA, alpha 2", "LoRA", "LoRA, alpha 32")
    for quoted in (
        f"it has lost {lost['full fine-tuning'][1][:5]} bits on stories",
        f"bits on stories, LoRA {lost['LoRA'][1][:5]}",
        f"LoRA makes {share('LoRA')} of that gain with 7 % of the numbers, DoRA {share('DoRA')}",
        f"LoRA over NF4 {share('LoRA on NF4 base')}",
        f"BitFit makes {share('BitFit')}, (IA)³ {share('(IA)^3')}, with about 1 %",
        f"A prompt makes {share('prompt tuning')}.",
        f"in attention alone it makes {share('LoRA, attention')},",
        f"in the MLP alone {share('LoRA, MLP')}.",
        "1, 4 and 16 make {}, {} and {}.".format(*ranks),
        "2, 8 and 32 LoRA makes {}, {} and {},".format(*map(share, alphas)),
        "at rates of {}, {} and {}.".format(*(chosen[name][0] for name in alphas)),
        f"from {chosen['LoRA, rank 1'][0]} to {chosen['LoRA, rank 16'][0]} under α/r",
        f"and to {chosen['rsLoRA, rank 16'][0]} under α/√r",
    ):
        assert quoted in said


def test_forgetting_is_read_from_the_line_between_finished_runs():
    curve = [(0.2, 0.05), (0.1, 0.01)]  # in any order
    for gain, rise in ((0, 0), (0.05, 0.005), (0.1, 0.01), (0.15, 0.03), (0.2, 0.05)):
        assert s.forgetting(curve, gain) == pytest.approx(rise)
    assert math.isnan(s.forgetting(curve, 0.21))
    assert math.isnan(s.forgetting([(-0.1, 0.3)], 0.01))
    assert s.forgetting([(-0.1, 0.3), (0.2, 0.1)], 0.1) == pytest.approx(0.05)


def test_gains_and_losses_are_counted_from_the_base(capsys):
    runs = []

    def run(method, part):
        runs.append((method, part))
        return (method, part), 70, 0.1

    def bits(method, part):
        return 2.5 - part / 4, 2.75

    full, curves = s.report_methods((2.0, 3.0), 1000, bits, run)
    assert full == "full fine-tuning" and curves.keys() == s.METHODS.keys()
    for method, curve in curves.items():
        parts = [1] if "," in method else [1 / 8, 1 / 3, 1]
        assert [part for name, part in runs if name == method] == parts
        np.testing.assert_allclose(curve, [(0.25, 0.5 - part / 4) for part in parts])
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("full fine-tuning  "))
    assert row.split()[2:] == ["70", "7.0%", "0.1", "2.750", "2.250"]
    assert ["3.000", "2.000"] == said.splitlines()[1].split()[-2:]


@pytest.mark.parametrize("turned", [False, True])
def test_what_the_methods_show_is_said_of_the_numbers(turned, capsys):
    curves = {method: [(0.1, 0.0), (0.195, 0.1)] for method in s.METHODS}
    curves["full fine-tuning"] = [(0.1, 0.5 if turned else 0.0), (0.4, 0.8)]
    curves["LoRA"] = [(0.1, 0.0), (0.2, 0.2)]
    s.report_forgetting(curves)
    said = capsys.readouterr().out
    assert "LoRA gains 50% of what full fine-tuning gains. For the same gain of 0.180" in said
    full = 0.5 + 0.3 * 0.08 / 0.3 if turned else 0.8 * 0.08 / 0.3
    both = [f"full fine-tuning loses {full:.3f} bits on stories, LoRA 0.160.",
            f"LoRA loses 0.160 bits on stories, full fine-tuning {full:.3f}."]  # fmt: skip
    assert both[full > 0.16] in said


def test_the_plot_has_a_curve_for_every_method_at_its_place(capsys):
    curves = {method: [(0.1, 0.0)] for method in s.METHODS}
    curves["full fine-tuning"] = [(0.5, 0.0), (1.0, 2.0)]
    curves["LoRA"] = [(0.5, 2.0), (0.25, 1.0)]  # in any order
    s.report_forgetting(curves)
    said = capsys.readouterr().out
    assert "0.000 to 2.000 (up)" in said and "F full fine-tuning, L LoRA" in said
    rows = [line[3:] for line in said.splitlines() if line.startswith("  |")]
    assert len(rows) == 12 and rows[0][71] == "F" and rows[-1][:30] == "F" * 30
    assert rows[0].index("L") in (34, 35) and "L" in rows[5][15:21] and "F" in rows[5][50:57]
    assert all(set(row) <= set(" FL") for row in rows)
    assert not any("L" in row[36:] for row in rows), "no gain that LoRA never had"


@pytest.mark.parametrize("useful", [1, 60])
def test_what_a_low_rank_is_worth_is_said_of_the_numbers(useful, capsys):
    """An update of 64 equal singular values; a score that asks for the first few, or for most."""
    name = "transformer.h.0.mlp.c_fc.weight"
    params = {name: np.zeros((64, 64))}
    full = {name: np.eye(64)}

    def bits(model):
        return None, 3 - min(useful, round(np.trace(model[name]))) / useful

    s.report_ranks(params, full, bits)
    said = capsys.readouterr().out
    rows = [line.split()[1:3] for line in said.splitlines() if line.startswith("rank ")]
    kept = "0.0% 1.6% 3.1% 6.2% 12.5% 25.0% 50.0% 100.0%".split()
    assert rows == [[f"{rank}:", share] for rank, share in zip((0, 1, 2, 4, 8, 16, 32, 64), kept)]
    assert ("a lower rank than ΔW itself" in said) == (useful == 1)
    assert ("as high a rank as ΔW" in said) == (useful == 60)
    assert f"take rank 64, nine tenths of the gain take rank {1 if useful == 1 else 64}." in said


def test_report_is_whole_and_repeats(capsys):
    reports = []
    for _ in range(2):
        assert s.main(["--fast"]) in (None, 0)
        reports.append(capsys.readouterr().out)
    check_held_out_line(reports[0])
    assert reports[0].splitlines()[-1].startswith("held-out:") and "(stage 9," in reports[0]
    assert all(method in reports[0] for method in s.METHODS)
    timings = r"%\s+\d+\.\d\s|took \S+"
    first, second = (re.sub(timings, "", r, flags=re.M) for r in reports)
    assert first == second


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--seed", "-1"], "--seed"),
        (["--seed", "x"], "--seed"),
        (["--nonsense"], "nonsense"),
    ],  # fmt: skip
)
def test_wrong_command_lines(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        s.main(["--fast", *argv])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


# Inputs at the corners: the right value, or a sentence that says what was expected.


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64])
def test_ids_of_any_width_are_the_same_ids(rng, dtype):
    params, ids = s.init_params(7, 8, 1, 8), rng.integers(0, 7, 60)
    narrow = ids.astype(dtype)
    assert s.score(params, narrow, 20, 2) == s.score(params, ids, 20, 2)
    tuned = []
    for same in (ids, narrow, ids.tolist()):
        own = {name: p.copy() for name, p in params.items()}
        s.fit(own, same, 2, 2, 1e-2, np.random.default_rng(0), {}, list(own))
        tuned.append(own)
    for own in tuned[1:]:
        assert all(np.array_equal(own[name], tuned[0][name]) for name in params)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda ids: ids * 1.0, "must be integers, not float64"),
        (lambda ids: ids > 3, "must be integers, not bool"),
        (lambda ids: ids - 2, r"must lie in (-1|0)\.\.6, not -2\.\.4"),
        (lambda ids: ids + 7, r"must lie in (-1|0)\.\.6, not 7\.\.13"),
    ],
)
def test_what_is_no_id_is_refused(wrong, said):
    params, ids = s.init_params(7, 8, 1, 8), np.arange(7).repeat(5)
    logits = np.zeros((1, 35, 7))
    for call in (
        lambda: s.cross_entropy(logits, wrong(ids)[None]),
        lambda: s.score(params, wrong(ids), 20, 2),
        lambda: s.fit(params, wrong(ids), 2, 1, 1e-2, np.random.default_rng(0)),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_targets_need_one_that_counts():
    logits = np.zeros((1, 2, 3))
    assert s.cross_entropy(logits, [[2, -1]])[0] == pytest.approx(math.log(3))
    with pytest.raises(ValueError, match="at least one that is not -1"):
        s.cross_entropy(logits, [[-1, -1]])
    for shape in ((0, 2, 3), (2, 0, 3)):
        with pytest.raises(ValueError, match="at least one that is not -1"):
            s.cross_entropy(np.zeros(shape), np.zeros(shape[:2], int))
    loss, dlogits = s.cross_entropy(np.log([[[1.0, 2, 5], [9, 9, 9]]]), [[1, -1]])  # by hand
    assert loss == pytest.approx(math.log(4))
    np.testing.assert_allclose(dlogits, [[[1 / 8, 1 / 4 - 1, 5 / 8], [0, 0, 0]]])


def test_sizes_of_eight_bits_count_like_any_others(rng):
    W = rng.normal(size=(30, 40))
    wide = s.quantize_nf4(W, 64)
    narrow = s.quantize_nf4(W, np.uint8(64))
    assert np.array_equal(narrow.packed, wide.packed) and narrow.block_size == 64
    assert np.array_equal(
        s.dequantize_nf4(wide._replace(block_size=np.uint8(64))), s.dequantize_nf4(wide)
    )


def test_wrong_numbers_are_named(rng):
    params, ids, W = s.init_params(7, 8, 1, 8), rng.integers(0, 7, 60), np.eye(3)
    for call, said in (
        (lambda: s.fit(params, ids, 2, "a", 1e-2, rng), "steps .* not 'a'"),
        (lambda: s.fit(params, ids, 2, 0, 1e-2, rng), "steps .* not 0"),
        (lambda: s.LoRALinear(W, 1, True), "alpha .* not True"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_training_that_diverges_says_at_which_step(rng):
    params, ids = s.init_params(7, 8, 1, 8), rng.integers(0, 7, 60)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="step 2: the loss is nan"):
        s.fit(params, ids, 2, 30, 1e30, rng, {}, list(params))
