"""Images to calibrate and to time on: some of the shared CIFAR-10 copies, or noise.

How long a network takes does not depend on its input, but the ranges of its activations do, and
with them whether an 8-bit network still answers as the float one: so real images are taken where
they are at hand, enlarged for networks of 224 pixels.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from models.preprocessing import InputSpec, decode_image
from worker.calibration_images import CalibrationImages

Split = Literal["train", "test"]

SHARED: Final = Path(os.environ.get("BITPRESS_SHARED", "../shared"))
_ARCHIVE: Final = SHARED / "data/cifar10-jpeg.tar.xz"
_PER_CLASS: Final = 10  # of each split that are read
_CLASSES: Final = 10


@dataclass(frozen=True)
class Pixels:
    """Decoded images, uint8 ``(n, H, W, C)``, as `CalibrationImages` reads them."""

    images: NDArray[np.uint8]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def pixels(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return images ``start`` to ``stop``."""
        return self.images[start:stop]


def are_real() -> bool:
    """Return whether there are images; else noise is taken."""
    return _ARCHIVE.is_file()


def images(fed: InputSpec, split: Split, count: int) -> CalibrationImages:
    """Return ``count`` images of all classes by turns; those of the splits are different ones."""
    most = _PER_CLASS * _CLASSES
    if count > most:
        raise ValueError(f"{count} images are more than the {most} there are")
    if not are_real() or fed.channels != 3:
        shape = (count, fed.height, fed.width, fed.channels)
        rng = np.random.default_rng(0 if split == "train" else 1)
        return CalibrationImages(Pixels(rng.integers(0, 256, shape, dtype=np.uint8)), fed)
    encoded = _encoded()[split][:count]
    return CalibrationImages(Pixels(np.stack([decode_image(data, fed) for data in encoded])), fed)


@cache
def _encoded() -> dict[Split, list[bytes]]:
    """Return the first images of every class: the first of each, the second of each, ..."""
    found: dict[Split, list[tuple[int, str, bytes]]] = {"train": [], "test": []}
    for split, label, number, data in _first_of_classes():
        found[split].append((number, label, data))
    return {split: [data for *_, data in sorted(members)] for split, members in found.items()}


def _first_of_classes() -> Iterator[tuple[Split, str, int, bytes]]:
    counts: Counter[tuple[str, str]] = Counter()
    # Read from front to back: in a compressed archive nothing else is possible.
    with tarfile.open(_ARCHIVE, "r|xz") as archive:
        for member in archive:
            folders = Path(member.name).parts[-3:]
            if not member.isfile() or len(folders) != 3 or folders[0] not in ("train", "test"):
                continue
            split: Split = "train" if folders[0] == "train" else "test"
            label = folders[1]
            if counts[split, label] == _PER_CLASS:
                continue
            counts[split, label] += 1
            file = archive.extractfile(member)
            assert file is not None
            yield split, label, counts[split, label], file.read()
