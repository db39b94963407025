"""Stage 5, live: every number of one head at work, in a model that has learned to recall."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="full",
    app_title="5 attend",
    css_file="look.css",
    html_head_file="look.html",
)

with app.setup:
    import marimo as mo
    import numpy as np

    import stage05_attention as stage
    from explorer import keep, look

    # Sizes of the stage's own report. The name below tells keep.py which of them were trained.
    N_PAIRS, STEPS, WIDTH = (3, 120, 48) if keep.FAST else (6, 400, 64)
    N_LAYER, N_HEAD = 2, 2
    NAME = f"recall-{N_PAIRS}-{STEPS}-{WIDTH}-{N_LAYER}-{N_HEAD}"
    HEADS = [(layer, head) for layer in range(N_LAYER) for head in range(N_HEAD)]

    LONGEST = 24  # tokens of a prompt: six pairs and six questions
    N_TEXTS = 200  # fresh texts, on which right answers are counted
    # numbers of a value that the table has room for
    SHOWN = 4


@app.function
def train_recall(report):
    """Section 10's training: the parameters, and the share right at each step."""
    rights = []

    class Watched(stage.AttentionOnly):
        def loss_and_grads(self, ids):
            loss, right, grads = super().loss_and_grads(ids)
            rights.append(right)
            report(len(rights) / STEPS)
            return loss, right, grads

    model = Watched(WIDTH, N_HEAD, N_LAYER)
    stage.train(model, STEPS, N_PAIRS, seed=0, name="recall")
    return model.params | {"rights": np.array(rights)}


@app.function
def rebuild(arrays):
    """The model with the trained parameters, in float64."""
    model = stage.AttentionOnly(WIDTH, N_HEAD, N_LAYER, dtype=np.float64)
    for name, W in model.params.items():
        W[...] = arrays[name]
    return model


@app.function
def fresh_texts():
    """(B, 4·N_PAIRS) texts that the training has not seen."""
    return stage.recall_batch(np.random.default_rng(1), N_TEXTS, N_PAIRS)


@app.function
def lesson_of(share, guessing):
    """What a share right teaches, beside that of guessing."""
    if share > 0.95:
        return "So it has learned to recall."
    if share > guessing + 0.1:
        return "So it has begun to recall, but often fails."
    return "So it has not learned to recall, and what its heads do means little."


@app.function
def read_prompt(text):
    """Token ids (1, T) of what was typed. ValueError: nothing, too much, or no token."""
    tokens = "".join(text.split())  # spaces are for the eye only
    if not tokens:
        raise ValueError("The prompt is empty: type letters and digits, such as a3 f0 a.")
    for token in tokens:
        if token not in stage.TOKENS:
            raise ValueError(
                f"The model has no token {token!r}; it knows the letters {stage.LETTERS[0]} to "
                f"{stage.LETTERS[-1]} and the digits 0 to 9."
            )
    if len(tokens) > LONGEST:
        raise ValueError(f"The prompt has {len(tokens)} tokens; at most {LONGEST} go here.")
    return np.array([[stage.TOKENS.index(token) for token in tokens]])


@app.function
def followers(tokens):
    """The tokens that have followed earlier copies of the last token: what there is to recall."""
    earlier = range(len(tokens) - 1)
    return sorted({tokens[i + 1] for i in earlier if tokens[i] == tokens[-1]})


@app.function
def judgement(tokens, p):
    """What the model answers after these tokens, given its p (V,), and whether that is right."""
    answer, last = stage.TOKENS[p.argmax()], tokens[-1]
    right = followers(tokens)
    if last not in stage.LETTERS:
        return f"{answer}. That is a guess: nobody taught it what follows a digit."
    if not right:
        return f"{answer}. That is a guess: {last} has not stood here before."
    if len(right) > 1:
        return f"{answer}. No answer is the right one: {' and '.join(right)} followed {last}."
    if answer == right[0]:
        return f"{answer}. That is right: it followed {last}."
    return f"{answer}. That is wrong: {right[0]} followed {last}."


@app.function
def digits_of(p):
    """Each digit's probability, and that of all letters together, from p (V,)."""
    first = len(stage.LETTERS)
    return [*p[first:], p[:first].sum()]


@app.function
def run(model, ids, unscaled=(), silenced=()):
    """logits (B, T, V), and of each layer attention_forward's cache (q, k, v, p, scale).

    unscaled: layers whose scores are not divided by √D. silenced: (layer, head) pairs that hand
    over nothing, as with the stage's right_with(np.zeros_like, ...), but any number of them.
    """
    x = model.embed(ids)  # (B, T, C)
    caches = []
    for i, layer in enumerate(model.layers):
        _, _, (q, k, v, _, _), _ = layer.forward(x)[1]
        scale = 1.0 if i in unscaled else None  # None is the stage's word for 1/√D
        out, cache = stage.attention_forward(q, k, v, causal=True, scale=scale)
        for head in range(N_HEAD):
            if (i, head) in silenced:
                out[:, head] = 0
        x = x + stage.matmul(stage.merge_heads(out), layer.params["Wo"])
        caches.append(cache)
    return stage.matmul(x, model.params["unembed"]), caches


@app.function
def share_right(logits, texts):
    """Share of the questions in the second half of the texts that are answered right."""
    half = texts.shape[1] // 2
    return float(np.mean(logits[:, half::2].argmax(axis=-1) == texts[:, half + 1 :: 2]))


@app.function
def share_of_guessing(texts):
    """Share right of a most frequent digit of the first half: what counting alone can reach."""
    half = texts.shape[1] // 2
    counts = np.sum(texts[:, 1:half:2, None] == np.arange(len(stage.TOKENS)), axis=1)  # (B, V)
    return float(np.mean(counts.argmax(axis=1)[:, None] == texts[:, half + 1 :: 2]))


@app.function
def steps(cache, head, i):
    """What the query at place i does with each of T keys: q·k, scaled, masked, p (T,), p v (T, D).

    They are the lines of attention_forward, one at a time; a test holds the two together.
    """
    q, k, v, _, scale = cache
    scores = k[0, head] @ q[0, head, i]  # (T,)
    scaled = scores * scale
    seen = stage.sliding_window_mask(len(scores), len(scores))[i]
    masked = np.where(seen, scaled, -np.inf)
    p, _ = stage.softmax_forward(masked)
    return scores, scaled, masked, p, p[:, None] * v[0, head]


@app.function
def lifts(model, layer, head, parts):
    """What parts (..., D) of a head's answer add to the logits (..., V), by Wo and U alone."""
    D = WIDTH // N_HEAD
    Wo = model.layers[layer].params["Wo"][head * D : (head + 1) * D]  # (D, C)
    return parts @ Wo @ model.params["unembed"]


@app.function
def entropy(p):
    """Bits of each row of weights (..., N): 0 where one weight is 1, more the more they spread."""
    return -np.sum(p * np.log2(np.maximum(p, 1e-300)), axis=-1)


@app.cell
def _():
    look.header(5)
    return


@app.cell
def _():
    look.hint(
        "change a digit of the prompt, or its last letter. Then follow one query through the "
        "table of one head at work: first in layer 2, then, from one of the digits, in layer 1. "
        "Then untick the previous-token head; the end of this page says which it is.",
        "in layer 2 a letter does not look for its own copy but for the digit after it. It can, "
        "because layer 1 has told each digit which letter it follows. Without that head, the "
        "search in layer 2 goes astray.",
    )
    return


@app.cell
def _():
    job = keep.start(NAME, train_recall)
    further, ready = keep.watch(job), keep.ready(job)
    return further, job, ready


@app.cell
def _(further, job):
    further()
    mo.stop(job.result is not None)
    keep.progress(job, f"training two layers to recall, {STEPS} steps")
    return


@app.cell
def _(job, ready):
    mo.stop(not ready() or job.result is None)
    model = rebuild(job.result)
    texts = fresh_texts()
    trained_share = model.loss_and_grads(texts)[1]
    return model, texts, trained_share


@app.cell
def _(texts, trained_share):
    guessing = share_of_guessing(texts)
    look.sentence(
        f"A model of {N_LAYER} layers with {N_HEAD} heads each has read texts of {4 * N_PAIRS} "
        "tokens: letters with digits, then the same letters again, asking which digit stood "
        "behind them. Of the questions in new texts it answers ",
        look.number("trained_share", trained_share, ".1%"),
        " right; a most frequent digit would be right in ",
        look.number("guessing", guessing, ".1%"),
        f". {lesson_of(trained_share, guessing)}",
    )
    return


@app.cell
def _():
    look.heading("Ask, and change the model")
    return


@app.cell
def _():
    prompt = mo.ui.text(
        "a3 f0 c7 h2 e9 b5 c",
        label="prompt: letters a to l, digits, and a letter to ask for",
        debounce=False,
        full_width=True,
    )
    prompt
    return (prompt,)


@app.cell
def _(prompt):
    ids, refused = None, None
    try:
        ids = read_prompt(prompt.value)
    except ValueError as error:
        refused = look.problem(error)
    refused
    return (ids,)


@app.cell
def _():
    # Six names instead of a mo.ui.array, which forgets a tick if two come quickly.
    scale1 = mo.ui.checkbox(True, label="layer 1: √D")
    scale2 = mo.ui.checkbox(True, label="layer 2: √D")
    head11 = mo.ui.checkbox(True, label="layer 1: head 1")
    head12 = mo.ui.checkbox(True, label="layer 1: head 2")
    head21 = mo.ui.checkbox(True, label="layer 2: head 1")
    head22 = mo.ui.checkbox(True, label="layer 2: head 2")
    look.below(
        look.words("Untick what the model shall do without: a layer's division by √D, or a head."),
        look.controls(scale1, scale2),
        look.controls(head11, head12),
        look.controls(head21, head22),
    )
    return head11, head12, head21, head22, scale1, scale2


@app.cell
def _(head11, head12, head21, head22, scale1, scale2):
    unscaled = [layer for layer, box in enumerate((scale1, scale2)) if not box.value]
    boxes = (head11, head12, head21, head22)  # in the order of HEADS
    silenced = [place for place, box in zip(HEADS, boxes) if not box.value]
    changed = bool(unscaled or silenced)
    return changed, silenced, unscaled


@app.cell
def _(ids, model, silenced, unscaled):
    mo.stop(ids is None)
    tokens = [stage.TOKENS[i] for i in ids[0]]
    usual = stage.softmax_forward(run(model, ids)[0][0])[0]  # (T, V) as trained
    logits, caches = run(model, ids, unscaled, silenced)
    expected = stage.softmax_forward(logits[0])[0]  # (T, V) with the changes
    return caches, expected, tokens, usual


@app.cell
def _(changed, expected, tokens, usual):
    rows = {"trained": usual[-1]}
    if changed:
        rows["changed"] = expected[-1]
    digits = stage.TOKENS[len(stage.LETTERS) :]
    look.below(
        look.words("The probability of each digit, and of any letter, as the next token:"),
        look.heat("answers", [digits_of(p) for p in rows.values()], rows, [*digits, "a-l"]),
        *(look.sentence(f"As {name}: {judgement(tokens, p)}") for name, p in rows.items()),
    )
    return


@app.cell
def _(changed, model, silenced, texts, trained_share, unscaled):
    mo.stop(not changed)
    share = share_right(run(model, texts, unscaled, silenced)[0], texts)
    if share < trained_share - 0.05:
        effect = "The model needs what you took away."
    elif share > trained_share + 0.05:
        effect = "It is better off without what you took away."
    else:
        effect = "It can do without what you took away."
    look.sentence(
        "With your changes it answers ",
        look.number("share", share, ".1%"),
        " of the questions in the new texts right, instead of ",
        look.number("share_before", trained_share, ".1%"),
        f". {effect}",
    )
    return


@app.cell
def _():
    look.heading("One head at work")
    return


@app.cell
def _():
    layer_choice = mo.ui.dropdown(
        [str(layer + 1) for layer in range(N_LAYER)], value=str(N_LAYER), label="layer"
    )
    head_choice = mo.ui.dropdown([str(head + 1) for head in range(N_HEAD)], value="1", label="head")
    look.controls(layer_choice, head_choice)
    return head_choice, layer_choice


@app.cell
def _(ids):
    mo.stop(ids is None)
    T = ids.shape[1]  # a new prompt: its last token asks
    place = mo.ui.slider(1, max(2, T), value=T, label="place that asks", show_value=True)
    look.controls(place)
    return (place,)


@app.cell
def _(caches, head_choice, layer_choice, place, tokens):
    layer = int(layer_choice.value) - 1
    head = int(head_choice.value) - 1
    asks = min(place.value, len(tokens)) - 1
    cache = caches[layer]
    places = [f"{i + 1}:{token}" for i, token in enumerate(tokens)]
    return asks, cache, head, layer, places


@app.cell
def _(asks, cache, head, layer, places, tokens):
    pattern = cache[3][0, head]  # (T, T)
    look.below(
        look.words(
            f"The weights p of layer {layer + 1}, head {head + 1}. A row asks, a column is looked "
            "at; the arrow marks the place that asks below."
        ),
        look.heat(
            "pattern",
            pattern,
            [f"→{name}" if i == asks else name for i, name in enumerate(places)],
            tokens,
            blank=0,
        ),
    )
    return


@app.cell
def _(asks, cache, expected, head, layer, model, places, silenced, tokens):
    scores, scaled, masked, p, parts = steps(cache, head, asks)
    answer = expected[asks].argmax()
    lift = lifts(model, layer, head, parts)  # (T, V)
    scale = cache[4]
    D = parts.shape[1]
    silence = ""
    if (layer, head) in silenced:
        silence = " But this head is silenced: none of it is handed over."

    def row(i):
        bar = look.tag("span", "", "bar", style=f"width:{6 * p[i]:.2f}rem")
        return [
            places[i],
            look.number(f"qk {i}", scores[i], ".2f"),
            look.number(f"scaled {i}", scaled[i], ".2f"),
            look.number(f"masked {i}", masked[i], ".2f"),
            look.number(f"p {i}", p[i]),
            mo.Html(look.tag("div", bar, style="width:6rem")),
            *(look.number(f"part {i} {d}", parts[i, d], ".2f") for d in range(SHOWN)),
            look.number(f"lift {i}", lift[i, answer], ".2f"),
        ]

    total = parts.sum(axis=0)  # (D,) Σ p v
    sums = ["Σ", "", "", "", look.number("p sum", p.sum()), ""]
    sums += [look.number(f"part sum {d}", total[d], ".2f") for d in range(SHOWN)]
    sums += [look.number("lift sum", lift[:, answer].sum(), ".2f")]
    by = "1" if scale == 1 else f"1/√{D}"
    titles = ["place", "q·k", f"q·k × {by}", "masked", "p = softmax", ""]
    titles += [f"p v, {d + 1} of {D}" for d in range(SHOWN)]
    titles += [f"logit of {stage.TOKENS[answer]}"]
    look.below(
        look.sentence(
            f"Place {asks + 1}, {tokens[asks]}, asks, and each row answers. The last column says "
            f"what p v adds directly to the logit (the score before the softmax) of "
            f"{stage.TOKENS[answer]}, the likeliest token after it.{silence}"
        ),
        look.table("steps", titles, [*(row(i) for i in range(len(tokens))), sums]),
        look.words(f"Σ p v, all {D} numbers of what this head hands over:"),
        look.heat("sum", [total], ["Σpv"], map(str, range(1, D + 1)), most=np.abs(total).max()),
    )
    return


@app.cell
def _(asks, cache, head, layer):
    q, k, v, _, _ = cache
    soft = entropy(stage.attention_forward(q, k, v, causal=True)[1][3])  # (1, H, T) bits
    sharp = entropy(stage.attention_forward(q, k, v, causal=True, scale=1.0)[1][3])
    if sharp.mean() < soft.mean():
        lesson = "Without the division the weights are sharper."
    else:
        lesson = "Here the weights are no sharper without the division."
    look.sentence(
        "Why divide by √D? Divided, the weights of this query spread as widely as ",
        look.number("soft_places", 2 ** soft[0, head, asks], ".1f"),
        " equal ones would (their entropy is ",
        look.number("soft", soft[0, head, asks], ".2f"),
        " bits); undivided, as widely as ",
        look.number("sharp_places", 2 ** sharp[0, head, asks], ".1f"),
        " (",
        look.number("sharp", sharp[0, head, asks], ".2f"),
        f" bits). On average over all queries of layer {layer + 1}, the entropy is ",
        look.number("soft_mean", soft.mean(), ".2f"),
        " and ",
        look.number("sharp_mean", sharp.mean(), ".2f"),
        f" bits. {lesson}",
    )
    return


@app.cell
def _():
    look.heading("Which head does what")
    return


@app.cell
def _(model, texts):
    maps = [cache[3] for cache in run(model, texts)[1]]  # for each layer p (B, H, T, T)
    looks = {(i, h): stage.looks(maps[i][:, h], texts) for i, h in HEADS}
    without = {(i, h): stage.right_with(np.zeros_like, model, texts, i, [h]) for i, h in HEADS}
    return looks, without


@app.cell
def _(looks, trained_share, without):
    def name_of(place):
        return f"layer {place[0] + 1}, head {place[1] + 1}"

    previous = max(HEADS, key=lambda place: looks[place][0])
    induction = max(HEADS, key=lambda place: looks[place][1])
    said = []
    if looks[previous][0] > 0.5:
        said.append(f"The previous-token head is {name_of(previous)}.")
    else:
        said.append("No head gives most of its weight to the letter before a digit.")
    if looks[induction][1] > 0.5:
        said.append(f"The best induction head is {name_of(induction)}.")
    else:
        said.append("No head gives most of its weight to the digits that followed the letter.")
    dearest = min(HEADS, key=lambda place: without[place])
    if without[dearest] < trained_share - 0.05:
        said.append(f"The one that is missed most is {name_of(dearest)}.")
    else:
        said.append("Each of them alone can be spared.")
    look.below(
        look.words(
            f"In {N_TEXTS} new texts: the average weight of a digit on the letter before it, "
            "and of a letter that is asked for on the digits that have followed it; the share of "
            "right answers when this head alone hands over nothing."
        ),
        look.table(
            "heads",
            ["", "on letter", "on digits", "right without"],
            [
                [
                    name_of(place),
                    look.number(f"previous {place}", looks[place][0], ".2f"),
                    look.number(f"induction {place}", looks[place][1], ".2f"),
                    look.number(f"without {place}", without[place], ".1%"),
                ]
                for place in HEADS
            ],
        ),
        look.words(" ".join(said)),
    )
    return


@app.cell
def _(job, texts):
    rights = job.result["rights"]
    guess = share_of_guessing(texts)
    smooth = np.convolve(rights, np.full(10, 0.1), "valid")  # of ten steps each
    figure, axes = look.plot(height=2.8)
    axes.plot(np.arange(10, len(rights) + 1), smooth, color=look.BLUE)
    axes.axhline(guess, color=look.QUIET, linestyle="--")
    axes.text(len(rights), guess + 0.02, "a most frequent digit", ha="right", va="bottom")
    axes.set(xlabel="training step", ylabel="share right", ylim=(0, 1.05))
    above = np.flatnonzero(smooth > guess + 0.1)
    if len(above):
        says = f"After {above[0] + 10} steps it is clearly better than counting digits,"
    else:
        says = "It never becomes clearly better than counting digits,"
    says += f" and in the last ten steps {smooth[-1]:.1%} of the answers are right."
    look.picture(figure, says)
    return


if __name__ == "__main__":
    app.run()
