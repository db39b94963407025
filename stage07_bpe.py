# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 7: tokenize. What are the symbols that a language model reads and writes?

Stages 1 to 6 predicted characters, and paid for every letter with a step of the model. Words would
be longer steps, but no list of words is ever complete. So begin with the 256 bytes, which can write
anything, and learn frequent sequences of bytes until the budget, the vocabulary size, is spent:

    BPE         merge the commonest pair, again and again          (GPT-2 to GPT-4, Llama 3, Qwen)
    WordPiece   merge by a likelihood ratio, encode greedily       (BERT)
    Unigram     a probability for each piece, prune, then Viterbi  (T5, ALBERT)

You should know what a language model predicts (stage 1); section 7 uses logarithms.
  Theory: 1 the idea on one page   2 bytes   3 pre-tokens   5 BPE   6 WordPiece   7 Unigram
  Use:    4 regular expressions   8 the five steps, and files   9 comparing, choosing a vocabulary

Run `python stage07_bpe.py [--fast] [--seed N]` for the report on the stories, or a command: train,
encode or decode (--help). Rests on: Gage (1994), "A new algorithm for data compression";
Sennrich et al. (2016), "Neural machine translation of rare words with subword units"; Schuster,
Nakajima (2012), "Japanese and Korean voice search"; Kudo (2018), "Subword regularization"; Radford
et al. (2019), "Language models are unsupervised multitask learners" (GPT-2); Provilkov et al.
(2020), "BPE-dropout"; Petrov et al. (2023), "Language model tokenizers introduce unfairness".
"""

import argparse
import base64
import codecs
import functools
import heapq
import json
import math
import os
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from itertools import groupby
from pathlib import Path

import numpy as np

# %% 1. The idea on one page
# In a computer, "banana bandana" is a row of 14 bytes, integers from 0 to 255: b is 98, a is 97, n
# is 110, d is 100 and the space 32. Which two neighbours stand together most often? Give that pair
# a new integer, 256, write it everywhere instead of the pair, and ask again. That is byte-pair
# encoding (BPE): the merges, in the order in which they were found, are the whole tokenizer.


def replace_pair(ids, pair, new):
    """ids with every place of the pair, from left to right, replaced by the id new."""
    out = []
    for i in ids:
        out.append(i)
        if tuple(out[-2:]) == pair:
            out[-2:] = [new]
    return out


def textbook_merges(text, n_merges):
    """The first n_merges merges that BPE learns from a text: pairs of ids, in order."""
    ids = list(text.encode())
    merges = []
    for new in range(256, 256 + n_merges):
        counts = Counter(zip(ids, ids[1:]))
        if not counts:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))  # of equals the smallest ids
        merges.append(pair)
        ids = replace_pair(ids, pair, new)
    return merges


def textbook_encode(text, merges):
    """The ids of any text: its bytes, with the same merges made in the same order."""
    ids = list(text.encode())
    for new, pair in enumerate(merges, start=256):
        ids = replace_pair(ids, pair, new)
    return ids


def spellings(merges):
    """The bytes of every id: first those of the 256 bytes, then those of each merge."""
    spelled = [bytes([byte]) for byte in range(256)]
    for a, b in merges:
        spelled.append(spelled[a] + spelled[b])
    return spelled


def textbook_decode(ids, merges):
    """The text of the ids: their bytes in a row, read as UTF-8."""
    return b"".join(map(spellings(merges).__getitem__, ids)).decode(errors="replace")


#     textbook_merges("banana bandana", 3)
#     b a n a n a _ b a n d a n a      (a, n) stands there 4 times, more than any other: an = 256
#     b an an a _ b an d an a          (b, an) and (an, a) twice each. The smaller ids go first,
#     ban an a _ ban d an a            and b = 98 is less than 256: ban = 257
#     ban ana _ ban d ana              then (an, a): ana = 258. Six symbols instead of 14.
#     merges = [(97, 110), (98, 256), (256, 97)]
#
#     textbook_encode("cabana", merges): c a b a n a  →  c a b an a  →  c a ban a
#     The last a is left over: "ana" would fit, but "ban" was learned first and took its "an".
#
# Nothing is ever unknown: where no merge fits, the bytes remain. Left to say: what a byte is (2),
# where a text is cut first (3), how it is done fast (5), and whether other rules are better (6, 7).

# %% 2. Bytes, and what a symbol costs
# A model sees integers, each with its own row in the embedding. Three simple choices of symbols:
#   characters  Unicode has some 150,000, an English text a hundred; sequences are long
#   words       short sequences, but "foxlike" is <unknown>, and every misspelling wants a row
#   bytes       256 symbols write everything; the longest sequences, three a character in Chinese
# T tokens cost T steps of every layer, and attention compares T²/2 pairs of them. V symbols cost
# V·C numbers in the embedding, and V·C multiplications for every prediction. Subwords trade one
# price for the other; section 9 chooses V.
#
# NORMALISATION. What looks like one text may be several rows of code points: é is U+00E9, bytes
# C3 A9, or an e followed by the accent U+0301, bytes 65 CC 81, with other tokens. The form NFC
# composes such pairs, NFD takes them apart, and what is seen stays the same. NFKC also replaces
# "compatible" characters: ﬁ becomes fi, ½ becomes 1⁄2, and x² becomes x2, which is another formula,
# and nothing brings it back. T5 and ALBERT use NFKC, Qwen NFC; uncased BERT drops case and accents.
# GPT, Llama 3 and our own keep the text as it is, so that decode(encode(text)) == text.
#
# THE ALPHABET. Token files are text, but a token may be half a character. So GPT-2 writes bytes in
# 256 printable characters: those that print in Latin-1 stand for themselves, the 68 others take
# U+0100 and on, in order. The space (0x20, the 33rd of them) becomes Ġ, a newline Ċ, and é Ã©.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_TO_CHAR = {byte: chr(byte) for byte in PRINTABLE}
for byte in range(256):
    if byte not in PRINTABLE:
        BYTE_TO_CHAR[byte] = chr(0x100 + len(BYTE_TO_CHAR) - len(PRINTABLE))
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}


def to_alphabet(data):
    """Bytes in GPT-2's printable alphabet: b" fox" -> "Ġfox"."""
    return data.decode("latin-1").translate(BYTE_TO_CHAR)


def from_alphabet(token):
    """The bytes behind a token of a vocabulary file."""
    return bytes(CHAR_TO_BYTE[char] for char in token)


def check_text(text):
    """ValueError unless text is a str that UTF-8 can write: no lone half of a UTF-16 pair."""
    if not isinstance(text, str):
        raise ValueError(f"text {text!r:.40} is {type(text).__name__}: expected str")
    surrogate = None if text.isascii() else re.search("[\ud800-\udfff]", text)
    if surrogate:
        where = f"lone surrogate U+{ord(surrogate[0]):04X} at position {surrogate.start()}"
        raise ValueError(f"{where}: expected text that UTF-8 can encode")


def check_count(name, value, lowest=1):
    """value as an int; ValueError unless it is a whole number, and at least the lowest."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < lowest:
        raise ValueError(f"{name} {value!r}: expected an integer of at least {lowest}")
    return int(value)  # NumPy's own integers would wrap


def checked_ids(name, ids, known, expected):
    """Yield the ids of a list, an array, a tensor; ValueError for what is not among the known."""
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    if not hasattr(ids, "__iter__"):
        raise ValueError(f"{name}: {ids!r:.40} is not iterable: expected integers {expected}")
    for i in ids:
        whole = isinstance(i, (int, np.integer)) and not isinstance(i, bool)  # True is no id
        if not whole or int(i) not in known:
            raise ValueError(f"{name}: {i!r:.40}: expected integers {expected}")
        yield int(i)


# %% 3. Pre-tokens: what no merge reaches across
# Left alone, a merging method learns "dog." and "dog," and "dog!" as three tokens. So the text is
# first cut into pre-tokens, say a word with the space before it, a run of digits, of punctuation,
# and tokens are learned inside them. Here are the patterns of GPT-2, of GPT-4 and Llama 3, and of
# GPT-4o. \p{L} is a letter of any script, \p{Lu} an upper-case one, \p{M} a mark on a letter, \p{N}
# a number of any kind (½, Ⅷ), \s White_Space. With \s+(?!\S) a run of blanks gives back its last
# one, to lead the next word. GPT-4 added: contractions in either case, any one mark to lead a word,
# digits by threes, line ends close a run. GPT-4o also cuts between "camel" and "Case". None stands
# for no pattern: the whole text is one pre-token.
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    None: None,
}


# %% 4. Regular expressions that know Unicode
# Python's re has no \p, and its \s also takes U+001C..U+001F. So such a class is spelled out as
# ranges of code points. Python knows the general categories, but no scripts such as \p{Han}.
BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
BLANKS += "".join(map(chr, range(0x2000, 0x200B)))


@functools.cache
def classes(limit):
    """{"L", "Lu", ..., or "s": its code points below the limit, for use inside [...]}."""
    ranges = defaultdict(str)
    for kind, group in groupby(range(limit), lambda code: unicodedata.category(chr(code))):
        codes = list(group)
        for name in (kind, kind[0]):
            ranges[name] += rf"\U{codes[0]:08x}-\U{codes[-1]:08x}"
    return {**ranges, "s": BLANKS, "d": ranges["Nd"]}


PART = re.compile(
    r"\\[pP]\{(\w+)\}|\\([sSd])|\\.|\[\^?\]?|\(\?(?:i?:|<?[=!])|\{[\d,]+\}[?+]?|.", re.S
)


def translate(regex, limit=0x110000):
    r"""A regex of the tokenizers library as one for Python's re; ValueError for what is unknown.

    Known: literals . * + ? {1,3} | ( ) (?: ) (?i: ), looking ahead and behind, classes, \s \S \d,
    \p{..} and, outside of [...], \P{..}. limit: 128 for ASCII text, which then starts faster.
    """
    out, in_class = [], False
    for part in PART.finditer(regex):
        text, name = part[0], part[1] or part[2]
        if name:
            negated = text[1] in "PS"
            members = classes(limit).get("s" if text == r"\S" else name)
            if limit == 128 and not members:
                members = "\U0010ffff"  # no ASCII character is one
            known = members is not None and not (negated and in_class)
            text = members if in_class else f"[{'^' if negated else ''}{members}]"
        elif text[0] == "\\":
            known = text[1:] in "nrtfv" or not text[1:].isalnum()
        elif in_class:
            known = text[0] != "[" and not regex.startswith("&&", part.start())
            in_class = text != "]"
        elif text[0] == "[":
            known = text[-1] != "]"
            in_class = True
        elif text == "(":
            known = not regex.startswith("(?", part.start())
            text = "(?:"
        else:
            known = text not in ("^", "$") and not (text[0] == "{" and text[-1] in "?+")
        if not known:
            raise ValueError(f"regex {regex!r:.80}: {part[0]!r} is not handled here")
        out.append(text)
    return "".join(out)


@functools.lru_cache(maxsize=256)
def compile_regex(regex, limit=0x110000):
    """The compiled regex; ValueError says what is wrong with it."""
    try:
        return re.compile(translate(regex, limit))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"regex {regex!r:.80}: {error}") from None


# A tokenizer.json may cut differently. Its Split looks for matches of a regex, and its behavior
# says what becomes of them. The table says which piece is glued to the one before: (False, True) is
# a match behind what is none. With invert, the matches and the rest change roles.
GLUED = {  # "a--b" with the regex "-" becomes
    "Isolated": (),  # a|-|-|b
    "Removed": (),  # a|b
    "MergedWithPrevious": ((False, True),),  # a-|-|b
    "MergedWithNext": ((True, False),),  # a|-|-b
    "Contiguous": ((True, True), (False, False)),  # a|--|b
}


def split(text, regex, behavior="Isolated", invert=False):
    """The pieces of text, none of them empty."""
    pattern = compile_regex(regex, 128 if text.isascii() else 0x110000)
    if behavior == "Isolated":
        found = pattern.findall(text)
        if sum(map(len, found)) == len(text):  # fast, and often enough
            return [piece for piece in found if piece]
    pieces, end = [], 0  # [(piece, whether it has the role of a match)]
    for match in pattern.finditer(text):
        pieces += [(text[end : match.start()], invert), (match[0], not invert)]
        end = match.end()
    pieces.append((text[end:], invert))
    out, before = [], None
    for piece, role in pieces:
        if not piece or (role and behavior == "Removed"):
            continue
        if (before, role) in GLUED[behavior]:
            out[-1] += piece
        else:
            out.append(piece)
        before = role
    return out


def check_pattern(pattern):
    """ValueError unless pattern is the name of one in PATTERNS, or None."""
    if not isinstance(pattern, (str, type(None))) or pattern not in PATTERNS:
        raise ValueError(f"pattern {pattern!r}: expected one of {list(PATTERNS)}")


def pretokenize(text, pattern="gpt2"):
    """The pre-tokens of text; joined they are the text. pattern: "gpt2", "gpt4", "gpt4o", None."""
    check_text(text)
    check_pattern(pattern)
    if pattern is None:
        return [text] if text else []
    return split(text, PATTERNS[pattern])


def finder(texts):
    """A compiled regex that finds the texts; of those that begin at a place, the longest."""
    longest_first = sorted(map(re.escape, texts), key=len, reverse=True)
    return re.compile("|".join(longest_first) or "(?!)")  # (?!) is nowhere


def count_words(text, pattern="gpt2", specials=()):
    """{pre-token as bytes: count} of a str or an iterable of str; special tokens are left out."""
    counts, cutter = Counter(), finder(specials)
    for document in [text] if isinstance(text, str) else text:
        check_text(document)
        for chunk in cutter.split(document):
            counts.update(pretokenize(chunk, pattern))
    return {word.encode(): count for word, count in counts.items()}


# %% 5. Byte-pair encoding
# The first page learned from one string. From here on merges stay inside the pre-tokens, a text's
# "words", and equal words are kept once, with their count: {word: count}. Not only the pair's count
# may decide but any function score(pair_count, left_count, right_count), whose last two arguments
# count the pair's symbols; section 6 uses it. Of equals the smallest ids go first. (In a a a the
# pair (a, a) is counted twice, as it stands there, though only one of the two can be merged.)
#
# The first page reads everything again for each merge, yet one merge touches little. When (a, b)
# becomes X inside  … l a b r …  of a word that occurs w times, the table of pair counts changes by
#       (l, a) −w    (a, b) −w    (b, r) −w    (l, X) +w    (X, r) +w        and nothing else.
# So keep for each pair its count and the places where it stands, and keep the words as linked
# lists, in which two neighbours become one in O(1). A place may go stale, its symbols eaten by
# another merge; one look at the symbols there shows it. In a run such as a a a a the pair that is
# "lost" can be (a, a) itself; but none of it is left after the merge, so its count is set to 0.
#
# The best pair comes from a heap of (−score, pair). When a pair's score changes it is pushed again;
# an entry that no longer has the pair's score is passed over. A count changes only where a merge
# is made. Any other score may change when count(a) and count(b) do: then all pairs with a, b or X
# in them are scored anew.
def learn_merges(words, n_merges, score=None):
    """{word: count} -> [((left id, right id), score)], the best pair first; new ids from 256 on.

    score: None for the pair's count, or any function (pair_count, left_count, right_count)."""
    n_merges = check_count("n_merges", n_merges, 0)
    ids, weight = [], []  # all words in a row, each followed by −1, which is in no pair
    for word, count in words.items():
        ids += [*word, -1]
        weight += [int(count)] * (len(word) + 1)
    before, after = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))  # linked lists
    total, pairs = Counter(), Counter()  # how often each symbol and each pair stands there
    places = defaultdict(list)  # pair -> where, stale places included
    pairs_with = defaultdict(set)  # symbol -> the pairs it is in
    latest = {}  # pair -> the score with which it was last pushed
    heap, merges = [], []

    def score_of(pair):
        if score is None:
            return pairs[pair]
        return score(pairs[pair], total[pair[0]], total[pair[1]])

    for i, pair in enumerate(zip(ids, ids[1:])):
        total[ids[i]] += weight[i]
        if -1 not in pair:
            pairs[pair] += weight[i]
            places[pair].append(i)
    for pair in pairs:
        heap.append((-score_of(pair), pair))
        for symbol in pair:
            pairs_with[symbol].add(pair)
    heapq.heapify(heap)
    while heap and len(merges) < n_merges:
        minus_score, pair = heapq.heappop(heap)
        if not pairs[pair] or score_of(pair) != -minus_score:
            continue  # none is left, or another entry counts
        a, b = pair
        new = 256 + len(merges)
        merges.append((pair, -minus_score))
        changed = set()
        for i in sorted(places.pop(pair)):  # from left to right
            j, w = after[i], weight[i]
            if ids[i] != a or ids[j] != b:
                continue  # stale
            h, k = before[i], after[j]
            ids[i], ids[j] = new, -1
            after[i], before[k] = k, i
            total[new] += w
            on_the_left = (ids[h], a), (ids[h], new), h
            on_the_right = (b, ids[k]), (new, ids[k]), i
            for lost, gained, place in (on_the_left, on_the_right):
                if -1 not in gained:
                    pairs[lost] -= w
                    pairs[gained] += w
                    places[gained].append(place)
                    changed |= {lost, gained}
        total[a] -= total[new]
        total[b] -= total[new]
        pairs[pair] = 0
        if score is not None:
            for gained in changed:
                for symbol in gained:
                    pairs_with[symbol].add(gained)
            changed = pairs_with[a] | pairs_with[b] | pairs_with[new]
        for near in changed:
            if pairs[near]:
                if latest.get(near) != score_of(near):
                    latest[near] = score_of(near)
                    heapq.heappush(heap, (-latest[near], near))
            else:
                for symbol in near:
                    pairs_with[symbol].discard(near)
    return merges


# No two tokens are the same bytes (files name a token by its string): wherever a string stands with
# token boundaries at both ends, the same merges went through it in the same order.
#
# ENCODING by rank. With 50,000 merges and a word of seven letters, to try every merge in turn is
# waste. Of all neighbours that form a known pair, merge the one that was learned first (its rank is
# lowest; of equals, the leftmost), and look again. For trained merges this is what the first page
# does, since a merge's parts are learned before it. In other people's files they need not be: with
# abc+a, ab+c, a+b in this order the first page leaves "abcab" as ab c ab. By rank, the left a+b
# makes ab+c possible, and that abc+a, which outranks the other a+b: the result is abca b.
# To look at all neighbours each time takes O(n²) for n symbols, a heap of (rank, place) O(n log n):
# only neighbours of a new symbol can form new pairs, and an entry is stale if the pair at its place
# has another rank by now, or none.
#
# BPE-DROPOUT (Provilkov et al. 2020). A model that always sees ban|ana learns little about b, a
# and n. In training, leave out each possible merge with probability p, anew at every step; of the
# others make that of lowest rank; if there is none, the word is done. p = 1 leaves its letters.
GONE = object()  # stands where no symbol is any more


def merge_symbols(symbols, ranks, dropout=0.0, rng=None):
    """The symbols after all merges. ranks: {(a, b): (rank, new symbol)}; symbols are hashable.

    With dropout > 0 each possible merge is left out with that probability (rng: a Generator)."""
    is_number = isinstance(dropout, (int, float)) and 0 <= dropout <= 1
    if not is_number or (dropout and rng is None):
        raise ValueError(f"dropout {dropout!r}, rng {rng!r}: expected 0 to 1, and a Generator")
    symbols = [*symbols, GONE]
    before, after = list(range(-1, len(symbols) - 1)), list(range(1, len(symbols) + 1))
    pairs = enumerate(zip(symbols, symbols[1:]))
    heap = sorted((ranks[pair][0], i) for i, pair in pairs if pair in ranks)  # (rank, place)
    left_out = []
    while heap:
        entry = rank, i = heapq.heappop(heap)
        j = after[i]
        found = ranks.get((symbols[i], symbols[j])) if symbols[i] is not GONE else None
        if found is None or found[0] != rank:
            continue  # stale
        if dropout and rng.random() < dropout:
            left_out.append(entry)
            continue
        new = found[1]
        h, k = before[i], after[j]
        symbols[i], symbols[j] = new, GONE
        after[i], before[k] = k, i
        if (symbols[h], new) in ranks:
            heapq.heappush(heap, (ranks[symbols[h], new][0], h))
        if (new, symbols[k]) in ranks:
            heapq.heappush(heap, (ranks[new, symbols[k]][0], i))
        while left_out:  # each step draws anew
            heapq.heappush(heap, left_out.pop())
    return [symbol for symbol in symbols if symbol is not GONE]


# %% 6. WordPiece, and the longest match
# " t" and "e" meet often just because both are everywhere. WordPiece asks which pair is together
# more often than by chance. Take the text as N tokens drawn independently, with p(t) = c(t)/N. Its
# log-likelihood is Σ_t c(t)·log p(t) = Σ_t f(c(t)) − f(N), where f(x) = x·log x. Now make n of its
# places a b one token: c(a), c(b) and N fall by n, and the new token has n. As f′(x) = log x + 1,
#       gain = n·log n − n·(log c(a) + 1) − n·(log c(b) + 1) + n·(log N + 1) + terms of order n²/c
#            ≈ n · ( log [ N·n / (c(a)·c(b)) ] − 1 ).
# In the bracket stands how many times as often the pair is there as by chance. N is the same for
# all candidates: so merge the pair with the largest n/(c(a)·c(b)). Mind that this holds to first
# order, for n small beside c(a) and c(b), and that it is the gain per *place*: two letters seen
# once, together, score 1, which nothing beats, so the bare ratio buys oddities. Hence a pair must
# stand as often as a token does on average, N/V times; when none is left, the commonest comes next.
# (Google never published its trainer. The paper says "increases the likelihood the most", the ratio
# is how that is usually read, and Hugging Face's trainer merges the commonest pair, as BPE does.)
def learn_wordpiece(words, size):
    """The bytes of each token that WordPiece learns from {word: count}, at most size − 256."""
    size = check_count("size", size, 256)
    symbols = sum(len(word) * int(count) for word, count in words.items())
    often = max(1, symbols // size)

    def score(together, left, right):
        if together < often:
            return together - often  # negative: behind all others, the commonest first
        return together / (left * right)

    merges = learn_merges(words, size - 256, score)
    return spellings(pair for pair, _ in merges)[256:]


# Encoding forgets the merges. It takes the longest token that fits, again and again: one pass, but
# greedy. BERT cuts its text at blanks and around punctuation and loses the blanks (here a word's
# first piece carries its space). It marks a piece that continues a word with ##: "able" in "table"
# (t ##able) and the word "able" have different rows. And it has no bytes to fall back to: if the
# rest of a word has no piece, the whole word is [UNK].
#     longest_match("untied", {"un", "tie", "##tie", "##ti", "##d"}, 5, "##")  →  un ##tie ##d
#     longest_match("united", ...)  →  None: after "un" no piece begins with "i"
# BERT has four more special tokens: [CLS] begins every text (its output classifies the text), [SEP]
# ends one, [PAD] fills a batch's short rows, and [MASK] hides the words that BERT learns to guess.
def longest_match(word, pieces, longest, prefix=None):
    """The pieces of a word (bytes or str), each the longest that fits; None if one is missing.

    prefix: what marks the pieces that continue a word, "##" in BERT's; longest: of any piece."""
    out = []
    i = 0
    while i < len(word):
        for j in range(min(i + longest, len(word)), i, -1):
            piece = word[i:j] if prefix is None or i == 0 else prefix + word[i:j]
            if piece in pieces:
                break
        else:
            return None
        out.append(piece)
        i = j
    return out


# %% 7. Unigram: a probability for every piece
# Unigram starts with far too many pieces, fits a probability to each, and drops those that the text
# misses least. A word x can be cut in many ways s: P(x) = Σ_s P(s, x),  P(s, x) = Π_{t∈s} p(t).
# Which cut was used is hidden. EM maximises Σ_x count(x)·log P(x) by repeating two steps:
#   E  c(t) = expected number of uses of t, each cut of x weighted by P(s|x) = P(s, x)/P(x)
#   M  p(t) = c(t) / Σ_u c(u)
# Why it climbs: for any weights q(s) that sum to one, Jensen's inequality gives
#       log P(x) = log Σ_s q(s)·P(s, x)/q(s)  ≥  Σ_s q(s)·log [P(s, x)/q(s)],
# with equality at q(s) = P(s|x): E makes this bound touch. M raises it: Σ_t c(t)·log p(t) under
# Σ_t p(t) = 1 is largest where c(t)/p(t) = λ for every t (Lagrange), which is p ∝ c.
#
# One step by hand: the word "ab", seen once, with p(a) = p(b) = 1/4 and p(ab) = 1/2. Its cuts are
# ab, with P = 1/2, and a|b, with P = 1/4·1/4 = 1/16. Together P(x) = 9/16, so P(ab|x) = 8/9 and
# P(a|b|x) = 1/9. E: c(ab) = 8/9, c(a) = c(b) = 1/9. M: they sum to 10/9, so p(ab) = 0.8 and p(a) =
# p(b) = 0.1. And log P(x) has climbed: 0.8 + 0.01 = 0.81 is more than 9/16 = 0.5625.
#
# A word of n bytes has 2ⁿ⁻¹ cuts, but n steps sum over them. Let α_j be the log of the total
# probability of x[:j] over all its cuts. The last piece is x[i:j] for some i < j, so
#       α_0 = 0,    α_j = log Σ_i exp(α_i + log p(x[i:j])),    log P(x) = α_n,
# and given a boundary at j, the piece that ends there begins at i with probability
#       P(i | j) = exp(α_i + log p(x[i:j]) − α_j).                                           (★)
# From the end: γ_j = P(boundary at j | x), γ_n = 1; x[i:j] is used with probability γ_j·P(i|j),
# which goes to c(x[i:j]) and to γ_i (backpropagation: c(t) = ∂α_n/∂log p(t)). Drawing i from (★)
# instead samples a cut from P(s|x): Kudo's subword regularisation, which BPE-dropout imitates. At
# temperature τ every P(s, x) is taken to the power 1/τ: τ > 1 draws more boldly, τ → 0 the best.
# With a maximum in place of the sum, the recursion finds the best cut (Viterbi), as encode does.
log_sum = np.logaddexp.reduce  # log Σ eᵗ over a list, without overflow; of no terms log 0 = −∞


def forward(word, score, longest, total=log_sum, temperature=1.0):
    """α_0..α_n, and for each j the pieces that end there as [(i, word[i:j], log p / τ)].

    ValueError if the pieces in score cannot write the word."""
    alpha, arcs = [0.0], [[]]
    for j in range(1, len(word) + 1):
        ending = []
        for i in range(max(0, j - longest), j):
            piece = word[i:j]
            if piece in score:
                ending.append((i, piece, score[piece] / temperature))
        arcs.append(ending)
        terms = [alpha[i] + log_p for i, _, log_p in ending]
        alpha.append(float(total(terms)) if terms else -math.inf)
    if alpha[-1] == -math.inf:
        raise ValueError(f"word {word!r}: expected pieces that can write it")
    return alpha, arcs


def viterbi(word, score, longest):
    """(log P, pieces) of the best cut; among equals the one whose last piece is longest."""
    best, arcs = forward(word, score, longest, total=max)
    pieces, j = [], len(word)
    while j:
        j, piece, _ = next(arc for arc in arcs[j] if best[arc[0]] + arc[2] == best[j])
        pieces.append(piece)
    return best[-1], pieces[::-1]


def sample_cut(word, score, longest, temperature, rng):
    """The pieces of a random cut s, with probability ∝ P(s, word)^(1/temperature)."""
    if not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature!r}: expected a positive number")
    alpha, arcs = forward(word, score, longest, temperature=temperature)
    pieces, j = [], len(word)
    while j:
        p = np.exp([alpha[i] + log_p - alpha[j] for i, _, log_p in arcs[j]])  # (★)
        j, piece, _ = arcs[j][rng.choice(len(p), p=p / p.sum())]
        pieces.append(piece)
    return pieces[::-1]


# TRAINING runs E a dozen times over all words; NumPy is faster if it gets all words at once. An ARC
# is one place where a piece fits into a word, from boundary i to boundary j. Write all words one
# after the other, number their boundaries through, and sort the arcs of all words by the depth j at
# which they end in their word. Then one line does the step to depth 1 in every word, one the step
# to depth 2, and so on. The single bytes are always pieces: an arc ends at each boundary.
class Lattice:
    """The arcs of many words: where each of the numbered pieces fits."""

    def __init__(self, words, number, longest, whole=True):
        """number: {piece: its number}; whole: may a piece be an entire word?"""
        arcs, last = [], []  # depth, end, start and piece of each arc; the end of each word
        origin = 0  # the boundary at the word's beginning
        for word in words:
            n = len(word)
            for i in range(n):
                for j in range(i + 1, min(i + longest, n) + 1):
                    piece = number.get(word[i:j])
                    if piece is not None and (whole or j - i < n):
                        arcs += (j, origin + j, origin + i, piece)
            last.append(origin + n)
            origin += n + 1
        arcs = np.array(arcs, np.int64).reshape(-1, 4)
        arcs = arcs[np.lexsort((arcs[:, 1], arcs[:, 0]))]
        depths, self.ends, self.starts, self.pieces = arcs.T.copy()  # (arcs,) each
        self.last, self.boundaries = np.array(last, np.int64), origin
        self.steps = []  # for each depth: its arcs as a slice, and where a new end begins in it
        for depth in range(1, depths.max(initial=0) + 1):
            lo, hi = np.searchsorted(depths, (depth, depth + 1))
            is_new = np.diff(self.ends[lo:hi], prepend=-1) > 0
            self.steps.append((slice(lo, hi), np.flatnonzero(is_new)))

    def forward(self, log_p, best=False):
        """α of every boundary; with best, the log P of the best cut up to there."""
        alpha = np.zeros(self.boundaries)
        log_p = log_p[self.pieces]
        for arcs, new in self.steps:
            terms = alpha[self.starts[arcs]] + log_p[arcs]
            top = np.maximum.reduceat(terms, new)  # of the arcs with the same end
            if not best:
                terms -= np.repeat(top, np.diff(new, append=len(terms)))
                top += np.log(np.add.reduceat(np.exp(terms), new))
            alpha[self.ends[arcs][new]] = top
        return alpha

    def expected_counts(self, log_p, times):
        """c(piece) for each number; times: how often each word occurs."""
        alpha = self.forward(log_p)
        uses = np.exp(alpha[self.starts] + log_p[self.pieces] - alpha[self.ends])  # P(i | j)
        gamma = np.zeros(self.boundaries)  # times the occurrences of the word
        gamma[self.last] = times
        for arcs, _ in reversed(self.steps):
            uses[arcs] *= gamma[self.ends[arcs]]
            np.add.at(gamma, self.starts[arcs], uses[arcs])
        return np.bincount(self.pieces, weights=uses, minlength=len(log_p))


# Begin with the repeated substrings of at most 16 bytes that cover most of the text (count times
# length), four for each token wanted. Then prune. Without t, its c(t) uses would be written as t's
# best cut t₁…t_m into other pieces, and the log-likelihood would fall by about
#       loss(t) = c(t) · (log p(t) − Σ_k log p(t_k)),        less as the next EM refits p.
# Keep the three quarters of largest loss (and all single bytes), fit again, and repeat until the
# vocabulary fits. A dropped piece has log p = −∞.
MAX_PIECE, MAX_WORD, SEEDS = 16, 256, 4  # bytes of a seed, bytes of a word in EM, seeds per token


def learn_unigram(words, size):
    """{word: count} -> {piece: log p}: the 256 bytes, then up to size − 256 others, by p."""
    size = check_count("size", size, 256)
    words = {word: int(times) for word, times in words.items()}
    chunks, counts = Counter(), Counter()
    for word, times in words.items():
        for i in range(0, len(word), MAX_WORD):
            chunks[word[i : i + MAX_WORD]] += times
    places = [(word, i) for word in words for i in range(len(word))]
    for n in range(1, MAX_PIECE + 1):  # what is there once is in nothing longer that is twice
        found = Counter()
        for word, i in places:
            found[word[i : i + n]] += words[word]
        counts |= found
        places = [(w, i) for w, i in places if i + n < len(w) and found[w[i : i + n]] > 1]
    pieces = [bytes([byte]) for byte in range(256)]
    seeds = [piece for piece, n in counts.items() if n > 1 and len(piece) > 1]
    pieces += sorted(seeds, key=lambda t: (-counts[t] * len(t), t))[: SEEDS * size]
    number = {piece: k for k, piece in enumerate(pieces)}
    text = Lattice(chunks, number, MAX_PIECE)
    inside = Lattice(pieces[256:], number, MAX_PIECE, whole=False)  # how pieces are cut in others
    times = np.array([*chunks.values()], np.float64)
    c = np.array([counts[piece] for piece in pieces], np.float64)
    alive = np.ones(len(pieces), bool)
    while True:
        for _ in range(2):  # M, E, M, E; the floor keeps unseen bytes above p = 0
            c = np.where(alive, np.maximum(c, 0.01), 0.0)
            with np.errstate(divide="ignore"):  # log 0 = −∞
                log_p = np.log(c / c.sum())
            c = text.expected_counts(log_p, times)
        n = int(alive.sum())
        if n <= size:
            break
        best_cut = inside.forward(log_p, best=True)[inside.last]
        candidates = 256 + np.flatnonzero(alive[256:])
        loss = c[candidates] * (log_p[candidates] - best_cut[candidates - 256])
        worst = candidates[np.argsort(loss, kind="stable")]
        alive[worst[: n - max(size, n * 3 // 4)]] = False
    by_p = [k for k in np.argsort(-log_p, kind="stable").tolist() if k >= 256 and alive[k]]
    return {pieces[k]: float(log_p[k]) for k in [*range(256), *by_p]}


# SENTENCEPIECE, the library behind T5, ALBERT, Llama 2 and Gemma, trains Unigram or BPE on
# *characters* and takes the space for a letter: it writes ▁ (U+2581) for each, and one before the
# text, so that its first word is the same token as later on. "a fox" is ▁a ▁fox; decoding joins the
# pieces, writes spaces for ▁ and drops the first. A character without a token is <unk> or, with
# BYTE FALLBACK, its bytes, which have tokens of their own: 🦊 is <0xF0> <0x9F> <0xA6> <0x8A>.


# %% 8. The five steps of every tokenizer
# A tokenizer is a pipeline. Models ship it in a file, tokenizer.json, that writes down its parts:
#     normalizer      rewrites the text: accents composed (NFC) or apart (NFD), " " becomes "▁"
#     pre_tokenizer   cuts it, as in section 3; ByteLevel also writes bytes in GPT-2's alphabet
#     model           turns each piece into ids: BPE, WordPiece or Unigram
#     post_processor  puts special tokens before and behind the text: bos, eos
#     decoder         undoes all this, as far as it can be undone
# Before all of them, the added_tokens such as <|endoftext|> are cut out of the text. Ordinary text
# must never produce a special one, or whoever can type it could forge the end of a document: so
# encode takes them for plain characters unless told otherwise.
#
# Other people's files hold whatever the tokenizers library can do, and a part passed over would
# give ids that look right and are not. So here are the kinds of steps that are handled, with their
# keys. A type, as in "prepend": str, says that the key must be there; a tuple lists the values that
# it may have (None: it may be missing); anything else is a default, and says the type. A key that
# is not in the table must be null, false or empty.
BYTES = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPACES = {"replacement": str, "split": True, "add_prefix_space": True}
SPACES["prepend_scheme"] = (None, "always", "first", "never")
REPLACE = {"pattern": dict, "content": str}
HANDLED = {
    "normalizer": {
        "NFC": {}, "NFD": {}, "NFKC": {}, "NFKD": {},
        "Prepend": {"prepend": str}, "Replace": REPLACE,
    },
    "pre_tokenizer": {
        "Split": {"pattern": dict, "behavior": (*GLUED,), "invert": bool},
        "Digits": {"individual_digits": bool}, "ByteLevel": BYTES, "Metaspace": SPACES,
    },
    "model": {
        "BPE": {
            "vocab": dict, "merges": list, "ignore_merges": False, "dropout": (None, 0),
            "unk_token": "", "fuse_unk": False, "byte_fallback": False,
            "continuing_subword_prefix": "", "end_of_word_suffix": "",
        },
        "WordPiece": {
            "vocab": dict, "unk_token": "", "continuing_subword_prefix": "",
            "max_input_chars_per_word": int,
        },
        "Unigram": {"vocab": list, "unk_id": -1, "byte_fallback": False},
    },
    "post_processor": {
        "ByteLevel": BYTES,
        "TemplateProcessing": {"single": list, "special_tokens": dict, "pair": []},
    },
    "decoder": {
        "ByteLevel": BYTES, "Metaspace": SPACES, "Replace": REPLACE, "ByteFallback": {}, "Fuse": {},
        "WordPiece": {"prefix": str}, "BPEDecoder": {"suffix": str},
        "Strip": {"content": str, "start": int, "stop": (None, 0)},
    },
}  # fmt: skip
FLAGS = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized", "special"], False)
ADDED = {"id": int, "content": str, **FLAGS}
FILE = {"version": (None, "1.0"), "added_tokens": [], "model": dict, "normalizer": {}}
FILE |= {"pre_tokenizer": {}, "post_processor": {}, "decoder": {}}


def check_object(where, found, keys):
    """The JSON object found, with its defaults; ValueError unless all that it says is handled."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {found!r:.60}: expected an object")
    known = {}
    for key, expected in keys.items():
        value = found.get(key)
        kind = expected if isinstance(expected, type) else type(expected)
        if value is None and kind not in (tuple, expected):
            value = expected  # the default
        fits = value in expected if kind is tuple else type(value) is kind
        if not fits:
            handled = expected if kind is tuple else kind.__name__
            raise ValueError(f"{where}: {key!r} is {value!r:.60}; handled here: {handled}")
        known[key] = value
    for key, value in found.items():
        if key not in keys and value not in (None, False, "", [], {}):
            raise ValueError(f"{where}: {key!r:.40} is {value!r:.60}; handled here: null or empty")
    return known


def read_steps(where, part):
    """The steps of a part of the file as a list, with every Sequence unrolled."""
    if not part and where != "model":
        return []
    kind = part.get("type") if isinstance(part, dict) else part
    if kind == "Sequence":
        (inner,) = [value for key, value in part.items() if key != "type"]
        return [step for some in inner for step in read_steps(where, some)]
    if not isinstance(kind, str) or kind not in HANDLED[where]:
        raise ValueError(f"{where} {kind!r:.60}; handled here: {', '.join(HANDLED[where])}")
    step = check_object(f"{where} {kind}", part, {"type": str, **HANDLED[where][kind]})
    if "pattern" in step:
        ((how, pattern),) = step["pattern"].items()
        if how not in ("Regex", "String") or not isinstance(pattern, str) or not pattern:
            raise ValueError(f"pattern {step['pattern']!r:.60}; handled here: Regex or String")
        step["regex"] = pattern if how == "Regex" else re.escape(pattern)
        compile_regex(step["regex"])  # says what it cannot do
    one = step["content"] if kind == "Strip" else step.get("replacement", "▁")
    if len(one) != 1:
        raise ValueError(f"{where} {part!r:.80}: expected one character to replace or strip")
    if kind == "Metaspace" and step["prepend_scheme"] is None:  # in older files
        step["prepend_scheme"] = "always" if step["add_prefix_space"] else "never"
    return [step]


def read_vocab(model):
    """{token: id} of a model."""
    vocab = model["vocab"]
    if model["type"] == "Unigram":
        for piece, score in vocab:
            number = type(score) in (int, float) and math.isfinite(score)
            if not isinstance(piece, str) or not number:
                raise ValueError(f"vocab: {[piece, score]!r:.60}: expected a piece and its score")
        vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
    for token, i in vocab.items():
        if type(i) is not int or not 0 <= i < 2**32:
            raise ValueError(f"vocab: {token!r:.60} has the id {i!r:.40}: expected 0 to 2³² - 1")
    if len(set(vocab.values())) < max(len(model["vocab"]), 1):
        raise ValueError("vocab: expected at least one token, and no token or id twice")
    check_text("".join(vocab))
    return vocab


def read_merges(model, vocab):
    """{(left id, right id): (rank, id of both)} of a BPE model."""
    ranks, prefix = {}, model["continuing_subword_prefix"]
    for rank, merge in enumerate(model["merges"]):
        try:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            ranks[vocab[left], vocab[right]] = rank, vocab[left + right[len(prefix) :]]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"merges: {merge!r:.60}: expected two tokens ({error!r})") from None
    return ranks


def read_added(entries, vocab):
    """{text: entry} of the added tokens; their ids must be those that the library would give."""
    added, taken, n = {}, set(vocab.values()), len(vocab)
    for entry in entries:
        entry = check_object("added_tokens", entry, ADDED)
        text = entry["content"]
        check_text(text)
        is_new = text not in vocab
        expected = n if is_new else vocab[text]
        n += is_new
        clash = text in added or (is_new and expected in taken)
        if not text or clash or entry["id"] != expected:
            found = f"{text!r:.60} with id {entry['id']!r:.40}"
            raise ValueError(f"added_tokens: {found}: expected one of each text, here {expected}")
        added[text] = entry
    return added


def read_template(steps):
    """(ids before a text, ids behind it) of a post_processor; its ByteLevel changes no ids."""
    templates = [step for step in steps if step["type"] == "TemplateProcessing"]
    if not templates:
        return [], []
    sides, texts = ([], []), 0
    for part in templates[0]["single"]:
        if "Sequence" in part:
            texts += 1
        else:
            name = part["SpecialToken"]["id"]
            side = sides[1] if texts else sides[0]
            side += templates[0]["special_tokens"][name]["ids"]
    if len(templates) > 1 or texts != 1:
        raise ValueError(f"post_processor {templates!r:.80}; handled here: tokens around one text")
    return sides


def replace(text, step):
    """The text after a Replace."""
    return compile_regex(step["regex"]).sub(lambda _: step["content"], text)


def normalize(text, steps, begins=True):
    """The text after the steps of a normalizer. begins: False in the middle of a text."""
    for step in steps:
        if step["type"] == "Replace":
            text = replace(text, step)
        elif step["type"] != "Prepend":
            text = unicodedata.normalize(step["type"], text)
        elif text and begins:
            text = step["prepend"] + text
    return text


def cut(text, step, begins):
    """The pieces of text after a step of a pre_tokenizer. begins: whether the text begins here."""
    kind = step["type"]
    if kind == "Split":
        return split(text, step["regex"], step["behavior"], step["invert"])
    if kind == "Digits":
        return split(text, r"\p{N}", "Isolated" if step["individual_digits"] else "Contiguous")
    if kind == "ByteLevel":
        text = " " + text if step["add_prefix_space"] and text[0] != " " else text
        return pretokenize(text, "gpt2" if step["use_regex"] else None)
    mark, scheme = step["replacement"], step["prepend_scheme"]  # Metaspace
    text = text.replace(" ", mark)
    if text[0] != mark and (scheme == "always" or scheme == "first" and begins):
        text = mark + text
    return split(text, re.escape(mark), "MergedWithNext") if step["split"] else [text]


# Added tokens are looked for in the text as it is or, if `normalized`, behind the normalizer. A
# single_word does not count inside a word; lstrip and rstrip swallow the blanks on that side.
def cut_added(text, added, search):
    """[(piece, None) or (added token, its id)]; search: the finder of {text: entry} in added."""
    out, done = [], 0
    for match in search.finditer(text) if added else ():
        entry, begin, end = added[match[0]], match.start(), match.end()
        around = text[max(begin - 1, 0) : begin] + text[end : end + 1]
        if entry["single_word"] and compile_regex(r"[\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}]").search(around):
            continue
        while entry["lstrip"] and begin > done and text[begin - 1] in BLANKS:
            begin -= 1
        while entry["rstrip"] and end < len(text) and text[end] in BLANKS:
            end += 1
        out += [(text[done:begin], None), (match[0], entry["id"])]
        done = end
    out.append((text[done:], None))
    return [(piece, i) for piece, i in out if piece]


class Tokenizer:
    """Any tokenizer. parts: the content of its tokenizer.json, from which all else is made."""

    model_type = None  # the subclasses open one type each

    def __init__(self, parts):
        self.parts = parts
        self._prepare()

    def _prepare(self):
        """Make everything from the parts, and forget what was encoded before."""
        parts = check_object("tokenizer.json", self.parts, FILE)
        (self.model,) = read_steps("model", parts["model"])
        self.normalizer = read_steps("normalizer", parts["normalizer"])
        self.pre_tokenizer = read_steps("pre_tokenizer", parts["pre_tokenizer"])
        self.decoder = read_steps("decoder", parts["decoder"])
        self.bos, self.eos = read_template(read_steps("post_processor", parts["post_processor"]))
        if self.model_type not in (None, self.model["type"]):
            raise ValueError(f"model {self.model['type']!r}: expected {self.model_type!r}")
        vocab = read_vocab(self.model)
        self.added = read_added(parts["added_tokens"], vocab)
        self.special_tokens = {text: e["id"] for text, e in self.added.items() if e["special"]}
        self.token_ids = vocab | {text: entry["id"] for text, entry in self.added.items()}
        self.tokens = {i: token for token, i in self.token_ids.items()}
        self.vocab_size = max(self.tokens) + 1  # the rows of an embedding, with those of holes
        self.holes = self.vocab_size - len(self.tokens)  # ids that have no token
        # What ordinary text may become: no special token, although most files list them.
        self.pieces = {text: i for text, i in vocab.items() if text not in self.special_tokens}
        self.longest = max(map(len, self.pieces), default=1)
        self.unknown = vocab.get(self.model.get("unk_token"))
        self.prefix = self.model.get("continuing_subword_prefix", "")
        self.suffix = self.model.get("end_of_word_suffix", "")
        if self.model["type"] == "BPE":
            self.ranks = read_merges(self.model, vocab)
            self.merges = {pair: new for pair, (_, new) in self.ranks.items()}
        if self.model["type"] == "Unigram":
            self.unknown = None if self.model["unk_id"] < 0 else self.model["unk_id"]
            self.score = {piece: p for piece, p in self.model["vocab"] if piece in self.pieces}
            self.unknown_score = min(p for _, p in self.model["vocab"]) - 10  # as SentencePiece
        # SentencePiece's BPE has no pre-tokens: a book would be one piece. But no merge joins two
        # letters that stand side by side in no token; so cut before ▁ wherever that is the case.
        self.word_end = None
        self.byte_level = any(step["type"] == "ByteLevel" for step in self.pre_tokenizer)
        other = self.byte_level or self.prefix or self.suffix or self.model.get("ignore_merges")
        if self.model["type"] == "BPE" and "▁" in self.pieces and not other:
            joined = {a for token in vocab for a, b in zip(token, token[1:]) if b == "▁"} | {"▁"}
            self.word_end = re.compile(f"(?<=[^{re.escape(''.join(joined))}])(?=▁)")
        given = parts["pre_tokenizer"]
        self.pattern = next((name for name in PATTERNS if given == byte_level_steps(name)), None)
        self._check_together()
        self.vocab = {i: self._token_bytes(i, first=False) for i in sorted(self.tokens)}
        special = set(self.special_tokens.values())
        self.ids = {token: i for i, token in self.vocab.items() if i not in special}
        self._cache, self._finders = {}, {}

    def _check_together(self):
        """ValueError for parts that are handled, but not beside one another."""
        kinds = [step["type"] for step in self.pre_tokenizer]
        if "ByteLevel" in kinds[:-1]:
            raise ValueError(f"pre_tokenizer {kinds}; handled here: ByteLevel as the last step")
        deletes = any(step.get("content") == "" for step in self.normalizer)
        schemes = [step.get("prepend_scheme") for step in self.pre_tokenizer]
        if "first" in schemes[1:] or ("first" in schemes and deletes):
            raise ValueError("prepend_scheme 'first' is not handled behind what cuts or deletes")
        for text, entry in self.added.items():
            if entry["normalized"] and not normalize(text, self.normalizer):
                raise ValueError(f"added_tokens: the normalizer leaves nothing of {text!r:.60}")
        kinds = [step["type"] for step in self.decoder]
        tail = kinds[kinds.index("Fuse") :] if "Fuse" in kinds else []
        if tail not in ([], ["Fuse"], ["Fuse", "Strip"]) or ("Strip" in kinds and not tail):
            raise ValueError(f"decoder {kinds}; handled here: Fuse at the end, or Fuse and Strip")
        for i in [*self.bos, *self.eos, *([] if self.unknown is None else [self.unknown])]:
            if type(i) is not int or i not in self.tokens:
                raise ValueError(f"post_processor or unk_id: {i!r:.40} is the id of no token")

    def _added_to_find(self, allowed, normalized):
        """({text: entry}, its finder) of the added tokens to be found raw, or behind normalizer."""
        key = allowed, normalized
        if key not in self._finders:
            found = {}
            for text, entry in self.added.items():
                if entry["normalized"] == normalized and (not entry["special"] or text in allowed):
                    found[normalize(text, self.normalizer) if normalized else text] = entry
            self._finders[key] = found, finder(found)
        return self._finders[key]

    def _cut(self, text, allowed, begins):
        """Yield (pieces for the model, None) and ([], id of an added token) in order."""
        for n, (section, i) in enumerate(cut_added(text, *self._added_to_find(allowed, False))):
            if i is not None:
                yield [], i
                continue
            section = normalize(section, self.normalizer, begins or n > 0)
            parts = cut_added(section, *self._added_to_find(allowed, True))
            for m, (part, i) in enumerate(parts):
                pieces = [part] if i is None else []
                for step in self.pre_tokenizer:
                    first = begins and n == m == 0
                    cuts = [cut(piece, step, first and k == 0) for k, piece in enumerate(pieces)]
                    pieces = [piece for some in cuts for piece in some]
                yield pieces, i

    def _encode(self, text, allowed, begins=True, **random):
        """The ids of text. begins: False in the middle of a text. random: for encode_piece."""
        ids, cache = [], {} if random else self._cache
        for pieces, i in self._cut(text, allowed, begins):
            if i is not None:
                ids.append(i)
            if self.word_end:
                pieces = [word for piece in pieces for word in self.word_end.split(piece)]
            for piece in pieces:
                if (found := cache.get(piece)) is None:
                    found = self.encode_piece(piece, **random)
                    if len(piece) <= 100 and len(cache) < 200_000 and not random:
                        cache[piece] = found  # bounded, whatever the text
                ids.extend(found)
        return ids

    def _allowed(self, allowed_special):
        """The special tokens that allowed_special names, as a frozenset."""
        names = [*self.special_tokens]
        allowed = [] if allowed_special == "none" else allowed_special
        allowed = names if allowed_special == "all" else allowed
        several = isinstance(allowed, (set, frozenset, list, tuple))
        if not several or not all(name in names for name in allowed):
            expected = f'expected "none", "all" or a set out of {names!r:.200}'
            raise ValueError(f"allowed_special {allowed_special!r:.80}: {expected}")
        return frozenset(allowed)

    def encode(self, text, allowed_special="none", add_special_tokens=False):
        """The ids of text. allowed_special: "none" (they are plain text), "all" or a set.

        add_special_tokens: with bos and eos, if the file has them. ValueError for what is no text,
        and for text that no token can write.
        """
        check_text(text)
        ids = self._encode(text, self._allowed(allowed_special))
        return [*self.bos, *ids, *self.eos] if add_special_tokens else ids

    def sample(self, text, rng, temperature=1.0, dropout=0.1):
        """The ids of a random cut: BPE leaves out merges (dropout), Unigram draws (temperature)."""
        check_text(text)
        given = {"BPE": {"dropout": dropout}, "Unigram": {"temperature": temperature}}
        if self.model["type"] not in given:
            raise ValueError(f"a {self.model['type']} model has no random cuts: BPE and Unigram do")
        return self._encode(text, frozenset(), rng=rng, **given[self.model["type"]])

    def encode_iterable(self, texts, allowed_special="none", window=1 << 14):
        """Yield the ids of "".join(texts), holding a few windows of text at a time.

        The text is cut at the end of a word where both sides together have the ids of the whole.
        That is exact if nothing looks further than half a window (no pattern above looks further
        than one character behind a run). Text that has no such place is held until one comes.
        """
        allowed, held, begins, enough = self._allowed(allowed_special), "", True, 2 * window
        for text in texts:
            check_text(text)
            held += text
            if len(held) < enough:
                continue
            enough = 2 * len(held)
            whole = self._encode(held, allowed, begins)
            places = [m.start() for m in re.finditer(r"(?<=\w)\b", held[: -window // 2])]
            for place in places[:-9:-1]:  # the last eight
                ids = self._encode(held[:place], allowed, begins)
                if ids + self._encode(held[place:], allowed, False) == whole:
                    yield from ids
                    held, begins, enough = held[place:], False, 2 * window
                    break
        yield from self._encode(held, allowed, begins)

    # The models

    def encode_piece(self, piece, **random):
        """The ids of a piece that comes from the pre_tokenizer. random: see sample."""
        word = to_alphabet(piece.encode()) if self.byte_level else piece
        if self.model["type"] == "BPE":
            if self.model["ignore_merges"] and not random and word in self.pieces:
                return [self.pieces[word]]
            return merge_symbols(self._letters(word), self.ranks, **random)
        if self.model["type"] == "WordPiece":
            names = None
            if len(word) <= self.model["max_input_chars_per_word"]:
                names = longest_match(word, self.pieces, self.longest, self.prefix)
            return self._unknown_ids(word) if names is None else [self.pieces[t] for t in names]
        for letter in word:  # an unknown one costs more than any piece
            self.score.setdefault(letter, self.unknown_score)
        if random:
            names = sample_cut(word, self.score, self.longest, **random)
        else:
            names = viterbi(word, self.score, self.longest)[1]
        ids = []
        for known, run in groupby(names, self.pieces.__contains__):
            if known:
                ids += [self.pieces[name] for name in run]
            else:
                ids += self._unknown_ids("".join(run))  # unknown neighbours are one
        return ids

    def _unknown_ids(self, text):
        """The ids of text that no piece can write: of its bytes, if there are such, or unk."""
        names = [f"<0x{byte:02X}>" for byte in text.encode()]
        if self.model.get("byte_fallback") and all(name in self.token_ids for name in names):
            return [self.token_ids[name] for name in names]
        if self.unknown is None:
            raise ValueError(f"text has {text!r:.60}: no token can write it, and there is no unk")
        return [self.unknown]

    def _letters(self, word):
        """The ids of a word's characters, with which BPE begins."""
        ids = [self.pieces.get(letter) for letter in word]
        if not (None in ids or self.prefix or self.suffix):
            return ids
        ids, waiting = [], []  # an unknown letter waits: the next may join it (fuse_unk)
        for n, letter in enumerate(word):
            name = (self.prefix if n else "") + letter + (self.suffix if n == len(word) - 1 else "")
            if name in self.pieces:
                ids += [*waiting, self.pieces[name]]
                waiting = []
            elif (found := self._unknown_ids(name)) != [self.unknown]:  # its bytes
                ids += found
            elif waiting and not self.model["fuse_unk"]:
                ids += found
            else:
                waiting = found
        return ids + waiting

    # From ids to text

    def _token_bytes(self, i, first):
        """The bytes of a token. first: whether a text begins with it."""
        token = self.tokens[i]
        for step in self.decoder:
            kind = step["type"]
            if kind == "ByteFallback" and re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
                return bytes.fromhex(token[3:5])
            if kind == "ByteLevel" and token not in self.added and CHAR_TO_BYTE.keys() >= {*token}:
                return from_alphabet(token)
            if kind == "Replace":
                token = replace(token, step)
            elif kind == "Metaspace":
                dropped = first and step["prepend_scheme"] != "never"
                token = token.replace(step["replacement"], "" if dropped else " ")
            elif kind == "BPEDecoder":
                token = token.replace(step["suffix"], " ")
            elif kind == "WordPiece" and not first:
                inner = token.startswith(step["prefix"])
                token = token[len(step["prefix"]) :] if inner else " " + token
        return (token if self.decoder or first else " " + token).encode()

    def _stream(self, ids):
        """Yield the bytes of each id, without the blanks that only encoding has put in."""
        steps = {step["type"]: step for step in self.decoder}
        content = steps["Strip"]["content"].encode() if "Strip" in steps else b""
        to_strip = steps["Strip"]["start"] if content else 0
        suffix, held = steps["BPEDecoder"]["suffix"] if "BPEDecoder" in steps else "", b""
        holes = f", {self.holes} of them without a token" if self.holes else ""
        known = checked_ids("ids", ids, self.tokens, f"0..{self.vocab_size - 1}{holes}")
        for n, i in enumerate(known):
            data = held + (self.vocab[i] if n > 0 else self._token_bytes(i, first=True))
            held = b""
            while data and to_strip:
                to_strip = to_strip - 1 if data.startswith(content) else 0
                data = data.removeprefix(content)
            if suffix and self.tokens[i].endswith(suffix):  # no blank behind the last word
                data, held = data[:-1], b" "
            yield data

    def decode_stream(self, ids):
        """Yield the text of an iterable of ids, never half a character."""
        text = codecs.getincrementaldecoder("utf-8")("replace")
        for data in self._stream(ids):
            if piece := text.decode(data):
                yield piece
        if rest := text.decode(b"", final=True):
            yield rest

    def decode_bytes(self, ids):
        """The bytes of the ids: a list, an array, a tensor. ValueError if one has no token."""
        return b"".join(self._stream(ids))

    def decode(self, ids):
        """The text of the ids; bytes that are not UTF-8 (half a character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, directory):
        """Write tokenizer.json into a directory; it appears whole or not at all."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        temporary = Path(directory) / ".tokenizer.json.part"
        with open(temporary, "wb") as file:
            file.write(json.dumps(self.parts, ensure_ascii=False, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())  # on the disk before it takes the old one's place
        os.replace(temporary, Path(directory) / "tokenizer.json")

    @classmethod
    def load(cls, path, pattern=None, special_tokens=None):
        """The tokenizer in a directory or file; ValueError for what is not handled.

        Opens tokenizer.json, GPT-2's vocab.json with merges.txt, and *.tiktoken, which says neither
        its pattern (a name in PATTERNS) nor its special_tokens ({text: id}).
        """
        try:
            return cls(read_files(Path(path), pattern, special_tokens))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not JSON: {error}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        except RecursionError:
            raise ValueError(f"{path}: brackets too deep inside one another") from None
        except (OSError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"{path}: damaged, or no tokenizer: {error!r:.200}") from None


# FILES. Our own three kinds differ in what they learn. All write bytes in GPT-2's alphabet, so that
# there is no unknown text, and give the special tokens the last ids.
def byte_level_steps(pattern):
    """The pre_tokenizer of a byte-level tokenizer with a pattern of PATTERNS."""
    whole = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    whole["use_regex"] = pattern == "gpt2"
    if pattern in ("gpt2", None):
        return whole
    split_step = {"type": "Split", "pattern": {"Regex": PATTERNS[pattern]}, "invert": False}
    return {"type": "Sequence", "pretokenizers": [{**split_step, "behavior": "Isolated"}, whole]}


def byte_level_parts(model, pattern, special_tokens):
    """The tokenizer.json of a byte-level model; special_tokens: {text: id}."""
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    parts["version"] = "1.0"
    parts["pre_tokenizer"] = byte_level_steps(pattern)
    parts["decoder"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    parts["model"] = model
    flags = FLAGS | {"special": True}
    parts["added_tokens"] = [{"id": i, "content": t, **flags} for t, i in special_tokens.items()]
    return parts


class ByteLevelTokenizer(Tokenizer):
    """What our three kinds share. An untrained one knows the 256 bytes."""

    def __init__(self, parts=None):
        super().__init__(parts or byte_level_parts(self.learn({}, 256), "gpt2", {}))

    @classmethod
    def train(cls, text, vocab_size=1 << 21, pattern="gpt2", special_tokens=()):
        """The tokenizer with up to vocab_size tokens (bytes and specials count) learned from text.

        text: a str or an iterable of str. ValueError for a bad argument and a lone surrogate.
        """
        names = [special_tokens] if isinstance(special_tokens, str) else special_tokens
        strings = isinstance(names, (list, tuple)) and all(isinstance(s, str) for s in names)
        if not strings or "" in names or len(set(names)) < len(names):
            raise ValueError(f"special_tokens {names!r}: expected distinct non-empty strings")
        check_text("".join(names))
        check_pattern(pattern)
        size = check_count("vocab_size", vocab_size, 256 + len(names)) - len(names)
        if isinstance(text, bytes) or not hasattr(text, "__iter__"):
            raise ValueError(f"text is {type(text).__name__}: expected str or an iterable of str")
        model = cls.learn(count_words(text, pattern, names), size)
        vocab = model["vocab"]
        tokens = [piece for piece, _ in vocab] if isinstance(vocab, list) else list(vocab)
        if clash := set(names) & set(tokens):
            raise ValueError(f"special tokens {clash}: expected texts that are no tokens yet")
        specials = {name: len(tokens) + n for n, name in enumerate(names)}
        if isinstance(vocab, dict):  # as in GPT-2's own file
            vocab |= specials
        return cls(byte_level_parts(model, pattern, specials))


class BPETokenizer(ByteLevelTokenizer):
    """Byte-level BPE, as GPT-2's."""

    model_type = "BPE"

    @staticmethod
    def learn(words, size):
        """The model of a tokenizer.json for {word: count}."""
        pairs = [pair for pair, _ in learn_merges(words, size - 256)]
        names = [to_alphabet(token) for token in spellings(pairs)]
        merges = [[names[a], names[b]] for a, b in pairs]
        return {"type": "BPE", "vocab": {t: i for i, t in enumerate(names)}, "merges": merges}


class WordPieceTokenizer(ByteLevelTokenizer):
    """WordPiece: tokens chosen by likelihood ratio, text encoded by the longest match."""

    model_type = "WordPiece"

    @staticmethod
    def learn(words, size):
        """The model of a tokenizer.json for {word: count}."""
        tokens = spellings([]) + learn_wordpiece(words, size)
        vocab = {to_alphabet(token): i for i, token in enumerate(tokens)}
        model = {"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]"}
        return model | {"continuing_subword_prefix": "", "max_input_chars_per_word": 10**9}


class UnigramTokenizer(ByteLevelTokenizer):
    """Unigram: tokens by EM and pruning, text encoded by the likeliest cut."""

    model_type = "Unigram"

    @staticmethod
    def learn(words, size):
        """The model of a tokenizer.json for {word: count}."""
        score = learn_unigram(words, size)
        vocab = [[to_alphabet(piece), round(p, 9)] for piece, p in score.items()]
        return {"type": "Unigram", "vocab": vocab, "unk_id": None, "byte_fallback": False}


def read_files(path, pattern, special_tokens):
    """The parts of a tokenizer.json, from whichever files are there."""
    if path.suffix == ".tiktoken":
        return read_tiktoken(path, pattern, special_tokens or {})
    if pattern is not None or special_tokens is not None:
        raise ValueError("pattern and special_tokens are for *.tiktoken files: others say them")
    if not path.is_dir():
        return json.loads(path.read_bytes())
    if (path / "tokenizer.json").exists() or not (path / "vocab.json").exists():
        return json.loads((path / "tokenizer.json").read_bytes())
    vocab = json.loads((path / "vocab.json").read_bytes())
    lines = (path / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    made = {"".join(merge) for merge in merges} | CHAR_TO_BYTE.keys()
    specials = {token: i for token, i in vocab.items() if token not in made}  # no merge makes them
    return byte_level_parts({"type": "BPE", "vocab": vocab, "merges": merges}, "gpt2", specials)


# tiktoken, OpenAI's library, keeps no merges: a line holds a token in base64 and its rank, which is
# its id. Two neighbours merge if both together are a token, the one of lowest rank first. So every
# way to cut a token into two tokens is a merge, and a word that is a token is that token.
def read_tiktoken(path, pattern, special_tokens):
    """The parts of a tokenizer.json for a file of ranks."""
    check_pattern(pattern)
    if pattern is None:
        raise ValueError(f"the file does not name its pattern: expected one of {[*PATTERNS]}")
    ranks, merges = {}, []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise ValueError(f"line {number} is {line!r:.60}: {error}") from None
    for token in sorted(ranks, key=ranks.get):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [cut for cut in cuts if cut[0] in ranks and cut[1] in ranks]
        known.sort(key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
        merges += [[to_alphabet(left), to_alphabet(right)] for left, right in known]
    vocab = {to_alphabet(token): rank for token, rank in ranks.items()}
    if clash := special_tokens.keys() & vocab:
        raise ValueError(f"special_tokens {clash}: expected texts that are no tokens yet")
    model = {"type": "BPE", "vocab": vocab | special_tokens, "ignore_merges": True}
    return byte_level_parts(model | {"merges": merges}, pattern, special_tokens)


# %% 9. Comparing tokenizers, and choosing a vocabulary
# How well does a tokenizer shorten a text? Count characters and bytes per token, and tokens per
# word (its FERTILITY; words stand between blanks). Fertility tells how well a language was present
# in training: Petrov et al. (2023) found translations that cost up to 15 times the English one.
def compare(tokenizers, text):
    """{name: measures on text} for a dict name -> tokenizer; a list's names are 0, 1, ..."""
    if not text:
        raise ValueError("text '' is empty: expected at least one character to compare on")
    named = tokenizers if isinstance(tokenizers, dict) else dict(enumerate(tokenizers))
    rows = {}
    for name, tokenizer in named.items():
        if not isinstance(tokenizer, Tokenizer):
            raise ValueError(f"tokenizer {name!r} is {tokenizer!r:.40}: expected a Tokenizer")
        ids = tokenizer.encode(text)
        if not ids:
            raise ValueError(f"tokenizer {name!r} leaves nothing of text {text!r:.40} to compare")
        rows[name] = {
            "vocab_size": tokenizer.vocab_size,
            "tokens": len(ids),
            "chars_per_token": len(text) / len(ids),
            "bytes_per_token": len(text.encode()) / len(ids),
            "tokens_per_word": len(ids) / max(1, len(text.split())),
            "round_trip": tokenizer.decode(ids) == text,
        }
    return rows


# ZIPF. Sort symbols by frequency. A word's frequency falls about as 1/rank, so that rank times
# frequency stays the same (Zipf 1935). Letters are few and run out; subwords come close. The long
# tail has a price: a row of the embedding learns only where its token occurs.
def frequencies(symbols):
    """How often each different symbol occurs, the commonest first (rank 1)."""
    return sorted(Counter(symbols).values(), reverse=True)


# LOSS. Never compare models by loss per *token* when their tokens differ: a longer token carries
# more surprise. Divide −log P(text) by the number of characters. (P counts one cut of the text;
# others have some probability too: an upper bound.) The model is interpolated Kneser-Ney (stage 1).
# Let n(h, w) count w after the context h, n(h) = Σ_w n(h, w), and h' be h without its first token:
#       P(w|h) = [ max(n(h, w) − D, 0) + D·(number of kinds of w seen after h)·P(w|h') ] / n(h).
# In P(w|h'), n counts the *different* tokens seen before (h', w); below the empty context is 1/V.
# With n₁ sequences seen once, n₂ twice, D = (n₁ + 1)/(n₁ + 2·n₂ + 2), after Ney et al. 1994.
def kneser_ney_nats(train, test, vocab_size, order):
    """−log P(test) in nats, every token predicted once from the order − 1 before it.

    train, test: lists or arrays of ids below vocab_size. ValueError if train has no order − 1."""
    order, vocab_size = check_count("order", order), check_count("vocab_size", vocab_size)
    known = range(vocab_size), f"0..{vocab_size - 1}"
    train, test = (list(checked_ids("ids", ids, *known)) for ids in (train, test))
    if len(train) < order - 1:
        raise ValueError(f"train has {len(train)} ids: expected at least order - 1 = {order - 1}")
    n, total, kinds = {}, Counter(), Counter()  # n(h, w) by h + w; n(h); kinds of w after h
    D = {}  # for each number of tokens in h and w
    counts = Counter(zip(*(train[i:] for i in range(order))))
    for k in range(order, 0, -1):  # k tokens: h and w
        seen = Counter(counts.values())
        D[k] = (seen[1] + 1) / (seen[1] + 2 * seen[2] + 2)
        for gram, times in counts.items():
            total[gram[:-1]] += times
            kinds[gram[:-1]] += 1
        n.update(counts)
        counts = Counter(gram[1:] for gram in counts)
    row, nats = train[len(train) - order + 1 :] + test, 0.0
    for t in range(order - 1, len(row)):
        p = 1 / vocab_size
        for k in range(1, order + 1):
            gram = tuple(row[t - k + 1 : t + 1])
            h = gram[:-1]
            if h in total:  # an unseen context leaves p as it is
                p = (max(n.get(gram, 0) - D[k], 0) + D[k] * kinds[h] * p) / total[h]
        nats -= math.log(p)
    return nats


# CHOOSING V. With more tokens sequences are shorter, but each token is seen less often. In between
# bits per character are lowest; where, depends on the model and rises with the amount of text.
# Whoever tries seven tokenizers on the held-out text and reports the best has fitted it. So the
# report chooses on a development piece, cut off the end of the training part; only the winner,
# trained on the whole of it, meets the held-out text.
SAMPLES = {  # one sentence in several languages, and in Python
    "English": "The fox waited by the river until the moon rose.",
    "German": "Der Fuchs wartete am Fluss, bis der Mond aufging.",
    "Turkish": "Tilki ay doğana kadar nehir kıyısında bekledi.",
    "Greek": "Η αλεπού περίμενε στο ποτάμι ώσπου να βγει το φεγγάρι.",
    "Hindi": "लोमड़ी चाँद निकलने तक नदी के किनारे रुकी रही।",
    "Chinese": "狐狸在河边一直等到月亮升起。",
    "Python": "while not moon.risen:\n    fox.wait(beside=river)\n",
}


# %% Demonstration
def spell(pieces):
    """Pieces (bytes) for the eye: | between them, spaces as ·, broken characters in hex."""
    return "|".join(p.decode(errors="backslashreplace") for p in pieces).replace(" ", "·")


def show(tokenizer, ids):
    """The tokens of ids for the eye."""
    return spell(tokenizer.decode_bytes([i]) for i in ids)


def report_merges(train):
    """Part 1: the first merges on the stories."""
    print("\n1. The first merges of BPE, and how often the pair stood there (· is a space)")
    merges = learn_merges(count_words(train), 20)
    spelled = spellings(pair for pair, _ in merges)
    for new, (_, times) in enumerate(merges, start=256):
        print(f"   {new} {spell([spelled[new]]):5}{times:6}", end="\n" if new % 5 == 0 else "")


def report_choice(kinds, train, order):
    """Part 2: the tokenizers on a development piece; returns them and the name of the best."""
    n = int(0.9 * len(train))
    learn_on, develop = train[:n], train[n:]
    print(f"\n2. Choosing on a development piece, the last {len(develop):,} characters of training")
    print("                   chars/   tokens/  numbers in the    rows seen   attention,   bits/")
    print("   tokenizer       token    word     embedding, V·128  < 10 times  % of pairs*  char")
    made, bits = {}, {}
    for name, (kind, size) in kinds.items():
        made[name] = tokenizer = kind.train(learn_on, size)
        ids, test, V = tokenizer.encode(learn_on), tokenizer.encode(develop), tokenizer.vocab_size
        bits[name] = kneser_ney_nats(ids, test, V, order) / len(develop) / math.log(2)
        rare = 1 - sum(times >= 10 for times in frequencies(ids)) / V
        row = compare([tokenizer], develop)[0]
        print(f"   {name:15}{row['chars_per_token']:6.2f}{row['tokens_per_word']:9.2f}", end="")
        print(f"{V * 128:15,}{rare:15.0%}{(len(test) / len(develop)) ** 2:13.1%}", end="")
        print(f"{bits[name]:10.3f}", flush=True)
    print("   * of the pairs that attention compares when each character is a token")
    best = min(bits, key=bits.get)
    lead = sorted(bits.values())[1] - bits[best]
    print(f"   Fewest bits: {best}, by {lead:.3f}. Only this one will meet the held-out text.")
    return made, best


def report_cuts(made, size, rng):
    """Part 3: one sentence in four tokenizers, and a word that is cut at random."""
    print("\n3. One sentence in four tokenizers, and one word cut at random")
    for name, tokenizer in made.items():
        if name.endswith(("characters", f" {size}")):
            ids = tokenizer.encode("Grandmother untied the foxes.")
            print(f"   {name:16}{show(tokenizer, ids)}")
    for kind, knob, value in (("Unigram", "temperature", 9.0), ("BPE", "dropout", 0.5)):
        tokenizer = made[f"{kind} {size}"]
        ids = [tokenizer.sample(" gardening", rng, **{knob: value}) for _ in range(3)]
        print(f"   {kind}, {knob} {value}   " + "   ".join(show(tokenizer, cut) for cut in ids))


def report_zipf(made, train):
    """Part 4: rank times frequency of characters, tokens and words."""
    ranks = (1, 3, 10, 30, 100, 300, 1000, 3000)
    print("\n4. Zipf: rank × share of the text, in %; the same wherever shares fall as 1/rank")
    print("   rank           " + "".join(f"{rank:7,}" for rank in ranks))
    rows = {name: made[name].encode(train) for name in made if name.startswith(("char", "BPE"))}
    for name, symbols in {**rows, "words": train.split()}.items():
        counts = frequencies(symbols)
        shares = [r * counts[r - 1] / len(symbols) for r in ranks if r <= len(counts)]
        print(f"   {name:15}" + "".join(f"{100 * share:7.1f}" for share in shares))


def report_languages(tokenizer, name):
    """Part 5: what other languages and code cost in a tokenizer of English stories."""
    print(f"\n5. One sentence, in {name}, which has read English stories only")
    print("              characters   bytes  tokens  tokens/char  × the English")
    english = len(tokenizer.encode(SAMPLES["English"]))
    for language, text in SAMPLES.items():
        n = len(tokenizer.encode(text))
        print(f"   {language:10}{len(text):11}{len(text.encode()):8}{n:8}", end="")
        print(f"{n / len(text):13.2f}{n / english:15.1f}")
    for word in ("gardening", "photosynthesis", "château", "🦊", "1234567"):
        print(f"   {word:15}{show(tokenizer, tokenizer.encode(' ' + word))}")


def report(fast, seed):
    """What tokenization does to the stories; the last line is the held-out score."""
    order, end = (3, 24_000) if fast else (7, None)
    sizes = (320, 512) if fast else (512, 1024, 2048, 4096)
    text = (Path(__file__).resolve().parent / "data" / "stories.txt").read_text("utf-8")[:end]
    n = int(0.9 * len(text))
    train, held_out = text[:n], text[n:]
    report_merges(train)
    kinds = {"characters": (BPETokenizer, 256)}  # the 256 bytes: these stories are ASCII
    kinds |= {f"BPE {size}": (BPETokenizer, size) for size in sizes}
    kinds[f"WordPiece {sizes[1]}"] = WordPieceTokenizer, sizes[1]
    kinds[f"Unigram {sizes[1]}"] = UnigramTokenizer, sizes[1]
    made, best = report_choice(kinds, train, order)
    report_cuts(made, sizes[1], np.random.default_rng(seed))
    report_zipf(made, train)
    report_languages(made[f"BPE {sizes[-1]}"], f"BPE {sizes[-1]}")
    kind, size = kinds[best]
    tokenizer = kind.train(train, size)
    ids, test = tokenizer.encode(train), tokenizer.encode(held_out)
    nat = kneser_ney_nats(ids, test, tokenizer.vocab_size, order) / len(held_out)
    score = f"{nat:.3f} nats/char | {nat / math.log(2):.3f} bits/char"
    score += f" | perplexity {math.exp(nat):.2f}   (stage 7, Kneser-Ney over {best})"
    print(f"\nheld-out: {score}")


class CommandLine(argparse.ArgumentParser):
    """A parser whose errors are one line on standard error and exit status 2."""

    def error(self, message):
        one_line = " ".join(message.split())
        self.exit(2, f"{self.prog}: {one_line[:300]}\n")


KINDS = {"bpe": BPETokenizer, "wordpiece": WordPieceTokenizer, "unigram": UnigramTokenizer}


def build_parser():
    """The command line: the report, or one of the commands train, encode and decode."""
    what = "Without a command: the report on data/stories.txt."
    parser = CommandLine(prog="stage07_bpe.py", description=what)
    parser.add_argument("--fast", action="store_true", help="a smoke run of the report [no]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the report [0]")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    what = "learn the tokens of a text and write them to DIR/tokenizer.json"
    train = commands.add_parser("train", help=what, description=what)
    train.add_argument("file", metavar="FILE", help="a UTF-8 text; \\r\\n is read as \\n")
    train.add_argument("--out", required=True, metavar="DIR", help="made if need be; required")
    train.add_argument("--kind", choices=KINDS, default="bpe", help="of tokenizer [bpe]")
    about = "tokens, counting the 256 bytes and special tokens; fewer if no more are found [1024]"
    train.add_argument("--vocab-size", type=int, default=1024, metavar="N", help=about)
    about = "learn from the first int(X * characters) characters of the text, 0 < X <= 1 [1]"
    train.add_argument("--fraction", type=float, default=1.0, metavar="X", help=about)
    about = "tokens with the last ids, in this order; cut out of the text before learning [none]"
    train.add_argument("--special-tokens", nargs="+", default=[], metavar="TOKEN", help=about)
    about = "where the text is cut before learning; none is nowhere [gpt2]"
    names = [str(name).lower() for name in PATTERNS]
    train.add_argument("--pattern", choices=names, default="gpt2", help=about)
    for name, what, words in (
        ("encode", "print the ids of a text; special tokens in it are plain text", "TEXT"),
        ("decode", "print the text of ids", "ID"),
    ):
        command = commands.add_parser(name, help=what, description=what)
        about = "a tokenizer.json, or the directory of one; anybody's"
        command.add_argument("path", metavar="PATH", help=about)
        command.add_argument("words", nargs="+", metavar=words, help="joined by spaces")
    return parser


def train_command(args):
    """Learn a vocabulary from the beginning of a text file and save it."""
    if not 0 < args.fraction <= 1:
        raise ValueError(f"--fraction {args.fraction}: expected more than 0 and at most 1")
    try:
        text = Path(args.file).read_bytes().decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{args.file}: not UTF-8 text (at byte {error.start})") from None
    part = text[: int(args.fraction * len(text))]
    if not part:
        raise ValueError(f"{args.file}: no text to learn from in {len(text)} characters")
    pattern = None if args.pattern == "none" else args.pattern
    tokenizer = KINDS[args.kind].train(part, args.vocab_size, pattern, args.special_tokens)
    tokenizer.save(args.out)
    print(f"Learned from {len(part):,} of {len(text):,} characters")
    fewer = "; no more are found" if tokenizer.vocab_size < args.vocab_size else ""
    print(f"{tokenizer.vocab_size:,} tokens -> {Path(args.out) / 'tokenizer.json'}{fewer}")


def main(argv=None):
    """Run the command line; bad input ends it with one line and exit status 2."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if the caller has closed it
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        if args.command == "train":
            train_command(args)
        elif args.command == "encode":
            print(*Tokenizer.load(args.path).encode(" ".join(args.words)))
        elif args.command == "decode":
            wrong = [word for word in args.words if not word.isdigit()]
            if wrong:
                raise ValueError(f"id {wrong[0]!r}: expected a whole number")
            print(Tokenizer.load(args.path).decode([int(word) for word in args.words]))
        else:
            report(args.fast, check_count("--seed", args.seed, 0))
        sys.stdout.flush()
    except (KeyboardInterrupt, ValueError, LookupError, OSError) as error:
        try:
            sys.stdout.flush()
        except OSError:  # a closed pipe, a full disk: Python's own flush must not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, KeyboardInterrupt):
            parser.exit(130, "\n")
        if not isinstance(error, BrokenPipeError):  # then whoever was reading has seen enough
            parser.error(str(error))


# %% What to take away
# BPE        merge argmax count(ab), repeat; encode by rank. The usual choice: lossless and fast.
# WordPiece  merge argmax count(ab)/(count(a)·count(b)); encode by the longest match.
# Unigram    p(t) by EM, prune by loss; encode by Viterbi. It has probabilities to sample cuts from.
# Choose V by bits per character on a development piece; not per token, not on the held-out text.

# %% Common mistakes
# 1. Loss per token compared across vocabularies: the bigger looks worse. Divide by characters.
# 2. Merging "a a a" from the right, or counting (a, a) down as its own neighbour: counts drift,
#    even below zero. learn_merges sorts the places and sets a merged pair's count to 0.
# 3. Python's \s and \w for Unicode's: on rare text ("½", "\x1c") ids differ. See section 4.
# 4. Decoding token by token: half an emoji is no UTF-8, becomes U+FFFD. decode joins bytes first.
# 5. User text encoded with specials allowed: users can end the document. The default is "none".
# 6. A prompt that ends in a space: "the" and " the" are two tokens, and the model has hardly ever
#    seen a word begin without its space. Leave the space to the model.

# %% Exercises
# They are in exercises/stage07.py, and `python exercises` checks them.
#  1. ★ (by hand) A hug, a pug, two hugs
#  2. ★ (by hand) One character, three signs
#  3. ★ (by hand) Who is surprised less?
#  4. ★ (explain) A longer step that does not pay
#  5. ★★ (implement) A thousand ways to write banana
#  6. ★★ (implement) 1|234|567
#  7. ★★ (find the bug) Dice with the wrong odds
#  8. ★★ (derive) Anan, four ways
#  9. ★★ (measure) Tokens that cross words
# 10. ★★★ (derive) How undecided is a word?
# 11. ★★ (research) What WordPiece might have been
# 12. ★★★ (project) The whole tokenizer, by yourself

# %% Where this leads
# The capstone reads a directory saved here and trains on its ids. GPT-2 to GPT-4, Llama 3 and Qwen
# use this very BPE, with 50,000 to 200,000 tokens. The next stage asks why training fails.

if __name__ == "__main__":
    sys.exit(main())
