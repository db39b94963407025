"""Stage 2: the calculus, the models and the three engines against closed forms and differences."""

import gc
import math
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, assert_gradients, relative_error

import stage02_autograd as s
from stage02_autograd import MLP, Dual, Layer, Neuron, Tensor, Value, grad_check

# Every elementwise formula, run on numbers, Duals, Values and Tensors alike.
FORMULAS = {
    "sum": lambda a, b: a + b + 3,
    "reflected": lambda a, b: (2 - a) * (2 / b) + 5 * a,
    "quotient": lambda a, b: a / b / 7 - b / a,
    "reuse": lambda a, b: a * a + (a + a) * b * b,
    "negate": lambda a, b: -a - -b,
    "powers": lambda a, b: a**3 + b**-2 + a**0.5 + b**0 + a**-1.5,
    "exponent": lambda a, b: 2**a + a**b,
    "functions": lambda a, b: (a * b).exp() + a.log() * b.tanh() + (a - b).sigmoid(),
    "relu": lambda a, b: (a - b).relu() * a + (b - a).relu(),
    "diamond": lambda a, b: (c := a * b) * c + c.tanh() * (c + a),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("at", [(1.7, 0.6), (0.3, 2.9)])
def test_every_engine_gives_the_numerical_gradient(name, at):
    f = FORMULAS[name]
    numeric = s.numerical_gradient(lambda x: f(Dual(x[0]), Dual(x[1])).data, at)
    a, b = map(Value, at)
    y = f(a, b)
    y.backward()
    reverse = [a.grad, b.grad]
    forward = [
        f(Dual(at[0], 1), Dual(at[1])).tangent,
        f(Dual(at[0]), Dual(at[1], 1)).tangent,
    ]
    s_a, s_b = map(Tensor, at)
    f(s_a, s_b).backward()
    assert relative_error(reverse, numeric) < 1e-8
    np.testing.assert_allclose(reverse, forward, rtol=1e-13)
    np.testing.assert_allclose(reverse, [s_a.grad, s_b.grad], rtol=1e-13)
    assert grad_check(f, np.full((2, 1, 3), at[0]), np.full((4, 1), at[1])) < 1e-7


@pytest.mark.parametrize("kind", [Dual, Value, Tensor])
def test_values_are_those_of_plain_arithmetic(kind):
    a, b = kind(1.7), kind(-0.6)
    pairs = [
        (5 / kind(49), 5 / 49),
        (2 - a * b + b / 3, 2 - 1.7 * -0.6 + -0.6 / 3),
        (-(b**3) - a**-2 + 2 ** kind(3), -((-0.6) ** 3) - 1.7**-2 + 8),
        (a.exp() + a.log() + b.tanh(), math.exp(1.7) + math.log(1.7) + math.tanh(-0.6)),
        (b.sigmoid() + a.relu() + b.relu(), 1 / (1 + math.exp(0.6)) + 1.7 + 0),
        (a**b, 1.7**-0.6),
    ]
    np.testing.assert_allclose([float(x.data) for x, _ in pairs], [y for _, y in pairs], rtol=1e-15)


def test_numerical_gradient_finds_the_shape_and_the_valley(rng):
    x = rng.normal(size=(2, 3))
    kept = x.copy()
    grad = s.numerical_gradient(lambda x: np.sum(x * x * x), x)
    assert grad.shape == (2, 3) and relative_error(grad, 3 * kept * kept) < 1e-9
    assert np.array_equal(x, kept)
    slope = s.numerical_gradient(math.exp, 1)
    assert isinstance(slope, float) and abs(slope - math.e) < 1e-9
    errors = [abs(s.numerical_gradient(math.exp, 1.0, h) - math.e) for h in (1e-1, 1e-2, 1e-3)]
    assert all(90 < a / b < 110 for a, b in zip(errors, errors[1:]))  # second order
    with pytest.raises(ValueError):
        s.numerical_gradient(lambda x: x, np.ones(3))


def test_reuse_accumulates_and_backward_twice_adds():
    a = Value(3)
    (a * a + a + a).backward()
    assert a.grad == 8.0
    b = Value(2.0)
    c = b * b
    y = c * c
    y.backward()
    assert (b.grad, c.grad, y.grad) == (32.0, 8.0, 1.0)
    y.backward()
    assert (b.grad, c.grad, y.grad) == (64.0, 16.0, 2.0)
    (c * 10).backward()  # a second result on a shared middle
    assert b.grad == 64.0 + 40.0


def test_unused_and_constant():
    a, b = Value(2.0), Value(5.0)
    (b * 0 + a).backward()
    assert (a.grad, b.grad) == (1.0, 0.0)
    a.backward()
    assert a.grad == 2.0


@pytest.mark.parametrize("scalar", [np.float64(2), np.float32(2), np.int64(2), 2, True + 1])
def test_numpy_scalars_mix_from_both_sides(scalar):
    v = Value(3.0)
    y = scalar * v + v / scalar - (scalar - v) + scalar / v
    assert type(y) is Value and math.isclose(y.data, 6 + 1.5 + 1 + 2 / 3)
    y.backward()
    assert type(v.grad) is float and math.isclose(v.grad, 2 + 0.5 + 1 - 2 / 9)


@pytest.mark.parametrize(
    "x, n, y, slope",
    [(0, 0, 1, 0), (0, 1, 0, 1), (0, 2, 0, 0), (0, 0.5, 0, math.inf), (-2, 3, -8, 12)]
    + [(-2, -1, -0.5, -0.25), (4, -0.5, 0.5, -0.0625), (-2, 2.0, 4, -4)],
)
def test_powers_at_the_edges(x, n, y, slope):
    v = Value(x)
    out = v**n
    out.backward()
    assert (out.data, v.grad) == (y, slope) and Dual(x, 1).__pow__(n).tangent == slope


def test_saturated_functions_stay_finite():
    for x, y in ((-800.0, 0.0), (-40.0, math.exp(-40)), (800.0, 1.0)):
        for kind in (Value, Tensor):
            v = kind(x)
            out = v.sigmoid()
            out.backward()
            assert math.isclose(float(out.data), y, rel_tol=1e-15) and 0 <= v.grad < 1e-10
    relu = Value(0.0).relu()
    relu.backward()
    assert relu._prev[0].grad == 0.0 and math.copysign(1, Value(-3).relu().data) == 1


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: Value(-1.0).log(), "log needs x > 0, got -1.0"),
        (lambda: Tensor([1.0, 0.0]).log(), "log needs x > 0, got 0.0"),
        (lambda: Value(-2.0) ** 0.5, "base < 0 needs a whole exponent, got -2.0"),
        (lambda: Tensor([4.0, -3.0]) ** 1.5, "got -3.0"),
        (lambda: Value("x"), "x"),
        (lambda: Tensor(["x"]), "expected real numbers"),
        (lambda: Tensor([1.0, 2.0]).backward(), r"gradient of shape \(2,\)"),
        (lambda: Tensor([1.0, 2.0]).backward([1.0]), r"gradient of shape \(2,\)"),
        (lambda: Tensor(np.ones((2, 3))) @ np.ones((2, 3)), r"got \(2, 3\) @ \(2, 3\)"),
        (lambda: Tensor(np.ones(3)) @ 2.0, r"got \(3,\) @ \(\)"),
        (lambda: Tensor(np.ones(3)) + np.ones(2), "broadcast"),
        (lambda: Neuron(3)([1.0, 2.0]), "expected 3 inputs, got 2"),
        (lambda: s.standardise([5, 5]), "two different numbers"),
        (lambda: s.admission(learning_rate=0), "learning_rate must be > 0, got 0"),
        (lambda: s.cross_entropy(np.ones(2), np.array([0, 2])), "answers must be 0 or 1"),
        (lambda: s.gradient_descent(LINE, ZERO, [1.0, 2.0], [1.0], 0.1, 1), "one y for each"),
        (lambda: s.gradient_descent(LINE, ZERO, [9.0], [1.0], 1e9, 99), "too big"),
    ],
)
def test_bad_input_says_what_was_expected(wrong, words):
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=words):
        wrong()


def test_foreign_operands_are_type_errors_and_zero_division_stays():
    for make in (lambda: Value(1) + "a", lambda: "a" ** Value(1), lambda: Value(1) * Dual(1)):
        with pytest.raises(TypeError):
            make()
    with pytest.raises(ZeroDivisionError):
        Value(1) / 0


def test_chain_of_100000_differentiates_and_is_freed_without_a_collection():
    gc.collect()
    gc.disable()
    try:
        for kind, links in ((Value, 100_000), (Tensor, 20_000)):
            before = sum(type(o) is kind for o in gc.get_objects())
            x = y = kind(1.0)
            for i in range(links):
                y = y + x if i % 2 else y * 1.0
            y.backward()
            assert x.grad == links // 2 + 1
            assert len(s.topological_order(y)) == 1 + links + links // 2
            del x, y
            assert sum(type(o) is kind for o in gc.get_objects()) == before
    finally:
        gc.enable()


def test_topological_order_on_random_graphs():
    draw = random.Random(0)
    for _ in range(20):
        nodes = [Value(draw.random()) for _ in range(4)]
        for _ in range(60):
            nodes.append(draw.choice(nodes) * draw.choice(nodes))
        order = s.topological_order(nodes[-1])
        position = {v: i for i, v in enumerate(order)}
        assert len(position) == len(order) and order[-1] is nodes[-1]
        assert all(position[p] < position[v] for v in order for p in v._prev)


def test_to_dot_draws_every_node_and_edge_and_escapes_labels():
    a, b = Value(2.0, label='a{"|}'), Value(-3.0)
    y = a * a + b
    y.backward()
    dot = s.to_dot(y)
    assert dot.startswith("digraph") and dot.rstrip().endswith("}")
    assert dot.count("shape=record") == 4 and dot.count("->") == 6
    assert '[label="*"]' in dot and '[label="+"]' in dot and "data 1 | grad 1" in dot
    assert r"a\{\"\|\}" in dot and dot == s.to_dot(y)


def test_mlp_matches_micrograd_in_names_shape_and_gradient(rng):
    net = MLP(3, [4, 4, 1])
    assert len(net.parameters()) == 16 + 20 + 5 and isinstance(net([1.0, 2.0, 3.0]), Value)
    assert len(MLP(2, [3, 2])([1, 2])) == 2 and isinstance(MLP(2, [1, 1, 2])([1, 2])[1], Value)
    assert len(Layer(2, 5)([0.0, 1.0])) == 5
    assert len({p.data for p in net.parameters() if p.data}) == 12 + 16 + 4  # all different
    assert [p.data for p in MLP(3, [4], seed=1).parameters()] != [
        p.data for p in MLP(3, [4], seed=2).parameters()
    ]
    assert all(abs(p.data) < 1 for p in net.parameters())
    assert [n.nonlin for layer in net.layers for n in layer.neurons] == [True] * 8 + [False]
    x = rng.normal(size=3)
    net(list(x)).backward()
    h, tensors = Tensor(x), []
    for i, layer in enumerate(net.layers):
        W = Tensor([[w.data for w in n.w] for n in layer.neurons])
        b = Tensor([n.b.data for n in layer.neurons])
        tensors += [W, b]
        h = W @ h + b if i == 2 else (W @ h + b).relu()
    h.backward()
    for i, layer in enumerate(net.layers):
        np.testing.assert_allclose(
            [[w.grad for w in n.w] for n in layer.neurons], tensors[2 * i].grad
        )
        np.testing.assert_allclose([n.b.grad for n in layer.neurons], tensors[2 * i + 1].grad)
    net.zero_grad()
    assert all(p.grad == 0 for p in net.parameters())


SHAPED = {  # function, shapes of its inputs
    "broadcast missing": (lambda a, b: a * b + a, (3,), (2, 4, 3)),
    "broadcast ones": (lambda a, b: a / (b * b + 1), (2, 1, 3), (1, 4, 1)),
    "broadcast scalar": (lambda a, b: a - b, (), (2, 1)),
    "matmul": (lambda a, b: a @ b, (2, 3), (3, 4)),
    "matmul batched": (lambda a, b: a @ b, (5, 1, 2, 3), (4, 3, 2)),
    "matmul batch of one": (lambda a, b: a @ b, (1, 2, 3), (2, 3, 1)),
    "matvec": (lambda a, b: a @ b, (2, 4, 3), (3,)),
    "vecmat": (lambda a, b: a @ b, (3,), (2, 3, 4)),
    "dot": (lambda a, b: a @ b, (3,), (3,)),
    "array @ tensor": (lambda a: np.ones((2, 3)) @ a, (3, 2)),
    "sum": (lambda a: a.sum() * a.sum(axis=(0, 2)), (2, 3, 4)),
    "sum keepdims": (lambda a: a.sum(axis=-1, keepdims=True) * a, (2, 3)),
    "mean": (lambda a: a.mean() + a.mean(1, keepdims=True) * a.mean(axis=0), (2, 3)),
    "max": (lambda a: a.max() + a.max(axis=1) * a.max(axis=(0, 1)), (3, 4)),
    "max keepdims": (lambda a: (a - a.max(axis=-1, keepdims=True)).exp(), (2, 1, 3)),
    "reshape": (lambda a: a.reshape(3, -1) * a.reshape((3, 4)), (2, 6)),
    "transpose": (lambda a: a.transpose(2, 0, 1) * a.transpose((2, 0, -2)), (2, 3, 4)),
    "transpose all": (lambda a: a.T @ a.transpose().transpose(), (2, 3)),
    "integer": (lambda a: a[1] * a[-1, 2], (3, 4)),
    "slice": (lambda a: a[::2, 1:] + a[..., None][0, 1:, 0] + a[::-2, :-1], (3, 4)),
    "fancy": (lambda a: a[[0, 2, 0, 0]] * a[np.array([1, 1, 1, 1]), 1:], (3, 2)),
    "pairs": (lambda a: a[np.array([0, 0, 1]), np.array([2, 2, 1])], (2, 3)),
    "mask": (lambda a: a[np.array([True, False, True])], (3, 2)),
    "empty": (lambda a: a[0:0].sum() + a.sum(), (2, 2)),
    "softmax": (lambda a: a.exp() / a.exp().sum(axis=-1, keepdims=True), (1, 5)),
}


@pytest.mark.parametrize("name", SHAPED)
def test_tensor_shapes_and_gradients(name, rng):
    f, *shapes = SHAPED[name]
    arrays = [rng.normal(size=shape) for shape in shapes]
    assert grad_check(f, *arrays) < 1e-6
    out = f(*map(Tensor, arrays))
    if name.startswith(("mat", "vec", "dot")):
        np.testing.assert_array_equal(out.data, arrays[0] @ arrays[1])


def test_reductions_and_values_agree_with_numpy(rng):
    a = rng.normal(size=(2, 3, 4))
    for axis in (None, 0, -1, (0, 2), (1,)):
        for keep in (False, True):
            for op in ("sum", "mean", "max"):
                ours = getattr(Tensor(a), op)(axis=axis, keepdims=keep).data
                np.testing.assert_allclose(
                    ours, getattr(a, op)(axis=axis, keepdims=keep), strict=True
                )
    with pytest.raises(ValueError):
        Tensor(a).sum(axis=3)


def test_max_ties_share_equally_and_repeated_index_adds():
    a = Tensor([[1.0, 5.0, 5.0], [7.0, 7.0, 7.0]])
    a.max(axis=1).sum().backward()
    np.testing.assert_allclose(a.grad, [[0, 0.5, 0.5], [1 / 3] * 3])
    x = Tensor([1.0, 2.0, 3.0])
    (x[[0, 0, 2, 0]] * np.array([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    np.testing.assert_array_equal(x.grad, [1011, 0, 100])


def test_tensor_keeps_float32_and_the_callers_arrays(rng):
    a, b = rng.normal(size=(3, 2)).astype(np.float32), rng.normal(size=2)
    before = a.copy()
    t, u = Tensor(a), Tensor(b)
    y = ((t * 2 + 1) / 3 - 0.5).tanh().sigmoid()
    assert y.data.dtype == np.float32
    (y.max(axis=0).mean() + (t @ u).sum() + (u + 1).sum()).backward()
    assert t.grad.dtype == np.float32 and u.grad.dtype == np.float64 and u.grad.shape == (2,)
    np.testing.assert_array_equal(a, before)
    assert Tensor([1, 2]).data.dtype == np.float64 and (np.ones(2) + Tensor([1, 2])).shape == (2,)


def test_tensor_backward_accumulates_and_takes_an_upstream_gradient():
    t = Tensor([1.0, 2.0])
    y = t * t
    y.backward([1.0, 10.0])
    first = t.grad
    y.backward(np.array([1.0, 10.0]))
    np.testing.assert_array_equal(first, [2, 40])
    np.testing.assert_array_equal(t.grad, [4, 80])
    t.zero_grad()
    np.testing.assert_array_equal(t.grad, [0, 0])


def test_grad_check_catches_a_wrong_slope_and_nan():
    wrong = lambda a: Tensor(a.data**2, (a,), _slopes=(lambda g: g * a.data,))  # noqa: E731
    broken = lambda a: Tensor(a.data, (a,), _slopes=(lambda g: g * np.nan,))  # noqa: E731
    assert grad_check(wrong, [1.0, 2.0]) > 0.3 and not grad_check(broken, [1.0]) < 1e-6
    assert grad_check(lambda a: a * a, [1.0, 2.0]) < 1e-8


LINE = (s.neuron_forward, s.neuron_backward, s.mse)
ZERO = {"w": 0.0, "b": 0.0}


@pytest.mark.parametrize("N, D, J", [(1, 1, 1), (5, 3, 2), (4, 1, 7)])
@pytest.mark.parametrize("nonlinear", [True, False])
def test_hand_derived_network_backward(N, D, J, nonlinear, rng):
    inputs = [rng.normal(size=shape) for shape in ((N, D), (D, J), J, J, ())]

    def forward():
        return s.network_forward(*inputs, nonlinear=nonlinear)

    assert_gradients(lambda: forward()[0], inputs, lambda dy: s.network_backward(dy, forward()[1]))


def test_hand_derived_neuron_and_losses(rng):
    x, w, b = rng.normal(size=5), rng.normal(size=()), rng.normal(size=())

    def forward():
        return s.neuron_forward(x, w, b)

    assert_gradients(
        lambda: forward()[0], [x, w, b], lambda dz: s.neuron_backward(dz, forward()[1])
    )
    for loss, y in ((s.mse, x * 2), (s.cross_entropy, np.array([0, 1, 1, 0, 1]))):
        z = rng.normal(size=5) * 3
        numeric = s.numerical_gradient(lambda z, f=loss, y=y: f(z, y)[0], z)
        assert relative_error(loss(z, y)[1], numeric) < 1e-8
    value, dz = s.cross_entropy(np.array([-800.0, 800.0]), np.array([1, 0]))
    assert value == 800 and np.array_equal(dz, [-0.5, 0.5])


def test_descent_reaches_the_normal_equations_and_the_convex_optimum(rng):
    x = rng.normal(size=50)
    y = 2 * x - 1 + rng.normal(size=50)
    params, losses = s.gradient_descent(LINE, ZERO, x, y, 0.1, 400)
    np.testing.assert_allclose([params["w"], params["b"]], np.polyfit(x, y, 1), rtol=1e-9)
    assert all(b <= a + 1e-12 for a, b in zip(losses, losses[1:])) and ZERO["w"] == 0
    logistic = (s.neuron_forward, s.neuron_backward, s.cross_entropy)
    y = (y > 0) * 1.0
    y[:5] = 1 - y[:5]
    params, _ = s.gradient_descent(logistic, ZERO, x, y, 1.0, 3000)
    assert abs(s.sigmoid(params["w"] * x + params["b"]).mean() - y.mean()) < 1e-9


def test_admission_boundary_separates_and_creeps_to_the_middle_of_the_gap():
    runs = [s.admission(steps) for steps in (10, 100, 1000, 10000)]
    boundaries = [run["boundary"] for run in runs]
    assert all(1200 < b < 1300 for b in boundaries) and boundaries == sorted(boundaries)[::-1]
    assert boundaries[-1] < 1205 and runs[-1]["w"] > runs[-2]["w"]
    run = runs[2]  # two routes to p(1200)
    z = run["w"] * (1200 - run["boundary"]) / math.sqrt(80000)
    assert math.isclose(run["probability"], 1 / (1 + math.exp(-z)), rel_tol=1e-9)
    assert math.isclose(s.admission(1000, score=run["boundary"])["probability"], 0.5)


def test_without_tanh_a_network_is_one_neuron(rng):
    X, W, b, v = (rng.normal(size=shape) for shape in ((6, 3), (3, 4), 4, 4))
    flat = X @ (W @ v) + b @ v + 0.3
    np.testing.assert_allclose(s.network_forward(X, W, b, v, 0.3, nonlinear=False)[0], flat)
    assert not np.allclose(s.network_forward(X, W, b, v, 0.3)[0], flat)


def test_fast_report_is_complete_and_repeats(capsys):
    reports = []
    for _ in range(2):
        assert s.main(["--fast"]) is None
        reports.append(capsys.readouterr().out)
    before_timings = [report.split("\n6. ")[0] for report in reports]
    assert before_timings[0] == before_timings[1]
    rows = re.findall(r"^   ([a-z].*?)  +\d.* (\d\.\de[+-]\d\d)$", before_timings[0], re.M)
    assert len(rows) == 6 and all(float(gap) < 1e-12 for _, gap in rows)
    assert "p(1200)" in reports[0] and "held-out" not in reports[0]
    assert all(len(line) <= 100 for line in reports[0].splitlines())
    s.main(["--fast", "--seed", "1"])
    assert capsys.readouterr().out.split("\n6. ")[0] != before_timings[0]


@pytest.mark.parametrize("args", [["--seed", "x"], ["--seed", "-1"], ["--nonsense"]])
def test_wrong_command_line_is_one_line_and_status_2(args):
    run = subprocess.run(
        [sys.executable, ROOT / "stage02_autograd.py", *args], capture_output=True, text=True
    )
    assert run.returncode == 2 and run.stdout == "" and len(run.stderr.splitlines()) == 1
