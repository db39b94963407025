"""Stage 6: gradients by two routes, masks and causality, exact counts, laws recovered, a report."""

import dataclasses
import math
import tracemalloc

import numpy as np
import pytest
from conftest import (
    assert_gradients,
    central_difference,
    check_held_out_line,
)

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
MODERN = {  # what the capstone does not have
    "qk-norm": {"arch": "llama", "n_kv_head": 2, "qk_norm": True},
    "experts": {"arch": "llama", "n_hidden": 10, "n_expert": 3, "n_active": 2},
    "experts-one-active": {"arch": "llama", "n_hidden": 10, "n_expert": 4, "n_active": 1},
}
family = pytest.mark.parametrize("kind", FAMILIES)


def make(kind, rng, **changes):
    """A float64 model with weights large enough that every path matters."""
    config = s6.TransformerConfig(**(TINY | (FAMILIES | MODERN)[kind] | changes))
    model = s6.Transformer(config, dtype=np.float64)
    for name, p in model.params.items():
        model.params[name] = p + 0.3 * rng.normal(size=p.shape)
    return model


# the first page


def test_the_first_page():
    x = np.array([[7.0, 1], [1, 7]])
    up, down = np.array([[1.0], [-1]]), np.array([[0.0, 1]])
    h = x / 5
    np.testing.assert_allclose((x * x).mean(-1), 25)
    scores = h @ h[1]
    np.testing.assert_allclose(scores, [0.56, 2.0])
    weights = np.exp(scores / math.sqrt(2)) / np.exp(scores / math.sqrt(2)).sum()
    np.testing.assert_allclose(weights, [0.265, 0.735], atol=5e-4)
    np.testing.assert_allclose(weights @ h, [0.518, 1.082], atol=5e-4)
    without_mlp = s6.small_block(x, 0 * up, down)
    np.testing.assert_allclose(without_mlp, [[8.4, 1.2], [1.518, 8.082]], atol=5e-4)
    y = s6.small_block(x, up, down)
    np.testing.assert_allclose(y, [[8.4, 2.4], [1.518, 8.082]], atol=5e-4)
    slopes = central_difference(lambda: s6.small_block(x, up, down)[1, 0], x)
    np.testing.assert_allclose(slopes, [[-0.0053, 0.0370], [1.1885, -0.0269]], atol=5e-5)


def test_the_first_page_is_the_general_block_with_plain_weights(rng, monkeypatch):
    C, F = 4, 6
    config = s6.TransformerConfig("llama", 5, 8, 1, 1, C, n_hidden=F, norm_eps=1e-30)
    x, up, down = rng.normal(size=(3, C)), rng.normal(size=(C, F)), rng.normal(size=(F, C))
    p = {f"self_attn.{name}_proj.weight": s6.Tensor(np.eye(C)) for name in "qkvo"}
    p |= {"mlp.up_proj.weight": s6.Tensor(up.T), "mlp.down_proj.weight": s6.Tensor(down.T)}
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
    p |= {name: s6.Tensor(np.ones(C)) for name in norms}
    monkeypatch.setattr(s6, "rotate", lambda x, theta: x)  # no positions

    def relu_mlp(h, p, config):
        u = h @ p["mlp.up_proj.weight"].transpose(1, 0)
        return (u * s6.Tensor((u.data > 0) * 1.0)) @ p["mlp.down_proj.weight"].transpose(1, 0)

    monkeypatch.setattr(s6, "mlp", relu_mlp)
    y = s6.block(s6.Tensor(x[None]), p, config, s6.attention_mask(3)).data[0]
    np.testing.assert_allclose(y, s6.small_block(x, up, down), atol=1e-12)


# the autograd


OPERATIONS = {
    "add": (lambda a, b: a + b, [(3, 2, 4), (2, 4)]),
    "add stretched": (lambda a, b: a + b, [(3, 1, 4), (2, 1)]),
    "add one number": (lambda a, b: a + b, [(2, 3), (1, 1)]),
    "add a vector": (lambda a, b: b + a, [(2, 3, 4), (4,)]),
    "mul": (lambda a, b: a * b, [(3, 1, 5), (3, 1, 5)]),
    "mul columns": (lambda a, b: a * b, [(3, 1), (3, 4)]),
    "mul both stretched": (lambda a, b: a * b, [(2, 1, 4), (3, 1)]),
    "mul middle": (lambda a, b: b * a, [(2, 1, 4), (2, 3, 4)]),
    "mul scalar": (lambda a, b: a * b, [(), (2, 3)]),
    "mul by itself": (lambda a: a * a * a, [(2, 3)]),
    "mul constant": (lambda a: a * 0.3, [(2, 5)]),
    "mul whole number": (lambda a: a * 3, [(2, 5)]),
    "product": (lambda a, b: a @ b, [(3, 2, 4), (4, 5)]),
    "product one row": (lambda a, b: a @ b, [(1, 4), (4, 1)]),
    "product shared": (lambda a, b: a @ b, [(2, 2, 3, 5, 4), (2, 2, 1, 4, 6)]),
    "product stack on the left": (lambda a, b: a @ b, [(2, 1, 3, 4), (5, 4, 2)]),
    "product matrix times stack": (lambda a, b: a @ b, [(3, 4), (2, 4, 5)]),
    "product four axes": (lambda a, b: a @ b, [(2, 3, 2, 4), (4, 3)]),
    "product with itself": (lambda a: a @ a.transpose(1, 0) @ a, [(3, 4)]),
    "reshape": (lambda a: a.reshape(5, -1), [(2, 5, 3)]),
    "transpose": (lambda a: a.transpose(2, 0, 1), [(2, 5, 3)]),
    "transpose from the end": (lambda a: a.transpose(0, -1, 1), [(2, 5, 3)]),
    "transpose all from the end": (lambda a: a.transpose(-2, -1, -3), [(2, 5, 3)]),
    "slice": (lambda a: a[..., 1:3], [(2, 5, 4)]),
    "slice backwards": (lambda a: a[::-2, 1], [(5, 4)]),
    "one from the end": (lambda a: a[-1], [(5, 4)]),
    "rows": (lambda a: a[np.array([[2, 0, 2], [2, 1, 0]])], [(4, 3)]),
    "rows in a list": (lambda a: a[[0, 0, 1]], [(3, 2)]),
    "rows from the end": (lambda a: a[[-1, 2, -1]], [(3, 2)]),
    "pairs": (lambda a: a[[0, 0, 1], [1, 1, 0]], [(2, 3)]),
    "rows of a column": (lambda a: a[np.array([1, 1]), 0], [(2, 3)]),
    "where": (lambda a: a[np.array([True, False, True])], [(3, 2)]),
    "new axis": (lambda a: a[:, None], [(3, 2)]),
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
    "rotate": (lambda x: s6.rotate(x, 7.0), [(2, 3, 2, 8)]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_gradients(name, rng):
    operation, shapes = OPERATIONS[name]
    arrays = [rng.normal(size=shape) for shape in shapes]

    def analytic(dy):
        tape = []
        leaves = [s6.Tensor(a, tape=tape) for a in arrays]
        operation(*leaves).backward(dy)
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


def shared_fields(config):
    """The fields that the capstone's configuration has too."""
    fields = dataclasses.asdict(config)
    for name in ("qk_norm", "n_expert", "n_active"):
        fields.pop(name)
    return fields


@family
def test_capstone_agrees(kind, rng):
    model = make(kind, rng)
    theirs = capstone_gpt.GPT(
        capstone_gpt.GPTConfig(**shared_fields(model.config)), dtype=np.float64
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
    c = model.config
    assert s6.count_params(c) == s6.count_params(c, active=True) == theirs.num_params()
    matrices = [w.size for b in theirs.params.blocks for w in b.values() if w.ndim == 2]
    products = sum(matrices) + theirs.params.top["head.weight"].size
    assert s6.flops_per_token(c) == 6 * products + 12 * c.n_layer * c.n_embd * c.block_size
    spoken = model.generate(idx, 3, temperature=0)
    assert np.array_equal(spoken, theirs.generate(idx, 3, temperature=0))


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_config_and_initial_spread_are_the_capstone_s(arch):
    ours, theirs = s6.TransformerConfig(arch), capstone_gpt.GPTConfig(arch)
    assert shared_fields(ours).items() <= dataclasses.asdict(theirs).items()
    small = TINY | {"n_embd": 64, "n_layer": 8}
    model = s6.Transformer(s6.TransformerConfig(arch, **small))
    other = capstone_gpt.GPT(capstone_gpt.GPTConfig(arch, **small))
    for name, p in model.params.items():
        assert p.dtype == np.float32
        assert p.std() == pytest.approx(other.params[name].std(), rel=0.15, abs=1e-9), name


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped", *MODERN])
@pytest.mark.parametrize("prefix", [0, 3])
def test_gradients_against_central_differences(kind, post_norm, prefix, rng):
    model = make(kind, rng, n_layer=1, n_embd=8, vocab_size=5, block_size=4)
    model.post_norm = post_norm
    idx, targets = rng.integers(0, 5, (2, 3)), rng.integers(-1, 5, (2, 3))
    loss, grads = model.loss_and_grads(idx, targets, prefix=prefix)
    assert loss == model.loss(idx, targets, prefix=prefix)

    def objective():
        logits, _, balances = model._run(idx, prefix)
        loss = s6.cross_entropy(logits, targets)
        balance = np.mean([b.data for b in balances]) if balances else 0.0
        return float(loss.data) + 0.01 * balance

    for name in rng.permutation(sorted(grads))[:4]:
        numeric = central_difference(objective, model.params[name], h=1e-6)
        np.testing.assert_allclose(grads[name], numeric, rtol=1e-6, atol=2e-9, err_msg=name)


@pytest.mark.parametrize("kind", [*FAMILIES, *MODERN])
@pytest.mark.parametrize("prefix", [0, 3, 6])
def test_who_sees_whom(kind, prefix, rng):
    model, T = make(kind, rng), 6
    idx = rng.integers(0, 11, (1, T))
    before = model.logits(idx, prefix=prefix)
    for j in range(T):
        changed = idx.copy()
        changed[0, j] = (changed[0, j] + 1) % 11
        moved = np.abs(model.logits(changed, prefix=prefix) - before).max(-1)[0] > 1e-12
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
    assert np.array_equal(greedy, model.generate(idx, 4, temperature=1e-6, seed=1))
    assert np.array_equal(model.generate(idx, 0), idx)
    z = model.logits(idx[:1])[0, -1]
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    drawn = model.generate(np.repeat(idx[:1], 4000, 0), 1, seed=0)[:, -1]
    assert np.abs(np.bincount(drawn, minlength=11) / 4000 - p).max() < 0.035
    drawn = model.generate(np.repeat(idx[:1], 4000, 0), 1, temperature=0.5, seed=0)[:, -1]
    assert np.abs(np.bincount(drawn, minlength=11) / 4000 - p**2 / (p @ p)).max() < 0.035


# experts, and norms of queries and keys


def test_experts_token_by_token(rng):
    model = make("experts", rng, n_layer=1)
    p = {
        name.removeprefix("model.layers.0.block_sparse_moe."): w
        for name, w in model.params.items()
        if "moe" in name
    }
    h = rng.normal(size=(2, 5, 24))
    tensors = {f"block_sparse_moe.{name}": s6.Tensor(w) for name, w in p.items()}
    balances = []
    y = s6.experts(s6.Tensor(h), tensors, model.config, balances).data
    sent, P = np.zeros(3), np.zeros(3)
    for b, t in np.ndindex(2, 5):
        z = p["gate.weight"] @ h[b, t]
        P += np.exp(z) / np.exp(z).sum() / 10
        best = sorted(range(3), key=lambda e: -z[e])[:2]
        share = np.exp(z[best]) / np.exp(z[best]).sum()
        expected = 0
        for e, w in zip(best, share):
            sent[e] += 1 / 10
            gate, up = (p[f"experts.{e}.{name}.weight"] @ h[b, t] for name in ("w1", "w3"))
            expected = expected + w * (
                p[f"experts.{e}.w2.weight"] @ (gate / (1 + np.exp(-gate)) * up)
            )
        np.testing.assert_allclose(y[b, t], expected, atol=1e-12)
    assert balances[0].data.item() == pytest.approx(3 / 2 * (sent * P).sum())


def test_the_balance_by_hand():
    """Two tokens, two experts, one active: the numbers of section 5."""
    config = s6.TransformerConfig("llama", 3, 4, 1, 1, 2, n_hidden=1, n_expert=2, n_active=1)
    tape = []
    p = {
        f"block_sparse_moe.experts.{e}.{w}.weight": np.zeros((1, 2))
        for e in (0, 1)
        for w in ("w1", "w3")
    }
    p |= {f"block_sparse_moe.experts.{e}.w2.weight": np.zeros((2, 1)) for e in (0, 1)}
    p["block_sparse_moe.gate.weight"] = np.eye(2)
    tensors = {name: s6.Tensor(w, tape=tape) for name, w in p.items()}
    h, balances = s6.Tensor(np.array([[1.0, 0], [1, 0]]), tape=tape), []
    s6.experts(h, tensors, config, balances)
    assert balances[0].data.item() == pytest.approx(1.462, abs=5e-4)
    balances[0].backward()
    np.testing.assert_allclose(h.grad, [[0.197, -0.197]] * 2, atol=5e-4)  # the gate is the identity


@pytest.mark.parametrize("k", [1, 2, 4])
def test_balance_is_one_where_all_are_alike_and_large_in_a_crowd(k):
    E, C = 4, 8
    config = s6.TransformerConfig("llama", 3, 8, 1, 1, C, n_hidden=2, n_expert=E, n_active=k)
    model = s6.Transformer(config, dtype=np.float64)
    names = {name: w for name, w in model.params.items() if ".moe" in name or "sparse" in name}
    p = {name.removeprefix("model.layers.0."): s6.Tensor(w) for name, w in names.items()}

    def balance(z):
        p["block_sparse_moe.gate.weight"] = s6.Tensor(np.eye(E, C))
        found = []
        s6.experts(s6.Tensor(np.pad(z, ((0, 0), (0, C - E)))), p, config, found)
        return found[0].data.item()

    even = 1e-9 * np.array([np.roll([4.0, 3, 2, 1], i) for i in range(E)])
    assert balance(even) == pytest.approx(1)
    crowd = np.zeros((5, E)) + 50.0 * (np.arange(E) < k) + 1e-9 * np.arange(E)
    assert balance(crowd) == pytest.approx(E / k)


def test_an_expert_nobody_visits_has_no_gradient_and_balance_brings_it_work(rng):
    model = make("experts-one-active", rng, n_layer=1)
    gate = model.params["model.layers.0.block_sparse_moe.gate.weight"]
    gate[:] = 0.01 * rng.normal(size=gate.shape)
    gate[3] = 0
    gate[0] = 0.5
    idx = rng.integers(0, 11, (2, 7))
    _, grads = model.loss_and_grads(idx, idx)
    _, _, balances = model._run(idx)
    before = balances[0].data.item()
    idle = [
        e
        for e in range(4)
        if not grads[f"model.layers.0.block_sparse_moe.experts.{e}.w1.weight"].any()
    ]
    assert idle  # zeros, not None
    model.params["model.layers.0.block_sparse_moe.gate.weight"] = gate
    _, P, balances = model._run(idx, tape=[])
    balances[0].backward()
    step = P["model.layers.0.block_sparse_moe.gate.weight"].grad
    gate -= 0.05 * step
    assert model._run(idx)[2][0].data.item() < before


def test_experts_train_and_share_the_work():
    ids = np.tile(np.array([3, 1, 4, 1, 5, 9, 2, 6]), 40)
    config = s6.TransformerConfig(**(TINY | MODERN["experts"]))
    model = s6.Transformer(config)
    assert s6.train(model, ids, 60, 8)[-1] < 0.15
    balances = [b.data.item() for b in model._run(ids[None, :9])[2]]
    assert len(balances) == 2 and max(balances) < 1.3


def test_norms_of_queries_and_keys_bound_the_scores(rng, monkeypatch):
    model = make("qk-norm", rng, n_layer=1)
    for name, p in model.params.items():
        p *= 1000 if "proj" in name else 1
        if "q_norm" in name or "k_norm" in name:
            p[:] = 1
    seen = []
    plain = s6.softmax
    monkeypatch.setattr(s6, "softmax", lambda s, mask: seen.append(s.data) or plain(s, mask))
    idx = rng.integers(0, 11, (2, 7))
    model.logits(idx)
    D = 24 // 4
    assert np.abs(seen[0]).max() <= math.sqrt(D) + 1e-9 and np.abs(seen[0]).max() > 1
    model.config.qk_norm = False
    model.logits(idx)
    assert np.abs(seen[1]).max() > 1e3


# objectives


def test_what_is_asked_in_the_docstring():
    text = "the fox s"
    window = np.array([[ord(c) for c in text]])

    def shown(ids, hole):
        return "".join(hole if i < 0 else "#" if i == 999 else chr(i) for i in ids)

    rng = np.random.default_rng(0)
    inputs, targets, prefix = s6.ask(window, "causal", rng, 999)
    assert (shown(inputs[0], "."), shown(targets[0], "."), prefix) == ("the fox ", "he fox s", 0)
    spans = {}
    for seed in range(40):
        inputs, targets, prefix = s6.ask(window, "span", np.random.default_rng(seed), 999)
        assert prefix == 7 and inputs.shape == targets.shape == (1, 8)
        spans[shown(inputs[0], ".")] = shown(targets[0], ".")
    assert spans["the#ox# "] == "...... f"
    assert spans["#e fox#t"] == "......th" and spans["the f##o"] == "......ox" and len(spans) == 6
    for seed in range(20):
        inputs, targets, prefix = s6.ask(window, "masked", np.random.default_rng(seed), 999)
        assert prefix == 8 and (inputs == 999).any()
        np.testing.assert_array_equal(inputs == 999, targets >= 0)
        np.testing.assert_array_equal(np.where(inputs == 999, targets, inputs), window[:, :8])


def test_masked_hides_fifteen_percent(rng):
    inputs, _, _ = s6.ask(np.zeros((2000, 101), int), "masked", rng, 1)
    assert inputs.mean() == pytest.approx(0.15 + 0.85 / 100, abs=0.005)


@pytest.mark.parametrize("objective", ["causal", "masked", "span"])
def test_every_objective_learns(objective):
    ids = np.tile(np.array([3, 1, 4, 1, 5, 9, 2, 6]), 40)
    model = s6.Transformer(s6.TransformerConfig("llama", 11, 16, 2, 2, 16))
    losses = s6.train(model, ids, 120, 8, objective=objective)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    asked = s6.draw(model, ids, 64, np.random.default_rng(1), objective)
    assert model.loss(*asked) == pytest.approx(np.mean(losses[-10:]), abs=0.3)


# counting


SIZES = dict(zip(s6.PRESETS, (124439808, 1557611200, 6738415616, 8030261248, 46702792704)))


@pytest.mark.parametrize("name", SIZES)
def test_presets_are_exact_and_allocate_nothing(name):
    tracemalloc.start()
    assert s6.count_params(s6.PRESETS[name]) == SIZES[name]
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert len(SIZES) == 5


def test_flops_by_hand():
    c = s6.TransformerConfig("gpt2", 50, 16, 3, 2, 8)
    matrices = 3 * 12 * 8 * 8 + 50 * 8  # blocks and the tied head, not the positions
    assert s6.flops_per_token(c) == 6 * matrices + 12 * 3 * 8 * 16


@pytest.mark.parametrize(
    "sizes, N",
    [
        ({"n_layer": 24, "n_head": 16, "n_embd": 1024}, 354823168),  # GPT-2 medium
        ({"n_layer": 36, "n_head": 20, "n_embd": 1280}, 774030080),  # GPT-2 large
        (  # Qwen3 8B, with norms of queries and keys
            {"arch": "llama", "vocab_size": 151936, "n_layer": 36, "n_head": 32, "n_embd": 4096}
            | {"n_kv_head": 8, "n_hidden": 12288, "qk_norm": True},
            8190735360,
        ),
    ],
)
def test_counts_of_published_models(sizes, N):
    assert s6.count_params(s6.TransformerConfig(**sizes)) == N


def test_active_weights():
    mixtral = s6.PRESETS["mixtral-8x7b"]
    assert s6.count_params(mixtral, active=True) == 12_879_925_248
    dense = dataclasses.replace(mixtral, n_expert=0)
    alone = dataclasses.replace(mixtral, n_expert=1, n_active=1)
    router = 32 * 4096
    assert s6.count_params(alone) == s6.count_params(dense) + router
    wide = dataclasses.replace(dense, n_hidden=2 * 14336)  # two experts are one of twice the size
    extra = s6.count_params(mixtral, active=True) - s6.count_params(wide)
    assert extra == 8 * router
    assert s6.flops_per_token(mixtral) - s6.flops_per_token(wide) == 6 * 8 * router


def kept_bytes(run):
    """(what run() returns, the bytes allocated and still alive when it has)."""
    tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    result = run()
    kept = tracemalloc.get_traced_memory()[0] - start
    tracemalloc.stop()
    return result, kept


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", [*FAMILIES, *MODERN])
def test_activations_as_tracemalloc_sees_them(kind, recompute, rng):
    sizes = {"n_embd": 64, "block_size": 48, "vocab_size": 70, "n_layer": 3}
    if "expert" in kind:
        sizes["n_hidden"] = 96
    model = make(kind, rng, **sizes)
    idx = rng.integers(0, 70, (4, 48))
    budget = s6.memory_budget(model.config, 4, width=8, recompute=recompute)
    if recompute:
        if model.config.n_expert:
            return
        model.block = s6.recomputed_block
        every = s6.memory_budget(model.config, 4, width=8)["activations"]
        streams = 8 * 4 * 48 * 3 * 64
        layer = (every - budget["activations"] + streams) / 2  # two of three are saved
        budget["activations"] -= layer  # the one at work in the backward
    model.logits(idx)
    loss, kept = kept_bytes(lambda: s6.cross_entropy(model._run(idx, tape=[])[0], idx))
    assert loss.tape and kept == pytest.approx(budget["activations"], rel=0.06, abs=7e4)


@pytest.mark.parametrize("name", s6.PRESETS)
def test_memory_budget_sums(name):
    c = s6.PRESETS[name]
    b = s6.memory_budget(c, 2, "adamw")
    N = s6.count_params(c)
    assert b["weights"] == b["gradients"] == 4 * N and b["optimizer"] == 8 * N
    head = c.n_embd // c.n_head
    assert b["kv_cache"] == 4 * 2 * c.block_size * 2 * c.n_layer * c.n_kv_head * head
    assert b["training"] == sum(b[k] for k in ("weights", "gradients", "optimizer", "activations"))
    assert b["generation"] == b["weights"] + b["kv_cache"]
    assert s6.memory_budget(c, 4)["activations"] == 2 * b["activations"]
    assert s6.memory_budget(c, 2, width=2)["training"] == b["training"] / 2
    for optimizer, state in (("sgd", 0), ("momentum", 1), ("lion", 1), ("adam", 2)):
        assert s6.memory_budget(c, 2, optimizer)["optimizer"] == 4 * state * N


def test_maps_and_tiles_and_recomputed_blocks():
    c = s6.PRESETS["llama-3-8b"]
    every, tiled = s6.memory_budget(c), s6.memory_budget(c, tiles=True)
    assert every["maps"] == 4 * 2 * 32 * 32 * 8192 * 8192 and tiled["maps"] == 0
    assert every["activations"] - tiled["activations"] == every["maps"]
    assert round(every["training"] / 1e9) == 821 and round(every["maps"] / 1e9) == 550
    again = s6.memory_budget(c, recompute=True)
    layer = (every["activations"] - again["activations"] + 4 * 32 * 4096 * 8192) / 31
    around = 4 * 8192 * (3 * 4096 + 2 * 128256)
    assert 32 * layer + around == every["activations"]
    assert again["maps"] == every["maps"] / 32


def test_muon_keeps_one_number_for_matrices_and_two_for_the_rest(rng):
    c = s6.PRESETS["gpt2"]
    matrices = 12 * 12 * 768 * 768
    N = s6.count_params(c)
    numbers = s6.memory_budget(c, optimizer="muon")["optimizer"] / 4
    assert numbers == matrices + 2 * (N - matrices) and round(numbers / N, 2) == 1.32
    model, made = small(), []
    before = np.zeros_like
    try:
        np.zeros_like = lambda p, *rest, **more: made.append(p.size) or before(p, *rest, **more)
        s6.train(model, rng.integers(0, 11, 60), 0, 2)
    finally:
        np.zeros_like = before
    assert 4 * sum(made) == s6.memory_budget(model.config, optimizer="muon")["optimizer"]


# laws


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
    assert s6.fit_power_law([1, 10, 100], [-1.0, -2.0, -3.0])[:2] == (0.0, 0.0)
    E, A, alpha = s6.fit_power_law([1, 10, 100], [3.0, 2.0, 0.9])  # bends down: E = 0 is best
    assert E == 0 and A > 0
    errors = [
        [(a / n**alpha - loss) for a in (A, 1.01 * A, 0.99 * A)]
        for n, loss in zip((1, 10, 100), (3, 2, 0.9))
    ]
    square = np.square(errors).sum(0)
    assert square[0] < square[1] and square[0] < square[2]


@pytest.mark.parametrize("n_layer", [1, 2, 4, 8])
def test_depth_laws(n_layer):
    b2 = 1 / np.mean([s6.depth_probe(1, seed, post_norm=True)[1] for seed in range(4)]) - 1
    assert b2 == pytest.approx(0.47, abs=0.03)
    probes = [s6.depth_probe(n_layer, seed) for seed in range(4)]
    pre = np.mean([cosine for _, cosine in probes])
    law = np.mean([s6.pre_norm_law(b2, variances) for variances, _ in probes])
    assert pre == pytest.approx(law, rel=0.1)
    post = np.mean([s6.depth_probe(n_layer, seed, post_norm=True)[1] for seed in range(4)])
    assert post == pytest.approx((1 + b2) ** -n_layer, rel=0.15, abs=0.02)
    variances, kept = s6.depth_probe(n_layer, 0, scaled=True)
    assert len(variances) == n_layer + 1 and variances[0] == pytest.approx(1, abs=0.03)
    assert variances[-1] == pytest.approx(1.33, abs=0.1) and kept == pytest.approx(0.82, abs=0.03)


def test_the_law_telescopes_where_both_gains_are_one():
    s2, L = 0.3, 5
    growing = 1 + s2 * 2 * np.arange(L + 1)
    assert s6.pre_norm_law(s2, growing) == pytest.approx((1 + 2 * L * s2) ** -0.5)


def test_the_laws_on_random_matrices(rng):
    """Linear f with independent Gaussian matrices of gain b² = s²: what the derivation assumes."""
    C, L, s2, found = 500, 6, 0.4, []
    for _ in range(8):
        matrices = rng.normal(size=(2 * L, C, C)) * math.sqrt(s2 / C)
        x, g = rng.normal(size=(2, C))
        variances = [x @ x / C]
        for W in matrices:
            x = x + W @ (x / math.sqrt(x @ x / C))
            variances.append(x @ x / C)
        pre, post = g.copy(), g.copy()
        for W, v in zip(matrices[::-1], variances[-2::-1]):
            pre = pre + W.T @ pre / math.sqrt(v)
            post = (post + W.T @ post) / math.sqrt(1 + s2)
        cosines = [back @ g / np.linalg.norm(back) / np.linalg.norm(g) for back in (pre, post)]
        found.append([*cosines, variances[-1], np.linalg.norm(post) / np.linalg.norm(g)])
    cosine, post, variance, length = np.mean(found, 0)
    assert cosine == pytest.approx((1 + 2 * L * s2) ** -0.5, rel=0.06)
    assert variance == pytest.approx(1 + 2 * L * s2, rel=0.12)
    assert post == pytest.approx((1 + s2) ** -L, rel=0.2) and length == pytest.approx(1, rel=0.06)


def test_gains_of_a_random_block():
    """The four numbers in section 6, by killing one half of a block."""
    found = {"attn": [], "mlp": []}
    for seed in range(6):
        config, rng = s6.TransformerConfig("gpt2", 1, 32, 1, 2, 64), np.random.default_rng(seed)
        params = s6.unit_weights(s6.Transformer(config, seed)).params
        x, g = rng.normal(size=(2, 4, 32, 64))
        for half, other in (("attn", "mlp"), ("mlp", "attn")):
            p = {
                name.removeprefix("transformer.h.0."): w.astype(float) for name, w in params.items()
            }
            p[f"{other}.c_proj.weight"] *= 0
            bottom = s6.Tensor(x, tape=[])
            y = s6.block(
                bottom, {k: s6.Tensor(w) for k, w in p.items()}, config, s6.attention_mask(32)
            )
            y.backward(g)
            found[half].append([((y.data - x) ** 2).mean(), ((bottom.grad - g) ** 2).mean()])
    np.testing.assert_allclose(np.mean(found["attn"], 0), [0.20, 0.47], atol=0.02)
    np.testing.assert_allclose(np.mean(found["mlp"], 0), [0.43, 0.46], atol=0.02)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_tents_in_tents_have_twice_as_many_pieces_each_time(k):
    x = np.linspace(0, 1, 2**10 + 1)
    y = x
    for _ in range(k):
        y = 2 * np.maximum(y, 0) - 4 * np.maximum(y - 0.5, 0)
    slopes = np.diff(y)
    assert np.count_nonzero(slopes[1:] * slopes[:-1] < 0) == 2**k - 1


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


def test_held_out_with_contexts_of_one_and_at_the_first_place_possible(rng):
    for T, start in ((1, 1), (2, 2), (3, 3), (8, 5)):
        model = make("llama", rng, block_size=T)
        ids = rng.integers(0, 11, 20)
        assert math.isfinite(s6.held_out_loss(model, ids, start))
        for wrong in (start - 1, 0, -1, 20, 2.5, None):
            with pytest.raises(ValueError, match=rf"start must be a whole number in {start}\.\.19"):
                s6.held_out_loss(model, ids, wrong)
    model = make("llama", rng, block_size=1)
    z = model.logits(ids[4:19, None])[:, 0]
    logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    expected = -logp[np.arange(15), ids[5:]].mean()
    assert s6.held_out_loss(model, ids, 5) == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 40, 600])
def test_the_rate_rises_for_a_tenth_and_falls_to_nothing(steps):
    shares = [s6.schedule(step, steps) for step in range(1, steps + 1)]
    assert 0 < min(shares) and max(shares) <= 1 and shares[-1] == min(1, 1 / (0.9 * steps))
    top = int(np.argmax(shares))
    assert (np.diff(shares[: top + 1]) > 0).all() and (np.diff(shares[top:]) <= 0).all()
    if steps >= 10:
        assert shares[0] == pytest.approx(10 / steps) and max(shares) == pytest.approx(1, abs=0.02)
        assert top + 1 == pytest.approx(steps / 10, abs=1)


@pytest.mark.parametrize("kind", ["gpt2", "llama-grouped"])
def test_training_step_by_step_against_a_reference(kind, rng):
    """Adam for tables and vectors, Muon through an SVD for matrices, clipping, the schedule."""
    model, other = make(kind, rng, n_layer=1), None
    other = s6.Transformer(model.config, dtype=np.float64)
    other.params = {name: p.copy() for name, p in model.params.items()}
    ids, steps, rate = rng.integers(0, 11, 50), 5, 0.07
    losses = s6.train(model, ids, steps, 3, rate, seed=4)
    draws, first, second = np.random.default_rng(4), {}, {}
    lengths = []
    for step in range(1, steps + 1):
        starts = draws.integers(0, 50 - 9, 3)
        window = np.stack([ids[i : i + 10] for i in starts])
        loss, grads = other.loss_and_grads(window[:, :-1], window[:, 1:])
        assert loss == pytest.approx(losses[step - 1])
        lengths.append(math.sqrt(sum((g**2).sum() for g in grads.values())))
        now = rate * [1, 1 - 1 / 4.5, 3 / 4.5, 2 / 4.5, 1 / 4.5][step - 1]
        if step == 2:
            now = rate * 4 / 4.5
        for name, p in other.params.items():
            g = grads[name] / max(1, lengths[-1])
            inner = g.ndim == 2 and (".h.0." in name or ".layers.0." in name)
            if inner:
                first[name] = 0.95 * first.get(name, 0) + g
                U, s, Vt = np.linalg.svd(g + 0.95 * first[name], full_matrices=False)
                s = s / np.linalg.norm(s)
                for _ in range(5):
                    s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
                other.params[name] = p - now * 0.1 * math.sqrt(max(p.shape)) * (U * s) @ Vt
            else:
                first[name] = 0.9 * first.get(name, 0) + 0.1 * g
                second[name] = 0.97 * second.get(name, 0) + 0.03 * g**2
                m, v = first[name] / (1 - 0.9**step), second[name] / (1 - 0.97**step)
                other.params[name] = p - now * m / (np.sqrt(v) + 1e-8)
    assert max(lengths) > 1.2  # so that clipping was tested
    for name, p in model.params.items():
        np.testing.assert_allclose(p, other.params[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_vocabulary_of_one_symbol_trains(rng):
    model = s6.Transformer(s6.TransformerConfig("llama", 1, 4, 1, 1, 4))
    assert s6.train(model, np.zeros(20, int), 3, 2) == [0, 0, 0]


def test_hidden_sizes_are_rounded_up():
    for C, F in ((64, 172), (24, 64), (4096, 11008), (8, 22), (96, 258), (48, 129)):
        assert s6.TransformerConfig("llama", n_head=2, n_embd=C).n_hidden == F
        assert s6.TransformerConfig("gpt2", n_head=2, n_embd=C).n_hidden == 4 * C


# scale


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("kind", [*FAMILIES, "qk-norm"])
def test_recomputed_blocks_give_the_same_gradients(kind, post_norm, rng):
    model = make(kind, rng)
    model.post_norm = post_norm
    idx, targets = rng.integers(0, 11, (2, 7)), rng.integers(-1, 11, (2, 7))
    loss, grads = model.loss_and_grads(idx, targets, prefix=2)
    model.block = s6.recomputed_block
    again, others = model.loss_and_grads(idx, targets, prefix=2)
    assert again == loss and grads.keys() == others.keys()
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, others[name])


def test_recomputed_blocks_refuse_experts(rng):
    model = make("experts", rng)
    model.block = s6.recomputed_block
    with pytest.raises(ValueError, match="no experts"):
        model.logits(IDS)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(7,), (4, 5), (2, 1), (10,)])
def test_a_ring_gives_everyone_the_sum(n, shape, rng):
    arrays = [rng.integers(-99, 99, shape) for _ in range(n)]
    before = [array.copy() for array in arrays]
    sums, sent = s6.ring_sum(arrays)
    size = math.prod(shape)
    for total, array, old in zip(sums, arrays, before):
        np.testing.assert_array_equal(total, sum(arrays))
        np.testing.assert_array_equal(array, old)
    assert sum(sent) == 2 * (n - 1) * size
    if size % n == 0:
        assert sent == [2 * (n - 1) * size // n] * n


def test_data_parallel_gradients_are_the_whole_batch_s(rng):
    model = make("llama-grouped", rng)
    idx, targets = rng.integers(0, 11, (6, 7)), rng.integers(0, 11, (6, 7))
    _, whole = model.loss_and_grads(idx, targets)
    parts = [model.loss_and_grads(idx[i::3], targets[i::3])[1] for i in range(3)]
    for name, grad in whole.items():
        sums, _ = s6.ring_sum([part[name] / 3 for part in parts])
        for total in sums:
            np.testing.assert_allclose(total, grad, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_tensor_parallel_block(n, rng):
    config = s6.TransformerConfig("llama", 11, 9, 1, 8, 24 * 2, n_kv_head=4, n_hidden=20)
    model = s6.Transformer(config, dtype=np.float64)
    p = {
        k.removeprefix("model.layers.0."): 10 * v for k, v in model.params.items() if "layers" in k
    }
    x, g, mask = rng.normal(size=(2, 5, 48)), rng.normal(size=(2, 5, 48)), s6.attention_mask(5)
    found = []
    for f in (s6.block, lambda *args: s6.tensor_parallel_block(*args, n=n)):
        tape = []
        bottom = s6.Tensor(x, tape=tape)
        weights = {name: s6.Tensor(w, tape=tape) for name, w in p.items()}
        y = f(bottom, weights, config, mask)
        y.backward(g)
        found.append([y.data, bottom.grad, *(weights[name].grad for name in sorted(weights))])
    assert np.abs(found[0][0] - x).max() > 0.1
    for whole, pieces in zip(*found):
        np.testing.assert_allclose(pieces, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [3, 5, 8])
def test_workers_that_cannot_share(n):
    config = s6.TransformerConfig("llama", 11, 9, 1, 8, 48, n_kv_head=4, n_hidden=20)
    with pytest.raises(ValueError, match=f"{n} workers cannot share 4, 20 units"):
        s6.tensor_parallel_block(None, {}, config, None, n=n)


@pytest.mark.parametrize("S, M", [(1, 1), (1, 3), (3, 1), (3, 5), (4, 4)])
def test_pipeline(S, M, rng):
    config = s6.TransformerConfig("llama", 11, 9, 1, 2, 8, n_hidden=6)
    mask, dtype = s6.attention_mask(5), np.float64
    params = []
    for s in range(S):
        weights = s6.Transformer(config, s, dtype).params
        params.append(
            {k.removeprefix("model.layers.0."): 10 * v for k, v in weights.items() if "layers" in k}
        )
    x, w = rng.normal(size=(2 * M, 5, 8)), rng.normal(size=(2 * M, 5, 8))

    def stage(x, weights):
        return s6.block(x, weights, config, mask)

    inputs = list(x.reshape(M, 2, 5, 8))
    targets = w.reshape(M, 2, 5, 8)
    grads, timetable = s6.pipeline([stage] * S, params, inputs, lambda m, y: y * targets[m] / M)
    tape, tensors = [], []  # the whole, at once: loss = Σ w·y²/2M
    y = s6.Tensor(x, tape=tape)
    for weights in params:
        tensors.append({name: s6.Tensor(p, tape=tape) for name, p in weights.items()})
        y = stage(y, tensors[-1])
    y.backward(y.data * w / M)
    for found, whole in zip(grads, tensors):
        for name, grad in found.items():
            np.testing.assert_allclose(grad, whole[name].grad, rtol=1e-9, atol=1e-13, err_msg=name)
    assert len(timetable) == M + S - 1
    jobs = [(s, m, tick) for tick, work in enumerate(timetable) for s, m in work]
    assert len(jobs) == len({(s, tick) for s, _, tick in jobs}) == S * M
    assert all(tick == s + m for s, m, tick in jobs)
    idle = 1 - len(jobs) / (S * len(timetable))
    assert idle == pytest.approx((S - 1) / (M + S - 1))


def test_float16_loses_small_gradients_unless_the_loss_is_scaled():
    g = {
        "a": np.array([1e-9, 1e-7, 3e-6, 0.5], np.float32),
        "b": np.array([[-2e-8, 7.0]], np.float32),
    }
    plain = s6.through_float16(g, 1.0)
    assert plain["a"].dtype == np.float32
    np.testing.assert_array_equal(plain["a"], g["a"].astype(np.float16).astype(np.float32))
    assert plain["a"][0] == 0 and plain["b"][0, 0] == 0
    scaled = s6.through_float16(g, 2.0**12)
    np.testing.assert_allclose(scaled["a"][1:], g["a"][1:], rtol=1e-3)
    np.testing.assert_allclose(scaled["b"], g["b"], rtol=1e-3)
    assert np.isinf(s6.through_float16(g, 2.0**14)["b"][0, 1])


def test_training_with_a_scaled_loss_follows_float32(rng):
    """The rule in use: an absurd scale comes down, then the weights follow plain descent."""
    w = {"w": rng.normal(size=5).astype(np.float32) * 1e-3}
    scale, steps = 2.0**40, 0
    plain = w["w"].copy()
    for _ in range(100):
        g = s6.through_float16({"w": w["w"] * np.float32(1e-3)}, scale)  # the loss is 0.0005·w²
        if np.isfinite(g["w"]).all():
            w["w"] = w["w"] - 10 * g["w"]
            plain -= 10 * np.float32(1e-3) * plain
            steps += 1
        else:
            scale /= 2
    assert 50 < steps < 100 and scale < 2.0**40
    np.testing.assert_allclose(w["w"], plain, rtol=1e-3)


@pytest.mark.parametrize("beta2, steps", [(0.999, {1: 3.2, 12: 6.6}), (0.95, {1: 0.45, 20: 1.1})])
def test_what_adam_does_when_gradients_rise(beta2, steps):
    """The numbers under "Loss spikes": ten thousand quiet steps, then loud ones."""
    m = v = 0.0
    for _ in range(10_000):
        m, v = 0.9 * m + 0.1 * 1e-9, beta2 * v + (1 - beta2) * 1e-18
    sizes = {}
    for t in range(1, 60):
        m, v = 0.9 * m + 0.1, beta2 * v + (1 - beta2)
        sizes[t] = m / math.sqrt(v)
    for t, size in steps.items():
        assert round(sizes[t], 2 if size < 1 else 1) == size
    assert max(sizes, key=sizes.get) == max(steps)


def test_the_bill():
    """Section 12's numbers for Llama 3 8B."""
    c = s6.PRESETS["llama-3-8b"]
    operations, days, dollars = s6.run_cost(c, 15e12, 1024)
    assert round(s6.flops_per_token(c) / 1e9) == 58 and operations == s6.flops_per_token(c) * 15e12
    hours = operations / (989e12 * 0.4) / 3600
    assert round(hours, -4) == 610_000
    assert days == pytest.approx(hours / 1024 / 24) and dollars == pytest.approx(2 * hours)
    assert s6.run_cost(c, 15e12, 1, share=0.8)[1] == pytest.approx(512 * days)
    assert s6.run_cost(c, 1e12, 1, peak=1e12, rent=3)[2] == pytest.approx(
        3 * s6.flops_per_token(c) / 0.4 / 3600
    )
    for bad, said in (
        ((c, 0, 1), "tokens"),
        ((c, 1e9, 0), "devices"),
        ((c, 1e9, 1, -1), "peak"),
        ((c, 1e9, 1, 1, 1, None), "rent"),
    ):
        with pytest.raises(ValueError, match=said):
            s6.run_cost(*bad)


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
    ({"qk_norm": True}, "qk_norm"),
    ({"n_expert": 2}, "experts"),
    ({"arch": "llama", "n_expert": 2, "n_active": 3}, "n_active .* 1..2, not 3"),
    ({"arch": "llama", "n_expert": -1}, "n_expert"),
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
    "targets must be integers": lambda m: m.loss(IDS, None),
    "targets must be integers, not object": lambda m: m.loss_and_grads(IDS, None),
    "targets must have": lambda m: m.loss_and_grads(IDS, IDS[:, :2]),
    "prefix.*4": lambda m: m.logits(IDS, prefix=4),
    "temperature.*-1": lambda m: m.generate(IDS, 1, temperature=-1),
    "max_new_tokens.*-1": lambda m: m.generate(IDS, -1),
    "batch.*0": lambda m: s6.memory_budget(m.config, 0),
    r"optimizer.*\[\]": lambda m: s6.memory_budget(m.config, 1, []),
    "width.*0": lambda m: s6.memory_budget(m.config, width=0),
    "objective must be.*'bert'": lambda m: s6.ask(IDS, "bert", np.random.default_rng(0), 10),
    r"windows must be integers \(B, T\)": lambda m: s6.ask(IDS[0], "causal", None, 10),
    "T must be.*not 0": lambda m: s6.ask(IDS[:, :1], "masked", np.random.default_rng(0), 10),
    "largest of windows.*11": lambda m: s6.ask(IDS + 11, "causal", None, 10),
    "learning_rate .* above 0, not -1": lambda m: s6.train(m, np.zeros(60, int), 1, 2, -1),
    "scale .* above 0, not 0": lambda m: s6.through_float16({"a": np.ones(2)}, 0),
    "number of dicts in params .* 1..1, not 2": lambda m: s6.pipeline(
        [lambda x, w: x], [{}, {}], [np.ones(2)], lambda m, y: y
    ),
    "scale .* not nan": lambda m: s6.through_float16({"a": np.ones(2)}, math.nan),
    "the largest of idx.*99": lambda m: m.generate([[99] + [1] * 9], 1),  # far back
    "a quarter of block_size.*0": lambda m: s6.ask(IDS, "span", np.random.default_rng(0), 10),
    "optimizer.*'adamx'": lambda m: s6.memory_budget(m.config, 1, "adamx"),
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


def test_the_report_concludes_what_its_numbers_say(monkeypatch, capsys):
    lab, given = s6.Lab(fast=True, seed=0), {}

    def stub(steps, *rest, objective="causal", unit=None, **shape):
        config = s6.TransformerConfig("llama", len(lab.letters), 32, 1, 1, 4)
        model = s6.Transformer(config)
        model.loss = lambda *asked: 1.0 if objective == given["best"] else 2.0
        return model, given["post"] if unit == "post" else 2.0

    lab.train = stub
    for given["post"], said in ((3.5, "1.50 nats above pre-norm"), (1.5, "0.50 nats below pre")):
        s6.report_depth(lab)
        assert said in capsys.readouterr().out
    for given["best"] in ("causal", "span", "masked"):
        s6.report_objectives(lab)
        assert f"After equal steps {given['best']} guesses best." in capsys.readouterr().out
    monkeypatch.setattr(s6, "fit_power_law", lambda N, nats: (given["E"], 1.0, 0.1))
    monkeypatch.setattr(s6, "held_out_loss", lambda *rest: 2.0)
    for given["E"], said in ((0.0, "No floor shows"), (1.25, "The floor is 1.25.")):
        s6.report_scaling(lab)
        assert said in capsys.readouterr().out


# Inputs at the corners: the right value, or a sentence that says what was expected.


def small(seed=0, **fields):
    sizes = {"vocab_size": 11, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
    return s6.Transformer(s6.TransformerConfig("llama", **(sizes | fields)), seed)


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


def test_what_a_tape_refuses():
    tape = []
    a, b = (s6.Tensor(np.ones(shape), tape=tape) for shape in ((2, 3), 3))
    with pytest.raises(ValueError, match=r"one number, or dy of the array's shape \(2, 3\)"):
        a.backward()
    with pytest.raises(ValueError, match=r"dy of the array's shape \(2, 3\)"):
        a.backward(np.ones(6))
    with pytest.raises(ValueError, match="on a tape"):
        s6.Tensor(np.ones(1)).backward()
    total = s6.Tensor(a.data.sum(keepdims=True), (b,), lambda dy: (np.ones((2, 4)),))
    with pytest.raises(ValueError, match=r"shape \(2, 4\) for an array of shape \(3,\)"):
        total.backward()
    with pytest.raises(ValueError, match="two different tapes"):
        a + s6.Tensor(np.ones(3), tape=[])
    with pytest.raises(ValueError, match=r"needs matrices, not shapes \(2, 3\) and \(3,\)"):
        s6.Tensor(a.data) @ s6.Tensor(b.data)
    with pytest.raises(TypeError):
        np.ones((2, 3)) * s6.Tensor(a.data)
    with pytest.raises(ValueError, match="zip"):
        s6.Tensor(np.ones(1), (s6.Tensor(np.ones(1), tape=[]),), lambda dy: (dy, dy)).backward()


def test_numbers_and_arrays_are_constants(rng):
    for dtype in (np.float32, np.float64):
        a = rng.normal(size=(2, 3)).astype(dtype)
        b = rng.normal(size=(3, 2))
        x = s6.Tensor(a, tape=[])
        y = (x * 2 + np.float64(3)) * np.arange(3) @ b + [1, 0.5]
        assert y.data.dtype == dtype
        right = (2 * a + 3) * np.arange(3) @ b.astype(dtype) + [1, 0.5]
        np.testing.assert_allclose(y.data, right, rtol=1e-5)
        y.backward(np.ones((2, 2)))
        np.testing.assert_allclose(x.grad, np.ones((2, 2)) @ b.T * 2 * np.arange(3), rtol=1e-5)
    for wrong in (None, "3", True, 1j, [None]):
        for combine in (x.__add__, x.__mul__, x.__matmul__):
            with pytest.raises(ValueError, match="a Tensor goes with a Tensor, a number or an arr"):
                combine(wrong)
    with pytest.raises(ValueError, match=r"needs matrices, not shapes \(2, 3\) and \(\)"):
        x @ 3


def test_a_tape_is_rewound_once():
    x = s6.Tensor(np.array([3.0]), tape=[])
    y = x * x
    y.backward()
    assert x.grad == [6] and y.grad is None
    with pytest.raises(ValueError, match="only once"):
        y.backward()
    with pytest.raises(ValueError, match="on a tape"):
        (x * x).backward()
    assert x.grad == [6]


def test_constants_collect_no_gradient():
    x, two = s6.Tensor(np.ones(2), tape=[]), s6.Tensor(np.full(2, 2.0))
    (x * two + two).backward(np.ones(2))
    assert two.grad is None
    np.testing.assert_array_equal(x.grad, [2, 2])


@pytest.mark.parametrize("dtype", [np.float16, np.int64, bool, complex])
def test_only_float32_and_float64(dtype):
    with pytest.raises(ValueError, match="float32 or float64, not"):
        s6.Tensor(np.ones(3, dtype))
    with pytest.raises(ValueError, match="dtype must be"):
        s6.Transformer(s6.TransformerConfig(**TINY), dtype=dtype)
    model = small()
    name = next(iter(model.params))
    model.params[name] = model.params[name].astype(dtype)
    with pytest.raises(ValueError, match="float32 or float64"):
        model.logits(IDS)


def test_one_loud_channel_does_not_silence_the_rest(rng):
    """In float16 its square overflowed and all logits were 0; float16 is refused, float32 fine."""
    model = small()
    model.params["model.embed_tokens.weight"][:, 3] = 300
    for p in model.params.values():
        p *= 3
    z = model.logits(rng.integers(0, 11, (1, 6)))
    assert z.std() > 0.01 and np.isfinite(z).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("x", [1e20, 3e38, 40.0, 17.0, 0.0, -3.0, -17.0, -30.0, -88.0, -1e20])
def test_gates_far_out(x, dtype):
    """Against the sigmoid in float64 with an exponent that cannot overflow."""
    c, k = math.sqrt(2 / math.pi), 0.044715
    for bend, u, slope_of_u in (
        (s6.silu, x, 1.0),
        (
            s6.gelu,
            2 * c * (x + k * x**3 if abs(x) < 1e3 else x),
            2 * c * (1 + 3 * k * min(x * x, 1e6)),
        ),
    ):
        shut = u < -700
        gate = 0.0 if shut else 1 / (1 + math.exp(-min(u, 700)))
        rest = math.exp(-min(abs(u), 700)) / (1 + math.exp(-min(abs(u), 700)))
        slope = gate + (
            0.0 if abs(u) > 700 else x * gate * (rest if u > 0 else 1 - gate) * slope_of_u
        )
        tensor = s6.Tensor(np.array([x], dtype), tape=[])
        y = bend(tensor)
        y.backward(np.ones(1))
        tolerance = 3e-5 if dtype == np.float32 else 1e-12
        tiny = 1e-37 if dtype == np.float32 else 1e-300
        assert y.data[0] == pytest.approx(x * gate, rel=tolerance, abs=tiny)
        assert tensor.grad[0] == pytest.approx(slope, rel=tolerance, abs=max(tiny, 1e-9 * (u > 0)))


def test_batch_norm_beside_layer_norm():
    """The numbers of section 3: BatchNorm is LayerNorm of the transpose, and sees other rows."""
    one = s6.Tensor(np.ones(2))

    def layer(rows):
        return s6.normalise(s6.Tensor(np.array(rows)), one, eps=1e-12).data

    def batch(rows):
        return layer(np.array(rows).T).T

    near, far = [[3.0, 1], [0, 4]], [[3.0, 1], [5, 1]]
    np.testing.assert_allclose(layer(near), [[1, -1], [-1, 1]], atol=1e-6)
    np.testing.assert_allclose(batch(near), [[1, -1], [-1, 1]], atol=1e-6)
    np.testing.assert_allclose(layer(far)[0], [1, -1], atol=1e-6)
    np.testing.assert_allclose(batch(far)[0], [-1, 0], atol=1e-6)


@pytest.mark.parametrize("index", [[0, 0, 2], (np.array([0, 0, 2]),), np.array([0, 0, 2])])
def test_a_row_picked_twice_collects_twice(index):
    x = s6.Tensor([1.0, 2.0, 3.0], tape=[])
    x[index].backward(np.array([1.0, 10.0, 100.0]))
    np.testing.assert_array_equal(x.grad, [11, 0, 100])


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
        (lambda: small(norm_eps=None), "norm_eps .* not None"),
        (lambda: small(rope_theta=math.inf), "rope_theta .* not inf"),
        (lambda: small(tie_weights=3), "tie_weights must be True or False, not 3"),
        (lambda: model.generate(start, 1, "a"), "temperature .* not 'a'"),
        (lambda: model.generate(start, 1, None), "temperature .* not None"),
        (lambda: model.generate(start, 1, True), "temperature .* not True"),
        (lambda: model.generate(1, 1), r"integers \(B, T\), not int64 of \(\)"),
        (lambda: s6.attention_mask(2.5), "T must be a whole number in 1..inf, not 2.5"),
        (lambda: s6.orthogonal(np.ones(3)), r"G must be a matrix, not of shape \(3,\)"),
        (lambda: s6.orthogonal(np.eye(3, dtype=np.float16) * 300), "not float16"),
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


def test_training_that_diverges_says_at_which_step(rng):
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="step 2: the loss is nan"):
        s6.train(small(), rng.integers(0, 11, 60), 30, 2, 1e30)
