"""The exercises of stage 7: tokenize. `python exercises 7` checks them."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np

import stage07_bpe as stage

# %% 1. ★ (by hand) A hug, a pug, two hugs
# Merge the text "hug pug hugs" three times on paper, by the rules of the first page (of equals the
# smallest ids go first). g is 103, h 104, p 112, s 115, u 117, and the space 32.
# ANSWER_1: the ids of the text after the third merge, as a list.
ANSWER_1 = None


# %% 2. ★ (by hand) One character, three signs
# The section on bytes says how GPT-2's alphabet writes a byte as a character. Do it on paper, there
# and back.
# ANSWER_2:  字 is the bytes E5 AD 97. Give the numbers (code points) of its three characters in
#            GPT-2's alphabet, as a list; 0xE5 is a number that Python can read.
# ANSWER_2B: a vocabulary has the token "âĢĶ", which is U+00E2 U+0122 U+0136. Which one character of
#            ordinary text is it? A string, or its code point.
ANSWER_2 = None
ANSWER_2B = None


# %% 3. ★ (by hand) Who is surprised less?
# A model of 50,000 tokens loses 3.1 nats a token, and a token has 4.4 characters on average. Yours
# of characters loses 1.05 nats a character, on the same text.
# ANSWER_3:  bits per character of the first model, to three digits.
# ANSWER_3B: what the first model may lose at most, in nats a token, not to be worse than yours.
ANSWER_3 = None
ANSWER_3B = None


# %% 4. ★ (explain) A longer step that does not pay
# Where the report chooses a tokenizer, BPE with 4,096 tokens has more characters a token than with
# 2,048, and yet its model needs more bits a character (1.805 against 1.763). Why?
#   a  a longer token carries more surprise, so its loss is higher
#   b  most of its tokens were seen too seldom for their probabilities to be known
#   c  the development piece is cut differently from the text on which the merges were learned
#   d  with fewer tokens, the same six tokens of context reach less far back
# ANSWER_4: one letter, as a string.
ANSWER_4 = None


# %% 5. ★★ (implement) A thousand ways to write banana
# decode(encode(text)) is the text, but many other rows of ids decode to it, too: `encode` picks one
# of the ways to cut a word into pieces. Count the ways. Words may be long, so do as the section on
# Unigram does for α: from the counts of shorter beginnings to those of longer ones.
def count_cuts(word, pieces):
    """In how many ways word (bytes) can be cut into pieces (a set of bytes), as an exact int.

    It must not look into `pieces` more often than len(word)² times. The empty word has one way.
    """
    raise NotImplementedError


# %% 6. ★★ (implement) 1|234|567
# Llama 3 cuts 1234567 into 123|456|7 and 234567 into 234|567: the same last digits, in groups that
# depend on how many stand before them. Write a regex for Python's `re` that cuts into threes *from
# the right*. (Use \d; a lookahead (?=...) demands what follows without taking it, (?!...) forbids
# it.)
def threes():
    """The regex: re.findall(threes(), text) gives the groups of all numbers in a text, in order."""
    raise NotImplementedError


# %% 7. ★★ (find the bug) Dice with the wrong odds
# This should draw a cut of a word as sample_cut does at τ = 1: cut s with probability P(s|word).
# The pieces that it returns always spell the word, but some cuts come too often. One line is wrong.
def draw(word, score, rng):
    """The pieces of a random cut of word, drawn with rng.choice. score: {piece: log p}."""
    alpha, arcs = stage.forward(word, score, len(word))
    pieces, j = [], len(word)
    while j:
        logs = []
        for arc in arcs[j]:  # (i, word[i:j], log p)
            logs.append(arc[2])
        weights = np.exp(logs)
        shares = weights / weights.sum()
        j, piece, _ = arcs[j][rng.choice(len(shares), p=shares)]
        pieces.append(piece)
    return pieces[::-1]


# %% 8. ★★ (derive) Anan, four ways
# BPE-dropout with one merge, a+n, on the word "anan": both places can be merged. At every step each
# possible merge is left out with probability p, anew. How is the word written in the end?
def spellings_of_anan(p):
    """The probabilities of an|an, an|a|n, a|n|an and a|n|a|n, in this order, for 0 <= p <= 1."""
    raise NotImplementedError


# %% 9. ★★ (measure) Tokens that cross words
# Train BPETokenizer on the first int(0.9·n) of the n characters of data/verses.txt, with
# vocab_size=1024, once with pattern="gpt2" and once with pattern=None, and encode the rest.
# ANSWER_9:  how many tokens the rest has with None, divided by those with "gpt2", to three digits.
# ANSWER_9B: how many more bits a character kneser_ney_nats gives the rest with None than with
#            "gpt2", at order 5, learned from the first part's ids. Two digits.
ANSWER_9 = None
ANSWER_9B = None


# %% 10. ★★★ (derive) How undecided is a word?
# Under a unigram model the cut s of a word x has the probability P(s|x). Its entropy,
# H = -Σ_s P(s|x)·log P(s|x), says how undecided the cut is. There are 2ⁿ⁻¹ cuts; find a recursion
# over the length of the beginning, as for α, that needs only what `forward` returns.
def undecided(word, score):
    """H in bits, for word (bytes) and score {piece: log p}. Words may have 60 letters."""
    raise NotImplementedError


# %% 11. ★★ (research) What WordPiece might have been
# Give learn_merges WordPiece's whole gain, n·(log[N·n/(c(a)·c(b))] - 1), as its score, with N the
# number of bytes. Here, on the training part of the stories without its development piece, the
# first merges were he, the, The, nd, and, in, ing, " the", where BPE begins with he, " t", " a": it
# completes words before it opens new ones. With 1,024 tokens it reached 2.92 characters a token and
# 1.769 bits a character on the development piece, BPE 2.96 and 1.766: no gain. N should fall with
# each merge and does not; does it matter? And does it find better tokens where words are long?


# %% 12. ★★★ (project) The whole tokenizer, by yourself
# Write a trainer of byte-level BPE, and the file that other programs read: learn from the text as
# BPETokenizer.train(text, vocab_size) does and write a tokenizer.json. You may use pretokenize and
# to_alphabet; learn_merges and the classes' train and save are locked meanwhile. (For the format,
# look into a file that `python stage07_bpe.py train` has written.) `python exercises --project 7`
# trains 384 tokens on the stories and compares ids with the stage's, and with the tokenizers
# library's if that is installed. Counting all pairs anew for each merge is fast enough.
def write_tokenizer(text, vocab_size, path):
    """Learn vocab_size tokens, the 256 bytes included; write them to path, which is returned."""
    raise NotImplementedError
