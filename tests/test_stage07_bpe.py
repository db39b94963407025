"""Stage 7: merges against the definition, splits, round trips, files, EM by enumeration."""

import array
import contextlib
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, check_held_out_line

import stage07_bpe as stage
from stage07_bpe import BPETokenizer, Tokenizer, UnigramTokenizer, WordPieceTokenizer

KINDS = [BPETokenizer, WordPieceTokenizer, UnigramTokenizer]
STORIES = (ROOT / "data" / "stories.txt").read_text(encoding="utf-8")
SMALL = STORIES[:8_000] + " naïve café 狐狸 狐狸 42 1234 it's IT'S"
HARD = [
    "",
    " ",
    "a",
    "\x00\x01\x1c\x1f\x7f\x85 control",
    "e\u0301 a\u0308\u0323 \u0915\u094d\u0937",  # combining marks
    "👩‍👩‍👧 🏳️‍🌈 🦊💤",
    "\ufeff\u200b\u2028\u2029\xa0 \u3000  \n\n \t x",
    "\ufffd\uffff\U0010ffff",
    "½ Ⅷ ٣ 12345 ②",
    "<|end|> and <|end|>",
    "##ing ## # Ġ Ċ",
]


@pytest.fixture(scope="module", params=product(KINDS, ["gpt2", "gpt4", None]), ids=str)
def trained(request):
    kind, pattern = request.param
    text = SMALL if pattern else SMALL[:1500]
    return kind().train(text, 400, pattern, special_tokens=["<|end|>", "<|end|>x"])


def random_texts(rng, n, size=40):
    """Random runs of ASCII, letters from everywhere, marks, numbers, blanks and symbols."""
    pools = [
        "ab's",
        "'LL'Ve'ſ",
        " \t\n\r\x0b\x1c\x85\xa0\u2003\u2028",
        "0१½Ⅷ𝟘",
        "é中я𐍈𠀀",
        "\u0301\u094d",
        "!#…🦊",
    ]
    for _ in range(n):
        yield "".join(
            rng.choice(list(pools[rng.integers(len(pools))])) for _ in range(rng.integers(size))
        )


# ---------------------------------------------------------------- splits


def classes(char):
    category = unicodedata.category(char)
    blank = char in "\t\n\x0b\x0c\r\x85" or category in ("Zs", "Zl", "Zp")
    return "s" if blank else category[0] if category[0] in "LN" else "o"


def split_by_hand(text, pattern):
    """The two patterns as a program over character classes: an independent route."""
    out, i, k = [], 0, [classes(c) for c in text]

    def run(at, wanted, most=None):
        end = at
        while end < len(text) and wanted(end) and (most is None or end - at < most):
            end += 1
        return end

    while i < len(text):
        low = text[i : i + 3] if pattern == "gpt2" else text[i : i + 3].lower().replace("ſ", "s")
        short = next(
            (c for c in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if low.startswith(c)), ""
        )
        space = i + (text[i] == " ")
        if short:
            end = i + len(short)
        elif pattern == "gpt2":
            kind = k[space] if space < len(text) else "s"
            end = run(space, lambda j, kind=kind: k[j] == kind) if kind != "s" else i
        else:
            lead = i + (k[i] not in "LN" and text[i] not in "\r\n")
            end = run(lead, lambda j: k[j] == "L")
            if end == lead:
                end = run(i, lambda j: k[j] == "N", 3)
            if end == i and space < len(text) and k[space] == "o":
                end = run(run(space, lambda j: k[j] == "o"), lambda j: text[j] in "\r\n")
        if end == i:  # blanks
            end = run(i, lambda j: k[j] == "s")
            line_end = max((j + 1 for j in range(i, end) if text[j] in "\r\n"), default=0)
            if pattern == "gpt4" and line_end:
                end = line_end
            elif end < len(text) and end - i > 1:
                end -= 1
        out.append(text[i:end])
        i = end
    return out


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_splits_follow_the_patterns_on_any_text(pattern, rng):
    for text in [*HARD, *random_texts(rng, 400), SMALL[:5000]]:
        assert stage.pretokenize(text, pattern) == split_by_hand(text, pattern), repr(text)


@pytest.mark.parametrize(
    "pattern, text, pieces",
    [
        ("gpt2", "I've 3 dogs!!  ok", ["I", "'ve", " 3", " dogs", "!!", " ", " ok"]),
        ("gpt2", "I'VE 12345", ["I", "'", "VE", " 12345"]),
        ("gpt4", "I'VE 12345", ["I", "'VE", " ", "123", "45"]),
        ("gpt4", "(a)\n\n  b", ["(a", ")\n\n", " ", " b"]),
        ("gpt2", "a\x1c\x1db", ["a", "\x1c\x1d", "b"]),  # no White_Space, whatever re's \s says
        (None, "a b", ["a b"]),
        (None, "", []),
    ],
)
def test_splits_by_example(pattern, text, pieces):
    assert stage.pretokenize(text, pattern) == pieces


def test_alphabet_is_gpt2s():
    assert stage.to_alphabet(b" fox\n") == "ĠfoxĊ" and stage.to_alphabet("é".encode()) == "Ã©"
    every = bytes(range(256))
    assert stage.from_alphabet(stage.to_alphabet(every)) == every
    assert len(set(stage.to_alphabet(every))) == 256 and stage.to_alphabet(every).isprintable()


# ---------------------------------------------------------------- the first page


def test_the_first_pages_numbers():
    merges = [(97, 110), (98, 256), (256, 97)]
    assert stage.textbook_merges("banana bandana", 3) == merges
    ids = list(b"banana bandana")
    counts = Counter(zip(ids, ids[1:]))
    assert counts.pop((97, 110)) == 4 > max(counts.values())
    rows = []
    for new, pair in enumerate(merges, start=256):
        ids = stage.replace_pair(ids, pair, new)
        rows.append([stage.spellings(merges)[i].decode() for i in ids])
    assert rows == [
        ["b", "an", "an", "a", " ", "b", "an", "d", "an", "a"],
        ["ban", "an", "a", " ", "ban", "d", "an", "a"],
        ["ban", "ana", " ", "ban", "d", "ana"],
    ]
    assert stage.textbook_encode("cabana", merges) == [99, 97, 257, 97]
    assert stage.textbook_encode("banana bandana", merges) == ids == [257, 258, 32, 257, 100, 258]
    assert stage.textbook_decode(ids, merges) == "banana bandana"


def test_the_first_page_at_its_corners():
    assert stage.textbook_merges("ab", 9) == [(97, 98)]  # then no pair is left
    assert stage.textbook_merges("", 3) == [] == stage.textbook_encode("", [(97, 97)])
    assert stage.replace_pair([1, 1, 1, 1, 1], (1, 1), 2) == [2, 2, 1]  # from the left
    assert stage.replace_pair([1, 2, 1, 2, 2], (1, 2), 3) == [3, 3, 2]
    assert stage.textbook_decode(list("é".encode())[:1], []) == "\ufffd"
    merges = stage.textbook_merges("é狐 é狐 é", 4)
    for text in ("é狐", "naïve 狐", "🦊"):
        assert stage.textbook_decode(stage.textbook_encode(text, merges), merges) == text


# ---------------------------------------------------------------- BPE


def textbook(pieces, n_merges, score=None):
    """[[word's ids, its count], ...]: merges with their scores, everything recounted each time."""
    pieces = [[list(ids), times] for ids, times in pieces]
    merges = []
    for new in range(256, 256 + n_merges):
        single, pairs = Counter(), Counter()
        for ids, times in pieces:
            for i in ids:
                single[i] += times
            for pair in zip(ids, ids[1:]):
                pairs[pair] += times
        if not pairs:
            break
        if score is None:
            scores = pairs
        else:
            scores = {(a, b): score(pairs[a, b], single[a], single[b]) for a, b in pairs}
        top = max(scores.values())
        pair = min(p for p, value in scores.items() if value == top)
        merges.append((pair, top))
        for row in pieces:
            out = []
            for i in row[0]:
                if out and (out[-1], i) == pair:
                    out[-1] = new
                else:
                    out.append(i)
            row[0] = out
    return merges, [ids for ids, _ in pieces]


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", None])
@pytest.mark.parametrize(
    "text",
    [SMALL[:2000], "a" * 300, "abababaab" * 20, "aaabaaab aab", "x"],
    ids=["stories", "a", "ab", "runs", "x"],
)
def test_merges_and_ids_are_the_textbooks(text, pattern):
    pieces = [(p.encode(), 1) for p in stage.pretokenize(text, pattern)]
    merges, ids = textbook(pieces, 120)
    merges = [pair for pair, _ in merges]
    tokenizer = BPETokenizer().train(text, 376, pattern)
    assert list(tokenizer.merges) == merges
    assert tokenizer.encode(text) == [i for piece in ids for i in piece]
    if pattern is None:
        assert stage.textbook_merges(text, 120) == merges
        assert stage.textbook_encode(text, merges) == tokenizer.encode(text)
        assert stage.textbook_decode(tokenizer.encode(text), merges) == text


def random_words(rng):
    """A few words of few letters, with many ties and many runs such as a a a."""
    letters = list(b"abcd")[: int(rng.integers(1, 5))]
    return {
        bytes(rng.choice(letters, int(rng.integers(1, 10)))): int(rng.integers(1, 5))
        for _ in range(int(rng.integers(1, 6)))
    }


def by_ratio(together, left, right):
    return together / (left * right)


def by_whole_gain(together, left, right):
    return together * (math.log(100 * together / (left * right)) - 1)


def rarest_first(together, left, right):
    return -together


@pytest.mark.parametrize("score", [None, by_ratio, by_whole_gain, rarest_first])
def test_merges_of_any_score_are_the_recounted_ones(score, rng):
    """On words full of ties and of pairs that overlap; the smallest pair of equals goes first."""
    for _ in range(300):
        words = random_words(rng)
        expected, _ = textbook(words.items(), 20, score)
        assert stage.learn_merges(words, 20, score) == expected, words


def test_wordpieces_tokens_are_the_recounted_ones(rng):
    """Often enough: by ratio. Too rare: behind all others, by count."""
    for _ in range(400):
        words = random_words(rng)
        size = int(rng.integers(257, 275))
        symbols = sum(len(word) * times for word, times in words.items())
        enough = max(1, symbols // size)

        def score(n, left, right, enough=enough):
            return (1, n / (left * right)) if n >= enough else (0, n)

        merges, _ = textbook(words.items(), size - 256, score)
        expected = stage.spellings(pair for pair, _ in merges)[256:]
        assert stage.learn_wordpiece(words, size) == expected, words


def test_the_threshold_of_wordpiece_is_the_mean_count_of_a_token():
    words = {b"ab": 3, b"cd" * 150: 1, b"xy": 1}  # 308 symbols, so 308 // 258 = 1: all count
    assert stage.learn_wordpiece(words, 258)[0] == b"xy"
    words[b"cd" * 150] = 3  # 908 // 258 = 3 times: x y is too rare
    assert stage.learn_wordpiece(words, 258)[0] == b"ab"
    words[b"ab"] = 2
    assert stage.learn_wordpiece(words, 258)[0] == b"cd"


def test_overlapping_pairs_train_in_every_kind(rng):
    assert WordPieceTokenizer.train("aaa aa", 300).decode([256]) in ("aa", " a", "aaa")
    for _ in range(60):
        text = " ".join("".join(rng.choice(list("ab"), rng.integers(1, 9))) for _ in range(5))
        for kind in KINDS:
            tokenizer = kind.train(text, int(rng.integers(256, 300)))
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_gain_of_a_merge_to_first_order():
    """The log-likelihood before and after, against n·(log ratio − 1): the rest goes with n²/c."""
    left, right, total = 40_000, 30_000, 1_000_000

    def f(x):
        return x * math.log(x)

    for n in (10, 100, 1000):
        before = f(left) + f(right) - f(total)
        after = f(left - n) + f(right - n) + f(n) - f(total - n)
        formula = n * (math.log(total * n / (left * right)) - 1)
        assert abs(after - before - formula) < n**2 / left + n**2 / right


def by_rank(symbols, ranks):
    """The rule by its definition: the lowest rank, of equals the leftmost, searched each time."""
    symbols = list(symbols)
    while known := [
        (ranks[p][0], i) for i, p in enumerate(zip(symbols, symbols[1:])) if p in ranks
    ]:
        i = min(known)[1]
        symbols[i : i + 2] = [ranks[symbols[i], symbols[i + 1]][1]]
    return symbols


def ranked(*merges):
    return {pair: (rank, pair[0] + pair[1]) for rank, pair in enumerate(merges)}


def test_parts_that_rank_behind_the_whole():
    ranks = ranked(("abc", "a"), ("ab", "c"), ("a", "b"))
    assert stage.merge_symbols("abcab", ranks) == ["abca", "b"]
    assert stage.merge_symbols("abab", ranks) == ["ab", "ab"]
    merges = [(257, 97), (258, 99), (97, 98)]  # the first page, with ab = 258 and abc = 257
    ids = list(b"abcab")
    for new, pair in zip((259, 257, 258), merges):
        ids = stage.replace_pair(ids, pair, new)
    assert ids == [258, 99, 258]


def test_merging_follows_the_ranks_whatever_their_order(rng):
    for _ in range(800):
        tokens = list("abc")
        merges = []
        for _ in range(int(rng.integers(1, 12))):
            a, b = (tokens[i] for i in rng.integers(0, len(tokens), 2))
            if len(a + b) < 8 and (a, b) not in merges:
                merges.append((a, b))
                tokens.append(a + b)
        ranks = ranked(*[merges[i] for i in rng.permutation(len(merges))])
        text = "".join(rng.choice(list("abc"), rng.integers(0, 20)))
        assert stage.merge_symbols(text, ranks) == by_rank(text, ranks), (ranks, text)


def test_symbols_of_any_kind_merge():
    assert stage.merge_symbols([None, -1, (1,)], {(None, -1): (5, 0.5)}) == [0.5, (1,)]
    assert stage.merge_symbols([], {}) == [] and stage.merge_symbols("a", {}) == ["a"]
    original = ["a", "b"]
    stage.merge_symbols(original, ranked(("a", "b")))
    assert original == ["a", "b"]


def chances(symbols, ranks, p):
    """{spelling: its probability} of BPE-dropout, from all ways in which merges are left out."""
    symbols = tuple(symbols)
    known = sorted((ranks[q][0], i) for i, q in enumerate(zip(symbols, symbols[1:])) if q in ranks)
    out = Counter({symbols: p ** len(known)})
    for n, (_, i) in enumerate(known):  # those before it are left out, this one is made
        merged = (*symbols[:i], ranks[symbols[i : i + 2]][1], *symbols[i + 2 :])
        for spelling, chance in chances(merged, ranks, p).items():
            out[spelling] += p**n * (1 - p) * chance
    return out


@pytest.mark.parametrize("p", [0.2, 0.6])
def test_dropout_spells_with_the_right_probabilities(p, rng):
    ranks = ranked(("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("abc", "a"))
    n = 3000
    seen = Counter(tuple(stage.merge_symbols("abcab", ranks, p, rng)) for _ in range(n))
    expected = chances("abcab", ranks, p)
    assert sum(expected.values()) == pytest.approx(1) and set(seen) <= set(expected)
    for spelling, chance in expected.items():
        assert abs(seen[spelling] / n - chance) < 5 * math.sqrt(chance / n)
    assert stage.merge_symbols("abcab", ranks, 1.0, rng) == list("abcab")
    assert stage.merge_symbols("abcab", ranks, 0.0, rng) == by_rank("abcab", ranks)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="dropout .*: expected 0 to 1, and a Generator"):
            stage.merge_symbols("ab", ranks, wrong, rng)
    with pytest.raises(ValueError, match="dropout 0.5, rng None"):
        stage.merge_symbols("ab", ranks, 0.5)


def test_encoding_applies_merges_by_rank_also_where_training_never_went(rng):
    tokenizer = BPETokenizer().train(SMALL, 500)
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges)}
    for _ in range(300):
        word = bytes(rng.choice(list(b"the and"), rng.integers(1, 30)))
        ids = list(word)
        while known := [(ranks[p], i) for i, p in enumerate(zip(ids, ids[1:])) if p in ranks]:
            i = min(known)[1]
            ids[i : i + 2] = [tokenizer.merges[ids[i], ids[i + 1]]]
        assert tokenizer.encode_piece(word.decode()) == ids


def test_no_two_tokens_are_the_same_bytes():
    for kind in KINDS:
        vocab = kind().train(SMALL, 1200).vocab
        assert len(set(vocab.values())) == len(vocab) and sorted(vocab) == list(range(len(vocab)))


def test_an_iterable_is_documents_and_size_is_a_bound():
    documents = ["the fox", "the fo", "x the"]
    tokenizer = BPETokenizer().train(iter(documents), 2000, None)
    assert tokenizer.merges == BPETokenizer().train(tuple(documents), 2000, None).merges
    assert tokenizer.vocab_size < 300  # every pair is used up
    assert len(tokenizer.encode("the fox")) == 1
    assert len(tokenizer.encode("foxx")) > 1  # no merge across documents


@pytest.mark.parametrize("pattern", ["gpt2", None])
def test_one_repeated_letter_takes_no_quadratic_time(pattern):
    """Four times the letters must not take sixteen times as long."""
    seconds = []
    for n in (15_000, 60_000):
        start = time.process_time()
        tokenizer = BPETokenizer().train("a" * n, 4096, pattern)
        assert tokenizer.decode(tokenizer.encode("a" * n)) == "a" * n
        seconds.append(time.process_time() - start)
    assert seconds[1] < 10 * seconds[0] + 0.2


# ---------------------------------------------------------------- the face


def test_any_text_round_trips(trained, rng):
    for text in [*HARD, *random_texts(rng, 60), SMALL]:
        ids = trained.encode(text)
        assert trained.decode(ids) == text and trained.decode_bytes(ids) == text.encode()
        assert all(type(i) is int and 0 <= i < trained.vocab_size for i in ids)
        everything = trained.encode(text, allowed_special="all")
        assert trained.decode(np.array(everything, dtype=np.int64)) == text


def test_files_carry_everything(trained, tmp_path, rng):
    trained.save(tmp_path / "a" / "b")
    for loaded in (type(trained).load(tmp_path / "a" / "b"), Tokenizer.load(tmp_path / "a" / "b")):
        assert loaded.vocab == trained.vocab and loaded.special_tokens == trained.special_tokens
        for text in [*HARD, *random_texts(rng, 30), SMALL]:
            assert loaded.encode(text) == trained.encode(text)
            assert loaded.encode(text, "all") == trained.encode(text, "all")
    assert not list((tmp_path / "a" / "b").glob(".*"))


def test_a_file_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    BPETokenizer.train(SMALL, 300).save(tmp_path)
    tokenizer, seen = BPETokenizer(), []  # small enough to stay in Python's buffer unless flushed
    old = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    new = json.dumps(tokenizer.parts, ensure_ascii=False, indent=1)

    def fsync(number):
        seen.append((os.fstat(number).st_size, (tmp_path / "tokenizer.json").read_text("utf-8")))

    monkeypatch.setattr(os, "fsync", fsync)
    tokenizer.save(tmp_path)
    assert seen == [(len(new.encode()), old)]
    assert (tmp_path / "tokenizer.json").read_text(encoding="utf-8") == new


def test_special_tokens_are_plain_text_unless_allowed(trained):
    end, longer = trained.special_tokens["<|end|>"], trained.special_tokens["<|end|>x"]
    text = "a<|end|>b<|end|>xx"
    assert {end, longer} == {trained.vocab_size - 2, trained.vocab_size - 1}
    assert not {end, longer} & set(trained.encode(text))
    assert [i for i in trained.encode(text, "all") if i >= end] == [end, longer]
    assert [i for i in trained.encode(text, {"<|end|>"}) if i >= end] == [end, end]
    assert trained.encode(text, set()) == trained.encode(text)


def test_training_is_a_class_method_and_starts_afresh():
    tokenizer = BPETokenizer.train(SMALL, 300, special_tokens=["<|a|>"])
    again = tokenizer.train("xyxy", 257)
    assert again.vocab == BPETokenizer.train("xyxy", 257).vocab and tokenizer.vocab_size == 300
    assert again.special_tokens == {} and again.encode("xy") == [256]


def test_specials_are_cut_out_of_the_training_text():
    tokenizer = BPETokenizer().train("<|end|>ab<|end|>" * 50, 300, None, ["<|end|>"])
    assert [tokenizer.vocab[i] for i in tokenizer.merges.values()] == [b"ab"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: t.train(SMALL, 255), "vocab_size 255: expected an integer of at least 256"),
        (lambda t: t.train(SMALL, 256, special_tokens=["<|e|>"]), "at least 257"),
        (lambda t: t.train(SMALL, 300.5), "vocab_size 300.5"),
        (lambda t: t.train(SMALL, 300, "gpt3"), "pattern 'gpt3': expected one of"),
        (lambda t: t.train(SMALL, 300, None, ["x", "x"]), "distinct non-empty"),
        (lambda t: t.train(SMALL, 300, None, [""]), "distinct non-empty"),
        (lambda t: t.train("a b", 300, None, ["a"]), "expected texts that are no tokens"),
        (lambda t: t.train(b"bytes", 300), "text is bytes"),
        (lambda t: t.train(["a", 7], 300), "int: expected str"),
        (lambda t: t.train(None, 300), "NoneType"),
        (lambda t: t.train("ok \udc80", 300), r"U\+DC80 at position 3"),
        (lambda t: t.encode("a\ud83db"), r"lone surrogate U\+D83D at position 1: expected"),
        (lambda t: t.encode(b"a"), "is bytes: expected str"),
        (lambda t: t.encode("a", "some"), "allowed_special 'some': expected"),
        (lambda t: t.encode("a", {"<|x|>"}), "allowed_special"),
        (lambda t: t.decode([256]), "256: expected integers 0..255"),
        (lambda t: t.decode([-1]), "-1"),
        (lambda t: t.decode("ab"), "'a'"),
        (lambda t: t.decode(3), "not iterable"),
        (lambda t: t.load("/no/such/place"), "/no/such/place"),
    ],
)
def test_bad_input_is_refused_by_name(kind, call, message):
    with pytest.raises(ValueError, match=message):
        call(kind())


def test_half_a_character_decodes_to_the_replacement():
    fresh = BPETokenizer()
    ids = fresh.encode("é!")
    assert fresh.decode(ids[:1]) == "\ufffd" and fresh.decode_bytes(ids[:1]) == b"\xc3"
    assert fresh.decode(ids[1:]) == "\ufffd!" and fresh.decode([]) == ""


# ---------------------------------------------------------------- files


def test_gpt2s_two_files_open(tmp_path):
    """Ids in another order, a special no merge makes, CRLF, a merge of # #: as the files come."""
    letters = [stage.to_alphabet(bytes([b])) for b in range(256)][::-1]
    tokens = [*letters, "Ġt", "he", "Ġthe", "##", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_bytes(
        "#version: 0.2\r\nĠ t\r\nh e\r\nĠt he\r\n# #\r\n".encode()
    )
    tokenizer = BPETokenizer.load(tmp_path)
    assert tokenizer.encode(" the##<|endoftext|>", "all") == [258, 259, 260]
    assert tokenizer.special_tokens == {"<|endoftext|>": 260}
    assert tokenizer.decode(tokenizer.encode("été <|endoftext|>")) == "été <|endoftext|>"
    tokenizer.save(tmp_path / "again")
    loaded = BPETokenizer.load(tmp_path / "again")
    assert loaded.parts == tokenizer.parts and loaded.vocab == tokenizer.vocab
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda parts: parts["model"].update(type="Other"),
        lambda parts: parts.update(normalizer={"type": "Precompiled"}),
        lambda parts: parts.update(pre_tokenizer={"type": "Whitespace"}),
        lambda parts: parts.pop("model"),
        lambda parts: parts["model"].pop("vocab"),
        lambda parts: parts.update(pre_tokenizer={"type": "ByteLevel", "use_regex": "no"}),
    ],
)
def test_files_that_do_not_fit_are_refused(kind, damage, tmp_path):
    kind().save(tmp_path)
    parts = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    damage(parts)
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    tokenizer = kind().train("keep this", 260)
    before = tokenizer.vocab
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        tokenizer.load(tmp_path)
    assert tokenizer.vocab == before  # a failed load changes nothing


# ---------------------------------------------------------------- WordPiece, characters


def test_wordpiece_prefers_the_inseparable_pair():
    words = {b"hug": 10, b"pug": 5, b"pun": 12, b"bun": 4, b"hugs": 5}
    (pair, score), *_ = stage.learn_merges(words, 1, by_ratio)
    assert bytes(pair) == b"gs" and score == 5 / (20 * 5)
    assert bytes(stage.learn_merges(words, 1)[0][0]) == b"ug"  # the commonest, as BPE


def test_pieces_that_continue_a_word():
    pieces = {"un", "tie", "##tie", "##ti", "##d"}
    assert stage.longest_match("untied", pieces, 5, "##") == ["un", "##tie", "##d"]
    assert stage.longest_match("united", pieces, 5, "##") is None
    assert stage.longest_match("tied", pieces, 5, "##") == ["tie", "##d"]
    assert stage.longest_match("tied", pieces, 5) is None  # without ##, "d" is no piece
    assert stage.longest_match("untied", pieces, 2, "##") is None  # ##ti, and then no ##e
    assert stage.longest_match(b"", {b"a"}, 1) == []
    assert stage.longest_match(b"aab", {b"a", b"aa", b"b"}, 1) == [b"a", b"a", b"b"]
    assert stage.longest_match(b"aab", {b"a", b"aa", b"b"}, 2) == [b"aa", b"b"]
    assert stage.longest_match(b"aab", {b"a", b"aa", b"b"}, 99) == [b"aa", b"b"]


def test_longest_match_is_greedy():
    tokenizer = WordPieceTokenizer()
    tokenizer.parts["model"]["vocab"] |= {"ab": 256, "abc": 257, "cde": 258}
    tokenizer = WordPieceTokenizer(tokenizer.parts)
    assert tokenizer.encode("abcde") == [257, ord("d"), ord("e")]


# ---------------------------------------------------------------- Unigram


def cuts(word):
    for r in range(len(word)):
        for places in combinations(range(1, len(word)), r):
            ends = [0, *places, len(word)]
            yield tuple(word[i:j] for i, j in zip(ends, ends[1:]))


def expected_counts(words, score, longest):
    """({piece: expected uses}, log-likelihood) by the arrays of all words."""
    arcs = stage.Lattice(words, {piece: k for k, piece in enumerate(score)}, longest)
    log_p, times = np.array([*score.values()]), np.array([*words.values()], float)
    counts = arcs.expected_counts(log_p, times)
    return dict(zip(score, counts)), float(times @ arcs.forward(log_p)[arcs.last])


def counts_by_loops(words, score, longest):
    """The same, word by word and arc by arc: γ from the end, as the text has it."""
    counts, log_likelihood = dict.fromkeys(score, 0.0), 0.0
    for word, times in words.items():
        alpha, arcs = stage.forward(word, score, longest)
        log_likelihood += times * alpha[-1]
        gamma = [0.0] * len(word) + [1.0]
        for j in range(len(word), 0, -1):
            for i, piece, log_p in arcs[j]:
                share = gamma[j] * math.exp(alpha[i] + log_p - alpha[j])
                counts[piece] += times * share
                gamma[i] += share
    return counts, log_likelihood


@pytest.fixture
def lattice(rng):
    """A word, random log-probabilities for about half of its substrings, and log P of every cut."""
    word = b"abcabca"
    pieces = {word[i:j] for i in range(7) for j in range(i + 1, 8)}
    score = {
        p: math.log(rng.uniform(0.01, 1))
        for p in sorted(pieces)
        if len(p) == 1 or rng.random() < 0.6
    }
    return (
        word,
        score,
        {c: sum(score[p] for p in c) for c in cuts(word) if all(p in score for p in c)},
    )


def test_forward_expected_counts_and_viterbi_by_enumeration(lattice):
    word, score, every = lattice
    total = math.log(sum(math.exp(s) for s in every.values()))
    assert stage.forward(word, score, 7)[0][-1] == pytest.approx(total, abs=1e-12)
    counts, log_likelihood = expected_counts({word: 3}, score, 7)
    assert log_likelihood == pytest.approx(3 * total)
    for piece in score:
        uses = sum(math.exp(s - total) * c.count(piece) for c, s in every.items())
        assert counts[piece] == pytest.approx(3 * uses, abs=1e-12)
    best = max(every, key=every.get)
    assert stage.viterbi(word, score, 7) == (pytest.approx(every[best]), list(best))


def test_expected_counts_are_the_gradient_of_log_p(lattice):
    word, score, _ = lattice
    counts, _ = expected_counts({word: 1}, score, 7)
    for piece in score:
        up, down = ({**score, piece: score[piece] + h} for h in (1e-6, -1e-6))
        slope = stage.forward(word, up, 7)[0][-1] - stage.forward(word, down, 7)[0][-1]
        assert counts[piece] == pytest.approx(slope / 2e-6, abs=1e-8)


def test_em_never_lowers_the_likelihood(lattice):
    words = {b"abcab": 4, b"bcabc": 2, b"aab": 7, b"ca": 5}
    norm = math.log(sum(map(math.exp, lattice[1].values())))
    score, previous = {p: log_p - norm for p, log_p in lattice[1].items()}, -math.inf
    for _ in range(15):
        counts, log_likelihood = expected_counts(words, score, 7)
        assert log_likelihood >= previous - 1e-9
        previous, norm = log_likelihood, sum(counts.values())
        score = {piece: math.log(max(n, 1e-300) / norm) for piece, n in counts.items()}
    assert previous < 0


def test_one_step_of_em_by_hand():
    score = {b"a": math.log(1 / 4), b"b": math.log(1 / 4), b"ab": math.log(1 / 2)}
    counts, log_likelihood = expected_counts({b"ab": 1}, score, 2)
    assert log_likelihood == pytest.approx(math.log(9 / 16))
    assert counts == pytest.approx({b"a": 1 / 9, b"b": 1 / 9, b"ab": 8 / 9})
    total = sum(counts.values())
    score = {piece: math.log(n / total) for piece, n in counts.items()}
    assert math.exp(score[b"ab"]) == pytest.approx(0.8)
    assert expected_counts({b"ab": 1}, score, 2)[1] == pytest.approx(math.log(0.81))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_samples_have_the_probability_of_the_cut(lattice, temperature, rng):
    word, score, every = lattice
    n = 1500
    cuts = [stage.sample_cut(word, score, 7, temperature, rng) for _ in range(n)]
    seen = Counter(map(tuple, cuts))
    weight = {c: math.exp(s / temperature) for c, s in every.items()}
    for cut, w in weight.items():
        p = w / sum(weight.values())
        assert abs(seen[cut] / n - p) < 5 * math.sqrt(p * (1 - p) / n) + 1e-9
    assert set(seen) <= set(every)


def test_a_cold_sample_is_the_best_cut(lattice, rng):
    word, score, _ = lattice
    assert stage.sample_cut(word, score, 7, 1e-4, rng) == stage.viterbi(word, score, 7)[1]
    assert stage.sample_cut(b"", score, 7, 1.0, rng) == []
    text = {piece.decode(): log_p for piece, log_p in score.items()}
    assert "".join(stage.sample_cut("abcab", text, 7, 9.0, rng)) == "abcab"
    with pytest.raises(ValueError, match="'axb': expected pieces that can write it"):
        stage.sample_cut("axb", text, 7, 1.0, rng)


def test_of_equal_cuts_the_last_piece_is_longest():
    score = {b"a": -1.0, b"aa": -2.0, b"aaa": -3.0}
    assert stage.viterbi(b"aaaa", score, 3) == (-4.0, [b"a", b"aaa"])
    assert stage.viterbi(b"aaaa", score, 2) == (-4.0, [b"aa", b"aa"])


def test_the_arrays_of_all_words_are_the_loops_of_each(lattice):
    word, score, _ = lattice
    number = {piece: k for k, piece in enumerate(score)}
    log_p = np.array([*score.values()])
    words = {word: 3, b"a": 2, b"bca": 1, b"cc": 4, word[::-1]: 5}
    arcs = stage.Lattice(words, number, 7)
    alpha = arcs.forward(log_p)
    best = arcs.forward(log_p, best=True)
    last = -1
    for at, w in zip(arcs.last, words):
        assert at - last == len(w) + 1  # n + 1 boundaries
        last = at
        expected, _ = stage.forward(w, score, 7)
        assert alpha[at - len(w) : at + 1] == pytest.approx(expected, abs=1e-12)
        assert best[at] == pytest.approx(stage.viterbi(w, score, 7)[0], abs=1e-12)
    counts = arcs.expected_counts(log_p, np.array([*words.values()], float))
    expected, log_likelihood = counts_by_loops(words, score, 7)
    assert log_likelihood == pytest.approx(
        sum(n * alpha[at] for n, at in zip(words.values(), arcs.last))
    )
    assert dict(zip(score, counts)) == pytest.approx(expected, abs=1e-12)


def test_arcs_may_be_short_and_leave_out_the_whole_word():
    number = {b"a": 0, b"b": 1, b"ab": 2, b"aba": 3}
    log_p = np.log([0.3, 0.2, 0.4, 0.1])
    arcs = stage.Lattice([b"aba", b"ab"], number, 3, whole=False)
    best = arcs.forward(log_p, best=True)[arcs.last]
    assert np.exp(best) == pytest.approx([0.4 * 0.3, 0.3 * 0.2])
    short = stage.Lattice([b"aba"], number, 1)
    assert np.exp(short.forward(log_p)[short.last]) == pytest.approx([0.3 * 0.2 * 0.3])
    dead = np.array([math.log(0.3), math.log(0.2), -math.inf, -math.inf])
    whole = stage.Lattice([b"aba"], number, 3)
    assert np.exp(whole.forward(dead)[whole.last]) == pytest.approx([0.3 * 0.2 * 0.3])
    assert whole.expected_counts(dead, np.array([2.0])) == pytest.approx([4, 2, 0, 0])
    none = stage.Lattice([], number, 3)
    assert none.forward(log_p).size == 0 and not none.expected_counts(log_p, []).any()


def slow_unigram(words, size):
    """learn_unigram with the loops of the lesson."""
    substrings = Counter()
    for word, times in words.items():
        for i, j in combinations(range(len(word) + 1), 2):
            if j - i <= 16:
                substrings[word[i:j]] += times
    counts = Counter({bytes([byte]): substrings[bytes([byte])] for byte in range(256)})
    seeds = [t for t, n in substrings.items() if n > 1 and len(t) > 1]
    for t in sorted(seeds, key=lambda t: (-substrings[t] * len(t), t))[: 4 * size]:
        counts[t] = substrings[t]
    while True:
        for _ in range(2):
            total = sum(max(n, 0.01) for n in counts.values())
            score = {t: math.log(max(n, 0.01) / total) for t, n in counts.items()}
            counts, _ = counts_by_loops(words, score, 16)
        if len(score) <= size:
            return score
        loss = {}
        for t in score:
            if len(t) > 1:
                without = {u: p for u, p in score.items() if u != t}
                loss[t] = counts[t] * (score[t] - stage.viterbi(t, without, 16)[0])
        keep = max(size, len(score) * 3 // 4)
        for t in sorted(loss, key=loss.get)[: len(score) - keep]:
            del counts[t]


@pytest.mark.parametrize("size", [256, 290])
def test_unigram_learns_what_the_loops_learn(size, rng):
    words = {}
    for n in range(20):
        letters = list(b" abcdefg")
        words[bytes(rng.choice(letters, int(rng.integers(1, 9)))) + b"ing" * (n % 3)] = 1 + n % 7
    words[b"h" * 30] = 2  # longer than any piece
    expected = slow_unigram(words, size)
    learned = stage.learn_unigram(words, size)
    assert learned == pytest.approx(expected) and len(learned) == size
    rest = list(learned)[256:]
    assert list(learned)[:256] == [bytes([byte]) for byte in range(256)]
    assert rest == sorted(rest, key=learned.get, reverse=True) and max(map(len, learned)) <= 16


def test_unigram_of_little_and_of_long_text():
    assert set(map(round, stage.learn_unigram({}, 256).values())) == {-6}  # log 1/256 = −5.5
    assert len(stage.learn_unigram({b"ab": 1}, 300)) == 256  # nothing is there twice
    assert len(stage.learn_unigram({b"ab": 2}, 300)) == 257
    assert len(stage.learn_unigram({b"ab": 1, b"xab": 1}, 300)) == 257
    assert len(stage.learn_unigram({b"abc": np.uint8(200)}, 300)) == 259
    long = {b"ab" * 300: 1}  # three chunks of at most 256 bytes
    assert max(stage.learn_unigram(long, 260), key=len) == b"ab" * 8
    for call in (stage.learn_unigram, stage.learn_wordpiece):
        with pytest.raises(ValueError, match="size 255: expected an integer of at least 256"):
            call({b"ab": 1}, 255)


def test_unigram_trains_to_size_and_to_a_distribution(rng):
    tokenizer = UnigramTokenizer().train(SMALL, 500)
    assert tokenizer.vocab_size == 500
    assert sum(map(math.exp, tokenizer.score.values())) == pytest.approx(1, abs=1e-6)
    assert tokenizer.decode(tokenizer.sample(SMALL[:500], rng, 2.0)) == SMALL[:500]
    with pytest.raises(ValueError, match="temperature 0: expected a positive"):
        tokenizer.sample("a", rng, 0)


# ---------------------------------------------------------------- the yardstick


def test_kneser_ney_sums_to_one():
    train = [0, 1, 2, 0, 1, 3, 0, 1, 2, 2, 4, 0]
    for context in ([0, 1], [2, 0], [4, 4], [1, 3]):
        for order in (1, 2, 3):
            p = [math.exp(-stage.kneser_ney_nats(train + context, [w], 6, order)) for w in range(6)]
            assert sum(p) == pytest.approx(1, abs=1e-12) and min(p) > 0


def test_kneser_ney_by_hand():
    """One context: D = 2/5, P(0) = (2 − D + 2·D/4)/3. Two: D₂ = 2/7 and D₁ = 4/5, so P(w) = 1/3."""
    assert stage.kneser_ney_nats([0, 0, 1], [0], 4, 1) == pytest.approx(-math.log(0.6))
    nats = stage.kneser_ney_nats([0, 1, 0, 1, 0, 2], [0, 1], 3, 2)  # nothing followed the 2
    assert nats == pytest.approx(-math.log(1 / 3) - math.log((2 - 2 / 7 + 2 / 7 * 2 / 3) / 3))


def test_kneser_ney_adds_up_token_by_token():
    train, test = list(b"the fox and the hen and the fox"), list(b"the hen")
    whole = stage.kneser_ney_nats(train, test, 256, 3)
    assert 0 < whole < len(test) * math.log(256)
    assert stage.kneser_ney_nats(train, [], 256, 3) == 0


def test_compare_measures():
    tokenizers = {kind.__name__: kind().train(SMALL, 400) for kind in KINDS}
    rows = stage.compare(tokenizers, "the fox, é")
    assert list(rows) == list(tokenizers) and all(row["round_trip"] for row in rows.values())
    row = stage.compare([BPETokenizer()], "the fox, é")[0]
    assert row["tokens"] == 11 and row["chars_per_token"] == 10 / 11 and row["vocab_size"] == 256
    assert row["bytes_per_token"] == 1 and row["tokens_per_word"] == 11 / 3
    assert stage.compare((BPETokenizer(),), " ")[0]["tokens_per_word"] == 1  # of no word at all
    assert stage.compare(list(tokenizers.values()), "the fox, é")[0] == rows["BPETokenizer"]
    with pytest.raises(ValueError, match="empty"):
        stage.compare(tokenizers, "")
    erasing = BPETokenizer()
    erasing.encode = lambda text: []  # as one whose normalizer deletes what it is given
    with pytest.raises(ValueError, match="tokenizer 'eraser' leaves nothing of text 'a' to"):
        stage.compare({"eraser": erasing}, "a")


# ---------------------------------------------------------------- the command


def fast_report(*flags):
    """What is printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert not stage.main(["--fast", *flags])
    return out.getvalue()


@pytest.fixture(scope="module")
def printed():
    return fast_report()


def test_report_is_complete(printed):
    out = printed
    assert 1 < check_held_out_line(out) < 4
    lines = out.splitlines()
    assert lines[-1].startswith("held-out:")
    titles = [int(line[0]) for line in lines if re.match(r"\d\. ", line)]
    assert titles == [1, 2, 3, 4, 5]
    first = stage.learn_merges(stage.count_words(STORIES[:21_600]), 20)
    found = re.findall(r"(2\d\d) \S+ +(\d+)", "\n".join(lines[2:6]))
    expected = [(str(256 + n), str(times)) for n, (_, times) in enumerate(first)]
    assert found == expected  # they run across
    assert all(len(line) <= 100 for line in lines[:-1])
    for title, kind in (
        ("BPE, dropout 0.5", BPETokenizer),
        ("Unigram, temperature 9.0", UnigramTokenizer),
    ):
        pieces = {*kind.train(STORIES[:19_440], 512).ids}
        cuts = re.search(rf"^   {title}   (.*)$", out, re.M)[1].split("   ")
        assert len(cuts) == 3 and {cut.replace("|", "") for cut in cuts} == {"·gardening"}
        found = {piece.replace("·", " ").encode() for cut in cuts for piece in cut.split("|")}
        assert found <= pieces


def test_the_seed_changes_what_is_random_and_nothing_else(printed):
    lines = zip(printed.splitlines(), fast_report("--seed", "1").splitlines())
    different = {a.strip().split("   ")[0] for a, b in lines if a != b}
    assert "BPE, dropout 0.5" in different
    assert different <= {"Unigram, temperature 9.0", "BPE, dropout 0.5"}


def table(out):
    """{tokenizer: bits per character} of the report's second part."""
    part = out.split("\n2. ")[1].split("\n3. ")[0]
    rows = re.findall(r"^   (\S+(?: \d+)?) .* (\d\.\d\d\d)$", part, re.M)
    return {name: float(bits) for name, bits in rows}


def test_the_choice_is_made_on_the_development_piece(printed, monkeypatch):
    """Another held-out text changes nothing but the last line, the winner's score on it.

    (And so two runs with the same seed print the same.)"""
    out = printed
    text = STORIES[:24_000]
    learn_on, develop = text[:19_440], text[19_440:21_600]
    bits = table(out)
    assert [*bits] == ["characters", "BPE 320", "BPE 512", "WordPiece 512", "Unigram 512"]
    assert min(bits, key=bits.get) == "BPE 512"
    for name, kind in (("BPE 512", BPETokenizer), ("Unigram 512", UnigramTokenizer)):
        tokenizer = kind.train(learn_on, 512)
        ids = [tokenizer.encode(piece) for piece in (learn_on, develop)]
        nats = stage.kneser_ney_nats(*ids, 512, 3)
        assert bits[name] == pytest.approx(nats / 2160 / math.log(2), abs=6e-4)
    lead = sorted(bits.values())[1] - bits["BPE 512"]
    said = re.search(r"Fewest bits: BPE 512, by (\S+)\. Only", out)
    assert float(said[1]) == pytest.approx(lead, abs=2e-3)

    other = text[:21_600] + text[5_000:7_400]
    monkeypatch.setattr(Path, "read_text", lambda *_: other)
    head, last = fast_report().rstrip("\n").rsplit("\n", 1)
    assert head == out.rstrip("\n").rsplit("\n", 1)[0]
    tokenizer = BPETokenizer.train(other[:21_600], 512)
    ids = [tokenizer.encode(piece) for piece in (other[:21_600], other[21_600:])]
    nat = stage.kneser_ney_nats(*ids, 512, 3) / 2400
    assert last.startswith(f"held-out: {nat:.3f} nats/char") and last.endswith("over BPE 512)")


def test_the_reports_tables_of_rows_ranks_and_languages(printed):
    out = printed
    learn_on, train, develop = STORIES[:19_440], STORIES[:21_600], STORIES[19_440:21_600]
    tokenizer = BPETokenizer.train(learn_on, 512)
    counts = Counter(tokenizer.encode(learn_on))
    rare = 1 - sum(n >= 10 for n in counts.values()) / 512
    n = len(tokenizer.encode(develop))
    row = re.search(r"^   BPE 512 +(.*)$", out.split("\n2. ")[1], re.M)[1].split()
    per_word = n / len(develop.split())
    expected = [f"{2160 / n:.2f}", f"{per_word:.2f}", "65,536", f"{rare:.0%}"]
    assert row[:-1] == [*expected, f"{(n / 2160) ** 2:.1%}"]

    words = sorted(Counter(train.split()).values(), reverse=True)
    ranks = [1, 3, 10, 30, 100, 300, 1000]
    shares = [100 * rank * words[rank - 1] / len(train.split()) for rank in ranks]
    row = re.search(r"^   words +(.*)$", out.split("\n4. ")[1], re.M)[1]
    assert row.split() == [f"{share:.1f}" for share in shares]

    part = out.split("\n5. ")[1]
    english = len(tokenizer.encode(stage.SAMPLES["English"]))
    for language, text in stage.SAMPLES.items():
        n = len(tokenizer.encode(text))
        found = re.search(rf"^   {language} +(.*)$", part, re.M)[1].split()
        sizes = [str(len(text)), str(len(text.encode())), str(n)]
        assert found == [*sizes, f"{n / len(text):.2f}", f"{n / english:.1f}"]


def test_what_the_file_says_about_text():
    """Normalisation, ▁ and bytes, as the comments have them."""
    one, two = "\u00e9", "e\u0301"
    assert one.encode() == b"\xc3\xa9" and two.encode() == b"e\xcc\x81"
    assert unicodedata.normalize("NFC", two) == one and unicodedata.normalize("NFD", one) == two
    kept, lost = "x² ½ ﬁ", "x2 1⁄2 fi"
    assert unicodedata.normalize("NFC", kept) == kept
    assert unicodedata.normalize("NFKC", kept) == lost
    for tokenizer in (BPETokenizer(), UnigramTokenizer()):
        assert tokenizer.decode(tokenizer.encode(kept + two)) == kept + two
    assert "▁" == "\u2581" and "🦊".encode() == b"\xf0\x9f\xa6\x8a"
    for text in stage.SAMPLES.values():
        assert unicodedata.normalize("NFC", text) == text


def test_the_shipped_tokenizer_is_what_the_command_in_data_readme_learns(tmp_path, monkeypatch):
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    command = re.findall(r"^    python stage07_bpe\.py (train .+)$", readme, re.M)
    arguments = shlex.split(command[0])
    assert len(command) == 1 and arguments[arguments.index("--out") + 1] == "data/tokenizer"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "stories.txt").write_text(STORIES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    stage.main(arguments)
    learned = {path.name: path.read_bytes() for path in Path("data/tokenizer").iterdir()}
    shipped = {path.name: path.read_bytes() for path in (ROOT / "data" / "tokenizer").iterdir()}
    assert list(learned) == ["tokenizer.json"]
    assert learned == {name: data.replace(b"\r\n", b"\n") for name, data in shipped.items()}

    tokenizer = BPETokenizer.load("data/tokenizer")
    n = int(0.9 * len(STORIES))  # the capstone holds out the rest
    same = BPETokenizer.train(STORIES[:n], tokenizer.vocab_size, "gpt2", ["<|endoftext|>"])
    assert tokenizer.vocab == same.vocab and tokenizer.merges == same.merges
    assert tokenizer.special_tokens == {"<|endoftext|>": tokenizer.vocab_size - 1}
    assert tokenizer.vocab_size == int(arguments[arguments.index("--vocab-size") + 1])


def train_files(directory, text, *flags):
    """{name: bytes} of what the command learns from a text, with line ends as they are."""
    directory.mkdir(exist_ok=True)
    (directory / "text.txt").write_bytes(text.encode())
    out = directory / "out" / "tok"
    stage.main(["train", str(directory / "text.txt"), "--out", str(out), *flags])
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_the_fraction_is_of_characters_and_nothing_after_it_is_read(tmp_path, capsys):
    text = "éé狐狸🦊" * 30 + SMALL[:1501]  # the first tenth of the characters has half the bytes
    size = ("--vocab-size", "300", "--fraction", "0.9")
    n = int(0.9 * len(text))
    files = train_files(tmp_path / "a", text, *size)
    assert capsys.readouterr().out.startswith(f"Learned from {n:,} of {len(text):,} characters\n")
    assert files == train_files(tmp_path / "b", text[:n] + "q" * (len(text) - n), *size)
    assert files == train_files(tmp_path / "c", text[:n], "--vocab-size", "300")
    assert files == train_files(tmp_path / "d", text.replace("\n", "\r\n"), *size)
    assert files != train_files(tmp_path / "e", text[: n - 1] + "q" * (len(text) - n + 1), *size)


def test_flags_of_train(tmp_path, capsys):
    specials = ["<|end|>", "<|é|>"]
    text = SMALL + "<|end|>" * 500  # were it not cut out, "<|" would be the first pair
    flags = ["--pattern", "gpt4", "--vocab-size", "400", "--special-tokens", *specials]
    (content,) = train_files(tmp_path, text, *flags).values()
    assert capsys.readouterr().out.endswith(
        f"400 tokens -> {tmp_path / 'out/tok/tokenizer.json'}\n"
    )
    tokenizer = BPETokenizer.load(tmp_path / "out" / "tok")
    assert tokenizer.special_tokens == {"<|end|>": 398, "<|é|>": 399}
    assert tokenizer.vocab == BPETokenizer.train(text, 400, "gpt4", specials).vocab
    assert tokenizer.pattern == "gpt4" and b"<|" not in set(tokenizer.vocab.values())
    assert json.loads(content)["added_tokens"][1]["content"] == "<|é|>"
    (content,) = train_files(tmp_path, SMALL).values()  # the defaults
    default = BPETokenizer.train(SMALL, 1024)
    assert json.loads(content) == default.parts
    assert capsys.readouterr().out.endswith("tokenizer.json\n")
    train_files(tmp_path, "the then")
    assert capsys.readouterr().out.endswith("tokenizer.json; no more are found\n")


@pytest.mark.parametrize("name, kind", [*zip(["bpe", "wordpiece", "unigram"], KINDS)])
def test_every_kind_trains_on_the_command_line(name, kind, tmp_path, capsys):
    text = SMALL[:3000] + " é狐é"
    flags = ["--kind", name, "--vocab-size", "290", "--pattern", "none", "--special-tokens", "<s>"]
    train_files(tmp_path, text, *flags)
    loaded = kind.load(tmp_path / "out" / "tok")
    expected = kind.train(text, 290, None, ["<s>"])
    assert loaded.encode(text + "<s>", "all") == expected.encode(text + "<s>", "all")
    assert loaded.vocab_size == expected.vocab_size == 290


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "/no/such/file", "--out", "x"], "/no/such/file"),
        (["train", str(ROOT), "--out", "x"], "directory"),
        (["train", "EMPTY", "--out", "x"], "EMPTY: no text to learn from in 0 characters"),
        (["train", "LATIN", "--out", "x"], "LATIN: not UTF-8 text (at byte 1)"),
        (["train", "LATIN"], "--out"),
        (["train", "--out", "x"], "FILE"),
        (["train", "TEXT", "--out", "TEXT"], "TEXT"),
        (["train", "TEXT", "--out", "TEXT/x"], "TEXT"),
        (["train", "TEXT", "--out", "x", "--vocab-size", "256", "--special-tokens", "e"], "257"),
        (["train", "TEXT", "--out", "x", "--vocab-size", "many"], "vocab-size"),
        (["train", "TEXT", "--out", "x", "--vocab-size", "9" * 5000], "vocab-size"),
        (["train", "TEXT", "--out", "x", "--fraction", "0"], "--fraction 0.0: expected"),
        (["train", "TEXT", "--out", "x", "--fraction", "1.01"], "--fraction 1.01: expected"),
        (["train", "TEXT", "--out", "x", "--fraction", "nan"], "--fraction nan: expected"),
        (["train", "TEXT", "--out", "x", "--fraction", "0.01"], "no text to learn from in 9 char"),
        (["train", "TEXT", "--out", "x", "--fraction", "most"], "fraction"),
        (["train", "TEXT", "--out", "x", "--pattern", "gpt3"], "gpt3"),
        (["train", "TEXT", "--out", "x", "--kind", "spe"], "bpe"),
        (["train", "TEXT", "--out", "x", "--special-tokens"], "special-tokens"),
        (["train", "TEXT", "--out", "x", "--special-tokens", "e", "e"], "distinct"),
        (["train", "TEXT", "--out", "x", "--special-tokens", ""], "non-empty"),
        (["train", "TEXT", "--out", "x", "--special-tokens", "t"], "{'t'}"),
        (["train", "TEXT", "--out", "x", "--special-tokens", "\udcff"], "surrogate"),
        (["train", "TEXT", "--out", "x", "--fast"], "--fast"),
        (["nonsense"], "nonsense"),
        (["--seed", "x"], "x"),
        (["--seed", "-1"], "--seed -1"),
    ],
)
def test_a_wrong_command_is_one_line_and_status_two(
    arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("TEXT").write_bytes(b"the then\n")
    Path("EMPTY").touch()
    Path("LATIN").write_bytes("né".encode("latin-1"))
    with pytest.raises(SystemExit) as stop:
        stage.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error
    assert message in error and error.startswith("stage07_bpe.py") and len(error) < 400
    assert not Path("x").exists()


def run_program(*arguments, python=(), **options):
    command = [sys.executable, *python, str(ROOT / "stage07_bpe.py"), *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, **options)


@pytest.mark.parametrize("flags", [[], ["-OO"]])
def test_help_says_every_flag(flags):
    done = run_program("train", "--help", python=flags)
    assert done.returncode == 0 and not done.stderr
    every = ("--fraction", "--special-tokens", "--pattern", "--kind", "--vocab-size", "--out")
    for word in (*every, "[1024]", "[1]", "[gpt2]", "[bpe]", "[none]", "unigram"):
        assert word in done.stdout.decode()
    assert b"--fast" in run_program("--help", python=flags).stdout


def test_any_standard_output_will_do(tmp_path):
    """A narrow encoding gets question marks, a closed pipe ends quietly, none at all is none."""
    narrow = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = run_program("--fast", env=narrow)
    assert (done.returncode, done.stderr) == (0, b"") and b"?" in done.stdout
    program = [sys.executable, str(ROOT / "stage07_bpe.py")]
    learn = ["train", str(ROOT / "LICENSE"), "--out", str(tmp_path / "saved")]
    for arguments in (["--fast"], learn):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen([*program, *arguments], **pipes) as process:
            process.stdout.close()
            assert process.stderr.read() == b"" and process.wait() == 0
    assert (tmp_path / "saved" / "tokenizer.json").exists()  # the work is done first


@pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")
def test_a_closed_stream_gives_no_traceback(tmp_path):
    (tmp_path / "text.txt").write_text("the then")
    program = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'stage07_bpe.py'))}"
    command = f"{program} train text.txt --out tok >&-"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"") and (tmp_path / "tok").exists()


# Inputs at the corners: the right value, or a sentence that says what was expected.


def test_decode_takes_integers_of_any_width_and_nothing_else(trained):
    ids = trained.encode("it is 42")
    arrays = [np.array(ids, dtype) for dtype in (np.int64, np.uint16, np.int32)]
    for same in (*arrays, array.array("q", ids), iter(ids)):
        assert trained.decode(same) == "it is 42"
    for wrong in ([104.0], [True], np.array([104.0]), np.array([True]), [math.nan], "12", [[1]]):
        with pytest.raises(ValueError, match="expected integers"):
            trained.decode(wrong)


def test_counts_of_eight_bits_add_up():
    words = {b"abab": 200, b"abc": 100}
    narrow = {word: np.uint8(count) for word, count in words.items()}
    expected = [((97, 98), 500), ((256, 256), 200)]
    assert stage.learn_merges(words, 2) == stage.learn_merges(narrow, 2) == expected
    assert stage.learn_wordpiece(words, 259) == stage.learn_wordpiece(narrow, 259)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_kneser_ney_takes_arrays_of_any_width(rng, dtype, order):
    ids = rng.integers(0, 5, 60)
    expected = stage.kneser_ney_nats(ids[:40].tolist(), ids[40:].tolist(), 5, order)
    ids = ids.astype(dtype)
    assert stage.kneser_ney_nats(ids[:40], ids[40:], 5, order) == expected


def test_kneser_ney_needs_the_first_context():
    assert stage.kneser_ney_nats([0, 1], [], 2, 3) == 0
    assert stage.kneser_ney_nats([], [1], 4, 1) == pytest.approx(math.log(4))
    with pytest.raises(ValueError, match="train has 2 ids: expected at least order - 1 = 4"):
        stage.kneser_ney_nats([0, 1], [0, 1, 0], 2, 5)


def test_logarithms_of_nothing_and_of_zero():
    none, log = -math.inf, math.log
    assert stage.log_sum([]) == stage.log_sum([none]) == stage.log_sum([none, none]) == none
    assert stage.log_sum([none, 1.5]) == 1.5 and stage.log_sum([math.inf, 0]) == math.inf
    score = {b"b": log(0.5), b"ab": log(0.25), b"a": none}  # a alone never stands
    alpha, _ = stage.forward(b"ab", score, 2)
    assert alpha == [0, none, pytest.approx(log(0.25))]
    assert stage.viterbi(b"ab", score, 2) == (pytest.approx(log(0.25)), [b"ab"])
    for score in ({b"a": 0.0}, {b"a": none, b"b": 0.0}):
        with pytest.raises(ValueError, match="b'ab': expected pieces that can write it"):
            stage.viterbi(b"ab", score, 1)


def test_wrong_numbers_and_names_are_named(rng):
    unigram = UnigramTokenizer()
    for call, said in (
        (lambda: unigram.sample("a", rng, "1"), "temperature '1'"),
        (lambda: unigram.sample("a", rng, None), "temperature None"),
        (lambda: unigram.sample("a", rng, math.nan), "temperature nan"),
        (lambda: stage.pretokenize("a", "gpt9"), "pattern 'gpt9'"),
        (lambda: stage.learn_merges({}, "a"), "n_merges 'a'"),
        (lambda: stage.learn_merges({}, -1), "n_merges -1"),
        (lambda: unigram.sample("a", rng, math.inf), "temperature inf"),
        (lambda: stage.compare([1], "a"), "tokenizer 0 is 1: expected a Tokenizer"),
        (lambda: stage.compare({"x": None}, "a"), "tokenizer 'x' is None"),
        (lambda: stage.compare({}, ""), "empty"),
        (lambda: stage.compare([BPETokenizer()], b"a"), "is bytes: expected str"),
        (lambda: stage.kneser_ney_nats(5, [0], 5, 1), "ids: 5 is not iterable"),
        (lambda: stage.kneser_ney_nats([0], [0], 5, 0), "order 0"),
        (lambda: stage.kneser_ney_nats([0], [0], 5, "a"), "order 'a'"),
        (lambda: stage.kneser_ney_nats([0], [0], 0, 1), "vocab_size 0"),
        (lambda: stage.kneser_ney_nats([0], [5], 5, 1), r"ids: 5: expected integers 0\.\.4"),
        (lambda: stage.kneser_ney_nats([0.0], [0], 5, 1), "ids: 0.0: expected integers"),
        (lambda: BPETokenizer.train("a", special_tokens=None), "special_tokens None"),
        (lambda: BPETokenizer().encode("a", None), "allowed_special None"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
