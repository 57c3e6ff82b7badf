"""BWN, the binary-weight network of XNOR-Net (Rastegari, Ordonez, Redmon, Farhadi, ECCV 2016).

Weights are ``mean|w| sign(w)``. The latent weights are centred and clamped before every forward
pass, and get the gradient

    dL/dw = dL/dy (mean|w| 1[|w| < 1] + 1/n) (1 - 1/c_in) n,        y = mean|w| sign(w)

with n weights in a filter: the paper's equation for ``dC/dW``, with the factors of the authors'
code for the centring, and for the unit of its learning rates.
"""

from typing import Any

import torch
from torch import Tensor

from models.binarize import Estimator, sign
from models.layers import BinaryLayer, Quantizer
from worker.methods.mean_magnitude import MeanMagnitudeRule, mean_magnitude
from worker.methods.protocol import BinaryFilters, LayerProblem, sign_and_mean_magnitude
from worker.training.recipe import LatentStart

# Where a filter has fewer input channels, it is not centred. The paper keeps the first layer in
# float; in a binary one, centring would forbid each filter to sum up colours (measured on VGG-9,
# signs with batch norm re-estimated: 67 % right, 21 % with the first layer alone centred).
LEAST_CENTRED_CHANNELS = 8


def binarize(problem: LayerProblem, /) -> BinaryFilters:
    """Code every filter as ``mean|w| sign(w)``: the baseline that looks at no data."""
    codes, scale = sign_and_mean_magnitude(problem.weight)
    return BinaryFilters(codes, scale, losses=())


class BwnRule(MeanMagnitudeRule):
    """BWN's training: centred and clamped latent weights, and the gradient above.

    Bounds and gradient are those of the paper's weights ``w = layer.scale * layer.weight``.
    """

    def start(self, layer: BinaryLayer, float_weight: Tensor, latent: LatentStart) -> None:
        """Start from the float weights, centred: some signs are not the calibrated ones."""
        super().start(layer, float_weight, latent)
        with torch.no_grad():
            self.after_step(layer)

    def quantizer(self, layer: BinaryLayer, estimator: Estimator) -> Quantizer:
        """Return ``mean|w| sign(w)`` with the paper's gradient, whatever the estimator."""
        unit = _column(layer.scale.detach(), layer.weight)

        def quantize(weight: Tensor) -> Tensor:
            result: Tensor = _ScaledSign.apply(weight, unit)  # type: ignore[no-untyped-call]
            return result

        return quantize

    def after_step(self, layer: BinaryLayer) -> None:
        """Take the mean over input channels from every kernel tap, then clamp to -1..1."""
        weight = layer.weight
        if is_centred(weight):
            weight.sub_(weight.mean(dim=1, keepdim=True))
        bound = 1.0 / _column(layer.scale, weight)
        weight.copy_(torch.minimum(torch.maximum(weight, -bound), bound))


def is_centred(weight: Tensor) -> bool:
    """Return whether filters (N, C, ...) are centred over their C input channels."""
    return weight.shape[1] >= LEAST_CENTRED_CHANNELS


class _ScaledSign(torch.autograd.Function):
    """Of latent weights (N, C, ...) in units (N, 1, ...): the module's forward and gradient."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, unit: Tensor) -> Tensor:
        mean = mean_magnitude(latent)
        ctx.save_for_backward(latent, unit, mean)
        return mean * sign(latent)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        latent, unit, mean = ctx.saved_tensors
        n = latent[0].numel()
        inside = (latent * unit).abs() < 1
        factor = n * unit * mean * inside + 1.0
        if is_centred(latent):
            factor = factor * (1.0 - 1.0 / latent.shape[1])
        return gradients[0] * factor, None


def _column(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.ndim - 1))
