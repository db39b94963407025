"""Checks of the exercises of stage 5."""

import functools
import tracemalloc

import judge
import numpy as np
import pytest

import stage05_attention as stage


def test_1(answers):
    q, dy = np.zeros(2), np.array([1.0, 0])
    keys = np.array([[1.0, 0], [0, 1], [-1, 0]])
    values = np.array([[1.0, 0], [0, 0], [0, 1]])
    weights, y = stage.attend(q, keys, values)
    dweights = values @ dy
    dscores = weights * (dweights - weights @ dweights)
    mistakes = {
        "the weights must add up to 1": 3 * y,
        "saw is one of the three, though its value is 0": y * 3 / 2,
        "a score of 0 has not the weight 0": 0 * y,
        "that is the answer to q = [2, 0]": stage.attend(np.array([2.0, 0]), keys, values)[1],
    }
    judge.array("ANSWER_1", judge.numbers(answers, "ANSWER_1", 2), y, 2e-3, mistakes=mistakes)
    mistakes = {
        "each weight can only grow at the others' cost: take off the average": weights * dweights,
        "those are dweights; the softmax comes after": dweights,
        "that is not yet times the weights": dweights - weights @ dweights,
    }
    found = judge.numbers(answers, "ANSWER_1B", 3)
    judge.array("ANSWER_1B", found, dscores, 2e-3, mistakes=mistakes)
    only_mia = dscores[0] * keys[0]
    mistakes = {
        "that is what Mia pulls; the others push": only_mia,
        "Tom's key is negative, and so is his dscore": only_mia
        + dscores[1] * keys[1]
        - dscores[2] * keys[2],
        "Tom is missing": only_mia + dscores[1] * keys[1],
        "dscores go into this, not the weights": weights @ keys,
        "without the average that was to be taken off": (weights * dweights) @ keys,
    }
    found = judge.numbers(answers, "ANSWER_1C", 2)
    judge.array("ANSWER_1C", found, dscores @ keys, 2e-3, mistakes=mistakes)


def test_2(answers):
    layers, H, Hkv, D, tokens, size, latent = 32, 32, 8, 128, 10_000, 2, 512
    cache = 2 * Hkv * D * layers * tokens * size / 1e9
    mistakes = {
        "the cache holds heads of keys and values, not of queries": cache * H / Hkv,
        "there is one such cache in every layer": cache / layers,
        "a number has 2 bytes, and there are keys and values": cache / 4,
        "either keys or values are missing, or the 2 bytes of a number": cache / 2,
        "those are units of 2³⁰ bytes; 10⁹ were asked for": cache * 1e9 / 2**30,
        "gigabytes were asked for": cache * 1e9,
        "that is in megabytes": cache * 1e3,
        "that counts the cache for one token": cache / tokens,
        "there are eight bits in a byte, but bytes were asked for": cache * 8,
    }
    judge.number(answers, "ANSWER_2", cache, mistakes=mistakes)
    mistakes = {
        "that is against 8 heads of keys and values; 32 were asked for": 2 * Hkv * D / latent,
        "the values are missing": H * D / latent,
        "the other way round: how many times smaller?": latent / (2 * H * D),
        "c serves all heads, and there are keys and values against it": 2 * D / latent,
    }
    judge.number(answers, "ANSWER_2B", 2 * H * D / latent, mistakes=mistakes)


def test_3(answers, rng):
    for Tq, Tk in ((4, 4), (2, 5), (1, 6), (3, 3)):
        slope = float(rng.uniform(0.1, 2))
        distance = np.arange(Tk - Tq, Tk)[:, None] - np.arange(Tk)
        left = np.arange(Tq)[:, None] - np.arange(Tk)
        past = distance >= 0
        with np.errstate(invalid="ignore"):
            found = judge.call(answers, "alibi", Tq, Tk, slope)
        what = f"alibi({Tq}, {Tk}, {slope:.2f})"
        found = judge.numeric(what, found)
        if found.shape != (Tq, Tk):
            judge.wrong(f"{what} has the shape {found.shape}; expected {(Tq, Tk)}")
        if found.dtype.kind != "f":
            judge.wrong(f"{what} holds {found.dtype}; expected floats: no other number is -inf")
        if np.isnan(found).any():
            judge.wrong(f"{what} has a NaN: 0·inf, or inf - inf")
        seen = np.isfinite(found)
        if np.array_equal(seen, left >= 0) and not np.array_equal(left >= 0, past):
            judge.wrong(f"{what}: the first query stands at Tk - Tq, not at 0")
        if seen.all() and not past.all():
            judge.wrong(f"{what}: the future must be -inf; here it is a finite number")
        if np.array_equal(seen, distance > 0):
            judge.wrong(f"{what}: a query sees its own position, too")
        if np.array_equal(seen, distance <= 0) and not np.array_equal(distance <= 0, past):
            judge.wrong(f"{what}: it sees the future and not the past")
        if not np.array_equal(seen, past):
            judge.wrong(f"{what}: -inf does not stand just where the future is")
        if np.any(found == np.inf):
            judge.wrong(f"{what}: +inf would take all the weight")
        right = np.where(past, -slope * distance, 0)
        mistakes = {
            "distance should make a score smaller": -right,
            "the distance is counted from the first position, not from the query": np.where(
                past, -slope * np.arange(Tk), 0
            ),
            "the distance is off by one: a query is 0 away from itself": np.where(
                past, -slope * (distance + 1), 0
            ),
            "where is the slope?": np.where(past, -distance, 0),
            "the first query stands at Tk - Tq, not at 0": np.where(past, -slope * abs(left), 0),
        }
        judge.array(what, np.where(past, found, 0), right, mistakes=mistakes)


def test_4(answers, rng):
    for H, Hkv in ((4, 2), (6, 3), (6, 2), (4, 4), (3, 1)):
        q = rng.normal(size=(2, H, 3, 4))
        k, v = rng.normal(size=(2, 2, Hkv, 5, 4))
        right, _ = stage.attention_forward(q, k, v)
        dealt = np.arange(H) % Hkv
        mistakes = {
            "neighbouring query heads still do not share": stage.attention_forward(
                q, k[:, dealt], v[:, dealt]
            )[0],
        }
        found = judge.call(answers, "shared_attention", q.copy(), k.copy(), v.copy())
        judge.array(f"shared_attention with H = {H}, Hkv = {Hkv}", found, right, mistakes=mistakes)


def test_5(answers):
    remarks = {
        "a": "with layer 2 silenced, layer 1 is all there is: how much does that leave?",
        "b": "the mean of weights that are 0 is 0: no future is seen",
        "c": "what do the values hold that frozen weights mix?",
        "d": "there are ten digits; a guess is right in a tenth of all cases",
    }
    judge.choice(answers, "ANSWER_5", 5, "b43de6c4d256", remarks)


def scaled_loss(q, k, v, scale, dout):
    """A loss whose gradient with respect to attention's output is dout."""
    return np.sum(dout * stage.attention_forward(q, k, v, scale=float(scale))[0])


def test_6(answers, rng):
    for B, H, T, D in ((1, 1, 3, 2), (2, 3, 4, 5)):
        q, k, v, dout = rng.normal(size=(4, B, H, T, D))
        scale = rng.uniform(0.3, 1.5, size=())

        loss = functools.partial(scaled_loss, q, k, v, scale, dout)
        found = judge.call(
            answers, "scale_gradient", q.copy(), k.copy(), v.copy(), float(scale), dout.copy()
        )
        products = q @ k.swapaxes(-1, -2)
        p, _ = stage.softmax_forward(scale * products)
        dp = dout @ v.swapaxes(-1, -2)
        right = np.sum(stage.softmax_backward(dp, p) * products)
        unscaled, _ = stage.softmax_forward(products)
        mistakes = {
            "the weights are those at α = scale": np.sum(
                stage.softmax_backward(dp, unscaled) * products
            ),
            "the products of section 5's s have α in them already; here it is not wanted": right
            * scale,
            "the softmax's backward is missing: dp is not ds": np.sum(dp * products),
            "ds needs what a weight is worth beyond the average": np.sum(p * dp * products),
            "a sum over all batches and heads was asked for, not a mean": right / (B * H),
            "all entries count: a sum, not a mean": right / products.size,
            "divided by α: was it left in?": right / scale,
        }
        if np.ndim(found) != 0:
            judge.wrong(
                f"scale_gradient has the shape {np.shape(found)}; α is one number, and so is its "
                "gradient: sum over batch, heads and both positions"
            )
        judge.array("scale_gradient", found, right, 1e-6, mistakes=mistakes)
        judge.gradient("scale_gradient", loss, scale, found, tolerance=1e-6)


def weights_by(mask_scores, mask_weights=None):
    """An attention(q, k, v) whose (Tq, Tk) scores and weights go through these functions."""

    def attention(q, k, v):
        s = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        Tq, Tk = s.shape[-2:]
        distance = np.arange(Tk - Tq, Tk)[:, None] - np.arange(Tk)
        p, _ = stage.softmax_forward(mask_scores(s, distance))
        return (p if mask_weights is None else mask_weights(p, distance)) @ v

    return attention


def hidden(condition):
    """A function that sets scores to -inf where condition(distance) is not so."""
    return lambda s, distance: np.where(condition(distance), s, -np.inf)


def centred(q, k, v):
    """Causal weights, but the values' mean over all positions is taken off first."""
    return stage.attention_forward(q, k, v - v.mean(axis=2, keepdims=True), causal=True)[0]


def narrow(s, distance):
    """Aligned at the left: a query sees too little, but no future."""
    Tq, Tk = distance.shape
    return np.where(np.arange(Tk) <= np.arange(Tq)[:, None], s, -np.inf)


def last_only(s, distance):
    """Causal for all queries but the last one before the end."""
    shut = distance < 0
    shut[-2:-1] = False
    return np.where(shut, -np.inf, s)


CAUSAL = {  # what sees no future
    "a causal mask": weights_by(hidden(lambda d: d >= 0)),
    "a window of two": weights_by(hidden(lambda d: (d >= 0) & (d < 2))),
    "a mask aligned at the left": weights_by(narrow),
    "the stage's tiles": lambda q, k, v: stage.flash_attention_forward(q, k, v, True, 2)[0],
}
LEAKY = {  # what does
    "attention without a mask": weights_by(lambda s, d: s),
    "a mask that is open one place too far": weights_by(hidden(lambda d: d >= -1)),
    "a score of 0 in place of -inf": weights_by(lambda s, d: np.where(d >= 0, s, 0.0)),
    "weights set to 0 after the softmax": weights_by(
        lambda s, d: s, lambda p, d: np.where(d >= 0, p, 0)
    ),
    "a mask that forgets the last query but one": weights_by(last_only),
    "values from which their mean over all positions was taken": centred,
}


def test_7(answers):
    for Tq, Tk in ((5, 5), (2, 5), (3, 4)):
        for kinds, leaks in ((CAUSAL, False), (LEAKY, True)):
            for what, attention in kinds.items():
                found = judge.call(answers, "sees_the_future", attention, Tq, Tk)
                if not isinstance(found, (bool, np.bool_)):
                    judge.wrong(f"sees_the_future returned {found!r:.40}; expected True or False")
                if leaks and not found:
                    judge.wrong(f"sees_the_future(Tq = {Tq}, Tk = {Tk}) does not notice: {what}")
                if found and not leaks:
                    judge.wrong(f"sees_the_future(Tq = {Tq}, Tk = {Tk}) suspects {what}")


def half(s, v):
    """(out, log Z) of these scores (T, N) and values (N, D)."""
    top = np.maximum(s.max(axis=1, keepdims=True), -1e300)
    with np.errstate(divide="ignore"):
        log_Z = top + np.log(np.exp(s - top).sum(axis=1, keepdims=True))
    return stage.softmax_forward(s)[0] @ v, log_Z


def test_8(answers, rng):
    T, D = 4, 3
    for size in (1, 700, 0):
        s1, s2 = max(size, 1) * rng.normal(size=(2, T, 5))
        if size == 0:
            s2[1:3] = -np.inf  # two queries see nothing in this half
        v1, v2 = rng.normal(size=(2, 5, D))

        halves = [*half(s1, v1), *half(s2, v2)]
        out, log_Z = half(np.concatenate([s1, s2], axis=1), np.concatenate([v1, v2]))
        with np.errstate(all="ignore"):
            found = judge.call(answers, "merge", *(part.copy() for part in halves))
            ends = np.logaddexp(np.exp(halves[1]), np.exp(halves[3]))
            total = np.exp(halves[1]) + np.exp(halves[3])
            by_logarithms = halves[1] * halves[0] + halves[3] * halves[2]
            by_logarithms /= halves[1] + halves[3]
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            judge.wrong(f"merge returned {type(found).__name__}; expected the pair (out, log_Z)")
        case = ["scores of moderate size", "large scores", "a half that sees nothing"]
        case = case[[1, 700, 0].index(size)]
        if not all(np.all(np.isfinite(judge.numeric("merge", part))) for part in found):
            judge.wrong(f"merge, {case}: something overflowed, or is inf - inf or 0/0")
        mistakes = {
            "that is Z, not its logarithm": total,
            "the Z are added, not their logarithms": halves[1] + halves[3],
            "that is the larger of the two; the other one counts, too": np.maximum(
                halves[1], halves[3]
            ),
            "the maximum that was taken off is to be added again": log_Z
            - np.maximum(halves[1], halves[3]),
            "log(e^Z + e^Z): these are logarithms already": ends,
        }
        judge.array(f"log_Z, {case}", found[1], log_Z, 1e-9, mistakes=mistakes)
        mistakes = {
            "the halves do not count alike: the one with the larger scores has more weight": (
                halves[0] + halves[2]
            )
            / 2,
            "these are averages: their sum is none": halves[0] + halves[2],
            "this is still to be divided by Z₁ + Z₂": out
            * np.exp(log_Z - np.maximum(halves[1], halves[3])),
            "the two shares are exchanged": np.exp(halves[3] - log_Z) * halves[0]
            + np.exp(halves[1] - log_Z) * halves[2],
            "the shares are Z₁/Z and Z₂/Z, not those of the logarithms": by_logarithms,
        }
        judge.array(f"out, {case}", found[0], out, 1e-9, mistakes=mistakes)


def sink_loss(s, a, dp):
    """A loss whose gradient with respect to the weights is dp; the sink is one more key."""
    row = np.concatenate([s, np.full((len(s), 1), float(a))], axis=1)
    return np.sum(dp * stage.softmax_forward(row)[0][:, :-1])


def test_9(answers, rng):
    for T, N in ((4, 5), (1, 3)):
        s, dp = rng.normal(size=(2, T, N))
        a = rng.normal(size=())

        loss = functools.partial(sink_loss, s, a, dp)
        found = judge.call(answers, "sink_backward", s.copy(), float(a), dp.copy())
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            judge.wrong(f"sink_backward returned {type(found).__name__}; expected (ds, da)")
        ds, da = found
        Z = np.exp(a) + np.exp(s).sum(axis=1, keepdims=True)
        p, sink = np.exp(s) / Z, np.exp(a) / Z
        average = np.sum(p * dp, axis=1, keepdims=True)
        plain, _ = stage.softmax_forward(s)
        joint = np.exp(s) / (np.exp(a) + np.exp(s).sum())
        mistakes = {
            "Z is the sum over one row, not over all": joint
            * (dp - np.sum(joint * dp, axis=1, keepdims=True)),
            "exp(a) is missing in the weights": stage.softmax_backward(dp, plain),
            "the average is over all places, the sink's included: do not divide it by Σp": p
            * (dp - average / p.sum(axis=1, keepdims=True)),
            "what a weight is worth counts only beyond the average": p * dp,
        }
        judge.array("ds", ds, p * (dp - average), 1e-9, mistakes=mistakes)
        judge.gradient("ds", loss, s, ds)
        mistakes = {
            "the sink's own weight exp(a)/Z is missing": -average.sum(),
            "a is used in every row: a sum, not a mean": -np.sum(sink * average) / T,
            "exp(a) was taken for the weight of the sink; divide by Z": -np.sum(
                np.exp(a) * average
            ),
            "what is the sink's weight worth? It has no value": np.sum(sink * (1 - average)),
            "the sink's weight counts once": -np.sum(sink**2 * average),
        }
        if np.shape(da) in ((T,), (T, 1)) and T > 1:
            judge.wrong("da has an entry for each row; a is one number, used in all of them")
        judge.array("da", da, -np.sum(sink * average), 1e-9, mistakes=mistakes)
        judge.gradient("da", loss, a, da)


def test_10(answers, rng):
    H, D, R, T = 4, 128, 6, 2000
    q, c = rng.normal(size=(H, D)), rng.normal(size=(T, R))
    Wk, Wv = rng.normal(size=(2, H, R, D)) / R**0.5
    judge.answer(answers, "latent_attention")
    keys, values = c @ Wk, c @ Wv  # (H, T, D)
    s = (keys @ q[:, :, None])[..., 0]  # (H, T)

    def with_scale(scale):
        return (stage.softmax_forward(scale * s)[0][:, None] @ values)[:, 0]

    right = with_scale(D**-0.5)
    mistakes = {
        "the scale is 1/√D, D being the size of q": with_scale(R**-0.5),
        "the scores are not divided by √D": with_scale(1.0),
        "the scores are to be divided by √D, not D": with_scale(1 / D),
        "one softmax for each head, over the tokens": (
            stage.softmax_forward(s.T * D**-0.5)[0].T[:, None] @ values
        )[:, 0],
    }
    tracemalloc.start()
    try:
        found = judge.call(answers, "latent_attention", q.copy(), c.copy(), Wk.copy(), Wv.copy())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    judge.array("latent_attention", found, right, 1e-9, mistakes=mistakes)
    if peak > keys[0].nbytes / 2:
        judge.wrong(
            "latent_attention: the numbers are right, but something as large as a head's keys was "
            f"made ({peak / 1e6:.1f} MB at the peak, T·D numbers are {keys[0].nbytes / 1e6:.1f} MB)"
        )


@pytest.mark.project
def test_12(answers):
    model = judge.call(answers, "recall_model")
    if not isinstance(model, stage.AttentionOnly):
        judge.wrong(f"recall_model returned {type(model).__name__}; expected an AttentionOnly")
    channels = model.params["token"].shape[1]
    if len(model.layers) != 2 or channels > 256:
        judge.wrong(f"{len(model.layers)} layers, {channels} channels; expected 2, at most 256")
    for n_pairs in range(1, 13):
        texts = stage.recall_batch(np.random.default_rng(n_pairs), 200, n_pairs)
        second = 2 * n_pairs  # where the second half begins
        try:
            logits, _, caches = model.forward(texts)
        except Exception as error:
            judge.wrong(f"the model does not run: {type(error).__name__}: {error}")
        named = logits[:, second::2].argmax(axis=-1)  # (B, n)
        right = np.mean(named == texts[:, second + 1 :: 2])
        if right < 1:
            heads = caches[0][2][3].swapaxes(0, 1)  # (H, B, T, T), the weights of layer 1
            previous = max(stage.looks(p, texts)[0] for p in heads)
            judge.wrong(
                f"with n_pairs = {n_pairs}, {right:.1%} are right; in layer 1 a digit looks at the "
                f"letter before it with a weight of {previous:.2f} (best head)"
            )
