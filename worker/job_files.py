"""The files that a job's steps leave for one another, below ``<data_dir>/jobs/<job id>/``.

A step records its files by path relative to the data directory and SHA-256, so that a later step,
in another process or on another machine with the same volume, takes nothing damaged or foreign.
"""

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from store.digests import file_digest
from store.durable import full_disk_named, sync_file, sync_folder
from store.errors import JobCrashed

_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_TEMPORARY = ".tmp"

# The folder, among a job's files, of what is to be published.
STAGED = "staged"


@dataclass(frozen=True)
class FileRef:
    """A file by ``path``, relative to the data directory, and ``digest`` ``sha256:<hex>``."""

    path: str
    digest: str

    def to_json(self) -> dict[str, str]:
        """Return the reference as a step records it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "FileRef":
        """Return the reference that ``to_json`` gave."""
        return cls(path=str(data["path"]), digest=str(data["digest"]))


class JobFiles:
    """Writes and checks the files of one job."""

    def __init__(self, data_dir: Path, job_id: str) -> None:
        if not _SAFE_ID.fullmatch(job_id):
            raise ValueError("a job's id must be fit for a folder's name")
        self._data_dir = data_dir
        self.folder = data_dir / "jobs" / job_id
        self._checked: set[FileRef] = set()

    def write(self, name: str, fill: Callable[[Path], None]) -> FileRef:
        """Have ``fill`` write a file at the path it is given, then put it in place as ``name``.

        Either the whole file is there, safe on the disk, or nothing. Raises `StorageExhausted`.
        """
        target = self.folder / name
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}{_TEMPORARY}")
        with full_disk_named():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                fill(temporary)
                sync_file(temporary)
                digest = file_digest(temporary)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(target.parent)
        ref = FileRef(target.relative_to(self._data_dir).as_posix(), digest)
        self._checked.add(ref)
        return ref

    def resolve(self, ref: FileRef) -> Path:
        """Return where the file lies, after checking its digest once per process.

        A damaged file is removed, so that the step that made it is done again when the job is
        tried again.

        Raises:
            JobCrashed: the file is missing, damaged or not of this job.
        """
        # Without "..", by which a path below the folder could lead out of it.
        path = Path(os.path.normpath(self._data_dir / ref.path))
        if ref in self._checked:
            return path
        if not path.is_relative_to(self.folder) or not path.is_file():
            raise _lost(ref, "missing")
        if file_digest(path) != ref.digest:
            path.unlink(missing_ok=True)
            raise _lost(ref, "damaged")
        self._checked.add(ref)
        return path

    def temporary(self) -> list[Path]:
        """Return what interrupted writes have left, and those under way."""
        # Walked through rather than searched for: it may be removed at this moment.
        return [
            Path(folder, name)
            for folder, _, names in os.walk(self.folder)
            for name in names
            if name.startswith(".") and name.endswith(_TEMPORARY)
        ]

    def remove(self, temporary: Iterable[Path]) -> None:
        """Remove files that `temporary` has found, before it was checked whose the job is.

        In this order: a worker that was frozen in between, and whose job has passed to another,
        does not remove what that one is writing.
        """
        for path in temporary:
            path.unlink(missing_ok=True)

    def keep_only(self, *names: str) -> None:
        """Remove everything but the files ``names``; the folder too where there are none."""
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if path.name in names:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if not names:
            shutil.rmtree(self.folder, ignore_errors=True)


def _lost(ref: FileRef, fault: str) -> JobCrashed:
    return JobCrashed(
        f"A file that an earlier step of the job left is {fault}: {Path(ref.path).name}.",
        remedy="Check the disk of the data directory, then try again with POST /jobs/{id}/retry.",
    )
