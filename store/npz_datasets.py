"""Datasets in ``.npz`` files: which arrays they are made of, and what each of them must be.

======================================================  ======================================
arrays                                                  meaning
======================================================  ======================================
``x_train`` ``y_train`` ``x_test`` ``y_test``           the splits, as in keras; also ``val``
``train_images`` ``train_labels`` ... (val, test)       the same, as in MedMNIST
``images`` ``labels``, perhaps ``split``                all images together; ``split`` names each
                                                        image's split
``classes`` or ``label_names``                          the names of the labels 0, 1, ...
======================================================  ======================================

Images are uint8 ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` with 1 or 3 channels; labels
are integers from 0, ``(N,)`` or ``(N, 1)``, or texts. Other arrays are passed over unread.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.archive_members import DatasetLimits, Member, Meter, broken, shown, too_large
from store.dataset_layout import SPLITS, UNSPLIT, named_split
from store.labelled_layout import checked_labels, class_names
from store.npy_arrays import ArrayFile, open_array, records
from store.pixel_images import check_sides
from store.zipfiles import first_name, open_zip

_SUFFIX = ".npy"
_CHANNELS = (1, 3)
_MOST_ARRAYS = 64
_CLASSES = ("classes", "label_names")
_PAIRS = [
    (split, images, labels)
    for split in SPLITS
    for images, labels in ((f"x_{split}", f"y_{split}"), (f"{split}_images", f"{split}_labels"))
] + [(UNSPLIT, "images", "labels")]
_REMEDY = (
    "Save x_train, y_train, x_test and y_test, or images and labels; docs/API.md tells which kinds."
)


@dataclass(frozen=True)
class ImageArray:
    """Images ``(N, H, W, C)`` of one split, or of none, and what is known of each.

    ``splits`` (N,) gives every image's split where the array holds several.
    """

    file: ArrayFile
    split: str
    labels: NDArray[np.int64]
    splits: NDArray[np.str_] | None

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the images in order, some at a time, as uint8 ``(n, H, W, C)``."""
        shape, moves = _pixel_order(self.file)
        for block in records(self.file.items, int(np.prod(shape, dtype=np.int64))):
            yield np.frombuffer(block, dtype=np.uint8).reshape(-1, *shape).transpose(moves)


@dataclass(frozen=True)
class NpzDataset:
    """The arrays of images, their labels read and checked; ``names`` are those of the classes."""

    images: tuple[ImageArray, ...]
    names: tuple[str, ...] | None


@contextmanager
def open_npz(path: Path, meter: Meter) -> Iterator[NpzDataset | None]:
    """Read what an ``.npz`` file declares, and its labels; None where the file is no such file.

    Raises:
        InvalidDataset: an array is missing, or is not what the module's table says.
        TooLarge: more images or arrays than the limits allow.
    """
    if not first_name(path).endswith(_SUFFIX.encode()):
        yield None
        return
    with open_zip(path, meter) as members:
        files = list(islice(members, _MOST_ARRAYS + 1))
        if not all(_is_array(file) for file in files):
            yield None
            return
        if len(files) > _MOST_ARRAYS:
            raise too_large(f"The file has more than {_MOST_ARRAYS} arrays.")
        yield _dataset(_by_name(files), meter.limits)


def _is_array(member: Member) -> bool:
    return len(member.parts) == 1 and member.parts[0].endswith(_SUFFIX)


def _by_name(files: list[Member]) -> dict[str, Member]:
    arrays: dict[str, Member] = {}
    for file in files:
        name = file.parts[0].removesuffix(_SUFFIX)
        if name in arrays:
            raise broken(f"The file has the array {shown(name)} twice.")
        arrays[name] = file
    return arrays


def _dataset(arrays: dict[str, Member], limits: DatasetLimits) -> NpzDataset:
    found = _pairs(arrays)
    read: list[tuple[str, ArrayFile, NDArray[Any], NDArray[np.str_] | None]] = []
    total = 0
    for split, images_name, labels_name in found:
        images = open_array(arrays[images_name])
        _check_images(images)
        total += images.shape[0]
        if total > limits.max_images:
            raise too_large(f"The dataset has more than {limits.max_images:,} images.")
        labels = _flat(open_array(arrays[labels_name]), len_of=images)
        splits = _splits(arrays, images) if split == UNSPLIT else None
        read.append((split, images, labels, splits))
    names = _names(arrays)
    texts = [labels for _, _, labels, _ in read if labels.dtype.kind == "U"]
    if texts and len(texts) < len(read):
        raise broken("Some labels are numbers and some are texts.", "Use one kind for all of them.")
    if texts and names is None:
        names = class_names(_distinct(texts), "The file")
    found_images = []
    for split, images, labels, splits in read:
        numbers = checked_labels(
            _numbered(labels, names), names, limits.max_classes, f"the images {shown(images.name)}"
        )
        found_images.append(ImageArray(images, split, numbers, splits))
    return NpzDataset(tuple(found_images), names)


def _pairs(arrays: dict[str, Member]) -> list[tuple[str, str, str]]:
    """Return split, images and labels of the arrays that make the dataset."""
    found: list[tuple[str, str, str]] = []
    for split, images, labels in _PAIRS:
        if (images in arrays) != (labels in arrays):
            there, missing = (images, labels) if images in arrays else (labels, images)
            raise broken(f"The file has the array {there}, but not {missing}.", _REMEDY)
        if images in arrays:
            found.append((split, images, labels))
    if not found:
        raise broken("The file has no arrays of images and labels.", _REMEDY)
    splits = [split for split, _, _ in found]
    if len(set(splits)) < len(splits) or (UNSPLIT in splits and len(splits) > 1):
        names = " and ".join(images for _, images, _ in found)
        raise broken(f"The file has {names}, which say the same thing twice.", _REMEDY)
    return found


def _check_images(images: ArrayFile) -> None:
    if images.dtype != np.uint8:
        raise broken(
            f"The array {shown(images.name)} is of type {images.dtype}, not uint8.",
            "Save pixels from 0 to 255 as uint8.",
        )
    (height, width, _), _ = _sides(images)
    check_sides(height, width, f"the array {shown(images.name)}")


def _sides(images: ArrayFile) -> tuple[tuple[int, int, int], bool]:
    """Return height, width and channels of the images, and whether their channels come first."""
    sides = images.shape[1:]
    if len(sides) == 2:
        return (sides[0], sides[1], 1), False
    first = len(sides) == 3 and sides[0] in _CHANNELS
    last = len(sides) == 3 and sides[2] in _CHANNELS
    if first == last:
        shape = " x ".join(map(str, images.shape))
        raise broken(
            f"The array {shown(images.name)} has the shape {shape}, which are no images"
            + (" of a known order of channels." if first else "."),
            "Save images as (N, H, W), (N, H, W, C) or (N, C, H, W), with 1 or 3 channels.",
        )
    if first:
        return (sides[1], sides[2], sides[0]), True
    return (sides[0], sides[1], sides[2]), False


def _pixel_order(images: ArrayFile) -> tuple[tuple[int, int, int], tuple[int, int, int, int]]:
    """Return the shape in which an image lies in the file, and how it becomes (H, W, C)."""
    (height, width, channels), channels_first = _sides(images)
    if channels_first:
        return (channels, height, width), (0, 2, 3, 1)
    return (height, width, channels), (0, 1, 2, 3)


def _flat(array: ArrayFile, *, len_of: ArrayFile) -> NDArray[Any]:
    """Return labels as an array (N,), one for each image."""
    count = len_of.shape[0]
    if array.shape not in ((count,), (count, 1)):
        shape = " x ".join(map(str, array.shape))
        raise broken(
            f"The array {shown(array.name)} has the shape {shape}, but there are {count:,} images"
            f" in {shown(len_of.name)}.",
            "Save one label for each image, (N,) or (N, 1); of one-hot labels their argmax.",
        )
    return array.small().reshape(count)


def _splits(arrays: dict[str, Member], images: ArrayFile) -> NDArray[np.str_] | None:
    if "split" not in arrays:
        return None
    names = _flat(open_array(arrays["split"]), len_of=images)
    meant: dict[str, str] = {}
    for name in _distinct([names]) if names.dtype.kind == "U" else []:
        split = named_split(name)
        if split is None:
            raise broken(
                f'The array "split.npy" has the name {shown(name)}.', "Use train, val and test."
            )
        meant[name] = split
    if not meant:
        raise broken('The array "split.npy" holds no texts.', "Use train, val and test.")
    splits = np.empty(len(names), dtype="<U5")
    for name, split in meant.items():
        splits[names == name] = split
    return splits


def _names(arrays: dict[str, Member]) -> tuple[str, ...] | None:
    given = [name for name in _CLASSES if name in arrays]
    if not given:
        return None
    if len(given) > 1:
        raise broken("The file has both classes and label_names.", "Leave one of them out.")
    names = open_array(arrays[given[0]])
    if names.dtype.kind != "U" or len(names.shape) != 1:
        raise broken(
            f"The array {shown(names.name)} is no list of texts.",
            "Save the names of the classes as texts, in the order of their labels.",
        )
    return class_names(_texts(names.small()), f"The array {shown(names.name)}")


def _distinct(arrays: list[NDArray[Any]]) -> list[str]:
    """Return the texts that there are, sorted."""
    found: set[str] = set()
    for array in arrays:
        found.update(_texts(np.unique(array)))
    return sorted(found)


def _texts(array: NDArray[Any]) -> list[str]:
    return [str(text) for text in array.tolist()]


def _numbered(labels: NDArray[Any], names: tuple[str, ...] | None) -> NDArray[Any]:
    """Return labels as numbers, where they are names of classes."""
    if labels.dtype.kind != "U" or names is None:
        return labels
    number_of = {name: number for number, name in enumerate(names)}
    distinct, which = np.unique(labels, return_inverse=True)
    texts = _texts(distinct)
    for name in texts:
        if name not in number_of:
            raise broken(f"The label {shown(name)} is no name of a class.")
    return np.array([number_of[name] for name in texts], dtype=np.int64)[which]
