"""Training runs and the command line: what a run computes, keeps, survives, says and refuses."""

import errno
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, check_held_out_line

import capstone_gpt as gpt

TINY = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=8", "--batch_size=4"]
TINY += ["--eval_interval=4", "--eval_iters=1", "--warmup_iters=2", "--max_iters=12"]
TINY += ["--tokenizer=char"]
ONE_THREAD = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # models this small gain nothing by two
CONTENT = "the cat sat on the mat. " * 40 + "a dog ran.\n" * 40


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A small text file, in a fresh working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "text.txt"
    path.write_text(CONTENT)
    return str(path)


def train(text, *options):
    return gpt.main(["train", "--data", text, *TINY, *options])


def kept(out):
    """What a run leaves, to be compared bit for bit: weights, moments, state, best, curve."""
    files = ("last.safetensors", "best/model.safetensors", "best/config.json")
    return [Path(out, name).read_bytes() for name in files], metrics(out)


def metrics(out):
    lines = Path(out, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) | {"tokens_per_second": 0} for line in lines]


def state(out):
    _, metadata = gpt.read_safetensors(f"{out}/last.safetensors")
    return json.loads(metadata["state"]) | {"settings": json.loads(metadata["settings"])}


def change_state(out, state=None, settings=None):
    """Rewrite what last.safetensors has in its metadata: keys changed, or put by another value."""
    path = f"{out}/last.safetensors"
    tensors, metadata = gpt.read_safetensors(path)
    for part, change in (("state", state), ("settings", settings)):
        old = json.loads(metadata[part])
        new = old | change if isinstance(change, dict) else change or old
        metadata[part] = json.dumps(new)
    arrays = {name: gpt.read_tensor(stored) for name, stored in tensors.items()}
    gpt.write_safetensors(path, arrays, metadata)


def start(*arguments):
    command = [sys.executable, str(ROOT / "capstone_gpt.py"), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ONE_THREAD, **pipes)


def wait_for_step(child, out, step):
    deadline = time.time() + 60
    while time.time() < deadline and child.poll() is None:
        if os.path.exists(f"{out}/metrics.jsonl"):
            if any(f'"step": {step},' in line for line in open(f"{out}/metrics.jsonl")):
                return
        time.sleep(0.01)
    raise AssertionError(f"step {step} never came")


# what a run computes


@pytest.mark.parametrize(
    "options",
    [
        ["--dropout=0.2", "--dev_fraction=0.1"],
        ["--gradient_accumulation_steps=3", "--dev_fraction=0"],
        ["--arch=gpt2", "--bias=True", f"--tokenizer={ROOT / 'data' / 'tokenizer'}"],
    ],
)
def test_resume_is_bit_identical_to_never_having_stopped(text, options, capsys):
    assert train(text, *options, "--lr_decay_iters=12", "--out_dir=whole") == 0
    assert train(text, *options, "--lr_decay_iters=12", "--out_dir=parts", "--max_iters=8") == 0
    assert gpt.main(["train", "--resume", "parts", "--max_iters=12"]) == 0
    assert kept("whole") == kept("parts")


def test_a_batch_in_pieces_is_the_batch(text):
    """Two pieces of two sequences are the step on four: the same windows, the same masks."""
    common = ["--eval_interval=1", "--max_iters=3", "--dropout=0.1"]
    assert train(text, *common, "--out_dir=whole", "--batch_size=4") == 0
    pieces = ["--batch_size=2", "--gradient_accumulation_steps=2"]
    assert train(text, *common, "--out_dir=pieces", *pieces) == 0
    whole, pieces = metrics("whole"), metrics("pieces")
    for name in ("train_loss", "grad_norm"):
        for a, b in zip(whole[1:], pieces[1:]):
            assert a[name] == pytest.approx(b[name], rel=1e-4)


def test_the_learning_rate_warms_up_and_falls_to_its_end(text):
    rates = ["--learning_rate=0.1", "--min_lr=0.02", "--warmup_iters=3"]
    assert train(text, *rates, "--eval_interval=1", "--max_iters=7") == 0
    found = [row["learning_rate"] for row in metrics("out/text")[1:]]
    cosine = [0.02 + 0.04 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert found == pytest.approx([0.025, 0.05, 0.075, *cosine])


def test_settings_reach_the_optimizer_and_the_model(text):
    flags = ["--beta1=0.5", "--beta2=0.6", "--weight_decay=0.7", "--grad_clip=0.8"]
    args = gpt.build_parser().parse_args(
        ["train", "--data", text, *TINY, *flags, "--dropout=0.25", "--n_kv_head=1", "--n_hidden=24"]
    )
    given = {name: value for name, value in vars(args).items() if name in gpt.SETTINGS}
    os.mkdir("run")
    run = gpt.Run.start(Path("run"), gpt.new_settings(None, given), given)
    o, c = run.optimizer, run.model.config
    assert (o.betas, o.weight_decay, o.grad_clip) == ((0.5, 0.6), 0.7, 0.8)
    assert (c.dropout, c.n_kv_head, c.n_hidden, c.block_size) == (0.25, 1, 24, 8)
    assert gpt.SETTINGS["dev_fraction"][0] == run.settings["dev_fraction"] == 0.05


def test_training_sees_the_training_part_and_nothing_else(text, monkeypatch):
    drawn, draw_batch = [], gpt.draw_batch

    def watched(ids, *rest):
        drawn.append(np.array(ids))
        return draw_batch(ids, *rest)

    monkeypatch.setattr(gpt, "draw_batch", watched)
    assert train(text, "--dev_fraction=0.1") == 0
    _, tokenizer = gpt.load("out/text/best")
    n = int(0.9 * len(CONTENT))
    seen = CONTENT[: n - int(0.1 * n)]
    assert len(drawn) == 12 and all(tokenizer.decode(ids) == seen for ids in drawn)


def test_the_held_out_tenth_is_looked_at_once_at_the_end(text, monkeypatch):
    looked, evaluate = [], gpt.evaluate

    def watched(model, ids, first, *rest):
        looked.append((first, len(ids)))
        return evaluate(model, ids, first, *rest)

    monkeypatch.setattr(gpt, "evaluate", watched)
    assert train(text, "--dev_fraction=0.1") == 0
    end = int(0.9 * len(CONTENT))
    dev = (end - int(0.1 * end), end)
    assert looked == [dev] * 4 + [(end, len(CONTENT))]
    assert all("dev_loss" in row and "held_out_loss" not in row for row in metrics("out/text"))
    assert train(text, "--dev_fraction=0") == 0
    assert looked[5:] == [(end, len(CONTENT))] * 5
    assert all("held_out_loss" in row and "dev_loss" not in row for row in metrics("out/text-2"))


@pytest.mark.parametrize("fraction,best", [(0.1, 8), (0.0, 16)])
def test_best_is_the_lowest_development_loss_or_else_the_last_step(
    text, monkeypatch, fraction, best
):
    weights, losses = {}, {0: 5.0, 4: 2.0, 8: 1.0, 12: 3.0, 16: 1.5}

    def scripted(run, piece, stride, max_windows=None):
        if stride < run.settings["block_size"]:  # the end
            return 1.0
        weights[run.step] = run.model.flat.copy()
        return losses[run.step]

    monkeypatch.setattr(gpt.Run, "loss", scripted)
    assert train(text, f"--dev_fraction={fraction}", "--max_iters=16") == 0
    found = gpt.GPT.from_pretrained("out/text/best").flat
    assert [step for step in weights if np.array_equal(weights[step], found)] == [best]
    assert state("out/text")["best"] == 1.0


def test_losses_are_in_nats_per_character_whatever_the_tokens(text):
    """A model that knows nothing is as surprised by a token as by one of V."""
    data = f"--tokenizer={ROOT / 'data' / 'tokenizer'}"
    assert train(text, data, "--learning_rate=1e-9", "--eval_interval=1", "--max_iters=1") == 0
    split = gpt.split_file(text, gpt.load_tokenizer("out/text/best"), Path("cache"), 0.05)
    start, end = metrics("out/text")
    dev = math.log(1024) * len(split.dev) / split.dev_chars
    trained = math.log(1024) * len(split.train) / split.train_chars
    assert start["dev_loss"] == pytest.approx(dev, rel=0.02) and start["train_loss"] is None
    assert end["train_loss"] == pytest.approx(trained, rel=0.02)


def test_training_learns(text, capsys):
    assert train(text, "--max_iters=150", "--learning_rate=1e-2", "--eval_interval=50") == 0
    losses = [row["dev_loss"] for row in metrics("out/text")]
    assert losses[0] > 2 and losses[-1] < 1.2


# what it survives


def test_a_run_that_is_hit_by_signals_loses_nothing():
    """The short version of the benchmark: all four signals, at random moments."""
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_runs.py"), "--kills", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("bit for bit") == 4, done


@pytest.mark.parametrize("how,status", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_stops_after_the_step_and_says_so(text, how, status):
    out = ["--out_dir=run", "--max_iters=100000", "--eval_interval=20"]
    child = start("train", "--data", text, *TINY, *out)
    wait_for_step(child, "run", 20)
    child.send_signal(getattr(signal, how))
    said, errors = child.communicate(timeout=60)
    assert child.returncode == status, errors
    assert errors.count("\n") == 1 and "this step is finished, then the run is saved" in errors
    step = state("run")["step"]
    assert step >= 20 and f"stopped after step {step} and saved" in said
    assert "train --resume run" in said


def test_the_first_two_signals_ask_and_the_third_ends(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with gpt.noted_signals() as signals:
        assert signals == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals == [15]
        os.kill(os.getpid(), signal.SIGINT)
        assert signals == [15, 2]
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 2 and "once more" not in said[0] and "once more" in said[1]
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with gpt.noted_signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_while_saving_does_not_lose_the_run(text, monkeypatch):
    write_safetensors = gpt.write_safetensors

    def interrupted(path, *rest):
        if Path(path).name == "last.safetensors":
            os.kill(os.getpid(), signal.SIGINT)
        write_safetensors(path, *rest)

    monkeypatch.setattr(gpt, "write_safetensors", interrupted)
    assert train(text, "--out_dir=run") == 130
    assert state("run")["step"] == 0  # the first while step 0 was saved, then once more
    monkeypatch.undo()
    os.chdir(os.path.dirname(text))
    assert gpt.main(["train", "--resume", "run"]) == 0
    assert [row["step"] for row in metrics("run")] == [0, 4, 8, 12]


def test_a_step_in_pieces_stops_between_them(text, monkeypatch):
    pieces, draw_batch = [], gpt.draw_batch

    def interrupted(*arguments):
        pieces.append(arguments[-2:])
        if pieces[-1] == (5, 4):  # the second piece of step 5
            os.kill(os.getpid(), signal.SIGINT)
        return draw_batch(*arguments)

    monkeypatch.setattr(gpt, "draw_batch", interrupted)
    assert train(text, "--gradient_accumulation_steps=9", "--out_dir=run") == 130
    assert pieces[-3:] == [(4, 32), (5, 0), (5, 4)] and state("run")["step"] == 5
    monkeypatch.setattr(gpt, "draw_batch", draw_batch)
    assert gpt.main(["train", "--resume", "run"]) == 0
    assert train(text, "--gradient_accumulation_steps=9", "--out_dir=whole") == 0
    assert kept("run") == kept("whole")


def test_when_nobody_reads_stdout_the_run_is_saved(text):
    child = start("train", "--data", text, *TINY, "--out_dir=run", "--max_iters=100000")
    for _ in range(6):
        child.stdout.readline()
    child.stdout.close()
    assert child.wait(timeout=60) == 141
    errors = child.stderr.read()
    assert errors.count("\n") == 1 and "--resume run" in errors, errors
    assert f"after step {state('run')['step']} and saved" in errors


def test_a_reader_that_leaves_early_or_a_full_disk_under_stdout_is_one_line(text):
    run = start("train", "--data", text, *TINY, "--out_dir=run", "--max_iters=100000")
    run.stdout.readline()
    run.stdout.close()
    assert run.wait(timeout=60) == 141
    said = run.stderr.read()
    assert said.count("\n") == 1 and "nobody reads standard output" in said
    assert train(text, "--out_dir=whole") == 0
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    script = [sys.executable, str(ROOT / "capstone_gpt.py")]
    for command in (["train", "--data", text, *TINY], ["sample", "--from=whole"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([*script, *command], stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1, (command, done)


def test_a_full_disk_is_one_line_that_names_the_file_and_the_last_checkpoint(
    text, monkeypatch, capsys
):
    replaced, replace = [], os.replace

    def full(source, target):
        replaced.append(target)
        if len(replaced) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert train(text, "--out_dir=run", "--max_iters=100", "--eval_interval=1") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(replaced[-1]) in said
    assert "No space left" in said and "run keeps the last checkpoint" in said
    monkeypatch.setattr(os, "replace", replace)
    assert gpt.main(["train", "--resume", "run"]) == 0


def test_one_process_a_run(text, capsys):
    child = start("train", "--data", text, *TINY, "--out_dir=run", "--max_iters=100000")
    try:
        wait_for_step(child, "run", 4)
        for command in (["--resume", "run"], ["--data", text, *TINY, "--out_dir=run"]):
            assert gpt.main(["train", *command]) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and f"process {child.pid} " in said
        assert gpt.main(["sample", "--from", "run", "--max_new_tokens=3"]) == 0
    finally:
        child.kill()
        child.communicate()
    assert gpt.main(["train", "--resume", "run", "--max_iters=12"]) == 0


def test_a_system_without_flock_goes_without(text, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert train(text, "--out_dir=run") == 0


def test_damaged_lines_of_the_curve_are_dropped_and_no_step_comes_twice(text, capsys):
    assert train(text, "--out_dir=whole") == 0
    assert train(text, "--out_dir=run", "--lr_decay_iters=12", "--max_iters=8") == 0
    path = Path("run/metrics.jsonl")
    rows = path.read_bytes().splitlines()
    odd = [b"", b"{", b"\xff\xfe", b"\0" * 9, b"[" * 100000, b"9" * 5000, b'{"step": 4.5}', b"[4]"]
    odd += [b'{"step": "4"}', b'{"step": true}', b'{"stop": 4}', b'{"step": -4}', b'{"step": 9999}']
    path.write_bytes(b"\n".join([*odd, *rows, *odd, rows[1], rows[2], b'{"step": 1']))
    assert gpt.main(["train", "--resume", "run", "--max_iters=12"]) == 0
    assert [row["step"] for row in metrics("run")] == [0, 4, 8, 12]
    assert metrics("run") == metrics("whole")


def test_a_run_killed_before_its_first_interval_has_no_row_twice(text):
    assert train(text, "--out_dir=run", "--max_iters=1", "--lr_decay_iters=12") == 0
    path = Path("run/metrics.jsonl")
    path.write_text(path.read_text().splitlines(keepends=True)[0])  # as after step 0
    change_state("run", {"step": 0})
    assert gpt.main(["train", "--resume", "run"]) == 0
    assert [row["step"] for row in metrics("run")] == [0, 1]


def test_a_diverging_run_stops_says_why_and_keeps_the_last_good_checkpoint(text, capsys):
    options = ["--out_dir=run", "--grad_clip=0", "--learning_rate=1e30", "--warmup_iters=0"]
    assert train(text, *options) == 1
    said = capsys.readouterr().err
    words = ("step", "gradient norm", "rate below 1e+30", "run keeps the last checkpoint")
    assert all(word in said for word in words) and said.count("\n") == 1
    assert np.isfinite(gpt.GPT.from_pretrained("run/best").flat).all()
    assert state("run")["step"] == 0


def test_a_loss_that_is_not_finite_is_never_saved(text, capsys):
    """An update that ruins the weights has finite gradients; its checkpoint must not land."""
    options = ["--out_dir=run", "--learning_rate=1e3", "--eval_interval=1", "--min_lr=1e3"]
    status = train(text, *options, "--max_iters=60")
    said = capsys.readouterr()
    assert "Warning" not in said.err and "nan" not in open("run/metrics.jsonl").read().lower()
    assert status == 1 and np.isfinite(metrics("run")[-1]["dev_loss"])
    model, tokenizer = gpt.load("run/best")
    ids = tokenizer.encode(CONTENT)[None, :9]
    with np.errstate(over="ignore"):
        assert np.isfinite(model.loss(ids[:, :-1], ids[:, 1:]))


def test_a_weight_that_is_not_finite_is_neither_saved_nor_resumed(text, monkeypatch, capsys):
    assert train(text, "--out_dir=run") == 0
    path = "run/last.safetensors"
    tensors, metadata = gpt.read_safetensors(path)
    tensors = {name: np.array(gpt.read_tensor(t)) for name, t in tensors.items()}
    tensors["model.norm.weight"][3] = np.nan
    gpt.write_safetensors(path, tensors, metadata)
    assert gpt.main(["train", "--resume", "run"]) == 2
    assert "model.norm.weight" in capsys.readouterr().err

    def poison(run, *rest):
        run.model.params["model.norm.weight"][3] = np.inf
        return 1.0

    monkeypatch.setattr(gpt.Run, "loss", poison)
    assert train(text, "--out_dir=other") == 1
    assert not os.path.exists("other/last.safetensors") and not os.path.exists("other/best")
    assert capsys.readouterr().err.count("\n") == 1


# what it keeps


@pytest.mark.parametrize(
    "state,settings,words",
    [
        ({"step": "5"}, {}, "step must be"),
        ({"step": None}, {}, "step must be"),
        ({"step": -5}, {}, "step must be"),
        ({"step": 10**30}, {}, "step must be"),
        ({"best": "x"}, {}, "best must be"),
        ({"sum": []}, {}, "sum must be"),
        ({"count": 0.5}, {}, "count must be"),
        ({"text_hash": 1}, {}, "text_hash must be"),
        ({"text_hash": "1"}, {}, "not the text"),
        ({"more": 1}, {}, "state is not step"),
        ([1], {}, "its state are not those of a run"),
        ({}, [1], "its settings are not those of a run"),
        ({}, {"momentum": 1}, "unknown: momentum"),
        ({}, {"batch_size": 0}, "batch_size must be"),
        ({}, {"beta1": "0.9"}, "beta1 must be"),
        ({}, {"block_size": 9}, "more than the model's 8"),
        ({}, {"data": "x"}, "x: no such file"),
    ],
)
def test_a_damaged_state_is_one_line(text, state, settings, words, capsys):
    assert train(text, "--out_dir=run", "--max_iters=1") == 0
    change_state("run", state, settings)
    capsys.readouterr()
    assert gpt.main(["train", "--resume", "run"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said


def test_files_that_do_not_belong_together_are_not_resumed(text, capsys):
    assert train(text, "--out_dir=run", "--max_iters=1") == 0
    assert train(text, "--out_dir=other", "--max_iters=1", "--n_layer=2") == 0
    shutil.copy("other/last.safetensors", "run")
    assert gpt.main(["train", "--resume", "run"]) == 2
    assert "run/best is not the model of this run" in capsys.readouterr().err
    os.remove("run/last.safetensors")
    assert gpt.main(["train", "--resume", "run"]) == 2
    assert "no run to resume, it has no last.safetensors" in capsys.readouterr().err
    os.mkdir("run/last")
    assert gpt.main(["train", "--resume", "run"]) == 2
    assert "run/last is of an older version" in capsys.readouterr().err


def test_a_run_is_made_of_files_others_can_open(text):
    assert train(text, "--out_dir=run") == 0
    assert sorted(os.listdir("run")) == sorted(
        ["best", "last.safetensors", "lock", "metrics.jsonl", "tokens.safetensors"]
    )
    tensors, _ = gpt.read_safetensors("run/last.safetensors")
    model, _ = gpt.load("run/best")
    assert set(tensors) == {*model.params, "exp_avg", "exp_avg_sq"}
    config = json.load(open("run/best/config.json"))
    assert config["bos_token_id"] is None and config["eos_token_id"] is None


def test_the_end_of_text_token_begins_and_ends_texts_if_the_text_has_it(text):
    open("ends.txt", "w").write((CONTENT[:200] + "<|endoftext|>") * 9)
    tokenizer = f"--tokenizer={ROOT / 'data' / 'tokenizer'}"
    assert train("ends.txt", tokenizer) == 0 and train(text, tokenizer) == 0
    end = gpt.load_tokenizer(ROOT / "data" / "tokenizer").special_tokens["<|endoftext|>"]
    for name, expected in (("ends", end), ("text", None)):
        config = json.load(open(f"out/{name}/best/config.json"))
        assert config["bos_token_id"] == config["eos_token_id"] == expected


def test_two_runs_started_together_take_two_directories(text):
    runs = [start("train", "--data", text, *TINY, f"--seed={seed}") for seed in (1, 2)]
    said = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert sorted(os.listdir("out")) == ["text", "text-2"]


def test_a_second_run_never_touches_the_first(text, capsys):
    for _ in range(2):
        assert train(text) == 0
    assert sorted(os.listdir("out")) == ["text", "text-2"]
    before = kept("out/text")
    assert train(text, "--out_dir=out/text") == 2
    assert "--resume" in capsys.readouterr().err and kept("out/text") == before


def test_a_run_that_cannot_begin_leaves_no_directory(text, capsys):
    assert train("text.txt", "--block_size=99999") == 2
    assert train("nowhere.txt") == 2
    assert not os.path.exists("out") or os.listdir("out") == []


def test_resume_refuses_another_seed_shape_tokenizer_or_text(text, capsys):
    assert train(text, "--out_dir=run") == 0
    open("other.txt", "w").write(CONTENT.replace("cat", "tac"))
    for change, words in (
        ("--n_embd=32", "keeps its n_embd"),
        ("--block_size=4", "keeps its block_size"),
        ("--seed=1", "keeps its seed"),
        ("--tokenizer=char", "keeps its tokenizer"),
        ("--dev_fraction=0", "keeps its dev_fraction"),
        ("--init_from=run", "keeps its init_from"),
        ("--data=other.txt", "not the text"),
        ("--out_dir=other", "its own directory"),
        ("--fast", "its own settings"),
    ):
        assert gpt.main(["train", "--resume", "run", change]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    shutil.copy(text, "moved.txt")
    os.remove(text)
    assert gpt.main(["train", "--resume", "run", "--data=moved.txt"]) == 0


def test_min_lr_goes_down_with_the_learning_rate_and_says_so_once(text, capsys):
    assert train(text, "--learning_rate=5e-5", "--out_dir=run") == 0
    said = capsys.readouterr().out
    assert said.count("min_lr goes down") == 1 and "5e-06" in said
    settings = state("run")["settings"]
    assert (settings["learning_rate"], settings["min_lr"]) == (5e-5, pytest.approx(5e-6))
    assert gpt.main(["train", "--resume", "run", "--max_iters=13"]) == 0
    assert "min_lr goes" not in capsys.readouterr().out


# presets and starting points


def test_presets_are_for_the_stories_and_the_defaults_for_other_texts(text):
    plain = {name: default for name, (default, _, _) in gpt.SETTINGS.items()}
    other = gpt.new_settings(None, {"data": text})
    assert {**other, "data": ""} == {**plain, "data": ""} and other["data"] == text
    stories = gpt.new_settings(None, {"n_layer": 7})
    assert stories == plain | gpt.PRESETS["stories"] | {"n_layer": 7}
    assert stories["dev_fraction"] == 0 and stories["tokenizer"] != "char"
    for preset in ("nanogpt-cpu", "fast"):
        found = gpt.new_settings(preset, {"data": text, "seed": 3})
        assert found == plain | gpt.PRESETS[preset] | {"data": text, "seed": 3}
    assert gpt.PRESETS["nanogpt-cpu"]["dev_fraction"] == 0
    assert gpt.PRESETS["nanogpt-cpu"]["tokenizer"] == "char"


def test_a_text_that_the_tokens_do_not_suit_is_told_how_to_get_better_ones(text, capsys):
    open("greek.txt", "w").write("το μυστήριο της θάλασσας είναι βαθύ. " * 60)
    tokenizer = str(ROOT / "data" / "tokenizer")
    assert train("greek.txt", "--tokenizer", tokenizer) == 0
    said = capsys.readouterr().out
    assert re.search(r"tokens of 0\.\d\d characters", said) and "greek.txt" in said
    learn = next(line for line in said.splitlines() if "stage07_bpe.py" in line).split()
    learn[1] = str(ROOT / learn[1])
    done = subprocess.run([sys.executable, *learn[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = learn[learn.index("--out") + 1]
    assert train("greek.txt", "--tokenizer", out) == 0
    said = capsys.readouterr().out
    assert float(re.search(r"tokens of (\S+) characters", said)[1]) > 3
    assert "stage07_bpe.py" not in said
    assert train(text, "--tokenizer", tokenizer) == 0
    assert "stage07_bpe.py" not in capsys.readouterr().out


def checkpoint(directory, tokenizer="tokenizer", **config):
    """A model as someone else may have left it: GPT-2, 12 positions, its own files."""
    tokenizer = gpt.load_tokenizer(ROOT / "data" / tokenizer)
    shape = {"vocab_size": 1024, "block_size": 12, "n_layer": 1, "n_head": 2, "n_embd": 16}
    model = gpt.GPT(gpt.GPTConfig("gpt2", **shape), seed=5)
    model.save_pretrained(directory)
    tokenizer.save(directory)
    path = Path(directory, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return model, tokenizer


ENDS = {"bos_token_id": 1023, "eos_token_id": 1023}
FINE = ["train", "--init_from=theirs", "--data=text.txt", "--max_iters=3", "--batch_size=2"]


def test_fine_tuning_keeps_shape_tokens_and_files_and_shortens_the_windows(text, capsys):
    before, _ = checkpoint("theirs", **ENDS, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    assert gpt.main([*FINE, "--block_size=6", "--out_dir=run", "--eval_interval=1"]) == 0
    check_held_out_line(capsys.readouterr().out)
    model, tokenizer = gpt.load("run/best")
    assert model.config.block_size == 12 and model.config.dropout == 0.1
    assert gpt.bos_and_eos(model) == (1023, (1023,)) and tokenizer.vocab_size == 1024
    moved = np.abs(model.flat - before.flat)
    assert 0 < moved.max() < 1e-4  # three steps of 3e-5 at most
    settings = state("run")["settings"]
    assert settings["learning_rate"] == 3e-5 and settings["block_size"] == 6
    assert gpt.main([*FINE, "--out_dir=whole", "--block_size=6", "--max_iters=5"]) == 0
    assert gpt.main(["train", "--resume", "run", "--max_iters=5"]) == 0
    assert len(metrics("run")) == 6
    assert gpt.main([*FINE, "--out_dir=longest"]) == 0
    settings = state("longest")["settings"]
    assert (settings["block_size"], settings["n_embd"], settings["arch"]) == (12, 16, "gpt2")


def test_fine_tuning_refuses_what_the_checkpoint_settles(text, capsys):
    checkpoint("theirs", **ENDS)
    for flags, words in (
        (["--n_embd=32"], "own n_embd"),
        (["--arch=llama", "--bias=True"], "own arch, bias"),
        (["--tokenizer=char"], "own tokenizer"),
        (["--block_size=13"], "block_size=13 is more than the model's 12"),
    ):
        assert gpt.main([*FINE, *flags]) == 2
        assert words in capsys.readouterr().err
    checkpoint("odd", resid_pdrop=0.1, embd_pdrop=0.2, attn_pdrop=0.1)
    odd = [*FINE, "--init_from=odd"]
    assert gpt.main(odd) == 2
    said = capsys.readouterr().err
    assert "--dropout" in said and said.count("\n") == 1
    assert gpt.main([*odd, "--dropout=0.3"]) == 0
    assert gpt.main(["train", "--resume", "out/text"]) == 0


# what it says


def test_the_end_of_a_run_shows_the_ladder_and_its_metrics(text, capsys):
    assert train(text, "--max_iters=8") == 0
    said = capsys.readouterr().out
    bits = check_held_out_line(said)
    assert "\ncounted:  " in said and "interpolated Kneser-Ney, order" in said
    assert "out/text/best, the lowest loss on the development piece" in said
    assert [row["step"] for row in metrics("out/text")] == [0, 4, 8]
    assert gpt.main(["eval", "--data", text]) == 0
    assert check_held_out_line(capsys.readouterr().out) == bits


def test_eval_scores_the_last_tenth_or_all(text, capsys):
    model, tokenizer = checkpoint("theirs")
    found = []
    for flags in ([], ["--whole"]):
        assert gpt.main(["eval", "--from=theirs", "--data", text, *flags]) == 0
        found.append(float(capsys.readouterr().out.split()[1]))
    pieces = [tokenizer.encode(CONTENT[: int(0.9 * len(CONTENT))])]
    pieces += [tokenizer.encode(CONTENT[int(0.9 * len(CONTENT)) :])]
    ids = np.concatenate(pieces)
    for nats, first, chars in (
        (found[0], len(pieces[0]), len(CONTENT) - int(0.9 * len(CONTENT))),
        (found[1], 1, len(CONTENT)),
    ):
        exact, tokens = gpt.evaluate(model, ids, first, 12, 6)
        assert nats == pytest.approx(exact / tokens * (len(ids) - first) / chars, abs=1e-3)


def test_samples_follow_the_seed_and_the_prompt(text, capsys):
    assert train(text) == 0
    capsys.readouterr()
    texts = []
    for flags in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"], ["--num-samples", "2"]):
        command = ["sample", "--prompt", "the cat", "--max-new-tokens", "30", *flags]
        assert gpt.main(command) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2] and all(t.startswith("the cat") for t in texts)
    assert len(texts[0]) == len("the cat") + 30 + 1 and texts[3].count("the cat") >= 2


class Parrot:
    """Stands in for a model's stream: says the given ids, whatever it is asked."""

    def __init__(self, monkeypatch, ids):
        self.asked = []

        def stream(model, idx, n, *sampling):
            self.asked.append(idx.tolist())
            return iter([np.array([i]) for i in ids[:n]])

        monkeypatch.setattr(gpt.GPT, "stream", stream)


def test_sample_begins_and_ends_as_the_model_s_files_say(text, monkeypatch, capsys):
    _, tokenizer = checkpoint("theirs", **ENDS)
    said = tokenizer.encode("one fox ran").tolist()
    parrot = Parrot(monkeypatch, [*said, 1023, *said])
    assert gpt.main(["sample", "--from=theirs"]) == 0
    assert parrot.asked == [[[1023]]] and capsys.readouterr().out == "one fox ran\n"
    assert gpt.main(["sample", "--from=theirs", "--ignore_eos"]) == 0
    assert capsys.readouterr().out == "one fox ran<|endoftext|>one fox ran\n"
    assert gpt.main(["sample", "--from=theirs", "--prompt=a fox", "--max_new_tokens=2"]) == 0
    assert parrot.asked[-1] == [tokenizer.encode("a fox").tolist()]
    assert capsys.readouterr().out == "a fox" + tokenizer.decode(said[:2]) + "\n"
    checkpoint("mute")
    assert gpt.main(["sample", "--from=mute"]) == 0
    assert parrot.asked[-1] == [tokenizer.encode("\n").tolist()]


@pytest.mark.parametrize(
    "stop,expected",
    [
        ("fox", "one "),
        ("x ra", "one fo"),  # in the middle of a token, to the middle of another
        ("one", ""),
        ("n a", "one fox ra"),  # after a beginning that was none: "n " and "n"
        ("owl", "one fox ran and ran"),
        ("ran!", "one fox ran and ran"),  # held back at the end, then printed
    ],
)
def test_sample_ends_before_the_stop_text(text, monkeypatch, capsys, stop, expected):
    _, tokenizer = checkpoint("theirs", **ENDS)
    Parrot(monkeypatch, tokenizer.encode("one fox ran and ran").tolist())
    assert gpt.main(["sample", "--from=theirs", "--stop", stop]) == 0
    assert capsys.readouterr().out == expected + "\n"


def test_the_prompt_comes_from_standard_input_if_asked(text, monkeypatch, capsys):
    _, tokenizer = checkpoint("theirs")
    parrot = Parrot(monkeypatch, [])
    for data, prompt in (("a fox\r\nran é\n".encode(), "a fox\nran é"), (b"a\n\n", "a\n")):
        as_on_linux = io.TextIOWrapper(io.BytesIO(data), "cp1252", newline="\n")
        monkeypatch.setattr(sys, "stdin", as_on_linux)
        assert gpt.main(["sample", "--from=theirs", "--prompt", "-"]) == 0
        assert parrot.asked[-1] == [tokenizer.encode(prompt).tolist()]
        assert capsys.readouterr().out == prompt + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff")))
    assert gpt.main(["sample", "--from=theirs", "--prompt", "-"]) == 2
    assert "'utf-8' codec can't decode byte 0xff in position 1" in capsys.readouterr().err


def test_streaming_never_prints_half_a_character(text, monkeypatch):
    _, tokenizer = checkpoint("theirs")
    Parrot(monkeypatch, tokenizer.encode("a 😀é").tolist())
    printed = []
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys.stdout, "write", printed.append)
    assert gpt.main(["sample", "--from=theirs"]) == 0
    assert "".join(printed) == "a 😀é\n" and "😀" in printed


@pytest.mark.parametrize("content", ["a" * 200, "ab" * 40, "été € \U0001f600\n" * 30])
@pytest.mark.parametrize("tokenizer", ["char", str(ROOT / "data" / "tokenizer")])
def test_odd_texts_train(text, content, tokenizer, capsys):
    open("odd.txt", "w").write(content)
    assert train("odd.txt", "--tokenizer", tokenizer, "--block_size=4", "--dev_fraction=0.1") == 0
    check_held_out_line(capsys.readouterr().out)


def test_fast_smoke_run_on_the_stories(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gpt.main(["--fast"]) == 0
    assert check_held_out_line(capsys.readouterr().out) < 3.5
    assert train("/dev/null", "--data", str(ROOT / "data" / "names.txt")) == 0
    assert gpt.latest_run() == Path("out/names")
    os.utime("out/stories-fast/last.safetensors")
    assert gpt.latest_run() == Path("out/names")  # a smoke run only if there is no other


@pytest.mark.parametrize("how", ["-OO", "cp1252", "deleted", "closed"])
def test_odd_places_to_run_in(text, how, tmp_path):
    """Without docstrings, to an old terminal, from a directory that is gone, without a stdout."""
    place, out = tmp_path / "gone", tmp_path / "run"
    place.mkdir()
    open(text, "a").write("été 😀 " * 20)
    script = [sys.executable, *["-OO"] * (how == "-OO"), str(ROOT / "capstone_gpt.py")]
    commands = [[*script, "train", "--data", text, *TINY, "--out_dir", str(out)]]
    commands += [[*script, "sample", "--from", str(out), "--prompt=é😀"]]
    commands += [[*script, "--help"], [*script, "train", "--help"]] * (how == "-OO")
    environment = ONE_THREAD | ({"PYTHONIOENCODING": "cp1252"} if how == "cp1252" else {})
    for command in commands:
        shell = ["sh", "-c", 'rmdir "$0"; exec "$@"', str(place)] if how == "deleted" else []
        shell = ["sh", "-c", 'exec "$@" >&-', ""] if how == "closed" else shell
        place.mkdir(exist_ok=True)
        done = subprocess.run([*shell, *command], cwd=place, env=environment, capture_output=True)
        assert done.returncode == 0 and done.stderr == b"", (command, done)
    assert state(out)["step"] == 12


LONG = "9" * 5000


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["train", "--data", "nowhere.txt"], "nowhere.txt: no such file"),
        (["train", "--data", "empty.txt"], "empty"),
        (["train", "--data", "bytes.bin"], "not UTF-8"),
        (["train", "--data", "short.txt"], "too few for a block of 64"),
        (["train", "--data", "."], "a directory"),
        (["train", *TINY, "--data", "few.txt"], "--dev_fraction of 0.05 is less than a token"),
        (["train", "--n_embd", "130"], "multiple of n_head"),
        (["train", "--arch", "bert"], "gpt2"),
        (["train", "--learning-rate", "-1"], "learning_rate"),
        (["train", "--learning_rate", "nan"], "learning_rate"),
        (["train", "--learning_rate", "1e999"], "learning_rate"),
        (["train", "--dropout", "1"], "dropout"),
        (["train", "--dev_fraction", "1"], "dev_fraction"),
        (["train", "--beta2", "1"], "beta2"),
        (["train", "--batch_size", "0"], "batch_size"),
        (["train", "--batch_size", "many"], "batch_size"),
        (["train", "--max_iters", LONG], "max_iters"),
        (["train", "--seed", LONG[:100]], "seed"),
        (["train", "--n_layer", "9" * 18], "n_layer"),
        (["train", "--out_dir", "bytes.bin"], "is a file"),
        (["train", "text.txt"], "text.txt"),
        (["train", "--resume", "run", "--fast"], "its own settings"),
        (["train", "--tokenizer", "nowhere"], "nowhere"),
        (["train", "--init_from", "nowhere"], "nowhere"),
        (["train", "--init_from", "run", "--fast"], "preset"),
        (["sample", "--n_layer", "3"], "--n_layer"),
        (["sample", "--from", "run", "--seed", "-1"], "seed"),
        (["sample", "--from", "run", "--num-samples", "0"], "num_samples"),
        (["sample", "--from", "run", "--stop", ""], "stop"),
        (["sample", "--from", "misfit"], "4 tokens in the tokenizer for a vocabulary of 3"),
        (["train", "--bias", "maybe"], "True or False"),
        (["train", "--max_itters", "3"], "--max_itters"),
        (["train", "--" + "x" * 5000], "--xxx"),
        (["train", "--preset", "huge"], "invalid choice"),
        (["train", "--resume", "nowhere"], "nowhere: no run to resume"),
        (["train", "--resume"], "train one first"),
        (["paint"], "invalid choice"),
        (["sample"], "train one first"),
        (["sample", "--from", "nowhere"], "nowhere: no config.json"),
        (["sample", "--from", "damaged"], "damaged"),
        (["eval", "--from", "model"], "tokenizer"),
        (["eval", "--from", "run", "--data", "one.txt"], "one.txt"),
        (["sample", "--from", "run", "--prompt", "Zq€"], "'Z', 'q', '€'"),
        (["sample", "--from", "run", "--temperature", "-1"], "temperature"),
        (["sample", "--from", "run", "--top_k", "0"], "top_k"),
        (["sample", "--from", "run", "--max_new_tokens", LONG], "max_new_tokens"),
    ],
)
def test_wrong_input_gives_one_line_and_status_2(text, arguments, words, capsys):
    files = {"empty.txt": b"", "bytes.bin": b"ab\xff", "short.txt": b"hello", "one.txt": b"a"}
    files["few.txt"] = b"abcdefghijklmnop"
    for name, content in files.items():
        open(name, "wb").write(content)
    model = gpt.GPT(gpt.GPTConfig(vocab_size=3, block_size=4, n_layer=1, n_head=1, n_embd=4))
    model.save_pretrained("model")
    for name, characters in (("run", "abc"), ("misfit", "abcd")):
        model.save_pretrained(name)
        gpt.CharTokenizer(characters).save(name)
    model.save_pretrained("damaged")
    open("damaged/model.safetensors", "r+b").truncate(30)
    try:
        status = gpt.main(arguments)
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    assert status == 2 and words in said.err, said
    assert said.err.count("\n") == 1 and "Traceback" not in said.err and len(said.err) < 600


# corners where a run used to go on with something else, or to end badly


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "eos_token_id"])
def test_a_run_whose_config_was_changed_is_not_resumed(text, key, capsys):
    assert train(text, "--out_dir=run", "--max_iters=1") == 0
    path = Path("run/best/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: 1}))
    assert gpt.main(["train", "--resume", "run", "--max_iters=2"]) == 2
    assert "run/best is not the model of this run" in capsys.readouterr().err


def test_a_run_whose_tokens_were_changed_is_not_resumed(text, capsys):
    assert train(text, "--out_dir=run", "--max_iters=1") == 0
    path = Path("run/best/tokenizer.json")
    path.write_bytes(path.read_bytes() + b" ")
    assert gpt.main(["train", "--resume", "run", "--max_iters=2"]) == 2
    assert "run/best is not the model of this run" in capsys.readouterr().err


def test_weights_whose_loss_is_not_finite_end_eval_and_sample_with_one_line(text, capsys):
    assert train(text, "--out_dir=run", "--max_iters=1") == 0
    model = gpt.GPT.from_pretrained("run/best")
    model.flat[:] = np.where(model.flat < 0, -1e15, 1e15)
    gpt.save_model("run/best", model)
    for command in (["eval", "--data", text], ["sample", "--seed=0"], ["train", "--resume"]):
        capsys.readouterr()
        assert gpt.main([*command, *(["--from"] if command[0] != "train" else []), "run"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_eval_says_which_text_it_measured(text, capsys):
    assert train(text, "--out_dir=run", "--max_iters=1") == 0
    assert gpt.main(["eval", "--from", "run", "--data", text]) == 0
    assert f"(capstone, run/best on {text})" in capsys.readouterr().out


def test_ids_beyond_the_vocabulary_are_refused_before_the_first_step(text, capsys):
    assert train(text, "--out_dir=run", "--max_iters=1") == 0
    Path("run/best/generation_config.json").write_text('{"eos_token_id": 50256}')
    assert train(text, "--out_dir=tuned") == 0
    for command in (["train", "--init_from", "run", "--data", text], ["sample", "--from", "run"]):
        capsys.readouterr()
        assert gpt.main(command) == 2
        assert "generation_config.json: a token id" in capsys.readouterr().err


def test_out_that_is_a_dangling_link_is_one_line(text, capsys):
    os.symlink("nowhere/at/all", "out")
    assert train(text) == 2
    assert "out" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no UTF-8")
def test_a_name_that_could_not_be_resumed_is_refused_at_the_start(text, capsys):
    odd = os.fsdecode(b"caf\xe9.txt")
    shutil.copy(text, odd)
    assert train(odd) == 2
    assert "data is not UTF-8" in capsys.readouterr().err


def test_a_first_checkpoint_that_failed_leaves_a_clear_way(text, capsys):
    assert train(text, "--out_dir=run", "--max_iters=1") == 0
    os.remove("run/last.safetensors")
    assert train(text, "--out_dir=run") == 2
    assert "run/best is there already: remove it" in capsys.readouterr().err


def test_a_clock_that_stands_still_divides_nothing_by_zero(text, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 7.0)
    assert train(text, "--out_dir=run", "--workers=1") == 0
    assert all(math.isfinite(row["step"]) for row in metrics("run"))


def test_a_byte_order_mark_before_a_prompt_is_no_part_of_it(text, monkeypatch, capsys):
    assert train(text, "--out_dir=run", "--max_iters=1") == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfthe cat\n")))
    capsys.readouterr()
    command = ["sample", "--from", "run", "--prompt", "-", "--max_new_tokens", "2"]
    assert gpt.main(command) == 0
    assert capsys.readouterr().out.startswith("the cat")
