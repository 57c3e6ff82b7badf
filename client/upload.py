"""Local files and folders as uploads: read in chunks from disk, counted, never held in memory.

A folder travels as a tar stream made on the fly. It holds nothing but sorted names, sizes and
contents, so that an unchanged folder always gives the same bytes and hence the same digest: that
is how an upload is skipped when the service has the archive already.
"""

import hashlib
import io
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from client.errors import UnusableFile
from client.exchange import Part

Progress = Callable[[int, int], None]
"""Called with the bytes sent so far and the bytes in all."""

CHUNK_BYTES = 1 << 18
ARCHIVE_SUFFIXES = (".tar.gz", ".tar.xz", ".tar.bz2", ".tgz", ".txz", ".tar", ".zip", ".npz")


@dataclass(frozen=True)
class Upload:
    """Bytes to send: ``filename`` as the service sees it, ``length`` in bytes, ``chunks`` anew."""

    filename: str
    length: int
    chunks: Callable[[], Iterator[bytes]]

    def digest(self) -> str:
        """Return ``sha256:<hex>`` of the bytes, reading them once."""
        hashed = hashlib.sha256()
        for chunk in self.chunks():
            hashed.update(chunk)
        return f"sha256:{hashed.hexdigest()}"

    def open(self, progress: Progress | None = None) -> BinaryIO:
        """Return the bytes as a readable stream that tells ``progress`` what was read of it."""
        return io.BufferedReader(_ChunkStream(self, progress), CHUNK_BYTES)

    def part(self, name: str, progress: Progress | None = None) -> Part:
        """Return the bytes as the file ``name`` of a multipart form."""
        return Part(name, self.filename, lambda: self.open(progress))


def file_upload(path: Path) -> Upload:
    """Return the file as it is.

    Raises:
        UnusableFile: where there is no readable file, or it is empty.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise UnusableFile(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UnusableFile(f"{path} is not a file")
    if found.st_size == 0:
        raise UnusableFile(f"{path} is empty")
    return Upload(path.name, found.st_size, lambda: _file_chunks(path, found.st_size))


def dataset_upload(path: Path) -> Upload:
    """Return an archive as it is, a folder as a tar stream of the files in it.

    Hidden files and folders stay behind; links are followed, so that the archive has none.

    Raises:
        UnusableFile: where there is nothing readable at ``path``, or nothing in it.
    """
    if not path.is_dir():
        return file_upload(path)
    members = list(_members(path))
    if not members:
        raise UnusableFile(f"{path} holds no files")
    length = sum(len(member.header) + _padded(member.size) for member in members)
    return Upload(
        path.resolve().name + ".tar", length + len(_TAR_END), lambda: _tar_chunks(members)
    )


def dataset_name(path: Path) -> str:
    """Return the name under which ``path`` is registered: its own, without the suffix.

    Letters become small, and what a name may not hold becomes ``-``.
    """
    name = path.resolve().name.lower()
    for suffix in ARCHIVE_SUFFIXES:
        if name.endswith(suffix) and len(name) > len(suffix):
            name = name.removesuffix(suffix)
            break
    name = re.sub(r"[^a-z0-9._-]+", "-", name).lstrip("._-")[:64]
    return name or "dataset"


class _ChunkStream(io.RawIOBase):
    """A chunk iterator as a raw stream that can be measured and rewound, as httpx needs it."""

    def __init__(self, upload: Upload, progress: Progress | None) -> None:
        self._upload = upload
        self._progress = progress
        self._rewind()

    def _rewind(self) -> None:
        self._chunks: Iterator[bytes] | None = None
        self._rest = memoryview(b"")
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if (offset, whence) == (0, os.SEEK_END):
            # Only asked for the length; what follows is a seek back to the start.
            self._position = self._upload.length
        elif (offset, whence) == (0, os.SEEK_SET):
            self._rewind()
        elif (offset, whence) != (0, os.SEEK_CUR):
            raise io.UnsupportedOperation("an upload is read from its start to its end")
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed: Buffer
        if self._chunks is None:
            self._chunks = self._upload.chunks()
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._position += count
        if self._progress is not None:
            self._progress(self._position, self._upload.length)
        return count


def _file_chunks(path: Path, size: int) -> Iterator[bytes]:
    """Yield exactly ``size`` bytes: what was announced must be what is sent."""
    left = size
    try:
        with path.open("rb") as file:
            while left and (chunk := file.read(min(left, CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk
            grown = bool(file.read(1))
    except OSError as error:
        raise UnusableFile(f"{path}: {error.strerror}") from None
    if left or grown:
        raise UnusableFile(f"{path} changed while it was read")


@dataclass(frozen=True)
class _Member:
    path: Path
    header: bytes
    size: int


_TAR_END = bytes(2 * tarfile.BLOCKSIZE)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _members(folder: Path) -> Iterator[_Member]:
    def fail(error: OSError) -> None:
        raise UnusableFile(f"{error.filename}: {error.strerror}")

    entered: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        here = os.stat(root)
        if (here.st_dev, here.st_ino) in entered:
            raise UnusableFile(f"{root} is reached twice, through a link")
        entered.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield _member(Path(root, name), folder)


def _member(path: Path, folder: Path) -> _Member:
    try:
        found = path.stat()
        entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
        entry.size = found.st_size
        header = entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
    except OSError as error:
        raise UnusableFile(f"{path}: {error.strerror}") from None
    except UnicodeError:
        raise UnusableFile(f"{os.fsencode(path)!r} is not a name in UTF-8") from None
    if not stat.S_ISREG(found.st_mode):
        raise UnusableFile(f"{path} is not a file")
    return _Member(path, header, found.st_size)


def _tar_chunks(members: list[_Member]) -> Iterator[bytes]:
    for member in members:
        yield member.header
        yield from _file_chunks(member.path, member.size)
        yield bytes(_padded(member.size) - member.size)
    yield _TAR_END
