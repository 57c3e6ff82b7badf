"""What a classifier answers: each image's first class, and how sure it is of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.evaluation import Logits

Labels = NDArray[np.int64]

_CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class Answers:
    """The answers to ``N`` images.

    Attributes:
        classes: int64 ``(N,)``, the index of the largest logit, the first of equal ones.
        confidences: float64 ``(N,)``, the probability that softmax gives this class, in 0..1.
    """

    classes: Labels
    confidences: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.classes)

    def right(self, labels: Labels) -> NDArray[np.bool_]:
        """Return, as ``(N,)``, which images were given their own class.

        Raises:
            ValueError: there are not as many labels as answers, or none.
        """
        if self.classes.shape != labels.shape or not len(labels):
            raise ValueError(f"{len(self)} answers for {len(labels)} labels")
        return np.equal(self.classes, labels)


def answers_of(logits: Logits) -> Answers:
    """Return the answers that float32 ``logits (N, K)``, which may be memory-mapped, amount to.

    Raises:
        ValueError: there are no images or no classes.
    """
    if logits.ndim != 2 or not logits.size:
        raise ValueError(f"logits of shape {logits.shape} answer nothing")
    classes = np.empty(len(logits), dtype=np.int64)
    confidences = np.empty(len(logits), dtype=np.float64)
    for start in range(0, len(logits), _CHUNK_ROWS):
        chunk = logits[start : start + _CHUNK_ROWS].astype(np.float64)
        classes[start : start + len(chunk)] = chunk.argmax(axis=1)
        # Of the largest logit, exp(l - l) = 1 is the numerator.
        chunk -= chunk.max(axis=1, keepdims=True)
        confidences[start : start + len(chunk)] = 1 / np.exp(chunk).sum(axis=1)
    return Answers(classes, confidences)
