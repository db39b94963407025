"""Typical wrong answers to the exercises of stage 7, each with words of its message."""

# %% 1. that stands first was taken
ANSWER_1 = [258, 112, 256, 32, 257, 115]

# %% 1. that is the row after 2 merges
ANSWER_1 = [257, 32, 112, 256, 32, 257, 115]

# %% 1. numbers of the merges begin with 256
ANSWER_1 = [256, 257, 255, 32, 256, 115]

# %% 1. expected a list of ids
ANSWER_1 = ["hug", " p", "ug", " ", "hug", "s"]

# %% 2. these are the bytes
ANSWER_2 = [0xE5, 0xAD, 0x97]

# %% 2. not by 256
ANSWER_2 = [0xE5, 0x1AD, 0x197]

# %% 2. 7F does not print either
ANSWER_2 = [0xE5, 0x142, 0x138]

# %% 2. together they are one character
ANSWER_2B = "â"

# %% 2. first the bytes
ANSWER_2B = 0x2122

# %% 3. these are bits per token
ANSWER_3 = 4.47

# %% 3. this is in nats
ANSWER_3 = 0.705

# %% 3. this is in bits
ANSWER_3B = 6.67

# %% 3. that is a loss per character
ANSWER_3B = 1.05

# %% 4. do not depend on how long
ANSWER_4 = "a"

# %% 4. reach further back
ANSWER_4 = "d"


# %% 5. looked into pieces far more
def count_cuts(word, pieces):
    if not word:
        return 1
    return sum(count_cuts(word[i:], pieces) for i in range(1, len(word) + 1) if word[:i] in pieces)


# %% 5. the places where a piece fits
def count_cuts(word, pieces):
    n = len(word)
    return sum(word[i:j] in pieces for i in range(n) for j in range(i + 1, n + 1))


# %% 5. the whole word may be a piece
def count_cuts(word, pieces):
    ways = [1]
    for j in range(1, len(word) + 1):
        known = [i for i in range(j) if word[i:j] in pieces and j - i < max(2, len(word))]
        ways.append(sum(ways[i] for i in known))
    return ways[-1]


# %% 5. expected an int
def count_cuts(word, pieces):
    return 2.0 ** (len(word) - 1)


# %% 6. cut from the left
def threes():
    return r"\d{1,3}"


# %% 6. write (?: ) instead
def threes():
    return r"\d{1,3}(?=(\d{3})*(?!\d))"


# %% 6. it finds
def threes():
    return r"\d{1,3}(?=(?:\d{3})+(?!\d))"


# %% 6. kg' it finds []
def threes():
    return r"\d{1,3}(?=(?:\d{3})*\b)"


# %% 6. is no regex
def threes():
    return r"\d{1,3}(?=(?:\d{3})*"


# %% 7. still the broken copy's
def draw(word, score, rng):
    alpha, arcs = stage.forward(word, score, len(word))
    pieces, j = [], len(word)
    while j:
        weights = np.exp([log_p for _, _, log_p in arcs[j]])
        j, piece, _ = arcs[j][rng.choice(len(weights), p=weights / weights.sum())]
        pieces.append(piece)
    return pieces[::-1]


# %% 7. the probability of the piece itself is missing
def draw(word, score, rng):
    alpha, arcs = stage.forward(word, score, len(word))
    pieces, j = [], len(word)
    while j:
        weights = np.exp([alpha[i] for i, _, _ in arcs[j]])
        j, piece, _ = arcs[j][rng.choice(len(weights), p=weights / weights.sum())]
        pieces.append(piece)
    return pieces[::-1]


# %% 7. which does not spell it
def draw(word, score, rng):
    return stage.sample_cut(word, score, len(word), 1.0, rng)[::-1]


# %% 8. not independent
def spellings_of_anan(p):
    return [(1 - p) ** 2, p * (1 - p), p * (1 - p), p * p]


# %% 8. probability to leave out
def spellings_of_anan(p):
    both = (1 - p) * (1 - p * p)
    return [both, p * (1 - p), p * p * (1 - p), (1 - p) ** 2]


# %% 8. expected 4 numbers
def spellings_of_anan(p):
    return {"an|an": (1 - p) * (1 - p * p)}


# %% 9. the other way round
ANSWER_9 = 1.06

# %% 9. bits per token
ANSWER_9B = 1.27

# %% 9. this is in nats
ANSWER_9B = 0.227


# %% 10. log P(x) is missing
def undecided(word, score):
    alpha, arcs = stage.forward(word, score, len(word))
    total = [0.0]
    for j in range(1, len(word) + 1):
        shares = [(i, math.exp(alpha[i] + log_p - alpha[j]), log_p) for i, _, log_p in arcs[j]]
        total.append(sum(share * (total[i] - log_p) for i, share, log_p in shares))
    return total[-1] / math.log(2)


# %% 10. this is in nats
def undecided(word, score):
    alpha, arcs = stage.forward(word, score, len(word))
    total = [0.0]
    for j in range(1, len(word) + 1):
        logs = [(i, alpha[i] + log_p - alpha[j]) for i, _, log_p in arcs[j]]
        total.append(sum(math.exp(log) * (total[i] - log) for i, log in logs))
    return total[-1]


# %% 10. the last piece alone
def undecided(word, score):
    alpha, arcs = stage.forward(word, score, len(word))
    logs = [alpha[i] + log_p - alpha[-1] for i, _, log_p in arcs[-1]]
    return -sum(math.exp(log) * log for log in logs) / math.log(2)


# %% 10. how improbable the best cut is
def undecided(word, score):
    alpha, _ = stage.forward(word, score, len(word))
    return (alpha[-1] - stage.viterbi(word, score, len(word))[0]) / math.log(2)
