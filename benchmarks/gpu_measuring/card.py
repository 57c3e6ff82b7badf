"""The GPU that figures are measured on, and what else they depend on."""

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


class PeakMemory:
    """The most bytes on the GPU that a piece of work held above what was there before.

    ``bytes`` is known once `peak_memory` is left.
    """

    bytes: int = 0


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measure the memory that torch's allocator hands out meanwhile."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = PeakMemory()
    yield found
    torch.cuda.synchronize()
    found.bytes = torch.cuda.max_memory_allocated() - before
