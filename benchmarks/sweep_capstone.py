"""The sweep behind the capstone's default run: its settings, chosen without the held-out tenth.

    python benchmarks/sweep_capstone.py --jobs 2      train what is missing, print the table
    python benchmarks/sweep_capstone.py --table       the table of the runs so far

The training part of data/stories.txt is its first nine tenths of characters. Their last twentieth
is the development piece: the BPE vocabulary and the model learn from what comes before it, and the
run is scored by the bits per character of the piece. The held-out tenth is cut off when the text is
read and never tokenized. A run computes what `capstone_gpt.py train` would compute on such a text:
the same initial weights, batches, dropout masks and updates.

Every run is a process with one thread; its row goes to results/sweep_capstone.jsonl, and a run
whose row is there is not repeated. `seconds` is the processor time of the training steps; on a busy
machine it is up to a fifth more than on an idle one. Rows that say "masks": "one generator a step"
were made before each sequence of a batch had a generator of its own: the same settings and the same
distribution of batches and masks, another draw of them.
A copy of capstone_gpt.py and stage07_bpe.py on PYTHONPATH is used instead of the repository's.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # at the end, so that PYTHONPATH comes first

from capstone_gpt import (  # noqa: E402
    GPT,
    AdamW,
    GPTConfig,
    draw_batch,
    keep_freed_memory,
    training_step,
    warmup_cosine,
)
from stage07_bpe import BPETokenizer  # noqa: E402

ROWS = HERE / "results" / "sweep_capstone.jsonl"
TABLE = HERE / "results" / "sweep_capstone.md"

# The settings, under the names of the capstone's flags; a trial says what differs from BASE.

BASE = {
    "vocab_size": 1024,
    "arch": "llama",
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 96,
    "block_size": 64,
    "dropout": 0.2,
    "batch_size": 16,
    "max_iters": 2000,
    "learning_rate": 3e-3,
    "min_lr": 1e-4,
    "warmup_iters": 100,
    "beta2": 0.99,
    "weight_decay": 0.5,
}
TRIALS = [
    # One factor at a time, at about equal time where the factor changes the cost of a step.
    {},
    {"batch_size": 8, "max_iters": 4000},
    {"vocab_size": 512},
    {"vocab_size": 2048},
    {"n_layer": 3, "max_iters": 2400},
    {"n_embd": 128, "max_iters": 1400},
    {"block_size": 128, "batch_size": 8},
    {"weight_decay": 1.0},
    {"dropout": 0.1},
    # Around the lower dropout.
    {"dropout": 0.1, "learning_rate": 5e-3},
    {"dropout": 0.1, "vocab_size": 1536},
    # At full length.
    {"max_iters": 2600, "dropout": 0.15},
    {"max_iters": 2600, "dropout": 0.2},
]


def texts():
    """The text to learn from and the development piece; the held-out tenth is dropped at once."""
    text = (HERE.parent / "data" / "stories.txt").read_text("utf-8")
    text = text[: int(0.9 * len(text))]
    cut = int(0.95 * len(text))
    return text[:cut], text[cut:]


def train(settings, ids, vocab_size):
    """The trained model, its mean loss over the last 200 steps, and the seconds it took."""
    names = ("arch", "n_layer", "n_head", "n_embd", "block_size", "dropout")
    shape = {name: settings[name] for name in names}
    config = GPTConfig(vocab_size=vocab_size, bias=False, tie_weights=True, **shape)
    model = GPT(config, settings["seed"])
    betas = (0.9, settings["beta2"])
    optimizer = AdamW(model.params, betas, weight_decay=settings["weight_decay"], grad_clip=1.0)
    rates = [settings[name] for name in ("learning_rate", "min_lr", "warmup_iters", "max_iters")]
    losses, started = [], time.process_time()
    for step in range(settings["max_iters"]):
        sizes = settings["block_size"], settings["batch_size"]
        batch = draw_batch(ids, *sizes, settings["seed"], step)
        rate = warmup_cosine(step, *rates)
        loss, _ = training_step(model, optimizer, [batch], rate)
        losses.append(loss)
    return model, float(np.mean(losses[-200:])), time.process_time() - started


def score(model, before, ids):
    """Nats of all of ids, every token once, in windows that advance by half a context.

    `before` is what stands in front of ids, so that the first tokens have a context too.
    """
    T = model.config.block_size
    everything = np.concatenate([before[-T:], ids])
    nats, scored = 0.0, T  # everything[:scored] needs no score any more
    while scored < len(everything):
        end = min(scored + T // 2, len(everything))
        window = everything[end - T - 1 : end]
        targets = window[1:].copy()
        targets[: T - (end - scored)] = -1
        nats += model.loss(window[None, :-1], targets[None]) * (end - scored)
        scored = end
    return nats


def run(settings):
    """Train and score one configuration: its row."""
    keep_freed_memory()
    learn, develop = texts()
    tokenizer = BPETokenizer.train(learn, settings["vocab_size"])
    ids, held = (np.array(tokenizer.encode(text)) for text in (learn, develop))
    model, loss, seconds = train(settings, ids, tokenizer.vocab_size)
    bits = score(model, ids, held) / len(develop) / math.log(2)
    row = dict(dev_bits=round(bits, 4), train_nats=round(loss, 4), seconds=round(seconds, 1))
    return settings | row | {"parameters": model.num_params()}


def settings_of(row):
    """The part of a row that says which run it was, to compare runs by."""
    return json.dumps({name: row[name] for name in [*BASE, "seed"]})


def rows_so_far():
    """The rows of the jsonl file."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def run_in_a_process(settings):
    """Have a fresh single-threaded process do `run`, append its row and show it."""
    command = [sys.executable, __file__, "--one", json.dumps(settings)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    with open(ROWS, "a") as file:
        file.write(done.stdout)
    row = json.loads(done.stdout)
    changes = {name: row[name] for name in BASE if row[name] != BASE[name]}
    print(
        f"{row['dev_bits']:.4f} {row['seconds']:6.0f} s  seed {row['seed']} {changes}", flush=True
    )


def table(rows):
    """Markdown, one line for each configuration, seeds averaged, the lowest first."""
    varied = [name for name in BASE if len({row[name] for row in rows}) > 1]
    groups = {}
    for row in rows:
        groups.setdefault(settings_of(row | {"seed": 0}), []).append(row)
    lines = []
    for group in groups.values():
        bits, nats, seconds = (
            [row[name] for row in group] for name in ("dev_bits", "train_nats", "seconds")
        )
        spread = f"{min(bits):.3f} to {max(bits):.3f}" if len(bits) > 1 else ""
        cells = [f"**{np.mean(bits):.4f}**", len(bits), spread, f"{np.mean(nats):.3f}"]
        cells += [f"{np.mean(seconds):.0f}", f"{group[0]['parameters']:,}"]
        lines.append((np.mean(bits), cells + [group[0][name] for name in varied]))
    measured = ["dev bits/char", "seeds", "range", "train nats/token", "seconds", "parameters"]
    cells = [measured + varied, ["---"] * (len(measured) + len(varied))]
    cells += [line for _, line in sorted(lines, key=lambda line: line[0])]
    fixed = ", ".join(f"{name} {BASE[name]}" for name in BASE if name not in varied)
    text = "\n".join(f"| {' | '.join(map(str, row))} |" for row in cells)
    return f"The same in all runs: {fixed or 'nothing'}.\n\n{text}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time [1]")
    parser.add_argument("--table", action="store_true", help="only print and write the table")
    parser.add_argument("--one", metavar="JSON", help="one run, its row to stdout (used inside)")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(json.loads(args.one))))
        return
    ROWS.parent.mkdir(exist_ok=True)
    done = {settings_of(row) for row in rows_so_far()}
    wanted = [BASE | {"seed": 0} | trial for trial in TRIALS]
    missing = [settings for settings in wanted if settings_of(settings) not in done]
    if not args.table:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(run_in_a_process, missing))  # list() raises what a run raised
    TABLE.write_text(table(rows_so_far()))
    print(f"\n{TABLE.read_text()}")


if __name__ == "__main__":
    main()
