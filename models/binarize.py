"""Sign, and the gradients that stand in for its own, which is zero almost everywhere.

The convention of the whole project holds here too: sign(0) = +1, so that every value is a bit.

References: the straight-through estimator, Bengio, Leonard and Courville, arXiv:1308.3432; the
clipped form, Hubara et al., "Binarized Neural Networks", NeurIPS 2016, equation 4.
"""

from typing import Any

import torch
from torch import Tensor


def sign(x: Tensor) -> Tensor:
    """Return +1 where ``x >= 0`` and -1 elsewhere, in the dtype of ``x``; no gradient."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


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


def sign_straight_through(x: Tensor) -> Tensor:
    """``y = sign(x)``; gradient ``dL/dx = dL/dy`` everywhere."""
    result: Tensor = _StraightThrough.apply(x)  # type: ignore[no-untyped-call]
    return result


def sign_clipped(x: Tensor) -> Tensor:
    """``y = sign(x)``; gradient ``dL/dx = dL/dy`` where ``|x| <= 1``, else 0."""
    result: Tensor = _ClippedStraightThrough.apply(x)  # type: ignore[no-untyped-call]
    return result
