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


# The first page, and the numbers of section 2


def close(found, written):
    """The numbers as they are written in the file, to half a unit of the third decimal."""
    np.testing.assert_allclose(found, written, atol=5.001e-4)


KEYS = np.array([[1.0, 0], [0, 1], [-1, 0]])  # Mia, saw, Tom
VALUES = np.array([[1.0, 0], [0, 0], [0, 1]])
ACTIONS = np.array([[0.0, 0], [1, 0], [0, 0]])


def test_one_query_and_three_keys_are_the_numbers_on_the_first_page():
    q = np.array([2.0, 0])
    weights, y = s5.attend(q, KEYS, VALUES)
    assert np.exp(KEYS @ q).sum() == pytest.approx(8.52, abs=5e-3)
    close(weights, [0.867, 0.117, 0.016])
    close(y, [0.867, 0.016])
    dq, dkeys, dvalues = s5.attend_backward(np.array([1.0, 0]), weights, q, KEYS, VALUES)
    close(weights * (np.array([1, 0, 0]) - weights[0]), [0.115, -0.102, -0.014])
    close(dq, [0.129, -0.102])
    close(dkeys, [[0.231, 0], [-0.203, 0], [-0.028, 0]])
    close(dvalues, [[0.867, 0], [0.117, 0], [0.016, 0]])
    close(s5.attend(np.array([2.0, 2]), KEYS, VALUES)[0], [0.495, 0.495, 0.009])


def test_two_heads_are_the_numbers_on_the_first_page():
    q, Wo = np.array([0.0, 2]), np.array([[1.0], [0], [1], [0]])
    weights, y = s5.attend(q, KEYS, ACTIONS)
    close(weights, [0.107, 0.787, 0.107])
    close(y, [0.787, 0])
    both = s5.two_heads(
        np.array([2.0, 0, 0, 2]), np.hstack([KEYS, KEYS]), np.hstack([VALUES, ACTIONS]), Wo
    )
    close(both, [1.654])
    close(Wo @ np.ones(1), [1, 0, 1, 0])
    dq, dkeys, _ = s5.attend_backward(np.array([1.0, 0]), weights, q, KEYS, ACTIONS)
    close(dkeys[:, 1] / q[1], [-0.084, 0.168, -0.084])
    close(dq, [0, 0.168])


def test_the_first_page_is_attention_with_one_head(rng):
    q, k, v = rng.normal(size=4), rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    dy = rng.normal(size=4)
    weights, y = s5.attend(q, k, v)
    full = s5.attention_forward(q[None, None, None], k[None, None], v[None, None], scale=1.0)
    np.testing.assert_allclose(full[0][0, 0, 0], y)
    back = s5.attention_backward(dy[None, None, None], full[1])
    for plain, batched in zip(s5.attend_backward(dy, weights, q, k, v), back):
        np.testing.assert_allclose(np.squeeze(batched), plain)
    assert_gradients(
        lambda: s5.attend(q, k, v)[1],
        [q, k, v],
        lambda dy: s5.attend_backward(dy, s5.attend(q, k, v)[0], q, k, v),
    )


def test_two_heads_are_the_layer_with_two_heads(rng):
    layer, x = s5.MultiHeadAttention(4, 2), rng.normal(size=(1, 3, 4))
    W = layer.params
    last = s5.two_heads(x[0, 2] @ W["Wq"] / 2**0.5, x[0] @ W["Wk"], x[0] @ W["Wv"], W["Wo"])
    np.testing.assert_allclose(layer.forward(x)[0][0, 2], last)


def test_the_numbers_beside_recurrence():
    assert 0.9**999 == pytest.approx(1.9e-46, rel=0.03) and np.float32(0.9**999) == 0
    assert 1.1**999 == pytest.approx(2.2e41, rel=0.03) and 1.1**999 > float(
        np.finfo(np.float32).max
    )
    T, C = 1000, 512
    assert (4 * T * C**2 + 2 * T**2 * C) / (2 * T * C**2) == pytest.approx(4, rel=0.02)


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_follows_the_input(rng, dtype):
    q, k, v = qkv(rng, 1, 2, 1, 3, 5, 4, dtype)
    for forward, backward in PAIRS:
        out, cache = forward(q, k, v, causal=True, scale=0.3)
        assert {a.dtype for a in (out, *backward(out, cache))} == {np.dtype(dtype)}
    assert s5.attention_forward(q, k, v, mask=np.zeros((3, 5)))[0].dtype == dtype
    assert s5.rope_forward(q, np.arange(3))[0].dtype == dtype


@pytest.mark.parametrize("narrow", range(3))
def test_mixed_dtypes_are_computed_in_the_widest_everywhere(rng, narrow):
    arrays = qkv(rng, 1, 2, 1, 3, 5, 4)
    arrays[narrow] = arrays[narrow].astype(np.float32)
    for forward, backward in PAIRS:
        out, cache = forward(*arrays)
        wide, wide_cache = forward(*(a.astype(np.float64) for a in arrays))
        assert {a.dtype for a in (out, *backward(out, cache))} == {np.dtype(np.float64)}
        np.testing.assert_array_equal(out, wide)
        for a, b in zip(backward(out, cache), backward(wide, wide_cache)):
            np.testing.assert_array_equal(a, b)
    layer, x = s5.MultiHeadAttention(4, 2), rng.normal(size=(1, 3, 4))
    _, kv = layer.step(x[:, :2].astype(np.float32))
    assert layer.step(x[:, 2], kv)[0].dtype == np.float64


def test_integers_are_numbers_and_float16_is_refused(rng):
    q, k, v = (rng.integers(-2, 3, size=(1, 1, 3, 2)) for _ in range(3))
    for forward, _ in PAIRS:
        out, _ = forward(q, k, v)
        np.testing.assert_array_equal(out, forward(q * 1.0, k * 1.0, v * 1.0)[0])
    layer = s5.MultiHeadAttention(2, 1)
    np.testing.assert_array_equal(layer.forward(q[0])[0], layer.forward(q[0] * 1.0)[0])
    np.testing.assert_array_equal(layer.step(q[0])[0], layer.forward(q[0] * 1.0)[0])
    half = np.full((1, 1, 2, 4), 300, np.float16)  # 4 · 300² is more than a float16 holds
    for call in (
        lambda: s5.attention_forward(half, half, half),
        lambda: s5.softmax_forward(half),
        lambda: s5.rope_forward(half, [0, 1]),
        lambda: s5.MultiHeadAttention(4, 1).forward(half[0]),
    ):
        with pytest.raises(ValueError, match="holds float16; expected float32, float64"):
            call()


# The scale


@pytest.mark.parametrize("D", [4, 64])
def test_scores_have_variance_D_and_one(D):
    raw, narrow = s5.scale_statistics(D, 1.0, np.random.default_rng(0))
    unit, wide = s5.scale_statistics(D, D**-0.5, np.random.default_rng(0))
    assert raw == pytest.approx(D, rel=0.05) and unit == pytest.approx(1, rel=0.05)
    assert 0 <= narrow < wide < 1


@pytest.mark.parametrize("D, trace", [(64, 0.30), (256, 0.15)])
def test_the_gradient_that_passes_is_as_section_4_says(D, trace):
    raw = s5.scale_statistics(D, 1.0, np.random.default_rng(7))
    scaled = s5.scale_statistics(D, D**-0.5, np.random.default_rng(7))
    assert raw[1] == pytest.approx(trace, abs=0.02) and scaled[1] == pytest.approx(0.96, abs=0.01)


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
    rotary = s5.MultiHeadAttention(8, 2, causal=False, frequencies=s5.rope_frequencies(4))
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
        (QKV[0], QKV, QKV, {}, r"q \(2, 3, 4\).*do not fit"),
        (QKV, QKV[0], QKV[0], {}, "do not fit"),
        (QKV > 0, QKV, QKV, {}, "q holds bool"),
        (QKV, QKV.astype(str), QKV, {}, "k holds <U"),
        (QKV, QKV, None, {}, "v holds object"),
        (QKV, QKV[:, :, :2], QKV, {}, "do not fit"),
        (QKV, QKV[..., :2], QKV[..., :2], {}, "do not fit"),
        (QKV, np.ones((1, 3, 3, 4)), np.ones((1, 3, 3, 4)), {}, "Hkv dividing H"),
        (QKV, QKV[:, :0], QKV[:, :0], {}, "Hkv dividing H"),
        (np.ones((2, 2, 3, 4)), QKV, QKV, {}, "do not fit"),
        (QKV[..., :0], QKV[..., :0], QKV[..., :0], {}, "do not fit"),
        (QKV, QKV, QKV, {"scale": math.nan}, "scale is nan"),
        (QKV, QKV, QKV, {"causal": "no"}, "causal is 'no'; expected True or False"),
        (QKV, QKV, QKV, {"causal": np.ones((3, 3), bool)}, "causal is array"),
        (QKV, QKV, QKV, {"causal": None}, "causal is None"),
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
        (np.ones((3, 4), bool), r"^mask has shape \(3, 4\); expected one that fits \(1, 2, 3, 3\)"),
        (np.ones((2, 1, 2, 3, 3), bool), "^mask has shape"),
        (np.ones((2, 1, 3, 3)), r"^mask has shape \(2, 1, 3, 3\)"),  # one for each of two texts
        (np.ones((0, 3), bool), "^mask has shape"),
        ("causal", "mask of dtype <U6"),
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
    assert np.all(flash[2] < 3 * inputs)  # outputs, gradients, log Z and a few tiles


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
    frequencies = s5.rope_frequencies(4, base=100.0)
    np.testing.assert_allclose(frequencies, [1, 0.1])
    y, _ = s5.rope_forward(x[None], [3], frequencies)
    c, s = math.cos(3), math.sin(3)
    c2, s2 = math.cos(3 * 100**-0.5), math.sin(3 * 100**-0.5)
    np.testing.assert_allclose(y[0], [c, -2 * s2, s, 2 * c2], atol=1e-15)
    unsigned = s5.rope_forward(x[None], np.array([3], np.uint8), frequencies)
    np.testing.assert_allclose(s5.rope_backward(*unsigned)[0], x, atol=1e-15)
    whole = s5.rope_forward([[1, 0, 0, 2]], [3])[0]  # integers, of base 10,000
    close(whole, [[-0.990, -0.060, 0.141, 1.999]])
    per_row = s5.rope_forward(np.ones((2, 3, 1, 4)), np.array([[[5]], [[6]]]))[0]
    np.testing.assert_allclose(per_row[1, 2], s5.rope_forward(np.ones((1, 4)), [6])[0])


@pytest.mark.parametrize(
    "x, positions, frequencies, wording",
    [
        (np.ones((2, 3)), [0, 1], None, "D is 3; expected an even"),
        (np.ones((2, 3)), [0, 1], [1.0], r"frequencies \(1,\) for D = 3; expected \(1.5,\)"),
        (np.ones((2, 4)), [0, 1], [1.0], r"frequencies \(1,\) for D = 4; expected \(2,\)"),
        (np.ones((2, 4)), [0, 1], [[1.0, 1.0]], r"frequencies \(1, 2\)"),
        (np.ones((2, 4)), [0, 1], [1.0, math.nan], "not finite"),
        (3.0, 0, None, "D is 0"),
        (np.ones((2, 4)), [0, 1, 2], None, r"^positions has shape \(3,\); .* fits \(2,\)"),
        (np.ones((2, 4)), np.zeros((5, 2)), None, "^positions has shape"),
    ],
)
def test_rope_refuses(x, positions, frequencies, wording):
    with pytest.raises(ValueError, match=wording):
        s5.rope_forward(x, positions, frequencies)


def test_frequencies_fall_from_one_in_equal_ratios():
    np.testing.assert_allclose(s5.rope_frequencies(8), [1, 0.1, 0.01, 0.001])
    np.testing.assert_allclose(s5.rope_frequencies(np.uint8(2), 7.0), [1])
    for D, base in ((3, 10.0), (0, 10.0), (4, 0.0), (4, -1.0), (4, "10"), (4, math.inf), (4.0, 9)):
        with pytest.raises(
            ValueError, match="expected an even|whole number|a finite number above 0"
        ):
            s5.rope_frequencies(D, base)


# Longer than trained


def test_scaled_rotations_are_the_table_of_section_7():
    usual = s5.rope_frequencies(8)
    turns = 2048 * usual / (2 * math.pi)
    np.testing.assert_allclose(turns, [326, 32.6, 3.26, 0.326], rtol=2e-3)
    for rule, written in (
        ("linear", [0.25, 0.025, 0.0025, 0.00025]),
        ("ntk", [1, 0.0630, 0.00397, 0.00025]),
        ("llama3", [1, 0.1, 0.00815, 0.00025]),
    ):
        found = s5.scaled_frequencies(usual, 4, rule, trained_length=2048)
        np.testing.assert_allclose(found, written, rtol=8e-4)


def test_scaled_rotations_equal_those_of_transformers():
    """D 16, base 500,000, eight times 8,192: transformers 5.24's linear, dynamic and llama3."""
    theirs = {
        "linear": "1.2500000e-01 2.4240345e-02 4.7007538e-03 9.1158313e-04"
        " 1.7677668e-04 3.4281024e-05 6.6478697e-06 1.2891732e-06",
        "ntk": "1.0000000e+00 1.4408404e-01 2.0760212e-02 2.9912153e-03"
        " 4.3098640e-04 6.2098261e-05 8.9473697e-06 1.2891732e-06",
        "llama3": "1.0000000e+00 1.9392276e-01 3.7606031e-02 7.2926651e-03"
        " 5.2484602e-04 3.4281024e-05 6.6478697e-06 1.2891732e-06",
    }
    for rule, numbers in theirs.items():
        ours = s5.scaled_frequencies(s5.rope_frequencies(16, 500000.0), 8, rule, 8192)
        np.testing.assert_allclose(ours, np.array(numbers.split(), float), rtol=5e-7)


def test_what_the_three_rules_promise(rng):
    usual, x, positions = s5.rope_frequencies(12, 100.0), rng.normal(size=(5, 12)), np.arange(5)
    slow = s5.scaled_frequencies(usual, 2.5, "linear")
    np.testing.assert_allclose(
        s5.rope_forward(x, positions, slow)[0], s5.rope_forward(x, positions / 2.5, usual)[0]
    )
    ntk = s5.scaled_frequencies(usual, 3, "ntk")
    np.testing.assert_allclose(ntk, s5.rope_frequencies(12, 100.0 * 3 ** (12 / 10)))
    assert ntk[0] == usual[0] and ntk[-1] == pytest.approx(usual[-1] / 3)
    turns = np.array([9, 4, 3, 2, 1, 0.5])
    llama = s5.scaled_frequencies(2 * math.pi * turns / 50, 4, "llama3", 50) * 50 / (2 * math.pi)
    np.testing.assert_allclose(
        llama, [9, 4, 3 * (2 / 3 + 1 / 12), 2 * (1 / 3 + 1 / 6), 0.25, 0.125]
    )
    sharp = s5.scaled_frequencies(2 * math.pi * turns / 50, 4, "llama3", 50, low=2, high=3)
    np.testing.assert_allclose(sharp * 50 / (2 * math.pi), [9, 4, 3, 0.5, 0.25, 0.125])
    for rule in ("linear", "ntk", "llama3"):
        np.testing.assert_allclose(s5.scaled_frequencies(usual, 1, rule, 50), usual)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((np.ones(4), 0, "ntk"), "factor is 0; expected a finite number above 0"),
        ((np.ones(4), "2", "ntk"), "factor is '2'"),
        ((np.ones(1), 2, "linear"), r"shape \(1,\); expected \(D/2,\), D >= 4"),
        ((np.ones((2, 2)), 2, "ntk"), r"shape \(2, 2\)"),
        ((np.ones(4), 2, "yarn"), "rule is 'yarn'; expected linear, ntk or llama3"),
        ((np.ones(4), 2, None), "rule is None"),
        ((np.ones(4), 2, "llama3"), "trained_length is None"),
        ((np.ones(4), 2, "llama3", 8, 4, 4), "high is 4; expected a finite number above 4"),
        ((np.ones(4), 2, "llama3", 8, math.nan), "low is nan"),
    ],
)
def test_scaling_refuses(arguments, said):
    with pytest.raises(ValueError, match=said):
        s5.scaled_frequencies(*arguments)


# Windows


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


def test_a_layer_with_a_window_looks_no_further(rng):
    layer = s5.MultiHeadAttention(8, 4, 2, frequencies=s5.rope_frequencies(2), window=3)
    x = rng.normal(size=(1, 7, 8))
    y, _ = layer.forward(x)
    for t in range(7):
        changed = x.copy()
        changed[0, t] += 1
        moved = np.any(layer.forward(changed)[0] != y, axis=-1)[0]
        assert moved.tolist() == [t <= i < t + 3 for i in range(7)]
    # The last row is that of a text which begins where the window does: rotations are relative.
    np.testing.assert_allclose(layer.forward(x[:, 4:])[0][:, -1], y[:, -1])
    wide = s5.MultiHeadAttention(8, 4, 2, frequencies=s5.rope_frequencies(2), window=7)
    full = s5.MultiHeadAttention(8, 4, 2, frequencies=s5.rope_frequencies(2))
    np.testing.assert_array_equal(wide.forward(x)[0], full.forward(x)[0])


@pytest.mark.parametrize("window", [1, 2, 3, 5, 9, 20])
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 1, 0, 1, 3], [9], [2, 6, 1]])
def test_steps_with_a_window_equal_forward_and_keep_no_more(rng, window, chunks):
    layer = s5.MultiHeadAttention(4, 2, frequencies=s5.rope_frequencies(2), window=window)
    x, rows, kv, start = rng.normal(size=(2, 9, 4)), [], None, 0
    for t in chunks:
        y, kv = layer.step(x[:, start : start + t], kv)
        rows.append(y)
        start += t
        assert kv["length"] == start
        assert kv["k"].shape == kv["v"].shape == (2, 2, min(start, window - 1), 2)
    np.testing.assert_allclose(np.concatenate(rows, axis=1), layer.forward(x)[0], atol=1e-13)


def test_windows_that_are_none(rng):
    for window, said in ((0, "window is 0"), (2.5, "window is 2.5"), (True, "window is True")):
        with pytest.raises(ValueError, match=said):
            s5.MultiHeadAttention(4, 2, window=window)
        with pytest.raises(ValueError, match=said):
            s5.sliding_window_mask(4, 4, window)
    with pytest.raises(ValueError, match="window is 3 without a causal mask"):
        s5.MultiHeadAttention(4, 2, causal=False, window=3)


# Heads and cache


@pytest.mark.parametrize("heads", [(1, None), (4, 2), (4, 1)])
@pytest.mark.parametrize("shape", [(2, 3, 8), (1, 1, 8)])
@pytest.mark.parametrize(
    "causal, base, window", [(True, 9.0, None), (False, None, None), (True, None, 2)]
)
def test_multi_head_gradients(rng, heads, shape, causal, base, window):
    frequencies = None if base is None else s5.rope_frequencies(8 // heads[0], base)
    layer = s5.MultiHeadAttention(8, *heads, causal, frequencies, window, seed=3)
    x = rng.normal(size=shape)

    def gradients(dy):
        dx, grads = layer.backward(dy, layer.forward(x)[1])
        assert grads.keys() == layer.params.keys()
        return [dx] + [grads[name] for name in layer.params]

    assert_gradients(lambda: layer.forward(x)[0], [x, *layer.params.values()], gradients)


def test_rotations_may_be_replaced_at_any_time(rng):
    usual, x = s5.rope_frequencies(4), rng.normal(size=(1, 6, 8))
    layer = s5.MultiHeadAttention(8, 2, frequencies=usual)
    before, _ = layer.forward(x)
    layer.frequencies = s5.scaled_frequencies(usual, 2, "linear")
    after, cache = layer.forward(x)
    assert not np.allclose(before, after)
    stepped, kv = layer.step(x[:, :4])
    np.testing.assert_allclose(layer.step(x[:, 4:], kv)[0], after[:, 4:], atol=1e-13)


@pytest.mark.parametrize("n_kv_head", [None, 2, 1])
@pytest.mark.parametrize("frequencies", [None, [0.7]])
@pytest.mark.parametrize("chunks", [[1] * 9, [0, 4, 1, 0, 1, 3], [9]])
def test_steps_equal_the_full_forward(rng, n_kv_head, frequencies, chunks):
    layer = s5.MultiHeadAttention(8, 4, n_kv_head, frequencies=frequencies)
    x, rows, kv, start = rng.normal(size=(2, 9, 8)), [], None, 0
    for t in chunks:
        y, kv = layer.step(x[:, start : start + t], kv)
        rows.append(y)
        start += t
    np.testing.assert_allclose(np.concatenate(rows, axis=1), layer.forward(x)[0], atol=1e-13)
    single, _ = layer.step(x[:, 0], {})
    np.testing.assert_allclose(single, layer.forward(x)[0][:, 0], atol=1e-13)
    assert layer.step(np.zeros((2, 0, 8)))[0].shape == (2, 0, 8)


def test_two_continuations_share_a_beginning(rng):
    layer, x, other = s5.MultiHeadAttention(8, 2), *rng.normal(size=(2, 1, 5, 8))
    _, kv = layer.step(x[:, :3])
    kept = kv["k"].copy()
    first, _ = layer.step(x[:, 3:], kv)
    layer.step(other[:, 3:], kv)
    assert kv["length"] == 3 and np.array_equal(kv["k"], kept)
    np.testing.assert_array_equal(layer.step(x[:, 3:], kv)[0], first)


@pytest.mark.parametrize("n_head, window, B", [(1, None, 2), (2, None, 2), (4, 3, 2), (4, None, 1)])
def test_a_cache_of_another_layer_is_refused(rng, n_head, window, B):
    _, kv = s5.MultiHeadAttention(8, 4).step(rng.normal(size=(2, 5, 8)))
    other = s5.MultiHeadAttention(8, n_head, window=window)
    with pytest.raises(ValueError, match=r"kv_cache holds keys \(2, 4, 5, 2\) and .*; expected \("):
        other.step(rng.normal(size=(B, 1, 8)), kv)
    narrow = s5.MultiHeadAttention(8, 4, window=3).step(rng.normal(size=(2, 5, 8)))[1]
    with pytest.raises(ValueError, match=r"holds keys \(2, 4, 2, 2\).*; expected \(2, 4, 5, 2\)"):
        s5.MultiHeadAttention(8, 4).step(rng.normal(size=(2, 1, 8)), narrow)


@pytest.mark.parametrize("cached", [True, False])
def test_a_malformed_cache_is_named(rng, cached):
    layer = s5.MultiHeadAttention(8, 4)
    x, kv = rng.normal(size=(2, 1, 8)), layer.step(rng.normal(size=(2, 5, 8)))[1]
    half = {**kv, "k": kv["k"].astype(np.float16)}
    for wrong, said in (
        (5, "kv_cache is 5; expected None"),
        ("kv", "kv_cache is kv"),
        (kv["k"], "kv_cache is .*; expected None"),
        ((kv["k"], kv["v"]), "kv_cache is"),
        (True, "kv_cache is True"),
        ({"k": kv["k"], "v": kv["v"]}, "kv_cache is .*; expected None, or k, v, length"),
        ({**kv, "more": 1}, "kv_cache is"),
        ({**kv, "length": -1}, "kv_cache's length is -1; expected a whole number"),
        ({**kv, "length": 5.0}, "kv_cache's length is 5.0"),
        ({**kv, "length": None}, "kv_cache's length is None"),
        ({**kv, "length": 6}, r"holds keys \(2, 4, 5, 2\).*; expected \(2, 4, 6, 2\)"),
        ({**kv, "v": kv["v"][:, :, :4]}, r"and values \(2, 4, 4, 2\); expected \(2, 4, 5, 2\)"),
        ({**kv, "v": kv["v"][:1]}, r"and values \(1, 4, 5, 2\); expected"),
        ({**kv, "v": None}, "kv_cache's v holds object"),
        (half, "kv_cache's k holds float16"),
    ):
        with pytest.raises(ValueError, match=f"(?s){said}"):
            layer.step(x[:, 0] if cached else x, wrong)


def test_float32_stays_float32(rng):
    layer = s5.MultiHeadAttention(8, 2, frequencies=s5.rope_frequencies(4))
    x = rng.normal(size=(1, 3, 8)).astype(np.float32)
    y, cache = layer.forward(x)
    dx, grads = layer.backward(y, cache)
    assert {a.dtype for a in (y, dx, layer.step(x)[0], *grads.values())} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "arguments", [(0, 1), (8, 3), (8, 4, 3), (8.0, 2), (8, 2, 0), (8, "2"), (None, 2)]
)
def test_sizes_that_do_not_divide(arguments):
    with pytest.raises(ValueError, match="n_embd, n_head, n_kv_head are|expected a whole number"):
        s5.MultiHeadAttention(*arguments)


def test_layers_refuse_bad_inputs(rng):
    layer, x = s5.MultiHeadAttention(8, 2), rng.normal(size=(2, 3, 8))
    for bad in (x[0], x[..., :4], x[None]):
        with pytest.raises(ValueError, match=r"input has shape .*; expected \(B, T, 8\)"):
            layer.forward(bad)
    for bad in (x > 0, x.astype(str), None):
        with pytest.raises(ValueError, match="input holds .*; expected float32"):
            layer.forward(bad)
        with pytest.raises(ValueError, match="input holds .*; expected float32"):
            layer.step(bad)
    with pytest.raises(ValueError, match=r"frequencies \(1,\) for D = 4"):
        s5.MultiHeadAttention(8, 2, frequencies=[1.0]).forward(x)
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
    model = s5.AttentionOnly(4, 2, n_layer, seed=1, dtype=np.float64)
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
    model = s5.AttentionOnly(8, 1, 1, 1.0 + seed, seed, dtype=np.float64)
    for p in model.params.values():
        p *= 1 + seed % 4  # from nearly even maps to nearly one-hot ones
    logits = model.forward(np.array(texts))[0][:, -1]
    gap = logits[:, x] - logits[:, y]
    assert not (gap[0] > 0 and gap[1] > 0 and gap[2] < 0 and gap[3] < 0)


class Slope:
    """Stands in for a model: gradients given in advance, and the texts it was shown."""

    def __init__(self, gradients):
        self.params = {"w": np.array([1.0, -2.0])}
        self.gradients = [np.array(g, dtype=float) for g in gradients]
        self.seen = []

    def loss_and_grads(self, ids):
        self.seen.append(ids)
        return 1.0, 0.5, {"w": self.gradients[(len(self.seen) - 1) % len(self.gradients)]}


@pytest.mark.parametrize("steps", [1, 7, 120])
def test_a_constant_slope_is_descended_by_the_schedule_alone(steps):
    model = Slope([[3.0, -0.2]])  # Adam's corrected moments are then g and g², each step the rate
    s5.train(model, steps, 3, seed=5, learning_rate=0.02)
    t = np.arange(1, steps + 1)
    way = np.sum(0.02 * np.minimum(1, t / 50) * (1 - 0.9 * t / steps))
    np.testing.assert_allclose(model.params["w"], [1 - way, -2 + way], rtol=1e-6)
    rng = np.random.default_rng(5)
    assert len(model.seen) == steps
    assert all(np.array_equal(ids, s5.recall_batch(rng, 32, 3)) for ids in model.seen)


def test_three_steps_of_adam_by_hand():
    gradients = [[1.0, 2.0], [-3.0, 0.5], [0.1, 0.0]]
    model, w = Slope(gradients), np.array([1.0, -2.0])
    s5.train(model, 3, 2, seed=0, learning_rate=0.5)
    m, v = np.zeros(2), np.zeros(2)
    for t, g in enumerate(np.array(gradients), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
        rate = 0.5 * (t / 50) * (1 - 0.9 * t / 3)
        w = w - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-8)
    np.testing.assert_allclose(model.params["w"], w, rtol=1e-12)


def test_training_makes_the_answers_likelier(capsys):
    model, texts = s5.AttentionOnly(16, 2, 2), s5.recall_batch(np.random.default_rng(9), 200, 2)
    before, _, _ = model.loss_and_grads(texts)
    assert before == pytest.approx(math.log(len(s5.TOKENS)), abs=0.7)  # nothing known yet
    s5.train(model, 80, 2, seed=0)
    after, right, _ = model.loss_and_grads(texts)
    assert after < 0.75 * before and right > 0.3 and capsys.readouterr().out == ""


def test_shares_right_and_losses_are_those_of_the_answers(rng):
    model, ids = s5.AttentionOnly(8, 2, 1, dtype=np.float64), s5.recall_batch(rng, 5, 3)
    logits = model.forward(ids)[0]
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    rows = [(b, t) for b in range(5) for t in (6, 8, 10)]  # the letters of the second half
    loss, right, _ = model.loss_and_grads(ids)
    assert loss == pytest.approx(np.mean([-np.log(p[b, t, ids[b, t + 1]]) for b, t in rows]))
    assert right == np.mean([p[b, t].argmax() == ids[b, t + 1] for b, t in rows])
    for wrong in (ids[:0], ids[:, :0], ids[:, :6]):
        with pytest.raises(ValueError, match="^ids have shape .*; expected some texts"):
            model.loss_and_grads(wrong)
        with pytest.raises(ValueError, match="^ids have shape .*; expected some texts"):
            s5.right_with(np.zeros_like, model, wrong, 0, [0])
        with pytest.raises(ValueError, match="^ids have shape .*; expected some texts"):
            s5.looks(np.ones((5, 12, 12)), wrong)
    for layer in (1, -1, 0.5, "a"):
        with pytest.raises(ValueError, match=r"layer is .*; expected 0\.\.0"):
            s5.right_with(np.zeros_like, model, ids, layer, [0])


# What single heads do


def test_heads_that_look_where_we_say_have_weights_of_one():
    ids = np.array([[0, 12, 1, 13, 0, 12, 1, 13], [2, 14, 3, 12, 2, 14, 2, 14]])
    previous, induction = np.zeros((2, 2, 8, 8))
    previous[:, range(1, 8), range(7)] = 1
    for b, t, js in ((0, 4, [1]), (0, 6, [3]), (1, 4, [1]), (1, 6, [1, 5])):
        induction[b, t, js] = 1 / len(js)
    assert s5.looks(previous, ids) == (1, 0.25)  # once, the digit asked for stands just before
    assert s5.looks(induction, ids) == (0, 1)
    half = (previous + induction) / 2
    half[:, 6] = 0
    assert s5.looks(half, ids) == (0.5, 0.25)


def test_an_edit_of_the_weights_reaches_the_answers_and_nothing_else(rng):
    model, ids = s5.AttentionOnly(8, 2, 2), s5.recall_batch(rng, 400, 3)
    right = model.loss_and_grads(ids)[1]
    seen = []

    def look(p):
        seen.append(p.copy())
        return p

    assert s5.right_with(look, model, ids, 1, [1, 0]) == right
    np.testing.assert_array_equal(seen[0], model.forward(ids)[2][1][2][3][:, [1, 0]])
    weights = model.layers[0].params["Wo"], model.layers[1].params["Wo"]
    for layer, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
        silenced = s5.right_with(np.zeros_like, model, ids, layer, [head])
        rows = slice(4 * head, 4 * head + 4)  # what this head hands over enters Wo here
        kept = weights[layer][rows].copy()
        weights[layer][rows] = 0
        assert silenced == model.loss_and_grads(ids)[1]
        weights[layer][rows] = kept
    assert model.loss_and_grads(ids)[1] == right


# The program


def check_recall(report, seed):
    """Counting is right as often as its row says; the models have as many weights; one counts."""
    texts = s5.recall_batch(np.random.default_rng(seed + 1), 1000, 3)
    rights = []
    for row in texts.tolist():
        digits = row[1:6:2]
        guess = max(sorted(set(digits)), key=digits.count)
        rights += [guess == digit for digit in row[7::2]]
    assert f"{np.mean(rights):.1%}" in re.search("a most frequent digit .*", report)[0]
    sizes = re.findall(r"^layers .* ([\d,]+) +\S+ +\S+%$", report, re.M)
    one, other, two = (int(size.replace(",", "")) for size in sizes)
    assert one == other and abs(one / two - 1) < 0.1
    share, lesson = re.search(r"digit in (\S+)% of cases: (.*)\.", report).groups()
    assert float(share) > 85 and lesson == "it learned to count"


def check_heads(report):
    """The sentences on heads and longer texts say what stands in their tables."""
    whole = float(re.search(r"which has (\S+)% right", report)[1])
    for i, way in ((1, "positions"), (2, "content")):
        rows = re.findall(rf"layer {i}, (?:head \d|all) +(\S+) +(\S+) +(\S+)% +(\S+)%", report)
        previous, induction, silenced, frozen = np.array(rows, dtype=float).T
        assert len(rows) == 3 and previous[2] == pytest.approx(previous[:2].mean(), abs=0.01)
        assert induction[2] == pytest.approx(induction[:2].mean(), abs=0.01)
        said = re.search(rf"Layer {i} goes by (\w+). Without it (\d+) .* at most (\d+)", report)
        assert said[1] == way
        assert (way == "positions") == (whole - frozen[2] < (whole - silenced[2]) / 2)
        assert float(said[2]) == pytest.approx(whole - silenced[2], abs=0.6) and silenced[2] < 60
        assert float(said[3]) == pytest.approx(whole - silenced[:2].min(), abs=0.6)
    found = re.search("rotations (as trained .*), (linear .*), (ntk .*), (llama3 .*)", report)
    rules = dict(part.rsplit(" ", 1) for part in found.groups())
    best = max(rules, key=lambda rule: float(rules[rule].rstrip("%")))
    assert f"further training: {best}." in report and best != "as trained"


def check_costs(report):
    """Tiles give the same, and what is said of the last T stands in its row."""
    rows = re.findall(r"^ +(64|128|256) +(\S+) +(\S+) +(\S+)$", report, re.M)
    rows = np.array(rows, dtype=float)
    assert len(rows) == 3 and np.all(rows[:, 3] < 1e-4)
    share = float(re.search("tiles take (.*)% of the memory", report)[1])
    assert share == pytest.approx(100 * rows[-1, 2] / rows[-1, 1], abs=4)  # rounded to 0.1 MiB
    assert share < 60


def test_in_the_smoke_run_two_layers_learn_what_one_does_not(capsys):
    assert not s5.main(["--fast", "--seed", "1"])
    report = capsys.readouterr().out
    right = [float(share) for share in re.findall(r"layers .* (\S+)%", report)]
    assert len(right) == 3 and max(right[:2]) < 60 and right[2] > 80  # two layers, not one
    assert "held-out:" not in report
    check_recall(report, seed=1)
    check_heads(report)
    check_costs(report)


def test_the_report_depends_on_the_seed_alone(capsys, monkeypatch):
    """Three steps of each training and fifty texts are enough to see it."""
    train, batch = s5.train, s5.recall_batch
    monkeypatch.setattr(s5, "train", lambda model, steps, *rest: train(model, 3, *rest))
    monkeypatch.setattr(s5, "recall_batch", lambda rng, B, n: batch(rng, min(B, 50), n))
    monkeypatch.setattr(s5, "report_costs", lambda *_: None)
    outputs = []
    for seed in "112":
        assert not s5.main(["--fast", "--seed", seed])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert all(a != b for a, b in zip(*(re.findall("^layer.*", o, re.M) for o in outputs[1:])))


def test_the_report_leaves_the_rotations_as_they_were(capsys):
    model = s5.AttentionOnly(8, 2, 2)
    s5.report_longer(model, 0, 2)
    assert "linear" in capsys.readouterr().out
    for layer in model.layers:
        np.testing.assert_array_equal(layer.frequencies, s5.rope_frequencies(4, 30.0))


def test_sentences_turn_with_the_numbers(capsys, monkeypatch):
    """A model that was hardly trained does not count, and a layer that is indifferent to its maps
    when frozen goes by positions; the same report says the opposite of other numbers."""
    monkeypatch.setattr(s5, "train", lambda *_: None)
    model, texts = s5.report_recall(1, 3, 1, 16)
    assert "it does not only count" in capsys.readouterr().out
    for frozen_share, way in ((0.51, "positions"), (0.49, "content")):
        model.loss_and_grads = lambda ids: (0.0, 1.0, {})

        def right_with(edit, model, ids, layer, heads, frozen_share=frozen_share):
            return 0.0 if edit is np.zeros_like else frozen_share

        monkeypatch.setattr(s5, "right_with", right_with)
        s5.report_heads(model, texts)
        said = re.findall(r"Layer \d goes by (\w+)\. Without it (\d+)", capsys.readouterr().out)
        assert said == [(way, "100"), (way, "100")]


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
    q, k, v = qkv(rng, 1, 1, 1, 300, 300, 2)
    tiled, _ = s5.flash_attention_forward(q, k, v, block=np.uint8(200))
    np.testing.assert_allclose(tiled, s5.attention_forward(q, k, v)[0], atol=1e-13)
    for dtype in (np.uint8, np.int16, np.int64):
        p, _ = s5.softmax_forward(np.array([0, 1, 200], dtype))
        assert p.dtype == np.float64 and p[1] / p[0] == pytest.approx(math.e, rel=1e-12)


@pytest.mark.parametrize("scores", [3.0, True, [True, False], ["a"], None])
def test_what_is_no_row_of_scores_is_refused(scores):
    with pytest.raises(ValueError, match="^scores (hold|are)"):
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
        (lambda: s5.rope_forward(x, np.arange(5), "a"), "frequencies holds <U1"),
        (lambda: s5.rope_forward(x, [0, 1, 2, 3, np.nan]), "expected finite numbers"),
        (lambda: s5.rope_forward(x > 0, np.arange(5)), "x holds bool"),
        (lambda: s5.MultiHeadAttention(4, True), "n_head is True"),
        (lambda: s5.scale_statistics(0, 1.0, rng), "D is 0"),
        (lambda: s5.scale_statistics(2, math.nan, rng), "scale is nan"),
        (lambda: s5.MultiHeadAttention(4, 2, causal="no"), "causal is 'no'"),
        (lambda: s5.MultiHeadAttention(4, 2, seed="a"), "seed is 'a'"),
        (lambda: s5.AttentionOnly(8, 2, 1, seed=-1), "seed is -1"),
        (lambda: s5.AttentionOnly(8, 2, 1, dtype=np.float16), "dtype is .*float16.*; expected"),
        (lambda: s5.AttentionOnly(8, 2, 1, dtype="a"), "dtype is 'a'; expected"),
        (lambda: s5.train(s5.AttentionOnly(8, 2, 1), 9, 1, None), "seed is None"),
        (lambda: s5.train(s5.AttentionOnly(8, 2, 1), 9, 1, 0, "", -0.1), "learning_rate is -0.1"),
        (lambda: s5.recall_batch(rng, 2, 13), "n_pairs is 13; expected at most 12"),
        (lambda: s5.recall_batch(rng, 2, None), "n_pairs is None"),
        (lambda: s5.recall_batch(rng, 0, 2), "B is 0"),
        (lambda: s5.train(s5.AttentionOnly(8, 2, 1), 9, 1, 0, "", "1"), "rate is '1'"),
        (lambda: s5.softmax_backward(np.ones(2, complex), np.ones(2)), "dp holds complex128"),
        (lambda: s5.AttentionOnly("8", 2, 1), "n_embd is '8'"),
        (lambda: s5.train(s5.AttentionOnly(8, 2, 1), 0, 1, 0), "steps is 0"),
        (lambda: s5.train(s5.AttentionOnly(8, 2, 1), 9, 1, 0, "", math.nan), "rate is nan"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_seeds_of_eight_bits_do_not_wrap():
    narrow, wide = (s5.AttentionOnly(8, 2, 1, seed=seed).params for seed in (np.uint8(255), 255))
    assert all(np.array_equal(narrow[name], wide[name]) for name in wide)


def test_ids_of_any_width_are_the_same_ids(rng):
    model, ids = s5.AttentionOnly(8, 2, 1), np.array([[0, 12, 0, 12]])
    loss, right, grads = model.loss_and_grads(ids)
    for same in (ids.tolist(), *(ids.astype(t) for t in ("u1", "i1", "u2", "i4", "u8"))):
        again = model.loss_and_grads(same)
        assert again[:2] == (loss, right)
        assert all(np.array_equal(again[2][name], grads[name]) for name in grads)
    for wrong in (ids * 1.0, ids > 0, ids - 13, ids + 11, ids[0], ids[:, :2]):
        with pytest.raises(ValueError, match="^ids (are|go|have)"):
            model.loss_and_grads(wrong)


def test_training_that_diverges_says_at_which_step():
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="step 2: loss nan"):
        s5.train(s5.AttentionOnly(8, 2, 1), 60, 1, 0, learning_rate=1e30)
