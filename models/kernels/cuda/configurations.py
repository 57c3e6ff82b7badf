"""Which kernel computes a product of signs, and how its blocks divide the work.

On tensor cores a block of threads makes a tile of the output, pixels by filters. Large tiles read
less for what they compute; small ones give every multiprocessor something to do where there are few
pixels.
"""

from dataclasses import dataclass
from typing import Final

from models.kernels.product_shape import WORD_BITS, Pair, ProductShape


@dataclass(frozen=True)
class Tiles:
    """How `tensor_product.cu` divides the work: its constants of the same names.

    A block has ``pixel_warps * filter_warps * sum_warps`` warps.
    """

    tile_pixels: int
    tile_filters: int
    stage_words: int
    stages: int
    pixel_warps: int
    filter_warps: int = 1
    sum_warps: int = 1

    @property
    def threads(self) -> int:
        return self.pixel_warps * self.filter_warps * self.sum_warps * 32

    @property
    def pixels(self) -> int:
        """The pixels that a block computes."""
        return self.tile_pixels

    @property
    def filters(self) -> int:
        """The filters that a block computes."""
        return self.tile_filters


@dataclass(frozen=True)
class Popcount:
    """That of `popcount_product.cu`, which has but one way."""

    threads: int = 128
    pixels: int = 16
    filters: int = 32


Configuration = Tiles | Popcount

WIDE: Final = Tiles(128, 64, stage_words=16, stages=3, pixel_warps=4)
MIDDLE: Final = Tiles(64, 32, stage_words=16, stages=4, pixel_warps=4)
NARROW: Final = Tiles(16, 32, stage_words=32, stages=3, pixel_warps=1, sum_warps=4)
TILES: Final = (WIDE, MIDDLE, NARROW)

# Tensor cores count bits from the first of these on; from the second on they do not any more, and
# the compiler makes the instruction of many products of bytes.
_FIRST_CAPABILITY: Final = (8, 0)
_BEYOND_CAPABILITY: Final = (10, 0)

# Of each multiprocessor: while one waits for memory, another computes.
_BLOCKS_AT_ONCE: Final = 2


def candidates(shape: ProductShape, capability: Pair) -> tuple[Configuration, ...]:
    """Return all that can compute ``shape`` on a device of that capability, the largest first."""
    words = shape.groups == 1 or not (
        shape.group_channels % WORD_BITS or shape.group_filters % WORD_BITS
    )
    if words and _FIRST_CAPABILITY <= capability < _BEYOND_CAPABILITY:
        return TILES
    return (Popcount(),)


def heuristic(
    shape: ProductShape, images: int, capability: Pair, multiprocessors: int
) -> Configuration:
    """Return the largest tiles of which there are two for each multiprocessor."""
    found, enough = candidates(shape, capability), _BLOCKS_AT_ONCE * multiprocessors
    busy = (one for one in found if blocks(shape, images, one) >= enough)
    return next(busy, found[-1])


def grid(shape: ProductShape, images: int, configuration: Configuration) -> tuple[int, int, int]:
    """Return the blocks for pixels, filters, and groups (of which `Popcount` knows none)."""
    rows, columns = shape.out_hw
    together = isinstance(configuration, Popcount)
    return (
        -(-images * rows * columns // configuration.pixels),
        -(-(shape.filters if together else shape.group_filters) // configuration.filters),
        1 if together else shape.groups,
    )


def blocks(shape: ProductShape, images: int, configuration: Configuration) -> int:
    """Return how many blocks of threads compute ``shape`` for so many images."""
    across, down, deep = grid(shape, images, configuration)
    return across * down * deep
