"""Checkpoints: round trips, the safetensors format, damage, kill -9 while saving."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

import capstone_gpt as gpt

FIELDS = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
VARIANTS = [
    {"arch": "gpt2"},
    {"arch": "gpt2", "bias": False, "dropout": 0.1},
    {"arch": "gpt2", "tie_weights": False, "n_hidden": 24},
    {"arch": "llama", "n_kv_head": 1, "rope_theta": 5e5},
    {"arch": "llama", "tie_weights": True, "norm_eps": 1e-6},
]


def make(seed=0, dtype=np.float32, **fields):
    return gpt.GPT(gpt.GPTConfig(**(FIELDS | fields)), seed, dtype)


@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip_is_exact(tmp_path, fields, dtype):
    model = make(dtype=dtype, **fields)
    model.save_pretrained(tmp_path / "model")
    back = gpt.GPT.from_pretrained(tmp_path / "model")
    assert back.config == model.config and back.dtype == dtype
    assert np.array_equal(back.flat, model.flat)


def test_names_shapes_and_config_are_those_of_transformers(tmp_path):
    make(arch="gpt2", bias=False).save_pretrained(tmp_path)
    tensors, metadata = gpt.read_safetensors(tmp_path / "model.safetensors")
    assert metadata["format"] == "pt"
    shapes = {name: t.shape for name, t in tensors.items() if ".h.1." not in name}
    layer = "transformer.h.0"
    assert shapes == {
        "transformer.wte.weight": (11, 16),
        "transformer.wpe.weight": (8, 16),
        **{f"{layer}.{n}.{k}": (16,) for n in ("ln_1", "ln_2") for k in ("weight", "bias")},
        f"{layer}.attn.c_attn.weight": (16, 48),
        f"{layer}.attn.c_attn.bias": (48,),
        f"{layer}.attn.c_proj.weight": (16, 16),
        f"{layer}.attn.c_proj.bias": (16,),
        f"{layer}.mlp.c_fc.weight": (16, 64),
        f"{layer}.mlp.c_fc.bias": (64,),
        f"{layer}.mlp.c_proj.weight": (64, 16),
        f"{layer}.mlp.c_proj.bias": (16,),
        "transformer.ln_f.weight": (16,),
        "transformer.ln_f.bias": (16,),
    }
    assert not any(t.any() for name, t in tensors.items() if name.endswith("bias"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "gpt2" and config["bias"] is False and config["n_positions"] == 8

    make(arch="llama", n_kv_head=1, n_hidden=40).save_pretrained(tmp_path / "llama")
    tensors, _ = gpt.read_safetensors(tmp_path / "llama" / "model.safetensors")
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (8, 16)
    assert tensors["model.layers.1.mlp.down_proj.weight"].shape == (16, 40)
    assert tensors["lm_head.weight"].shape == (11, 16)


def test_original_gpt2_names_buffers_and_half_precision_are_read(tmp_path):
    model = make(arch="gpt2")
    model.save_pretrained(tmp_path)
    tensors = {n.removeprefix("transformer."): t for n, t in model.params.items()}
    tensors = {name: t.astype(np.float16) for name, t in tensors.items()}
    tensors["h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.float32)
    gpt.write_safetensors(tmp_path / "model.safetensors", tensors)
    back = gpt.GPT.from_pretrained(tmp_path)
    assert back.dtype == np.float32
    assert np.array_equal(back.flat, model.flat.astype(np.float16).astype(np.float32))


def test_bfloat16_and_several_files_are_read(tmp_path):
    model = make(arch="llama")
    model.save_pretrained(tmp_path)
    os.remove(tmp_path / "model.safetensors")
    where = {}
    for i, (name, t) in enumerate(model.params.items()):
        part = f"model-{i % 2}.safetensors"
        where.setdefault(part, {})[name] = (t.view(np.uint32) >> 16).astype("<u2")
    for part, tensors in where.items():
        gpt.write_safetensors(tmp_path / part, tensors)  # as BF16: the only two-byte unsigned type
    index = {name: part for part, tensors in where.items() for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    back = gpt.GPT.from_pretrained(tmp_path)
    assert np.allclose(back.flat, model.flat, rtol=2**-7, atol=0)


def test_a_file_written_byte_by_byte_after_the_specification_is_read(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{"x":"y"}}'
    path = tmp_path / "hand.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + np.float32([1, 2]).tobytes())
    tensors, metadata = gpt.read_safetensors(path)
    assert np.array_equal(tensors["a"], [1, 2]) and metadata == {"x": "y"}


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    "header,data,words",
    [
        (entry(data_offsets=[0, 12]), 8, "offsets of a"),
        (entry(data_offsets=[8, 0]), 8, "offsets of a"),
        (entry(data_offsets=[-8, 0]), 8, "offsets of a"),
        (entry(data_offsets=[0]), 8, "offsets of a"),
        (entry(shape=[3]), 8, "another length"),
        (entry(shape=[True, 2]), 8, "shape or offsets"),
        (entry(shape=None), 8, "shape or offsets"),
        (entry(dtype="Q8"), 8, "type of a"),
        (entry(dtype=[1]), 8, "type of a"),
        (entry(), 16, "do not fill its 16 bytes"),
        ({"a": 5}, 8, "type of a"),
        ([1], 8, "not a JSON object"),
        (entry() | {"__metadata__": 5}, 8, "metadata"),
        (entry(shape=[0, 10**30], data_offsets=[0, 0]), 0, "shape or offsets"),
        (entry(shape=[1] * 100), 8, "shape or offsets"),
        ({"__metadata__": {}} | entry() | {"b": entry()["a"]}, 8, "do not fill its 8 bytes"),
    ],
)
def test_damaged_headers_are_refused(tmp_path, header, data, words):
    path, text = tmp_path / "bad.safetensors", json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    with pytest.raises(ValueError, match=words):
        gpt.read_safetensors(path)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, b"\xff" * 64, bytes(8)])
def test_garbage_is_refused(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        gpt.read_safetensors(path)


def test_any_cut_or_flipped_header_byte_is_an_error_or_harmless(tmp_path, rng):
    make().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for trial in range(150):
        damaged = bytearray(whole)
        if trial % 3:
            damaged[rng.integers(0, header)] ^= 1 << rng.integers(0, 8)
        else:
            del damaged[rng.integers(0, len(damaged)) :]
        path.write_bytes(damaged)
        try:
            gpt.GPT.from_pretrained(tmp_path)
        except ValueError:
            pass


@pytest.mark.parametrize(
    "change,words",
    [
        ({"model_type": "bert"}, "model_type"),
        ({"activation_function": "relu"}, "activation_function"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn"),
        ({"n_embd": 32}, "wte.weight is"),
        ({"n_layer": 3}, "lack"),
        ({"n_layer": 1}, "no place"),
        ({"n_head": "2"}, "n_head"),
        ({"vocab_size": None}, "lacks vocab_size"),
        ({"n_inner": 64.0}, "n_hidden"),
        ({"bias": "False"}, "bias"),
        ({"model_type": ["gpt2"]}, "model_type"),
        ({"rope_parameters": "x"}, "rotary"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, change, words):
    make().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=words):
        gpt.GPT.from_pretrained(tmp_path)


def test_nonzero_biases_in_a_bias_free_model_are_refused(tmp_path):
    make(arch="gpt2").save_pretrained(tmp_path)
    model = gpt.GPT.from_pretrained(tmp_path)
    model.params["transformer.ln_f.bias"][0] = 1
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"bias": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="ln_f.bias has no place"):
        gpt.GPT.from_pretrained(tmp_path)


def test_saving_keeps_other_files_and_replaces_its_own(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    gpt.CharTokenizer("abc").save(directory)
    make(seed=1).save_pretrained(directory)
    make(seed=2).save_pretrained(directory)
    assert np.array_equal(gpt.GPT.from_pretrained(directory).flat, make(seed=2).flat)
    assert (directory / "notes.txt").read_text() == "mine"
    assert (
        gpt.load_tokenizer(directory).decode(gpt.load_tokenizer(directory).encode("cab")) == "cab"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_without_an_atomic_swap_two_renames_do_it(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt, "exchange", lambda a, b: False)
    for seed in (1, 2):
        make(seed=seed).save_pretrained(tmp_path / "model")
    assert np.array_equal(gpt.GPT.from_pretrained(tmp_path / "model").flat, make(seed=2).flat)
    os.rename(tmp_path / "model", tmp_path / ".model.old")  # killed between the two renames
    assert np.array_equal(gpt.GPT.from_pretrained(tmp_path / "model").flat, make(seed=2).flat)
    make(seed=3).save_pretrained(tmp_path / "model")
    assert np.array_equal(gpt.GPT.from_pretrained(tmp_path / "model").flat, make(seed=3).flat)


def test_a_checkpoint_needs_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="directory of its own"):
        make().save_pretrained(".")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        make().save_pretrained("file")
    with pytest.raises(ValueError, match="no such checkpoint"):
        gpt.GPT.from_pretrained("nowhere")


def test_kill_9_while_saving_never_loses_the_checkpoint(tmp_path):
    """A child saves models full of 1, 2, 3, ... over each other; one is whole whenever it dies."""
    program = (
        "import sys, capstone_gpt as gpt\n"
        "m = gpt.GPT(gpt.GPTConfig(vocab_size=50, block_size=64, n_layer=2, n_head=2, n_embd=64))\n"
        "n = int(sys.argv[2])\n"
        "while True:\n"
        "    n += 1\n"
        "    m.flat[:] = n\n"
        "    state, tokenizer = {'exp_avg': m.flat}, gpt.CharTokenizer('ab')\n"
        "    gpt.write_checkpoint(sys.argv[1], m, tokenizer, state, {'step': n})\n"
        "    print(n, flush=True)\n"
    )
    directory, last, pause = tmp_path / "model", 0, random.Random(0)
    for _ in range(12):
        command = [sys.executable, "-c", program, str(directory), str(last)]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        confirmed = int(child.stdout.readline())
        time.sleep(pause.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        confirmed = max([confirmed, *map(int, child.stdout.read().split())])
        child.wait()
        child.stdout.close()
        model = gpt.GPT.from_pretrained(directory)
        last = int(model.flat[0])
        assert last >= confirmed and np.all(model.flat == last)
        found = gpt.find_checkpoint(directory)
        state, _ = gpt.read_safetensors(found / "training_state.safetensors")
        assert np.all(state["exp_avg"] == last)
        assert gpt.read_json(found / "training_state.json") == {"step": last}
        assert gpt.load_tokenizer(directory).characters == "ab"
