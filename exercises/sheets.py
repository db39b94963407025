"""Sheets of exercises: how they are cut into exercises, made from the solutions, and read.

A sheet (stage01.py) is one file a stage, cut at headers of the form

    # %% 4. ★★ (implement) Interpolation

What stands before the first header belongs to all. The file of solutions has the same headers and
the same texts, and from it the learner's sheet is made:

    ANSWER_4 = 1.75             becomes  ANSWER_4 = None
    def mix(p, q): ...          keeps its docstring and raises NotImplementedError,
                                unless a comment "# given" stands above it
    total += n  # was: total = n    becomes what it was (for "find the bug")
    HINTS_4 = [...], _helper()  and lines that begin with "# > " are left out
"""

import ast
import re
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parent
STAGES = [f"stage{n:02d}" for n in range(1, 11)] + ["capstone"]
HEADER = re.compile(r"^# %% (\d+)\. (★+) \((.+?)\) (.+)$", re.M)
WAS = re.compile(r"^( *).*?  # was: (.*)$")
UNCOUNTED = ("research", "project")  # kinds that the quick run does not check


class Exercise:
    """One exercise of a sheet: its number, stars, kind, title and source, and where it begins."""

    def __init__(self, match, source, line):
        self.number = int(match[1])
        self.stars = match[2]
        self.kind = match[3]
        self.title = match[4]
        self.source = source  # from the header on
        self.line = line  # of the header, counted from 1

    def text(self):
        """The words of the exercise: the comments below its header, without their #."""
        lines = []
        for line in self.source.splitlines()[1:]:
            if line.startswith("#") and not line.startswith(("# > ", "# given")):
                lines.append(line[2:])
            elif line.strip():
                break
        return "\n".join(lines).strip()


def cut(source):
    """(what stands before the first exercise, [Exercise]) of the source of a sheet."""
    matches = list(HEADER.finditer(source))
    if not matches:
        return source, []
    ends = [match.start() for match in matches[1:]] + [len(source)]
    exercises = []
    for match, end in zip(matches, ends):
        line = source.count("\n", 0, match.start()) + 1
        exercises.append(Exercise(match, source[match.start() : end], line))
    return source[: matches[0].start()], exercises


def solution_path(stage):
    """Where the solutions of a stage stand."""
    return HERE / "solutions" / f"{stage}.py"


def known_stages():
    """The stages that have exercises, in order."""
    return [stage for stage in STAGES if solution_path(stage).is_file()]


def solutions(stage):
    """The Exercises of a stage, as solved."""
    return cut(solution_path(stage).read_text(encoding="utf-8"))[1]


def hints(stage, number):
    """The hints of an exercise, each going further than the one before it."""
    for exercise in solutions(stage):
        for node in ast.parse(exercise.source).body:
            if isinstance(node, ast.Assign) and node.targets[0].id == f"HINTS_{number}":
                return ast.literal_eval(node.value)
    return []


def stub(exercise):
    """The source of an exercise as the learner finds it, made from its solution."""
    lines = exercise.source.splitlines()
    for node in reversed(ast.parse(exercise.source).body):
        first, last = node.lineno - 1, node.end_lineno  # lines[first:last] is the statement
        given = first > 0 and lines[first - 1] == "# given"
        name = getattr(node, "name", "")
        if isinstance(node, ast.Assign):
            name = node.targets[0].id
            if name.startswith("ANSWER"):
                lines[first:last] = [f"{name} = None"]
        if name.startswith(("HINTS", "_")):
            del lines[first:last]
        elif isinstance(node, ast.FunctionDef) and not given:
            body = lines[first:last]
            if any(WAS.match(line) for line in body):
                lines[first:last] = [WAS.sub(r"\1\2", line) for line in body]
            else:
                head = node.body[0].end_lineno  # the docstring's last line
                lines[first:last] = [*lines[first:head], "    raise NotImplementedError"]
    kept = "\n".join(line for line in lines if not line.startswith(("# > ", "# given")))
    return re.sub(r"\n{3,}", "\n\n\n", kept).strip() + "\n"


def blank_sheet(stage):
    """The sheet of a stage before anything is answered."""
    before, exercises = cut(solution_path(stage).read_text(encoding="utf-8"))
    before = before.replace("Solutions of the exercises", "The exercises")
    before = re.sub(r"^# > .*\n", "", before, flags=re.M)
    return before.rstrip() + "\n\n" + "\n\n".join(stub(exercise) for exercise in exercises)


def read_sheet(path):
    """The source of a sheet, with or without the byte order mark of some editors; ValueError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path.name} is not UTF-8 from line {line} on; save it with this encoding"
        ) from None


def names_in(source):
    """The names that a source assigns or defines at its top level."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            yield node.targets[0].id
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name


def without_layout(source):
    """The statements of a source, so that comments and blank lines make no difference."""
    try:
        return ast.dump(ast.parse(source))
    except SyntaxError:
        return source


class Answers:
    """The answers of one sheet. Each exercise is run by itself: a fault in one spoils no other."""

    def __init__(self, stage, source, path):
        self.stage = stage
        self.path = Path(path)
        self.faults = {}  # number -> what went wrong in running the exercise
        self.untouched = set()  # numbers of exercises that are as they were
        self.names = {"__name__": stage, "__file__": str(path)}
        before, exercises = cut(source)
        blank = {exercise.number: stub(exercise) for exercise in solutions(stage)}
        self.number_of = {}  # name -> the exercise that asks for it
        for number, text in blank.items():
            self.number_of.update(dict.fromkeys(names_in(text), number))
        if fault := self.run(before, 1):
            self.faults = dict.fromkeys(blank, f"above the first exercise: {fault}")
            return
        for exercise in exercises:
            n = exercise.number
            if without_layout(exercise.source) == without_layout(blank.get(n, "")):
                self.untouched.add(n)
            if fault := self.run(exercise.source, exercise.line):
                self.faults[n] = fault

    def run(self, source, line):
        """Run a part of the sheet that begins in this line; returns what went wrong, or None."""
        padded = "\n" * (line - 1) + source  # so that errors tell the line of the whole sheet
        try:
            exec(compile(padded, str(self.path), "exec"), self.names)
        except SyntaxError as error:
            return f"SyntaxError in line {error.lineno}: {error.msg}"
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}{line_in(error, self.path)}: {error}"
        return None

    @classmethod
    def read(cls, stage, directory):
        """The answers in a directory's sheet; one that is not there counts as untouched."""
        path = Path(directory) / f"{stage}.py"
        try:
            source = read_sheet(path) if path.is_file() else blank_sheet(stage)
        except ValueError as error:
            answers = cls(stage, blank_sheet(stage), path)
            answers.faults = dict.fromkeys(answers.untouched, str(error))
            answers.untouched = set()
            return answers
        return cls(stage, source, path)


def line_in(error, path):
    """Where in the file at `path` an error arose, as " in line 7", or "" if outside of it."""
    line, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f" in line {trace.tb_lineno}"
        trace = trace.tb_next
    return line


def wrong_answers(stage):
    """[(number, words its message must have, Answers)]: the typical wrong answers of a stage.

    They stand in wrong/stage01.py, each under a header "# %% 4. words of the message"; what is
    not in them is taken from the solutions.
    """
    path = HERE / "wrong" / f"{stage}.py"
    source = path.read_text(encoding="utf-8")
    solved = solution_path(stage).read_text(encoding="utf-8")
    matches = list(re.finditer(r"^# %% (\d+)\. (.+)$", source, re.M))
    ends = [match.start() for match in matches[1:]] + [len(source)]
    made = []
    for match, end in zip(matches, ends):
        answers = Answers(stage, solved, path)
        code = textwrap.dedent(source[match.end() : end])
        padded = "\n" * source.count("\n", 0, match.end()) + code
        exec(compile(padded, str(path), "exec"), answers.names)
        made.append((int(match[1]), match[2], answers))
    return made
