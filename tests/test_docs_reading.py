"""docs/reading.md names every paper that a file cites, where it does; history.md no other paper."""

import functools
import io
import re
import tokenize
from collections import defaultdict
from typing import NamedTuple

import pytest
from conftest import ROOT

FILES = {path.stem.split("_")[0]: path for path in sorted(ROOT.glob("stage*.py"))}
FILES["capstone"] = ROOT / "capstone_gpt.py"
SHEETS = {path.stem: path for path in (ROOT / "exercises").glob("*.py") if path.stem in FILES}
READING, HISTORY = ROOT / "docs/reading.md", ROOT / "docs/history.md"

# Numbers that look like years, and years without a paper: the file, and some words around them.
NOT_CITED = {
    "stage02": ["ends at 1600", "with 1300 and"],
    "stage05": ["programs of 2014", "in 2017 the recurrence"],
    "capstone": ["until 2026"],
}
YEAR = re.compile(r"(?<![\w.,·^])(1[789]\d\d|20[0-3]\d)(?![\w·%]|[.,]\d)")
NAME = r"(?:[A-Z][\w-]+|bloc97|gpt-oss)"
# What may stand between the last name and the year: et al., a title, 's thesis, (GPT-2, ...
AUTHORS = re.compile(
    rf"({NAME}(?:(?:, (?:and|&) |,? and |,? & |, ){NAME})*)"
    r"(?:,? et al\.)?(?:'s \w+)?(?:, \"\")?,? ?\(?(?:[\w-]+, )?$"
)
NO_NAMES = {"In", "The", "By", "Since", "From", "Until", "And", "Of"}
IN_HISTORY = "[history](history.md)"
PLACE = re.compile(r'\[(stage\d\d|capstone)(?: ([^\]]+))?\]\(\.\./([\w/]+\.py)(?: "([^"]+)")?\)')


class Citation(NamedTuple):
    names: set  # of the authors right before the year; empty where they are not
    before: str  # the words before the year, where else a name may stand
    year: str
    words: str  # the citation with what is around it, for the reader of a message


class Entry(NamedTuple):
    key: str  # "Kneser, Ney 1995"
    names: set
    year: str
    places: set  # of (file, section), as ("stage01", "§6")
    text: str


@functools.cache
def sections(file):
    """{section: its comments and docstrings as one text}; "" is what stands before section 1."""
    found = prose(FILES[file])
    if file in SHEETS:  # the exercises themselves stand in exercises/, the file has their titles
        found["exercises"] = " ".join([found.get("exercises", ""), *prose(SHEETS[file]).values()])
    return found


def prose(path):
    """The same of one Python file."""
    text = path.read_text(encoding="utf-8")
    section, parts = "", defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if title := re.match(r"# %% (?:(\d+)\. )?(.+)$", token.string):
            section = f"§{title[1]}" if title[1] else title[2].lower()
        elif token.type == tokenize.COMMENT:
            parts[section].append(token.string.lstrip("#:").strip())
        elif token.type == tokenize.STRING and token.string.endswith('"""'):
            parts[section].append(token.string.split('"""')[1])
    return {section: " ".join(" ".join(lines).split()) for section, lines in parts.items()}


def citations(text):
    """Every year in the text that may be a paper's, with the authors before it."""
    text = re.sub(r'(?<!\w)"(?=\S)[^"]{3,160}(?<=\S)"(?!\w)', '""', text)  # titles
    end = 0
    for match in YEAR.finditer(text):
        found = AUTHORS.search(text[max(end, match.start() - 120) : match.start()])
        names = set(re.findall(NAME, found[1])) - NO_NAMES if found else set()
        before = "" if names else text[max(0, match.start() - 80) : match.start()]
        words = text[max(0, match.start() - 50) : match.end() + 15]
        yield Citation(names, before, match[1], words)
        end = match.end()


def entries():
    """The papers of reading.md: list items that begin with the authors and the year in bold."""
    items = re.split(r"\n(?=- |\n|#)", READING.read_text(encoding="utf-8"))
    found = []
    for item in items:
        if match := re.match(r"- \*\*(.+?) (\d{4})\*\*", " ".join(item.split())):
            names = set(re.findall(r"[\w-]{2,}", match[1])) - {"et", "al"}
            places = {(file, section) for file, section, *_ in PLACE.findall(item)}
            key = f"{match[1]} {match[2]}"
            found.append(Entry(key, names, match[2], places, " ".join(item.split())))
    return found


ENTRIES = entries()


def named(citation):
    """The entries that the citation may mean."""
    same_year = [entry for entry in ENTRIES if entry.year == citation.year]
    if citation.names:
        return [entry for entry in same_year if entry.names & citation.names]
    words = set(re.findall(r"[\w-]{3,}", citation.before))
    return [entry for entry in same_year if entry.names & words]


@functools.cache
def cited_places():
    """([{place} for every entry], {file: what no entry explains})."""
    places, unknown = [set() for _ in ENTRIES], defaultdict(list)
    for file in FILES:
        for section, text in sections(file).items():
            for citation in citations(text):
                if any(words in citation.words for words in NOT_CITED.get(file, [])):
                    continue
                candidates = [ENTRIES.index(entry) for entry in named(citation)]
                if len(candidates) > 1:  # as Liu et al. 2024, of whom there are two
                    candidates = [i for i in candidates if file in dict(ENTRIES[i].places)]
                for i in candidates:
                    places[i].add((file, section))
                if not candidates:
                    unknown[file].append((section, citation.words))
    return places, unknown


def shortest(places):
    """Without the docstring of a file that cites the paper in a section, too."""
    return {(f, s) for f, s in places if s or not any(g == f and t for g, t in places)}


def in_order(place):
    file, section = place
    return list(FILES).index(file), len(section), section  # §9 before §10


def home(file, section):
    """The path, from the root, of the file in which the section stands."""
    in_sheet = section == "exercises" and file in SHEETS
    return (SHEETS if in_sheet else FILES)[file].relative_to(ROOT).as_posix()


def written(places):
    ordered = sorted(places, key=in_order)
    links = [f"[{f} {s}".strip() + f"](../{home(f, s)})" for f, s in ordered]
    return "Cited in " + ", ".join(links) + "."


@pytest.mark.parametrize("file", FILES)
def test_every_paper_that_a_file_cites_is_in_reading(file):
    unknown = cited_places()[1][file]
    told = "\n".join(f"  {file} {section}: ... {words} ..." for section, words in unknown)
    assert not told, (
        f"docs/reading.md has no entry for these, with this author, year and file:\n{told}\n"
        "Check author, year and title, and add: - **Author, Author 2019**, *Title*. What it gave. "
        f"Cited in [{file} §..](../{FILES[file].name}).\n"
        "If it is no citation but a number, add it to NOT_CITED in tests/test_docs_reading.py."
    )


def test_every_entry_says_where_it_is_cited():
    wrong = []
    for entry, places in zip(ENTRIES, cited_places()[0]):
        if not places and IN_HISTORY not in entry.text:
            wrong.append(f"{entry.key} is cited nowhere: delete it")
        elif entry.places != shortest(places):
            there = written(shortest(places)) if places else "no longer cited in a file"
            wrong.append(f"{entry.key}: {there}")
    assert not wrong, "docs/reading.md, correct these entries:\n" + "\n".join(wrong)


def test_every_entry_has_a_title_and_says_what_the_paper_gave():
    form = "- **Author, Author 2019**, [*Title*](address). What it gave. Cited in ..."
    title = r"(?:\[\*[^*]+\*\]\(https?://\S+\)|\*[^*]+\*)"
    for entry in ENTRIES:
        start = re.match(rf"- \*\*[^*]+\*\*, {title}\. (.+)", entry.text)
        assert start, f"docs/reading.md, {entry.key}: write {form}"
        gave = re.sub(r"(?:Cited in|See) \[(?:stage|capstone|history).*", "", start[1]).strip()
        told = f"docs/reading.md, {entry.key}: what did it give? {gave!r}"
        assert len(gave.split()) >= 6 and gave[-1] in ".)", told
    assert len({entry.text for entry in ENTRIES}) == len(ENTRIES) >= 150


def history_citations():
    text = " ".join(HISTORY.read_text(encoding="utf-8").split())
    groups = re.findall(r"(?<!\])\(([^()]*\d{4}[^()]*)\)", text)
    return [citation for group in groups for citation in citations(group)]


def test_history_names_no_paper_that_reading_does_not():
    unknown = [c.words for c in history_citations() if not named(c)]
    assert not unknown, f"docs/history.md names papers that docs/reading.md lacks: {unknown}"


def test_what_reading_ascribes_to_history_is_there():
    told = [entry.key for c in history_citations() for entry in named(c)]
    only = [entry.key for entry in ENTRIES if IN_HISTORY in entry.text]
    assert len(only) >= 20
    missing = sorted(set(only) - set(told))
    assert not missing, f"docs/reading.md sends to docs/history.md, which does not cite: {missing}"


@pytest.mark.parametrize("path", [READING, HISTORY], ids=lambda path: path.stem)
def test_places_exist_and_lines_are_short(path):
    text = path.read_text(encoding="utf-8")
    long = [line for line in text.splitlines() if len(line) > 120]
    assert not long, f"docs/{path.name}: lines of more than 120 characters: {long}"
    for file, section, name, title in PLACE.findall(" ".join(text.split())):
        there = f"docs/{path.name}: [{file} {section}](../{name})"
        assert section in sections(file), f"{there}: there is no such section (any more)"
        # A stage whose exercises are moved to a sheet need not change its links on that day.
        assert name in {home(file, section), FILES[file].name}, (
            f"{there}: it is in {home(file, section)}"
        )
        if path == HISTORY and section:  # the title tells whether it is still the section meant
            lines = FILES[file].read_text(encoding="utf-8")
            now = re.search(rf"^# %% {section[1:]}\. (.+)$", lines, re.M)[1]
            assert title == now, f'{there}: is this the section meant? Then write "{now}"'
    links = re.findall(r"\]\(([^)\s]+)[ )]", text)
    for link in links:
        target, _, anchor = link.partition("#")
        if link.startswith("http"):
            continue
        there = path.parent / target if target else path
        assert there.exists(), f"docs/{path.name} links to {link}"
        titles = re.findall(r"^#+ (.+)$", there.read_text("utf-8"), re.M) if anchor else []
        slugs = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
        assert not anchor or anchor in slugs, f"docs/{path.name} links to {link}: no such heading"


@pytest.mark.parametrize("file", FILES)
def test_the_path_says_what_to_read_after_each_file(file):
    path = READING.read_text(encoding="utf-8").split("\n## ")[1]
    start = f"[{file}](../{FILES[file].name})"
    told = f"docs/reading.md, 'The path': an item '- **After {start}.** what, and why'"
    assert f"- **After {start}" in path, told


@pytest.mark.parametrize(
    "text, names, year",
    [
        ("as Vaswani et al. 2017 show", {"Vaswani"}, "2017"),
        ("(Hu et al. 2021; Li & Liang 2021)", {"Hu"}, "2021"),
        ('Witten, Bell, "The zero-frequency problem" (1991)', {"Witten", "Bell"}, "1991"),
        ("Tieleman and Hinton (2012), RMSprop", {"Tieleman", "Hinton"}, "2012"),
        ("Bahdanau, Cho & Bengio 2014", {"Bahdanau", "Cho", "Bengio"}, "2014"),
        ("Radford et al. (GPT-2, 2019)", {"Radford"}, "2019"),
        ("Linnainmaa's thesis (1970)", {"Linnainmaa"}, "1970"),
        ("(Press, Wolf, 2017)", {"Press", "Wolf"}, "2017"),
        ("bloc97 2023, in a forum", {"bloc97"}, "2023"),
    ],
)
def test_citations_are_found_as_the_files_write_them(text, names, year):
    first = next(citations(text))
    assert (first.names, first.year) == (names, year)


def test_numbers_are_not_taken_for_citations():
    assert not list(citations("2,000 steps, 1.1999, 65,504 and 2048 of 10·2000, x2019 or 2019.5"))
