"""Images that take far longer to decode than their bytes and pixels let expect.

What the limits of bytes and pixels do not bound:

- a JPEG's scans: each goes over all coefficients again, and a scan of a few dozen bytes is a whole
  one. Encoders write ten or so;
- two of Pillow's decoders that are loops of Python: of run-length coded BMPs, where two bytes make
  a row of any length, and of plain-text PPMs, where every comment moves all the text behind it.

The rest takes a time in proportion to bytes and pixels: of animations the first frame alone is
decoded, and compressed text and profiles of PNGs have limits within Pillow.
"""

import re
from typing import Final

from PIL.Image import Image

from store.errors import InvalidImage

MAX_SCANS: Final = 64
MAX_RUN_LENGTH_PIXELS: Final = 2**22
MAX_PLAIN_COMMENTS: Final = 64

_MAX_SEGMENTS: Final = 4096
_MARKER: Final = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
"""Those that a decoder stops at: neither stuffed bytes, restarts, nor what it skips as damage."""
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = b"\xd8", b"\xd9", b"\xda"


def check_cost(image: Image, data: bytes) -> None:
    """Refuse an open image, not decoded yet, of the file ``data``, that would take too long.

    Raises:
        InvalidImage: as the module says.
    """
    codecs = {tile[0] for tile in getattr(image, "tile", ())}
    if image.format in ("JPEG", "MPO"):
        _check_scans(data)
    elif "bmp_rle" in codecs and image.width * image.height > MAX_RUN_LENGTH_PIXELS:
        raise InvalidImage(
            f"The image is a BMP with run lengths, of {image.width} x {image.height} pixels.",
            remedy=f"Send a PNG; run lengths may have {MAX_RUN_LENGTH_PIXELS:,} pixels at most.",
        )
    elif "ppm_plain" in codecs and data.count(b"#") > MAX_PLAIN_COMMENTS:
        raise InvalidImage(
            f"The image is plain text with more than {MAX_PLAIN_COMMENTS} comments.",
            remedy="Leave the comments out, or send a PNG.",
        )


def _check_scans(data: bytes) -> None:
    """Count a JPEG's scans as a decoder would meet them: up to its end, thumbnails left out."""
    place, scans = 2, 0
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, place)
        if found is None or found[1] == _END_OF_IMAGE:
            return
        place = found.end()
        if found[1] == _START_OF_IMAGE:
            continue
        scans += found[1] == _START_OF_SCAN
        if scans > MAX_SCANS:
            raise InvalidImage(
                f"The image is a JPEG of more than {MAX_SCANS} scans.",
                remedy="Save it again, as a baseline JPEG or with the usual progression.",
            )
        place += max(int.from_bytes(data[place : place + 2], "big"), 2)
    raise InvalidImage(
        f"The image is a JPEG of more than {_MAX_SEGMENTS} segments.",
        remedy="Save it again, without comments and metadata.",
    )
