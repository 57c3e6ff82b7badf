"""How long one image takes: on the packed plan as it is served, and on the float original.

Both run on the same threads, batch 1, by turns. Threads of OpenMP spin for some 30 ms after their
last run and would take the cores from the other network, so a turn begins with a pause; a run that
is not counted then brings the network's own threads and caches back, as in a server under load.

The lower quartile of all counted runs is what is reported: on a machine that has other things to do
it stays near what an idle one takes for as long as a quarter of the runs are left alone, which the
median does not. How far the runs were apart is told as well; where that is much, or where there was
time for a few runs only, no quotient is claimed.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Any, Final

import torch
from torch import Tensor

from worker.evaluation import Predict

TURNS: Final = 5
TURN_S: Final = 0.15
PAUSE_S: Final = 0.05
MOST_RUNS_PER_TURN: Final = 50

# Slower networks take a turn longer, until each has run 15 times or all has taken some 6 seconds.
LEAST_RUNS_PER_TURN: Final = 3
SLOW_TURN_S: Final = 0.4
SLOW_S: Final = 6.0
LEAST_TURNS: Final = 3

# Without so many runs, no farther apart than that, the machine has not shown which is the faster.
LEAST_REPEATS: Final = 4
MOST_SPREAD: Final = 0.25

Clock = Callable[[], float]


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image at batch 1, lower quartiles of ``repeats`` runs or more of each.

    The spreads are the distances between the quartiles over the median.
    """

    threads: int
    repeats: int
    packed_ms: float
    float_ms: float
    packed_spread: float
    float_spread: float

    @property
    def speedup(self) -> float | None:
        """How many times faster the packed plan is; None where the runs do not tell."""
        spread = max(self.packed_spread, self.float_spread)
        if self.repeats < LEAST_REPEATS or spread > MOST_SPREAD:
            return None
        return self.float_ms / self.packed_ms

    def to_json(self) -> dict[str, Any]:
        """Return the report's ``latency`` member."""
        return {**asdict(self), "batch": 1, "speedup": self.speedup}


def measure_latency(
    packed: Predict,
    original: Predict,
    image: Tensor,
    threads: int,
    *,
    clock: Clock = time.perf_counter,
    pause: Callable[[float], None] = time.sleep,
) -> Latency:
    """Time both on ``image`` ``(1, C, H, W)``, for about two seconds together.

    Slow networks take up to some six seconds, very slow ones ``LEAST_TURNS`` runs of each, however
    long that takes. ``threads`` is what both were told to compute on. ``clock`` tells seconds.
    """
    times: Mapping[str, list[float]] = {"packed": [], "float": []}
    begun = clock()
    with torch.inference_mode():
        for turn in range(TURNS):
            if turn >= LEAST_TURNS and clock() - begun > SLOW_S:
                break
            # Backwards every other time: then neither always follows the other.
            turns = (("packed", packed), ("float", original))
            for name, predict in turns if turn % 2 == 0 else reversed(turns):
                pause(PAUSE_S)
                times[name].extend(_turn(predict, image, clock))
    repeats = min(map(len, times.values()))
    packed_s, packed_spread = _quartile_and_spread(times["packed"])
    float_s, float_spread = _quartile_and_spread(times["float"])
    return Latency(threads, repeats, 1000 * packed_s, 1000 * float_s, packed_spread, float_spread)


def _turn(predict: Predict, image: Tensor, clock: Clock) -> list[float]:
    """Return the seconds of each counted run of one turn."""
    begun = before = clock()
    times: list[float] = []
    while not times or _goes_on(before - begun, len(times) - 1):
        predict(image)
        after = clock()
        times.append(after - before)
        before = after
    # The first run has woken threads and filled caches; where it was all there was time for, it is
    # long beside that.
    return times[1:] or times


def _goes_on(seconds: float, counted: int) -> bool:
    """Whether a turn of so many seconds and counted runs goes on."""
    if counted < LEAST_RUNS_PER_TURN:
        return seconds < SLOW_TURN_S
    return seconds < TURN_S and counted < MOST_RUNS_PER_TURN


def _quartile_and_spread(seconds: list[float]) -> tuple[float, float]:
    lower, median, upper = quantiles(seconds, n=4, method="inclusive")
    return lower, (upper - lower) / median
