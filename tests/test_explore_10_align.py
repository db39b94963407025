"""Page 10 in the browser: its numbers are those of stage10_dpo's own functions."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

import stage10_dpo as stage

RUNS = [(name, value) for name, (values, _) in stage.METHODS.items() for value in values]
TOKENS = stage.encode((ROOT / "data" / "names.txt").read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def page():
    """The page's file; its trainings are small, as in the browser of the tests."""
    pytest.importorskip("marimo")
    pytest.importorskip("matplotlib")
    from explorer import keep, page10_align

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keep, "FAST", True)
        yield page10_align


@pytest.fixture(scope="module")
def trained(page):
    """What the page trains from seed 3, the stage's world of this seed, the progress told."""
    done = []
    points = page.train_methods(done.append, seed=3)
    return points, stage.make_world(TOKENS, stage.FAST, np.random.default_rng(3)), done


@pytest.fixture
def aligned(visit, kept):
    """(the page when all is trained, its world, its points) as they are kept in files."""
    visit.window.set_default_navigation_timeout(90_000)  # the first visit of a session is slow
    visit.open("align")
    visit.until(lambda: visit.number(f"kl {len(RUNS) - 1}") >= 0, "the methods", patience=90)
    arrays = []
    for name in ("align_world", "align_methods"):
        (path,) = kept.glob(f"{name}-fast-*.npz")
        with np.load(path) as file:
            arrays.append(dict(file))
    return visit, SimpleNamespace(**arrays[0]), arrays[1]


def weights(arrays, prefix, i=...):
    return {k[len(prefix) :]: v[i] for k, v in arrays.items() if k.startswith(prefix)}


def listed(visit):
    """The names that stand in the table."""
    return visit.window.locator('table[data-name="names"] tbody td:first-child').all_inner_texts()


def price(visit, beta):
    """Move the slider to the step nearest to this price, and return that step."""
    steps = [float(f"{b:.2g}") for b in np.geomspace(0.2, 20, 41)]
    step = int(np.abs(np.log(steps) - math.log(beta)).argmin())
    visit.slide("price β", step)
    return steps[step]


def shows_names(visit, world, policy, seed):
    """The page lists what the stage draws from this policy, with its rewards and distances."""
    rng = np.random.default_rng(seed)
    drawn = stage.sample(policy, rng.choice(world.prompts, 200), rng)
    visit.equals(lambda: listed(visit), stage.decode(drawn[:12]), "names")
    reference, model = weights(vars(world), "reference_"), weights(vars(world), "model_")
    rewards, learned = stage.true_rewards(drawn), stage.learned_rewards(model, drawn)
    logp, before = (stage.policy_forward(p, drawn)[0].sum(1) for p in (policy, reference))
    visit.shows("drawn_reward", rewards.mean())
    visit.shows("drawn_kl", (logp - before).mean(), rel=1e-3)
    for i in (0, 5, 11):
        visit.shows(f"true {i}", rewards[i])
        visit.shows(f"likelier {i}", logp[i] - before[i], rel=1e-3)
        visit.shows(f"believed {i}", learned[i] - world.start_learned + world.start, rel=1e-3)


def test_the_star_walks_along_the_frontier(aligned):
    visit, world, _ = aligned
    for beta in (0.3, 0.8, 0.5):
        beta = price(visit, beta)
        kl, reward = stage.frontier(world.truth, world.weights, [beta])[0]
        visit.shows("best_kl", kl)
        visit.shows("best_reward", reward)
        visit.shows("best_worth", reward - beta * kl)
    visit.says("best policy at β = 0.5")
    visit.until(lambda: len(listed(visit)) == 12, "names")
    names = {
        name: np.argwhere((world.bank == stage.encode([name])).all(-1)) for name in listed(visit)
    }
    for i, name in enumerate(listed(visit)):
        (letter, _), *_ = names[name]  # the bank holds it
        bank = world.bank_rewards[letter]
        visit.shows(f"true {i}", stage.true_reward(name))
        tilt = stage.true_reward(name) / beta - np.log(np.exp(bank / beta).mean())
        visit.shows(f"likelier {i}", tilt)


def test_each_writer_and_other_names(aligned):
    visit, world, points = aligned
    beta = price(visit, 0.4)
    visit.choose("the names are written by", "the reference")
    best_kl, best_reward = stage.frontier(world.truth, world.weights, [beta])[0]
    visit.shows("reward", world.start)
    visit.shows("from_best", (best_reward - beta * best_kl - world.start) / beta)
    shows_names(visit, world, weights(vars(world), "reference_"), 0)
    visit.press("draw other names")
    shows_names(visit, world, weights(vars(world), "reference_"), 1)
    for method, label, step in (("imitate best", "n", 1), ("DPO", "β", 2), ("PPO", "β", 3)):
        visit.choose("the names are written by", method)
        visit.says(f"The ring is {method}, {label}")  # so its own slider stands there by now
        visit.slide(f"trained with {label}", step)
        run = RUNS.index((method, stage.METHODS[method][0][step]))
        shows_names(visit, world, weights(points, "policy_", run), 1)
        true, kl = points["true"][run], points["kl"][run]
        visit.shows("worth", true - beta * kl)
        visit.shows("gain", points["believed"][run])
        visit.shows("share", 100 * stage.share_of(true, kl, world))
        visit.shows(f"reward {run}", true)
        visit.shows(f"kl {run}", kl)
        visit.says(f"The ring is {method}, {label} = {RUNS[run][1]:g}")
    visit.tick("show the outermost points, too")
    shows_names(visit, world, weights(points, "policy_", run), 1)


def test_what_is_believed_and_what_is_true(aligned):
    visit, _, points = aligned
    for method, setting in (("PPO", 0), ("GRPO, k3", 0.42), ("PPO, verified", 1)):
        visit.choose("a run by trial", f"{method}, β = {setting:g}")
        history = points["histories"][RUNS.index((method, setting))]
        visit.shows("last_believed", history[-1, 0])
        visit.shows("last_true", history[-1, 1])
        visit.shows("best_true", history[:, 1].max())
        visit.shows("best_batch", history[:, 1].argmax() + 1)


def test_training_is_the_stages_own(page, trained):
    points, world, done = trained
    assert done == sorted(done) and 0 <= done[0] and done[-1] <= 1
    kept = page.make_world(done.append, seed=3)
    for name in ("truth", "learned", "best", "weights", "start", "start_learned", "prompts"):
        assert np.array_equal(kept[name], getattr(world, name)), name
    for name, p in world.reference.items():
        assert np.array_equal(kept[f"reference_{name}"], p)
    rewards = stage.true_rewards(kept["bank"].reshape(-1, 1 + stage.LONGEST))
    assert np.array_equal(kept["bank_rewards"].ravel(), rewards)
    for i in (0, 3, 7, 10, 13, 16, 19, 22, 25, 31):
        method, setting = RUNS[i]
        rng = np.random.default_rng([3, i])
        policy, _, _ = stage.train(method, setting, world, rng)
        for name, p in policy.items():
            assert np.array_equal(points[f"policy_{name}"][i], p), method
        true, believed, kl, _ = stage.judge(policy, world, rng)
        shown = [points[key][i] for key in ("true", "believed", "kl")]
        assert shown == pytest.approx([true, believed, kl])


def test_the_history_is_told_batch_by_batch(trained):
    points, world, _ = trained
    letters = list(np.unique(world.prompts))
    batches = []

    def reward(tokens):
        batches.append(tokens)
        return stage.learned_rewards(world.model, tokens)

    run = RUNS.index(("PPO", 0))
    options = stage.METHODS["PPO"][1]
    rng = np.random.default_rng([3, run])
    stage.train_rl(
        reference=world.reference, reward=reward, prompts=world.prompts, beta=0,
        iterations=stage.FAST["iterations"], rng=rng, **options,
    )  # fmt: skip
    for batch, (believed, true) in zip(batches, points["histories"][run]):
        usual = [world.truth[letters.index(row[0])].mean() for row in batch]
        assert true == pytest.approx((stage.true_rewards(batch) - usual).mean())
        usual = [world.learned[letters.index(row[0])].mean() for row in batch]
        learned = stage.learned_rewards(world.model, batch)
        assert believed == pytest.approx((learned - usual).mean(), rel=1e-3, abs=1e-6)
    assert np.isnan(points["histories"][RUNS.index(("DPO", 1))]).all()


def test_names_of_the_best_policy_follow_its_weights(page):
    rng = np.random.default_rng(0)
    world = SimpleNamespace(
        prompts=np.array([1, 1, 2]),
        bank=np.arange(8).reshape(2, 4, 1),
        bank_rewards=np.array([[0.0, 1, 2, 3], [1, 1, 0, 4]]),
    )
    counts = np.zeros(8)
    for _ in range(200):
        tokens, likelier = page.draw_best(1.5, world, rng)
        counts += np.bincount(tokens[:, 0], minlength=8)
    w = np.exp(stage.log_softmax(world.bank_rewards / 1.5))
    assert counts / counts.sum() == pytest.approx(
        (w * np.array([[2 / 3], [1 / 3]])).ravel(), abs=0.01
    )
    assert likelier == pytest.approx(np.log(4 * w.ravel()[tokens[:, 0]]))


def test_the_conclusion_follows_the_shares(page):
    text = page.conclude({"PPO, verified": 0.94, "DPO": 0.83, "KTO": 0.82, "SimPO": 0.4})
    assert "nearest to the frontier is PPO, verified (94 %), which is paid by the truth" in text
    assert "it is DPO (83 %), and level with it, less than 2 points behind, KTO (82 %);" in text
    assert text.endswith("the furthest is SimPO (40 %).")
    text = page.conclude({"PPO, verified": 0.5, "DPO": 0.9})
    assert "nearest to the frontier is DPO (90 %). Of" in text and "level" not in text
    assert page.conclude({}) == "No run ended where the frontier is known."


def test_what_lies_outside_the_plane_is_named(page):
    truth = np.array([[0.0, 1, 2, 3]])
    weight = np.ones(1)
    best = stage.frontier(truth, weight, np.geomspace(20, 0.2, 60))
    world = SimpleNamespace(truth=truth, weights=weight, best=best, start=1.5)
    points = {"kl": np.linspace(0, 3, len(RUNS)), "true": np.linspace(1.5, -8, len(RUNS))}
    far = [page.title(*run) for run, kl in zip(RUNS, points["kl"]) if kl >= 1.6 * best[-1, 0]]
    figure, outside = page.draw_plane(world, points, 0, False)
    assert far and outside == far
    figure, outside = page.draw_plane(world, points, len(RUNS) - 1, True)
    assert outside == [] and figure.axes[0].get_xlim()[1] > 3 and figure.axes[0].get_ylim()[0] < -8
    shares, means = page.shares_of(points, world)
    known = [stage.share_of(t, k, world) for t, k in zip(points["true"][:3], points["kl"][:3])]
    assert means["imitate best"] == pytest.approx(np.mean(known))
    assert math.isnan(shares[-1]) and "PPO, verified" not in means


def test_the_star_and_its_line_stand_where_they_should(page):
    from explorer import look

    figure, axes = look.plot(5, 4)
    axes.set_xlim(0, 4)
    axes.set_ylim(0, 2)
    axes.plot([1], [0.5], "o", color=look.RED)
    svg = look.drawn(figure)
    marker = re.search(
        r'<use xlink:href="#m\w+" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--red', svg
    )
    assert look.place(figure, 1, 0.5) == pytest.approx([float(v) for v in marker.groups()], abs=0.1)
    star = page.draw_star(figure, 1, 0.5, 2)
    x, y, *_ = map(float, re.search('points="([^"]+)"', star)[1].replace(",", " ").split())
    assert (x, y + 10) == pytest.approx(look.place(figure, 1, 0.5), abs=0.02)  # its tip is above
    ends = [float(re.search(f'{name}="([^"]+)"', star)[1]) for name in ("x1", "y1", "x2", "y2")]
    assert ends[:2] == pytest.approx(look.place(figure, 0.75, 0), abs=0.02)  # y = 0.5 + 2 (x - 1)
    assert ends[2:] == pytest.approx(look.place(figure, 1.75, 2), abs=0.02)
