"""What somebody who watches the service wants to know of its queue and its workers.

Read in few small queries, so that a scrape every few seconds costs next to nothing. Ages are taken
by the database's clock, as leases are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from store.database import database_clock, database_errors, workflows
from store.leases import WorkerLeases, WorkerState

# More than anybody has workers.
_MOST_WORKERS = 100


@dataclass(frozen=True)
class Watched:
    """The queue and the workers at one moment.

    ``queued_age_s`` is how long the job at the queue's end has waited, ``progress_age_s`` how long
    ago the running job that has stood still for longest got on; both are 0 where there is no such
    job. ``lost`` counts the workers that died, or froze, within the last hour.
    """

    queued_age_s: float
    progress_age_s: float
    alive: int
    lost: int
    workers: Sequence[WorkerState]


class Watch:
    """Reads `Watched` from a job database; ``workflow`` is the jobs' name in it."""

    def __init__(self, engine: sa.Engine, workflow: str) -> None:
        self._engine = engine
        rows = workflows(engine).c
        of_jobs = rows.name == workflow
        self._waiting_since = sa.select(sa.func.min(rows.updated_at)).where(
            of_jobs, rows.status.in_(["ENQUEUED", "DELAYED"])
        )
        self._running = (
            sa.select(rows.workflow_uuid, rows.updated_at)
            .where(of_jobs, rows.status == "PENDING")
            .limit(_MOST_WORKERS)
        )
        self._leases = WorkerLeases(engine)

    def look(self) -> Watched:
        """Look at the queue and the workers. Raises `Unavailable`."""
        with database_errors():
            workers = self._leases.states(_MOST_WORKERS)
            with self._engine.connect() as connection:
                now_ms = (
                    1000 * connection.execute(sa.select(database_clock(self._engine))).scalar_one()
                )
                since = connection.execute(self._waiting_since).scalar_one()
                running = connection.execute(self._running).all()
            ages = [
                _progress_age_s(job, max(0.0, now_ms - updated) / 1000, workers)
                for job, updated in running
            ]
            return Watched(
                queued_age_s=0.0 if since is None else max(0.0, now_ms - since) / 1000,
                progress_age_s=max(ages, default=0.0),
                alive=len(self._leases.live()),
                lost=self._leases.lost(),
                workers=workers,
            )


def _progress_age_s(job_id: str, since_taken_s: float, workers: Sequence[WorkerState]) -> float:
    """Return how long ago a running job got on, by what its workers told.

    A worker that died told it too, before somebody else took the job over: the younger counts. Of a
    job that no worker has told of yet, only when it was taken is known.
    """
    told = [
        worker.beat_age_s + float(worker.figures.get("progress_age_s") or 0.0)
        for worker in workers
        if worker.figures.get("job") == job_id
    ]
    return min(told, default=since_taken_s)
