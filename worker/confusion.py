"""Which classes a classifier gets right, and which it takes for which others."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.answers import Answers, Labels

# A matrix for more classes nobody reads, and for 1,000 it would be most of the report.
MOST_MATRIX_CLASSES = 32
MOST_ENTRIES = 20


@dataclass(frozen=True)
class Confused:
    """How many images of class ``label`` were answered with class ``answer``."""

    label: str
    answer: str
    before: int
    after: int


@dataclass(frozen=True)
class ConfusionDifference:
    """The confusion matrix after compression less the one before.

    Attributes:
        matrix: ``(K, K)``, one row per label and one column per answer, in the order of the
            classes: images after less images before. Every row sums to 0. None beyond
            ``MOST_MATRIX_CLASSES`` classes.
        grown: the mistakes that became more, those that grew most first; at most ``MOST_ENTRIES``.
        shrunk: likewise those that became fewer.
    """

    matrix: list[list[int]] | None
    grown: tuple[Confused, ...]
    shrunk: tuple[Confused, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report's ``confusion`` member."""
        return asdict(self)


def class_accuracies(
    forms: Mapping[str, Answers], labels: Labels, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return each class's ``name``, ``images``, and ``accuracy`` in 0..1 by form of the network.

    The accuracy of a class without images is None.

    Raises:
        ValueError: there are not as many labels as answers, or none.
    """
    images = np.bincount(labels, minlength=len(classes)).tolist()
    right = {
        form: np.bincount(labels[answers.right(labels)], minlength=len(classes)).tolist()
        for form, answers in forms.items()
    }
    return [
        {
            "name": name,
            "images": images[label],
            "accuracy": {
                form: found[label] / images[label] if images[label] else None
                for form, found in right.items()
            },
        }
        for label, name in enumerate(classes)
    ]


def confusion_difference(
    before: Answers, after: Answers, labels: Labels, classes: Sequence[str]
) -> ConfusionDifference:
    """Compare which class was taken for which, ``before`` and ``after``.

    Takes memory for the pairs that occur, not for all K^2.

    Raises:
        ValueError: the answers and labels are not of one length, or are empty.
    """
    for answers in (before, after):
        answers.right(labels)
    count = len(classes)
    pairs = np.stack([labels * count + answers.classes for answers in (before, after)])
    found, inverse = np.unique(pairs, return_inverse=True)
    inverse = inverse.reshape(pairs.shape)
    was, now = (np.bincount(row, minlength=len(found)) for row in inverse)
    change = now - was
    wrong = found // count != found % count

    def largest(sign: int) -> tuple[Confused, ...]:
        chosen = np.flatnonzero(wrong & (sign * change > 0))
        # Stable, so that equal changes stay in the order of the classes.
        chosen = chosen[np.argsort(-np.abs(change[chosen]), kind="stable")][:MOST_ENTRIES]
        return tuple(
            Confused(
                classes[found[i] // count], classes[found[i] % count], int(was[i]), int(now[i])
            )
            for i in chosen
        )

    return ConfusionDifference(_matrix(found, change, count), largest(+1), largest(-1))


def _matrix(
    found: NDArray[np.int64], change: NDArray[np.int64], count: int
) -> list[list[int]] | None:
    """Return the changes as ``(count, count)``, or None where that is too much."""
    if count > MOST_MATRIX_CLASSES:
        return None
    matrix = np.zeros(count * count, dtype=np.int64)
    matrix[found] = change
    rows: list[list[int]] = matrix.reshape(count, count).tolist()
    return rows
