"""Reading an untrusted zip archive, member by member."""

import errno
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from store.archive_members import Member, Meter, broken, safe_parts, shown, too_large

_CHUNK = 256 * 1024
_ENTRY = b"PK\x01\x02"
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
    with _BoundedDirectory(path, meter) as file:
        with _damage_named():
            archive = zipfile.ZipFile(file)
        for info in archive.infolist():
            meter.count_member()
            yield _member(archive, info, meter)


class _BoundedDirectory(io.BufferedReader):
    """The file as `zipfile` sees it, which reads a directory of any size into memory at once."""

    def __init__(self, path: Path, meter: Meter) -> None:
        super().__init__(io.FileIO(path))
        self._meter = meter

    def read(self, size: int | None = -1, /) -> bytes:
        limit = self._meter.limits.max_members
        most = limit * _MEAN_ENTRY_BYTES + _CHUNK
        data = super().read(most + 1 if size is None or size < 0 else min(size, most + 1))
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
    meter.check_member_size(name, info.file_size)
    return Member(parts, False, partial(_read, archive, info, meter))


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, meter: Meter) -> bytes:
    pieces = []
    size = 0
    with _damage_named(info.orig_filename):
        with archive.open(info) as file:
            while piece := file.read(_CHUNK):
                size += len(piece)
                meter.count_bytes(len(piece))
                meter.check_member_size(info.orig_filename, size)
                pieces.append(piece)
        if size != info.file_size:
            raise zipfile.BadZipFile
    return b"".join(pieces)


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
