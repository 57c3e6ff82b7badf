"""What a worker writes down about the job it works on, for those who watch: see `store.job_events`.

Events must never be the reason that a job fails, waits or goes on where it should not. So they are
kept here until they are written, between steps and once a second, after a write of DBOS's own that
has shown whose the job is. A database that does not take them gets them with the next ones.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from dbos._context import get_local_dbos_context
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from store.errors import BitpressError
from store.job_events import PROGRESS_KEPT_S, JobEvents, NewEvent

log = logging.getLogger("worker.job_log")

# What is kept for a database that is away. Progress is not: it is old by then.
_MOST_WAITING = 2_000
# In one statement: SQLite takes 500 rows.
_MOST_AT_ONCE = 200
# A little less than the worker's beat, or every other one would be left out.
_PROGRESS_EVERY_S = 0.9
# Of one step. The search for bits ends long before.
_MOST_NOTED = 5_000


def execution_token() -> str:
    """Return DBOS's token of this very execution of the workflow that calls it.

    The job's row holds it for as long as the job is this execution's. A private call, held by a
    contract test: what is public, the worker's id, would also let those write who lost the job to
    a later execution in the same process.
    """
    context = get_local_dbos_context()
    assert context is not None and context.owner_xid is not None
    return context.owner_xid


class JobLog:
    """The events of one execution of one job."""

    def __init__(
        self, events: JobEvents, job_id: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._events = events
        self._job_id = job_id
        self._clock = clock
        self._owner = ""
        self._waiting: list[NewEvent] = []
        self._noted = 0
        self._due = self._thinned_at = clock()

    def begin(self, started_at: str) -> None:
        """Take note that this execution has begun, inside of the job's workflow."""
        self._owner = execution_token()
        self._guarded(lambda: self._events.open(self._job_id, started_at))
        self._guarded(lambda: self._events.reopen(self._job_id))
        self.add("started", {})

    def add(self, kind: str, data: Mapping[str, Any], once: str | None = None) -> None:
        """Keep an event until the next `write`."""
        self._waiting.append(NewEvent.now(kind, _finite(data), once))

    def begin_step(self) -> None:
        """Count what a step notes from here on."""
        self._noted = 0

    def note(self, details: Mapping[str, Any]) -> None:
        """Keep what a step told of itself: an event, whose kind is the member ``event``.

        A step that is done again after a crash tells the same again, which is written once.
        """
        self._noted += 1
        if self._noted > _MOST_NOTED:
            return
        data = {name: value for name, value in details.items() if name != "event"}
        kind = str(details["event"])
        self.add(kind, data, f"{kind}:{data.get('layer')}:{data.get('sweep')}")

    def progress(self, data: Mapping[str, Any]) -> None:
        """Write how far the job is, but not more than once a second, and whatever waits.

        What a step noted last, and its kind with it, is among ``data``: the kind is left out.
        """
        now = self._clock()
        if now >= self._due:
            self._due = now + _PROGRESS_EVERY_S
            self.add("progress", {name: one for name, one in data.items() if name != "event"})
        self.write()
        if now - self._thinned_at > PROGRESS_KEPT_S / 4:
            self._thinned_at = now
            self._guarded(lambda: self._events.thin_out(self._job_id))

    def write(self) -> None:
        """Write what waits. Where the job is not this execution's any more, forget it."""
        while self._waiting:
            some = self._waiting[:_MOST_AT_ONCE]
            if not self._guarded(partial(self._extend, some)):
                kept = [event for event in self._waiting if event.kind != "progress"]
                self._waiting = kept[-_MOST_WAITING:]
                return
            del self._waiting[: len(some)]

    def _extend(self, events: list[NewEvent]) -> None:
        if not self._events.extend(self._job_id, events, self._owner):
            self._waiting.clear()

    def _guarded(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except IntegrityError:
            # Nothing mends that, and what comes after it must not wait for it.
            log.exception("events dropped", extra={"job": self._job_id})
        except (SQLAlchemyError, BitpressError):
            log.warning("events not written", exc_info=True, extra={"job": self._job_id})
            return False
        return True


def _finite(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` without numbers that JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in data.items()
    }
