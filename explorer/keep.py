"""What a page needs trained: done in the background, once, and kept in out/explore/.

A page says `job = keep.start("recall", train_recall, stage)`. If out/explore/ has the result of the
same function and the same stage file, it is read; else a thread calls

    train_recall(report)      report(done) with done in 0..1, as often as it likes;
                              report(done, partial) shows something on the way, in job.partial

which returns a dict of arrays, and these are kept. A name belongs to one function and one stage
file, as they stand: where either has changed it is trained again, so what a page shows is never
older than the code beside it.
"""

import hashlib
import inspect
import os
import threading
import time
from pathlib import Path

import marimo as mo
import numpy as np

from explorer import look
from explorer.pages import ROOT

KEPT = Path(os.environ.get("EXPLORE_KEPT", ROOT / "out" / "explore"))
FAST = os.environ.get("EXPLORE_FAST") == "1"  # explore.py --fast: trainings of seconds

jobs = {}  # name and hash → Job
lock = threading.Lock()


class Job:
    """One training: `done` goes from 0 to 1; at the end stands a result, or an error's message."""

    def __init__(self):
        self.done = 0.0
        self.partial = None
        self.result = None
        self.error = None
        self.began = time.monotonic()

    @property
    def over(self):
        return self.result is not None or self.error is not None

    def run(self, make, path, settings):
        """Train, and keep the arrays where the next visit finds them."""
        try:
            result = make(self.report, **settings)
            save(path, result)
            self.result = result
        except Exception as error:
            self.error = f"The training stopped: {error}"

    def report(self, done, partial=None):
        self.partial = partial
        self.done = float(done)


def save(path, arrays):
    """Write the arrays to one .npz, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path):
    """The arrays of an .npz, or None where there is none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, EOFError):
        return None
    except Exception:  # damage shows itself in many ways, most of them zipfile's own
        return None


def place(name, make, *modules, **settings):
    """Where the result of `make` is kept: the file's name tells the code that it came from.

    Among the modules may stand functions that `make` calls: their code counts, too."""
    code = hashlib.sha256(inspect.getsource(make).encode())
    code.update(repr(sorted(settings.items())).encode())
    for module in modules:
        if inspect.isfunction(module):
            code.update(inspect.getsource(module).encode())
        else:
            code.update(Path(module.__file__).read_bytes())
    return KEPT / f"{name}{'-fast' if FAST else ''}-{code.hexdigest()[:12]}.npz"


def start(name, make, *modules, **settings):
    """The Job of make(report, **settings), begun now unless it was begun, or kept, before."""
    path = place(name, make, *modules, **settings)
    with lock:
        if path not in jobs or jobs[path].error:
            job = jobs[path] = Job()
            job.result = read(path)
            if job.result is None:
                threading.Thread(target=job.run, args=(make, path, settings), daemon=True).start()
        return jobs[path]


def watch(job):
    """A getter: a cell that calls it runs again when the job has come further, or is over."""
    seen, see = mo.state((job.done, job.over))
    if not job.over:

        def follow():
            over = False  # asked for before it is told, so that the end is told, too
            while not mo.current_thread().should_exit and not over:
                time.sleep(0.3)
                over = job.over
                see((job.done, over))

        mo.Thread(target=follow, daemon=True).start()
    return seen


def ready(job):
    """A getter: a cell that calls it runs again once, when the job is over."""
    seen, see = mo.state(job.over)
    if not job.over:

        def wait():
            while not mo.current_thread().should_exit and not job.over:
                time.sleep(0.1)
            if job.over:
                see(True)

        mo.Thread(target=wait, daemon=True).start()
    return seen


def progress(job, what):
    """A bar that tells how far the job is, or the sentence that says why it stopped."""
    if job.error:
        return look.problem(job.error)
    return mo.Html(
        f'<div class="look"><p><label>{what} '
        f'<progress value="{job.done:.3f}" max="1">{job.done:.0%}</progress></label></p></div>'
    )
