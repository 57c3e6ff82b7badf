"""A moving average of all weights, which errs less than the weights of any one step."""

from collections.abc import Mapping

import torch
from torch import Tensor


class MovingAverage:
    """``average <- d average + (1 - d) weights`` after each step.

    In step t, the first being 0, ``d = min(decay, (1 + t) / (10 + t))``: at first the average
    follows closely, so that a short run does not end with what it began with.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        """Start from ``tensors``: parameters and buffers by name, which it goes on to follow."""
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        followed = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        self._counts = [name for name in tensors if name not in followed]
        self._averages = [self.tensors[name] for name in followed]
        self._sources = [tensors[name].detach() for name in followed]
        self._originals = tensors

    def update(self, step: int) -> None:
        """Take in the weights as they are after ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._sources, 1.0 - decay)
        for name in self._counts:
            self.tensors[name].copy_(self._originals[name])
