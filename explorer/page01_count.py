"""Stage 1, live: what comes next, by counting; how a letter is drawn; what a sentence costs."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="full",
    app_title="1 count",
    css_file="look.css",
    html_head_file="look.html",
)

with app.setup:
    import math

    import marimo as mo
    import numpy as np

    import stage01_markov as stage
    from explorer import look
    from explorer.pages import ROOT

    LONGEST_OWN = 100_000  # characters; more would not be counted while you wait
    MOST_ORDER = 8
    TEXTS = {"185 short stories": "stories.txt", "2,254 names": "names.txt", "your own": None}


@app.function
def read_text(which, own):
    """The text to count. ValueError: your own is empty, or too long to answer at once."""
    if TEXTS[which] is not None:
        return (ROOT / "data" / TEXTS[which]).read_text(encoding="utf-8")
    if not own:
        raise ValueError("Your own text is empty: paste one, or choose another text.")
    if len(own) > LONGEST_OWN:
        raise ValueError(f"Your text has {len(own):,} characters; at most {LONGEST_OWN:,} go here.")
    return own


@app.function
def count(text):
    """(chain of the highest order, symbols): each lower order is a variant of it."""
    symbols = sorted(set(text))
    chain = stage.MarkovChain(MOST_ORDER, len(symbols))
    return chain.fit(stage.encode(text, symbols)), symbols


@app.function
def write(chain, symbols, context, n, seed, options):
    """n letters drawn after the context. The same seed and context give the same letters."""
    rng = np.random.default_rng([seed, len(context)])
    ids = chain.generate(n, rng, stage.encode(context, symbols), **options)
    return "".join(symbols[i] for i in ids)


@app.cell
def _():
    look.header(1)
    return


@app.cell
def _():
    look.hint(
        "move the order from 0 to 8 and watch the bars grow surer. Then set the smoothing to "
        "`mle`, which does not smooth at all.",
        "the surest prediction is not the best one. With `mle` and a high order the sentence at "
        "the end of this page becomes impossible, long before the bars look wrong.",
    )
    return


@app.cell
def _():
    which = mo.ui.dropdown(list(TEXTS), value="185 short stories", label="text to count")
    order = mo.ui.slider(0, MOST_ORDER, value=4, label="order", show_value=True)
    smoothing = mo.ui.dropdown(list(stage.SMOOTHINGS), value="kneser-ney", label="smoothing")
    look.controls(which, order, smoothing)
    return order, smoothing, which


@app.cell
def _(which):
    own = mo.ui.text_area(label="your own text", debounce=300, full_width=True)
    own if which.value == "your own" else None
    return (own,)


@app.cell
def _(own, which):
    text, counted, refused = "", None, None
    try:
        text = read_text(which.value, own.value)
        counted = count(text)
    except ValueError as error:
        refused = look.problem(error)
    refused
    return (counted,)


@app.cell
def _(counted, order, smoothing):
    mo.stop(counted is None)
    chain = counted[0].variant(order=order.value, smoothing=smoothing.value)
    symbols = counted[1]
    return chain, symbols


@app.cell
def _():
    look.heading("What comes next")
    return


@app.cell
def _():
    get_start, set_start = mo.state("The fox ")
    return get_start, set_start


@app.cell
def _(get_start):
    context = mo.ui.text(get_start(), label="after this context", debounce=False, full_width=True)
    context
    return (context,)


@app.cell
def _():
    temperature = mo.ui.slider(0, 2, step=0.1, value=1, label="temperature", show_value=True)
    top_k = mo.ui.slider(0, 20, value=0, label="top-k (0: all)", show_value=True)
    top_p = mo.ui.slider(0.1, 1, step=0.05, value=1, label="top-p", show_value=True)
    seed = mo.ui.number(0, 999, value=0, label="seed")
    look.controls(temperature, top_k, top_p, seed)
    return seed, temperature, top_k, top_p


@app.cell
def _(chain, context, symbols, temperature, top_k, top_p):
    options = {
        "temperature": temperature.value,
        "top_k": top_k.value or None,
        "top_p": top_p.value,
    }
    p, q, unknown = None, None, None
    try:
        p = chain.distribution(stage.encode(context.value, symbols))  # (V,) what was counted
        q = stage.tempered(p, **options)  # (V,) what is drawn from
    except ValueError as error:
        unknown = look.problem(f"This context cannot be continued: {error}.")
    unknown
    return options, p, q


@app.cell
def _(p, q, symbols):
    mo.stop(p is None)
    best = np.argsort(-p, kind="stable")[:12]
    names = [symbols[i] for i in best]
    most = max(p.max(), q.max())
    look.beside(
        look.below(
            look.words("P(next | context), by counting"),
            look.bars("counted", names, p[best], most=most),
        ),
        look.below(
            look.words("after temperature, top-k and top-p"),
            look.bars("drawn", names, q[best], kept=q[best] > 0, most=most),
        ),
    )
    return (names,)


@app.cell
def _(p, q):
    mo.stop(p is None)
    look.sentence(
        "The surprise to expect is ",
        look.number("entropy", stage.entropy(p, 2)),
        " bits by the counts, and ",
        look.number("entropy_drawn", stage.entropy(q, 2)),
        f" bits after the cut, which keeps {np.count_nonzero(q)} of {len(q)} symbols.",
    )
    return


@app.cell
def _(chain, context, names, options, p, seed, set_start, symbols):
    mo.stop(p is None)

    def extend(n):
        return lambda _: set_start(
            context.value + write(chain, symbols, context.value, n, seed.value, options)
        )

    def choose(name):
        return lambda _: set_start(context.value + name)

    one = mo.ui.button(label="draw one letter", on_change=extend(1))
    many = mo.ui.button(label="draw 50 letters", on_change=extend(50))
    chosen = [mo.ui.button(label=look.visible(name), on_change=choose(name)) for name in names[:8]]
    look.controls(one, many, *chosen)
    return


@app.cell
def _():
    look.heading("What a sentence costs, symbol by symbol")
    return


@app.cell
def _():
    sentence = mo.ui.text(
        "The owl and the king of Bulgaria had soup.",
        label="a sentence",
        debounce=False,
        full_width=True,
    )
    sentence
    return (sentence,)


@app.cell
def _(chain, sentence, symbols):
    surprise, strange = None, None
    try:
        if not sentence.value:
            raise ValueError("the sentence is empty")
        surprise = -chain.log_probabilities(stage.encode(sentence.value, symbols)) / math.log(2)
    except ValueError as error:
        strange = look.problem(f"This sentence cannot be measured: {error}.")
    strange
    return (surprise,)


@app.cell
def _(sentence, surprise):
    mo.stop(surprise is None)
    look.below(
        look.symbols(
            "surprise",
            list(sentence.value),
            np.minimum(surprise, 12) / 12,
            titles=[f"{s:.2f} bits" for s in surprise],
        ),
        look.sentence(
            "Its symbols cost ",
            look.number("bits", surprise.mean()),
            " bits each, as if each were one of ",
            look.number("perplexity", 2 ** surprise.mean(), ".2f"),
            " equally likely ones. Darker is more surprising; point at a symbol for its bits.",
        ),
    )
    return


if __name__ == "__main__":
    app.run()
