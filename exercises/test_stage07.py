"""Checks of the exercises of stage 7."""

import contextlib
import importlib.util
import math
import re
import time
from collections import Counter
from unittest import mock

import judge
import numpy as np
import pytest

import stage07_bpe as stage

DATA = stage.Path(stage.__file__).parent / "data"


def merged(text, n_merges, rank):
    """The ids of a text after n_merges merges of the first page, with ties broken by a rank."""
    ids = list(text.encode())
    for new in range(256, 256 + n_merges):
        row = list(zip(ids, ids[1:]))
        counts = Counter(row)
        pair = min(counts, key=lambda pair: (-counts[pair], rank(pair, row)))
        ids = stage.replace_pair(ids, pair, new)
    return ids


def test_1(answers):
    text = "hug pug hugs"
    found = judge.numeric("ANSWER_1", judge.answer(answers, "ANSWER_1"), "a list of ids")
    if found.ndim != 1:
        judge.wrong(f"ANSWER_1 is {found.tolist()!r:.60}; expected a flat list of ids")
    ids = found.tolist()
    right = stage.textbook_encode(text, stage.textbook_merges(text, 3))
    known = [(f"that is the row after {n} merges; three were asked for", n) for n in (1, 2, 4)]
    mistakes = {told: merged(text, n, lambda pair, row: pair) for told, n in known}
    mistakes |= {
        "of equals, the pair that stands first was taken; the smallest ids go first": merged(
            text, 3, lambda pair, row: row.index(pair)
        ),
        "of equals, the largest ids were taken; the smallest go first": merged(
            text, 3, lambda pair, row: [-i for i in pair]
        ),
        "of equals, the smallest right ids were taken; the left ids are compared first": merged(
            text, 3, lambda pair, row: pair[::-1]
        ),
        "the numbers of the merges begin with 256": [i - (i > 255) for i in right],
    }
    for told, row in mistakes.items():
        if ids == row != right:
            judge.wrong(f"ANSWER_1: {told}")
    if len(ids) != len(right):
        judge.wrong(f"ANSWER_1 has {len(ids)} ids; merge by merge, what remains of the 12 bytes?")
    if ids != right:
        judge.wrong("ANSWER_1: not right yet; after each merge count all pairs anew")


def test_2(answers):
    data = "字".encode()
    right = [ord(char) for char in stage.to_alphabet(data)]
    mistakes = {
        "these are the bytes; those that do not print have other characters": [*data],
        "only the bytes that do not print move, and not by 256: they are numbered in order": [
            right[0], *(256 + byte for byte in data[1:]),
        ],
        "AD is one of the bytes that do not print": [right[0], 0xAD, right[2]],
        "AD is the last of the 68: 7F and 80 to A0 come before it": [
            right[0], 0x121, right[2] + 1,
        ],
        "7F does not print either: it comes before 80": [*right[:1], right[1] - 1, right[2] - 1],
        "the space belongs to the 68: 00 to 20 are 33 bytes": [*right[:1], right[1], right[2] - 1],
    }  # fmt: skip
    found = judge.answer(answers, "ANSWER_2")
    if isinstance(found, str):
        judge.wrong(f"ANSWER_2 is {found!r:.40}; expected a list of three numbers")
    found = judge.numbers(answers, "ANSWER_2", 3)
    judge.array("ANSWER_2", found, right, mistakes=mistakes)
    found = judge.answer(answers, "ANSWER_2B")
    if isinstance(found, (int, np.integer)) and not isinstance(found, bool):
        found = chr(found) if 0 <= found < 0x110000 else found
    if not isinstance(found, str) or len(found) != 1:
        judge.wrong(f"ANSWER_2B is {found!r:.40}; expected one character, or its code point")
    token = "\u00e2\u0122\u0136"
    if found in token:
        judge.wrong("ANSWER_2B: that is one of the three; together they are one character")
    if found == "-":
        judge.wrong("ANSWER_2B: it looks like that, but it is a longer one, no single byte")
    if found != stage.from_alphabet(token).decode():
        judge.wrong("ANSWER_2B: not right yet; first the bytes, then read them as UTF-8")


def test_3(answers):
    right = 3.1 / 4.4 / math.log(2)
    mistakes = {
        "these are bits per token": 3.1 / math.log(2),
        "the characters of a token divide; they do not multiply": 3.1 * 4.4 / math.log(2),
        "the number of tokens has nothing to do with it": 3.1 / math.log(50_000),
        "to come from nats to bits, divide by ln 2": 3.1 / 4.4 * math.log(2),
    }
    judge.number(answers, "ANSWER_3", right, mistakes=mistakes, unit="bits")
    mistakes = {
        "that is a loss per character; how many characters has a token?": 1.05,
        "a token has more characters than one: multiply": 1.05 / 4.4,
    }
    judge.number(answers, "ANSWER_3B", 1.05 * 4.4, mistakes=mistakes, unit="nats")


def test_4(answers):
    remarks = {
        "a": "bits per *character* do not depend on how long a token is",
        "b": "look at the report again",
        "c": "no vocabulary has seen the development piece, and both are cut alike",
        "d": "a token is longer, so six of them reach further back",
    }
    judge.choice(answers, "ANSWER_4", 4, "c028db7fe5d6", remarks)


class Pieces(set):
    """A set that loses patience: whoever tries all cuts of a word looks into it too often."""

    left = math.inf

    def __contains__(self, piece):
        self.left -= 1
        if self.left < 0:
            raise ValueError("it looked into pieces far more than len(word)² times")
        return super().__contains__(piece)


def cuts(word, pieces):
    """All cuts of a short word."""
    if not word:
        return [[]]
    found = []
    for i in range(1, len(word) + 1):
        if word[:i] in pieces:
            found += [[word[:i], *rest] for rest in cuts(word[i:], pieces)]
    return found


def test_5(answers, rng):
    def count(word, pieces):
        pieces = Pieces(pieces)
        pieces.left = 4 * len(word) ** 2 + 40
        found = judge.call(answers, "count_cuts", word, pieces)
        if isinstance(found, bool) or not isinstance(found, int):
            judge.wrong(f"count_cuts returned {found!r:.60}; expected an int")
        return found

    letters = {b"a", b"b", b"n"}
    for _ in range(20):
        word = bytes(rng.choice([*b"abn"], size=rng.integers(1, 8)).tolist())
        spans = [word[i:j] for i in range(len(word)) for j in range(i + 2, len(word) + 1)]
        pieces = letters | {span for span in spans if rng.random() < 0.5}
        found, right = count(word, pieces), len(cuts(word, pieces))
        if found == right - 1 and word in pieces:
            judge.wrong(f"count_cuts({word!r}, ...): the whole word may be a piece, too")
        if found == sum(span in pieces for span in spans) + len(word) != right:
            judge.wrong("count_cuts: those are the places where a piece fits, not the cuts")
        if found != right:
            judge.wrong(f"count_cuts({word!r}, {pieces}) = {found}; list its cuts on paper")
    if count(b"abc", letters) != 0:
        judge.wrong("count_cuts(b'abc', {a, b, n}): nothing can write the c, so there is no way")
    if count(b"", letters) != 1:
        judge.wrong("count_cuts(b'', ...): the empty word is written in one way, by no piece")
    word = b"n" * 20
    times = []
    while len(times) < 3 and min(times, default=1) > 0.2:  # a busy machine gets another chance
        start = time.perf_counter()
        count(word, {word[:k] for k in range(1, 21)})
        times.append(time.perf_counter() - start)
    if min(times) > 0.2:
        judge.wrong(f"count_cuts took {min(times):.1f} s for 20 letters: does it try every cut?")
    word = b"n" * 70
    if count(word, {word[:k] for k in range(1, 71)}) != 1 << 69:
        judge.wrong("count_cuts is not exact for a word of 70 letters; floats have 53 bits")


def test_6(answers, rng):
    regex = judge.call(answers, "threes")
    if not isinstance(regex, str):
        judge.wrong(f"threes returned {regex!r:.40}; expected a regex as a string")
    try:
        compiled = re.compile(regex)
    except re.error as error:
        judge.wrong(f"threes: {regex!r:.60} is no regex: {error}")
    if compiled.groups:
        judge.wrong("threes: a group ( ) makes findall return the group; write (?: ) instead")
    for digits in range(1, 12):
        number = "".join(map(str, rng.integers(10, size=digits)))
        right = re.findall("...|..?$", number[::-1])
        right = [group[::-1] for group in right[::-1]]
        texts = (number, right), (f"x{number}, {number} y", 2 * right), (f"{number}kg", right)
        for text, expected in texts:
            found = compiled.findall(text)
            if found == expected:
                continue
            if found == re.findall(r"\d{1,3}", text):
                judge.wrong(f"threes: {number} is cut from the left: {'|'.join(found)}")
            if found and expected[: len(found)] == found:
                judge.wrong(f"threes: of {text!r} it finds only {found}")
            judge.wrong(f"threes: of {text!r} it finds {found}; not right yet")


class Script:
    """A Generator whose draws are known: all of them can be followed, one after the other."""

    def __init__(self, script):
        self.script, self.drawn, self.probability = script, [], 1.0

    def take(self, p):
        """The next outcome, an index of p; those that the script does not tell are the first."""
        n = len(self.drawn)
        outcome = self.script[n] if n < len(self.script) else 0
        self.drawn.append((outcome, len(p)))
        self.probability *= p[outcome]
        return outcome

    def choice(self, n, p=None):
        """An index below n."""
        return self.take([1 / n] * n if p is None else list(p))


class Coins(Script):
    """The same for rng.random() < p: whether the draw is below p."""

    p = 0.5

    def random(self):
        """0 with probability p, else 1."""
        return float(self.take([self.p, 1 - self.p]))


def distribution(draw, make):
    """{what draw(rng) returns: its probability}, over all outcomes of make(script)."""
    found, scripts = Counter(), [[]]
    while scripts:
        script = scripts.pop()
        rng = make(script)
        result = draw(rng)
        found[tuple(result)] += rng.probability
        for n in range(len(script), len(rng.drawn)):
            outcomes = [outcome for outcome, _ in rng.drawn[:n]]
            scripts += [[*outcomes, other] for other in range(1, rng.drawn[n][1])]
    return found


def test_7(answers, rng):
    judge.answer(answers, "draw")
    score = dict.fromkeys([b"a", b"b", b"n", b"an", b"na", b"ban", b"bana", b"nan"], 0.0)
    for word in (b"banan", b"nanan", b"ban"):
        p = rng.dirichlet(np.ones(len(score)))
        score = dict(zip(score, np.log(p).tolist()))
        joint = {tuple(cut): math.exp(sum(map(score.get, cut))) for cut in cuts(word, score)}
        whole = sum(joint.values())
        with np.errstate(all="ignore"):
            found = distribution(
                lambda rng, word=word, score=score: judge.call(answers, "draw", word, score, rng),
                Script,
            )
        for cut in found:
            if b"".join(cut) != word:
                judge.wrong(f"draw({word!r}) returned {list(cut)}, which does not spell it")
        names = sorted(joint)
        told = f"draw({word!r}): how often each cut comes"
        alpha, arcs = stage.forward(word, score, len(word))
        begun, alone = {}, {}  # each piece drawn by α of its beginning, or by its p alone
        for cut in names:
            begun[cut], alone[cut], j = 1.0, 1.0, len(word)
            for piece in cut[::-1]:
                before = sum(math.exp(alpha[i]) for i, _, _ in arcs[j])
                pieces = sum(math.exp(log_p) for _, _, log_p in arcs[j])
                j -= len(piece)
                begun[cut] *= math.exp(alpha[j]) / before
                alone[cut] *= math.exp(score[piece]) / pieces
        mistakes = {
            "now the probability of the piece itself is missing": [begun[cut] for cut in names],
            "these are still the broken copy's frequencies": [alone[cut] for cut in names],
            "every cut comes equally often": np.full(len(names), 1 / len(names)),
        }
        right = np.array([joint[cut] / whole for cut in names])
        judge.array(told, [found[cut] for cut in names], right, mistakes=mistakes)


def test_8(answers, rng):
    names = ["an|an", "an|a|n", "a|n|an", "a|n|a|n"]
    rows = [(256, 256), (256, 97, 110), (97, 110, 256), (97, 110, 97, 110)]
    for p in [0.3, *rng.uniform(0.05, 0.95, 5)]:
        Coins.p = float(p)
        exact = distribution(
            lambda rng, p=p: stage.merge_symbols([*b"anan"], {(97, 110): (0, 256)}, p, rng), Coins
        )
        right = [exact[row] for row in rows]
        q = 1 - p
        apart = "the places are not independent: what was left out is drawn again in the next step"
        mistakes = {
            names[0]: {
                apart: q * q,
                "it comes about in two ways: either place may be the first": q * q * p,
                "that is p for 1 - p": p * p,
            },
            names[1]: {
                "that is a|n|an": right[2],
                "after a merge there is one more step": q,
                "after the left merge one place remains, and p leaves it out": p * q * q,
            },
            names[2]: {
                apart: p * q,
                "after a merge there is one more step": p * q * q,
                "that is the probability to begin so, not to end so": p * (1 - p) * (1 - p),
            },
            names[3]: {"here p is the probability to leave out": q * q},
        }
        found = judge.call(answers, "spellings_of_anan", float(p))
        judge.entries("spellings_of_anan", found, names, right, 6, mistakes)


def test_9(answers):
    judge.answer(answers, "ANSWER_9")
    text = (DATA / "verses.txt").read_text("utf-8")
    n = int(0.9 * len(text))
    first, rest = text[:n], text[n:]
    tokens, nats, trained_on = [], [], []
    for pattern in ("gpt2", None):
        tokenizer = stage.BPETokenizer.train(first, 1024, pattern=pattern)
        train, test = tokenizer.encode(first), tokenizer.encode(rest)
        tokens.append(len(test))
        trained_on.append(len(train))
        nats.append(stage.kneser_ney_nats(train, test, tokenizer.vocab_size, 5))
    with_words, without = tokens
    mistakes = {
        "the other way round: the count with None is above the line": with_words / without,
        "that is the first part; the rest is to be encoded": trained_on[1] / trained_on[0],
        "that is the share of tokens saved; the quotient is asked for": 1 - without / with_words,
        "that is the share of tokens saved, in per cent": 100 - 100 * without / with_words,
        "that is the number of tokens with None; divide it": without,
    }
    judge.number(answers, "ANSWER_9", without / with_words, mistakes=mistakes)
    per_char = np.array(nats) / len(rest) / math.log(2)
    per_token = np.array(nats) / np.array(tokens) / math.log(2)
    mistakes = {
        "these are bits per token": per_token[1] - per_token[0],
        "that is how many bits there are with None": per_char[1],
        "these are bits of the whole rest": (per_char[1] - per_char[0]) * len(rest),
    }
    judge.number(answers, "ANSWER_9B", per_char[1] - per_char[0], 2, mistakes=mistakes, unit="bits")


def test_10(answers, rng):
    judge.answer(answers, "undecided")
    for word in (b"ab", b"aab", b"abab", b"baab"):
        pieces = sorted({word[i:j] for i in range(len(word)) for j in range(i + 1, len(word) + 1)})
        score = dict(zip(pieces, np.log(rng.dirichlet(np.ones(len(pieces)))).tolist()))
        joint = np.array([math.exp(sum(map(score.get, cut))) for cut in cuts(word, score)])
        posterior = joint / joint.sum()
        right = -(posterior * np.log2(posterior)).sum()
        p = np.exp([*score.values()])
        best = stage.viterbi(word, score, len(word))[0]
        uses = [sum(cut.count(piece) for cut in cuts(word, score)) for piece in pieces]
        alpha, arcs = stage.forward(word, score, len(word))
        last = np.exp([alpha[i] + log_p - alpha[-1] for i, _, log_p in arcs[-1]])
        mistakes = {
            "that is the surprise of the last piece alone": -(last * np.log2(last)).sum(),
            "P(s|x) is P(s, x) divided by P(x): log P(x) is missing": right
            - math.log2(joint.sum()),
            "this is in nats; bits were asked for": right * math.log(2),
            "that is the entropy of the pieces, not of the cuts of this word": -(
                p * np.log2(p)
            ).sum(),
            "that is how improbable the best cut is; all cuts count": math.log2(joint.sum())
            - best / math.log(2),
            "that is as if all cuts were equally likely": math.log2(len(joint)),
            "each cut counts by its P(s|x), not all of them alike": math.log2(joint.sum())
            - np.dot(uses, [*score.values()]) / len(joint) / math.log(2),
        }
        found = judge.call(answers, "undecided", word, dict(score))
        judge.array(f"undecided({word!r})", found, right, 1e-7, mistakes=mistakes)
    word = b"ab" * 30
    found = judge.call(answers, "undecided", word, {b"a": -1.0, b"b": -1.5, b"ab": -2.5})
    judge.array("undecided(30 times b'ab')", found, 30.0, 1e-7)


@pytest.mark.project
def test_12(answers, tmp_path):
    text = (DATA / "stories.txt").read_text("utf-8")
    n = int(0.9 * len(text))
    path = tmp_path / "tokenizer.json"

    def locked(*args, **kwargs):
        raise ValueError("learn_merges, train and save are locked: this is for you to write")

    parts = (stage, "learn_merges"), (stage.BPETokenizer, "train"), (stage.Tokenizer, "save")
    with contextlib.ExitStack() as stack:
        for owner, name in parts:
            stack.enter_context(mock.patch.object(owner, name, locked))
        judge.call(answers, "write_tokenizer", text[:n], 384, path)
    if not path.is_file():
        judge.wrong("write_tokenizer has written no file to its path")
    theirs = stage.BPETokenizer.train(text[:n], 384)
    try:
        ours = stage.Tokenizer.load(path)
    except ValueError as error:
        judge.wrong(f"the file: {str(error).removeprefix(str(path))[2:]}")
    if ours.model["type"] != "BPE":
        judge.wrong(f"the file holds a {ours.model['type']} model; expected BPE")
    merges = [*ours.merges], [*theirs.merges]
    for k, (found, right) in enumerate(zip(*merges)):
        if found != right:
            judge.wrong(f"merge number {k + 1} is {found}; the stage's is another: ties? counts?")
    if ours.vocab_size != theirs.vocab_size:
        judge.wrong(f"the file has {ours.vocab_size} ids; 384 were asked for, the bytes included")
    awkward = "The fox's 12 cafés, naïve — 🦊\n\n  it said:\t«no»  "
    for told, some in (("the held-out stories", text[n:]), (repr(awkward), awkward)):
        ids = theirs.encode(some)
        if ours.encode(some) != ids:
            judge.wrong(f"the ids of {told} are not the stage's: is the text cut as gpt2 does?")
        if ours.decode(ids) != some:
            judge.wrong(f"{told}: decoding gives another text; is there a decoder?")
    if importlib.util.find_spec("tokenizers") is not None:
        library = importlib.import_module("tokenizers").Tokenizer.from_file(str(path))
        for told, some in (("the held-out stories", text[n:]), (repr(awkward), awkward)):
            if library.encode(some).ids != theirs.encode(some):
                judge.wrong(f"the tokenizers library gives other ids for {told}")
