"""The live pages as a reader uses them, in a real browser: Debian's chromium, driven by playwright.

conftest.py makes `visit` of this: a window on the site that `python explore.py --fast` serves.
"""

import importlib.util
import shutil
import time

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, PROGRAMS)), None)
NEEDED = ("marimo", "matplotlib", "playwright")
PATIENCE = 60  # seconds; an answer takes a fifth of one, unless the machine is very busy


def lacking():
    """Why the pages cannot be driven here, or None."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return None if CHROMIUM else "no chromium on this machine"


class Visit:
    """One page in one browser window, used as a reader would: by labels."""

    def __init__(self, site, window):
        self.site = site
        self.window = window
        self.complaints = []
        window.set_default_timeout(1000 * PATIENCE)
        window.on("console", self._listen)
        window.on("pageerror", lambda error: self.complaints.append(str(error)))
        window.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        window.on("response", self._look)
        window.on("request", self._watch)

    def _listen(self, message):
        if message.type == "error":
            self.complaints.append(message.text)

    def _look(self, response):
        if response.status >= 400:
            self.complaints.append(f"{response.status}: {response.url}")

    def _watch(self, request):
        if not request.url.startswith(
            (self.site, self.site.replace("http", "ws"), "data:", "blob:")
        ):
            self.complaints.append(f"asked the network: {request.url}")

    def open(self, name):
        """Go to a page, and wait until its head is there."""
        self.window.goto(f"{self.site}{name}/")
        self.window.wait_for_selector(".look h1")
        return self

    def until(self, condition, what, patience=PATIENCE):
        """Wait until condition() is true; it may raise while the page is still changing."""
        return self.equals(lambda: bool(condition()), True, what, patience)

    def equals(self, read, expected, what, patience=PATIENCE):
        """Wait until read() == expected; it may raise while the page is still changing."""
        end = time.monotonic() + patience
        last = "nothing"
        while time.monotonic() < end:
            try:
                last = read()
                if last == expected:
                    return
            except Exception as error:  # the element is not there yet
                last = error
            self.window.wait_for_timeout(30)
        raise AssertionError(f"waited {patience} s for {what}: {expected!r}; it is {last!r}")

    # reading

    def number(self, name):
        """The whole value behind a shown number."""
        shown = self.window.locator(f'output[data-name="{name}"]')
        return float(shown.get_attribute("data-value", timeout=2000))

    def bars(self, name):
        """{label: value} of a table of bars."""
        cells = self.window.locator(f'table[data-name="{name}"] td[data-label]')
        pairs = cells.evaluate_all("all => all.map(e => [e.dataset.label, +e.dataset.value])")
        return dict(pairs)

    def matrix(self, name):
        """The numbers of a heat table, row by row."""
        rows = self.window.locator(f'table[data-name="{name}"] tbody tr')
        return rows.evaluate_all(
            "all => all.map(r => [...r.querySelectorAll('td')].map(e => +e.dataset.value))"
        )

    def pieces(self, name):
        """The pieces of a coloured text, and their titles."""
        spans = self.window.locator(f'.symbols[data-name="{name}"] span')
        return spans.evaluate_all("all => all.map(e => [e.textContent, e.title])")

    def text(self):
        """All that can be read on the page."""
        return self.window.locator("#App").inner_text()

    def problem(self):
        """The one sentence that says what is wrong with the input."""
        return self.window.locator(".problem").first.inner_text(timeout=2000)

    # what a reader can expect to see, a moment later

    def shows(self, name, value, rel=1e-9):
        """Wait until the number `name` is `value`."""
        value = float(value)
        near = pytest.approx(value, rel=rel, abs=1e-12, nan_ok=True)
        self.equals(lambda: self.number(name), near, name)

    def shows_bars(self, name, expected, rel=1e-9):
        """Wait until the bars are {label: value}."""
        near = pytest.approx({k: float(v) for k, v in expected.items()}, rel=rel, abs=1e-12)
        self.equals(lambda: self.bars(name), near, name)

    def shows_matrix(self, name, expected, rel=1e-9):
        """Wait until the heat table holds the matrix."""
        rows = [[float(v) for v in row] for row in expected]

        def same():
            shown = self.matrix(name)
            return [len(r) for r in shown] == [len(r) for r in rows] and all(
                a == pytest.approx(b, rel=rel, abs=1e-12) for a, b in zip(shown, rows)
            )

        self.until(same, f"matrix {name}")

    def says(self, part):
        """Wait until `part` can be read on the page."""
        self.until(lambda: part in self.text(), f"{part!r} in {self.text()!r}")

    def refuses(self, part):
        """Wait until one sentence says what is wrong, with `part` in it."""
        self.until(lambda: part in self.problem(), f"a problem with {part!r}")
        assert "\n" not in self.problem() and "Traceback" not in self.text()

    def trained(self, label):
        """Wait until the slider `label` is there, which comes when the training is over."""
        slider = self.window.get_by_role("slider", name=label, exact=True)
        slider.wait_for(timeout=3000 * PATIENCE)

    # using it

    def slide(self, label, value):
        """Move a slider to a value, by its keys: Home, then arrows."""
        slider = self.window.get_by_role("slider", name=label, exact=True)
        slider.press("Home")
        while (now := float(slider.get_attribute("aria-valuenow"))) < value - 1e-9:
            self.window.wait_for_timeout(20)  # of two that come at once, marimo may keep the older
            slider.press("ArrowRight")
            assert float(slider.get_attribute("aria-valuenow")) > now, f"{label} ends at {now}"
        assert now == pytest.approx(value), f"{label} stands at {now}, not at {value}"

    def fill(self, label, text):
        """Type into a field, in place of what stands there."""
        self.window.get_by_label(label, exact=True).fill(text)

    def choose(self, label, option):
        """Choose from a drop-down list."""
        self.window.get_by_label(label, exact=True).select_option(label=option)

    def press(self, label):
        """Press a button."""
        self.window.get_by_role("button", name=label, exact=True).click()

    def tick(self, label):
        """Turn a checkbox or switch over."""
        self.window.get_by_label(label, exact=True).click()
