"""What a binarization method does to its latent weights while they are trained.

A rule holds no state: one object serves every layer of every run. All of a layer's state is its
latent weight and its scale.
"""

from typing import Protocol

import torch
from torch import Tensor

from models.binarize import Estimator, sign, sign_straight_through
from models.layers import BinaryLayer, Quantizer
from worker.training.recipe import LatentStart

# A filter with a smaller mean |w| than this share of its layer's has no magnitudes to speak of.
_DEAD_SHARE = 1e-6
_LEAST_SIZE = 1e-6
_LATENT_RATE = 15.0
_STEPS_TO_SETTLE = 700


class WeightRule(Protocol):
    """How a method's latent weights are started, used, kept in bounds and finished."""

    def start(self, layer: BinaryLayer, float_weight: Tensor, latent: LatentStart) -> None:
        """Make a calibrated layer ready for training.

        ``layer`` holds the calibrated codes as its latent weight, and the calibrated scale.
        ``float_weight``, of the weight's shape, is what was binarized. Sets ``layer.weight``,
        ``layer.scale`` and whether the scale is trained.
        """

    def quantizer(self, layer: BinaryLayer, estimator: Estimator) -> Quantizer:
        """Return what ``layer.quantizer`` is while training; the scale multiplies its result.

        ``estimator`` is the sign together with the gradient that stands in for its own.
        """

    def after_step(self, layer: BinaryLayer) -> None:
        """Change the latent weight after each step of the optimizer; without gradients."""

    def learning_rate_factor(self, layer: BinaryLayer, steps: int) -> float:
        """Return what Adam's learning rate is multiplied by for the latent weight.

        ``steps`` is how many the training has. A recipe may say otherwise.
        """

    def finish(self, layer: BinaryLayer) -> None:
        """Leave in ``layer.weight`` and ``layer.scale`` (not negative) what is to be packed.

        The signs of the weight are the bits. The quantizer is the default one again.
        """


class ScaledSignRule:
    """The rule of BWNH: signs of free latent weights, times a scale that is trained.

    Hu, Wang and Cheng (AAAI 2018) leave open what the latent weights start from; `latent_start`
    has the options. There is no clipping and no centring. A scale may pass through zero while
    training: at the end its sign moves into the bits. The codes of further bases stay as they were
    calibrated, their scales are trained.
    """

    def start(self, layer: BinaryLayer, float_weight: Tensor, latent: LatentStart) -> None:
        """Start from the calibrated codes and scale; see `WeightRule.start`."""
        with torch.no_grad():
            layer.weight.copy_(latent_start(sign(layer.weight), float_weight, latent))
        layer.scale.requires_grad_(True)

    def quantizer(self, layer: BinaryLayer, estimator: Estimator) -> Quantizer:
        """Return the estimator itself."""
        return estimator

    def after_step(self, layer: BinaryLayer) -> None:
        """Leave the latent weight as it is."""

    def learning_rate_factor(self, layer: BinaryLayer, steps: int) -> float:
        """Return 15, and down to 1 for fewer than 700 steps (decision 0017).

        As fast as all else, hardly a bit would turn; in few steps, what has turned cannot settle.
        """
        return max(1.0, _LATENT_RATE * min(1.0, steps / _STEPS_TO_SETTLE))

    def finish(self, layer: BinaryLayer) -> None:
        """Turn the filters of negative scales about, so that no scale is negative."""
        with torch.no_grad():
            axes = [1] * (layer.weight.ndim - 1)
            layer.weight.copy_(sign(layer.weight) * sign(layer.scale).reshape(-1, *axes))
            layer.scale.abs_()
            if layer.bases > 1:
                layer.extra_codes *= sign(layer.extra_scale).reshape(-1, *axes)
                layer.extra_scale.abs_()
        layer.quantizer = sign_straight_through


def latent_start(codes: Tensor, float_weight: Tensor, latent: LatentStart) -> Tensor:
    """Return latent weights of the shape of ``codes`` (N, ...), whose signs are the codes.

    ==============  ===========================================================================
    magnitude       ``code |w| / mean|w|`` with the mean over the filter: bits of weights near
                    zero flip first, and every filter flips as readily as every other
    mean_magnitude  ``code mean|w| / M`` with M the layer's mean |w|: within a filter all bits
                    are equally firm, filters of small weights flip first
    code            the code itself: all bits are equally firm
    ==============  ===========================================================================

    All are of mean magnitude 1 over a layer, so that a learning rate means the same for each, and
    in every layer of every network.
    """
    if latent == "code":
        return codes.clone()
    magnitude = float_weight.abs()
    of_filter = magnitude.flatten(1).mean(dim=1).reshape(-1, *[1] * (codes.ndim - 1))
    of_layer = of_filter.mean()
    dead = of_filter <= _DEAD_SHARE * of_layer
    size = of_filter / of_layer if latent == "mean_magnitude" else magnitude / of_filter
    # A weight of exactly zero would forget its code.
    return codes * torch.where(dead, 1.0, size.clamp(min=_LEAST_SIZE)).to(codes.dtype)
