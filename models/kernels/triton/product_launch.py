"""Which kernel computes a product, on how many programs, with which of its many arguments."""

from math import gcd
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from models.kernels.product_shape import Epilogue, Levels, ProductShape, ProductTensors
from models.kernels.triton.configurations import Configuration
from models.kernels.triton.direct import direct_product
from models.kernels.triton.launching import blocks, launch
from models.kernels.triton.products import add_splits, product
from models.kernels.triton.vectors import vector_product

_MOST_UNIT: Final = 16  # more channels in a row make no wider copies
_REDUCED_PIXELS: Final = 16
_REDUCED_FILTERS: Final = 64


def run_product(
    x: Tensor,
    words: Tensor,
    tensors: ProductTensors,
    shape: ProductShape,
    epilogue: Epilogue,
    out: Tensor,
    config: Configuration,
) -> None:
    """Compute what `models.kernels.triton.operators.launch_product` says, of at least one image."""
    if config.direct:
        _launch_direct(x, words, tensors, shape, epilogue, out, config)
    elif config.slices > 1:
        _launch_vector(x, words, tensors, shape, epilogue, out, config)
    else:
        _launch_tiles(x, words, tensors, shape, epilogue, out, config)


def _launch_tiles(
    x: Tensor,
    words: Tensor,
    tensors: ProductTensors,
    shape: ProductShape,
    epilogue: Epilogue,
    out: Tensor,
    config: Configuration,
) -> None:
    pixels = len(x) * shape.out_hw[0] * shape.out_hw[1]
    filter_blocks = shape.groups * blocks(shape.group_filters, config.filter_block)
    unit = gcd(shape.group_channels, _MOST_UNIT)
    partial = None
    if config.splits > 1:
        dtype = torch.int32 if epilogue.read == "i8" else torch.float32
        parts = (config.splits, shape.bases, pixels, shape.filters)
        partial = torch.empty(parts, dtype=dtype, device=x.device)
    launch(
        product,
        (blocks(pixels, config.pixel_block) * filter_blocks, config.splits),
        x,
        words,
        out,
        partial,
        *_tensors(tensors),
        shape.group_channels // unit,
        shape.group_filters,
        pixels,
        shape.taps,
        shape.kernel[1],
        shape.groups,
        config.splits,
        *shape.in_hw,
        *shape.out_hw,
        *shape.stride,
        *shape.padding,
        *shape.dilation,
        *_numbers(tensors, epilogue),
        UNIT=unit,
        **_work(shape, epilogue, tensors),
        ONE_TAP=shape.taps == 1,
        WHOLE_BLOCKS=shape.group_channels % config.channel_block == 0,
        FILTER_BLOCK=config.filter_block,
        PIXEL_BLOCK=config.pixel_block,
        CHANNEL_BLOCK=config.channel_block,
        SPLIT=config.splits > 1,
        FILTERS_FIRST=config.filters_first,
        warps=config.warps,
        stages=config.stages,
    )
    if partial is not None:
        launch(
            add_splits,
            (blocks(pixels, _REDUCED_PIXELS), blocks(shape.filters, _REDUCED_FILTERS)),
            partial,
            out,
            *_tensors(tensors),
            shape.filters,
            pixels,
            *shape.out_hw,
            *_numbers(tensors, epilogue),
            **_work(shape, epilogue, tensors),
            FILTER_BLOCK=_REDUCED_FILTERS,
            PIXEL_BLOCK=_REDUCED_PIXELS,
            SPLITS=config.splits,
        )


def _launch_vector(
    x: Tensor,
    words: Tensor,
    tensors: ProductTensors,
    shape: ProductShape,
    epilogue: Epilogue,
    out: Tensor,
    config: Configuration,
) -> None:
    unit = gcd(shape.in_channels, _MOST_UNIT)
    launch(
        vector_product,
        (blocks(shape.filters, config.filter_block), blocks(len(x), config.pixel_block)),
        x,
        words,
        out,
        *_tensors(tensors),
        shape.in_channels // unit,
        shape.filters,
        len(x),
        *_numbers(tensors, epilogue),
        UNIT=unit,
        **_work(shape, epilogue, tensors),
        FILTER_BLOCK=config.filter_block,
        PIXEL_BLOCK=config.pixel_block,
        CHANNEL_BLOCK=config.channel_block,
        SLICES=config.slices,
        warps=config.warps,
        stages=config.stages,
    )


def _launch_direct(
    x: Tensor,
    words: Tensor,
    tensors: ProductTensors,
    shape: ProductShape,
    epilogue: Epilogue,
    out: Tensor,
    config: Configuration,
) -> None:
    pixels = len(x) * shape.out_hw[0] * shape.out_hw[1]
    launch(
        direct_product,
        (blocks(pixels, config.pixel_block), blocks(shape.filters, config.filter_block)),
        x,
        words,
        out,
        *_tensors(tensors),
        pixels,
        *shape.in_hw,
        *shape.out_hw,
        *_numbers(tensors, epilogue),
        CHANNELS=shape.in_channels,
        FILTERS=shape.filters,
        GROUPS=shape.groups,
        **_geometry(shape),
        **_work(shape, epilogue, tensors),
        FILTER_BLOCK=config.filter_block,
        PIXEL_BLOCK=config.pixel_block,
        warps=config.warps,
        stages=config.stages,
    )


def _tensors(tensors: ProductTensors) -> tuple[Tensor | None, ...]:
    return (
        tensors.base_scale, tensors.affine, tensors.slope, tensors.threshold, tensors.residual,
        tensors.also, tensors.offsets, tensors.places,
    )  # fmt: skip


def _numbers(tensors: ProductTensors, epilogue: Epilogue) -> tuple[int | float, ...]:
    """Return the numbers that kernels get while they run: places, input step, bounds, levels."""
    activation = epilogue.activation
    bounds = (0.0, 0.0) if activation is None else (activation.low, activation.high)
    return (
        0 if tensors.offsets is None else tensors.offsets.shape[1],
        1.0 if epilogue.read_levels is None else epilogue.read_levels.step,
        *bounds,
        *level_numbers(epilogue.kept_levels),
        *level_numbers(epilogue.also_levels),
    )


def level_numbers(levels: Levels | None) -> tuple[float, float]:
    """Return the least number and the step of a quantizer, as its kernels are given them.

    Of one bit, in place of the step, the number from which on the bit is set.
    """
    if levels is None:
        return (0.0, 1.0)
    if levels.bits > 1:
        return (levels.low, levels.step)
    return (levels.low, float(np.float32(levels.low) + np.float32(levels.step) / np.float32(2)))


def _geometry(shape: ProductShape) -> dict[str, int]:
    return {
        f"{name}_{axis}": value
        for name, pair in {
            "KERNEL": shape.kernel,
            "STRIDE": shape.stride,
            "PADDING": shape.padding,
            "DILATION": shape.dilation,
        }.items()
        for axis, value in zip(("ROWS", "COLUMNS"), pair, strict=True)
    }


def _work(shape: ProductShape, epilogue: Epilogue, tensors: ProductTensors) -> dict[str, Any]:
    """Return what is done with the sums of every basis, as compile-time arguments."""
    return epilogue_constants(epilogue) | {
        "BASES": shape.bases,
        "BASE_SCALE": epilogue.base_scale,
        "OFFSETS": tensors.offsets is not None,
    }


def epilogue_constants(epilogue: Epilogue) -> dict[str, Any]:
    """Return what `finishing.finish` does, as compile-time arguments."""
    return {
        "READ": epilogue.read,
        "KEPT": epilogue.kept,
        "KEPT_BITS": 0 if epilogue.kept_levels is None else epilogue.kept_levels.bits,
        "ALSO_BITS": 0 if epilogue.also_levels is None else epilogue.also_levels.bits,
        "AFFINE": epilogue.affine,
        "RESIDUAL": epilogue.residual is not None,
        "ACTIVATION": "" if epilogue.activation is None else epilogue.activation.kind,
        "THRESHOLD": epilogue.threshold,
    }
