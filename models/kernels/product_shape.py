"""What a product of packed bits is on a GPU: its geometry, and what is done with its sums.

Values are channels last and contiguous, ``(N, H, W, C)``; a linear layer is the convolution of a
1 x 1 map with a 1 x 1 kernel. How numbers are kept (`ValueKind`):

``f16``, ``f32``
    real numbers.
``i8``
    levels of a quantizer of at most 8 bits, as ``q - 128``, int8.
``b1``
    signs, a bit each: int32 ``(N, H, W, ceil(C / 32))``. Channel c is bit ``c % 32``, counted from
    the least significant one, of word ``c // 32``; 1 is +1, and the bits past the last channel
    are 0.

Weights are int32 ``(bases, filters, taps, words)``, each tap's channels packed as in ``b1``. The
bits past the last channel have no say: a product never counts them.

With the sums z of one basis, a number each per filter and pixel, a product is, in binary32 and
with every operation rounded on its own where its input is ``i8`` or ``b1``::

    p = base_scale[0] * z[0] + base_scale[1] * z[1] + ...     z[0] + z[1] + ... without scales
    r = gain * p + shift                                      step * p (i8) or p without affine
    y = activation(r + residual)

and y is kept as it is, rounded to binary16, quantized, or compared with a threshold to one bit.
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final, Literal, get_args

from torch import Tensor

from models.attributes import Activation

ValueKind = Literal["f16", "f32", "i8", "b1"]
Pair = tuple[int, int]

WORD_BITS: Final = 32
LEVEL_OFFSET: Final = 128  # a level q is kept as q - 128


@dataclass(frozen=True)
class ProductShape:
    """The geometry of a product, whatever the number of images.

    ``pad_value``: what the border counts as, 0 or 1. For signs 0 means that it does not count.

    Raises:
        ValueError: groups divide the channels or filters unevenly, or no window fits.
    """

    in_channels: int
    filters: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    in_hw: Pair = (1, 1)
    bases: int = 1
    pad_value: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        if self.in_channels % self.groups or self.filters % self.groups:
            raise ValueError("groups must divide the channels and the filters")
        if min(self.out_hw) < 1:
            raise ValueError("no window fits into the map")

    @property
    def group_channels(self) -> int:
        """The channels that one filter reads."""
        return self.in_channels // self.groups

    @property
    def group_filters(self) -> int:
        return self.filters // self.groups

    @property
    def taps(self) -> int:
        """The pixels that one filter reads, kernel rows first."""
        return self.kernel[0] * self.kernel[1]

    @property
    def tap_words(self) -> int:
        """The words of one tap of one filter."""
        return -(-self.group_channels // WORD_BITS)

    @property
    def filter_weights(self) -> int:
        """The weights of one filter of one basis."""
        return self.taps * self.group_channels

    @property
    def words_shape(self) -> tuple[int, int, int, int]:
        """The shape of the packed weights, int32."""
        return (self.bases, self.filters, self.taps, self.tap_words)

    @property
    def out_hw(self) -> Pair:
        """Rows and columns of the result."""
        rows, columns = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, padding, dilation, kernel, stride in zip(
                self.in_hw, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return rows, columns

    def out_shape(self, images: int, kind: ValueKind) -> tuple[int, int, int, int]:
        """Return the shape in which the result for ``images`` is kept."""
        return (images, *self.out_hw, kept_channels(self.filters, kind))


@dataclass(frozen=True)
class Levels:
    """A quantizer whose levels are kept: that of `models.operators.Quantize`.

    ``zero`` is the level that stands for 0, or None where none does.
    """

    bits: Literal[8, 4, 2, 1]
    low: float
    step: float
    zero: int | None


@dataclass(frozen=True)
class Epilogue:
    """How a product is read, and what is done with its sums.

    ``read_levels``: the quantizer of what is read, exactly where that is ``i8``; that of a product
    has a zero.
    ``kept_levels``: that of the result, exactly where that is kept as ``i8``.
    ``also_levels``: a quantizer whose levels are kept besides a result that is kept as a real
    number, for the products that read both.
    ``residual``: how what is added is kept, or None where nothing is.
    ``threshold``: whether a result kept as ``b1`` is +1 where
    ``threshold[0] * y >= threshold[1]``, rather than where ``y >= 0``.

    Raises:
        ValueError: levels or thresholds for another kind of value, or levels without them.
    """

    read: ValueKind
    kept: ValueKind
    read_levels: Levels | None = None
    kept_levels: Levels | None = None
    also_levels: Levels | None = None
    base_scale: bool = False
    affine: bool = False
    residual: Literal["f16", "f32"] | None = None
    activation: Activation | None = None
    threshold: bool = False

    def __post_init__(self) -> None:
        for kind, levels in ((self.read, self.read_levels), (self.kept, self.kept_levels)):
            if kind not in get_args(ValueKind) or (kind == "i8") != (levels is not None):
                raise ValueError("there are levels exactly where a value is kept as i8")
        if self.also_levels is not None and self.kept not in ("f16", "f32"):
            raise ValueError("levels are kept besides real numbers only")
        if self.threshold and self.kept != "b1":
            raise ValueError("only a result that is kept as bits has a threshold")


@dataclass(frozen=True)
class ProductTensors:
    """What a product needs besides values and weights, each on the device and contiguous.

    ``base_scale``: float32 ``(bases, filters)``.
    ``affine``: float32 ``(2, filters)``, gain and shift. Of a product that reads ``i8``, the gain
    is already multiplied by the step of what is read, rounded to float32 once.
    ``slope``: float32 ``(filters,)`` of a prelu.
    ``threshold``: float32 ``(2, filters)``.
    ``residual``: of the result's shape, float16 or float32 as the epilogue says.
    ``also``: int8, of the result's shape: where the levels go that are kept besides.
    ``offsets``, ``places``: what `models.kernels.triton.borders.border_sums` gives, where that is
    not None; of products in Triton alone.
    ``tap_sums``: what `models.kernels.cuda.tap_sums` gives, of products that read ``b1`` alone.
    """

    base_scale: Tensor | None = None
    affine: Tensor | None = None
    slope: Tensor | None = None
    threshold: Tensor | None = None
    residual: Tensor | None = None
    also: Tensor | None = None
    offsets: Tensor | None = None
    places: Tensor | None = None
    tap_sums: Tensor | None = None


def kept_channels(channels: int, kind: ValueKind) -> int:
    """Return how long the last axis of a value of that many channels is."""
    return -(-channels // WORD_BITS) if kind == "b1" else channels


def encoded(shape: ProductShape, epilogue: Epilogue) -> str:
    """Return both as one string: operators of torch's kind take no objects."""
    return json.dumps([asdict(shape), asdict(epilogue)])


@cache
def decoded(text: str) -> tuple[ProductShape, Epilogue]:
    """Return what `encoded` made ``text`` of."""
    shape, epilogue = json.loads(text)
    pairs = {name: tuple(value) for name, value in shape.items() if isinstance(value, list)}
    return ProductShape(**shape | pairs), _epilogue(epilogue)


def _epilogue(members: dict[str, Any]) -> Epilogue:
    kinds = {
        "read_levels": Levels,
        "kept_levels": Levels,
        "also_levels": Levels,
        "activation": Activation,
    }
    made = {name: kind(**members[name]) for name, kind in kinds.items() if members[name]}
    return Epilogue(**members | made)
