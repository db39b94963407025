# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 1: count. What comes next, if all we ever did was read and keep a tally?

A language model is a machine that looks at the beginning of a text and gives every symbol that
could come next a probability. This one idea carries the whole book, from here to the models in use
today; only the machine grows. The first machine counts: it recalls what followed the last few
symbols in the text it has read, and predicts in proportion. That is the best possible answer to one
question, and no answer to another: what of all that was never seen? This file is about both.

  Begin:    1 the whole idea on eleven letters
  Predict:  2 one symbol at a time         3 why to count       4 surprise and perplexity
  Mend:     5 never seen, not impossible   6 a shorter context knows more
  Write:    7 temperature and its kin
  Build:    8 a million counts at once     9 the whole model     10 beginnings and ends

You need Python with functions and classes, logarithms, and a little NumPy. Sections 3 and 4 use one
idea of calculus before stage 2 explains it, the slope of a curve; it gets a sentence there.

    python stage01_markov.py [--fast] [--seed N] [--text FILE]       how well it all predicts
    python stage01_markov.py --prompt "The fox" [--length 300]       goes on with your beginning
    python stage01_markov.py --names data/names.txt                  invents names like those

Any UTF-8 text will do. --help lists the rest: --order, --save, --load and how boldly to write.

Rests on: Markov, "An example of statistical investigation of the text Eugene Onegin" (1913);
Shannon, "A mathematical theory of communication" (1948); Jelinek, Mercer, "Interpolated estimation
of Markov source parameters from sparse data" (1980); Witten, Bell, "The zero-frequency problem"
(1991); Kneser, Ney, "Improved backing-off for m-gram language modeling" (1995); Chen, Goodman, "An
empirical study of smoothing techniques for language modeling" (1999); Holtzman et al., "The curious
case of neural text degeneration" (2020).
"""

import argparse
import io
import json
import math
import numbers
import os
import re
import sys
import zipfile
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

# %% 1. The whole idea on eleven letters
# Read a text letter by letter and keep a tally: after each letter, which letters came, how often?


def count_followers(text):
    """{letter: Counter of the letters that came right after it}."""
    followers = defaultdict(Counter)
    for letter, following in zip(text, text[1:]):
        followers[letter][following] += 1
    return followers


def share(followers, letter, following):
    """How probable `following` is after `letter`: its share of all that came after the letter."""
    came = followers.get(letter, Counter())
    return came[following] / max(1, came.total())  # 0 if nothing ever came


#     "abracadabra"     after    came              so the shares are
#                       a        b twice, c, d     b 2/4, c 1/4, d 1/4
#                       b        r twice           r 1
#                       c, d     a                 a 1
#                       r        a twice           a 1
#
# This table is a language model: it says what comes next, and how probably. So it can judge a word
# that it has not read. Multiply the probabilities of each letter after the one before:
#
#     "cabra"    c→a 1    a→b 2/4    b→r 1    r→a 1      together 1/2
#     "dacab"    d→a 1    a→c 1/4    c→a 1    a→b 2/4    together 1/8
#     "bard"     b→a 0, whatever comes then              together 0
#
# Longer words get smaller products only because they are longer. The fair measure is per letter:
# as if each of the n letters had been one of S equally likely ones, (1/S)^n = p. S is called the
# PERPLEXITY. "cabra" has 2^(1/4) = 1.19, "dacab" 8^(1/4) = 1.68, and for "bard" it is infinite.


def word_perplexity(followers, word):
    """Among how many equally likely letters each after the first of two or more seemed to be."""
    p = math.prod(share(followers, a, b) for a, b in zip(word, word[1:]))
    return p ** (-1 / (len(word) - 1)) if p > 0 else math.inf


# And it can write: draw the next letter with these probabilities, append it, draw again. From "a"
# it comes to "acabradabr" and the like, words that sound like the text and are not in it.


def draw_word(followers, word, length, rng):
    """The word continued to so many letters, each drawn from what followed the letter before."""
    while len(word) < length and word[-1] in followers:
        letters = followers[word[-1]]
        shares = [share(followers, word[-1], letter) for letter in letters]
        word += str(rng.choice(list(letters), p=shares))
    return word


# Why these shares (section 3)? What does perplexity mean (4)? And "bard", how to mend that (5, 6)?

# %% 2. One symbol at a time
# A text is a row of symbols x₁x₂...x_N, letters or words, each one of V different ones. A language
# model gives every text a probability. To list them all will not do: there are V^N.
#
# The way out is conditional probability. Of the times when A happens, B happens too in the share
# P(B|A) = P(A and B)/P(A); turned around, P(A and B) = P(A)·P(B|A). Split off the last symbol in
# this way, and the last of what remains, again and again:
#
#     P(x₁...x_N) = P(x₁)·P(x₂|x₁)·P(x₃|x₁x₂)···P(x_N|x₁...x_N₋₁) = Π_t P(x_t|x₁...x_t₋₁).       (1)
#
# (Π multiplies as Σ adds.) This is the chain rule of probability. Nothing was assumed, so nothing
# is lost: whoever can predict the next symbol knows the probability of every text.
#
# But x₁...x_t₋₁ is a whole past, pasts do not repeat, and what happens once teaches no shares.
# Markov's way out is to forget. In 1913 he took 20,000 letters of Pushkin's "Eugene Onegin", marked
# each as a vowel or a consonant, and counted by hand which kind follows which. His assumption, for
# a chain of order n: the last n symbols tell all that matters.
#
#     P(x_t|x₁...x_t₋₁) = P(x_t|h),     h = x_t₋ₙ...x_t₋₁, the context.                          (2)
#
# (At the start of a text, where fewer than n symbols have come, h is all of them.) Section 1 had
# order 1. The assumption is false: the end of this sentence depends on its beginning. But it is
# useful, because contexts come back. All that follows is about P(c|h), c a symbol, h a context.

# %% 3. Why to count
# After "a" section 1 saw b, b, c, d. A model with θ_b for b, and so on, gives that θ_b·θ_b·θ_c·θ_d:
#
#     the shares:  1/2, 1/4, 1/4     1/2·1/2·1/4·1/4 = 1/64 = 0.0156
#     more b:      0.6, 0.2, 0.2     0.6·0.6·0.2·0.2         = 0.0144
#
# The shares explain the text best. To see that they always do, look for the P(c|h) that make the
# training text most probable, its MAXIMUM LIKELIHOOD. By (1) and (2) its probability is a product
# over its places. With N(hc) for how often c comes after h, and N(h) = Σ_c N(hc),
#
#     P(text) = Π_h Π_c P(c|h)^N(hc),     and     ln P(text) = Σ_h Σ_c N(hc)·ln P(c|h).
#
# The logarithm grows with its argument, so both are largest at the same place; and it turns the
# product into a sum in which each h has a part of its own. Take one h, and θ_c for P(c|h):
#
#     make  L(θ) = Σ_c N(hc)·ln θ_c  as large as possible,     where  Σ_c θ_c = 1.
#
# Were it not for the sum of 1, all θ would rise for ever. As it is, θ_c grows only at the cost of
# another, θ_d. What does it bring to move a sliver ε from d to c? The slope of a curve is how much
# it rises for each unit to the right, if the step is tiny; the slope of ln θ is 1/θ (stage 2
# derives both). So L rises by ε·N(hc)/θ_c and falls by ε·N(hd)/θ_d. Where L is largest, no such
# move may gain, whichever way it goes: so these slopes are all one number m,
#
#     N(hc)/θ_c = m  for every c.                                                                (3)
#
# (m is known as Lagrange's multiplier.) So θ_c = N(hc)/m; and since the θ add up to 1, m = N(h):
#
#     P(c|h) = N(hc)/N(h).     The likeliest model is the table of shares: count and divide.     (4)
#
# No other θ does as well, as section 4 proves. (Where N(h) = 0 the text is silent; see section 6.)

# %% 4. Surprise and perplexity
# How good is a model? Let it predict a text that it has not seen, and see how surprised it is. The
# surprise s(p) at an event of probability p should be 0 if p = 1, grow as p shrinks, and add up:
# two independent events have the probability p·q, so s(p·q) = s(p) + s(q). The logarithm does that
# (and nothing else continuous, up to the unit: Shannon, appendix 2): s(p) = -ln p in nats, or
# -log₂ p = -ln p / ln 2 in bits. One toss of a fair coin is a surprise of 1 bit.
#
# ENTROPY is the mean surprise at a source p of someone who knows p; CROSS-ENTROPY, of someone who
# believes q instead. The KULLBACK-LEIBLER DIVERGENCE is their difference, the price of the belief:
#
#     H(p) = -Σ p·ln p,     H(p, q) = -Σ p·ln q,     KL(p‖q) = H(p, q) - H(p) = Σ p·ln(p/q).
#
# (0·ln 0 counts as 0, its limit.) For example, p = (1/2, 1/4, 1/4) has H = 1/2·1 + 1/4·2 + 1/4·2 =
# 1.5 bits; who believes in q = (1/4, 1/4, 1/2) pays 1/2·2 + 1/4·2 + 1/4·1 = 1.75 bits: KL = 0.25.
#
# The price is never negative, and no inequality is used more often in this book. The curve ln u
# bends downwards, so it lies below the straight line that touches it at u = 1, where its slope is
# 1: ln u ≤ u - 1, equal only at u = 1. So, over the symbols with p > 0,
#
#     -KL(p‖q) = Σ p·ln(q/p) ≤ Σ p·(q/p - 1) = Σ q - Σ p ≤ 1 - 1 = 0;   equal only if q = p. ∎   (5)
#
# Two gifts at once. With p_c = N(hc)/N(h), section 3's L(θ) is -N(h)·H(p, θ), and H(p, θ) =
# H(p) + KL(p‖θ) is smallest at θ = p and nowhere else: (4) is the maximum. And q = 1/V gives
# H(p) = ln V - KL(p‖q) ≤ ln V: nothing is harder to predict than a fair die with V sides.
#
# PERPLEXITY asks which die would be as hard. One with S sides has entropy ln S. So a model whose
# mean surprise on a text is H nats (H₂ = H/ln 2 bits) a symbol has the perplexity
#
#     S = e^H = 2^H₂ = P(text)^(-1/N),       because  H = -(1/N)·ln P(text):                     (6)
#
# it is as much at a loss as if it had to guess among S equal symbols each time.


def number(value):
    """value as a float. What is no number (a bool is none) becomes nan, which fails every test."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        return float(value) if real else math.nan
    except OverflowError:  # 10**400
        return math.nan


def check_integer(name, value, least):
    """ValueError unless value is a whole number of at least `least`; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")


def check_distribution(name, p):
    """p as a float64 array whose last axis holds distributions; else ValueError."""
    try:
        p = np.asarray(p).astype(np.float64, casting="same_kind")  # no strings, no complex numbers
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {p!r}; expected probabilities") from None
    if p.ndim == 0 or p.size == 0:
        raise ValueError(f"the shape of {name} is {p.shape}; expected at least one probability")
    if not np.all(p >= 0):  # nan is not
        raise ValueError(f"the least entry of {name} is {float(p.min())}; expected 0 or more")
    sums = p.sum(axis=-1).reshape(-1)
    worst = float(sums[np.argmax(np.abs(sums - 1))])
    if not abs(worst - 1) < 1e-5:
        raise ValueError(f"a sum of {name} is {worst}; expected 1")
    return p


def cross_entropy(p, q, base=math.e):
    """H(p, q) = -Σ p·ln q in nats (base=2: bits): the mean surprise of q where p is true.

    p, q: distributions (V,) or rows of them (..., V), else ValueError. inf where q rules out p's.
    """
    p, q = check_distribution("p", p), check_distribution("q", q)
    if p.shape != q.shape:
        raise ValueError(f"the shape of q is {q.shape}; expected that of p, {p.shape}")
    if not 1 < number(base) < math.inf:
        raise ValueError(f"base is {base!r}; expected e (nats), 2 (bits) or another above 1")
    with np.errstate(divide="ignore", invalid="ignore"):
        return 0.0 - np.where(p > 0, p * np.log(q), 0.0).sum(axis=-1) / math.log(base)


def entropy(p, base=math.e):
    """H(p) = H(p, p) in nats (base=2: bits) of p (..., V); ValueError as in cross_entropy."""
    return cross_entropy(p, p, base)


def kl_divergence(p, q, base=math.e):
    """KL(p‖q) = H(p, q) - H(p) in nats (base=2: bits); shapes, errors, inf as in cross_entropy."""
    return np.maximum(cross_entropy(p, q, base) - entropy(p, base), 0.0)  # (5), despite rounding


# %% 5. Never seen, not impossible
# (4) gives 0 to whatever did not happen in training, and new texts are full of that: "bard" was
# one, and the report counts more. Shares explain the past best and are useless for the future.
#
# The remedy begins with an admission: we do not know the true θ; what we read leaves many of them
# plausible. Bayes (1763) thought of balls on a table; take darts. Throw V - 1 of them blindly at a
# line from 0 to 1: they cut it into V pieces, one a symbol, and the length of piece c is θ_c. Let
# each symbol of the text be one more blind dart: it hits c with probability θ_c. For V = 3:
#
#     0 -------|-●-----●--|------- 1       | the 2 borders, ● what was read: b, b
#          a        b         c            4 darts, so 5 gaps: a has 1, b has 3, c has 1
#
# We do not see where on the line the darts are, only which piece each of them hit. Where will the
# next one fall? All darts are thrown alike, so whatever the order of those already there, the next
# falls into each of the gaps between them with the same chance. After N(h) symbols there are
# N(h) + V - 1 darts and N(h) + V gaps, and N(hc) + 1 of them lie in piece c. So the next symbol is
# c with probability (N(hc) + 1)/(N(h) + V): as if each symbol had been seen once more than it was.
#
# This took every θ for equally plausible. To hold that no symbol is very rare, throw k·V - 1 darts
# first and let only each k-th be a border. Then piece c has N(hc) + k gaps:
#
#     ADD-K     P(c|h) = (N(hc) + k) / (N(h) + k·V)                        (k = 1: Laplace).     (7)
#
# For k below 1, which holds that few symbols take most of the line, a density in place of darts
# gives the same (the Dirichlet distribution; exercise 10). Now nothing is impossible. But all that
# is new is equally likely, z as e; and with 61 symbols Laplace's 61 drown a context seen twice.
#
#     After "a" in "abracadabra", V = 5:     a       b       c       d       r
#     shares (4)                             0      2/4     1/4     1/4      0
#     add-one (7)                           1/9     3/9     2/9     2/9     1/9

# %% 6. A shorter context knows more
# How long should a context be? A short one mixes up what differs: order 0 predicts the same after
# "q" and after "z", and no amount of text will cure that. Such an error is called BIAS. A long one
# has been seen a few times only, so its shares are accidents: another text would have given others.
# Such an error is called VARIANCE. More context trades the first for the second.
#
# But why choose? Where h is rare, h′ (h without its oldest symbol) is less rare and often points
# the same way. So let h say what it has seen, and leave a reserve of its vote to h′, which does
# likewise, down to the empty context, and below that to 1/V, which has no opinion:
#
#     P(c|h) = seen(hc) + reserve(h)·P(c|h′),       reserve(h) = 1 - Σ_c seen(hc).               (8)
#
# Its sum over c is 1 if that of P(c|h′) is. Where N(h) = 0, P(c|h) = P(c|h′). The methods below
# differ in `seen`. (BACKOFF is a relative in which h′ speaks only of what h has not seen.)
#
# INTERPOLATED, after Jelinek and Mercer, gives the table a fixed share λ of the vote:
#
#     P(c|h) = λ·N(hc)/N(h) + (1 - λ)·P(c|h′).                                                   (9)
#
# Which λ? On the text that was counted, λ = 1 is best (section 3). So count only a part of it, and
# choose λ on another, the DEVELOPMENT piece. But a context seen often should get more of the vote
# than one seen once. Two methods find the share for each h by itself.
#
# WITTEN-BELL. How likely is something new after h? Let D(h) be how many different symbols came
# after h: after "q" one, after a space dozens. Each of them was new when it first came. So in N(h)
# symbols, something new happened D(h) times. Count this event, "new", along with the symbols: that
# makes N(h) + D(h) counts, N(hc) of them for c and D(h) for "new"; and h′ says what is new:
#
#     P(c|h) = (N(hc) + D(h)·P(c|h′)) / (N(h) + D(h)).                                          (10)
#
# It is (9) with λ = N(h)/(N(h) + D(h)): large where h came often, and before few different symbols.
#
# KNESER-NEY. Some of what we have seen, we saw by luck; so it comes less often in the next text.
# Church and Gale (1991) counted pairs of words in one half of 44 million: those seen r times came
# about r - 0.75 times in the other half, for r from 2 to 9. So discount each count by the same d,
# 0 < d ≤ 1. As D(h) different symbols came after h, this frees d·D(h) for the reserve:
#
#     P(c|h) = (N(hc) - d)⁺ / N(h) + d·D(h)/N(h)·P(c|h′),          (x)⁺ = max(x, 0).            (11)
#
# In our stories, three letters in a row that one half has 2 to 4 times come only 0.03 times less in
# the other half; seven letters in a row, 0.94 times less. So d is chosen in development.
#
# And P(c|h′)? It should not be the share of c after h′. "Francisco" is frequent, but comes after
# "San", where the long context has it covered; the short one is asked when the long one fails. What
# should be kept is this: if contexts come as often as in the text, so must c. For order 1, where h
# is a symbol, h′ is empty and P(c|h′) = P(c), this says
#
#     N(c)/N = Σ_h N(h)/N·P(c|h) = (1/N)·Σ_h ( (N(hc) - d)⁺ + d·D(h)·P(c) ).
#
# Let B(c) be how many different h came before c. Each of their counts is at least 1 ≥ d, so d is
# taken off B(c) times: Σ_h (N(hc) - d)⁺ = Σ_h N(hc) - d·B(c). Here Σ_h N(hc) = N(c), but for the
# first symbol of the text, which has no h. And Σ_h D(h) counts the different pairs by their first
# symbols, as Σ_x B(x) does by their last: the two are equal. So, times N,
#
#     N(c) = N(c) - d·B(c) + d·Σ_x B(x)·P(c),      hence      P(c) = B(c) / Σ_x B(x).           (12)
#
# It does not matter how often c occurs, but after how many different symbols. So only the context
# that was given uses N(hc) in (11). For the shorter ones, down to the empty one, B(hc) takes its
# place: how many different symbols came before hc.
#
#     "abracadabra" has 7 different pairs: ab ac ad br ca da ra. B(a) = 3 (c, d, r), all others 1.
#
#     d = 0.75                               a       b       c       d       r
#     B(c), empty context                    3       1       1       1       1     N = 7, D = 5
#     P(c) by (11), below it 1/5           0.429   0.143   0.143   0.143   0.143
#     N(ac), context a                       0       2       1       1       0     N = 4, D = 3
#     P(c|a): Kneser-Ney                   0.241   0.393   0.143   0.143   0.080
#     P(c|a): Witten-Bell, from N only     0.161   0.366   0.196   0.196   0.080
#
# "bard" is possible now. And to Kneser-Ney a second a after "a", which was never seen, is likelier
# than c, which was, because a comes after three different symbols.

SMOOTHINGS = ("kneser-ney", "mle", "add-k", "interpolated", "witten-bell")

# %% 7. Temperature and its kin
# To write, draw from the prediction. That is honest but at times wild: symbols unlikely one by one
# are not so unlikely together. To be safer, or bolder, change the odds. The odds of c against x are
# p_c/p_x. Raise them all to one power, 1/τ, where τ > 0 is the TEMPERATURE:
#
#     q_c = p_c^(1/τ) / Σ_x p_x^(1/τ),     so     q_c/q_x = (p_c/p_x)^(1/τ).                    (13)
#
# τ = 1 gives p back. τ = 1/2 squares the odds: (1/2, 1/4, 1/4) becomes (2/3, 1/6, 1/6). As τ → 0,
# the likeliest takes all; as τ → ∞, all that is possible becomes equal. (On the name: exercise 6.)
#
# Two cuts may follow. TOP-K keeps a fixed number of the likeliest symbols, however sure the model
# is: after "q" five are four too many, at the start of a word too few. TOP-P, the nucleus of
# Holtzman et al., keeps the fewest of the likeliest whose sum reaches top_p, always at least one.
# What was kept is then divided by its sum.


def tempered(p, temperature=1.0, top_k=None, top_p=None):
    """p (V,) after temperature (13), then top_k, then top_p: again a distribution (V,).

    temperature 0 puts all on the likeliest symbol, the first of equals. top_p=1 keeps all.
    ValueError: p is no distribution, or an argument is out of range.
    """
    p = check_distribution("p", p)
    if p.ndim != 1:
        raise ValueError(f"the shape of p is {p.shape}; expected one dimension, (V,)")
    if not 0 <= number(temperature) < math.inf:
        raise ValueError(f"temperature is {temperature!r}; expected a finite number, 0 or more")
    if top_k is not None:
        check_integer("top_k", top_k, 1)
    if top_p is not None and not 0 < number(top_p) <= 1:
        raise ValueError(f"top_p is {top_p!r}; expected None or 0 < top_p <= 1")
    likeliest = np.argsort(-p, kind="stable")  # (V,) ids; q will be in this order
    if temperature == 0:
        q = np.ones(1)  # only the first remains
    else:
        with np.errstate(divide="ignore", over="ignore"):  # ln 0 = -∞; a tiny τ may lead there too
            E = -np.log(p[likeliest])  # (V,) rising
            q = np.exp((E[0] - E) / float(temperature))  # (13), the largest 1: no overflow
    q = q[:top_k]  # (K,)
    q = q / q.sum()
    if top_p is not None and top_p < 1:
        reached = np.cumsum(q) >= float(top_p) - 1e-9  # rounding must not cost one symbol more
        q = q[: np.argmax(reached) + 1]  # up to the first place where the sum reaches top_p
    kept = np.zeros_like(p)
    kept[likeliest[: len(q)]] = q / q.sum()
    return kept


def sample(p, rng, temperature=1.0, top_k=None, top_p=None):
    """One id drawn by rng from tempered(p, ...): lay these end to end and throw a dart."""
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng is {rng!r}; expected a np.random.Generator")
    ends = np.cumsum(tempered(p, temperature, top_k, top_p))
    return int(np.searchsorted(ends / ends[-1], rng.random(), side="right"))


# GREEDY writing (temperature 0) takes the likeliest symbol each time. That need not lead to the
# likeliest text. Let a begin with probability 0.6 and b with 0.4; after a let a, b and c be equally
# likely, and after b let c be sure. Greedy begins with a, and its text has probability 0.6·1/3 =
# 0.2; but "bc" has 0.4·1 = 0.4. Nor is the likeliest text the best: people surprise their readers.

# %% 8. A million counts at once
# A context of n symbols and the symbol after it form an (n+1)-gram, hc. We want N(hc) of each gram
# in the text, for every n up to the order. Dictionaries, as in section 1, take a step of Python for
# each place and each n; sorting whole arrays is many times faster, if each gram is a number. Read
# as a number in base V it overflows 64 bits, as 11 characters of 61 kinds do. But a text of N
# symbols has at most N different grams of each length. So number these in sorted order; call that
# the RANK. Then a gram needs only two digits, context and last symbol:
#
#     key(hc) = rank(h)·V + c,          rank(hc) = place of key(hc) among the sorted different keys.
#
#     place            0    1    2    3    4    5    6    7    8    9   10
#     symbol           a    b    r    a    c    a    d    a    b    r    a      V = 5
#     id, and rank     0    1    4    0    2    0    3    0    1    4    0      sorted: 0 1 2 3 4
#     pair                 ab   br   ra   ac   ca   ad   da   ab   br   ra
#     key                   1    9   20    2   10    3   15    1    9   20      br: 1·5 + 4 = 9
#     rank                  0    3    6    1    4    2    5    0    3    6      1 2 3 9 10 15 20
#     triple                   abr  bra  rac  aca  cad  ada  dab  abr  bra
#     key                        4   15   32    5   23   10   26    4   15      bra: 3·5 + 0 = 15
#
# The keys of each length need only the ranks of the length below. These are less than N, so the
# keys are less than N·V, at any order. One rank more, the last, means "never seen". In the tables
# of counts its row holds zeros, so that a context that was never seen finds N(h) = 0.


class Level(NamedTuple):
    """What was counted for G grams hc and their C contexts h; the last row means "never seen"."""

    keys: np.ndarray  # (G + 1,) sorted; the last is 2⁶³ - 1, more than any key
    n_hc: np.ndarray  # (G + 1,) N(hc), how often c came after h
    n_h: np.ndarray  # (C + 1,) N(h) = Σ_c N(hc)
    d_h: np.ndarray  # (C + 1,) D(h), how many different c came after h


def tally(keys, n_hc, n_contexts, vocab_size):
    """The Level with these different keys and their counts (G,), and so many contexts C."""
    h = keys // vocab_size  # takes the last symbol off
    n_h = np.bincount(h, weights=n_hc, minlength=n_contexts + 1)
    d_h = np.bincount(h, weights=n_hc > 0, minlength=n_contexts + 1)
    return Level(np.append(keys, 2**63 - 1), np.append(n_hc, 0.0), n_h, d_h)


def check_sizes(order, vocab_size):
    """Both as int; ValueError unless order ≥ 0 and 1 ≤ vocab_size < 2³¹: keys must fit 64 bits."""
    check_integer("order", order, 0)
    check_integer("vocab_size", vocab_size, 1)
    if vocab_size >= 2**31:
        raise ValueError(f"vocab_size is {vocab_size}; expected less than 2**31")
    return int(order), int(vocab_size)  # NumPy's narrow or unsigned numbers would overflow below


def check_ids(name, ids, vocab_size, least=0):
    """ids as an int64 array (N,); ValueError unless N ≥ least and all are in 0..vocab_size-1."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or len(ids) < least:
        raise ValueError(f"the shape of {name} is {ids.shape}; expected a row, {least} or longer")
    if len(ids) and ids.dtype.kind not in "iu":
        raise ValueError(f"the type of {name} is {ids.dtype}; expected integers")
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if len(wrong):
        raise ValueError(f"an id in {name} is {wrong[0]}; expected 0 to {vocab_size - 1}")
    return ids.astype(np.int64)


def count_levels(ids, order, vocab_size):
    """Count the grams of ids (N,) with contexts of 0, 1, ..., order symbols (at most N).

    Returns two lists of Levels: in the first n_hc is N(hc), how often hc occurs; in the second, one
    shorter, B(hc), after how many different symbols it does.
    """
    order, vocab_size = check_sizes(order, vocab_size)
    ids = check_ids("ids", ids, vocab_size)
    occurs, follows = [], []
    h = np.zeros(len(ids), dtype=np.int64)  # (N,) the empty context has rank 0
    n_contexts = 1
    shorter = None  # (N - n + 1,) the ranks of the grams of the round before
    for n in range(min(order, len(ids)) + 1):
        # h (N - n,) holds the rank of the context of n symbols at each of the places n, n + 1, ...
        key = h * vocab_size + ids[n:]  # (N - n,) of the gram that ends at each of these places
        keys, gram, n_hc = np.unique(key, return_inverse=True, return_counts=True)  # gram: its rank
        occurs.append(tally(keys, n_hc, n_contexts, vocab_size))
        if n > 0:
            # Drop the first symbol of a gram: what remains is the shorter gram that ends at the
            # same place. Each different gram adds one to the B of what remains.
            rest = np.empty(len(keys), dtype=np.int64)  # (G,) its rank
            rest[gram] = shorter[1:]
            below = occurs[n - 1]
            b_hc = np.bincount(rest, minlength=len(below.keys) - 1)
            follows.append(tally(below.keys[:-1], b_hc, len(below.n_h) - 1, vocab_size))
        shorter = gram
        h = gram[:-1]  # a gram is the context of the place after it
        n_contexts = len(keys)
    return occurs, follows


def find(keys, wanted):
    """The rank of each wanted key; if it is not there, the last rank, "never seen"."""
    ranks = np.searchsorted(keys, wanted)
    return np.where(keys[ranks] == wanted, ranks, len(keys) - 1)


def look_up(levels, ids, vocab_size):
    """[(h, gram)] for each level n: ranks of context and gram at places n, n + 1, ... of ids."""
    ranks = []
    h = np.zeros(len(ids), dtype=np.int64)  # (N - n,)
    for n, level in enumerate(levels):
        gram = find(level.keys, h * vocab_size + ids[n:])  # (N - n,)
        ranks.append((h, gram))
        h = gram[:-1]
    return ranks


# %% 9. The whole model
# `fit` counts; `distribution` starts with 1/V and climbs by (8) from the empty context to the
# longest; `log_probabilities` does so at all places of a text. ValueError: bad ids, or no `fit`.


@dataclass(eq=False)
class MarkovChain:
    """P(c|h) by counting, h the last `order` symbols; order 0 looks at none.

    smoothing: "kneser-ney" (11, 12) with its discount d, "mle" (4), "add-k" (7) with k,
    "interpolated" (9) with weight λ, or "witten-bell" (10). vocab_size is V: ids that training
    never showed get probability too, except with "mle". ValueError: a setting out of range.
    """

    order: int
    vocab_size: int
    smoothing: str = "kneser-ney"
    k: float = 1.0
    weight: float = 0.7
    discount: float = 0.75

    def __post_init__(self):
        self.order, self.vocab_size = check_sizes(self.order, self.vocab_size)
        if self.smoothing not in SMOOTHINGS:
            raise ValueError(f"smoothing is {self.smoothing!r}; expected one of {SMOOTHINGS}")
        if not 0 < number(self.k) < 1e100:
            raise ValueError(f'k is {self.k!r}; expected 0 < k < 1e100 (for 0: smoothing="mle")')
        if not 0 < number(self.weight) < 1:
            raise ValueError(f"weight is {self.weight!r}; expected 0 < weight < 1")
        if not 0 < number(self.discount) <= 1:
            raise ValueError(f"discount is {self.discount!r}; expected 0 < discount <= 1")
        self.k = float(self.k)
        self.weight = float(self.weight)
        self.discount = float(self.discount)
        self.ids = None  # (N,) the text that was counted
        self.occurs = None  # its Levels with N(hc), one for each order
        self.follows = None  # and with B(hc), one fewer

    def fit(self, ids):
        """Count the text ids (N,), forgetting others; returns self."""
        self.ids = check_ids("ids", ids, self.vocab_size, least=1)
        self.occurs, self.follows = count_levels(self.ids, self.order, self.vocab_size)
        return self

    def variant(self, **settings):
        """A chain with some other settings on the same counts; the order cannot grow."""
        self._check_fitted()
        other = replace(self, **settings)
        if other.order > self.order or other.vocab_size != self.vocab_size:
            raise ValueError(f"{self} has no counts for {other}")
        other.ids = self.ids
        other.occurs = self.occurs[: other.order + 1]
        other.follows = self.follows[: other.order]
        return other

    def _check_fitted(self):
        if self.ids is None:
            raise ValueError("the chain has counted nothing yet; expected a call of fit(ids) first")

    def _climb(self, n, at_top, h, gram, below):
        """P(c|h) by (8) from below = P(c|h′); h, gram: ranks at level n, of any one shape."""
        kneser_ney_below = self.smoothing == "kneser-ney" and not at_top
        level = self.follows[n] if kneser_ney_below else self.occurs[n]
        n_hc, n_h, d_h = level.n_hc[gram], level.n_h[h], level.d_h[h]
        if self.smoothing == "add-k":
            return (n_hc + self.k) / (n_h + self.k * self.vocab_size)  # (7)
        total = np.maximum(n_h, 1)  # no division by 0: where h was not seen, `below` will stand
        if self.smoothing == "mle":
            p = n_hc / total  # (4)
        elif self.smoothing == "interpolated":
            p = self.weight * n_hc / total + (1 - self.weight) * below  # (9)
        elif self.smoothing == "witten-bell":
            p = (n_hc + d_h * below) / (total + d_h)  # (10)
        else:
            kept = np.maximum(n_hc - self.discount, 0)
            p = (kept + self.discount * d_h * below) / total  # (11)
        return np.where(n_h > 0, p, below)

    def distribution(self, context=()):
        """P(c|context) for every c: (V,). Of a longer context than the order, the end counts."""
        self._check_fitted()
        V = self.vocab_size
        ids = check_ids("context", context, V)
        ids = ids[max(0, len(ids) - len(self.occurs) + 1) :]
        # The empty context has rank 0; the last gram of n symbols is the context of n symbols.
        ranks = [0] + [gram[-1] for _, gram in look_up(self.occurs[: len(ids)], ids, V)]
        p = np.full(V, 1 / V)
        for n, h in enumerate(ranks):
            gram = find(self.occurs[n].keys, h * V + np.arange(V))  # (V,)
            p = self._climb(n, n == len(ids), h, gram, p)
        return p

    def log_probabilities(self, ids):
        """ln P(x_t|context) at each place t of ids: (N,), or -inf. The first has no context."""
        self._check_fitted()
        ids = check_ids("ids", ids, self.vocab_size, least=1)
        p = np.full(len(ids), 1 / self.vocab_size)
        for n, (h, gram) in enumerate(look_up(self.occurs, ids, self.vocab_size)):
            at_top = n == len(self.occurs) - 1
            below = p[len(p) - len(h) :]  # at the places n, n + 1, ...
            p = self._climb(n, at_top, h, gram, below)  # (N - n,)
        # The places before these have shorter contexts: all that came since the start of the text.
        start = [self.distribution(ids[:t])[ids[t]] for t in range(len(ids) - len(p))]
        with np.errstate(divide="ignore"):
            return np.log(np.concatenate([start, p]))

    def perplexity(self, ids):
        """e^(mean surprise in nats), (6); inf if an id has probability 0, as it may with "mle"."""
        with np.errstate(over="ignore"):
            return float(np.exp(-self.log_probabilities(ids).mean()))

    def generate(self, n, rng, context=(), temperature=1.0, top_k=None, top_p=None):
        """n new ids (n,) that follow the context; options as in sample. ValueError: bad input."""
        check_integer("n", n, 0)
        ids = check_ids("context", context, self.vocab_size).tolist()
        for _ in range(n):
            p = self.distribution(ids[max(0, len(ids) - self.order) :])
            ids.append(sample(p, rng, temperature, top_k, top_p))
        return np.array(ids[len(ids) - int(n) :], dtype=np.int64)


# What a chain knows follows from its text and its settings. So a file keeps these, as an .npz: that
# is a zip of arrays with a checksum of each, and nothing in it is ever run.

LONGEST_ORDER = 100  # of a file or a command; counting takes time and memory for each order


def check_kept(chain, symbols):
    """ValueError unless symbols is a list of V different strings, and the order is not too long."""
    if chain.order > LONGEST_ORDER:
        raise ValueError(f"order is {chain.order}; expected at most {LONGEST_ORDER} in a file")
    strings = isinstance(symbols, list) and all(isinstance(symbol, str) for symbol in symbols)
    if not strings or not len(symbols) == len(set(symbols)) == chain.vocab_size:
        raise ValueError(f"{symbols!r} is no list of {chain.vocab_size} different strings")


def save_chain(path, chain, symbols):
    """Write chain and symbols, a list of V strings, to one .npz; it appears whole or not at all."""
    chain._check_fitted()
    check_kept(chain, symbols)
    path = Path(path)
    settings = json.dumps({**asdict(chain), "symbols": symbols}).encode()
    ids = chain.ids.astype(np.min_scalar_type(chain.vocab_size - 1))  # as few bytes as will do
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, ids=ids, settings=np.frombuffer(settings, dtype=np.uint8))
            file.flush()
            os.fsync(file.fileno())  # on the disk before it takes the old file's place
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_chain(path):
    """(chain, symbols) as save_chain wrote them. ValueError: the file is damaged or another's."""
    data = Path(path).read_bytes()
    try:
        if sum(part.file_size for part in zipfile.ZipFile(io.BytesIO(data)).infolist()) > len(data):
            raise ValueError("its arrays claim to be longer than the file")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            if sorted(arrays.files) != ["ids", "settings"]:
                raise ValueError(f"it holds {sorted(arrays.files)}; expected ids and settings")
            settings = json.loads(arrays["settings"].tobytes())
            symbols = settings.pop("symbols")
            chain = MarkovChain(**settings)
            check_kept(chain, symbols)
            chain.fit(arrays["ids"])
    except Exception as error:  # damage shows itself in many ways, most of them zipfile's own
        raise ValueError(f"{path} is damaged or no saved chain: {error}") from None
    return chain, symbols


# %% 10. Beginnings and ends
# A story goes on where the last one stopped; a name stands alone. How does it begin, and when is it
# over? Make both of them symbols: before each name write as many start symbols as the context is
# long, and after it an end symbol. For order 2 "anna" becomes ^ ^ a n n a $. What follows ^^ is how
# names begin, P($|na) says how probably a name is over after "na", and no context reaches back into
# another name. To write one, begin with ^^ and draw until $ comes.

START, END = "<start>", "<end>"  # longer than a character, so no text contains them


def encode(pieces, vocabulary):
    """The place of each piece in the vocabulary: (N,) ids. ValueError: it is not there."""
    place = {piece: i for i, piece in enumerate(vocabulary)}
    for piece in pieces:
        if piece not in place:
            raise ValueError(f"{piece!r} was never counted; expected only symbols that were")
    return np.array([place[piece] for piece in pieces], dtype=np.int64)


def names_row(names, symbols, order):
    """All the names in one row of ids, each after `order` starts and before an end."""
    rows = [[START] * order + list(name) + [END] for name in names]
    return encode([symbol for row in rows for symbol in row], symbols)


def write_name(chain, symbols, rng, beginning="", longest=100, **options):
    """A name with this beginning by a chain of names, cut off at `longest` characters."""
    name = beginning
    while len(name) < longest:
        context = encode([START] * chain.order + list(name), symbols)
        symbol = symbols[chain.generate(1, rng, context, **options)[0]]
        if symbol in (START, END):  # a start is never meant here, but smoothing leaves it a little
            break
        name += symbol
    return name


# %% Demonstration
# Every setting is chosen on a development piece, the last tenth of the training part. Only then all
# of that part is counted, and the held-out text is predicted, at which no choice has looked.

KNESER_NEYS = [{"discount": d} for d in (0.6, 0.7, 0.8, 0.85, 0.9, 0.95)]
COLUMNS = {
    "mle": [{"smoothing": "mle"}],
    "add-1": [{"smoothing": "add-k", "k": 1.0}],
    "add-k": [{"smoothing": "add-k", "k": k} for k in (0.3, 0.1, 0.03, 0.01, 0.003)],
    "interpolated": [{"smoothing": "interpolated", "weight": w} for w in (0.5, 0.7, 0.9, 0.99)],
    "witten-bell": [{"smoothing": "witten-bell"}],
    "kneser-ney": KNESER_NEYS,
}
DRAWN_WITH = [("temperature", t) for t in (0.0, 0.3, 0.6, 1.0, 1.5)]
DRAWN_WITH += [("top_k", 5), ("top_p", 0.9)]


def develop(counted, ids, tried, given=-1):
    """(nats a symbol, settings): those of `tried` that predict ids best, `given` ones left out."""
    choices = []
    for settings in tried:
        chain = counted.variant(**settings)
        surprise = -chain.log_probabilities(ids)[ids != given].mean()
        choices.append((surprise, asdict(chain)))
    return min(choices, key=lambda choice: choice[0])


def report_orders(train, held, V, orders):
    """Every order with every smoothing: (the chain chosen, the chosen Kneser-Ney of each order)."""
    n_counted = len(train) - len(train) // 10
    part = MarkovChain(max(orders), V).fit(train[:n_counted])
    whole = MarkovChain(max(orders), V).fit(train)
    ranks = look_up(whole.occurs, held, V)
    print("\n1. How much context? Perplexity per character. new: the held-out grams that training")
    print("   lacks; inf: something had the probability 0; k, d: chosen in development\n")
    print("                     training | held-out text")
    print("order contexts    new     mle |    mle  add-1  add-k interp witten kneser     k    d")
    choices, table, kneser_neys = [], [], []
    for order in orders:
        chains = {}
        for name, column in COLUMNS.items():
            tried = [{"order": order, **settings} for settings in column]
            surprise, settings = develop(part, train[n_counted:], tried)
            choices.append((surprise, settings))
            chains[name] = whole.variant(**settings)
        kneser_neys.append(chains["kneser-ney"])
        table.append([chain.perplexity(held) for chain in chains.values()])
        level, (_, gram) = whole.occurs[order], ranks[order]
        new = np.mean(level.n_hc[gram] == 0)
        row = f"{order:5} {np.count_nonzero(level.n_h):8,} {new:6.1%}"
        row += f" {chains['mle'].perplexity(train):7.2f} |"
        row += "".join(f"{perplexity:7.2f}" for perplexity in table[-1])
        print(f"{row}{chains['add-k'].k:6} {chains['kneser-ney'].discount:4}", flush=True)
    best = [f"{name} {orders[row]}" for name, row in zip(COLUMNS, np.argmin(table, axis=0))]
    print("\n   Best orders: " + ", ".join(best))
    _, settings = min(choices, key=lambda choice: choice[0])
    chain = whole.variant(**settings)
    print(f"   Development chose {chain.smoothing}, order {chain.order}: ", end="")
    print(f"{chain.perplexity(held):.3f} on new text (lowest in the table: {np.min(table):.3f}).")
    return chain, kneser_neys


def report_samples(text, symbols, chain, chains, rng):
    """What the orders write, and what temperature, top_k and top_p do to the best chain."""
    known = set(re.findall(r"\w+", text))
    start = encode("\n", symbols) if "\n" in symbols else []
    print("\n2. What they write, with Kneser-Ney (¶ is a line break)\n")
    for each in chains:
        written = "".join(symbols[i] for i in each.generate(80, rng, start))
        print(f"   order {each.order}  {written}".replace("\n", "¶"))
    print(f"\n3. Temperature: 800 characters by {chain.smoothing} order {chain.order}. H: the mean")
    print("   entropy they were drawn with; real: the share of their words that training has\n")
    print("   drawn with         H, bits    real")
    for name, value in DRAWN_WITH:
        ids = chain.generate(800, rng, start, **{name: value})
        places = range(9, 800, 9)  # each ninth; 9 is the longest order, so no context is cut off
        drawn_from = [tempered(chain.distribution(ids[:t]), **{name: value}) for t in places]
        written = "".join(symbols[i] for i in ids)
        words = re.findall(r"\w+", written)[:-1] or [""]  # the last may be cut off
        real = np.mean([word in known for word in words])
        print(f"   {name:11} {value:<6} {np.mean(entropy(drawn_from, 2)):7.2f} {real:7.1%}")
        print("      " + written[:88].replace("\n", "¶"), flush=True)


def read_text(path):
    """The text of a UTF-8 file, at least 100 characters. ValueError: it is shorter, or no UTF-8."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    if len(text) < 100:
        raise ValueError(f"{path} has {len(text)} characters; expected at least 100")
    return text


def report(args):
    """Everything in order; the last line is the ladder's, of the chain that development chose."""
    text = read_text(args.text)[: 30_000 if args.fast else None]
    orders = range(5 if args.fast else 10)
    symbols, n_train = sorted(set(text)), int(0.9 * len(text))
    train, held = np.split(encode(text, symbols), [n_train])
    size = f"{len(train):,} characters to count, {len(held):,} to predict"
    print(f"Stage 1: {Path(args.text).name}, {size}")
    chain, chains = report_orders(train, held, len(symbols), orders)
    report_samples(text[:n_train], symbols, chain, chains, np.random.default_rng(args.seed))
    nats = math.log(chain.perplexity(held))
    print(f"\nheld-out: {nats:.3f} nats/char | {nats / math.log(2):.3f} bits/char | ", end="")
    print(f"perplexity {math.exp(nats):.2f}   (stage 1, {chain.smoothing} order {chain.order})")


def count_text(args):
    """(chain, symbols) of the whole text; the order, if not given, and d are chosen on its end."""
    text = read_text(args.text)
    symbols = sorted(set(text))
    ids = encode(text, symbols)
    n_counted = len(ids) - len(ids) // 10
    orders = range(10) if args.order is None else [args.order]
    counted = MarkovChain(max(orders), len(symbols)).fit(ids[:n_counted])
    tried = [{"order": order, **settings} for order in orders for settings in KNESER_NEYS]
    _, settings = develop(counted, ids[n_counted:], tried)
    return MarkovChain(**settings).fit(ids), symbols


def count_names(args, rng):
    """(chain, symbols) of the names in a file; order and d are chosen on a tenth of the names."""
    names = [line.strip() for line in read_text(args.names).split("\n") if line.strip()]
    if len(names) < 10:
        raise ValueError(f"{args.names} has {len(names)} names; expected at least 10, one a line")
    rng.shuffle(names)
    symbols = [START, END, *sorted(set("".join(names)))]
    n_counted = len(names) - len(names) // 10
    some, others = names[:n_counted], names[n_counted:]
    choices = []
    for order in range(7) if args.order is None else [args.order]:
        counted = MarkovChain(order, len(symbols)).fit(names_row(some, symbols, order))
        row = names_row(others, symbols, order)
        choices.append(develop(counted, row, KNESER_NEYS, given=symbols.index(START)))
    nats, settings = min(choices, key=lambda choice: choice[0])
    chain = MarkovChain(**settings)
    best = f"order {chain.order} with d = {chain.discount}, {nats / math.log(2):.3f} bits a letter"
    print(f"{len(names):,} names. Nine tenths predict the others best by {best}.\n", flush=True)
    return chain.fit(names_row(names, symbols, chain.order)), symbols


def command(args):
    """Count or load a chain, save it if asked, and let it write."""
    rng = np.random.default_rng(args.seed)
    temperature = 1.0 if args.temperature is None else args.temperature
    options = dict(temperature=temperature, top_k=args.top_k, top_p=args.top_p)
    tempered([1.0], **options)  # wrong ones are refused before the counting
    if args.load is not None:
        chain, symbols = load_chain(args.load)
    elif args.names is not None:
        chain, symbols = count_names(args, rng)
    else:
        chain, symbols = count_text(args)
    if args.save is not None:
        save_chain(args.save, chain, symbols)
    prompt = args.prompt or ""
    if START in symbols:
        length = 20 if args.length is None else args.length
        names = [write_name(chain, symbols, rng, prompt, **options) for _ in range(length)]
        known = "".join(symbols[i] for i in chain.ids).replace(START, "").split(END)[:-1]
        old = sum(name in known for name in names)
        print("\n".join(names))
        print(f"\n{old} of these {length} names are in the file, {length - old} are new.")
    else:
        length = 300 if args.length is None else args.length
        line_start = "\n" if "\n" in symbols else ""
        ids = chain.generate(length, rng, encode(prompt or line_start, symbols), **options)
        print(prompt + "".join(symbols[i] for i in ids))


def main(argv=None):
    """Count the stories and report, or let a chain write."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it was closed before the start
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    parser = argparse.ArgumentParser(description="Stage 1: language models that count.")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    add = parser.add_argument
    add("--fast", action="store_true", help="a smoke run of the report")
    add("--seed", type=int, default=0, help="of every random choice [0]")
    add("--text", metavar="FILE", help="what to count [the stories]")
    add("--prompt", metavar="TEXT", help="write on from this beginning, instead of a report")
    add("--names", metavar="FILE", help="write names like those in the file, one a line")
    add("--length", type=int, metavar="N", help="how many characters [300] or names [20] to write")
    add("--order", type=int, metavar="N", help="length of the context [chosen in development]")
    add("--temperature", type=float, metavar="X", help="of what is written [1]")
    add("--top_k", type=int, metavar="N", help="write with the N likeliest symbols only")
    add("--top_p", type=float, metavar="X", help="write with those that reach probability X only")
    add("--save", metavar="FILE", help="keep the chain that writes, in an .npz file")
    add("--load", metavar="FILE", help="write with a chain that was kept")
    args = parser.parse_args(argv)
    writing = {**vars(args), "fast": None, "seed": None, "text": None}
    status, message = 0, None
    try:
        check_integer("--seed", args.seed, 0)
        check_integer("--length", args.length or 0, 0)
        if (args.order or 0) > LONGEST_ORDER:
            raise ValueError(f"--order is {args.order}; expected at most {LONGEST_ORDER}")
        if args.load is not None and [args.text, args.names, args.order] != [None] * 3:
            raise ValueError("--load brings its own text; expected no --text, --names or --order")
        if args.text is not None and args.names is not None:
            raise ValueError("--text and --names are two things to count; expected one of them")
        if args.text is None:
            args.text = Path(__file__).resolve().parent / "data" / "stories.txt"
        if all(value is None for value in writing.values()):
            report(args)
        else:
            command(args)
        sys.stdout.flush()
        return
    except BrokenPipeError:  # whoever was reading has seen enough
        pass
    except KeyboardInterrupt:
        status, message = 130, "\n"
    except (OSError, ValueError) as error:
        status, message = 2, f"{parser.prog}: error: {error}\n"
    try:
        sys.stdout.flush()
    except OSError:  # a closed pipe, a full disk: or Python's own flush at the end would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    parser.exit(status, message)


# %% What to take away
# P(text) = Π P(x_t|context), and a context of n symbols stands for the whole past        (1, 2)
# Count and divide: nothing explains the past better, and all that is new is impossible   (4)
# H(p, q) = H(p) + KL(p‖q) ≥ H(p): surprise measures a model; perplexity is e^surprise    (5, 6)
# P(c|h) = what h has seen + the rest by a shorter context: Kneser-Ney, or Witten-Bell    (8, 10-12)
# To write, draw; with τ < 1 or top_p for safety, at the price of variety                 (13)

# %% Common mistakes
# 1. A splendid perplexity, and wrong: the probabilities add up to more than 1. See (8), `reserve`.
# 2. A model of words looks worse than one of letters: N in (6) differs. Compare bits per letter.
# 3. More context seems better, and it copies: order or d chosen on the counted text. See `develop`.
# 4. A held-out number that new texts do not reach: something was chosen by it. See `report_orders`.
# 5. Some counts are too large: in base V different n-grams outgrew 64 bits. See RANK in section 8.
# 6. Order 0 that sees the whole text: ids[-order:] is all of ids. See max(0, ...) in `generate`.

# %% Exercises
# They are in exercises/stage01.py, and `python exercises` checks them.
#  1. ★ (by hand) Keys and ranks of "abab"
#  2. ★ (by hand) Four letters
#  3. ★★ (derive) Witten-Bell is add-k with a k of its own
#  4. ★★ (implement) Kneser-Ney for one context
#  5. ★★ (find the bug) The nucleus
#  6. ★★ (derive) The free energy
#  7. ★★ (explain) Better and better, and useless
#  8. ★★ (implement) If order 1 wrote for ever
#  9. ★★ (measure) Twice the text
# 10. ★★★ (derive) A density in place of darts
# 11. ★★★ (project) Names, better than the stage's

# %% Where this leads
# Every language model is scored by (6) and writes by (13). But a table cannot see that two contexts
# are alike: stage 3 puts a function in its place, and stage 2 finds out how to change it.

if __name__ == "__main__":
    main()
