"""A compiled plan means what the plan means: flat programs executed here by NumPy, in their arena.

What is shown is that values are read in the right form and never overwritten while they are needed,
whatever the plan; how fast and how exactly the native library runs steps is tested elsewhere.
"""

import re
from itertools import pairwise
from math import prod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models import bits
from models.attributes import Activation
from models.operators import (
    Add,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Quantize,
)
from models.plan import Plan
from models.runtime import native, structures
from models.runtime.arena import place, place_intervals
from models.runtime.compilation import compile_plan
from models.runtime.filter_order import bits_tap_by_tap, weights_tap_by_tap
from models.runtime.flat_program import Function, Kind, Type
from models.runtime.reference import ReferenceRuntime

ABI = Path(__file__).parents[2] / "models" / "kernels" / "cpu" / "abi.h"


class Interpreter:
    """Executes a flat program as abi.h states it, in an arena of ``place``."""

    def __init__(self, program, images):
        self.program, self.images = program, images
        placed = place(program)
        self.offsets = placed.offsets
        # What nobody wrote is noticed: the bytes of NaN.
        self.arena = np.full(images * placed.bytes, 0xFF, np.uint8)

    def array(self, index):
        """Value ``index`` as a view ``(N, H, W, C)`` of the arena."""
        value, start = self.program.values[index], self.images * self.offsets[index]
        shape = (self.images, value.height, value.width, value.channels)
        kind = np.float32 if value.type == Type.F32 else np.uint8
        size = prod(shape) * np.dtype(kind).itemsize
        return self.arena[start : start + size].view(kind).reshape(shape)

    def run(self, x):
        for step in self.program.steps:
            assert all(value != -1 for value in step.reads)
            result = self.execute(step, x)
        return result

    def execute(self, step, x):
        values = self.program.values
        codes = step.in0 != -1 and values[step.in0].type == Type.U8
        if step.kind == Kind.INPUT:
            return self.finish(step, x.transpose(0, 2, 3, 1))
        if step.kind == Kind.ZERO:
            self.array(step.out_f32)[:] = 0
            return None
        source = self.array(step.in0)
        match step.kind:
            case Kind.OUTPUT:
                return source.transpose(0, 3, 1, 2).copy()
            case Kind.PRODUCT:
                self.finish(step, self.product(step, source, codes))
            case Kind.MAX_POOL:
                pooled = self.pool(step, source)
                if codes:
                    assert step.out_f32 == -1
                    self.array(step.out_u8)[:] = pooled
                else:
                    self.finish(step, pooled)
            case Kind.AVG_POOL:
                self.finish(step, self.pool(step, source))
            case Kind.ELEMENTWISE:
                if codes:
                    source = source * np.float32(step.in_step) + np.float32(step.in_low)
                self.finish(step, source)
            case Kind.SIGN:
                gain = np.float32(1) if step.gain is None else step.gain
                shift = np.float32(0) if step.shift is None else step.shift
                self.array(step.out_f32)[:] = np.where(gain * source >= shift, 1, -1)
            case Kind.COPY:
                last = step.channel_offset + source.shape[-1]
                target = self.array(step.out_f32)[..., step.channel_offset : last]
                target[:] = source[:, :: step.stride_rows, :: step.stride_columns]
            case Kind.TRANSPOSE:
                flat = source.transpose(0, 3, 1, 2).reshape(self.images, 1, 1, -1)
                self.array(step.out_f32)[:] = flat
        return None

    def product(self, step, source, codes):
        """The result after bases and their scales, in float32."""
        x = source.astype(np.float64).transpose(0, 3, 1, 2)
        rows, columns = step.padding_rows, step.padding_columns
        border = ((0, 0), (0, 0), (rows, rows), (columns, columns))
        if codes:
            assert step.pad_value == 0
            x = x - step.in_zero
        x = np.pad(x, border, constant_values=step.pad_value)
        kernel = (step.kernel_rows, step.kernel_columns)
        channels = source.shape[-1] // step.groups
        if step.packed_bits is None:
            weights = step.weight.reshape(1, step.filters, *kernel, channels)
            weights = weights.transpose(0, 1, 4, 2, 3)
        else:
            shape = (step.filters, channels, *kernel)
            weights = np.stack([bits.unpack(basis, shape) for basis in step.packed_bits])
        total = None
        for basis, weight in enumerate(weights):
            z = F.conv2d(
                torch.from_numpy(x),
                torch.from_numpy(weight.astype(np.float64)),
                stride=(step.stride_rows, step.stride_columns),
                dilation=(step.dilation_rows, step.dilation_columns),
                groups=step.groups,
            )
            z = z.numpy().astype(np.float32).transpose(0, 2, 3, 1)
            if step.base_scale is not None:
                z = step.base_scale[basis] * z
            total = z if total is None else total + z
        return total

    def pool(self, step, source):
        x = torch.from_numpy(source.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
        function = F.max_pool2d if step.kind == Kind.MAX_POOL else F.avg_pool2d
        kernel = (step.kernel_rows, step.kernel_columns)
        stride = (step.stride_rows, step.stride_columns)
        padding = (step.padding_rows, step.padding_columns)
        return function(x, kernel, stride, padding).permute(0, 2, 3, 1).numpy()

    def finish(self, step, y):
        y = y.copy()
        if step.gain is not None:
            y *= step.gain
        if step.shift is not None:
            y += step.shift
        if step.in1 != -1:
            y += self.array(step.in1)
        match step.activation:
            case Function.RELU:
                y = np.maximum(y, np.float32(0))
            case Function.HARDTANH:
                y = y.clip(np.float32(step.activation_low), np.float32(step.activation_high))
            case Function.PRELU:
                y = np.where(y >= 0, y, step.slope * y)
        assert y.dtype == np.float32
        if step.out_f32 != -1:
            self.array(step.out_f32)[:] = y
        if step.out_u8 != -1:
            low, width = np.float32(step.low), np.float32(step.step)
            if step.bits == 1:
                q = y >= low + width / 2
            else:
                q = np.floor((y - low) / width + np.float32(0.5)).clip(0, 2**step.bits - 1)
            self.array(step.out_u8)[:] = q
        assert step.out_f32 != -1 or step.out_u8 != -1


def interpreted(plan, tensors, x):
    program = compile_plan(plan, tensors)
    found = Interpreter(program, len(x)).run(x.numpy())
    return torch.from_numpy(found).reshape(len(x), *plan.output_shape)


def expected(plan, tensors, x):
    return ReferenceRuntime(SimpleNamespace(plan=plan, tensors=tensors)).run(x)


def images(shape, count=2, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, *shape))).float()


def kinds(program):
    return [step.kind for step in program.steps]


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_compiled_plan_with_levels_gives_the_very_numbers(random_plan, seed):
    plan, tensors = random_plan(seed, rounded=True)
    x = images(plan.input_shape, seed=seed)
    assert torch.equal(interpreted(plan, tensors, x), expected(plan, tensors, x))


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_compiled_plan_of_real_numbers_gives_the_same_but_for_rounding(random_plan, seed):
    plan, tensors = random_plan(seed, rounded=False)
    x = images(plan.input_shape, seed=seed)
    wanted = expected(plan, tensors, x)
    scale = wanted.abs().max().clamp(min=1)
    assert torch.allclose(interpreted(plan, tensors, x) / scale, wanted / scale, atol=1e-4)


def signs(rng, *shape):
    return rng.choice(np.array([-1, 1], np.int8), size=shape)


def packed(*shape, bases=1, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([bits.pack(signs(rng, *shape)) for _ in range(bases)])


EIGHT = {"bits": 8, "low": 0.0, "step": 0.25}


def test_rounding_between_two_layers_is_done_by_the_first():
    """As VGG has it: convolution, relu, pool, rounding, convolution; the pool works on codes."""
    plan = Plan(
        (3, 8, 8),
        (
            Quantize(name="q0", input="input", bits=8, low=-2.0, step=1 / 64),
            Conv2d(name="c0", input="q0", channels=5, kernel=(3, 3), padding=(1, 1)),
            MaxPool2d(name="p", input="c0", kernel=(2, 2), stride=(2, 2)),
            Quantize(name="q1", input="p", **EIGHT),
            Conv2d(name="c1", input="q1", channels=4, kernel=(3, 3)),
            Flatten(name="f", input="c1"),
            Quantize(name="q2", input="f", **EIGHT),
            Linear(name="l", input="q2", channels=7),
        ),
        "l",
    )
    tensors = {
        "c0.bits": packed(5, 3, 3, 3),
        "c1.bits": packed(4, 5, 3, 3),
        "l.bits": packed(7, 16),
    }
    program = compile_plan(plan, tensors)
    assert kinds(program) == [
        Kind.INPUT, Kind.PRODUCT, Kind.MAX_POOL, Kind.PRODUCT, Kind.PRODUCT, Kind.OUTPUT
    ]  # fmt: skip
    types = [value.type for value in program.values]
    assert types == [Type.U8, Type.U8, Type.U8, Type.U8, Type.F32]
    last = program.steps[-2]
    assert (last.kernel_rows, last.kernel_columns) == (2, 2)
    x = images((3, 8, 8))
    assert torch.equal(interpreted(plan, tensors, x), expected(plan, tensors, x))


def test_a_residual_block_keeps_its_sum_beside_the_codes():
    """The pool's result is rounded for the product and goes on unrounded: one value, two forms."""
    plan = Plan(
        (3, 9, 9),
        (
            Quantize(name="q0", input="input", bits=8, low=-2.0, step=1 / 64),
            Conv2d(name="c0", input="q0", channels=6, kernel=(3, 3)),
            MaxPool2d(name="p", input="c0", kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
            Quantize(name="q1", input="p", **EIGHT),
            Conv2d(name="c1", input="q1", channels=6, kernel=(3, 3), padding=(1, 1), residual="p"),
        ),
        "c1",
    )
    tensors = {"c0.bits": packed(6, 3, 3, 3), "c1.bits": packed(6, 6, 3, 3)}
    program = compile_plan(plan, tensors)
    assert kinds(program) == [
        Kind.INPUT, Kind.PRODUCT, Kind.MAX_POOL, Kind.PRODUCT, Kind.OUTPUT
    ]  # fmt: skip
    pool = program.steps[2]
    assert pool.out_f32 != -1 and pool.out_u8 != -1
    x = images((3, 9, 9))
    assert torch.equal(interpreted(plan, tensors, x), expected(plan, tensors, x))


@pytest.mark.parametrize("read_again", [False, True])
def test_a_residual_sum_takes_the_place_of_its_summand_unless_that_is_read_again(read_again):
    nodes = [
        Conv2d(name="a", input="input", channels=4, kernel=(1, 1)),
        Conv2d(name="b", input="a", channels=6, kernel=(1, 1)),
        Conv2d(name="c", input="b", channels=4, kernel=(1, 1), residual="a"),
        Add(name="d", inputs=("c", "a" if read_again else "c")),
    ]
    plan = Plan((3, 5, 5), tuple(nodes), "d")
    tensors = {
        f"{name}.bits": packed(filters, channels, 1, 1)
        for name, filters, channels in [("a", 4, 3), ("b", 6, 4), ("c", 4, 6)]
    }
    program = compile_plan(plan, tensors)
    offsets = place(program).offsets
    product, total = program.steps[3], program.steps[4]
    assert (offsets[product.out_f32] == offsets[product.in1]) is not read_again
    assert offsets[total.out_f32] == offsets[total.in0]
    x = images((3, 5, 5))
    assert torch.allclose(interpreted(plan, tensors, x), expected(plan, tensors, x), atol=1e-4)


def test_two_quantizers_of_one_value_and_one_that_is_read_as_numbers():
    plan = Plan(
        (4, 5, 5),
        (
            Quantize(name="a", input="input", bits=8, low=-1.0, step=1 / 64),
            Quantize(name="b", input="input", bits=2, low=-0.5, step=0.5),
            Conv2d(name="ca", input="a", channels=4, kernel=(1, 1), residual="b"),
            Conv2d(name="cb", input="b", channels=4, kernel=(1, 1), residual="ca"),
            Add(name="sum", inputs=("a", "cb"), activation=Activation("relu")),
        ),
        "sum",
    )
    tensors = {"ca.bits": packed(4, 4, 1, 1), "cb.bits": packed(4, 4, 1, 1, seed=1)}
    x = images((4, 5, 5))
    assert torch.equal(interpreted(plan, tensors, x), expected(plan, tensors, x))


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(1, 6),
    st.tuples(*[st.integers(1, 6)] * 3),
)
def test_bits_of_a_linear_layer_in_the_order_of_the_map(seed, bases, filters, map_shape):
    codes = signs(np.random.default_rng(seed), bases, filters, prod(map_shape))
    flat = np.stack([bits.pack(basis) for basis in codes])
    ordered = bits_tap_by_tap(flat, map_shape)
    for basis, rows in zip(codes, ordered, strict=True):
        assert np.array_equal(
            bits.unpack(rows, (filters, *map_shape)), basis.reshape(filters, *map_shape)
        )


def test_many_bits_are_ordered_a_few_filters_at_a_time(monkeypatch):
    codes = signs(np.random.default_rng(0), 1, 9, 60)
    flat = bits.pack(codes[0])[None]
    whole = bits_tap_by_tap(flat, (5, 4, 3))
    monkeypatch.setattr("models.runtime.filter_order._WEIGHTS_AT_ONCE", 130)
    assert np.array_equal(bits_tap_by_tap(flat, (5, 4, 3)), whole)


def test_float_weights_stand_tap_by_tap():
    weight = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    found = weights_tap_by_tap(weight, (3, 4, 5))
    assert found.flags.c_contiguous and np.array_equal(found, weight.transpose(0, 2, 3, 1))
    assert np.array_equal(weights_tap_by_tap(weight.reshape(2, -1), (3, 4, 5)), found)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20), st.integers(0, 6)), max_size=30))
def test_what_is_alive_at_once_never_overlaps(intervals):
    sizes = [64 * size for size, _, _ in intervals]
    born = [start for _, start, _ in intervals]
    died = [start + length for _, start, length in intervals]
    arena = place_intervals(sizes, born, died)
    assert all(offset % 64 == 0 and offset >= 0 for offset in arena.offsets)
    busiest = 0
    for time in range(30):
        alive = [i for i in range(len(sizes)) if born[i] <= time <= died[i]]
        spans = sorted((arena.offsets[i], arena.offsets[i] + sizes[i]) for i in alive)
        assert all(first[1] <= second[0] for first, second in pairwise(spans))
        assert all(end <= arena.bytes for _, end in spans)
        busiest = max(busiest, sum(sizes[i] for i in alive))
    assert busiest <= arena.bytes <= sum(sizes)


def test_a_chain_needs_the_room_of_its_two_largest_neighbours():
    sizes = [64 * size for size in (3, 8, 2, 5, 1)]
    arena = place_intervals(sizes, range(5), range(1, 6))
    assert arena.bytes == 64 * 11


def declared(structure):
    """The members of a struct of abi.h, in order: name, and type as ctypes calls it."""
    text = re.sub(r"//.*", "", ABI.read_text())
    body = re.search(rf"typedef struct {structure} {{(.*?)}} {structure};", text, re.DOTALL)[1]
    members = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        head, *rest = declaration.split(",")
        *kind, first = head.replace("*", " * ").split()
        pointer = "*" in kind
        plain = next(word for word in kind if word not in ("const", "*"))
        members += [(name.strip(), "pointer" if pointer else plain) for name in (first, *rest)]
    return members


@pytest.mark.parametrize(
    ("structure", "mirror"),
    [
        ("bp_value", structures.CValue),
        ("bp_step", structures.CStep),
        ("bp_program_spec", structures.CSpec),
    ],
)
def test_structures_are_those_of_the_header(structure, mirror):
    names = {"c_int": "int32_t", "c_long": "int64_t", "c_float": "float", "c_void_p": "pointer"}
    found = [(name, names.get(kind.__name__, "pointer")) for name, kind in mirror._fields_]
    assert found == declared(structure)


def test_numbers_of_kinds_are_those_of_the_header():
    text = ABI.read_text()
    wanted = {
        name: int(number) for name, number in re.findall(r"BP_([A-Z0-9_]+) ?=? (\d+)[,\s]", text)
    }
    for enum in (Kind, Function, Type, native.Status):
        assert {member.name: wanted[member.name] for member in enum} == {
            member.name: member.value for member in enum
        }
    assert wanted["ABI_VERSION"] == native.ABI_VERSION
    assert [wanted[name.upper()] for name in native.KERNEL_SETS] == [0, 1, 2]
