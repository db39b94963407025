# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 4: descend. A gradient says which way is down; how should one walk?

Training searches for the lowest point of a landscape with thousands of dimensions, of which we
only feel the slope under our feet, and that through noise. Every method here answers one question:
given the slopes so far, which step now? Gradient descent takes the slope as it is; momentum
remembers; AdaGrad, RMSprop and Adam give each coordinate its own scale; Lion and Muon ask again
what "steepest" means. Sections 1-5 are theory, 6-11 methods, 12-15 craft. Each method is derived,
then raced: on landscapes one can draw, against rates that theory proves, and on the language model
of stage 3 under nine optimizers and eight schedules, of which the best pair is trained longer.
Takes under a minute; --fast: a smoke run, --seed N, --text FILE.

Rests on: Polyak (1964), heavy ball; Nesterov (1983); Duchi, Hazan, Singer (2011), AdaGrad;
Tieleman, Hinton (2012), RMSprop; Kingma, Ba (2015), Adam; Loshchilov, Hutter (2017, 2019), SGDR and
AdamW; Chen et al. (2023), Lion; Jordan et al. (2024), Muon; Bernstein, Newhouse (2024), "Old
optimizer, new norm". Updates and defaults are torch.optim's (benchmarks/check_optimizers.py).
"""

import argparse
import functools
import inspect
import math
import numbers
import os
import sys
from pathlib import Path

import numpy as np

# %% 1. The problem
#
# A model has parameters θ, a list of d numbers. Example i costs ℓᵢ(θ), and we want to
#     minimise  L(θ) = (1/N)·Σᵢ ℓᵢ(θ)    over θ in ℝᵈ.
# In stage 3, ℓᵢ = -ln P(next letter | context). Algebra solves ∇L = 0 for straight lines and little
# else; a grid of 10 values for each of 30,000 numbers has 10³⁰⁰⁰⁰ points. What we can afford is
# g = ∇L(θ) at one place at a time: about two more evaluations, whatever d is (stage 2). So we walk,
# θ ← θ + δ. Where g = 0 the walk ends, at a minimum or a saddle; nothing promises the lowest point.

# %% 2. Steepest descent: what the gradient promises
#
# Taylor: near θ the landscape is a plane, plus something that shrinks with the square of the step,
#     L(θ + δ) = L(θ) + g·δ + O(‖δ‖²).
# Among all steps of length ‖δ‖ = r, g·δ = ‖g‖·r·cos(angle) ≥ -‖g‖·r is smallest for
# δ = -r·g/‖g‖: straight against the gradient (Cauchy-Schwarz). Hence
#     θ ← θ - η·g,    η > 0 the learning rate.
# How large may η be? Let no direction curve more than Λ: L(θ+δ) ≤ L(θ) + g·δ + ½Λ‖δ‖². At δ = -ηg:
#     L(θ - ηg) ≤ L(θ) - η·(1 - ½ηΛ)·‖g‖².
# Every step with 0 < η < 2/Λ goes down (if g ≠ 0), and the bound is best at η = 1/Λ. Added up
# there over T steps, Σ‖gₜ‖²/(2Λ) ≤ L(θ₀) - min L: the smallest ‖gₜ‖² is at most
# 2Λ·(L(θ₀) - min L)/T, so the slope dies away on any landscape of bounded curvature. ∎
# "Of length r" was measured by Pythagoras. Other lengths have other steepest steps: see 10, 11.

# %% 3. How fast? A proven rate
#
# Near a minimum θ*, Taylor's next term makes the landscape a bowl. Turn the axes along its
# eigenvectors and put θ* at 0: L = ½·Σᵢ λᵢ·xᵢ², with gradient λᵢxᵢ and curvatures
# 0 < μ = min λ ≤ λᵢ ≤ max λ = Λ. Gradient descent treats every coordinate on its own:
#     xᵢ ← xᵢ - ηλᵢxᵢ = (1 - ηλᵢ)·xᵢ.
# So after t steps xᵢ = (1 - ηλᵢ)ᵗ·xᵢ(0): it converges if and only if all |1 - ηλᵢ| < 1, that is
# 0 < η < 2/Λ, and it converges like ρᵗ with ρ = max |1 - ηλᵢ|, attained at an end: λ = μ or Λ.
# As η grows, |1 - ημ| falls and |1 - ηΛ| rises once past zero; the larger is least where they meet:
#     1 - ημ = ηΛ - 1    ⟹    η = 2/(Λ + μ),    ρ = (Λ - μ)/(Λ + μ) = (κ - 1)/(κ + 1),    κ = Λ/μ.
# κ is the condition number: how elongated the bowl is. Since ln((κ+1)/(κ-1)) ≥ 2/κ (ln's series:
# 2·(1/κ + 1/(3κ³) + ...)), t = ½κ·ln(1/ε) steps are enough to shrink the distance to ε times
# itself: ρᵗ ≤ e^(-2t/κ) = ε. ∎ The steep direction dictates η, the flat one has to live with it.

# %% 4. Noise and batch size
#
# The gradient over a random batch of B examples is right on average; if one example's has variance
# σ², the mean of B independent ones has σ²/B. Four times the work halves the error, no more. What
# does noise n, with mean 0 and variance σ²/B, do to a walk along one axis of the bowl?
#     x ← (1 - ηλ)x - ηn,    so    Var(x) ← (1 - ηλ)²·Var(x) + η²σ²/B.
# It settles where both sides agree. 1 - (1 - ηλ)² = ηλ(2 - ηλ), hence
#     Var(x) = ησ² / (B·λ·(2 - ηλ)) ≈ (η/B)·σ²/(2λ)    for small η.
# With a constant rate SGD does not arrive: it hovers in a cloud whose size depends on η/B. A larger
# batch shrinks the cloud, and so does a smaller η, but that is slow: so large first, small later.
#
# GRADIENT ACCUMULATION. A batch too large for memory goes through in pieces p of Bₚ examples; its
# mean is the mean over pieces weighted by their share: (1/B)·Σᵢ ∇ℓᵢ = Σₚ (Bₚ/B)·(mean of ∇ℓ in p).


def noise_floor(lr, curvature, noise_variance, batch_size):
    """Var(x) where SGD hovers on ½λx²: the formula above. ValueError unless 0 < lr < 2/λ."""
    batch_size = check("batch_size", batch_size)
    lr, curvature = check("lr", lr), check("curvature", curvature, "(0, inf)")
    noise_variance = check("noise_variance", noise_variance, "[0, inf)")
    if not 0 < lr * curvature < 2:
        raise ValueError(f"lr is {lr}; expected 0 < lr·λ < 2 at curvature λ = {curvature}")
    return lr * noise_variance / (batch_size * curvature * (2 - lr * curvature))


def accumulated(loss_and_grads, X, Y, micro_batch):
    """Loss and gradients of the whole batch (X, Y), at most micro_batch examples at a time.

    loss_and_grads(X, Y) returns the mean loss of its examples and a dict of its gradients.
    """
    if len(X) != len(Y) or len(X) == 0:
        raise ValueError(f"{len(X)} contexts and {len(Y)} targets; expected as many, at least one")
    micro_batch = check("micro_batch", micro_batch)
    total, sums = 0.0, {}
    for i in range(0, len(X), micro_batch):
        piece = slice(i, i + micro_batch)  # the last piece may be smaller
        share = len(X[piece]) / len(X)
        loss, grads = loss_and_grads(X[piece], Y[piece])
        total += share * loss
        sums = {name: sums.get(name, 0) + share * g for name, g in grads.items()}
    return total, sums


# %% 5. Landscapes
#
# Four, each with one difficulty. All map points (..., 2) to heights (...) and slopes (..., 2).
# Times 1.0, integers become floats: 20² does not fit into eight bits.


def quadratic(points, kappa=100.0):
    """The elongated bowl ½(x² + κy²), minimum 0 at (0, 0): section 3 in person."""
    points, scale = np.asarray(points) * 1.0, np.array([1.0, kappa])
    return 0.5 * (points * points) @ scale, points * scale


def rosenbrock(points):
    """(1 - x)² + 100(y - x²)²: a bent, nearly flat valley; minimum 0 at (1, 1). Rosenbrock 1960."""
    points = np.asarray(points) * 1.0
    x, y = points[..., 0], points[..., 1]
    off = y - x * x  # distance from the valley floor y = x²
    slope = np.stack([-2 * (1 - x) - 400 * x * off, 200 * off], axis=-1)
    return (1 - x) * (1 - x) + 100 * off * off, slope


def saddle(points):
    """½x² - ½y² + ¼y⁴: at (0, 0) the slope is zero but y leads down, to -¼ at (0, ±1)."""
    points = np.asarray(points) * 1.0
    x, y = points[..., 0], points[..., 1]
    y2 = y * y
    return 0.5 * x * x - 0.5 * y2 + 0.25 * y2 * y2, np.stack([x, y * y2 - y], axis=-1)


def rastrigin(points):
    """20 + Σ (x² - 10·cos 2πx): a dimple at every integer point, 0 at (0, 0). Rastrigin 1974."""
    points = np.asarray(points) * 1.0
    wave = 2 * np.pi * points
    height = 20 + (points * points - 10 * np.cos(wave)).sum(axis=-1)
    return height, 2 * points + 20 * np.pi * np.sin(wave)


# %% 6. What all optimizers share
#
# Parameters are a dict of arrays, updated in place; gradients a dict with the same keys. Methods
# differ only in their update, and in what it remembers of each array: its arguments after p and g,
# zero at first. The base class checks, counts and stores; an update is its derivation's last line.

RANGES = {  # of every number that is given below
    "lr": "(0, inf)",
    **dict.fromkeys(["momentum", "alpha", "betas"], "[0, 1)"),
    **dict.fromkeys(["step", "weight_decay", "eps", "min_lr", "warmup_steps"], "[0, inf)"),
    **dict.fromkeys(["max_norm", "clip_value"], "(0, inf]"),
    **dict.fromkeys(["total_steps", "decay_steps", "cycle_steps", "step_size"], "[1, inf)"),
    **dict.fromkeys(["cycle_mult", "div_factor", "final_div_factor"], "[1, inf)"),
    **{"gamma": "(0, 1]", "pct_start": "[0, 1]"},
    **dict.fromkeys(["micro_batch", "batch_size", "context", "vocab_size"], "integer [1, inf)"),
    **dict.fromkeys(["n_embd", "n_hidden", "ns_steps"], "integer [1, inf)"),
    **dict.fromkeys(["steps", "t"], "integer [0, inf)"),
}


def check(name, value, wanted=None):
    """The value as Python's own number, as NumPy's of eight bits would wrap; ValueError unless it
    is a real number, or an integer, in its interval (see RANGES)."""
    _, integer, interval = (wanted or RANGES[name]).rpartition("integer ")
    low, high = map(float, interval[1:-1].split(","))
    ends = [low] * (interval[0] == "[") + [high] * (interval[-1] == "]")
    fits = isinstance(value, numbers.Integral if integer else numbers.Real)
    if not fits or isinstance(value, bool) or not (low < value < high or value in ends):
        kind = "an integer" if integer else "a number"
        raise ValueError(f"{name} is {value!r}; expected {kind} in {interval}")
    return value.item() if isinstance(value, np.generic) else value


def check_like(what, given, model):
    """ValueError unless the dict `given` has the keys of model, and each value the same shape."""
    if not isinstance(given, dict) or given.keys() != model.keys():
        names = list(given) if isinstance(given, dict) else type(given).__name__
        raise ValueError(f"{what} are {names}; expected {list(model)}")
    for name, value in given.items():
        if np.shape(value) != (shape := np.shape(model[name])):
            raise ValueError(f"{what}[{name!r}] has shape {np.shape(value)}; expected {shape}")


class Optimizer:
    """What all methods share. params: a dict of floating-point arrays, changed in place by step().

    ValueError: no params, one that is no such array, lr <= 0, or a setting out of its range.
    """

    decoupled = False  # weight decay: False through the gradient (section 7), True past it (9)

    def __init__(self, params, lr, **settings):
        if not isinstance(params, dict) or not params:
            raise ValueError(f"params are {params!r}; expected a dict of at least one array")
        for name, p in params.items():
            if not isinstance(p, np.ndarray) or not np.issubdtype(p.dtype, np.floating):
                kind = getattr(p, "dtype", type(p).__name__)
                raise ValueError(f"params[{name!r}] is {kind}; expected a floating-point array")
        check("lr", lr)
        self.params, self.t, self.settings = params, 0, ["lr", *settings]
        for name, value in {"lr": lr, **settings}.items():
            setattr(self, name, value)
        _, _, *slots = inspect.signature(self.update).parameters  # what update takes after p and g
        self.state = {s: {k: np.zeros_like(p) for k, p in params.items()} for s in slots}

    def __setattr__(self, name, value):
        """Every setting is checked on assignment; lr may follow a schedule, down to 0."""
        if name == "betas" and np.shape(value) != (2,):
            raise ValueError(f"betas are {value!r}; expected two numbers in [0, 1)")
        if name == "betas":
            value = tuple(check(name, beta) for beta in value)
        elif name == "lr":
            value = check(name, value, "[0, inf)")
        elif name in RANGES:
            value = check(name, value)
        super().__setattr__(name, value)

    def step(self, grads):
        """One update of every parameter, in place. ValueError: keys or shapes do not match."""
        check_like("grads", grads, self.params)
        self.t += 1
        for name, p in self.params.items():
            g = np.asarray(grads[name], dtype=p.dtype)
            if self.decoupled:
                p *= 1 - self.lr * self.weight_decay
            elif self.weight_decay:
                g = g + self.weight_decay * p
            self.update(p, g, *(kept[name] for kept in self.state.values()))

    def state_dict(self):
        """All that a resumed run needs besides the parameters, as copies."""
        state = {s: {k: a.copy() for k, a in kept.items()} for s, kept in self.state.items()}
        settings = {name: getattr(self, name) for name in self.settings}
        return {"optimizer": type(self).__name__, "settings": settings, "t": self.t, "state": state}

    def load_state_dict(self, saved):
        """Go on where state_dict() was taken, exactly. A misfit is a ValueError, and no change."""
        own = self.state_dict()
        if not isinstance(saved, dict) or saved.keys() != own.keys():
            raise ValueError(f"the state has other keys; expected {list(own)}")
        if saved["optimizer"] != own["optimizer"]:
            raise ValueError(f"it is of {saved['optimizer']!r}; expected {own['optimizer']!r}")
        check_like("settings", saved["settings"], own["settings"])
        check_like("state", saved["state"], own["state"])
        for slot, kept in own["state"].items():
            check_like(slot, saved["state"][slot], kept)
            for name, array in kept.items():
                array[...] = saved["state"][slot][name]  # own is a copy, in this dtype
        fresh = type(self)(self.params, **{**saved["settings"], "lr": 1.0})  # checks the settings
        fresh.lr, fresh.t, fresh.state = saved["settings"]["lr"], saved["t"], own["state"]
        vars(self).update(vars(fresh))


# %% 7. Momentum, and Nesterov's look ahead
#
# In a long valley the slope across flips its sign with every step and the slope along it stays.
# A sum of past gradients cancels the first and piles up the second (Polyak's heavy ball):
#     b ← βb + g,    θ ← θ - ηb.
# Under a constant g, b grows to g·(1 + β + β² + ...) = g/(1 - β): ten times the step at β = 0.9.
# Why it is faster: ηbₜ is minus the last step, so θₜ₊₁ = θₜ - ηgₜ + β(θₜ - θₜ₋₁). In the bowl,
# where g = λx, xₜ = zᵗ solves that if
#     z² - (1 + β - ηλ)·z + β = 0.
# If the two roots are complex they are conjugates with product β, so |z| = √β, whatever λ is: all
# directions shrink alike. They are complex (or one double root) iff (1 + β - ηλ)² ≤ 4β, that is
# (1 - √β)² ≤ ηλ ≤ (1 + √β)². Let the two ends be ημ and ηΛ; divide: √κ = (1 + √β)/(1 - √β), so
#     √β = ρ = (√κ - 1)/(√κ + 1),    η = (1 + √β)²/Λ = (2/(√Λ + √μ))².
# √κ where gradient descent had κ: a valley of 10,000 costs like one of 100. ∎
#
# NESTEROV takes the slope where momentum is about to carry us, φ - ηβb, not where we are, φ:
#     b ← βb + g(φ - ηβb),    φ ← φ - ηb.
# Let θ = φ - ηβb be the point where we take gradients. With the new b′, θ′ = φ - ηb′ - ηβb′, and
# φ = θ + ηβb = θ + η(b′ - g), as βb = b′ - g. Together: θ′ = θ - η·(g + βb′).
#
# In the bowl, φₜ₊₁ = q·(φₜ + β(φₜ - φₜ₋₁)) with q = 1 - ηλ, so z² - (1 + β)q·z + βq = 0. Take
# η = 1/Λ and β = (s - 1)/(s + 1), s = √κ. At λ = μ, q = (s² - 1)/s², and (1 + β)²q and 4β are both
# 4(s - 1)/(s + 1): a double root. For larger λ, q is smaller and the discriminant
# q·((1 + β)²q - 4β) is not above 0. So |z|² = βq, largest at μ: (s - 1)²/s², and ρ = 1 - 1/√κ. ∎
# Slower here than the ball, but proven on all convex landscapes, where the ball may circle for ever
# (Lessard, Recht, Packard 2016). WEIGHT DECAY (L2) adds ½w‖θ‖² to the loss, so wθ to the gradient.


def proven_rates(mu, Lambda):
    """{method: (learning rate, momentum, ρ)} on curvatures in [mu, Lambda], as derived above."""
    check("mu", mu, "(0, inf)")
    check("Lambda", Lambda, "(0, inf)")
    if not 0 < mu <= Lambda < math.inf:
        raise ValueError(f"curvatures are {mu} and {Lambda}; expected 0 < mu <= Lambda")
    low, high = math.sqrt(mu), math.sqrt(Lambda)
    rho, s = (high - low) / (high + low), high / low
    return {
        "descent, 1/Λ": (1 / Lambda, 0, 1 - mu / Lambda),
        "descent, best": (2 / (Lambda + mu), 0, (Lambda - mu) / (Lambda + mu)),
        "descent, 2.01/Λ": (2.01 / Lambda, 0, max(1.01, abs(1 - 2.01 * mu / Lambda))),
        "Nesterov": (1 / Lambda, (s - 1) / (s + 1), 1 - 1 / s),
        "heavy ball": ((2 / (low + high)) ** 2, rho * rho, rho),
    }


class SGD(Optimizer):
    """Gradient descent; with momentum > 0 the heavy ball, or Nesterov's method."""

    def __init__(self, params, lr, momentum=0, nesterov=False, weight_decay=0):
        options = dict(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        super().__init__(params, lr, **options)
        if nesterov and momentum == 0:
            raise ValueError("momentum is 0; nesterov=True expected a number above 0")

    def update(self, p, g, b):
        if self.momentum:
            b *= self.momentum
            b += g
            g = g + self.momentum * b if self.nesterov else b
        p -= self.lr * g


# %% 8. A scale for every coordinate: AdaGrad and RMSprop
#
# The best η depends on curvature, and coordinates differ. Stretch one, x = c·x̃: its gradient in x̃
# is c·g, so the step -η·c·g in x̃ moves x by -ηc²·g. Units matter, and they should not. AdaGrad
# divides by the root of the sum of all squares so far, and c cancels in g/√s:
#     s ← s + g²,    θ ← θ - η·g/(√s + ε)        (entry by entry; ε only prevents 0/0).
# The first step is η·sign(g), whatever the units; under gradients of constant size it is η/√t at
# step t: a schedule for free, right for convex problems (Duchi et al. bound the regret by O(√T)).
# In networks s grows on and learning dies. RMSprop forgets: in its moving average a square that is
# k steps old counts (1 - α)αᵏ,
#     v ← αv + (1 - α)g²,    θ ← θ - η·g/(√v + ε).


class AdaGrad(Optimizer):
    """Every coordinate's rate divided by the root of the sum of its squared gradients."""

    def __init__(self, params, lr=1e-2, eps=1e-10, weight_decay=0):
        super().__init__(params, lr, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, s):
        s += g * g
        p -= self.lr * g / (np.sqrt(s) + self.eps)


class RMSprop(Optimizer):
    """Every coordinate's rate divided by a moving root mean square of its gradients."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0):
        super().__init__(params, lr, alpha=alpha, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, v):
        v *= self.alpha
        v += (1 - self.alpha) * (g * g)
        p -= self.lr * g / (np.sqrt(v) + self.eps)


# %% 9. Adam, and AdamW
#
# Momentum and RMSprop together: a moving average m of g over one of g²,
#     m ← β₁m + (1 - β₁)g,    v ← β₂v + (1 - β₂)g².
# Both start at 0, so both are too small at first. By how much? Unroll, and let E[gᵢ] be the same
# in all steps:
#     mₜ = (1 - β₁)·Σ_{i=1..t} β₁ᵗ⁻ⁱ·gᵢ,    E[mₜ] = E[g]·(1 - β₁)·Σ_{k=0..t-1} β₁ᵏ = E[g]·(1 - β₁ᵗ),
# since (1 - β)(1 + β + ... + βᵗ⁻¹) telescopes to 1 - βᵗ. The same for v with E[g²]. So divide:
#     m̂ = m/(1 - β₁ᵗ),    v̂ = v/(1 - β₂ᵗ),    θ ← θ - η·m̂/(√v̂ + ε).
# At t = 1, m̂ = g and v̂ = g²: a step of η·sign(g); uncorrected, (1 - β₁)/√(1 - β₂) = 3.2 times that
# at the usual betas. So η has a meaning: about how far a coordinate moves. And a loss multiplied by
# c > 0 multiplies m by c and v by c²: at ε = 0 exactly the same walk.
#
# AdamW. With L2 the decay wθ passes through m̂/√v̂ like the rest of the gradient: a weight with
# large gradients is decayed less, one with small ones more, and w loses its meaning. Decouple it:
#     θ ← (1 - ηw)·θ,    then Adam's step, of the loss alone.
# For plain SGD the two are the same: θ - η(g + wθ) = (1 - ηw)θ - ηg. For Adam they are not.


class Adam(Optimizer):
    """Momentum over root mean square, both corrected for starting at zero; weight_decay is L2."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0):
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, m, v):
        beta1, beta2 = self.betas
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * (g * g)
        root = np.sqrt(v) / math.sqrt(1 - beta2**self.t)  # √v̂
        p -= self.lr / (1 - beta1**self.t) * m / (root + self.eps)


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    decoupled = True

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr, betas, eps, weight_decay)


# %% 10. Lion: steepest when length is the largest entry
#
# Section 2 asked for the best step of length r. Measure length by the largest entry instead:
#     minimise g·δ subject to |δᵢ| ≤ η for all i:    δᵢ = -η·sign(gᵢ),    g·δ = -η·Σ|gᵢ|,
# each term being as small as it can be. ∎ A step of signs: Adam's first, and Adam's at β₁ = β₂ = 0.
# Lion, which Chen et al. found by a program search, takes the sign of a momentum, and mixes more
# of the present gradient into the step (β₁) than into the memory (β₂):
#     c = β₁m + (1 - β₁)g,    θ ← (1 - ηw)θ - η·sign(c),    m ← β₂m + (1 - β₂)g.
# One slot where Adam has two. Every entry moves by a full η, so rates are 3-10 times below Adam's.


class Lion(Optimizer):
    """The sign of a momentum (Chen et al. 2023); decoupled weight decay."""

    decoupled = True

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0):
        super().__init__(params, lr, betas=betas, weight_decay=weight_decay)

    def update(self, p, g, m):
        beta1, beta2 = self.betas
        p -= self.lr * np.sign(beta1 * m + (1 - beta1) * g)
        m *= beta2
        m += (1 - beta2) * g


# %% 11. Muon: steepest when length is what a matrix does to vectors
#
# A weight matrix is no list: it multiplies vectors. Its natural length is the most it stretches
# one, ‖Δ‖ = max ‖Δv‖/‖v‖, its largest singular value. With G = U·S·Vᵀ = Σ σᵢuᵢvᵢᵀ (SVD, σᵢ > 0):
#     ⟨G, Δ⟩ = Σ GⱼₖΔⱼₖ = Σᵢ σᵢ·uᵢᵀΔvᵢ ≥ -Σᵢ σᵢ·‖Δ‖,    equality for Δ = -‖Δ‖·U·Vᵀ,
# because |uᵀΔv| ≤ ‖Δv‖ ≤ ‖Δ‖ for unit u, v, and uᵢᵀ(UVᵀ)vᵢ = 1. ∎ So: keep the directions of G,
# set all singular values to 1. What a gradient says loudly and what it whispers get the same step.
#
# An SVD is slow. But an odd polynomial acts on singular values alone: X·Xᵀ = U·S²·Uᵀ, so
#     aX + b(XXᵀ)X + c(XXᵀ)²X = U·(aS + bS³ + cS⁵)·Vᵀ:    σ ← aσ + bσ³ + cσ⁵, matrix products only.
# Dividing by the root of the sum of squares puts all σ into [0, 1] (‖G‖² = Σσᵢ²). The classical
# (15, -10, 3)/8 converges to 1 but lifts a small σ by 15/8 only; Muon's coefficients lift it by
# 3.44, and in five rounds all but the tiniest are near 1 (about 0.7 to 1.2), which is enough. The
# rest: momentum as a moving average, Nesterov's step, decay, a factor √max(1, rows/columns):
#     B ← μB + (1 - μ)G,  O = orthogonalize((1 - μ)G + μB),  W ← (1 - ηw)W - η·√max(1, r/c)·O.

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c, from Jordan et al. 2024


def orthogonalize(G, steps=5, eps=1e-7):
    """About U·Vᵀ of G = U·S·Vᵀ (rows, columns), by Newton-Schulz: singular values near 1.

    Unlike torch, which computes in bfloat16, this stays in the dtype of G. ValueError: no matrix.
    """
    if np.ndim(G) != 2:
        raise ValueError(f"G has shape {np.shape(G)}; expected a matrix")
    check("steps", steps)
    a, b, c = NEWTON_SCHULZ
    G = np.asarray(G) * 1.0
    X = G.T if G.shape[0] > G.shape[1] else G  # X·Xᵀ is the smaller of the two products
    X = X / max(np.linalg.norm(X), eps)
    for _ in range(steps):
        A = X @ X.T
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.T if G.shape[0] > G.shape[1] else X


class Muon(Optimizer):
    """Orthogonalized momentum (Jordan et al. 2024), for weight matrices. ValueError for others."""

    decoupled = True

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, ns_steps=5):
        settings = dict(momentum=momentum, nesterov=nesterov, ns_steps=ns_steps)
        super().__init__(params, lr, weight_decay=weight_decay, **settings)
        for name, p in params.items():
            if p.ndim != 2:
                wrong = f"params[{name!r}] has shape {p.shape}; expected a matrix"
                raise ValueError(f"{wrong}; use AdamW for biases, gains and other shapes")

    def update(self, p, g, B):
        mu = self.momentum
        B *= mu
        B += (1 - mu) * g
        O = orthogonalize((1 - mu) * g + mu * B if self.nesterov else B, self.ns_steps)
        p -= self.lr * math.sqrt(max(1, p.shape[0] / p.shape[1])) * O


# %% 12. Clipping
#
# One bad batch can have a gradient a thousand times the usual and undo an hour. Clipping by norm
# keeps the direction and caps the length n, taken over all gradients together, not each array:
#     g ← g·min(1, max_norm/(n + 10⁻⁶)).
# That is the nearest point of the ball ‖g‖ ≤ max_norm (but for torch's 10⁻⁶). Clipping by value
# caps each entry: simpler, and it turns the direction.


def check_in_place(grads):
    """ValueError unless the gradients can be changed in place: arrays of floats."""
    for name, g in grads.items():
        if not isinstance(g, np.ndarray) or g.dtype.kind != "f":
            kind = getattr(g, "dtype", type(g).__name__)
            raise ValueError(f"grads[{name!r}] is {kind}; expected a floating-point array")


def clip_grad_norm(grads, max_norm):
    """Scale the gradients in place to a joint norm of at most max_norm; returns the norm before."""
    check("max_norm", max_norm)
    check_in_place(grads)
    norm = math.hypot(*(np.linalg.norm(g.astype(np.float64).ravel()) for g in grads.values()))
    scale = max_norm / (norm + 1e-6)
    if scale < 1:
        for g in grads.values():
            g *= scale
    return norm


def clip_grad_value(grads, clip_value):
    """Cut every entry of the gradients to [-clip_value, clip_value], in place. ValueError: <= 0."""
    check("clip_value", clip_value)
    check_in_place(grads)
    for g in grads.values():
        np.clip(g, -clip_value, clip_value, out=g)


# %% 13. Schedules
#
# A schedule is a plain function of the step, 0 for the first; assign its value to optimizer.lr.
# Late in training the noise floor of section 4 is proportional to the rate, so the rate should
# fall. Early, Adam's v rests on few gradients and the landscape bends most, so it should rise from
# small: warmup. Half a cosine, ½(1 + cos πu) for u from 0 to 1, is a way down that is flat at both
# ends. WSD (warmup, stable, decay) stays up and falls only at the end, so a run can be stopped, and
# a model taken, at any time: decay whenever you want one. One cycle is Smith's (2018).


def check_schedule(given):
    """The arguments as Python's own numbers; ValueError unless all are in their RANGES, min_lr is
    at most lr, and the parts fit the whole."""
    given = {name: check(name, value) for name, value in given.items()}
    if given.get("min_lr", 0) > given["lr"]:
        raise ValueError(f"min_lr is {given['min_lr']}; expected at most lr = {given['lr']}")
    parts = given.get("warmup_steps", 0) + given.get("decay_steps", 0)
    if parts > given.get("total_steps", math.inf):
        raise ValueError(f"total_steps is {given['total_steps']}; expected at least {parts}")
    return given.values()


def half_cosine(high, low, u):
    """From high (u = 0) to low (u = 1, and from there on)."""
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * min(1.0, u)))


def constant(step, lr):
    """The same rate at every step."""
    step, lr = check_schedule(locals())  # all arguments, in their order
    return lr


def step_decay(step, lr, step_size, gamma=0.1):
    """lr·γⁿ after n whole periods of step_size steps: a staircase."""
    step, lr, step_size, gamma = check_schedule(locals())
    return lr * gamma ** (step // step_size)


def exponential_decay(step, lr, gamma):
    """lr·γᵗ: the same percentage off at every step."""
    step, lr, gamma = check_schedule(locals())
    return lr * gamma**step


def linear_decay(step, lr, total_steps, min_lr=0.0):
    """A straight line from lr at step 0 to min_lr at total_steps, and min_lr from there on."""
    step, lr, total_steps, min_lr = check_schedule(locals())
    return min_lr + (lr - min_lr) * max(0.0, 1 - step / total_steps)


def warmup_cosine(step, lr, warmup_steps, total_steps, min_lr=0.0):
    """A line from lr/(warmup_steps + 1) to lr at warmup_steps, then half a cosine to min_lr."""
    step, lr, warmup_steps, total_steps, min_lr = check_schedule(locals())
    if step < warmup_steps:
        return lr * (step + 1) / (warmup_steps + 1)
    return half_cosine(lr, min_lr, (step - warmup_steps) / max(1e-9, total_steps - warmup_steps))


def cosine_restarts(step, lr, cycle_steps, cycle_mult=1, min_lr=0.0):
    """Half cosines from lr to min_lr, each cycle_mult times as long as the one before (SGDR)."""
    step, lr, cycle_steps, cycle_mult, min_lr = check_schedule(locals())
    while cycle_mult > 1 and step >= cycle_steps:
        step, cycle_steps = step - cycle_steps, cycle_steps * cycle_mult
    return half_cosine(lr, min_lr, step % cycle_steps / cycle_steps)


def one_cycle(step, lr, total_steps, pct_start=0.3, div_factor=25.0, final_div_factor=1e4):
    """Half cosines from lr/div_factor to lr (at pct_start) to lr/div_factor/final_div_factor."""
    step, lr, total_steps, pct_start, div_factor, final_div_factor = check_schedule(locals())
    first, last, peak = lr / div_factor, total_steps - 1, max(0.0, pct_start * total_steps - 1)
    if step < peak:
        return half_cosine(first, lr, step / peak)
    return half_cosine(lr, first / final_div_factor, (step - peak) / max(1e-9, last - peak))


def wsd(step, lr, warmup_steps, total_steps, decay_steps, min_lr=0.0):
    """Warmup, stable, decay: a line up, lr, and a line to min_lr in the last decay_steps."""
    step, lr, warmup_steps, total_steps, decay_steps, min_lr = check_schedule(locals())
    if step < warmup_steps:
        return lr * (step + 1) / (warmup_steps + 1)
    return min_lr + (lr - min_lr) * min(1.0, max(0.0, (total_steps - step) / decay_steps))


# %% 14. The language model to race on
#
# Stage 3's network: embeddings x of the last letters, side by side, into h = tanh(d + x·H), into
# scores z = b + h·U, into softmax. Its backward (derived there): dz = (p - y)/N, then through each
# product a·w as da = dy·wᵀ, dw = aᵀ·dy, through tanh as 1 - h², and an embedding row gets the sum
# over its uses.


def nlm_init(vocab_size, context, n_embd, n_hidden, rng, dtype=np.float32):
    """Parameters C (V, D), H (context·D, K), d (K,), U (K, V), b (V,), sized as in stage 3."""
    vocab_size, context = check("vocab_size", vocab_size), check("context", context)
    n_embd, n_hidden = check("n_embd", n_embd), check("n_hidden", n_hidden)
    m = context * n_embd
    params = {
        "C": rng.normal(0, 1, (vocab_size, n_embd)),
        "H": rng.normal(0, 1 / math.sqrt(m), (m, n_hidden)),
        "d": np.zeros(n_hidden),
        "U": rng.normal(0, 0.1 / math.sqrt(n_hidden), (n_hidden, vocab_size)),
        "b": np.zeros(vocab_size),
    }
    return {name: value.astype(dtype) for name, value in params.items()}


def check_ids(name, ids, size=math.inf):
    """ids as int64. ValueError unless they are integers from 0 to size - 1: NumPy would take -1 for
    the last row, and True for a mask."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise ValueError(f"{name} are {ids.dtype}; expected integers")
    if ids.size and not 0 <= ids.min() <= ids.max() < size:
        raise ValueError(f"{name} reach from {ids.min()} to {ids.max()}; expected 0..{size - 1}")
    return ids.astype(np.int64)


def nlm_forward(X, Y, params):
    """Mean nats of the targets Y (N,) after the contexts X (N, context) -> (loss, cache)."""
    P = params
    X, Y = check_ids("X", X, len(P["C"])), check_ids("Y", Y, len(P["C"]))
    x = P["C"][X].reshape(len(X), -1)  # (N, context·D)
    h = np.tanh(x @ P["H"] + P["d"])  # (N, K)
    z = h @ P["U"] + P["b"]  # (N, V)
    z -= z.max(axis=1, keepdims=True)  # softmax does not change, and nothing overflows
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))  # (N, V)
    loss = -float(log_p[np.arange(len(Y)), Y].mean(dtype=np.float64))
    return loss, (X, Y, params, x, h, log_p)


def nlm_backward(dloss, cache):
    """dloss -> the gradients of all parameters, a dict with the keys of params."""
    X, Y, P, x, h, log_p = cache
    dz = np.exp(log_p)
    dz[np.arange(len(Y)), Y] -= 1
    dz *= dloss / len(Y)  # (p - y)/N
    da = dz @ P["U"].T
    da *= 1 - h * h
    dx = (da @ P["H"].T).reshape(-1, P["C"].shape[1])  # (N·context, D)
    Et = (np.arange(len(P["C"]))[:, None] == X.reshape(-1)).astype(dx.dtype)  # (V, N·context)
    return {"C": Et @ dx, "H": x.T @ da, "d": da.sum(0), "U": h.T @ dz, "b": dz.sum(0)}


def examples(ids, context):
    """All (context, next id) pairs: X (N, context), Y (N,) with N = len(ids) - context."""
    ids, context = check_ids("ids", ids), check("context", context)
    if len(ids) <= context:
        raise ValueError(f"{len(ids)} ids; expected more than the {context} of a context")
    return np.lib.stride_tricks.sliding_window_view(ids[:-1], context), ids[context:]


def nlm_score(ids, params, context):
    """Mean nats per id, over every id that has a full context before it."""
    X, Y = examples(ids, context)
    parts = [slice(i, i + 4096) for i in range(0, len(X), 4096)]  # memory: not all at once
    return sum(nlm_forward(X[s], Y[s], params)[0] * len(Y[s]) for s in parts) / len(Y)


# %% 15. Training it
#
# The loop of every training program: rate, batch, gradient, clip, step. Several optimizers may
# share the work, each on its own part of the parameters and at its own rate (parameter groups):
# Muon takes the matrices H and U, AdamW what is left.


def train(params, X, Y, optimizers, schedule, steps, batch_size=128, seed=0, name=None):
    """Train in place, each optimizer at schedule(step, its lr). Returns the losses (steps,).

    ValueError, naming the step, if the loss or a gradient is not finite any more."""
    steps, batch_size = check("steps", steps), check("batch_size", batch_size)
    rng, order, losses = np.random.default_rng(seed), [], np.empty(steps)
    rates = [optimizer.lr for optimizer in optimizers]
    for step in range(steps):
        if len(order) < min(batch_size, len(X)):
            order = rng.permutation(len(X))  # a new epoch
        batch, order = order[:batch_size], order[batch_size:]
        losses[step], cache = nlm_forward(X[batch], Y[batch], params)
        grads = nlm_backward(1.0, cache)
        norm = clip_grad_norm(grads, 1.0)
        if not (math.isfinite(losses[step]) and math.isfinite(norm)):
            found = f"loss {losses[step]:.4g}, gradient norm {norm:.4g}"
            raise ValueError(f"step {step + 1}: {found}; expected finite numbers: lower the rate")
        for optimizer, rate in zip(optimizers, rates):
            optimizer.lr = schedule(step, rate)
            optimizer.step({key: grads[key] for key in optimizer.params})
        if name and (step % 200 == 0 or step == steps - 1):
            recent = losses[max(0, step - 499) : step + 1].mean() / math.log(2)
            text = f"  {name}: step {step + 1:,} of {steps:,}, training loss {recent:.3f} bits"
            progress(text, step == steps - 1)
    return losses


def progress(message, last=False):
    """One line overwritten in place on a terminal; when piped, only the last message is printed."""
    if sys.stdout.isatty():
        print(f"\r{message:<78}", end="\n" if last else "", flush=True)
    elif last:
        print(message, flush=True)


def muon_and_adamw(params, lr):
    """Muon for the hidden matrices, AdamW at a fifth of its rate for the rest."""
    hidden = {key: params[key] for key in ("H", "U")}
    rest = {key: p for key, p in params.items() if key not in hidden}
    return [Muon(hidden, lr, weight_decay=0.01), AdamW(rest, 0.2 * lr)]


METHODS = {  # name: (optimizers for params and a rate, its rate)
    "SGD": (lambda P, lr: [SGD(P, lr)], 2.0),
    "heavy ball, β = 0.9": (lambda P, lr: [SGD(P, lr, 0.9)], 0.3),
    "Nesterov, β = 0.9": (lambda P, lr: [SGD(P, lr, 0.9, True)], 0.4),
    "AdaGrad": (lambda P, lr: [AdaGrad(P, lr)], 0.15),
    "RMSprop": (lambda P, lr: [RMSprop(P, lr)], 0.012),
    "Adam": (lambda P, lr: [Adam(P, lr)], 0.012),
    "AdamW": (lambda P, lr: [AdamW(P, lr)], 0.012),
    "Lion": (lambda P, lr: [Lion(P, lr)], 0.004),
    "Muon + AdamW": (muon_and_adamw, 0.04),
}  # rates swept by factors of two at 600 steps, with a script that is not in this repository
SCHEDULES = {  # name: (rate as a function of step, rate and number of steps T, factor on the rate)
    "constant": (lambda t, lr, T: constant(t, lr), 0.5),
    "step_decay": (lambda t, lr, T: step_decay(t, lr, T / 3, 0.3), 1.0),
    "exponential_decay": (lambda t, lr, T: exponential_decay(t, lr, 0.02 ** (1 / T)), 2.0),
    "linear_decay": (lambda t, lr, T: linear_decay(t, lr, T), 1.0),
    "warmup_cosine": (lambda t, lr, T: warmup_cosine(t, lr, T / 20, T), 1.0),
    "cosine_restarts": (lambda t, lr, T: cosine_restarts(t, lr, T / 3, 2), 1.0),
    "one_cycle": (lambda t, lr, T: one_cycle(t, lr, T), 1.0),
    "wsd": (lambda t, lr, T: wsd(t, lr, T / 20, T, T / 2), 1.0),
}
FINAL = (16, 512), 4000, 256, 0.5  # the long run: (D, K), steps, batch, factor on the rate
RACES = {  # landscape: (function, start, the height to get below)
    "quadratic": (quadratic, (-2.0, 0.7), 1e-4),
    "Rosenbrock": (rosenbrock, (-1.2, 1.0), 0.01),
    "saddle": (saddle, (0.3, 1e-3), -0.249),
    "Rastrigin": (rastrigin, (2.2, -1.7), 0.5),
}

# %% Demonstration

DATA = Path(__file__).resolve().parent / "data"


def report_rates(kappas, seed):
    """Sections 3, 4 and 7: proven numbers beside measured ones."""
    print("\nProven and measured: distance to the minimum, per step, on ½(x² + κy²)")
    print("  κ       method                η        β    proven ρ   measured   steps to 10⁻⁶")
    for kappa in kappas:
        half = int(40 * math.sqrt(kappa))
        for name, (lr, beta, rho) in proven_rates(1.0, kappa).items():
            params, far = {"x": np.ones(2)}, []
            walker = SGD(params, lr, beta, nesterov=name == "Nesterov")
            for _ in range(2 * half):
                walker.step({"x": quadratic(params["x"], kappa)[1]})
                far.append(np.linalg.norm(params["x"]))
            measured = (far[-1] / far[-half]) ** (1 / (half - 1))
            steps = f"{math.log(1e-6) / math.log(rho):,.0f}" if rho < 1 else "diverges"
            row = f"  {kappa:<7,.0f} {name:15} {lr:9.3g} {beta:8.4f} {rho:11.5f} {measured:10.5f}"
            print(f"{row} {steps:>15}")
    print("  √κ in place of κ: the last column. (A double root shrinks like t·ρᵗ: a bit slower.)")
    print("\nNoise: variance of x on ½x², gradient noise of variance 1/B, 4,000 walkers")
    print("      η     B    proven   measured")
    rng = np.random.default_rng(seed)
    for lr, batch in ((0.4, 1), (0.1, 1), (0.1, 4), (0.4, 4)):
        params = {"x": np.zeros(4000)}
        walker = SGD(params, lr)
        for _ in range(100):
            walker.step({"x": params["x"] + rng.normal(0, batch**-0.5, 4000)})
        print(f"  {lr:5} {batch:5} {noise_floor(lr, 1, 1, batch):9.4f} {params['x'].var():10.4f}")
    print("  Four times the batch at four times the rate hovers about as high: η/B counts.")


def walk(landscape, start, target, make, lr, limit):
    """The points of a walk to below target, in at most `limit` steps; [] if it does not arrive."""
    params = {"x": np.array([start])}  # (1, 2): a matrix of one row, so that Muon takes it
    (optimizer,), points = make(params, lr), []
    for _ in range(limit + 1):
        points.append(params["x"][0].copy())
        height, slope = landscape(params["x"])
        if height[0] < target:
            return points
        if not abs(height[0]) < 1e6:
            break
        optimizer.step({"x": slope})
    return []


def report_race(limit):
    """Every method on every landscape at its best rate; returns {(name, surface): points}."""
    print(f"\nThe race: steps to the goal, (at the best of 13 rates), within {limit:,} steps")
    print(f"  {'':20}" + "".join(f"{name:>16}" for name in RACES))
    racers = {name: make for name, (make, _) in METHODS.items() if name[-5:] != "AdamW"}
    racers["Muon"] = lambda P, lr: [Muon(P, lr, weight_decay=0)]  # AdamW walks nearly like Adam
    walks = {}
    for name, make in racers.items():
        line = f"  {name:20}"
        for surface, race in RACES.items():
            best, result = [], "-"
            for lr in 10 ** (np.arange(2, -11, -1) / 3):
                within = len(best) - 2 if best else limit  # the next must need fewer steps
                if points := walk(*race, make, float(lr), within):
                    best, result = points, f"{len(points) - 1:,} ({lr:.2g})"
            line, walks[name, surface] = f"{line}{result:>16}", best
        print(line)
    print("  A dash: not reached. The bowl lies along the axes: one scale for each makes it round.")
    print("  Rastrigin is luck: a rate that jumps well. To Muon a point is one row: it goes g/‖g‖.")
    return walks


def draw(landscape, points, x_range, y_range, width=38, height=15):
    """A map, bands of equal log-height shaded in turn; o the path, S its start, E its end."""
    x, y = np.linspace(*x_range, width), np.linspace(*y_range, height)
    heights = landscape(np.stack(np.meshgrid(x, y), axis=-1))[0]  # (height, width)
    bands = np.floor(2 * np.log(heights - heights.min() + 0.05)).astype(int) % 2
    grid = np.where(bands, ".", " ")
    if len(points) == 0 or not np.isfinite(points).all() or np.ptp(x) * np.ptp(y) == 0:
        raise ValueError("expected finite points, at least one, and a map of some width and height")
    for (px, py), mark in zip([*points, points[0], points[-1]], "o" * len(points) + "SE"):
        column = round((px - x[0]) / (x[-1] - x[0]) * (width - 1))
        row = round((py - y[0]) / (y[-1] - y[0]) * (height - 1))
        if 0 <= column < width and 0 <= row < height:
            grid[row, column] = mark
    return ["".join(line) for line in grid[::-1]]


def report_paths(walks):
    """Two pairs of walks, drawn side by side, as far as they arrived."""
    pairs = [
        ("Rosenbrock", "heavy ball, β = 0.9", "Adam", (-1.9, 1.9), (-0.8, 2.0)),
        ("quadratic", "SGD", "heavy ball, β = 0.9", (-2.2, 0.9), (-1.0, 1.0)),
    ]
    for surface, *names, x_range, y_range in pairs:
        shown = {name: walks[name, surface] for name in names if walks[name, surface]}
        titles = [f"{name}, {len(points) - 1:,} steps" for name, points in shown.items()]
        print(f"\n{surface}, from S to E: " + (" | ".join(titles) or "nobody arrived"))
        maps = [draw(RACES[surface][0], points, x_range, y_range) for points in shown.values()]
        for lines in zip(*maps):
            print("  " + "  |  ".join(lines).rstrip())


def report_language(text, fast, seed):
    """The same network under every optimizer and schedule; the best pair trained longer."""
    symbols, context, bits = sorted(set(text)), 8, math.log(2)
    ids = np.array([symbols.index(c) for c in text])
    cut = int(0.9 * len(ids))
    tune = int(0.9 * cut)  # the last tenth of the training text decides; held-out text only reports
    parts = ids[tune - context : cut], ids[cut - context :]

    def fit(end, make, lr, schedule, sizes, steps, batch, name=None):
        """Bits on the batches of the last fifth, the development text and the held-out text."""
        params = nlm_init(len(symbols), context, *sizes, np.random.default_rng(seed))
        rate = functools.partial(SCHEDULES[schedule][0], T=steps)
        data = examples(ids[:end], context)
        losses = train(params, *data, make(params, lr), rate, steps, batch, seed, name)
        nats = [losses[-steps // 5 :].mean(), *(nlm_score(part, params, context) for part in parts)]
        return np.array(nats) / bits

    def compete(title, rows):
        size = ((16, 64), 25, 128) if fast else ((16, 128), 300, 128)
        print(f"\n{title}: the same {size[1]} batches of {size[2]}, bits/char")
        print(f"{'':23}rate   training   development   held-out")
        scores = {}
        for name, (make, lr, schedule) in rows.items():
            progress(f"  {name} ...")
            a, scores[name], b = fit(tune, make, lr, schedule, *size)
            progress(f"  {name:19}{lr:6.2g} {a:10.3f} {scores[name]:13.3f} {b:10.3f}", True)
        return min(scores, key=scores.get)

    rows = {name: (make, lr, "warmup_cosine") for name, (make, lr) in METHODS.items()}
    best = compete("The language model, warmup_cosine", rows)
    make, lr = METHODS[best]
    rows = {name: (make, lr * factor, name) for name, (_, factor) in SCHEDULES.items()}
    schedule = compete(f"{best}, the best on the development text", rows)
    *size, factor = ((16, 64), 100, 128, 1) if fast else FINAL
    print(f"\n{best} and {schedule}, {size[0][1]} hidden units, all of the training text")
    lr *= SCHEDULES[schedule][1] * factor
    score = fit(cut, make, lr, schedule, *size, "stories")[2]
    numbers = f"{score * bits:.3f} nats/char | {score:.3f} bits/char | perplexity {2**score:.2f}"
    print(f"\nheld-out: {numbers}   (stage 4, the neural n-gram under {best})")


def drop_unwritten():
    """Forget what stdout cannot take, so that Python's own flush at the end does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:  # a closed pipe, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv=None):
    """Race the optimizers and report (under a minute)."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it was closed before the start
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    parser = argparse.ArgumentParser(description="Stage 4: optimizers, derived and raced.")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    parser.add_argument("--fast", action="store_true", help="a smoke run of a few seconds")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice [0]")
    parser.add_argument("--text", default=DATA / "stories.txt", help="what to learn [the stories]")
    args = parser.parse_args(argv)
    try:
        check("--seed", args.seed, "integer [0, inf)")
        text = Path(args.text).read_text(encoding="utf-8")[: 40000 if args.fast else None]
        if len(text) < 250:
            raise ValueError(f"the text has {len(text)} characters; expected at least 250")
        print("Stage 4: ways down, measured")
        report_rates((100.0,) if args.fast else (100.0, 10000.0), args.seed)
        report_paths(report_race(50 if args.fast else 500))
        report_language(text, args.fast, args.seed)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever was reading has seen enough
        drop_unwritten()
    except KeyboardInterrupt:
        drop_unwritten()
        parser.exit(130, "\n")
    except (OSError, ValueError) as error:
        drop_unwritten()
        parser.error(str(error))


# %% Common mistakes
#
# 1. Adam's weight_decay taken for AdamW's: it decays too little or too much. See `decoupled`.
# 2. No bias correction: the first steps are three times too long, the loss jumps. See Adam.update.
# 3. `p = p - lr * g` makes a new array, the model keeps the old one: the loss stays. See `p -=`.
# 4. Clipping each array by itself, or each accumulated piece: the direction turns. See
#    clip_grad_norm, which takes all of them, after the last piece.
# 5. One rate for all methods: SGD's 1 blows Adam up, Adam's 0.001 lets SGD stand still. Many a
#    better optimizer was a better tuned one. See METHODS.
# 6. A checkpoint without m, v and t: the loss jumps on resuming. See state_dict.
# 7. The rate chosen on the held-out text whose score is reported: too good. See `tune`.

# %% Exercises
#
#  1. (reading) For each class: how many numbers does it keep per parameter? Which line says so?
#  2. (pencil) Show that with η = 1/Λ gradient descent never overshoots in the bowl. And 1.5/Λ?
#  3. (pencil) Section 7 with β = 0.9: which κ is that the best momentum for?
#  4. (pencil) Derive the bias correction for a mean that drifts, E[gᵢ] = g + i·d. Is it right?
#  5. (code) Add amsgrad (Reddi et al. 2018) to Adam; find a series of gradients where it differs.
#  6. (code) Draw Nesterov's walk in the quadratic at κ = 1,000, β = 0.9 and 0.99. Which circles?
#  7. (code) Replace orthogonalize by np.linalg.svd. How far apart are the walks? How much slower?
#  8. (measurement) Double the batch again and again at the best η: when do steps stop halving?
#  9. (experiment) Average the parameters over the last half at a constant rate (Polyak). Is it
#     as good as a schedule that ends at zero?
# 10. (experiment) Tune AdamW at 64, 128 and 256 hidden units. Does the best rate stay? (μP)
# 11. (research) Muon for U too, or for H alone? And for C: what is a lookup's natural length?

# %% Where this leads
#
# GPT-3 and Llama were trained by AdamW at β₂ = 0.95 with clipping at norm 1, warmup and a cosine;
# Kimi K2 by Muon. Stage 6 and the capstone follow; stage 8 takes pieces away to see what breaks.
# But no optimizer can see past the window of 8 letters: stage 5 lifts that limit.

if __name__ == "__main__":
    main()
