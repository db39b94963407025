"""Stage 7, live: a text in the tokens of four tokenizers; merge by merge; a word's many cuts."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="full",
    app_title="7 tokenize",
    css_file="look.css",
    html_head_file="look.html",
)

with app.setup:
    import json
    import math
    from collections import Counter
    from pathlib import Path

    import marimo as mo
    import numpy as np

    import stage07_bpe as stage
    from explorer import keep, look
    from explorer.pages import ROOT

    LONGEST_TEXT = 2_000  # characters; even without a space they are cut in a fifth of a second
    LONGEST_TO_MERGE = 200  # characters; the first page's plain code reads all of them each time
    LONGEST_WORD = 40  # bytes
    MOST_SHOWN = 400  # tokens in colours; the numbers count all of them
    LARGEST_FILE = 100_000_000  # bytes; the largest tokenizer.json in use have a third of it
    DRAWS = 100
    TEXT = (
        "The fox waited by the river. Grandmother untied the foxes, unhurriedly.\n"
        "Der Fuchs wartete am Fluss, bis der Mond aufging.\n"
        "狐狸, 🦊, café, 1969"
    )


@app.function
def train_tokenizers(report):
    """Each kind at each size, as the bytes of its tokenizer.json: "bpe 1024", ... and the sizes."""
    sizes = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
    text = (ROOT / "data" / "stories.txt").read_text(encoding="utf-8")
    text = text[: int(0.9 * len(text))]  # the training part, as everywhere
    if keep.FAST:
        sizes, text = (256, 384, 512), text[:24_000]
    kept = {"sizes": np.array(sizes)}
    for n, size in enumerate(sizes):
        for kind, tokenizer in stage.KINDS.items():
            written = json.dumps(tokenizer.train(text, size).parts).encode()
            kept[f"{kind} {size}"] = np.frombuffer(written, np.uint8)
        report((n + 1) / len(sizes))
    return kept


@app.function
def open_trained(kept, size):
    """{"BPE": tokenizer, "WordPiece": ..., "Unigram": ...} of one size."""
    return {
        tokenizer.model_type: tokenizer(json.loads(kept[f"{kind} {size}"].tobytes()))
        for kind, tokenizer in stage.KINDS.items()
    }


@app.function
def open_file(name, pattern):
    """The tokenizer in a file or folder; ValueError, in one sentence, where there is none.

    pattern: of a *.tiktoken file, which does not say its own."""
    if not name.strip():
        raise ValueError("No path is given: expected a tokenizer.json, or the folder of one.")
    shown = f"{name.strip():.200}"
    try:
        path = ROOT / Path(name.strip()).expanduser()
        names = ("tokenizer.json", "vocab.json", "merges.txt")
        files = [path / inner for inner in names] if path.is_dir() else [path]
        files = [file for file in files if file.exists()]
        size = sum(file.stat().st_size for file in files)
    except OSError as error:  # the name is too long, or the folder may not be looked into
        raise ValueError(f"{shown}: {error.strerror}.") from None
    except RuntimeError as error:  # a ~ without a home
        raise ValueError(f"{shown}: {error}") from None
    if not files and path.is_dir():
        raise ValueError(f"{shown} is a folder that has no tokenizer.json, and no vocab.json.")
    if not files:
        raise ValueError(f"{shown}: there is no such file or folder.")
    if not all(file.is_file() for file in files):
        raise ValueError(f"{shown}: neither a file nor a folder of files.")
    if size > LARGEST_FILE:
        raise ValueError(f"{shown} has {size:,} bytes; at most {LARGEST_FILE:,} are read here.")
    return stage.Tokenizer.load(path, pattern if path.suffix == ".tiktoken" else None)


@app.function
def spelled(data):
    """The bytes of a token as text, if they are text on their own; else with \\x.. for the rest."""
    text = data.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() or c in "\n\t" else f"⟨U+{ord(c):04X}⟩" for c in text)


@app.function
def is_whole(data):
    """Are these bytes text on their own, or do they end or begin inside a character?"""
    return data.decode(errors="ignore").encode() == data


@app.function
def characters_around(data, begin, end):
    """The characters of which data[begin:end] holds at least a part; data is UTF-8."""
    while begin > 0 and data[begin] & 0xC0 == 0x80:  # 10xxxxxx: a character goes on here
        begin -= 1
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end += 1
    return data[begin:end].decode(errors="replace")


@app.function
def titles_of(ids, parts):
    """What is said of each token when it is pointed at: its id, its bytes, its characters."""
    data, begin, titles = b"".join(parts), 0, []
    for i, part in zip(ids, parts):
        title = f"id {i}, bytes {part.hex(' ').upper() or 'none'}"
        if not is_whole(part):
            title += f", part of {characters_around(data, begin, begin + len(part))}"
        titles.append(title)
        begin += len(part)
    return titles


@app.function
def measure(tokenizers, text):
    """{name: (ids, row of stage.compare)}, or the sentence that says why there are no ids."""
    found = {}
    for name, tokenizer in tokenizers.items():
        try:
            ids = tokenizer.encode(text)
            if not ids:
                raise ValueError("its normalizer leaves nothing of the text")
            found[name] = ids, stage.compare([tokenizer], text)[0]
        except ValueError as error:
            found[name] = f"{name} cannot write this text: {error}."
    return found


@app.function
def coloured(name, tokenizer, ids, as_ids):
    """The tokens in colours: as text, or as the ids that a model reads."""
    ids = ids[:MOST_SHOWN]
    parts = list(tokenizer._stream(ids))  # the bytes of each
    texts = [spelled(part) or "∅" for part in parts]
    pairs = [("blue", "orange") if is_whole(part) else ("purple", "green") for part in parts]
    return look.symbols(
        f"{name} text",
        [f" {i} " for i in ids] if as_ids else texts,
        [0.6] * len(ids),
        titles_of(ids, parts),
        [pair[n % 2] for n, pair in enumerate(pairs)],
    )


@app.function
def panel(name, tokenizer, found, as_ids):
    """What one tokenizer makes of the text: its numbers, and the tokens in colours."""
    head = look.words(f"**{name}**, a vocabulary of {tokenizer.vocab_size:,}")
    if isinstance(found, str):
        return look.below(head, look.problem(found))
    ids, row = found
    back = "Decoding gives the text back."
    if not row["round_trip"]:
        back = f"Decoding gives another text: {tokenizer.decode(ids)!r:.70}"
    numbers = look.sentence(
        look.number(f"{name} tokens", row["tokens"], ",.0f"),
        " tokens, ",
        look.number(f"{name} characters", row["chars_per_token"], ".2f"),
        f" characters a token. {back}",
        f" The first {MOST_SHOWN:,} tokens:" if len(ids) > MOST_SHOWN else "",
    )
    return look.below(head, numbers, coloured(name, tokenizer, ids, as_ids))


@app.function
def merge_all(text):
    """(merges, states): all merges that the first page's BPE finds; the ids before and after each.

    ValueError for a text that has no two neighbours, and for one that is too long."""
    stage.check_text(text)
    if len(text) > LONGEST_TO_MERGE:
        raise ValueError(f"it has {len(text):,} characters; at most {LONGEST_TO_MERGE} go here")
    states = [list(text.encode())]
    if len(states[0]) < 2:
        raise ValueError(f"{text!r} has no two neighbours; at least two letters were expected")
    merges = stage.textbook_merges(text, len(states[0]))
    for new, pair in enumerate(merges, start=256):
        states.append(stage.replace_pair(states[-1], pair, new))
    return merges, states


@app.function
def count_pairs(ids):
    """[(pair, how often it stands there)], the commonest first; of equals the smallest ids."""
    counts = Counter(zip(ids, ids[1:]))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


@app.function
def why(pair, counts, spellings):
    """The sentence that says why this pair is merged next."""
    times = dict(counts)[pair]
    equals = sum(n == times for _, n in counts)
    often = "once" if times == 1 else f"{times} times"
    name = f"{stage.spell([spellings[i] for i in pair])} {pair}"
    if equals == 1:
        return f"Next comes {name}, which stands there {often}, and no other pair so often."
    tie = f"{equals} pairs stand there {often}, and none more often."
    return f"{tie} Of equals the smallest ids go first, so next comes {name}."


@app.function
def merging(name, ids, spellings):
    """Symbols with gaps between them: single bytes grey, merged ones blue, the newest orange."""
    parts = [spellings[i] for i in ids]
    newest = len(spellings) - 1 if len(spellings) > 256 else None
    symbols = look.symbols(
        name,
        [spelled(part).replace(" ", "·") for part in parts],
        [0.6] * len(ids),
        titles_of(ids, parts),
        ["orange" if i == newest else "blue" if i > 255 else "line" for i in ids],
    )
    return look.apart(symbols)


@app.function
def cut_word(word, tokenizer, temperature, rng):
    """{cut: (probability, how often it was drawn)} of the best cut and of those drawn, by p.

    ValueError for what is not one word."""
    stage.check_text(word)
    n = len(word.encode())
    if not 0 < n <= LONGEST_WORD:
        raise ValueError(f"it has {n} bytes; expected 1 to {LONGEST_WORD}")
    words = stage.pretokenize(word)
    if len(words) > 1:
        raise ValueError(
            f"{stage.spell([w.encode() for w in words])} is cut before any token is "
            f"looked for, into {len(words)} pieces; expected one word"
        )
    letters, longest = stage.to_alphabet(word.encode()), tokenizer.longest
    drawn = Counter(
        tuple(stage.sample_cut(letters, tokenizer.score, longest, temperature, rng))
        for _ in range(DRAWS)
    )
    best = tuple(stage.viterbi(letters, tokenizer.score, longest)[1])
    alpha, _ = stage.forward(letters, tokenizer.score, longest, temperature=temperature)
    found = {}
    for cut in {best, *drawn}:
        log_p = sum(tokenizer.score[piece] for piece in cut) / temperature - alpha[-1]
        found[cut] = math.exp(log_p), drawn[cut]
    return dict(sorted(found.items(), key=lambda item: (-item[1][0], item[0])))


@app.cell
def _():
    look.header(7)
    return


@app.cell
def _():
    look.hint(
        "move the vocabulary from its smallest to its largest, and watch the words grow together. "
        "Then write in the field: your name, another alphabet, a number. Further down, make the "
        "merges one at a time.",
        "what the stories often say soon is one token. At 1,024 Unigram has `Grandmother` whole, "
        "where BPE still writes `G|randmother`; and the Chinese, the é and the fox's face remain "
        "bytes at every size, for no story has them.",
    )
    return


@app.cell
def _():
    look.below(
        look.heading("A text, coloured by its tokens"),
        look.words(
            "BPE, WordPiece and Unigram have learned their vocabularies from the stories. File is "
            "any tokenizer that you name, at first the one in `data/`."
        ),
    )
    return


@app.cell
def _():
    job = keep.start("tokenizers", train_tokenizers)
    further, ready = keep.watch(job), keep.ready(job)
    return further, job, ready


@app.cell
def _(further, job):
    further()
    keep.progress(job, "learning tokens from the stories") if job.result is None else None
    return


@app.cell
def _(job, ready):
    mo.stop(not ready() or job.result is None)
    kept = job.result
    return (kept,)


@app.cell
def _(kept):
    sizes = kept["sizes"].tolist()
    size = mo.ui.slider(
        steps=sizes, value=sizes[len(sizes) // 2], label="vocabulary", show_value=True
    )
    as_ids = mo.ui.switch(label="show the ids")
    look.controls(size, as_ids)
    return as_ids, size


@app.cell
def _():
    text = mo.ui.text_area(TEXT, label="the text", rows=4, debounce=False, full_width=True)
    text
    return (text,)


@app.cell
def _():
    path = mo.ui.text(
        "data/tokenizer/tokenizer.json",
        label="any tokenizer.json, its folder, or a *.tiktoken (press enter)",
        debounce=True,
        full_width=True,
    )
    path
    return (path,)


@app.cell
def _(path):
    names = [name for name in stage.PATTERNS if name]
    pattern = mo.ui.dropdown(names, value="gpt4", label="its pattern")
    pattern if path.value.strip().endswith(".tiktoken") else None
    return (pattern,)


@app.cell
def _(path, pattern):
    opened, refused = None, None
    try:
        with mo.status.spinner("reading the file", remove_on_exit=True):
            opened = open_file(path.value, pattern.value)
    except ValueError as error:
        refused = look.problem(error)
    refused
    return (opened,)


@app.cell
def _(kept, size):
    trained = open_trained(kept, size.value)
    return (trained,)


@app.cell
def _(opened, text, trained):
    tokenizers = {**trained, "File": opened} if opened else trained
    found, unread = None, None
    if not text.value:
        unread = look.problem("The text is empty: write one.")
    elif len(text.value) > LONGEST_TEXT:
        too_long = f"The text has {len(text.value):,} characters"
        unread = look.problem(f"{too_long}; at most {LONGEST_TEXT:,} go here.")
    else:
        found = measure(tokenizers, text.value)
    unread
    return found, tokenizers


@app.cell
def _(as_ids, found, tokenizers):
    mo.stop(found is None)
    panels = [panel(name, tokenizers[name], found[name], as_ids.value) for name in found]
    look.below(look.beside(*panels[:2]), look.beside(*panels[2:]))
    return


@app.cell
def _(found):
    mo.stop(found is None)
    written = [name for name in found if not isinstance(found[name], str)]
    look.below(
        look.words(
            "Point at a token for its id and its bytes. What stands on purple and green holds only "
            r"a part of a character: `\xe7` is the byte E7. The number of tokens, side by side:"
        ),
        look.bars("tokens", written, [len(found[name][0]) for name in written], form=",.0f"),
    )
    return


@app.cell
def _():
    look.below(
        look.heading("Merges, one at a time"),
        look.words(
            "BPE begins with single bytes. Again and again it takes the pair of neighbours that "
            "stands there most often, and makes it one new symbol."
        ),
    )
    return


@app.cell
def _():
    to_merge = mo.ui.text(
        "banana bandana", label="learn merges from", debounce=False, full_width=True
    )
    to_merge
    return (to_merge,)


@app.cell
def _(to_merge):
    merges, states, unmergeable = None, None, None
    try:
        merges, states = merge_all(to_merge.value)
    except ValueError as error:
        unmergeable = look.problem(f"No merges are learned from this text: {error}.")
    unmergeable
    return merges, states


@app.cell
def _(merges):
    mo.stop(merges is None)
    made = mo.ui.slider(
        0, len(merges), value=1, label="merges made", show_value=True, full_width=True
    )
    made
    return (made,)


@app.cell
def _(made, merges, states):
    n = made.value
    spellings = stage.spellings(merges[:n])  # the bytes of every id
    counts = count_pairs(states[n])
    return counts, n, spellings


@app.cell
def _(counts, merges, n, spellings, states):
    next_pair = "One symbol is left, and there is nothing more to merge."
    if n < len(merges):
        next_pair = why(merges[n], counts, spellings)
    look.below(
        merging("merged", states[n], spellings),
        look.sentence(
            f"{len(states[0])} bytes are now ",
            look.number("symbols", len(states[n]), ".0f"),
            " symbols: grey ones are single bytes (· is the space), blue ones were merged, and "
            "orange is the newest token.",
        ),
        look.sentence(next_pair),
    )
    return


@app.cell
def _(counts, merges, n, spellings):
    def spell(pair):
        return stage.spell([spellings[i] for i in pair]), f"{pair[0]}, {pair[1]}"

    candidates = [
        (*spell(pair), str(times), "merged next" if pair == merges[n] else "")
        for pair, times in counts[:8]
    ]
    learned = [
        (str(256 + k), stage.spell([spellings[256 + k]]), *spell(merges[k]))
        for k in range(max(0, n - 8), n)
    ]
    look.beside(
        look.below(
            look.words(f"The commonest of {len(counts)} different pairs of neighbours"),
            look.table("pairs", ("pair", "ids", "times", ""), candidates),
        ),
        look.below(
            look.words(f"Tokens learned so far: {n}, the newest first"),
            look.table("learned", ("id", "token", "merged from", "ids"), learned[::-1]),
        ),
    )
    return


@app.cell
def _():
    to_encode = mo.ui.text(
        "cabana", label="write with these merges", debounce=False, full_width=True
    )
    to_encode
    return (to_encode,)


@app.cell
def _(merges, n, spellings, to_encode):
    def _written():
        text = to_encode.value
        try:
            stage.check_text(text)
        except ValueError as error:
            return look.problem(f"This cannot be written: {error}.")
        if not 0 < len(text) <= LONGEST_TO_MERGE:
            found = f"{len(text):,} characters stand here"
            return look.problem(f"{found}: expected 1 to {LONGEST_TO_MERGE}.")
        ids = stage.textbook_encode(text, merges[:n])
        return look.below(
            merging("written", ids, spellings),
            look.sentence(
                f"Its {len(text.encode())} bytes become ",
                look.number("written", len(ids), ".0f"),
                " symbols.",
            ),
        )

    _written()
    return


@app.cell
def _():
    look.heading("One word, many cuts")
    return


@app.cell
def _():
    look.words(
        "Unigram gives every token a probability, so it gives one to every way of cutting a word. "
        "Training on cuts that are drawn at random shows a model the same word in many spellings. "
        "At temperature 1 they are drawn as Unigram has it; the higher it is, the more evenly."
    )
    return


@app.cell
def _():
    word = mo.ui.text(" gardening", label="one word (with the space before it)", debounce=False)
    temperature = mo.ui.slider(
        0.5, 10, step=0.5, value=4, label="temperature of the cuts", show_value=True
    )
    look.controls(word, temperature)
    return temperature, word


@app.cell
def _(temperature, trained, word):
    cuts, uncut = None, None
    try:
        cuts = cut_word(word.value, trained["Unigram"], temperature.value, np.random.default_rng(0))
    except ValueError as error:
        uncut = look.problem(f"This word is not cut: {error}.")
    uncut
    return (cuts,)


@app.cell
def _(cuts):
    mo.stop(cuts is None)
    shown = list(cuts)[:8]
    names_of_cuts = [stage.spell([stage.from_alphabet(piece) for piece in cut]) for cut in shown]
    look.below(
        look.beside(
            look.below(
                look.words("Probability of the likeliest cuts"),
                look.bars("likely", names_of_cuts, [cuts[cut][0] for cut in shown]),
            ),
            look.below(
                look.words(f"How often each came in {DRAWS} draws"),
                look.bars("drawn", names_of_cuts, [cuts[cut][1] for cut in shown], form=".0f"),
            ),
        ),
        look.sentence(
            "The draws brought ",
            look.number("different", sum(times > 0 for _, times in cuts.values()), ".0f"),
            " different cuts. Together, the ones shown have the probability ",
            look.number("together", sum(cuts[cut][0] for cut in shown)),
            ".",
        ),
    )
    return


if __name__ == "__main__":
    app.run()
