"""The 1,797 handwritten digits of the UCI set: load them, split them, write them as images.

Real data, small enough to come along; README.md beside this file names its origin and licence.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_VALUE = 16
CLASSES = tuple(str(digit) for digit in range(10))

_FILE = Path(__file__).with_name("digits.npz")


@dataclass(frozen=True)
class Digits:
    """Grey images, uint8 (N, 8, 8, 1) in 0..255, and what they show, int64 (N,) in 0..9."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: NDArray[np.int64]) -> "Digits":
        return Digits(self.pixels[chosen], self.labels[chosen])


def load() -> Digits:
    """Return all digits in the order of the set; their values 0..16 become grey levels."""
    with np.load(_FILE) as file:
        values, labels = file["images"], file["labels"]
    # Half a level up before the division floors: round(value * 255 / 16) in integers.
    pixels = (values.astype(np.uint16) * 255 + MAX_VALUE // 2) // MAX_VALUE
    return Digits(pixels.astype(np.uint8)[..., None], labels.astype(np.int64))


def split(digits: Digits, *, test_fraction: float = 0.25, seed: int = 0) -> tuple[Digits, Digits]:
    """Return a training and a test part, with the same share of every class in both."""
    generator = np.random.default_rng(seed)
    train: list[NDArray[np.int64]] = []
    test: list[NDArray[np.int64]] = []
    for label in np.unique(digits.labels):
        members = generator.permutation(np.flatnonzero(digits.labels == label))
        held_out = round(len(members) * test_fraction)
        test.append(members[:held_out])
        train.append(members[held_out:])
    return digits[np.sort(np.concatenate(train))], digits[np.sort(np.concatenate(test))]


def write_images(digits: Digits, folder: Path) -> list[Path]:
    """Write the digits as ``<folder>/<digit>/NNNN.png``; return the paths in their order."""
    paths = []
    for number, (image, label) in enumerate(zip(digits.pixels, digits.labels, strict=True)):
        path = folder / CLASSES[label] / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
        paths.append(path)
    return paths
