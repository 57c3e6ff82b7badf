"""What a product costs at least: the bytes it moves, the operations it does, and the card's limits.

A product reads its packed weights and its input once and writes its result once; whatever it reads
again comes from a cache or is lost time. Each multiplication and each addition is an operation. The
time that a card needs at least is that of its slower half: bytes over the bandwidth of a copy,
operations over the speed of its tensor cores, both measured on the card (`ceilings`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Final

from models.kernels.product_shape import ProductShape, ValueKind, kept_channels

# Bits of an input's number as it lies in memory; those of a weight are 1, or 16 for the rival.
_VALUE_BYTES: Final[Mapping[ValueKind, int]] = MappingProxyType(
    {"f16": 2, "f32": 4, "i8": 1, "b1": 4}
)


@dataclass(frozen=True)
class Ceilings:
    """What a card does at most: bytes per second of a copy (read and written), operations per
    second of its tensor cores by the kind of what they multiply."""

    bytes_per_s: float
    operations_per_s: Mapping[str, float]


@dataclass(frozen=True)
class Work:
    """What one product moves and computes."""

    bytes: int
    operations: int

    def least_seconds(self, ceilings: Ceilings, kind: str) -> float:
        """Return how long a card takes at least."""
        return max(
            self.bytes / ceilings.bytes_per_s, self.operations / ceilings.operations_per_s[kind]
        )

    def bound(self, ceilings: Ceilings, kind: str) -> str:
        """Return which half that is: ``memory`` or ``arithmetic``."""
        moving = self.bytes / ceilings.bytes_per_s
        return "memory" if self.least_seconds(ceilings, kind) == moving else "arithmetic"


def work(shape: ProductShape, images: int, read: ValueKind, kept: ValueKind) -> Work:
    """Return what a product with packed weights does for a batch."""
    weights = 4 * prod(shape.words_shape)
    return Work(_moved(shape, images, read, kept) + weights, operations(shape, images))


def float_work(shape: ProductShape, images: int) -> Work:
    """Return what the same product does in float16: a weight takes 16 bits."""
    weights = 2 * shape.filters * shape.filter_weights
    return Work(_moved(shape, images, "f16", "f16") + weights, operations(shape, images))


def operations(shape: ProductShape, images: int) -> int:
    """Return the multiplications and additions for a batch, all bases together."""
    pixels = images * prod(shape.out_hw)
    return 2 * shape.bases * pixels * shape.filters * shape.filter_weights


def _moved(shape: ProductShape, images: int, read: ValueKind, kept: ValueKind) -> int:
    pixels = images * prod(shape.in_hw)
    source = pixels * kept_channels(shape.in_channels, read) * _VALUE_BYTES[read]
    return source + prod(shape.out_shape(images, kept)) * _VALUE_BYTES[kept]


def geometry(shape: ProductShape) -> str:
    """Return a name that a figure can have, such as ``c64x56x56_n64_k3x3_s1x1_p1x1``."""
    parts = [
        f"c{shape.in_channels}x{shape.in_hw[0]}x{shape.in_hw[1]}",
        f"n{shape.filters}",
        *(
            f"{letter}{pair[0]}x{pair[1]}"
            for letter, pair in (("k", shape.kernel), ("s", shape.stride), ("p", shape.padding))
        ),
    ]
    if shape.dilation != (1, 1):
        parts.append(f"d{shape.dilation[0]}x{shape.dilation[1]}")
    parts += [f"{letter}{n}" for letter, n in (("g", shape.groups), ("b", shape.bases)) if n > 1]
    return "_".join(parts)
