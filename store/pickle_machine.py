"""A reader of pickles that hold arrays, numbers and texts, and of nothing else.

A pickle is a program for a small stack machine. Python's own reader runs it, importing what it
names and calling it, which is why it must never see a file from outside. This is a machine of its
own: it knows the operations in ``_OPERATIONS``, out of which only None, numbers, texts, bytes,
lists, tuples, dictionaries and arrays can come. Nothing is ever imported, looked up or called: the
few names that pickled arrays cannot do without (``NAMES``) are marks, whose meaning is written out
here. Everything else is refused by name.

What reading may cost is bounded: the operations, each of which makes one object at most, and the
bytes of texts. Large byte strings stay where they are, as views of the file. The machine does not
recurse, and keys of dictionaries are texts, so that neither nesting nor hashing costs more.

Protocols 0 to 5, as Python 2 and Python 3 write them; of protocol 0 no texts with escapes.
"""

import re
import struct
from collections.abc import Callable
from mmap import mmap
from typing import Any

from store.archive_members import shown
from store.pickled_arrays import (
    NAMES,
    ItemType,
    LongText,
    Name,
    PickledArray,
    RefusedPickle,
    encoded_bytes,
    fill,
    reduced,
    unfit,
    word,
)

_MOST_OPERATIONS = 1_000_000
_MOST_TEXT_BYTES = 64 * 1024
_MOST_COPIED_BYTES = 32 * 2**20
_MOST_LINE_BYTES = 1024
# Bytes that Python 3 wrote for Python 2 are a text to be encoded: a batch of CIFAR-10 is 46 MB.
_MOST_ENCODED_BYTES = 64 * 2**20

_NUMBER = re.compile(rb"-?\d{1,20}")


def read_pickle(data: bytes | mmap) -> Any:
    """Return the value that the pickle in ``data`` describes; what follows its end is not read.

    Values are None, bool, int, str, bytes (a read-only memoryview where they are long), list,
    tuple, dict and `PickledArray`. They may share parts, and lists may even hold themselves.

    Raises:
        RefusedPickle: damaged, too large, or with more in it than data.
    """
    return _Machine(data).run()


class _Machine:
    """Runs one pickle. Every method below `run` is an operation or a part of some."""

    def __init__(self, data: bytes | mmap) -> None:
        self._source = data
        self._data = memoryview(data)
        self._at = 0
        self._copied = 0
        self._encoded = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MOST_OPERATIONS):
            code = self.take(1)[0]
            if code == _STOP:
                return self.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise RefusedPickle(f"it has an operation that data does not need (0x{code:02x})")
            operation(self)
        raise RefusedPickle(f"it has more than {_MOST_OPERATIONS:,} operations")

    # The bytes of the program

    def take(self, count: int) -> memoryview:
        """Return the next ``count`` bytes, as a view."""
        end = self._at + count
        if count < 0 or end > len(self._data):
            raise RefusedPickle("it is truncated")
        view = self._data[self._at : end]
        self._at = end
        return view

    def copy(self, count: int) -> bytes:
        """Return the next ``count`` bytes as an object of their own."""
        self._copied += count
        if self._copied > _MOST_COPIED_BYTES:
            raise RefusedPickle(f"it has more than {_MOST_COPIED_BYTES:,} bytes of texts")
        return bytes(self.take(count))

    def length(self, form: str) -> int:
        """Return the length that the next bytes give, in a format of `struct`."""
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(value)

    def line(self) -> bytes:
        """Return the rest of a line of text."""
        end = self._source.find(b"\n", self._at, self._at + _MOST_LINE_BYTES)
        if end < 0:
            raise RefusedPickle("a line of it does not end")
        text = self.copy(end - self._at)
        self._at += 1
        return text

    # The stack

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise unfit()
        return self._stack.pop()

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def since_mark(self) -> list[Any]:
        """Return what was pushed since the last mark, which goes too."""
        if not self._marks:
            raise unfit()
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def top(self, kind: type) -> Any:
        """Return the uppermost value, which stays and is of this very type."""
        value = self.pop()
        if type(value) is not kind:
            raise unfit()
        self._stack.append(value)
        return value

    # Texts and bytes

    def push_text(self, count: int) -> None:
        if count > _MOST_TEXT_BYTES:
            self.push(LongText(self.take(count)))
            return
        try:
            # Halves of surrogate pairs are what Python writes for bytes that it could not read.
            self.push(self.copy(count).decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            raise RefusedPickle("a text in it is not UTF-8") from None

    def push_bytes(self, count: int) -> None:
        self.push(self.take(count) if count > _MOST_TEXT_BYTES else self.copy(count))

    def push_quoted(self) -> None:
        text = self.line()
        if len(text) < 2 or text[:1] not in (b"'", b'"') or text[-1:] != text[:1] or b"\\" in text:
            raise RefusedPickle("a text in it is quoted in a way that is not read")
        self.push(text[1:-1])

    def push_line(self) -> None:
        text = self.line()
        if not text.isascii() or b"\\" in text:
            raise RefusedPickle("a text in it is escaped in a way that is not read")
        self.push(text.decode("ascii"))

    def push_number(self) -> None:
        text = self.line().removesuffix(b"L")
        if not _NUMBER.fullmatch(text):
            raise RefusedPickle("a number in it cannot be read")
        # Two digits beginning with 0 are how protocol 0 writes truth.
        self.push(bool(int(text)) if text in (b"00", b"01") else int(text))

    # Lists, tuples, dictionaries

    def append(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def appends(self) -> None:
        values = self.since_mark()
        self.top(list).extend(values)

    def push_tuple(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def set_item(self) -> None:
        value = self.pop()
        key = self.pop()
        self._set_items(self.top(dict), [key, value])

    def set_items(self) -> None:
        values = self.since_mark()
        self._set_items(self.top(dict), values)

    def push_dict(self) -> None:
        values = self.since_mark()
        self.push({})
        self._set_items(self.top(dict), values)

    def _set_items(self, target: dict[Any, Any], values: list[Any]) -> None:
        if len(values) % 2:
            raise unfit()
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Nothing else is hashed: nested tuples recurse without a limit, and integers can be
            # chosen to collide.
            if type(key) not in (str, bytes):
                raise RefusedPickle("a dictionary in it has keys that are not read")
            target[key] = value

    # What was put aside

    def put(self, index: int) -> None:
        self._memo[index] = value = self.pop()
        self.push(value)

    def put_line(self) -> None:
        self.put(self._index())

    def memoize(self) -> None:
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise RefusedPickle("it refers to something that is not there")
        self.push(self._memo[index])

    def get_line(self) -> None:
        self.get(self._index())

    def _index(self) -> int:
        text = self.line()
        if not _NUMBER.fullmatch(text):
            raise RefusedPickle("a number in it cannot be read")
        return int(text)

    # Arrays

    def push_name(self) -> None:
        self._name(self.line().decode("latin-1"), self.line().decode("latin-1"))

    def push_stacked_name(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise unfit()
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        known = NAMES.get((module, name))
        if known is None:
            raise RefusedPickle(
                f"it wants {shown(f'{module}.{name}')}, and data wants no such thing"
            )
        self.push(known)

    def reduce(self) -> None:
        arguments, name = self.pop(), self.pop()
        if type(arguments) is not tuple or type(name) is not Name:
            raise unfit()
        self._encoded += encoded_bytes(name, arguments)
        if self._encoded > _MOST_ENCODED_BYTES:
            raise RefusedPickle("it was written in a way that takes too much memory to read")
        self.push(reduced(name, arguments))

    def build(self) -> None:
        state, value = self.pop(), self.pop()
        if type(state) is not tuple or len(state) < 2:
            raise unfit()
        if type(value) is ItemType:
            value.order = word(state[1])
        elif type(value) is PickledArray and len(state) == 5:
            _, shape, item, is_fortran, data = state
            fill(value, data, item, shape, is_fortran)
        else:
            raise unfit()
        self.push(value)


_STOP = ord(".")

# By their codes, as `pickletools` lists them.
_OPERATIONS: dict[int, Callable[[_Machine], None]] = {
    # The protocol's number, and the frames of protocol 4, which only help who reads from a file.
    0x80: lambda m: _skip(m, 1),
    0x95: lambda m: _skip(m, 8),
    ord("("): _Machine.mark,
    # None, True, False, numbers
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("I"): _Machine.push_number,
    ord("L"): _Machine.push_number,
    ord("K"): lambda m: m.push(m.length("<B")),
    ord("M"): lambda m: m.push(m.length("<H")),
    ord("J"): lambda m: m.push(m.length("<i")),
    0x8A: lambda m: m.push(int.from_bytes(m.take(m.length("<B")), "little", signed=True)),
    # Texts of Python 2, which are bytes
    ord("S"): _Machine.push_quoted,
    ord("U"): lambda m: m.push_bytes(m.length("<B")),
    ord("T"): lambda m: m.push_bytes(m.length("<i")),
    # Bytes of Python 3
    ord("C"): lambda m: m.push_bytes(m.length("<B")),
    ord("B"): lambda m: m.push_bytes(m.length("<I")),
    0x8E: lambda m: m.push_bytes(m.length("<Q")),
    0x96: lambda m: m.push_bytes(m.length("<Q")),
    # Texts
    ord("V"): _Machine.push_line,
    ord("X"): lambda m: m.push_text(m.length("<I")),
    0x8C: lambda m: m.push_text(m.length("<B")),
    0x8D: lambda m: m.push_text(m.length("<Q")),
    # Lists, tuples, dictionaries
    ord("]"): lambda m: m.push([]),
    ord("l"): lambda m: m.push(m.since_mark()),
    ord("a"): _Machine.append,
    ord("e"): _Machine.appends,
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.since_mark())),
    0x85: lambda m: m.push_tuple(1),
    0x86: lambda m: m.push_tuple(2),
    0x87: lambda m: m.push_tuple(3),
    ord("}"): lambda m: m.push({}),
    ord("d"): _Machine.push_dict,
    ord("s"): _Machine.set_item,
    ord("u"): _Machine.set_items,
    # What was put aside
    ord("p"): _Machine.put_line,
    ord("q"): lambda m: m.put(m.length("<B")),
    ord("r"): lambda m: m.put(m.length("<I")),
    0x94: _Machine.memoize,
    ord("g"): _Machine.get_line,
    ord("h"): lambda m: m.get(m.length("<B")),
    ord("j"): lambda m: m.get(m.length("<I")),
    # Arrays
    ord("c"): _Machine.push_name,
    0x93: _Machine.push_stacked_name,
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
}


def _skip(machine: _Machine, count: int) -> None:
    machine.take(count)
