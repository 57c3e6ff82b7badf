"""The jobs: submitted, read and counted. Used by the app and by whoever watches the worker.

Nothing here runs a job. A submitted job is a row of a DBOS queue, which `worker.main` serves.
"""

import secrets
import time
from types import TracebackType
from typing import Self

import sqlalchemy as sa
from dbos import DBOSClient, DBOSPortableJSONSerializer, EnqueueOptions, WorkflowStatus

from store.database import database_errors, open_engine
from store.errors import NotFound, Unavailable
from store.figures import StageFigures, StageTotal
from store.job_record import (
    PROGRESS_EVENT,
    STATES,
    WORKFLOW_STATES,
    Job,
    JobState,
    has_summary,
    job_of,
    queued_job,
    running_summary,
)
from store.leases import WorkerLeases
from store.specs import CompressSpec

# Recovery and dequeuing match on these. The version is fixed: DBOS's own default is a hash of
# the worker's code, which would strand every queued job at the next upgrade.
APPLICATION_NAME = "bitpress"
APPLICATION_VERSION = "1"
QUEUE_NAME = "compress"
WORKFLOW_NAME = "compress"

# Always given: a job without priority would go before all jobs that have one.
_DEFAULT_PRIORITY = 100

# Documented tables of DBOS; it has no call that counts. Held by a contract test.
_COUNT_BY_STATUS = (
    "SELECT status, count(*) FROM {schema}workflow_status WHERE name = :name GROUP BY status"
)


def new_job_id() -> str:
    """Return a job id: 32 hexadecimal digits, of which the first 12 are the time in ms."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


class JobStore:
    """All jobs of one job database, which `store.database.prepare_database` has prepared.

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

    def submit(self, spec: CompressSpec, job_id: str | None = None) -> Job:
        """Enqueue a job and return it. With the ``job_id`` of an existing job, return that one.

        Raises:
            Unavailable: the job was not enqueued; or it was under the given ``job_id``, with which
                it is safe to try again.
        """
        given = job_id is not None
        job_id = job_id or new_job_id()
        arguments = spec.model_dump(mode="json")
        options: EnqueueOptions = {
            "workflow_name": WORKFLOW_NAME,
            "queue_name": QUEUE_NAME,
            "workflow_id": job_id,
            "app_version": APPLICATION_VERSION,
            "priority": _DEFAULT_PRIORITY,
        }
        with database_errors():
            self._client.enqueue(options, arguments)
        try:
            return self.get(job_id)
        except Unavailable:
            if given:
                raise
            # It is in the queue: whoever was told otherwise would submit it a second time.
            return queued_job(job_id, arguments, time.time_ns() // 1_000_000)

    def get(self, job_id: str) -> Job:
        """Return the job. Raises `NotFound`."""
        with database_errors():
            found = self._client.list_workflows(workflow_ids=[job_id], name=WORKFLOW_NAME)
            if not found:
                raise NotFound(
                    "There is no job with this id.", remedy="GET /jobs lists the jobs there are."
                )
            return self._read(found[0])

    def list(self, limit: int = 50, *, state: JobState | None = None) -> list[Job]:
        """Return the newest ``limit`` jobs, the newest first; with ``state`` only those in it."""
        statuses = [name for name, meant in WORKFLOW_STATES.items() if meant == state]
        if limit < 1 or (state is not None and not statuses):
            return []
        with database_errors():
            found = self._client.list_workflows(
                name=WORKFLOW_NAME, status=statuses or None, limit=limit, sort_desc=True
            )
            return [self._read(status) for status in found]

    def counts(self) -> dict[JobState, int]:
        """Return how many jobs there are in each state; every state is present."""
        schema = "" if self._engine.dialect.name == "sqlite" else "dbos."
        counts: dict[JobState, int] = dict.fromkeys(STATES, 0)
        statement = sa.text(_COUNT_BY_STATUS.format(schema=schema))
        with database_errors(), self._engine.connect() as connection:
            for status, count in connection.execute(statement, {"name": WORKFLOW_NAME}):
                counts[WORKFLOW_STATES[status]] += count
        return counts

    def stage_totals(self) -> dict[str, StageTotal]:
        """Return, by stage, how many jobs completed it and the seconds they took together."""
        with database_errors():
            return self._figures.totals()

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

    def _read(self, status: WorkflowStatus) -> Job:
        if has_summary(status):
            return job_of(status)
        progress = self._client.get_event(status.workflow_id, PROGRESS_EVENT, timeout_seconds=0)
        steps = self._client.list_workflow_steps(status.workflow_id)
        outputs = [(step["function_name"], step["output"]) for step in steps]
        return job_of(status, running_summary(progress, outputs))
