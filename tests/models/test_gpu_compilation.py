"""A plan made ready for a GPU: which values it keeps and how, and that its steps compute it.

The steps are executed as plain torch (plain_gpu_kernels.py); the kernels have tests of their own.
"""

import runpy
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import bits
from models.attributes import Activation
from models.operators import (
    Activate,
    Add,
    AvgPool2d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Quantize,
    SignPack,
)
from models.plan import Plan
from models.runtime.compilation import compile_plan
from models.runtime.gpu_compilation import gpu_program
from models.runtime.gpu_execution import GpuExecution
from models.runtime.gpu_memory import place_values
from models.runtime.gpu_program import ElementwiseStep, FloatProductStep, ProductStep, SignStep
from models.runtime.reference import ReferenceRuntime

CPU = torch.device("cpu")
POISON = 0x7B  # 250 as codes, and large odd numbers as anything else
RELU = Activation("relu")


@pytest.fixture(scope="module")
def plain():
    return runpy.run_path(str(Path(__file__).with_name("plain_gpu_kernels.py")))["PlainKernels"]()


def compiled(plan, tensors):
    return gpu_program(compile_plan(plan, tensors))


def executed(program, kernels, x):
    execution = GpuExecution(program, CPU, kernels, len(x) + 1)
    execution.images(len(x) + 1).view(torch.uint8).fill_(POISON)
    execution._memory.fill_(POISON)
    execution.images(len(x)).copy_(x)
    with torch.no_grad():
        for launch in execution.bind(len(x)):
            launch()
    return execution.result(len(x)).float()


def expected(plan, tensors, x):
    return ReferenceRuntime(SimpleNamespace(plan=plan, tensors=tensors)).run(x)


def assert_close(found, wanted):
    """But for sums of products of halves."""
    scale = wanted.abs().max().clamp(min=1)
    assert torch.allclose(found / scale, wanted / scale, atol=0.02)


def images(shape, count=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, *shape))).float()


def drawn(plan, seed=0):
    """Random tensors for ``plan``."""
    rng = np.random.default_rng(seed)
    tensors = {}
    shapes = {f"{node.name}.bits": node for node in plan.nodes}
    for name, spec in plan.tensors.items():
        if spec.dtype == "F32":
            tensors[name] = rng.normal(size=spec.shape).astype(np.float32)
            if name.endswith("threshold"):
                tensors[name][0] = rng.integers(-1, 2, spec.shape[1])
            continue
        shape = shapes[name].weight_shape(plan.source_shapes(shapes[name]))
        codes = rng.choice(np.array([-1, 1], np.int8), (spec.shape[0], *shape))
        tensors[name] = np.stack([bits.pack(basis) for basis in codes])
    return tensors


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_a_plan_with_levels_gives_the_very_numbers(plain, random_plan, seed):
    plan, tensors = random_plan(seed, rounded=True)
    x = images(plan.input_shape, seed=seed)
    wanted = expected(plan, tensors, x)
    found = executed(compiled(plan, tensors), plain, x).reshape(wanted.shape)
    if any(isinstance(node, Quantize | SignPack) for node in plan.nodes):
        assert torch.equal(found, wanted)
    else:  # nothing is rounded, so that halves will do
        assert_close(found, wanted)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_a_plan_of_real_numbers_gives_the_same_but_for_rounding(plain, random_plan, seed):
    plan, tensors = random_plan(seed, rounded=False)
    x = images(plan.input_shape, seed=seed)
    wanted = expected(plan, tensors, x)
    found = executed(compiled(plan, tensors), plain, x).reshape(wanted.shape)
    assert_close(found, wanted)


def residual_plan(rounding):
    """Float stem, pool, one residual block, mean, linear layer; ``rounding`` what is multiplied."""
    eight = {"bits": 8, "step": 0.125, "low": 0.0}

    def fed(source):
        if not rounding:
            return [], source
        node = Quantize(name=f"{source}q", input=source, **eight)
        return [node], node.name

    first, first_fed = fed("pool")
    second, second_fed = fed("one")
    third, third_fed = fed("flat")
    nodes = (
        Conv2d(
            name="stem", input="input", channels=6, kernel=(3, 3), weight="float", affine=True,
            activation=RELU,
        ),
        MaxPool2d(name="pool", input="stem", kernel=(2, 2), stride=(2, 2)),
        *first,
        Conv2d(
            name="one", input=first_fed, channels=6, kernel=(3, 3), padding=(1, 1), affine=True,
            activation=RELU,
        ),
        *second,
        Conv2d(
            name="two", input=second_fed, channels=6, kernel=(3, 3), padding=(1, 1), affine=True,
            residual="pool", activation=RELU,
        ),
        AvgPool2d(name="mean", input="two", kernel=(3, 3), stride=(3, 3)),
        Flatten(name="flat", input="mean"),
        *third,
        Linear(name="fc", input=third_fed, channels=5, affine=True),
    )  # fmt: skip
    return Plan((3, 8, 8), nodes, "fc")


def kinds(program):
    return Counter(value.kind for value in program.values)


def test_numbers_are_halves_where_nothing_is_rounded_but_for_the_answer():
    plan = residual_plan(rounding=False)
    program = compiled(plan, drawn(plan))
    assert kinds(program) == {"f16": 6, "f32": 1}
    assert program.values[program.output].kind == "f32"
    # What follows a product is done with it.
    assert not any(type(step) is ElementwiseStep for step in program.steps)


def test_numbers_that_are_added_to_or_rounded_are_float32_in_a_rounded_plan(plain):
    plan = residual_plan(rounding=True)
    tensors = drawn(plan)
    program = compiled(plan, tensors)
    # The images, the stem and its pool are halves; the sum of the block, its mean and the logits
    # are not; and three values are codes.
    assert kinds(program) == {"f16": 3, "f32": 3, "i8": 3}
    made = {step.finish.epilogue.kept for step in program.steps if isinstance(step, ProductStep)}
    assert made == {"i8", "f32"}


def test_a_sum_that_is_added_to_and_rounded_is_kept_both_ways_by_one_step(plain):
    eight = {"bits": 8, "step": 0.125, "low": -4.0}
    square = {"channels": 5, "kernel": (3, 3), "padding": (1, 1), "affine": True}
    nodes = (
        Quantize(name="q0", input="input", **eight),
        Conv2d(name="one", input="q0", residual="input", activation=RELU, **square),
        Quantize(name="q1", input="one", **eight),
        Conv2d(name="two", input="q1", residual="one", **square),
        Add(name="sum", inputs=("two", "one"), activation=RELU),
        Quantize(name="q2", input="sum", **eight),
        Conv2d(name="three", input="q2", residual="sum", **square),
    )
    plan = Plan((5, 4, 6), nodes, "three")
    tensors, x = drawn(plan), images((5, 4, 6))
    program = compiled(plan, tensors)
    writes = [[program.values[value].kind for value in step.writes] for step in program.steps]
    # Only the images have a step of their own to be rounded.
    assert writes == [["f32"], ["i8"], ["f32", "i8"], ["f32"], ["f32", "i8"], ["f32"]]
    assert torch.equal(executed(program, plain, x), expected(plan, tensors, x))


def test_a_layer_behind_flatten_reads_the_map_as_a_vector():
    plan = Plan(
        (5, 3, 4),
        (Flatten(name="flat", input="input"), Linear(name="fc", input="flat", channels=7)),
        "fc",
    )
    step = compiled(plan, drawn(plan)).steps[-1]
    assert isinstance(step, ProductStep)
    assert (step.shape.in_channels, step.shape.in_hw, step.words.shape) == (
        60,
        (1, 1),
        (1, 7, 1, 2),
    )


@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize(
    "form",
    [
        {"kernel": (7, 7), "stride": (2, 2), "padding": (3, 3)},
        {"kernel": (3, 2), "stride": (1, 3), "padding": (0, 2), "dilation": (2, 1)},
        {"kernel": (5, 3), "padding": (2, 1), "pad_value": 1, "bases": 2},
    ],
)
def test_a_product_of_few_channels_reads_rows_of_its_kernel(plain, rounding, form):
    if rounding:
        form = {**form, "pad_value": 0}  # a border of ones is no level
    quantizer = Quantize(name="q", input="input", bits=8, low=-2.0, step=1 / 64)
    conv = Conv2d(name="stem", input="q" if rounding else "input", channels=6, **form)
    plan = Plan((3, 11, 14), (quantizer, conv) if rounding else (conv,), "stem")
    tensors, x = drawn(plan), images((3, 11, 14))
    program = compiled(plan, tensors)
    first, product = program.steps
    assert program.values[first.out].kind == ("i8" if rounding else "f16")
    rows, columns = form["kernel"]
    assert product.shape.kernel == (rows, 1) and product.shape.in_channels == 3 * columns
    found, wanted = executed(program, plain, x), expected(plan, tensors, x)
    assert torch.equal(found, wanted) if rounding else torch.allclose(found, wanted, atol=0.05)


def sign_plan(channels, groups=1, pad_value=1, last="bits"):
    """Two layers of bits by bits behind a float one, thresholds between them, and a last layer."""
    nodes = (
        Conv2d(name="stem", input="input", channels=channels, kernel=(3, 3), weight="float"),
        SignPack(name="s0", input="stem"),
        Conv2d(
            name="one", input="s0", channels=channels, kernel=(3, 3), padding=(1, 1),
            pad_value=pad_value, groups=groups,
        ),
        SignPack(name="s1", input="one", per_channel=True),
        Conv2d(name="two", input="s1", channels=channels, kernel=(2, 2), stride=(2, 2)),
        SignPack(name="s2", input="two", per_channel=True),
        Flatten(name="flat", input="s2"),
        Linear(name="fc", input="flat", channels=4, weight=last, affine=True),
    )  # fmt: skip
    return Plan((2, 8, 8), nodes, "fc")


def rounded_stem(plan):
    """Tensors with which no sum of the stem is near 0 in any order of adding: small integers."""
    tensors = drawn(plan)
    tensors["stem.weight"] = np.sign(tensors["stem.weight"])
    return tensors, images((2, 8, 8)).mul(2).round() + 0.25


@pytest.mark.parametrize("pad_value", [0, 1])
@pytest.mark.parametrize(("channels", "groups"), [(32, 1), (6, 1), (6, 2), (64, 2)])
def test_signs_between_products_of_bits_are_bits_that_products_write(
    plain, channels, groups, pad_value
):
    plan = sign_plan(channels, groups, pad_value)
    tensors, x = rounded_stem(plan)
    program = compiled(plan, tensors)
    assert kinds(program) == {"f16": 1, "b1": 3, "f32": 1}
    assert not any(type(step) is ElementwiseStep for step in program.steps)
    assert torch.equal(executed(program, plain, x).flatten(1), expected(plan, tensors, x))


def test_signs_that_are_not_multiplied_with_bits_are_numbers(plain):
    plan = sign_plan(8, last="float")
    tensors, x = rounded_stem(plan)
    program = compiled(plan, tensors)
    assert sum(isinstance(step, SignStep) for step in program.steps) == 1
    found, wanted = executed(program, plain, x).flatten(1), expected(plan, tensors, x)
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_signs_read_both_ways_exist_both_ways(plain):
    nodes = (
        SignPack(name="s", input="input"),
        Conv2d(name="one", input="s", channels=3, kernel=(3, 3), padding=(1, 1), residual="s"),
        SignPack(name="t", input="one"),
        Conv2d(name="two", input="t", channels=3, kernel=(1, 1), affine=True),
        Add(name="sum", inputs=("t", "two")),
        Activate(name="end", input="sum", activation=Activation("prelu")),
    )
    plan = Plan((3, 5, 4), nodes, "end")
    tensors, x = drawn(plan), images((3, 5, 4))
    program = compiled(plan, tensors)
    assert kinds(program)["b1"] == 2
    assert torch.equal(executed(program, plain, x), expected(plan, tensors, x))


def test_float_layers_compute_in_halves_and_a_last_one_in_float32():
    plan = sign_plan(8, last="float")
    program = compiled(plan, drawn(plan))
    weights = [step.weight for step in program.steps if isinstance(step, FloatProductStep)]
    assert [weight.dtype for weight in weights] == [torch.float16, torch.float32]


def test_values_alive_together_never_share_memory(random_plan):
    for seed in range(20):
        program = compiled(*random_plan(seed, rounded=seed % 2 == 0))
        arena = place_values(program)
        last = {value: time for time, step in enumerate(program.steps) for value in step.reads}
        last[program.output] = len(program.steps)
        alive = set()
        for time, step in enumerate(program.steps):
            alive = {value for value in alive if last[value] >= time} | {*step.writes}
            places = sorted(
                (arena.offsets[value], arena.offsets[value] + program.values[value].bytes)
                for value in alive
            )
            assert all(end <= start for (_, end), (start, _) in pairwise(places))
            assert places[-1][1] <= arena.bytes and all(start % 128 == 0 for start, _ in places)
