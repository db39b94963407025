"""Typical wrong answers to the exercises of stage 1, and words that their message must have."""

# %% 1. sort the different ones
ANSWER_1 = [1, 2, 1]

# %% 1. c and h are exchanged
ANSWER_1 = [2, 1]

# %% 1. not each pair
ANSWER_1B = [2, 2]

# %% 2. this is the sum
ANSWER_2 = 7

# %% 2. this is in nats
ANSWER_2 = 1.213

# %% 2. raise 2, not e
ANSWER_2B = 5.755

# %% 2. not for the word
ANSWER_2B = 128


# %% 3. that is k·V
def k_for_witten_bell(d_h, vocab_size):
    return d_h


# %% 4. must not become negative
def kneser_ney(n_hc, below, discount):
    n_h = max(1, n_hc.sum())
    if not n_hc.any():
        return below
    return (n_hc - discount) / n_h + discount * np.count_nonzero(n_hc) / n_h * below


# %% 4. nothing is divided
def kneser_ney(n_hc, below, discount):
    with np.errstate(all="ignore"):
        return np.maximum(n_hc - discount, 0) / n_hc.sum() + below


# %% 4. d·D(h)/N(h), not d
def kneser_ney(n_hc, below, discount):
    if not n_hc.any():
        return below
    return np.maximum(n_hc - discount, 0) / n_hc.sum() + discount * below


# %% 5. too few
def nucleus(p, top_p):
    likeliest = np.argsort(-p)
    n = max(1, np.count_nonzero(np.cumsum(p[likeliest]) <= top_p))
    kept = np.zeros_like(p)
    kept[likeliest[:n]] = p[likeliest[:n]]
    return kept / kept.sum()


# %% 5. divides by 0
def nucleus(p, top_p):
    kept = np.where(np.cumsum(p) <= top_p, p, 0)
    with np.errstate(all="ignore"):
        return kept / kept.sum()


# %% 6. the factor τ is missing
def least_free_energy(p, temperature):
    return -math.log(np.sum(p ** (1 / temperature)))


# %% 6. the sign
def least_free_energy(p, temperature):
    return temperature * math.log(np.sum(p ** (1 / temperature)))


# %% 7. no new text has a chance
ANSWER_7 = "a"

# %% 7. shares after each context add up to 1
ANSWER_7 = "c"

# %% 7. expected one of the letters
ANSWER_7 = "x"


# %% 8. wrong way round
def stationary(P):
    Q = P.T / P.T.sum(1, keepdims=True)
    return np.linalg.matrix_power(Q, 5000)[0]


# %% 8. at the right of P
def stationary(P):
    values, vectors = np.linalg.eig(P)
    first = vectors[:, np.argmax(values.real)].real
    return first / first.sum()


# %% 8. one step from equal shares
def stationary(P):
    return P.mean(0)


# %% 9. the sign
ANSWER_9 = -0.134

# %% 9. in nats
ANSWER_9 = 0.0926

# %% 10. nothing was held before reading
ANSWER_10 = 0.75

# %% 10. that is k = 1
ANSWER_10 = 0.667
