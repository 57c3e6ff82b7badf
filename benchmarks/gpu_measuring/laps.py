"""Timing work on a GPU by turns, so that whatever changes on the card meets all that is compared.

A *lap* is one run of a piece of work between two events on the stream. Laps are queued one behind
the other without waiting in between: the processor stays ahead of the card, and a lap is the time
that the card takes, not the time that it takes to ask for it.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from statistics import median
from typing import Final

import torch

Run = Callable[[], object]
# Runs something so many times; returns the seconds of each.
Laps = Callable[[Run, int], list[float]]

ROUNDS: Final = 5
_WARM_UP: Final = 3  # laps of each turn that do not count: the caches were another one's
_FEWEST: Final = 4  # laps of each turn that count
_MOST: Final = 400  # events that are queued at once


def event_laps(run: Run, count: int) -> list[float]:
    """Return the seconds of each of ``count`` runs on the current CUDA stream."""
    events = [_event() for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    events[-1].synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(events)]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def by_turns(
    runs: Mapping[str, Run], seconds: float, *, rounds: int = ROUNDS, laps: Laps | None = None
) -> dict[str, list[float]]:
    """Return the seconds of each lap that counts, by name, each having about ``seconds`` in all.

    In every round each one has a turn, and rounds begin with another one each time and go
    backwards every other time: then none always follows the same one. ``laps`` are by default those
    of `event_laps`.
    """
    laps = laps or event_laps
    found: dict[str, list[float]] = {name: [] for name in runs}
    # The first laps also compile, choose and allocate, so they are not what the count is made of.
    counts = {name: _count(run, seconds / rounds, laps) for name, run in runs.items()}
    names = list(runs)
    for number in range(rounds):
        first = number % len(names)
        order = (names[first:] + names[:first])[:: -1 if number % 2 else 1]
        for name in order:
            found[name] += laps(runs[name], _WARM_UP + counts[name])[_WARM_UP:]
    return found


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each."""
    return {name: median(each) for name, each in times.items()}


def _count(run: Run, seconds: float, laps: Laps) -> int:
    """Return how many laps fill ``seconds``, within bounds."""
    once = median(laps(run, 2 * _WARM_UP)[_WARM_UP:])
    return min(max(round(seconds / once) if once > 0 else _MOST, _FEWEST), _MOST)
