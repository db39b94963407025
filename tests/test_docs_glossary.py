"""docs/glossary.md: its places, links and order hold; it has every term that the files mark as one.

What a file marks: words in CAPITALS in its comments, and the words of "What to take away".
"""

import io
import re
import tokenize
import unicodedata

import pytest
from conftest import ROOT

FILES = {
    path.stem.split("_")[0]: path
    for path in [*sorted(ROOT.glob("stage*.py")), ROOT / "capstone_gpt.py"]
}
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
PLACE = re.compile(r"\[(stage\d\d|capstone) §(\d+)\]\(\.\./(\w+\.py)\)")
ENTRY = re.compile(r'<a id="([^"]*)"></a>\*\*([^*]+)\*\*')

# Words in capitals that are no terms: emphasis, headings that are questions or whole sentences, and
# names of machines, files, models and methods that are only mentioned.
EMPHASIS = """
done last which letters are alike place the context matters how long what choosing begin where why
may costs readme cpu albert dapo mrpc raft rso
"""
# Words of the take-aways that anybody knows, besides those that the stories are written in.
EVERYDAY = """
arrives beats bill blends causes choice compare comparison coordinate dictionary distance divide
doubt equal erases explains gives healthy images impossible initial input length matters measures
minus operations outcome output paths prediction process readings repeat runs safety seldom
statement summed treats trust truth unchanged variety worth killed component columns
"""
STORIES = (ROOT / "data" / "stories.txt").read_text(encoding="utf-8").lower()


def plain(text):
    """Lower case, without accents, and x² as x2."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def short(name):
    """The name without what is added in brackets, as in "bias (of a layer)"."""
    return re.sub(r" \(.*\)$", "", name)


def words(text):
    return re.findall(r"[a-z0-9]+", plain(text))


ENDINGS = {"", "s", "es", "e", "d", "ed", "ing", "er", "y", "ies"}


def alike(a, b):
    """Are these forms of one word, such as "decays" and "decay", "analogies" and "analogy"?"""
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    if a == b or same >= max(5, len(a) - 3, len(b) - 3):
        return True
    return same >= 3 and {a[same:], b[same:]} <= ENDINGS


def has(text_words, name):
    """Is every word of the name, in some form, among these words? What is in brackets may lack."""
    return all(any(alike(word, other) for other in text_words) for word in words(short(name)))


class Entry:
    """A paragraph: its names (the head, then those in bold or as code), places and links."""

    def __init__(self, paragraph):
        text = " ".join(paragraph.split())
        self.anchor, self.name = ENTRY.match(text).groups()
        self.names = re.findall(r"\*\*([^*]+)\*\*|`([^`]+)`", text)
        self.names = [bold or code for bold, code in self.names]
        self.text, _, rest = text.partition(" Where: ")
        where, _, see = rest.partition(" See also: ")
        self.places = PLACE.findall(where)
        self.links = re.findall(r"\[([^\]]+)\]\(#([^)]+)\)", see)


PARAGRAPHS = [part.strip() for part in GLOSSARY.split("\n\n")]
ENTRIES = [Entry(part) for part in PARAGRAPHS if part.startswith("<a id=")]
TERMS = {word for entry in ENTRIES for name in entry.names for word in words(name)}


def sections(stem):
    """{number: (title, text)} of the numbered sections of a file."""
    parts = re.split(r"^# %% (.+)$", FILES[stem].read_text(encoding="utf-8"), flags=re.M)
    titles = [
        (re.match(r"(\d+)\. (.+)", title), text) for title, text in zip(parts[1::2], parts[2::2])
    ]
    return {int(match[1]): (match[2], text) for match, text in titles if match}


SECTIONS = {stem: sections(stem) for stem in FILES}
WORDS = {
    (stem, number): set(words(title + text))
    for stem, found in SECTIONS.items()
    for number, (title, text) in found.items()
}


def test_there_are_many_entries_and_notation_comes_first():
    assert len(ENTRIES) >= 150
    headings = re.findall(r"^## (.+)$", GLOSSARY, re.M)
    assert headings[0] == "Notation" and headings[1:] == sorted(set(headings[1:]))
    lines = [line for line in GLOSSARY.splitlines() if not line.startswith("|")]
    assert max(map(len, lines)) <= 120


def test_entries_are_in_alphabetical_order_and_have_their_names_as_anchors():
    def place_in_order(name):
        return words(short(name)), words(name)

    names = [entry.name for entry in ENTRIES]
    for before, after in zip(names, names[1:]):
        assert place_in_order(before) < place_in_order(after), f"{after!r} goes before {before!r}"
    for entry in ENTRIES:
        assert entry.anchor == "-".join(words(entry.name)), f"the anchor of {entry.name!r}"
    letter = ""
    for part in PARAGRAPHS:
        if match := re.match(r"## (.)$", part):
            letter = match[1]
        elif match := ENTRY.match(part):
            assert words(match[2])[0][0].upper() == letter, f"{match[2]!r} stands under {letter}"


def test_entries_are_short_and_have_places_and_links():
    long = [entry.name for entry in ENTRIES if len(entry.text.split()) > 75]
    assert not long, f"more than two sentences: {long}"
    bare = [entry.name for entry in ENTRIES if not entry.places or not entry.links]
    assert not bare, f"without a place or a link to a related entry: {bare}"


def test_every_place_exists_and_speaks_of_the_term():
    """A section must have every word of one of the entry's names, in some form."""

    def speaks(place, entry):
        return place in WORDS and any(has(WORDS[place], name) for name in entry.names)

    faults = []
    for entry in ENTRIES:
        for stem, number, file in entry.places:
            if FILES[stem].name == file and speaks((stem, int(number)), entry):
                continue
            right = [f"§{n}" for n in SECTIONS[stem] if speaks((stem, n), entry)]
            faults.append(f"{entry.name}: {stem} §{number} in {file} (it is in {right})")
    assert not faults, (
        "sections that do not exist or do not use the term. If sections were renumbered, correct "
        "the places in docs/glossary.md; if they say it with another word, add that word in bold:\n"
        + "\n".join(faults)
    )


def test_links_lead_to_entries_and_every_entry_is_reached_from_another():
    known = {entry.anchor: entry.name for entry in ENTRIES}
    reached = set()
    for entry in ENTRIES:
        for name, anchor in entry.links:
            assert known.get(anchor) == name, f"{entry.name!r} links to {name!r}, no entry"
            assert anchor != entry.anchor, f"{entry.name!r} links to itself"
            reached.add(anchor)
    orphans = sorted(known[anchor] for anchor in known.keys() - reached)
    assert not orphans, f"no other entry's see-also leads to {orphans}"


def test_every_section_of_every_file_has_an_entry_or_a_symbol():
    named = {(stem, int(number)) for stem, number, _ in PLACE.findall(GLOSSARY)}
    missing = [f"{stem} §{n} ({SECTIONS[stem][n][0]})" for stem, n in sorted(WORDS.keys() - named)]
    assert not missing, f"docs/glossary.md explains no term of {missing}"


def notation():
    """(symbols, place) for every place in the tables of notation."""
    tables = GLOSSARY.partition("\n## Notation")[2].partition("\n## ")[0]
    rows = [row.strip("|").split(" | ") for row in tables.splitlines() if row.startswith("| ")]
    return [(row[0].strip(), place) for row in rows for place in PLACE.findall(row[-1])]


def test_the_places_in_the_tables_of_notation_use_the_symbol():
    assert len(notation()) >= 100
    for symbols, (stem, number, file) in notation():
        assert FILES[stem].name == file and int(number) in SECTIONS[stem], (stem, number, file)
        title, text = SECTIONS[stem][int(number)]
        for symbol in symbols.split(", "):
            pattern = re.escape(symbol)
            if symbol.isalpha() and symbol.isascii():
                pattern = f"(?<![A-Za-z]){pattern}(?![A-Za-z])"
            used = re.search(pattern, title + text)
            assert used, f"{stem} §{number} does not use {symbol}: was a section renumbered?"


def comments(stem):
    """Comments of the numbered sections, and the names that the file's code uses."""
    source = FILES[stem].read_text(encoding="utf-8")
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    names = {token.string for token in tokens if token.type == tokenize.NAME}
    numbered, found = False, []
    for token in tokens:
        if token.type == tokenize.COMMENT:
            if token.string.startswith("# %%"):
                numbered = bool(re.match(r"# %% \d+\. ", token.string))
            elif numbered:
                found.append(token.string)
    return "\n".join(found), names


@pytest.mark.parametrize("stem", FILES)
def test_every_word_in_capitals_is_in_the_glossary(stem):
    """Three letters or more. Names in the code, such as CAUSAL, are no terms."""
    text, names = comments(stem)
    known = TERMS | set(words(EMPHASIS))
    missing = []
    for phrase in re.findall(
        r"(?<![\w<\[{+.\\])[A-Z][A-Z-]+[A-Z](?: [A-Z][A-Z-]+[A-Z])*(?!\w)", text
    ):
        found = [word for part in phrase.split() if part not in names for word in words(part)]
        if not all(any(alike(word, other) for other in known) for word in found):
            missing.append(phrase)
    assert not missing, (
        f"{FILES[stem].name} writes {sorted(set(missing))} in capitals: add entries (or, in bold, "
        "synonyms) to docs/glossary.md; what is emphasis only goes into EMPHASIS in this test"
    )


@pytest.mark.parametrize("stem", FILES)
def test_every_term_of_the_take_aways_is_in_the_glossary(stem):
    parts = re.split(r"^# %% (.+)\n", FILES[stem].read_text(encoding="utf-8"), flags=re.M)
    take_away = dict(zip(parts[1::2], parts[2::2]))["What to take away"]
    content = {word for word in re.findall(r"[a-z]+", plain(take_away)) if len(word) > 3}
    content -= set(re.findall("[a-z]+", STORIES))
    known = TERMS | set(words(EVERYDAY))
    missing = sorted(w for w in content if not any(alike(w, other) for other in known))
    assert not missing, (
        f"{FILES[stem].name} leaves its readers with {missing}: add entries (or, in bold, "
        "synonyms) to docs/glossary.md; words that anybody knows go into EVERYDAY in this test"
    )
