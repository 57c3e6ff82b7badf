"""The way in: images as their callers have them become the first value of a network.

``(N, C, H, W)`` in float32 becomes channels last, and half precision or levels at once. Left to a
general copy, that took a notable part of a small network's time: reading along rows and writing
along channels, it does neither in long runs.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
# Triton finds out the types of device code, each time that it is compiled.

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.image_windows import WHOLE_PIXELS, ImageWindows
from models.kernels.product_shape import Levels
from models.kernels.triton.finishing import quantized
from models.kernels.triton.launching import blocks, launch
from models.kernels.triton.product_launch import level_numbers

_NUMBERS: Final = 4096  # of a program
_MOST_CHANNELS: Final = 32

_DTYPES: Final = (torch.float16, torch.float32, torch.int8)


def launch_images(
    images: Tensor, out: Tensor, levels: Levels | None, windows: ImageWindows = WHOLE_PIXELS
) -> None:
    """Write ``images``, float32 ``(N, C, H, W)``, to ``out``, ``(N, H, windows, columns * C)``.

    ``out`` is float16 or float32, or int8 where ``levels`` says which quantizer's levels it keeps,
    as ``q - 128``. Both are contiguous.

    Raises:
        ValueError: a tensor has another dtype or shape, or is not contiguous.
    """
    count, channels, height, width = images.shape
    if images.dtype != torch.float32 or not images.is_contiguous():
        raise ValueError("images must be float32, contiguous")
    wanted = (count, height, windows.count(width), windows.columns * channels)
    if out.shape != wanted or not out.is_contiguous():
        raise ValueError(f"out must hold the images' numbers, channels last, {wanted}, contiguous")
    if out.dtype not in _DTYPES or (out.dtype == torch.int8) != (levels is not None):
        raise ValueError("out must be float16, float32, or int8 with levels")
    if images.numel():
        low, step = (0.0, 1.0) if levels is None else level_numbers(levels)
        _channels_last(
            images,
            out,
            [windows.columns, windows.stride, windows.padding],
            [low, step, windows.outside],
            0 if levels is None else levels.bits,
        )


@torch.library.custom_op("bitpress::channels_last", mutates_args=("out",))
def _channels_last(
    images: Tensor, out: Tensor, windows: list[int], numbers: list[float], bits: int
) -> None:
    count, channels, height, width = images.shape
    _, _, out_width, out_channels = out.shape
    pixels = count * height * out_width
    block = min(triton.next_power_of_2(out_channels), _MOST_CHANNELS)
    launch(
        channels_last,
        (blocks(pixels, _NUMBERS // block), blocks(out_channels, block)),
        images,
        out,
        channels,
        out_channels,
        pixels,
        height,
        width,
        out_width,
        *windows[1:],
        *numbers,
        KEPT_BITS=bits,
        CHANNEL_BLOCK=block,
        PIXEL_BLOCK=_NUMBERS // block,
    )


@_channels_last.register_fake
def _(images: Tensor, out: Tensor, windows: list[int], numbers: list[float], bits: int) -> None:
    pass


@triton.jit(do_not_specialize=("pixels",))
def channels_last(
    images,
    out,
    channels,
    out_channels,
    pixels,
    height,
    width,
    out_width,
    stride,
    padding,
    low,
    step,
    outside,
    KEPT_BITS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    PIXEL_BLOCK: tl.constexpr,
):
    """Move a block of pixels; the parameters are those of `launch_images`, number by number."""
    pixel = tl.program_id(0) * PIXEL_BLOCK + tl.arange(0, PIXEL_BLOCK)
    channel = tl.program_id(1) * CHANNEL_BLOCK + tl.arange(0, CHANNEL_BLOCK)
    inside = (pixel < pixels)[:, None] & (channel < out_channels)[None, :]
    line = pixel // out_width  # of all images
    first = pixel % out_width * stride - padding
    column = first[:, None] + (channel // channels)[None, :]
    read = inside & (column >= 0) & (column < width)
    maps = (line // height).to(tl.int64)[:, None] * channels + (channel % channels)[None, :]
    at = (maps * height + (line % height)[:, None]) * width + column
    y = tl.load(images + at, mask=read, other=0.0)
    if KEPT_BITS > 0:
        y = quantized(y, low, step, KEPT_BITS) - 128
    y = tl.where(read, y, outside)
    to = out + pixel.to(tl.int64)[:, None] * out_channels + channel[None, :]
    if KEPT_BITS > 0:
        tl.store(to, y.to(tl.int32).to(tl.int8), mask=inside)
    else:
        tl.store(to, y, mask=inside)
