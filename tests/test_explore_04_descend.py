"""Page 4 in the browser: its walks and rates are those of stage04_optim's own optimizers."""

import math
import re

import numpy as np
import pytest

import stage04_optim as stage

KAPPAS = [1, 2, 3, 5, 7]  # the slider's first places, a key press from one to the next
ROSENBROCK = "Rosenbrock's valley"
PROVEN = {"SGD": "descent, best", "heavy ball": "heavy ball", "Nesterov": "Nesterov"}
OTHERS = ("AdaGrad", "RMSprop", "Adam", "Lion")


@pytest.fixture(scope="module")
def page():
    pytest.importorskip("marimo")
    pytest.importorskip("matplotlib")
    from explorer import page04_descend

    return page04_descend


def proven(name, kappa):
    return stage.proven_rates(1.0, kappa)[PROVEN[name]]


def place(name, kappa, start, steps, factor=1.0):
    """Where it stands after so many steps on the quadratic, at its proven rate times factor."""
    lr, beta, _ = proven(name, kappa)
    params = {"x": np.array(start)}
    walker = stage.SGD(params, factor * lr, beta, nesterov=name == "Nesterov")
    for _ in range(steps):
        walker.step({"x": stage.quadratic(params["x"], kappa)[1]})
    return params["x"]


def press(visit, slider, key):
    visit.window.get_by_role("slider", name=slider, exact=True).press(key)


def shows_place(visit, name, expected):
    visit.shows(f"x {name}", expected[0])
    visit.shows(f"y {name}", expected[1])


def shows_walks(visit, kappa, factor, start, steps):
    for name in PROVEN:
        lr, beta, rho = proven(name, kappa)
        visit.shows(f"rate {name}", factor * lr)
        visit.shows(f"momentum {name}", beta)
        visit.shows(f"proven {name}", rho)
        expected = place(name, kappa, start, steps, factor)
        shows_place(visit, name, expected)
        visit.shows(f"loss {name}", stage.quadratic(expected, kappa)[0])


def test_walks_and_rates_on_the_quadratic(visit):
    visit.open("descend")
    shows_walks(visit, 30, 1, (-2.0, 0.7), 30)
    visit.slide("κ of the quadratic", KAPPAS.index(7))
    visit.fill("start x, y", "1.5, -0.25")
    visit.slide("step", 7)
    press(visit, "rate ×", "End")
    shows_walks(visit, 7, 10, (1.5, -0.25), 7)
    # Descent with the best rate, ten times over, multiplies y by 1 - 10·2·7/8 = -16.5 in each step.
    visit.shows("measured SGD", 16.5, rel=1e-3)
    visit.shows("far SGD", math.hypot(*place("SGD", 7, (1.5, -0.25), 7, 10)))
    visit.says("SGD left the map at step 1,")  # to y = 4.125
    visit.says("still outside at step 7")
    visit.says("climbs")
    visit.says("slower than what is proven at × 1: SGD, heavy ball, Nesterov")


def test_nesterov_first_step_by_hand(visit):
    """With momentum 0.9 it is 1.9·η·g: the velocity is g, and θ′ = θ - η·(g + 0.9·g)."""
    visit.open("descend")
    visit.choose("surface", ROSENBROCK)
    visit.slide("step", 1)
    visit.says("No rate is proven for this valley")
    # At (-1.2, 1) the distance from the floor is 1 - 1.44 = -0.44: by Rosenbrock's formula
    g = np.array([-2 * 2.2 - 400 * -1.2 * -0.44, 200 * -0.44])
    visit.shows("momentum Nesterov", 0.9)
    rate = visit.number("rate Nesterov")
    shows_place(visit, "Nesterov", np.array([-1.2, 1.0]) - 1.9 * rate * g)
    shows_place(visit, "heavy ball", np.array([-1.2, 1.0]) - visit.number("rate heavy ball") * g)
    # and on the quadratic, from (-2, 0.7), where the momentum is (√κ - 1)/(√κ + 1)
    visit.choose("surface", "quadratic ½(x² + κy²)")
    press(visit, "κ of the quadratic", "Home")
    press(visit, "κ of the quadratic", "ArrowRight")
    beta = (math.sqrt(2) - 1) / (math.sqrt(2) + 1)
    shows_place(visit, "Nesterov", np.array([-2, 0.7]) - (1 + beta) / 2 * np.array([-2, 1.4]))


def test_every_optimizer_overflow_and_nobody(visit, page):
    visit.open("descend")
    visit.choose("surface", ROSENBROCK)
    for name in ("AdaGrad", "RMSprop", "Lion"):
        visit.tick(name)
    visit.slide("step", 3)
    for name in OTHERS:
        params = {"x": np.array([-1.2, 1.0])}
        walker = getattr(stage, name)(params, page.raced_rate("Rosenbrock", name))
        for _ in range(3):
            walker.step({"x": stage.rosenbrock(params["x"])[1]})
        shows_place(visit, name, params["x"])
        visit.shows(f"loss {name}", stage.rosenbrock(params["x"])[0])
    press(visit, "rate ×", "End")
    press(visit, "step", "End")
    visit.shows("far SGD", math.inf)
    visit.shows("loss SGD", math.inf)
    params, ended = {"x": np.array([-1.2, 1.0])}, 0
    walker = stage.SGD(params, 10 * page.raced_rate("Rosenbrock", "SGD"))
    with np.errstate(all="ignore"):
        while np.isfinite(params["x"]).all():
            walker.step({"x": stage.rosenbrock(params["x"])[1]})
            ended += 1
    visit.says(f"at step {ended}, where its walk ends")
    for name in page.STYLES:
        visit.tick(name)
    visit.refuses("Nobody walks")


def test_the_start_by_click_and_by_hand(visit):
    visit.open("descend")
    field = visit.window.get_by_label("start x, y", exact=True)
    visit.fill("start x, y", "-1, 1.5")
    visit.slide("step", 0)
    visit.shows("y SGD", 1.5)
    marker = visit.window.locator('figure[data-fills] [id="now-SGD"]')
    box = marker.bounding_box()  # the place (-1, 1.5) as it was drawn
    visit.fill("start x, y", "0.5, -0.5")
    visit.shows("x SGD", 0.5)
    visit.window.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    visit.until(lambda: visit.number("y SGD") > 0, "the start clicked")
    clicked = [float(part) for part in field.input_value().split(",")]
    assert clicked == pytest.approx([-1, 1.5], abs=0.03)
    shows_place(visit, "SGD", clicked)
    visit.fill("start x, y", "0, 0")
    visit.says("You start at the minimum")
    for text, said in (
        ("", "expected two numbers"),
        ("1; 2", "'1; 2'; expected two numbers"),
        ("1, two", "expected two numbers"),
        ("nan, 0", "outside the map"),
        ("7, 0", "The start (7, 0) lies outside the map"),
    ):
        visit.fill("start x, y", text)
        visit.refuses(said)


def test_rates_measured_as_the_stage_reports_them(page, capsys):
    stage.report_rates((100.0,))
    rows = capsys.readouterr().out.splitlines()
    for name, title in page.PROVEN.items():
        make, lr, _ = page.settings("quadratic", 100)[name]
        rho, steps = page.measured_rate(page.landscape("quadratic", 100), (1.0, 1.0), make, lr)
        (row,) = [row for row in rows if row.startswith("  100") and f" {title} " in row]
        assert row.split()[-2:] == [f"{rho:.5f}", f"{steps:,}"]
    make = page.settings("quadratic", 1000)["SGD"][0]
    assert page.measured_rate(page.landscape("quadratic", 1000), (1, 1), make, 0.002)[1] is None
    arrived = page.settings("quadratic", 1)  # κ = 1: one step, whichever method
    for make, lr, _ in [arrived[name] for name in page.PROVEN]:
        assert page.measured_rate(page.landscape("quadratic", 1), (1, 1), make, lr) == (0, 1)


def test_what_the_hint_says_is_true(page):
    def walk(name, kappa, factor=1):
        make, lr, _ = page.settings("quadratic", kappa)[name]
        return page.path(page.landscape("quadratic", kappa), (-2, 0.7), make, factor * lr)

    times = []
    for kappa in (30, 1000):
        at = page.landscape("quadratic", kappa)
        rate = {name: page.settings("quadratic", kappa)[name][:2] for name in page.PROVEN}
        rho = {name: page.measured_rate(at, (-2, 0.7), *rate[name])[0] for name in rate}
        times.append(math.log(rho["heavy ball"]) / math.log(rho["SGD"]))
        make, lr = rate["SGD"]
        assert rho["SGD"] < page.measured_rate(at, (-2, 0.7), make, 0.9 * lr)[0]
        assert walk("SGD", kappa, 1.1)[1][-1] > walk("SGD", kappa, 1.1)[1][0]
    assert times[1] > times[0] > 1
    for name in OTHERS:
        assert walk(name, 30)[0] == pytest.approx(walk(name, 1000)[0], abs=1e-4)


def test_the_raced_rate_is_the_best_that_stays_on_the_map(page):
    for name in ("SGD", "Lion"):
        lows = {}
        for k in range(-10, 3):
            params = {"x": np.array([-1.2, 1.0])}
            walker = stage.METHODS[name][0](params, float(10 ** (k / 3)))[0]
            places = [params["x"].copy()]
            with np.errstate(all="ignore"):
                for _ in range(100):
                    walker.step({"x": stage.rosenbrock(params["x"])[1]})
                    places.append(params["x"].copy())
            x, y = np.array(places).T
            if (np.abs(x) <= 2.4).all() and (y >= -1.4).all() and (y <= 2.2).all():
                lows[10 ** (k / 3)] = stage.rosenbrock(params["x"])[0]
        assert page.raced_rate("Rosenbrock", name) == pytest.approx(min(lows, key=lows.get))


def test_labels_keep_apart(page):
    taken = []
    places = [page.free_place(0.0, 0.0, 0.9, 0.17, taken) for _ in range(7)]
    ys = sorted(y for _, y in places)
    assert min(b - a for a, b in zip(ys, ys[1:])) >= 0.17 - 1e-12
    assert page.free_place(2.3, 2.2, 0.9, 0.17, [])[0] + 0.9 < 2.3  # to the left, and inside
    apart = page.spread({"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.01}, 0.05)
    assert apart == pytest.approx({"c": 0.0, "d": 0.05, "a": 0.95, "b": 1.0})


def test_the_pictures_show_the_walks(page):
    """Lines, dots and markers stand where the axes' limits say, by the rule of three."""
    make, lr, _ = page.settings("quadratic", 30)["SGD"]
    walks = {"SGD": page.path(page.landscape("quadratic", 30), (-2, 0.7), make, lr)}
    places, losses = walks["SGD"]

    def corners(figure, x, y):
        box, (left, right) = figure.axes[0].get_position(), figure.axes[0].get_xlim()
        wide, high = 72 * figure.get_size_inches()
        bottom, top = figure.axes[0].get_ylim()
        if figure.axes[0].get_yscale() == "log":
            y, bottom, top = np.log(y), math.log(bottom), math.log(top)
        across = box.x0 + box.width * (np.asarray(x) - left) / (right - left)
        up = box.y0 + box.height * (np.asarray(y) - bottom) / (top - bottom)
        return np.stack([wide * across, high * (1 - up)], axis=-1)

    for figure, draw, x, y, now in (
        (page.map_frame("quadratic", 30)[0], page.draw_map, *places[:31].T, 30),
        (page.loss_frame(-9, 3)[0], page.draw_losses, np.arange(201), losses, 30),
    ):
        svg = draw(figure, walks, 30)
        line = re.findall(r'points="([^"]+)"', svg)[
            -1
        ]  # in the second, a line at the step is first
        points = [[float(n) for n in pair.split(",")] for pair in line.split()]
        assert np.array(points) == pytest.approx(corners(figure, x, y), abs=0.06)
        (marker,) = re.findall(r"translate\((\S+) (\S+)\)", svg)
        assert [float(n) for n in marker] == pytest.approx(
            corners(figure, x[now], y[now]), abs=0.01
        )
    low, high = page.loss_range(walks)
    assert 10.0**low <= losses[losses >= 1e-12].min() < 10.0 ** (low + 1)
    assert 10.0 ** (high - 1) < 100 * losses[0] <= 10.0**high
