"""The benchmark of decoding: the images that it makes up, and what it counts."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import data
from models.preprocessing import InputSpec
from worker.data import ImageSet
from worker.image_folder import open_image_folder

FED = InputSpec(3, 16, 16, (0.5,) * 3, (0.25,) * 3, resize=18)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("generated")
    data.generate(folder, 64, 40, 30)
    return ImageSet(open_image_folder(folder, FED, threads=1), np.arange(64))


def test_generated_images_are_a_dataset_and_the_same_each_time(
    images: ImageSet, tmp_path: Path
) -> None:
    assert images.dataset.classes == ("class0", "class1", "class2", "class3")
    assert images.dataset.splits == {"train": range(64)}
    data.generate(tmp_path, 3, 40, 30)
    again = open_image_folder(tmp_path, FED)
    assert images.dataset.encoded is not None and again.encoded is not None
    assert again.encoded.read(2) == images.dataset.encoded.read(32)


def test_every_way_of_decoding_is_measured(images: ImageSet) -> None:
    speeds = data.decoding(images, FED, repeats=1)
    assert {"random_crops.p1", "centre_crops"} <= set(speeds)
    assert all(speed.images_per_second > 0 for speed in speeds.values())


def test_waiting_is_counted_and_nothing_is_changed() -> None:
    class Slow:
        def __len__(self) -> int:
            return 2

        def epoch(self, epoch, batch_size, *, rank=0, world=1):  # type: ignore[no-untyped-def]
            for value in (1, 2):
                time.sleep(0.02)
                yield torch.full((1,), value), torch.full((1,), epoch)

    waiting = data.Waiting(Slow())
    batches = [(float(x), int(y)) for x, y in waiting.epoch(7, 1)]
    assert batches == [(1.0, 7), (2.0, 7)]
    assert waiting.seconds >= 0.04
