# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 2: differentiate. How does a program learn which way to turn each of its knobs?

A model is a function with knobs (parameters), and a loss says how wrong it is. The derivative of
the loss in a knob says how the loss answers a small turn of that knob; turn every knob a little
against its derivative, and the loss falls. This file finds derivatives twice: by hand, every rule
derived and models trained on the result; then by a program, for any formula, from the same rules.
The two agree, and one sweep back gives all derivatives at once. School algebra and Python suffice.

  On one page:  1 there and back
  By hand:      2 measuring a derivative  3 the rules  4 a line  5 yes or no  6 a hidden layer
  Automatic:    7 one rulebook  8 forward: Dual  9 reverse: Value  10 MLP  11 Tensor  12 testing it

Run `python stage02_autograd.py [--fast] [--seed N] [--dot FILE]`. Rests on: Linnainmaa's thesis
(1970), the first reverse mode; Rumelhart, Hinton, Williams, "Learning representations by back-
propagating errors" (1986); Griewank, Walther, "Evaluating Derivatives" (2008); Soudry et al., "The
implicit bias of gradient descent on separable data" (2018); Karpathy's micrograd (2020).
"""

import argparse
import math
import numbers
import os
import re
import sys
import timeit
from functools import partial
from types import SimpleNamespace

import numpy as np

# %% 1. There and back
# Take y = (a·b)·a at a = 3 and b = 2. How does y answer when we turn a a little, or b?
# First go forward, one operation at a time, as a computer does: m = a·b = 6, then y = m·a = 18.
# Then go back. Ask at each number how many times as fast as it y changes; call that its gradient.
#     y itself changes as fast as y: its gradient is 1.
#     In y = m·a, y changes a = 3 times as fast as m, so the gradient of m is 3·1 = 3. In the same
#     way y changes m = 6 times as fast as this a, so a gets 6·1 = 6.
#     In m = a·b, m changes b = 2 times as fast as a, and y changes 3 times as fast as m. So a gets
#     2·3 = 6 more, which makes 12. In the same way b gets a·3 = 9.
# You can check it: a = 3.001 makes y = 18.012 (and a little), and b = 2.001 makes y = 18.009.
# Two things happened. Along one way back the slopes were multiplied, as in 2·3. And since two ways
# lead back to a, what arrived on them was added, 6 + 6. In code, each operation leaves behind a
# function that hands the gradient of its result back to the two numbers it was made from:


class Number:
    """A number; one made by an operation can hand its gradient back to those it was made from."""

    def __init__(self, data):
        self.data = data
        self.grad = 0.0

    def __mul__(self, other):
        out = Number(self.data * other.data)

        def hand_back():
            self.grad += other.data * out.grad
            other.grad += self.data * out.grad

        out.hand_back = hand_back
        return out


#     a, b = Number(3.0), Number(2.0)
#     m = a * b          # m.data = 6
#     y = m * a          # y.data = 18
#     y.grad = 1.0
#     y.hand_back()      # m.grad = 3, a.grad = 6
#     m.hand_back()      # a.grad = 12, b.grad = 9
# This is backpropagation. Left to say: why slopes multiply along a way and add over ways (section
# 3), what for (4 to 6), who calls hand_back and when (9), arrays (11), and how to be sure (2, 12).

# %% 2. The derivative, and how to measure it
# Turn the input of f from x to x + h. Per unit of turning, f changes by (f(x+h) - f(x)) / h. If
# this ratio settles on one number as h shrinks to 0, that number is the derivative of f at x:
#     f′(x) = lim_{h→0} (f(x+h) - f(x)) / h.
# For f = x² the ratio is ((x+h)² - x²)/h = (2xh + h²)/h = 2x + h, and it settles on 2x.
# Call ε(h) what is still missing, the ratio minus f′(x), and let ε(0) = 0. Then, solved for f(x+h),
#     f(x+h) = f(x) + (f′(x) + ε(h))·h     with ε(h) → 0 as h → 0.                             (1)
# What is in ε? Let f″ be the derivative of f′, and f‴ that of f″. Taylor's formula (1715; any book
# on calculus proves it) says that for small h a smooth f is nearly a polynomial in h:
#     f(x+h) = f + h·f′ + h²/2·f″ + h³/6·f‴ + a rest of the order of h⁴,  with f, f′, ... all at x.
# Insert it into two ways of measuring f′, and you see how far off they are:
#     forward:  (f(x+h) - f(x)) / h      = f′ + h/2·f″  + ...   half the h makes half the error;
#     central:  (f(x+h) - f(x-h)) / (2h) = f′ + h²/6·f‴ + ...   half the h makes a quarter of it.
# But h cannot be too small, for floats are rounded. Each f is off by up to r·|f|, where r = 2⁻⁵³ ≈
# 1.1e-16, and a division by a small h magnifies that. All in all the central error is at most about
# h²/6·|f‴| + r·|f|/h. As h shrinks, the first part falls and the second grows. They are equal at
#     h³ = 6r·|f|/|f‴|.  If f and f‴ are near 1, h is near r^⅓ ≈ 5e-6 and the error near 2e-11.
# And if they are not? ln at 0.000001 has f‴ = 2e18, and x - h would not even have a logarithm. So
# we measure with h = r^⅓ (relative to x, if x is large), with a tenth of it, a hundredth and so on.
# We doubt each slope by how much it differs from the next one, plus what rounding may have done to
# that next one, and believe the slope that is doubted least.


def real_array(x):
    """x as an array of floats: floats keep their width, integers and bools become float64."""
    x = np.asarray(x)
    if x.dtype.kind not in "biuf":
        raise ValueError(f"expected real numbers, got {x.dtype} data")
    return x if x.dtype.kind == "f" else x.astype(np.float64)


def central_slope(f, x, h):
    """(f(x+h) - f(x-h)) / 2h, or nan if f does not reach so far."""
    left, right = x - h, x + h
    try:
        return (f(right) - f(left)) / (right - left)  # which is 2h, as rounding left it
    except (ValueError, ArithmeticError):  # as math.log says that it was asked for ln 0
        return math.nan


@np.errstate(all="ignore")  # outside its domain a NumPy function gives nan
def measured_slope(f, x):
    """f′(x) at a number x by central differences, with the best of 16 steps. ValueError unless f is
    one finite number at x and on both sides. At a kink, the mean of its two slopes."""
    y = f(x)
    if np.ndim(y) or not math.isfinite(y):
        raise ValueError(f"expected one finite number as f({x:g}), got {y!r}")
    steps = [2.0 ** (-53 / 3) * max(1.0, abs(x)) / 10.0**k for k in range(16)]
    slopes = [central_slope(f, x, step) for step in steps]
    best, least_doubt = math.nan, math.inf
    for slope, finer, step in zip(slopes, slopes[1:], steps[1:]):
        rounding = 2.0**-53 * (abs(y) + abs(x * finer)) / step  # of f, and of x
        doubt = abs(finer - slope) + rounding
        if doubt < least_doubt:  # never true for nan
            best, least_doubt = slope, doubt
    if math.isnan(best):
        raise ValueError(f"f has no slope at {x:g}: it is not finite on both sides")
    return best


def numerical_gradient(f, x):
    """measured_slope of f(x), one number, in each entry of x (a number or an array), in float64."""
    x = real_array(x).astype(np.float64)
    grad = np.empty_like(x)
    for i in np.ndindex(x.shape):

        def along(entry, i=i):
            moved = x.copy()
            moved[i] = entry
            return f(moved if x.ndim else entry)

        grad[i] = measured_slope(along, float(x[i]))
    return grad if x.ndim else float(grad)


# %% 3. The rules, and the chain rule
# Let f, g be values at x, and f₊, g₊ those at x + h; by (1), f₊ → f as h → 0. Each rule writes the
# ratio of the definition so that one can see where it goes:
#     constant    (c - c)/h = 0, and for x itself (x + h - x)/h = 1           c′ = 0, x′ = 1
#     sum         (f₊ + g₊ - f - g)/h = (f₊-f)/h + (g₊-g)/h                   (f+g)′ = f′ + g′
#     product     (f₊g₊ - fg)/h = (f₊-f)/h·g₊ + f·(g₊-g)/h                    (fg)′ = f′g + fg′
#     reciprocal  (1/g₊ - 1/g)/h = -(g₊-g)/h / (g₊·g)                         (1/g)′ = -g′/g²
#     quotient    f·(1/g), product and reciprocal: f′/g - f·g′/g²     (f/g)′ = (f′g - fg′)/g²
#     exponential (eˣ⁺ʰ - eˣ)/h = eˣ·(eʰ-1)/h; e is defined by (eʰ-1)/h → 1   (eˣ)′ = eˣ
#     logarithm   Let k = ln(x+h) - ln x. Then h = eᵏ·x - x, and the ratio is
#                 k/h = (1/x) / ((eᵏ-1)/k), where k → 0 with h (*)            (ln x)′ = 1/x
#     sine        sin(x+h) = sin x·cos h + cos x·sin h makes the ratio
#                 sin x·(cos h - 1)/h + cos x·(sin h)/h → 0 + cos x (**)      (sin x)′ = cos x
# (*) Whatever small δ > 0 we choose: as eˣ grows, |k| < δ once x·e^-δ < x + h < x·e^δ.
# (**) (sin h)/h → 1 and (cos h - 1)/h → 0 follow from three areas in the unit circle: exercise 4.
# The chain rule. Let u = g(x) and y = f(u). When x moves by h, then by (1) u moves by some k =
# (g′(x) + ε₁(h))·h, and so y moves by (f′(u) + ε₂(k))·k, by (1) again. Insert k and divide by h:
#     (y₊ - y)/h = (f′(u) + ε₂(k))·(g′(x) + ε₁(h))  →  f′(u)·g′(x),   as h → 0 makes k → 0.
# (We never divided by k, which may be 0.) Now take n functions, one after the other: x₀ = x, then
# x₁ = f₁(x₀), x₂ = f₂(x₁) and so on. The result xₙ has, as a function of x, the derivative
#     fₙ′(xₙ₋₁)· ... ·f₂′(x₁)·f₁′(x₀).                                                         (2)
# For n = 1 there is nothing to show. If it holds for n - 1 functions, it holds for n: by the rule
# for two, the last function multiplies the derivative of xₙ₋₁ by its slope fₙ′(xₙ₋₁). ∎ So along
# one way, the derivative of any program is a product of local slopes. Four more rules follow:
#     cosine      cos x = sin(x + π/2), and cos(x + π/2) = -sin x             (cos x)′ = -sin x
#     power       xᵃ = e^(a·ln x), slope xᵃ·a/x (x < 0: product rule)         (xᵃ)′ = a·xᵃ⁻¹
#     sigmoid     σ = 1/(1+e⁻ˣ): σ′ = e⁻ˣ/(1+e⁻ˣ)² = σ·e⁻ˣ/(1+e⁻ˣ)            σ′ = σ(1-σ)
#     tanh        tanh x = 2σ(2x) - 1 = y: y′ = 4σ(1-σ), where σ = (1+y)/2    tanh′ = 1 - y²
# Several ways. Let v feed both s = g(v) and t = q(v), which feed L = L(s, t), all smooth. We write
# ∂L/∂s for the derivative of L when s alone is turned. When v moves by h, s moves by about g′·h and
# t by about q′·h. Move s first: L changes by about ∂L/∂s·g′·h. Then move t: L changes by about
# ∂L/∂t·q′·h. (Its slope is now taken at the moved s, but nearly the same there.) What "about" hides
# vanishes faster than h. So what comes over different ways ADDS, for two ways and for more:
#     ∂L/∂v = Σ over all u that use v of  ∂L/∂u · ∂u/∂v.                                       (3)
# Multiply along a way (2), add over ways (3): that is all of backpropagation.

# %% 4. Descending: a straight line through points
# Call the knobs of a model θ₁, θ₂, ..., and their derivatives ∂L/∂θᵢ together the gradient. Turn
# each knob by a small δᵢ. By (3) the loss changes by about Σ ∂L/∂θᵢ·δᵢ. Now choose δᵢ = -η·∂L/∂θᵢ,
# against the derivative, with a rate η > 0. The change is about -η·Σ (∂L/∂θᵢ)², never positive:
# the loss falls, if η is small enough for "about" to hold. Repeated, this is gradient descent.
# The first model is a neuron, ẑᵢ = Σ_d w_d·Xᵢ_d + b, for N rows X of D numbers each. With D = 1 it
# is a straight line. Its loss is the mean squared error, L = (1/N)·Σᵢ(ẑᵢ - yᵢ)². From here on dv
# means ∂L/∂v, whatever v is. One term of the sum contains ẑᵢ, so
#     dẑᵢ = (2/N)·(ẑᵢ - yᵢ).
# Every ẑᵢ uses w_d with slope Xᵢ_d, and b with slope 1. Only ẑᵢ uses Xᵢ_d, with slope w_d. So
#     dw_d = Σᵢ dẑᵢ·Xᵢ_d,        db = Σᵢ dẑᵢ,        dXᵢ_d = dẑᵢ·w_d.


def neuron_forward(X, w, b):
    """z = X·w + b (N,) for rows X (N, D), weights w (D,) and a number b; returns (z, cache)."""
    return X @ w + b, (X, w)


def neuron_backward(dz, cache):
    """From dz (N,): (dX (N, D), dw (D,), db)."""
    X, w = cache
    return np.outer(dz, w), dz @ X, np.sum(dz)


def pair_up(z, y):
    """z and y as arrays. ValueError unless they have one shape, and at least one entry."""
    z, y = real_array(z).astype(np.float64), real_array(y).astype(np.float64)
    if z.shape != y.shape or not z.size:
        raise ValueError(f"expected one answer per output, got {y.shape} for {z.shape}")
    return z, y


def mse(z, y):
    """Mean squared error of outputs z of any shape, and its gradient dz."""
    z, y = pair_up(z, y)
    return np.mean((z - y) ** 2), 2 / z.size * (z - y)


def loss_and_grads(model, params, X, y):
    """Loss and gradients of model = (forward, backward, loss); params in forward's order."""
    forward, backward, measure = model
    z, cache = forward(X, *params.values())
    loss, dz = measure(z, y)
    _, *dparams = backward(dz, cache)  # dX is for layers below, and there are none
    return float(loss), dict(zip(params, dparams))


@np.errstate(over="ignore", invalid="ignore")  # what overflows is refused below
def gradient_descent(model, params, X, y, learning_rate, steps):
    """Repeat θ ← θ - η·dθ; returns (new params, list of the loss before every step).
    ValueError for a bad rate, or as soon as the loss or a parameter is not finite."""
    if not isinstance(learning_rate, numbers.Real) or not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a number > 0, got {learning_rate!r}")
    X, losses = real_array(X).astype(np.float64), []
    for step in range(steps):
        loss, grads = loss_and_grads(model, params, X, y)
        params = {name: theta - learning_rate * grads[name] for name, theta in params.items()}
        if not all(np.all(np.isfinite(value)) for value in [loss, *params.values()]):
            raise ValueError(f"loss {loss} at step {step}: learning_rate={learning_rate} too big?")
        losses.append(loss)
    return params, losses


# %% 5. One neuron that says yes or no: logistic regression
# Now the answer y is 1 (yes) or 0 (no), and we want p, the probability of a yes, between 0 and 1. A
# neuron gives any number z. So let z be the logarithm of the odds, z = ln(p/(1-p)). Then p/(1-p) =
# eᶻ, and solving for p gives the sigmoid, p = 1/(1+e⁻ᶻ) = σ(z). The model gave the answer yᵢ the
# probability pᵢ if yᵢ = 1, and 1-pᵢ if yᵢ = 0. The product of all these is the probability of all
# answers. We want it large, so we make the mean of its negative logarithm small, the cross-entropy:
#     L = -(1/N)·Σᵢ [yᵢ·ln pᵢ + (1-yᵢ)·ln(1-pᵢ)].
# Since p = eᶻ/(1+eᶻ) and 1-p = 1/(1+eᶻ), one term is ℓ = -y·z + ln(1+eᶻ), and its slope is
#     ∂ℓ/∂z = eᶻ/(1+eᶻ) - y = p - y,          prediction minus truth, as for the straight line.
# The slope grows with z, as p does. So ℓ is one valley in z, and L is one in w and b: nowhere else
# can we be caught. At its bottom db = Σ (pᵢ-yᵢ)/N = 0: the mean prediction is the share of yeses.


def sigmoid(z, exp=np.exp):
    """1/(1+e⁻ᶻ) of a number or array; only e^(-|z|) ≤ 1 is computed, so nothing overflows."""
    z = z if isinstance(z, float) else real_array(z)
    e = exp(-abs(z))
    return ((z >= 0) + (z < 0) * e) / (1.0 + e)  # 1/(1+e⁻ᶻ), or for z < 0 the same eᶻ/(eᶻ+1)


def cross_entropy(z, y):
    """Mean loss in nats of answers y ∈ {0, 1} under p = σ(z), any shape, and its gradient dz."""
    z, y = pair_up(z, y)
    if not np.all((y == 0) | (y == 1)):
        raise ValueError(f"answers must be 0 or 1, got {np.unique(y)}")
    loss = np.mean(np.logaddexp(0.0, z) - y * z)  # logaddexp(0, z) is ln(e⁰+eᶻ) without overflow
    return loss, (sigmoid(z) - y) / z.size


# College admission: learn from five applicants (the course's; today's SAT ends at 1600) which score
# admits. On raw scores dw would be a thousand times db, and no rate suit both. So we standardise:
# x = (score - mean)/deviation, here with 1300 and √80000. The boundary has p = ½, or w·x + b = 0.
SAT, ADMITTED = np.array([900, 1100, 1300, 1500, 1700]), np.array([0, 0, 1, 1, 1])


def admission(steps=1000, learning_rate=1.0, score=1200):
    """Train on the five applicants: w, b, the boundary in points, and p(admitted | score)."""
    mean, deviation, score = SAT.mean(), SAT.std(), real_array(score)
    X = (SAT[:, None] - mean) / deviation  # (5, 1)
    model, start = (neuron_forward, neuron_backward, cross_entropy), {"w": np.zeros(1), "b": 0.0}
    params, _ = gradient_descent(model, start, X, ADMITTED, learning_rate, steps)
    w, b = float(params["w"][0]), float(params["b"])
    boundary = float(mean - b / w * deviation) if w else math.nan
    p = float(sigmoid(w * (score - mean) / deviation + b))
    return {"w": w, "b": b, "boundary": boundary, "probability": p}


# There is a catch. Any boundary between 1100 and 1300 is right about all five, and then doubling w
# and b only makes right answers surer. The loss has no minimum: w and b grow for ever, ever more
# slowly (like ln t after t steps). Only b/w settles, and with it the boundary. Where?
# Call w·x + b for a yes, and -(w·x + b) for a no, the margin of a point. Soudry et al. prove that
# (w, b), as an arrow, turns towards the shortest arrow with all margins at least 1.
#     Here the nearest yes, x = 0, asks for b ≥ 1. The nearest no, x = -1/√2, asks for w/√2 - b ≥ 1.
#     The shortest pair is b = 1, w = 2√2: boundary x = -1/√8, score 1200, the middle of the gap.
#     It is not always the middle: a no at x = -1 and a yes at 5 ask for w - b ≥ 1 and 5w + b ≥ 1.
#     The shortest pair is w = ½, b = -½, and the boundary is 1, where the middle would be 2.
# One would now expect p(1200) to go to ½. But while the boundary nears 1200, w grows. In the end
# only the two nearest points count, with |y - p| ≈ e^(-margin): call it q₁ for the yes and q₂ for
# the no. A step moves (w, b) along q₁·(0, 1) + q₂·(1/√2, -1). This must be c·(2√2, 1) for some c:
# q₂/√2 = 2√2·c and q₁ - q₂ = c, hence q₂ = 4c and q₁ = 5c. As q₁ is 5/4 of q₂, the margin of the
# yes stays ln(5/4) below that of the no. At 1200, z = b - w/√8 is half their difference, which is
# b - (w/√2 - b). So z → -½·ln(5/4), and p → 1/(1 + √(5/4)) = 0.4721.

# %% 6. A hidden layer: curves, several outputs, and why the non-linearity is needed
# A line cannot bend. So let J hidden neurons each bend at a place of their own, and add them up.
# For rows X (N, D), K outputs, and a φ that bends, such as tanh or relu(a) = max(a, 0), this means
#     Aᵢⱼ = Σ_d Xᵢ_d·W_dⱼ + bⱼ,      Hᵢⱼ = φ(Aᵢⱼ),      Zᵢₖ = Σⱼ Hᵢⱼ·Vⱼₖ + cₖ,
# or as products of matrices, A = X W + b (N, J) and Z = H V + c (N, K). Going back from dZ, ask of
# each number who uses it and with which slope; (2) and (3) do the rest:
#     Vⱼₖ is used by Zᵢₖ in every row i, with slope Hᵢⱼ:       dVⱼₖ = Σᵢ Hᵢⱼ·dZᵢₖ
#     cₖ is used by Zᵢₖ in every row i, with slope 1:          dcₖ = Σᵢ dZᵢₖ
#     Hᵢⱼ is used by Zᵢₖ for every output k, with slope Vⱼₖ:   dHᵢⱼ = Σₖ dZᵢₖ·Vⱼₖ
#     Aᵢⱼ is used by Hᵢⱼ alone:                                dAᵢⱼ = dHᵢⱼ·φ′(Aᵢⱼ)
# And X, W, b make A just as H, V, c make Z. So for any product of matrices Z = H V (and with ᵀ for
# "rows and columns exchanged") the first and the third line say
#     dV = Hᵀ dZ,        dH = dZ Vᵀ.                                                           (4)
# Why must φ bend? Without it Z = (X W + b) V + c = X (W V) + (b V + c): any stack of linear layers
# is ONE linear layer, which says yes on one side of a straight line. That cannot do XOR, which is
# yes at (1,1) and (-1,-1), no at (1,-1) and (-1,1). If z = w·x + b were right at all four points,
# z(1,1) + z(-1,-1) = 2b would be positive, and z(1,-1) + z(-1,1) = 2b negative. Impossible.

BENDS = {  # φ, and its slope φ′(a) written in the result h = φ(a)
    "tanh": (np.tanh, lambda h: 1.0 - h * h),
    "relu": (lambda a: np.maximum(a, 0.0), lambda h: np.where(h > 0, 1.0, 0.0)),
    "none": (lambda a: a, lambda h: np.ones_like(h)),
}


def network_forward(X, W, b, V, c, bend="tanh"):
    """Z (N, K) for X (N, D) and W (D, J), b (J,), V (J, K), c (K,); returns (Z, cache)."""
    if bend not in BENDS:
        raise ValueError(f"bend must be one of {', '.join(BENDS)}, got {bend!r}")
    phi, _ = BENDS[bend]
    H = phi(X @ W + b)  # (N, J)
    return H @ V + c, (X, W, V, H, bend)


def network_backward(dZ, cache):
    """From dZ (N, K): (dX (N, D), dW (D, J), db (J,), dV (J, K), dc (K,))."""
    X, W, V, H, bend = cache
    _, slope = BENDS[bend]
    dH = dZ @ V.T  # (N, J)
    dA = dH * slope(H)  # (N, J)
    return dA @ W.T, X.T @ dA, dA.sum(axis=0), H.T @ dZ, dZ.sum(axis=0)


# %% 7. Part two: one rulebook
# All that was mechanical, so let a program do it: with numbers of our own, which overload + * exp
# and the rest. An operation y = y(a, b) computes y and, by section 3, its local slopes ∂y/∂a and
# ∂y/∂b. What is then DONE with the slopes is the whole difference between three engines:
#     Dual    multiplies each by a derivative it already carries, at once        (forward mode)
#     Value   stores each with a pointer to its input, to be multiplied later    (reverse mode)
#     Tensor  is Value over arrays: an elementwise operation has a slope per entry
# So the operations stand here once. Each hands its result and slopes over to self._node, of which
# each engine has its own. `lib` is where it finds exp and the like, in math or in NumPy.


def operation(name, rule):
    """A method for rule(lib, x) = (y, ∂y/∂x) or rule(lib, a, b) = (y, ∂y/∂a, ∂y/∂b)."""

    def method(self, *other):
        if not other:
            y, slope = rule(self.lib, self.data)
            return self._node(name, y, (self,), (slope,))
        b = other[0] if type(other[0]) is type(self) else self._lift(other[0])
        if b is NotImplemented:  # no number: let Python ask it, or complain
            return NotImplemented
        y, *slopes = rule(self.lib, self.data, b.data)
        return self._node(name, y, (self, b), slopes)

    return method


def real(x):
    """x as a float. ValueError unless it is one real number."""
    if type(x) in (float, int, bool):  # nearly always
        return float(x)
    if np.ndim(x) or np.asarray(x).dtype.kind not in "biuf":
        raise ValueError(f"expected a real number, got {x!r}")
    return float(x)


class Operators:
    """Section 3 in code: the result first, then a slope per input. ValueError where no real result
    exists; Python's own errors, as of 1/0, stay. At its kink relu gets the slope 0."""

    __slots__ = ()
    lib = SimpleNamespace(exp=math.exp, log=math.log, sin=math.sin, cos=math.cos, tanh=math.tanh)
    lib.maximum, lib.power = max, lambda x, n: x**n if x or n >= 0 else math.inf  # √x rises at 0

    def _lift(self, x):
        if isinstance(x, type(self)):
            return x
        return type(self)(x) if isinstance(x, numbers.Real) else NotImplemented

    __add__ = operation("+", lambda lib, a, b: (a + b, 1.0, 1.0))
    __sub__ = operation("-", lambda lib, a, b: (a - b, 1.0, -1.0))
    __mul__ = operation("*", lambda lib, a, b: (a * b, b, a))
    __truediv__ = operation("/", lambda lib, a, b: (a / b, 1.0 / b, -(a / b) / b))
    __radd__, __rmul__ = __add__, __mul__  # b∘a where b is a plain number: Python asks a
    __rsub__ = operation("-", lambda lib, a, b: (b - a, -1.0, 1.0))
    __rtruediv__ = operation("/", lambda lib, a, b: (b / a, -(b / a) / a, 1.0 / a))
    __neg__ = operation("neg", lambda lib, x: (-x, -1.0))
    exp = operation("exp", lambda lib, x: (y := lib.exp(x), y))
    sin = operation("sin", lambda lib, x: (lib.sin(x), lib.cos(x)))
    cos = operation("cos", lambda lib, x: (lib.cos(x), -lib.sin(x)))
    tanh = operation("tanh", lambda lib, x: (y := lib.tanh(x), 1.0 - y * y))
    sigmoid = operation("sigmoid", lambda lib, x: (y := sigmoid(x, lib.exp), y * (1.0 - y)))
    relu = operation("ReLU", lambda lib, x: (lib.maximum(x, 0.0), 1.0 * (x > 0)))

    def log(self):
        if not np.all(self.data > 0):
            raise ValueError(f"log needs x > 0, got {np.min(self.data)}")
        return self._node("log", self.lib.log(self.data), (self,), (1.0 / self.data,))

    def __pow__(self, n):
        if not isinstance(n, numbers.Real):
            n = self._lift(n)
            return n if n is NotImplemented else n.__rpow__(self)
        x, n = self.data, float(n)
        if not n.is_integer() and np.any(x < 0):
            raise ValueError(f"a base < 0 needs a whole exponent, got {np.min(x)} ** {n}")
        slope = n * self.lib.power(x, n - 1.0) if n else 0.0
        return self._node(f"**{n:g}", x**n, (self,), (slope,))

    def __rpow__(self, base):
        base = self._lift(base)
        if base is NotImplemented:
            return NotImplemented
        b, n = base.data, self.data
        by_n = b**n * (base + (b == 0)).log().data  # bⁿ·ln b, but 0 at b = 0, where 0ⁿ stays 0
        by_b = n * self.lib.power(b, n - 1.0 + (n == 0))  # n = 0: 0·b⁰, as 0·b⁻¹ may be 0·∞
        return self._node("**", b**n, (base, self), (by_b, by_n))

    def __repr__(self):
        gradient = self.__slots__[1]
        return f"{type(self).__name__}(data={self.data}, {gradient}={getattr(self, gradient)})"


# %% 8. Forward mode: a number and its derivative, hand in hand
# Give every number x its derivative ẋ in the one input we ask about: 1 for that input, 0 for other
# inputs and constants. For y = y(a, b), (3) says ẏ = ∂y/∂a·ȧ + ∂y/∂b·ḃ. Such a pair is called dual.
# A program with inputs x and outputs y has a table of derivatives, its Jacobian Jᵢⱼ = ∂yᵢ/∂xⱼ. One
# forward pass with tangents ẋ computes J·ẋ, a Jacobian-vector product, and never needs J itself.


class Dual(Operators):
    """A number `data` and the derivative `tangent` it carries along."""

    __slots__ = ("data", "tangent")

    def __init__(self, data, tangent=0.0):
        self.data, self.tangent = real(data), real(tangent)

    def _node(self, op, y, inputs, slopes):
        return Dual(y, sum([slope * x.tangent for x, slope in zip(inputs, slopes)]))


# %% 9. Reverse mode: remember, then sweep back
# Read (3) from the other end. Let v̄ = ∂L/∂v, the adjoint of v: L̄ = 1 and v̄ = Σ ū·∂u/∂v over the
# users u of v. If we visit users before what they use, every ū in the sum is final when we reach v,
# and so v̄ becomes final. For such an order, search depth first, write down each node once all it
# depends on is written down (this is called a topological order), and read the list in reverse.
# (We keep our own stack, as Python's holds only a thousand calls, and chains are longer.)
# The cost. The graph of f: ℝⁿ → ℝᵐ has an edge per (user, input), at most two per operation. A
# forward pass uses each of the E edges once and gives a column of J, ALL outputs by ONE input. A
# sweep uses each once and gives a row, ONE output by ALL inputs (or ȳ·J, if it starts with ȳ at
# several outputs). So all n·m derivatives take n·E multiplications forward and m·E in reverse, and
# a loss has m = 1. The price is the record: memory for every slope, an object for every number.


def topological_order(root):
    """Every node root depends on, inputs before users, root last; any depth."""
    order, seen, stack = [], set(), [root]
    while stack:
        node = stack.pop()
        if node is None:  # all that the node below it depends on is written down
            order.append(stack.pop())
        elif node not in seen:
            seen.add(node)
            stack += [node, None, *node._prev]
    return order


def sweep(root, seed, times):
    """Yield (v, v̄) from root to inputs; times(slope, ū) is ū·∂u/∂v for one edge."""
    adjoint = {root: seed}
    for u in reversed(topological_order(root)):
        u_bar = adjoint.pop(u)  # final: all users of u came before
        yield u, u_bar
        if len(u._slopes) != len(u._prev):
            raise ValueError(f"{u._op!r} has {len(u._prev)} inputs, but {len(u._slopes)} slopes")
        for v, slope in zip(u._prev, u._slopes):
            term = times(slope, u_bar)
            adjoint[v] = adjoint[v] + term if v in adjoint else term


class Value(Operators):
    """A number that remembers how it was made: `data`, and `grad` after backward() of a result."""

    __slots__ = ("data", "grad", "label", "_prev", "_op", "_slopes")

    def __init__(self, data, _children=(), _op="", label="", _slopes=()):
        self.data, self.grad = real(data), 0.0
        self._prev, self._op, self.label, self._slopes = tuple(_children), _op, label, _slopes

    def _node(self, op, y, inputs, slopes):
        return Value(y, inputs, op, "", slopes)

    def backward(self):
        """Add ∂self/∂v to v.grad for every v it depends on (self too); twice adds it twice."""
        for v, v_bar in sweep(self, 1.0, lambda slope, u_bar: slope * u_bar):
            v.grad += v_bar


def draw(root):
    """The graph behind a Value as text: a line per node, its gradient (adjoint), its slopes."""
    name = {v: v.label or f"v{i}" for i, v in enumerate(topological_order(root))}
    lines = ["node     operation        value     adjoint   local slopes"]
    for v, v_name in name.items():
        made = f"{v._op} of {', '.join(name[x] for x in v._prev)}" if v._op else "input"
        slopes = [f"∂{v_name}/∂{name[x]} = {d:.4g}" for x, d in zip(v._prev, v._slopes)]
        lines.append(f"{v_name:8} {made:12} {v.data:9.4g} {v.grad:11.4g}   {', '.join(slopes)}")
    return "\n".join(line.rstrip() for line in lines)


def to_dot(root):
    """The graph behind a Value as Graphviz text, for any viewer or `dot -Tsvg`."""
    name = {v: f"v{i}" for i, v in enumerate(topological_order(root))}
    lines = ["digraph {", "  rankdir=LR;"]
    for v, v_name in name.items():
        cells = [v.label, v._op, f"data {v.data:.4g}", f"grad {v.grad:.4g}"]
        record = " | ".join(re.sub(r'([\\{}|<>"])', r"\\\1", cell) for cell in cells if cell)
        lines.append(f'  {v_name} [shape=record, label="{{ {record} }}"];')
        for x, slope in zip(v._prev, v._slopes):
            lines.append(f'  {name[x]} -> {v_name} [label="{slope:.4g}"];')
    return "\n".join([*lines, "}"])


# %% 10. Neuron, Layer, MLP
# A network without a line of calculus, after micrograd; a `seed` is an int, or a Generator that
# neurons share so that they start unequal (equal ones would stay equal). It learns like this:
#     loss = sum((net(x) - y) ** 2 for x, y in data)
#     net.zero_grad()
#     loss.backward()
#     for p in net.parameters(): p.data -= learning_rate * p.grad


class Module:
    """Whatever has parameters() of which backward() adds up gradients, its own or its parts'."""

    def parameters(self):
        return [p for part in self.parts for p in part.parameters()]

    def zero_grad(self):
        for p in self.parameters():
            p.grad = 0.0

    def __repr__(self):
        return f"{type(self).__name__} of {len(self.parameters())} numbers"


class Neuron(Module):
    """w·x + b for a list x of nin numbers or Values, then relu if nonlin; w in (-1, 1), b = 0."""

    def __init__(self, nin, nonlin=True, seed=0):
        self.w = [Value(w) for w in np.random.default_rng(seed).uniform(-1, 1, size=nin)]
        self.b, self.nonlin = Value(0.0), nonlin

    def __call__(self, x):
        if len(x) != len(self.w):
            raise ValueError(f"expected {len(self.w)} inputs, got {len(x)}")
        z = sum((wi * xi for wi, xi in zip(self.w, x)), self.b)
        return z.relu() if self.nonlin else z

    def parameters(self):
        return [*self.w, self.b]


class Layer(Module):
    """nout neurons on the same inputs; a layer of one returns its Value, not a list."""

    def __init__(self, nin, nout, seed=0, **kwargs):
        rng = np.random.default_rng(seed)
        self.parts = self.neurons = [Neuron(nin, seed=rng, **kwargs) for _ in range(nout)]

    def __call__(self, x):
        out = [neuron(x) for neuron in self.neurons]
        return out[0] if len(out) == 1 else out


class MLP(Module):
    """Layers of widths nouts on nin inputs, with relu between them; the last one is linear."""

    def __init__(self, nin, nouts, seed=0):
        widths = [nin, *nouts] if isinstance(nouts, (list, tuple)) else []
        if len(widths) < 2 or not all(isinstance(n, numbers.Integral) and n > 0 for n in widths):
            raise ValueError(f"expected a width > 0 and a list of them, got {nin!r} and {nouts!r}")
        rng = np.random.default_rng(seed)
        nonlin = [True] * (len(nouts) - 1) + [False]
        shapes = zip(widths, nouts, nonlin)
        self.parts = self.layers = [Layer(n, m, seed=rng, nonlin=bends) for n, m, bends in shapes]

    def __call__(self, x):
        for layer in self.layers:
            x = layer([x] if isinstance(x, Value) else x)  # after a layer of one
        return x


# %% 11. Tensor: the same over arrays
# A Python object per number is slow. Let a node hold an array: an edge then stores the function
# that takes ū to ū·∂u/∂v, a vector-Jacobian product.
#   elementwise   every entry has its own slope: ū * slope.   sum: slope 1, so spread ū out again.
#   broadcasting  an entry of v stretched over many entries of u is used by them all: (3), add.
#   matmul        (4): Ā = Ū Bᵀ, B̄ = Aᵀ Ū on the last two axes; batch axes broadcast as above.
#   max           slope 1 at the largest; k equal ones get ū/k each, the mean of the k choices.
#   indexing      ū goes back to where u's entries came from, ADDED where one was copied twice.


def unbroadcast(g, like):
    """Sum g over the axes along which `like` was stretched, into its shape and dtype."""
    new = g.ndim - like.ndim  # axes that `like` did not have
    axes = tuple(i for i in range(g.ndim) if i < new or g.shape[i] != like.shape[i - new])
    return g.sum(axis=axes).reshape(like.shape).astype(like.dtype, copy=False)


class Tensor(Operators):
    """An array that remembers how it was made: `data`, and `grad` after backward() of a result.
    Floats keep their dtype, integers become float64, no copies. ValueError for other data."""

    __slots__ = ("data", "grad", "label", "_prev", "_op", "_slopes")
    __array_ufunc__ = None  # array + Tensor is for Tensor.__radd__, not for NumPy
    lib = np
    shape = property(lambda self: self.data.shape)
    T = property(lambda self: self.transpose())

    def __init__(self, data, _children=(), _op="", label="", _slopes=()):
        self.data = real_array(data)
        self._prev, self._op, self.label, self._slopes = tuple(_children), _op, label, _slopes
        self.zero_grad()

    def zero_grad(self):
        self.grad = np.zeros_like(self.data)

    def __len__(self):
        return len(self.data)

    def item(self):
        return self.data.item()

    def _lift(self, x):
        if isinstance(x, (int, float)):  # a plain number leaves float32 float32
            x = np.asarray(x, dtype=self.data.dtype)
        if isinstance(x, (np.ndarray, np.generic, list)):
            x = Tensor(x)
        return x if isinstance(x, Tensor) else NotImplemented

    def _node(self, op, y, inputs, slopes):
        pulls = [lambda g, s=s, v=v.data: unbroadcast(g * s, v) for v, s in zip(inputs, slopes)]
        return Tensor(y, inputs, op, "", pulls)

    def backward(self, grad=None):
        """Add ∂(Σ grad·self)/∂v to every v.grad; only a single entry may go without `grad`."""
        grad = np.ones(self.shape) if grad is None and self.data.size == 1 else grad
        if np.shape(grad) != self.shape or grad is None:
            raise ValueError(f"backward() needs a gradient of shape {self.shape}, got {grad!r}")
        seed = np.asarray(grad, dtype=self.data.dtype)
        for v, v_bar in sweep(self, seed, lambda pull, u_bar: pull(u_bar)):
            if v_bar.shape != v.shape:
                raise ValueError(f"a gradient {v_bar.shape} came back to data {v.shape}, {v._op!r}")
            v.grad = np.asarray(v.grad + v_bar)

    def __matmul__(self, other):
        other = self._lift(other)
        if other is NotImplemented:
            return NotImplemented
        a, b = self.data, other.data
        if not a.ndim * b.ndim or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
            raise ValueError(f"expected (..., n, k) @ (..., k, m), got {a.shape} @ {b.shape}")
        if a.ndim == 1 or b.ndim == 1:  # a vector is a row on the left, a column on the right
            left = self if a.ndim > 1 else self.reshape(1, -1)
            right = other if b.ndim > 1 else other.reshape(-1, 1)
            return (left @ right).reshape((a @ b).shape)
        pulls = (
            lambda g: unbroadcast(g @ b.swapaxes(-1, -2), a),
            lambda g: unbroadcast(a.swapaxes(-1, -2) @ g, b),
        )
        return Tensor(a @ b, (self, other), "@", "", pulls)

    def __rmatmul__(self, other):
        other = self._lift(other)
        return other if other is NotImplemented else other @ self

    def sum(self, axis=None, keepdims=False):
        y = self.data.sum(axis=axis, keepdims=True)
        return self._node("sum", y, (self,), (np.ones_like(self.data),))._drop(axis, keepdims)

    def mean(self, axis=None, keepdims=False):
        total = self.sum(axis, keepdims)
        return total / (self.data.size // max(total.data.size, 1))

    def max(self, axis=None, keepdims=False):
        y = self.data.max(axis=axis, keepdims=True)
        ties = self.data == y
        slope = ties / ties.sum(axis=axis, keepdims=True)
        return self._node("max", y, (self,), (slope,))._drop(axis, keepdims)

    def _drop(self, axis, keepdims):
        return self if keepdims else self.reshape(self.data.squeeze(axis).shape)

    def reshape(self, *shape):
        y = self.data.reshape(*shape)
        return Tensor(y, (self,), "reshape", "", [lambda g: g.reshape(self.shape)])

    def transpose(self, *axes):
        sizes = np.empty(tuple(range(self.data.ndim)))  # here axis i has size i: order shows
        back = np.argsort(sizes.transpose(*axes).shape)
        y = self.data.transpose(*axes)
        return Tensor(y, (self,), "transpose", "", [lambda g: g.transpose(back)])

    def __getitem__(self, index):
        """Any NumPy index: integers, slices, masks, integer arrays (repeats allowed)."""

        def pull(g):
            dx = np.zeros_like(self.data)
            np.add.at(dx, index, g)
            return dx

        return Tensor(self.data[index], (self,), "[]", "", [pull])

    @staticmethod
    def concatenate(tensors, axis=0):
        """Tensors (or arrays) one after the other along an axis they have."""
        tensors = [x if isinstance(x, Tensor) else Tensor(x) for x in tensors]
        y = np.concatenate([x.data for x in tensors], axis=axis)
        ends = np.cumsum([x.shape[axis] for x in tensors])[:-1]
        places = [(k, x.data) for k, x in enumerate(tensors)]
        pulls = [lambda g, k=k, v=v: unbroadcast(np.split(g, ends, axis)[k], v) for k, v in places]
        return Tensor(y, tensors, "concatenate", "", pulls)


# %% 12. How to test an automatic derivative
# Four questions. Let B(f, x, w) be what backward(w) of f(x) leaves in x.grad.
#   accumulation  backward twice without zero_grad must double it. Catches `=` where `+=` belongs.
#   linearity     B(f, x, 2v + 3w) = 2·B(f, x, v) + 3·B(f, x, w). An operation that ignores its
#                 upstream passes every test that starts from a sum, where it is 1, but not this.
#   composition   B(g after f, x, w) = B(f, x, B(g, f(x), w)): one sweep is two, end to end. Catches
#                 a wrong order of visits, and adjoints used before they are final.
#   differences   Wrong slopes pass all three, so in the end measure (section 2), entry by entry.
# And if a long program fails? Test its first half alone, and go on halving, as in a dictionary.


def worst_entry(f, *arrays):
    """Where backward() and central differences differ most: (error, a sentence that says where).
    f takes a Tensor for each array and returns a Tensor (its entries count random amounts). An
    entry is judged relative to its own size, or to a thousandth of the output if that is more."""
    inputs = [Tensor(real_array(x).astype(np.float64)) for x in arrays]
    out = f(*inputs)
    weight, worst = np.random.default_rng(0).normal(size=out.shape), (0.0, "no entry differs")
    out.backward(weight)
    for k, x in enumerate(inputs):

        def loss(moved, k=k):
            return np.sum(weight * f(*inputs[:k], Tensor(moved), *inputs[k + 1 :]).data)

        a, n = x.grad, np.asarray(numerical_gradient(loss, x.data))
        scale = np.maximum(np.maximum(abs(a), abs(n)), np.linalg.norm(weight * out.data) / 1000)
        error = np.nan_to_num(abs(a - n) / np.where(scale > 0, scale, 1.0), nan=math.inf)
        for i in np.ndindex(x.shape):
            if error[i] > worst[0]:
                where = f"entry {i} of input {k}: backward {a[i]:.6g}, differences {n[i]:.6g}"
                worst = float(error[i]), where
    return worst


def grad_check(f, *arrays):
    """The largest error of worst_entry: below 1e-6 if right, 0.5 if a slope is twice too large."""
    return worst_entry(f, *arrays)[0]


# %% Demonstration


def on_tensors(X, y, params, loss, bend):
    """{name or formula: Tensor} of a model of sections 4 to 6, forward and back, by section 11."""
    nodes = {"X": Tensor(X), **{name: Tensor(value) for name, value in params.items()}}
    if "w" in params:
        Z = nodes["Z = X w + b"] = nodes["X"] @ nodes["w"] + nodes["b"]
    else:
        A = nodes["A = X W + b"] = nodes["X"] @ nodes["W"] + nodes["b"]
        H = nodes[f"H = {bend}(A)"] = {"tanh": A.tanh(), "relu": A.relu(), "none": A}[bend]
        Z = nodes["Z = H V + c"] = H @ nodes["V"] + nodes["c"]
    if loss is mse:
        L = nodes["L = mean (Z-y)²"] = ((Z - y) ** 2).mean()
    else:  # P is the probability of the true answer: 1 - σ(z) = σ(-z)
        P = nodes["P = σ(±Z)"] = ((2 * y - 1) * Z).sigmoid()
        L = nodes["L = -mean ln P"] = -P.log().mean()
    L.backward()
    return nodes


def trace(nodes):
    """Tensors by name as a table: what went forward, and beside it the gradient that came back."""
    lines = [f"   {'':18}{'forward':36}back: its gradient"]
    for name, node in nodes.items():
        for k, rows in enumerate(zip(np.atleast_2d(node.data), np.atleast_2d(node.grad))):
            left, right = ("".join(f"{number:8.3f}" for number in row) for row in rows)
            lines.append(f"   {'' if k else name:16}{left:36}{right}")
    return "\n".join(lines)


def text_plot(curves, rows=13, columns=76):
    """Draw a list of (x, y, mark) in text, later ones on top; x and y finite arrays."""
    xs, ys = (np.concatenate([curve[k] for curve in curves]) for k in (0, 1))
    width, height = np.ptp(xs) or 1.0, np.ptp(ys) or 1.0  # a single value fits any scale
    canvas = np.full((rows, columns), " ")
    for x, y, mark in curves:
        i = np.rint((ys.max() - y) / height * (rows - 1)).astype(int)
        canvas[i, np.rint((x - xs.min()) / width * (columns - 1)).astype(int)] = mark
    return "\n".join("  |" + "".join(row).rstrip() for row in canvas)


def report_paper(L):
    """Parts 1 to 3: a derivative measured, four models traced, a graph drawn."""
    print("1. Error of a derivative measured (of e^x at 1)\n\n        h     forward     central")
    for h in 10.0 ** -np.arange(1, 13, 2):
        slopes = (math.exp(1 + h) - math.e) / h, central_slope(math.exp, 1.0, h)
        print(f"   {h:.0e}" + "".join(f"{abs(slope - math.e):12.1e}" for slope in slopes))
    print("\n2. Four models on paper: go down the left side, then up the right side")
    x, X = [[1.0, 2.0, -1.0]], np.array([[-1.0], [1.0], [2.0]])
    neuron = {"w": [0.5, -1.0, 2.0], "b": 1.0}
    curve = {"W": [[1, -1, 1, 0.5]], "b": [0.5, 0, -1.5, 1], "V": [[1], [1], [2], [-1]], "c": [0.5]}
    three = {"W": [[1, 0, -1, 0.5], [0.5, -1, 0, 1], [0, 1, 0.5, -1]], "b": [0.0] * 4}
    three |= {"V": [[1, 0, -1], [0, 1, 1], [-1, 0.5, 0], [1, -1, 0]], "c": [0.5, 0, 0]}
    for title, *model in (
        ("linear neuron, y = 1", x, np.ones(1), neuron, mse, "none"),
        ("logistic neuron, y = 1", x, np.ones(1), neuron, cross_entropy, "none"),
        ("1-4-1 with relu, y = x²", X, X**2, curve, mse, "relu"),
        ("3-4-3, three answers: yes no yes", x, np.array([1, 0, 1]), three, cross_entropy, "tanh"),
    ):
        print(f"\n   {title}\n{trace(on_tensors(*model))}")
    graph = draw(L).replace("\n", "\n   ")
    print(f"\n3. The graph of L = (a·b·a - 20)² at a = 3, b = 2\n\n   {graph}")


def report_models(rng, fewer):
    """Parts 4 to 6: networks trained by hand-derived gradients, admission, and a curve."""
    x = np.sort(rng.uniform(-2, 2, (60, 1)), axis=0)
    wave = np.sin(3 * x) + 0.5 * x + 0.15 * rng.normal(size=(60, 1))
    corners = rng.choice([-1.0, 1.0], size=(200, 2))
    xor = np.where(corners[:, :1] == corners[:, 1:], 1.0, 0.0)
    points = corners + 0.35 * rng.normal(size=(200, 2))
    problems = {  # inputs, answers, hidden neurons, loss, φ, learning rate, steps
        "xor 2-8-1": (points, xor, 8, cross_entropy, "tanh", 0.5, 3000),
        "xor, no tanh": (points, xor, 8, cross_entropy, "none", 0.1, 3000),
        "curve 1-24-1": (x, wave, 24, mse, "tanh", 0.02, 20000),
    }
    print("\n4. Networks trained on gradients by hand, and these at the end beside Tensor's\n")
    print("   model          numbers   steps    loss before, after     right  largest difference")
    for name, (X, y, J, loss, bend, rate, steps) in problems.items():
        W, b, V = rng.normal(size=(X.shape[1], J)), rng.normal(size=J), rng.normal(size=(J, 1))
        start = {"W": W, "b": b, "V": V, "c": np.zeros(1)}
        model = partial(network_forward, bend=bend), network_backward, loss
        theta, losses = gradient_descent(model, start, X, y, rate, steps // fewer)
        automatic = on_tensors(X, y, theta, loss, bend)
        end, by_hand = loss_and_grads(model, theta, X, y)
        gap = max(np.max(np.abs(grad - automatic[k].grad)) for k, grad in by_hand.items())
        Z, _ = model[0](X, *theta.values())
        right = "-" if loss is mse else f"{np.mean((Z > 0) == y):.1%}"
        row = f"   {name:14} {sum(v.size for v in theta.values()):7} {len(losses):7}"
        print(row + f" {losses[0]:11.4f} {end:9.4f} {right:>9} {gap:18.1e}")
    print("\n5. College admission: the loss has no minimum, so the boundary depends on the stop")
    print("\n    steps        w        b   boundary   p(1200)")
    for steps in (20, 200, 2000, 20000):
        row = steps // fewer, *admission(steps // fewer).values()
        print("   {:6} {:8.3f} {:8.3f} {:10.1f} {:9.4f}".format(*row))
    print(f"   in the end        ∞        ∞     1200.0 {1 / (1 + math.sqrt(5 / 4)):9.4f}")
    print("\n6. The 1-24-1 network (.) through its data (o)\n")
    grid = np.linspace(-2, 2, 300)[:, None]
    fit, _ = network_forward(grid, *theta.values())  # the last that was trained
    print(text_plot([(grid[:, 0], fit[:, 0], "."), (x[:, 0], wave[:, 0], "o")]))


def report_costs(rng, sizes):
    """Part 7: what the gradient of a loss of n inputs costs, counted and timed."""
    print("\n7. Milliseconds for a sum of tanh(x[i] x[i+1]) over n inputs: in floats, recorded in")
    print("   Values, with its gradient forward (n passes over E edges) and in reverse (one)\n")
    print("      n   E edges   n·E edges     floats   recorded    forward    reverse")

    def ring(x, tanh):
        return sum(tanh(a * b) for a, b in zip(x, x[1:] + x[:1]))

    runs = (
        lambda x: ring(x, math.tanh),
        lambda x: ring([Value(v) for v in x], Value.tanh),
        lambda x: [ring([Dual(v, i == j) for j, v in enumerate(x)], Dual.tanh) for i in range(n)],
        lambda x: ring([Value(v) for v in x], Value.tanh).backward(),
    )
    for n in sizes:
        x, k = rng.normal(size=n).tolist(), 256 // n
        times = [min(timeit.repeat(partial(run, x), number=k, repeat=3)) * 1e3 / k for run in runs]
        edges = sum(len(v._prev) for v in topological_order(runs[1](x)))
        print(f"   {n:4} {edges:9} {n * edges:11}" + "".join(f" {ms:10.4f}" for ms in times))
    floats, recorded, forward, reverse = times
    print(f"   n = {n}: a gradient costs {reverse / recorded:.1f} recorded values in reverse (or")
    print(f"   {reverse / floats:.0f} plain ones), and {forward / recorded:,.0f} forward")


def drop_unwritten():
    """Forget what stdout cannot take, so that Python's own flush at the end does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:  # a closed pipe, a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv=None):
    """Print the report. A wrong command line: one line on stderr and exit status 2."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it was closed before the start
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    parser = argparse.ArgumentParser(description="Stage 2: derivatives, by hand and automatic.")
    parser.add_argument("--fast", action="store_true", help="a smoke run: fewer steps, all parts")
    parser.add_argument("--seed", type=int, default=0, help="random seed >= 0 (default 0)")
    parser.add_argument("--dot", metavar="FILE", help="only write part 3's graph, for Graphviz")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"--seed must be >= 0, got {args.seed}")
    is_file = args.dot and (os.path.isfile(args.dot) or not os.path.exists(args.dot))
    if args.dot is not None and not is_file:  # a folder, or a device that we would replace
        parser.error(f"--dot needs the name of a file, got {args.dot!r}")
    try:
        a, b = Value(3.0, label="a"), Value(2.0, label="b")  # section 1 with a loss on top
        L = (a * b * a - 20) ** 2
        L.backward()
        if args.dot is not None:
            with open(f"{args.dot}.part", "w", encoding="utf-8") as file:
                file.write(to_dot(L) + "\n")
            os.replace(f"{args.dot}.part", args.dot)
            print(f"wrote {args.dot}; `dot -Tsvg {args.dot} > graph.svg` draws it")
        else:
            rng = np.random.default_rng(args.seed)
            fewer, sizes = (20, (1, 4, 16)) if args.fast else (1, (1, 4, 16, 64, 256))
            report_paper(L)
            report_models(rng, fewer)
            report_costs(rng, sizes)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever was reading has seen enough
        drop_unwritten()
    except KeyboardInterrupt:
        drop_unwritten()
        parser.exit(130, "\n")
    except OSError as error:
        drop_unwritten()
        parser.error(str(error))


# %% What to take away
# Slopes multiply along a way and add over ways: v̄ = Σ ū·∂u/∂v, in one sweep back from the loss.
# Z = X W gives dX = dZ Wᵀ and dW = Xᵀ dZ; what was stretched is summed. σ with cross-entropy, like
# a line with squares, gives prediction minus truth. Trust no derivative that was not measured.

# %% Common mistakes
# 1. No zero_grad: steps grow ever wilder, as backward() ADDS to grad (section 10).
# 2. A broadcast axis not summed: the gradient of b (J,) arrives as (N, J) (unbroadcast).
# 3. Z (N, 1) minus y (N,) is (N, N): the loss looks fine and the fit is a constant (pair_up).
# 4. Checks in float32, at h = 1e-12, or with one error for a whole array (measured_slope, 12).
# 5. Changing x.data before backward(): the slopes kept are those of the old x (Value._slopes).

# %% Exercises
# They are in exercises/stage02.py, and `python exercises` checks them.
#  1. ★ (by hand) Two ways back to each
#  2. ★ (by hand) One step downhill
#  3. ★ (derive) Tan and arctan, for three engines
#  4. ★★ (derive) Three areas in the unit circle
#  5. ★★ (find the bug) Right with relu, wrong with tanh
#  6. ★★ (explain) XOR without tanh
#  7. ★★ (implement) minimum and where
#  8. ★★ (implement) All slopes in one pass forward
#  9. ★★★ (implement) Curvature in one sweep
# 10. ★★★ (implement) A chain too long to remember
# 11. ★ (research) How few neurons are enough for XOR?
# 12. ★★★ (project) Two spirals in thirty-six numbers

# %% Where this leads
# PyTorch and JAX are section 11, grown up. Stage 3 goes back by hand, stage 4 asks how to descend.

if __name__ == "__main__":
    main()
