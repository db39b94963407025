"""Stage 6, live: a stream to which each block adds; the price of a model; loss against size."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="full",
    app_title="6 stack",
    css_file="look.css",
    html_head_file="look.html",
)

with app.setup:
    import copy
    import itertools
    import json
    import math
    from dataclasses import asdict

    import marimo as mo
    import numpy as np
    from matplotlib.ticker import MultipleLocator

    import stage06_transformer as stage
    from explorer import keep, look

    GPT2, LLAMA = {"arch": "gpt2"} | stage.GPT2_124M, {"arch": "llama"} | stage.LLAMA_2_7B
    TINY = {"block_size": 2048, "n_layer": 22, "n_embd": 2048, "n_kv_head": 4, "n_hidden": 5632}
    ABOVE = {"vocab_size": 61, "block_size": 32, "n_layer": 3, "n_head": 2, "n_embd": 64}
    MODELS = {
        "GPT-2 124M": GPT2,
        "GPT-2 XL 1.6B": GPT2 | {"n_layer": 48, "n_head": 25, "n_embd": 1600},
        "TinyLlama 1.1B": LLAMA | TINY,
        "Llama 2 7B": LLAMA,
        "Llama 3 8B": LLAMA | stage.LLAMA_3_8B,
        "the llama above": LLAMA | ABOVE,
    }
    SIZES = {  # what each slider is called, and where it can stand
        "n_layer": ("layers", [*range(1, 13), 16, 22, 24, 32, 48, 64, 96]),
        "n_embd": ("width", [64, 128, 256, 512, 768, 1024, 1600, 2048, 3072, 4096, 8192, 12288]),
        "n_head": ("heads", [1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 25, 32, 48, 64, 96]),
        "n_kv_head": ("kv heads (0: as heads)", [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32]),
        "n_hidden": ("hidden units (0: usual)", [0, 256, 1024, 4096, 5632, 8192, 14336, 28672]),
        "vocab_size": ("vocabulary", [61, 256, 1024, 8192, 32000, 50257, 100000, 128256, 256000]),
        "block_size": ("context", [2**i for i in range(5, 18)]),
    }
    PARTS = {  # a word in a weight's name, and the part of the model that it belongs to
        "wte": "embedding",
        "embed_tokens": "embedding",
        "wpe": "positions",
        "lm_head": "head",
        "attn": "attention",
        "mlp": "MLP",
    }
    NUMBERS = {"float32, 4 bytes": 4, "bfloat16, 2 bytes": 2}
    BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
    TIMES = {"seconds": 1 / 86400, "minutes": 1 / 1440, "hours": 1 / 24, "days": 1, "years": 365}
    GAP = "\N{NO-BREAK SPACE}"  # in labels, where look makes other spaces visible
    # of the models that the scaling law is about
    WIDTHS = (8, 12, 16, 24, 32, 48, 64)


@app.function
def told(model, tell):
    """The model, which from now on calls tell() at each step of its training."""
    without = model.loss_and_grads

    def loss_and_grads(*batch):
        tell()
        return without(*batch)

    model.loss_and_grads = loss_and_grads
    return model


@app.function
def cut_after(model, depth):
    """The same model with only its first `depth` blocks below the last norm and the head."""
    short = copy.copy(model)
    short.config = copy.copy(model.config)
    short.config.n_layer = depth
    return short


@app.function
def train_reader(report):
    """The model of the stage's last report: its weights, its configuration, its loss by depth."""
    lab = stage.Lab(keep.FAST, 0)
    steps = 30 if keep.FAST else 600
    shape = {"vocab_size": len(lab.letters) - 1, "block_size": 32, "n_layer": 3}
    model = stage.Transformer(stage.TransformerConfig("llama", **shape, n_head=2, n_embd=64))
    done = itertools.count()
    told(model, lambda: report(0.9 * next(done) / steps))
    stage.train(model, lab.ids[: lab.start], steps, batch=32, learning_rate=0.03)
    depths = range(model.config.n_layer + 1)
    nats = [stage.held_out_loss(cut_after(model, d), lab.ids, lab.start) for d in depths]
    config = np.array(json.dumps(asdict(model.config)))
    return model.params | {"nats": np.array(nats), "config": config}


@app.function
def load_reader(kept):
    """The trained model again, from the arrays of train_reader."""
    model = stage.Transformer(stage.TransformerConfig(**json.loads(str(kept["config"]))))
    model.params = {name: kept[name] for name in model.params}
    return model


@app.function
def read_prompt(prompt, lab, most):
    """The ids (1, T) of the prompt's last letters. ValueError: empty, or a letter never seen."""
    if not prompt:
        raise ValueError("The prompt is empty: the model needs at least one letter to start from.")
    for letter in prompt:
        if letter not in lab.letters[:-1]:
            raise ValueError(f"The stories have no {letter!r}, so the model cannot read it.")
    return lab.encode(prompt[-most:])[None]


@app.function
def read_by_depth(model, ids):
    """What would come next, read off after the embedding and after each block: (1 + L, T, V)."""
    scores = [cut_after(model, depth).logits(ids)[0] for depth in range(model.config.n_layer + 1)]
    return stage.softmax(stage.Tensor(np.array(scores))).data


@app.function
def follow_stream(model, ids):
    """A list over blocks of (stream below, what attention adds, what the MLP adds), (T, C) each."""
    seen = []

    def watched(x, p, config, mask, *rest):
        h = stage.normalise(x, p["input_layernorm.weight"], None, config.norm_eps, centre=False)
        attended = stage.attention(h, p, config, mask).data
        y = stage.block(x, p, config, mask, *rest)
        seen.append((x.data[0], attended[0], (y.data - x.data - attended)[0]))
        return y

    watching = copy.copy(model)
    watching.block = watched
    watching.logits(ids)
    return seen


@app.function
def size(row):
    """The root mean square of the numbers in a row."""
    return math.sqrt(float(np.mean(np.square(row, dtype=np.float64))))


@app.function
def part_of(name):
    """Which part of a model the weight of this name belongs to."""
    for word, part in PARTS.items():
        if word in name:
            return part
    return "norms"


@app.function
def count_parts(config):
    """{part: number of weights}; they add up to stage.count_params(config)."""
    counts = {}
    for name, shape in stage.param_shapes(config).items():
        part = part_of(name)
        counts[part] = counts.get(part, 0) + math.prod(shape)
    return counts


@app.function
def in_unit(value, units):
    """(value in the largest unit that it fills, that unit's name); units: {name: size}, rising."""
    best = next(iter(units))
    for name, unit in units.items():
        if value >= unit:
            best = name
    return value / units[best], best


@app.function
def train_sizes(report):
    """Held-out nats of one-layer models, by length of training and width, as in stage 6's law."""
    lab = stage.Lab(keep.FAST, 0)
    lengths = (8, 16) if keep.FAST else (250, 1000)
    done = itertools.count()
    steps_in_all = sum(lengths) * len(WIDTHS)
    weights, nats = [], np.zeros((len(lengths), len(WIDTHS)))
    for j, C in enumerate(WIDTHS):
        config = stage.TransformerConfig("llama", len(lab.letters) - 1, 32, 1, 1, C)
        weights.append(stage.count_params(config))
        for i, steps in enumerate(lengths):
            model = told(stage.Transformer(config), lambda: report(next(done) / steps_in_all))
            stage.train(model, lab.ids[: lab.start], steps, batch=16, learning_rate=0.02)
            nats[i, j] = stage.held_out_loss(model, lab.ids, lab.start)
    return {"lengths": np.array(lengths), "weights": np.array(weights), "nats": nats}


@app.function
def draw_law(N, nats, n_fit, E, A, alpha):
    """The models' points and the law L(N) = E + A/N^alpha, both axes logarithmic."""
    figure, axes = look.plot(6.2, 3.9)
    sizes = np.geomspace(N[0] / 1.2, N[-1] * 4, 100)
    law = E + A / sizes**alpha
    inside = sizes <= N[n_fit - 1]
    axes.loglog(sizes[inside], law[inside], color=look.ORANGE)
    axes.loglog(sizes[~inside], law[~inside], "--", color=look.ORANGE)
    axes.plot(N[:n_fit], nats[:n_fit], "o", color=look.BLUE)
    axes.plot(N[n_fit:], nats[n_fit:], "o", color=look.BLUE, fillstyle="none")
    predicted = E + A / N[-1] ** alpha
    axes.plot(N[-1], predicted, "D", color=look.ORANGE, fillstyle="none", markersize=8)
    up = 10 if predicted > nats[-1] else -10  # so that the two words stay apart
    for word, y, shift, colour in (
        ("predicted", predicted, up, look.ORANGE),
        ("measured", nats[-1], -up, look.BLUE),
    ):
        # the curve falls, so there is room above it on the right and below it on the left
        style = {"ha": "left" if shift > 0 else "right", "va": "center", "color": colour}
        style |= {"xytext": (shift, shift), "textcoords": "offset points"}
        axes.annotate(f"{word} {y:.3f}", (N[-1], y), **style)
    axes.set_ylim(min(*nats, predicted) / 1.07, max(*nats, predicted) * 1.03)
    ticks = [2000, 5000, 10_000, 20_000, 50_000, 100_000]
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.yaxis.set_major_locator(MultipleLocator(0.1))
    axes.yaxis.set_major_formatter("{x:.1f}")
    axes.minorticks_off()
    axes.set(xlabel="weights", ylabel="held-out nats a letter")
    return look.picture(
        figure,
        f"The law, fitted to the {n_fit} filled points and dashed beyond them, expects "
        f"{predicted:.3f} nats of the largest model, which has {nats[-1]:.3f}.",
    )


@app.cell
def _():
    look.header(6)
    return


@app.cell
def _():
    look.hint(
        "move along the prompt, and read the table of guesses down its columns. Further below, "
        "double the context of GPT-2.",
        "the embedding alone knows one letter, so it guesses the same after every `n`; each block "
        "adds what it finds in the letters before. Twice the context needs four times the memory "
        "for maps, the weights with which each token looks at each other.",
    )
    return


@app.cell
def _():
    lab = stage.Lab(True, 0)
    reader_job = keep.start("stack-reader", train_reader)
    reader_further, reader_ready = keep.watch(reader_job), keep.ready(reader_job)
    return lab, reader_further, reader_job, reader_ready


@app.cell
def _(reader_further, reader_job):
    reader_further()
    mo.stop(reader_job.result is not None)
    keep.progress(reader_job, "A llama of 3 layers learns the stories, for half a minute:")
    return


@app.cell
def _(reader_job, reader_ready):
    mo.stop(not reader_ready() or reader_job.result is None)
    model = load_reader(reader_job.result)
    depth_names = ["embedding", *(f"block{GAP}{i + 1}" for i in range(model.config.n_layer))]
    bits = reader_job.result["nats"] / math.log(2)
    look.below(
        look.heading("One stream, and what each block adds to it"),
        look.sentence(
            f"A llama of {model.config.n_layer} layers and {model.config.n_embd} channels has "
            "read the stories. On their held-out tenth it needs ",
            look.number("bits", bits[-1]),
            " bits a letter.",
        ),
    )
    return bits, depth_names, model


@app.cell
def _():
    prompt = mo.ui.text(
        "The Lion and the Mous", label="the prompt", debounce=False, full_width=True
    )
    prompt
    return (prompt,)


@app.cell
def _(lab, model, prompt):
    ids, unread = None, None
    try:
        ids = read_prompt(prompt.value, lab, model.config.block_size)
    except ValueError as error:
        unread = look.problem(error)
    unread
    return (ids,)


@app.cell
def _(ids, lab, model):
    mo.stop(ids is None)
    letters = [lab.letters[i] for i in ids[0]]
    guesses = read_by_depth(model, ids)
    stream = follow_stream(model, ids)
    return guesses, letters, stream


@app.cell
def _(letters):
    position = mo.ui.slider(
        1, len(letters), value=len(letters), label="after which letter", show_value=True
    )
    position
    return (position,)


@app.cell
def _(depth_names, guesses, lab, letters, position, prompt):
    t = min(position.value, len(letters)) - 1
    left_out = len(prompt.value) - len(letters)
    note = f" It reads {len(letters)} letters at most: the first {left_out} are left out."
    look.below(
        look.words(
            "Take the blocks above away, and let the last norm and the head read the stream as it "
            "is: which letter would come next? The darker, the surer." + (note if left_out else "")
        ),
        look.spelled(
            "guesses",
            [[lab.letters[i] for i in row] for row in guesses.argmax(-1)],
            guesses.max(-1),
            depth_names,
            letters,
            marked=t,
        ),
    )
    return (t,)


@app.cell
def _(depth_names, guesses, lab, letters, t):
    here = guesses[:, t]  # (1 + L, V)
    shown = np.argsort(-here.max(0), kind="stable")[:10]
    shown = shown[np.argsort(-here[-1, shown], kind="stable")]
    best = [lab.letters[i] for i in here.argmax(-1)]
    read = "".join(letters[: t + 1])
    look.below(
        look.sentence(f"The chance of each letter after “{read}”, by depth:"),
        look.heat("lens", here[:, shown], depth_names, [lab.letters[i] for i in shown]),
        look.sentence(
            f"The model expects “{look.visible(best[-1])}”, with probability ",
            look.number("surest", here[-1].max()),
            f". The embedding alone says “{look.visible(best[0])}”.",
        ),
    )
    return


@app.cell
def _(bits, depth_names, stream, t):
    tops, added = [size(stream[0][0][t])], {}
    for _n, (_below, _attended, _thought) in enumerate(stream, 1):
        added[f"attention{GAP}{_n}"] = size(_attended[t])
        added[f"MLP{GAP}{_n}"] = size(_thought[t])
        tops.append(size((_below + _attended + _thought)[t]))
    longest = max(*tops, *added.values())
    look.beside(
        look.below(
            look.words("Size of the stream (root mean square)"),
            look.bars("stream", depth_names, tops, most=longest, form=".2f"),
        ),
        look.below(
            look.words("Size of what each part adds to it"),
            look.bars("added", list(added), added.values(), most=longest, form=".2f"),
        ),
        look.below(
            look.words("Bits a letter on the held-out stories"),
            look.bars("depth_bits", depth_names, bits, form=".2f"),
        ),
    )
    return


@app.cell
def _():
    start_from = mo.ui.dropdown(list(MODELS), value="GPT-2 124M", label="start from")
    look.below(look.heading("What a model costs, before it is built"), start_from)
    return (start_from,)


@app.cell
def _(start_from):
    _chosen = MODELS[start_from.value]
    family = mo.ui.dropdown(["gpt2", "llama"], value=_chosen["arch"], label="family")
    sizes = mo.ui.dictionary(
        {
            name: mo.ui.slider(
                steps=steps, value=_chosen.get(name, 0), label=label, show_value=True
            )
            for name, (label, steps) in SIZES.items()
        }
    )
    look.controls(family, *sizes.values())
    return family, sizes


@app.cell
def _(family, sizes):
    config, _impossible = None, None
    try:
        config = stage.TransformerConfig(
            family.value, **{name: value or None for name, value in sizes.value.items()}
        )
    except ValueError as error:
        _impossible = look.problem(f"There is no such model: {error}.")
    _impossible
    return (config,)


@app.cell
def _(config):
    mo.stop(config is None)
    parts = count_parts(config)
    weights = stage.count_params(config)
    look.below(
        look.words("Weights by part, in millions"),
        look.bars("parts", list(parts), [n / 1e6 for n in parts.values()], form=",.3f"),
        look.sentence(
            "There are ",
            look.number("weights", weights, ",.0f"),
            " weights. A rule of thumb, 12LC² for L blocks of width C, gives ",
            look.number("rule", 12 * config.n_layer * config.n_embd**2, ",.0f"),
            ". Training on one token takes ",
            look.number("gflop", stage.flops_per_token(config) / 1e9, ",.4g"),
            " billion operations, a third of them on the way forward.",
        ),
    )
    return (weights,)


@app.cell
def _():
    options = mo.ui.dictionary(
        {
            "batch": mo.ui.slider(steps=[2**i for i in range(11)], label="batch", show_value=True),
            "optimizer": mo.ui.dropdown(list(stage.STATE), value="adamw", label="optimizer"),
            "width": mo.ui.dropdown(NUMBERS, value="float32, 4 bytes", label="numbers"),
            "tiles": mo.ui.switch(label="attention in tiles"),
            "recompute": mo.ui.switch(label="recompute the blocks"),
        }
    )
    look.controls(*options.values())
    return (options,)


@app.cell
def _(config, options):
    mo.stop(config is None)
    budget = stage.memory_budget(config, **options.value)
    total, unit = in_unit(budget["training"], BYTES)
    training = {name: budget[name] for name in ("weights", "gradients", "optimizer", "maps")}
    training["others"] = budget["activations"] - budget["maps"]
    _, small_unit = in_unit(budget["generation"], BYTES)
    generation = [budget[name] / BYTES[small_unit] for name in ("weights", "kv_cache")]
    look.below(
        look.beside(
            look.below(
                look.words(f"Memory to train, in {unit}"),
                look.bars(
                    "training",
                    list(training),
                    [value / BYTES[unit] for value in training.values()],
                    form=",.2f",
                ),
            ),
            look.below(
                look.words(f"Memory to write one text, in {small_unit}"),
                look.bars("generation", ["weights", "KV-cache"], generation, form=",.2f"),
            ),
        ),
        look.sentence(
            "Training takes ",
            look.number("memory", total, ",.2f"),
            f" {unit}. Activations are kept for the way back: attention's maps, and all others.",
        ),
    )
    return


@app.cell
def _():
    ratio = mo.ui.slider(
        steps=[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000],
        value=20,
        label="tokens a weight",
        show_value=True,
    )
    look.controls(ratio)
    return (ratio,)


@app.cell
def _(config, ratio, weights):
    mo.stop(config is None)
    tokens = ratio.value * weights
    operations, days, dollars = stage.run_cost(config, tokens, devices=1)
    duration, time_unit = in_unit(days, TIMES)
    look.sentence(
        look.number("tokens", tokens / 1e9, ",.4g"),
        " billion tokens take ",
        look.number("operations", operations, ".2e"),
        " operations. One H100 at 40 % of its peak needs ",
        look.number("duration", duration, ",.1f"),
        f" {time_unit} for them; at two dollars an hour that is ",
        look.number("dollars", dollars, ",.2f"),
        " dollars.",
    )
    return


@app.cell
def _():
    look.heading("The scaling law")
    return


@app.cell
def _(reader_ready):
    mo.stop(not reader_ready(), look.words("Its models are trained when the one above is ready."))
    law_job = keep.start("stack-sizes", train_sizes)
    law_further, law_ready = keep.watch(law_job), keep.ready(law_job)
    return law_further, law_job, law_ready


@app.cell
def _(law_further, law_job):
    law_further()
    mo.stop(law_job.result is not None)
    keep.progress(law_job, "Models of seven sizes learn the stories, for half a minute:")
    return


@app.cell
def _(law_job, law_ready):
    mo.stop(not law_ready() or law_job.result is None)
    measured = law_job.result
    N = measured["weights"]
    laws = {  # (which length of training, points fitted) → (E, A, α): a fit takes a while
        (i, n): stage.fit_power_law(N[:n], losses[:n])
        for i, losses in enumerate(measured["nats"])
        for n in range(3, len(N))
    }
    return N, laws, measured


@app.cell
def _(N, measured):
    lengths = {f"{steps:,} steps": i for i, steps in enumerate(measured["lengths"].tolist())}
    trained_for = mo.ui.dropdown(lengths, value=list(lengths)[-1], label="each trained for")
    fitted = mo.ui.slider(3, len(N) - 1, value=len(N) - 1, label="points to fit", show_value=True)
    look.controls(trained_for, fitted)
    return fitted, trained_for


@app.cell
def _(N, fitted, laws, measured, trained_for):
    nats = measured["nats"][trained_for.value]
    n_fit = fitted.value
    E, A, alpha = laws[trained_for.value, n_fit]
    law = E + A / N**alpha  # what it says about each of the models
    miss = law[-1] - nats[-1]
    rows = [
        [f"{n:,}", f"{a:.3f}", f"{b:.3f}", look.number(f"off {n}", a - b, "+.3f")]
        for n, a, b in zip(N, nats, law)
    ]
    look.below(
        look.beside(
            draw_law(N, nats, n_fit, E, A, alpha),
            look.table("sizes", ["weights", "measured", "law", "difference"], rows),
        ),
        look.sentence(
            f"The first {n_fit} give L(N) = ",
            look.number("E", E),
            " + ",
            look.number("A", A, ".3g"),
            " / N^",
            look.number("alpha", alpha),
            f". For {N[-1]:,} weights that is ",
            look.number("predicted", law[-1]),
            f" nats, {abs(miss):.3f} too {'few' if miss < 0 else 'many'}: trained, it has ",
            look.number("measured", nats[-1]),
            ". No floor shows after so few steps."
            if E == 0
            else f". However wide, such models would stay above {E:.2f}, the law says.",
        ),
    )
    return


if __name__ == "__main__":
    app.run()
