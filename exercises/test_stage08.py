"""Checks of the exercises of stage 8."""

import math

import judge
import numpy as np
import pytest

import stage08_dynamics as stage


def test_1(answers):
    losses, _ = stage.descend(1.9)
    mistakes = {
        "that is the loss after three steps": losses[-2],
        "that is w, not the loss": 4 * 0.9**4,
        "the loss is w²/2: it shrinks by the square of what w shrinks by": 8 * 0.9**4,
        "half of w² was asked for": 2 * losses[-1],
    }
    judge.number(answers, "ANSWER_1", losses[-1], mistakes=mistakes)
    low, high = 1.9, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        if stage.guess(stage.descend(middle)[0]) == "rate too low":
            high = middle
        else:
            low = middle
    mistakes = {
        "w shrinks by |1 - rate| a step, but the loss by its square": 1 + 0.9 ** (1 / 4),
        "there are four steps": 1 + 0.9 ** (1 / 2),
        "that is the other border: guess is right there, the rate is too low": 2 - low,
        "there are four steps, and the loss is a square": 1.9,
    }
    judge.number(answers, "ANSWER_1B", low, 4, mistakes=mistakes)


def test_2(answers):
    right = 4 * (1 - 0.9**10)
    mistakes = {
        "that is what is missing to 4": 4 * 0.9**10,
        "that is the corrected average; nobody divided": 4.0,
        "that is s₉": 4 * (1 - 0.9**9),
        "that is s₁₁": 4 * (1 - 0.9**11),
        "the new loss counts 1 - β, the old average β": 4 * (1 - 0.1**10),
    }
    judge.number(answers, "ANSWER_2", right, mistakes=mistakes)
    first = next(t for t in range(1, 1000) if 0.9**t <= 0.01)
    mistakes = {
        "at this step a little more than one per cent is still missing": first - 1,
        "one step earlier is enough": first + 1,
        "that is when it is right to ten per cent": 22,
        "1/(1-β) is how far it looks back, not when it is right": 10,
        "a whole number was asked for, the first step that suits": math.log(0.01) / math.log(0.9),
    }
    judge.number(answers, "ANSWER_2B", first, 4, mistakes=mistakes)


def test_3(answers):
    remarks = {
        "a": "then a higher rate at the end would bring the loss down; try it",
        "b": "look at the report again",
        "c": "nothing clips in this run, and |g| is above 1 at times",
        "d": "|g| stayed near 1 while the weights still moved, from step 1,666 to 4,000",
    }
    judge.choice(answers, "ANSWER_3", 3, "73a84b7e708c", remarks)


def test_4(answers, rng):
    model = stage.LanguageModel(7, 3, width=5, embed=4, seed=1)
    for rows in (6, 2, 1):
        x, y = rng.integers(7, size=(rows, 3)), rng.integers(7, size=rows)
        grads = [model.loss_and_grads(x[i : i + 1], y[i : i + 1])[1] for i in range(rows)]
        vectors = np.array([np.concatenate([a.ravel() for a in g.values()]) for g in grads])
        right = np.linalg.norm(vectors, axis=1)
        mistakes = {
            "these are squares of the lengths": right**2,
            "the mean over the batch divides each gradient by B": right / rows,
            "each row is the whole batch's gradient": np.full(
                rows, np.linalg.norm(vectors.mean(0))
            ),
            "lengths of the arrays do not add up; squares do": [
                sum(np.linalg.norm(a) for a in g.values()) for g in grads
            ],
            "these are sums of absolute values, not lengths": np.abs(vectors).sum(1),
            "these are the single losses": [
                model.loss_and_grads(x[i : i + 1], y[i : i + 1])[0] for i in range(rows)
            ],
        }
        for name in model.params:
            told = f"that is the gradient in {name} alone; all parameters count"
            mistakes[told] = [np.linalg.norm(g[name]) for g in grads]
        found = judge.call(answers, "pulls", model, x.copy(), y.copy())
        judge.array("pulls", found, right, mistakes=mistakes)


def test_5(answers, rng):
    for B, K, C in ((4, 3, 2), (2, 5, 6), (1, 1, 1)):
        x, w, b = rng.normal(size=(B, K)), rng.normal(size=(K, C)), rng.normal(size=C)
        result = judge.call(answers, "silu_forward", x, w, b)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            judge.wrong("silu_forward: expected (h, cache)")
        z = x @ w + b
        gate = 1 / (1 + np.exp(-z))
        h = z * gate
        at_h = 1 / (1 + np.exp(-h))
        mistakes = {
            "that is σ(z); SiLU is z·σ(z)": gate,
            "that is z alone; SiLU is z·σ(z)": z,
            "σ has e⁻ᶻ below, not eᶻ": z * (1 - gate),
            "the bias is missing": (x @ w) / (1 + np.exp(-(x @ w))),
        }
        judge.array("silu_forward's h", result[0], h, 1e-9, mistakes=mistakes)
        upstream = rng.normal(size=(B, C))
        found = judge.call(answers, "silu_backward", upstream.copy(), result[1])
        if not isinstance(found, (tuple, list)) or len(found) != 3:
            judge.wrong("silu_backward: expected (dx, dW, db)")
        slopes = {
            "the slope has two terms (product rule); only σ is there": gate,
            "the slope has two terms (product rule); only z·σ′ is there": z * gate * (1 - gate),
            "the slope of σ is not that of tanh, 1 - σ²": gate + z * (1 - gate**2),
            "φ′ is missing": np.ones_like(z),
            "the slope was taken at h instead of z": at_h + h * at_h * (1 - at_h),
        }

        def layer(slope, x=x, w=w, upstream=upstream):
            dz = upstream * slope
            return dz @ w.T, x.T @ dz, dz.sum(0)

        for n, name in enumerate(("dx", "dW", "db")):
            told = {sentence: layer(slope)[n] for sentence, slope in slopes.items()}
            right = layer(gate + z * gate * (1 - gate))[n]
            if name == "db":
                told["the examples' gradients add up; this is their mean"] = right / B
            judge.array(f"silu_backward's {name}", found[n], right, 1e-9, mistakes=told)


class Wrong(stage.LanguageModel):
    """A model whose gradient in one parameter is `factor` times what it should be."""

    name, factor = "W1", 1.0

    def loss_and_grads(self, x, y):
        """(mean nats, gradients, one of them wrong)."""
        loss, grads = super().loss_and_grads(x, y)
        grads[self.name] = grads[self.name] * self.factor
        return loss, grads


def test_6(answers, rng):
    judge.answer(answers, "slope_errors")
    for name, factor in (("Wo", 1.0), ("W1", 1.5), ("b2", 0.9), ("E", -1.0), ("bo", 0.0)):
        model = Wrong(6, 3, width=5, depth=2, embed=4, seed=2)
        model.name, model.factor = name, factor
        before = {k: w.copy() for k, w in model.params.items()}
        x, y = rng.integers(6, size=(9, 3)), rng.integers(6, size=9)
        found = judge.call(answers, "slope_errors", model, x, y, rng)
        if not isinstance(found, dict) or found.keys() != before.keys():
            judge.wrong(f"slope_errors returned {found!r:.60}; expected a dict of all parameters")
        if all(0.49 < error < 0.51 for k, error in found.items() if k != name):
            judge.wrong("slope_errors: all right gradients seem off by half: print the two losses")
        right = dict.fromkeys(before, 0.0)
        right[name] = abs(1 - factor) / max(1, abs(factor))
        for k, w in model.params.items():
            if not np.allclose(w, before[k], rtol=0, atol=1e-9):
                judge.wrong(f"slope_errors: after it {k} is not what it was before")
            error = judge.numeric(f"the error of {k}", found[k], "a number")
            if error.shape != () or not abs(error - right[k]) < 1e-4:
                told = f"{factor} times the right one" if k == name else "right"
                said = float(np.ravel(error)[0])
                judge.wrong(f"slope_errors: {said:.2g} for {k}, whose gradient is {told}")


def test_7(answers, rng):
    for beta, t in ((0.9, 17), (0.9, 2), (0.9, 1), (0.5, 3), (0.99, 40), (0.9, 400)):
        weights = (1 - beta) * beta ** np.arange(t) / (1 - beta**t)
        right = float(np.sqrt((weights**2).sum()))
        mistakes = {
            "that is the mean square; the root is missing": right**2,
            "that is the limit for many steps": math.sqrt((1 - beta) / (1 + beta)),
            "that is m alone, not divided by 1 - βᵗ": right * (1 - beta**t),
            "the weights' squares add up, not the weights: the gradients are independent": 1.0,
            "that is the sum of the weights; squares add up, since noise is independent": 1
            - beta**t,
            "that is step t - 1: the first step has t = 1": float(
                np.sqrt((beta ** (2 * np.arange(t - 1))).sum())
                * (1 - beta)
                / (1 - beta ** max(t - 1, 1))
            ),
        }
        found = judge.call(answers, "step_length", beta, t)
        judge.array(f"step_length({beta}, {t})", found, right, 1e-9, mistakes=mistakes)


def test_8(answers, rng):
    names = ["Var(W)", "rms"]
    z = (np.arange(200_000) + 0.5) / 25_000  # 0 to 8, in standard deviations
    density = np.exp(-z * z / 2) / 25_000 / math.sqrt(2 * math.pi)
    half = float((z * z * density).sum())  # E[z²] of the half above 0
    for a, K, layers in ((rng.uniform(0.3, 0.9), 9, 5), (0.2, 50, 8), (0.0, 64, 1)):
        kept = half + float((a * z) @ (a * z * density))
        mistakes = {
            names[0]: {
                "that is for ReLU; the leak lets something through": 2 / K,
                "that keeps a layer without φ": 1 / K,
                "below 0 the *square* counts: a², not a": 2 / ((1 + a) * K),
                "φ makes the signal smaller, so W must be larger": kept / K,
                "that is the standard deviation": math.sqrt(1 / (kept * K)),
                "that is for a single input; a sum of K terms is K times as large": 1 / kept,
                "half of the z are above 0": 1 / ((1 + a * a) * K),
            },
            names[1]: {
                "that is the mean square; rms is its root": kept**layers,
                "that is one layer": math.sqrt(kept),
                "below 0 the *square* counts: a², not a": ((1 + a) / 2) ** (layers / 2),
                "that is upside down: the signal shrinks": kept ** (-layers / 2),
            },
        }
        found = judge.call(answers, "leaky", float(a), K, layers)
        right = [1 / (kept * K), kept ** (layers / 2)]
        judge.entries(f"leaky({a:.3g}, {K}, {layers})", found, names, right, 5, mistakes)


def test_9(answers):
    judge.answer(answers, "ANSWER_9")
    x, y, size = stage.corpus("stories", 8)
    for name, activation in (("ANSWER_9", "relu"), ("ANSWER_9B", "tanh")):
        model = stage.LanguageModel(
            size, 8, 32, embed=8, activation=activation, recurrent=True, gain=3, seed=0
        )
        h, dh = model.probe(x[:256], y[:256])["h1"]
        lengths = np.linalg.norm(dh, axis=(0, 2))
        reach = lengths[0] / lengths[-1]
        states = np.linalg.norm(h, axis=(0, 2))
        mistakes = {
            "eight times have seven steps between them": reach ** (1 / 8),
            "that is how much it grows over all steps; γ is for one": reach,
            "that is upside down: γ leads from the last time back to the first": reach ** (-1 / 7),
            "those are the states h; the gradients are the second of the pair": (
                states[0] / states[-1]
            )
            ** (1 / 7),
        }
        judge.number(answers, name, reach ** (1 / 7), mistakes=mistakes)
    share = stage.saturated_units(h)
    last = stage.saturated_units(h[:, -1])
    mistakes = {
        "that is the share of entries above the threshold; a unit counts or not": float(
            np.mean(np.abs(h) > 0.97)
        ),
        "all times count, not the last alone": last,
        "those are the units that are not saturated": 1 - share,
    }
    judge.number(answers, "ANSWER_9C", share, 2, mistakes=mistakes)


def test_10(answers, rng):
    for V, T, hidden, noise in ((5, 4, (0, 2), 0.1), (7, 3, (1, 2), 0.4), (2, 2, (0, 1), 0.0)):
        x = rng.integers(V, size=(1000, T))
        y = x[:, list(hidden)].sum(1) % V
        drawn = rng.random(len(y)) < noise
        y[drawn] = rng.integers(V, size=drawn.sum())
        found = judge.call(answers, "pair_leak", x.copy(), y.copy(), V, rng)
        if not isinstance(found, (tuple, list)) or len(found) != 3:
            judge.wrong(f"pair_leak returned {found!r:.60}; expected (i, j, share)")
        *pair, share = found
        if sorted(pair) == list(hidden) and list(pair) != list(hidden):
            judge.wrong(f"pair_leak returned the columns {tuple(pair)}; expected i < j")
        if list(pair) != list(hidden):
            judge.wrong(f"pair_leak names the columns {tuple(pair)!r:.40}; y comes from others")
        entropy = stage.unigram_entropy(y)
        i, j = hidden
        joint = x[:, i] * V + x[:, j]
        known = stage.information(joint, y, V)
        chance = np.mean([stage.information(joint, rng.permutation(y), V) for _ in range(9)])
        right = (known - chance) / (entropy - chance)
        mistakes = {
            "that is I, in nats; the share was asked for": known,
            "that is I/H: what chance shows is not taken off": known / entropy,
            "I₀ is to be taken off H, too": (known - chance) / entropy,
        }
        judge.array("pair_leak's share", float(share), right, 0.025, mistakes=mistakes)


@pytest.mark.project
def test_12(answers):
    with np.errstate(all="ignore"):
        result = judge.call(answers, "heal")
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        judge.wrong("heal: expected (model, history)")
    model, history = result
    if not isinstance(model, stage.LanguageModel) or not isinstance(history, stage.History):
        judge.wrong("heal: expected a LanguageModel and its Monitor's History")
    if len(history.step) < 100 or len(history.probes) < 3:
        judge.wrong("heal: the history has too few readings; is the Monitor called at every step?")
    first = stage.diagnose(history)[0]
    if first.name != stage.NOTHING:
        judge.wrong(f"diagnose says: {first.name} ({first.evidence})")
    x, y, _ = stage.corpus("stories", 8)
    split = int(0.9 * (len(y) + 8))
    nats = model.loss_and_grads(x[split:], y[split:])[0]
    if not nats < 1.9:
        judge.wrong(f"diagnose finds nothing, but the held-out tenth costs {nats:.2f} nats")
