"""The CPU engine: a plan compiled to a flat program that a C++ library runs in one call.

Sums of packed bits with quantized activations are exact and equal to the reference runtime's bit
for bit; sums of float32 are in another order. Any thread may call `CpuRuntime.run`: the interpreter
lock is free while the library computes, and calls on one runtime wait for each other.
"""

import weakref
from typing import Final

import torch
from torch import Tensor

from models.artifact import Artifact
from models.cores import usable_cores
from models.plan import Plan
from models.runtime.arena import place
from models.runtime.compilation import compile_plan
from models.runtime.kernel_choice import ChooseKernel, measured_kernels, with_kernels
from models.runtime.kernel_sets import kernel_set, native_library
from models.runtime.native import NativeError, Status
from store.errors import Unavailable

# Of all values of a batch: it should stay in the cores' caches. Weights are small, and reading them
# again for the next part of a batch costs less than activations that come from memory: ResNet-50
# at 224 pixels takes a quarter longer with 16 images at once than with one or two.
ACTIVATION_BYTES: Final = 8 << 20
_MOST_IMAGES: Final = 64

# The library's limits (models/kernels/cpu/checks.cpp).
MAX_THREADS: Final = 1024
MAX_STEPS: Final = 1 << 20


class CpuRuntime:
    """Executes an artifact's plan with kernels for one instruction set.

    ``threads``: how many compute together, by default one for each usable core, and never more than
    `MAX_THREADS`. ``kernels``: a kernel set (``portable``, ``avx2``, ``avx512``), by default that
    of the environment variable BITPRESS_CPU_KERNELS, or else the best one. ``choose_kernel``: by
    default the fastest by measurement. ``activation_bytes``: most bytes of activations at a time,
    but at least one image's.

    Raises:
        Unavailable: there is no native library here, no such kernel set, or none that can run this
            plan.
    """

    name = "cpu"
    device_bytes = 0

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int | None = None,
        kernels: str | None = None,
        choose_kernel: ChooseKernel | None = None,
        activation_bytes: int = ACTIVATION_BYTES,
    ) -> None:
        self.threads = min(usable_cores() if threads is None else threads, MAX_THREADS)
        if self.threads < 1:
            raise ValueError("a runtime needs a thread")
        native = native_library()
        self.kernels = kernel_set(kernels)
        self._input_shape = artifact.plan.input_shape
        self._output_shape = artifact.plan.output_shape
        _check_size(artifact.plan)
        program = compile_plan(artifact.plan, artifact.tensors)
        arena = place(program)
        if choose_kernel is None:
            with measured_kernels(native, self.kernels, self.threads) as measured:
                program = with_kernels(program, measured)
        else:
            program = with_kernels(program, choose_kernel)
        images = max(1, min(_MOST_IMAGES, activation_bytes // max(arena.bytes, 1)))
        try:
            self._program = native.create(program, arena, self.kernels, self.threads, images)
        except NativeError as error:
            raise _refusal(error) from error
        # Not at exit: a daemon thread may still be computing then.
        weakref.finalize(self, self._program.close).atexit = False

    @property
    def resident_bytes(self) -> int:
        """Bytes of packed weights and per-channel numbers."""
        return self._program.weight_bytes

    @property
    def activation_bytes(self) -> int:
        """Bytes of the arena that one image takes, and of the scratch memory of all threads.

        A batch takes more, where several images fit into `ACTIVATION_BYTES`, but never that much
        more: larger ones are cut up.
        """
        return self._program.arena_bytes(1) + self._program.scratch_bytes

    def run(self, x: Tensor) -> Tensor:
        """Return the plan's output, float32 ``(N, *output_shape)``, for ``(N, C, H, W)``.

        Raises:
            ValueError: ``x`` is not float32 of the plan's input shape, in the processor's memory.
            MemoryError: there is no memory for a batch.
        """
        if (
            x.dtype != torch.float32
            or tuple(x.shape[1:]) != self._input_shape
            or x.device.type != "cpu"
        ):
            raise ValueError(f"input must be float32 (N, *{self._input_shape})")
        images = x.detach().contiguous()
        result = torch.empty((len(x), *self._output_shape), dtype=torch.float32, device="cpu")
        if len(x) > 0:
            try:
                self._program.run(images.data_ptr(), len(x), result.data_ptr())
            except NativeError as error:
                raise _refusal(error) from error
        return result


def _check_size(plan: Plan) -> None:
    """Refuse a plan of too many steps before they are made: a concatenation is one for each part.

    Raises:
        Unavailable: the library may refuse it.
    """
    most_steps = sum(len(node.sources) + 2 for node in plan.nodes) + 2
    if most_steps > MAX_STEPS:
        raise _refusal(
            NativeError(Status.UNSUPPORTED, f"It may need over {MAX_STEPS} steps: {most_steps}.")
        )


def _refusal(error: NativeError) -> Exception:
    if error.status == Status.UNSUPPORTED:
        return Unavailable(
            f"The runtime 'cpu' cannot run this network. {error}",
            field="runtime",
            remedy="Use the runtime 'reference'.",
        )
    if error.status == Status.NO_MEMORY:
        return MemoryError(str(error))
    return RuntimeError(f"the native library refused a program that was made for it: {error}")
