"""How fast do stage 7 and the capstone learn and use tokens, beside tokenizers and tiktoken?

    python benchmarks/tokenizer.py [--text FILE] [--vocab-size 2048] [--kinds BPE,...] [--fast]

First training: BPE, WordPiece and Unigram on the stories, by stage 7 and by the tokenizers library
(Rust), both cutting the text as GPT-2 does, both included in the time. Then encoding: stage 7's
tokenizers, the capstone's reader of the BPE one, the library on stage 7's own files, and tiktoken
on the same merges. All encode the whole text, in turns, twice: first with no word known, then
again. The ids must be equal wherever two sides have the same tokens, else the exit status is 1.

Fair: one thread each; the library encodes without its offsets, which ours does not compute either.
Unfair to ours: the others are compiled. Unfair to the library in training: its WordPiece merges the
commonest pair where ours finds the likeliest, with more arithmetic, and its Unigram starts from
repeated substrings of the whole text where ours takes those within words. So the tokens learned
differ; only BPE has one right answer but for ties, and the table says how many tokens are common.
tiktoken is only timed in encoding, since its own training is a lesson, not a tool. What is not
timed: reading files, and the capstone's and tiktoken's patterns, which are compiled beforehand.
"""

import os
import sys

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # both are read when the library is imported
os.environ["RAYON_NUM_THREADS"] = "1"

import tempfile
from pathlib import Path

import common

import capstone_gpt as gpt
import stage07_bpe as stage

KINDS = {
    "BPE": stage.BPETokenizer,
    "WordPiece": stage.WordPieceTokenizer,
    "Unigram": stage.UnigramTokenizer,
}

# %% Training


def train_theirs(kind, text, size):
    """The library's tokenizer of that kind, trained on the text as stage 7's is."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    letters = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": size, "initial_alphabet": letters, "show_progress": False}
    if kind == "BPE":
        tokenizer, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(**options)
    elif kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece())
        trainer = trainers.WordPieceTrainer(continuing_subword_prefix="", **options)
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(max_piece_length=stage.MAX_PIECE, **options)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def training(args, text, with_peer, record):
    """The first table; returns stage 7's tokenizers by kind."""
    print(f"\ntraining {args.vocab_size:,} tokens on {len(text.encode()) / 1e6:.2f} MB: seconds")
    print(f"{'':12}{'stage 7':24}{'tokenizers':24}ratio   common tokens")
    trained = {}
    for kind in args.kinds:
        learned = {}

        def ours(kind=kind, learned=learned):
            learned["stage 7"] = KINDS[kind].train(text, args.vocab_size)

        def theirs(kind=kind, learned=learned):
            learned["tokenizers"] = train_theirs(kind, text, args.vocab_size)

        sides = {"stage 7": lambda _, ours=ours: common.seconds(ours)}
        if with_peer:
            sides["tokenizers"] = lambda _, theirs=theirs: common.seconds(theirs)
        found, _ = common.take_turns(sides, args.rounds)
        row = {name: common.quartiles(times) for name, times in found.items()}
        print(f"{kind:12}" + "".join(f"{common.spread(t, 3):24}" for t in found.values()), end="")
        trained[kind] = learned["stage 7"]
        if with_peer:
            row["ratio"] = row["stage 7"][1] / row["tokenizers"][1]
            mine = {stage.to_alphabet(token) for token in trained[kind].ids}
            row["common"] = len(mine & learned["tokenizers"].get_vocab().keys()) / len(mine)
            print(f"{row['ratio']:5.2f}   {row['common']:.1%}", end="")
        print(flush=True)
        record[f"training {kind}"] = row
    return trained


# %% Encoding
#
# A side of encoding is a function that makes a tokenizer which knows no word yet, and returns how
# it encodes: text to a list of ids.


def fresh_stage(tokenizer):
    """Stage 7's tokenizer with nothing in its cache."""
    tokenizer._prepare()
    return tokenizer.encode


def fresh_capstone(directory):
    """The capstone's reading of the directory."""
    tokenizer = gpt.load_tokenizer(directory)
    return lambda text: tokenizer.encode(text).tolist()


def fresh_library(directory):
    """The library's reading of the directory."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return lambda text: tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids


def fresh_tiktoken(tokenizer):
    """tiktoken with the merges of stage 7's BPE; its rank of a token is our id."""
    import tiktoken

    ranks = {token: i for i, token in tokenizer.vocab.items()}
    pattern = stage.PATTERNS[tokenizer.pattern]
    made = tiktoken.Encoding("ours", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return made.encode_ordinary


def encoders(kind, tokenizer, directory, with_library, with_tiktoken):
    """{name: function that makes a fresh encoder} of those who can use this kind of tokens."""
    makers = {"stage 7": lambda: fresh_stage(tokenizer)}
    if kind == "BPE":
        makers["capstone"] = lambda: fresh_capstone(directory)
    if with_library:
        makers["tokenizers"] = lambda: fresh_library(directory)
    if kind == "BPE" and with_tiktoken:
        makers["tiktoken"] = lambda: fresh_tiktoken(tokenizer)
    return makers


def encoding_side(make, text, ids):
    """A side: seconds of the first and of the second encoding; the ids go into the list `ids`."""

    def turn(_):
        encode = make()
        encode("Once")  # so that no pattern is compiled within the time
        first = common.seconds(encode, text)
        again = common.seconds(encode, text)
        ids[:] = encode(text)
        return first, again

    return turn


def encoding(args, text, trained, with_library, with_tiktoken, record):
    """The second table; returns whether all ids are equal."""
    megabytes, all_equal = len(text.encode()) / 1e6, True
    print(f"\nencoding {megabytes:.2f} MB: MB/s first, MB/s again; ids")
    for kind, tokenizer in trained.items():
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(folder)
            makers = encoders(kind, tokenizer, Path(folder), with_library, with_tiktoken)
            ids = {name: [] for name in makers}
            sides = {n: encoding_side(make, text, ids[n]) for n, make in makers.items()}
            found, _ = common.take_turns(sides, args.rounds)
        for name, times in found.items():
            first, again = ([megabytes / t for t in column] for column in zip(*times))
            equal = ids[name] == ids["stage 7"]
            all_equal = all_equal and equal
            verdict = f"{len(ids[name]):,}" if equal else "DIFFERENT"
            print(f"{kind:12}{name:12}{common.spread(first):24}{common.spread(again):24}{verdict}")
            row = {"first": common.quartiles(first), "again": common.quartiles(again)}
            record[f"encoding {kind}, {name}"] = {**row, "equal": equal}
    return all_equal


def main():
    parser = common.make_parser(__doc__, rounds=5)
    stories = common.ROOT / "data" / "stories.txt"
    parser.add_argument("--text", default=stories, metavar="FILE", help="UTF-8 [the stories]")
    parser.add_argument("--characters", type=int, metavar="N", help="only the first N [all]")
    parser.add_argument("--vocab-size", type=int, default=2048, help="[2048]")
    about = "a part of BPE,WordPiece,Unigram [all]"
    parser.add_argument("--kinds", type=common.words, default=[*KINDS], help=about)
    args = common.parse(parser, {"rounds": 1, "characters": 50_000, "vocab_size": 512})
    text = Path(args.text).read_bytes().decode()[: args.characters]
    record = {"machine": common.machine("tokenizers", "tiktoken")}
    record |= {"bytes": len(text.encode()), "vocab_size": args.vocab_size}
    with_library, with_tiktoken = common.present("tokenizers"), common.present("tiktoken")
    trained = training(args, text, with_library, record)
    equal = encoding(args, text, trained, with_library, with_tiktoken, record)
    common.keep(args, "tokenizer", record)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
