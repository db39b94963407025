"""Page 6 in the browser: its numbers are those of stage06_transformer's own functions."""

import json
import math

import numpy as np
import pytest

import stage06_transformer as stage

GAP = "\N{NO-BREAK SPACE}"
LAB = stage.Lab(True, 0)
PUBLISHED = {  # number of weights on the models' own pages
    "GPT-2 124M": 124_439_808,
    "GPT-2 XL 1.6B": 1_557_611_200,
    "TinyLlama 1.1B": 1_100_048_384,
    "Llama 2 7B": 6_738_415_616,
    "Llama 3 8B": 8_030_261_248,
}


def arrays(kept, name):
    """What the page has kept of this training."""
    (path,) = kept.glob(f"{name}-fast-*.npz")
    with np.load(path) as file:
        return dict(file)


def by_hand(model, ids):
    """The stream (T, C) below and above each block, the halves of each, and the guesses by depth,
    from the stage's halves."""
    c, P = model.config, {name: stage.Tensor(p) for name, p in model.params.items()}

    def norm(x, name):
        return stage.normalise(x, P[f"{name}.weight"], None, c.norm_eps, centre=False)

    def guess(x):
        scores = norm(x, "model.norm") @ P["lm_head.weight"].transpose(1, 0)
        return stage.softmax(scores).data[0]

    x = P["model.embed_tokens.weight"][ids]
    mask = stage.attention_mask(ids.shape[1]).astype(np.float32)
    streams, halves, guesses = [x.data[0]], [], [guess(x)]
    for i in range(c.n_layer):
        layer = f"model.layers.{i}."
        p = {k.removeprefix(layer): v for k, v in P.items() if k.startswith(layer)}
        attended = stage.attention(norm(x, f"{layer}input_layernorm"), p, c, mask)
        x = x + attended
        thought = stage.mlp(norm(x, f"{layer}post_attention_layernorm"), p, c)
        x = x + thought
        streams.append(x.data[0])
        halves += [attended.data[0], thought.data[0]]
        guesses.append(guess(x))
    return streams, halves, np.array(guesses)


def rms(row):
    return math.sqrt(np.mean(row.astype(np.float64) ** 2))


def test_the_stream_and_what_is_read_off_it(visit, kept):
    visit.open("stack")
    visit.says("has read the stories")
    found = arrays(kept, "stack-reader")
    model = stage.Transformer(stage.TransformerConfig(**json.loads(str(found["config"]))))
    model.params = {name: found[name] for name in model.params}
    nats = stage.held_out_loss(model, LAB.ids, LAB.start)
    visit.shows("bits", nats / math.log(2))
    names = ["embedding", *(f"block{GAP}{i}" for i in (1, 2, 3))]
    for prompt, t in (("The Lion and the Mous", 20), ("Once upon a time", 4)):
        visit.fill("the prompt", prompt)
        ids = LAB.encode(prompt)[None]
        visit.says(f"The chance of each letter after “{prompt}”")  # so that the slider is the new
        if t + 1 < len(prompt):  # else it stands there
            visit.slide("after which letter", t + 1)
        streams, halves, guesses = by_hand(model, ids)
        own = stage.softmax(stage.Tensor(model.logits(ids))).data[0]
        letters = np.argsort(-guesses[:, t].max(0), kind="stable")[:10]
        letters = letters[np.argsort(-guesses[-1, t, letters], kind="stable")]
        visit.shows_matrix("lens", guesses[:, t, letters], rel=1e-5)
        assert visit.matrix("lens")[-1] == own[t, letters].tolist()  # exactly the model's own
        visit.shows("surest", own[t].max())
        visit.shows_matrix("guesses", guesses.max(-1), rel=1e-5)
        cells = visit.window.locator('table[data-name="guesses"] tbody tr').last.locator("td")
        best = [LAB.letters[i] for i in own.argmax(-1)]
        assert cells.all_inner_texts() == [b.replace(" ", "␣").replace("\n", "⏎") for b in best]
        visit.shows_bars("stream", {n: rms(x[t]) for n, x in zip(names, streams)}, rel=1e-5)
        parts = [f"{part}{GAP}{i}" for i in (1, 2, 3) for part in ("attention", "MLP")]
        visit.shows_bars("added", {n: rms(x[t]) for n, x in zip(parts, halves)}, rel=1e-4)
    assert visit.bars("depth_bits")[names[-1]] == pytest.approx(nats / math.log(2))


def test_prompts_that_cannot_be_read(visit):
    visit.open("stack")
    visit.says("has read the stories")
    visit.fill("the prompt", "")
    visit.refuses("The prompt is empty")
    visit.fill("the prompt", "the Ω")
    visit.refuses("The stories have no 'Ω'")
    visit.fill("the prompt", "ab" * 20)
    visit.says("It reads 32 letters at most: the first 8 are left out.")


def steps_of(label):
    """Where the slider of this label can stand."""
    pytest.importorskip("matplotlib")
    from explorer.page06_stack import SIZES

    return dict(SIZES.values())[label]


def test_published_sizes_and_one_of_your_own(visit):
    visit.open("stack")
    L, C, V, T = 12, 768, 50257, 1024
    assert V * C + T * C + L * (12 * C * C + 13 * C) + 2 * C == PUBLISHED["GPT-2 124M"]
    for name, weights in PUBLISHED.items():
        visit.choose("start from", name)
        visit.shows("weights", weights)
    visit.choose("start from", "the llama above")
    visit.choose("family", "gpt2")
    wanted = {"layers": 2, "width": 256, "vocabulary": 1024, "context": 64}
    wanted |= {"kv heads (0: as heads)": 4, "hidden units (0: usual)": 256, "heads": 4}
    for label, value in wanted.items():
        visit.slide(label, steps_of(label).index(value))
    config = stage.TransformerConfig("gpt2", 1024, 64, 2, 4, 256, 4, 256)
    visit.shows("weights", stage.count_params(config))
    visit.shows("gflop", stage.flops_per_token(config) / 1e9)
    shapes = {name: math.prod(shape) / 1e6 for name, shape in stage.param_shapes(config).items()}
    parts = {"embedding": "wte", "positions": "wpe", "attention": "attn", "MLP": "mlp"}
    parts = {part: sum(n for k, n in shapes.items() if w in k) for part, w in parts.items()}
    visit.shows_bars("parts", parts | {"norms": sum(shapes.values()) - sum(parts.values())})

    def shows_memory(*options):
        budget = stage.memory_budget(config, *options)
        expected = {name: budget[name] / 1e6 for name in ("weights", "gradients", "optimizer")}
        others = (budget["activations"] - budget["maps"]) / 1e6
        visit.shows_bars("training", expected | {"maps": budget["maps"] / 1e6, "others": others})
        visit.shows("memory", budget["training"] / 1e6)
        cache = budget["kv_cache"] / 1e6
        visit.shows_bars("generation", {"weights": budget["weights"] / 1e6, "KV-cache": cache})

    shows_memory()
    visit.slide("batch", 2)
    visit.choose("optimizer", "muon")
    shows_memory(4, "muon")
    visit.choose("numbers", "bfloat16, 2 bytes")
    visit.tick("attention in tiles")
    shows_memory(4, "muon", 2, True)
    visit.tick("recompute the blocks")
    shows_memory(4, "muon", 2, True, True)
    visit.slide("tokens a weight", 3)
    tokens = 10 * stage.count_params(config)
    operations, days, dollars = stage.run_cost(config, tokens, 1)
    visit.shows("tokens", tokens / 1e9)
    visit.shows("operations", operations)
    visit.shows("duration", days * 86400)
    visit.shows("dollars", dollars)


def test_models_that_cannot_be(visit):
    visit.open("stack")
    visit.slide("heads", steps_of("heads").index(25))
    visit.refuses("n_embd must be a multiple of n_head=25, not 768.")
    visit.slide("heads", steps_of("heads").index(8))
    visit.slide("kv heads (0: as heads)", steps_of("kv heads (0: as heads)").index(2))
    visit.refuses("gpt2 has n_kv_head = n_head = 8")
    visit.choose("family", "llama")
    config = stage.TransformerConfig("llama", 50257, 1024, 12, 8, 768, 2)
    visit.shows("weights", stage.count_params(config))


def test_the_scaling_law(visit, kept):
    visit.open("stack")
    visit.until(lambda: visit.number("predicted"), "the law")
    found = arrays(kept, "stack-sizes")
    N, short = found["weights"], int(found["lengths"][0])
    config = stage.TransformerConfig("llama", len(LAB.letters) - 1, 32, 1, 1, 8)
    model = stage.Transformer(config)
    stage.train(model, LAB.ids[: LAB.start], short, 16, 0.02)
    assert N[0] == stage.count_params(config)
    assert found["nats"][0, 0] == stage.held_out_loss(model, LAB.ids, LAB.start)
    for which, points in ((1, 6), (0, 3), (0, 5)):
        nats = found["nats"][which]
        E, A, alpha = stage.fit_power_law(N[:points], nats[:points])
        visit.choose("each trained for", f"{found['lengths'][which]:,} steps")
        visit.slide("points to fit", points)
        for name, value in (("E", E), ("A", A), ("alpha", alpha), ("measured", nats[-1])):
            visit.shows(name, value)
        visit.shows("predicted", E + A / N[-1] ** alpha)
        for n, measured in zip(N, nats):
            visit.shows(f"off {n}", measured - E - A / n**alpha)


def test_helpers(kept):
    pytest.importorskip("marimo")
    pytest.importorskip("matplotlib")
    from explorer import page06_stack as page

    for given in page.MODELS.values():
        config = stage.TransformerConfig(**given)
        assert sum(page.count_parts(config).values()) == stage.count_params(config)
        for name, value in given.items():
            assert name == "arch" or value in page.SIZES[name][1]  # a slider can stand there
    assert page.MODELS["the llama above"]["vocab_size"] == len(LAB.letters) - 1
    assert page.in_unit(0.5, {"a": 1, "b": 10}) == (0.5, "a")
    assert page.in_unit(20, {"a": 1, "b": 10}) == (2, "b")
