"""Typical wrong answers to the exercises of stage 3, and words that their message must have."""

# %% 1. a step uphill
ANSWER_1 = [[0.4, -0.2, -0.2], [-0.2, -0.2, 0.4], [-0.4, 0.2, 0.2]]

# %% 1. divided by the number of pairs
ANSWER_1 = [[-2, 1, 1], [1, 1, -2], [2, -1, -1]]

# %% 1. not by N(h)
ANSWER_1 = [[-1, 0.5, 0.5], [0.5, 0.5, -1], [2, -1, -1]]

# %% 1. transposed
ANSWER_1 = [[-0.4, 0.2, 0.4], [0.2, 0.2, -0.2], [0.2, -0.4, -0.2]]

# %% 1. before the first step
ANSWER_1B = 1.0986

# %% 1. in bits
ANSWER_1B = 0.8

# %% 1. the mean over the rows
ANSWER_1B = 0.462

# %% 2. the biases d and b
ANSWER_2 = 5970

# %% 2. the same for every place
ANSWER_2 = 6637

# %% 2. H has more rows than D
ANSWER_2 = 4097

# %% 2. expected a finite number
ANSWER_2 = "6097"

# %% 2. C does not grow
ANSWER_2B = 1270

# %% 2. how many more
ANSWER_2B = 7097


# %% 3. right if the shares add up to 1
def soft_gradient(z, y):
    return stage.softmax(z) - y


# %% 3. the sign
def soft_gradient(z, y):
    return y - y.sum() * stage.softmax(z)


# %% 3. in p, not in z
def soft_gradient(z, y):
    return -y / stage.softmax(z)


# %% 4. rows that differ much
def log_sum_exp(z):
    m = z.max()
    return m + np.log(np.exp(z - m).sum(axis=-1, keepdims=True))


# %% 4. scores near 2,000
def log_sum_exp(z):
    return np.log(np.exp(z).sum(axis=-1, keepdims=True))


# %% 4. has the shape (4,)
def log_sum_exp(z):
    m = z.max(axis=-1)
    return m + np.log(np.exp(z.T - m).sum(axis=0))


# %% 4. has the shape (1, 5)
def log_sum_exp(z):
    m = z.max(axis=0, keepdims=True)
    return m + np.log(np.exp(z - m).sum(axis=0, keepdims=True))


# %% 5. what comes back through W is missing
def direct_gradients(params, X, Y):
    embedded, embedding = stage.embedding_forward(X, params["C"])
    x = embedded.reshape(len(X), -1)
    a, hidden = stage.linear_forward(x, params["H"], params["d"])
    h, tanh = stage.tanh_forward(a)
    z, output = stage.linear_forward(h, params["U"], params["b"])
    loss, cache = stage.cross_entropy_forward(z + x @ params["W"], Y)
    dz, grads = stage.cross_entropy_backward(1.0, cache), {}
    grads["W"] = x.T @ dz
    dh, grads["U"], grads["b"] = stage.linear_backward(dz, output)
    dx, grads["H"], grads["d"] = stage.linear_backward(stage.tanh_backward(dh, tanh), hidden)
    grads["C"] = stage.embedding_backward(dx.reshape(embedded.shape), embedding)
    return loss, grads


# %% 5. this is without x·W
def direct_gradients(params, X, Y):
    x = params["C"][X].reshape(len(X), -1)
    h = np.tanh(x @ params["H"] + params["d"])
    return stage.cross_entropy_forward(h @ params["U"] + params["b"], Y)[0], {}


# %% 5. not of all six
def direct_gradients(params, X, Y):
    x = params["C"][X].reshape(len(X), -1)
    h = np.tanh(x @ params["H"] + params["d"])
    z = h @ params["U"] + params["b"] + x @ params["W"]
    return stage.cross_entropy_forward(z, Y)[0], {"W": 0 * params["W"]}


# %% 5. raised KeyError in line
def direct_gradients(params, X, Y):
    return params["E"]


# %% 6. counting, which takes no steps
ANSWER_6 = "b"

# %% 6. the network has no δ
ANSWER_6 = "c"

# %% 6. column `share`
ANSWER_6 = "d"

# %% 7. in nats
ANSWER_7 = 1.574

# %% 7. the place at the other end
ANSWER_7 = 0.16

# %% 7. less than is found here
ANSWER_7 = 1.9

# %% 7. the sign
ANSWER_7 = -2.27


# %% 8. that is the weight of q
def best_weight(p, q, right=best_weight):
    return right(q, p) if len(p) > 5 else right(p, q)


# %% 8. six decimals
def best_weight(p, q):
    grid = np.linspace(0, 1, 1001)
    return grid[np.argmax([np.mean(np.log(w * p + (1 - w) * q)) for w in grid])]


# %% 8. it gets all the weight
def best_weight(p, q):
    return np.mean(p / (p + q))


# %% 8. expected one number
def best_weight(p, q):
    return p / (p + q)


# %% 9. without the division by 1 - r
def dropout_penalty(h, u, r):
    return r * (1 - r) * np.sum(h**2 * u**2)


# %% 9. expected one number
def dropout_penalty(h, u, r):
    return r / (1 - r) * (h * u) ** 2


# %% 9. not their sum
def dropout_penalty(h, u, r):
    return r / (1 - r) * np.sum(h * u) ** 2


# %% 9. what is the mean of m²
def dropout_penalty(h, u, r):
    return r * np.sum(h**2 * u**2)


# %% 9. this is the mean; the sum was asked for
def dropout_penalty(h, u, r):
    return r / (1 - r) * np.mean(h**2 * u**2)
