"""README's pictures, as SVG, from measured numbers.

    python benchmarks/pictures.py

docs/ladder.svg shows the ladder as README prints it (benchmarks/ladder.py refills that table).
docs/frontier.svg shows the methods of stage 10 as results/stage10_seeds.md keeps them (made by
benchmarks/stage10_seeds.py), under the best trade of reward against distance that is possible,
which is computed here for the same three seeds (about ten seconds).
"""

import math
import re
import sys
from html import escape
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import stage10_dpo as stage10  # noqa: E402

# Colours that colour-blind readers can tell apart (Okabe & Ito), on white and on black.
STYLE = """<style>
text { font: 14px system-ui, sans-serif; fill: #24292f }
.small { font-size: 12px }
.line { stroke: #8c959f; fill: none }
.count { fill: #d55e00 }
.network { fill: #0072b2 }
.best { stroke: #009e73; stroke-width: 3; fill: none }
@media (prefers-color-scheme: dark) {
  text { fill: #d0d7de }
  .network { fill: #56b4e9 }
  .count { fill: #e69f00 }
}
</style>"""


def svg(width, height, title, parts):
    """The source of a picture: its title is what a screen reader says."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, *parts, "</svg>", ""])


def text(x, y, words, anchor="start", small=False):
    """A text element."""
    kind = ' class="small"' if small else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'


def line(x1, y1, x2, y2, dashes=""):
    """A thin grey line."""
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line class="line" {ends}{dashed}/>'


def dot(x, y, counting):
    """A square for what counts, a circle for a network: told apart without colour, too."""
    if counting:
        return f'<rect class="count" x="{x - 6:.1f}" y="{y - 6:.1f}" width="12" height="12"/>'
    return f'<circle class="network" cx="{x:.1f}" cy="{y:.1f}" r="7"/>'


def read_ladder():
    """[(stage, model, bits)] of README's ladder."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    part = readme.split("## The ladder")[1].split("\n## ")[0]
    row = r"^\| \[?`(\w+)\.py`\S* \| (.+?) \| \S+ \| \*\*(\S+?)\*\* \|"
    return [(name, what, float(bits)) for name, what, bits in re.findall(row, part, re.M)]


def ladder():
    """Every model of the stories, in the order of the files, by bits a held-out character."""
    rows = read_ladder()
    left, right, top, step = 330, 690, 52, 34
    low = math.floor(10 * min(bits for *_, bits in rows)) / 10
    high = math.ceil(10 * max(bits for *_, bits in rows)) / 10
    bottom = top + step * len(rows)

    def place(bits):
        return left + (right - left) * (bits - low) / (high - low)

    parts = [text(left, 22, "bits per held-out character (less is better)")]
    for tenth in range(round(10 * low), round(10 * high) + 1):
        x = place(tenth / 10)
        parts.append(line(x, top - 14, x, bottom - 8, "2 5"))
        parts.append(text(x, bottom + 10, f"{tenth / 10:.1f}", "middle", small=True))
    for n, (name, what, bits) in enumerate(rows):
        y = top + step * n + 8
        label = "capstone" if name.startswith("capstone") else f"stage {int(name[5:7])}"
        parts.append(text(left - 14, y - 2, label, "end"))
        parts.append(text(left - 14, y + 13, what.split(", ")[0], "end", small=True))
        parts.append(line(left, y, place(bits), y))
        parts.append(dot(place(bits), y, "counts" in what))
        parts.append(text(place(bits) + 12, y + 5, f"{bits:.3f}", small=True))
    y = bottom + 32
    parts += [dot(left + 6, y, True), text(left + 20, y + 5, "counting", small=True)]
    parts += [dot(left + 106, y, False), text(left + 120, y + 5, "a network", small=True)]
    return svg(760, bottom + 48, "The ladder: bits per held-out character of every model", parts)


SHOWN = {"PPO": "PPO", "GRPO, k3": "GRPO (k3 in the loss)", "DPO": "DPO", "SimPO": "SimPO"}
SHOWN |= {"PPO, verified": "PPO, verified", "best-of-n": "best of n (untrained)"}


def read_methods():
    """{method: [(KL, true reward)]} of the kept table, within the frontier's reach."""
    table = (ROOT / "benchmarks" / "results" / "stage10_seeds.md").read_text(encoding="utf-8")
    methods = {}
    for row in re.findall(r"^\| (.+) \|$", table, re.M):
        cells = [cell.strip() for cell in row.split(" | ")]
        if cells[0] in SHOWN and cells[5].endswith("%"):
            methods.setdefault(cells[0], []).append((float(cells[7]), float(cells[8])))
    return methods


def frontier():
    """True reward against KL: the methods, and the best that is possible (three seeds' mean)."""
    names = (ROOT / "data" / "names.txt").read_text(encoding="utf-8").split()
    tokens = stage10.encode(names)
    grid = np.linspace(0, 3.4, 60)
    curves = []
    for seed in (0, 1, 2):
        world = stage10.make_world(tokens, stage10.FULL, np.random.default_rng(seed))
        kl, reward = np.vstack([[0, world.start], world.best]).T
        curves.append(np.interp(grid, kl, reward))
    best = np.mean(curves, axis=0)
    left, right, top, bottom = 70, 560, 30, 400
    low, high = 1.0, 4.0

    def place(kl, reward):
        x = left + (right - left) * kl / grid[-1]
        return x, bottom - (bottom - top) * (reward - low) / (high - low)

    parts = [text(left, 18, "true reward")]
    for reward in (1, 2, 3, 4):
        _, y = place(0, reward)
        parts += [line(left, y, right, y, "2 5"), text(left - 10, y + 5, str(reward), "end")]
    for kl in (0, 1, 2, 3):
        x, _ = place(kl, low)
        parts += [line(x, bottom, x, bottom + 5), text(x, bottom + 22, str(kl), "middle")]
    about = "distance from the model we began with (KL, nats)"
    parts.append(text((left + right) / 2, bottom + 44, about, "middle"))
    points = " ".join("{:.1f},{:.1f}".format(*place(*pair)) for pair in zip(grid, best))
    parts.append(f'<polyline class="best" points="{points}"/>')
    x, y = place(grid[-1], best[-1])
    parts.append(text(x + 8, y + 5, "the best possible", small=True))
    for method, rows in read_methods().items():
        places = [place(*row) for row in sorted(rows)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line" points="{path}"/>')
        parts += [dot(x, y, method == "best-of-n") for x, y in places]
        x, y = places[-1]
        parts.append(text(x + 12, y + 5, SHOWN[method], small=True))
    return svg(760, bottom + 60, "Stage 10: reward against distance, by method", parts)


def main():
    """Draw both."""
    for name, draw in (("ladder", ladder), ("frontier", frontier)):
        path = ROOT / "docs" / f"{name}.svg"
        path.parent.mkdir(exist_ok=True)
        path.write_text(draw(), encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
