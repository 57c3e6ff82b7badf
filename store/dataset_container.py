"""A dataset on the disk: one file of encoded images and one index, not a file per image.

``images.bin`` is the images' bytes one after the other, in the order in which the archive had
them, so that the archive is read once. ``index.npz`` lists them in sorted order.
"""

import hashlib
import os
import struct
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from store.archive_members import DatasetLimits, Proceed, too_large
from store.dataset_layout import Layout
from store.durable import sync_file

IMAGES = "images.bin"
INDEX = "index.npz"


@dataclass(frozen=True)
class Container:
    """What was written: the layout, the digest of the content and the size of all images."""

    layout: Layout
    digest: str
    bytes: int


class ContainerWriter:
    """Writes ``images.bin`` image by image, and ``index.npz`` when the layout is known.

    Images count from 0 in the order in which they are added; a layout's sources are these numbers.
    """

    def __init__(
        self, folder: Path, limits: DatasetLimits, proceed: Proceed = lambda: None
    ) -> None:
        self._folder = folder
        self._limits = limits
        self._proceed = proceed
        self._digests: list[bytes] = []
        self._ends = [0]
        self._file = open(folder / IMAGES, "wb")  # noqa: SIM115

    def __len__(self) -> int:
        """Return the number of images so far."""
        return len(self._digests)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, data: bytes, digest: bytes | None = None) -> None:
        """Append an encoded image; ``digest`` is that of its content, by default of its bytes.

        Raises:
            TooLarge: there are more than the limit allows.
        """
        self._proceed()
        if len(self) == self._limits.max_images:
            raise too_large(f"The dataset has more than {self._limits.max_images:,} images.")
        self._file.write(data)
        self._digests.append(digest or hashlib.sha256(data).digest())
        self._ends.append(self._ends[-1] + len(data))

    def finish(self, layout: Layout) -> Container:
        """Write the index; all of it is on the disk then."""
        self._file.close()
        source = np.array([image.source for image in layout.images])
        offsets = np.array(self._ends, dtype=np.uint64)
        write_index(
            self._folder / INDEX,
            layout,
            offset=offsets[:-1][source],
            length=np.diff(offsets)[source],
        )
        for file in (IMAGES, INDEX):
            sync_file(self._folder / file)
        return Container(layout, content_digest(layout, self._digests), self._ends[-1])


@contextmanager
def open_index(folder: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Give the index in ``folder``. Raises whatever numpy does where it is damaged."""
    # Opened here: numpy leaves a file of its own open where its content is at fault.
    with open(folder / INDEX, "rb") as file, np.load(file, allow_pickle=False) as index:
        yield index


class IndexedTexts:
    """Many texts in one array of bytes: a list of them would take several times the memory."""

    def __init__(self, lines: NDArray[np.uint8]) -> None:
        self._lines = lines
        self._ends = np.append(np.flatnonzero(lines == ord("\n")), len(lines))

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._ends)

    def __getitem__(self, row: int) -> str:
        """Return one text."""
        start = int(self._ends[row - 1]) + 1 if row else 0
        return self._lines[start : int(self._ends[row])].tobytes().decode()


class IndexedImages:
    """What an index tells of images, by row: sorted by split, label and name.

    Attributes:
        labels: int64 ``(N,)``, the class of each image.
    """

    labels: NDArray[np.int64]

    def __init__(self, index: Mapping[str, NDArray[Any]]) -> None:
        self._splits: list[str] = [str(split) for split in index["splits"]]
        self._split_of = index["split"]
        self.labels = index["label"].astype(np.int64)
        self._names = IndexedTexts(index["names"])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._names)

    def name(self, row: int) -> str:
        """Return an image's path below the dataset's top folder."""
        return self._names[row]

    def split(self, row: int) -> str:
        """Return the name of an image's split."""
        return self._splits[int(self._split_of[row])]

    def counts(self, classes: int) -> dict[str, list[int]]:
        """Return how many images each of the ``classes`` has, by split."""
        return {
            split: np.bincount(self.labels[self._split_of == number], minlength=classes).tolist()
            for number, split in enumerate(self._splits)
        }


class StoredImages(IndexedImages):
    """The images of a container.

    May be read by several threads, and by processes forked from this one, at once. It goes on
    where the container is removed meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        with open_index(folder) as index:
            super().__init__(index)
            self._offsets, self._lengths = index["offset"], index["length"]
        self._file = os.open(folder / IMAGES, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def size(self, row: int) -> int:
        """Return an image's size in bytes."""
        return int(self._lengths[row])

    def head(self, row: int, most: int) -> bytes:
        """Return the first bytes of an image, ``most`` or all."""
        return os.pread(self._file, min(self.size(row), most), int(self._offsets[row]))

    def read(self, row: int) -> bytes:
        """Return an image as the archive had it."""
        return os.pread(self._file, int(self._lengths[row]), int(self._offsets[row]))


def write_index(path: Path, layout: Layout, **columns: NDArray[Any]) -> None:
    """Write splits, labels and names of the images, and further columns, one item an image."""
    splits = list(layout.counts())
    # Names have no control characters, so a newline separates them without doubt.
    names = "\n".join(image.name for image in layout.images).encode()
    arrays: dict[str, Any] = {
        "splits": np.array(splits),
        "split": np.array([splits.index(image.split) for image in layout.images], dtype=np.uint8),
        "label": np.array([image.label for image in layout.images], dtype=np.uint16),
        "names": np.frombuffer(names, dtype=np.uint8),
        **columns,
    }
    np.savez(path, **arrays)


def content_digest(layout: Layout, digests: Sequence[bytes]) -> str:
    """Hash the names and contents in order, so that the packaging does not matter."""
    total = hashlib.sha256()
    for image in layout.images:
        name = image.name.encode()
        total.update(struct.pack("<I", len(name)) + name + digests[image.source])
    return "sha256:" + total.hexdigest()
