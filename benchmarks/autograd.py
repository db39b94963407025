"""How fast is stage 2's Value, a number that remembers how it was made, beside micrograd's?

    python benchmarks/autograd.py [--samples 100] [--hidden 16,16] [--steps 2] [--rounds 7] [--fast]

The task is micrograd's own demo: two moons, an MLP of 2 to 16 to 16 to 1 with relu, the loss of a
support vector machine and a penalty on the squared weights. Both sides run the same lines below
with their own Value and MLP, from the same weights on the same points, in turns. A step is
the forward pass, which builds the graph, and the backward pass, which sweeps it. All losses and
gradients must agree to 1e-9, else the exit status is 1.

Fair: no library computes anything, both are plain Python. Unfair to ours: it checks what it is
given (bases, the number of inputs), and has an order of its own instead of the recursion with which
micrograd visits a graph, and which ends at a chain of about a thousand. Unfair to micrograd: its
nodes hold functions that hold the nodes, so its graphs have cycles, and Python's collector looks at
them again and again while they grow. That is a part of its price, but not of its arithmetic; so
each side also takes its turns with the collector switched off. What is left at the end of a turn
is collected before the next one and counts for none.
"""

import functools
import gc
import sys
import time

import common
import numpy as np

import stage02_autograd as stage

TOLERANCE = 1e-9  # relative; both compute in float64, in different orders


def moons(n, rng, noise=0.1):
    """Two half circles that reach into each other: points (n, 2) and their labels -1 or 1."""
    upper = np.arange(n) % 2 == 0
    angle = rng.uniform(0, np.pi, n)
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    points = np.stack([x, y], axis=1) + rng.normal(0, noise, (n, 2))
    return points.tolist(), np.where(upper, -1, 1).tolist()


def loss_of(Value, model, points, labels):
    """micrograd's demo: the mean of max(0, 1 - label·score), and 10⁻⁴ times the squared weights."""
    inputs = [[Value(x) for x in point] for point in points]
    scores = [model(x) for x in inputs]
    losses = [(1 + -label * score).relu() for label, score in zip(labels, scores)]
    penalty = 1e-4 * sum(p * p for p in model.parameters())
    return sum(losses) * (1.0 / len(losses)) + penalty


class Side:
    """One of the two: its Value, its model, and what it found last."""

    def __init__(self, Value, model, points, labels):
        self.Value, self.model = Value, model
        self.points, self.labels = points, labels

    def turn(self, steps, collector=True):
        """Milliseconds a step, forward and backward, with or without Python's collector."""
        gc.collect()  # what the other side left
        if not collector:
            gc.disable()
        forward = backward = 0.0
        for _ in range(steps):
            self.model.zero_grad()
            started = time.perf_counter()
            loss = loss_of(self.Value, self.model, self.points, self.labels)
            built = time.perf_counter()
            loss.backward()
            self.value = loss.data
            del loss  # and with it our graph; micrograd's waits for the collector
            forward += built - started
            backward += time.perf_counter() - built
        gc.enable()
        return 1e3 * forward / steps, 1e3 * backward / steps

    def gradients(self):
        return np.array([p.grad for p in self.model.parameters()])


def make_sides(args):
    """{name: Side} with the same weights; micrograd's is left out if it is not installed."""
    points, labels = moons(args.samples, np.random.default_rng(args.seed))
    widths = [*args.hidden, 1]
    ours = stage.MLP(2, widths, seed=args.seed)
    sides = {"ours": Side(stage.Value, ours, points, labels)}
    if common.present("micrograd"):
        from micrograd.engine import Value
        from micrograd.nn import MLP

        theirs = MLP(2, widths)
        for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
            their.data = mine.data
        sides["micrograd"] = Side(Value, theirs, points, labels)
    return sides


def agreement(sides):
    """The largest relative difference of the loss and of any gradient."""
    ours, theirs = sides["ours"], sides["micrograd"]
    mine, their = ours.gradients(), theirs.gradients()
    of_gradients = np.abs(mine - their).max() / np.abs(their).max()
    return max(float(of_gradients), abs(ours.value - theirs.value) / abs(theirs.value))


def take_turn(side, steps, collector, _):
    """side.turn, whatever the number of the round."""
    return side.turn(steps, collector)


def main():
    parser = common.make_parser(__doc__, rounds=7)
    parser.add_argument("--samples", type=int, default=100, help="points [100]")
    about = "widths of the hidden layers [16,16]"
    parser.add_argument("--hidden", type=common.whole_numbers, default=[16, 16], help=about)
    parser.add_argument("--steps", type=int, default=2, help="a turn [2]")
    parser.add_argument("--seed", type=int, default=0, help="of weights and points [0]")
    args = common.parse(parser, {"rounds": 2, "samples": 20, "steps": 1})
    record = {"machine": common.machine("micrograd"), "samples": args.samples}
    sides = make_sides(args)
    turns = {}
    for collector in (True, False):
        for name, side in sides.items():
            turns[name, collector] = functools.partial(take_turn, side, args.steps, collector)
    found, _ = common.take_turns(turns, args.rounds)
    ours = sides["ours"]
    nodes = stage.topological_order(loss_of(ours.Value, ours.model, ours.points, ours.labels))
    print(f"\nMLP of 2, {', '.join(map(str, args.hidden))}, 1 on {args.samples} points: ", end="")
    print(f"{len(nodes):,} Values. Milliseconds a step, median (middle half)")
    print(f"{'':28}{'forward':24}{'backward':24}both")
    medians, record["rows"] = {}, []
    for (name, collector), times in found.items():
        forward, backward = zip(*times)
        both = [f + b for f, b in times]
        medians[name, collector] = common.quartiles(both)[1]
        columns = [common.spread(ms) for ms in (forward, backward, both)]
        label = name if collector else f"{name}, no collector"
        print(f"{label:28}{columns[0]:24}{columns[1]:24}{columns[2]}")
        record["rows"].append([label, *map(common.quartiles, (forward, backward, both))])
    apart = 0.0
    if "micrograd" in sides:
        ratios = [medians["ours", c] / medians["micrograd", c] for c in (True, False)]
        record["ratios"], record["apart"] = ratios, agreement(sides)
        apart = record["apart"]
        same = "agree" if apart < TOLERANCE else "DO NOT AGREE"
        print(f"ours takes {ratios[0]:.2f} of micrograd's time, without collector {ratios[1]:.2f};")
        print(f"loss and gradients {same}: {apart:.0e} apart, relative to the largest")
    common.keep(args, "autograd", record)
    return 0 if apart < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
