"""The exercises: where you are, what comes next, and help.

    python exercises                 checks all answers; shows progress and the next exercise
    python exercises 3               stage 3 alone, an exercise a line (3.4: this exercise alone)
    python exercises --hint 3.4      a hint for exercise 4 of stage 3; asked again, the next one
    python exercises --solution 3.4  a solution with its reasoning
    python exercises --reset 3       stage 3 as it was (your answers are kept beside it); also 3.4
    python exercises --watch         checks a sheet again whenever you save it
    python exercises --project 3     checks the project of stage 3, which takes longer

Your answers go into exercises/stage01.py and so on; "capstone" is the name of the last.
"""

import argparse
import codecs
import contextlib
import io
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import sheets
from sheets import HERE, UNCOUNTED

ANSWERS = HERE
SEEN = HERE / ".hints.json"  # how many hints of each exercise were shown


class Verdicts:
    """A plugin of pytest that keeps {(stage, number): (outcome, message)}."""

    def __init__(self):
        self.found = {}
        self.stopped = ""  # where Ctrl-C ended the checks

    def pytest_keyboard_interrupt(self, excinfo):
        """Called by pytest at Ctrl-C."""
        for entry in excinfo.traceback:
            path = Path(str(entry.path))
            if path.parent == ANSWERS and path.stem in sheets.STAGES:
                self.stopped = f"stopped in {path.name}, line {entry.lineno + 1}"

    def pytest_runtest_logreport(self, report):
        """Called by pytest after each part of a check."""
        if report.when != "call" and report.passed:
            return
        path, name = report.nodeid.split("::")
        stage = Path(path).stem.removeprefix("test_")
        number = int(name.removeprefix("test_").split("_")[0])
        message = ""
        if report.failed:
            message = str(report.longrepr).strip().splitlines()[-1].removeprefix("E   ")
        before = self.found.get((stage, number), ("passed", ""))
        if report.outcome != "passed" and before[0] != "failed":
            self.found[stage, number] = (report.outcome, message)
        else:
            self.found.setdefault((stage, number), (report.outcome, message))


def verdicts(stages, project=False):
    """{(stage, number): ("passed", "failed" or "skipped", message)} of the learner's sheets."""
    files = [str(HERE / f"test_{stage}.py") for stage in stages]
    words = [*files, "-q", "--tb=line", "-p", "no:cacheprovider", f"--answers={ANSWERS}"]
    if project:
        words.append("--project")
    plugin = Verdicts()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = pytest.main(["--rootdir", str(HERE.parent), *words], plugins=[plugin])
    if status == 2 and "KeyboardInterrupt" in said.getvalue():
        raise KeyboardInterrupt(plugin.stopped)
    if status not in (0, 1, 5):  # all right, some failed, none found
        raise ValueError(said.getvalue().strip()[-600:])
    return plugin.found


def label(stage, number=None):
    """How an exercise is called: 3.4, or capstone.2; without a number the stage alone."""
    name = stage if stage == "capstone" else str(int(stage[5:]))
    return name if number is None else f"{name}.{number}"


def parse_label(text, with_number=None):
    """(stage, number or None) of "3", "3.4" or "capstone.2"; ValueError."""
    name, dot, number = text.strip().lower().removeprefix("stage").partition(".")
    name = name.lstrip("0")
    stage = "capstone" if name == "capstone" else f"stage{name.zfill(2)}"
    if stage not in sheets.known_stages():
        known = ", ".join(label(stage) for stage in sheets.known_stages())
        raise ValueError(f"{text}: there is no such stage; there are {known}")
    if not dot and not with_number:
        return stage, None
    if with_number is False and number:
        raise ValueError(f"{text}: expected a stage alone, such as {name}")
    numbers = [exercise.number for exercise in sheets.solutions(stage)]
    if not number.isdecimal() or int(number) not in numbers:
        raise ValueError(f"{text}: expected {name}.1 to {name}.{len(numbers)}")
    return stage, int(number)


def sheet_path(stage):
    """The learner's sheet, made if it is not there."""
    path = ANSWERS / f"{stage}.py"
    if not path.exists():
        path.write_text(sheets.blank_sheet(stage), encoding="utf-8")
    return path


def lenient(path):
    """The source of a sheet, even if it has bytes that are not UTF-8."""
    return path.read_text(encoding="utf-8-sig", errors="replace")


def find(stage, number):
    """The Exercise with this number, as solved."""
    return next(e for e in sheets.solutions(stage) if e.number == number)


def state(found, stage, exercise):
    """One sign for an exercise: ■ right, ✗ wrong, □ open, · not counted."""
    if exercise.kind in UNCOUNTED:
        return "·"
    outcome, _ = found.get((stage, exercise.number), ("skipped", ""))
    return {"passed": "■", "failed": "✗", "skipped": "□"}[outcome]


def show_exercise(stage, number):
    """The words of an exercise, where to write, and how to get help."""
    exercise = find(stage, number)
    path = sheet_path(stage)
    line = next((e.line for e in sheets.cut(lenient(path))[1] if e.number == number), 1)
    print(f"{label(stage, number)}  {exercise.stars} ({exercise.kind}) {exercise.title}\n")
    print(textwrap.indent(exercise.text(), "    "))
    print(f"\nAnswer in {os.path.relpath(path)}, line {line}.", end=" ")
    print(f"A hint: python exercises --hint {label(stage, number)}")


def show_failures(found):
    """Every answer that is wrong, with what is wrong about it."""
    same = {}  # a fault above all exercises is the fault of each: told once
    for (stage, number), (outcome, message) in found.items():
        if outcome == "failed":
            same.setdefault((stage, message), []).append(label(stage, number))
    for (_, message), names in same.items():
        print(textwrap.fill(f"✗ {', '.join(names)}  {message}", 100, subsequent_indent="   "))


def show_progress(stages):
    """A line a stage, the wrong answers, and the next exercise."""
    found = verdicts(stages)
    following, right, counted = None, 0, 0
    for stage in stages:
        exercises = sheets.solutions(stage)
        signs = [state(found, stage, exercise) for exercise in exercises]
        right += signs.count("■")
        counted += len(signs) - signs.count("·")
        done = f"{signs.count('■'):3} of {len(signs) - signs.count('·'):2}"
        print(f"   {label(stage):>8}  {done}   {''.join(signs)}")
        for sign, exercise in zip(signs, exercises):
            if sign in "✗□" and following is None:
                following = stage, exercise.number
    print(
        f"   {'all':>8}  {right:3} of {counted}   ■ right  ✗ not yet right  □ open  · not counted\n"
    )
    show_failures(found)
    if following is None:
        print("Every exercise is right. The projects remain: python exercises --project 1")
    else:
        print("\nNext: ", end="")
        show_exercise(*following)


def show_one(stage, number):
    """One exercise, and what is wrong with its answer."""
    outcome, message = verdicts([stage]).get((stage, number), ("skipped", ""))
    show_failures({(stage, number): (outcome, message)})
    if outcome == "passed":
        print(f"■ {label(stage, number)}  right")
    show_exercise(stage, number)


def show_stage(stage):
    """All exercises of one stage, a line each, and the next one."""
    found = verdicts([stage])
    following = None
    for exercise in sheets.solutions(stage):
        sign = state(found, stage, exercise)
        name = label(stage, exercise.number)
        print(f" {sign} {name:>5}  {exercise.stars:3} ({exercise.kind}) {exercise.title}")
        if sign in "✗□" and following is None:
            following = exercise.number
    print()
    show_failures(found)
    if following is not None:
        print("\nNext: ", end="")
        show_exercise(stage, following)


def show_hint(stage, number):
    """The next hint of an exercise, and those before it."""
    every = sheets.hints(stage, number)
    try:
        seen = json.loads(SEEN.read_text(encoding="utf-8"))
        seen = {str(name): int(n) for name, n in seen.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        seen = {}
    name = label(stage, number)
    shown = min(max(seen.get(name, 0), 0) + 1, len(every))
    try:
        SEEN.write_text(json.dumps({**seen, name: shown}), encoding="utf-8")
    except OSError:  # it cannot be noted which one would be the next
        shown = len(every)
    for n, hint in enumerate(every[:shown], 1):
        print(textwrap.fill(f"{n}. {hint}", 100, subsequent_indent="   "))
    if shown < len(every):
        print(f"\nAsk again for the next of {len(every)}.")
    else:
        print(f"\nThese were all. The solution: python exercises --solution {name}")


def show_solution(stage, number):
    """A solution as it stands in solutions/, without the hints."""
    source = find(stage, number).source
    for line in source.split(f"HINTS_{number} = ")[0].rstrip().splitlines():
        print(line)


def reset(stage, number):
    """Put a sheet, or one exercise of it, back as it was; what stood there is kept."""
    path = sheet_path(stage)
    new = sheets.blank_sheet(stage)
    old = new if number is None else sheets.read_sheet(path)
    kept = path.with_name(f"{stage}_{time.strftime('%Y%m%d_%H%M%S')}.old")
    while kept.exists():  # two in one second
        kept = kept.with_name(f"{kept.stem}_.old")
    kept.write_bytes(path.read_bytes())
    if number is not None:
        before, exercises = sheets.cut(old)
        if not exercises:
            before = sheets.cut(new)[0]
        blank = {exercise.number: exercise.source for exercise in sheets.cut(new)[1]}
        parts = {exercise.number: exercise.source for exercise in exercises}
        parts[number] = blank[number]
        new = before + "\n\n".join(parts[n].strip() + "\n" for n in sorted(parts))
    path.write_text(new, encoding="utf-8")
    print(f"{os.path.relpath(path)} is as it was; your answers are in {os.path.relpath(kept)}")


def watch(stages):
    """Check a sheet whenever it is saved, until Ctrl-C."""
    paths = {stage: sheet_path(stage) for stage in stages}
    times = {stage: path.stat().st_mtime_ns for stage, path in paths.items()}
    print("Watching; save a sheet and it is checked. Ctrl-C ends.", flush=True)
    while True:
        time.sleep(0.3)
        for stage, path in paths.items():
            if not path.exists() or path.stat().st_mtime_ns == times[stage]:
                continue
            times[stage] = path.stat().st_mtime_ns
            print(f"\n--- {path.name} at {time.strftime('%H:%M:%S')}", flush=True)
            try:  # in a fresh interpreter
                subprocess.run([sys.executable, str(HERE), label(stage)], timeout=120)
            except subprocess.TimeoutExpired:
                print("Not done after two minutes: does a loop never end?", flush=True)


def check_project(stage):
    """Check the project of a stage."""
    found = verdicts([stage], project=True)
    if not found:
        raise ValueError(f"{label(stage)}: this stage has no project")
    for (_, number), (outcome, message) in found.items():
        if outcome == "passed":
            print(f"■ {label(stage, number)}  the project is right")
        elif outcome == "failed":
            print(f"✗ {label(stage, number)}  {message}")
        else:
            show_exercise(stage, number)


PLAIN = dict(zip("■✗□·★′−‖₂⌈⌉", "#xo.*'-|2[]"))


def in_plain_signs(error):
    """For a terminal or a file that cannot have our signs: others that can be told apart."""
    signs = error.object[error.start : error.end]
    return "".join(PLAIN.get(sign, "?") for sign in signs), error.end


def main(argv=None):
    """The command line; see --help."""
    codecs.register_error("plain", in_plain_signs)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")
    usage = (__doc__ or "").strip()
    parser = argparse.ArgumentParser(
        prog="python exercises",
        description=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    parser.add_argument("stage", nargs="?", metavar="N[.M]", help="one stage, or one exercise")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--hint", metavar="N.M", help="a hint for exercise M of stage N")
    only.add_argument("--solution", metavar="N.M", help="its solution")
    only.add_argument("--reset", metavar="N[.M]", help="a sheet, or one exercise, as it was")
    only.add_argument("--project", metavar="N", help="check the project of a stage")
    only.add_argument("--watch", action="store_true", help="check whenever a sheet is saved")
    args = parser.parse_args(argv)
    try:
        if args.hint:
            show_hint(*parse_label(args.hint, True))
        elif args.solution:
            show_solution(*parse_label(args.solution, True))
        elif args.reset:
            reset(*parse_label(args.reset))
        elif args.project:
            check_project(parse_label(args.project, False)[0])
        elif args.watch:
            watch(sheets.known_stages())
        elif args.stage:
            stage, number = parse_label(args.stage)
            show_stage(stage) if number is None else show_one(stage, number)
        else:
            show_progress(sheets.known_stages())
        sys.stdout.flush()
    except BrokenPipeError:  # whoever was reading has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stopped:
        parser.exit(130, f"\n{stopped}\n".lstrip() if str(stopped) else "\n")
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
