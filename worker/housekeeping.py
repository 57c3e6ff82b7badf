"""What dead workers and deleted jobs have left on the disk, found and removed.

A worker clears up after its own jobs. But it may be killed, and its job be cancelled before another
takes it over; or it was frozen while its job was deleted. So every worker looks through the data
directory now and then, and removes what nobody can need: never what a job has that runs, waits or
may be tried again.
"""

import logging
import time
from pathlib import Path

import sqlalchemy as sa

from store.artifacts import REPORT
from store.dataset_cache import remove_orphans
from store.datasets import DatasetStore
from store.job_folders import is_folder_name, remove_folder, remove_leftovers
from store.job_record import WORKFLOW_STATES
from store.job_rows import JobRows
from store.jobs import WORKFLOW_NAME
from store.leases import WorkerLeases
from store.scratch import Scratch
from worker.job_files import JobFiles
from worker.repeating import Repeating
from worker.settings import WorkerSettings

log = logging.getLogger("worker.housekeeping")

# Younger folders of unknown jobs may be of a worker that was frozen and is about to notice.
_UNKNOWN_FOR_S = 3600.0

# A worker that lives removes its job's half files within seconds, unless something keeps it.
_LETTING_GO_S = 180.0

_JOBS_AT_ONCE = 500


def clear_dead(rows: JobRows, files: JobFiles) -> str:
    """Remove the temporary files of a job that has been cancelled or deleted; say which.

    Of a deleted job everything goes. Of one that was taken over, or put back into the queue,
    nothing does: its next run removes what this one has left.
    """
    # Found before the status is read. Then they are of runs that are over, even if somebody has the
    # job tried again, and another worker writes new ones, while these are being removed.
    found = files.temporary()
    status = rows.statuses([files.folder.name]).get(files.folder.name)
    if status is None:
        files.keep_only()
        return "deleted"
    if status[0] != "CANCELLED":
        return "passed on"
    files.remove(found)
    return "cancelled"


def sweep_cache(cache_dir: Path) -> None:
    """Remove datasets that were being decoded by a process that is dead."""
    scratch = cache_dir / ".tmp"
    if scratch.is_dir():
        # Looking into it is what sweeps it.
        Scratch(scratch)


class Housekeeping:
    """Looks through the data directory at once, and then every ``every_s`` seconds."""

    def __init__(self, settings: WorkerSettings, engine: sa.Engine, *, every_s: float) -> None:
        self._settings = settings
        self._rows = JobRows(engine, WORKFLOW_NAME)
        self._leases = WorkerLeases(engine)
        self._turn = Repeating("housekeeping", every_s, self.tidy)

    def start(self) -> None:
        """Begin. After the worker's lease was taken."""
        self._turn.start(at_once=True)

    def stop(self) -> None:
        """End it, before the database is closed."""
        self._turn.stop()

    def tidy(self) -> None:
        """Remove, once, whatever nobody can need any more."""
        self._tidy_cache()
        jobs_dir = self._settings.jobs_dir
        if not jobs_dir.is_dir():
            return
        remove_leftovers(jobs_dir)
        ids = sorted(path.name for path in jobs_dir.iterdir() if is_folder_name(path.name))
        for start in range(0, len(ids), _JOBS_AT_ONCE):
            self._tidy_jobs(ids[start : start + _JOBS_AT_ONCE])

    def _tidy_cache(self) -> None:
        cache_dir = self._settings.cache_dir
        sweep_cache(cache_dir)
        if cache_dir.is_dir():
            removed = remove_orphans(cache_dir, DatasetStore.of(self._settings))
            if removed:
                log.info("cache of deleted datasets removed", extra={"entries": removed})

    def _tidy_jobs(self, ids: list[str]) -> None:
        # In this order, as `clear_dead` explains: files, then their jobs.
        files = {job: JobFiles(self._settings.data_dir, job) for job in ids}
        temporary = {job: found.temporary() for job, found in files.items()}
        statuses = self._rows.statuses(ids)
        live = self._leases.live()
        for job, paths in temporary.items():
            status, executor = statuses.get(job, (None, None))
            if status is None:
                self._tidy_unknown(job)
            elif paths and WORKFLOW_STATES[status] not in ("queued", "running"):
                # A worker that lives clears up itself, and may be about to.
                left = [
                    path for path in paths if executor not in live or _age_s(path) > _LETTING_GO_S
                ]
                files[job].remove(left)
                if left:
                    log.info("temporary files removed", extra={"job": job, "files": len(left)})

    def _tidy_unknown(self, job: str) -> None:
        """Remove what a frozen worker wrote for a job that was deleted meanwhile.

        A report stays: should the database be lost, it is all that tells of the job.
        """
        folder = self._settings.jobs_dir / job
        if _age_s(folder) > _UNKNOWN_FOR_S and not (folder / REPORT).exists():
            remove_folder(self._settings.jobs_dir, job)
            log.info("files of an unknown job removed", extra={"job": job})


def _age_s(path: Path) -> float:
    """Return the seconds since ``path`` was changed, 0 where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
