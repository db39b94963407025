"""Stage 7, other people's files: every part of a tokenizer.json, and what is refused.

The ids and pieces that are expected here were fixed once, from the tokenizers library (0.23.3), for
small files that use one feature each. benchmarks/check_tokenizers.py compares the real ones.
"""

import base64
import json
import math
import re
import unicodedata

import numpy as np
import pytest

import stage07_bpe as stage
from stage07_bpe import BPETokenizer, Tokenizer, UnigramTokenizer, WordPieceTokenizer

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
TO_SPACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
TO_MARK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
META = {"type": "Metaspace", "replacement": "▁"}


def chain(where, *steps):
    """A Sequence of steps; where: the key under which they stand."""
    return {"type": "Sequence", where: list(steps)}


def regex_split(regex, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def added(i, content, **flags):
    none = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": content, **none, "special": True, **flags}


def template(before, behind):
    """A TemplateProcessing that puts tokens {name: id} before a text and behind it."""
    specials = {
        name: {"id": name, "ids": [i], "tokens": [name]} for name, i in (before | behind).items()
    }
    first, last = (
        [{"SpecialToken": {"id": name, "type_id": 0}} for name in side] for side in (before, behind)
    )
    text = {"Sequence": {"id": "A", "type_id": 0}}
    pair = [text, {"Sequence": {"id": "B", "type_id": 1}}]
    single = [*first, text, *last]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": specials,
    }


def file_of(model, **parts):
    """The content of a tokenizer.json."""
    whole = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer"))
    whole |= {"version": "1.0", "added_tokens": [], "post_processor": None, "decoder": None}
    return {**whole, **parts, "model": model}


def bpe(tokens, merges="", **options):
    """A BPE model of tokens and merges, both separated by blanks ("a+b" is a merge)."""
    vocab = {token: i for i, token in enumerate(tokens.split(" "))}
    pairs = [merge.split("+") for merge in merges.split()]
    return {"type": "BPE", "vocab": vocab, "merges": pairs, **options}


LETTERS = "<unk> ▁ a b c d e f 1 2 3 - . , é"
WORDS = {
    "▁the": -2.0,
    "▁": -3.5,
    "the": -4.0,
    "t": -5.0,
    "h": -5.5,
    "e": -4.5,
    "▁fox": -3.0,
    "fox": -3.75,
}
UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], *map(list, WORDS.items())]}
WORDPIECE = {
    "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 9,
    "vocab": {t: i for i, t in enumerate("[UNK] un tie ##tie ##ti ##d ##ed able ##able a".split())},
}  # fmt: skip
HEX = " ".join(f"<0x{byte:02X}>" for byte in range(256))
LLAMA = file_of(
    bpe(f"<unk> <s> {HEX} ▁ a b ab ▁ab", "a+b ▁+ab",
        unk_token="<unk>", fuse_unk=True, byte_fallback=True),
    normalizer=chain("normalizers", {"type": "Prepend", "prepend": "▁"}, TO_MARK),
    decoder=chain("decoders", TO_SPACE, {"type": "ByteFallback"}, {"type": "Fuse"},
                  {"type": "Strip", "content": " ", "start": 1, "stop": 0}),
    post_processor=template({"<s>": 1}, {}), added_tokens=[added(0, "<unk>"), added(1, "<s>")],
)  # fmt: skip
BYTE_LEVEL = bpe(" ".join(stage.BYTE_TO_CHAR[b] for b in range(256)) + " Ġa 12 ab", "Ġ+a 1+2 a+b")

PIECES = [
    (
        regex_split("-", "Isolated", False),
        "--a-b--c-",
        ["-", "-", "a", "-", "b", "-", "-", "c", "-"],
    ),
    (regex_split("-", "Isolated", False), "abc", ["abc"]),
    (
        regex_split("-", "Isolated", True),
        "--a-b--c-",
        ["-", "-", "a", "-", "b", "-", "-", "c", "-"],
    ),
    (regex_split("-", "Isolated", True), "abc", ["abc"]),
    (regex_split("-", "Removed", False), "--a-b--c-", ["a", "b", "c"]),
    (regex_split("-", "Removed", False), "abc", ["abc"]),
    (regex_split("-", "Removed", True), "--a-b--c-", ["-", "-", "-", "-", "-", "-"]),
    (regex_split("-", "Removed", True), "abc", []),
    (regex_split("-", "MergedWithPrevious", False), "--a-b--c-", ["-", "-", "a-", "b-", "-", "c-"]),
    (regex_split("-", "MergedWithPrevious", False), "abc", ["abc"]),
    (regex_split("-", "MergedWithPrevious", True), "--a-b--c-", ["-", "-a", "-b", "-", "-c", "-"]),
    (regex_split("-", "MergedWithPrevious", True), "abc", ["abc"]),
    (regex_split("-", "MergedWithNext", False), "--a-b--c-", ["-", "-a", "-b", "-", "-c", "-"]),
    (regex_split("-", "MergedWithNext", False), "abc", ["abc"]),
    (regex_split("-", "MergedWithNext", True), "--a-b--c-", ["-", "-", "a-", "b-", "-", "c-"]),
    (regex_split("-", "MergedWithNext", True), "abc", ["abc"]),
    (regex_split("-", "Contiguous", False), "--a-b--c-", ["--", "a", "-", "b", "--", "c", "-"]),
    (regex_split("-", "Contiguous", False), "abc", ["abc"]),
    (regex_split("-", "Contiguous", True), "--a-b--c-", ["--", "a", "-", "b", "--", "c", "-"]),
    (regex_split("-", "Contiguous", True), "abc", ["abc"]),
    (
        {"type": "Split", "pattern": {"String": "."}, "behavior": "Removed", "invert": False},
        "a.b..c",
        ["a", "b", "c"],
    ),
    ({"type": "Digits", "individual_digits": True}, "a12½ b3", ["a", "1", "2", "½", " b", "3"]),
    ({"type": "Digits", "individual_digits": False}, "a12½ b3", ["a", "12½", " b", "3"]),
    ({**META}, "a b", ["▁a", "▁b"]),
    ({**META}, " a", ["▁a"]),
    ({**META}, "a  b ", ["▁a", "▁", "▁b", "▁"]),
    ({**META}, "▁a", ["▁a"]),
    ({**META, "prepend_scheme": "never"}, "a b", ["a", "▁b"]),
    ({**META, "prepend_scheme": "never"}, " a", ["▁a"]),
    ({**META, "prepend_scheme": "first", "split": False}, "a b", ["▁a▁b"]),
    ({**META, "prepend_scheme": "first", "split": False}, " a", ["▁a"]),
    (regex_split(r"\p{Lu}\p{Ll}+|\p{Sc}|\P{N}"), "Big€é12x", ["Big", "€", "é", "12", "x"]),
    (
        regex_split(r"(?i:is)|(a|b){2,3}|\d+(?=-)|(?<=x)y|\S\.", "Contiguous"),
        "IS abab 12-xyz.c",
        ["IS", " ", "aba", "b ", "12", "-x", "yz.", "c"],
    ),
    (regex_split(r"[\p{M}\]\-\\]+", "MergedWithPrevious"), "éa]-\\b", ["é", "a]-\\", "b"]),
]
CASES = [
    (
        "merges follow ranks, also where parts come later",
        file_of(bpe("a b c ab abc abca", "abc+a ab+c a+b")),
        [
            ("abcab", [5, 1], "abca b"),
            ("abcabca", [5, 1, 2, 0], "abca b c a"),
            ("cab", [2, 3], "c ab"),
        ],
    ),
    (
        "a merge of letters that overlaps",
        file_of(bpe("a aa aaaa aaa", "a+a aa+aa aa+a")),
        [
            ("aaaaa", [2, 0], "aaaa a"),
            ("aaaaaaa", [2, 3], "aaaa aaa"),
        ],
    ),
    (
        "the later of two equal merges counts",
        file_of(bpe("a b ab ba", "a+b b+a a+b")),
        [
            ("aba", [0, 3], "a ba"),
        ],
    ),
    (
        "ignore_merges",
        file_of(bpe("a b c ab abc", "a+b", ignore_merges=True)),
        [
            ("abc", [4], "abc"),
            ("abcabc", [3, 2, 3, 2], "ab c ab c"),
        ],
    ),
    (
        "unk",
        file_of(bpe("<unk> a b ab", "a+b", unk_token="<unk>")),
        [
            ("axyb ab", [1, 0, 0, 2, 0, 3], "a <unk> <unk> b <unk> ab"),
        ],
    ),
    (
        "fuse_unk",
        file_of(bpe("<unk> a b ab", "a+b", unk_token="<unk>", fuse_unk=True)),
        [
            ("axyb ab z", [1, 0, 2, 0, 3, 0], "a <unk> b <unk> ab <unk>"),
        ],
    ),
    (
        "end_of_word_suffix",
        file_of(
            bpe(
                "<unk> a b a</w> b</w> ab ab</w>",
                "a+b a+b</w>",
                unk_token="<unk>",
                end_of_word_suffix="</w>",
            ),
            pre_tokenizer=regex_split(" ", "Removed"),
            decoder={"type": "BPEDecoder", "suffix": "</w>"},
        ),
        [
            ("ab aba b", [6, 5, 3, 4], "ab aba b"),
            ("a", [3], "a"),
        ],
    ),
    (
        "continuing_subword_prefix",
        file_of(
            bpe("a b ##a ##b ##ba ab", "##b+##a a+##b", continuing_subword_prefix="##"),
            decoder={"type": "WordPiece", "prefix": "##", "cleanup": False},
        ),
        [
            ("abab", [0, 4, 3], "abab"),
            ("ba", [1, 2], "ba"),
        ],
    ),
    (
        "Llama 2",
        LLAMA,
        [
            ("ab ab", [1, 262, 262], "<s> ab ab"),
            ("é ab", [1, 258, 197, 171, 262], "<s> é ab"),
            ("ab  b🦊", [1, 262, 258, 258, 260, 242, 161, 168, 140], "<s> ab  b🦊"),
            ("<s>ab<s> ab", [1, 1, 262, 1, 258, 262], "<s><s> ab<s>  ab"),
            ("", [1], "<s>"),
            (" ab", [1, 258, 262], "<s>  ab"),
        ],
    ),
    (
        "half the bytes are missing",
        file_of(bpe("<unk> <0xC3> a", unk_token="<unk>", byte_fallback=True)),
        [
            ("aéa", [2, 0, 2], "a <unk> a"),
        ],
    ),
    (
        "bytes while an unknown waits",
        file_of(bpe("<unk> <0xC3> <0xA9> a", unk_token="<unk>", byte_fallback=True)),
        [
            ("a狐éa", [3, 1, 2, 0, 3], "a <0xC3> <0xA9> <unk> a"),
        ],
    ),
    (
        "Gemma",
        file_of(
            bpe("<unk> ▁ a b ab ▁▁", "▁+▁ a+b", unk_token="<unk>"),
            normalizer=TO_MARK,
            pre_tokenizer={
                "type": "Split",
                "pattern": {"String": " "},
                "behavior": "MergedWithPrevious",
                "invert": False,
            },
            decoder=chain("decoders", TO_SPACE, {"type": "Fuse"}),
        ),
        [
            ("ab  ab", [4, 5, 4], "ab  ab"),
            (" a", [1, 2], " a"),
        ],
    ),
    (
        "Unigram, Metaspace",
        file_of(
            UNIGRAM,
            pre_tokenizer={**META, "prepend_scheme": "always", "split": True},
            decoder={**META, "prepend_scheme": "always", "split": True},
        ),
        [
            ("the fox", [1, 7], "the fox"),
            ("thethe", [1, 3], "thethe"),
            ("the ox x", [1, 2, 0, 2, 0], "the <unk> <unk>"),
            ("xx  the", [2, 0, 2, 1], "<unk>  the"),
            ("", [], ""),
        ],
    ),
    (
        "Unigram, bytes",
        file_of(
            {
                **UNIGRAM,
                "byte_fallback": True,
                "vocab": UNIGRAM["vocab"] + [[f"<0x{b:02X}>", -9.0] for b in "狐é".encode()],
            },
            pre_tokenizer=META,
        ),
        [
            ("the 狐", [1, 2, 9, 10, 11], "▁the ▁ <0xE7> <0x8B> <0x90>"),
            ("éé狐x", [2, 0], "▁ <unk>"),
        ],
    ),
    (
        "Metaspace before the first word only",
        file_of(
            UNIGRAM,
            pre_tokenizer={**META, "prepend_scheme": "first"},
            added_tokens=[added(9, "<s>")],
        ),
        [
            ("the<s>the", [1, 9, 3], "▁the <s> the"),
            ("<s>the", [9, 3], "<s> the"),
        ],
    ),
    (
        "WordPiece",
        file_of(
            WORDPIECE,
            pre_tokenizer=regex_split(" ", "Removed"),
            decoder={"type": "WordPiece", "prefix": "##", "cleanup": False},
        ),
        [
            ("untied unable united a", [1, 3, 5, 1, 8, 0, 9], "untied unable [UNK] a"),
            ("untieuntiea untietietd", [0, 0], "[UNK] [UNK]"),
        ],
    ),
    (
        "a tokenizer without a decoder",
        file_of(bpe("a b")),
        [
            ("ab", [0, 1], "a b"),
        ],
    ),
    (
        "byte level, a space before",
        file_of(
            BYTE_LEVEL,
            pre_tokenizer={**BYTES, "add_prefix_space": True, "use_regex": True},
            decoder=BYTES,
            added_tokens=[added(259, "<s>")],
        ),
        [
            ("a12ab", [256, 257, 258], " a12ab"),
            ("a<s>a\t12", [256, 259, 256, 9, 257], " a<s> a\t12"),
            (" a", [256], " a"),
            ("", [], ""),
        ],
    ),
    (
        "digits, then bytes",
        file_of(
            BYTE_LEVEL,
            pre_tokenizer=chain(
                "pretokenizers",
                {"type": "Digits", "individual_digits": True},
                {**BYTES, "use_regex": True},
            ),
            decoder=BYTES,
        ),
        [
            ("a12ab é", [97, 49, 50, 258, 32, 195, 169], "a12ab é"),
        ],
    ),
    (
        "three splits",
        file_of(
            BYTE_LEVEL,
            pre_tokenizer=chain(
                "pretokenizers",
                regex_split(r"\p{N}{1,3}"),
                regex_split("[一-龥]+"),
                regex_split(r"\s?\p{L}+"),
                BYTES,
            ),
            decoder=BYTES,
        ),
        [
            ("a12 狐12ab a", [97, 257, 32, 231, 139, 144, 257, 258, 256], "a12 狐12ab a"),
        ],
    ),
    (
        "NFC",
        file_of(bpe("<unk> é e", unk_token="<unk>"), normalizer={"type": "NFC"}),
        [
            ("ée", [1, 2], "é e"),
        ],
    ),
    (
        "NFD",
        file_of(bpe("<unk> é e", unk_token="<unk>"), normalizer={"type": "NFD"}),
        [
            ("é", [2, 0], "e <unk>"),
        ],
    ),
    (
        "NFKC",
        file_of(bpe("<unk> f i 2", unk_token="<unk>"), normalizer={"type": "NFKC"}),
        [
            ("ﬁ²", [1, 2, 3], "f i 2"),
        ],
    ),
    (
        "NFKD",
        file_of(bpe("<unk> f i 2 e", unk_token="<unk>"), normalizer={"type": "NFKD"}),
        [
            ("ﬁé²", [1, 2, 4, 0, 3], "f i e <unk> 2"),
        ],
    ),
    (
        "Replace by a regex",
        file_of(
            bpe("<unk> a .", unk_token="<unk>"),
            normalizer={"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": "."},
        ),
        [
            ("a \n a", [1, 2, 1], "a . a"),
        ],
    ),
    (
        "bos and eos",
        file_of(
            bpe("a <s> </s>"),
            post_processor=chain("processors", BYTES, template({"<s>": 1}, {"</s>": 2})),
        ),
        [
            ("aa", [1, 0, 0, 2], "<s> a a </s>"),
            ("", [1, 2], "<s> </s>"),
        ],
    ),
    (
        "added: longest of the first",
        file_of(
            bpe("a b <unk>", unk_token="<unk>"),
            added_tokens=[added(3, "<a"), added(4, "<ab>"), added(5, "b><")],
        ),
        [
            ("a<ab><ab", [0, 4, 3, 1], "a <ab> <a b"),
            ("b><ab>", [5, 0, 1, 2], "b>< a b <unk>"),
        ],
    ),
    (
        "added: strip",
        file_of(
            bpe("a b <unk>", unk_token="<unk>"),
            pre_tokenizer=regex_split(r"\s", "Isolated"),
            added_tokens=[added(3, "<l>", lstrip=True), added(4, "<r>", rstrip=True)],
        ),
        [
            ("a  <l> b", [0, 3, 2, 1], "a <l> <unk> b"),
            ("a <r> \n<l>\n b", [0, 2, 4, 3, 2, 2, 1], "a <unk> <r> <l> <unk> <unk> b"),
            ("<r> <l>", [4, 3], "<r> <l>"),
        ],
    ),
    (
        "added: single word",
        file_of(
            bpe("a b m _ é - <unk>", unk_token="<unk>"),
            added_tokens=[added(7, "mm", single_word=True)],
        ),
        [
            ("amm mm", [0, 2, 2, 6, 7], "a m m <unk> mm"),
            ("mm", [7], "mm"),
            ("-mm-", [5, 7, 5], "- mm -"),
            ("_mm", [3, 2, 2], "_ m m"),
            ("émm", [4, 2, 2], "é m m"),
            ("mmé mm_", [2, 2, 4, 6, 2, 2, 3], "m m é <unk> m m _"),
            ("mm-a a-mm", [7, 5, 0, 6, 0, 5, 7], "mm - a <unk> a - mm"),
        ],
    ),
    (
        "added: normalized and raw",
        file_of(
            bpe("<unk> a b A", unk_token="<unk>"),
            normalizer={"type": "Replace", "pattern": {"String": "A"}, "content": "a"},
            added_tokens=[added(4, "AB", normalized=True, special=False), added(5, "bA")],
        ),
        [
            ("ABaBbA", [4, 4, 5], "AB AB bA"),
        ],
    ),
]


@pytest.mark.parametrize("step, text, pieces", PIECES)
def test_a_step_cuts_as_the_library_does(step, text, pieces):
    (step,) = stage.read_steps("pre_tokenizer", step)
    assert stage.cut(text, step, begins=True) == pieces


def test_byte_level_cuts_as_gpt2_unless_told_otherwise():
    for step, pieces in (
        ({**BYTES, "use_regex": True}, ["a", "12", "  ", " b"]),
        ({**BYTES, "use_regex": False}, ["a12   b"]),
        ({"type": "ByteLevel", "add_prefix_space": True}, [" a", "12", "  ", " b"]),
    ):
        (step,) = stage.read_steps("pre_tokenizer", step)
        assert stage.cut("a12   b", step, begins=True) == pieces


@pytest.mark.parametrize("name, parts, texts", CASES, ids=[case[0] for case in CASES])
def test_ids_are_the_librarys(name, parts, texts, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    for tokenizer in (Tokenizer(parts), Tokenizer.load(tmp_path / "tokenizer.json")):
        for text, ids, decoded in texts:
            assert tokenizer.encode(text, "all", add_special_tokens=True) == ids, text
            assert tokenizer.decode(ids) == "".join(tokenizer.decode_stream(iter(ids))) == decoded


def test_special_tokens_in_a_text_are_plain_unless_allowed():
    tokenizer = Tokenizer(
        file_of(
            {**UNIGRAM, "vocab": [*UNIGRAM["vocab"], ["</s>", 0.0]]},
            added_tokens=[added(9, "</s>"), added(10, "<call>", special=False)],
        )
    )
    assert tokenizer.special_tokens == {"</s>": 9}
    assert tokenizer.encode("the</s>", "all") == tokenizer.encode("the</s>", {"</s>"}) == [3, 9]
    assert tokenizer.encode("the</s>") == [3, 0]  # although it is a piece of the vocabulary
    assert tokenizer.encode("the<call>") == [3, 10]  # the file does not call it special
    assert tokenizer.encode("the", add_special_tokens=True) == [3]


@pytest.mark.parametrize("wrong", [None, "some", 1, {"<|x|>"}, ["<|e|>", 7], b"all", {"<|e|>": 1}])
def test_allowed_special_is_none_all_or_known_tokens(wrong):
    tokenizer = BPETokenizer.train("abab", 300, special_tokens=["<|e|>"])
    assert tokenizer.encode("<|e|>", ["<|e|>"]) == tokenizer.encode("<|e|>", "all") == [257 + 1]
    with pytest.raises(ValueError, match="allowed_special"):
        tokenizer.encode("a", wrong)


# ---------------------------------------------------------------- regular expressions


def test_general_categories_are_python_unicode_databases(rng):
    """Each class, from its definition, on characters from everywhere."""
    blank = {c for c in map(chr, range(0x110000)) if unicodedata.category(c)[0] == "Z"}
    assert set(stage.BLANKS) == blank | set("\t\n\v\f\r\x85")
    chars = [chr(c) for c in rng.integers(0, 0x30000, 3000) if not 0xD800 <= c < 0xE000]
    chars += [*map(chr, range(0x250))]
    text = "".join(chars)
    for name in ("L", "Lu", "Lm", "M", "Mn", "N", "No", "P", "Pd", "S", "Sc", "Zs", "Cf"):
        expected = [c for c in chars if unicodedata.category(c).startswith(name)]
        assert stage.split(text, rf"\p{{{name}}}", "Removed", True) == expected
        rest = stage.split(text, rf"\P{{{name}}}", "Removed", True)
        assert rest == [c for c in chars if not unicodedata.category(c).startswith(name)]
    ascii_text = "".join(map(chr, range(128)))
    assert stage.split(ascii_text, r"\p{Lo}|\p{Nl}|[\p{Sm}]", "Removed", True) == [*"+<=>|~"]
    assert stage.split(ascii_text, r"[^\s\p{C}]+", "Removed") == [
        "".join(map(chr, range(33))),
        "\x7f",
    ]


@pytest.mark.parametrize(
    "regex, said",
    [
        (r"\p{Greek}", r"\\p{Greek}"),
        (r"\p{Han}", r"\\p{Han}"),
        (r"\w+", r"\\w"),
        (r"[\P{L}]", r"\\P{L}"),
        (r"[a[b]]", r"'\['"),
        (r"[a-z&&b]", "'&'"),
        (r"[]a]", r"'\[\]'"),
        (r"^a", r"'\^'"),
        (r"a$", r"'\$'"),
        (r"a{2}+", r"'\{2\}\+'"),
        (r"(?<name>a)", r"'\('"),
        (r"(?>a)", r"'\('"),
        (r"\bx", r"\\b"),
        (r"(a)\1", r"\\1"),
        (r"(a", "missing"),
        (r"a\d\h", r"\\h"),
    ],
)
def test_a_regex_that_is_not_understood_is_refused_when_the_file_is_opened(regex, said):
    with pytest.raises(ValueError, match=f"regex .*{said}"):
        Tokenizer(file_of(bpe("a"), pre_tokenizer=regex_split(regex)))


# ---------------------------------------------------------------- what is refused


def changed(parts, path, value):
    """A copy of parts in which what stands at the path, "model.dropout", is value."""
    copy = json.loads(json.dumps(parts))
    *way, last = path.split(".")
    at = copy
    for key in way:
        at = at[int(key) if isinstance(at, list) else key]
    at[int(last) if isinstance(at, list) else last] = value
    return copy


REFUSED = [
    ("version", "2.0", "'version' is '2.0'"),
    ("truncation", {"max_length": 5}, "'truncation' is .'max_length': 5"),
    ("padding", {"strategy": "BatchLongest"}, "'padding'"),
    ("novelty", 1, "'novelty' is 1; handled here: null or empty"),
    ("normalizer", "NFC", "'normalizer' is 'NFC'; handled here: dict"),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "x"}, "'Precompiled'; handled"),
    ("normalizer", {"type": "NFC", "form": 2}, "normalizer NFC: 'form' is 2"),
    ("normalizer", {"type": "Prepend", "prepend": 1}, "'prepend' is 1; handled here: str"),
    ("normalizer", {"type": "Prepend"}, "prepend"),
    ("normalizer", {"type": "Replace", "pattern": {"Glob": "*"}, "content": ""}, "pattern .*Glob"),
    ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": ""}, "pattern"),
    ("pre_tokenizer", {"type": "Whitespace"}, "'Whitespace'; handled here: Split"),
    ("pre_tokenizer", {"type": ["Digits"]}, r"\['Digits'\]"),
    ("pre_tokenizer", regex_split("a", "isolated"), "'behavior' is 'isolated'"),
    ("pre_tokenizer", {**regex_split("a"), "invert": 1}, "'invert' is 1; handled here: bool"),
    ("pre_tokenizer", {"type": "Digits", "individual_digits": 1}, "'individual_digits'"),
    ("pre_tokenizer", {**META, "prepend_scheme": "last"}, "'prepend_scheme' is 'last'"),
    ("pre_tokenizer", {**META, "replacement": "__"}, "expected one character"),
    ("pre_tokenizer", chain("pretokenizers", BYTES, regex_split("a")), "ByteLevel as the last"),
    ("pre_tokenizer", {"type": "Sequence"}, "unpack"),
    ("pre_tokenizer", {**chain("pretokenizers", BYTES), "x": 1}, "unpack"),
    ("post_processor", {"type": "BertProcessing"}, "post_processor 'BertProcessing'"),
    ("post_processor.single", [], "post_processor"),
    ("post_processor.special_tokens.<s>.ids", [7000], "7000 is the id of no token"),
    ("post_processor.special_tokens.<s>.ids", [True], "True is the id of no token"),
    ("decoder", {"type": "CTC"}, "decoder 'CTC'"),
    ("decoder", chain("decoders", {"type": "Fuse"}, TO_SPACE), "Fuse at the end"),
    ("decoder", {"type": "Strip", "content": " ", "start": 1, "stop": 0}, "Fuse and Strip"),
    ("decoder.decoders.3.stop", 1, "'stop' is 1"),
    ("decoder.decoders.3.content", "ab", "expected one character"),
    ("model", 5, "'model' is 5"),
    ("model.type", "WordLevel", "model 'WordLevel'; handled here: BPE"),
    ("model.dropout", 0.1, "model BPE: 'dropout' is 0.1"),
    ("model.cache", 7, "'cache' is 7"),
    ("model.fuse_unk", "yes", "'fuse_unk' is 'yes'; handled here: bool"),
    ("model.unk_token", 3, "'unk_token' is 3"),
    ("model.vocab", {}, "vocab: expected at least one token"),
    ("model.vocab.a", "97", "vocab: 'a' has the id '97'"),
    ("model.vocab.a", None, "has the id None"),
    ("model.vocab.a", -1, "has the id -1"),
    ("model.vocab.a", 1.5, "has the id 1.5"),
    ("model.vocab.a", True, "has the id True"),
    ("model.vocab.a", 2**32, "has the id 4294967296"),
    ("model.vocab.a", math.inf, "has the id inf"),
    ("model.vocab.a", 0, "no token or id twice"),
    ("model.vocab.\ud83d", 999, "surrogate"),
    ("model.merges.0", "ab", "merges: 'ab': expected two tokens"),
    ("model.merges.0", ["a", "b", "a"], "merges"),
    ("model.merges.0", ["a", "é"], "merges: .*KeyError"),
    ("model.merges.0", ["b", "a"], "merges: .*'ba'"),
    ("model.merges.0", None, "merges: None"),
    ("added_tokens.0.content", "", "added_tokens: ''"),
    ("added_tokens.0.content", "\ud83d", "surrogate"),
    ("added_tokens.0.id", 7, "with id 7: expected .*here 0"),
    ("added_tokens.0.id", "0", "'id' is '0'; handled here: int"),
    ("added_tokens.0.lstrip", "no", "'lstrip' is 'no'"),
    ("added_tokens.1", added(0, "<unk>"), "one of each text"),
    ("added_tokens.1", added(3, "<new>"), "'<new>' with id 3: expected .*here 263"),
    ("added_tokens.1", 5, "added_tokens is 5: expected an object"),
]  # fmt: skip


@pytest.mark.parametrize("path, value, said", REFUSED)
def test_what_would_change_ids_and_is_not_handled_is_refused(path, value, said, tmp_path):
    Tokenizer(LLAMA)
    with pytest.raises((ValueError, KeyError), match=said):
        Tokenizer(changed(LLAMA, path, value))
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed(LLAMA, path, value)))
    with pytest.raises(ValueError) as refusal:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    "vocab, said",
    [
        ([["<unk>", 0], ["a", math.nan]], "nan|NaN"),
        ([["<unk>", 0], ["a", -math.inf]], "-inf|Infinity"),
        ([["<unk>", 0], ["a", None]], "a piece and its score"),
        ([["<unk>", 0], ["a", "x"]], "a piece and its score"),
        ([["<unk>", 0], ["a", True]], "a piece and its score"),
        ([["<unk>", 0], [1, -1.0]], "a piece and its score"),
        ([["<unk>", 0], ["a"]], "unpack"),
        ([["<unk>", 0], ["a", -1.0], ["a", -2.0]], "no token or id twice"),
        ([], "at least one token|empty"),
    ],
)  # fmt: skip
def test_unigram_pieces_are_distinct_and_have_finite_scores(vocab, said, tmp_path):
    parts = file_of({"type": "Unigram", "unk_id": 0, "vocab": vocab})
    with pytest.raises(ValueError, match=said):
        Tokenizer(parts)
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    with pytest.raises(ValueError, match=said):
        Tokenizer.load(tmp_path)
    good = file_of({**UNIGRAM, "unk_id": 99})
    with pytest.raises(ValueError, match="99 is the id of no token"):
        Tokenizer(good)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"\xff",
        b"5",
        b"[]",
        b"{}",
        b'{"model": {}}',
        b"nul",
    ],
)
def test_damaged_files_are_one_sentence(content, tmp_path):
    for path in (tmp_path / "tokenizer.json", tmp_path / "a.tiktoken"):
        path.write_bytes(content)
    for call in (
        lambda: Tokenizer.load(tmp_path),
        lambda: Tokenizer.load(tmp_path / "tokenizer.json"),
        lambda: Tokenizer.load(tmp_path / "a.tiktoken", "gpt2"),
    ):
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as refusal:
            call()
        assert len(str(refusal.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    "where, step, missing",
    [
        ("normalizer", {"type": "Prepend"}, "prepend"),
        ("pre_tokenizer", {"type": "Metaspace"}, "replacement"),
        ("pre_tokenizer", {"type": "Digits", "individual_digits": None}, "individual_digits"),
        ("decoder", {"type": "BPEDecoder"}, "suffix"),
        (
            "pre_tokenizer",
            {"type": "Split", "pattern": {"String": "a"}, "invert": False},
            "behavior",
        ),
        ("model", {"type": "BPE", "merges": []}, "vocab"),
        ("model", {"type": "BPE", "vocab": {"a": 0}}, "merges"),
        ("model", {**WORDPIECE, "max_input_chars_per_word": None}, "max_input_chars_per_word"),
        ("post_processor", {"type": "TemplateProcessing", "single": []}, "special_tokens"),
    ],
)
def test_a_key_that_is_missing_is_named(where, step, missing):
    with pytest.raises(ValueError, match=rf"{where} .*: '{missing}' is None; handled here: "):
        Tokenizer({**file_of(bpe("a")), where: step})


def test_parts_that_do_not_go_together_are_refused():
    first = {**META, "prepend_scheme": "first"}
    nothing = {"type": "Replace", "pattern": {"String": "a"}, "content": ""}
    for parts, said in (
        ({"normalizer": nothing, "pre_tokenizer": first}, "'first' is not handled"),
        ({"pre_tokenizer": chain("pretokenizers", regex_split("b", "Removed"), first)}, "'first'"),
        ({"normalizer": nothing, "added_tokens": [added(2, "aa", normalized=True)]}, "nothing of"),
    ):
        with pytest.raises(ValueError, match=said):
            Tokenizer(file_of(bpe("a b"), **parts))
    Tokenizer(file_of(bpe("a b"), normalizer=nothing, pre_tokenizer=META))


def test_what_changes_nothing_may_stand_in_a_file():
    model = bpe("a b", dropout=0.0, ignore_merges=None, unk_token=None, cache=[], novelty=False)
    parts = file_of(model, truncation=None, padding=None, comment="", normalizer=None)
    for dropout in (0, 0.0, None):
        assert Tokenizer({**parts, "model": {**model, "dropout": dropout}}).encode("ab") == [0, 1]
    older = {**META, "add_prefix_space": False}  # before there was a prepend_scheme
    assert Tokenizer({**parts, "model": UNIGRAM, "pre_tokenizer": older}).encode("the") == [3]
    older["add_prefix_space"] = True
    assert Tokenizer({**parts, "model": UNIGRAM, "pre_tokenizer": older}).encode("the") == [1]


def test_a_text_that_no_token_can_write_is_refused():
    """The library leaves such characters out without a word."""
    tokenizer = Tokenizer(file_of(bpe("a b")))
    with pytest.raises(
        ValueError, match="text has 'x': no token can write it, and there is no unk"
    ):
        tokenizer.encode("axb")


@pytest.mark.parametrize("kind", [WordPieceTokenizer, UnigramTokenizer])
def test_a_kind_opens_only_its_own_model(kind):
    with pytest.raises(ValueError, match="model 'BPE': expected"):
        kind(LLAMA)
    assert BPETokenizer(LLAMA).encode("ab") == [262]


# ---------------------------------------------------------------- ids and text


def test_ids_may_have_holes_and_the_largest_counts():
    model = {"type": "BPE", "vocab": {"a": 0, "b": 7}, "merges": []}
    tokenizer = Tokenizer(file_of(model, decoder={"type": "Fuse"}))
    assert (tokenizer.vocab_size, tokenizer.holes) == (8, 6)
    assert tokenizer.decode([7, 0]) == "ba" and tokenizer.vocab == {0: b"a", 7: b"b"}
    with pytest.raises(ValueError, match=r"ids: 5: expected integers 0\.\.7, 6 of them without"):
        tokenizer.decode([0, 5])
    assert BPETokenizer().holes == 0
    with pytest.raises(ValueError, match="'<x>' with id 7"):
        Tokenizer(file_of({**model, "vocab": {"a": 0, "b": 1}}, added_tokens=[added(7, "<x>")]))
    with pytest.raises(ValueError, match="'<x>' with id 2"):  # the library's, which b has
        Tokenizer(file_of({**model, "vocab": {"a": 0, "b": 2}}, added_tokens=[added(2, "<x>")]))


class Tensor:
    """What has a tolist, as tensors of other libraries do."""

    def tolist(self):
        return [104, 105]


def test_decode_takes_lists_arrays_tensors_and_nothing_else():
    tokenizer = BPETokenizer()
    for ids in ([104, 105], (104, 105), np.array([104, 105], np.uint8), Tensor(), iter([104, 105])):
        assert tokenizer.decode(ids) == "hi"
    for wrong in (
        np.array(3),
        3,
        None,
        [[1]],
        np.array([[1]]),
        ["1"],
        [1.0],
        [True],
        [np.True_],
        [-1],
        [256],
    ):
        with pytest.raises(ValueError, match="ids: .*expected integers"):
            tokenizer.decode(wrong)


def test_the_stream_never_yields_half_a_character():
    tokenizer = BPETokenizer.train("狐狸 é", 256)
    ids = tokenizer.encode("a狐é🦊") + [0xE7, 0x8B]
    parts = list(tokenizer.decode_stream(iter(ids)))
    assert parts == ["a", "狐", "é", "🦊", "\ufffd"] and "".join(parts) == tokenizer.decode(ids)
    llama = Tokenizer(LLAMA)
    assert list(llama.decode_stream(llama.encode("狐 a"))) == ["狐", " ", "a"]


@pytest.mark.parametrize(
    "parts",
    [
        LLAMA,
        file_of(BYTE_LEVEL, pre_tokenizer={**BYTES, "use_regex": True}, decoder=BYTES),
        file_of(UNIGRAM, pre_tokenizer={**META, "prepend_scheme": "first"}),
        file_of(BYTE_LEVEL, pre_tokenizer={**BYTES, "add_prefix_space": True}, decoder=BYTES,
                normalizer={"type": "NFC"},
                added_tokens=[added(259, "a\nb"), added(260, " <x>", lstrip=True)]),
    ],
)  # fmt: skip
def test_encode_iterable_has_the_ids_of_the_whole(parts, rng):
    tokenizer = Tokenizer(parts)
    words = [
        "a",
        "ab",
        "the",
        "fox",
        "é",
        "e\u0301",
        "狐",
        "12",
        " ",
        "\n",
        "a\nb",
        " <x>",
        "<s>ab",
    ]
    text = " ".join(words[i] for i in rng.integers(0, len(words), 3000))
    expected = tokenizer.encode(text, "all")
    for size in (1, 7, 1000, 10**6):
        chunks = [text[i : i + size] for i in range(0, len(text), size)]
        assert list(tokenizer.encode_iterable(chunks, "all", window=64)) == expected
    assert list(tokenizer.encode_iterable([])) == [] == list(tokenizer.encode_iterable([""]))
    with pytest.raises(ValueError, match="expected str"):
        list(tokenizer.encode_iterable([b"a"]))


def test_encode_iterable_holds_a_few_windows_only(monkeypatch):
    tokenizer, longest = BPETokenizer(), []
    encode = tokenizer._encode
    monkeypatch.setattr(
        tokenizer, "_encode", lambda text, *more: longest.append(len(text)) or encode(text, *more)
    )
    ids = tokenizer.encode_iterable(("the fox and\n" for _ in range(5000)), window=100)
    assert next(ids) == ord("t") and len(longest) < 5  # long before the end of the texts
    assert sum(1 for _ in ids) == 60_000 - 1 and max(longest) < 300
    for text in ("狐狸和葡萄，日本語。", "if(a[i]!=b){x+=1;}"):  # no blanks
        longest.clear()
        ids = list(tokenizer.encode_iterable([text] * 500, window=100))
        assert bytes(ids) == (text * 500).encode() and max(longest) < 400


def test_dropout_and_sampling_are_reached(rng):
    tokenizer = BPETokenizer.train("banana " * 9, 300)
    whole = tokenizer.encode("banana banana")
    assert tokenizer.sample("banana banana", rng, dropout=0) == whole
    assert tokenizer.sample("banana", rng, dropout=1) == [*b"banana"]
    cuts = {tuple(tokenizer.sample("banana banana", rng, dropout=0.5)) for _ in range(40)}
    assert len(cuts) > 5 and {tokenizer.decode(cut) for cut in cuts} == {"banana banana"}
    unigram = Tokenizer(file_of(UNIGRAM))
    cuts = {tuple(unigram.sample("the fox", rng, temperature=5)) for _ in range(200)}
    assert cuts == {(3, 0, 8), (4, 5, 6, 0, 8)}  # a blank, x: unknown
    assert tokenizer.encode("banana banana") == whole  # nothing random is remembered
    for wrong in (None, "0.1", -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="dropout"):
            tokenizer.sample("a", rng, dropout=wrong)
    with pytest.raises(ValueError, match="WordPiece model has no random cuts"):
        WordPieceTokenizer().sample("a", rng)


def test_long_texts_without_pre_tokens_are_cut_where_no_token_reaches_across(rng):
    across = bpe("<unk> ▁ a b a▁ ▁▁ a▁b", "▁+▁ a+▁ a▁+b", unk_token="<unk>", fuse_unk=True)
    across = Tokenizer(file_of(across, normalizer=TO_MARK))
    assert across.word_end.split("a▁b▁▁a▁x▁") == ["a▁b", "▁▁a▁x", "▁"]
    for _ in range(200):
        word = "".join(rng.choice([*"ab▁▁xy"], 30))
        ids = stage.merge_symbols(across._letters(word), across.ranks)
        assert across.encode(word) == ids
    tokenizer = Tokenizer(LLAMA)
    text = "".join(rng.choice([*"ab ", "é", "狐"], 5000))
    word = stage.normalize(text, tokenizer.normalizer)
    ids = stage.merge_symbols(tokenizer._letters(word), tokenizer.ranks)
    assert tokenizer.encode(text) == ids and max(map(len, tokenizer._cache)) < 100
    merged = file_of(
        bpe("<unk> <0x61> b <0x61>b", "<0x61>+b", unk_token="<unk>", byte_fallback=True)
    )
    assert Tokenizer(merged).encode("ab" * 60) == [3] * 60  # a byte and a letter: may not be cut


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kind", [BPETokenizer, WordPieceTokenizer, UnigramTokenizer])
@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "gpt4o", None])
def test_what_is_saved_opens_again(kind, pattern, tmp_path):
    text = "the café foxes' HTTPServer 1234 狐狸\n\n" * 3 + "<|e|>"
    tokenizer = kind.train(text, 300, pattern, ["<|e|>"])
    tokenizer.save(tmp_path)
    for loaded in (Tokenizer.load(tmp_path), kind.load(str(tmp_path))):
        assert loaded.parts == tokenizer.parts and loaded.pattern == pattern
        assert loaded.encode(text, "all") == tokenizer.encode(text, "all")
        assert loaded.decode(loaded.encode(text)) == text
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_other_peoples_files_are_saved_as_they_were(tmp_path):
    Tokenizer(LLAMA).save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8")) == LLAMA
    assert len(list(tmp_path.iterdir())) == 1


def test_gpt2s_two_files_are_as_good_as_one(tmp_path):
    tokenizer = BPETokenizer.train("the then, the theme", 270, special_tokens=["<|endoftext|>"])
    model = tokenizer.parts["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, model["merges"]), ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.parts == tokenizer.parts and isinstance(loaded, Tokenizer)
    (tmp_path / "merges.txt").unlink()
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            Tokenizer.load(path)


def test_ranks_of_tiktoken(tmp_path):
    """Two neighbours merge if they are a token together, whatever made them; lowest rank first."""
    tokens = [bytes([b]) for b in range(256)] + [b"bc", b"ab", b"abc", b"abca", b" "]
    lines = [base64.b64encode(t) + f" {i}\n".encode() for i, t in enumerate(tokens[:-1])]
    path = tmp_path / "small.tiktoken"
    path.write_bytes(b"".join(lines))
    tokenizer = Tokenizer.load(path, pattern="gpt4", special_tokens={"<|end|>": 270})
    assert tokenizer.encode("abc") == [258]  # a token as a whole, although bc comes first
    assert tokenizer.encode("abcb") == [258, 98] and tokenizer.encode("aabcab") == [97, 258, 257]
    assert tokenizer.encode("bcab") == [256, 257]
    assert tokenizer.encode("a<|end|>", "all") == [97, 270]
    assert (tokenizer.vocab_size, tokenizer.holes) == (271, 10) and tokenizer.pattern == "gpt4"
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode("aabca") == [97, 259]
    for call, said in (
        (lambda: Tokenizer.load(path), "does not name its pattern"),
        (lambda: Tokenizer.load(path, "gpt3"), "pattern 'gpt3'"),
        (lambda: Tokenizer.load(path, []), r"pattern \[\]"),
        (lambda: Tokenizer.load(path, "gpt2", {"a": 300}), "expected texts that are no tokens yet"),
        (lambda: Tokenizer.load(path, "gpt2", {"<e>": 97}), "no token or id twice"),
        (lambda: Tokenizer.load(path, "gpt2", [1]), "damaged"),
        (lambda: Tokenizer.load(tmp_path / "saved", "gpt2"), "are for .*tiktoken"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    for line in (b"YQ== x", b"YQ==", b"Y! 1", b"YQ== 1 2"):
        path.write_bytes(lines[0] + line)
        with pytest.raises(ValueError, match="line 2 is"):
            Tokenizer.load(path, "gpt2")


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: stage.pretokenize("a", "gpt3"), "pattern 'gpt3'"),
        (lambda: stage.pretokenize("a", ["gpt2"]), "pattern .*gpt2"),
        (lambda: stage.pretokenize(None, "gpt2"), "expected str"),
        (lambda: BPETokenizer.train("a", special_tokens=None), "special_tokens None"),
        (lambda: BPETokenizer.train("a", special_tokens=[[1]]), r"special_tokens \[\[1\]\]"),
        (lambda: BPETokenizer.train([], pattern="gpt3"), "pattern 'gpt3'"),
        (lambda: BPETokenizer.train("a", pattern="gpt3"), "pattern 'gpt3'"),
        (lambda: BPETokenizer.train("a", True), "vocab_size True"),
        (lambda: stage.compare([1], "a"), "expected"),
        (lambda: BPETokenizer().encode(None), "None is NoneType: expected str"),
        (lambda: BPETokenizer().encode("a\ud83d"), r"surrogate U\+D83D at position 1"),
        (lambda: BPETokenizer().sample("\ud83d", np.random.default_rng(0)), "surrogate"),
        (lambda: Tokenizer(None), "tokenizer.json is None: expected an object"),
        (lambda: Tokenizer({}), "'model' is None; handled here: dict"),
        (lambda: BPETokenizer({"model": None}), "'model' is None; handled here: dict"),
        (lambda: Tokenizer({"model": {}}), "model None; handled here: BPE, WordPiece, Unigram"),
        (lambda: UnigramTokenizer(LLAMA), "model 'BPE': expected 'Unigram'"),
        (lambda: BPETokenizer({"model": {"type": ["BPE"]}}), r"model \['BPE'\]"),
    ],
)
def test_wrong_arguments_are_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_the_commands_encode_and_decode_with_anybodys_file(tmp_path, capsys):
    BPETokenizer.train("the fox, the fox", 260).save(tmp_path)
    stage.main(["encode", str(tmp_path), "the", "fox"])
    ids = capsys.readouterr().out.split()
    assert list(map(int, ids)) == Tokenizer.load(tmp_path).encode("the fox")
    stage.main(["decode", str(tmp_path / "tokenizer.json"), *ids])
    assert capsys.readouterr().out == "the fox\n"


@pytest.mark.parametrize("ids, said", [(["12", "x"], "id 'x': expected a whole"), (["999"], "999")])
def test_ids_that_are_none_are_one_line(tmp_path, capsys, ids, said):
    BPETokenizer.train("the fox", 258).save(tmp_path)
    with pytest.raises(SystemExit) as stop:
        stage.main(["decode", str(tmp_path), *ids])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1


def test_a_file_that_is_no_json_is_called_that(tmp_path):
    (tmp_path / "tokenizer.json").write_text("# a page")
    with pytest.raises(ValueError, match="not JSON: Expecting value"):
        Tokenizer.load(tmp_path)
