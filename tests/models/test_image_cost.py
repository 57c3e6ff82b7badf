"""Images that would keep a decoder busy far beyond their bytes and pixels are refused before."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from models.image_cost import MAX_PLAIN_COMMENTS, MAX_RUN_LENGTH_PIXELS, MAX_SCANS
from models.preprocessing import InputSpec, decode_image
from store.errors import InvalidImage

RGB = InputSpec(3, 8, 8, (0.0,) * 3, (1.0,) * 3)
PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8))


def jpeg(**options):
    target = io.BytesIO()
    PHOTO.save(target, "JPEG", **options)
    return target.getvalue()


def with_scans(data, more, between=b""):
    """Repeat the last scan of a JPEG, whose markers Pillow's encoder makes easy to find."""
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + (between + data[start:end]) * more + data[end:]


def scans_of(data):
    return data.count(b"\xff\xda")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
def test_what_encoders_write_is_decoded(options):
    data = jpeg(**options)
    assert scans_of(data) == (10 if options.get("progressive") else 1)
    assert decode_image(data, RGB).shape == (8, 8, 3)


def test_scans_are_bounded():
    data = jpeg(progressive=True)
    most = with_scans(data, MAX_SCANS - scans_of(data))
    assert scans_of(most) == MAX_SCANS
    assert decode_image(most, RGB).shape == (8, 8, 3)
    with pytest.raises(InvalidImage, match="scans"):
        decode_image(with_scans(most, 1), RGB)


@pytest.mark.parametrize(
    "between",
    [
        b"\xff\xff\xff",
        b"\xff\x00\xff",
        b"\xff\xd3",
        b"\xff\x02",
        b"\xff\xfe\x00\x04ab",
        b"garbage",
        b"\xff\xd8",
    ],
)
def test_nothing_between_scans_hides_them(between):
    with pytest.raises(InvalidImage, match="scans"):
        decode_image(with_scans(jpeg(progressive=True), 3 * MAX_SCANS, between), RGB)


def test_scans_of_thumbnails_and_of_what_follows_the_image_do_not_count():
    data = jpeg()
    many = b"\xff\xda" * 5 * MAX_SCANS
    comment = b"\xff\xfe" + struct.pack(">H", len(many) + 2) + many
    whole = decode_image(data, RGB)
    for changed in (data[:2] + comment + data[2:], data + many):
        assert np.array_equal(decode_image(changed, RGB), whole)


def test_segments_are_bounded():
    data = jpeg()
    assert decode_image(data[:2] + b"\xff\xfe\x00\x02" * 1000 + data[2:], RGB).shape == (8, 8, 3)
    with pytest.raises(InvalidImage, match="segments"):
        decode_image(data[:2] + b"\xff\xfe\x00\x02" * 5000 + data[2:], RGB)


def run_length_bmp(width, height):
    """Every row is ended after its first pixel: black."""
    palette, data = bytes(1024), (b"\1\0" + b"\0\0") * height + b"\0\1"
    offset = 54 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", offset + len(data), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return head + info + palette + data


def test_rows_of_run_lengths_are_bounded():
    assert decode_image(run_length_bmp(50, 40), RGB).max() == 0
    with pytest.raises(InvalidImage, match="run lengths"):
        decode_image(run_length_bmp(MAX_RUN_LENGTH_PIXELS // 4 + 1, 4), RGB)


def test_comments_of_plain_text_are_bounded():
    def plain(comments):
        return b"P2 8 8 255\n" + b"#\n" * comments + b"7 " * 64

    assert decode_image(plain(MAX_PLAIN_COMMENTS), RGB).max() == 7
    with pytest.raises(InvalidImage, match="comments"):
        decode_image(plain(MAX_PLAIN_COMMENTS + 1), RGB)
    # Where it is no text, a # is a value like others.
    assert decode_image(b"P5 8 20 255\n" + b"#" * 160, RGB).max() == ord("#")
