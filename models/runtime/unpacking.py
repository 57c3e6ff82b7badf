"""Packed weights as float tensors, a bounded number at a time.

A product with few enough weights comes out as one part. A larger one is cut between filters; with
groups, between groups first, so that a part never needs more input channels than it reads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


def sign_table() -> Tensor:
    """Return float32 ``(256, 8)``: row b holds the signs of byte b's bits, least bit first."""
    values = torch.arange(256, dtype=torch.int64)[:, None]
    places = torch.arange(8, dtype=torch.int64)
    return ((values >> places) & 1).to(torch.float32) * 2 - 1


def unpack_filters(rows: Tensor, shape: tuple[int, ...], table: Tensor) -> Tensor:
    """Return float32 weights -1 and +1 of ``shape`` from uint8 rows ``(n, ceil(S / 8))``.

    ``shape`` is ``(n, C, kh, kw)`` or ``(n, S)``; the first is returned channels last in memory,
    which is how its bits stand in a row.
    """
    signs = table.index_select(0, rows.flatten().to(torch.int32))
    flat = signs.view(len(rows), -1)[:, : prod(shape[1:])]
    if len(shape) == 2:
        return flat
    filters, channels, height, width = shape
    if channels == 1:
        # Either order is the same memory; but told that this is channels last, oneDNN (seen in
        # torch 2.13) takes the wrong rows of maps of one channel where strides differ.
        return flat.reshape(filters, 1, height, width)
    return flat.reshape(filters, height, width, channels).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Part:
    """Some filters of a product, the input channels they read, and the groups among them."""

    filters: slice
    inputs: slice
    groups: int


def parts(shape: tuple[int, ...], groups: int, weights_at_once: int) -> Iterator[Part]:
    """Cut weights ``(N, C / groups, ...)`` into parts of at most ``weights_at_once`` weights.

    A single filter is never cut.
    """
    filters, inputs = shape[0], shape[1]
    filters_at_once = max(1, weights_at_once // prod(shape[1:]))
    per_group = filters // groups
    groups_at_once = filters_at_once // per_group
    if groups > 1 and groups_at_once >= 1:
        for first in range(0, groups, groups_at_once):
            stop = min(first + groups_at_once, groups)
            yield Part(
                slice(first * per_group, stop * per_group),
                slice(first * inputs, stop * inputs),
                stop - first,
            )
        return
    for group in range(groups):
        read = slice(group * inputs, (group + 1) * inputs)
        for first in range(group * per_group, (group + 1) * per_group, filters_at_once):
            stop = min(first + filters_at_once, (group + 1) * per_group)
            yield Part(slice(first, stop), read, 1)
