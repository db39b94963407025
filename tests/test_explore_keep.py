"""explorer/keep.py: what is kept, under which name, and what becomes of a training gone wrong."""

import html
import sys
import threading
import time
import types

import pytest

pytest.importorskip("marimo")
pytest.importorskip("matplotlib")

from explorer import keep  # noqa: E402  it needs marimo

PAGE = """
import stage
SIZE = 3
OTHER = 1

def helper(x):
    return x + SIZE

def train(report):
    report(0.5)
    return {"x": [helper(1), stage.number()]}

def unused():
    return OTHER
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """place(page, stage): where the result of `train` of such a page and stage is kept."""
    monkeypatch.setattr(keep, "ROOT", tmp_path)
    monkeypatch.setattr(keep, "KEPT", tmp_path / "kept")
    written = []

    def place(page=PAGE, stage="def number():\n    return 2\n"):
        for name, text in (("stage", stage), ("page", page)):
            path = tmp_path / f"{name}.py"
            if name == "page":  # its own folder, and a name that inspect has not seen
                path = tmp_path / "explorer" / f"page{len(written)}.py"
                path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            written.append(path)
            module = types.ModuleType(path.stem)
            module.__file__ = str(path)
            monkeypatch.setitem(sys.modules, path.stem, module)
            exec(compile(text, path, "exec"), vars(module))
        return keep.place("x", module.train)

    return place


def test_a_change_of_what_it_uses_changes_the_place_and_no_other(place):
    usual = place()
    assert place() == usual and place(PAGE + "\n# another page\n") == usual
    assert place(PAGE.replace("OTHER = 1", "OTHER = 2")) == usual
    assert place(PAGE.replace("return OTHER", "return 0")) == usual
    changed = [
        place(PAGE.replace("SIZE = 3", "SIZE = 4")),
        place(PAGE.replace("x + SIZE", "x - SIZE")),
        place(PAGE.replace("report(0.5)", "report(0.6)")),
        place(stage="def number():\n    return 3\n"),
        place(
            PAGE.replace("import stage", "from stage import number").replace("stage.n", "n"),
            stage="def number():\n    return 4\n",
        ),
        place(
            PAGE.replace("import stage", "from stage import number").replace("stage.n", "n"),
            stage="def number():\n    return 5\n",
        ),
    ]
    assert len({usual, *changed}) == 7


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(keep, "jobs", {})
    return tmp_path / "kept"


def finished(job):
    end = time.monotonic() + 20
    while not job.over:
        assert time.monotonic() < end
        time.sleep(0.01)
    return job


def good(report):
    report(0.5, "half")
    return {"a": [1, 2], "b": 3.5}


def slow(report):
    while len(keep.jobs) < 2 or not all(job.done for job in keep.jobs.values()):
        report(0.1)
        time.sleep(0.01)
    return {"a": 1}


def slower(report):
    return slow(report)


def test_what_is_kept_is_read_again_unless_it_is_damaged(kept):
    job = finished(keep.start("good", good))
    assert job.result["a"].tolist() == [1, 2] and job.result["b"] == 3.5 and job.partial == "half"
    (path,) = kept.iterdir()
    keep.jobs.clear()
    again = keep.start("good", good)
    assert again.done == 0 and again.result["a"].tolist() == [1, 2]  # nothing was trained
    for size in (0, 10, path.stat().st_size - 30):
        whole = path.read_bytes()
        path.write_bytes(whole[:size])
        assert keep.read(path) is None
        keep.jobs.clear()
        assert finished(keep.start("good", good)).done == 0.5  # trained again
        assert path.read_bytes() == whole


def test_where_nothing_can_be_kept_the_result_is_there_all_the_same(kept):
    kept.write_text("a file in the folder's place")
    job = finished(keep.start("good", good))
    assert job.error is None and job.result["b"] == 3.5


def test_two_train_at_once(kept):
    one, two = keep.start("one", slow), keep.start("two", slower)
    assert keep.start("one", slow) is one
    assert finished(one).error is None and finished(two).error is None


@pytest.mark.parametrize(
    "result, part",
    [
        (None, "returned NoneType, expected a dict of arrays"),
        ([1], "returned list, expected a dict"),
        ({"a": [1], "b": object()}, "returned 'b' of Python objects"),
        (ValueError("no data"), "The training stopped: no data"),
        (SystemExit(2), "The training stopped: 2"),
        (MemoryError(), "The training stopped: MemoryError"),
    ],
)
def test_what_goes_wrong_is_said_and_tried_again(kept, result, part):
    def make(report):
        if isinstance(result, BaseException):
            raise result
        return result

    job = finished(keep.start("wrong", make))
    assert part in job.error and job.result is None and not kept.exists()
    assert part in html.unescape(keep.progress(job, "Training").text)
    assert keep.start("wrong", make) is not job


@pytest.mark.parametrize("getter", [keep.watch, keep.ready])
def test_no_watcher_outlives_its_session(getter):
    """The kernel of a window is a thread, which ends when the window has long been closed."""
    before = set(threading.enumerate())
    kernel = threading.Thread(target=getter, args=(keep.Job(),))  # a job that never ends
    kernel.start()
    kernel.join()
    end = time.monotonic() + 5
    while set(threading.enumerate()) - before:
        assert time.monotonic() < end, "a watcher lives on"
        time.sleep(0.05)
