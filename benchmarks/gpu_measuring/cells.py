"""Which networks and batches are measured, in which order, and where time runs out.

Compiling the rival for a batch takes up to minutes, measuring seconds. So what a goal hangs on
comes first, and where a limit is set, nothing is begun that is not likely to be done in time.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

Cell = tuple[str, int]  # network, images
Kind = Literal["network", "layers", "calibration"]

NETS: Final = ("vgg9", "resnet18", "resnet50", "alexnet")
BATCHES: Final = (1, 8, 64, 256)
LAYER_BATCHES: Final = (64, 1)


class Task(NamedTuple):
    """Something to be measured: of a network, for a batch of ``images``."""

    kind: Kind
    net: str
    images: int

    def __str__(self) -> str:
        """Return it in words."""
        if self.kind == "calibration":
            return f"calibration of {self.net} on {self.images} images"
        of = "" if self.kind == "network" else "layers of "
        return f"{of}{self.net}, batches of {self.images}"


# How long one takes, in seconds, before the first was seen.
_THOUGHT: Final[Mapping[Kind, float]] = MappingProxyType(
    {"network": 120.0, "layers": 20.0, "calibration": 30.0}
)

# What the goals of the GPU engine speak of.
_FIRST: Final = (
    Task("network", "resnet18", 1),
    Task("calibration", "resnet18", 1000),
    Task("layers", "alexnet", 1),
    Task("layers", "resnet18", 64),
    Task("network", "resnet18", 64),
    Task("network", "alexnet", 1),
    Task("network", "resnet50", 64),
    Task("network", "alexnet", 64),
    Task("network", "vgg9", 64),
    Task("network", "resnet18", 256),
    Task("network", "resnet50", 256),
)


def tasks(
    nets: Sequence[str],
    batches: Sequence[int],
    layer_batches: Sequence[int],
    calibrated: Sequence[str],
    calibration_images: int,
) -> list[Task]:
    """Return all that is to be measured, the most important things first."""
    asked = [
        *(Task("network", net, images) for images, net in product(batches, nets)),
        *(Task("calibration", net, calibration_images) for net in calibrated),
        *(Task("layers", net, images) for images, net in product(layer_batches, nets)),
    ]
    first = [task for task in _FIRST if task in asked]
    return first + [task for task in asked if task not in first]


class Deadline:
    """How much time is left, and whether one more piece of work fits into it.

    ``limit_s``: seconds from now on, or None for as many as it takes.
    """

    def __init__(self, limit_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if limit_s is None else clock() + limit_s
        self._longest: dict[Kind, float] = dict(_THOUGHT)
        self._seen: set[Kind] = set()

    @property
    def left_s(self) -> float:
        """The seconds that are left; infinitely many without a limit."""
        return float("inf") if self._end is None else self._end - self._clock()

    def while_time(self, wanted: Sequence[Task], left_out: list[Task]) -> Iterator[Task]:
        """Yield what would be done in time if it took as long as the longest of its kind so far.

        The others are added to ``left_out``.
        """
        for task in wanted:
            if self.left_s <= self._longest[task.kind]:
                left_out.append(task)
                continue
            begun = self._clock()
            yield task
            took = self._clock() - begun
            seen = self._longest[task.kind] if task.kind in self._seen else 0.0
            self._longest[task.kind] = max(seen, took)
            self._seen.add(task.kind)
