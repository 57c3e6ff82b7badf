"""Measuring a classifier: logits over many images, accuracy, and how far two of them differ.

A network is any function from float32 ``(n, C, H, W)`` to float32 ``(n, K)``: the training graph
and every runtime of a packed plan are measured by the same code.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.preprocessing import InputSpec
from store.errors import InvalidCheckpoint
from worker.data import ImageSet
from worker.progress import ImageRate, Progress

Predict = Callable[[torch.Tensor], torch.Tensor]
Logits = NDArray[np.float32]

_CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class Parity:
    """How far two networks agree on the same images.

    ``top1_agreement`` is the share of images with the same first class, in 0..1;
    ``largest_logit_difference`` is max |a - b| and ``largest_logit`` is max |a|, a the expected
    logits.
    """

    top1_agreement: float
    largest_logit_difference: float
    largest_logit: float

    def to_json(self) -> dict[str, float]:
        """Return the report's ``parity`` member."""
        return asdict(self)


def predict_logits(
    predict: Predict,
    images: ImageSet,
    spec: InputSpec,
    progress: Progress,
    *,
    batch_images: int = 250,
    network: str = "network",
) -> Logits:
    """Run ``predict`` over ``images`` batch by batch and return float32 logits ``(N, K)``.

    ``progress`` is called after every batch; ``network`` names the network in its messages.

    Raises:
        InvalidCheckpoint: a logit is NaN or infinite; the image is named.
        ValueError: there are no images, or the answer's shape is not ``(n, K)``.
    """
    if not len(images):
        raise ValueError("there are no images to predict")
    done, rate = 0, ImageRate(len(images))
    logits: Logits | None = None
    with torch.inference_mode():
        for batch in images.batches(spec, batch_images):
            answer = batch_logits(predict, batch, images, done, network)
            if logits is None:
                logits = np.empty((len(images), answer.shape[1]), dtype=np.float32)
            logits[done : done + len(batch)] = answer
            done += len(batch)
            message = f"{network}: {done:,} of {len(images):,} images"
            progress(done / len(images), message, {"form": network, **rate.details(done)})
    assert logits is not None
    return logits


def batch_logits(
    predict: Predict, batch: torch.Tensor, images: ImageSet, start: int, network: str
) -> Logits:
    """Return the logits ``(n, K)`` for one ``batch``: the ``images`` from ``start`` on.

    Raises:
        InvalidCheckpoint: a logit is NaN or infinite; the image is named.
        ValueError: the answer's shape is not ``(n, K)``.
    """
    answer: Logits = predict(batch).to("cpu", torch.float32).numpy()
    if answer.ndim != 2 or len(answer) != len(batch):
        raise ValueError(f"the {network} answers {answer.shape} to {len(batch)} images")
    _check_finite(answer, images, start, network)
    return answer


def accuracy(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Return the share of images, in 0..1, whose largest logit is that of their label.

    Raises:
        ValueError: the two are not of one length, or are empty.
    """
    if len(logits) != len(labels) or not len(labels):
        raise ValueError(f"{len(logits)} logits for {len(labels)} labels")
    return _count_equal(logits, labels) / len(labels)


def parity(expected: Logits, actual: Logits) -> Parity:
    """Compare two networks' logits ``(N, K)`` for the same images, which may be memory-mapped.

    Raises:
        ValueError: the shapes differ, or there are no images.
    """
    if expected.shape != actual.shape or not len(expected):
        raise ValueError(f"cannot compare logits of shapes {expected.shape} and {actual.shape}")
    equal = 0
    difference = largest = 0.0
    for start in range(0, len(expected), _CHUNK_ROWS):
        # In float64, because the difference of two close float32 is what is measured.
        a = expected[start : start + _CHUNK_ROWS].astype(np.float64)
        b = actual[start : start + _CHUNK_ROWS].astype(np.float64)
        equal += int((a.argmax(axis=1) == b.argmax(axis=1)).sum())
        difference = max(difference, float(np.abs(a - b).max()))
        largest = max(largest, float(np.abs(a).max()))
    return Parity(equal / len(expected), difference, largest)


def predictions(
    logits: Logits, images: ImageSet, classes: Sequence[str], split: str
) -> dict[str, Any]:
    """Return the content of ``predictions.json``: each image's label, predicted class and margin.

    The margin is the largest logit less the second largest: two runtimes whose logits differ by
    less than half of it must agree on the class.

    Raises:
        ValueError: as many logits as images and classes are needed, and two classes or more.
    """
    if logits.shape != (len(images), len(classes)) or len(classes) < 2:
        raise ValueError(f"{logits.shape} logits, {len(images)} images, {len(classes)} classes")
    top_two = np.partition(logits, -2, axis=1)[:, -2:].astype(np.float64)
    rows = zip(
        images.names,
        images.labels.tolist(),
        logits.argmax(axis=1).tolist(),
        (top_two[:, 1] - top_two[:, 0]).tolist(),
        strict=True,
    )
    return {
        "split": split,
        "images": [
            {"name": name, "label": classes[label], "class": classes[index], "margin": margin}
            for name, label, index, margin in rows
        ],
    }


def _count_equal(logits: Logits, labels: NDArray[np.int64]) -> int:
    chunks = range(0, len(logits), _CHUNK_ROWS)
    return sum(
        int((logits[s : s + _CHUNK_ROWS].argmax(axis=1) == labels[s : s + _CHUNK_ROWS]).sum())
        for s in chunks
    )


def _check_finite(answer: Logits, images: ImageSet, start: int, network: str) -> None:
    faulty = np.flatnonzero(~np.isfinite(answer).all(axis=1))
    if len(faulty):
        name = images.dataset.names[int(images.rows[start + faulty[0]])]
        raise InvalidCheckpoint(
            f'The {network} answers with numbers that are not finite for the image "{name}".',
            field="checkpoint",
            remedy="Check the checkpoint, and that mean, std and value range are those it was "
            "trained with.",
        )
