"""What does every file's report cost? Seconds of wall and of CPU time, and the peak of memory.

    python benchmarks/stages.py [--stages 1,2,...,11] [--reports full,fast] [--rounds 1] [--fast]

Runs each file as a reader would, once in full and once with --fast, in a folder of its own; 11 is
the capstone. With several rounds the files take turns, and medians are shown. CPU time counts all
threads and all processes that a file starts; the peak of resident memory is that of its largest
process. A full round takes about five minutes, two of them the capstone's; `--reports fast` takes a
quarter of a minute; --fast runs only the first three files so.

There is no peer here. What to look at: wall time against the promises of a minute a stage and of
three seconds with --fast, and CPU time beside wall time, which says how many cores were busy. A
file that fails is named and makes the exit status 1.
"""

import json
import subprocess
import sys
import tempfile

import common

LIMITS = {"full": 60, "fast": 3}  # seconds, of a stage
FILES = [*sorted(common.ROOT.glob("stage*.py")), common.ROOT / "capstone_gpt.py"]

# A small process of its own runs each file, because the children's usage that the system reports
# is a sum of their times and the maximum of their memory, over all that ever ended.
LAUNCH = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
wall = time.perf_counter() - started
used = resource.getrusage(resource.RUSAGE_CHILDREN)
unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
print(json.dumps({
    "failed": done.stderr if done.returncode else "",
    "wall": wall,
    "cpu": used.ru_utime + used.ru_stime,
    "peak": used.ru_maxrss * unit,
}))
"""


def run(path, report):
    """One run of a file, "full" or "fast": its seconds and peak of memory, or why it failed."""
    flags = ["--fast"] if report == "fast" else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", LAUNCH, sys.executable, str(path), *flags]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure(args):
    """{(number, report): what each of its runs found}; the files take turns."""
    found = {(number, report): [] for report in args.reports for number in args.stages}
    for _ in range(args.rounds):
        for (number, report), runs in found.items():
            runs.append(run(FILES[number - 1], report))
            name, last = FILES[number - 1].name, runs[-1]
            print(f"... {name}, {report}: {last['wall']:.1f} s", file=sys.stderr)
            if last["failed"]:
                print(f"{name} failed:\n{last['failed']}", file=sys.stderr)
    return found


def main():
    parser = common.make_parser(__doc__, rounds=1)
    everything = list(range(1, len(FILES) + 1))
    parser.add_argument("--stages", type=common.whole_numbers, default=everything, help="[all]")
    about = "full, fast, or both [full,fast]"
    parser.add_argument("--reports", type=common.words, default=["full", "fast"], help=about)
    args = common.parse(parser, {"stages": [1, 2, 3], "reports": ["fast"]})
    record = {"machine": common.machine(), "rounds": args.rounds, "rows": []}
    subprocess.run([sys.executable, "-c", "import numpy"])  # from the disk, once
    found, slow, failed = measure(args), [], []
    print(f"\n{'':24}{'report':8}{'wall s':20}{'CPU s':20}{'MB':>6}")
    for (number, report), runs in found.items():
        name = FILES[number - 1].name
        wall, cpu, peak = ([run[key] for run in runs] for key in ("wall", "cpu", "peak"))
        columns = f"{common.spread(wall):20}{common.spread(cpu):20}{max(peak) / 1e6:6.0f}"
        print(f"{name:24}{report:8}{columns}")
        row = {"wall": common.quartiles(wall), "cpu": common.quartiles(cpu), "peak": max(peak)}
        record["rows"].append({"file": name, "report": report, **row})
        if row["wall"][1] > LIMITS[report] and number <= 10:
            slow.append(f"{name} ({report})")
        if any(run["failed"] for run in runs):
            failed.append(f"{name} ({report})")
    print("stages over their limit here:", ", ".join(slow) or "none")
    if failed:
        print("failed:", ", ".join(failed))
    common.keep(args, "stages", record)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
