"""Uploaded files, addressed by their content: ``<root>/sha256/<hex>``."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from store.durable import full_disk_named, locked, sync_folder
from store.errors import NotFound, TooLarge
from store.scratch import Scratch
from store.specs import DIGEST_PATTERN


@dataclass(frozen=True)
class Upload:
    """A file received whole: its ``sha256:<hex>``, its size and where it lies."""

    digest: str
    bytes: int
    path: Path


class UploadWriter:
    """Takes an upload chunk by chunk, hashing as it goes. Made by `UploadStore.receive`."""

    def __init__(
        self, file: BinaryIO, partial: Path, folder: Path, max_bytes: int, field: str
    ) -> None:
        self._file = file
        self._partial = partial
        self._folder = folder
        self._max_bytes = max_bytes
        self._field = field
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._is_new = False

    def write(self, chunk: bytes) -> None:
        """Append ``chunk``.

        Raises:
            TooLarge: as soon as the upload passes its limit; the chunk is not written.
            StorageExhausted: the disk is full.
        """
        if self._bytes + len(chunk) > self._max_bytes:
            raise TooLarge(
                f"The upload is larger than {self._max_bytes:,} bytes.",
                field=self._field,
                remedy="Send a smaller file, or ask the operator to raise the limit.",
            )
        with full_disk_named():
            self._file.write(chunk)
        self._hash.update(chunk)
        self._bytes += len(chunk)

    def finish(self) -> Upload:
        """Return the file as it lies now, unpublished: it is gone when `receive` ends."""
        with full_disk_named():
            self._file.flush()
        return Upload(f"sha256:{self._hash.hexdigest()}", self._bytes, self._partial)

    def commit(self) -> Upload:
        """Keep the upload under its digest and return it. Equal content is kept once."""
        upload = self.finish()
        target = self._folder / self._hash.hexdigest()
        with full_disk_named():
            os.fsync(self._file.fileno())
            with self._committing():
                self._is_new = not target.exists()
                os.replace(self._partial, target)
            sync_folder(self._folder)
        return Upload(upload.digest, upload.bytes, target)

    def withdraw(self) -> None:
        """Undo `commit`, where nobody else has anything of it.

        Content that had been there before stays, and so does what was sent again since.
        """
        target = self._folder / self._hash.hexdigest()
        with self._committing():
            if self._is_new and self._is_own(target):
                target.unlink()
                sync_folder(self._folder)

    def _committing(self) -> AbstractContextManager[None]:
        return locked(self._folder.parent / ".lock")

    def _is_own(self, target: Path) -> bool:
        # A later commit of equal content has put its own file in place of this one.
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), target.stat())
        except FileNotFoundError:
            return False


class UploadStore:
    """Receives files of at most ``max_bytes`` and finds them again by digest."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._folder = root / "sha256"
        self._max_bytes = max_bytes
        self._folder.mkdir(parents=True, exist_ok=True)
        self._scratch = Scratch(root / "tmp")

    @contextmanager
    def receive(
        self, *, max_bytes: int | None = None, field: str = "checkpoint"
    ) -> Iterator[UploadWriter]:
        """Yield a writer; what is not committed when the block ends, or fails, leaves no trace.

        ``max_bytes`` replaces the store's limit; ``field`` is the form field that errors name.
        """
        limit = self._max_bytes if max_bytes is None else max_bytes
        with self._scratch.folder() as folder:
            partial = folder / "upload"
            with open(partial, "wb") as file:
                yield UploadWriter(file, partial, self._folder, limit, field)

    def resolve(self, digest: str) -> Path:
        """Return the path of the upload ``sha256:<hex>``. Raises `NotFound`."""
        if re.fullmatch(DIGEST_PATTERN, digest):
            path = self._folder / digest.removeprefix("sha256:")
            if path.is_file():
                return path
        raise NotFound(
            "There is no upload with this digest.",
            field="spec.checkpoint",
            remedy="Send the checkpoint's file along with the request.",
        )

    def discard(self, digest: str) -> None:
        """Remove an upload that can be of no use to anyone; one that is gone already is fine."""
        with suppress(NotFound):
            self.resolve(digest).unlink(missing_ok=True)
