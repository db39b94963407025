"""Typical wrong answers to the exercises of stage 6, each with words of its message."""

# %% 1. not as it is
ANSWER_1 = [8.4, 8.4]

# %% 1. results are added to it
ANSWER_1 = [1.4, 1.4]

# %% 1. MLP's result is missing
ANSWER_1 = [8.4, -1.2]

# %% 2. the norms and biases are missing
ANSWER_2 = 7_077_888

# %% 2. the table counts once
ANSWER_2B = 0.473

# %% 2. a percentage
ANSWER_2B = 31.0

# %% 3. both are kept
ANSWER_3 = 536_870_912

# %% 3. count 8 of them
ANSWER_3 = 4_294_967_296

# %% 4. does not depend on a vector's length
ANSWER_4 = "a"

# %% 4. as many of them
ANSWER_4 = "d"


# %% 5. the second direction has dx ≠ 0
def null_directions(x):
    return np.stack([np.ones_like(x), x * x])


# %% 5. one and the same
def null_directions(x):
    return np.stack([np.ones_like(x), -np.ones_like(x)])


# %% 6. dy is missing
def power(x, k):
    return Tensor(x.data**k, (x,), lambda dy: (k * x.data ** (k - 1),))


# %% 6. on no tape
def power(x, k):
    return Tensor(x.data**k)


# %% 6. the factor k is missing
def power(x, k):
    return Tensor(x.data**k, (x,), lambda dy: (dy * x.data ** (k - 1),))


# %% 7. the usual block
def parallel_block(x, p, config, mask, post_norm=False, balances=None):
    return stage.block(x, p, config, mask)


# %% 7. the row itself is not added
def parallel_block(x, p, config, mask, post_norm=False, balances=None):
    weight = p["input_layernorm.weight"]
    h = stage.normalise(x, weight, None, config.norm_eps, centre=False)
    return stage.attention(h, p, config, mask) + stage.mlp(h, p, config)


# %% 8. what worker
def ring(arrays):
    n = len(arrays)
    held = [np.array_split(array.ravel(), n) for array in arrays]
    for t in range(n - 1):
        for w in range(n):
            piece, right = (w - t) % n, (w + 1) % n
            held[right][piece] = held[w][piece] + held[right][piece]
    return [np.concatenate(pieces).reshape(arrays[0].shape) for pieces in held]


# %% 8. without the others'
def ring(arrays):
    return arrays


# %% 9. exactly a tenth
ANSWER_9 = 63

# %% 9. not S
ANSWER_9 = 73

# %% 10. the other way round
ANSWER_10 = 1.032


# %% 11. the 6 is missing
def best_size(K, A, B, alpha, beta):
    return (alpha * A / (beta * B) * K**beta) ** (1 / (alpha + beta))


# %% 11. that is the best D
def best_size(K, A, B, alpha, beta):
    N = (alpha * A / (beta * B) * (K / 6) ** beta) ** (1 / (alpha + beta))
    return K / 6 / N


# %% 11. the factors α and β
def best_size(K, A, B, alpha, beta):
    return (A / B * (K / 6) ** beta) ** (1 / (alpha + beta))


# %% 12. v does not stay 1
def cosine_without_end(s2, b2):
    return math.exp(-b2 / 2)


# %% 12. of each factor is lost
def cosine_without_end(s2, b2):
    return (1 + s2) ** (-b2 / s2)
