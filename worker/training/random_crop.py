"""The usual augmentation of large images: a random part, resized, and mirrored every other time.

As in "Going deeper with convolutions" (Szegedy et al., CVPR 2015, section 6): 8 to 100 % of an
image's area, in an aspect ratio between 3/4 and 4/3.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.preprocessing import InputSpec, flat_colours, open_image

AREA_SHARES: Final = (0.08, 1.0)
ASPECT_RATIOS: Final = (3 / 4, 4 / 3)
_ATTEMPTS: Final = 10


@dataclass(frozen=True)
class Crop:
    """A part of an image, in whole pixels, and whether it is to be mirrored left to right."""

    left: int
    top: int
    width: int
    height: int
    mirrored: bool


def random_crop(width: int, height: int, aspect: float, random: np.random.Generator) -> Crop:
    """Draw a part of an image of ``width`` x ``height`` pixels.

    Its area is uniformly distributed over `AREA_SHARES` of the image's, its ratio of width to
    height log-uniformly over ``aspect`` times `ASPECT_RATIOS`, and its place uniformly. What does
    not fit into the image is drawn again, ten times at most; then the largest part about the
    centre is taken whose ratio is as near to the image's as is allowed.
    """
    mirrored = bool(random.random() < 0.5)
    least, most = (aspect * ratio for ratio in ASPECT_RATIOS)
    for _ in range(_ATTEMPTS):
        area = width * height * random.uniform(*AREA_SHARES)
        ratio = math.exp(random.uniform(math.log(least), math.log(most)))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left = int(random.integers(width - wide + 1))
            top = int(random.integers(height - high + 1))
            return Crop(left, top, wide, high, mirrored)
    wide = min(width, max(1, round(height * most)))
    high = min(height, max(1, round(width / least)))
    return Crop((width - wide) // 2, (height - high) // 2, wide, high, mirrored)


def decode_random_crop(
    data: bytes, spec: InputSpec, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Decode a random part of an image to the size of ``spec``: uint8 ``(H, W, C)``.

    Colours are as in `models.preprocessing.decode_image`. The part is resized with Pillow's
    antialiased bilinear filter. A JPEG file whose part has at least twice the wanted pixels in
    both directions is decoded at a half, a quarter or an eighth of its size, which saves time.

    Raises:
        InvalidImage: as of `decode_image`.
    """
    with open_image(data) as image:
        crop = random_crop(*image.size, spec.width / spec.height, random)
        shrunk = _shrink_while_decoding(image, crop, spec)
        image.load()
        box = tuple(
            edge / shrunk
            for edge in (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        )
        part = flat_colours(image, spec.channels).resize(
            (spec.width, spec.height),
            Image.Resampling.BILINEAR,
            box=(box[0], box[1], box[2], box[3]),
        )
    pixels = np.asarray(part).reshape(spec.height, spec.width, spec.channels)
    return pixels[:, ::-1] if crop.mirrored else pixels


def _shrink_while_decoding(image: Image.Image, crop: Crop, spec: InputSpec) -> float:
    """Have ``image`` decoded no larger than its part needs; return how many times smaller."""
    width, height = image.size
    # Rounded up, so that the part keeps at least the wanted pixels.
    needed = (
        math.ceil(width * spec.width / crop.width),
        math.ceil(height * spec.height / crop.height),
    )
    drafted = image.draft(None, needed)
    # The decoder rounds the size up; the factor itself is that of the box.
    return 1.0 if drafted is None else width / drafted[1][2]
