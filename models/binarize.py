"""Sign, and the gradients that stand in for its own, which is zero almost everywhere.

The convention of the whole project holds here too: sign(0) = +1, so that every value is a bit.
Every function below computes ``y = sign(x)``, elementwise; they differ in the gradient:

===========  ==========================================  ========================================
plain        ``dL/dx = dL/dy``                           Bengio et al., arXiv:1308.3432
clipped      ``dL/dy`` where ``|x| <= 1``, else 0        Hubara et al., NeurIPS 2016, equation 4
polynomial   ``dL/dy max(0, 2 - 2|x|)``                  Liu et al., "Bi-Real Net", ECCV 2018;
                                                         also SiMaN
progressive  ``dL/dy k max(0, sqrt(2) t - t^2 |x|)``,    Lin et al., "Rotated Binary Neural
             ``t`` rising with the training's progress   Network", NeurIPS 2020
===========  ==========================================  ========================================
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The sign of a tensor of any shape, together with the gradient that stands in for its own.
Estimator = Callable[[Tensor], Tensor]


def sign(x: Tensor) -> Tensor:
    """Return +1 where ``x >= 0`` and -1 elsewhere, in the dtype of ``x``; no gradient."""
    # The sum makes -0 a +0. A quarter of the time of `torch.where`, in every step for every weight.
    return torch.copysign(torch.ones((), dtype=x.dtype, device=x.device), x + 0.0)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sign(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


class _ClippedStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return sign(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] * (x.abs() <= 1)


class _Tent(torch.autograd.Function):
    """Sign with the gradient ``max(0, height - slope |x|)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, height: float, slope: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.height, ctx.slope = height, slope
        return sign(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] * (ctx.height - ctx.slope * x.abs()).clamp(min=0), None, None


def sign_straight_through(x: Tensor) -> Tensor:
    """``y = sign(x)``; gradient ``dL/dx = dL/dy`` everywhere."""
    result: Tensor = _StraightThrough.apply(x)  # type: ignore[no-untyped-call]
    return result


def sign_clipped(x: Tensor) -> Tensor:
    """``y = sign(x)``; gradient ``dL/dx = dL/dy`` where ``|x| <= 1``, else 0."""
    result: Tensor = _ClippedStraightThrough.apply(x)  # type: ignore[no-untyped-call]
    return result


def sign_polynomial(x: Tensor) -> Tensor:
    """``y = sign(x)``; gradient ``dL/dx = dL/dy max(0, 2 - 2|x|)``.

    The derivative of the piecewise quadratic approximation of the sign by Bi-Real Net (Liu et al.,
    ECCV 2018, equation 7), which SiMaN uses too.
    """
    result: Tensor = _Tent.apply(x, 2.0, 2.0)  # type: ignore[no-untyped-call]
    return result


class ProgressiveSign:
    """``y = sign(x)`` with a gradient that grows steeper while training proceeds.

    ``dL/dx = dL/dy k max(0, sqrt(2) t - t^2 |x|)`` with ``t = 10^(-2 + 3 progress)`` and
    ``k = max(1 / t, 1)`` (RBNN, Lin et al., NeurIPS 2020, section 3.4): first nearly the plain
    estimator, at last a narrow peak about zero, so that ever fewer bits still flip.

    ``progress``, in 0..1, is set from outside.
    """

    def __init__(self, progress: float = 0.0) -> None:
        self.progress = progress

    def __call__(self, x: Tensor) -> Tensor:
        """Return the signs of ``x``."""
        t = 10.0 ** (-2.0 + 3.0 * self.progress)
        k = max(1.0 / t, 1.0)
        result: Tensor = _Tent.apply(x, k * math.sqrt(2.0) * t, k * t * t)  # type: ignore[no-untyped-call]
        return result
