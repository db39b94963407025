"""How an answer is judged: what is wrong with it is said, never what would be right.

Every function here ends quietly if the answer is right. A wrong one fails with a sentence that
names the mistake where it is a known one; an answer that is not there yet is skipped.
"""

import hashlib
import math
import numbers as numbers_abc

import numpy as np
import pytest
import sheets


def wrong(message):
    """End the check: the answer is wrong, and this is why, in one line."""
    pytest.fail(" ".join(message.split()), pytrace=False)


def unfit(error):
    """End the check: it could do nothing with the answer, which is of another kind than asked."""
    line = str(error).strip().partition("\n")[0]
    wrong(
        "the answer is of another kind than the text or the docstring asks for; the check ended"
        f" with {type(error).__name__}: {line}"
    )


def open_exercise(message):
    """End the check: there is no answer yet."""
    pytest.skip(message)


def answer(answers, name):
    """The value or function of this name in a sheet."""
    number = answers.number_of[name]
    if number in answers.untouched:
        open_exercise("untouched")
    if number in answers.faults:
        wrong(answers.faults[number])
    if name not in answers.names:
        n = int(answers.stage[5:]) if answers.stage != "capstone" else "capstone"
        wrong(f"{answers.path.name} has no {name}; --reset {n}.{number} brings the exercise back")
    found = answers.names[name]
    if found is None:
        open_exercise(f"{name} is None")
    return found


def call(answers, name, *args, **kwargs):
    """What the learner's function returns. Arrays are given as copies: it may work in place."""
    args = [arg.copy() if isinstance(arg, np.ndarray) else arg for arg in args]
    return lend(answers, name, *args, **kwargs)


def lend(answers, name, *args, **kwargs):
    """What the learner's function returns, which is not None; an error is told with its line."""
    function = answer(answers, name)
    if not callable(function):
        wrong(f"{name} is {function!r:.60}; expected a function")
    found, written, told = None, True, f"{name} returned None; does it end with `return ...`?"
    try:
        found = function(*args, **kwargs)
    except NotImplementedError:
        written = False
    except (Exception, SystemExit) as error:
        where = sheets.line_in(error, answers.path)
        told = f"{name} raised {type(error).__name__}{where}: {error}"
    if not written:
        open_exercise("not written yet")
    if found is None:
        wrong(told)
    return found


# What a wrong number or array may be, compared with the right one. n: how many things were added or
# averaged; unit: "bits" or "nats", if it has one of them. Each entry: the sentence, and what would
# have been found then.
def usual_mistakes(expected, n=None, unit=None):
    """[(sentence, value that this mistake gives)]."""
    mistakes = [
        ("the sign is the other way round", -expected),
        ("this is twice what it should be: was something counted twice?", 2 * expected),
        ("this is half of what it should be: a factor of 2 is lost", expected / 2),
        ("this is 100 times as much: a share was asked for, not a percentage", 100 * expected),
    ]
    if unit == "bits":
        mistakes.append(("this is in nats; bits were asked for", expected * math.log(2)))
        mistakes.append(("that is the logarithm to base 10", expected * math.log10(2)))
    elif unit == "nats":
        mistakes.append(("this is in bits; nats were asked for", expected / math.log(2)))
        mistakes.append(("that is the logarithm to base 10", expected / math.log(10)))
    if n is not None and n > 2:
        mistakes.append(("this is the sum; the mean was asked for", expected * n))
        mistakes.append(("this is the mean; the sum was asked for", expected / n))
        mistakes.append(("this was divided by n - 1 where it should be n", expected * n / (n - 1)))
    return mistakes


def same(found, expected, tolerance):
    """Whether every entry is within the tolerance, relative to the largest one."""
    if np.shape(found) != np.shape(expected):
        return False
    scale = max(np.max(np.abs(expected), initial=0), 1e-300)
    return bool(np.all(np.abs(np.asarray(found) - expected) <= tolerance * scale))


def explain(what, found, expected, tolerance, n=None, mistakes=(), unit=None):
    """Fail with the sentence of the first mistake that gives what was found."""
    for sentence, value in [*dict(mistakes).items(), *usual_mistakes(expected, n, unit)]:
        if same(found, value, tolerance) and not same(value, expected, tolerance):
            wrong(f"{what}: {sentence}")
    if np.any(found) and same(found, np.trunc(expected), 1e-12):
        wrong(f"{what}: cut to whole numbers; is there // or int(), or an array of integers?")
    if same(found, expected, max(2 * tolerance, 0.02)):
        wrong(f"{what}: close, but not exact enough")
    wrong(f"{what}: not right yet")


def one_number(answers, name):
    """ANSWER `name` as a float; a fraction or an array without axes is a number, too."""
    found = answer(answers, name)
    plain = found.item() if isinstance(found, np.ndarray) and found.ndim == 0 else found
    try:
        real = isinstance(plain, numbers_abc.Real) and not isinstance(plain, bool)
        value = float(plain) if real else math.nan
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        wrong(f"{name} is {found!r:.60}; expected a finite number")
    return value


def number(answers, name, expected, digits=3, n=None, mistakes=(), unit=None):
    """ANSWER `name` is `expected`, to so many significant digits (half a unit of the last one)."""
    found = one_number(answers, name)
    expected, tolerance = float(expected), 0.6 * 10.0 ** (1 - digits)
    if same(found, expected, tolerance):
        return
    explain(name, found, expected, tolerance, n, mistakes, unit)


def seal(stage, number, choice):
    """A choice as it stands in a check: whoever reads by accident learns nothing."""
    return hashlib.sha256(f"{stage} {number} {choice}".encode()).hexdigest()[:12]


def choice(answers, name, number, sealed, remarks):
    """ANSWER `name` is the letter that was sealed; remarks {letter: what speaks against it}."""
    found = answer(answers, name)
    letters = sorted(remarks)
    if not isinstance(found, str) or found.strip().lower() not in letters:
        wrong(f"{name} is {found!r:.60}; expected one of the letters {', '.join(letters)}")
    letter = found.strip().lower()
    if seal(answers.stage, number, letter) != sealed:
        wrong(f"{name} = {letter!r}: {remarks[letter]}")


def numeric(what, found, expected="numbers"):
    """found as an array; anything else than numbers is told as what it is."""
    try:
        array = np.asarray(found)
        kind = array.dtype.kind
    except ValueError:  # lists of several lengths
        kind = "O"
    if kind == "c":
        wrong(f"{what} has complex entries; real ones were asked for (what is in .imag?)")
    if kind not in "iuf":
        wrong(f"{what} is {found!r:.60}; expected {expected}")
    return array


def array(what, found, expected, tolerance=1e-9, n=None, mistakes=()):
    """found has the shape and the entries of expected; shapes and transposes are told."""
    expected = np.asarray(expected)
    found = numeric(what, found)
    if found.dtype.kind == "f" and found.dtype.itemsize < 8:  # right, in float32
        tolerance = max(tolerance, 1e-5)
    if found.shape != expected.shape:
        if found.ndim == 2 and found.T.shape == expected.shape:
            if same(found.T, expected, tolerance):
                wrong(f"{what}: the right entries, but transposed")
        wrong(f"{what} has the shape {found.shape}; expected {expected.shape}")
    if not np.all(np.isfinite(found)):
        wrong(f"{what} has an entry that is not finite")
    if same(found, expected, tolerance):
        return
    if found.ndim == 2 and same(found.T, expected, tolerance):
        wrong(f"{what}: the right entries, but transposed")
    explain(what, found, expected, tolerance, n, mistakes)


def numbers(answers, name, n):
    """ANSWER `name`, which must be a list (tuple, array) of n numbers."""
    found = numeric(name, answer(answers, name))
    if found.ndim != 1:
        wrong(f"{name} is {found.tolist()!r:.60}; expected a list of {n} numbers")
    if len(found) != n:
        wrong(f"{name} has {len(found)} entries; expected {n}")
    return found


def slopes(f, x, h=1e-5):
    """The gradient of f() in the float64 array x, by central differences."""
    slope = np.empty_like(x)
    for i in np.ndindex(x.shape):
        old = x[i]
        x[i] = old + h
        up = f()
        x[i] = old - h
        down = f()
        x[i] = old
        slope[i] = (up - down) / (2 * h)
    return slope


def gradient(what, f, x, found, tolerance=1e-6):
    """found is the gradient of f() in the float64 array x, by central differences."""
    array(what, found, slopes(f, x), max(tolerance, 1e-7))


def entries(what, found, names, expected, digits=3, mistakes=None):
    """found is a list of as many numbers as there are names; the message names the wrong one.

    mistakes: {name: {sentence: value that this mistake gives}}.
    """
    wanted = f"{len(names)} numbers: {', '.join(names)}"
    values = numeric(what, found, wanted)
    if values.shape != (len(names),) or not np.all(np.isfinite(values)):
        wrong(f"{what} is {found!r:.60}; expected {wanted}")
    tolerance = 0.6 * 10.0 ** (1 - digits)
    for name, value, right in zip(names, values.astype(np.float64), expected):
        if not same(value, float(right), tolerance):
            known = (mistakes or {}).get(name, {})
            explain(f"{what}, {name}", value, float(right), tolerance, mistakes=known)


def measured(answers, name, expected, tolerance, mistakes=(), unit=None):
    """ANSWER `name` was measured, with chance in it: expected, give or take this share of it."""
    found = one_number(answers, name)
    if same(found, expected, tolerance):
        return
    for sentence, value in [*dict(mistakes).items(), *usual_mistakes(expected, unit=unit)]:
        if same(found, value, tolerance) and not same(value, expected, tolerance):
            wrong(f"{name}: {sentence}")
    off = "more" if found > expected else "less"
    wrong(f"{name}: {off} than is found here, and by more than chance makes: the same text, sizes,"
          " steps and seed?")  # fmt: skip
