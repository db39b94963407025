"""Do transformers and capstone_gpt.py agree? Checkpoints go both ways, logits are compared.

    python benchmarks/check_transformers.py

Every variant is given random weights, saved here, opened there, saved there in float32, float16
and bfloat16, opened here again, and from there saved and opened once more. Then models that
transformers itself made go the same way, with everything in their config.json that this repo does
not compute with, and the greedy texts of both are compared token for token. Needs torch and
transformers; says so and stops without them.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from capstone_gpt import GPT, GPTConfig, bos_and_eos

try:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM
except ImportError as error:
    print(f"{error.name} is not installed; this check needs torch and transformers")
    sys.exit(0)

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS = {
    "gpt2": {"arch": "gpt2"},
    "gpt2, no biases": {"arch": "gpt2", "bias": False},
    "gpt2, own head, MLP of 40": {"arch": "gpt2", "tie_weights": False, "n_hidden": 40},
    "llama, 2 key heads, theta 5e5": {"arch": "llama", "n_kv_head": 2, "rope_theta": 5e5},
    "llama, tied head": {"arch": "llama", "tie_weights": True},
    "llama 3.1's rotation": {"arch": "llama", "n_kv_head": 2, "rope_scaling": LLAMA3},
}
SIZES = {"vocab_size": 37, "block_size": 256, "n_layer": 3, "n_head": 4, "n_embd": 64}


def difference(model, peer, idx):
    """The largest difference of the logits."""
    with torch.no_grad():
        theirs = peer(torch.from_numpy(idx)).logits.numpy()
    return np.abs(theirs - model.logits(idx)).max()


def ours_there_and_back(folder, fields, rng):
    """Differences: of ours read there, of theirs in three types read here, of ours saved again."""
    model = GPT(GPTConfig(**SIZES, **fields))
    model.flat[:] += rng.normal(0, 0.1, model.flat.size)
    idx = rng.integers(0, 37, (2, 256))
    model.save_pretrained(f"{folder}/ours")
    peer = AutoModelForCausalLM.from_pretrained(f"{folder}/ours").eval()
    apart = [difference(model, peer, idx)]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        peer.to(dtype).save_pretrained(f"{folder}/{dtype}")
        back = GPT.from_pretrained(f"{folder}/{dtype}")
        # the weights are rounded, the computation is in float32 on both sides
        peer = AutoModelForCausalLM.from_pretrained(f"{folder}/{dtype}", dtype=torch.float32)
        apart.append(difference(back, peer, idx))
        assert back.config == model.config, (back.config, model.config)
    back.save_pretrained(f"{folder}/again")
    again = AutoModelForCausalLM.from_pretrained(f"{folder}/again").eval()
    assert again.dtype == torch.float32
    apart.append(difference(back, again, idx))
    return apart


def theirs_here_and_back(folder, config, rng):
    """For a model they made: largest difference of logits; whether greedy texts are the same."""
    peer = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in peer.parameters():
            p += 0.1 * torch.from_numpy(rng.normal(size=p.shape).astype(np.float32))
    peer.save_pretrained(f"{folder}/theirs")
    model = GPT.from_pretrained(f"{folder}/theirs")
    model.save_pretrained(f"{folder}/again")
    kept = [
        json.loads(Path(folder, name, "config.json").read_text()) for name in ("theirs", "again")
    ]
    assert kept[0] == kept[1], "config.json changed"
    again = AutoModelForCausalLM.from_pretrained(f"{folder}/again").eval()
    assert again.generation_config.eos_token_id == peer.generation_config.eos_token_id
    idx = rng.integers(0, config.vocab_size, (2, 100))
    apart = max(difference(model, peer, idx), difference(model, again, idx))
    greedy = model.generate(idx[:, :5], 60, temperature=0)
    assert bos_and_eos(model) == (config.bos_token_id, (config.eos_token_id,))
    again.generation_config.eos_token_id = None  # both go on to the end
    start = torch.from_numpy(idx[:, :5])
    options = {"do_sample": False, "max_new_tokens": 60, "attention_mask": torch.ones_like(start)}
    theirs = again.generate(start, **options).numpy()
    return apart, np.array_equal(greedy, theirs)


def main():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rng, failed = np.random.default_rng(0), 0
    torch.manual_seed(0)
    print("largest difference of logits      ours    float32    float16   bfloat16      again")
    for label, fields in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            apart = ours_there_and_back(folder, fields, rng)
        failed += not max(apart) < 1e-5
        print(f"{label:29}" + "".join(f"{x:11.1e}" for x in apart))
    gpt2 = {"vocab_size": 37, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4}
    llama = {
        "vocab_size": 37,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    scaled = LLAMA3 | {"rope_type": "llama3", "rope_theta": 5e5}
    ends = {"bos_token_id": 35, "eos_token_id": 36}
    print("\nmodels made by transformers   logits   greedy text")
    for label, config in {
        "gpt2": transformers.GPT2Config(**gpt2, **ends),
        "llama": transformers.LlamaConfig(**llama, **ends),
        "llama 3.1, tied": transformers.LlamaConfig(
            **llama, **ends, rope_parameters=scaled, tie_word_embeddings=True
        ),
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            apart, same = theirs_here_and_back(folder, config, rng)
        failed += not (apart < 1e-5 and same)
        print(f"{label:25}{apart:11.1e}   {'the same' if same else 'DIFFERENT'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
