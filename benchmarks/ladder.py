"""Refill README's ladder: run every stage that trains a model on stories, and print the table.

    python benchmarks/ladder.py

Each file runs in full, one after the other, and its `held-out:` line becomes a row.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    print(
        "| file | model | nats/char | bits/char | perplexity | seconds |\n|---|---|---|---|---|---|"
    )
    for path in [*sorted(ROOT.glob("stage*.py")), ROOT / "capstone_gpt.py"]:
        started = time.time()
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(path)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        seconds = time.time() - started
        if done.returncode:
            sys.exit(f"{path.name} failed:\n{done.stderr}")
        line = r"^held-out: (\S+) nats/char \| (\S+) bits/char \| perplexity (\S+)\s+\((.+)\)$"
        for nats, bits, perplexity, what in re.findall(line, done.stdout, re.M):
            what = what.split(", ", 1)[1]
            row = f"| `{path.name}` | {what} | {nats} | **{bits}** | {perplexity} | {seconds:.0f} |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
