"""Stage 5: every backward against central differences, and the identities the text proves."""

import math
import re
import tracemalloc

import numpy as np
import pytest
from conftest import assert_gradients

import stage05_attention as s5

# (B, H, Hkv, Tq, Tk, D): ones, odd lengths, grouped heads, fewer and more queries than keys.
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 3, 5, 5, 2),
    (1, 4, 2, 3, 7, 3),
    (2, 4, 1, 7, 7, 2),
    (1, 2, 1, 6, 4, 3),
]


def qkv(rng, B, H, Hkv, Tq, Tk, D, dtype=np.float64):
    shapes = [(B, H, Tq, D), (B, Hkv, Tk, D), (B, Hkv, Tk, D)]
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def by_hand(q, k, v, causal=False, allowed=None, bias=0.0, scale=None):
    """Attention as three loops and a definition, one query at a time."""
    B, H, Tq, D = q.shape
    Hkv, Tk = k.shape[1:3]
    out = np.zeros(q.shape)
    allowed = np.broadcast_to(True if allowed is None else allowed, (B, H, Tq, Tk))
    bias = np.broadcast_to(bias, (B, H, Tq, Tk))
    for b, h, i in np.ndindex(B, H, Tq):
        g = h // (H // Hkv)
        keys = [j for j in range(Tk) if allowed[b, h, i, j] and (not causal or j <= i + Tk - Tq)]
        if not keys:
            continue
        alpha = 1 / math.sqrt(D) if scale is None else scale
        e = [math.exp(alpha * float(q[b, h, i] @ k[b, g, j]) + bias[b, h, i, j]) for j in keys]
        out[b, h, i] = sum(w * v[b, g, j] for w, j in zip(e, keys)) / sum(e)
    return out


# Softmax


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3, 5), (3, 1)])
def test_softmax_gradient(rng, shape):
    x = rng.normal(size=shape)
    assert_gradients(
        lambda: s5.softmax_forward(x)[0],
        [x],
        lambda dp: [s5.softmax_backward(dp, s5.softmax_forward(x)[1])],
    )


def test_softmax_rows(rng):
    x = rng.normal(size=(4, 6)) * 50
    p, _ = s5.softmax_forward(x)
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(s5.softmax_forward(x + 1e4)[0], p, rtol=1e-9)
    assert np.array_equal(s5.softmax_forward(np.full((2, 3), -np.inf))[0], np.zeros((2, 3)))
    assert np.array_equal(s5.softmax_forward([[1e308, -1e300, -np.inf]])[0], [[1, 0, 0]])
    assert s5.softmax_forward(np.zeros((3, 0)))[0].shape == (3, 0)
    assert np.allclose(s5.softmax_forward(np.array([1, 1]))[0], 0.5)
    assert np.isnan(s5.softmax_forward(np.array([1.0, np.nan]))[0]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_follows_the_input(rng, dtype):
    q, k, v = qkv(rng, 1, 2, 1, 3, 5, 4, dtype)
    for forward, backward in PAIRS:
        out, cache = forward(q, k, v, causal=True, scale=0.3)
        assert {a.dtype for a in (out, *backward(out, cache))} == {np.dtype(dtype)}
    assert s5.attention_forward(q, k, v, mask=np.zeros((3, 5)))[0].dtype == dtype
    assert s5.rope_forward(q, np.arange(3))[0].dtype == dtype


# The scale


@pytest.mark.parametrize("D", [4, 64])
def test_scores_have_variance_D_and_one(D):
    raw, plain, narrow = s5.scale_statistics(D, 1.0, np.random.default_rng(0))
    unit, entropy, wide = s5.scale_statistics(D, D**-0.5, np.random.default_rng(0))
    assert raw == pytest.approx(D, rel=0.05) and unit == pytest.approx(1, rel=0.05)
    assert plain < entropy < math.log(64) and 0 <= narrow < wide < 1


# Attention

PAIRS = [
    (s5.attention_forward, s5.attention_backward),
    (s5.flash_attention_forward, s5.flash_attention_backward),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7, 0.0, -1.0])
def test_attention_is_its_definition(rng, shape, causal, scale):
    q, k, v = qkv(rng, *shape)
    expected = by_hand(q, k, v, causal, scale=scale)
    np.testing.assert_allclose(
        s5.attention_forward(q, k, v, causal, scale=scale)[0], expected, atol=1e-14
    )
    flash = s5.flash_attention_forward(q, k, v, causal, block=2, scale=scale)[0]
    np.testing.assert_allclose(flash, expected, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pair", PAIRS)
def test_attention_gradients(rng, shape, causal, pair):
    forward, backward = pair
    q, k, v = qkv(rng, *shape)
    options = {"block": 2} if forward is s5.flash_attention_forward else {}
    assert_gradients(
        lambda: forward(q, k, v, causal, scale=0.9, **options)[0],
        [q, k, v],
        lambda dout: backward(dout, forward(q, k, v, causal, scale=0.9, **options)[1]),
    )


@pytest.mark.parametrize("form", ["boolean", "additive", "both"])
def test_masks(rng, form):
    q, k, v = qkv(rng, 2, 4, 2, 5, 6, 3)
    allowed = rng.random((2, 1, 5, 6)) < 0.5
    allowed[0, 0, 2] = False  # a query of one sequence sees nothing
    bias = rng.normal(size=(4, 5, 6))
    mask = {
        "boolean": allowed,
        "additive": bias,
        "both": np.where(allowed, bias, -np.inf),
    }[form]
    expected = by_hand(
        q,
        k,
        v,
        True,
        None if form == "additive" else allowed,
        0.0 if form == "boolean" else bias,
    )
    out, _ = s5.attention_forward(q, k, v, causal=True, mask=mask)
    np.testing.assert_allclose(out, expected, atol=1e-14)
    assert_gradients(
        lambda: s5.attention_forward(q, k, v, True, mask)[0],
        [q, k, v],
        lambda dout: s5.attention_backward(dout, s5.attention_forward(q, k, v, True, mask)[1]),
    )


def test_a_query_that_sees_nothing_gives_zeros_and_no_gradient(rng):
    q, k, v = qkv(rng, 1, 2, 2, 3, 3, 4)
    mask = np.ones((3, 3), bool)
    mask[1] = False
    out, cache = s5.attention_forward(q, k, v, mask=mask)
    dout = np.zeros_like(out)
    dout[:, :, 1] = 1
    assert np.array_equal(out[:, :, 1], np.zeros((1, 2, 4)))
    assert all(not g.any() for g in s5.attention_backward(dout, cache))
    none = np.zeros((1, 2, 0, 4))
    for forward, _ in PAIRS:
        assert np.array_equal(forward(q, none, none)[0], np.zeros_like(q))
        assert forward(none, k, v)[0].shape == none.shape
        early = forward(q, k[:, :, :1], v[:, :, :1], causal=True)[0]  # Tq = 3, Tk = 1
        assert not early[:, :, :2].any() and np.allclose(early[:, :, 2], v[:, :, 0])


def test_attention_does_not_change_its_inputs(rng):
    q, k, v = qkv(rng, 1, 2, 1, 4, 6, 2)
    mask = rng.normal(size=(4, 6))
    copies = [a.copy() for a in (q, k, v, mask)]
    out, cache = s5.attention_forward(q, k, v, True, mask)
    s5.attention_backward(out, cache)
    s5.flash_attention_backward(out, s5.flash_attention_forward(q, k, v, True, 3)[1])
    assert all(np.array_equal(a, b) for a, b in zip((q, k, v, mask), copies))


@pytest.mark.parametrize("forward", [pair[0] for pair in PAIRS])
def test_the_future_leaves_no_trace(rng, forward):
    q, k, v = qkv(rng, 1, 2, 2, 9, 9, 4)
    before = forward(q, k, v, causal=True)[0]
    k[:, :, 5:], v[:, :, 5:] = 100 * rng.normal(size=(2, 1, 2, 4, 4))
    after = forward(q, k, v, causal=True)[0]
    assert np.array_equal(before[:, :, :5], after[:, :, :5])
    assert not np.allclose(before[:, :, 5:], after[:, :, 5:])


def test_soft_lookup_becomes_hard(rng):
    q, k, v = qkv(rng, 1, 1, 1, 6, 8, 5)
    hard = v[0, 0][(q[0, 0] @ k[0, 0].T).argmax(axis=1)]
    np.testing.assert_allclose(s5.attention_forward(q, k, v, scale=1e5)[0][0, 0], hard)
    even = np.broadcast_to(v.mean(axis=2, keepdims=True), q.shape)
    np.testing.assert_allclose(s5.attention_forward(q, k, v, scale=0)[0], even)


def test_without_positions_order_is_lost(rng):
    layer = s5.MultiHeadAttention(8, 2, causal=False)
    x, order = rng.normal(size=(2, 7, 8)), rng.permutation(7)
    np.testing.assert_allclose(
        layer.forward(x[:, order])[0], layer.forward(x)[0][:, order], atol=1e-13
    )
    rotary = s5.MultiHeadAttention(8, 2, causal=False, rope=True)
    assert not np.allclose(rotary.forward(x[:, order])[0], rotary.forward(x)[0][:, order])


def test_grouped_heads_are_repeated_heads(rng):
    q, k, v = qkv(rng, 2, 6, 2, 4, 5, 3)
    out, cache = s5.attention_forward(q, k, v, causal=True)
    repeated, full = s5.attention_forward(q, k.repeat(3, axis=1), v.repeat(3, axis=1), causal=True)
    np.testing.assert_allclose(out, repeated, atol=1e-14)
    dq, dk, dv = s5.attention_backward(out, cache)
    dq_full, dk_full, dv_full = s5.attention_backward(out, full)
    np.testing.assert_allclose(dq, dq_full, atol=1e-13)
    for shared, each in ((dk, dk_full), (dv, dv_full)):
        np.testing.assert_allclose(shared, each.reshape(2, 2, 3, 5, 3).sum(axis=2), atol=1e-13)


QKV = np.ones((1, 2, 3, 4))


@pytest.mark.parametrize(
    "q, k, v, options, wording",
    [
        (QKV[0], QKV, QKV, {}, r"q is float64 \(2, 3, 4\)"),
        (QKV.astype(int), QKV, QKV, {}, "q is int64"),
        (QKV, QKV[:, :, :2], QKV, {}, "do not fit"),
        (QKV, QKV[..., :2], QKV[..., :2], {}, "do not fit"),
        (QKV, np.ones((1, 3, 3, 4)), np.ones((1, 3, 3, 4)), {}, "Hkv dividing H"),
        (QKV, QKV[:, :0], QKV[:, :0], {}, "Hkv dividing H"),
        (np.ones((2, 2, 3, 4)), QKV, QKV, {}, "do not fit"),
        (QKV[..., :0], QKV[..., :0], QKV[..., :0], {}, "do not fit"),
        (QKV, QKV, QKV, {"scale": math.nan}, "scale is nan"),
    ],
)
@pytest.mark.parametrize("forward", [pair[0] for pair in PAIRS])
def test_inputs_that_do_not_fit(forward, q, k, v, options, wording):
    with pytest.raises(ValueError, match=wording):
        forward(q, k, v, **options)


@pytest.mark.parametrize(
    "mask, wording",
    [
        (np.ones((3, 3), int), "int64; expected booleans"),
        (np.full((3, 3), np.nan), "below"),
        (np.full((3, 3), np.inf), "below"),
        (np.ones((3, 4), bool), r"shape \(3, 4\)"),
        (np.ones((2, 1, 2, 3, 3), bool), "mask has shape"),
    ],
)
def test_masks_that_do_not_fit(mask, wording):
    with pytest.raises(ValueError, match=wording):
        s5.attention_forward(QKV, QKV, QKV, mask=mask)


@pytest.mark.parametrize("block", [0, -3, 2.5, None])
def test_blocks_that_are_no_size(block):
    with pytest.raises(ValueError, match="block is .*; expected a whole number"):
        s5.flash_attention_forward(QKV, QKV, QKV, block=block)


# Tiles


@pytest.mark.parametrize("Tq, Tk", [(1, 1), (64, 64), (65, 63), (37, 101)])
@pytest.mark.parametrize("block", [3, 7, 64, 1000])
@pytest.mark.parametrize("causal", [False, True])
def test_tiles_change_nothing(rng, Tq, Tk, block, causal):
    q, k, v = qkv(rng, 1, 2, 1, Tq, Tk, 4)
    q *= 5  # sharp maps: the running maximum moves
    out, cache = s5.attention_forward(q, k, v, causal)
    tiled, tiles = s5.flash_attention_forward(q, k, v, causal, block)
    np.testing.assert_allclose(tiled, out, atol=1e-13)
    dout = rng.normal(size=out.shape)
    for a, b in zip(s5.flash_attention_backward(dout, tiles), s5.attention_backward(dout, cache)):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12 * np.abs(dout).max())


def test_tiles_survive_scores_that_overflow_exp(rng):
    q, k, v = qkv(rng, 1, 1, 1, 9, 9, 3, np.float32)
    for big in (1e4, -1e4):
        out, cache = s5.flash_attention_forward(q, k, v, scale=big, block=2)
        np.testing.assert_allclose(out, s5.attention_forward(q, k, v, scale=big)[0], rtol=1e-5)
        assert all(np.isfinite(g).all() for g in s5.flash_attention_backward(out, cache))


def peak_bytes(forward, backward, T):
    q, k, v = qkv(np.random.default_rng(0), 1, 2, 1, T, T, 16, np.float32)
    tracemalloc.start()
    try:
        out, cache = forward(q, k, v, causal=True)
        first = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        backward(out, cache)
        return np.array([first, tracemalloc.get_traced_memory()[1]])
    finally:
        tracemalloc.stop()


def test_tiles_need_memory_linear_in_T():
    flash, naive = ([peak_bytes(*pair, T) for T in (512, 1024, 2048)] for pair in reversed(PAIRS))
    assert np.all(flash[1] < 2.2 * flash[0]) and np.all(flash[2] < 2.2 * flash[1])
    assert np.all(naive[2] > 3.5 * naive[1])
    inputs = 2048 * 16 * 4 * (2 + 1 + 1)
    assert np.all(flash[2] < 3 * inputs)  # outputs, gradients, Λ and a few tiles


# Positions


@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 4), (2, 3, 4, 6)])
def test_rope_gradient_and_length(rng, shape):
    x, positions = rng.normal(size=shape), rng.integers(0, 1000, size=shape[-2])
    y, _ = s5.rope_forward(x, positions)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1))
    assert_gradients(
        lambda: s5.rope_forward(x, positions)[0],
        [x],
        lambda dy: [s5.rope_backward(dy, s5.rope_forward(x, positions)[1])],
    )


def test_rope_scores_depend_on_the_offset_alone(rng):
    q, k = rng.normal(size=(2, 1, 8))

    def score(m, n):
        return float(s5.rope_forward(q, [m])[0][0] @ s5.rope_forward(k, [n])[0][0])

    for m, n, shift in ((0, 0, 7), (3, 1, 1000), (2, 9, 55)):
        assert score(m, n) == pytest.approx(score(m + shift, n + shift), abs=1e-12)
    assert score(0, 0) == pytest.approx(float(q[0] @ k[0]))
    assert abs(score(0, 1) - score(0, 2)) > 1e-3


def test_rope_turns_halves_by_the_stated_angles():
    x = np.array([1.0, 0.0, 0.0, 2.0])  # pairs (x0, x2) and (x1, x3)
    y, _ = s5.rope_forward(x[None], [3], theta=100.0)
    c, s = math.cos(3), math.sin(3)
    c2, s2 = math.cos(3 * 100**-0.5), math.sin(3 * 100**-0.5)
    np.testing.assert_allclose(y[0], [c, -2 * s2, s, 2 * c2], atol=1e-15)
    unsigned = s5.rope_forward(x[None], np.array([3], np.uint8), theta=100.0)
    np.testing.assert_allclose(s5.rope_backward(*unsigned)[0], x, atol=1e-15)
    per_row = s5.rope_forward(np.ones((2, 3, 1, 4)), np.array([[[5]], [[6]]]))[0]
    np.testing.assert_allclose(per_row[1, 2], s5.rope_forward(np.ones((1, 4)), [6])[0])


@pytest.mark.parametrize(
    "x, positions, theta, wording",
    [
        (np.ones((2, 3)), [0, 1], 1e4, "even D"),
        (np.ones((2, 4)), [0, 1, 2], 1e4, "shape"),
        (np.ones((2, 4)), np.zeros((5, 2)), 1e4, "positions have shape"),
        (np.ones((2, 4)), [0, 1], 0.0, "theta"),
    ],
)
def test_rope_refuses(x, positions, theta, wording):
    with pytest.raises(ValueError, match=wording):
        s5.rope_forward(x, positions, theta)


def test_a_shift_rotates_the_sinusoids():
    table = s5.sinusoidal_positions(50, 6)
    assert table.shape == (50, 6) and np.array_equal(table[0], [0, 1, 0, 1, 0, 1])
    assert table[7, 2] == pytest.approx(math.sin(7 * 10000 ** (-2 / 6)))
    omega = 10000.0 ** (-np.arange(0, 6, 2) / 6)
    for n in (1, 13):
        c, s = np.cos(omega * n), np.sin(omega * n)
        sin, cos = table[:-n, 0::2], table[:-n, 1::2]
        np.testing.assert_allclose(table[n:, 0::2], c * sin + s * cos, atol=1e-13)
        np.testing.assert_allclose(table[n:, 1::2], c * cos - s * sin, atol=1e-13)
    for T, C, said in (
        (3, 5, "even C"),
        (-1, 4, "T is -1"),
        (3, 0, "C is 0"),
        ("3", 4, "T is '3'"),
    ):
        with pytest.raises(ValueError, match=said):
            s5.sinusoidal_positions(T, C)


def test_alibi_slopes_and_distances():
    bias = s5.alibi_bias(8, 3, 5)
    assert bias.shape == (8, 3, 5)
    np.testing.assert_allclose(-bias[:, 2, 3], [2.0**-h for h in range(1, 9)])
    np.testing.assert_allclose(bias[0, 0], -0.5 * np.array([2, 1, 0, 1, 2]))
    assert np.array_equal(bias[:, 2:], s5.alibi_bias(8, 1, 5))
    six = -s5.alibi_bias(6, 2, 2)[:, 1, 0]  # four of 4 heads, then every second one of 8
    np.testing.assert_allclose(six, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    assert s5.alibi_bias(1, 2, 2)[0, 1, 0] == -(2.0**-8)
    with pytest.raises(ValueError, match="n_head"):
        s5.alibi_bias(0, 2, 2)


def test_sliding_window_reaches_L_times_w_minus_1(rng):
    mask = s5.sliding_window_mask(12, 12, 3)
    assert mask.sum(axis=1).tolist() == [1, 2] + [3] * 10
    assert np.array_equal(s5.sliding_window_mask(4, 4), np.tril(np.ones((4, 4), bool)))
    assert s5.sliding_window_mask(1, 5, 2)[0].tolist() == [False, False, False, True, True]

    def last_row(x):
        for _ in range(4):  # L = 4 layers, w = 3: reach 8
            x = x + s5.attention_forward(x, x, x, mask=mask, scale=0)[0]  # even weights
        return x[0, 0, -1]

    x = rng.normal(size=(1, 1, 12, 2))
    base, reached = last_row(x), []
    for t in range(12):
        y = x.copy()
        y[0, 0, t] += 1
        reached.append(not np.array_equal(last_row(y), base))
    assert reached == [False] * 3 + [True] * 9
    with pytest.raises(ValueError, match="window is 0"):
        s5.sliding_window_mask(2, 2, 0)


# Heads and cache


@pytest.mark.parametrize("heads", [(1, None), (4, 2), (4, 1)])
@pytest.mark.parametrize("causal, rope", [(True, True), (False, False)])
@pytest.mark.parametrize("crossed", [False, True])
def test_multi_head_gradients(rng, heads, causal, rope, crossed):
    layer = s5.MultiHeadAttention(8, *heads, causal=causal, rope=rope, seed=3)
    x, context = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 5, 8)) if crossed else None

    def gradients(dy):
        dx, grads = layer.backward(dy, layer.forward(x, context)[1])
        assert list(layer.params) == [name for name in grads if name != "context"]
        inputs = [dx, grads["context"]] if crossed else [dx]
        return inputs + [grads[name] for name in layer.params]

    inputs = ([x, context] if crossed else [x]) + list(layer.params.values())
    assert_gradients(lambda: layer.forward(x, context)[0], inputs, gradients)


def test_cross_attention_over_itself_is_self_attention(rng):
    layer, x = s5.MultiHeadAttention(6, 3, causal=False), rng.normal(size=(2, 4, 6))
    y, cache = layer.forward(x)
    crossed, cross_cache = layer.forward(x, x)
    np.testing.assert_allclose(crossed, y)
    dx, grads = layer.backward(y, cache)
    dx_query, cross_grads = layer.backward(y, cross_cache)
    np.testing.assert_allclose(dx_query + cross_grads["context"], dx)
    assert all(np.allclose(grads[name], cross_grads[name]) for name in grads)


@pytest.mark.parametrize("n_kv_head", [None, 2, 1])
@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 1, 1, 3], [9]])
def test_steps_equal_the_full_forward(rng, n_kv_head, rope, chunks):
    layer = s5.MultiHeadAttention(8, 4, n_kv_head, rope=rope)
    x, rows, kv, start = rng.normal(size=(2, 9, 8)), [], None, 0
    for t in chunks:
        y, kv = layer.step(x[:, start : start + t], kv)
        rows.append(y)
        start += t
    np.testing.assert_allclose(np.concatenate(rows, axis=1), layer.forward(x)[0], atol=1e-13)
    single, _ = layer.step(x[:, 0], {})
    np.testing.assert_allclose(single, rows[0][:, 0], atol=1e-13)


def test_float32_stays_float32(rng):
    layer, x = s5.MultiHeadAttention(8, 2, rope=True), rng.normal(size=(1, 3, 8)).astype(np.float32)
    y, cache = layer.forward(x)
    dx, grads = layer.backward(y, cache)
    assert {a.dtype for a in (y, dx, layer.step(x)[0], *grads.values())} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "arguments", [(0, 1), (8, 3), (8, 4, 3), (8.0, 2), (8, 2, 0), (6, 2, 2, True, True)]
)
def test_sizes_that_do_not_divide(arguments):
    with pytest.raises(ValueError, match="n_embd, n_head, n_kv_head are|expected a whole number"):
        s5.MultiHeadAttention(*arguments)


def test_layers_refuse_bad_inputs(rng):
    layer, x = s5.MultiHeadAttention(8, 2), rng.normal(size=(2, 3, 8))
    for bad in (x[0], x[..., :4], x.astype(int)):
        with pytest.raises(ValueError, match=r"expected floats \(B, T, 8\)"):
            layer.forward(bad)
    with pytest.raises(ValueError, match=r"expected floats \(B, T, 8\)"):
        layer.forward(x, x[..., :4])
    with pytest.raises(ValueError, match="batch size 1"):
        layer.step(x[:1], layer.step(x)[1])
    with pytest.raises(ValueError, match="causal is False"):
        s5.MultiHeadAttention(8, 2, causal=False).step(x)


# Recall


def test_recall_batches_can_be_answered_by_looking_back():
    batch = s5.recall_batch(np.random.default_rng(1), 50, 5)
    assert batch.shape == (50, 20)
    for row in batch:
        letters, digits = row[0::2], row[1::2]
        seen = dict(zip(letters[:5].tolist(), digits[:5].tolist()))
        assert len(seen) == 5 and max(seen) < len(s5.LETTERS) <= min(seen.values())
        assert [seen[i] for i in letters[5:].tolist()] == digits[5:].tolist()


@pytest.mark.parametrize("n_layer", [1, 2])
def test_attention_only_gradients(n_layer):
    model = s5.AttentionOnly(8, 4, 2, n_layer, seed=1, dtype=np.float64)
    idx = s5.recall_batch(np.random.default_rng(0), 3, 2)
    assert_gradients(
        lambda: np.array(model.loss_and_grads(idx)[0]),
        list(model.params.values()),
        lambda w: [w * model.loss_and_grads(idx)[2][name] for name in model.params],
    )


@pytest.mark.parametrize("seed", range(40))
def test_one_head_never_answers_all_four_texts(seed):
    a, b, x, y = (s5.TOKENS.index(c) for c in "ab37")
    texts = [[a, x, b, y, a], [b, y, a, x, a], [a, y, b, x, a], [b, x, a, y, a]]
    model = s5.AttentionOnly(5, 8, 1, 1, seed, dtype=np.float64)
    for p in model.params.values():
        p *= 1 + seed % 4  # from nearly even maps to nearly one-hot ones
    logits = model.forward(np.array(texts))[0][:, -1]
    gap = logits[:, x] - logits[:, y]
    assert not (gap[0] > 0 and gap[1] > 0 and gap[2] < 0 and gap[3] < 0)


# The program


def test_the_smoke_run_is_deterministic_and_two_layers_learn_what_one_does_not(capsys, monkeypatch):
    outputs = []
    for _ in range(2):
        assert not s5.main(["--fast", "--seed", "1"])
        outputs.append(capsys.readouterr().out)
        for timed in ("report_tiles", "report_cache"):
            monkeypatch.setattr(s5, timed, lambda *_: None)
    assert "4. Cache" in outputs[0] and "held-out:" not in outputs[0]
    assert outputs[0].split("\n3. Tiles")[0] == outputs[1]
    right = [float(share) for share in re.findall(r"layers .* (\S+)% ", outputs[0])]
    assert len(right) == 3 and max(right[:2]) < 60 and right[2] > 80  # two layers, not one
    s5.report_scale(2)
    assert capsys.readouterr().out not in outputs[0]


@pytest.mark.parametrize("argv", [["--seed", "-1"], ["--seed", "x"], ["--nonsense"]])
def test_a_wrong_command_line_gets_one_line(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        s5.main(argv)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.count("\n") == 1 and "error" in captured.err


# Inputs at the corners: the right value, or a sentence that says what was expected.


def test_sizes_and_scores_of_eight_bits_count_like_any_others(rng):
    five, three = np.uint8(5), np.uint8(3)
    np.testing.assert_array_equal(s5.sliding_window_mask(five, three), np.tri(5, 3, -2, dtype=bool))
    np.testing.assert_array_equal(s5.sliding_window_mask(five, three), s5.sliding_window_mask(5, 3))
    np.testing.assert_array_equal(s5.alibi_bias(np.uint8(2), five, three), s5.alibi_bias(2, 5, 3))
    np.testing.assert_array_equal(
        s5.sinusoidal_positions(five, np.uint8(8)), s5.sinusoidal_positions(5, 8)
    )
    q, k, v = qkv(rng, 1, 1, 1, 300, 300, 2)
    tiled, _ = s5.flash_attention_forward(q, k, v, block=np.uint8(200))
    np.testing.assert_allclose(tiled, s5.attention_forward(q, k, v)[0], atol=1e-13)
    for dtype in (np.uint8, np.int16, np.int64):
        p, _ = s5.softmax_forward(np.array([0, 1, 200], dtype))
        assert p.dtype == np.float64 and p[1] / p[0] == pytest.approx(math.e, rel=1e-12)


@pytest.mark.parametrize("scores", [3.0, True, [True, False], ["a"], None])
def test_what_is_no_row_of_scores_is_refused(scores):
    with pytest.raises(ValueError, match="expected numbers"):
        s5.softmax_forward(scores)


@pytest.mark.parametrize("wrong", [(1, 2, 3, 2), (2, 2, 1, 2), (2, 3, 2, 2), (2, 2, 3, 1), (24,)])
def test_upstream_gradients_of_another_shape_are_refused(rng, wrong):
    q, k, v = qkv(rng, 2, 2, 1, 3, 3, 2)
    dout = np.ones(wrong)
    for forward, backward in (
        (s5.attention_forward, s5.attention_backward),
        (s5.flash_attention_forward, s5.flash_attention_backward),
    ):
        with pytest.raises(ValueError, match=r"dout has shape .*; expected \(2, 2, 3, 2\)"):
            backward(dout, forward(q, k, v)[1])
    with pytest.raises(ValueError, match="dp has shape"):
        s5.softmax_backward(dout, s5.softmax_forward(q)[1])
    layer = s5.MultiHeadAttention(4, 2)
    with pytest.raises(ValueError, match=r"dy has shape .*; expected \(2, 3, 4\)"):
        layer.backward(np.ones((1, 3, 4)), layer.forward(rng.normal(size=(2, 3, 4)))[1])


def test_wrong_numbers_are_named(rng):
    x = rng.normal(size=(5, 4))
    for call, said in (
        (lambda: s5.attention_forward(QKV, QKV, QKV, scale="1"), "scale is '1'"),
        (lambda: s5.attention_forward(QKV, QKV, QKV, scale=True), "scale is True"),
        (lambda: s5.flash_attention_forward(QKV, QKV, QKV, block=True), "block is True"),
        (lambda: s5.sliding_window_mask(2, 3, 1.5), "window is 1.5"),
        (lambda: s5.sliding_window_mask(2, 3, "a"), "window is 'a'"),
        (lambda: s5.sliding_window_mask(-2, 3), "Tq is -2"),
        (lambda: s5.alibi_bias("2", 5, 3), "n_head is '2'"),
        (lambda: s5.rope_forward(x, np.arange(5), "a"), "theta is 'a'"),
        (lambda: s5.rope_forward(x, [0, 1, 2, 3, np.nan]), "positions that are finite"),
        (lambda: s5.rope_forward(np.ones((5, 4), int), np.arange(5)), "x is int64"),
        (lambda: s5.MultiHeadAttention(4, True), "n_head is True"),
        (lambda: s5.scale_statistics(0, 1.0, rng), "D is 0"),
        (lambda: s5.recall_batch(rng, 2, 13), "n_pairs is 13; expected at most 12"),
        (lambda: s5.recall_batch(rng, 2, None), "n_pairs is None"),
        (lambda: s5.AttentionOnly("4", 8, 2, 1), "T is '4'"),
        (lambda: s5.train(s5.AttentionOnly(4, 8, 2, 1), 0, 1, 0), "steps is 0"),
        (lambda: s5.train(s5.AttentionOnly(4, 8, 2, 1), 9, 1, 0, "", math.nan), "rate is nan"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_ids_of_any_width_are_the_same_ids(rng):
    model, ids = s5.AttentionOnly(4, 8, 2, 1), np.array([[0, 12, 0, 12]])
    loss, right, grads = model.loss_and_grads(ids)
    for same in (ids.tolist(), *(ids.astype(t) for t in ("u1", "i1", "u2", "i4", "u8"))):
        again = model.loss_and_grads(same)
        assert again[:2] == (loss, right)
        assert all(np.array_equal(again[2][name], grads[name]) for name in grads)
    for wrong in (ids * 1.0, ids > 0, ids - 13, ids + 11, ids[0], ids[:, :2]):
        with pytest.raises(ValueError, match="^idx (is|holds)"):
            model.loss_and_grads(wrong)


def test_training_that_diverges_says_at_which_step():
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="step 2: loss nan"):
        s5.train(s5.AttentionOnly(4, 8, 2, 1), 60, 1, 0, learning_rate=1e30)
