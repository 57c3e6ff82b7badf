"""Published models: ``<root>/<name>/<version>/`` with the artifact and what was measured.

A version is published by one rename and never changes after. ``version.json`` records the job that
made it, so a publication repeated after a crash finds the version instead of making another.

A version whose ``version.json`` is missing or damaged is no reason to lose the others: it is logged
and passed over wherever it was not asked for by its number. Its number is not given again.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from store.digests import file_digest
from store.durable import locked, sync_file, sync_folder, write_synced
from store.errors import InvalidSpec, NotFound, Unavailable
from store.scratch import Scratch
from store.specs import NAME_PATTERN

ARTIFACT = "artifact.safetensors"
REPORT = "report.json"
PREDICTIONS = "predictions.json"
_RECORD = "version.json"
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_log = logging.getLogger("bitpress.store")


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
        """The job's report, read at first use. Raises `Unavailable` where it is damaged."""
        return _read_intact(self.path / REPORT, self.name, self.version)

    @cached_property
    def predictions(self) -> dict[str, Any]:
        """Each test image's class and margin, read at first use. Raises as `report` does."""
        return _read_intact(self.path / PREDICTIONS, self.name, self.version)


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
        """Return the given version of a model, or its latest.

        Raises:
            NotFound: there is no such model or version.
            Unavailable: the version's record is damaged, or that of all versions.
        """
        numbers = self._numbers(name)
        if not numbers:
            raise NotFound(
                "There is no model of this name.",
                field="model",
                remedy="GET /models lists the models.",
            )
        if version is None:
            return next(self._readable(name, reversed(numbers)))
        if version not in numbers:
            raise NotFound(
                f"The model {name} has no version {version}.",
                field="version",
                remedy="Use one of: " + ", ".join(str(known) for known in numbers[-20:]),
            )
        return self._read(name, version)

    def versions(self, name: str) -> list[ModelVersion]:
        """Return the versions of a model, oldest first; none where there is no such model.

        Raises:
            Unavailable: there are versions, but the records of all of them are damaged.
        """
        return [*self._readable(name, self._numbers(name))]

    def _numbers(self, name: str) -> list[int]:
        folder = self._root / name
        if not re.fullmatch(NAME_PATTERN, name) or not folder.is_dir():
            return []
        return sorted(int(e.name) for e in folder.iterdir() if _VERSION.fullmatch(e.name))

    def _read(self, name: str, number: int) -> ModelVersion:
        path = self._root / name / str(number)
        record = _read_intact(path / _RECORD, name, number)
        try:
            return ModelVersion(
                name=name,
                version=number,
                job_id=record["job_id"],
                digest=record["digest"],
                artifact_bytes=record["artifact_bytes"],
                created_at=record["created_at"],
                path=path,
            )
        except KeyError:
            raise _damaged(_RECORD, name, number) from None

    def _readable(self, name: str, numbers: Iterable[int]) -> Iterator[ModelVersion]:
        """Yield those of the versions that can be read. Raises `Unavailable` where none can."""
        found = False
        fault: Unavailable | None = None
        for number in numbers:
            try:
                version = self._read(name, number)
            except Unavailable as error:
                fault = error
                _log.warning(
                    "model version left out",
                    extra={"model": name, "version": number, "fault": error.detail},
                )
            else:
                found = True
                yield version
        if fault is not None and not found:
            raise fault

    def _version_of_job(self, name: str, job_id: str) -> ModelVersion | None:
        try:
            versions = self.versions(name)
        except Unavailable:
            return None
        return next((v for v in reversed(versions) if v.job_id == job_id), None)

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
            "digest": file_digest(work / ARTIFACT),
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
        latest: list[ModelVersion] = []
        for name in sorted(entry.name for entry in self._root.iterdir()):
            # What stands in the way of a model is logged where its versions are read.
            with suppress(Unavailable):
                latest.extend(islice(self._readable(name, reversed(self._numbers(name))), 1))
        return latest


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def _read_intact(path: Path, name: str, version: int) -> dict[str, Any]:
    """Read a file of a published version. Raises `Unavailable` where that cannot be done."""
    try:
        content = _read_json(path)
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


def _json_bytes(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode()
