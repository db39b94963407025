"""Stage 3's comparison of network and counts under several seeds.

    python benchmarks/stage03_seeds.py [--seeds 3]

Runs the report once a seed and collects its rows: bits per held-out character of the best
Kneser-Ney counts, of the network and of their mean, on the stories and on the names, over all and
after contexts that training never showed. Which counts are best is decided on a development piece
(the last tenth of the training part), and so are the network's settings: stage03_sweep.py. The
counts and the split do not depend on the seed, the network does. Prints every seed's row and the
medians, and keeps them in benchmarks/results/stage03_seeds.md. Half a minute a seed.
"""

import argparse
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "results" / "stage03_seeds.md"
HEAD = ("counts", "network", "mean")


def rows(report):
    """{name: (counts, network, mean)} of one report, in bits per character."""
    found = {}
    for title, part in zip(("stories", "names"), re.split(r"^[34]\. ", report, flags=re.M)[1:]):
        scores = re.search(r"gram counts.*? (\S+)\n +the network +(\S+)\n +mean.*? (\S+)\n", part)
        never = re.search(r"^ +0 +\S+% +(\S+) +(\S+) +(\S+)$", part, re.M)
        found[title] = tuple(map(float, scores.groups()))
        found[f"{title}, context never seen"] = tuple(map(float, never.groups()))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 (default 3)")
    found = []
    args = parser.parse_args()
    for seed in range(args.seeds):
        command = [sys.executable, str(ROOT / "stage03_nlm.py"), "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            sys.exit(f"seed {seed} failed:\n{done.stderr}")
        found.append(rows(done.stdout))
        print(f"seed {seed}: {found[-1]}", flush=True)
    lines = [f"Stage 3, bits per held-out character, seeds 0 to {args.seeds - 1}:", ""]
    lines += ["| what | seed | " + " | ".join(HEAD) + " |", "|---|---|---|---|---|"]
    for what in found[0]:
        for seed, run in enumerate(found):
            lines.append(f"| {what} | {seed} | " + " | ".join(f"{x:.3f}" for x in run[what]) + " |")
        middle = [statistics.median(column) for column in zip(*(run[what] for run in found))]
        lines.append(f"| {what} | median | " + " | ".join(f"**{x:.3f}**" for x in middle) + " |")
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
