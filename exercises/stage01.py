"""The exercises of stage 1: count. `python exercises 1` checks them."""

import math

import numpy as np

import stage01_markov as stage

# %% 1. ★ (by hand) Keys and ranks of "abab"
# Follow "abab" through count_levels with order 1, on paper, as section 8 does with "abracadabra".
# V = 2, a is 0 and b is 1. The pairs are ab, ba, ab.
# ANSWER_1:  the sorted different keys of the pairs, without the last one, "never seen".
# ANSWER_1B: how often each of them occurs, N(hc), in the same order.
ANSWER_1 = None
ANSWER_1B = None


# %% 2. ★ (by hand) Four letters
# A model gave the letters of a word of four the probabilities 1/2, 1/4, 1/8 and 1/2.
# ANSWER_2:  its mean surprise in bits a letter.
# ANSWER_2B: its perplexity on the word, to three digits.
ANSWER_2 = None
ANSWER_2B = None


# %% 3. ★★ (derive) Witten-Bell is add-k with a k of its own
# Let h′ know nothing: P(c|h′) = 1/V. Show that (10) is then add-k, (7), with a k that depends on h.
# Write a function that returns this k.
def k_for_witten_bell(d_h, vocab_size):
    """k with which (7) gives what (10) gives over P(c|h′) = 1/V. d_h: D(h); vocab_size: V."""
    raise NotImplementedError


# %% 4. ★★ (implement) Kneser-Ney for one context
# Write (11) for one context h and all symbols c at once. Where h was never seen, (11) is not
# defined; section 6 says what stands in its place.
def kneser_ney(n_hc, below, discount):
    """P(c|h) for every c (V,). n_hc: counts N(hc) (V,); below: P(c|h′) (V,); discount: d."""
    raise NotImplementedError


# %% 5. ★★ (find the bug) The nucleus
# This should keep the fewest of the likeliest symbols whose probabilities reach top_p together, and
# divide them by their sum (section 7). Somebody broke one line. Which? Mend it.
def nucleus(p, top_p):
    """p (V,) with all but the fewest likeliest that reach top_p set to 0, then a distribution."""
    likeliest = np.argsort(-p, kind="stable")
    sums = np.cumsum(p[likeliest])
    n = np.count_nonzero(sums <= top_p)
    kept = np.zeros_like(p)
    kept[likeliest[:n]] = p[likeliest[:n]]
    return kept / kept.sum()


# %% 6. ★★ (derive) The free energy
# In physics, E_c = -ln p_c is the energy of the state c. Show with (5) that of all distributions q
# it is (13) that makes F(q) = Σ q·E - τ·H(q) smallest. How small? Write a function for the minimum.
def least_free_energy(p, temperature):
    """The smallest Σ q·E - τ·H(q), E = -ln p, in nats, over distributions q. p (V,), all > 0."""
    raise NotImplementedError


# %% 7. ★★ (explain) Better and better, and useless
# In the report, mle's perplexity on the training text falls with every order; on the held-out text
# it is infinite. What does the column on the training text show?
#   a  long contexts are the better models; only the held-out text is unusual
#   b  with more context, fewer symbols came after each; the table recites what it has read
#   c  perplexity falls with the order because P(c|h) then adds up to more than 1
#   d  the training text has fewer different symbols than the held-out text
# ANSWER_7: one letter, as a string.
ANSWER_7 = None


# %% 8. ★★ (implement) If order 1 wrote for ever
# P[h, c] is the probability of c after h. If a chain of order 1 writes on and on, the symbols take
# shares π that stay as they are: π_c = Σ_h π_h·P[h, c], and they add up to 1. Find them.
def stationary(P):
    """The shares π (V,) with π = πP and sum 1. P (V, V): rows add up to 1, all entries > 0."""
    raise NotImplementedError


# %% 9. ★★ (measure) Twice the text
# Fit MarkovChain(5, V, discount=0.8) to the first 50,000 and to the first 100,000 characters of
# data/stories.txt (V and the ids: all different characters of the whole file, sorted), and predict
# the last 20,000 characters of the file with each.
# ANSWER_9: how many bits a character the second needs less than the first, to two digits.
ANSWER_9 = None


# %% 10. ★★★ (derive) A density in place of darts
# After stage 2. Let V = 2 and hold, before reading, θ = P(a) for plausible with the density
# f(θ) ∝ (θ·(1 - θ))^(k-1), k > 0. Derive (7) from it. (Use: ∫₀¹ θ^(s-1)·(1 - θ)^(t-1) dθ = B(s, t),
# and B(s + 1, t)/B(s, t) = s/(s + t).)
# ANSWER_10: P(a) for the next symbol after reading a, a, a, b, with k = 1/2.
ANSWER_10 = None


# %% 11. ★★★ (project) Names, better than the stage's
# Write a model of names that predicts unseen ones better than Kneser-Ney of order 3 (d = 0.75) does
# here: `python exercises --project 1` trains it on nine tenths of data/names.txt and has it predict
# the rest. Ideas: another order, another discount for each count, a mixture of several models. (For
# a first feeling: python stage01_markov.py --names data/names.txt --order 1, and so on to 8.)
def names_model(names):
    """A function next_letter(beginning) -> probabilities (27,) of a..z and, last, of the end.

    names: the list of str to learn from. beginning: the letters so far, "" at the start.
    """
    raise NotImplementedError
