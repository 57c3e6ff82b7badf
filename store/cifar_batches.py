"""CIFAR-10 and CIFAR-100 as their authors ship them: batches of pixels, pickled or plain.

==========  ===================================  =================================================
set         python                               binary
==========  ===================================  =================================================
CIFAR-10    ``data_batch_1`` ... ``_5``,         the same with ``.bin``, ``batches.meta.txt``;
            ``test_batch``, ``batches.meta``     label, 1024 red, 1024 green, 1024 blue
CIFAR-100   ``train``, ``test``, ``meta``        ``train.bin``, ``test.bin``,
                                                 ``fine_label_names.txt``; coarse label, fine
                                                 label, and the pixels as above
==========  ===================================  =================================================

They lie at the archive's top, or in one folder. The classes of CIFAR-100 are the fine ones. All
forms of one set give the same dataset: images are numbered in the order of the batches' numbers.
"""

import mmap
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from store.archive_members import broken, shown, too_large
from store.npy_arrays import records
from store.pickle_machine import read_pickle
from store.pickled_arrays import PickledArray, RefusedPickle

Cifar = Literal["cifar-10", "cifar-100"]

SIDE_PIXELS = 32
PIXEL_BYTES = 3 * SIDE_PIXELS * SIDE_PIXELS
_MOST_BATCH_BYTES = 512 * 2**20
_MOST_NAMES_BYTES = 64 * 1024
_PICKLES = re.compile(rb"\x80[\x02-\x05]|\(d|\}")

_TEN = re.compile(r"(?P<batch>data_batch_(?P<number>[1-9]\d?)|test_batch)(?P<binary>\.bin)?")
_HUNDRED = re.compile(r"(?P<batch>train|test)(?P<binary>\.bin)?")
_NAME_LISTS: dict[str, tuple[Cifar, bool]] = {
    "batches.meta": ("cifar-10", False),
    "batches.meta.txt": ("cifar-10", True),
    "meta": ("cifar-100", False),
    "fine_label_names.txt": ("cifar-100", True),
}
_NAME_KEYS = {"cifar-10": "label_names", "cifar-100": "fine_label_names"}
_LABEL_KEYS = {"cifar-10": "labels", "cifar-100": "fine_labels"}


@dataclass(frozen=True)
class CifarFile:
    """What a file of this name is: a batch of ``split``, or the list of names (no split)."""

    name: str
    cifar: Cifar
    is_plain: bool
    split: str | None = None
    number: int = 0

    def begins_with(self, head: bytes) -> bool:
        """Whether ``head`` can be the beginning of such a file."""
        return self.is_plain or _PICKLES.match(head) is not None


@dataclass(frozen=True)
class Batch:
    """Some images of a batch: uint8 ``(n, 32, 32, 3)`` and their labels ``(n,)``."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


def cifar_file(parts: tuple[str, ...]) -> CifarFile | None:
    """Return what the file is by its name, where it is one of CIFAR's."""
    if len(parts) > 2:
        return None
    name = parts[-1]
    if name in _NAME_LISTS:
        cifar, is_plain = _NAME_LISTS[name]
        return CifarFile(name, cifar, is_plain)
    if match := _TEN.fullmatch(name):
        split = "train" if match["number"] else "test"
        is_plain = match["binary"] is not None
        return CifarFile(name, "cifar-10", is_plain, split, int(match["number"] or 0))
    if match := _HUNDRED.fullmatch(name):
        return CifarFile(name, "cifar-100", match["binary"] is not None, match["batch"])
    return None


def read_names(file: CifarFile, pieces: Iterator[bytes]) -> list[str]:
    """Return the names of the classes, in the order of their labels. Raises `InvalidDataset`."""
    data = b""
    for piece in pieces:
        data += piece
        if len(data) > _MOST_NAMES_BYTES:
            raise too_large(f"{shown(file.name)} in the archive is no list of a few names.")
    if file.is_plain:
        try:
            return [line.strip() for line in data.decode("utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise broken(f"{shown(file.name)} in the archive is not UTF-8.") from None
    names = _pickled(file, data).get(_NAME_KEYS[file.cifar])
    if type(names) is not list or not all(type(name) in (str, bytes) for name in names):
        raise broken(f"{shown(file.name)} in the archive has no list {_NAME_KEYS[file.cifar]}.")
    return [_text(name) for name in names]


def read_batch(file: CifarFile, pieces: Iterator[bytes], folder: Path) -> Iterator[Batch]:
    """Yield a batch's images, some at a time. A pickle lies in ``folder`` meanwhile, unnamed.

    Raises:
        InvalidDataset: damaged, truncated, or with other things in it than images of 32 pixels.
        TooLarge: a pickle of more than 512 MiB.
    """
    if file.is_plain:
        yield from _plain_batch(file, pieces)
        return
    with tempfile.TemporaryFile(dir=folder) as spooled:
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > _MOST_BATCH_BYTES:
                raise too_large(f"{shown(file.name)} in the archive is more than 512 MiB.")
            spooled.write(piece)
        spooled.flush()
        # Mapped, so that the pixels stay on the disk; unmapped when nothing looks at them any more.
        content = mmap.mmap(spooled.fileno(), 0, access=mmap.ACCESS_READ)
        yield _pickled_batch(file, content)


def _plain_batch(file: CifarFile, pieces: Iterator[bytes]) -> Iterator[Batch]:
    labels = 1 if file.cifar == "cifar-10" else 2
    size = labels + PIXEL_BYTES
    try:
        for block in records(pieces, size):
            rows = np.frombuffer(block, dtype=np.uint8).reshape(-1, size)
            # Of two labels the second one is the fine one.
            yield Batch(_images(rows[:, labels:]), rows[:, labels - 1].astype(np.int64))
    except ValueError:
        raise broken(
            f"{shown(file.name)} in the archive does not consist of records of {size:,} bytes."
        ) from None


def _pickled_batch(file: CifarFile, content: mmap.mmap) -> Batch:
    values = _pickled(file, content)
    key = _LABEL_KEYS[file.cifar]
    for wanted in ("data", key):
        if wanted not in values:
            raise broken(f"{shown(file.name)} in the archive has no {wanted}.")
    pixels, labels = _array(file, values["data"]), _labels(file, values[key])
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXEL_BYTES:
        raise broken(
            f"The data of {shown(file.name)} in the archive are no images of 32 x 32 pixels in"
            " three colours.",
            f"Store them as uint8 (N, {PIXEL_BYTES}), as the authors of CIFAR do.",
        )
    if labels.shape != (len(pixels),):
        raise broken(f"{shown(file.name)} in the archive has another number of labels than images.")
    return Batch(_images(pixels), labels)


def _pickled(file: CifarFile, content: bytes | mmap.mmap) -> dict[str, Any]:
    """Return the dictionary in a pickle; Python 2 wrote its keys as bytes."""
    try:
        value = read_pickle(content)
    except RefusedPickle as fault:
        raise broken(
            f"{shown(file.name)} in the archive cannot be read: {fault}.",
            "Send the file as the authors of CIFAR publish it.",
        ) from None
    if type(value) is not dict:
        raise broken(f"{shown(file.name)} in the archive is no dictionary.")
    return {_text(key): item for key, item in value.items()}


def _array(file: CifarFile, value: Any) -> NDArray[Any]:
    if type(value) is not PickledArray:
        raise broken(f"{shown(file.name)} in the archive has no array where one belongs.")
    try:
        return value.array()
    except RefusedPickle as fault:
        raise broken(f"{shown(file.name)} in the archive cannot be read: {fault}.") from None


def _labels(file: CifarFile, value: Any) -> NDArray[np.int64]:
    if type(value) is PickledArray:
        array = _array(file, value)
        if array.dtype != np.uint64:
            return array.astype(np.int64)
    elif type(value) is list and all(type(item) is int and 0 <= item < 2**31 for item in value):
        return np.array(value, dtype=np.int64)
    raise broken(f"The labels of {shown(file.name)} in the archive are no list of numbers from 0.")


def _images(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bring rows (n, 3072), colour by colour, into the order of pixels (n, 32, 32, 3)."""
    return rows.reshape(-1, 3, SIDE_PIXELS, SIDE_PIXELS).transpose(0, 2, 3, 1)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
