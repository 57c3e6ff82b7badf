"""A network as the GPU runs it: values in device memory, and one kernel launch or two per step.

Values are channels last, of the kinds that `models.kernels.product_shape` describes; a vector of F
numbers is a map of one pixel with F channels. Values and steps are known by their index. Tensors of
a program are on the CPU: `models.runtime.gpu_execution` brings them to a device.
"""

from dataclasses import dataclass, field, replace
from math import prod
from typing import Final

import torch
from torch import Tensor

from models.kernels.image_windows import WHOLE_PIXELS, ImageWindows
from models.kernels.product_shape import (
    Epilogue,
    Levels,
    Pair,
    ProductShape,
    ProductTensors,
    ValueKind,
    kept_channels,
)

# A whole line of the second-level cache: no two values share one.
_ALIGNMENT: Final = 128
_BYTES: Final = {"f16": 2, "f32": 4, "i8": 1, "b1": 4}


@dataclass(frozen=True)
class GpuValue:
    """``height x width`` pixels of ``channels`` numbers, for each image."""

    channels: int
    height: int
    width: int
    kind: ValueKind

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image's tensor; 32 signs are one element."""
        return (self.height, self.width, kept_channels(self.channels, self.kind))

    @property
    def bytes(self) -> int:
        """Bytes of an image, a multiple of 128."""
        return -(-prod(self.shape) * _BYTES[self.kind] // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True, kw_only=True)
class GpuStep:
    """A step that makes the value ``out``, or a part of it."""

    out: int

    @property
    def reads(self) -> tuple[int, ...]:
        """The values it reads."""
        return ()

    @property
    def writes(self) -> tuple[int, ...]:
        """The values it writes."""
        return (self.out,)


@dataclass(frozen=True, kw_only=True)
class InputStep(GpuStep):
    """Images of ``shape (C, H, W)``, float32, channels last, as numbers or a quantizer's levels."""

    shape: tuple[int, int, int]
    levels: Levels | None = None
    windows: ImageWindows = WHOLE_PIXELS


@dataclass(frozen=True, kw_only=True)
class ZeroStep(GpuStep):
    """Zeros."""


@dataclass(frozen=True, kw_only=True)
class _Reading(GpuStep):
    """Reads ``source``."""

    source: int

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.source,)


@dataclass(frozen=True)
class Finish:
    """What is done with every number before it is kept.

    ``residual`` is the value to be added, ``also`` that of the levels which are kept besides.
    """

    epilogue: Epilogue
    tensors: ProductTensors = field(default_factory=ProductTensors)
    residual: int | None = None
    also: int | None = None

    @property
    def held(self) -> dict[str, Tensor]:
        """Its tensors, by name."""
        return {name: tensor for name, tensor in vars(self.tensors).items() if tensor is not None}

    def on(self, device: torch.device) -> "Finish":
        """Return the same with its tensors on ``device``."""
        moved = {name: tensor.to(device) for name, tensor in self.held.items()}
        return replace(self, tensors=ProductTensors(**moved))


@dataclass(frozen=True, kw_only=True)
class ElementwiseStep(_Reading):
    """Nothing but its finish."""

    finish: Finish

    @property
    def reads(self) -> tuple[int, ...]:
        residual = self.finish.residual
        return (self.source,) if residual is None else (self.source, residual)

    @property
    def writes(self) -> tuple[int, ...]:
        also = self.finish.also
        return (self.out,) if also is None else (self.out, also)


@dataclass(frozen=True, kw_only=True)
class ProductStep(ElementwiseStep):
    """A product of packed bits; ``words`` are those of `models.runtime.gpu_weights.tap_words`."""

    shape: ProductShape
    words: Tensor


@dataclass(frozen=True, kw_only=True)
class FloatProductStep(ElementwiseStep):
    """A product with ``weight (N, C / groups, kh, kw)``, which is computed in its dtype."""

    shape: ProductShape
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class SignStep(_Reading):
    """+1 or -1 as numbers: ``threshold (2, C)`` float32 decides, or else 0."""

    threshold: Tensor | None


@dataclass(frozen=True, kw_only=True)
class PoolStep(_Reading):
    """The greatest number of each window, or its mean."""

    maximum: bool
    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True, kw_only=True)
class CopyStep(_Reading):
    """Every ``stride``-th row and column, to the channels from ``first_channel`` on."""

    stride: Pair
    first_channel: int


@dataclass(frozen=True, kw_only=True)
class TransposeStep(_Reading):
    """A map as a vector in the order C, H, W."""


@dataclass(frozen=True)
class GpuProgram:
    """``values``, ``steps`` in the order in which they run, and the value that is the result."""

    values: tuple[GpuValue, ...]
    steps: tuple[GpuStep, ...]
    output: int

    @property
    def images_shape(self) -> tuple[int, int, int]:
        """That of an image of the network's input, ``(C, H, W)``."""
        return next(step.shape for step in self.steps if isinstance(step, InputStep))


def is_linear(shape: ProductShape) -> bool:
    """Tell whether it is the product of a vector and a matrix."""
    return shape.kernel == (1, 1) == shape.in_hw and shape.padding == (0, 0) and shape.groups == 1
