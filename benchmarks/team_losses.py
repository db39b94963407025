"""Does it matter how many processes train? The same losses from 1, 2, 3 workers and 1, 2 MPI ranks.

    python benchmarks/team_losses.py [--workers 1,2,3] [--ranks 1,2] [--batches 3,5,8] [--fast]

A sweep over batch size, family (gpt2, llama), dropout (0, 0.1) and type (float32, float64). Teams
take turns, and each trains every setting for some steps in each of --rounds 2 rounds. Two things
must hold, else the exit status is 1:

    the runs of one team are the same bit for bit: losses, gradient norms, and weights at the end;
    the losses of two teams differ by no more than rounding: at most 1e-4 of the loss in float32,
    and at most 1e-12 in float64, so that it was rounding and nothing else.

Rounding grows from step to step, because training is sensitive to where it begins; so these limits
belong to the small models and the twenty steps here. Workers are forked, on Linux only; ranks need
mpi4py and mpiexec and are left out without them. Nothing is timed, and there is no peer.
"""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys

import common
import numpy as np

import capstone_gpt as gpt

SIZES = {"vocab_size": 128, "block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 32}
LIMITS = {"float32": 1e-4, "float64": 1e-12}  # between two teams, relative to the loss
RATE = 5e-3


def settings_of(args):
    """All settings of the sweep: (arch, dropout, dtype, batch size)."""
    dtypes = ("float32", "float64")
    return list(itertools.product(args.archs, args.dropouts, dtypes, args.batches))


def train(setting, workers, steps):
    """Losses and gradient norms of the steps, and a fingerprint of the weights they lead to."""
    arch, dropout, dtype, batch = setting
    model = gpt.GPT(gpt.GPTConfig(arch, dropout=dropout, **SIZES), seed=1, dtype=dtype)
    text = (common.ROOT / "data" / "stories.txt").read_bytes()  # ASCII: its bytes are its ids
    ids = np.frombuffer(text, np.uint8)
    run = {"workers": workers, "batch_size": batch, "block_size": SIZES["block_size"], "seed": 3}
    run["gradient_accumulation_steps"] = 1
    team = gpt.make_team(model, gpt.AdamW(model.params), ids, run)
    try:
        found = [team.step(step, RATE) for step in range(steps)]
        return {"steps": found, "weights": hashlib.sha256(team.model.flat).hexdigest()}
    finally:
        team.close()


# %% MPI ranks
#
# Each number of ranks is one job, which trains all settings. Rank 0 prints one line of JSON.


def rank_of_a_job(settings, steps):
    """What every rank of a job does: rank 0 trains, the others follow it from run to run."""
    MPI, found = gpt.mpi(), []
    for setting in settings:
        if MPI and MPI.COMM_WORLD.rank > 0:
            gpt.follow(MPI)
            continue
        found.append(train(setting, 1, steps))
        if MPI:
            gpt.tell_ranks(MPI, gpt.END, 0)
    if found:
        print(json.dumps(found))


def train_with_ranks(ranks, settings, steps):
    """What train returns for each setting, from a job of so many ranks."""
    command = [mpiexec(), "-n", str(ranks), sys.executable, __file__]
    command += ["--job", json.dumps([settings, steps])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the job of {ranks} ranks failed")
    return json.loads(done.stdout)


def mpiexec():
    """The path of mpiexec, the one beside this Python first; None if there is none."""
    here = os.path.dirname(sys.executable)
    return shutil.which("mpiexec", path=here) or shutil.which("mpiexec")


# %% The report


def make_sides(args, settings):
    """{name of a team: function that trains all settings with it}; one process comes first."""

    def with_workers(workers):
        return lambda _: [train(setting, workers, args.steps) for setting in settings]

    def with_ranks(ranks):
        return lambda _: train_with_ranks(ranks, settings, args.steps)

    sides = {"1 process": with_workers(1)}
    for workers in args.workers:
        if sys.platform == "linux" and workers > 1:
            sides[f"{workers} workers"] = with_workers(workers)
    if mpiexec() is None:
        print("Not installed here, so no ranks are tried: mpiexec.")
    elif common.present("mpi4py"):
        for ranks in args.ranks:
            sides[f"{ranks} rank{'s' if ranks > 1 else ''}"] = with_ranks(ranks)
    return sides


def losses(run):
    """The losses of a run's steps."""
    return np.array([loss for loss, _ in run["steps"]])


def compare(settings, found):
    """Print a line a setting; returns the records, and sentences about what should not be."""
    rows, complaints = [], []
    for i, setting in enumerate(settings):
        arch, dropout, dtype, batch = setting
        one = found["1 process"][0][i]
        first, last = losses(one)[[0, -1]]
        row = {"setting": setting, "losses": [first, last], "apart": {}}
        for name, rounds in found.items():
            runs = [turn[i] for turn in rounds]
            if any(run != runs[0] for run in runs):
                complaints.append(f"{name} did not repeat itself with {setting}")
            if name == "1 process":
                continue
            apart = float(np.abs(losses(runs[0]) / losses(one) - 1).max())
            row["apart"][name] = apart
            if not apart <= LIMITS[dtype]:
                complaints.append(f"{name} and 1 process are {apart:.0e} apart with {setting}")
        columns = "".join(f"{apart:12.0e}" for apart in row["apart"].values())
        print(f"{arch:6}{dropout:8}{dtype:>9}{batch:6}{first:7.3f}{last:7.3f}{columns}")
        rows.append(row)
    return rows, complaints


def main():
    parser = common.make_parser(__doc__, rounds=2)
    numbers, words = common.whole_numbers, common.words
    parser.add_argument("--workers", type=numbers, default=[1, 2, 3], help="[1,2,3]")
    parser.add_argument("--ranks", type=numbers, default=[1, 2], help="[1,2]")
    parser.add_argument("--batches", type=numbers, default=[3, 5, 8], help="[3,5,8]")
    parser.add_argument("--archs", type=words, default=["gpt2", "llama"], help="[gpt2,llama]")
    parser.add_argument("--dropouts", type=common.fractions, default=[0, 0.1], help="[0,0.1]")
    parser.add_argument("--steps", type=int, default=20, help="of a run [20]")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = common.parse(parser, {"steps": 3, "batches": [3]})
    if args.job:
        return rank_of_a_job(*args.job)
    largest = max(args.workers + args.ranks)
    if min(args.batches) < largest:
        parser.error(f"--batches must be at least {largest}, a sequence for every member")
    record = {"machine": common.machine("mpi4py"), "steps": args.steps, "rounds": args.rounds}
    settings = settings_of(args)
    found = {}
    sides = make_sides(args, settings)
    for r in range(args.rounds):
        for name, side in sides.items():
            found.setdefault(name, []).append(side(r))
            print(f"... {name}, round {r + 1} of {args.rounds}", file=sys.stderr)
    print(f"\nlosses of {args.steps} steps: how far from those of 1 process, relative to the loss")
    head = "".join(f"{name:>12}" for name in sides if name != "1 process")
    print(f"{'':6}{'dropout':>8}{'':9}{'batch':>6}{'losses':>14}{head}")
    record["rows"], complaints = compare(settings, found)
    for complaint in complaints:
        print(complaint)
    if not complaints:
        print("Every team follows the same losses but for rounding, ", end="")
        print("and repeats itself bit for bit." if args.rounds > 1 else "run once.")
    common.keep(args, "team_losses", record)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
