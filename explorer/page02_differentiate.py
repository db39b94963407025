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
    form: str = ""  # of an operation: "{} * {}"
    inputs: tuple[int, ...] = ()  # the lines that it works on
    # its Value, from theirs; a variable has none
    make: Callable | None = None


@app.function
def cut(text):
    """A text for a message: not too long."""
    return text if len(text) <= 40 else f"{text[:37]}..."


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

    def visit_Constant(self, node, sign=1):
        number = node.value
        if type(number) not in (int, float):
            raise ValueError(f"{self.part(node)} is no real number.")
        return self.add(node, make=lambda: stage.Value(sign * number))

    def visit_UnaryOp(self, node):
        if not isinstance(node.op, ast.USub):
            self.generic_visit(node)
        if isinstance(node.operand, ast.Constant):  # -3 is a number
            line = self.visit_Constant(node.operand, sign=-1)
            self.lines[line] = self.lines[line]._replace(text=self.part(node))
            return line
        return self.add(node, "-{}", (self.visit(node.operand),), operator.neg)

    def visit_BinOp(self, node):
        if type(node.op) not in SIGNS:
            self.generic_visit(node)
        sign, operate = SIGNS[type(node.op)]
        left = self.visit(node.left)
        if sign == "**":
            exponent = Reader(self.text)
            exponent.visit(node.right)
            if not exponent.variables:  # a plain number, which the stage takes as it is
                n = build(exponent.lines, {})[-1].data
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
    """Each line's name: a variable and a number as typed; v1, v2, ... the operations."""
    letter = next(
        letter for letter in "vmutpqr" if not any(line.text.startswith(letter) for line in lines)
    )
    count = itertools.count(1)
    return [f"{letter}{next(count)}" if line.inputs else line.text for line in lines]


@app.function
def title_lines(lines, names):
    """What stands in each box: "a", "2", "v1 = a * b"."""
    titles = []
    for line, name in zip(lines, names):
        made = line.form.format(*[names[i] for i in line.inputs])
        titles.append(f"{name} = {made}" if made else name)
    return titles


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
    # the sum in `to`, with this contribution
    total: float


@app.function
def go_back(nodes):
    """The edges in the order of the stage's sweep, with the numbers that it multiplied."""
    place = {node: i for i, node in enumerate(nodes)}
    ends, products, edges, total = [], [], [], {}

    def times(slope, upstream):
        products.append((upstream, slope, slope * upstream))
        return slope * upstream

    for user, _ in stage.sweep(nodes[-1], 1.0, times):
        ends += [(place[user], k, place[v]) for k, v in enumerate(user._prev)]
    for (user, k, to), (upstream, slope, contribution) in zip(ends, products):
        total[to] = total[to] + contribution if to in total else contribution
        edges.append(Edge(user, k, to, upstream, slope, contribution, total[to]))
    return edges


@app.function
def count_steps(lines):
    """(forward, all): one step an operation; then the gradient 1 of the result, and the edges."""
    forward = sum(bool(line.inputs) for line in lines)
    return forward, forward + 1 + sum(len(line.inputs) for line in lines)


@app.class_definition
class Moment(NamedTuple):
    """What is known after some steps."""

    known: set  # lines that have their values
    latest: int | None  # the line that got its value in this step
    terms: dict  # line → the contributions that arrived so far
    total: dict  # line → their sum
    # the edges gone back along; the last one in this step
    passed: list


@app.function
def look_at(lines, nodes, edges, step):
    """The Moment after this many steps, in the order of the stage's topological_order and sweep."""
    place = {node: i for i, node in enumerate(nodes)}
    order = [place[node] for node in stage.topological_order(nodes[-1])]
    operations = [i for i in order if lines[i].inputs]
    inputs = set(order) - set(operations)
    back = step - len(operations)  # 0 or less: still on the way forward
    passed = edges[: max(0, back - 1)]
    terms, total = {}, {}
    if back > 0:  # the result's own gradient
        terms[len(lines) - 1], total[len(lines) - 1] = [1.0], 1.0
    for edge in passed:
        terms.setdefault(edge.to, []).append(edge.contribution)
        total[edge.to] = edge.total
    latest = operations[step - 1] if step and back <= 0 else None
    return Moment(inputs | set(operations[:step]), latest, terms, total, passed)


@app.function
def measure(lines, values, nodes, i):
    """∂result/∂(line i) by the stage's central differences: only values are asked for."""

    def result(x):
        return build(lines, values, {i: x})[-1].data

    return stage.measured_slope(result, nodes[i].data)


@app.function
def measure_all(lines, values, nodes):
    """For every line its measured derivative, or nan; and why there is none, or None."""
    slopes, reasons = [], []
    for i in range(len(lines)):
        slope, reason = math.nan, None
        try:
            slope = measure(lines, values, nodes, i)
        except ValueError as error:
            reason = str(error)
        slopes.append(slope)
        reasons.append(reason)
    return slopes, reasons


@app.function
def compare(lines, nodes, swept, measured):
    """What the derivatives by the sweep and by measuring, {variable: number} each, say together."""
    if not swept:
        return "There is no variable in this expression, so there is nothing to turn."
    if not all(map(math.isfinite, swept.values())):
        return "A slope or a product on the way is infinite here, so the sweep ends in inf or nan."
    gaps = {name: abs(swept[name] - measured[name]) for name in swept}  # nan: not measured
    apart = [name for name in swept if gaps[name] > AGREE * max(1, abs(swept[name]))]
    if not apart:
        same = [name for name in swept if math.isfinite(gaps[name])]
        return f"By both ways the same comes out for {', '.join(same)}." if same else ""
    told = f"The two differ in {', '.join(apart)}. "
    largest = max(abs(node.data) for node in nodes)
    rounding = 2.0**-53 * largest / 1e-6  # of a difference over 2h, with h near 5e-6
    if any(line.form.startswith("relu") and not nodes[line.inputs[0]].data for line in lines):
        return told + (
            "The input of a relu is 0, where it has a kink: the stage takes 0 for its slope there, "
            "and measuring finds the mean of the slopes on both sides."
        )
    if max(gaps[name] for name in apart) < rounding:
        return told + f"Rounding values near {largest:.1g} can make a difference of that size."
    return told + "A slope is wrong, or the expression bends too sharply to be measured."


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
            slope = f"{nodes[user]._slopes[k]:.4g}"
            if side < 0:
                slopes += graph.write_at(x - 8, y - 4, slope, colour, now, "end")
            else:
                slopes += graph.write_at(x + 8, y - 4, slope, colour, now, "start")
    return edges + slopes


@app.function
def draw_boxes(lines, titles, nodes, places, moment, uses):
    """SVG of the lines: in each box a title, a value, and the gradient so far."""
    boxes = ""
    for i, (line, node) in enumerate(zip(lines, nodes)):
        now = i == moment.latest or (moment.passed and i == moment.passed[-1].to)
        x, y = places.x[i], graph.top(places.layer[i])
        boxes += graph.draw_box(places, i, "quiet" if line.make else "blue", now)
        boxes += graph.write_at(x, y + 17, titles[i], bold=True)
        if i in moment.known:
            boxes += graph.write_at(x, y + 35, f"{node.data:.4g}")
        else:
            boxes += graph.write_at(x, y + 35, "?", "quiet")
        if i in moment.total:
            to_come = " + …" if len(moment.terms[i]) < uses[i] else ""
            boxes += graph.write_at(x, y + 53, f"{moment.total[i]:.4g}{to_come}", "orange", True)
    return boxes


@app.function
def write_sum(terms, uses):
    """The contributions to a gradient: "0.5 + -2 + …"; of many only the last three."""
    shown = [f"{term:.4g}" for term in terms[-3:]]
    if len(terms) > 3:
        shown.insert(0, f"{len(terms) - 3} others")
    if 0 < len(terms) < uses:
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
        "press *on* (or the arrow keys on *step*) until the end. First the values appear from "
        "top to bottom; then the gradient comes back along one edge at a time.",
        "`a` is used twice, so two edges lead back to it, and its gradient is the sum of what "
        "arrives on them. Then type an expression of your own, and compare the last table.",
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
    variables = [line.text for line in lines if line.make is None]
    sliders = mo.ui.dictionary(
        {
            name: mo.ui.slider(
                -3, 3, step=0.1, value=chosen.setdefault(name, 1), label=name, show_value=True
            )
            for name in variables
        },
        on_change=chosen.update,
    )
    look.controls(*sliders.elements.values())
    return sliders, variables


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
    forward, most = count_steps(lines)
    back = mo.ui.button(label="back", on_change=lambda _: set_step(lambda now: max(now - 1, 0)))
    on = mo.ui.button(label="on", on_change=lambda _: set_step(lambda now: min(now + 1, most)))
    return back, forward, most, on


@app.cell
def _(back, get_step, most, on, set_step):
    step = mo.ui.slider(
        0, most, value=min(get_step(), most), label="step", show_value=True, on_change=set_step
    )
    look.controls(step, back, on)
    return (step,)


@app.cell
def _(lines):
    mo.stop(lines is None)
    names = name_lines(lines)
    titles = title_lines(lines, names)
    places = graph.place_boxes([line.inputs for line in lines], titles)
    uses = [sum(line.inputs.count(i) for line in lines) for i in range(len(lines))]
    return names, places, titles, uses


@app.cell
def _(lines, nodes, sliders):
    mo.stop(nodes is None)
    measured, reasons = measure_all(lines, sliders.value, nodes)
    return measured, reasons


@app.cell
def _(edges, lines, nodes, step):
    mo.stop(nodes is None)
    moment = look_at(lines, nodes, edges, step.value)
    return (moment,)


@app.cell
def _(forward, moment, most, names, nodes, step, titles, uses):
    if step.value == 0:
        told = look.sentence(
            f"Nothing is computed yet. There will be {forward} steps forward, one an operation; "
            f"then one that begins at the result, and {most - forward - 1} back, one an edge."
        )
    elif moment.latest is not None:
        _node = nodes[moment.latest]
        told = look.sentence(
            f"Forward: {titles[moment.latest]} = ",
            look.number("value", _node.data, ".4g"),
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
        _left = uses[_edge.to] - len(moment.terms[_edge.to])
        told = look.sentence(
            f"Back from {names[_edge.user]} to {names[_edge.to]}: upstream ",
            look.number("upstream", _edge.upstream, ".4g"),
            " × slope ",
            look.number("slope", _edge.slope, ".4g"),
            " = contribution ",
            look.number("contribution", _edge.contribution, ".4g"),
            f". The sum in {names[_edge.to]} is now ",
            look.number("sum", _edge.total, ".4g"),
            f", and {_left} more will come." if _left else ", and complete.",
        )
    look.steady(told)
    return


@app.cell
def _(lines, measured, moment, most, names, nodes, places, step, titles, uses):
    _complete = sum(len(terms) == max(1, uses[i]) for i, terms in moment.terms.items())
    _graph = look.drawing(
        *graph.size(places),
        draw_edges(nodes, places, moment) + draw_boxes(lines, titles, nodes, places, moment, uses),
        f"After step {step.value} of {most}, {len(moment.known)} of {len(lines)} values are known "
        f"and {_complete} gradients complete. In a box stand a name, a value and, below, the "
        "gradient; beside an edge stands its slope.",
    )
    _rows = []
    for _node in reversed(stage.topological_order(nodes[-1])):
        _i = nodes.index(_node)
        _value, _sum, _beside = "?", "", ""
        if _i in moment.known:
            _value = look.number(f"value_{names[_i]}", _node.data, ".4g")
        if _i in moment.total:
            _sum = look.number(f"grad_{names[_i]}", moment.total[_i], ".4g")
        _terms = moment.terms.get(_i, [])
        if len(_terms) == max(1, uses[_i]):  # complete, so it can be compared
            _beside = look.number(f"beside_{names[_i]}", measured[_i], ".4g")
        _rows.append([titles[_i], _value, write_sum(_terms, uses[_i]), _sum, _beside])
    _sums = look.table("sums", ["", "value", "contributions", "gradient", "measured"], _rows)
    look.beside(_graph, _sums) if graph.size(places)[0] < 560 else look.below(_graph, _sums)
    return


@app.cell
def _(nodes):
    mo.stop(nodes is None)
    look.heading("The same derivatives, measured")
    return


@app.cell
def _(lines, measured, nodes, reasons, variables):
    mo.stop(nodes is None)
    _places = {name: next(i for i, x in enumerate(lines) if x.text == name) for name in variables}
    _swept = {name: nodes[i].grad for name, i in _places.items()}
    _measured = {name: measured[i] for name, i in _places.items()}
    _unmeasured = [
        f"{name} cannot be measured: {reasons[i]}. " for name, i in _places.items() if reasons[i]
    ]
    _rows = [
        [
            name,
            look.number(f"swept_{name}", _swept[name], ".6g"),
            look.number(f"measured_{name}", _measured[name], ".6g"),
            look.number(f"gap_{name}", abs(_swept[name] - _measured[name]), ".1e"),
        ]
        for name in variables
    ]
    look.below(
        look.table("derivatives", ["variable", "by the sweep", "measured", "difference"], _rows),
        look.sentence(compare(lines, nodes, _swept, _measured), " ", *_unmeasured),
    )
    return


if __name__ == "__main__":
    app.run()
