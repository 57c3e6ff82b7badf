"""How a piece of work tells how far it is: the one shape of every ``progress`` argument."""

import time
from collections.abc import Mapping
from typing import Any, Protocol


class Progress(Protocol):
    """Takes how far a step is, 0 to 1, what it is doing, and figures by name, in JSON.

    Figures are for example ``images_per_second``. Reports come as often as the work likes; of those
    that follow each other too fast some are dropped, except where the details name an ``event``:
    each of these is kept, as an event of this kind with the other details as its data.
    """

    def __call__(
        self, fraction: float, message: str, details: Mapping[str, Any] | None = None, /
    ) -> None:
        """Report."""


class ImageRate:
    """How many images a loop gets through, from the moment this is made."""

    def __init__(self, images: int) -> None:
        self._images = images
        self._start = time.perf_counter()

    def details(self, done: int) -> dict[str, Any]:
        """Return ``images`` done, of ``images_total``, and ``images_per_second``."""
        rate = done / max(time.perf_counter() - self._start, 1e-9)
        return {
            "images": done,
            "images_total": self._images,
            "images_per_second": round(rate, 1),
        }
