"""Quantized activations as whole numbers of steps: the integer arithmetic of docs/FORMAT.md, 4.4.

Where 0 is one of a quantizer's numbers, its result is ``step * m`` with whole *levels*
``m = q - zero``. A product of packed bits with it is ``step`` times a sum of integers. The order of
such a sum is of no account, so that every runtime can be held to the same bits: what the product
is rounded to, and how gain and shift follow, is stated once and met exactly.

Here levels are float32 tensors. Plain sums of whole numbers are exact in float32 as long as none
can reach 2**24; beyond that, in float64.
"""

from math import prod
from typing import Final

import torch
from torch import Tensor

from models.operators import Conv2d, Linear, Operator, Quantize, Shape
from models.plan import Plan
from models.quantization import level_numbers

_EXACT_BELOW: Final = 1 << 24


def fed_levels(plan: Plan) -> dict[str, Quantize]:
    """Return the products that compute with levels, and the quantizer that each of them reads.

    They are those of packed bits that read a quantizer itself, one with a level for 0. A border of
    ones would not be a level.
    """
    quantizers = {
        node.name: node
        for node in plan.nodes
        if isinstance(node, Quantize) and node.zero is not None
    }
    return {
        node.name: quantizers[node.input]
        for node in plan.nodes
        if isinstance(node, Conv2d | Linear)
        and node.weight == "bits"
        and node.input in quantizers
        and not _has_border_of_ones(node)
    }


def _has_border_of_ones(node: Operator) -> bool:
    return isinstance(node, Conv2d) and node.pad_value == 1 and node.padding != (0, 0)


def levels(x: Tensor, node: Quantize) -> Tensor:
    """Return ``q - zero`` of float32 ``x``: whole numbers, float32."""
    assert node.zero is not None
    q = level_numbers(x, node.bits, torch.tensor(node.low), torch.tensor(node.step))
    return q.sub_(node.zero)


def real_numbers(found: Tensor, node: Quantize) -> Tensor:
    """Return ``q * step + low`` of levels: what ``models.quantization.quantize`` gives."""
    assert node.zero is not None
    return (found + node.zero).mul_(torch.tensor(node.step)).add_(torch.tensor(node.low))


def exact_dtype(node: Quantize, weight_shape: Shape) -> torch.dtype:
    """Return the float dtype in which torch sums up levels exactly.

    ``weight_shape`` is ``(N, C, kh, kw)`` or ``(N, S)``. Without oneDNN torch gives large
    convolutions of float32 to NNPACK, whose Winograd transforms round.
    """
    assert node.zero is not None
    greatest = max(node.zero, 2**node.bits - 1 - node.zero)
    fits = greatest * prod(weight_shape[1:]) < _EXACT_BELOW
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    plain = available and torch.backends.mkldnn.enabled
    return torch.float32 if fits and plain else torch.float64
