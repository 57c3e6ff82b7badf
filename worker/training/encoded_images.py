"""Images as their files hold them, by number: what large images are trained on and measured from.

At 224 pixels a side, decoded images take ten times the room of their files, 190 GB for ImageNet.
They are read and decoded again whenever they are needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from store.errors import InvalidDataset, InvalidImage

Rows = NDArray[np.int64]


class EncodedImages(Protocol):
    """A dataset's encoded images.

    They are read by several threads at once, and by processes that were forked from this one.
    """

    def __len__(self) -> int:
        """Return the number of images."""

    def name(self, row: int) -> str:
        """Return an image's path within the dataset."""

    def read(self, row: int) -> bytes:
        """Return the content of an image's file. Raises `OSError`."""


class PixelRows(Protocol):
    """Decoded images of one size: an array uint8 (N, H, W, C), or what is read like one."""

    def __len__(self) -> int:
        """Return the number of images."""

    # "Any" lets a numpy array be one of these: it takes much more than rows, and may give less.
    def __getitem__(self, rows: Any, /) -> Any:
        """Return the images ``rows`` (n,) as uint8 (n, H, W, C)."""


@contextmanager
def naming_the_image(images: EncodedImages, row: int) -> Iterator[None]:
    """Have a fault of image ``row`` say which image it is.

    Raises:
        InvalidDataset: in place of `InvalidImage`, and of `OSError` where the file is gone.
    """
    try:
        yield
    except InvalidImage as error:
        fault = error.detail
    except OSError as error:
        fault = f"its file cannot be read ({error.strerror})."
    else:
        return
    raise InvalidDataset(
        f'The dataset\'s image "{images.name(row)}" cannot be used: {fault}',
        field="spec.dataset",
        remedy="Replace the image or leave it out, and send the dataset under a new name.",
    )
