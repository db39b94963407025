"""Do transformers and capstone_gpt.py agree? Checkpoints go both ways, logits are compared.

    python benchmarks/check_transformers.py

Every variant is given random weights, saved here, opened there, saved there in float32, float16 and
bfloat16, and opened here again. Needs torch and transformers; says so and stops without them.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from capstone_gpt import GPT, GPTConfig

try:
    import torch
    import transformers
except ImportError as error:
    print(f"{error.name} is not installed; this check needs torch and transformers")
    sys.exit(0)

VARIANTS = {
    "gpt2": {"arch": "gpt2"},
    "gpt2, no biases": {"arch": "gpt2", "bias": False},
    "gpt2, own head, MLP of 40": {"arch": "gpt2", "tie_weights": False, "n_hidden": 40},
    "llama, 2 key heads, theta 5e5": {"arch": "llama", "n_kv_head": 2, "rope_theta": 5e5},
    "llama, tied head": {"arch": "llama", "tie_weights": True},
}


def main():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rng, failed = np.random.default_rng(0), 0
    print("largest difference of logits   theirs       back    float16   bfloat16")
    for label, fields in VARIANTS.items():
        model = GPT(
            GPTConfig(vocab_size=37, block_size=16, n_layer=3, n_head=4, n_embd=32, **fields)
        )
        model.flat[:] += rng.normal(0, 0.2, model.flat.size)
        idx = rng.integers(0, 37, (2, 16))
        ours, apart = model.logits(idx), []
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(f"{folder}/ours")
            peer = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/ours").eval()
            with torch.no_grad():
                apart.append(np.abs(peer(torch.from_numpy(idx)).logits.numpy() - ours).max())
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                peer.to(dtype).save_pretrained(f"{folder}/theirs")
                back = GPT.from_pretrained(f"{folder}/theirs")
                failed += back.config != model.config
                apart.append(np.abs(back.logits(idx) - ours).max())
        failed += not (apart[0] < 2e-5 and apart[1] == 0)
        print(f"{label:29}" + "".join(f"{x:11.1e}" for x in apart))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
