"""Stage 2, live: an expression as a graph; its values forward, its gradient back, edge by edge."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="full",
    app_title="2 differentiate",
    css_file="look.css",
    html_head_file="look.html",
)

with app.setup:
    import ast
    import itertools
    import math
    import operator
    from collections.abc import Callable
    from typing import NamedTuple

    import marimo as mo

    import stage02_autograd as stage
    from explorer import graph, look

    FIRST = "tanh(a*b + c) * a"
    EXAMPLES = {  # expression → values at which it is worth a look
        "a*b*a": {"a": 3, "b": 2},  # the numbers of the stage's first page
        FIRST: {"a": 2, "b": -1, "c": 1.5},
        "log(sigmoid(w*x + b))": {"w": 1, "x": -2, "b": 0.5},
        "(x**2 + y**2)**0.5": {"x": 3, "y": -2},
        "x**y / (1 + exp(-x))": {"x": 2, "y": 3},
        "relu(x) - 0.1*relu(-x)": {"x": 0},  # a kink
    }
    AGREE = 1e-6  # of a derivative, or of 1: more than measuring usually misses by
    MOST_LETTERS, MOST_LINES, MOST_VARIABLES = 200, 40, 6

    # What may be typed. The functions are those that the stage's rulebook has, under its names.
    FUNCTIONS = [
        name
        for name, method in vars(stage.Operators).items()
        if callable(method) and not name.startswith("_")
    ]
    SIGNS = {
        ast.Add: ("+", operator.add),
        ast.Sub: ("-", operator.sub),
        ast.Mult: ("*", operator.mul),
        ast.Div: ("/", operator.truediv),
        ast.Pow: ("**", operator.pow),
    }
    KNOWN = f"stage 2 knows + - * / ** and {', '.join(FUNCTIONS)}"


@app.class_definition
class Line(NamedTuple):
    """One line of an expression taken apart: a variable, a number, or one operation."""

    text: str  # what was typed
    form: str = ""  # of an operation, how it is written: "{} * {}"
    inputs: tuple[int, ...] = ()  # the numbers of the lines that it works on
    # makes its Value from theirs; a variable has none
    make: Callable | None = None


@app.function
def cut(text):
    """A text for a message: not too long."""
    return text if len(text) <= 40 else f"{text[:37]}..."


@app.function
def plain_number(node):
    """The finite number that is written here, perhaps with a minus before it; else None."""
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    if not isinstance(node, ast.Constant) or type(node.value) not in (int, float):
        return None
    return sign * node.value if math.isfinite(node.value) else None


@app.class_definition
class Reader(ast.NodeVisitor):
    """Takes Python's tree of an expression apart; each visit returns the number of a line."""

    def __init__(self, text):
        self.text = text
        self.lines = []
        self.variables = {}  # name → its line, the same for all its uses

    def part(self, node):
        """What was typed for this node."""
        return cut(ast.get_source_segment(self.text, node) or type(node).__name__)

    def add(self, node, form="", inputs=(), make=None):
        if len(self.lines) == MOST_LINES:
            raise ValueError(f"The expression is too large: at most {MOST_LINES} nodes go here.")
        self.lines.append(Line(self.part(node), form, inputs, make))
        return len(self.lines) - 1

    def visit_Name(self, node):
        name = node.id
        if name in FUNCTIONS:
            raise ValueError(f"{name} is a function: write {name}(...) around its input.")
        if len(name) > 8 or not name.isalnum():
            raise ValueError(f"{self.part(node)} is no variable: at most 8 letters or digits.")
        if name not in self.variables:
            if len(self.variables) == MOST_VARIABLES:
                raise ValueError(f"{name} is one too many: at most {MOST_VARIABLES} variables.")
            self.variables[name] = self.add(node)
        return self.variables[name]

    def visit_Constant(self, node):
        if type(node.value) not in (int, float):
            raise ValueError(f"{self.part(node)} is no real number.")
        return self.add(node, make=lambda: stage.Value(node.value))

    def visit_UnaryOp(self, node):
        if not isinstance(node.op, ast.USub):
            self.generic_visit(node)
        return self.add(node, "-{}", (self.visit(node.operand),), operator.neg)

    def visit_BinOp(self, node):
        if type(node.op) not in SIGNS:
            self.generic_visit(node)
        sign, operate = SIGNS[type(node.op)]
        left = self.visit(node.left)
        n = plain_number(node.right)
        if sign == "**" and n is not None:  # the stage takes an exponent like 2 or -0.5 as it is
            return self.add(node, f"{{}} ** {n:g}", (left,), lambda x: x**n)
        return self.add(node, f"{{}} {sign} {{}}", (left, self.visit(node.right)), operate)

    def visit_Call(self, node):
        name = self.part(node.func)
        if not isinstance(node.func, ast.Name) or name not in FUNCTIONS:
            raise ValueError(f"{name} is no function here: {KNOWN}.")
        if len(node.args) != 1 or node.keywords or isinstance(node.args[0], ast.Starred):
            raise ValueError(f"{self.part(node)} is no use of {name}, which takes one input.")
        method = getattr(stage.Value, name)
        return self.add(node, f"{name}({{}})", (self.visit(node.args[0]),), method)

    def generic_visit(self, node):
        raise ValueError(f"{self.part(node)} is no operation here: {KNOWN}.")


@app.function
def take_apart(text):
    """The lines of a typed expression, inputs before users; nothing of it is run by Python."""
    text = " ".join(text.split())
    if not text:
        raise ValueError(f"The expression is empty: type one, such as {FIRST}.")
    if len(text) > MOST_LETTERS:
        raise ValueError(f"The expression has {len(text)} letters; at most {MOST_LETTERS} go here.")
    if "#" in text or "\\" in text:
        raise ValueError(f"A # or a \\ is no part of an expression: {KNOWN}.")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        message = getattr(error, "msg", "it is no text that Python can read")
        raise ValueError(f"{cut(text)} cannot be read: {message}.") from error
    reader = Reader(text)
    reader.visit(tree.body)
    return reader.lines


@app.function
def build(lines, values, held=None):
    """The stage's Value of every line. ValueError: one of them is no finite number here.

    held: {line: number} to put in the place of what the line makes.
    """
    nodes = []
    for i, line in enumerate(lines):
        inputs = [nodes[j] for j in line.inputs]
        try:
            if held and i in held:
                node = stage.Value(held[i])
            elif line.make:
                node = line.make(*inputs)
            else:
                node = stage.Value(values[line.text])
            if not math.isfinite(node.data):
                raise OverflowError
        except OverflowError:
            raise ValueError(f"{line.text} is too large for a float here.") from None
        except ZeroDivisionError:
            raise ValueError(f"{line.text} divides by zero here.") from None
        except ValueError as error:
            raise ValueError(f"{line.text} has no value here: {error}.") from None
        nodes.append(node)
    return nodes


@app.function
def name_lines(lines):
    """Each line's name ("a", "2", "v1"), and what stands in its box ("a", "2", "v1 = a * b")."""
    variables = [line.text for line in lines if line.make is None]
    taken = {name[0] for name in variables}
    letter = next(letter for letter in "vmutpqr" if letter not in taken)  # 6 at most are
    count = itertools.count(1)
    names = [f"{letter}{next(count)}" if line.inputs else line.text for line in lines]
    titles = []
    for line, name in zip(lines, names):
        made = line.form.format(*[names[i] for i in line.inputs])
        titles.append(f"{name} = {made}" if made else name)
    return names, titles


@app.cell
def _():
    # What happens at each step
    return


@app.class_definition
class Edge(NamedTuple):
    """What came back along one edge."""

    user: int  # the line that has the upstream gradient
    k: int  # which of its inputs
    to: int  # the line of this input
    upstream: float
    slope: float
    contribution: float


@app.function
def go_back(nodes):
    """The edges in the order of the stage's sweep, with the numbers that it multiplied."""
    ends, products = [], []

    def times(slope, upstream):
        products.append((upstream, slope, slope * upstream))
        return slope * upstream

    for user, _ in stage.sweep(nodes[-1], 1.0, times):
        ends += [(nodes.index(user), k, nodes.index(v)) for k, v in enumerate(user._prev)]
    return [Edge(*end, *product) for end, product in zip(ends, products)]


@app.class_definition
class Moment(NamedTuple):
    """What is known after some steps."""

    known: set  # lines that have their values
    latest: int | None  # the line that got its value in this step
    passed: list  # the edges gone back along; the last one in this step
    terms: dict  # line → the contributions that arrived so far
    total: dict  # line → their sum
    # lines whose contributions have all arrived
    complete: set


@app.function
def look_at(lines, nodes, edges, step):
    """The Moment after this many steps: one an operation, one that begins, one an edge."""
    order = [nodes.index(node) for node in stage.topological_order(nodes[-1])]
    operations = [i for i in order if lines[i].inputs]
    inputs = set(order) - set(operations)
    begun = step > len(operations)  # on the way back
    passed = edges[: step - len(operations) - 1] if begun else []
    latest = operations[step - 1] if step and not begun else None
    terms = {len(lines) - 1: [1.0]} if begun else {}  # the result's gradient in itself
    for edge in passed:
        terms.setdefault(edge.to, []).append(edge.contribution)
    complete = {i for i in terms if i not in [edge.to for edge in edges[len(passed) :]]}
    total = {i: nodes[i].grad if i in complete else sum(terms[i]) for i in terms}
    return Moment(inputs | set(operations[:step]), latest, passed, terms, total, complete)


@app.function
def measure(lines, values, nodes):
    """For each line ∂result/∂line by the stage's central differences, which ask for values only.

    Returns also the reason why the last line that cannot be measured, nan, cannot, or "".
    """
    slopes, reason = [], ""
    for i, line in enumerate(lines):

        def result(x, i=i):
            return build(lines, values, {i: x})[-1].data

        try:
            slopes.append(stage.measured_slope(result, nodes[i].data))
        except ValueError as error:
            slopes.append(math.nan)
            reason = f"{line.text} cannot be measured: {error}."
    return slopes, reason


@app.function
def compare(lines, names, nodes, measured):
    """What the gradients by the sweep and by measuring say together."""
    if not all(math.isfinite(node.grad) for node in nodes):
        return "A slope or a product on the way is infinite here, so the sweep ends in inf or nan."
    differing = [
        name
        for name, node, slope in zip(names, nodes, measured)
        if abs(node.grad - slope) > AGREE * max(1, abs(node.grad))
    ]
    if not differing:
        return "Each gradient is what measuring finds."
    told = f"Gradient and measured slope differ in {', '.join(dict.fromkeys(differing))}. "
    if any(line.form.startswith("relu") and not nodes[line.inputs[0]].data for line in lines):
        return told + (
            "The input of a relu is 0, where it has a kink: the stage takes 0 for its slope there, "
            "and measuring finds the mean of the slopes on both sides."
        )
    return told + (
        "Either the values are so large that rounding hides small changes, or the expression "
        "bends too sharply to be measured, or a slope is wrong."
    )


@app.cell
def _():
    # The graph
    return


@app.function
def draw_edges(nodes, places, moment):
    """SVG of the edges, and beside each, as soon as it is known, its slope."""
    passed = [(edge.user, edge.k) for edge in moment.passed]
    edges, slopes = "", ""
    for user, k in sorted(places.ways, key=lambda edge: edge in passed):
        side = graph.arrival(places, user, k)
        points = graph.find_way(places, places.ways[user, k], places.x[user] + side)
        gone = (user, k) in passed
        now = user == moment.latest or (gone and passed[-1] == (user, k))
        colour = "orange" if gone else "quiet"
        edges += graph.draw_edge(points, colour, 3.5 if now else 1.5, upward=gone)
        if user in moment.known:
            x, y = points[-1]
            slope = look.written(nodes[user]._slopes[k], ".4g")
            if side < 0:
                slopes += graph.write_at(x - 8, y - 4, slope, colour, now, "end")
            else:
                slopes += graph.write_at(x + 8, y - 4, slope, colour, now, "start")
    return edges + slopes


@app.function
def draw_boxes(lines, titles, nodes, places, moment):
    """SVG of the lines: in each box a title, a value, and the gradient so far."""
    boxes = ""
    for i, (line, node) in enumerate(zip(lines, nodes)):
        now = i == moment.latest or (moment.passed and i == moment.passed[-1].to)
        x, y = places.x[i], graph.top(places.layer[i])
        boxes += graph.draw_box(places, i, "quiet" if line.make else "blue", now)
        boxes += graph.write_at(x, y + 17, titles[i], bold=True)
        if i in moment.known:
            boxes += graph.write_at(x, y + 35, look.written(node.data, ".4g"))
        else:
            boxes += graph.write_at(x, y + 35, "?", "quiet")
        if i in moment.total:
            to_come = "" if i in moment.complete else " + …"
            so_far = look.written(moment.total[i], ".4g") + to_come
            boxes += graph.write_at(x, y + 53, so_far, "orange", True)
    return boxes


@app.function
def write_sum(terms, complete):
    """The contributions to a gradient: "0.5 + -2 + …"; of many only the last three."""
    shown = [look.written(term, ".4g") for term in terms[-3:]]
    if len(terms) > 3:
        shown.insert(0, f"{len(terms) - 3} others")
    if terms and not complete:
        shown.append("…")
    return " + ".join(shown)


@app.cell
def _():
    # The page
    return


@app.cell
def _():
    look.header(2)
    return


@app.cell
def _():
    look.hint(
        "press *next* (or the arrow keys on *step*) until the end. First the values appear from "
        "top to bottom; then the gradient comes back along one edge at a time.",
        f"`{FIRST}` uses `a` twice, so two edges lead back to it, and its gradient is the sum of "
        "what arrives on them. As soon as a gradient is complete, the table shows beside it what "
        "measuring finds. Move a variable, or type an expression of your own, and compare the two.",
    )
    return


@app.cell
def _():
    get_text, set_text = mo.state(FIRST)
    get_step, set_step = mo.state(0)
    chosen = dict(EXAMPLES[FIRST])  # the last value of each variable, kept while you type
    return chosen, get_step, get_text, set_step, set_text


@app.cell
def _(chosen, set_step, set_text):
    def show(example):
        def press(_):
            chosen.update(EXAMPLES[example])
            set_text(example)
            set_step(0)

        return press

    # A label is Markdown, where a plain * would begin a slanted word.
    _labels = {example: example.replace("*", r"\*") for example in EXAMPLES}
    examples = mo.ui.array(
        [mo.ui.button(label=_labels[example], on_change=show(example)) for example in EXAMPLES]
    )
    look.controls(*examples)
    return


@app.cell
def _(get_text, set_step, set_text):
    def typed(text):
        set_text(text)
        set_step(0)

    expression = mo.ui.text(
        get_text(), label="expression", debounce=False, full_width=True, on_change=typed
    )
    expression
    return (expression,)


@app.cell
def _(expression):
    lines, refused = None, None
    try:
        lines = take_apart(expression.value)
    except ValueError as error:
        refused = look.problem(error)
    refused
    return (lines,)


@app.cell
def _(chosen, lines):
    mo.stop(lines is None)
    sliders = mo.ui.dictionary(
        {
            line.text: mo.ui.slider(
                *(-3, 3, 0.1, chosen.setdefault(line.text, 1)), label=line.text, show_value=True
            )
            for line in lines
            if line.make is None
        },
        on_change=chosen.update,
    )
    look.controls(*sliders.elements.values())
    return (sliders,)


@app.cell
def _(lines, sliders):
    nodes, edges, nowhere = None, None, None
    try:
        nodes = build(lines, sliders.value)
        nodes[-1].backward()
        edges = go_back(nodes)
    except ValueError as error:
        nowhere = look.problem(error)
    nowhere
    return edges, nodes


@app.cell
def _(lines, set_step):
    mo.stop(lines is None)
    forward = sum(bool(line.inputs) for line in lines)  # steps: one an operation
    most = forward + 1 + sum(len(line.inputs) for line in lines)  # and one an edge
    buttons = [
        mo.ui.button(label="previous", on_change=lambda _: set_step(lambda now: max(now - 1, 0))),
        mo.ui.button(label="next", on_change=lambda _: set_step(lambda now: min(now + 1, most))),
        mo.ui.button(label="to the end", on_change=lambda _: set_step(most)),
    ]
    return buttons, forward, most


@app.cell
def _(buttons, get_step, most, set_step):
    step = mo.ui.slider(
        0, most, value=min(get_step(), most), label="step", show_value=True, on_change=set_step
    )
    look.controls(step, *buttons)
    return (step,)


@app.cell
def _(lines):
    mo.stop(lines is None)
    names, titles = name_lines(lines)
    places = graph.place_boxes([line.inputs for line in lines], titles)
    return names, places, titles


@app.cell
def _(lines, nodes, sliders):
    mo.stop(nodes is None)
    measured, unmeasured = measure(lines, sliders.value, nodes)
    return measured, unmeasured


@app.cell
def _(edges, lines, nodes, step):
    mo.stop(nodes is None)
    moment = look_at(lines, nodes, edges, step.value)
    return (moment,)


@app.cell
def _(forward, moment, most, names, nodes, step, titles):
    if step.value == 0:
        told = look.sentence(
            f"Nothing is computed yet. There will be {forward} steps forward, one for each "
            "operation, then one that starts the way back, and "
            f"{most - forward - 1} back, one for each edge."
        )
    elif moment.latest is not None:
        told = look.sentence(
            f"Forward: {titles[moment.latest]} = ",
            look.number("value", nodes[moment.latest].data, ".4g"),
            ". Beside its edges stand its slopes: how many times as fast as each input it changes.",
        )
    elif not moment.passed:
        told = look.sentence(
            f"Backward begins: the result {names[-1]} changes exactly as fast as itself, so its "
            "gradient is ",
            look.number("seed", moment.total[len(names) - 1], "g"),
            ".",
        )
    else:
        _edge = moment.passed[-1]
        told = look.sentence(
            f"Back from {names[_edge.user]} to {names[_edge.to]}: upstream ",
            look.number("upstream", _edge.upstream, ".4g"),
            " × slope ",
            look.number("slope", _edge.slope, ".4g"),
            " = contribution ",
            look.number("contribution", _edge.contribution, ".4g"),
            f". The sum in {names[_edge.to]} is now ",
            look.number("sum", moment.total[_edge.to], ".4g"),
            ", and complete." if _edge.to in moment.complete else ", and more will come.",
        )
    look.steady(told)
    return


@app.cell
def _(
    lines,
    measured,
    moment,
    most,
    names,
    nodes,
    places,
    step,
    titles,
    unmeasured,
):
    _graph = look.drawing(
        *graph.size(places),
        draw_edges(nodes, places, moment) + draw_boxes(lines, titles, nodes, places, moment),
        f"After step {step.value} of {most}, {len(moment.known)} of {len(lines)} values are known "
        f"and {len(moment.complete)} gradients complete. In a box stand a name, a value and, "
        "below, the gradient; beside an edge stands its slope.",
    )
    _rows = []
    for _i in reversed(range(len(lines))):  # the result first
        _value, _sum, _measured = "?", "", ""
        if _i in moment.known:
            _value = look.number(f"value_{names[_i]}", nodes[_i].data, ".4g")
        if _i in moment.total:
            _sum = look.number(f"grad_{names[_i]}", moment.total[_i], ".4g")
        if _i in moment.complete:
            _measured = look.number(f"measured_{names[_i]}", measured[_i], ".4g")
        _terms = write_sum(moment.terms.get(_i, []), _i in moment.complete)
        _rows.append([titles[_i], _value, _terms, _sum, _measured])
    _sums = look.table("sums", ["", "value", "contributions", "gradient", "measured"], _rows)
    if step.value == most:
        _said = look.sentence(compare(lines, names, nodes, measured), " ", unmeasured)
        _sums = look.below(_sums, _said)
    look.beside(_graph, _sums) if graph.size(places)[0] < 560 else look.below(_graph, _sums)
    return


if __name__ == "__main__":
    app.run()
