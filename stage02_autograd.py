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

Run `python stage02_autograd.py [--fast] [--seed N]`. Rests on: Linnainmaa's thesis (1970), where
reverse mode begins; Rumelhart, Hinton, Williams, "Learning representations by back-propagating
errors" (1986); Griewank, Walther, "Evaluating Derivatives" (2008); Soudry et al., "The implicit
bias of gradient descent on separable data" (2018); Karpathy's micrograd (2020; its names stay).
"""

import argparse
import math
import numbers
import operator
import os
import re
import sys
import timeit
from functools import partial
from types import SimpleNamespace

import numpy as np

# %% 1. The derivative, and how to measure it
# Turn the input of f from x to x + h. If the change of f per unit of turning settles on one number
# as h shrinks, that number is the derivative:
#     f′(x) = lim_{h→0} (f(x+h) - f(x)) / h.            For x²: (2xh + h²)/h = 2x + h → 2x.
# Call what has not settled yet ε(h), and multiply by h: f is differentiable at x exactly when
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
#     E′(h) = h/3·|f‴| - u·|f|/h² = 0:    h = (3u·|f|/|f‴|)^⅓ ∝ u^⅓ ≈ 5e-6,    E ∝ u^⅔ ≈ 2e-11.
# (Forward: h, error ∝ √u ≈ 1e-8.) It takes two runs per input: good for checks, not for training.


def numerical_gradient(f, x, h=None):
    """Central differences in float64 of f(x), which is one number; x is a number or an array."""
    x = np.array(x, dtype=np.float64)
    grad = np.empty_like(x)
    for i in np.ndindex(x.shape):
        step = h or 2.0 ** (-53 / 3) * max(1.0, abs(x[i]))
        right, left = x.copy(), x.copy()
        right[i] += step
        left[i] -= step
        grad[i] = (f(right) - f(left)) / (right[i] - left[i])  # 2h, as rounding left it
    return grad if x.ndim else float(grad)


# %% 2. The rules, and the chain rule
# f, g are values at x, and f₊, g₊ values at x + h; f₊ → f, since f₊ - f → 0 by (1).
#     constant    (c - c)/h = 0, and for x itself (x + h - x)/h = 1           c′ = 0, x′ = 1
#     sum         (f₊ + g₊ - f - g)/h = (f₊-f)/h + (g₊-g)/h                   (f+g)′ = f′ + g′
#     product     (f₊g₊ - fg)/h = (f₊-f)/h·g₊ + f·(g₊-g)/h                    (fg)′ = f′g + fg′
#     reciprocal  (1/g₊ - 1/g)/h = -(g₊-g)/h / (g₊·g)                         (1/g)′ = -g′/g²
#     quotient    f·(1/g) by the last two: f′/g - f·g′/g²                     (f′ - (f/g)·g′)/g
#     exponential (eˣ⁺ʰ - eˣ)/h = eˣ·(eʰ-1)/h; e is defined by (eʰ-1)/h → 1   (eˣ)′ = eˣ
#
# Chain rule for two: u = g(x), y = f(u). When x moves by h, u moves by k = (g′(x) + ε₁(h))·h by (1)
# and then y moves by (f′(u) + ε₂(k))·k, again by (1). Insert k and divide by h:
#     (y₊ - y)/h = (f′(u) + ε₂(k))·(g′(x) + ε₁(h))  →  f′(u)·g′(x),   as h → 0 makes k → 0.
# (Nothing was divided by k, which may be 0.) For n functions, by induction on n: let x₀ = x and
# xᵢ = fᵢ(xᵢ₋₁). The composition Fₙ = fₙ∘...∘f₁ has
#     Fₙ′(x) = fₙ′(xₙ₋₁)· ... ·f₂′(x₁)·f₁′(x₀).                                                (2)
# n = 1 says F₁′ = f₁′. If (2) holds for n - 1, then Fₙ = fₙ∘Fₙ₋₁ is a composition of two, so
# Fₙ′(x) = fₙ′(xₙ₋₁)·Fₙ₋₁′(x), and inserting (2) for Fₙ₋₁′ gives (2) for n. ∎  However long a
# program, its derivative is a product of local slopes. Four more rules follow:
#     logarithm   differentiate both sides of e^(ln x) = x: x·(ln x)′ = 1     (ln x)′ = 1/x
#     power       xᵃ = e^(a·ln x), slope xᵃ·a/x (x < 0: product rule)         (xᵃ)′ = a·xᵃ⁻¹
#     sigmoid     σ = 1/(1+e⁻ˣ): σ′ = e⁻ˣ/(1+e⁻ˣ)² = σ·e⁻ˣ/(1+e⁻ˣ)            σ′ = σ(1-σ)
#     tanh        tanh x = 2σ(2x) - 1 = y: y′ = 4σ(1-σ), where σ = (1+y)/2    tanh′ = 1 - y²
#
# Several routes. Let v feed u = g(v) and w = k(v), and L = L(u, w) be smooth; ∂L/∂u turns u alone.
# When v moves by h, move u first (L changes by about ∂L/∂u·g′h), then w (by about ∂L/∂w·k′h, at the
# moved u; but ∂L/∂w is continuous). What "about" hides vanishes faster than h. So routes ADD:
#     ∂L/∂v = Σ over all u that use v of  ∂L/∂u · ∂u/∂v.                                       (3)
# Multiply along a route (2), add over routes (3): that is all of backpropagation.

# %% 3. Descending: a straight line through points
# By (3), moving all knobs θ by a small δ changes L by about Σ ∂L/∂θᵢ·δᵢ = g·δ, g the gradient. For
# δ = -η·g that is -η‖g‖² ≤ 0: against the gradient the loss falls, if the rate η is small enough
# for "about" to hold. Repeat: gradient descent. (Stage 4 asks how fast.)
#
# First model: ŷᵢ = w·xᵢ + b, with loss L = (1/N)·Σᵢ(ŷᵢ - yᵢ)². From here on dv is short for ∂L/∂v:
#     dŷᵢ = (2/N)·(ŷᵢ - yᵢ).    w acts through every ŷᵢ, with slope xᵢ: dw = Σᵢ dŷᵢ·xᵢ, db = Σᵢ dŷᵢ.
# A closed form can check the descent: db = 0 gives b = ȳ - w·x̄ (bars are means), and then dw = 0
# says Σ (w(xᵢ-x̄) - (yᵢ-ȳ))·xᵢ = 0. The bracket sums to 0, so xᵢ may be replaced by xᵢ - x̄, and
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


def standardise(x):
    """((x - mean)/deviation, mean, deviation). ValueError unless x has two different values."""
    x = np.asarray(x, dtype=np.float64)
    if not x.size or not np.ptp(x) > 0:
        raise ValueError(f"expected at least two different numbers, got {x.tolist()}")
    return (x - x.mean()) / x.std(), float(x.mean()), float(x.std())


def loss_and_grads(model, params, x, y):
    """Loss and gradients of model = (forward, backward, loss); params in forward's order."""
    y_hat, cache = model[0](x, *params.values())
    loss, dy_hat = model[2](y_hat, y)
    return float(loss), dict(zip(params, model[1](dy_hat, cache)[1:]))  # [0] is dx


def gradient_descent(model, params, x, y, learning_rate, steps):
    """Repeat θ ← θ - η·dθ; returns (new params, list of the loss before every step).
    ValueError for learning_rate <= 0, x and y of different length, or a diverging loss."""
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
# Let p = σ(z) = 1/(1+e⁻ᶻ) be the probability of y = 1. Why σ? Call z the logarithm of the odds,
# z = ln(p/(1-p)); then p/(1-p) = eᶻ, and solving for p gives σ(z).
# All answers together have probability Π pᵢ^yᵢ·(1-pᵢ)^(1-yᵢ). To make it large, make the mean of
# its negative logarithm small: L = -(1/N)·Σ [y·ln p + (1-y)·ln(1-p)], the cross-entropy. As
# p = eᶻ/(1+eᶻ) and 1-p = 1/(1+eᶻ), one term is ℓ = -y·z + ln(1+eᶻ), with the slope
#     ∂ℓ/∂z = eᶻ/(1+eᶻ) - y = p - y.                      Prediction minus truth, once again.
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
# scores dw would be a thousand times db and no one rate suit both, so first standardise:
# x = (SAT - mean)/deviation. p = ½ where w·x + b = 0: the boundary is mean - (b/w)·deviation.
# A catch: any threshold between 1100 and 1300 is perfect here, so doubling w and b only makes right
# answers surer. The loss has no minimum, w grows for ever (like ln t) and the boundary creeps to
# the middle of the gap (Soudry et al.). The answer depends on when you stop.


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
# A line cannot bend. Let J neurons each bend at a place of their own, and add them up:
#     aᵢⱼ = wⱼ·xᵢ + bⱼ,     hᵢⱼ = tanh aᵢⱼ,     ŷᵢ = Σⱼ vⱼ·hᵢⱼ + c.
# Backwards from dŷᵢ, (2) along routes and (3) over them, each line from the one above:
#     dvⱼ  = Σᵢ dŷᵢ·hᵢⱼ       dc = Σᵢ dŷᵢ                 as ∂ŷᵢ/∂vⱼ = hᵢⱼ, ∂ŷᵢ/∂c = 1
#     dhᵢⱼ = dŷᵢ·vⱼ           daᵢⱼ = dhᵢⱼ·(1 - hᵢⱼ²)       as tanh′ = 1 - tanh²
#     dwⱼ  = Σᵢ daᵢⱼ·xᵢ       dbⱼ = Σᵢ daᵢⱼ               as for the single neuron
#     dxᵢ  = Σⱼ daᵢⱼ·wⱼ                                  xᵢ feeds all J neurons
#
# With D features, rows of X (N, D) meet weights W (D, J): A = X W + b, where (X W)ᵢⱼ = Σ_d Xᵢd·Wdⱼ.
# Wdⱼ touches aᵢⱼ in every row i, with slope Xᵢd, so by (3) dWdⱼ = Σᵢ Xᵢd·daᵢⱼ; Xᵢd touches aᵢⱼ for
# every j, so dXᵢd = Σⱼ daᵢⱼ·Wdⱼ. As matrix products, good for any A = X W,
#     dW = Xᵀ dA,        dX = dA Wᵀ,                                                           (4)
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
# All that was mechanical, so let a program do it. A number that can be differentiated overloads
# + * exp and the rest. An operation y = y(a, b) computes y and its local slopes ∂y/∂a, ∂y/∂b, by
# section 2. What is then DONE with the slopes is the whole difference between our three engines:
#     Dual    multiplies each by a derivative it already carries, at once        (forward mode)
#     Value   stores each with a pointer to its input, to be multiplied later    (reverse mode)
#     Tensor  is Value over arrays: an elementwise operation has a slope per entry
# So the rules stand here once, y first and then a slope per input. `lib` is where functions are
# found (math or NumPy), `_lift` turns a plain number into a constant, `_node` builds the result.


def operation(op, rule):
    """The method x.op() or a∘b, for rule(lib, x) = (y, ∂y/∂x) or rule(lib, a, b)."""

    def method(self, *other):
        inputs = (self, self._lift(other[0])) if other else (self,)
        if inputs[-1] is NotImplemented:
            return NotImplemented
        y, *slopes = rule(self.lib, *[x.data for x in inputs])
        return self._node(op, y, inputs, slopes)

    return method


class Operators:
    """Section 2 in code. At its kink relu could take any slope in [0, 1]; we take 0. For a variable
    exponent, bⁿ = e^(n·ln b) has the slopes n·bⁿ/b and bⁿ·ln b. ValueError where no real y exists.
    """

    __slots__ = ()
    __add__ = operation("+", lambda f, a, b: (a + b, 1.0, 1.0))
    __sub__ = operation("-", lambda f, a, b: (a - b, 1.0, -1.0))
    __mul__ = operation("*", lambda f, a, b: (a * b, b, a))
    __truediv__ = operation("/", lambda f, a, b: (a / b, 1.0 / b, -(a / b) / b))
    __radd__, __rmul__ = __add__, __mul__  # b∘a where b is a plain number: Python asks a
    __rsub__ = operation("-", lambda f, a, b: (b - a, -1.0, 1.0))
    __rtruediv__ = operation("/", lambda f, a, b: (b / a, -(b / a) / a, 1.0 / a))
    __neg__ = operation("neg", lambda f, x: (-x, -1.0))
    exp = operation("exp", lambda f, x: (y := f.exp(x), y))
    tanh = operation("tanh", lambda f, x: (y := f.tanh(x), 1.0 - y * y))
    sigmoid = operation("sigmoid", lambda f, x: (y := sigmoid(x, f.exp), y * (1.0 - y)))
    relu = operation("ReLU", lambda f, x: (f.maximum(x, 0.0), 1.0 * (x > 0)))

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
            return base
        b, n, ln_b = base.data, self.data, base.log().data
        return self._node("**", y := b**n, (base, self), (n * y / b, y * ln_b))

    def __repr__(self):
        a, b = self.__slots__[:2]
        return f"{type(self).__name__}({a}={getattr(self, a)}, {b}={getattr(self, b)})"


class Scalar(Operators):
    """What Dual and Value share. Python's errors stay: 1/0 is a ZeroDivisionError."""

    __slots__ = ()
    lib = SimpleNamespace(exp=math.exp, log=math.log, tanh=math.tanh, maximum=max)
    lib.power = lambda x, n: x**n if x or n >= 0 else math.inf  # √x rises vertically at 0

    def _lift(self, x):
        if isinstance(x, type(self)):
            return x
        return type(self)(x) if isinstance(x, numbers.Real) else NotImplemented


# %% 7. Forward mode: a number and its derivative, hand in hand
# Give every number x its derivative ẋ in the one input we ask about: 1 for that input, 0 for other
# inputs and constants. For y = y(a, b), (3) says ẏ = ∂y/∂a·ȧ + ∂y/∂b·ḃ. That is all. (In algebra:
# a + ȧε with ε² = 0, as in (a+ȧε)(b+ḃε) = ab + (ȧb+aḃ)ε; hence "dual numbers".)


class Dual(Scalar):
    """A number `data` and the derivative `tangent` it carries along."""

    __slots__ = ("data", "tangent")

    def __init__(self, data, tangent=0.0):
        self.data, self.tangent = float(data), float(tangent)

    def _node(self, op, y, inputs, slopes):
        return Dual(y, sum(slope * x.tangent for x, slope in zip(inputs, slopes)))


# %% 8. Reverse mode: remember, then sweep back
# Read (3) from the other end. Let v̄ = ∂L/∂v, the adjoint of v: L̄ = 1 and v̄ = Σ ū·∂u/∂v over the
# users u of v. Visit users before what they use; then, by induction along the visit, every ū in the
# sum is final when v is reached, and so is v̄. Such an order, a topological order (inputs first)
# reversed, is found by a depth-first search that writes down a node once all it depends on is
# written down. It keeps its own stack: Python's holds a thousand calls, and chains are longer.
#
# The cost. The graph of f: ℝⁿ → ℝᵐ has an edge per (user, input), at most two per operation. A
# forward pass uses each edge once and gives the derivatives of ALL outputs in ONE input; a sweep
# uses each edge once and gives those of ONE output in ALL inputs. With E edges, all n·m take
#     n·E multiplications forward,     m·E in reverse,     and a loss has m = 1.
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
    Nodes point only to their inputs, so a graph has no cycle and vanishes with its last user."""

    __slots__ = ("data", "grad", "label", "_prev", "_op", "_slopes")

    def __init__(self, data, _children=(), _op="", label="", _slopes=()):
        self.data, self.grad = float(data), 0.0
        self._prev, self._op, self.label, self._slopes = tuple(_children), _op, label, _slopes

    def _node(self, op, y, inputs, slopes):
        return Value(y, inputs, op, "", slopes)

    def backward(self):
        """Add ∂self/∂v to v.grad for every v it depends on (self too); twice adds it twice."""
        for v, v_bar in sweep(self, 1.0, operator.mul):
            v.grad += v_bar


def to_dot(value):
    """The graph behind a Value as Graphviz text, for any viewer or `dot -Tsvg`."""
    name = {v: f"v{i}" for i, v in enumerate(topological_order(value))}
    lines = ["digraph {", "  rankdir=LR;"]
    for v, n in name.items():
        label = re.sub(r'([\\{}|<>"])', r"\\\1", v.label) + " | " if v.label else ""
        label += f"data {v.data:.4g} | grad {v.grad:.4g}"
        lines.append(f'  {n} [shape=record, label="{{ {label} }}"];')
        if v._op:
            lines += [f'  {n}op [label="{v._op}"];', f"  {n}op -> {n};"]
            lines += [f"  {name[x]} -> {n}op;" for x in v._prev]
    return "\n".join([*lines, "}"])


# %% 9. Neuron, Layer, MLP
# A network without a line of calculus, after micrograd. `seed` is an int, or a Generator that
# neurons share so that each draws its own weights (neurons born equal would stay equal for ever).


class Module:
    """Whatever has parameters() of which backward() adds up gradients."""

    def zero_grad(self):
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
# A Python object per number costs about a microsecond per operation. Let a node hold an array: an
# edge then stores the function that takes ū to ū·∂u/∂v (a vector-Jacobian product).
#   elementwise   every entry has its own slope: ū * slope.   sum: slope 1, so spread ū out again.
#   broadcasting  an entry of v stretched over many entries of u is used by them all: (3), add.
#   matmul        (4): Ā = Ū Bᵀ, B̄ = Aᵀ Ū on the last two axes; batch axes broadcast as above.
#   max           slope 1 at the largest. A tie is a kink; its k largest get ū/k each, the mean of
#                 the k choices of one winner, so a subgradient as valid as any of them.
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


def grad_check(f, *arrays):
    """The largest relative error of backward() against central differences, over all arrays.

    f takes a Tensor for each array and returns a Tensor (weighted by fixed random numbers). The
    error ‖a - n‖/(‖a‖ + ‖n‖ + 1e-4) is below 1e-6 if right (and not at a kink), else near 1."""
    inputs = [Tensor(np.array(a, dtype=np.float64)) for a in arrays]
    out = f(*inputs)
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
    """Draw a list of (x, y, mark) in text, later ones on top."""
    xs, ys = (np.concatenate([curve[k] for curve in curves]) for k in (0, 1))
    canvas = np.full((rows, columns), " ")
    for x, y, mark in curves:
        i = np.rint((ys.max() - y) / np.ptp(ys) * (rows - 1)).astype(int)
        canvas[i, np.rint((x - xs.min()) / np.ptp(xs) * (columns - 1)).astype(int)] = mark
    return "\n".join("  |" + "".join(row).rstrip() for row in canvas)


def report(args):
    """Six numbered parts, from the error of a measured derivative to the cost of all."""
    rng, fewer = np.random.default_rng(args.seed), 20 if args.fast else 1

    print("1. Error of a measured derivative (of e^x at 1): first truncation, then rounding\n")
    print("        h     forward     central")
    for h in 10.0 ** -np.arange(1, 13, 2):
        forward, central = (math.exp(1 + h) - math.e) / h, numerical_gradient(math.exp, 1.0, h)
        print(f"   {h:.0e}  {abs(forward - math.e):10.1e}  {abs(central - math.e):10.1e}")

    x1, x2, exams = np.sort(rng.uniform(-2, 2, 60)), rng.normal(size=300), standardise(SAT)[0]
    line = 1.7 * x1 - 0.6 + 0.3 * rng.normal(size=60)
    wave = np.sin(3 * x1) + 0.5 * x1 + 0.15 * rng.normal(size=60)
    coins, admitted = 1.0 * (rng.random(300) < sigmoid(2 * x2 - 0.5)), np.array(ADMITTED)
    corners = np.array([(1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0)] * 50)
    points, xor = corners + 0.35 * rng.normal(size=(200, 2)), np.array([1.0, 0.0] * 100)

    def start(D, J):
        W, b, v = (rng.normal(size=shape) for shape in ((D, J), J, J))
        return {"W": W, "b": b, "v": v, "c": 0.0}

    neuron, network = (neuron_forward, neuron_backward), (network_forward, network_backward)
    no_tanh = (partial(network_forward, nonlinear=False), network_backward)
    auto = {  # the same models and losses on Tensors, without a line of calculus
        neuron: lambda x, w, b: x * w + b,
        network: lambda x, W, b, v, c: (x @ W + b).tanh() @ v + c,
        no_tanh: lambda x, W, b, v, c: (x @ W + b) @ v + c,
        mse: lambda z, y: ((z - y) ** 2).mean(),
        cross_entropy: lambda z, y: -((2 * y - 1) * z).sigmoid().log().mean(),  # 1-σ(z) = σ(-z)
    }
    zero, net = {"w": 0.0, "b": 0.0}, start(2, 8)
    problems = {  # model, loss, inputs, answers, start, learning rate, steps
        "line": (neuron, mse, x1, line, zero, 0.1, 500),
        "logistic neuron": (neuron, cross_entropy, x2, coins, zero, 1.0, 2000),
        "admission": (neuron, cross_entropy, exams, admitted, zero, 1.0, 1000),
        "curve 1-24-1": (network, mse, x1[:, None], wave, start(1, 24), 0.02, 20000),
        "xor 2-8-1": (network, cross_entropy, points, xor, net, 0.5, 3000),
        "xor, no tanh": (no_tanh, cross_entropy, points, xor, net, 0.1, 3000),
    }
    print("\n2. Six models trained on hand-derived gradients. Last column: the largest difference")
    print("   between all gradients by hand and by Tensor, at the start moved by random amounts\n")
    print("   model             numbers   steps    loss before, after     right   hand - automatic")
    trained = {}
    for name, (model, loss, x, y, theta, rate, steps) in problems.items():
        model = (*model, loss)
        trained[name], losses = gradient_descent(model, theta, x, y, rate, steps // fewer)
        z = model[0](x, *trained[name].values())[0]
        right = "-" if loss is mse else f"{np.mean((z > 0) == y):.1%}"
        theta = {k: Tensor(v + 0.3 * rng.normal(size=np.shape(v))) for k, v in theta.items()}
        auto[loss](auto[model[:2]](Tensor(x), *theta.values()), y).backward()
        grads = loss_and_grads(model, {k: v.data for k, v in theta.items()}, x, y)[1]
        gap = max(np.max(np.abs(grads[k] - v.grad)) for k, v in theta.items())
        print(f"   {name:17} {sum(map(np.size, grads.values())):7} {len(losses):7}", end="")
        print(f" {losses[0]:11.4f} {losses[-1]:9.4f} {right:>9} {gap:18.1e}")
    print("\n   line, by descent: w {w:+.6f}, b {b:+.6f};".format(**trained["line"]), end="")
    w = np.mean((x1 - x1.mean()) * (line - line.mean())) / x1.var()
    print(f"  in closed form: w {w:+.6f}, b {line.mean() - w * x1.mean():+.6f}")

    print("\n3. College admission: the loss has no minimum, so the boundary depends on the stop")
    print("\n    steps        w        b   boundary   p(1200)")
    for steps in (20, 200, 2000, 20000):
        row = steps // fewer, *admission(steps // fewer).values()
        print("   {:6} {:8.3f} {:8.3f} {:10.1f} {:9.4f}".format(*row))

    print("\n4. The 1-24-1 network (.) through its data (o)\n")
    grid = np.linspace(-2, 2, 300)
    fit, _ = network_forward(grid[:, None], *trained["curve 1-24-1"].values())
    print(text_plot([(grid, fit, "."), (x1, wave, "o")]))
    mlp, data = MLP(2, [8, 1], seed=args.seed), list(zip(points[:40].tolist(), 2 * xor[:40] - 1))
    for _ in range(40 // fewer):
        mlp.zero_grad()
        loss = -sum((mlp(x) * y).sigmoid().log() for x, y in data) / len(data)
        loss.backward()
        for p in mlp.parameters():
            p.data -= p.grad
    right = np.mean([mlp(x).data * y > 0 for x, y in data])
    print(f"\n5. MLP(2, [8, 1]) made of Values, trained on 40 of the XOR points: {right:.0%} right")

    print("\n6. Milliseconds: sum of tanh(x[i] x[i+1]) over n inputs, and its gradient both ways\n")
    print("      n     value   forward   reverse   forward/value   reverse/value")

    def ring(x):
        return sum((a * b).tanh() for a, b in zip(x, x[1:] + x[:1]))

    runs = (
        lambda x: ring([Value(xi) for xi in x]),
        lambda x: [ring([Dual(xj, i == j) for j, xj in enumerate(x)]) for i in range(len(x))],
        lambda x: ring([Value(xi) for xi in x]).backward(),
    )
    for n in (1, 4, 16) if args.fast else (1, 4, 16, 64, 256):
        x, k = rng.normal(size=n).tolist(), 256 // n
        f, forward, reverse = (min(timeit.repeat(partial(r, x), number=k)) * 1e3 / k for r in runs)
        print(f"   {n:4} {f:9.3f} {forward:9.3f} {reverse:9.3f}", end="")
        print(f" {forward / f:13.1f} x {reverse / f:13.1f} x")


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
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"--seed must be >= 0, got {args.seed}")
    try:
        report(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever was reading has seen enough
        drop_unwritten()
    except KeyboardInterrupt:
        drop_unwritten()
        parser.exit(130, "\n")
    except OSError as error:
        drop_unwritten()
        parser.error(str(error))


# %% Common mistakes
# 1. No zero_grad: steps grow ever wilder, as backward() ADDS to grad (the MLP loop in report).
# 2. `grad =` for `grad +=`: a*a gets half its slope; rule (3) adds (last line of sweep).
# 3. A sweep in the wrong order: diamonds go wrong; a recursive one: RecursionError (section 8).
# 4. A broadcast axis not summed: the gradient of b (J,) arrives as (N, J) (unbroadcast).
# 5. g[i] += ū with repeated i: counted once; np.add.at counts each (Tensor.__getitem__).
# 6. Gradient checks in float32 or with h = 1e-12: noise looks like a bug (numerical_gradient).
# 7. Changing x.data before backward(): the slopes kept are those of the old x (Value._slopes).

# %% Exercises
#  1. Read: which expression of `sweep` is rule (2), and which is rule (3)?
#  2. Draw the graph of a*b + a with its gradients on paper, then compare with to_dot.
#  3. Derive sin and cos and add them to Operators: one line each, for three engines.
#  4. Predict the best h for the second difference (f(x+h) - 2f(x) + f(x-h))/h², then measure it.
#  5. Let relu have slope 1 at 0. Build a network whose training this changes.
#  6. Add concatenate and where to Tensor; make them pass grad_check.
#  7. Let Dual's tangent be an array of n numbers. What do n derivatives cost now, and in memory?
#  8. Put Dual numbers inside Value: a Hessian-vector product in one sweep. Check it numerically.
#  9. Keep every √K-th node of a chain of K and recompute the rest in the sweep. Measure both costs.
# 10. Let sweep compute with Values, so that gradients have gradients; check x⁴ four times.
# 11. Research: the best order to multiply slopes is NP-hard (Naumann, 2008); when do both lose?

# %% Where this leads
# PyTorch and JAX are section 10 with more operations and faster arrays. Stage 3 writes the backward
# of its first language model by hand, as in sections 3 to 5, and stage 4 asks how best to descend.

if __name__ == "__main__":
    main()
