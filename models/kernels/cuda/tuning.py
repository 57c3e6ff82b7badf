"""Which configuration computes a product of signs fastest, found out on the device where asked."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from models.kernels.cuda.configurations import Configuration, candidates, heuristic
from models.kernels.cuda.operators import launch_product
from models.kernels.product_shape import Epilogue, ProductShape, ProductTensors

# From launches to how long each takes on the device, infinity for what cannot run.
Seconds = Callable[[Sequence[Callable[[], None]]], Sequence[float]]


def choose(
    x: Tensor,
    words: Tensor,
    tensors: ProductTensors,
    shape: ProductShape,
    epilogue: Epilogue,
    out: Tensor,
    *,
    seconds: Seconds | None,
) -> Configuration:
    """Return a configuration for `launch_product` with these arguments.

    ``seconds`` measures the few that there are, which write to ``out``; without it a rule decides.
    Nothing is remembered, as kernels are: a measurement takes milliseconds, and whatever it says,
    the result has the same bits.
    """
    device = torch.cuda.get_device_properties(x.device)
    capability = (device.major, device.minor)
    possible = candidates(shape, capability)
    if seconds is not None and len(possible) > 1:
        run = partial(launch_product, x, words, tensors, shape, epilogue, out)
        measured = list(seconds([partial(run, config) for config in possible]))
        if min(measured) < math.inf:
            return possible[measured.index(min(measured))]
    return heuristic(shape, len(x), capability, device.multi_processor_count)
