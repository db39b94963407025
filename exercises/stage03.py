"""The exercises of stage 3: embed. `python exercises 3` checks them."""

import math

import numpy as np

import stage03_nlm as stage

# %% 1. ★ (by hand) One step from nothing
# Take the names "aa" and "b", with a dot before and after each, as in section 1. Learn their table
# with learn_table on paper: one step from W = 0 with the learning rate 3.
# ANSWER_1:  W after the step, 3 rows of 3 numbers: the symbols in the order . a b, a row a context.
# ANSWER_1B: the loss at which it would come to rest, the mean surprise of the counted table
#            in nats a pair, to three digits.
ANSWER_1 = None
ANSWER_1B = None


# %% 2. ★ (by hand) How many numbers?
# Bengio's model of section 2 with V = 27 symbols, n = 3 symbols of context, D = 10 numbers for each
# symbol and K = 100 hidden features.
# ANSWER_2:  how many numbers (parameters) does it have?
# ANSWER_2B: how many more does it have with n = 4?
ANSWER_2 = None
ANSWER_2B = None


# %% 3. ★ (derive) Truth in shares
# In section 4 the truth is one symbol. Let it be shared out: y (V,) holds numbers from 0 on, and
# the loss of one example is L = -Σⱼ yⱼ·ln pⱼ, p = softmax(z). Section 3 says what ln pⱼ is in terms
# of z; derive ∂L/∂z from it. It is p - y if the shares add up to 1. Write it for any sum.
def soft_gradient(z, y):
    """∂L/∂z (V,) of L = -Σ y·ln softmax(z), for scores z (V,) and shares y (V,) of any sum."""
    raise NotImplementedError


# %% 4. ★★ (find the bug) Right, until two rows meet
# This should be section 3's log_sum_exp of a batch. It passed its test with random scores, and in
# training it gave an infinite loss. Somebody broke one line. Which? Mend it.
def log_sum_exp(z):
    """ln Σ e^z of each row of finite scores z (N, V), without overflow: (N, 1)."""
    m = z.max()
    return m + np.log(np.exp(z - m).sum(axis=-1, keepdims=True))


# %% 5. ★★ (implement) Straight to the scores
# Bengio's equation 1 also has direct connections from x to the scores: z = b + x·W + h·U, with
# h = tanh(d + x·H) as before. Write loss and gradients, with the layers of sections 4 and 5.
def direct_gradients(params, X, Y):
    """(loss, grads): mean nats per target, and a dict with its slope in each of params.

    params: C (V, D), H (n·D, K), d (K,), U (K, V), b (V,), W (n·D, V). X (N, n) and Y (N,): ids.
    """
    raise NotImplementedError


# %% 6. ★★ (explain) Seen most, and predicted worse
# In part 3 of the report, after four characters that occur 100 times or more in the training text,
# counting needs 1.9 bits and the network 2.0; after those that occur 10 to 99 times, 1.6 and 1.7.
# So both predict worse where they have seen most. Why?
#   a  such contexts end with a space more often, and how the next word begins is open
#   b  the network was trained on them so often that it has overfitted them
#   c  Kneser-Ney takes more off the counts of a context that was seen often
#   d  contexts that are frequent in the training text are rare in the held-out text
# ANSWER_6: one letter, as a string.
ANSWER_6 = None


# %% 7. ★★ (measure) A place shuffled
# How much does a model rely on one place of the context? Exchange what stands there among examples.
# encode the whole text of data/stories.txt; train NeuralLM(61, 4, 16, 64, seed=0) on the examples
# of the first 20,000 characters with train(..., steps=1000, seed=0); take the examples of the next
# 5,000 characters, shuffle their X[:, 3], the last place, and leave the rest.
# ANSWER_7: by how many bits a character the loss rises, to two digits. Try the other places, too.
ANSWER_7 = None


# %% 8. ★★ (implement) How far to trust the network
# The report takes the plain mean of what counting and the network predict. Let the network have the
# weight w and counting 1 - w. Which w is the best on given examples? The loss, as a function of w,
# is a valley without a second bottom (show it), so there are many ways to find it.
def best_weight(p, q):
    """The w from 0 to 1 with the lowest mean of -ln(w·p + (1 - w)·q), to six decimals.

    p, q (N,): the probabilities that two models gave to what came, all above 0.
    """
    raise NotImplementedError


# %% 9. ★★★ (derive) What dropout costs
# Section 8 says that dropout leaves every feature right on average. Take a score z = Σₖ hₖ·uₖ that
# should be y, with the loss (z - y)². With dropout at the rate r it is z̃ = Σₖ mₖ·hₖ·uₖ, where the
# mₖ are independent, 0 with probability r and else 1/(1 - r). Show that the mean of (z̃ - y)² over
# all masks is (z - y)² plus a penalty that does not depend on y. Write the penalty.
def dropout_penalty(h, u, r):
    """The mean of (z̃ - y)² over all masks, minus (z - y)². h, u (K,); 0 <= r < 1."""
    raise NotImplementedError


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
    raise NotImplementedError
