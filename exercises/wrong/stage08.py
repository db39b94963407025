"""Typical wrong answers to the exercises of stage 8, each with words of its message."""

# %% 1. the square of what w shrinks by
ANSWER_1 = 5.25

# %% 1. after three steps
ANSWER_1 = 4.25

# %% 1. but the loss by its square
ANSWER_1B = 1.974

# %% 1. the other border
ANSWER_1B = 0.01308

# %% 2. corrected average
ANSWER_2 = 4.0

# %% 2. what is missing to 4
ANSWER_2 = 1.39

# %% 2. the first step that suits
ANSWER_2B = 43.71

# %% 2. more than one per cent
ANSWER_2B = 43

# %% 3. a higher rate at the end
ANSWER_3 = "a"

# %% 3. expected one of the letters
ANSWER_3 = 2


# %% 4. divides each gradient by B
def pulls(model, x, y):
    norms = []
    for i in range(len(y)):
        grads = model.loss_and_grads(x[i : i + 1], y[i : i + 1])[1]
        norms.append(math.sqrt(sum((g * g).sum() for g in grads.values())) / len(y))
    return norms


# %% 4. squares do
def pulls(model, x, y):
    norms = []
    for i in range(len(y)):
        grads = model.loss_and_grads(x[i : i + 1], y[i : i + 1])[1]
        norms.append(sum(np.linalg.norm(g) for g in grads.values()))
    return norms


# %% 4. raised
def pulls(model, x, y):
    return [model.loss_and_grads(a, b)[0] for a, b in zip(x, y)]


# %% 5. only σ is there
def silu_backward(dh, cache):
    x, w, z, gate = cache
    dz = dh * gate
    return dz @ w.T, x.T @ dz, dz.sum(0)


# %% 5. that is σ(z)
def silu_forward(x, w, b):
    z = x @ w + b
    gate = 1 / (1 + np.exp(-z))
    return gate, (x, w, z, gate)


# %% 5. this is their mean
def silu_backward(dh, cache):
    x, w, z, gate = cache
    dz = dh * gate * (1 + z * (1 - gate))
    return dz @ w.T, x.T @ dz, dz.mean(0)


# %% 5. taken at h instead of z
def silu_backward(dh, cache):
    x, w, z, gate = cache
    h = z * gate
    s = 1 / (1 + np.exp(-h))
    dz = dh * s * (1 + h * (1 - s))
    return dz @ w.T, x.T @ dz, dz.sum(0)


# %% 6. off by half
def slope_errors(model, x, y, rng, epsilon=1e-6):
    grads = model.loss_and_grads(x, y)[1]
    errors = {}
    for name, g in grads.items():
        w = model.params[name].copy()
        u = rng.normal(size=g.shape)
        losses = []
        for step in (epsilon, -epsilon):
            model.params[name] += step * u
            losses.append(model.loss_and_grads(x, y)[0])
        model.params[name] = w
        measured = (losses[0] - losses[1]) / (2 * epsilon)
        told = float((u * g).sum())
        errors[name] = abs(measured - told) / max(abs(measured), abs(told))
    return errors


# %% 6. whose gradient is 1.5 times
def slope_errors(model, x, y, rng, epsilon=1e-6):
    return dict.fromkeys(model.params, 0.0)


# %% 6. is not what it was before
def slope_errors(model, x, y, rng, epsilon=1e-6):
    for w in model.params.values():
        w += epsilon
    return dict.fromkeys(model.params, 0.0)


# %% 7. not the weights
def step_length(beta, t):
    return 1.0


# %% 7. the root is missing
def step_length(beta, t):
    power = beta**t
    return (1 - beta) * (1 + power) / ((1 + beta) * (1 - power))


# %% 7. limit for many steps
def step_length(beta, t):
    return math.sqrt((1 - beta) / (1 + beta))


# %% 7. not divided by
def step_length(beta, t):
    return math.sqrt((1 - beta) * (1 - beta ** (2 * t)) / (1 + beta))


# %% 8. a², not a
def leaky(a, K, layers):
    return [2 / ((1 + a) * K), ((1 + a) / 2) ** (layers / 2)]


# %% 8. rms is its root
def leaky(a, K, layers):
    return [2 / ((1 + a * a) * K), ((1 + a * a) / 2) ** layers]


# %% 8. so W must be larger
def leaky(a, K, layers):
    return [(1 + a * a) / 2 / K, ((1 + a * a) / 2) ** (layers / 2)]


# %% 8. expected 2 numbers
def leaky(a, K, layers):
    return 2 / ((1 + a * a) * K)


# %% 9. seven steps
ANSWER_9 = 2.06

# %% 9. over all steps
ANSWER_9 = 327

# %% 9. upside down
ANSWER_9B = 0.918

# %% 9. not saturated
ANSWER_9C = 0.25


# %% 10. y comes from others
def pair_leak(x, y, vocab_size, rng):
    shares = stage.audit_data(x, y, vocab_size)["determined"]
    i, j = sorted(np.argsort(shares)[:2].tolist())
    return i, j, max(shares)


# %% 10. is not taken off
def pair_leak(x, y, vocab_size, rng):
    entropy, best = stage.unigram_entropy(y), (0, 1, 0.0)
    for i in range(x.shape[1]):
        for j in range(i + 1, x.shape[1]):
            pair = x[:, i] * vocab_size + x[:, j]
            share = stage.information(pair, y, vocab_size) / entropy
            best = max(best, (i, j, share), key=lambda found: found[2])
    return best
