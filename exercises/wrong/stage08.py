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

# %% 3. tr Σ is not larger
ANSWER_3 = "a"

# %% 3. expected one of the letters
ANSWER_3 = 2


# %% 4. divides each gradient by B
def pulls(model, x, y):
    norms = []
    for i in range(len(y)):
        grads = model.loss_and_grads(x[i : i + 1], y[i : i + 1])[1]
        norms.append(np.linalg.norm(stage.flat(grads)) / len(y))
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
    return [np.linalg.norm(stage.flat(model.loss_and_grads(a, b)[1])) for a, b in zip(x, y)]


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


# %% 6. most negative
def sharpness(gradient, theta, steps=300, epsilon=1e-4):
    v = np.random.default_rng(0).normal(size=theta.size)
    for _ in range(steps):
        v = v / np.linalg.norm(v)
        hv = (gradient(theta + epsilon * v) - gradient(theta - epsilon * v)) / (2 * epsilon)
        value = float(v @ hv)
        v = hv
    return value


# %% 6. its sign lost
def sharpness(gradient, theta, steps=300, epsilon=1e-4):
    v = np.random.default_rng(0).normal(size=theta.size)
    for _ in range(steps):
        v = v / np.linalg.norm(v)
        hv = (gradient(theta + epsilon * v) - gradient(theta - epsilon * v)) / (2 * epsilon)
        v = hv
    return np.linalg.norm(hv)


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


# %% 8. the fewest examples are 𝓑
def bargain(excess):
    return [excess, 1 + 1 / excess]


# %% 8. not 1 + B/𝓑
def bargain(excess):
    return [excess - 1, excess]


# %% 8. expected 2 numbers
def bargain(excess):
    return excess - 1


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
