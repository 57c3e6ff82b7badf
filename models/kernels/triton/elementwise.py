"""Steps that no product takes along: what follows a product, on its own, and pooling."""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
# Triton finds out the types of device code, each time that it is compiled.

from typing import Final

import triton
import triton.language as tl
from torch import Tensor

from models.kernels.product_shape import Epilogue, Pair, ProductTensors
from models.kernels.triton.finishing import finish
from models.kernels.triton.launching import blocks, launch
from models.kernels.triton.product_launch import epilogue_constants, level_numbers

_CHANNEL_BLOCKS: Final = (32, 64, 128)
_NUMBERS: Final = 2048  # of a program: some for each of its threads


def run_elementwise(
    x: Tensor, tensors: ProductTensors, channels: int, epilogue: Epilogue, out: Tensor
) -> None:
    """Compute what `models.kernels.triton.operators.launch_elementwise` says."""
    pixels = x.numel() // channels
    block = _channel_block(channels)
    activation, levels = epilogue.activation, epilogue.read_levels
    launch(
        finish_numbers,
        (blocks(pixels, _NUMBERS // block), blocks(channels, block)),
        x,
        out,
        tensors.affine,
        tensors.slope,
        tensors.threshold,
        tensors.residual,
        tensors.also,
        channels,
        pixels,
        *((0.0, 1.0) if levels is None else (levels.low, levels.step)),
        *((0.0, 0.0) if activation is None else (activation.low, activation.high)),
        *level_numbers(epilogue.kept_levels),
        *level_numbers(epilogue.also_levels),
        **epilogue_constants(epilogue),
        CHANNEL_BLOCK=block,
        PIXEL_BLOCK=_NUMBERS // block,
    )


def run_pool(
    x: Tensor, out: Tensor, maximum: bool, kernel: Pair, stride: Pair, padding: Pair
) -> None:
    """Compute what `models.kernels.triton.operators.launch_pool` says."""
    images, rows, columns, channels = out.shape
    block = _channel_block(channels)
    pixels = images * rows * columns
    launch(
        pool,
        (blocks(pixels, _NUMBERS // 4 // block), blocks(channels, block)),
        x,
        out,
        pixels,
        x.shape[1],
        x.shape[2],
        rows,
        columns,
        CHANNELS=channels,
        MAXIMUM=maximum,
        KERNEL_ROWS=kernel[0],
        KERNEL_COLUMNS=kernel[1],
        STRIDE_ROWS=stride[0],
        STRIDE_COLUMNS=stride[1],
        PADDING_ROWS=padding[0],
        PADDING_COLUMNS=padding[1],
        CHANNEL_BLOCK=block,
        PIXEL_BLOCK=_NUMBERS // 4 // block,
    )


def _channel_block(channels: int) -> int:
    return next((block for block in _CHANNEL_BLOCKS if block >= channels), _CHANNEL_BLOCKS[-1])


@triton.jit(do_not_specialize=("pixels",))
def finish_numbers(
    x,
    out,
    affine,
    slope,
    threshold,
    residual,
    also,
    channels,
    pixels,
    read_low,
    read_step,
    lower,
    upper,
    kept_low,
    kept_step,
    also_low,
    also_step,
    READ: tl.constexpr,
    KEPT: tl.constexpr,
    KEPT_BITS: tl.constexpr,
    ALSO_BITS: tl.constexpr,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    THRESHOLD: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    PIXEL_BLOCK: tl.constexpr,
):
    """Do with every number of ``x`` what is done with a product's; levels become numbers first."""
    pixel = tl.program_id(0) * PIXEL_BLOCK + tl.arange(0, PIXEL_BLOCK)
    channel = tl.program_id(1) * CHANNEL_BLOCK + tl.arange(0, CHANNEL_BLOCK)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    at = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    y = tl.load(x + at, mask=inside, other=0).to(tl.float32)
    if READ == "i8":
        y = (y + 128) * read_step
        y = y + read_low
    finish(
        y, pixel, channel, inside, out, affine, slope, threshold, residual, 1.0, lower, upper,
        kept_low, kept_step, channels, "f32", KEPT, KEPT_BITS, AFFINE, RESIDUAL, ACTIVATION,
        THRESHOLD, PIXEL_BLOCK, CHANNEL_BLOCK, also, also_low, also_step, ALSO_BITS,
    )  # fmt: skip


@triton.jit(do_not_specialize=("pixels", "in_rows", "in_columns", "out_rows", "out_columns"))
def pool(
    x,
    out,
    pixels,
    in_rows,
    in_columns,
    out_rows,
    out_columns,
    CHANNELS: tl.constexpr,
    MAXIMUM: tl.constexpr,
    KERNEL_ROWS: tl.constexpr,
    KERNEL_COLUMNS: tl.constexpr,
    STRIDE_ROWS: tl.constexpr,
    STRIDE_COLUMNS: tl.constexpr,
    PADDING_ROWS: tl.constexpr,
    PADDING_COLUMNS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    PIXEL_BLOCK: tl.constexpr,
):
    """Keep the greatest number of each window, or their mean: a sum row by row, then divided."""
    pixel = tl.program_id(0) * PIXEL_BLOCK + tl.arange(0, PIXEL_BLOCK)
    channels = tl.program_id(1) * CHANNEL_BLOCK + tl.arange(0, CHANNEL_BLOCK)
    inside = (pixel < pixels)[:, None] & (channels < CHANNELS)[None, :]
    image = (pixel // (out_rows * out_columns)).to(tl.int64)
    first_row = pixel // out_columns % out_rows * STRIDE_ROWS - PADDING_ROWS
    first_column = pixel % out_columns * STRIDE_COLUMNS - PADDING_COLUMNS
    of_image = x + image * (in_rows * in_columns * CHANNELS)
    border: tl.constexpr = float("-inf") if MAXIMUM else 0.0
    y = tl.full([PIXEL_BLOCK, CHANNEL_BLOCK], border, dtype=tl.float32)
    # Unrolled, so that many reads are on their way at a time; they are added in their order.
    for tap in tl.range(0, KERNEL_ROWS * KERNEL_COLUMNS, loop_unroll_factor=8):
        row = first_row + tap // KERNEL_COLUMNS
        column = first_column + tap % KERNEL_COLUMNS
        mapped = (row >= 0) & (row < in_rows) & (column >= 0) & (column < in_columns)
        at = (of_image + (row * in_columns + column) * CHANNELS)[:, None] + channels[None, :]
        seen = inside & mapped[:, None]
        number = tl.load(at, mask=seen, other=0).to(tl.float32)
        if MAXIMUM:
            y = tl.where(seen & ((number > y) | (number != number)), number, y)
        else:
            y = y + number
    if not MAXIMUM:
        y = tl.div_rn(y, tl.full([1, 1], KERNEL_ROWS * KERNEL_COLUMNS, dtype=tl.float32))
    to = out + pixel.to(tl.int64)[:, None] * CHANNELS + channels[None, :]
    tl.store(to, tl.where(inside, y, 0.0).to(out.dtype.element_ty), mask=inside)
