"""The gradients that stand in for that of the sign, against their closed forms."""

import numpy as np
import pytest
import torch

from models.binarize import (
    ProgressiveSign,
    sign_clipped,
    sign_polynomial,
    sign_straight_through,
)

X = np.array([-2.5, -1.0, -0.75, -0.1, 0.0, 0.3, 1.0, 1.2, 40.0])


def gradient(estimator):
    """The estimator's gradient at X where that of its result is 3."""
    x = torch.tensor(X, requires_grad=True)
    y = estimator(x)
    assert y.tolist() == [1.0 if value >= 0 else -1.0 for value in X]
    (3 * y).sum().backward()
    return x.grad.numpy()


def progressive(progress):
    t = 10 ** (-2 + 3 * progress)
    k = max(1 / t, 1.0)
    return k * np.maximum(0, np.sqrt(2) * t - t**2 * np.abs(X))


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (sign_straight_through, np.ones_like(X)),
        (sign_clipped, (np.abs(X) <= 1).astype(float)),
        (sign_polynomial, np.maximum(0, 2 - 2 * np.abs(X))),
        (ProgressiveSign(0.0), progressive(0.0)),
        (ProgressiveSign(0.5), progressive(0.5)),
        (ProgressiveSign(1.0), progressive(1.0)),
    ],
)
def test_gradients_are_the_closed_forms(estimator, expected):
    assert np.allclose(gradient(estimator), 3 * expected)


def test_polynomial_gradient_is_the_slope_of_a_smooth_sign():
    """Bi-Real Net's piecewise quadratic: 2x + x^2 below zero, 2x - x^2 above, -1 and 1 outside."""

    def smooth(x):
        inside = np.where(x < 0, 2 * x + x**2, 2 * x - x**2)
        return np.where(np.abs(x) <= 1, inside, np.sign(x))

    slope = (smooth(X + 1e-6) - smooth(X - 1e-6)) / 2e-6
    assert np.allclose(gradient(sign_polynomial), 3 * slope, atol=1e-5)


def test_progressive_gradient_narrows_and_grows():
    early, late = gradient(ProgressiveSign(0.0)), gradient(ProgressiveSign(1.0))
    assert np.allclose(early[:8], 3 * np.sqrt(2), rtol=0.02)  # nearly the plain estimator
    assert late[4] == pytest.approx(3 * 10 * np.sqrt(2)) and np.count_nonzero(late) == 2


def test_progress_may_be_set_while_in_use():
    estimator = ProgressiveSign()
    estimator.progress = 1.0
    assert np.array_equal(gradient(estimator), gradient(ProgressiveSign(1.0)))
