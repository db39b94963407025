"""The capstone, live: open any checkpoint; its loss curves, next tokens, surprise and attention."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="full",
    app_title="11 capstone",
    css_file="look.css",
    html_head_file="look.html",
)

with app.setup:
    import math
    import os
    import re
    import shutil
    import subprocess
    import sys
    from pathlib import Path
    from types import SimpleNamespace

    import marimo as mo
    import numpy as np

    import capstone_gpt as stage
    from explorer import keep, look
    from stage01_markov import tempered

    LARGEST = 2_000_000_000  # bytes of weights; more would fill the memory of a small machine
    MOST_READ = 256  # tokens of the prompt; every head has their square of weights
    MOST_SHOWN = 20  # tokens in the table of attention
    MOST_RUNS = 12  # curves to begin with
    LONGEST_TEXT = 2_000  # characters to measure
    SMALL_RUN = keep.KEPT / ("small-run-fast" if keep.FAST else "small-run")
    # what the stage's main expects
    TROUBLE = (ValueError, OSError, ArithmeticError, MemoryError)


@app.cell
def _():
    # A checkpoint: trained here, or found
    return


@app.function
def train_small(report):
    """Train a small model by the stage's own command, in a process of its own."""
    size, steps = "--n_layer 2 --n_embd 64 --max_iters 800 --eval_interval 25 --eval_iters 5", 800
    if keep.FAST:
        size, steps = "--fast --eval_interval 5", 60
    unfinished = SMALL_RUN.with_name(f".{SMALL_RUN.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [sys.executable, stage.__file__, "train", "--workers", "1", *size.split()]
    line = "it said nothing"
    with subprocess.Popen(
        [*command, "--out_dir", str(unfinished)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as training:
        for line in training.stdout:
            row = re.fullmatch(r" *(\d+)( +[-.\d]+){4}\n", line)  # step, losses, minutes left
            if row:
                report(int(row[1]) / steps)
    if training.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ValueError(line.strip())
    shutil.rmtree(SMALL_RUN, ignore_errors=True)
    os.replace(unfinished, SMALL_RUN)
    return {"steps": np.array(steps)}


@app.function
def small_run(pressed):
    """The Job of the small run: begun if the button was pressed; else one at work, or None."""
    record = keep.place("small-run", train_small)
    job = keep.jobs.get(record)
    if job and not job.over:  # perhaps begun in another window
        return job
    if pressed and not SMALL_RUN.is_dir():  # it was removed
        record.unlink(missing_ok=True)
        keep.jobs.pop(record, None)
    return keep.start("small-run", train_small) if pressed else None


@app.function
def default_run():
    """The run that the stage's commands would take, or else the small one, or else ""."""
    try:
        return str(stage.latest_run())
    except ValueError:
        return str(SMALL_RUN) if SMALL_RUN.is_dir() else ""


@app.function
def open_checkpoint(folder):
    """(model, tokenizer, directory) of a run or checkpoint. ValueError, OSError: why not."""
    where = stage.checkpoint_of(os.path.expanduser(folder.strip()))
    size = sum(path.stat().st_size for path in where.glob("model*.safetensors"))
    if size > LARGEST:
        raise ValueError(
            f"{where} has {size / 1e9:.1f} GB of weights, and this page opens at most "
            f"{LARGEST / 1e9:.0f} GB: python capstone_gpt.py sample --from {where} may still do it."
        )
    return *stage.load(where), where


@app.cell
def _():
    # Loss curves
    return


@app.function
def found_runs():
    """The runs in out/ that have a curve, and the small one, the newest first."""
    paths = [*Path("out").glob("*/metrics.jsonl"), SMALL_RUN / "metrics.jsonl"]
    paths = [path for path in paths if path.is_file()]
    return [str(path.parent) for path in sorted(paths, key=lambda path: -path.stat().st_mtime)]


@app.function
def read_row(line, after):
    """(step, training loss, held-out loss) of a line, in bits per character; ValueError."""
    row = stage.parse_json(line, dict, "not a JSON object")
    step = stage.check_value("step", row.get("step"), int, after + 1)
    held = row.get("held_out_loss", row.get("dev_loss"))
    held = stage.check_value("the loss", held, float, 0)
    train = row.get("train_loss")
    train = math.nan if train is None else stage.check_value("train_loss", train, float, 0)
    return step, train / math.log(2), held / math.log(2)


@app.function
def read_curve(run):
    """(rows (N, 3) of read_row, remarks) of a run; ValueError."""
    path = Path(os.path.expanduser(run)) / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{run}: no metrics.jsonl, so it is not the directory of a run")
    rows, damaged, last = [], 0, -1
    content = path.read_bytes()
    for line in content.splitlines():
        try:
            rows.append(read_row(line, last))
            last = rows[-1][0]
        except ValueError:
            damaged += 1
    if not rows:
        state = f"none of its {damaged} lines can be read" if damaged else "the file is empty"
        raise ValueError(f"{path}: {state}, expected a JSON object with step and losses a line")
    remarks = []
    if damaged:
        remarks.append(f"{run}: {damaged} of the lines of metrics.jsonl cannot be read.")
    if b'"dev_loss"' in content:
        remarks.append(f"{run}: what it held out is a development piece, not the last tenth.")
    return np.array(rows), remarks


@app.function
def names_of(runs):
    """A short name for each run: its directory's own, or all of it where two have the same."""
    short = [Path(run).name for run in runs]
    return [run if short.count(name) > 1 or not name else name for run, name in zip(runs, short)]


@app.function
def draw_curves(curves):
    """The curves {name: (N, 3)} of all runs in one figure, each with its name at its end."""
    figure, axes = look.plot(5.6, 3.6)
    ends = []  # (loss, step, name, colour)
    for i, (name, curve) in enumerate(curves.items()):
        step, train, held = curve.T
        colour = look.CYCLE[i % len(look.CYCLE)]
        dash = look.DASHES[(i + i // len(look.CYCLE)) % len(look.DASHES)]
        axes.plot(step, held, color=colour, linestyle=dash, linewidth=2.2)
        axes.plot(step, train, color=colour, linestyle=dash, linewidth=0.9)
        ends.append((held[-1], step[-1], name, colour))
    if len(curves) == 1 and np.isfinite(train[-1]):
        ends = [(held[-1], step[-1], "held out", colour), (train[-1], step[-1], "train", colour)]
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    height = -math.inf
    for loss, end, name, colour in sorted(ends):
        height = max((loss - low) / (high - low), height + 0.07)  # names do not overlap
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6}
        axes.annotate(
            name if len(name) < 22 else f"...{name[-19:]}",
            (min(end, right), loss),
            (1.02, height),
            textcoords="axes fraction",
            color=colour,
            verticalalignment="center",
            arrowprops=line,
        )
    axes.set_xlabel("steps")
    axes.set_ylabel("bits per character")
    return figure


@app.cell
def _():
    # What the model computes
    return


@app.function
def token_name(tokenizer, i):
    """A token as text; bytes that are no character and signs that cannot be seen as escapes."""
    token = tokenizer.tokens.get(int(i))
    if token is None:
        return f"[{i}]"  # the model has more tokens than the tokenizer
    text = token.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


@app.function
def attention_weights(cache):
    """P (H, T, T) of what attention_forward left for its backward: E/l, block by block."""
    *_, y, blocks = cache
    H, T = y.shape[1:3]
    P = np.zeros((H, T, T), y.dtype)
    for rows, end, E, _, l in blocks:
        P[:, rows, :end] = (E / l).reshape(H, -1, end)
    return P


@app.function
def read_prompt(model, ids):
    """One forward pass over ids (T,): P of the next token (V,), attention (L, H, T, T)."""
    x, (_, _, caches, _) = model._forward(model._check(ids[None]), keep=True)
    scores = x[-1:, -1] @ model.params.top["head.weight"].T  # (1, V)
    if not np.isfinite(scores).all():
        raise ValueError("The model's scores are not finite: its weights are damaged.")
    # its softmax is computed on the way to the cross-entropy, whatever the target
    _, (e, total, *_) = stage.cross_entropy_forward(scores.astype(np.float64), np.array([-1]))
    return e[0] / total[0], np.array([attention_weights(cache[3]) for cache in caches])


@app.function
def surprise(model, ids, first):
    """The bits of each token of ids[first:], in the windows that the stage's evaluate takes.

    evaluate asks a model for the loss of windows, and adds up. The one it asks here writes down
    what every single target costs.
    """
    nats = []

    def loss(idx, targets):
        logits = model.logits(idx).astype(np.float64)
        mean, (e, total, targets, counted, _) = stage.cross_entropy_forward(logits, targets)
        with np.errstate(divide="ignore"):
            nats.extend(-np.log(e[counted, targets[counted]] / total[counted]))
        return mean

    block_size = model.config.block_size
    listener = SimpleNamespace(config=model.config, loss=loss)
    stage.evaluate(listener, ids, first, block_size, max(1, block_size // 2))
    return np.array(nats) / math.log(2)


@app.function
def pieces_of(tokenizer, ids):
    """[text, how many tokens it took] of ids, in order: some characters are several tokens."""
    taken = 0

    def counted():
        nonlocal taken
        for i in ids:
            taken += 1
            yield i

    pieces, before = [], 0
    for piece in tokenizer.decode_stream(counted()):
        pieces.append((piece, taken - before))
        before = taken
    return pieces


@app.function
def colour_by_surprise(model, tokenizer, text):
    """The text in colours, and what it costs; ValueError: why it cannot be measured."""
    if len(text) > LONGEST_TEXT:
        raise ValueError(
            f"The text has {len(text):,} characters; at most {LONGEST_TEXT:,} go here."
        )
    ids = tokenizer.encode(text, add_special_tokens=True)
    # a model's own first token is given; without one, the text's first cannot be predicted
    known = max(1, len(tokenizer.bos))
    if len(ids) <= known:
        raise ValueError("The text is too short to be predicted: it needs two tokens.")
    bits = surprise(model, ids, known)
    if not np.isfinite(bits).all():
        raise ValueError("The model's scores are not finite: its weights are damaged.")
    costs = [math.nan] * (known - len(tokenizer.bos)) + list(bits)
    shown, strengths, titles = [], [], []
    for piece, n in pieces_of(tokenizer, ids[len(tokenizer.bos) :]):
        own, costs = costs[:n], costs[n:]
        shown.append(piece)
        strengths.append(min(np.nansum(own), 12) / 12)
        titles.append(" + ".join("given" if math.isnan(b) else f"{b:.2f} bits" for b in own))
    dearest = token_name(tokenizer, ids[known + bits.argmax()])
    return look.below(
        look.symbols("surprise", shown, strengths, titles),
        look.sentence(
            "The text costs ",
            look.number("bits", bits.sum(), ".1f"),
            " bits, ",
            look.number("bits_per_character", bits.sum() / len(text)),
            f" for each of its {len(text):,} characters. The dearest token, "
            f"“{look.visible(dearest)}”, costs ",
            look.number("dearest", bits.max(), ".1f"),
            ". The stronger its colour, the more bits a token costs; point at one to read them.",
        ),
    )


@app.function
def look_back(weights):
    """(..., H): how much of its attention each head gives to the token before, on average."""
    at = np.arange(1, weights.shape[-1])
    return weights[..., at, at - 1].mean(-1)


@app.cell
def _():
    # The page
    return


@app.cell
def _():
    look.header(11)
    return


@app.cell
def _():
    look.hint(
        "set the temperature to 0 and write 40 tokens, twice; then do the same with 1. In the text "
        "below that, replace `submarine` by a word that you expect. Then move through the heads.",
        "at temperature 0 a small model soon says the same again and again. In the text the "
        "strongest colours stand where nothing announced what comes. Each head looks elsewhere.",
    )
    return


@app.cell
def _():
    get_run, set_run = mo.state(default_run())
    return get_run, set_run


@app.cell
def _(get_run):
    folder = mo.ui.text(
        get_run(),
        label="directory of a run or a downloaded model (enter opens it)",
        debounce=True,
        full_width=True,
    )
    look.below(look.heading("A checkpoint"), folder)
    return (folder,)


@app.cell
def _():
    again = mo.ui.button(label="open it again", value=0, on_click=lambda n: n + 1)
    train = mo.ui.button(label="train a small one now", value=0, on_click=lambda n: n + 1)
    look.controls(again, train)
    return again, train


@app.cell
def _(train):
    job = small_run(train.value)
    seen = keep.watch(job) if job else None
    return job, seen


@app.cell
def _(job, seen, set_run):
    mo.stop(job is None)
    seen()
    if job.result is not None:
        set_run(str(SMALL_RUN))
    keep.progress(job, "training a small model") if job.result is None else None
    return


@app.cell
def _(again, folder):
    again.value  # a run that goes on has changed, or a file was mended
    model, tokenizer, where = None, None, None
    try:
        model, tokenizer, where = open_checkpoint(folder.value)
        c = model.config
        told = look.sentence(
            f"{where} is a model of the {c.arch} kind with ",
            look.number("parameters", model.num_params(), ",.0f"),
            f" parameters: {c.n_layer} layers of {c.n_head} heads, and {c.n_embd} channels. It "
            f"knows {tokenizer.vocab_size:,} tokens, and looks back over {c.block_size:,} at most.",
        )
    except TROUBLE as error:
        told = look.below(
            look.problem(str(error) or "not enough memory for this model"),
            look.words(
                "`python capstone_gpt.py` trains a model in about two minutes, into `out/stories`; "
                "the button trains a smaller one in about half a minute, into `out/explore/`."
            ),
        )
    told
    return model, tokenizer, where


@app.cell
def _(get_run):
    get_run()  # a run that was trained here is among them
    compared = mo.ui.text_area(
        "\n".join(found_runs()[:MOST_RUNS]),
        label="runs to compare, a directory a line",
        debounce=400,
        rows=3,
        full_width=True,
    )
    look.below(look.heading("How it learned"), compared)
    return (compared,)


@app.cell
def _(compared, where):
    wanted = [line.strip() for line in compared.value.splitlines() if line.strip()]
    if where is not None and (where.parent / "metrics.jsonl").is_file():
        wanted.insert(0, str(where.parent))  # the one that is open comes first
    curves, remarks = {}, []
    for run in dict.fromkeys(wanted):
        try:
            curves[run], odd = read_curve(run)
            remarks += map(look.sentence, odd)
        except (ValueError, OSError) as error:
            remarks.append(look.problem(error))
    look.below(*remarks)
    return (curves,)


@app.cell
def _(curves):
    mo.stop(not curves, look.words("There is no curve to draw: name a run above, or train one."))
    named = dict(zip(names_of(list(curves)), curves.values()))
    ends = {name: curve[-1] for name, curve in named.items()}  # step, train, held out
    best = min(ends, key=lambda name: ends[name][2])
    says = (
        f"{best} ends{' lowest,' if len(named) > 1 else ''} at {ends[best][2]:.3f} bits per "
        f"held-out character after {ends[best][0]:,.0f} steps. Thick lines are text held out, thin "
        "ones the text trained on."
    )
    table = [
        [
            name,
            f"{step:,.0f}",
            look.number(f"train {name}", train_loss),
            look.number(f"held {name}", held_loss),
            look.number(f"lowest {name}", named[name][:, 2].min()),
        ]
        for name, (step, train_loss, held_loss) in ends.items()
    ]
    look.beside(
        look.picture(draw_curves(named), says),
        look.table("runs", ["run", "steps", "train", "held out", "its lowest"], table),
    )
    return


@app.cell
def _():
    get_prompt, set_prompt = mo.state("One morning the owl wanted to")
    return get_prompt, set_prompt


@app.cell
def _(get_prompt):
    prompt = mo.ui.text_area(
        get_prompt(), label="the prompt", debounce=False, rows=2, full_width=True
    )
    look.below(look.heading("What comes next"), prompt)
    return (prompt,)


@app.cell
def _():
    temperature = mo.ui.slider(0, 2, step=0.1, value=1, label="temperature", show_value=True)
    top_k = mo.ui.slider(0, 20, value=0, label="top-k (0: all)", show_value=True)
    top_p = mo.ui.slider(0.1, 1, step=0.05, value=1, label="top-p", show_value=True)
    seed = mo.ui.slider(0, 20, value=0, label="seed", show_value=True)
    look.controls(temperature, top_k, top_p, seed)
    return seed, temperature, top_k, top_p


@app.cell
def _(model, prompt, tokenizer):
    mo.stop(model is None)
    read, weights, p, remark = None, None, None, None
    try:
        tokens = tokenizer.encode(prompt.value, add_special_tokens=True)
        if len(tokens) == 0:
            raise ValueError("The prompt is empty: type at least one letter.")
        most = min(MOST_READ, model.config.block_size)
        read = tokens[-most:]
        p, weights = read_prompt(model, read)  # (V,), (L, H, T, T)
        if len(tokens) > most:
            remark = look.sentence(
                f"The prompt has {len(tokens):,} tokens, of which the last {most} are read."
            )
    except TROUBLE as error:
        remark = look.problem(error)
    remark
    return p, read, weights


@app.cell
def _(p, temperature, tokenizer, top_k, top_p):
    mo.stop(p is None)
    options = (
        temperature.value,
        top_k.value or None,
        top_p.value if top_p.value < 1 else None,
    )
    q = tempered(p, *options)  # (V,) what is drawn from
    likeliest = np.argsort(-p, kind="stable")[:12]
    labels = [token_name(tokenizer, i) for i in likeliest]
    longest = max(p.max(), q.max())
    kept = q[likeliest] > 0
    look.below(
        look.beside(
            look.below(
                look.words("The probability of each token to come next, by the model:"),
                look.bars("next", labels, p[likeliest], most=longest),
            ),
            look.below(
                look.words("What is drawn from, after temperature, top-k and top-p:"),
                look.bars("cut", labels, q[likeliest], kept=kept, most=longest),
            ),
        ),
        look.sentence(
            f"These are the twelve likeliest. The cut keeps {np.count_nonzero(q):,} of {len(q):,} "
            "tokens, to which the model gave ",
            look.number("kept", p[q > 0].sum()),
            " of all probability.",
        ),
    )
    return (options,)


@app.cell
def _(model, options, prompt, seed, set_prompt, tokenizer):

    def write(_):
        sampling = (*options, [seed.value, len(prompt.value)])
        texts = stage.continued(model, tokenizer, prompt.value, 40, sampling, to_the_end=True)
        set_prompt(prompt.value + "".join(texts))

    mo.ui.button(label="write 40 tokens more", on_change=write)
    return


@app.cell
def _():
    text = mo.ui.text_area(
        "Every morning the baker put a warm loaf on the window. One day the loaf was gone, and on "
        "the window sat a small grey submarine.",
        label="a text",
        debounce=False,
        rows=3,
        full_width=True,
    )
    look.below(look.heading("What a text costs, token by token"), text)
    return (text,)


@app.cell
def _(model, text, tokenizer):
    mo.stop(model is None)
    try:
        coloured = colour_by_surprise(model, tokenizer, text.value)
    except TROUBLE as error:
        coloured = look.problem(error)
    coloured
    return


@app.cell
def _(weights):
    mo.stop(weights is None)
    mo.stop(weights.shape[-1] < 2, look.words("With a single token all heads look at it."))
    L, H, T, _ = weights.shape
    heads = look_back(weights)  # (L, H)
    strongest = np.unravel_index(heads.argmax(), heads.shape)
    look.below(
        look.heading("Where the heads look, in the prompt"),
        look.heat(
            "heads",
            heads,
            [f"layer\u00a0{i + 1}" for i in range(L)],
            [f"head\u00a0{i + 1}" for i in range(H)],
            colour="green",
        ),
        look.sentence(
            "How much each head gives to the token before, on average over the prompt: most of "
            f"all head {strongest[1] + 1} of layer {strongest[0] + 1}, ",
            look.number("strongest", heads[strongest]),
            ". A head that looked everywhere alike would give ",
            look.number("even", look_back(np.tri(T) / np.arange(1, T + 1)[:, None])),
            ". Choose one to see it whole.",
        ),
    )
    return


@app.cell
def _(model):
    mo.stop(model is None)
    layer = mo.ui.slider(1, model.config.n_layer, value=1, label="layer", show_value=True)
    head = mo.ui.slider(1, model.config.n_head, value=1, label="head", show_value=True)
    look.controls(layer, head)
    return head, layer


@app.cell
def _(head, layer, read, tokenizer, weights):
    mo.stop(weights is None)
    P = weights[layer.value - 1, head.value - 1]  # (T, T)
    words = [token_name(tokenizer, i) for i in read]
    first = max(0, len(words) - MOST_SHOWN)
    cells, columns = P[first:, first:], words[first:]
    if first:
        earlier = P[first:, :first].sum(1, keepdims=True)
        cells, columns = np.concatenate([earlier, cells], 1), ["earlier", *columns]
    at = int(P[-1].argmax())
    look.below(
        look.heat("attention", cells, words[first:], columns, blank=0),
        look.sentence(
            f"Each row is a token that asks, and adds up to 1. In layer {layer.value}, head "
            f"{head.value}, the last one gives most, ",
            look.number("most", P[-1, at]),
            f", to token {at + 1} of {len(words)}, “{look.visible(words[at])}”.",
        ),
    )
    return


if __name__ == "__main__":
    app.run()
