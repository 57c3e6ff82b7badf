"""Pickles as Python 2 wrote them, assembled by hand: the opcodes of cPickle's protocol 2."""

import struct

from numpy.typing import NDArray


def text(value: bytes) -> bytes:
    """A str of Python 2, which is bytes."""
    if len(value) < 256:
        return b"U" + bytes([len(value)]) + value
    return b"T" + struct.pack("<i", len(value)) + value


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    return (
        (b"M" + struct.pack("<H", value)) if 0 <= value < 65536 else b"J" + struct.pack("<i", value)
    )


def pixels(array: NDArray) -> bytes:
    """An array of bytes (N, M), as numpy 1 pickled it under Python 2."""
    rows, columns = array.shape
    item = b"cnumpy\ndtype\nq\x09" + text(b"u1") + b"K\x00K\x01\x87Rq\x0a"
    item += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    made = b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85"
    made += text(b"b") + b"\x87Rq\x07"
    shape = number(rows) + number(columns) + b"\x86"
    return made + b"(K\x01" + shape + item + b"\x89" + text(array.tobytes()) + b"tb"


def listed(values: list[bytes]) -> bytes:
    """A list of what is pickled already."""
    return b"]q\x04(" + b"".join(values) + b"e"


def dictionary(**values: bytes) -> bytes:
    """A whole pickle of a dictionary with keys of Python 2."""
    items = b"".join(text(key.encode()) + value for key, value in values.items())
    return b"\x80\x02}q\x01(" + items + b"u."
