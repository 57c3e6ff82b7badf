"""From image bytes to numbers: exact where nothing is to be done, and never a crash."""

from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.preprocessing import MAX_DECODED_PIXELS, InputSpec, decode_image, normalise
from store.errors import InvalidImage

RGB = InputSpec(3, 8, 8, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
GREY = InputSpec(1, 8, 8, (0.5,), (0.25,))


def encoded(image, kind="PNG", **options):
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "WEBP"])
def test_image_of_the_right_size_is_taken_pixel_by_pixel(kind):
    pixels = picture(8, 8, 3)
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode_image(encoded(Image.fromarray(pixels), kind, **options), RGB)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, pixels)


def test_jpeg_is_what_pillow_decodes():
    data = encoded(Image.fromarray(picture(8, 8, 3)), "JPEG")
    assert np.array_equal(decode_image(data, RGB), np.array(Image.open(BytesIO(data))))


def test_colours_become_grey_and_grey_becomes_colours():
    grey = picture(8, 8)
    decoded = decode_image(encoded(Image.fromarray(grey)), RGB)
    assert np.array_equal(decoded, np.stack([grey] * 3, axis=2))
    decoded = decode_image(encoded(Image.fromarray(grey)), GREY)
    assert decoded.shape == (8, 8, 1)
    assert np.array_equal(decoded[..., 0], grey)
    colour = Image.fromarray(picture(8, 8, 3))
    assert np.array_equal(
        decode_image(encoded(colour), GREY)[..., 0], np.array(colour.convert("L"))
    )


def test_transparent_parts_are_white():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = (10, 20, 30, 255)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels).quantize(4)):
        decoded = decode_image(encoded(image), RGB)
        assert (decoded[:, :4] == 255).all()
        assert (decoded[:, 4:] == (10, 20, 30)).all()


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_palette_with_transparency_is_decoded_without_a_warning(transparency):
    image = Image.fromarray(np.tile(np.array([[0, 1]], np.uint8), (8, 4)), "L").convert("P")
    image.putpalette([9, 9, 9, 40, 50, 60])
    decoded = decode_image(encoded(image, transparency=transparency), RGB)
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[0, 1].tolist() == [40, 50, 60]


def test_grey_with_alpha_and_bilevel_images():
    pixels = np.stack([picture(8, 8), np.full((8, 8), 255, np.uint8)], axis=2)
    decoded = decode_image(encoded(Image.fromarray(pixels)), GREY)
    assert np.array_equal(decoded, pixels[..., :1])
    bilevel = Image.fromarray(picture(8, 8) > 127)
    assert set(np.unique(decode_image(encoded(bilevel), GREY))) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    decoded = decode_image(encoded(Image.fromarray(grey), kind), GREY)
    assert np.array_equal(decoded[..., 0], grey // 257)


def test_first_frame_of_an_animation_counts():
    frames = [Image.new("L", (8, 8), value) for value in (30, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(data, GREY) == 30).all()


def test_orientation_tags_are_ignored():
    pixels = picture(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(pixels), "PNG", exif=exif)
    assert np.array_equal(decode_image(data, RGB), pixels)


@pytest.mark.parametrize(("height", "width"), [(8, 16), (24, 8), (48, 24), (64, 128)])
def test_other_sizes_are_resized_to_cover_and_cropped_about_the_centre(height, width):
    image = Image.fromarray(picture(height, width, 3))
    shrink = min(height, width) // 8
    whole = np.array(
        image.resize((width // shrink, height // shrink), Image.Resampling.BILINEAR), dtype=int
    )
    top, left = (whole.shape[0] - 8) // 2, (whole.shape[1] - 8) // 2
    decoded = decode_image(encoded(image), RGB)
    assert np.abs(decoded - whole[top : top + 8, left : left + 8]).max() <= 1


def test_resizing_is_pillows_bilinear_filter():
    image = Image.fromarray(picture(24, 24, 3))
    expected = np.array(image.resize((8, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(decode_image(encoded(image), RGB), expected)


def test_long_thin_image_is_resized_without_growing():
    wide = InputSpec(1, 64, 64, (0.0,), (1.0,))
    decoded = decode_image(encoded(Image.new("L", (60_000, 4), 50)), wide)
    assert decoded.shape == (64, 64, 1) and (decoded == 50).all()


def test_target_need_not_be_square():
    tall = InputSpec(3, 12, 6, (0.0,) * 3, (1.0,) * 3)
    assert decode_image(encoded(Image.fromarray(picture(30, 30, 3))), tall).shape == (12, 6, 3)


def photo(width, height, seed=0):
    """A picture with edges, gradients and some noise."""
    y, x = np.mgrid[:height, :width]
    wave = np.stack([np.sin(x / a + y / b) for a, b in ((9, 30), (25, 7), (60, 60))], axis=2)
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(128 + 90 * np.sign(wave) * wave**2 + noise, 0, 255).astype("u1"))


IMAGENET = InputSpec(3, 224, 224, (0.0,) * 3, (1.0,) * 3, resize=256)


@pytest.mark.parametrize(
    "size",
    [(500, 375), (375, 500), (341, 256), (343, 256), (256, 256), (224, 224), (100, 77), (700, 300)],
)
def test_resize_is_the_short_side_of_the_image_whose_centre_is_cut_out(size):
    image = photo(*size)
    short = min(size)
    resized = image.resize(
        tuple(int(256 * side / short) for side in size), Image.Resampling.BILINEAR
    )
    left, top = (round((side - 224) / 2) for side in resized.size)
    expected = np.array(resized.crop((left, top, left + 224, top + 224)), dtype=int)
    decoded = decode_image(encoded(image), IMAGENET).astype(int)
    assert np.abs(decoded - expected).max() <= 1
    # One step in place of two rounds coordinates differently, which shows in hardly a pixel.
    assert (decoded != expected).mean() < 0.005


def test_resize_may_grow_an_image_out_of_proportion_without_growing_in_memory():
    assert (
        decode_image(encoded(Image.new("RGB", (60_000, 4), "red")), IMAGENET)[..., 0].min() == 255
    )


PHOTO = Image.fromarray(picture(40, 40, 3))
WHOLE = {
    "PNG": encoded(PHOTO),
    "JPEG": encoded(PHOTO, "JPEG"),
    "GIF": encoded(PHOTO, "GIF"),
    "BMP": encoded(PHOTO, "BMP"),
    "WEBP": encoded(PHOTO, "WEBP"),
    "PPM": encoded(PHOTO, "PPM"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_truncated_image_is_refused(kind):
    for part in (0.2, 0.5, 0.9):
        with pytest.raises(InvalidImage) as caught:
            decode_image(WHOLE[kind][: int(part * len(WHOLE[kind]))], RGB)
        assert caught.value.remedy


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a", b"hello, this is text" * 50, b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000)],
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(InvalidImage):
        decode_image(data, RGB)


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PDF", "EPS"])
def test_formats_with_wider_powers_are_refused(kind):
    with pytest.raises(InvalidImage, match="known format"):
        decode_image(encoded(PHOTO, kind), RGB)


@pytest.mark.parametrize("size", [(1, 1), (3, 100), (100, 3)])
def test_image_too_small_to_show_anything_is_refused(size):
    with pytest.raises(InvalidImage, match="too small"):
        decode_image(encoded(Image.new("RGB", size)), RGB)


@pytest.mark.parametrize("width", [MAX_DECODED_PIXELS // 4 + 1, 10**9])
def test_image_that_claims_far_too_many_pixels_is_refused(width):
    header = f"P6 {width} 4 255\n".encode()
    with pytest.raises(InvalidImage, match="pixels"):
        decode_image(header + bytes(100), RGB)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_damaged_image_is_decoded_or_refused(kind, changes):
    data = bytearray(WHOLE[kind])
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        assert decode_image(bytes(data), RGB).shape == (8, 8, 3)
    except InvalidImage as error:
        assert error.detail


@pytest.mark.parametrize(
    "spec", [RGB, GREY, InputSpec(3, 8, 8, (0.5,) * 3, (0.5,) * 3, (-1.0, 1.0))]
)
def test_numbers_are_the_formula_in_double_rounded_once(spec):
    images = picture(5, 8, 8, spec.channels)
    low, high = spec.value_range
    p = images.astype(np.float64)
    mean, std = np.array(spec.mean), np.array(spec.std)
    expected = ((low + (high - low) * p / 255 - mean) / std).astype(np.float32)
    x = normalise(images, spec)
    assert x.dtype == torch.float32 and x.is_contiguous()
    assert np.array_equal(x.numpy(), expected.transpose(0, 3, 1, 2))


def test_pixels_of_another_shape_or_dtype_are_an_error():
    assert normalise(picture(0, 8, 8, 3), RGB).shape == (0, 3, 8, 8)
    for images in (picture(2, 8, 8, 1), picture(8, 8, 3), picture(2, 8, 8, 3).astype(np.float32)):
        with pytest.raises(ValueError, match="images"):
            normalise(images, RGB)


def test_specification_survives_json():
    spec = InputSpec(3, 8, 16, (0, 1, 2), (1, 2, 3), (0, 255))
    assert InputSpec.from_json(spec.to_json()) == spec
    assert spec.to_json()["std"] == [1.0, 2.0, 3.0]
    assert "resize" not in spec.to_json()
    assert InputSpec.from_json(IMAGENET.to_json()) == IMAGENET
    assert IMAGENET.to_json()["resize"] == 256
    assert spec.shape == (3, 8, 16)


@pytest.mark.parametrize("resize", [223, 4097, 256.0, True, "256"])
def test_resize_that_covers_no_input_is_an_error(resize):
    with pytest.raises(ValueError, match="resize"):
        InputSpec(3, 224, 200, (0.0,) * 3, (1.0,) * 3, resize=resize)


def test_specification_with_an_odd_member_or_an_empty_resize_is_refused():
    members = RGB.to_json()
    for data in (members | {"crop": 1}, members | {"resize": None}, {"resize": 256}):
        with pytest.raises(ValueError, match=r"members|resize"):
            InputSpec.from_json(data)
