"""The GPU that figures are measured on, and what else they depend on."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from store.errors import Unavailable

_PACKAGES = ("triton", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc")


def require_card() -> None:
    """Refuse to go on without a GPU that torch can use.

    Raises:
        Unavailable: there is none.
    """
    if not torch.cuda.is_available():
        raise Unavailable(
            "There is no NVIDIA GPU here, and no figure of one that was not measured.",
            remedy="Run this on a machine with one, under a build of torch for CUDA.",
        )


def card() -> dict[str, Any]:
    """Return the GPU's name, compute capability, multiprocessors, memory and driver's CUDA."""
    found = torch.cuda.get_device_properties()
    return {
        "gpu": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "gpu_memory_gib": round(found.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "packages": {package: _version(package) for package in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


class HeldMemory:
    """The bytes on the GPU that something holds, known once `held_memory` is left."""

    bytes: int = 0


@contextmanager
def held_memory() -> Iterator[HeldMemory]:
    """Measure what is made meanwhile and stays, to within a segment of torch's allocator.

    Memory that a CUDA graph works in is among it; what only served to compile and to choose kernels
    is not. A network in a graph allocates nothing when it runs, so this is also the most it takes.
    """
    before = _reserved_bytes()
    found = HeldMemory()
    yield found
    found.bytes = _reserved_bytes() - before


def _reserved_bytes() -> int:
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()
