"""Packed weights as the GPU's kernels read them: 32-bit words, every tap beginning a new one.

On disk the bits of a filter stand without gaps. A kernel wants the channels of a tap at a word's
border, so that words are read whole and their bits need no shifting from tap to tap. Where a tap
has a multiple of 32 channels, which is nearly always, both are the same memory.
"""

from math import prod
from typing import Final

import numpy as np
import torch
from torch import Tensor

from models.bits import repack
from models.kernels.product_shape import WORD_BITS

_WEIGHTS_AT_ONCE: Final = 1 << 22  # unpacked to a byte each


def tap_words(bits: Tensor, weight_shape: tuple[int, ...]) -> Tensor:
    """Return int32 words ``(bases, N, taps, ceil(C / 32))`` of bits ``(bases, N, row_bytes)``.

    ``weight_shape`` is ``(N, C, kh, kw)`` or ``(N, S)``, the shape of one basis; ``bits`` are uint8
    in the order of docs/FORMAT.md, 4.1. Channel c of a tap is bit ``c % 32`` of word ``c // 32``;
    the bits past the last channel are 0. The result is on the CPU, in memory of its own.

    Raises:
        ValueError: the bits are not those of such weights.
    """
    filters, channels, *kernel = weight_shape
    taps = prod(kernel)
    rows = bits.numpy().reshape(-1, bits.shape[-1])
    if rows.shape[0] != bits.shape[0] * filters:
        raise ValueError(f"bits must be (bases, {filters}, row_bytes)")
    words = np.empty((len(rows), taps, -(-channels // WORD_BITS)), np.int32)
    at_once = max(1, _WEIGHTS_AT_ONCE // (taps * channels))
    for first in range(0, len(rows), at_once):
        part = np.ascontiguousarray(rows[first : first + at_once])
        if channels % WORD_BITS:
            words[first : first + at_once] = repack(part, (len(part), *weight_shape[1:]), WORD_BITS)
        else:
            words[first : first + at_once] = part.view("<i4").reshape(-1, *words.shape[1:])
    return torch.from_numpy(words.reshape(bits.shape[0], filters, *words.shape[1:]))
