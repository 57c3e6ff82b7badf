"""Registered datasets: ``<root>/<name>/``, never changed after they were registered.

``dataset.json`` says what a dataset is (`store.dataset_record`). Beside it lies a container with
the images of an uploaded archive (`store.dataset_container`), or the index of a folder of the
operator's (`store.dataset_roots`).

A dataset whose files are damaged is no reason to lose the others: it is logged and left out
wherever it was not asked for by its name, and it can be deleted.
"""

import errno
import logging
import os
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

from store.archive_members import DatasetLimits, Proceed
from store.dataset_archives import Source, write_container
from store.dataset_container import INDEX, Container, StoredImages
from store.dataset_record import Dataset, damaged, read_record, write_record
from store.dataset_roots import RootImages, write_root_index
from store.digests import file_digest
from store.durable import locked, sync_folder
from store.errors import Conflict, InvalidDataset, NotFound, Unavailable
from store.scratch import Scratch
from store.settings import StoreSettings
from store.specs import NAME_PATTERN

__all__ = [
    "Dataset",
    "DatasetImage",
    "DatasetLimits",
    "DatasetStore",
    "Registered",
    "StoredImages",
]

# For another change of the store; the longest asks the database who uses a dataset.
PATIENCE_S = 10.0
_LOCK = ".lock"
_log = logging.getLogger("bitpress.store")
# What numpy raises for an index that is cut off, or is something else.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class Registered(NamedTuple):
    """A dataset, and whether this call registered it; else it was there, with the same content."""

    dataset: Dataset
    is_new: bool


@dataclass(frozen=True)
class DatasetImage:
    """One encoded image. ``name`` is its path below the dataset's top folder."""

    split: str
    label: int
    name: str
    data: bytes


def _utc_now() -> datetime:
    return datetime.now(UTC)


class DatasetStore:
    """Takes datasets in and gives their images out, from any number of processes at once."""

    def __init__(
        self,
        root: Path,
        limits: DatasetLimits | None = None,
        now: Callable[[], datetime] = _utc_now,
        roots: Mapping[str, Path] | None = None,
    ) -> None:
        self._root = root
        self._limits = limits or DatasetLimits()
        self._now = now
        self._roots = dict(roots or {})
        # A dataset's name never begins with a dot.
        self._scratch = Scratch(root / ".tmp")

    @classmethod
    def of(cls, settings: StoreSettings) -> Self:
        """Return the store that the settings describe."""
        return cls(
            settings.datasets_dir, settings.dataset_limits, roots=settings.dataset_root_folders
        )

    def ingest(self, archive: Path, name: str, proceed: Proceed = lambda: None) -> Registered:
        """Register the dataset in ``archive`` as ``name``.

        The archive is a zip, tar, tar.gz, tar.xz or tar.bz2 with images in folders or with the
        files of CIFAR, or an npz. A dataset that has this name and the same content already is
        returned as it is. Whatever fails leaves nothing behind; ``archive`` is only read.
        ``proceed`` is called again and again, and may raise to end it.

        Raises:
            InvalidDataset: the name (field ``name``) or the archive (field ``archive``).
            TooLarge: the archive is over a limit.
            Conflict: another dataset has this name.
            Unavailable: a dataset of this name is there, and damaged.
            StorageExhausted: the disk is full.
        """
        _check_name(name)
        archive_digest = file_digest(archive)
        existing = self._find(name)
        if existing is not None and existing.archive_digest == archive_digest:
            return Registered(existing, False)
        with self._scratch.folder() as work:
            container, source = write_container(archive, work, self._limits, proceed)
            dataset = self._described(name, container, source, archive_digest=archive_digest)
            return self._publish(work, dataset)

    def register_root(self, name: str, root: str, proceed: Proceed = lambda: None) -> Registered:
        """Register the operator's folder ``root`` as ``name``; its images stay where they are.

        A dataset that has this name and root already is returned as it is, the folder unread.

        Raises:
            InvalidDataset: the name (field ``name``), or the root or what lies in it (``root``).
            TooLarge: it is over a limit.
            Conflict: another dataset has this name.
            Unavailable: a dataset of this name is there, and damaged.
            StorageExhausted: the disk is full.
        """
        _check_name(name)
        folder = self._roots.get(root)
        if folder is None:
            known = ", ".join(sorted(self._roots))
            raise InvalidDataset(
                "There is no root of this name.",
                field="root",
                remedy=f"Use one of: {known}."
                if known
                else "Ask the operator to configure one with BITPRESS_DATASET_ROOTS.",
            )
        existing = self._find(name)
        if existing is not None:
            if existing.root == root:
                return Registered(existing, False)
            raise _taken(name)
        with self._scratch.folder() as work:
            container = write_root_index(folder, root, work, self._limits, proceed)
            return self._publish(work, self._described(name, container, "root", root=root))

    def delete(self, name: str, users: Callable[[], Iterable[str]]) -> None:
        """Remove a dataset, damaged or not; who reads its images goes on.

        ``users`` gives the unfinished jobs that need it. Nobody can begin to use it meanwhile (see
        `in_use`). After a crash it is there whole, or gone.

        Raises:
            NotFound: there is no such dataset.
            Conflict: it is in use.
        """
        with self._scratch.folder() as work, self._locked():
            if not self._has(name):
                raise _missing()
            jobs = sorted(users())
            if jobs:
                raise Conflict(
                    f"The dataset {name} is used by {_counted(jobs)} not finished yet.",
                    field="name",
                    remedy=_wait_for(jobs),
                )
            os.rename(self._root / name, work / name)
            sync_folder(self._root)

    @contextmanager
    def in_use(self, name: str) -> Iterator[Dataset]:
        """Return the dataset, which is not deleted within the block. Raises as `get`."""
        with self._locked(shared=True):
            yield self.get(name)

    def get(self, name: str) -> Dataset:
        """Return the dataset of this name.

        Raises:
            NotFound: there is none.
            Unavailable: its record is missing or damaged.
        """
        dataset = self._find(name)
        if dataset is None:
            raise _missing()
        return dataset

    def images(self, name: str) -> Iterator[DatasetImage]:
        """Yield a dataset's encoded images, by split, label and name.

        Raises as `stored_images`.
        """
        stored = self.stored_images(name)
        return (
            DatasetImage(
                stored.split(row), int(stored.labels[row]), stored.name(row), stored.read(row)
            )
            for row in range(len(stored))
        )

    def stored_images(self, name: str) -> StoredImages | RootImages:
        """Return a dataset's encoded images, to be read in any order.

        Raises:
            NotFound: there is no such dataset.
            Unavailable: it lies in a root that is not configured here, or its files are damaged.
        """
        dataset = self.get(name)
        try:
            if dataset.root is None:
                return StoredImages(self._root / name)
            return RootImages(self._root / name, self._roots.get(dataset.root), dataset.root)
        except _DAMAGE:
            # It may have been deleted since the line before.
            raise damaged(name, INDEX) if self._has(name) else _missing() from None

    def _described(
        self,
        name: str,
        container: Container,
        source: Source,
        *,
        archive_digest: str | None = None,
        root: str | None = None,
    ) -> Dataset:
        return Dataset(
            name=name,
            digest=container.digest,
            archive_digest=archive_digest,
            classes=container.layout.classes,
            splits=container.layout.counts(),
            bytes=container.bytes,
            created_at=self._now().isoformat(timespec="seconds"),
            source=source,
            root=root,
        )

    def _locked(self, *, shared: bool = False) -> AbstractContextManager[None]:
        given_up_at = time.monotonic() + PATIENCE_S

        def patiently() -> None:
            if time.monotonic() > given_up_at:
                raise Unavailable(
                    "Another process has been changing the datasets, and does not end.",
                    remedy="Try again in a moment; if it persists, ask the operator to look for a "
                    "process of bitpress that is stopped or hangs.",
                )

        return locked(self._root / _LOCK, shared=shared, waiting=patiently)

    def _has(self, name: str) -> bool:
        return re.fullmatch(NAME_PATTERN, name) is not None and (self._root / name).is_dir()

    def _find(self, name: str) -> Dataset | None:
        """Return the dataset of this name, if any. Raises `Unavailable` where it is damaged."""
        return read_record(self._root / name) if re.fullmatch(NAME_PATTERN, name) else None

    def _publish(self, work: Path, dataset: Dataset) -> Registered:
        write_record(work, dataset)
        sync_folder(work)
        is_new = True
        with self._locked(shared=True):
            try:
                # A folder never replaces one with files in it: of two equal requests one loses.
                os.rename(work, self._root / dataset.name)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                is_new = False
            sync_folder(self._root)
            published = self.get(dataset.name)
        if (published.digest, published.root) != (dataset.digest, dataset.root):
            raise _taken(dataset.name)
        return Registered(published, is_new)

    def _sound(self, names: Iterable[str]) -> Iterator[Dataset]:
        for name in names:
            try:
                dataset = self._find(name)
            except Unavailable as fault:
                _log.warning("dataset left out", extra={"dataset": name, "fault": fault.detail})
            else:
                if dataset is not None:
                    yield dataset

    # Last in the class: below it, "list" in an annotation would mean this method.
    def list(self, *, after: str | None = None, limit: int | None = None) -> list[Dataset]:
        """Return datasets by name: all, or the first ``limit`` of those behind ``after``.

        What is damaged is left out.
        """
        names = sorted(entry.name for entry in self._root.iterdir())
        sound = self._sound(name for name in names if after is None or name > after)
        return list(islice(sound, limit))


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidDataset(
            "This is no dataset name.",
            field="name",
            remedy="Use up to 64 lower-case letters, digits, '.', '_' and '-'.",
        )


def _missing() -> NotFound:
    return NotFound(
        "There is no dataset of this name.",
        field="spec.dataset",
        remedy="Send it to POST /datasets first; GET /datasets lists what there is.",
    )


def _taken(name: str) -> Conflict:
    return Conflict(
        f"Another dataset is called {name} already.", field="name", remedy="Choose another name."
    )


def _counted(jobs: list[str]) -> str:
    shown = ", ".join(jobs[:3])
    return f"the job {shown}" if len(jobs) == 1 else f"{len(jobs):,} jobs, among them {shown},"


def _wait_for(jobs: list[str]) -> str:
    whose, which = ("its", "it") if len(jobs) == 1 else ("their", "them")
    return f"Wait for {whose} end, or cancel {which}, then delete the dataset."
