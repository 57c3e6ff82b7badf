"""Reading an untrusted zip archive, member by member."""

import errno
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from store.archive_members import Member, Meter, broken, safe_parts, shown, too_large

_CHUNK = 256 * 1024
_ENTRY = b"PK\x01\x02"
_LOCAL = b"PK\x03\x04"
# Fixed part, name and extra field of an entry in the directory: generous for every honest one.
_MEAN_ENTRY_BYTES = 256
_ENCRYPTED = 0x1
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_PLAIN_KINDS = frozenset({0, stat.S_IFREG, stat.S_IFDIR})


def zip_members(path: Path, meter: Meter) -> Iterator[Member]:
    """Yield the files and folders of a zip archive, in the order of its directory.

    Raises:
        InvalidDataset: damaged, truncated, encrypted, of an unknown compression, a link, a device,
            an unsafe path.
        TooLarge: over a limit of ``meter``.
    """
    with open_zip(path, meter) as members:
        yield from members


@contextmanager
def open_zip(path: Path, meter: Meter) -> Iterator[Iterator[Member]]:
    """Yield the members of a zip archive, which may be read in any order within the block.

    Raises as `zip_members` does.
    """
    with _BoundedDirectory(path, meter) as file:
        with _damage_named():
            archive = zipfile.ZipFile(file)
        yield _members(archive, meter)


def first_name(path: Path) -> bytes:
    """Return the name of the entry that the file begins with, cut to 300 bytes; else nothing."""
    with open(path, "rb") as file:
        head = file.read(330)
    if not head.startswith(_LOCAL) or len(head) < 30:
        return b""
    return head[30 : 30 + int.from_bytes(head[26:28], "little")]


def _members(archive: zipfile.ZipFile, meter: Meter) -> Iterator[Member]:
    for info in archive.infolist():
        meter.count_member()
        yield _member(archive, info, meter)


class _BoundedDirectory(io.BufferedReader):
    """The file as `zipfile` sees it, which reads a directory of any size into memory at once."""

    def __init__(self, path: Path, meter: Meter) -> None:
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size
        self._meter = meter

    def read(self, size: int | None = -1, /) -> bytes:
        limit = self._meter.limits.max_members
        most = limit * _MEAN_ENTRY_BYTES + _CHUNK
        wanted = most + 1 if size is None or size < 0 else min(size, most + 1)
        # As much is allocated at once as is asked for, so no more than there can be.
        data = super().read(min(wanted, max(self._size - self.tell(), 0)))
        if len(data) > most or (data.startswith(_ENTRY) and data.count(_ENTRY) > limit):
            raise too_large(f"The archive has more than {limit:,} entries.")
        return data


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, meter: Meter) -> Member:
    # `filename` ends at a zero byte; the refusal is for what the archive really says.
    name = info.orig_filename
    parts = safe_parts(name)
    if stat.S_IFMT(info.external_attr >> 16) not in _PLAIN_KINDS:
        raise broken(
            f"{shown(name)} in the archive is a link or a device.",
            "Pack plain files and folders only.",
        )
    if info.is_dir():
        return Member(parts, True, bytes)
    if info.flag_bits & _ENCRYPTED:
        raise broken(f"{shown(name)} in the archive is encrypted.", "Pack it without a password.")
    if info.compress_type not in _METHODS:
        raise broken(
            f"{shown(name)} in the archive is compressed in a way that bitpress does not read.",
            "Pack it with plain deflate, or send a tar archive.",
        )
    pieces = partial(_pieces, archive, info, meter)
    return Member(parts, False, partial(_read, info, meter, pieces), info.file_size, pieces)


def _read(info: zipfile.ZipInfo, meter: Meter, pieces: Callable[[], Iterator[bytes]]) -> bytes:
    # What comes out is never more than what is declared, so that this bounds both.
    meter.check_member_size(info.orig_filename, info.file_size)
    return b"".join(pieces())


def _pieces(archive: zipfile.ZipFile, info: zipfile.ZipInfo, meter: Meter) -> Iterator[bytes]:
    size = 0
    with _damage_named(info.orig_filename):
        file = archive.open(info)
    with file:
        while True:
            with _damage_named(info.orig_filename):
                piece = file.read(_CHUNK)
                size += len(piece)
                if size > info.file_size or (not piece and size != info.file_size):
                    raise zipfile.BadZipFile
            if not piece:
                return
            meter.count_bytes(len(piece))
            yield piece


@contextmanager
def _damage_named(member: str | None = None) -> Iterator[None]:
    """Turn what `zipfile` raises for hostile or damaged files into `InvalidDataset`."""
    subject = "The archive" if member is None else f"{shown(member)} in the archive"
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        ValueError,
        OverflowError,
        # Strong encryption, split archives, versions that zipfile does not know.
        RuntimeError,
    ):
        raise broken(f"{subject} is damaged or truncated.") from None
    except OSError as error:
        # A place before the file's beginning, computed from a directory that lies.
        if error.errno != errno.EINVAL:
            raise
        raise broken(f"{subject} is damaged or truncated.") from None
