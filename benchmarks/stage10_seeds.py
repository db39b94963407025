"""Stage 10's rates and prices swept on development seeds, and its table over three other seeds.

    python benchmarks/stage10_seeds.py --sweep          a quarter of an hour of one core
    python benchmarks/stage10_seeds.py [--seeds 3]      a minute a seed
    python benchmarks/stage10_seeds.py --fast           a smoke run of both that keeps nothing

--sweep: every method with six learning rates and with five to seven settings (β, or n), in two
worlds whose seeds (100, 101) are never shown. A rate is scored by the mean share of the frontier of
the three settings whose KL comes nearest to 0.6, 1.2 and 2.4 nats; it must come within a factor of
two of each. The best rate and its settings are what METHODS in stage10_dpo.py says. Kept in
results/stage10_sweep.md.

Without --sweep: the table of the report for seeds 0, 1, 2 with means and spread, what the methods
cost, and what the report leaves out: best-of-n, a price that adapts, PPO with four times the
iterations, and the length bias of GRPO's mean within responses. Kept in results/stage10_seeds.md.
"""

import argparse
import functools
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402

import stage10_dpo as s10  # noqa: E402

TARGETS = (0.6, 1.2, 2.4)  # nats
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
PRICES = (1.4, 1.0, 0.7, 0.5, 0.35, 0.25)
GRID = {
    "imitate best": (2, 4, 8, 16, 32),
    "PPO": PRICES,
    "GRPO, k3": (1.4, 1.0, 0.7, 0.6, 0.5, 0.42, 0.35),
    "GRPO, KL paid": PRICES,
    "DPO": (*PRICES, 0.18),
    "IPO": (0.2, 0.14, 0.1, 0.07, 0.05, 0.035),
    "KTO": (2.8, 1.8, 1.1, 0.7, 0.4, 0.27),
    "ORPO": (2, 4, 8, 16, 32, 64),
    "SimPO": (4, 2, 1, 0.5, 0.25),
    "PPO, verified": PRICES,
}


def make_world(seed, size):
    """The report's world of that seed, and the generator that goes on from there."""
    text = (HERE.parent / "data" / "names.txt").read_text(encoding="utf-8")
    rng = np.random.default_rng(seed)
    return s10.make_world(s10.encode(text.split()), size, rng), rng


def measure(method, setting, world, rng, **changes):
    """(share in %, KL, true reward, tokens drawn, seconds) of one row of the table."""
    policy, tokens, seconds = s10.train(method, setting, world, rng, **changes)
    true, _, kl, _ = s10.judge(policy, world, rng)
    share = 100 * s10.share_of(true, kl, world)
    return share, float(kl), float(true), tokens, seconds


def choose(found):
    """(score, settings) of one rate: found is {setting: [(share, KL) a seed]}."""
    kl = {a: math.exp(np.mean([math.log(run[1]) for run in runs])) for a, runs in found.items()}
    share = {a: float(np.mean([run[0] for run in runs])) for a, runs in found.items()}
    settings = [min(kl, key=lambda a: abs(math.log(kl[a] / target))) for target in TARGETS]
    near = all(0.5 < kl[a] / target < 2 for a, target in zip(settings, TARGETS))
    score = float(np.mean([share[a] for a in settings])) if near else -math.inf
    return (score if math.isfinite(score) else -math.inf), settings, [kl[a] for a in settings]


def sweep(seeds, size, rates, grid):
    """The lines of the sweep's table."""
    worlds = [make_world(seed, size) for seed in seeds]
    head = ["method", *(f"{rate:g}" for rate in rates), "β or n at the best rate", "their KL"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method, settings in grid.items():
        scores = []
        for rate in rates:
            found = {setting: [] for setting in settings}
            for setting in settings:
                for world, rng in worlds:
                    row = measure(method, setting, world, rng, learning_rate=rate)
                    found[setting].append(row[:2])
            scores.append(choose(found))
        best = max(range(len(rates)), key=lambda i: scores[i][0])
        cells = [f"{score:.1f}" if math.isfinite(score) else "-" for score, _, _ in scores]
        cells[best] = f"**{cells[best]}**"
        cells.append(", ".join(f"{setting:g}" for setting in scores[best][1]))
        cells.append(", ".join(f"{kl:.2f}" for kl in scores[best][2]))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def one_seed(seed, size):
    """{row: numbers} of everything that is shown of one seed."""
    world, rng = make_world(seed, size)
    learned = functools.partial(s10.learned_rewards, world.model)
    rows = {}
    names = s10.decode(s10.sample(world.reference, world.judged, np.random.default_rng(0)))
    answer = float(np.mean([len(name) for name in names]))  # letters after the prompt, and END
    for n in (4, 16, 64):
        true, kl = s10.best_of_n(world.learned, world.truth, n)
        true = float(true @ world.weights)
        share = 100 * s10.share_of(true, kl, world)
        rows["best-of-n", n] = share, kl, true, n * answer, world.seconds
    for method, (settings, _) in s10.METHODS.items():
        for setting in settings:
            rows[method, setting] = measure(method, setting, world, rng)
        print(seed, method, *(f"{rows[method, a][0]:.0f}" for a in settings), flush=True)
    longer = {**size, "iterations": 4 * size["iterations"]}
    world.size = longer
    for setting in s10.METHODS["PPO"][0][1:2]:
        rows["PPO, four times as long", setting] = measure("PPO", setting, world, rng)
    world.size = size

    extra = {}
    for beta in (0.1, 0.4, 2.0):
        policy, _ = s10.train_rl(
            "ppo", world.reference, learned, world.prompts, beta, size["iterations"], rng,
            target_kl=1.5,
        )  # fmt: skip
        extra[f"adaptive β from {beta}, target 1.5 nats: KL"] = s10.judge(policy, world, rng)[2]

    def ends_in_vowel(tokens):
        return np.array([float(name[-1] in "aeiou") for name in s10.decode(tokens)])

    extra["letters in a name: reference"] = answer
    for by_response in (True, False):
        lengths = []
        for _ in range(8):  # one run is noisy
            policy, _ = s10.train_rl(
                "grpo", world.reference, ends_in_vowel, world.prompts, 0.0, size["iterations"],
                rng, by_response=by_response,
            )  # fmt: skip
            names = s10.decode(s10.sample(policy, world.judged, rng))
            lengths.append(np.mean([len(name) for name in names]))
        rule = "mean within each response" if by_response else "mean over all tokens"
        extra[f"letters in a name: GRPO, vowel at the end, {rule}"] = np.mean(lengths)
    return rows, extra


def table(seeds, size):
    """The lines of the three-seed table."""
    found = [one_seed(seed, size) for seed in seeds]
    head = ["method", "β or n", *(f"seed {seed}" for seed in seeds), "mean share", "spread"]
    head += ["KL", "true reward", "tokens drawn", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    means = {}
    for key in found[0][0]:
        shares, kls, trues, tokens, seconds = zip(*(rows[key] for rows, _ in found))
        means.setdefault(key[0], []).append(shares)
        if np.isfinite(shares).all():
            cells = [*(f"{x:.0f} %" for x in shares)]
            cells += [f"{np.mean(shares):.0f} %", f"{np.ptp(shares):.0f}"]
        else:  # beyond the frontier that can be computed: the true rewards instead
            cells = [*(f"({x:.1f})" for x in trues), "-", "-"]
        cells = [key[0], f"{key[1]:g}", *cells, f"{np.mean(kls):.2f}"]
        cells += [f"{np.mean(trues):.2f}", f"{np.mean(tokens):.0f}", f"{np.mean(seconds):.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Mean share over the settings within the frontier, a column a seed:", ""]
    lines += ["| method |" + "".join(f" seed {a} |" for a in seeds) + " mean | spread |"]
    lines += ["|" + "---|" * (len(seeds) + 3)]
    for method, shares in means.items():
        row = [np.mean([x for x in column if math.isfinite(x)]) for column in zip(*shares)]
        cells = [
            method,
            *(f"{x:.0f} %" for x in row),
            f"{np.mean(row):.0f} %",
            f"{np.ptp(row):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| also |" + "".join(f" seed {seed} |" for seed in seeds)]
    lines += ["|" + "---|" * (len(seeds) + 1)]
    for key in found[0][1]:
        lines.append(f"| {key} | " + " | ".join(f"{extra[key]:.2f}" for _, extra in found) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sweep", action="store_true", help="choose rates and settings")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 [3]")
    parser.add_argument("--fast", action="store_true", help="a smoke run that keeps nothing")
    args = parser.parse_args()
    if args.fast:
        print("\n".join(sweep([100], s10.FAST, RATES[3:4], {"DPO": (1.0,), "PPO": (1.0,)})))
        print("\n".join(table([0], s10.FAST)))
        return
    if args.sweep:
        title = (
            "Stage 10: mean share of the frontier, in %, on seeds 100 and 101, by learning rate\n"
            "(benchmarks/stage10_seeds.py --sweep). A dash: three KLs within a factor of two of\n"
            f"{', '.join(map(str, TARGETS))} nats were not reached, or lie beyond the frontier.\n"
        )
        lines = sweep([100, 101], {**s10.FULL, "judge": 2000}, RATES, GRID)
        path = HERE / "results" / "stage10_sweep.md"
    else:
        title = (
            "Stage 10: share of the gain in true reward that is possible at the same KL\n"
            "(benchmarks/stage10_seeds.py). Spread: largest minus smallest. Tokens and seconds to\n"
            "learn, seconds with the reward model's where one is used; for best-of-n, tokens an\n"
            "answer. In brackets: the true reward, where the KL is beyond the frontier's end.\n"
        )
        lines = table(range(args.seeds), s10.FULL)
        path = HERE / "results" / "stage10_seeds.md"
    text = title + "\n" + "\n".join(lines) + "\n"
    path.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
