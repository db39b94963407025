"""Stage 2, live: an expression as a graph; its values forward, its gradient back, edge by edge."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="full", app_title="2 differentiate", css_file="look.css", html_head_file="look.html"
)

with app.setup:
    import ast
    import html
    import itertools
    import math
    import operator
    from collections.abc import Callable
    from typing import NamedTuple

    import marimo as mo

    import stage02_autograd as stage
    from explorer import look

    FIRST = "tanh(a*b + c) * a"
    EXAMPLES = {  # expression → values at which it is worth a look
        "a*b*a": {"a": 3, "b": 2},  # the numbers of the stage's first page
        FIRST: {"a": 2, "b": -1, "c": 1.5},
        "log(sigmoid(w*x + b))": {"w": 1, "x": -2, "b": 0.5},
        "(x**2 + y**2)**0.5": {"x": 3, "y": -2},
        "x**y / (1 + exp(-x))": {"x": 2, "y": 3},
        "relu(x) + relu(-x)": {"x": 0},
    }
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

    # The drawing, in pixels.
    HIGH, APART, LETTER = 60, 50, 7.3


@app.class_definition
class Line(NamedTuple):
    """One line of an expression taken apart: a variable, a number, or one operation."""

    text: str  # what was typed
    form: str = ""  # of an operation: "{} * {}"
    inputs: tuple[int, ...] = ()  # the lines that it works on
    make: Callable | None = None  # its Value, from theirs; a variable has none


@app.class_definition
class Reader(ast.NodeVisitor):
    """Takes Python's tree of an expression apart; each visit returns the number of a line."""

    def __init__(self, text):
        self.text = text
        self.lines = []
        self.variables = {}  # name → its line, the same for all its uses

    def part(self, node):
        """What was typed for this node, cut if it is long."""
        typed = ast.get_source_segment(self.text, node) or type(node).__name__
        return typed if len(typed) <= 40 else f"{typed[:37]}..."

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
    text = text.strip()
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
        raise ValueError(f"{text} cannot be read: {message}.") from error
    reader = Reader(text)
    reader.visit(tree.body)
    return reader.lines


@app.function
def build(lines, values):
    """The stage's Value of every line. ValueError: one of them is no finite number here."""
    nodes = []
    for line in lines:
        inputs = [nodes[i] for i in line.inputs]
        try:
            node = line.make(*inputs) if line.make else stage.Value(values[line.text])
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


# What happens at each step


@app.class_definition
class Edge(NamedTuple):
    """What came back along one edge."""

    user: int  # the line that has the upstream gradient
    k: int  # which of its inputs
    to: int  # the line of this input
    upstream: float
    slope: float
    contribution: float
    total: float  # the sum in `to`, with this contribution


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
    passed: list  # the edges gone back along; the last one in this step


@app.function
def look_at(lines, nodes, edges, step):
    """The Moment after this many steps, in the order of the stage's topological_order and sweep."""
    place = {node: i for i, node in enumerate(nodes)}
    order = [place[node] for node in stage.topological_order(nodes[-1])]
    operations = [i for i in order if lines[i].inputs]
    inputs = set(order) - set(operations)
    back = step - len(operations)  # 0 or less: still on the way forward
    passed = edges[: max(0, back - 1)]
    terms = {len(lines) - 1: [1.0]} if back > 0 else {}
    for edge in passed:
        terms.setdefault(edge.to, []).append(edge.contribution)
    latest = operations[step - 1] if step and back <= 0 else None
    return Moment(inputs | set(operations[:step]), latest, terms, passed)


@app.function
def measure(lines, values, name):
    """∂result/∂name by the stage's central differences; no graph is gone back through."""

    def result(x):
        return build(lines, {**values, name: x})[-1].data

    return stage.measured_slope(result, float(values[name]))


@app.function
def agree(a, b):
    """Whether two derivatives differ by less than rounding explains; nan agrees with nothing."""
    return abs(a - b) <= 1e-6 * max(1.0, abs(a))


@app.function
def compare(lines, nodes, swept, measured):
    """What the two kinds of derivatives, {variable: number} each, say about each other."""
    if not swept:
        return "There is no variable in this expression, so there is nothing to turn."
    if not all(map(math.isfinite, swept.values())):
        return "A slope on the way is infinite here, and what is multiplied by it is no number."
    apart = [name for name in swept if not agree(swept[name], measured[name])]
    if not apart:
        return "Measured with two values of the expression each, all of them agree with the sweep."
    told = f"The two do not agree about {', '.join(apart)}."
    if any(line.text.startswith("relu(") and not nodes[line.inputs[0]].data for line in lines):
        told += (
            " The input of a relu is 0, where relu has a kink: the stage takes 0 as its slope, and "
            "measuring finds the mean of the slopes on the left and on the right."
        )
    return told


# The graph


@app.function
def place_boxes(lines, titles):
    """Layers from the inputs above to the result below: (x of each line, y of each line, width of
    each box, way of each edge). A way is the list of x at which an edge passes through layers.
    """
    layer = [0] * len(lines)
    users = [[] for _ in lines]
    for i, line in enumerate(lines):
        for j in line.inputs:
            users[j].append(i)
        if line.inputs:
            layer[i] = 1 + max(layer[j] for j in line.inputs)
    for i, line in enumerate(lines):
        if users[i] and not line.inputs:  # an input stands just above its first user
            layer[i] = min(layer[u] for u in users[i]) - 1
    # An edge that skips layers gets a narrow place of its own in each of them.
    width = {i: max(76, LETTER * len(title) + 18) for i, title in enumerate(titles)}
    rows = [[] for _ in range(max(layer) + 1)]
    ways, near, x = {}, {}, {}
    for i, line in enumerate(lines):
        rows[layer[i]].append(i)
        near.setdefault(i, [])
        x[i] = 90.0 * i
        for k, j in enumerate(line.inputs):
            between = [(i, k, level) for level in range(layer[j] + 1, layer[i])]
            for item in between:
                rows[item[2]].append(item)
                width[item], x[item], near[item] = 14, x[j], []
            ways[i, k] = [j, *between, i]
            for above, below in itertools.pairwise(ways[i, k]):
                near[above].append(below)
                near[below].append(above)
    # Again and again each moves to the middle of its neighbours, as far as there is room.
    for turn in range(24):
        for row in rows if turn % 2 else reversed(rows):
            wish = {item: sum(x[n] for n in near[item] or [item]) for item in row}
            wish = {item: total / max(1, len(near[item])) for item, total in wish.items()}
            row.sort(key=wish.get)
            for last, item in itertools.pairwise([None, *row]):
                room = -math.inf if last is None else x[last] + (width[last] + width[item]) / 2 + 18
                x[item] = max(wish[item], room)
            shift = sum(wish[item] - x[item] for item in row) / len(row)
            for item in row:
                x[item] += shift
    left = min(x[item] - width[item] / 2 for item in x) - 50  # room for a slope beside an edge
    x = {item: value - left for item, value in x.items()}
    return x, layer, width, ways


@app.function
def write_at(x, y, text, colour="ink", bold=False, anchor="middle"):
    """SVG: a word, on a rim of paper."""
    style = (
        f"fill:var(--{colour});stroke:var(--paper);stroke-width:4px;paint-order:stroke;"
        f"font-size:13px;font-weight:{700 if bold else 400};text-anchor:{anchor}"
    )
    return look.tag("text", html.escape(text), x=f"{x:.1f}", y=f"{y:.1f}", style=style)


@app.function
def draw_edge(points, colour, thick, upward):
    """SVG: a smooth line downward through points, with an arrowhead at one of its ends."""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        middle = (y0 + y1) / 2
        path += f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
    (x, y), back = (points[0], 9) if upward else (points[-1], -9)
    head = f"M{x:.1f} {y:.1f}l-5 {back}h10z"
    line = f"fill:none;stroke:var(--{colour});stroke-width:{thick}px"
    return look.tag("path", d=path, style=line) + look.tag(
        "path", d=head, style=f"fill:var(--{colour})"
    )


@app.function
def draw_graph(lines, titles, boxes, nodes, moment, uses):
    """SVG of what is known at this moment: (width, height, inside)."""
    x, layer, width, ways = boxes
    top = [12 + (HIGH + APART) * level for level in layer]
    passed = {(edge.user, edge.k) for edge in moment.passed}
    latest = moment.passed[-1] if moment.passed else None
    edges, slopes, rectangles = "", "", ""
    for (user, k), way in sorted(ways.items(), key=lambda item: item[0] in passed):
        # Two edges arrive at a box side by side, in the order of where they come from.
        comes = [x[ways[user, j][-2]] for j in range(len(lines[user].inputs))]
        side = 0
        if len(comes) == 2:
            side = -1 if (comes[k], k) < (comes[1 - k], 1 - k) else 1
        points = [(x[way[0]], top[way[0]] + HIGH)]
        for item in way[1:-1]:
            level = 12 + (HIGH + APART) * item[2]
            points += [(x[item], level), (x[item], level + HIGH)]
        points.append((x[user] + 16 * side, top[user]))
        now = latest is not None and (latest.user, latest.k) == (user, k)
        gone = (user, k) in passed
        colour = "orange" if gone else "quiet"
        edges += draw_edge(points, colour, 3.5 if now else 1.5, gone)
        if user in moment.known:
            anchor = "end" if side < 0 else "start"
            place = x[user] + 16 * side + (-9 if side < 0 else 9)
            slope = f"{nodes[user]._slopes[k]:.4g}"
            colour = "orange" if gone else "quiet"
            slopes += write_at(place, top[user] - 9, slope, colour, now, anchor)
    for i, line in enumerate(lines):
        now = i == moment.latest or (latest is not None and i == latest.to)
        colour = "blue" if not line.inputs and line.make is None else "quiet"
        style = (
            f"fill:var(--{'wash' if now else 'paper'});stroke:var(--{colour});"
            f"stroke-width:{2.5 if now else 1.2}px"
        )
        rectangles += look.tag(
            "rect",
            x=f"{x[i] - width[i] / 2:.1f}",
            y=top[i],
            width=f"{width[i]:.1f}",
            height=HIGH,
            rx=6,
            style=style,
        )
        rectangles += write_at(x[i], top[i] + 17, titles[i], "ink", True)
        value = f"{nodes[i].data:.4g}" if i in moment.known else "?"
        rectangles += write_at(x[i], top[i] + 35, value, "ink" if i in moment.known else "quiet")
        if i in moment.terms:
            total = next((e.total for e in reversed(moment.passed) if e.to == i), 1.0)
            more = " + ..." if len(moment.terms[i]) < uses[i] else ""
            rectangles += write_at(x[i], top[i] + 53, f"{total:.4g}{more}", "orange", True)
    wide = max(x[item] + width[item] / 2 for item in x) + 50
    return wide, max(top) + HIGH + 12, edges + slopes + rectangles


# The page


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
        chosen.update(EXAMPLES[example])
        set_text(example)
        set_step(0)

    _examples = [
        mo.ui.button(label=f"`{example}`", on_change=lambda _, example=example: show(example))
        for example in EXAMPLES
    ]
    look.controls(*_examples)
    return


@app.cell
def _(get_text, set_step):
    expression = mo.ui.text(
        get_text(),
        label="expression",
        debounce=False,
        full_width=True,
        on_change=lambda _: set_step(0),
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
    boxes = place_boxes(lines, titles)
    uses = [sum(line.inputs.count(i) for line in lines) for i in range(len(lines))]
    return boxes, names, titles, uses


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
            look.number("seed", moment.terms[len(names) - 1][0], "g"),
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
def _(boxes, lines, moment, most, names, nodes, step, titles, uses):
    _complete = sum(len(terms) == max(1, uses[i]) for i, terms in moment.terms.items())
    _picture = look.drawing(
        *draw_graph(lines, titles, boxes, nodes, moment, uses),
        f"After step {step.value} of {most}, {len(moment.known)} of {len(lines)} values are known "
        f"and {_complete} gradients complete. In a box stand a name, a value and, below, the "
        "gradient; beside an edge stands its slope.",
    )
    _rows = []
    for _i in reversed([nodes.index(node) for node in stage.topological_order(nodes[-1])]):
        _terms = moment.terms.get(_i, [])
        _more = [" + ..."] if 0 < len(_terms) < uses[_i] else []
        _total = next((e.total for e in reversed(moment.passed) if e.to == _i), 1.0)
        _sum = " + ".join(f"{term:.4g}" for term in _terms)
        _rows.append(
            [
                titles[_i],
                f"{nodes[_i].data:.4g}" if _i in moment.known else "?",
                _sum + "".join(_more),
                look.number(f"grad_{names[_i]}", _total, ".4g") if _terms else "",
            ]
        )
    look.beside(
        _picture,
        look.table("sums", ["", "value", "contributions", "their sum"], _rows),
    )
    return


@app.cell
def _(nodes):
    mo.stop(nodes is None)
    look.heading("The same derivatives, measured")
    return


@app.cell
def _(lines, nodes, sliders, variables):
    mo.stop(nodes is None)
    _swept = {line.text: node.grad for line, node in zip(lines, nodes) if line.text in variables}
    _measured, unmeasured = {}, []
    for _name in variables:
        try:
            _measured[_name] = measure(lines, sliders.value, _name)
        except ValueError as error:
            _measured[_name] = math.nan
            unmeasured.append(f"{_name} cannot be measured: {error}. ")
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
        look.sentence(compare(lines, nodes, _swept, _measured), " ", "".join(unmeasured)),
    )
    return


if __name__ == "__main__":
    app.run()
