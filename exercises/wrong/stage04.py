"""Typical wrong answers to the exercises of stage 4, and words that their message must have."""

# %% 1. steps without momentum
ANSWER_1 = [0.5, 0.25, 0.125]

# %% 1. that is Nesterov's walk
ANSWER_1 = [0.25, -0.0625, -0.109375]

# %% 1. g is halved
ANSWER_1 = [0.75, 0.4375, 0.171875]

# %% 1. has 4 entries
ANSWER_1 = [1, 0.5, 0, -0.25]

# %% 1. is it the new b
ANSWER_1B = [0.5, 0.0, -0.25]

# %% 2. not to be counted
ANSWER_2 = [2, 2, 2, 3, 3, 2, 2]

# %% 2. whatever the momentum is
ANSWER_2 = [0, 1, 1, 2, 2, 1, 1]

# %% 2. float32 parameters are missing
ANSWER_2B = 84

# %% 2. what one parameter takes
ANSWER_2B = 16

# %% 2. gigabytes were asked for
ANSWER_2B = 112e9


# %% 3. this is √κ
def kappa_for(beta):
    return (1 + math.sqrt(beta)) / (1 - math.sqrt(beta))


# %% 3. suits Nesterov's method
def kappa_for(beta):
    return ((1 + beta) / (1 - beta)) ** 2


# %% 3. returned None
def kappa_for(beta):
    ((1 + math.sqrt(beta)) / (1 - math.sqrt(beta))) ** 2


# %% 3. the whole quotient
def kappa_for(beta):
    return (1 + math.sqrt(beta)) / (1 - math.sqrt(beta)) ** 2


# %% 4. every piece counts alike
def accumulate(gradient, X, Y, piece):
    parts = [gradient(X[i : i + piece], Y[i : i + piece]) for i in range(0, len(X), piece)]
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


# %% 4. added up
def accumulate(gradient, X, Y, piece):
    parts = [gradient(X[i : i + piece], Y[i : i + piece]) for i in range(0, len(X), piece)]
    return {name: sum(part[name] for part in parts) for name in parts[0]}


# %% 4. the last, smaller piece is missing
def accumulate(gradient, X, Y, piece):
    cuts = range(0, len(X) - piece + 1, piece)
    parts = [gradient(X[i : i + piece], Y[i : i + piece]) for i in cuts]
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


# %% 4. expected at most 3
def accumulate(gradient, X, Y, piece):
    return gradient(X, Y)


# %% 5. it explodes
def orthogonal(G):
    a, b, c = stage.NEWTON_SCHULZ
    X = G / np.abs(G).max()
    for _ in range(5):
        A = X @ X.T
        X = a * X + (b * A + c * (A @ A)) @ X
    return X


# %% 5. it began too small
def orthogonal(G):
    a, b, c = stage.NEWTON_SCHULZ
    X = G / np.abs(G).sum() / 100
    for _ in range(5):
        A = X @ X.T
        X = a * X + (b * A + c * (A @ A)) @ X
    return X


# %% 5. expected (10, 20)
def orthogonal(G):
    return stage.orthogonalize(G if G.shape[0] == G.shape[1] else G.T)


# %% 6. the best of the same 13 rates
ANSWER_6 = "a"

# %% 6. compare the first steps
ANSWER_6 = "C"

# %% 6. no random numbers
ANSWER_6 = "d"


# %% 7. does not start again
def restarts(step, lr, first, growth):
    return stage.warmup_cosine(step, lr, 0, first)


# %% 7. all cycles have the length
def restarts(step, lr, first, growth):
    return 0.5 * lr * (1 + math.cos(math.pi * (step % first) / first))


# %% 7. one step too early
def restarts(step, lr, first, growth):
    while step >= first:
        step, first = step - first, first * growth
    return 0.5 * lr * (1 + math.cos(math.pi * step / max(1, first - 1)))


# %% 7. where a cycle would reach 0
def restarts(step, lr, first, growth):
    while step > first:
        step, first = step - first, first * growth
    return 0.5 * lr * (1 + math.cos(math.pi * step / first))


# %% 8. grows for ever
def farthest(start, lr, weight_decay, steps):
    return start + lr * steps


# %% 8. the start decays, too
def farthest(start, lr, weight_decay, steps):
    return start + (1 - (1 - lr * weight_decay) ** steps) / weight_decay


# %% 8. the fence stands in the end
def farthest(start, lr, weight_decay, steps):
    return 1 / weight_decay


# %% 9. swing to and fro
ANSWER_9 = 2

# %% 9. the lowest of the places
ANSWER_9B = -1.802

# %% 9. not the largest
ANSWER_9B = 0.647


# %% 10. β is missing
def noise_floor_with_momentum(lr, beta, curvature, noise_variance):
    return lr * noise_variance / (curvature * (2 - lr * curvature))


# %% 10. right only for small η
def noise_floor_with_momentum(lr, beta, curvature, noise_variance):
    return stage.noise_floor(lr / (1 - beta), curvature, noise_variance, 1)


# %% 10. neighbours are not
def noise_floor_with_momentum(lr, beta, curvature, noise_variance):
    a = 1 + beta - lr * curvature
    return lr**2 * noise_variance / (1 - a**2 - beta**2)
