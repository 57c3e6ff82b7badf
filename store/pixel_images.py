"""Pixels as encoded images: what a dataset of arrays becomes, so that all behind it stays the same.

Each image is a PNG, which loses nothing. Its digest is that of its pixels, so that it does not
depend on the release of the library that compresses them.
"""

import hashlib
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from store.archive_members import broken, too_large

# The sides of an image that `models.preprocessing` decodes.
MIN_SIDE_PIXELS = 4
MAX_SIDE_PIXELS = 4096

Pixels = NDArray[np.uint8]


def check_sides(height: int, width: int, what: str) -> None:
    """Check the size of images that ``what`` holds. Raises `InvalidDataset` or `TooLarge`."""
    if min(height, width) < MIN_SIDE_PIXELS:
        raise broken(
            f"The images of {what} are {width} x {height} pixels, too small to show anything.",
            f"Send images of at least {MIN_SIDE_PIXELS} pixels a side.",
        )
    if max(height, width) > MAX_SIDE_PIXELS:
        raise too_large(
            f"The images of {what} are {width} x {height} pixels, of at most "
            f"{MAX_SIDE_PIXELS:,} a side."
        )


def encode_pixels(pixels: Pixels) -> tuple[bytes, bytes]:
    """Return the PNG of one image, uint8 (H, W, 1 or 3), and the SHA-256 of its pixels."""
    height, width, channels = pixels.shape
    pixels = np.ascontiguousarray(pixels)
    # The header of a PGM or PPM file, so that equal bytes of another shape count as others.
    header = f"P{5 if channels == 1 else 6}\n{width} {height}\n255\n".encode()
    digest = hashlib.sha256(header + pixels.tobytes()).digest()
    target = BytesIO()
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    image.save(target, "PNG")
    return target.getvalue(), digest
