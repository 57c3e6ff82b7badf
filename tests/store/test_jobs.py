"""The job store: submitting, reading, counting; and what it relies on in DBOS."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from store.database import open_engine, prepare_database
from store.errors import IdempotencyKeyReused, NotFound, Unavailable
from store.figures import StageFigures, StageTotal
from store.job_record import Job
from store.jobs import JobStore, new_job_id
from store.leases import WorkerLeases
from store.specs import CompressSpec, parse_spec


@pytest.fixture
def jobs(database_url: str) -> Iterator[JobStore]:
    with JobStore(database_url) as store:
        yield store


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def a_spec(name: str = "digits") -> CompressSpec:
    return parse_spec(
        {
            "name": name,
            "architecture": "digits_cnn",
            "checkpoint": "sha256:" + "0" * 64,
            "dataset": "digits",
            "keep_float": ["fc"],
            "method": {"name": "bwnh", "sweeps": 3},
        }
    )


def test_a_submitted_job_is_queued_and_keeps_its_specification(jobs: JobStore) -> None:
    submitted = jobs.submit(a_spec())
    job = jobs.get(submitted.id)
    assert job == submitted
    assert job.state == "queued"
    assert job.spec == a_spec().model_dump(mode="json")
    assert job.progress == 0.0
    assert (job.stage, job.step, job.problem, job.model) == (None, None, None, None)
    assert (job.started_at, job.finished_at) == (None, None)
    assert job.created_at.endswith("Z") and job.created_at <= job.updated_at


def test_an_unknown_job_is_not_found(jobs: JobStore) -> None:
    with pytest.raises(NotFound):
        jobs.get(new_job_id())


def test_submitting_an_id_again_gives_the_job_there_is(jobs: JobStore) -> None:
    first = jobs.submit(a_spec("first"), job_id="the-id")
    again = jobs.submit(a_spec("second"), job_id="the-id")
    assert again == first
    assert jobs.counts()["queued"] == 1


def test_a_job_of_another_release_is_listed_with_what_it_holds(
    jobs: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fields may have been renamed or removed since, or nothing of it be left."""
    stored = [{"name": "old", "colour": "red"}, "no object"]
    for arguments in stored:
        spec = a_spec()
        monkeypatch.setattr(CompressSpec, "model_dump", lambda *_, a=arguments, **__: a)
        jobs.submit(spec)
    assert [job.spec for job in jobs.list()] == [{}, stored[0]]


def test_a_job_that_was_queued_is_returned_though_reading_it_back_fails(
    jobs: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise Unavailable("The database does not answer.")

    monkeypatch.setattr(jobs, "get", away)
    submitted = jobs.submit(a_spec())
    monkeypatch.undo()
    found = jobs.get(submitted.id)
    assert (submitted.state, submitted.spec) == (found.state, found.spec)
    assert submitted.created_at.endswith("Z")


def lose_the_answer(monkeypatch: pytest.MonkeyPatch, jobs: JobStore) -> None:
    """Have the connection break right after the transaction that enqueues a job."""
    enqueue = jobs._client.enqueue

    def broken(*arguments: Any, **options: Any) -> None:
        enqueue(*arguments, **options)
        raise sa.exc.OperationalError("COMMIT", {}, Exception("connection lost"))

    monkeypatch.setattr(jobs._client, "enqueue", broken)


def test_a_job_is_queued_though_the_answer_is_lost(
    jobs: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_answer(monkeypatch, jobs)
    job = jobs.submit(a_spec())
    assert jobs.list() == [job]
    keyed, _ = jobs.submit_once(a_spec("other"), "key")
    assert jobs.get(keyed.id) == keyed
    with pytest.raises(IdempotencyKeyReused):
        jobs.submit_once(a_spec("third"), "key")


def test_a_job_that_was_not_queued_is_not_there(
    jobs: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise sa.exc.OperationalError("INSERT", {}, Exception("connection lost"))

    monkeypatch.setattr(jobs._client, "enqueue", broken)
    with pytest.raises(Unavailable):
        jobs.submit(a_spec())
    with pytest.raises(Unavailable):
        jobs.submit_once(a_spec(), "key")
    assert jobs.list() == []


def test_a_key_whose_job_is_deleted_meanwhile_makes_a_new_one(
    jobs: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = jobs.submit_once(a_spec(), "key")
    jobs.cancel(job.id)
    find = jobs.find

    def deleted_before(job_id: str) -> Job | None:
        monkeypatch.setattr(jobs, "find", find)
        jobs.delete(job_id, tmp_path)
        return find(job_id)

    monkeypatch.setattr(jobs, "find", deleted_before)
    again, replayed = jobs.submit_once(a_spec("other"), "key")
    assert (again.id, again.state, replayed) == (job.id, "queued", False)
    assert again.spec["name"] == "other"


def test_jobs_are_listed_newest_first_up_to_a_limit_and_by_state(jobs: JobStore) -> None:
    ids = [jobs.submit(a_spec()).id for _ in range(3)]
    assert [job.id for job in jobs.list()] == ids[::-1]
    assert [job.id for job in jobs.list(2)] == ids[:0:-1]
    assert [job.id for job in jobs.list(state="queued")] == ids[::-1]
    assert jobs.list(state="running") == []
    assert jobs.list(state="rejected") == []
    assert jobs.list(0) == []


def test_every_state_is_counted(jobs: JobStore) -> None:
    jobs.submit(a_spec())
    counts = jobs.counts()
    assert counts == {
        "queued": 1,
        "running": 0,
        "succeeded": 0,
        "failed": 0,
        "cancelled": 0,
        "rejected": 0,
    }


def test_a_queued_job_has_a_priority(jobs: JobStore, engine: sa.Engine) -> None:
    """One without would go before every job that has one."""
    jobs.submit(a_spec())
    schema = "" if engine.dialect.name == "sqlite" else "dbos."
    with engine.connect() as connection:
        found = connection.execute(sa.text(f"SELECT priority FROM {schema}workflow_status"))
        assert found.scalar_one() > 0


def test_job_ids_sort_by_time_and_are_fit_for_a_url() -> None:
    ids = [new_job_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(len(one) == 32 and one.isalnum() for one in ids)
    assert [one[:12] for one in ids] == sorted(one[:12] for one in ids)


def test_a_database_that_was_never_prepared_is_unavailable(empty_sqlite_url: str) -> None:
    with JobStore(empty_sqlite_url) as store:
        with pytest.raises(Unavailable):
            store.submit(a_spec())
        with pytest.raises(Unavailable):
            store.counts()


@pytest.mark.parametrize("ask", ["get", "list", "counts", "stage_totals", "workers_alive"])
def test_a_database_that_does_not_answer_is_unavailable_at_once(ask: str) -> None:
    """Port 1 of this machine refuses connections; nothing is retried, nobody waits."""
    with JobStore("postgresql://nobody:secret@127.0.0.1:1/jobs") as store:
        arguments = ["some-id"] if ask == "get" else []
        with pytest.raises(Unavailable) as caught:
            getattr(store, ask)(*arguments)
    assert caught.value.remedy
    assert "secret" not in str(caught.value.problem())


def test_several_processes_may_prepare_the_database_at_once(empty_database_url: str) -> None:
    failures: list[BaseException] = []

    def prepare() -> None:
        try:
            prepare_database(empty_database_url)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with JobStore(empty_database_url) as store:
        assert store.submit(a_spec()).state == "queued"


def test_sqlite_readers_do_not_wait_for_writers(empty_sqlite_url: str) -> None:
    prepare_database(empty_sqlite_url)
    with sqlite3.connect(empty_sqlite_url.removeprefix("sqlite:///")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_lease_is_live_until_it_expires_or_is_released(engine: sa.Engine) -> None:
    leases = WorkerLeases(engine)
    leases.renew("alive", host="here", pid=1, ttl_s=60)
    leases.renew("expired", host="here", pid=2, ttl_s=-1)
    leases.renew("stopped", host="here", pid=3, ttl_s=60)
    leases.release("stopped")
    assert leases.live() == {"alive"}
    leases.renew("expired", host="here", pid=2, ttl_s=60)
    assert leases.live() == {"alive", "expired"}
    leases.renew("alive", host="here", pid=1, ttl_s=-1)
    assert leases.live() == {"expired"}


def test_leases_of_long_gone_workers_are_forgotten(engine: sa.Engine) -> None:
    leases = WorkerLeases(engine)
    leases.renew("today", host="here", pid=1, ttl_s=-60)
    leases.renew("yesterday", host="here", pid=2, ttl_s=-86_400)
    leases.forget_expired()
    with engine.connect() as connection:
        left = connection.execute(sa.text("SELECT executor_id FROM bitpress_workers")).scalars()
        assert list(left) == ["today"]


def test_live_workers_are_counted(jobs: JobStore, engine: sa.Engine) -> None:
    assert jobs.workers_alive() == 0
    WorkerLeases(engine).renew("one", host="here", pid=1, ttl_s=60)
    assert jobs.workers_alive() == 1


def test_a_stage_counts_once_per_job(jobs: JobStore, engine: sa.Engine) -> None:
    assert jobs.stage_totals() == {}
    figures = StageFigures(engine)
    figures.record("first", "calibrate", 2.0)
    figures.record("first", "calibrate", 2.0)
    figures.record("second", "calibrate", 3.5)
    figures.record("second", "pack", 0.25)
    assert jobs.stage_totals() == {
        "calibrate": StageTotal(2, 5.5),
        "pack": StageTotal(1, 0.25),
    }
