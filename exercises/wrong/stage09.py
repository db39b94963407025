"""Typical wrong answers to the exercises of stage 9, each with words of its message."""

# %% 1. against the gradient
ANSWER_1 = [-1, 0]

# %% 1. multiplied by the learning rate
ANSWER_1 = [6, 0]

# %% 1. so A moves
ANSWER_1B = [1, 1]

# %% 1. has the factor x[i]
ANSWER_1B = [0.8333, 0.8333]

# %% 2. r·(in + out) numbers
ANSWER_2 = 64

# %% 3. one of the two gradients is not 0
ANSWER_3 = "a"

# %% 3. what is AB
ANSWER_3 = "c"


# %% 4. the scale s is missing
def lora_gradients(G, A, B, scale):
    return G @ B.T, A.T @ G


# %% 4. transposed
def lora_gradients(G, A, B, scale):
    return scale * B @ G.T, scale * A.T @ G


# %% 5. through W alone
def lora_back(dy, x, W, A, B, scale):
    h = x @ A
    dh = scale * (dy @ B.T)
    return dy @ W.T, x.T @ dh, scale * (h.T @ dy)


# %% 5. dB: not right yet
def lora_back(dy, x, W, A, B, scale):
    h = x @ A
    dh = scale * (dy @ B.T)
    return dy @ W.T + dh @ A.T, x.T @ dh, h.T @ dy


# %% 6. x itself has to be added
def adapter_forward(x, down, up):
    a, slope = stage.gelu_forward(x @ down)
    return a @ up, (x, down, up, a, slope)


# %% 6. straight, too
def adapter_backward(dy, cache):
    x, down, up, a, slope = cache
    du = (dy @ up.T) * slope
    return du @ down.T, x.T @ du, a.T @ dy


# %% 6. slope of GELU is missing
def adapter_backward(dy, cache):
    x, down, up, a, slope = cache
    du = dy @ up.T
    return dy + du @ down.T, x.T @ du, a.T @ dy


# %% 7. shared by its 64 weights
ANSWER_7 = 36

# %% 7. own scales are missing
ANSWER_7B = 4.125

# %% 7. not 256 weights
ANSWER_7B = 4.25


# %% 8. expected int8
def quantize_rows(W):
    largest = np.abs(W).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1.0)
    return np.round(W / scales[:, None]), scales


# %% 8. cut off, not rounded
def quantize_rows(W):
    largest = np.abs(W).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1.0)
    return (W / scales[:, None]).astype(np.int8), scales


# %% 8. each row has its own
def quantize_rows(W):
    scale = np.abs(W).max() / 127
    return np.round(W / scale).astype(np.int8), np.full(len(W), scale)


# %% 9. the other way round
ANSWER_9 = 0.903


# %% 10. the scales are missing
def joined(A1, B1, s1, A2, B2, s2):
    return np.concatenate([A1, A2], axis=1), np.concatenate([B1, B2], axis=0)


# %% 10. on both sides
def joined(A1, B1, s1, A2, B2, s2):
    A = np.concatenate([s1 * A1, s2 * A2], axis=1)
    return A, np.concatenate([s1 * B1, s2 * B2], axis=0)


# %% 11. on one side only
def pissa(W, rank):
    left, sigma, right = np.linalg.svd(W, full_matrices=False)
    A, B = left[:, :rank] * sigma[:rank], right[:rank]
    return W - A @ B, A, B


# %% 11. expected three matrices
def pissa(W, rank):
    left, sigma, right = np.linalg.svd(W, full_matrices=False)
    return left[:, :rank], right[:rank]


# %% 11. rest is W less AB
def pissa(W, rank):
    left, sigma, right = np.linalg.svd(W, full_matrices=False)
    root = np.sqrt(sigma[:rank])
    return W, left[:, :rank] * root, root[:, None] * right[:rank]
