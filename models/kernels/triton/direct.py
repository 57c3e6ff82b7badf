"""Device code: convolution in narrow groups, one multiplication after the other.

A filter of a depthwise convolution reads one channel: there is no matrix in it that a tensor core
could multiply. Reading its few numbers from memory is what it costs.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
# Triton finds out the types of device code, each time that it is compiled.

import triton
import triton.language as tl

from models.kernels.triton.finishing import finish
from models.kernels.triton.products import add_basis, place_offsets
from models.kernels.triton.unpacking import bit_of


@triton.jit
def direct_product(
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
    also_low,
    also_step,
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
    ALSO_BITS: tl.constexpr,
    BASE_SCALE: tl.constexpr,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    THRESHOLD: tl.constexpr,
    OFFSETS: tl.constexpr,
    FILTER_BLOCK: tl.constexpr,
    PIXEL_BLOCK: tl.constexpr,
):
    """Make one tile of the result, of filters of any groups."""
    GROUP_CHANNELS: tl.constexpr = CHANNELS // GROUPS
    GROUP_FILTERS: tl.constexpr = FILTERS // GROUPS
    TAP_WORDS: tl.constexpr = (GROUP_CHANNELS + 31) // 32
    TAPS: tl.constexpr = KERNEL_ROWS * KERNEL_COLUMNS
    SUM: tl.constexpr = tl.int32 if READ == "i8" else tl.float32

    filters = tl.program_id(1) * FILTER_BLOCK + tl.arange(0, FILTER_BLOCK)
    pixel = tl.program_id(0) * PIXEL_BLOCK + tl.arange(0, PIXEL_BLOCK)
    is_pixel = pixel < pixels
    inside = is_pixel[:, None] & (filters < FILTERS)[None, :]
    out_row = pixel // out_columns % out_rows
    out_column = pixel % out_columns
    image = (pixel // (out_rows * out_columns)).to(tl.int64)
    of_image = x + image * (in_rows * in_columns * CHANNELS)
    first_channel = filters // GROUP_FILTERS * GROUP_CHANNELS

    total = tl.zeros([PIXEL_BLOCK, FILTER_BLOCK], dtype=tl.float32)
    for base in range(BASES):
        rows = words + (base * FILTERS + filters) * (TAPS * TAP_WORDS)
        sums = tl.zeros([PIXEL_BLOCK, FILTER_BLOCK], dtype=SUM)
        # Unrolled, so that many reads are on their way at a time.
        for step in tl.range(0, TAPS * GROUP_CHANNELS, loop_unroll_factor=8):
            tap = step // GROUP_CHANNELS
            channel = step % GROUP_CHANNELS
            row = out_row * STRIDE_ROWS - PADDING_ROWS + tap // KERNEL_COLUMNS * DILATION_ROWS
            column = out_column * STRIDE_COLUMNS - PADDING_COLUMNS
            column += tap % KERNEL_COLUMNS * DILATION_COLUMNS
            mapped = (row >= 0) & (row < in_rows) & (column >= 0) & (column < in_columns)
            at = of_image + (row * in_columns + column) * CHANNELS
            numbers = tl.load(
                at[:, None] + (first_channel + channel)[None, :],
                mask=inside & mapped[:, None],
                other=0,
            ).to(SUM)
            word = tl.load(rows + tap * TAP_WORDS + channel // 32, mask=filters < FILTERS, other=0)
            positive = (word >> bit_of(channel, READ)) & 1
            sums += tl.where((positive != 0)[None, :], numbers, -numbers)
        if OFFSETS:
            sums += place_offsets(
                offsets, places, base, out_row, out_column, filters, inside, out_rows,
                place_count, FILTERS,
            )  # fmt: skip
        total = add_basis(total, sums, base_scale, base, filters, FILTERS, BASE_SCALE)
    finish(
        total, pixel, filters, inside, out, affine, slope, threshold, residual, read_step,
        lower, upper, kept_low, kept_step, FILTERS, READ, KEPT, KEPT_BITS, AFFINE, RESIDUAL,
        ACTIVATION, THRESHOLD, PIXEL_BLOCK, FILTER_BLOCK, also, also_low, also_step, ALSO_BITS,
    )  # fmt: skip
