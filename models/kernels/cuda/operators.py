"""Products of signs as an operator of torch: what it checks, launches, and tells a tracer.

``bitpress::conv_bits_b1`` writes to tensors that the caller brings, so that under a CUDA graph all
memory stays where it is. It runs on NVIDIA GPUs alone.
"""

import ctypes
import json
from dataclasses import asdict
from functools import cache
from math import prod
from typing import Final

import torch
from torch import Tensor

from models.kernels.cuda.configurations import Configuration, Popcount, Tiles, grid
from models.kernels.cuda.constants import product_constants
from models.kernels.cuda.device_functions import enqueue
from models.kernels.product_shape import (
    Epilogue,
    ProductShape,
    ProductTensors,
    ValueKind,
    decoded,
    encoded,
    kept_channels,
)

_DTYPES: Final[dict[ValueKind, torch.dtype]] = {
    "f16": torch.float16,
    "f32": torch.float32,
    "i8": torch.int8,
    "b1": torch.int32,
}

# Kernels number pixels with 32 bits.
_MOST_PIXELS: Final = 2**31 - 1

# Kernels read and write up to so many bytes at once.
_ALIGNMENT: Final = 16


def launch_product(
    x: Tensor,
    words: Tensor,
    tensors: ProductTensors,
    shape: ProductShape,
    epilogue: Epilogue,
    out: Tensor,
    config: Configuration,
) -> None:
    """Compute a product of the signs ``x``, int32 ``(N, H, W, ceil(C / 32))``, into ``out``.

    ``words``: int32 of ``shape.words_shape``. ``tensors`` has ``tap_sums`` and what ``epilogue``
    says. ``out``: of ``shape.out_shape(N, epilogue.kept)``, kept as ``epilogue.kept``. All are
    contiguous, on one GPU, at multiples of 16 bytes, and share no memory with ``out``.

    Raises:
        ValueError: a tensor has another dtype, shape or place, or ``x`` is not kept as signs.
        Unavailable: there is no compiler for the kernel.
    """
    if tensors.tap_sums is None:
        raise ValueError("a product of signs needs tap_sums")
    torch.ops.bitpress.conv_bits_b1(
        x,
        words,
        tensors.tap_sums,
        tensors.base_scale,
        tensors.affine,
        tensors.slope,
        tensors.threshold,
        tensors.residual,
        out,
        tensors.also,
        encoded(shape, epilogue),
        _encoded(config),
    )


def _run_product(
    x: Tensor,
    words: Tensor,
    tap_sums: Tensor,
    base_scale: Tensor | None,
    affine: Tensor | None,
    slope: Tensor | None,
    threshold: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    also: Tensor | None,
    description: str,
    configuration: str,
) -> None:
    """`launch_product`; ``description`` is what `encoded` gives."""
    shape, epilogue = decoded(description)
    finishing = (base_scale, affine, slope, threshold, residual)
    _check_product(x, words, tap_sums, finishing, out, also, shape, epilogue)
    placed = [one for one in (x, words, tap_sums, residual, out, also) if one is not None]
    if any(tensor.data_ptr() % _ALIGNMENT for tensor in placed):
        raise ValueError(f"a tensor's address is no multiple of {_ALIGNMENT} bytes")
    config = _decoded(configuration)
    if len(x) == 0:
        return
    pixels = len(x) * prod(shape.out_hw)
    levels = out if epilogue.kept == "i8" else also
    sums = (tap_sums,) if isinstance(config, Tiles) else ()
    enqueue(
        "tensor_product" if isinstance(config, Tiles) else "popcount_product",
        product_constants(shape, epilogue, config),
        grid(shape, len(x), config),
        config.threads,
        (x, words, *sums, *finishing, out, levels, ctypes.c_int32(pixels)),
        x.device,
    )


def _trace_product(
    x: Tensor,
    words: Tensor,
    tap_sums: Tensor,
    base_scale: Tensor | None,
    affine: Tensor | None,
    slope: Tensor | None,
    threshold: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    also: Tensor | None,
    description: str,
    configuration: str,
) -> None:
    finishing = (base_scale, affine, slope, threshold, residual)
    _check_product(x, words, tap_sums, finishing, out, also, *decoded(description))


def _check_product(
    x: Tensor,
    words: Tensor,
    tap_sums: Tensor,
    finishing: tuple[Tensor | None, ...],
    out: Tensor,
    also: Tensor | None,
    shape: ProductShape,
    epilogue: Epilogue,
) -> None:
    if epilogue.read != "b1":
        raise ValueError("these kernels read signs alone")
    images, filters, bases = len(x), shape.filters, shape.bases
    in_words = kept_channels(shape.in_channels, "b1")
    sums_shape = (bases, shape.kernel[0] + 1, shape.kernel[1] + 1, filters)
    _check("x", x, torch.int32, (images, *shape.in_hw, in_words))
    if images * max(prod(shape.in_hw), prod(shape.out_hw)) > _MOST_PIXELS:
        raise ValueError("so many pixels cannot be numbered")
    _check("words", words, torch.int32, shape.words_shape)
    _check("tap_sums", tap_sums, torch.int32, sums_shape)
    prelu = epilogue.activation is not None and epilogue.activation.kind == "prelu"
    wanted = {
        "base_scale": (epilogue.base_scale, (bases, filters)),
        "affine": (epilogue.affine, (2, filters)),
        "slope": (prelu, (filters,)),
        "threshold": (epilogue.threshold, (2, filters)),
        "residual": (epilogue.residual is not None, (images, *shape.out_hw, filters)),
    }
    for (name, (there, sizes)), tensor in zip(wanted.items(), finishing, strict=True):
        if there != (tensor is not None):
            raise ValueError(f"{name} is missing, or is not asked for")
        if tensor is not None:
            half = name == "residual" and epilogue.residual == "f16"
            _check(name, tensor, torch.float16 if half else torch.float32, sizes)
    if (epilogue.also_levels is not None) != (also is not None):
        raise ValueError("also is missing, or is not asked for")
    if also is not None:
        _check("also", also, torch.int8, (images, *shape.out_hw, filters))
    _check("out", out, _DTYPES[epilogue.kept], shape.out_shape(images, epilogue.kept))


def _check(name: str, tensor: Tensor, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != sizes or not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous {dtype} {sizes}")


_conv_bits_b1 = torch.library.custom_op(
    "bitpress::conv_bits_b1", _run_product, mutates_args=("out", "also"), device_types="cuda"
)
_conv_bits_b1.register_fake(_trace_product)


def _encoded(config: Configuration) -> str:
    return json.dumps(asdict(config))


@cache
def _decoded(text: str) -> Configuration:
    members = json.loads(text)
    return Tiles(**members) if "tile_pixels" in members else Popcount(**members)
