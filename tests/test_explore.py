"""explore.py itself: its words, its address, and every page at both widths, light and dark."""

import http.client
import importlib.util
import os
import re
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

import explore
from explorer.pages import PAGES

PYTHON = [sys.executable, str(ROOT / "explore.py"), "--no-browser"]


def test_the_sections_behind_each_page_exist():
    for page in PAGES:
        assert page.behind() and page.notebook.is_file(), page.name
        assert f'app_title="{page.number} {page.name}"' in page.notebook.read_text("utf-8")
        assert f"look.header({page.number})" in page.notebook.read_text("utf-8")
    assert [page.number for page in PAGES] == list(range(1, 12))


def test_each_page_is_one_sitting():
    for path in [ROOT / "explore.py", *(ROOT / "explorer").glob("*.py")]:
        lines = path.read_text("utf-8").count("\n")
        assert lines <= 750, f"{path.name} has {lines} lines"


def test_without_marimo_one_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert explore.main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "python -m pip install marimo matplotlib numpy" in error


@pytest.mark.parametrize("word, number", [("5", 5), ("attend", 5), ("capstone", 11), ("11", 11)])
def test_a_page_by_number_or_name(word, number):
    assert explore.page_of(word).number == number


@pytest.mark.parametrize(
    "words, part",
    [
        (["--stage", "12"], "'12' is no page; expected 1 to 11, or one of count, "),
        (["--stage", "0"], "'0' is no page"),
        (["--port", "65536"], "65536 is no port; expected 1 to 65535"),
        (["--port", "eighty"], "invalid int value: 'eighty'"),
    ],
)
def test_wrong_words_are_refused(words, part, monkeypatch, capsys):
    monkeypatch.setattr(explore, "missing", lambda: [])
    with pytest.raises(SystemExit) as stop:
        explore.main(words)
    assert stop.value.code == 2 and part in capsys.readouterr().err


def test_a_busy_port_is_passed_over_and_only_this_machine_is_answered():
    with explore.listen(18400) as first, explore.listen(first.getsockname()[1]) as second:
        assert second.getsockname()[1] > first.getsockname()[1]
        assert first.getsockname()[0] == second.getsockname()[0] == "127.0.0.1"


def test_no_free_port_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(explore, "missing", lambda: [])
    with explore.listen(65535):
        with pytest.raises(SystemExit) as stop:
            explore.main(["--port", "65535"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("error: no port from 65535 to 65535 is free\n")


def test_the_front_page_lists_all(visit):
    visit.window.goto(visit.site)
    for page in PAGES:
        link = visit.window.get_by_role("link", name=page.title, exact=True)
        assert link.get_attribute("href") == f"/{page.name}/"
        assert page.idea in visit.window.inner_text("body")
    visit.window.get_by_role("link", name=PAGES[0].title, exact=True).click()
    visit.window.wait_for_selector(".look h1")
    assert visit.window.inner_text(".look h1") == PAGES[0].title


def test_the_next_page_is_a_click_away(visit):
    visit.open("count")
    visit.window.get_by_role("link", name="2 differentiate", exact=True).click()
    visit.equals(lambda: visit.window.inner_text(".look h1"), PAGES[1].title, "the head")


def test_other_names_of_this_machine_are_refused(site):
    """So no page of the network can have its own name lead here (DNS rebinding)."""
    host = site.split("/")[2]
    for name, status in ((host, 200), ("elsewhere.example", 400)):
        connection = http.client.HTTPConnection(host)
        connection.request("GET", "/", headers={"Host": name})
        assert connection.getresponse().status == status
        connection.close()


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_a_page_is_as_wide_as_its_window_in_light_and_dark(page, visit):
    for width, scheme in ((400, "dark"), (1400, "light")):
        visit.window.set_viewport_size({"width": width, "height": 900})
        visit.window.emulate_media(color_scheme=scheme)
        if width == 400:
            visit.open(page.name)
            visit.window.wait_for_selector(".look.hint")
        wide = visit.window.evaluate("document.querySelector('#App').scrollWidth")
        assert wide <= width, f"{page.name} is {wide} pixels wide in a window of {width}"
        visit.window.wait_for_selector(f"body.{scheme}")
    assert "Behind this page: " + page.file in visit.text()


def test_ctrl_c_ends_it_quietly_and_at_once(visit, tmp_path):
    """Even while somebody is looking and something is in training."""
    environment = {**os.environ, "EXPLORE_KEPT": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*PYTHON, "--stage", "10"], env=environment, **pipes) as server:
        line = server.stdout.readline()
        assert line.startswith("The pages are at http://127.0.0.1:")
        window = visit.window.context.new_page()
        window.goto(line.split()[4])
        window.wait_for_selector("progress")
        server.send_signal(signal.SIGINT)
        rest, error = server.communicate(timeout=10)
    assert (server.returncode, rest, error) == (0, "", "")


def test_closed_output_does_not_stop_it(site, tmp_path):
    code = (
        "import explore, sys; sys.stdout = sys.stderr = None;"
        "explore.serve = lambda listener: sys.exit(7 * (sys.stdout is not None));"
        "explore.main(['--no-browser'])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 7


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_saving_a_page_in_the_editor_leaves_it_as_it_was(page):
    """A comment between cells, or behind a function's last line, would be lost."""
    pytest.importorskip("marimo")
    parse = pytest.importorskip("marimo._ast.parse")
    converters = pytest.importorskip("marimo._convert.converters")
    before = page.notebook.read_text("utf-8")
    notebook = parse.parse_notebook(before, filepath=str(page.notebook))
    after = converters.MarimoConvert.from_ir(notebook).to_py()
    version = re.compile('^__generated_with = ".*"$', re.M)
    assert version.sub("", after) == version.sub("", before)
