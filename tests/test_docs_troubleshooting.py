"""docs/troubleshooting.md and docs/choosing.md are held to the files that they speak of."""

import ast
import re

import pytest
from conftest import ROOT

FILES = {path.stem.split("_")[0]: path for path in sorted(ROOT.glob("stage*.py"))}
FILES["capstone"] = ROOT / "capstone_gpt.py"
TROUBLE, CHOOSING = ROOT / "docs/troubleshooting.md", ROOT / "docs/choosing.md"
DOCS = [TROUBLE, CHOOSING]
# A place is written [stage05 §2], [stage05 mistake 3] or [finding leak]. The last lines of a
# document say where each leads and what stands there, so that what has moved since is noticed.
PLACE = re.compile(r"\[((?:stage\d\d|capstone) (?:§|mistake )\d+|finding [a-z-][a-z -]*)\]")
WORDS = ("REMEDIES", "DOUBT", "NOTHING")  # where stage 8 keeps the names of its findings
WRITE = "write an entry for the symptom, or name it in a cause of one"
DEFINITION = re.compile(rf"^{PLACE.pattern}: .*\n?", re.M)


def sections(path):
    """{number: title} of the numbered sections."""
    found = re.findall(r"^# %% (\d+)\. (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {int(number): title for number, title in found}


def mistakes(path):
    """{number: text} of the common mistakes, which may be numbered or begin with a dash."""
    text = path.read_text(encoding="utf-8")
    block = re.search(r"^# %% Common mistakes\n(.*?)(?=^# %% )", text, re.M | re.S)[1]
    items = re.split(r"^#\s+(?:\d+\.|-) ", block, flags=re.M)[1:]
    return {n: " ".join(item.replace("#", " ").split()) for n, item in enumerate(items, 1)}


def findings():
    """{name: the function that returns it} of all that stage 8's diagnose can say.

    The causes are the keys of REMEDIES; each is returned where a line says found["its name"] = ...
    """
    tree = ast.parse(FILES["stage08"].read_text(encoding="utf-8"))
    constants, found = {}, {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in WORDS:
            constants[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
        for name in re.findall(r"found\['([^']+)'\] =", ast.unparse(node)):
            found[name] = node.name
    assert found.keys() == constants["REMEDIES"].keys(), "stage 8 has causes that it never finds"
    return found | {constants[word]: "diagnose" for word in ("DOUBT", "NOTHING")}


def what_stands_there():
    """{place: (file, what stands there in at most 60 characters)} of all places there are."""
    places = {}
    for name, path in FILES.items():
        places |= {f"{name} §{n}": (path.name, title) for n, title in sections(path).items()}
        for n, text in mistakes(path).items():
            words = re.match(r".{1,60}(?= |$)", text)[0]
            places[f"{name} mistake {n}"] = path.name, words.replace('"', "'")
    stage08 = FILES["stage08"].name
    return places | {f"finding {name}": (stage08, where) for name, where in findings().items()}


PLACES = what_stands_there()


def body(doc):
    """The document without the definitions at its end."""
    return DEFINITION.sub("", doc.read_text(encoding="utf-8")).rstrip() + "\n"


def used(doc):
    return set(PLACE.findall(body(doc)))


def definitions(doc):
    """The lines that should be the last of the document."""
    wanted = [item for item in PLACES.items() if item[0] in used(doc)]
    return [f'[{place}]: ../{file} "{words}"' for place, (file, words) in wanted]


def entries():
    """(symptom, text) of every entry of troubleshooting.md."""
    parts = re.split(r"^### (.+)\n", body(TROUBLE), flags=re.M)[1:]
    return [
        (title, re.split(r"^## ", text, flags=re.M)[0]) for title, text in zip(*[iter(parts)] * 2)
    ]


def items(text, bullet):
    """The items of a list: each bullet with the indented lines that continue it."""
    found = re.findall(rf"^{bullet} (.+(?:\n +\S.*)*)", text, re.M)
    return [" ".join(item.split()) for item in found]


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.stem)
def test_every_place_exists(doc):
    for place in sorted(used(doc)):
        if place.startswith("finding "):
            hint = "stage 8's diagnose has no finding of this name; it was renamed or removed"
        elif " mistake " in place:
            hint = "the file has fewer common mistakes; find the one that is meant"
        else:
            hint = "the file has no section of this number; find the one that is meant"
        if place not in PLACES:
            pytest.fail(f"{doc.name} refers to [{place}]: {hint}")


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.stem)
def test_the_last_lines_say_what_stands_at_every_place(doc):
    there = [match[0].rstrip() for match in DEFINITION.finditer(doc.read_text(encoding="utf-8"))]
    due = definitions(doc)
    if there != due:
        wrong = [line for line in there if line not in due]
        missing = [line for line in due if line not in there]
        pytest.fail(
            f"the last lines of {doc.name} do not say what stands in the files.\n"
            + "\n".join(["wrong:", *wrong, "missing:", *missing])
            + "\nIf a section or a mistake has moved, first correct its places in the text; then "
            "python tests/test_docs_troubleshooting.py writes the last lines anew."
        )


def test_every_common_mistake_has_a_symptom():
    found = {place for place in PLACES if " mistake " in place}
    assert len(found) >= 60, "the common mistakes could not be read from the files"
    lacking = [f"[{place}] ({PLACES[place][1]})" for place in sorted(found - used(TROUBLE))]
    assert not lacking, f"docs/troubleshooting.md lacks {lacking}: {WRITE}"


def test_every_finding_of_stage_8_has_a_symptom():
    found = {place for place in PLACES if place.startswith("finding ")}
    assert len(found) >= 20, "the findings of diagnose could not be read from stage 8"
    lacking = [f"[{place}]" for place in sorted(found - used(TROUBLE))]
    assert not lacking, f"docs/troubleshooting.md lacks {lacking}: {WRITE}"


def test_every_entry_tells_how_to_tell_and_every_cause_where():
    assert len(entries()) >= 50
    titles = [title for title, _ in entries()]
    assert len(set(titles)) == len(titles)
    for title, text in entries():
        how = re.search(r"^How to tell: \S", text, re.M)
        assert how, f"the entry {title!r} does not begin with How to tell: ..."
        causes = items(text, r"\d+\.")
        assert causes, f"the entry {title!r} has no numbered list of causes"
        for cause in causes:
            where = PLACE.search(cause) or "](" in cause
            assert where, f"in {title!r}, this cause does not say where it is explained: {cause}"


def test_no_advice_without_its_ground():
    """Each item of choosing.md names a place in the files, kept results or a paper and its year."""
    advice = items(body(CHOOSING), "-")
    assert len(advice) >= 40
    for item in advice:
        ground = PLACE.search(item) or "](../" in item or re.search(r"\((?:[^()]* )?\d{4}\)", item)
        assert ground, f"in docs/choosing.md this advice has no ground: {item}"


def test_copied_rows_are_still_in_the_results():
    """Below <!-- rows of FILE --> every number stands in FILE, in a row of the same name."""
    tables = re.findall(r"<!-- rows of (\S+) -->\n((?:\|.*\n)+)", body(CHOOSING))
    assert len(tables) >= 4
    for name, table in tables:
        rows = (ROOT / name).read_text(encoding="utf-8").splitlines()
        for row in table.splitlines()[2:]:
            label, *cells = (cell.strip(" *") for cell in row.strip("|").split("|"))
            theirs = [
                r for r in rows if [c.strip(" *") for c in r.strip("|").split("|")][0] == label
            ]
            numbers = {number for r in theirs for number in re.findall(r"\d[\d.,]*", r)}
            for cell in cells:
                for number in re.findall(r"\d[\d.,]*", cell):
                    hint = f"docs/choosing.md says {number} for {label!r}; {name} does not"
                    assert number in numbers, hint


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.stem)
def test_form(doc):
    text = doc.read_text(encoding="utf-8")
    long = [line for line in text.splitlines() if len(line) > 120]
    assert not long, f"longer than 120 characters: {long}"
    for target in re.findall(r"\]\((?!https?:|#)([^) #]+)", text):
        assert (doc.parent / target).exists(), f"{doc.name} links to {target}, which is not there"
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in anchors, f"{doc.name} links to #{anchor}, which is no heading"


if __name__ == "__main__":  # write the last lines of both documents anew
    for document in DOCS:
        document.write_text("\n".join([body(document), *definitions(document), ""]), "utf-8")
