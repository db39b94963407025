"""Do PEFT, transformers and stage 9 agree? Adapters go both ways, logits are compared in float32.

    python benchmarks/check_peft.py

For a GPT-2 and a Llama that transformers made, with every kind of adapter: PEFT makes one with its
own settings (patterns of ranks and alphas, three types of numbers), stage 9 opens it, and what
`merge` writes is opened by transformers. Then `adapt` trains one, and PEFT opens that. Each must
move the logits; what stage 9 cannot follow must be refused. Needs torch, transformers and peft.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import capstone_gpt as gpt  # noqa: E402
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

TOLERANCE, EFFECT = 1e-5, 1e-2  # at most, between two programs; at least, of an adapter
LETTERS = "\n abcdefghijklmnopqrstuvwxyz.,"
SHARED = {"vocab_size": len(LETTERS), "bos_token_id": None, "eos_token_id": None}
CONFIGS = {
    "gpt2": transformers.GPT2Config(**SHARED, n_positions=32, n_embd=64, n_layer=2, n_head=4),
    "llama": transformers.LlamaConfig(  # q_proj and o_proj are square, k_proj is not
        **SHARED, max_position_embeddings=32, hidden_size=64, intermediate_size=96,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    ),
}  # fmt: skip
FIRST = {"gpt2": "h.0.attn.c_attn", "llama": "layers.0.self_attn.q_proj"}
SOME = {"gpt2": ["c_attn", "mlp.c_proj"], "llama": ["q_proj", "k_proj", "down_proj"]}


def settings(arch):
    """{name: (what LoraConfig is given, the type of its numbers)} of adapters to be followed."""
    some = {"r": 4, "lora_alpha": 8, "target_modules": SOME[arch]}
    return {
        "LoRA": (some, torch.float32),
        "rsLoRA": (some | {"use_rslora": True}, torch.float32),
        "DoRA": (some | {"use_dora": True}, torch.float32),
        "all-linear": ({"r": 2, "target_modules": "all-linear"}, torch.float32),
        "alpha_pattern": (some | {"r": 2, "alpha_pattern": {FIRST[arch]: 64}}, torch.float32),
        "rank_pattern": (
            some | {"rank_pattern": {FIRST[arch]: 7}, "use_rslora": True},
            torch.float32,
        ),
        "gaussian, float16": (some | {"init_lora_weights": "gaussian"}, torch.float16),
        "bfloat16": (some, torch.bfloat16),
    }


def refused(arch):
    """{name: what LoraConfig is given} of adapters that stage 9 does not follow."""
    some = {"r": 4, "target_modules": SOME[arch]}
    head = "wte" if arch == "gpt2" else "embed_tokens"
    return {
        "PiSSA": some | {"init_lora_weights": "pissa"},
        "OLoRA": some | {"init_lora_weights": "olora"},
        "aLoRA": some | {"alora_invocation_tokens": [1]},
        "bias": some | {"bias": "all"},
        "lora_bias": some | {"lora_bias": True},
        "modules_to_save": some | {"modules_to_save": ["lm_head"]},
        "layers_to_transform": some | {"layers_to_transform": [1]},
        "an expression": {"r": 4, "target_modules": f".*{SOME[arch][0]}"},
        "an embedding": {"r": 4, "target_modules": [head]},
    }


def logits(model, idx):
    """The logits of a model of torch's, (B, T, V)."""
    with torch.no_grad():
        return model(torch.from_numpy(idx)).logits.float().numpy()


def shaken(model):
    """The model with noise on every number that LoRA trains; none is zero any more."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p += 0.1 * torch.randn(p.shape).to(p.dtype)
    return model


def command(*words):
    """What a command of stage 9 prints; an exception if it fails."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        stage.main([str(word) for word in words])
    return printed.getvalue()


def main():
    """Print a line per adapter; exit status 1 if any differs, moves nothing or is not refused."""
    torch.manual_seed(0)
    idx, failed = np.random.default_rng(0).integers(0, len(LETTERS), (3, 32)), 0
    print(f"{'largest difference of logits':36}  PEFT-stage 9   merged   the adapter moves")
    for arch, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            made = transformers.AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for p in made.parameters():  # as far from zeros and ones as a trained model
                    p += 0.1 * torch.randn(p.shape)
            made.save_pretrained(folder / "base")
            gpt.CharTokenizer(LETTERS).save(folder / "base")

            def base(path=folder / "base"):
                return transformers.AutoModelForCausalLM.from_pretrained(path).eval()

            def wrong(name, theirs, merged, alone):
                """Print a row: theirs against the merged model, opened here and opened there."""
                ours = gpt.GPT.from_pretrained(merged).logits(idx)
                apart, back = (
                    abs(ours - theirs).max(),
                    abs(logits(base(merged), idx) - theirs).max(),
                )
                effect, largest = abs(theirs - alone).max(), max(1.0, abs(theirs).max())
                good = max(apart, back) < TOLERANCE * largest and effect > EFFECT
                print(f"{name:36}{apart:14.1e}{back:9.1e}{effect:19.2f}{'' if good else '  WRONG'}")
                return not good

            alone = logits(base(), idx)
            for i, (name, (given, dtype)) in enumerate(settings(arch).items()):
                model = peft.get_peft_model(base(), peft.LoraConfig(**given, task_type="CAUSAL_LM"))
                model = shaken(model).eval()
                for key, p in model.named_parameters():
                    if "lora_" in key:  # rounded to the type that the file will have
                        p.data = p.data.to(dtype).float()
                theirs = logits(model, idx)
                model = model.to(dtype)
                model.save_pretrained(folder / f"adapter{i}")
                words = ("--base", folder / "base", "--out", folder / f"merged{i}")
                command("merge", *words, "--adapter", folder / f"adapter{i}")
                failed += wrong(f"{arch}, PEFT's {name}", theirs, folder / f"merged{i}", alone)

            for name, given in refused(arch).items():
                model = peft.get_peft_model(base(), peft.LoraConfig(**given, task_type="CAUSAL_LM"))
                shaken(model).save_pretrained(folder / name)
                try:
                    stage.load_adapter(
                        folder / name, gpt.GPT.from_pretrained(folder / "base").params
                    )
                    print(f"{arch}, PEFT's {name}: NOT REFUSED")
                    failed += 1
                except ValueError as error:
                    print(f"{arch}, PEFT's {name}, refused: {str(error).split('/')[-1]:.60}")

            (folder / "data.txt").write_text("a cat sat on a mat, and so did a dog.\n" * 40)
            for method in ("lora", "rslora", "dora"):
                out = folder / method
                words = ("--base", folder / "base", "--out")
                how = ("--data", folder / "data.txt", "--steps", 10, "--learning_rate", 0.01)
                command("adapt", *words, out, "--method", method, *how)
                theirs = logits(peft.PeftModel.from_pretrained(base(), out).eval(), idx)
                command("merge", *words, folder / f"{method}-merged", "--adapter", out)
                failed += wrong(
                    f"{arch}, stage 9's {method}", theirs, folder / f"{method}-merged", alone
                )
                named = json.loads((out / "adapter_config.json").read_text())
                assert named["base_model_name_or_path"] == str(folder / "base")
    print(f"allowed: differences of {TOLERANCE:.0e} of the largest logit, effects above {EFFECT:g}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
