"""Stage 4: the first page, update rules against closed forms, proven rates, model and report."""

import math
import warnings

import numpy as np
import pytest
from conftest import (
    ROOT,
    assert_gradients,
    central_difference,
    check_held_out_line,
    relative_error,
    two_fast_reports,
)

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


# The first page and the traces that stand in comments


@pytest.mark.parametrize(
    "rate, places",
    [
        (0.1, [1, 0.8, 0.64, 0.512, 0.410, 0.328]),
        (0.5, [1, 0, 0, 0, 0, 0]),
        (0.9, [1, -0.8, 0.64, -0.512, 0.410, -0.328]),
        (1.1, [1, -1.2, 1.44, -1.728, 2.074, -2.488]),
    ],
)
def test_five_steps_on_a_parabola(rate, places):
    assert s4.descend(lambda x: 2 * x, 1.0, rate, 5) == pytest.approx(places, abs=5e-4)


@pytest.mark.parametrize(
    "rate, place",
    [(0.1, (0.349, 0)), (0.18, (0.137, 0.107)), (0.21, (0.095, 2.594)), (1, (0, 3486784401))],
)
def test_one_rate_for_two_directions(rate, place):
    walk = s4.descend(lambda x: x * [1, 10], np.ones(2), rate, 10)
    assert len(walk) == 11 and walk[0].tolist() == [1, 1]
    assert walk[-1] == pytest.approx(place, abs=5e-4)


def test_a_random_matrix_is_rarely_positive():
    """Section 3: the closed forms of the Gaussian orthogonal ensemble, and 100,000 matrices."""
    exact = [0.5, (2 - math.sqrt(2)) / 4, (math.pi - 2 * math.sqrt(2)) / (4 * math.pi)]
    assert exact == pytest.approx([0.5, 0.146, 0.025], abs=5e-4)
    for d, probability in enumerate(exact, 1):
        A = np.random.default_rng(d).normal(size=(100_000, d, d))
        smallest = np.linalg.eigvalsh(A + A.transpose(0, 2, 1))[:, 0]
        assert np.mean(smallest > 0) == pytest.approx(probability, abs=0.005)


def test_the_first_steps_of_adam_in_numbers():
    for gradients, corrected, raw in (
        ((1, 1, 1), (1, 1, 1), (3.16, 4.25, 4.95)),
        ((1, -1, 1), (1, -0.05, 0.34), (3.16, -0.22, 1.66)),
    ):
        params = {"x": np.zeros(1)}
        adam = s4.Adam(params, lr=1.0, eps=0)
        for t, g in enumerate(gradients):
            before = params["x"][0]
            adam.step({"x": np.array([float(g)])})
            assert before - params["x"][0] == pytest.approx(corrected[t], abs=0.005)
            m, v = adam.state["m"]["x"][0], adam.state["v"]["x"][0]
            assert m / math.sqrt(v) == pytest.approx(raw[t], abs=0.005)
    ratios = [(1 - 0.9**t) / math.sqrt(1 - 0.999**t) for t in range(1, 200)]
    assert max(ratios) == ratios[11] == pytest.approx(6.6, abs=0.05)  # the twelfth step


def test_the_rounds_of_newton_schulz_in_numbers():
    G = np.array([[3.0, 0.0], [0.0, 0.1]])
    rounds = [np.diag(s4.orthogonalize(G, n)) for n in range(1, 6)]
    assert [r[0] for r in rounds] == pytest.approx(
        [0.7014, 1.1132, 0.7201, 1.0907, 0.6970], abs=5e-5
    )
    assert [r[1] for r in rounds] == pytest.approx(
        [0.1146, 0.3875, 1.0747, 0.6872, 1.1288], abs=5e-5
    )
    small = np.geomspace(0.002, 1, 20_000)
    for _ in range(5):
        small = 3.4445 * small - 4.7750 * small**3 + 2.0315 * small**5
    assert 0.68 < small.min() and small.max() < 1.21


def test_the_numbers_about_sixteen_bits():
    assert np.spacing(np.float16(0.75)) == 2**-11 and np.spacing(np.float16(1)) == 2**-10
    assert np.finfo(np.float16).max == 65504
    assert np.finfo(np.float16).smallest_subnormal == pytest.approx(6e-8, rel=0.01)
    near = 1 - np.array([1, 2]) * 2.0**-8  # the bfloat16 next below 1: eight significant bits
    assert abs(0.999 - 1) < abs(0.999 - near[0]) and near[0] == 0.99609375


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
def test_three_steps_of_muon_beside_an_svd(rng, shape, nesterov):
    fan_in, fan_out = shape
    W = rng.normal(size=shape)
    params, mean = {"W": W.copy()}, np.zeros(shape)
    muon = s4.Muon(params, 0.1, weight_decay=0.5, momentum=0.9, nesterov=nesterov)
    for _ in range(3):
        G = rng.normal(size=shape)
        muon.step({"W": G})
        mean = 0.9 * mean + 0.1 * G
        U, S, Vt = np.linalg.svd(0.1 * G + 0.9 * mean if nesterov else mean, full_matrices=False)
        S = S / math.sqrt(sum(S**2))
        for _ in range(5):
            S = 3.4445 * S - 4.7750 * S**3 + 2.0315 * S**5
        W = W * (1 - 0.1 * 0.5) - 0.1 * max(1, fan_out / fan_in) ** 0.5 * (U * S) @ Vt
        assert params["W"] == pytest.approx(W, rel=1e-9)


@pytest.mark.parametrize("shape, factor", [((512, 60), 1.0), ((128, 512), 2.0), ((9, 9), 1.0)])
def test_muon_moves_outputs_by_its_rate_in_root_mean_square(rng, shape, factor):
    """x (in,) to x·W (out,): the worst RMS(x·ΔW)/RMS(x) is about η where out >= in (section 11)."""
    params = {"W": np.zeros(shape)}
    s4.Muon(params, lr=0.01, weight_decay=0).step({"W": rng.normal(size=shape)})
    singular = np.linalg.svd(params["W"])[1]
    assert 0.65 < singular[0] / (0.01 * factor) < 1.25
    worst = singular[0] * math.sqrt(shape[0] / shape[1])
    assert 0.65 < worst / 0.01 < 1.25 or shape[1] < shape[0]


@pytest.mark.parametrize("shape", [(8, 8), (20, 7), (7, 20)])
def test_orthogonalize_brings_singular_values_near_one(rng, shape):
    for scale in (1e-3, 1, 1e6):
        G = rng.normal(size=shape)
        singular = np.linalg.svd(s4.orthogonalize(scale * G))[1]
        large = np.linalg.svd(G)[1] > 0.05 * np.linalg.norm(G)
        assert np.all(singular[large] > 0.65) and np.all(singular < 1.25)
    assert np.array_equal(s4.orthogonalize(np.zeros((2, 3))), np.zeros((2, 3)))
    huge = (1e25 * np.eye(2)).astype(np.float32)  # its squares overflow float32
    np.testing.assert_allclose(s4.orthogonalize(huge), s4.orthogonalize(np.eye(2)), rtol=1e-5)
    assert s4.orthogonalize(huge).dtype == np.float32


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_muon_takes_a_matrix_without_entries(shape):
    s4.Muon({"W": np.ones(shape)}).step({"W": np.ones(shape)})


def test_first_steps_have_length_lr():
    """Section 8 to 10: at the first step g's size is gone and its sign is left."""
    for kind, lr in ((s4.AdaGrad, 1e-2), (s4.Adam, 1e-3), (s4.Lion, 1e-4)):
        params = {"x": np.zeros(3)}
        kind(params).step({"x": np.array([1e-3, -5.0, 1e8])})
        assert params["x"] == pytest.approx(lr * np.array([-1.0, 1.0, -1.0]), rel=1e-4)


@pytest.mark.parametrize(
    "make, factors_left", [(lambda P: s4.SGD(P, 0.1), 2), (lambda P: s4.AdaGrad(P, 0.1), 1)]
)
@pytest.mark.parametrize("c", [10.0, 100.0])
def test_what_a_change_of_units_does(rng, make, factors_left, c):
    """x = c·u: the slope in u is c·g. Descent moves x by c² as much, AdaGrad by c (section 8)."""
    slopes, moved = rng.normal(size=5), []
    for unit in (1.0, c):
        params = {"u": np.zeros(1)}
        optimizer = make(params)
        for g in slopes:
            optimizer.step({"u": np.array([unit * g])})
        moved.append(unit * params["u"][0])
    assert moved[1] == pytest.approx(c**factors_left * moved[0], rel=1e-6)


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


def test_decay_is_for_matrices_alone():
    params = {"w": np.ones((2, 3)), "bias": np.ones(3), "gain": np.ones(())}
    groups = s4.adamw_groups(params, 0.1, weight_decay=0.5)
    for optimizer in groups:
        optimizer.step({name: np.zeros(p.shape) for name, p in optimizer.params.items()})
    assert params["w"] == pytest.approx(0.95 * np.ones((2, 3)))
    assert (params["bias"] == 1).all() and params["gain"] == 1
    assert len(s4.adamw_groups({"w": np.ones((2, 3))}, 0.1)) == 1
    assert s4.adamw_groups({"w": np.ones((2, 3))}, 0.1)[0].weight_decay == 0.1


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


def test_the_proven_rates_in_numbers():
    """κ = 100, √κ = 10: everything in elevenths and hundredths."""
    assert {name: row for name, row in s4.proven_rates(1, 100).items()} == {
        "descent, best": pytest.approx((2 / 101, 0, 99 / 101)),
        "descent, 2.01/Λ": pytest.approx((0.0201, 0, 1.01)),
        "Nesterov": pytest.approx((0.01, 9 / 11, 0.9)),
        "heavy ball": pytest.approx((4 / 121, 81 / 121, 9 / 11)),
    }


def test_best_rate_is_best():
    lr, _, rho = s4.proven_rates(2.0, 30.0)["descent, best"]
    for other in np.linspace(0.3 * lr, 2 * lr, 50):
        assert max(abs(1 - other * 2), abs(1 - other * 30)) >= rho - 1e-12
    assert max(abs(1 - lr * 2), abs(1 - lr * 30)) == pytest.approx(rho)


@pytest.mark.parametrize("lr, curvature, batch", [(0.4, 1, 1), (0.5, 2, 4), (0.1, 3, 16)])
def test_noise_floor_is_the_fixed_point_and_where_walkers_hover(rng, lr, curvature, batch):
    variance = s4.noise_floor(lr, curvature, 2.0, batch)
    assert (1 - lr * curvature) ** 2 * variance + lr**2 * 2.0 / batch == pytest.approx(variance)
    params = {"x": np.zeros(20000)}
    walkers = s4.SGD(params, lr)
    for _ in range(60):
        noise = rng.normal(0, math.sqrt(2.0 / batch), 20000)
        walkers.step({"x": curvature * params["x"] + noise})
    assert params["x"].var() == pytest.approx(variance, rel=0.05)


def test_the_ball_circles_where_nesterov_arrives():
    """Lessard, Recht, Packard: curvatures 1 and 25, a circle that the ball never leaves."""

    def slope(x):
        return 25 * x if x < 1 else x + 24 if x < 2 else 25 * x - 24

    ends = {}
    for name, (lr, beta, _) in s4.proven_rates(1.0, 25.0).items():
        if beta:
            params = {"x": np.array([3.3])}
            walker = s4.SGD(params, lr, beta, nesterov=name == "Nesterov")
            far = []
            for _ in range(400):
                walker.step({"x": np.array([slope(params["x"][0])])})
                far.append(abs(params["x"][0]))
            ends[name] = max(far[-10:])
    assert ends["Nesterov"] < 1e-12 < 0.5 < ends["heavy ball"]


LANDSCAPES = [s4.quadratic, s4.rosenbrock]


@pytest.mark.parametrize("landscape", LANDSCAPES)
def test_landscapes_slope(rng, landscape):
    points = rng.normal(size=(2, 3, 2))
    slope = landscape(points)[1]
    numeric = central_difference(lambda: landscape(points)[0].sum(), points)
    assert landscape(points)[0].shape == (2, 3) and relative_error(slope, numeric) < 1e-6


@pytest.mark.parametrize(
    "landscape, place, height",
    list(zip(LANDSCAPES, [(0, 0), (1, 1)], [0, 0])),
)
def test_landscapes_minimum(rng, landscape, place, height):
    found, slope = landscape(np.array(place, dtype=float))
    assert found == pytest.approx(height) and slope == pytest.approx([0, 0])
    assert np.all(landscape(rng.uniform(-3, 3, (500, 2)))[0] >= height)


# Clipping, sixteen bits, schedules


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_clip_grad_norm(rng, scale):
    grads = {"a": (scale * rng.normal(size=(3, 2))).astype(np.float32), "b": np.zeros(0)}
    before, arrays = grads["a"].astype(np.float64), dict(grads)
    norm = np.linalg.norm(before)
    assert s4.clip_grad_norm(grads, 0.5) == pytest.approx(norm)
    if norm <= 0.5 - 1e-6:
        assert np.array_equal(grads["a"], before)  # what is short enough is left alone
    else:
        np.testing.assert_allclose(grads["a"], before * 0.5 / (norm + 1e-6), rtol=1e-6)
    assert all(grads[k] is arrays[k] for k in grads)
    again = grads["a"].copy()
    assert s4.clip_grad_norm(grads, math.inf) <= 0.5 * (1 + 1e-6)
    assert np.array_equal(grads["a"], again) and s4.clip_grad_norm({}, 1) == 0


def test_clipping_never_enlarges():
    grads = {"a": np.array([0.3, 0.4])}
    assert s4.clip_grad_norm(grads, 0.6) == 0.5 and grads["a"].tolist() == [0.3, 0.4]


def test_clip_is_joint():
    grads = {"a": np.array([3.0]), "b": np.array([-4.0])}
    assert s4.clip_grad_norm(grads, 1.0) == 5.0
    assert [grads["a"][0], grads["b"][0]] == pytest.approx([0.6, -0.8], rel=1e-6)


def test_a_scaled_loss_rescues_what_float16_would_lose():
    small, scale = 1e-9, 2.0**12
    params = {"x": np.ones(2, np.float32)}
    sgd = s4.SGD(params, lr=1e6)
    assert s4.scaled_step(sgd, {"x": np.full(2, small, np.float16)}, 1.0) == 1.0
    assert (params["x"] == 1).all()  # the gradient was 0 in float16
    assert s4.scaled_step(sgd, {"x": np.full(2, scale * small, np.float16)}, scale) == scale
    assert params["x"] == pytest.approx(1 - 1e6 * small, rel=1e-4)
    t, before = sgd.t, params["x"].copy()
    overflowed = {"x": np.array([1, np.inf], np.float16)}
    assert s4.scaled_step(sgd, overflowed, scale) == scale / 2
    assert sgd.t == t == 2 and np.array_equal(params["x"], before)
    assert s4.scaled_step(sgd, {"x": np.array([np.nan, 1], np.float16)}, 8.0) == 4.0


def small_model(rng, V=6, context=3):
    params = s4.nlm_init(V, context, 4, 5, rng, np.float64)
    for p in params.values():
        p += 0.5 * rng.normal(size=p.shape)
    return params, rng.integers(0, V, (11, context)), rng.integers(0, V, 11)


def test_the_loss_of_a_batch_is_the_weighted_loss_of_its_pieces(rng):
    """Section 5, gradient accumulation: pieces of 4, 4 and 3 examples."""
    params, X, Y = small_model(rng)
    whole = s4.nlm_backward(1.0, s4.nlm_forward(X, Y, params)[1])
    sums = {name: 0.0 for name in whole}
    for piece in (slice(0, 4), slice(4, 8), slice(8, 11)):
        grads = s4.nlm_backward(1.0, s4.nlm_forward(X[piece], Y[piece], params)[1])
        sums = {name: sums[name] + len(Y[piece]) / len(Y) * g for name, g in grads.items()}
    assert all(sums[k] == pytest.approx(whole[k], rel=1e-9, abs=1e-14) for k in whole)


@pytest.mark.parametrize(
    "schedule, expected",
    [
        (lambda t: s4.wsd(t, 1.0, 0, 10, 10, 0.2), {0: 1, 5: 0.6, 10: 0.2, 99: 0.2}),
        (
            lambda t: s4.warmup_cosine(t, 1.0, 4, 24, 0.1),
            {0: 0.2, 4: 1, 14: 0.55, 24: 0.1, 99: 0.1},
        ),
        (lambda t: s4.warmup_cosine(t, 1.0, 0, 10), {0: 1, 5: 0.5, 10: 0}),
        (lambda t: s4.warmup_cosine(t, 1.0, 10, 10, 0.1), {9: 10 / 11, 10: 1, 11: 0.1}),
        (
            lambda t: s4.wsd(t, 1.0, 4, 20, 10, 0.2),
            {0: 0.2, 4: 1, 10: 1, 15: 0.6, 20: 0.2, 99: 0.2},
        ),
    ],
)
def test_schedules(schedule, expected):
    assert {t: schedule(t) for t in expected} == pytest.approx(expected)


@pytest.mark.parametrize("name", s4.SCHEDULES)
def test_every_schedule_of_the_report_peaks_at_its_rate(name):
    rate_at, factor = s4.SCHEDULES[name]
    rates = np.array([rate_at(t, 2.0, 100) for t in range(101)])
    assert rates.max() == pytest.approx(2.0) and (rates >= 0).all() and 0 < factor <= 1
    rises = {"warmup_cosine": 5, "wsd": 5}.get(name, 0)
    assert np.diff(rates)[:rises] == pytest.approx(2.0 / 6 * np.ones(rises))
    assert (np.diff(rates)[rises:] <= 0).all()
    assert rates[-1] == (2.0 if name == "constant" else 0)
    if name == "wsd":
        assert (rates[5:81] == 2).all() and rates[90] == pytest.approx(1)


# The language model


@pytest.mark.parametrize("V, context", [(6, 3), (1, 1), (2, 5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_every_gradient_of_the_network(rng, V, context, smoothing):
    params, X, Y = small_model(rng, V, context)
    _, cache = s4.nlm_forward(X, Y, params, smoothing)
    assert_gradients(
        lambda: s4.nlm_forward(X, Y, params, smoothing)[0],
        list(params.values()),
        lambda dy: [s4.nlm_backward(dy, cache)[k] for k in params],
    )


def test_the_first_weights_have_the_sizes_of_stage_3(rng):
    params = s4.nlm_init(50, 4, 25, 400, rng, np.float64)
    assert {name: p.shape for name, p in params.items()} == {
        "C": (50, 25),
        "H": (100, 400),
        "d": (400,),
        "U": (400, 50),
        "b": (50,),
    }
    sizes = {"C": 1, "H": 0.1, "d": 0, "U": 0.1 / 20, "b": 0}
    assert {name: p.std() for name, p in params.items()} == pytest.approx(sizes, rel=0.05)
    assert s4.nlm_init(5, 1, 2, 3, rng)["C"].dtype == np.float32


def test_label_smoothing_is_the_cross_entropy_of_a_blurred_target(rng):
    params, X, Y = small_model(rng, V=4)
    h = np.tanh(params["C"][X].reshape(11, -1) @ params["H"] + params["d"])
    pi = np.exp(h @ params["U"] + params["b"])
    pi /= pi.sum(axis=1, keepdims=True)
    q = np.full((11, 4), 0.1 / 4) + 0.9 * np.eye(4)[Y]
    assert s4.nlm_forward(X, Y, params, 0.1)[0] == pytest.approx(-(q * np.log(pi)).sum() / 11)
    # the best scores: one context, π = q there, so the target leads by ln(0.9·V/0.1 + 1)
    V, lead = 64, math.log(0.9 * 64 / 0.1 + 1)
    assert lead == pytest.approx(6.4, abs=0.05)
    params = s4.nlm_init(V, 1, 1, 1, rng, np.float64)
    params["U"] *= 0
    params["b"][7] = lead
    loss, cache = s4.nlm_forward([[0]], [7], params, 0.1)
    assert s4.nlm_backward(1.0, cache)["b"] == pytest.approx(np.zeros(V), abs=1e-12)


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
    s4.train(params, X, Y, make(params, lr), lambda t, r: s4.wsd(t, r, 0, 150, 150), 150, 32)
    assert s4.nlm_score(ids, params, 2) < 0.4 * math.log(5)


def test_training_clips_and_asks_the_schedule_at_every_step(rng):
    """Three steps by hand: batches of each epoch's permutation, clipped at 1, at the rate asked."""
    params, X, Y = small_model(rng)  # 11 examples
    for p in params.values():
        p *= 3  # so that the gradient is longer than 1
    mine, asked = {name: p.copy() for name, p in params.items()}, []

    def schedule(step, lr):
        asked.append((step, lr))
        return lr * (step + 1)

    sgd = s4.SGD(params, 0.5)
    losses = s4.train(params, X, Y, [sgd], schedule, 3, batch_size=5, seed=4)
    assert asked == [(0, 0.5), (1, 0.5), (2, 0.5)] and sgd.lr == 1.5
    again = np.random.default_rng(4)
    first, second = again.permutation(11), again.permutation(11)
    clipped = []
    for step, batch in enumerate((first[:5], first[5:10], second[:5])):
        loss, cache = s4.nlm_forward(X[batch], Y[batch], mine)
        grads = s4.nlm_backward(1.0, cache)
        norm = math.sqrt(sum((g * g).sum() for g in grads.values()))
        clipped.append(norm > 1)
        for name, g in grads.items():
            mine[name] -= 0.5 * (step + 1) * g * min(1, 1 / (norm + 1e-6))
        assert losses[step] == pytest.approx(loss)
    assert any(clipped) and all(mine[k] == pytest.approx(params[k], rel=1e-9) for k in mine)
    untouched = params["H"].copy()
    assert len(s4.train(params, X, Y, [sgd], schedule, 0)) == 0
    assert np.array_equal(params["H"], untouched)


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_loss_or_a_gradient_that_is_not_finite_stops_the_training(rng, monkeypatch, wrong):
    params, X, Y = small_model(rng)
    if wrong == "loss":
        forward = s4.nlm_forward
        monkeypatch.setattr(s4, "nlm_forward", lambda *given: (math.nan, forward(*given)[1]))
    else:
        nothing = {name: np.full(p.shape, np.nan) for name, p in params.items()}
        monkeypatch.setattr(s4, "nlm_backward", lambda dloss, cache: nothing)
    with pytest.raises(ValueError, match="step 1: loss .*, gradient norm .*; expected finite"):
        s4.train(params, X, Y, [s4.SGD(params, 0.1)], lambda t, lr: lr, 2)


def test_progress_is_one_line_at_the_end_when_piped(capsys):
    s4.progress("half")
    assert capsys.readouterr().out == ""
    s4.progress("done", last=True)
    assert capsys.readouterr().out == "done\n"


def test_a_training_run_with_a_name_says_how_it_ended(rng, capsys):
    params, X, Y = small_model(rng)
    losses = s4.train(params, X, Y, [s4.SGD(params, 0.1)], lambda t, lr: lr, 7, 4, name="run")
    mean = losses.mean() / math.log(2)
    assert capsys.readouterr().out == f"  run: step 7, {mean:.3f} bits\n"
    s4.train(params, X, Y, [s4.SGD(params, 0.1)], lambda t, lr: lr, 7, 4)
    assert capsys.readouterr().out == ""


def test_the_rates_are_those_of_the_sweep():
    """benchmarks/results/stage04_rates.md: the best of every method, schedule and the long run."""
    text = (ROOT / "benchmarks/results/stage04_rates.md").read_text(encoding="utf-8")
    cells = [line.split(" | ") for line in text.splitlines() if "**" in line]
    best = {row[0].strip("| "): float(row[1]) for row in cells}
    means = {
        row[0].strip("| "): float(cell.strip("*| "))
        for row in cells
        for cell in row
        if "**" in cell
    }
    assert {name: rate for name, (_, rate) in s4.METHODS.items()} == pytest.approx(
        {name: best[name] for name in s4.METHODS}, rel=0.01
    )
    method, schedule = s4.PAIR
    assert method == min(s4.METHODS, key=means.get) and schedule == min(s4.SCHEDULES, key=means.get)
    rate = s4.METHODS[method][1]
    assert {name: rate * factor for name, (_, factor) in s4.SCHEDULES.items()} == pytest.approx(
        {name: best[name] for name in s4.SCHEDULES}, rel=0.01
    )
    assert best["the long run"] == rate * s4.SCHEDULES[schedule][1]
    assert f"{s4.SMALL}, and {s4.LONG} for the long run" in text


def test_parameter_groups_train_each_its_part(rng):
    params, X, Y = small_model(rng)
    before = {name: p.copy() for name, p in params.items()}
    head = {name: params[name] for name in ("U", "b")}
    s4.train(params, X, Y, [s4.SGD(head, 0.1)], lambda t, lr: lr, 2, 4)
    assert all(np.array_equal(params[k], before[k]) == (k not in head) for k in params)


def test_fit_multiplies_the_three_rates_and_learns_only_what_it_is_given(monkeypatch):
    seen = {}

    def train(params, X, Y, optimizers, schedule, steps, batch_size, seed, name):
        seen.update(X=X, Y=Y, rates=[o.lr for o in optimizers], at=schedule(0, 1.0), steps=steps)
        seen.update(batch=batch_size, seed=seed, name=name, shape=params["H"].shape)
        return "losses"

    monkeypatch.setattr(s4, "train", train)
    monkeypatch.setitem(s4.METHODS, "mine", (lambda P, lr: [s4.SGD(P, lr)], 3.0))
    monkeypatch.setitem(s4.SCHEDULES, "sched", (lambda t, lr, T: lr * T + t, 0.5))
    params, losses = s4.fit(np.arange(20), 20, "mine", "sched", (6, 11, 4), 9, 0.25, "title")
    assert losses == "losses" and params["H"].shape == (128, 6) and seen["rates"] == [0.375]
    assert (seen["at"], seen["steps"], seen["batch"]) == (11, 11, 4)
    assert (seen["seed"], seen["name"]) == (9, "title")
    assert seen["X"].tolist() == [list(range(i, i + 8)) for i in range(12)]
    assert seen["Y"].tolist() == list(range(8, 20))


def test_the_text_is_split_in_three():
    ids, V, tune, cut = s4.split("ba" * 500)
    assert (V, tune, cut) == (2, 810, 900) and ids[:4].tolist() == [1, 0, 1, 0]


def test_the_pair_that_is_best_on_development_is_chosen(monkeypatch, capsys):
    """Scores come from the development piece alone, the highest loses, and nothing else decides."""
    asked = []

    def fit(ids, V, method, schedule, size, seed):
        assert len(ids) == 810
        return {"method": method}, np.arange(30.0)  # of which the last six are averaged

    def nlm_score(ids, params, context):
        asked.append(len(ids))
        return {"SGD": 3.0, "Adam": 2.0, "Lion": 2.5}[params["method"]]

    monkeypatch.setattr(s4, "fit", fit)
    monkeypatch.setattr(s4, "nlm_score", nlm_score)
    pairs = [(method, "wsd") for method in ("SGD", "Adam", "Lion")]
    assert s4.compete("title", pairs, "ba" * 500, (4, 30, 7), 0) == ("Adam", "wsd")
    out = capsys.readouterr().out
    assert asked == [98, 98, 98]  # 90 to score, 8 of context
    assert "The best: Adam with wsd. The worst: 1.443 more." in out  # 1 nat is 1.443 bits
    assert f"{0.0156 * s4.SCHEDULES['wsd'][1]:6.2g}     38.231         2.885" in out
    assert "title: the same 30 batches of 7" in out


@pytest.mark.parametrize("fast", [False, True])
def test_the_long_run_learns_all_of_the_training_text_and_is_scored_on_the_rest(
    monkeypatch, capsys, fast
):
    runs, scored = [], []

    def fit(ids, V, method, schedule, size, seed, name=None):
        runs.append((len(ids), method, schedule, size, seed, name))
        return {}, np.ones(size[1])

    def nlm_score(ids, params, context):
        scored.append(len(ids))
        return 1.25

    monkeypatch.setattr(s4, "fit", fit)
    monkeypatch.setattr(s4, "nlm_score", nlm_score)
    s4.report_language("ba" * 500, fast, 7)
    small, long = ((64, 25, 128), (64, 100, 128)) if fast else (s4.SMALL, s4.LONG)
    assert runs[-1] == (900, *s4.PAIR, long, 7, "long run") and scored[-1] == 100 + s4.CONTEXT
    first = list(s4.METHODS)[0]  # all scores are the same, and the first is as good as any
    pairs = [(method, "warmup_cosine") for method in s4.METHODS]
    pairs += [(first, schedule) for schedule in s4.SCHEDULES]
    assert runs[:-1] == [(810, *pair, small, 7, None) for pair in pairs]
    line = "held-out: 1.250 nats/char | 1.803 bits/char | perplexity 3.49   (stage 4, the neural"
    assert line in capsys.readouterr().out


def test_a_walk_ends_at_the_goal_or_counts_for_nothing():
    """A step leaves 0.9 of x: ½x² falls below 0.04 at step 12, as 0.9^12 = 0.282 < 0.283."""
    race = (lambda x: (0.5 * (x @ x), x), (1.0, 0.0), 0.04)
    make = lambda P, lr: [s4.SGD(P, lr)]  # noqa: E731
    for limit in (20, 12):
        places = s4.walk(race, limit, make, 0.1)
        assert [place[0] for place in places] == pytest.approx([0.9**t for t in range(13)])
    assert s4.walk(race, 11, make, 0.1) == []


def test_a_walk_that_leaves_the_map_is_out():
    """A rate that jumps to -4 and back into the goal would win otherwise."""

    class Jumps:
        def __init__(self, params):
            self.params, self.steps = params, iter([-5.0, 4.0])

        def step(self, grads):
            self.params["x"] += next(self.steps)

    bowl = lambda x: (0.5 * x[0] ** 2, x)  # noqa: E731
    assert s4.walk((bowl, (1.0, 1.0), 0.01), 9, lambda P, lr: [Jumps(P)], 1.0) == []


# Bad input


P = {"w": np.ones((2, 3))}
NESTEROV = s4.SGD(P, 0.1, 0.9, nesterov=True)
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
    r"'b'\] has shape \(3,\); Muon expected a matrix": lambda: s4.Muon({"b": np.ones(3)}),
    "ns_steps is 0": lambda: s4.Muon(P, ns_steps=0),
    r"grads are \['v'\]; expected \['w'\]": lambda: s4.SGD(P, 1).step({"v": P["w"]}),
    "grads are list": lambda: s4.SGD(P, 1).step([P["w"]]),
    r"grads\['w'\] has shape \(3, 2\)": lambda: s4.SGD(P, 1).step({"w": P["w"].T}),
    r"the parts of a state are \[\]; expected": lambda: s4.SGD(P, 1).load_state_dict({}),
    "the parts of a state are NoneType": lambda: s4.SGD(P, 1).load_state_dict(None),
    "of 'Lion'": lambda: s4.AdamW(P).load_state_dict(
        {**s4.AdamW(P).state_dict(), "optimizer": "Lion"}
    ),
    r"m\['w'\] has shape \(2, 3\)": lambda: s4.Adam({"w": np.ones(3)}).load_state_dict(
        s4.Adam(P).state_dict()
    ),
    r"G is float64 \(3,\)": lambda: s4.orthogonalize(np.ones(3)),
    "steps is 0": lambda: s4.orthogonalize(np.ones((2, 2)), 0),
    "max_norm is 0": lambda: s4.clip_grad_norm(P, 0),
    "grads are None; expected a dict": lambda: s4.clip_grad_norm(None, 1),
    "grads are NoneType": lambda: s4.scaled_step(s4.SGD(P, 1), None, 1),
    "scale is 0": lambda: s4.scaled_step(s4.SGD(P, 1), P, 0),
    r"params\['l'\] is list; expected a float32": lambda: s4.adamw_groups({"l": [1.0]}, 1),
    "max_norm is nan": lambda: s4.clip_grad_norm(P, math.nan),
    "step is -1": lambda: s4.wsd(-1, 1.0, 1, 9, 2),
    "warmup_steps is None": lambda: s4.warmup_cosine(0, 1.0, None, 9),
    "lr is 0.0": lambda: s4.wsd(0, 0.0, 1, 9, 2),
    "decay_steps is 0": lambda: s4.wsd(0, 1.0, 1, 9, 0),
    "total_steps is 0": lambda: s4.warmup_cosine(0, 1.0, 0, 0),
    "total_steps is 5; expected a number, 6 <=": lambda: s4.warmup_cosine(0, 1.0, 6, 5),
    "total_steps is 9; expected a number, 10 <=": lambda: s4.wsd(0, 1.0, 6, 9, 4),
    "min_lr is 2": lambda: s4.wsd(0, 1.0, 0, 9, 9, 2),
    "min_lr is -1": lambda: s4.warmup_cosine(0, 1.0, 0, 9, -1),
    "curvatures are 2": lambda: s4.proven_rates(2, 1),
    "lr is 1.5; expected a number, 1e-300 <= lr < 1$": lambda: s4.noise_floor(1.5, 2, 1, 1),
    "lr is 1; expected": lambda: s4.noise_floor(1, 2, 1, 1),
    "curvature is -1": lambda: s4.noise_floor(-0.5, -1, 1, 1),
    "lr is -0.5; expected a number, 1e-300": lambda: s4.noise_floor(-0.5, 1, 1, 1),
    "noise_variance is -1": lambda: s4.noise_floor(0.5, 1, -1, 1),
    "momentum is 0; nesterov=True": lambda: setattr(NESTEROV, "momentum", 0),
    "momentum is 0; nesterov=": lambda: setattr(s4.SGD(P, 1), "nesterov", True),
    "nesterov is 'no'": lambda: s4.Muon(P, nesterov="no"),
    "momentum is None": lambda: setattr(NESTEROV, "momentum", None),
    r"params\['h'\] is float16": lambda: s4.Adam({"h": np.ones(2, np.float16)}),
    r"params\['c'\] is complex128": lambda: s4.Adam({"c": np.ones(2, complex)}),
    "params are None": lambda: s4.SGD(None, 1),
    "G is float16": lambda: s4.orthogonalize(np.ones((2, 2), np.float16)),
    "G is bool": lambda: s4.orthogonalize(np.ones((2, 2), bool)),
    r"grads\['w'\] has shape \(\) and is object": lambda: s4.SGD(P, 1).step({"w": None}),
    r"grads\['w'\] has shape \(2, 3\) and is comp": lambda: s4.SGD(P, 1).step({"w": P["w"] + 1j}),
    r"m\['w'\] has shape \(2, 3\) and is <U1": lambda: s4.Lion(P).load_state_dict(
        {**s4.Lion(P).state_dict(), "state": {"m": {"w": np.full((2, 3), "a")}}}
    ),
    r"settings are \['lr'\]; expected": lambda: s4.Lion(P).load_state_dict(
        {**s4.Lion(P).state_dict(), "settings": {"lr": 1}}
    ),
    r"state are \['v'\]; expected \['m'\]": lambda: s4.Lion(P).load_state_dict(
        {**s4.Lion(P).state_dict(), "state": {"v": {}}}
    ),
    "t is -1": lambda: s4.Lion(P).load_state_dict({**s4.Lion(P).state_dict(), "t": -1}),
    "t is 1.0": lambda: s4.Lion(P).load_state_dict({**s4.Lion(P).state_dict(), "t": 1.0}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


@pytest.mark.parametrize("wide", [np.float16, np.float32, np.longdouble])
def test_a_narrow_zero_is_a_zero_and_warns_of_nothing(wide):
    """float32(0) >= 1e-300 is true in NumPy, as the bound is rounded to float32: 0 is no rate."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in (
            lambda zero: s4.SGD({"w": np.ones(2)}, zero),
            lambda zero: s4.noise_floor(0.1, zero, 1, 1),
            lambda zero: s4.clip_grad_norm({"w": np.ones(2)}, zero),
            lambda zero: s4.warmup_cosine(0, zero, 1, 2),
        ):
            with pytest.raises(ValueError, match="is 0.0; expected a number, 1e-300 <="):
                call(wide(0))
        assert s4.SGD({"w": np.ones(2)}, wide(0.5)).lr == 0.5


@pytest.mark.parametrize("wrong", [None, "w", 1.0, [], {}, np.ones(2)])
def test_groups_need_a_dict_of_parameters(wrong):
    with pytest.raises(ValueError, match="params are .*; expected a dict"):
        s4.adamw_groups(wrong, 0.1)


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
    ball = s4.SGD(params, 0.1, 0.9, nesterov=True)
    with pytest.raises(ValueError):
        ball.momentum = 0
    assert ball.momentum == 0.9
    s4.SGD(params, 0.1, 0.5, nesterov=True).load_state_dict(ball.state_dict())


def test_settings_may_change_and_are_saved_as_they_are():
    params = {"x": np.zeros(1)}
    ball = s4.SGD(params, 0.1, 0.9)
    ball.step({"x": np.ones(1)})
    ball.momentum = 0  # from here on it is plain descent
    ball.step({"x": np.ones(1)})
    assert params["x"] == pytest.approx([-0.2])
    fresh = s4.SGD({"x": np.zeros(1)}, 1.0, 0.5)
    fresh.load_state_dict(ball.state_dict())
    assert (fresh.momentum, fresh.lr, fresh.t) == (0, 0.1, 2)
    ball.lr = 0  # a schedule may end there
    fresh.load_state_dict(ball.state_dict())
    assert fresh.lr == 0


# The report


@pytest.fixture(scope="module")
def fast_reports():
    return two_fast_reports(s4.main)


def test_report_is_deterministic_and_complete(fast_reports):
    first, second = fast_reports
    assert first == second
    for heading in ("proven", "race", "Rosenbrock", *s4.METHODS, *s4.SCHEDULES):
        assert heading in first
    assert "The heavy ball needs 7 times fewer steps" in first  # 93 for 691
    lines = first.splitlines()
    top = next(i for i, line in enumerate(lines) if line.startswith("Rosenbrock from S to E")) + 2
    (row, column), *_ = [(i, lines[top + i].find("E")) for i in range(15) if "E" in lines[top + i]]
    assert abs(2.0 - 0.2 * row - 1) < 0.3  # the walk that is drawn ends near (1, 1)
    assert abs(-1.9 + 3.8 / 37 * (column - 2) - 1) < 0.2
    ball = next(line for line in lines if line.startswith("  heavy ball, β") and "(" in line)
    make = s4.METHODS["heavy ball, β = 0.9"][0]
    for surface, rate in (("quadratic", 10 ** (-5 / 3)), ("Rosenbrock", 10 ** (-8 / 3))):
        needed = len(s4.walk(s4.RACES[surface], 100, make, rate)) - 1
        assert needed in (98, 83) and f"{needed} ({rate:.2g})" in ball
    rows = {line[10:25].strip(): line.split() for line in first.splitlines() if line[:5] == "  100"}
    needed = math.log(1e-6) / math.log(99 / 101)
    assert int(rows["descent, best"][-1]) == math.ceil(needed) == 691
    assert rows["descent, 2.01/Λ"][-1] == "diverges" and rows["heavy ball"][-1] == "93"
    for name in ("descent, best", "descent, 2.01/Λ"):
        assert rows[name][-3:-1] == [f"{s4.proven_rates(1, 100)[name][2]:.5f}"] * 2
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
    with pytest.raises(ValueError, match=r"total_steps is np.uint8\(210\); expected a number, 300"):
        s4.wsd(1, 1.0, np.uint8(200), np.uint8(210), np.uint8(100))
    assert s4.noise_floor(0.1, 2, 1, np.uint8(200)) == s4.noise_floor(0.1, 2, 1, 200)
    shape = s4.nlm_init(5, np.uint8(16), np.uint8(16), 4, rng)["H"].shape
    assert shape == (256, 4)


def test_landscapes_take_lists_and_integers_of_any_width():
    for landscape in LANDSCAPES:
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
        (lambda: s4.noise_floor(10**400, 1, 1, 1), "lr is 1000"),
        (lambda: s4.proven_rates("a", 1), "mu is 'a'"),
        (lambda: s4.proven_rates(0, 1), "mu is 0"),
        (lambda: s4.nlm_init("a", 2, 3, 4, rng), "vocab_size is 'a'"),
        (lambda: s4.nlm_init(5, 2, True, 4, rng), "n_embd is True"),
        (lambda: s4.examples(ids, 0), "context is 0"),
        (lambda: s4.examples(ids, 5), r"shape \(5,\); expected \(n,\) with n > context = 5"),
        (lambda: s4.examples(ids[None], 2), r"shape \(1, 5\)"),
        (lambda: s4.nlm_forward(X[:, :1], Y, params), r"X and Y have shapes \(3, 1\)"),
        (lambda: s4.nlm_forward(X[:2], Y, params), r"X and Y have shapes \(2, 2\) and \(3,\)"),
        (lambda: s4.nlm_forward(X[:0], Y[:0], params), r"X and Y have shapes \(0, 2\)"),
        (lambda: s4.nlm_forward(X, Y, params, 1.0), "smoothing is 1.0"),
        (lambda: s4.train(params, X, Y, sgd, lambda t, lr: lr, "a"), "steps is 'a'"),
        (lambda: s4.train(params, X, Y[:2], sgd, lambda t, lr: lr, 1), "3 contexts and 2 targets"),
        (lambda: s4.train(params, X, Y, sgd, lambda t, lr: lr, 1, 0), "batch_size is 0"),
        (lambda: s4.clip_grad_norm({"a": [3.0, 4.0]}, 1), r"grads\['a'\] is list"),
        (lambda: s4.clip_grad_norm({"a": np.array([3])}, 1), r"grads\['a'\] is int64"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_the_map_of_the_valley():
    """The minimum at (1, 1) and (0, 0) lie below 1; (-1.9, -0.8) is 1,951 high, (1.9, 2) 260."""
    lines = s4.draw([(-1.9, 2.0), (0.0, 0.0), (1.0, 1.0)], width=39, height=15)
    assert len(lines) == 15 and all(len(line) == 39 for line in lines)
    assert lines[0][0] == "S" and lines[10][19] == "o" and lines[5][29] == "E"
    assert lines[14][0] == "-" and lines[0][38] == "-" and lines[10][18] == "."
    x, y = np.linspace(-1.9, 1.9, 39), np.linspace(-0.8, 2.0, 15)
    for row in range(15):
        for column in range(39):
            height = (1 - x[column]) ** 2 + 100 * (y[14 - row] - x[column] ** 2) ** 2
            mark = " .:-"[sum(height > level for level in (1, 10, 100))]
            assert lines[row][column] in (mark, "S", "o", "E")


def test_training_that_diverges_says_at_which_step(rng):
    params = s4.nlm_init(5, 2, 3, 4, rng)
    X, Y = s4.examples(rng.integers(0, 5, 40), 2)
    loud = lambda step, lr: 1e299 if step == 3 else lr  # noqa: E731
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="step 5: loss (nan|inf)"):
        s4.train(params, X, Y, [s4.SGD(params, 1e-3)], loud, 9)


def test_a_text_of_a_thousand_different_characters_is_read(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(0x4E00 + i) for i in range(600)) * 2, encoding="utf-8")
    s4.main(["--fast", "--text", str(path)])
    check_held_out_line(capsys.readouterr().out)
