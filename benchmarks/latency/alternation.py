"""Timing several runtimes by turns, so that whatever changes on the machine meets all of them.

Each runtime gets a block of runs, then the next one does, round after round in another order. A
block begins with a pause: threads of ONNX Runtime and of OpenMP spin for up to 30 ms after their
last run and would take the cores from the next runtime. Untimed runs then bring its own threads
and caches back, as in a server under load. The median of all timed runs counts.
"""

import time
from collections.abc import Callable, Mapping
from typing import Final

ROUNDS: Final = 5
SETTLE_S: Final = 0.06
_WARM_UP_SHARE: Final = 0.15  # of a block's time; at least one run


def alternate(
    runs: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    rounds: int = ROUNDS,
    settle_s: float = SETTLE_S,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of each timed run, by name; each is run for ``seconds``, or ``rounds``
    times if that takes longer; ``clock`` tells seconds."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(rounds):
        first = number % len(names)
        # Backwards every other round: then none always follows the same one.
        order = (names[first:] + names[:first])[:: -1 if number % 2 else 1]
        for name in order:
            time.sleep(settle_s)
            found[name] += _block(runs[name], seconds / rounds, clock)
    return found


def _block(run: Callable[[], object], seconds: float, clock: Callable[[], float]) -> list[float]:
    begun = clock()
    while True:
        run()
        if clock() - begun >= _WARM_UP_SHARE * seconds:
            break
    times: list[float] = []
    begun = before = clock()
    while not times or before - begun < seconds:
        run()
        after = clock()
        times.append(after - before)
        before = after
    return times
