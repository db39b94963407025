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
    from types import SimpleNamespace

    import marimo as mo
    import numpy as np

    import stage09_lora as stage
    from explorer import keep, look
    from explorer.pages import ROOT

    SEED = 0
    # The stage's LoRA at three ranks, by the stage's names; each at the rate that its sweep chose.
    LORAS = {1: "LoRA, rank 1", 4: "LoRA", 16: "LoRA, rank 16"}
    RANKS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # to which ΔW can be cut
    MEANING = {  # of the four matrices of a block
        "attn.c_attn": "attention's queries, keys and values",
        "attn.c_proj": "attention's way out",
        "mlp.c_fc": "the MLP's first matrix",
        "mlp.c_proj": "the MLP's second matrix",
    }
    WRITTEN = 160  # letters that the models add to a beginning
    LONGEST = 1000  # letters of a beginning

    ALPHABET = sorted(set((ROOT / "data" / "stories.txt").read_text(encoding="utf-8")))
    CORPORA, _ = stage.read_corpora(keep.FAST)
    SHAPE, BASE_STEPS, STEPS = stage.sizes(keep.FAST)
    N_LAYER, N_EMBD, N_HEAD, CONTEXT = SHAPE


@app.cell
def _():
    # Training: a base, then four ways to adapt it
    return


@app.function
def counted(seed, each):
    """What stage.fit needs of default_rng(seed), with a call of `each` before every draw: it draws
    once a step."""
    rng = np.random.default_rng(seed)

    def integers(*args):
        each()
        return rng.integers(*args)

    return SimpleNamespace(integers=integers)


@app.function
def train_all(report):
    """The base on the stories, then full fine-tuning and LoRA on the verses: what each trained.

    Keys: "base:NAME" and "full:NAME" for every parameter, "RANK:MATRIX:A" and ":B" for LoRA; and
    "cut_bits" (13,), the verses' held-out bits with every update cut to each of RANKS.
    """
    stories, verses = (ids[:first] for ids, first in CORPORA.values())
    done = 0

    def step():
        nonlocal done
        done += 1
        report(done / (BASE_STEPS + 4 * STEPS + len(RANKS)))

    # As stage.pretrain and stage.adapt do it, with a generator that counts the steps.
    base = stage.init_params(len(ALPHABET), CONTEXT, N_LAYER, N_EMBD, SEED)
    rng = counted([SEED, 0], step)
    stage.fit(base, stories, N_HEAD, BASE_STEPS, 8e-3, rng, {}, list(base), 16)
    kept = {f"base:{name}": array for name, array in base.items()}

    method = "full fine-tuning"
    full, plugs, trainable = stage.prepare(method, base, verses, SEED)
    rate = stage.METHODS[method].rate
    stage.fit(full, verses, N_HEAD, STEPS, rate, counted([SEED, 1], step), plugs, trainable)
    kept |= {f"full:{name}": array for name, array in full.items()}

    for rank, method in LORAS.items():
        params, plugs, trainable = stage.prepare(method, base, verses, SEED)
        rate = stage.METHODS[method].rate
        stage.fit(params, verses, N_HEAD, STEPS, rate, counted([SEED, 1], step), plugs, trainable)
        for name, plug in plugs.items():
            kept |= {f"{rank}:{name}:{part}": array for part, array in plug.params.items()}

    cut_bits = []
    for rank in RANKS:
        cut_bits.append(verses_bits(cut(base, full, rank)))
        step()
    kept["cut_bits"] = np.array(cut_bits)
    return kept


@app.function
def cut(base, full, rank):
    """The tuned model with the update of every matrix cut to a rank; all else as tuned."""
    model = dict(full)
    for name in stage.matrices_of(base):
        model[name] = base[name] + stage.low_rank(full[name] - base[name], rank)[0]
    return model


@app.function
def verses_bits(params, plugs=None):
    """Held-out bits a letter of the verses."""
    return stage.score(params, *CORPORA["verses"], N_HEAD, plugs) / math.log(2)


@app.function
def parameters(result, which):
    """{name: array} of "base" or "full", from what train_all returned."""
    head = f"{which}:"
    return {key.removeprefix(head): a for key, a in result.items() if key.startswith(head)}


@app.function
def adapters(result, base, rank, strength=1.0):
    """{matrix: the trained LoRA of this rank}, which adds strength × what it has learned."""
    plugs = stage.prepare(LORAS[rank], base, None, SEED)[1]
    for name, plug in plugs.items():
        plug.params = {part: result[f"{rank}:{name}:{part}"] for part in ("A", "B")}
        plug.scale *= strength
    return plugs


@app.cell
def _():
    # Which part of the update is of use?
    return


@app.function
def first_with(shares, ranks, least=0.9):
    """The first of the ranks whose share is at least `least`."""
    return next(rank for rank, share in zip(ranks, shares) if share >= least)


@app.function
def verdict(cut_bits, mean_shares, ranks):
    """The sentence that compares the rank of the update's length with the rank of its use."""
    gains = cut_bits[0] - cut_bits  # over a model whose matrices are the base's
    if gains[-1] <= 0:
        return "In this short training ΔW has gained nothing, so there is nothing to keep."
    length, use = first_with(mean_shares, ranks), first_with(gains / gains[-1], ranks)
    found = (
        f"Nine tenths of the squared length of ΔW take rank {length}. Nine tenths of what it gains "
        f"on new verses take rank {use}: "
    )
    if use < length:
        return found + "most of the update is of little use."
    return found + "here its use needs as many directions as its length."


@app.function
def draw_spectrum(sigma):
    """The singular values as bars."""
    figure, axes = look.plot(height=3)
    axes.bar(np.arange(1, len(sigma) + 1), sigma, color=look.LINE)
    axes.set(xlabel="singular value, by size", ylabel="σ")
    return figure


@app.function
def draw_kept(figure, sigma, rank):
    """SVG over draw_spectrum: the bars that are kept."""
    kept = ""
    for place, height in enumerate(sigma[:rank], 1):
        left, top = look.place(figure, place - 0.4, height)
        right, bottom = look.place(figure, place + 0.4, 0)
        size = {"width": right - left, "height": bottom - top}
        kept += look.tag("rect", kind="kept", x=left, y=top, style="fill:var(--blue)", **size)
    return kept


@app.function
def draw_costs(ranks, cut_bits, lora_bits, base_bits):
    """What new verses cost: the tuned model with ΔW cut to each rank, LoRA, and the base."""
    figure, axes = look.plot(height=3)
    axes.plot(ranks, cut_bits, color=look.BLUE, marker=".")
    axes.plot([*lora_bits], [*lora_bits.values()], color=look.RED, marker="D", ls=":")
    axes.axhline(base_bits, color=look.QUIET, ls="--", lw=1)
    near = {"textcoords": "offset points"}
    axes.annotate(
        "the base", (ranks[-1], base_bits), xytext=(0, -13), ha="right", color=look.QUIET, **near
    )
    axes.annotate(
        "full fine-tuning, ΔW cut", (0, cut_bits[0]), xytext=(8, 2), color=look.BLUE, **near
    )
    axes.annotate("LoRA", (1, lora_bits[1]), xytext=(-8, -4), ha="right", color=look.RED, **near)
    axes.set_xscale("symlog", linthresh=1)  # a logarithmic axis that has a place for 0
    axes.set_xticks(ranks[::2], map(str, ranks[::2]))
    axes.minorticks_off()
    axes.set(xlabel="rank", ylabel="bits per letter of new verses")
    return figure


@app.function
def draw_chosen(figure, rank, bits):
    """SVG over draw_costs: a ring around the chosen rank."""
    x, y = look.place(figure, rank, bits)
    return look.tag("circle", cx=x, cy=y, r=7, style="fill:none;stroke:var(--ink);stroke-width:2")


@app.cell
def _():
    # What does the model write?
    return


@app.function
def encode(text):
    """The ids of a text. ValueError: it is empty, too long, or has a letter that is unknown."""
    if not text:
        raise ValueError("The beginning is empty; expected at least one letter.")
    if len(text) > LONGEST:
        raise ValueError(f"The beginning has {len(text):,} letters; at most {LONGEST:,} go here.")
    for letter in text:
        if letter not in ALPHABET:
            raise ValueError(f"The model has no letter {letter!r}; it knows those of the stories.")
    return [ALPHABET.index(letter) for letter in text]


@app.function
def next_letter(params, plugs, ids):
    """P(next letter | ids): (V,), from as much of their end as the model can see."""
    logits, _ = stage.gpt_forward(params, np.array([ids[-CONTEXT:]]), N_HEAD, plugs)
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
    return "".join(ALPHABET[i] for i in ids[-n:])


@app.function
def voice(name, title, params, plugs, beginning, ids, seed):
    """What a model expects after the beginning, and how it goes on."""
    p = next_letter(params, plugs, ids)
    likely = np.argsort(-p, kind="stable")[:8]
    return look.below(
        look.words(title),
        look.bars(name, [ALPHABET[i] for i in likely], p[likely], most=1),
        look.quote(f"{name}_text", beginning, write(params, plugs, ids, WRITTEN, seed)),
    )


@app.cell
def _():
    # The page
    return


@app.cell
def _():
    look.header(9)
    return


@app.cell
def _():
    look.hint(
        "move the rank down to 0, and watch how much of ΔW is left and what new verses cost then. "
        "At the end of the page, turn the adapter up from 0 to 1, and further.",
        "a few directions hold a small part of the update's length, and nearly all of its use. An "
        "adapter that never had more than a few gains about as much. After a comma, it turns the "
        "base's space into the end of a line of verse, ⏎; at 2, it is nearly as bad as none.",
    )
    return


@app.cell
def _():
    look.words(
        "A small GPT, the *base*, has read the stories. Then it is adapted to verses. *Full "
        "fine-tuning* moves all its numbers: a matrix W becomes W + ΔW. *LoRA* leaves them as they "
        "are, and trains two thin matrices beside each W, whose product AB has a low rank: at rank "
        "4 it sees only four directions of what comes in, and writes along only four. Each model "
        "is then scored on verses that it has not read."
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
    base_bits = verses_bits(base)
    lora_bits = {rank: verses_bits(base, adapters(job.result, base, rank)) for rank in LORAS}
    return base, base_bits, full, lora_bits


@app.cell
def _(base, full, job):
    updates = {name: full[name] - base[name] for name in stage.matrices_of(base)}
    ranks = [rank for rank in RANKS if rank <= N_EMBD]  # no matrix here has a higher one
    cut_bits = job.result["cut_bits"][: len(ranks)]
    shares = {  # of ‖ΔW‖², kept at each rank
        name: [stage.low_rank(update, rank)[1] for rank in ranks]
        for name, update in updates.items()
    }
    mean_shares = np.mean(list(shares.values()), axis=0)
    return cut_bits, mean_shares, ranks, shares, updates


@app.cell
def _():
    look.heading("What full fine-tuning changed, and how much of it is needed")
    return


@app.cell
def _(ranks, updates):
    names = {
        f"{place}: {meaning}": name
        for name in updates
        for place, meaning in MEANING.items()
        if place in name
    }
    matrix = mo.ui.dropdown(names, value=next(iter(names)), label="ΔW of")
    rank = mo.ui.slider(steps=ranks, value=4, label="rank kept", show_value=True)
    look.controls(matrix, rank)
    return matrix, rank


@app.cell
def _(matrix, updates):
    sigma = np.linalg.svd(updates[matrix.value], compute_uv=False)
    spectrum = draw_spectrum(sigma)
    spectrum_drawn = look.drawn(spectrum)
    return sigma, spectrum, spectrum_drawn


@app.cell
def _(base_bits, cut_bits, lora_bits, ranks):
    costs = draw_costs(ranks, cut_bits, lora_bits, base_bits)
    costs_drawn = look.drawn(costs)
    return costs, costs_drawn


@app.cell
def _(
    base_bits,
    costs,
    costs_drawn,
    cut_bits,
    matrix,
    mean_shares,
    rank,
    ranks,
    shares,
    sigma,
    spectrum,
    spectrum_drawn,
):
    chosen = ranks.index(rank.value)
    kept = f"the {rank.value} largest are kept" if rank.value else "none is kept"
    look.below(
        look.beside(
            look.layered(
                spectrum_drawn,
                draw_kept(spectrum, sigma, rank.value),
                f"ΔW is a sum of {len(sigma)} matrices of rank 1. Their sizes are its singular "
                f"values σ; {kept}.",
            ),
            look.layered(
                costs_drawn,
                draw_chosen(costs, rank.value, cut_bits[chosen]),
                f"Lower is better. The ring is the tuned model with all four ΔW cut to rank "
                f"{rank.value}; LoRA was trained with the rank at which it stands.",
            ),
        ),
        look.sentence(
            f"Rank {rank.value} keeps ",
            look.number("share", shares[matrix.value][chosen], ".1%"),
            " of the squared length of this ΔW, and ",
            look.number("mean_share", mean_shares[chosen], ".1%"),
            " of all four on average. With all four cut like this, new verses cost ",
            look.number("cut_bits", cut_bits[chosen]),
            " bits a letter, where the base needs ",
            look.number("base_cost", base_bits),
            ". (At rank 0 the tuned embeddings, biases and norms remain.)",
        ),
    )
    return


@app.cell
def _(cut_bits, mean_shares, ranks):
    look.sentence(verdict(cut_bits, mean_shares, ranks))
    return


@app.cell
def _():
    look.heading("An adapter, turned up and down")
    return


@app.cell
def _():
    beginning = mo.ui.text(
        "The moon is bright,", label="a beginning", debounce=False, full_width=True
    )
    lora = mo.ui.dropdown({f"rank {r}": r for r in LORAS}, value="rank 4", label="LoRA of")
    strength = mo.ui.slider(0, 2, step=0.1, value=1, label="strength", show_value=True)
    seed = mo.ui.slider(0, 20, value=0, label="seed of the draws", show_value=True)
    look.below(beginning, look.controls(lora, strength, seed))
    return beginning, lora, seed, strength


@app.cell
def _(beginning):
    ids, refused = None, None
    try:
        ids = encode(beginning.value)
    except ValueError as error:
        refused = look.problem(error)
    refused
    return (ids,)


@app.cell
def _(base, job, lora, strength):
    plugs = adapters(job.result, base, lora.value, strength.value)
    return (plugs,)


@app.cell
def _(base, beginning, ids, seed):
    mo.stop(ids is None)
    title = "**Adapter off**: the base, which has read stories"
    off = voice("off", title, base, {}, beginning.value, ids, seed.value)
    return (off,)


@app.cell
def _(base, beginning, ids, lora, off, plugs, seed, strength):
    title_on = (
        f"**Adapter on**: W + {strength.value:g} × what LoRA of rank {lora.value} has learned"
    )
    on = voice("on", title_on, base, plugs, beginning.value, ids, seed.value)
    look.beside(off, on)
    return


@app.cell
def _(base, base_bits, lora, lora_bits, plugs, strength):
    adapter_size = sum(array.size for plug in plugs.values() for array in plug.params.values())
    base_size = sum(array.size for array in base.values())
    look.sentence(
        f"The adapter holds {adapter_size:,} numbers, {adapter_size / base_size:.1%} of the base's "
        f"{base_size:,}. With it, new verses cost ",
        look.number("on_bits", verses_bits(base, plugs)),
        f" bits a letter at strength {strength.value:g}, ",
        look.number("trained_bits", lora_bits[lora.value]),
        " at strength 1, as it was trained, and ",
        look.number("base_bits", base_bits),
        " with the adapter off.",
    )
    return


if __name__ == "__main__":
    app.run()
