"""The jobs as rows: counted by state, and a page of their ids at a time.

DBOS lists workflows by offset, and counts none. So this reads its table beside our own verdicts: a
rejected job is a workflow that ended well, and only its verdict tells it from one that was
published.
"""

import base64
import binascii
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import sqlalchemy as sa

from store.database import verdicts, workflows
from store.errors import InvalidInput
from store.job_record import STATES, WORKFLOW_STATES, JobState

# Where `JobStore.submit` records, among a workflow's attributes, what jobs are looked for by.
MODEL_ATTRIBUTE = "model"

_CURSOR = re.compile(r"([0-9]{1,15}):([A-Za-z0-9_-]{1,128})")


@dataclass(frozen=True)
class Cursor:
    """The place in the list, newest first, right after the job ``job_id``.

    It names a job's time and id, not a number of jobs: what is added or removed elsewhere in the
    list moves nothing.
    """

    created_at_ms: int
    job_id: str

    def __str__(self) -> str:
        text = f"{self.created_at_ms}:{self.job_id}"
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` gave. Raises `InvalidInput`."""
        try:
            plain = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True).decode()
        except (binascii.Error, ValueError):
            plain = ""
        found = _CURSOR.fullmatch(plain)
        if found is None:
            raise InvalidInput(
                "This is no cursor of a list of jobs.",
                field="cursor",
                remedy="Take the member next of the page before, or leave the cursor out.",
            )
        return cls(int(found[1]), found[2])


class JobRows:
    """Reads the rows of all jobs on one job database, which are its workflows ``workflow``."""

    def __init__(self, engine: sa.Engine, workflow: str) -> None:
        self._engine = engine
        self._workflow = workflow
        self._workflows = workflows(engine)

    def counts(self) -> dict[JobState, int]:
        """Return how many jobs there are in each state; every state is present."""
        rejected = verdicts.c.verdict == "reject"
        query = (
            sa.select(self._workflows.c.status, rejected, sa.func.count())
            .select_from(self._with_verdicts())
            .where(self._workflows.c.name == self._workflow)
            .group_by(self._workflows.c.status, rejected)
        )
        counts: dict[JobState, int] = dict.fromkeys(STATES, 0)
        with self._engine.connect() as connection:
            for status, is_rejected, count in connection.execute(query):
                counts[_state(status, rejected=bool(is_rejected))] += count
        return counts

    def page(
        self, limit: int, after: Cursor | None, states: Collection[JobState], model: str | None
    ) -> list[Cursor]:
        """Return the places of up to ``limit`` jobs, newest first, that come after ``after``.

        No ``states`` means any. Jobs that were queued before there was this mark have no ``model``.
        """
        rows = self._workflows.c
        query = (
            sa.select(rows.created_at, rows.workflow_uuid)
            .select_from(self._with_verdicts())
            .where(rows.name == self._workflow)
            .order_by(rows.created_at.desc(), rows.workflow_uuid.desc())
            .limit(limit)
        )
        if after is not None:
            place = sa.tuple_(rows.created_at, rows.workflow_uuid)
            query = query.where(place < (after.created_at_ms, after.job_id))
        if states:
            query = query.where(sa.or_(*(self._is(state) for state in states)))
        if model is not None:
            query = query.where(rows.attributes[MODEL_ATTRIBUTE].as_string() == model)
        with self._engine.connect() as connection:
            return [Cursor(int(at), job_id) for at, job_id in connection.execute(query)]

    def statuses(self, job_ids: Collection[str]) -> Mapping[str, tuple[str, str | None]]:
        """Return DBOS's status and executor of these jobs, by id; what is unknown is absent."""
        rows = self._workflows.c
        query = sa.select(rows.workflow_uuid, rows.status, rows.executor_id).where(
            rows.name == self._workflow, rows.workflow_uuid.in_(job_ids)
        )
        with self._engine.connect() as connection:
            return {
                job_id: (status, executor) for job_id, status, executor in connection.execute(query)
            }

    def _with_verdicts(self) -> sa.Join:
        return sa.join(
            self._workflows,
            verdicts,
            verdicts.c.job_id == self._workflows.c.workflow_uuid,
            isouter=True,
        )

    def _is(self, state: JobState) -> sa.ColumnElement[bool]:
        status = self._workflows.c.status
        if state == "rejected":
            return sa.and_(status == "SUCCESS", verdicts.c.verdict == "reject")
        if state == "succeeded":
            # Not "reject", nor none at all: jobs of earlier releases have no verdict.
            return sa.and_(status == "SUCCESS", verdicts.c.verdict.is_distinct_from("reject"))
        return status.in_([name for name, means in WORKFLOW_STATES.items() if means == state])


def _state(status: Any, *, rejected: bool) -> JobState:
    return "rejected" if status == "SUCCESS" and rejected else WORKFLOW_STATES[status]
