"""Text and tokens: BPE against a textbook, splits, streams, and other people's files key by key."""

import copy
import json
import unicodedata

import numpy as np
import pytest

import capstone_gpt as gpt

LETTERS = [gpt.BYTE_TO_CHAR[byte] for byte in range(256)]
END = "<|endoftext|>"
TRAPS = ["a", "b", "lower", "don't", "'S", "'re", "'\u017f", " ", "  ", "\n", "\r\n", "\t", "\x1c"]
TRAPS += ["\x85", "\xa0", "\u2003", "½", "Ⅷ", "12", "345678", "狐狸", "é", "e\u0301", "!?", "'"]
TRAPS += ["👩‍🚀", "🦊", "_x", "<|", "|>", END]


def vocabulary(*tokens):
    """All bytes, then the tokens given."""
    return {token: i for i, token in enumerate([*LETTERS, *tokens])}


def byte_level(**changes):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True} | changes


def split(**changes):
    pattern = {"Regex": gpt.PATTERNS["gpt4"]}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False} | changes


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


PRE = {
    "gpt2": byte_level(),
    "gpt4": sequence(split(), byte_level(use_regex=False)),
    "digits": sequence({"type": "Digits", "individual_digits": True}, byte_level()),
}


def added(text, i, **changes):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": text, **flags, "special": True} | changes


def parts(**changes):
    """A tokenizer.json with the merges of "lower", as the tokenizers library writes it."""
    merges = ["l o", "lo w", "e r", "Ġ low"]
    vocab = vocabulary("lo", "low", "er", "Ġlow", END)
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": ""}
    model |= {"end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False}
    model |= {"ignore_merges": False, "vocab": vocab, "merges": merges}
    model |= {k[6:]: changes.pop(k) for k in [*changes] if k.startswith("model_")}
    whole = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None}
    whole |= {"added_tokens": [added(END, 260)], "pre_tokenizer": byte_level()}
    whole |= {"post_processor": None, "decoder": byte_level(), "model": model}
    return whole | changes


def load(tmp_path, files):
    """The tokenizer in a directory with these files: {name: str, bytes or what JSON can hold}."""
    for name, content in files.items():
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content)
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(content)
    return gpt.load_tokenizer(tmp_path)


def refuses(tmp_path, files, *words):
    """Loading says one sentence with these words."""
    with pytest.raises(ValueError) as caught:
        load(tmp_path, files)
    message = str(caught.value)
    assert str(tmp_path) in message and "\n" not in message and len(message) < 600
    for word in words:
        assert word in message, message


def textbook(text, ranks):
    """The tokens of a text: join the pair of lowest rank, the leftmost, until none is left."""
    tokens = list(text)
    while True:
        best = None
        for i in range(len(tokens) - 1):
            rank = ranks.get((tokens[i], tokens[i + 1]))
            if rank is not None and (best is None or rank < best[0]):
                best = rank, i
        if best is None:
            return tokens
        i = best[1]
        tokens = tokens[:i] + [tokens[i] + tokens[i + 1]] + tokens[i + 2 :]


def random_texts(rng, n):
    for _ in range(n):
        yield "".join(TRAPS[i] for i in rng.integers(len(TRAPS), size=rng.integers(1, 15)))


def trained(rng, pattern, *specials, size=400):
    """A tokenizer with random merges, in an order that no training would give."""
    pool = [*"abelorw'sd12Ġ<|>Ċ", "Ã", "©"]
    tokens, merges = list(pool), []
    while len(merges) < size:
        left, right = (tokens[i] for i in rng.integers(len(tokens), size=2))
        if left + right not in tokens and len(left + right) <= 6:
            tokens.append(left + right)
            merges.append([left, right])
    order = rng.permutation(size)
    merges = [merges[i] for i in order]
    vocab = vocabulary(*tokens[len(pool) :])
    special = {text: len(vocab) + n for n, text in enumerate(specials)}
    return gpt.BPETokenizer(vocab, merges, pattern, special)


# Merging
def test_the_two_words_of_the_lesson():
    merges = {(1, 2): (0, 6), (6, 5): (1, 7), (0, 3): (2, 8)}
    for function in (gpt.merge, gpt.merge_fast):
        assert function([1, 2, 5, 0, 3], merges) == [7, 8]
        assert function([4, 1, 2, 5, 0, 3], merges) == [4, 7, 8]
        assert function([], merges) == [] and function([4], merges) == [4]


def test_a_whole_of_lower_rank_than_its_parts():
    """The tokenizers library: with merges abc+a, ab+c, a+b, "abcab" is abca, b."""
    ids = {token: i for i, token in enumerate(["a", "b", "c", "ab", "abc", "abca"])}
    pairs = [("abc", "a"), ("ab", "c"), ("a", "b")]
    merges = {(ids[a], ids[b]): (rank, ids[a + b]) for rank, (a, b) in enumerate(pairs)}
    for function in (gpt.merge, gpt.merge_fast):
        assert function([0, 1, 2, 0, 1], merges) == [ids["abca"], ids["b"]]


def test_both_merges_are_the_textbook(rng):
    for _ in range(30):
        tokens, ranks = list("abc"), {}
        for rank in rng.permutation(25).tolist():
            left, right = (tokens[i] for i in rng.integers(len(tokens), size=2))
            ranks[left, right] = rank
            tokens += [left + right] * (left + right not in tokens)
        ids = {token: i for i, token in enumerate(tokens)}
        merges = {(ids[a], ids[b]): (rank, ids[a + b]) for (a, b), rank in ranks.items()}
        for _ in range(20):
            text = "".join(rng.choice(list("abc"), size=rng.integers(0, 30)))
            expected = [ids[token] for token in textbook(text, ranks)]
            start = [ids[c] for c in text]
            assert gpt.merge(start, merges) == gpt.merge_fast(start, merges) == expected


def test_a_long_word_is_merged_in_closed_form():
    merges = {(0, 0): (0, 1), (1, 1): (1, 2), (2, 2): (2, 3)}  # two, four, eight
    assert gpt.merge_fast([0] * 100_007, merges) == [3] * 12_500 + [2, 1, 0]


# Splitting
SPLITS = {
    "gpt2": [
        ("I'll  don't 'S", ["I", "'ll", " ", " don", "'t", " '", "S"]),
        ("'s't're've'm'll'd'x", ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'", "x"]),
        ("a  12345½ Ⅷ!?\n\n b ", ["a", " ", " 12345½", " Ⅷ", "!?", "\n\n", " b", " "]),
        (
            "a\x1cb\x85c\u2003d\u200de",
            ["a", "\x1c", "b", "\x85", "c", "\u2003", "d", "\u200d", "e"],
        ),
        (
            "\x85\x85b\x0b\x0cc\x0e\x0ed",
            ["\x85", "\x85", "b", "\x0b", "\x0c", "c", "\x0e\x0e", "d"],
        ),
        ("\x1c\x1c\x1f\u3000\u3000b", ["\x1c\x1c\x1f", "\u3000", "\u3000", "b"]),
        ("e\u0301 狐狸_x\t\ty", ["e", "\u0301", " 狐狸", "_", "x", "\t", "\t", "y"]),
    ],
    "gpt4": [
        ("I'LL  don't 'S'\u017f", ["I", "'LL", " ", " don", "'t", " '", "S", "'\u017f"]),
        ("a 1234567½!?\r\n\n  \n x", ["a", " ", "123", "456", "7½", "!?\r\n\n", "  \n", " x"]),
        ("\tx\n\n  y  ", ["\tx", "\n\n", " ", " y", "  "]),
        ("a\x1cb.c", ["a", "\x1cb", ".c"]),
    ],
    "digits": [
        ("a  12 b½  ", ["a", "  ", "1", "2", " b", "½", "  "]),
        (" 1's  x", [" ", "1", "'s", " ", " x"]),
    ],
}


@pytest.mark.parametrize("pattern", gpt.PATTERNS)
def test_pre_tokens(pattern, rng):
    for text, expected in SPLITS[pattern]:
        assert list(gpt.pre_tokens(text, pattern)) == expected
    for text in [*random_texts(rng, 300), "".join(map(chr, range(0x3000)))]:
        assert "".join(gpt.pre_tokens(text, pattern)) == text


def test_every_character_has_an_ascii_character_of_its_kind():
    """Letters, numbers and blanks as the tokenizers library counts them."""
    for char in map(chr, range(0x110000)):
        kind, known = unicodedata.category(char)[0], gpt.ascii_of_its_kind(char)
        if char.isascii():
            assert known == char
        elif char != "\u017f":
            letter_number_blank = kind == "L", kind == "N", kind == "Z" or char == "\x85"
            assert (known == "z", known == "0", known == "\t") == letter_number_blank
            assert known in "z0\t!"


# Encoding and decoding
@pytest.mark.parametrize("pattern", gpt.PATTERNS)
def test_encode_is_the_textbook_on_every_pre_token(pattern, rng):
    tokenizer = trained(rng, pattern)
    name = {i: token for token, i in tokenizer.vocab.items()}
    ranks = {(name[a], name[b]): rank for (a, b), (rank, _) in tokenizer.merges.items()}
    for text in random_texts(rng, 200):
        expected = []
        for word in gpt.pre_tokens(text, pattern):
            letters = "".join(gpt.BYTE_TO_CHAR[byte] for byte in word.encode())
            expected += [tokenizer.vocab[token] for token in textbook(letters, ranks)]
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int64 and ids.tolist() == expected
        assert tokenizer.decode(ids) == text
    long = "ab" * 500 + " 1" * 300  # words that are not kept
    assert tokenizer.decode(tokenizer.encode(long)) == long


def test_special_tokens_are_found_the_longest_first(tmp_path):
    special = [added("<a>", 261), added("<a>b", 262), added(" x", 263)]
    tokenizer = load(tmp_path, {"tokenizer.json": parts(added_tokens=[added(END, 260), *special])})
    assert tokenizer.special_tokens == {END: 260, "<a>": 261, "<a>b": 262, " x": 263}
    assert tokenizer.vocab_size == 264
    assert tokenizer.encode(f"low<a>blow x<a>{END}").tolist() == [257, 262, 257, 263, 261, 260]
    text = f"<a<a>b{END[:-1]} low{END}{END}"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    # what stands before a special token ends there: both blanks are one pre-token
    tail = tokenizer.encode("low  <a>low").tolist()
    assert tail == [257, LETTERS.index("Ġ"), LETTERS.index("Ġ"), 261, 257]


def test_decoding_never_gives_half_a_character(rng):
    tokenizer = trained(rng, "gpt2")
    text = "é狐👩‍🚀 lower½" * 3
    for ids in (tokenizer.encode(text), tokenizer.encode(text)[1:], tokenizer.encode(text)[:-1]):
        pieces = list(tokenizer.decode_stream(iter(ids)))
        whole = b"".join(tokenizer.tokens[i] for i in ids.tolist()).decode(errors="replace")
        assert "".join(pieces) == tokenizer.decode(ids) == whole and all(pieces)
    ids = tokenizer.encode("狐")  # three bytes, no merge
    assert list(tokenizer.decode_stream(ids)) == ["狐"]
    assert tokenizer.decode(ids[:2]) == "\ufffd"
    assert tokenizer.decode([*ids[:2], 65]) == "\ufffdA"
    assert tokenizer.decode([65, tokenizer.vocab_size]) == "A\ufffd"  # an id without a token


def test_a_text_may_be_cut_only_where_it_makes_no_difference(rng):
    for pattern in gpt.PATTERNS:
        for specials in ((), (END, "<a>", "<a>b", "b <", "2'", "a b")):
            tokenizer = trained(rng, pattern, *specials)
            cuts = 0
            for text in random_texts(rng, 150):
                k = rng.integers(len(text) + 1)
                text = text[:k] + "".join(specials[:2][: rng.integers(3)]) + text[k:]
                whole = tokenizer.encode(text).tolist()
                for i in range(1, len(text)):
                    if tokenizer.may_cut(text, i):
                        cuts += 1
                        halves = [tokenizer.encode(half).tolist() for half in (text[:i], text[i:])]
                        assert halves[0] + halves[1] == whole, (text, i)
            assert cuts > 300  # seldom enough would be useless
    tokenizer = trained(rng, "gpt2", "<a>")  # right before it and right after it are places, too
    assert [i for i in range(1, 7) if tokenizer.may_cut("ab<a>b.", i)] == [2, 6]
    tokenizer = trained(rng, "gpt2", "b c")
    assert [i for i in range(1, 6) if tokenizer.may_cut("ab cd.", i)] == [5]
    assert [i for i in range(1, 7) if tokenizer.may_cut("ab 1 d.", i)] == [2, 4, 6]


def test_streams_have_the_ids_of_the_whole(rng, monkeypatch):
    tokenizer = trained(rng, "gpt4", END, "lower don't")
    text = "".join(random_texts(rng, 6000))
    assert len(text) > 100_000
    whole = tokenizer.encode(text)
    encoded = []
    encode = gpt.BPETokenizer.encode
    monkeypatch.setattr(
        gpt.BPETokenizer, "encode", lambda self, t: encoded.append(len(t)) or encode(self, t)
    )
    for size in (1, 1000, 70_001, 10**9):
        encoded.clear()
        pieces = (text[i : i + size] for i in range(0, len(text), size))
        got = list(tokenizer.encode_stream(pieces))
        assert np.array_equal(np.concatenate(got), whole)
        assert max(encoded) <= size + 200  # what is held back is little
        for at in np.cumsum(encoded[:-1]):
            assert text[at - 1].isalnum() and not text[at].isalnum()
        assert len(got) <= -(-len(text) // size) + 1  # not more often than it must
    assert np.array_equal(np.concatenate(list(tokenizer.encode_stream([]))), [])
    blanks = [" " * 1000] * 300  # no place to cut: each is looked at once
    searched = []
    may_cut = gpt.BPETokenizer.may_cut
    monkeypatch.setattr(
        gpt.BPETokenizer, "may_cut", lambda self, t, i: searched.append(i) or may_cut(self, t, i)
    )
    assert np.array_equal(
        np.concatenate(list(tokenizer.encode_stream(blanks))), encode(tokenizer, " " * 300_000)
    )
    assert len(searched) == len(set(searched)) < 300_000


def test_the_words_kept_are_bounded(rng):
    tokenizer = trained(rng, "gpt2")
    kept = tokenizer.known_word.cache_info
    assert 1000 < kept().maxsize < 10**6
    tokenizer.encode("b" * 63 + " a " + "ab" * 31 + "a")
    assert kept().currsize == kept().misses == 2  # not the one of 64 characters
    tokenizer.encode(" a" * 50)
    assert kept().currsize == kept().misses == 2 and kept().hits == 50


# Characters
def test_characters(tmp_path):
    tokenizer = gpt.CharTokenizer("hello, 狐\n")
    assert tokenizer.vocab_size == 8 and tokenizer.special_tokens == {}
    assert tokenizer.encode("he\n狐", True).tolist() == [4, 3, 0, 7]
    assert tokenizer.encode("").dtype == tokenizer.encode("h").dtype == np.int64
    assert tokenizer.decode([4, 3, 0, 7]) == "he\n狐"
    assert [ids.tolist() for ids in tokenizer.encode_stream(["he", "l"])] == [[4, 3], [5]]
    with pytest.raises(ValueError, match=r"not trained on: 'A', 'B'$"):
        tokenizer.encode("BBhA")
    with pytest.raises(ValueError, match=r"'9', \.\.\.$"):
        tokenizer.encode("0123456789A")
    with pytest.raises(ValueError, match="at least one"):
        gpt.CharTokenizer("")
    tokenizer.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == tokenizer.files
    back = gpt.load_tokenizer(tmp_path)
    assert back.ids == tokenizer.ids and back.files == tokenizer.files


def test_the_old_file_of_characters_is_read_and_written_anew(tmp_path):
    tokenizer = load(tmp_path, {"tokenizer": '"\\nab\\u72d0"\n'})
    assert tokenizer.encode("a狐").tolist() == [1, 3]
    assert sorted(tokenizer.files) == ["tokenizer.json", "tokenizer_config.json"]
    refuses(tmp_path, {"tokenizer": "[1]"}, "JSON string")
    refuses(tmp_path, {"tokenizer": '"\\ud800"'}, "tokenizer")


def test_files_of_characters_are_exactly_ours(tmp_path):
    files = {n: json.loads(content) for n, content in gpt.CharTokenizer("abc").files.items()}
    whole = files["tokenizer.json"]
    assert load(tmp_path, files).encode("cab").tolist() == [2, 0, 1]
    empty = {"dropout": None, "unk_token": None, "fuse_unk": False, "ignore_merges": False}
    more = whole | {"padding": None, "pre_tokenizer": None, "model": whole["model"] | empty}
    assert load(tmp_path, {"tokenizer.json": more}).encode("cab").tolist() == [2, 0, 1]
    for key, value in (
        ("vocab", {"b": 0, "a": 1, "c": 2}),
        ("vocab", {"a": 0, "bc": 1}),
        ("merges", ["a b"]),
        ("unk_token", "a"),
        ("byte_fallback", True),
    ):
        changed = whole | {"model": whole["model"] | {key: value}}
        refuses(tmp_path, {"tokenizer.json": changed}, "handled here")
    changed = whole | {"added_tokens": [added("<a>", 3)]}
    refuses(tmp_path, {"tokenizer.json": changed}, "'added_tokens'", "handled here")
    for kind in ("LlamaTokenizer", "GPT2Tokenizer"):  # transformers would not read the file
        config = {"tokenizer_class": kind}
        refuses(tmp_path, {"tokenizer.json": whole, "tokenizer_config.json": config}, kind)


# tokenizer.json
@pytest.mark.parametrize("pattern", PRE)
def test_a_file_of_each_pattern(tmp_path, pattern):
    tokenizer = load(tmp_path, {"tokenizer.json": parts(pre_tokenizer=PRE[pattern])})
    assert tokenizer.pattern == pattern
    assert tokenizer.encode("lower low").tolist() == [257, 258, 259]
    assert tokenizer.vocab_size == 261 and tokenizer.special_tokens == {END: 260}
    assert tokenizer.decode([257, 258, 259, 260]) == "lower low" + END
    written = tmp_path / "copy"
    written.mkdir()
    tokenizer.save(written)
    again = gpt.load_tokenizer(written)
    assert again.files == tokenizer.files and again.pattern == pattern


def test_equal_forms_of_a_file(tmp_path):
    pairs = [["l", "o"], ["lo", "w"], ["e", "r"], ["Ġ", "low"]]
    for whole in (
        parts(model_merges=pairs),
        parts(pre_tokenizer=sequence(byte_level(use_regex=True))),
        parts(post_processor=byte_level(trim_offsets=False)),
        parts(model_unk_token=END, model_fuse_unk=True, model_byte_fallback=True),
        parts(decoder=byte_level(add_prefix_space=True, use_regex=False)),
        {k: v for k, v in parts().items() if v is not None},
    ):
        tokenizer = load(tmp_path, {"tokenizer.json": whole})
        assert tokenizer.encode("lower low").tolist() == [257, 258, 259]
    whole = parts(pre_tokenizer=PRE["gpt4"])
    removed = sequence(split(behavior="Removed", invert=True), byte_level(use_regex=False))
    for pre in (PRE["gpt4"], removed):
        tokenizer = load(tmp_path, {"tokenizer.json": whole | {"pre_tokenizer": pre}})
        assert tokenizer.pattern == "gpt4"
    whole = parts()
    del whole["model"]["type"]  # as in the first files
    assert load(tmp_path, {"tokenizer.json": whole}).encode("low").tolist() == [257]


REFUSED = [
    (parts(truncation={"max_length": 5}), "'truncation'"),
    (parts(padding={"length": 5}), "'padding'"),
    (parts(normalizer={"type": "NFC"}), "'normalizer'", "NFC"),
    (parts(surprise=1), "'surprise'"),
    (parts(version="2.0"), "version", "2.0"),
    (parts(pre_tokenizer=None), "pre_tokenizer", "handled here"),
    (parts(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
    (parts(pre_tokenizer=byte_level(add_prefix_space=True)), "add_prefix_space"),
    (parts(pre_tokenizer=byte_level(use_regex=False)), "use_regex"),
    (parts(pre_tokenizer=sequence(split(), byte_level())), "pre_tokenizer"),
    (parts(pre_tokenizer=sequence(split(invert=True), byte_level(use_regex=False))), "Split"),
    (
        parts(pre_tokenizer=sequence(split(behavior="Removed"), byte_level(use_regex=False))),
        "Split",
    ),
    (parts(pre_tokenizer=sequence(split(pattern={"Regex": "\\p{L}+"}))), "{L}+"),
    (parts(pre_tokenizer=sequence({"type": "Digits"}, byte_level())), "Digits"),
    (parts(pre_tokenizer=sequence()), "damaged"),
    (parts(decoder=None), "decoder", "ByteLevel"),
    (parts(decoder={"type": "Metaspace"}), "Metaspace"),
    (parts(post_processor={"type": "RobertaProcessing", "sep": ["x", 1]}), "RobertaProcessing"),
    (parts(post_processor=byte_level(single=["A"])), "'single'"),
    (parts(post_processor={"type": "TemplateProcessing", "cls": ["x", 1]}), "'cls'"),
    (parts(decoder=byte_level(prefix="x")), "'prefix'"),
    (parts(model_dropout=0.1), "'dropout'", "0.1"),
    (parts(model_continuing_subword_prefix="##"), "'continuing_subword_prefix'"),
    (parts(model_end_of_word_suffix="</w>"), "'end_of_word_suffix'"),
    (parts(model_surprise=[0]), "'surprise'"),
    (parts(model_ignore_merges="yes"), "ignore_merges"),
    (parts(model_type="WordPiece"), "WordPiece"),
    (parts(model={"type": "Unigram", "vocab": [["a", -1.0]]}), "'Unigram'; handled here: BPE"),
    (parts(model_vocab=[["a", 0]]), "damaged"),
    (parts(model_vocab=vocabulary() | {"lo": -1}), "'lo', -1"),
    (parts(model_vocab=vocabulary() | {"lo": 2**32}), "'lo'"),
    (parts(model_vocab=vocabulary() | {"lo": 256.0}), "256.0"),
    (parts(model_vocab=vocabulary() | {"lo": True}), "True"),
    (parts(model_vocab=vocabulary() | {"lo": 255}), "same id"),
    (parts(model_vocab={c: i for c, i in vocabulary("lo").items() if c != "x"}), "[120]"),
    (parts(model_merges=["l o w"]), "'l', 'o', 'w'"),
    (parts(model_merges=[["l", "o", "w"]]), "merges"),
    (parts(model_merges=[{"l": 1, "o": 2}]), "merges"),
    (parts(model_merges=["o l"]), "'ol'"),
    (parts(model_merges=["zz o"]), "'zz'"),
    (parts(added_tokens=[added(END, 260, lstrip=True)]), "'lstrip'"),
    (parts(added_tokens=[added(END, 260, rstrip=True)]), "'rstrip'"),
    (parts(added_tokens=[added(END, 260, single_word=True)]), "'single_word'"),
    (parts(added_tokens=[added(END, 259)]), "not 260"),
    (parts(added_tokens=[added("", 261)]), "added_tokens"),
    (parts(added_tokens=[added("<a>", 262)]), "'<a>'", "262", "not 261"),
    (parts(added_tokens=[added("<a>", 261.0)]), "261.0"),
    (parts(added_tokens=[added("<a>", 261), added("<b>", 261)]), "'<b>'", "not 262"),
    (parts(added_tokens=[added("<a>", 261), added("<a>", 262)]), "'<a>'", "not 261"),
    (parts(added_tokens=[added("<a>", 261), added("<b>", 262, normalized=True)]), "normalized"),
    (parts(added_tokens=["<a>"]), "'<a>'", "object"),
    (parts(added_tokens=[added(5, 261)]), "damaged"),
    (parts(model_vocab=vocabulary() | {"b3": 257}, added_tokens=[added("<a>", 257)]), "'<a>'"),
    (parts(model_vocab=vocabulary("lo", "low", "er", "Ġlow", END, "狐")), "狐"),
    (parts(normalizer={"type": "Sequence", "normalizers": []}), "'normalizer'"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: " ".join(case[1:]))
def test_what_a_file_may_not_say(tmp_path, case):
    whole, *words = case
    refuses(tmp_path, {"tokenizer.json": whole}, "tokenizer.json: ", *words)


def test_damaged_files(tmp_path):
    refuses(tmp_path, {}, "no tokenizer.json")
    refuses(tmp_path, {"tokenizer.json": "{"}, "JSON object")
    refuses(tmp_path, {"tokenizer.json": b"\xff"}, "JSON object")
    for key in ("model", "added_tokens"):
        whole = parts()
        del whole[key]
        refuses(tmp_path, {"tokenizer.json": whole}, key)
    with pytest.raises(ValueError, match="U.D800|surrogate"):
        gpt.BPETokenizer(vocabulary(), [], "gpt2", {}).encode("a\ud800")


def test_ignore_merges(tmp_path):
    """A pre-token that is a token is taken whole even if no merge makes it (Llama 3)."""
    vocab = vocabulary("lo", "low", "er", "Ġlow", END, "lower", "ĠÃ©")
    tokenizer = load(
        tmp_path, {"tokenizer.json": parts(model_vocab=vocab, model_ignore_merges=True)}
    )
    assert tokenizer.encode("lower low é").tolist() == [261, 259, 262]
    assert tokenizer.encode("lowers").tolist() == [257, 258, vocab["s"]]
    assert tokenizer.decode([261, 262]) == "lower é"
    tokenizer = load(tmp_path, {"tokenizer.json": parts(model_vocab=vocab)})
    assert tokenizer.encode("lower").tolist() == [257, 258]


def template(single, ids, **changes):
    """A TemplateProcessing of names of special tokens, with "A" for the text."""
    steps = [
        {"Sequence": {"id": "A", "type_id": 0}}
        if name == "A"
        else {"SpecialToken": {"id": name, "type_id": 0}}
        for name in single
    ]
    special = {name: {"id": name, "ids": i, "tokens": [name]} for name, i in ids.items()}
    step = {"type": "TemplateProcessing", "single": steps, "pair": [], "special_tokens": special}
    return step | changes


def test_tokens_around_a_text(tmp_path):
    post = template(["</s>", "<s>", "A"], {"<s>": [260, 257], "</s>": [258]})
    for step in (post, {"type": "Sequence", "processors": [byte_level(), post]}):
        tokenizer = load(tmp_path, {"tokenizer.json": parts(post_processor=step)})
        assert tokenizer.encode("low").tolist() == [257]
        assert tokenizer.encode("low", True).tolist() == [258, 260, 257, 257]
        assert tokenizer.encode("", add_special_tokens=True).tolist() == [258, 260, 257]
    for post in (
        template(["A", "<s>", "A"], {"<s>": [260]}),
        template(["<s>", "A", "<s>"], {"<s>": [260]}),
        template(["<s>"], {"<s>": [260]}),
        template(["<s>", "A"], {"<s>": [261]}),
        template(["<s>", "A"], {"<s>": [-1]}),
        {"type": "Sequence", "processors": [template(["A"], {})] * 2},
        template(["<s>", "A"], {"<s>": [True]}),
        template(["<s>", "A"], {}),
    ):
        refuses(tmp_path, {"tokenizer.json": parts(post_processor=post)}, "tokenizer.json")


# vocab.json and merges.txt
def test_gpt2s_own_two_files(tmp_path):
    vocab = vocabulary("lo", "low", "er", "Ġlow", END)
    for end in ("\n", "\r\n"):
        merges = end.join(["#version: 0.2", "l o", "lo w", "e r", "Ġ low", ""])
        tokenizer = load(tmp_path, {"vocab.json": vocab, "merges.txt": merges})
        assert tokenizer.encode(f"lower low{END}").tolist() == [257, 258, 259, 260]
    assert tokenizer.pattern == "gpt2" and tokenizer.bos == []
    assert set(tokenizer.files) == {"vocab.json", "merges.txt", "tokenizer_config.json"}
    config = json.loads(tokenizer.files["tokenizer_config.json"])
    assert config == {"tokenizer_class": "GPT2Tokenizer"}
    flags = {k: v for k, v in added(END, 260).items() if k != "id"}
    decoder = {"added_tokens_decoder": {"260": flags | {"normalized": True}}}
    tokenizer = load(tmp_path, {"tokenizer_config.json": {**config, **decoder, "eos_token": END}})
    assert json.loads(tokenizer.files["tokenizer_config.json"]) == {
        **config,
        **decoder,
        "eos_token": END,
    }
    refuses(tmp_path, {"tokenizer_config.json": {"add_bos_token": True}}, "add_bos_token")
    refuses(tmp_path, {"tokenizer_config.json": {"pad_token": "<pad>"}}, "<pad>")
    config = {"tokenizer_class": "LlamaTokenizer"}
    refuses(tmp_path, {"tokenizer_config.json": config}, 'handled here: null, "GPT2Tokenizer"')
    (tmp_path / "tokenizer_config.json").unlink()
    refuses(tmp_path, {"merges.txt": "l o w"}, "'l', 'o', 'w'")
    refuses(tmp_path, {"merges.txt": b"\xff \xff"}, "utf-8")
    refuses(tmp_path, {"vocab.json": vocabulary("lo"), "merges.txt": "l o"}, END)
    (tmp_path / "merges.txt").unlink()
    refuses(tmp_path, {"vocab.json": vocab}, "merges.txt")


# What stands beside tokenizer.json
def test_a_config_that_changes_no_id_is_kept(tmp_path):
    flags = {k: v for k, v in added(END, 260).items() if k != "id"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {"260": flags},
        "additional_special_tokens": [END],
        "bos_token": {"__type": "AddedToken", **flags},
        "chat_template": "{{ messages }}",
        "clean_up_tokenization_spaces": True,
        "eos_token": END,
        "extra_special_tokens": [flags],
        "model_max_length": 1024,
        "pad_token": None,
        "spaces_between_special_tokens": True,
        "split_special_tokens": False,
    }
    files = {"tokenizer.json": parts(), "tokenizer_config.json": config}
    files |= {"special_tokens_map.json": {"eos_token": flags, "pad_token": END}}
    files |= {"added_tokens.json": {END: 260}, "chat_template.jinja": "{{ messages }}"}
    tokenizer = load(tmp_path, files)
    assert tokenizer.files == {name: (tmp_path / name).read_bytes() for name in files}
    assert tokenizer.encode("low" + END).tolist() == [257, 260]


def test_a_config_that_would_change_ids_is_refused(tmp_path):
    flags = {k: v for k, v in added(END, 260).items() if k != "id"}
    for config in (
        {"add_bos_token": True},
        {"add_eos_token": True},
        {"add_prefix_space": True},
        {"split_special_tokens": True},
        {"from_slow": True},
        {"auto_map": {"AutoTokenizer": "mine.py"}},
        {"pad_token": "<pad>"},
        {"image_token": {"content": "<pad>"}},
        {"additional_special_tokens": [END, "<pad>"]},
        {"extra_special_tokens": {"image_token": "<pad>"}},
        {"added_tokens_decoder": {"259": flags}},
        {"added_tokens_decoder": {"260": flags | {"content": "<pad>"}}},
        {"added_tokens_decoder": {"260": flags | {"lstrip": True}}},
        {"added_tokens_decoder": {"x": flags}},
        {"added_tokens_decoder": {"260": END}},
        {"tokenizer_class": "BertTokenizer"},
        {"tokenizer_class": ["GPT2Tokenizer"]},
        ["GPT2Tokenizer"],
    ):
        files = {"tokenizer.json": parts(), "tokenizer_config.json": config}
        refuses(tmp_path, files, "tokenizer_config.json: ")
    (tmp_path / "tokenizer_config.json").unlink()
    refuses(
        tmp_path, {"special_tokens_map.json": {"pad_token": "<pad>"}}, "special_tokens_map.json: "
    )
    tokenizer = load(tmp_path, {"special_tokens_map.json": {"pad_token": END}})
    config = json.loads(tokenizer.files["tokenizer_config.json"])
    assert config == {"tokenizer_class": "PreTrainedTokenizerFast"}
    refuses(tmp_path, {"added_tokens.json": {"<pad>": 261}}, "added_tokens.json: ")


def test_normalized_is_compared_where_there_are_several_tokens(tmp_path):
    files = {"tokenizer.json": parts(added_tokens=[added(END, 260), added("<a>", 261)])}
    flags = {k: v for k, v in added("<a>", 261).items() if k != "id"}
    for normalized in (False, True):
        decoder = {"261": flags | {"normalized": normalized}}
        files["tokenizer_config.json"] = {"added_tokens_decoder": decoder}
        if normalized:
            refuses(tmp_path, files, "tokenizer_config.json: added_tokens", "some are normalized")
        else:
            assert load(tmp_path, files).special_tokens == {END: 260, "<a>": 261}


def test_bos_may_be_asked_for_where_it_is_added(tmp_path):
    post = template(["<s>", "A"], {"<s>": [260]})
    files = {"tokenizer.json": parts(post_processor=post)}
    files["tokenizer_config.json"] = {"add_bos_token": True}
    assert load(tmp_path, files).bos == [260]
    files["tokenizer_config.json"] = {"add_eos_token": True}
    refuses(tmp_path, files, "add_eos_token")


def test_the_class_written_is_one_that_follows_tokenizer_json(tmp_path):
    """GPT2Tokenizer in transformers 5 splits as GPT-2, whatever tokenizer.json says."""
    generic, gpt2 = "PreTrainedTokenizerFast", "GPT2TokenizerFast"
    more = [added(END, 260), added("<a>", 261)]
    no_config = {}
    for whole, config, expected in (
        (parts(), no_config, generic),
        (parts(), {"eos_token": END}, generic),
        (parts(), {"tokenizer_class": gpt2}, generic),
        (parts(), {"tokenizer_class": "LlamaTokenizer"}, generic),
        (parts(), {"tokenizer_class": "TokenizersBackend"}, "TokenizersBackend"),
        (parts(pre_tokenizer=PRE["digits"]), {"tokenizer_class": gpt2}, generic),
        (parts(model_ignore_merges=True), {"tokenizer_class": gpt2}, generic),
        (parts(added_tokens=more), {"tokenizer_class": gpt2}, generic),
        (parts(added_tokens=[]), {"tokenizer_class": gpt2}, generic),
    ):
        files = {"tokenizer.json": whole}
        (tmp_path / "tokenizer_config.json").unlink(missing_ok=True)
        if config is not no_config:
            files["tokenizer_config.json"] = config
        written = json.loads(load(tmp_path, files).files["tokenizer_config.json"])
        assert written == config | {"tokenizer_class": expected}


def test_the_file_is_not_changed_by_reading(tmp_path):
    whole = parts(post_processor=template(["<s>", "A"], {"<s>": [260]}))
    before = copy.deepcopy(whole)
    gpt.read_tokenizer(whole)
    assert whole == before
