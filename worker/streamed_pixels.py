"""Images decoded whenever they are read: for datasets that are too large to be kept decoded."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.cores import usable_cores
from models.preprocessing import InputSpec, decode_image
from worker.training.encoded_images import EncodedImages, Rows, naming_the_image

# Few, so that the threads finish together.
_IMAGES_PER_TASK = 4


class StreamedPixels:
    """Read like an array uint8 ``(N, H, W, C)``: ``pixels[rows]`` decodes these images.

    They are decoded by threads, as Pillow lets other threads run while it decodes.
    """

    def __init__(self, images: EncodedImages, spec: InputSpec, threads: int | None = None) -> None:
        self._images = images
        self._spec = spec
        self._threads = threads or usable_cores()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def __getitem__(self, rows: Any, /) -> NDArray[np.uint8]:
        """Return the images ``rows`` (n,), decoded to the size of the specification.

        Raises:
            InvalidDataset: an image cannot be decoded, which is named.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        starts = range(0, len(wanted), _IMAGES_PER_TASK)
        parts = [wanted[start : start + _IMAGES_PER_TASK] for start in starts]
        with ThreadPoolExecutor(self._threads, thread_name_prefix="decode") as pool:
            try:
                decoded = list(pool.map(self._decode, parts))
            finally:
                pool.shutdown(cancel_futures=True)
        return np.concatenate(decoded) if decoded else decode_rows(self._images, wanted, self._spec)

    def _decode(self, rows: Rows) -> NDArray[np.uint8]:
        return decode_rows(self._images, rows, self._spec)


def decode_rows(images: EncodedImages, rows: Rows, spec: InputSpec) -> NDArray[np.uint8]:
    """Decode the images ``rows`` (n,) to uint8 ``(n, H, W, C)``, one after the other.

    Raises:
        InvalidDataset: an image cannot be decoded, which is named.
    """
    pixels = np.empty((len(rows), spec.height, spec.width, spec.channels), dtype=np.uint8)
    for place, row in enumerate(rows.tolist()):
        with naming_the_image(images, row):
            pixels[place] = decode_image(images.read(row), spec)
    return pixels
