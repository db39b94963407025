"""Stage 3: a table learned, counts, loss, layers, the network, training, the report."""

import math
import os
import re
import runpy
import sys
import zipfile
from fractions import Fraction

import numpy as np
import pytest
from conftest import (
    ROOT,
    assert_bad_text_is_one_clean_line,
    assert_gradients,
    central_difference,
    check_held_out_line,
    two_fast_reports,
)

import stage03_nlm as s3


def small_model(seed=0, V=7, context=3):
    """A float64 network whose every parameter is random, so that no gradient vanishes by design."""
    model = s3.NeuralLM(V, context, 4, 5, seed, np.float64)
    rng = np.random.default_rng(seed + 1)
    for value in model.params.values():
        value += 0.5 * rng.normal(size=value.shape)
    return model


# The first page: "ab" and "aa" between dots, by hand

COUNTS = np.array([[0, 2, 0], [1, 1, 1], [1, 0, 0]])  # rows and columns . a b
PAIRS = [(0, 1), (1, 2), (2, 0), (0, 1), (1, 1), (1, 0)]  # .ab. and .aa.


def table_loss(W):
    """Mean surprise over the six pairs, one at a time."""
    return np.mean([-math.log(math.exp(W[h, c]) / np.exp(W[h]).sum()) for h, c in PAIRS])


def test_the_numbers_of_the_first_page():
    counts = np.zeros((3, 3), dtype=int)
    for pair in PAIRS:
        counts[pair] += 1
    assert counts.tolist() == COUNTS.tolist()
    assert (3 * math.log(1) + 3 * math.log(3)) / 6 == pytest.approx(0.549, abs=5e-4)
    assert table_loss(s3.learn_table(COUNTS, 0, 3.0)) == pytest.approx(1.099, abs=5e-4)
    slopes = -s3.learn_table(COUNTS, 1, 1.0)
    expected = [[0.111, -0.222, 0.111], [0, 0, 0], [-0.111, 0.056, 0.056]]
    assert slopes == pytest.approx(np.array(expected), abs=5e-4)
    W = s3.learn_table(COUNTS, 1, 3.0)
    assert W[0] == pytest.approx([-0.333, 0.667, -0.333], abs=5e-4)
    assert W[2] == pytest.approx([0.333, -0.167, -0.167], abs=5e-4)
    P = np.exp(W) / np.exp(W).sum(axis=1, keepdims=True)
    assert (P[0, 1], P[2, 0]) == pytest.approx((0.576, 0.452), abs=5e-4)
    assert table_loss(W) == pytest.approx(0.866, abs=5e-4)
    late = table_loss(s3.learn_table(COUNTS, 1000, 3.0))
    assert late == pytest.approx(0.550, abs=5e-4) and late > math.log(3) / 2


def test_its_slopes_are_those_of_the_loss(rng):
    W = s3.learn_table(COUNTS, 2, 3.0)
    numeric = central_difference(lambda: table_loss(W), W)
    assert s3.learn_table(COUNTS, 3, 3.0) == pytest.approx(W - 3.0 * numeric, abs=1e-8)


def test_the_learned_table_of_the_names_is_the_counted_one():
    names = s3.read_names(ROOT / "data" / "names.txt")
    ids, symbols = s3.encode("\n" + "\n".join(names) + "\n")
    counts = np.zeros((27, 27))
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    P = s3.softmax(s3.learn_table(counts, 10000, 50.0))
    shares = counts / counts.sum(axis=1, keepdims=True)
    losses = [-np.log(p[ids[:-1], ids[1:]]).mean() for p in (P, shares)]
    assert losses[1] < losses[0] < losses[1] + 0.0005
    assert np.abs(P - shares).max() < 0.001


# Counting


def kneser_ney(rows, history, symbol, V, discount, top=True):
    """P(symbol | history) by the recursion of section 10, counted with sets and lists."""
    n = len(history) + 1
    if top:
        grams = [tuple(row[-n:]) for row in rows]
    else:  # each different longer gram once, without its first symbol
        grams = [gram[1:] for gram in {tuple(row[-n - 1 :]) for row in rows}]
    followers = [gram[-1] for gram in grams if gram[:-1] == tuple(history)]
    below = 1 / V
    if history:
        below = kneser_ney(rows, history[1:], symbol, V, discount, top=False)
    if not followers:
        return below
    kept = max(followers.count(symbol) - discount, 0)
    return (kept + discount * len(set(followers)) * below) / len(followers)


@pytest.mark.parametrize("V, length, cut, context", [(3, 60, 40, 3), (5, 30, 27, 2), (1, 9, 5, 1)])
def test_counts_agree_with_lists(rng, V, length, cut, context):
    X, Y = s3.make_examples(rng.integers(0, V, length), context)
    rows = np.column_stack([X, Y]).tolist()
    discounts = (0.5, 0.9, 1.0)
    models = s3.count_models(X[:cut], Y[:cut], X[cut:], Y[cut:], V, discounts)
    for n, (grams, n_hc, n_h, p) in enumerate(models, 1):
        seen = [tuple(row[-n:]) for row in rows[:cut]]
        asked = [tuple(row[-n:]) for row in rows[cut:]]
        assert grams == len(set(seen))
        assert n_hc.tolist() == [seen.count(gram) for gram in asked]
        assert n_h.tolist() == [sum(s[:-1] == a[:-1] for s in seen) for a in asked]
        for row, discount in zip(p, discounts):
            expected = [kneser_ney(rows[:cut], a[:-1], a[-1], V, discount) for a in asked]
            assert row == pytest.approx(expected)
    assert len(models) == context + 1


def test_kneser_ney_adds_up_to_one(rng):
    X, Y = s3.make_examples(rng.integers(0, 4, 50), 2)
    models = s3.count_models(X, Y, np.tile(X[7], (4, 1)), np.arange(4), 4, (0.3, 0.8))
    assert all(p.sum(axis=1) == pytest.approx([1, 1]) for *_, p in models)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64])
def test_ids_of_any_width_are_counted_alike(rng, dtype):
    ids = rng.integers(0, 100, 600)
    whole = s3.make_examples(ids, 4)
    narrow = s3.make_examples(ids.astype(dtype), 4)
    assert [a.dtype for a in narrow] == [np.int64, np.int64]
    wanted = [
        m[:1] + tuple(a.tolist() for a in m[1:]) for m in s3.count_models(*whole, *whole, 100)
    ]
    cast = [a.astype(dtype) for a in whole]
    for found in (s3.count_models(*cast, *cast, 100), s3.count_models(*narrow, *narrow, 100)):
        assert [m[:1] + tuple(a.tolist() for a in m[1:]) for m in found] == wanted
    model = small_model(V=100, context=4)
    assert np.array_equal(model.logits(cast[0]), model.logits(whole[0]))
    assert model.loss(*cast) == model.loss(*whole)
    for a, b in zip(
        model.loss_and_grads(*cast)[1].values(), model.loss_and_grads(*whole)[1].values()
    ):
        assert np.array_equal(a, b)


def test_thousands_of_symbols_in_long_contexts_are_counted(rng):
    """7-grams of 4,000 symbols have 84 bits, which a number in base V would lose."""
    ids = rng.integers(0, 4000, 300)
    X, Y = s3.make_examples(np.concatenate([ids, ids]), 6)
    models = s3.count_models(X[:294], Y[:294], X[300:], Y[300:], 4000)
    assert [n_hc.tolist() for _, n_hc, _, _ in models[3:]] == [[1] * 294] * 4
    assert models[6][0] == 294
    far = s3.count_models([[0, 2**30]], [2**31 - 1], [[0, 2**30]], [2**31 - 1], 2**31)
    assert [m[1].tolist() for m in far] == [[1], [1], [1]]


# Examples


@pytest.mark.parametrize("length, context", [(2, 1), (9, 3), (9, 8)])
def test_examples_are_all_windows(length, context):
    ids = np.arange(length) * 2
    X, Y = s3.make_examples(ids, context)
    assert X.shape == (length - context, context) and Y.shape == (length - context,)
    for i, (x, y) in enumerate(zip(X, Y)):
        assert x.tolist() == ids[i : i + context].tolist() and y == ids[i + context]


# Softmax and cross-entropy


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_softmax_sums_to_one_and_ignores_a_shift(rng, shift):
    z = rng.normal(size=(3, 5))
    p = s3.softmax(z + shift)
    assert p.sum(-1) == pytest.approx(np.ones(3))
    assert p == pytest.approx(np.exp(z) / np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_and_log_sum_exp_along_any_axis(rng, axis):
    z = rng.normal(size=(2, 3, 4))
    assert s3.softmax(z, axis).sum(axis) == pytest.approx(1.0 + 0 * z.sum(axis))
    assert s3.log_sum_exp(z, axis) == pytest.approx(np.log(np.exp(z).sum(axis, keepdims=True)))


def test_log_sum_exp_bounds_and_extremes():
    z = np.array([[1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]], dtype=np.float32)
    lse = s3.log_sum_exp(z)[:, 0]
    assert np.all(lse >= z.max(-1)) and np.all(lse <= z.max(-1) + math.log(3) + 1e-2)
    assert s3.softmax(z)[0] == pytest.approx([0.5, 0.5, 0.0])
    assert s3.softmax(z).dtype == np.float32


def test_cross_entropy_closed_forms():
    assert s3.cross_entropy_forward(np.zeros((4, 9)), np.arange(4))[0] == pytest.approx(math.log(9))
    loss, cache = s3.cross_entropy_forward(np.array([[0.0, 1e3]]), np.array([0]))
    assert loss == pytest.approx(1000)  # where log(softmax) would be -inf
    assert s3.cross_entropy_backward(1.0, cache) == pytest.approx(np.array([[-1.0, 1.0]]))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 3), (2, 3, 6)])
def test_cross_entropy_gradient(rng, shape):
    logits, targets = rng.normal(size=shape), rng.integers(0, shape[-1], shape[:-1])
    _, cache = s3.cross_entropy_forward(logits, targets)
    assert_gradients(
        lambda: s3.cross_entropy_forward(logits, targets)[0],
        [logits],
        lambda dy: [s3.cross_entropy_backward(dy, cache)],
    )
    p_minus_y = (s3.softmax(logits) - np.eye(shape[-1])[targets]) / targets.size
    assert s3.cross_entropy_backward(1.0, cache) == pytest.approx(p_minus_y)


def test_the_best_table_is_counting(rng):
    """Section 4's proof: descending on one free row of scores ends at the frequencies."""
    targets, z = np.array([0, 0, 0, 1, 1, 2]), np.zeros(3)
    for _ in range(500):
        _, cache = s3.cross_entropy_forward(np.tile(z, (6, 1)), targets)
        z -= 2.0 * s3.cross_entropy_backward(1.0, cache).sum(0)
    assert s3.softmax(z) == pytest.approx([3 / 6, 2 / 6, 1 / 6], abs=1e-6)


def test_the_traces_of_the_comments():
    """Sections 4, 5 and 6: the numbers that stand there."""
    z = np.array([[2.0, 1, 0]])
    loss, cache = s3.cross_entropy_forward(z, [1])
    assert s3.log_sum_exp(z)[0, 0] == pytest.approx(2.408, abs=5e-4)
    assert loss == pytest.approx(1.408, abs=5e-4)
    assert s3.softmax(z)[0] == pytest.approx([0.665, 0.245, 0.090], abs=5e-4)
    gradient = s3.cross_entropy_backward(1.0, cache)[0]
    assert gradient == pytest.approx([0.665, -0.755, 0.090], abs=5e-4)
    _, cache = s3.embedding_forward([2, 0, 2], np.zeros((3, 2)))
    dC = s3.embedding_backward(np.array([[1.0, 2], [3, 4], [5, 6]]), cache)
    assert dC.tolist() == [[3, 4], [0, 0], [6, 8]]
    with np.errstate(over="ignore"):
        assert np.isinf(np.exp(np.float32(89))) and np.isfinite(np.exp(np.float32(88)))
    assert np.exp(np.float32(-104)) == 0 < np.exp(np.float32(-103))


def test_from_zeros_only_the_bias_learns(rng):
    model = small_model()
    for name in "HdU":
        model.params[name][:] = 0
    _, grads = model.loss_and_grads(rng.integers(0, 7, (6, 3)), rng.integers(0, 7, 6))
    assert {name for name in grads if grads[name].any()} == {"b"}
    X, Y = rng.integers(0, 7, (40, 3)), np.repeat([0, 1, 1, 2], 10)
    s3.train(model, X, Y, 2000, learning_rate=1.0, batch_size=40)
    assert model.loss(X, Y) == pytest.approx(1.5 * math.log(2), abs=0.01)  # 1-grams: 1/4, 1/2, 1/4


# Layers


@pytest.mark.parametrize("N, I, O", [(1, 1, 1), (3, 5, 2), (4, 1, 7)])
def test_linear_gradient(rng, N, I, O):
    x, w, b = rng.normal(size=(N, I)), rng.normal(size=(I, O)), rng.normal(size=O)
    cache = s3.linear_forward(x, w, b)[1]
    assert_gradients(
        lambda: s3.linear_forward(x, w, b)[0],
        [x, w, b],
        lambda dy: s3.linear_backward(dy, cache),
    )


def test_tanh_gradient(rng):
    a = rng.normal(size=(3, 4))
    cache = s3.tanh_forward(a)[1]
    assert_gradients(lambda: s3.tanh_forward(a)[0], [a], lambda dy: [s3.tanh_backward(dy, cache)])


@pytest.mark.parametrize("shape", [(1,), (5,), (4, 3)])
def test_embedding_gradient_scatters_and_adds(rng, shape):
    C, ids = rng.normal(size=(4, 3)), rng.integers(0, 3, shape)  # id 3 is never used
    x, cache = s3.embedding_forward(ids, C)
    assert np.array_equal(x, C[ids])
    assert_gradients(
        lambda: s3.embedding_forward(ids, C)[0],
        [C],
        lambda dy: [s3.embedding_backward(dy, cache)],
    )
    literally = np.zeros_like(C)
    np.add.at(literally, ids, x)
    dC = s3.embedding_backward(x, cache)
    assert dC == pytest.approx(literally) and not dC[3].any()


# The network


def worst_error(grad, numeric, loss, h=1e-5):
    """The largest error of an entry, relative to its own size, beyond what rounding explains."""
    excess = np.abs(grad - numeric) - 2e-15 * abs(loss) / h
    size = np.maximum(np.abs(grad), np.abs(numeric))
    return np.max(np.where(excess > 0, excess / np.maximum(size, 1e-300), 0.0))


def test_the_judge_sees_one_wrong_entry(rng):
    numeric = 10.0 ** rng.uniform(-7, 0, 1000)
    assert worst_error(numeric * (1 + 1e-9), numeric, 1.0) < 1e-6
    for scale in (2, 0, -1, 1e-11):
        wrong = numeric.copy()
        wrong[numeric.argmin()] *= scale
        assert worst_error(wrong, numeric, 1.0) > 0.4


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("N, context, V", [(1, 1, 2), (6, 3, 7), (5, 2, 1)])
def test_every_gradient_of_the_network(rng, masked, N, context, V):
    model = small_model(V=V, context=context)
    X, Y = rng.integers(0, V, (N, context)), rng.integers(0, V, N)
    mask = rng.integers(0, 2, (N, 5)) / 0.5 if masked else None
    loss, grads = model.loss_and_grads(X, Y, mask)
    assert grads.keys() == model.params.keys()
    if not masked:
        assert loss == pytest.approx(model.loss(X, Y), abs=1e-12)
    for name, value in model.params.items():
        numeric = central_difference(lambda: model.loss_and_grads(X, Y, mask)[0], value)
        assert worst_error(grads[name], numeric, loss) < 1e-6, name


def test_input_gradients_are_the_slopes_in_x(rng):
    """A symbol used nowhere else: the slope in its row of C is that of its one place."""
    model = small_model()
    X, Y = np.array([[0, 1, 2], [3, 4, 5]]), np.array([6, 1])
    dx = model.input_gradients(X, Y)
    assert dx.shape == (2, 3, 4)
    numeric = central_difference(lambda: 2 * model.loss(X, Y), model.params["C"])
    for i in range(2):
        for place in range(3):
            assert dx[i, place] == pytest.approx(numeric[X[i, place]], abs=1e-8)


def test_logits_are_bengios_equation(rng):
    model = small_model()
    P, X = model.params, rng.integers(0, 7, (4, 3))
    for context, z in zip(X, model.logits(X)):
        x = np.concatenate([P["C"][i] for i in context])
        assert z == pytest.approx(P["b"] + np.tanh(P["d"] + x @ P["H"]) @ P["U"])


def test_same_embedding_same_prediction(rng):
    """The reason it generalises: symbols with one row in C are exchangeable, seen or not."""
    model = small_model()
    model.params["C"][4] = model.params["C"][2]
    X = rng.integers(0, 7, (20, 3))
    assert np.array_equal(model.logits(X), model.logits(np.where(X == 4, 2, X)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_follows_the_parameters(rng, dtype):
    model = s3.NeuralLM(5, 2, 3, 4, dtype=dtype)
    X, Y = rng.integers(0, 5, (6, 2)), rng.integers(0, 5, 6)
    s3.train(model, X, Y, 2)
    _, grads = model.loss_and_grads(X, Y)
    assert model.logits(X).dtype == dtype
    assert {a.dtype for d in (model.params, grads) for a in d.values()} == {np.dtype(dtype)}


def test_initialisation_keeps_the_variance(rng):
    model = s3.NeuralLM(60, 6, 16, 512, dtype=np.float64)
    X, P = rng.integers(0, 60, (2000, 6)), model.params
    a = P["C"][X].reshape(len(X), -1) @ P["H"]
    assert a.std() == pytest.approx(1, abs=0.1)
    assert model.loss(X, rng.integers(0, 60, 2000)) == pytest.approx(math.log(60), abs=0.02)
    again, other = (s3.NeuralLM(60, 6, 16, 512, seed, np.float64).params for seed in (0, 1))
    assert all(np.array_equal(P[k], again[k]) for k in P)
    assert not np.array_equal(P["C"], other["C"])


def test_loss_by_two_routes_and_of_a_uniform_model(rng):
    X, Y = s3.make_examples(rng.integers(0, 7, 9000), 3)  # longer than one piece
    model = small_model()
    assert model.loss(X, Y) == pytest.approx(model.loss_and_grads(X, Y)[0], abs=1e-12)
    logp = model.log_likelihoods(X, Y)
    assert logp.shape == Y.shape
    for i in (0, 4095, 4096, 8996):
        z = model.logits(X[i : i + 1])[0]
        assert logp[i] == pytest.approx(z[Y[i]] - math.log(np.exp(z).sum()))
    for value in model.params.values():
        value[:] = 0
    assert model.loss(X, Y) == pytest.approx(math.log(7))


def test_one_symbol_vocabulary():
    model = s3.NeuralLM(1, 2, 3, 4)
    assert model.loss([[0, 0]], [0]) == 0.0
    assert model.generate(3).tolist() == [0, 0, 0]


def test_repr_says_the_sizes():
    model = s3.NeuralLM(61, 5, 24, 512)
    size = 61 * 24 + 5 * 24 * 512 + 512 + 512 * 61 + 61
    expected = f"NeuralLM(61 symbols, context 5, n_embd 24, n_hidden 512: {size:,} parameters)"
    assert repr(model) == expected


# Saving


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("symbols", [None, ["\n", "a", "é", "\0", "\U0001f600"]])
def test_a_saved_model_comes_back(tmp_path, dtype, symbols):
    model = s3.NeuralLM(5, 2, 3, 4, dtype=dtype)
    model.symbols = symbols
    path = tmp_path / "model.npz"
    path.write_bytes(b"an older file")
    model.save(path)
    assert os.listdir(tmp_path) == ["model.npz"]
    again = s3.NeuralLM.load(path)
    assert repr(again) == repr(model) and again.symbols == symbols
    for name, value in model.params.items():
        assert again.params[name].dtype == dtype and np.array_equal(again.params[name], value)
    X, Y = np.array([[1, 2], [3, 4]]), np.array([0, 1])
    s3.train(again, X, Y, 2)  # the arrays can be written to
    assert again.loss(X, Y) < model.loss(X, Y)


def test_a_damaged_file_is_refused_or_holds_the_same(tmp_path, rng):
    model = s3.NeuralLM(5, 2, 3, 4)
    model.symbols = list("\nabcd")
    path = tmp_path / "model.npz"
    model.save(path)
    content, refused = path.read_bytes(), 0
    for i in rng.permutation(len(content))[:250]:
        damaged = bytearray(content)
        damaged[i] ^= 1 << rng.integers(0, 8)
        path.write_bytes(damaged)
        try:
            again = s3.NeuralLM.load(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)
            continue
        assert again.symbols == model.symbols
        assert all(np.array_equal(again.params[k], v) for k, v in model.params.items())
    assert refused > 100
    for length in (0, 1, 50, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="damaged"):
            s3.NeuralLM.load(path)


def arrays_of_a_model(**changes):
    """The arrays of a saved model, some of them replaced; None leaves one out."""
    arrays = s3.NeuralLM(5, 2, 3, 4).params | {"symbols": np.arange(97, 102)} | changes
    return {name: value for name, value in arrays.items() if value is not None}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"W": np.zeros(3)}, "holds .*'W'.*; expected C, H, U, b and d"),
        ({"b": None}, "expected C, H, U, b and d"),
        ({"b": np.zeros(6, np.float32)}, r"b is float32 \(6,\); expected floats \(5,\)"),
        ({"U": np.zeros((4, 5))}, "U is float64"),
        ({"H": np.zeros((7, 4), np.float32)}, "do not fit together"),
        ({"C": np.zeros((0, 3), np.float32)}, "do not fit together"),
        ({"C": np.zeros(15, np.float32)}, "do not fit together"),
        ({"d": np.array([0, 1, np.nan, 0], np.float32)}, "d holds a number that is not finite"),
        ({"C": np.full((5, 3), np.inf, np.float32)}, "C holds a number that is not finite"),
        ({"symbols": np.arange(6)}, "symbols are not 5 different characters"),
        ({"symbols": np.array([97, 97, 98, 99, 100])}, "symbols are not 5 different characters"),
        ({"symbols": np.array([97, 98, 99, 100, 2**21])}, "the id 2097152"),
        ({"symbols": np.array(list("abcde"))}, "expected integer ids"),
        ({"C": np.array([[{}] * 3] * 5)}, "damaged"),  # a pickle
        ({k: v.astype(np.float16) for k, v in s3.NeuralLM(5, 2, 3, 4).params.items()}, "float16"),
        ({k: v.astype(int) for k, v in s3.NeuralLM(5, 2, 3, 4).params.items()}, "expected floats"),
    ],
)
def test_a_file_with_wrong_contents_is_refused(tmp_path, changes, message):
    path = tmp_path / "model.npz"
    np.savez(path, **arrays_of_a_model(**changes))
    with pytest.raises(ValueError, match=message):
        s3.NeuralLM.load(path)


@pytest.mark.parametrize("symbols", ["abcd", "abcda", ["a", "b", "c", "d", "ef"]])
def test_symbols_that_load_would_refuse_are_not_saved(tmp_path, symbols):
    model = s3.NeuralLM(5, 2, 3, 4)
    model.symbols = symbols
    with pytest.raises(ValueError, match="symbols are not 5 different characters"):
        model.save(tmp_path / "model.npz")
    assert os.listdir(tmp_path) == []


def test_a_member_that_is_no_array_is_refused(tmp_path):
    s3.NeuralLM(5, 2, 3, 4).save(tmp_path / "good.npz")
    with zipfile.ZipFile(tmp_path / "good.npz") as good:
        members = {name: good.read(name) for name in good.namelist()}
    del members["C.npy"]
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as bad:
        for name, content in (members | {"C": b"raw bytes"}).items():
            bad.writestr(name, content)
    with pytest.raises(ValueError, match="do not fit together"):
        s3.NeuralLM.load(tmp_path / "bad.npz")


def test_a_file_that_unpacks_to_more_than_it_has_is_refused(tmp_path):
    path = tmp_path / "model.npz"
    np.savez_compressed(path, **arrays_of_a_model(C=np.zeros((10**6, 3), np.float32)))
    with pytest.raises(ValueError, match="a size or a checksum is wrong"):
        s3.NeuralLM.load(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="damaged"):
        s3.NeuralLM.load(tmp_path / "one.npy")
    with pytest.raises(FileNotFoundError):
        s3.NeuralLM.load(tmp_path / "none.npz")


# Sampling


def fixed_model(p):
    """A network that predicts p in every context."""
    model = s3.NeuralLM(len(p), 2, 1, 1, dtype=np.float64)
    for value in model.params.values():
        value[:] = 0
    model.params["b"][:] = np.log(p)
    return model


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [0.5 / 0.8, 0.3 / 0.8, 0, 0]),
        ({"top_k": 99}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2**31}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 0.79}, [0.5 / 0.8, 0.3 / 0.8, 0, 0]),
        ({"top_p": 0.8}, [0.5 / 0.8, 0.3 / 0.8, 0, 0]),
        ({"top_p": 0.81}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"top_p": 1.0}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 1e-12}, [1, 0, 0, 0]),
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),
        ({"top_k": 2, "top_p": 0.63}, [0.5 / 0.8, 0.3 / 0.8, 0, 0]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"temperature": 0, "top_k": 3}, [1, 0, 0, 0]),
        ({"temperature": 1e-300}, [1, 0, 0, 0]),
        ({"temperature": np.float32(0.5)}, np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365),
        ({"temperature": 10**300}, [0.25] * 4),
        ({"temperature": Fraction(1, 2)}, np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365),
        ({"temperature": Fraction(1, 10**400)}, [1, 0, 0, 0]),
    ],
)
def test_the_next_symbol(options, expected):
    order = [2, 0, 3, 1]  # the likeliest need not come first
    z = np.log([0.5, 0.3, 0.15, 0.05])[order] + 7
    p = s3.next_symbol(z, **options)
    assert p == pytest.approx(np.asarray(expected)[order])
    assert p.dtype == np.float64
    assert s3.next_symbol([1, 1, 0], temperature=0).tolist() == [1, 0, 0]


def test_sampling_frequencies():
    ids = fixed_model([0.5, 0.3, 0.15, 0.05]).generate(3000, seed=0, top_k=3)
    frequencies = np.bincount(ids, minlength=4) / 3000
    assert frequencies == pytest.approx(np.array([0.5, 0.3, 0.15, 0]) / 0.95, abs=0.03)
    assert frequencies[3] == 0


def test_generate_uses_the_last_ids_and_pads_with_zero():
    model = small_model()
    greedy = {"temperature": 0}
    first = model.generate(5, context=[6, 5, 1, 2, 3], **greedy)
    assert first.tolist() == model.generate(5, context=[1, 2, 3], **greedy).tolist()
    assert first[0] == model.logits(np.array([[1, 2, 3]]))[0].argmax()
    assert model.generate(4).shape == (4,) and model.generate(0).shape == (0,)
    padded = model.generate(5, context=[0, 0, 4], **greedy)
    assert model.generate(5, context=[4], **greedy).tolist() == padded.tolist()
    assert model.generate(30, seed=1).tolist() == model.generate(30, seed=1).tolist()
    assert model.generate(30, seed=1).tolist() != model.generate(30, seed=2).tolist()
    plain = model.generate(300, seed=1).tolist()
    assert plain == model.generate(300, temperature=1.0, seed=1).tolist()
    assert plain != model.generate(300, temperature=1.1, seed=1).tolist()


# Training


def test_a_training_step_is_sgd(rng):
    """One step over a whole batch moves every parameter by exactly -η times its gradient."""
    model, X, Y = small_model(), rng.integers(0, 7, (6, 3)), rng.integers(0, 7, 6)
    before = {name: value.copy() for name, value in model.params.items()}
    loss, grads = model.loss_and_grads(X, Y)
    losses = s3.train(model, X, Y, 1, learning_rate=0.1, batch_size=6)
    assert losses == pytest.approx([loss])
    for name, value in model.params.items():
        assert value == pytest.approx(before[name] - 0.1 * grads[name])


def test_weight_decay_shrinks_matrices_only(rng):
    model, X, Y = small_model(), rng.integers(0, 7, (6, 3)), rng.integers(0, 7, 6)
    before = {name: value.copy() for name, value in model.params.items()}
    _, grads = model.loss_and_grads(X, Y)
    s3.train(model, X, Y, 1, learning_rate=0.1, batch_size=6, weight_decay=0.5)
    for name, value in model.params.items():
        shrunk = 1.0 if name in "bd" else 1 - 0.1 * 0.5
        assert value == pytest.approx(shrunk * before[name] - 0.1 * grads[name])


def test_decay_follows_the_falling_rate():
    """A gradient of 0 leaves decay alone: the product of (1 - η·λ) over the schedule."""
    model = Recorder()
    model.params = {"C": np.ones((2, 2)), "b": np.ones(2)}
    model.loss_and_grads = lambda X, Y, mask: (1.0, {"C": np.zeros((2, 2)), "b": np.zeros(2)})
    X = np.arange(10)[:, None]
    s3.train(model, X, X[:, 0], 4, learning_rate=0.5, weight_decay=0.2)
    expected = (1 - 0.1) * (1 - 0.1) * (1 - 0.1) * (1 - 0.05)
    assert model.params["C"] == pytest.approx(np.full((2, 2), expected))
    assert model.params["b"].tolist() == [1, 1]


def test_stopping_early_leaves_the_schedule_as_it_was():
    model, stopped, X = Recorder(), Recorder(), np.arange(10)[:, None]
    moved = []
    s3.train(model, X, X[:, 0], 8, 0.5, watch=lambda done: moved.append(model.params["b"][0]))
    s3.train(stopped, X, X[:, 0], 8, 0.5, watch=lambda done: done == 6)
    assert stopped.params["b"][0] == moved[5] and stopped.batches == model.batches[:6]


def test_dropout_reaches_the_network_and_not_its_predictions(rng):
    """One step with a mask moves the params by the masked gradients; predicting has no mask."""
    X, Y = rng.integers(0, 7, (6, 3)), rng.integers(0, 7, 6)
    model, masks = small_model(), []
    before = {name: value.copy() for name, value in model.params.items()}
    real = model.loss_and_grads

    def spy(X, Y, mask=None):
        masks.append((X, Y, mask))
        return real(X, Y, mask)

    model.loss_and_grads = spy
    s3.train(model, X, Y, 1, learning_rate=0.1, batch_size=6, dropout=0.5)
    again = small_model()
    _, grads = again.loss_and_grads(*masks[0])
    assert 0 < np.mean(masks[0][2] == 0) < 1
    for name, value in model.params.items():
        assert value == pytest.approx(before[name] - 0.1 * grads[name])
    assert again.loss(X, Y) == pytest.approx(again.loss_and_grads(X, Y)[0])
    h = np.tanh(
        again.params["d"] + again.params["C"][masks[0][0]].reshape(6, -1) @ again.params["H"]
    )
    z = again.params["b"] + (h * masks[0][2]) @ again.params["U"]
    expected = s3.cross_entropy_forward(z, masks[0][1])[0]
    assert again.loss_and_grads(*masks[0])[0] == pytest.approx(expected)


class Recorder:
    """A model with one number that notes what train hands it; its gradient is always 1."""

    vocab_size, n_hidden = 1000, 40

    def __init__(self):
        self.params = {name: np.zeros(1) for name in "Cb"}
        self.batches, self.masks = [], []

    def loss_and_grads(self, X, Y, mask):
        assert np.array_equal(X[:, 0], Y)
        self.batches.append(Y.tolist())
        self.masks.append(mask)
        return 1.0, {name: np.ones(1) for name in "Cb"}


def test_the_rate_is_whole_for_half_the_steps_and_then_falls_to_zero():
    model, values = Recorder(), []
    X = np.arange(10)[:, None]
    s3.train(model, X, X[:, 0], 8, 0.5, watch=lambda done: values.append(-model.params["b"][0]))
    assert np.diff([0, *values]) == pytest.approx(0.5 * np.array([1, 1, 1, 1, 1, 0.75, 0.5, 0.25]))


@pytest.mark.parametrize("N, B", [(10, 4), (10, 3), (10, 10), (10, 64), (7, 2)])
def test_every_example_comes_once_per_epoch(N, B):
    model, X = Recorder(), np.arange(N)[:, None]
    s3.train(model, X, X[:, 0], 21, batch_size=B)
    assert {len(batch) for batch in model.batches} == {min(N, B)}
    drawn = sum(model.batches, [])
    epochs = [drawn[i : i + N] for i in range(0, len(drawn) - N + 1, N)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len(epochs) > 1 and epochs[0] != epochs[1] and epochs[0] != list(range(N))


def test_the_seed_decides_and_a_generator_serves():
    def batches(seed):
        model, X = Recorder(), np.arange(50)[:, None]
        s3.train(model, X, X[:, 0], 5, batch_size=8, seed=seed)
        return model.batches

    assert batches(1) == batches(1) == batches(np.random.default_rng(1)) != batches(2)


def test_dropout_masks_have_mean_one_and_two_values():
    model, X = Recorder(), np.arange(500)[:, None]
    s3.train(model, X, X[:, 0], 20, batch_size=50, dropout=0.2)
    masks = np.array(model.masks)
    assert masks.shape == (20, 50, 40)
    assert np.unique(masks).tolist() == [0, 1.25]
    assert masks.mean() == pytest.approx(1, abs=0.02)
    assert np.abs(masks.mean(axis=(0, 1)) - 1).max() < 0.1  # every feature has its turn
    assert not np.array_equal(masks[0], masks[1])
    s3.train(model, X, X[:, 0], 1)
    assert model.masks[-1] is None


def test_dropped_features_get_no_gradient(rng):
    model, X, Y = small_model(), rng.integers(0, 7, (6, 3)), rng.integers(0, 7, 6)
    mask = np.ones((6, 5))
    mask[:, 2] = 0
    _, grads = model.loss_and_grads(X, Y, mask)
    assert not grads["U"][2].any() and not grads["H"][:, 2].any() and grads["d"][2] == 0
    assert grads["U"][1].any() and grads["H"][:, 1].any()


def test_watch_stops_training():
    model, X, seen = Recorder(), np.arange(10)[:, None], []

    def watch(done):
        seen.append(done)
        return done == 3

    assert len(s3.train(model, X, X[:, 0], 8, watch=watch)) == 3 and seen == [1, 2, 3]
    numpy_true = s3.train(model, X, X[:, 0], 4, watch=lambda done: np.float32(done) > 1)
    assert len(numpy_true) == 2


def test_the_progress_line(capsys, monkeypatch):
    model, X = Recorder(), np.arange(10)[:, None]
    s3.train(model, X, X[:, 0], 600, title="a")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith("   a: step 600, training loss 1.443 bits")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    s3.train(model, X, X[:, 0], 600, title="a")
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.endswith("s\n")
    assert re.findall(r"\r   a: step (\d+)", out) == ["1", "251", "501", "600"]
    s3.train(model, X, X[:, 0], 600)
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("error")
def test_training_that_diverges_says_at_which_step(rng):
    X, Y = rng.integers(0, 7, (40, 3)), rng.integers(0, 7, 40)
    for rate in (1e4, 1e6, 1e30, 1e200):
        model, good = s3.NeuralLM(7, 3, 4, 5, dtype=np.float64), []
        with pytest.raises(ValueError, match=rf"learning_rate={re.escape(str(rate))} is") as stop:
            s3.train(model, X, Y, 500, learning_rate=rate, watch=good.append)
        assert f"at step {len(good) + 1}:" in str(stop.value)
    with pytest.raises(ValueError, match="too large"):
        s3.train(s3.NeuralLM(7, 3, 4, 5), X, Y, 500, learning_rate=1e30)
    with pytest.raises(ValueError, match="at step 1: learning_rate=1e.300 is too large"):
        s3.train(s3.NeuralLM(7, 3, 4, 5), X, Y, 1, learning_rate=1e300)  # float32: infinite params
    with pytest.raises(ValueError, match="at step 1: .*weight_decay=1e.300"):
        s3.train(s3.NeuralLM(7, 3, 4, 5), X, Y, 1, weight_decay=1e300)  # b stays finite


def test_a_network_with_too_many_knobs_overfits_and_decay_helps(rng):
    """Targets that are chance: all that is learned about them is learned by heart."""
    X, Y = rng.integers(0, 8, (80, 3)), rng.integers(0, 4, 80)
    X_new, Y_new = rng.integers(0, 8, (500, 3)), rng.integers(0, 4, 500)
    new = {}
    for decay in (0.0, 0.1):
        model = s3.NeuralLM(8, 3, 8, 32)
        s3.train(model, X, Y, 1500, batch_size=16, weight_decay=decay)
        new[decay] = model.loss(X_new, Y_new)
        assert (model.loss(X, Y) < 0.1) == (decay == 0)
    assert new[0.0] > 3 > new[0.1]


def test_learns_a_rule_and_generalises_to_unseen_contexts():
    """After x comes the symbol of x's class; a held-out pair of classes-mates is predicted too."""
    pairs = np.array([(a, b) for a in range(8) for b in range(8)])
    targets = 8 + (pairs[:, 0] % 2) * 2 + pairs[:, 1] % 2
    held = (pairs[:, 0] + 3 * pairs[:, 1]) % 8 == 0  # 8 contexts that training never sees
    model = s3.NeuralLM(12, 2, 4, 16, dtype=np.float64)
    s3.train(model, pairs[~held], targets[~held], 1500, batch_size=16)
    assert (model.logits(pairs[held]).argmax(-1) == targets[held]).all()


# A map of the letters


def test_a_map_shows_the_plane():
    C = np.array([[1.0, 0], [-1, 0], [0, 0.5], [0, -0.5]])
    lines = s3.text_map("abcd", C + 5, width=11, height=5).split("\n")
    where = {c: (i, line.index(c)) for i, line in enumerate(lines) for c in "abcd" if c in line}
    assert len(lines) == 5 and {where["a"], where["b"]} == {(2, 0), (2, 10)}
    assert {where["c"], where["d"]} == {(0, 5), (4, 5)}


@pytest.mark.parametrize("shape", [(3, 2), (100, 4), (3, 1), (1, 5), (1, 1)])
def test_a_map_of_zeros_shows_every_label(shape):
    labels = [chr(0x4E00 + i) for i in range(shape[0])]
    shown = s3.text_map(labels, np.zeros(shape))
    assert sorted(shown.replace("\n", "").replace(" ", "")) == labels
    assert shown.count("\n") == 16 and max(map(len, shown.split("\n"))) <= 72


def test_a_map_has_its_width_and_height():
    lines = s3.text_map("ab", np.array([[0.0, 1.0], [3.0, 5.0]])).split("\n")
    assert sorted([lines[0].index(lines[0].strip()[0]), len(lines[0]) - 1]) == [0, 71]
    lines = s3.text_map("abcd", np.array([[-5.0, 0], [5, 0], [0, 1], [0, -1]])).split("\n")
    assert len(lines) == 17 and len(lines[8]) == 72
    assert lines[0].strip() in "cd" and lines[16].strip() in "cd" and lines[8].strip()[0] in "ab"


def test_a_taken_cell_gives_the_nearest_free_one():
    lines = s3.text_map("abcz", np.array([[0.0], [0], [0], [9]]), width=9, height=3).split("\n")
    assert lines[0][:2] in ("ab", "ac") or lines[0][-2:] in ("ba", "ca")
    with pytest.raises(ValueError, match="2 labels and 3 rows"):
        s3.text_map("ab", np.zeros((3, 2)))
    with pytest.raises(ValueError, match="7 labels and 7 rows for 6 cells"):
        s3.text_map("abcdefg", np.zeros((7, 2)), width=3, height=2)


def test_a_line_counts_as_much_as_two_columns():
    edges = np.array([[-5.0, 0], [5, 0], [0, 1], [0, -1]])
    C = np.concatenate([edges, np.zeros((3, 2))])  # three labels for the cell in the middle
    lines = s3.text_map("wxyzabc", C, width=11, height=5).split("\n")
    assert sorted(lines[2][4:7]) == ["a", "b", "c"] and lines[2][5] == "a"
    assert lines[1] == lines[3] == ""


def test_analogies_against_neighbours_and_chance(rng):
    capitals = 10 * rng.normal(size=(6, 4))
    step = np.array([0.0, 40, 0, 0])
    C = np.concatenate([capitals, capitals + step, rng.normal(size=(8, 4)) - 100])
    pairs = [(i, 6 + i) for i in range(6)]
    assert s3.analogies(C, pairs)[::2] == (1.0, 1 / 17)
    by_step, by_neighbour, _ = s3.analogies(C, pairs)
    assert by_neighbour < 0.5
    C[6:12] = capitals + 0.01 * rng.normal(size=(6, 4))  # each beside its own, no common step
    assert s3.analogies(C, pairs)[:2] == (1.0, 1.0)
    far = np.arange(20.0)[:, None] * 7 % 20
    found, expected = s3.analogies(far, [(0, 1), (2, 5), (9, 4)]), []
    for a, b in [(0, 1), (2, 5), (9, 4)]:
        for c, d in [(0, 1), (2, 5), (9, 4)]:
            if a != c:
                others = [i for i in range(20) if i not in (a, b, c)]
                goals = (far[c] + far[b] - far[a], far[c])
                expected.append([min(others, key=lambda i: abs(far[i] - g)) == d for g in goals])
    assert found[:2] == pytest.approx(np.mean(expected, axis=0))


# Bad input


MODEL = s3.NeuralLM(5, 2, 3, 4)
PAIR = np.zeros((1, 2), dtype=int)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: s3.encode(""), "the text is empty"),
        (lambda: s3.make_examples([], 2), r"shape \(0,\)"),
        (lambda: s3.make_examples([1, 2], 2), "one row, 3 or more"),
        (lambda: s3.make_examples([[1, 2, 3]], 1), "expected one row"),
        (lambda: s3.make_examples([1, 2], 0), "context is 0"),
        (lambda: s3.make_examples([1, 2], 1.0), "context is 1.0"),
        (lambda: s3.make_examples([1, -2, 1], 1), "the id -2"),
        (lambda: s3.make_examples([0.5, 1.5], 1), "dtype float64"),
        (
            lambda: s3.count_models(PAIR, [0, 1], PAIR, [0], 5),
            r"X has shape \(1, 2\), Y \(2,\); expected \(N, context\) and \(N,\)",
        ),
        (lambda: s3.count_models(PAIR, [0], PAIR[:, 1:], [0], 5), "must match exactly"),
        (lambda: s3.count_models(PAIR[:, 0], [0], PAIR, [0], 5), r"X has shape \(1,\)"),
        (lambda: s3.count_models(PAIR, [0], PAIR, [0], "5"), "vocab_size is '5'"),
        (lambda: s3.count_models(PAIR, [0], PAIR, [0], 5, ("a",)), "discount is .*'a'"),
        (lambda: s3.count_models(PAIR, [0], PAIR, [0], 5, None), "discount is None"),
        (lambda: s3.count_models(PAIR, [0], PAIR, [0], 5, (math.nan,)), "discount is .*nan"),
        (lambda: s3.count_models(PAIR, [0], PAIR, [0], 5, (1.1,)), "discount is .*expected 0 to 1"),
        (lambda: s3.count_models(PAIR, [0], PAIR, [0], 5, (-0.1,)), "discount is .*0.1"),
        (lambda: s3.count_models(None, [0], PAIR, [0], 5), "X has dtype object"),
        (lambda: s3.count_models(PAIR, [0], PAIR, [0], 2**62), "64 bits"),
        (lambda: s3.count_models(PAIR, [0], PAIR, [5], 5), "Y contains the id 5"),
        (lambda: s3.softmax(np.zeros((2, 0))), r"shape \(2, 0\)"),
        (lambda: s3.cross_entropy_forward(np.zeros((2, 3)), [0]), r"targets have shape \(1,\)"),
        (lambda: s3.cross_entropy_forward(np.zeros((1, 3)), [3]), "the id 3; expected 0 to 2"),
        (lambda: s3.cross_entropy_forward(np.zeros((0, 3)), []), "targets is empty"),
        (lambda: s3.NeuralLM(0, 2, 3, 4), "vocab_size is 0"),
        (lambda: s3.NeuralLM(5, -1, 3, 4), "context is -1"),
        (lambda: s3.NeuralLM(5, 2, 2.5, 4), "n_embd is 2.5"),
        (lambda: s3.NeuralLM(5, 2, 3, 0), "n_hidden is 0"),
        (lambda: s3.NeuralLM(5, 2, 3, 4, dtype=int), "expected numpy.float32 or numpy.float64"),
        (lambda: s3.NeuralLM(5, 2, 3, 4, dtype=np.float16), "expected numpy.float32"),
        (lambda: s3.NeuralLM(5, True, 3, 4), "context is True"),
        (lambda: s3.NeuralLM(5, "2", 3, 4), "context is '2'"),
        (lambda: MODEL.logits(np.zeros((1, 3), dtype=int)), r"expected \(N, 2\)"),
        (lambda: MODEL.logits([0, 1]), r"X has shape \(2,\)"),
        (lambda: MODEL.logits([[0, 5]]), "the id 5; expected 0 to 4"),
        (lambda: MODEL.logits(np.zeros((0, 2), dtype=int)), "is empty"),
        (lambda: MODEL.loss(PAIR, [1, 2]), r"X has shape \(1, 2\), Y \(2,\)"),
        (lambda: MODEL.loss(PAIR, [[1]]), r"X has shape \(1, 2\), Y \(1, 1\)"),
        (lambda: MODEL.loss(None, [1]), "X has dtype object"),
        (lambda: MODEL.input_gradients(None, [1]), r"X has shape \(\)"),
        (lambda: MODEL.generate(1, temperature=10**400), "temperature is 1000"),
        (lambda: s3.train(MODEL, PAIR, [0], 1, learning_rate=10**400), "learning_rate is 1000"),
        (lambda: s3.analogies(np.eye(5), [(0, 1)]), r"pairs have shape \(1, 2\)"),
        (lambda: s3.analogies(np.eye(3), [(0, 1), (1, 2)]), "of 3 rows"),
        (lambda: s3.analogies(np.eye(5), [(0, -1), (1, 2)]), "pairs contains the id -1"),
        (lambda: s3.analogies(np.eye(5), [0, 1]), r"pairs have shape \(2,\)"),
        (lambda: MODEL.loss_and_grads(PAIR, [-1]), "the id -1"),
        (lambda: MODEL.generate(-1), "n is -1"),
        (lambda: MODEL.generate(1, context=[7]), "context contains the id 7"),
        (lambda: MODEL.generate(1, context=[[1]]), "context has shape"),
        (lambda: MODEL.generate(1, temperature=-1), "temperature is -1"),
        (lambda: MODEL.generate(1, temperature=math.nan), "temperature is nan"),
        (lambda: MODEL.generate(1, top_k=0), "top_k is 0"),
        (lambda: MODEL.generate(1, top_p=0), "top_p is 0"),
        (lambda: MODEL.generate(1, top_p=1.5), "top_p is 1.5"),
        (lambda: MODEL.generate(1, top_p="0.5"), "top_p is '0.5'; expected 0 < top_p <= 1"),
        (lambda: MODEL.generate(1, top_p=True), "top_p is True"),
        (lambda: MODEL.generate(1, top_k="2"), "top_k is '2'; expected an integer"),
        (lambda: MODEL.generate(1, top_k=2.0), "top_k is 2.0"),
        (lambda: MODEL.generate(1, temperature=None), "temperature is None; expected a number"),
        (lambda: MODEL.generate(1, temperature="1"), "temperature is '1'"),
        (lambda: MODEL.generate(1, temperature=math.inf), "temperature is inf"),
        (lambda: MODEL.generate(1, context=5), r"context has shape \(\)"),
        (lambda: MODEL.generate(None), "n is None"),
        (lambda: s3.next_symbol([1.0, math.nan]), "expected one row of finite numbers"),
        (lambda: s3.next_symbol([[1.0]]), "expected one row of finite numbers"),
        (lambda: s3.softmax(["a"]), "scores have dtype <U1"),
        (lambda: s3.softmax(None), "scores have dtype object"),
        (lambda: s3.softmax([[1.0]], axis=2), r"shape \(1, 1\)"),
        (lambda: s3.log_sum_exp([]), r"scores have shape \(0,\)"),
        (lambda: s3.embedding_forward([-1], np.zeros((3, 2))), "the id -1"),
        (lambda: s3.embedding_forward([True], np.zeros((3, 2))), "dtype bool"),
        (lambda: s3.make_examples([True, False], 1), "dtype bool"),
        (lambda: s3.make_examples(None, 1), r"shape \(\)"),
        (
            lambda: s3.make_examples(np.array([2**63, 1], np.uint64), 1),
            "the id 9223372036854775808",
        ),
        (lambda: s3.make_examples("abc", 1), r"shape \(\)"),
        (lambda: MODEL.logits([[True, False]]), "dtype bool"),
        (lambda: s3.encode("abc", ["a", "b"]), "'c' is not among the model's 2 symbols"),
        (lambda: s3.train(MODEL, PAIR, [0], 5, learning_rate="1"), "learning_rate is '1'"),
        (lambda: s3.train(MODEL, PAIR, [0], 5, learning_rate=None), "learning_rate is None"),
        (lambda: s3.train(MODEL, PAIR, [0], 5, learning_rate=math.nan), "learning_rate is nan"),
        (lambda: s3.train(MODEL, PAIR, [0], 5, weight_decay=-1), "weight_decay is -1"),
        (lambda: s3.train(MODEL, PAIR, [0], 5, weight_decay="a"), "weight_decay is 'a'"),
        (lambda: s3.train(MODEL, PAIR, [0], 5, dropout=1), "dropout is 1; expected 0 <= drop"),
        (lambda: s3.train(MODEL, PAIR, [0], 5, dropout=-0.1), "dropout is -0.1"),
        (lambda: s3.train(MODEL, PAIR, [0], 5, dropout=None), "dropout is None"),
        (lambda: s3.train(MODEL, PAIR, [9], 5), "Y contains the id 9"),
        (lambda: s3.train(MODEL, PAIR + 7, [0], 5), "X contains the id 7"),
        (lambda: s3.train(MODEL, PAIR, [0], 5, learning_rate=0), "learning_rate is 0"),
        (lambda: s3.train(MODEL, PAIR, [0], 5, learning_rate=-1), "learning_rate is -1"),
        (lambda: s3.train(MODEL, PAIR, [0], 0), "steps is 0"),
        (lambda: s3.train(MODEL, PAIR, [0], 1, batch_size=0), "batch_size is 0"),
        (lambda: s3.train(MODEL, PAIR, [0, 1], 1), r"X has shape \(1, 2\), Y \(2,\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The report


def test_reading_names_and_their_examples(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufeff  bo\n\nann\r\nbo\n \nmary ann", encoding="utf-8")
    assert s3.read_names(path) == ["bo", "ann", "mary ann"]
    ids, symbols = s3.encode("\tb\na")
    assert symbols == ["\n", "\t", "a", "b"] and ids.tolist() == [1, 3, 0, 2]
    X, Y = s3.name_examples(["ab", "b"], ["\n", "a", "b"], 2)
    assert X.tolist() == [[0, 0], [0, 1], [1, 2], [0, 0], [0, 2]]
    assert Y.tolist() == [1, 2, 0, 2, 0]


def test_the_best_counts_are_chosen_on_development(monkeypatch):
    """Development text that repeats training text wants long grams, noise wants none."""
    rng = np.random.default_rng(0)
    once = rng.integers(0, 6, 200)
    for dev, best in ((once, 4), (rng.integers(0, 6, 200), 1)):
        ids = np.concatenate([once, dev, rng.integers(0, 6, 100)])
        X, Y = s3.make_examples(ids, 3)
        models, name, p = s3.best_counts(X[:397], Y[:397], 197, X[397:], Y[397:], 6)
        assert name.startswith(f"{best}-gram counts")
        discount = float(name.split()[-1])
        direct = s3.count_models(X[:397], Y[:397], X[397:], Y[397:], 6, (discount,))
        assert np.array_equal(p, direct[best - 1][3][0])
        dev_of = [
            s3.count_models(X[:197], Y[:197], X[197:397], Y[197:397], 6, (d,)) for d in s3.DISCOUNTS
        ]
        scores = {d: s3.bits(m[best - 1][3]) for d, m in zip(s3.DISCOUNTS, dev_of)}
        assert min(scores, key=scores.get) == discount


def scores_printed(capsys, n_h, p_count, p_model):
    levels = [None, (0, None, np.array(n_h), None)]
    s3.report_scores(levels, "counts", np.array(p_count), np.array(p_model), 1)
    return capsys.readouterr().out


def test_the_morals_follow_the_numbers(capsys):
    out = scores_printed(capsys, [0, 5, 50, 500], [0.25] * 4, [0.5, 0.5, 0.125, 0.125])
    assert "counts                          2.000" in out
    assert "the network                     2.000" in out
    assert "Their mean is 0.085 better than the better one." in out
    assert "The network is ahead where they were seen: 0, 1-9." in out
    rows = [line.split() for line in out.splitlines() if "%" in line]
    assert rows[0] == ["0", "25.0%", "2.000", "1.000", "1.415"]
    assert [row[0] for row in rows] == ["0", "1-9", "10-99", "100+"]
    out = scores_printed(capsys, [9, 10, 99, 100], [0.5] * 4, [0.25] * 4)
    assert "Counting beats the network by 1.000 bits. Their mean is 0.415 worse" in out
    assert "seen: nowhere." in out
    assert [line.split()[1] for line in out.splitlines() if "%" in line] == [
        "25.0%",
        "50.0%",
        "25.0%",
    ]
    out = scores_printed(capsys, [0, 1], [0.25] * 2, [0.25] * 2)
    assert "Counting and the network are level. Their mean is 0.000 worse" in out
    assert "seen: nowhere." in out  # not ahead where level
    out = scores_printed(capsys, [0, 1], [1.0] * 2, [1.0] * 2)
    assert "-0.000" not in out and out.count(" 0.000") == 10
    out = scores_printed(capsys, [1, 1], [0.25] * 2, [0.5] * 2)
    assert "The network beats counting by 1.000 bits." in out
    assert [line.split()[0] for line in out.splitlines() if "%" in line] == ["1-9"]


def test_the_step_from_capital_to_small_letters_is_judged(capsys):
    model, ids = small_model(V=6), np.repeat([1, 2, 3, 4], 30)
    model.symbols = ["\n", "A", "a", "B", "b", "C"]
    s3.report_analogies(model, np.append(ids, [0, 5, 5]))
    out = capsys.readouterr().out
    shares = s3.analogies(model.params["C"], [(1, 2), (3, 4)])
    assert re.findall(r"(\S+)%", out) == [f"{100 * share:.1f}" for share in shares]
    for C, verdict in ((np.eye(6), "none"), (np.array([[-1.0], [0], [5], [1], [6], [2]]), "one")):
        model.params["C"] = np.tile(C, 4)[:, :4]
        s3.report_analogies(model, np.append(ids, [0]))
        assert capsys.readouterr().out.endswith(f"there is {verdict}.\n")
    s3.report_analogies(model, ids[:-1])  # one pair is no analogy
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def fast_reports():
    """Two runs of the smoke report, without their timings."""
    return [re.sub(r"\d+\.\d s\b", "", report) for report in two_fast_reports(s3.main)]


def test_report_is_deterministic_and_complete(fast_reports):
    first, second = fast_reports
    assert first == second
    parts = "1. One layer|2. Counting|3. NeuralLM|the network|Slope of the loss|A is to a|4. Names"
    parts += "|no remedy|the network|letters by their rows|200 names written|5. The stories"
    assert re.search(parts.replace(".", r"\.").replace("|", ".*"), first, re.DOTALL)
    assert "learned in 1,000 steps" in first and "step 1,000," in first
    assert re.findall(r"the last (\d) characters occur", first) == ["4", "3"]
    check_held_out_line(first)
    assert first.splitlines()[-1].endswith("(stage 3, neural n-gram, context 5)")


def test_the_report_scores_the_last_tenth_with_its_context(fast_reports, capsys):
    """The held-out line again, from a network trained here on the first nine tenths alone."""
    text = (ROOT / "data" / "stories.txt").read_text(encoding="utf-8")[:40000]
    ids, symbols = s3.encode(text)
    model = s3.NeuralLM(len(symbols), 5, 24, 64, 3)
    s3.train(model, *s3.make_examples(ids[:36000], 5), 1000, seed=3)
    X, Y = s3.make_examples(ids[36000 - 5 :], 5)
    assert len(Y) == 4000
    found = check_held_out_line(fast_reports[0])
    assert found == pytest.approx(model.loss(X, Y) / math.log(2), abs=0.0006)
    p = s3.count_models(
        *s3.make_examples(ids[:36000], 9), *s3.make_examples(ids[35991:], 9), len(symbols)
    )
    new = np.mean(p[4][1] == 0)
    dx = model.input_gradients(X, Y)
    slopes = np.mean([np.sqrt((rows**2).sum(axis=1)) for rows in dx], axis=0)[::-1]
    printed = fast_reports[0].split("(the largest: 1):\n")[1].split("\n")[0].split()
    assert [float(cell) for cell in printed] == pytest.approx(
        (slopes / slopes.max()).tolist(), abs=0.0051
    )
    sample = model.generate(480, temperature=0.7, seed=3)
    written = "".join("".join(symbols[i] for i in sample).split())
    assert written in "".join(fast_reports[0].split())
    row = next(line for line in fast_reports[0].splitlines() if line.startswith("   5 "))
    assert row.split()[2:4] == [f"{p[4][0]:,}", f"{new:.2%}"]


def test_the_report_is_made_of_its_parts(fast_reports, capsys):
    """Tables of section 1 and 2, the choice of counts, and the names: each once more, by itself."""
    report = fast_reports[0]
    names = s3.read_names(ROOT / "data" / "names.txt")[:600]
    pairs = [pair for name in names for pair in zip("\n" + name, name + "\n")]
    first = [a for a, _ in pairs]
    share = {pair: pairs.count(pair) / first.count(pair[0]) for pair in set(pairs)}
    counted = np.mean([-math.log2(share[pair]) for pair in pairs])
    assert f"counted {counted:.4f}, learned in 1,000 steps" in report
    learned, difference = re.search(r"steps (\S+); largest difference (\S+)", report).groups()
    assert counted < float(learned) < counted + 0.01 and 0 < float(difference) < 0.05

    ids, symbols = s3.encode((ROOT / "data" / "stories.txt").read_text(encoding="utf-8")[:40000])
    X, Y = s3.make_examples(ids[:36000], 9)
    held = s3.make_examples(ids[36000 - 9 :], 9)
    cut = round(0.9 * len(Y) - 0.5)  # the development piece is the last tenth of the training part
    models, name, p = s3.best_counts(X, Y, cut, *held, len(symbols))
    rows = [line.split() for line in report.splitlines() if re.match(r"  [ \d]\d +10\^", line)]
    expected = []
    for n, (grams, n_hc, _, p_n) in enumerate(models, 1):
        possible = f"10^{math.log10(len(symbols) ** n):.1f}"
        row = [str(n), possible, f"{grams:,}", f"{np.mean(n_hc == 0):.2%}", f"{s3.bits(p_n):.3f}"]
        expected.append(row)
    assert rows == expected
    assert re.search(rf"{name} +{s3.bits(p):.3f}\n", report)

    names_model = s3.learn_names(names, 6, 400, 3)
    s3.write_names(names_model, names, "", 20, 3)
    for part in re.sub(r"\d+\.\d s\b", "", capsys.readouterr().out).split("\n"):
        assert part in report
    rng, written = np.random.default_rng(3), []
    for _ in range(200):
        ids = names_model.generate(20, temperature=0.8, seed=rng)
        written.append("".join(names_model.symbols[i] for i in ids).partition("\n")[0])
    assert f"{sum(name in names for name in written)} of them in the file" in report
    shown = report.split("the first:\n")[1].split("\n\n5.")[0].split()
    assert shown == [name + "*" * (name in names) for name in written[:24] if name]
    assert names_model.context == 6

    letters = [i for i, symbol in enumerate(names_model.symbols) if symbol.isalpha()]
    C = names_model.params["C"][letters]
    assert s3.text_map([names_model.symbols[i] for i in letters], C) in report


def test_a_common_step_must_find_twice_as_many(monkeypatch, capsys):
    model, ids = small_model(V=5), np.repeat([1, 2, 3, 4], 30)
    model.symbols = list("\nAaBb")
    for shares, verdict in (
        ((0.5, 0.2, 0.1), "one"),
        ((0.4, 0.2, 0.1), "none"),
        ((0.5, 0.1, 0.2), "one"),
        ((0.3, 0.1, 0.2), "none"),
        ((0.3, 0.2, 0.1), "none"),
    ):
        monkeypatch.setattr(s3, "analogies", lambda C, pairs, shares=shares: shares)
        s3.report_analogies(model, ids)
        assert capsys.readouterr().out.endswith(f"there is {verdict}.\n")


def test_two_capitals_of_one_letter_are_no_analogy(capsys):
    model = small_model(V=3)
    model.symbols = ["\u212a", "K", "k"]  # the sign for kelvin, too, has the small letter k
    s3.report_analogies(model, np.repeat([0, 1, 2], 30))
    assert capsys.readouterr().out == ""


def test_the_shortest_text_and_the_shortest_list(tmp_path, capsys):
    path = tmp_path / "text.txt"
    for length in (117, 116):  # 105 characters to train on, or 104
        path.write_text(("abcab " * 20)[:length])
        if length == 117:
            s3.main(["--fast", "--steps", "2", "--text", str(path)])
            check_held_out_line(capsys.readouterr().out)
        else:
            with pytest.raises(SystemExit):
                s3.main(["--fast", "--steps", "2", "--text", str(path)])
            assert "the text has 116 characters" in capsys.readouterr().err
    assert s3.learn_names([a + "x" for a in "abcdefghijkl"], 2, 2, 0).vocab_size == 14
    with pytest.raises(ValueError, match="there are 11 names"):
        s3.learn_names([a + "x" for a in "abcdefghijk"], 2, 2, 0)


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], (6, 8000, 0, "", 20)),
        (["--fast"], (6, 400, 0, "", 20)),
        (["--seed", "4", "--steps", "7", "--context", "2"], (2, 7, 4, "", 20)),
        (["--prompt", "a", "--length", "9"], (6, 8000, 0, "a", 9)),
    ],
)
def test_the_flags_reach_the_names(tmp_path, monkeypatch, flags, expected):
    path, seen = tmp_path / "names.txt", []
    path.write_text("ann\nbob\n")
    monkeypatch.setattr(s3, "learn_names", lambda *args: seen.append(args) or "model")
    monkeypatch.setattr(s3, "write_names", lambda *args: seen.append(args))
    s3.main(["--names", str(path), *flags])
    context, steps, seed, prompt, length = expected
    names = ["ann", "bob"]
    assert seen == [(names, context, steps, seed), ("model", names, prompt, length, seed)]


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], (5, 512, 24000, 0)),
        (["--fast"], (5, 64, 1000, 0)),
        (["--context", "3", "--steps", "8", "--seed", "2"], (3, 512, 8, 2)),
    ],
)
def test_the_flags_reach_the_network(tmp_path, monkeypatch, capsys, flags, expected):
    path, seen = tmp_path / "text.txt", []
    path.write_text("abcab " * 100)

    def train(model, X, Y, steps, seed, title):
        seen.append((model.context, model.n_hidden, steps, seed))
        assert model.n_embd == 24 and len(Y) == 540 - model.context
        raise ValueError("enough")

    monkeypatch.setattr(s3, "train", train)
    monkeypatch.setattr(s3, "report_table", lambda names, steps: seen.append((len(names), steps)))
    with pytest.raises(SystemExit):
        s3.main(["--text", str(path), *flags])
    assert seen == [(600, 1000) if "--fast" in flags else (2254, 10000), expected]
    assert capsys.readouterr().err.endswith("error: enough\n")


def test_names_are_learned_and_written(tmp_path, capsys):
    path = tmp_path / "names.txt"
    names = [a + b + c for a in "bdk" for b in "aeiou" for c in ["", "n", "ra"]]
    path.write_text("\n".join(names), encoding="utf-8")
    flags = ["--steps", "300", "--context", "2", "--prompt", "ba", "--length", "3"]
    s3.main(["--names", str(path), *flags])
    out = capsys.readouterr().out
    assert "steps" in out and "held-out:" not in out
    count = int(re.search(r"200 names .* (\d+) of them in the file", out)[1])
    written = " ".join(out.split("the first:\n")[1].split("\n")).split()
    assert len(written) == 24 and all(name.startswith("ba") for name in written)
    assert all((name[:-1] in names) if name[-1] == "*" else (name not in names) for name in written)
    assert all(len(name.rstrip("*")) <= 5 for name in written)
    assert count >= sum(name[-1] == "*" for name in written) > 0


def test_the_names_held_out_are_a_tenth_that_training_never_saw(monkeypatch):
    names, seen = [a + b for a in "abcdefghij" for b in "klmnopqrst"], {}
    real = s3.train

    def train(model, X, Y, *args, **options):
        seen.setdefault("trained", []).append(len(Y))
        return real(model, X, Y, *args, **options)

    monkeypatch.setattr(s3, "train", train)
    monkeypatch.setattr(s3, "report_scores", lambda *args: seen.update(scores=args))
    model = s3.learn_names(names, 2, 40, 0)
    order = [names[i] for i in np.random.default_rng(0).permutation(100)]
    assert seen["trained"] == [81 * 3] * 3 + [90 * 3]
    _, _, p_count, p_model, k = seen["scores"]
    held = s3.name_examples(order[90:], model.symbols, 2)
    assert np.array_equal(p_model, np.exp(model.log_likelihoods(*held))) and k == 2
    examples = s3.name_examples(order[:90], model.symbols, 2)
    assert np.array_equal(p_count, s3.best_counts(*examples, 81 * 3, *held, 21)[2])


def test_overfitting_is_measured_on_the_development_names(capsys):
    rng = np.random.default_rng(0)
    names = ["".join(rng.choice(list("abc"), 5)) for _ in range(60)]
    model = s3.learn_names(list(dict.fromkeys(names)), 3, 800, 0)
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d+00 ", line)]
    assert [row[0] for row in rows] == [f"{100 * i:,}" for i in range(1, 9)]
    table = np.array([[float(cell.strip("/")) for cell in row[1:] if cell != "/"] for row in rows])
    assert table.shape == (8, 6)
    assert table[-1, 0] < table[0, 0] and table[-1, 1] > table[:, 1].min()
    cost = float(re.search(r"costs (\d\.\d+) bits", out)[1])
    assert cost == pytest.approx(table[-1, 1] - table[:, 1].min(), abs=0.0011)
    chosen = re.search(r"Best is\n   (.+), ([\d,]+) steps", out)
    best = np.unravel_index(table[:, 1::2].argmin(), (8, 3))
    assert chosen[1] == ("no remedy", "dropout", "weight decay")[best[1]]
    assert chosen[2] == rows[best[0]][0]
    assert f"   names: step {chosen[2]}," in out
    assert model.symbols == ["\n", "a", "b", "c"] and model.context == 3


def test_the_table_of_remedies_is_what_the_three_trainings_give(capsys):
    """Each column again: its losses on both pieces at each of its rows, the last step included."""
    rng = np.random.default_rng(1)
    names = list(dict.fromkeys("".join(rng.choice(list("abcd"), 4)) for _ in range(80)))
    model = s3.learn_names(names, 2, 19, 5)
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d+ +\d+\.\d+ /", line)]
    assert [int(row[0]) for row in rows] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 19]
    order = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    order = order[: int(0.9 * len(order))]
    cut = int(0.9 * len(order))
    seen = s3.name_examples(order[:cut], model.symbols, 2)
    dev = s3.name_examples(order[cut:], model.symbols, 2)
    settings = [{}, {"dropout": 0.5}, {"weight_decay": 0.001}]
    for column, setting in enumerate(settings):
        for row in rows:
            again, done = s3.NeuralLM(5, 2, 16, 128, 5), int(row[0])
            options = {"batch_size": 32, "seed": 5, "watch": done.__eq__, **setting}
            s3.train(again, *seen, 19, **options)
            printed = [float(cell.strip("/")) for cell in row[1:] if cell != "/"]
            losses = [again.loss(*seen) / math.log(2), again.loss(*dev) / math.log(2)]
            assert printed[2 * column : 2 * column + 2] == pytest.approx(losses, abs=5.1e-4)
    dev_bits = np.array([[float(c.strip("/")) for c in row[1:] if c != "/"][1::2] for row in rows])
    cost = float(re.search(r"costs (\d\.\d+) bits", out)[1])
    assert cost == pytest.approx(dev_bits[-1, 0] - dev_bits[:, 0].min(), abs=0.0011)
    remedy, stop = re.search(r"Best is\n   (.+), ([\d,]+) steps", out).groups()
    best = settings[["no remedy", "dropout", "weight decay"].index(remedy)]
    again = s3.NeuralLM(5, 2, 16, 128, 5)
    training = s3.name_examples(order, model.symbols, 2)
    s3.train(again, *training, 19, batch_size=32, seed=5, watch=int(stop).__eq__, **best)
    for name, value in model.params.items():
        assert np.array_equal(value, again.params[name])


def test_text_in_any_script_is_learned(tmp_path, capsys):
    """900 different characters; before, 512 were too many for the counts."""
    rng = np.random.default_rng(0)
    text = "".join(chr(0x4E00 + i) for i in np.arange(900).tolist() + rng.zipf(1.5, 900).tolist())
    path = tmp_path / "text.txt"
    path.write_text(text[:1800].replace(chr(0x4E01), "\n"), encoding="utf-8")
    s3.main(["--fast", "--steps", "20", "--length", "5", "--context", "3", "--text", str(path)])
    out = capsys.readouterr().out
    check_held_out_line(out)
    assert "context 3)" in out and "step 20," in out
    assert re.search(r"^   2    10\^5.9 ", out, re.M)  # 901 symbols, squared


def test_prompt_and_length_of_the_sample(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("abcab " * 100)
    s3.main(["--fast", "--text", str(path), "--steps", "5", "--prompt", "cab", "--length", "40"])
    sample = capsys.readouterr().out.split("temperature 0.7\n")[1].split("\n\nheld-out")[0]
    assert sample.startswith("   cab") and 35 <= len(sample.strip()) <= 43
    with pytest.raises(SystemExit) as stop:
        s3.main(["--fast", "--text", str(path), "--prompt", "xyz"])
    assert stop.value.code == 2 and "'x' is not among" in capsys.readouterr().err


def test_a_one_character_text_is_a_text(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text("a" * 300)
    s3.main(["--fast", "--steps", "5", "--text", str(path)])
    assert check_held_out_line(capsys.readouterr().out) == 0


@pytest.mark.parametrize(
    "content, message", [(b"", "empty"), (b"too short", "9 characters"), (b"\xff\xfe\x00", "utf-8")]
)
def test_a_bad_text_is_one_clean_line(tmp_path, capsys, content, message):
    assert_bad_text_is_one_clean_line(s3.main, "--text", content, message, tmp_path, capsys)


def test_a_strange_prompt_is_refused_before_the_training(tmp_path, capsys):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(a + b for a in "abcde" for b in "fghij"))
    with pytest.raises(SystemExit) as stop:
        s3.main(["--names", str(path), "--steps", "9", "--prompt", "ax"])
    shown = capsys.readouterr()
    assert stop.value.code == 2 and "'x' is not among the model's 11 symbols" in shown.err
    assert shown.out == ""


def test_too_few_names_are_one_clean_line(tmp_path, capsys):
    path = tmp_path / "names.txt"
    path.write_text("ann\nbob\n")
    with pytest.raises(SystemExit) as stop:
        s3.main(["--names", str(path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "there are 2 names" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["--seed", "-1"],
        ["--wrong"],
        ["--text", "/no/such/file"],
        ["--names", "/no/such/file"],
        ["--context", "0"],
        ["--steps", "-3"],
        ["--length", "0"],
        ["--context", "x"],
        ["--context", "65"],
    ],
)
def test_a_bad_command_line_is_one_clean_line(monkeypatch, capsys, argv):
    monkeypatch.setattr(sys, "argv", ["stage03_nlm.py", *argv])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "stage03_nlm.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error
    assert argv[0] in error or "/no/such/file" in error
