"""Device code: linear layers of a few images, whose cost is to read the weights.

A program makes the results of a few filters, so that there are programs enough to keep the whole
memory busy. Its warps add up slices of the channels side by side, as products of a stack of small
matrices on the tensor cores, and the slices' sums are added in the end.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
# Triton finds out the types of device code, each time that it is compiled.

import triton
import triton.language as tl

from models.kernels.triton.finishing import finish
from models.kernels.triton.products import add_basis, multiply, place_offsets
from models.kernels.triton.unpacking import unpack


@triton.jit(do_not_specialize=("units", "pixels", "place_count"))
def vector_product(
    x,
    words,
    out,
    base_scale,
    affine,
    slope,
    threshold,
    residual,
    also,
    offsets,
    places,
    units,
    filters,
    pixels,
    place_count,
    read_step,
    lower,
    upper,
    kept_low,
    kept_step,
    also_low,
    also_step,
    UNIT: tl.constexpr,
    BASES: tl.constexpr,
    READ: tl.constexpr,
    KEPT: tl.constexpr,
    KEPT_BITS: tl.constexpr,
    ALSO_BITS: tl.constexpr,
    BASE_SCALE: tl.constexpr,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    THRESHOLD: tl.constexpr,
    OFFSETS: tl.constexpr,
    FILTER_BLOCK: tl.constexpr,
    PIXEL_BLOCK: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    SLICES: tl.constexpr,
):
    """Make the results of ``FILTER_BLOCK`` filters for ``PIXEL_BLOCK`` images.

    There are ``units * UNIT`` channels: a multiple of ``UNIT``, for all to see.
    """
    BLOCK_WORDS: tl.constexpr = CHANNEL_BLOCK // 32
    SUM: tl.constexpr = tl.int32 if READ == "i8" else tl.float32
    channels = units * UNIT
    words_of_row = (channels + 31) // 32

    filter = tl.program_id(0) * FILTER_BLOCK + tl.arange(0, FILTER_BLOCK)
    image = tl.program_id(1) * PIXEL_BLOCK + tl.arange(0, PIXEL_BLOCK)
    inside = (image < pixels)[:, None] & (filter < filters)[None, :]
    slices = tl.arange(0, SLICES)[:, None, None]
    of_step = slices * CHANNEL_BLOCK + tl.arange(0, CHANNEL_BLOCK)[None, None, :]
    word_of_step = slices * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)[None, None, :]
    of_image = x + image.to(tl.int64)[None, :, None] * channels

    total = tl.zeros([PIXEL_BLOCK, FILTER_BLOCK], dtype=tl.float32)
    for base in range(BASES):
        rows = words + (base * filters + filter)[None, :, None] * words_of_row
        sums = tl.zeros([SLICES, FILTER_BLOCK, PIXEL_BLOCK], dtype=SUM)
        for step in range((channels + SLICES * CHANNEL_BLOCK - 1) // (SLICES * CHANNEL_BLOCK)):
            word = step * (SLICES * BLOCK_WORDS) + word_of_step
            is_packed = (filter < filters)[None, :, None] & (word < words_of_row)
            packed = tl.load(rows + word, mask=is_packed, other=0)
            channel = step * (SLICES * CHANNEL_BLOCK) + of_step
            is_read = (image < pixels)[None, :, None] & (channel < channels)
            numbers = tl.load(of_image + channel, mask=is_read, other=0)
            flat = tl.reshape(packed, [SLICES * FILTER_BLOCK, BLOCK_WORDS])
            weights = unpack(flat, READ, SLICES * FILTER_BLOCK, CHANNEL_BLOCK)
            stack = tl.reshape(weights, [SLICES, FILTER_BLOCK, CHANNEL_BLOCK])
            sums = multiply(stack, tl.permute(numbers, (0, 2, 1)), sums, READ)
        tile_sums = tl.trans(tl.sum(sums, axis=0))
        if OFFSETS:
            nowhere = image * 0
            tile_sums += place_offsets(
                offsets, places, base, nowhere, nowhere, filter, inside, 1, place_count, filters
            )
        total = add_basis(total, tile_sums, base_scale, base, filter, filters, BASE_SCALE)
    finish(
        total, image, filter, inside, out, affine, slope, threshold, residual, read_step,
        lower, upper, kept_low, kept_step, filters, READ, KEPT, KEPT_BITS, AFFINE, RESIDUAL,
        ACTIVATION, THRESHOLD, PIXEL_BLOCK, FILTER_BLOCK, also, also_low, also_step, ALSO_BITS,
    )  # fmt: skip
