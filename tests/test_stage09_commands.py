"""Stage 9's files and commands: PEFT's adapters, other people's checkpoints, hostile input."""

import json
import math
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from conftest import (
    LIKE_TRANSFORMERS,
    ROOT,
    assert_gradients,
    files,
    refusal,
    relative_error,
    save_checkpoint,
)

import capstone_gpt as gpt
import stage09_lora as s

LETTERS = "\n abcdefghijklmnopqrstuvwxyz.?"
SIZES = {"block_size": 40, "n_layer": 2, "n_head": 2, "n_embd": 32}
QUESTIONS = {"cat": "purr", "dog": "bark", "hen": "cluck", "pig": "grunt"}


def save(directory, arch, tokenizer, steps=0, **config_json):
    """A checkpoint that has learned, for some steps, to give any answer to any question, half
    of them right."""
    pairs = [(animal, sound) for animal in QUESTIONS for sound in QUESTIONS.values()]
    pairs += 2 * list(QUESTIONS.items())  # so that half of all answers are right
    texts = [f"what says the {animal}? {sound}." for animal, sound in pairs]
    return save_checkpoint(directory, arch, tokenizer, SIZES, texts, steps, **config_json)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(request, tmp_path_factory):
    """A checkpoint as the capstone writes it (gpt2, characters, no end token), or with what
    transformers adds and a tokenizer with special tokens (llama)."""
    directory = tmp_path_factory.mktemp(request.param) / "base"
    if request.param == "gpt2":
        return save(directory, "gpt2", gpt.CharTokenizer(LETTERS), 100)
    tokens = gpt.load_tokenizer(ROOT / "data" / "tokenizer")
    return save(directory, "llama", tokens, 100, **LIKE_TRANSFORMERS)


@pytest.fixture
def answers(tmp_path):
    """A .jsonl file: 40 questions with four answers in turn."""
    lines = []
    for i in range(40):
        animal, sound = list(QUESTIONS.items())[i % 4]
        lines.append(json.dumps({"prompt": f"what says the {animal}?", "response": f" {sound}."}))
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*words):
    """Call the program in this process; it must succeed."""
    assert s.main([str(word) for word in words]) in (None, 0)


def refused(capsys, *words):
    """The one line with which the program refuses these words."""
    return refusal(s, capsys, words)


def held_out(text):
    """The two numbers in what adapt prints: before and after."""
    lines = [line for line in text.splitlines() if line.startswith("held out ")]
    return [float(line.split(":")[1].split()[0]) for line in lines]


# The gradients


@pytest.mark.parametrize("kind", [s.LoRALinear, s.DoRALinear])
@pytest.mark.parametrize("rslora", [False, True])
def test_plug_gradients_are_those_of_the_merged_matrix(kind, rslora, rng):
    W = rng.normal(size=(5, 3))
    plug = kind(W, 2, 3.0, 0, rslora)
    for p in plug.params.values():
        p += rng.normal(0, 0.3, p.shape)
    inputs = list(plug.params.values())

    def matrix():  # as sections 3 and 4 define it
        V = W + plug.scale * plug.params["A"] @ plug.params["B"]
        return V * plug.params["m"] / np.linalg.norm(V, axis=0) if "m" in plug.params else V

    assert_gradients(matrix, inputs, lambda G: plug.gradients(G).values())


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("plugged", [True, False])
def test_a_model_has_the_gradients_of_its_loss(arch, plugged, rng):
    config = gpt.GPTConfig(arch, 7, 6, 2, 2, 4, 1 if arch == "llama" else 2)
    model = gpt.GPT(config, 0, np.float64)
    model.flat[:] += rng.normal(0, 0.3, model.flat.size)
    plugs, tuned = {}, dict(model.params)
    if plugged:
        for i, name in enumerate(s.matrices_of(model.params)):
            kind = s.LoRALinear if i else s.DoRALinear
            plugs[name] = kind(s.as_in_out(model.params, name).copy(), 2, 3.0, i)
        tuned = s.tuned_arrays({}, plugs, [])
        for p in tuned.values():
            p += rng.normal(0, 0.3, p.shape)
    batch = [(idx[None], targets[None]) for idx, targets in rng.integers(0, 7, (3, 2, 5))]

    def loss():
        s.merge_into(model.params, plugs)
        return np.mean([model.loss(*example) for example in batch])

    found, grads = s.checkpoint_gradients(model, plugs, batch) if loss() else None
    assert abs(found - loss()) < 1e-12 and grads.keys() == tuned.keys()
    for name, p in tuned.items():
        i = tuple(rng.integers(0, p.shape))
        old, ends = p[i], []
        for change in (1e-5, -1e-5):
            p[i] = old + change
            ends.append(loss())
        p[i] = old
        slope = (ends[0] - ends[1]) / 2e-5
        assert abs(slope - grads[name][i]) < 1e-6 * abs(slope) + 1e-9, name


# The two commands, from end to end


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "full"])
def test_adapt_learns_to_answer_and_merge_makes_a_model_of_it(
    base, answers, method, tmp_path, capsys
):
    before = gpt.GPT.from_pretrained(base)
    run("adapt", "--base", base, "--data", answers, "--method", method, "--steps", "40",
        "--learning_rate", "0.01", "--batch_size", "4",
        "--out", tmp_path / "new" / "one")  # fmt: skip
    printed = capsys.readouterr().out
    first, last = held_out(printed)
    assert last < 0.4 * first and "no better" not in printed
    assert "36 examples to learn from, 4 held out" in printed
    assert "(40 steps, " in printed and "numbers will be trained" in printed
    out = tmp_path / "new" / "one"
    assert files(tmp_path / "new") == ["one"], "nothing temporary is left"
    if method != "full":
        assert files(out) == ["adapter_config.json", "adapter_model.safetensors"]
        config = json.loads((out / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(base) and config["lora_alpha"] == 16
        assert config["lora_dropout"] == 0 and config["bias"] == "none"
        assert config["fan_in_fan_out"] == (before.config.arch == "gpt2")
        run("merge", "--base", base, "--adapter", out, "--out", tmp_path / "merged")
        out = tmp_path / "merged"
    assert files(out) == files(base)
    model, tokenizer = gpt.load(out)
    assert model.config == before.config
    greedy = (0.0, None, None, None)
    ends = gpt.bos_and_eos(model)[1]
    for animal, sound in QUESTIONS.items():
        text = "".join(gpt.continued(model, tokenizer, f"what says the {animal}?", 8, greedy))
        assert text == f" {sound}." if ends else text.startswith(f" {sound}.\n\n"[:8])
    moved = {name for name in model.params if (model.params[name] != before.params[name]).any()}
    matrices = {name for name in moved if before.params[name].ndim == 2 and "embed" not in name}
    if method != "full":
        assert moved == matrices and not any("wte" in n or "lm_head" in n for n in moved)
        assert len(moved) == (8 if before.config.arch == "gpt2" else 14)


def test_a_merged_model_computes_what_base_and_plugs_do(base, answers, tmp_path, rng):
    run("adapt", "--base", base, "--data", answers, "--steps", "3", "--out", tmp_path / "a")
    run("merge", "--base", base, "--adapter", tmp_path / "a", "--out", tmp_path / "m")
    params = gpt.GPT.from_pretrained(base).params
    merged = gpt.GPT.from_pretrained(tmp_path / "m").params
    for name, plug in s.load_adapter(tmp_path / "a", params).items():
        x = rng.normal(size=(3, plug.params["A"].shape[0])).astype(np.float32)
        y, _ = plug.forward(x)
        assert relative_error(y, x @ s.as_in_out(merged, name)) < 1e-4
        assert plug.scale == 2 and np.abs(plug.params["B"]).max() > 0


def test_a_text_is_learned_and_its_last_tenth_is_held_out(base, tmp_path, capsys):
    text = "the cat sat on the mat. the dog ran to the hen.\n" * 30
    (tmp_path / "x.txt").write_text(text)
    common = ("adapt", "--base", base, "--data", tmp_path / "x.txt", "--steps", "30")
    run(*common, "--learning_rate", "0.02", "--out", tmp_path / "a")
    first, last = held_out(capsys.readouterr().out)
    model, tokenizer = gpt.load(base)
    train, held = s.read_examples(gpt, tmp_path / "x.txt", model, tokenizer)
    cut = int(0.9 * len(text))
    for part, examples in ((text[:cut], train), (text[cut:], held)):
        ids = tokenizer.encode(part)
        assert np.array_equal(np.concatenate([t[0] for _, t in examples]), ids[1:])
        assert np.array_equal(np.concatenate([i[0] for i, _ in examples]), ids[:-1])
        assert max(i.shape[1] for i, _ in examples) == 40
    nats = sum(model.loss(i, t) * t.size for i, t in held) / (len(tokenizer.encode(text[cut:])) - 1)
    assert abs(first - nats) < 6e-4 and last < 0.6 * first


def test_only_a_response_and_its_end_are_learned(base, answers):
    model, tokenizer = gpt.load(base)
    train, held = s.read_examples(gpt, answers, model, tokenizer)
    assert (len(train), len(held)) == (36, 4)
    idx, targets = train[1]
    start = tokenizer.encode("what says the dog?", add_special_tokens=True)
    end = [1023] if model.config.arch == "llama" else list(tokenizer.encode("\n\n"))
    learned = [*tokenizer.encode(" bark."), *end]
    assert idx.shape == targets.shape == (1, len(start) + len(learned) - 1)
    assert [*idx[0], learned[-1]] == [*start, *learned]
    assert list(targets[0]) == [-1] * (len(start) - 1) + learned
    assert np.array_equal(held[0][0], s.read_examples(gpt, answers, model, tokenizer)[1][0][0])


def test_an_empty_prompt_is_no_prompt(tmp_path, base):
    model, tokenizer = gpt.load(base)
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "", "response": "abc"}\n\n{"prompt": "a", "response": ""}\n' * 2)
    train, held = s.read_examples(gpt, path, model, tokenizer)
    assert [(t >= 0).all() for _, t in train] == [True] * 3 and len(held) == 1


def test_steps_rate_and_batches_are_as_asked(base, answers, tmp_path, monkeypatch):
    sizes, seen, gradients, train = [], [], s.checkpoint_gradients, s.train

    def watch(model, plugs, batch):
        sizes.append(len(batch))
        return gradients(model, plugs, batch)

    def watch_training(tuned, loss_and_grads, steps, rate):
        seen.append((steps, rate))
        return train(tuned, loss_and_grads, steps, rate)

    monkeypatch.setattr(s, "checkpoint_gradients", watch)
    monkeypatch.setattr(s, "train", watch_training)
    run("adapt", "--base", base, "--data", answers, "--steps", "20", "--batch_size", "3",
        "--learning_rate", "0.01", "--out", tmp_path / "a")  # fmt: skip
    assert sizes == [3] * 20 and seen == [(20, 0.01)]


def test_one_step_by_hand(base, answers, tmp_path):
    """B = 0 leaves A where it began, undecayed; B moves by the rate, at the last step a tenth of
    its highest, against its gradient."""
    run("adapt", "--base", base, "--data", answers, "--steps", "1", "--batch_size", "3",
        "--learning_rate", "0.01", "--seed", "4", "--out", tmp_path / "a")  # fmt: skip
    model, tokenizer = gpt.load(base)
    train, _ = s.read_examples(gpt, answers, model, tokenizer)
    moved, rng = s.load_adapter(tmp_path / "a", model.params), np.random.default_rng(4)
    matrices = {n: s.as_in_out(model.params, n) for n in s.matrices_of(model.params)}
    assert moved.keys() == matrices.keys()
    fresh = {n: s.LoRALinear(W, 8, 16, rng) for n, W in matrices.items()}
    chosen = [train[i] for i in rng.integers(0, 36, 3)]
    slopes = [model.loss_and_grads(idx, targets)[1] for idx, targets in chosen]
    dB = {n: sum(2 * fresh[n].params["A"].T @ s.as_in_out(g, n) / 3 for g in slopes) for n in moved}
    norm = math.sqrt(sum((g * g).sum() for g in dB.values()))
    for name, plug in moved.items():
        assert np.array_equal(plug.params["A"], fresh[name].params["A"])
        g = dB[name] * min(1, 1 / norm)
        sure = np.abs(g) > 1e-5
        assert sure.any()
        assert np.allclose(plug.params["B"][sure], -0.001 * np.sign(g[sure]), rtol=1e-2)


def test_a_seed_repeats_a_run_and_another_does_not(base, answers, tmp_path):
    for name, first, last in (
        ("a", [], []),
        ("b", ["--seed", "1"], []),
        ("c", [], ["--seed", "1"]),
    ):
        words = ("--steps", "3", *last, "--out", tmp_path / name)
        run(*first, "adapt", "--base", base, "--data", answers, *words)
    a, b, c = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in "abc")
    assert a != b == c


def test_a_base_in_four_bits_is_rounded_before_adapting_and_before_merging(
    base, answers, tmp_path, capsys
):
    run("adapt", "--base", base, "--data", answers, "--out", tmp_path / "a", "--steps", "1")
    run(
        "adapt", "--base", base, "--data", answers, "--out", tmp_path / "n", "--steps", "1", "--nf4"
    )
    assert held_out(capsys.readouterr().out)[0::2] != [0, 0]
    params = gpt.GPT.from_pretrained(base).params
    plugs = s.load_adapter(tmp_path / "n", params)
    run("merge", "--base", base, "--adapter", tmp_path / "n", "--out", tmp_path / "m", "--nf4")
    merged = gpt.GPT.from_pretrained(tmp_path / "m").params
    for name, p in params.items():
        if name in plugs:
            W = s.dense(s.quantize_nf4(p))
            update = plugs[name].scale * plugs[name].params["A"] @ plugs[name].params["B"]
            update = update if s.as_in_out(params, name) is p else update.T
            assert np.allclose(merged[name], W + update, atol=1e-6) and (W != p).any()
        else:
            assert np.array_equal(merged[name], p)


def test_training_that_does_not_help_is_called_so(base, answers, tmp_path, capsys):
    run("adapt", "--base", base, "--data", answers, "--steps", "3", "--learning_rate", "1e-12",
        "--method", "full", "--out", tmp_path / "a")  # fmt: skip
    assert "no better" in capsys.readouterr().out


# What goes wrong leaves nothing behind, and is told in one line


def test_damaged_lines_are_named_by_their_numbers(base, answers, tmp_path, capsys):
    lines = answers.read_text().splitlines()
    lines[2], lines[6], lines[9] = "{not json", '{"prompt": "a"}', '{"prompt": 5, "response": "a"}'
    lines[11], lines[13] = "[1]", '{"prompt": "a", "response": ["b"]}'
    answers.write_text("\n".join(lines))
    error = refused(capsys, "adapt", "--base", base, "--data", answers, "--out", tmp_path / "a")
    assert "5 damaged lines" in error and "answers.jsonl" in error
    for number in ("line 3 ", "line 7 ", "line 10 ", "line 12 "):
        assert number in error
    assert files(tmp_path) == ["answers.jsonl"]


def test_a_letter_the_model_does_not_know_is_named_with_its_line(tmp_path, capsys):
    base = save(tmp_path / "base", "gpt2", gpt.CharTokenizer(LETTERS))
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": "Ö"}\n')
    error = refused(capsys, "adapt", "--base", base, "--data", path, "--out", tmp_path / "a")
    assert "line 2" in error and "not trained on" in error


def test_long_examples_are_left_out_and_counted(base, tmp_path, capsys):
    model, tokenizer = gpt.load(base)
    end = 1 if model.config.arch == "llama" else 2
    room = 41 - len(tokenizer.encode("a")) - end  # 40 tokens are read, the last is only predicted
    texts = ["x" * n for n in range(1, 200)]
    fits = [text for text in texts if len(tokenizer.encode(text)) <= room]
    rows = [{"prompt": "a", "response": text} for text in (fits[-1], fits[-1], fits[-1] + "x")]
    assert len(tokenizer.encode(fits[-1])) == room
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    train, held = s.read_examples(gpt, path, model, tokenizer)
    assert len(train) + len(held) == 2 and "1 examples are left out" in capsys.readouterr().out
    assert train[0][0].shape == (1, 40)


ONE = '{"prompt": "a", "response": "b"}'


@pytest.mark.parametrize(
    "name, text",
    [("x.txt", "a"), ("x.txt", ""), ("x.jsonl", "\n"), ("x.jsonl", ONE), ("none.txt", None)],
)
def test_too_little_to_learn_from(base, name, text, tmp_path, capsys):
    if text is not None:
        (tmp_path / name).write_text(text)
    common = ("adapt", "--base", base, "--data", tmp_path / name)
    assert name in refused(capsys, *common, "--out", tmp_path / "new" / "a")
    assert not (tmp_path / "new" / "a").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_an_interrupted_run_leaves_nothing(error, base, answers, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise error() if error is MemoryError else error("stopped here")

    monkeypatch.setattr(s, "checkpoint_gradients", stop)
    words = ["adapt", "--base", base, "--data", answers, "--out", tmp_path / "a"]
    with pytest.raises(SystemExit) as stopped:
        s.main([str(word) for word in words])
    assert stopped.value.code == (130 if error is KeyboardInterrupt else 2)
    assert files(tmp_path) == ["answers.jsonl"]


def test_a_loss_that_is_no_number_saves_nothing_and_gives_advice(base, answers, tmp_path, capsys):
    words = ("--learning_rate", "1e18", "--method", "full", "--out", tmp_path / "a")
    error = refused(capsys, "adapt", "--base", base, "--data", answers, *words)
    assert "lower learning_rate" in error and files(tmp_path) == ["answers.jsonl"]


def test_a_directory_that_exists_is_not_touched(base, answers, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    words = ("--base", base, "--out", tmp_path / "a")
    assert "exists already" in refused(capsys, "adapt", *words, "--data", answers)
    assert "exists already" in refused(capsys, "merge", *words, "--adapter", base)
    assert files(tmp_path / "a") == []
    (tmp_path / "file").write_text("")
    words = ("--base", base, "--data", answers, "--out", tmp_path / "file" / "a")
    assert "file" in refused(capsys, "adapt", *words)


def test_a_directory_that_cannot_be_written_is_noticed_before_training(
    base, answers, tmp_path, monkeypatch, capsys
):
    def fail(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(s.tempfile, "mkdtemp", fail)
    monkeypatch.setattr(gpt, "load", None)  # is not reached
    words = ("--base", base, "--data", answers, "--out", tmp_path / "a")
    assert "Permission denied" in refused(capsys, "adapt", *words)


def test_without_the_capstone_there_is_one_sentence(base, answers, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "capstone_gpt", None)
    words = ("--base", base, "--out", tmp_path / "a")
    assert "need capstone_gpt.py" in refused(capsys, "adapt", *words, "--data", answers)
    assert "need capstone_gpt.py" in refused(capsys, "merge", *words, "--adapter", base)
    assert files(tmp_path) == ["answers.jsonl"]


def test_merging_into_a_base_it_is_not_for(base, answers, tmp_path, capsys):
    run("adapt", "--base", base, "--data", answers, "--steps", "1", "--out", tmp_path / "a")
    other = save(tmp_path / "other", "gpt2", gpt.CharTokenizer("ab"))
    words = ("merge", "--base", base, "--out", tmp_path / "m", "--adapter", tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": 9e29}))
    huge = {name: np.full_like(p, 1e30) for name, p in arrays(tmp_path / "a").items()}
    gpt.write_safetensors(tmp_path / "a" / "adapter_model.safetensors", huge)
    assert "not finite" in refused(capsys, *words)
    path.write_text(json.dumps(config | {"target_modules": ["q_proj", "c_fc"]}))
    assert "target_modules" in refused(capsys, *words)
    if gpt.GPT.from_pretrained(base).config.arch == "llama":
        words = ("merge", "--base", other, "--out", tmp_path / "m", "--adapter", tmp_path / "a")
        assert "does not have" in refused(capsys, *words)
    assert not (tmp_path / "m").exists()


# PEFT's files


@pytest.fixture
def params():
    return s.init_params(vocab_size=7, block_size=6, n_layer=2, width=4)


def arrays(directory):
    """{name: array} of the adapter there."""
    stored, _ = gpt.read_safetensors(directory / "adapter_model.safetensors")
    return {name: gpt.read_tensor(tensor).copy() for name, tensor in stored.items()}


def adapter(directory, params, targets=("c_attn",), rank=2, kind=s.LoRALinear, **changes):
    """Save an adapter with random numbers, with changes in its configuration."""
    plugs = s.apply_lora(params, targets, rank, 4, layer=kind)
    for i, plug in enumerate(plugs.values()):
        for p in plug.params.values():
            p[...] = np.random.default_rng(i).normal(1, 0.1, p.shape)
    s.save_adapter(directory, plugs)
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return plugs


def test_patterns_choose_alpha_and_rank_by_the_end_of_the_name(params, tmp_path):
    first, second = (f"transformer.h.{i}.attn.c_attn.weight" for i in range(2))
    adapter(tmp_path, params, alpha_pattern={"h.0.attn.c_attn": 64}, target_modules=["attn.c_attn"])
    found = s.load_adapter(tmp_path, params)
    assert (found[first].scale, found[second].scale) == (32, 2)
    patterns = {"0.attn.c_attn": 6, "c_attn": 10, "h.1.attn.c_attn": 99}  # the first that fits
    adapter(tmp_path, params, alpha_pattern=patterns, use_rslora=True)
    found = s.load_adapter(tmp_path, params)
    scales = found[first].scale, found[second].scale
    assert scales == (6 / math.sqrt(2), 10 / math.sqrt(2))
    adapter(tmp_path, params, alpha_pattern={"attn": 64, "xattn.c_attn": 64, "n.c_attn": 64})
    assert s.load_adapter(tmp_path, params)[first].scale == 2
    tensors = arrays(tmp_path)
    name = f"base_model.model.{first.removesuffix('weight')}lora_"
    tensors |= {f"{name}A.weight": np.ones((3, 4)), f"{name}B.weight": np.ones((12, 3))}
    gpt.write_safetensors(tmp_path / "adapter_model.safetensors", tensors)
    adapter(tmp_path / "x", params, rank_pattern={"h.0.attn.c_attn": 3})
    config = (tmp_path / "x" / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(config)
    found = s.load_adapter(tmp_path, params)
    assert (found[first].rank, found[second].rank) == (3, 2)
    assert found[first].scale == 4 / 3 and found[first].params["A"].shape == (4, 3)


IDLE = {
    "init_lora_weights": "gaussian", "lora_dropout": 0.1, "inference_mode": False,
    "fan_in_fan_out": False, "peft_version": "0.21.2", "revision": "main",
    "auto_mapping": {"base_model_class": "GPT2LMHeadModel"}, "megatron_core": "megatron.core",
    "loftq_config": {}, "modules_to_save": None, "lora_bias": False, "qalora_group_size": 16,
    "layers_to_transform": None, "exclude_modules": None, "target_modules": "all-linear",
}  # fmt: skip


def test_settings_that_change_nothing_are_followed(params, tmp_path):
    plugs = adapter(tmp_path, params, **IDLE)
    for name, plug in s.load_adapter(tmp_path, params).items():
        assert all(np.array_equal(plug.params[key], p) for key, p in plugs[name].params.items())


@pytest.mark.parametrize(
    "key, value",
    [
        ("init_lora_weights", "pissa"), ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"), ("init_lora_weights", "loftq"), ("init_lora_weights", 1),
        ("alora_invocation_tokens", [1]), ("lora_bias", True), ("bias", "all"), ("bias", None),
        ("modules_to_save", ["lm_head"]), ("layers_to_transform", [0]), ("layers_to_transform", 0),
        ("target_modules", ".*c_attn"), ("target_modules", {"c_attn": 1}), ("target_modules", 5),
        ("target_modules", ["c_fc"]), ("target_modules", ["_attn"]), ("target_modules", []),
        ("fan_in_fan_out", "true"), ("use_rslora", "false"), ("use_rslora", 1), ("use_dora", "x"),
        ("use_dora", True), ("use_qalora", True), ("layer_replication", [[0, 1]]),
        ("trainable_token_indices", [0]), ("target_parameters", ["w"]), ("peft_type", "IA3"),
        ("peft_type", None), ("exclude_modules", ["c_fc"]), ("something_new", 1),
        ("r", 1_000_000_000), ("r", 0), ("r", 2.0), ("r", True), ("r", "2"), ("r", None),
        ("lora_alpha", int("1" * 401)), ("lora_alpha", math.inf), ("lora_alpha", math.nan),
        ("lora_alpha", "4"), ("lora_alpha", None), ("lora_alpha", True),
        ("alpha_pattern", {"c_attn": "4"}), ("alpha_pattern", {".*attn": 4}), ("alpha_pattern", 5),
        ("alpha_pattern", {"^transformer": 4}), ("rank_pattern", {"c_attn": 10**9}),
        ("rank_pattern", {"c_attn": -1}), ("rank_pattern", [2]),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_followed_are_refused_by_name(key, value, params, tmp_path):
    adapter(tmp_path, params, **{key: value})
    tracemalloc.start()
    with pytest.raises(ValueError) as error:
        s.load_adapter(tmp_path, params)
    assert tracemalloc.get_traced_memory()[1] < 2e6, "nothing large is allocated first"
    tracemalloc.stop()
    told = str(error.value)
    alpha = "alpha" in key and told.startswith("alpha must be a finite number")
    assert key in told or alpha or "expected" in told or "no target_modules" in told
    assert len(told) < 500


def test_llamas_matrices_are_seen_as_in_out(tmp_path, rng):
    """Square ones, too, where a wrong orientation would fit."""
    model = gpt.GPT(gpt.GPTConfig("llama", 7, 6, 1, 2, 8, 1), 0)
    modules = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
    names = [f"model.layers.0.{module}.weight" for module in modules]
    tensors, expected = {}, {}
    for name in names:
        out, into = model.params[name].shape
        A, B = rng.normal(size=(3, into)), rng.normal(size=(out, 3))  # as torch has them
        expected[name] = model.params[name] + 2 * B @ A
        start = "base_model.model." + name.removesuffix("weight")
        tensors |= {f"{start}lora_A.weight": A, f"{start}lora_B.weight": B}
    gpt.write_safetensors(tmp_path / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    plugs = s.load_adapter(tmp_path, model.params)
    s.merge_into(model.params, plugs)
    for name in names:
        assert np.allclose(model.params[name], expected[name], atol=1e-5)


def test_matrices_outside_the_blocks_are_refused(params, tmp_path):
    adapter(tmp_path, params, ["wte"], target_modules=["wte"])
    with pytest.raises(ValueError, match="transformer.wte"):
        s.load_adapter(tmp_path, params)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"])
def test_numbers_that_are_not_finite_are_refused_by_name(bad, key, params, tmp_path):
    adapter(tmp_path, params, kind=s.DoRALinear)
    path = tmp_path / "adapter_model.safetensors"
    tensors = arrays(tmp_path)
    tensors[f"base_model.model.transformer.h.1.attn.c_attn.{key}"].flat[-1] = bad
    gpt.write_safetensors(path, tensors)
    with pytest.raises(ValueError, match=f"h.1.attn.c_attn.{key}' holds a number"):
        s.load_adapter(tmp_path, params)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: {}, "no arrays"),
        (lambda t: {n: p.astype(np.int32) for n, p in t.items()}, r"lora_A.weight' is I32"),
        (lambda t: {n.replace("lora_A", "lora_C"): p for n, p in t.items()}, "lora_A.weight"),
        (
            lambda t: t | {"base_model.model.transformer.h.0.attn.c_attn.lora_x": np.ones(1)},
            "lora_x",
        ),
    ],
)
def test_arrays_that_do_not_fit(change, words, params, tmp_path):
    adapter(tmp_path, params)
    path = tmp_path / "adapter_model.safetensors"
    gpt.write_safetensors(path, change(arrays(tmp_path)))
    with pytest.raises(ValueError, match=words):
        s.load_adapter(tmp_path, params)


def test_bfloat16_is_read_as_float32(params, tmp_path):
    plugs = adapter(tmp_path, params)
    header, body, upper = {}, b"", {}
    for name, p in arrays(tmp_path).items():
        upper[name] = (p.view("<u4") >> 16).astype("<u2")
        end = len(body) + upper[name].nbytes
        header[name] = {"dtype": "BF16", "shape": p.shape, "data_offsets": [len(body), end]}
        body += upper[name].tobytes()
    text = json.dumps(header).encode()
    raw = len(text).to_bytes(8, "little") + text + body
    (tmp_path / "adapter_model.safetensors").write_bytes(raw)
    for name, plug in s.load_adapter(tmp_path, params).items():
        for key, p in plug.params.items():
            assert p.dtype == np.float32 and (p != plugs[name].params[key]).any()
            np.testing.assert_allclose(p, plugs[name].params[key], rtol=2**-7)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**6, 0, 1])
def test_headers_that_lie_are_refused_in_one_sentence(length, params, tmp_path):
    adapter(tmp_path, params)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ValueError, match="adapter_model.safetensors") as error:
        s.load_adapter(tmp_path, params)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_an_adapter_cut_off_anywhere_is_refused(params, tmp_path):
    adapter(tmp_path, params)
    path = tmp_path / "adapter_model.safetensors"
    raw = path.read_bytes()
    for n in (0, 7, 8, 50, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:n])
        with pytest.raises(ValueError, match="adapter_model.safetensors"):
            s.load_adapter(tmp_path, params)


def test_saving_takes_a_memory_that_does_not_grow_with_the_number_of_arrays(tmp_path):
    """Adding array after array to one string of bytes took a time that grew as its square."""
    base = np.ones((1000, 1000), np.float32)
    plugs = {f"h.{i}.attn.c_attn.weight": s.LoRALinear(base, 100, 1) for i in range(16)}  # 0.8 MB
    tracemalloc.start()
    s.save_adapter(tmp_path, plugs)
    assert tracemalloc.get_traced_memory()[1] < 3e6
    tracemalloc.stop()
    assert (tmp_path / "adapter_model.safetensors").stat().st_size > 12e6


# The command line


@pytest.mark.parametrize(
    "words, told",
    [
        (["--seed", "9" * 400], "--seed"),
        (["--seed", "9" * 5000], "--seed"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--non\nsense"], "non sense"),
        (["explain"], "explain"),
        (["adapt"], "--base"),
        (["merge", "--base", "x"], "--out"),
        (["adapt", "--base", "x", "--out", "y", "--data", "z", "--method", "all"], "--method"),
    ],
)
def test_a_wrong_command_line_is_one_line(words, told, capsys):
    assert told in refused(capsys, *words)


@pytest.mark.parametrize(
    "flag, value",
    [("rank", "0"), ("rank", "-3"), ("steps", "0"), ("batch_size", "0"), ("alpha", "nan"),
     ("alpha", "inf"), ("alpha", "-1"), ("learning_rate", "nan"), ("learning_rate", "0"),
     ("seed", "-1"), ("seed", str(10**400)), ("rank", str(2**63))],
)  # fmt: skip
def test_numbers_out_of_range_are_named(flag, value, base, answers, tmp_path, capsys):
    words = ("--base", base, "--data", answers, "--out", tmp_path / "a")
    error = refused(capsys, "adapt", *words, f"--{flag}", value)
    assert flag in error
    assert files(tmp_path) == ["answers.jsonl"]


def test_a_base_that_is_none(tmp_path, capsys):
    words = ("--data", "x", "--out", tmp_path / "a\nb")
    assert "config.json" in refused(capsys, "adapt", "--base", tmp_path, *words)
    assert files(tmp_path) == []


@pytest.mark.parametrize("command", [[], ["adapt"], ["merge"]])
def test_help_explains_without_docstrings(command):
    words = [sys.executable, "-OO", ROOT / "stage09_lora.py", *command, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: stage09")


@pytest.mark.skipif(os.name != "posix", reason="closes a pipe")
def test_a_closed_pipe_does_not_stop_the_training(base, answers, tmp_path):
    reader, pipe = os.pipe()
    os.close(reader)
    words = ["adapt", "--base", base, "--data", answers, "--steps", "4", "--out", tmp_path / "a"]
    command = [sys.executable, str(ROOT / "stage09_lora.py"), *map(str, words)]
    done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, timeout=60)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (0, b"")
    assert files(tmp_path / "a") == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("flag, value", [("--rank", 0), ("--steps", -1), ("--batch_size", 0)])
def test_a_count_below_one_is_told_the_lowest(flag, value, capsys):
    words = ["adapt", "--base", "b", "--data", "d", "--out", "o", flag, value]
    assert f"{flag} must be at least 1, below 2**63, not {value}" in refused(capsys, *words)


@pytest.mark.parametrize("flag", ["--alpha", "--learning_rate"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_size_must_be_above_zero(flag, value, capsys):
    words = ["adapt", "--base", "b", "--data", "d", "--out", "o", f"{flag}={value}"]
    assert f"{flag} must be above 0" in refused(capsys, *words)
