"""Solutions of the exercises of stage 3: embed. `python exercises 3` checks them."""

import math

import numpy as np

import stage03_nlm as stage

# %% 1. ★ (by hand) One step from nothing
# Take the names "aa" and "b", with a dot before and after each, as in section 1. Learn their table
# with learn_table on paper: one step from W = 0 with the learning rate 3.
# ANSWER_1:  W after the step, 3 rows of 3 numbers: the symbols in the order . a b, a row a context.
# ANSWER_1B: the loss at which it would come to rest, the mean surprise of the counted table
#            in nats a pair, to three digits.
ANSWER_1 = [[-0.4, 0.2, 0.2], [0.2, 0.2, -0.4], [0.4, -0.2, -0.2]]
ANSWER_1B = 4 / 5 * math.log(2)
# > The 5 pairs are .a aa a. .b b. so N = [[0, 1, 1], [1, 1, 0], [1, 0, 0]]. At W = 0 every P is
# > 1/3, and the network expects N(h)/3 of each: 2/3 after . and after a, 1/3 after b. A step moves
# > W by 3·(N(hc) - N(h)/3)/5, which is 3/5 of -2/3, 1/3 and so on. In the counted table, the pairs
# > after . and a have the probability 1/2, the one after b has 1: (4·ln 2 + 0)/5 = 0.555.
HINTS_1 = [
    "First the table of counts N(hc): five pairs. .a is one of them.",
    "At W = 0 every P(c|h) is 1/3, so the network expects N(h)/3 of each symbol after h.",
    "W[h, c] becomes -3·(N(h)/3 - N(hc))/5. For the loss, divide each count by its row's sum, and"
    " take the mean of -ln P over the five pairs.",
]

# %% 2. ★ (by hand) How many numbers?
# Bengio's model of section 2 with V = 27 symbols, n = 3 symbols of context, D = 10 numbers for each
# symbol and K = 100 hidden features.
# ANSWER_2:  how many numbers (parameters) does it have?
# ANSWER_2B: how many more does it have with n = 4?
ANSWER_2 = 6097
ANSWER_2B = 1000
# > C: 27·10 = 270. H: 30·100 = 3,000. d: 100. U: 100·27 = 2,700. b: 27. One symbol more makes x
# > longer by D = 10, so H gets 10 more rows of 100. The table of (n+1)-grams grows from 27⁴ to 27⁵
# > numbers.
HINTS_2 = [
    "C, H, d, U and b are all there is. Write down the shape of each.",
    "x has n·D = 30 numbers; C is one table for all places.",
    "A longer context makes x longer. Which of the five does that change?",
]


# %% 3. ★ (derive) Truth in shares
# In section 4 the truth is one symbol. Let it be shared out: y (V,) holds numbers from 0 on, and
# the loss of one example is L = -Σⱼ yⱼ·ln pⱼ, p = softmax(z). Section 3 says what ln pⱼ is in terms
# of z; derive ∂L/∂z from it. It is p - y if the shares add up to 1. Write it for any sum.
def soft_gradient(z, y):
    """∂L/∂z (V,) of L = -Σ y·ln softmax(z), for scores z (V,) and shares y (V,) of any sum."""
    return y.sum() * stage.softmax(z) - y


# > L = Σⱼ yⱼ·(LSE(z) - zⱼ) = s·LSE(z) - Σⱼ yⱼ·zⱼ with s = Σ y. As ∂LSE/∂zᵢ = pᵢ, ∂L/∂zᵢ = s·pᵢ -
# > yᵢ. Its sum is s - s = 0 again: a constant added to all scores changes nothing. Shares that add
# > up to 1 come from label smoothing, or from a larger model whose predictions are to be learned.
HINTS_3 = [
    "Insert ln pⱼ = zⱼ - LSE(z) into L and multiply out.",
    "LSE(z) does not depend on j, so Σⱼ yⱼ stands before it.",
    "∂LSE/∂zᵢ = pᵢ. The other sum contains zᵢ once.",
]


# %% 4. ★★ (find the bug) Right, until two rows meet
# This should be section 3's log_sum_exp of a batch. It passed its test with random scores, and in
# training it gave an infinite loss. Somebody broke one line. Which? Mend it.
def log_sum_exp(z):
    """ln Σ e^z of each row of finite scores z (N, V), without overflow: (N, 1)."""
    m = z.max(axis=-1, keepdims=True)  # was: m = z.max()
    return m + np.log(np.exp(z - m).sum(axis=-1, keepdims=True))


# > The broken line takes the largest of all scores. Any m gives the same sum on paper. But in a row
# > that lies more than 745 below it (103 in float32) every e^(z - m) is 0, and ln 0 = -∞. That a
# > term of each sum is exactly 1 holds only for the row's own largest score.
HINTS_4 = [
    "Give it two rows that differ much, such as [0, 1] and [-1000, -999], and then each alone.",
    "What is np.exp(-1000)? What is the logarithm of that?",
    "Section 3: no term exceeds 1, and one is exactly 1. In which rows is that so here?",
]


# %% 5. ★★ (implement) Straight to the scores
# Bengio's equation 1 also has direct connections from x to the scores: z = b + x·W + h·U, with
# h = tanh(d + x·H) as before. Write loss and gradients, with the layers of sections 4 and 5.
def direct_gradients(params, X, Y):
    """(loss, grads): mean nats per target, and a dict with its slope in each of params.

    params: C (V, D), H (n·D, K), d (K,), U (K, V), b (V,), W (n·D, V). X (N, n) and Y (N,): ids.
    """
    embedded, embedding = stage.embedding_forward(X, params["C"])  # (N, n, D)
    x = embedded.reshape(len(X), -1)  # (N, n·D)
    a, hidden = stage.linear_forward(x, params["H"], params["d"])
    h, tanh = stage.tanh_forward(a)
    z, output = stage.linear_forward(h, params["U"], params["b"])
    loss, cache = stage.cross_entropy_forward(z + x @ params["W"], Y)
    dz, grads = stage.cross_entropy_backward(1.0, cache), {}  # dz (N, V)
    grads["W"] = x.T @ dz
    dh, grads["U"], grads["b"] = stage.linear_backward(dz, output)
    da = stage.tanh_backward(dh, tanh)
    dx, grads["H"], grads["d"] = stage.linear_backward(da, hidden)
    dx = dx + dz @ params["W"].T  # two ways lead back to x
    grads["C"] = stage.embedding_backward(dx.reshape(embedded.shape), embedding)
    return loss, grads


# > Do they pay? When it was tried here, with the better of two rates, they cost 0.005 bits on the
# > names (three seeds) and 0.03 on the stories (6,000 steps, two seeds). Bengio et al. found no
# > gain either, only that learning was faster.
HINTS_5 = [
    "Forward, only the scores change: z + x @ W. For W, this is a linear layer without bias.",
    "dz, and with it dU, db, dh, dH and dd, are computed as in NeuralLM._gradients.",
    "x is used twice, by H and by W. What comes back on both ways is added before it goes on to C.",
]

# %% 6. ★★ (explain) Seen most, and predicted worse
# In part 3 of the report, after four characters that occur 100 times or more in the training text,
# counting needs 1.9 bits and the network 2.0; after those that occur 10 to 99 times, 1.6 and 1.7.
# So both predict worse where they have seen most. Why?
#   a  such contexts end with a space more often, and how the next word begins is open
#   b  the network was trained on them so often that it has overfitted them
#   c  Kneser-Ney takes more off the counts of a context that was seen often
#   d  contexts that are frequent in the training text are rare in the held-out text
# ANSWER_6: one letter, as a string.
ANSWER_6 = "a"
# > Of the held-out places after 100 or more, 31 % follow a space or a line break, and there
# > counting needs 3.8 bits, elsewhere 1.0; of those after 10 to 99, 15 % do. Frequent is what ends
# > a word: "the ", "and ", "was ". To know a context well does not mean that it decides what comes.
HINTS_6 = [
    "Which four characters are the most frequent ones of an English text?",
    "Count with make_examples(ids, 4): what is the last character of the most frequent contexts?",
    "Where is the next character harder to guess, inside a word or at its beginning?",
]

# %% 7. ★★ (measure) A place shuffled
# How much does a model rely on one place of the context? Exchange what stands there among examples.
# encode the whole text of data/stories.txt; train NeuralLM(61, 4, 16, 64, seed=0) on the examples
# of the first 20,000 characters with train(..., steps=1000, seed=0); take the examples of the next
# 5,000 characters, shuffle their X[:, 3], the last place, and leave the rest.
# ANSWER_7: by how many bits a character the loss rises, to two digits. Try the other places, too.
ANSWER_7 = 2.27
# > From the last place to the first the loss rises by about 2.3, 0.95, 0.3 and 0.16 bits. The
# > slopes, as the report prints them, are 1, 0.57, 0.41 and 0.33: the same order, but they fall
# > less. A slope is about a small move of the embedding, and a shuffle exchanges it for another
# > one.
HINTS_7 = [
    "make_examples(ids[:20_000], 4) and make_examples(ids[20_000:25_000], 4) make the examples.",
    "X is a view and cannot be written to: np.array(X) copies. rng.permutation(len(X)) shuffles.",
    "model.loss(X, Y) is in nats: take the difference, and divide it by ln 2.",
]


# %% 8. ★★ (implement) How far to trust the network
# The report takes the plain mean of what counting and the network predict. Let the network have the
# weight w and counting 1 - w. Which w is the best on given examples? The loss, as a function of w,
# is a valley without a second bottom (show it), so there are many ways to find it.
def best_weight(p, q):
    """The w from 0 to 1 with the lowest mean of -ln(w·p + (1 - w)·q), to six decimals.

    p, q (N,): the probabilities that two models gave to what came, all above 0.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        w = (low + high) / 2
        if np.mean((p - q) / (w * p + (1 - w) * q)) > 0:  # more w raises the mean logarithm
            low = w
        else:
            high = w
    return (low + high) / 2


# > With m = w·p + (1 - w)·q the slope of the mean of -ln m in w is the mean of -(p - q)/m, and the
# > second derivative that of (p - q)²/m² ≥ 0: a valley. So halve the interval by the sign of the
# > slope; if it has one sign from 0 to 1, this ends at the right edge. w must be chosen on a
# > development piece; and it may depend on N(h), so that counting is trusted where it has counted
# > much.
HINTS_8 = [
    "Derive the loss in w twice. What sign does the second derivative have?",
    "Where the slope is negative, the bottom lies to the right. Start with the interval from 0 to"
    " 1.",
    "The slope is the mean of (q - p)/(w·p + (1 - w)·q). Fifty halvings are more than enough.",
]


# %% 9. ★★★ (derive) What dropout costs
# Section 8 says that dropout leaves every feature right on average. Take a score z = Σₖ hₖ·uₖ that
# should be y, with the loss (z - y)². With dropout at the rate r it is z̃ = Σₖ mₖ·hₖ·uₖ, where the
# mₖ are independent, 0 with probability r and else 1/(1 - r). Show that the mean of (z̃ - y)² over
# all masks is (z - y)² plus a penalty that does not depend on y. Write the penalty.
def dropout_penalty(h, u, r):
    """The mean of (z̃ - y)² over all masks, minus (z - y)². h, u (K,); 0 <= r < 1."""
    return r / (1 - r) * np.sum(h**2 * u**2)


# > The mean of mₖ is 1, so z̃ is z on average, and the mean of (z̃ - y)² is (z - y)² plus the
# > variance of z̃. The mₖ are independent, so their variances add: Σₖ hₖ²·uₖ²·Var(mₖ). Var(m) =
# > E[m²] - 1 = (1 - r)/(1 - r)² - 1 = r/(1 - r). So dropout is a weight decay of its own kind: a
# > weight costs its square times the mean square of its feature. For softmax this holds nearly.
HINTS_9 = [
    "Write z̃ - y = (z̃ - z) + (z - y) and square it. What is the mean of the mixed term?",
    "What is left is the variance of z̃. Section 6 adds up such a variance: mixed terms vanish.",
    "Var(mₖ) = E[mₖ²] - 1, and mₖ² is 1/(1 - r)² with probability 1 - r.",
]

# %% 10. ★ (research) One table for two purposes
# Press and Wolf (2017) let the table C do the work of the output layer, too: z = b + h·M·Cᵀ with a
# matrix M (K, D). When it was tried here (D = 24, K = 128, 6,000 steps, each model with the best of
# four rates on a development piece, two or three seeds), it was worse by 0.17 bits on the stories,
# by 0.13 if it learned from 20,000 characters of them, and on the names (D = 16) by 0.03: with V =
# 61, C is small, and what reads a symbol is not what predicts it. In models of words, C has most of
# the numbers. Where does it begin to help? Does it, if a larger D lets C serve both?


# %% 11. ★★★ (project) Names, better than one network
# The best network of the report's part 4 learns with weight decay. Write one that predicts unseen
# names better, by 0.03 bits a character: `python exercises --project 3` trains both on nine tenths
# of data/names.txt and has them predict the rest. Yours has a minute. Ideas: more features with
# stronger remedies, several networks, counts in the mixture, and exercises 5 and 8.
def names_model(X, Y, vocab_size):
    """A function predict(X (M, 6)) -> P (M, vocab_size), learned from X (N, 6) and Y (N,).

    The ids and examples are those of stage.name_examples: id 0 is the line break, which fills the
    context at the start of a name, and comes at its end.
    """
    models = []
    for seed, context in enumerate((5, 6)):
        model = stage.NeuralLM(vocab_size, context, 16, 128, seed)
        train_on = X[:, -context:], Y
        stage.train(model, *train_on, 8000, batch_size=32, seed=seed, weight_decay=0.001)
        models.append(model)

    def by_network(contexts):
        scores = [model.logits(contexts[:, -model.context :]) for model in models]
        return np.mean([stage.softmax(z) for z in scores], axis=0)

    def by_counting(contexts):
        every = np.repeat(contexts[:, -4:], vocab_size, axis=0)  # each context with each symbol
        symbols = np.tile(np.arange(vocab_size), len(contexts))
        counted = stage.count_models(X[:, -4:], Y, every, symbols, vocab_size, (0.95,))
        return counted[-1][3][0].reshape(len(contexts), vocab_size)

    def predict(contexts):
        return 0.7 * by_network(contexts) + 0.3 * by_counting(contexts)

    return predict


# > Two networks and the 5-grams: each is wrong in its own way, and where one gives little to what
# > comes, another saves the mean. Two networks gain 0.01 bits, the counts 0.03 or more. In the
# > report the plain mean with the counts is worse than the network alone; with the weight 0.3,
# > which best_weight finds on a development piece, they help.
HINTS_11 = [
    "Two networks of the report's kind, with different seeds, are a first step: average their"
    " probabilities, not their scores.",
    "Counting errs elsewhere than the network. count_models gives the P of pairs of a context and"
    " a symbol: pair each context with each symbol, by np.repeat and np.tile, and reshape.",
    "The plain mean trusts the counts too much. Choose the weight with best_weight on a tenth of"
    " the examples that you hold back, then train again on all.",
]
