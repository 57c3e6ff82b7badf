"""BinaryConnect, the deterministic variant (Courbariaux, Bengio and David, NeurIPS 2015).

Weights are ``H sign(w)`` with one H for a whole layer. The gradient with regard to ``sign(w)`` is
applied to the latent weights, which are clipped to -1..1 after every step, in units of H. Their
learning rate under Adam is multiplied by ``1 / sqrt(1.5 / (fan_in + fan_out))``, as in the authors'
code.

The paper trains from random weights with H = 1 and batch norm behind every layer, which makes H
free. Here training starts from a pretrained network, whose batch-norm statistics and last layer
expect weights of its own size: H is the layer's mean |w|, the best single scale for its signs.
"""

import math

import torch
from torch import Tensor

from models.binarize import Estimator, sign, sign_straight_through
from models.layers import BinaryLayer, Quantizer
from worker.methods.protocol import BinaryFilters, LayerProblem, sign_and_mean_magnitude
from worker.training.recipe import LatentStart
from worker.training.rules import latent_start

# The paper draws its latent weights uniformly from -1..1, of which the mean magnitude is this.
START_MAGNITUDE = 0.5


def binarize(problem: LayerProblem, /) -> BinaryFilters:
    """Code every filter as ``H sign(w)``, H the mean |w| of the layer; looks at no data."""
    codes, scale = sign_and_mean_magnitude(problem.weight)
    return BinaryFilters(codes, scale.mean().expand_as(scale).clone(), losses=())


class BinaryConnectRule:
    """BinaryConnect's training: clipped latent weights, one fixed scale per layer."""

    def start(self, layer: BinaryLayer, float_weight: Tensor, latent: LatentStart) -> None:
        """Start from the calibrated codes, of mean magnitude 1/2; the scale stays as it is."""
        with torch.no_grad():
            started = latent_start(sign(layer.weight), float_weight, latent)
            layer.weight.copy_(START_MAGNITUDE * started)
            self.after_step(layer)
        layer.scale.requires_grad_(False)

    def quantizer(self, layer: BinaryLayer, estimator: Estimator) -> Quantizer:
        """Return the estimator; ``plain`` is the paper's."""
        return estimator

    def after_step(self, layer: BinaryLayer) -> None:
        """Clip the latent weight to -1..1: beyond, a change of it would change no bit."""
        layer.weight.clamp_(-1.0, 1.0)

    def learning_rate_factor(self, layer: BinaryLayer, steps: int) -> float:
        """Return ``1 / sqrt(1.5 / (fan_in + fan_out))``, Glorot's coefficient turned about.

        Fans count the kernel's taps. It is what the authors' code has for Adam.
        """
        taps = layer.weight[0, 0].numel()
        fan_in, fan_out = layer.weight.shape[1] * taps, layer.weight.shape[0] * taps
        return 1.0 / math.sqrt(1.5 / (fan_in + fan_out))

    def finish(self, layer: BinaryLayer) -> None:
        """Keep the signs alone."""
        with torch.no_grad():
            layer.weight.copy_(sign(layer.weight))
        layer.quantizer = sign_straight_through
