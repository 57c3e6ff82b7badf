"""What a worker writes down about a job: in order, once, thinned, and never in the job's way."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

from store.database import open_engine
from store.errors import Unavailable
from store.job_events import JobEvent, JobEvents, NewEvent
from store.jobs import APPLICATION_NAME, APPLICATION_VERSION
from worker.job_log import JobLog, execution_token

# Of conftest.py, which cannot be imported.
Service = Any
WaitUntil = Any


class Written(JobEvents):
    """Events in memory, written for one owner, by a database that may be away."""

    def __init__(self) -> None:
        self.away = False
        self.owner = "me"
        self.kept: list[NewEvent] = []

    def extend(self, job_id: str, events: Any, owner: str) -> bool:
        if self.away:
            raise Unavailable("The job database does not answer.")
        if owner != self.owner:
            return False
        self.kept += events
        return True

    def thin_out(self, job_id: str) -> None:
        self.kept = self.kept[-1:]


@pytest.fixture
def written() -> Written:
    return Written()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(written: Written, clock: Clock) -> JobLog:
    log = JobLog(written, "job", clock)
    log._owner = "me"
    return log


def kinds(written: Written) -> list[str]:
    return [event.kind for event in written.kept]


def test_progress_is_written_once_a_second_and_everything_else_with_it(
    log: JobLog, written: Written, clock: Clock
) -> None:
    for beat in range(6):
        log.note({"event": "sweep", "layer": "conv1", "sweep": beat, "loss": 0.5})
        log.progress({"progress": 0.1 * beat})
        clock.now += 0.5
    assert kinds(written).count("progress") == 3
    assert kinds(written).count("sweep") == 6
    first = written.kept[0]
    assert (first.data, first.once) == (
        {"layer": "conv1", "sweep": 0, "loss": 0.5},
        "sweep:conv1:0",
    )


def test_a_database_that_was_away_gets_everything_but_old_progress(
    log: JobLog, written: Written, clock: Clock
) -> None:
    written.away = True
    for beat in range(5):
        log.note({"event": "sweep", "layer": "conv1", "sweep": beat, "loss": float("nan")})
        log.progress({"progress": 0.1})
        clock.now += 1.0
    written.away = False
    log.add("step", {"step": "conv1"})
    log.write()
    assert kinds(written) == ["sweep"] * 5 + ["step"]
    assert written.kept[0].data["loss"] is None


def test_what_the_database_never_takes_keeps_nothing_else_back(
    log: JobLog, written: Written, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def refuse(*_: object) -> bool:
        raise sa.exc.IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed"))

    with monkeypatch.context() as patch:
        patch.setattr(written, "extend", refuse)
        log.add("step", {"step": "bad"})
        log.write()
    assert [record.message for record in caplog.records] == ["events dropped"]
    log.add("step", {"step": "good"})
    log.write()
    assert [event.data for event in written.kept] == [{"step": "good"}]


def test_what_waits_is_bounded(log: JobLog, written: Written) -> None:
    written.away = True
    log.begin_step()
    for number in range(20_000):
        log.note({"event": "sweep", "layer": "conv1", "sweep": number, "loss": 0.5})
    log.write()
    written.away = False
    log.write()
    assert len(written.kept) == 2_000


def test_whoever_lost_the_job_writes_nothing_more(log: JobLog, written: Written) -> None:
    written.owner = "another"
    log.add("step", {})
    log.write()
    written.owner = "me"
    log.write()
    assert written.kept == []


def test_old_progress_is_thinned_out_now_and_then(
    log: JobLog, written: Written, clock: Clock
) -> None:
    for _ in range(20):
        log.progress({})
        clock.now += 10.0
    assert len(written.kept) < 5


@pytest.fixture
def launched(database_url: str) -> Iterator[sa.Engine]:
    config: DBOSConfig = {
        "name": APPLICATION_NAME,
        "system_database_url": database_url,
        "application_version": APPLICATION_VERSION,
        "serializer": DBOSPortableJSONSerializer(),
        "run_migrations": False,
    }
    engine = open_engine(database_url)
    DBOS(config=config)
    yield engine
    DBOS.destroy(destroy_registry=True)
    engine.dispose()


def test_an_execution_knows_its_token_and_loses_it_with_the_job(launched: sa.Engine) -> None:
    """A contract test of the private call."""
    events = JobEvents(launched)
    begun, cancelled = threading.Event(), threading.Event()
    outcome: list[bool] = []

    @DBOS.workflow()
    def work() -> None:
        job_id = DBOS.workflow_id
        assert job_id is not None
        token = execution_token()
        outcome.append(events.extend(job_id, [NewEvent.now("step", {})], token))
        begun.set()
        assert cancelled.wait(60)
        outcome.append(events.extend(job_id, [NewEvent.now("step", {})], token))

    DBOS.launch()
    handle = DBOS.start_workflow(work)
    assert begun.wait(60)
    DBOS.cancel_workflow(handle.workflow_id)
    cancelled.set()
    with pytest.raises(BaseException, match="cancelled"):
        handle.get_result()
    assert outcome == [True, False]
    assert len(events.after(handle.workflow_id, 0)) == 1


def events_of(service: Service, job_id: str) -> list[JobEvent]:
    engine = open_engine(service.settings.database_url)
    try:
        events = JobEvents(engine)
        events.close(service.jobs.get(job_id))
        return events.after(job_id, 0)
    finally:
        engine.dispose()


def test_a_job_tells_everything_in_order(shared_service: Service) -> None:
    job_id = shared_service.submit(epochs=2)
    job = shared_service.finished(job_id)
    found = events_of(shared_service, job_id)
    told = [event for event in found if event.kind != "progress"]
    assert [event.kind for event in told[:2]] == ["queued", "started"]
    assert told[-1].kind == "succeeded"
    assert told[-1].data["model"] == dict(job.model)
    stages = ["prepare", "calibrate", "fine_tune", "pack", "evaluate", "publish"]
    assert [event.data["stage"] for event in told if event.kind == "stage"] == stages
    steps = [(event.data["stage"], event.data["step"]) for event in told if event.kind == "step"]
    assert steps == [
        ("prepare", None),
        *(("calibrate", layer) for layer in ("first", "second", "third")),
        *(("fine_tune", step) for step in ("epoch-0001", "epoch-0002", "finish")),
        *((stage, None) for stage in ("pack", "evaluate", "publish")),
    ]
    epochs = [event.data for event in told if event.kind == "epoch"]
    assert epochs == [dict(epoch) for epoch in job.epochs]
    sweeps = [(event.data["layer"], event.data["sweep"]) for event in told if event.kind == "sweep"]
    assert sweeps == [(layer, n) for layer in ("first", "second", "third") for n in (0, 1)]
    progress = [event.data for event in found if event.kind == "progress"]
    assert progress
    assert all({"stage", "step", "progress", "estimated_end"} <= one.keys() for one in progress)


def test_a_failed_job_tells_its_end(shared_service: Service) -> None:
    job_id = shared_service.submit(second="invalid")
    shared_service.finished(job_id)
    last = events_of(shared_service, job_id)[-1]
    assert last.kind == "failed"
    assert last.data["problem"]["type"] == "urn:bitpress:problem:invalid-checkpoint"


def test_a_cancelled_job_tells_nothing_after_its_end(
    shared_service: Service, wait_until: WaitUntil
) -> None:
    job_id = shared_service.submit(second="hang")
    wait_until(lambda: shared_service.jobs.get(job_id).step == "second", "the second layer")
    shared_service.jobs._client.cancel_workflow(job_id)
    before = events_of(shared_service, job_id)
    # The next job begins only after the worker has noticed.
    shared_service.finished(shared_service.submit())
    assert before[-1].kind == "cancelled"
    assert events_of(shared_service, job_id) == before
