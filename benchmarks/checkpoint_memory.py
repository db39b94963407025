"""How much memory does it take to load a checkpoint? A made-up Llama of 637 MB, in three types.

    python benchmarks/checkpoint_memory.py

Prints, for each type, the size of the file, of the model in float32, and the peak of resident
memory in a process of its own, Python and NumPy included. Fails when the peak is more than the
model, twice its largest tensor and 50 MB. Needs 2 GB of memory and 1 GB of disk, and Linux.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import capstone_gpt as gpt

SIZES = {  # file type: (layers, bytes a number)
    "F32": (12, 4),
    "F16": (25, 2),
    "BF16": (25, 2),
}
LOAD = """
import resource, sys
import capstone_gpt as gpt
model = gpt.GPT.from_pretrained(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print(model.flat.nbytes, max(p.nbytes for p in model.params.values()))
"""


def make(folder, kind, n_layer):
    """Write a model whose file is about 637 MB, tensor by tensor."""
    config = gpt.GPTConfig(
        "llama", vocab_size=3648, block_size=1024, n_layer=n_layer, n_head=16, n_embd=1024
    )
    rng, shapes = np.random.default_rng(0), gpt.param_shapes(config)
    model = gpt.GPT(gpt.GPTConfig("llama", vocab_size=1, n_layer=1, n_head=1, n_embd=2))
    model.config = config
    Path(folder, "config.json").write_bytes(gpt.config_to_json(model))
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape)) * SIZES[kind][1]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()

    def pieces():
        yield len(text).to_bytes(8, "little") + text
        for shape in shapes.values():
            t = rng.standard_normal(shape, dtype=np.float32)
            if kind == "BF16":
                t = (t.view(np.uint32) >> 16).astype(np.uint16)
            yield t.astype({"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[kind]).data

    gpt.write_file(Path(folder, "model.safetensors"), pieces())


def main():
    failed = False
    print("type   file MB   model MB   largest tensor   peak MB")
    for kind, (n_layer, _) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            make(folder, kind, n_layer)
            command = [sys.executable, "-c", LOAD, folder]
            output = subprocess.check_output(command, cwd=Path(gpt.__file__).parent, text=True)
            peak, size, largest = map(int, output.split())
            failed |= peak > size + 2 * largest + 50e6
            file = os.path.getsize(Path(folder, "model.safetensors"))
        print(f"{kind:5}{file / 1e6:9.0f}{size / 1e6:11.0f}{largest / 1e6:17.0f}{peak / 1e6:10.0f}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
