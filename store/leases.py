"""Which workers are alive: a row per worker process that it must renew before it expires.

All times are the database's, so that workers on machines whose clocks differ agree.
"""

import sqlalchemy as sa

from store.database import database_clock, workers

# Expired rows are of use to somebody who looks for a lost worker, for a while.
_FORGET_AFTER_S = 3600.0


class WorkerLeases:
    """The lease rows of all workers on one job database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._now = database_clock(engine)

    def renew(self, executor_id: str, *, host: str, pid: int, ttl_s: float) -> None:
        """Take or renew the lease of ``executor_id`` for ``ttl_s`` seconds from now."""
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

    def release(self, executor_id: str) -> None:
        """Give the lease up: whatever the worker still holds may be taken over at once."""
        with self._engine.begin() as connection:
            connection.execute(workers.delete().where(workers.c.executor_id == executor_id))

    def live(self) -> frozenset[str]:
        """Return the executor ids whose lease has not expired."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(workers.c.executor_id).where(workers.c.expires_at > self._now)
            )
            return frozenset(row.executor_id for row in rows)

    def forget_expired(self) -> None:
        """Remove the rows of workers that have been gone for an hour."""
        with self._engine.begin() as connection:
            connection.execute(
                workers.delete().where(workers.c.expires_at < self._now - _FORGET_AFTER_S)
            )
