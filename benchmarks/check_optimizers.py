"""Walks of stage 4's optimizers, schedules and clipping beside torch's, in float64.

    python benchmarks/check_optimizers.py [--steps 200]

Both get the same random gradients; printed is the largest difference of any parameter after any
step. torch stores a weight as (out, in) and stage 4 as (in, out), so torch's Muon gets transposes:
its factor must then come out the same. It rounds to bfloat16 inside; for the comparison it is kept
in float64. torch has no Lion, so that one is compared with the formula of its paper. Needs torch;
says so without it.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import stage04_optim as s4

try:
    import torch
except ImportError:
    print("torch is not installed; this comparison needs it (pip install torch)")
    sys.exit(0)


class PaperLion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al. 2023."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                c = torch.lerp(p.grad, m, beta1)
                p -= group["lr"] * (c.sign() + group["weight_decay"] * p)
                m.lerp_(p.grad, 1 - beta2)


def difference(ours, theirs, options, steps, shapes):
    """The largest difference along two walks from one start on one series of gradients."""
    rng = np.random.default_rng(0)
    params = {f"p{i}": rng.normal(size=shape) for i, shape in enumerate(shapes)}
    turned = (lambda array: array.T) if ours is s4.Muon else (lambda array: array)
    tensors = [torch.tensor(turned(p).copy(), requires_grad=True) for p in params.values()]
    mine, other, worst = ours(params, **options), theirs(tensors, **options), 0.0
    for step in range(steps):
        mine.lr = options["lr"] * (1 + step % 3)  # a schedule
        other.param_groups[0]["lr"] = mine.lr
        grads = {name: rng.normal(size=p.shape) for name, p in params.items()}
        for tensor, g in zip(tensors, grads.values()):
            tensor.grad = torch.from_numpy(turned(g).copy())
        mine.step(grads)
        other.step()
        for tensor, p in zip(tensors, params.values()):
            worst = max(worst, float(np.abs(tensor.detach().numpy() - turned(p)).max()))
    return worst


def schedule_difference(ours, theirs, lr=0.1, steps=100):
    """The largest relative difference of a schedule from torch's scheduler."""
    optimizer, worst = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr), 0.0
    scheduler = theirs(optimizer)
    for step in range(steps):
        worst = max(worst, abs(ours(step, lr) - optimizer.param_groups[0]["lr"]) / lr)
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    steps, worst = parser.parse_args().steps, 0.0
    t, shapes = torch.optim, [(5, 3), (7,), (2, 3, 4), (1,)]
    sgd = dict(lr=0.01, momentum=0.9)
    cases = [
        (s4.SGD, t.SGD, dict(lr=0.01)),
        (s4.SGD, t.SGD, dict(lr=0.01, weight_decay=0.1)),
        (s4.SGD, t.SGD, {**sgd}),
        (s4.SGD, t.SGD, {**sgd, "nesterov": True, "weight_decay": 0.1}),
    ]
    pairs = [
        (s4.AdaGrad, t.Adagrad, 1e-2),
        (s4.RMSprop, t.RMSprop, 1e-2),
        (s4.Adam, t.Adam, 1e-3),
        (s4.AdamW, t.AdamW, 1e-3),
        (s4.Lion, PaperLion, 1e-4),
    ]
    for ours, theirs, lr in pairs:
        cases += [(ours, theirs, dict(lr=lr)), (ours, theirs, dict(lr=10 * lr, weight_decay=0.3))]
    if hasattr(t, "Muon"):
        torch.Tensor.bfloat16 = lambda self: self.clone()  # its products then stay in float64
        cases += [
            (s4.Muon, t.Muon, dict(lr=1e-3)),
            (s4.Muon, t.Muon, dict(lr=1e-2, nesterov=False, weight_decay=0.3)),
        ]
    print(f"largest difference of a parameter in {steps} steps, float64, torch {torch.__version__}")
    for ours, theirs, options in cases:
        here = [(5, 3), (3, 8), (4, 4), (1, 6)] if ours is s4.Muon else shapes
        apart = difference(ours, theirs, options, steps, here)
        worst = max(worst, apart)
        shown = ", ".join(f"{key}={value}" for key, value in options.items())
        print(f"  {ours.__name__:8} {shown:52} {apart:.1e}")

    sched = t.lr_scheduler

    def warmup(optimizer):
        rise = sched.LinearLR(optimizer, 1 / 11, 1.0, 10)
        return sched.SequentialLR(optimizer, [rise, sched.CosineAnnealingLR(optimizer, 90)], [10])

    rates = {
        "wsd, all of it decay": (
            lambda n, lr: s4.wsd(n, lr, 0, 80, 80),
            lambda o: sched.LinearLR(o, 1.0, 0.0, 80),
        ),
        "warmup_cosine, no warmup": (
            lambda n, lr: s4.warmup_cosine(n, lr, 0, 100, 0.01),
            lambda o: sched.CosineAnnealingLR(o, 100, 0.01),
        ),
        "warmup_cosine": (lambda n, lr: s4.warmup_cosine(n, lr, 10, 100), warmup),
    }
    print("largest difference of a rate, relative to its peak")
    for name, (ours, theirs) in rates.items():
        apart = schedule_difference(ours, theirs)
        worst = max(worst, apart)
        print(f"  {name:61} {apart:.1e}")

    rng = np.random.default_rng(0)
    grads = {name: rng.normal(size=shape) for name, shape in zip("abcd", shapes)}
    tensors = [
        torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads.values()
    ]
    for tensor, g in zip(tensors, grads.values()):
        tensor.grad = torch.from_numpy(g.copy())
    apart = abs(s4.clip_grad_norm(grads, 1.0) - float(torch.nn.utils.clip_grad_norm_(tensors, 1.0)))
    for tensor, g in zip(tensors, grads.values()):
        apart = max(apart, float(np.abs(tensor.grad.numpy() - g).max()))
    print(f"  {'clip_grad_norm, the norm and the gradients':61} {apart:.1e}")
    if max(worst, apart) > 1e-9:
        sys.exit("the walks differ by more than rounding")


if __name__ == "__main__":
    main()
