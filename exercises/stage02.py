"""The exercises of stage 2: differentiate. `python exercises 2` checks them."""

import math
from types import SimpleNamespace

import numpy as np

import stage02_autograd as stage

# %% 1. ★ (by hand) Two ways back to each
# y = (a·b + a)·b at a = 2 and b = 3. Call the steps m = a·b, s = m + a and y = s·b, and go there
# and back on paper, as section 1 does.
# ANSWER_1: the gradients [of m, of a, of b], the slopes of y in each: a list of three numbers.
ANSWER_1 = None


# %% 2. ★ (by hand) One step downhill
# The line z = w·x + b shall go through two points (x, y): (1, 3) and (2, 3). It starts at w = 1 and
# b = 0. The loss is section 4's mean squared error; the rate η is 0.1.
# ANSWER_2:  the gradient [dw, db] at the start, a list of two numbers.
# ANSWER_2B: the loss after one step of gradient descent.
ANSWER_2 = None
ANSWER_2B = None


# %% 3. ★ (derive) Tan and arctan, for three engines
# Derive tan′ from y = tan x = sin x / cos x with the quotient rule, and write it in the result y.
# Derive arctan′ from tan(arctan x) = x with the chain rule. Then write both for Dual, Value and
# Tensor at once: x._node(name, result, (x,), (slope,)) makes the new number, and np.tan and
# np.arctan can compute the result for all three.
def tan(x):
    """tan of a Dual, a Value or a Tensor x, as a new one that can be differentiated."""
    raise NotImplementedError


def arctan(x):
    """arctan of a Dual, a Value or a Tensor x, as a new one that can be differentiated."""
    raise NotImplementedError


# %% 4. ★★ (derive) Three areas in the unit circle
# Section 3 leaves the proof of (**) to you. Draw a sector of the unit circle with the angle h (in
# radians, 0 < h < π/2), its corner at the centre O and one radius along the axis, from O to P. The
# other radius ends on the circle at Q. Prolong it until it meets, at R, the tangent to the circle
# at P. The triangle OPQ lies inside the sector, and the triangle OPR contains it.
# Now prove (sin h)/h → 1 by dividing the three areas, and (1 - cos h)/h → 0 by multiplying above
# and below with 1 + cos h.
# ANSWER_4: what does (1 - cos h)/h² come to as h → 0?
def three_areas(h):
    """(area of the triangle OPQ, area of the sector, area of the triangle OPR) at the angle h."""
    raise NotImplementedError


ANSWER_4 = None


# %% 5. ★★ (find the bug) Right with relu, wrong with tanh
# This should be the backward of section 6's network. Its author tested it with relu only, and it
# passed; with tanh it is wrong. Somebody broke one line. Which? Mend it.
def network_gradients(X, W, b, V, c, dZ, bend="tanh"):
    """(dX (N, D), dW (D, J), db (J,), dV (J, K), dc (K,)) from dZ (N, K); bend: a name in BENDS."""
    phi, slope = stage.BENDS[bend]
    A = X @ W + b  # (N, J)
    H = phi(A)  # (N, J)
    dH = dZ @ V.T  # (N, J)
    dA = dH * slope(A)
    return dA @ W.T, X.T @ dA, dA.sum(axis=0), H.T @ dZ, dZ.sum(axis=0)


# %% 6. ★★ (explain) XOR without tanh
# In part 4 of the report, "xor, no tanh" starts at a loss of 3.9, ends near 0.688 after 3,000 steps
# and is right about half of the points. Its 33 numbers with tanh come to 0.002. Why not here?
#   a  the rate is too small: after enough steps the loss would come near 0, too
#   b  without tanh it takes more than 8 hidden neurons to learn 200 points
#   c  the loss has several valleys, and gradient descent was caught in a bad one
#   d  near the best it can do, it gives nearly every point a p near 1/2, and that costs about ln 2
# ANSWER_6: one letter, as a string.
ANSWER_6 = None


# %% 7. ★★ (implement) minimum and where
# Tensor lacks two operations. As in section 11, each entry of the result hands its gradient to the
# entry it came from, and a._node, which sums what was stretched, can do the rest.
def minimum(a, b):
    """The smaller of two Tensors, entry by entry; their shapes broadcast. Where they are equal,
    each gets half of the gradient, as with max."""
    raise NotImplementedError


def where(mask, a, b):
    """a where mask is True, else b: Tensors a, b and an array of bools, whose shapes broadcast. An
    entry that is not taken plays no part in the result, even if it is inf."""
    raise NotImplementedError


# %% 8. ★★ (implement) All slopes in one pass forward
# Forward mode takes a pass for each input, since a Dual carries one tangent. Let it carry n: an
# array with the derivatives in all n inputs. You need a class of your own, like Dual, whose
# tangents are arrays; then call f once. (A pass may be one, but n·E multiplications remain. How
# much memory does a number take now? When would you still want this?)
def gradient_in_one_pass(f, x):
    """The gradient (n,) of f at the list x of n floats. f takes a list of n numbers, uses the
    operators of section 7 and returns one number; it is called once."""
    raise NotImplementedError


# %% 9. ★★★ (implement) Curvature in one sweep
# The second derivatives Hᵢⱼ = ∂²f/∂xᵢ∂xⱼ say how the gradient answers a move of x: along v it
# changes by H·v. One sweep finds that without H: let a Value hold Duals, with v as the tangents of
# the inputs, and each gradient will carry its own derivative along v. You need a class like Value,
# but with a `lib` whose functions take Duals, an __init__ that lets Duals in, and a _node that
# makes your class.
def hessian_times(f, x, v):
    """H·v (n,) of f at the list x of n floats, for a list v of n floats. f takes a list of n
    numbers and returns one, made with + - * /, ** a whole number, exp, sin, cos and tanh; it is
    called once."""
    raise NotImplementedError


# %% 10. ★★★ (implement) A chain too long to remember
# A sweep keeps every value of the way there, which can be more than the memory holds. Take a chain
# of K steps. Keep only every √K-th state, and forget the others. On the way back, take the last one
# that was kept, compute the states that follow it once more, sweep back through them, and forget
# them; then take the one before.
def chain_gradient(steps, x, y_bar):
    """x̄, from ȳ at the end of a chain that starts at the state x.

    steps: list of K pairs (forward, pull); forward(state) is the next state, and pull(state, ū)
    takes ū of the next state to v̄ of this one. Nothing else is known about states. At most
    2√K + 4 of them may be alive at once, x among them, and all forwards together may be called 2K
    times.
    """
    raise NotImplementedError


# %% 11. ★ (research) How few neurons are enough for XOR?
# Part 4 of the report uses 8. When it was tried here (section 6's network with tanh; points and
# start drawn as there; its rate and steps; 20 seeds), 1 neuron never got beyond 83 % right; 2 came
# to 97 % or more with 6 seeds, 3 with 19, 4 and more with all 20. So two can do it, but few starts
# lead there. Are the other neurons there to store something, or to find something? Draw what two
# have learned, when they did and when they did not.


# %% 12. ★★★ (project) Two spirals in thirty-six numbers
# Two spirals turn around each other, 400 points with answers 0 and 1 and a little noise. Train a
# network of section 6 (with tanh) that tells them apart: `python exercises --project 2` has it
# judge 2,000 new points, of which 97 % must be right. It may have 36 numbers at most, W, b, V and c
# together, and a minute to learn. Draw what it says while it learns: what do bad starts stick at?
def spirals(n, rng):
    """Random points (n, 2) of two spirals, and which one each is from: (n,), 0 or 1."""
    answers = rng.integers(0, 2, n)
    turns = rng.uniform(0.5, 3.5, n)  # half turns
    angle = np.pi * (turns + answers)
    points = (turns / 3.5)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points + 0.02 * rng.normal(size=(n, 2)), answers


def learn_spirals(points, answers):
    """A dict of W (2, J), b (J,), V (J, 1), c (1,), learned from points (N, 2) and answers (N,)."""
    raise NotImplementedError
