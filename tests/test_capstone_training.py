"""Training and the command line: resume, interruption, divergence, kept runs, wrong input."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, check_held_out_line

import capstone_gpt as gpt

TINY = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=8", "--batch_size=4"]
TINY += ["--eval_interval=4", "--eval_iters=1", "--warmup_iters=2", "--max_iters=12"]


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A small text file, in a fresh working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat. " * 40 + "a dog ran.\n" * 40)
    return str(path)


def last(out):
    files = ("model.safetensors", "training_state.safetensors")
    return [(gpt.find_checkpoint(f"{out}/last") / name).read_bytes() for name in files]


def metrics(out):
    lines = open(f"{out}/metrics.jsonl").read().splitlines()
    return [json.loads(line) | {"tokens_per_second": 0} for line in lines]


@pytest.mark.parametrize(
    "options",
    [["--dropout=0.2"], ["--gradient_accumulation_steps=3"], ["--arch=gpt2", "--bias=True"]],
)
def test_resume_is_bit_identical_to_never_having_stopped(text, options, capsys):
    common = ["train", "--data", text, *TINY, *options, "--lr_decay_iters=12"]
    assert gpt.main([*common, "--out_dir=whole"]) == 0
    assert gpt.main([*common, "--out_dir=parts", "--max_iters=8"]) == 0
    assert gpt.main(["train", "--resume", "parts", "--max_iters=12"]) == 0
    assert last("whole") == last("parts")
    assert metrics("whole") == metrics("parts")
    best = [f"{out}/best/model.safetensors" for out in ("whole", "parts")]
    assert open(best[0], "rb").read() == open(best[1], "rb").read()


def start(*arguments):
    command = [sys.executable, str(ROOT / "capstone_gpt.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(out, step):
    deadline = time.time() + 60
    while time.time() < deadline:
        if os.path.exists(f"{out}/metrics.jsonl"):
            if any(f'"step": {step},' in line for line in open(f"{out}/metrics.jsonl")):
                return
        time.sleep(0.01)
    raise AssertionError(f"step {step} never came")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(text, how, capsys):
    common = ["train", "--data", text, *TINY, "--dropout=0.1", "--max_iters=600"]
    common += ["--eval_interval=100", "--sample_interval=1000"]
    child = start(*common, "--out_dir=parts")
    wait_for_step("parts", 200)
    child.send_signal(how)
    said, _ = child.communicate(timeout=60)
    if how == signal.SIGINT:
        assert child.returncode == 0 and "train --resume parts" in said, said
    stopped = gpt.read_json(gpt.find_checkpoint("parts/last") / "training_state.json")["step"]
    assert 200 <= stopped < 600 or how == signal.SIGKILL
    assert gpt.main(["train", "--resume", "parts"]) == 0
    assert gpt.main([*common, "--out_dir=whole"]) == 0
    assert last("whole") == last("parts") and metrics("whole") == metrics("parts")


def test_a_diverging_run_stops_says_why_and_keeps_the_last_good_checkpoint(text, capsys):
    options = ["--out_dir=run", "--grad_clip=0", "--learning_rate=1e30", "--warmup_iters=0"]
    assert gpt.main(["train", "--data", text, *TINY, *options]) == 1
    said = capsys.readouterr().err
    assert all(w in said for w in ("step", "learning rate", "gradient norm", "lower", "run/last"))
    assert np.isfinite(gpt.GPT.from_pretrained("run/last").flat).all()


def test_a_loss_that_is_not_finite_is_never_saved(text, capsys):
    """An update that ruins the weights has finite gradients; its checkpoint must not land."""
    options = ["--out_dir=run", "--learning_rate=1e3", "--eval_interval=1", "--min_lr=1e3"]
    status = gpt.main(["train", "--data", text, *TINY, *options, "--max_iters=60"])
    said = capsys.readouterr()
    assert "Warning" not in said.err and "nan" not in open("run/metrics.jsonl").read().lower()
    assert status == 1 and np.isfinite(metrics("run")[-1]["held_out_loss"])
    model, tokenizer = gpt.load("run/last")
    ids = tokenizer.encode(open(text).read())[None, :9]
    with np.errstate(over="ignore"):
        assert np.isfinite(model.loss(ids[:, :-1], ids[:, 1:]))


@pytest.mark.parametrize(
    "change",
    [{"step": "5"}, {"step": None}, {"step": -5}, {"best": "x"}, {"sum": []}, {"count": 0.5}]
    + [{"settings": {}}, {"text": 1}],
)
def test_a_damaged_training_state_is_one_line(text, change, capsys):
    assert gpt.main(["train", "--data", text, *TINY, "--out_dir=run"]) == 0
    path = "run/last/training_state.json"
    state = json.load(open(path)) | change
    json.dump(state, open(path, "w"))
    capsys.readouterr()
    assert gpt.main(["train", "--resume", "run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_two_runs_started_together_take_two_directories(text):
    runs = [start("train", "--data", text, *TINY, f"--seed={seed}") for seed in (1, 2)]
    said = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert sorted(os.listdir("out")) == ["text", "text-2"]


def test_a_second_run_never_touches_the_first(text, capsys):
    for _ in range(2):
        assert gpt.main(["train", "--data", text, *TINY]) == 0
    assert sorted(os.listdir("out")) == ["text", "text-2"]
    before = last("out/text")
    assert gpt.main(["train", "--data", text, *TINY, "--out_dir=out/text"]) == 2
    assert "--resume" in capsys.readouterr().err and last("out/text") == before


def test_the_end_of_a_run_shows_the_ladder_and_its_metrics(text, capsys):
    assert gpt.main(["train", "--data", text, *TINY, "--max_iters=8"]) == 0
    said = capsys.readouterr().out
    bits = check_held_out_line(said)
    assert "5-gram:" in said and "out/text/best" in said
    assert [m["step"] for m in metrics("out/text")] == [0, 4, 8]
    assert gpt.main(["eval", "--data", text]) == 0
    assert check_held_out_line(capsys.readouterr().out) == bits


def test_training_learns_and_beats_its_start(text, capsys):
    assert (
        gpt.main(["train", "--data", text, *TINY, "--max_iters=150", "--learning_rate=1e-2"]) == 0
    )
    losses = [m["held_out_loss"] for m in metrics("out/text")]
    assert losses[0] > 2.5 and losses[-1] < 1.5


def test_samples_follow_the_seed_and_the_prompt(text, capsys):
    assert gpt.main(["train", "--data", text, *TINY]) == 0
    capsys.readouterr()
    texts = []
    for flags in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"], ["--num-samples", "2"]):
        command = ["sample", "--prompt", "the cat", "--max-new-tokens", "30", *flags]
        assert gpt.main(command) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2] and all(t.startswith("the cat") for t in texts)
    assert len(texts[0]) == len("the cat") + 30 + 1 and texts[3].count("the cat") >= 2


@pytest.mark.parametrize("content", ["a" * 200, "ab" * 40, "été € \U0001f600\n" * 30])
def test_odd_texts_train(text, content, capsys):
    open("odd.txt", "w").write(content)
    assert gpt.main(["train", "--data", "odd.txt", *TINY]) == 0
    check_held_out_line(capsys.readouterr().out)


def test_fast_smoke_run_on_the_stories(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gpt.main(["--fast"]) == 0
    assert check_held_out_line(capsys.readouterr().out) < 5.5


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["train", "--data", "nowhere.txt"], "nowhere.txt: no such file"),
        (["train", "--data", "empty.txt"], "empty"),
        (["train", "--data", "bytes.bin"], "not UTF-8"),
        (["train", "--data", "short.txt"], "too few for a block of 64"),
        (["train", "--data", "."], "a directory"),
        (["train", "--n_embd", "130"], "multiple of n_head"),
        (["train", "--arch", "bert"], "gpt2"),
        (["train", "--learning-rate", "-1"], "learning_rate"),
        (["train", "--learning_rate", "nan"], "learning_rate"),
        (["train", "--batch_size", "0"], "batch_size"),
        (["train", "--batch_size", "many"], "batch_size"),
        (["train", "--n_layer", "9" * 20], "n_layer must be"),
        (["train", "--out_dir", "bytes.bin"], "is a file"),
        (["train", "text.txt"], "unexpected 'text.txt'"),
        (["train", "--resume", "run", "--fast"], "its own settings"),
        (["sample", "--n_layer", "3"], "unknown flag --n_layer"),
        (["sample", "--from", "run", "--seed", "-1"], "seed"),
        (["sample", "--from", "run", "--num-samples", "0"], "num_samples"),
        (["sample", "--from", "misfit"], "2 characters for a vocabulary of 3"),
        (["train", "--bias", "maybe"], "True or False"),
        (["train", "--max_itters", "3"], "did you mean --max_iters"),
        (["train", "--preset", "huge"], "invalid choice"),
        (["train", "--resume", "nowhere"], "no such checkpoint"),
        (["paint"], "invalid choice"),
        (["sample"], "train one first"),
        (["sample", "--from", "nowhere"], "no such checkpoint"),
        (["sample", "--from", "damaged"], "damaged"),
        (["eval", "--from", "model"], "no tokenizer"),
        (["sample", "--from", "run", "--prompt", "Zq€"], "'Z', 'q', '€'"),
        (["sample", "--from", "run", "--temperature", "-1"], "temperature"),
        (["sample", "--from", "run", "--top_k", "0"], "top_k"),
    ],
)
def test_wrong_input_gives_one_line_and_status_2(text, arguments, words, capsys):
    for name, content in {"empty.txt": b"", "bytes.bin": b"ab\xff", "short.txt": b"hello"}.items():
        open(name, "wb").write(content)
    model = gpt.GPT(gpt.GPTConfig(vocab_size=3, block_size=4, n_layer=1, n_head=1, n_embd=4))
    model.save_pretrained("model")
    gpt.write_checkpoint("run", model, gpt.CharTokenizer("abc"))
    gpt.write_checkpoint("misfit", model, gpt.CharTokenizer("ab"))
    model.save_pretrained("damaged")
    open("damaged/model.safetensors", "r+b").truncate(30)
    try:
        status = gpt.main(arguments)
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    assert status == 2 and words in said.err, said
    assert said.err.count("\n") == 1 and "Traceback" not in said.err


def test_resume_refuses_another_shape_or_text(text, capsys):
    assert gpt.main(["train", "--data", text, *TINY, "--out_dir=run"]) == 0
    open("other.txt", "w").write(open(text).read().replace("cat", "tac"))
    for change, words in (
        ("--n_embd=32", "keeps its n_embd"),
        ("--data=other.txt", "not the text"),
    ):
        assert gpt.main(["train", "--resume", "run", change]) == 2
        assert words in capsys.readouterr().err
