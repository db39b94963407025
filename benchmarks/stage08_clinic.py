"""Both clinics of stage 8 on seeds that no threshold was set on; the tables are kept.

    python benchmarks/stage08_clinic.py [--seed 300] [--seeds 20] [--fast]   two minutes of a core

The thresholds of `diagnose` were set while looking at seeds 100 to 119 and 200 to 219, so the
table that is kept starts at 300. The first clinic trains one run of each disease and five healthy
controls a seed, at twenty seeds; the second, of accidents that are none of these diseases, one run
each at ten seeds. Each row says how many first findings were a true cause, a doubt ("something is
wrong"), a wrong cause, or nothing, and names the wrong ones. Printed with the curve of each row's
first run; the table is kept in results/stage08_clinic.md. --fast: one seed, four kinds of run,
nothing kept.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import stage08_dynamics as s8  # noqa: E402

TABLE = HERE / "results" / "stage08_clinic.md"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=300, help="the first seed [300]")
    parser.add_argument("--seeds", type=int, default=20, help="how many; half in the second [20]")
    parser.add_argument("--fast", action="store_true", help="a smoke run that keeps nothing")
    args = parser.parse_args()
    first, second = s8.FIRST, s8.SECOND
    seeds = args.seeds
    if args.fast:
        first = {name: first[name] for name in ("leak", "healthy")}
        second = {name: second[name] for name in ("one layer frozen", "no zero_grad")}
        seeds = 1
    tables = [
        s8.clinic(first, range(args.seed, args.seed + seeds)),
        s8.clinic(second, range(args.seed, args.seed + max(1, seeds // 2))),
    ]
    if not args.fast:
        heads = ("Diseases, and five healthy controls a seed", "Accidents that are none of these")
        text = (
            "First findings of `diagnose` on the runs of stage 8's clinics, as printed by\n"
            "benchmarks/stage08_clinic.py; thresholds: seeds 100 to 119, 200 to 219.\n"
        )
        for head, table in zip(heads, tables):
            text += f"\n{head}:\n\n```\n" + "\n".join(table) + "\n```\n"
        TABLE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
