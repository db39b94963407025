"""Does llama.cpp, given a checkpoint of ours as GGUF, compute what capstone_gpt.py computes?

    python benchmarks/check_gguf.py DIR --llama-cpp SOURCE [--text FILE]

DIR is a checkpoint (out/NAME/best), SOURCE a source tree of llama.cpp; the source package of
llama-cpp-python holds one in vendor/llama.cpp. Its convert_hf_to_gguf.py makes the GGUF file, and
llama-cpp-python computes with it. Compared are the token ids of a piece of text and the logits;
llama.cpp keeps keys and values in 16 bits, so that they agree to about three digits.

The converter knows a tokenizer by a hash of what it makes of a test text: GPT-2's and Llama 3's it
knows, tokens of your own it does not. For those that split text as GPT-2 does (data/tokenizer and
what stage 7 learns without --pattern) this script tells it "gpt-2", which by hand is one line in
its function get_vocab_base_pre. Needs llama-cpp-python, gguf, torch, transformers, sentencepiece.
"""

import argparse
import contextlib
import io
import json
import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import capstone_gpt as gpt

try:
    import llama_cpp
except ImportError:
    print("llama-cpp-python is not installed; this check needs it")
    sys.exit(0)

STORIES = Path(__file__).resolve().parent.parent / "data" / "stories.txt"


def splits_as_gpt2(directory):
    """Whether tokenizer.json splits text by GPT-2's rule."""
    splitter = json.loads((directory / "tokenizer.json").read_text())["pre_tokenizer"]
    return splitter["type"] == "ByteLevel" and splitter.get("use_regex", True)


def convert(directory, source, to):
    """Write the GGUF file; returns whether the converter knew the tokenizer by itself."""
    sys.path.insert(0, str(source))
    from conversion.base import TextModel

    knows = TextModel.get_vocab_base_pre
    known = [True]

    def get_vocab_base_pre(self, tokenizer):
        try:
            return knows(self, tokenizer)
        except NotImplementedError:
            if not splits_as_gpt2(directory):
                raise
            known[0] = False
            return "gpt-2"

    TextModel.get_vocab_base_pre = get_vocab_base_pre
    converter = str(source / "convert_hf_to_gguf.py")
    sys.argv = [converter, str(directory), "--outfile", str(to), "--outtype", "f32"]
    with contextlib.redirect_stderr(io.StringIO()):
        runpy.run_path(converter, run_name="__main__")
    return known[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--llama-cpp", type=Path, required=True, metavar="SOURCE")
    parser.add_argument("--text", type=Path, default=STORIES)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")[:2000]
    model = gpt.load_model(args.directory)
    ids = [int(i) for i in gpt.load_tokenizer(args.directory).encode(text)]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "model.gguf")
        known = convert(args.directory, args.llama_cpp.resolve(), file)
        theirs = llama_cpp.Llama(str(file), n_ctx=256, logits_all=True, verbose=False)
        their_ids = theirs.tokenize(text.encode(), add_bos=False)
        window = ids[: model.config.block_size]
        theirs.eval(window)
        logits = np.array(theirs.scores[: len(window)])
    ours = model.logits(np.array([window]))[0]
    same = (ours.argmax(-1) == logits.argmax(-1)).mean()
    print(f"llama-cpp-python {llama_cpp.__version__}, {model.config.arch}, {len(ids)} tokens")
    print(f"the converter {'knew' if known else 'was told'} how the tokenizer splits")
    print(f"token ids: {'the same' if ids == their_ids else 'DIFFERENT'}")
    apart, largest = np.abs(ours - logits).max(), np.abs(ours).max()
    print(f"logits of {len(window)} tokens: at most {apart:.1e} apart, the largest {largest:.1f}")
    print(f"likeliest token the same at {same:.0%} of the places")
    if ids != their_ids or same < 1:
        sys.exit(1)


if __name__ == "__main__":
    main()
