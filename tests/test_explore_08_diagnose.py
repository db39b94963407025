"""Page 8 in the browser: what it shows of a run is what stage08_dynamics says of the same run."""

import importlib
import json
import math
import re

import numpy as np
import pytest

import stage08_dynamics as stage

SEED = 0  # of the clinic's runs on the page


@pytest.fixture(scope="module")
def page():
    pytest.importorskip("marimo")
    pytest.importorskip("matplotlib")
    return importlib.import_module("explorer.page08_diagnose")


@pytest.fixture
def quiz(visit, kept):
    """(visit, kinds of the runs in order, {kind: History of the healthy twin}), all trained."""
    visit.open("diagnose")
    visit.until(lambda: visit.number("loss_broken"), "the trained runs", patience=120)
    (path,) = kept.glob("clinic-fast-*.npz")
    twins = {}
    with np.load(path) as arrays:
        for name in arrays:
            state, kind = name.split(": ", 1)
            if state == "healthy":
                twins[kind] = stage.History(**json.loads(arrays[name].tobytes()))
    return visit, list(twins), twins


def middle(history):
    """The numbers of the signals that are medians over steps or probes."""
    probes = history.probes
    return {
        "gradient: norm": np.median(history.norms),
        "steps: length": np.median(history.ratios),
        "steps: cosine with downhill": np.median(history.cosines),
        "steps: cosine with the way to 0": np.median(history.shrinks),
        "steps: learning rate": np.median(history.lr),
        "loss: use of the inputs": np.median([p["mixed"] - p["train"] for p in probes]),
        "loss: held-out minus training": np.median([p["held_out"] - p["train"] for p in probes]),
    }


def test_the_signals_of_each_run(quiz):
    visit, kinds, twins = quiz
    for number in (2, 3):  # each step of the slider draws two pictures
        kind = kinds[number - 1]
        visit.slide("run", number)
        broken, healthy = stage.clinic_run(kind, SEED), twins[kind]
        n = len(broken.losses) // 10
        visit.shows("loss_broken", np.mean(broken.losses[-n:]))
        visit.shows("loss_healthy", np.mean(healthy.losses[-n:]))
        signal = list(middle(broken))[number % 7]
        visit.choose("signal", signal)
        visit.shows("signal_broken", middle(broken)[signal])
        visit.shows("signal_healthy", middle(healthy)[signal])
    for signal, expected in middle(broken).items():
        visit.choose("signal", signal)
        visit.shows("signal_broken", expected)


def test_signals_of_layers_arrays_and_inputs(quiz):
    visit, kinds, twins = quiz
    kind = "one layer frozen"
    visit.slide("run", kinds.index(kind) + 1)
    broken, healthy = stage.clinic_run(kind, SEED), twins[kind]
    (still,) = [name for name, ratios in broken.arrays.items() if not any(ratios)]
    visit.choose("signal", "steps: length by array")
    visit.says(f"furthest apart at “{still}”")
    visit.shows("signal_broken", 0)
    visit.shows("signal_healthy", np.median(healthy.arrays[still]))
    for signal, read in {
        "data: what one input tells": lambda h: h.audit["determined"],
        "data: surprise": lambda h: [h.audit["surprise"], h.audit["foreign"]],
        "data: skip": lambda h: [h.audit["skip"]],
        "data: shared rows": lambda h: [h.audit["shared"] - h.audit["natural"]],
        "units: difference": lambda h: list(h.probes[-1]["spread"].values()),
        "units: dead": lambda h: np.max([list(p["dead"].values()) for p in h.probes], 0),
        "units: saturated": lambda h: np.max([list(p["saturated"].values()) for p in h.probes], 0),
        "loss: at the start": lambda h: [h.losses[0], h.probes[0]["train"]],
    }.items():
        visit.choose("signal", signal)
        visit.says(f"{signal}.")
        pairs = list(zip(read(broken), read(healthy)))
        furthest = max(abs(a - b) for a, b in pairs)
        shown = visit.number("signal_broken"), visit.number("signal_healthy")
        assert shown in pairs and abs(shown[0] - shown[1]) == pytest.approx(furthest)
        assert ("Both runs are the same here" in visit.text()) == (furthest == 0)
    visit.choose("signal", "gradient: check of slopes")
    errors = [np.median([p["errors"][k] for p in broken.probes]) for k in broken.arrays]
    visit.until(lambda: visit.number("signal_broken") in errors, "the error of a slope")
    visit.choose("signal", "gradient: reach")
    reach = [p["reach"] for p in broken.probes if "reach" in p]
    if reach:
        visit.shows("signal_broken", np.median(reach))
    else:
        visit.says("takes two layers or more")


def test_a_guess_and_the_evidence(quiz, page):
    visit, kinds, twins = quiz
    visit.press("look at the evidence")
    visit.refuses("There is no guess yet")
    right = tried = 0
    for number, kind in enumerate(kinds[:3], 1):
        visit.slide("run", number)
        visit.says(f"The loss of run {number},")
        assert kind not in visit.text() and "finding" not in visit.text()
        truths = (stage.FIRST | stage.SECOND)[kind][0]
        guess = "uphill" if number % 2 else (*truths, "none of these")[0]
        label = "none of these" if guess == "none of these" else f"{guess}: {page.MEANING[guess]}"
        visit.choose("your guess", label)
        visit.press("look at the evidence")
        right += number % 2 == 0
        tried += 1
        visit.shows("tried", tried)
        visit.shows("right", right)
        visit.says("Right: the cause is" if number % 2 == 0 else "No, it is not uphill.")
        visit.says(f"in the clinic this run is called “{kind}”")
        found = stage.diagnose(stage.clinic_run(kind, SEED))
        visit.says(f"its first finding is “{found[0].name}”")
        for finding in found:
            visit.says(f"{finding.name}: {finding.evidence}. What to do: {finding.remedy}.")
        visit.says(f"In the healthy run: {stage.diagnose(twins[kind])[0].name}.")
        assert stage.diagnose(twins[kind])[0].name == stage.NOTHING
    # the first guess counts
    visit.choose("your guess", f"uphill: {page.MEANING['uphill']}")
    visit.press("look at the evidence")
    visit.slide("run", 1)
    visit.says(f"in the clinic this run is called “{kinds[0]}”")
    assert (visit.number("right"), visit.number("tried")) == (right, tried)


def test_which_signal_stands_out(quiz):
    visit, kinds, twins = quiz
    visit.choose("your guess", "none of these")
    visit.press("look at the evidence")
    visit.says("Which signals stand out")
    shown = {label.replace("\xa0", " "): times for label, times in visit.bars("times").items()}

    def apart(a, b):
        return np.abs(np.log10(a.norms) - np.log10(b.norms)).mean()

    here = apart(stage.clinic_run(kinds[0], SEED), twins[kinds[0]])
    usual = np.median([apart(twins[kind], twins[kinds[0]]) for kind in kinds[1:]])
    assert shown["gradient: norm"] == pytest.approx(here / usual)
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    first = next(iter(shown))
    assert f"“{first}” differs most: it lies {shown[first]:,.1f} times" in visit.text()


# ---- helpers, without a browser


def test_the_healthy_twin_is_the_same_patient(page):
    broken = stage.clinic_run("loss divided by 8", SEED, steps=20)
    twin = page.healthy_twin("loss divided by 8", 20)
    assert twin.losses == [8 * loss for loss in broken.losses]  # the same weights and batches
    assert twin.norms == broken.norms and twin.audit == broken.audit
    kept = page.unpack(page.pack(broken))
    assert kept.losses == broken.losses and stage.diagnose(kept) == stage.diagnose(broken)


def test_settings_that_are_the_disease_are_cured(page):
    slow = stage.clinic_run("rate too low", SEED, steps=5)
    twin = page.healthy_twin("rate too low", 5)
    assert max(twin.lr) > 100 * max(slow.lr)
    wide = page.healthy_twin("underfitting", 2)
    assert len(wide.audit["determined"]) == 6 and wide.probes[0]["spread"]["W1"] > 0.5


def test_every_cause_is_asked_for_and_explained(page):
    assert page.MEANING.keys() == stage.REMEDIES.keys()
    kinds = page.quiz()
    if page.keep.FAST:
        kinds = kinds[: page.FEW]
    else:
        truths = {cause for kind in kinds for cause in page.true_causes(kind)}
        assert truths == stage.REMEDIES.keys() and len(kinds) == len(set(kinds)) == 26
    assert page.is_right("loss divided by 8", "none of these")
    assert not page.is_right("loss divided by 8", "leak") and page.is_right("leak", "leak")
    assert page.is_right("rate kept at its peak", "rate too high")


def test_distances(page):
    far = page.distance("units: dead", {"h1": 0.1, "h2": 0.9}, {"h1": 0.0, "h2": 0.5, "h3": 9})
    assert far == (pytest.approx(0.4), "h2")
    far = page.distance("gradient: norm", {0: 1.0, 1: math.inf, 2: math.nan}, {0: 10.0, 1: 1.0})
    assert far == (pytest.approx((1 + 9) / 2), None)  # 9: the picture ends at 10⁹
    assert page.distance("gradient: reach", {}, {0: 1.0}) == (0.0, None)
    assert page.distance("units: dead", {"h1": math.nan}, {"h1": 0.0}) == (0.0, None)
    names = page.standing_out({"units: dead": 12.34, "data: skip": 2})
    assert re.search("“units: dead” differs most: it lies 12.3 times", names)
    assert page.standing_out({"units: dead": 0.5}).startswith("No signal is further")


def test_how_two_runs_compare(page):
    many = {"h1": 0.1, "h2": 0.9}
    assert page.compared("units: dead", many, dict(many)) == (
        "Both runs are the same here: “h1” is ", 0.1, 0.1
    )  # fmt: skip
    said = page.compared("units: dead", many, {"h1": 0.1, "h2": 0.9 + 1e-9})
    assert said[0] == "Both runs are nearly the same here: “h2” is "
    said = page.compared("units: dead", many, {"h1": 0.1, "h2": 0.2})
    assert said == ("Broken and healthy are furthest apart at “h2”: ", 0.9, 0.2)
    said = page.compared("steps: learning rate", {0: 1.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 3.0, 2: 4.0})
    assert said == ("Both runs are the same at every step: at the median it is ", 3, 3)
    said = page.compared("steps: learning rate", {0: 1.0, 1: 3.0}, {0: 2.0, 1: 4.0})
    assert said == ("At the median it is ", 2, 3)


def test_verdicts(page):
    found = [
        stage.Finding("leak", "input column 2 alone fixes 95% of y", "find it"),
        stage.Finding("underfitting", "level", "widen"),
    ]
    said = page.verdict("leak", "underfitting", found)
    assert said.startswith("No, it is not underfitting. The cause is leak;")
    assert "The stage finds underfitting, too, but as number 2." in said
    assert "The stage is right: its first finding is “leak”." in said
    said = page.verdict("overfitting", "overfitting", found)
    assert said.startswith("Right: the cause is overfitting;")
    assert said.endswith("The stage is not: its first finding is “leak”.")
