"""The rates of stage 4's report: swept by factors of two, for every method and schedule alike.

    python benchmarks/stage04_rates.py [--seeds 3] [--fast]      about four minutes of one core

Each run is one that the report makes: the same network, batches, clipping and number of steps. It
learns from the training text without its last tenth, the development piece, and is scored on that
piece, in bits per character. The held-out tenth of data/stories.txt is never scored. Printed, and
kept in results/stage04_rates.md, are means over the seeds. First the methods under warmup_cosine,
then the schedules under the best method at factors of its best rate, then the long run under the
best pair. --fast: 25 steps, one seed, nothing kept.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402

import stage04_optim as s4  # noqa: E402

TABLE = HERE / "results" / "stage04_rates.md"
FACTORS = 2.0 ** np.arange(-3, 4)
BASE = {  # the middle of each method's grid, a power of two near where others found it
    "SGD": 2.0,
    "heavy ball, β = 0.9": 0.25,
    "Nesterov, β = 0.9": 0.5,
    "AdaGrad": 0.125,
    "RMSprop": 2.0**-6,
    "Adam": 2.0**-6,
    "AdamW, decay 0.1": 2.0**-6,
    "Lion": 2.0**-8,
    "Muon + AdamW": 2.0**-4,
}


def development_bits(method, schedule, rate, size, seed):
    """Bits per character of the development piece after one run whose highest rate is `rate`."""
    text = (s4.DATA / "stories.txt").read_text(encoding="utf-8")
    ids, V, tune, cut = s4.split(text)
    factor = rate / (s4.METHODS[method][1] * s4.SCHEDULES[schedule][1])
    try:
        params, _ = s4.fit(ids[:tune], V, method, schedule, size, seed, factor)
    except ValueError:  # the loss is not finite any more
        return np.inf
    return s4.nlm_score(ids[tune - s4.CONTEXT : cut], params, s4.CONTEXT) / s4.LN2


def sweep(title, rows, size, seeds):
    """(lines of a table of means, {label: (bits, rate) of the best}).

    rows: (label, method, schedule, rates); a best rate at the edge of its row is marked.
    """
    lines, best = [], {}
    for label, method, schedule, rates in rows:
        bits = [
            np.mean([development_bits(method, schedule, rate, size, seed) for seed in range(seeds)])
            for rate in rates
        ]
        i = int(np.argmin(bits))
        best[label] = (bits[i], rates[i])
        cells = [f"**{b:.3f}**" if j == i else f"{b:.3f}" for j, b in enumerate(bits)]
        if len(rates) > 3 and i in (0, len(rates) - 1):
            cells[i] += " (edge)"
        lines.append(f"| {label} | {rates[i]:.3g} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    factors = rows[0][3] / rows[0][3][len(rows[0][3]) // 2]
    head = [title, "best rate", *(f"×{factor:g}" for factor in factors)]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines, ""], best


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 [3]")
    parser.add_argument("--fast", action="store_true", help="a smoke run that keeps nothing")
    args = parser.parse_args()
    seeds = 1 if args.fast else args.seeds
    small, long = ((32, 25, 64), (32, 25, 64)) if args.fast else (s4.SMALL, s4.LONG)

    rows = [(method, method, "warmup_cosine", BASE[method] * FACTORS) for method in s4.METHODS]
    methods, best = sweep("method", rows, small, seeds)
    method = min(best, key=best.get)
    rate = best[method][1]
    rows = [(schedule, method, schedule, rate * FACTORS[:5]) for schedule in s4.SCHEDULES]
    schedules, best = sweep(f"schedule, {method}", rows, small, seeds)
    schedule = min(best, key=best.get)
    rows = [("the long run", method, schedule, best[schedule][1] * FACTORS[2:5])]
    final, _ = sweep(f"{method}, {schedule}", rows, long, seeds)

    text = (
        f"Bits per character of the development piece, means over {seeds} seeds, by the factor on\n"
        "the rate in the middle of a row (benchmarks/stage04_rates.py). Units, steps, batch:\n"
        f"{small}, and {long} for the long run.\n\n" + "\n".join(methods + schedules + final)
    )
    print("\n" + text)
    if not args.fast:
        TABLE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
