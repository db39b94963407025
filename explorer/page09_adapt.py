"""Stage 9, live: the rank of what fine-tuning changed, and an adapter turned up and down."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="full",
    app_title="9 adapt",
    css_file="look.css",
    html_head_file="look.html",
)

with app.setup:
    import math

    import marimo as mo
    import numpy as np

    import stage09_lora as stage
    from explorer import keep, look
    from explorer.pages import ROOT

    SEED = 0
    # The stage's LoRA at three ranks, by the stage's names; each at the rate that its sweep chose.
    LORAS = {1: "LoRA, rank 1", 4: "LoRA", 16: "LoRA, rank 16"}
    RANKS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@app.class_definition
class Counted(np.random.Generator):
    """A generator that calls `each` at every draw of integers: once a step of training."""

    def __init__(self, seed, each):
        super().__init__(np.random.PCG64(seed))
        self.each = each

    def integers(self, *args):
        self.each()
        return super().integers(*args)


@app.function
def train_all(report):
    """The base on the stories, then full fine-tuning and LoRA on the verses: what each trained.

    Keys: "base:NAME" and "full:NAME" for every parameter, "RANK:PLACE:A" and ":B" for LoRA; and
    "cut_bits" (13,), the verses' held-out bits with every update cut to each of RANKS.
    """
    shape, base_steps, steps = stage.sizes(keep.FAST)
    L, C, H, T = shape
    corpora, vocab_size = stage.read_corpora(keep.FAST)
    stories, verses = (ids[:first] for ids, first in corpora.values())
    done = 0

    def step():
        nonlocal done
        done += 1
        report(done / (base_steps + 4 * steps + len(RANKS)))

    # As stage.pretrain and stage.adapt do it, with a generator that counts the steps.
    base = stage.init_params(vocab_size, T, L, C, SEED)
    rate = 8e-3
    rng = Counted([SEED, 0], step)
    stage.fit(base, stories, H, base_steps, rate, rng, {}, list(base), 16)
    kept = {f"base:{name}": array for name, array in base.items()}
    for rank, method in {0: "full fine-tuning", **LORAS}.items():
        params, plugs, trainable = stage.prepare(method, base, verses, SEED)
        rng = Counted([SEED, 1], step)
        stage.fit(params, verses, H, steps, stage.METHODS[method].rate, rng, plugs, trainable)
        if rank == 0:
            full = params
            kept |= {f"full:{name}": array for name, array in params.items()}
        for place, plug in plugs.items():
            kept |= {f"{rank}:{place}:{name}": array for name, array in plug.params.items()}
    bits = []
    for rank in RANKS:
        bits.append(verses_bits(cut(base, full, rank)))
        step()
    kept["cut_bits"] = np.array(bits)
    return kept


@app.function
def cut(base, full, rank):
    """The tuned model with the update of every matrix cut to a rank; all else as tuned."""
    model = dict(full)
    for name in stage.matrices_of(base):
        model[name] = base[name] + stage.low_rank(full[name] - base[name], rank)[0]
    return model


@app.function
def heads():
    """The model's number of heads."""
    return stage.sizes(keep.FAST)[0][2]


@app.function
def verses_bits(params, plugs=None):
    """Held-out bits a character of the verses."""
    corpora, _ = stage.read_corpora(keep.FAST)
    return stage.score(params, *corpora["verses"], heads(), plugs) / math.log(2)


@app.function
def parameters(result, which):
    """{name: array} of "base" or "full"."""
    head = f"{which}:"
    return {key.removeprefix(head): a for key, a in result.items() if key.startswith(head)}


@app.function
def adapters(result, base, rank, strength=1.0):
    """The plugs of LoRA at this rank, their scale times strength."""
    plugs = stage.prepare(LORAS[rank], base, None, SEED)[1]
    for place, plug in plugs.items():
        plug.params = {name: result[f"{rank}:{place}:{name}"] for name in ("A", "B")}
        plug.scale *= strength
    return plugs


@app.function
def letters():
    """The alphabet of the model: the letters of the stories, in order."""
    text = (ROOT / "data" / "stories.txt").read_text("utf-8")
    return sorted(set(text))


@app.function
def next_letter(params, plugs, ids):
    """P(next letter | ids): (V,), from as much of their end as the model can see."""
    context = len(params["transformer.wpe.weight"])
    logits, _ = stage.gpt_forward(params, np.array([ids[-context:]]), heads(), plugs)
    scores = logits[0, -1].astype(np.float64)
    p = np.exp(scores - scores.max())
    return p / p.sum()


@app.function
def write(params, plugs, ids, n, seed):
    """n letters drawn after ids, one by one."""
    rng = np.random.default_rng(seed)
    ids = list(ids)
    for _ in range(n):
        p = next_letter(params, plugs, ids)
        ids.append(int(rng.choice(len(p), p=p)))
    return ids[len(ids) - n :]


@app.function
def encode(text, alphabet):
    """The ids of a text. ValueError: it is empty, or one of its letters is not in the alphabet."""
    if not text:
        raise ValueError("The beginning is empty; expected at least one letter.")
    for letter in text:
        if letter not in alphabet:
            raise ValueError(f"The model has no letter {letter!r}; it knows those of the stories.")
    return [alphabet.index(letter) for letter in text]


@app.cell
def _():
    look.header(9)
    return


@app.cell
def _():
    look.hint(
        "move the rank down from 64 and compare the two curves. Then turn the adapter at the end "
        "of the page up from 0, and past 1.",
        "the update itself is not of low rank, but what it is good for nearly is. "
        "And one matrix of rank 1 in each place is enough to change the voice.",
    )
    return


@app.cell
def _():
    job = keep.start("adapt", train_all)
    further, ready = keep.watch(job), keep.ready(job)
    return further, job, ready


@app.cell
def _(further, job):
    further()
    what = "A small GPT learns the stories, then the verses in four ways:"
    keep.progress(job, what) if job.result is None else None
    return


@app.cell
def _(job, ready):
    mo.stop(not ready() or job.result is None)
    base = parameters(job.result, "base")
    full = parameters(job.result, "full")
    updates = {name: full[name] - base[name] for name in stage.matrices_of(base)}
    cut_bits = job.result["cut_bits"]  # (13,) of the verses, for each of RANKS
    base_bits = verses_bits(base)
    lora_bits = {rank: verses_bits(base, adapters(job.result, base, rank)) for rank in LORAS}
    return base, base_bits, cut_bits, lora_bits, updates


@app.cell
def _():
    look.heading("What full fine-tuning changed: ΔW of every matrix, cut to a rank")
    return


@app.cell
def _(updates):
    matrix = mo.ui.dropdown(list(updates), value=list(updates)[0], label="matrix")
    steps = [rank for rank in RANKS if rank <= min(map(min, (u.shape for u in updates.values())))]
    rank = mo.ui.slider(steps=steps, value=4, label="rank kept", show_value=True)
    look.controls(matrix, rank)
    return matrix, rank


@app.cell
def _(matrix, updates):
    sigma = np.linalg.svd(updates[matrix.value], compute_uv=False)
    return (sigma,)


@app.cell
def _(rank, sigma):
    spectrum, _axes = look.plot(height=3)
    _places = np.arange(1, len(sigma) + 1)
    _colours = [look.BLUE if place <= rank.value else look.LINE for place in _places]
    _axes.bar(_places, sigma, color=_colours)
    _axes.set_xlabel("singular value, by size")
    _axes.set_ylabel("σ")
    _says = f"The {len(sigma)} singular values of ΔW; the {rank.value} largest are kept."
    spectrum_picture = look.picture(spectrum, _says)
    return (spectrum_picture,)


@app.cell
def _(base_bits, cut_bits, lora_bits, rank):
    _figure, _axes = look.plot(height=3)
    _axes.plot(RANKS, cut_bits, color=look.BLUE, marker=".")
    _axes.plot([*lora_bits], [*lora_bits.values()], color=look.RED, marker="D", ls=":")
    _axes.axhline(base_bits, color=look.QUIET, ls="--", lw=1)
    _axes.axvline(rank.value, color=look.QUIET, lw=1)
    _end = {"xytext": (0, 6), "textcoords": "offset points", "ha": "right"}
    _axes.annotate("the base", (RANKS[-1], base_bits), color=look.QUIET, **_end)
    _right = {"xytext": (8, 2), "textcoords": "offset points"}
    _axes.annotate("full, ΔW cut", (0, cut_bits[0]), color=look.BLUE, **_right)
    _left = {"xytext": (-8, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    _axes.annotate("LoRA", (1, lora_bits[1]), color=look.RED, **_left)
    _axes.set_xscale("symlog", linthresh=1)
    _axes.set_xticks(RANKS[::2], [str(r) for r in RANKS[::2]])
    _axes.minorticks_off()
    _axes.set_xlabel("rank")
    _axes.set_ylabel("bits per letter of new verses")
    _nearer = min(cut_bits[-1], *lora_bits.values())
    _says = f"Lower is better: the base needs {base_bits:.3f} bits, the best here {_nearer:.3f}."
    gain_picture = look.picture(_figure, _says)
    return (gain_picture,)


@app.cell
def _(cut_bits, gain_picture, matrix, rank, spectrum_picture, updates):
    _, share = stage.low_rank(updates[matrix.value], rank.value)
    _every = [stage.low_rank(update, rank.value)[1] for update in updates.values()]
    look.below(
        look.beside(spectrum_picture, gain_picture),
        look.sentence(
            f"Rank {rank.value} keeps ",
            look.number("share", share, ".1%"),
            " of the squared length of this update, and ",
            look.number("mean_share", np.mean(_every), ".1%"),
            " of all four on average. With all four cut like this, new verses cost ",
            look.number("cut_bits", cut_bits[RANKS.index(rank.value)]),
            " bits a letter (at rank 0 the tuned embeddings, biases and norms remain).",
        ),
    )
    return


@app.cell
def _(base_bits, cut_bits, updates):
    _gained = base_bits - cut_bits
    _shares = [
        np.mean([stage.low_rank(update, r)[1] for update in updates.values()]) for r in RANKS
    ]
    if _gained[-1] <= 0:
        _verdict = "In this short training the update gained nothing, so there is nothing to keep."
    else:
        _near = next(r for r, kept_share in zip(RANKS, _shares) if kept_share >= 0.9)
        _good = next(r for r, gain in zip(RANKS, _gained) if gain >= 0.9 * _gained[-1])
        _verdict = (
            f"Nine tenths of the squared length take rank {_near}, nine tenths of the gain take "
            f"rank {_good}: "
        )
        if _good < _near:
            _verdict += "most of the update is of little use."
        else:
            _verdict += "here the gain needs as much of the update as its length does."
    look.sentence(_verdict)
    return


@app.cell
def _():
    look.heading("An adapter, turned up and down")
    return


@app.cell
def _():
    beginning = mo.ui.text("The moon ", label="a beginning", debounce=300, full_width=True)
    lora = mo.ui.dropdown([f"rank {r}" for r in LORAS], value="rank 4", label="LoRA of")
    strength = mo.ui.slider(0, 2, step=0.1, value=1, label="strength", show_value=True)
    seed = mo.ui.slider(0, 20, value=0, label="seed", show_value=True)
    look.below(beginning, look.controls(lora, strength, seed))
    return beginning, lora, seed, strength


@app.cell
def _(beginning):
    alphabet = letters()
    ids, _refused = None, None
    try:
        ids = encode(beginning.value, alphabet)
    except ValueError as _error:
        _refused = look.problem(_error)
    _refused
    return alphabet, ids


@app.cell
def _(base, job, lora, strength):
    plugs = adapters(job.result, base, int(lora.value.split()[1]), strength.value)
    numbers = sum(array.size for plug in plugs.values() for array in plug.params.values())
    return numbers, plugs


@app.cell
def _(alphabet, base, beginning, ids, plugs, seed):
    mo.stop(ids is None)

    def column(name, title, adapter):
        """What one model expects after the beginning, and how it goes on."""
        p = next_letter(base, adapter, ids)
        best = np.argsort(-p, kind="stable")[:8]
        new = "".join(alphabet[i] for i in write(base, adapter, ids, 160, seed.value))
        return look.below(
            look.words(title),
            look.bars(name, [alphabet[i] for i in best], p[best], most=1),
            look.quote(f"{name}_text", beginning.value, new),
        )

    look.beside(
        column("off", "**adapter off**: the base, which read stories", {}),
        column("on", "**adapter on**", plugs),
    )
    return


@app.cell
def _(base, base_bits, numbers, plugs):
    _size = sum(array.size for array in base.values())
    look.sentence(
        f"The adapter holds {numbers:,} numbers, {numbers / _size:.1%} of the base's {_size:,}. "
        "New verses cost ",
        look.number("on_bits", verses_bits(base, plugs)),
        " bits a letter at this strength, and ",
        look.number("base_bits", base_bits),
        " with the adapter off.",
    )
    return


if __name__ == "__main__":
    app.run()
