"""The exercises: solutions pass, blank sheets are skipped, typical wrong answers are told so."""

import importlib.util
import inspect
import re
import subprocess
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
    assert not answers.faults
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


def told(stage, source, number):
    """What the check of an exercise says about a sheet with this source."""
    answers = sheets.Answers(stage, source, f"{stage}.py")
    with pytest.raises(pytest.fail.Exception) as error:
        judge(checks(stage)[number][0], answers)
    return str(error.value)


def test_a_fault_in_one_exercise_is_told_with_its_line_and_spoils_no_other():
    blank = sheets.blank_sheet("stage01")
    source = blank.replace("ANSWER_2 = None", "ANSWER_2 = (1,")
    line = blank[: blank.index("ANSWER_2 = None")].count("\n") + 1
    assert told("stage01", source, 2) == f"SyntaxError in line {line}: '(' was never closed"
    with pytest.raises(pytest.skip.Exception):
        judge(checks("stage01")[4][0], sheets.Answers("stage01", source, "stage01.py"))


def test_an_error_in_the_learners_function_is_told_with_its_line():
    blank = sheets.blank_sheet("stage01")
    start = blank.index("def k_for_witten_bell")
    at = blank.index("raise NotImplementedError", start)
    source = blank[:at] + "return d_h / vocab" + blank[at + len("raise NotImplementedError") :]
    line = blank[:at].count("\n") + 1
    expected = f"k_for_witten_bell raised NameError in line {line}: name 'vocab' is not defined"
    assert told("stage01", source, 3) == expected


def test_damaged_sheets_are_told_in_a_sentence():
    blank = sheets.blank_sheet("stage01")
    assert told("stage01", "x = (\n" + blank, 1).startswith("above the first exercise: SyntaxError")
    assert "has no ANSWER_1; --reset 1.1" in told("stage01", "", 1)
    assert "NameError" in told("stage01", blank.replace("ANSWER_7 = None", "ANSWER_7 = b"), 7)


def run_program(*words, cwd=FOLDER.parent):
    """(exit status, what it printed) of python exercises."""
    command = [sys.executable, str(FOLDER), *words]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def test_the_program_shows_hints_solutions_and_what_is_wrong_with_its_arguments(tmp_path):
    status, out, _ = run_program("--solution", "1.3", cwd=tmp_path)
    assert status == 0 and "return d_h / vocab_size" in out and "HINTS" not in out
    for words, complaint in [
        (["--hint", "1.99"], "expected 1.1 to 1."),
        (["--solution", "77.1"], "there is no such stage"),
        (["--reset", "x"], "there is no such stage"),
        (["--project", "1.2"], "expected a stage alone"),
    ]:
        status, out, error = run_program(*words)
        assert status == 2 and complaint in error and error.count("\n") == 1 and not out
