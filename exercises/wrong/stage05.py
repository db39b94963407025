"""Typical wrong answers to the exercises of stage 5, and words that their message must have."""

# %% 1. must add up to 1
ANSWER_1 = [1, 1]

# %% 1. has not the weight 0
ANSWER_1 = [0, 0]

# %% 1. saw is one of the three
ANSWER_1 = [0.5, 0.5]

# %% 1. take off the average
ANSWER_1B = [0.333, 0, 0]

# %% 1. the others push
ANSWER_1C = [0.222, 0]

# %% 1. Tom is missing
ANSWER_1C = [0.222, -0.111]

# %% 1. not the weights
ANSWER_1C = [0, 0.333]

# %% 2. not of queries
ANSWER_2 = 5.24

# %% 2. in every layer
ANSWER_2 = 0.041

# %% 2. keys or values are missing
ANSWER_2 = 0.655

# %% 2. units of 2³⁰ bytes
ANSWER_2 = 1.22

# %% 2. 32 were asked for
ANSWER_2B = 4

# %% 2. the values are missing
ANSWER_2B = 8


# %% 3. not at 0
def alibi(Tq, Tk, slope):
    distance = np.arange(Tq)[:, None] - np.arange(Tk)
    return np.where(distance >= 0, -slope * distance, -np.inf)


# %% 3. the future must be -inf
def alibi(Tq, Tk, slope):
    return -slope * np.abs(np.arange(Tk - Tq, Tk)[:, None] - np.arange(Tk))


# %% 3. make a score smaller
def alibi(Tq, Tk, slope):
    distance = np.arange(Tk - Tq, Tk)[:, None] - np.arange(Tk)
    return np.where(distance >= 0, slope * distance, -np.inf)


# %% 3. its own position
def alibi(Tq, Tk, slope):
    distance = np.arange(Tk - Tq, Tk)[:, None] - np.arange(Tk)
    return np.where(distance > 0, -slope * distance, -np.inf)


# %% 4. still do not share
def shared_attention(q, k, v):
    used = np.arange(q.shape[1]) % k.shape[1]
    return stage.attention_forward(q, k[:, used], v[:, used])[0]


# %% 4. raised ValueError
def shared_attention(q, k, v):
    used = np.arange(k.shape[1])
    k, v = k[:, used], v[:, used]
    return stage.softmax_forward(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]))[0] @ v


# %% 5. layer 1 is all there is
ANSWER_5 = "a"

# %% 5. no future is seen
ANSWER_5 = "b"

# %% 5. there are ten digits
ANSWER_5 = "d"


# %% 6. here it is not wanted
def scale_gradient(q, k, v, scale, dout):
    dq, _, _ = stage.attention_backward(dout, stage.attention_forward(q, k, v, scale=scale)[1])
    return np.sum(dq * q)


# %% 6. softmax's backward is missing
def scale_gradient(q, k, v, scale, dout):
    return np.sum(dout @ v.swapaxes(-1, -2) * (q @ k.swapaxes(-1, -2)))


# %% 6. beyond the average
def scale_gradient(q, k, v, scale, dout):
    products = q @ k.swapaxes(-1, -2)
    return np.sum(
        stage.softmax_forward(scale * products)[0] * (dout @ v.swapaxes(-1, -2)) * products
    )


# %% 7. suspects a causal mask
def sees_the_future(attention, Tq, Tk):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(1, 1, Tq, 4)), *rng.normal(size=(2, 1, 1, Tk, 4))
    before = attention(q, k, v)
    k[:, :, -1] += 1
    return not np.allclose(before, attention(q, k, v))


# %% 7. does not notice: weights set to 0 after the softmax
def sees_the_future(attention, Tq, Tk):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(1, 1, Tq, 4)), *rng.normal(size=(2, 1, 1, Tk, 4))
    before = attention(q, k, v)
    v[:, :, -1] += 1
    return not np.allclose(before[:, :, :-1], attention(q, k, v)[:, :, :-1])


# %% 7. does not notice: a score of 0 in place
def sees_the_future(attention, Tq, Tk):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(1, 1, Tq, 4)), *rng.normal(size=(2, 1, 1, Tk, 4))
    before = attention(q, k, v)
    k[:, :, -1] += 1
    return not np.allclose(before[:, :, :-1], attention(q, k, v)[:, :, :-1])


# %% 7. expected True or False
def sees_the_future(attention, Tq, Tk):
    return "yes"


# %% 8. something overflowed
def merge(out1, log_Z1, out2, log_Z2):
    Z1, Z2 = np.exp(log_Z1), np.exp(log_Z2)
    return (Z1 * out1 + Z2 * out2) / (Z1 + Z2), np.log(Z1 + Z2)


# %% 8. not their logarithms
def merge(out1, log_Z1, out2, log_Z2):
    return (out1 + out2) / 2, log_Z1 + log_Z2


# %% 8. to be added again
def merge(out1, log_Z1, out2, log_Z2):
    m = np.maximum(log_Z1, log_Z2)
    Z1, Z2 = np.exp(log_Z1 - m), np.exp(log_Z2 - m)
    return (Z1 * out1 + Z2 * out2) / (Z1 + Z2), np.log(Z1 + Z2)


# %% 8. do not count alike
def merge(out1, log_Z1, out2, log_Z2):
    return (out1 + out2) / 2, np.logaddexp(log_Z1, log_Z2)


# %% 8. shares are exchanged
def merge(out1, log_Z1, out2, log_Z2):
    log_Z = np.logaddexp(log_Z1, log_Z2)
    return np.exp(log_Z2 - log_Z) * out1 + np.exp(log_Z1 - log_Z) * out2, log_Z


# %% 8. the pair (out, log_Z)
def merge(out1, log_Z1, out2, log_Z2):
    return out1 + out2


# %% 9. own weight exp(a)/Z is missing
def sink_backward(s, a, dp):
    p = np.exp(s) / (np.exp(a) + np.exp(s).sum(axis=1, keepdims=True))
    average = np.sum(p * dp, axis=1, keepdims=True)
    return p * (dp - average), -np.sum(average)


# %% 9. exp(a) is missing in the weights
def sink_backward(s, a, dp):
    p, _ = stage.softmax_forward(s)
    return stage.softmax_backward(dp, p), 0.0


# %% 9. used in all of them
def sink_backward(s, a, dp):
    Z = np.exp(a) + np.exp(s).sum(axis=1, keepdims=True)
    p = np.exp(s) / Z
    average = np.sum(p * dp, axis=1, keepdims=True)
    return p * (dp - average), -np.exp(a) / Z * average


# %% 9. the sign
def sink_backward(s, a, dp):
    Z = np.exp(a) + np.exp(s).sum(axis=1, keepdims=True)
    p = np.exp(s) / Z
    average = np.sum(p * dp, axis=1, keepdims=True)
    return p * (dp - average), np.sum(np.exp(a) / Z * average)


# %% 10. the numbers are right, but
def latent_attention(q, c, Wk, Wv):
    k, v = c @ Wk, c @ Wv
    p, _ = stage.softmax_forward((k @ q[:, :, None])[..., 0] / math.sqrt(q.shape[1]))
    return (p[:, None] @ v)[:, 0]


# %% 10. as large as a head's keys
def latent_attention(q, c, Wk, Wv):
    out = np.empty_like(q)
    for h in range(len(q)):
        p, _ = stage.softmax_forward(c @ Wk[h] @ q[h] / math.sqrt(q.shape[1]))
        out[h] = p @ (c @ Wv[h])
    return out


# %% 10. D being the size of q
def latent_attention(q, c, Wk, Wv):
    asked = np.einsum("hd,hrd->hr", q, Wk)
    p, _ = stage.softmax_forward(asked @ c.T / math.sqrt(c.shape[1]))
    return np.einsum("hr,hrd->hd", p @ c, Wv)


# %% 10. not divided by √D
def latent_attention(q, c, Wk, Wv):
    asked = np.einsum("hd,hrd->hr", q, Wk)
    p, _ = stage.softmax_forward(asked @ c.T)
    return np.einsum("hr,hrd->hd", p @ c, Wv)
