"""What is left of deleted versions: their numbers and their jobs, which are never used again.

A version is deleted by one rename, from ``<model>/<version>`` to ``<model>/.deleted/<version>``;
then its files are removed, all but the record. So after a crash there is the whole version or none
of it, and a job that publishes once more is recognised.
"""

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from store.durable import sync_folder
from store.model_version import RECORD, read_json

GRAVES = ".deleted"
_log = logging.getLogger("bitpress.store")


def bury(folder: Path, number: int) -> None:
    """Make the version ``number`` of the model in ``folder`` a deleted one."""
    graves = folder / GRAVES
    graves.mkdir(exist_ok=True)
    grave = graves / str(number)
    if grave.exists():
        # The version came back from a backup after it had been deleted.
        shutil.rmtree(grave)
    os.rename(folder / str(number), grave)
    # First where it is now: what is in neither folder after a power cut would be lost unrecorded.
    sync_folder(graves)
    sync_folder(folder)


def clear_graves(folder: Path) -> None:
    """Remove what deleted versions still take on the disk, except for their records."""
    for grave in _graves(folder):
        with suppress(FileNotFoundError):
            for entry in grave.iterdir():
                if entry.name != RECORD:
                    _remove(entry)


def deleted_numbers(folder: Path) -> set[int]:
    """Return the numbers of the deleted versions of the model in ``folder``."""
    return {int(grave.name) for grave in _graves(folder)}


def deleted_version_of(folder: Path, job_id: str) -> int | None:
    """Return the number of the deleted version that the job had published."""
    for grave in _graves(folder):
        # The record may have been damaged before: then its number is all that is known.
        with suppress(OSError, ValueError, RecursionError, LookupError, TypeError):
            if read_json(grave / RECORD)["job_id"] == job_id:
                return int(grave.name)
    return None


def _graves(folder: Path) -> list[Path]:
    try:
        return [entry for entry in (folder / GRAVES).iterdir() if entry.name.isdecimal()]
    except FileNotFoundError:
        return []


def _remove(entry: Path) -> None:
    try:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    except FileNotFoundError:
        pass  # by another process
    except OSError as error:
        # The version is deleted all the same; the next start tries again.
        _log.warning("deleted version not removed", extra={"error": type(error).__name__})
