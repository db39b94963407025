"""The exercises: solutions pass, blank sheets are skipped, typical wrong answers are told so."""

import importlib.util
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import time

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


def run_program(*words, cwd=FOLDER.parent, folder=FOLDER, encoding="utf-8"):
    """(exit status, what it printed, its complaints) of python exercises."""
    command = [sys.executable, str(folder), *words]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        command, capture_output=True, text=True, encoding=encoding, cwd=cwd, env=env
    )
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


def test_a_sheet_that_is_not_utf8_is_told_so(tmp_path):
    path = tmp_path / "stage01.py"
    path.write_bytes(sheets.blank_sheet("stage01").encode() + b"# caf\xe9\n")
    last = path.read_bytes().count(b"\n")
    answers = sheets.Answers.read("stage01", tmp_path)
    assert set(answers.faults.values()) == {
        f"stage01.py is not UTF-8 from line {last} on; save it with this encoding"
    }
    assert not answers.untouched


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_byte_order_mark_and_other_line_ends_make_no_difference(tmp_path, ends):
    text = "\ufeff" + sheets.blank_sheet("stage01").replace("ANSWER_2 = None", "ANSWER_2 = 1.75")
    (tmp_path / "stage01.py").write_bytes(text.replace("\n", ends).encode())
    answers = sheets.Answers.read("stage01", tmp_path)
    assert not answers.faults
    assert 2 not in answers.untouched and len(answers.untouched) == 10


def with_body(blank, body):
    """The sheet with `body` in place of the first function's NotImplementedError."""
    return blank.replace("raise NotImplementedError", body, 1)


def test_an_exit_in_a_sheet_is_a_fault_of_its_exercise_alone():
    blank = sheets.blank_sheet("stage01")
    source = blank.replace("ANSWER_2 = None", "raise SystemExit(3)")
    assert told("stage01", source, 2).startswith("SystemExit in line")
    source = with_body(blank, "raise SystemExit")
    assert told("stage01", source, 3).startswith("k_for_witten_bell raised SystemExit in line")


def test_answers_of_a_strange_kind_are_told_and_numbers_of_any_kind_are_numbers():
    blank = sheets.blank_sheet("stage01")
    for value in ("5", "len", "'12'", "[None]", "{1: 2}", "[[1], [2, 3]]"):
        message = told("stage01", blank.replace("ANSWER_1 = None", f"ANSWER_1 = {value}"), 1)
        assert message.startswith("ANSWER_1")
    for value in ("10**400", "float('nan')", "1j", "True", "[1.75]"):
        message = told("stage01", blank.replace("ANSWER_2 = None", f"ANSWER_2 = {value}"), 2)
        assert "expected a finite number" in message
    for value in ("np.array(1.75)", "np.float32(1.75)", "__import__('fractions').Fraction(7, 4)"):
        source = blank.replace("ANSWER_2 = None", f"ANSWER_2 = {value}")
        source = source.replace("ANSWER_2B = None", "ANSWER_2B = 2**1.75")
        judge(checks("stage01")[2][0], sheets.Answers("stage01", source, "stage01.py"))


def test_whole_and_complex_numbers_are_told_as_what_they_are():
    blank = sheets.blank_sheet("stage01")
    before, head, after = blank.partition("def stationary(P):")
    source = before + head + with_body(after, "return np.ones(len(P)) * 1j")
    assert told("stage01", source, 8).startswith("stationary has complex entries")
    source = blank.replace("ANSWER_2 = None", "ANSWER_2 = 1")
    assert told("stage01", source, 2).startswith("ANSWER_2: cut to whole numbers")


@pytest.mark.parametrize("change", ["float32", "in place"])
def test_a_right_function_may_compute_in_float32_or_change_its_inputs(change):
    answers = sheets.Answers.read("stage01", FOLDER / "solutions")
    right = answers.names["kneser_ney"]

    def other(n_hc, below, discount):
        found = right(n_hc, below, discount).astype("f4" if change == "float32" else "f8")
        if change == "in place":
            n_hc[:], below[:] = 0, 0
        return found

    answers.names["kneser_ney"] = other
    judge(checks("stage01")[4][0], answers)


def learner(tmp_path, source, stage="stage01"):
    """The folder of the exercises in a copy of the project, with this sheet of a stage."""
    folder = tmp_path / "clone" / "exercises"
    left_out = shutil.ignore_patterns("__pycache__", "*.old", ".hints.json", "wrong")
    shutil.copytree(FOLDER, folder, ignore=left_out)
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, folder.parent)
    (folder / f"{stage}.py").write_text(source, encoding="utf-8")
    return folder


def test_an_answer_on_which_the_check_itself_fails_is_told_in_a_sentence(tmp_path):
    source = sheets.blank_sheet("stage07")
    assert source.count("    return pieces[::-1]") == 1
    source = source.replace("    return pieces[::-1]", "    return 1")
    _, out, _ = run_program("7.7", folder=learner(tmp_path, source, "stage07"))
    assert "✗ 7.7  the answer is of another kind than" in out


@pytest.mark.parametrize("noted", ["", "[]", '{"1.4": "x"}', '{"1.4": -5}', "folder"])
def test_hints_come_even_if_what_was_noted_of_them_is_damaged(tmp_path, noted):
    folder = learner(tmp_path, sheets.blank_sheet("stage01"))
    if noted == "folder":  # nothing can be noted: all hints at once
        (folder / ".hints.json").mkdir()
    else:
        (folder / ".hints.json").write_text(noted, encoding="utf-8")
    status, out, error = run_program("--hint", "1.4", folder=folder)
    assert (status, error) == (0, "") and out.startswith("1. ")
    assert ("\n3. " in out) == (noted == "folder")


def test_a_folder_without_any_sheets_is_a_fresh_start(tmp_path):
    folder = learner(tmp_path, "")
    for stage in STAGES:
        (folder / f"{stage}.py").unlink()
    status, out, error = run_program(folder=folder)
    assert (status, error) == (0, "") and "Next: 1.1" in out


def test_every_reset_keeps_what_stood_there(tmp_path):
    blank = sheets.blank_sheet("stage01")
    folder = learner(tmp_path, blank.replace("= None", "= 7"))
    every = blank.count("= None")
    for label in ("1.1", "1.2", "1"):  # within a second
        status, _, error = run_program("--reset", label, folder=folder)
        assert (status, error) == (0, "")
    kept = sorted(path.read_text(encoding="utf-8").count("= 7") for path in folder.glob("*.old"))
    assert kept == [every - 4, every - 2, every]
    assert (folder / "stage01.py").read_text(encoding="utf-8") == blank
    (folder / "stage01.py").write_bytes(b"caf\xe9")
    status, _, error = run_program("--reset", "1.1", folder=folder)
    assert status == 2 and "not UTF-8" in error
    assert run_program("--reset", "1", folder=folder)[0] == 0
    assert b"caf\xe9" in [path.read_bytes() for path in folder.glob("*.old")]


def test_one_exercise_is_shown_and_signs_that_a_terminal_lacks_are_replaced(tmp_path):
    blank = sheets.blank_sheet("stage01")
    folder = learner(tmp_path, blank.replace("ANSWER_2 = None", "ANSWER_2 = 7"))
    for label in ("1.2", "stage01.2"):
        status, out, _ = run_program(label, folder=folder)
        assert status == 0 and "✗ 1.2  ANSWER_2: this is the sum" in out and "1.1" not in out
    _, out, _ = run_program("1", folder=folder, encoding="cp1252")
    assert " o   1.1  *   (by hand)" in out and " x   1.2  *   (by hand)" in out


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent differently there")
def test_ctrl_c_says_where_an_endless_loop_is(tmp_path):
    loop = "open('started', 'w').close()\n    while True:\n        pass"
    folder = learner(tmp_path, with_body(sheets.blank_sheet("stage01"), loop))
    run = subprocess.Popen(
        [sys.executable, str(folder), "1"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130
    assert re.fullmatch(r"stopped in stage01\.py, line \d+\n", error)


def test_answers_in_a_folder_without_sheets_are_not_simply_skipped(tmp_path):
    command = [sys.executable, "-m", "pytest", str(FOLDER), "--answers", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 4 and "expected a folder with stage01.py" in done.stderr
