"""A plain folder of images as a dataset: for images that are never uploaded, such as ImageNet.

The folder is laid out as an archive would be, ``<split>/<class>/<image>`` or ``<class>/<image>``.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from models.preprocessing import InputSpec
from store.archive_members import DatasetLimits, is_junk
from store.dataset_layout import arrange
from store.image_kinds import claims_to_be_image
from worker.image_cache import DecodedDataset, split_rows
from worker.streamed_pixels import StreamedPixels

# A folder around the dataset, split, class and image: what `arrange` accepts.
_DEEPEST = 4


class ImageFiles:
    """Encoded images in files of their own; ``paths`` are relative to ``root``."""

    def __init__(self, root: Path, paths: Sequence[str], names: Sequence[str]) -> None:
        self._root = root
        self._paths = paths
        self._names = names

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._paths)

    def name(self, row: int) -> str:
        """Return an image's path below the dataset's top folder."""
        return self._names[row]

    def read(self, row: int) -> bytes:
        """Return the content of an image's file. Raises `OSError`."""
        return (self._root / self._paths[row]).read_bytes()


def open_image_folder(root: Path, spec: InputSpec, *, threads: int | None = None) -> DecodedDataset:
    """Return the folder's images, sorted by split, class and name; none is decoded in advance.

    Images of ``train``, ``val`` and ``test`` are decoded to the size of ``spec``, by ``threads``,
    whenever they are read. Files that are no images by their names are passed over.

    Raises:
        InvalidDataset: the layout, as of an archive.
        TooLarge: there are too many classes.
    """
    files, folders = [], []
    for parts, is_file in _entries(root):
        if not is_file:
            folders.append(parts)
        elif claims_to_be_image(parts[-1]):
            files.append(parts)
    layout = arrange(files, folders, DatasetLimits().max_classes)
    names = tuple(image.name for image in layout.images)
    encoded = ImageFiles(root, ["/".join(files[image.source]) for image in layout.images], names)
    return DecodedDataset(
        images=StreamedPixels(encoded, spec, threads),
        labels=np.array([image.label for image in layout.images], dtype=np.int64),
        names=names,
        classes=layout.classes,
        splits=split_rows(layout.counts()),
        encoded=encoded,
    )


def _entries(root: Path, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield the parts of every path below ``root`` that is not junk, and whether it is a file."""
    with os.scandir(root.joinpath(*above)) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            parts = (*above, entry.name)
            if is_junk(parts[-1:]):
                continue
            yield parts, entry.is_file()
            # Bounded, as a link may lead back up.
            if entry.is_dir() and len(parts) < _DEEPEST:
                yield from _entries(root, parts)
