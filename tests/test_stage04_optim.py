"""Stage 4: update rules against closed forms, proven rates, schedules, the model, the report."""

import contextlib
import io
import math

import numpy as np
import pytest
from conftest import assert_gradients, central_difference, check_held_out_line, relative_error

import stage04_optim as s4

MAKERS = {
    "sgd": lambda P: s4.SGD(P, 0.1, weight_decay=0.2),
    "ball": lambda P: s4.SGD(P, 0.1, momentum=0.9),
    "nesterov": lambda P: s4.SGD(P, 0.1, 0.9, True),
    "adagrad": lambda P: s4.AdaGrad(P, weight_decay=0.1),
    "rmsprop": s4.RMSprop,
    "adam": lambda P: s4.Adam(P, weight_decay=0.1),
    "adamw": s4.AdamW,
    "lion": s4.Lion,
    "muon": s4.Muon,
}
each_method = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def start(seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}


SHAPES = {"w": (3, 5), "u": (4, 2), "r": (1, 3)}


def run(make, steps, dtype=np.float64):
    """(params, optimizer) after some steps on fixed random gradients."""
    params = start(dtype=dtype)
    optimizer = make(params)
    for i in range(steps):
        optimizer.step(start(100 + i, dtype))
    return params, optimizer


# Update rules, each summed up once more in scalars


def scalar_walk(kind, gradients, x=1.0):
    """The formulas of sections 7 to 10 for one number, at the defaults."""
    b = s = m = v = 0.0
    for t, g in enumerate(gradients, 1):
        if kind == "SGD":
            g, b = g + 0.9 * (0.9 * b + g), 0.9 * b + g
            x -= 0.1 * g
        elif kind == "AdaGrad":
            s += g**2
            x -= 1e-2 * g / (s**0.5 + 1e-10)
        elif kind == "RMSprop":
            v = 0.99 * v + 0.01 * g**2
            x -= 1e-2 * g / (v**0.5 + 1e-8)
        elif kind == "Lion":
            x -= 1e-4 * math.copysign(1, 0.9 * m + 0.1 * g)
            m = 0.99 * m + 0.01 * g
        else:
            x *= 1 - 1e-3 * 1e-2 if kind == "AdamW" else 1
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            x -= 1e-3 * m / (1 - 0.9**t) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8)
    return x


@pytest.mark.parametrize("kind", ["SGD", "AdaGrad", "RMSprop", "Adam", "AdamW", "Lion"])
def test_rules_and_defaults(rng, kind):
    gradients, params = rng.normal(size=50), {"x": np.array(1.0)}
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": True} if kind == "SGD" else {}
    optimizer = getattr(s4, kind)(params, **options)
    for g in gradients:
        optimizer.step({"x": np.array(g)})
    assert params["x"] == pytest.approx(scalar_walk(kind, gradients), rel=1e-12)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (1, 6), (6, 1)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_acts_on_singular_values_alone(rng, shape, nesterov):
    W, G = rng.normal(size=shape), rng.normal(size=shape)
    params = {"W": W.copy()}
    s4.Muon(params, 0.1, 0.5, 0.9, nesterov).step({"W": G})
    factor = (0.1 + 0.9 * 0.1) if nesterov else 0.1  # of G in the first step
    U, S, Vt = np.linalg.svd(factor * G, full_matrices=False)
    S = S / np.linalg.norm(S)
    for _ in range(5):
        S = 3.4445 * S - 4.7750 * S**3 + 2.0315 * S**5
    expected = W * (1 - 0.1 * 0.5) - 0.1 * math.sqrt(max(1, shape[0] / shape[1])) * (U * S) @ Vt
    assert params["W"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(8, 8), (20, 7), (7, 20)])
def test_orthogonalize_brings_singular_values_near_one(rng, shape):
    for scale in (1e-3, 1, 1e6):
        G = rng.normal(size=shape)
        singular = np.linalg.svd(s4.orthogonalize(scale * G))[1]
        large = np.linalg.svd(G)[1] > 0.05 * np.linalg.norm(G)
        assert np.all(singular[large] > 0.65) and np.all(singular < 1.25)
    assert np.array_equal(s4.orthogonalize(np.zeros((2, 3))), np.zeros((2, 3)))


def test_first_steps_have_length_lr():
    """Section 8 to 10: at the first step g's size is gone and its sign is left."""
    for kind, lr in ((s4.AdaGrad, 1e-2), (s4.Adam, 1e-3), (s4.Lion, 1e-4)):
        params = {"x": np.zeros(3)}
        kind(params).step({"x": np.array([1e-3, -5.0, 1e8])})
        assert params["x"] == pytest.approx(lr * np.array([-1.0, 1.0, -1.0]), rel=1e-4)


@pytest.mark.parametrize("kind", [s4.AdaGrad, s4.RMSprop, s4.Adam, s4.AdamW])
def test_scaling_the_loss_changes_nothing_at_eps_zero(kind):
    walks = []
    for scale in (1.0, 1024.0):  # a power of two: exact
        params = start()
        optimizer = kind(params, lr=0.01, eps=0)
        for i in range(5):
            optimizer.step({k: scale * g for k, g in start(7 + i).items()})
        walks.append(params)
    assert all(walks[0][k] == pytest.approx(walks[1][k], rel=1e-13) for k in SHAPES)


def test_decoupled_decay_differs_from_l2_except_in_sgd(rng):
    params = {"x": np.array([2.0, -3.0])}
    s4.AdamW(params, lr=0.1, weight_decay=0.5).step({"x": np.zeros(2)})
    assert params["x"] == pytest.approx([2 * 0.95, -3 * 0.95])  # decay alone
    params = {"x": np.array([2.0, -3.0])}
    s4.Adam(params, lr=0.1, weight_decay=0.5).step({"x": np.zeros(2)})
    assert params["x"] == pytest.approx([1.9, -2.9])  # a full step, whatever the size
    params = {"x": np.array([2.0, -3.0])}
    s4.SGD(params, lr=0.1, weight_decay=0.5).step({"x": np.ones(2)})
    assert params["x"] == pytest.approx(np.array([2.0, -3.0]) * 0.95 - 0.1)


@each_method
def test_step_is_in_place_keeps_dtype_and_spares_the_gradients(make):
    params = start(dtype=np.float32)
    optimizer, before = make(params), {k: (p, p.copy()) for k, p in params.items()}
    grads = start(1)  # float64 gradients for float32 parameters
    optimizer.step(grads)
    for name, (array, old) in before.items():
        assert params[name] is array and array.dtype == np.float32
        assert not np.array_equal(array, old) and np.array_equal(grads[name], start(1)[name])
    assert all(a.dtype == np.float32 for kept in optimizer.state.values() for a in kept.values())


@each_method
def test_resumed_is_never_stopped(make):
    whole, _ = run(make, 9)
    params, optimizer = run(make, 4)
    optimizer.lr *= 0.5
    saved = optimizer.state_dict()
    optimizer.step(start(0))  # a step that the saved state must not notice
    params = run(make, 4)[0]
    resumed = make(params)
    resumed.load_state_dict(saved)
    assert resumed.lr == saved["settings"]["lr"]
    resumed.lr *= 2
    for i in range(4, 9):
        resumed.step(start(100 + i))
    assert all(np.array_equal(params[k], whole[k]) for k in params)


# Theory


@pytest.mark.parametrize("mu, Lambda", [(1.0, 1.0), (1.0, 10.0), (0.5, 200.0)])
def test_walks_keep_the_proven_rates(mu, Lambda):
    for name, (lr, beta, rho) in s4.proven_rates(mu, Lambda).items():
        scale, params = np.array([mu, Lambda]), {"x": np.array([1.0, 1.0])}
        optimizer = s4.SGD(params, lr, beta, nesterov=name == "Nesterov" and beta > 0)
        for _ in range(100):
            optimizer.step({"x": scale * params["x"]})
        # one coordinate is exactly ρᵗ without momentum; with it, a double root adds a factor ≤ 2t
        limit = rho**100 * (200 if beta else math.sqrt(2))
        assert np.linalg.norm(params["x"]) <= limit * (1 + 1e-9) + 1e-200, name


def test_best_rate_is_best():
    lr, _, rho = s4.proven_rates(2.0, 30.0)["descent, best"]
    for other in np.linspace(0.3 * lr, 2 * lr, 50):
        assert max(abs(1 - other * 2), abs(1 - other * 30)) >= rho - 1e-12
    assert max(abs(1 - lr * 2), abs(1 - lr * 30)) == pytest.approx(rho)


@pytest.mark.parametrize("lr, curvature, batch", [(0.1, 1, 1), (0.5, 2, 4), (0.05, 3, 16)])
def test_noise_floor_is_the_fixed_point(lr, curvature, batch):
    variance = s4.noise_floor(lr, curvature, 2.0, batch)
    assert (1 - lr * curvature) ** 2 * variance + lr**2 * 2.0 / batch == pytest.approx(variance)


LANDSCAPES = [s4.quadratic, s4.rosenbrock, s4.saddle, s4.rastrigin]


@pytest.mark.parametrize("landscape", LANDSCAPES)
def test_landscapes_slope(rng, landscape):
    points = rng.normal(size=(2, 3, 2))
    slope = landscape(points)[1]
    numeric = central_difference(lambda: landscape(points)[0].sum(), points)
    assert landscape(points)[0].shape == (2, 3) and relative_error(slope, numeric) < 1e-6


@pytest.mark.parametrize(
    "landscape, place, height",
    list(zip(LANDSCAPES, [(0, 0), (1, 1), (0, -1), (0, 0)], [0, 0, -0.25, 0])),
)
def test_landscapes_minimum(rng, landscape, place, height):
    found, slope = landscape(np.array(place, dtype=float))
    assert found == pytest.approx(height) and slope == pytest.approx([0, 0])
    assert np.all(landscape(rng.uniform(-3, 3, (500, 2)))[0] >= height)


# Clipping, accumulation, schedules


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_clip_grad_norm(rng, scale):
    grads = {"a": (scale * rng.normal(size=(3, 2))).astype(np.float32), "b": np.zeros(0)}
    before = {k: g.copy() for k, g in grads.items()}
    arrays = dict(grads)
    norm = np.linalg.norm(before["a"].astype(np.float64))
    assert s4.clip_grad_norm(grads, 0.5) == pytest.approx(norm)
    factor = min(1.0, 0.5 / (norm + 1e-6))
    assert grads["a"] == pytest.approx(factor * before["a"].astype(np.float64), rel=1e-5)
    assert all(grads[k] is arrays[k] for k in grads)
    assert s4.clip_grad_norm(grads, math.inf) <= 0.5 * (1 + 1e-6) and s4.clip_grad_norm({}, 1) == 0


def test_clip_is_joint_and_by_value():
    grads = {"a": np.array([3.0]), "b": np.array([-4.0])}
    assert s4.clip_grad_norm(grads, 1.0) == 5.0
    assert [grads["a"][0], grads["b"][0]] == pytest.approx([0.6, -0.8], rel=1e-6)
    grads = {"a": np.array([3.0, -0.1, -7.0])}
    assert s4.clip_grad_value(grads, 1.0) is None and grads["a"].tolist() == [1.0, -0.1, -1.0]


def small_model(rng, V=6, context=3):
    params = s4.nlm_init(V, context, 4, 5, rng, np.float64)
    for p in params.values():
        p += 0.5 * rng.normal(size=p.shape)
    return params, rng.integers(0, V, (11, context)), rng.integers(0, V, 11)


@pytest.mark.parametrize("micro_batch", [1, 4, 11, 50])
def test_accumulated_gradients_are_the_batch_gradients(rng, micro_batch):
    params, X, Y = small_model(rng)

    def loss_and_grads(x, y):
        loss, cache = s4.nlm_forward(x, y, params)
        return loss, s4.nlm_backward(1.0, cache)

    loss, grads = loss_and_grads(X, Y)
    total, sums = s4.accumulated(loss_and_grads, X, Y, micro_batch)
    assert total == pytest.approx(loss, rel=1e-13)
    assert all(sums[k] == pytest.approx(grads[k], rel=1e-9, abs=1e-14) for k in grads)


@pytest.mark.parametrize(
    "schedule, expected",
    [
        (lambda t: s4.constant(t, 2.0), {0: 2, 999: 2}),
        (lambda t: s4.step_decay(t, 1.0, 10), {0: 1, 9: 1, 10: 0.1, 29: 0.01}),
        (lambda t: s4.exponential_decay(t, 1.0, 0.5), {0: 1, 1: 0.5, 3: 0.125}),
        (lambda t: s4.linear_decay(t, 1.0, 10, 0.2), {0: 1, 5: 0.6, 10: 0.2, 99: 0.2}),
        (
            lambda t: s4.warmup_cosine(t, 1.0, 4, 24, 0.1),
            {0: 0.2, 4: 1, 14: 0.55, 24: 0.1, 99: 0.1},
        ),
        (lambda t: s4.warmup_cosine(t, 1.0, 0, 10), {0: 1, 5: 0.5, 10: 0}),
        (lambda t: s4.warmup_cosine(t, 1.0, 10, 10, 0.1), {9: 10 / 11, 10: 1, 11: 0.1}),
        (lambda t: s4.cosine_restarts(t, 1.0, 10), {0: 1, 5: 0.5, 10: 1, 25: 0.5}),
        (lambda t: s4.cosine_restarts(t, 1.0, 10, 2), {10: 1, 20: 0.5, 30: 1, 50: 0.5}),
        (lambda t: s4.one_cycle(t, 1.0, 100), {0: 0.04, 29: 1, 99: 4e-6, 500: 4e-6}),
        (lambda t: s4.one_cycle(t, 1.0, 1), {0: 1}),
        (
            lambda t: s4.wsd(t, 1.0, 4, 20, 10, 0.2),
            {0: 0.2, 4: 1, 10: 1, 15: 0.6, 20: 0.2, 99: 0.2},
        ),
    ],
)
def test_schedules(schedule, expected):
    assert {t: schedule(t) for t in expected} == pytest.approx(expected)


# The language model


@pytest.mark.parametrize("V, context", [(6, 3), (1, 1), (2, 5)])
def test_every_gradient_of_the_network(rng, V, context):
    params, X, Y = small_model(rng, V, context)
    _, cache = s4.nlm_forward(X, Y, params)
    assert_gradients(
        lambda: s4.nlm_forward(X, Y, params)[0],
        list(params.values()),
        lambda dy: [s4.nlm_backward(dy, cache)[k] for k in params],
    )


def test_score_counts_every_id_once_and_survives_large_scores(rng):
    params, _, _ = small_model(rng)
    ids = rng.integers(0, 6, 9000)
    X, Y = s4.examples(ids, 3)
    assert len(Y) == 8997
    assert s4.nlm_score(ids, params, 3) == pytest.approx(s4.nlm_forward(X, Y, params)[0])
    params["b"] += np.array([1e5, 0, 0, 0, 0, 0])
    assert np.isfinite(s4.nlm_forward(X, Y, params)[0])


@pytest.mark.parametrize("name", s4.METHODS)
def test_every_method_learns_a_rule(rng, name):
    """The next symbol is the one before plus one: every method gets well below ln 5."""
    ids = np.arange(400) % 5
    params = s4.nlm_init(5, 2, 4, 8, rng)
    make, lr = s4.METHODS[name]
    X, Y = s4.examples(ids, 2)
    s4.train(params, X, Y, make(params, lr), lambda t, r: s4.linear_decay(t, r, 150), 150, 32)
    assert s4.nlm_score(ids, params, 2) < 0.4 * math.log(5)


# Bad input


P = {"w": np.ones((2, 3))}
BAD = {
    "lr is 0": lambda: s4.SGD(P, 0),
    "lr is -1": lambda: s4.Adam(P, lr=-1),
    "lr is nan": lambda: s4.AdamW(P, lr=math.nan),
    "lr is inf": lambda: s4.Lion(P, lr=math.inf),
    "lr is '1'": lambda: s4.Muon(P, lr="1"),
    "lr is -0.5": lambda: setattr(s4.SGD(P, 1), "lr", -0.5),
    "params are {}": lambda: s4.SGD({}, 1),
    r"params\['i'\] is int64": lambda: s4.SGD({"i": np.arange(3, dtype=np.int64)}, 1),
    r"params\['l'\] is list": lambda: s4.AdaGrad({"l": [1.0]}),
    "momentum is 1": lambda: s4.SGD(P, 1, momentum=1),
    "momentum is 0; nesterov": lambda: s4.SGD(P, 1, nesterov=True),
    "weight_decay is -1": lambda: s4.AdamW(P, weight_decay=-1),
    "betas is 1": lambda: s4.Adam(P, betas=(0.9, 1)),
    "betas are 0.9": lambda: s4.Lion(P, betas=0.9),
    "alpha is -0.1": lambda: s4.RMSprop(P, alpha=-0.1),
    "eps is -1": lambda: s4.AdaGrad(P, eps=-1),
    r"'b'\] has shape \(3,\); expected a matrix; use AdamW": lambda: s4.Muon({"b": np.ones(3)}),
    "ns_steps is 0": lambda: s4.Muon(P, ns_steps=0),
    r"grads are \['v'\]; expected \['w'\]": lambda: s4.SGD(P, 1).step({"v": P["w"]}),
    "grads are list": lambda: s4.SGD(P, 1).step([P["w"]]),
    r"grads\['w'\] has shape \(3, 2\)": lambda: s4.SGD(P, 1).step({"w": P["w"].T}),
    "the state has other keys": lambda: s4.SGD(P, 1).load_state_dict({}),
    "the state has other": lambda: s4.SGD(P, 1).load_state_dict(None),
    "of 'Lion'": lambda: s4.AdamW(P).load_state_dict(
        {**s4.AdamW(P).state_dict(), "optimizer": "Lion"}
    ),
    r"m\['w'\] has shape \(2, 3\)": lambda: s4.Adam({"w": np.ones(3)}).load_state_dict(
        s4.Adam(P).state_dict()
    ),
    "G has shape": lambda: s4.orthogonalize(np.ones(3)),
    "max_norm is 0": lambda: s4.clip_grad_norm(P, 0),
    "clip_value is -1": lambda: s4.clip_grad_value(P, -1),
    "step is -1": lambda: s4.constant(-1, 1.0),
    "lr is 0.0": lambda: s4.wsd(0, 0.0, 1, 9, 2),
    "gamma is 0": lambda: s4.exponential_decay(0, 1.0, 0),
    "step_size is 0": lambda: s4.step_decay(0, 1.0, 0),
    "total_steps is 0": lambda: s4.linear_decay(0, 1.0, 0),
    "total_steps is 5; expected at least 6": lambda: s4.warmup_cosine(0, 1.0, 6, 5),
    "total_steps is 9; expected at least 10": lambda: s4.wsd(0, 1.0, 6, 9, 4),
    "min_lr is 2": lambda: s4.linear_decay(0, 1.0, 9, 2),
    "cycle_steps is 0.5": lambda: s4.cosine_restarts(0, 1.0, 0.5),
    "pct_start is 1.5": lambda: s4.one_cycle(0, 1.0, 9, 1.5),
    "curvatures are 2": lambda: s4.proven_rates(2, 1),
    "lr is 1.5; expected 0 <": lambda: s4.noise_floor(1.5, 2, 1, 1),
    "3 contexts and 2 targets": lambda: s4.accumulated(None, [1, 2, 3], [1, 2], 1),
    "micro_batch is 0": lambda: s4.accumulated(None, [1], [1], 0),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_a_refused_step_or_state_changes_nothing():
    params = {"a": np.ones(2), "b": np.ones(3)}
    optimizer = s4.AdamW(params)
    saved = optimizer.state_dict()
    with pytest.raises(ValueError):
        optimizer.step({"a": np.ones(2), "b": np.ones(2)})
    saved["state"]["v"]["b"] = np.ones(1)
    with pytest.raises(ValueError):
        optimizer.load_state_dict({**saved, "t": 5})
    assert optimizer.t == 0 and all((p == 1).all() for p in params.values())


# The report


@pytest.fixture(scope="module")
def fast_reports():
    outputs = []
    for _ in range(2):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert not s4.main(["--fast", "--seed", "3"])
        outputs.append(out.getvalue())
    return outputs


def test_report_is_deterministic_and_complete(fast_reports):
    first, second = fast_reports
    assert first == second
    for heading in ("proven", "Noise", "race", "Rosenbrock", *s4.METHODS, *s4.SCHEDULES):
        assert heading in first
    check_held_out_line(first)
    assert "(stage 4, " in first.splitlines()[-1]


@pytest.mark.parametrize(
    "argv", [["--seed", "-1"], ["--wrong"], ["--text", "/no/such/file"], ["--text", "{short}"]]
)
def test_a_bad_command_line_is_one_clean_line(tmp_path, capsys, argv):
    (tmp_path / "short").write_text("too short")
    with pytest.raises(SystemExit) as stop:
        s4.main([word.replace("{short}", str(tmp_path / "short")) for word in argv])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error


# Inputs at the corners: the right value, or a sentence that says what was expected.


def test_numbers_of_eight_bits_count_like_any_others(rng):
    few, many = np.uint8(120), np.uint8(255)
    assert s4.warmup_cosine(many, 1.0, 300, 1000) == pytest.approx(256 / 301)
    assert s4.wsd(few, 1.0, 0, np.uint8(100), np.uint8(50)) == 0
    assert s4.cosine_restarts(np.uint8(200), 1.0, np.uint8(150), 2) == pytest.approx(
        s4.cosine_restarts(200, 1.0, 150, 2)
    )
    with pytest.raises(ValueError, match="total_steps is 210; expected at least 300"):
        s4.wsd(1, 1.0, np.uint8(200), np.uint8(210), np.uint8(100))
    assert s4.noise_floor(0.1, 2, 1, np.uint8(200)) == s4.noise_floor(0.1, 2, 1, 200)
    X = np.arange(300)
    mean, grads = s4.accumulated(lambda X, Y: (X.mean(), {"g": X.mean()}), X, X, np.uint8(200))
    assert mean == pytest.approx(149.5) and grads["g"] == pytest.approx(149.5)
    shape = s4.nlm_init(5, np.uint8(16), np.uint8(16), 4, rng)["H"].shape
    assert shape == (256, 4)


def test_landscapes_take_lists_and_integers_of_any_width():
    for landscape in (s4.quadratic, s4.rosenbrock, s4.saddle, s4.rastrigin):
        height, slope = landscape(np.array([20.0, 20.0]))
        for points in ([20, 20], np.array([20, 20], np.uint8), np.array([20, 20], np.int64)):
            np.testing.assert_array_equal(landscape(points)[0], height)
            np.testing.assert_array_equal(landscape(points)[1], slope)
    whole = s4.orthogonalize([[200, 100], [100, 3]])
    np.testing.assert_array_equal(s4.orthogonalize(np.array([[200, 100], [100, 3]], "u1")), whole)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64])
def test_ids_of_any_width_are_the_same_ids(rng, dtype):
    params = s4.nlm_init(5, 2, 3, 4, rng, np.float64)
    ids = rng.integers(0, 5, 40)
    narrow = ids.astype(dtype)
    assert s4.nlm_score(narrow, params, 2) == s4.nlm_score(ids, params, 2)
    assert all(np.array_equal(*pair) for pair in zip(s4.examples(narrow, 2), s4.examples(ids, 2)))
    grads = [
        s4.nlm_backward(1.0, s4.nlm_forward(*s4.examples(i, 2), params)[1]) for i in (narrow, ids)
    ]
    assert all(np.array_equal(grads[0][name], grads[1][name]) for name in params)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda ids: ids * 1.0, "float64; expected integers"),
        (lambda ids: ids > 0, "bool; expected integers"),
        (lambda ids: ids - 1, r"-1 to 3; expected 0\.\.4"),
        (lambda ids: ids + 1, r"1 to 5; expected 0\.\.4"),
        (lambda ids: ["a"] * len(ids), "expected integers"),
    ],
)
def test_what_is_no_id_is_refused(rng, wrong, said):
    params, ids = s4.nlm_init(5, 1, 3, 4, rng), np.arange(5)
    for X, Y in ((wrong(ids), ids), (ids, wrong(ids))):
        with pytest.raises(ValueError, match=said):
            s4.nlm_forward(np.asarray(X)[:, None], Y, params)


def test_wrong_numbers_are_named(rng):
    params, ids = s4.nlm_init(5, 2, 3, 4, rng), np.arange(5)
    X, Y = s4.examples(ids, 2)
    sgd = [s4.SGD(params, 0.1)]
    for call, said in (
        (lambda: s4.noise_floor("a", 1, 1, 1), "lr is 'a'"),
        (lambda: s4.noise_floor(0.1, None, 1, 1), "curvature is None"),
        (lambda: s4.noise_floor(0.1, 1, np.nan, 1), "noise_variance is nan"),
        (lambda: s4.noise_floor(0.1, 1, 1, 0), "batch_size is 0"),
        (lambda: s4.proven_rates("a", 1), "mu is 'a'"),
        (lambda: s4.nlm_init("a", 2, 3, 4, rng), "vocab_size is 'a'"),
        (lambda: s4.nlm_init(5, 2, True, 4, rng), "n_embd is True"),
        (lambda: s4.examples(ids, 0), "context is 0"),
        (lambda: s4.examples(ids, 5), "5 ids; expected more than the 5"),
        (lambda: s4.train(params, X, Y, sgd, s4.constant, "a"), "steps is 'a'"),
        (lambda: s4.train(params, X, Y, sgd, s4.constant, 1, 0), "batch_size is 0"),
        (lambda: s4.clip_grad_norm({"a": [3.0, 4.0]}, 1), r"grads\['a'\] is list"),
        (lambda: s4.clip_grad_value({"a": np.array([3])}, 1), r"grads\['a'\] is int64"),
        (lambda: s4.draw(s4.quadratic, [], (-1, 1), (-1, 1)), "at least one"),
        (lambda: s4.draw(s4.quadratic, [[np.nan, 0]], (-1, 1), (-1, 1)), "finite points"),
        (lambda: s4.draw(s4.quadratic, [[0, 0]], (1, 1), (-1, 1)), "some width"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_a_plain_is_drawn():
    flat = lambda points: (np.zeros(points.shape[:-1]), points)  # noqa: E731
    lines = s4.draw(flat, [np.zeros(2)], (-1, 1), (-1, 1), width=5, height=3)
    assert [len(line) for line in lines] == [5, 5, 5] and lines[1][2] == "E"


def test_training_that_diverges_says_at_which_step(rng):
    params = s4.nlm_init(5, 2, 3, 4, rng)
    X, Y = s4.examples(rng.integers(0, 5, 40), 2)
    loud = lambda step, lr: 1e300 if step == 3 else lr  # noqa: E731
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="step 5: loss (nan|inf)"):
        s4.train(params, X, Y, [s4.SGD(params, 1e-3)], loud, 9)


def test_a_text_of_a_thousand_different_characters_is_read(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(0x4E00 + i) for i in range(600)) * 2, encoding="utf-8")
    s4.main(["--fast", "--text", str(path)])
    check_held_out_line(capsys.readouterr().out)
