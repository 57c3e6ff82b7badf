"""The kernels of a GPU's program: Triton's for numbers and levels, those in CUDA C++ for signs."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.kernels import cuda
from models.kernels.image_windows import ImageWindows
from models.kernels.product_shape import Epilogue, Levels, Pair, ProductTensors
from models.kernels.triton import borders, operators, tuning, word_order
from models.kernels.triton.images import launch_images
from models.runtime.gpu_execution import Launch, PreparedProduct
from models.runtime.gpu_program import ProductStep


@dataclass(frozen=True)
class _Sizes:
    """The batch sizes for which kernels are measured."""

    autotune: bool
    sizes: Collection[int] | None

    def __contains__(self, images: int) -> bool:
        return self.autotune and (self.sizes is None or images in self.sizes)


class GpuKernels:
    """`models.runtime.gpu_execution.Kernels` of this package.

    ``autotune``: whether a product that was never measured on such a device is, when it is bound;
    ``measured``: for batches of these sizes alone, by default for all.
    """

    def __init__(self, *, autotune: bool, measured: Collection[int] | None = None) -> None:
        self._measured = _Sizes(autotune, measured)

    def product(self, step: ProductStep, device: torch.device) -> PreparedProduct:
        """Bring the weights of ``step`` to ``device``, in its kernels' order."""
        if step.finish.epilogue.read == "b1":
            return _SignProduct(step, device, self._measured)
        return _NumberProduct(step, device, self._measured)

    def images(
        self, images: Tensor, out: Tensor, levels: Levels | None, windows: ImageWindows
    ) -> None:
        launch_images(images, out, levels, windows)

    def elementwise(
        self, x: Tensor, tensors: ProductTensors, channels: int, epilogue: Epilogue, out: Tensor
    ) -> None:
        operators.launch_elementwise(x, tensors, channels, epilogue, out)

    def pool(
        self, x: Tensor, out: Tensor, maximum: bool, kernel: Pair, stride: Pair, padding: Pair
    ) -> None:
        operators.launch_pool(x, out, maximum, kernel, stride, padding)


class _Product:
    """What both kinds of products have on the device."""

    def __init__(
        self, step: ProductStep, words: Tensor, tensors: ProductTensors, measured: _Sizes
    ) -> None:
        self._shape = step.shape
        self._epilogue = step.finish.epilogue
        self._words = words
        self._tensors = tensors
        self._measured = measured

    @property
    def resident_bytes(self) -> int:
        found = [tensor for tensor in vars(self._tensors).values() if tensor is not None]
        return sum(tensor.nbytes for tensor in (self._words, *found))


class _NumberProduct(_Product):
    """A product of numbers or levels, in Triton."""

    def __init__(self, step: ProductStep, device: torch.device, measured: _Sizes) -> None:
        epilogue = step.finish.epilogue
        zero = None if epilogue.read_levels is None else epilogue.read_levels.zero
        tensors = step.finish.on(device).tensors
        missing = borders.border_sums(step.words, step.shape, zero)
        if missing is not None:
            tensors = replace(
                tensors,
                offsets=missing.offsets.to(device),
                places=missing.places.to(device),
            )
        words = word_order.interleaved(step.words.to(device), epilogue.read)
        super().__init__(step, words, tensors, measured)

    def bind(
        self, x: Tensor, residual: Tensor | None, out: Tensor, also: Tensor | None = None
    ) -> Launch:
        tensors = replace(self._tensors, residual=residual, also=also)
        arguments = (x, self._words, tensors, self._shape, self._epilogue, out)
        config = tuning.choose(*arguments, measure=len(x) in self._measured)
        return lambda: operators.launch_product(*arguments, config)


class _SignProduct(_Product):
    """A product of signs, in CUDA C++."""

    def __init__(self, step: ProductStep, device: torch.device, measured: _Sizes) -> None:
        tensors = replace(
            step.finish.on(device).tensors,
            tap_sums=cuda.tap_sums(step.words, step.shape).to(device),
        )
        super().__init__(step, step.words.to(device), tensors, measured)

    def bind(
        self, x: Tensor, residual: Tensor | None, out: Tensor, also: Tensor | None = None
    ) -> Launch:
        tensors = replace(self._tensors, residual=residual, also=also)
        arguments = (x, self._words, tensors, self._shape, self._epilogue, out)
        seconds = tuning.device_seconds if len(x) in self._measured else None
        config = cuda.choose(*arguments, seconds=seconds)
        return lambda: cuda.launch_product(*arguments, config)
