"""What the other tests lean on: a gradient check that lets nothing wrong through."""

import numpy as np
import pytest
from conftest import assert_gradients, central_difference, relative_error, worst_entry


def test_worst_entry_judges_each_entry_by_its_own_size():
    right = np.array([[1e6, 1.0], [1e-6, 0.0]])
    assert worst_entry(right, right) == (0.0, (0, 0))
    assert worst_entry(right, right * [[1, 1], [1.5, 1]]) == (pytest.approx(1 / 3), (1, 0))
    assert worst_entry(right, right + [[0, 0], [0, 1e-9]]) == (1.0, (1, 1))
    assert worst_entry(right, right + [[0, 0], [0, 1e-9]], floor=1e-3)[0] < 1e-5
    assert worst_entry(np.zeros((2, 0)), np.zeros((2, 0))) == (0.0, ())
    with pytest.raises(AssertionError, match="shapes"):
        worst_entry(np.ones(2), np.ones((2, 1)))


@pytest.mark.parametrize("scale", [1e-200, 1e-11, 1.0, 1e11])
def test_relative_error_has_no_scale(rng, scale):
    right = scale * rng.normal(size=1000)
    assert relative_error(right, right) == 0
    assert relative_error(-right, right) > 0.9 and relative_error(0 * right, right) > 0.9
    one = right.copy()
    one[np.abs(right).argsort()[500]] *= 2  # a middling entry of a thousand
    assert relative_error(one, right) > 0.4
    smallest = right.copy()
    smallest[np.abs(right).argmin()] *= -1
    assert relative_error(smallest, right) > 1e-6


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_never_passes(wrong):
    assert relative_error([1.0, wrong], [1.0, 2.0]) == np.inf
    assert relative_error([wrong], [wrong]) == np.inf
    with pytest.raises(AssertionError, match=r"input 0 at \(1,\)"):
        x = np.array([1.0, 2.0])
        assert_gradients(lambda: x * x, [x], lambda dy: [dy * 2 * x * [1, wrong]])


@pytest.mark.parametrize("scale", [1e-11, 1.0, 1e11])
def test_assert_gradients_names_the_wrong_entry_at_any_scale(rng, scale):
    x = rng.uniform(0.5, 2, size=(20, 50))

    def forward():
        return scale * x**3

    assert_gradients(forward, [x], lambda dy: [dy * scale * 3 * x * x])
    factor = np.ones_like(x)
    factor[7, 3] = 1.001  # one of a thousand, by a thousandth
    with pytest.raises(AssertionError, match=r"input 0 at \(7, 3\)"):
        assert_gradients(forward, [x], lambda dy: [dy * scale * 3 * x * x * factor])
    with pytest.raises(AssertionError, match="0 gradients of 1 inputs"):
        assert_gradients(forward, [x], lambda dy: [])


def test_central_difference_leaves_its_input_alone(rng):
    x = rng.normal(size=(2, 3))
    kept = x.copy()
    numeric = central_difference(lambda: float(np.sum(np.exp(x))), x)
    assert relative_error(numeric, np.exp(x)) < 1e-9 and np.array_equal(x, kept)
