"""Arrays in pickles: the few calls that make them, read as descriptions and never made.

A pickled array is a call of numpy's ``_reconstruct`` or ``_frombuffer`` with a call of ``dtype``
within, and bytes are a call of ``_codecs.encode`` where Python 3 wrote for Python 2. `reduced` and
`fill` know what these calls would give; nothing here imports, looks up or calls what is named.
"""

import math
import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_DIMENSIONS = 4
_MOST_SIDE = 2**31
_MOST_WORD = 16

_ITEM = re.compile(r"[iu][1248]")
_ORDERS = ("<", ">", "|", "=")


class RefusedPickle(Exception):
    """The pickle is damaged, or says something that data never says; the message tells which."""


@dataclass(eq=False)
class PickledArray:
    """An array as the pickle describes it; ``data`` is empty until the pickle gave it."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    is_fortran: bool = False
    data: bytes | memoryview = b""

    def array(self) -> NDArray[Any]:
        """Return it as a read-only array of integers. Raises `RefusedPickle`: it is none."""
        if not self.dtype or 0 in self.shape:
            raise RefusedPickle("an array in it is empty")
        flat = np.frombuffer(self.data, dtype=np.dtype(self.dtype))
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C")


@dataclass(eq=False)
class ItemType:
    """The type of an array's items: a code such as ``u1`` and a byte order."""

    code: str
    order: str = "="


@dataclass(eq=False)
class LongText:
    """A text that is too long for one, and may be bytes in disguise."""

    raw: memoryview


class Name(Enum):
    """What a pickle may name."""

    RECONSTRUCT = auto()
    FROM_BUFFER = auto()
    ARRAY = auto()
    ITEM_TYPE = auto()
    ENCODE = auto()
    BYTES = auto()


NAMES = {
    ("numpy", "ndarray"): Name.ARRAY,
    ("numpy", "dtype"): Name.ITEM_TYPE,
    ("_codecs", "encode"): Name.ENCODE,
    ("__builtin__", "bytes"): Name.BYTES,
    **{
        (f"numpy.{core}.multiarray", "_reconstruct"): Name.RECONSTRUCT for core in ("core", "_core")
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): Name.FROM_BUFFER for core in ("core", "_core")},
}


def reduced(name: Name, arguments: tuple[Any, ...]) -> Any:
    """Return what a call of ``name`` would give, for the calls that pickled arrays have.

    Raises:
        RefusedPickle: no pickled array has such a call.
    """
    if name is Name.RECONSTRUCT and len(arguments) == 3 and arguments[0] is Name.ARRAY:
        return PickledArray()
    if name is Name.ITEM_TYPE and 1 <= len(arguments) <= 3:
        return ItemType(word(arguments[0]))
    if name is Name.FROM_BUFFER and len(arguments) == 4:
        data, item, shape, order = arguments
        array = PickledArray()
        fill(array, data, item, shape, word(order) == "F")
        return array
    if name is Name.ENCODE and len(arguments) == 2 and word(arguments[1]) == "latin1":
        return _encoded(arguments[0])
    if name is Name.BYTES and not arguments:
        return b""
    raise unfit()


def fill(array: PickledArray, data: Any, item: Any, shape: Any, is_fortran: Any) -> None:
    """Give ``array`` its content. Raises `RefusedPickle`: the parts do not make an array."""
    if type(item) is not ItemType or type(is_fortran) not in (bool, int):
        raise unfit()
    if not _ITEM.fullmatch(item.code) or item.order not in _ORDERS:
        kind = "objects" if "O" in item.code else "numbers of a kind that is not read"
        raise RefusedPickle(f"an array in it holds {kind}")
    if type(shape) is not tuple or len(shape) > _MOST_DIMENSIONS:
        raise unfit()
    if any(type(side) is not int or not 0 <= side < _MOST_SIDE for side in shape):
        raise unfit()
    # Integers of any size, so that no product wraps around.
    size = math.prod(shape) * int(item.code[1:])
    if type(data) not in (bytes, memoryview) or len(data) != size:
        raise RefusedPickle("an array in it has another size than it says")
    array.dtype = item.order + item.code
    array.shape, array.is_fortran, array.data = shape, bool(is_fortran), data


def encoded_bytes(name: Name, arguments: tuple[Any, ...]) -> int:
    """Return how many bytes `reduced` would have to make, at most."""
    if name is not Name.ENCODE or not arguments:
        return 0
    text = arguments[0]
    if type(text) is LongText:
        return len(text.raw)
    return len(text) if type(text) is str else 0


def _encoded(text: Any) -> bytes:
    try:
        if type(text) is LongText:
            return bytes(text.raw).decode().encode("latin-1")
        if type(text) is str:
            return text.encode("latin-1")
    except UnicodeError:
        pass
    raise unfit()


def word(value: Any) -> str:
    """Return a short text, which Python 2 wrote as bytes."""
    if type(value) is bytes and len(value) <= _MOST_WORD:
        return value.decode("latin-1")
    if type(value) is str and len(value) <= _MOST_WORD:
        return value
    raise unfit()


def unfit() -> RefusedPickle:
    """What is said of operations in an order that nothing writes."""
    return RefusedPickle("its operations do not fit together")
