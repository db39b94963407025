"""Does capstone_gpt.py accept and refuse the safetensors files that the reference library does?

    python benchmarks/check_safetensors.py [--files 20000] [--seed 0]

Random small files, most of them damaged in one place: fields doubled, missing, of another type or
size, bytes flipped, inserted or dropped, other encodings. Whatever the library refuses must be
refused here, and whatever both accept must have the same names, metadata and arrays. What is only
refused here is counted by its reason: this file wants a header that begins with {, one object a
tensor, no field twice anywhere, and types and shapes that NumPy has. Needs safetensors; says so and
stops without it.
"""

import argparse
import collections
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import capstone_gpt as gpt

try:
    import safetensors
except ImportError:
    print("safetensors is not installed; this check needs it")
    sys.exit(0)

VALUES = """null true false 0 -1 1.0 1e0 -0 01 "F32" "f32" "F8_E4M3" "C64" "F4" [] [0]
    [0,0] [0,4] [true,2] [-0] [-0,0] [18446744073709551616]
    [9223372036854775808,4,0] [0,9223372036854775808,4] [1.0] ["1"] {"F32":null}
    "\\ud800" "\\ud83d\\ude00" [2,2,] NaN 1e999 {} {"a":"b"} {"a":1} {"a":null}
    {"a":"1","a":"2"} 123456789012345678901234567890""".split()
NAMES = ['"__metadata__"', '""', '"\\u0000"', '"é"', '"\\ud800"', '"a\nb"', "a"]
INSERTED = ' \n\t"{}[],:0-.eE\\\x00\x1f\x7f'


def undamaged(rng):
    """Header as rows [name, [[key, value], ...]] of JSON texts, and the bytes of its arrays."""
    rows, end = [], 0
    for i in range(rng.randrange(4)):
        kind = rng.choice(list(gpt.DTYPES))
        shape = [rng.randrange(4) for _ in range(rng.randrange(4))]
        start, end = end, end + int(np.prod(shape)) * np.dtype(gpt.DTYPES[kind]).itemsize
        fields = [["dtype", kind], ["shape", shape], ["data_offsets", [start, end]]]
        rows.append([f'"t{i}"', [[f'"{key}"', json.dumps(value)] for key, value in fields]])
    if rng.random() < 0.5:
        at = rng.randrange(len(rows) + 1)
        rows.insert(at, ['"__metadata__"', [['"format"', '"pt"'], ['"k"', '"é"']]])
    return rows, rng.randbytes(end)


def damage(rows, rng):
    """Change one thing in a header."""
    if not rows:
        return
    row = rows[rng.randrange(len(rows))]
    name, fields = row
    at = rng.randrange(len(fields))
    what = rng.randrange(8)
    if what == 0:
        rows.append(row)
    elif what == 1:
        fields.append(fields[at])
    elif what == 2:
        fields.append(['"extra"', rng.choice(VALUES)])
    elif what == 3:
        del fields[at]
    elif what == 4:
        fields[at] = [fields[at][0], rng.choice(VALUES)]
    elif what == 5:
        row[0] = rng.choice(NAMES)
    elif what == 6:
        rows.append(['"__metadata__"', [[rng.choice(NAMES), rng.choice(VALUES)]]])
    else:
        rng.shuffle(rows)


def file_bytes(rng):
    """A random file."""
    rows, data = undamaged(rng)
    if rng.random() < 0.8:
        damage(rows, rng)
    objects = [f"{n}:{{{','.join(f'{k}:{v}' for k, v in fields)}}}" for n, fields in rows]
    text = bytearray(("{" + ",".join(objects) + "}").encode())
    at, what = rng.randrange(len(text)), rng.randrange(20)
    if what == 0:
        text[at] ^= 1 << rng.randrange(8)
    elif what == 1:
        text.insert(at, ord(rng.choice(INSERTED)))
    elif what == 2:
        del text[at]
    elif what == 3:
        text = text.decode().encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig"]))
    elif what == 4:
        text = text + b" " * 5 + rng.choice([b"", b"\n", b"\x00", b"x"])
    elif what == 5:
        text = b" " + text
    length = len(text) + rng.choice([0] * 30 + [-1, 1, 8])
    whole = length.to_bytes(8, "little") + text + data
    return whole[: rng.randrange(len(whole))] if rng.random() < 0.02 else whole


def outcome(read, path):
    """(names and metadata, None), or (None, why it was refused)."""
    try:
        return read(path), None
    except (ValueError, safetensors.SafetensorError) as error:
        return None, str(error).replace(str(path), "")


def theirs(path):
    with safetensors.safe_open(path, framework="np") as file:
        return set(file.keys()), file.metadata() or {}


def ours(path):
    tensors, metadata = gpt.read_safetensors(path)
    return set(tensors), metadata


def same_arrays(path):
    """Whether every array that NumPy can hold is the same."""
    tensors, _ = gpt.read_safetensors(path)
    with safetensors.safe_open(path, framework="np") as file:
        for name, stored in tensors.items():
            if stored.kind == "BF16":  # the library needs another package for it
                continue
            theirs, ours = file.get_tensor(name), gpt.read_tensor(stored)
            if theirs.dtype != ours.dtype or theirs.shape != ours.shape:
                return False
            if theirs.tobytes() != ours.tobytes():
                return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, counts = random.Random(args.seed), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.safetensors")
        for _ in range(args.files):
            path.write_bytes(file_bytes(rng))
            (expected, reason), (found, message) = outcome(theirs, path), outcome(ours, path)
            if expected is None:
                counts["refused by both" if found is None else "WRONGLY ACCEPTED"] += 1
                if found is not None:
                    print(f"wrongly accepted: {reason}: {path.read_bytes()[:200]!r}")
            elif found is None:
                for part in ("given twice", "begin with", "described by an object", "of type"):
                    message = f"...{part}..." if part in message else message
                counts[f"refused here only: {message:.60}"] += 1
            elif found == expected and same_arrays(path):
                counts["read by both"] += 1
            else:
                counts["READ DIFFERENTLY"] += 1
    for what, count in counts.most_common():
        print(f"{count:7,}  {what}")
    wrong = counts["WRONGLY ACCEPTED"] + counts["READ DIFFERENTLY"]
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
