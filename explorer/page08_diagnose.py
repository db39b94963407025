"""Stage 8, live: a quiz. Curves of a broken run beside a healthy one: what broke it?"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="full",
    app_title="8 diagnose",
    css_file="look.css",
    html_head_file="look.html",
)

with app.setup:
    import json
    import math
    from dataclasses import asdict
    from typing import NamedTuple

    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    import stage08_dynamics as stage
    from explorer import keep, look

    SEED = 0  # of the clinic's runs
    ORDER = 388  # the seed of the order in which they are shown: a number gives nothing away
    FEW = 5  # runs with --fast
    LEAST = 1e-9  # what is smaller is shown as this where powers of ten are counted
    CLOSE = 0.02  # decades, nats or a share: what lies nearer together is called equally near
    NONE = "none of these"

    # What each cause of the stage's list means, in a few words.
    MEANING = {
        "backward bug": "a gradient is derived wrongly",
        "batches differ": "they are not like the rest of the data",
        "dead units": "0 on every example",
        "exploding recurrence": "the gradient grows with every step back",
        "frozen weights": "some arrays never move",
        "gradient clipped": "always, to a tiny length",
        "gradients pile up": "nobody sets them to zero",
        "held-out differs": "it is text of another kind",
        "label noise": "some targets are random",
        "leak": "an input gives the answer away",
        "no warmup": "full rate from the first step",
        "off-by-one targets": "not the character that comes next",
        "overfitting": "a few rows, learned by heart",
        "overflow": "numbers too large to be held",
        "rate kept up": "it should fall, and does not",
        "rate too high": "steps erase what was learned",
        "rate too low": "the weights hardly change",
        "saturating init": "units start at -1 or 1",
        "shared rows": "held-out rows are trained on",
        "shuffled labels": "inputs tell nothing of the target",
        "underfitting": "the model is too small",
        "uphill": "steps go up the slope",
        "vanishing gradients": "next to nothing reaches the first layer",
        "weight decay": "weights are pulled to 0",
        "zero init": "all units are the same",
    }

    class Signal(NamedTuple):
        unit: str  # beside the numbers of the picture
        low: float  # the picture reaches at least from here
        high: float  # to here
        says: str
        powers: bool = False  # is it counted in powers of ten?

    # The signals that can be chosen, in the order of the stage's checklist.
    # fmt: skip
    SIGNALS = {
        "data: what one input tells": Signal(
            "share of what is to be known",
            0,
            1,
            "How far each input character, on its own, fixes the next one: 1 is entirely.",
        ),
        "data: surprise": Signal(
            "nats",
            0,
            1,
            "How much less usual the targets are than the characters within the inputs; and below, "
            "how much less usual the held-out rows are than the training rows.",
        ),
        "data: skip": Signal(
            "standard errors",
            -10,
            10,
            "Is the target the next character but one? Above 4 standard errors, it is.",
        ),
        "data: shared rows": Signal(
            "share of held-out rows",
            0,
            1,
            "How many held-out rows were trained on, beyond those that a text repeats by itself.",
        ),
        "units: difference": Signal(
            "share of the array's length",
            0,
            1,
            "How much the units of an array differ, at the end: 0 if all are the same.",
        ),
        "units: dead": Signal(
            "share of the units",
            0,
            1,
            "How many units of a layer are 0 on every example, at the worst time.",
        ),
        "units: saturated": Signal(
            "share of the units",
            0,
            1,
            "How many units of a layer mostly stand at -1 or 1, at the worst time.",
        ),
        "gradient: check of slopes": Signal(
            "relative error",
            1e-9,
            1,
            "How far each array's gradient is from slopes that were measured.",
            powers=True,
        ),
        "gradient: reach": Signal(
            "first over last",
            0.01,
            1,
            "The gradient at the first layer, or at the first input of a recurrent network, as a "
            "multiple of the gradient at the last.",
            powers=True,
        ),
        "gradient: norm": Signal(
            "length", 0.1, 10, "How long the gradient is that the optimizer was given.", powers=True
        ),
        "steps: length": Signal(
            "share",
            1e-3,
            0.1,
            "How far each step goes, as a share of the length of all weights.",
            powers=True,
        ),
        "steps: length by array": Signal(
            "share",
            1e-3,
            0.1,
            "How far a step moves each array, as a share of its length.",
            powers=True,
        ),
        "steps: cosine with downhill": Signal(
            "cosine", -1, 1, "Where each step goes: 1 is down the gradient, 0 across, and -1 up."
        ),
        "steps: cosine with the way to 0": Signal(
            "cosine", -1, 1, "Where each step goes: at 1, all weights only become smaller."
        ),
        "steps: learning rate": Signal("rate", 1e-3, 0.1, "The rate at each step.", powers=True),
        "loss: at the start": Signal(
            "nats",
            0,
            5,
            "The first loss that the training reported, and the loss of the same model, measured.",
        ),
        "loss: use of the inputs": Signal(
            "nats", 0, 1, "How much the loss rises if each target gets the inputs of another row."
        ),
        "loss: held-out minus training": Signal(
            "nats", 0, 1, "How much larger the loss is on held-out rows than on training rows."
        ),
    }


@app.cell
def _():
    # The runs: broken by the stage's clinic, and what they would have been without
    return


@app.function
def quiz():
    """Kinds of runs, as the clinic calls them, in shuffled order: one for each cause that the
    stage knows, and one whose cause is none of these."""
    clinic = stage.FIRST | stage.SECOND  # kind → (its true causes, copies)
    kinds = ["loss divided by 8"]
    for cause in stage.REMEDIES:
        kinds.append(next(kind for kind, (truths, _) in clinic.items() if cause in truths))
    order = np.random.default_rng(ORDER).permutation(len(kinds))
    kinds = [kinds[i] for i in order]
    return kinds[:FEW] if keep.FAST else kinds


@app.function
def healthy_twin(kind, steps):
    """The History of the same patient, unbroken: drawn like the run of stage.clinic_run(kind,
    SEED), with the same weights to begin with and the same rows, except for what breaks it."""
    rates = {"adam": 0.009, "sgd": 0.07}  # the middle of stage.HEALTHY
    cures = {  # for those kinds that are a matter of settings
        "saturating init": {"gain": 1},
        "exploding recurrence": {"gain": 1},
        "vanishing gradients": {"gain": 1},
        "no warmup": {"warmup": 0.4},
        "rate too high": rates,
        "rate too low": rates,
        "rate kept at its peak": {"decay": True},
        "underfitting": {"width": 32},
    }
    known = ("healthy", *stage.DISEASES, *stage.ACCIDENTS)
    rng = np.random.default_rng([SEED, known.index(kind), 0])
    options = stage.HEALTHY | stage.NEEDS.get(kind, {})
    if kind in stage.ACCIDENTS:
        options["recurrent"] = [False]
    run = {key: choices[rng.integers(len(choices))] for key, choices in options.items()}
    run |= cures.get(kind, {})

    x, y, rows, *held_out, size = stage.clinic_data("unbroken", run, rng)
    model, _ = stage.clinic_model("unbroken", run, size, x.shape[1], rng)
    batches = iter(rng.choice(rows, (steps, 64)))

    def batch():
        chosen = next(batches)
        return x[chosen], y[chosen]

    monitor = stage.Monitor(model, (x[rows], y[rows]), held_out, size, max(1, steps // 6))
    rates = stage.schedule(run[run["kind"]], steps, run["warmup"] * steps, run["decay"])
    for reading in stage.training(model, batch, rates, run["kind"]):
        monitor(*reading)
    return monitor.history


@app.function
def pack(history):
    """A History as an array of bytes (of JSON), which can be kept."""
    return np.frombuffer(json.dumps(asdict(history)).encode(), np.uint8)


@app.function
def unpack(array):
    """The History that was packed."""
    return stage.History(**json.loads(array.tobytes()))


@app.function
def train_all(report):
    """Each run of the quiz, broken and healthy."""
    arrays = {}
    kinds = quiz()
    for i, kind in enumerate(kinds):
        broken = stage.clinic_run(kind, SEED)
        arrays[f"broken: {kind}"] = pack(broken)
        report((i + 0.5) / len(kinds))
        arrays[f"healthy: {kind}"] = pack(healthy_twin(kind, len(broken.step)))
        report((i + 1) / len(kinds))
    return arrays


@app.cell
def _():
    # Signals: what a History holds, under the names that a reader chooses from
    return


@app.function
def signals(history):
    """{signal: {place: value}}. A place is a step, or the name of a layer, an array or an input."""
    audit, probes, columns = history.audit, history.probes, history.arrays
    norms = [norm if math.isfinite(norm) else math.inf for norm in history.norms]

    def at_each_step(column):
        return dict(zip(history.step, column))

    def over_probes(name, summary):
        return {key: summary([probe[name][key] for probe in probes]) for key in probes[0][name]}

    def between(more, less):
        return {probe["step"]: probe[more] - probe[less] for probe in probes}

    values = (
        {f"input {j}": share for j, share in enumerate(audit["determined"], 1)},
        {"training rows": audit["surprise"], "held-out rows": audit["foreign"]},
        {"training rows": audit["skip"]},
        {"held-out rows": audit["shared"] - audit["natural"]},
        probes[-1]["spread"],
        over_probes("dead", max),
        over_probes("saturated", max),
        over_probes("errors", np.median),
        {probe["step"]: probe["reach"] for probe in probes if "reach" in probe},
        at_each_step(norms),
        at_each_step(history.ratios),
        {name: np.median(stage.measured(column)) for name, column in columns.items()},
        at_each_step(history.cosines),
        at_each_step(history.shrinks),
        at_each_step(history.lr),
        {"as reported": history.losses[0], "measured": probes[0]["train"]},
        between("mixed", "train"),
        between("held_out", "train"),
    )
    return dict(zip(SIGNALS, values))


@app.function
def by_step(values):
    """Are the places of a signal steps, rather than names?"""
    return all(isinstance(place, int) for place in values)


@app.function
def distance(signal, these, those):
    """(how far apart two runs are, where): at named places the largest distance, and over steps the
    mean, where = None. Counted in powers of ten if the signal is."""
    powers = SIGNALS[signal].powers
    apart = {}
    for place in these.keys() & those.keys():
        a, b = these[place], those[place]
        if powers:
            a, b = (math.log10(min(max(value, LEAST), 1 / LEAST)) for value in (a, b))
        if math.isfinite(a - b):  # both were measured
            apart[place] = abs(a - b)
    if not apart:
        return 0.0, None
    if by_step(apart):
        return sum(apart.values()) / len(apart), None
    place = max(sorted(apart), key=apart.get)
    return apart[place], place


@app.function
def compared(signal, these, those):
    """(the words before them, a number of the broken run, one of the healthy run)."""
    if by_step(these):
        pair = [float(np.median(stage.measured(values.values()))) for values in (these, those)]
        if these == those:
            return "Both runs are the same at every step: at the median it is ", *pair
        return "At the median it is ", *pair
    place = distance(signal, these, those)[1] or next(iter(these))
    pair = [these[place], those[place]]
    if these == those:
        return f"Both runs are the same here: “{place}” is ", *pair
    if format(pair[0], ".3g") == format(pair[1], ".3g"):
        return f"Both runs are nearly the same here: “{place}” is ", *pair
    return f"Broken and healthy are furthest apart at “{place}”: ", *pair


@app.function
def outstanding(kind, measured):
    """{signal: how many times as far from its healthy twin the broken run lies as healthy runs of
    other patients do (at the median)}, the largest first. measured: {kind: (broken, healthy)}."""
    broken, healthy = measured[kind]
    times = {}
    for signal in SIGNALS:
        others = [
            distance(signal, other[signal], healthy[signal])[0]
            for name, (_, other) in measured.items()
            if name != kind
        ]
        here = distance(signal, broken[signal], healthy[signal])[0]
        times[signal] = here / max(np.median(others), CLOSE)
    return dict(sorted(times.items(), key=lambda pair: -pair[1]))


@app.cell
def _():
    # Judgement
    return


@app.function
def true_causes(kind):
    """The causes by which the clinic broke a run; none of the stage's list if it is empty."""
    return (stage.FIRST | stage.SECOND)[kind][0]


@app.function
def is_right(kind, guess):
    """Is this the cause, or one of the causes?"""
    return guess in (true_causes(kind) or [NONE])


@app.function
def verdict(kind, guess, findings):
    """A sentence on the guess, another on what the clinic did, and one on the stage's own."""
    causes = " or ".join(true_causes(kind)) or NONE
    found = [finding.name for finding in findings]
    if is_right(kind, guess):
        said = f"Right: the cause is {causes}; in the clinic this run is called “{kind}”."
    else:
        said = f"No, it is not {guess}. The cause is {causes}; in the clinic this run is called "
        said += f"“{kind}”."
        if guess in found:
            said += f" The stage finds {guess}, too, but as number {found.index(guess) + 1}."
    if found[0] in (true_causes(kind) or [stage.DOUBT]):
        return said + f" The stage is right: its first finding is “{found[0]}”."
    return said + f" The stage is not: its first finding is “{found[0]}”."


@app.function
def standing_out(times):
    """The sentence on the signal that lies furthest from the healthy run's."""
    signal = next(iter(times))
    if times[signal] <= 1:
        return "No signal is further from the healthy run's than those of other healthy runs are."
    return (
        f"Beside the loss itself, “{signal}” differs most: it lies {times[signal]:,.1f} times as "
        "far from the healthy run's as those of other healthy runs do, at the median."
    )


@app.cell
def _():
    # Pictures
    return


@app.function
def plot(left, right, top, bottom):
    """(figure, axes) with margins as fractions of the whole. They are fixed, since finding the best
    ones takes as long as drawing."""
    figure = Figure(figsize=(5.6, 3.6), layout="none")
    figure.subplots_adjust(left=left, right=1 - right, top=1 - top, bottom=bottom)
    return figure, figure.add_subplot()


@app.function
def count_in_powers(axis):
    """Make an axis logarithmic, with plain numbers: 0.01, not 10⁻²."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


@app.function
def draw_losses(broken, healthy):
    """The loss of both runs: each step thin, smoothed thick, held-out rows with markers."""
    figure, axes = plot(0.15, 0.14, 0.17, 0.15)
    for name, history, colour, dash, marker in (
        ("broken", broken, look.RED, "-", "o"),
        ("healthy", healthy, look.BLUE, "--", "s"),
    ):
        axes.plot(history.step, history.losses, color=colour, linewidth=0.6, alpha=0.4)
        smooth = stage.smooth(history.losses)
        axes.plot(history.step, smooth, dash, color=colour, linewidth=2, label=f"{name}, training")
        axes.plot(
            [probe["step"] for probe in history.probes],
            [probe["held_out"] for probe in history.probes],
            ":",
            color=colour,
            marker=marker,
            fillstyle="none" if name == "healthy" else "full",
            markersize=5,
            label=f"{name}, held-out",
        )
    axes.axhline(broken.audit["unigram"], color=look.QUIET, linewidth=1, linestyle="-.")
    beside = {"transform": axes.get_yaxis_transform(), "va": "center"}  # x in widths of the axes
    axes.text(1.01, broken.audit["unigram"], "unigram", color=look.QUIET, **beside)
    if stage.measured(broken.losses).max() > 10:
        count_in_powers(axes.yaxis)
    axes.set(xlabel="step", ylabel="loss, nats")
    figure.legend(loc="upper left", ncols=2)
    return figure


@app.function
def draw_signal(signal, these, those):
    """A signal of both runs: lines over the steps, or a dot for each place that has a name."""
    unit, low, high, _, powers = SIGNALS[signal]
    along_steps = by_step(these)
    figure, axes = plot(0.17 if along_steps else 0.24, 0.04, 0.17, 0.15)
    for name, values, colour, dash, marker in (
        ("broken", these, look.RED, "-", "o"),
        ("healthy", those, look.BLUE, "--", "s"),
    ):
        places, heights = list(values), np.array(list(values.values()), float)
        if powers:
            heights = np.clip(heights, LEAST, 1 / LEAST)
        fill = "none" if name == "healthy" else "full"
        if along_steps:
            few = marker if len(places) < 20 else ""
            axes.plot(places, heights, dash, color=colour, marker=few, fillstyle=fill, label=name)
        else:
            size = 10 if name == "healthy" else 6  # so that both are seen where they are equal
            axes.plot(
                heights, places, marker, color=colour, fillstyle=fill, markersize=size, label=name
            )
    if powers:
        count_in_powers(axes.yaxis if along_steps else axes.xaxis)
    axes.update_datalim([(0, low), (0, high)] if along_steps else [(low, 0), (high, 0)])
    axes.autoscale_view()
    if along_steps:
        axes.set(xlabel="step", ylabel=unit)
    else:
        axes.set_xlabel(unit)
        axes.margins(y=0.6 / len(these))
        axes.invert_yaxis()
    figure.legend(loc="upper left", ncols=2)
    return figure


@app.cell
def _():
    # The page
    return


@app.cell
def _():
    look.header(8)
    return


@app.cell
def _():
    look.hint(
        "look at the loss of run 1, then go through the signals from the top: they stand in the "
        "order of the stage's checklist, causes before symptoms. Guess, then look at the evidence.",
        "the loss alone does not tell. Runs 1 and 3 have nearly the same curves, and different "
        "causes; the last signal of the list tells them apart.",
    )
    return


@app.cell
def _():
    look.words(
        "In every run a small network learns to predict the next character of a text from the few "
        f"before it, and something is broken: one of the {len(stage.REMEDIES)} causes that the "
        "stage knows, or something that is not on its list. The healthy run is the same without it."
    )
    return


@app.cell
def _():
    kinds = quiz()
    job = keep.start("clinic", train_all)
    further, ready = keep.watch(job), keep.ready(job)
    return further, job, kinds, ready


@app.cell
def _(further, job, kinds):
    further()
    training = None
    if job.result is None:
        training = keep.progress(job, f"Breaking {len(kinds)} runs, and training them:")
    training
    return


@app.cell
def _(job, kinds, ready):
    mo.stop(not ready() or job.result is None)
    histories = {
        kind: tuple(unpack(job.result[f"{state}: {kind}"]) for state in ("broken", "healthy"))
        for kind in kinds
    }
    measured = {kind: tuple(map(signals, pair)) for kind, pair in histories.items()}
    return histories, measured


@app.cell
def _(kinds):
    run = mo.ui.slider(1, len(kinds), value=1, label="run", show_value=True)
    signal = mo.ui.dropdown(list(SIGNALS), value="data: what one input tells", label="signal")
    look.controls(run, signal)
    return run, signal


@app.cell
def _(histories, kinds, run):
    broken, healthy = histories[kinds[run.value - 1]]
    ends = [stage.Readings(history).end for history in (broken, healthy)]
    losses = look.below(
        look.picture(
            draw_losses(broken, healthy),
            f"The loss of run {run.value}, and of the same model, text and settings but for what "
            "broke it; thin lines show every step. At the unigram line, "
            f"{broken.audit['unigram']:.2f}, a model knows only how frequent each character is.",
        ),
        look.sentence(
            "Over the last tenth the loss is ",
            look.number("loss_broken", ends[0], ".3g"),
            " in the broken run, ",
            look.number("loss_healthy", ends[1], ".3g"),
            " in the healthy one.",
            "" if math.isfinite(ends[0]) else " (nan is what no longer is a number.)",
        ),
    )
    return broken, healthy, losses


@app.cell
def _(kinds, measured, run, signal):
    these, those = (values[signal.value] for values in measured[kinds[run.value - 1]])
    if not these:
        shown = look.words(f"**{signal.value}** was not measured: it takes two layers or more.")
    else:
        where, *pair = compared(signal.value, these, those)
        shown = look.below(
            look.picture(
                draw_signal(signal.value, these, those),
                f"{signal.value}. {SIGNALS[signal.value].says}",
            ),
            look.sentence(
                where,
                look.number("signal_broken", pair[0], ".3g"),
                " in the broken run, ",
                look.number("signal_healthy", pair[1], ".3g"),
                " in the healthy one.",
            ),
        )
    return (shown,)


@app.cell
def _(losses, shown):
    look.beside(losses, shown)
    return


@app.cell
def _():
    look.heading("What broke it?")
    return


@app.cell
def _():
    get_guesses, set_guesses = mo.state({})  # run → the cause that was guessed first
    get_empty, set_empty = mo.state(None)  # the run whose evidence was wanted without a guess
    return get_empty, get_guesses, set_empty, set_guesses


@app.cell
def _(run):
    causes = {NONE: NONE}
    for cause in stage.REMEDIES:
        causes[f"{cause}: {MEANING[cause]}"] = cause
    run.value  # each run begins without a guess
    guess = mo.ui.dropdown(dict(sorted(causes.items())), label="your guess", full_width=True)
    return (guess,)


@app.cell
def _(guess, histories, run, set_empty, set_guesses):
    histories  # before there are any, there is nothing to look at

    def look_at(_, number=run.value):
        if guess.value is None:
            set_empty(number)
        else:
            set_empty(None)
            set_guesses(lambda before: {number: guess.value} | before)

    button = mo.ui.button(label="look at the evidence", on_change=look_at)
    look.controls(guess, button)
    return


@app.cell
def _(get_empty, get_guesses, run):
    empty = None
    if get_empty() == run.value and run.value not in get_guesses():
        empty = look.problem("There is no guess yet: choose a cause from the list first.")
    empty
    return


@app.cell
def _(get_guesses, kinds):
    mo.stop(not get_guesses())
    hits = [is_right(kinds[number - 1], guessed) for number, guessed in get_guesses().items()]
    look.sentence(
        "So far ",
        look.number("right", sum(hits), ".0f"),
        " right of ",
        look.number("tried", len(hits), ".0f"),
        "; the first guess counts.",
    )
    return


@app.cell
def _(broken, get_guesses, healthy, kinds, measured, run):
    mo.stop(run.value not in get_guesses())
    kind = kinds[run.value - 1]
    guessed = get_guesses()[run.value]
    findings = stage.diagnose(broken)
    times = outstanding(kind, measured)
    labels = [name.replace(" ", "\N{NO-BREAK SPACE}") for name in list(times)[:5]]
    look.below(
        look.sentence(verdict(kind, guessed, findings)),
        look.heading("What the stage finds, causes before symptoms"),
        *(
            look.sentence(
                mo.Html(look.tag("strong", finding.name)),
                f": {finding.evidence}. What to do: {finding.remedy}.",
            )
            for finding in findings
        ),
        look.sentence(f"In the healthy run: {stage.diagnose(healthy)[0].name}."),
        look.heading("Which signals stand out"),
        look.sentence(standing_out(times)),
        look.bars("times", labels, list(times.values())[:5], form=".1f"),
    )
    return


if __name__ == "__main__":
    app.run()
