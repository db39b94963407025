"""How fast is stage 5's attention in tiles, and how much memory does it save, beside torch's?

    python benchmarks/attention.py [--lengths 128,512,2048,4096] [--heads 4] [--fast]

Three sides take turns on the same q, k, v and upstream gradient, causal, float32, forward and
backward: stage 5 in tiles, stage 5 with the whole T × T matrix, and torch's
scaled_dot_product_attention, which on a CPU works in tiles, too. Outputs and the three gradients
must agree, else the exit status is 1. Then each runs once more in a process of its own, and what
its peak of resident memory rises by is compared; Linux only.

Fair: all cores on every side, the same shapes, and every side keeps from its forward pass what its
backward pass needs. Unfair to ours: torch's kernel is C++ and takes each tile from scores to output
while it is in the cache, with a core for every head; in NumPy each elementwise step is a pass of
its own on one core. Unfair to torch: nothing that we know of.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import common
import numpy as np

import capstone_gpt as gpt
import stage05_attention as stage

TOLERANCE = 1e-4  # relative to the largest number; float32 sums of up to T terms

# %% The sides. Each is a function of q, k, v and the upstream gradient, and returns the output, the
# three gradients, and when it began, stood between forward and backward, and ended.


def timed(forward, backward, q, k, v, dout):
    """A side made of two functions of stage 5."""
    started = time.perf_counter()
    out, cache = forward(q, k, v, causal=True)
    between = time.perf_counter()
    grads = backward(dout, cache)
    return (out, *grads), (started, between, time.perf_counter())


def in_tiles(q, k, v, dout):
    return timed(stage.flash_attention_forward, stage.flash_attention_backward, q, k, v, dout)


def with_matrix(q, k, v, dout):
    return timed(stage.attention_forward, stage.attention_backward, q, k, v, dout)


def in_torch(q, k, v, dout):
    import torch

    torch.set_num_threads(gpt.usable_cores())
    q, k, v = (torch.from_numpy(x).requires_grad_() for x in (q, k, v))
    dout = torch.from_numpy(dout)
    started = time.perf_counter()
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    between = time.perf_counter()
    grads = torch.autograd.grad(out, (q, k, v), dout)
    ended = time.perf_counter()
    return [x.detach().numpy() for x in (out, *grads)], (started, between, ended)


SIDES = {"tiles": in_tiles, "matrix": with_matrix, "torch": in_torch}


def make_data(shape):
    """q, k, v and the upstream gradient, (B, H, T, D) each."""
    return np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)


# %% Memory


def memory_of(name, shape):
    """In a fresh process: bytes by which the peak of resident memory rises in one run."""
    small = make_data((*shape[:2], 16, shape[3]))
    SIDES[name](*small)  # what libraries set up once
    data = make_data(shape)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident_peak()
    SIDES[name](*data)
    return resident_peak() - before


def resident_peak():
    """This process's peak of resident memory in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])


def measured_memory(name, shape):
    """memory_of in another process; None where it cannot be measured."""
    command = [sys.executable, __file__, "--memory", json.dumps([name, shape])]
    done = subprocess.run(command, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


# %% The report


def difference(ours, theirs):
    """The largest difference of outputs and gradients, relative to the largest number of each."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, theirs))


def measure(args, T, names):
    """One length: ({name: its row}, the largest difference from the side with the matrix)."""
    shape = (args.batch, args.heads, T, args.head_size)
    data, results = make_data(shape), {}

    def side(name):
        def turn(_):
            times = []
            for _ in range(args.repeat):
                results[name], (started, between, ended) = SIDES[name](*data)
                times.append((1e3 * (between - started), 1e3 * (ended - between)))
            return times

        return turn

    found, _ = common.take_turns({name: side(name) for name in names}, args.rounds)
    apart = max(difference(results[name], results["matrix"]) for name in names)
    rows = {}
    for name, turns in found.items():
        forward, backward = zip(*(times for turn in turns for times in turn))
        rows[name] = {"forward": common.quartiles(forward), "backward": common.quartiles(backward)}
        rows[name]["bytes"] = measured_memory(name, shape)
        line = f"{T:6}  {name:8}{common.spread(forward, 2):26}{common.spread(backward, 2):26}"
        if rows[name]["bytes"] is not None:
            line += f"{rows[name]['bytes'] / 1e6:8.1f}"
        print(line, flush=True)
    print(f"{'':8}{apart:.0e} apart", end="")
    if "torch" in rows:
        ratios = [rows["tiles"][way][1] / rows["torch"][way][1] for way in ("forward", "backward")]
        print("; tiles / torch: forward {:.2f}, backward {:.2f}".format(*ratios), end="")
    print(flush=True)
    return rows, apart


def main():
    parser = common.make_parser(__doc__, rounds=5)
    lengths = [128, 512, 2048, 4096]
    parser.add_argument("--lengths", type=common.whole_numbers, default=lengths, help="values of T")
    parser.add_argument("--batch", type=int, default=1, help="[1]")
    parser.add_argument("--heads", type=int, default=4, help="[4]")
    parser.add_argument("--head-size", type=int, default=64, help="[64]")
    parser.add_argument("--repeat", type=int, default=3, help="runs a turn [3]")
    parser.add_argument("--memory", type=json.loads, help=argparse.SUPPRESS)
    args = common.parse(parser, {"rounds": 1, "lengths": [50, 128], "repeat": 2})
    if args.memory:
        return print(json.dumps(memory_of(*args.memory)))
    record = {"machine": common.machine("torch")}
    names = ["tiles", "matrix", "torch"] if common.present("torch") else ["tiles", "matrix"]
    record |= {"batch": args.batch, "heads": args.heads, "head_size": args.head_size}
    print(f"\n{args.batch} x {args.heads} heads of size {args.head_size}, causal, float32:")
    print("milliseconds, median (middle half), and the rise of the memory's peak")
    print(f"{'T':>6}  {'':8}{'forward':26}{'backward':26}{'MB':>8}")
    worst = 0.0
    for T in args.lengths:
        record[f"T={T}"], apart = measure(args, T, names)
        worst = max(worst, apart)
    same = worst < TOLERANCE
    verdict = "agree" if same else "DO NOT AGREE"
    print(f"outputs and gradients {verdict} (largest difference {worst:.0e}, allowed {TOLERANCE})")
    common.keep(args, "attention", record | {"apart": worst})
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
