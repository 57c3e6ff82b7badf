"""Registered datasets: ``<root>/<name>/``, made from an uploaded archive, never changed after."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from store.archive_members import DatasetLimits
from store.dataset_container import DatasetImage, StoredImages, read_images, write_container
from store.digests import file_digest
from store.durable import sync_folder, write_synced
from store.errors import Conflict, InvalidDataset, NotFound
from store.scratch import Scratch
from store.specs import NAME_PATTERN

__all__ = ["Dataset", "DatasetImage", "DatasetLimits", "DatasetStore", "StoredImages"]

_RECORD = "dataset.json"


@dataclass(frozen=True)
class Dataset:
    """A registered dataset.

    ``digest`` is that of the images and their names, ``archive_digest`` that of the archive's
    file, ``splits`` the number of images of each split (``all`` where there are none), ``bytes``
    the size of all encoded images, ``created_at`` ISO 8601 in UTC.
    """

    name: str
    digest: str
    archive_digest: str
    classes: tuple[str, ...]
    splits: dict[str, int]
    bytes: int
    created_at: str


def _utc_now() -> datetime:
    return datetime.now(UTC)


class DatasetStore:
    """Takes datasets in and gives their images out, from any number of processes at once."""

    def __init__(
        self,
        root: Path,
        limits: DatasetLimits | None = None,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._root = root
        self._limits = limits or DatasetLimits()
        self._now = now
        # A dataset's name never begins with a dot.
        self._scratch = Scratch(root / ".tmp")

    def ingest(self, archive: Path, name: str) -> Dataset:
        """Register the dataset in ``archive`` (zip, tar, tar.gz, tar.xz, tar.bz2) as ``name``.

        A dataset that has this name and the same content already is returned as it is. Whatever
        fails leaves nothing behind; ``archive`` is only read.

        Raises:
            InvalidDataset: the name (field ``name``) or the archive (field ``archive``).
            TooLarge: the archive is over a limit.
            Conflict: another dataset has this name.
            StorageExhausted: the disk is full.
        """
        if not re.fullmatch(NAME_PATTERN, name):
            raise InvalidDataset(
                "This is no dataset name.",
                field="name",
                remedy="Use up to 64 lower-case letters, digits, '.', '_' and '-'.",
            )
        archive_digest = file_digest(archive)
        existing = self._find(name)
        if existing is not None and existing.archive_digest == archive_digest:
            return existing
        with self._scratch.folder() as work:
            container = write_container(archive, work, self._limits)
            dataset = Dataset(
                name=name,
                digest=container.digest,
                archive_digest=archive_digest,
                classes=container.layout.classes,
                splits=container.layout.counts(),
                bytes=container.bytes,
                created_at=self._now().isoformat(timespec="seconds"),
            )
            return self._publish(work, dataset)

    def get(self, name: str) -> Dataset:
        """Return the dataset of this name. Raises `NotFound`."""
        dataset = self._find(name)
        if dataset is None:
            raise NotFound(
                "There is no dataset of this name.",
                field="spec.dataset",
                remedy="Send it to POST /datasets first; GET /datasets lists what there is.",
            )
        return dataset

    def images(self, name: str) -> Iterator[DatasetImage]:
        """Yield a dataset's encoded images, sorted by split, class and name. Raises `NotFound`."""
        self.get(name)
        return read_images(self._root / name)

    def stored_images(self, name: str) -> StoredImages:
        """Return a dataset's encoded images, to be read in any order. Raises `NotFound`."""
        self.get(name)
        return StoredImages(self._root / name)

    def _find(self, name: str) -> Dataset | None:
        if not re.fullmatch(NAME_PATTERN, name):
            return None
        try:
            record = json.loads((self._root / name / _RECORD).read_bytes())
        except FileNotFoundError:
            return None
        del record["schema"]
        return Dataset(**record | {"classes": tuple(record["classes"])})

    def _publish(self, work: Path, dataset: Dataset) -> Dataset:
        record = {"schema": 1, **asdict(dataset)}
        write_synced(work / _RECORD, json.dumps(record, indent=1).encode())
        sync_folder(work)
        try:
            # A folder never replaces one with files in it: of two equal requests one loses here.
            os.rename(work, self._root / dataset.name)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync_folder(self._root)
        published = self.get(dataset.name)
        if published.digest != dataset.digest:
            raise Conflict(
                f"Another dataset is called {dataset.name} already.",
                field="name",
                remedy="Choose another name.",
            )
        return published

    # Last in the class: below it, "list" in an annotation would mean this method.
    def list(self) -> list[Dataset]:
        """Return all datasets, by name."""
        found = (self._find(entry.name) for entry in sorted(self._root.iterdir()))
        return [dataset for dataset in found if dataset is not None]
