"""Typical wrong answers to the exercises of stage 2, and words that their message must have."""

# %% 1. two ways lead back here
ANSWER_1 = [3, 9, 6]

# %% 1. this is the other one alone
ANSWER_1 = [3, 3, 14]

# %% 1. over ways they add
ANSWER_1 = [3, 12, 48]

# %% 1. the value of m
ANSWER_1 = [6, 12, 14]

# %% 1. expected 3 numbers: the gradient of m
ANSWER_1 = {"m": 3, "a": 12, "b": 14}

# %% 2. dw: the loss is a mean
ANSWER_2 = [-8, -6]

# %% 2. does the loss grow or fall
ANSWER_2 = [4, 3]

# %% 2. multiplied by its x
ANSWER_2 = [-3, -3]

# %% 2. db: the slope of a square has a factor 2
ANSWER_2 = [-4, -1.5]

# %% 2. a step uphill
ANSWER_2B = 5.85

# %% 2. b takes a step, too
ANSWER_2B = 1.3

# %% 2. the sum of the squares
ANSWER_2B = 1.7


# %% 3. that is tanh′
def tan(x):
    y = np.tan(x.data)
    return x._node("tan", y, (x,), (1 - y * y,))


# %% 3. the chain rule gives the slope in the result
def arctan(x):
    y = np.arctan(x.data)
    return x._node("arctan", y, (x,), (1 + y * y,))


# %% 3. that of arctan is one over it
def arctan(x):
    return x._node("arctan", np.arctan(x.data), (x,), (1 + x.data**2,))


# %% 3. tan of a Dual returns
def tan(x):
    return np.tan(x.data)


# %% 4. the sector: that is the length of its arc
def three_areas(h):
    return math.sin(h) / 2, h, math.tan(h) / 2


# %% 4. how high is it
def three_areas(h):
    return math.sin(h) / 2, h / 2, math.sin(h) / 2


# %% 4. not the foot of Q
def three_areas(h):
    return math.sin(h) * math.cos(h) / 2, h / 2, math.tan(h) / 2


# %% 4. with one h less below
ANSWER_4 = 0

# %% 4. 1 + cos h is not 1
ANSWER_4 = 1


# %% 5. dX with tanh
def network_gradients(X, W, b, V, c, dZ, bend="tanh"):
    phi, slope = stage.BENDS[bend]
    A = X @ W + b
    dA = dZ @ V.T * slope(A)
    return dA @ W.T, X.T @ dA, dA.sum(axis=0), phi(A).T @ dZ, dZ.sum(axis=0)


# %% 5. dX with relu
def network_gradients(X, W, b, V, c, dZ, bend="tanh"):
    H = np.tanh(X @ W + b)
    dA = dZ @ V.T * (1 - H * H)
    return dA @ W.T, X.T @ dA, dA.sum(axis=0), H.T @ dZ, dZ.sum(axis=0)


# %% 6. what is the model without tanh
ANSWER_6 = "a"

# %% 6. however many columns
ANSWER_6 = "b"

# %% 6. section 5 counts its valleys
ANSWER_6 = "C"


# %% 7. each gets half
def minimum(a, b):
    is_a = 1.0 * (a.data <= b.data)
    return a._node("minimum", np.minimum(a.data, b.data), (a, b), (is_a, 1 - is_a))


# %% 7. a gradient is wrong at entry
def minimum(a, b):
    one = np.ones_like(a.data + b.data)
    return a._node("minimum", np.minimum(a.data, b.data), (a, b), (one, one))


# %% 7. expected a Tensor
def minimum(a, b):
    return np.minimum(a.data, b.data)


# %% 7. does not know what it was made from
def minimum(a, b):
    return stage.Tensor(np.minimum(a.data, b.data))


# %% 7. came back to data
def minimum(a, b):
    a_smaller = a.data < b.data
    pulls = (lambda g: g * a_smaller, lambda g: g * ~a_smaller)
    return stage.Tensor(np.minimum(a.data, b.data), (a, b), "minimum", "", pulls)


# %% 7. 0·inf is nan
def where(mask, a, b):
    return a * (1.0 * mask) + b * (1.0 - mask)


# %% 7. a and b are exchanged
def where(mask, a, b):
    return a._node("where", np.where(mask, b.data, a.data), (a, b), (1.0 * ~mask, 1.0 * mask))


# %% 8. f is called again
def gradient_in_one_pass(f, x):
    n = len(x)
    passes = [[stage.Dual(v, i == j) for j, v in enumerate(x)] for i in range(n + 1)]
    return np.array([f(inputs).tangent for inputs in passes[:n] + passes[n:]])[:n]


# %% 8. do it forward
def gradient_in_one_pass(f, x):
    inputs = [stage.Value(v) for v in x]
    f(inputs).backward()
    return np.array([v.grad for v in inputs])


# %% 8. returns one number
def gradient_in_one_pass(f, x):
    return f([stage.Dual(v, 1.0) for v in x]).tangent


# %% 8. expected a real number
def gradient_in_one_pass(f, x):
    return f([stage.Dual(v, row) for v, row in zip(x, np.eye(len(x)))]).tangent


# %% 9. not its data
def hessian_times(f, x, v):
    inputs = [stage.Value(entry) for entry in x]
    f(inputs).backward()
    return np.array([node.grad for node in inputs])


# %% 9. f is called again
def hessian_times(f, x, v):
    gradients = []
    for h in (1e-5, -1e-5):
        inputs = [stage.Value(entry + h * along) for entry, along in zip(x, v)]
        f(inputs).backward()
        gradients.append(np.array([node.grad for node in inputs]))
    return (gradients[0] - gradients[1]) / 2e-5


# %% 10. states were alive at once
def chain_gradient(steps, x, y_bar):
    states = [x]
    for forward, _ in steps:
        states.append(forward(states[-1]))
    states.pop()
    for _, pull in reversed(steps):
        y_bar = pull(states.pop(), y_bar)
    return y_bar


# %% 10. calls of forward
def chain_gradient(steps, x, y_bar):
    for k in reversed(range(len(steps))):
        state = x
        for forward, _ in steps[:k]:
            state = forward(state)
        y_bar = steps[k][1](state, y_bar)
    return y_bar


# %% 10. each pull needs the state before its step
def chain_gradient(steps, x, y_bar):
    states = []
    for forward, _ in steps:
        x = forward(x)
        states.append(x)
    for _, pull in reversed(steps):
        y_bar = pull(states.pop(), y_bar)
    return y_bar
