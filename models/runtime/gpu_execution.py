"""A GPU's program in a device's memory, ready to be run or to be captured in a graph.

Everything that a run reads or writes has its place when the program is loaded: `bind` gives the
launches of a batch size, and they allocate nothing but what a float layer makes, which a graph
keeps in a pool of its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.kernels.image_windows import ImageWindows
from models.kernels.product_shape import Epilogue, Levels, Pair, ProductTensors
from models.runtime.gpu_memory import place_values
from models.runtime.gpu_program import (
    CopyStep,
    ElementwiseStep,
    FloatProductStep,
    GpuProgram,
    GpuStep,
    InputStep,
    PoolStep,
    ProductStep,
    SignStep,
    TransposeStep,
    ZeroStep,
    is_linear,
)

Launch = Callable[[], object]

_DTYPES = {"f16": torch.float16, "f32": torch.float32, "i8": torch.int8, "b1": torch.int32}


class PreparedProduct(Protocol):
    """A product whose weights are on the device."""

    @property
    def resident_bytes(self) -> int:
        """Bytes of its weights and tables."""

    def bind(
        self, x: Tensor, residual: Tensor | None, out: Tensor, also: Tensor | None = None
    ) -> Launch:
        """Return what computes ``out``, and ``also``, from ``x`` and ``residual`` when called."""


class Kernels(Protocol):
    """What computes the steps that torch does not; all maps are ``(N, H, W, C)`` as they are
    kept."""

    def product(self, step: ProductStep, device: torch.device) -> PreparedProduct:
        """Bring the tensors of ``step`` to ``device``."""

    def images(
        self, images: Tensor, out: Tensor, levels: Levels | None, windows: ImageWindows
    ) -> None:
        """Write images ``(N, C, H, W)``, float32, to ``out``, as numbers or as ``levels``."""

    def elementwise(
        self, x: Tensor, tensors: ProductTensors, channels: int, epilogue: Epilogue, out: Tensor
    ) -> None:
        """Write what ``epilogue`` makes of every number of ``x``."""

    def pool(
        self, x: Tensor, out: Tensor, maximum: bool, kernel: Pair, stride: Pair, padding: Pair
    ) -> None:
        """Write the greatest number of each window, or its mean."""


class GpuExecution:
    """``program`` in the memory of ``device``, for up to ``max_images`` images at a time."""

    def __init__(
        self, program: GpuProgram, device: torch.device, kernels: Kernels, max_images: int
    ) -> None:
        self._program = program
        self._kernels = kernels
        self._arena = place_values(program)
        self._images_shape = program.images_shape
        numbers = max_images * prod(self._images_shape)
        self._input = torch.zeros(numbers, dtype=torch.float32, device=device)
        self._memory = torch.zeros(self._arena.bytes * max_images, dtype=torch.uint8, device=device)
        self._steps = [_on(step, device) for step in program.steps]
        self._products = {
            step.out: kernels.product(step, device)
            for step in program.steps
            if isinstance(step, ProductStep)
        }

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights and tables."""
        tables = sum(tensor.nbytes for step in self._steps for tensor in _tensors(step))
        return tables + sum(product.resident_bytes for product in self._products.values())

    @property
    def image_bytes(self) -> int:
        """Bytes of all values of an image, the network's input among them."""
        return self._arena.bytes + 4 * prod(self._images_shape)

    @property
    def buffer_bytes(self) -> int:
        """Bytes that are set apart for values."""
        return self._memory.nbytes + self._input.nbytes

    def images(self, count: int) -> Tensor:
        """Return the memory that a run of ``count`` images reads: float32 ``(N, C, H, W)``."""
        numbers = count * prod(self._images_shape)
        return self._input[:numbers].view(count, *self._images_shape)

    def result(self, count: int) -> Tensor:
        """Return the memory that a run of ``count`` images writes, as ``(N, C, H, W)``."""
        return self._value(self._program.output, count).permute(0, 3, 1, 2)

    def bind(self, count: int) -> list[Launch]:
        """Return what a run of ``count`` images does, launch by launch."""
        return [self._bind(step, count) for step in self._steps]

    def _value(self, index: int, count: int) -> Tensor:
        value = self._program.values[index]
        dtype, offset = _DTYPES[value.kind], self._arena.offsets[index] * count
        shape = (count, *value.shape)
        size = prod(shape) * dtype.itemsize
        return self._memory[offset : offset + size].view(dtype).view(shape)

    def _bind(self, step: GpuStep, count: int) -> Launch:
        out = self._value(step.out, count)
        match step:
            case InputStep():
                images, levels, windows = self.images(count), step.levels, step.windows
                return lambda: self._kernels.images(images, out, levels, windows)
            case ZeroStep():
                return out.zero_
        x, residual = (*(self._value(index, count) for index in step.reads), None)[:2]
        also = (*(self._value(index, count) for index in step.writes[1:]), None)[0]
        assert x is not None
        match step:
            case ProductStep():
                seen = x.view(count, *step.shape.in_hw, -1)
                return self._products[step.out].bind(seen, residual, out, also)
            case FloatProductStep():
                finish = self._finish(step, residual, out, also)
                return lambda: finish(_product(step, x))
            case ElementwiseStep():
                finish = self._finish(step, residual, out, also)
                return lambda: finish(x)
            case PoolStep():
                pool = (step.maximum, step.kernel, step.stride, step.padding)
                return lambda: self._kernels.pool(x, out, *pool)
            case SignStep():
                sense, threshold = (1.0, 0.0) if step.threshold is None else step.threshold
                return lambda: out.copy_(torch.where(sense * x >= threshold, 1.0, -1.0))
            case CopyStep():
                to = out[..., step.first_channel : step.first_channel + x.shape[-1]]
                return lambda: to.copy_(x[:, :: step.stride[0], :: step.stride[1]])
            case TransposeStep():
                channels_first = x.permute(0, 3, 1, 2)
                return lambda: out.view(channels_first.shape).copy_(channels_first)
        raise NotImplementedError(type(step).__name__)

    def _finish(
        self, step: ElementwiseStep, residual: Tensor | None, out: Tensor, also: Tensor | None
    ) -> Callable[[Tensor], None]:
        """Return what takes numbers through the finish of ``step``."""
        tensors = replace(step.finish.tensors, residual=residual, also=also)
        channels, epilogue = self._program.values[step.out].channels, step.finish.epilogue
        return lambda x: self._kernels.elementwise(x, tensors, channels, epilogue, out)


def _product(step: FloatProductStep, x: Tensor) -> Tensor:
    """Return ``x (N, H, W, C)`` times the step's float weights, ``(N, H, W, filters)``."""
    shape, x = step.shape, x.to(step.weight.dtype)
    if is_linear(shape):
        y = F.linear(x.reshape(len(x), -1), step.weight.flatten(1))
        return y.view(len(x), 1, 1, -1)
    maps, padding = x.permute(0, 3, 1, 2), shape.padding
    if shape.pad_value:
        rows, columns = padding
        maps, padding = F.pad(maps, (columns, columns, rows, rows), value=1.0), (0, 0)
    y = F.conv2d(
        maps,
        step.weight,
        stride=shape.stride,
        padding=padding,
        dilation=shape.dilation,
        groups=shape.groups,
    )
    return y.permute(0, 2, 3, 1).contiguous()


def _on(step: GpuStep, device: torch.device) -> GpuStep:
    """Return ``step`` with its tensors on ``device``, unless they are its kernels' to bring."""
    if isinstance(step, ProductStep):
        return step
    if isinstance(step, SignStep) and step.threshold is not None:
        return replace(step, threshold=step.threshold.to(device))
    if isinstance(step, FloatProductStep):
        # Channels last, as what it is multiplied with.
        weight = step.weight.to(device, memory_format=torch.channels_last)
        step = replace(step, weight=weight)
    if isinstance(step, ElementwiseStep):
        return replace(step, finish=step.finish.on(device))
    return step


def _tensors(step: GpuStep) -> Iterator[Tensor]:
    """Return the tensors that `_on` brought to the device."""
    match step:
        case SignStep() if step.threshold is not None:
            yield step.threshold
        case ElementwiseStep() if not isinstance(step, ProductStep):
            yield from step.finish.held.values()
            if isinstance(step, FloatProductStep):
                yield step.weight
