"""What a worker tells of itself with every beat: its job, how that gets on, its memory.

Read from ``/proc``, which costs well below a millisecond; elsewhere the memory is not told.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Deep enough for a stage, torchrun's processes below it and their readers of images.
_MOST_PROCESSES = 4096


@dataclass(frozen=True)
class _Work:
    job_id: str
    began: float
    stage: str | None = None
    step: str | None = None
    seen: tuple[object, ...] = ()
    progressed: float = 0.0


class Vitals:
    """What the worker is doing. Written by the thread of its job, read by that of its lease.

    Both sides exchange one immutable value, so that neither waits for the other.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._work: _Work | None = None

    @contextmanager
    def working(self, job_id: str) -> Iterator[None]:
        """Be at work on a job for as long as the block lasts."""
        now = self._clock()
        self._work = work = _Work(job_id, began=now, progressed=now)
        try:
            yield
        finally:
            # A run that lost its job may end long after the next one has begun.
            if self._work is not None and self._work.began == work.began:
                self._work = None

    def progressed(self, stage: str, step: str | None, fraction: float, message: str) -> None:
        """Note how far the job is. Progress is what differs from what was noted before."""
        work = self._work
        if work is None:
            return
        seen = (stage, step, fraction, message)
        if seen != work.seen:
            self._work = replace(work, stage=stage, step=step, seen=seen, progressed=self._clock())

    def figures(self) -> dict[str, Any]:
        """Return the members of the worker's row.

        ``job``, ``stage`` and ``step`` are null while it is idle, as is ``progress_age_s``, the
        seconds since its job last got on; ``memory_bytes`` and ``stage_memory_bytes`` are resident
        memory, of this process and of all below it.
        """
        work = self._work
        own, below = resident_memory(os.getpid())
        return {
            "job": work and work.job_id,
            "stage": work and work.stage,
            "step": work and work.step,
            "progress_age_s": None if work is None else round(self._clock() - work.progressed, 3),
            "memory_bytes": own,
            "stage_memory_bytes": below,
        }


def resident_memory(pid: int) -> tuple[int | None, int | None]:
    """Return the resident bytes of a process, and of its descendants together."""
    own = _resident_bytes(pid)
    if own is None:
        return None, None
    found, known = 0, {pid}
    waiting = _children(pid)
    while waiting and len(known) < _MOST_PROCESSES:
        child = waiting.pop()
        if child in known:
            continue
        known.add(child)
        # One that has just ended has no memory any more.
        found += _resident_bytes(child) or 0
        waiting += _children(child)
    return own, found


def _resident_bytes(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return None


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    except (OSError, ValueError):
        # The process or one of its threads has just ended.
        pass
    return found
