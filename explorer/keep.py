"""What a page needs trained: done in the background, once, and kept in out/explore/.

A page says `job = keep.start("recall", train_recall)`. If out/explore/ has the result of the same
code, it is read; else a thread calls

    train_recall(report)      report(done) with done in 0..1, as often as it likes;
                              report(done, partial) shows something on the way, in job.partial

which returns a dict of arrays, and these are kept. "The same code" is the function, what it uses of
its page, and the stage's file: where any of it has changed, the page trains again, so that what it
shows is never older than the code beside it.
"""

import contextlib
import dis
import hashlib
import inspect
import json
import os
import sys
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

    @property
    def over(self):
        return self.result is not None or self.error is not None

    def run(self, make, path, settings):
        """Train, and keep the arrays where the next visit finds them."""
        try:
            result = arrays_of(make(self.report, **settings))
            with contextlib.suppress(OSError):  # where nothing can be kept, this visit still has it
                save(path, result)
            self.result = result
        except BaseException as error:  # SystemExit, too: a job that died must be over
            self.error = f"The training stopped: {str(error) or type(error).__name__}"

    def report(self, done, partial=None):
        self.partial = partial
        self.done = float(done)


def arrays_of(result):
    """What a training returned, as the arrays that `read` will give; ValueError: it is no such."""
    if not isinstance(result, dict):
        raise ValueError(f"it returned {type(result).__name__}, expected a dict of arrays")
    arrays = {name: np.asarray(value) for name, value in result.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"it returned {name!r} of Python objects, expected numbers or text")
    return arrays


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
    except Exception:  # damage shows itself in many ways, most of them zipfile's own
        return None


def stage_file(value):
    """The file of a stage, or of the stage that a function or class was imported from, or None."""
    if not inspect.ismodule(value):
        value = sys.modules.get(getattr(value, "__module__", None))
    path = Path(getattr(value, "__file__", None) or "/")
    return path if path.parent == ROOT else None


def sources(function, found):
    """Add to `found` {name: text} what the function's code, and what it uses, is written as.

    Followed are functions and classes of the same page, its constants that JSON can write, and the
    stages' files.
    """
    scope = function.__globals__
    codes, names = [function.__code__], set()
    while codes:
        code = codes.pop()
        names |= {step.argval for step in dis.get_instructions(code) if "GLOBAL" in step.opname}
        codes += [part for part in code.co_consts if inspect.iscode(part)]
    for name in sorted(names & scope.keys() - found.keys()):
        value = scope[name]
        if inspect.isfunction(value) and value.__globals__ is scope:
            found[name] = inspect.getsource(value)
            sources(value, found)
        elif inspect.isclass(value) and value.__module__ == function.__module__:
            for part, method in vars(value).items():  # a class itself may have lost its source
                if inspect.isfunction(method):
                    found[f"{name}.{part}"] = inspect.getsource(method)
                    sources(method, found)
        elif stage := stage_file(value):
            found[name] = stage.read_text(encoding="utf-8")
        else:
            with contextlib.suppress(TypeError, ValueError):
                found[name] = json.dumps(value)


def place(name, make, **settings):
    """Where the result of make(report, **settings) is kept: its name tells of what code it came."""
    found = {make.__name__: inspect.getsource(make), "settings": json.dumps(settings)}
    sources(make, found)
    code = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return KEPT / f"{name}{'-fast' if FAST else ''}-{code[:12]}.npz"


def start(name, make, **settings):
    """The Job of make(report, **settings), begun now unless it was begun, or kept, before."""
    path = place(name, make, **settings)
    with lock:
        if path not in jobs or jobs[path].error:
            job = jobs[path] = Job()
            job.result = read(path)
            if job.result is None:
                # A daemon: Ctrl-C does not wait for it.
                threading.Thread(target=job.run, args=(make, path, settings), daemon=True).start()
        return jobs[path]


def follow(job, tell):
    """Call tell(over) from the background until the job, the cell, or the window's session ends."""
    kernel = threading.current_thread()  # runs the cells of one window, and ends with its session

    def look_again():
        over = False
        while not over and kernel.is_alive() and not mo.current_thread().should_exit:
            time.sleep(0.3)
            over = job.over  # asked for before it is told, so that the end is told, too
            tell(over)

    mo.Thread(target=look_again, daemon=True).start()


def watch(job):
    """A getter: a cell that calls it runs again when the job has come further, or is over."""
    now = (job.done, job.over)
    seen, see = mo.state(now)
    if not now[1]:
        follow(job, lambda over: see((job.done, over)))
    return seen


def ready(job):
    """A getter: a cell that calls it runs again once, when the job is over."""
    now = job.over
    seen, see = mo.state(now)
    if not now:
        follow(job, lambda over: over and see(True))
    return seen


def progress(job, what):
    """A bar that tells how far the job is, or the sentence that says why it stopped."""
    if job.error:
        return look.problem(job.error)
    return mo.Html(
        f'<div class="look"><p><label>{what} '
        f'<progress value="{job.done:.3f}" max="1">{job.done:.0%}</progress></label></p></div>'
    )
