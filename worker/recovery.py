"""Leases, and the takeover of a dead worker's jobs.

DBOS gives a job to one worker and never takes it away again. So every worker holds a lease that it
renews; a job whose worker has no live lease is put back into the queue by whoever notices. Should
the worker not have been dead but only frozen, DBOS refuses its writes when it wakes up.
"""

import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence

from dbos import DBOS

from store.jobs import WORKFLOW_NAME
from store.leases import WorkerLeases
from worker.repeating import Repeating
from worker.vitals import Vitals

log = logging.getLogger("worker.recovery")


def new_executor_id() -> str:
    """Return an id for this start of the worker: never the same twice, so never mistaken."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def owners_of_running_jobs() -> frozenset[str]:
    """Return the executor ids of all jobs that are being worked on."""
    running = DBOS.list_workflows(
        status="PENDING", name=WORKFLOW_NAME, load_input=False, load_output=False
    )
    return frozenset(status.executor_id for status in running if status.executor_id)


def requeue_jobs_of(executor_ids: Sequence[str]) -> list[str]:
    """Put the running jobs of these dead workers back into the queue; return the jobs' ids.

    The one use of a private call of DBOS, held by a contract test: the public way to it is its
    commercial conductor. Harmless when two workers do it at once, or when it is repeated.
    """
    handles = DBOS._recover_pending_workflows(list(executor_ids))
    return [handle.get_workflow_id() for handle in handles]


class Lease:
    """This worker's lease, renewed by a thread of its own, with its ``vitals``.

    A thread of its own, so that nothing slow, a takeover least of all, delays the sign of life.
    """

    def __init__(
        self,
        leases: WorkerLeases,
        executor_id: str,
        *,
        beat_s: float,
        ttl_s: float,
        vitals: Vitals | None = None,
    ) -> None:
        self._leases = leases
        self._executor_id = executor_id
        self._ttl_s = ttl_s
        self._vitals = vitals or Vitals()
        self._released = threading.Event()
        self._beat = Repeating("lease", beat_s, self._renew)

    def take(self) -> None:
        """Take the lease, now, and keep it. Before DBOS is launched, or its first job might be
        taken over from a worker that has not yet shown itself."""
        self._renew()
        self._beat.start()

    def release(self) -> None:
        """Give it up: what this worker left is free at once. After DBOS was destroyed."""
        self._released.set()
        self._beat.stop()
        self._leases.release(self._executor_id)

    def _renew(self) -> None:
        if self._released.is_set():
            return
        self._leases.renew(
            self._executor_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            ttl_s=self._ttl_s,
            figures=self._vitals.figures(),
        )
        if self._released.is_set():
            # This beat was under way for long, and has taken up again what was given up.
            self._leases.release(self._executor_id)


class Reaper:
    """Takes over the jobs of dead workers, looking for them every ``every_s`` seconds.

    Nobody is taken for dead for ``ttl_s`` seconds, the lifetime of a lease, after the database was
    away or this worker was frozen: others may be about to renew theirs.
    """

    def __init__(
        self,
        leases: WorkerLeases,
        executor_id: str,
        *,
        every_s: float,
        ttl_s: float,
        owners: Callable[[], Collection[str]] = owners_of_running_jobs,
        requeue: Callable[[Sequence[str]], list[str]] = requeue_jobs_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._executor_id = executor_id
        self._owners = owners
        self._requeue = requeue
        self._ttl_s = ttl_s
        self._clock = clock
        # None before the first look: at its start a worker believes what it reads.
        self._looked_at: float | None = None
        self._patient_until = -math.inf
        self._look = Repeating("reaper", every_s, self.look)

    def start(self) -> None:
        """Look for dead workers now and from now on. After DBOS was launched."""
        self._look.start(at_once=True)

    def stop(self) -> None:
        """Stop looking. Before DBOS is destroyed."""
        self._look.stop()

    def look(self) -> list[str]:
        """Take over what dead workers left; return the ids of the jobs."""
        # Owners before leases: who owns a job had a lease before. The other way round, a worker
        # that starts between the two reads would seem dead.
        began = self._clock()
        try:
            owners = self._owners()
            live = self._leases.live()
        except Exception:
            self._looked_at = -math.inf
            raise
        if not self._may_judge(began, is_live=self._executor_id in live):
            return []
        self._leases.forget_expired()
        dead = sorted(set(owners) - live)
        jobs = self._requeue(dead) if dead else []
        for job in jobs:
            # Dead, or stopped: a worker that stops leaves its job to the next one in this way.
            log.warning("job taken over", extra={"job": job, "left_by": dead})
        return jobs

    def _may_judge(self, began: float, *, is_live: bool) -> bool:
        """Whether a look that began at ``began`` tells who is dead.

        Where this worker's own lease is not live, or may have run out since the last look, nobody
        could renew. Its being live now means only that this worker was the first to do so.
        """
        now, before = self._clock(), self._looked_at
        self._looked_at = now
        away = before is not None and now - before > self._ttl_s
        if away or not is_live or now - began > self._ttl_s:
            self._patient_until = now + self._ttl_s
        return now >= self._patient_until
