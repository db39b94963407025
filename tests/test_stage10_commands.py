"""Stage 10's command: preferences for people's own checkpoints."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import LIKE_TRANSFORMERS, ROOT, files, refusal, save_checkpoint

import capstone_gpt as gpt
import stage10_dpo as s

LETTERS = "\n abcdefghijklmnopqrstuvwxyz.?"
SIZES = {"block_size": 40, "n_layer": 1, "n_head": 2, "n_embd": 32}
COLOURS = ["red", "blue", "green", "white"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(request, tmp_path_factory):
    """A checkpoint as the capstone writes it (gpt2, characters, no end token), or with what
    transformers adds and a tokenizer with special tokens (llama). It finds both of two answers to
    a question equally likely."""
    directory = tmp_path_factory.mktemp(request.param) / "base"
    texts = [f"is it {c}? {word}." for c in COLOURS for word in ("yes", "no")]
    if request.param == "gpt2":
        return save_checkpoint(directory, "gpt2", gpt.CharTokenizer(LETTERS), SIZES, texts, 60)
    tokens = gpt.load_tokenizer(ROOT / "data" / "tokenizer")
    return save_checkpoint(directory, "llama", tokens, SIZES, texts, 60, **LIKE_TRANSFORMERS)


@pytest.fixture
def pairs(tmp_path):
    """A .jsonl file: 30 questions, " yes." preferred to " no."."""
    lines = [
        {"prompt": f"is it {COLOURS[i % 4]}?", "chosen": " yes.", "rejected": " no."}
        for i in range(30)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def run(*words):
    """Call the program in this process; it must succeed."""
    assert s.main([str(word) for word in words]) in (None, 0)


def refused(capsys, *words):
    """The one line with which the program refuses these words."""
    return refusal(s, capsys, words)


def loaded_pairs(base, path):
    model, tokenizer = gpt.load(base)
    end = [1023] if model.config.arch == "llama" else [*tokenizer.encode("\n\n")]
    return model, tokenizer, s.read_pairs(path, path.read_text(), tokenizer, end), end


def test_pairs_are_read_with_only_their_answers_as_targets(base, pairs):
    model, tokenizer, found, end = loaded_pairs(base, pairs)
    assert len(found) == 30
    start = [*tokenizer.encode("is it blue?", add_special_tokens=True)]
    for (idx, targets), answer in zip(found[1], (" yes.", " no.")):
        learned = [*tokenizer.encode(answer), *end]
        assert [*idx[0], learned[-1]] == [*start, *learned]
        assert list(targets[0]) == [-1] * (len(start) - 1) + learned
        assert idx.shape == targets.shape


def test_the_gradient_is_that_of_the_loss(rng):
    """Central differences in float64, against the definition written out."""
    model = gpt.GPT(gpt.GPTConfig("llama", 7, 9, 1, 2, 4, 1), 0, np.float64)
    model.flat[:] += rng.normal(0, 0.3, model.flat.size)
    pairs = []
    for lengths in ((4, 6), (7, 3)):
        pair = []
        for T in lengths:
            targets = rng.integers(0, 7, (1, T))
            targets[0, :2] = -1
            pair.append((rng.integers(0, 7, (1, T)), targets))
        pairs.append(pair)
    reference, beta = rng.normal(-8, 1, (2, 2)), 0.3

    def loss():
        total = 0.0
        for pair, (ref_w, ref_l) in zip(pairs, reference):
            logps = []
            for idx, targets in pair:
                z = model.logits(idx)[0]
                logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
                logps.append(sum(logp[t, y] for t, y in enumerate(targets[0]) if y >= 0))
            h = (logps[0] - ref_w) - (logps[1] - ref_l)
            total += math.log1p(math.exp(-beta * h)) / 2
        return total

    found, gradient = s.dpo_step(model, pairs, reference, beta)
    assert abs(found - loss()) < 1e-12 and gradient.shape == model.flat.shape
    for i in range(0, model.flat.size, 3):
        old = model.flat[i]
        model.flat[i] = old + 1e-5
        up = loss()
        model.flat[i] = old - 1e-5
        slope = (up - loss()) / 2e-5
        model.flat[i] = old
        assert abs(slope - gradient[i]) < 1e-6 * abs(slope) + 1e-10


def test_log_probabilities_are_sums_over_the_answer(base, pairs):
    model, _, found, _ = loaded_pairs(base, pairs)
    logps = s.answers_logprob(model, found[:3])
    for row, pair in zip(logps, found):
        for logp, (idx, targets) in zip(row, pair):
            terms = s.log_softmax(model.logits(idx)[0].astype(np.float64))
            expected = sum(terms[t, y] for t, y in enumerate(targets[0]) if y >= 0)
            assert abs(logp - expected) < 1e-4
    assert logps.shape == (3, 2)


def test_kl_is_zero_at_home_and_its_expectation_elsewhere(base, pairs):
    model, _, found, end = loaded_pairs(base, pairs)
    other = gpt.GPT.from_pretrained(base)
    prompts = [pair[0][0][:, :6] for pair in found[:4]] * 50
    assert s.drawn_kl(model, other, prompts[:4], end, np.random.default_rng(0)) == 0
    other.flat[:] += np.random.default_rng(1).normal(0, 0.02, other.flat.size)
    kl = s.drawn_kl(model, other, prompts, end, np.random.default_rng(0), longest=1)
    exact = np.mean(
        [s.kl_divergence(model.logits(p)[0, -1], other.logits(p)[0, -1]) for p in prompts]
    )
    assert exact > 0 and abs(kl - exact) < 1e-5 * exact  # of one token: nothing is drawn for it
    room = np.zeros((1, 40), np.int64)  # a prompt that fills the model: one token fits
    assert np.isfinite(s.drawn_kl(model, other, [room], end, np.random.default_rng(0)))


def test_dpo_learns_what_is_preferred(base, pairs, tmp_path, capsys):
    out = tmp_path / "new" / "model"
    rate = 0.003 if "llama" in str(base) else 0.0003
    run("dpo", "--base", base, "--pairs", pairs, "--steps", "20", "--batch_size", "4",
        "--learning_rate", rate, "--beta", "0.5", "--out", out)  # fmt: skip
    printed = capsys.readouterr().out
    assert "27 are\nlearned from, 3 are held out" in printed
    assert ("token 1023" if "llama" in str(base) else "blank line") in printed
    steps = [line.split(":")[0] for line in printed.splitlines() if line.startswith("step ")]
    assert steps == [f"step {n} of 20" for n in range(2, 21, 2)]
    assert files(tmp_path / "new") == ["model"] and files(out) == files(base)
    before, tokenizer, found, _ = loaded_pairs(base, pairs)
    after = gpt.GPT.from_pretrained(out)
    ref, logps = (s.answers_logprob(m, found[27:]) for m in (before, after))
    rewards = 0.5 * (logps - ref)
    margin = (rewards[:, 0] - rewards[:, 1]).mean()
    assert margin > 1 and "100 % of pairs in the right order" in printed
    assert f"margin {margin:+.3f}" in printed
    assert f"rewards {rewards[:, 0].mean():+.3f} and {rewards[:, 1].mean():+.3f}" in printed
    loss = np.log1p(np.exp(-(rewards[:, 0] - rewards[:, 1]))).mean()
    assert f"held out: loss {loss:.3f}" in printed
    kl = float(printed.split("KL from the base ")[1].split()[0])
    assert 0 < kl < 5 and ("less likely" in printed) == (rewards[:, 0].mean() < 0)
    greedy = (0.0, None, None, None)
    for colour in COLOURS:
        text = "".join(gpt.continued(after, tokenizer, f"is it {colour}?", 5, greedy))
        assert text.startswith(" yes.")


def test_a_larger_beta_stays_nearer(base, pairs, tmp_path, capsys):
    kls = []
    for beta in ("0.1", "20"):
        run("dpo", "--base", base, "--pairs", pairs, "--steps", "10", "--beta", beta,
            "--learning_rate", "0.003", "--out", tmp_path / beta)  # fmt: skip
        before, _, found, _ = loaded_pairs(base, pairs)
        moved = s.answers_logprob(gpt.GPT.from_pretrained(tmp_path / beta), found)
        kls.append(np.abs(moved - s.answers_logprob(before, found)).max())
    assert kls[1] < kls[0]


def test_falling_apart_is_called_so(base, pairs, tmp_path, capsys):
    run("dpo", "--base", base, "--pairs", pairs, "--steps", "10", "--batch_size", "4",
        "--learning_rate", "0.1", "--out", tmp_path / "a")  # fmt: skip
    assert "The chosen answers, too, have become less likely" in capsys.readouterr().out


def test_one_step_by_hand(base, pairs, tmp_path):
    """The rate, the pairs drawn, the reference and the optimizer of a run of one step."""
    run("dpo", "--base", base, "--pairs", pairs, "--steps", "1", "--batch_size", "3",
        "--learning_rate", "0.01", "--beta", "0.2", "--seed", "5",
        "--out", tmp_path / "a")  # fmt: skip
    model, _, found, _ = loaded_pairs(base, pairs)
    pick = np.random.default_rng(5).integers(0, 27, 3)
    chosen = [found[i] for i in pick]
    loss, gradient = s.dpo_step(model, chosen, s.answers_logprob(model, chosen), 0.2)
    assert abs(loss - math.log(2)) < 1e-6
    gradient *= min(1, 1 / np.linalg.norm(gradient))
    expected = model.flat - 0.01 * gradient / (np.abs(gradient) + 1e-8)  # no decay
    moved = gpt.GPT.from_pretrained(tmp_path / "a").flat
    sure = np.abs(gradient) > 1e-6
    assert np.allclose(moved[sure], expected[sure], atol=1e-5)


def test_the_rate_climbs_and_falls(base, pairs, tmp_path, monkeypatch):
    rates, step = [], gpt.AdamW.step

    def watch(self, gradient, norm, rate, start=0):
        rates.append(rate)
        assert norm == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
        return step(self, gradient, norm, rate, start)

    monkeypatch.setattr(gpt.AdamW, "step", watch)
    run("dpo", "--base", base, "--pairs", pairs, "--steps", "10", "--batch_size", "1",
        "--learning_rate", "0.001", "--out", tmp_path / "a")  # fmt: skip
    assert rates == [gpt.warmup_cosine(i, 0.001, 0.0001, 1, 10) for i in range(10)]


def test_a_seed_repeats_a_run_and_another_does_not(base, pairs, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        words = ("--steps", "2", "--batch_size", "2", "--seed", seed, "--out", tmp_path / name)
        run("dpo", "--base", base, "--pairs", pairs, "--learning_rate", "0.01", *words)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


# What goes wrong leaves nothing behind, and is told in one line


def test_damaged_lines_are_named_by_their_numbers(base, pairs, tmp_path, capsys):
    lines = pairs.read_text().splitlines()
    lines[1], lines[4] = "{not json", '{"prompt": "a", "chosen": "b"}'
    lines[7] = '{"prompt": "a", "chosen": "b", "rejected": 5}'
    lines[8] = '{"prompt": "a", "chosen": "b", "rejected": "b"}'
    lines[9] = "[1, 2]"
    pairs.write_text("\n".join(lines))
    error = refused(capsys, "dpo", "--base", base, "--pairs", pairs, "--out", tmp_path / "a")
    assert "5 damaged lines" in error and "pairs.jsonl" in error
    for number in ("line 2 ", "line 5 ", "line 8 ", "line 9 "):
        assert number in error
    assert files(tmp_path) == ["pairs.jsonl"]


def test_an_answer_needs_something_before_it(base, pairs, tmp_path, capsys):
    """Its first token has a probability only after a prompt or a token that begins every text."""
    lines = [{"prompt": "", "chosen": "", "rejected": "a"}] * 3
    pairs.write_text("\n".join(map(json.dumps, lines)))
    assert len(gpt.load(base)[1].encode("", add_special_tokens=True)) == 0
    error = refused(capsys, "dpo", "--base", base, "--pairs", pairs, "--out", tmp_path / "a")
    assert "3 damaged lines" in error and "the prompt is empty" in error
    assert files(tmp_path) == ["pairs.jsonl"]


def test_long_pairs_are_left_out_and_counted(base, pairs, tmp_path, capsys):
    _, tokenizer = gpt.load(base)
    end = 1 if "llama" in str(base) else 2
    texts = ["q" * n for n in range(1, 200)]
    fits = [t for t in texts if len(tokenizer.encode("a")) + len(tokenizer.encode(t)) + end <= 41]
    lines = [{"prompt": "a", "chosen": "b", "rejected": fits[-1]}] * 2
    lines += [{"prompt": "a", "chosen": "b", "rejected": fits[-1] + "q"}]
    lines += [{"prompt": "a", "chosen": fits[-1] + "q", "rejected": "b"}]
    pairs.write_text("\n".join(map(json.dumps, lines)))
    common = ("--steps", "1", "--batch_size", "1")
    run("dpo", "--base", base, "--pairs", pairs, *common, "--out", tmp_path / "a")
    printed = capsys.readouterr().out
    assert "2 pairs are left out, longer than 40 tokens. 1 are" in printed
    pairs.write_text("\n".join(map(json.dumps, lines[1:])))
    error = refused(capsys, "dpo", "--base", base, "--pairs", pairs, "--out", tmp_path / "b")
    assert "two pairs or more" in error and files(tmp_path) == ["a", "pairs.jsonl"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_an_interrupted_run_leaves_nothing(error, base, pairs, tmp_path, monkeypatch):
    def stop(*_):
        raise error() if error is MemoryError else error("stopped here")

    monkeypatch.setattr(s, "dpo_step", stop)
    words = ["dpo", "--base", base, "--pairs", pairs, "--out", tmp_path / "a"]
    with pytest.raises(SystemExit) as stopped:
        s.main([str(word) for word in words])
    assert stopped.value.code == (130 if error is KeyboardInterrupt else 2)
    assert files(tmp_path) == ["pairs.jsonl"]


def test_a_loss_that_is_no_number_saves_nothing_and_gives_advice(base, pairs, tmp_path, capsys):
    words = ("--learning_rate", "1e18", "--steps", "20", "--batch_size", "2")
    error = refused(
        capsys, "dpo", "--base", base, "--pairs", pairs, *words, "--out", tmp_path / "a"
    )
    assert "lower --learning_rate" in error and files(tmp_path) == ["pairs.jsonl"]


def test_a_directory_that_exists_or_cannot_be_made(base, pairs, tmp_path, monkeypatch, capsys):
    (tmp_path / "a").mkdir()
    common = ("dpo", "--base", base, "--pairs", pairs, "--out")
    assert "exists already" in refused(capsys, *common, tmp_path / "a")
    assert files(tmp_path / "a") == []
    monkeypatch.setattr(gpt, "load", None)  # is not reached: the directory is made first
    assert "pairs.jsonl" in refused(capsys, *common, pairs / "a")


def test_without_the_capstone_there_is_one_sentence(base, pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "capstone_gpt", None)
    error = refused(capsys, "dpo", "--base", base, "--pairs", pairs, "--out", tmp_path / "a")
    assert "needs capstone_gpt.py" in error and files(tmp_path) == ["pairs.jsonl"]


@pytest.mark.parametrize(
    "flag, value",
    [("beta", "0"), ("beta", "nan"), ("beta", "-1"), ("steps", "0"), ("batch_size", "0"),
     ("learning_rate", "inf"), ("learning_rate", "0"), ("seed", "-1"), ("seed", "9" * 400)],
)  # fmt: skip
def test_numbers_out_of_range_are_named(flag, value, base, pairs, tmp_path, capsys):
    words = ("--base", base, "--pairs", pairs, "--out", tmp_path / "a")
    assert f"--{flag} = " in refused(capsys, "dpo", *words, f"--{flag}", value)
    assert files(tmp_path) == ["pairs.jsonl"]


@pytest.mark.parametrize(
    "words, told",
    [
        (["--seed", "9" * 400], "--seed"),
        (["--seed", "9" * 5000], "--seed"),
        (["--seed", "-1"], "--seed = -1: expected a number >= 0"),
        (["--non\nsense"], "non sense"),
        (["--names", "no\nfile"], "no"),
        (["ppo"], "ppo"),
        (["dpo"], "--base"),
    ],
)
def test_a_wrong_command_line_is_one_line(words, told, capsys):
    assert told in refused(capsys, "--fast", *words)


@pytest.mark.parametrize("command", [[], ["dpo"]])
def test_help_explains_without_docstrings(command):
    words = [sys.executable, "-OO", ROOT / "stage10_dpo.py", *command, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: stage10")


@pytest.mark.skipif(os.name != "posix", reason="closes a pipe")
def test_a_closed_pipe_does_not_stop_the_training(base, pairs, tmp_path):
    reader, pipe = os.pipe()
    os.close(reader)
    words = ["dpo", "--base", base, "--pairs", pairs, "--steps", "2", "--out", tmp_path / "a"]
    command = [sys.executable, str(ROOT / "stage10_dpo.py"), *map(str, words)]
    done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, timeout=60)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (0, b"") and files(tmp_path / "a") == files(base)
