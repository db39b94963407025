"""What several test files share: central differences, a relative error, a way to run a stage."""

import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import browser
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture
def rng():
    """A generator that starts at the same place in every test."""
    return np.random.default_rng(0)


def central_difference(f, x, h=1e-5):
    """∂f/∂x for a scalar f() of the float64 array x, perturbed in place one entry at a time."""
    assert x.dtype == np.float64, "central differences need float64"
    grad = np.empty_like(x)
    for i in np.ndindex(x.shape):
        old = x[i]
        x[i] = old + h
        up = f()
        x[i] = old - h
        down = f()
        x[i] = old
        grad[i] = (up - down) / (2 * h)
    return grad


def worst_entry(a, b, floor=0.0):
    """(relative error, index) of the entry in which a and b differ most, for its own size.

    |aᵢ - bᵢ| / (max(|aᵢ|, |bᵢ|) + floor): near 1 where an entry is missing or has a wrong factor,
    0 where both vanish, infinite where one of them is not finite.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}"
    if a.size == 0:
        return 0.0, ()
    scale = np.maximum(np.abs(a), np.abs(b)) + floor
    with np.errstate(invalid="ignore"):
        error = np.abs(a - b) / np.where(scale > 0, scale, 1)
    error = np.where(np.isfinite(error), error, np.inf)
    index = np.unravel_index(int(error.argmax()), a.shape)
    return float(error[index]), tuple(map(int, index))


def relative_error(a, b):
    """The relative error of the worst entry of a against b.

    An entry below a thousandth of the largest is judged as if it had that size: central differences
    with h = 1e-5 leave 1e-11 to 1e-10 of the largest in every entry, and a tolerance of 1e-6 can
    see a difference of 1e-9 of it. Nothing depends on the scale of a and b.
    """
    largest = max(np.abs(a).max(initial=0), np.abs(b).max(initial=0))
    return worst_entry(a, b, 1e-3 * largest)[0]


def assert_gradients(forward, inputs, analytic, tolerance=1e-6, h=1e-5):
    """Every entry of analytic[i] equals the central difference of Σ w·forward() in inputs[i].

    forward() reads the arrays in `inputs` and returns an array or a scalar; analytic(dy) returns
    the gradients in the order of the inputs for an upstream gradient dy shaped like the output.
    Rounding in Σ w·y leaves some ε Σ|w·y| / h in a difference (ε = 2e-16; ten times that covers the
    sums inside forward). Smaller entries cannot be measured to the tolerance, which sets the floor.
    """
    y = forward()
    w = np.random.default_rng(1).normal(size=np.shape(y))
    floor = 10 * np.finfo(np.float64).eps * float(np.abs(w * y).sum()) / h / tolerance
    gradients = list(analytic(w))  # None may follow, for what is no input here
    assert len(gradients) >= len(inputs), f"{len(gradients)} gradients of {len(inputs)} inputs"
    for i, (x, grad) in enumerate(zip(inputs, gradients)):
        numeric = central_difference(lambda: float(np.sum(w * forward())), x, h)
        error, at = worst_entry(grad, numeric, floor)
        told = f"input {i} at {at}: relative error {error:.2e}"
        assert error < tolerance, f"{told}, {np.asarray(grad)[at]} for {numeric[at]}"


def generators(n, seed=2):
    """n generators that start at the same place each time they are made: one a sequence."""
    return [np.random.default_rng((seed, i)) for i in range(n)]


def check_held_out_line(text):
    """The one line of the ladder in a stage's output: its three numbers must agree."""
    lines = [line for line in text.splitlines() if line.startswith("held-out:")]
    assert len(lines) == 1, f"{len(lines)} held-out lines"
    words = lines[0].split()
    nats, bits, perplexity = float(words[1]), float(words[4]), float(words[8])
    assert abs(nats / math.log(2) - bits) < 0.002
    assert abs(math.exp(nats) - perplexity) < 0.01 * perplexity
    return bits


def two_fast_reports(main):
    """What main prints in two smoke runs with one seed, captured outside any one test."""
    printed = []
    for _ in range(2):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert not main(["--fast", "--seed", "3"])
        printed.append(out.getvalue())
    return printed


def assert_bad_text_is_one_clean_line(main, flag, content, message, folder, capsys):
    """A file with this content is refused: exit status 2, one line that says why."""
    path = folder / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main([flag, str(path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def save_checkpoint(directory, arch, tokenizer, sizes, texts=(), steps=0, **config_json):
    """A capstone checkpoint that has learned these texts, each with an end behind it, by heart.

    The end is token 1,023 (llama) or a blank line. config_json: what transformers adds."""
    import capstone_gpt as gpt

    fields = {"n_kv_head": 1} if arch == "llama" else {}
    model = gpt.GPT(gpt.GPTConfig(arch, tokenizer.vocab_size, **sizes, **fields), 1)
    if steps:
        end = [1023] if arch == "llama" else tokenizer.encode("\n\n")
        rows = [[*tokenizer.encode(text), *end] for text in texts]
        longest = max(map(len, rows))
        ids = np.array([row + [0] * (longest - len(row)) for row in rows])
        optimizer = gpt.AdamW(model.params)
        for _ in range(steps):
            gpt.training_step(model, optimizer, [(ids[:, :-1], ids[:, 1:], None)], 0.01)
    model.save_pretrained(directory)
    tokenizer.save(directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config_json))
    return directory


LIKE_TRANSFORMERS = {
    "eos_token_id": [1023, 0],
    "bos_token_id": 1023,
    "dtype": "float32",
    "use_cache": True,
    "architectures": ["LlamaForCausalLM"],
    "transformers_version": "5.24.0",
}


def refusal(program, capsys, words):
    """The one line on stderr with which a program's main refuses these words."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        program.main([str(word) for word in words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and len(error) <= 401
    assert error.startswith(f"{program.__name__}.py: error: ")
    return error


def files(directory):
    """The names in a directory, in order."""
    return sorted(path.name for path in directory.iterdir())


ERRORS = "errors.txt"  # what the live pages' server says on standard error: nothing, it is hoped


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """The folder in which the live pages of this session keep what they trained."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="session")
def site(kept):
    """The address of explore.py, which runs until the last test is over."""
    if browser.lacking():
        pytest.skip(browser.lacking())
    command = [sys.executable, str(ROOT / "explore.py"), "--no-browser", "--fast"]
    environment = {**os.environ, "EXPLORE_KEPT": str(kept)}
    with (
        open(kept / ERRORS, "w") as errors,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as server,
    ):
        line = server.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert address, line + (kept / ERRORS).read_text()
        try:
            yield address.group()
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def chromium(site):
    """The browser, with one cache. As root, the usual user of a container, it has no sandbox."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = playwright.chromium.launch(
            executable_path=browser.CHROMIUM, args=["--no-sandbox"]
        )
        yield program.new_context(viewport={"width": 1400, "height": 900})
        program.close()


@pytest.fixture
def visit(site, kept, chromium):
    """A new window of 1,400 pixels' width; at its end, nothing may have gone wrong in it.

    Nor in the server: where a cell fails, marimo shows a note for a moment, and writes why.
    """
    before = len((kept / ERRORS).read_text())
    window = chromium.new_page()
    guest = browser.Visit(site, window)
    yield guest
    window.close()
    assert guest.complaints == []
    assert (kept / ERRORS).read_text()[before:] == ""
