"""The rates of stage 9's report: swept by factors of two, for every method and variant alike.

    python benchmarks/stage09_sweep.py [--seeds 3] [--fast]      about eight minutes of one core

Choosing. A run trains as the report does, but on the verses' training part without its last tenth,
the development piece, and is scored on that piece, in bits per character. The rate of a row is the
one with the best mean over the seeds; a row whose best rate is at its edge is continued until it is
not. The base's own rate is chosen in the same way on the stories. No held-out tenth is read.

Measuring. At the chosen rates each method trains on all of the training part, and on parts of the
rate, once a seed, and is scored on the held-out tenths: what it gained on verses, what it lost on
stories, and what it had lost when it had gained as much as the others (the report's `forgetting`).
Everything goes to results/stage09_sweep.md. --fast: one seed, two steps, nothing kept.
"""

import argparse
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402

import stage09_lora as s9  # noqa: E402

TABLE = HERE / "results" / "stage09_sweep.md"
ALPHAS = {  # beyond the report's methods
    f"LoRA, alpha {alpha}": s9.Recipe(0.01, s9.LoRALinear, alpha=alpha) for alpha in (2, 32)
}
SLOWEST = {  # the first rate of a row of seven; LoRA and its variants begin at 0.001
    "full fine-tuning": 0.000125,
    "prompt tuning": 0.016,
    "BitFit": 0.004,
    "(IA)^3": 0.004,
}
PARTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of the chosen rate, for the curves of forgetting
SHARES = (0.5, 0.75, 0.9)  # of full fine-tuning's gain


def development(corpus):
    """The corpus without its held-out tenth, split again at nine tenths."""
    ids, first = corpus
    return ids[:first], int(0.9 * first)


def bits(params, corpus, n_head, adapters=None):
    """Bits per character of what the corpus holds out."""
    return s9.score(params, *corpus, n_head, adapters) / math.log(2)


def best_rate(label, first_rate, measure, count=7):
    """(the row of a table, the best rate) of measure(rate), over factors of two."""
    rates = [first_rate * 2**i for i in range(count)]
    found = [measure(rate) for rate in rates]
    while len(rates) < count + 4 and int(np.argmin(found)) in (0, len(found) - 1):
        if int(np.argmin(found)):
            rates.append(2 * rates[-1])
            found.append(measure(rates[-1]))
        else:
            rates.insert(0, rates[0] / 2)
            found.insert(0, measure(rates[0]))
    best = int(np.argmin(found))
    cells = [f"{rate:.3g}: {value:.4f}" for rate, value in zip(rates, found)]
    cells[best] = f"**{cells[best]}**"
    row = f"| {label} | {rates[best]:.3g} | {', '.join(cells)} |"
    print(row, flush=True)
    return row, rates[best]


def adapted(method, rate, params, n_head, text, steps, seed):
    """(params, adapters) of one run at this rate, and how many numbers were trained."""
    factor = rate / s9.METHODS[method].rate
    tuned, trained, _ = s9.adapt(method, params, n_head, text, steps, seed, factor)
    return tuned, trained


def choose(bases, corpora, n_head, steps):
    """(lines of a table, {method: best rate})."""
    corpus = development(corpora["verses"])
    text = corpus[0][: corpus[1]]
    lines, best = [], {}
    for method in s9.METHODS:

        def measure(rate, method=method):
            scores = []
            for seed, params in enumerate(bases):
                try:
                    tuned, _ = adapted(method, rate, params, n_head, text, steps, seed)
                    scores.append(bits(tuned[0], corpus, n_head, tuned[1]))
                except ValueError:  # the loss is not finite any more
                    scores.append(math.inf)
            return np.mean(scores)

        row, best[method] = best_rate(method, SLOWEST.get(method, 0.001), measure)
        lines.append(row)
    return lines, best


def spread(values, form="{:.3f}"):
    """The mean of the values and where they lie."""
    low, mean, high = (form.format(f(values)) for f in (np.min, np.mean, np.max))
    return f"{mean} ({low} to {high})"


def measure_held_out(bases, corpora, n_head, steps, best):
    """Lines of two tables: at the chosen rates, and stories lost at equal gains."""
    ids, first = corpora["verses"]
    text = ids[:first]
    starts = [[bits(p, corpora[name], n_head) for name in ("stories", "verses")] for p in bases]
    points = {}  # {method: [a curve of (gain, rise) for each seed]}
    ends = {}  # {method: (bits on verses, on stories) for each seed}
    counts = {}
    for method in s9.METHODS:
        parts = (1,) if "," in method else PARTS  # no curve for the variants of LoRA
        points[method], ends[method] = [], []
        for seed, params in enumerate(bases):
            curve = []
            for part in parts:
                rate = part * best[method]
                tuned, counts[method] = adapted(method, rate, params, n_head, text, steps, seed)
                learned = bits(tuned[0], corpora["verses"], n_head, tuned[1])
                told = bits(tuned[0], corpora["stories"], n_head, tuned[1])
                curve.append((starts[seed][1] - learned, told - starts[seed][0]))
            points[method].append(curve)
            ends[method].append((learned, told))
    full = [curve[-1][0] for curve in points["full fine-tuning"]]
    head = ["method", "numbers", "rate", "verses", "share of full's gain", "stories"]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    learned, told = zip(*((verses, stories) for stories, verses in starts))
    table.append(f"| the base itself | | | {spread(learned)} | | {spread(told)} |")
    for method, runs in ends.items():
        learned, told = zip(*runs)
        shares = [curve[-1][0] / whole for curve, whole in zip(points[method], full)]
        cells = [method, f"{counts[method]:,}", f"{best[method]:.3g}"]
        cells += [spread(learned), spread(shares, "{:.0%}"), spread(told)]
        table.append("| " + " | ".join(cells) + " |")
    head = ["method", *(f"at {share:.0%} of full's gain" for share in SHARES)]
    lost = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method in [name for name in s9.METHODS if "," not in name]:
        cells = [method]
        for share in SHARES:
            rises = [s9.forgetting(c, share * whole) for c, whole in zip(points[method], full)]
            cells.append("not reached" if np.isnan(rises).any() else spread(rises))
        lost.append("| " + " | ".join(cells) + " |")
    return table, lost


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 [3]")
    parser.add_argument("--fast", action="store_true", help="a smoke run that keeps nothing")
    args = parser.parse_args()
    seeds = 1 if args.fast else args.seeds
    s9.METHODS.update(ALPHAS)
    size, base_steps, steps = s9.sizes(args.fast)
    n_head = size[2]
    corpora, vocab_size = s9.read_corpora(args.fast)

    cut = {"stories": development(corpora["stories"])}

    def measure_base(rate):
        runs = [s9.pretrain(cut, vocab_size, size, base_steps, seed, rate) for seed in range(seeds)]
        return np.mean([bits(params, cut["stories"], n_head) for params, _ in runs])

    base_row, base_rate = best_rate("the base itself", 0.004, measure_base, 3)
    bases = [
        s9.pretrain(corpora, vocab_size, size, base_steps, seed, base_rate)[0]
        for seed in range(seeds)
    ]
    rows, best = choose(bases, corpora, n_head, steps)
    table, lost = measure_held_out(bases, corpora, n_head, steps, best)
    text = "\n".join(
        [
            "# Stage 9: every method at its best rate (benchmarks/stage09_sweep.py)",
            "",
            f"Model (layers, channels, heads, context) {size}, {base_steps} steps on stories, then",
            f"{steps} on verses. Bits per character; means over {seeds} seeds.",
            "",
            "## Chosen on the development piece",
            "",
            "| method | best rate | rate: bits of the development piece |",
            "|---|---|---|",
            base_row,
            *rows,
            "",
            "## Held out, at these rates: mean (lowest to highest)",
            "",
            *table,
            "",
            "## Stories lost at an equal gain on verses: mean (lowest to highest)",
            "",
            *lost,
            "",
        ]
    )
    print("\n" + text)
    if not args.fast:
        TABLE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
