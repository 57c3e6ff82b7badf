"""Kernels as they are called: loaded once for a device, enqueued on torch's current stream."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from models.kernels.cuda.compilation import architecture, cubin, cuda_core
from models.kernels.cuda.constants import Constants

# The default stream by the name that is no null pointer, which may be taken for none at all.
_DEFAULT_STREAM: Final = 1

Grid = tuple[int, int, int]
Argument = Tensor | ctypes.c_int32 | None


def enqueue(
    kernel: str,
    constants: Constants,
    grid: Grid,
    threads: int,
    arguments: Sequence[Argument],
    device: torch.device,
) -> None:
    """Run ``kernel`` on ``device`` after what is already on torch's current stream there.

    A tensor is handed over as its address, and None as that of nothing.

    Raises:
        Unavailable: the kernel is not in the cache, and there is no compiler.
    """
    core = cuda_core()
    config = core.LaunchConfig(grid=grid, block=threads)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        core.Device(stream.device_index).set_current()  # of this thread, which may be a new one
        function = _loaded(kernel, tuple(constants.items()), stream.device_index)
        core.launch(_TorchStream(stream), config, function, *map(_passed, arguments))


class _TorchStream:
    """A stream of torch's in the form in which CUDA's Python packages hand streams around."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self._stream.cuda_stream or _DEFAULT_STREAM)


@cache
def _loaded(kernel: str, constants: tuple[tuple[str, int | float], ...], device_index: int) -> Any:
    arch = architecture(torch.cuda.get_device_capability(device_index))
    code = cubin(kernel, dict(constants), arch)
    return cuda_core().ObjectCode.from_cubin(code).get_kernel(kernel)


def _passed(argument: Argument) -> int | ctypes.c_int32:
    if argument is None:
        return 0
    return argument.data_ptr() if isinstance(argument, Tensor) else argument
