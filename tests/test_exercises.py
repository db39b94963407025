"""The exercises: solutions pass, blank sheets are skipped, typical wrong answers are told so."""

import importlib.util
import inspect
import re
import sys

import numpy as np
import pytest
from conftest import ROOT

FOLDER = ROOT / "exercises"
sys.path.insert(0, str(FOLDER))

import sheets  # noqa: E402

STAGES = sheets.known_stages()


def checks(stage):
    """{number: the check of this exercise} of a stage, projects left out."""
    spec = importlib.util.spec_from_file_location(f"checks_{stage}", FOLDER / f"test_{stage}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {}
    for name, function in vars(module).items():
        if name.startswith("test_"):
            marks = [mark.name for mark in getattr(function, "pytestmark", [])]
            found[int(name.split("_")[1])] = (function, "project" in marks)
    return found


def judge(function, answers):
    """Run one check as pytest would."""
    wanted = inspect.signature(function).parameters
    inputs = {"answers": answers, "rng": np.random.default_rng(0)}
    function(**{name: inputs[name] for name in wanted})


def stage_file(stage):
    return next(ROOT.glob("capstone_gpt.py" if stage == "capstone" else f"{stage}_*.py"))


@pytest.mark.parametrize("stage", STAGES)
def test_the_solutions_are_right(stage):
    answers = sheets.Answers.read(stage, FOLDER / "solutions")
    assert not answers.faults and not answers.missing
    for function, project in checks(stage).values():
        if not project:
            judge(function, answers)


@pytest.mark.parametrize("stage", STAGES)
def test_a_blank_sheet_is_untouched_and_each_check_is_skipped(stage):
    answers = sheets.Answers(stage, sheets.blank_sheet(stage), f"{stage}.py")
    assert not answers.faults
    assert answers.untouched == {exercise.number for exercise in sheets.solutions(stage)}
    for function, project in checks(stage).values():
        if not project:
            with pytest.raises(pytest.skip.Exception):
                judge(function, answers)


@pytest.mark.parametrize("stage", STAGES)
def test_typical_wrong_answers_fail_with_their_message(stage):
    functions = checks(stage)
    wrong = sheets.wrong_answers(stage)
    for number, words, answers in wrong:
        with pytest.raises(pytest.fail.Exception) as told:
            judge(functions[number][0], answers)
        message = str(told.value)
        assert words in message, f"{stage} {number}: {message!r} does not say {words!r}"
    judged = {e.number for e in sheets.solutions(stage) if e.kind not in sheets.UNCOUNTED}
    assert judged == {number for number, _, _ in wrong}, "each exercise has a typical wrong answer"


@pytest.mark.parametrize("stage", STAGES)
def test_numbers_stars_kinds_and_titles_are_those_of_the_stage(stage):
    exercises = sheets.solutions(stage)
    assert [e.number for e in exercises] == list(range(1, len(exercises) + 1))
    text = stage_file(stage).read_text(encoding="utf-8")
    part = re.split(r"^# %% (?:Exercises|Where this leads)$", text, flags=re.M)[1]
    listed = re.findall(r"^#\s+(\d+)\. (★+) \((.+?)\) (.+)$", part, re.M)
    assert listed == [(str(e.number), e.stars, e.kind, e.title) for e in exercises]
    stars = [len(e.stars) for e in exercises if e.kind not in sheets.UNCOUNTED]
    assert stars == sorted(stars)
    kinds = {"derive", "by hand", "implement", "find the bug", "explain", "project"}
    assert kinds <= {e.kind for e in exercises}


@pytest.mark.parametrize("stage", STAGES)
def test_every_exercise_has_a_check_hints_and_words(stage):
    functions = checks(stage)
    for exercise in sheets.solutions(stage):
        assert exercise.text()
        if exercise.kind == "research":
            assert exercise.number not in functions
            continue
        assert functions[exercise.number][1] == (exercise.kind == "project")
        assert 2 <= len(sheets.hints(stage, exercise.number)) <= 3


@pytest.mark.parametrize("stage", STAGES)
def test_a_sheet_that_nobody_touched_is_the_one_made_from_the_solutions(stage):
    path = FOLDER / f"{stage}.py"
    found = path.read_text(encoding="utf-8")
    if sheets.Answers.read(stage, FOLDER).untouched == {e.number for e in sheets.solutions(stage)}:
        assert found == sheets.blank_sheet(stage)
