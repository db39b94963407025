# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 1: count. What comes next, if all we ever did was read and keep a tally?

A language model is a machine that looks at the beginning of a text and gives every symbol that
could come next a probability. This one idea carries the whole book, from here to the models in use
today; only the machine grows. The first machine counts: it looks at the last few symbols, recalls
what followed them in the text it has read, and predicts in proportion. That is the best possible
answer to one question, and no answer to another: what of all that was never seen? This file is
about both.

  Predict:  1 one symbol at a time         2 why to count            3 a million counts at once
  Judge:    4 surprise and perplexity
  Mend:     5 never seen, not impossible   6 a shorter context knows more
  Write:    7 temperature and its kin      8 the whole model         9 the chain in the long run

Run `python stage01_markov.py [--fast] [--seed N] [--text FILE]`. It prints how well every order and
every remedy predicts stories it has not read, and what they write themselves.

Rests on: Markov's count of Pushkin's letters (1913); Shannon, "A mathematical theory of
communication" (1948); Jelinek, Mercer, "Interpolated estimation of Markov source parameters from
sparse data" (1980); Witten, Bell, "The zero-frequency problem" (1991); Kneser, Ney, "Improved
backing-off for m-gram language modeling" (1995); Chen, Goodman, "An empirical study of smoothing
techniques for language modeling" (1999); Holtzman et al., "The curious case of neural text
degeneration" (2020).
"""

import argparse
import math
import numbers
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

# %% 1. One symbol at a time
# A text is a row of symbols x₁x₂...x_T, each one of V: characters now, words at the end. In code a
# symbol is a number, its id, from 0 to V-1. A language model gives every text a probability.
#
# There are V^T texts of length T, too many to list. The way out is conditional probability: of the
# times when A happens, the share in which B happens too, P(B|A) = P(A and B)/P(A). Turn it around,
# P(A and B) = P(A)·P(B|A), and split off the last symbol of the text, again and again:
#
#     P(x₁...x_T) = P(x₁)·P(x₂|x₁)·P(x₃|x₁x₂)···P(x_T|x₁...x_T₋₁) = Π_t P(x_t|x₁...x_t₋₁).       (1)
#
# (Π multiplies as Σ adds.) This is the chain rule of probability. Nothing was assumed, so nothing
# is lost: whoever can predict the next symbol knows the probability of every text. And whoever can
# predict can write: draw a symbol from the prediction, append it, predict again.
#
# But x₁...x_t₋₁ is a whole past, pasts do not repeat, and what happens once teaches no shares. In
# 1913 Markov went through 20,000 letters of Pushkin by hand, looking only at the letter before.
# His assumption, at order k: the last k symbols tell all that matters.
#
#     P(x_t|x₁...x_t₋₁) = P(x_t|h),     h = x_t₋ₖ...x_t₋₁, the context.                          (2)
#
# It is false: the end of this sentence depends on its beginning. But it is false in a useful way,
# because contexts come back. Everything below is about the numbers P(c|h), c a symbol, h a context.

# %% 2. Why to count
# Which P(c|h) explain a training text best? Take those that make it most probable: MAXIMUM
# LIKELIHOOD. By (1) and (2) the text's probability is a product of P(c|h) over its places. Let
# N(hc) be how often c comes after h, N(h) = Σ_c N(hc), and θ_c short for P(c|h) at one h. Then
#
#     P(text) = Π_h Π_c P(c|h)^N(hc),     and     ln P(text) = Σ_h Σ_c N(hc)·ln P(c|h).
#
# The logarithm grows with its argument, so both have their maximum at the same place; and it turns
# the product into a sum in which each h has a part of its own. So, for each h:
#
#     make  L(θ) = Σ_c N(hc)·ln θ_c  as large as possible,     where  Σ_c θ_c = 1.
#
# Without the constraint all θ would rise for ever. With it, θ_c grows only at the cost of another,
# θ_d. The slope of L in θ_c is N(hc)/θ_c, so moving a sliver ε from d to c changes L by
# ε·(N(hc)/θ_c - N(hd)/θ_d). At the maximum no move gains: all the slopes are one number λ,
#
#     N(hc)/θ_c = λ  for every c.                                                                (3)
#
# λ is Lagrange's multiplier, and his recipe comes to the same: set the slopes of L - λ·(Σθ - 1) to
# 0. From (3), θ_c = N(hc)/λ, and since the θ add up to 1, λ = Σ_c N(hc) = N(h):
#
#     P(c|h) = N(hc)/N(h).     The most likely model is the table of shares: count and divide.   (4)
#
# (Section 4 proves that no other θ does as well.) Where N(h) = 0 the text says nothing about h, and
# every θ is as likely; there we shorten h until it was seen.

# %% 3. A million counts at once
# A context of n symbols and the symbol after it form an (n+1)-gram. We want N(hc) for each in the
# text. A dictionary would do; sorting arrays is faster, if each gram is one integer. A number in
# base V overflows 64 bits when V^(n+1) does, as 11 of 65 characters do. But a text of N symbols
# has at most N different grams. So number these in sorted order, and pack just two digits:
#
#     key(hc) = rank(h)·V + c,      rank(hc) = place of key(hc) among the sorted distinct keys.
#
# Ranks are below N, so keys are below N·V at any order. And one level of counting makes the ranks
# that the next one needs: the gram that ends at place t-1 is the longer context of place t. A rank
# equal to the number of keys means "never seen". The last row of each table stands for it and holds
# 0, so an unseen context finds N(h) = 0 like any other.


class Level(NamedTuple):
    """Counts for contexts of one length. G grams hc, C contexts h; the last rows are zeros."""

    keys: np.ndarray  # (G + 1,) sorted, then 2⁶³ - 1, behind every key
    n_hc: np.ndarray  # (G + 1,) N(hc), how often c came after h
    n_h: np.ndarray  # (C + 1,) N(h) = Σ_c N(hc)
    t_h: np.ndarray  # (C + 1,) T(h), how many different c came after h


def tally(keys, n_hc, contexts, vocab_size):
    """The Level with these distinct keys and counts (G,), and so many contexts C."""
    h = keys // vocab_size  # takes the last symbol off
    n_h = np.bincount(h, weights=n_hc, minlength=contexts + 1)
    t_h = np.bincount(h, weights=n_hc > 0, minlength=contexts + 1)
    return Level(np.append(keys, 2**63 - 1), np.append(n_hc, 0.0), n_h, t_h)


def count_levels(ids, order, vocab_size):
    """Count the grams of ids (N,) with a context of 0, 1, ..., order symbols.

    Returns two lists of order + 1 Levels: in the first n_hc is how often hc occurs; in the second
    (for section 6; its last level repeats) after how many different symbols hc occurs.
    """
    occurs, follows = [], []
    h = shorter = np.zeros(len(ids), dtype=np.int64)  # (N,) the empty context has rank 0
    contexts = 1
    for n in range(order + 1):  # h (N - n,): rank of the context at places n, n + 1, ...
        packed = h * vocab_size + ids[n:]
        keys, gram, n_hc = np.unique(packed, return_inverse=True, return_counts=True)
        if n > 0:
            end = np.empty(len(keys), dtype=np.int64)
            end[gram] = shorter[1:]  # the rank of each gram without its first symbol
            lower = occurs[-1]
            n_before = np.bincount(end, minlength=len(lower.keys) - 1)
            follows.append(tally(lower.keys[:-1], n_before, len(lower.n_h) - 1, vocab_size))
        occurs.append(tally(keys, n_hc, contexts, vocab_size))
        h, contexts, shorter = gram[:-1], len(keys), gram
    return occurs, follows + occurs[-1:]


def find(keys, wanted):
    """The rank of each wanted key, or the last rank, that of the zeros, if it is not there."""
    ranks = np.searchsorted(keys, wanted)
    return np.where(keys[ranks] == wanted, ranks, len(keys) - 1)


def walk(levels, ids, vocab_size):
    """For each level n: it, and the ranks of context and gram at places n, n + 1, ... of ids."""
    h = np.zeros(len(ids), dtype=np.int64)
    for n, level in enumerate(levels):
        gram = find(level.keys, h * vocab_size + ids[n:])  # (N - n,)
        yield level, h, gram
        h = gram[:-1]


# %% 4. Surprise and perplexity
# How good is a model? Let it predict a text it has not seen, and see how surprised it is. Surprise
# at an event of probability p should be 0 if p = 1, grow as p shrinks, and add up: two independent
# events have probability p·q, so s(p·q) = s(p) + s(q). The logarithm does that (and, up to the
# unit, nothing else continuous: Shannon, appendix 2): s(p) = -ln p in nats, -log₂ p = -ln p / ln 2
# in bits, in which one toss of a fair coin is 1.
#
# ENTROPY is the mean surprise at a source p of someone who knows p; CROSS-ENTROPY, of someone who
# believes q instead; the KULLBACK-LEIBLER DIVERGENCE is their difference, the price of the belief:
#
#     H(p) = -Σ p·ln p,     H(p, q) = -Σ p·ln q,     KL(p‖q) = H(p, q) - H(p) = Σ p·ln(p/q).
#
# (0·ln 0 counts as 0, its limit.) The price is never negative, and no inequality is used more often
# in this book. ln u lies below its tangent at u = 1: ln u ≤ u - 1, equal only at 1. So, over the
# symbols with p > 0,
#
#     -KL(p‖q) = Σ p·ln(q/p) ≤ Σ p·(q/p - 1) = Σ q - Σ p ≤ 1 - 1 = 0;   equal only if q = p. ∎   (5)
#
# Two gifts at once: with p_c = N(hc)/N(h), section 2's L(θ) is -N(h)·H(p, θ), largest at θ = p and
# nowhere else, so (4) is the maximum. And q = 1/V gives H(p) = ln V - KL(p‖q) ≤ ln V: nothing is
# harder to predict than a fair die with V sides.
#
# PERPLEXITY asks which die would be as hard. One with S sides has entropy ln S. So a model whose
# mean surprise on a text is H nats (H₂ = H/ln 2 bits) a symbol has the perplexity
#
#     S = e^H = 2^H₂ = P(text)^(-1/T),       because  H = -(1/T)·ln P(text):                     (6)
#
# an effective vocabulary size. At perplexity 5 the model is as much at a loss as if it had to guess
# among 5 equal symbols each time. One event of probability 0 makes it infinite, whatever the rest.


def expect(ok, name, value, expected):
    """ValueError unless ok, saying what the value is and what was expected."""
    if not ok:
        raise ValueError(f"{name} is {value!r}; expected {expected}")


def check_integer(name, value, least):
    """ValueError unless value is an integer from `least` to 2³¹ - 1 (so that keys fit 64 bits)."""
    ok = isinstance(value, numbers.Integral) and least <= value < 2**31
    expect(ok, name, value, f"an integer of at least {least}")


def check_distribution(name, p):
    """p as a float64 array whose last axis holds distributions; else ValueError."""
    p = np.asarray(p, dtype=np.float64)
    expect(p.ndim > 0 and p.size > 0, f"the shape of {name}", p.shape, "at least one probability")
    expect(np.all(p >= 0), f"the least entry of {name}", float(p.min()), "0 or more")
    sums = p.sum(axis=-1).reshape(-1)
    worst = float(sums[np.argmax(np.abs(sums - 1))])
    expect(abs(worst - 1) < 1e-5, f"a sum of {name}", worst, "1")
    return p


def cross_entropy(p, q, base=math.e):
    """H(p, q) = -Σ p·ln q in nats (base=2: bits): the mean surprise of q where p is true.

    p, q: distributions (V,) or rows of them (..., V). inf where q rules out what p allows.
    ValueError: a negative entry, a sum that is not 1, different shapes.
    """
    p, q = check_distribution("p", p), check_distribution("q", q)
    expect(p.shape == q.shape, "the shape of q", q.shape, f"that of p, {p.shape}")
    expect(base > 1, "base", base, "e (nats), 2 (bits) or another number above 1")
    with np.errstate(divide="ignore", invalid="ignore"):
        return 0.0 - np.where(p > 0, p * np.log(q), 0.0).sum(axis=-1) / math.log(base)


def entropy(p, base=math.e):
    """H(p) = H(p, p) in nats (base=2: bits) of p (..., V); ValueError as in cross_entropy."""
    return cross_entropy(p, p, base)


def kl_divergence(p, q, base=math.e):
    """KL(p‖q) = H(p, q) - H(p) in nats (base=2: bits); shapes, errors, inf as in cross_entropy."""
    return np.maximum(cross_entropy(p, q, base) - entropy(p, base), 0.0)  # (5), despite rounding


# %% 5. Never seen, not impossible
# (4) gives 0 to whatever did not happen in training, and new texts are full of that (the report
# counts it). It explains the past best and is useless for the future.
#
# The remedy begins with an admission: we do not know θ; one text leaves many θ plausible. Say how
# plausible each is beforehand, as a density f(θ), and let the text reweigh it (Bayes' rule):
#
#     f(θ|text) ∝ f(θ)·P(text|θ) = f(θ)·Π_c θ_c^N(hc)              (∝: up to a constant factor).
#
# A density that is itself a product of powers fits in best: the DIRICHLET prior, f ∝ Π_c θ_c^(k-1).
# With k = 1 all θ are equally plausible beforehand. Reweighed, it is
#
#     f(θ|text) ∝ Π_c θ_c^(a_c - 1),        a_c = N(hc) + k.
#
# The chance that c comes next is θ_c, averaged over this density: P(c|h) = E[θ_c]. To find it, hold
# all θ but two still and let probability flow between these, θ_d = s - θ_c. The quantity
# g = θ_c^a_c·θ_d^a_d·Π θ_e^(a_e - 1), e running over the others, is 0 at both ends of the flow, so
# its slopes on the way cancel. By the product rule the slope is
#
#     dg/dθ_c = (a_c·θ_d - a_d·θ_c)·Π_e θ_e^(a_e - 1),                 e running over all symbols.
#
# The product is our density. So E[a_c·θ_d - a_d·θ_c] = 0, that is, E[θ_c]/a_c = E[θ_d]/a_d. The
# means are in proportion to the a; and as they add up to 1,
#
#     ADD-K     P(c|h) = a_c / Σ_e a_e = (N(hc) + k) / (N(h) + k·V)        (k = 1: Laplace).     (7)
#
# As if each symbol had been seen k times more. Now nothing is impossible. But all that is new is
# equally likely, z as e; and 61 imaginary counts drown the two real ones of a context seen twice.

# %% 6. A shorter context knows more
# Where h is rare, h′ (h without its oldest symbol) is less rare and often points the same way. So
# let h say what it has seen, and leave a reserve of its vote to h′, which does likewise, down to
# the empty context, and below that 1/V, which has no opinion:
#
#     P(c|h) = seen(hc) + reserve(h)·P(c|h′),       reserve(h) = 1 - Σ_c seen(hc).               (8)
#
# Its sum over c is 1 if that of P(c|h′) is. Where N(h) = 0, P(c|h) = P(c|h′). Every method is one
# choice of `seen`. (Strict BACKOFF lets h′ speak only of what h has not seen. Letting it speak of
# everything, as here, is called interpolation, and predicts better: Chen and Goodman.)
#
# INTERPOLATED, after Jelinek and Mercer: a share λ of the vote for the table,
#
#     P(c|h) = λ·N(hc)/N(h) + (1 - λ)·P(c|h′).                                                   (9)
#
# A context seen often deserves more trust, so there is a λ for each length of h and each class of
# N(h): 1, 2-3, 4-7, ... Which λ? On the text that was counted, λ = 1 is best (section 2). So count
# all but the last tenth, and ask the tenth; then count all. Think of (9) as a hidden coin: with
# chance λ the symbol comes from the table, else from below. Bayes' rule says how probable it is
# that symbol i, now seen, came from the table, and the mean of that is a new λ:
#
#     rᵢ = λ·p_seen / (λ·p_seen + (1 - λ)·p_below),          λ′ = mean of rᵢ.                   (10)
#
# Repeating this is EM (Dempster, Laird, Rubin, 1977), and the tenth only gets likelier:
#
#     gain = Σᵢ ln( (λ′·p_seen + (1 - λ′)·p_below) / (λ·p_seen + (1 - λ)·p_below) )
#          = Σᵢ ln( rᵢ·λ′/λ + (1 - rᵢ)·(1 - λ′)/(1 - λ) )                                by (10)
#          ≥ Σᵢ ( rᵢ·ln(λ′/λ) + (1 - rᵢ)·ln((1 - λ′)/(1 - λ)) )       chords run below ln
#          = n·KL(coin λ′ ‖ coin λ) ≥ 0.                               by Σ rᵢ = n·λ′, and by (5) ∎
# Two imagined events, one surely from the table, one surely not, keep λ between 0 and 1.


def find_weight(p_seen, p_below, group, groups, rounds=20):
    """λ (groups,) by (10), for each group of events; p_seen, p_below, group are (M,)."""
    weight = np.full(groups, 0.5)
    for _ in range(rounds):
        seen = weight[group] * p_seen
        r = seen / (seen + (1 - weight[group]) * p_below)
        weight = (1 + np.bincount(group, r, groups)) / (2 + np.bincount(group, minlength=groups))
    return weight


# WITTEN-BELL. How likely is something new? Of the N(h) symbols that came after h, T(h) were new
# when they came (after "q" just one, after a space dozens): an event that happened T(h) times. So
#
#     P(c|h) = (N(hc) + T(h)·P(c|h′)) / (N(h) + T(h)).                                          (11)
#
# KNESER-NEY. A gram that occurs r times in one text occurs about r - 0.75 times in another as long,
# for every r ≥ 2 (Church, Gale, 1991). So discount each count by the same d, 0 < d ≤ 1; with T(h)
# different symbols that frees d·T(h):
#
#     P(c|h) = (N(hc) - d)⁺ / N(h) + d·T(h)/N(h)·P(c|h′),          (x)⁺ = max(x, 0).            (12)
#
# And P(c|h′)? Not the share of c after h′: "Francisco" is frequent, but after "San", where the long
# context has it covered; the short one is asked when the long one fails. What is sure is this: when
# contexts come as often as they do in the text, c must come as often as it does. For order 1:
#
#     N(c)/N = Σ_h N(h)/N·P(c|h) = (1/N)·Σ_h ( (N(hc) - d)⁺ + d·T(h)·P(c) ).
#
# Now Σ_h N(hc) = N(c); d ≤ 1 is taken off once for each different h before c, N₁₊(•c) times; and
# Σ_h T(h) is the number of different pairs, N₁₊(••). So
#
#     N(c) = N(c) - d·N₁₊(•c) + d·N₁₊(••)·P(c),      hence      P(c) = N₁₊(•c) / N₁₊(••).       (13)
#
# Not how often c occurs matters, but after how many different symbols. So below the top, these
# continuation counts N₁₊(•hc) take the place of N(hc), and (12) is applied to them in turn. The top
# is the context as given, even if shorter than the order: there, nothing longer has failed.

SMOOTHINGS = ("kneser-ney", "mle", "add-k", "interpolated", "witten-bell")


def climb(chain, n, level, h, gram, below):
    """P(c|h) of grams hc by (8), from below = P(c|h′); h, gram: ranks at level n, any shape."""
    n_hc, n_h, t_h = level.n_hc[gram], level.n_h[h], level.t_h[h]
    if chain.smoothing == "add-k":
        return (n_hc + chain.k) / (n_h + chain.k * chain.vocab_size)  # (7)
    total = np.maximum(n_h, 1)  # where h is unseen, `below` replaces all this anyway
    if chain.smoothing == "mle":
        p = n_hc / total  # (4)
    elif chain.smoothing == "interpolated":
        weight = chain.weights[n, np.frexp(n_h)[1]]  # class 0: 0, 1: 1, 2: 2-3, 3: 4-7
        p = weight * n_hc / total + (1 - weight) * below  # (9)
    elif chain.smoothing == "witten-bell":
        p = (n_hc + t_h * below) / (total + t_h)  # (11)
    else:
        kept = np.maximum(n_hc - chain.discount, 0)
        p = (kept + chain.discount * t_h * below) / total  # (12)
    return np.where(n_h > 0, p, below)


# %% 7. Temperature and its kin
# To write, draw from the prediction. That is honest but at times wild: symbols unlikely one by one
# are not so unlikely together. To be safer, borrow from physics. Give each symbol an energy E_c =
# -ln p_c, its surprise. Low energy alone means always the likeliest symbol; high entropy alone, a
# fair die. Weigh the two: minimise the free energy F(q) = Σ q·E - T·H(q), where the temperature T >
# 0 is the price of variety. Let Z = Σ e^(-E/T):
#
#     F(q) = T·Σ q·(ln q + E/T) = T·Σ q·ln(q/e^(-E/T)) = T·KL(q ‖ e^(-E/T)/Z) - T·ln Z.
#
# By (5) it is least where the KL is 0, at Boltzmann's distribution
#
#     q_c = e^(-E_c/T) / Z = p_c^(1/T) / Σ_d p_d^(1/T).                                         (14)
#
# T = 1 gives p back. Odds are raised to the power 1/T, q_c/q_d = (p_c/p_d)^(1/T): as T → 0 the
# likeliest takes all, and as T → ∞ all that is possible becomes equally likely.
#
# Two cuts may follow. TOP-K keeps the k likeliest, however sure the model is: after "q" five are
# four too many, at the start of a word too few. TOP-P, the nucleus of Holtzman et al., keeps the
# fewest symbols that reach the probability p together. What is kept is scaled to add up to 1.


def tempered(p, temperature=1.0, top_k=None, top_p=None):
    """p (V,) after temperature (14), then top_k, then top_p: again a distribution (V,).

    temperature 0 is the limit: all on the likeliest symbol, the first of equals. top_k may exceed
    V. ValueError: p is no distribution, or an argument is out of range.
    """
    p = check_distribution("p", p)
    expect(p.ndim == 1, "the shape of p", p.shape, "one dimension, (V,)")
    expect(0 <= temperature < math.inf, "temperature", temperature, "0 or more, and finite")
    expect(top_p is None or 0 < top_p <= 1, "top_p", top_p, "None or 0 < top_p <= 1")
    if top_k is not None:
        check_integer("top_k", top_k, 1)
    likeliest = np.argsort(-p, kind="stable")  # (V,) ids
    with np.errstate(divide="ignore", over="ignore"):  # ln 0 = -∞, and a tiny T may send more there
        E = -np.log(p[likeliest])
        q = np.exp((E[0] - E) / (temperature or 1))  # relative to the largest: no overflow
    q = q[: 1 if temperature == 0 else top_k]
    if top_p is not None and top_p < 1:  # up to the first place where the sum reaches top_p
        q = q[: np.searchsorted(np.cumsum(q), (top_p - 1e-12) * q.sum()) + 1]
    kept = np.zeros_like(p)
    kept[likeliest[: len(q)]] = q / q.sum()
    return kept


def sample(p, temperature=1.0, top_k=None, top_p=None, seed=None):
    """One id drawn from tempered(p, ...), by a dart thrown at its probabilities laid end to end.

    seed: an int or a np.random.Generator, which moves on. ValueError as in tempered.
    """
    ends = np.cumsum(tempered(p, temperature, top_k, top_p))
    dart = np.random.default_rng(seed).random()  # in [0, 1)
    return int(np.searchsorted(ends / ends[-1], dart, side="right"))


# %% 8. The whole model
# `fit` counts, `distribution` climbs from 1/V through the levels by (8), and `log_likelihood` makes
# the same climb at all the places of a text at once.


def check_ids(name, ids, vocab_size, least=0):
    """ids as an int64 array (N,); ValueError unless N ≥ least and all are in 0..vocab_size-1."""
    ids = np.asarray(ids)
    expect(ids.ndim == 1, f"the shape of {name}", ids.shape, "one dimension, a row of ids")
    expect(len(ids) >= least, f"the length of {name}", len(ids), f"at least {least}")
    if len(ids):
        expect(ids.dtype.kind in "iu", f"the type of {name}", str(ids.dtype), "integers")
        for extreme in (int(ids.min()), int(ids.max())):
            expect(0 <= extreme < vocab_size, f"an id in {name}", extreme, f"0 to {vocab_size - 1}")
    return ids.astype(np.int64)


class MarkovChain:
    """P(c|h) by counting, h the last `order` symbols; order 0 is the unigram model.

    smoothing: "kneser-ney" (12, 13), "mle" (4), "add-k" (7), "interpolated" (9) or "witten-bell"
    (11). k is for add-k only, discount for kneser-ney. vocab_size is V: ids that training never
    showed get probability too, except with "mle". ValueError: an argument out of range.
    """

    def __init__(self, order, vocab_size, smoothing="kneser-ney", k=1.0, discount=0.75):
        check_integer("order", order, 0)
        check_integer("vocab_size", vocab_size, 1)
        expect(smoothing in SMOOTHINGS, "smoothing", smoothing, f"one of {', '.join(SMOOTHINGS)}")
        expect(0 < k < math.inf, "k", k, 'a number above 0 (0 would be smoothing="mle")')
        expect(0 < discount <= 1, "discount", discount, "0 < discount <= 1")
        self.order, self.vocab_size, self.smoothing = order, vocab_size, smoothing
        self.k, self.discount, self.occurs = k, discount, None  # until fit

    def fit(self, ids):
        """Count the text ids (N,), forgetting others; returns self. ValueError: bad or no ids."""
        ids = check_ids("ids", ids, self.vocab_size, least=1)
        if self.smoothing == "interpolated":
            self._find_weights(ids)
        self.occurs, follows = count_levels(ids, self.order, self.vocab_size)
        self.lower = follows if self.smoothing == "kneser-ney" else self.occurs
        return self

    def _find_weights(self, ids):
        """weights[n], the λ of level n by class of N(h), by counting all but the last tenth."""
        V, held = self.vocab_size, len(ids) // 10
        levels, _ = count_levels(ids[: len(ids) - held], self.order, V)
        self.weights = np.zeros((self.order + 1, 64))
        ids = ids[max(0, len(ids) - held - self.order) :]  # the tenth, after a full context
        below = np.full(len(ids), 1 / V)
        for n, (level, h, gram) in enumerate(walk(levels, ids, V)):
            below = below[len(below) - len(h) :]  # places n, n + 1, ...
            n_h, tenth = level.n_h[h], slice(max(len(h) - held, 0), None)
            p_seen, group = level.n_hc[gram] / np.maximum(n_h, 1), np.frexp(n_h)[1]
            self.weights[n] = find_weight(p_seen[tenth], below[tenth], group[tenth], 64)
            below = climb(self, n, level, h, gram, below)

    def distribution(self, context=()):
        """P(c|context) for every c: (V,), adding up to 1.

        Of a longer context than the order, the end counts; a shorter one gets the shorter model.
        ValueError: an id outside 0..V-1, or fit was not called.
        """
        expect(self.occurs, "the chain", "not fitted", "a call of fit(ids) first")
        V, ids = self.vocab_size, check_ids("context", context, self.vocab_size)
        ids = ids[max(0, len(ids) - self.order) :]
        ranks = [0] + [gram[-1] for *_, gram in walk(self.occurs[: len(ids)], ids, V)]
        p = np.full(V, 1 / V)  # (V,)
        for n, h in enumerate(ranks):  # h: the rank of the last n symbols of the context
            level = self.occurs[n] if n == len(ids) else self.lower[n]
            p = climb(self, n, level, h, find(level.keys, h * V + np.arange(V)), p)
        return p

    def log_likelihood(self, ids):
        """ln P(ids) in nats by (1), from an empty context on; -inf if an id has probability 0.

        ValueError: no ids, one outside 0..V-1, or fit was not called.
        """
        expect(self.occurs, "the chain", "not fitted", "a call of fit(ids) first")
        V, ids = self.vocab_size, check_ids("ids", ids, self.vocab_size, least=1)
        cold = range(min(self.order, len(ids)))  # where the context is shorter than the order
        start = [self.distribution(ids[:t])[ids[t]] for t in cold]
        p = np.full(len(ids), 1 / V)  # (N,)
        for n, (level, h, gram) in enumerate(walk(self.lower, ids, V)):
            p = climb(self, n, level, h, gram, p[1:] if n else p)  # (N - n,)
        with np.errstate(divide="ignore"):
            return float(np.log(np.concatenate([start, p])).sum())

    def perplexity(self, ids):
        """e^(mean surprise in nats), (6); inf if an id has probability 0, as it may with "mle"."""
        with np.errstate(over="ignore"):
            return float(np.exp(-self.log_likelihood(ids) / len(ids)))

    def generate(self, n, context=(), temperature=1.0, top_k=None, top_p=None, seed=None):
        """n new ids (n,) that follow the context; options as in sample. ValueError: bad input."""
        check_integer("n", n, 0)
        rng = np.random.default_rng(seed)
        ids = check_ids("context", context, self.vocab_size).tolist()
        for _ in range(n):
            p = self.distribution(ids[max(0, len(ids) - self.order) :])
            ids.append(sample(p, temperature, top_k, top_p, rng))
        return np.array(ids[len(ids) - n :], dtype=np.int64)


# %% 9. The chain in the long run
# Let a chain of order 1 write for ever. Put its predictions in a matrix, P[h, c] = P(c|h); its rows
# add up to 1. If the symbol now is spread as μ (a row), the next is spread as (μP)_c =
# Σ_h μ_h·P[h, c], the one after as μP², and so on. A spread that stays is called STATIONARY:
#
#     π = πP.                                                                                   (15)
#
# There always is one. Rows of P add up to 1, so P·1 = 1: the number 1 is an eigenvalue of P, hence
# of its transpose, and x = xP for some x ≠ 0. Take absolute values: |x_c| ≤ Σ_h |x_h|·P[h, c]. Over
# all c both sides add up to Σ|x|, so no ≤ can be <. Then |x|, divided by its sum, is a π. ∎
#
# Is it reached? Let δ = Σ_c min_h P[h, c], the part on which all rows agree: P = δ·(a row for all)
# + (1-δ)·R, where the rows of R add up to 1 too. The difference x of two distributions adds up to
# 0, so "a row for all" sends it to 0; and R does not lengthen it: Σ_c |Σ_h x_h·R[h, c]| ≤ Σ|x|. So
#
#     ‖μP - π‖ = ‖(μ - π)P‖ ≤ (1 - δ)·‖μ - π‖,     where ‖x‖ = Σ|x|.                            (16)
#
# If δ > 0, as with every smoothing but (4), ‖μPᵗ - π‖ → 0: the chain forgets how it began, and π is
# the only one. (For order k, call the last k symbols a state.) With zeros in P there may be cycles
# (0 → 1 → 0 never settles, yet π = (½, ½) stays) or separate parts, each with its own πᵢ. So do not
# iterate; solve π = πP, Σπ = 1 by least squares, which takes the shortest of all solutions: a mean
# of the πᵢ (exercise 6).
#
# How much news per symbol, in the long run? Take -ln of (1) under (2), and the mean: each symbol
# adds the entropy of the row that it is drawn from, and rows come up as often as π says:
#
#     ENTROPY RATE     H = Σ_h π_h·H(P[h]).                                                     (17)


def stationary_distribution(P):
    """π (V,) with π = πP and Σπ = 1, the shortest if there are several, for P (V, V).

    ValueError: P is not square, has a negative entry, or a row that does not add up to 1.
    """
    P = check_distribution("P", P)
    expect(P.ndim == 2 and P.shape[0] == P.shape[1], "the shape of P", P.shape, "a square, (V, V)")
    equations = np.vstack([P.T - np.eye(len(P)), np.ones(len(P))])  # (V + 1, V)
    right = np.append(np.zeros(len(P)), 1.0)
    pi = np.maximum(np.linalg.lstsq(equations, right, rcond=None)[0], 0.0)  # -1e-17 is a zero
    return pi / pi.sum()


def entropy_rate(P, base=math.e):
    """(17) in nats a step (base=2: bits) for P (V, V); ValueError as in stationary_distribution."""
    return float(stationary_distribution(P) @ entropy(P, base))


# %% Demonstration


def progress(message, last=False):
    """One line overwritten in place on a terminal; when piped, only the last message is printed."""
    if sys.stdout.isatty():
        print(f"\r{message:<78}", end="\n" if last else "", flush=True)
    elif last:
        print(message, flush=True)


def encode(pieces, vocabulary):
    """The place of each piece in the vocabulary: (N,) ids."""
    place = {piece: i for i, piece in enumerate(vocabulary)}
    return np.array([place[piece] for piece in pieces], dtype=np.int64)


def write(chain, n, vocabulary, rng, **options):
    """n pieces by the chain, from the start of a line if it knows lines, else from nowhere."""
    start = [vocabulary.index("\n")] if "\n" in vocabulary else []
    return "".join(vocabulary[i] for i in chain.generate(n, start, seed=rng, **options))


def report_orders(train, held, V, orders):
    """Every order with every smoothing; returns {name: (held-out nats per character, chain)}."""
    kinds = {"mle": "mle", "add-1": "add-k", "add-.01": "add-k"}
    kinds |= {kind: kind for kind in ("interpolated", "witten-bell", "kneser-ney")}
    print("\n1. How much context? Perplexity per character; new: held-out grams not in training\n")
    print("                         on training | on the held-out text")
    print("   order contexts    new         mle |" + "".join(f"{name:>9.8}" for name in kinds))
    scores, table = {}, []
    for order in orders:
        S = {}
        for name, kind in kinds.items():
            progress(f"   counting: order {order}, {name}")
            chain = MarkovChain(order, V, kind, k=0.01 if name == "add-.01" else 1.0).fit(train)
            S[name] = chain.perplexity(held)
            scores[f"{name} order {order}"] = math.log(S[name]), chain
            if name == "mle":
                *_, (level, _, gram) = walk(chain.occurs, held, V)
                new, explained = np.mean(level.n_hc[gram] == 0), chain.perplexity(train)
        table.append((explained, S["add-1"], S["kneser-ney"]))
        cells = f"   {order:5} {len(level.n_h) - 1:8,} {new:6.1%} {explained:11.2f} |"
        progress(cells + "".join(f"{value:9.2f}" for value in S.values()), last=True)
    print("\n   inf: one event of probability 0 is enough. Perplexity against order, once more:")
    print("   t mle on the text that it counted; on held-out text, 1 add-1 and k Kneser-Ney\n")
    low, high = np.log(table).min(), np.log(table).max()  # of (orders, 3) perplexities
    height = np.rint((np.log(table) - low) / max(high - low, 1e-9) * 12)
    for row in range(12, -1, -1):
        cells = ["".join(m for m, at in zip("t1k", column) if at == row) for column in height]
        cells = "".join(f"{cell:<8}" for cell in cells).rstrip()
        print(f"{math.exp(low + (high - low) * row / 12):9.1f} | {cells}".rstrip())
    print("    order   " + "".join(f"{order:<8}" for order in orders).rstrip())
    print("\n   The past is explained ever better; the future has a best order, the foot of a U.")
    return scores


def report_samples(train, text, symbols, chain, orders, rng):
    """What the orders write, and what temperature, top-k and top-p do to the best chain."""
    known = re.findall("[A-Za-z]+", text)
    print("\n2. What they write, with Kneser-Ney (¶ is a line break)\n")
    for order in orders:
        written = write(MarkovChain(order, len(symbols)).fit(train), 80, symbols, rng)
        print(f"   order {order}  {written}".replace("\n", "¶"))
    print(f"\n3. Temperature: 800 characters by {chain.smoothing} order {chain.order}. H: the mean")
    print("   entropy they are drawn with; real: words that training knows; different: among all\n")
    print("   drawn with         H, bits    real  different")
    settings = [dict(temperature=t) for t in (0.0, 0.3, 0.6, 1.0, 1.5)]
    for options in settings + [dict(top_k=5), dict(top_p=0.9)]:
        progress(f"   writing with {options}")
        written = write(chain, 800, symbols, rng, **options)
        ids = encode(written, symbols)
        drawn_from = [tempered(chain.distribution(ids[:t]), **options) for t in range(9, 800, 9)]
        words = re.findall("[A-Za-z]+", written)[:-1] or [""]  # the last may be cut off
        cells = "   {:18}".format(" ".join(f"{key} {value}" for key, value in options.items()))
        cells += f" {np.mean(entropy(drawn_from, 2)):7.2f} {np.isin(words, known).mean():7.1%}"
        progress(cells + f" {len(set(words)) / len(words):10.1%}", last=True)
        print("      " + written[:88].replace("\n", "¶"))


def report_words(train, held, symbols, orders, rng):
    """The same chains on words, scored per character as well."""
    pieces = [re.findall(r" ?[A-Za-z]+|.", text, re.DOTALL) for text in (train, held)]
    counts = Counter(pieces[0])
    vocabulary = ["<rare>"] + sorted(piece for piece, n in counts.items() if n > 1)
    ids, spelled, chains = [], [], []
    for part in pieces:
        rare = "".join(piece + "\0" for piece in part if counts[piece] < 2)
        ids.append(encode([piece if counts[piece] > 1 else "<rare>" for piece in part], vocabulary))
        spelled.append(encode("\0" + rare, ["\0"] + symbols))
    speller = MarkovChain(3, len(symbols) + 1, "witten-bell").fit(spelled[0])
    spelling = -speller.log_likelihood(spelled[1])
    print("\n4. Words: a piece is a word with the space before it, or any other character. Rare")
    print("   ones (seen once or never) are spelled by a chain of letters, so that all is paid for")
    rare = np.mean(ids[1] == 0)
    print(f"   {len(ids[0]):,} pieces of {len(vocabulary):,} kinds; held out, {rare:.1%} rare\n")
    print("   order   perplexity per piece   bits/char   of which spelling")
    for order in orders:
        chain = MarkovChain(order, len(vocabulary)).fit(ids[0])
        nats = (spelling - chain.log_likelihood(ids[1])) / len(held)
        chains.append((nats, order, chain))
        shown = chain.perplexity(ids[1]), nats / math.log(2), spelling / len(held) / math.log(2)
        print("   {:5} {:22.1f} {:11.3f} {:19.3f}".format(order, *shown))
    _, order, chain = min(chains)
    text = write(chain, 80, vocabulary, rng).replace("\n", "¶")
    print(f"\n   order {order} writes:\n      {text[:85]}\n      {text[85:170]}")


def report_long_run(train, V):
    """Section 9 for chains of order 1: what stays, and what it tells."""
    shares = np.bincount(train, minlength=V) / len(train)
    print(
        "\n5. The long run of order 1: π against the training text's shares, and surprise in bits\n"
    )
    print("   smoothing      π - share   entropy rate   surprise")
    for name in ("add-k", "witten-bell", "mle", "kneser-ney"):
        chain = MarkovChain(1, V, name).fit(train)
        P = np.array([chain.distribution([h]) for h in range(V)])  # (V, V)
        gap = np.abs(stationary_distribution(P) - shares).max()
        surprise = math.log2(chain.perplexity(train))
        print(f"   {name:13} {gap:10.6f} {entropy_rate(P, 2):14.4f} {surprise:10.4f}")
    print("\n   Kneser-Ney keeps the shares, as (13) asks; mle writes as surprisingly as it read")


def report(args):
    """Everything in order; the last line is the ladder's, of the best model of characters."""
    text = Path(args.text).read_text(encoding="utf-8")
    expect(len(text) >= 100, "the length of the text", len(text), "at least 100 characters")
    text, orders = (text[:30000], range(5)) if args.fast else (text, range(8))
    symbols, n = sorted(set(text)), int(0.9 * len(text))
    train, held = encode(text[:n], symbols), encode(text[n:], symbols)
    rng, V = np.random.default_rng(args.seed), len(symbols)
    print(f"Stage 1: {Path(args.text).name}, {n:,} characters to count, {len(held):,} to predict")
    scores = report_orders(train, held, V, orders)
    nats, best = min((nats, name) for name, (nats, _) in scores.items())
    report_samples(train, text[:n], symbols, scores[best][1], orders, rng)
    report_words(text[:n], text[n:], symbols, range(4), rng)
    report_long_run(train, V)
    print(f"\nheld-out: {nats:.3f} nats/char | {nats / math.log(2):.3f} bits/char | ", end="")
    print(f"perplexity {math.exp(nats):.2f}   (stage 1, {best})")


def drop_unwritten():
    """Forget what stdout cannot take, so that Python's own flush at the end does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:  # a closed pipe, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv=None):
    """Count the stories and report (about a quarter of a minute)."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it was closed before the start
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    parser = argparse.ArgumentParser(description="Stage 1: language models that count.")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    parser.add_argument("--fast", action="store_true", help="a smoke run of a few seconds")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice [0]")
    stories = Path(__file__).resolve().parent / "data" / "stories.txt"
    parser.add_argument("--text", default=stories, help="what to count [the stories]")
    args = parser.parse_args(argv)
    try:
        expect(args.seed >= 0, "--seed", args.seed, "0 or more")
        report(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever was reading has seen enough
        drop_unwritten()
    except KeyboardInterrupt:
        drop_unwritten()
        parser.exit(130, "\n")
    except (OSError, ValueError) as error:
        drop_unwritten()
        parser.error(str(error))


# %% Common mistakes
# 1. Probabilities that do not add up to 1, which makes perplexity look splendid. Sum over all V
#    symbols, after contexts seen and unseen; see `reserve` in (8).
# 2. Comparing perplexity per word with that per character, or between vocabularies (<rare> is easy
#    to guess). Compare bits per character of the same text; see report_words.
# 3. Choosing λ, k or the order on the text that was counted: mle wins, and fails outside; see
#    `held` in _find_weights. (The report picks its best of 48 on the held-out text: a milder sin.)
# 4. Packing n-grams in base V past 64 bits: silent collisions; see `packed` in count_levels.
# 5. ids[-order:] is the whole text when order is 0; see max(0, ...) in distribution.

# %% Exercises
#  1. (reading) Follow "abab" through count_levels with order 1, by hand: keys, ranks, all counts.
#  2. (pencil) What is the perplexity of a fair coin? Of one that shows heads 9 times in 10?
#  3. (pencil) Show that (11) is (7) with 1/V replaced by P(c|h′) and k·V by T(h).
#  4. (pencil) Derive (14) as Lagrange would: the highest entropy among all q with the same Σ q·E.
#  5. (pencil) For 0 < d ≤ 1, show that P in (12) adds up to 1 and is positive if P(c|h′) is.
#  6. (pencil) The solutions of (15) are Σ aᵢπᵢ, Σ aᵢ = 1. Show that the shortest has all aᵢ > 0.
#  7. (code) Add stupid backoff (Brants et al., 2007): no sum of 1, 0.4 per step. How does it rank?
#  8. (code) Estimate d on each level as n₁/(n₁ + 2n₂), nᵣ the number of grams seen r times.
#  9. (experiment) Train on names.txt. Which order invents the best names? Which one only copies?
# 10. (experiment) Held-out bits against the size of the training text: is log-log a line?
# 11. (research) Read about infini-gram (Liu et al., 2024): what do counts on 10¹² words still lack?

# %% Where this leads
# Every language model is scored by (6) and writes by (14): GPT differs from this file in how it
# gets P(c|h), and in nothing else. What a table cannot do is see that two contexts are alike. Stage
# 3 replaces it by a function with knobs; stage 2 finds out which way to turn them.

if __name__ == "__main__":
    main()
