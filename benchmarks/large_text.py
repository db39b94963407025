"""Train on a text larger than the memory it may use: how much memory, how much time?

    python benchmarks/large_text.py [--megabytes 300] [--steps 200] [--folder DIR] [flags of train]

The text is data/stories.txt over and over, its stories in a new order each time and every line
with a number of its own, so that no two lines are equal. One process encodes it and trains, a
second one goes on for as many steps again and finds the token file. Both must stay below 600 MB of
resident memory, which counts the mapped file's pages, although the system may take them back; if
not, the exit status is 1. A small version stands in tests/test_capstone_yardstick.py.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 600  # MB


def write_text(path, size):
    """Write `size` bytes or a little more of numbered lines of shuffled stories."""
    stories = (ROOT / "data" / "stories.txt").read_text(encoding="utf-8").strip().split("\n\n")
    shuffle, number = random.Random(0).shuffle, 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        while file.tell() < size:
            shuffle(stories)
            for story in stories:
                for line in story.split("\n"):
                    number += 1
                    file.write(f"{number} {line}\n")
                file.write("\n")


def run(arguments, folder):
    """Run capstone_gpt.py with its output shown: (peak resident memory in MB, seconds)."""
    started = time.time()
    child = subprocess.Popen([sys.executable, ROOT / "capstone_gpt.py", *arguments], cwd=folder)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"capstone_gpt.py {' '.join(arguments)} failed")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return usage.ru_maxrss * unit / 1e6, time.time() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=300)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", help="keep the text and the run there")
    args, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        text, out = Path(folder, "large.txt"), Path(folder, "run")
        write_text(text, args.megabytes * 1e6)
        size, peaks = text.stat().st_size / 1e6, []
        train = ["train", "--data", str(text), "--out_dir", str(out), *flags]
        resume = ["train", "--resume", str(out)]
        for command, steps in ((train, args.steps), (resume, 2 * args.steps)):
            print(f"\n$ python capstone_gpt.py {' '.join(command)} --max_iters {steps}", flush=True)
            peaks.append(run([*command, "--max_iters", str(steps)], folder))
        tokens = (out / "tokens.safetensors").stat().st_size / 1e6
    print(f"\ntext {size:.0f} MB, token file {tokens:.0f} MB, limit {LIMIT} MB resident")
    for (peak, seconds), what in zip(peaks, ("encoded and trained", "resumed")):
        print(f"{what:20} {args.steps} steps: {peak:4.0f} MB, {seconds:4.0f} s")
    return int(max(peaks)[0] >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
