"""From an archive to a container: image folders, arrays of numpy, and CIFAR's own files.

The archive is read once, in its own order. What it holds shows on the way: files that CIFAR's
authors named, or images; a mixture is refused. Pixels become encoded images (`store.pixel_images`),
so that only what stands here knows where a dataset came from.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from store.archive_members import (
    DatasetLimits,
    Meter,
    Proceed,
    broken,
    is_junk,
    shown,
)
from store.archives import members
from store.cifar_batches import Cifar, CifarFile, cifar_file, read_batch, read_names
from store.dataset_container import Container, ContainerWriter
from store.dataset_layout import SPLITS, Layout, arrange
from store.image_kinds import claims_to_be_image, is_image
from store.labelled_layout import LabelledImages, arrange_labelled, checked_labels, class_names
from store.npz_datasets import ImageArray, NpzDataset, open_npz
from store.pixel_images import encode_pixels

Source = Literal["folders", "npz", "cifar-10", "cifar-100", "root"]
"""What a dataset was made from; ``root``: images that stay in a folder of the operator's."""


def write_container(
    archive: Path, folder: Path, limits: DatasetLimits, proceed: Proceed = lambda: None
) -> tuple[Container, Source]:
    """Read the archive once and write a container into ``folder``; return what it was made from.

    Raises:
        InvalidDataset: the archive or its layout is at fault.
        TooLarge: it is over a limit.
    """
    meter = Meter(limits, archive.stat().st_size, proceed)
    with ContainerWriter(folder, limits, proceed) as writer:
        with open_npz(archive, meter) as arrays:
            if arrays is not None:
                return writer.finish(_write_arrays(arrays, writer, limits)), "npz"
        found = _Members(folder, writer, limits)
        for member in members(archive, limits, proceed):
            if is_junk(member.parts):
                continue
            if member.is_folder:
                found.add_folder(member.parts)
                continue
            found.check_new(member.parts)
            file = cifar_file(member.parts)
            pieces = member.pieces()
            if file is not None and file.begins_with(head := next(pieces, b"")):
                found.add_cifar(file, chain((head,), pieces))
            elif file is not None:
                meter.check_member_size("/".join(member.parts), member.size)
                found.add_file(member.parts, b"".join(chain((head,), pieces)))
            else:
                found.add_file(member.parts, member.read())
        return writer.finish(found.layout()), found.source


def _write_arrays(arrays: NpzDataset, writer: ContainerWriter, limits: DatasetLimits) -> Layout:
    parts: list[LabelledImages] = []
    for images in arrays.images:
        parts += _parts(images, len(writer))
        for block in images.blocks():
            for pixels in block:
                writer.add(*encode_pixels(pixels))
    return arrange_labelled(parts, arrays.names, limits.max_classes)


def _parts(images: ImageArray, first: int) -> Iterator[LabelledImages]:
    sources = np.arange(first, first + len(images.labels))
    if images.splits is None:
        yield LabelledImages(images.split, images.labels, sources)
        return
    for split in SPLITS:
        rows = np.flatnonzero(images.splits == split)
        if len(rows):
            yield LabelledImages(split, images.labels[rows], sources[rows])


@dataclass
class _CifarBatches:
    """The batches so far, by split and number, in any order: labels and places of the images."""

    name: Cifar
    batches: dict[tuple[str, int], tuple[CifarFile, NDArray[np.int64], NDArray[np.int64]]] = field(
        default_factory=dict
    )
    names: tuple[str, ...] | None = None

    def add(
        self, file: CifarFile, pieces: Iterator[bytes], folder: Path, writer: ContainerWriter
    ) -> None:
        if file.cifar != self.name:
            raise broken(
                "The archive has files of CIFAR-10 and of CIFAR-100.", "Send one set at a time."
            )
        if file.split is None:
            if self.names is not None:
                raise broken("The archive lists the names of the classes twice.")
            self.names = class_names(read_names(file, pieces), shown(file.name))
            return
        if (file.split, file.number) in self.batches:
            raise broken(
                f"The archive has the batch {shown(file.name)} twice.",
                "Send the python or the binary form, not both.",
            )
        first = len(writer)
        labels: list[NDArray[np.int64]] = []
        for batch in read_batch(file, pieces, folder):
            labels.append(batch.labels)
            for pixels in batch.pixels:
                writer.add(*encode_pixels(pixels))
        if not labels:
            raise broken(f"{shown(file.name)} in the archive has no images.")
        sources = np.arange(first, len(writer))
        self.batches[file.split, file.number] = file, np.concatenate(labels), sources

    def layout(self, max_classes: int) -> Layout:
        if not self.batches:
            raise broken("The archive names CIFAR's classes, but has no images of them.")
        parts = []
        for split in SPLITS:
            mine = [self.batches[key] for key in sorted(self.batches) if key[0] == split]
            if mine:
                labels = [
                    checked_labels(labels, self.names, max_classes, shown(file.name))
                    for file, labels, _ in mine
                ]
                sources = np.concatenate([sources for *_, sources in mine])
                parts.append(LabelledImages(split, np.concatenate(labels), sources))
        return arrange_labelled(parts, self.names, max_classes)


class _Members:
    """What the archive has had so far, and what dataset that makes."""

    def __init__(self, folder: Path, writer: ContainerWriter, limits: DatasetLimits) -> None:
        self._folder, self._writer, self._limits = folder, writer, limits
        self._images: list[tuple[str, ...]] = []
        self._folders: set[tuple[str, ...]] = set()
        self._seen: set[tuple[str, ...]] = set()
        self._cifar: _CifarBatches | None = None

    @property
    def source(self) -> Source:
        return "folders" if self._cifar is None else self._cifar.name

    def check_new(self, parts: tuple[str, ...]) -> None:
        if parts in self._seen:
            raise broken(f"The archive has {shown('/'.join(parts))} twice.")
        self._seen.add(parts)

    def add_folder(self, parts: tuple[str, ...]) -> None:
        self._folders.add(parts)

    def add_cifar(self, file: CifarFile, pieces: Iterator[bytes]) -> None:
        if self._images:
            raise _mixed(file.name, "/".join(self._images[0]))
        if self._cifar is None:
            self._cifar = _CifarBatches(file.cifar)
        self._cifar.add(file, pieces, self._folder, self._writer)

    def add_file(self, parts: tuple[str, ...], data: bytes) -> None:
        name = "/".join(parts)
        if not is_image(name, data):
            if claims_to_be_image(name):
                raise _no_image(name, data)
            self._folders.add(parts[:-1])
            return
        if self._cifar is not None:
            raise _mixed("CIFAR", name)
        self._writer.add(data)
        self._images.append(parts)

    def layout(self) -> Layout:
        if self._cifar is not None:
            return self._cifar.layout(self._limits.max_classes)
        return arrange(self._images, self._folders, self._limits.max_classes)


def _mixed(batch: str, image: str) -> Exception:
    return broken(
        f"The archive has batches of CIFAR ({shown(batch)}) and images ({shown(image)}).",
        "Send either the one or the other.",
    )


def _no_image(name: str, data: bytes) -> Exception:
    fault = "is no image of a kind that bitpress reads" if data else "is a file of 0 bytes"
    return broken(
        f"{shown(name)} in the archive {fault}.",
        "Replace it by a JPEG, PNG, BMP, WebP, GIF or PPM image, or leave it out.",
    )
