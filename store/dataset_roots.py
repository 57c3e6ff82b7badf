"""Datasets in folders of the operator's: indexed and digested, while the images stay in place.

A root is laid out as an archive would be. What is registered is an index: the path, size and time
of change of every image, and a digest of them all, the same that an archive of the folder has. A
file that has changed since, or has gone, is found out when it is read; not one that was given other
content of the same size and then its old time back. (The time of the inode's change would tell, but
a file that was put back as it was has another one too.)

Links are followed where they stay inside the root. The index holds the paths behind them, and no
link is followed any more when images are read, so that nothing outside is ever opened.
"""

import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from store.archive_members import DatasetLimits, Proceed, is_junk, safe_parts, shown
from store.dataset_container import (
    INDEX,
    Container,
    IndexedImages,
    IndexedTexts,
    content_digest,
    open_index,
    write_index,
)
from store.dataset_layout import arrange
from store.durable import sync_file
from store.errors import BitpressError, InvalidDataset, TooLarge, Unavailable
from store.image_kinds import claims_to_be_image, is_image

# One more than the folders and the file of the deepest layout, so that what lies too deep is named.
_DEEPEST = 5
_THREADS = 8
_FILES_AT_ONCE = 256
_HEAD_BYTES = 16
_NOTE_EVERY_S = 30.0
_log = logging.getLogger("bitpress.store")

Parts = tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """An entry below the root: its parts as the layout sees them, and its path without links."""

    parts: Parts
    path: str
    is_folder: bool


@dataclass(frozen=True)
class _Indexed:
    """What the index holds of an image's file, and the SHA-256 of its content."""

    size: int
    mtime_ns: int
    digest: bytes


class RootImages(IndexedImages):
    """The images of a root, read from their files.

    May be read by several threads, and by processes forked from this one, at once.
    """

    def __init__(self, folder: Path, root: Path | None, root_name: str) -> None:
        """Open the index in ``folder``; the images lie below ``root``.

        Raises:
            Unavailable: this process knows no such root.
        """
        if root is None:
            raise Unavailable(
                f"The dataset lies in the root {root_name}, which is not configured here.",
                field="spec.dataset",
                remedy="Ask the operator to give BITPRESS_DATASET_ROOTS to app and workers alike.",
            )
        with open_index(folder) as index:
            super().__init__(index)
            self._bytes, self._mtimes = index["bytes"], index["mtime_ns"]
            self._paths = IndexedTexts(index["paths"])
        self._root, self._root_name = root, root_name

    def size(self, row: int) -> int:
        """Return the size of an image's file in bytes, as it was registered."""
        return int(self._bytes[row])

    def read(self, row: int) -> bytes:
        """Return an image's file. Raises as `head`."""
        return self.head(row, self.size(row))

    def head(self, row: int, most: int) -> bytes:
        """Return the first bytes of an image's file, ``most`` or all.

        Raises:
            InvalidDataset: it has gone, or has changed since the root was registered.
        """
        most = min(most, self.size(row))
        try:
            with open(open_beneath(self._root, self._paths[row]), "rb", buffering=0) as file:
                seen = os.fstat(file.fileno())
                if (seen.st_size, seen.st_mtime_ns) == (self.size(row), int(self._mtimes[row])):
                    data = file.read(most)
                    if len(data) == most:
                        return data
        except OSError as error:
            what = "is gone" if isinstance(error, FileNotFoundError) else "cannot be read"
            raise self._fault(row, what) from None
        raise self._fault(row, "has changed since the root was registered")

    def _fault(self, row: int, what: str) -> InvalidDataset:
        return InvalidDataset(
            f"The file {shown(self._paths[row])} in the root {self._root_name} {what}.",
            field="spec.dataset",
            remedy="Put it back as it was, or delete the dataset and register the root again.",
        )


def write_root_index(
    root: Path, root_name: str, folder: Path, limits: DatasetLimits, proceed: Proceed
) -> Container:
    """Read every image below ``root`` and write the index into ``folder``.

    Of the limits those on entries, classes and single files hold; images may be as many as there
    are, as the operator chose them. ``proceed`` may raise to end it.

    Raises:
        InvalidDataset: the layout, or a file or link in it, is at fault; field ``root``.
        TooLarge: it is over a limit.
    """
    try:
        return _write_index(root.resolve(), root_name, folder, limits, proceed)
    except (InvalidDataset, TooLarge) as error:
        raise type(error)(error.detail, field="root", remedy=error.remedy) from None


def open_beneath(root: Path, path: str) -> int:
    """Open a file below ``root`` for reading, following no link below it. Raises `OSError`."""
    *folders, name = path.split("/")
    place = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            below = os.open(
                folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place
            )
            os.close(place)
            place = below
        # A pipe in the place of the file must not make anybody wait.
        return os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place
        )
    finally:
        os.close(place)


def _write_index(
    root: Path, root_name: str, folder: Path, limits: DatasetLimits, proceed: Proceed
) -> Container:
    files: list[_Found] = []
    folders: list[Parts] = []
    for count, found in enumerate(_entries(root, root, ())):
        proceed()
        if count == limits.max_members:
            raise TooLarge(
                f"The root has more than {limits.max_members:,} entries.",
                remedy="Ask the operator to raise the limit.",
            )
        if found.is_folder:
            folders.append(found.parts)
        else:
            files.append(found)
    layout = arrange([file.parts for file in files], folders, limits.max_classes)
    indexed = list(_indexed(root, root_name, files, limits, proceed))
    order = np.array([image.source for image in layout.images])
    sizes = np.array([file.size for file in indexed], dtype=np.uint64)
    # No name has a control character, so a newline separates the paths without doubt.
    paths = "\n".join(files[source].path for source in order.tolist()).encode()
    write_index(
        folder / INDEX,
        layout,
        bytes=sizes[order],
        mtime_ns=np.array([file.mtime_ns for file in indexed], dtype=np.int64)[order],
        paths=np.frombuffer(paths, dtype=np.uint8),
    )
    sync_file(folder / INDEX)
    digest = content_digest(layout, [file.digest for file in indexed])
    return Container(layout, digest, int(sizes.sum()))


def _entries(root: Path, folder: Path, above: Parts) -> Iterator[_Found]:
    """Yield the folders and image files below ``folder``, whose own path has no links."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        raise _fault("/".join(above) or ".", "cannot be read", _READABLE) from None
    for entry in entries:
        if is_junk((entry.name,)):
            continue
        parts = (*above, *safe_parts(entry.name, "root"))
        path = Path(entry.path)
        if entry.is_symlink():
            path = Path(os.path.realpath(path))
            if not path.is_relative_to(root):
                if path.is_dir() or claims_to_be_image(entry.name):
                    raise _fault("/".join(parts), "is a link out of the root", _INSIDE)
                continue
        if path.is_dir():
            yield _Found(parts, "", True)
            # Bounded, as a link may lead back up.
            if len(parts) < _DEEPEST:
                yield from _entries(root, path, parts)
        elif claims_to_be_image(entry.name):
            yield _Found(parts, path.relative_to(root).as_posix(), False)


_READABLE = "Give the user that runs bitpress leave to read it."
_INSIDE = "Have it point inside the root, or make the folder that it points to the root."


def _indexed(
    root: Path, root_name: str, files: list[_Found], limits: DatasetLimits, proceed: Proceed
) -> Iterator[_Indexed]:
    """Yield what the index holds of each file, in order; several are read at once."""
    noted = time.monotonic()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index") as pool:
        try:
            for start in range(0, len(files), _FILES_AT_ONCE):
                proceed()
                some = files[start : start + _FILES_AT_ONCE]
                yield from pool.map(lambda file: _index_file(root, file, limits), some)
                if time.monotonic() - noted >= _NOTE_EVERY_S:
                    noted = time.monotonic()
                    _log.info(
                        "indexing a root",
                        extra={"root": root_name, "done": start + len(some), "of": len(files)},
                    )
        finally:
            pool.shutdown(cancel_futures=True)


def _index_file(root: Path, found: _Found, limits: DatasetLimits) -> _Indexed:
    name = "/".join(found.parts)
    try:
        with open(open_beneath(root, found.path), "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise _fault(name, "is no plain file", _REPLACE)
            if before.st_size > limits.max_member_bytes:
                raise TooLarge(
                    f"{shown(name)} in the root is larger than {limits.max_member_bytes:,} bytes.",
                    remedy="Leave it out, or ask the operator to raise the limit.",
                )
            if not is_image(name, os.pread(file.fileno(), _HEAD_BYTES, 0)):
                raise _fault(name, "is no image of a kind that bitpress reads", _REPLACE)
            digest = hashlib.file_digest(file, "sha256").digest()
            after = os.fstat(file.fileno())
    except OSError:
        raise _fault(name, "cannot be read", _READABLE) from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise _fault(name, "changed while it was read", "Wait until nobody writes there any more.")
    return _Indexed(before.st_size, before.st_mtime_ns, digest)


_REPLACE = "Replace it by a JPEG, PNG, BMP, WebP, GIF or PPM image, or leave it out."


def _fault(name: str, what: str, remedy: str) -> BitpressError:
    return InvalidDataset(f"{shown(name)} in the root {what}.", remedy=remedy)
