"""From the paths inside an archive to splits and classes.

Known layouts, each with an optional folder around it::

    <class>/<image>
    <split>/<class>/<image>        split: train, val (or valid, validation), test

Every image lies at the same depth, and every split has the same classes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from store.archive_members import broken, shown, too_large
from store.errors import InvalidDataset

UNSPLIT = "all"
SPLITS = ("train", "val", "test")
_SPLIT_OF = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_REMEDY = "Lay the images out as <class>/<image>, or as {train,val,test}/<class>/<image>."

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """Where an image belongs; ``source`` is its index among the paths that came in."""

    split: str
    label: int
    name: str
    source: int


@dataclass(frozen=True)
class Layout:
    """The classes, in the order of their labels, and the images, by split, label and name."""

    classes: tuple[str, ...]
    images: tuple[Placed, ...]

    def counts(self) -> dict[str, int]:
        """Return the number of images of each split, in the order train, val, test."""
        return {split: len(list(group)) for split, group in groupby(i.split for i in self.images)}


def arrange(images: Sequence[Path], folders: Iterable[Path], max_classes: int) -> Layout:
    """Return the layout of ``images``, given the archive's ``folders`` that hold something else.

    A folder where a class belongs, but without images, is a mistake that would otherwise show as
    a wrong number of classes much later.

    Raises:
        InvalidDataset: no images, mixed depths, one class, an empty class, classes that differ
            between splits; naming the class, folder or image.
        TooLarge: more than ``max_classes`` classes.
    """
    if not images:
        raise InvalidDataset(
            "The dataset has no images.",
            field="archive",
            remedy=_REMEDY + " Images are JPEG, PNG, BMP, WebP, GIF or PPM files.",
        )
    depth = _common_depth(images)
    top, is_split = _top_folders(images, depth)
    split_of = _named_splits(images, top) if is_split else _unsplit
    at = top + is_split
    classes_of: dict[str, set[str]] = {}
    for path in images:
        classes_of.setdefault(split_of(path[top]), set()).add(path[at])
    classes = tuple(sorted(set().union(*classes_of.values())))
    _check_classes(classes, classes_of, max_classes)
    around = images[0][:top]
    inside = [folder[top:] for folder in folders if folder[:top] == around]
    _check_empty_folders(inside, is_split, classes, classes_of)
    label_of = {name: label for label, name in enumerate(classes)}
    placed = [
        Placed(split_of(path[top]), label_of[path[at]], "/".join(path[top:]), source)
        for source, path in enumerate(images)
    ]
    order = (*SPLITS, UNSPLIT)
    placed.sort(key=lambda image: (order.index(image.split), image.label, image.name))
    return Layout(classes, tuple(placed))


def named_split(name: str) -> str | None:
    """Return the split that a folder or label of this name means: train, val or test."""
    return _SPLIT_OF.get(name)


def _unsplit(folder: str) -> str:
    return UNSPLIT


def _common_depth(images: Sequence[Path]) -> int:
    depths = Counter(len(path) for path in images)
    depth = depths.most_common(1)[0][0]
    if len(depths) > 1:
        odd = next(path for path in images if len(path) != depth)
        raise broken(
            f"The images lie at different depths: {shown('/'.join(odd))} is not as deep as most.",
            _REMEDY,
        )
    if depth == 1:
        raise broken(f"The image {shown(images[0][0])} lies in no class folder.", _REMEDY)
    if depth > 4:
        raise broken(f"The image {shown('/'.join(images[0]))} lies too deep.", _REMEDY)
    return depth


def _top_folders(images: Sequence[Path], depth: int) -> tuple[int, bool]:
    """Return how many folders are around the dataset (0 or 1), and whether it has splits."""
    first = {path[0] for path in images}
    if depth == 2:
        if first <= _SPLIT_OF.keys():
            raise broken(f"The folder {shown(min(first))} holds images, not classes.", _REMEDY)
        return 0, False
    if depth == 3:
        if first <= _SPLIT_OF.keys():
            return 0, True
        if len(first) == 1:
            return 1, False
        if not first & _SPLIT_OF.keys():
            raise broken(f"The dataset has several top folders, among them {_two(first)}.", _REMEDY)
    elif len(first) > 1:
        raise broken(f"The dataset has several top folders, among them {_two(first)}.", _REMEDY)
    odd = {path[depth - 3] for path in images} - _SPLIT_OF.keys()
    if odd:
        raise broken(f"The folder {shown(min(odd))} is none of train, val and test.", _REMEDY)
    return 1, True


def _two(names: set[str]) -> str:
    return " and ".join(shown(name) for name in sorted(names)[:2])


def _named_splits(images: Sequence[Path], top: int) -> Callable[[str], str]:
    folder_of: dict[str, str] = {}
    for folder in sorted({path[top] for path in images}):
        other = folder_of.setdefault(_SPLIT_OF[folder], folder)
        if other != folder:
            raise broken(
                f"The folders {shown(other)} and {shown(folder)} are one and the same split.",
                "Put their images together in one folder.",
            )
    return _SPLIT_OF.__getitem__


def _check_classes(
    classes: tuple[str, ...], classes_of: dict[str, set[str]], max_classes: int
) -> None:
    if len(classes) > max_classes:
        raise too_large(f"The dataset has more than {max_classes:,} classes.")
    if len(classes) == 1:
        raise broken(
            f"The dataset has one class only, {shown(classes[0])}.",
            "A classifier needs two classes or more. " + _REMEDY,
        )
    for split, present in classes_of.items():
        missing = [name for name in classes if name not in present]
        if missing:
            raise broken(
                f"The class {shown(missing[0])} has no images in {split}, but has in others.",
                "Give every split images of the same classes, spelt alike.",
            )


def _check_empty_folders(
    folders: Iterable[Path],
    is_split: bool,
    classes: tuple[str, ...],
    classes_of: dict[str, set[str]],
) -> None:
    known = frozenset(classes)
    for folder in folders:
        split = _SPLIT_OF.get(folder[0]) if is_split and folder else None
        if split is not None and len(folder) == 1:
            is_empty = split not in classes_of
        elif split is not None or not is_split:
            is_empty = len(folder) == 1 + is_split and folder[-1] not in known
        else:
            is_empty = False
        if is_empty:
            raise broken(
                f"The folder {shown('/'.join(folder))} holds no images.",
                "Remove the folder, or put its images in.",
            )
