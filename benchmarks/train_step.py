"""A training step of capstone_gpt.py: how fast, beside what, and where its time and memory go.

    python benchmarks/train_step.py [--shapes abcd] [--rounds 5] [--workers N] [--fast]

Four tables. The first stands beside the same model in PyTorch, from the same weights on the same
batches: eager as it comes, eager with the malloc setting that ours makes for itself (it is nothing
of ours, and PyTorch gains by it), and compiled where that works. Each lives in a process of its
own, they take turns, and medians are shown with the range of the middle half, because shared cores
change speed within seconds. The others are ours alone: arithmetic against this machine's matrix
products, measured in the same minutes, and memory against a formula; where the time goes; and how
it grows when one size doubles. At last, whether memory grows over 1,000 steps.

Fair: both have all cores, PyTorch as threads of one process and ours as one process a core, and
PyTorch has its fused attention and its fused AdamW. Unfair to PyTorch: at sizes as small as (a) it
pays for being general at every call. Unfair to ours: NumPy's OpenBLAS may be slower on the same
products than PyTorch's MKL; "share" says how much of OpenBLAS's own speed a step reaches.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import common
import numpy as np

import capstone_gpt as gpt

SHAPES = {  # name: (B, T, layers, heads, channels, vocabulary)
    "a": (12, 64, 4, 4, 128, 65),  # nanoGPT's CPU setting
    "b": (8, 128, 4, 4, 256, 65),
    "c": (16, 256, 6, 6, 384, 65),
    "d": (4, 256, 4, 4, 256, 8192),
}
BASE = (8, 64, 4, 4, 128, 1024)  # what is doubled, one size at a time
GROWTH = 0.05  # of memory over many steps; less is the allocator's and the measurement's noise
RATE = 1e-3


def config_of(shape):
    """The bias-free gpt2 of a shape."""
    _, T, L, H, C, V = shape
    return gpt.GPTConfig("gpt2", V, T, L, H, C, bias=False)


def tokens_of(shape):
    return np.random.default_rng(0).integers(0, shape[5], 50_000).astype(np.uint16)


def operations(shape):
    """Floating-point operations of a step's products: 2 a weight and token forward, 4 backward."""
    B, T, L, _, C, V = shape
    attention = 2 * C * (T + gpt.BLOCK) / 2  # qkᵀ and Pv, over half of the square
    return 6 * B * T * (L * (12 * C * C + attention) + C * V)


def predicted_bytes(shape, workers):
    """Memory of a step beyond Python's own: float32 weights, m, v, gradients, activations."""
    B, T, L, H, C, V = shape
    P = L * 12 * C * C + (V + T) * C
    scores = H * (T + gpt.BLOCK) / 2
    layer = 9 * C + 2 * 4 * C + scores  # x̂ twice, y twice, qkv, q, y of attention; GELU's y, slope
    working = 2 * 4 * C + 2 * C  # a layer's own, on the way
    return 4 * (P * (3 + workers) + B * T * (L * layer + working + 3 * C + 3 * V))


# %% Those who take turns


class Ours:
    """A team of capstone_gpt.py."""

    def __init__(self, shape, workers):
        B, T = shape[:2]
        model = gpt.GPT(config_of(shape))
        settings = {"workers": workers, "batch_size": B, "block_size": T, "seed": 0}
        settings["gradient_accumulation_steps"] = 1
        optimizer = gpt.AdamW(model.params)
        self.team = gpt.make_team(model, optimizer, tokens_of(shape), settings)
        self.close = self.team.close

    def turn(self, first, steps):
        """Milliseconds of each step, and the last loss."""
        times = []
        for step in range(first, first + steps):
            started = time.perf_counter()
            loss, _ = self.team.step(step, RATE)
            times.append(1e3 * (time.perf_counter() - started))
        return times, loss


class Peer:
    """The same model in PyTorch, in another process that runs torch_peer."""

    def __init__(self, shape, kind, threads):
        command = [sys.executable, __file__, "--peer", json.dumps([shape, kind, threads])]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **pipes)

    def turn(self, first, steps):
        """What Ours.turn returns; None if it could not."""
        try:
            print(first, steps, file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            return None

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def torch_peer(shape, kind, threads):
    """Take steps in PyTorch: read "first steps" lines, print for each what Ours.turn returns."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    if kind == "eager, malloc":
        gpt.keep_freed_memory()
    B, T, L, H, C, V = shape
    ids, model = tokens_of(shape), gpt.GPT(config_of(shape))
    p = {name: torch.tensor(w, requires_grad=True) for name, w in model.params.items()}
    layers = []
    for i in range(L):
        start = f"transformer.h.{i}."
        layers.append({k[len(start) :]: v for k, v in p.items() if k.startswith(start)})

    def loss_of(idx, targets):
        x = p["transformer.wte.weight"][idx] + p["transformer.wpe.weight"][:T]
        for w in layers:
            h = F.layer_norm(x, (C,), w["ln_1.weight"])
            q, k, v = (h @ w["attn.c_attn.weight"]).view(B, T, 3, H, C // H).unbind(2)
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + y.transpose(1, 2).reshape(B, T, C) @ w["attn.c_proj.weight"]
            h = F.layer_norm(x, (C,), w["ln_2.weight"]) @ w["mlp.c_fc.weight"]
            x = x + F.gelu(h, approximate="tanh") @ w["mlp.c_proj.weight"]
        logits = F.layer_norm(x, (C,), p["transformer.ln_f.weight"]) @ p["transformer.wte.weight"].T
        return F.cross_entropy(logits.view(-1, V), targets.view(-1))

    groups = [
        {"params": [t for t in p.values() if t.ndim == 2], "weight_decay": 0.1},
        {"params": [t for t in p.values() if t.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), fused=True)
    if kind == "compiled":
        loss_of = torch.compile(loss_of)
    for line in sys.stdin:
        first, steps = map(int, line.split())
        times = []
        for step in range(first, first + steps):
            started = time.perf_counter()
            idx, targets, _ = gpt.draw_batch(ids, T, B, 0, step)
            idx, targets = (torch.from_numpy(a.astype(np.int64)) for a in (idx, targets))
            loss = loss_of(idx, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(p.values(), 1.0)
            optimizer.step()
            loss = loss.item()
            times.append(1e3 * (time.perf_counter() - started))
        print(json.dumps([times, loss]), flush=True)


def steps_in_turns(players, rounds, steps):
    """{name: times}, {name: last losses} of players who take `steps` steps in each round, in turns.

    A first round warms up and is not counted. A player who fails is left out. Also the machine's
    speed, once a round.
    """

    def side(player):
        return lambda r: player.turn(r * steps, steps)

    sides = {name: side(player) for name, player in players.items()}
    found, speed = common.take_turns(sides, rounds)
    times = {name: [ms for turn in turns for ms in turn[0]] for name, turns in found.items()}
    losses = {name: [turn[1] for turn in turns] for name, turns in found.items()}
    return times, losses, speed


# %% Memory


def proportional_bytes(pids):
    """Memory of processes in bytes, what they share counted once (Linux)."""
    kilobytes = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                kilobytes += int(line.split()[1])
    return 1024 * kilobytes


def memory_of(shape, workers, steps):
    """In a fresh process: bytes before the model and after some and after all steps.

    What a step frees stays in the process (keep_freed_memory), so that what is there after a step
    is the peak.
    """
    before = proportional_bytes([os.getpid()])
    ours = Ours(shape, workers)
    pids = [os.getpid(), *getattr(ours.team, "pids", {}).values()]
    found = [before]
    for part in (max(10, steps // 10), steps):
        ours.turn(0, part)
        found.append(proportional_bytes(pids))
    ours.close()
    return found


def measured_memory(shape, workers, steps=20):
    """memory_of in another process; None where /proc has no smaps_rollup."""
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    command = [sys.executable, __file__, "--memory", json.dumps([shape, workers, steps])]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


# %% Where the time goes

PARTS = {
    "products": ["linear_forward", "linear_backward"],
    "attention": ["attention_forward", "attention_backward"],
    "GELU": ["gelu_forward", "gelu_backward"],
    "norms": ["norm_forward", "norm_backward"],
    "loss": ["cross_entropy_forward", "cross_entropy_backward"],
    "waiting": ["wait_until"],
}


def parts_of(ours, steps):
    """Milliseconds a step that the leader spends in each part; the optimizer is timed, too."""
    spent = defaultdict(float)

    def timed(function, part):
        def wrapper(*args, **named):
            started = time.perf_counter()
            result = function(*args, **named)
            spent[part] += 1e3 * (time.perf_counter() - started)
            return result

        return wrapper

    plain = {name: getattr(gpt, name) for names in PARTS.values() for name in names}
    optimizer_step = gpt.AdamW.step
    for part, names in PARTS.items():
        for name in names:
            setattr(gpt, name, timed(plain[name], part))
    gpt.AdamW.step = timed(optimizer_step, "optimizer")
    times, _ = ours.turn(0, steps)
    for name, function in plain.items():
        setattr(gpt, name, function)
    gpt.AdamW.step = optimizer_step
    found = {part: value / steps for part, value in spent.items()}
    found["the rest"] = sum(times) / steps - sum(found.values())
    return found


# %% The report


def compare(args, workers, results):
    """The first two tables."""
    kinds = ["eager"] if args.fast else ["eager", "eager, malloc", "compiled"]
    if not common.present("torch"):
        kinds = []
    columns = [f"{workers} processes", "one process", *(f"torch {kind}" for kind in kinds)]
    print("\nmilliseconds a step, median (middle half); ratios: ours in processes / PyTorch")
    print(
        f"{'':2} {'B, T, L, H, C, V':26}",
        *(f"{c:24}" for c in columns),
        "ratios, GF/s, losses apart",
    )
    for name in args.shapes:
        shape = SHAPES[name]
        players = {"ours": Ours(shape, workers), "alone": Ours(shape, 1)}
        players |= {kind: Peer(shape, kind, workers) for kind in kinds}
        try:
            steps = max(3, round(args.seconds * 1e12 / 20 / operations(shape)))
            times, losses, speed = steps_in_turns(players, args.rounds, steps)
            parts = parts_of(players["ours"], steps)
        finally:
            for player in players.values():
                player.close()
        row = {"shape": shape, "speed": speed, "parts": parts}
        row |= {f"{player}_ms": statistics.median(t) for player, t in times.items()}
        cells = [common.spread(times[k]) if k in times else "-" for k in ("ours", "alone", *kinds)]
        row["ratios"] = {k: row["ours_ms"] / row[f"{k}_ms"] for k in kinds if k in times}
        print(
            f"{name:2} {', '.join(map(str, shape)):26}", *(f"{cell:24}" for cell in cells), end=" "
        )
        print(*(f"{ratio:.2f}" for ratio in row["ratios"].values()), end="")
        apart = [abs(x - y) for x, y in zip(losses["ours"], losses.get("eager", []))]
        print(f"  {speed:.0f}  {max(apart, default=math.nan):.0e}", flush=True)
        for kind in set(kinds) - set(times):
            print(f"   PyTorch {kind} did not run here.")
        memory = measured_memory(shape, workers)
        if memory:
            row["bytes"], row["predicted"] = memory[-1] - memory[0], predicted_bytes(shape, workers)
        results[name] = row

    print(
        f"\nours in {workers} processes: GF/s counts the products alone, beside the machine's own"
    )
    print(f"{'':2} {'ms':>7} {'tokens/s':>9} {'GF/s':>6} {'share':>6}", end="")
    print(f" {'MB':>6} {'formula':>8} {'ratio':>6}   ", end="")
    print("milliseconds in: " + ", ".join([*PARTS, "optimizer", "the rest"]))
    for name, row in results.items():
        B, T = row["shape"][:2]
        done = operations(row["shape"]) / row["ours_ms"] / 1e6
        line = f"{name:2} {row['ours_ms']:7.1f} {1e3 * B * T / row['ours_ms']:9,.0f} {done:6.0f}"
        line += f" {done / row['speed']:6.0%}"
        if "bytes" in row:
            line += f" {row['bytes'] / 1e6:6.0f} {row['predicted'] / 1e6:8.0f}"
            line += f" {row['bytes'] / row['predicted']:6.2f}"
        parts = (f"{row['parts'].get(part, 0):.1f}" for part in [*PARTS, "optimizer", "the rest"])
        print(line + "   " + ", ".join(parts))


def growth(args, workers, results):
    """The third table: one size doubles."""
    shapes = {"base": BASE}
    for i, size in enumerate("BTLHCV"):
        if size != "H":
            shapes[size] = tuple(2 * n if i == j else n for j, n in enumerate(BASE))
    players = {name: Ours(shape, workers) for name, shape in shapes.items()}
    try:
        times, _, _ = steps_in_turns(players, args.rounds, args.doubling_steps)
    finally:
        for player in players.values():
            player.close()
    print(f"\none size of {BASE} doubled: time and operations, as multiples")
    base = statistics.median(times["base"])
    for name, shape in shapes.items():
        if name != "base":
            time_ratio = statistics.median(times[name]) / base
            counted = operations(shape) / operations(BASE)
            results[name] = [time_ratio, counted]
            print(f"   {name}: time x {time_ratio:.2f}, operations x {counted:.2f}")


def endurance(args, workers):
    """Whether memory grows: bytes before, after some and after all of many steps."""
    memory = measured_memory(BASE, workers, args.memory_steps)
    if memory:
        _, some, all_of_them = memory
        growth = all_of_them / some - 1
        verdict = "grows" if growth > GROWTH else "does not grow"
        print(f"\nmemory of {BASE} {verdict}: {some / 1e6:.1f} MB after some steps, ", end="")
        print(f"{all_of_them / 1e6:.1f} MB after {args.memory_steps:,} more ({growth:+.1%})")
    return memory


def main():
    parser = common.make_parser(__doc__, rounds=5)
    parser.add_argument("--shapes", default="abcd", help="which of a, b, c, d [all]")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn, about [1]")
    parser.add_argument("--workers", type=int, help="processes [the usable cores]")
    parser.add_argument("--doubling-steps", type=int, default=10, help="a turn, sizes doubled [10]")
    parser.add_argument("--memory-steps", type=int, default=1000, help="of the last table [1000]")
    parser.add_argument("--peer", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=json.loads, help=argparse.SUPPRESS)
    fast = {"rounds": 1, "shapes": "a", "seconds": 0.05, "doubling_steps": 1, "memory_steps": 20}
    args = common.parse(parser, fast)
    if args.peer:
        return torch_peer(*args.peer)
    if args.memory:
        return print(json.dumps(memory_of(*args.memory)))
    workers = args.workers or gpt.usable_cores()
    record = {"machine": common.machine("torch"), "workers": workers}
    shapes, doubled = {}, {}
    compare(args, workers, shapes)
    growth(args, workers, doubled)
    record |= {"shapes": shapes, "doubled": doubled, "memory_1000": endurance(args, workers)}
    common.keep(args, "train_step", record)


if __name__ == "__main__":
    main()
