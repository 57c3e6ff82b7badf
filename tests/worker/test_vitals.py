"""What a worker tells of itself with every beat."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.vitals import Vitals, resident_memory


class Clock:
    """A clock that tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def vitals(clock: Clock) -> Vitals:
    return Vitals(clock)


def told(vitals: Vitals) -> tuple[Any, ...]:
    figures = vitals.figures()
    return tuple(figures[name] for name in ("job", "stage", "step", "progress_age_s"))


def test_an_idle_worker_has_no_job(vitals: Vitals) -> None:
    assert told(vitals) == (None, None, None, None)


def test_only_what_changes_is_progress(vitals: Vitals, clock: Clock) -> None:
    with vitals.working("j"):
        clock.now = 5
        assert told(vitals) == ("j", None, None, 5)
        vitals.progressed("calibrate", "conv1", 0.5, "sweep 1")
        assert told(vitals) == ("j", "calibrate", "conv1", 0)
        clock.now = 65
        # The report of every second goes on when the work does not.
        vitals.progressed("calibrate", "conv1", 0.5, "sweep 1")
        assert told(vitals) == ("j", "calibrate", "conv1", 60)
        vitals.progressed("calibrate", "conv1", 0.5, "sweep 2")
        assert told(vitals)[-1] == 0
    assert told(vitals) == (None, None, None, None)
    vitals.progressed("calibrate", "conv1", 0.5, "too late")
    assert told(vitals) == (None, None, None, None)


def test_a_run_that_lost_its_job_does_not_end_the_next_ones_work(
    vitals: Vitals, clock: Clock
) -> None:
    lost = vitals.working("lost")
    lost.__enter__()
    clock.now = 1
    with vitals.working("next"):
        lost.__exit__(None, None, None)
        assert told(vitals)[0] == "next"


CHILD = """
import subprocess, sys
blocks = bytearray(b"x" * (64 << 20))
code = "b = bytearray(b'x' * (32 << 20)); print(); input()"
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
below = subprocess.Popen([sys.executable, "-c", code], **pipes)
below.stdout.readline()
print(flush=True)
input()
below.communicate(b"")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_the_process_and_of_all_below_it(
    wait_until: Callable[..., None],
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        own, below = resident_memory(child.pid)
        status = Path(f"/proc/{child.pid}/status").read_text()
        (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
        child.stdin.close()
    assert own is not None and below is not None
    # The kernel updates both now and then.
    assert abs(own - int(kib) * 1024) < 2 << 20
    assert own > 64 << 20
    assert 32 << 20 < below < own


def test_of_a_process_that_is_gone_nothing_is_told() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert resident_memory(ended.pid) == (None, None)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_at_work_is_seen_with_its_job_and_its_stages_memory(
    service: Any, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    service.settings = service.settings.model_copy(update={"lease_beat_s": 0.05})
    service.start()
    job_id = service.submit(second="gate", gate=tmp_path)

    def seen() -> Any:
        (worker,) = service.jobs.watch.look().workers
        return worker.figures

    wait_until(lambda: list(tmp_path.glob("waiting-second-*")), "the step")
    wait_until(lambda: seen()["step"] == "second", "the beat that tells of the step")
    figures = seen()
    assert (figures["job"], figures["stage"]) == (job_id, "calibrate")
    assert figures["memory_bytes"] > 1 << 20
    assert figures["stage_memory_bytes"] > 1 << 20
    # It stands still, and whoever watches sees for how long.
    age = service.jobs.watch.look().progress_age_s
    wait_until(lambda: service.jobs.watch.look().progress_age_s > age + 0.2, "time to pass")
    (tmp_path / "open-second").touch()
    assert service.finished(job_id).state == "succeeded"
    wait_until(lambda: seen()["job"] is None, "the worker to be idle")
    assert service.jobs.watch.look().progress_age_s == 0
    service.stop()
    assert list(service.jobs.watch.look().workers) == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_that_was_killed_is_lost_and_one_that_was_stopped_is_not(
    service: Any, start_worker: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    place = (service.settings.data_dir, service.settings.database_url)
    killed, stopped = start_worker(*place), start_worker(*place)
    assert service.jobs.watch.look().alive == 2
    killed.end(signal.SIGKILL)
    stopped.end(signal.SIGTERM)
    wait_until(lambda: service.jobs.watch.look().alive == 0, "the end of the lease")
    seen = service.jobs.watch.look()
    assert seen.lost == 1
    assert [worker.lost for worker in seen.workers] == [True]
