"""Typical wrong answers to the exercises of stage 10, each with words of its message."""

# %% 1. take their logarithm
ANSWER_1 = 4

# %% 1. difference of the rewards was asked for
ANSWER_1 = 0.8

# %% 2. one step ahead only
ANSWER_2 = [0, 0.5, 0.5]

# %% 2. waits for the end
ANSWER_2 = [1, 1, 0.5]

# %% 3. two calls agree
ANSWER_3 = "a"

# %% 3. so there is a gradient
ANSWER_3 = "c"


# %% 4. the reference has no say
def best_policy(reference, rewards, beta):
    weights = np.exp((rewards - rewards.max()) / beta)
    return weights / weights.sum()


# %% 4. exp overflows
def best_policy(reference, rewards, beta):
    weights = reference * np.exp(rewards / beta)
    return weights / weights.sum()


# %% 4. not multiplied
def best_policy(reference, rewards, beta):
    weights = reference * np.exp(rewards * beta)
    return weights / weights.sum()


# %% 5. the reference is ignored
def dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    h = policy_chosen - policy_rejected
    pull = beta * stage.sigmoid(-beta * h) / len(h)
    return -stage.log_sigmoid(beta * h).mean(), -pull, pull


# %% 5. β is a factor of the slope
def dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    h = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
    pull = stage.sigmoid(-beta * h) / len(h)
    return -stage.log_sigmoid(beta * h).mean(), -pull, pull


# %% 5. the sum; the mean was asked for
def dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    h = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
    pull = beta * stage.sigmoid(-beta * h)
    return -stage.log_sigmoid(beta * h).mean(), -pull, pull


# %% 6. it must be pulled back
def ppo(logp, old_logp, advantages, clip=0.2):
    ratio = np.exp(logp - old_logp)
    free = ratio * advantages
    held = np.clip(ratio, 1 - clip, 1 + clip) * advantages
    inside = np.abs(ratio - 1) <= clip
    return -np.minimum(free, held).mean(), np.where(inside, -free, 0) / len(ratio)


# %% 6. it earns nothing more
def ppo(logp, old_logp, advantages, clip=0.2):
    ratio = np.exp(logp - old_logp)
    free = ratio * advantages
    held = np.clip(ratio, 1 - clip, 1 + clip) * advantages
    return -np.minimum(free, held).mean(), -free / len(ratio)


# %% 7. β divides
def smoothed_margin(epsilon, beta):
    return math.log((1 - epsilon) / epsilon)


# %% 7. the sign
def smoothed_margin(epsilon, beta):
    return math.log(epsilon / (1 - epsilon)) / beta


# %% 8. only the bound
ANSWER_8 = 2.773

# %% 8. the median's place
ANSWER_8B = 0.958

# %% 9. the other way round
ANSWER_9 = 0.072

# %% 9. not equally likely
ANSWER_9 = 11.2


# %% 10. averaged, too
def token_weights(lengths, how, longest):
    every = {"token": 1 / sum(lengths), "constant": 1 / (len(lengths) * longest)}
    return [np.full(n, every.get(how, 1 / n)) for n in lengths]


# %% 10. not that of the batch
def token_weights(lengths, how, longest):
    B = len(lengths)
    if how == "response":
        return [np.full(n, 1 / (B * n)) for n in lengths]
    weight = 1 / sum(lengths) if how == "token" else 1 / (B * max(lengths))
    return [np.full(n, weight) for n in lengths]


# %% 11. that is the mean reward
def best_baseline(p, rewards):
    square = 1 - 2 * p + np.sum(p * p)
    if len(p) == 2:
        return np.sum(p * square * rewards) / np.sum(p * square)
    return p @ rewards


# %% 6. the slope in ρ
def ppo(logp, old_logp, advantages, clip=0.2):
    ratio = np.exp(logp - old_logp)
    free = ratio * advantages
    held = np.clip(ratio, 1 - clip, 1 + clip) * advantages
    slope = np.where(free <= held, -advantages, 0)
    return -np.minimum(free, held).mean(), slope / len(ratio)


# %% 11. that is the mean reward
def best_baseline(p, rewards):
    return np.sum(p * rewards)
