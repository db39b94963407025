"""Solutions of the exercises of stage 2: differentiate. `python exercises 2` checks them."""

import math
from types import SimpleNamespace

import numpy as np

import stage02_autograd as stage

# %% 1. ★ (by hand) Two ways back to each
# y = (a·b + a)·b at a = 2 and b = 3. Call the steps m = a·b, s = m + a and y = s·b, and go there
# and back on paper, as section 1 does.
# ANSWER_1: the gradients [of m, of a, of b], the slopes of y in each: a list of three numbers.
ANSWER_1 = [3, 12, 14]
# > There: m = 6, s = 8, y = 24. Back: y = s·b hands 3 to s and 8 to b. s = m + a hands this 3 on to
# > m and to a. m = a·b hands 3·3 = 9 to a, which makes 12, and 2·3 = 6 to b, which makes 14. Indeed
# > y = a·b² + a·b, with the slopes b² + b = 12 in a and 2ab + a = 14 in b.
HINTS_1 = [
    "First the values: m, s and y. Then start with the gradient 1 at y and go through the steps"
    " in reverse.",
    "A sum hands its gradient to both of its inputs as it is; a product multiplies it by the"
    " other one.",
    "a is used in s and in m, b in y and in m. What arrives on the two ways is added.",
]

# %% 2. ★ (by hand) One step downhill
# The line z = w·x + b shall go through two points (x, y): (1, 3) and (2, 3). It starts at w = 1 and
# b = 0. The loss is section 4's mean squared error; the rate η is 0.1.
# ANSWER_2:  the gradient [dw, db] at the start, a list of two numbers.
# ANSWER_2B: the loss after one step of gradient descent.
ANSWER_2 = [-4, -3]
ANSWER_2B = 0.85
# > z = [1, 2] and z - y = [-2, -1], so the loss is (4 + 1)/2 = 2.5 and dz = (2/2)·[-2, -1]. Then
# > dw = -2·1 - 1·2 = -4 and db = -2 - 1 = -3. The step makes w = 1.4 and b = 0.3. Now z is
# > [1.7, 3.1], off by -1.3 and 0.1, and the loss is (1.69 + 0.01)/2.
HINTS_2 = [
    "z for both points comes first, then dz = (2/N)·(z - y) with N = 2.",
    "dw adds dz·x over the points, db adds dz. Both knobs take the step, w ← w - η·dw.",
    "Both lie too low: z - y = [-2, -1]. With the new w and b, compute z and the loss again.",
]


# %% 3. ★ (derive) Tan and arctan, for three engines
# Derive tan′ from y = tan x = sin x / cos x with the quotient rule, and write it in the result y.
# Derive arctan′ from tan(arctan x) = x with the chain rule. Then write both for Dual, Value and
# Tensor at once: x._node(name, result, (x,), (slope,)) makes the new number, and np.tan and
# np.arctan can compute the result for all three.
def tan(x):
    """tan of a Dual, a Value or a Tensor x, as a new one that can be differentiated."""
    y = np.tan(x.data)
    return x._node("tan", y, (x,), (1 + y * y,))


def arctan(x):
    """arctan of a Dual, a Value or a Tensor x, as a new one that can be differentiated."""
    return x._node("arctan", np.arctan(x.data), (x,), (1 / (1 + x.data * x.data),))


# > tan′ = (cos·cos + sin·sin)/cos² = 1 + sin²/cos² = 1 + y². With y = arctan x, the chain rule
# > makes (1 + tan² y)·y′ = 1 of tan y = x, and tan y is x: y′ = 1/(1 + x²).
HINTS_3 = [
    "(sin/cos)′ = (cos·cos - sin·(-sin))/cos². What is left if you divide both terms by cos²?",
    "Let y = arctan x. Differentiate both sides of tan y = x in x, and solve for y′.",
    "The slope of tan is easily written in its result, that of arctan in its input x.data.",
]


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
    return math.sin(h) / 2, h / 2, math.tan(h) / 2


ANSWER_4 = 0.5
# > The three areas grow in this order, so sin h < h < tan h. Divide sin h by each of them:
# > 1 > (sin h)/h > cos h, and cos h → 1 leaves (sin h)/h no other choice than 1. (For h < 0 it is
# > the same, since both sin h and h change their sign.) Then (1 - cos h)·(1 + cos h) = sin² h makes
# > (1 - cos h)/h² = ((sin h)/h)² / (1 + cos h) → 1/2. Times h, it makes (1 - cos h)/h → 0.
HINTS_4 = [
    "Both triangles have the base OP = 1. Their heights are those of Q and of R above the axis.",
    "The whole circle has the angle 2π and the area π. What share of it is the sector?",
    "(1 - cos h)·(1 + cos h) = sin² h, so (1 - cos h)/h² is ((sin h)/h)² divided by 1 + cos h.",
]


# %% 5. ★★ (find the bug) Right with relu, wrong with tanh
# This should be the backward of section 6's network. Its author tested it with relu only, and it
# passed; with tanh it is wrong. Somebody broke one line. Which? Mend it.
def network_gradients(X, W, b, V, c, dZ, bend="tanh"):
    """(dX (N, D), dW (D, J), db (J,), dV (J, K), dc (K,)) from dZ (N, K); bend: a name in BENDS."""
    phi, slope = stage.BENDS[bend]
    A = X @ W + b  # (N, J)
    H = phi(A)  # (N, J)
    dH = dZ @ V.T  # (N, J)
    dA = dH * slope(H)  # was: dA = dH * slope(A)
    return dA @ W.T, X.T @ dA, dA.sum(axis=0), H.T @ dZ, dZ.sum(axis=0)


# > The slopes in BENDS are written in the result h = φ(a), as section 6 says. relu forgives the
# > mistake, as relu(a) > 0 exactly where a > 0; 1 - a² is not the slope of tanh at a. So a test
# > with one φ is no test, least of all with one that is linear in pieces.
HINTS_5 = [
    "dV and dc are right; dX, dW and db are wrong. What do these three have in common?",
    "Go through BENDS with a pencil: φ′(a) is there a function of what?",
    "For relu, h > 0 and a > 0 say the same. For tanh, is 1 - a² the slope, or 1 - h²?",
]

# %% 6. ★★ (explain) XOR without tanh
# In part 4 of the report, "xor, no tanh" starts at a loss of 3.9, ends near 0.688 after 3,000 steps
# and is right about half of the points. Its 33 numbers with tanh come to 0.002. Why not here?
#   a  the rate is too small: after enough steps the loss would come near 0, too
#   b  without tanh it takes more than 8 hidden neurons to learn 200 points
#   c  the loss has several valleys, and gradient descent was caught in a bad one
#   d  near the best it can do, it gives nearly every point a p near 1/2, and that costs about ln 2
# ANSWER_6: one letter, as a string.
ANSWER_6 = "d"
# > Without φ the network is one neuron on two inputs (section 6), and its yes lies on one side of a
# > line. Of both classes about half lie on each side, whatever the line, so a large w never pays: w
# > and b settle near 0, p near 1/2, and -ln(1/2) = 0.693. The 0.005 below that are the accident
# > that the 200 points are not spread evenly. (Without tanh, 200 steps were enough to settle.)
HINTS_6 = [
    "What is X W V without φ? How many numbers does it take to write it down?",
    "What is the loss of a model that says p = 1/2 to everything?",
    "Which lines have more yes than no on one side, and more no than yes on the other, by far?",
]


# %% 7. ★★ (implement) minimum and where
# Tensor lacks two operations. As in section 11, each entry of the result hands its gradient to the
# entry it came from, and a._node, which sums what was stretched, can do the rest.
def minimum(a, b):
    """The smaller of two Tensors, entry by entry; their shapes broadcast. Where they are equal,
    each gets half of the gradient, as with max."""
    is_a = (a.data < b.data) + 0.5 * (a.data == b.data)
    return a._node("minimum", np.minimum(a.data, b.data), (a, b), (is_a, 1.0 - is_a))


def where(mask, a, b):
    """a where mask is True, else b: Tensors a, b and an array of bools, whose shapes broadcast. An
    entry that is not taken plays no part in the result, even if it is inf."""
    mask = np.asarray(mask)
    return a._node("where", np.where(mask, a.data, b.data), (a, b), (1.0 * mask, 1.0 * ~mask))


# > An entry that was taken has the slope 1, the other one 0. mask*a + (1 - mask)*b has the same
# > slopes, but 0·inf is nan: what one wanted to hide gets into the result.
HINTS_7 = [
    "The slope in an entry of a is 1 where it was taken and 0 where it was not.",
    "np.minimum and np.where compute the results, from a.data and b.data.",
    "a._node(name, result, (a, b), (slopes in a, slopes in b)): two arrays of 0, 1 and, for equal"
    " entries, ½.",
]


# %% 8. ★★ (implement) All slopes in one pass forward
# Forward mode takes a pass for each input, since a Dual carries one tangent. Let it carry n: an
# array with the derivatives in all n inputs. You need a class of your own, like Dual, whose
# tangents are arrays; then call f once. (A pass may be one, but n·E multiplications remain. How
# much memory does a number take now? When would you still want this?)
def gradient_in_one_pass(f, x):
    """The gradient (n,) of f at the list x of n floats. f takes a list of n numbers, uses the
    operators of section 7 and returns one number; it is called once."""

    class Wide(stage.Dual):
        """A number and its derivatives in all inputs, an array `tangent` (n,)."""

        __slots__ = ()

        def __init__(self, data, tangent=0.0):
            self.data, self.tangent = stage.real(data), np.asarray(tangent, dtype=np.float64)

        def _node(self, op, y, inputs, slopes):
            return Wide(y, sum(slope * v.tangent for v, slope in zip(inputs, slopes)))

    return f([Wide(value, row) for value, row in zip(x, np.eye(len(x)))]).tangent


# > Nothing changes but the type of a tangent: slope·array is array, and the constants' tangent 0.0
# > broadcasts. Input i starts with row i of the identity. Each number is now n + 1 floats, as long
# > as it lives; but, unlike in reverse, it may be forgotten when it is no longer needed. With few
# > inputs and long programs (a physical simulation with five constants) that is the better bargain.
HINTS_8 = [
    "Derive a class from stage.Dual. Its __init__ must not call real() on the tangent, which"
    " refuses arrays.",
    "Its _node must return your class; the sum of slope·tangent is right for arrays, too.",
    "What are the derivatives of the input i in the inputs 0 to n - 1? That is row i of a"
    " well-known matrix.",
]


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

    class Deep(stage.Value):
        """A Value whose data and whose gradient are Duals."""

        __slots__ = ()
        lib = SimpleNamespace(
            exp=stage.Dual.exp,
            sin=stage.Dual.sin,
            cos=stage.Dual.cos,
            tanh=stage.Dual.tanh,
            power=lambda base, n: base**n,
        )

        def __init__(self, data, _children=(), _op="", label="", _slopes=()):
            super().__init__(0.0, _children, _op, label, _slopes)
            self.data = data if isinstance(data, stage.Dual) else stage.Dual(data)
            self.grad = stage.Dual(0.0)

        def _node(self, op, y, inputs, slopes):
            return Deep(y, inputs, op, "", slopes)

    inputs = [Deep(stage.Dual(value, along)) for value, along in zip(x, v)]
    f(inputs).backward()
    return np.array([node.grad.tangent for node in inputs])


# > The sweep computes ∂f/∂xᵢ by multiplications and additions of data and slopes. Each of these is
# > a Dual, so beside ∂f/∂xᵢ its derivative along v comes out, Σⱼ ∂²f/∂xᵢ∂xⱼ·vⱼ = (H·v)ᵢ. This costs
# > a small multiple of one gradient; H itself would cost n of them, and n² numbers of memory. Stage
# > 8 finds the sharpest direction of a loss with products like this.
HINTS_9 = [
    "What arrives at an input is a Dual: `data` is the slope, `tangent` is how it changes along v.",
    "lib = SimpleNamespace(exp=stage.Dual.exp, ...): the operators of Dual are functions of a"
    " Dual. ** also asks lib for power(x, n).",
    "Value.__init__ turns data into a float; in your class, let Duals stay and make others"
    " Dual(data). In the end read input.grad.tangent.",
]


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
    stride = max(1, math.isqrt(len(steps)))
    kept = []
    for k, (forward, _) in enumerate(steps):
        if k % stride == 0:
            kept.append((k, x))
        x = forward(x)
    while kept:
        start, x = kept.pop()
        part = steps[start : start + stride]
        states = [x]
        for forward, _ in part[:-1]:
            states.append(forward(states[-1]))
        for _, pull in reversed(part):
            y_bar = pull(states.pop(), y_bar)
    return y_bar


# > √K states are kept, and √K more live while a piece is swept. Each step runs at most twice. With
# > pieces of s steps, K/s + s states live at once, least at s = √K. Frameworks call this activation
# > checkpointing: one forward more, where a forward and a backward cost about three, and in return
# > the memory grows with the root of the depth.
HINTS_10 = [
    "First go forward once, with a list of (number of the step, state) at every √K-th step only.",
    "Take the last one off the list. Compute the states of its piece again, but not the state"
    " after its last step: nothing pulls from that.",
    "pull(states.pop(), y_bar) for the steps of the piece in reverse: pop forgets what is done."
    " Mind variables that still hold a state.",
]

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
# given
def spirals(n, rng):
    """Random points (n, 2) of two spirals, and which one each is from: (n,), 0 or 1."""
    answers = rng.integers(0, 2, n)
    turns = rng.uniform(0.5, 3.5, n)  # half turns
    angle = np.pi * (turns + answers)
    points = (turns / 3.5)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points + 0.02 * rng.normal(size=(n, 2)), answers


def learn_spirals(points, answers):
    """A dict of W (2, J), b (J,), V (J, 1), c (1,), learned from points (N, 2) and answers (N,)."""
    model = stage.network_forward, stage.network_backward, stage.cross_entropy
    data = points, answers[:, None], 0.5  # and the learning rate
    J, best, least = 8, None, math.inf
    for seed in range(12):
        rng = np.random.default_rng(seed)
        W, V = rng.normal(size=(2, J)), rng.normal(size=(J, 1)) / math.sqrt(J)
        start = {"W": W, "b": np.zeros(J), "V": V, "c": np.zeros(1)}
        params, losses = stage.gradient_descent(model, start, *data, 4000)
        if losses[-1] < least:
            best, least = params, losses[-1]
    return stage.gradient_descent(model, best, *data, 16000)[0]


# > Eight neurons bend along eight lines, and the spirals need about that many. With neurons to
# > spare, nearly every start finds its way (compare exercise 11); here three of four end with two
# > neurons doing the work of one, at 88 to 93 %. Nobody knows which start is good before it is
# > tried, but a short try is a good sign: so twelve of 4,000 steps, and 16,000 more for the best.
HINTS_12 = [
    "J hidden neurons make 4J + 1 numbers. stage.gradient_descent with the model"
    " (network_forward, network_backward, cross_entropy) trains them; answers must be (N, 1).",
    "Use as many numbers as you may. At a rate near 0.5 it takes 20,000 steps or so. If it stays"
    " near 90 %, it may be the start and not the rate.",
    "Not every start needs all its steps: give many of them a few thousand, and go on with the"
    " one whose loss is lowest. Judge on points that you draw yourself with spirals().",
]
