"""Leases and takeover: what is done when a worker goes away, and what DBOS must do for it."""

import json
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from store.database import open_engine
from store.leases import WorkerLeases
from worker.recovery import Lease, Reaper, new_executor_id, requeue_jobs_of

# Of conftest.py, which cannot be imported.
Service = Any
WaitUntil = Any


@pytest.fixture
def leases(sqlite_url: str) -> Iterator[WorkerLeases]:
    engine = open_engine(sqlite_url)
    yield WorkerLeases(engine)
    engine.dispose()


def renew(leases: WorkerLeases, executor_id: str, ttl_s: float = 60.0) -> None:
    leases.renew(executor_id, host="here", pid=1, ttl_s=ttl_s)


class Queue:
    """Jobs and who works on them, in place of DBOS."""

    def __init__(self, owners: dict[str, str]) -> None:
        self.owners = owners
        self.requeued: list[str] = []

    def owners_of_running_jobs(self) -> Collection[str]:
        return set(self.owners.values())

    def requeue_jobs_of(self, executor_ids: Sequence[str]) -> list[str]:
        jobs = [job for job, owner in self.owners.items() if owner in executor_ids]
        self.requeued += jobs
        return jobs


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def reaper_of(leases: WorkerLeases, queue: Queue, clock: Clock | None = None) -> Reaper:
    return Reaper(
        leases,
        "me",
        every_s=60.0,
        ttl_s=30.0,
        clock=clock or Clock(),
        owners=queue.owners_of_running_jobs,
        requeue=queue.requeue_jobs_of,
    )


def test_only_jobs_of_workers_without_a_live_lease_are_taken_over(
    leases: WorkerLeases, caplog: pytest.LogCaptureFixture
) -> None:
    renew(leases, "me")
    renew(leases, "busy")
    renew(leases, "frozen", ttl_s=-1)
    queue = Queue({"mine": "me", "theirs": "busy", "stuck": "frozen", "lost": "never seen"})
    assert sorted(reaper_of(leases, queue).look()) == ["lost", "stuck"]
    assert sorted(queue.requeued) == ["lost", "stuck"]
    # A worker that was stopped has no lease either: nobody is called dead.
    told = [record.__dict__ for record in caplog.records if record.msg == "job taken over"]
    assert {one["job"]: one["left_by"] for one in told} == {
        "lost": ["frozen", "never seen"],
        "stuck": ["frozen", "never seen"],
    }


def test_nobody_is_declared_dead_by_one_whose_own_lease_has_run_out(leases: WorkerLeases) -> None:
    """After the database was away nobody's lease is live, and nobody is dead."""
    renew(leases, "me", ttl_s=-1)
    renew(leases, "other", ttl_s=-1)
    queue = Queue({"theirs": "other"})
    assert reaper_of(leases, queue).look() == []
    assert queue.requeued == []


def test_after_the_database_was_away_others_get_the_time_to_come_back(
    leases: WorkerLeases,
) -> None:
    """The first to renew its lease sees none but its own, though nobody is dead."""
    clock = Clock()
    renew(leases, "me")
    renew(leases, "dead", ttl_s=-1)
    renew(leases, "slow", ttl_s=-1)
    queue = Queue({})
    reaper = reaper_of(leases, queue, clock)
    reaper.look()
    queue.owners = {"theirs": "slow", "lost": "dead"}
    clock.now += 31.0
    assert reaper.look() == []
    clock.now += 5.0
    renew(leases, "slow")
    assert reaper.look() == []
    clock.now += 26.0
    assert reaper.look() == ["lost"]
    assert queue.requeued == ["lost"]


def test_after_a_look_that_failed_others_get_the_time_to_come_back(leases: WorkerLeases) -> None:
    clock = Clock()
    renew(leases, "me")
    queue = Queue({"lost": "dead"})
    away = [False]

    def owners() -> Collection[str]:
        if away[0]:
            raise OSError("the database is away")
        return queue.owners_of_running_jobs()

    reaper = Reaper(
        leases,
        "me",
        every_s=60.0,
        ttl_s=30.0,
        clock=clock,
        owners=owners,
        requeue=queue.requeue_jobs_of,
    )
    away[0] = True
    with pytest.raises(OSError, match="away"):
        reaper.look()
    away[0] = False
    for _ in range(6):
        clock.now += 5.0
        assert reaper.look() == []
    clock.now += 5.0
    assert reaper.look() == ["lost"]


def test_whose_own_lease_had_run_out_waits_for_the_others(leases: WorkerLeases) -> None:
    clock = Clock()
    renew(leases, "me", ttl_s=-1)
    queue = Queue({"lost": "dead"})
    reaper = reaper_of(leases, queue, clock)
    assert reaper.look() == []
    renew(leases, "me")
    clock.now += 5.0
    assert reaper.look() == []
    clock.now += 26.0
    assert reaper.look() == ["lost"]


def test_a_worker_that_starts_during_the_look_is_not_taken_for_dead(leases: WorkerLeases) -> None:
    renew(leases, "me")
    queue = Queue({})

    def owners_and_then_a_newcomer() -> Collection[str]:
        owners = queue.owners_of_running_jobs()
        renew(leases, "newcomer")
        queue.owners["fresh"] = "newcomer"
        return owners

    reaper = Reaper(
        leases,
        "me",
        every_s=60.0,
        ttl_s=30.0,
        owners=owners_and_then_a_newcomer,
        requeue=queue.requeue_jobs_of,
    )
    assert reaper.look() == []
    assert reaper.look() == []
    assert queue.requeued == []


def test_a_reaper_looks_at_once_and_survives_its_failures(leases: WorkerLeases) -> None:
    renew(leases, "me")
    looks = threading.Semaphore(0)

    def owners() -> Collection[str]:
        looks.release()
        raise OSError("the database is away")

    reaper = Reaper(leases, "me", every_s=0.01, ttl_s=30.0, owners=owners)
    reaper.start()
    try:
        assert all(looks.acquire(timeout=60) for _ in range(3))
    finally:
        reaper.stop()


def test_a_lease_is_renewed_while_held_and_gone_when_released(
    leases: WorkerLeases, wait_until: WaitUntil
) -> None:
    lease = Lease(leases, "me", beat_s=0.01, ttl_s=60.0)
    lease.take()
    try:
        assert leases.live() == {"me"}
        # Whoever removed it, it comes back with the next beat.
        leases.release("me")
        wait_until(lambda: leases.live() == {"me"}, "the next beat")
    finally:
        lease.release()
    assert leases.live() == frozenset()


def test_a_beat_that_was_under_way_does_not_take_the_lease_up_again(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs in the database for longer than the end of its thread is waited for."""
    monkeypatch.setattr("worker.repeating._JOIN_S", 0.01)
    engine = open_engine(sqlite_url)
    begun, go_on = threading.Event(), threading.Event()

    class Slow(WorkerLeases):
        def renew(self, *arguments: Any, **options: Any) -> None:
            if threading.current_thread() is not threading.main_thread():
                begun.set()
                assert go_on.wait(30)
            super().renew(*arguments, **options)

    leases = Slow(engine)
    lease = Lease(leases, "me", beat_s=0.01, ttl_s=60.0)
    lease.take()
    assert begun.wait(30)
    lease.release()
    assert leases.live() == frozenset()
    go_on.set()
    lease._beat._thread.join(30)
    assert not lease._beat._thread.is_alive()
    assert leases.live() == frozenset()
    lease._renew()
    assert leases.live() == frozenset()
    engine.dispose()


def test_every_start_of_a_worker_has_an_id_of_its_own() -> None:
    assert new_executor_id() != new_executor_id()


def test_dbos_puts_back_the_jobs_of_the_named_workers_only(
    service: Service, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """The contract with DBOS's private call: PENDING of a dead worker becomes ENQUEUED again."""
    service.start()
    job_id = service.submit(second="gate", gate=tmp_path)
    wait_until(lambda: list(tmp_path.glob("waiting-second-*")), "the job to be under way")
    assert requeue_jobs_of(["somebody else"]) == []
    assert service.jobs.get(job_id).state == "running"
    service.stop()
    # Stopped, not finished: the job still stands in the stopped worker's name.
    job = service.jobs.get(job_id)
    assert (job.state, job.stage, job.step) == ("running", "calibrate", "second")
    service.start()
    wait_until(lambda: len(list(tmp_path.glob("waiting-second-*"))) == 2, "the takeover")
    (tmp_path / "open-second").touch()
    assert service.finished(job_id).state == "succeeded"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("fault", ["damaged", "missing"])
def test_a_file_of_an_earlier_step_is_checked_before_it_is_used(
    service: Service, tmp_path: Path, wait_until: WaitUntil, fault: str
) -> None:
    service.start()
    job_id = service.submit(second="gate", gate=tmp_path)
    wait_until(lambda: list(tmp_path.glob("waiting-second-*")), "the job to be under way")
    service.stop()
    left = service.settings.jobs_dir / job_id / "layers" / "first.safetensors"
    left.unlink() if fault == "missing" else left.write_bytes(b"firsT")
    service.start()
    job = service.finished(job_id)
    assert job.state == "failed"
    assert job.problem["type"].endswith("job-crashed")
    assert f"is {fault}: first.safetensors" in job.problem["detail"]


def test_everything_recorded_is_json(service: Service) -> None:
    """The contract with DBOS: its default is pickle, and a format at enqueue is not enough."""
    service.start()
    finished = [
        service.finished(service.submit()),
        service.finished(service.submit(second="invalid")),
        service.finished(service.submit(second="killed")),
    ]
    assert [job.state for job in finished] == ["succeeded", "failed", "failed"]
    engine = open_engine(service.settings.database_url)
    schema = None if engine.dialect.name == "sqlite" else "dbos"
    recorded = sa.MetaData()
    recorded.reflect(engine, schema=schema)
    formats: set[str] = set()
    checked = 0
    with engine.connect() as connection:
        for table in recorded.tables.values():
            for row in connection.execute(sa.select(table)).mappings():
                formats.add(row.get("serialization") or "portable_json")
                for column in ("inputs", "output", "error", "value"):
                    if row.get(column) is not None:
                        json.loads(row[column])
                        checked += 1
    engine.dispose()
    assert formats == {"portable_json"}
    # Inputs, outcomes, steps and events of three jobs: a table that was renamed would show here.
    assert checked > 30


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_job_that_lost_its_worker_too_often_is_given_up(service: Service) -> None:
    job_id = service.submit()
    engine = open_engine(service.settings.database_url)
    schema = "" if engine.dialect.name == "sqlite" else "dbos."
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {schema}workflow_status SET recovery_attempts = 11"))
    engine.dispose()
    service.start()
    job = service.finished(job_id)
    assert job.state == "failed"
    assert job.problem["type"].endswith("job-crashed")
    assert "12 times" in job.problem["detail"]
    assert service.jobs.counts()["failed"] == 1
