"""The model: gradients of the whole, causality, the cache, generation, sizes, wrong input."""

import copy

import numpy as np
import pytest
from conftest import generators, relative_error

import capstone_gpt as gpt

VARIANTS = {
    "gpt2": {"arch": "gpt2"},
    "nanogpt": {"arch": "gpt2", "bias": False},
    "llama": {"arch": "llama", "n_kv_head": 2},
    "tied": {"arch": "llama", "tie_weights": True},
}
SCALING = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
SCALING["original_max_position_embeddings"] = 8192


def make(variant="gpt2", dtype=np.float64, **fields):
    sizes = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 4, "n_embd": 16}
    model = gpt.GPT(gpt.GPTConfig(**(sizes | VARIANTS[variant] | fields)), dtype=dtype)
    model.flat[:] += np.random.default_rng(1).normal(0, 0.3, model.flat.size)
    return model


def test_gradcheck_passes_for_every_tensor_but_those_whose_backward_is_wrong(monkeypatch):
    """One run: with gelu's backward off by a thousandth, gpt2 is caught and llama is not."""
    right = gpt.gelu_backward
    monkeypatch.setattr(gpt, "gelu_backward", lambda dy, slope: 1.001 * right(dy, slope))
    rows = gpt.gradcheck()
    assert {model for model, *_ in rows} == {"gpt2", "gpt2, no bias", "llama"}
    errors = {(model, name): error for model, name, _, error, _ in rows}
    for model, names in (
        ("gpt2", ["transformer.h.0.mlp.c_fc.weight", "transformer.h.1.mlp.c_fc.bias"]),
        ("gpt2, no bias", ["transformer.h.0.mlp.c_fc.weight"]),
    ):
        assert all(errors[model, name] > 1e-4 for name in names)
    untouched = [e for (m, n), e in errors.items() if m == "llama" or "h.1.mlp.c_proj" in n]
    assert len(untouched) > 20 and max(untouched) < 1e-6


@pytest.mark.parametrize("error,status", [(9e-7, 0), (1.1e-6, 1), (float("nan"), 1)])
def test_the_gradcheck_command_judges_by_the_largest_error(monkeypatch, capsys, error, status):
    rows = [("gpt2", "a.weight", (2, 3), 1e-9, (1, 2)), ("llama", "b.weight", (4,), error, (3,))]
    monkeypatch.setattr(gpt, "gradcheck", lambda: rows)
    assert gpt.main(["gradcheck"]) == status
    said = capsys.readouterr().out
    assert f"2 tensors, {status} with a relative error" in said and "2 x 3" in said
    assert "1.0e-09 (1, 2)" in said and " (3,)\n" in said


@pytest.mark.parametrize("scale", [1.0, 1e-11])
def test_gradcheck_names_the_one_wrong_entry_at_any_scale(monkeypatch, scale):
    right = gpt.GPT.loss_and_grads, gpt.GPT.loss

    def loss_and_grads(model, *args):
        loss, grads = right[0](model, *args)
        grads.flat *= scale
        grads["model.embed_tokens.weight"][3, 5] *= 0.999
        grads["model.norm.weight"][:] *= -1
        return scale * loss, grads

    monkeypatch.setattr(gpt.GPT, "loss_and_grads", loss_and_grads)
    monkeypatch.setattr(gpt.GPT, "loss", lambda *args: scale * right[1](*args))
    sizes = {"vocab_size": 7, "block_size": 5, "n_layer": 1, "n_head": 2, "n_embd": 8}
    rows = {name: rest for name, *rest in gpt.gradcheck_model(gpt.GPTConfig("llama", **sizes))}
    shape, error, at = rows.pop("model.embed_tokens.weight")
    assert shape == (7, 8) and 5e-4 < error < 2e-3 and at == (3, 5)
    assert rows.pop("model.norm.weight")[1] > 1
    assert max(error for _, error, _ in rows.values()) < 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("B,T", [(1, 1), (3, 5), (2, 8)])
def test_gradients_along_a_direction(rng, variant, B, T):
    model = make(variant, dropout=0.1)
    idx, targets = rng.integers(0, 11, (B, T)), rng.integers(0, 11, (B, T))
    loss, grads = model.loss_and_grads(idx, targets, generators(len(idx)))
    assert list(grads) == list(model.params) and grads.flat.shape == model.flat.shape
    direction, ends = rng.normal(size=model.flat.size), []
    for h in (1e-6, -1e-6):
        model.flat[:] += h * direction
        ends.append(model.loss(idx, targets, generators(len(idx))))
        model.flat[:] -= h * direction
    assert relative_error(grads.flat @ direction, (ends[0] - ends[1]) / 2e-6) < 1e-6
    assert loss == pytest.approx(model.loss(idx, targets, generators(len(idx))))


@pytest.mark.parametrize("variant", VARIANTS)
def test_params_and_grads_are_views_into_one_vector(variant):
    model = make(variant)
    assert sum(p.size for p in model.params.values()) == model.flat.size == model.num_params()
    _, grads = model.loss_and_grads(np.zeros((1, 2), int), np.ones((1, 2), int))
    for tensors, flat in ((model.params, model.flat), (grads, grads.flat)):
        assert all(np.shares_memory(p, flat) for p in tensors.values())
        assert flat.flags.c_contiguous
    twin = copy.deepcopy(model)
    model.flat -= model.flat
    assert not any(p.any() for p in model.params.values())
    assert twin.flat.any() and all(np.shares_memory(p, twin.flat) for p in twin.params.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_causality(rng, variant):
    model, idx = make(variant), rng.integers(0, 11, (2, 8))
    before = model.logits(idx)
    for t in range(8):
        changed = idx.copy()
        changed[:, t] = (changed[:, t] + 1) % 11
        after = model.logits(changed)
        assert np.array_equal(after[:, :t], before[:, :t]) and not np.allclose(
            after[:, t], before[:, t]
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_generation_with_the_cache_equals_recomputing_every_window(rng, variant):
    model, prompt = make(variant), rng.integers(0, 11, (3, 5))
    out = model.generate(prompt, 12, temperature=0)  # 17 tokens, the block is 8: the window slides
    plain = prompt
    for _ in range(12):
        token = model.logits(plain[:, -8:])[:, -1].argmax(-1)
        plain = np.concatenate([plain, token[:, None]], 1)
    assert np.array_equal(out, plain)


def test_a_prompt_longer_than_the_block_is_kept_and_only_its_end_is_read(rng):
    model, prompt = make(), rng.integers(0, 11, (1, 20))
    out = model.generate(prompt, 3, temperature=0)
    assert np.array_equal(out[:, :20], prompt)
    assert np.array_equal(out[:, 20:], model.generate(prompt[:, -8:], 3, temperature=0)[:, 8:])


def test_sampling_follows_the_seed_and_the_distribution(rng):
    model, prompt = make(), np.zeros((1, 1), int)
    assert np.array_equal(model.generate(prompt, 9, seed=4), model.generate(prompt, 9, seed=4))
    assert not np.array_equal(model.generate(prompt, 9, seed=4), model.generate(prompt, 9, seed=5))
    logits = np.log([[0.1, 0.2, 0.3, 0.4]]).repeat(40000, 0)
    for (top_k, top_p), expected in {
        (None, None): [0.1, 0.2, 0.3, 0.4],
        (2, None): [0, 0, 3 / 7, 4 / 7],
        (None, 0.65): [0, 0, 3 / 7, 4 / 7],
        (None, 0.39): [0, 0, 0, 1],
        (None, 0.7): [0, 0, 3 / 7, 4 / 7],  # 0.4 + 0.3 is 0.7, whatever rounding says
        (None, 0.7 + 1e-12): [0, 0, 3 / 7, 4 / 7],
        (None, 0.9): [0, 2 / 9, 3 / 9, 4 / 9],
        (None, 1e-12): [0, 0, 0, 1],
        (2**80, None): [0.1, 0.2, 0.3, 0.4],
    }.items():
        drawn = gpt.sample_token(logits, 1.0, top_k, top_p, rng)
        assert np.allclose(np.bincount(drawn, minlength=4) / 40000, expected, atol=0.01)
    hot = gpt.sample_token(logits, 0.5, None, None, rng)
    assert np.allclose(np.bincount(hot) / 40000, np.array([1, 4, 9, 16]) / 30, atol=0.01)
    assert set(gpt.sample_token(logits, 1e-300, None, None, rng)) == {3}


def test_published_sizes():
    config = gpt.GPTConfig(arch="gpt2")
    count = sum(int(np.prod(shape)) for shape in gpt.param_shapes(config).values())
    assert count == 124_439_808
    llama = sum(np.prod(s, dtype=int) for s in gpt.param_shapes(gpt.GPTConfig("llama")).values())
    assert llama == 6_738_415_616


def test_loss_at_the_start_is_that_of_guessing():
    for variant in VARIANTS.values():
        config = gpt.GPTConfig(
            vocab_size=50, block_size=8, n_layer=2, n_head=2, n_embd=32, **variant
        )
        idx = np.arange(16).reshape(2, 8)
        assert gpt.GPT(config).loss(idx, idx + 1) == pytest.approx(np.log(50), abs=0.1)


def test_one_batch_can_be_learnt_by_heart(rng):
    model = gpt.GPT(gpt.GPTConfig("llama", 11, 8, 2, 2, 32))
    optimizer, idx = gpt.AdamW(model.params, weight_decay=0.0), rng.integers(0, 11, (4, 9))
    for _ in range(150):
        loss, grads = model.loss_and_grads(idx[:, :-1], idx[:, 1:])
        optimizer.step(grads.flat, np.linalg.norm(grads.flat), 1e-2)
    assert loss < 0.4  # what is left is the first token of each row, which nothing predicts


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"arch": "bert"}, "arch must be"),
        ({"n_embd": 10, "n_head": 4}, "multiple of n_head"),
        ({"arch": "gpt2", "n_kv_head": 1, "n_head": 4, "n_embd": 16}, "no grouped queries"),
        ({"arch": "llama", "n_kv_head": 3, "n_head": 4, "n_embd": 16}, "multiple of n_kv_head"),
        ({"arch": "llama", "bias": True}, "no biases"),
        ({"arch": "llama", "n_head": 2, "n_embd": 6}, "even head size"),
        ({"dropout": 1.0}, "dropout"),
        ({"n_layer": 0}, "n_layer must be at least 1"),
        ({"block_size": 2.5}, "block_size must be a whole"),
        ({"vocab_size": -3}, "vocab_size must be at least 1"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"n_hidden": -1}, "n_hidden"),
        ({"n_hidden": 16.0}, "n_hidden"),
        ({"bias": "False"}, "bias must be True or False"),
        ({"dropout": "x"}, "dropout must be a number"),
        ({"arch": ["gpt2"]}, "arch must be"),
        ({"n_layer": 10**20}, "n_layer must be"),
        ({"rope_scaling": SCALING, "arch": "gpt2"}, "belongs to llama"),
        ({"rope_scaling": SCALING | {"factor": 0}, "arch": "llama"}, "factor must be at least"),
        ({"rope_scaling": SCALING | {"extra": 1}, "arch": "llama"}, "rope_scaling must have"),
        ({"rope_scaling": [8], "arch": "llama"}, "rope_scaling must have"),
        ({"rope_scaling": SCALING | {"low_freq_factor": 4}, "arch": "llama"}, "must be below"),
        ({"rope_theta": 10**400}, "rope_theta must be"),
        ({"dropout": True}, "dropout must be a number"),
        ({"n_embd": 10**12, "n_head": 1}, "n_embd must be at least 1 and below 1e.06"),
        ({"n_head": None, "dropout": None}, "dropout must be a number, not None"),
    ],
)
def test_configurations_that_are_no_model(fields, words):
    with pytest.raises(ValueError, match=words):
        gpt.GPTConfig(**fields)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda m: m.logits(np.zeros((1, 9), int)), "more than block_size=8"),
        (lambda m: m.logits(np.zeros(3, int)), r"\(B, T\) array of integers"),
        (lambda m: m.logits(np.zeros((1, 2))), r"\(B, T\) array of integers"),
        (lambda m: m.logits(np.full((1, 2), 11)), "0..10"),
        (lambda m: m.logits(np.full((1, 2), -1)), "0..10"),
        (lambda m: m.loss(np.zeros((1, 2), int), np.full((1, 2), -2)), "-1..10"),
        (lambda m: m.loss(np.zeros((1, 2), int), np.zeros((1, 3), int)), "one shape"),
        (lambda m: m.generate(np.zeros((1, 0), int), 1), r"\(B, T\) array"),
        (lambda m: m.generate(np.zeros((1, 1), int), -1), "max_new_tokens"),
        (lambda m: m.generate(np.zeros((1, 1), int), 1, temperature=-1.0), "temperature"),
        (lambda m: m.generate(np.zeros((1, 1), int), 1, top_k=0), "top_k"),
        (lambda m: m.generate(np.zeros((1, 1), int), 1, top_p=0.0), "top_p"),
    ],
)
def test_wrong_input_says_what_was_expected(call, words):
    with pytest.raises(ValueError, match=words):
        call(make())


# the training step


def pieces_of(idx, targets, n):
    return [(i, t, None) for i, t in zip(np.split(idx, n), np.split(targets, n))]


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_a_step_on_pieces_is_the_step_on_their_mean(rng, pieces):
    """One step of plain AdamW by hand from the gradient of the whole batch."""
    model, (idx, targets) = make(), rng.integers(0, 11, (2, 4, 8))
    loss, grads = model.loss_and_grads(idx, targets)
    before, g = model.flat.copy(), grads.flat.copy()
    optimizer = gpt.AdamW(model.params, (0.9, 0.99), 1e-8, 0.0, grad_clip=0.5)
    found = gpt.training_step(model, optimizer, pieces_of(idx, targets, pieces), 1e-3)
    norm = np.linalg.norm(g)
    assert found == pytest.approx((loss, norm), rel=1e-12) and norm > 0.5
    clipped = g * 0.5 / norm
    assert np.allclose(optimizer.m, 0.1 * clipped, rtol=1e-10, atol=1e-16)
    assert np.allclose(optimizer.v, 0.01 * clipped**2, rtol=1e-10, atol=1e-20)
    expected = before - 1e-3 * clipped / (np.abs(clipped) + 1e-8)
    assert np.allclose(model.flat, expected, rtol=0, atol=1e-10) and optimizer.t == 1


def test_a_step_that_is_not_finite_changes_nothing(rng):
    model, (idx, targets) = make(), rng.integers(0, 11, (2, 2, 8))
    model.params["transformer.wte.weight"][0, 0] = np.inf
    optimizer, before = gpt.AdamW(model.params), model.flat.copy()
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="gradient norm"):
        gpt.training_step(model, optimizer, pieces_of(idx, targets, 1), 1e-3)
    assert np.array_equal(model.flat, before) and optimizer.t == 0 and not optimizer.m.any()


def test_a_sequence_is_drawn_by_its_place_in_the_step():
    ids = np.arange(100, dtype=np.uint16)
    idx, targets, rngs = gpt.draw_batch(ids, 8, 6, seed=3, step=5)
    assert idx.shape == (6, 8) and np.array_equal(targets, idx + 1) and len(rngs) == 6
    assert np.array_equal(idx, idx[:, :1] + np.arange(8))
    tail, _, tail_rngs = gpt.draw_batch(ids, 8, 2, seed=3, step=5, first=4)
    assert np.array_equal(tail, idx[4:])
    assert [g.random() for g in tail_rngs] == [g.random() for g in rngs[4:]]
    others = [gpt.draw_batch(ids, 8, 6, 3, 6)[0], gpt.draw_batch(ids, 8, 6, 4, 5)[0]]
    assert not any(np.array_equal(idx, other) for other in others)


def test_every_window_of_the_text_is_drawn_and_none_beyond_its_end():
    starts = [gpt.draw_batch(np.arange(12), 8, 8, 0, step)[0][:, 0] for step in range(30)]
    assert set(np.concatenate(starts)) == {0, 1, 2, 3}


def test_warmup_and_cosine_by_hand():
    def rate(step):
        return gpt.warmup_cosine(step, peak=1.0, floor=0.2, warmup=4, end=12)

    assert [rate(step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rate(4) == pytest.approx(1.0) and rate(8) == pytest.approx(0.6)
    assert rate(6) == pytest.approx(0.2 + 0.4 * (1 + np.sqrt(0.5)))
    assert rate(12) == rate(50) == pytest.approx(0.2)
    assert gpt.warmup_cosine(0, 1.0, 0.0, 0, 10) == 1.0


# sizes and the start


@pytest.mark.parametrize("arch,C,F", [("llama", 4096, 11008), ("llama", 96, 258), ("llama", 8, 22)])
def test_the_width_of_llama_s_mlp_is_eight_thirds_rounded_up(arch, C, F):
    """11008 is Llama-2 7B's; 8·96/3 = 256 = 42⅔ units of 6; 8·8/3 = 21⅓ units of 1."""
    assert gpt.GPTConfig(arch, n_embd=C, n_head=1).n_hidden == F
    assert gpt.GPTConfig("gpt2", n_embd=C, n_head=1).n_hidden == 4 * C


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_weights_start_with_the_spread_that_the_docstring_promises(arch):
    model = gpt.GPT(gpt.GPTConfig(arch, 50, 40, 8, 2, 64))
    for name, p in model.params.items():
        if p.ndim == 1:
            assert np.all(p == (1 if name.endswith("weight") else 0)), name
        else:
            into_stream = any(word in name for word in ("c_proj", "o_proj", "down_proj"))
            assert p.std() == pytest.approx(0.005 if into_stream else 0.02, rel=0.1), name
            assert abs(p.mean()) < 0.002


@pytest.mark.parametrize("top_p,ok", [(1, True), (0.5, True), (0, False), (1.01, False)])
def test_top_p_lies_above_0_and_reaches_1(top_p, ok):
    model, idx = make(), np.zeros((1, 1), int)
    if ok:
        assert model.generate(idx, 2, top_p=top_p, seed=0).shape == (1, 3)
    else:
        with pytest.raises(ValueError, match="top_p"):
            model.generate(idx, 2, top_p=top_p)


# Inputs at the corners: the right value, or a sentence that says what was expected.


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64])
def test_ids_of_any_width_are_the_same_ids(rng, dtype):
    model, ids = make("llama"), rng.integers(0, 11, (2, 8))
    narrow = ids.astype(dtype)
    assert model.loss(narrow, narrow[:, ::-1]) == model.loss(ids, ids[:, ::-1])
    assert np.array_equal(model.generate(narrow, 5, seed=0), model.generate(ids, 5, seed=0))
    nats = [gpt.kneser_ney_nats(i[0], i[1:], 11, 3) for i in (ids, narrow)]
    assert np.array_equal(*nats)
    assert gpt.evaluate(model, narrow.ravel(), 2, 8, 4) == gpt.evaluate(model, ids.ravel(), 2, 8, 4)


def test_wrong_numbers_are_named(rng):
    model, ids = make(), rng.integers(0, 11, 40)
    start = ids[None, :4]
    for call, said in (
        (lambda: model.generate(start, 1, "a"), "temperature must be a number, not 'a'"),
        (lambda: model.generate(start, 1, None), "temperature .* not None"),
        (lambda: model.generate(start, 1, True), "temperature .* not True"),
        (lambda: model.generate(start, 1, np.nan), "temperature .* not nan"),
        (lambda: model.generate(start, 1, top_k=2.5), "top_k .* not 2.5"),
        (lambda: model.generate(start, 1, top_p="a"), "top_p .* not 'a'"),
        (lambda: model.generate(start, 1, seed="a"), "seed .* not 'a'"),
        (lambda: model.generate(start, 1, seed=1.5), "seed .* not 1.5"),
        (lambda: gpt.AdamW(model.params, (0.9, "a")), "a beta .* not 'a'"),
        (lambda: gpt.AdamW(model.params, (0.9, 1.0)), "a beta .* below 1, not 1.0"),
        (lambda: gpt.AdamW(model.params, (True, 0.9)), "a beta .* not True"),
        (lambda: gpt.AdamW(model.params, weight_decay=None), "weight_decay .* not None"),
        (lambda: gpt.AdamW(model.params, grad_clip=np.nan), "grad_clip .* not nan"),
        (lambda: gpt.warmup_cosine("1", 1, 0, 3, 9), "a step .* not '1'"),
        (lambda: gpt.draw_batch(ids[:8], 8, 2, 0, 0), "8 tokens are too few for a block of 8"),
        (lambda: gpt.evaluate(model, ids, "a", 8, 4), "first .* not 'a'"),
        (lambda: gpt.evaluate(model, ids, 1, 8, "a"), "stride .* not 'a'"),
        (lambda: gpt.evaluate(model, ids, 1, 8, 9), "stride .* below 9, not 9"),
        (lambda: gpt.kneser_ney_nats(ids, ids[None], 11, "a"), "order .* not 'a'"),
        (lambda: gpt.kneser_ney_nats(ids[:2], ids[None], 11, 4), "order .* below 4, not 4"),
        (lambda: gpt.kneser_ney_nats(ids, ids[None], 0, 1), "vocab_size .* not 0"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    for wrong in (ids * 1.0, ids > 3, ids - 1 - ids.min(), ids + 11):
        for pair in ((wrong, ids[None]), (ids, wrong[None])):
            with pytest.raises(ValueError, match=r"token ids must be integers in 0\.\.10"):
                gpt.kneser_ney_nats(*pair, 11, 2)


def test_steps_of_eight_bits_count_like_any_others():
    few, many = np.uint8(3), np.uint8(255)
    assert gpt.warmup_cosine(many, 1.0, 0, 300, 1000) == pytest.approx(256 / 301)
    assert gpt.warmup_cosine(1, 1.0, 0, few, np.uint8(200)) == 0.5
    model, ids = make(), np.arange(700) % 11
    wide = gpt.evaluate(model, ids, 20, 8, 4)
    assert gpt.evaluate(model, ids, np.uint8(20), np.uint8(8), np.uint8(4)) == wide


def test_decode_takes_integers_and_nothing_else():
    tokenizer = gpt.CharTokenizer("abc")
    for ids in ([0, 2], np.array([0, 2], np.uint8), np.array([0, 2], np.uint64)):
        assert tokenizer.decode(ids) == "ac"
    assert tokenizer.decode([]) == "" and tokenizer.decode([9]) == "\ufffd"
    for wrong in ([1.0], [True], "1", ["a"], None):
        with pytest.raises(ValueError, match="not integers"):
            tokenizer.decode(wrong)


def test_a_text_of_a_thousand_different_characters_is_learned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(0x4E00 + i) for i in range(600)) * 3, encoding="utf-8")
    for tokenizer in (["--tokenizer", "char"], []):
        words = ["train", "--fast", "--data", str(path), "--max_iters", "2", "--workers", "1"]
        assert gpt.main(words + tokenizer) == 0
    assert capsys.readouterr().out.count("held-out: ") == 2
