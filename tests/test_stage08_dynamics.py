"""Stage 8: backwards against differences, readings against definitions, diagnose on real runs."""

import json
import math
import re
import time

import numpy as np
import pytest
from conftest import assert_gradients, central_difference, check_held_out_line, relative_error

import stage08_dynamics as s
from stage08_dynamics import History, LanguageModel


def small(seed=0, rows=40, vocab=5, context=4, **options):
    """A little model with random data."""
    rng = np.random.default_rng(seed)
    model = LanguageModel(vocab, context, **{"width": 6, "embed": 3, "seed": seed, **options})
    return model, rng.integers(vocab, size=(rows, context)), rng.integers(vocab, size=rows)


def flat(arrays):
    return np.concatenate([a.ravel() for a in arrays.values()])


def healthy_history(n=50, **columns):
    base = dict(
        step=list(range(n)), losses=list(np.linspace(4, 2, n)), lr=[0.01] * n, norms=[1.0] * n
    )
    return History(**{**base, **columns})


# ---- the first page


@pytest.mark.parametrize(
    "rate, losses, ratio",
    [
        (0.5, [8, 2, 0.5, 0.125, 0.03125], 0.5),
        (0.001, [8, 7.984, 7.968, 7.952, 7.936], 0.001),
        (3, [8, 32, 128, 512, 2048], 3),
        (-0.5, [8, 18, 40.5, 91.125, 205.03], 0.5),
        (2, [8, 8, 8, 8, 8], 2),
    ],
)
def test_the_first_page_says_what_descend_does(rate, losses, ratio):
    found, last = s.descend(rate)
    assert found == pytest.approx(losses, rel=1e-4) and last == pytest.approx(ratio)


def test_the_first_page_says_what_guess_gets_wrong_and_judge_right():
    truth = {0.5: "nothing found", 0.001: "rate too low", 3: "rate too high"}
    truth |= {-0.5: "uphill", 2: "rate too high"}
    wrong = {rate for rate in truth if s.guess(s.descend(rate)[0]) != truth[rate]}
    assert wrong == {-0.5, 2}
    assert s.guess(s.descend(2)[0]) == "rate too low"
    assert s.guess(s.descend(-0.5)[0]) == "rate too high"
    for rate, cause in truth.items():
        losses, ratio = s.descend(rate)
        assert s.judge(losses, ratio, goes_down=rate > 0) == cause
    assert s.judge([8, 7.3], 1, True) == "rate too low" != s.judge([8, 7.1], 1, True)
    assert s.guess([8, 7.2]) == "nothing found" == s.guess([8, 7.1])


# ---- the patient


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (7, 2, 4)])
def test_layer_backward(activation, shape, rng):
    B, K, C = shape
    x, w, b = rng.normal(size=(B, K)), rng.normal(size=(K, C)), rng.normal(size=C)
    forward = lambda: s.layer_forward(x, w, b, activation)  # noqa: E731
    assert_gradients(lambda: forward()[0], [x, w, b], lambda dy: s.layer_backward(dy, forward()[1]))


def test_cross_entropy_is_shift_invariant_finite_and_differentiable(rng):
    z, y = rng.normal(size=(3, 4)), np.array([0, 3, 3])
    loss, cache = s.cross_entropy_forward(z, y)
    numeric = central_difference(lambda: s.cross_entropy_forward(z, y)[0], z)
    assert relative_error(s.cross_entropy_backward(cache), numeric) < 1e-6
    assert s.cross_entropy_forward(z + 1e6, y)[0] == pytest.approx(loss, abs=1e-8)
    assert s.cross_entropy_forward(np.zeros((2, 7)), np.array([1, 2]))[0] == pytest.approx(
        math.log(7)
    )


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("rows, context, depth", [(1, 1, 1), (5, 3, 2), (4, 2, 3)])
def test_every_gradient_of_the_model(recurrent, activation, rows, context, depth):
    model, x, y = small(
        1, rows, context=context, depth=depth, activation=activation, recurrent=recurrent
    )
    if activation == "relu":  # keep the state h = 0 away from the kink
        model.params = {
            k: v + 0.03 * np.arange(v.size).reshape(v.shape) for k, v in model.params.items()
        }
    grads = model.loss_and_grads(x, y)[1]
    assert grads.keys() == model.params.keys()
    for k, w in model.params.items():
        numeric = central_difference(lambda: model.loss_and_grads(x, y)[0], w)
        assert relative_error(grads[k], numeric) < 1e-6, k


def test_probe_gives_the_gradient_of_every_state():
    model, x, y = small(depth=2)
    (h1, d1), (h2, d2) = model.probe(x, y).values()
    p = model.params
    head = lambda: s.cross_entropy_forward(h2 @ p["Wo"] + p["bo"], y)[0]  # noqa: E731
    assert relative_error(d2, central_difference(head, h2)) < 1e-6

    def body():
        h = np.tanh(h1 @ p["W2"] + p["b2"])
        return s.cross_entropy_forward(h @ p["Wo"] + p["bo"], y)[0]

    assert relative_error(d1, central_difference(body, h1)) < 1e-6


def test_two_steps_of_each_optimizer_by_hand():
    for kind, expected in (("sgd", 1 - 0.1 * 2 - 0.1 * (0.9 * 2 - 1)), ("adam", None)):
        params, optimizer = {"w": np.array([1.0])}, s.Optimizer(kind)
        for g in (2.0, -1.0):
            optimizer.step(params, {"w": np.array([g])}, 0.1)
        if kind == "adam":
            m, v = 0.9 * 0.1 * 2 - 0.1, 0.999 * 0.001 * 4 + 0.001
            second = m / (1 - 0.9**2) / math.sqrt(v / (1 - 0.999**2))
            expected = 1 - 0.1 - 0.1 * second
        assert params["w"] == pytest.approx(expected, rel=1e-6)


def test_the_initial_weights_keep_a_signals_size():
    for activation, square in (("tanh", 1), ("relu", 2)):
        model = LanguageModel(5, 50, 400, 2, 8, activation, seed=1)
        assert 400 * model.params["W1"].var() == pytest.approx(square, rel=0.02)
        assert 400 * model.params["W2"].var() == pytest.approx(square, rel=0.02)
        assert 400 * model.params["Wo"].var() == pytest.approx(0.09, rel=0.05)
    q = LanguageModel(5, 3, 16, embed=4, recurrent=True, gain=2.0).params["W1"]
    assert q.shape == (20, 16) and np.allclose(q[4:].T @ q[4:], 4 * np.eye(16))
    assert 4 * LanguageModel(5, 3, 4000, embed=4, recurrent=False).params["W1"].var() * 3 == (
        pytest.approx(1, rel=0.05)
    )


def test_schedules_by_hand():
    assert np.allclose(s.schedule(0.4, 4, 2), [0.2, 0.3, 0.2, 0.1])
    assert np.allclose(s.schedule(0.4, 4, 0, decay=False), 0.4)
    assert np.allclose(s.schedule(0.4, 3, 2, decay=False), [0.2, 0.4, 0.4])
    assert len(s.schedule(0.1, 0, 0)) == 0


def test_training_steps_after_the_gradient_and_yields_both():
    model, x, y = small()
    start = {k: w.copy() for k, w in model.params.items()}
    loss, grads = model.loss_and_grads(x, y)
    t, found, same, rate = next(s.training(model, lambda: (x, y), [0.5, 0.1], "sgd"))
    assert (t, found, rate) == (0, loss, 0.5)
    for k, w in start.items():
        assert np.array_equal(same[k], grads[k])
        assert np.allclose(model.params[k], w - 0.5 * grads[k])


def test_adam_moves_every_coordinate_by_the_rate_first_and_sgd_by_the_gradient():
    for kind, expected in (("adam", [-0.1, 0.1]), ("sgd", [-0.3, 0.0002])):
        params = {"w": np.zeros(2)}
        s.Optimizer(kind).step(params, {"w": np.array([3.0, -0.002])}, 0.1)
        assert np.allclose(params["w"], expected, rtol=1e-4)


# ---- curves and vital signs


def test_unigram_entropy_is_the_least_loss_of_a_constant_prediction(rng):
    y = np.array([0, 0, 0, 1, 2, 2])
    best, z = s.unigram_entropy(y), np.log(np.array([3, 1, 2]) / 6)
    assert s.cross_entropy_forward(np.tile(z, (6, 1)), y)[0] == pytest.approx(best)
    for _ in range(5):
        assert s.cross_entropy_forward(np.tile(z + rng.normal(size=3), (6, 1)), y)[0] >= best


@pytest.mark.parametrize("gain, sane", [(0.0, True), (50.0, False)])
def test_check_initialization_against_ln_v(gain, sane):
    model, x, y = small()
    model.params["Wo"] *= gain
    report = s.check_initialization(model, x, y, 5)
    assert report["expected"] == math.log(5) and report["ok"] is sane
    assert report["loss"] == model.loss_and_grads(x, y)[0]
    assert (report["spread"] < 1e-3) is sane


def test_the_spread_is_that_of_small_logits_only(rng):
    class Gaussian:
        def loss_and_grads(self, x, y):
            return s.cross_entropy_forward(self.s * rng.normal(size=(len(y), 100)), y)[0], {}

    y, model = rng.integers(100, size=20000), Gaussian()
    for model.s, sane in ((0.5, True), (0.9, True), (1.1, False)):
        found = s.check_initialization(model, y, y, 100)
        assert found["spread"] == pytest.approx(model.s, rel=0.05) and found["ok"] is sane
    model.s = 20.0  # far above √(2 ln 100) = 3
    assert s.check_initialization(model, y, y, 100)["spread"] < 10


def test_smooth_leaves_out_what_is_not_finite():
    found = s.smooth([1, math.nan, 3, math.inf, 3], 0.5)
    assert found[[0, 2]] == pytest.approx([1, (0.5 * 1 + 3) / 1.5])
    assert np.isnan(found[[1, 3]]).all() and found[4] == pytest.approx((0.25 + 1.5 + 3) / 1.75)


def test_smooth_keeps_constants_and_matches_the_explicit_sum(rng):
    assert np.allclose(s.smooth([2.5] * 30, 0.95), 2.5)
    losses = rng.normal(size=9)
    weights = 0.8 ** np.arange(9)[::-1]
    assert s.smooth(losses, 0.8)[-1] == pytest.approx(weights @ losses / weights.sum())
    assert np.array_equal(s.smooth(losses, 0), losses) and len(s.smooth([])) == 0


@pytest.mark.parametrize(
    "losses, patience, expected",
    [
        ([3, 2, 1], 1, (2, None)),
        ([3, 1, 2, 2, 0], 2, (1, 3)),
        ([3, 1, 2, 2, 0], 3, (4, None)),
        ([5], 1, (0, None)),
        ([math.nan, 3, 2, 1.5, 1.4], 3, (4, None)),
        ([math.nan] * 5, 3, (0, 3)),
    ],
)
def test_early_stop(losses, patience, expected):
    assert s.early_stop(losses, patience) == expected


def test_unit_statistics_by_hand():
    h = np.array([[0.0, 0.99, 5.0, -0.5], [0.0, -0.98, 0.99, 0.0], [0.0, 0.1, 0.99, 0.3]])
    assert s.dead_units(h) == 0.25  # only column 0 is 0 on every row
    assert s.saturated_units(h) == 0.25  # column 1; column 2 leaves [-1, 1]
    assert s.dead_units(h.reshape(1, 3, 4)) == 0.25
    a = np.array([[0.971], [-0.971], [0.969]])
    assert s.saturated_units(a) == 1 and s.saturated_units(a[[0, 2]]) == 0  # most: more than half


def test_step_readings_are_scale_free_and_nan_for_zero_weights(rng):
    w, d = {k: rng.normal(size=(3, 4)) for k in "ab"}, {k: rng.normal(size=(3, 4)) for k in "ab"}
    g = {k: -2 * d[k] for k in d}
    norm = {k: np.linalg.norm(d[k]) / np.linalg.norm(w[k]) for k in d}
    both = [np.concatenate([v["a"].ravel(), v["b"].ravel()]) for v in (w, d)]
    cosine = both[0] @ both[1] / np.linalg.norm(both[0]) / np.linalg.norm(both[1])
    for c in (1.0, 1e6):
        scaled = {k: c * w[k] for k in w}
        moved = {k: c * (w[k] + d[k]) for k in w}
        ratio, down, shrink, arrays = s.step_readings(scaled, moved, g)
        assert ratio == pytest.approx(np.linalg.norm(both[1]) / np.linalg.norm(both[0]))
        assert (down, shrink) == (pytest.approx(1), pytest.approx(-cosine))
        assert arrays == pytest.approx(norm)
    half = s.step_readings(w, {"a": w["a"] + d["a"], "b": w["b"]}, {"a": g["a"]})
    assert half[1] == pytest.approx(1) and half[3] == pytest.approx({"a": norm["a"], "b": 0})
    zero = s.step_readings({"a": np.zeros(2)}, {"a": np.ones(2)}, {"a": np.ones(2)})
    assert zero[1] == pytest.approx(-1) and np.isnan([zero[0], zero[2], zero[3]["a"]]).all()
    assert np.isnan(s.step_readings(w, w, g)[1])


# ---- tests made on purpose


@pytest.mark.parametrize("bug", [None, "slope", "sign", "bias"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_slope_check_finds_each_bug_and_only_bugs(bug, dtype, rng):
    model, x, y = small(depth=2, dtype=dtype)
    before = {k: v.copy() for k, v in model.params.items()}
    if bug:
        model.layer_backward = s.sabotage(bug)
    error = max(s.slope_check(model, x, y, rng).values())
    assert error > 1e-2 if bug else error < 1e-6
    for k, v in model.params.items():
        assert v.dtype == dtype and np.array_equal(v, before[k])


def test_slope_check_accepts_a_subgradient_at_a_kink(rng):
    model, x, y = small(activation="relu", depth=2)
    model.params["b1"] -= 100  # h1 = 0, so every input of layer 2 is exactly at the kink
    assert max(s.slope_check(model, x, y, rng).values()) < 1e-6


def test_overfit_one_batch_succeeds_on_data_and_fails_on_contradictions():
    model, x, y = small(rows=8, width=32)
    reached, losses = s.overfit_one_batch(model, x, y, learning_rate=0.03)
    assert reached and losses[-1] < 0.1 < losses[0]
    x[:] = 0  # one input, many answers: the entropy of y is the floor
    reached, losses = s.overfit_one_batch(model, x, y, steps=100)
    assert not reached and len(losses) == 100 and min(losses) >= s.unigram_entropy(y) - 1e-9


# ---- history, audit, monitor


def test_history_survives_saving_with_nan_and_inf(tmp_path):
    probe = {"step": -1, "dead": {"h1": 0.5, "NaN": 1.0}}
    history = History(audit={"unigram": 2.0, "determined": [0.5]}, probes=[probe])
    for t, loss in enumerate((4.0, math.inf, 2.0)):
        history.record(t, loss, 0.1, 1.0, 0.01, 0.5, -math.inf, {"W": 0.25})
    history.save(tmp_path / "h.json")
    assert History.load(tmp_path / "h.json") == history
    json.loads((tmp_path / "h.json").read_text(), parse_constant=pytest.fail)  # strict JSON
    history.record(3, 1.0, 0.1, 1.0, arrays={"b": 1.0})  # its ratio was not measured
    history.save(tmp_path / "h.json")
    loaded = History.load(tmp_path / "h.json")
    assert math.isnan(loaded.ratios[-1]) and np.isnan(loaded.arrays["b"]).tolist() == [1, 1, 1, 0]
    assert np.isnan(loaded.arrays["W"]).tolist() == [False] * 3 + [True]
    assert [p.name for p in tmp_path.iterdir()] == ["h.json"]


GOOD = '"step": [0], "losses": [1], "lr": [1], "norms": [1]'


@pytest.mark.parametrize(
    "content, words",
    [
        ("[1, 2]", "file: '.1, 2.' for a dict"),
        ("{", "Expecting"),
        ('{"nonsense": 1}', "'nonsense' is unknown"),
        ('{"step": [1], "losses": []}', "equal length"),
        ('{"probes": 5}', "file.probes: '5' for a list"),
        ('{"probes": [5]}', r"file.probes\[0\]: '5' for a dict"),
        ('{"probes": [{"train": {}}]}', r"file.probes\[0\].train: '{}' for a number"),
        ('{"probes": [{"dead": {"h1": null}}]}', "dead.h1: 'None' for a number"),
        ('{"audit": null}', "file.audit: 'None' for a dict"),
        ('{"audit": {"unigram": true}}', "unigram: 'True' for a number"),
        ('{"arrays": {"W": 1}}', "file.arrays.W: '1' for a list"),
        ('{"step": ["0"]}', r"file.step\[0\]: '0' for a number"),
        ('{"step": [1e999]}', r"step\[0\]: 'inf'"),
        (f'{{"losses": [{"9" * 400}]}}', r"losses\[0\]: '9{30}' for a number"),
        ('{"losses": ' + "[" * 100000, "recursion|Expecting"),
        ('{"lr": ["NaN"]}', "lr: a number that is not finite"),
        ('{"step": ["Infinity"]}', "step: a number that is not finite"),
        ("{" + GOOD + ', "ratios": [1, 2]}', "equal length.*'ratios': 2"),
        ("{" + GOOD + ', "arrays": {"W": [1, 2]}}', "equal length.*'W': 2"),
    ],
)
def test_history_refuses_other_files_and_says_where(tmp_path, content, words):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ValueError, match="bad.json: expected a saved History, got: .*" + words):
        History.load(tmp_path / "bad.json")


def test_a_saved_history_needs_no_more_than_the_losses(tmp_path):
    (tmp_path / "h.json").write_text("{" + GOOD + "}")
    history = History.load(tmp_path / "h.json")
    assert s.diagnose(history)[0].name == s.NOTHING and isinstance(history.step[0], int)


def test_audit_sees_copies_independence_and_skipped_symbols(rng):
    law = rng.dirichlet(np.full(6, 0.3), size=6).cumsum(1)
    stream = [0]
    for u in rng.random(4000):
        stream.append(min(int(np.searchsorted(law[stream[-1]], u)), 5))
    w = np.lib.stride_tricks.sliding_window_view(np.array(stream), 6)
    x, y, after = w[:, :4], w[:, 4], w[:, 5]
    right = s.audit_data(x, y, 6)
    assert right["unigram"] == s.unigram_entropy(y)
    assert right["skip"] < 0 < s.audit_data(x, after, 6)["skip"]
    shuffled = s.audit_data(x, rng.permutation(y), 6)
    assert max(np.abs(shuffled["determined"])) < 0.01 and shuffled["skip"] < 0
    leaked = x.copy()
    leaked[:, 1] = (y + 1) % 6  # a copy in disguise
    assert s.audit_data(leaked, y, 6)["determined"][1] == pytest.approx(1)
    assert s.audit_data(leaked, y, 6)["column"] < 0.02
    assert math.isnan(s.audit_data(x[:, :2], y, 6)["skip"])
    assert abs(right["surprise"]) < 0.1 < 0.5 < shuffled["surprise"]
    assert s.audit_data(x[:1], y[:1], 6)["unigram"] == 0


def test_mutual_information_and_laws_by_hand():
    a, b = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert s.information(a, b, 2) == pytest.approx(0, abs=1e-12)
    assert s.information(a, a, 2) == pytest.approx(math.log(2))
    b = np.array([0, 0, 0, 1])  # joint (½, 0, ¼, ¼), margins ½ ½ and ¾ ¼
    by_hand = 0.5 * math.log(0.5 / 0.375) + 0.25 * math.log(0.25 / 0.375 * 0.25 / 0.125)
    assert s.information(a, b, 2) == pytest.approx(by_hand)
    law = s.log_law(a, b, 2, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    assert np.exp(law) == pytest.approx([2.5 / 3, 0.5 / 3, 1.5 / 3, 1.5 / 3])
    own = s.log_law(a, b, 2, a, b, left_out=1)  # each pair by the three others
    assert np.exp(own) == pytest.approx([1.5 / 2, 1.5 / 2, 0.5 / 2, 0.5 / 2])
    assert s.standard_errors(np.array([1.0, 3.0])) == pytest.approx(2 / (1 / math.sqrt(2)))


def test_an_audit_is_as_sparse_as_its_data(rng):
    x, y = rng.integers(30000, size=(3000, 3)), rng.integers(30000, size=3000)
    started = time.perf_counter()
    audit = s.audit_data(x, y, 30000)
    assert time.perf_counter() - started < 5  # a table of pairs would take 7 GB
    assert max(np.abs(audit["determined"])) < 0.1


def test_compare_data_counts_rows_that_are_on_both_sides(rng):
    x, y = rng.integers(50, size=(400, 3)), rng.integers(50, size=400)
    apart = s.compare_data((x[:200], y[:200]), (x[200:], y[200:]), 50)
    assert apart["shared"] == apart["natural"] == 0
    some = s.compare_data((x[:300], y[:300]), (x[200:], y[200:]), 50)
    assert some["shared"] == 0.5
    other = s.compare_data((x[:300], y[:300]), (x[200:], (y[200:] + 1) % 50), 50)
    assert other["shared"] == 0  # the same inputs with other targets are other rows
    doubled = s.compare_data((np.tile(x, (4, 1)), np.tile(y, 4)), (x[:9], y[:9]), 50)
    assert doubled["natural"] > 0.8
    none = s.compare_data((x, y), (x[:0], y[:0]), 50)
    assert all(math.isnan(value) for value in none.values())
    x = rng.integers(2, size=(4000, 1))
    law = s.compare_data((x, x[:, 0]), (x[:50], 1 - x[:50, 0]), 2)["foreign"]
    assert law == pytest.approx(math.log(2000 / 0.5), rel=0.05)  # the ½ that stands for never


def test_monitor_records_what_step_readings_and_norms_say():
    model, x, y = small()
    monitor = s.Monitor(model, (x, y), (x[:9], y[:9]), 5, every=2, sample=16)
    for t in range(4):
        loss, grads = model.loss_and_grads(x, y)
        before = {"all": flat(model.params)}
        s.Optimizer("sgd").step(model.params, grads, 0.5)
        monitor(t, loss, grads, 0.5)
        after = {"all": flat(model.params)}
        expected = np.linalg.norm(after["all"] - before["all"]) / np.linalg.norm(before["all"])
        assert monitor.history.ratios[t] == pytest.approx(expected)
        assert monitor.history.cosines[t] == pytest.approx(1)
        assert monitor.history.arrays.keys() == model.params.keys()
        assert monitor.history.norms[t] == pytest.approx(
            2 * expected * np.linalg.norm(before["all"])
        )
    assert [p["step"] for p in monitor.history.probes] == [-1, 1, 3]
    last = monitor.history.probes[-1]
    assert last["held_out"] == model.loss_and_grads(x[:9], y[:9])[0]
    assert last["dead"] == {"h1": 0.0} and max(last["errors"].values()) < 1e-6
    assert last["train"] == pytest.approx(model.loss_and_grads(x, y)[0])
    assert last["mixed"] != last["train"]
    assert last["gradients"].keys() == model.params.keys() != last["spread"].keys()
    assert 0.5 < min(last["spread"].values()) <= 1 and "growth" not in last
    model.params["W1"][:] = 1
    monitor.probe(9)
    assert monitor.history.probes[-1]["spread"]["W1"] == 0


def test_monitor_takes_held_out_rows_that_are_missing_and_models_without_a_probe():
    class Plain:
        def __init__(self, model):
            self.params, self.loss_and_grads = model.params, model.loss_and_grads

    model, x, y = small()
    reading = s.Monitor(Plain(model), (x, y), (x[:0], y[:0]), 5).history.probes[0]
    assert math.isnan(reading["held_out"]) and reading["dead"] == {} and "reach" not in reading


def test_monitor_reach_is_the_slope_that_arrives():
    model, x, y = small(depth=3)
    reading = s.Monitor(model, (x, y), (x, y), 5).history.probes[0]
    order = np.random.default_rng(0).permutation(40)
    slopes = [np.linalg.norm(dh) for _, dh in model.probe(x[order], y[order]).values()]
    assert reading["reach"] == pytest.approx(slopes[0] / slopes[2])
    assert reading["growth"] == pytest.approx(math.sqrt(slopes[0] / slopes[2]))


def test_monitor_growth_is_the_gain_of_a_linear_recurrence():
    model, x, y = small(recurrent=True, context=6)
    model.params["E"] *= 1e-9  # every tanh at 0, slope 1: ∂L/∂h is multiplied by gain · orthogonal
    for gain in (1.0, 1.7):
        model.params["W1"][3:] *= gain
        monitor = s.Monitor(model, (x, y), (x, y), 5)
        assert monitor.history.probes[0]["growth"] == pytest.approx(gain)


# ---- diagnose


def names(history):
    return [finding.name for finding in s.diagnose(history)]


def test_plain_histories_need_nothing_but_losses():
    assert names(healthy_history()) == [s.NOTHING]
    assert names(healthy_history(losses=[4.0] * 25 + [9.0] * 25))[0] == "rate too high"
    assert names(healthy_history(losses=[4.0] * 25 + [math.nan] * 25))[0] == "rate too high"
    for losses in (list(np.linspace(4, 3.99, 50)), [4.0] * 50):  # unmeasured steps are not short
        assert names(healthy_history(losses=losses)) == [s.DOUBT]
    assert names(healthy_history(1)) == [s.NOTHING]


def test_a_loss_that_never_was_finite_is_not_the_rates_fault():
    assert names(healthy_history(losses=[math.nan] * 50))[0] == "overflow"
    history = complete()
    with_probe(3, train=math.nan, held_out=math.nan)(history)  # neither is: not the held-out rows
    assert "held-out loss nan" not in s.diagnose(history)[0].evidence


def test_the_unigram_line_may_be_low():
    history = complete()
    history.losses = [loss - 1.7 for loss in history.losses]
    for probe in history.probes:
        for name in ("train", "mixed", "held_out"):
            probe[name] -= 1.7
    with_audit(unigram=0.5, column=0.6)(history)
    assert names(history) == [s.DOUBT]


def test_what_was_not_measured_is_not_zero():
    history = History()
    for t, loss in enumerate(np.linspace(4, 1.5, 50)):
        history.record(t, loss, 0.1, 1.0)
    (finding,) = s.diagnose(history)
    assert finding.name == s.NOTHING and "not measured: steps, probes, data" in finding.evidence
    assert f"none of the {len(s.REMEDIES)} known" in finding.evidence


def complete():
    """A history with every reading, in which nothing is wrong: 60 steps from 4 to 2.2 nats."""
    losses = [4 - 0.09 * min(t, 20) for t in range(60)]
    history = History(
        step=list(range(60)),
        losses=losses,
        lr=[0.01 - 0.0001 * t for t in range(60)],
        norms=[1.1 - 0.1 * (t % 2) for t in range(60)],
        ratios=[0.01] * 60,
        cosines=[0.3] * 60,
        shrinks=[0.0] * 60,
        arrays={"W": [0.01] * 60, "b": [math.nan] + [0.01] * 59},
        audit={
            "unigram": 3.0, "column": 2.5, "determined": [0.05, 0.2],
            "skip": -3.0, "surprise": 0.0, "shared": 0.1, "natural": 0.1,
            "foreign": 0.0,
        },
    )  # fmt: skip
    for step in (-1, 19, 39, 59):
        train = losses[max(step, 0)]
        history.probes.append(
            {
                "step": step, "train": train, "mixed": train + 1, "held_out": train + 0.05,
                "gradients": {"W": 0.6, "b": 0.8}, "errors": {"W": 1e-8}, "spread": {"W": 1.0},
                "dead": {"h": 0.1}, "saturated": {"h": 0.1}, "reach": 0.5, "growth": 0.9,
            }
        )  # fmt: skip
    return history


def with_audit(**readings):
    return lambda h: h.audit.update(readings)


def with_probe(*places, **readings):
    return lambda h: [h.probes[place].update(readings) for place in places]


def with_losses(changes):
    return lambda h: [h.losses.__setitem__(t, loss) for t, loss in changes.items()]


def with_column(name, values):
    return lambda h: setattr(h, name, list(values))


def jumping(ratio, extra=0.5):
    """The loss jumps at step 3, after a step of this length."""
    ratios = [0.01] * 2 + [ratio] + [0.01] * 57
    return lambda h: (with_losses({3: 4 + extra})(h), with_column("ratios", ratios)(h))


def all_of(*changes):
    return lambda h: [change(h) for change in changes]


SHORT = with_column("ratios", [0.01] * 60)
LEVEL_RATE = with_column("lr", [0.01] * 60)
NOISY = with_column("norms", [0.05 * (1 + 0.0018 * (t % 2)) for t in range(60)])
NOISIER = with_column("norms", [0.05 * (1 + 0.0022 * (t % 2)) for t in range(60)])
HALF_LATE = [0.09] * 44 + [0.0124] * 16  # the median of the later half is among the last
TOO_SMALL = all_of(with_audit(column=2), with_probe(1, train=2.2))  # and level
EDGES = [  # a cause, a change just short of its threshold, a change just beyond
    ("leak", with_audit(determined=[0.64, 0.2]), with_audit(determined=[0.66, 0.2])),
    ("off-by-one targets", with_audit(determined=[0, 0.64]), with_audit(determined=[0, 0.66])),
    ("off-by-one targets", with_audit(skip=3.9), with_audit(skip=4.1)),
    ("label noise", with_audit(surprise=0.24), with_audit(surprise=0.26)),
    ("label noise", with_audit(surprise=1, determined=[0, 0.019]),
     with_audit(surprise=1, determined=[0, 0.021])),
    ("shared rows", with_audit(shared=0.36), with_audit(shared=0.38)),
    ("held-out differs", with_audit(foreign=0.49), with_audit(foreign=0.51)),
    ("zero init", with_probe(3, spread={"W": 1.1e-3, "E": 1}),
     with_probe(3, spread={"W": 0.9e-3, "E": 1})),
    ("dead units", with_probe(0, dead={"h": 0.49}), with_probe(0, dead={"h": 0.51})),
    ("dead units", with_probe(1, dead={"h": 0.9}), with_probe(0, dead={"g": 0, "h": 0.9})),
    ("saturating init", with_probe(0, saturated={"h": 0.49}),
     with_probe(0, saturated={"h": 0.51})),
    ("backward bug", with_probe(0, 1, errors={"W": 0.9e-3}),
     with_probe(0, 1, errors={"W": 1.1e-3})),
    ("backward bug", with_probe(0, errors={"W": 0.5}), with_probe(0, 3, errors={"W": 0.5})),
    ("exploding recurrence", with_probe(0, growth=1.19, reach=9),
     with_probe(0, growth=1.21, reach=9)),
    ("exploding recurrence", with_probe(0, growth=1.5, reach=2.9),
     with_probe(0, growth=1.5, reach=3.1)),
    ("vanishing gradients", with_probe(0, reach=0.0201), with_probe(0, reach=0.0199)),
    ("uphill", with_column("cosines", [-0.09] * 60), with_column("cosines", [-0.11] * 60)),
    ("frozen weights", lambda h: h.arrays.update(W=[0.0] * 59 + [1e-9]),
     lambda h: h.arrays.update(W=[math.nan] + [0.0] * 59)),
    ("weight decay", with_column("shrinks", [0.49] * 5 + [0.9] * 55),
     with_column("shrinks", [0.51] * 3 + [0] * 57)),
    ("gradients pile up", with_column("norms", [6.9, 6.9] * 30),
     with_column("norms", [7.1, 6.9] * 10 + [7.1] * 40)),
    ("gradient clipped", with_column("norms", [0.11] * 60), with_column("norms", [0.09] * 60)),
    ("gradient clipped", NOISIER, NOISY),
    ("overflow", all_of(with_losses({59: math.inf}), with_column("ratios", [0.11] * 60)),
     all_of(with_losses({59: math.inf}), with_column("ratios", [0.09] * 59 + [math.inf]))),
    ("overflow", SHORT, with_column("norms", [1.0, 1.1] * 29 + [1.0, math.nan])),
    ("overflow", SHORT, with_losses({0: math.nan})),
    ("no warmup", jumping(0.5, 0.29), jumping(0.5, 0.31)),
    ("no warmup", jumping(0.09), jumping(0.11)),
    ("no warmup", jumping(1.01), jumping(1.0)),
    ("no warmup", all_of(jumping(0.5), with_audit(unigram=2.04)),
     all_of(jumping(0.5), with_audit(unigram=2.06))),
    ("no warmup", all_of(jumping(0.5), with_column("lr", [0.0098] + [0.01] * 59)),
     all_of(jumping(0.5), with_column("lr", [0.00995] + [0.01] * 59))),
    ("no warmup",
     all_of(with_audit(unigram=2.2), with_probe(3, dead={"h": 0.89}), jumping(0.5, 0)),
     all_of(with_audit(unigram=2.2), with_probe(3, dead={"h": 0.91}), jumping(0.5, 0))),
    ("no warmup", all_of(with_audit(unigram=2.28), with_probe(3, dead={"h": 1}), jumping(0.5, 0)),
     all_of(with_audit(unigram=2.26), with_probe(3, saturated={"h": 1}), jumping(0.5, 0))),
    ("rate too high", jumping(1.0), jumping(1.01)),
    ("rate too high",
     all_of(with_audit(unigram=2.2), with_probe(3, dead={"h": 1}), jumping(0.5, 0)),
     all_of(LEVEL_RATE, with_audit(unigram=2.2), with_probe(3, dead={"h": 1}), jumping(0.5, 0))),
    ("rate too high", all_of(with_audit(unigram=2), with_column("ratios", [4.9 / 60] * 60)),
     all_of(with_audit(unigram=2), with_column("ratios", [5.1 / 60] * 60))),
    ("rate too high", all_of(with_audit(unigram=2.06), with_column("ratios", [0.09] * 60)),
     all_of(with_audit(unigram=2.04), with_column("ratios", [0.09] * 60))),
    ("rate too low", with_column("ratios", [0.101 / 60] * 60),
     with_column("ratios", [0.099 / 60] * 60)),
    ("batches differ", with_probe(2, train=2.2 + 0.44), with_probe(2, train=2.2 + 0.46)),
    ("batches differ", with_probe(1, train=9.0), with_probe(3, train=2.2 - 0.46)),
    ("overfitting", with_probe(3, held_out=2.69, mixed=9), with_probe(3, held_out=2.71)),
    ("overfitting", with_probe(1, 2, 3, held_out=3.0), with_probe(3, held_out=3.0)),
    ("overfitting", all_of(with_probe(1, 2, held_out=2.76), with_probe(3, held_out=3.0)),
     all_of(with_probe(1, 2, held_out=2.74), with_probe(3, held_out=3.0))),
    ("held-out differs", with_probe(0, 1, 2, 3, held_out=2.69),
     with_probe(0, 1, 2, 3, held_out=2.71)),
    ("shuffled labels",
     all_of(with_audit(unigram=2.28, determined=[0, 0.01]), with_probe(3, mixed=2.2)),
     all_of(with_audit(unigram=2.26, determined=[0, 0.01]), with_probe(3, mixed=2.2))),
    ("shuffled labels",
     all_of(with_audit(unigram=2.2, determined=[0, 0.021]), with_probe(3, mixed=2.2)),
     all_of(with_audit(unigram=2.2, determined=[0, 0.019]), with_probe(3, mixed=2.2))),
    ("shuffled labels",
     all_of(with_audit(unigram=2.2, determined=[0, 0]), with_probe(3, mixed=2.27)),
     all_of(with_audit(unigram=2.2, determined=[0, 0]), with_probe(3, mixed=2.25))),
    ("shuffled labels",
     all_of(with_audit(unigram=2.04, determined=[0, 0]), with_probe(3, mixed=2.2)),
     all_of(with_audit(unigram=2.06, determined=[0, 0]), with_probe(3, mixed=2.2))),
    ("rate kept up", all_of(LEVEL_RATE, with_column("ratios", [2.4 / 60] * 60)),
     all_of(LEVEL_RATE, with_column("ratios", [2.6 / 60] * 60))),
    ("rate kept up", all_of(LEVEL_RATE, with_column("ratios", [0.09] * 30 + [0.0124] * 30)),
     all_of(LEVEL_RATE, with_column("ratios", [0.09] * 30 + [0.0126] * 30))),
    ("rate kept up", with_column("ratios", [0.09] * 60),
     all_of(LEVEL_RATE, with_audit(column=2.09), with_column("ratios", [0.09] * 30 + [0.01] * 30))),
    ("underfitting", all_of(with_audit(column=2.11), with_probe(1, train=2.2)),
     all_of(with_audit(column=2.095), with_probe(1, train=2.2))),
    ("rate kept up", all_of(LEVEL_RATE, with_column("ratios", HALF_LATE)),
     all_of(LEVEL_RATE, with_column("ratios", [0.09] * 2 + HALF_LATE[:-2]))),
    ("underfitting", all_of(TOO_SMALL, with_probe(1, train=2.3)),
     all_of(TOO_SMALL, with_probe(1, 3, train=2.3))),
    ("underfitting", all_of(with_audit(column=2), with_probe(1, train=2.09)),
     all_of(with_audit(column=2), with_probe(1, train=2.11))),
    ("underfitting",
     all_of(TOO_SMALL, with_column("ratios", [0.49 / 60] * 60)),
     all_of(TOO_SMALL, with_column("ratios", [0.51 / 60] * 60))),
    ("underfitting", all_of(TOO_SMALL, with_probe(3, mixed=2.25)),
     all_of(TOO_SMALL, with_probe(3, mixed=2.27))),
    ("underfitting", all_of(with_audit(column=2), with_probe(1, train=2.26)),
     all_of(with_audit(column=2), with_probe(1, train=2.24))),
    (s.DOUBT, with_probe(0, train=3.51), with_probe(0, train=3.49)),
    (s.DOUBT, SHORT, with_probe(3, held_out=math.nan)),
    (s.DOUBT, jumping(0.01, 0.29), jumping(0.01, 0.31)),
    (s.DOUBT, with_audit(unigram=2.28), with_audit(unigram=2.26)),
    (s.DOUBT, with_audit(unigram=2.28), with_audit(unigram=2.04)),
    (s.DOUBT, SHORT, with_column("losses", [2.2] * 60)),
]  # fmt: skip


def test_a_history_in_which_nothing_is_wrong():
    (finding,) = s.diagnose(complete())
    assert finding.name == s.NOTHING and "not measured" not in finding.evidence
    assert "loss 4.00 to 2.20" in finding.evidence


@pytest.mark.parametrize("name, short_of, beyond", EDGES)
def test_diagnose_on_both_sides_of_each_threshold(name, short_of, beyond):
    history = complete()
    short_of(history)
    assert name not in names(history)
    history = complete()
    beyond(history)
    assert names(history)[0] == name


def test_columns_may_be_arrays():
    history = complete()
    for name in ("step", "losses", "lr", "norms", "ratios", "cosines", "shrinks"):
        setattr(history, name, np.array(getattr(history, name)))
    assert s.diagnose(history) == s.diagnose(complete())


def test_causes_come_in_the_order_of_the_checklist():
    history = complete()
    with_audit(determined=[0.9, 0.2], shared=0.9)(history)
    with_probe(0, 1, 2, 3, dead={"h": 1.0}, errors={"W": 0.2})(history)
    with_column("cosines", [-0.5] * 60)(history)
    with_probe(3, held_out=9.0)(history)
    assert names(history) == ["leak", "shared rows", "dead units", "backward bug", "uphill",
                              "overfitting"]  # fmt: skip


def test_the_outcome_is_not_judged_before_the_measuring_is():
    history = complete()
    with_probe(3, held_out=9.0)(history)
    with_probe(0, train=1.0)(history)
    (finding,) = s.diagnose(history)
    assert finding.name == s.DOUBT and "first loss is 4.00, measured 1.00" in finding.evidence


def test_a_few_steps_are_too_few_to_call_anything_stuck():
    for steps, name in ((9, s.NOTHING), (10, s.DOUBT)):
        assert names(healthy_history(steps, losses=[4.0] * steps)) == [name]
    for steps, name in ((9, s.NOTHING), (10, "frozen weights")):
        arrays = {"W": [0.0] * steps, "b": []}  # b was not measured
        history = healthy_history(steps, ratios=[0.02] * steps, arrays=arrays)
        assert "b never" not in s.diagnose(history)[0].evidence
        assert names(history) == [name]


def test_every_known_cause_has_its_edges_and_its_remedy():
    assert {name for name, *_ in EDGES} == {*s.REMEDIES, s.DOUBT}
    assert s.DISEASES.keys() <= s.REMEDIES.keys()
    assert {truth for truths in s.ACCIDENTS.values() for truth in truths} <= s.REMEDIES.keys()


def test_held_out_loss_that_never_followed():
    losses = list(np.linspace(4.1, 2.06, 50))
    probes = [{"step": step, "held_out": 4.1} for step in (-1, 20, 49)]
    assert names(healthy_history(losses=losses, probes=probes))[0] == "held-out differs"


@pytest.mark.parametrize("column", ["step", "losses", "lr", "norms", "ratios"])
def test_unequal_columns_are_refused(column):
    with pytest.raises(ValueError, match=f"equal length.*{column}"):
        s.diagnose(healthy_history(**{column: [1.0] * 49}))


AT_THE_START = {  # what is found in the data, or before the first step, needs no long run
    "leak", "off-by-one targets", "zero init", "dead units", "saturating init", "backward bug",
    "exploding recurrence", "vanishing gradients", "held-out from elsewhere",
    "held-out rows trained on", "30 % label noise", "weight decay 10", "gradient ascent",
    "one layer frozen", "all frozen but a bias", "clipping at 0.0001", "no held-out rows",
}  # fmt: skip


@pytest.mark.parametrize("name", s.DISEASES)
@pytest.mark.parametrize("seed", [1])
def test_the_clinic_names_the_disease_at_seeds_it_was_not_tuned_on(name, seed, tmp_path):
    history = s.clinic_run(name, seed, steps=30 if name in AT_THE_START else 200)
    finding = s.diagnose(history)[0]
    assert finding.name == name
    assert re.search(r"\d", finding.evidence) and finding.remedy
    history.save(
        tmp_path / "h.json"
    )  # from the recorded signals alone: a reloaded file says the same
    assert s.diagnose(History.load(tmp_path / "h.json"))[0] == finding


@pytest.mark.parametrize("copy", range(3))
def test_the_clinic_calls_controls_healthy(copy):
    assert names(s.clinic_run("healthy", 2, copy)) == [s.NOTHING]


@pytest.mark.parametrize("name, truths", s.ACCIDENTS.items())
def test_no_accident_is_called_healthy_or_given_a_wrong_cause(name, truths):
    finding = s.diagnose(s.clinic_run(name, 1, steps=30 if name in AT_THE_START else 200))[0]
    assert finding.name in (*truths, s.DOUBT) and finding.evidence and finding.remedy


def test_a_clinic_run_is_a_function_of_its_seed():
    first, again, other = (s.clinic_run("healthy", seed, 1, 20) for seed in (5, 5, 6))
    assert first.losses == again.losses != other.losses


# ---- bad input


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: LanguageModel(0, 4), "vocab_size >= 1, got 0"),
        (lambda: small(activation="gelu")[0].loss_and_grads(*small()[1:]), "gelu"),
        (lambda: s.Optimizer("lion"), "lion"),
        (lambda: s.smooth([1], 1.0), "1.0"),
        (lambda: s.early_stop([]), "at least one"),
        (lambda: s.early_stop([1.0], 0), "patience"),
        (lambda: s.check_initialization(*small(), 1), "vocab_size"),
        (lambda: s.dead_units(np.zeros((0, 3))), r"\(0, 3\)"),
        (lambda: s.saturated_units(np.zeros(3)), r"\(3,\)"),
        (lambda: s.audit_data(np.zeros((3, 2), int), np.zeros(2, int), 4), r"\(3, 2\) and \(2,\)"),
        (lambda: s.audit_data(np.full((3, 2), 4), np.zeros(3, int), 4), r"0..3, got 0..4"),
        (lambda: s.diagnose(History()), "at least one step"),
        (lambda: s.diagnose(None), "a History, got None"),
        (lambda: s.Monitor(small()[0], None, None, 5, every=0), "every"),
        (lambda: s.clinic_run("flu", 0), "flu"),
    ],
)
def test_bad_input_says_what_was_expected(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# ---- the command


def test_fast_report_is_complete_and_repeatable(capsys):
    outputs = []
    for _ in range(2):
        assert not s.main(["--fast"])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert 0 < check_held_out_line(outputs[0]) < 6
    assert outputs[0].rstrip().splitlines()[-1].startswith("held-out:")
    assert max(map(len, outputs[0].splitlines())) <= 100
    for words in ("ln V", "Monitor", "wrong ones"):
        assert words in outputs[0]


@pytest.mark.parametrize("argv", [["--seed", "-1"], ["--seed", "x"], ["--nonsense"]])
def test_a_wrong_command_line_is_one_clean_error(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        s.main(argv)
    assert stop.value.code == 2 and "Traceback" not in capsys.readouterr().err


# ---- inputs at the corners: the right value, or a sentence that says what was expected


class Scaled(s.LanguageModel):
    """A model whose loss is multiplied by `scale`, and its gradients by `factor` beside that."""

    scale, factor = 1.0, 1.0

    def loss_and_grads(self, x, y):
        loss, grads = super().loss_and_grads(x, y)
        return self.scale * loss, {k: self.factor * self.scale * g for k, g in grads.items()}


@pytest.mark.parametrize("scale", [1e-200, 1e-11, 1.0, 1e11])
def test_slope_checks_have_no_scale(scale, rng):
    x, y = rng.integers(0, 5, (40, 3)), rng.integers(0, 5, 40)
    model = Scaled(5, 3, 6)
    model.scale = scale
    assert max(s.slope_check(model, x, y, rng).values()) < 1e-5
    for factor in (-1.0, 0.0, 1.01, 1e-11):
        model.factor = factor
        assert min(s.slope_check(model, x, y, rng).values()) > 1e-3


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64])
def test_ids_of_any_width_are_the_same_ids(rng, dtype):
    x, y = (
        rng.integers(0, 80, (2000, 4)),
        rng.integers(0, 80, 2000),
    )  # 80² does not fit into eight bits
    narrow = x.astype(dtype), y.astype(dtype)
    assert s.audit_data(*narrow, np.uint8(80)) == s.audit_data(x, y, 80)
    model = s.LanguageModel(80, 4, 8)
    one, other = model.loss_and_grads(*narrow), model.loss_and_grads(x, y)
    assert one[0] == other[0] and all(np.array_equal(one[1][k], other[1][k]) for k in one[1])


def test_what_is_no_id_is_refused(rng):
    x, y = rng.integers(0, 5, (9, 3)), rng.integers(0, 5, 9)
    model = s.LanguageModel(5, 3, 4)
    for wrong in (
        lambda a: a * 1.0,
        lambda a: a > 0,
        lambda a: a - 5,
        lambda a: a + 1 + 5 * (a < 1),
    ):
        for bad in ((wrong(x), y), (x, wrong(y))):
            with pytest.raises(ValueError, match="expected (integers as [xy]|[xy] in 0)"):
                model.loss_and_grads(*bad)
            with pytest.raises(ValueError, match="expected (integers as [xy]|[xy] in 0)"):
                s.audit_data(*bad, 5)
    with pytest.raises(ValueError, match=r"y \(B,\), got \(9, 5\) and \(1,\)"):
        s.cross_entropy_forward(np.zeros((9, 5)), y[:1])


def test_sizes_and_readings_of_eight_bits_count_like_any_others(rng):
    sizes = np.uint8(5), np.uint8(64)
    assert s.LanguageModel(*sizes, embed=np.uint8(8)).params["W1"].shape == (512, 32)
    assert s.dead_units(np.array([[-128, 0]], np.int8)) == 0.5
    three, two = np.array([3], np.uint8), np.array([2], np.uint8)
    assert s.step_readings({"a": three}, {"a": two}, {"a": two})[0] == pytest.approx(1 / 3)
    assert s.step_readings({"a": [3.0]}, {"a": [2.0]}, {})[3]["a"] == pytest.approx(1 / 3)


def test_corners_of_the_curves():
    assert s.unigram_entropy([[1, 2], [2, 1]]) == pytest.approx(math.log(2))
    assert s.early_stop([math.nan, 2, 1, 0.5, math.nan]) == (3, None)  # nan is never best
    assert s.early_stop(np.array([3, 1, 2], np.uint8), 3, 5) == (0, None)


def test_wrong_numbers_are_named(rng):
    x, y = rng.integers(0, 5, (9, 3)), rng.integers(0, 5, 9)
    model = s.LanguageModel(5, 3, 4)
    for call, said in (
        (lambda: s.LanguageModel("a", 3), "as vocab_size, got 'a'"),
        (lambda: s.LanguageModel(5, True), "as context, got True"),
        (lambda: s.layer_forward(x, x.T, 0, "tahn"), "got 'tahn'"),
        (lambda: s.unigram_entropy([]), "at least one target"),
        (lambda: s.check_initialization(model, x, y, "a"), "as vocab_size, got 'a'"),
        (lambda: s.early_stop([1], 1.5), "as patience, got 1.5"),
        (lambda: s.audit_data(x, y, 5.0), "as vocab_size, got 5.0"),
        (lambda: s.Monitor(model, (x, y), (x, y), 5, "a"), "as every, got 'a'"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_learning_by_heart_that_diverges_stops_there(rng):
    x, y = rng.integers(0, 5, (9, 3)), rng.integers(0, 5, 9)
    model = s.LanguageModel(5, 3, 4, activation="relu")
    with np.errstate(all="ignore"):
        reached, losses = s.overfit_one_batch(model, x, y, 1e200)
    assert not reached and len(losses) == 2 and math.isnan(losses[1])


def test_arrays_are_named_in_their_own_order():
    history = History()
    names_of_arrays = list("zyxwvutsrqponm")
    for t in range(20):
        history.record(t, 4 - 0.1 * t, 0.1, 1.0, 0.1, arrays=dict.fromkeys(names_of_arrays, 0.0))
    (finding,) = s.diagnose(history)
    assert finding.evidence.startswith(", ".join(names_of_arrays))  # not in that of a set


def test_units_that_died_are_seen_beside_a_reading_that_is_missing():
    history = complete()
    all_of(LEVEL_RATE, with_audit(unigram=2.2), jumping(0.5, 0))(history)
    with_probe(3, dead={}, saturated={"h": 1.0})(history)
    assert names(history) == ["rate too high"]


def test_every_clinic_run_has_all_that_healthy_ones_are_drawn_from():
    assert all(needs.keys() <= s.HEALTHY.keys() for needs in s.NEEDS.values())
    assert s.NEEDS.keys() <= {*s.DISEASES, *s.ACCIDENTS}


def test_probes_find_their_place_among_steps_that_are_not_counted_from_0():
    history = complete()
    history.step = [1000 + 10 * step for step in history.step]
    for probe in history.probes[1:]:
        probe["step"] = 1000 + 10 * probe["step"]
    with_probe(0, step=math.nan)(history)
    assert names(history) == [s.NOTHING]
    with_probe(2, train=9.0)(history)
    assert names(history)[0] == "batches differ"
    with_probe(2, step=7)(history)  # no such step: not measured
    assert names(history) == [s.NOTHING]


def test_probes_after_the_run_has_broken_do_not_hide_the_cause():
    history = complete()
    with_probe(0, errors={"W": 0.5, "b": math.nan})(history)
    with_probe(1, 2, 3, errors={"W": math.nan, "b": math.nan})(history)
    finding = s.diagnose(history)[0]
    assert finding.name == "backward bug" and "along W" in finding.evidence
