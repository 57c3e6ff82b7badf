"""A plan made flat: values in one arena, and steps that read and write them, in order.

What the C++ library executes (models/kernels/cpu/abi.h), as plain Python data: kinds and names are
those of that header, and `models.runtime.native` hands it over. Maps are channels last; a vector of
F numbers is a map of 1 x 1 with F channels. Values and steps are known by their index.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

NONE = -1  # in place of a value's index
_ALIGNMENT = 64


class Type(IntEnum):
    """What an element of a value is."""

    F32 = 0
    U8 = 1  # a code q of a quantizer


class Kind(IntEnum):
    """What a step does."""

    INPUT = 0
    PRODUCT = 1
    MAX_POOL = 2
    AVG_POOL = 3
    ELEMENTWISE = 4
    SIGN = 5
    COPY = 6
    ZERO = 7
    TRANSPOSE = 8
    OUTPUT = 9


# Steps that can write codes, whatever they read.
ROUNDING: Final = frozenset(
    {Kind.INPUT, Kind.PRODUCT, Kind.MAX_POOL, Kind.AVG_POOL, Kind.ELEMENTWISE}
)


class Function(IntEnum):
    """An activation."""

    IDENTITY = 0
    RELU = 1
    HARDTANH = 2
    PRELU = 3


@dataclass(frozen=True)
class Value:
    """``height x width`` pixels of ``channels`` elements, for each image."""

    channels: int
    height: int
    width: int
    type: Type

    @property
    def bytes(self) -> int:
        """Bytes that an image takes in the arena, a multiple of 64."""
        size = self.channels * self.height * self.width * (4 if self.type == Type.F32 else 1)
        return -(-size // _ALIGNMENT) * _ALIGNMENT


@dataclass
class Step:
    """One step; members that its kind does not use keep their default.

    ``low``, ``step`` and ``bits`` are the quantizer of ``out_u8``; ``in_zero``, or ``in_low`` and
    ``in_step``, that of codes which ``in0`` holds. Arrays are contiguous: float32 ``gain``,
    ``shift`` and ``slope`` ``(C,)``; uint8 ``packed_bits (bases, N, row_bytes)`` with float32
    ``base_scale (bases, N)``, or float32 ``weight (N, kernel_rows, kernel_columns, C / groups)``.
    """

    kind: Kind
    in0: int = NONE
    in1: int = NONE
    out_f32: int = NONE
    out_u8: int = NONE
    activation: Function = Function.IDENTITY
    activation_low: float = 0.0
    activation_high: float = 0.0
    low: float = 0.0
    step: float = 1.0
    bits: int = 8
    in_zero: int = 0
    in_low: float = 0.0
    in_step: float = 1.0
    gain: NDArray[np.float32] | None = None
    shift: NDArray[np.float32] | None = None
    slope: NDArray[np.float32] | None = None
    kernel_rows: int = 1
    kernel_columns: int = 1
    stride_rows: int = 1
    stride_columns: int = 1
    padding_rows: int = 0
    padding_columns: int = 0
    dilation_rows: int = 1
    dilation_columns: int = 1
    groups: int = 1
    packed_bits: NDArray[np.uint8] | None = None
    row_bytes: int = 0
    weight: NDArray[np.float32] | None = None
    base_scale: NDArray[np.float32] | None = None
    bases: int = 1
    pad_value: int = 0
    kernel: int = NONE
    channel_offset: int = 0
    filters: int = 0

    @property
    def reads(self) -> list[int]:
        """The values it reads."""
        return [value for value in (self.in0, self.in1) if value != NONE]

    @property
    def writes(self) -> list[int]:
        """The values it writes, in whole or in part."""
        return [value for value in (self.out_f32, self.out_u8) if value != NONE]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return its arrays, by member."""
        return {
            name: member for name, member in vars(self).items() if isinstance(member, np.ndarray)
        }


@dataclass(frozen=True)
class FlatProgram:
    """``values``, and ``steps`` in the order in which they run; one input and one output step."""

    values: tuple[Value, ...]
    steps: tuple[Step, ...]
