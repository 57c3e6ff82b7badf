"""Whether the runtime ``cuda`` can run here, found out without importing torch.

Importing torch takes seconds, and a process that computes nothing does without it. The driver's own
library knows the GPU (and heeds CUDA_VISIBLE_DEVICES, as torch does); whether torch was built for
CUDA shows in its files.
"""

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NoReturn

from store.errors import Unavailable

# The first with the asynchronous copies and the products of bits that the kernels are made of.
_LEAST_CAPABILITY: Final = (8, 0)

_DRIVER: Final = "libcuda.so.1"
# Attributes of a device, as the driver numbers them.
_MAJOR: Final = 75
_MINOR: Final = 76


def gpu_architecture() -> str:
    """Return the architecture that kernels are compiled for here, such as ``sm_90``.

    Raises:
        Unavailable: the runtime ``cuda`` cannot run here, and what to do about it.
    """
    major, minor = capability()
    if (major, minor) < _LEAST_CAPABILITY:
        _refuse(
            f"The GPU is of compute capability {major}.{minor}, and the runtime 'cuda' needs "
            "8.0 or more.",
            "Use the runtime 'cpu'.",
        )
    if not _torch_has_cuda():
        _refuse(
            "There is an NVIDIA GPU, but torch was installed without CUDA.",
            "Install a torch that was built for CUDA, or use the runtime 'cpu'.",
        )
    if find_spec("triton") is None:
        _refuse(
            "There is an NVIDIA GPU, but Triton, which the runtime 'cuda' needs, is not installed.",
            "Install bitpress with the extra gpu, or use the runtime 'cpu'.",
        )
    return f"sm_{major}{minor}"


def gpu_is_here() -> bool:
    """Tell whether there is a GPU at all, usable or not."""
    try:
        capability()
    except Unavailable:
        return False
    return True


@cache
def capability() -> tuple[int, int]:
    """Return the compute capability of the first GPU that this process may use.

    Raises:
        Unavailable: there is none.
    """
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        _refuse_without_gpu("NVIDIA's driver is not installed")
    count = ctypes.c_int(0)
    device = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or not count:
        _refuse_without_gpu("NVIDIA's driver finds none")
    numbers = [ctypes.c_int(0), ctypes.c_int(0)]
    failed = driver.cuDeviceGet(ctypes.byref(device), 0)
    for attribute, number in zip((_MAJOR, _MINOR), numbers, strict=True):
        failed |= driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    if failed:
        _refuse_without_gpu("NVIDIA's driver does not answer")
    return numbers[0].value, numbers[1].value


def _torch_has_cuda() -> bool:
    found = find_spec("torch")
    if found is None or found.origin is None:
        return False
    return Path(found.origin).with_name("lib").joinpath("libtorch_cuda.so").is_file()


def _refuse_without_gpu(reason: str) -> NoReturn:
    _refuse(
        f"There is no NVIDIA GPU here for the runtime 'cuda': {reason}.",
        "Install NVIDIA's driver (a container has to be given the GPU), or use the runtime 'cpu'.",
    )


def _refuse(detail: str, remedy: str) -> NoReturn:
    raise Unavailable(detail, field="runtime", remedy=remedy)
