"""Limits on image bytes that strangers send, held before a single pixel is decoded."""

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from models.preprocessing import FORMATS, MIN_SIDE_PIXELS
from store.errors import InvalidImage, TooLarge


@dataclass(frozen=True)
class ImageLimits:
    """Most bytes of the file, most pixels of the image."""

    max_bytes: int
    max_pixels: int


def check_image(data: bytes, limits: ImageLimits, field: str = "image") -> None:
    """Read the header of ``data`` and refuse what must not be decoded.

    Raises:
        TooLarge: more bytes than allowed.
        InvalidImage: empty, of an unknown format, a damaged header, too many pixels, or a side
            shorter than `MIN_SIDE_PIXELS`.
    """
    if not data:
        raise InvalidImage("The image has 0 bytes.", field=field, remedy="Send an image file.")
    if len(data) > limits.max_bytes:
        raise TooLarge(
            f"The image is larger than {limits.max_bytes:,} bytes.",
            field=field,
            remedy="Send a smaller file, or ask the operator to raise the limit.",
        )
    width, height = _declared_size(data, limits, field)
    if width * height > limits.max_pixels:
        raise _too_many_pixels(limits, field)
    if min(width, height) < MIN_SIDE_PIXELS:
        raise InvalidImage(
            f"The image is {width} x {height} pixels.",
            field=field,
            remedy=f"Send an image of at least {MIN_SIDE_PIXELS} pixels on each side.",
        )


def _declared_size(data: bytes, limits: ImageLimits, field: str) -> tuple[int, int]:
    try:
        # Only the header is read here; decoding happens at load().
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(limits, field) from None
    except UnidentifiedImageError:
        raise InvalidImage(
            "This is no image that can be read.",
            field=field,
            remedy="Send one of: " + ", ".join(FORMATS) + ".",
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError, MemoryError):
        # Which of these a damaged header raises differs from plug-in to plug-in.
        raise InvalidImage(
            "The image's header is damaged.", field=field, remedy="Send an intact image file."
        ) from None


def _too_many_pixels(limits: ImageLimits, field: str) -> InvalidImage:
    return InvalidImage(
        f"The image claims more than {limits.max_pixels:,} pixels.",
        field=field,
        remedy="Scale it down before sending it.",
    )
