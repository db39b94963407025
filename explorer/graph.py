"""A graph in layers: boxes above and below one another, and edges that find their way between.

What is drawn is given as `inputs`: for each box, numbered from 0, the boxes that lead into it, all
of which come before it. Layers first, then an order within each, after Sugiyama, Tagawa, Toda,
"Methods for visual understanding of hierarchical system structures" (1981).
"""

import html
import itertools
from typing import NamedTuple

from explorer import look

HIGH, APART, LETTER = 60, 50, 7.3  # pixels: of a box; between layers; of a letter, about
MARGIN = 50  # beside the outermost box, for what stands at its edges


class Places(NamedTuple):
    """Where everything stands. A box is called by its number. An edge that passes a layer has a
    place of its own in it, called (user, k, layer) for input k of the box that uses it."""

    layer: list  # of each box, from 0 above
    x: dict  # the middle of each place
    width: dict
    ways: dict  # (user, k) → the places that this edge connects, from above to below


def choose_layers(inputs):
    """A layer for each box: below all its inputs, or without inputs just above its users."""
    layer = [0] * len(inputs)
    for i, before in enumerate(inputs):
        if before:
            layer[i] = 1 + max(layer[j] for j in before)
    for i, before in enumerate(inputs):
        users = [user for user, others in enumerate(inputs) if i in others]
        if users and not before:
            layer[i] = min(layer[u] for u in users) - 1
    return layer


def place_boxes(inputs, titles):
    """The Places of a graph: as little crossing and bending as some turns of tidying up leave."""
    layer = choose_layers(inputs)
    width = {i: max(100, LETTER * len(title) + 18) for i, title in enumerate(titles)}
    x, ways, near = {}, {}, {i: [] for i in range(len(inputs))}
    rows = [[] for _ in range(max(layer) + 1)]
    for i, before in enumerate(inputs):
        rows[layer[i]].append(i)
        x[i] = 90.0 * i
        if before:
            x[i] = sum(x[j] for j in before) / len(before)
        for k, j in enumerate(before):
            passing = [(i, k, level) for level in range(layer[j] + 1, layer[i])]
            for item in passing:
                rows[item[2]].append(item)
                near[item], x[item], width[item] = [], x[j], 14
            ways[i, k] = [j, *passing, i]
            for above, below in itertools.pairwise(ways[i, k]):
                near[above].append(below)
                near[below].append(above)
    for turn in range(24):
        for row in rows if turn % 2 else reversed(rows):
            tidy(row, x, near, width)
    left = min(x[item] - width[item] / 2 for item in x) - MARGIN
    return Places(layer, {item: middle - left for item, middle in x.items()}, width, ways)


def tidy(row, x, near, width):
    """Move each item of a row to the middle of its neighbours, as far as there is room."""
    wish = {item: sum(x[n] for n in near[item]) / max(1, len(near[item])) for item in row}
    row.sort(key=wish.get)
    for i, item in enumerate(row):
        x[item] = wish[item]
        if i:
            last = row[i - 1]
            x[item] = max(x[item], x[last] + (width[last] + width[item]) / 2 + 18)
    shift = sum(wish[item] - x[item] for item in row) / len(row)
    for item in row:
        x[item] += shift


def top(layer):
    """Where the boxes of a layer begin, in pixels."""
    return 12 + (HIGH + APART) * layer


def write_at(x, y, text, colour="ink", bold=False, anchor="middle"):
    """SVG: a word at a place; anchor says which part of it stands there."""
    style = (
        f"fill:var(--{colour});font-size:13px;font-weight:{700 if bold else 400};"
        f"text-anchor:{anchor}"
    )
    return look.tag("text", html.escape(text), x=f"{x:.1f}", y=f"{y:.1f}", style=style)


def draw_box(places, i, colour, now):
    """SVG: the frame of a box, stronger if it is the one where something happens now."""
    fill, thick = ("wash", 3) if now else ("paper", 1.2)
    return look.tag(
        "rect",
        x=f"{places.x[i] - places.width[i] / 2:.1f}",
        y=top(places.layer[i]),
        width=f"{places.width[i]:.1f}",
        height=HIGH,
        rx=6,
        style=f"fill:var(--{fill});stroke:var(--{colour});stroke-width:{thick}px",
    )


def draw_edge(points, colour, thick, upward):
    """SVG: a smooth line downward through points, with an arrowhead at one of its ends."""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        middle = (y0 + y1) / 2
        path += f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
    (x, y), back = (points[0], 9) if upward else (points[-1], -9)
    head = f"M{x:.1f} {y:.1f}l-5 {back}h10z"
    line = f"fill:none;stroke:var(--{colour});stroke-width:{thick}px"
    return look.tag("path", d=path, style=line) + look.tag(
        "path", d=head, style=f"fill:var(--{colour})"
    )


def find_way(places, way, end):
    """The points through which the edge along `way` goes, down to x = end at its last box."""
    points = [(places.x[way[0]], top(places.layer[way[0]]) + HIGH)]
    for item in way[1:-1]:
        points += [(places.x[item], top(item[2])), (places.x[item], top(item[2]) + HIGH)]
    return [*points, (end, top(places.layer[way[-1]]))]


def arrival(places, user, k):
    """Where edge k of a box ends, from the middle of it: two arrive side by side, as they come."""
    if (user, 1 - k) not in places.ways:
        return 0
    mine, other = (places.x[places.ways[user, j][-2]] for j in (k, 1 - k))
    return -16 if (mine, k) < (other, 1 - k) else 16


def size(places):
    """(width, height) of the drawing, in pixels."""
    right = max(places.x[item] + places.width[item] / 2 for item in places.x)
    return right + MARGIN, top(max(places.layer)) + HIGH + 12
