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
    LONGEST_SENTENCE = 1000
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
        "move the order, which is how many symbols back the prediction looks, from 0 to 8. Then "
        "set the smoothing to `mle`, where what was never counted gets the probability 0.",
        "the longer the context, the surer the first bars. But surer is not better: the sentence "
        "at the end of this page costs least at order 5, and more again at 8, because long "
        "contexts were seen too rarely. With `mle` it is impossible at every order above 0.",
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
    context = mo.ui.text_area(
        get_start(), label="after this context", debounce=False, rows=2, full_width=True
    )
    context
    return (context,)


@app.cell
def _():
    temperature = mo.ui.slider(0, 2, step=0.1, value=1, label="temperature", show_value=True)
    top_k = mo.ui.slider(0, 20, value=0, label="top-k (0: all)", show_value=True)
    top_p = mo.ui.slider(0.1, 1, step=0.05, value=1, label="top-p", show_value=True)
    look.controls(temperature, top_k, top_p)
    return temperature, top_k, top_p


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
def _(context, order, p, q, symbols):
    mo.stop(p is None)
    _seen = context.value[max(0, len(context.value) - order.value) :]
    _given = f" | {look.visible(_seen)}" if _seen else ""
    best = np.argsort(-p, kind="stable")[:12]
    names = [symbols[i] for i in best]
    most = max(p.max(), q.max())
    look.beside(
        look.below(
            look.sentence(f"P(next{_given}) by counting"),
            look.bars("counted", names, p[best], most=most),
        ),
        look.below(
            look.sentence("what is drawn from: after temperature, top-k and top-p"),
            look.bars("drawn", names, q[best], kept=(q[best] > 0) | (p[best] == 0), most=most),
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
        f" bits in what is drawn from, which keeps {np.count_nonzero(q)} of {len(q)} symbols.",
    )
    return


@app.cell
def _():
    seed = mo.ui.slider(0, 20, value=0, label="seed of the draws", show_value=True)
    look.controls(seed)
    return (seed,)


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
    surprise, perplexity, strange = None, None, None
    try:
        if not sentence.value:
            raise ValueError("it is empty")
        if len(sentence.value) > LONGEST_SENTENCE:
            raise ValueError(
                f"it has {len(sentence.value):,} symbols; at most {LONGEST_SENTENCE:,} go here"
            )
        _ids = stage.encode(sentence.value, symbols)
        surprise = -chain.log_probabilities(_ids) / math.log(2)  # bits, of each symbol
        perplexity = chain.perplexity(_ids)
    except ValueError as error:
        strange = look.problem(f"This sentence cannot be measured: {error}.")
    strange
    return perplexity, surprise


@app.cell
def _(order, perplexity, sentence, surprise):
    mo.stop(surprise is None)
    _coloured = look.symbols(
        "surprise",
        list(sentence.value),
        np.minimum(surprise, 12) / 12,
        titles=[f"{s:.2f} bits" for s in surprise],
    )
    _impossible = np.flatnonzero(np.isinf(surprise))
    if len(_impossible):
        _t = _impossible[0]
        _before = sentence.value[max(0, _t - order.value) : _t]
        _meaning = (
            f" bits each: “{look.visible(sentence.value[_t])}” was never counted after "
            f"“{look.visible(_before)}”, so the whole sentence has the probability 0. Perplexity: "
        )
        _end = "."
    else:
        _meaning = " bits each, as if each were one of "
        _end = " equally likely ones: their perplexity."
    look.below(
        _coloured,
        look.sentence(
            "Its symbols cost ",
            look.number("bits", surprise.mean()),
            _meaning,
            look.number("perplexity", perplexity, ".2f"),
            _end,
            " Darker is more surprising; point at a symbol for its bits.",
        ),
    )
    return


if __name__ == "__main__":
    app.run()
