"""Whether a classifier is as often right as it is sure (Guo et al., ICML 2017, section 2)."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from worker.answers import Answers, Labels

BINS = 15


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies in one bin; the means are None where there are none."""

    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Confidence:
    """How sure a network is, and how rightly.

    Attributes:
        mean: mean confidence over all images, in 0..1.
        expected_calibration_error: ``sum_m |B_m| / N * |accuracy(B_m) - confidence(B_m)|`` over the
            bins ``B_m`` (Guo et al., equation 3), in 0..1; 0 is perfect. It says nothing of how
            many answers are right.
        bins: bin m of M holds the images of confidence in ``((m - 1) / M, m / M]``.
    """

    mean: float
    expected_calibration_error: float
    bins: tuple[Bin, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what the report's ``confidence`` member says of one form of the network."""
        return asdict(self)


def confidence(answers: Answers, labels: Labels, bins: int = BINS) -> Confidence:
    """Measure how far the confidence of ``answers`` is from their accuracy, in ``bins`` bins.

    Raises:
        ValueError: there are not as many labels as answers, or none.
    """
    right, sure = answers.right(labels), answers.confidences
    # A bin has its upper edge, so `side="left"`; rounding may put a confidence just beyond 1.
    edges = np.arange(1, bins) / bins
    index = np.searchsorted(edges, sure, side="left")
    images = np.bincount(index, minlength=bins)
    sums = [np.bincount(index, weights=of, minlength=bins) for of in (sure, right)]
    gap = np.abs(sums[0] - sums[1]).sum() / len(labels)
    rows = zip(images.tolist(), sums[0].tolist(), sums[1].tolist(), strict=True)
    return Confidence(
        mean=float(sure.mean()),
        expected_calibration_error=float(gap),
        bins=tuple(Bin(n, c / n if n else None, a / n if n else None) for n, c, a in rows),
    )
