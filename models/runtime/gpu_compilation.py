"""From a flat program to one for a GPU: how every value is kept, and what is done in one launch.

Where nothing is quantized, numbers are float16. Otherwise products of bits with levels are
determined to the bit (docs/FORMAT.md, 4.4), and numbers that are still added to or rounded are
float32; those that are multiplied with weights alone stay float16. So does what a layer with float
weights makes, whose sums are rounded in another way by every runtime anyway: the answer equals the
reference's to the bit where no such layer stands before a quantizer. A quantizer's codes are int8,
signs that are multiplied with bits are single bits.

A product of sums that nobody reads but a sign writes the bits at once. What else follows a product
was joined to it when the plan was made flat (`models.runtime.compilation`).
"""

from collections import defaultdict
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.attributes import Activation
from models.kernels.image_windows import WHOLE_PIXELS
from models.kernels.product_shape import (
    WORD_BITS,
    Epilogue,
    Levels,
    ProductTensors,
    ValueKind,
)
from models.operators import zero_level
from models.runtime.flat_program import NONE, FlatProgram, Function, Kind, Step, Type
from models.runtime.gpu_geometry import (
    NumberKind,
    as_linear,
    by_rows,
    float_kind,
    product_shape,
    wastes_words,
    windows_of,
)
from models.runtime.gpu_program import (
    CopyStep,
    ElementwiseStep,
    Finish,
    FloatProductStep,
    GpuProgram,
    GpuStep,
    GpuValue,
    InputStep,
    PoolStep,
    ProductStep,
    SignStep,
    TransposeStep,
    ZeroStep,
)
from models.runtime.gpu_weights import tap_words

# As what a value of the flat program exists here: numbers as their readers want them, the same as
# float16 for products, a quantizer's codes, or signs as bits.
_Form = Literal["numbers", "halves", "codes", "bits"]

_ACTIVATIONS: Final[dict[Function, Literal["relu", "hardtanh", "prelu"]]] = {
    Function.RELU: "relu",
    Function.HARDTANH: "hardtanh",
    Function.PRELU: "prelu",
}


def gpu_program(flat: FlatProgram) -> GpuProgram:
    """Return the program for a GPU that computes what ``flat`` does."""
    return _Compilation(flat).program()


class _Compilation:
    def __init__(self, flat: FlatProgram) -> None:
        self._flat = flat
        self._readers: dict[int, list[Step]] = defaultdict(list)
        self._makers: dict[int, list[Step]] = defaultdict(list)
        for step in flat.steps:
            for value in {*step.reads}:
                self._readers[value].append(step)
            for value in step.writes:
                self._makers[value].append(step)
        self._exact = any(value.type == Type.U8 for value in flat.values) or any(
            step.kind == Kind.SIGN for step in flat.steps
        )
        self._values: list[GpuValue] = []
        self._steps: list[GpuStep] = []
        self._places: dict[tuple[int, _Form], int] = {}
        self._levels: dict[int, Levels] = {}  # of codes, by the flat program's value
        self._by_rows: set[int] = set()  # images whose pixels lie side by side for a product
        self._joined: set[int] = set()  # signs that the maker of what they read writes

    def program(self) -> GpuProgram:
        for step in self._flat.steps:
            self._compute(step)
        output = self._places[self._flat.steps[-1].in0, "numbers"]
        return GpuProgram(tuple(self._values), tuple(self._steps), output)

    def _compute(self, step: Step) -> None:
        """Add the steps that do what ``step`` does."""
        match step.kind:
            case Kind.INPUT:
                self._input(step)
            case Kind.PRODUCT if step.packed_bits is not None:
                self._product(step, step.packed_bits)
            case Kind.PRODUCT if step.weight is not None:
                self._float_product(step, step.weight)
            case Kind.MAX_POOL | Kind.AVG_POOL:
                self._pool(step)
            case Kind.ELEMENTWISE:
                self._elementwise(step)
            case Kind.SIGN if step.out_f32 not in self._joined:
                self._sign(step)
            case Kind.COPY:
                self._copy(step)
            case Kind.ZERO:
                self._steps.append(ZeroStep(out=self._numbers_to_write(step)))
            case Kind.TRANSPOSE:
                source, out = self._places[step.in0, "numbers"], self._numbers_to_write(step)
                self._steps.append(TransposeStep(out=out, source=source))
                self._round(step, out)

    def _input(self, step: Step) -> None:
        codes_alone = step.out_f32 == NONE
        value = step.out_u8 if codes_alone else step.out_f32
        levels = None
        if codes_alone:
            out, levels = self._codes_to_write(step)
        else:
            out = self._numbers_to_write(step)
        windows = WHOLE_PIXELS
        reader = self._sole_product(value) if codes_alone or step.out_u8 == NONE else None
        if reader is not None:
            windows = windows_of(reader, levels)
            self._by_rows.add(value)
            pixels = self._values[out]
            self._values[out] = replace(
                pixels,
                channels=windows.columns * pixels.channels,
                width=windows.count(pixels.width),
            )
        shape = self._flat.values[value]
        self._steps.append(
            InputStep(
                out=out,
                shape=(shape.channels, shape.height, shape.width),
                levels=levels,
                windows=windows,
            )
        )
        if not codes_alone:
            self._round(step, out)

    def _sole_product(self, value: int) -> Step | None:
        """Return the product of bits that reads the images, if it alone does and with waste."""
        readers = self._readers[value]
        if len(readers) != 1 or not _multiplies_bits(readers[0], value):
            return None
        reader = readers[0]
        alone = reader.in1 != value and wastes_words(reader, product_shape(self._flat, reader))
        return reader if alone else None

    def _product(self, step: Step, packed_bits: NDArray[np.uint8]) -> None:
        shape = product_shape(self._flat, step)
        if step.in0 in self._by_rows:
            shape = by_rows(shape)
        source, levels = self._multiplied(step.in0)
        read = self._values[source].kind
        # Words of signs follow each other without gaps where channels fill them.
        if read != "b1" or shape.in_channels % WORD_BITS == 0:
            shape = as_linear(shape)
        weights = (shape.filters, shape.group_channels, *shape.kernel)
        words = tap_words(torch.from_numpy(packed_bits), weights)
        out, finish = self._finish(step, read, levels)
        self._add(
            step, ProductStep(source=source, out=out, finish=finish, shape=shape, words=words)
        )

    def _float_product(self, step: Step, weight: NDArray[np.float32]) -> None:
        shape = as_linear(product_shape(self._flat, step))
        taps = torch.from_numpy(weight).reshape(shape.filters, *shape.kernel, shape.group_channels)
        source = self._places[step.in0, "numbers"]
        read = float_kind(shape)
        dtype = torch.float16 if read == "f16" else torch.float32
        filters = taps.permute(0, 3, 1, 2).to(dtype)
        out, finish = self._finish(step, read)
        self._add(
            step,
            FloatProductStep(source=source, out=out, finish=finish, shape=shape, weight=filters),
        )

    def _elementwise(self, step: Step) -> None:
        levels = self._levels.get(step.in0)
        source = self._places[step.in0, "codes" if levels else "numbers"]
        out, finish = self._finish(step, self._values[source].kind, levels)
        self._add(step, ElementwiseStep(source=source, out=out, finish=finish))

    def _finish(
        self, step: Step, read: ValueKind, read_levels: Levels | None = None
    ) -> tuple[int, Finish]:
        """Return where the numbers of ``step`` go, and what it does with them before."""
        sign = self._joined_sign(step, read)
        kept_levels = None
        if sign is not None:
            out = self._place(sign.out_f32, "bits", "b1")
        elif step.out_f32 != NONE:
            out = self._numbers_to_write(step)
        else:
            out, kept_levels = self._codes_to_write(step)
        also, also_levels = None, None
        if step.out_f32 != NONE and step.out_u8 != NONE:
            also, also_levels = self._codes_to_write(step)
        residual = None if step.in1 == NONE else self._places[step.in1, "numbers"]
        epilogue = Epilogue(
            read,
            self._values[out].kind,
            read_levels=read_levels,
            kept_levels=kept_levels,
            also_levels=also_levels,
            base_scale=step.base_scale is not None,
            affine=step.shift is not None,
            residual=None if residual is None else self._number_kind(residual),
            activation=_activation(step),
            threshold=sign is not None and sign.gain is not None,
        )
        tensors = ProductTensors(
            base_scale=_tensor(step.base_scale),
            # A gain alone is the step of what is read, which the epilogue knows.
            affine=None if step.shift is None else _pair(step),
            slope=_tensor(step.slope),
            threshold=None if sign is None else _pair(sign),
        )
        return out, Finish(epilogue, tensors, residual, also)

    def _add(self, step: Step, made: ElementwiseStep) -> None:
        """Add what was made of ``step``, and its codes where ``made`` writes numbers alone."""
        self._steps.append(made)
        if step.out_f32 != NONE and made.finish.also is None:
            self._round(step, made.out)

    def _joined_sign(self, step: Step, read: ValueKind) -> Step | None:
        """Return the step of signs that ``step`` may write as bits in place of its numbers."""
        readers = self._readers[step.out_f32] if step.out_f32 != NONE else []
        if step.out_u8 != NONE or [reader.kind for reader in readers] != [Kind.SIGN]:
            return None
        if read != "b1" and not _ends_words(step):
            return None
        sign = readers[0]
        if not self._multiplied_as_bits(sign.out_f32) or self._read_as_numbers(sign.out_f32):
            return None
        self._joined.add(sign.out_f32)
        return sign

    def _sign(self, step: Step) -> None:
        source = self._places[step.in0, "numbers"]
        threshold = _pair(step)
        if self._multiplied_as_bits(step.out_f32):
            kind = self._values[source].kind
            epilogue = Epilogue(kind, "b1", threshold=threshold is not None)
            finish = Finish(epilogue, ProductTensors(threshold=threshold))
            out = self._place(step.out_f32, "bits", "b1")
            self._steps.append(ElementwiseStep(source=source, out=out, finish=finish))
        if self._read_as_numbers(step.out_f32):
            out = self._place(step.out_f32, "numbers", "f16")
            self._steps.append(SignStep(source=source, out=out, threshold=threshold))

    def _pool(self, step: Step) -> None:
        codes = self._levels.get(step.in0)
        source = self._places[step.in0, "codes" if codes else "numbers"]
        out = self._codes_to_write(step)[0] if codes else self._numbers_to_write(step)
        self._steps.append(
            PoolStep(
                source=source,
                out=out,
                maximum=step.kind == Kind.MAX_POOL,
                kernel=(step.kernel_rows, step.kernel_columns),
                stride=(step.stride_rows, step.stride_columns),
                padding=(step.padding_rows, step.padding_columns),
            )
        )
        if not codes:
            self._round(step, out)

    def _copy(self, step: Step) -> None:
        source, out = self._places[step.in0, "numbers"], self._numbers_to_write(step)
        stride = (step.stride_rows, step.stride_columns)
        self._steps.append(
            CopyStep(source=source, out=out, stride=stride, first_channel=step.channel_offset)
        )
        self._round(step, out)

    def _round(self, step: Step, numbers: int) -> None:
        """Write the codes of ``step`` too, if it has any, from its ``numbers``."""
        if step.out_u8 != NONE:
            out, levels = self._codes_to_write(step)
            finish = Finish(Epilogue(self._values[numbers].kind, "i8", kept_levels=levels))
            self._steps.append(ElementwiseStep(source=numbers, out=out, finish=finish))

    def _multiplied(self, value: int) -> tuple[int, Levels | None]:
        """Return what a product of packed bits reads of ``value``, and the quantizer of codes."""
        if value in self._levels:
            return self._places[value, "codes"], self._levels[value]
        if (value, "bits") in self._places:
            return self._places[value, "bits"], None
        numbers = self._places[value, "numbers"]
        if self._values[numbers].kind == "f16":
            return numbers, None
        if (value, "halves") not in self._places:
            out = self._place(value, "halves", "f16")
            finish = Finish(Epilogue("f32", "f16"))
            self._steps.append(ElementwiseStep(source=numbers, out=out, finish=finish))
        return self._places[value, "halves"], None

    def _multiplied_as_bits(self, sign: int) -> bool:
        return any(_multiplies_bits(step, sign) for step in self._readers[sign])

    def _read_as_numbers(self, sign: int) -> bool:
        return any(
            not _multiplies_bits(step, sign) or step.in1 == sign for step in self._readers[sign]
        )

    def _numbers_to_write(self, step: Step) -> int:
        """Return the value of the numbers of ``step``, which need a place even if only their
        codes are read."""
        if step.out_f32 == NONE:
            shape = self._flat.values[step.out_u8]
            self._values.append(
                GpuValue(shape.channels, shape.height, shape.width, self._kind_to_write(step))
            )
            return len(self._values) - 1
        return self._place(step.out_f32, "numbers", self._kind_to_write(step))

    def _codes_to_write(self, step: Step) -> tuple[int, Levels]:
        zero = zero_level(step.bits, step.low, step.step)
        bits: Any = step.bits  # one of those that there are
        levels = self._levels[step.out_u8] = Levels(bits, step.low, step.step, zero)
        return self._place(step.out_u8, "codes", "i8"), levels

    def _kind_to_write(self, step: Step) -> NumberKind:
        """Return how the numbers that ``step`` writes are kept."""
        makers = [step] if step.out_f32 == NONE else self._makers[step.out_f32]
        if step.kind in (Kind.MAX_POOL, Kind.COPY, Kind.ZERO, Kind.TRANSPOSE):
            kinds = {
                self._number_kind(self._places[value, "numbers"])
                for maker in makers
                for value in maker.reads
            }
            return "f16" if kinds == {"f16"} else "f32"
        readers = self._readers[step.out_f32] if step.out_f32 != NONE else []
        if any(reader.kind == Kind.OUTPUT for reader in readers):
            return "f32"
        if not self._exact:
            return "f16"
        if step.kind == Kind.PRODUCT and step.weight is not None:
            return float_kind(as_linear(product_shape(self._flat, step)))
        multiplied = step.out_u8 == NONE and all(
            reader.kind == Kind.PRODUCT and reader.in1 != step.out_f32 for reader in readers
        )
        return "f16" if multiplied else "f32"

    def _number_kind(self, value: int) -> NumberKind:
        return "f16" if self._values[value].kind == "f16" else "f32"

    def _place(self, value: int, form: _Form, kind: ValueKind) -> int:
        """Return the value that is ``value`` of the flat program in that form."""
        if (value, form) not in self._places:
            shape = self._flat.values[value]
            self._places[value, form] = len(self._values)
            self._values.append(GpuValue(shape.channels, shape.height, shape.width, kind))
        return self._places[value, form]


def _ends_words(step: Step) -> bool:
    """Tell whether every word of signs that ``step`` would write is of one group's filters.

    Where that is not so, kernels that read anything but signs cannot write them.
    """
    return step.groups == 1 or step.filters // step.groups % WORD_BITS == 0


def _multiplies_bits(step: Step, value: int) -> bool:
    return step.kind == Kind.PRODUCT and step.packed_bits is not None and step.in0 == value


def _activation(step: Step) -> Activation | None:
    if step.activation == Function.IDENTITY:
        return None
    if step.activation == Function.HARDTANH:
        return Activation("hardtanh", step.activation_low, step.activation_high)
    return Activation(_ACTIVATIONS[step.activation])


def _pair(step: Step) -> Tensor | None:
    """Return gain and shift, or a sign's threshold, as ``(2, C)``."""
    if step.gain is None or step.shift is None:
        return None
    return torch.from_numpy(np.stack([step.gain, step.shift]))


def _tensor(array: NDArray[np.float32] | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)
