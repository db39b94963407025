"""Stage 4, live: seven optimizers walk down from a place that you click; proven rates, measured."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="full",
    app_title="4 descend",
    css_file="look.css",
    html_head_file="look.html",
)

with app.setup:
    import functools
    import math

    import marimo as mo
    import numpy as np

    import stage04_optim as stage
    from explorer import look

    SURFACES = {"quadratic ½(x² + κy²)": "quadratic", "Rosenbrock's valley": "Rosenbrock"}
    KAPPAS = [1, 2, 3, 5, 7, 10, 20, 30, 50, 70, 100, 200, 300, 500, 700, 1000]
    FACTORS = [0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10]
    STEPS = 200  # as many as the pictures show
    PATIENCE = 2000  # steps in which a rate is measured, at most

    WINDOW = (-2.4, 2.4), (-1.4, 2.2)  # of the map: x and y
    LEVELS = 0.04 * 4.0 ** np.arange(9)  # heights of the contour lines
    FLOOR = 1e-12  # the lowest loss that its picture shows

    RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

    # AdamW's decay spares vectors, so that it walks as Adam does; Muon needs a matrix.
    METHODS = [name for name in stage.METHODS if "AdamW" not in name]
    SHORT = {name: name.split(",")[0] for name in METHODS}  # "heavy ball", "Nesterov", ...
    PROVEN = {"SGD": "descent, best", "heavy ball": "heavy ball", "Nesterov": "Nesterov"}
    STYLES = {  # colour, dashes, and the outline of the marker, in points around its place
        "SGD": ("blue", "none", "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0"),
        "heavy ball": ("orange", "5 2", "M-4,-4h8v8h-8z"),
        "Nesterov": ("green", "7 2 1 2", "M0,-5L5,4h-10z"),
        "AdaGrad": ("purple", "1 2", "M0,5L5,-4h-10z"),
        "RMSprop": ("sky", "5 1 1 1 1 1", "M0,-5L5,0L0,5L-5,0z"),
        "Adam": ("red", "none", "M-2,-5h4v3h3v4h-3v3h-4v-3h-3v-4h3z"),
        "Lion": ("quiet", "9 2", "M0,-5L5,-1L3,5h-6L-5,-1z"),
    }


@app.function
def landscape(surface, kappa):
    """The stage's function from points (..., 2) to heights and slopes."""
    if surface == "quadratic":
        return functools.partial(stage.quadratic, kappa=kappa)
    return stage.rosenbrock


@app.function
def read_start(text):
    """(x, y) of "x, y". ValueError: these are not two numbers, or lie outside the map."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        found = repr(text if len(text) < 40 else text[:40] + "…")
        raise ValueError(f"The start is {found}; expected two numbers, as in -2, 0.7.") from None
    (left, right), (bottom, top) = WINDOW
    if not (left <= x <= right and bottom <= y <= top):
        raise ValueError(
            f"The start ({x:g}, {y:g}) lies outside the map; "
            f"expected x from {left} to {right} and y from {bottom} to {top}."
        )
    return x, y


@app.function
def path(heights, start, make, lr, steps=STEPS):
    """Places (T + 1, 2) and losses (T + 1,) of a walk; it ends early if its numbers overflow.

    make: from parameters and a rate to a list of one optimizer, as in the stage's METHODS.
    """
    params, places, losses = {"x": np.array(start, dtype=np.float64)}, [], []
    (optimizer,) = make(params, lr)
    with np.errstate(all="ignore"):  # what overflows becomes inf, and is shown as such
        for _ in range(steps + 1):
            loss, slope = heights(params["x"])
            places.append(params["x"].copy())
            losses.append(math.inf if np.isnan(loss) else float(loss))  # ∞ - ∞, in Rosenbrock's
            if not np.isfinite(params["x"]).all():
                break
            optimizer.step({"x": slope})
    return np.array(places), np.array(losses)


@app.function
@functools.cache
def raced_rate(surface, method):
    """Of the 13 rates of the stage's race, the one that is lowest after 100 steps from its start.

    Walks that leave the map are out.
    """
    heights, start, _ = stage.RACES[surface]
    lowest, best = math.inf, None
    for lr in 10 ** (np.arange(2, -11, -1) / 3):
        places, losses = path(heights, start, stage.METHODS[method][0], float(lr), 100)
        if left_at(places) is None and losses[-1] < lowest:
            lowest, best = losses[-1], float(lr)
    return best


@app.function
def settings(surface, kappa):
    """{name: (make, learning rate, momentum)} at factor 1: proven where that is so, else raced."""
    proven = stage.proven_rates(1.0, kappa) if surface == "quadratic" else {}
    chosen = {}
    for method, name in SHORT.items():
        if PROVEN.get(name) in proven:
            lr, beta, _ = proven[PROVEN[name]]
            ahead = name == "Nesterov" and beta > 0  # at κ = 1 it needs no momentum
            make = functools.partial(one_sgd, momentum=beta, nesterov=ahead)
        else:
            make, lr = stage.METHODS[method][0], raced_rate(surface, method)
            (optimizer,) = make({"x": np.zeros(2)}, lr)
            beta = getattr(optimizer, "momentum", None)
        chosen[name] = make, lr, beta
    return chosen


@app.function
def one_sgd(params, lr, momentum, nesterov):
    """[the stage's SGD]."""
    return [stage.SGD(params, lr, momentum, nesterov)]


@app.function
def left_at(places):
    """The first step at which a walk is outside the map, or None."""
    (left, right), (bottom, top) = WINDOW
    x, y = places.T
    inside = (left <= x) & (x <= right) & (bottom <= y) & (y <= top)
    return None if inside.all() else int(inside.argmin())


@app.function
def measured_rate(heights, start, make, lr):
    """(ρ, steps to 10⁻⁶ of the distance or None), measured as the stage's report_rates does it.

    ρ is the factor by which a step shrinks the distance to (0, 0), in the second half of a walk
    that ends at 10⁻⁶ or 10⁶ of its first distance, or after PATIENCE steps.
    """
    params = {"x": np.array(start, dtype=np.float64)}
    (walker,) = make(params, lr)
    far = [math.hypot(*start)]
    while 1e-6 < far[-1] / far[0] < 1e6 and len(far) <= PATIENCE:
        walker.step({"x": heights(params["x"])[1]})
        far.append(math.hypot(*params["x"]))
    half = min(len(far) // 2, len(far) - 2)
    rho = (far[-1] / far[half]) ** (1 / (len(far) - 1 - half))
    return rho, len(far) - 1 if far[-1] <= 1e-6 * far[0] else None


@app.function
def distance(place, surface):
    """From the minimum; inf where a number has overflowed."""
    far = math.hypot(*(place - (0 if surface == "quadratic" else 1)))
    return far if math.isfinite(far) else math.inf


@app.function
def departure(name, places, step, surface):
    """A sentence on where a walk left the map, and what became of it; None if it did not."""
    places = places[: step + 1]
    left = left_at(places)
    if left is None:
        return None
    who = f"{name[0].upper()}{name[1:]} left the map at step {left}"
    far = max(distance(place, surface) for place in places)
    reached = look.number(f"far {name}", far, ".3g")
    if far == math.inf:
        end = f") at step {len(places) - 1}, where its walk ends."
        return look.sentence(f"{who}. Its numbers overflow (", reached, end)
    back = left_at(places[-1:]) is None
    end = ", and is back." if back else f", and is still outside at step {step}."
    return look.sentence(f"{who}, came to a distance of ", reached, " from the minimum", end)


@app.function
def free_place(x, y, width, height, taken):
    """Where a label of this size stands near (x, y) over none of those taken: its corner's (x, y).

    Right of the point, else left of it; then further and further below and above.
    """
    (left, right), (bottom, top) = WINDOW
    x = x + 0.08 if x + 0.08 + width < right else x - 0.08 - width
    x = max(x, left)
    for k in range(20):
        low = y + (-1) ** k * (k + 1) // 2 * height - height / 2
        clear = all(
            x + width <= a or a + w <= x or low + height <= b or b + height <= low
            for a, b, w in taken
        )
        if clear and bottom <= low and low + height <= top:
            break
    taken.append((x, low, width))
    return x, low


@app.cell
def _():
    # Axes and contour lines take longest to draw, and few controls change them. So matplotlib draws
    # them once, and the walks are lines of SVG over them.
    return


@app.function
@functools.cache
def map_frame(surface, kappa):
    """The figure of the contour lines, and its SVG."""
    figure, axes = look.plot(5.6, 4.4)
    figure.set_layout_engine("none")  # fixed margins: the layout takes as long as the drawing
    axes.set_position([0.09, 0.09, 0.9, 0.9])
    (left, right), (bottom, top) = WINDOW
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    x, y = np.linspace(left, right, 241), np.linspace(bottom, top, 181)
    height = landscape(surface, kappa)(np.stack(np.meshgrid(x, y), axis=-1))[0]  # (181, 241)
    # The root of a bowl is a cone, whose contour lines are drawn right between the points.
    axes.contour(x, y, np.sqrt(height), np.sqrt(LEVELS), colors=look.LINE, linewidths=0.8)
    axes.grid(False)
    return figure, look.drawn(figure)


@app.function
@functools.cache
def loss_frame(low, high):
    """The figure of steps and losses from 10^low to 10^high, still empty, and its SVG."""
    figure, axes = look.plot(5.6, 4.4)
    figure.set_layout_engine("none")
    axes.set_position([0.1, 0.12, 0.66, 0.81])
    axes.set(xlim=(0, STEPS), ylim=(10.0**low, 10.0**high), yscale="log", xlabel="step")
    axes.set_title("loss", loc="left")
    powers = range(low, high + 1, (high - low) // 8 + 1)
    axes.set_yticks([10.0**k for k in powers], [f"10{str(k).translate(RAISED)}" for k in powers])
    axes.minorticks_off()
    return figure, look.drawn(figure)


@app.function
def corners(figure, x, y):
    """Where the points x, y (N,) stand in the figure's SVG: N pairs (across, down)."""
    return list(zip(*look.place(figure, x, y)))


@app.function
def line(figure, x, y, colour, dashes="none", width=1.3):
    """SVG: a line through the points x, y (N,) of the figure."""
    points = " ".join(f"{a:.1f},{d:.1f}" for a, d in corners(figure, x, y))
    style = f"fill:none;stroke:var(--{colour});stroke-width:{width};stroke-dasharray:{dashes}"
    return look.tag("polyline", points=points, style=style)


@app.function
def dots(figure, x, y, colour):
    """SVG: a dot at each of the points x, y (N,), which is a line of no length with round ends."""
    path = "".join(f"M{a:.1f},{d:.1f}h0" for a, d in corners(figure, x, y))
    style = f"stroke:var(--{colour});stroke-width:2.6;stroke-linecap:round"
    return look.tag("path", d=path, style=style)


@app.function
def marker(figure, x, y, name, **attributes):
    """SVG: the marker of the method `name` at the point x, y."""
    ((across, down),) = corners(figure, [x], [y])
    colour, _, outline = STYLES[name]
    where = f"translate({across:.2f} {down:.2f})"
    return look.tag("path", d=outline, transform=where, fill=f"var(--{colour})", **attributes)


@app.function
def label(figure, x, y, text, colour):
    """SVG: words that begin at the point x, y, legible over lines."""
    across, down = look.place(figure, x, y)
    style = f"fill:var(--{colour});font-weight:bold;font-size:10px;dominant-baseline:central;"
    style += "stroke:var(--paper);stroke-width:3px;stroke-opacity:0.8;paint-order:stroke"
    return look.tag("text", text, x=f"{across:.1f}", y=f"{down:.1f}", style=style)


@app.function
def within(figure, inside, name):
    """SVG elements, cut off at the edges of the figure's axes; name: of the edge, in the page."""
    axes = figure.axes[0]
    (left, right), (top, bottom) = look.place(figure, axes.get_xlim(), axes.get_ylim()[::-1])
    box = look.tag("rect", x=left, y=top, width=right - left, height=bottom - top)
    edge = look.tag("clipPath", box, id=name)
    return edge + look.tag("g", inside, clip_path=f"url(#{name})")


@app.function
def draw_map(figure, walks, step):
    """SVG over the map's frame: the walks up to a step, each labelled where it ends."""
    lines, labels, taken = "", "", []
    for name, (places, _) in walks.items():
        colour, dashes, _ = STYLES[name]
        places = places[: step + 1]
        finite = places[np.isfinite(places).all(axis=1)]
        x, y = np.clip(finite, -1e6, 1e6).T  # far outside is far enough
        lines += line(figure, x, y, colour, dashes) + dots(figure, x, y, colour)
        lines += marker(figure, x[-1], y[-1], name, id=f"now-{name}")
        end, said = places[-1], name
        if left_at(places[-1:]) is not None:
            out = left_at(places)
            end, said = places[out - 1], f"{name}: out at step {out}"
        x, y = free_place(*end, 0.085 * len(said), 0.17, taken)
        labels += label(figure, x, y + 0.085, said, colour)
    return within(figure, lines, "map-edge") + labels


@app.function
def loss_range(walks):
    """Powers of ten (low, high) between which the losses are shown."""
    first = next(losses[0] for _, losses in walks.values()) or 1.0
    lowest = min(losses[losses >= FLOOR].min(initial=first) for _, losses in walks.values())
    return math.floor(math.log10(lowest)), math.ceil(math.log10(100 * first))


@app.function
def draw_losses(figure, walks, step):
    """SVG over the losses' frame: all losses, markers at this step, and names at the right."""
    bottom, top = figure.axes[0].get_ylim()
    lines, labels, ends = line(figure, [step, step], [bottom, top], "quiet", width=0.8), "", {}
    for name, (_, losses) in walks.items():
        colour, dashes, _ = STYLES[name]
        losses = np.clip(losses, 1e-200, 1e200)  # their logarithms are finite
        lines += line(figure, np.arange(len(losses)), losses, colour, dashes)
        if step < len(losses):
            lines += marker(figure, step, losses[step], name)
        height = math.log(losses[-1] / bottom) / math.log(top / bottom)  # 0 to 1 in the picture
        arrow = " ↑" if height > 1 else " ↓" if height < 0 else ""
        ends[name + arrow] = min(max(height, 0), 1)
    for said, height in spread(ends, 0.05).items():
        y = bottom * (top / bottom) ** height
        labels += label(figure, 1.03 * STEPS, y, said, STYLES[said.rstrip(" ↑↓")][0])
    return within(figure, lines, "losses-edge") + labels


@app.function
def spread(heights, gap):
    """{label: height in 0..1} moved apart, so that neighbours are `gap` from one another."""
    apart = {}
    low = 0.0
    for k, label in enumerate(sorted(heights, key=heights.get)):
        left = len(heights) - 1 - k  # as many still go above it
        low = apart[label] = min(max(heights[label], low), 1 - left * gap)
        low += gap
    return apart


@app.function
def compare(factor, needed, off):
    """What the rates say, in a sentence or two.

    needed: {name: steps to a millionth, or None}; off: {name: measured minus proven ρ}.
    """
    if factor == 1:
        worst = max(off, key=lambda name: abs(off[name]))
        said = f"Furthest from its proven ρ is {worst}, by {off[worst]:+.4f}."
        if worst != "SGD" and off[worst] > 0:
            said += " (Where two roots meet, the distance shrinks like t·ρᵗ: see section 7.)"
    else:
        slower = [name for name in off if off[name] > 0]
        said = f"At × {factor:g}, slower than what is proven at × 1: {', '.join(slower) or 'none'}."
    if needed["SGD"] and needed["heavy ball"]:
        times = needed["SGD"] / needed["heavy ball"]
        said += f" SGD takes {times:.1f} times as many steps as the heavy ball."
    return said


@app.cell
def _():
    look.header(4)
    return


@app.cell
def _():
    look.hint(
        "click into the map to start from there, and move the step. Then multiply all learning "
        "rates by 1.1. Back at × 1, make the valley narrower: κ says how many times as much it "
        "curves along y as along x. Last, go to Rosenbrock's valley, which is bent.",
        "descent (SGD) at × 1 is as fast as it can be in the long run, and yet at × 1.1 it climbs "
        "if κ is above 10. The larger κ is, the more the two with momentum win, the heavy ball and "
        "Nesterov's. AdaGrad, RMSprop, Adam and Lion walk the same way for every κ: as this valley "
        "lies along an axis, they do not see how narrow it is.",
    )
    return


@app.cell
def _():
    get_start, set_start = mo.state("-2, 0.7")

    def begin(surface):
        """Each surface begins at the start of the stage's race."""
        set_start("{}, {}".format(*stage.RACES[SURFACES[surface]][1]))

    surface_choice = mo.ui.dropdown(
        list(SURFACES), value=list(SURFACES)[0], label="surface", on_change=begin
    )
    kappa = mo.ui.slider(steps=KAPPAS, value=30, label="κ of the quadratic", show_value=True)
    factor = mo.ui.slider(steps=FACTORS, value=1, label="rate ×", show_value=True)
    look.controls(surface_choice, kappa, factor)
    return factor, get_start, kappa, surface_choice


@app.cell
def _():
    # Seven names instead of one mo.ui.dictionary, which forgets a tick if two come quickly.
    sgd = mo.ui.checkbox(True, label="SGD")
    heavy_ball = mo.ui.checkbox(True, label="heavy ball")
    nesterov = mo.ui.checkbox(True, label="Nesterov")
    adagrad = mo.ui.checkbox(False, label="AdaGrad")
    rmsprop = mo.ui.checkbox(False, label="RMSprop")
    adam = mo.ui.checkbox(True, label="Adam")
    lion = mo.ui.checkbox(False, label="Lion")
    look.controls(sgd, heavy_ball, nesterov, adagrad, rmsprop, adam, lion)
    return adagrad, adam, heavy_ball, lion, nesterov, rmsprop, sgd


@app.cell
def _(get_start):
    start_text = mo.ui.text(get_start(), label="start x, y", debounce=False)
    look.controls(look.field("start", start_text))
    return (start_text,)


@app.cell
def _():
    step = mo.ui.slider(
        0, STEPS, value=30, label="step", show_value=True, debounce=False, full_width=True
    )
    step
    return (step,)


@app.cell
def _(start_text):
    start, refused = None, None
    try:
        start = read_start(start_text.value)
    except ValueError as error:
        refused = look.problem(error)
    refused
    return (start,)


@app.cell
def _(factor, kappa, surface_choice):
    surface = SURFACES[surface_choice.value]
    heights = landscape(surface, kappa.value)
    used = {  # {name: (make, rate, momentum)}
        name: (make, factor.value * lr, beta)
        for name, (make, lr, beta) in settings(surface, kappa.value).items()
    }
    return heights, surface, used


@app.cell
def _(adagrad, adam, heavy_ball, lion, nesterov, rmsprop, sgd):
    boxes = zip(STYLES, (sgd, heavy_ball, nesterov, adagrad, rmsprop, adam, lion))
    ticked = [name for name, box in boxes if box.value]
    nobody = None if ticked else look.problem("Nobody walks: tick at least one optimizer.")
    nobody
    return (ticked,)


@app.cell
def _(heights, start, ticked, used):
    mo.stop(start is None or not ticked)
    walks = {name: path(heights, start, *used[name][:2]) for name in ticked}
    return (walks,)


@app.cell
def _(kappa, start, step, surface, walks):
    _losses = {name: losses[: step.value + 1][-1] for name, (_, losses) in walks.items()}
    _lowest = min(_losses, key=_losses.get)
    _says = (
        f"The way down from ({start[0]:g}, {start[1]:g}) in {step.value} steps. "
        f"The lowest is {_lowest}, at a loss of {_losses[_lowest]:.3g}. "
        "Grey lines join places of equal loss, each a quarter of the next; a click sets the start."
    )
    _map, _contours = map_frame(surface, kappa.value if surface == "quadratic" else None)
    _chart, _axes = loss_frame(*loss_range(walks))
    look.beside(
        look.layered(
            _contours, draw_map(_map, walks, step.value), _says, **look.clicks(_map, "start")
        ),
        look.layered(
            _axes,
            draw_losses(_chart, walks, step.value),
            f"The loss at each of {STEPS} steps. A name with ↑ or ↓ ends above or below.",
        ),
    )
    return


@app.cell
def _(step, surface, used, walks):
    _rows = []
    for _name, (_places, _losses) in walks.items():
        _, _lr, _beta = used[_name]
        _now = min(step.value, len(_places) - 1)
        _x, _y = _places[_now]
        _rows.append(
            [
                _name,
                look.number(f"loss {_name}", _losses[_now], ".3g"),
                look.number(f"x {_name}", _x, ".4g"),
                look.number(f"y {_name}", _y, ".4g"),
                look.number(f"rate {_name}", _lr, ".3g"),
                "" if _beta is None else look.number(f"momentum {_name}", _beta),
            ]
        )
    _left = [departure(name, places, step.value, surface) for name, (places, _) in walks.items()]
    look.below(
        *[sentence for sentence in _left if sentence],
        look.table(
            "places",
            [f"at step {step.value}", "loss", "x", "y", "rate η", "momentum β"],
            _rows,
        ),
    )
    return


@app.cell
def _(surface):
    look.below(
        look.heading("Where the rates come from"),
        look.words(
            "At × 1, SGD, the heavy ball and Nesterov have the rate and the momentum that are "
            "proven to be right for this κ. Each of the others has, for every κ, the best of 13 "
            "rates in a race of 100 steps at κ = 100."
            if surface == "quadratic"
            else "No rate is proven for this valley. At × 1, each has the best of 13 rates in a "
            "race of 100 steps from (-1.2, 1); the heavy ball and Nesterov have a momentum of 0.9."
        ),
    )
    return


@app.cell
def _(factor, heights, kappa, start, surface, used):
    mo.stop(start is None or surface != "quadratic")
    mo.stop(start == (0, 0), look.words("You start at the minimum: there is no way to measure."))
    _rows, needed, off = [], {}, {}
    for _name, _title in PROVEN.items():
        _make, _lr, _ = used[_name]
        _rho = stage.proven_rates(1.0, kappa.value)[_title][2]
        _measured, needed[_name] = measured_rate(heights, start, _make, _lr)
        off[_name] = _measured - _rho
        if needed[_name]:
            _steps = look.number(f"needs {_name}", needed[_name], ",.0f")
        else:
            _steps = "climbs" if _measured > 1 else f"over {PATIENCE:,}"
        _rows.append(
            [
                _name,
                look.number(f"proven {_name}", _rho, ".5f"),
                look.number(f"measured {_name}", _measured, ".5f"),
                _steps,
            ]
        )
    look.below(
        look.heading("Proven, and measured"),
        look.words(
            "A step multiplies the distance to the minimum by ρ, in the long run: proven at × 1, "
            f"and measured on your walk at × {factor.value:g}."
        ),
        look.table("rates", ["", "proven ρ", "measured ρ", "steps to a millionth"], _rows),
    )
    return needed, off


@app.cell
def _(factor, needed, off):
    look.words(compare(factor.value, needed, off))
    return


@app.cell
def _(walks):
    walks  # When these are shown, run the other races, so that no change has to wait for them.
    for _surface in SURFACES.values():
        settings(_surface, 1)
    for _method in METHODS:
        raced_rate("Rosenbrock", _method)
    return


if __name__ == "__main__":
    app.run()
