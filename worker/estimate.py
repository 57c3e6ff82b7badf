"""When a job will be over, from how fast it has been so far.

The rest of the stage that runs is foreseen from its own pace. Stages after it take the seconds that
`worker.foresight` has foreseen for them, times how much slower than foreseen the job has been so
far; where nothing was foreseen, as much as the job has taken for an equal share of its progress. So
the estimate gets better with every stage that need not be foreseen any more.
"""

import math
import time
from collections.abc import Callable, Mapping

from worker.shares import Shares

# Below that, a pace says nothing.
_LEAST_SECONDS = 2.0
_LEAST_PART = 0.02
# Of the whole job, where nothing was foreseen.
_LEAST_PROGRESS = 0.05

# In so many seconds the estimate has followed 63 % of a change: it should not jump to and fro. In
# a share of the rest, where that is less: near the end a few seconds are much.
_SMOOTHING_S = 25.0
_SMOOTHING_SHARE = 0.3

# What was foreseen is believed as if so large a share of it had been seen to be right.
_TRUST = 0.1


class EndEstimate:
    """Foresees the seconds that a job still takes. Times are seconds of ``clock``."""

    def __init__(self, shares: Shares, clock: Callable[[], float] = time.monotonic) -> None:
        self.shares = shares
        self._seconds: Mapping[str, float] = {}
        self._clock = clock
        self._end: float | None = None
        self._seen_at = 0.0

    def foresee(self, shares: Shares, seconds: Mapping[str, float]) -> None:
        """Take up what was foreseen when the first stage was over: its share and those after it."""
        self.shares = shares
        later = list(shares)[1:]
        if all(seconds.get(stage, 0.0) > 0 for stage in later):
            self._seconds = {stage: seconds[stage] for stage in later}

    def seconds_left(
        self, stage: str, progress: float, stage_seconds: Mapping[str, float]
    ) -> float | None:
        """Return the seconds until the job's end, None while nothing can be said.

        Args:
            stage: the stage that runs.
            progress: of the whole job, in 0..1, as ``shares`` weighs it.
            stage_seconds: how long each stage has taken so far, the running one included.
        """
        now = self._clock()
        left = self._foreseen(stage, progress, stage_seconds)
        if left is None:
            return None if self._end is None else max(self._end - now, 0.0)
        end = now + left
        if self._end is not None:
            inertia_s = max(min(_SMOOTHING_S, _SMOOTHING_SHARE * left), 1e-3)
            weight = 1 - math.exp(-(now - self._seen_at) / inertia_s)
            end = self._end + weight * (end - self._end)
        self._end, self._seen_at = end, now
        return max(end - now, 0.0)

    def _foreseen(
        self, stage: str, progress: float, stage_seconds: Mapping[str, float]
    ) -> float | None:
        begin, end = self.shares[stage]
        spent = sum(stage_seconds.values())
        if spent < _LEAST_SECONDS:
            return None
        if stage not in self._seconds and progress < _LEAST_PROGRESS:
            return None
        done = min(max((progress - begin) / (end - begin), 0.0), 1.0)
        here = stage_seconds.get(stage, 0.0)
        if stage in self._seconds:
            pace = self._slowness(stage, done, stage_seconds)
            all_here = self._seconds[stage] * pace
            later = list(self._seconds)[list(self._seconds).index(stage) + 1 :]
            after = sum(self._seconds[one] for one in later) * pace
        else:
            pace = spent / progress
            all_here, after = (end - begin) * pace, (1 - end) * pace
        if done >= _LEAST_PART and here >= _LEAST_SECONDS:
            return here * (1 - done) / done + after
        return (1 - done) * all_here + after

    def _slowness(self, stage: str, done: float, stage_seconds: Mapping[str, float]) -> float:
        """Return how many seconds the job takes for one that was foreseen.

        The first stage says nothing of that: what it makes may have been there already.
        """
        trusted = _TRUST * sum(self._seconds.values())
        foreseen = spent = 0.0
        for one, seconds in self._seconds.items():
            foreseen += seconds * (done if one == stage else 1.0)
            spent += stage_seconds.get(one, 0.0)
            if one == stage:
                break
        return (spent + trusted) / (foreseen + trusted)
