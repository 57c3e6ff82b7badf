"""How the latency of two networks is taken, on a clock that only they move."""

import pytest
import torch

from worker.latency import (
    LEAST_TURNS,
    MOST_RUNS_PER_TURN,
    PAUSE_S,
    TURN_S,
    TURNS,
    measure_latency,
)

IMAGE = torch.zeros(1, 3, 4, 4)


class Machine:
    """A clock, and networks that take a given time on it; ``calls`` are in their order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self.pauses: list[float] = []

    def network(self, name: str, first_s: float, then_s: float):
        def predict(images: torch.Tensor) -> torch.Tensor:
            assert images.shape == IMAGE.shape
            assert torch.is_inference_mode_enabled()
            fresh = not self.calls or self.calls[-1] != name
            self.now += first_s if fresh else then_s
            self.calls.append(name)
            return images

        return predict

    def measure(self, packed, original):
        return measure_latency(
            packed, original, IMAGE, 2, clock=lambda: self.now, pause=self.pauses.append
        )

    def turns(self) -> list[str]:
        return [
            name
            for name, before in zip(self.calls, ["", *self.calls], strict=False)
            if name != before
        ]


def test_a_cold_first_run_does_not_count() -> None:
    machine = Machine()
    latency = machine.measure(
        machine.network("packed", 0.5 * TURN_S, 0.002), machine.network("float", 0.05, 0.008)
    )
    assert latency.packed_ms == pytest.approx(2.0)
    assert latency.float_ms == pytest.approx(8.0)
    assert latency.speedup == pytest.approx(4.0)
    assert latency.threads == 2
    assert 0 < latency.repeats <= TURNS * MOST_RUNS_PER_TURN
    assert latency.to_json()["batch"] == 1


def test_the_two_take_turns_and_each_goes_first_once() -> None:
    machine = Machine()
    machine.measure(machine.network("packed", 0.1, 0.01), machine.network("float", 0.1, 0.01))
    # Where one ends a pair of turns and begins the next, its calls follow each other.
    assert machine.turns() == ["packed", "float"] * 3
    assert machine.pauses == [PAUSE_S] * 2 * TURNS


@pytest.mark.parametrize("run_s", [0.001, 0.03, 0.1])
def test_each_is_run_fifteen_times_where_six_seconds_allow_it(run_s: float) -> None:
    machine = Machine()
    latency = machine.measure(
        machine.network("packed", run_s, run_s), machine.network("float", run_s, run_s)
    )
    assert latency.repeats >= 15
    assert latency.speedup == pytest.approx(1.0)
    assert machine.now + sum(machine.pauses) < 6.5


@pytest.mark.parametrize("run_s", [0.2, 0.3, 0.39, 0.5])
def test_slower_ones_are_run_less_often_in_that_time(run_s: float) -> None:
    machine = Machine()
    latency = machine.measure(
        machine.network("packed", run_s, run_s), machine.network("float", run_s, run_s)
    )
    assert 4 <= latency.repeats < 15
    assert latency.speedup == pytest.approx(1.0)
    assert machine.now + sum(machine.pauses) < 7.0


def test_very_slow_networks_are_run_a_few_times_and_no_quotient_is_claimed() -> None:
    machine = Machine()
    latency = machine.measure(
        machine.network("packed", 7.0, 7.0), machine.network("float", 14.0, 14.0)
    )
    assert len(machine.calls) == 2 * LEAST_TURNS
    assert (latency.repeats, latency.packed_ms, latency.float_ms) == (LEAST_TURNS, 7000, 14000)
    assert latency.speedup is None
    assert latency.to_json()["speedup"] is None


def disturbed(machine: Machine, name: str, run_s: float, every: int, by_s: float):
    """A network that is held up for ``by_s`` in each run but every so many-th."""
    calm = machine.network(name, run_s, run_s)
    runs = 0

    def predict(images: torch.Tensor) -> torch.Tensor:
        nonlocal runs
        runs += 1
        machine.now += by_s if runs % every else 0.0
        return calm(images)

    return predict


def test_a_machine_that_was_busy_tells_no_quotient() -> None:
    machine = Machine()
    latency = machine.measure(
        machine.network("packed", 0.001, 0.001), disturbed(machine, "float", 0.004, 2, 0.02)
    )
    # Half of its runs were left alone: those are its time.
    assert latency.float_ms == pytest.approx(4.0)
    assert latency.float_spread > 0.5
    assert latency.packed_spread == pytest.approx(0.0, abs=1e-6)
    assert latency.speedup is None


def test_a_few_runs_that_were_held_up_change_nothing() -> None:
    machine = Machine()
    seldom = machine.network("float", 0.004, 0.004)
    runs = 0

    def predict(images: torch.Tensor) -> torch.Tensor:
        nonlocal runs
        runs += 1
        machine.now += 0.0 if runs % 10 else 0.02
        return seldom(images)

    latency = machine.measure(machine.network("packed", 0.001, 0.001), predict)
    assert latency.float_ms == pytest.approx(4.0)
    assert latency.speedup == pytest.approx(4.0)


def test_fast_networks_take_little_time() -> None:
    machine = Machine()
    machine.measure(machine.network("packed", 1e-5, 1e-5), machine.network("float", 1e-4, 1e-4))
    assert len(machine.calls) == 2 * TURNS * (MOST_RUNS_PER_TURN + 1)
    assert machine.now < TURN_S


def test_all_of_it_takes_about_two_seconds() -> None:
    machine = Machine()
    machine.measure(machine.network("packed", 0.03, 0.03), machine.network("float", 0.04, 0.04))
    assert machine.now + sum(machine.pauses) < 2.3
