"""From image bytes to the network's input: one code for training, evaluation and serving.

Two steps, because images are kept as uint8 between them: `decode_image` turns one encoded image
into pixels of the size that the network wants, `normalise` turns many of those into float32.

How many pixels may be decoded at all is the caller's limit, to be checked before this code runs;
what is refused here is data that is not an image, or not a whole one.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from models.image_cost import check_cost
from store.errors import InvalidImage

FORMATS: Final = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "PPM")
MIN_SIDE_PIXELS: Final = 4
MAX_SIDE_PIXELS: Final = 4096
MAX_DECODED_PIXELS: Final = 89_478_485  # where Pillow begins to warn of a decompression bomb

Box = tuple[float, float, float, float]  # left, top, right, bottom; in pixels of an image

_MODES: Final = {1: "L", 3: "RGB"}
_REMEDY: Final = "Send a whole JPEG, PNG, BMP, WebP, GIF or PPM image."


@dataclass(frozen=True)
class InputSpec:
    """What a network is fed: images ``(channels, height, width)`` and how pixels become numbers.

    A pixel p in 0..255 of channel c becomes ``(low + (high - low) * p / 255 - mean[c]) / std[c]``
    with ``low, high = value_range``.

    ``resize`` is the short side, in pixels, that an image is resized to before its centre is cut
    out: 256 for 224 x 224 in the usual evaluation on ImageNet. None: as small as covers the input.

    Raises:
        ValueError: a value is out of range, or not finite.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float] = (0.0, 1.0)
    resize: int | None = None

    def __post_init__(self) -> None:
        if type(self.channels) is not int or self.channels not in _MODES:
            raise ValueError("channels must be 1 or 3")
        for side in (self.height, self.width):
            if type(side) is not int or not 1 <= side <= MAX_SIDE_PIXELS:
                raise ValueError(f"height and width must be integers in 1..{MAX_SIDE_PIXELS}")
        object.__setattr__(self, "mean", _floats("mean", self.mean, self.channels))
        object.__setattr__(self, "std", _floats("std", self.std, self.channels))
        object.__setattr__(self, "value_range", _floats("value_range", self.value_range, 2))
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        if not self.value_range[0] < self.value_range[1]:
            raise ValueError("value_range must have its low end below its high end")
        if self.resize is not None and (
            type(self.resize) is not int
            or not max(self.height, self.width) <= self.resize <= MAX_SIDE_PIXELS
        ):
            raise ValueError(
                f"resize must be an integer from the larger of height and width to "
                f"{MAX_SIDE_PIXELS}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        return (self.channels, self.height, self.width)

    def to_json(self) -> dict[str, Any]:
        """Return the members as JSON values; ``resize`` only where there is one."""
        members: dict[str, Any] = {
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "mean": list(self.mean),
            "std": list(self.std),
            "value_range": list(self.value_range),
        }
        return members if self.resize is None else members | {"resize": self.resize}

    @classmethod
    def from_json(cls, data: Any) -> "InputSpec":
        """Return the specification that ``to_json`` gave; only ``resize`` may be absent.

        Raises:
            ValueError: naming the first defect.
        """
        members = {"channels", "height", "width", "mean", "std", "value_range"}
        if not isinstance(data, Mapping):
            raise ValueError("must be an object")
        if set(data) - {"resize"} != members:
            odd = sorted(map(repr, (set(data) - {"resize"}) ^ members))
            raise ValueError(f"missing or unknown members: {', '.join(odd)}")
        if "resize" in data and data["resize"] is None:
            raise ValueError("resize must be a number where it is there")
        return cls(**data)


def _floats(name: str, values: Any, count: int) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or len(values) != count:
        raise ValueError(f"{name} must be a list of {count} numbers")
    for value in values:
        # A Python integer can be too large for any float, and then even isfinite raises.
        if type(value) not in (int, float) or not -1e30 < value < 1e30:
            raise ValueError(f"{name} must hold finite numbers")
    return tuple(float(value) for value in values)


def decode_image(data: bytes, spec: InputSpec) -> NDArray[np.uint8]:
    """Decode one image to the size and channels of ``spec``: uint8 ``(H, W, C)``.

    One channel is PIL's mode L, three are RGB. Orientation tags and colour profiles are ignored.
    Transparent parts are laid over white; 16-bit greys are scaled to 8 bits; of an animation the
    first frame counts. An image of another size is resized (bilinear, antialiased) until it just
    covers the wanted one, and cropped about its centre; one of the wanted size is taken as it is.
    With ``spec.resize`` every image is resized until its short side is that, and then cropped.

    Raises:
        InvalidImage: not an image of a known format, damaged, truncated, or under 4 pixels a side.
    """
    with open_image(data) as image:
        image.load()
        return _fit(flat_colours(image, spec.channels), spec)


@contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """Open an encoded image that is within the limits, and is not decoded yet.

    They are of its pixels and of what `models.image_cost` looks at.

    Raises:
        InvalidImage: as in `decode_image`; also for what Pillow raises while the image is open.
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size)
            check_cost(image, data)
            yield image
    except InvalidImage:
        raise
    except UnidentifiedImageError:
        raise InvalidImage("The data is not an image of a known format.", remedy=_REMEDY) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidImage(
            "The image claims far too many pixels.",
            remedy=f"Send an image of at most {MAX_DECODED_PIXELS} pixels.",
        ) from None
    except (
        # What Pillow's decoders raise on damaged data, depending on format and place.
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        EOFError,
        AttributeError,
        struct.error,
    ):
        raise InvalidImage("The image is damaged or truncated.", remedy=_REMEDY) from None


def _check_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE_PIXELS:
        raise InvalidImage(
            f"The image is {width} x {height} pixels, too small to show anything.",
            remedy=f"Send an image of at least {MIN_SIDE_PIXELS} pixels a side.",
        )
    if width * height > MAX_DECODED_PIXELS:
        raise InvalidImage(
            f"The image has {width} x {height} pixels.",
            remedy=f"Send an image of at most {MAX_DECODED_PIXELS} pixels.",
        )


def flat_colours(image: Image.Image, channels: int) -> Image.Image:
    """Return ``image`` in mode L (1 channel) or RGB (3), without transparency and in 8 bits."""
    mode = _MODES[channels]
    if image.mode == "F":
        raise InvalidImage("The image holds floating-point pixels.", remedy=_REMEDY)
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255 and would leave a white picture.
        grey = np.clip(np.asarray(image).astype(np.int64) // 257, 0, 255).astype(np.uint8)
        image = Image.fromarray(grey)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image if image.mode == mode else image.convert(mode)


def _fit(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    wanted = (spec.width, spec.height)
    # Resize and crop at once: a long thin image would grow out of bounds in between.
    if spec.resize is not None:
        box = _centre_of_resized(image.size, wanted, spec.resize)
        image = image.resize(wanted, Image.Resampling.BILINEAR, box=box)
    elif image.size != wanted:
        box = _covering_centre(image.size, wanted)
        image = image.resize(wanted, Image.Resampling.BILINEAR, box=box)
    return np.array(image, dtype=np.uint8).reshape(spec.height, spec.width, spec.channels)


def _covering_centre(size: tuple[int, int], wanted: tuple[int, int]) -> Box:
    """Return the largest part of the shape ``wanted``, (width, height), about the centre."""
    scale = min(size[0] / wanted[0], size[1] / wanted[1])
    sides = [scale * side for side in wanted]
    starts = [max((whole - side) / 2, 0.0) for whole, side in zip(size, sides, strict=True)]
    ends = [min((whole - side) / 2 + side, whole) for whole, side in zip(size, sides, strict=True)]
    return (starts[0], starts[1], ends[0], ends[1])


def _centre_of_resized(size: tuple[int, int], wanted: tuple[int, int], short: int) -> Box:
    """Return the part that the centre ``wanted`` of the image, resized to ``short``, comes from.

    The whole pixels of the image in between count, as where both steps are taken: its long side
    is rounded down, and the centre's place to the nearest pixel, halves to the even one.
    """
    spans = []
    for whole, side in zip(size, wanted, strict=True):
        resized = short * whole // min(size)
        start = round((resized - side) / 2)
        spans.append((start * whole / resized, (start + side) * whole / resized))
    (left, right), (top, bottom) = spans
    return (left, top, right, bottom)


def normalise(images: NDArray[np.uint8], spec: InputSpec) -> torch.Tensor:
    """Turn pixels, uint8 ``(N, H, W, C)``, into the network's input, float32 ``(N, C, H, W)``.

    Each value is ``(low + (high - low) * p / 255 - mean[c]) / std[c]`` computed in float64 and
    rounded once, so that every implementation can give the same bits.

    Raises:
        ValueError: the array is not uint8 of the specification's size.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError("images must be uint8 (N, H, W, C)")
    if images.shape[1:] != (spec.height, spec.width, spec.channels):
        raise ValueError(f"images are {images.shape[1:]}, not {spec.height, spec.width}")
    low, high = spec.value_range
    levels = low + (high - low) * np.arange(256, dtype=np.float64) / 255
    tables = [
        ((levels - mean) / std).astype(np.float32)
        for mean, std in zip(spec.mean, spec.std, strict=True)
    ]
    result = np.empty((len(images), *spec.shape), dtype=np.float32)
    # Image by image, which stays in the cache; "clip" only says that no index is to be checked.
    for image, planes in zip(images, result, strict=True):
        for channel, table in enumerate(tables):
            np.take(table, image[..., channel], out=planes[channel], mode="clip")
    return torch.from_numpy(result)
