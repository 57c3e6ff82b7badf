"""What is removed from the data directory by a worker that tidies up, and what never is."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from store.database import open_engine
from store.leases import WorkerLeases
from store.scratch import Scratch
from worker.housekeeping import Housekeeping
from worker.settings import WorkerSettings

AN_HOUR_AGO_S = 3700.0


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def house(settings: WorkerSettings, engine: sa.Engine) -> Housekeeping:
    return Housekeeping(settings, engine, every_s=3600)


@pytest.fixture
def job(settings: WorkerSettings, engine: sa.Engine) -> Callable[..., Path]:
    """Make a job with a half file, ``job(id, status, executor)``; return its folder."""
    schema = "" if engine.dialect.name == "sqlite" else "dbos."
    insert = sa.text(
        f"INSERT INTO {schema}workflow_status (workflow_uuid, status, executor_id, name, "
        "created_at, updated_at, priority) VALUES (:id, :status, :executor, 'compress', 1, 1, 1)"
    )

    def make(job_id: str, status: str | None = None, executor: str | None = None) -> Path:
        folder = settings.jobs_dir / job_id
        (folder / "layers").mkdir(parents=True)
        (folder / "layers" / ".one.safetensors.0123.tmp").touch()
        (folder / "layers" / "one.safetensors").touch()
        if status is not None:
            values = {"id": job_id, "status": status, "executor": executor}
            with engine.begin() as connection:
                connection.execute(insert, values)
        return folder

    return make


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


HALF, WHOLE = ".one.safetensors.0123.tmp", "one.safetensors"


@pytest.mark.parametrize("status", ["CANCELLED", "ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"])
def test_half_files_of_jobs_that_are_over_go_and_whole_ones_stay(
    house: Housekeeping, job: Callable[..., Path], status: str
) -> None:
    folders = job("dead", status, "dead worker"), job("none", status)
    house.tidy()
    assert [files(folder) for folder in folders] == [[WHOLE], [WHOLE]]


@pytest.mark.parametrize("status", ["PENDING", "ENQUEUED", "DELAYED"])
def test_files_of_jobs_that_go_on_are_left_alone(
    house: Housekeeping, job: Callable[..., Path], status: str
) -> None:
    folder = job("going-on", status, "perhaps frozen")
    house.tidy()
    assert files(folder) == [HALF, WHOLE]


def test_a_worker_that_lives_tidies_up_itself(
    house: Housekeeping, job: Callable[..., Path], engine: sa.Engine
) -> None:
    leases = WorkerLeases(engine)
    leases.renew("alive", host="here", pid=1, ttl_s=60)
    folder = job("just-cancelled", "CANCELLED", "alive")
    house.tidy()
    assert files(folder) == [HALF, WHOLE]
    leases.release("alive")
    house.tidy()
    assert files(folder) == [WHOLE]


def test_what_a_worker_that_lives_has_not_removed_in_minutes_goes(
    house: Housekeeping, job: Callable[..., Path], engine: sa.Engine
) -> None:
    """As where it could not, at the end of the job."""
    WorkerLeases(engine).renew("alive", host="here", pid=1, ttl_s=60)
    cancelled, running = job("cancelled", "CANCELLED", "alive"), job("running", "PENDING", "alive")
    for folder in (cancelled, running):
        os.utime(folder / "layers" / HALF, (0, time.time() - 600))
    house.tidy()
    assert files(cancelled) == [WHOLE]
    assert files(running) == [HALF, WHOLE]


def test_what_was_written_for_a_deleted_job_goes_after_a_while(
    house: Housekeeping, job: Callable[..., Path], settings: WorkerSettings
) -> None:
    young, old, reported = job("young"), job("old"), job("reported")
    (reported / "report.json").touch()
    (settings.jobs_dir / ".removed-0123" / "layers").mkdir(parents=True)
    (settings.jobs_dir / "no job").mkdir()
    for folder in (old, reported):
        os.utime(folder, (0, time.time() - AN_HOUR_AGO_S))
    house.tidy()
    assert files(young) == [HALF, WHOLE]
    # Whoever lost the database still has what the job measured.
    assert files(reported) == [HALF, WHOLE, "report.json"]
    names = {path.name for path in settings.jobs_dir.iterdir()}
    assert names == {"young", "reported", "no job"}


def test_datasets_half_decoded_by_the_dead_go(
    house: Housekeeping, settings: WorkerSettings
) -> None:
    scratch = settings.cache_dir / ".tmp"
    (scratch / "dead" / "work").mkdir(parents=True)
    with Scratch(scratch).folder() as work:
        (scratch / "dead" / "work").mkdir(parents=True)
        house.tidy()
        assert work.is_dir()
        assert not (scratch / "dead").exists()


def test_decoded_datasets_that_are_registered_no_more_go(
    house: Housekeeping, settings: WorkerSettings
) -> None:
    entry = settings.cache_dir / f"{'0' * 32}-3x32x32-v1"
    entry.mkdir(parents=True)
    (settings.cache_dir / "else").touch()
    house.tidy()
    assert not entry.exists()
    assert (settings.cache_dir / "else").exists()


def test_an_empty_data_directory_stays_empty(house: Housekeeping, settings: WorkerSettings) -> None:
    house.tidy()
    assert not settings.data_dir.exists() or not list(settings.data_dir.glob("jobs"))
