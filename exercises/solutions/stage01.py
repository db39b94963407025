"""Solutions of the exercises of stage 1: count. `python exercises 1` checks them."""

import math

import numpy as np

import stage01_markov as stage

# %% 1. ★ (by hand) Keys and ranks of "abab"
# Follow "abab" through count_levels with order 1, on paper, as section 8 does with "abracadabra".
# V = 2, a is 0 and b is 1. The pairs are ab, ba, ab.
# ANSWER_1:  the sorted different keys of the pairs, without the last one, "never seen".
# ANSWER_1B: how often each of them occurs, N(hc), in the same order.
ANSWER_1 = [1, 2]
ANSWER_1B = [2, 1]
# > key(hc) = rank(h)·V + c. ab has the key 0·2 + 1 = 1 and occurs twice, ba 1·2 + 0 = 2 and once.
# > There is no aa (0) and no bb (3), so these are all.
HINTS_1 = [
    "A key is rank(h)·V + c. For single symbols the rank is the id.",
    "rank(a) = 0 and rank(b) = 1, since both occur. So ab has the key 0·2 + 1.",
    "aa and bb do not occur; only different keys are kept, in rising order.",
]

# %% 2. ★ (by hand) Four letters
# A model gave the letters of a word of four the probabilities 1/2, 1/4, 1/8 and 1/2.
# ANSWER_2:  its mean surprise in bits a letter.
# ANSWER_2B: its perplexity on the word, to three digits.
ANSWER_2 = 1.75
ANSWER_2B = 2**ANSWER_2
# > The surprises are 1, 2, 3 and 1 bits: 7 in all, 1.75 a letter. 2^1.75 = 3.364, which is also
# > (1/2·1/4·1/8·1/2)^(-1/4) = 128^(1/4).
HINTS_2 = [
    "The surprise at an event of probability 1/8 is log₂ 8 bits.",
    "Add the four surprises and divide by the number of letters.",
    "By (6), perplexity is 2 to the mean surprise in bits.",
]


# %% 3. ★★ (derive) Witten-Bell is add-k with a k of its own
# Let h′ know nothing: P(c|h′) = 1/V. Show that (10) is then add-k, (7), with a k that depends on h.
# Write a function that returns this k.
def k_for_witten_bell(d_h, vocab_size):
    """k with which (7) gives what (10) gives over P(c|h′) = 1/V. d_h: D(h); vocab_size: V."""
    return d_h / vocab_size


# > (10) is (N(hc) + D(h)/V) / (N(h) + D(h)). Compare with (N(hc) + k) / (N(h) + k·V): k = D(h)/V,
# > and then k·V = D(h) in the denominator, too. So where many different symbols came after h,
# > Witten-Bell expects more of what is new; add-k expects the same after every h.
HINTS_3 = [
    "Put 1/V in place of P(c|h′) in (10), and write it above (7).",
    "Compare the numerators: what is added to N(hc) in each?",
    "Then check the denominators: does your k times V give what is added to N(h)?",
]


# %% 4. ★★ (implement) Kneser-Ney for one context
# Write (11) for one context h and all symbols c at once. Where h was never seen, (11) is not
# defined; section 6 says what stands in its place.
def kneser_ney(n_hc, below, discount):
    """P(c|h) for every c (V,). n_hc: counts N(hc) (V,); below: P(c|h′) (V,); discount: d."""
    n_h = n_hc.sum()
    if n_h == 0:
        return below
    d_h = np.count_nonzero(n_hc)
    kept = np.maximum(n_hc - discount, 0)
    return kept / n_h + discount * d_h / n_h * below


# > It adds up to 1: d was taken from each of the D(h) symbols seen, at least 1 ≥ d each, so what is
# > kept adds up to (N(h) - d·D(h))/N(h), and the reserve is the rest.
HINTS_4 = [
    "N(h) is the sum of the counts; D(h) is how many of them are not 0.",
    "(x)⁺ never falls below 0: np.maximum(n_hc - discount, 0).",
    "The reserve is d·D(h)/N(h). With N(h) = 0, P(c|h) = P(c|h′).",
]


# %% 5. ★★ (find the bug) The nucleus
# This should keep the fewest of the likeliest symbols whose probabilities reach top_p together, and
# divide them by their sum (section 7). Somebody broke one line. Which? Mend it.
def nucleus(p, top_p):
    """p (V,) with all but the fewest likeliest that reach top_p set to 0, then a distribution."""
    likeliest = np.argsort(-p, kind="stable")
    sums = np.cumsum(p[likeliest])
    n = np.argmax(sums >= top_p - 1e-9) + 1  # was: n = np.count_nonzero(sums <= top_p)
    kept = np.zeros_like(p)
    kept[likeliest[:n]] = p[likeliest[:n]]
    return kept / kept.sum()


# > The broken line keeps the symbols whose sums stay at or below top_p: one too few, unless the sum
# > hits top_p exactly, and none at all if the likeliest alone is above it (then 0/0). What is asked
# > for are the symbols up to the first place where top_p is reached.
HINTS_5 = [
    "Try p = [0.5, 0.3, 0.15, 0.05] with top_p = 0.6 on paper: which symbols must stay?",
    "Now try top_p = 0.4. How many symbols does the function keep? How many must it keep?",
    "The first place where the sum reaches top_p belongs to the nucleus.",
]


# %% 6. ★★ (derive) The free energy
# In physics, E_c = -ln p_c is the energy of the state c. Show with (5) that of all distributions q
# it is (13) that makes F(q) = Σ q·E - τ·H(q) smallest. How small? Write a function for the minimum.
def least_free_energy(p, temperature):
    """The smallest Σ q·E - τ·H(q), E = -ln p, in nats, over distributions q. p (V,), all > 0."""
    return -temperature * math.log(np.sum(p ** (1 / temperature)))


# > With Z = Σ p^(1/τ) and q* = p^(1/τ)/Z from (13), E = -ln p = -τ·ln(q*·Z) = -τ·ln q* - τ·ln Z. So
# > F(q) = -τ·ln Z - τ·Σ q·ln q* + τ·Σ q·ln q = -τ·ln Z + τ·KL(q‖q*), and by (5) KL ≥ 0, which is 0
# > only at q = q*. The minimum is -τ·ln Z: the free energy.
HINTS_6 = [
    "Call the sum below the line in (13) Z. Express ln p_c by ln q*_c and ln Z, q* being (13).",
    "Put this into F(q): it becomes a constant plus τ times a divergence.",
    "The divergence is KL(q‖q*); at q = q* it is 0. The constant is what is asked for.",
]

# %% 7. ★★ (explain) Better and better, and useless
# In the report, mle's perplexity on the training text falls with every order; on the held-out text
# it is infinite. What does the column on the training text show?
#   a  long contexts are the better models; only the held-out text is unusual
#   b  with more context, fewer symbols came after each; the table recites what it has read
#   c  perplexity falls with the order because P(c|h) then adds up to more than 1
#   d  the training text has fewer different symbols than the held-out text
# ANSWER_7: one letter, as a string.
ANSWER_7 = "b"
# > At order 9 most contexts were seen once, and what followed has the share 1. That is memory, not
# > knowledge: the column could be made 1 with a long enough context.
HINTS_7 = [
    "Look at the column `contexts`: how many symbols of text are there for each of them?",
    "What is P(c|h) by (4) if h was seen once?",
    "What is the perplexity of a model that gives 1 to everything that happens?",
]


# %% 8. ★★ (implement) If order 1 wrote for ever
# P[h, c] is the probability of c after h. If a chain of order 1 writes on and on, the symbols take
# shares π that stay as they are: π_c = Σ_h π_h·P[h, c], and they add up to 1. Find them.
def stationary(P):
    """The shares π (V,) with π = πP and sum 1. P (V, V): rows add up to 1, all entries > 0."""
    V = len(P)
    equations = np.vstack([P.T - np.eye(V), np.ones(V)])  # (V + 1, V)
    right = np.append(np.zeros(V), 1.0)
    return np.linalg.lstsq(equations, right, rcond=None)[0]


# > π = πP says (Pᵀ - I)π = 0: V equations, one of which follows from the others, and Σπ = 1. It can
# > also be had by writing: π ← πP, again and again. With all entries above 0 there is one such π
# > and every start comes to it. With the chain a → b → a the shares swing for ever.
HINTS_8 = [
    "One way: start with any shares and let the chain take steps, π ← π @ P, until nothing moves.",
    "Mind the side: π stands at the left of P. Its entries are shares of the *context*.",
    "Another way: solve (Pᵀ - I)π = 0 together with Σπ = 1, as least squares.",
]

# %% 9. ★★ (measure) Twice the text
# Fit MarkovChain(5, V, discount=0.8) to the first 50,000 and to the first 100,000 characters of
# data/stories.txt (V and the ids: all different characters of the whole file, sorted), and predict
# the last 20,000 characters of the file with each.
# ANSWER_9: how many bits a character the second needs less than the first, to two digits.
ANSWER_9 = 0.13
# > Each doubling brings less than the one before; over a few of them the bits fall nearly on a line
# > against the logarithm of the text's length. No chain of fixed order goes on so for ever: its
# > contexts fill up, and then more text brings nothing.
HINTS_9 = [
    "stage.encode(text, symbols) makes ids; .fit(ids[:50_000]) counts.",
    "stage's `perplexity` gives S; bits are log₂ S.",
    "Subtract: bits with 50,000 characters minus bits with 100,000.",
]

# %% 10. ★★★ (derive) A density in place of darts
# After stage 2. Let V = 2 and hold, before reading, θ = P(a) for plausible with the density
# f(θ) ∝ (θ·(1 - θ))^(k-1), k > 0. Derive (7) from it. (Use: ∫₀¹ θ^(s-1)·(1 - θ)^(t-1) dθ = B(s, t),
# and B(s + 1, t)/B(s, t) = s/(s + t).)
# ANSWER_10: P(a) for the next symbol after reading a, a, a, b, with k = 1/2.
ANSWER_10 = 0.7
# > After N_a and N_b the density is ∝ θ^(N_a+k-1)·(1 - θ)^(N_b+k-1). So the next symbol is a with
# > probability B(N_a + k + 1, N_b + k)/B(N_a + k, N_b + k), the mean of θ, which is
# > (N_a + k)/(N_a + N_b + 2k): (7). Here (3 + 1/2)/(4 + 1) = 0.7.
HINTS_10 = [
    "Bayes: after reading, θ is as plausible as before times the probability of what was read.",
    "The next symbol is a with probability ∫ θ·f(θ|read) dθ: the mean of θ.",
    "Both integrals are B of something; their quotient is the s/(s + t) of the text.",
]


# %% 11. ★★★ (project) Names, better than the stage's
# Write a model of names that predicts unseen ones better than Kneser-Ney of order 3 (d = 0.75) does
# here: `python exercises --project 1` trains it on nine tenths of data/names.txt and has it predict
# the rest. Ideas: another order, another discount for each count, a mixture of several models. (For
# a first feeling: python stage01_markov.py --names data/names.txt --order 1, and so on to 8.)
def names_model(names):
    """A function next_letter(beginning) -> probabilities (27,) of a..z and, last, of the end.

    names: the list of str to learn from. beginning: the letters so far, "" at the start.
    """
    letters = "abcdefghijklmnopqrstuvwxyz"
    symbols = [*letters, stage.END, stage.START]
    models = []
    for order, discount in ((3, 0.75), (4, 0.85), (5, 0.9)):
        chain = stage.MarkovChain(order, len(symbols), discount=discount)
        models.append(chain.fit(stage.names_row(names, symbols, order)))

    def next_letter(beginning):
        p = np.zeros(27)
        for chain in models:
            context = [symbols.index(stage.START)] * chain.order
            context += [symbols.index(letter) for letter in beginning]
            p += chain.distribution(context)[:27]
        return p / p.sum()

    return next_letter


# > Three orders, each with a discount that suits it, and the mean of what they say. A start cannot
# > follow, so its little probability is shared out.
HINTS_11 = [
    "stage.names_row and MarkovChain do the counting; a start never follows, so leave it out.",
    "Mean of two models: where one is sure and wrong, the other saves it.",
    "Try orders 3, 4 and 5 with discounts between 0.7 and 0.9, chosen on a tenth of `names`.",
]
