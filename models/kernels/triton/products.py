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

# Numbers that differ from layer to layer. Known ones would make no faster code, only more of it.
_COUNTS = (
    "group_units", "pixels", "taps", "kernel_columns", "groups", "splits", "in_rows", "in_columns",
    "out_rows", "out_columns", "stride_rows", "stride_columns", "padding_rows", "padding_columns",
    "dilation_rows", "dilation_columns", "place_count",
)  # fmt: skip


@triton.jit(do_not_specialize=_COUNTS)
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
    also,
    offsets,
    places,
    group_units,
    group_filters,
    pixels,
    taps,
    kernel_columns,
    groups,
    splits,
    in_rows,
    in_columns,
    out_rows,
    out_columns,
    stride_rows,
    stride_columns,
    padding_rows,
    padding_columns,
    dilation_rows,
    dilation_columns,
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
    ONE_TAP: tl.constexpr,
    WHOLE_BLOCKS: tl.constexpr,
    FILTER_BLOCK: tl.constexpr,
    PIXEL_BLOCK: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    FILTERS_FIRST: tl.constexpr,
):
    """Make one tile; with ``SPLIT``, of ``splits`` programs each keeps a part of its sums apart.

    A filter reads ``group_units * UNIT`` channels, a multiple of ``UNIT`` for all to see, and with
    ``WHOLE_BLOCKS`` one of ``CHANNEL_BLOCK``. ``ONE_TAP``: the kernel is one pixel.
    """
    SUM: tl.constexpr = tl.int32 if READ == "i8" else tl.float32
    group_channels = group_units * UNIT
    channels = group_channels * groups
    filters = group_filters * groups
    tap_words = (group_channels + 31) // 32
    tap_steps = (group_channels + CHANNEL_BLOCK - 1) // CHANNEL_BLOCK
    steps = taps * tap_steps
    filter_blocks = (group_filters + FILTER_BLOCK - 1) // FILTER_BLOCK

    # Programs side by side read the same pixels.
    tile = tl.program_id(0)
    split = tl.program_id(1)
    group = tile % (groups * filter_blocks) // filter_blocks
    of_group = tile % filter_blocks * FILTER_BLOCK + tl.arange(0, FILTER_BLOCK)
    filter = group * group_filters + of_group
    is_filter = of_group < group_filters
    pixel = tile // (groups * filter_blocks) * PIXEL_BLOCK + tl.arange(0, PIXEL_BLOCK)
    is_pixel = pixel < pixels
    inside = is_pixel[:, None] & is_filter[None, :]

    image = pixel // (out_rows * out_columns)
    out_row = pixel // out_columns % out_rows
    out_column = pixel % out_columns
    first_row = out_row * stride_rows - padding_rows
    first_column = out_column * stride_columns - padding_columns
    # What an image's pixels are numbered from can pass 2**31; differences within an image cannot.
    start = x + image.to(tl.int64) * (in_rows * in_columns) * channels + group * group_channels
    of_block = tl.arange(0, CHANNEL_BLOCK)
    word_of_block = tl.arange(0, CHANNEL_BLOCK // 32)

    first = 0
    last = steps
    if SPLIT:
        split_steps = (steps + splits - 1) // splits
        first = split * split_steps
        last = tl.minimum(first + split_steps, steps)
    total = tl.zeros([PIXEL_BLOCK, FILTER_BLOCK], dtype=tl.float32)
    for base in range(BASES):
        rows = words + (base * filters + filter)[:, None] * (taps * tap_words)
        if FILTERS_FIRST:
            sums = tl.zeros([FILTER_BLOCK, PIXEL_BLOCK], dtype=SUM)
        else:
            sums = tl.zeros([PIXEL_BLOCK, FILTER_BLOCK], dtype=SUM)
        # Where the walk through taps and channels stands: counting is cheaper than dividing.
        tap = first // tap_steps
        block = first % tap_steps
        tap_row = tap // kernel_columns
        tap_column = tap % kernel_columns
        for _ in range(first, last):
            row = first_row + tap_row * dilation_rows
            column = first_column + tap_column * dilation_columns
            mapped = is_pixel & (row >= 0) & (row < in_rows)
            mapped = mapped & (column >= 0) & (column < in_columns)
            channel = block * CHANNEL_BLOCK + of_block
            word = block * (CHANNEL_BLOCK // 32) + word_of_block
            if WHOLE_BLOCKS:
                is_read = mapped[:, None]
                is_packed = is_filter[:, None]
            else:
                is_read = mapped[:, None] & (channel < group_channels)[None, :]
                is_packed = is_filter[:, None] & (word < tap_words)[None, :]
            at = start[:, None] + ((row * in_columns + column) * channels)[:, None]
            numbers = tl.load(at + channel[None, :], mask=is_read, other=0)
            packed = tl.load(rows + (tap * tap_words + word)[None, :], mask=is_packed, other=0)
            weights = unpack(packed, READ, FILTER_BLOCK, CHANNEL_BLOCK)
            if FILTERS_FIRST:
                sums = multiply(weights, tl.trans(numbers), sums, READ)
            else:
                sums = multiply(numbers, tl.trans(weights), sums, READ)
            block += 1
            if not ONE_TAP:
                next_tap = (block == tap_steps).to(tl.int32)
                block -= next_tap * tap_steps
                tap += next_tap
                tap_column += next_tap
                next_row = (tap_column == kernel_columns).to(tl.int32)
                tap_column -= next_row * kernel_columns
                tap_row += next_row
        tile_sums = tl.trans(sums) if FILTERS_FIRST else sums
        if SPLIT:
            part = (split * BASES + base).to(tl.int64) * pixels + pixel
            to = partial + part[:, None] * filters + filter[None, :]
            tl.store(to, tile_sums, mask=inside)
        else:
            if OFFSETS:
                tile_sums += place_offsets(
                    offsets, places, base, out_row, out_column, filter, inside, out_rows,
                    place_count, filters,
                )  # fmt: skip
            total = add_basis(total, tile_sums, base_scale, base, filter, filters, BASE_SCALE)
    if not SPLIT:
        finish(
            total, pixel, filter, inside, out, affine, slope, threshold, residual, read_step,
            lower, upper, kept_low, kept_step, filters, READ, KEPT, KEPT_BITS, AFFINE, RESIDUAL,
            ACTIVATION, THRESHOLD, PIXEL_BLOCK, FILTER_BLOCK, also, also_low, also_step, ALSO_BITS,
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
    offsets, places, base, out_row, out_column, filter, inside, out_rows, place_count, filters
):
    """Return what the sums lack at each pixel, int32: see `models.kernels.triton.borders`."""
    place = tl.load(places + out_row) + tl.load(places + out_rows + out_column)
    of_base = offsets + base * place_count * filters
    return tl.load(of_base + place[:, None] * filters + filter[None, :], mask=inside, other=0)


@triton.jit
def add_basis(total, sums, base_scale, base, filter, filters, BASE_SCALE: tl.constexpr):
    """Return ``total`` and the sums of one more basis, times its scales where it has such."""
    term = sums.to(tl.float32)
    if BASE_SCALE:
        of_base = base_scale + base * filters
        scale = tl.load(of_base + filter, mask=filter < filters, other=0.0)
        term = scale[None, :] * term
    return total + term


@triton.jit(do_not_specialize=("pixels", "out_rows", "out_columns", "place_count"))
def add_splits(
    partial,
    out,
    base_scale,
    affine,
    slope,
    threshold,
    residual,
    also,
    offsets,
    places,
    filters,
    pixels,
    out_rows,
    out_columns,
    place_count,
    read_step,
    lower,
    upper,
    kept_low,
    kept_step,
    also_low,
    also_step,
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
    SPLITS: tl.constexpr,
):
    """Add up what the programs of each tile kept apart, always in the same order, and finish it."""
    SUM: tl.constexpr = tl.int32 if READ == "i8" else tl.float32
    pixel = tl.program_id(0) * PIXEL_BLOCK + tl.arange(0, PIXEL_BLOCK)
    filter = tl.program_id(1) * FILTER_BLOCK + tl.arange(0, FILTER_BLOCK)
    inside = (pixel < pixels)[:, None] & (filter < filters)[None, :]
    out_row = pixel // out_columns % out_rows
    out_column = pixel % out_columns
    total = tl.zeros([PIXEL_BLOCK, FILTER_BLOCK], dtype=tl.float32)
    for base in range(BASES):
        sums = tl.zeros([PIXEL_BLOCK, FILTER_BLOCK], dtype=SUM)
        for split in tl.static_range(SPLITS):
            part = tl.cast(split * BASES + base, tl.int64) * pixels + pixel
            at = partial + part[:, None] * filters + filter[None, :]
            sums += tl.load(at, mask=inside, other=0)
        if OFFSETS:
            sums += place_offsets(
                offsets, places, base, out_row, out_column, filter, inside, out_rows,
                place_count, filters,
            )  # fmt: skip
        total = add_basis(total, sums, base_scale, base, filter, filters, BASE_SCALE)
    finish(
        total, pixel, filter, inside, out, affine, slope, threshold, residual, read_step,
        lower, upper, kept_low, kept_step, filters, READ, KEPT, KEPT_BITS, AFFINE, RESIDUAL,
        ACTIVATION, THRESHOLD, PIXEL_BLOCK, FILTER_BLOCK, also, also_low, also_step, ALSO_BITS,
    )  # fmt: skip
