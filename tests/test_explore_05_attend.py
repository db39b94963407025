"""Page 5 in the browser: its numbers are those of stage05_attention's own functions."""

import copy
import math

import numpy as np
import pytest

import stage05_attention as stage

PROMPT = "a3 f0 c7 h2 e9 b5 c"
FIELD = "prompt: letters a to l, digits, and a letter to ask for"
N_PAIRS, STEPS, WIDTH = 3, 120, 48  # under --fast
TEXTS = stage.recall_batch(np.random.default_rng(1), 200, N_PAIRS)
HEADS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def ids_of(prompt):
    return np.array([[stage.TOKENS.index(token) for token in prompt.replace(" ", "")]])


@pytest.fixture
def page():
    pytest.importorskip("marimo")
    pytest.importorskip("matplotlib")
    from explorer import page05_attend

    return page05_attend


@pytest.fixture
def model(visit, kept):
    """The model that the page has trained and kept, once the page is open and shows it."""
    visit.open("attend")
    visit.until(lambda: visit.matrix("answers"), "a prediction", patience=60)
    visit.equals(visit.window.locator("progress").count, 0, "no bar any more")
    (path,) = kept.glob(f"recall-{N_PAIRS}-{STEPS}-{WIDTH}-2-2-fast-*.npz")
    model = stage.AttentionOnly(WIDTH, 2, 2, dtype=np.float64)
    with np.load(path) as arrays:
        for name, W in model.params.items():
            W[...] = arrays[name]
    return model


def without_scale(model, layer):
    """The same model with q longer by √D in a layer: the stage's 1/√D is then undone."""
    model = copy.deepcopy(model)
    model.layers[layer].params["Wq"] *= math.sqrt(WIDTH / 2)
    return model


def without_head(model, layer, head):
    """The same model without a head's rows of Wo: whatever it finds, nothing is handed over."""
    model = copy.deepcopy(model)
    D = WIDTH // 2
    model.layers[layer].params["Wo"][head * D : (head + 1) * D] = 0
    return model


def answers(model, prompt):
    """A row that the page should show: a probability for each digit, and one for all letters."""
    p, _ = stage.softmax_forward(model.forward(ids_of(prompt))[0][0, -1])
    return [*(p[stage.TOKENS.index(token)] for token in "0123456789"), p[:12].sum()]


def bits(p):
    return float(-np.sum(p[p > 0] * np.log2(p[p > 0])))


def shows_rows(visit, expected):
    """Wait until the table of steps holds these rows of numbers (JSON has no -inf: as text)."""
    rows = visit.window.locator('table[data-name="steps"] tbody tr')
    read = "all => all.map(r => [...r.querySelectorAll('output')].map(e => e.dataset.value))"

    def same():
        shown = [[float(v) for v in row] for row in rows.evaluate_all(read)]
        return len(shown) == len(expected) and all(
            a == pytest.approx(b, rel=1e-6, abs=1e-9) for a, b in zip(shown, expected)
        )

    visit.until(same, f"the table of steps {expected}")


def test_prompts_and_predictions(visit, model):
    visit.shows_matrix("answers", [answers(model, PROMPT)])
    visit.shows("trained_share", model.loss_and_grads(TEXTS)[1])
    for prompt, right in (
        ("a3 f0 a", "3"),
        ("a3f0f", "0"),
        ("a3b4" * 5 + "a3b", "4"),
        ("a3 f0 c", None),
        ("l", None),
        ("a3 f0", None),
        ("a3 a4 a", "3 and 4"),
    ):
        visit.fill(FIELD, prompt)
        visit.shows_matrix("answers", [answers(model, prompt)])
        answer = stage.TOKENS[model.forward(ids_of(prompt))[0][0, -1].argmax()]
        if right is None:
            verdict = "That is a guess"
        elif len(right) > 1:
            verdict = f"No answer is the right one: {right} followed a."
        elif answer == right:
            verdict = f"That is right: it followed {prompt[-1]}."
        else:
            verdict = f"That is wrong: {right} followed {prompt[-1]}."
        visit.says(f"As trained: {answer}. {verdict}")
        n = ids_of(prompt).size
        visit.equals(lambda: len(visit.matrix("pattern")), n, "rows of the pattern")
    for prompt, part in (
        ("", "The prompt is empty"),
        ("A3 f0 A", "no token 'A'"),
        ("a3 ٣ a", "no token '٣'"),
        ("a3, f0", "no token ','"),
        ("a3" * 12 + "a", "25 tokens; at most 24"),
        ("🦉", "no token '🦉'"),
    ):
        visit.fill(FIELD, prompt)
        visit.refuses(part)
    visit.fill(FIELD, "b2 b")
    visit.shows_matrix("answers", [answers(model, "b2 b")])
    assert not visit.window.locator(".problem").count()


def test_one_head_number_by_number(visit, model):
    logits, _, caches = model.forward(ids_of(PROMPT))
    for layer, head, place in ((1, 0, 13), (0, 0, 6), (0, 1, 1), (1, 1, 5)):
        visit.slide("place that asks", place)
        visit.says(f"Place {place}, ")
        visit.choose("layer", str(layer + 1))
        visit.choose("head", str(head + 1))
        q, k, v, p, scale = (x if np.isscalar(x) else x[0] for x in caches[layer][2])
        visit.shows_matrix("pattern", p[head])
        scores = q[head] @ k[head].T
        i, D = place - 1, v.shape[-1]
        masked = [scale * s if j <= i else -math.inf for j, s in enumerate(scores[i])]
        parts = p[head, i, :, None] * v[head]
        answer = logits[0, i].argmax()
        Wo = model.layers[layer].params["Wo"][head * D : (head + 1) * D]
        reads = Wo @ model.params["unembed"][:, answer]  # (D,) what each number of p v is worth
        expected = [
            [scores[i, j], scale * scores[i, j], masked[j], p[head, i, j], *parts[j, :4]]
            + [parts[j] @ reads]
            for j in range(13)
        ]
        out = p[head, i] @ v[head]
        shows_rows(visit, [*expected, [1, *out[:4], out @ reads]])
        visit.shows_matrix("sum", [out])
        visit.shows("soft", bits(p[head, i]))
        sharp = np.exp(scores[i, :place] - scores[i, :place].max())
        visit.shows("sharp", bits(sharp / sharp.sum()), rel=1e-6)
        visit.shows("soft_mean", np.mean([bits(row) for h in p for row in h]))
    visit.fill(FIELD, "a")  # the shortest: a place that sees itself alone
    visit.shows_matrix("pattern", [[1]])
    visit.slide("place that asks", 2)
    visit.says("Place 1, a, asks")


def test_scale_and_heads_taken_away(visit, model):
    whole, usual = model.loss_and_grads(TEXTS)[1], answers(model, PROMPT)
    for label, changed in (
        ("layer 1: √D", without_scale(model, 0)),
        ("layer 2: √D", without_scale(model, 1)),
        *((f"layer {i + 1}: head {h + 1}", without_head(model, i, h)) for i, h in HEADS),
    ):
        visit.tick(label)
        visit.shows_matrix("answers", [usual, answers(changed, PROMPT)], rel=1e-6)
        visit.shows("share", changed.loss_and_grads(TEXTS)[1])
        visit.shows("share_before", whole)
        p = changed.forward(ids_of(PROMPT))[2][1][2][3]
        visit.shows_matrix("pattern", p[0, 0], rel=1e-6)  # of layer 2, head 1
        silenced = label == "layer 2: head 1"
        assert ("this head is silenced" in visit.text()) is silenced
        visit.tick(label)
        visit.equals(visit.window.locator('output[data-name="share"]').count, 0, "no change")
    visit.shows_matrix("answers", [answers(model, PROMPT)])
    for label in ("layer 1: √D", "layer 1: head 2", "layer 2: head 1"):
        visit.tick(label)
    changed = without_head(without_head(without_scale(model, 0), 0, 1), 1, 0)
    visit.shows_matrix("answers", [usual, answers(changed, PROMPT)], rel=1e-6)
    visit.shows("share", changed.loss_and_grads(TEXTS)[1])


def test_what_each_head_does(visit, model):
    maps = [cache[2][3] for cache in model.forward(TEXTS)[2]]
    seen = {(i, h): stage.looks(maps[i][:, h], TEXTS) for i, h in HEADS}
    for i, h in HEADS:
        visit.shows(f"previous {(i, h)}", seen[i, h][0])
        visit.shows(f"induction {(i, h)}", seen[i, h][1])
        visit.shows(f"without {(i, h)}", stage.right_with(np.zeros_like, model, TEXTS, i, [h]))
    for kind, name in ((0, "previous-token"), (1, "best induction")):
        i, h = max(HEADS, key=lambda place: seen[place][kind])
        if seen[i, h][kind] > 0.5:
            visit.says(f"The {name} head is layer {i + 1}, head {h + 1}.")
        else:
            visit.says("No head gives most of its weight")
    assert visit.window.locator("figure figcaption").count() == 1


def test_the_page_runs_the_stages_model(page, monkeypatch):
    monkeypatch.setattr(page, "STEPS", 3)
    monkeypatch.setattr(page, "N_PAIRS", N_PAIRS)
    seen = []
    arrays = page.train_recall(seen.append)
    model = stage.AttentionOnly(page.WIDTH, 2, 2)
    stage.train(model, 3, N_PAIRS, seed=0)
    assert seen == [1 / 3, 2 / 3, 1] and len(arrays["rights"]) == 3
    assert all(np.array_equal(arrays[name], W) for name, W in model.params.items())
    model = page.rebuild(arrays)
    logits, _, caches = model.forward(TEXTS)
    again, attention = page.run(model, TEXTS)
    np.testing.assert_allclose(again, logits, rtol=1e-12)
    np.testing.assert_allclose(attention[1][3], caches[1][2][3], rtol=1e-12)
    assert page.share_right(logits, TEXTS) == model.loss_and_grads(TEXTS)[1]
    for i, h in HEADS:
        silenced = page.share_right(page.run(model, TEXTS, silenced=[(i, h)])[0], TEXTS)
        assert silenced == stage.right_with(np.zeros_like, model, TEXTS, i, [h])


def test_a_model_that_has_not_learned_is_called_so(page):
    assert "has learned" in page.lesson_of(0.99, 0.36)
    assert "begun" in page.lesson_of(0.5, 0.36)
    assert "has not learned" in page.lesson_of(0.4, 0.36)
    counted = np.array([[0, 12, 1, 13, 2, 13, 0, 12, 1, 13, 2, 13]])  # a0 b1 c1, then a b c
    assert page.share_of_guessing(counted) == pytest.approx(2 / 3)
