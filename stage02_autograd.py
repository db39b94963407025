# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0"]
# ///
"""Stage 2: differentiate. How does a program learn which way to turn each of its knobs?

A model is a function with knobs (parameters); a loss says how wrong it is. The derivative of the
loss in a knob says how the loss answers a small turn of it, and turning every knob against its
derivative makes the loss fall. This file finds derivatives twice: by hand, every rule proven and
six models trained on the result; then by a program, for any formula, from the same rules. The two
agree to the last digits of a float, and one backward sweep yields the derivatives of a million
knobs for the price of a few evaluations.

  By hand:    1 measuring a derivative  2 the rules  3 a line  4 yes or no  5 curves and vectors
  Automatic:  6 one rulebook  7 forward mode: Dual  8 reverse mode: Value  9 MLP  10 Tensor

`python stage02_autograd.py [--fast] [--seed N]` trains the models, prints a table in which every
gradient derived by hand meets the automatic one, and times forward against reverse mode.

Rests on: Linnainmaa's thesis (1970), the origin of reverse mode; Rumelhart, Hinton, Williams,
"Learning representations by back-propagating errors" (1986); Griewank, Walther, "Evaluating
Derivatives" (2008); Soudry et al., "The implicit bias of gradient descent on separable data"
(2018); Karpathy's micrograd (2020), whose names sections 8 and 9 keep.
"""

import argparse
import math
import numbers
import operator
import re
import time
from functools import partial
from types import SimpleNamespace

import numpy as np

# %% 1. The derivative, and how to measure it
#
# Turn the input of f from x to x + h. If the change of f per unit of turning settles on one number
# as h shrinks, that number is the derivative:
#
#     f′(x) = lim_{h→0} (f(x+h) - f(x)) / h.            For x²: (2xh + h²)/h = 2x + h → 2x.
#
# Call what has not settled yet ε(h), and multiply by h: f is differentiable at x exactly when
#
#     f(x+h) = f(x) + (f′(x) + ε(h))·h     with ε(h) → 0 as h → 0, ε(0) = 0.                   (1)
#
# To measure f′, take h small. How small, and on which side? A smooth f equals its Taylor polynomial
# and faster vanishing terms, f(x±h) = f ± h·f′ + h²/2·f″ ± h³/6·f‴ + ... (all taken at x). So
#
#     forward:  (f(x+h) - f(x)) / h      = f′ + h/2·f″  + ...   halve h, halve the error;
#     central:  (f(x+h) - f(x-h)) / (2h) = f′ + h²/6·f‴ + ...   halve h, quarter it: f″ cancels.
#
# But floats round: each f is off by up to u·|f|, u = 2⁻⁵³ ≈ 1.1e-16, and dividing by h magnifies
# that. The central error is at most about E(h) = h²/6·|f‴| + u·|f|/h, smallest where
#
#     E′(h) = h/3·|f‴| - u·|f|/h² = 0,   so   h³ = 3u·|f|/|f‴|,   h ∝ u^⅓ ≈ 5e-6,   E ∝ u^⅔ ≈ 2e-11.
#
# (Forward: h ∝ √u, error ∝ √u ≈ 1e-8.) Every input costs two runs of f, so a million knobs cost two
# million runs: good for checking gradients, hopeless for training.


def numerical_gradient(f, x, h=None):
    """Central differences in float64 of f, a function of x that returns one number.

    x: a number or an array (f gets copies); the result has its shape. h: the step, by default
    u^⅓·max(1, |xᵢ|). ValueError if h <= 0 or f(x) is not one number.
    """
    if h is not None and not h > 0:
        raise ValueError(f"h must be a positive step, got {h!r}")
    x = np.array(x, dtype=np.float64)
    grad = np.empty_like(x)

    def at(i, xi):
        moved = x.copy()
        moved[i] = xi
        y = np.asarray(f(moved if x.ndim else float(xi)))
        if y.size != 1 or y.dtype.kind not in "biuf":
            raise ValueError(f"f must return one number, got {y!r}")
        return y.item()

    for i in np.ndindex(x.shape):
        step = h or 2.0 ** (-53 / 3) * max(1.0, abs(x[i]))
        right, left = x[i] + step, x[i] - step
        grad[i] = (at(i, right) - at(i, left)) / (right - left)  # 2h, as rounding left it
    return grad if x.ndim else float(grad)


# %% 2. The rules, and the chain rule
#
# f, g are values at x, and f₊, g₊ values at x + h; f₊ → f, since f₊ - f → 0 by (1).
#
#     constant    (c - c)/h = 0, and for x itself (x + h - x)/h = 1           c′ = 0, x′ = 1
#     sum         (f₊ + g₊ - f - g)/h = (f₊-f)/h + (g₊-g)/h                   (f+g)′ = f′ + g′
#     product     (f₊g₊ - fg)/h = (f₊-f)/h·g₊ + f·(g₊-g)/h                    (fg)′ = f′g + fg′
#     reciprocal  (1/g₊ - 1/g)/h = -(g₊-g)/h / (g₊·g)                         (1/g)′ = -g′/g²
#     quotient    f·(1/g) by the last two: f′/g - f·g′/g²                     (f′ - (f/g)·g′)/g
#     exponential (eˣ⁺ʰ - eˣ)/h = eˣ·(eʰ-1)/h; e is defined by (eʰ-1)/h → 1   (eˣ)′ = eˣ
#
# Chain rule for two: u = g(x), y = f(u). When x moves by h, u moves by k = (g′(x) + ε₁(h))·h by (1),
# and then y moves by (f′(u) + ε₂(k))·k, again by (1). Insert k and divide by h:
#
#     (y₊ - y)/h = (f′(u) + ε₂(k))·(g′(x) + ε₁(h))  →  f′(u)·g′(x),   as h → 0 makes k → 0.
#
# (Nothing was divided by k, which may be 0.) For n functions, by induction on n: let x₀ = x and
# xᵢ = fᵢ(xᵢ₋₁). The composition Fₙ = fₙ∘...∘f₁ has
#
#     Fₙ′(x) = fₙ′(xₙ₋₁)· ... ·f₂′(x₁)·f₁′(x₀).                                                (2)
#
# n = 1 says F₁′ = f₁′. If (2) holds for n - 1, then Fₙ = fₙ∘Fₙ₋₁ is a composition of two, so
# Fₙ′(x) = fₙ′(xₙ₋₁)·Fₙ₋₁′(x), and inserting (2) for Fₙ₋₁′ gives (2) for n. ∎  However long a
# program, its derivative is a product of local slopes. Four more rules follow:
#
#     logarithm   differentiate both sides of e^(ln x) = x: x·(ln x)′ = 1     (ln x)′ = 1/x
#     power       xᵃ = e^(a·ln x), so slope xᵃ·a/x (x > 0; for whole a the    (xᵃ)′ = a·xᵃ⁻¹
#                 product and reciprocal rules say the same for x < 0)
#     sigmoid     σ = 1/(1+e⁻ˣ): σ′ = e⁻ˣ/(1+e⁻ˣ)² = σ·e⁻ˣ/(1+e⁻ˣ)            σ′ = σ(1-σ)
#     tanh        tanh x = 2σ(2x) - 1 = y: y′ = 4σ(1-σ), where σ = (1+y)/2    tanh′ = 1 - y²
#
# Several routes. Let v feed u = g(v) and w = k(v), and L = L(u, w) be smooth; ∂L/∂u turns u alone.
# When v moves by h, move u first (L changes by about ∂L/∂u·g′h), then w (by about ∂L/∂w·k′h, at the
# moved u; but ∂L/∂w is continuous). What "about" hides vanishes faster than h. So routes ADD:
#
#     ∂L/∂v = Σ over all u that use v of  ∂L/∂u · ∂u/∂v.                                       (3)
#
# Multiply along a route (2), add over routes (3): that is all of backpropagation.

# %% 3. Descending: a straight line through points
#
# By (3), moving all knobs θ by a small δ changes L by about Σ ∂L/∂θᵢ·δᵢ = g·δ, g the gradient. For
# δ = -η·g that is -η‖g‖² ≤ 0: against the gradient the loss falls, if the rate η is small enough
# for "about" to hold. Repeat: gradient descent. (Stage 4 asks how fast.)
#
# First model: ŷᵢ = w·xᵢ + b, with loss L = (1/N)·Σᵢ(ŷᵢ - yᵢ)². From here on dv is short for ∂L/∂v:
#
#     dŷᵢ = (2/N)·(ŷᵢ - yᵢ).    w acts through every ŷᵢ, with slope xᵢ:  dw = Σᵢ dŷᵢ·xᵢ,  db = Σᵢ dŷᵢ.
#
# A closed form can check the descent: db = 0 gives b = ȳ - w·x̄ (bars are means), and with that
# dw = 0 says Σ (w(xᵢ-x̄) - (yᵢ-ȳ))·xᵢ = 0. The bracket sums to 0, so xᵢ may be replaced by xᵢ - x̄:
# w = Σ (xᵢ-x̄)(yᵢ-ȳ) / Σ (xᵢ-x̄)².


def neuron_forward(x, w, b):
    """z = w·x + b for inputs x (N,) and numbers w, b; returns (z (N,), cache)."""
    return w * x + b, (x, w)


def neuron_backward(dz, cache):
    """From dz (N,): (dx (N,), dw, db)."""
    x, w = cache
    return dz * w, np.sum(dz * x), np.sum(dz)


def mse(y_hat, y):
    """Mean squared error and its gradient dŷ (N,)."""
    return np.mean(np.square(y_hat - y)), 2 / len(y) * (y_hat - y)


def fit_line(x, y):
    """(w, b) of least squares in closed form. ValueError unless x has two different values."""
    x, mean, deviation = standardise(x)
    w = np.mean(x * y) / deviation  # Σx = 0 now, so ȳ need not be subtracted
    return float(w), float(np.mean(y) - w * mean)


def standardise(x):
    """((x - mean)/deviation, mean, deviation). ValueError unless x has two different values."""
    x = np.asarray(x, dtype=np.float64)
    if not x.size or not np.ptp(x) > 0:
        raise ValueError(f"expected at least two different numbers, got {x.tolist()}")
    return (x - x.mean()) / x.std(), float(x.mean()), float(x.std())


def loss_and_grads(model, params, x, y):
    """Loss and gradients of model = (forward, backward, loss); params in forward's order."""
    forward, backward, loss = model
    y_hat, cache = forward(x, *params.values())
    value, dy_hat = loss(y_hat, y)
    return float(value), dict(zip(params, backward(dy_hat, cache)[1:]))  # [0] is dx


def gradient_descent(model, params, x, y, learning_rate, steps):
    """Repeat θ ← θ - η·dθ; returns (new params, list of the loss before every step).

    ValueError for learning_rate <= 0, x and y of different length, or a diverging loss.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be > 0, got {learning_rate!r}")
    if x.ndim == 0 or y.shape != x.shape[:1] or not y.size:
        raise ValueError(f"expected one y for each of at least one x, got {y.shape} for {x.shape}")
    losses = []
    for step in range(steps):
        loss, grads = loss_and_grads(model, params, x, y)
        if not math.isfinite(loss):
            raise ValueError(f"loss {loss} at step {step}: learning_rate={learning_rate} too big")
        losses.append(loss)
        params = {name: theta - learning_rate * grads[name] for name, theta in params.items()}
    return params, losses


# %% 4. One neuron that says yes or no: logistic regression
#
# Let p = σ(z) = 1/(1+e⁻ᶻ) be the probability of the answer y = 1. Why σ? Call z the log of the odds,
# z = ln(p/(1-p)); then p/(1-p) = eᶻ, and solving for p gives σ(z).
#
# All answers together have the probability Π pᵢ^yᵢ·(1-pᵢ)^(1-yᵢ). To make it large, make the mean of
# its negative logarithm small: L = -(1/N)·Σ [y·ln p + (1-y)·ln(1-p)], the cross-entropy. As
# p = eᶻ/(1+eᶻ) and 1-p = 1/(1+eᶻ), one term is ℓ = -y·z + ln(1+eᶻ), with the slope
#
#     ∂ℓ/∂z = eᶻ/(1+eᶻ) - y = p - y.                      Prediction minus truth, once again.
#
# ℓ is convex in z (∂²ℓ/∂z² = p(1-p) > 0) and z is linear in w and b: one valley. At its bottom
# db = Σ (pᵢ-yᵢ)/N = 0, so the mean prediction is the share of yeses.


def sigmoid(z, exp=np.exp):
    """1/(1+e⁻ᶻ) of a number or array; only e^(-|z|) ≤ 1 is computed, so nothing overflows."""
    e = exp(-abs(z))
    return ((z >= 0) + (z < 0) * e) / (1 + e)


def cross_entropy(z, y):
    """Mean loss in nats of answers y ∈ {0, 1} under p = σ(z), and its gradient dz (N,)."""
    if not np.all((y == 0) | (y == 1)):
        raise ValueError(f"answers must be 0 or 1, got {np.unique(y)}")
    return np.mean(np.logaddexp(0.0, z) - y * z), (sigmoid(z) - y) / len(y)


SAT, ADMITTED = (900, 1100, 1300, 1500, 1700), (0, 0, 1, 1, 1)

# The college-admission exercise: from these five applicants, learn the score that admits. On raw
# scores dw would be a thousand times db and no one rate would suit both, so first standardise:
# x = (SAT - mean)/deviation. p = ½ where w·x + b = 0, so the boundary is mean - (b/w)·deviation.
#
# A catch: any threshold between 1100 and 1300 is perfect on these five, so doubling w and b only
# makes right answers surer. The loss has no minimum, w grows for ever (like ln t) and the boundary
# creeps to the middle of the gap (Soudry et al.). The answer depends on when you stop.


def admission(steps=1000, learning_rate=1.0, score=1200):
    """Train on the five applicants: w, b, the boundary in points, and p(admitted | score)."""
    x, mean, deviation = standardise(SAT)
    model, start = (neuron_forward, neuron_backward, cross_entropy), {"w": 0.0, "b": 0.0}
    params, _ = gradient_descent(model, start, x, ADMITTED, learning_rate, steps)
    w, b = float(params["w"]), float(params["b"])
    boundary = mean - b / w * deviation if w else math.nan
    p = float(sigmoid(w * (score - mean) / deviation + b))
    return {"w": w, "b": b, "boundary": boundary, "probability": p}


# %% 5. A hidden layer: curves, vectors, and why the non-linearity is needed
#
# A line cannot bend. Let J neurons each bend at a place of their own, and add them up:
#
#     aᵢⱼ = wⱼ·xᵢ + bⱼ,     hᵢⱼ = tanh aᵢⱼ,     ŷᵢ = Σⱼ vⱼ·hᵢⱼ + c.
#
# Backwards from dŷᵢ, (2) along routes and (3) over them, each line from the one above:
#
#     dvⱼ  = Σᵢ dŷᵢ·hᵢⱼ       dc = Σᵢ dŷᵢ                 as ∂ŷᵢ/∂vⱼ = hᵢⱼ, ∂ŷᵢ/∂c = 1
#     dhᵢⱼ = dŷᵢ·vⱼ           daᵢⱼ = dhᵢⱼ·(1 - hᵢⱼ²)       as tanh′ = 1 - tanh²
#     dwⱼ  = Σᵢ daᵢⱼ·xᵢ       dbⱼ = Σᵢ daᵢⱼ               as for the single neuron
#     dxᵢ  = Σⱼ daᵢⱼ·wⱼ                                  xᵢ feeds all J neurons
#
# With D features, rows of X (N, D) meet weights W (D, J): A = X W + b, where (X W)ᵢⱼ = Σ_d Xᵢd·Wdⱼ.
# Wdⱼ touches aᵢⱼ in every row i, with slope Xᵢd, so by (3) dWdⱼ = Σᵢ Xᵢd·daᵢⱼ; and Xᵢd touches aᵢⱼ for
# every j, so dXᵢd = Σⱼ daᵢⱼ·Wdⱼ. As matrix products, good for any A = X W,
#
#     dW = Xᵀ dA,        dX = dA Wᵀ,                                                           (4)
#
# of which the last two lines above are the case D = 1. One pair of functions serves both.
#
# Without tanh, z = (X W + b) v + c = X (W v) + (b·v + c): any stack of linear layers is ONE linear
# layer, with yes on one side of a straight line. Take XOR: yes at (1,1) and (-1,-1), no at (1,-1)
# and (-1,1). If a linear z = w·x + b were right on all four, z(1,1) + z(-1,-1) = 2b would be > 0
# and z(1,-1) + z(-1,1) = 2b < 0. Impossible: it takes bending to gain anything from depth.


def network_forward(X, W, b, v, c, nonlinear=True):
    """ŷ (or z) (N,) for rows X (N, D) and W (D, J), b (J,), v (J,), c (); returns (ŷ, cache)."""
    A = X @ W + b  # (N, J)
    H = np.tanh(A) if nonlinear else A
    return H @ v + c, (X, W, v, H, nonlinear)


def network_backward(dy, cache):
    """From dŷ (N,): (dX (N, D), dW (D, J), db (J,), dv (J,), dc)."""
    X, W, v, H, nonlinear = cache
    dA = np.outer(dy, v) * (1 - H * H if nonlinear else 1)  # (N, J)
    return dA @ W.T, X.T @ dA, dA.sum(axis=0), dy @ H, dy.sum()


# %% 6. Part two: one rulebook
#
# All that was mechanical, so let a program do it. A number that can be differentiated overloads
# + * exp and the rest. An operation y = y(a, b) computes y and its local slopes ∂y/∂a, ∂y/∂b, by
# section 2. What is then DONE with the slopes is the whole difference between our three engines:
#
#     Dual    multiplies each by a derivative it already carries, at once        (forward mode)
#     Value   stores each with a pointer to its input, to be multiplied later    (reverse mode)
#     Tensor  is Value over arrays: an elementwise operation has a slope per entry
#
# So the rules stand here once, y first and then a slope per input. `lib` is where functions are
# found (math's or NumPy's), `_lift` turns a plain number into a constant, `_node` builds the result.


def unary(op, rule):
    """The method x.op(), for rule(lib, x) = (y, ∂y/∂x)."""

    def method(self):
        y, dx = rule(self.lib, self.data)
        return self._node(op, y, (self,), (dx,))

    return method


def binary(op, rule):
    """The method a∘b, for rule(a, b) = (y, ∂y/∂a, ∂y/∂b)."""

    def method(self, other):
        other = self._lift(other)
        if other is NotImplemented:
            return NotImplemented
        y, da, db = rule(self.data, other.data)
        return self._node(op, y, (self, other), (da, db))

    return method


def positive(x, what):
    """x, or ValueError unless all of it is > 0."""
    if not np.all(x > 0):
        raise ValueError(f"{what} must be > 0, got {np.min(x)}")
    return x


class Operators:
    """Section 2 in code. At its kink relu could take any slope in [0, 1]; we take 0."""

    __slots__ = ()
    __add__ = binary("+", lambda a, b: (a + b, 1.0, 1.0))
    __sub__ = binary("-", lambda a, b: (a - b, 1.0, -1.0))
    __mul__ = binary("*", lambda a, b: (a * b, b, a))
    __truediv__ = binary("/", lambda a, b: (a / b, 1.0 / b, -(a / b) / b))
    __radd__, __rmul__ = __add__, __mul__  # b∘a where b is a plain number: Python asks a
    __rsub__ = binary("-", lambda a, b: (b - a, -1.0, 1.0))
    __rtruediv__ = binary("/", lambda a, b: (b / a, -(b / a) / a, 1.0 / a))
    __neg__ = unary("neg", lambda f, x: (-x, -1.0))
    exp = unary("exp", lambda f, x: (y := f.exp(x), y))
    log = unary("log", lambda f, x: (f.log(positive(x, "argument of log")), 1.0 / x))
    tanh = unary("tanh", lambda f, x: (y := f.tanh(x), 1.0 - y * y))
    sigmoid = unary("sigmoid", lambda f, x: (y := sigmoid(x, f.exp), y * (1.0 - y)))
    relu = unary("ReLU", lambda f, x: (f.maximum(x, 0.0), 1.0 * (x > 0)))

    def __pow__(self, n):
        """xⁿ, slope n·xⁿ⁻¹. If n is a variable too, x must be > 0, and xⁿ = e^(n·ln x)."""
        if not isinstance(n, numbers.Real):
            n = self._lift(n)
            return n if n is NotImplemented else (n * self.log()).exp()
        x, n = self.data, float(n)
        if not n.is_integer() and np.any(x < 0):
            raise ValueError(f"a base < 0 needs a whole exponent, got {np.min(x)} ** {n}")
        slope = n * self.lib.power(x, n - 1.0) if n else 0.0
        return self._node(f"**{n:g}", x**n, (self,), (slope,))

    def __rpow__(self, base):
        base = self._lift(base)
        return base if base is NotImplemented else base**self


class Scalar(Operators):
    """What Dual and Value share. x/0 is Python's ZeroDivisionError."""

    __slots__ = ()
    lib = SimpleNamespace(
        exp=lambda x: math.exp(x) if x < 709.78 else math.inf,  # where math.exp would raise
        log=math.log,
        tanh=math.tanh,
        maximum=max,
        power=lambda x, n: x**n if x or n >= 0 else math.inf,  # √x rises vertically at 0
    )

    def _lift(self, x):
        if isinstance(x, type(self)):
            return x
        return type(self)(x) if isinstance(x, numbers.Real) else NotImplemented


def real(x):
    """x as a float; ValueError if it is not a real number."""
    if type(x) is not float and not isinstance(x, numbers.Real):
        raise ValueError(f"expected a real number, got {x!r}")
    return float(x)


# %% 7. Forward mode: a number and its derivative, hand in hand
#
# Give every number x its derivative ẋ in the one input we ask about: 1 for that input, 0 for the
# others and for constants. For y = y(a, b), (3) says ẏ = ∂y/∂a·ȧ + ∂y/∂b·ḃ. That is all. (As algebra:
# a + ȧε with ε² = 0, as in (a+ȧε)(b+ḃε) = ab + (ȧb+aḃ)ε; hence "dual numbers".)


class Dual(Scalar):
    """A number `data` and the derivative `tangent` it carries. ValueError unless both are real."""

    __slots__ = ("data", "tangent")

    def __init__(self, data, tangent=0.0):
        self.data, self.tangent = real(data), real(tangent)

    def _node(self, op, y, inputs, slopes):
        return Dual(y, sum(slope * x.tangent for x, slope in zip(inputs, slopes)))

    def __repr__(self):
        return f"Dual({self.data}, {self.tangent})"


# %% 8. Reverse mode: remember, then sweep back
#
# Read (3) from the other end. Let v̄ = ∂L/∂v, the adjoint of v: L̄ = 1 and v̄ = Σ ū·∂u/∂v over the
# users u of v. Visit users before what they use; then, by induction along the visit, every ū in the
# sum is final when v is reached, and so is v̄. Such an order is a topological order (inputs before
# users) reversed, and a depth-first search finds it: write down a node once all it depends on is
# written down. It keeps its own stack, since Python's holds a thousand calls and chains are longer.
#
# The cost. The graph of f: ℝⁿ → ℝᵐ has an edge per (user, input), at most two per operation. A
# forward pass uses each edge once and gives the derivatives of ALL outputs in ONE input; a sweep
# uses each edge once and gives those of ONE output in ALL inputs. With E edges, all n·m of them take
#
#     n·E multiplications forward,     m·E in reverse,     and a loss has m = 1.
#
# So the gradient of a loss costs a small multiple of the loss, whatever n. The price is memory:
# forward mode forgets as it goes, reverse mode keeps every slope until the sweep.


def topological_order(root):
    """Every node root depends on, inputs before users, root last; any depth."""
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        node, inputs_done = stack.pop()
        if inputs_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((x, False) for x in node._prev)
    return order


def sweep(root, seed, times):
    """Yield (v, v̄) from root to inputs; times(slope, ū) is ū·∂u/∂v for one edge."""
    adjoint = {root: seed}
    for u in reversed(topological_order(root)):
        u_bar = adjoint.pop(u)  # final: all users of u came before
        yield u, u_bar
        for v, slope in zip(u._prev, u._slopes):
            term = times(slope, u_bar)
            adjoint[v] = adjoint[v] + term if v in adjoint else term


class Value(Scalar):
    """A number that remembers how it was made: `data`, and `grad` after backward() of a result.

    Nodes point only to their inputs: no reference cycles, so a graph vanishes with its last user.
    """

    __slots__ = ("data", "grad", "label", "_prev", "_op", "_slopes")

    def __init__(self, data, _children=(), _op="", label="", _slopes=()):
        self.data, self.grad = real(data), 0.0
        self._prev, self._op, self.label, self._slopes = tuple(_children), _op, label, _slopes

    def _node(self, op, y, inputs, slopes):
        return Value(y, inputs, op, "", slopes)

    def backward(self):
        """Add ∂self/∂v to v.grad for every v it depends on (self too); twice adds it twice."""
        for v, v_bar in sweep(self, 1.0, operator.mul):
            v.grad += v_bar

    def __repr__(self):
        return f"Value(data={self.data}, grad={self.grad})"


def to_dot(value):
    """The graph behind a Value as Graphviz text, for any viewer or `dot -Tsvg`."""
    if not isinstance(value, Value):
        raise ValueError(f"to_dot draws a Value, got {value!r}")
    name = {v: f"v{i}" for i, v in enumerate(topological_order(value))}
    lines = ["digraph {", "  rankdir=LR;"]
    for v, n in name.items():
        label = re.sub(r'([\\{}|<>"])', r"\\\1", v.label) + " | " if v.label else ""
        text = f"{label}data {v.data:.4g} | grad {v.grad:.4g}"
        lines.append(f'  {n} [shape=record, label="{{ {text} }}"];')
        if v._op:
            lines += [f'  {n}op [label="{v._op}"];', f"  {n}op -> {n};"]
            lines += [f"  {name[x]} -> {n}op;" for x in v._prev]
    return "\n".join([*lines, "}"])


# %% 9. Neuron, Layer, MLP
#
# A network without a line of calculus, after micrograd. `seed` is an int, or a Generator that
# neurons share so that each draws its own weights (neurons born equal would stay equal for ever).


class Module:
    """Anything with parameters()."""

    def zero_grad(self):
        """Forget the gradients, since backward() adds to them."""
        for p in self.parameters():
            p.grad = 0.0


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
        self.neurons = [Neuron(nin, seed=rng, **kwargs) for _ in range(nout)]

    def __call__(self, x):
        out = [neuron(x) for neuron in self.neurons]
        return out[0] if len(out) == 1 else out

    def parameters(self):
        return [p for neuron in self.neurons for p in neuron.parameters()]


class MLP(Module):
    """Layers of widths nouts on nin inputs, with relu between them; the last one is linear."""

    def __init__(self, nin, nouts, seed=0):
        rng, last = np.random.default_rng(seed), len(nouts) - 1
        pairs = enumerate(zip([nin, *nouts], nouts))
        self.layers = [Layer(n, m, seed=rng, nonlin=i != last) for i, (n, m) in pairs]

    def __call__(self, x):
        for layer in self.layers:
            x = layer([x] if isinstance(x, Value) else x)  # after a layer of one
        return x

    def parameters(self):
        return [p for layer in self.layers for p in layer.parameters()]


# %% 10. Tensor: the same over arrays
#
# A Python object per number costs about a microsecond per operation. Let a node hold an array: an
# edge then stores the function that takes ū to ū·∂u/∂v (a vector-Jacobian product).
#
#   elementwise   every entry has its own slope: ū * slope.   sum: slope 1, so spread ū out again.
#   broadcasting  an entry of v stretched over many entries of u is used by them all: (3), add.
#   matmul        (4): Ā = Ū Bᵀ, B̄ = Aᵀ Ū on the last two axes; batch axes broadcast as above.
#   max           slope 1 at the largest. A tie is a kink; its k largest get ū/k each, the mean of
#                 the k choices of one winner, so a subgradient as valid as any of them.
#   indexing      ū goes back to where u's entries came from, ADDED where one was copied twice.


def unbroadcast(g, like):
    """Sum g over the axes along which `like` was stretched; the result has its shape and dtype."""
    new = g.ndim - like.ndim  # axes that `like` did not have
    axes = tuple(i for i in range(g.ndim) if i < new or g.shape[i] != like.shape[i - new])
    return g.sum(axis=axes).reshape(like.shape).astype(like.dtype, copy=False)


class Tensor(Operators):
    """An array that remembers how it was made: `data`, and `grad` after backward() of a result.

    Floats keep their dtype, integers become float64, nothing is copied. ValueError for data that
    are not real numbers and for shapes that do not fit.
    """

    __slots__ = ("data", "grad", "label", "_prev", "_op", "_slopes")
    __array_ufunc__ = None  # array + Tensor is for Tensor.__radd__, not for NumPy
    lib = np
    shape = property(lambda self: self.data.shape)
    T = property(lambda self: self.transpose())

    def __init__(self, data, _children=(), _op="", label="", _slopes=()):
        data = np.asarray(data)
        if data.dtype.kind not in "biuf":
            raise ValueError(f"expected real numbers, got {data.dtype} data")
        self.data = data if data.dtype.kind == "f" else data.astype(np.float64)
        self._prev, self._op, self.label, self._slopes = tuple(_children), _op, label, _slopes
        self.zero_grad()

    def zero_grad(self):
        self.grad = np.zeros_like(self.data)

    def _lift(self, x):
        if isinstance(x, Tensor):
            return x
        if isinstance(x, (int, float)):  # a plain number leaves float32 float32
            return Tensor(np.asarray(x, dtype=self.data.dtype))
        return Tensor(x) if isinstance(x, (np.ndarray, np.generic, list)) else NotImplemented

    def _node(self, op, y, inputs, slopes):
        pulls = [lambda g, s=s, v=v.data: unbroadcast(g * s, v) for v, s in zip(inputs, slopes)]
        return Tensor(y, inputs, op, "", pulls)

    def _move(self, op, y, pull):
        return Tensor(y, (self,), op, "", (pull,))

    def backward(self, grad=None):
        """Add ∂(Σ grad·self)/∂v to every v.grad; only a single entry may go without `grad`."""
        seed = np.asarray(1.0 if grad is None else grad, dtype=self.data.dtype)
        if seed.shape != self.shape and not (grad is None and self.data.size == 1):
            raise ValueError(f"backward() needs a gradient of shape {self.shape}, got {grad!r}")
        for v, v_bar in sweep(self, seed.reshape(self.shape), lambda pull, u_bar: pull(u_bar)):
            v.grad = np.asarray(v.grad + v_bar)

    def __matmul__(self, other):
        other = self._lift(other)
        if other is NotImplemented:
            return NotImplemented
        a, b = self.data, other.data
        if not a.ndim * b.ndim or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
            raise ValueError(f"expected (..., n, k) @ (..., k, m), got {a.shape} @ {b.shape}")
        if b.ndim == 1:  # a vector on the right is a column
            y = self @ other.reshape(-1, 1)
            return y.reshape(y.shape[:-1])
        if a.ndim == 1:  # and a row on the left
            y = self.reshape(1, -1) @ other
            return y.reshape(y.shape[:-2] + y.shape[-1:])
        pulls = (
            lambda g: unbroadcast(g @ b.swapaxes(-1, -2), a),
            lambda g: unbroadcast(a.swapaxes(-1, -2) @ g, b),
        )
        return Tensor(a @ b, (self, other), "@", "", pulls)

    def __rmatmul__(self, other):
        return Tensor(other) @ self

    def sum(self, axis=None, keepdims=False):
        """Sum over axis: an int, a tuple, or None for all."""
        y = self.data.sum(axis=axis, keepdims=True)
        return self._node("sum", y, (self,), (np.ones_like(self.data),))._drop(axis, keepdims)

    def mean(self, axis=None, keepdims=False):
        total = self.sum(axis, keepdims)
        return total / (self.data.size // max(total.data.size, 1))

    def max(self, axis=None, keepdims=False):
        """Largest over axis; equal ones share the gradient equally."""
        y = self.data.max(axis=axis, keepdims=True)
        slope = (ties := self.data == y) / ties.sum(axis=axis, keepdims=True)
        return self._node("max", y, (self,), (slope,))._drop(axis, keepdims)

    def _drop(self, axis, keepdims):
        return self if keepdims else self.reshape(self.data.squeeze(axis).shape)

    def reshape(self, *shape):
        return self._move("reshape", self.data.reshape(*shape), lambda g: g.reshape(self.shape))

    def transpose(self, *axes):
        """Axes in a new order: transpose(), transpose(1, 0, 2) or transpose((1, 0, 2))."""
        y = self.data.transpose(*axes)
        order = np.empty(tuple(range(y.ndim))).transpose(*axes).shape  # an axis of size i is i
        back = np.argsort(order)
        return self._move("transpose", y, lambda g: g.transpose(back))

    def __getitem__(self, index):
        """Any NumPy index: integers, slices, masks, integer arrays (repeats allowed)."""

        def pull(g):
            dx = np.zeros_like(self.data)
            np.add.at(dx, index, g)
            return dx

        return self._move("[]", self.data[index], pull)

    def __len__(self):
        return len(self.data)

    def __repr__(self):
        return f"Tensor({self.data}, grad={self.grad})"


def grad_check(f, *arrays):
    """The largest relative error of backward() against central differences, over all arrays.

    f takes a Tensor for each array and returns a Tensor (weighted by fixed random numbers). The
    error ‖a - n‖/(‖a‖ + ‖n‖ + 1e-4) is below 1e-6 if right (and not at a kink), else near 1.
    """
    inputs = [Tensor(np.array(a, dtype=np.float64)) for a in arrays]
    out = f(*inputs)
    if not inputs or not isinstance(out, Tensor):
        raise ValueError(f"expected arrays, and an f returning a Tensor; got {arrays}, {out!r}")
    weight, errors = np.random.default_rng(0).normal(size=out.shape), []
    out.backward(weight)
    for i, x in enumerate(inputs):

        def loss(xi, i=i):
            return np.sum(weight * f(*inputs[:i], Tensor(xi), *inputs[i + 1 :]).data)

        a, n = x.grad, numerical_gradient(loss, x.data)
        errors.append(np.linalg.norm(a - n) / (np.linalg.norm(a) + np.linalg.norm(n) + 1e-4))
    return float(np.max(errors))


# %% Demonstration


def text_plot(curves, rows=13, columns=76):
    """Draw (x, y, mark) curves in text, later ones on top."""
    xs, ys = (np.concatenate([c[axis] for c in curves]) for axis in (0, 1))
    canvas = np.full((rows, columns), " ")
    for x, y, mark in curves:
        i = np.rint((ys.max() - y) / np.ptp(ys) * (rows - 1)).astype(int)
        j = np.rint((x - xs.min()) / np.ptp(xs) * (columns - 1)).astype(int)
        canvas[i, j] = mark
    return "\n".join("  |" + "".join(row).rstrip() for row in canvas)


def main(argv=None):
    """Print the report. A wrong command line: one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser(description="Stage 2: derivatives, by hand and automatic.")
    parser.add_argument("--fast", action="store_true", help="a smoke run: fewer steps, all parts")
    parser.add_argument("--seed", type=int, default=0, help="random seed >= 0 (default 0)")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"--seed must be >= 0, got {args.seed}")
    rng, share = np.random.default_rng(args.seed), 0.05 if args.fast else 1

    print("1. Error of a measured derivative (of e^x at 1): first truncation, then rounding\n")
    print("        h     forward     central")
    for h in 10.0 ** -np.arange(1, 13, 2):
        forward, central = (math.exp(1 + h) - math.e) / h, numerical_gradient(math.exp, 1.0, h)
        print(f"   {h:.0e}  {abs(forward - math.e):10.1e}  {abs(central - math.e):10.1e}")

    x1, x2 = np.sort(rng.uniform(-2, 2, 60)), rng.normal(size=300)
    line = 1.7 * x1 - 0.6 + 0.3 * rng.normal(size=60)
    wave = np.sin(3 * x1) + 0.5 * x1 + 0.15 * rng.normal(size=60)
    coins = 1.0 * (rng.random(300) < sigmoid(2 * x2 - 0.5))
    corners = rng.choice([-1.0, 1.0], (200, 2))
    points, xor = corners + 0.35 * rng.normal(size=(200, 2)), 1.0 * (corners.prod(axis=1) > 0)
    zero, curve, net = (
        {"w": 0.0, "b": 0.0},
        *(
            {
                "W": rng.normal(size=(D, J)),
                "b": rng.normal(size=J),
                "v": rng.normal(size=J),
                "c": 0.0,
            }
            for D, J in ((1, 24), (2, 8))
        ),
    )
    neuron, network = (neuron_forward, neuron_backward), (network_forward, network_backward)
    no_tanh = (partial(network_forward, nonlinear=False), network_backward)
    auto = {  # the same models and losses on Tensors, without a line of calculus
        neuron: lambda x, w, b: x * w + b,
        network: lambda x, W, b, v, c: (x @ W + b).tanh() @ v + c,
        no_tanh: lambda x, W, b, v, c: (x @ W + b) @ v + c,
        mse: lambda z, y: ((z - y) ** 2).mean(),
        cross_entropy: lambda z, y: -((2 * y - 1) * z).sigmoid().log().mean(),  # 1-σ(z) = σ(-z)
    }
    problems = {  # layer, loss, inputs, answers, start, learning rate, steps
        "line": (neuron, mse, x1, line, zero, 0.1, 500),
        "logistic neuron": (neuron, cross_entropy, x2, coins, zero, 1.0, 2000),
        "admission": (
            neuron,
            cross_entropy,
            standardise(SAT)[0],
            np.array(ADMITTED),
            zero,
            1.0,
            1000,
        ),
        "curve 1-24-1": (network, mse, x1[:, None], wave, curve, 0.02, 20000),
        "xor 2-8-1": (network, cross_entropy, points, xor, net, 0.5, 3000),
        "xor, no tanh": (no_tanh, cross_entropy, points, xor, net, 0.1, 3000),
    }
    print("\n2. Six models trained on hand-derived gradients. Last columns, at a random point: the")
    print("   largest difference between all gradients by hand and by Tensor, and numerical ones\n")
    print("   model             numbers   steps    loss before, after   hand-auto   hand-numerical")
    trained = {}
    for name, (layer, loss, x, y, theta, rate, steps) in problems.items():
        model, steps = (*layer, loss), int(steps * share)
        trained[name], losses = gradient_descent(model, theta, x, y, rate, steps)
        theta = {k: v + 0.3 * rng.normal(size=np.shape(v)) for k, v in theta.items()}
        tensors = {k: Tensor(v) for k, v in theta.items()}
        auto[loss](auto[layer](Tensor(x), *tensors.values()), y).backward()
        by_auto, by_steps = [], []
        for k, grad in loss_and_grads(model, theta, x, y)[1].items():
            at = lambda v: loss_and_grads(model, {**theta, k: v}, x, y)[0]  # noqa: B023, E731
            by_auto.append(np.max(np.abs(grad - tensors[k].grad)))
            by_steps.append(np.max(np.abs(grad - numerical_gradient(at, theta[k]))))
        print(
            f"   {name:17} {sum(map(np.size, theta.values())):7} {steps:7} {losses[0]:11.4f}"
            f" {losses[-1]:9.4f} {max(by_auto):11.1e} {max(by_steps):16.1e}"
        )
    print("\n   line: by descent w {w:+.6f}, b {b:+.6f};".format(**trained["line"]), end="")
    print("  in closed form w {:+.6f}, b {:+.6f}".format(*fit_line(x1, line)))
    print("   logistic neuron: w {w:.3f}, b {b:.3f}".format(**trained["logistic neuron"]), end="")
    print("  (its data were drawn with 2 and -0.5)")
    for name in ("xor 2-8-1", "xor, no tanh"):
        z, _ = problems[name][0][0](points, *trained[name].values())
        print(f"   {name}: {np.mean((z > 0) == xor):.1%} of answers right")

    print("\n3. College admission: the loss has no minimum, so the boundary depends on the stop\n")
    print("    steps        w        b   boundary   p(1200)")
    for steps in (10, 100, 1000, 10000):
        a = admission(max(1, int(steps * share)))
        print(
            f"   {max(1, int(steps * share)):6} {a['w']:8.3f} {a['b']:8.3f}"
            f" {a['boundary']:10.1f} {a['probability']:9.4f}"
        )

    print("\n4. The 1-24-1 network (.) through its data (o)\n")
    grid = np.linspace(-2, 2, 300)
    fit, _ = network_forward(grid[:, None], *trained["curve 1-24-1"].values())
    print(text_plot([(grid, fit, "."), (x1, wave, "o")]))

    print("\n5. Value: a chain of operations, and an MLP on 40 of the XOR points\n")
    x = y = Value(0.5)
    for _ in range(100_000):
        y = y * 0.9999
    y.backward()
    print(f"   100,000 times y <- 0.9999 y: slope {x.grad:.6e}, by hand {0.9999**100_000:.6e}")
    mlp, data = MLP(2, [8, 1], seed=args.seed), list(zip(points[:40].tolist(), 2 * xor[:40] - 1))
    for _ in range(max(2, int(40 * share))):
        mlp.zero_grad()
        loss = -sum((mlp(x) * y).sigmoid().log() for x, y in data) / len(data)
        loss.backward()
        for p in mlp.parameters():
            p.data -= p.grad
    right = np.mean([mlp(x).data * y > 0 for x, y in data])
    print(f"   MLP(2, [8, 1]): {len(mlp.parameters())} parameters, {right:.0%} of answers right")

    print("\n6. Milliseconds for the gradient of the sum of tanh(x[i] x[i+1]) in n inputs\n")
    print("      n     value   forward   reverse   forward/value   reverse/value")

    def ring(x, tanh):
        return sum(tanh(a * b) for a, b in zip(x, x[1:] + x[:1]))

    def forward_gradient(x):  # one run for each input
        for i in range(len(x)):
            ring([Dual(xj, i == j) for j, xj in enumerate(x)], Dual.tanh)

    def reverse_gradient(x):  # one run, one sweep
        ring([Value(xi) for xi in x], Value.tanh).backward()

    for n in (1, 4, 16, 64) if args.fast else (1, 4, 16, 64, 256, 512):
        x, ms = rng.normal(size=n).tolist(), []
        for run in (lambda x: ring(x, math.tanh), forward_gradient, reverse_gradient):
            began = time.perf_counter()
            for _ in range(max(1, 64 // n)):
                run(x)
            ms.append((time.perf_counter() - began) / max(1, 64 // n) * 1e3)
        print(f"   {n:4} {ms[0]:9.3f} {ms[1]:9.3f} {ms[2]:9.3f}", end="")
        print(f" {ms[1] / ms[0]:13.0f} x {ms[2] / ms[0]:13.0f} x")


# %% Common mistakes
#
# 1. No zero_grad: steps grow ever wilder, since backward() ADDS to grad (MLP training in main).
# 2. `grad =` for `grad +=`: a*a gets half its slope; rule (3) adds (last line of sweep).
# 3. Sweeping in a wrong order, or recursively: wrong on diamonds, RecursionError (topological_order).
# 4. A broadcast axis not summed: the gradient of b (J,) arrives as (N, J) (unbroadcast).
# 5. g[i] += ū with repeated i: counted once; np.add.at counts each (Tensor.__getitem__).
# 6. Gradient checks in float32 or with h = 1e-12: noise looks like a bug (numerical_gradient).
# 7. Changing data in place between forward and backward: slopes of another point (Value._node).

# %% Exercises
#
#  1. Read: which expression of `sweep` is rule (2), which is rule (3)?
#  2. Draw the graph of a*b + a and its gradients on paper; compare with to_dot.
#  3. Derive sin and cos and add them to Operators: one line each, three engines served.
#  4. Predict the best h for the second difference (f(x+h) - 2f(x) + f(x-h))/h², then measure it.
#  5. Set relu's slope at 0 to 1. Construct a network whose training changes, and one where none does.
#  6. Add Tensor.concatenate and Tensor.where; make them pass grad_check.
#  7. Let Dual's tangent be an array of n numbers. What do all derivatives cost now, and in memory?
#  8. Put Dual numbers inside Value: a Hessian-vector product in one sweep. Check it numerically.
#  9. Checkpoint: keep every √K-th node of a chain of K and recompute the rest. Measure both costs.
# 10. Make sweep build Values, so that gradients have gradients; check the fourth derivative of x⁴.
# 11. Research: the best order to multiply a graph's slopes is NP-hard to find (Naumann, 2008). Search
#     small graphs for cases where both forward and reverse lose, and describe what they share.

# %% Where this leads
#
# PyTorch and JAX are section 10 with more operations on faster arrays. Stage 3 trains its first
# language model with a backward written out by hand, as in sections 3 to 5; stage 4 asks how best
# to descend; the capstone derives a whole GPT this way.

if __name__ == "__main__":
    main()
