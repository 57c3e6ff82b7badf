"""The CUDA runtime: a packed network on an NVIDIA GPU, one graph per batch size.

When a runtime has been made, all that a prediction takes is there: weights, memory for the
activations of the largest batch, and graphs for batches of 1, 2, 4, ... images. A request is
rounded up to one of these, a larger one is cut. One thread in a process gives all models' work to
the device, on one stream, so that models take turns there as they do on the processor.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from models.artifact import Artifact
from models.runtime.compilation import compile_plan
from models.runtime.cuda_graphs import Graphs, sizes_up_to
from models.runtime.gpu_compilation import gpu_program
from models.runtime.gpu_dispatch import dispatch
from models.runtime.gpu_execution import GpuExecution
from models.runtime.gpu_memory import most_images
from models.runtime.gpu_presence import gpu_architecture
from models.runtime.gpu_program import GpuProgram, ProductStep
from store.errors import Unavailable

MAX_BATCH_IMAGES: Final = 64

# Of the memory that is free when a model is loaded: others want to be loaded too.
_SHARE_OF_FREE_MEMORY: Final = 0.5
# Sums of levels of 8 bits stay within 32 bits for filters of so many weights.
_MOST_FILTER_WEIGHTS: Final = (2**31 - 1) // 255

# torch records one graph at a time, and meanwhile neither counts nor gives back memory.
_preparing: Final = threading.Lock()

_log = logging.getLogger("bitpress.models")


class CudaRuntime:
    """Executes an artifact's plan on an NVIDIA GPU.

    ``device``: by default torch's current one. ``max_batch_images``: the largest batch that is
    computed at once, smaller where memory is short. ``batch_sizes``: those to make graphs for in
    place of 1, 2, 4, ... images. ``autotune``: whether kernels that were never measured on such a
    device are, for the least and the largest batch, which may take minutes once; else, and for
    the batches between, they are chosen by rule.

    Raises:
        Unavailable: there is no GPU here, too old a one, or nothing to drive it with; or the
            network cannot run there.
    """

    name = "cuda"

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: torch.device | None = None,
        max_batch_images: int = MAX_BATCH_IMAGES,
        batch_sizes: Sequence[int] | None = None,
        autotune: bool = True,
    ) -> None:
        if min(batch_sizes or (max_batch_images,)) < 1:
            raise ValueError("a batch has an image at least")
        self.kernels = gpu_architecture()
        if not torch.cuda.is_available():
            raise Unavailable(
                "There is an NVIDIA GPU, but torch cannot use it.",
                field="runtime",
                remedy="Install a newer driver, or a torch that was built for this one; or use "
                "the runtime 'cpu'.",
            )
        self._input_shape = artifact.plan.input_shape
        self._output_shape = artifact.plan.output_shape
        program = gpu_program(compile_plan(artifact.plan, artifact.tensors))
        _check_sums(program)
        with _refusing_what_cannot_be_prepared(), _preparing:
            from models.runtime.gpu_kernels import GpuKernels  # needs Triton

            self._device = _with_index(device)
            self._dispatch = dispatch(self._device)
            with torch.cuda.device(self._device):
                sizes = batch_sizes or sizes_up_to(min(max_batch_images, _images_that_fit(program)))
                most = max(sizes)
                kernels = GpuKernels(autotune=autotune, measured={min(sizes), most})
                self._execution = GpuExecution(program, self._device, kernels, most)
                self._graphs = Graphs(self._execution, sizes, self._device)
                self._device_bytes = (
                    self._execution.resident_bytes
                    + self._execution.buffer_bytes
                    + self._graphs.pool_bytes
                )
                # What the device copies to and from without the processor's help.
                self._read = torch.empty((most, *self._input_shape), pin_memory=True)
                self._written = torch.empty((most, *self._output_shape), pin_memory=True)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that there are graphs for, ascending."""
        return self._graphs.sizes

    @property
    def resident_bytes(self) -> int:
        """Bytes of packed weights and per-channel numbers, on the device."""
        return self._execution.resident_bytes

    @property
    def activation_bytes(self) -> int:
        """Bytes of the values of one image; there is room for those of the largest batch."""
        return self._execution.image_bytes

    @property
    def device_bytes(self) -> int:
        """Bytes of the device's memory that the model takes in all."""
        return self._device_bytes

    def run(self, x: Tensor) -> Tensor:
        """Return the plan's output, float32 ``(N, *output_shape)``, for ``(N, C, H, W)``.

        Raises:
            ValueError: ``x`` is not float32 of the plan's input shape, in the processor's memory.
            Unavailable: the GPU has failed; or some number was too large for float16.
        """
        if (
            x.dtype != torch.float32
            or tuple(x.shape[1:]) != self._input_shape
            or x.device.type != "cpu"
        ):
            raise ValueError(f"input must be float32 (N, *{self._input_shape})")
        result = torch.empty((len(x), *self._output_shape), dtype=torch.float32, device="cpu")
        most = self.batch_sizes[-1]
        for first in range(0, len(x), most):
            part = slice(first, first + most)
            self._run_part(x.detach()[part], result[part])
        if not torch.isfinite(result).all():
            raise Unavailable(
                "This network makes numbers too large for the half precision of the runtime "
                "'cuda'.",
                field="runtime",
                remedy="Use the runtime 'cpu'.",
            )
        return result

    def static_input(self, images: int) -> Tensor:
        """Return what the graph for so many images reads: float32 ``(N, C, H, W)`` on the device.

        Raises:
            ValueError: there is no graph of that size.
        """
        return self._execution.images(self._known_size(images))

    def replay(self, images: int) -> None:
        """Enqueue the graph for so many images on the current stream, and nothing else.

        Nobody else may use this runtime meanwhile.

        Raises:
            ValueError: there is no graph of that size.
        """
        self._graphs.replay(self._known_size(images))

    def _run_part(self, images: Tensor, answers: Tensor) -> None:
        size, count = self._graphs.size_for(len(images)), len(images)

        def compute() -> None:
            self._read[:count].copy_(images)
            self._execution.images(size)[:count].copy_(self._read[:count], non_blocking=True)
            self._graphs.replay(size)
            found = self._execution.result(size)[:count].reshape(count, *self._output_shape)
            self._written[:count].copy_(found, non_blocking=True)

        def fetch() -> None:
            answers.copy_(self._written[:count])

        self._dispatch.run(compute, fetch)

    def _known_size(self, images: int) -> int:
        if images not in self.batch_sizes:
            raise ValueError(f"there are graphs for {self.batch_sizes} images")
        return images


@contextmanager
def _refusing_what_cannot_be_prepared() -> Iterator[None]:
    """Let whatever goes wrong between here and a recorded network be a refusal, told in the log.

    It may be the driver, a compiler, a library or the device's memory, each with errors of its
    own; another runtime is none the worse for it.

    Raises:
        Unavailable: anything went wrong.
    """
    try:
        yield
    except Unavailable:
        raise
    except torch.OutOfMemoryError as error:
        raise Unavailable(
            "The GPU's memory has no room for this network.",
            field="runtime",
            remedy="Let fewer models be resident, or use the runtime 'cpu'.",
        ) from error
    except Exception as error:
        _log.exception("a network could not be prepared for the GPU")
        raise Unavailable(
            "The runtime 'cuda' could not prepare this network.",
            field="runtime",
            remedy="See the log for what went wrong, or use the runtime 'cpu'.",
        ) from error


def _with_index(device: torch.device | None) -> torch.device:
    if device is None or device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _images_that_fit(program: GpuProgram) -> int:
    # What models that are gone have left with torch is free too.
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return most_images(program, int(free * _SHARE_OF_FREE_MEMORY))


def _check_sums(program: GpuProgram) -> None:
    """Refuse a filter whose sums may leave 32 bits.

    Raises:
        Unavailable: there is one.
    """
    for step in program.steps:
        if isinstance(step, ProductStep) and step.shape.filter_weights > _MOST_FILTER_WEIGHTS:
            raise Unavailable(
                "The runtime 'cuda' cannot run this network: it has a filter of over "
                f"{_MOST_FILTER_WEIGHTS} weights.",
                field="runtime",
                remedy="Use the runtime 'reference'.",
            )
