"""Typical wrong answers to the exercises of the capstone, each with words of its message."""

# %% 1. up the gradient
ANSWER_1 = [[-0.762, 0.762], [0.231, -0.231]]

# %% 1. divided by the number of targets
ANSWER_1 = [[-1.715, 1.715], [1.307, -1.307]]

# %% 1. expected (2, 2)
ANSWER_1 = [-1.238, 1.238, 0.769, -0.769]

# %% 2. it counts once
ANSWER_2 = 2616

# %% 2. the last norm
ANSWER_2 = 1800

# %% 3. spells more characters
ANSWER_3 = "a"

# %% 3. no loss of anything
ANSWER_3 = "d"


# %% 4. its square was asked for
def relu2_forward(x):
    return np.maximum(x, 0), x


# %% 4. multiplied by dy
def relu2_backward(dy, cache):
    return 2 * cache


# %% 4. the square has another
def relu2_backward(dy, cache):
    return dy * (cache > 0)


# %% 4. changed its input
def relu2_forward(x):
    x *= x > 0
    return x * x, x


# %% 5. the mean over the rows
def z_loss_gradient(logits, c):
    e = np.exp(logits)
    return 2 * c * np.log(e.sum(-1, keepdims=True)) * e / e.sum(-1, keepdims=True)


# %% 5. has a factor
def z_loss_gradient(logits, c):
    e = np.exp(logits)
    return c * np.log(e.sum(-1, keepdims=True)) * e / e.sum(-1, keepdims=True) / len(logits)


# %% 5. overflow exp
def z_loss_gradient(logits, c):
    with np.errstate(all="ignore"):
        e = np.exp(logits)
        z = e.sum(-1, keepdims=True)
        return 2 * c * np.log(z) * e / z / len(logits)


# %% 5. not over the whole array
def z_loss_gradient(logits, c):
    e = np.exp(logits)
    return 2 * c * np.log(e.sum()) * e / e.sum() / len(logits)


# %% 6. transposed
def transposed_linear_backward(dy, x, W):
    return dy @ W, x.T @ dy


# %% 6. the mean
def transposed_linear_backward(dy, x, W):
    return dy @ W, dy.T @ x / len(x)


# %% 7. after 2 steps
def adamw(w, gradients, learning_rate, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1):
    w, m, v = w.copy(), 0, 0
    for g in gradients:
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        w *= 1 - learning_rate * weight_decay
        w -= learning_rate * m / (1 - betas[0]) / (np.sqrt(v / (1 - betas[1])) + eps)
    return w


# %% 7. after one step
def adamw(w, gradients, learning_rate, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1):
    w, m, v = w.copy(), 0, 0
    for g in gradients:
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        w -= learning_rate * m / (np.sqrt(v) + eps)
    return w


# %% 8. made from dy
ANSWER_8 = "a"

# %% 8. already right
ANSWER_8 = "b"

# %% 9. tokens a character
ANSWER_9 = 0.334

# %% 9. only its last tenth
ANSWER_9 = 3.025


# %% 10. counted several times
def held_out_nats(model, ids, first, block_size, stride):
    total = 0.0
    for start in range(first, len(ids), stride):
        end = min(start + block_size, len(ids))
        loss = model.loss(ids[None, start - 1 : end - 1], ids[None, start:end])
        total += (end - start) * loss
    return total


# %% 10. the mean
def held_out_nats(model, ids, first, block_size, stride):
    nats, n = capstone.evaluate(model, ids, first, block_size, stride)
    return nats / n


# %% 10. copy the slice
def held_out_nats(model, ids, first, block_size, stride):
    end = min(first + stride, len(ids))
    begin = max(1, end - block_size)
    targets = ids[begin:end]
    targets[: first - begin] = -1
    return model.loss(ids[None, begin - 1 : end - 1] * 0, targets[None])


# %% 5. added to log Z again
def z_loss_gradient(logits, c):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    total = e.sum(-1, keepdims=True)
    return 2 * c * np.log(total) * e / total / len(logits)


# %% 5. not over all entries
def z_loss_gradient(logits, c):
    top = logits.max(-1, keepdims=True)
    e = np.exp(logits - top)
    total = e.sum(-1, keepdims=True)
    return 2 * c * (np.log(total) + top) * e / total / logits.size
