"""What happened to each job, in order: rows that whoever watches a job reads one after another.

A row has a number, ``seq``, which grows from event to event of a job, and becomes visible only
after all smaller ones: a reader who asks for what came after the last number it knows misses
nothing and gets nothing twice, whichever processes wrote the rows and whichever it asks.

Kinds: ``queued``; ``started`` whenever a worker takes the job up; ``stage``; ``progress``, which is
thinned out after a while; ``sweep``, ``epoch`` and ``step`` (a step finished); ``retried``; and for
the end ``succeeded``, ``rejected``, ``failed`` or ``cancelled`` with the whole job as its data.

The worker writes all but the first and the last. They follow from the job itself, and are written
by the first who notices that they are missing (`JobEvents.open`, `close`, `reopen`): so each is
there exactly once even where a process died between a change of the job and the news of it.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from store.database import database_errors, job_events, workflows
from store.job_record import FINAL_STATES, Job, epoch_ms, iso_moment

# The kinds of a job's last event are the states in which it can be then.
ENDINGS: frozenset[str] = frozenset(FINAL_STATES)

# How long progress is kept that newer progress has made worthless: for readers who were away.
PROGRESS_KEPT_S = 120.0

# Each is a branch of one condition, of which SQLite has at most 1000.
_JOBS_AT_ONCE = 500

# A number is lost to another writer now and then; each time somebody gets one.
_ATTEMPTS = 100


@dataclass(frozen=True)
class NewEvent:
    """An event to be written. Of equal ``once`` (unless None) a job has a single event.

    ``at`` is when it happened, ISO 8601 in UTC; ``data`` is a JSON object.
    """

    kind: str
    data: Mapping[str, Any]
    at: str
    once: str | None = None

    @classmethod
    def now(cls, kind: str, data: Mapping[str, Any], once: str | None = None) -> "NewEvent":
        """Return an event of this moment."""
        return cls(kind, data, iso_moment(datetime.now(UTC)), once)


@dataclass(frozen=True)
class JobEvent:
    """An event of a job as it was written; ``seq`` counts from 1."""

    job_id: str
    seq: int
    at: str
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Position:
    """Where a job's events stand: the last one's number and kind; 0 and None where there is none.

    ``over`` says whether the job itself is, None where there is no such job.
    """

    seq: int = 0
    kind: str | None = None
    over: bool | None = None

    @property
    def unfinished(self) -> bool:
        """Whether the job is over and its end is yet to be written."""
        return bool(self.over) and self.kind not in ENDINGS

    @property
    def ended(self) -> bool:
        """Whether the last event is the end of a job that is over."""
        return bool(self.over) and self.kind in ENDINGS


class JobEvents:
    """The events of all jobs of one database. Every method raises `Unavailable` without it."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._jobs = workflows(engine)

    def append(
        self, job_id: str, kind: str, data: Mapping[str, Any], *, once: str | None = None
    ) -> int:
        """Write an event and return its number; of ``once`` given before, return that one's."""
        seqs = self._insert(job_id, [NewEvent.now(kind, data, once)])
        return seqs[0] if seqs else self._seq_of(job_id, once)

    def extend(self, job_id: str, events: Sequence[NewEvent], owner: str) -> bool:
        """Write events for the execution ``owner`` of the job; return whether it still owns it.

        Where it does not, because the job was cancelled, is over or has passed to another worker,
        nothing is written: the check and the writing are one.
        """
        held = self._job(job_id).where(self._jobs.c.owner_xid == owner)
        return bool(self._insert(job_id, events, held)) or self._owns(job_id, owner)

    def open(self, job_id: str, at: str) -> None:
        """Write that the job was queued, unless it is gone, or anything was written before."""
        queued = NewEvent("queued", {}, at, "queued")
        self._insert(job_id, [queued], self._job(job_id), only_after=())

    def close(self, job: Job) -> None:
        """Write the end of a ``job`` that is over, unless it is written, or is over no more."""
        if job.state not in ENDINGS or job.finished_at is None:
            return
        held = self._job(job.id).where(self._jobs.c.completed_at == epoch_ms(job.finished_at))
        ending = NewEvent(job.state, asdict(job), job.finished_at)
        self._insert(job.id, [ending], held, not_after=ENDINGS)

    def reopen(self, job_id: str) -> None:
        """Write that a job goes on which was over, unless that is written, or it does not."""
        held = self._job(job_id).where(self._jobs.c.completed_at.is_(None))
        self._insert(job_id, [NewEvent.now("retried", {})], held, only_after=ENDINGS)

    def after(self, job_id: str, seq: int, limit: int = 1000) -> list[JobEvent]:
        """Return the first ``limit`` events of the job behind number ``seq``, in order."""
        return self.after_each({job_id: seq}, limit)

    def after_each(self, positions: Mapping[str, int], limit: int = 1000) -> list[JobEvent]:
        """Return events of several jobs, each behind its own number; by job, then in order.

        Where there are more than ``limit``, the last job's are not complete and others' not there.
        """
        found: list[JobEvent] = []
        places = sorted(positions.items())
        for start in range(0, len(places), _JOBS_AT_ONCE):
            if len(found) < limit:
                some = places[start : start + _JOBS_AT_ONCE]
                found += self._behind(some, limit - len(found))
        return found

    def _behind(self, positions: Sequence[tuple[str, int]], limit: int) -> list[JobEvent]:
        columns = job_events.c
        behind = [sa.and_(columns.job_id == job_id, columns.seq > seq) for job_id, seq in positions]
        statement = (
            sa.select(columns.job_id, columns.seq, columns.at, columns.kind, columns.data)
            .where(sa.or_(*behind))
            .order_by(columns.job_id, columns.seq)
            .limit(limit)
        )
        with database_errors(), self._engine.connect() as connection:
            rows = connection.execute(statement).all()
        return [
            JobEvent(row.job_id, row.seq, row.at, row.kind, json.loads(row.data)) for row in rows
        ]

    def positions(self, job_ids: Collection[str]) -> dict[str, Position]:
        """Return where the events of these jobs stand, for each of them."""
        columns = job_events.c
        last = (
            sa.select(columns.job_id, sa.func.max(columns.seq).label("seq"))
            .where(columns.job_id.in_(job_ids))
            .group_by(columns.job_id)
            .subquery()
        )
        heads = sa.select(columns.job_id, columns.seq, columns.kind).join(
            last, sa.and_(columns.job_id == last.c.job_id, columns.seq == last.c.seq)
        )
        jobs = sa.select(self._jobs.c.workflow_uuid, self._jobs.c.completed_at).where(
            self._jobs.c.workflow_uuid.in_(job_ids)
        )
        with database_errors(), self._engine.connect() as connection:
            # The jobs first: an event that was written before a job's end is seen with it.
            ends = {row.workflow_uuid: row.completed_at for row in connection.execute(jobs)}
            found = {row.job_id: (row.seq, row.kind) for row in connection.execute(heads)}
        return {
            job_id: Position(
                *found.get(job_id, (0, None)),
                over=ends[job_id] is not None if job_id in ends else None,
            )
            for job_id in job_ids
        }

    def thin_out(self, job_id: str) -> None:
        """Remove the job's progress that is older than `PROGRESS_KEPT_S`: newer is there."""
        oldest = iso_moment(datetime.now(UTC) - timedelta(seconds=PROGRESS_KEPT_S))
        columns = job_events.c
        given = job_events.alias("given").c
        # Never the last event: its number would be given a second time.
        newest = sa.select(sa.func.max(given.seq)).where(given.job_id == job_id).scalar_subquery()
        worthless = job_events.delete().where(
            columns.job_id == job_id,
            columns.kind == "progress",
            columns.at < oldest,
            columns.seq < newest,
        )
        with database_errors(), self._engine.begin() as connection:
            connection.execute(worthless)

    def _insert(
        self,
        job_id: str,
        events: Sequence[NewEvent],
        held: sa.Select[Any] | None = None,
        *,
        only_after: Collection[str] | None = None,
        not_after: Collection[str] = (),
    ) -> list[int]:
        """Write events; return the numbers they got, fewer where some were there ``once`` already.

        Of several with equal ``once`` among ``events`` the first is meant.
        One statement, so that a process frozen at the wrong moment keeps no lock. Two writers may
        choose the same numbers: then one of them finds that out and chooses again.

        Args:
            held: finds the job's row if the events may be written, and keeps it as it is meanwhile.
            only_after: kinds of which the last event must be; the empty collection: there is none.
            not_after: kinds of which the last event must not be.
        """
        if not events:
            return []
        statement = self._statement(job_id, _said_once(events), held, only_after, not_after)
        for attempt in range(_ATTEMPTS):
            try:
                with database_errors(), self._engine.begin() as connection:
                    return sorted(connection.execute(statement).scalars())
            except sa.exc.IntegrityError:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def _statement(
        self,
        job_id: str,
        events: Sequence[NewEvent],
        held: sa.Select[Any] | None,
        only_after: Collection[str] | None,
        not_after: Collection[str],
    ) -> sa.Executable:
        columns = job_events.c
        own = columns.job_id == job_id
        base = sa.select(sa.func.coalesce(sa.func.max(columns.seq), 0)).where(own)
        rows = sa.union_all(*(_row(n, event) for n, event in enumerate(events, 1))).subquery("rows")
        given = job_events.alias("given").c
        said = sa.select(given.seq).where(given.job_id == job_id, given.once == rows.c.once)
        chosen = sa.select(
            sa.literal(job_id, sa.Text),
            # Counted after the filters, so that no number is left out.
            base.scalar_subquery() + sa.func.row_number().over(order_by=rows.c.n),
            *(rows.c.at, rows.c.kind, rows.c.data, rows.c.once),
        ).where(~sa.exists(said))
        if held is not None:
            # Locked on PostgreSQL until the events are there; SQLite has one writer at a time.
            chosen = chosen.join_from(
                rows, held.with_for_update(key_share=True).subquery("held"), sa.true()
            )
        last = sa.select(columns.kind).where(own).order_by(columns.seq.desc()).limit(1)
        kind = sa.func.coalesce(last.scalar_subquery(), "")
        if only_after is not None:
            chosen = chosen.where(kind.in_(only_after or [""]))
        if not_after:
            chosen = chosen.where(kind.not_in(not_after))
        names = ["job_id", "seq", "at", "kind", "data", "once"]
        return job_events.insert().from_select(names, chosen).returning(columns.seq)

    def _job(self, job_id: str) -> sa.Select[Any]:
        return sa.select(self._jobs.c.workflow_uuid).where(self._jobs.c.workflow_uuid == job_id)

    def _owns(self, job_id: str, owner: str) -> bool:
        with database_errors(), self._engine.connect() as connection:
            found = self._job(job_id).where(self._jobs.c.owner_xid == owner)
            return connection.execute(found).first() is not None

    def _seq_of(self, job_id: str, once: str | None) -> int:
        columns = job_events.c
        statement = sa.select(columns.seq).where(columns.job_id == job_id, columns.once == once)
        with database_errors(), self._engine.connect() as connection:
            return int(connection.execute(statement).scalar_one())


def _said_once(events: Sequence[NewEvent]) -> list[NewEvent]:
    first: dict[str | int, NewEvent] = {}
    for number, event in enumerate(events):
        first.setdefault(number if event.once is None else event.once, event)
    return list(first.values())


def _row(number: int, event: NewEvent) -> sa.Select[Any]:
    columns: list[sa.ColumnElement[Any]] = [
        sa.literal(number, sa.BigInteger).label("n"),
        sa.literal(event.at, sa.Text).label("at"),
        sa.literal(event.kind, sa.Text).label("kind"),
        sa.literal(json.dumps(event.data), sa.Text).label("data"),
        sa.literal(event.once, sa.Text).label("once"),
    ]
    return sa.select(*columns)
