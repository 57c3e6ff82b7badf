"""In which order the Triton kernels want the bits of a word of weights.

Unpacking makes several numbers of one register at a time: two of 16 bits or four of 8. A shift and
a mask leave bits of equal distance, one for each, so neighbouring channels have to lie that far
apart: with two numbers in a register channel 2 s is bit s and channel 2 s + 1 is bit s + 16; with
four, channel 4 s + i is bit s + 8 i.
"""

import numpy as np
import torch
from torch import Tensor

from models.kernels.product_shape import WORD_BITS, ValueKind


def together(read: ValueKind) -> int:
    """Return how many numbers of the kind ``read`` one register holds."""
    return {"f16": 2, "i8": 4}.get(read, 1)


def interleaved(words: Tensor, read: ValueKind) -> Tensor:
    """Return weights for products that read ``read``: int32, as ``words``, on the same device.

    ``words``: int32, channel c of a word is its bit c.
    """
    numbers = together(read)
    channels = np.arange(WORD_BITS)
    places = channels % numbers * (WORD_BITS // numbers) + channels // numbers
    wide = words.to(torch.int64)
    result = torch.zeros_like(wide)
    for channel, place in zip(channels.tolist(), places.tolist(), strict=True):
        result |= (wide >> channel & 1) << place
    return torch.where(result >= 1 << 31, result - (1 << 32), result).to(torch.int32)
