"""Checks of the exercises of stage 2."""

import math

import judge
import numpy as np
import pytest

import stage02_autograd as stage


def test_1(answers):
    a, b = stage.Value(2.0), stage.Value(3.0)
    m = a * b
    ((m + a) * b).backward()
    two_ways = "two ways lead back here; what arrives on them is added"
    to_a = {two_ways: 9, f"{two_ways}, and this is the other one alone": 3}
    to_a["slopes multiply along a way, but over ways they add"] = 27
    to_b = {two_ways: 6, f"{two_ways}, and this is the other one alone": 8}
    to_b["slopes multiply along a way, but over ways they add"] = 48
    to_b["m hands a·(its gradient) to b, and its gradient is not 1"] = 10
    to_a["m hands b·(its gradient) to a, and its gradient is not 1"] = 6
    mistakes = {"m": {"this is the value of m; its gradient is asked for": 6}, "a": to_a, "b": to_b}
    mistakes["m"]["a sum hands its gradient on, which is not 1 here"] = 1
    found = judge.answer(answers, "ANSWER_1")
    names = ["the gradient of m", "the gradient of a", "the gradient of b"]
    mistakes = dict(zip(names, mistakes.values()))
    judge.entries("ANSWER_1", found, names, [m.grad, a.grad, b.grad], mistakes=mistakes)


def test_2(answers):
    X, y = np.array([[1.0], [2.0]]), np.array([3.0, 3.0])
    model = stage.neuron_forward, stage.neuron_backward, stage.mse
    start = {"w": np.ones(1), "b": 0.0}
    loss, grads = stage.loss_and_grads(model, start, X, y)
    names, right = ["dw", "db"], [grads["w"][0], grads["b"]]
    mistakes = {}
    for name, slope in zip(names, right):
        mistakes[name] = {
            "the loss is a mean, so each dz has 1/N in it": 2 * slope,
            "the slope of a square has a factor 2": slope / 2,
            "z - y, not y - z: does the loss grow or fall when this knob grows?": -slope,
        }
    mistakes["dw"]["each point's dz has to be multiplied by its x"] = right[1]
    judge.entries("ANSWER_2", judge.answer(answers, "ANSWER_2"), names, right, mistakes=mistakes)

    def loss_after(w_rate, b_rate):
        moved = {"w": start["w"] - w_rate * grads["w"], "b": start["b"] - b_rate * grads["b"]}
        return stage.loss_and_grads(model, moved, X, y)[0]

    after = loss_after(0.1, 0.1)
    mistakes = {
        "that is the loss before the step": loss,
        "that is a step uphill: θ ← θ - η·dθ": loss_after(-0.1, -0.1),
        "b takes a step, too": loss_after(0.1, 0),
        "w takes a step, too": loss_after(0, 0.1),
        "this is the sum of the squares; the mean was asked for": 2 * after,
        "that is a step with the rate 1": loss_after(1, 1),
    }
    judge.number(answers, "ANSWER_2B", after, digits=4, mistakes=mistakes)


def on_engines(function, x):
    """{engine: (result, slope)} of a function at a float x, by each of the three engines."""
    dual = function(stage.Dual(x, 1.0))
    value, tensor = stage.Value(x), stage.Tensor([x, x])
    made = function(value)
    made.backward()
    array = function(tensor)
    array.backward(np.array([1.0, 2.0]))
    return {
        "Dual": (dual.data, dual.tangent),
        "Value": (made.data, value.grad),
        "Tensor": (array.data[1], tensor.grad[1] / 2),
    }


def test_3(answers, rng):
    for x in rng.uniform(-1.4, 1.4, 5):
        y = math.tan(x)
        mistakes = {
            "tan": {
                "that is tanh′; in tan′ = (sin/cos)′ the sign of the second term is another": 1
                - y * y,
                "the slope is written in the result y, not in x": 1 + x * x,
                "the quotient rule divides by cos², not by cos": 1 / math.cos(x),
            },
            "arctan": {
                "the chain rule gives the slope in the result y; tan y is x": 1 + math.atan(x) ** 2,
                "1 + tan² y is the slope of tan at y; that of arctan is one over it": 1 + x * x,
                "the slope is written in x; this has the result in the place of x": 1
                / (1 + math.atan(x) ** 2),
                "the sign in the denominator": 1 / (1 - x * x),
            },
        }
        for name, right in (("tan", (y, 1 / math.cos(x) ** 2)), ("arctan", None)):
            right = right or (math.atan(x), 1 / (1 + x * x))

            def call(number, name=name):
                made = judge.call(answers, name, number)
                if type(made) is not type(number):
                    judge.wrong(f"{name} of a {type(number).__name__} returns {made!r:.60}")
                return made

            for engine, (result, slope) in on_engines(call, float(x)).items():
                what = f"{name} of a {engine}"
                judge.array(f"{what}, the result", result, right[0])
                judge.array(f"{what}, its slope", slope, right[1], mistakes=mistakes[name])


def test_4(answers, rng):
    for h in rng.uniform(0.05, 1.5, 5):
        found = judge.call(answers, "three_areas", float(h))
        inner, sector, outer = math.sin(h) / 2, h / 2, math.tan(h) / 2
        names = ["the triangle OPQ", "the sector", "the triangle OPR"]
        mistakes = {
            "the triangle OPQ": {
                "h is in radians, not in degrees": math.sin(math.radians(h)) / 2,
                "half of base times height: the half is missing": 2 * inner,
                "its base is OP = 1, not the foot of Q": inner * math.cos(h),
            },
            "the sector": {
                "that is the length of its arc, not its area": 2 * sector,
                "that is its share of the circle, whose area is π": h / (2 * math.pi),
            },
            "the triangle OPR": {
                "half of base times height: the half is missing": 2 * outer,
                "RP stands on the axis at P, and R lies on the line OQ: how high is it?": inner,
            },
        }
        judge.entries("three_areas", found, names, [inner, sector, outer], 9, mistakes)
    mistakes = {
        "that is the limit of (1 - cos h)/h, with one h less below": 0,
        "1 + cos h is not 1 as h → 0": 1,
    }
    judge.number(answers, "ANSWER_4", 1 / 2, mistakes=mistakes)


def test_5(answers, rng):
    names = ["dX", "dW", "db", "dV", "dc"]
    for bend in ("relu", "none", "tanh"):
        for N, D, J, K in ((5, 3, 4, 2), (1, 2, 3, 1)):
            shapes = (N, D), (D, J), (J,), (J, K), (K,)
            arrays = [rng.normal(size=shape) for shape in shapes]
            dZ = rng.normal(size=(N, K))
            _, cache = stage.network_forward(*arrays, bend)
            found = judge.call(answers, "network_gradients", *arrays, dZ, bend)
            if not isinstance(found, (tuple, list)) or len(found) != 5:
                judge.wrong("network_gradients: expected the five gradients dX, dW, db, dV, dc")
            for name, gradient, right in zip(names, found, stage.network_backward(dZ, cache)):
                n = N if name in ("db", "dc") else None
                judge.array(f"{name} with {bend}", gradient, right, n=n)


def test_6(answers):
    remarks = {
        "a": "it has come to rest long before; what is the model without tanh, as a formula?",
        "b": "X W V is what one neuron can do, too, however many columns W has",
        "c": "without tanh it says what one neuron can say, and section 5 counts its valleys",
        "d": "what does p = 1/2 for everyone cost?",
    }
    judge.choice(answers, "ANSWER_6", 6, "e7d2900f9d04", remarks)


def check_tensor(name, made):
    """Whether a result is a Tensor that knows what it was made from."""
    if not isinstance(made, stage.Tensor):
        judge.wrong(f"{name} returns {type(made).__name__}; expected a Tensor")
    if not made._prev:
        judge.wrong(f"{name}: the Tensor that it returns does not know what it was made from")


def judge_operation(name, f, arrays):
    """Whether backward() through f agrees with central differences."""
    try:
        error, place = stage.worst_entry(f, *arrays)
    except Exception as fault:
        judge.wrong(f"{name}: backward() through it raised {type(fault).__name__}: {fault}")
    if error > 1e-6:
        judge.wrong(
            f"{name}: a gradient is wrong at {place.split(':')[0]}, of {len(arrays)} inputs"
        )


def test_7(answers, rng):
    def minimum(a, b):
        made = judge.call(answers, "minimum", a, b)
        check_tensor("minimum", made)
        return made

    for shapes in (((3, 4), (3, 4)), ((3, 4), (4,)), ((2, 1), (1, 3)), ((), (2, 2))):
        x, y = (rng.normal(size=shape) for shape in shapes)
        found = minimum(stage.Tensor(x), stage.Tensor(y)).data
        mistakes = {"this is the maximum": np.maximum(x, y)}
        judge.array("minimum", found, np.minimum(x, y), mistakes=mistakes)
        judge_operation("minimum", minimum, (x, y))
    a, b = stage.Tensor([1.0, 2.0]), stage.Tensor([1.0, 3.0])
    minimum(a, b).backward(np.array([2.0, 1.0]))
    if (a.grad[0], b.grad[0]) != (1, 1):
        judge.wrong("minimum: where the entries are equal, each gets half of the gradient")

    def where(a, b):
        made = judge.call(answers, "where", mask, a, b)
        check_tensor("where", made)
        return made

    for shapes in (((3, 4),) * 3, ((3, 1), (3, 4), (4,)), ((2, 3), (1, 3), (2, 1))):
        mask = rng.random(shapes[0]) < 0.5
        x, y = (rng.normal(size=shape) for shape in shapes[1:])
        found = where(stage.Tensor(x), stage.Tensor(y)).data
        mistakes = {"a and b are exchanged": np.where(mask, y, x)}
        judge.array("where", found, np.where(mask, x, y), mistakes=mistakes)
        judge_operation("where", where, (x, y))
    mask = np.array([True, False])
    with np.errstate(all="ignore"):
        found = where(stage.Tensor([1.0, np.inf]), stage.Tensor([np.inf, 2.0])).data
    if not np.array_equal(found, [1, 2]):
        judge.wrong("where: an inf that is not taken must play no part, but 0·inf is nan")


def programs(rng):
    """(name, program of a list of numbers) that use the operators of section 7."""
    scale = rng.uniform(0.5, 1.5)

    def ring(x):
        return sum((a * b).tanh() for a, b in zip(x, x[1:] + x[:1]))

    def quotient(x):
        return (x[0] * scale - 1) / (x[-1] * x[-1] + 1) + x[0]

    def powers(x):
        return sum((v * v + 1) ** (k + 2) for k, v in enumerate(x)) * x[0].exp()

    def waves(x):
        return (x[0].sin() * x[-1].cos() - scale) * x[1 % len(x)] + 3

    return [("ring", ring), ("quotient", quotient), ("powers", powers), ("waves", waves)]


def once(function, name):
    """The program `function`, which complains when it is called a second time, or with Values."""
    calls = []

    def program(x):
        calls.append(1)
        if len(calls) > 1:
            judge.wrong(f"{name}: f is called again; once is enough")
        return function(list(x))

    return program, calls


def test_8(answers, rng):
    name = "gradient_in_one_pass"
    for title, function in programs(rng):
        for n in (1, 2, 5):
            x = rng.uniform(-1, 1, n).tolist()
            inputs = [stage.Value(v) for v in x]
            function(inputs).backward()
            expected = np.array([v.grad for v in inputs])
            program, _ = once(function, name)

            def forward(given, program=program):
                if any(isinstance(v, stage.Value) for v in given):
                    judge.wrong(
                        f"{name}: Values remember and sweep back; do it forward, with no sweep"
                    )
                return program(given)

            found = judge.call(answers, name, forward, x)
            if np.ndim(found) == 0:
                judge.wrong(f"{name} returns one number; expected an array of {n} derivatives")
            mistakes = {"these are all the sum over the inputs: each input needs a row of its own":
                        np.full(n, expected.sum())}  # fmt: skip
            judge.array(f"{name} of {title}, n = {n}", found, expected, mistakes=mistakes)


def test_9(answers, rng):
    name = "hessian_times"
    for n in (1, 2, 4):
        x, v, A = rng.uniform(-1, 1, n), rng.normal(size=n), rng.normal(size=(n, n))
        A = (A + A.T) / 2

        def bent(x, A=A):  # tanh(xᵀAx/2): H·v = (1 - t²)·(A v - 2t·(A x)·(A x·v))
            u = sum((x[i] * x[j] * A[i, j] for i in range(len(x)) for j in range(len(x))), 0.0)
            return (u * 0.5).tanh()

        t, s = math.tanh(x @ A @ x / 2), A @ x
        expected = (1 - t * t) * (A @ v - 2 * t * s * (s @ v))
        program, _ = once(bent, name)
        found = judge.call(answers, name, program, x.tolist(), v.tolist())
        gradient = (1 - t * t) * s
        diagonal = (1 - t * t) * (np.diag(A) - 2 * t * s * s) * v
        mistakes = {
            "this is the gradient: read its tangent, not its data": gradient,
            "this is the diagonal of H times v; H has other entries, too": diagonal if n > 1 else 0,
        }
        judge.array(f"{name} of tanh(xᵀAx/2)", found, expected, 1e-9, mistakes=mistakes)
    for title, function in programs(rng):
        x, v, h = rng.uniform(-1, 1, 3), rng.normal(size=3), 1e-5

        def gradient(x, function=function):
            inputs = [stage.Value(entry) for entry in x]
            function(inputs).backward()
            return np.array([entry.grad for entry in inputs])

        expected = (gradient(x + h * v) - gradient(x - h * v)) / (2 * h)
        found = judge.call(answers, name, once(function, name)[0], x.tolist(), v.tolist())
        judge.array(f"{name} of {title}", found, expected, 1e-6)


class State:
    """A state of a chain, which counts how many are alive."""

    alive = most = calls = 0

    def __init__(self, content):
        self.content = content
        State.alive += 1
        State.most = max(State.most, State.alive)

    def __del__(self):
        State.alive -= 1


def chain_steps(W):
    """(forward, pull) of state ← tanh(W·state), for each W (D, D) of a list."""

    def forward(state, w):
        State.calls += 1
        return State(np.tanh(w @ state.content))

    def pull(state, u_bar, w):
        return w.T @ (u_bar * (1 - np.tanh(w @ state.content) ** 2))

    def step(w):
        return (lambda state: forward(state, w)), (lambda state, u_bar: pull(state, u_bar, w))

    return [step(w) for w in W]


def test_10(answers, rng):
    name = "chain_gradient"
    for K in (1, 2, 9, 60, 100):
        W = rng.normal(size=(K, 3, 3)) * 0.9
        x, y_bar = rng.normal(size=3), rng.normal(size=3)
        states = [x]
        for w in W:
            states.append(np.tanh(w @ states[-1]))
        expected = after = y_bar
        for w, y in zip(W[::-1], states[:0:-1]):
            expected = w.T @ (expected * (1 - y * y))
            after = w.T @ (after * (1 - np.tanh(w @ y) ** 2))
        mistakes = {"each pull needs the state before its step, not the one after": after}
        steps = chain_steps(W)
        State.alive = State.most = State.calls = 0
        found = judge.call(answers, name, steps, State(x), y_bar.copy())
        most, calls = State.most, State.calls
        judge.array(f"{name}, K = {K}", found, expected, mistakes=mistakes)
        if calls > 2 * K:
            judge.wrong(f"{name}: {calls} calls of forward for K = {K} steps; 2K are allowed")
        if most > 2 * math.sqrt(K) + 4:
            judge.wrong(
                f"{name}: {most} states were alive at once for K = {K}; 2√K + 4 are allowed"
            )


@pytest.mark.project
def test_12(answers):
    judge.answer(answers, "learn_spirals")
    rng = np.random.default_rng(2)
    points, labels = answers.names["spirals"](400, rng)
    params = judge.call(answers, "learn_spirals", points, labels)
    if not isinstance(params, dict) or set(params) != {"W", "b", "V", "c"}:
        judge.wrong("learn_spirals: expected a dict of the arrays W, b, V and c")
    arrays = [np.asarray(params[key]) for key in ("W", "b", "V", "c")]
    J = arrays[1].size
    for key, array, shape in zip("WbVc", arrays, ((2, J), (J,), (J, 1), (1,))):
        if array.shape != shape:
            judge.wrong(f"learn_spirals: {key} has the shape {array.shape}; expected {shape}")
    numbers = sum(array.size for array in arrays)
    if numbers > 36:
        judge.wrong(f"learn_spirals: {numbers} numbers; 36 are allowed")
    points, labels = answers.names["spirals"](2000, rng)
    right = np.mean((stage.network_forward(points, *arrays)[0][:, 0] > 0) == labels)
    if right < 0.97:
        judge.wrong(f"{right:.1%} of the new points are right; 97 % are asked for")
