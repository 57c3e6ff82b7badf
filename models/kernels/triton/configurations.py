"""How a product is cut into programs: what there is to choose from, and a choice by rule.

Which is fastest is found out by measuring (`models.kernels.triton.tuning`); the rule is for where
that cannot be done, and says which candidates are worth a measurement.
"""

from dataclasses import dataclass
from typing import Final

from models.kernels.product_shape import WORD_BITS, Epilogue, ProductShape

HOPPER: Final = (9, 0)

_PROCESSORS: Final = 132  # of an H100 or H200; others differ by a factor that matters little here
_MOST_SPLITS: Final = 16
# A filter that reads fewer channels would leave most of a tensor core's tile empty.
_LEAST_TILE_CHANNELS: Final = 16
_MOST_VECTOR_PIXELS: Final = 8

Capability = tuple[int, int]


@dataclass(frozen=True, order=True)
class Configuration:
    """The tile of a program, and how it is computed.

    ``splits``: programs that share one tile's channels.
    ``slices``: parts of the channels that one program's warps add up side by side; more than 1 is
    for linear layers of a few images. ``direct``: without tensor cores, for narrow groups.
    """

    filter_block: int = 64
    pixel_block: int = 64
    channel_block: int = 32
    splits: int = 1
    filters_first: bool = False
    warps: int = 4
    stages: int = 3
    slices: int = 1
    direct: bool = False


def is_direct(shape: ProductShape) -> bool:
    """Tell whether groups are too narrow for tensor cores."""
    return shape.groups > 1 and (
        shape.group_channels < _LEAST_TILE_CHANNELS or shape.group_filters < _LEAST_TILE_CHANNELS
    )


def is_vector(shape: ProductShape, pixels: int) -> bool:
    """Tell whether a product is a linear layer of so few images that reading weights is all."""
    linear = shape.in_hw == shape.kernel == (1, 1) and shape.groups == 1
    return linear and pixels <= _MOST_VECTOR_PIXELS and shape.padding == (0, 0)


def heuristic(
    shape: ProductShape, epilogue: Epilogue, images: int, capability: Capability = HOPPER
) -> Configuration:
    """Return a configuration that is never a bad one, by rule alone."""
    return candidates(shape, epilogue, images, capability)[0]


def candidates(
    shape: ProductShape, epilogue: Epilogue, images: int, capability: Capability = HOPPER
) -> list[Configuration]:
    """Return the configurations worth measuring, the one that the rule prefers first."""
    pixels = images * shape.out_hw[0] * shape.out_hw[1]
    if is_direct(shape):
        return [
            Configuration(filters, 512 // filters, direct=True, warps=4, stages=1)
            for filters in _fitting((32, 64, 128), shape.filters)
        ]
    if is_vector(shape, pixels):
        return _vector_candidates(shape, epilogue, pixels)
    return _tile_candidates(shape, epilogue, pixels, capability >= HOPPER)


def _vector_candidates(shape: ProductShape, epilogue: Epilogue, pixels: int) -> list[Configuration]:
    least = WORD_BITS if epilogue.kept == "b1" else 16
    wide = [
        Configuration(
            max(filters, least), 8, channels, warps=slices, stages=stages, slices=slices,
            filters_first=True,
        )
        for filters in (16, 32, 64)
        for slices in (4, 8)
        for channels in (64, 128, 256)
        for stages in (2, 4)
        if slices * channels <= max(shape.in_channels, 4 * 64)
    ]  # fmt: skip
    return list(dict.fromkeys(wide))


def _tile_candidates(
    shape: ProductShape, epilogue: Epilogue, pixels: int, hopper: bool
) -> list[Configuration]:
    channel_blocks = _fitting((64, 128) if epilogue.read == "i8" else (32, 64), _tap_bits(shape))
    found = []
    for filters in _fitting((32, 64, 128), shape.group_filters):
        for block in _fitting((16, 32, 64, 128, 256), pixels):
            for channels in channel_blocks:
                if hopper or filters * block <= 128 * 128:
                    found.append(_tile(shape, epilogue, pixels, filters, block, channels, hopper))
    # Wide tiles read the least, but every processor has to have one.
    return sorted(found, key=lambda tile: _cost(shape, pixels, tile))[:8]


def _tile(
    shape: ProductShape,
    epilogue: Epilogue,
    pixels: int,
    filters: int,
    block: int,
    channels: int,
    hopper: bool,
) -> Configuration:
    tiles = _blocks(pixels, block) * shape.groups * _blocks(shape.group_filters, filters)
    steps = shape.taps * _blocks(shape.group_channels, channels)
    splits = 1
    while 2 * splits * tiles <= 2 * _PROCESSORS and steps >= 8 * splits and splits < _MOST_SPLITS:
        splits *= 2
    return Configuration(
        filters,
        block,
        channels,
        splits,
        # Filters are 64 rows at least of Hopper's product.
        filters_first=hopper and filters >= 64,
        warps=8 if filters * block >= 128 * 128 else 4,
        stages=4 if hopper else 3,
    )


def _cost(shape: ProductShape, pixels: int, tile: Configuration) -> tuple[float, Configuration]:
    """Return about how long a tile's product takes, in no particular unit."""
    tiles = _blocks(pixels, tile.pixel_block) * shape.groups
    tiles *= _blocks(shape.group_filters, tile.filter_block) * tile.splits
    steps = shape.taps * _blocks(shape.group_channels, tile.channel_block) / tile.splits
    rounds = _blocks(tiles, 2 * _PROCESSORS)
    # Reading a block of pixels, unpacking one of weights, and multiplying them.
    area = tile.pixel_block * tile.filter_block / 32
    step = (tile.pixel_block + tile.filter_block + area) * tile.channel_block + 4096
    return rounds * (steps * step + 16 * area * tile.splits), tile


def _fitting(sizes: tuple[int, ...], length: int) -> list[int]:
    """Return the sizes that are not much too large for ``length``, the least at any rate."""
    return [size for size in sizes if size == sizes[0] or size < 2 * length]


def _tap_bits(shape: ProductShape) -> int:
    return shape.tap_words * WORD_BITS


def _blocks(length: int, block: int) -> int:
    return -(-length // block)
