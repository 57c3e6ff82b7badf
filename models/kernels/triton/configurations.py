"""How a product is cut into programs: what there is to choose from, and a choice by rule.

Which is fastest is found out by measuring (`models.kernels.triton.tuning`); the rule is for where
that cannot be done, and says which candidates are worth a measurement.
"""

from dataclasses import dataclass, replace
from typing import Final

from models.kernels.product_shape import WORD_BITS, Epilogue, ProductShape, ValueKind

HOPPER: Final = (9, 0)

_PROCESSORS: Final = 132  # of an H100 or H200; others differ by a factor that matters little here
_MOST_SPLITS: Final = 16
# A filter that reads fewer channels would leave most of a tensor core's tile empty.
_LEAST_TILE_CHANNELS: Final = 16
_MOST_VECTOR_PIXELS: Final = 8
_VECTOR_STEPS: Final = 5
_SECOND_KERNEL: Final = 200_000.0  # hundredths of a cycle: to start it

# Each takes seconds to compile, where it is to be measured.
_MOST_CANDIDATES: Final = 4

_BYTES: Final[dict[ValueKind, int]] = {"f16": 2, "f32": 4, "i8": 1}
# A tensor core multiplies 32 bytes of either factor at a time; float32 is multiplied three times.
_CHANNEL_BLOCKS: Final[dict[ValueKind, tuple[int, ...]]] = {
    "f16": (32, 64),
    "f32": (32,),
    "i8": (32, 64, 128),
}
# Sums are kept in registers, of which there are half as many for them before Hopper.
_MOST_TILE: Final[dict[ValueKind, int]] = {
    "f16": 128 * 256,
    "f32": 64 * 64,
    "i8": 128 * 128,
}

_LEAST_SHARED_BYTES: Final = 96 << 10
_SHARED_BYTES: Final[dict[tuple[int, int], int]] = {
    (8, 0): 160 << 10,
    (9, 0): 220 << 10,
    (10, 0): 220 << 10,
}

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
        return _vector_candidates(shape, epilogue, capability)
    return _tile_candidates(shape, epilogue, pixels, capability)


def shared_bytes(config: Configuration, read: ValueKind) -> int:
    """Return about how much of a multiprocessor's shared memory a program takes in its loop."""
    block = config.slices * config.channel_block
    numbers = config.pixel_block * block * _BYTES[read]
    packed = config.filter_block * block // 8
    # What cannot be the left factor in registers is written down unpacked.
    in_registers = config.filters_first and read != "f32"
    unpacked = 0 if in_registers else config.filter_block * block * _BYTES[read]
    return config.stages * (numbers + packed) + unpacked


def _vector_candidates(
    shape: ProductShape, epilogue: Epilogue, capability: Capability
) -> list[Configuration]:
    # A program for each multiprocessor, nearly, which has all it reads on its way at a time.
    filters = 32 if _blocks(shape.filters, 32) >= _PROCESSORS - 4 else 16
    found = []
    for block, slices in ((filters, 8), (48 - filters, 8), (16, 4), (32, 4)):
        sizes = (32,) if epilogue.read == "f32" else (32, 64, 128, 256)
        steps = [_blocks(shape.in_channels, slices * size) for size in sizes]
        fitting = [size for size, step in zip(sizes, steps, strict=True) if step <= _VECTOR_STEPS]
        config = Configuration(
            max(block, WORD_BITS if epilogue.kept == "b1" else block), 8, [*fitting, sizes[-1]][0],
            warps=slices, stages=_VECTOR_STEPS - 1, slices=slices, filters_first=True,
        )  # fmt: skip
        found.append(_shallow(config, epilogue.read, capability))
    return list(dict.fromkeys(found))


def _tile_candidates(
    shape: ProductShape, epilogue: Epilogue, pixels: int, capability: Capability
) -> list[Configuration]:
    hopper = capability[0] == HOPPER[0]
    most = _MOST_TILE[epilogue.read] // (1 if hopper else 2)
    found = [
        _shallow(config, epilogue.read, capability)
        for filters in _fitting((32, 64, 128), shape.group_filters)
        for block in _fitting((16, 32, 64, 128, 256), pixels)
        # The widest: narrow ones leave threads without a word of weights to copy.
        for channels in _fitting(_CHANNEL_BLOCKS[epilogue.read], shape.tap_words * WORD_BITS)[-1:]
        if filters * block <= most
        for config in _tiles(shape, pixels, filters, block, channels, hopper)
    ]
    # Wide tiles read the least, but every processor has to have one.
    return sorted(found, key=lambda tile: _cost(shape, pixels, tile))[:_MOST_CANDIDATES]


def _shallow(config: Configuration, read: ValueKind, capability: Capability) -> Configuration:
    """Return ``config`` with no more stages than shared memory holds, but two at least."""
    most = _SHARED_BYTES.get(capability, _LEAST_SHARED_BYTES)
    while config.stages > 2 and shared_bytes(config, read) > most:
        config = replace(config, stages=config.stages - 1)
    return config


def _tiles(
    shape: ProductShape, pixels: int, filters: int, block: int, channels: int, hopper: bool
) -> list[Configuration]:
    """Return a tile as it is and, where there are few of them, shared by several programs."""
    whole = Configuration(
        filters,
        block,
        channels,
        # Filters are 64 rows at least of Hopper's product.
        filters_first=hopper and filters >= 64,
        warps=8 if filters * block >= 128 * 128 else 4,
        stages=4 if hopper else 3,
    )
    steps = shape.taps * _blocks(shape.group_channels, channels)
    room = _at_once(whole) * _PROCESSORS // _tile_count(shape, pixels, whole)
    splits = min(room, steps // 4, _MOST_SPLITS)
    if splits < 2:
        return [whole]
    return [whole, replace(whole, splits=1 << splits.bit_length() - 1)]


def _cost(shape: ProductShape, pixels: int, tile: Configuration) -> tuple[float, Configuration]:
    """Return about how long a tile's product takes, in hundredths of a cycle."""
    at_once = _at_once(tile)
    rounds = _blocks(_tile_count(shape, pixels, tile) * tile.splits, at_once * _PROCESSORS)
    steps = shape.taps * _blocks(shape.group_channels, tile.channel_block) / tile.splits
    # Reading a block of pixels, unpacking one of weights, and multiplying them.
    area = tile.pixel_block * tile.filter_block / 32
    step = (tile.pixel_block + tile.filter_block + area) * tile.channel_block + 4096
    finish = 16 * area
    if tile.splits > 1:
        # Every part is written and read once more, by another kernel.
        finish += _SECOND_KERNEL + 0.3 * tile.splits * pixels * shape.filters
    return rounds * at_once * steps * step + finish, tile


def _at_once(tile: Configuration) -> int:
    """Return how many programs have room for their sums on one multiprocessor."""
    return 1 if tile.filter_block * tile.pixel_block >= 64 * 256 else 2


def _tile_count(shape: ProductShape, pixels: int, tile: Configuration) -> int:
    filters = shape.groups * _blocks(shape.group_filters, tile.filter_block)
    return _blocks(pixels, tile.pixel_block) * filters


def _fitting(sizes: tuple[int, ...], length: int) -> list[int]:
    """Return the sizes that are not much too large for ``length``, the least at any rate."""
    return [size for size in sizes if size == sizes[0] or size < 2 * length]


def _blocks(length: int, block: int) -> int:
    return -(-length // block)
