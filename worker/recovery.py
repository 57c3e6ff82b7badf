"""Leases, and the takeover of a dead worker's jobs.

DBOS gives a job to one worker and never takes it away again. So every worker holds a lease that it
renews; a job whose worker has no live lease is put back into the queue by whoever notices. Should
the worker not have been dead but only frozen, DBOS refuses its writes when it wakes up.
"""

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Collection, Sequence

from dbos import DBOS

from store.jobs import WORKFLOW_NAME
from store.leases import WorkerLeases

log = logging.getLogger("worker.recovery")

_JOIN_S = 5.0


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
    """This worker's lease, renewed by a thread of its own.

    A thread of its own, so that nothing slow, a takeover least of all, delays the sign of life.
    """

    def __init__(
        self, leases: WorkerLeases, executor_id: str, *, beat_s: float, ttl_s: float
    ) -> None:
        self._leases = leases
        self._executor_id = executor_id
        self._ttl_s = ttl_s
        self._beat = _Repeat("lease", beat_s, self._renew)

    def take(self) -> None:
        """Take the lease, now, and keep it. Before DBOS is launched, or its first job might be
        taken over from a worker that has not yet shown itself."""
        self._renew()
        self._beat.start()

    def release(self) -> None:
        """Give it up: what this worker left is free at once. After DBOS was destroyed."""
        self._beat.stop()
        self._leases.release(self._executor_id)

    def _renew(self) -> None:
        self._leases.renew(
            self._executor_id, host=socket.gethostname(), pid=os.getpid(), ttl_s=self._ttl_s
        )


class Reaper:
    """Takes over the jobs of dead workers, looking for them every ``every_s`` seconds."""

    def __init__(
        self,
        leases: WorkerLeases,
        executor_id: str,
        *,
        every_s: float,
        owners: Callable[[], Collection[str]] = owners_of_running_jobs,
        requeue: Callable[[Sequence[str]], list[str]] = requeue_jobs_of,
    ) -> None:
        self._leases = leases
        self._executor_id = executor_id
        self._owners = owners
        self._requeue = requeue
        self._look = _Repeat("reaper", every_s, self.look)

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
        owners = self._owners()
        live = self._leases.live()
        if self._executor_id not in live:
            # The database was away, and nobody could renew. Let everybody do so first.
            return []
        self._leases.forget_expired()
        dead = sorted(set(owners) - live)
        jobs = self._requeue(dead) if dead else []
        for job in jobs:
            log.warning("job taken over", extra={"job": job, "dead_workers": dead})
        return jobs


class _Repeat:
    """A daemon thread that does one thing again and again, and survives its failures."""

    def __init__(self, name: str, every_s: float, action: Callable[[], object]) -> None:
        self._name = name
        self._every_s = every_s
        self._action = action
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._at_once = False

    def start(self, *, at_once: bool = False) -> None:
        self._at_once = at_once
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        if self._at_once:
            self._attempt()
        while not self._stop.wait(self._every_s):
            self._attempt()

    def _attempt(self) -> None:
        try:
            self._action()
        except Exception:
            # The database may be away for a while; it is tried again at the next turn.
            log.exception("%s failed", self._name)
