"""From a plan and its tensors to a flat program.

Every node becomes one step, if any: product, residual sum, activation and the rounding for the
next layer are one pass over the data. What could not be joined to the step that makes a value, as a
second quantizer of it, or one of a concatenation, is a step of its own.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.attributes import Activation
from models.operators import (
    Activate,
    Add,
    Affine,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Operator,
    PadChannels,
    Quantize,
    Shape,
    SignPack,
    Subsample,
    zero_level,
)
from models.plan import INPUT, Plan
from models.runtime.filter_order import bits_tap_by_tap, weights_tap_by_tap
from models.runtime.flat_program import ROUNDING, FlatProgram, Function, Kind, Step, Type, Value
from models.runtime.forms import Codes, Form, needed_forms

_FUNCTIONS = {
    "relu": Function.RELU,
    "hardtanh": Function.HARDTANH,
    "prelu": Function.PRELU,
}


def compile_plan(plan: Plan, tensors: Mapping[str, NDArray[Any]]) -> FlatProgram:
    """Return the flat program that computes ``plan`` from its ``tensors``."""
    return _Compilation(plan, tensors).program()


class _Compilation:
    def __init__(self, plan: Plan, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._plan = plan
        self._tensors = tensors
        self._forms = needed_forms(plan)
        self._values: list[Value] = []
        self._steps: list[Step] = []
        self._places: dict[Form, int] = {}

    def program(self) -> FlatProgram:
        self._finish(INPUT, Step(Kind.INPUT))
        for node in self._plan.nodes:
            if node.name in self._forms.reads:
                self._compute(node)
        self._steps.append(Step(Kind.OUTPUT, in0=self._places[self._forms.output]))
        return FlatProgram(tuple(self._values), tuple(self._steps))

    def _compute(self, node: Operator) -> None:
        """Add the steps that make the value of ``node`` in the forms in which it is read."""
        reads = self._forms.reads[node.name]
        match node:
            case Conv2d() | Linear():
                self._finish(node.name, self._product(node, reads))
            case MaxPool2d() | AvgPool2d():
                kind = Kind.MAX_POOL if isinstance(node, MaxPool2d) else Kind.AVG_POOL
                self._finish(node.name, self._pool(kind, node, reads[0]))
            case Quantize():
                self._finish(node.name, self._elementwise(node, reads))
            case Affine():
                step = self._elementwise(node, reads)
                step.gain, step.shift = self._tensor(node, "affine")
                self._finish(node.name, step)
            case Activate() | Add():
                step = self._elementwise(node, reads)
                self._activate(step, node, node.activation)
                self._finish(node.name, step)
            case SignPack():
                step = Step(Kind.SIGN, in0=self._places[reads[0]])
                if node.per_channel:
                    step.gain, step.shift = self._tensor(node, "threshold")
                self._finish(node.name, step)
            case Flatten():
                self._finish(node.name, Step(Kind.TRANSPOSE, in0=self._places[reads[0]]))
            case Subsample():
                self._join(node, reads, stride=node.stride)
            case PadChannels():
                self._join(node, reads, first_channel=node.before)
            case Concat():
                self._join(node, reads)
            case _:
                raise NotImplementedError(node.op)

    def _product(self, node: Conv2d | Linear, reads: tuple[Form, ...]) -> Step:
        source = reads[0]
        shape = self._map_shape(source.value)
        step = Step(Kind.PRODUCT, in0=self._places[source], filters=node.channels)
        if len(reads) > 1:
            step.in1 = self._places[reads[1]]
        if isinstance(node, Conv2d):
            step.kernel_rows, step.kernel_columns = node.kernel
            step.stride_rows, step.stride_columns = node.stride
            step.padding_rows, step.padding_columns = node.padding
            step.dilation_rows, step.dilation_columns = node.dilation
            step.groups = node.groups
            step.pad_value = node.pad_value if node.padding != (0, 0) else 0
        else:
            step.kernel_rows, step.kernel_columns = shape[1:]
        kernel_shape = (shape[0] // step.groups, step.kernel_rows, step.kernel_columns)
        if node.weight == "bits":
            bits = self._tensor(node, "bits")
            # The bits of a convolution already stand in this order.
            step.packed_bits = bits_tap_by_tap(bits, shape) if isinstance(node, Linear) else bits
            step.bases, _, step.row_bytes = bits.shape
            if node.base_scale:
                step.base_scale = self._tensor(node, "base_scale")
        else:
            step.weight = weights_tap_by_tap(self._tensor(node, "weight"), kernel_shape)
        if node.affine:
            step.gain, step.shift = self._tensor(node, "affine")
        if source.codes is not None:
            self._count_in_steps(step, source.codes)
        self._activate(step, node, node.activation)
        return step

    def _count_in_steps(self, step: Step, codes: Codes) -> None:
        """Let a product read codes; its sums then count steps (docs/FORMAT.md, 4.4, item 3)."""
        zero = zero_level(codes.bits, codes.low, codes.step)
        assert zero is not None  # or it would not compute with levels
        step.in_zero = zero
        width = np.float32(codes.step)
        with np.errstate(over="ignore", under="ignore"):
            step.gain = np.full(step.filters, width) if step.gain is None else step.gain * width

    def _pool(self, kind: Kind, node: MaxPool2d | AvgPool2d, source: Form) -> Step:
        step = Step(kind, in0=self._places[source])
        step.kernel_rows, step.kernel_columns = node.kernel
        step.stride_rows, step.stride_columns = node.stride
        step.padding_rows, step.padding_columns = node.padding
        return step

    def _elementwise(self, node: Operator, reads: tuple[Form, ...]) -> Step:
        step = Step(Kind.ELEMENTWISE, in0=self._places[reads[0]])
        if len(reads) > 1:
            step.in1 = self._places[reads[1]]
        if reads[0].codes is not None:
            step.in_low, step.in_step = reads[0].codes.low, reads[0].codes.step
        return step

    def _activate(self, step: Step, node: Operator, activation: Activation | None) -> None:
        if activation is None:
            return
        step.activation = _FUNCTIONS[activation.kind]
        if activation.kind == "hardtanh":
            step.activation_low, step.activation_high = activation.low, activation.high
        elif activation.kind == "prelu":
            step.slope = self._tensor(node, "slope")

    def _finish(self, name: str, step: Step) -> None:
        """Add ``step``, which makes the value ``name``, and whatever its other forms take."""
        wanted = self._forms.codes.get(name, ())
        direct = wanted[:1] if step.kind in ROUNDING else ()
        if name in self._forms.numbers or wanted != direct:
            step.out_f32 = self._place(Form(name))
        for codes in direct:
            self._write_codes(step, name, codes)
        self._steps.append(step)
        for codes in wanted[len(direct) :]:
            rounding = Step(Kind.ELEMENTWISE, in0=self._places[Form(name)])
            self._write_codes(rounding, name, codes)
            self._steps.append(rounding)

    def _join(
        self,
        node: Operator,
        reads: tuple[Form, ...],
        *,
        stride: tuple[int, int] = (1, 1),
        first_channel: int = 0,
    ) -> None:
        """Copy what ``node`` reads next to each other; channels that are left over become 0."""
        out = self._place(Form(node.name))
        sources = [(self._places[form], self._map_shape(form.value)[0]) for form in reads]
        steps = []
        channel = first_channel
        for in0, channels in sources:
            steps.append(Step(Kind.COPY, in0=in0, out_f32=out, channel_offset=channel))
            steps[-1].stride_rows, steps[-1].stride_columns = stride
            channel += channels
        if channel - first_channel < self._values[out].channels:
            steps.insert(0, Step(Kind.ZERO, out_f32=out))
        self._steps += steps[:-1]
        self._finish(node.name, steps[-1])

    def _write_codes(self, step: Step, name: str, codes: Codes) -> None:
        step.out_u8 = self._place(Form(name, codes))
        step.low, step.step, step.bits = codes.low, codes.step, codes.bits

    def _place(self, form: Form) -> int:
        """Return the index of the value of ``form``."""
        if form not in self._places:
            kind = Type.F32 if form.codes is None else Type.U8
            self._places[form] = len(self._values)
            self._values.append(Value(*self._map_shape(form.value), kind))
        return self._places[form]

    def _map_shape(self, value: str) -> tuple[int, int, int]:
        return as_map(self._plan.shapes[value])

    def _tensor(self, node: Operator, suffix: str) -> NDArray[Any]:
        return np.ascontiguousarray(self._tensors[f"{node.name}.{suffix}"])


def as_map(shape: Shape) -> tuple[int, int, int]:
    """Return a value's shape as ``(C, H, W)``; a vector is one pixel."""
    channels, *size = shape
    height, width = size or (1, 1)
    return (channels, height, width)
