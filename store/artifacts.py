"""Published models: ``<root>/<name>/<version>/`` with the artifact and what was measured.

A version is published by one rename and never changes after; by one rename it is deleted. Its
record names the job that made it, so a publication repeated after a crash finds the version, or
that it has been deleted, instead of making another. Aliases are names that point to versions.

Publications, deletions and changes of aliases exclude each other, in all processes. Whoever comes
second waits, though not for ever: the first may be frozen. Readers take no lock
(`store.published_models`).
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from store.aliases import ALIASES, check_alias, read_aliases, unknown_alias, write_aliases
from store.digests import file_digest
from store.durable import full_disk_named, locked, sync_file, sync_folder, write_synced
from store.errors import Conflict, InvalidSpec, Unavailable
from store.model_version import (
    ARTIFACT,
    PREDICTIONS,
    RECORD,
    REPORT,
    ModelVersion,
    json_bytes,
    read_json,
)
from store.published_models import PublishedModels
from store.scratch import Scratch
from store.specs import NAME_PATTERN
from store.tombstones import GRAVES, bury, clear_graves, deleted_numbers, deleted_version_of

__all__ = ["ARTIFACT", "PREDICTIONS", "REPORT", "ModelStore", "ModelVersion"]

_log = logging.getLogger("bitpress.store")

# For another change of the store, which only renames and writes small files.
PATIENCE_S = 10.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class ModelStore(PublishedModels):
    """Publishes, names, resolves and deletes model versions, from any number of processes.

    Every change raises `Unavailable` after ``patience_s`` seconds in which another process was at
    one and did not end it.
    """

    def __init__(
        self,
        root: Path,
        now: Callable[[], datetime] = _utc_now,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        super().__init__(root)
        self._now = now
        self._patience_s = patience_s
        # A model's name never begins with a dot: neither folder nor lock can meet one.
        self._scratch = Scratch(root / ".tmp")
        for name in self._names():
            clear_graves(root / name)

    def publish(
        self,
        staged: Path,
        name: str,
        job_id: str,
        waiting: Callable[[], object] | None = None,
    ) -> ModelVersion:
        """Publish a copy of ``staged`` as the next version of ``name``.

        ``staged`` holds ``artifact.safetensors``, ``report.json`` and ``predictions.json`` and is
        left as it is; it may be gone already where ``job_id`` has been published before, whose
        version is then returned. The published report's ``model`` member is set to the name and
        the version, which nobody can know earlier. ``waiting``, where given, is called again and
        again while another process changes the store, and takes the place of the usual patience:
        whatever it raises ends the waiting.

        Raises:
            InvalidSpec: ``name`` is no model name.
            Conflict: the version that ``job_id`` had published has been deleted.
            StorageExhausted: the disk is full; nothing was published.
        """
        if not re.fullmatch(NAME_PATTERN, name):
            raise InvalidSpec(
                "This is no model name.",
                field="spec.name",
                remedy="Use up to 64 lower-case letters, digits, '.', '_' and '-'.",
            )
        published = self._version_of_job(name, job_id)
        if published is not None:
            return published
        with self._scratch.folder() as work:
            # The long part, which nobody has to wait for.
            staging = _copied(staged, work)
            # Held from the look-up to the rename: two processes with one job must not both publish.
            with self._alone(waiting):
                published = self._version_of_job(name, job_id)
                if published is not None:
                    return published
                if staging is None:
                    raise FileNotFoundError("nothing is staged, and nothing was published")
                return self._publish_next(staging, work, name, job_id)

    def set_alias(self, name: str, alias: str, version: int) -> bool:
        """Let ``alias`` point to a version from now on; return whether it is a new alias.

        Damaged aliases are replaced by this one.

        Raises:
            InvalidInput: this can be no alias, or there are too many.
            NotFound: there is no such model or version.
            Unavailable: the version's record is damaged.
            StorageExhausted: the disk is full; nothing was changed.
        """
        check_alias(alias)
        with self._scratch.folder() as work, self._alone():
            if self._read(name, version) is None:
                raise self._unknown(name, version)
            folder = self._root / name
            aliases: dict[str, int] = {}
            try:
                aliases = read_aliases(folder, name)
            except Unavailable as fault:
                _log.warning("aliases replaced", extra={"model": name, "fault": fault.detail})
            if aliases.get(alias) != version:
                write_aliases(folder, work, {**aliases, alias: version})
            return alias not in aliases

    def remove_alias(self, name: str, alias: str) -> None:
        """Remove an alias; the version that it points to stays.

        Raises:
            NotFound: there is no such model or alias.
            Unavailable: the aliases are damaged.
            StorageExhausted: the disk is full; nothing was changed.
        """
        with self._scratch.folder() as work, self._alone():
            aliases = self.aliases(name)
            if alias not in aliases:
                raise unknown_alias(name, alias, aliases, "alias")
            del aliases[alias]
            write_aliases(self._root / name, work, aliases)

    def delete(self, name: str, version: int) -> None:
        """Delete a version for good: neither its number nor its job is ever used again.

        Raises:
            NotFound: there is no such model or version.
            Conflict: an alias points to it.
            Unavailable: the aliases are damaged, so that nobody knows.
        """
        with self._alone():
            if version not in self.numbers(name):
                raise self._unknown(name, version)
            pointing = [alias for alias, to in self.aliases(name).items() if to == version]
            if pointing:
                raise Conflict(
                    f"Version {version} of {name} has aliases: {', '.join(pointing)}.",
                    field="version",
                    remedy="Point them to another version, or delete them, then try again.",
                )
            bury(self._root / name, version)
        clear_graves(self._root / name)

    def delete_model(self, name: str) -> None:
        """Delete all versions of a model, each as `delete` does, the oldest first.

        Raises:
            NotFound: there is no such model.
            Conflict: it has aliases.
            Unavailable: the aliases are damaged, so that nobody knows.
        """
        folder = self._root / name
        with self._alone():
            aliases = self.aliases(name)
            if aliases:
                raise Conflict(
                    f"The model {name} has aliases: {', '.join(aliases)}.",
                    field="name",
                    remedy="Delete its aliases, then try again.",
                )
            (folder / ALIASES).unlink(missing_ok=True)
            for number in self.numbers(name):
                bury(folder, number)
        clear_graves(folder)

    def has_nothing_of(self, name: str, job_id: str) -> bool:
        """Whether it is certain that the job has never published a version of ``name``.

        Where a record cannot be read, nothing is certain.
        """
        try:
            found = [self._read(name, number) for number in self.numbers(name)]
            buried = deleted_version_of(self._root / name, job_id)
        except (Unavailable, OSError):
            return False
        # Of one that is deleted in this moment nobody knows.
        others = all(version is not None and version.job_id != job_id for version in found)
        return others and buried is None

    @contextmanager
    def _alone(self, waiting: Callable[[], object] | None = None) -> Iterator[None]:
        """Exclude every other change of the store, and name a full disk."""
        given_up_at = time.monotonic() + self._patience_s

        def patiently() -> None:
            if time.monotonic() > given_up_at:
                raise Unavailable(
                    "Another process has been changing the models, and does not end.",
                    remedy="Try again in a moment; if it persists, ask the operator to look for a "
                    "process of bitpress that is stopped or hangs.",
                )

        with locked(self._root / ".lock", waiting=waiting or patiently), full_disk_named():
            yield

    def _version_of_job(self, name: str, job_id: str) -> ModelVersion | None:
        # A damaged record hides whose version it is; such a one was never whole, or was tampered
        # with, and the job is free to publish again.
        with suppress(Unavailable):
            for version in self.versions(name):
                if version.job_id == job_id:
                    return version
        deleted = deleted_version_of(self._root / name, job_id)
        if deleted is not None:
            raise Conflict(
                f"The version that this job had published, {deleted} of {name}, has been deleted.",
                remedy="Submit a new job with POST /compress to publish the model again; a retry "
                "of this one would end the same way.",
            )
        return None

    def _publish_next(
        self, staging: "_Staging", work: Path, name: str, job_id: str
    ) -> ModelVersion:
        folder = self._root / name
        number = max((*self.taken(name), *deleted_numbers(folder)), default=0) + 1
        report = staging.report | {"model": {"name": name, "version": number}}
        write_synced(work / REPORT, json_bytes(report))
        record = {
            "schema": 1,
            "job_id": job_id,
            "digest": staging.digest,
            "artifact_bytes": staging.artifact_bytes,
            "created_at": self._now().isoformat(timespec="seconds"),
        }
        write_synced(work / RECORD, json_bytes(record))
        sync_folder(work)
        try:
            # The graves too, so that a version can be deleted when the disk is full.
            (folder / GRAVES).mkdir(parents=True, exist_ok=True)
            sync_folder(self._root)
            os.rename(work, folder / str(number))
        except OSError:
            if not self.numbers(name):
                # Only what is empty goes: not where a version has been deleted.
                for empty in (folder / GRAVES, folder):
                    with suppress(OSError):
                        empty.rmdir()
            raise
        sync_folder(folder)
        published = self._read(name, number)
        assert published is not None
        return published


@dataclass(frozen=True)
class _Staging:
    """What was staged of a model, and copied: its report, and what its record says of the rest."""

    report: dict[str, Any]
    digest: str
    artifact_bytes: int


def _copied(staged: Path, work: Path) -> _Staging | None:
    """Copy artifact and predictions, and make them durable. None: they are gone."""
    artifact = work / ARTIFACT
    try:
        with full_disk_named():
            for file in (ARTIFACT, PREDICTIONS):
                shutil.copyfile(staged / file, work / file)
                sync_file(work / file)
        report = read_json(staged / REPORT)
    except FileNotFoundError:
        return None
    return _Staging(report, file_digest(artifact), artifact.stat().st_size)
