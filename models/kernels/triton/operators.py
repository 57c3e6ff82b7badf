"""The kernels in Triton as operators of torch's own kind, ``bitpress::conv_bits_*`` and others.

They write to a tensor that is given to them, so that a CUDA graph finds everything in its place.
"""

import json
from collections.abc import Callable
from dataclasses import astuple
from functools import cache
from typing import Final

import torch
from torch import Tensor

from models.kernels.product_shape import (
    LEVEL_OFFSET,
    WORD_BITS,
    Epilogue,
    Pair,
    ProductShape,
    ProductTensors,
    ValueKind,
    decoded,
    encoded,
)
from models.kernels.triton.configurations import Configuration
from models.kernels.triton.elementwise import run_elementwise, run_pool
from models.kernels.triton.product_launch import run_product

KINDS: Final[dict[ValueKind, torch.dtype]] = {
    "f16": torch.float16,
    "f32": torch.float32,
    "i8": torch.int8,
    "b1": torch.int32,
}

# A tensor, and of which dtype and shape it has to be; None where it must not be there.
_Wanted = tuple[Tensor | None, torch.dtype | None, tuple[int, ...]]


def launch_product(
    x: Tensor,
    words: Tensor,
    tensors: ProductTensors,
    shape: ProductShape,
    epilogue: Epilogue,
    out: Tensor,
    config: Configuration,
) -> None:
    """Compute a product of ``x``, ``(N, H, W, C)`` kept as ``epilogue.read``, into ``out``.

    ``words``: int32 of ``shape.words_shape``, in the order of `word_order.interleaved`.
    ``out``: of ``shape.out_shape(N, epilogue.kept)``, kept as ``epilogue.kept``. All tensors are
    contiguous and on one device; ``out`` shares memory with none of them.

    Raises:
        ValueError: a tensor is missing or of another dtype or shape; or signs are read, which is
            for the kernels in CUDA, or are to be kept where a group of filters ends in a word.
    """
    _check(x, words, tensors, shape, epilogue, out)
    if len(x):
        _OPERATORS[epilogue.read](
            x,
            words,
            out,
            tensors.base_scale,
            tensors.affine,
            tensors.slope,
            tensors.threshold,
            tensors.residual,
            tensors.also,
            tensors.offsets,
            tensors.places,
            _encoded(shape, epilogue),
            _packed(config),
        )


def launch_elementwise(
    x: Tensor, tensors: ProductTensors, channels: int, epilogue: Epilogue, out: Tensor
) -> None:
    """Do with every number of ``x`` what ``epilogue`` says, as if it were a product's.

    ``x``: contiguous, ``channels`` last, float16 or float32, or int8 levels where
    ``epilogue.read`` is ``i8``: those become ``low + step * q`` first. ``out``: the same pixels,
    kept as ``epilogue.kept``.
    """
    if len(x):
        _finish_numbers(
            x,
            out,
            tensors.affine,
            tensors.slope,
            tensors.threshold,
            tensors.residual,
            tensors.also,
            _encoded(ProductShape(channels, channels), epilogue),
        )


def launch_pool(
    x: Tensor, out: Tensor, maximum: bool, kernel: Pair, stride: Pair, padding: Pair
) -> None:
    """Write the greatest number of each window of ``x``, ``(N, H, W, C)``, or the mean, to ``out``.

    The border counts as minus infinity, or as 0. Both tensors are contiguous and of real numbers,
    or both of levels, of which there is the greatest only.
    """
    if len(x):
        _pool(x, out, maximum, [*kernel], [*stride], [*padding])


def _product(
    x: Tensor,
    words: Tensor,
    out: Tensor,
    base_scale: Tensor | None,
    affine: Tensor | None,
    slope: Tensor | None,
    threshold: Tensor | None,
    residual: Tensor | None,
    also: Tensor | None,
    offsets: Tensor | None,
    places: Tensor | None,
    product: str,
    config: str,
) -> None:
    shape, epilogue = decoded(product)
    tensors = ProductTensors(base_scale, affine, slope, threshold, residual, also, offsets, places)
    run_product(x, words, tensors, shape, epilogue, out, _unpacked(config))


def _operator(read: ValueKind) -> Callable[..., None]:
    made = torch.library.custom_op(
        f"bitpress::conv_bits_{read}", _product, mutates_args=("out", "also")
    )
    made.register_fake(lambda *arguments: None)  # it makes no tensor
    return made


_OPERATORS: Final = {read: _operator(read) for read in ("f16", "f32", "i8")}


@torch.library.custom_op("bitpress::finish_numbers", mutates_args=("out", "also"))
def _finish_numbers(
    x: Tensor,
    out: Tensor,
    affine: Tensor | None,
    slope: Tensor | None,
    threshold: Tensor | None,
    residual: Tensor | None,
    also: Tensor | None,
    product: str,
) -> None:
    shape, epilogue = decoded(product)
    tensors = ProductTensors(None, affine, slope, threshold, residual, also)
    run_elementwise(x, tensors, shape.filters, epilogue, out)


@torch.library.custom_op("bitpress::pool", mutates_args=("out",))
def _pool(
    x: Tensor,
    out: Tensor,
    maximum: bool,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
) -> None:
    windows = [(first, second) for first, second in (kernel, stride, padding)]
    run_pool(x, out, maximum, *windows)


for _made in (_finish_numbers, _pool):
    _made.register_fake(lambda *arguments: None)

_encoded = cache(encoded)


@cache
def _packed(config: Configuration) -> str:
    return json.dumps(astuple(config))


@cache
def _unpacked(text: str) -> Configuration:
    return Configuration(*json.loads(text))


def _check(
    x: Tensor,
    words: Tensor,
    tensors: ProductTensors,
    shape: ProductShape,
    epilogue: Epilogue,
    out: Tensor,
) -> None:
    if epilogue.read == "b1":
        raise ValueError("products of signs are for the kernels in CUDA")
    if epilogue.read_levels is not None and epilogue.read_levels.zero is None:
        raise ValueError("a product reads levels one of which stands for 0")
    if epilogue.kept == "b1" and shape.groups > 1 and shape.group_filters % WORD_BITS:
        raise ValueError("a group of filters ends within a word of signs")
    images = len(x)
    wanted: dict[str, _Wanted] = {
        "x": (x, KINDS[epilogue.read], (images, *shape.in_hw, shape.in_channels)),
        "words": (words, torch.int32, shape.words_shape),
        "out": (out, KINDS[epilogue.kept], shape.out_shape(images, epilogue.kept)),
    }
    for name, (tensor, dtype, sizes) in (
        wanted | _wanted(tensors, shape, epilogue, images)
    ).items():
        if (tensor is None) != (dtype is None):
            raise ValueError(f"{name} has to be given exactly where the epilogue says so")
        if tensor is not None and not (
            tensor.dtype == dtype and tensor.shape == sizes and tensor.is_contiguous()
        ):
            raise ValueError(f"{name} must be {dtype} {sizes}, contiguous")
    if tensors.offsets is None and _lacks_something(shape, epilogue):
        raise ValueError("the sums of this product lack something: offsets have to be given")


def _wanted(
    tensors: ProductTensors, shape: ProductShape, epilogue: Epilogue, images: int
) -> dict[str, _Wanted]:
    def number(present: bool) -> torch.dtype | None:
        return torch.float32 if present else None

    filters = shape.filters
    prelu = epilogue.activation is not None and epilogue.activation.kind == "prelu"
    residual = None if epilogue.residual is None else KINDS[epilogue.residual]
    also = None if epilogue.also_levels is None else torch.int8
    scales, kept = (shape.bases, filters), shape.out_shape(images, "f32")
    return {
        "base_scale": (tensors.base_scale, number(epilogue.base_scale), scales),
        "affine": (tensors.affine, number(epilogue.affine), (2, filters)),
        "slope": (tensors.slope, number(prelu), (filters,)),
        "threshold": (tensors.threshold, number(epilogue.threshold), (2, filters)),
        "residual": (tensors.residual, residual, kept),
        "also": (tensors.also, also, kept),
    }


def _lacks_something(shape: ProductShape, epilogue: Epilogue) -> bool:
    """Tell whether `models.kernels.triton.borders.border_sums` gives anything."""
    levels = epilogue.read_levels
    shifted = levels is not None and levels.zero != LEVEL_OFFSET
    return shifted or (shape.pad_value != 0 and shape.padding != (0, 0))
