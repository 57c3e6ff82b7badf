"""The events of a job that changes hands: whole, in order, and nothing from who has lost it."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.database import open_engine
from store.job_events import ENDINGS, JobEvent, JobEvents

# Of conftest.py, which cannot be imported.
Service = Any
StartWorker = Any
WaitUntil = Any

LAYERS = ("first", "second", "third")


@pytest.fixture
def start(service: Service, start_worker: StartWorker) -> Callable[..., Any]:
    """Start a worker of the fake stages as a process."""
    main = f"import os; from worker.main import main; os._exit(main({service.stages!r}))"
    place = (service.settings.data_dir, service.settings.database_url)
    return lambda: start_worker(*place, "-c", main)


@pytest.fixture
def events(service: Service) -> Iterator[JobEvents]:
    engine = open_engine(service.settings.database_url)
    yield JobEvents(engine)
    engine.dispose()


def check_whole(found: list[JobEvent]) -> None:
    """Check that of a job with the three fake layers nothing is missing, or there twice."""
    assert [event.seq for event in found] == list(range(1, len(found) + 1))
    kinds = [event.kind for event in found]
    assert kinds[:2] == ["queued", "started"]
    assert kinds.count("queued") == 1
    assert [kind for kind in kinds if kind in ENDINGS] == ["succeeded"]
    assert kinds[-1] == "succeeded"
    sweeps = [
        (event.data["layer"], event.data["sweep"]) for event in found if event.kind == "sweep"
    ]
    assert sweeps == [(layer, sweep) for layer in LAYERS for sweep in (0, 1)]
    steps = [event.data["step"] or event.data["stage"] for event in found if event.kind == "step"]
    assert steps == ["prepare", *LAYERS, "pack", "evaluate", "publish"]


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_no_event_along(
    service: Service,
    start: Callable[..., Any],
    events: JobEvents,
    tmp_path: Path,
    wait_until: WaitUntil,
) -> None:
    job_id = service.submit(second="gate", gate=tmp_path)
    first = start()
    wait_until(lambda: list(tmp_path.glob("waiting-second-*")), "the step")
    first.end(signal.SIGKILL)
    (tmp_path / "open-second").touch()
    second = start()
    job = service.finished(job_id)
    assert job.state == "succeeded"
    events.close(job)
    found = events.after(job_id, 0)
    check_whole(found)
    assert [event.kind for event in found].count("started") == 2
    assert second.end(signal.SIGTERM) == 0


@pytest.mark.slow
def test_a_frozen_worker_that_wakes_up_tells_nothing_more(
    service: Service,
    start: Callable[..., Any],
    events: JobEvents,
    tmp_path: Path,
    wait_until: WaitUntil,
) -> None:
    job_id = service.submit(second="gate", gate=tmp_path)
    frozen = start()
    wait_until(lambda: list(tmp_path.glob("waiting-second-*")), "the step")
    everything = [frozen.process.pid, *frozen.children()]

    def freeze() -> bool:
        """Stop them, but not where they hold SQLite's one lock."""
        for pid in everything:
            os.kill(pid, signal.SIGSTOP)
        engine = open_engine(service.settings.database_url)
        try:
            if engine.dialect.name != "sqlite":
                return True
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA busy_timeout=0")
                connection.exec_driver_sql("DELETE FROM bitpress_job_events WHERE 0")
                connection.rollback()
            return True
        except Exception:
            for pid in everything:
                os.kill(pid, signal.SIGCONT)
            return False
        finally:
            engine.dispose()

    wait_until(freeze, "the freeze")
    other = start()
    other.wait_for("job taken over", job=job_id)
    (tmp_path / "open-second").touch()
    job = service.finished(job_id)
    assert job.state == "succeeded"
    events.close(job)
    found = events.after(job_id, 0)
    check_whole(found)
    for pid in everything:
        os.kill(pid, signal.SIGCONT)
    # It has let go once it takes the next job.
    assert other.end(signal.SIGTERM) == 0
    frozen.wait_for("job finished", job=service.submit())
    assert events.after(job_id, 0) == found
