"""Executors of a plan, and the choice among them.

`RUNTIMES` lists what exists, fastest first; ``auto`` takes the first that is available here. A
runtime asked for by name that is missing is an error, never a silent fallback.

Which there are is found out without torch, so that a process which loads none starts quickly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from models.runtime.gpu_presence import gpu_architecture, gpu_is_here
from models.runtime.kernel_sets import kernel_set, native_library
from store.errors import Unavailable

if TYPE_CHECKING:
    from torch import Tensor

    from models.artifact import Artifact

AUTO: Final = "auto"

# What `ReferenceRuntime.kernels` says.
_REFERENCE_KERNELS: Final = "torch"

_log = logging.getLogger("bitpress.models")


@runtime_checkable
class Runtime(Protocol):
    """A loaded artifact, ready to answer. Safe to call from several threads at once."""

    @property
    def name(self) -> str:
        """Which executor this is, as in `RUNTIMES`."""

    @property
    def kernels(self) -> str:
        """Which set of kernels it runs, as `kernels_of` tells it."""

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights and tables held between calls."""

    @property
    def device_bytes(self) -> int:
        """Bytes of a GPU's memory that it takes in all; 0 where it runs on the processor."""

    @property
    def activation_bytes(self) -> int:
        """Bytes that computing one image takes, besides `resident_bytes`.

        Batches are cut into parts of a bounded number of bytes, but of at least one image.
        """

    def run(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, classes)`` of float32 images ``(N, C, H, W)``; N may be 0.

        Raises:
            ValueError: ``x`` has another shape or dtype.
        """


def _cuda(artifact: Artifact, threads: int | None) -> Runtime:
    from models.runtime.cuda import CudaRuntime

    return CudaRuntime(artifact)  # the processor's threads are of no use to it


def _cpu(artifact: Artifact, threads: int | None) -> Runtime:
    from models.runtime.cpu import CpuRuntime

    return CpuRuntime(artifact, threads=threads)


def _reference(artifact: Artifact, threads: int | None) -> Runtime:
    from models.runtime.reference import ReferenceRuntime

    return ReferenceRuntime(artifact)  # has torch's threads


RUNTIMES: Final[Mapping[str, Callable[[Artifact, int | None], Runtime]]] = MappingProxyType(
    {"cuda": _cuda, "cpu": _cpu, "reference": _reference}
)


def available() -> tuple[str, ...]:
    """Return the names of the runtimes that can run here, fastest first."""
    here = {"cuda": _cuda_is_here, "cpu": _cpu_is_here}
    return tuple(name for name in RUNTIMES if name not in here or here[name]())


def choose(runtime: str = AUTO) -> str:
    """Return the name of the runtime that ``runtime`` means here, which loads nothing.

    Raises:
        Unavailable: there is no runtime of that name, or not here; or BITPRESS_CPU_KERNELS asks
            for kernels that this processor cannot run; or there is no GPU for the runtime
            ``cuda``.
    """
    name = available()[0] if runtime == AUTO else runtime
    if name not in RUNTIMES:
        raise Unavailable(
            f"There is no runtime {runtime!r} here.",
            field="runtime",
            remedy="Use one of: " + ", ".join([AUTO, *available()]),
        )
    kernels_of(name)
    return name


def kernels_of(name: str) -> str:
    """Return the set of kernels that the runtime ``name`` runs here, which loads nothing.

    ``torch`` is that of the reference runtime; of ``cuda`` it is the architecture they are compiled
    for, such as ``sm_90``. ``name`` is one that `choose` gives.

    Raises:
        Unavailable: they are not here.
    """
    match name:
        case "cuda":
            return gpu_architecture()
        case "cpu":
            return kernel_set()
    return _REFERENCE_KERNELS


def load(artifact: Artifact, runtime: str = AUTO, threads: int | None = None) -> Runtime:
    """Make ``artifact`` ready to run on the named runtime, or on the fastest one here.

    ``threads`` is how many compute together, by default one for each usable core; the reference
    runtime has torch's.

    Raises:
        Unavailable: there is no runtime of that name here, or it cannot run this artifact's plan.
    """
    name = choose(runtime)
    while True:
        try:
            return RUNTIMES[name](artifact, threads)
        except Unavailable as refusal:
            if runtime != AUTO:
                raise
            slower = available()[available().index(name) + 1 :]
            if not slower:
                raise
            _log.warning("%s The runtime %r takes its place.", refusal.detail, slower[0])
            name = slower[0]


@cache
def _cuda_is_here() -> bool:
    """Tell whether a GPU can be used here; says once that the one that is there cannot."""
    try:
        gpu_architecture()
    except Unavailable as missing:
        if gpu_is_here():
            _log.warning("%s The runtime 'cpu' serves. %s", missing.detail, missing.remedy)
        return False
    return True


@cache
def _cpu_is_here() -> bool:
    """Tell whether the CPU engine can run here; says once what to do where it cannot."""
    try:
        native_library()
    except Unavailable as missing:
        _log.warning("%s The runtime 'reference' serves. %s", missing.detail, missing.remedy)
        return False
    return True
