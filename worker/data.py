"""Which images a job trains on, is judged on and reports: seeded, stratified splits.

A dataset that brings train, val and test keeps them. For the others:

===============  ==============================================================================
train, test      a tenth of train, stratified by class, is held out as val
train, val       the given val is reported as test, because the reported images must be the ones
                 that the dataset's author held out; a tenth of train is held out as val
train or no      15 % are held out as test and 15 % as val, by class, at least one image each
splits
others           refused: there is nothing to calibrate on
===============  ==============================================================================

Calibrate on train, decide on val, report on test (design, section 2). What is decided may be
trained once more on train and val together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from models.preprocessing import InputSpec, normalise
from store.errors import InvalidDataset
from worker.image_cache import DecodedDataset
from worker.streamed_pixels import StreamedPixels
from worker.training.encoded_images import Rows
from worker.training.folder_images import FolderImages
from worker.training.images import CachedImages, TrainingImages
from worker.training.recipe import Augmentation

_HELD_OUT = 0.15
_HELD_OUT_OF_TRAIN = 0.1
# Keep the random choices of one seed apart from each other.
_TEST, _VAL, _CALIBRATION = 1, 2, 3
# What images that are decoded whenever they are read may take in memory instead.
_MOST_BYTES_IN_MEMORY = 2**30


@dataclass(frozen=True)
class ImageSet:
    """Some images of a decoded dataset, by row, in the order of ``rows`` int64 ``(N,)``."""

    dataset: DecodedDataset
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class index of each image, int64 ``(N,)``."""
        return self.dataset.labels[self.rows]

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each image, its path within the dataset."""
        return tuple(self.dataset.names[row] for row in self.rows)

    def pixels(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return images ``start`` to ``stop`` as a fresh uint8 array ``(n, H, W, C)``."""
        return np.array(self.dataset.images[self.rows[start:stop]])

    def batches(self, spec: InputSpec, batch_images: int) -> Iterator[torch.Tensor]:
        """Yield the images in order as network inputs, float32 ``(n, C, H, W)``.

        Only one batch is in memory at a time.
        """
        for start in range(0, len(self), batch_images):
            yield normalise(self.pixels(start, start + batch_images), spec)


@dataclass(frozen=True)
class Splits:
    """The three parts of a dataset, which share no image."""

    train: ImageSet
    val: ImageSet
    test: ImageSet

    @property
    def train_and_val(self) -> ImageSet:
        """All images but those of test, in the dataset's order."""
        return replace(self.train, rows=np.sort(np.concatenate([self.train.rows, self.val.rows])))


def split_dataset(dataset: DecodedDataset, seed: int) -> Splits:
    """Return train, val and test as the module's table says; equal seeds give equal splits.

    Raises:
        InvalidDataset: a split would have no images, or a class too few to hold some out.
    """
    given = {name: _row_array(rows) for name, rows in dataset.splits.items() if len(rows)}
    whole = given.get("all")
    if whole is None and set(given) == {"train"}:
        whole = given["train"]
    if whole is not None:
        rest, test = _hold_out(dataset, whole, _HELD_OUT, (seed, _TEST), least_kept=2)
        # Of what remains, so that val is the same share of the whole as test.
        train, val = _hold_out(dataset, rest, _HELD_OUT / (1 - _HELD_OUT), (seed, _VAL))
    elif "train" not in given:
        raise InvalidDataset(
            "The dataset has no images to calibrate on: it has "
            + (" and ".join(given) or "nothing")
            + ", but no train.",
            field="spec.dataset",
            remedy="Add the folder train with images of every class.",
        )
    elif "val" in given and "test" in given:
        train, val, test = given["train"], given["val"], given["test"]
    else:
        test = given["test"] if "test" in given else given["val"]
        train, val = _hold_out(dataset, given["train"], _HELD_OUT_OF_TRAIN, (seed, _VAL))
    return Splits(*(ImageSet(dataset, rows) for rows in (train, val, test)))


def calibration_images(train: ImageSet, seed: int, count: int) -> tuple[ImageSet, str]:
    """Choose ``count`` images of ``train`` at random, in random order, and say what was chosen.

    Their labels are not looked at. Where there are fewer images all are taken, which the
    message then says.
    """
    order = np.random.default_rng((seed, _CALIBRATION)).permutation(len(train))
    chosen = replace(train, rows=train.rows[order[:count]])
    if count > len(train):
        return chosen, f"all {len(train):,} training images, fewer than the {count:,} asked for"
    return chosen, f"{count:,} of {len(train):,} training images"


def in_memory(images: ImageSet) -> ImageSet:
    """Return ``images`` decoded, where they would else be decoded whenever they are read.

    For sets that are read often, such as calibration images. More than 1 GiB of them stay as they
    are.
    """
    dataset = images.dataset
    if not isinstance(dataset.images, StreamedPixels) or not len(images):
        return images
    if len(images) * images.pixels(0, 1).nbytes > _MOST_BYTES_IN_MEMORY:
        return images
    decoded = DecodedDataset(
        images=images.pixels(0, len(images)),
        labels=images.labels,
        names=images.names,
        classes=dataset.classes,
        splits={},
    )
    return ImageSet(decoded, np.arange(len(images)))


def training_images(
    train: ImageSet,
    spec: InputSpec,
    augmentation: Augmentation,
    *,
    seed: int,
    processes: int | None = None,
) -> TrainingImages:
    """Return ``train`` as what is trained on, augmented as the recipe says.

    Random crops are decoded from the images' files by ``processes`` (all cores by default).

    Raises:
        ValueError: random crops of a dataset whose files are not at hand.
    """
    dataset = train.dataset
    if augmentation != "random_resized_crop":
        return CachedImages(
            dataset.images,
            dataset.labels,
            spec,
            seed=seed,
            augmentation=augmentation,
            rows=train.rows,
        )
    if dataset.encoded is None:
        raise ValueError("random crops need the images' files")
    return FolderImages(
        dataset.encoded, dataset.labels, spec, seed=seed, rows=train.rows, processes=processes
    )


def _row_array(rows: range) -> Rows:
    return np.arange(rows.start, rows.stop, dtype=np.int64)


def _hold_out(
    dataset: DecodedDataset,
    rows: Rows,
    share: float,
    seed: tuple[int, int],
    least_kept: int = 1,
) -> tuple[Rows, Rows]:
    """Divide ``rows`` into what is kept and what is held out, class by class, both ascending.

    Of every class at least one image is held out and ``least_kept`` are kept.
    """
    labels = dataset.labels[rows]
    held = np.zeros(len(rows), dtype=bool)
    for label, name in enumerate(dataset.classes):
        members = np.flatnonzero(labels == label)
        least = least_kept + 1
        if len(members) < least:
            raise InvalidDataset(
                f'The class "{name}" has {len(members)} images to train on, too few to hold '
                "some of them out.",
                field="spec.dataset",
                remedy=f"Give every class at least {least} of them, or send the splits train, "
                "val and test.",
            )
        count = min(max(1, round(share * len(members))), len(members) - least_kept)
        order = np.random.default_rng((*seed, label)).permutation(len(members))
        held[members[order[:count]]] = True
    return rows[~held], rows[held]
