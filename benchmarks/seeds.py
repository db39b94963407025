"""How much of a number is luck? Run one file under several seeds and show its held-out line.

    python benchmarks/seeds.py [FILE] [--seeds 3] [-- FLAGS OF THE FILE]

FILE is capstone_gpt.py unless another is named. Each run is the file's own default run, in a
folder of its own; printed are its bits per held-out character, then the median and the spread.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def held_out_bits(file, seed, flags):
    """Bits per held-out character that one run of the file ends on."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / file), *flags, "--seed", str(seed)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{file} failed with seed {seed}:\n{done.stderr}")
    return float(re.search(r"^held-out: .*\| (\S+) bits/char", done.stdout, re.M)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", default="capstone_gpt.py")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 (default 3)")
    args, flags = parser.parse_known_args()
    flags = [flag for flag in flags if flag != "--"]
    found = []
    for seed in range(args.seeds):
        started = time.time()
        found.append(held_out_bits(args.file, seed, flags))
        seconds = time.time() - started
        print(f"seed {seed}: {found[-1]:.3f} bits/char in {seconds:.0f} s", flush=True)
    spread = f"{min(found):.3f} to {max(found):.3f}"
    print(f"median {statistics.median(found):.3f} bits/char, from {spread}")


if __name__ == "__main__":
    main()
