"""Every layer of the capstone against central differences and against a second route."""

import numpy as np
import pytest
from conftest import assert_gradients, generators, relative_error

import capstone_gpt as gpt


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (1, 7, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(rng, shape, bias):
    x, W = rng.normal(size=shape), rng.normal(size=(shape[-1], 3))
    inputs = [x, W] + ([rng.normal(size=3)] if bias else [])
    _, cache = gpt.linear_forward(*inputs)
    assert_gradients(
        lambda: gpt.linear_forward(*inputs)[0], inputs, lambda dy: gpt.linear_backward(dy, cache)
    )


def test_embedding_adds_the_gradients_of_repeated_tokens(rng):
    W, idx = rng.normal(size=(5, 3)), np.array([[0, 2, 2], [2, 4, 0]])
    _, cache = gpt.embedding_forward(idx, W)
    assert_gradients(
        lambda: gpt.embedding_forward(idx, W)[0],
        [W],
        lambda dy: [gpt.embedding_backward(dy, cache)],
    )


@pytest.mark.parametrize("C", [2, 5, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_layernorm(rng, C, bias):
    x, weight = rng.normal(2, 3, size=(2, 3, C)), rng.normal(size=C)
    inputs = [x, weight] + ([rng.normal(size=C)] if bias else [])
    y, cache = gpt.layernorm_forward(*inputs)
    plain = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight
    assert np.allclose(y, plain + (inputs[2] if bias else 0), atol=1e-12)
    assert_gradients(
        lambda: gpt.layernorm_forward(*inputs)[0],
        inputs,
        lambda dy: gpt.layernorm_backward(dy, cache),
    )


@pytest.mark.parametrize("C", [1, 6])
def test_rmsnorm(rng, C):
    x, weight = rng.normal(size=(2, 3, C)), rng.normal(size=C)
    y, cache = gpt.rmsnorm_forward(x, weight)
    assert np.allclose(y, x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight, atol=1e-12)
    # with one channel x/|x| is all but constant and its derivative drowns in rounding: larger ε
    eps = 1e-5 if C > 1 else 1.0
    _, cache = gpt.rmsnorm_forward(x, weight, eps)
    assert_gradients(
        lambda: gpt.rmsnorm_forward(x, weight, eps)[0],
        [x, weight],
        lambda dy: gpt.rmsnorm_backward(dy, cache),
    )


@pytest.mark.parametrize("pair", ["gelu", "swiglu"])
def test_activations(rng, pair):
    forward, backward = getattr(gpt, f"{pair}_forward"), getattr(gpt, f"{pair}_backward")
    x = rng.normal(0, 2, size=(2, 3, 6))
    _, cache = forward(x)
    assert_gradients(lambda: forward(x)[0], [x], lambda dy: [backward(dy, cache)])


def test_activations_in_tiles_equal_the_formulas(rng):
    x = rng.normal(0, 3, size=(300, 400))  # more than one tile
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x * x * x)
    assert np.allclose(gpt.gelu_forward(x)[0], 0.5 * x * (1 + np.tanh(u)), atol=1e-12)
    assert np.allclose(gpt.gelu_forward(x), gpt.plain_gelu(x), atol=1e-12)
    g, u = x[:, :200], x[:, 200:]
    assert np.allclose(gpt.swiglu_forward(x)[0], g / (1 + np.exp(-g)) * u, atol=1e-12)


@pytest.mark.parametrize("pair", ["gelu", "swiglu"])
def test_activations_survive_huge_inputs(pair):
    x = np.array([[-1e20, 1e20, -1e4, 1e4, 0.0, 1e-30, -30.0, 30.0]], np.float32)
    y, cache = getattr(gpt, f"{pair}_forward")(x)
    slopes = cache if pair == "gelu" else cache[1]
    assert np.isfinite(y).all() and np.isfinite(slopes).all()
    if pair == "gelu":  # far out it is x or 0, with slope 1 or 0; at 0 the slope is a half
        expected = np.array([0, 1e20, 0, 1e4, 0, 0.5e-30, 0, 30], np.float32)
        assert np.array_equal(y[0], expected)
        assert np.array_equal(slopes[0], [0, 1, 0, 1, 0.5, 0.5, 0, 1])


def test_rope_turns_pairs_and_scores_depend_on_distance_only(rng):
    q, k = rng.normal(size=(2, 1, 3, 6)), rng.normal(size=(2, 1, 3, 6))
    cos, sin = gpt.rope_tables(np.arange(20), gpt.rope_frequencies(6, 10000.0), np.float64)

    def score(a, b):
        turned = [
            gpt.rope_forward(x, cos[p : p + 1], sin[p : p + 1])[0] for x, p in ((q, a), (k, b))
        ]
        return np.vecdot(*turned)

    assert np.allclose(score(3, 7), score(11, 15), atol=1e-12)
    assert not np.allclose(score(3, 7), score(3, 8))
    _, cache = gpt.rope_forward(q, cos[5:6], sin[5:6])
    assert_gradients(
        lambda: gpt.rope_forward(q, cos[5:6], sin[5:6])[0],
        [q],
        lambda dy: [gpt.rope_backward(dy, cache)],
    )
    assert np.allclose(gpt.rope_backward(gpt.rope_forward(q, cos[5:6], sin[5:6])[0], cache), q)


def plain_attention(q, k, v):
    """The file's textbook form, with queries in groups and with past keys."""
    group, past = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    earlier = np.zeros((*q.shape[:2], past, q.shape[3]))
    q = np.concatenate([earlier, q], 2)
    return gpt.plain_attention(q, k.repeat(group, 1), v.repeat(group, 1))[:, :, past:]


def test_plain_attention_on_numbers_done_by_hand():
    q = np.array([[9.0], [np.log(3)]])
    y = gpt.plain_attention(q, np.array([[1.0], [0.0]]), np.array([[8.0], [4.0]]))
    assert np.allclose(y, [[8.0], [0.75 * 8 + 0.25 * 4]])  # the first sees itself, only


@pytest.mark.parametrize("B,H,Hkv,Tq,Tk", [(1, 1, 1, 1, 1), (2, 4, 2, 3, 3), (1, 3, 1, 2, 5)])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_attention(rng, B, H, Hkv, Tq, Tk, p):
    q, k, v = (rng.normal(size=(B, h, T, 4)) for h, T in ((H, Tq), (Hkv, Tk), (Hkv, Tk)))

    def forward():
        return gpt.attention_forward(q, k, v, p, generators(B))

    y, cache = forward()
    if p == 0:
        assert np.allclose(y, plain_attention(q, k, v), atol=1e-12)
    assert_gradients(lambda: forward()[0], [q, k, v], lambda dy: gpt.attention_backward(dy, cache))


@pytest.mark.parametrize("Tq,Tk", [(63, 63), (65, 65), (130, 150)])
@pytest.mark.parametrize("wiggled", [0, 1, 2])
def test_attention_in_blocks_equals_the_full_matrix(rng, Tq, Tk, wiggled):
    inputs = [rng.normal(size=(2, H, T, 8)) for H, T in ((4, Tq), (2, Tk), (2, Tk))]
    y, cache = gpt.attention_forward(*inputs)
    assert np.allclose(y, plain_attention(*inputs), atol=1e-12)
    dy, direction = rng.normal(size=y.shape), rng.normal(size=inputs[wiggled].shape)
    analytic = (gpt.attention_backward(dy, cache)[wiggled] * direction).sum()
    ends = []
    for h in (1e-6, -1e-6):
        moved = [x + h * direction if i == wiggled else x for i, x in enumerate(inputs)]
        ends.append((dy * plain_attention(*moved)).sum())
    assert relative_error(analytic, (ends[0] - ends[1]) / 2e-6) < 1e-6


def test_attention_is_steady_under_huge_scores(rng):
    q, k, v = (100 * rng.normal(size=(1, 1, 5, 8)).astype(np.float32) for _ in range(3))
    y, cache = gpt.attention_forward(q, k, v)
    assert all(np.isfinite(a).all() for a in (y, *gpt.attention_backward(y, cache)))


def test_dropout_keeps_the_mean_and_is_off_without_a_generator(rng):
    x = np.ones((4, 100, 500))
    y, mask = gpt.dropout_forward(x, 0.3, generators(4))
    assert abs(y.mean() - 1) < 0.01 and abs((y == 0).mean() - 0.3) < 0.01
    assert np.array_equal(gpt.dropout_backward(x, mask), y)
    assert gpt.dropout_forward(x, 0.3, None)[0] is x
    assert gpt.dropout_forward(x, 0.0, generators(4))[0] is x


def test_a_dropout_mask_belongs_to_its_sequence_not_to_the_batch(rng):
    x = rng.normal(size=(4, 3, 5))
    whole, _ = gpt.dropout_forward(x, 0.5, generators(4))
    parts = [gpt.dropout_forward(x[i : i + 1], 0.5, generators(4)[i : i + 1])[0] for i in range(4)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole[0] == 0, whole[1] == 0)


@pytest.mark.parametrize("ignored", [0, 2, 6])
def test_cross_entropy(rng, ignored):
    logits, targets = rng.normal(size=(2, 3, 5)), rng.integers(0, 5, (2, 3))
    targets.ravel()[:ignored] = -1
    loss, cache = gpt.cross_entropy_forward(logits, targets)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    kept = [log_p[i][targets[i]] for i in np.ndindex(2, 3) if targets[i] >= 0]
    assert loss == pytest.approx(-np.mean(kept) if kept else 0.0)
    assert_gradients(
        lambda: gpt.cross_entropy_forward(logits, targets)[0],
        [logits],
        lambda dy: [gpt.cross_entropy_backward(dy, cache)],
    )


def test_cross_entropy_of_huge_logits_is_finite():
    logits, targets = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32), np.array([1, 1])
    loss, cache = gpt.cross_entropy_forward(logits, targets)
    assert loss == pytest.approx(1e4)
    assert np.allclose(gpt.cross_entropy_backward(1.0, cache), [[0.5, -0.5], [0, 0]])


@pytest.mark.parametrize("arch,n_kv_head", [("gpt2", 2), ("llama", 1)])
def test_block(rng, arch, n_kv_head):
    config = gpt.GPTConfig(arch, 5, 4, 1, 2, 8, n_kv_head)
    model = gpt.GPT(config, dtype=np.float64)
    model.flat[:] = rng.normal(0, 0.5, model.flat.size)
    weights = model.params.blocks[0]
    frequencies = gpt.rope_frequencies(4, 10000.0)
    rope = gpt.rope_tables(np.arange(3), frequencies, np.float64) if arch == "llama" else None
    x = rng.normal(size=(2, 3, 8))

    def backward(dy):
        dx, grads = gpt.block_backward(dy, gpt.block_forward(x, weights, config, rope)[1])
        return [dx, *(grads[name] for name in weights)]

    assert_gradients(
        lambda: gpt.block_forward(x, weights, config, rope)[0], [x, *weights.values()], backward
    )


def test_adamw_follows_its_definition(rng):
    config = gpt.GPTConfig("gpt2", 7, 4, 1, 1, 4)
    model = gpt.GPT(config, dtype=np.float64)
    optimizer = gpt.AdamW(model.params, (0.9, 0.99), 1e-8, 0.1, grad_clip=1.0)
    w = {name: p.copy() for name, p in model.params.items()}
    m, v = ({name: np.zeros_like(p) for name, p in w.items()} for _ in range(2))
    for t in range(1, 6):
        flat = rng.normal(size=model.flat.size)
        g = gpt.ParamDict(config, flat / max(1, np.linalg.norm(flat)))
        optimizer.step(flat, np.linalg.norm(flat), 0.01)
        for name in w:
            m[name] = 0.9 * m[name] + 0.1 * g[name]
            v[name] = 0.99 * v[name] + 0.01 * g[name] ** 2
            update = (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.99**t)) + 1e-8)
            w[name] -= 0.01 * (update + (0.1 * w[name] if w[name].ndim == 2 else 0))
    assert max(relative_error(model.params[name], w[name]) for name in w) < 1e-12


def test_schedule_rises_peaks_and_falls():
    rates = [gpt.warmup_cosine(step, 1.0, 0.1, 10, 110) for step in range(200)]
    assert all(a < b for a, b in zip(rates[:10], rates[1:11])) and rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55) and set(rates[110:]) == {0.1}


def test_the_first_page_computes_what_its_comment_says():
    W = np.zeros((2, 2))
    assert gpt.table_step(W, [0, 1, 0, 1], learning_rate=3) == pytest.approx(np.log(2))
    assert np.allclose(W, [[-1, 1], [0.5, -0.5]])
    expected = (2 * np.log(1 + np.exp(-2)) + np.log(1 + np.exp(-1))) / 3
    assert (
        gpt.table_step(W, [0, 1, 0, 1], 3)
        == pytest.approx(expected)
        == pytest.approx(0.189, abs=1e-3)
    )


def test_the_first_page_s_gradient_is_that_of_the_file_s_cross_entropy(rng):
    W, tokens = rng.normal(size=(5, 5)), rng.integers(0, 5, 40)
    logits, looked_up = gpt.embedding_forward(tokens[:-1], W)
    loss, cache = gpt.cross_entropy_forward(logits, tokens[1:])
    gradient = gpt.embedding_backward(gpt.cross_entropy_backward(1.0, cache), looked_up)
    after = W.copy()
    assert gpt.table_step(after, tokens.tolist(), 0.5) == pytest.approx(loss, rel=1e-12)
    assert np.allclose(W - after, 0.5 * gradient, atol=1e-14)


def test_llama_3_stretches_slow_pairs_and_leaves_fast_ones():
    """In 200π positions a frequency f makes 100 f turns; from 4 on it stays, up to 1 it is / 8."""
    scaling = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
    scaling["original_max_position_embeddings"] = 200 * np.pi
    plain = gpt.rope_frequencies(8, 1e4)
    assert np.allclose(plain, [1, 0.1, 0.01, 0.001])  # 100, 10, 1 and 0.1 turns
    assert np.allclose(gpt.rope_frequencies(8, 1e4, scaling), [1, 0.1, 0.01 / 8, 0.001 / 8])
    scaling["original_max_position_embeddings"] = 500 * np.pi  # 250, 25, 2.5 and 0.25 turns
    half = 0.01 * (0.5 + 0.5 / 8)  # 2.5 is half way from 1 to 4
    assert np.allclose(gpt.rope_frequencies(8, 1e4, scaling), [1, 0.1, half, 0.001 / 8])


def test_epsilon_is_a_hundred_thousandth_unless_said():
    x, one = np.array([[3e-3, 4e-3]]), np.ones(2)
    assert gpt.rmsnorm_forward(x, one)[0] == pytest.approx(x / np.sqrt(12.5e-6 + 1e-5), rel=1e-12)
    z = np.array([[-5e-4, 5e-4]])
    expected = pytest.approx(z / np.sqrt(25e-8 + 1e-5), rel=1e-9)
    assert gpt.layernorm_forward(x, one)[0] == expected
    assert gpt.GPTConfig("gpt2").norm_eps == gpt.GPTConfig("llama").norm_eps == 1e-5
