"""A training step of capstone_gpt.py: how fast, beside what, and where its time and memory go.

    python benchmarks/train_step.py [--shapes abcd] [--rounds 5] [--workers N]

Four tables. The first stands beside the same model in PyTorch, from the same weights on the same
batches: eager as it comes, eager with the malloc setting that ours makes for itself (it is nothing
of ours, and PyTorch gains by it), and compiled where that works. Each lives in a process of its
own, they take turns, and medians are shown with the range of the middle half, because shared cores
change speed within seconds. The others are ours alone: arithmetic against this machine's matrix
products, measured in the same minutes, and memory against a formula; where the time goes; and how
it grows when one size doubles. A JSON line is added to benchmarks/results/train_step.jsonl. Without
torch, ours alone.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import capstone_gpt as gpt

RESULTS = Path(__file__).resolve().parent / "results" / "train_step.jsonl"

SHAPES = {  # name: (B, T, layers, heads, channels, vocabulary)
    "a": (12, 64, 4, 4, 128, 65),  # nanoGPT's CPU setting
    "b": (8, 128, 4, 4, 256, 65),
    "c": (16, 256, 6, 6, 384, 65),
    "d": (4, 256, 4, 4, 256, 8192),
}
BASE = (8, 64, 4, 4, 128, 1024)  # what is doubled, one size at a time
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
        time.sleep(0.05)  # the others' threads fall asleep
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
        time.sleep(0.05)
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


def gigaflops():
    """This machine's float32 matrix products on all cores, in 10⁹ operations a second, now."""
    a = np.ones((1536, 1536), np.float32)
    a @ a
    started = time.perf_counter()
    for _ in range(3):
        a @ a
    return 3 * 2 * len(a) ** 3 / (time.perf_counter() - started) / 1e9


def take_turns(players, rounds, steps):
    """{name: (times, last losses)} of players who take `steps` steps in each round, in turns.

    A first round warms up and is not counted. A player who fails is left out. Also the machine's
    speed, once a round.
    """
    times, losses, speeds = defaultdict(list), defaultdict(list), []
    for r in range(rounds + 1):
        speeds.append(gigaflops())
        for name in list(players):
            found = players[name].turn(r * steps, steps)
            if found is None:
                players.pop(name).close()
                continue
            if r > 0:
                times[name] += found[0]
                losses[name].append(found[1])
    return times, losses, statistics.median(speeds)


def quartiles(times):
    """The median and the middle half, as text."""
    low, middle, high = statistics.quantiles(times, n=4)
    return f"{middle:8.1f} ({low:.1f}-{high:.1f})"


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
    """In a fresh process: bytes before the model and after some and after all steps."""
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


def processor():
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def compare(args, workers, results):
    """The first two tables."""
    torch = importlib.util.find_spec("torch") is not None
    kinds = ["eager", "eager, malloc", "compiled"] if torch else []
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
            times, losses, speed = take_turns(players, args.rounds, steps)
            parts = parts_of(players["ours"], steps)
        finally:
            for player in players.values():
                player.close()
        row = {"shape": shape, "speed": speed, "parts": parts}
        row |= {f"{player}_ms": statistics.median(t) for player, t in times.items()}
        cells = [quartiles(times[k]) if k in times else "-" for k in ("ours", "alone", *kinds)]
        row["ratios"] = {k: row["ours_ms"] / row[f"{k}_ms"] for k in kinds if k in times}
        print(
            f"{name:2} {', '.join(map(str, shape)):26}", *(f"{cell:24}" for cell in cells), end=" "
        )
        print(*(f"{ratio:.2f}" for ratio in row["ratios"].values()), end="")
        apart = [abs(x - y) for x, y in zip(losses["ours"], losses.get("eager", []))]
        print(f"  {speed:.0f}  {max(apart, default=math.nan):.0e}", flush=True)
        memory = measured_memory(shape, workers)
        if memory:
            row["bytes"], row["predicted"] = memory[-1] - memory[0], predicted_bytes(shape, workers)
        results[name] = row

    print(
        f"\nours in {workers} processes: GF/s counts the products alone, beside the machine's own"
    )
    print(
        f"{'':2} {'ms':>7} {'tokens/s':>9} {'GF/s':>6} {'share':>6} {'MB':>6} {'formula':>8}   ",
        end="",
    )
    print("milliseconds in: " + ", ".join([*PARTS, "optimizer", "the rest"]))
    for name, row in results.items():
        B, T = row["shape"][:2]
        done = operations(row["shape"]) / row["ours_ms"] / 1e6
        line = f"{name:2} {row['ours_ms']:7.1f} {1e3 * B * T / row['ours_ms']:9,.0f} {done:6.0f}"
        line += f" {done / row['speed']:6.0%}"
        if "bytes" in row:
            line += f" {row['bytes'] / 1e6:6.0f} {row['predicted'] / 1e6:8.0f}"
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
        times, _, _ = take_turns(players, args.rounds, 10)
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", default="abcd", help="which of a, b, c, d (default all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn, about (default 1)")
    parser.add_argument("--workers", type=int, help="processes (default: the usable cores)")
    parser.add_argument("--peer", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return torch_peer(*args.peer)
    if args.memory:
        return print(json.dumps(memory_of(*args.memory)))
    workers = args.workers or gpt.usable_cores()
    machine = {"processor": processor(), "cores": gpt.usable_cores(), "numpy": np.__version__}
    machine["python"] = platform.python_version()
    if importlib.util.find_spec("torch"):
        machine["torch"] = importlib.metadata.version("torch")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    shapes, doubled = {}, {}
    compare(args, workers, shapes)
    growth(args, workers, doubled)
    memory = measured_memory(BASE, workers, 1000)
    if memory:
        print(f"\nmemory of {BASE} after 100 steps {memory[1] / 1e6:.1f} MB, ", end="")
        print(f"after 1,000 more {memory[2] / 1e6:.1f} MB")
    record = {"date": time.strftime("%Y-%m-%d %H:%M"), "machine": machine, "workers": workers}
    record |= {"shapes": shapes, "doubled": doubled, "memory_1000": memory}
    RESULTS.parent.mkdir(exist_ok=True)
    with open(RESULTS, "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
