"""Solutions of the exercises of stage 7: tokenize. `python exercises 7` checks them."""

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
ANSWER_1 = [257, 258, 256, 32, 257, 115]
# > (u, g) stands there three times: ug = 256. Then (h, ug) and (ug, space) stand there twice each.
# > Of these (104, 256) is the smaller: hug = 257. Now every pair is there once, and the smallest,
# > (32, 112), a space and p, becomes 258. Ties are decided by ids, not by where a pair stands
# > first: the first pair of the row, (257, 32), must wait.
HINTS_1 = [
    "Write the ids in a row, and below each gap how often its pair stands in the row.",
    "After the second merge the row is 257 32 112 256 32 257 115, and all pairs are equals.",
    "Equals are compared by their left id; only if these are equal, too, by their right one.",
]

# %% 2. ★ (by hand) One character, three signs
# The section on bytes says how GPT-2's alphabet writes a byte as a character. Do it on paper, there
# and back.
# ANSWER_2:  字 is the bytes E5 AD 97. Give the numbers (code points) of its three characters in
#            GPT-2's alphabet, as a list; 0xE5 is a number that Python can read.
# ANSWER_2B: a vocabulary has the token "âĢĶ", which is U+00E2 U+0122 U+0136. Which one character of
#            ordinary text is it? A string, or its code point.
ANSWER_2 = [0xE5, 0x143, 0x139]
ANSWER_2B = "\u2014"
# > Of the 256 bytes the printable ones, 21-7E, A1-AC and AE-FF, stand for themselves; so E5 is å.
# > The 68 others are, in order, 00-20 (33 of them: U+0100 to U+0120), 7F (U+0121), 80-A0 (U+0122 to
# > U+0142) and last AD (U+0143). So 97, the 24th of 80-A0, is U+0122 + 0x17 = U+0139. And back:
# > U+0122 is 80 and U+0136 is 80 + 0x14 = 94; the bytes E2 80 94 are U+2014, the long dash.
HINTS_2 = [
    "Which bytes print in Latin-1? PRINTABLE lists them. They stand for themselves.",
    "List the 68 others in order: 00 to 20, then 7F, then 80 to A0, then AD. Count from U+0100.",
    "For the way back: U+0122 is the byte 80. bytes([...]).decode() turns three bytes into text.",
]

# %% 3. ★ (by hand) Who is surprised less?
# A model of 50,000 tokens loses 3.1 nats a token, and a token has 4.4 characters on average. Yours
# of characters loses 1.05 nats a character, on the same text.
# ANSWER_3:  bits per character of the first model, to three digits.
# ANSWER_3B: what the first model may lose at most, in nats a token, not to be worse than yours.
ANSWER_3 = 1.02
ANSWER_3B = 4.62
# > 3.1/4.4 = 0.705 nats a character, over ln 2 that is 1.016 bits: far fewer than the 1.515 of the
# > other, although 3.1 looks like three times 1.05. It would be as bad with 4.4·1.05 nats a token.
HINTS_3 = [
    "The text is equally improbable however it is counted: nats a token · tokens = -log P(text).",
    "Divide by the characters of a token for nats a character, and by ln 2 for bits.",
]

# %% 4. ★ (explain) A longer step that does not pay
# Where the report chooses a tokenizer, BPE with 4,096 tokens has more characters a token than with
# 2,048, and yet its model needs more bits a character (1.805 against 1.763). Why?
#   a  a longer token carries more surprise, so its loss is higher
#   b  most of its tokens were seen too seldom for their probabilities to be known
#   c  the development piece is cut differently from the text on which the merges were learned
#   d  with fewer tokens, the same six tokens of context reach less far back
# ANSWER_4: one letter, as a string.
ANSWER_4 = "b"
# > Bits per character already divide by the length, so (a) is no reason. 82 % of the rows were seen
# > less than ten times, against 50 %. A count of 3 is a poor estimate, and a token that is split in
# > two can borrow from all the words in which its halves stand. With more text the best size
# > rises.
HINTS_4 = [
    "The measure is bits per character: what does it no longer depend on?",
    "Look at the column that rises from 26 % to 82 %. What does it cost a model that counts?",
]


# %% 5. ★★ (implement) A thousand ways to write banana
# decode(encode(text)) is the text, but many other rows of ids decode to it, too: `encode` picks one
# of the ways to cut a word into pieces. Count the ways. Words may be long, so do as the section on
# Unigram does for α: from the counts of shorter beginnings to those of longer ones.
def count_cuts(word, pieces):
    """In how many ways word (bytes) can be cut into pieces (a set of bytes), as an exact int.

    It must not look into `pieces` more often than len(word)² times. The empty word has one way.
    """
    ways = [1]
    for j in range(1, len(word) + 1):
        ways.append(sum(ways[i] for i in range(j) if word[i:j] in pieces))
    return ways[-1]


# > The last piece is word[i:j] for some i < j, and before it stands any cut of word[:i]. So N_j is
# > Σ N_i over the pieces that fit: Unigram's recursion with 1 in place of each probability. If all
# > substrings are pieces, a word of n bytes has 2ⁿ⁻¹ ways, because each gap is cut or not.
HINTS_5 = [
    "Let N_j be the number of ways to cut word[:j]. N_0 = 1: nothing is cut in one way.",
    "Of what lengths can the last piece be? For each that is a piece, how many ways come before?",
    "N_j is the sum of N_i over all i < j for which word[i:j] is a piece.",
]


# %% 6. ★★ (implement) 1|234|567
# Llama 3 cuts 1234567 into 123|456|7 and 234567 into 234|567: the same last digits, in groups that
# depend on how many stand before them. Write a regex for Python's `re` that cuts into threes *from
# the right*. (Use \d; a lookahead (?=...) demands what follows without taking it, (?!...) forbids
# it.)
def threes():
    """The regex: re.findall(threes(), text) gives the groups of all numbers in a text, in order."""
    return r"\d{1,3}(?=(?:\d{3})*(?!\d))"


# > Take one to three digits such that behind them stand some groups of three and then no digit. In
# > a number of 7 digits, three at the front would leave four, and two would leave five: both fail.
HINTS_6 = [
    "A first group may have one to three digits; what must be true of the digits behind it?",
    "Behind it stand groups of exactly three, any number of them, and then no further digit.",
    "(?: )* repeats a group; put it into a lookahead, and end that with (?!...).",
]


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
            logs.append(alpha[arc[0]] + arc[2])  # was: logs.append(arc[2])
        weights = np.exp(logs)
        shares = weights / weights.sum()
        j, piece, _ = arcs[j][rng.choice(len(shares), p=shares)]
        pieces.append(piece)
    return pieces[::-1]


# > By (★) the last piece is x[i:j] with probability exp(α_i + log p(x[i:j]) - α_j). The broken line
# > forgets α_i, all the probability of the ways to write what stands before. With a, b and ab of
# > probability 1/4, 1/4 and 1/2 it draws a|b in one of three cases; P(a|b) is 1/9.
HINTS_7 = [
    "Work through Unigram's example, the word ab with p(a) = p(b) = 1/4 and p(ab) = 1/2.",
    "The last piece is b or ab. What has to be written before it in either case?",
    "Compare with (★). What it divides by, exp(α_j), the normalisation does here.",
]


# %% 8. ★★ (derive) Anan, four ways
# BPE-dropout with one merge, a+n, on the word "anan": both places can be merged. At every step each
# possible merge is left out with probability p, anew. How is the word written in the end?
def spellings_of_anan(p):
    """The probabilities of an|an, an|a|n, a|n|an and a|n|a|n, in this order, for 0 <= p <= 1."""
    both = (1 - p) * (1 - p * p)
    left = (1 - p) * p
    right = p * (1 - p) * p
    return [both, left, right, p * p]


# > First step: the left place is merged with probability 1 - p. It is left out and the right one is
# > merged with p(1 - p), and both are left out with p², which ends it. Second step: one place is
# > possible, merged with 1 - p, left alone with p. So an|an has (1 - p)² + p(1 - p)² = (1 - p)(1 -
# > p²), more than the (1 - p)² of independent places: a merge left out has a second chance.
HINTS_8 = [
    "Draw a tree. In the first step both places are possible, in the second only the other one.",
    "Of the places not left out the left one is merged. If both are left out, the word is done.",
    "an|an comes about in two ways: left, then right, and right, then left. Add them.",
]

# %% 9. ★★ (measure) Tokens that cross words
# Train BPETokenizer on the first int(0.9·n) of the n characters of data/verses.txt, with
# vocab_size=1024, once with pattern="gpt2" and once with pattern=None, and encode the rest.
# ANSWER_9:  how many tokens the rest has with None, divided by those with "gpt2", to three digits.
# ANSWER_9B: how many more bits a character kneser_ney_nats gives the rest with None than with
#            "gpt2", at order 5, learned from the first part's ids. Two digits.
ANSWER_9 = 0.946
ANSWER_9B = 0.33
# > Without a pattern there are tokens such as ",\nAnd " and " the s": 5 % fewer tokens. But a word
# > now has several spellings, by what stands around it, and each of them is seen less often: 2.72
# > bits a character instead of 2.39. (With 512 tokens it even needs 1 % more tokens.)
HINTS_9 = [
    "BPETokenizer.train(text, 1024, pattern=None); len(tokenizer.encode(rest)).",
    "kneser_ney_nats(train ids, test ids, tokenizer.vocab_size, 5) is for the whole rest.",
    "Divide by the characters of the rest (not by its tokens) and by ln 2, then subtract.",
]


# %% 10. ★★★ (derive) How undecided is a word?
# Under a unigram model the cut s of a word x has the probability P(s|x). Its entropy,
# H = -Σ_s P(s|x)·log P(s|x), says how undecided the cut is. There are 2ⁿ⁻¹ cuts; find a recursion
# over the length of the beginning, as for α, that needs only what `forward` returns.
def undecided(word, score):
    """H in bits, for word (bytes) and score {piece: log p}. Words may have 60 letters."""
    alpha, arcs = stage.forward(word, score, len(word))
    entropy = [0.0]  # of the cut of each beginning, in nats
    for j in range(1, len(word) + 1):
        total = 0.0
        for i, _, log_p in arcs[j]:
            log_share = alpha[i] + log_p - alpha[j]  # log P(i | j)
            total += math.exp(log_share) * (entropy[i] - log_share)
        entropy.append(total)
    return entropy[-1] / math.log(2)


# > A cut of x[:j] is its last piece x[i:j], drawn with P(i|j), and a cut of x[:i]. Its log
# > probability is the sum of both, so on average H_j = Σ_i P(i|j)·(H_i - log P(i|j)), with H_0 = 0:
# > the surprise of the last piece, and then that of what stands before. A word whose cut is clear
# > has H near 0, and Viterbi's one cut is nearly all of P(x).
HINTS_10 = [
    "By (★), from the end: first the last piece is drawn, then the cut of what stands before it.",
    "Let H_j be the entropy of the cut of x[:j]. If the last piece begins at i, H_i is left.",
    "H_j is a mean over i, with P(i|j), of two things: the surprise -log P(i|j), and ...",
]

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
    counts = Counter(stage.pretokenize(text))
    words = {tuple(word.encode()): n for word, n in counts.items()}
    tokens = [bytes([byte]) for byte in range(256)]
    merges = []
    while len(tokens) < vocab_size:
        pairs = Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merged = {}
        for word, n in words.items():
            merged[tuple(stage.replace_pair(word, best, len(tokens)))] = n
        words = merged
        merges.append([stage.to_alphabet(tokens[i]) for i in best])
        tokens.append(tokens[best[0]] + tokens[best[1]])
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    vocab = {stage.to_alphabet(token): i for i, token in enumerate(tokens)}
    parts = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    Path(path).write_text(json.dumps(parts, ensure_ascii=False), encoding="utf-8")
    return path


# > Equal words are counted once, so a merge goes over 3,400 words instead of 254,000 characters.
# > Two words never become the same row of ids, so the dict loses nothing.
HINTS_12 = [
    "Count the pre-tokens once, as tuples of bytes; then count pairs, each times its word's count.",
    "Ties: the smallest pair of ids. replace_pair makes the merge inside one word.",
    "The file: version, added_tokens, pre_tokenizer, decoder, model with vocab and merges.",
]
