"""The repository: what the corpora are, what README promises, what every file must look like."""

import ast
import importlib.util
import lzma
import re
import sys
from collections import Counter

import pytest
from conftest import ROOT

FILES = [*sorted(ROOT.glob("stage*.py")), ROOT / "capstone_gpt.py"]
HEADER = '# /// script\n# requires-python = ">=3.10"\n# dependencies = ["numpy>=2.0"]\n# ///\n"""'


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def stories():
    return [story.splitlines() for story in read("data/stories.txt").strip().split("\n\n")]


def test_stories_are_many_distinct_and_in_plain_words():
    text = read("data/stories.txt")
    assert text.isascii() and len(text) >= 200_000 and text.endswith("\n")
    assert len(stories()) >= 150 and all(len(story) >= 2 for story in stories())
    assert len({story[0] for story in stories()}) == len(stories())
    assert "\n\n\n" not in text and not re.search(r"[ \t]\n", text)
    assert 2000 <= len(set(re.findall(r"[a-z']+", text.lower()))) <= 4000


def test_stories_hardly_repeat_a_sentence_and_are_no_easier_to_pack_than_prose():
    found = Counter()
    for story in stories():
        sentences = re.split(r"(?<=[.!?])[\"']?\s+", " ".join(story[1:]))
        words = {tuple(re.findall(r"[a-z']+", sentence.lower())) for sentence in sentences}
        found.update(sentence for sentence in words if len(sentence) > 5)
    assert max(found.values()) <= 3
    raw = read("data/stories.txt").encode()
    assert len(raw) / len(lzma.compress(raw, preset=9)) < 4


def test_names():
    names = read("data/names.txt").splitlines()
    assert len(names) >= 2000 and len(set(names)) == len(names) and names != sorted(names)
    assert all(re.fullmatch("[a-z]+", name) for name in names)


def test_verses():
    text = read("data/verses.txt")
    poems = [poem.splitlines() for poem in text.strip().split("\n\n")]
    assert len(text) >= 40_000 and text.isascii()
    assert all(5 <= len(poem) <= 25 for poem in poems)
    lines = Counter(line for poem in poems for line in poem[1:] if len(line.split()) > 5)
    assert max(lines.values()) == 1


def test_the_house_has_its_eleven_files():
    names = "markov autograd nlm optim attention transformer bpe dynamics lora dpo".split()
    expected = [f"stage{i + 1:02d}_{name}.py" for i, name in enumerate(names)] + ["capstone_gpt.py"]
    assert [path.name for path in FILES] == expected


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_keeps_the_shape_of_the_house(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith(HEADER)
    titles = re.findall(r"^# %% (.+)$", text, re.M)
    assert titles[-3:] == ["Common mistakes", "Exercises", "Where this leads"]
    numbers = [int(match[1]) for title in titles if (match := re.match(r"(\d+)\. ", title))]
    assert numbers == list(range(1, len(numbers) + 1)) and numbers
    exercises = re.split(r"^# %% (?:Exercises|Where this leads)$", text, flags=re.M)[1]
    found = [int(n) for n in re.findall(r"^#\s+(\d+)\. ", exercises, re.M)]
    assert found == list(range(1, len(found) + 1)) and found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_the_standard_library_and_numpy_are_imported(path):
    """But for mpi4py, which the capstone imports where several machines are asked for, and for the
    capstone itself, which the commands of stages 9 and 10 import when they are called."""
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def modules(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module.split(".")[0]

    house = {"numpy", *sys.stdlib_module_names} - {"pickle"}
    optional = {"capstone_gpt": {"mpi4py"}}
    optional |= dict.fromkeys(["stage09_lora", "stage10_dpo"], {"capstone_gpt"})
    assert set(modules(tree.body)) <= house
    assert set(modules(ast.walk(tree))) <= house | optional.get(path.stem, set())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_public_functions_are_documented_and_none_is_defined_twice(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    top = [node for node in tree.body if isinstance(node, kinds)]
    assert len({node.name for node in top}) == len(top)
    bare = [n.name for n in top if not n.name.startswith("_") and not ast.get_docstring(n)]
    assert not bare


def test_readme_prints_the_two_commands_and_knows_every_file():
    readme = read("README.md")
    commands = re.findall(r"^    (python -m pip install .*)$", readme, re.M)
    setup = "python -m pip install -r requirements.txt && "
    assert commands == [setup + "python capstone_gpt.py", setup + "python -m pytest"]
    assert all(f"`{path.name}`" in readme for path in FILES)
    assert len(re.findall(r"^(?:numpy|pytest)>=", read("requirements.txt"), re.M)) == 2


def test_the_ladder_picture_shows_the_ladder():
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "benchmarks" / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    assert len(pictures.read_ladder()) == 8
    assert read("docs/ladder.svg") == pictures.ladder(), "python benchmarks/pictures.py"


def test_every_link_of_the_pages_leads_to_a_file():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
