"""Random crops of large images: where they lie, and which pixels they give."""

import io
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.preprocessing import InputSpec, decode_image
from store.errors import InvalidImage
from worker.training.random_crop import Crop, decode_random_crop, random_crop

SPEC = InputSpec(3, 24, 24, (0.5,) * 3, (0.25,) * 3)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes with a little noise, as a camera gives them."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    return Image.fromarray(
        np.clip(pixels + random.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)
    )


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def crop_of(width: int, height: int, seed: int, aspect: float = 1.0) -> Crop:
    return random_crop(width, height, aspect, np.random.default_rng(seed))


def triangle_weights(length: int, start: float, end: float, count: int) -> NDArray[np.float64]:
    """Weights (count, length) of an antialiased bilinear filter from [start, end) of an axis."""
    scale = (end - start) / count
    reach = max(scale, 1.0)
    centres = start + (np.arange(count) + 0.5) * scale
    distance = np.abs(np.arange(length) + 0.5 - centres[:, None]) / reach
    weights = np.maximum(1 - distance, 0)
    normalised: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def resized_by_hand(image: Image.Image, crop: Crop, height: int, width: int) -> NDArray[np.float64]:
    pixels = np.asarray(image, dtype=np.float64)
    rows = triangle_weights(image.height, crop.top, crop.top + crop.height, height)
    columns = triangle_weights(image.width, crop.left, crop.left + crop.width, width)
    result: NDArray[np.float64] = np.einsum("iy,jx,yxc->ijc", rows, columns, pixels, optimize=True)
    return result[:, ::-1] if crop.mirrored else result


@pytest.mark.parametrize("size", [(500, 375), (96, 200), (30, 30), (24, 24)])
@pytest.mark.parametrize("seed", range(4))
def test_a_crop_is_the_drawn_part_resized_by_an_antialiased_bilinear_filter(
    size: tuple[int, int], seed: int
) -> None:
    image = photo(*size)
    found = decode_random_crop(encoded(image), SPEC, np.random.default_rng(seed))
    expected = resized_by_hand(image, crop_of(*size, seed), 24, 24)
    assert found.dtype == np.uint8
    # Pillow rounds to whole levels twice, after the rows and after the columns.
    assert np.abs(found - expected).max() <= 1.01


def test_crops_stay_within_the_image_and_the_bounds_of_area_and_aspect() -> None:
    for seed in range(3000):
        crop = crop_of(500, 375, seed)
        assert 0 <= crop.left <= 500 - crop.width
        assert 0 <= crop.top <= 375 - crop.height
        # Sides are whole pixels, which moves area and aspect by less than 2 %.
        assert 0.98 * 0.08 <= crop.width * crop.height / (500 * 375) <= 1.0
        assert 0.98 * 3 / 4 <= crop.width / crop.height <= 1.02 * 4 / 3


def test_crops_are_distributed_as_they_should_be() -> None:
    crops = [crop_of(1000, 1000, seed) for seed in range(4000)]
    mirrored = np.mean([crop.mirrored for crop in crops])
    assert abs(mirrored - 0.5) < 0.04  # five standard errors
    aspects = np.array([math.log(crop.width / crop.height) for crop in crops])
    assert abs(aspects.mean()) < 0.02
    # Uniform in the logarithm, as far as crops of nearly all the image let it be.
    assert abs((np.abs(aspects) < math.log(4 / 3) / 2).mean() - 0.5) < 0.08
    areas = np.array([crop.width * crop.height / 1e6 for crop in crops])
    small = areas[areas < 0.75]  # every aspect fits, so that none of these was drawn again
    assert abs(small.mean() - (0.08 + 0.75) / 2) < 0.02
    lefts = [crop.left / (1000 - crop.width) for crop in crops if crop.width < 900]
    tops = [crop.top / (1000 - crop.height) for crop in crops if crop.height < 900]
    for places in (lefts, tops):
        assert abs(np.mean(places) - 0.5) < 0.03
        assert min(places) < 0.01 and max(places) > 0.99


@pytest.mark.parametrize(
    ("size", "expected"), [((4000, 20), (1986, 0, 27, 20)), ((20, 4000), (0, 1986, 20, 27))]
)
def test_the_centre_is_taken_where_nothing_fits(
    size: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    centres = [crop_of(*size, seed) for seed in range(20)]
    boxes = [(crop.left, crop.top, crop.width, crop.height) for crop in centres]
    assert boxes.count(expected) > 15


def test_aspects_are_relative_to_that_of_the_input() -> None:
    for seed in range(200):
        crop = crop_of(1000, 1000, seed, aspect=2.0)
        assert 0.97 * 2 * 3 / 4 <= crop.width / crop.height <= 1.03 * 2 * 4 / 3


@pytest.mark.parametrize("size", [(1600, 1203), (801, 599)])
def test_large_jpegs_are_decoded_smaller_to_nearly_the_same_pixels(size: tuple[int, int]) -> None:
    data = encoded(photo(*size), "JPEG", quality=95)
    whole = Image.open(io.BytesIO(data))
    for seed in range(8):
        found = decode_random_crop(data, SPEC, np.random.default_rng(seed)).astype(np.float64)
        expected = resized_by_hand(whole, crop_of(*size, seed), 24, 24)
        assert np.abs(found - expected).mean() < 1.5
        assert np.abs(found - expected).max() < 12


def test_a_jpeg_is_never_decoded_to_fewer_pixels_than_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encoded(photo(400, 300), "JPEG")
    sizes: list[tuple[tuple[int, int], float]] = []
    resize = Image.Image.resize

    def recorded(image: Image.Image, size: Any, *arguments: Any, box: Any) -> Image.Image:
        sizes.append((image.size, min(box[2] - box[0], box[3] - box[1])))
        return resize(image, size, *arguments, box=box)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    for seed in range(40):
        decode_random_crop(data, SPEC, np.random.default_rng(seed))
    # None is decoded whole: every part has at least 28 % of a side of 300 pixels.
    assert {size for size, _ in sizes} == {(200, 150), (100, 75), (50, 38)}
    assert min(part for _, part in sizes) >= 24


def test_grey_inputs_and_transparent_images() -> None:
    grey = InputSpec(1, 16, 16, (0.5,), (0.25,))
    data = encoded(Image.new("RGB", (64, 64), (10, 200, 30)), "JPEG")
    found = decode_random_crop(data, grey, np.random.default_rng(0))
    assert found.shape == (16, 16, 1)
    assert np.abs(found.astype(int) - decode_image(data, grey)).max() <= 1
    clear = encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 0)))
    assert (decode_random_crop(clear, SPEC, np.random.default_rng(0)) == 255).all()


def test_damaged_small_and_oversized_images_are_refused() -> None:
    whole = encoded(photo(64, 64), "JPEG")
    for data in (b"", b"no image", whole[:400], encoded(Image.new("RGB", (3, 50)))):
        with pytest.raises(InvalidImage):
            decode_random_crop(data, SPEC, np.random.default_rng(0))
    with pytest.raises(InvalidImage, match="pixels"):
        decode_random_crop(b"P6 1000000000 4 255\n" + bytes(100), SPEC, np.random.default_rng(0))
