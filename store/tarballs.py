"""Reading an untrusted tar stream in one pass, front to back.

`tarfile` decodes the header blocks; the walk over them is our own because `tarfile` takes a
damaged header in the middle for the end of the archive, reads extended headers of any size into
memory and remembers every member it has seen.
"""

import bz2
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from store.archive_members import Member, Meter, broken, safe_parts, shown

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 256 * 1024
# Of the compressed file.
_PIECE = 64 * 1024
# Parallel compressors write a stream for every few hundred kilobytes.
_FREE_STREAMS, _LEAST_STREAM_BYTES = 4096, 4096
_MAX_EXTENSION_BYTES = 1024 * 1024
_MAX_EXTENSIONS = 8
# xz -9 needs 65 MiB; a hostile header may ask for 4 GiB.
_XZ_MEMORY_BYTES = 256 * 1024 * 1024

_FILES = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
_PAX = frozenset({tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE})
_EXTENSIONS = _PAX | {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE}
_REFUSED = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def tar_members(path: Path, meter: Meter) -> Iterator[Member]:
    """Yield the files and folders of a tar archive, plain or with gzip, xz or bzip2.

    Raises:
        InvalidDataset: damaged, truncated, no tar archive at all, a link, a device, an unsafe path.
        TooLarge: over a limit of ``meter``.
    """
    with open(path, "rb", buffering=_CHUNK) as file:
        stream = _Stream(_unpacked(file, meter), meter)
        yield from _walk(stream, meter)
        stream.drain()


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _unpacked(file: BinaryIO, meter: Meter) -> _Readable:
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return _Streams(file, meter, _Gzip)
    if magic == b"\xfd7zXZ\x00":
        # `lzma.LZMAFile` has no memory limit.
        decoder = partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
        return _Streams(file, meter, decoder)
    if magic.startswith(b"BZh"):
        return _Streams(file, meter, bz2.BZ2Decompressor)
    return file


class _Decoder(Protocol):
    """Decodes one compressed stream; the interface of `lzma` and `bz2`."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """`zlib` with the interface of the others; checks the header and the checksum."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


class _Streams:
    """One compressed stream, or several in a row, with zero bytes between as padding.

    What yields nothing is read in bounded pieces too, and not without end: a stream of no content
    takes 20 bytes, and an archive may have 400 million of them.
    """

    def __init__(self, file: BinaryIO, meter: Meter, decoder: Callable[[], _Decoder]) -> None:
        self._file = file
        self._meter = meter
        self._new_decoder = decoder
        self._decoder: _Decoder | None = None
        self._pending = b""
        self._streams = 0
        self._bytes = 0

    def read(self, size: int, /) -> bytes:
        """Return at least one and at most ``size`` bytes, none at the end."""
        while True:
            if self._decoder is None:
                self._pending = self._pending.lstrip(b"\0") or self._next_piece()
                if not self._pending:
                    return b""
                if not self._pending.startswith(b"\0"):
                    self._begin_stream()
                continue
            if self._decoder.needs_input and not self._pending:
                self._pending = self._next_piece()
                if not self._pending:
                    raise EOFError
            data = self._decoder.decompress(self._pending, size)
            self._pending = b""
            if self._decoder.eof:
                self._pending, self._decoder = self._decoder.unused_data, None
            if data:
                self._bytes += len(data)
                return data

    def _next_piece(self) -> bytes:
        self._meter.proceed()
        return self._file.read(_PIECE)

    def _begin_stream(self) -> None:
        self._streams += 1
        if self._streams > _FREE_STREAMS + self._bytes // _LEAST_STREAM_BYTES:
            raise broken("The archive is made of too many compressed streams with hardly anything.")
        self._decoder = self._new_decoder()


class _Stream:
    """Exact reads from an unpacked stream, every byte counted."""

    def __init__(self, source: _Readable, meter: Meter) -> None:
        self._source = source
        self._meter = meter

    def _read(self, size: int) -> bytes:
        try:
            data = self._source.read(size)
        except EOFError:
            raise broken("The archive is truncated.") from None
        except (zlib.error, lzma.LZMAError):
            raise broken("The archive's compression is damaged.") from None
        except OSError as error:
            # bz2 reports damage as an OSError without a number.
            if error.errno is None:
                raise broken("The archive's compression is damaged.") from None
            raise
        self._meter.count_bytes(len(data))
        return data

    def up_to(self, size: int) -> bytes:
        """Return ``size`` bytes, or fewer where the stream ends."""
        pieces = []
        while size:
            piece = self._read(min(size, _CHUNK))
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def exactly(self, size: int) -> bytes:
        data = self.up_to(size)
        if len(data) < size:
            raise broken("The archive is truncated.")
        return data

    def skip(self, size: int) -> None:
        while size:
            piece = self._read(min(size, _CHUNK))
            if not piece:
                raise broken("The archive is truncated.")
            size -= len(piece)

    def drain(self) -> None:
        """Read to the end, where the compression's checksum is."""
        while self._read(_CHUNK):
            pass


class _Body:
    """The content of one member, which may be read once, or in part, or not at all."""

    def __init__(self, stream: _Stream, size: int) -> None:
        self._stream = stream
        self._size = size
        self._padding = -size % _BLOCK

    def read(self) -> bytes:
        size, self._size = self._size, 0
        return self._stream.exactly(size)

    def pieces(self) -> Iterator[bytes]:
        while self._size:
            piece = self._stream.exactly(min(self._size, _CHUNK))
            self._size -= len(piece)
            yield piece

    def skip(self) -> None:
        self._stream.skip(self._size + self._padding)


def _walk(stream: _Stream, meter: Meter) -> Iterator[Member]:
    first = True
    name: str | None = None
    size: int | None = None
    extensions = 0
    while True:
        header = _header(stream.up_to(_BLOCK), first)
        first = False
        if header is None:
            return
        if header.size < 0:
            raise broken(f"The size of {shown(header.name)} in the archive is negative.")
        if header.type in _EXTENSIONS:
            extensions += 1
            if extensions > _MAX_EXTENSIONS or header.size > _MAX_EXTENSION_BYTES:
                raise broken("The archive has excessive extended headers.")
            body = _Body(stream, header.size)
            content = body.read()
            body.skip()
            if header.type == tarfile.GNUTYPE_LONGNAME:
                name = _text(content.rstrip(b"\0"))
            elif header.type in _PAX:
                records = _pax_records(content)
                name, size = _pax_overrides(records, name, size)
            continue
        meter.count_member()
        name = header.name if name is None else name
        size = header.size if size is None else size
        if header.type in _REFUSED:
            raise broken(
                f"{shown(name)} in the archive is {_REFUSED[header.type]}.",
                "Pack plain files and folders only.",
            )
        if header.type == tarfile.DIRTYPE:
            yield Member(safe_parts(name), True, bytes)
        elif header.type in _FILES:
            body = _Body(stream, size)
            read = partial(_read_bounded, body, meter, name, size)
            yield Member(safe_parts(name), False, read, size, body.pieces)
            body.skip()
        else:
            raise broken(
                f"{shown(name)} in the archive is of an unknown kind.",
                "Pack plain files and folders only.",
            )
        name, size, extensions = None, None, 0


def _read_bounded(body: _Body, meter: Meter, name: str, size: int) -> bytes:
    meter.check_member_size(name, size)
    return body.read()


def _header(block: bytes, first: bool) -> tarfile.TarInfo | None:
    """Return the header in ``block``, or None for the block of zeros that ends an archive."""
    try:
        # Names that are not UTF-8 come out as surrogates, which `safe_parts` refuses by name.
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        if len(block) == _BLOCK and not any(block):
            return None
        if first:
            raise broken(
                "The file is no archive that bitpress reads.",
                "Send a zip, tar, tar.gz, tar.xz or tar.bz2 archive.",
            ) from None
        if len(block) < _BLOCK:
            raise broken("The archive is truncated.") from None
        raise broken("The archive is damaged: one of its headers cannot be read.") from None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """Parse ``<length> <key>=<value>\\n`` records, the length counting the whole record."""
    records = {}
    content = content.rstrip(b"\0")
    start = 0
    while start < len(content):
        digits, separator, _ = content[start : start + 12].partition(b" ")
        length = int(digits) if separator and digits.isdigit() else 0
        end = start + length
        key, equals, value = content[start + len(digits) + 1 : end].partition(b"=")
        if not equals or not value.endswith(b"\n") or end > len(content):
            raise broken("The archive is damaged: an extended header cannot be read.")
        records[key] = value[:-1]
        start = end
    return records


def _pax_overrides(
    records: dict[bytes, bytes], name: str | None, size: int | None
) -> tuple[str | None, int | None]:
    if any(key.startswith(b"GNU.sparse.") for key in records):
        raise broken(
            "The archive has a sparse file.", "Pack it without the option for sparse files."
        )
    if b"path" in records:
        name = _text(records[b"path"])
    if b"size" in records:
        if not records[b"size"].isdigit() or len(records[b"size"]) > 18:
            raise broken("The archive is damaged: an extended header cannot be read.")
        size = int(records[b"size"])
    return name, size
