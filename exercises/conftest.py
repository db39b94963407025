"""pytest over the exercises: whose answers are judged, and what the program hears of it."""

import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the stages
sys.path.insert(0, str(HERE))

import judge  # noqa: E402
import sheets  # noqa: E402


def pytest_addoption(parser):
    parser.addoption(
        "--answers", metavar="DIR", default=str(HERE), help="whose answers to judge [exercises/]"
    )
    parser.addoption("--project", action="store_true", help="judge the projects only")


def pytest_configure(config):
    folder = Path(config.getoption("--answers"))
    own = folder.resolve() == HERE  # where sheets that are not there count as untouched
    if not own and not any((folder / f"{stage}.py").is_file() for stage in sheets.known_stages()):
        raise pytest.UsageError(f"--answers {folder}: expected a folder with stage01.py or others")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    try:
        return (yield)
    except Exception as error:  # of the check itself: it did not expect such an answer
        judge.unfit(error)


def pytest_collection_modifyitems(config, items):
    wanted = config.getoption("--project")
    left_out = [i for i in items if (i.get_closest_marker("project") is not None) != wanted]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="module")
def answers(request):
    """The Answers of the stage that the file of checks is about."""
    stage = Path(request.module.__file__).stem.removeprefix("test_")
    return sheets.Answers.read(stage, request.config.getoption("--answers"))


@pytest.fixture
def rng():
    """Random inputs, the same in every run: a failure that was mended stays mended."""
    return np.random.default_rng(0)
