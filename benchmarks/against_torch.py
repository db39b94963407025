"""Training speed of capstone_gpt.py beside the same model in PyTorch, in turns on the same batches.

    python benchmarks/against_torch.py [--rounds 5] [--steps 10]

Both start from the same weights, so the losses are compared as well as the times. The machine's own
matrix product speed is printed with the result: shared cores change speed within seconds, which is
why the two take turns and medians are shown. Needs torch; says so and stops without it.
"""

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import capstone_gpt as gpt

try:
    import torch
    from torch.nn import functional as F
except ImportError:
    print("torch is not installed; this comparison needs it (pip install torch)")
    sys.exit(0)

SHAPES = {  # name: (B, T, layers, heads, channels, vocabulary)
    "a": (12, 64, 4, 4, 128, 65),
    "b": (8, 128, 4, 4, 256, 65),
    "c": (16, 256, 6, 6, 384, 65),
    "d": (4, 256, 4, 4, 256, 8192),
}


def torch_loss(p, config, idx, targets):
    """The bias-free gpt2 of capstone_gpt.py on torch tensors p, with torch's fused attention."""
    C, H, T = config.n_embd, config.n_head, idx.shape[1]
    x = p["transformer.wte.weight"][idx] + p["transformer.wpe.weight"][:T]
    for i in range(config.n_layer):
        w = {k.split(".", 3)[3]: v for k, v in p.items() if k.startswith(f"transformer.h.{i}.")}
        h = F.layer_norm(x, (C,), w["ln_1.weight"])
        q, k, v = (h @ w["attn.c_attn.weight"]).view(*idx.shape, 3, H, C // H).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + y @ w["attn.c_proj.weight"]
        h = F.layer_norm(x, (C,), w["ln_2.weight"]) @ w["mlp.c_fc.weight"]
        x = x + F.gelu(h, approximate="tanh") @ w["mlp.c_proj.weight"]
    x = F.layer_norm(x, (C,), p["transformer.ln_f.weight"])
    logits = x @ p["transformer.wte.weight"].T
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


class NumpyTrainer:
    """Steps of capstone_gpt.py."""

    def __init__(self, model):
        self.model, self.optimizer = model, gpt.AdamW(model.params)

    def step(self, idx, targets):
        loss, grads = self.model.loss_and_grads(idx, targets)
        self.optimizer.step(grads.flat, math.sqrt(grads.flat @ grads.flat), 1e-3)
        return loss


class TorchTrainer:
    """The same steps in PyTorch, with its fused AdamW."""

    def __init__(self, model):
        self.config = model.config
        self.p = {k: torch.tensor(v, requires_grad=True) for k, v in model.params.items()}
        groups = [
            {"params": [t for t in self.p.values() if t.ndim == 2], "weight_decay": 0.1},
            {"params": [t for t in self.p.values() if t.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)

    def step(self, idx, targets):
        loss = torch_loss(self.p, self.config, torch.from_numpy(idx), torch.from_numpy(targets))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.p.values(), 1.0)
        self.optimizer.step()
        return loss.item()


def gigaflops():
    """This machine's float32 matrix products, in 10⁹ operations a second, right now."""
    a = np.ones((1024, 1024), np.float32)
    a @ a
    started = time.perf_counter()
    for _ in range(5):
        a @ a
    return 5 * 2 * 1024**3 / (time.perf_counter() - started) / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps in a round")
    parser.add_argument("--shapes", default="abcd")
    args = parser.parse_args()
    torch.set_num_threads(2)
    gpt.keep_freed_memory()
    print("shape  B, T, L, H, C, V               NumPy      PyTorch   ratio   loss apart   GF/s")
    for name in args.shapes:
        B, T, L, H, C, V = SHAPES[name]
        config = gpt.GPTConfig("gpt2", V, T, L, H, C, bias=False)
        model = gpt.GPT(config)
        trainers = [TorchTrainer(model), NumpyTrainer(model)]
        rng, times, apart, speed = np.random.default_rng(0), ([], []), 0.0, []
        for _ in range(args.rounds):
            speed.append(gigaflops())
            batches = [rng.integers(0, V, (2, B, T)) for _ in range(args.steps)]
            losses = []
            for trainer, spent in zip(trainers, times):
                for idx, targets in batches:
                    started = time.perf_counter()
                    losses.append(trainer.step(idx, targets))
                    spent.append(1e3 * (time.perf_counter() - started))
            apart = max(apart, abs(losses[0] - losses[args.steps]))
        theirs, ours = map(statistics.median, times)
        shape = f"{B}, {T}, {L}, {H}, {C}, {V}"
        print(
            f"{name:6} {shape:26} {ours:7.1f} ms {theirs:9.1f} ms {ours / theirs:7.2f} "
            f"{apart:12.1e} {statistics.median(speed):6.0f}"
        )


if __name__ == "__main__":
    main()
