"""What an epoch comes to, and what is told of it on the way."""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from store.errors import InvalidSpec
from worker.progress import Progress
from worker.training.processes import Share, sum_over_processes

# Seconds between two reports, each of which waits for a GPU to catch up.
REPORT_S = 0.5


@dataclass(frozen=True)
class EpochFigures:
    """What one epoch came to.

    ``loss`` is the mean over steps and ``train_accuracy`` the share of right answers, in 0..1, both
    on augmented images and with the weights of the time; ``learning_rate`` is the last step's.
    """

    loss: float
    train_accuracy: float
    images_per_second: float
    seconds: float
    learning_rate: float


class Meter:
    """Adds up the figures of an epoch of so many ``steps``, and reports now and then.

    The reports are of this process's share of the batches, the figures of all.
    """

    def __init__(self, steps: int, batch_size: int, share: Share, progress: Progress) -> None:
        self._steps, self._batch_size = steps, batch_size
        self._share, self._progress = share, progress
        self._done = self._seen = 0
        # Sum of losses, and right answers: kept where they arise, as asking a GPU takes its time.
        self._sums: Tensor | None = None
        self._start = self._reported = time.perf_counter()

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take in one step: its loss, a scalar, logits (n, K) and labels (n,)."""
        right = (logits.argmax(dim=1) == labels).sum()
        step = torch.stack([loss.double(), right.double()])
        self._sums = step if self._sums is None else self._sums + step
        self._done += 1
        self._seen += len(labels)
        if time.perf_counter() - self._reported >= REPORT_S:
            loss_so_far, _ = self._means(self._sums)
            rate = self._images_per_second()
            self._progress(
                self._done / self._steps,
                f"loss {loss_so_far:.4f}, {rate:,.0f} images/s",
                {
                    "batch": self._done,
                    "batches": self._steps,
                    "loss": loss_so_far,
                    "images_per_second": round(rate, 1),
                },
            )
            self._reported = time.perf_counter()

    def figures(self, learning_rate: float) -> EpochFigures:
        """Return what the epoch came to, over all processes.

        Raises:
            InvalidSpec: the loss is no longer a finite number.
        """
        assert self._sums is not None
        sums = sum_over_processes(self._sums, self._share) / self._share.world
        loss, accuracy = self._means(sums)
        seconds = time.perf_counter() - self._start
        return EpochFigures(loss, accuracy, self._images_per_second(), seconds, learning_rate)

    def _means(self, sums: Tensor) -> tuple[float, float]:
        loss, right = sums.tolist()
        if not math.isfinite(loss):
            raise InvalidSpec(
                "The loss is no longer a finite number.",
                field="spec.fine_tune.learning_rate",
                remedy="Ask for a lower learning rate, or for more warmup_epochs.",
            )
        return loss / self._done, right / self._seen

    def _images_per_second(self) -> float:
        return self._done * self._batch_size / (time.perf_counter() - self._start)
