"""Stage 6: gradients by two routes, masks and causality, exact counts, laws recovered, a report."""

import dataclasses
import math
import tracemalloc

import numpy as np
import pytest
from conftest import assert_gradients, central_difference, check_held_out_line, relative_error

import capstone_gpt
import stage06_transformer as s6

TINY = {"vocab_size": 11, "block_size": 9, "n_layer": 2, "n_head": 4, "n_embd": 24}
FAMILIES = {
    "gpt2": {"arch": "gpt2"},
    "gpt2-bias-free": {"arch": "gpt2", "bias": False},
    "gpt2-untied": {"arch": "gpt2", "tie_weights": False, "norm_eps": 1e-3},
    "llama": {"arch": "llama"},
    "llama-grouped": {"arch": "llama", "n_kv_head": 2, "n_hidden": 17},
    "llama-multiquery-tied": {"arch": "llama", "n_kv_head": 1, "tie_weights": True},
}
family = pytest.mark.parametrize("kind", FAMILIES)


def make(kind, rng, **changes):
    """A float64 model with weights large enough that every path matters."""
    config = s6.TransformerConfig(**(TINY | FAMILIES[kind] | changes))
    model = s6.Transformer(config, dtype=np.float64)
    for name, p in model.params.items():
        model.params[name] = p + 0.3 * rng.normal(size=p.shape)
    return model


# the autograd


OPERATIONS = {
    "add": (lambda a, b: a + b, [(3, 2, 4), (2, 4)]),
    "add stretched": (lambda a, b: a + b, [(3, 1, 4), (2, 1)]),
    "mul": (lambda a, b: a * b, [(3, 1, 5), (3, 1, 5)]),
    "mul constant": (lambda a: a * 0.3, [(2, 5)]),
    "product": (lambda a, b: a @ b, [(3, 2, 4), (4, 5)]),
    "product one row": (lambda a, b: a @ b, [(1, 4), (4, 1)]),
    "product shared": (lambda a, b: a @ b, [(2, 2, 3, 5, 4), (2, 2, 1, 4, 6)]),
    "reshape": (lambda a: a.reshape(5, -1), [(2, 5, 3)]),
    "transpose": (lambda a: a.transpose(2, 0, 1), [(2, 5, 3)]),
    "slice": (lambda a: a[..., 1:3], [(2, 5, 4)]),
    "rows": (lambda a: a[np.array([[2, 0, 2], [2, 1, 0]])], [(4, 3)]),
    "reused": (lambda a: a * a + a, [(3, 2)]),
    "layernorm": (lambda x, w, b: s6.normalise(x, w, b), [(2, 3, 5), (5,), (5,)]),
    "layernorm no bias": (lambda x, w: s6.normalise(x, w, eps=0.1), [(1, 1, 7), (7,)]),
    "rmsnorm": (lambda x, w: s6.normalise(x, w, centre=False), [(2, 3, 5), (5,)]),
    "gelu": (s6.gelu, [(3, 7)]),
    "silu": (s6.silu, [(3, 7)]),
    "softmax": (lambda x: s6.softmax(x, s6.attention_mask(4, 1)), [(2, 4, 4)]),
    "softmax T=1": (lambda x: s6.softmax(x, s6.attention_mask(1)), [(2, 1, 1)]),
    "cross entropy": (
        lambda z: s6.cross_entropy(z, np.array([[0, -1, 4], [2, 2, -1]])),
        [(2, 3, 5)],
    ),
    "rotate": (
        lambda x: s6.rotate(x, *np.random.default_rng(3).normal(size=(2, 3, 1)).repeat(4, 2)),
        [(2, 3, 8)],
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_gradients(name, rng):
    operation, shapes = OPERATIONS[name]
    arrays = [rng.normal(size=shape) for shape in shapes]

    def analytic(dy):
        tape = []
        leaves = [s6.Tensor(a, tape=tape) for a in arrays]
        y = operation(*leaves)
        weights = s6.Tensor(np.reshape(dy, (-1, 1)))
        (y.reshape(1, -1) @ weights).backward()
        return [leaf.grad for leaf in leaves]

    assert_gradients(lambda: operation(*map(s6.Tensor, arrays)).data, arrays, analytic)


def test_without_a_tape_nothing_is_kept(rng):
    y = s6.gelu(s6.Tensor(rng.normal(size=(2, 3)))) * 2.0
    assert y.tape is None and not hasattr(y, "parents")


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e3])
def test_bends_and_losses_at_the_extremes(scale, rng):
    x = rng.normal(size=(2, 3, 5)) * scale
    sigmoid = 1 / (1 + np.exp(-np.clip(x, -700, 700)))
    assert np.allclose(s6.silu(s6.Tensor(x)).data, x * sigmoid, atol=1e-12)
    assert np.isfinite(s6.gelu(s6.Tensor(x)).data).all()
    z = s6.Tensor(x)
    targets = rng.integers(0, 5, (2, 3))
    p = s6.softmax(z).data
    assert np.allclose(p.sum(-1), 1)
    loss = float(s6.cross_entropy(z, targets).data)
    with np.errstate(divide="ignore"):
        direct = -np.log(np.take_along_axis(p, targets[..., None], -1)).mean()
    assert loss == pytest.approx(direct) or math.isinf(direct)
    assert s6.cross_entropy(z, np.full((2, 3), -1)).data == 0


def test_norms_have_the_statistics_they_promise(rng):
    x, one = s6.Tensor(3 + 5 * rng.normal(size=(4, 64))), s6.Tensor(np.ones(64))
    y, r = s6.normalise(x, one, eps=1e-12).data, s6.normalise(x, one, eps=1e-12, centre=False).data
    assert np.allclose(y.mean(-1), 0) and np.allclose(y.var(-1), 1)
    assert np.allclose((r * r).mean(-1), 1) and abs(r.mean()) > 0.1
    centred = s6.Tensor(x.data - x.data.mean(-1, keepdims=True))
    assert np.allclose(s6.normalise(centred, one, eps=1e-12, centre=False).data, y)


# the model against the capstone, and against itself


@family
def test_capstone_agrees(kind, rng):
    model = make(kind, rng)
    theirs = capstone_gpt.GPT(
        capstone_gpt.GPTConfig(**dataclasses.asdict(model.config)), dtype=np.float64
    )
    assert {k: v.shape for k, v in theirs.params.items()} == s6.param_shapes(model.config)
    for name, p in model.params.items():
        theirs.params[name][...] = p
    idx, targets = rng.integers(0, 11, (3, 7)), rng.integers(-1, 11, (3, 7))
    loss, grads = model.loss_and_grads(idx, targets)
    their_loss, their_grads = theirs.loss_and_grads(idx, targets)
    assert abs(loss - their_loss) < 1e-9 and model.loss(idx, targets) == loss
    assert np.abs(model.logits(idx) - theirs.logits(idx)).max() < 1e-9
    assert grads.keys() == their_grads.keys()
    for name, grad in grads.items():
        assert np.abs(grad - their_grads[name]).max() < 1e-9, name
    assert s6.count_params(model.config) == theirs.num_params()
    c, products = (
        model.config,
        sum(w.size for b in theirs.params.blocks for w in b.values() if w.ndim == 2),
    )
    products += theirs.params.top["head.weight"].size
    attention = 12 * c.n_layer * c.n_embd * c.block_size
    assert s6.flops_per_token(c) == 6 * products + attention
    assert np.array_equal(
        model.generate(idx, 3, temperature=0), theirs.generate(idx, 3, temperature=0)
    )


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_config_and_initial_spread_are_the_capstone_s(arch):
    ours, theirs = s6.TransformerConfig(arch), capstone_gpt.GPTConfig(arch)
    assert dataclasses.asdict(ours) | {"rope_scaling": None} == dataclasses.asdict(theirs)
    small = TINY | {"n_embd": 64, "n_layer": 8}
    model = s6.Transformer(s6.TransformerConfig(arch, **small))
    other = capstone_gpt.GPT(capstone_gpt.GPTConfig(arch, **small))
    for name, p in model.params.items():
        assert p.dtype == np.float32
        assert p.std() == pytest.approx(other.params[name].std(), rel=0.15, abs=1e-9), name


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped"])
@pytest.mark.parametrize("prefix", [0, 3])
def test_gradients_against_central_differences(kind, post_norm, prefix, rng):
    model = make(kind, rng, n_layer=1, n_embd=8, vocab_size=5, block_size=4)
    model.post_norm = post_norm
    idx, targets = rng.integers(0, 5, (2, 3)), rng.integers(-1, 5, (2, 3))
    _, grads = model.loss_and_grads(idx, targets, prefix=prefix)
    names = rng.permutation(sorted(grads))[:6]
    for name in names:
        numeric = central_difference(  # a small step: RMSNorm bends sharply at tiny embeddings
            lambda: model.loss(idx, targets, prefix=prefix), model.params[name], h=1e-6
        )
        assert relative_error(grads[name], numeric) < 1e-6, name


@family
@pytest.mark.parametrize("prefix", [0, 3, 6])
def test_who_sees_whom(kind, prefix, rng):
    model, T = make(kind, rng), 6
    idx = rng.integers(0, 11, (1, T))
    before = model.logits(idx, prefix=prefix)
    for j in range(T):
        changed = idx.copy()
        changed[0, j] = (changed[0, j] + 1) % 11
        moved = np.abs(model.logits(changed, prefix=prefix) - before).max(-1)[0] > 0
        assert moved.tolist() == [j <= i or j < prefix for i in range(T)]


@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped"])
def test_batch_rows_and_prefixes_are_independent(kind, rng):
    model = make(kind, rng)
    idx = rng.integers(0, 11, (3, 7))
    whole = model.logits(idx)
    assert np.allclose(whole[1:2], model.logits(idx[1:2]), atol=1e-12)
    assert np.allclose(whole[:, :1], model.logits(idx[:, :1]), atol=1e-12)


def test_tied_gradient_is_the_sum_of_both_uses(rng):
    tied = make("llama-multiquery-tied", rng)
    untied = make("llama-multiquery-tied", rng, tie_weights=False)
    untied.params = tied.params | {"lm_head.weight": tied.params["model.embed_tokens.weight"]}
    idx, targets = rng.integers(0, 11, (2, 5)), rng.integers(0, 11, (2, 5))
    (loss, grads), (other, parts) = (m.loss_and_grads(idx, targets) for m in (tied, untied))
    both = parts["model.embed_tokens.weight"] + parts["lm_head.weight"]
    assert loss == pytest.approx(other, abs=1e-12)
    assert np.allclose(grads["model.embed_tokens.weight"], both, atol=1e-12)


def test_one_character_vocabulary():
    model = s6.Transformer(s6.TransformerConfig("llama", 1, 4, 1, 1, 4))
    loss, grads = model.loss_and_grads(np.zeros((1, 1), int), np.zeros((1, 1), int))
    assert loss == 0 and all(not g.any() for g in grads.values())


def test_generate(rng):
    model = make("llama-grouped", rng)
    idx = rng.integers(0, 11, (2, 3))
    out = model.generate(idx, 12, seed=5)  # past block_size: the window slides
    assert out.shape == (2, 15) and np.array_equal(out[:, :3], idx)
    assert np.array_equal(out, model.generate(idx, 12, seed=5))
    assert not np.array_equal(out, model.generate(idx, 12, seed=6))
    greedy = model.generate(idx, 4, temperature=0)
    for rule in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}):
        assert np.array_equal(greedy, model.generate(idx, 4, seed=1, **rule))
    assert np.array_equal(model.generate(idx, 0), idx)
    z = model.logits(idx[:1])[0, -1]
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    drawn = model.generate(np.repeat(idx[:1], 4000, 0), 1, seed=0)[:, -1]
    assert np.abs(np.bincount(drawn, minlength=11) / 4000 - p).max() < 0.035
    nucleus = model.generate(np.repeat(idx[:1], 500, 0), 1, top_p=0.6, seed=0)[:, -1]
    order = np.argsort(-p)
    allowed = order[: int(np.searchsorted(np.cumsum(p[order]), 0.6)) + 1]
    assert set(nucleus) <= set(allowed)


# counting


SIZES = dict(zip(s6.PRESETS, (124439808, 354823168, 774030080, 1557611200, 6738415616, 8030261248)))


@pytest.mark.parametrize("name", SIZES)
def test_presets_are_exact_and_allocate_nothing(name):
    tracemalloc.start()
    assert s6.count_params(s6.PRESETS[name]) == SIZES[name]
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert len(SIZES) == 6


def test_flops_by_hand():
    c = s6.TransformerConfig("gpt2", 50, 16, 3, 2, 8)
    matrices = 3 * 12 * 8 * 8 + 50 * 8  # blocks and the tied head, not the positions
    assert s6.flops_per_token(c) == 6 * matrices + 12 * 3 * 8 * 16


@pytest.mark.parametrize("kind", FAMILIES)
def test_activations_as_tracemalloc_sees_them(kind, rng):
    sizes = {"n_embd": 64, "block_size": 48, "vocab_size": 70, "n_layer": 3}
    model = make(kind, rng, **sizes)
    idx = rng.integers(0, 70, (4, 48))
    model.logits(idx)
    tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    loss, _ = model._run(idx, idx, tape=[])
    kept = tracemalloc.get_traced_memory()[0] - start
    tracemalloc.stop()
    budget = s6.memory_budget(model.config, 4, bytes_per_number=8)
    assert loss.tape and kept == pytest.approx(budget["activations"], rel=0.06)


def test_memory_budget_sums():
    c = s6.PRESETS["llama-3-8b"]
    b = s6.memory_budget(c, 2, "adamw")
    N = s6.count_params(c)
    assert b["weights"] == b["gradients"] == 4 * N and b["optimizer"] == 8 * N
    assert b["kv_cache"] == 4 * 2 * 8192 * 2 * 32 * 8 * 128
    assert b["training"] == sum(b[k] for k in ("weights", "gradients", "optimizer", "activations"))
    assert b["generation"] == b["weights"] + b["kv_cache"]
    assert s6.memory_budget(c, 4)["activations"] == 2 * b["activations"]
    assert s6.memory_budget(c, 2, "sgd")["optimizer"] == 0
    assert s6.memory_budget(c, 2, "none")["training"] == b["weights"]


# laws


def test_chinchilla():
    params, tokens = s6.chinchilla_optimal(5.76e23)
    assert 6 * params * tokens == pytest.approx(5.76e23) and tokens == pytest.approx(20 * params)
    assert params == pytest.approx(70e9, rel=0.02) and tokens == pytest.approx(1.4e12, rel=0.02)
    assert s6.chinchilla_optimal(4e20)[0] == pytest.approx(2 * s6.chinchilla_optimal(1e20)[0])


@pytest.mark.parametrize(
    "E, A, alpha",
    [(1.69, 406.4, 0.34), (0.0, 12.0, 0.076), (2.5, 0.7, 1.3), (1.2, 1e6, 2.0), (0.3, 9.0, 0.05)],
)
@pytest.mark.parametrize("sizes", [np.geomspace(1e6, 1e10, 5), [100, 250, 900]])
def test_power_law_recovered(E, A, alpha, sizes):
    losses = [E + A / N**alpha for N in sizes]
    fit = s6.fit_power_law(sizes, losses)
    if max(losses) - min(losses) > 1e-4:
        assert fit == pytest.approx((E, A, alpha), rel=1e-4, abs=1e-4)
    assert np.allclose([fit[0] + fit[1] / N ** fit[2] for N in sizes], losses, rtol=1e-9)


def test_power_law_with_noise_and_without_a_slope(rng):
    sizes = np.geomspace(1e3, 1e7, 30)
    losses = 1.5 + 20 / sizes**0.4 + 0.002 * rng.normal(size=30)
    assert s6.fit_power_law(list(sizes), list(losses)) == pytest.approx((1.5, 20, 0.4), rel=0.1)
    E, A, _ = s6.fit_power_law([1, 10, 100], [2.0, 2.0, 2.0])
    assert E + A == pytest.approx(2.0)
    assert s6.fit_power_law([1, 10, 100], [1.0, 2.0, 3.0])[:2] == pytest.approx((2.0, 0.0))


@pytest.mark.parametrize("n_layer", [1, 4, 8])
def test_depth_laws(n_layer):
    rms, pre = np.mean([s6.depth_probe(n_layer, seed) for seed in range(3)], 0)
    _, post = np.mean([s6.depth_probe(n_layer, seed, post_norm=True) for seed in range(3)], 0)
    assert pre == pytest.approx(1 / rms, rel=0.25)
    assert post == pytest.approx(
        (1 + (rms * rms - 1) / (2 * n_layer)) ** -n_layer, rel=0.35, abs=0.03
    )
    flat, kept = s6.depth_probe(n_layer, 0, scaled=True)
    assert flat == pytest.approx(1.15, abs=0.08) and kept > 0.78


# training and the report


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (1, 4)])
def test_orthogonal_keeps_directions_and_evens_lengths(shape, rng):
    G = rng.normal(size=shape)
    U, _, Vt = np.linalg.svd(G, full_matrices=False)
    core = U.T @ s6.orthogonal(G) @ Vt.T
    assert np.abs(core - np.diag(np.diag(core))).max() < 1e-9
    assert 0.3 < np.diag(core).min() and np.diag(core).max() < 1.4


@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped"])
def test_training_learns_a_period(kind):
    ids = np.tile(np.array([3, 1, 4, 1, 5, 9, 2, 6]), 40)
    config = s6.TransformerConfig(**(TINY | FAMILIES[kind]))
    model = s6.Transformer(config)
    losses = s6.train(model, ids, 60, 8)
    assert losses[0] == pytest.approx(math.log(11), abs=0.2) and losses[-1] < 0.15
    again = s6.Transformer(config)
    assert s6.train(again, ids, 60, 8) == losses


@pytest.mark.parametrize("tail", [1, 3, 4, 5, 41])
def test_held_out_counts_every_character_once(tail, rng):
    model = make("llama", rng, block_size=8)
    ids = rng.integers(0, 11, 60)
    start, total = 60 - tail, 0.0
    for t in range(start, 60):
        end = min(start + ((t - start) // 4 + 1) * 4, 60)  # the window t is scored in ends here
        z = model.logits(ids[None, end - 9 : end - 1])[0, t - end + 8]
        total -= z[ids[t]] - z.max() - math.log(np.exp(z - z.max()).sum())
    assert s6.held_out_loss(model, ids, start) == pytest.approx(total / tail)


BAD_CONFIGS = [
    ({"arch": "bert"}, "arch"),
    ({"n_embd": 10, "n_head": 4}, "n_head"),
    ({"n_head": 0}, "n_head"),
    ({"n_layer": 2.0}, "n_layer"),
    ({"vocab_size": -3}, "vocab_size"),
    ({"n_embd": "64"}, "n_embd"),
    ({"block_size": True}, "block_size"),
    ({"n_kv_head": 3}, "n_kv_head"),
    ({"arch": "llama", "n_kv_head": 5}, "n_kv_head"),
    ({"arch": "llama", "bias": True}, "bias"),
    ({"arch": "llama", "n_head": 8, "n_embd": 24}, "even"),
    ({"n_hidden": 0}, "n_hidden"),
    ({"dropout": 1.0}, "dropout"),
    ({"norm_eps": 0.0}, "norm_eps"),
    ({"rope_theta": -1.0}, "rope_theta"),
]


@pytest.mark.parametrize("fields, word", BAD_CONFIGS)
def test_bad_configs(fields, word):
    with pytest.raises(ValueError, match=word):
        s6.TransformerConfig(**fields)


IDS = np.zeros((1, 3), int)
BAD_CALLS = {
    "idx must be.*float": lambda m: m.logits(IDS * 1.0),
    r"idx must be.*\(3,\)": lambda m: m.logits(IDS[0]),
    r"idx must be.*\(1, 0\)": lambda m: m.loss(IDS[:, :0], IDS[:, :0]),
    "largest of idx.*11": lambda m: m.logits(IDS + 11),
    "smallest of idx.*-1": lambda m: m.logits(IDS - 1),
    "smallest of targets.*-2": lambda m: m.loss(IDS, IDS - 2),
    "T must be.*10": lambda m: m.logits(np.zeros((1, 10), int)),
    "targets must have": lambda m: m.loss_and_grads(IDS, IDS[:, :2]),
    "prefix.*4": lambda m: m.logits(IDS, prefix=4),
    "temperature.*-1": lambda m: m.generate(IDS, 1, temperature=-1),
    "top_k.*0": lambda m: m.generate(IDS, 1, top_k=0),
    "top_p.*1.5": lambda m: m.generate(IDS, 1, top_p=1.5),
    "max_new_tokens.*-1": lambda m: m.generate(IDS, -1),
    "batch.*0": lambda m: s6.memory_budget(m.config, 0),
    "optimizer.*'adamx'": lambda m: s6.memory_budget(m.config, 1, "adamx"),
    "compute.*-1": lambda m: s6.chinchilla_optimal(-1),
    "compute.*nan": lambda m: s6.chinchilla_optimal(math.nan),
    r"sizes.*\[1, 2\]": lambda m: s6.fit_power_law([1, 2], [2, 1]),
    "different|sizes": lambda m: s6.fit_power_law([1, 2, 2], [2, 1, 1]),
    "each with a loss": lambda m: s6.fit_power_law([1, 2, 3], [2, 1]),
    "positive": lambda m: s6.fit_power_law([0, 2, 3], [2, 1, 1]),
    "nan": lambda m: s6.fit_power_law([1, 2, 3], [2, math.nan, 1]),
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_bad_calls(message):
    model = s6.Transformer(s6.TransformerConfig(**TINY))
    with pytest.raises(ValueError, match=message):
        BAD_CALLS[message](model)


@pytest.mark.parametrize("argv", [["--seed", "x"], ["--seed", "-1"], ["--slow"]])
def test_bad_command_line_is_one_line(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        s6.main(argv)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err


def test_report(capsys):
    outputs = []
    for seed in ("0", "0", "1"):
        assert not s6.main(["--fast", "--seed", seed])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    check_held_out_line(outputs[0])
    assert outputs[0].rstrip().splitlines()[-1].startswith("held-out:")
    assert all(f"{size:,}" in outputs[0] for size in SIZES.values())


# Inputs at the corners: the right value, or a sentence that says what was expected.


def small(seed=0, **fields):
    sizes = {"vocab_size": 11, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
    return s6.Transformer(s6.TransformerConfig("llama", **(sizes | fields)), seed)


@pytest.mark.parametrize(
    "top_p, kept",
    [(0.8, 2), (0.8 + 1e-12, 2), (0.81, 3), (0.5, 1), (0.95, 3), (0.951, 4), (1e-12, 1), (1, 4)],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    p = np.array([0.05, 0.5, 0.15, 0.3])  # as float64 sums 0.5 + 0.3 and 0.5 + 0.3 + 0.15 do
    model = small(vocab_size=4)
    model.logits = lambda idx, prefix=0: np.log(p) * np.ones((*idx.shape, 1))
    drawn = model.generate(np.zeros((4000, 1), int), 1, top_p=top_p, seed=0)[:, 1]
    assert set(drawn.tolist()) == set([1, 3, 2, 0][:kept])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64])
def test_ids_of_any_width_are_the_same_ids(rng, dtype):
    model, ids = small(), rng.integers(0, 11, 60)
    narrow = ids.astype(dtype)
    np.testing.assert_array_equal(
        model.generate(narrow[None, :8], 5, seed=0), model.generate(ids[None, :8], 5, seed=0)
    )
    assert s6.held_out_loss(model, narrow, 20) == s6.held_out_loss(model, ids, 20)
    assert s6.train(small(), narrow, 3, 2) == s6.train(small(), ids, 3, 2)
    assert s6.train(small(), ids.tolist(), 3, 2) == s6.train(small(), ids, 3, 2)


def test_sizes_of_eight_bits_count_like_any_others():
    sizes = 200, 8, 1, 2, 96
    narrow = s6.TransformerConfig("gpt2", *map(np.uint8, sizes))
    wide = s6.TransformerConfig("gpt2", *sizes)
    assert s6.count_params(narrow) == s6.count_params(wide) == 132_000
    assert s6.flops_per_token(narrow) == s6.flops_per_token(wide)
    assert s6.memory_budget(narrow, np.uint8(200)) == s6.memory_budget(wide, 200)


@pytest.mark.parametrize(
    "targets", [[[0.0, 1.0]], [[True, False]], [[-2, 0]], [[3, 0]], [[0]], [[0], [1]], [["a", "b"]]]
)
def test_targets_that_are_none_are_refused(targets):
    logits = s6.Tensor(np.zeros((1, 2, 3)))
    assert s6.cross_entropy(logits, [[0, 2]]).data == pytest.approx(math.log(3))
    with pytest.raises(ValueError, match="targets"):
        s6.cross_entropy(logits, np.asarray(targets))


def test_gradients_of_another_shape_are_refused():
    tape = []
    a, b = (s6.Tensor(np.ones(shape), tape=tape) for shape in ((2, 3), 3))
    with pytest.raises(ValueError, match=r"one shape, not \(2, 3\), \(3,\)"):
        a * b
    with pytest.raises(ValueError, match=r"one number on a tape, not \(2, 3\)"):
        a.backward()
    with pytest.raises(ValueError, match="on a tape"):
        s6.Tensor(np.ones(1)).backward()
    total = s6.Tensor(a.data.sum(keepdims=True), (a,), lambda dy: (dy,))
    with pytest.raises(ValueError, match=r"\(1, 1\) for an array of shape \(2, 3\)"):
        total.backward()


@pytest.mark.parametrize("index", [[0, 0, 2], (np.array([0, 0, 2]),), np.array([0, 0, 2])])
def test_a_row_picked_twice_collects_twice(index):
    x = s6.Tensor([1.0, 2.0, 3.0], tape=[])
    (x[index].reshape(1, 3) @ s6.Tensor(np.array([[1.0], [10.0], [100.0]]))).backward()
    np.testing.assert_array_equal(x.grad, [11, 0, 100])


def test_axes_may_be_counted_from_the_end(rng):
    weights = rng.normal(size=(4, 2, 3))
    for axes in ((2, 0, 1), (-1, 0, -2), (2, -3, 1)):
        x = s6.Tensor(rng.normal(size=(2, 3, 4)), tape=[])
        y = x.transpose(*axes) * s6.Tensor(weights)
        (y.reshape(1, 24) @ s6.Tensor(np.ones((24, 1)))).backward()
        np.testing.assert_allclose(x.grad, weights.transpose(1, 2, 0))


def test_a_row_that_sees_nothing_gets_zeros():
    scores = s6.Tensor(np.array([[0.0, 1.0], [2.0, 3.0]]))
    p = s6.softmax(scores, np.array([[-np.inf, -np.inf], [0, -np.inf]]))
    np.testing.assert_array_equal(p.data, [[0, 0], [1, 0]])
    taped = s6.softmax(s6.Tensor(np.zeros((1, 2)), tape=[]), np.full((1, 2), -np.inf))
    np.testing.assert_array_equal(taped.pull(np.ones((1, 2)))[0], [[0, 0]])


def test_wrong_numbers_are_named(rng):
    model, ids = small(), rng.integers(0, 11, 60)
    start = ids[None, :4]
    for call, said in (
        (lambda: small(dropout="x"), "dropout must be a finite number, not 'x'"),
        (lambda: small(norm_eps=None), "norm_eps .* not None"),
        (lambda: small(rope_theta=math.inf), "rope_theta .* not inf"),
        (lambda: small(tie_weights=3), "tie_weights must be True or False, not 3"),
        (lambda: model.generate(start, 1, "a"), "temperature .* not 'a'"),
        (lambda: model.generate(start, 1, None), "temperature .* not None"),
        (lambda: model.generate(start, 1, True), "temperature .* not True"),
        (lambda: model.generate(start, 1, top_p="a"), "top_p .* not 'a'"),
        (lambda: model.generate(start, 1, top_p=True), "top_p .* not True"),
        (lambda: model.generate(start, 1, top_k="a"), "top_k .* not 'a'"),
        (lambda: model.generate(1, 1), r"\(B, T\) integers"),
        (lambda: s6.chinchilla_optimal("a"), "compute .* not 'a'"),
        (lambda: s6.attention_mask(2.5), "T must be a whole number in 1..inf, not 2.5"),
        (lambda: s6.orthogonal(np.ones(3)), r"G must be a matrix, not of shape \(3,\)"),
        (lambda: s6.train(model, ids, "a", 2), "steps .* not 'a'"),
        (lambda: s6.train(model, ids, 1, 0), "batch .* not 0"),
        (lambda: s6.train(model, ids, 1, 2, math.nan), "learning_rate .* not nan"),
        (lambda: s6.train(model, ids[:8], 1, 2), "number of ids .* not 8"),
        (lambda: s6.train(model, ids * 1.0, 1, 2), "ids must be integers, not float64"),
        (lambda: s6.train(model, ids - 1, 1, 2), "smallest of ids .*-1"),
        (lambda: s6.held_out_loss(model, ids, 4), "start must be a whole number in 5..59, not 4"),
        (lambda: s6.held_out_loss(model, ids, 60), "start .* not 60"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    huge = model.generate(start, 3, top_k=2**80, seed=0)
    np.testing.assert_array_equal(huge, model.generate(start, 3, seed=0))


def test_training_that_diverges_says_at_which_step(rng):
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="step 2: the loss is nan"):
        s6.train(small(), rng.integers(0, 11, 60), 30, 2, 1e30)
