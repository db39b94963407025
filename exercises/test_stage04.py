"""Checks of the exercises of stage 4."""

import judge
import numpy as np
import pytest
import sheets

import stage04_optim as stage


def places_on_parabola(rule):
    """Three places from x = 1, where rule(x, b) gives the next x and b."""
    x, b, found = 1.0, 0.0, []
    for _ in range(3):
        x, b = rule(x, b)
        found.append(x)
    return found


def walked(nesterov):
    """Three places of the stage's SGD on x², from 1 with η = 1/4 and β = 1/2."""
    params = {"x": np.ones(1)}
    optimizer = stage.SGD(params, 0.25, 0.5, nesterov=nesterov)
    found = []
    for _ in range(3):
        optimizer.step({"x": 2 * params["x"]})
        found.append(float(params["x"][0]))
    return found


def test_1(answers):
    ball, ahead = walked(False), walked(True)
    plain = places_on_parabola(lambda x, b: (x - 0.25 * 2 * x, b))
    mistakes = {
        "these are steps without momentum: half of the old b stays in the new one": plain,
        "g is halved: the slope of x² is not x, and b takes all of g": places_on_parabola(
            lambda x, b: (x - 0.25 * (0.5 * b + x), 0.5 * b + x)
        ),
        "each step used the b of the step before; b changes first": places_on_parabola(
            lambda x, b: (x - 0.25 * b, 0.5 * b + 2 * x)
        ),
        "that is Nesterov's walk": ahead,
    }
    found = judge.numbers(answers, "ANSWER_1", 3)
    judge.array("ANSWER_1", found, ball, 1e-3, mistakes=mistakes)
    mistakes = {
        "that is the heavy ball's walk: is it the new b that β multiplies?": ball,
        "these are steps without momentum": plain,
        "g + b′ was taken where it should be g + βb′": places_on_parabola(
            lambda x, b: (x - 0.25 * (2 * x + 0.5 * b + 2 * x), 0.5 * b + 2 * x)
        ),
    }
    found = judge.numbers(answers, "ANSWER_1B", 3)
    judge.array("ANSWER_1B", found, ahead, 1e-3, mistakes=mistakes)


def test_2(answers):
    classes = [stage.SGD, stage.AdaGrad, stage.RMSprop, stage.Adam]
    classes += [stage.AdamW, stage.Lion, stage.Muon]
    kept = np.array([len(kind.slots) for kind in classes])
    mistakes = {
        "the parameter itself is not to be counted": kept + 1,
        "AdamW inherits its slots; decay only changes the parameter": kept - [0, 0, 0, 0, 2, 0, 0],
        "Lion keeps less than Adam: one momentum, of which it takes signs": kept
        + [0, 0, 0, 0, 0, 1, 0],
        "SGD keeps b, whatever the momentum is": kept - [1, 0, 0, 0, 0, 0, 0],
    }
    found = judge.numbers(answers, "ANSWER_2", 7)
    judge.array("ANSWER_2", found, kept, mistakes=mistakes)
    copy, gradient, float32 = 2, 2, 4
    slots = len(stage.AdamW.slots) * float32
    each = copy + gradient + float32 + slots
    mistakes = {
        "the optimizer's own float32 parameters are missing, or the slots are in 16 bits": 7
        * (each - float32),
        "the slots are missing": 7 * (each - slots),
        "the gradients are missing, or the copies": 7 * (each - gradient),
        "that is what one parameter takes, in bytes": each,
        "gigabytes were asked for": 7e9 * each,
        "that counts bits, or a byte as eight": 7 * 8 * each,
        "a 16-bit number has two bytes, not four": 7 * (each + copy + gradient),
    }
    judge.number(answers, "ANSWER_2B", 7 * each, mistakes=mistakes)


def test_3(answers, rng):
    for _ in range(20):
        kappa = float(np.exp(rng.uniform(0.5, 12)))
        _, beta, _ = stage.proven_rates(1.0, kappa)["heavy ball"]
        mistakes = {
            "this is √κ": kappa**0.5,
            "this suits Nesterov's method; the ball's β belongs to another κ": (
                (1 + beta) / (1 - beta)
            )
            ** 2,
            "the whole quotient is squared, not what is below alone": (1 + beta**0.5)
            / (1 - beta**0.5) ** 2,
            "the whole quotient is squared, not what is above alone": (1 + beta**0.5) ** 2
            / (1 - beta**0.5),
            "β is not the ball's ρ: see how section 7 relates the two": (1 + beta) / (1 - beta),
            "the quotient is upside down: κ is at least 1": 1 / kappa,
        }
        found = judge.call(answers, "kappa_for", beta)
        judge.array("kappa_for", found, kappa, 1e-6, mistakes=mistakes)


def test_4(answers, rng):
    V, context = 7, 3
    params = stage.nlm_init(V, context, 4, 5, rng, np.float64)
    sizes = []

    def gradient(X, Y):
        if np.ndim(X) != 2 or len(X) == 0 or np.shape(Y) != (len(X),):
            shapes = f"{np.shape(X)} and {np.shape(Y)}"
            raise ValueError(f"gradient got {shapes}; expected (n, {context}) and (n,), n > 0")
        sizes.append(len(X))
        return stage.nlm_backward(1.0, stage.nlm_forward(X, Y, params)[1])

    for n, piece in ((6, 3), (7, 3), (10, 4), (5, 8), (9, 1)):
        X, Y = rng.integers(V, size=(n, context)), rng.integers(V, size=n)
        expected = gradient(X, Y)
        cuts = range(0, n, piece)
        means = [gradient(X[i : i + piece], Y[i : i + piece]) for i in cuts]
        full = [mean for i, mean in zip(cuts, means) if i + piece <= n] or means
        last = sizes[-1]
        sizes.clear()
        found = judge.call(answers, "accumulate", gradient, X.copy(), Y.copy(), piece)
        if sizes and max(sizes) > piece:
            judge.wrong(f"accumulate gave gradient {max(sizes)} examples; expected at most {piece}")
        if not isinstance(found, dict) or found.keys() != expected.keys():
            what = list(found) if isinstance(found, dict) else type(found).__name__
            judge.wrong(f"accumulate returned {what}; expected a dict with {list(expected)}")
        for name, right in expected.items():
            each = [mean[name] for mean in means]
            mistakes = {
                "the pieces were added up; a mean is asked for": sum(each),
                "every piece counts alike, but the last one has fewer examples": sum(each)
                / len(each),
                "only the last piece is left": each[-1],
                "only the last piece is left; they are to be added up": each[-1] * last / n,
                "the last, smaller piece is missing": sum(mean[name] for mean in full)
                / max(1, len(full)),
                "the mean of a piece was divided by N once more": right / n,
                "a piece has the weight of its examples, not of `piece`": sum(each) * piece / n,
            }
            case = f"{n} examples in pieces of {piece}: {name}"
            judge.array(case, found[name], right, 1e-9, mistakes=mistakes)


def test_5(answers, rng):
    matrices = {"the matrix of section 11": np.diag([3, 0.1]), "np.ones((4, 4))": np.ones((4, 4))}
    for n, m in ((10, 20), (20, 10), (40, 80)):
        matrices[f"a random matrix of {n} by {m}"] = 30 * rng.normal(size=(n, m))
    for what, G in matrices.items():
        with np.errstate(all="ignore"):
            found = judge.numeric("orthogonal", judge.call(answers, "orthogonal", G.copy()))
        if found.shape != G.shape:
            judge.wrong(f"{what}: the result has the shape {found.shape}; expected {G.shape}")
        if not np.all(np.isfinite(found)) or np.abs(found).max() > 10:
            judge.wrong(f"{what}: it explodes; some σ was above 1 when the rounds began")
        U, S, Vt = np.linalg.svd(G, full_matrices=False)
        kept = S > 0.002 * np.linalg.norm(G)
        middle = (U.T @ found @ Vt.T)[np.ix_(kept, kept)]
        values = np.diag(middle)
        if np.abs(middle - np.diag(values)).max() > 1e-6 or values.min() < 0:
            judge.wrong(f"{what}: the directions of G are not kept")
        if values.min() < 0.65:
            judge.wrong(f"{what}: a σ ends as {values.min():.2f}; it began too small")
        if values.max() > 1.25:
            judge.wrong(f"{what}: a σ ends as {values.max():.2f}; the rounds keep it below 1.21")


def test_6(answers):
    remarks = {
        "a": "every method in the race has the best of the same 13 rates",
        "b": "think of which way the bowl's axes point",
        "c": "compare the first steps: Newton's depends on curvature, AdaGrad's is -η·sign(g)",
        "d": "the race has no random numbers in it",
    }
    judge.choice(answers, "ANSWER_6", 6, "95c7cf36d5d0", remarks)


def cycle_of(t, first, growth=1, added=0, late=0):
    """(begin, length) of the cycle of step t; each is `growth` times the one before, and `added`
    longer. late: how many steps too late the next one begins."""
    begin, length = 0, first
    while begin + length + late <= t:
        begin, length = begin + length, length * growth + added
    return begin, length


def restart_rates(steps, lr, first, offset=0, shorter=0, **how):
    """Half a cosine in each cycle, which cycle_of(t, first, **how) gives; two ways to miss it."""
    rates = []
    for t in steps:
        begin, length = cycle_of(t, first, **how)
        u = (t - begin + offset) / max(1, length - shorter)
        rates.append(0.5 * lr * (1 + np.cos(np.pi * u)))
    return rates


def test_7(answers):
    for first, growth in ((5, 2), (10, 1), (3, 3), (1, 2)):
        steps, lr = range(7 * first * growth), 0.3
        right = []
        for t in steps:
            begin, length = cycle_of(t, first, growth)
            right.append(stage.warmup_cosine(t - begin, lr, 0, length))
        run = steps, lr, first
        longer = "the lengths grow by adding; they should be multiplied"
        mistakes = {
            "the rate does not start again after the first cycle": [
                stage.warmup_cosine(t, lr, 0, first) for t in steps
            ],
            "all cycles have the length `first`; each is `growth` times the one before": (
                restart_rates(*run)
            ),
            "0 is reached one step too early: the next cycle begins in its place": restart_rates(
                *run, shorter=1, growth=growth
            ),
            "a cycle must begin at lr itself: it is one step ahead": restart_rates(
                *run, offset=1, growth=growth
            ),
            "where a cycle would reach 0, the next one begins, at lr": restart_rates(
                *run, growth=growth, late=1
            ),
            longer: restart_rates(*run, added=growth),
            f"{longer}, also by first·growth": restart_rates(*run, added=first * (growth - 1)),
            "½ is missing: the rate at the start is lr": 2 * np.array(right),
        }
        found = [judge.call(answers, "restarts", t, lr, first, growth) for t in steps]
        what = f"restarts with first = {first}, growth = {growth}"
        judge.array(what, found, right, mistakes=mistakes)


def test_8(answers, rng):
    for start in (0.0, 0.5, 40.0):
        lr, decay = rng.uniform(0.001, 0.1), rng.uniform(0.05, 0.9)
        steps = int(rng.integers(2, 60))
        params = {"x": np.array([start])}
        lion = stage.Lion(params, lr, weight_decay=decay)
        for _ in range(steps):
            lion.step({"x": np.array([-1.0])})
        q = 1 - lr * decay
        moved = (1 - q**steps) / decay
        mistakes = {
            "where is the decay? This grows for ever": start + lr * steps,
            "the start decays, too": start + moved,
            "that is what is left of the start; the steps are to be added": q**steps * start,
            "that is where the fence stands in the end, not after so many steps": 1 / decay,
            "a step has the length η, not 1": q**steps * start + (1 - q**steps) / (1 - q),
            "the decay comes before the step, not after it": q**steps * start + q * moved,
            "one step is missing in the sum": q**steps * start + (1 - q ** (steps - 1)) / decay,
            "one step too many is in the sum": q**steps * start + (1 - q ** (steps + 1)) / decay,
            "the first step decays, too: the start is to be multiplied t times": q ** (steps - 1)
            * start
            + moved,
        }
        found = judge.call(answers, "farthest", start, lr, decay, steps)
        judge.array("farthest", found, float(params["x"][0]), 1e-9, mistakes=mistakes)


def test_9(answers):
    judge.answer(answers, "ANSWER_9")

    def slope(x):
        return 25 * x if x < 1 else x + 24 if x < 2 else 25 * x - 24

    lr, beta, _ = stage.proven_rates(1, 25)["heavy ball"]
    params = {"x": np.array([3.3])}
    ball, walk = stage.SGD(params, lr, beta), []
    for _ in range(1020):
        ball.step({"x": slope(params["x"])})
        walk.append(float(params["x"][0]))
    circle = sorted({round(x, 6) for x in walk[-20:]})
    mistakes = {
        "it does not come to rest; look at ten places in a row": 1,
        "it is more than a swing to and fro: print all digits": 2,
    }
    judge.number(answers, "ANSWER_9", len(circle), mistakes=mistakes)
    mistakes = {
        "that is the lowest of the places": circle[0],
        "that is one of the places, but not the largest": circle[1],
        "that is where it started": 3.3,
        "it does not arrive at the minimum": 0.0,
    }
    judge.number(answers, "ANSWER_9B", circle[-1], mistakes=mistakes)


def test_10(answers, rng):
    for _ in range(20):
        beta, curvature = rng.uniform(0, 0.95), rng.uniform(0.1, 5)
        lr = rng.uniform(0.01, 1.9) * (1 + beta) / curvature
        noise = rng.uniform(0.1, 3)
        A = np.array([[1 + beta - lr * curvature, -beta], [1, 0]])  # of (x′, x)
        push = np.array([lr * lr * noise, 0, 0, 0])
        expected = np.linalg.solve(np.eye(4) - np.kron(A, A), push)[0]  # C = A C Aᵀ + push
        factor = lr * noise / curvature
        mistakes = {
            "that is section 5's formula: β is missing": factor / (2 - lr * curvature),
            "the rate η/(1 - β) in section 5's formula is right only for small η": factor
            / (2 * (1 - beta) - lr * curvature),
            "that is the limit for small η; here η may be large": factor / (2 * (1 - beta)),
            "x′ and x were taken as independent; neighbours are not": lr**2
            * noise
            / (1 - A[0, 0] ** 2 - beta**2),
            "the variance of the noise enters with η², not η": expected / lr,
            "this is the standard deviation": np.sqrt(expected),
            "this is E[x′x], not E[x²]": expected * A[0, 0] / (1 + beta),
        }
        found = judge.call(answers, "noise_floor_with_momentum", lr, beta, curvature, noise)
        judge.array("noise_floor_with_momentum", found, expected, 1e-8, mistakes=mistakes)


def score(ids, V, tune, cut, make, seed):
    """Bits on the development piece after 300 batches under make(params, steps)'s step."""
    steps, batch_size, context = 300, 128, 8
    rng = np.random.default_rng(seed)
    params = stage.nlm_init(V, context, 16, 128, rng)
    X, Y = stage.examples(ids[:tune], context)
    step = make(params, steps)
    order = rng.permutation(len(X))[: steps * batch_size]
    for t, batch in enumerate(order.reshape(steps, batch_size)):
        _, cache = stage.nlm_forward(X[batch], Y[batch], params)
        before = params["U"].copy()
        step(t, stage.nlm_backward(1.0, cache))
        if t == 0 and np.array_equal(before, params["U"]):
            judge.wrong(
                "my_optimizer: U is the same after the first step; `p -= ...` changes an "
                "array in place, `p = p - ...` makes another"
            )
        if not all(np.all(np.isfinite(p)) for p in params.values()):
            judge.wrong(f"my_optimizer: after step {t} a parameter is not finite; lower the rate")
    return stage.nlm_score(ids[tune - context : cut], params, context) / stage.LN2


def stage_pair(params, steps):
    """PAIR's optimizers and schedule, at their rate."""
    make, rate = stage.METHODS[stage.PAIR[0]]
    rate_at, factor = stage.SCHEDULES[stage.PAIR[1]]
    optimizers = make(params, rate * factor)
    rates = [optimizer.lr for optimizer in optimizers]

    def step(t, grads):
        stage.clip_grad_norm(grads, 1.0)
        for optimizer, lr in zip(optimizers, rates):
            optimizer.lr = rate_at(t, lr, steps)
            optimizer.step({name: grads[name] for name in optimizer.params})

    return step


@pytest.mark.project
def test_12(answers):
    def learner(params, steps):
        step = judge.call(answers, "my_optimizer", params, steps)
        if not callable(step):
            judge.wrong(f"my_optimizer returned {step!r:.40}; expected a function step(t, grads)")

        def told(t, grads):
            try:
                step(t, grads)
            except Exception as error:
                where = sheets.line_in(error, answers.path)
                judge.wrong(f"step({t}, grads): {type(error).__name__}{where}: {error}")

        return told

    judge.answer(answers, "my_optimizer")
    data = stage.split((stage.DATA / "stories.txt").read_text("utf-8"))
    ours = np.mean([score(*data, learner, seed) for seed in (0, 1, 2)])
    theirs = np.mean([score(*data, stage_pair, seed) for seed in (0, 1, 2)])
    if not ours <= theirs - 0.02:
        judge.wrong(f"{ours:.3f} bits; the stage has {theirs:.3f}: not better by 0.02 yet")
