"""How fast does capstone_gpt.py write, beside transformers' generate, and how near to the limit?

    python benchmarks/generate.py [--archs gpt2,llama] [--batches 1,8] [--tokens 40] [--fast]

A gpt2 of GPT-2 124M's shape and a llama of about as many parameters are given random weights. The
same weights go into transformers' model, and both continue the same prompts greedily, with a cache
of keys and values, in turns. Then the tokens are compared: where they differ, the two best scores
must be so close that rounding decides, else the exit status is 1.

To write a token, all weights must pass through the processor once, however many texts are written
side by side, and every text's keys and values once. So memory sets a limit. The table says which
share of this machine's memory bandwidth, measured in the same minutes as the fastest product of a
large matrix with a vector, a side reaches.

Fair: float32, all cores, the same weights, prompts and cache on both sides, and the prompt's own
pass counts on both. Unfair to transformers: it is taken as it comes, not compiled, and its generate
does for every token what it would do for any other model and any way of sampling. Random weights
cost what trained ones do. With few tokens, as here, attention costs little beside the weights.
"""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is made here: ask no server

import json
import statistics

import common
import numpy as np

import capstone_gpt as gpt

SIZES = {
    "gpt2": {"vocab_size": 50257, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "llama": {"vocab_size": 32000, "n_layer": 12, "n_head": 12, "n_embd": 768, "n_kv_head": 4},
}
FAST_SIZES = {"vocab_size": 500, "n_layer": 2, "n_head": 4, "n_embd": 64}
PROMPT = 8  # tokens
TIE = 1e-3  # standard deviations of the scores; two nearer than that are as good as equal


def make_model(arch, fast):
    """A model with random weights, large enough for texts that do not repeat one token."""
    sizes = FAST_SIZES if fast else SIZES[arch]
    model = gpt.GPT(gpt.GPTConfig(arch, block_size=1024, **sizes))
    for p in model.params.values():
        if p.ndim == 2:
            p *= 3
    return model


def make_peer(model):
    """The same model in transformers."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(gpt.usable_cores())
    fields = json.loads(gpt.config_to_json(model))
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    peer = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    weights = {name: torch.from_numpy(p) for name, p in model.params.items()}
    differing = peer.load_state_dict(weights, strict=False)
    assert not differing.unexpected_keys, differing
    assert set(differing.missing_keys) <= {"lm_head.weight"}, differing  # tied to the embedding
    peer.generation_config.eos_token_id = None  # go on to the end
    return peer


def their_text(peer, prompts, tokens):
    """What model.generate returns at temperature 0, from transformers."""
    import torch

    idx = torch.from_numpy(prompts)
    options = {"max_new_tokens": tokens, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    return peer.generate(idx, attention_mask=torch.ones_like(idx), **options).numpy()


# %% Are the texts the same?


def first_difference(model, ours, theirs):
    """None if two texts (T,) are equal, else the first place where they differ, and by how much.

    How much: the difference of the two tokens' scores, in standard deviations of all scores.
    """
    if np.array_equal(ours, theirs):
        return None
    place = int(np.argmax(ours != theirs))
    scores = model.logits(ours[None, :place])[0, -1]
    return place, float(abs(scores[ours[place]] - scores[theirs[place]]) / scores.std())


def compare_texts(model, ours, theirs):
    """A sentence, and whether the texts (B, T) are the same but for ties."""
    found = [first_difference(model, *rows) for rows in zip(ours, theirs)]
    differing = [found_in_row for found_in_row in found if found_in_row]
    if not differing:
        return "the same tokens", True
    place, gap = max(differing, key=lambda difference: difference[1])
    ties = gap < TIE
    what = "a tie" if ties else "NOT a tie"
    return f"{len(differing)} of {len(ours)} texts differ, {what} at {place}: {gap:.0e}", ties


# %% The limit


def bytes_a_token(model, batch, tokens):
    """What must be read for one more token of `batch` texts, on average: weights, keys, values."""
    c, weights = model.config, model.flat.nbytes
    if c.arch == "gpt2":
        weights -= model.params.top["positions.weight"].nbytes  # of which a token reads one row
    if not c.tie_weights:
        weights -= model.params.top["embedding.weight"].nbytes  # likewise; tied, it is the head
    length = PROMPT + tokens / 2  # of a text so far, on average
    keys_and_values = 2 * c.n_layer * c.n_kv_head * c.head_size * length * model.flat.itemsize
    return weights + batch * keys_and_values


def read_bandwidth(megabytes):
    """Bytes a second that the fastest of some products of a large matrix with a vector reads."""
    rows = megabytes * 10**6 // 4 // 1024
    matrix, x, y = np.ones((rows, 1024), np.float32), np.ones(1024, "f4"), np.ones(rows, "f4")
    times = [common.seconds(np.dot, matrix, x) for _ in range(4)]
    times += [common.seconds(np.dot, y, matrix) for _ in range(4)]
    return matrix.nbytes / min(times)


# %% The report


def measure(args, arch, batch, model, peer):
    """One row of the table: (record, whether the texts are the same)."""
    prompts = np.random.default_rng(1).integers(0, model.config.vocab_size, (batch, PROMPT))
    bandwidths, texts = [], {}

    def ours(_):
        bandwidths.append(read_bandwidth(20 if args.fast else 256))
        return common.seconds(write_ours)

    def write_ours():
        texts["ours"] = model.generate(prompts, args.tokens, temperature=0)

    def write_theirs():
        texts["transformers"] = their_text(peer, prompts, args.tokens)

    sides = {"ours": ours}
    if peer:
        sides["transformers"] = lambda _: common.seconds(write_theirs)
    found, speed = common.take_turns(sides, args.rounds)
    bandwidth = statistics.median(bandwidths)
    row = {"arch": arch, "batch": batch, "parameters": model.num_params(), "GF/s": speed}
    row["bandwidth"] = bandwidth
    print(f"{arch:6}{batch:6}", end="")
    for name, times in found.items():
        rates = [batch * args.tokens / time for time in times]
        read = bytes_a_token(model, batch, args.tokens) * args.tokens / statistics.median(times)
        row[name] = {"tokens/s": common.quartiles(rates), "share": read / bandwidth}
        print(f"   {common.spread(rates):24}{read / bandwidth:6.0%}", end="")
    same = True
    if peer:
        row["ratio"] = row["ours"]["tokens/s"][1] / row["transformers"]["tokens/s"][1]
        row["texts"], same = compare_texts(model, texts["ours"], texts["transformers"])
        print(f"   {row['ratio']:5.2f}", end="")
    print(f"   {bandwidth / 1e9:4.0f} {speed:5.0f}   {row.get('texts', '')}", flush=True)
    return row, same


def main():
    parser = common.make_parser(__doc__, rounds=5)
    archs = ["gpt2", "llama"]
    parser.add_argument("--archs", type=common.words, default=archs, help="[gpt2,llama]")
    parser.add_argument("--batches", type=common.whole_numbers, default=[1, 8], help="[1,8]")
    parser.add_argument("--tokens", type=int, default=40, help="to write a text [40]")
    args = common.parse(parser, {"rounds": 1, "tokens": 6})
    record = {"machine": common.machine("torch", "transformers"), "tokens": args.tokens}
    with_peer = common.present("torch", "transformers")
    print(f"\n{PROMPT} tokens of prompt and {args.tokens} more, tokens a second: median (middle")
    print("half), share of the bandwidth; ours / theirs; then GB/s and matmul GF/s in that minute")
    columns = ["ours", "transformers"] if with_peer else ["ours"]
    print(f"{'arch':6}{'batch':>6}" + "".join(f"   {name:30}" for name in columns))
    rows, all_same = [], True
    for arch in args.archs:
        model = make_model(arch, args.fast)
        peer = make_peer(model) if with_peer else None
        for batch in args.batches:
            row, same = measure(args, arch, batch, model, peer)
            rows.append(row)
            all_same = all_same and same
        del model, peer  # before the next ones are made
    common.keep(args, "generate", record | {"rows": rows})
    return 0 if all_same else 1


if __name__ == "__main__":
    sys.exit(main())
