"""The images that calibration looks at, batch by batch; of their labels it knows nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.preprocessing import InputSpec, normalise

# Images per forward pass: enough to keep the cores busy on small images, few enough to bound the
# activation maps of large ones.
MOST_IMAGES_PER_BATCH = 100
MOST_PIXELS_PER_BATCH = 800_000


class PixelSource(Protocol):
    """Images as they were decoded, read in pieces."""

    def __len__(self) -> int: ...

    def pixels(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return images ``start`` to ``stop``, (n, H, W, C)."""


@dataclass(frozen=True)
class CalibrationImages:
    """The images that the statistics are taken from, read and normalised batch by batch.

    ``mirror`` adds a copy of every image with left and right exchanged. The batches are brought to
    ``device``, where the networks are.
    """

    source: PixelSource
    spec: InputSpec
    mirror: bool = False
    device: torch.device | None = None

    def __len__(self) -> int:
        return len(self.source) * (2 if self.mirror else 1)

    def batches(self) -> Iterator[Tensor]:
        """Yield float32 batches (n, C, H, W) on ``device``, by default the CPU."""
        most = MOST_PIXELS_PER_BATCH // (self.spec.height * self.spec.width)
        step = max(min(most, MOST_IMAGES_PER_BATCH), 1)
        for start in range(0, len(self.source), step):
            batch = normalise(self.source.pixels(start, start + step), self.spec).to(self.device)
            yield batch
            if self.mirror:
                yield batch.flip(3)
