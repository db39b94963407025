"""How every page looks: its head, numbers, sentences, tables, bars, coloured texts, and pictures.

All of it returns mo.Html. Colours are named here and defined, for light and dark, in look.css:
matplotlib draws with the hexadecimal values below, and `picture` replaces each by its variable.
"""

import html
import io
import json

import marimo as mo
import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from explorer.pages import PAGES

BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PURPLE, SKY = "#cc79a7", "#56b4e9"
INK, QUIET, LINE = "#111111", "#777777", "#cccccc"
PAPER = "#fefefe"  # what the page is drawn on
COLOURS = {
    "blue": BLUE,
    "orange": ORANGE,
    "green": GREEN,
    "red": RED,
    "purple": PURPLE,
    "sky": SKY,
    "ink": INK,
    "quiet": QUIET,
    "line": LINE,
    "paper": PAPER,
}
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
# Lines differ in their dashes, too, for those who see no colours.
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))

matplotlib.rcParams.update(
    {
        "svg.fonttype": "none",  # words stay words: they can be read out, and take the page's font
        "font.family": "sans-serif",
        "font.size": 11,
        "axes.titlesize": 11,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": QUIET,
        "axes.titlecolor": INK,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "axes.prop_cycle": matplotlib.cycler(color=CYCLE),
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }
)


def tag(name, inside="", kind="", **attributes):
    """HTML: <name class="kind" ...>inside</name>; in attributes a _ stands for a -."""
    if kind:
        attributes["class"] = kind
    given = "".join(
        f' {key.replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    return f"<{name}{given}>{inside}</{name}>"


def shown(inside, kind=""):
    """What a cell ends with: HTML in the pages' style."""
    return mo.Html(tag("div", inside, kind=f"look {kind}".strip()))


def plain(item):
    """The HTML of a string (taken as text) or of anything that marimo can show."""
    if isinstance(item, str):
        return html.escape(item)
    return mo.as_html(item).text


def markdown(text):
    """The HTML of Markdown."""
    return mo.md(text).text


# Words


def address(page):
    """Where the page stands: beside this one, or as a file when the code is being edited."""
    if mo.app_meta().mode == "edit":
        return f"/?file={page.notebook}"
    return f"../{page.name}/"


def header(number):
    """The head of page `number`: links to all pages, its idea, the file and sections behind it."""
    here = PAGES[number - 1]
    links = ""
    for page in PAGES:
        current = {"aria_current": "page"} if page is here else {}
        links += tag("a", f"{page.number} {page.name}", href=address(page), **current)
    behind = html.escape("; ".join(here.behind()))
    return shown(
        tag("nav", links, aria_label="pages")
        + tag("h1", here.title)
        + tag("p", html.escape(here.idea))
        + tag("p", f"Behind this page: {tag('code', here.file)}, sections {behind}.", "quiet")
    )


def words(text):
    """A paragraph of Markdown."""
    return shown(markdown(text))


def hint(do, notice):
    """What to try on this page, and what to notice then. Both are Markdown."""
    return shown(markdown(f"**Try:** {do}") + markdown(f"**Notice:** {notice}"), "hint")


def heading(text):
    """The title of a part of the page."""
    return shown(tag("h2", html.escape(text)))


def problem(message):
    """One sentence that says what is wrong with the input."""
    return shown(tag("p", html.escape(str(message)), "problem", role="alert"))


def written(value, form):
    """A number as text: -∞ for -inf, and 0.00 where rounding would leave -0.00."""
    text = format(value, form).replace("inf", "∞")
    return text if text.strip("-0.%") else text.lstrip("-")


def number(name, value, form=".3f"):
    """A number to be read; data-name and data-value keep it whole, for tests."""
    value = float(value)
    return mo.Html(tag("output", written(value, form), data_name=name, data_value=repr(value)))


def sentence(*parts):
    """A paragraph of strings and shown numbers."""
    return shown(tag("p", "".join(plain(part) for part in parts)))


# Places


def controls(*elements):
    """Sliders and fields in one row, which wraps where the page is narrow."""
    return shown("".join(tag("div", plain(element)) for element in elements), "controls")


def beside(*items):
    """Items side by side, or below one another where the page is narrow."""
    return shown("".join(tag("div", plain(item)) for item in items), "beside")


def below(*items):
    """Items below one another."""
    return shown("".join(plain(item) for item in items))


def field(identity, element):
    """A text field that clicks in a picture can fill: see `clicks`."""
    return mo.Html(tag("div", plain(element), id=identity))


def steady(element):
    """An element whose length changes, with room for some lines, so that nothing below it jumps."""
    return shown(plain(element), "steady")


# Tables, bars, coloured texts


def table(name, head, rows):
    """A table; the cells are text or shown numbers."""
    top = tag("tr", "".join(tag("th", plain(cell), scope="col") for cell in head))
    body = "".join(tag("tr", "".join(tag("td", plain(cell)) for cell in row)) for row in rows)
    return shown(tag("table", tag("thead", top) + tag("tbody", body), data_name=name), "scroll")


def visible(symbol):
    """A symbol that can be seen: a space and a line break get signs."""
    return symbol.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def bars(name, labels, values, kept=None, most=None, form=".3f"):
    """A bar for each label, in the order given; those not `kept` are grey, and said to be cut.

    Values are 0 or more; `most` is the value of the longest bar (their largest unless given).
    """
    values = [float(value) for value in values]
    longest = most or max(values, default=0) or 1
    rows = ""
    for i, (label, value) in enumerate(zip(labels, values)):
        cut = kept is not None and not kept[i]
        note = " cut" if cut else ""
        bar = tag("span", "", "bar", style=f"width:{100 * value / longest:.2f}%")
        rows += tag(
            "tr",
            tag("td", tag("code", html.escape(visible(label))))
            + tag("td", bar)
            + tag("td", format(value, form) + note, data_label=label, data_value=repr(value)),
            note.strip(),
        )
    return shown(tag("table", rows, "bars", data_name=name))


def wash(colour, share):
    """The style of a background of `colour` (its name), as strong as share in 0..1."""
    share = min(max(float(share), 0.0), 1.0)
    return f"background:color-mix(in srgb, var(--{colour}) {60 * share:.0f}%, var(--paper))"


def symbols(name, pieces, shares, titles, colours=None):
    """A text, piece by piece, on backgrounds as strong as shares (0..1); a title for each.

    colours: a name for each piece; orange unless given.
    """
    spans = ""
    for i, piece in enumerate(pieces):
        colour = colours[i] if colours else "orange"
        text = html.escape(piece).replace("\n", "⏎\n")
        spans += tag("span", text, style=wash(colour, shares[i]), title=titles[i])
    return shown(tag("div", spans, "symbols", data_name=name))


def apart(pieces):
    """Coloured pieces (what `symbols` returns), larger and with a gap between them."""
    return shown(plain(pieces), "apart")


def names(name, written):
    """Short texts in a row, which wraps."""
    spans = "".join(tag("span", html.escape(text)) for text in written)
    return shown(tag("div", spans, "names", data_name=name))


def quote(name, given, written):
    """A text that a model wrote, after the part that it was given."""
    text = tag("b", html.escape(given)) + tag("span", html.escape(written), data_name=name)
    return shown(tag("blockquote", text))


def heat(name, matrix, rows, columns, form=".2f", colour="blue", most=1.0, blank=None):
    """The matrix (R, C) as a table of numbers on backgrounds, |value| = most being the strongest.

    rows, columns: their labels. Cells whose value is `blank` stay empty.
    """
    head = tag("th")
    for column in columns:
        head += tag("th", tag("code", html.escape(visible(column))), scope="col")
    body = ""
    for label, row in zip(rows, np.asarray(matrix, dtype=float)):
        cells = tag("th", tag("code", html.escape(visible(label))), scope="row")
        for value in row:
            style = wash(colour, abs(value) / most)
            seen = "" if value == blank else format(value, form)
            cells += tag("td", seen, style=style, data_value=repr(float(value)))
        body += tag("tr", cells)
    filled = tag("thead", tag("tr", head)) + tag("tbody", body)
    return shown(tag("table", filled, "heat", data_name=name), "scroll")


def spelled(name, words, shares, rows, columns, marked=None, colour="blue"):
    """A `heat` table of short words (R, C) in place of numbers; shares (R, C) in 0..1 colour them.

    marked: the column whose head is underlined.
    """
    head = tag("th")
    for i, column in enumerate(columns):
        kind = "marked" if i == marked else ""
        head += tag("th", tag("code", html.escape(visible(column))), kind, scope="col")
    body = ""
    for label, row, strengths in zip(rows, words, np.asarray(shares, dtype=float)):
        cells = tag("th", tag("code", html.escape(label)), scope="row")
        for word, share in zip(row, strengths):
            seen = html.escape(visible(word))
            told = {"title": f"{visible(word)}: {share:.3f}", "data_value": repr(float(share))}
            cells += tag("td", tag("code", seen), style=wash(colour, share), **told)
        body += tag("tr", cells)
    filled = tag("thead", tag("tr", head)) + tag("tbody", body)
    return shown(tag("table", filled, "heat", data_name=name), "scroll")


# Pictures


def plot(width=5.6, height=3.4, margins=None):
    """(figure, axes) of matplotlib, in inches; not through pyplot, which is not safe in threads.

    margins: left, right, below and above, in shares of the figure; matplotlib finds them itself
    unless given, which takes as long again as drawing.
    """
    if margins is None:
        figure = Figure(figsize=(width, height))
    else:
        left, right, below, above = margins
        figure = Figure(figsize=(width, height), layout="none")
        figure.subplots_adjust(left=left, right=1 - right, bottom=below, top=1 - above)
    return figure, figure.add_subplot()


def drawn(figure):
    """A matplotlib figure as SVG in the page's colours: a tenth of a second's work."""
    file = io.BytesIO()
    for artist in (figure, *figure.axes):
        artist.patch.set_visible(False)  # the page shows through
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})  # savefig draws twice
    svg = file.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    for name, value in COLOURS.items():
        svg = svg.replace(value, f"var(--{name})")
    return svg


def place(figure, x, y):
    """Where points (numbers or arrays) of the first axes stand in the SVG of a drawn figure."""
    points = np.stack(np.broadcast_arrays(x, y), axis=-1)
    across, up = figure.axes[0].transData.transform(points).T * 72 / figure.dpi
    return across, 72 * figure.get_figheight() - up


def clicks(figure, fills):
    """What picture and layered need so that a click in the first axes (with linear scales) writes

    the place "x, y" into the `field` of the identity `fills`; the figure has been drawn.
    """
    axes = figure.axes[0]
    box = axes.get_position()  # in fractions of the figure, from below
    place = [box.x0, 1 - box.y1, box.x1, 1 - box.y0, *axes.get_xlim(), *axes.get_ylim()]
    return {"data_fills": fills, "data_axes": json.dumps([float(v) for v in place])}


def layered(svg, over, says, **attributes):
    """A drawn figure with more SVG elements over it: those a slider moves, as they cost nothing."""
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(says)}"', 1)
    svg = svg.replace("</svg>", f"{over}</svg>")
    return shown(tag("figure", svg + tag("figcaption", html.escape(says)), **attributes))


def picture(figure, says):
    """A matplotlib figure in the page's colours, above the sentence that says what it shows."""
    return layered(drawn(figure), "", says)


def drawing(width, height, inside, says):
    """SVG of your own, in pixels, above its sentence. Its colours are variables: var(--blue).

    Where the page is narrow it shrinks a little, and then scrolls in a box of its own.
    """
    size = f"width:100%;min-width:{0.85 * width:.0f}px;max-width:{width:.0f}px"
    view = f"0 0 {width:.0f} {height:.0f}"
    svg = tag("svg", inside, viewBox=view, role="img", aria_label=says, style=size)
    box = tag("div", svg, style="overflow-x:auto")
    return shown(tag("figure", box + tag("figcaption", html.escape(says)), style="max-width:none"))
