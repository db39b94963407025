"""Kill training runs at random moments, again and again, and see what is lost.

    python benchmarks/kill_runs.py                 300 kill -9, 100 each of SIGINT, SIGTERM, SIGHUP
    python benchmarks/kill_runs.py --kills 12      12 kill -9, 4 each of the others

A small run that saves after every other step is started, hit by a signal after a random time,
resumed, hit again, until it comes to its end. Then its weights, its moments, its best checkpoint
and its metrics must be, bit for bit, those of a run that nobody disturbed. In between, each hit
may cost the step at hand and, for kill -9 alone, the steps since the last evaluation.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import capstone_gpt as gpt  # noqa: E402

SIGNALS = ["SIGKILL", "SIGINT", "SIGTERM", "SIGHUP"]
INTERVAL = 2
RUN = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4"]
RUN += ["--tokenizer=char", "--dropout=0.1", "--dev_fraction=0.1", "--warmup_iters=5"]
RUN += [f"--eval_interval={INTERVAL}", "--eval_iters=1", "--max_iters=60"]
FILES = ("last.safetensors", "best/model.safetensors", "best/config.json", "best/tokenizer.json")


def start(out, text):
    """The process of a new run, or of an old one that goes on."""
    command = [sys.executable, str(ROOT / "capstone_gpt.py"), "train"]
    if (out / "last.safetensors").exists():
        command += ["--resume", str(out)]
    else:
        command += ["--data", str(text), "--out_dir", str(out), *RUN]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, **pipes)


def saved_step(out):
    """The step in last.safetensors, once both checkpoints have been opened; -1 if there is none."""
    if not (out / "last.safetensors").exists():
        shutil.rmtree(out, ignore_errors=True)  # killed before it began
        return -1
    gpt.load(out / "best")
    tensors, metadata = gpt.read_safetensors(out / "last.safetensors")
    assert all(np.isfinite(gpt.read_tensor(t)).all() for t in tensors.values())
    return json.loads(metadata["state"])["step"]


def rows(out):
    """The whole lines of metrics.jsonl, without the clock."""
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{**row, "tokens_per_second": None} for row in found]


def content(out):
    """What two runs are compared by."""
    return rows(out), [(out / name).read_bytes() for name in FILES]


def hit(out, text, how, seconds):
    """Start or resume a run, send it `how` after so many seconds: False if it ended by itself."""
    before, child = saved_step(out), start(out, text)
    try:
        said, errors = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(how)
        said, errors = child.communicate(timeout=120)
    if child.returncode == 0:
        return False
    step = saved_step(out)
    assert step >= before, f"{how.name} threw the run back from step {before} to {step}"
    if how == signal.SIGKILL and step >= 0:
        last_row = rows(out)[-1]["step"]
        assert last_row - step in (0, INTERVAL), f"metrics have step {last_row}, saved is {step}"
    elif how != signal.SIGKILL and "this step is finished" in errors:
        assert child.returncode == 128 + how, (child.returncode, errors)
        assert f"stopped after step {step} and saved" in said, (step, said, errors)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300, help="so many kill -9, a third of others")
    parser.add_argument("--signals", nargs="+", default=SIGNALS, choices=SIGNALS)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    args = parser.parse_args()
    for name in SIGNALS:  # started with nohup or &, we ignore some, and every run would, too
        if signal.getsignal(signal.Signals[name]) == signal.SIG_IGN:
            signal.signal(signal.Signals[name], signal.SIG_DFL)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        text = folder / "text.txt"
        text.write_text("the cat sat on the mat. a dog ran.\n" * 100)
        began = time.time()
        assert start(folder / "whole", text).wait() == 0
        seconds, whole = time.time() - began, content(folder / "whole")
        for name in args.signals:
            how, hits, runs = signal.Signals[name], 0, 0
            kills = args.kills if name == "SIGKILL" else args.kills // 3
            while hits < kills:
                out = folder / f"{how.name}-{runs}"
                while hits < kills and hit(out, text, how, rng.uniform(0, seconds)):
                    hits += 1
                if not (hits < kills):
                    assert start(out, text).wait() == 0
                assert content(out) == whole, f"{out.name} differs from the run left in peace"
                runs += 1
            print(
                f"{hits} {how.name}: {runs} runs, each bit for bit the one left in peace",
                flush=True,
            )


if __name__ == "__main__":
    main()
