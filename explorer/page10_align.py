"""Stage 10, live: the plane of reward and distance, its frontier, and the methods under it."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="full",
    app_title="10 align",
    css_file="look.css",
    html_head_file="look.html",
)

with app.setup:
    import math
    from string import Formatter
    from types import SimpleNamespace

    import marimo as mo
    import numpy as np

    import stage10_dpo as stage
    from explorer import keep, look
    from explorer.pages import ROOT

    REFERENCE, BEST = "the reference", "the best at this price"  # what is not trained by a method
    RUNS = [(name, value) for name, (values, _) in stage.METHODS.items() for value in values]
    BY_TRIAL = [name for name in stage.METHODS if "GRPO" in name or "PPO" in name]
    PRICES = [float(f"{beta:.2g}") for beta in np.geomspace(0.2, 20, 41)]
    DRAWN, SHOWN = 200, 12  # names drawn from a policy, and how many of them are listed
    # One colour for each way to learn, one marker for each method that goes this way.
    LOOKS = {
        "imitate best": (look.GREEN, "P"),
        "PPO": (look.BLUE, "o"),
        "GRPO, k3": (look.BLUE, "s"),
        "GRPO, KL paid": (look.BLUE, "^"),
        "DPO": (look.RED, "o"),
        "IPO": (look.RED, "s"),
        "KTO": (look.RED, "^"),
        "ORPO": (look.RED, "D"),
        "SimPO": (look.RED, "v"),
        "PPO, verified": (look.PURPLE, "X"),
    }


@app.cell
def _():
    # The world and the policies
    return


@app.function
def build_world(seed):
    """The stage's world, the same each time."""
    names = (ROOT / "data" / "names.txt").read_text(encoding="utf-8").split()
    size = stage.FAST if keep.FAST else stage.FULL
    return stage.make_world(stage.encode(names), size, np.random.default_rng(seed))


@app.function
def make_world(report, seed=0):
    """The arrays of the world, and a bank: many of the reference's names for each first letter."""
    world = build_world(seed)
    report(0.9)
    rng = np.random.default_rng(seed + 1)
    bank = stage.sample(
        world.reference, np.repeat(np.unique(world.prompts), world.size["bank"]), rng
    )
    rewards = stage.true_rewards(bank).reshape(world.truth.shape)  # (P, M)
    kept = ("weights", "truth", "learned", "best", "start", "start_learned", "prompts", "judged")
    return {
        **{name: np.asarray(getattr(world, name)) for name in kept},
        **{f"reference_{name}": p for name, p in world.reference.items()},
        **{f"model_{name}": p for name, p in world.model.items()},
        "bank": bank.reshape(*rewards.shape, -1).astype(np.int8),  # (P, M, 1 + LONGEST)
        "bank_rewards": rewards,
    }


@app.function
def train_methods(report, seed=0):
    """Each method at each of its settings, trained and judged as in the stage's report.

    Of those that learn by trial each batch is noted, too: what the reward model believes that it
    has gained over the reference's names with the same first letters, and what is true."""
    world = build_world(seed)
    letters = np.unique(world.prompts)
    usual = world.learned.mean(1), world.truth.mean(1)  # (P,) each, the reference's

    def watched(tokens):
        row = np.searchsorted(letters, tokens[:, 0])
        learned, true = stage.learned_rewards(world.model, tokens), stage.true_rewards(tokens)
        history.append([(learned - usual[0][row]).mean(), (true - usual[1][row]).mean()])
        return true if method == "PPO, verified" else learned

    iterations = world.size["iterations"]
    policies, judged = [], []
    histories = np.full((len(RUNS), iterations, 2), math.nan)
    for i, (method, setting) in enumerate(RUNS):
        report(i / len(RUNS))
        rng, history = np.random.default_rng([seed, i]), []
        if method in BY_TRIAL:
            options = {"beta": setting, "rng": rng, **stage.METHODS[method][1]}
            policy, _ = stage.train_rl(
                reference=world.reference, reward=watched, prompts=world.prompts,
                iterations=iterations, **options,
            )  # fmt: skip
            histories[i] = history
        else:
            policy, _, _ = stage.train(method, setting, world, rng)
        policies.append(policy)
        judged.append(stage.judge(policy, world, rng)[:3])
    true, believed, kl = np.array(judged, dtype=float).T
    weights = {f"policy_{name}": np.stack([p[name] for p in policies]) for name in policies[0]}
    return {"true": true, "believed": believed, "kl": kl, "histories": histories, **weights}


@app.function
def part(arrays, prefix, i=...):
    """The parameters that are kept under this prefix; of policy i where several are stacked."""
    return {
        key.removeprefix(prefix): value[i]
        for key, value in arrays.items()
        if key.startswith(prefix)
    }


@app.function
def tell(text, **values):
    """A paragraph in which each {name:format} of the text is a shown number."""
    parts = []
    for words, name, form, _ in Formatter().parse(text):
        parts.append(words)
        if name:
            parts.append(look.number(name, values[name], form))
    return look.sentence(*parts)


@app.function
def title(method, setting):
    """PPO, β = 0.5"""
    return f"{method}, {'n' if method == 'imitate best' else 'β'} = {setting:g}"


@app.cell
def _():
    # Names
    return


@app.function
def draw(policy, world, rng):
    """Names of a policy: (tokens, how much likelier than under the reference each is, in nats)."""
    tokens = stage.sample(policy, rng.choice(world.prompts, DRAWN), rng)
    logp, before = (stage.policy_forward(p, tokens)[0].sum(1) for p in (policy, world.reference))
    return tokens, logp - before


@app.function
def draw_best(beta, world, rng):
    """The same of the optimal policy at this price: names of the bank, drawn with section 7's w."""
    rows = np.searchsorted(np.unique(world.prompts), rng.choice(world.prompts, DRAWN))
    logw = stage.log_softmax(world.bank_rewards / beta)[rows]  # (DRAWN, M)
    picked = (logw + rng.gumbel(size=logw.shape)).argmax(1)
    likelier = logw[np.arange(DRAWN), picked] + math.log(logw.shape[1])
    return world.bank[rows, picked].astype(np.int64), likelier


@app.cell
def _():
    # Shares and the plane
    return


@app.function
def shares_of(points, world):
    """The share of the possible gain of each run, and each method's mean where it is known."""
    shares = [stage.share_of(t, k, world) for t, k in zip(points["true"], points["kl"])]
    means = {}
    for method in stage.METHODS:
        known = [s for s, run in zip(shares, RUNS) if run[0] == method and math.isfinite(s)]
        if known:
            means[method] = float(np.mean(known))
    return shares, means


@app.function
def conclude(means):
    """Which method is nearest to the frontier, and which is furthest, in a sentence or two."""
    if not means:
        return "No run ended where the frontier is known."

    def told(method):
        return f"{method} ({100 * means[method]:.0f} %)"

    nearest = max(means, key=means.get)
    text = f"By its mean share of the possible gain, nearest to the frontier is {told(nearest)}"
    guessing = [method for method in means if method != "PPO, verified"]
    if nearest not in guessing:
        text += ", which is paid by the truth itself"
    if guessing:
        first = max(guessing, key=means.get)
        level = [m for m in guessing if m != first and means[m] > means[first] - 0.02]
        text += f". Of those that must guess the reward it is {told(first)}"
        if level:
            text += f", and level with it, less than 2 points behind, {', '.join(map(told, level))}"
        text += f"; the furthest is {told(min(guessing, key=means.get))}"
    return text + "."


@app.function
def draw_plane(world, points, picked, everything):
    """(figure, the titles of the runs that lie outside it).

    points: None while they are trained; picked: the index of the run to ring, or None;
    everything: leave nothing outside."""
    figure, axes = look.plot(5.4, 4.4)
    end, top = world.best[-1]
    kl, true = np.zeros(0), np.zeros(0)
    if points is not None:
        kl, true = points["kl"], points["true"]
    inside = (kl < 1.6 * end) | everything
    low = min(true[inside].min(initial=world.start), world.start)
    high = max(true[inside].max(initial=top), top)
    right = 1.7 * max(end, kl[inside].max(initial=0) / 1.6)
    axes.set_xlim(-0.02 * right, right)
    axes.set_ylim(low - 0.08 * (high - low), high + 0.12 * (high - low))
    axes.set_xlabel("KL: distance from the reference, in nats")
    axes.set_ylabel("true reward")

    axes.plot(*world.best.T, color=look.INK, linewidth=2)
    axes.text(end, top, " frontier", va="bottom", color=look.INK)
    axes.plot(0, world.start, "o", color=look.QUIET, markersize=8)
    if points is None:
        return figure, []

    ends = []  # (y, x, method, its look): the point to which each method's label belongs
    for method, (colour, marker) in LOOKS.items():
        mine = inside & [run[0] == method for run in RUNS]
        alpha = 1 if picked is None or RUNS[picked][0] == method else 0.25
        look_of_it = {"color": colour, "marker": marker, "markersize": 7, "alpha": alpha}
        axes.plot(kl[mine], true[mine], linewidth=0.7, **look_of_it)
        last = np.flatnonzero(mine & (kl < end))[-1:]
        if len(last):
            ends.append((true[last[0]], kl[last[0]], method, look_of_it))
    lowest = 0.42 if everything else 0.05  # from far away the place below is taken
    for i, (y, x, method, look_of_it) in enumerate(sorted(ends)):  # labels below one another
        height = low + (high - low) * (lowest + 0.07 * i)
        leader = {"linewidth": 0 if everything else 0.4, "linestyle": ":", "markevery": [1]}
        axes.plot([x, 0.62 * right], [y, height], **leader, **look_of_it)
        axes.text(0.65 * right, height, method, color=look_of_it["color"], va="center")
    if picked is not None and inside[picked]:
        axes.plot(kl[picked], true[picked], "o", color=look.INK, markersize=15, fillstyle="none")
    return figure, [title(*run) for run, seen in zip(RUNS, inside) if not seen]


@app.function
def draw_star(figure, kl, reward, beta):
    """SVG over the plane: a star on the frontier, and the line of slope β through it."""
    axes = figure.axes[0]
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    start, end = max(left, kl - (reward - low) / beta), min(right, kl + (high - reward) / beta)
    x1, y1 = look.place(figure, start, reward + beta * (start - kl))
    x2, y2 = look.place(figure, end, reward + beta * (end - kl))
    x, y = look.place(figure, kl, reward)
    corners = ""
    for i in range(10):
        radius, angle = (4 if i % 2 else 10), math.pi * i / 5
        corners += f"{x + radius * math.sin(angle):.2f},{y - radius * math.cos(angle):.2f} "
    line = {"x1": f"{x1:.2f}", "y1": f"{y1:.2f}", "x2": f"{x2:.2f}", "y2": f"{y2:.2f}"}
    style = "stroke:var(--orange);stroke-width:1.2;stroke-dasharray:5 3"
    return look.tag("line", style=style, **line) + look.tag(
        "polygon", points=corners, style="fill:var(--orange)"
    )


@app.function
def draw_history(history):
    """What is believed and what is true, (batches, 2), as lines over the batches."""
    figure, axes = look.plot(5.4, 3.6)
    batches = np.arange(1, len(history) + 1)
    axes.axhline(0, color=look.QUIET, linewidth=1)
    over = 1 if history[-1, 0] >= history[-1, 1] else -1
    for line, word, colour, dashes, up in (
        (history[:, 0], "believed", look.ORANGE, "--", over),
        (history[:, 1], "true", look.BLUE, "-", -over),
    ):
        axes.plot(batches, line, color=colour, linestyle=dashes, linewidth=2)
        axes.annotate(
            f" {word}", (batches[-1], line[-1]), (3, 5 * up), textcoords="offset points",
            color=colour, va="center",
        )  # fmt: skip
    axes.set_xlim(0, 1.2 * len(history))
    axes.set_xlabel("batches of 256 names")
    axes.set_ylabel("gain over the reference")
    return figure


@app.cell
def _():
    # The page
    return


@app.cell
def _():
    look.header(10)
    return


@app.cell
def _():
    look.hint(
        "lower the price β of distance and watch the names. The star is the best that any method "
        "can do at this price: it walks along the frontier. Then let PPO write the names, trained "
        "with β = 0.",
        "β is the slope of the frontier: the dashed line touches it at the star. Further out the "
        "line is flatter, so that each step away from the reference buys less reward.",
    )
    return


@app.cell
def _():
    world_job = keep.start("align_world", make_world)
    world_further, world_ready = keep.watch(world_job), keep.ready(world_job)
    return world_further, world_job, world_ready


@app.cell
def _(world_further, world_job):
    world_further()
    mo.stop(world_job.result is not None)
    keep.progress(world_job, "Making the world")
    return


@app.cell
def _(world_job, world_ready):
    mo.stop(not world_ready() or world_job.result is None)
    world = SimpleNamespace(**world_job.result)
    world.reference = part(world_job.result, "reference_")
    world.model = part(world_job.result, "model_")
    return (world,)


@app.cell
def _(world):
    world  # made first: two trainings at once would only slow each other down
    methods_job = keep.start("align_methods", train_methods)
    methods_further, methods_ready = keep.watch(methods_job), keep.ready(methods_job)
    return methods_further, methods_job, methods_ready


@app.cell
def _(methods_further, methods_job):
    methods_further()
    mo.stop(methods_job.result is not None)
    keep.progress(methods_job, f"Training {len(stage.METHODS)} methods, {len(RUNS)} runs")
    return


@app.cell
def _():
    price = mo.ui.slider(steps=PRICES, value=0.5, label="price β", show_value=True)
    writer = mo.ui.dropdown(
        [BEST, REFERENCE, *stage.METHODS], value=BEST, label="the names are written by"
    )
    return price, writer


@app.cell
def _(writer):
    setting = None
    if writer.value in stage.METHODS:
        setting = mo.ui.slider(
            steps=list(stage.METHODS[writer.value][0]),
            label="trained with " + ("n" if writer.value == "imitate best" else "β"),
            show_value=True,
        )
    return (setting,)


@app.cell
def _():
    again = mo.ui.button(value=0, on_click=lambda times: times + 1, label="draw other names")
    everything = mo.ui.switch(label="show the outermost points, too")
    return again, everything


@app.cell
def _(again, everything, price, setting, world, writer):
    world
    shown = [price, writer, setting, again, everything]
    look.controls(*[control for control in shown if control is not None])
    return


@app.cell
def _(methods_job, methods_ready, setting, writer):
    points = methods_job.result if methods_ready() else None
    run = None  # the index of the run that writes the names
    if setting is not None:
        run = RUNS.index((writer.value, setting.value))
    return points, run


@app.cell
def _(again, points, price, run, world, writer):
    # The same seed for all writers: what differs between their names is not luck alone.
    rng = np.random.default_rng(again.value)
    drawn, likelier, kl, true = None, None, None, None
    if writer.value == BEST:
        drawn, likelier = draw_best(price.value, world, rng)
        kl, true = stage.frontier(world.truth, world.weights, [price.value])[0]
    elif writer.value == REFERENCE:
        drawn, likelier = draw(world.reference, world, rng)
        kl, true = 0.0, float(world.start)
    elif points is not None:
        drawn, likelier = draw(part(points, "policy_", run), world, rng)
        kl, true = points["kl"][run], points["true"][run]
    return drawn, kl, likelier, true


@app.cell
def _(drawn, likelier, world):
    listed = look.words("This method is still in training.")
    if drawn is not None:
        names, rewards = stage.decode(drawn[:SHOWN]), stage.true_rewards(drawn[:SHOWN])
        # It knows rewards up to a constant: let it be right about the reference's mean.
        believed = stage.learned_rewards(world.model, drawn) - world.start_learned + world.start
        rows = []
        for i, written in enumerate(names):
            row = {"true": rewards[i], "believed": believed[i], "likelier": likelier[i]}
            rows.append([written, *[look.number(f"{key} {i}", row[key], "+.1f") for key in row]])
        listed = look.below(
            look.table("names", ["name", "true", "believed", "likelier"], rows),
            look.words(
                "The reward of each name, true and as the reward model believes; and by how many "
                "nats (steps of a factor e) it is likelier than under the reference."
            ),
        )
    return (listed,)


@app.cell
def _(everything, points, run, world):
    figure, outside = draw_plane(world, points, run, everything.value)
    plane = look.drawn(figure)
    pointed = ""
    if points is not None and run is not None and title(*RUNS[run]) not in outside:
        pointed += f" The ring is {title(*RUNS[run])}."
    if outside:
        pointed += f" Outside this picture: {' and '.join(outside)}."
    return figure, plane, pointed


@app.cell
def _(price, world):
    best_kl, best_reward = stage.frontier(world.truth, world.weights, [price.value])[0]
    best_worth = best_reward - price.value * best_kl
    return best_kl, best_reward, best_worth


@app.cell
def _(best_kl, best_reward, figure, listed, plane, pointed, price):
    star = draw_star(figure, best_kl, best_reward, price.value)
    says = f"The star is the best policy at β = {price.value:g}, the grey dot the reference."
    look.beside(look.layered(plane, star, says + pointed), listed)
    return


@app.cell
def _(best_kl, best_reward, best_worth, price):
    tell(
        f"At the price β = {price.value:g} the best policy has a true reward of {{best_reward:.2f}}"
        " at a distance of {best_kl:.2f} nats: after paying for that it is worth {best_worth:.2f}.",
        best_reward=best_reward,
        best_kl=best_kl,
        best_worth=best_worth,
    )
    return


@app.cell
def _(
    best_worth,
    drawn,
    kl,
    likelier,
    points,
    price,
    run,
    true,
    world,
    writer,
):
    mo.stop(drawn is None)
    paragraphs = []
    if writer.value != BEST:
        worth = true - price.value * kl
        compared = tell(
            f"{'The reference' if run is None else title(*RUNS[run])} has a true reward of "
            "{reward:.2f} at a distance of {kl:.2f} nats, and so is worth {worth:.2f}. What it "
            "lacks is β times its distance from the best policy (section 7), which must be "
            "{from_best:.2f} nats.",
            reward=true,
            kl=kl,
            worth=worth,
            from_best=(best_worth - worth) / price.value,
        )
        paragraphs.append(compared)
    if run is not None:
        share = stage.share_of(true, kl, world)
        possible = f". What is possible beyond {world.best[-1, 0]:.1f} nats is not known"
        if math.isfinite(share):
            possible = ", {share:.0f} % of what is possible at its distance"
        gained = tell(
            "The reward model believes that it has gained {gain:+.2f} over the reference. In truth "
            f"it is {{true_gain:+.2f}}{possible}.",
            gain=points["believed"][run],
            true_gain=true - world.start,
            share=100 * share,
        )
        paragraphs.append(gained)
    sampled = tell(
        f"The {DRAWN} names just drawn have a mean true reward of {{drawn_reward:.2f}}, and are "
        "likelier than under the reference by {drawn_kl:.2f} nats on average, which estimates the "
        "distance.",
        drawn_reward=stage.true_rewards(drawn).mean(),
        drawn_kl=likelier.mean(),
    )
    look.below(*paragraphs, sampled)
    return


@app.cell
def _(points, world):
    mo.stop(points is None)
    shares, means = shares_of(points, world)
    _rows = []
    for _i, _run in enumerate(RUNS):
        _row = {"reward": points["true"], "kl": points["kl"], "gain": points["believed"]}
        _cells = [look.number(f"{_key} {_i}", _row[_key][_i], ".2f") for _key in _row]
        _share = f"{100 * shares[_i]:.0f} %" if math.isfinite(shares[_i]) else "not known"
        _rows.append([title(*_run), *_cells, _share])
    _head = ["trained with", "true reward", "KL", "believed gain", "share"]
    look.below(
        look.sentence(conclude(means)),
        mo.Html(
            look.tag(
                "details",
                look.tag("summary", "All points in numbers")
                + look.table("points", _head, _rows).text,
                "look",
            )
        ),
    )
    return


@app.cell
def _(points):
    mo.stop(points is None)
    watched = {title(*run): i for i, run in enumerate(RUNS) if run[0] in BY_TRIAL}
    trial = mo.ui.dropdown(list(watched), value="PPO, β = 0", label="a run by trial")
    look.below(look.heading("What is believed, and what is true"), look.controls(trial))
    return trial, watched


@app.cell
def _(points, trial, watched):
    history = points["histories"][watched[trial.value]]  # (batches, 2): believed, true
    best_batch = int(history[:, 1].argmax())
    since = history[-1] - history[best_batch]  # (2,)
    verdict = ""
    if since[0] > 0 and since[1] < -0.5:  # the report's limit
        verdict = " Since then the belief has grown and the truth has not: it is over-optimised."
    paid = "the truth" if "verified" in trial.value else "the reward model"
    look.beside(
        look.picture(draw_history(history), f"{trial.value}: its rewards are given by {paid}."),
        tell(
            f"In the last of {len(history)} batches the reward model believes in a gain of "
            "{last_believed:+.2f}; the truth has changed by {last_true:+.2f}. The truth was at its "
            f"best in batch {{best_batch:.0f}}, with {{best_true:+.2f}}.{verdict}",
            last_believed=history[-1, 0],
            last_true=history[-1, 1],
            best_batch=best_batch + 1,
            best_true=history[best_batch, 1],
        ),
    )
    return


if __name__ == "__main__":
    app.run()
