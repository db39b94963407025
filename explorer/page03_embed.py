"""Stage 3, live: letters find their places while a neural n-gram learns to write names."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="full",
    app_title="3 embed",
    css_file="look.css",
    html_head_file="look.html",
)

with app.setup:
    import math

    import marimo as mo
    import numpy as np

    import stage03_nlm as stage
    from explorer import keep, look

    CONTEXT = 6  # as in the stage's report on names
    N_HIDDEN = 128
    BATCH = 32
    SNAPSHOTS = 40
    VOWELS = "aeiou"
    SIZES = {"2": 2, "4": 4, "16": 16}
    RATES = {"0.02": 0.02, "0.2": 0.2, "1": 1.0}


@app.function
def read_names():
    """(names in the stage's order, symbols, (X, Y) to train on, (X, Y) of the development piece).

    The held-out tenth is not touched here.
    """
    names = stage.read_names(stage.DATA / "names.txt")
    names = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    symbols = stage.encode("\n" + "".join(names))[1]
    cut = int(0.9 * len(names))
    dev_start = int(0.9 * cut)
    seen = stage.name_examples(names[:dev_start], symbols, CONTEXT)
    dev = stage.name_examples(names[dev_start:cut], symbols, CONTEXT)
    return names, symbols, seen, dev


@app.function
def train_names(report, n_embd, rate):
    """The network on names; its parameters and its two losses at about SNAPSHOTS moments.

    "steps" (K,), "seen" (K,) and "dev" (K,) in bits per letter, and every parameter with a first
    axis of K.
    """
    _, symbols, seen, dev = read_names()
    steps = 400 if keep.FAST else 8000
    model = stage.NeuralLM(len(symbols), CONTEXT, n_embd, N_HIDDEN, seed=0)
    some = np.random.default_rng(0).permutation(len(seen[1]))[: len(dev[1])]  # as many as dev has
    moments = {"steps": [], "seen": [], "dev": [], **{name: [] for name in model.params}}

    def look_at(done):
        moments["steps"].append(done)
        moments["seen"].append(model.loss(seen[0][some], seen[1][some]) / math.log(2))
        moments["dev"].append(model.loss(*dev) / math.log(2))
        for name, value in model.params.items():
            moments[name].append(value.copy())
        report(done / steps, {name: np.array(values) for name, values in moments.items()})

    def watch(done):
        if done % (steps // SNAPSHOTS) == 0:
            look_at(done)

    look_at(0)
    stage.train(model, *seen, steps, learning_rate=rate, batch_size=BATCH, watch=watch)
    return {name: np.array(values) for name, values in moments.items()}


@app.function
def model_at(moments, k, symbols):
    """The network as it stood at moment k."""
    model = stage.NeuralLM(len(symbols), CONTEXT, moments["C"].shape[2], N_HIDDEN)
    model.params = {name: moments[name][k] for name in model.params}
    return model


@app.function
def plane(C):
    """(V, D) -> (D, 2): the two axes in which rows are most spread out; themselves if D is 2."""
    if C.shape[1] == 2:
        return np.eye(2)
    axes = np.linalg.svd(C - C.mean(axis=0), full_matrices=False)[2][:2].T  # section 9
    # either sign would do; one keeps it from flipping
    return axes * np.where(axes[0] < 0, -1, 1)


@app.function
def move_apart(places, least):
    """(N, 2) -> (N, 2): pairs nearer than `least` are moved away from each other, so far as that.

    Of many letters in one place, a few dozen turns leave each readable.
    """
    places = places.astype(float)
    everyone = np.arange(len(places))
    for _ in range(40):
        steps = places[:, None] - places[None]  # (N, N, 2), from each other to each
        steps[..., 1] += 1e-6 * (everyone[:, None] - everyone)  # two in the very same place
        distances = np.linalg.norm(steps, axis=2) + np.eye(len(places)) * 2 * least
        push = np.maximum(least - distances, 0) / 2 / distances  # (N, N) half of what is missing
        places += (push[..., None] * steps).sum(axis=1)
    return places


@app.function
def write_names(model, symbols, beginning, seed, n=12):
    """n names with this beginning, drawn at temperature 0.8."""
    rng = np.random.default_rng(seed)
    given = stage.encode(beginning, symbols)[0] if beginning else []
    written = []
    for _ in range(n):
        ids = model.generate(20, context=given, temperature=0.8, seed=rng)
        written.append((beginning + "".join(symbols[i] for i in ids)).split("\n")[0])
    return written


@app.function
def vowel_neighbours(C, symbols):
    """How many of the vowels have another vowel as the nearest small letter."""
    letters = [i for i, symbol in enumerate(symbols) if symbol.islower()]
    found = 0
    for vowel in VOWELS:
        others = [i for i in letters if symbols[i] != vowel]
        distances = np.linalg.norm(C[others] - C[symbols.index(vowel)], axis=1)
        found += symbols[others[int(distances.argmin())]] in VOWELS
    return found


@app.cell
def _():
    look.header(3)
    return


@app.cell
def _():
    look.hint(
        "move the step back to 0 and forward again, and watch the letters leave the places that "
        "chance gave them. Then give each letter 16 numbers instead of 2.",
        "nobody told the network which letters are vowels. With 2 numbers a letter it puts them "
        "together, because what follows them is alike. With 16 there is room for each where "
        "chance put it: the vowels stay apart, and while the loss on the names that it reads "
        "keeps falling, on names that it has not read it soon rises again.",
    )
    return


@app.cell
def _():
    n_embd = mo.ui.dropdown(list(SIZES), value="2", label="numbers per letter")
    rate = mo.ui.dropdown(list(RATES), value="0.2", label="learning rate")
    look.controls(n_embd, rate)
    return n_embd, rate


@app.cell
def _():
    names, symbols, _, _ = read_names()
    return names, symbols


@app.cell
def _(n_embd, rate):
    job = keep.start("embed", train_names, n_embd=SIZES[n_embd.value], rate=RATES[rate.value])
    seen = keep.watch(job)
    return job, seen


@app.cell
def _(job, seen):
    seen()
    keep.progress(job, "The network reads names:") if job.result is None else None
    return


@app.cell
def _(job, seen):
    if seen()[1] and job.result is not None:
        moment = mo.ui.slider(
            steps=job.result["steps"].tolist(),
            value=int(job.result["steps"][-1]),
            label="after this many steps",
            show_value=True,
        )
    else:
        moment = None
    moment
    return (moment,)


@app.cell
def _(job, seen):
    # While it trains, what has come so far.
    seen()
    moments = job.partial if job.result is None else job.result
    mo.stop(moments is None)
    return (moments,)


@app.cell
def _(moment, moments):
    # While it trains, the latest moment; afterwards the one that the slider stands at.
    k = len(moments["steps"]) - 1 if moment is None else list(moment.steps).index(moment.value)
    return (k,)


@app.cell
def _(k, moments, symbols):
    C = moments["C"]  # (K, V, D)
    axes = plane(C[-1])  # of the last moment, for all: so that the picture does not turn
    letters = [i for i, symbol in enumerate(symbols) if symbol.isalpha()]
    places = C[:, letters] @ axes  # (K, 26, 2)
    map_figure, map_axes = look.plot(5.2, 4.2, margins=(0.13, 0.02, 0.13, 0.02))
    # One line for all the ways, with gaps between them, is drawn faster than 26.
    _gap = np.full((1, len(letters), 2), np.nan)
    _ways = np.concatenate([places[: k + 1], _gap]).transpose(1, 0, 2).reshape(-1, 2)
    map_axes.plot(*_ways.T, color=look.LINE, lw=0.8)
    _shown = np.concatenate([places[k], places[-1]])  # in view; some trails begin outside
    _low, _high = _shown.min(axis=0), _shown.max(axis=0)
    _margin = 0.06 * (_high - _low)
    map_axes.set(xlim=(_low[0] - _margin[0], _high[0] + _margin[0]))
    map_axes.set(ylim=(_low[1] - _margin[1], _high[1] + _margin[1]))
    _apart = move_apart(places[k], 0.04 * max(_high - _low))
    for i, (x, y) in zip(letters, _apart):
        is_vowel = symbols[i] in VOWELS
        map_axes.text(
            x,
            y,
            symbols[i].upper() if is_vowel else symbols[i],
            color=look.RED if is_vowel else look.BLUE,
            weight="bold" if is_vowel else "normal",
            size=13,
            ha="center",
            va="center",
        )
    map_axes.set_xlabel("first number" if C.shape[2] == 2 else "along their widest spread")
    map_axes.set_ylabel("second number" if C.shape[2] == 2 else "along the next widest")
    map_picture = look.picture(
        map_figure,
        f"The 26 letters after {moments['steps'][k]:,} steps, vowels large and red, and the way "
        "that each has come. Letters in one place are drawn side by side.",
    )
    return (map_picture,)


@app.cell
def _(moments):
    _steps, _seen, _dev = (moments[name] for name in ("steps", "seen", "dev"))
    loss_figure, _axes = look.plot(5.2, 4.2, margins=(0.13, 0.02, 0.13, 0.02))
    _axes.plot(_steps, _dev, color=look.ORANGE, ls="--")
    _axes.plot(_steps, _seen, color=look.BLUE)
    _right = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
    _gap = 0.06 * (1 if _dev[-1] >= _seen[-1] else -1)  # the two labels stand apart
    _axes.annotate("not read", (_steps[-1], _dev[-1] + _gap), color=look.ORANGE, **_right)
    _axes.annotate("read", (_steps[-1], _seen[-1] - _gap), color=look.BLUE, **_right)
    _axes.set_xlim(0, max(1, _steps[-1]) * 1.22)
    _axes.margins(y=0.08)
    _axes.set_xlabel("steps")
    _axes.set_ylabel("bits per letter")
    _best = int(np.argmin(_dev))
    loss_says = (
        f"On names that were not read the loss is lowest, {_dev[_best]:.3f} bits, "
        f"after {_steps[_best]:,} steps."
    )
    loss_svg = look.drawn(loss_figure)
    return loss_figure, loss_says, loss_svg


@app.cell
def _(k, loss_figure, loss_says, loss_svg, moments):
    # The line at this moment is laid over the curves, which need not be drawn again.
    _ends = np.array(loss_figure.axes[0].get_ylim())
    (_x, _), (_y1, _y2) = look.place(loss_figure, moments["steps"][k], _ends)
    _line = look.tag("line", x1=_x, x2=_x, y1=_y1, y2=_y2, stroke="var(--quiet)")
    loss_picture = look.layered(loss_svg, _line, loss_says)
    return (loss_picture,)


@app.cell
def _(k, loss_picture, map_picture, moments, symbols):
    look.below(
        look.beside(map_picture, loss_picture),
        look.sentence(
            "Names that it has read cost ",
            look.number("seen", moments["seen"][k]),
            " bits a letter, names that it has not ",
            look.number("dev", moments["dev"][k]),
            ". Of the 5 vowels, ",
            look.number("vowels", vowel_neighbours(moments["C"][k], symbols), ".0f"),
            f" have another vowel as their nearest letter; by chance it would be {5 * 4 / 25:.1f}.",
        ),
    )
    return


@app.cell
def _():
    look.heading("Names that it writes at this moment")
    return


@app.cell
def _():
    beginning = mo.ui.text("", label="beginning with", debounce=False)
    seed = mo.ui.slider(0, 20, value=0, label="seed", show_value=True)
    look.controls(beginning, seed)
    return beginning, seed


@app.cell
def _(beginning, k, moments, names, seed, symbols):
    try:
        model = model_at(moments, k, symbols)
        written = write_names(model, symbols, beginning.value, seed.value)
        known = [name for name in written if name in set(names)]
        copied = f"In the file stand {', '.join(known)}." if known else "None is in the file."
        shown = look.below(look.names("written", written), look.sentence(copied))
    except ValueError as error:
        shown = look.problem(f"No name begins like this: {error}.")
    shown
    return


if __name__ == "__main__":
    app.run()
