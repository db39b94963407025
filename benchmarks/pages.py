"""How fast does a live page answer? Every control of every page, from the key press to the picture.

    python benchmarks/pages.py [--stages 1,2,...,11] [--rounds 5] [--fast]

Serves explore.py's pages, opens each in chromium and waits until its trainings are over. Then it
moves every slider by one step, takes the next choice of every list, types a letter into every field
and turns every switch, --rounds times each, and takes the time until the page has stood still for
a second: that of the last change on it, less that of the key. The table shows medians; the promise
is a fifth of a second. Buttons start something (a training, a text) and are left out.

Needs marimo, matplotlib, playwright and a chromium (see .ci/run). --fast: one round of stage 1.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
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


def move_slider(slider):
    """One step to the right, or to the left from the end."""
    at_end = slider.get_attribute("aria-valuenow") == slider.get_attribute("aria-valuemax")
    slider.press("ArrowLeft" if at_end else "ArrowRight")


def choose_next(choice):
    """The next of a list's options, the first after the last."""
    options = choice.locator("option").count()
    choice.select_option(index=(choice.evaluate("e => e.selectedIndex") + 1) % options)


def type_letter(field):
    """One letter more at the end."""
    field.press("End")
    field.press("a")


def turn(switch):
    """On, or off."""
    switch.press("Space")


KINDS = {
    "slider": move_slider,
    "textbox": type_letter,
    "switch": turn,
    "checkbox": turn,
    "combobox": choose_next,
}


def serve(kept):
    """(the process, its address) of explore.py, its trainings kept in a folder."""
    command = [sys.executable, str(common.ROOT / "explore.py"), "--no-browser"]
    environment = {**os.environ, "EXPLORE_KEPT": kept}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    return server, re.search(r"http://\S+", server.stdout.readline()).group()


def measure(window, rounds):
    """[(kind, label, milliseconds)] of all controls of the page that is open."""
    while window.locator("progress").count():  # a training
        window.wait_for_timeout(500)
    window.wait_for_timeout(3000)
    window.evaluate(WATCH)
    rows = []
    for kind, move in KINDS.items():
        for control in window.locator("#App").get_by_role(kind).all():
            name = label(control)
            times = [answer(window, partial(move, control)) for _ in range(rounds)]
            seen = [time for time in times if time is not None]
            if kind == "textbox" and not seen:  # some wait for the enter key
                seen = [answer(window, partial(control.press, "Enter")) or 0.0]
            rows.append((kind, name, statistics.median(seen) if seen else None))
    return rows


def main():
    parser = common.make_parser(__doc__, rounds=5)
    everything = list(range(1, len(PAGES) + 1))
    parser.add_argument("--stages", type=common.whole_numbers, default=everything, help="[all]")
    args = common.parse(parser, {"stages": [1], "rounds": 1})
    if browser.lacking():
        sys.exit(f"The pages cannot be opened here: {browser.lacking()}.")
    from playwright.sync_api import sync_playwright

    record = {"machine": common.machine("marimo"), "rounds": args.rounds, "rows": []}
    with tempfile.TemporaryDirectory() as kept, sync_playwright() as playwright:
        server, site = serve(kept)
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
                for kind, name, milliseconds in measure(window, args.rounds):
                    told = "nothing changed" if milliseconds is None else f"{milliseconds:5.0f} ms"
                    print(f"  {kind:9} {name:40.40} {told}", flush=True)
                    record["rows"].append([number, kind, name, milliseconds])
                window.close()
        finally:
            server.terminate()
            server.wait()
    timed = [row for row in record["rows"] if row[3] is not None]
    slow = [f"{row[2]} ({row[0]}): {row[3]:.0f} ms" for row in timed if row[3] > LIMIT]
    middle = statistics.median(row[3] for row in timed)
    slowest = max(row[3] for row in timed)
    print(f"\n{len(timed)} controls: median {middle:.0f} ms, slowest {slowest:.0f} ms")
    print("over a fifth of a second:", ", ".join(slow) or "none")
    common.keep(args, "pages", record)


if __name__ == "__main__":
    main()
