"""Which workers are alive: a row per worker process that it must renew before it expires.

With each renewal a worker may leave figures about itself, which is all that the app ever hears of
it. All times are the database's, so that workers on machines whose clocks differ agree.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from store.database import database_clock, worker_figures, workers

# Expired rows are of use to somebody who looks for a lost worker, for a while.
_FORGET_AFTER_S = 3600.0


@dataclass(frozen=True)
class WorkerState:
    """A worker as its last beat left it, ``beat_age_s`` seconds ago.

    ``lost`` says that its lease ran out without having been given up: the worker died, or is
    frozen. ``figures`` is what it told of itself, empty where that is not known.
    """

    executor_id: str
    lost: bool
    beat_age_s: float
    figures: Mapping[str, Any]


class WorkerLeases:
    """The lease rows of all workers on one job database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._now = database_clock(engine)

    def renew(
        self,
        executor_id: str,
        *,
        host: str,
        pid: int,
        ttl_s: float,
        figures: Mapping[str, Any] | None = None,
    ) -> None:
        """Take or renew the lease of ``executor_id`` for ``ttl_s`` seconds from now.

        ``figures``, where given, replace what the worker told of itself before.
        """
        expires_at = self._now + ttl_s
        with self._engine.begin() as connection:
            renewed = connection.execute(
                workers.update()
                .where(workers.c.executor_id == executor_id)
                .values(expires_at=expires_at)
            )
            if renewed.rowcount == 0:
                connection.execute(
                    workers.insert().values(
                        executor_id=executor_id, host=host, pid=pid, expires_at=expires_at
                    )
                )
            if figures is not None:
                self._note(connection, executor_id, json.dumps(dict(figures)))

    def _note(self, connection: sa.Connection, executor_id: str, data: str) -> None:
        values = {"at": self._now, "data": data}
        noted = connection.execute(
            worker_figures.update()
            .where(worker_figures.c.executor_id == executor_id)
            .values(values)
        )
        if noted.rowcount == 0:
            connection.execute(worker_figures.insert().values(executor_id=executor_id, **values))

    def release(self, executor_id: str) -> None:
        """Give the lease up: whatever the worker still holds may be taken over at once."""
        with self._engine.begin() as connection:
            for table in (worker_figures, workers):
                connection.execute(table.delete().where(table.c.executor_id == executor_id))

    def live(self) -> frozenset[str]:
        """Return the executor ids whose lease has not expired."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(workers.c.executor_id).where(workers.c.expires_at > self._now)
            )
            return frozenset(row.executor_id for row in rows)

    def states(self, limit: int) -> list[WorkerState]:
        """Return the ``limit`` workers with the latest beats, those that were lost among them."""
        statement = (
            sa.select(
                workers.c.executor_id,
                (workers.c.expires_at <= self._now).label("lost"),
                (self._now - worker_figures.c.at).label("age"),
                worker_figures.c.data,
            )
            .join(worker_figures, workers.c.executor_id == worker_figures.c.executor_id)
            .order_by(worker_figures.c.at.desc())
            .limit(limit)
        )
        with self._engine.connect() as connection:
            return [
                WorkerState(row.executor_id, bool(row.lost), float(row.age), json.loads(row.data))
                for row in connection.execute(statement)
            ]

    def lost(self) -> int:
        """Return how many leases ran out within the last hour without having been given up."""
        statement = sa.select(sa.func.count()).where(
            workers.c.expires_at <= self._now,
            workers.c.expires_at > self._now - _FORGET_AFTER_S,
        )
        with self._engine.connect() as connection:
            return int(connection.execute(statement).scalar_one())

    def forget_expired(self) -> None:
        """Remove the rows of workers that have been gone for an hour."""
        gone = workers.c.expires_at < self._now - _FORGET_AFTER_S
        with self._engine.begin() as connection:
            expired = sa.select(workers.c.executor_id).where(gone)
            connection.execute(
                worker_figures.delete().where(worker_figures.c.executor_id.in_(expired))
            )
            connection.execute(workers.delete().where(gone))
