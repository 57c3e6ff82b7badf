"""Jobs cancelled, tried again and deleted, by several at once; what it relies on in DBOS."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import DBOSClient
from dbos import error as dbos_error

from store.database import open_engine
from store.errors import Conflict, IdempotencyKeyReused, InvalidInput, NotFound
from store.figures import StageFigures, StageTotal
from store.job_record import FINAL_STATES, Job
from store.job_rows import Cursor
from store.jobs import QUEUE_NAME, JobStore, keyed_job_id, new_job_id
from store.specs import CompressSpec, parse_spec
from store.verdicts import Verdicts

# Of conftest.py, which cannot be imported.
SetJob = Callable[..., None]

OVER = {
    "succeeded": "SUCCESS",
    "failed": "ERROR",
    "given up": "MAX_RECOVERY_ATTEMPTS_EXCEEDED",
}


@pytest.fixture
def jobs(database_url: str) -> Iterator[JobStore]:
    with JobStore(database_url) as store:
        yield store


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def verdicts(engine: sa.Engine) -> Verdicts:
    return Verdicts(engine)


def a_spec(name: str = "digits", checkpoint: str | None = "0") -> CompressSpec:
    return parse_spec(
        {
            "name": name,
            "architecture": "digits_cnn",
            "checkpoint": checkpoint and "sha256:" + checkpoint * 64,
            "dataset": "digits",
            "method": {"name": "bwnh"},
        }
    )


# Cancel


def test_a_queued_job_is_cancelled_at_once_and_says_so(jobs: JobStore, verdicts: Verdicts) -> None:
    job = jobs.cancel(jobs.submit(a_spec()).id)
    assert (job.state, job.model) == ("cancelled", None)
    assert job.problem is not None and job.problem["type"] == "urn:bitpress:problem:cancelled"
    assert job.problem["remedy"]
    assert job.finished_at is not None
    assert job == jobs.get(job.id)
    assert verdicts.of(job.id) == "cancel"


def test_a_cancelled_job_stays_as_it_is_when_cancelled_again(jobs: JobStore) -> None:
    job = jobs.cancel(jobs.submit(a_spec()).id)
    assert jobs.cancel(job.id) == job


def test_many_who_cancel_at_once_all_get_the_cancelled_job(jobs: JobStore) -> None:
    job_id = jobs.submit(a_spec()).id
    with ThreadPoolExecutor(8) as threads:
        states = {job.state for job in threads.map(jobs.cancel, [job_id] * 8)}
    assert states == {"cancelled"}


@pytest.mark.parametrize("status", OVER.values(), ids=OVER)
def test_a_job_that_is_over_cannot_be_cancelled(
    jobs: JobStore, set_job: SetJob, verdicts: Verdicts, status: str
) -> None:
    job_id = jobs.submit(a_spec()).id
    set_job(job_id, status)
    before = jobs.get(job_id)
    with pytest.raises(Conflict) as caught:
        jobs.cancel(job_id)
    assert caught.value.remedy
    assert jobs.get(job_id) == before
    assert verdicts.of(job_id) is None


def test_an_unknown_job_cannot_be_cancelled_retried_or_deleted(
    jobs: JobStore, tmp_path: Path
) -> None:
    for attempt in (
        lambda: jobs.cancel(new_job_id()),
        lambda: jobs.retry(new_job_id(), tmp_path),
        lambda: jobs.delete(new_job_id(), tmp_path),
    ):
        with pytest.raises(NotFound):
            attempt()


@pytest.mark.parametrize("verdict", ["publish", "reject"])
def test_a_job_whose_end_is_decided_is_not_cancelled(
    jobs: JobStore, set_job: SetJob, verdicts: Verdicts, verdict: Any
) -> None:
    job_id = jobs.submit(a_spec()).id
    set_job(job_id, "PENDING", executor_id="worker")
    assert verdicts.decide(job_id, verdict, "worker") == verdict
    with pytest.raises(Conflict):
        jobs.cancel(job_id)
    assert jobs.get(job_id).state == "running"


def before_cancelling(
    monkeypatch: pytest.MonkeyPatch, jobs: JobStore, happens: Callable[[], object]
) -> None:
    """Have something happen between the verdict and DBOS's cancelling."""
    cancel = jobs._client.cancel_workflow

    def delayed(*arguments: Any, **options: Any) -> None:
        happens()
        cancel(*arguments, **options)

    monkeypatch.setattr(jobs._client, "cancel_workflow", delayed)


def test_a_job_that_fails_while_it_is_cancelled_has_failed(
    jobs: JobStore, set_job: SetJob, verdicts: Verdicts, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = jobs.submit(a_spec()).id
    before_cancelling(monkeypatch, jobs, lambda: set_job(job_id, "ERROR"))
    with pytest.raises(Conflict, match="failed"):
        jobs.cancel(job_id)
    assert jobs.get(job_id).state == "failed"
    # Nothing is left that a retry could stumble on.
    assert verdicts.of(job_id) is None


def test_a_belated_cancel_never_stops_a_job_that_is_being_published(
    jobs: JobStore,
    set_job: SetJob,
    verdicts: Verdicts,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It failed, was tried again and came as far as its publication, all in one moment."""
    job_id = jobs.submit(a_spec()).id

    def all_that() -> None:
        set_job(job_id, "ERROR")
        jobs.retry(job_id, tmp_path)
        set_job(job_id, "PENDING", executor_id="worker")
        assert verdicts.decide(job_id, "publish", "worker") == "publish"

    before_cancelling(monkeypatch, jobs, all_that)
    with pytest.raises(Conflict, match="published"):
        jobs.cancel(job_id)
    # Back in the queue, from where it goes on with its publication.
    assert jobs.get(job_id).state == "queued"
    assert verdicts.of(job_id) == "publish"


# Retry


@pytest.mark.parametrize("status", ["ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"])
def test_a_failed_job_is_queued_again_under_its_id(
    jobs: JobStore, set_job: SetJob, tmp_path: Path, status: str
) -> None:
    first = jobs.submit(a_spec())
    set_job(first.id, status, executor_id="dead worker")
    job = jobs.retry(first.id, tmp_path)
    assert (job.id, job.state, job.problem, job.finished_at) == (first.id, "queued", None, None)
    assert (job.spec, job.created_at) == (first.spec, first.created_at)
    assert jobs.finished_totals()["failed"] == 1
    assert jobs.counts()["failed"] == 0


def test_a_cancelled_job_is_queued_again_and_can_be_published(
    jobs: JobStore, set_job: SetJob, verdicts: Verdicts, tmp_path: Path
) -> None:
    job_id = jobs.submit(a_spec()).id
    jobs.cancel(job_id)
    assert jobs.retry(job_id, tmp_path).state == "queued"
    assert verdicts.of(job_id) is None
    set_job(job_id, "PENDING", executor_id="worker")
    assert verdicts.decide(job_id, "publish", "worker") == "publish"


def test_a_retried_job_can_be_cancelled_and_retried_again(jobs: JobStore, tmp_path: Path) -> None:
    job_id = jobs.submit(a_spec()).id
    for _ in range(3):
        assert jobs.cancel(job_id).state == "cancelled"
        assert jobs.retry(job_id, tmp_path).state == "queued"
    assert jobs.finished_totals()["cancelled"] == 3


@pytest.mark.parametrize("status", ["ENQUEUED", "PENDING", "SUCCESS"])
def test_only_a_failed_or_cancelled_job_is_tried_again(
    jobs: JobStore, set_job: SetJob, tmp_path: Path, status: str
) -> None:
    job_id = jobs.submit(a_spec()).id
    set_job(job_id, status)
    before = jobs.get(job_id)
    with pytest.raises(Conflict) as caught:
        jobs.retry(job_id, tmp_path)
    assert caught.value.remedy
    assert jobs.get(job_id) == before


def test_of_many_who_retry_at_once_one_does(
    jobs: JobStore, set_job: SetJob, tmp_path: Path
) -> None:
    job_id = jobs.submit(a_spec()).id
    set_job(job_id, "ERROR")

    def retry(_: int) -> str:
        try:
            return jobs.retry(job_id, tmp_path).state
        except Conflict:
            return "conflict"

    with ThreadPoolExecutor(8) as threads:
        outcomes = sorted(threads.map(retry, range(8)))
    assert outcomes == ["conflict"] * 7 + ["queued"]
    assert jobs.finished_totals()["failed"] == 1


def test_cancel_and_retry_at_once_leave_a_job_that_is_one_or_the_other(
    jobs: JobStore, verdicts: Verdicts, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(4) as threads:
        for _ in range(10):
            job_id = jobs.submit(a_spec()).id
            jobs.cancel(job_id)

            def retry(job_id: str = job_id) -> None:
                try:
                    jobs.retry(job_id, tmp_path)
                except Conflict:
                    return

            attempts = [threads.submit(retry), threads.submit(jobs.cancel, job_id)]
            attempts += [threads.submit(jobs.cancel, job_id), threads.submit(retry)]
            for attempt in attempts:
                attempt.result()
            state = jobs.get(job_id).state
            assert state in ("queued", "cancelled")
            if state == "queued":
                assert verdicts.of(job_id) is None


# Delete


@pytest.mark.parametrize("state", ["succeeded", "failed", "given up", "cancelled"])
def test_a_deleted_job_leaves_nothing_but_totals(
    jobs: JobStore, set_job: SetJob, engine: sa.Engine, tmp_path: Path, state: str
) -> None:
    kept = jobs.submit(a_spec())
    job_id = jobs.submit(a_spec()).id
    if state == "cancelled":
        jobs.cancel(job_id)
    else:
        set_job(job_id, OVER[state])
    figures = StageFigures(engine)
    figures.record(kept.id, "prepare", 1.0)
    figures.record(job_id, "prepare", 2.5)
    totals, endings = jobs.stage_totals(), jobs.finished_totals()
    folder = tmp_path / "jobs" / job_id
    folder.mkdir(parents=True)
    (folder / "report.json").touch()
    record_a_run(engine, job_id)
    assert job_id in mentioned_ids(engine)

    jobs.delete(job_id, tmp_path)

    assert mentioned_ids(engine) == {kept.id}
    assert [job.id for job in jobs.list()] == [kept.id]
    assert list((tmp_path / "jobs").iterdir()) == []
    assert jobs.stage_totals() == totals == {"prepare": StageTotal(2, 3.5)}
    assert jobs.finished_totals() == endings
    with pytest.raises(NotFound):
        jobs.delete(job_id, tmp_path)
    assert jobs.finished_totals() == endings


def record_a_run(engine: sa.Engine, job_id: str) -> None:
    """Write the rows beside a workflow's own that DBOS writes while it runs."""
    schema = "" if engine.dialect.name == "sqlite" else "dbos."
    with engine.begin() as connection:
        for table, columns, values in (
            ("operation_outputs", "function_id, function_name", "1, 'prepare'"),
            ("workflow_events", "key, value", "'progress', '{}'"),
            ("workflow_events_history", "function_id, key, value", "1, 'progress', '{}'"),
            ("workflow_output", "output, retention_timestamp", "'1', 0"),
            ("streams", 'key, value, "offset", function_id', "'key', '1', 0, 1"),
        ):
            connection.execute(
                sa.text(
                    f"INSERT INTO {schema}{table} (workflow_uuid, {columns}) VALUES (:id, {values})"
                ),
                {"id": job_id},
            )


def mentioned_ids(engine: sa.Engine) -> set[str]:
    """Return what is 32 digits long and stands anywhere in the database: ids of jobs."""
    found = set()
    for schema in (None,) if engine.dialect.name == "sqlite" else (None, "dbos"):
        tables = sa.MetaData()
        tables.reflect(engine, schema=schema)
        with engine.connect() as connection:
            for table in tables.tables.values():
                for row in connection.execute(sa.select(table)).mappings():
                    values = [str(value) for name, value in row.items() if "xid" not in name]
                    found |= {value for value in values if len(value) == 32 and value.isalnum()}
    return found


@pytest.mark.parametrize("status", ["ENQUEUED", "PENDING", "DELAYED"])
def test_a_job_that_is_not_over_is_not_deleted(
    jobs: JobStore, set_job: SetJob, tmp_path: Path, status: str
) -> None:
    job_id = jobs.submit(a_spec()).id
    set_job(job_id, status)
    with pytest.raises(Conflict) as caught:
        jobs.delete(job_id, tmp_path)
    assert "cancel" in (caught.value.remedy or "").lower()
    assert jobs.get(job_id).id == job_id


def test_of_many_who_delete_at_once_one_does_and_it_counts_once(
    jobs: JobStore, tmp_path: Path
) -> None:
    def delete(job_id: str) -> str:
        try:
            jobs.delete(job_id, tmp_path)
        except NotFound:
            return "not found"
        return "deleted"

    with ThreadPoolExecutor(8) as threads:
        for count in range(1, 4):
            job_id = jobs.cancel(jobs.submit(a_spec()).id).id
            outcomes = sorted(threads.map(delete, [job_id] * 8))
            assert outcomes == ["deleted"] + ["not found"] * 7
            assert jobs.finished_totals()["cancelled"] == count


def test_a_job_that_is_tried_again_while_it_is_deleted_goes_on(
    jobs: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = jobs.cancel(jobs.submit(a_spec()).id).id
    folder = tmp_path / "jobs" / job_id
    folder.mkdir(parents=True)
    read = jobs._control._read

    def retried_after_the_look(job_id: str) -> Job:
        job = read(job_id)
        monkeypatch.setattr(jobs._control, "_read", read)
        jobs.retry(job_id, tmp_path)
        return job

    monkeypatch.setattr(jobs._control, "_read", retried_after_the_look)
    with pytest.raises(Conflict, match="queued"):
        jobs.delete(job_id, tmp_path)
    assert jobs.get(job_id).state == "queued"
    assert folder.is_dir()
    kinds = [event.kind for event in jobs.events.after(job_id, 0)]
    assert kinds == ["queued", "cancelled", "retried"]
    assert jobs.finished_totals()["cancelled"] == 1


def test_a_job_that_ends_anew_while_it_is_deleted_counts_as_what_it_became(
    jobs: JobStore, set_job: SetJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = jobs.submit(a_spec()).id
    jobs.cancel(job_id)
    read = jobs._control._read

    def ended_anew_after_the_look(job_id: str) -> Job:
        job = read(job_id)
        monkeypatch.setattr(jobs._control, "_read", read)
        jobs.retry(job_id, tmp_path)
        set_job(job_id, "ERROR")
        return job

    monkeypatch.setattr(jobs._control, "_read", ended_anew_after_the_look)
    jobs.delete(job_id, tmp_path)
    totals = jobs.finished_totals()
    assert (totals["cancelled"], totals["failed"]) == (1, 1)


def test_a_job_that_is_deleted_while_it_is_tried_again_is_gone(
    jobs: JobStore, engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = jobs.cancel(jobs.submit(a_spec()).id).id
    rewind = jobs._client.rewind_workflow

    def deleted_before(*arguments: Any, **options: Any) -> None:
        jobs.delete(job_id, tmp_path)
        rewind(*arguments, **options)

    monkeypatch.setattr(jobs._client, "rewind_workflow", deleted_before)
    with pytest.raises(NotFound):
        jobs.retry(job_id, tmp_path)
    assert mentioned_ids(engine) == set()
    assert jobs.finished_totals()["cancelled"] == 1


def test_retry_and_delete_at_once_never_both_succeed(
    jobs: JobStore, engine: sa.Engine, tmp_path: Path
) -> None:
    def outcome(action: Callable[[], object]) -> bool:
        try:
            action()
        except (Conflict, NotFound):
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        for _ in range(10):
            job_id = jobs.cancel(jobs.submit(a_spec()).id).id
            deleting = threads.submit(outcome, lambda j=job_id: jobs.delete(j, tmp_path))
            retrying = threads.submit(outcome, lambda j=job_id: jobs.retry(j, tmp_path))
            assert deleting.result() != retrying.result()
            if deleting.result():
                assert job_id not in mentioned_ids(engine)
            else:
                assert jobs.get(job_id).state == "queued"
    assert jobs.finished_totals()["cancelled"] == 10


def test_a_deletion_that_was_interrupted_can_be_completed(
    jobs: JobStore, engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = jobs.cancel(jobs.submit(a_spec()).id).id
    StageFigures(engine).record(job_id, "prepare", 2.5)
    folder = tmp_path / "jobs" / job_id
    folder.mkdir(parents=True)

    def broken(*_: object) -> None:
        raise OSError("input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", broken)
        with pytest.raises(OSError, match="input/output"):
            jobs.delete(job_id, tmp_path)
    assert jobs.get(job_id).state == "cancelled"
    assert jobs.finished_totals()["cancelled"] == 1
    jobs.delete(job_id, tmp_path)
    assert mentioned_ids(engine) == set()
    assert not folder.exists()
    assert jobs.finished_totals()["cancelled"] == 1
    assert jobs.stage_totals() == {"prepare": StageTotal(1, 2.5)}


def test_a_deleted_job_is_gone_for_those_who_read_it_meanwhile(
    jobs: JobStore, set_job: SetJob, tmp_path: Path
) -> None:
    ids = [jobs.submit(a_spec()).id for _ in range(20)]
    for job_id in ids:
        set_job(job_id, "ERROR")

    def read(job_id: str) -> None:
        for _ in range(5):
            jobs.page(50)
            try:
                jobs.get(job_id)
            except NotFound:
                return

    with ThreadPoolExecutor(4) as threads:
        reading = threads.map(read, ids)
        for job_id in ids:
            jobs.delete(job_id, tmp_path)
        assert [*reading] == [None] * 20
    assert jobs.list() == []


# Pages


def all_pages(jobs: JobStore, limit: int, **filters: Any) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = jobs.page(limit, cursor, **filters)
        found += [job.id for job in page.jobs]
        assert len(page.jobs) <= limit
        if page.next is None:
            return found
        assert len(page.jobs) == limit
        cursor = page.next


def test_pages_show_every_job_once_newest_first(jobs: JobStore, engine: sa.Engine) -> None:
    ids = [jobs.submit(a_spec()).id for _ in range(7)]
    assert all_pages(jobs, 3) == ids[::-1]
    assert all_pages(jobs, 7) == ids[::-1]
    assert jobs.page(7).next is None
    # Though several were submitted in the same millisecond.
    schema = "" if engine.dialect.name == "sqlite" else "dbos."
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {schema}workflow_status SET created_at = 1"))
    for limit in (1, 2, 3):
        assert all_pages(jobs, limit) == sorted(ids, reverse=True)


def test_pages_fit_together_while_jobs_come_and_go(
    jobs: JobStore, set_job: SetJob, tmp_path: Path
) -> None:
    ids = [jobs.submit(a_spec()).id for _ in range(6)]
    first = jobs.page(2)
    jobs.submit(a_spec())
    # Even the one where the page ended.
    for gone in (ids[4], ids[1]):
        set_job(gone, "ERROR")
        jobs.delete(gone, tmp_path)
    second = jobs.page(2, first.next)
    third = jobs.page(2, second.next)
    assert [job.id for job in second.jobs + third.jobs] == [ids[3], ids[2], ids[0]]
    assert third.next is None


def test_jobs_are_found_by_state_and_model(
    jobs: JobStore, set_job: SetJob, verdicts: Verdicts
) -> None:
    ids = {
        state: jobs.submit(a_spec(model)).id
        for state, model in (
            ("queued", "a"),
            ("running", "b"),
            ("succeeded", "a"),
            ("rejected", "b"),
            ("failed", "a"),
            ("cancelled", "b"),
        )
    }
    set_job(ids["running"], "PENDING", executor_id="worker")
    set_job(ids["rejected"], "PENDING", executor_id="worker")
    verdicts.decide(ids["rejected"], "reject", "worker")
    assert jobs.counts()["rejected"] == 0
    set_job(ids["rejected"], "SUCCESS")
    set_job(ids["succeeded"], "SUCCESS")
    set_job(ids["failed"], "ERROR")
    jobs.cancel(ids["cancelled"])
    for state, job_id in ids.items():
        assert all_pages(jobs, 1, states=[state]) == [job_id]
    assert set(jobs.counts().values()) == {1}
    assert jobs.finished_totals() == dict.fromkeys(FINAL_STATES, 1)
    assert all_pages(jobs, 2, states=["failed", "queued"]) == [ids["failed"], ids["queued"]]
    assert all_pages(jobs, 2, model="a") == [ids[one] for one in ("failed", "succeeded", "queued")]
    assert all_pages(jobs, 1, model="b", states=["failed"]) == []
    assert all_pages(jobs, 1, model="%") == []


@pytest.mark.parametrize(
    "cursor", ["", "x", "MTIz", "!!!!", "ä", str(Cursor(1, "id")) + "A", "A" * 1000, "OjE6"]
)
def test_what_is_no_cursor_is_refused(jobs: JobStore, cursor: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        jobs.page(1, cursor)
    assert caught.value.field == "cursor"


def test_a_cursor_survives_its_text() -> None:
    cursor = Cursor(1_763_730_000_123, "0123456789abcdef")
    assert Cursor.parse(str(cursor)) == cursor
    assert str(cursor).isascii() and "=" not in str(cursor)


def test_unfinished_jobs_of_a_dataset_are_found(jobs: JobStore, set_job: SetJob) -> None:
    queued, running, over = (jobs.submit(a_spec()).id for _ in range(3))
    set_job(running, "PENDING")
    set_job(over, "ERROR")
    assert sorted(jobs.unfinished_with_dataset("digits")) == sorted([queued, running])
    assert jobs.unfinished_with_dataset("cifar") == ()


# One job for a key


def test_the_same_request_under_one_key_is_one_job(jobs: JobStore) -> None:
    first, replayed = jobs.submit_once(a_spec(), "the key")
    assert not replayed and first.id == keyed_job_id("the key")
    assert jobs.submit_once(a_spec(), "the key") == (first, True)
    other, replayed = jobs.submit_once(a_spec(), "another key")
    assert not replayed and other.id != first.id
    assert jobs.counts()["queued"] == 2


@pytest.mark.parametrize("other", [a_spec("other"), a_spec(checkpoint="1")])
def test_another_request_under_a_used_key_is_refused(jobs: JobStore, other: CompressSpec) -> None:
    first, _ = jobs.submit_once(a_spec(), "key")
    with pytest.raises(IdempotencyKeyReused) as caught:
        jobs.submit_once(other, "key")
    assert first.id in (caught.value.remedy or "")
    assert jobs.list() == [first]


def test_a_key_finds_its_job_however_that_ended(jobs: JobStore, set_job: SetJob) -> None:
    first, _ = jobs.submit_once(a_spec(), "key")
    for status in (*OVER.values(), "CANCELLED", "PENDING"):
        set_job(first.id, status)
        job, replayed = jobs.submit_once(a_spec(), "key")
        assert (job, replayed) == (jobs.get(first.id), True)


def test_the_key_of_a_deleted_job_is_free(jobs: JobStore, set_job: SetJob, tmp_path: Path) -> None:
    first, _ = jobs.submit_once(a_spec(), "key")
    jobs.cancel(first.id)
    jobs.delete(first.id, tmp_path)
    job, replayed = jobs.submit_once(a_spec("other"), "key")
    assert not replayed
    assert (job.id, job.state) == (first.id, "queued")


def test_of_many_requests_with_one_key_at_once_one_makes_the_job(jobs: JobStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        for key in ("a", "b", "c"):
            made = [*threads.map(jobs.submit_once, [a_spec()] * 8, [key] * 8)]
            assert {job.id for job, _ in made} == {keyed_job_id(key)}
            assert sorted(replayed for _, replayed in made) == [False] + [True] * 7
    assert jobs.counts()["queued"] == 3


def test_of_two_different_requests_with_one_key_at_once_one_is_refused(jobs: JobStore) -> None:
    def submit(name: str) -> Job | None:
        try:
            return jobs.submit_once(a_spec(name), "key")[0]
        except IdempotencyKeyReused:
            return None

    with ThreadPoolExecutor(2) as threads:
        outcomes = [*threads.map(submit, ["one", "two"])]
    (made,) = [job for job in outcomes if job is not None]
    assert jobs.list() == [made]


# What DBOS must do


def test_dbos_refuses_to_rewind_a_workflow_that_is_not_over(
    jobs: JobStore, set_job: SetJob
) -> None:
    job_id = jobs.submit(a_spec()).id
    client: DBOSClient = jobs._client
    for status in ("ENQUEUED", "PENDING", "DELAYED"):
        set_job(job_id, status)
        with pytest.raises(dbos_error.DBOSException):
            client.rewind_workflow(job_id, start_step=1, queue_name=QUEUE_NAME)
    with pytest.raises(dbos_error.DBOSNonExistentWorkflowError):
        client.rewind_workflow(new_job_id(), start_step=1, queue_name=QUEUE_NAME)


def test_dbos_rewinds_into_the_queue_with_all_attempts_and_the_priority(
    jobs: JobStore, set_job: SetJob, engine: sa.Engine
) -> None:
    job_id = jobs.submit(a_spec()).id
    set_job(job_id, "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
    schema = "" if engine.dialect.name == "sqlite" else "dbos."
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {schema}workflow_status SET recovery_attempts = 11"))
    before = jobs._client.list_workflows(workflow_ids=[job_id])[0]
    jobs._client.rewind_workflow(job_id, start_step=1, queue_name=QUEUE_NAME)
    after = jobs._client.list_workflows(workflow_ids=[job_id])[0]
    assert (after.status, after.recovery_attempts, after.queue_name) == ("ENQUEUED", 0, QUEUE_NAME)
    assert (after.priority, after.app_version) == (before.priority, before.app_version)
    assert after.priority > 0
    assert json.dumps(after.input) == json.dumps(before.input)


def test_dbos_cancels_no_workflow_that_has_ended_by_itself(jobs: JobStore, set_job: SetJob) -> None:
    job_id = jobs.submit(a_spec()).id
    for status in ("SUCCESS", "ERROR"):
        set_job(job_id, status)
        jobs._client.cancel_workflow(job_id)
        assert jobs._client.list_workflows(workflow_ids=[job_id])[0].status == status
    jobs._client.cancel_workflow(new_job_id())
