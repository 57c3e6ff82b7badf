"""When a job will be over: honest from what it has taken so far, and steady enough to be of use."""

import itertools
import random

import pytest

from worker.estimate import EndEstimate

SHARES = {
    "prepare": (0.0, 0.05),
    "calibrate": (0.05, 0.55),
    "evaluate": (0.55, 0.99),
    "publish": (0.99, 1.0),
}


class Job:
    """A job of which each share of progress takes ``pace`` seconds per unit, stage by stage."""

    def __init__(self, pace: dict[str, float], seed: int = 0, noise: float = 0.0) -> None:
        self.now = 1000.0
        self.estimate = EndEstimate(SHARES, lambda: self.now)
        self.progress = 0.0
        self.seconds = dict.fromkeys(pace, 0.0)
        self._pace = pace
        self._random = random.Random(seed)
        self._noise = noise
        self.told: list[tuple[float, float | None]] = []

    def slow_down(self, times: float) -> None:
        self._pace = {stage: times * pace for stage, pace in self._pace.items()}

    @property
    def stage(self) -> str:
        return next(stage for stage, (_, end) in SHARES.items() if self.progress < end)

    def run(self, until: float = 1.0) -> float:
        """Report every second until so much progress; return the time then."""
        while self.progress < until - 1e-9:
            stage = self.stage
            pace = self._pace[stage] * (1 + self._noise * self._random.uniform(-1, 1))
            step = min(1 / pace, SHARES[stage][1] - self.progress)
            self.progress += step
            self.now += step * pace
            self.seconds[stage] += step * pace
            at = next((s for s, (b, e) in SHARES.items() if b <= self.progress < e), "publish")
            left = self.estimate.seconds_left(at, min(self.progress, 1.0), self.seconds)
            self.told.append((self.now, left))
        return self.now


def evenly(seconds: float) -> dict[str, float]:
    return dict.fromkeys(SHARES, seconds)


def test_nothing_is_said_before_anything_is_known() -> None:
    estimate = EndEstimate(SHARES, lambda: 0.0)
    assert estimate.seconds_left("prepare", 0.0, {"prepare": 0.0}) is None
    assert estimate.seconds_left("prepare", 0.01, {"prepare": 0.5}) is None
    assert estimate.seconds_left("prepare", 0.0, {"prepare": 60.0}) is None


def test_a_twentieth_of_the_work_is_seen_before_anything_is_said() -> None:
    job = Job(evenly(1000.0))
    job.run(until=0.048)
    assert {left for _, left in job.told} == {None}
    job.run(until=0.06)
    assert job.told[-1][1] == pytest.approx(940.0, rel=0.01)


def test_what_was_foreseen_is_told_once_the_first_stage_is_over() -> None:
    estimate = EndEstimate({"prepare": (0.0, 0.01), "calibrate": (0.01, 1.0)}, lambda: 0.0)
    assert estimate.seconds_left("calibrate", 0.02, {"prepare": 3.0, "calibrate": 0.5}) is None
    estimate.foresee(estimate.shares, {"prepare": 3.0, "calibrate": 100.0})
    left = estimate.seconds_left("calibrate", 0.02, {"prepare": 3.0, "calibrate": 0.5})
    assert left == pytest.approx(100.0, rel=0.1)


def test_an_even_pace_is_foreseen_exactly() -> None:
    job = Job(evenly(400.0))
    end = job.run()
    ends = [now + left for now, left in job.told if left is not None]
    assert len(ends) > 300
    assert ends == pytest.approx([end] * len(ends), abs=2.0)


def test_a_slower_stage_is_foreseen_once_it_runs() -> None:
    job = Job({**evenly(200.0), "evaluate": 2000.0})
    end = job.run()
    left = {round(now - 1000): left for now, left in job.told if left is not None}
    # After a minute of evaluation, of which a thirteenth is done.
    sure = round(0.55 * 200 + 60)
    assert left[sure] == pytest.approx(end - 1000 - sure, rel=0.2)


def test_noise_does_not_make_it_jump() -> None:
    job = Job(evenly(400.0), noise=0.8)
    end = job.run()
    ends = [now + left for now, left in job.told[30:] if left is not None]
    steps = [abs(after - before) for before, after in itertools.pairwise(ends)]
    assert max(steps) < 0.05 * (end - 1000)


def test_a_moment_of_load_does_not_make_it_jump() -> None:
    """For ten seconds everything takes five times as long, then again as before."""
    job = Job(evenly(400.0))
    job.run(until=0.1)
    _, left = job.told[-1]
    assert left is not None
    before = job.now + left
    job.slow_down(5.0)
    job.run(until=0.105)
    job.slow_down(0.2)
    job.run(until=0.15)
    ends = [now + left for now, left in job.told if now > 1042 and left is not None]
    # Eight seconds are lost, but the pace so far says that it were a hundred.
    assert max(abs(end - before) for end in ends) < 55


def test_a_job_that_was_taken_over_is_foreseen_from_all_its_seconds() -> None:
    """The worker that takes over has just begun, but knows how long the steps before took."""
    estimate = EndEstimate(SHARES, lambda: 0.0)
    left = estimate.seconds_left("evaluate", 0.55, {"prepare": 10.0, "calibrate": 100.0})
    assert left == pytest.approx(110 / 0.55 * 0.45)


def test_it_is_never_in_the_past() -> None:
    now = 0.0
    estimate = EndEstimate(SHARES, lambda: now)
    assert estimate.seconds_left("calibrate", 0.5, {"calibrate": 10.0}) == pytest.approx(
        10.0, rel=0.05
    )
    # The step hangs: the more it takes, the longer the rest will.
    for now in range(1, 100):
        left = estimate.seconds_left("calibrate", 0.5, {"calibrate": 10.0 + now})
        assert left is not None and left > 0


def test_what_was_foreseen_counts_until_the_job_knows_better() -> None:
    """Decoded images were there already, so that the first stage took no time at all."""
    now = 0.0
    estimate = EndEstimate(SHARES, lambda: now)
    seconds = {"prepare": 600.0, "calibrate": 100.0, "evaluate": 300.0, "publish": 0.1}
    estimate.foresee(SHARES, seconds)
    taken = {"prepare": 3.0, "calibrate": 0.0}
    assert estimate.seconds_left("calibrate", 0.05, taken) == pytest.approx(400.0, rel=0.01)
    # Everything takes twice as long: half of the calibration shows it in part, all of it better.
    now += 100.0
    half = estimate.seconds_left("calibrate", 0.3, {**taken, "calibrate": 100.0})
    assert half is not None and 100 + 300 * 1.3 < half < 100 + 300 * 2
    now += 100.0
    whole = estimate.seconds_left("evaluate", 0.55, {**taken, "calibrate": 200.0, "evaluate": 0.0})
    assert whole is not None and 300 * 1.5 < whole < 300 * 2
