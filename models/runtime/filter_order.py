"""Weights in the order in which a channels-last runtime meets what they are multiplied with.

A linear layer behind ``flatten`` reads a map in the order C, H, W (docs/FORMAT.md, 4.2). As a
convolution whose kernel is as large as the map it reads the map as it lies in memory, tap by tap,
the channels of a tap innermost, once its weights are put in that order.
"""

import numpy as np
from numpy.typing import NDArray

_WEIGHTS_AT_ONCE = 1 << 18  # unpacked to a byte each: they stay in cache, and little memory is used


def bits_tap_by_tap(
    packed: NDArray[np.uint8], map_shape: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Return the bits ``(bases, N, row_bytes)`` of a linear layer as those of a convolution.

    ``map_shape`` ``(C, H, W)`` is what was flattened, and the kernel is H x W.
    """
    channels, height, width = map_shape
    if channels == 1 or height * width == 1:
        return packed
    count = channels * height * width
    result = np.empty(packed.shape, np.uint8)
    filters, reordered = (rows.reshape(-1, packed.shape[-1]) for rows in (packed, result))
    at_once = max(1, _WEIGHTS_AT_ONCE // count)
    for first in range(0, len(filters), at_once):
        part = slice(first, first + at_once)
        bits = np.unpackbits(filters[part], axis=1, count=count, bitorder="little")
        taps = bits.reshape(-1, channels, height * width).transpose(0, 2, 1)
        reordered[part] = np.packbits(taps.reshape(-1, count), axis=1, bitorder="little")
    return result


def weights_tap_by_tap(
    weight: NDArray[np.float32], kernel_shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return float weights ``(N, C, kh, kw)`` or ``(N, S)`` as contiguous ``(N, kh, kw, C)``.

    ``kernel_shape`` is ``(C, kh, kw)``.
    """
    filters = weight.reshape(-1, *kernel_shape)
    return np.ascontiguousarray(filters.transpose(0, 2, 3, 1), np.float32)
