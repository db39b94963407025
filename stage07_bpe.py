# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 7: tokenize. What are the symbols a language model reads and writes?

Stages 1 to 6 predicted characters and paid for every letter; words would be longer steps, but no
list of words is complete. So begin with the 256 bytes, which can write anything, and learn frequent
sequences of bytes until the budget, the vocabulary size, is spent:

    CharTokenizer       one token per character                       (the baseline)
    BPETokenizer        merge the commonest pair, again and again     (GPT-2/3/4, Llama 3, Qwen)
    WordPieceTokenizer  merge by a likelihood ratio, encode greedily  (BERT)
    UnigramTokenizer    a probability for each piece, prune, Viterbi  (T5, ALBERT)

All share one face and Hugging Face's files; decode(encode(text)) == text for any text. Run it bare
for the report (--fast, --seed N), or with one of the commands train, encode and decode (--help).

Rests on: Gage 1994, A New Algorithm for Data Compression; Sennrich 2016, Neural Machine Translation
of Rare Words with Subword Units; Radford 2019, Language Models are Unsupervised Multitask Learners;
Schuster, Nakajima 2012, Japanese and Korean Voice Search; Kudo 2018, Subword Regularization.
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

# %% 1. The problem
# A model sees integers, each with its row in the embedding. Three simple choices:
#   characters  some 150,000 in Unicode, a hundred in English; sequences are long
#   words       short sequences, but "foxlike" is <unknown>, and every misspelling wants a row
#   bytes       256 symbols write everything (UTF-8); longest sequences: 3 a character in Chinese
# T tokens cost T steps of every layer and T² pairs in attention; V symbols cost V·C numbers in
# the embedding and V·C multiplications a prediction. Subwords trade one price for the other.

# %% 2. Bytes, and an alphabet to write them in
# UTF-8 writes a code point in one to four bytes. A Python string may also hold lone surrogates
# (U+D800..U+DFFF, halves of UTF-16 pairs); UTF-8 has no bytes for them, so they are refused. Token
# files are text, but a token may be half a character, so GPT-2 writes bytes in 256 printable
# characters: those that print in Latin-1 stand for themselves, the 68 others take U+0100 and on,
# in order. A space (0x20, the 33rd of those) becomes Ġ, a newline Ċ, and é (C3 A9) Ã©.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_TO_CHAR = {byte: chr(byte) for byte in PRINTABLE}
BYTE_TO_CHAR |= {b: chr(0x100 + n) for n, b in enumerate(sorted({*range(256)} - {*PRINTABLE}))}
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
    """ValueError unless text is a str that UTF-8 can write."""
    if not isinstance(text, str):
        raise ValueError(f"text {text!r:.40} is {type(text).__name__}: expected str")
    if surrogate := not text.isascii() and re.search("[\ud800-\udfff]", text):
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
    ids = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
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
# Gage's trick from data compression: give the most frequent pair of neighbours a symbol of its own,
# write it everywhere instead of the pair, repeat. The merges, in order, are the tokenizer. Counts
# are taken inside pre-tokens; ties: the lexicographically smallest pair of ids goes first.
def textbook_merges(words, n_merges):
    """BPE by its definition: {word: count} -> [(pair, its count when merged)]. Slow."""
    n_merges, words = check_count("n_merges", n_merges, 0), {w: int(n) for w, n in words.items()}
    texts, merges = {word: word.decode("latin-1") for word in words}, []  # a character for each id
    for new in range(256, 256 + n_merges):
        counts = Counter()
        for word, text in texts.items():
            for pair in zip(text, text[1:]):
                counts[pair] += words[word]
        if not counts:
            break
        a, b = best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(((ord(a), ord(b)), counts[best]))
        texts = {word: text.replace(a + b, chr(new)) for word, text in texts.items()}
    return merges


# That reads every word again for each merge, yet one merge touches little. When (a, b) becomes X
# inside  … l a b r …  of a word that occurs w times, the table of pair counts changes by
#       (l, a) −w    (a, b) −w    (b, r) −w    (l, X) +w    (X, r) +w        and nothing else.
# So keep each pair's count and its places, and the words as linked lists, in which two neighbours
# become one in O(1). A place may go stale, its symbols eaten by another merge: one look shows it.
# The best pair comes from a heap of (−score, pair), whose order is the tie rule. A count rises only
# when one of its two symbols is created; then the pair is pushed. Later it only falls: an entry may
# promise too much, never too little, and popped out of date it is pushed again with its true score.
# A merge shortens the text at each valid place: all of them visit O(n) in n bytes of words.
def merge_places(row, places, pair, new):
    """Make the pair one symbol where it still stands; yield (before, place, after) of each."""
    (ids, before, after), (a, b) = row, pair
    for i in sorted(places):
        j = after[i]
        if ids[i] == a and ids[j] == b:  # else stale
            h, k = before[i], after[j]
            ids[i], ids[j] = new, -1
            after[i], before[k] = k, i
            yield h, i, k


def learn_merges(words, n_merges, min_count=None):
    """{word: count} -> [(pair, score)]; score: count(ab), or by min_count as in section 6."""
    n_merges = check_count("n_merges", n_merges, 0)
    ids, weight = [], []  # all words in a row, each followed by −1, which is in no pair
    for word, count in words.items():
        ids += [*word, -1]
        weight += [int(count)] * (len(word) + 1)
    row = ids, list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))  # ids, before, after
    total, pairs, places = Counter(), Counter(), defaultdict(list)
    for i, pair in enumerate(zip(ids, ids[1:])):
        total[ids[i]] += weight[i]
        if -1 not in pair:
            pairs[pair] += weight[i]
            places[pair].append(i)

    def score(pair):
        n, (a, b) = pairs[pair], pair
        if not min_count or n < min_count:
            return n - (min_count or 0)  # too rare a pair scores below zero: behind all others
        return n / (total[a] * total[b])

    heap, merges = [(-score(pair), pair) for pair in pairs], []
    heapq.heapify(heap)
    while heap and len(merges) < n_merges:
        promised, pair = heapq.heappop(heap)
        best = score(pair)
        if best != -promised:  # out of date
            if pairs[pair]:
                heapq.heappush(heap, (-best, pair))
            continue
        (a, b), new = pair, 256 + len(merges)
        merges.append((pair, best))
        moves = defaultdict(list)  # (pair lost, pair gained) -> places of the one gained
        for h, i, k in merge_places(row, places.pop(pair), pair, new):
            total[new] += weight[i]
            moves[(ids[h], a), (ids[h], new)].append(h)
            moves[(b, ids[k]), (new, ids[k])].append(i)
        del pairs[pair]
        changed = {gained for _, gained in moves if -1 not in gained}
        for (lost, gained), at in moves.items():
            if -1 not in gained:
                w = sum([weight[i] for i in at])
                pairs[lost] -= w
                pairs[gained] += w
                places[gained] += at
        if min_count:  # count(a) and count(b) fall: every pair they stand in has a new score
            total[a] -= total[new]
            total[b] -= total[new]
            changed |= {p for p in pairs if (a in p or b in p) and pairs[p] >= min_count}
        for pair in changed:
            if pairs[pair]:
                heapq.heappush(heap, (-score(pair), pair))
    return merges


# No two tokens are the same bytes (files name a token by its string): wherever a string stands with
# token boundaries at both ends, the same merges went through it in the same order.
# Encoding replays the merges: of all neighbours that form a known pair, merge those learned first
# (lowest rank), from left to right, until none is left. Searching them anew each time is O(n²) for
# n bytes; the places of each pair, a heap of ranks and the linked list make it O(n log n).
class BPETokenizer(Tokenizer):
    """Byte-level BPE, as GPT-2's. merges: {(left id, right id): new id} in order of rank."""

    model_type = "BPE"

    def _learn(self, words, size):
        for new, ((a, b), _) in enumerate(learn_merges(words, size - 256), start=256):
            self.merges[a, b] = new
            self.vocab[new] = self.vocab[a] + self.vocab[b]

    def _encode_word(self, word):
        ids, ranks = [self.ids[word[i : i + 1]] for i in range(len(word))] + [-1], self._ranks
        row = ids, list(range(-1, len(word))), list(range(1, len(word) + 2))  # ids, before, after
        places = defaultdict(list)  # pair -> places
        for i, pair in enumerate(zip(ids, ids[1:])):
            if pair in ranks:
                places[pair].append(i)
        heap = sorted([ranks[pair] for pair in places])  # (rank, pair, new id)
        while heap:
            _, pair, new = heapq.heappop(heap)
            for h, i, k in merge_places(row, places.pop(pair), pair, new):
                for at, near in ((h, (ids[h], new)), (i, (new, ids[k]))):
                    if near in ranks:
                        if near not in places:
                            heapq.heappush(heap, ranks[near])
                        places[near].append(at)
        return [i for i in ids if i >= 0]


# %% 6. WordPiece, and the longest match
# " t" and "e" meet often just because both are everywhere. WordPiece asks which pair is together
# more often than by chance. Let tokens be independent, p(t) = count(t)/N. Each place where a, b
# becomes ab changes the log-likelihood of the text by
#       log p(ab) − log p(a) − log p(b)  =  log [ N · count(ab) / (count(a)·count(b)) ],
# and N is the same for all candidates: merge the largest count(ab)/(count(a)·count(b)). That is
# the gain *per place*: two letters seen once, together, score 1, which nothing beats, so the bare
# ratio buys oddities. Hence a pair must stand as often as a token does on average, N/V times; when
# none is left, the commonest of the others is next. Encoding forgets the merges and takes the
# longest token that fits, again and again: one pass, but greedy. (BERT drops the spaces and marks
# pieces that *continue* a word with ##; here a word's first piece carries its space.)
class WordPieceTokenizer(Tokenizer):
    """WordPiece: merges chosen by likelihood ratio, text encoded by the longest match."""

    model_type = "WordPiece"

    def _learn(self, words, size):
        symbols = sum(len(word) * count for word, count in words.items())
        for (a, b), _ in learn_merges(words, size - 256, min_count=max(1, symbols // size)):
            self.vocab[len(self.vocab)] = self.vocab[a] + self.vocab[b]

    def _encode_word(self, word):
        out, i = [], 0
        while i < len(word):
            j = min(i + self.longest, len(word))
            while word[i:j] not in self.ids:
                j -= 1  # ends at a single byte, which is always a token
            out.append(self.ids[word[i:j]])
            i = j
        return out


class CharTokenizer(WordPieceTokenizer):
    """One token per character (no UTF-8 begins another's); beyond vocab_size, its bytes."""

    def _learn(self, words, size):
        counts = Counter()
        for word, times in words.items():
            counts.update({char: times * word.decode().count(char) for char in set(word.decode())})
        rare = sorted((-n, char.encode()) for char, n in counts.items() if not char.isascii())
        self.vocab |= {256 + n: char for n, (_, char) in enumerate(rare[: size - 256])}


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
# A word of n bytes has 2ⁿ⁻¹ cuts, but n steps sum over them. Let α_j be the log of the total
# probability of x[:j] over all its cuts. The last piece is x[i:j] for some i < j, so
#       α_0 = 0,    α_j = log Σ_i exp(α_i + log p(x[i:j])),    log P(x) = α_n,
# and given a boundary at j, the piece that ends there begins at i with probability
#       P(i | j) = exp(α_i + log p(x[i:j]) − α_j).                                           (★)
# From the end: γ_j = P(boundary at j | x), γ_n = 1; x[i:j] is used with probability γ_j·P(i|j),
# which goes to c(x[i:j]) and to γ_i (backpropagation: c(t) = ∂α_n/∂log p(t)). Drawing i from (★)
# instead samples a cut from P(s|x): subword regularisation shows a model many spellings of a word.
# With a maximum in place of the sum, the recursion finds the best cut (Viterbi), as encode does.
def log_sum(terms):
    """log Σ eᵗ over the terms t; of no terms, or of nothing but -∞, it is log 0 = -∞."""
    top = max(terms, default=-math.inf)  # taken out so that nothing overflows
    if math.isinf(top):
        return top
    return top + math.log(sum([math.exp(term - top) for term in terms]))


def forward(word, score, longest, total=log_sum):
    """α_0..α_n, and for each j the pieces that end there as [(i, word[i:j], log p)]."""
    alpha, arcs = [0.0], [[]]
    for j in range(1, len(word) + 1):
        starts = range(max(0, j - longest), j)
        arcs.append([(i, word[i:j], score[word[i:j]]) for i in starts if word[i:j] in score])
        terms = [alpha[i] + log_p for i, _, log_p in arcs[j]]
        alpha.append(total(terms) if terms else -math.inf)  # no piece ends at j
    return alpha, arcs


def expected_counts(words, score, longest):
    """The E step: ({piece: c(piece)}, Σ count(x)·log P(x)) for {piece: log p} in score."""
    counts, log_likelihood = dict.fromkeys(score, 0.0), 0.0
    for word, times in words.items():
        alpha, arcs = forward(word, score, longest)
        if alpha[-1] == -math.inf:
            raise ValueError(f"word {word!r}: expected pieces that can write it")
        log_likelihood += times * alpha[-1]
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
    if best[-1] == -math.inf:
        raise ValueError(f"word {word!r}: expected pieces that can write it")
    pieces, j = [], len(word)
    while j:
        j, piece, _ = next(arc for arc in arcs[j] if best[arc[0]] + arc[2] == best[j])
        pieces.append(piece)
    return best[-1], pieces[::-1]


# Pruning. Without t, its c(t) uses can be written as t's best cut t₁…t_m into other pieces, so the
# log-likelihood falls by about  loss(t) = c(t) · (log p(t) − Σ_k log p(t_k)),  less if the cuts
# shift elsewhere and the next EM refits p. Keep the three quarters of largest loss (and all single
# bytes), fit again, and repeat until the vocabulary fits.
MAX_PIECE, MAX_WORD, SEEDS = 16, 256, 4  # bytes of a seed, bytes of a word in EM, seeds per token


class UnigramTokenizer(Tokenizer):
    """The unigram tokenizer. score: {piece: log p}, in the order of the ids."""

    model_type = "Unigram"
    score = {bytes([byte]): -math.log(256) for byte in range(256)}  # until trained

    def _learn(self, words, size):
        chunks, counts = Counter(), Counter()
        for word, times in words.items():
            for i in range(len(word)):
                if i % MAX_WORD == 0:
                    chunks[word[i : i + MAX_WORD]] += times
                for j in range(i + 1, min(i + MAX_PIECE, len(word)) + 1):
                    counts[word[i:j]] += times
        seeds = [t for t, n in counts.items() if n > 1 and len(t) > 1]
        keep = [*self.ids, *sorted(seeds, key=lambda t: (-counts[t] * len(t), t))[: SEEDS * size]]
        while True:
            for _ in range(2):  # M, E, M, E; the floor keeps unseen bytes above p = 0
                total = sum(max(counts[t], 0.01) for t in keep)
                score = {t: math.log(max(counts[t], 0.01) / total) for t in keep}
                counts, _ = expected_counts(chunks, score, MAX_PIECE)
            if len(keep) <= size:
                break
            loss = {}
            for t in keep[256:]:  # its best cut into shorter pieces
                loss[t] = counts[t] * (score[t] - viterbi(t, score, len(t) - 1)[0])
            ranked = sorted(loss, key=lambda t: (-loss[t], t))
            keep[256:] = ranked[: max(size, len(keep) * 3 // 4) - 256]
        keep[256:] = sorted(keep[256:], key=lambda t: (-score[t], t))
        self.score = {piece: round(score[piece], 9) for piece in keep}  # nine digits, as saved
        self.vocab = dict(enumerate(keep))

    def _encode_word(self, word):
        return [self.ids[piece] for piece in viterbi(word, self.score, self.longest)[1]]

    def sample(self, text, rng, temperature=1.0):
        """Ids of a random cut of text, each with probability ∝ P(s, x)^(1/temperature)."""
        check_text(text)
        real = isinstance(temperature, (int, float, np.integer, np.floating))
        if not real or isinstance(temperature, bool) or not temperature > 0:
            raise ValueError(f"temperature {temperature!r}: expected a positive number")
        score, out = {piece: log_p / temperature for piece, log_p in self.score.items()}, []
        for word in pretokenize(text, self.pattern):
            alpha, arcs = forward(word.encode(), score, self.longest)
            pieces, j = [], len(alpha) - 1
            while j:
                p = np.exp([alpha[i] + log_p - alpha[j] for i, _, log_p in arcs[j]])  # (★)
                j, piece, _ = arcs[j][rng.choice(len(p), p=p / p.sum())]
                pieces.append(self.ids[piece])
            out += pieces[::-1]
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


# %% 9. Comparing tokenizers: compression, and bits per character
def compare(tokenizers, text):
    """{name: measures on text} for a dict name -> tokenizer; a list's names are 0, 1, ..."""
    check_text(text)
    if not text:
        raise ValueError("text '' is empty: expected at least one character to compare on")
    named, rows = tokenizers if isinstance(tokenizers, dict) else dict(enumerate(tokenizers)), {}
    for name, tokenizer in named.items():
        ids = tokenizer.encode(text)
        rows[name] = {"vocab_size": tokenizer.vocab_size, "tokens": len(ids)}
        rows[name]["chars_per_token"] = len(text) / len(ids)
        rows[name]["bytes_per_token"] = len(text.encode()) / len(ids)
        rows[name]["round_trip"] = tokenizer.decode(ids) == text
    return rows


# Never compare models by loss per *token* when their tokens differ: a longer token carries more
# surprise. Divide −log P(text) by the number of characters. (P counts one cut of the text; others
# have some probability too: an upper bound.) The model is interpolated Kneser-Ney (stage 1): with
# n(h, w) occurrences of w after the context h, n(h) = Σ_w n(h, w), h' = h without its first token,
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
    n, total, kinds, D = {}, Counter(), Counter(), {}
    counts = Counter(zip(*(train[i:] for i in range(order))))
    for k in range(order, 0, -1):  # k tokens: h and w
        once, twice = (list(counts.values()).count(m) for m in (1, 2))
        D[k] = (once + 1) / (once + 2 * twice + 2)
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
            if (h := gram[:-1]) in total:  # an unseen context leaves p as it is
                p = (max(n.get(gram, 0) - D[k], 0) + D[k] * kinds[h] * p) / total[h]
        nats -= math.log(p)
    return nats


# %% Demonstration
def show(tokenizer, text):
    """The tokens of text for the eye: spaces as ·, broken characters in hex."""
    pieces = [tokenizer.decode_bytes([i]) for i in tokenizer.encode(text)]
    return "|".join(p.decode(errors="backslashreplace") for p in pieces).replace(" ", "·")


def report(fast, seed):
    """What tokenization does to the stories; the last line is the held-out score."""
    rng = np.random.default_rng(seed)
    n, order, end = (20, 3, 24_000) if fast else (100, 7, None)
    sizes = (320, 512) if fast else (512, 1024, 2048, 4096)
    text = (Path(__file__).resolve().parent / "data" / "stories.txt").read_text("utf-8")[:end]
    train, held_out = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]
    words, bpe, made, nats = count_words(train), BPETokenizer(), {}, {}
    print(f"Learning from {len(train):,} characters, {len(words):,} different pre-tokens")
    print("\n1. The first merges of BPE, and how often the pair stood there (· is a space)")
    t0, slow, t1 = time.perf_counter(), textbook_merges(words, n), time.perf_counter()
    same, t2 = learn_merges(words, n) == slow, time.perf_counter()
    names = [t.decode().replace(" ", "·") for t in [*bpe.train(train, 276).vocab.values()][256:]]
    for row in range(5):
        print("".join(f"   {256 + i} {names[i]:5}{slow[i][1]:6}" for i in range(row, 20, 5)))
    print(f"   {n} merges: textbook {t1 - t0:.2f} s, fast {t2 - t1:.2f} s; same: {same}\n")
    kinds = {"characters": CharTokenizer} | {f"BPE {V}": BPETokenizer for V in sizes}
    kinds |= {f"WordPiece {sizes[1]}": WordPieceTokenizer, f"Unigram {sizes[1]}": UnigramTokenizer}
    for name, kind in kinds.items():
        print(f"training {name:15}", end="\r" if sys.stdout.isatty() else "\n", flush=True)
        made[name] = tokenizer = kind.train(train, int(name.split()[-1]) if " " in name else 256)
        ids, test = tokenizer.encode(train), tokenizer.encode(held_out)
        nats[name] = kneser_ney_nats(ids, test, tokenizer.vocab_size, order) / len(held_out)
    print("\n2. One sentence in four tokenizers, and a word cut at random (temperature 3)")
    for name in made:
        if name.endswith(("characters", f" {sizes[1]}")):
            print(f"   {name:16}{show(made[name], 'Grandmother untied the foxes.')}")
    cuts = [tokenizer.sample("gardening", rng, temperature=3) for _ in range(4)]
    print(" " * 19 + "   ".join("|".join(tokenizer.decode([i]) for i in cut) for cut in cuts))
    print(f"\n3. Held-out text, and one model over it (Kneser-Ney, {order - 1} tokens of context)")
    print("   tokenizer       tokens  chars/token  embedding, C = 128  attention pairs  bits/char")
    for name, row in compare(made, held_out).items():
        cost = f"{row['tokens']:7}{row['chars_per_token']:13.2f}{row['vocab_size'] * 128:20,}"
        pairs = (row["tokens"] / len(held_out)) ** 2  # characters are the measure
        print(f"   {name:15}{cost}{pairs:17.1%}{nats[name] / math.log(2):11.3f}")
    name = f"BPE {sizes[-1]}"
    print(f"\n4. Rare words and other scripts in {name}, which has read English stories only")
    for word in "garden gardening photosynthesis château αλεπού лиса 狐狸 🦊".split():
        count = f"{len(word):2} characters {len(made[name].encode(' ' + word)):3} tokens"
        print(f"   {count}   {show(made[name], ' ' + word)}")
    print("   and numbers, in BPE 512 trained on 4,000 random ones with either pattern")
    numbers = " ".join(str(int(10**x)) for x in rng.uniform(0, 7, 4000))
    for pattern in ("gpt2", "gpt4"):
        tokens = show(bpe.train(numbers, 512, pattern), "1234 12345 123456 1234567 2024")
        print(f"   {pattern}  {tokens}")
    nat, name = min((n, name) for name, n in nats.items())
    score = f"{nat:.3f} nats/char | {nat / math.log(2):.3f} bits/char"
    score += f" | perplexity {math.exp(nat):.2f}   (stage 7, Kneser-Ney over {name})"
    print(f"\nheld-out: {score}")


class CommandLine(argparse.ArgumentParser):
    """A parser whose errors are one line on standard error and exit status 2."""

    def error(self, message):
        one_line = " ".join(message.split())
        self.exit(2, f"{self.prog}: {one_line[:300]}\n")


def build_parser():
    """The command line: the report, or one of the commands train, encode and decode."""
    what = "Without a command: the report on data/stories.txt."
    parser = CommandLine(prog="stage07_bpe.py", description=what)
    parser.add_argument("--fast", action="store_true", help="a smoke run of the report [no]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the report [0]")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    what = "learn byte-pair tokens from a text and write them to DIR/tokenizer.json"
    train = commands.add_parser("train", help=what, description=what)
    train.add_argument("file", metavar="FILE", help="a UTF-8 text; \\r\\n is read as \\n")
    train.add_argument("--out", required=True, metavar="DIR", help="made if need be; required")
    about = "tokens, counting the 256 bytes and the special tokens; fewer if no pair is left [1024]"
    train.add_argument("--vocab-size", type=int, default=1024, metavar="N", help=about)
    about = "learn from the first int(X * characters) characters of the text, 0 < X <= 1 [1]"
    train.add_argument("--fraction", type=float, default=1.0, metavar="X", help=about)
    about = "tokens with the last ids, in this order; cut out of the text before learning [none]"
    train.add_argument("--special-tokens", nargs="+", default=[], metavar="TOKEN", help=about)
    about = "where the text is cut before learning [gpt2]"
    train.add_argument("--pattern", choices=("gpt2", "gpt4"), default="gpt2", help=about)

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
    tokenizer = BPETokenizer.train(part, args.vocab_size, args.pattern, args.special_tokens)
    tokenizer.save(args.out, ["tokenizer.json"])
    fewer = "; no pair is left" if tokenizer.vocab_size < args.vocab_size else ""
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


# %% Common mistakes
# 1. Loss per token compared across vocabularies: the bigger looks worse. report() divides by chars.
# 2. Merging "a a a" from the right: counts drift. merge_places goes from left to right.
# 3. Python's \s and \w for Unicode's: on rare text ("½", "\x1c") ids differ. See splitter.
# 4. Decoding token by token: half an emoji is no UTF-8, becomes U+FFFD. decode joins bytes first.
# 5. User text encoded with specials allowed: users can end the document. The default is "none".

# %% Exercises
#  1. Reading: merge "hug pug hugs" three times by hand; then run textbook_merges.
#  2. Write é, 字 and 🦊 in GPT-2's alphabet by hand; check with to_alphabet.
#  3. Encode "the", " the", "The" and "\nthe". Why four different answers, and what does it cost?
#  4. decode(encode(text)) == text always holds. Find ids for which encode(decode(ids)) != ids.
#  5. Show that training to a smaller vocab_size gives a prefix of the merges. Does Unigram's?
#  6. Train BPE with pattern=None on the verses. Which tokens cross words? Are there fewer a line?
#  7. BPE-dropout (Provilkov 2020): leave out each merge in _encode_word with probability 0.1.
#  8. Give learn_merges min_count=1 in WordPiece. What becomes of chars/token and bits/char? Why?
#  9. How loose is one cut's bound? Sum over all cuts with forward, under a unigram model.
# 10. Cut numbers into threes from the right; does stage 3 learn additions better?
# 11. Train on English and Greek mixed 9:1 and 1:1. Who pays how many tokens a character?
# 12. Research: which V is best for a compute budget? Predict from table 3, test in the capstone.

# %% Where this leads
# The capstone reads a directory saved here and trains on its ids. GPT-2 to GPT-4, Llama 3 and Qwen
# use this very BPE, with 50,000 to 200,000 tokens. The next stage asks why training fails.

if __name__ == "__main__":
    sys.exit(main())
