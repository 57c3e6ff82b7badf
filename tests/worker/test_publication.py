"""The end of a job: the database is away, the disk full, or another process in the way."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from store.artifacts import ModelStore
from store.durable import locked
from store.errors import Conflict, StorageExhausted
from store.verdicts import Verdicts
from worker import workplace

# Of conftest.py, which cannot be imported.
Service = Any
WaitUntil = Any

on_sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def models_of(service: Service) -> ModelStore:
    return ModelStore(service.settings.models_dir)


def full_disk(*_: object) -> None:
    raise StorageExhausted("The server has no space left to store this.")


def test_a_job_that_could_not_be_published_can_be_cancelled_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.start()
    with monkeypatch.context() as patch:
        patch.setattr(ModelStore, "_publish_next", full_disk)
        job = service.finished(service.submit())
    assert (job.state, job.stage) == ("failed", "publish")
    assert job.problem["type"].endswith("storage-exhausted")
    service.stop()
    assert service.jobs.retry(job.id, service.settings.data_dir).state == "queued"
    assert service.jobs.cancel(job.id).state == "cancelled"
    service.start()
    service.jobs.retry(job.id, service.settings.data_dir)
    assert service.finished(job.id).state == "succeeded"
    assert [version.job_id for version in models_of(service).versions("digits")] == [job.id]


@on_sqlite_only
def test_a_job_whose_model_is_there_cannot_be_cancelled_though_it_failed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails right after the rename that publishes."""
    publish = ModelStore._publish_next

    def fail_late(*arguments: Any) -> None:
        publish(*arguments)
        full_disk()

    service.start()
    with monkeypatch.context() as patch:
        patch.setattr(ModelStore, "_publish_next", fail_late)
        job = service.finished(service.submit())
    assert job.state == "failed"
    service.stop()
    service.jobs.retry(job.id, service.settings.data_dir)
    with pytest.raises(Conflict, match="published"):
        service.jobs.cancel(job.id)
    service.start()
    assert service.finished(job.id).model == {"name": "digits", "version": 1}
    assert len(models_of(service).versions("digits")) == 1


def database_goes_away(patch: pytest.MonkeyPatch, times: int) -> threading.Semaphore:
    """Let the worker's last word on a job fail so often; the semaphore counts the attempts."""
    decide, attempts, left = Verdicts.decide, threading.Semaphore(0), [times]

    def away_at_first(self: Verdicts, *arguments: Any) -> Any:
        attempts.release()
        if left[0] > 0:
            left[0] -= 1
            raise sa.exc.OperationalError("INSERT", {}, Exception("connection refused"))
        return decide(self, *arguments)

    patch.setattr(Verdicts, "decide", away_at_first)
    patch.setattr(workplace, "_SHORTEST_WAIT_S", 0.01)
    return attempts


@on_sqlite_only
@pytest.mark.parametrize(("drop", "state"), [("0.0", "succeeded"), ("0.5", "rejected")])
def test_a_database_that_is_away_at_the_end_of_a_job_is_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch, drop: str, state: str
) -> None:
    database_goes_away(monkeypatch, times=3)
    service.start()
    assert service.finished(service.submit(drop=drop)).state == state


@on_sqlite_only
def test_a_worker_that_waits_for_the_database_stops_when_told(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        attempts = database_goes_away(patch, times=10_000)
        service.start()
        job_id = service.submit()
        assert all(attempts.acquire(timeout=60) for _ in range(3))
        service.stop()
    assert service.jobs.get(job_id).state == "running"
    service.start()
    assert service.finished(job_id).state == "succeeded"


def test_a_job_waits_for_a_process_that_changes_the_models_and_says_so(
    service: Service, wait_until: WaitUntil
) -> None:
    models_of(service)
    service.start()
    with locked(service.settings.models_dir / ".lock"):
        job_id = service.submit()

        def says_so() -> bool:
            return "another process" in (service.jobs.get(job_id).message or "")

        wait_until(says_so, "the job to wait")
        # It hears when it is to stop, and goes on waiting in the next worker.
        service.stop()
        assert service.jobs.get(job_id).state == "running"
        service.start()
        before = service.jobs.get(job_id).updated_at
        wait_until(lambda: service.jobs.get(job_id).updated_at > before, "the next worker")
        assert models_of(service).versions("digits") == []
    assert service.finished(job_id).state == "succeeded"
    assert [version.job_id for version in models_of(service).versions("digits")] == [job_id]


def test_a_run_whose_job_was_taken_over_removes_nothing_of_the_next_one(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """Another worker begins to write right after this one has seen that the job is its own."""
    job_id = service.submit(prepare="gate", gate=tmp_path)
    folder = service.settings.jobs_dir / job_id
    folder.mkdir(parents=True)
    left, others = folder / ".left.0123.tmp", folder / ".others.4567.tmp"
    left.touch()
    meanwhile(monkeypatch, lambda: None if others.exists() else others.touch())
    service.start()
    wait_until(lambda: list(tmp_path.glob("waiting-prepare-*")), "the step")
    assert (left.exists(), others.exists()) == (False, True)
    (tmp_path / "open-prepare").touch()
    assert service.finished(job_id).state == "succeeded"


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    """Have something happen whenever the worker has just told of its progress."""
    from dbos import DBOS

    tell = DBOS.set_event

    def told(*arguments: Any) -> None:
        tell(*arguments)
        happens()

    monkeypatch.setattr(DBOS, "set_event", told)


def test_the_file_of_the_lock_is_the_one_that_the_store_uses(tmp_path: Path) -> None:
    """So that the tests above hold the right one."""
    ModelStore(tmp_path)
    with locked(tmp_path / ".lock"), pytest.raises(RuntimeError, match="waited"):
        ModelStore(tmp_path).publish(tmp_path, "digits", "job", waiting=_raise)
    assert os.listdir(tmp_path / ".tmp") == [".lock"]


def _raise() -> None:
    raise RuntimeError("waited")
