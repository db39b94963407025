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
  Use:    4 the class all share   8 files   9 comparing tokenizers, and choosing a vocabulary

Run `python stage07_bpe.py [--fast] [--seed N]` for the report on the stories, or a command: train,
encode or decode (--help). Rests on: Gage (1994), "A new algorithm for data compression"; Sennrich
et al. (2016), "Neural machine translation of rare words with subword units"; Schuster, Nakajima
(2012), "Japanese and Korean voice search"; Kudo (2018), "Subword regularization"; Radford et al.
(2019), "Language models are unsupervised multitask learners" (GPT-2); Provilkov et al. (2020),
"BPE-dropout"; Petrov et al. (2023), "Language model tokenizers introduce unfairness".
"""

import argparse
import contextlib
import functools
import heapq
import json
import math
import os
import re
import sys
import time
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
    """The bytes behind a token of a vocabulary file; ValueError outside the alphabet."""
    if not set(token) <= CHAR_TO_BYTE.keys():
        raise ValueError(f"token {token!r}: expected characters of GPT-2's byte alphabet")
    return bytes(map(CHAR_TO_BYTE.get, token))


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


def check_ids(name, ids):
    """ids as a list of int; ValueError for anything that is no integer, True and 1.0 included."""
    if hasattr(ids, "tolist"):  # of NumPy or of torch
        ids = ids.tolist()
    if not hasattr(ids, "__iter__"):
        raise ValueError(f"{name} {ids!r:.40} is not iterable: expected integers")
    ids = list(ids)
    for i in ids:
        if isinstance(i, (bool, np.bool_)) or not isinstance(i, (int, np.integer)):
            raise ValueError(f"{name}: {i!r}: expected integers")
    return list(map(int, ids))


# %% 3. Pre-tokens: what no merge reaches across
# Left alone, a merging method learns "dog." and "dog," and "dog!" as three tokens. So the text is
# first cut into pre-tokens (a word with the space before it, a run of digits, of punctuation), and
# tokens are learned inside them. Below are the patterns of GPT-2 and GPT-4: \p{L} is "letter",
# \p{N} "number of any kind" (½, Ⅷ), \s White_Space. Python's re has no \p, and its \s also takes
# U+001C..U+001F; so splitter spells the classes out as ranges of code points. With \s+(?!\S) a run
# of blanks gives back its last one, to lead the next word. GPT-4 adds: contractions in either case,
# any one mark to lead a word, digits by threes, line ends close a run.
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    None: "(?s:.+)",  # the whole text is one pre-token
}


@functools.cache
def splitter(pattern, ascii_only):
    """The compiled pattern; for ASCII text, classes of ASCII alone do the same and start faster."""
    codes = range(128 if ascii_only else 0x110000)
    kinds = [unicodedata.category(chr(code))[0] for code in codes]  # "L", "N", "Z" for blanks, ...
    kinds[9:14], kinds[0x85:0x86] = "ZZZZZ", "Z"[ascii_only:]  # \t \n \v \f \r and next line
    ranges = defaultdict(str)  # kind -> "a-z..." for use inside [...]
    for kind, group in groupby(codes, kinds.__getitem__):
        run = list(group)
        ranges[kind] += rf"\U{run[0]:08x}-\U{run[-1]:08x}"
    source = PATTERNS[pattern].replace(r"\S", r"[^\s]")  # then put lone classes into brackets
    source = re.sub(r"(\[.*?\])|(\\p\{.\}|\\s)", lambda m: m[1] or f"[{m[2]}]", source)
    for name, kind in ((r"\p{L}", "L"), (r"\p{N}", "N"), (r"\s", "Z")):
        source = source.replace(name, ranges[kind])
    return re.compile(source)


def pretokenize(text, pattern="gpt2"):
    """The pre-tokens of text; joined they are the text. pattern: "gpt2", "gpt4" or None."""
    if pattern not in PATTERNS:
        raise ValueError(f"pattern {pattern!r}: expected one of {list(PATTERNS)}")
    return splitter(pattern, text.isascii()).findall(text)


def cut_specials(text, specials):
    """text cut at special tokens, longest first: even places ordinary text, odd ones specials."""
    longest_first = map(re.escape, sorted(specials, key=len, reverse=True))
    return re.split(f"({'|'.join(longest_first)})", text) if specials else [text]


def count_words(text, pattern="gpt2", specials=()):
    """{pre-token as bytes: count} of a str or an iterable of str; special tokens are left out."""
    counts = Counter()
    for document in [text] if isinstance(text, str) else text:
        check_text(document)
        for chunk in cut_specials(document, specials)[::2]:
            counts.update(pretokenize(chunk, pattern))
    return {word.encode(): count for word, count in counts.items()}


# %% 4. The face all tokenizers share
# Special tokens such as <|endoftext|> mark the ends of documents. Ordinary text must never produce
# one, or whoever can type the mark could forge it: they have ids of their own, after all others,
# and encode takes them for plain characters unless told otherwise.
class fills:
    """Decorates a method that fills its tokenizer, or a new one if called on the class."""

    def __init__(self, method):
        self.method = method

    def __get__(self, tokenizer, kind):
        return self.method.__get__(kind() if tokenizer is None else tokenizer)


class Tokenizer:
    """What the four share; a fresh one knows the 256 bytes (id = byte) and already works."""

    def __init__(self):
        self.vocab = {byte: bytes([byte]) for byte in range(256)}  # id -> bytes, also of specials
        self.special_tokens, self.pattern, self.merges = {}, "gpt2", {}  # text -> id, ., pair -> id
        self._prepare()

    def _prepare(self):
        special = set(self.special_tokens.values())
        self.ids = {token: i for i, token in self.vocab.items() if i not in special}
        self.vocab_size, self.longest, self._cache = len(self.vocab), max(map(len, self.ids)), {}
        self._ranks = {merge[0]: (rank, *merge) for rank, merge in enumerate(self.merges.items())}
        if missing := [byte for byte in range(256) if bytes([byte]) not in self.ids]:
            raise ValueError(f"no token for the bytes {missing}: expected all 256")

    @fills
    def train(self, text, vocab_size=1 << 21, pattern="gpt2", special_tokens=()):
        """Learn up to vocab_size tokens (bytes and specials count) from a str or iterable of str.

        Returns the tokenizer. ValueError for a bad argument and for a lone surrogate.
        """
        if not isinstance(special_tokens, (str, list, tuple)):
            raise ValueError(f"special_tokens {special_tokens!r}: expected a str or a list of str")
        specials = [special_tokens] if isinstance(special_tokens, str) else list(special_tokens)
        least = 256 + len(specials)
        if not all(isinstance(s, str) and s for s in specials) or len(set(specials)) < least - 256:
            raise ValueError(f"special_tokens {specials}: expected distinct non-empty strings")
        check_text("".join(specials))
        if not isinstance(vocab_size, (int, np.integer)) or vocab_size < least:
            raise ValueError(f"vocab_size {vocab_size!r}: expected an integer of at least {least}")
        if pattern not in PATTERNS:
            raise ValueError(f"pattern {pattern!r}: expected one of {list(PATTERNS)}")
        if isinstance(text, bytes) or not hasattr(text, "__iter__"):
            raise ValueError(f"text is {type(text).__name__}: expected str or an iterable of str")
        words = count_words(text, pattern, specials)
        self.__init__()
        self.pattern = pattern
        self._learn(words, int(vocab_size) - len(specials))
        if clash := set(specials) & set(map(to_alphabet, self.vocab.values())):
            raise ValueError(f"special tokens {clash}: expected texts that are no tokens yet")
        self.special_tokens = {s: len(self.vocab) + n for n, s in enumerate(specials)}
        self.vocab |= {i: special.encode() for special, i in self.special_tokens.items()}
        self._prepare()
        return self

    def encode(self, text, allowed_special="none"):
        """The ids of text. allowed_special: "none" (they are plain text), "all" or a set."""
        check_text(text)
        known = set(self.special_tokens)
        allowed = {"none": set(), "all": known}.get(str(allowed_special), allowed_special)
        if not isinstance(allowed, (set, frozenset, list, tuple)) or not set(allowed) <= known:
            expected = f'expected "none", "all" or a set out of {sorted(known)}'
            raise ValueError(f"allowed_special {allowed_special!r}: {expected}")
        ids, cache = [], self._cache
        for n, chunk in enumerate(cut_specials(text, allowed)):
            if n % 2:
                ids.append(self.special_tokens[chunk])
                continue
            for word in pretokenize(chunk, self.pattern):
                if (found := cache.get(word)) is None:
                    found = self._encode_word(word.encode())
                    if len(word) <= 100 and len(cache) < 200_000:  # bounded, whatever the text
                        cache[word] = found
                ids.extend(found)
        return ids

    def decode_bytes(self, ids):
        """The bytes of the ids, exactly. ValueError for an id outside the vocabulary."""
        try:
            return b"".join([self.vocab[i] for i in check_ids("ids", ids)])
        except (KeyError, TypeError) as error:
            raise ValueError(f"ids: {error}: expected integers 0..{max(self.vocab)}") from None

    def decode(self, ids):
        """The text of the ids; bytes that are not UTF-8 (half a character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, directory, names=None):
        """Write the files (or those named) into a directory; each appears whole or not at all."""
        directory, files = Path(directory), to_files(self)
        directory.mkdir(parents=True, exist_ok=True)
        for name in names or files:
            temporary = directory / f".{name}.part"
            with open(temporary, "wb") as file:
                file.write(files[name].encode())
                file.flush()
                os.fsync(file.fileno())  # on the disk before it takes the old one's place
            os.replace(temporary, directory / name)

    @fills
    def load(self, directory):
        """Read a saved directory and return the tokenizer; ValueError if its files do not fit."""
        fresh = type(self)()
        try:
            fill_from_files(fresh, Path(directory))
        except (
            OSError,
            LookupError,
            TypeError,
            AttributeError,
            ValueError,
            RecursionError,
        ) as error:
            what = f"expected the files of a {self.model_type} tokenizer"
            raise ValueError(f"{directory}: {error!r}: {what}") from None
        self.__dict__ = fresh.__dict__
        return self


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
# The best pair comes from a heap of (−score, pair). With counts alone a score rises only when one
# of the pair's symbols is created; then the pair is pushed. Later it only falls, so that an entry
# may promise too much, never too little; popped out of date, it is pushed again with its true
# score. Any other score may change when count(a) and count(b) do: all pairs with a, b or X in them
# are scored anew.
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
    promised = {}  # pair -> the score in its latest entry in the heap
    heap, merges = [], []

    def score_of(pair):
        if score is None:
            return pairs[pair]
        return score(pairs[pair], total[pair[0]], total[pair[1]])

    def push(pair):
        now = score_of(pair)
        if promised.get(pair) != now:
            promised[pair] = now
            heapq.heappush(heap, (-now, pair))

    for i, pair in enumerate(zip(ids, ids[1:])):
        total[ids[i]] += weight[i]
        if -1 not in pair:
            pairs[pair] += weight[i]
            places[pair].append(i)
    for pair in pairs:
        push(pair)
        for symbol in pair:
            pairs_with[symbol].add(pair)
    while heap and len(merges) < n_merges:
        minus_score, pair = heapq.heappop(heap)
        if not pairs[pair] or promised[pair] != -minus_score:
            continue  # none is left, or a later entry counts
        if score_of(pair) != -minus_score:  # it fell since
            push(pair)
            continue
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
                    changed.add(gained)
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
                push(near)
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
    if dropout and (rng is None or not 0 <= dropout <= 1):
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


def expected_counts(words, score, longest):
    """The E step: ({piece: c(piece)}, Σ count(x)·log P(x)) for {piece: log p} in score."""
    counts, log_likelihood = dict.fromkeys(score, 0.0), 0.0
    for word, times in words.items():
        alpha, arcs = forward(word, score, longest)
        log_likelihood += int(times) * alpha[-1]
        gamma = [0.0] * len(word) + [1.0]
        for j in range(len(word), 0, -1):
            if gamma[j] == 0:  # no cut has a boundary here
                continue
            for i, piece, log_p in arcs[j]:
                share = gamma[j] * math.exp(alpha[i] + log_p - alpha[j])
                counts[piece] += int(times) * share
                gamma[i] += share
    return counts, log_likelihood


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
    real = isinstance(temperature, (int, float, np.integer, np.floating))
    if not real or isinstance(temperature, bool) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature!r}: expected a positive number")
    alpha, arcs = forward(word, score, longest, temperature=float(temperature))
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
    for n in range(
        1, MAX_PIECE + 1
    ):  # what is there once is in no longer piece that is there twice
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


# The four kinds, on top of section 4's class.
class BPETokenizer(Tokenizer):
    """Byte-level BPE, as GPT-2's. merges: {(left id, right id): new id} in order of rank."""

    model_type = "BPE"

    def _prepare(self):
        super()._prepare()
        ranked = enumerate(self.merges.items())
        self._ranks = {pair: (rank, new) for rank, (pair, new) in ranked}

    def _learn(self, words, size):
        for new, ((a, b), _) in enumerate(learn_merges(words, size - 256), start=256):
            self.merges[a, b] = new
            self.vocab[new] = self.vocab[a] + self.vocab[b]

    def _encode_word(self, word):
        return merge_symbols([self.ids[word[i : i + 1]] for i in range(len(word))], self._ranks)


class WordPieceTokenizer(Tokenizer):
    """WordPiece: merges chosen by likelihood ratio, text encoded by the longest match."""

    model_type = "WordPiece"

    def _learn(self, words, size):
        self.vocab |= enumerate(learn_wordpiece(words, size), start=256)

    def _encode_word(self, word):
        return [self.ids[piece] for piece in longest_match(word, self.ids, self.longest)]


class CharTokenizer(WordPieceTokenizer):
    """One token per character (no UTF-8 begins another's); beyond vocab_size, its bytes."""

    def _learn(self, words, size):
        counts = Counter()
        for word, times in words.items():
            counts.update({char: times * word.decode().count(char) for char in set(word.decode())})
        rare = sorted((-n, char.encode()) for char, n in counts.items() if not char.isascii())
        self.vocab |= {256 + n: char for n, (_, char) in enumerate(rare[: size - 256])}


class UnigramTokenizer(Tokenizer):
    """The unigram tokenizer. score: {piece: log p}, in the order of the ids."""

    model_type = "Unigram"
    score = {bytes([byte]): -math.log(256) for byte in range(256)}  # until trained

    def _learn(self, words, size):
        learned = learn_unigram(words, size)
        self.score = {piece: round(log_p, 9) for piece, log_p in learned.items()}  # as saved
        self.vocab = dict(enumerate(self.score))

    def _encode_word(self, word):
        return [self.ids[piece] for piece in viterbi(word, self.score, self.longest)[1]]

    def sample(self, text, rng, temperature=1.0):
        """Ids of a random cut of text, each with probability ∝ P(s, x)^(1/temperature)."""
        check_text(text)
        out = []
        for word in pretokenize(text, self.pattern):
            cut = sample_cut(word.encode(), self.score, self.longest, temperature, rng)
            out += [self.ids[piece] for piece in cut]
        return out


# %% 8. Files
# tokenizer.json holds everything; GPT-2 came as vocab.json (token -> id) and merges.txt (by rank).
def to_files(tokenizer):
    """{file name: content}: tokenizer.json, and for BPE vocab.json and merges.txt."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    pre = {**byte_level, "use_regex": tokenizer.pattern == "gpt2"}
    if tokenizer.pattern == "gpt4":
        split = {"type": "Split", "pattern": {"Regex": PATTERNS["gpt4"]}, "invert": False}
        pre = {"type": "Sequence", "pretokenizers": [{**split, "behavior": "Isolated"}, pre]}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    flags["special"], specials, files = True, tokenizer.special_tokens, {}
    vocab = {to_alphabet(token): i for token, i in tokenizer.ids.items()} | specials
    model = {"type": tokenizer.model_type, "vocab": vocab}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    parts |= {"version": "1.0", "pre_tokenizer": pre, "decoder": byte_level, "model": model}
    parts["added_tokens"] = [{"id": i, "content": text, **flags} for text, i in specials.items()]
    if model["type"] == "BPE":
        name = {i: token for token, i in vocab.items()}
        model["merges"] = [[name[a], name[b]] for a, b in tokenizer.merges]
        files["vocab.json"] = json.dumps(vocab, ensure_ascii=False)
        files["merges.txt"] = "\n".join(["#version: 0.2", *map(" ".join, model["merges"]), ""])
    elif model["type"] == "WordPiece":
        model |= {"unk_token": "[UNK]", "continuing_subword_prefix": ""}
        model["max_input_chars_per_word"] = 10**9
    else:
        model |= {"unk_id": None, "byte_fallback": False}
        model["vocab"] = [[to_alphabet(piece), p] for piece, p in tokenizer.score.items()]
    return {**files, "tokenizer.json": json.dumps(parts, ensure_ascii=False, indent=1)}


def fill_from_files(tokenizer, directory):
    """Fill a fresh tokenizer from its files; an error if they are of another kind."""
    if (directory / "tokenizer.json").exists() or tokenizer.model_type != "BPE":
        parts = json.loads((directory / "tokenizer.json").read_bytes())
        model, pre, added = parts["model"], parts["pre_tokenizer"], parts["added_tokens"]
    else:  # GPT-2's two: the pattern is GPT-2's, the specials are the tokens no merge makes
        vocab = json.loads((directory / "vocab.json").read_bytes())
        lines = (directory / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [line.split(" ") for line in lines if line and line[:8] != "#version"]
        made = {left + right for left, right in merges} | CHAR_TO_BYTE.keys()
        added = [{"content": token, "id": i} for token, i in vocab.items() if token not in made]
        parts, pre = {"normalizer": None}, {"type": "ByteLevel", "add_prefix_space": False}
        model = {"type": "BPE", "vocab": vocab, "merges": merges}
    odd = [key for key in ("ignore_merges", "continuing_subword_prefix") if model.get(key)]
    if model["type"] != tokenizer.model_type or odd or parts["normalizer"]:
        raise ValueError(f"{model['type']} model, {odd}, normalizer {parts['normalizer']}")
    *splits, last = pre.get("pretokenizers", [pre])
    tokenizer.pattern = "gpt2" if last.get("use_regex", True) else None
    if [split["pattern"]["Regex"] for split in splits] == [PATTERNS["gpt4"]]:
        splits, tokenizer.pattern = [], tokenizer.pattern or "gpt4"
    if splits or last["type"] != "ByteLevel" or last["add_prefix_space"]:
        raise ValueError(f"pre_tokenizer {pre}")
    vocab = model["vocab"]
    if model["type"] == "Unigram":
        tokenizer.score = {from_alphabet(token): log_p for token, log_p in vocab}
        vocab = {token: i for i, (token, _) in enumerate(vocab)}
    for merge in model.get("merges", ()):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        tokenizer.merges[vocab[left], vocab[right]] = vocab[left + right]
    special = tokenizer.special_tokens = {token["content"]: token["id"] for token in added}
    tokenizer.vocab = {i: from_alphabet(t) for t, i in vocab.items() if t not in special}
    tokenizer.vocab |= {i: text.encode() for text, i in special.items()}
    tokenizer._prepare()


# %% 9. Comparing tokenizers, and choosing a vocabulary
# How well does a tokenizer shorten a text? Count characters and bytes per token, and tokens per
# word (its FERTILITY; words stand between blanks). Fertility tells how well a language was present
# in training: Petrov et al. (2023) found translations that cost up to 15 times the English one.
def compare(tokenizers, text):
    """{name: measures on text} for a dict name -> tokenizer; a list's names are 0, 1, ..."""
    check_text(text)
    if not text:
        raise ValueError("text '' is empty: expected at least one character to compare on")
    if not isinstance(tokenizers, (dict, list, tuple)):
        raise ValueError(f"tokenizers {tokenizers!r:.40}: expected a dict or a list of them")
    named = tokenizers if isinstance(tokenizers, dict) else dict(enumerate(tokenizers))
    rows = {}
    for name, tokenizer in named.items():
        if not isinstance(tokenizer, Tokenizer):
            raise ValueError(f"tokenizer {name!r} is {tokenizer!r:.40}: expected a Tokenizer")
        ids = tokenizer.encode(text)
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
    train, test = check_ids("train", train), check_ids("test", test)
    order, vocab_size = check_count("order", order), check_count("vocab_size", vocab_size)
    if len(train) < order - 1:
        raise ValueError(f"train has {len(train)} ids: expected at least order - 1 = {order - 1}")
    if train + test and not 0 <= min(train + test) <= max(train + test) < vocab_size:
        found = f"ids {min(train + test)}..{max(train + test)}"
        raise ValueError(f"{found}: expected 0..{vocab_size - 1}")
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


def show(tokenizer, text):
    """The tokens of text for the eye."""
    return spell(tokenizer.decode_bytes([i]) for i in tokenizer.encode(text))


def report_merges(train, words):
    """Part 1: the first merges on the stories, and the textbook against the fast way."""
    print("\n1. The first merges of BPE, and how often the pair stood there (· is a space)")
    merges = learn_merges(words, 20)
    spelled = spellings(pair for pair, _ in merges)
    for new, (_, times) in enumerate(merges, start=256):
        print(f"   {new} {spell([spelled[new]]):5}{times:6}", end="\n" if new % 5 == 0 else "")
    start = time.perf_counter()
    slow = textbook_merges(train, 20)
    middle = time.perf_counter()
    fast = [pair for pair, _ in learn_merges({train.encode(): 1}, 20)]
    seconds = f"textbook {middle - start:.2f} s, fast {time.perf_counter() - middle:.2f} s"
    verdict = "the same merges" if slow == fast else "DIFFERENT merges"
    print(f"   20 merges of the text as one string: {seconds}; {verdict}")


def report_choice(kinds, train, order):
    """Part 2: the tokenizers on a development piece; returns them and the name of the best."""
    n = int(0.9 * len(train))
    learn_on, develop = train[:n], train[n:]
    made, bits, rare = {}, {}, {}
    for name, (kind, size) in kinds.items():
        print(f"training {name:15}", end="\r" if sys.stdout.isatty() else "\n", flush=True)
        made[name] = tokenizer = kind.train(learn_on, size)
        ids, test = tokenizer.encode(learn_on), tokenizer.encode(develop)
        nats = kneser_ney_nats(ids, test, tokenizer.vocab_size, order)
        bits[name] = nats / len(develop) / math.log(2)
        rare[name] = 1 - sum(times >= 10 for times in frequencies(ids)) / tokenizer.vocab_size
    print(f"\n2. Choosing on a development piece, the last {len(develop):,} characters of training")
    print("                   chars/   tokens/  numbers in the    rows seen   attention,   bits/")
    print("   tokenizer       token    word     embedding, V·128  < 10 times  % of pairs*  char")
    for name, row in compare(made, develop).items():
        print(f"   {name:15}{row['chars_per_token']:6.2f}{row['tokens_per_word']:9.2f}", end="")
        print(f"{row['vocab_size'] * 128:15,}{rare[name]:15.0%}", end="")
        print(f"{(row['tokens'] / len(develop)) ** 2:13.1%}{bits[name]:10.3f}")
    best = min(bits, key=bits.get)
    print("   * of the pairs that attention compares when each character is a token")
    lead = sorted(bits.values())[1] - bits[best]
    print(f"   Fewest bits: {best}, by {lead:.3f}. Only this one will meet the held-out text.")
    return made, best


def report_cuts(made, words, size, rng):
    """Part 3: one sentence in four tokenizers, and a word that is cut at random."""
    print("\n3. One sentence in four tokenizers, and one word cut at random")
    for name, tokenizer in made.items():
        if name.endswith(("characters", f" {size}")):
            print(f"   {name:16}{show(tokenizer, 'Grandmother untied the foxes.')}")
    score = learn_unigram(words, size)
    cuts = [sample_cut(b"gardening", score, MAX_PIECE, 3.0, rng) for _ in range(4)]
    print("   Unigram, sampled   " + "   ".join(map(spell, cuts)) + "   (τ = 3)")
    merges = [pair for pair, _ in learn_merges(words, size - 256)]
    ranks = {pair: (new, new) for new, pair in enumerate(merges, start=256)}
    spelled = spellings(merges)
    cuts = [merge_symbols(b"gardening", ranks, 0.5, rng) for _ in range(4)]
    cuts = [spell(spelled[i] for i in cut) for cut in cuts]
    print("   BPE with dropout   " + "   ".join(cuts) + "   (p = 0.5)")


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
        print(f"   {word:15}{show(tokenizer, ' ' + word)}")


def report(fast, seed):
    """What tokenization does to the stories; the last line is the held-out score."""
    rng = np.random.default_rng(seed)
    order, end = (3, 24_000) if fast else (7, None)
    sizes = (320, 512) if fast else (512, 1024, 2048, 4096)
    text = (Path(__file__).resolve().parent / "data" / "stories.txt").read_text("utf-8")[:end]
    n = int(0.9 * len(text))
    train, held_out = text[:n], text[n:]
    words = count_words(train)
    print(f"Learning from {len(train):,} characters, {len(words):,} different pre-tokens")
    report_merges(train, words)
    kinds = {"characters": (CharTokenizer, 256)}
    kinds |= {f"BPE {size}": (BPETokenizer, size) for size in sizes}
    kinds[f"WordPiece {sizes[1]}"] = WordPieceTokenizer, sizes[1]
    kinds[f"Unigram {sizes[1]}"] = UnigramTokenizer, sizes[1]
    made, best = report_choice(kinds, train, order)
    report_cuts(made, words, sizes[1], rng)
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


KINDS = {"bpe": BPETokenizer, "wordpiece": WordPieceTokenizer}
KINDS |= {"unigram": UnigramTokenizer, "chars": CharTokenizer}


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
    about = "how tokens are learned; chars takes the commonest characters as they are [bpe]"
    train.add_argument("--kind", choices=KINDS, default="bpe", help=about)
    about = "tokens, counting the 256 bytes and special tokens; fewer if no more are found [1024]"
    train.add_argument("--vocab-size", type=int, default=1024, metavar="N", help=about)
    about = "learn from the first int(X * characters) characters of the text, 0 < X <= 1 [1]"
    train.add_argument("--fraction", type=float, default=1.0, metavar="X", help=about)
    about = "tokens with the last ids, in this order; cut out of the text before learning [none]"
    train.add_argument("--special-tokens", nargs="+", default=[], metavar="TOKEN", help=about)
    about = "where the text is cut before learning: as for GPT-2, for GPT-4, or nowhere [gpt2]"
    train.add_argument("--pattern", choices=("gpt2", "gpt4", "none"), default="gpt2", help=about)

    what = "print the ids of a text; special tokens in it are plain text"
    encode = commands.add_parser("encode", help=what, description=what)
    encode.add_argument("directory", metavar="DIR", help="holds the tokenizer")
    about = "joined by spaces [all of standard input, as UTF-8]"
    encode.add_argument("given", nargs="*", metavar="TEXT", help=about)

    what = "print the text of ids"
    decode = commands.add_parser("decode", help=what, description=what)
    decode.add_argument("directory", metavar="DIR", help="holds the tokenizer")
    decode.add_argument("given", nargs="*", metavar="ID", help="whole numbers [standard input]")
    return parser


def train_command(args):
    """Learn a vocabulary from the beginning of a text file and save it."""
    if not 0 < args.fraction <= 1:
        raise ValueError(f"--fraction {args.fraction}: expected more than 0 and at most 1")
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise ValueError(f"--out {args.out}: exists and is not a directory")
    try:
        text = Path(args.file).read_bytes().decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{args.file}: not UTF-8 text (at byte {error.start})") from None
    part = text[: int(args.fraction * len(text))]
    if not part:
        raise ValueError(f"{args.file}: no text to learn from in {len(text)} characters")
    with contextlib.suppress(BrokenPipeError):  # nobody listens: learn and save all the same
        print(f"Learning from {len(part):,} of {len(text):,} characters", flush=True)
    pattern = None if args.pattern == "none" else args.pattern
    tokenizer = KINDS[args.kind].train(part, args.vocab_size, pattern, args.special_tokens)
    tokenizer.save(args.out, ["tokenizer.json"])
    fewer = "; no more are found" if tokenizer.vocab_size < args.vocab_size else ""
    print(f"{tokenizer.vocab_size:,} tokens -> {Path(args.out) / 'tokenizer.json'}{fewer}")


def read_standard_input():
    """All of standard input as UTF-8, line ends as they are; ValueError if it is not that."""
    if sys.stdin is None:
        raise ValueError("standard input is closed: expected text or ids there")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict", newline="")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input: not UTF-8 text (at byte {error.start})") from None


def run(args):
    """What the command line asks for."""
    if args.command is None:
        check_count("--seed", args.seed, 0)
        return report(args.fast, args.seed)
    if args.command == "train":
        return train_command(args)
    tokenizer = BPETokenizer.load(args.directory)
    text = " ".join(args.given) if args.given else read_standard_input()
    if args.command == "encode":
        print(*tokenizer.encode(text))
    else:
        print(tokenizer.decode(map(int, text.split())))


def drop_unwritten():
    """Forget what stdout cannot take, so that Python's own flush at the end does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:  # a closed pipe, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv=None):
    """Run the command line; bad input ends it with one line and exit status 2."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if the caller has closed it
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever was reading has seen enough
        drop_unwritten()
    except KeyboardInterrupt:
        drop_unwritten()
        parser.exit(130, "\n")
    except (ValueError, LookupError, OSError) as error:
        drop_unwritten()
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
# 3. Python's \s and \w for Unicode's: on rare text ("½", "\x1c") ids differ. See splitter.
# 4. Decoding token by token: half an emoji is no UTF-8, becomes U+FFFD. decode joins bytes first.
# 5. User text encoded with specials allowed: users can end the document. The default is "none".
# 6. A prompt that ends in a space: "the" and " the" are two tokens, and the model has hardly ever
#    seen a word begin without its space. Leave the space to the model.

# %% Exercises
#  1. ★ Merge "hug pug hugs" three times by hand; then run textbook_merges.
#  2. ★ Write é, 字 and 🦊 in GPT-2's alphabet by hand; check with to_alphabet.
#  3. ★ Encode "the", " the", "The" and "\nthe". Why four different answers, and what does it cost?
#  4. ★ decode(encode(text)) == text always holds. Find ids for which encode(decode(ids)) != ids.
#  5. ★★ Show that training to a smaller vocab_size gives a prefix of the merges. Does Unigram's?
#  6. ★★ Train BPE with pattern=None on the verses. Which tokens cross words? Do they save tokens?
#  7. ★★ BPE-dropout with p = 0.3 and the one merge a+n: how often is "anan" spelled in which way?
#  8. ★★ Give learn_merges WordPiece's whole gain, n·(log[N·n/(c(a)·c(b))] − 1), as its score, with
#     N the number of bytes. What are its first twenty merges? Compare chars/token and bits/char.
#  9. ★★ How loose is one cut's bound? Sum over all cuts with forward, under a unigram model.
# 10. ★★ Cut numbers into threes from the right; does stage 3 learn additions better?
# 11. ★★ Train on English and Greek mixed 9:1 and 1:1. Who pays how many tokens a word?
# 12. ★★★ Which V is best for a compute budget? Predict from the report, test in the capstone.

# %% Where this leads
# The capstone reads a directory saved here and trains on its ids. GPT-2 to GPT-4, Llama 3 and Qwen
# use this very BPE, with 50,000 to 200,000 tokens. The next stage asks why training fails.

if __name__ == "__main__":
    sys.exit(main())
