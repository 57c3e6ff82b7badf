"""What the weights of a product of signs sum up to, for the border of a map.

A product on tensor cores counts what weights and signs have in common. To say what that comes to it
needs the sum of the weights that met a sign: of all taps in the middle of a map, and near its
border of those that lie inside, which are a rectangle.
"""

import torch
from torch import Tensor

from models.kernels.product_shape import ProductShape


def tap_sums(words: Tensor, shape: ProductShape) -> Tensor:
    """Return int32 ``(bases, kh + 1, kw + 1, filters)``, sums over rectangles of taps.

    Entry ``[k, i, j, n]`` is the sum of filter n's weights of basis k over the first i rows and j
    columns of its kernel. ``words``: int32 ``(bases, filters, taps, words)``.
    """
    ones = _popcount(words).sum(-1)
    (bases, filters), (rows, columns) = ones.shape[:2], shape.kernel
    sums = (2 * ones - shape.group_channels).view(bases, filters, rows, columns)
    table = sums.new_zeros((bases, filters, rows + 1, columns + 1))
    table[:, :, 1:, 1:] = sums.cumsum(2).cumsum(3)
    return table.permute(0, 2, 3, 1).to(torch.int32).contiguous()


def _popcount(words: Tensor) -> Tensor:
    """Return the set bits of each int32, as int64: of pairs, of fours, and so on, side by side."""
    bits = words.to(torch.int64) & 0xFFFFFFFF
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return ((bits * 0x01010101) >> 24) & 0xFF
