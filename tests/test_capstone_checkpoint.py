"""Checkpoints: round trips, the safetensors format, other people's config.json, kill -9."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from conftest import ROOT

import capstone_gpt as gpt

FIELDS = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 4,
}
VARIANTS = [
    {"arch": "gpt2"},
    {"arch": "gpt2", "bias": False, "dropout": 0.1},
    {"arch": "gpt2", "tie_weights": False, "n_hidden": 24},
    {"arch": "llama", "n_kv_head": 1, "rope_theta": 5e5, "rope_scaling": SCALING},
    {"arch": "llama", "tie_weights": True, "norm_eps": 1e-6},
]


def make(seed=0, dtype=np.float32, **fields):
    return gpt.GPT(gpt.GPTConfig(**(FIELDS | fields)), seed, dtype)


def edit(directory, remove=(), **changes):
    """Change fields of a directory's config.json."""
    path = directory / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: fields[key] for key in fields if key not in remove}))


# Files of tensors


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


def raw(path, text, data=8):
    text = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    return path


@pytest.mark.parametrize(
    "header,data,words",
    [
        (entry(data_offsets=[0, 12]), 8, r"data_offsets \[0, 12\], expected \[0, 8\]"),
        (entry(data_offsets=[8, 0]), 8, r"data_offsets \[8, 0\], expected \[0, 8\]"),
        (entry(data_offsets=[-8, 0]), 8, "whole numbers"),
        (entry(data_offsets=[0]), 8, r"data_offsets \[0\], expected \[0, 8\]"),
        (entry(data_offsets=[0, 8, 8]), 8, r"data_offsets \[0, 8, 8\], expected \[0, 8\]"),
        (entry(data_offsets={"0": 8}), 8, "whole numbers"),
        (entry(data_offsets=[0, 8.0]), 8, "whole numbers"),
        (entry(shape=[3]), 8, r"'a' of shape \(3,\) has .* \[0, 8\], expected \[0, 12\]"),
        (entry(dtype="F16"), 8, r"F16 'a' .* expected \[0, 4\]"),
        (entry(shape=[True, 2]), 8, "whole numbers"),
        (entry(shape=None), 8, "whole numbers"),
        (entry(dtype="Q8"), 8, "'a' is of type 'Q8', not one of F64, F32"),
        (entry(dtype="F8_E4M3", shape=[8]), 8, "F8_E4M3"),
        (entry(dtype=[1]), 8, "type"),
        (entry(dtype=None), 8, "type None"),
        (entry(), 16, "16 bytes of arrays, 8 of them described"),
        (entry(shape=[1], data_offsets=[4, 8]), 8, r"'a' .* \[4, 8\], expected \[0, 4\]"),
        ({"a": 5}, 8, "not described by an object"),
        ({"a": ["F32", [2], [0, 8]]}, 8, "not described by an object"),
        (entry() | {"__metadata__": 5}, 8, "metadata"),
        (entry() | {"__metadata__": {"step": 5}}, 8, "metadata"),
        (entry() | {"__metadata__": []}, 8, "metadata"),
        (entry(shape=[0, 2**60], data_offsets=[0, 0]), 0, "no array has the shape"),
        (entry(shape=[2**62, 4, 0], data_offsets=[0, 0]), 0, "no array has the shape"),
        (entry(shape=[2] + [1] * 64), 8, "no array has the shape"),
        (entry() | {"b": entry()["a"]}, 16, r"'b' .* \[0, 8\], expected \[8, 16\]"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(tmp_path, header, data, words):
    path = raw(tmp_path / "bad.safetensors", json.dumps(header), data)
    with pytest.raises(ValueError, match=f"bad.safetensors: damaged safetensors file: .*{words}"):
        gpt.read_safetensors(path)


ONE = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    "text",
    [
        "{" + ONE + "," + ONE + "}",  # found by random files: what the reference library refuses
        "{" + ONE[:-1] + ',"shape":[2]}}',
        " {" + ONE + "}",
        "\ufeff{" + ONE + "}",
        "{" + ONE + "}x",
        "{" + ONE + ",}",
        "[1]",
        "",
        "{" + ONE.replace("[0,", "[-0,") + "}",
        "{" + ONE.replace("[2]", "[2.0]") + "}",
        "{" + ONE.replace("[2]", "[02]") + "}",
        "{" + ONE[:-1] + ',"x":NaN}}',
        "{" + ONE[:-1] + ',"x":-Infinity}}',
        "{" + ONE[:-1] + ',"x":1e999}}',
        "{" + ONE.replace('"a"', '"\\ud800"') + "}",
        "{" + ONE[:-1] + ',"x":"\\uDFFF"}}',
        "{" + ONE.replace('"a"', '"\x00"') + "}",
        ("{" + ONE + "}").encode("utf-16-le"),
        b"{" + ONE.encode().replace(b'"a"', b'"\xff"') + b"}",
        "{" + ONE[:-1] + ',"x":' + "[" * 20000 + "]" * 20000 + "}}",
        "{" + ONE[:-1] + ',"x":' + "9" * 5000 + "}}",
    ],
)
def test_a_header_that_is_no_json_is_refused_in_one_line(tmp_path, text):
    path = raw(tmp_path / "bad.safetensors", text)
    with pytest.raises(ValueError, match="bad.safetensors: damaged safetensors file") as caught:
        gpt.read_safetensors(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text,data,name,shape",
    [
        ("{" + ONE + "}  \n\t", 8, "a", (2,)),
        ("{" + ONE[:-1] + ',"unknown":[1.5,null,"x"]}}', 8, "a", (2,)),
        ("{" + ONE.replace('"a"', '"\\ud83d\\ude00"') + "}", 8, "😀", (2,)),
        ("{" + ONE.replace('"a"', '"\\\\ud800"') + "}", 8, "\\ud800", (2,)),
        ("{" + ONE + ',"__metadata__":null}', 8, "a", (2,)),
        ('{"a":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}', 8, "a", ()),
        ('{"a":{"dtype":"F64","shape":[0,1000],"data_offsets":[0,0]}}', 0, "a", (0, 1000)),
        ('{"a":{"dtype":"BF16","shape":[5,0],"data_offsets":[0,0]}}', 0, "a", (5, 0)),
        ('{"a":{"dtype":"U8","shape":[' + "1," * 63 + '8],"data_offsets":[0,8]}}', 8, "a", None),
    ],
)
def test_a_header_that_the_reference_accepts_is_read(tmp_path, text, data, name, shape):
    tensors, metadata = gpt.read_safetensors(raw(tmp_path / "good.safetensors", text, data))
    assert list(tensors) == [name] and len(tensors) == 1 and metadata == {}
    array = gpt.read_tensor(tensors[name])
    assert array.shape == tensors[name].shape and shape in (None, array.shape)
    assert not array.any()


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, b"\xff" * 64, bytes(8)])
def test_garbage_is_refused(tmp_path, content):
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="bad.safetensors: damaged"):
        gpt.read_safetensors(tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="no such file"):
        gpt.read_safetensors(tmp_path)


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    path = raw(tmp_path / "bad", "{" + ONE + "}")
    content = path.read_bytes()
    for size in (len(content) - 8, len(content) + 8):
        path.write_bytes((size - 7).to_bytes(8, "little") + content[8 : min(size, len(content))])
        words = f"a header of {size - 7} bytes in a file of {min(size, len(content))}"
        with pytest.raises(ValueError, match=words):
            gpt.read_safetensors(path)


def test_the_longest_header(tmp_path, monkeypatch):
    assert gpt.LONGEST_HEADER == 100_000_000
    monkeypatch.setattr(gpt, "LONGEST_HEADER", 200)
    text = "{" + ONE + "}"
    assert list(gpt.read_safetensors(raw(tmp_path / "a", text + " " * (200 - len(text))))[0])
    with pytest.raises(ValueError, match="a header of 201 bytes in a file of 217"):
        gpt.read_safetensors(raw(tmp_path / "a", text + " " * (201 - len(text))))


def test_a_file_is_what_the_specification_says_byte_by_byte(tmp_path):
    path = tmp_path / "hand.safetensors"
    gpt.write_safetensors(path, {"é": np.uint8([7]), "a": np.float32([1, 2])}, {"x": "y"})
    header = (
        '{"__metadata__": {"format": "pt", "x": "y"}, '
        '"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
        '"é": {"dtype": "U8", "shape": [1], "data_offsets": [8, 9]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    arrays = np.float32([1, 2]).tobytes() + b"\x07"
    assert path.read_bytes() == len(header).to_bytes(8, "little") + header + arrays
    tensors, metadata = gpt.read_safetensors(path)
    a = gpt.read_tensor(tensors["a"])
    assert np.array_equal(a, [1, 2]) and metadata == {"format": "pt", "x": "y"}
    with pytest.raises(ValueError, match="read-only"):
        a[0] = 1


@pytest.mark.parametrize("code", "f8 f4 f2 i8 i4 i2 i1 u8 u4 u2 u1 ?".split())
def test_every_type_comes_back_as_it_was(tmp_path, rng, code):
    t = rng.integers(0, 256, (3, 5, 8), dtype=np.uint8).view(code)
    t = rng.random((3, 5)) < 0.5 if code == "?" else t
    gpt.write_safetensors(tmp_path / "t", {"t": t, "turned": t.T, "one": t[1, 2]})
    back, _ = gpt.read_safetensors(tmp_path / "t")
    for name, expected in {"t": t, "turned": t.T, "one": t[1, 2]}.items():
        t = gpt.read_tensor(back[name])
        assert t.dtype == expected.dtype and t.shape == expected.shape
        assert t.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "tensors,words",
    [
        ({"t": np.zeros(2, ">f4")}, "'t' is >f4, which safetensors"),
        ({"t": np.zeros(2, complex)}, "is complex128, which"),
        ({"t": np.array([None])}, "is object, which"),
        ({"\ud800": np.zeros(2)}, "surrogates"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_left(tmp_path, tensors, words):
    with pytest.raises(ValueError, match=words):
        gpt.write_safetensors(tmp_path / "t", tensors)
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    bits = np.uint16([0x3F80, 0xC049, 0x0001, 0xFF80])
    header = '{"t":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}'
    path = raw(tmp_path / "t", header, 0)
    path.write_bytes(path.read_bytes() + bits.tobytes())
    t = gpt.read_tensor(gpt.read_safetensors(path)[0]["t"])
    assert t.dtype == np.float32
    assert t.tolist() == [[1.0, -3.140625], [2.0**-133, -np.inf]]


def test_an_array_costs_memory_only_while_it_is_used(tmp_path):
    gpt.write_safetensors(tmp_path / "t", {str(i): np.zeros(2**18, np.float16) for i in range(20)})
    tracemalloc.start()
    tensors, _ = gpt.read_safetensors(tmp_path / "t")
    assert not any(gpt.read_tensor(t).any() for t in tensors.values())
    peak = tracemalloc.get_traced_memory()[1]
    t = gpt.read_tensor(tensors["1"])
    gpt.write_safetensors(tmp_path / "u", {str(i): t for i in range(20)})
    peak = max(peak, tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peak < 2**19  # less than one of the twenty


def test_an_open_file_stays_the_one_that_was_opened(tmp_path):
    for value in (1, 2):
        gpt.write_safetensors(tmp_path / "t", {"t": np.full(3, value)})
        tensors, _ = gpt.read_safetensors(tmp_path / "t")
        gpt.write_safetensors(tmp_path / "t", {"t": np.full(3, 9)})
        assert gpt.read_tensor(tensors["t"]).tolist() == [value] * 3
    descriptors = len(os.listdir("/dev/fd"))
    del tensors
    assert len(os.listdir("/dev/fd")) == descriptors - 1  # closed with its last tensor


def test_time_is_linear_in_the_number_of_tensors(tmp_path):
    seconds = []
    for n in (2000, 16000):
        tensors, started = {f"layer.{i}": np.float32([i]) for i in range(n)}, time.process_time()
        gpt.write_safetensors(tmp_path / "t", tensors)
        assert len(gpt.read_safetensors(tmp_path / "t")[0]) == n
        seconds.append(time.process_time() - started)
    assert seconds[1] < 30 * seconds[0]  # 8 if linear, 64 if quadratic


def test_write_file_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "name"
    gpt.write_file(path, [b"ab", b"", memoryview(b"c"), np.uint8([100])])
    assert path.read_bytes() == b"abcd"
    (tmp_path / ".name.99.tmp").write_bytes(b"of a writer that was killed")
    (tmp_path / ".name2.99.tmp").write_bytes(b"of another file")

    def full():
        yield b"x"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device; .* is kept: .*name") as caught:
        gpt.write_file(path, full())
    assert caught.value.errno == 28
    with pytest.raises(KeyboardInterrupt):
        gpt.write_file(path, (raise_interrupt() for _ in range(1)))
    assert path.read_bytes() == b"abcd"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".name2.99.tmp", "name"]
    with pytest.raises(OSError, match="nowhere"):
        gpt.write_file(tmp_path / "nowhere" / "name", [])


def raise_interrupt():
    raise KeyboardInterrupt


def test_write_file_syncs_the_file_before_the_swap_and_the_directory_after(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    flags = {True: "directory", False: "file"}

    def watched_fsync(fd):
        size = os.fstat(fd).st_size
        done.append((flags[os.path.isdir(f"/dev/fd/{fd}")], size if size == 3 else None))
        fsync(fd)

    def watched_replace(a, b):
        done.append(("swap", os.path.getsize(a)))
        replace(a, b)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    gpt.write_file(tmp_path / "name", [b"abc"])
    before = len(os.listdir("/dev/fd"))
    gpt.write_file(tmp_path / "name", [b"abc"])
    assert done == 2 * [("file", 3), ("swap", 3), ("directory", None)]
    assert len(os.listdir("/dev/fd")) == before  # nothing stays open


# Models


@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip_is_exact(tmp_path, fields, dtype):
    model = make(dtype=dtype, **fields)
    model.save_pretrained(tmp_path / "a")
    back = gpt.GPT.from_pretrained(tmp_path / "a")
    assert back.config == model.config and back.dtype == dtype
    assert np.array_equal(back.flat, model.flat)
    back.save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert gpt.GPT.from_pretrained(tmp_path / "a", np.float32).dtype == np.float32
    assert sorted(os.listdir(tmp_path / "a")) == ["config.json", "model.safetensors"]


def test_names_shapes_and_config_are_those_of_transformers(tmp_path):
    make(arch="gpt2", bias=False).save_pretrained(tmp_path / "gpt2")
    tensors, metadata = gpt.read_safetensors(tmp_path / "gpt2" / "model.safetensors")
    assert metadata == {"format": "pt"}
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
    biases = [t for name, t in tensors.items() if name.endswith("bias")]
    assert not any(gpt.read_tensor(t).any() for t in biases)
    assert json.loads((tmp_path / "gpt2" / "config.json").read_text()) == {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "vocab_size": 11,
        "n_positions": 8,
        "n_ctx": 8,
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 16,
        "n_inner": 64,
        "bias": False,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    }
    make(arch="llama", n_kv_head=1, n_hidden=40).save_pretrained(tmp_path / "llama")
    tensors, _ = gpt.read_safetensors(tmp_path / "llama" / "model.safetensors")
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (8, 16)
    assert tensors["model.layers.1.mlp.down_proj.weight"].shape == (16, 40)
    assert tensors["lm_head.weight"].shape == (11, 16)


GPT2_JSON = {  # the config.json of GPT-2 medium, smaller
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.15,
    "bos_token_id": 10,
    "embd_pdrop": 0.2,
    "eos_token_id": 10,
    "gradient_checkpointing": False,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 8,
    "n_embd": 16,
    "n_head": 2,
    "n_inner": None,
    "n_layer": 2,
    "n_positions": 8,
    "n_special": 0,
    "predict_special_tokens": True,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.1,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "torch_dtype": "bfloat16",
    "transformers_version": "4.6.0.dev0",
    "use_cache": True,
    "vocab_size": 11,
}
LLAMA_JSON = {  # the config.json of Llama 3.2 1B, smaller, with SmolLM2's extras
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "is_llama_config": True,
    "max_position_embeddings": 8,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": {**SCALING, "rope_type": "llama3"},
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 11,
}
OTHER_FILES = {
    "generation_config.json": b'{"bos_token_id": 1, "eos_token_id": [4, 5], "temperature": 0.6}',
    "tokenizer.json": b'{"not": "looked at"}',
    "tokenizer_config.json": b"{}\n",
    "vocab.json": b"{}",
    "merges.txt": b"#version: 0.2\n",
    "special_tokens_map.json": b"\x00",
    "added_tokens.json": b"",
    "chat_template.jinja": b"{{ messages }}",
}


def theirs(directory, j, **changes):
    """A directory as its owner published it, the model in it in our own terms."""
    fields = {"n_kv_head": 1, "n_hidden": 48, "tie_weights": True} if "rope_theta" in j else {}
    model = make(arch=j["model_type"], **fields)
    directory.mkdir(exist_ok=True)
    gpt.write_safetensors(directory / "model.safetensors", model.params)
    (directory / "config.json").write_text(json.dumps(j | changes, indent=1))
    return model


@pytest.mark.parametrize("j", [GPT2_JSON, LLAMA_JSON])
def test_what_is_not_computed_with_is_saved_as_it_was_read(tmp_path, j):
    theirs(tmp_path / "a", j)
    for name, content in OTHER_FILES.items():
        (tmp_path / "a" / name).write_bytes(content)
    (tmp_path / "a" / "pytorch_model.bin").write_bytes(b"not ours to copy")
    model = gpt.GPT.from_pretrained(tmp_path / "a")
    assert model.config.dropout == (0.1 if j is GPT2_JSON else 0)
    model.flat[:] += 1
    model.save_pretrained(tmp_path / "b")
    names = {p.name for p in (tmp_path / "b").iterdir()}
    assert names == {"config.json", "model.safetensors", *OTHER_FILES}
    assert all((tmp_path / "b" / n).read_bytes() == t for n, t in OTHER_FILES.items())
    # the weights are float32 now, and transformers would round them to what stands there
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == j | {
        "torch_dtype": "float32"
    }
    edit(tmp_path / "a", remove=["torch_dtype"])
    model = gpt.GPT.from_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "c")
    assert (tmp_path / "c" / "config.json").read_bytes() == model.files["config.json"]
    assert (tmp_path / "a" / "config.json").read_bytes() == model.files["config.json"]


def test_a_changed_dropout_or_rotation_is_saved(tmp_path):
    theirs(tmp_path / "gpt2", GPT2_JSON)
    model = gpt.GPT.from_pretrained(tmp_path / "gpt2")
    model.config.dropout = 0.3
    model.save_pretrained(tmp_path / "new")
    j = json.loads((tmp_path / "new" / "config.json").read_text())
    changed = {f"{kind}_pdrop": 0.3 for kind in ("attn", "embd", "resid")}
    computed = {"n_inner": 64, "bias": True, "tie_word_embeddings": True}  # said in full now
    assert j == GPT2_JSON | changed | computed | {"torch_dtype": "float32"}
    assert gpt.GPT.from_pretrained(tmp_path / "new").config == model.config
    with pytest.raises(ValueError, match="config.json would change"):
        model.save_pretrained(tmp_path / "gpt2")
    assert json.loads((tmp_path / "gpt2" / "config.json").read_text()) == GPT2_JSON

    theirs(tmp_path / "llama", LLAMA_JSON)
    model = gpt.GPT.from_pretrained(tmp_path / "llama")
    model.config.rope_theta = 2e4
    model.save_pretrained(tmp_path / "theta")
    assert gpt.GPT.from_pretrained(tmp_path / "theta").config == model.config
    model.config.rope_scaling = None
    model.save_pretrained(tmp_path / "plain")
    assert gpt.GPT.from_pretrained(tmp_path / "plain").config == model.config


def test_defaults_are_those_of_transformers(tmp_path):
    theirs(tmp_path / "gpt2", GPT2_JSON)
    missing = ["resid_pdrop", "n_inner", "n_ctx", "layer_norm_epsilon", "activation_function"]
    edit(tmp_path / "gpt2", missing)
    config = gpt.GPT.from_pretrained(tmp_path / "gpt2").config
    assert (config.dropout, config.n_hidden, config.norm_eps) == (0.1, 64, 1e-5)
    assert config.bias and config.tie_weights
    theirs(tmp_path / "llama", LLAMA_JSON)
    missing = ["rms_norm_eps", "rope_theta", "rope_scaling", "head_dim", "attention_dropout"]
    edit(tmp_path / "llama", missing)
    config = gpt.GPT.from_pretrained(tmp_path / "llama").config
    assert (config.norm_eps, config.rope_theta, config.rope_scaling) == (1e-6, 10000, None)
    assert config.dropout == 0


ROPE = {"rope_theta": 5e5, "rope_scaling": None}


@pytest.mark.parametrize(
    "changes,theta,scaling",
    [
        (ROPE, 5e5, None),
        (ROPE | {"rope_scaling": SCALING | {"rope_type": "llama3"}}, 5e5, SCALING),
        (ROPE | {"rope_scaling": {"rope_type": "default"}}, 5e5, None),
        (ROPE | {"rope_scaling": {}}, 5e5, None),
        ({"rope_parameters": {"rope_theta": 3e4, "rope_type": "default"}}, 3e4, None),
        (
            {"rope_parameters": SCALING | {"rope_theta": 3e4, "rope_type": "llama3"}},
            3e4,
            SCALING,
        ),
        (ROPE | {"rope_parameters": {"rope_theta": 5e5}}, 5e5, None),
    ],
)
def test_rotary_settings_in_both_forms(changes, theta, scaling):
    j = {key: value for key, value in LLAMA_JSON.items() if not key.startswith("rope_")}
    config = gpt.config_from_json(j | changes)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    "j,changes,words",
    [
        (GPT2_JSON, {"model_type": "bert"}, "model_type must be gpt2 or llama, not 'bert'"),
        (GPT2_JSON, {"model_type": ["gpt2"]}, "model_type"),
        (GPT2_JSON, {"model_type": None}, "model_type"),
        (GPT2_JSON, {"activation_function": "relu"}, "'activation_function' is 'relu'; handled"),
        (GPT2_JSON, {"scale_attn_weights": False}, "scale_attn_weights"),
        (GPT2_JSON, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by"),
        (GPT2_JSON, {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        (GPT2_JSON, {"add_cross_attention": True}, "add_cross_attention"),
        (GPT2_JSON, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (GPT2_JSON, {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        (GPT2_JSON, {"n_ctx": 16}, "'n_ctx' is 16; handled: 8, null"),
        (GPT2_JSON, {"unheard_of": 0}, "'unheard_of' is 0; handled: null, false"),
        (GPT2_JSON, {"rope_theta": 1e4}, "rope_theta"),
        (GPT2_JSON, {"n_embd": 32}, r"wte.weight is \(11, 16\), config.json says \(11, 32\)"),
        (GPT2_JSON, {"n_layer": 3}, "lack transformer.h.2"),
        (GPT2_JSON, {"n_layer": 1}, "transformer.h.1.* has no place"),
        (GPT2_JSON, {"n_head": "2"}, "n_head must be a whole number, not '2'"),
        (GPT2_JSON, {"n_head": 0}, "n_head"),
        (GPT2_JSON, {"vocab_size": None}, "vocab_size is missing"),
        (GPT2_JSON, {"n_inner": 64.0}, "n_inner must be a whole number, not 64.0"),
        (GPT2_JSON, {"bias": "False"}, "bias must be True or False"),
        (GPT2_JSON, {"architectures": ["GPT2ForSequenceClassification"]}, "architectures"),
        (LLAMA_JSON, {"head_dim": 4}, "'head_dim' is 4; handled: 8, null"),
        (LLAMA_JSON, {"attention_bias": True}, "attention_bias"),
        (LLAMA_JSON, {"mlp_bias": True}, "mlp_bias"),
        (LLAMA_JSON, {"pretraining_tp": 2}, "'pretraining_tp' is 2; handled: 1, null"),
        (LLAMA_JSON, {"sliding_window": 4}, "sliding_window"),
        (LLAMA_JSON, {"rope_interleaved": True}, "rope_interleaved"),
        (LLAMA_JSON, {"hidden_act": "gelu"}, "hidden_act"),
        (LLAMA_JSON, {"intermediate_size": None}, "intermediate_size is missing"),
        (LLAMA_JSON, {"rope_parameters": "x"}, "rope_parameters must be an object, not 'x'"),
        (LLAMA_JSON, {"rope_parameters": {"factor": 4.0}}, "'factor' is given twice"),
        (LLAMA_JSON, {"rope_theta": -1}, "config.json: rope_theta must be"),
        (LLAMA_JSON, {"rope_theta": "1e4"}, "rope_theta must be a number"),
        (LLAMA_JSON, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "'linear'"),
        (LLAMA_JSON, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        (LLAMA_JSON, {"rope_scaling": SCALING | {"type": "llama3"}}, "default or llama3"),
        (LLAMA_JSON, {"rope_scaling": {"factor": 2.0}}, "default or llama3"),
        (LLAMA_JSON, {"rope_scaling": {"rope_type": ["llama3"]}}, "default or llama3"),
        (LLAMA_JSON, {"rope_scaling": {"rope_type": "llama3"}}, "factor"),
        (
            LLAMA_JSON,
            {"rope_scaling": SCALING | {"rope_type": "llama3", "factor": "8"}},
            "factor must be a number",
        ),
        (
            LLAMA_JSON,
            {"rope_scaling": SCALING | {"rope_type": "llama3", "partial_rotary_factor": 0.5}},
            "rope_scaling",
        ),
    ],
)
def test_a_config_that_is_not_computed_or_does_not_fit_is_refused(tmp_path, j, changes, words):
    theirs(tmp_path, j, **changes)
    with pytest.raises(ValueError, match=words) as caught:
        gpt.GPT.from_pretrained(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message and "\n" not in message and len(message) < 400


@pytest.mark.parametrize("text", ['{"n_layer": 1, "n_layer": 2}', "[]", "\xff", '{"a": "\\ud800"}'])
def test_a_config_that_is_no_json_object_is_refused(tmp_path, text):
    theirs(tmp_path, GPT2_JSON)
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="config.json: expected a JSON object"):
        gpt.GPT.from_pretrained(tmp_path)


def test_what_is_refused_is_echoed_in_one_line(tmp_path):
    theirs(tmp_path, GPT2_JSON, **{"x\n" * 500: "y\n" * 500})
    with pytest.raises(ValueError) as caught:
        gpt.GPT.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layer": 9_999},
        {"n_layer": 100_000},
        {"n_layer": 10**18},
        {"vocab_size": 10**12},
        {"n_positions": 10**9},
        {"n_inner": 10**12},
        {"n_embd": 10**5},
    ],
)
def test_sizes_beyond_the_weights_cost_neither_time_nor_memory(tmp_path, changes):
    theirs(tmp_path, {key: value for key, value in GPT2_JSON.items() if key != "n_ctx"}, **changes)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(ValueError):
        gpt.GPT.from_pretrained(tmp_path)
    peak, seconds = tracemalloc.get_traced_memory()[1], time.process_time() - started
    tracemalloc.stop()
    assert peak < 1e6 and seconds < 0.5


def test_original_gpt2_names_buffers_and_half_precision_are_read(tmp_path):
    model = theirs(tmp_path, GPT2_JSON)
    tensors = {n.removeprefix("transformer."): t for n, t in model.params.items()}
    tensors = {name: t.astype(np.float16) for name, t in tensors.items()}
    tensors["h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.float32)
    tensors["h.0.attn.masked_bias"] = np.float64(-1e4)
    gpt.write_safetensors(tmp_path / "model.safetensors", tensors)
    back = gpt.GPT.from_pretrained(tmp_path)
    assert back.dtype == np.float32
    assert np.array_equal(back.flat, model.flat.astype(np.float16).astype(np.float32))


def test_names_of_torch_compile_and_of_a_model_without_a_head_are_read(tmp_path):
    model = theirs(tmp_path, LLAMA_JSON)
    names = {
        n: "_orig_mod." + n.removeprefix("model.").replace("mlp.", "mlp._orig_mod.")
        for n in model.params
    }
    tensors = {names[n]: t for n, t in model.params.items()}
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    gpt.write_safetensors(tmp_path / "model.safetensors", tensors)
    assert np.array_equal(gpt.GPT.from_pretrained(tmp_path).flat, model.flat)
    tensors["norm.weight"] = tensors["_orig_mod.norm.weight"]
    gpt.write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ValueError, match="'norm.weight' is there twice"):
        gpt.GPT.from_pretrained(tmp_path)


def as_bfloat16(tensors):
    """A safetensors file of float32 arrays cut to BF16, as bytes."""
    header, data = {}, b""
    for name, t in tensors.items():
        half = (t.view(np.uint32) >> 16).astype("<u2").tobytes()
        offsets = [len(data), len(data) + len(half)]
        header[name] = {"dtype": "BF16", "shape": t.shape, "data_offsets": offsets}
        data += half
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_bfloat16_and_several_files_are_read(tmp_path):
    model, parts = theirs(tmp_path, LLAMA_JSON), [{}, {}]
    os.remove(tmp_path / "model.safetensors")
    for i, (name, t) in enumerate(model.params.items()):
        parts[i % 2][name] = t
    paths = [tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for path, tensors in zip(paths, parts):
        path.write_bytes(as_bfloat16(tensors))
    (tmp_path / "model.safetensors.index.json").write_text("what it says stands in the files")
    back = gpt.GPT.from_pretrained(tmp_path)
    assert back.dtype == np.float32 and np.array_equal(
        back.flat.view(np.uint32), model.flat.view(np.uint32) >> 16 << 16
    )
    model.flat[:] = 5  # one file beside an old index wins
    gpt.write_safetensors(tmp_path / "model.safetensors", model.params)
    assert np.all(gpt.GPT.from_pretrained(tmp_path).flat == 5)
    os.remove(tmp_path / "model.safetensors")
    shutil.copy(paths[1], tmp_path / "model-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors: .* is there twice"):
        gpt.GPT.from_pretrained(tmp_path)
    os.remove(tmp_path / "model-00001-of-00001.safetensors")
    os.remove(paths[1])
    with pytest.raises(ValueError, match="the weights lack "):
        gpt.GPT.from_pretrained(tmp_path)
    os.remove(paths[0])
    with pytest.raises(ValueError, match="model.safetensors: no such file"):
        gpt.GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["transformer.h.1.mlp.c_fc.weight", "transformer.ln_f.bias"])
def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path, value, name):
    model = theirs(tmp_path, GPT2_JSON)
    model.params[name].flat[-1] = value
    gpt.write_safetensors(tmp_path / "model.safetensors", model.params)
    with pytest.raises(ValueError, match=f"model.safetensors: '{name}' holds a number that is not"):
        gpt.GPT.from_pretrained(tmp_path)


def test_a_weight_beyond_float32_and_one_of_another_type_are_refused(tmp_path):
    model = theirs(tmp_path, GPT2_JSON)
    wide = {name: t.astype(np.float64) for name, t in model.params.items()}
    wide["transformer.ln_f.weight"][0] = 1e300
    gpt.write_safetensors(tmp_path / "model.safetensors", wide)
    assert gpt.GPT.from_pretrained(tmp_path).flat.max() == 1e300
    with pytest.raises(ValueError, match="'transformer.ln_f.weight' holds a number that is not"):
        gpt.GPT.from_pretrained(tmp_path, np.float32)
    wide["transformer.ln_f.weight"] = np.ones(16, np.int8)
    gpt.write_safetensors(tmp_path / "model.safetensors", wide)
    with pytest.raises(
        ValueError, match=r"'transformer.ln_f.weight' is I8 \(16,\), expected floats"
    ):
        gpt.GPT.from_pretrained(tmp_path)


def test_a_head_that_differs_from_a_tied_embedding_is_refused(tmp_path, rng):
    model = theirs(tmp_path, LLAMA_JSON)
    tensors = dict(model.params) | {"lm_head.weight": model.params["model.embed_tokens.weight"]}
    gpt.write_safetensors(tmp_path / "model.safetensors", tensors)
    back = gpt.GPT.from_pretrained(tmp_path)
    assert back.config.tie_weights and np.array_equal(back.flat, model.flat)
    head = rng.normal(size=(11, 16)).astype(np.float32)
    gpt.write_safetensors(tmp_path / "model.safetensors", tensors | {"lm_head.weight": head})
    with pytest.raises(ValueError, match="'lm_head.weight' has no place"):
        gpt.GPT.from_pretrained(tmp_path)
    edit(tmp_path, tie_word_embeddings=False)
    back = gpt.GPT.from_pretrained(tmp_path)
    assert not back.config.tie_weights and np.array_equal(back.params["lm_head.weight"], head)
    assert np.array_equal(back.params["model.norm.weight"], model.params["model.norm.weight"])
    gpt.write_safetensors(tmp_path / "model.safetensors", tensors | {"lm_head.weight": head[1:]})
    with pytest.raises(ValueError, match=r"lm_head.weight is \(10, 16\)"):
        gpt.GPT.from_pretrained(tmp_path)
    edit(tmp_path, tie_word_embeddings=True)
    with pytest.raises(ValueError, match="'lm_head.weight' has no place"):
        gpt.GPT.from_pretrained(tmp_path)


def test_biases_in_a_bias_free_model_must_be_zero(tmp_path):
    model = theirs(tmp_path, GPT2_JSON)
    edit(tmp_path, bias=False)
    assert not gpt.GPT.from_pretrained(tmp_path).config.bias
    model.params["transformer.ln_f.bias"][0] = 1
    gpt.write_safetensors(tmp_path / "model.safetensors", model.params)
    with pytest.raises(ValueError, match="ln_f.bias' has no place"):
        gpt.GPT.from_pretrained(tmp_path)


def test_any_cut_or_flipped_header_byte_is_an_error_or_harmless(tmp_path, rng):
    model, harmless = make(), 0
    model.save_pretrained(tmp_path)
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
            back = gpt.GPT.from_pretrained(tmp_path)
        except ValueError as error:
            assert str(tmp_path) in str(error)
            continue
        assert np.array_equal(back.flat, model.flat)  # a flipped bit of the metadata
        harmless += 1
    assert harmless < 15


@pytest.mark.parametrize(
    "files,expected",
    [
        ({}, (None, ())),
        ({"config.json": {"bos_token_id": 1, "eos_token_id": 2}}, (1, (2,))),
        ({"config.json": {"bos_token_id": 0, "eos_token_id": [0, 10]}}, (0, (0, 10))),
        (
            {
                "config.json": {"bos_token_id": 1, "eos_token_id": 2},
                "generation_config.json": {"eos_token_id": [3, 4]},
            },
            (None, (3, 4)),
        ),
    ],
)
def test_tokens_a_text_begins_and_ends_with(files, expected):
    model = make()
    model.files = {name: json.dumps(j).encode() for name, j in files.items()}
    assert gpt.bos_and_eos(model) == expected


@pytest.mark.parametrize(
    "j",
    [
        {"bos_token_id": 11},
        {"eos_token_id": [2, -1]},
        {"eos_token_id": "2"},
        {"eos_token_id": True},
    ],
)
def test_a_token_outside_the_vocabulary_is_refused(j):
    model = make()
    model.files = {"generation_config.json": json.dumps(j).encode()}
    with pytest.raises(ValueError, match="generation_config.json: a token id must be"):
        gpt.bos_and_eos(model)


# Saving over something


def test_a_directory_keeps_its_other_files_and_gets_new_weights(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    make(seed=1).save_pretrained(directory)
    make(seed=2).save_pretrained(directory)
    assert np.array_equal(gpt.GPT.from_pretrained(directory).flat, make(seed=2).flat)
    assert (directory / "notes.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_directory_of_another_model_is_refused_and_stays_whole(tmp_path):
    model = make(seed=1)
    model.files = {"tokenizer.json": b"A"}
    model.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for fields in ({"n_head": 4}, {"n_layer": 3}, {"arch": "llama"}, {"norm_eps": 1e-6}):
        with pytest.raises(ValueError, match="config.json would change"):
            make(**fields).save_pretrained(tmp_path)
    model.files = {"tokenizer.json": b"B"}
    with pytest.raises(ValueError, match="tokenizer.json would change"):
        model.save_pretrained(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        model.save_pretrained(tmp_path / "file")
    (tmp_path / "file").unlink()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json would change"):
        make().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="nowhere: no config.json"):
        gpt.GPT.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"{tmp_path}: no config.json"):
        gpt.GPT.from_pretrained(tmp_path)


def test_a_first_save_ends_with_the_weights(tmp_path, monkeypatch):
    written, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (written.append(b.name), replace(a, b)))
    model = make()
    model.files = {"tokenizer.json": b"A", "merges.txt": b"B"}
    model.save_pretrained(tmp_path)
    assert sorted(written[:-1]) == ["config.json", "merges.txt", "tokenizer.json"]
    assert written[-1] == "model.safetensors"


def test_kill_9_while_saving_never_loses_the_model(tmp_path):
    """A child saves models full of 1, 2, 3, ... over each other; one is whole whenever it dies."""
    program = (
        "import sys, capstone_gpt as gpt\n"
        "m = gpt.GPT(gpt.GPTConfig(vocab_size=50, block_size=64, n_layer=2, n_head=2, n_embd=64))\n"
        "m.files, n = {'tokenizer.json': b'{}'}, int(sys.argv[2])\n"
        "while True:\n"
        "    n += 1\n"
        "    m.flat[:] = n\n"
        "    gpt.save_model(sys.argv[1], m)\n"
        "    print(n, flush=True)\n"
    )
    directory, last, pause = tmp_path / "model", 0, random.Random(0)
    for _ in range(8):
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
        assert model.files["tokenizer.json"] == b"{}"
    model.save_pretrained(directory)
    assert sorted(os.listdir(directory)) == ["config.json", "model.safetensors", "tokenizer.json"]
