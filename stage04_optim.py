# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 4: descend. A gradient says which way is down. How should one walk?

Training looks for a low point in a landscape of thousands of dimensions, of which we can feel only
the slope under our feet, and that through noise. Every method here answers one question: given the
slopes so far, what is the next step? Gradient descent takes the slope as it is, momentum remembers
earlier ones, AdaGrad, RMSprop and Adam give each coordinate its own scale, Lion and Muon ask again
what "steepest" means. You should know slopes (stage 2) and the network of stage 3.

  Begin:   1 five steps on a parabola   2 why against the gradient   3 bowls, saddles and Newton
  Theory:  4 how fast? a proven rate    5 noise and batch size
  Methods: 6 what all share   7 momentum   8 AdaGrad, RMSprop   9 Adam, AdamW   10 Lion   11 Muon
  Craft:  12 clipping   13 sixteen bits   14 schedules   15 a language model   16 the training loop

Run `python stage04_optim.py [--fast] [--seed N] [--text FILE]`: half a minute; --fast: seconds.
Rests on: Polyak (1964), heavy ball; Nesterov (1983); Duchi, Hazan, Singer (2011), AdaGrad; Tieleman
and Hinton (2012), RMSprop; Kingma, Ba (2015), Adam; Loshchilov, Hutter (2019), AdamW; Chen et al.
(2023), Lion; Jordan et al. (2024), Muon; Bernstein, Newhouse (2024), "Old optimizer, new norm".
Steps and defaults are torch.optim's; torch has no Lion, so that one's are its paper's.
"""

import argparse
import functools
import math
import numbers
import os
import sys
from pathlib import Path

import numpy as np

TINY = 1e-300  # the least number that passes where one above 0 is meant
LN2 = math.log(2)  # nats in a bit

# %% 1. Five steps on a parabola
# Let L(x) = x² be the loss of a model with one parameter x. Its slope is L′(x) = 2x. Where it is
# positive, the loss rises to the right, so walk to the left, and the other way round: against the
# slope, and further where it is steeper. The factor η is called the learning rate:
#     x ← x - η·L′(x)


def descend(slope, x, learning_rate, steps):
    """The places of a walk from x (a number or an array): x itself and one after every step."""
    places = [x]
    for _ in range(steps):
        x = x - learning_rate * slope(x)
        places.append(x)
    return places


#     descend(lambda x: 2 * x, 1.0, η, 5)
#     η = 0.1    1    0.8   0.64    0.512   0.410    0.328    creeps: a step leaves 80 % of x
#     η = 0.5    1    0     0       0       0        0        arrives at once
#     η = 0.9    1   -0.8   0.64   -0.512   0.410   -0.328    jumps across the bottom each time
#     η = 1.1    1   -1.2   1.44   -1.728   2.074   -2.488    jumps too far, and climbs
#
# One formula says it all: a step multiplies x by 1 - 2η. With one parameter we would simply take
# η = 0.5. Now take two, and let the second direction be ten times as steep: the slopes of
# L(x, y) = ½·(x² + 10·y²) are (x, 10y), a step multiplies x by 1 - η and y by 1 - 10η. After ten
# steps from (1, 1):
#     η = 0.1    (0.349, 0)                 right for y, slow for x
#     η = 0.18   (0.137, 0.107)             the best that one rate can do, or nearly
#     η = 0.21   (0.095, 2.594)             y climbs
#     η = 1      (0, 3486784401)            right for x, and a loss explodes
#
# What suits one direction ruins the other: the steepest direction dictates the rate, and the flat
# ones have to live with it. Most of this file is about that sentence.

# %% 2. Why against the gradient, and how far
# A model has parameters θ, a list of d numbers. Example i costs ℓᵢ(θ), and we want to
#     minimise  L(θ) = (1/N)·Σᵢ ℓᵢ(θ)    over θ in ℝᵈ.
# In stage 3, ℓᵢ = -ln P(next letter | context). We cannot search all of ℝᵈ, but we can afford the
# gradient g = ∇L(θ), all d slopes at one place, for about two more evaluations (stage 2). So walk:
# add a step δ to θ. Which one? Near θ the landscape is a plane, plus something that shrinks with
# the square of the step (Taylor): L(θ + δ) = L(θ) + g·δ + O(‖δ‖²), where g·δ = Σᵢ gᵢδᵢ. Among all
# steps of length ‖δ‖ = r, g·δ = ‖g‖·r·cos(angle) is smallest where the cosine is -1, straight
# against the gradient: δ = -r·g/‖g‖. Hence θ ← θ - η·g with a learning rate η > 0.
# How large may η be? A plane would allow any step; curvature does not. Suppose that no direction
# curves upward by more than Λ, so that L(θ + δ) ≤ L(θ) + g·δ + ½Λ‖δ‖². With δ = -η·g this becomes
#     L(θ - ηg) ≤ L(θ) - η·‖g‖² + ½Λη²·‖g‖² = L(θ) - η·(1 - ½ηΛ)·‖g‖².
# The bracket is positive for η < 2/Λ. So every step with 0 < η < 2/Λ goes down (unless g = 0), and
# the bound promises most at η = 1/Λ. ∎

# %% 3. Bowls, saddles, and Newton's step
# Where g = 0 the walk ends. What kind of place is that? Taylor's next term knows:
#     L(θ + δ) ≈ L(θ) + g·δ + ½·δᵀHδ,    H[i, j] = ∂²L/∂θᵢ∂θⱼ    (the Hessian, d by d).
# H is symmetric, so it has d perpendicular axes (eigenvectors), and along axis i the landscape is a
# parabola of curvature λᵢ (its eigenvalue). All λᵢ > 0: a minimum. All λᵢ < 0: a maximum. Some of
# each: a saddle, which goes up along some axes and down along others.
#
# A landscape is CONVEX if the straight line between two of its points never runs below it:
#     L((1 - a)·θ + a·θ′) ≤ (1 - a)·L(θ) + a·L(θ′)    for 0 ≤ a ≤ 1.
# Then no λᵢ is negative anywhere, and every local minimum is a lowest point: if some θ′ were lower
# than θ, then by the inequality all points on the way to θ′ would be lower, even those next to θ.
# Networks are not convex: exchange two hidden units with their weights, and L stays the same. Were
# it convex, the average of both, where the two units are equal, would be as good: one would do.
#
# SADDLES are the usual case when d is large, because a minimum needs d positive signs. Were they d
# tosses of a coin, 1 in 2ᵈ such places would be a minimum. In a random symmetric matrix A + Aᵀ (A
# of independent normal numbers) all λᵢ are positive more rarely still: with probability 0.5, 0.146
# and 0.025 for d = 1, 2 and 3. In random landscapes, and in networks, the share of negative λᵢ
# grows with the height (Bray, Dean 2007; Dauphin et al. 2014): saddles lie high, minima low.
# Gradient descent leaves a saddle: along an axis with λ < 0 a step multiplies the distance by 1 +
# η|λ|.
#
# NEWTON's step is the ideal. Jump to the bottom of Taylor's bowl, where its slope is zero:
#     g + Hδ = 0,    δ = -H⁻¹g.
# In a bowl that arrives at once, because every axis gets its own rate 1/λᵢ: in section 1,
# (x - x/1, y - 10y/10) = (0, 0). Two things forbid it. The Hessian of the small network below has
# 6·10⁸ numbers, and solving with it takes d³ operations. And where λᵢ < 0 the rate 1/λᵢ is negative
# and leads uphill: on ½(x² - y²) the step ends on the saddle, (x - x, y - y). What follows can be
# read as affordable approximations: AdaGrad, RMSprop and Adam replace H by a diagonal that they
# guess from squared gradients, and Muon uses that the parameters form matrices.

# %% 4. How fast? A proven rate
# Near a minimum θ* the landscape is a bowl. Turn the axes along its eigenvectors and put θ* at 0:
# L = ½·Σᵢ λᵢ·xᵢ², with slopes λᵢxᵢ and curvatures 0 < μ = min λᵢ ≤ λᵢ ≤ max λᵢ = Λ. Gradient
# descent treats every coordinate on its own, as in section 1:
#     xᵢ ← xᵢ - ηλᵢxᵢ = (1 - ηλᵢ)·xᵢ.
# So after t steps xᵢ = (1 - ηλᵢ)ᵗ·xᵢ(0): it converges if and only if all |1 - ηλᵢ| < 1, that is
# 0 < η < 2/Λ, and it converges like ρᵗ with ρ = max |1 - ηλᵢ|, attained at an end: λ = μ or Λ.
# As η grows, |1 - ημ| falls and |1 - ηΛ| rises once past zero; the larger is least where they meet:
#     1 - ημ = ηΛ - 1    ⟹    η = 2/(Λ + μ),    ρ = (Λ - μ)/(Λ + μ) = (κ - 1)/(κ + 1),    κ = Λ/μ.
# (In section 1: η = 2/11 = 0.182, ρ = 9/11.) κ is the condition number: how elongated the bowl is.
# Since ln((κ+1)/(κ-1)) ≥ 2/κ (ln's series: 2·(1/κ + 1/(3κ³) + ...)), t = ½κ·ln(1/ε) steps are
# enough to shrink the distance to ε times itself: ρᵗ ≤ e^(-2t/κ) = ε. ∎

# %% 5. Noise and batch size
# The gradient over a random batch of B examples is right on average. If the gradient of one example
# has variance σ², the mean of B independent ones has σ²/B: four times the work only halves the
# error. What does such noise n do along one axis of the bowl? Independent variances add up, so
#     x ← (1 - ηλ)x - ηn    gives    Var(x) ← (1 - ηλ)²·Var(x) + η²σ²/B.
# This settles where both sides agree. Since 1 - (1 - ηλ)² = ηλ(2 - ηλ), that is at
#     Var(x) = ησ² / (B·λ·(2 - ηλ)) ≈ (η/B)·σ²/(2λ)    for small η.
# With a constant rate SGD does not arrive: it hovers in a cloud of size η/B. A larger batch shrinks
# the cloud. So does a smaller η, but it walks more slowly: begin with a large η, end with a small.
# GRADIENT ACCUMULATION. A batch too large for memory goes through in pieces p of Bₚ examples; its
# mean is the mean over pieces weighted by their share: (1/B)·Σᵢ ∇ℓᵢ = Σₚ (Bₚ/B)·(mean of ∇ℓ in p).


def check_number(name, value, least=0.0, below=1e300):
    """value as Python's float; ValueError unless it is a number with least <= value < below."""
    if isinstance(value, np.floating):
        value = float(value)  # compared with a float32, 1e-300 would be rounded to 0
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not least <= value < below:
        raise ValueError(f"{name} is {value!r}; expected a number, {least:g} <= {name} < {below:g}")
    return float(value)


def check_count(name, value, least=1):
    """value as Python's int; ValueError unless it is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")
    return int(value)


def noise_floor(lr, curvature, noise_variance, batch_size):
    """Var(x) where SGD hovers on ½λx²: the formula above. ValueError unless 0 < lr < 2/λ."""
    curvature = check_number("curvature", curvature, TINY)
    lr = check_number("lr", lr, TINY, 2 / curvature)
    noise_variance = check_number("noise_variance", noise_variance)
    batch_size = check_count("batch_size", batch_size)
    return lr * noise_variance / (batch_size * curvature * (2 - lr * curvature))


# %% 6. What all optimizers share
# Parameters are a dict of arrays, updated in place; gradients a dict with the same keys. Methods
# differ in their update, the last line of a derivation, and in what it remembers of each parameter
# (`slots` names these arrays, zero at first). The base class checks, counts, stores, and refuses
# half precision, in which g² and ε = 10⁻⁸ vanish (section 13).


def check_keys(what, given, wanted):
    """ValueError unless it is a dict with the keys of `wanted`."""
    if not isinstance(given, dict) or given.keys() != wanted.keys():
        found = list(given) if isinstance(given, dict) else type(given).__name__
        raise ValueError(f"{what} are {found}; expected {list(wanted)}")


def check_arrays(what, given, wanted):
    """ValueError unless it is a dict like `wanted`: the same keys, numbers of the same shapes."""
    check_keys(what, given, wanted)
    for name, like in wanted.items():
        array = np.asarray(given[name])
        if array.dtype.kind not in "fiu" or array.shape != like.shape:
            found = f"has shape {array.shape} and is {array.dtype}"
            raise ValueError(f"{what}[{name!r}] {found}; expected numbers of shape {like.shape}")


def check_setting(name, value):
    """An optimizer's setting, checked, as Python's own number; anything else as it is."""
    if name in ("lr", "weight_decay", "eps"):
        return check_number(name, value)
    if name in ("momentum", "alpha"):
        return check_number(name, value, below=1)
    if name == "betas":
        if np.shape(value) != (2,):
            raise ValueError(f"betas are {value!r}; expected two numbers in [0, 1)")
        return tuple(check_number(name, beta, below=1) for beta in value)
    if name == "ns_steps":
        return check_count(name, value)
    if name == "nesterov" and not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"nesterov is {value!r}; expected True or False")
    return value


class Optimizer:
    """What all methods share. params: a dict of float32 or float64 arrays, which step() changes."""

    slots = ()  # the names of what is remembered of each parameter
    decoupled = False  # weight decay: False through the gradient (section 7), True past it (9)

    def __init__(self, params, lr, weight_decay, **others):
        if not isinstance(params, dict) or not params:
            raise ValueError(f"params are {params!r}; expected a dict of at least one array")
        for name, p in params.items():
            if not isinstance(p, np.ndarray) or p.dtype.kind != "f" or p.dtype == np.float16:
                kind = getattr(p, "dtype", type(p).__name__)
                raise ValueError(f"params[{name!r}] is {kind}; expected a float32 or float64 array")
        self.params = params
        self.t = 0  # steps done
        self.state = {slot: {k: np.zeros_like(p) for k, p in params.items()} for slot in self.slots}
        self.settings = ["lr", "weight_decay", *others]
        self.lr = check_number("lr", lr, TINY)
        self.weight_decay = weight_decay
        for name, value in others.items():
            setattr(self, name, value)

    def __setattr__(self, name, value):
        """A setting is checked whenever it is set: lr may follow a schedule, down to 0."""
        super().__setattr__(name, check_setting(name, value))

    def step(self, grads):
        """One update of every parameter, in place. ValueError: keys or shapes do not match."""
        check_arrays("grads", grads, self.params)
        self.t += 1
        for name, p in self.params.items():
            g = np.asarray(grads[name], dtype=p.dtype)
            if self.decoupled:
                p *= 1 - self.lr * self.weight_decay
            elif self.weight_decay:
                g = g + self.weight_decay * p
            self.update(p, g, **{slot: self.state[slot][name] for slot in self.slots})

    def state_dict(self):
        """All that a resumed run needs besides the parameters, as copies."""
        state = {slot: {k: a.copy() for k, a in kept.items()} for slot, kept in self.state.items()}
        settings = {name: getattr(self, name) for name in self.settings}
        return {"optimizer": type(self).__name__, "settings": settings, "t": self.t, "state": state}

    def load_state_dict(self, saved):
        """Go on where state_dict() was taken, exactly. A misfit is a ValueError, and no change."""
        own = self.state_dict()
        check_keys("the parts of a state", saved, own)
        if saved["optimizer"] != own["optimizer"]:
            raise ValueError(f"it is of {saved['optimizer']!r}; expected {own['optimizer']!r}")
        check_keys("settings", saved["settings"], own["settings"])
        check_keys("state", saved["state"], own["state"])
        fresh = type(self)(self.params, **{**saved["settings"], "lr": 1.0})  # checks the settings
        fresh.lr = saved["settings"]["lr"]
        fresh.t = check_count("t", saved["t"], least=0)
        for slot, kept in fresh.state.items():
            check_arrays(slot, saved["state"][slot], kept)
            for name, array in kept.items():
                array[...] = saved["state"][slot][name]
        vars(self).update(vars(fresh))  # all was right: take it over


# %% 7. Momentum, and Nesterov's look ahead
# In a long valley the slope across flips its sign with every step and the slope along it stays.
# A sum of past gradients cancels the first and piles up the second (Polyak's heavy ball):
#     b ← βb + g,    θ ← θ - ηb.
# Under a constant g, b grows to g·(1 + β + β² + ...) = g/(1 - β): ten times the step at β = 0.9.
# Why is it faster? The last step was θₜ - θₜ₋₁ = -ηbₜ, so θₜ₊₁ = θₜ - ηgₜ + β(θₜ - θₜ₋₁). In the
# bowl, where g = λx, try xₜ = zᵗ. Divided by zᵗ⁻¹, the rule says
#     z² - (1 + β - ηλ)·z + β = 0.
# If the two roots are complex, they are conjugates with product β, so |z| = √β, whatever λ is: all
# directions shrink alike. They are complex (or one double root) if (1 + β - ηλ)² ≤ 4β, that is if
# (1 - √β)² ≤ ηλ ≤ (1 + √β)². Let the ends be ημ and ηΛ. Their ratio gives √κ = (1 + √β)/(1 - √β),
# so
#     √β = ρ = (√κ - 1)/(√κ + 1),    η = (1 + √β)²/Λ = (2/(√Λ + √μ))².
# √κ stands where gradient descent had κ: κ = 10,000 costs about what κ = 100 did. ∎ (A double root
# shrinks like t·ρᵗ, a little later than ρᵗ: the report counts 1,056 steps beside descent's 691.)
#
# NESTEROV takes the slope where momentum is about to carry us, φ - ηβb, not where we are, φ:
#     b ← βb + g(φ - ηβb),    φ ← φ - ηb.
# We know slopes at the parameters, so let the parameters be that point ahead, θ = φ - ηβb. A step
# makes b′ = βb + g and φ′ = φ - ηb′, and the next point ahead is θ′ = φ′ - ηβb′ = φ - ηb′ - ηβb′.
# Here φ = θ + ηβb, and βb = b′ - g. Put both in, and ηb′ cancels: θ′ = θ - η·(g + βb′).
#
# How fast is that in the bowl? The last step of φ was -ηb, so θ = φₜ + β(φₜ - φₜ₋₁), and a step
# down the slope from there multiplies by q = 1 - ηλ: φₜ₊₁ = q·(φₜ + β(φₜ - φₜ₋₁)). As before, try
# φₜ = zᵗ: z² - (1 + β)q·z + βq = 0. Take η = 1/Λ and β = (R - 1)/(R + 1), where R = √κ.
# At λ = μ, q = 1 - 1/R² = (R² - 1)/R², so (1 + β)²q and 4β are both 4(R - 1)/(R + 1). Then the
# discriminant q·((1 + β)²q - 4β) is 0, and for larger λ, where q is smaller, it is not above 0. So
# |z|² is the product of the roots, βq. It is largest at μ: (R - 1)²/R². Hence ρ = 1 - 1/√κ. ∎
#
# Slower than the ball in a bowl, but safe beyond it: with this β Nesterov's method is proven on all
# landscapes whose curvatures lie in [μ, Λ] everywhere, where μ > 0 (strongly convex). There the
# ball may circle for ever (Lessard, Recht, Packard 2016; exercise 9).
#
# WEIGHT DECAY (L2) adds ½w‖θ‖² to the loss and so wθ to the gradient: unneeded weights shrink.


def proven_rates(mu, Lambda):
    """{method: (learning rate, momentum, ρ)} on curvatures in [mu, Lambda], as derived above."""
    mu, Lambda = check_number("mu", mu, TINY), check_number("Lambda", Lambda, TINY)
    if mu > Lambda:
        raise ValueError(f"curvatures are {mu} and {Lambda}; expected mu <= Lambda")
    low, high = math.sqrt(mu), math.sqrt(Lambda)
    rho, R = (high - low) / (high + low), high / low
    return {
        "descent, best": (2 / (Lambda + mu), 0, (Lambda - mu) / (Lambda + mu)),
        "descent, 2.01/Λ": (2.01 / Lambda, 0, 1.01),
        "Nesterov": (1 / Lambda, (R - 1) / (R + 1), 1 - 1 / R),
        "heavy ball": ((2 / (low + high)) ** 2, rho * rho, rho),
    }


class SGD(Optimizer):
    """Gradient descent; with momentum > 0 the heavy ball, or Nesterov's method."""

    slots = ("b",)

    def __init__(self, params, lr, momentum=0, nesterov=False, weight_decay=0):
        super().__init__(params, lr, weight_decay, momentum=momentum, nesterov=nesterov)

    def __setattr__(self, name, value):
        after = {**vars(self), name: value}  # all attributes as they would be
        if after.get("nesterov") and after.get("momentum") == 0:
            raise ValueError("momentum is 0; nesterov=True expected a number above 0")
        super().__setattr__(name, value)

    def update(self, p, g, b):
        b *= self.momentum
        b += g
        p -= self.lr * (g + self.momentum * b if self.nesterov else b)


# %% 8. A scale for every coordinate: AdaGrad and RMSprop
# The best rate depends on curvature, and coordinates differ in curvature: one may simply be written
# in another unit. Let x = c·x̃, and walk in x̃. The slope in x̃ is c·g, so gradient descent moves x̃ by
# -η·c·g, and x by -η·c²·g: from metres to millimetres, that is a factor of a million. AdaGrad
# divides by the root of the sum of all squared slopes so far:
#     s ← s + g²,    θ ← θ - η·g/(√s + ε)    (entry by entry; ε only prevents 0/0).
# In the unit of x̃ both g and √s carry the factor c, which cancels: x̃ moves by -η·g/√s. One factor
# is left, as x moves by -η·c·g/√s. The size of the slope no longer matters, the size of the
# parameter does: η is a distance in the unit in which the parameter is written. The first step is
# -η·sign(g). If all slopes have one size, step t has length η/√t: a falling schedule for free,
# which Duchi et al. prove to be right for convex problems. In networks s grows on and on, and
# learning dies. RMSprop forgets: a square k steps old counts (1 - α)αᵏ,
#     v ← αv + (1 - α)g²,    θ ← θ - η·g/(√v + ε).


class AdaGrad(Optimizer):
    """Every coordinate's rate divided by the root of the sum of its squared gradients."""

    slots = ("s",)

    def __init__(self, params, lr=1e-2, eps=1e-10, weight_decay=0):
        super().__init__(params, lr, weight_decay, eps=eps)

    def update(self, p, g, s):
        s += g * g
        p -= self.lr * g / (np.sqrt(s) + self.eps)


class RMSprop(Optimizer):
    """Every coordinate's rate divided by a moving root mean square of its gradients."""

    slots = ("v",)

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0):
        super().__init__(params, lr, weight_decay, alpha=alpha, eps=eps)

    def update(self, p, g, v):
        v *= self.alpha
        v += (1 - self.alpha) * (g * g)
        p -= self.lr * g / (np.sqrt(v) + self.eps)


# %% 9. Adam, and AdamW
# Momentum and RMSprop together: a moving average m of g over one of g²,
#     m ← β₁m + (1 - β₁)g,    v ← β₂v + (1 - β₂)g².
# Both start at 0, so both are too small at first. By how much? Unroll, and let E[gᵢ] be the same
# in all steps:
#     mₜ = (1 - β₁)·Σ_{i=1..t} β₁ᵗ⁻ⁱ·gᵢ,    E[mₜ] = E[g]·(1 - β₁)·Σ_{k=0..t-1} β₁ᵏ = E[g]·(1 - β₁ᵗ),
# since (1 - β)(1 + β + ... + βᵗ⁻¹) telescopes to 1 - βᵗ. The same for v with E[g²]. So divide:
#     m̂ = m/(1 - β₁ᵗ),    v̂ = v/(1 - β₂ᵗ),    θ ← θ - η·m̂/(√v̂ + ε).
# In numbers, at the usual β₁ = 0.9 and β₂ = 0.999, the first steps in units of η:
#     g                   1       1       1         or    1       -1       1
#     m                   0.1     0.19    0.271           0.1     -0.01    0.091
#     v                   0.001   0.002   0.003           0.001    0.002   0.003
#     m/√v                3.16    4.25    4.95            3.16    -0.22    1.66
#     m̂/√v̂                1       1       1               1       -0.05    0.34
# Corrected, slopes that agree make steps of η, whatever their size, and slopes that contradict one
# another hardly any: η is about how far a coordinate moves. Uncorrected, the first step is too long
# by (1 - β₁)/√(1 - β₂) = 3.2 and the twelfth by 6.6, as v fills more slowly than m.
#
# AdamW. With L2 the decay wθ passes through m̂/√v̂ like the rest of the gradient: a weight with
# large gradients is decayed less, one with small ones more, and w loses its meaning. Decouple it:
#     θ ← (1 - ηw)·θ,    then Adam's step, of the loss alone.
# For plain SGD the two are the same: θ - η(g + wθ) = (1 - ηw)θ - ηg. For Adam they are not.
# WHAT TO DECAY. Matrices, not biases or the gains of norms. Decay keeps a product x·W from leaning
# on a few large weights; but a bias multiplies nothing, and a gain pulled to 0 switches its channel
# off. Vectors hold few numbers, too, and hardly overfit. So: two optimizers, each with its part.


class Adam(Optimizer):
    """Momentum over root mean square, both corrected for starting at zero; weight_decay is L2."""

    slots = ("m", "v")

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0):
        super().__init__(params, lr, weight_decay, betas=betas, eps=eps)

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


def adamw_groups(params, lr, weight_decay=0.1):
    """[AdamW with decay for the matrices, AdamW without for the vectors (biases, gains)]."""
    Optimizer(params, lr, weight_decay)  # refuses what is no dict of arrays
    matrices = {name: p for name, p in params.items() if np.ndim(p) >= 2}
    vectors = {name: p for name, p in params.items() if np.ndim(p) < 2}
    groups = [(matrices, weight_decay), (vectors, 0)]
    return [AdamW(part, lr, weight_decay=decay) for part, decay in groups if part]


# %% 10. Lion: steepest when length is the largest entry
# Section 2 asked for the best step of length r. Measure length by the largest entry instead:
#     minimise g·δ subject to |δᵢ| ≤ η for all i:    δᵢ = -η·sign(gᵢ),    g·δ = -η·Σ|gᵢ|,
# each term being as small as it can be. ∎ A step of signs: Adam's first, and Adam's at β₁ = β₂ = 0.
# Lion, which Chen et al. found by a program search, takes the sign of a momentum, and mixes more
# of the present gradient into the step (β₁) than into the memory (β₂):
#     c = β₁m + (1 - β₁)g,    θ ← (1 - ηw)θ - η·sign(c),    m ← β₂m + (1 - β₂)g.
# One slot where Adam has two. Every entry moves by a full η at every step, so rates are 3 to 10
# times below Adam's, and only a falling η brings it to rest.


class Lion(Optimizer):
    """The sign of a momentum (Chen et al. 2023); decoupled weight decay."""

    slots = ("m",)
    decoupled = True

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0):
        super().__init__(params, lr, weight_decay, betas=betas)

    def update(self, p, g, m):
        beta1, beta2 = self.betas
        p -= self.lr * np.sign(beta1 * m + (1 - beta1) * g)
        m *= beta2
        m += (1 - beta2) * g


# %% 11. Muon: steepest when length is what a matrix does to vectors
# A weight matrix is no list: it multiplies vectors. So measure a step Δ by the most that it
# stretches one, ‖Δ‖ = max ‖Δv‖/‖v‖. Write the gradient as G = Σᵢ σᵢ·uᵢvᵢᵀ, the singular value
# decomposition (SVD): it turns the direction vᵢ into uᵢ and stretches it by σᵢ > 0. The uᵢ, columns
# of U, have length 1 and are perpendicular to one another, and so are the vᵢ. To first order a step
# changes the loss by the sum of all products of entries,
#     Σⱼₖ GⱼₖΔⱼₖ = Σᵢ σᵢ·uᵢᵀΔvᵢ ≥ -Σᵢ σᵢ·‖Δ‖,
# because |uᵢᵀΔvᵢ| ≤ ‖Δvᵢ‖ ≤ ‖Δ‖. The bound is reached by Δ = -‖Δ‖·U·Vᵀ, as uᵢᵀ(U·Vᵀ)vᵢ = 1. ∎
# So keep the directions of G, and set all singular values to 1: what a gradient says loudly and
# what it whispers get the same step.
#
# An SVD is slow. Matrix products are fast, and some act on singular values alone. With the σᵢ on
# the diagonal of S, X = U·S·Vᵀ and X·Xᵀ = U·S²·Uᵀ, so
#     aX + b(XXᵀ)X + c(XXᵀ)²X = U·(aS + bS³ + cS⁵)·Vᵀ:    every σ ← aσ + bσ³ + cσ⁵.
# First divide G by the root of the sum of its squares, which is √Σσᵢ²: now all σ are at most 1. A
# round with Muon's a, b and c multiplies a small σ by a = 3.44 and keeps a large one near 1. After
# five rounds every σ that began above 0.002 lies between 0.68 and 1.21, which is near enough:
#     G = [[3, 0], [0, 0.1]]        divided     1        2        3        4        5
#     first σ                       0.9994   0.7014   1.1132   0.7201   1.0907   0.6970
#     second σ                      0.0333   0.1146   0.3875   1.0747   0.6872   1.1288
#
# HOW LONG A STEP? A layer turns x (in,) into x·W (out,), W (in, out) as everywhere in this course.
# What counts there is the size of a typical entry, the root mean square ‖x‖/√in, not ‖x‖. A step of
# -η·f·O, with singular values 1 in O, changes the output by ‖x·ΔW‖ ≤ η·f·‖x‖, and so
#     RMS(x·ΔW) ≤ η·f·‖x‖/√out = η·f·√(in/out)·RMS(x).
# With f = √(out/in) every layer's outputs move by at most η of its inputs, wide or narrow: one η
# for all (Bernstein, Newhouse). Jordan's Muon takes f = √max(1, out/in), never below 1, as torch
# does. But torch stores a weight as (out, in): its rows/columns are our columns/rows.
# The rest is a momentum written as a moving average, Nesterov's step, and decay:
#     B ← μB + (1 - μ)G,  O = orthogonalize((1 - μ)G + μB),  W ← (1 - ηw)W - η·√max(1, out/in)·O.

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c, from Jordan et al. 2024


def orthogonalize(G, steps=5):
    """About U·Vᵀ of a matrix G = U·S·Vᵀ, by Newton-Schulz in G's dtype (torch: in bfloat16)."""
    G = np.asarray(G)
    if G.ndim != 2 or G.dtype.kind not in "fiu" or G.dtype == np.float16:
        raise ValueError(f"G is {G.dtype} {G.shape}; expected a float32 or float64 matrix")
    a, b, c = NEWTON_SCHULZ
    G = G * 1.0  # integers become floats
    X = G.T if G.shape[0] > G.shape[1] else G  # X·Xᵀ is the smaller of the two products
    X = X / max(float(np.linalg.norm(X.astype(np.float64))), 1e-7)  # float32 may overflow
    for _ in range(check_count("steps", steps)):
        A = X @ X.T
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.T if G.shape[0] > G.shape[1] else X


class Muon(Optimizer):
    """Orthogonalized momentum (Jordan et al. 2024) for weights (in, out). ValueError for others."""

    slots = ("B",)
    decoupled = True

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, ns_steps=5):
        others = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        super().__init__(params, lr, weight_decay, **others)
        for name, p in params.items():
            if p.ndim != 2:
                raise ValueError(f"params[{name!r}] has shape {p.shape}; Muon expected a matrix")

    def update(self, p, g, B):
        mu = self.momentum
        B *= mu
        B += (1 - mu) * g
        O = orthogonalize((1 - mu) * g + mu * B if self.nesterov else B, self.ns_steps)
        fan_in, fan_out = p.shape
        p -= self.lr * math.sqrt(max(1, fan_out / max(1, fan_in))) * O


# %% 12. Clipping
# One bad batch can have a gradient a thousand times the usual and undo an hour. Clipping by norm
# keeps the direction and caps the length n of all gradients together, g ← g·min(1, max_norm/n): the
# nearest point of the ball ‖g‖ ≤ max_norm. (torch adds 10⁻⁶ to n; so do we.)


def clip_grad_norm(grads, max_norm):
    """Scale the gradients in place to a joint norm of at most max_norm; returns the norm before."""
    if max_norm != math.inf:
        max_norm = check_number("max_norm", max_norm, TINY)
    if not isinstance(grads, dict):
        raise ValueError(f"grads are {grads!r}; expected a dict of arrays")
    for name, g in grads.items():
        if not isinstance(g, np.ndarray) or g.dtype.kind != "f":
            kind = getattr(g, "dtype", type(g).__name__)
            raise ValueError(f"grads[{name!r}] is {kind}; expected a floating-point array")
    norm = math.hypot(*(np.linalg.norm(g.astype(np.float64).ravel()) for g in grads.values()))
    scale = max_norm / (norm + 1e-6)
    if scale < 1:
        for g in grads.values():
            g *= scale
    return norm


# %% 13. Sixteen bits
# A float has a sign, an exponent and a fraction: 1 + 8 + 23 bits in float32, 1 + 5 + 10 in float16,
# 1 + 8 + 7 in bfloat16. Two bytes instead of four halve the memory, and GPUs multiply them several
# times as fast. But below 1 neighbours in bfloat16 are 2⁻⁸ = 0.0039 apart, in float16 2⁻¹¹: rounded
# to bfloat16, 1 - 0.001 is 1, and a weight would not notice its steps. Hence forward and backward
# run in 16 bits, while the optimizer keeps its parameters and slots in float32.
# bfloat16 reaches as far as float32, but float16 only from 6·10⁻⁸ to 65,504: small gradients become
# 0, large ones ∞. LOSS SCALING (Micikevicius et al. 2018) helps: backward is linear in dloss, where
# it starts. Start from 2ᵏ instead of 1, and every gradient is 2ᵏ times as large; divide by 2ᵏ in
# float32. If one overflowed, skip the step and halve the scale. After many good steps, double it.


def scaled_step(optimizer, grads, scale):
    """A step with the gradients of scale·loss, or none if one overflowed: the next scale."""
    scale = check_number("scale", scale, TINY)
    check_arrays("grads", grads, optimizer.params)
    if not all(np.isfinite(g).all() for g in grads.values()):
        return scale / 2
    optimizer.step({name: np.asarray(g, np.float64) / scale for name, g in grads.items()})
    return scale


# %% 14. Schedules
# A schedule is a plain function of the step, 0 for the first; assign its value to optimizer.lr.
# Late in training the noise floor of section 5 is proportional to the rate, so the rate should
# fall. Early, Adam's v rests on few gradients and the landscape bends most, so it should rise from
# small: warmup. Half a cosine, ½(1 + cos πu) for u from 0 to 1, is a way down that is flat at both
# ends. WSD (warmup, stable, decay; Hu et al. 2024, "MiniCPM") stays up and falls only at the end:
# the length of the run need not be known beforehand, and a decay may branch off at any time.


def check_rates(step, lr, min_lr=0.0):
    """The three as floats; ValueError unless 0 <= step, 0 < lr and 0 <= min_lr <= lr."""
    lr, min_lr = check_number("lr", lr, TINY), check_number("min_lr", min_lr)
    if min_lr > lr:
        raise ValueError(f"min_lr is {min_lr}; expected at most lr = {lr}")
    return check_number("step", step), lr, min_lr


def warmup_cosine(step, lr, warmup_steps, total_steps, min_lr=0.0):
    """A line from lr/(warmup_steps + 1) to lr at warmup_steps, then half a cosine to min_lr."""
    step, lr, min_lr = check_rates(step, lr, min_lr)
    warmup_steps = check_number("warmup_steps", warmup_steps)
    total_steps = check_number("total_steps", total_steps, least=max(1, warmup_steps))
    if step < warmup_steps:
        return lr * (step + 1) / (warmup_steps + 1)
    u = min(1.0, (step - warmup_steps) / max(1e-9, total_steps - warmup_steps))
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * u))


def wsd(step, lr, warmup_steps, total_steps, decay_steps, min_lr=0.0):
    """Warmup, stable, decay: a line up, lr, and a line to min_lr in the last decay_steps."""
    step, lr, min_lr = check_rates(step, lr, min_lr)
    warmup_steps = check_number("warmup_steps", warmup_steps)
    decay_steps = check_number("decay_steps", decay_steps, least=1)
    total_steps = check_number("total_steps", total_steps, least=warmup_steps + decay_steps)
    if step < warmup_steps:
        return lr * (step + 1) / (warmup_steps + 1)
    return min_lr + (lr - min_lr) * min(1.0, max(0.0, (total_steps - step) / decay_steps))


# %% 15. A language model to race on, and label smoothing
# Stage 3's network: embeddings x of the last letters, side by side, into h = tanh(d + x·H), into
# scores z = b + h·U, into softmax, π = e^z/Σe^z. Its backward (derived there): dz = (π - q)/N with
# q = 1 at the target and 0 elsewhere, then through each product a·w as da = dy·wᵀ, dw = aᵀ·dy,
# through tanh as 1 - h², and an embedding row gets the sum over its uses.
#
# LABEL SMOOTHING (Szegedy et al. 2016). The loss -Σ q·ln π is least at π = q, which asks a score of
# ∞ for the target. Give a share ε of q to all V symbols alike: q = 1 - ε + ε/V at the target, ε/V
# elsewhere. Now the best scores are finite, and the target leads by ln((1 - ε)·V/ε + 1), which is
# 6.4 for ε = 0.1, V = 64; dz is still (π - q)/N. Classifiers gain from it. The perplexity of a
# language model suffers, as the model is told to be less sure than it is.


def nlm_init(vocab_size, context, n_embd, n_hidden, rng, dtype=np.float32):
    """Parameters C (V, D), H (context·D, K), d (K,), U (K, V), b (V,), sized as in stage 3."""
    vocab_size, context = check_count("vocab_size", vocab_size), check_count("context", context)
    n_embd, n_hidden = check_count("n_embd", n_embd), check_count("n_hidden", n_hidden)
    params = {
        "C": rng.normal(0, 1, (vocab_size, n_embd)),
        "H": rng.normal(0, (context * n_embd) ** -0.5, (context * n_embd, n_hidden)),
        "d": np.zeros(n_hidden),
        "U": rng.normal(0, 0.1 * n_hidden**-0.5, (n_hidden, vocab_size)),
        "b": np.zeros(vocab_size),
    }
    return {name: value.astype(dtype) for name, value in params.items()}


def check_ids(name, ids, size=2**63):
    """ids as int64; ValueError unless they are integers from 0 to size - 1."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise ValueError(f"{name} are {ids.dtype}; expected integers")
    if ids.size and not 0 <= ids.min() <= ids.max() < size:
        raise ValueError(f"{name} reach from {ids.min()} to {ids.max()}; expected 0..{size - 1}")
    return ids.astype(np.int64)


def nlm_forward(X, Y, params, smoothing=0.0):
    """Mean nats of the targets Y (N,) after the contexts X (N, context) -> (loss, cache)."""
    V, D = params["C"].shape
    X, Y = check_ids("X", X, V), check_ids("Y", Y, V)
    smoothing = check_number("smoothing", smoothing, below=1)
    wanted = (len(Y), len(params["H"]) // D)
    if X.shape != wanted or Y.shape != wanted[:1] or len(Y) == 0:
        raise ValueError(f"X and Y have shapes {X.shape} and {Y.shape}; expected {wanted} and (N,)")
    x = params["C"][X].reshape(len(X), -1)  # (N, context·D)
    h = np.tanh(x @ params["H"] + params["d"])  # (N, K)
    z = h @ params["U"] + params["b"]  # (N, V)
    z -= z.max(axis=1, keepdims=True)  # softmax does not change, and nothing overflows
    log_pi = z - np.log(np.exp(z).sum(axis=1, keepdims=True))  # (N, V)
    at_target = float(log_pi[np.arange(len(Y)), Y].mean(dtype=np.float64))
    loss = -(1 - smoothing) * at_target - smoothing * float(log_pi.mean(dtype=np.float64))
    return loss, (X, Y, params, smoothing, x, h, log_pi)


def nlm_backward(dloss, cache):
    """dloss -> the gradients of all parameters, a dict with the keys of params."""
    X, Y, params, smoothing, x, h, log_pi = cache
    V, D = params["C"].shape
    dz = np.exp(log_pi) - smoothing / V
    dz[np.arange(len(Y)), Y] -= 1 - smoothing
    dz *= dloss / len(Y)  # (π - q)/N
    da = dz @ params["U"].T
    da *= 1 - h * h
    dx = (da @ params["H"].T).reshape(-1, D)  # (N·context, D)
    one_hot = (np.arange(V)[:, None] == X.reshape(-1)).astype(dx.dtype)  # (V, N·context)
    return {"C": one_hot @ dx, "H": x.T @ da, "d": da.sum(0), "U": h.T @ dz, "b": dz.sum(0)}


def examples(ids, context):
    """All (context, next id) pairs: X (N, context), Y (N,) with N = len(ids) - context."""
    ids, context = check_ids("ids", ids), check_count("context", context)
    if ids.ndim != 1 or len(ids) <= context:
        raise ValueError(f"ids have shape {ids.shape}; expected (n,) with n > context = {context}")
    return np.lib.stride_tricks.sliding_window_view(ids[:-1], context), ids[context:]


def nlm_score(ids, params, context):
    """Mean nats per id, over every id that has a full context before it."""
    X, Y = examples(ids, context)
    parts = [slice(i, i + 4096) for i in range(0, len(X), 4096)]  # memory: not all at once
    return sum(nlm_forward(X[s], Y[s], params)[0] * len(Y[s]) for s in parts) / len(Y)


# %% 16. The training loop
# The loop of every training program: batch, gradient, clip, rate, step. Several optimizers may
# share the work, each with its own part of the parameters and its own rate (parameter groups).


def train(params, X, Y, optimizers, schedule, steps, batch_size=128, seed=0, name=None):
    """Train in place, each optimizer at schedule(step, its lr): the losses (steps,), all finite."""
    steps, batch_size = check_count("steps", steps, least=0), check_count("batch_size", batch_size)
    X, Y = np.asarray(X), np.asarray(Y)
    if len(X) != len(Y):
        raise ValueError(f"{len(X)} contexts and {len(Y)} targets; expected as many")
    rng = np.random.default_rng(seed)
    losses = np.empty(steps)
    order = []  # the examples that this epoch has not used yet, shuffled
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
            recent = losses[max(0, step - 499) : step + 1].mean() / LN2
            progress(f"  {name}: step {step + 1:,}, {recent:.3f} bits", step == steps - 1)
    return losses


def progress(message, last=False):
    """One line overwritten in place on a terminal; when piped, only the last message is printed."""
    if sys.stdout.isatty():
        print(f"\r{message:<78}", end="\n" if last else "", flush=True)
    elif last:
        print(message, flush=True)


def muon_and_adamw(params, lr):
    """Muon for the hidden matrices, AdamW at a fifth of its rate for the table and the vectors."""
    hidden = {name: params[name] for name in ("H", "U")}
    rest = {name: p for name, p in params.items() if name not in hidden}
    return [Muon(hidden, lr, weight_decay=0.01), *adamw_groups(rest, 0.2 * lr, weight_decay=0.01)]


METHODS = {  # name: (optimizers for params and a rate, its rate)
    "SGD": (lambda P, lr: [SGD(P, lr)], 4.0),
    "heavy ball, β = 0.9": (lambda P, lr: [SGD(P, lr, 0.9)], 0.25),
    "Nesterov, β = 0.9": (lambda P, lr: [SGD(P, lr, 0.9, nesterov=True)], 0.5),
    "AdaGrad": (lambda P, lr: [AdaGrad(P, lr)], 0.125),
    "RMSprop": (lambda P, lr: [RMSprop(P, lr)], 0.0078),
    "Adam": (lambda P, lr: [Adam(P, lr)], 0.0156),
    "AdamW, decay 0.1": (adamw_groups, 0.0312),
    "Lion": (lambda P, lr: [Lion(P, lr)], 0.0039),
    "Muon + AdamW": (muon_and_adamw, 0.0625),
}  # chosen by benchmarks/stage04_rates.py on a development piece: means of three seeds
SCHEDULES = {  # name: (rate as a function of step, rate and number of steps T, factor on the rate)
    "constant": (lambda t, lr, T: lr, 0.25),
    "linear_decay": (lambda t, lr, T: wsd(t, lr, 0, T, T), 1.0),
    "warmup_cosine": (lambda t, lr, T: warmup_cosine(t, lr, T / 20, T), 1.0),
    "wsd": (lambda t, lr, T: wsd(t, lr, T / 20, T, T / 5), 0.5),
}

# %% Demonstration

DATA = Path(__file__).resolve().parent / "data"
CONTEXT = 8
SMALL, LONG = (128, 300, 128), (512, 3000, 256)  # n_hidden, steps, batch_size
PAIR = "Muon + AdamW", "linear_decay"  # for the long run: the best over three seeds


def quadratic(points, kappa=100.0):
    """Heights and slopes of ½(x² + κy²) at points (..., 2): the elongated bowl of section 4."""
    points, scale = np.asarray(points, dtype=np.float64), np.array([1.0, kappa])
    return 0.5 * (points * points) @ scale, points * scale


def rosenbrock(points):
    """(1 - x)² + 100(y - x²)²: a bent, nearly flat valley; minimum 0 at (1, 1). Rosenbrock 1960."""
    x, y = np.moveaxis(np.asarray(points, dtype=np.float64), -1, 0)
    off = y - x * x  # distance from the valley floor y = x²
    slope = np.stack([-2 * (1 - x) - 400 * x * off, 200 * off], axis=-1)
    return (1 - x) ** 2 + 100 * off**2, slope


RACES = {  # landscape: (function, start, the height to get below)
    "quadratic": (quadratic, (-2.0, 0.7), 0.0001),
    "Rosenbrock": (rosenbrock, (-1.2, 1.0), 0.01),
}


def report_rates(kappas):
    """Sections 4 and 7: proven numbers beside measured ones."""
    print("\nProven and measured: the way to the minimum of ½(x² + κy²), from (1, 1)")
    print("  κ       method                  η        β   proven ρ   measured   steps to 10⁻⁶")
    for kappa in kappas:
        needed = {}
        for name, (lr, beta, rho) in proven_rates(1.0, kappa).items():
            params = {"x": np.ones(2)}
            walker = SGD(params, lr, beta, nesterov=name == "Nesterov")
            far = [math.sqrt(2)]
            while 1e-6 < far[-1] / far[0] < 1e6:
                walker.step({"x": quadratic(params["x"], kappa)[1]})
                far.append(math.hypot(*params["x"]))
            needed[name], half = len(far) - 1, len(far) // 2
            measured = (far[-1] / far[half]) ** (1 / (len(far) - 1 - half))  # in the second half
            steps = f"{needed[name]:,}" if far[-1] < 1 else "diverges"
            row = f"  {kappa:<7,.0f} {name:15} {lr:11.3g} {beta:8.4f} {rho:10.5f} {measured:10.5f}"
            print(f"{row} {steps:>15}")
        fewer = needed["descent, best"] / needed["heavy ball"]
        print(f"  The heavy ball needs {fewer:.0f} times fewer steps than the best descent.")


def draw(places, width=38, height=15):
    """A map of rosenbrock in lines: o the walk, S its start, E its end."""
    x, y = np.linspace(-1.9, 1.9, width), np.linspace(-0.8, 2.0, height)
    heights = rosenbrock(np.stack(np.meshgrid(x, y), axis=-1))[0]  # (height, width)
    grid = np.array(list(" .:-"))[np.searchsorted((1, 10, 100), heights)]  # a mark a height
    for (px, py), mark in zip([*places, places[0], places[-1]], "o" * len(places) + "SE"):
        grid[np.abs(y - py).argmin(), np.abs(x - px).argmin()] = mark
    return ["".join(line) for line in grid[::-1]]


def walk(race, limit, make, lr):
    """The places up to the first below the goal; [] if there is none, or |x| or |y| exceeds 3."""
    landscape, start, goal = race
    params, places = {"x": np.array(start)}, []
    (optimizer,) = make(params, lr)
    while len(places) <= limit and np.abs(params["x"]).max() <= 3:
        places.append(params["x"].copy())
        height, slope = landscape(params["x"])
        if height < goal:
            return places
        optimizer.step({"x": slope})
    return []


def report_race(limit):
    """Every method on every landscape at its best rate, and two walks drawn."""
    print(f"\nThe race: steps to that height, at the best of 13 rates (its rate); -: over {limit}")
    print(" " * 22 + "".join(f"{name} < {race[2]:g}".rjust(20) for name, race in RACES.items()))
    walks = {}  # the best ones on Rosenbrock
    for method in [name for name in METHODS if "AdamW" not in name]:  # AdamW walks as Adam does
        line = f"  {method:20}"
        for surface, race in RACES.items():
            result, within = "-", limit
            for lr in 10 ** (np.arange(2, -11, -1) / 3):
                if places := walk(race, within, METHODS[method][0], float(lr)):
                    result, within = f"{len(places) - 1:,} ({lr:.2g})", len(places) - 2
                    if surface == "Rosenbrock":
                        walks[method] = places
            line += f"{result:>20}"
        print(line)
    maps = {m: draw(walks[m]) for m in ("heavy ball, β = 0.9", "Adam") if m in walks}
    print(f"\nRosenbrock from S to E: {' and '.join(maps) or 'nobody arrived'}.")
    print("Heights: blank below 1, a dot below 10, two dots below 100, a dash above.")
    for lines in zip(*maps.values()):
        print("  " + "  |  ".join(lines))


def fit(ids, vocab_size, method, schedule, size, seed, factor=1.0, name=None):
    """A network trained on ids by METHODS[method], `factor` times its rate -> (params, losses)."""
    n_hidden, steps, batch_size = size
    (make, rate), (rate_at, schedule_factor) = METHODS[method], SCHEDULES[schedule]
    params = nlm_init(vocab_size, CONTEXT, 16, n_hidden, np.random.default_rng(seed))
    optimizers = make(params, rate * schedule_factor * factor)
    X, Y = examples(ids, CONTEXT)
    at = functools.partial(rate_at, T=steps)
    return params, train(params, X, Y, optimizers, at, steps, batch_size, seed, name)


def split(text):
    """(ids, V, tune, cut): learn from ids[:tune], choose on ids[tune:cut], report on ids[cut:]."""
    place = {symbol: i for i, symbol in enumerate(sorted(set(text)))}
    cut = int(0.9 * len(text))
    return np.array([place[symbol] for symbol in text]), len(place), int(0.9 * cut), cut


def compete(title, pairs, text, size, seed):
    """One network for each (method, schedule); the pair that is best on the development piece."""
    ids, V, tune, cut = split(text)
    print(f"\n{title}: the same {size[1]} batches of {size[2]}")
    print(f"  {'bits/char':36}rate   training   development")
    scores = {}
    for method, schedule in pairs:
        params, losses = fit(ids[:tune], V, method, schedule, size, seed)
        scores[method, schedule] = nlm_score(ids[tune - CONTEXT : cut], params, CONTEXT) / LN2
        rate, recent = METHODS[method][1] * SCHEDULES[schedule][1], losses[-size[1] // 5 :].mean()
        row = f"  {method:20} {schedule:15}{rate:6.2g} {recent / LN2:10.3f}"
        print(f"{row} {scores[method, schedule]:13.3f}", flush=True)
    best, *_, worst = sorted(scores, key=scores.get)
    print(f"  The best: {' with '.join(best)}. The worst: {scores[worst] - scores[best]:.3f} more.")
    return best


def report_language(text, fast, seed):
    """One network under every optimizer, the best under every schedule; then the long run."""
    size, long = ((64, 25, 128), (64, 100, 128)) if fast else (SMALL, LONG)
    pairs = [(method, "warmup_cosine") for method in METHODS]
    method, _ = compete("Nine optimizers (a step of Muon costs most)", pairs, text, size, seed)
    pairs = [(method, schedule) for schedule in SCHEDULES]
    compete("The best of them under four schedules", pairs, text, size, seed)
    print(f"\n{' with '.join(PAIR)}, {long[0]} hidden units, all of the training text")
    ids, V, _, cut = split(text)
    params, _ = fit(ids[:cut], V, *PAIR, long, seed, name="long run")
    nats = nlm_score(ids[cut - CONTEXT :], params, CONTEXT)
    scores = f"{nats:.3f} nats/char | {nats / LN2:.3f} bits/char | perplexity {math.exp(nats):.2f}"
    print(f"\nheld-out: {scores}   (stage 4, the neural n-gram under {PAIR[0]})")


def main(argv=None):
    """Race the optimizers and report (half a minute)."""
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
        check_count("--seed", args.seed, least=0)
        text = Path(args.text).read_text(encoding="utf-8")[: 40000 if args.fast else None]
        if len(text) < 250:
            raise ValueError(f"the text has {len(text)} characters; expected at least 250")
        print("Stage 4: ways down, measured")
        report_rates((100.0,) if args.fast else (100.0, 10000.0))
        report_race(100 if args.fast else 500)
        report_language(text, args.fast, args.seed)
        sys.stdout.flush()
    except (KeyboardInterrupt, OSError, ValueError) as error:
        try:
            sys.stdout.flush()
        except OSError:  # a closed pipe, a full disk: Python's own flush must not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, KeyboardInterrupt):
            parser.exit(130, "\n")
        if not isinstance(error, BrokenPipeError):  # then whoever was reading has seen enough
            parser.error(str(error))


# %% What to take away
# θ ← θ - η·g goes down while η < 2/Λ, in a number of steps like κ; momentum needs √κ. Adam moves a
# coordinate by about η, AdamW decays beside it, Muon treats a matrix as one thing. Noise leaves a
# cloud of size η/B: let η fall. Which one, when? The rate matters more, so sweep it first.
#     images, or little memory     SGD with Nesterov 0.9 and a cosine, or Lion: one slot
#     transformers, or in doubt    AdamW, betas (0.9, 0.95), decay 0.1 on matrices, clipping at 1,
#                                  warmup, then cosine (length known) or WSD (length open)
#     large matrices, tuned runs   Muon for the hidden matrices, AdamW for the rest
#     features seldom seen         AdaGrad or Adam, which keep a large rate for them

# %% Common mistakes
# 1. Adam's weight_decay taken for AdamW's: it decays too little or too much. See `decoupled`.
# 2. No bias correction: the first steps are 3.2 to 6.6 times too long. See Adam.update.
# 3. `p = p - lr * g` makes a new array, the model keeps the old one: the loss stays. See `p -=`.
# 4. Clipping array by array, or piece by piece: the direction turns. See clip_grad_norm.
# 5. A checkpoint without m, v and t: the loss jumps on resuming. See state_dict.
# 6. The rate chosen on the held-out text whose score is reported: too good. See `tune`.
# 7. Decay on biases and on the gains of norms: channels fade. See adamw_groups.

# %% Exercises
# They are in exercises/stage04.py, and `python exercises` checks them.
#  1. ★ (by hand) Three steps of a ball
#  2. ★ (by hand) What the optimizer keeps
#  3. ★ (derive) The valley that suits a momentum
#  4. ★ (implement) A batch in pieces
#  5. ★★ (find the bug) Right on paper, explodes in training
#  6. ★★ (explain) Seven steps
#  7. ★★ (implement) Restarts
#  8. ★★ (derive) A fence around the weights
#  9. ★★ (measure) The ball that never arrives
# 10. ★★★ (derive) Noise, remembered
# 11. ★★ (research) An average for a falling rate
# 12. ★★★ (project) Faster down than the stage

# %% Where this leads
# Stage 5 goes beyond windows of 8 letters. Stage 8 takes pieces away to see what breaks.

if __name__ == "__main__":
    main()
