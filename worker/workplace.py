"""What a worker runs its jobs with."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import exc

from store.figures import StageFigures
from store.job_events import JobEvents
from store.job_record import iso_time
from store.job_rows import JobRows
from store.verdicts import Verdicts
from worker.settings import WorkerSettings
from worker.stage_process import WorkerStopping
from worker.vitals import Vitals

log = logging.getLogger("worker.workplace")

# Between two attempts while the database is away.
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0

# Of PostgreSQL, which ends a transaction in which nothing happens: the worker was frozen.
_ENDED_IDLE = "25P03"

Result = TypeVar("Result")


@dataclass(frozen=True)
class Workplace:
    """The worker ``executor_id``, which runs jobs until ``stop`` is set.

    The stages' bodies are found at ``stages``; what it is doing it tells ``vitals``.
    """

    settings: WorkerSettings
    executor_id: str
    stop: threading.Event
    stages: Mapping[str, str]
    vitals: Vitals
    figures: StageFigures
    verdicts: Verdicts
    events: JobEvents
    rows: JobRows

    def owns(self, job_id: str, owner: str) -> bool:
        """Whether the job is still that of the execution ``owner``, as far as can be told.

        Raises:
            WorkerStopping: the worker is being stopped while the database is away.
        """
        try:
            return self.patiently(lambda: self.verdicts.owns(job_id, owner))
        except exc.SQLAlchemyError:
            # DBOS will know: it records no failure of a job that is another's.
            return True

    def patiently(self, action: Callable[[], Result]) -> Result:
        """Return what ``action`` gives, which is tried again while the database is away.

        As DBOS does it with what it writes itself: a job does not fail because of that.

        Raises:
            WorkerStopping: the worker is being stopped meanwhile.
        """
        wait_s = _SHORTEST_WAIT_S
        while True:
            try:
                return action()
            except exc.SQLAlchemyError as error:
                if not _is_away(error):
                    raise
                log.warning("database away", exc_info=error)
            if self.stop.wait(wait_s):
                raise WorkerStopping
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _is_away(error: exc.SQLAlchemyError) -> bool:
    if isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError):
        return True
    return isinstance(error, exc.DBAPIError) and (
        error.connection_invalidated or getattr(error.orig, "sqlstate", None) == _ENDED_IDLE
    )


def iso_now(later_s: float = 0.0) -> str:
    """Return this moment, or one ``later_s`` seconds later, as ISO 8601 in UTC."""
    return iso_time(time.time_ns() // 1_000_000 + round(later_s * 1000)) or ""
