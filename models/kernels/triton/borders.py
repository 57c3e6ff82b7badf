"""What a product's sums lack at the border, and because of how levels are kept.

Kernels read 0 outside of a map, whatever the border counts as: that is what an asynchronous copy
can fill in. And they read levels as ``q - 128``, where ``q - zero`` is meant. Both are made good by
one number that is added to a sum: it depends on the filter and on which taps lie inside the map, of
which there are few cases. A 3 x 3 kernel with a border of 1 has three rows of them, at the top, in
the middle and at the bottom, and three columns: nine *places*.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.kernels.product_shape import LEVEL_OFFSET, ProductShape


@dataclass(frozen=True)
class BorderSums:
    """What is added to the sums of every basis, filter and place.

    ``offsets``: int32 ``(bases, places, filters)``.
    ``places``: int32 ``(rows + columns,)`` of the result: the place of a pixel is the number of
    its row plus that of its column.
    """

    offsets: Tensor
    places: Tensor


def border_sums(words: Tensor, shape: ProductShape, zero: int | None) -> BorderSums | None:
    """Return what the sums of a product lack, or None where they lack nothing.

    ``words``: the weights, int32 of ``shape.words_shape``, in any order of a word's bits.
    ``zero``: the level that stands for 0 where levels are read, else None.
    """
    inside_value = 0 if zero is None else LEVEL_OFFSET - zero
    outside_value = shape.pad_value if shape.padding != (0, 0) else 0
    if not inside_value and not outside_value:
        return None
    rows, row_of = _places(shape, 0)
    columns, column_of = _places(shape, 1)
    inside = rows[:, None, :, None] & columns[None, :, None, :]
    worth = np.where(inside, inside_value, outside_value).reshape(-1, shape.taps)
    offsets = np.einsum("bnt,pt->bpn", _tap_sums(words, shape), worth)
    places = np.concatenate([row_of * len(columns), column_of])
    device = words.device
    return BorderSums(
        torch.from_numpy(offsets.astype(np.int32)).contiguous().to(device),
        torch.from_numpy(places.astype(np.int32)).to(device),
    )


def _places(shape: ProductShape, axis: int) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Return the sets of taps that lie inside, ``(places, taps)``, and the place of each window."""
    starts = np.arange(shape.out_hw[axis]) * shape.stride[axis] - shape.padding[axis]
    taps = np.arange(shape.kernel[axis]) * shape.dilation[axis]
    positions = starts[:, None] + taps
    inside = (positions >= 0) & (positions < shape.in_hw[axis])
    found, place = np.unique(inside, axis=0, return_inverse=True)
    return found, place.reshape(-1)


def _tap_sums(words: Tensor, shape: ProductShape) -> NDArray[np.int64]:
    """Return the sum of each tap's weights, ``(bases, filters, taps)``."""
    ones = np.bitwise_count(words.cpu().numpy().view(np.uint32)).sum(axis=-1, dtype=np.int64)
    sums: NDArray[np.int64] = 2 * ones - shape.group_channels
    return sums
