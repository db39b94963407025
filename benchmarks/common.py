"""What the timings in this folder share: flags, the machine, turns, medians, a line of JSON.

A benchmark compares *sides*: a name, and a function that does its work once and says how long that
took. Shared cores change speed within seconds, so two sides that run one after the other are two
machines. Here they take turns, and the median of each is shown with the range of its middle half.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import capstone_gpt as gpt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# %% Flags


def make_parser(doc, rounds):
    """A parser with the flags of every benchmark; doc: the script's docstring."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns a side [{rounds}]")
    parser.add_argument("--fast", action="store_true", help="a smoke run; its times mean nothing")
    where = "where a line of JSON is added [results/NAME.jsonl; with --fast nowhere]"
    parser.add_argument("--results", metavar="FILE", help=where)
    return parser


def parse(parser, fast):
    """The flags of the command line; --fast gives the values in `fast` to what was not named."""
    args, _ = parser.parse_known_args()
    if args.fast:
        parser.set_defaults(**fast)
    return parser.parse_args()


def whole_numbers(text):
    """The list behind a flag such as 128,512."""
    return [int(word) for word in text.split(",")]


def fractions(text):
    """The list behind a flag such as 0,0.1."""
    return [float(word) for word in text.split(",")]


def words(text):
    """The list behind a flag such as gpt2,llama."""
    return text.split(",")


# %% Peers and the machine


def present(*packages):
    """Whether all these peers are installed; one sentence names those that are not."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        print(f"Not installed here, so measured without: {', '.join(missing)}.")
    return not missing


def processor():
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def gigaflops():
    """This machine's float32 matrix products on all cores, in 10⁹ operations a second, now."""
    a = np.ones((1536, 1536), np.float32)
    a @ a
    started = time.perf_counter()
    for _ in range(3):
        a @ a
    return 3 * 2 * len(a) ** 3 / (time.perf_counter() - started) / 1e9


def machine(*packages):
    """Print processor, cores, speed and versions, of these packages, too; returns them."""
    found = {"processor": processor(), "cores": gpt.usable_cores()}
    found["GF/s now"] = round(gigaflops())
    found |= {"python": platform.python_version(), "numpy": np.__version__}
    for name in packages:
        if importlib.util.find_spec(name):
            found[name] = importlib.metadata.version(name)
    print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return found


# %% Turns


def seconds(function, *arguments):
    """How long one call takes."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def take_turns(sides, rounds):
    """({name: what its turns returned}, the median of this machine's GF/s in those minutes).

    sides: {name: function of the round's number}. Round 0 warms up and is not kept. A side that
    returns None could not do it, and is left out from then on.
    """
    sides, found, speeds = dict(sides), {name: [] for name in sides}, []
    for r in range(rounds + 1):
        speeds.append(gigaflops())
        for name in list(sides):
            time.sleep(0.05)  # until the threads of whoever came before have fallen asleep
            result = sides[name](r)
            if result is None:
                del sides[name], found[name]
            elif r > 0:
                found[name].append(result)
    return found, statistics.median(speeds)


def quartiles(values):
    """The lower end of the middle half, the median, the upper end."""
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def spread(values, digits=1):
    """The median and the middle half, as text."""
    low, middle, high = quartiles(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


# %% Results


def keep(args, name, record):
    """Add the record and the date to results/NAME.jsonl, or to the file that --results names."""
    if args.fast and not args.results:
        return
    path = Path(args.results or RESULTS / f"{name}.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"date": time.strftime("%Y-%m-%d %H:%M"), **record}) + "\n")
