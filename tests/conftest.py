"""What several test files share: central differences, a relative error, a way to run a stage."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture
def rng():
    """A generator that starts at the same place in every test."""
    return np.random.default_rng(0)


def central_difference(f, x, h=1e-5):
    """∂f/∂x for a scalar f() of the float64 array x, perturbed in place one entry at a time."""
    assert x.dtype == np.float64, "central differences need float64"
    grad = np.empty_like(x)
    for i in np.ndindex(x.shape):
        old = x[i]
        x[i] = old + h
        up = f()
        x[i] = old - h
        down = f()
        x[i] = old
        grad[i] = (up - down) / (2 * h)
    return grad


def relative_error(a, b):
    """‖a - b‖ / (‖a‖ + ‖b‖), 0 when both vanish."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}"
    scale = np.linalg.norm(a) + np.linalg.norm(b)
    return float(np.linalg.norm(a - b) / scale) if scale > 1e-12 else 0.0


def assert_gradients(forward, inputs, analytic, tolerance=1e-6, h=1e-5):
    """Every analytic[i] equals the central difference of Σ w·forward() in inputs[i].

    forward() reads the arrays in `inputs` and returns an array or a scalar; analytic(dy) returns
    the gradients in the order of the inputs for an upstream gradient dy shaped like the output.
    """
    w = np.random.default_rng(1).normal(size=np.shape(forward()))
    for i, (x, grad) in enumerate(zip(inputs, analytic(w))):
        numeric = central_difference(lambda: float(np.sum(w * forward())), x, h)
        error = relative_error(grad, numeric)
        assert error < tolerance, f"input {i}: relative error {error:.2e}"


def generators(n, seed=2):
    """n generators that start at the same place each time they are made: one a sequence."""
    return [np.random.default_rng((seed, i)) for i in range(n)]


def check_held_out_line(text):
    """The one line of the ladder in a stage's output: its three numbers must agree."""
    lines = [line for line in text.splitlines() if line.startswith("held-out:")]
    assert len(lines) == 1, f"{len(lines)} held-out lines"
    words = lines[0].split()
    nats, bits, perplexity = float(words[1]), float(words[4]), float(words[8])
    assert abs(nats / math.log(2) - bits) < 0.002
    assert abs(math.exp(nats) - perplexity) < 0.01 * perplexity
    return bits
