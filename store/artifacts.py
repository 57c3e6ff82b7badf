"""Published models: ``<root>/<name>/<version>/`` with the artifact and what was measured.

A version is published by one rename and never changes after. ``version.json`` records the job that
made it, so a publication repeated after a crash finds the version instead of making another.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from store.durable import locked, sync_file, sync_folder, write_synced
from store.errors import InvalidSpec, NotFound
from store.scratch import Scratch
from store.specs import NAME_PATTERN

ARTIFACT = "artifact.safetensors"
REPORT = "report.json"
PREDICTIONS = "predictions.json"
_RECORD = "version.json"
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


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

    @cached_property
    def report(self) -> dict[str, Any]:
        """The job's report, read at first use."""
        return _read_json(self.path / REPORT)

    @cached_property
    def predictions(self) -> dict[str, Any]:
        """Each test image's class and margin, read at first use."""
        return _read_json(self.path / PREDICTIONS)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class ModelStore:
    """Publishes and resolves model versions, from any number of processes at once."""

    def __init__(self, root: Path, now: Callable[[], datetime] = _utc_now) -> None:
        self._root = root
        self._now = now
        # A model's name never begins with a dot: neither folder nor lock can meet one.
        self._scratch = Scratch(root / ".tmp")

    def publish(self, staged: Path, name: str, job_id: str) -> ModelVersion:
        """Publish a copy of ``staged`` as the next version of ``name``.

        ``staged`` holds ``artifact.safetensors``, ``report.json`` and ``predictions.json`` and is
        left as it is; it may be gone already where ``job_id`` has been published before, whose
        version is then returned. The published report's ``model`` member is set to the name and
        the version, which nobody can know earlier.

        Raises:
            InvalidSpec: ``name`` is no model name.
            StorageExhausted: the disk is full; nothing was published.
        """
        if not re.fullmatch(NAME_PATTERN, name):
            raise InvalidSpec(
                "This is no model name.",
                field="spec.name",
                remedy="Use up to 64 lower-case letters, digits, '.', '_' and '-'.",
            )
        # Held from the look-up to the rename: two processes with one job must not both publish.
        with self._scratch.folder() as work, locked(self._root / ".lock"):
            published = self._version_of_job(name, job_id)
            if published is not None:
                return published
            return self._publish_next(staged, work, name, job_id)

    def resolve(self, name: str, version: int | None = None) -> ModelVersion:
        """Return the given version of a model, or its latest. Raises `NotFound`."""
        numbers = self._numbers(name)
        if not numbers:
            raise NotFound(
                "There is no model of this name.",
                field="model",
                remedy="GET /models lists the models.",
            )
        number = numbers[-1] if version is None else version
        if number not in numbers:
            raise NotFound(
                f"The model {name} has no version {version}.",
                field="version",
                remedy="Use one of: " + ", ".join(str(known) for known in numbers[-20:]),
            )
        return self._read(name, number)

    def versions(self, name: str) -> list[ModelVersion]:
        """Return the versions of a model, oldest first; none where there is no such model."""
        return [self._read(name, number) for number in self._numbers(name)]

    def _numbers(self, name: str) -> list[int]:
        folder = self._root / name
        if not re.fullmatch(NAME_PATTERN, name) or not folder.is_dir():
            return []
        return sorted(int(e.name) for e in folder.iterdir() if _VERSION.fullmatch(e.name))

    def _read(self, name: str, number: int) -> ModelVersion:
        path = self._root / name / str(number)
        record = _read_json(path / _RECORD)
        return ModelVersion(
            name=name,
            version=number,
            job_id=record["job_id"],
            digest=record["digest"],
            artifact_bytes=record["artifact_bytes"],
            created_at=record["created_at"],
            path=path,
        )

    def _version_of_job(self, name: str, job_id: str) -> ModelVersion | None:
        return next((v for v in reversed(self.versions(name)) if v.job_id == job_id), None)

    def _publish_next(self, staged: Path, work: Path, name: str, job_id: str) -> ModelVersion:
        folder = self._root / name
        number = max(self._numbers(name), default=0) + 1
        for file in (ARTIFACT, PREDICTIONS):
            shutil.copyfile(staged / file, work / file)
            sync_file(work / file)
        report = _read_json(staged / REPORT) | {"model": {"name": name, "version": number}}
        write_synced(work / REPORT, _json_bytes(report))
        record = {
            "schema": 1,
            "job_id": job_id,
            "digest": _sha256(work / ARTIFACT),
            "artifact_bytes": (work / ARTIFACT).stat().st_size,
            "created_at": self._now().isoformat(timespec="seconds"),
        }
        write_synced(work / _RECORD, _json_bytes(record))
        sync_folder(work)
        folder.mkdir(exist_ok=True)
        sync_folder(self._root)
        os.rename(work, folder / str(number))
        sync_folder(folder)
        return self._read(name, number)

    # Last in the class: below it, "list" in an annotation would mean this method.
    def list(self) -> list[ModelVersion]:
        """Return the latest version of every model, by name."""
        names = sorted(entry.name for entry in self._root.iterdir())
        return [self._read(name, n[-1]) for name in names if (n := self._numbers(name))]


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def _json_bytes(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
