"""The jobs: submitted, controlled, read and counted. Used by the app and by whoever watches.

Nothing here runs a job. A submitted job is a row of a DBOS queue, which `worker.main` serves.
"""

import hashlib
import secrets
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from dbos import DBOSClient, DBOSPortableJSONSerializer, EnqueueOptions, WorkflowStatus
from dbos import error as dbos_error

from store.carried_totals import CarriedTotals
from store.database import database_errors, open_engine
from store.errors import (
    IdempotencyKeyReused,
    InvalidSpec,
    NotFound,
    StorageExhausted,
    Unavailable,
)
from store.figures import StageFigures, StageTotal
from store.job_control import JobControl
from store.job_events import JobEvents
from store.job_record import (
    FINAL_STATES,
    PROGRESS_EVENT,
    Job,
    JobState,
    has_summary,
    job_of,
    queued_job,
    running_summary,
    spec_of,
)
from store.job_rows import MODEL_ATTRIBUTE, Cursor, JobRows
from store.leases import WorkerLeases
from store.specs import CompressSpec, parse_spec
from store.watch import Watch

# Recovery and dequeuing match on these. The version is fixed: DBOS's own default is a hash of
# the worker's code, which would strand every queued job at the next upgrade.
APPLICATION_NAME = "bitpress"
APPLICATION_VERSION = "1"
QUEUE_NAME = "compress"
WORKFLOW_NAME = "compress"

# Always given: a job without priority would go before all jobs that have one.
_DEFAULT_PRIORITY = 100

# As often the job of a key may be deleted while it is asked for.
_ATTEMPTS = 5


@dataclass(frozen=True)
class JobPage:
    """Some jobs, the newest first, and the cursor of the page after them, None at the end."""

    jobs: tuple[Job, ...]
    next: str | None


def new_job_id() -> str:
    """Return a job id: 32 hexadecimal digits, of which the first 12 are the time in ms."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def keyed_job_id(key: str) -> str:
    """Return the id of the job that is submitted under the idempotency key ``key``."""
    return hashlib.sha256(b"bitpress job " + key.encode()).hexdigest()[:32]


class JobStore:
    """All jobs of one job database, which `store.database.prepare_database` has prepared.

    ``events`` is what happened to each of them, ``watch`` how queue and workers are.

    Every method raises `Unavailable` while the database does not answer. Safe for threads.
    """

    def __init__(self, database_url: str) -> None:
        self._engine = open_engine(database_url)
        self._client = DBOSClient(
            system_database_url=database_url,
            application_name=APPLICATION_NAME,
            serializer=DBOSPortableJSONSerializer(),
            lazy=True,
            # A caller over HTTP is better served by an error than by an endless wait.
            retry_connection_errors=False,
        )
        self._leases = WorkerLeases(self._engine)
        self._figures = StageFigures(self._engine)
        self._carried = CarriedTotals(self._engine)
        self._rows = JobRows(self._engine, WORKFLOW_NAME)
        self.events = JobEvents(self._engine)
        self._control = JobControl(self._engine, self._client, QUEUE_NAME, self.get, self.events)
        self.watch = Watch(self._engine, WORKFLOW_NAME)

    def submit(self, spec: CompressSpec, job_id: str | None = None) -> Job:
        """Enqueue a job and return it; ``job_id``, where given, is one of `new_job_id`.

        Raises:
            Unavailable: the job was not enqueued, or nobody knows: then `find` tells later.
            StorageExhausted: it was not, as the database has no space left.
        """
        job_id = job_id or new_job_id()
        self._enqueue(_options(job_id, spec), spec)
        return self._submitted(job_id, spec)

    def submit_once(self, spec: CompressSpec, key: str) -> tuple[Job, bool]:
        """Enqueue a job under an idempotency key; return it, and whether it was there before.

        Of any number of requests with one key, at once or years apart, one makes the job. The key
        is free again when the job is deleted.

        Raises:
            IdempotencyKeyReused: the job of this key has another specification.
            Unavailable: the job was not enqueued, or had been; it is safe to try again.
        """
        job_id = keyed_job_id(key)
        options: EnqueueOptions = {**_options(job_id, spec), "workflow_id_reuse_policy": "reject"}
        for _ in range(_ATTEMPTS):
            try:
                self._enqueue(options, spec)
            except dbos_error.DBOSWorkflowIDInUseError:
                job = self.find(job_id)
                if job is None:
                    # Deleted in this moment, and the key is free again.
                    continue
                check_same_request(job, spec)
                return job, True
            return self._submitted(job_id, spec), False
        raise Unavailable("The key's jobs come and go.", remedy="Try again in a moment.")

    def find(self, job_id: str) -> Job | None:
        """Return the job, None where there is none."""
        with database_errors():
            found = self._client.list_workflows(workflow_ids=[job_id], name=WORKFLOW_NAME)
            return self._read(found[0]) if found else None

    def get(self, job_id: str) -> Job:
        """Return the job. Raises `NotFound`."""
        job = self.find(job_id)
        if job is None:
            raise NotFound("There is no job with this id.", remedy="GET /jobs lists the jobs.")
        return job

    def page(
        self,
        limit: int = 50,
        cursor: str | None = None,
        states: Collection[JobState] = (),
        model: str | None = None,
    ) -> JobPage:
        """Return up to ``limit`` jobs, newest first, that come after ``cursor``.

        Only those in one of ``states``, where there are any, and of ``model``, which jobs have that
        were submitted since it can be asked for. Pages fit together however many jobs are added or
        removed between two of them.

        Raises:
            InvalidInput: this is no cursor.
        """
        after = None if cursor is None else Cursor.parse(cursor)
        with database_errors():
            places = self._rows.page(limit + 1, after, states, model)
            shown = places[:limit]
            wanted = [place.job_id for place in shown]
            found = {
                status.workflow_id: status
                for status in (self._client.list_workflows(workflow_ids=wanted) if wanted else [])
            }
            # One may have been deleted since.
            jobs = tuple(self._read(found[job_id]) for job_id in wanted if job_id in found)
        return JobPage(jobs, str(shown[-1]) if shown and len(places) > limit else None)

    def list(self, limit: int = 50, *, state: JobState | None = None) -> list[Job]:
        """Return the newest jobs, newest first, in one state or in any."""
        return [*self.page(limit, states=() if state is None else (state,)).jobs]

    def cancel(self, job_id: str) -> Job:
        """Cancel a job and return it; see `JobControl.cancel`."""
        with database_errors():
            return self._control.cancel(job_id)

    def retry(self, job_id: str, data_dir: Path) -> Job:
        """Put a failed or cancelled job back into the queue; see `JobControl.retry`."""
        with database_errors():
            return self._control.retry(job_id, data_dir)

    def delete(self, job_id: str, data_dir: Path) -> None:
        """Remove a job that is over; see `JobControl.delete`."""
        with database_errors():
            self._control.delete(job_id, data_dir)

    def unfinished_with_dataset(self, name: str) -> tuple[str, ...]:
        """Return the ids of the jobs, queued or running, that read the dataset ``name``."""
        with database_errors():
            found = self._client.list_workflows(
                name=WORKFLOW_NAME, status=["DELAYED", "ENQUEUED", "PENDING"], load_output=False
            )
        return tuple(one.workflow_id for one in found if spec_of(one).get("dataset") == name)

    def counts(self) -> dict[JobState, int]:
        """Return how many jobs there are in each state; every state is present."""
        with database_errors():
            return self._rows.counts()

    def finished_totals(self) -> dict[JobState, int]:
        """Return how many times a job has come to each end, deleted and retried ones included."""
        with database_errors():
            carried = self._carried.endings()
            counts = self._rows.counts()
        return {state: counts[state] + carried.get(state, 0) for state in FINAL_STATES}

    def stage_totals(self) -> dict[str, StageTotal]:
        """Return, by stage, how many jobs completed it and the seconds they took together."""
        with database_errors():
            totals = self._figures.totals()
            for stage, carried in self._carried.stages().items():
                now = totals.get(stage, StageTotal(0, 0.0))
                totals[stage] = StageTotal(now.count + carried.count, now.seconds + carried.seconds)
        return totals

    def workers_alive(self) -> int:
        """Return how many workers hold a live lease."""
        with database_errors():
            return len(self._leases.live())

    def close(self) -> None:
        """Close the connections; the store is of no use afterwards."""
        self._client.destroy()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _enqueue(self, options: EnqueueOptions, spec: CompressSpec) -> None:
        try:
            with database_errors(StorageExhausted):
                self._client.enqueue(options, spec.model_dump(mode="json"))
        except Unavailable:
            # Perhaps it came through, and only the answer was lost.
            job = self.find(options["workflow_id"])
            if job is None:
                raise
            check_same_request(job, spec)

    def _submitted(self, job_id: str, spec: CompressSpec) -> Job:
        try:
            job = self.get(job_id)
        except Unavailable:
            # It is in the queue: whoever was told otherwise would submit it a second time.
            return _just_queued(job_id, spec)
        # A reader of the events would write this too, at the time that the job has on record.
        with suppress(Unavailable):
            self.events.open(job_id, job.created_at)
        return job

    def _read(self, status: WorkflowStatus) -> Job:
        if has_summary(status):
            return job_of(status)
        progress = self._client.get_event(status.workflow_id, PROGRESS_EVENT, timeout_seconds=0)
        steps = self._client.list_workflow_steps(status.workflow_id)
        outputs = [(step["function_name"], step["output"]) for step in steps]
        return job_of(status, running_summary(progress, outputs))


def check_same_request(job: Job, spec: CompressSpec) -> None:
    """Raise `IdempotencyKeyReused` where ``job``, found under a key, has another specification.

    A ``spec`` that names no checkpoint yet may get any.
    """
    try:
        earlier = parse_spec(dict(job.spec))
    except InvalidSpec:
        # Of another release, which no request of today can have asked for.
        earlier = None
    if earlier is not None and spec.checkpoint is None:
        earlier = earlier.model_copy(update={"checkpoint": None})
    if earlier != spec:
        raise IdempotencyKeyReused(
            "The idempotency key was used before, for a job with another specification or "
            "checkpoint.",
            field="Idempotency-Key",
            remedy=f"Give every job a key of its own. The key's job is GET /jobs/{job.id}.",
        )


def _options(job_id: str, spec: CompressSpec) -> EnqueueOptions:
    return {
        "workflow_name": WORKFLOW_NAME,
        "queue_name": QUEUE_NAME,
        "workflow_id": job_id,
        "app_version": APPLICATION_VERSION,
        "priority": _DEFAULT_PRIORITY,
        "attributes": {MODEL_ATTRIBUTE: spec.name},
    }


def _just_queued(job_id: str, spec: CompressSpec) -> Job:
    return queued_job(job_id, spec.model_dump(mode="json"), time.time_ns() // 1_000_000)
