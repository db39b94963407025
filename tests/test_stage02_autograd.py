"""Stage 2: the calculus, the models and the three engines against closed forms and differences."""

import gc
import math
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, assert_gradients, relative_error

import stage02_autograd as s
from stage02_autograd import MLP, Dual, Layer, Neuron, Number, Tensor, Value, grad_check


def test_first_page_by_hand():
    a, b = Number(3.0), Number(2.0)
    m = a * b
    y = m * a
    assert (m.data, y.data) == (6, 18)
    y.grad = 1.0
    y.hand_back()
    assert (m.grad, a.grad, b.grad) == (3, 6, 0)
    m.hand_back()
    assert (a.grad, b.grad) == (12, 9)
    for turned, slope in (((3.001, 2.0), a.grad), ((3.0, 2.001), b.grad)):
        moved = turned[0] * turned[1] * turned[0]
        assert abs((moved - 18) / 0.001 - slope) < 0.003
    square = a * a
    a.grad, square.grad = 0.0, 1.0
    square.hand_back()
    assert a.grad == 6  # both factors are a, and both ways add


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
    "waves": lambda a, b: a.sin() * b.cos() + (a * b).cos() - (a / b).sin(),
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
    errors = [abs(s.central_slope(math.exp, 1.0, h) - math.e) for h in (1e-1, 1e-2, 1e-3)]
    assert all(90 < a / b < 110 for a, b in zip(errors, errors[1:]))  # second order


@pytest.mark.parametrize(
    "f, x, slope",
    [(math.log, x, 1 / x) for x in (1e-5, 1e-7, 1e-12, 3.0, 1e9)]
    + [(math.exp, x, math.exp(x)) for x in (0, 1e-12, 1e-300, -20.0, 30.0)]
    + [
        (lambda x: math.sin(1000 * x), 1.0, 1000 * math.cos(1000)),
        (lambda x: 1e-11 * x * x, 1, 2e-11),
    ]
    + [(lambda x: 1e11 * x * x, -3, -6e11), (lambda x: 1 / x, -1e-3, -1e6), (abs, -1e-9, -1.0)]
    + [(math.sqrt, 1e-10, 5e4), (lambda x: x, 0, 1.0), (lambda x: 5.0, 2.0, 0.0)]
    + [(math.sin, 1e6, math.cos(1e6)), (abs, 0, 0.0), (lambda x: x**3, 0.0, 0.0)]
    + [(lambda x, c=c: math.sin(x) - math.sin(c), c, math.cos(c)) for c in (-0.017, 0.0013, 0.0021)]
    + [(lambda x: x * x, x, 6.0) for x in (np.int8(3), np.float16(3), np.array(3, np.uint16))],
)
def test_the_step_fits_the_function(f, x, slope):
    """Where f(c) is 0, f hides how much was rounded on the way; x itself still tells."""
    assert math.isclose(s.numerical_gradient(f, x), slope, rel_tol=1e-7, abs_tol=1e-30)


@pytest.mark.parametrize(
    "f, x, words",
    [
        (lambda x: x, np.ones(3), "one finite number"),
        (lambda x: math.nan, 1.0, "one finite number"),
        (lambda x: math.sqrt(x), 0.0, "both sides"),
        (math.exp, math.nan, "one finite number"),
        (math.exp, "x", "expected real numbers"),
        (math.exp, None, "expected real numbers"),
        (math.exp, 1j, "expected real numbers"),
        (np.log, [1.0, 0.0], "finite"),
    ],
)
def test_numerical_gradient_refuses(f, x, words):
    with pytest.raises(ValueError, match=words):
        s.numerical_gradient(f, x)


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


def test_reflected_operators_have_slopes_in_both():
    for f, slopes in ((Value.__rtruediv__, (-6 / 4, 1 / 2)), (Value.__rsub__, (-1, 1))):
        a, b = Value(2.0), Value(6.0)
        f(a, b).backward()
        assert (a.grad, b.grad) == slopes


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


@pytest.mark.parametrize("kind", [Value, Tensor])
@pytest.mark.parametrize(
    "base, n, y, by_base, by_n",
    [(0, 2, 0, 0, 0), (0, 1, 0, 1, 0), (0, 0, 1, 0, 0), (2, 3, 8, 12, 8 * math.log(2))]
    + [(2, 0, 1, 0, math.log(2)), (4, -0.5, 0.5, -0.0625, 0.5 * math.log(4)), (1, 9, 1, 9, 0)],
)
def test_powers_with_a_variable_exponent(kind, base, n, y, by_base, by_n):
    b, e = kind(base), kind(n)
    out = b**e
    out.backward()
    np.testing.assert_allclose([out.data, b.grad, e.grad], [y, by_base, by_n], rtol=1e-15)


def test_a_value_needs_a_slope_for_each_input():
    two = Value(2.0)
    assert Value(5.0, (two,), "+")._prev == (two,)  # as micrograd's constructor allows
    with pytest.raises(ValueError, match="'\\+' has 1 inputs, but 0 slopes"):
        Value(5.0, (two,), "+").backward()
    Value(5.0, (two,), "+", _slopes=(3.0,)).backward()
    assert two.grad == 3.0


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
        (lambda: Value("3"), "expected a real number, got '3'"),
        (lambda: Value(None), "expected a real number, got None"),
        (lambda: Value([1.0]), "expected a real number"),
        (lambda: Dual(1.0, "x"), "expected a real number, got 'x'"),
        (lambda: Value(-2.0) ** Value(2.0), "log needs x > 0, got -2.0"),
        (lambda: Tensor([1.0, 2.0]).item(), "size 1"),
        (lambda: Tensor(None), "expected real numbers"),
        (lambda: Tensor.concatenate([]), "at least one array"),
        (lambda: Tensor.concatenate([np.ones((2, 3)), np.ones((2, 2))]), "dimension"),
        (lambda: Tensor(np.ones((2, 3))).backward(np.ones((3, 2))), r"shape \(2, 3\)"),
        (lambda: Tensor(np.ones((2, 3))).backward(np.ones(6)), r"shape \(2, 3\)"),
        (lambda: Tensor(1.0).backward([1.0]), r"shape \(\)"),
        (
            lambda: Tensor(
                np.ones(3), (Tensor(np.ones(3)),), "f", _slopes=(lambda g: g[:, None],)
            ).backward(np.ones(3)),
            r"\(3, 1\) came back to data \(3,\)",
        ),
        (lambda: MLP(2, []), "a list of them, got 2 and \\[\\]"),
        (lambda: MLP(0, [1]), "a width > 0"),
        (lambda: MLP(2, [3, "1"]), "a width > 0"),
        (lambda: MLP(2, None), "got 2 and None"),
        (lambda: MLP(2, 3), "got 2 and 3"),
        (lambda: Value(1j), "expected a real number"),
        (lambda: Tensor(["x"]), "expected real numbers"),
        (lambda: Tensor([1.0, 2.0]).backward(), r"gradient of shape \(2,\)"),
        (lambda: Tensor([1.0, 2.0]).backward([1.0]), r"gradient of shape \(2,\)"),
        (lambda: Tensor(np.ones((2, 3))) @ np.ones((2, 3)), r"got \(2, 3\) @ \(2, 3\)"),
        (lambda: Tensor(np.ones(3)) @ 2.0, r"got \(3,\) @ \(\)"),
        (lambda: Tensor(np.ones(3)) + np.ones(2), "broadcast"),
        (lambda: Neuron(3)([1.0, 2.0]), "expected 3 inputs, got 2"),
        (lambda: s.admission(learning_rate=0), "learning_rate must be a number > 0, got 0"),
        (lambda: s.admission(learning_rate="1"), "learning_rate must be a number > 0, got '1'"),
        (lambda: s.admission(learning_rate=None), "must be a number > 0, got None"),
        (lambda: s.admission(learning_rate=math.nan), "must be a number > 0, got nan"),
        (lambda: s.mse(np.ones((3, 1)), np.ones(3)), r"got \(3,\) for \(3, 1\)"),
        (lambda: s.cross_entropy([], []), "one answer per output"),
        (lambda: s.mse(["1"], [1]), "expected real numbers"),
        (lambda: s.cross_entropy([None], [1]), "expected real numbers"),
        (lambda: s.sigmoid("x"), "expected real numbers"),
        (lambda: s.sigmoid(1j), "expected real numbers"),
        (lambda: s.admission(score="1200"), "expected real numbers"),
        (lambda: s.admission(score=None), "expected real numbers"),
        (lambda: s.gradient_descent(LINE, ZERO, [["x"]], [1.0], 0.1, 1), "expected real numbers"),
        (lambda: Value(Value(1.0)), "expected a real number"),
        (lambda: s.network_forward(*[np.ones((1, 1))] * 5, bend="gelu"), "one of tanh, relu, none"),
        (lambda: s.network_forward(*[np.ones((1, 1))] * 5, bend=None), "got None"),
        (lambda: grad_check(Tensor.exp, ["1"]), "expected real numbers"),
        (lambda: s.cross_entropy(np.ones(2), np.array([0, 2])), "answers must be 0 or 1"),
        (lambda: s.gradient_descent(LINE, ZERO, [[1.0], [2.0]], [1.0], 0.1, 1), "one answer per"),
        (lambda: s.gradient_descent(LINE, ZERO, [[9.0]], [1.0], 1e9, 99), "at step .*too big"),
        (lambda: s.gradient_descent(LINE, ZERO, [[1e300]], [1e300], 1e9, 1), "at step 0"),
        (lambda: s.gradient_descent(LINE, ZERO, [[math.nan]], [1.0], 1.0, 1), "at step 0"),
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
    assert dot.count("shape=record") == 4 and dot.count("->") == 4
    assert dot.count('[label="2"]') == 2 and dot.count('[label="1"]') == 2  # local slopes
    assert "{ * | data 4 | grad 1 }" in dot and "{ + | data 1 | grad 1 }" in dot
    square = re.search(r"(v\d) .*{ \* \|", dot)[1]  # a is drawn into it twice
    assert len(re.findall(rf"v\d -> {square} ", dot)) == 2
    assert r"a\{\"\|\}" in dot and dot == s.to_dot(y)


def test_draw_shows_value_slope_and_adjoint_of_every_node():
    a, b = Value(3.0, label="a"), Value(2.0, label="b")
    L = (a * b * a - 20) ** 2
    L.label = "L"
    L.backward()
    rows = {line.split()[0]: line for line in s.draw(L).splitlines()[1:]}
    assert len(rows) == 7 and not any(line != line.rstrip() for line in rows.values())
    assert rows["a"].split() == ["a", "input", "3", "-48"]
    assert rows["b"].split() == ["b", "input", "2", "-36"]
    assert rows["L"].split()[:6] == ["L", "**2", "of", "v5", "4", "1"]
    assert rows["v3"].split()[:6] == ["v3", "*", "of", "a,", "b", "6"]
    assert rows["v3"].endswith("-12   ∂v3/∂a = 2, ∂v3/∂b = 3")
    assert rows["v4"].endswith("-4   ∂v4/∂v3 = 3, ∂v4/∂a = 6")


def test_an_expression_in_micrograds_manner_has_micrograds_gradients():
    """Operators from both sides, in-place sums, powers and relu; the gradients worked out by hand:
    with p = 2, q = -3: u = 11, r = relu(12) = 12, v = (1 - 3)·2, loss = u²/8 + 10/u + r·q + v."""
    p, q = Value(2), Value(-3)
    u = q**2 + p
    r = (u + 1).relu() + (q - p).relu()
    v = (1 + q) * p
    loss = u**2 / 8
    loss += 10 / u
    loss += r * q - -v
    assert math.isclose(loss.data, 121 / 8 + 10 / 11 - 36 - 4)
    loss.backward()
    by_u = 22 / 8 - 10 / 121 - 3
    assert math.isclose(p.grad, by_u - 2) and math.isclose(q.grad, by_u * -6 + 12 + 2)
    assert (u._op, r._op, (q**2)._op, repr(q)) == (
        "+",
        "+",
        "**2",
        f"Value(data=-3.0, grad={q.grad})",
    )


def test_a_net_of_values_learns_as_section_10_says():
    data = [((0.0, 1.0), 1.0), ((1.0, 0.0), -1.0), ((0.5, 0.5), 0.0)]
    net, losses = MLP(2, [6, 1], seed=3), []
    for _ in range(60):
        loss = sum((net(x) - y) ** 2 for x, y in data)
        net.zero_grad()
        loss.backward()
        for p in net.parameters():
            p.data -= 0.05 * p.grad
        losses.append(loss.data)
    assert losses[-1] < 0.01 * losses[0]
    assert repr(net) == "MLP of 25 numbers" and repr(net.layers[0]) == "Layer of 18 numbers"


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
    "concatenate": (lambda a, b: Tensor.concatenate([a, b, a], axis=1) ** 2, (2, 1), (2, 3)),
    "concatenate last": (lambda a, b: Tensor.concatenate([a, b], -1).sin(), (2, 2, 1), (2, 2, 2)),
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


def test_an_array_on_the_left_and_what_is_no_array(rng):
    a, b = rng.normal(size=(2, 3)), rng.normal(size=(3, 2))
    np.testing.assert_array_equal((a @ Tensor(b)).data, a @ b)
    for make in (lambda: "a" @ Tensor(a), lambda: Tensor(a) @ "a", lambda: Tensor(a) * "a"):
        with pytest.raises(TypeError):
            make()


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


def with_slope(factor, scale=1.0):
    """scale·x², but with a gradient `factor` (an array or a number) times the true one."""
    return lambda a: Tensor(
        scale * a.data**2, (a,), "square", _slopes=(lambda g: factor * scale * g * 2 * a.data,)
    )


@pytest.mark.parametrize("scale", [1.0, 1e-11, 1e11])
def test_grad_check_judges_every_entry_by_its_own_size(scale, rng):
    x = rng.uniform(1, 2, size=(20, 50))
    assert grad_check(with_slope(1.0, scale), x[:3]) < 1e-7
    assert math.isclose(grad_check(with_slope(2.0, scale), x[:2]), 0.5, rel_tol=1e-6)
    assert grad_check(with_slope(0.0, scale), x[:1]) > 0.99
    assert not grad_check(with_slope(math.nan, scale), x[:1, :2]) < 1e300
    one_bad = np.ones((20, 50))
    one_bad[13, 37] = 3.0
    error, where = s.worst_entry(lambda a, b: with_slope(one_bad, scale)(b) + a * 0, [[0.0]], x)
    assert 0.5 < error <= 1 and where.startswith("entry (13, 37) of input 1: backward ")
    assert s.worst_entry(lambda a: a * 0 + 1, [1.0, 2.0]) == (0.0, "no entry differs")


def test_the_three_laws_of_an_engine(rng):
    """Section 12: accumulation, linearity, composition, and each catches its own bug."""

    def pulled(f, x, *upstreams):
        t = Tensor(x)
        y = f(t)
        for upstream in upstreams:
            y.backward(upstream)
        return t.grad

    def broken(laws, f, g, x):
        def both(t):
            return g(f(t))

        middle = f(Tensor(x)).data
        v, w = rng.normal(size=(2, *g(Tensor(middle)).shape))
        once = pulled(both, x, w)
        pairs = {
            "accumulation": (pulled(both, x, w, w), 2 * once),
            "linearity": (pulled(both, x, 2 * v + 3 * w), 2 * pulled(both, x, v) + 3 * once),
            "composition": (once, pulled(f, x, pulled(g, middle, w))),
        }
        return {law for law, (a, b) in pairs.items() if not np.allclose(a, b, rtol=1e-12)}

    x = rng.normal(size=(3, 4))
    ignores = lambda t: Tensor(t.data * 3, (t,), "f", _slopes=(lambda g: 3 * np.ones_like(g),))  # noqa: E731
    for f, g in ((lambda t: t.tanh() * t, lambda t: t.T @ t), (lambda t: t[:, ::2], Tensor.exp)):
        assert not broken(3, f, g, x)
    assert "linearity" in broken(3, Tensor.tanh, ignores, x)


def test_halving_finds_the_first_wrong_step(rng):
    good = [Tensor.tanh, lambda t: t * 1.5, Tensor.sin, Tensor.sigmoid] * 2
    for place in range(len(good)):
        steps = [*good[:place], with_slope(1.01), *good[place + 1 :]]

        def is_right(k, steps=steps):
            def prefix(t):
                for step in steps[:k]:
                    t = step(t)
                return t

            return grad_check(prefix, [0.4, 0.7]) < 1e-6

        right, wrong = 0, len(steps)
        assert not is_right(wrong)
        while wrong - right > 1:
            middle = (right + wrong) // 2
            right, wrong = (middle, wrong) if is_right(middle) else (right, middle)
        assert right == place


def test_tensor_len_item_concatenate():
    t = Tensor.concatenate([[1, 2], Tensor(np.float32([3]))])
    assert len(t) == 3 and t[2].item() == 3.0 and type(t[2].item()) is float
    a, b = Tensor(np.ones((2, 1), np.float32)), Tensor(np.ones((2, 2)))
    joined = Tensor.concatenate([a, b, a], axis=-1)
    joined.backward(np.arange(8.0).reshape(2, 4))
    np.testing.assert_array_equal(a.grad, [[3], [11]])
    np.testing.assert_array_equal(b.grad, [[1, 2], [5, 6]])
    assert a.grad.dtype == np.float32


LINE = (s.neuron_forward, s.neuron_backward, s.mse)
LOGISTIC = (s.neuron_forward, s.neuron_backward, s.cross_entropy)
ZERO = {"w": np.zeros(1), "b": 0.0}


@pytest.mark.parametrize("N, D, J, K", [(1, 1, 1, 1), (5, 3, 2, 3), (4, 1, 7, 2)])
@pytest.mark.parametrize("bend", ["tanh", "relu", "none"])
def test_hand_derived_network_backward(N, D, J, K, bend, rng):
    inputs = [rng.normal(size=shape) for shape in ((N, D), (D, J), J, (J, K), K)]

    def forward():
        return s.network_forward(*inputs, bend=bend)

    assert_gradients(lambda: forward()[0], inputs, lambda dZ: s.network_backward(dZ, forward()[1]))


@pytest.mark.parametrize("N, D", [(1, 1), (5, 1), (4, 3)])
def test_hand_derived_neuron_and_losses(N, D, rng):
    X, w, b = rng.normal(size=(N, D)), rng.normal(size=D), rng.normal(size=())

    def forward():
        return s.neuron_forward(X, w, b)

    assert_gradients(
        lambda: forward()[0], [X, w, b], lambda dz: s.neuron_backward(dz, forward()[1])
    )
    for shape in ((N,), (N, D)):
        z = rng.normal(size=shape) * 3
        for loss, y in ((s.mse, z[::-1] * 2 + 1), (s.cross_entropy, np.where(z > 1, 0, 1))):
            numeric = s.numerical_gradient(lambda z, f=loss, y=y: f(z, y)[0], z)
            assert relative_error(loss(z, y)[1], numeric) < 1e-8


def test_losses_in_closed_form_and_on_lists():
    value, dz = s.cross_entropy(np.array([-800.0, 800.0]), np.array([1, 0]))
    assert value == 800 and np.array_equal(dz, [-0.5, 0.5])
    value, dz = s.cross_entropy([0.0, math.log(3)], [0, True])
    assert math.isclose(value, (math.log(2) + math.log(4 / 3)) / 2)
    np.testing.assert_allclose(dz, [0.25, -0.125])
    value, dz = s.mse([[1, 2], [3, 4]], [[1, 0], [3, 8]])
    assert value == 5 and np.array_equal(dz, [[0, 1], [0, -2]])
    np.testing.assert_allclose(s.sigmoid([0, -math.log(3)]), [0.5, 0.25])
    assert s.sigmoid(np.float32([0])).dtype == np.float32
    small = math.exp(-128) / (1 + math.exp(-128))
    for lowest in (np.int8(-128), np.int8([-128]), -128):  # int8 has no 128 to negate it to
        assert math.isclose(float(np.squeeze(s.sigmoid(lowest))), small, rel_tol=1e-14)
    assert math.isclose(s.sigmoid(True), math.e / (1 + math.e))


def test_one_step_of_descent_by_hand():
    """z = [1, 3], y = [2, 1]: L = (1 + 4)/2, dz = [-1, 2], dw = -1·1 + 2·2 = 3, db = 1."""
    start = {"w": np.array([2.0]), "b": np.array(-1.0)}
    params, losses = s.gradient_descent(LINE, start, [[1.0], [2.0]], [2.0, 1.0], 0.5, 1)
    assert losses == [2.5] and params["w"].tolist() == [0.5] and params["b"] == -1.5
    assert start["w"].tolist() == [2.0]


def test_descent_reaches_the_normal_equations_and_the_convex_optimum(rng):
    x = rng.normal(size=50)
    y = 2 * x - 1 + rng.normal(size=50)
    params, losses = s.gradient_descent(LINE, ZERO, x[:, None], y, 0.1, 400)
    np.testing.assert_allclose([params["w"][0], params["b"]], np.polyfit(x, y, 1), rtol=1e-9)
    assert all(b <= a + 1e-12 for a, b in zip(losses, losses[1:])) and ZERO["w"] == 0
    y = (y > 0) * 1.0
    y[:5] = 1 - y[:5]
    params, _ = s.gradient_descent(LOGISTIC, ZERO, x[:, None], y, 1.0, 3000)
    assert abs(s.sigmoid(params["w"] * x + params["b"]).mean() - y.mean()) < 1e-9


def test_admission_heads_to_the_margin_and_its_probability_to_the_closed_form():
    runs = [s.admission(steps) for steps in (10, 100, 1000, 10000)]
    boundaries = [run["boundary"] for run in runs]
    assert all(1200 < b < 1300 for b in boundaries) and boundaries == sorted(boundaries)[::-1]
    assert boundaries[-1] < 1205 and runs[-1]["w"] > runs[-2]["w"]
    limit = 1 / (1 + math.sqrt(5 / 4))
    assert abs(limit - 0.4721) < 5e-5 and abs(runs[-1]["probability"] - limit) < 2e-4
    run = runs[2]  # two routes to p(1200)
    z = run["w"] * (1200 - run["boundary"]) / math.sqrt(80000)
    assert math.isclose(run["probability"], 1 / (1 + math.exp(-z)), rel_tol=1e-9)
    assert math.isclose(s.admission(1000, score=run["boundary"])["probability"], 0.5)


def test_the_largest_margin_in_w_and_b_is_not_the_middle_of_the_gap():
    """x = -1 (no), 5 (yes): (w, b) grows along (1/2, -1/2), so the boundary -b/w goes to 1."""
    params, path = ZERO, []
    for _ in range(3):
        params, _ = s.gradient_descent(LOGISTIC, params, [[-1.0], [5.0]], [0, 1], 1.0, 2000)
        path.append((params["w"][0], params["b"]))
    boundaries = [-b / w for w, b in path]
    assert boundaries == sorted(boundaries)  # from 0 upwards
    assert 0.6 < boundaries[-1] < 1
    (w1, b1), (w2, b2) = path[1:]
    assert abs((b2 - b1) / (w2 - w1) + 1) < 1e-2


def test_without_a_bend_a_network_is_one_neuron(rng):
    X, W, b, V, c = (rng.normal(size=shape) for shape in ((6, 3), (3, 4), 4, (4, 2), 2))
    flat = X @ (W @ V) + b @ V + c
    np.testing.assert_allclose(s.network_forward(X, W, b, V, c, bend="none")[0], flat)
    assert not np.allclose(s.network_forward(X, W, b, V, c)[0], flat)


def test_text_plot_of_a_curve_of_a_constant_and_of_a_point():
    x = np.linspace(0, 1, 5)
    rows = s.text_plot([(x, x, "o"), (x[:1], x[:1], "*")], rows=5, columns=5).splitlines()
    assert rows == ["  |    o", "  |   o", "  |  o", "  | o", "  |*"]
    flat = s.text_plot([(x, np.full(5, 7.0), ".")], rows=3, columns=5)
    assert flat == "  |.....\n  |\n  |"
    assert s.text_plot([(x[:1], x[:1], "!")], rows=2, columns=4) == "  |!\n  |"


def paper_tables(report):
    """{title: {row name: (numbers forward, numbers back)}} of part 2 of a report."""
    tables = {}
    for block in report.split("\n2. ")[1].split("\n3. ")[0].split("\n   ")[1:]:
        line = block.rstrip("\n")
        if "forward" in line or not line.strip():
            continue
        if not re.search(r"\d\.\d{3}", line):
            title, name = line.strip(), None
            tables[title] = {}
            continue
        name = line[:16].strip() or name
        there, back = tables[title].setdefault(name, ([], []))
        there += map(float, line[16:52].split())
        back += map(float, line[52:].split())
    return tables


def test_fast_report_is_complete_and_repeats(capsys):
    reports = []
    for _ in range(2):
        assert s.main(["--fast"]) is None
        reports.append(capsys.readouterr().out)
    before_timings = [report.split("\n7. ")[0] for report in reports]
    assert before_timings[0] == before_timings[1]
    rows = re.findall(
        r"^   ([a-z].*?)  +(\d+) +\d+ +(\S+) +(\S+) +(\S+) +(\d\.\de[+-]\d\d)$", reports[0], re.M
    )
    assert [row[:2] for row in rows] == [
        ("xor 2-8-1", "33"),
        ("xor, no tanh", "33"),
        ("curve 1-24-1", "73"),
    ]
    assert all(float(row[5]) < 1e-12 and float(row[3]) < float(row[2]) for row in rows)
    assert float(rows[0][4][:-1]) > 95 and float(rows[1][4][:-1]) < 80
    assert "held-out" not in reports[0] and all(
        len(line) <= 100 for line in reports[0].splitlines()
    )
    edges = re.findall(r"^ +(\d+) +(\d+) +(\d+)(?: +\d+\.\d+){4}$", reports[0], re.M)
    assert edges == [(str(n), str(5 * n), str(5 * n * n)) for n in (1, 4, 16)]
    s.main(["--fast", "--seed", "1"])
    assert capsys.readouterr().out.split("\n7. ")[0] != before_timings[0]


def test_the_four_models_on_paper(capsys):
    s.report_paper(Value(1.0))
    report = capsys.readouterr().out
    errors = re.findall(r"^   1e-(\d\d) +(\S+) +(\S+)$", report, re.M)
    assert [int(row[0]) for row in errors] == [1, 3, 5, 7, 9, 11]
    for k, forward, central in errors[:2]:  # e h/2 and e h²/6, before rounding counts
        h = 10.0 ** -int(k)
        assert abs(float(forward) / (math.e * h / 2) - 1) < 0.08
        assert abs(float(central) / (math.e * h * h / 6) - 1) < 0.08
    tables = paper_tables(report)
    assert len(tables) == 4
    for table, name, numbers in (
        ("1-4-1 with relu, y = x²", "X", [-1, 1, 2]),
        ("1-4-1 with relu, y = x²", "W", [1, -1, 1, 0.5]),
        (
            "1-4-1 with relu, y = x²",
            "A = X W + b",
            [-0.5, 1, -2.5, 0.5, 1.5, -1, -0.5, 1.5, 2.5, -2, 0.5, 2],
        ),
        ("1-4-1 with relu, y = x²", "Z = H V + c", [1, 0.5, 2]),
        ("3-4-3, three answers: yes no yes", "A = X W + b", [2, -3, -1.5, 3.5]),
        ("3-4-3, three answers: yes no yes", "V", [1, 0, -1, 0, 1, 1, -1, 0.5, 0, 1, -1, 0]),
        ("3-4-3, three answers: yes no yes", "c", [0.5, 0, 0]),
    ):
        assert tables[table][name][0] == numbers  # worked out on paper
    line, logistic = list(tables.values())[:2]
    assert line["Z = X w + b"] == ([-2.5], [-7.0]) and line["L = mean (Z-y)²"][0] == [12.25]
    assert line["w"] == ([0.5, -1, 2], [-7, -14, 7]) and line["b"] == ([1], [-7])
    assert line["X"] == ([1, 2, -1], [-3.5, 7, -14])
    p = 1 / (1 + math.exp(2.5))
    expected = {
        "P = σ(±Z)": (p, -1 / p),
        "Z = X w + b": (-2.5, p - 1),
        "L = -mean ln P": (-math.log(p), 1),
    }
    for name, pair in expected.items():
        np.testing.assert_allclose(np.ravel(logistic[name]), pair, atol=6e-4)
    np.testing.assert_allclose(logistic["w"][1], np.array([1, 2, -1]) * (p - 1), atol=6e-4)
    for table, (N, D, J, K), bend, loss in (
        (tables["1-4-1 with relu, y = x²"], (3, 1, 4, 1), "relu", s.mse),
        (tables["3-4-3, three answers: yes no yes"], (1, 3, 4, 3), "tanh", s.cross_entropy),
    ):
        shapes = {"X": (N, D), "W": (D, J), "b": J, "V": (J, K), "c": K}
        params = {name: np.reshape(table[name][0], shape) for name, shape in shapes.items()}
        y = params["X"] ** 2 if loss is s.mse else np.array([[1, 0, 1]])
        Z, cache = s.network_forward(*params.values(), bend=bend)
        np.testing.assert_allclose(table["Z = H V + c"][0], Z.ravel(), atol=6e-4)
        L, dZ = loss(Z, y)
        by_hand = dict(zip(("X", "W", "b", "V", "c"), s.network_backward(dZ, cache)))
        for name, grad in by_hand.items():
            np.testing.assert_allclose(table[name][1], grad.ravel(), atol=6e-4)
        assert abs([row for name, row in table.items() if name[0] == "L"][0][0][0] - L) < 6e-4


def test_dot_writes_only_the_graph(tmp_path, capsys):
    path = tmp_path / "graph.dot"
    s.main(["--dot", str(path)])
    dot = path.read_text(encoding="utf-8")
    assert dot.startswith("digraph {") and dot.endswith("}\n") and "a | data 3 | grad -48" in dot
    assert str(path) in capsys.readouterr().out and list(tmp_path.iterdir()) == [path]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # like a device: os.replace would put a file in its place
    for wrong in (tmp_path / "nowhere" / "graph.dot", tmp_path, "", pipe):
        with pytest.raises(SystemExit) as end:
            s.main(["--dot", str(wrong)])
        assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert pipe.is_fifo() and set(tmp_path.iterdir()) == {path, pipe}


@pytest.mark.parametrize("args", [["--seed", "x"], ["--seed", "-1"], ["--nonsense"]])
def test_wrong_command_line_is_one_line_and_status_2(args):
    run = subprocess.run(
        [sys.executable, ROOT / "stage02_autograd.py", *args], capture_output=True, text=True
    )
    assert run.returncode == 2 and run.stdout == "" and len(run.stderr.splitlines()) == 1
