"""The closed set of operators of a plan, opset 1: one frozen dataclass each.

An operator reads one or more *values* and makes one, which bears the operator's name. A value
holds, per image, a map ``(C, H, W)`` or a vector ``(F,)`` of real numbers; its first axis is
called its channels. docs/FORMAT.md states what each operator computes, `models.runtime.reference`
is that statement as code.

An operator knows the shape of what it makes, the tensors it needs from the file (dtype and shape,
by the suffix of their name), and the multiply-accumulates it costs for one image. It knows nothing
of the tensors' contents and nothing of its neighbours: `models.plan` puts them together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import ClassVar, Final, Literal, NoReturn

import numpy as np

from models.attributes import (
    Activation,
    activation,
    attribute,
    choice,
    flag,
    integer,
    name,
    names,
    number,
    optional_activation,
    optional_name,
    pair,
)
from models.bits import row_bytes
from store.errors import InvalidArtifact

Shape = tuple[int, ...]
Pair = tuple[int, int]

MAX_CHANNELS: Final = 1 << 20
MAX_KERNEL: Final = 1024
MAX_BASES: Final = 64
MAX_CONCAT_INPUTS: Final = 1024
MAX_ELEMENTS: Final = 1 << 26  # of one value, per image: 256 MiB of float32

_COUNT: Final = attribute(integer(1, MAX_CHANNELS))
_PADDED: Final = attribute(integer(0, MAX_CHANNELS))
_STEPS: Final = attribute(pair(1, MAX_KERNEL))
_MARGINS: Final = attribute(pair(0, MAX_KERNEL))
_NAME: Final = attribute(name)
_OPTIONAL_ACTIVATION: Final = attribute(optional_activation)


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor in the file must be."""

    dtype: Literal["U8", "F32"]
    shape: Shape


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What all operators have: a kind, ``op``, and a name, which is also that of their result."""

    op: ClassVar[str] = ""

    name: str = field(metadata=_NAME)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the values it reads."""
        raise NotImplementedError

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the shape made from values of ``shapes``, one per source.

        Raises:
            InvalidArtifact: the operator cannot read values of these shapes.
        """
        raise NotImplementedError

    def tensors(self, shapes: Sequence[Shape]) -> dict[str, TensorSpec]:
        """Return the tensors it needs, by suffix, where it reads values of ``shapes``."""
        return {}

    def macs(self, shapes: Sequence[Shape]) -> int:
        """Return the multiply-accumulates for one image, products with weights alone."""
        return 0

    def refuse(self, defect: str) -> NoReturn:
        """Raise InvalidArtifact about this node."""
        raise InvalidArtifact(f"Node {self.name!r} ({self.op}): {defect}.", field="plan")

    def _map(self, shape: Shape) -> tuple[int, int, int]:
        if len(shape) != 3:
            self.refuse(f"reads a map (C, H, W), not a value of shape {shape}")
        return (shape[0], shape[1], shape[2])


@dataclass(frozen=True, kw_only=True)
class _Unary(Operator):
    """Reads one value."""

    input: str = field(metadata=_NAME)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, kw_only=True)
class _Product(_Unary):
    """Inputs times weights: ``activation(affine(product) + residual)``.

    Weights are float, or ``bases`` sets of packed bits, each with one scale per output channel
    where ``base_scale`` is set: ``product[n] = sum_k base_scale[k, n] * (bits[k, n] . x)``.
    """

    channels: int = field(metadata=_COUNT)
    weight: Literal["bits", "float"] = field(
        default="bits", metadata=attribute(choice(("bits", "float")))
    )
    bases: int = field(default=1, metadata=attribute(integer(1, MAX_BASES)))
    base_scale: bool = field(default=False, metadata=attribute(flag))
    affine: bool = field(default=False, metadata=attribute(flag))
    residual: str | None = field(default=None, metadata=attribute(optional_name))
    activation: Activation | None = field(default=None, metadata=_OPTIONAL_ACTIVATION)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.input,) if self.residual is None else (self.input, self.residual)

    def weight_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the shape of one basis of weights, filters first."""
        raise NotImplementedError

    def product_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the shape of inputs times weights."""
        raise NotImplementedError

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        if self.weight == "float" and (self.bases != 1 or self.base_scale):
            self.refuse("float weights have neither bases nor base scales")
        result = self.product_shape(shapes)
        if self.residual is not None and shapes[1] != result:
            self.refuse(f"the residual is {shapes[1]}, the result {result}")
        return result

    def tensors(self, shapes: Sequence[Shape]) -> dict[str, TensorSpec]:
        shape = self.weight_shape(shapes)
        specs: dict[str, TensorSpec] = {}
        if self.weight == "float":
            specs["weight"] = TensorSpec("F32", shape)
        else:
            specs["bits"] = TensorSpec("U8", (self.bases, self.channels, row_bytes(shape)))
        if self.base_scale:
            specs["base_scale"] = TensorSpec("F32", (self.bases, self.channels))
        if self.affine:
            specs["affine"] = TensorSpec("F32", (2, self.channels))
        return specs | _slope(self.activation, self.channels)

    def macs(self, shapes: Sequence[Shape]) -> int:
        positions = prod(self.product_shape(shapes)[1:])
        return self.bases * prod(self.weight_shape(shapes)) * positions


@dataclass(frozen=True, kw_only=True)
class Conv2d(_Product):
    """Cross-correlation, as torch's conv2d, of a map with ``channels`` filters.

    ``pad_value`` fills the border: 0, or 1 where the inputs are bits, which cannot say 0.
    """

    op: ClassVar[str] = "conv2d"

    kernel: Pair = field(metadata=_STEPS)
    stride: Pair = field(default=(1, 1), metadata=_STEPS)
    padding: Pair = field(default=(0, 0), metadata=_MARGINS)
    dilation: Pair = field(default=(1, 1), metadata=_STEPS)
    groups: int = field(default=1, metadata=_COUNT)
    pad_value: Literal[0, 1] = field(default=0, metadata=attribute(choice((0, 1))))

    def weight_shape(self, shapes: Sequence[Shape]) -> Shape:
        """``(N, C / groups, kh, kw)``."""
        return (self.channels, self._map(shapes[0])[0] // self.groups, *self.kernel)

    def product_shape(self, shapes: Sequence[Shape]) -> Shape:
        channels = self._map(shapes[0])[0]
        if channels % self.groups or self.channels % self.groups:
            self.refuse(f"{channels} to {self.channels} channels in {self.groups} groups")
        rows, columns = _windows(
            self, shapes[0], self.kernel, self.stride, self.padding, self.dilation
        )
        return (self.channels, rows, columns)


@dataclass(frozen=True, kw_only=True)
class Linear(_Product):
    """A vector times a matrix, to a vector of ``channels`` numbers."""

    op: ClassVar[str] = "linear"

    def weight_shape(self, shapes: Sequence[Shape]) -> Shape:
        """``(N, S)``."""
        return (self.channels, *shapes[0])

    def product_shape(self, shapes: Sequence[Shape]) -> Shape:
        if len(shapes[0]) != 1:
            self.refuse(f"reads a vector, not a value of shape {shapes[0]}")
        return (self.channels,)


@dataclass(frozen=True, kw_only=True)
class Quantize(_Unary):
    """Round to one of ``2**bits`` evenly spaced numbers, ``low + step * q``.

    ``q = clamp(floor((x - low) / step + 1/2), 0, 2**bits - 1)``; for one bit, q is 1 exactly
    where ``x >= low + step / 2``. ``zero`` is the q that stands for 0, or None where 0 is none of
    the numbers. Where it is one, products of packed bits with the result are sums of integers
    (docs/FORMAT.md, section 4.4).
    """

    op: ClassVar[str] = "quantize"

    bits: Literal[8, 4, 2, 1] = field(metadata=attribute(choice((8, 4, 2, 1))))
    low: float = field(metadata=attribute(number()))
    step: float = field(metadata=attribute(number(positive=True)))

    @property
    def zero(self) -> int | None:
        return zero_level(self.bits, self.low, self.step)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0]


@dataclass(frozen=True, kw_only=True)
class SignPack(_Unary):
    """+1 or -1, as one bit: +1 where ``x >= 0``.

    With ``per_channel`` a tensor ``threshold (2, C)`` decides: +1 where
    ``threshold[0, c] * x >= threshold[1, c]``, its first row -1, 0 or +1. That is what a batch
    norm before the sign folds to.
    """

    op: ClassVar[str] = "sign_pack"

    per_channel: bool = field(default=False, metadata=attribute(flag))

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0]

    def tensors(self, shapes: Sequence[Shape]) -> dict[str, TensorSpec]:
        return {"threshold": TensorSpec("F32", (2, shapes[0][0]))} if self.per_channel else {}


@dataclass(frozen=True, kw_only=True)
class MaxPool2d(_Unary):
    """The greatest number in each window; the border counts as minus infinity."""

    op: ClassVar[str] = "max_pool2d"

    kernel: Pair = field(metadata=_STEPS)
    stride: Pair = field(metadata=_STEPS)
    padding: Pair = field(default=(0, 0), metadata=_MARGINS)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return _pooled(self, self._map(shapes[0]), self.kernel, self.stride, self.padding)


@dataclass(frozen=True, kw_only=True)
class AvgPool2d(_Unary):
    """The mean of each window; the border counts as zeros."""

    op: ClassVar[str] = "avg_pool2d"

    kernel: Pair = field(metadata=_STEPS)
    stride: Pair = field(metadata=_STEPS)
    padding: Pair = field(default=(0, 0), metadata=_MARGINS)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return _pooled(self, self._map(shapes[0]), self.kernel, self.stride, self.padding)


@dataclass(frozen=True, kw_only=True)
class Affine(_Unary):
    """``affine[0, c] * x + affine[1, c]``."""

    op: ClassVar[str] = "affine"

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0]

    def tensors(self, shapes: Sequence[Shape]) -> dict[str, TensorSpec]:
        return {"affine": TensorSpec("F32", (2, shapes[0][0]))}


@dataclass(frozen=True, kw_only=True)
class Activate(_Unary):
    """An activation that no other operator could take along."""

    op: ClassVar[str] = "activation"

    activation: Activation = field(metadata=attribute(activation))

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0]

    def tensors(self, shapes: Sequence[Shape]) -> dict[str, TensorSpec]:
        return _slope(self.activation, shapes[0][0])


@dataclass(frozen=True, kw_only=True)
class Add(Operator):
    """``activation(a + b)`` of two values of one shape."""

    op: ClassVar[str] = "add"

    inputs: tuple[str, str] = field(metadata=attribute(names(2, 2)))
    activation: Activation | None = field(default=None, metadata=_OPTIONAL_ACTIVATION)

    @property
    def sources(self) -> tuple[str, ...]:
        return self.inputs

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        if shapes[0] != shapes[1]:
            self.refuse(f"adds values of shapes {shapes[0]} and {shapes[1]}")
        return shapes[0]

    def tensors(self, shapes: Sequence[Shape]) -> dict[str, TensorSpec]:
        return _slope(self.activation, shapes[0][0])


@dataclass(frozen=True, kw_only=True)
class Concat(Operator):
    """Values one after the other along their channels."""

    op: ClassVar[str] = "concat"

    inputs: tuple[str, ...] = field(metadata=attribute(names(1, MAX_CONCAT_INPUTS)))

    @property
    def sources(self) -> tuple[str, ...]:
        return self.inputs

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        first = shapes[0]
        if any(shape[1:] != first[1:] for shape in shapes):
            self.refuse("joins values that differ in more than their channels")
        return (sum(shape[0] for shape in shapes), *first[1:])


@dataclass(frozen=True, kw_only=True)
class Subsample(_Unary):
    """Every ``stride``-th row and column, the first ones included."""

    op: ClassVar[str] = "subsample"

    stride: Pair = field(metadata=_STEPS)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        channels, height, width = self._map(shapes[0])
        return (channels, -(-height // self.stride[0]), -(-width // self.stride[1]))


@dataclass(frozen=True, kw_only=True)
class PadChannels(_Unary):
    """Channels of zeros before and after those of a map."""

    op: ClassVar[str] = "pad_channels"

    before: int = field(default=0, metadata=_PADDED)
    after: int = field(default=0, metadata=_PADDED)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        channels, height, width = self._map(shapes[0])
        return (self.before + channels + self.after, height, width)


@dataclass(frozen=True, kw_only=True)
class Flatten(_Unary):
    """A map as a vector, in the order C, H, W: element ``(c * H + y) * W + x``."""

    op: ClassVar[str] = "flatten"

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (prod(self._map(shapes[0])),)


def _kinds(*kinds: type[Operator]) -> Mapping[str, type[Operator]]:
    return MappingProxyType({kind.op: kind for kind in kinds})


OPERATORS: Final = _kinds(
    Conv2d,
    Linear,
    Quantize,
    SignPack,
    MaxPool2d,
    AvgPool2d,
    Affine,
    Activate,
    Add,
    Concat,
    Subsample,
    PadChannels,
    Flatten,
)


def zero_level(bits: int, low: float, step: float) -> int | None:
    """Return the k in ``0..2**bits - 1`` with ``low = -k * step`` in float32, if there is one."""
    first, width = np.float32(low), np.float32(step)
    with np.errstate(over="ignore"):
        zero = np.rint(-first / width)
        found = 0 <= zero < 2**bits and np.float32(zero) * width == -first
    return int(zero) if found else None


def _slope(activation: Activation | None, channels: int) -> dict[str, TensorSpec]:
    if activation is None or activation.kind != "prelu":
        return {}
    return {"slope": TensorSpec("F32", (channels,))}


def _windows(
    node: Operator, shape: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Pair:
    """Return how many windows fit: ``floor((n + 2 p - d (k - 1) - 1) / s) + 1`` each way."""
    channels, *size = shape
    height, width = (size[i] + 2 * padding[i] for i in (0, 1))
    if channels * height * width > MAX_ELEMENTS:
        node.refuse(f"its padded input holds over {MAX_ELEMENTS} numbers")
    rows = (height - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    columns = (width - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    if rows < 1 or columns < 1:
        node.refuse(f"its kernel is larger than its padded input, {height} x {width}")
    return (rows, columns)


def _pooled(
    node: Operator, shape: tuple[int, int, int], kernel: Pair, stride: Pair, padding: Pair
) -> Shape:
    if any(2 * padding[i] > kernel[i] for i in (0, 1)):
        node.refuse("its padding is more than half its kernel")
    return (shape[0], *_windows(node, shape, kernel, stride, padding, (1, 1)))
