"""Removing a job that is over. Of it stays only what it adds to figures that only grow.

All that the database has of the job goes in one transaction, on the condition that the job still
has the end that was seen. So of several who delete it one does, a job that is being tried again is
not deleted, and whoever is interrupted leaves the whole job to the next. DBOS's own call knows no
condition; this writes to the tables that it names, and a test looks through all others.
"""

import shutil
from pathlib import Path

import sqlalchemy as sa

from store.carried_totals import CarriedTotals
from store.database import job_events, verdicts, workflows
from store.job_folders import set_aside
from store.job_record import FINAL_STATES, WORKFLOW_STATES, Job, epoch_ms

# What DBOS keeps of a workflow beside its row: in the order in which a retry, by DBOS's
# `rewind_workflow`, locks them, and before the row itself, or each could wait for the other.
_BESIDE_THE_ROW = (
    "workflow_events",
    "operation_outputs",
    "workflow_events_history",
    "workflow_output",
    "workflow_input",
)
_OVER = [status for status, state in WORKFLOW_STATES.items() if state in FINAL_STATES]


class JobRemoval:
    """Removes jobs from one database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._workflows = workflows(engine)
        self._beside = [
            sa.table(name, sa.column("workflow_uuid", sa.Text), schema=self._workflows.schema)
            for name in _BESIDE_THE_ROW
        ]
        self._carried = CarriedTotals(engine)

    def remove(self, job: Job, data_dir: Path) -> bool:
        """Remove a job that is over, with its files below ``data_dir``.

        Returns False, and removes nothing, where it is gone or its end is not ``job``'s any more.
        """
        with self._engine.begin() as connection:
            if not self._remove_record(connection, job):
                connection.rollback()
                return False
            self._carried.carry_stages(connection, job.id)
            self._carried.carry_ending(connection, job.state)
            # While the id is taken: it may be a key's, whose next job has a folder of this name.
            files = set_aside(data_dir / "jobs", job.id)
        if files is not None:
            shutil.rmtree(files, ignore_errors=True)
        return True

    def _remove_record(self, connection: sa.Connection, job: Job) -> bool:
        for table in self._beside:
            connection.execute(table.delete().where(table.c.workflow_uuid == job.id))
        row = self._workflows.c
        ended_at = None if job.finished_at is None else epoch_ms(job.finished_at)
        removed = connection.execute(
            self._workflows.delete().where(
                row.workflow_uuid == job.id,
                row.status.in_(_OVER),
                row.completed_at.is_not_distinct_from(ended_at),
            )
        )
        if removed.rowcount != 1:
            return False
        # Behind the row, which whoever writes an event holds: none is written from here on.
        for table in (verdicts, job_events):
            connection.execute(table.delete().where(table.c.job_id == job.id))
        return True
