"""Page 2 in the browser: its numbers are those of stage02_autograd's own functions."""

import math

import pytest

import stage02_autograd as stage
from stage02_autograd import Value


def first(a, b, c):
    """The expression that the page begins with, in floats or Values, and all its parts by name."""
    v1 = a * b
    v2 = v1 + c
    v3 = v2.tanh() if isinstance(v2, Value) else math.tanh(v2)
    v4 = v3 * a
    return {"a": a, "b": b, "c": c, "v1": v1, "v2": v2, "v3": v3, "v4": v4}


def test_every_step_forward_and_back(visit):
    visit.open("differentiate")
    nodes = first(Value(2.0), Value(-1.0), Value(1.5))
    names = {node: name for name, node in nodes.items()}
    root, sums = nodes["v4"], {}
    visit.says(
        "4 steps forward, one for each operation, then one that starts the way back, and 7 back"
    )
    for node in stage.topological_order(root):
        if node._prev:
            visit.press("next")
            visit.shows("value", node.data)
            visit.shows(f"value_{names[node]}", node.data)
    assert "?" not in visit.text()
    visit.press("next")
    visit.shows("seed", 1)
    visit.shows("grad_v4", 1)
    for user, upstream in stage.sweep(root, 1.0, lambda slope, upstream: slope * upstream):
        for node, slope in zip(user._prev, user._slopes):
            contribution = slope * upstream
            arrived = node in sums
            sums[node] = sums.get(node, 0.0) + contribution
            visit.press("next")
            visit.says(f"Back from {names[user]} to {names[node]}")
            visit.shows("upstream", upstream)
            visit.shows("slope", slope)
            visit.shows("contribution", contribution)
            visit.shows("sum", sums[node])
            visit.shows(f"grad_{names[node]}", sums[node])
            visit.says(
                "and more will come" if names[node] == "a" and not arrived else "and complete"
            )
    root.backward()
    visit.says("Each gradient is what measuring finds.")
    for name in nodes:
        assert visit.number(f"grad_{name}") == pytest.approx(nodes[name].grad)
        assert visit.number(f"measured_{name}") == pytest.approx(nodes[name].grad, rel=1e-7)
    drawn = visit.window.locator("figure svg text").evaluate_all("e => e.map(e => e.textContent)")
    numbers = [x for node in nodes.values() for x in (node.data, node.grad, *node._slopes)]
    expected = sorted([f"{x:.4g}" for x in numbers])
    assert sorted(text for text in drawn if text[-1].isdigit() and "v" not in text) == expected
    slope = stage.measured_slope(lambda v2: math.tanh(v2) * 2.0, -0.5)  # v2 held, all else as it is
    assert visit.number("measured_v2") == pytest.approx(slope, rel=1e-12)
    visit.says("After step 12 of 12, 7 of 7 values are known and 7 gradients complete")
    visit.press("next")  # there is no thirteenth
    visit.press("previous")
    visit.says("After step 11 of 12, 7 of 7 values are known and 6 gradients complete")


def test_sliders_and_measuring(visit):
    visit.open("differentiate")
    at = {"a": -2.7, "b": -2.9, "c": -2.8}
    for name, value in at.items():
        visit.slide(name, value)
    visit.slide("step", 4)
    nodes = first(*map(Value, at.values()))
    nodes["v4"].backward()
    visit.shows("value", nodes["v4"].data)
    visit.press("to the end")
    for name, value in at.items():
        measured = stage.measured_slope(lambda x, name=name: first(**{**at, name: x})["v4"], value)
        visit.shows(f"grad_{name}", nodes[name].grad)
        visit.shows(f"measured_{name}", measured)
    visit.says("Each gradient is what measuring finds.")


def test_all_operations_in_one(visit):
    visit.open("differentiate")
    visit.press("x**y / (1 + exp(-x))")  # examples set the variables, too
    field = visit.window.get_by_label("expression", exact=True)
    visit.equals(field.input_value, "x**y / (1 + exp(-x))", "the example")
    x, y = Value(2.0), Value(3.0)
    (x**y / (1 + (-x).exp())).backward()
    visit.press("to the end")
    visit.shows("grad_x", x.grad)
    visit.shows("grad_y", y.grad)
    text = "log(sigmoid(x)) * sin(y) - cos(x)**-2 / relu(y) + 2**tanh(-z) * exp(0.5)"
    visit.fill("expression", text)
    x, y, z = Value(2.0), Value(3.0), Value(1.0)
    one = x.sigmoid().log() * y.sin() - x.cos() ** -2 / y.relu()
    whole = one + Value(2) ** (-z).tanh() * Value(0.5).exp()
    whole.backward()
    operations = sum(bool(node._prev) for node in stage.topological_order(whole))
    edges = sum(len(node._prev) for node in stage.topological_order(whole))
    visit.says(f"After step 0 of {operations + 1 + edges},")
    visit.press("to the end")
    for name, node in {"x": x, "y": y, "z": z}.items():
        visit.shows(f"grad_{name}", node.grad)
    visit.fill("expression", "2 * 3")
    visit.press("to the end")
    visit.shows("grad_2", 3)


def test_kinks_and_places_without_a_value(visit):
    visit.open("differentiate")
    visit.press("relu(x) - 0.1*relu(-x)")
    visit.press("to the end")
    visit.shows("grad_x", 0)
    visit.shows("measured_x", 0.55)  # the mean of 1 and 0.1
    assert "-0\n" not in visit.text()
    visit.says("Gradient and measured slope differ in x, v")
    visit.says("The input of a relu is 0")
    for text, message in (
        ("x**0.5", "x cannot be measured: f has no slope at 0: it is not finite on both sides."),
        ("(x**2)**0.5", "so the sweep ends in inf or nan"),
    ):
        visit.fill("expression", text)
        visit.says("After step 0")
        visit.press("to the end")
        visit.says(message)
    for text, message in (
        ("log(x)", "log(x) has no value here: log needs x > 0, got 0.0."),
        ("1 / (x*x)", "1 / (x*x) divides by zero here."),
        ("exp(exp(8 + x))", "exp(exp(8 + x)) is too large for a float here."),
        ("(x - 2)**0.5", "(x - 2)**0.5 has no value here: a base < 0 needs a whole exponent"),
        ("(x - 2)**y", "(x - 2)**y has no value here: log needs x > 0, got -2.0."),
    ):
        visit.fill("expression", text)
        visit.refuses(message)
    visit.slide("x", -2.9)  # the sliders are still there
    visit.refuses("log needs x > 0, got -4.9")


REFUSED = {
    "": "The expression is empty",
    "tanh(a": "tanh(a cannot be read: '(' was never closed",
    "sqrt(a)": "sqrt is no function here: stage 2 knows + - * / ** and exp",
    "a.data": "a.data is no operation here",
    "__import__('os').getcwd()": "__import__('os').getcwd is no function here",
    "+".join(["a"] * 45): "The expression is too large: at most 40 nodes",
    "1e999 * a": "1e999 is too large for a float here",
}


def test_what_is_refused(visit):
    visit.open("differentiate")
    for text, message in REFUSED.items():
        visit.fill("expression", text)
        visit.refuses(message)
    visit.fill("expression", "ω * ω")
    visit.press("to the end")
    visit.shows("grad_ω", 2)
    visit.fill("expression", "tanh(v) * m * u * p * q * r")  # none of these names is left for v1
    visit.says("t1 = tanh(v)")


@pytest.fixture(scope="module")
def page():
    """The page as a module, where marimo and matplotlib are installed."""
    pytest.importorskip("marimo")
    pytest.importorskip("matplotlib")
    from explorer import page02_differentiate

    return page02_differentiate


def test_nothing_is_guessed(page):
    for text, message in {
        "2a": "2a cannot be read",
        "tanh": "tanh is a function: write tanh(...)",
        "tanh(a, b)": "tanh(a, b) is no use of tanh, which takes one input",
        "a < b": "a < b is no operation here",
        "+a": "+a is no operation here",
        "'a' * 2": "'a' is no real number",
        "a + 1j": "1j is no real number",
        "a # b": "A # or a \\ is no part of an expression",
        "a_b": "a_b is no variable",
        "a+b+c+d+e+f+g": "g is one too many: at most 6 variables",
        "a + " * 60 + "a": "The expression has 241 letters; at most 200",
    }.items():
        with pytest.raises(ValueError) as refusal:
            page.take_apart(text)
        assert str(refusal.value).startswith(message)


def test_other_things_that_python_can_read_are_refused(page):
    for text in (
        *("a if b else c", "lambda: a", "[a]", "a,", "a @ b", "a // b", "a % b", "not a", "~a"),
        *("(a := 3)", "a[0]", "f'{a}'", "True", "None", "...", "tanh(x=a)", "tanh(*a)", "tanh()"),
        *("tanh(a)(a)", "{a: a}", "a and b", "a ^ b", "await a", "a; b", "-" * 199 + "a"),
        *("(" * 190 + "a", "\0", "a\\", "\ud800", "a ** 1j", "a ** True", "exp", "a ** {[]}"),
    ):
        with pytest.raises(ValueError, match=r"\.$") as refusal:
            page.take_apart(text)
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 160


def test_boxes_never_overlap_and_edges_go_down(page):
    from explorer import graph

    for text in (
        *page.EXAMPLES,
        "+".join(["a"] * 18),
        "-" * 30 + "a",
        "((a+b)*(c+d)+(a-c)*(b-d))/((a*d)**2+(b*c)**2)",
    ):
        lines = page.take_apart(text)
        _, titles = page.name_lines(lines)
        places = graph.place_boxes([line.inputs for line in lines], titles)
        assert set(places.ways) == {
            (i, k) for i, line in enumerate(lines) for k in range(len(line.inputs))
        }
        for (user, k), way in places.ways.items():
            assert way[0] == lines[user].inputs[k] and way[-1] == user
            levels = [places.layer[i] if isinstance(i, int) else i[2] for i in way]
            assert levels == list(range(levels[0], levels[-1] + 1))
        rows = {}
        for item in places.x:
            rows.setdefault(places.layer[item] if isinstance(item, int) else item[2], []).append(
                (places.x[item] - places.width[item] / 2, places.x[item] + places.width[item] / 2)
            )
        for row in rows.values():
            row.sort()
            assert all(left[1] < right[0] for left, right in zip(row, row[1:]))
            assert row[0][0] >= graph.MARGIN - 1e-9
            assert row[-1][1] <= graph.size(places)[0]
