"""Where stage 3's settings come from: every side tuned on a development piece, at equal compute.

    python benchmarks/stage03_sweep.py

The stories' and the names' training parts are cut once more: their last tenth is the development
piece, and nothing here reads the held-out tenths. The network's runs all cost the same number of
multiplications (half as many hidden features train for twice as many steps), one seed each; the
counts are tried at every order and every discount. The table goes to
benchmarks/results/stage03_sweep.md. About eight minutes on one core.
"""

import math
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import stage03_nlm as s3  # noqa: E402

STORIES = {"context": 5, "n_embd": 24, "n_hidden": 512, "learning_rate": 0.2, "batch_size": 64}
STORIES_TRIED = [
    {},
    {"learning_rate": 0.1},
    {"learning_rate": 0.3},
    {"learning_rate": 0.4},
    {"batch_size": 32},
    {"batch_size": 128},
    {"batch_size": 128, "learning_rate": 0.4},
    {"n_hidden": 256},
    {"n_hidden": 384},
    {"n_hidden": 768},
    {"n_embd": 16},
    {"n_embd": 32},
    {"context": 4},
    {"context": 6},
    {"context": 8},
    {"weight_decay": 0.00003},
    {"weight_decay": 0.0001},
    {"dropout": 0.1},
    {"n_hidden": 256, "weight_decay": 0.00005},
    {"n_hidden": 256, "dropout": 0.1},
]
NAMES = {"context": 6, "n_embd": 16, "n_hidden": 128, "learning_rate": 0.2, "batch_size": 32}
NAMES_TRIED = [
    {},
    {"weight_decay": 0.0003},
    {"weight_decay": 0.001},
    {"weight_decay": 0.002},
    {"dropout": 0.2},
    {"dropout": 0.5},
    {"dropout": 0.7},
    {"dropout": 0.2, "weight_decay": 0.001},
    {"weight_decay": 0.001, "learning_rate": 0.1},
    {"weight_decay": 0.001, "learning_rate": 0.4},
    {"weight_decay": 0.001, "context": 4},
    {"weight_decay": 0.001, "context": 8},
    {"weight_decay": 0.001, "n_embd": 8},
    {"weight_decay": 0.001, "n_hidden": 64},
    {"weight_decay": 0.001, "n_hidden": 256},
]


def products(vocab_size, context, n_embd, n_hidden, batch_size, **_):
    """Multiplications of one training step: forward, and twice as many backward."""
    return 3 * batch_size * n_hidden * (context * n_embd + vocab_size)


def run(vocab_size, X, Y, cut, base, change, base_steps):
    """(row of the table, lowest development bits) of one setting."""
    setting = {**base, **change}
    sizes = {name: setting.pop(name) for name in ("context", "n_embd", "n_hidden")}
    budget = base_steps * products(vocab_size, **base)
    cost = products(vocab_size, **sizes, batch_size=setting["batch_size"])
    steps = round(budget / cost)
    model, curve = s3.NeuralLM(vocab_size, **sizes), []

    def watch(done):
        if done % (steps // 8) == 0:
            curve.append((model.loss(X[cut:], Y[cut:]) / math.log(2), done))

    started = time.process_time()
    losses = s3.train(model, X[:cut], Y[:cut], steps, **setting, watch=watch)
    seconds = time.process_time() - started
    low, stop = min(curve)
    what = ", ".join(f"{name} {value}" for name, value in change.items()) or "the base"
    trained = losses[-1000:].mean() / math.log(2)
    row = f"| {what} | {steps:,} | {trained:.3f} | {curve[-1][0]:.3f} | {low:.3f} | {stop:,} |"
    print(f"{row} {seconds:.1f} s", flush=True)
    return row, low


def counts(X, Y, cut, vocab_size):
    """Rows of the table for Kneser-Ney counts."""
    models = s3.count_models(X[:cut], Y[:cut], X[cut:], Y[cut:], vocab_size, s3.DISCOUNTS)
    rows = []
    for n, (*_, p) in enumerate(models, 1):
        cells = [s3.bits(row) for row in p]
        rows.append(f"| {n} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    return rows


def main():
    lines = ["# Stage 3: settings tried on the development pieces, bits per character", ""]
    text = (ROOT / "data" / "stories.txt").read_text(encoding="utf-8")
    ids, symbols = s3.encode(text)
    ids = ids[: int(0.9 * len(ids))]
    names = s3.read_names(ROOT / "data" / "names.txt")
    names = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    names = names[: int(0.9 * len(names))]
    early = names[: int(0.9 * len(names))]
    _, letters = s3.encode("\n" + "".join(names))

    def stories_examples(context):
        X, Y = s3.make_examples(ids, context)
        return X, Y, int(0.9 * len(X))

    def names_examples(context):
        X, Y = s3.name_examples(names, letters, context)
        return X, Y, len(s3.name_examples(early, letters, context)[1])

    for title, V, examples, base, tried, steps in (
        ("Stories", len(symbols), stories_examples, STORIES, STORIES_TRIED, 24000),
        ("Names", len(letters), names_examples, NAMES, NAMES_TRIED, 8000),
    ):
        lines += [f"## {title}: the network", ""]
        lines += ["Base: " + ", ".join(f"{k} {v}" for k, v in base.items()) + "; seed 0.", ""]
        lines += ["| changed | steps | training | development | lowest | at step |"]
        lines += ["|---|---|---|---|---|---|"]
        for change in tried:
            X, Y, cut = examples(change.get("context", base["context"]))
            lines.append(run(V, X, Y, cut, base, change, steps)[0])
        lines += ["", f"## {title}: Kneser-Ney counts", ""]
        lines += ["| n | " + " | ".join(f"δ = {d}" for d in s3.DISCOUNTS) + " |"]
        lines += ["|---|" + "---|" * len(s3.DISCOUNTS)]
        lines += [*counts(*examples(9), V), ""]
    path = ROOT / "benchmarks" / "results" / "stage03_sweep.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
