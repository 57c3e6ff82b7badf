"""One published version of a model: a folder with the artifact, what was measured, and a record.

``version.json`` is the record: the job that made the version, the artifact's digest and size.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from store.errors import NotFound, Unavailable

ARTIFACT = "artifact.safetensors"
REPORT = "report.json"
PREDICTIONS = "predictions.json"
RECORD = "version.json"

_MEMBERS = {"job_id": str, "digest": str, "artifact_bytes": int, "created_at": str}


@dataclass(frozen=True)
class ModelVersion:
    """One published version of a model. ``path`` is its folder; ``created_at`` is ISO 8601, UTC."""

    name: str
    version: int
    job_id: str
    digest: str
    artifact_bytes: int
    created_at: str
    path: Path

    @property
    def artifact_path(self) -> Path:
        """The artifact's file."""
        return self.path / ARTIFACT

    @property
    def exists(self) -> bool:
        """Whether the version is still there: it may be deleted at any time, by any process."""
        return self.path.is_dir()

    @cached_property
    def report(self) -> dict[str, Any]:
        """The job's report, read at first use.

        Raises:
            NotFound: the version has been deleted meanwhile.
            Unavailable: the report is missing or damaged.
        """
        return self._read(REPORT)

    @cached_property
    def predictions(self) -> dict[str, Any]:
        """Each test image's class and margin, read at first use. Raises as `report` does."""
        return self._read(PREDICTIONS)

    def deleted(self) -> NotFound:
        """Return the error for a version that was there and is not any more."""
        return NotFound(
            f"Version {self.version} of {self.name} has been deleted.",
            field="version",
            remedy="Use another version.",
        )

    def _read(self, file: str) -> dict[str, Any]:
        try:
            return _read_intact(self.path / file, self.name, self.version)
        except Unavailable:
            if self.exists:
                raise
            raise self.deleted() from None


def read_version(folder: Path, name: str, number: int) -> ModelVersion | None:
    """Return the version ``number`` of the model in ``folder``; `None` where there is none.

    Raises:
        Unavailable: its record is missing or damaged.
    """
    path = folder / str(number)
    try:
        record = _read_intact(path / RECORD, name, number)
        if any(type(record.get(member)) is not kind for member, kind in _MEMBERS.items()):
            raise _damaged(RECORD, name, number)
        return ModelVersion(
            name=name,
            version=number,
            job_id=record["job_id"],
            digest=record["digest"],
            artifact_bytes=record["artifact_bytes"],
            created_at=record["created_at"],
            path=path,
        )
    except Unavailable:
        # Asked only now: a version that is deleted between two questions is no damaged one.
        if path.is_dir():
            raise
        return None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON document of a file. Raises `OSError` and `ValueError`."""
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def json_bytes(content: dict[str, Any]) -> bytes:
    """Return what the store writes for ``content``."""
    return json.dumps(content, indent=1, allow_nan=False).encode()


def _read_intact(path: Path, name: str, version: int) -> dict[str, Any]:
    """Read a file of a published version. Raises `Unavailable` where that cannot be done."""
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError):
        raise _damaged(path.name, name, version) from None
    if not isinstance(content, dict):
        raise _damaged(path.name, name, version)
    return content


def _damaged(file: str, name: str, version: int) -> Unavailable:
    return Unavailable(
        f"{file} of {name}, version {version}, is missing or damaged.",
        field="version",
        remedy="Use another version, or compress the model again.",
    )
