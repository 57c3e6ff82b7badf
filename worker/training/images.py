"""Training images: who yields them, and those that fit into memory.

Order and augmentation depend on the seed and the epoch alone, never on what was read before: an
epoch that is begun again in a new process sees the same images.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from models.preprocessing import InputSpec, normalise
from worker.training.encoded_images import PixelRows
from worker.training.look_ahead import one_ahead
from worker.training.recipe import Augmentation

# How far an image is moved in each direction; what comes in at the border is black, pixel value 0.
SHIFT_PIXELS = 4

_ORDER, _AUGMENTATION = 1, 2  # keep the random choices of one seed and epoch apart


class TrainingImages(Protocol):
    """Labelled images, augmented anew in each epoch."""

    def __len__(self) -> int:
        """Return the number of images."""

    def epoch(
        self, epoch: int, batch_size: int, *, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``len // batch_size`` batches: inputs float32 (n, C, H, W), labels int64 (n,).

        Inputs are normalised and augmented. With ``world`` processes a batch is divided among
        them: the one of ``rank`` gets ``n = batch_size / world`` of its images.
        """


class CachedImages:
    """Images as arrays of one size, which are mirrored and shifted.

    The usual augmentation of small images: mirrored with probability 1/2, and moved by up to
    `SHIFT_PIXELS` in each direction. The border is filled before normalisation, with zeros.
    """

    def __init__(
        self,
        pixels: PixelRows,
        labels: NDArray[np.int64],
        spec: InputSpec,
        *,
        seed: int,
        augmentation: Augmentation = "flip_and_shift",
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """Take images ``rows`` of ``pixels`` (N, H, W, C); all where there are no rows.

        Only a batch of ``pixels`` is read at a time, as they may be mapped from the disk. Where
        they are no array, reading takes long, and a batch is read while the one before it is
        used. ``labels`` is of the length of ``pixels``.

        Raises:
            ValueError: the augmentation is not one for decoded images, or lengths differ.
        """
        if augmentation == "random_resized_crop":
            raise ValueError("random crops need the whole images, not those decoded to one size")
        if len(pixels) != len(labels):
            raise ValueError(f"{len(pixels)} images with {len(labels)} labels")
        self._pixels, self._labels, self._spec = pixels, labels, spec
        self._seed, self._augmented = seed, augmentation != "none"
        self._rows = np.arange(len(pixels)) if rows is None else rows

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    def epoch(
        self, epoch: int, batch_size: int, *, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the epoch's whole batches; see `TrainingImages.epoch`.

        Raises:
            ValueError: ``world`` does not divide the batch.
        """
        if batch_size % world:
            raise ValueError(f"a batch of {batch_size} cannot be divided by {world}")
        batches = self._batches(epoch, batch_size, rank, batch_size // world)
        yield from batches if isinstance(self._pixels, np.ndarray) else one_ahead(batches)

    def _batches(
        self, epoch: int, batch_size: int, rank: int, share: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        order = np.random.default_rng((self._seed, _ORDER, epoch)).permutation(self._rows)
        mirrored, down, right = self._changes(epoch)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            part = slice(start + rank * share, start + (rank + 1) * share)
            rows = order[part]
            pixels = np.asarray(self._pixels[rows])
            if self._augmented:
                pixels = flip_and_shift(pixels, mirrored[part], down[part], right[part])
            labels = torch.from_numpy(np.asarray(self._labels[rows], dtype=np.int64))
            yield normalise(pixels, self._spec), labels

    def _changes(
        self, epoch: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Draw for every place in the order: mirrored or not, and the shifts down and right."""
        random = np.random.default_rng((self._seed, _AUGMENTATION, epoch))
        mirrored = random.random(len(self)) < 0.5
        down, right = random.integers(-SHIFT_PIXELS, SHIFT_PIXELS + 1, (2, len(self)))
        return mirrored, down, right


def flip_and_shift(
    pixels: NDArray[np.uint8],
    mirrored: NDArray[np.bool_],
    down: NDArray[np.int64],
    right: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Return images (n, H, W, C), each mirrored or not and then moved; new pixels are 0.

    ``mirrored``, ``down`` and ``right`` have shape (n,); shifts lie within `SHIFT_PIXELS`.
    """
    count, height, width, channels = pixels.shape
    most = SHIFT_PIXELS
    padded = np.zeros((count, height + 2 * most, width + 2 * most, channels), dtype=np.uint8)
    inside = padded[:, most : most + height, most : most + width]
    inside[~mirrored] = pixels[~mirrored]
    inside[mirrored] = pixels[mirrored, :, ::-1]
    windows = sliding_window_view(padded, (height, width, channels), axis=(1, 2, 3))
    moved: NDArray[np.uint8] = windows[np.arange(count), most - down, most - right, 0]
    return moved
