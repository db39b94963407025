"""Stage 3: counts, the loss and its gradient, layers, the network, training, the report."""

import math
import re
import runpy
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import (
    ROOT,
    assert_gradients,
    central_difference,
    check_held_out_line,
    relative_error,
)

import stage03_nlm as s3


def small_model(seed=0, direct=True, V=7, context=3):
    """A float64 network whose every parameter is random, so that no gradient vanishes by design."""
    model = s3.NeuralLM(V, context, 4, 5, seed, np.float64, direct)
    rng = np.random.default_rng(seed + 1)
    for value in model.params.values():
        value += 0.5 * rng.normal(size=value.shape)
    return model


# Counting


def witten_bell(rows, history, symbol, V):
    """P(symbol | history) by the recursion of section 1, counted with a dictionary."""
    shorter = witten_bell(rows, history[1:], symbol, V) if history else 1 / V
    n = len(history) + 1
    followers = Counter(row[-1] for row in rows if tuple(row[-n:-1]) == tuple(history))
    N, T = sum(followers.values()), len(followers)
    return (followers[symbol] + T * shorter) / (N + T) if N else shorter


@pytest.mark.parametrize("V, length, cut, context", [(3, 60, 40, 3), (5, 30, 27, 2), (1, 9, 5, 1)])
def test_counts_agree_with_a_dictionary(rng, V, length, cut, context):
    X, Y = s3.make_examples(rng.integers(0, V, length), context)
    rows = np.column_stack([X, Y]).tolist()
    models = s3.count_models(X[:cut], Y[:cut], X[cut:], Y[cut:], V)
    for n, (grams, new, p, n_h) in enumerate(models, 1):
        seen = [tuple(row[-n:]) for row in rows[:cut]]
        asked = [tuple(row[-n:]) for row in rows[cut:]]
        assert grams == len(set(seen))
        assert new == pytest.approx(np.mean([gram not in seen for gram in asked]))
        assert p == pytest.approx([witten_bell(rows[:cut], a[:-1], a[-1], V) for a in asked])
        assert n_h.tolist() == [sum(s[:-1] == a[:-1] for s in seen) for a in asked]
    assert len(models) == context + 1


def test_witten_bell_adds_up_to_one(rng):
    X, Y = s3.make_examples(rng.integers(0, 4, 50), 2)
    models = s3.count_models(X, Y, np.tile(X[7], (4, 1)), np.arange(4), 4)
    assert [p.sum() for _, _, p, _ in models] == pytest.approx([1, 1, 1])


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


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("N, context, V", [(1, 1, 2), (6, 3, 7), (5, 2, 1)])
def test_every_gradient_of_the_network(rng, direct, N, context, V):
    model = small_model(direct=direct, V=V, context=context)
    X, Y = rng.integers(0, V, (N, context)), rng.integers(0, V, N)
    loss, grads = model.loss_and_grads(X, Y)
    assert loss == model.loss(X, Y)
    assert grads.keys() == model.params.keys() and ("W" in grads) == direct
    for name, value in model.params.items():
        numeric = central_difference(lambda: model.loss(X, Y), value)
        assert relative_error(grads[name], numeric) < 1e-6, name


def test_logits_are_bengios_equation(rng):
    model = small_model()
    P, X = model.params, rng.integers(0, 7, (4, 3))
    for context, z in zip(X, model.logits(X)):
        x = np.concatenate([P["C"][i] for i in context])
        expected = P["b"] + x @ P["W"] + np.tanh(P["d"] + x @ P["H"]) @ P["U"]
        assert z == pytest.approx(expected)


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


def test_perplexity_by_two_routes_and_of_a_uniform_model(rng):
    ids, model = rng.integers(0, 7, 9000), small_model()  # longer than one piece of log_probs
    assert model.perplexity(ids) == pytest.approx(math.exp(model.loss(*s3.make_examples(ids, 3))))
    for value in model.params.values():
        value[:] = 0
    assert model.perplexity(ids) == pytest.approx(7)


def test_one_symbol_vocabulary():
    model = s3.NeuralLM(1, 2, 3, 4)
    assert model.perplexity([0, 0, 0]) == 1.0
    assert model.generate(3).tolist() == [0, 0, 0]


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
        ({"top_p": 0.79}, [0.5 / 0.8, 0.3 / 0.8, 0, 0]),
        ({"top_p": 0.81}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"temperature": 1e-300}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365),
    ],
)
def test_sampling_frequencies(options, expected):
    ids = fixed_model([0.5, 0.3, 0.15, 0.05]).generate(3000, seed=0, **options)
    frequencies = np.bincount(ids, minlength=4) / 3000
    assert frequencies == pytest.approx(expected, abs=0.03)
    assert not frequencies[np.asarray(expected) == 0].any()


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


# Training


def test_training_step_is_sgd(rng):
    """One step over a whole batch moves every parameter by exactly -η times its gradient."""
    model, X, Y = small_model(), rng.integers(0, 7, (6, 3)), rng.integers(0, 7, 6)
    before = {name: value.copy() for name, value in model.params.items()}
    loss, grads = model.loss_and_grads(X, Y)
    losses = s3.train(model, X, Y, 1, learning_rate=0.1, batch_size=6)
    assert losses == pytest.approx([loss])
    for name, value in model.params.items():
        assert value == pytest.approx(before[name] - 0.1 * grads[name])


def test_learns_a_rule_and_generalises_to_unseen_contexts():
    """After x comes the symbol of x's class; a held-out pair of classes-mates is predicted too."""
    pairs = np.array([(a, b) for a in range(8) for b in range(8)])
    targets = 8 + (pairs[:, 0] % 2) * 2 + pairs[:, 1] % 2
    held = (pairs[:, 0] + 3 * pairs[:, 1]) % 8 == 0  # 8 contexts that training never sees
    model = s3.NeuralLM(12, 2, 4, 16, dtype=np.float64)
    s3.train(model, pairs[~held], targets[~held], 1500, batch_size=16)
    assert (model.logits(pairs[held]).argmax(-1) == targets[held]).all()


# A map of the letters


def test_cosines_and_map():
    C = np.array([[1.0, 0], [-1, 0], [0, 0.5], [0, -0.5]])
    expected = np.array([[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]])
    assert s3.cosines(C) == pytest.approx(expected)
    assert s3.cosines(np.ones((2, 3))) == pytest.approx(np.zeros((2, 2)))
    lines = s3.text_map("abcd", C, width=11, height=5).split("\n")
    where = {c: (i, line.index(c)) for i, line in enumerate(lines) for c in "abcd" if c in line}
    assert len(lines) == 5 and {where["a"], where["b"]} == {(2, 0), (2, 10)}
    assert {where["c"], where["d"]} == {(0, 5), (4, 5)}
    assert sorted(s3.text_map("xyz", np.zeros((3, 2))).split("\n")[0].strip()) == ["x", "y", "z"]


# Bad input


MODEL = s3.NeuralLM(5, 2, 3, 4)
PAIR = np.zeros((1, 2), dtype=int)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: s3.encode(""), "the text is empty"),
        (lambda: s3.make_examples([], 2), r"shape \(0,\)"),
        (lambda: s3.make_examples([1, 2], 2), "at least 3 ids"),
        (lambda: s3.make_examples([[1, 2, 3]], 1), "expected 1-D"),
        (lambda: s3.make_examples([1, 2], 0), "context is 0"),
        (lambda: s3.make_examples([1, 2], 1.0), "context is 1.0"),
        (lambda: s3.make_examples([1, -2, 1], 1), "the id -2"),
        (lambda: s3.make_examples([0.5, 1.5], 1), "dtype float64"),
        (lambda: s3.count_models(PAIR, [0, 1], PAIR, [0], 5), r"expected \(2, context\)"),
        (lambda: s3.count_models(PAIR, [0], PAIR[:, 1:], [0], 5), r"\(1, 2\), \(1, 1\)"),
        (lambda: s3.count_models(PAIR, [0], PAIR, [0], 10**7), "64 bits"),
        (lambda: s3.count_models(PAIR, [0], PAIR, [5], 5), "Y_held contains the id 5"),
        (lambda: s3.softmax(np.zeros((2, 0))), r"shape \(2, 0\)"),
        (lambda: s3.cross_entropy_forward(np.zeros((2, 3)), [0]), r"targets have shape \(1,\)"),
        (lambda: s3.cross_entropy_forward(np.zeros((1, 3)), [3]), "the id 3; expected 0 to 2"),
        (lambda: s3.cross_entropy_forward(np.zeros((0, 3)), []), "targets is empty"),
        (lambda: s3.NeuralLM(0, 2, 3, 4), "vocab_size is 0"),
        (lambda: s3.NeuralLM(5, -1, 3, 4), "context is -1"),
        (lambda: s3.NeuralLM(5, 2, 2.5, 4), "n_embd is 2.5"),
        (lambda: s3.NeuralLM(5, 2, 3, 0), "n_hidden is 0"),
        (lambda: s3.NeuralLM(5, 2, 3, 4, dtype=int), "floating-point"),
        (lambda: MODEL.logits(np.zeros((1, 3), dtype=int)), r"expected \(N, 2\)"),
        (lambda: MODEL.logits([0, 1]), r"X has shape \(2,\)"),
        (lambda: MODEL.logits([[0, 5]]), "the id 5; expected 0 to 4"),
        (lambda: MODEL.logits(np.zeros((0, 2), dtype=int)), "X is empty"),
        (lambda: MODEL.loss(PAIR, [1, 2]), r"targets have shape \(2,\)"),
        (lambda: MODEL.loss_and_grads(PAIR, [-1]), "the id -1"),
        (lambda: MODEL.perplexity([]), "at least 3 ids"),
        (lambda: MODEL.perplexity([0, 1]), "at least 3 ids"),
        (lambda: MODEL.perplexity([0, 1, 5]), "the id 5"),
        (lambda: MODEL.generate(-1), "n is -1"),
        (lambda: MODEL.generate(1, context=[7]), "context contains the id 7"),
        (lambda: MODEL.generate(1, context=[[1]]), "context has shape"),
        (lambda: MODEL.generate(1, temperature=-1), "temperature is -1"),
        (lambda: MODEL.generate(1, temperature=math.nan), "temperature is nan"),
        (lambda: MODEL.generate(1, top_k=0), "top_k is 0"),
        (lambda: MODEL.generate(1, top_p=0), "top_p is 0"),
        (lambda: MODEL.generate(1, top_p=1.5), "top_p is 1.5"),
        (lambda: s3.train(MODEL, PAIR, [0], 5, learning_rate=0), "learning_rate is 0"),
        (lambda: s3.train(MODEL, PAIR, [0], 5, learning_rate=-1), "learning_rate is -1"),
        (lambda: s3.train(MODEL, PAIR, [0], 0), "steps is 0"),
        (lambda: s3.train(MODEL, PAIR, [0], 1, batch_size=0), "batch_size is 0"),
        (lambda: s3.train(MODEL, PAIR, [0, 1], 1), "1 contexts and 2 targets"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The report


@pytest.fixture(scope="module")
def fast_reports():
    """Two runs of the smoke report, captured outside any one test, without their timings."""
    import contextlib
    import io

    outputs = []
    for _ in range(2):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert not s3.main(["--fast", "--seed", "3"])
        outputs.append(re.sub(r"\d+\.\d s\b", "", out.getvalue()))
    return outputs


def test_report_is_deterministic_and_complete(fast_reports):
    first, second = fast_reports
    assert first == second
    for heading in ("Counting", "Initialisation", "Held-out", "Nearest", "Names", "sample"):
        assert heading in first
    check_held_out_line(first)
    assert first.splitlines()[-1].endswith("(stage 3, neural n-gram, context 6)")


def test_a_one_character_text_is_a_text(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text("a" * 300)
    s3.main(["--fast", "--text", str(path)])
    assert check_held_out_line(capsys.readouterr().out) == 0


@pytest.mark.parametrize(
    "content, message", [(b"", "empty"), (b"too short", "9 characters"), (b"\xff\xfe\x00", "utf-8")]
)
def test_a_bad_text_is_one_clean_line(tmp_path, capsys, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        s3.main(["--text", str(path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("argv", [["--seed", "-1"], ["--wrong"], ["--text", "/no/such/file"]])
def test_a_bad_command_line_is_one_clean_line(monkeypatch, capsys, argv):
    monkeypatch.setattr(sys, "argv", ["stage03_nlm.py", *argv])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "stage03_nlm.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error
