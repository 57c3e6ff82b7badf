"""Arrays in numpy's file format, read from an untrusted stream: first what they declare, then data.

A file is a magic number, a version, the length of the header, the header (a Python literal with
type, order and shape) and the items. The header is matched with one pattern, not evaluated.
"""

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.archive_members import Member, broken, shown, too_large

_MAGIC = b"\x93NUMPY"
_MOST_HEADER_BYTES = 4096
_MOST_SMALL_BYTES = 64 * 2**20
# Written by every release of numpy with sorted keys; Python 2 writes 10L for 10.
_HEADER = re.compile(
    r"\{'descr': (?P<descr>'[^']{1,16}'|\[.*\]), 'fortran_order': (?P<fortran>True|False),"
    r" 'shape': \((?P<shape>[0-9L, ]*)\),? *\} *\n?",
    re.DOTALL,
)
_ITEM = re.compile(r"(?P<order>[<>|=]?)(?P<kind>[A-Za-z])(?P<bytes>[0-9]{0,5})")
_MOST_SIDE = 2**31
_KINDS = {
    "f": "floating-point numbers",
    "c": "complex numbers",
    "b": "truth values",
    "S": "bytes",
}


@dataclass(frozen=True)
class ArrayFile:
    """An array within an archive, its header read and its items not yet.

    ``dtype`` is of unsigned or signed integers, or of texts; ``items`` gives the bytes.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    items: Iterator[bytes]

    def small(self) -> NDArray[Any]:
        """Read the whole array.

        Raises:
            TooLarge: it takes more than 64 MiB.
            InvalidDataset: a text in it has what is no character.
        """
        if math.prod(self.shape) * self.dtype.itemsize > _MOST_SMALL_BYTES:
            raise too_large(f"The array {shown(self.name)} takes more than 64 MiB.")
        data = b"".join(self.items)
        if self.dtype.kind == "U":
            # Checked here because numpy makes a text of any four bytes, and Python then fails.
            points = np.frombuffer(data, dtype=np.dtype("u4").newbyteorder(self.dtype.byteorder))
            if int(points.max()) > sys.maxunicode:
                raise broken(f"A text in the array {shown(self.name)} cannot be read.")
        return np.frombuffer(data, dtype=self.dtype).reshape(self.shape)


def open_array(member: Member) -> ArrayFile:
    """Read the header of the array in ``member``.

    Raises:
        InvalidDataset: no array, one of objects or of a kind that is not read, one in Fortran's
            order, one without items, or one of another size than it declares.
    """
    name = "/".join(member.parts)
    pieces = member.pieces()
    head = next(pieces, b"")
    start = _header_bytes(head, name)
    match = _HEADER.fullmatch(head[start[0] : start[1]].decode("latin-1"))
    if match is None:
        raise broken(f"The header of the array {shown(name)} cannot be read.")
    dtype = _dtype(match["descr"], name)
    shape = _shape(match["shape"], name)
    if match["fortran"] == "True" and len(shape) > 1:
        raise broken(
            f"The array {shown(name)} is stored column by column.",
            "Save numpy.ascontiguousarray of it.",
        )
    if 0 in shape:
        raise broken(f"The array {shown(name)} is empty.", "Leave it out, or put items in.")
    if start[1] + math.prod(shape) * dtype.itemsize != member.size:
        raise broken(f"The array {shown(name)} has another size than its header says.")
    return ArrayFile(name, dtype, shape, _after(head[start[1] :], pieces))


def records(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Regroup a stream into whole records of ``size`` bytes, one or more at a time.

    Raises:
        ValueError: the end is not that of a record.
    """
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        whole = len(waiting) // size * size
        if whole:
            yield bytes(waiting[:whole])
            del waiting[:whole]
    if waiting:
        raise ValueError("the last record is not whole")


def _header_bytes(head: bytes, name: str) -> tuple[int, int]:
    """Return where the header begins and ends."""
    version = head[6:8]
    start = 10 if version == b"\x01\x00" else 12
    if not head.startswith(_MAGIC) or version not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise broken(f"{shown(name)} in the archive is no array of numpy.")
    end = start + int.from_bytes(head[8:start], "little")
    if end - start > _MOST_HEADER_BYTES or end > len(head):
        raise broken(f"The header of the array {shown(name)} cannot be read.")
    return start, end


def _dtype(descr: str, name: str) -> np.dtype[Any]:
    match = _ITEM.fullmatch(descr.strip("'"))
    kind = match["kind"] if match else ""
    if kind == "O":
        raise broken(
            f"The array {shown(name)} holds Python objects, which are never read.",
            "Save plain numbers or texts: numpy.savez(..., allow_pickle=False) tells which it is.",
        )
    if (
        match is None
        or kind not in "iuU"
        or (kind in "iu" and match["bytes"] not in ("1", "2", "4", "8"))
        or (kind == "U" and not 1 <= int(match["bytes"] or 0) <= 1024)
    ):
        raise broken(
            f"The array {shown(name)} holds {_kind_in_words(kind)}.",
            "Save images as uint8, labels as integers or as texts, and names as texts.",
        )
    return np.dtype(match[0])


def _kind_in_words(kind: str) -> str:
    return _KINDS.get(kind, "items of a kind that is not read")


def _shape(text: str, name: str) -> tuple[int, ...]:
    sides = [side.strip().removesuffix("L") for side in text.split(",")]
    if sides[-1] == "":
        sides.pop()
    if not all(side.isdecimal() and len(side) <= 10 and int(side) < _MOST_SIDE for side in sides):
        raise broken(f"The header of the array {shown(name)} cannot be read.")
    return tuple(map(int, sides))


def _after(rest: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    if rest:
        yield rest
    yield from pieces
