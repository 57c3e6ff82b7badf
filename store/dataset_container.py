"""A dataset on the disk: one file of encoded images and one index, not a file per image.

``images.bin`` is the images' bytes one after the other, in the order in which the archive had
them, so that the archive is read once. ``index.npz`` lists them in sorted order.
"""

import hashlib
import os
import struct
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from store.archive_members import DatasetLimits, broken, is_junk, shown, too_large
from store.archives import members
from store.dataset_layout import Layout, arrange
from store.durable import sync_file
from store.image_kinds import claims_to_be_image, is_image

IMAGES = "images.bin"
INDEX = "index.npz"


@dataclass(frozen=True)
class Container:
    """What was written: the layout, the digest of the content and the size of all images."""

    layout: Layout
    digest: str
    bytes: int


@dataclass(frozen=True)
class DatasetImage:
    """One encoded image. ``name`` is its path below the dataset's top folder."""

    split: str
    label: int
    name: str
    data: bytes


def write_container(archive: Path, folder: Path, limits: DatasetLimits) -> Container:
    """Read the archive once and write ``images.bin`` and ``index.npz`` into ``folder``.

    Raises:
        InvalidDataset: the archive or its layout is at fault.
        TooLarge: it is over a limit.
    """
    paths: list[tuple[str, ...]] = []
    digests: list[bytes] = []
    ends = [0]
    folders: set[tuple[str, ...]] = set()
    seen: set[tuple[str, ...]] = set()
    with open(folder / IMAGES, "wb") as images:
        for member in members(archive, limits):
            if is_junk(member.parts):
                continue
            if member.is_folder:
                folders.add(member.parts)
                continue
            name = "/".join(member.parts)
            if member.parts in seen:
                raise broken(f"The archive has {shown(name)} twice.")
            seen.add(member.parts)
            data = member.read()
            if not is_image(name, data):
                if claims_to_be_image(name):
                    raise _no_image(name, data)
                folders.add(member.parts[:-1])
                continue
            if len(paths) == limits.max_images:
                raise too_large(f"The dataset has more than {limits.max_images:,} images.")
            images.write(data)
            paths.append(member.parts)
            digests.append(hashlib.sha256(data).digest())
            ends.append(ends[-1] + len(data))
    layout = arrange(paths, folders, limits.max_classes)
    _write_index(folder / INDEX, layout, ends)
    for file in (IMAGES, INDEX):
        sync_file(folder / file)
    return Container(layout, _digest(layout, digests), ends[-1])


class StoredImages:
    """The images of a container, by row: sorted by split, class and name.

    May be read by several threads, and by processes forked from this one, at once. It goes on
    where the container is removed meanwhile.

    Attributes:
        labels: int64 ``(N,)``, the class of each image.
    """

    labels: NDArray[np.int64]

    def __init__(self, folder: Path) -> None:
        with np.load(folder / INDEX, allow_pickle=False) as index:
            self._splits: list[str] = [str(split) for split in index["splits"]]
            self._split_of = index["split"]
            self.labels = index["label"].astype(np.int64)
            self._offsets, self._lengths = index["offset"], index["length"]
            names: str = index["names"].tobytes().decode()
        self._names = names.split("\n")
        self._file = os.open(folder / IMAGES, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._names)

    def name(self, row: int) -> str:
        """Return an image's path below the dataset's top folder."""
        return self._names[row]

    def split(self, row: int) -> str:
        """Return the name of an image's split."""
        return self._splits[int(self._split_of[row])]

    def read(self, row: int) -> bytes:
        """Return an image as the archive had it."""
        return os.pread(self._file, int(self._lengths[row]), int(self._offsets[row]))


def read_images(folder: Path) -> Iterator[DatasetImage]:
    """Yield the images of a container, sorted by split, class and name."""
    stored = StoredImages(folder)
    for row in range(len(stored)):
        yield DatasetImage(
            stored.split(row), int(stored.labels[row]), stored.name(row), stored.read(row)
        )


def _no_image(name: str, data: bytes) -> Exception:
    fault = "is no image of a kind that bitpress reads" if data else "is a file of 0 bytes"
    return broken(
        f"{shown(name)} in the archive {fault}.",
        "Replace it by a JPEG, PNG, BMP, WebP, GIF or PPM image, or leave it out.",
    )


def _write_index(path: Path, layout: Layout, ends: list[int]) -> None:
    splits = list(layout.counts())
    source = np.array([image.source for image in layout.images])
    offsets = np.array(ends, dtype=np.uint64)
    # Names have no control characters, so a newline separates them without doubt.
    names = "\n".join(image.name for image in layout.images).encode()
    np.savez(
        path,
        splits=np.array(splits),
        split=np.array([splits.index(image.split) for image in layout.images], dtype=np.uint8),
        label=np.array([image.label for image in layout.images], dtype=np.uint16),
        offset=offsets[:-1][source],
        length=np.diff(offsets)[source],
        names=np.frombuffer(names, dtype=np.uint8),
    )


def _digest(layout: Layout, digests: list[bytes]) -> str:
    """Hash the sorted names and contents, so that the packaging does not matter."""
    total = hashlib.sha256()
    for image in layout.images:
        name = image.name.encode()
        total.update(struct.pack("<I", len(name)) + name + digests[image.source])
    return "sha256:" + total.hexdigest()
