"""From labels to splits and classes: the layout of a dataset of arrays.

Label k is the class k: the order of the classes is that of the numbers, on which a trained
network's outputs depend, not that of the names.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.archive_members import broken, safe_parts, shown, too_large
from store.dataset_layout import SPLITS, UNSPLIT, Layout, Placed
from store.errors import InvalidDataset

_FEWEST_DIGITS = 5


@dataclass(frozen=True)
class LabelledImages:
    """Images in the order of their source: ``labels`` (N,), ``sources`` (N,) and one split.

    The n-th image of a split is named ``<split>/<class>/<n>.png``.
    """

    split: str
    labels: NDArray[np.int64]
    sources: NDArray[np.int64]


def class_names(names: Iterable[str], what: str) -> tuple[str, ...]:
    """Return the names of classes, in the order of their labels.

    Raises:
        InvalidDataset: one is empty, there twice, or cannot be the name of a folder.
    """
    checked: dict[str, None] = {}
    for name in names:
        try:
            is_one_name = safe_parts(name) == (name,)
        except InvalidDataset:
            is_one_name = False
        if not is_one_name:
            raise broken(
                f"{what} has the class name {shown(name)}, which no folder could have.",
                "Give every class a printable name without slashes.",
            )
        if name in checked:
            raise broken(
                f"{what} has the class name {shown(name)} twice.", "Give every class its own name."
            )
        checked[name] = None
    return tuple(checked)


def checked_labels(
    labels: NDArray[Any], names: tuple[str, ...] | None, max_classes: int, what: str
) -> NDArray[np.int64]:
    """Return ``labels`` (N,), N > 0, as int64, every one of them that of a class.

    Raises:
        InvalidDataset: one is negative, or has no name where there are names.
        TooLarge: one is past ``max_classes``.
    """
    least, most = int(labels.min()), int(labels.max())
    if least < 0:
        raise broken(f"The labels of {what} go down to {least}.", "Count the classes from 0.")
    if names is not None and most >= len(names):
        raise broken(
            f"The labels of {what} go up to {most}, but there are names for 0 to {len(names) - 1}.",
            "Name every class, in the order of the labels, counted from 0.",
        )
    if most >= max_classes:
        raise too_large(
            f"The labels of {what} go up to {most}, of at most {max_classes:,} classes."
        )
    return labels.astype(np.int64)


def arrange_labelled(
    parts: Sequence[LabelledImages], names: tuple[str, ...] | None, max_classes: int
) -> Layout:
    """Return the layout of ``parts``, of which each is a split.

    Without ``names`` the classes are called by their numbers.

    Raises:
        InvalidDataset: one class, a class without images, classes that differ between splits.
        TooLarge: more than ``max_classes`` classes.
    """
    count = len(names) if names is not None else 1 + max(int(part.labels.max()) for part in parts)
    if count > max_classes:
        raise too_large(f"The dataset has more than {max_classes:,} classes.")
    if names is None:
        names = tuple(str(label) for label in range(count))
    if count == 1:
        raise broken(
            f"The dataset has one class only, {shown(names[0])}.",
            "A classifier needs two classes or more.",
        )
    for part in parts:
        _check_complete(part, names)
    order = (*SPLITS, UNSPLIT)
    images: list[Placed] = []
    for part in sorted(parts, key=lambda part: order.index(part.split)):
        images += _placed(part, names)
    return Layout(names, tuple(images))


def _check_complete(part: LabelledImages, names: tuple[str, ...]) -> None:
    present = np.bincount(part.labels, minlength=len(names))
    missing = np.flatnonzero(present == 0)
    if len(missing):
        label = int(missing[0])
        where = "" if part.split == UNSPLIT else f" in {part.split}"
        raise broken(
            f"The label {label} ({shown(names[label])}) has no images{where}.",
            "Number the classes from 0 without gaps, and give every split images of all of them.",
        )


def _placed(part: LabelledImages, names: tuple[str, ...]) -> list[Placed]:
    digits = max(_FEWEST_DIGITS, len(str(len(part.labels))))
    above = "" if part.split == UNSPLIT else f"{part.split}/"
    # Stable: by label, and within it in the order of the source.
    return [
        Placed(
            part.split,
            label := int(part.labels[number]),
            f"{above}{names[label]}/{number:0{digits}}.png",
            int(part.sources[number]),
        )
        for number in np.argsort(part.labels, kind="stable").tolist()
    ]
