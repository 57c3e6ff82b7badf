"""The events of jobs: numbered in order whoever writes them, and by nobody who lost the job."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.database import job_events, open_engine
from store.job_events import ENDINGS, PROGRESS_KEPT_S, JobEvents, NewEvent, Position
from store.job_record import Job
from store.jobs import JobStore
from store.specs import parse_spec

SPEC = {
    "name": "digits",
    "architecture": "digits_cnn",
    "dataset": "digits",
    "checkpoint": "sha256:" + "0" * 64,
}
WRITERS = 4


class Ground:
    """A database with jobs, and what DBOS does to their ownership done by hand."""

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url, pool_size=WRITERS + 2)
        self.events = JobEvents(self.engine)
        self.jobs = JobStore(url)

    def job(self) -> str:
        job_id = self.jobs.submit(parse_spec(SPEC)).id
        with self.engine.begin() as connection:
            connection.execute(job_events.delete().where(job_events.c.job_id == job_id))
        return job_id

    def set(self, job_id: str, **columns: object) -> None:
        schema = None if self.engine.dialect.name == "sqlite" else "dbos"
        table = sa.table(
            "workflow_status",
            *(sa.column(name) for name in ("workflow_uuid", *columns)),
            schema=schema,
        )
        statement = table.update().where(table.c.workflow_uuid == job_id).values(**columns)
        with self.engine.begin() as connection:
            assert connection.execute(statement).rowcount == 1

    def end(self, job_id: str, state: str = "CANCELLED") -> Job:
        self.set(job_id, status=state, owner_xid=None, completed_at=1_763_000_000_123)
        return self.jobs.get(job_id)

    def go_on(self, job_id: str, owner: str) -> None:
        self.set(job_id, status="PENDING", owner_xid=owner, completed_at=None)

    def kinds(self, job_id: str) -> list[str]:
        return [event.kind for event in self.events.after(job_id, 0)]


@pytest.fixture
def ground(database_url: str) -> Iterator[Ground]:
    ground = Ground(database_url)
    yield ground
    ground.jobs.close()
    ground.engine.dispose()


def in_threads(actions: list[Callable[[], object]]) -> None:
    """Run all actions at once and pass on what they raise."""
    errors: list[BaseException] = []
    begin = threading.Barrier(len(actions))

    def run(action: Callable[[], object]) -> None:
        try:
            begin.wait()
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_an_event_is_read_as_it_was_written(ground: Ground) -> None:
    data = {"layer": "features.0", "loss": 0.125, "message": "é\u2028\n", "none": None}
    assert ground.events.append("job", "sweep", data) == 1
    (event,) = ground.events.after("job", 0)
    assert (event.job_id, event.seq, event.kind, event.data) == ("job", 1, "sweep", data)
    assert datetime.fromisoformat(event.at) <= datetime.now(UTC)


def test_jobs_are_numbered_apart_and_read_together(ground: Ground) -> None:
    for job_id in ("a", "b", "a", "c", "a"):
        ground.events.append(job_id, "step", {})
    found = ground.events.after_each({"a": 1, "b": 0, "c": 5})
    assert [(event.job_id, event.seq) for event in found] == [("a", 2), ("a", 3), ("b", 1)]
    assert ground.events.positions(["a", "d"]) == {
        "a": Position(3, "step", None),
        "d": Position(0, None, None),
    }


def test_what_may_be_said_once_is_written_once(ground: Ground) -> None:
    assert ground.events.append("job", "epoch", {"epoch": 1}, once="epoch:1") == 1
    assert ground.events.append("job", "epoch", {"epoch": 1}, once="epoch:1") == 1
    assert ground.events.append("other", "epoch", {"epoch": 1}, once="epoch:1") == 1
    assert ground.events.append("job", "epoch", {"epoch": 2}, once="epoch:2") == 2


def test_what_is_said_twice_at_once_is_written_once(ground: Ground) -> None:
    job_id = ground.job()
    ground.go_on(job_id, "owner")
    events = [NewEvent.now("sweep", {"given": n}, f"sweep:{n % 2}") for n in range(4)]
    plain = [NewEvent.now("stage", {"given": n}) for n in range(2)]
    assert ground.events.extend(job_id, [*events, *plain], "owner")
    found = ground.events.after(job_id, 0)
    assert [(event.kind, event.data["given"]) for event in found] == [
        *(("sweep", 0), ("sweep", 1)),
        *(("stage", 0), ("stage", 1)),
    ]


def test_numbers_have_no_gaps_where_some_of_many_events_were_there(ground: Ground) -> None:
    job_id = ground.job()
    ground.go_on(job_id, "owner")
    events = [NewEvent.now("sweep", {"sweep": n}, f"sweep:{n}") for n in range(4)]
    assert ground.events.extend(job_id, events[1:3], "owner")
    assert ground.events.extend(job_id, events, "owner")
    assert ground.events.extend(job_id, events, "owner")
    found = ground.events.after(job_id, 0)
    assert [(event.seq, event.data["sweep"]) for event in found] == [(1, 1), (2, 2), (3, 0), (4, 3)]


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(
        st.lists(st.integers(1, 5), min_size=1, max_size=6), min_size=2, max_size=WRITERS
    )
)
def test_a_reader_of_many_writers_misses_nothing_and_gets_nothing_twice(
    ground: Ground, batches: list[list[int]]
) -> None:
    """Each list is a writer, each number a batch of so many events written at once."""
    job_id = ground.job()
    ground.go_on(job_id, "owner")
    written = threading.Event()
    read: list[Any] = []

    def write(writer: int, sizes: list[int]) -> None:
        for number, size in enumerate(sizes):
            events = [NewEvent.now("sweep", {"at": [writer, number, n]}) for n in range(size)]
            if writer % 2:
                assert ground.events.extend(job_id, events, "owner")
            else:
                for event in events:
                    ground.events.append(job_id, event.kind, event.data)

    def follow() -> None:
        while True:
            last = written.is_set()
            page = ground.events.after(job_id, read[-1].seq if read else 0, limit=3)
            read.extend(page)
            if last and not page:
                return

    def write_all() -> None:
        try:
            in_threads([lambda w=w, s=s: write(w, s) for w, s in enumerate(batches)])  # type: ignore[misc]
        finally:
            written.set()

    in_threads([follow, write_all])
    assert [event.seq for event in read] == list(range(1, sum(map(sum, batches)) + 1))
    for writer, sizes in enumerate(batches):
        own = [tuple(event.data["at"]) for event in read if event.data["at"][0] == writer]
        assert own == [(writer, n, i) for n, size in enumerate(sizes) for i in range(size)]


def test_only_the_execution_that_owns_the_job_writes_for_it(ground: Ground) -> None:
    job_id = ground.job()
    ground.go_on(job_id, "first")
    assert ground.events.extend(job_id, [NewEvent.now("step", {"by": 1})], "first")
    # Taken over: the first was frozen, wakes up, and still has something to say.
    ground.go_on(job_id, "second")
    assert not ground.events.extend(job_id, [NewEvent.now("step", {"by": 1})], "first")
    assert ground.events.extend(job_id, [NewEvent.now("step", {"by": 2})], "second")
    ground.end(job_id)
    assert not ground.events.extend(job_id, [NewEvent.now("step", {"by": 2})], "second")
    assert not ground.events.extend("no such job", [NewEvent.now("step", {})], "second")
    assert [event.data["by"] for event in ground.events.after(job_id, 0)] == [1, 2]


def test_a_takeover_waits_for_an_event_that_is_being_written(ground: Ground) -> None:
    """Many writers of two executions at once: nothing of the first comes after the takeover."""
    job_id = ground.job()
    ground.go_on(job_id, "first")
    taken_over = threading.Event()

    def first() -> None:
        while ground.events.extend(job_id, [NewEvent.now("step", {"by": "first"})], "first"):
            pass
        assert taken_over.is_set() or not ground.events._owns(job_id, "first")

    def takeover() -> None:
        while len(ground.events.after(job_id, 0)) < 3:
            pass
        ground.go_on(job_id, "second")
        taken_over.set()
        ground.events.append(job_id, "step", {"by": "takeover"})
        for _ in range(3):
            assert ground.events.extend(job_id, [NewEvent.now("step", {"by": "second"})], "second")

    in_threads([first, takeover])
    by = [event.data["by"] for event in ground.events.after(job_id, 0)]
    assert by == ["first"] * (len(by) - 4) + ["takeover"] + ["second"] * 3


def test_a_job_is_queued_once_and_first(ground: Ground) -> None:
    job, late = ground.job(), ground.job()
    ground.events.open(job, "2026-11-21T12:00:00.000Z")
    ground.events.append(job, "started", {})
    ground.events.open(job, "2026-11-21T12:00:00.000Z")
    ground.events.append(late, "started", {})
    ground.events.open(late, "2026-11-21T12:00:00.000Z")
    assert ground.kinds(job) == ["queued", "started"]
    assert ground.kinds(late) == ["started"]


def test_a_job_that_is_gone_leaves_no_event_behind(ground: Ground, tmp_path: Path) -> None:
    """Whoever opened its stream had looked at it a moment before it was deleted."""
    job_id = ground.job()
    ground.end(job_id)
    ground.jobs.delete(job_id, tmp_path)
    ground.events.open(job_id, "2026-11-21T12:00:00.000Z")
    assert ground.kinds(job_id) == []


def test_events_of_many_jobs_are_read_at_once(ground: Ground) -> None:
    job_ids = [f"job-{number:04}" for number in range(2500)]
    ends = [job_ids[0], job_ids[1234], job_ids[-1]]
    for job_id in ends:
        ground.events.append(job_id, "step", {})
        ground.events.append(job_id, "step", {})
    found = ground.events.after_each(dict.fromkeys(job_ids, 1))
    assert [(event.job_id, event.seq) for event in found] == [(one, 2) for one in ends]
    found = ground.events.after_each(dict.fromkeys(job_ids, 0), limit=3)
    assert [(event.job_id, event.seq) for event in found] == [
        (ends[0], 1),
        (ends[0], 2),
        (ends[1], 1),
    ]
    positions = ground.events.positions(job_ids)
    assert [job_id for job_id, position in positions.items() if position.seq == 2] == ends


@pytest.mark.parametrize("status", ["CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"])
def test_the_end_is_written_once_with_the_whole_job(ground: Ground, status: str) -> None:
    job_id = ground.job()
    ground.events.open(job_id, "2026-11-21T12:00:00.000Z")
    ground.events.close(ground.jobs.get(job_id))
    assert ground.kinds(job_id) == ["queued"]
    assert not ground.events.positions([job_id])[job_id].ended
    job = ground.end(job_id, status)
    in_threads([lambda: ground.events.close(job)] * WRITERS)
    assert ground.kinds(job_id) == ["queued", job.state]
    assert job.state in ENDINGS
    last = ground.events.after(job_id, 1)[0]
    assert last.at == job.finished_at == last.data["finished_at"]
    assert last.data["problem"]["type"] == job.problem["type"]
    assert ground.events.positions([job_id])[job_id].ended


def test_a_job_that_goes_on_after_its_end_says_so_once(ground: Ground) -> None:
    job_id = ground.job()
    ground.events.open(job_id, "2026-11-21T12:00:00.000Z")
    ground.events.reopen(job_id)
    job = ground.end(job_id)
    ground.events.close(job)
    # A worker that was frozen as it took the job up, and wakes after the job's end.
    ground.events.reopen(job_id)
    ground.go_on(job_id, "owner")
    assert not ground.events.positions([job_id])[job_id].ended
    in_threads([lambda: ground.events.reopen(job_id)] * WRITERS)
    # Whoever saw the job over before must not end it now.
    ground.events.close(job)
    assert ground.kinds(job_id) == ["queued", "cancelled", "retried"]
    ground.set(job_id, status="CANCELLED", owner_xid=None, completed_at=1_763_000_000_124)
    ground.events.close(job)
    ground.events.close(ground.jobs.get(job_id))
    assert ground.kinds(job_id) == ["queued", "cancelled", "retried", "cancelled"]


def test_old_progress_is_thinned_out_and_numbers_are_not_given_again(ground: Ground) -> None:
    long_ago = (datetime.now(UTC) - timedelta(seconds=2 * PROGRESS_KEPT_S)).isoformat()
    job_id = ground.job()
    ground.go_on(job_id, "owner")
    old = [
        NewEvent(kind, {"n": n}, long_ago)
        for n, kind in enumerate(["progress", "sweep", "progress", "progress"])
    ]
    assert ground.events.extend(job_id, old, "owner")
    ground.events.thin_out(job_id)
    assert [event.seq for event in ground.events.after(job_id, 0)] == [2, 4]
    assert ground.events.append(job_id, "progress", {}) == 5
    ground.events.thin_out(job_id)
    assert [event.seq for event in ground.events.after(job_id, 0)] == [2, 5]


def test_the_columns_of_dbos_that_events_rest_on_exist(ground: Ground) -> None:
    """A contract test: the token of the owner, and the time of the end, null before it."""
    job_id = ground.job()
    schema = "" if ground.engine.dialect.name == "sqlite" else "dbos."
    statement = sa.text(
        f"SELECT owner_xid, completed_at FROM {schema}workflow_status WHERE workflow_uuid = :id"
    )

    def row() -> tuple[object, ...]:
        with ground.engine.connect() as connection:
            return tuple(connection.execute(statement, {"id": job_id}).one())

    assert row() == (None, None)
    ground.jobs._client.cancel_workflow(job_id)
    owner, completed_at = row()
    assert owner is None
    assert isinstance(completed_at, int)
    job = ground.jobs.get(job_id)
    ground.events.close(job)
    assert json.loads(json.dumps(ground.events.after(job_id, 0)[-1].data))["id"] == job_id


@pytest.mark.parametrize(("query", "expected"), [("", 10), ("?connect_timeout=3", 3)])
def test_a_server_that_answers_nothing_is_not_waited_for_without_end(
    query: str, expected: int
) -> None:
    engine = open_engine(f"postgresql://somebody@192.0.2.1/jobs{query}")
    assert int(engine.url.query["connect_timeout"]) == expected
    engine.dispose()


@pytest.mark.postgres
def test_a_frozen_writer_does_not_keep_its_locks(postgres_url: str) -> None:
    engine = open_engine(postgres_url)
    with engine.connect() as connection:
        limit = connection.execute(sa.text("SHOW idle_in_transaction_session_timeout")).scalar()
    engine.dispose()
    assert limit == "10s"
