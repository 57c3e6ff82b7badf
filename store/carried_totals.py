"""What jobs that were deleted, or are tried again, have added to figures that only grow.

How long the stages took, and how many jobs ended in which way, is counted from the jobs there are.
When one goes, what it counted for is added up here.
"""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from store.database import carried_totals, insert_into, stage_seconds
from store.figures import StageTotal
from store.job_record import JobState


class CarriedTotals:
    """The totals of all jobs that count no more by themselves.

    What is carried is carried in the transaction of ``connection``.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def carry_stages(self, connection: sa.Connection, job_id: str) -> None:
        """Add up the stages of a job and forget which job they were of."""
        of_job = stage_seconds.c.job_id == job_id
        gone = connection.execute(
            stage_seconds.delete()
            .where(of_job)
            .returning(stage_seconds.c.stage, stage_seconds.c.seconds)
        ).all()
        # In one order for everybody, or two of them could wait for each other.
        for stage, seconds in sorted((row.stage, row.seconds) for row in gone):
            self._add(connection, "stage", stage, float(seconds))

    def carry_ending(self, connection: sa.Connection, state: JobState) -> None:
        """Count a job that had ended in ``state``, and is deleted or tried again."""
        self._add(connection, "ending", state, 0.0)

    def stages(self) -> dict[str, StageTotal]:
        """Return what the stages of all such jobs come to, by stage."""
        return {name: StageTotal(count, seconds) for name, count, seconds in self._rows("stage")}

    def endings(self) -> dict[str, int]:
        """Return how many such jobs had ended in each state; a state without any is absent."""
        return {name: count for name, count, _ in self._rows("ending")}

    def _rows(self, kind: str) -> Iterable[Any]:
        totals = carried_totals.c
        query = sa.select(totals.name, totals.count, totals.seconds).where(totals.kind == kind)
        with self._engine.connect() as connection:
            return connection.execute(query).all()

    def _add(self, connection: sa.Connection, kind: str, name: str, seconds: float) -> None:
        connection.execute(
            insert_into(self._engine, carried_totals)
            .values(kind=kind, name=name, count=1, seconds=seconds)
            .on_conflict_do_update(
                index_elements=["kind", "name"],
                set_={
                    "count": carried_totals.c.count + 1,
                    "seconds": carried_totals.c.seconds + seconds,
                },
            )
        )
