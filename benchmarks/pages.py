"""How fast does a live page answer? Every control of every page, from the key press to the picture.

    python benchmarks/pages.py [--stages 1,2,...,11] [--rounds 2] [--fast]

Serves explore.py's pages, opens each in chromium and waits until its trainings are over. Then it
moves every slider by one step and back, takes the next choice of every list and the old one again,
types a letter into every field and erases it, and turns every switch twice, --rounds times each.
An answer takes from the key until the last change on the page, after which it stands still for a
second. The table shows medians; the promise is a fifth of a second. Buttons start something (a
training, a text) and are left out.

Needs marimo, matplotlib, playwright and a chromium (see .ci/run). --fast: one round of stage 1.
"""

import re
import statistics
import subprocess
import sys
import time
from functools import partial

import common

sys.path.insert(0, str(common.ROOT / "tests"))
import browser

from explorer.pages import PAGES

LIMIT = 200  # milliseconds

# The time of the last change of what the page shows. Controls live in shadow trees of their own,
# which the observer does not see: it is the answer that counts, not the slider's own motion.
WATCH = """
window.lastChange = 0;
new MutationObserver(() => { window.lastChange = performance.now(); }).observe(
    document.querySelector("#App"),
    {subtree: true, childList: true, characterData: true, attributes: true});
addEventListener("keydown", () => { window.pressed = performance.now(); }, true);
addEventListener("input", () => { window.pressed = performance.now(); }, true);
"""


def answer(window, act):
    """Milliseconds from what `act` does to the last change on the page, or None if none came."""
    window.evaluate("window.lastChange = 0")
    act()
    while True:
        window.wait_for_timeout(1000)
        now, last, pressed = window.evaluate(
            "[performance.now(), window.lastChange, window.pressed]"
        )
        if now - last >= 1000:
            return max(0.0, last - pressed) if last else None


def label(control):
    """What a control is called on the page."""
    return control.evaluate(
        "e => (e.labels?.[0] || e.getRootNode().getElementById(e.getAttribute('aria-labelledby')))"
        "?.innerText || e.getAttribute('aria-label') || '?'"
    )


def move_slider(slider, forth):
    """One step to the right, or to the left from the end; and back."""
    at_end = slider.get_attribute("aria-valuenow") == slider.get_attribute("aria-valuemax")
    slider.press("ArrowRight" if forth and not at_end else "ArrowLeft")


def choose(choice, forth):
    """The next of a list's options, the first after the last; and back."""
    options = choice.locator("option").count()
    step = 1 if forth else -1
    choice.select_option(index=(choice.evaluate("e => e.selectedIndex") + step) % options)


def write(field, forth):
    """One letter more at the end; and back."""
    field.press("End")
    field.press("a" if forth else "Backspace")


def turn(switch, forth):
    """On, or off; and back."""
    switch.press("Space")


KINDS = {
    "slider": move_slider,
    "textbox": write,
    "switch": turn,
    "checkbox": turn,
    "combobox": choose,
}


def serve():
    """(the process, its address) of explore.py."""
    command = [sys.executable, str(common.ROOT / "explore.py"), "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return server, re.search(r"http://\S+", server.stdout.readline()).group()


def trained(window):
    """Wait until nothing is trained any more; whether anything was."""
    bars = window.locator("progress")
    if not bars.count():
        return False
    while bars.count():
        window.wait_for_timeout(500)
    return True


def measure(window, rounds):
    """[(kind, label, milliseconds)] of all controls of the page that is open.

    Milliseconds are a sentence instead where nothing changed, or where a training began.
    """
    trained(window)
    window.wait_for_timeout(3000)
    window.evaluate(WATCH)
    rows = []
    for kind, move in KINDS.items():
        for control in window.locator("#App").get_by_role(kind).all():
            times, began = [], False
            for _ in range(rounds):
                for forth in (True, False):
                    times.append(answer(window, partial(move, control, forth)))
                    began |= trained(window)
            seen = [time for time in times if time is not None]
            found = statistics.median(seen) if seen else "nothing changed"
            rows.append((kind, label(control), "trains first" if began else found))
    return rows


def main():
    parser = common.make_parser(__doc__, rounds=2)
    everything = list(range(1, len(PAGES) + 1))
    parser.add_argument("--stages", type=common.whole_numbers, default=everything, help="[all]")
    args = common.parse(parser, {"stages": [1], "rounds": 1})
    if browser.lacking():
        sys.exit(f"The pages cannot be opened here: {browser.lacking()}.")
    from playwright.sync_api import sync_playwright

    record = {"machine": common.machine("marimo"), "rounds": args.rounds, "rows": []}
    with sync_playwright() as playwright:
        server, site = serve()
        chromium = playwright.chromium.launch(
            executable_path=browser.CHROMIUM, args=["--no-sandbox"]
        )
        try:
            for number in args.stages:
                page = PAGES[number - 1]
                window = chromium.new_page(viewport={"width": 1400, "height": 900})
                began = time.perf_counter()
                window.goto(f"{site}{page.name}/")
                window.wait_for_selector(".look h1")
                opened = time.perf_counter() - began
                print(f"\n{page.title}, open after {opened:.1f} s")
                for kind, name, found in measure(window, args.rounds):
                    told = found if isinstance(found, str) else f"{found:5.0f} ms"
                    print(f"  {kind:9} {name:40.40} {told}", flush=True)
                    record["rows"].append([number, kind, name, found])
                window.close()
        finally:
            server.terminate()
            server.wait()
    timed = [row for row in record["rows"] if not isinstance(row[3], str)]
    slow = [f"{row[2]} ({row[0]}): {row[3]:.0f} ms" for row in timed if row[3] > LIMIT]
    middle = statistics.median(row[3] for row in timed)
    slowest = max(row[3] for row in timed)
    print(f"\n{len(timed)} controls: median {middle:.0f} ms, slowest {slowest:.0f} ms")
    print("over a fifth of a second:", ", ".join(slow) or "none")
    common.keep(args, "pages", record)


if __name__ == "__main__":
    main()
