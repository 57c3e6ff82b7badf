"""Device code: convolution as a product of matrices whose left one is never written down.

A program makes one tile of the result, some pixels by some filters of a group. It walks through
the kernel's taps and each tap's channels, reads those channels of its pixels' neighbours and the
packed weights, makes numbers of the latter in registers and multiplies on the tensor cores.

With ``FILTERS_FIRST`` the tile is filters by pixels while sums are made. On Hopper the left factor
of a product may be in registers and the right one may not: unpacked weights then never go through
shared memory.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
# Triton finds out the types of device code, each time that it is compiled.

import triton
import triton.language as tl

from models.kernels.triton.finishing import finish
from models.kernels.triton.unpacking import unpack


@triton.jit
def product(
    x,
    words,
    out,
    partial,
    base_scale,
    affine,
    slope,
    threshold,
    residual,
    offsets,
    places,
    pixels,
    in_rows,
    in_columns,
    out_rows,
    out_columns,
    place_count,
    read_step,
    lower,
    upper,
    kept_low,
    kept_step,
    CHANNELS: tl.constexpr,
    FILTERS: tl.constexpr,
    GROUPS: tl.constexpr,
    BASES: tl.constexpr,
    KERNEL_ROWS: tl.constexpr,
    KERNEL_COLUMNS: tl.constexpr,
    STRIDE_ROWS: tl.constexpr,
    STRIDE_COLUMNS: tl.constexpr,
    PADDING_ROWS: tl.constexpr,
    PADDING_COLUMNS: tl.constexpr,
    DILATION_ROWS: tl.constexpr,
    DILATION_COLUMNS: tl.constexpr,
    READ: tl.constexpr,
    KEPT: tl.constexpr,
    KEPT_BITS: tl.constexpr,
    BASE_SCALE: tl.constexpr,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    THRESHOLD: tl.constexpr,
    OFFSETS: tl.constexpr,
    FILTER_BLOCK: tl.constexpr,
    PIXEL_BLOCK: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    FILTERS_FIRST: tl.constexpr,
):
    """Make one tile; of ``SPLITS`` programs each adds up a part of it, and keeps that apart."""
    GROUP_CHANNELS: tl.constexpr = CHANNELS // GROUPS
    GROUP_FILTERS: tl.constexpr = FILTERS // GROUPS
    TAP_WORDS: tl.constexpr = (GROUP_CHANNELS + 31) // 32
    TAP_STEPS: tl.constexpr = (GROUP_CHANNELS + CHANNEL_BLOCK - 1) // CHANNEL_BLOCK
    TAPS: tl.constexpr = KERNEL_ROWS * KERNEL_COLUMNS
    STEPS: tl.constexpr = TAPS * TAP_STEPS
    SPLIT_STEPS: tl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    FILTER_BLOCKS: tl.constexpr = (GROUP_FILTERS + FILTER_BLOCK - 1) // FILTER_BLOCK
    SUM: tl.constexpr = tl.int32 if READ == "i8" else tl.float32

    # Programs side by side read the same pixels.
    tile = tl.program_id(0)
    split = tl.program_id(1)
    group = tile % (GROUPS * FILTER_BLOCKS) // FILTER_BLOCKS
    of_group = tile % FILTER_BLOCKS * FILTER_BLOCK + tl.arange(0, FILTER_BLOCK)
    filters = group * GROUP_FILTERS + of_group
    is_filter = of_group < GROUP_FILTERS
    pixel = tile // (GROUPS * FILTER_BLOCKS) * PIXEL_BLOCK + tl.arange(0, PIXEL_BLOCK)
    is_pixel = pixel < pixels

    image = pixel // (out_rows * out_columns)
    out_row = pixel // out_columns % out_rows
    out_column = pixel % out_columns
    first_row = out_row * STRIDE_ROWS - PADDING_ROWS
    first_column = out_column * STRIDE_COLUMNS - PADDING_COLUMNS
    # What an image's pixels are numbered from can pass 2**31; differences within an image cannot.
    start = x + image.to(tl.int64) * (in_rows * in_columns * CHANNELS) + group * GROUP_CHANNELS
    channel = tl.arange(0, CHANNEL_BLOCK)
    word = tl.arange(0, CHANNEL_BLOCK // 32)

    inside = is_pixel[:, None] & is_filter[None, :]
    total = tl.zeros([PIXEL_BLOCK, FILTER_BLOCK], dtype=tl.float32)
    for base in range(BASES):
        rows = words + (base * FILTERS + filters)[:, None] * (TAPS * TAP_WORDS)
        if FILTERS_FIRST:
            sums = tl.zeros([FILTER_BLOCK, PIXEL_BLOCK], dtype=SUM)
        else:
            sums = tl.zeros([PIXEL_BLOCK, FILTER_BLOCK], dtype=SUM)
        if SPLITS == 1:
            first, last = 0, STEPS
        else:
            first = split * SPLIT_STEPS
            last = tl.minimum(first + SPLIT_STEPS, STEPS)
        for step in range(first, last):
            tap = step // TAP_STEPS
            block = step % TAP_STEPS
            row = first_row + tap // KERNEL_COLUMNS * DILATION_ROWS
            column = first_column + tap % KERNEL_COLUMNS * DILATION_COLUMNS
            mapped = is_pixel & (row >= 0) & (row < in_rows)
            mapped = mapped & (column >= 0) & (column < in_columns)
            channels = block * CHANNEL_BLOCK + channel
            numbers = tl.load(
                start[:, None] + ((row * in_columns + column) * CHANNELS)[:, None] + channels,
                mask=mapped[:, None] & (channels < GROUP_CHANNELS)[None, :],
                other=0,
            )
            tap_words = block * (CHANNEL_BLOCK // 32) + word
            packed = tl.load(
                rows + (tap * TAP_WORDS + tap_words)[None, :],
                mask=is_filter[:, None] & (tap_words < TAP_WORDS)[None, :],
                other=0,
            )
            weights = unpack(packed, READ, FILTER_BLOCK, CHANNEL_BLOCK)
            if FILTERS_FIRST:
                sums = multiply(weights, tl.trans(numbers), sums, READ)
            else:
                sums = multiply(numbers, tl.trans(weights), sums, READ)
        tile_sums = tl.trans(sums) if FILTERS_FIRST else sums
        if SPLITS > 1:
            part = (split * BASES + base).to(tl.int64) * pixels + pixel
            to = partial + part[:, None] * FILTERS + filters[None, :]
            tl.store(to, tile_sums, mask=inside)
        else:
            if OFFSETS:
                tile_sums += place_offsets(
                    offsets, places, base, out_row, out_column, filters, inside, out_rows,
                    place_count, FILTERS,
                )  # fmt: skip
            total = add_basis(total, tile_sums, base_scale, base, filters, FILTERS, BASE_SCALE)
    if SPLITS == 1:
        finish(
            total, pixel, filters, inside, out, affine, slope, threshold, residual, read_step,
            lower, upper, kept_low, kept_step, FILTERS, READ, KEPT, KEPT_BITS, AFFINE, RESIDUAL,
            ACTIVATION, THRESHOLD, PIXEL_BLOCK, FILTER_BLOCK,
        )  # fmt: skip


@triton.jit
def multiply(left, right, sums, READ: tl.constexpr):
    """Return ``left @ right + sums``: exact for levels, in float32 for real numbers."""
    if READ == "i8":
        return tl.dot(left, right, sums, out_dtype=tl.int32)
    elif READ == "f16":
        return tl.dot(left, right, sums)
    else:
        # Three products of 10 bits' precision each make up one of float32, near enough.
        return tl.dot(left, right, sums, input_precision="tf32x3")


@triton.jit
def place_offsets(
    offsets,
    places,
    base,
    out_row,
    out_column,
    filters,
    inside,
    out_rows,
    place_count,
    FILTERS: tl.constexpr,
):
    """Return what the sums lack at each pixel, int32: see `models.kernels.triton.borders`."""
    place = tl.load(places + out_row) + tl.load(places + out_rows + out_column)
    of_base = offsets + base * place_count * FILTERS
    return tl.load(of_base + place[:, None] * FILTERS + filters[None, :], mask=inside, other=0)


@triton.jit
def add_basis(
    total, sums, base_scale, base, filters, FILTERS: tl.constexpr, BASE_SCALE: tl.constexpr
):
    """Return ``total`` and the sums of one more basis, times its scales where it has such."""
    term = sums.to(tl.float32)
    if BASE_SCALE:
        of_base = base_scale + base * FILTERS
        scale = tl.load(of_base + filters, mask=filters < FILTERS, other=0.0)
        term = scale[None, :] * term
    return total + term


@triton.jit
def add_splits(
    partial,
    out,
    base_scale,
    affine,
    slope,
    threshold,
    residual,
    offsets,
    places,
    pixels,
    out_rows,
    out_columns,
    place_count,
    read_step,
    lower,
    upper,
    kept_low,
    kept_step,
    FILTERS: tl.constexpr,
    BASES: tl.constexpr,
    READ: tl.constexpr,
    KEPT: tl.constexpr,
    KEPT_BITS: tl.constexpr,
    BASE_SCALE: tl.constexpr,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    THRESHOLD: tl.constexpr,
    OFFSETS: tl.constexpr,
    FILTER_BLOCK: tl.constexpr,
    PIXEL_BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Add up what the programs of each tile kept apart, always in the same order, and finish it."""
    pixel = tl.program_id(0) * PIXEL_BLOCK + tl.arange(0, PIXEL_BLOCK)
    filters = tl.program_id(1) * FILTER_BLOCK + tl.arange(0, FILTER_BLOCK)
    inside = (pixel < pixels)[:, None] & (filters < FILTERS)[None, :]
    out_row = pixel // out_columns % out_rows
    out_column = pixel % out_columns
    total = tl.zeros([PIXEL_BLOCK, FILTER_BLOCK], dtype=tl.float32)
    SUM: tl.constexpr = tl.int32 if READ == "i8" else tl.float32
    for base in range(BASES):
        sums = tl.zeros([PIXEL_BLOCK, FILTER_BLOCK], dtype=SUM)
        for split in tl.static_range(SPLITS):
            part = tl.cast(split * BASES + base, tl.int64) * pixels + pixel
            sums += tl.load(partial + part[:, None] * FILTERS + filters, mask=inside, other=0)
        if OFFSETS:
            sums += place_offsets(
                offsets, places, base, out_row, out_column, filters, inside, out_rows,
                place_count, FILTERS,
            )  # fmt: skip
        total = add_basis(total, sums, base_scale, base, filters, FILTERS, BASE_SCALE)
    finish(
        total, pixel, filters, inside, out, affine, slope, threshold, residual, read_step,
        lower, upper, kept_low, kept_step, FILTERS, READ, KEPT, KEPT_BITS, AFFINE, RESIDUAL,
        ACTIVATION, THRESHOLD, PIXEL_BLOCK, FILTER_BLOCK,
    )  # fmt: skip
