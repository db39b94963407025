"""Checks of the exercises of stage 3."""

import functools
import math

import judge
import numpy as np
import pytest

import stage03_nlm as stage


def test_1(answers):
    ids, _ = stage.encode("\naa\nb\n")
    counts = np.zeros((3, 3))
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    W = stage.learn_table(counts, 1, 3.0)
    pairs, n_h = counts.sum(), counts.sum(axis=1, keepdims=True)
    by_rows = W * pairs / n_h
    mistakes = {
        "that is a step uphill: W - learning_rate·(expected - counted)": -W,
        "the slopes are divided by the number of pairs": W * pairs,
        "the slopes are divided by the number of all pairs, not by N(h)": by_rows,
        "that is the step at the learning rate 1": W / 3,
        "these are the slopes dW; W is what a step of them leaves": -W / 3,
        "these are the counts": counts,
        "these are the probabilities of the counted table": counts / n_h,
    }
    judge.array("ANSWER_1", judge.answer(answers, "ANSWER_1"), W, 0.006, mistakes=mistakes)
    p = (counts / n_h)[ids[:-1], ids[1:]]
    mistakes = {
        "that is the loss before the first step": math.log(3),
        "this is the sum; the mean over the pairs was asked for": -np.log(p).sum(),
        "the mean is over the pairs, and there are not four of them": -np.log(p).sum() / 4,
        "that is the mean over the rows; the mean over the pairs was asked for": math.log(4) / 3,
        "that is -ln of the mean probability; the mean of -ln was asked for": -math.log(p.mean()),
    }
    judge.number(answers, "ANSWER_1B", -np.log(p).mean(), mistakes=mistakes, unit="nats")


def test_2(answers):
    def size(n, V=27, D=10, K=100):
        return sum(v.size for v in stage.NeuralLM(V, n, D, K).params.values())

    three, V, D, K = size(3), 27, 10, 100
    mistakes = {
        "the biases d and b are numbers, too": three - K - V,
        "b is a bias, too": three - V,
        "d is a bias, too": three - K,
        "C is one table, the same for every place": three + 2 * V * D,
        "C itself is learned, too": three - V * D,
        "x has n·D numbers, so H has more rows than D": three - 2 * D * K,
        "C has a row for each symbol, of D numbers": three - V * D + V,
    }
    judge.number(answers, "ANSWER_2", three, digits=6, mistakes=mistakes)
    mistakes = {
        "that is how many it has then; how many more?": size(4),
        "C does not grow: a place more uses the same table": size(4) - three + V * D,
        "that is how many numbers x has more; H has K for each": D,
        "that is how many times a table of n-grams grows": V,
    }
    judge.number(answers, "ANSWER_2B", size(4) - three, digits=6, mistakes=mistakes)


def test_3(answers, rng):
    for total in (1.0, 0.3, 2.5):
        z, y = rng.normal(size=6), total * rng.dirichlet(np.ones(6))

        def loss(z=z, y=y):
            return float(np.sum(y * (stage.log_sum_exp(z) - z)))

        p = stage.softmax(z)
        mistakes = {
            "the shares are missing: which of them stands before LSE(z)?": p - 1,
            "∂LSE/∂zᵢ is pᵢ": y.sum() - y,
        }
        if total != 1:
            mistakes[f"p - y is right if the shares add up to 1; here they add up to {total}"] = (
                p - y
            )
            mistakes["the shares were made to add up to 1; they count as they are"] = p - y / total
        mistakes["this is the loss's change in p, not in z"] = -y / p
        found = judge.call(answers, "soft_gradient", z.copy(), y.copy())
        judge.array("soft_gradient", found, judge.slopes(loss, z), 1e-6, mistakes=mistakes)


def test_4(answers, rng):
    name = "log_sum_exp"

    def check(z, what):
        with np.errstate(all="ignore"):
            found = judge.call(answers, name, z)
        if np.shape(found) == (len(z), 1) and not np.all(np.isfinite(found)):
            strange = np.ravel(found)[~np.isfinite(np.ravel(found))][0]
            judge.wrong(f"{name} of {what} gives {strange}")
        tolerance = 1e-6 if z.dtype == np.float32 else 1e-12
        judge.array(f"{name} of {what}", found, stage.log_sum_exp(z), tolerance)

    z = rng.normal(size=(4, 5))
    check(z, "random scores")
    check(z + 2000, "scores near 2,000")
    check(z - 2000, "scores near -2,000")
    check(z + np.array([[0.0], [-2000.0], [3000.0], [5.0]]), "rows that differ much, together")
    check((z + np.array([[0], [-200], [0], [9]])).astype(np.float32), "the same in float32")


def direct_loss(params, C_hidden, C_direct, X, Y):
    """Mean nats of z = b + x·W + h·U, with a C of its own for each of the two uses of x."""
    x = C_hidden[X].reshape(len(X), -1)
    h = np.tanh(params["d"] + x @ params["H"])
    z = params["b"] + C_direct[X].reshape(len(X), -1) @ params["W"] + h @ params["U"]
    return float(np.mean(stage.log_sum_exp(z)[:, 0] - z[np.arange(len(Y)), Y]))


def test_5(answers, rng):
    name = "direct_gradients"
    for N, V, n, D, K in ((5, 4, 2, 3, 3), (1, 3, 1, 2, 2)):
        shapes = {"C": (V, D), "H": (n * D, K), "d": (K,), "U": (K, V), "b": (V,), "W": (n * D, V)}
        params = {key: rng.normal(size=shape) for key, shape in shapes.items()}
        X, Y = rng.integers(0, V, (N, n)), rng.integers(0, V, N)
        given = {key: value.copy() for key, value in params.items()}
        found = judge.call(answers, name, given, X, Y)
        pair = isinstance(found, (tuple, list)) and len(found) == 2
        if not pair or not isinstance(found[1], dict):
            judge.wrong(f"{name}: expected a pair, the loss and a dict of gradients")
        loss, grads = found
        C = params["C"]
        right = direct_loss(params, C, C, X, Y)
        mistakes = {"this is without x·W": direct_loss(params, C, 0 * C, X, Y)}
        judge.array(f"{name}: the loss", loss, right, n=N, mistakes=mistakes)
        if set(grads) != set(shapes):
            judge.wrong(f"{name} returns gradients of {', '.join(sorted(grads))}, not of all six")
        for key in ("W", "U", "b", "H", "d"):
            f = functools.partial(direct_loss, params, C, C, X, Y)
            expected = judge.slopes(f, params[key])
            judge.array(f"{name}: the gradient of {key}", grads[key], expected, 1e-6, n=N)
        moved = C.copy()
        by_hidden = judge.slopes(functools.partial(direct_loss, params, moved, C, X, Y), moved)
        by_direct = judge.slopes(functools.partial(direct_loss, params, C, moved, X, Y), moved)
        mistakes = {
            "x is used twice; what comes back through W is missing": by_hidden,
            "x is used twice; what comes back through H is missing": by_direct,
        }
        expected = by_hidden + by_direct
        judge.array(f"{name}: the gradient of C", grads["C"], expected, 1e-6, mistakes=mistakes)


def test_6(answers):
    remarks = {
        "a": "print the most frequent contexts",
        "b": "counting, which takes no steps and has no such remedy, shows the same",
        "c": "δ is the same for every count, and the network has no δ",
        "d": "look at the column `share`: they make two fifths of the held-out places",
    }
    judge.choice(answers, "ANSWER_6", 6, "294bda7d13fc", remarks)


@functools.cache
def rise_by_shuffling():
    """Bits by which the loss rises when a place is shuffled, for places 0 to 3; then all of X."""
    ids, _ = stage.encode((stage.DATA / "stories.txt").read_text("utf-8"))
    model = stage.NeuralLM(61, 4, 16, 64, seed=0)
    stage.train(model, *stage.make_examples(ids[:20_000], 4), 1000, seed=0)
    X, Y = stage.make_examples(ids[20_000:25_000], 4)
    order = np.random.default_rng(1).permutation(len(X))
    rises = []
    for place in (0, 1, 2, 3, slice(None)):
        shuffled = X.copy()
        shuffled[:, place] = X[order][:, place]
        rises.append((model.loss(shuffled, Y) - model.loss(X, Y)) / math.log(2))
    return rises


def test_7(answers):
    judge.answer(answers, "ANSWER_7")  # before the work
    first, second, third, last, every = rise_by_shuffling()
    mistakes = {
        "that is the place at the other end, the one furthest back": first,
        "that is the second place; the last one stands nearest to the target": second,
        "that is the third place; the last one is X[:, 3]": third,
        "that is what shuffling all four places costs": every,
    }
    judge.measured(answers, "ANSWER_7", last, 0.06, mistakes, "bits")


def lowest(loss):
    """Where a valley over 0..1 is lowest, by comparing its thirds."""
    low, high = 0.0, 1.0
    for _ in range(80):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return (low + high) / 2


def test_8(answers, rng):
    name = "best_weight"
    ones, small = np.full(5, 0.9), np.full(5, 0.1)
    cases = [(ones, small), (small, ones)]
    for N, share in ((300, 0.3), (2000, 0.8), (50, 0.5)):
        p, q = rng.dirichlet(np.ones(4), N), rng.dirichlet(np.ones(4), N)
        mixed = share * p + (1 - share) * q
        came = np.array([rng.choice(4, p=row) for row in mixed])
        cases.append((p[np.arange(N), came], q[np.arange(N), came]))
    for p, q in cases:
        w = judge.call(answers, name, p.copy(), q.copy())
        if (
            np.ndim(judge.numeric(name, w, "one number"))
            or not np.isfinite(w)
            or not -1e-6 <= w <= 1 + 1e-6
        ):
            judge.wrong(f"{name} returns {w!r:.60}; expected one number from 0 to 1")

        def loss(w, p=p, q=q):
            return -np.mean(np.log(w * p + (1 - w) * q))

        best = lowest(loss)
        if abs(w - best) < 3e-6:
            continue
        if abs(1 - w - best) < 3e-6:
            judge.wrong(f"{name}: that is the weight of q; w is the weight of p")
        if abs(w - np.mean(p > q)) < 1e-9:
            judge.wrong(f"{name}: how often p is larger says nothing about by how much")
        if len(set(p)) == 1:
            judge.wrong(f"{name}: where one model is better at every place, it gets all the weight")
        if abs(w - best) < 2e-3:
            judge.wrong(f"{name}: close, but six decimals were asked for")
        direction = "larger" if best > w else "smaller"
        judge.wrong(f"{name}: among {len(p)} places, a {direction} w than {w:.3f} has a lower loss")


def test_9(answers, rng):
    for K, r in ((1, 0.5), (3, 0.2), (5, 0.6)):
        h, u, y = rng.normal(size=K), rng.normal(size=K), rng.normal()
        mean = 0.0
        for mask in np.ndindex(*(2,) * K):
            mask = np.array(mask)
            chance = np.prod(np.where(mask == 1, 1 - r, r))
            mean += chance * (np.sum(mask * h * u) / (1 - r) - y) ** 2
        penalty = mean - (np.sum(h * u) - y) ** 2
        squares = np.sum((h * u) ** 2)
        mistakes = {
            "this is the variance without the division by 1 - r": r * (1 - r) * squares,
            "Var(m) is not r; what is the mean of m²?": r * squares,
            "r and 1 - r are exchanged": (1 - r) / r * squares,
            "Var(m) = E[m²] - 1; the 1 is missing": squares / (1 - r),
            "the variances add up, so square each term, not their sum": r
            / (1 - r)
            * np.sum(h * u) ** 2,
            "each feature has its own square in it": r / (1 - r) * np.sum(u**2),
            "the deviation is not squared": np.sqrt(r / (1 - r)) * squares,
        }
        found = judge.call(answers, "dropout_penalty", h, u, r)
        if np.size(found) > 1 or np.ndim(found):
            judge.wrong(
                f"dropout_penalty returns {found!r:.60}; expected one number, for all features"
            )
        judge.array("dropout_penalty", found, penalty, 1e-9, n=K, mistakes=mistakes)


@pytest.mark.project
def test_11(answers):
    judge.answer(answers, "names_model")
    names = stage.read_names(stage.DATA / "names.txt")
    names = [names[i] for i in np.random.default_rng(1).permutation(len(names))]
    symbols = stage.encode("\n" + "".join(names))[1]
    cut, V = len(names) * 9 // 10, len(symbols)
    X, Y = stage.name_examples(names[:cut], symbols, 6)
    X_held, Y_held = stage.name_examples(names[cut:], symbols, 6)
    predict = judge.call(answers, "names_model", X.copy(), Y.copy(), V)
    try:
        P = np.asarray(predict(X_held.copy()), dtype=np.float64)
    except Exception as fault:
        judge.wrong(f"predict raised {type(fault).__name__}: {fault}")
    if P.shape != (len(Y_held), V):
        judge.wrong(f"predict returns the shape {P.shape}; expected {(len(Y_held), V)}")
    if not np.all(P >= 0) or np.max(np.abs(P.sum(axis=1) - 1)) > 1e-5:
        judge.wrong("predict: each row of P must be probabilities that add up to 1")
    model = stage.NeuralLM(V, 6, 16, 128, 0)
    stage.train(model, X, Y, 8000, batch_size=32, weight_decay=0.001)
    theirs = model.loss(X_held, Y_held) / math.log(2)
    ours = stage.bits(P[np.arange(len(Y_held)), Y_held])
    if not ours <= theirs - 0.03:
        judge.wrong(f"{ours:.3f} bits a character; the one network needs {theirs:.3f}")
