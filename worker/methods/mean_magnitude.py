"""The rule that BWN, HWGQ-BWN and SQ-BWN have in common: ``mean|w| sign(w)`` in every forward pass.

The scale is no parameter: it is computed anew from the latent weights, filter by filter, and
training moves it by moving them. Methods differ in the gradient that the latent weights get.
"""

from typing import Any

import torch
from torch import Tensor

from models.binarize import Estimator, sign, sign_straight_through
from models.layers import BinaryLayer, Quantizer
from worker.training.recipe import LatentStart
from worker.training.rules import latent_start


class MeanMagnitudeRule:
    """Weights ``y = mean|w| sign(w)``, with the identity as gradient: ``dL/dw = dL/dy``.

    The latent weight is kept in units of ``layer.scale``, which is fixed at the start: the weights
    of the paper are ``w = scale * latent``. So latent weights are of magnitude 1 at the start, and
    a learning rate means the same in every layer.
    """

    def start(self, layer: BinaryLayer, float_weight: Tensor, latent: LatentStart) -> None:
        """Start so that the layer computes what the calibrated one did; see `WeightRule.start`."""
        with torch.no_grad():
            layer.weight.copy_(latent_start(sign(layer.weight), float_weight, latent))
            layer.scale.div_(mean_magnitude(layer.weight).flatten())
        layer.scale.requires_grad_(False)

    def quantizer(self, layer: BinaryLayer, estimator: Estimator) -> Quantizer:
        """Return `mean_magnitude_sign`; the gradient is the method's own, not the estimator's."""
        return mean_magnitude_sign

    def after_step(self, layer: BinaryLayer) -> None:
        """Leave the latent weight as it is."""

    def learning_rate_factor(self, layer: BinaryLayer, steps: int) -> float:
        """Return 1."""
        return 1.0

    def finish(self, layer: BinaryLayer) -> None:
        """Move the mean magnitudes of the latent weights into the scale."""
        with torch.no_grad():
            layer.scale.mul_(mean_magnitude(layer.weight).flatten())
            layer.weight.copy_(sign(layer.weight))
        layer.quantizer = sign_straight_through


def mean_magnitude(weight: Tensor) -> Tensor:
    """Return ``mean|w|`` of every filter of ``weight`` (N, ...), of shape (N, 1, ...)."""
    return weight.abs().mean(dim=tuple(range(1, weight.ndim)), keepdim=True)


def mean_magnitude_sign(weight: Tensor) -> Tensor:
    """``y = mean|w| sign(w)`` per filter of ``weight`` (N, ...); gradient ``dL/dw = dL/dy``."""
    result: Tensor = _MeanMagnitudeSign.apply(weight)  # type: ignore[no-untyped-call]
    return result


class _MeanMagnitudeSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return mean_magnitude(weight) * sign(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]
