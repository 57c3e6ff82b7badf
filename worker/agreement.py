"""How far a network answers what the original answers, image by image."""

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np

from worker.answers import Answers, Labels


@dataclass(frozen=True)
class Agreement:
    """The answers after compression beside those before, for the same ``N`` images.

    Attributes:
        top1: share of the images with the same first class, right or wrong, in 0..1.
        of_right: the same among the images that the original got right; None where it got none.
        both_right, lost, gained, both_wrong: images by who got them right; ``lost`` are those that
            only the original did, ``gained`` those that only the compressed network did. They sum
            to ``N``.
        change: accuracy after less accuracy before, ``(gained - lost) / N``.
        standard_error: of ``change``. Each image adds -1, 0 or +1, so the variance of one is
            ``(gained + lost) / N - change^2``. The images being the same before and after, it is
            smaller than that of two accuracies measured apart.
    """

    top1: float
    of_right: float | None
    both_right: int
    lost: int
    gained: int
    both_wrong: int
    change: float
    standard_error: float

    def to_json(self) -> dict[str, Any]:
        """Return the report's ``agreement`` member."""
        return asdict(self)


def agreement(before: Answers, after: Answers, labels: Labels) -> Agreement:
    """Compare the answers ``after`` with those ``before``.

    Raises:
        ValueError: the three are not of one length, or are empty.
    """
    was, is_now = before.right(labels), after.right(labels)
    images = len(labels)
    both = int(np.sum(was & is_now))
    lost = int(np.sum(was & ~is_now))
    gained = int(np.sum(~was & is_now))
    change = (gained - lost) / images
    return Agreement(
        top1=float(np.mean(before.classes == after.classes)),
        of_right=both / (both + lost) if both + lost else None,
        both_right=both,
        lost=lost,
        gained=gained,
        both_wrong=images - both - lost - gained,
        change=change,
        standard_error=sqrt(((gained + lost) / images - change**2) / images),
    )
