"""Stochastic quantisation: in every step some filters, drawn anew, are spared the sign.

Dong, Ni, Li, Chen, Zhu and Su, "Learning Accurate Low-Bit Deep Neural Networks with Stochastic
Quantization", BMVC 2017. The more a filter loses by its signs, the likelier it stays float.
"""

import numpy as np
import torch
from torch import Tensor

from models.layers import Quantizer

_LEAST_CHANCE = 1e-8  # the draw needs as many filters of some chance as it draws


class StochasticQuantizer:
    """Another quantizer, applied to a ``fraction`` of the filters only.

    The others pass as they are, brought to the mean magnitude that the quantizer would have given
    them. Which filters these are depends on the seed, the step and the layer's number alone.
    """

    def __init__(self, quantizer: Quantizer, seed: int, layer: int) -> None:
        self.quantizer = quantizer
        self.fraction = 1.0
        self.step = 0
        self._seed, self._layer = seed, layer

    def __call__(self, weight: Tensor) -> Tensor:
        """Return weights of the shape of ``weight`` (N, ...), a part of the N filters binary."""
        binary = self.quantizer(weight)
        spared = int((1.0 - self.fraction) * len(weight))
        if spared == 0:
            return binary
        chosen = self._draw(weight, spared).reshape(-1, *[1] * (weight.ndim - 1))
        with torch.no_grad():
            size = _magnitude(binary) / _magnitude(weight).clamp(min=torch.finfo(weight.dtype).tiny)
        return torch.where(chosen, weight * size, binary)

    def _draw(self, weight: Tensor, count: int) -> Tensor:
        """Draw ``count`` filters without replacement, bool (N,), likelier the larger the error."""
        entropy = np.random.SeedSequence((self._seed, self._layer, self.step))
        generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        chances = sign_errors(weight.detach()).cpu() + _LEAST_CHANCE
        drawn = torch.multinomial(chances, count, generator=generator)
        chosen = torch.zeros(len(weight), dtype=torch.bool)
        chosen[drawn] = True
        return chosen.to(weight.device)


def sign_errors(weight: Tensor) -> Tensor:
    """Return ``||w - mean|w| sign(w)||_1 / ||w||_1`` of every filter, (N,); 0 for a filter of 0."""
    magnitude = weight.abs()
    mean = _magnitude(weight)
    error = (magnitude - mean).abs().flatten(1).sum(dim=1)
    total = magnitude.flatten(1).sum(dim=1)
    return torch.where(total > 0, error / total.clamp(min=torch.finfo(weight.dtype).tiny), 0.0)


def _magnitude(weight: Tensor) -> Tensor:
    """Return the mean magnitude of every filter, (N, 1, ...)."""
    return weight.abs().mean(dim=tuple(range(1, weight.ndim)), keepdim=True)
