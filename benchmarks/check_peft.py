"""Open stage 9's files with Hugging Face transformers and PEFT, and compare logits in float32.

A base and, by stage 9, adapters of every kind (LoRA, rsLoRA, DoRA) are saved, then opened by
GPT2LMHeadModel and PeftModel, and run on the same tokens: logits must agree to 1e-5. Then PEFT
saves the adapter, stage 9 opens that, and they are compared again. Needs torch, transformers, peft:

    python benchmarks/check_peft.py
"""

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import stage09_lora as stage  # noqa: E402

try:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is local: ask no server
    import peft
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # theirs, about their own next version
except ImportError as error:
    print(f"{error.name} is not installed, so there is nothing to compare with.")
    sys.exit(0)

TOLERANCE, N_HEAD = 1e-5, 4
KINDS = {"LoRA": {}, "rsLoRA": {"rslora": True}, "DoRA": {"layer": stage.DoRALinear}}
TARGETS = (("attn.c_attn",), ("c_attn", "c_proj", "c_fc"), ("h.1.mlp.c_proj",))


def save_base(directory, params, n_head):
    """Write the model as transformers' GPT2LMHeadModel reads it."""
    (V, C), (T, _) = (params[f"transformer.{n}.weight"].shape for n in ("wte", "wpe"))
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_head": n_head}
    config |= {"vocab_size": V, "n_positions": T, "n_embd": C}
    config |= {"n_layer": sum(".ln_1.weight" in name for name in params)}
    config |= {"bos_token_id": None, "eos_token_id": None}
    stage.save_safetensors(directory / "model.safetensors", params)
    stage.write_file(directory / "config.json", json.dumps(config, indent=2).encode())


def main():
    """Print one line per kind and choice of targets; exit status 1 if any differs."""
    rng = np.random.default_rng(0)
    params = stage.init_params(vocab_size=61, block_size=32, n_layer=2, width=64)
    for p in params.values():  # as far from the zeros and ones of a fresh model as a trained one
        p += rng.normal(0, 0.05, p.shape).astype(p.dtype)
    idx = rng.integers(0, 61, (3, 32))
    worst = 0.0

    def difference(model, adapters):
        with torch.no_grad():
            theirs = model(torch.from_numpy(idx)).logits.numpy()
        ours = stage.gpt_forward(params, idx, N_HEAD, adapters)[0]
        return float(abs(theirs - ours).max())

    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        save_base(directory / "base", params, N_HEAD)

        def base():
            return transformers.GPT2LMHeadModel.from_pretrained(directory / "base").eval()

        alone = difference(base(), {})
        print(f"{'base alone':<44} transformers {alone:.1e}")
        worst = max(worst, alone)
        for kind, options in KINDS.items():
            for targets in TARGETS:
                adapters = stage.apply_lora(params, targets, 4, 8, **options)
                for layer in adapters.values():
                    for p in layer.params.values():
                        p += rng.normal(0, 0.1, p.shape).astype(p.dtype)
                effect = abs(
                    stage.gpt_forward(params, idx, N_HEAD, adapters)[0]
                    - stage.gpt_forward(params, idx, N_HEAD)[0]
                ).max()
                stage.save_adapter(directory / "ours", adapters)
                model = peft.PeftModel.from_pretrained(base(), directory / "ours").eval()
                there = difference(model, adapters)
                model.save_pretrained(directory / "theirs")
                back = difference(model, stage.load_adapter(directory / "theirs", params))
                worst = max(worst, there, back)
                name = f"{kind} on {', '.join(targets)}"
                print(
                    f"{name:<44} PEFT {there:.1e}, back {back:.1e} (the adapter moves {effect:.1f})"
                )
    print(f"largest difference {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(not worst <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
