"""Stage 6's scaling law over seeds: how good is it, and how long must one train to see a floor?

    python benchmarks/stage06_scaling.py                     lengths 250 and 1,000, seeds 0 to 4
    python benchmarks/stage06_scaling.py --steps 4000 --seeds 1
    python benchmarks/stage06_scaling.py --table             the table of the runs so far

A run is what section 4 of stage 6's report does: one-layer llamas of 8 to 48 channels learn the
first nine tenths of data/stories.txt, all for the same number of steps, and are scored on the rest.
Nothing is chosen by that score: it is what the law is about. For each length and seed the law is
fitted to the five smaller models and asked for the sixth; then the mean losses over seeds, which
have less noise, are fitted in the same way. Rows go to results/stage06_scaling.jsonl and are not
repeated; the table to results/stage06_scaling.md.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

import stage06_transformer as s6  # noqa: E402

ROWS = HERE / "results" / "stage06_scaling.jsonl"
TABLE = HERE / "results" / "stage06_scaling.md"
CHANNELS = (8, 12, 16, 24, 32, 48)


def run(steps, seed):
    """A row: the six models' held-out nats per character."""
    text = (HERE.parent / "data" / "stories.txt").read_text("utf-8")
    letters, start = sorted(set(text)), int(0.9 * len(text))
    ids = np.searchsorted(letters, list(text))
    row = {"steps": steps, "seed": seed, "weights": [], "nats": []}
    began = time.process_time()
    for C in CHANNELS:
        model = s6.Transformer(s6.TransformerConfig("llama", len(letters), 32, 1, 1, C), seed)
        s6.train(model, ids[:start], steps, 16, 0.02, f"{steps} steps, seed {seed}, {C}", seed)
        row["weights"].append(s6.count_params(model.config))
        row["nats"].append(round(float(s6.held_out_loss(model, ids, start)), 4))
    return row | {"seconds": round(time.process_time() - began, 1)}


def law(weights, nats):
    """(E, A, alpha) from all models but the last, and the last's loss less what that law says."""
    E, A, alpha = s6.fit_power_law(weights[:-1], nats[:-1])
    return E, A, alpha, nats[-1] - (E + A / weights[-1] ** alpha)


def exponents(weights, nats):
    """The mean exponent of the two smallest steps in size, and of the two largest."""
    steep = -np.diff(np.log(nats)) / np.diff(np.log(weights))
    return steep[:2].mean(), steep[-2:].mean()


def table(rows):
    """Markdown: a line for each run, and one for the mean over the seeds of each length."""
    head = ["steps", "seed", "E", "α", "sixth: law", "measured", "error", "exponents"]
    lines = [head, ["---"] * len(head)]
    for steps in sorted({row["steps"] for row in rows}):
        group = sorted((row for row in rows if row["steps"] == steps), key=lambda row: row["seed"])
        mean = {"seed": f"mean of {len(group)}", "weights": group[0]["weights"]}
        mean["nats"] = list(np.mean([row["nats"] for row in group], 0))
        for row in [*group, mean] if len(group) > 1 else group:
            E, _, alpha, error = law(row["weights"], row["nats"])
            small, large = exponents(row["weights"], row["nats"])
            cells = [f"{steps:,}", row["seed"], f"{E:.3f}", f"{alpha:.3f}"]
            cells += [f"{row['nats'][-1] - error:.3f}", f"{row['nats'][-1]:.3f}", f"{error:+.3f}"]
            lines.append([*cells, f"{small:.3f} → {large:.3f}"])
        errors = [law(row["weights"], row["nats"])[3] for row in group]
        typical = math.sqrt(np.mean(np.square(errors)))
        lines.append([f"{steps:,}", "root mean square", "", "", "", "", f"**{typical:.3f}**", ""])
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[250, 1000])
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1 (default 5)")
    parser.add_argument("--table", action="store_true", help="only print and write the table")
    args = parser.parse_args()
    ROWS.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    wanted = [(steps, seed) for steps in args.steps for seed in range(args.seeds)]
    for steps, seed in [] if args.table else wanted:
        if (steps, seed) not in [(row["steps"], row["seed"]) for row in rows]:
            rows.append(run(steps, seed))
            with open(ROWS, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{steps} steps, seed {seed}: {rows[-1]['nats']}", flush=True)
    if not rows:
        sys.exit("no runs yet")
    TABLE.write_text(table(rows), "utf-8")
    print(f"\n{TABLE.read_text('utf-8')}")


if __name__ == "__main__":
    main()
