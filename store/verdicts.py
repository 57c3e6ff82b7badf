"""Who has the last word on a job: publication, rejection, or whoever cancels it.

A job is cancelled from one process while another may be about to publish its model. The first of
them to write the job's verdict wins; the others find it and obey. So a job is never both cancelled
and published.
"""

from typing import Literal

import sqlalchemy as sa

from store.database import insert_into, verdicts, workflows

Verdict = Literal["publish", "reject", "cancel"]

# Failed and cancelled, as DBOS has it: the ends after which a job can be tried again.
_OVER = ("ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")


class Verdicts:
    """The verdicts on all jobs. A job has none until its end is decided."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._workflows = workflows(engine)

    def give(self, job_id: str, verdict: Verdict) -> Verdict:
        """Give ``verdict`` unless there is one already; return the one that stands."""
        with self._engine.begin() as connection:
            values = {"job_id": job_id, "verdict": verdict}
            insert = insert_into(self._engine, verdicts).values(values)
            connection.execute(insert.on_conflict_do_nothing())
            # Not None: where another's insert was in the way, it was waited for.
            return _read(connection, job_id) or verdict

    def decide(self, job_id: str, verdict: Verdict, owner: str) -> Verdict | None:
        """Have the execution ``owner``, whose job it is, give ``verdict``; return what stands.

        Only ``cancel`` stands against it: what this execution, or one before it, decided otherwise
        was never carried out. None where the job is not its own any more: a worker that was frozen,
        and whose job has since been cancelled or taken over, must not decide anything.
        """
        # One statement, with the job's row locked on PostgreSQL: whoever cancels comes before the
        # verdict or after it. SQLite locks the database at the first statement that may write.
        of_owner = self._of(job_id, owner)
        chosen = sa.select(sa.literal(job_id), sa.literal(verdict)).where(*of_owner)
        statement = (
            insert_into(self._engine, verdicts)
            .from_select(["job_id", "verdict"], chosen.with_for_update())
            .on_conflict_do_update(
                index_elements=["job_id"],
                set_={"verdict": verdict},
                where=verdicts.c.verdict != "cancel",
            )
        )
        with self._engine.begin() as connection:
            connection.execute(statement)
            if connection.execute(self._row(of_owner)).first() is None:
                return None
            return _read(connection, job_id)

    def withdraw(self, job_id: str, owner: str) -> bool:
        """Have the execution ``owner`` take ``publish`` back; return whether it did.

        For a publication that has failed, and of which nothing is there, so that whoever cancels
        the job later comes in time. Nothing changes where the job is not this execution's.
        """
        # Locked, as in `decide`: a later execution decides after this, or it was before.
        own = self._row(self._of(job_id, owner)).with_for_update()
        with self._engine.begin() as connection:
            withdrawn = connection.execute(
                verdicts.delete().where(verdicts.c.job_id.in_(own), verdicts.c.verdict == "publish")
            )
            return withdrawn.rowcount == 1

    def owns(self, job_id: str, owner: str) -> bool:
        """Whether the job is the execution ``owner``'s, which may decide about it."""
        with self._engine.connect() as connection:
            return connection.execute(self._row(self._of(job_id, owner))).first() is not None

    def of(self, job_id: str) -> Verdict | None:
        """Return the job's verdict, None where its end is not decided."""
        with self._engine.connect() as connection:
            return _read(connection, job_id)

    def lift(self, job_id: str) -> bool:
        """Take the verdict on a job back that is to be tried again; return whether there was one.

        ``publish`` stays, as the model may be there already. So does whatever verdict there is on a
        job that is not over: it is another's, and newer than the wish to try again.
        """
        over = sa.exists().where(
            self._workflows.c.workflow_uuid == job_id,
            self._workflows.c.status.in_(_OVER),
        )
        with self._engine.begin() as connection:
            lifted = connection.execute(
                verdicts.delete().where(
                    verdicts.c.job_id == job_id, verdicts.c.verdict != "publish", over
                )
            )
            return lifted.rowcount == 1

    def forget(self, job_id: str) -> None:
        """Remove whatever verdict there is on a job that is removed."""
        with self._engine.begin() as connection:
            connection.execute(verdicts.delete().where(verdicts.c.job_id == job_id))

    def _of(self, job_id: str, owner: str) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            self._workflows.c.workflow_uuid == job_id,
            self._workflows.c.status == "PENDING",
            self._workflows.c.owner_xid == owner,
        )

    def _row(self, conditions: tuple[sa.ColumnElement[bool], ...]) -> sa.Select[tuple[str]]:
        return sa.select(self._workflows.c.workflow_uuid).where(*conditions)


def _read(connection: sa.Connection, job_id: str) -> Verdict | None:
    found: Verdict | None = connection.execute(
        sa.select(verdicts.c.verdict).where(verdicts.c.job_id == job_id)
    ).scalar()
    return found
