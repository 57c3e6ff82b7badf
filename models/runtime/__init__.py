"""Executors of a plan, and the choice among them.

`RUNTIMES` lists what exists, fastest first; ``auto`` takes the first that is available here. A
runtime asked for by name that is missing is an error, never a silent fallback.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol, runtime_checkable

from torch import Tensor

from models.artifact import Artifact
from models.runtime.reference import ReferenceRuntime
from store.errors import Unavailable

AUTO: Final = "auto"


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
    def activation_bytes(self) -> int:
        """Most bytes of activations alive at once, for one image."""

    def run(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, classes)`` of float32 images ``(N, C, H, W)``; N may be 0.

        Raises:
            ValueError: ``x`` has another shape or dtype.
        """


RUNTIMES: Final[Mapping[str, type[ReferenceRuntime]]] = MappingProxyType(
    {"reference": ReferenceRuntime}
)


def choose(runtime: str = AUTO) -> str:
    """Return the name of the runtime that ``runtime`` means here, which loads nothing.

    Raises:
        Unavailable: there is no runtime of that name.
    """
    name = next(iter(RUNTIMES)) if runtime == AUTO else runtime
    if name not in RUNTIMES:
        raise Unavailable(
            f"There is no runtime {runtime!r} here.",
            field="runtime",
            remedy="Use one of: " + ", ".join([AUTO, *RUNTIMES]),
        )
    return name


def kernels_of(name: str) -> str:
    """Return the set of kernels that the runtime ``name`` runs here, which loads nothing.

    ``torch`` is that of the reference runtime. ``name`` is one that `choose` gives.
    """
    return RUNTIMES[name].kernels


def load(artifact: Artifact, runtime: str = AUTO, threads: int | None = None) -> Runtime:
    """Make ``artifact`` ready to run on the named runtime, or on the fastest one here.

    ``threads`` is how many compute together, by default one for each usable core; the reference
    runtime has torch's.

    Raises:
        Unavailable: there is no runtime of that name.
    """
    return RUNTIMES[choose(runtime)](artifact)
