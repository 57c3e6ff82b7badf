"""Every kernel of every instruction set against the reference: integers to the bit, floats closely.

Products of bits with codes are exact. Products with float32 may add in any order: they are held to
1e-5 of the sum of |x w|, from the result in float64.
"""

from math import prod
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models import bits
from models.attributes import Activation
from models.operators import Conv2d, Flatten, Linear, Quantize
from models.plan import Plan
from models.runtime import native
from models.runtime.cpu import CpuRuntime
from models.runtime.reference import ReferenceRuntime

LIBRARY = native.library()
KERNEL_SETS = LIBRARY.kernel_sets() if LIBRARY else ()

pytestmark = pytest.mark.skipif(not KERNEL_SETS, reason="the native library was not built")
every_set = pytest.mark.parametrize("kernels", KERNEL_SETS)
many = settings(deadline=None, max_examples=120)

CLOSE = 1e-5


def nth_kernel(kernels, number):
    """Choose the candidate of that number, counted around."""
    return lambda step, source: number % len(LIBRARY.kernel_names(kernels, step, source))


def case_of(plan, tensors):
    # Not an `Artifact`, which is for images of 1 or 3 channels.
    return SimpleNamespace(plan=plan, tensors=tensors)


def signs(rng, kind, *shape):
    if kind == "drawn":
        return rng.choice(np.array([-1, 1], np.int8), size=shape)
    return np.full(shape, 1 if kind == "ones" else -1, np.int8)


@st.composite
def geometries(draw):
    """A convolution of any shape, or a linear layer behind a map: node members and input shape."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    group_channels = draw(st.one_of(st.integers(1, 9), st.sampled_from([16, 31, 64, 67, 130])))
    group_filters = draw(st.one_of(st.integers(1, 9), st.sampled_from([16, 33, 64, 65, 140])))
    edges = draw(st.tuples(st.integers(1, 12), st.integers(1, 20)))
    kernel = draw(
        st.sampled_from([(1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (1, 3), (2, 1), (4, 7), (11, 11)])
    )
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3)]))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    reach = [dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i] for i in (0, 1)]
    return {
        "shape": (groups * group_channels, *(max(edges[i], reach[i]) for i in (0, 1))),
        "channels": groups * group_filters,
        "kernel": kernel,
        "stride": draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (4, 3)])),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }


def convolution(source, geometry, **form):
    members = {name: value for name, value in geometry.items() if name != "shape"}
    return Conv2d(name="c", input=source, **members, **form)


@every_set
@many
@given(
    geometry=geometries(),
    levels=st.sampled_from([8, 8, 8, 4, 2, 1]),
    bases=st.sampled_from([1, 1, 1, 2, 3]),
    has=st.fixed_dictionaries(
        {name: st.booleans() for name in ("base_scale", "affine", "residual", "rounded")}
    ),
    activation=st.sampled_from(
        [None, Activation("relu"), Activation("hardtanh", -0.75, 2.0), Activation("prelu")]
    ),
    weights=st.sampled_from(["drawn", "drawn", "ones", "minus ones"]),
    inputs=st.sampled_from(["drawn", "drawn", "greatest", "least", "zero"]),
    zero=st.sampled_from([0, 0, 1, 77, 128, 255]),
    count=st.integers(1, 9),
    kernel=st.integers(0, 3),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_of_codes_are_exact(
    kernels, geometry, levels, bases, has, activation, weights, inputs, zero, count, kernel,
    threads, seed,
):  # fmt: skip
    rng = np.random.default_rng(seed)
    zero = zero % 2**levels
    step = float(np.float32(rng.uniform(0.01, 1.0)))
    low = float(np.float32(-zero) * np.float32(step))
    shape = geometry["shape"]
    node = convolution(
        "q", geometry, bases=bases, base_scale=has["base_scale"], affine=has["affine"],
        activation=activation, residual="r" if has["residual"] else None,
    )  # fmt: skip
    weight_shape = (node.channels, shape[0] // node.groups, *node.kernel)
    nodes = [Quantize(name="q", input="input", bits=levels, low=low, step=step)]
    tensors = {
        "c.bits": np.stack(
            [bits.pack(signs(rng, weights, *weight_shape)) for _ in range(bases)]
        )
    }  # fmt: skip
    if has["residual"]:
        # Of float weights, but of whole numbers: exact as well.
        members = {**vars(node), "name": "r", "residual": None, "activation": None}
        members |= {"weight": "float", "bases": 1, "base_scale": False, "affine": False}
        nodes.append(Conv2d(**{**members, "input": "w"}))
        nodes.insert(1, Quantize(name="w", input="input", bits=2, low=-1.0, step=1.0))
        tensors["r.weight"] = rng.integers(-1, 2, weight_shape).astype(np.float32)
    nodes.append(node)
    if has["base_scale"]:
        tensors["c.base_scale"] = rng.normal(size=(bases, node.channels)).astype(np.float32)
    if has["affine"]:
        tensors["c.affine"] = rng.normal(size=(2, node.channels)).astype(np.float32)
    if activation is not None and activation.kind == "prelu":
        tensors["c.slope"] = rng.normal(size=node.channels).astype(np.float32)
    if has["rounded"]:
        nodes.append(Quantize(name="last", input="c", bits=8, low=-16.0, step=0.125))
    plan = Plan(shape, tuple(nodes), nodes[-1].name)
    reach = step * 2**levels
    x = {
        "drawn": rng.uniform(low - 0.1 * reach, low + 1.1 * reach, (count, *shape)),
        "greatest": np.full((count, *shape), low + 2 * reach),
        "least": np.full((count, *shape), low - reach),
        "zero": np.zeros((count, *shape)),
    }[inputs]
    x = torch.from_numpy(x.astype(np.float32))
    case = case_of(plan, tensors)
    runtime = CpuRuntime(
        case, threads=threads, kernels=kernels, choose_kernel=nth_kernel(kernels, kernel)
    )
    assert torch.equal(runtime.run(x), ReferenceRuntime(case).run(x))


@every_set
@many
@given(
    geometry=geometries(),
    weight=st.sampled_from(["bits", "bits", "float"]),
    bases=st.sampled_from([1, 1, 1, 2, 3]),
    base_scale=st.booleans(),
    affine=st.booleans(),
    pad_value=st.integers(0, 1),
    weights=st.sampled_from(["drawn", "drawn", "ones", "minus ones"]),
    count=st.integers(1, 9),
    kernel=st.integers(0, 3),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_of_real_numbers_are_close(
    kernels, geometry, weight, bases, base_scale, affine, pad_value, weights, count, kernel,
    threads, seed,
):  # fmt: skip
    rng = np.random.default_rng(seed)
    is_float = weight == "float"
    bases = 1 if is_float else bases
    base_scale = base_scale and not is_float
    shape = geometry["shape"]
    node = convolution(
        "input", geometry, weight=weight, bases=bases, base_scale=base_scale, affine=affine,
        pad_value=pad_value,
    )  # fmt: skip
    weight_shape = (node.channels, shape[0] // node.groups, *node.kernel)
    tensors = {}
    if is_float:
        values = rng.normal(size=(1, *weight_shape)).astype(np.float32)
        tensors["c.weight"] = values[0]
    else:
        values = np.stack([signs(rng, weights, *weight_shape) for _ in range(bases)])
        tensors["c.bits"] = np.stack([bits.pack(basis) for basis in values])
    scale = rng.normal(size=(bases, node.channels)).astype(np.float32)
    if base_scale:
        tensors["c.base_scale"] = scale
    else:
        scale[:] = 1
    if affine:
        tensors["c.affine"] = rng.normal(size=(2, node.channels)).astype(np.float32)
    x = torch.from_numpy(rng.normal(size=(count, *shape)).astype(np.float32))
    case = case_of(Plan(shape, (node,), "c"), tensors)
    runtime = CpuRuntime(
        case, threads=threads, kernels=kernels, choose_kernel=nth_kernel(kernels, kernel)
    )

    rows, columns = node.padding
    padded = F.pad(x.double(), (columns, columns, rows, rows), value=float(pad_value))
    wanted, size = 0.0, 0.0
    for basis in range(bases):
        w = torch.from_numpy(values[basis]).double()
        s = torch.from_numpy(scale[basis]).double().view(-1, 1, 1)
        form = {"stride": node.stride, "dilation": node.dilation, "groups": node.groups}
        wanted = wanted + s * F.conv2d(padded, w, **form)
        size = size + s.abs() * F.conv2d(padded.abs(), w.abs(), **form)
    if affine:
        gain, shift = torch.from_numpy(tensors["c.affine"]).double().view(2, -1, 1, 1)
        wanted, size = wanted * gain + shift, size * gain.abs() + shift.abs()
    error = (runtime.run(x).double() - wanted).abs()
    assert (error <= CLOSE * size + 1e-30).all()


@every_set
@pytest.mark.parametrize("kernel", range(2))
@pytest.mark.parametrize("shape", [(512, 7, 7), (3, 33, 35), (70_001, 1, 1), (256, 6, 6)])
def test_long_sums_are_exact(kernels, kernel, shape):
    """More than a tile, a table's range or a chunk holds; all weights and codes at their limits."""
    rng = np.random.default_rng(0)
    kernel_shape = (3, 3) if shape[1] not in (1, 6) else shape[1:]
    filters = 100
    codes = signs(rng, "drawn", filters, shape[0], *kernel_shape)
    codes[0], codes[1] = 1, -1
    nodes = (
        Quantize(name="q", input="input", bits=8, low=0.0, step=1.0),
        Conv2d(name="c", input="q", channels=filters, kernel=kernel_shape),
    )
    case = case_of(Plan(shape, nodes, "c"), {"c.bits": bits.pack(codes)[None]})
    x = rng.integers(0, 256, (3, *shape)).astype(np.float32)
    x[0], x[1] = 255, 254
    x = torch.from_numpy(x)
    runtime = CpuRuntime(case, kernels=kernels, choose_kernel=nth_kernel(kernels, kernel))
    assert torch.equal(runtime.run(x), ReferenceRuntime(case).run(x))


@every_set
@pytest.mark.parametrize("weight", ["bits", "float"])
@pytest.mark.parametrize("map_shape", [(12, 5, 3), (40, 1, 1), (1, 1, 33)])
def test_linear_layer_reads_the_map_in_channel_row_column_order(kernels, weight, map_shape):
    rng = np.random.default_rng(0)
    inputs = prod(map_shape)
    values = signs(rng, "drawn", 21, inputs)
    if weight == "float":
        tensors = {"l.weight": rng.normal(size=(21, inputs)).astype(np.float32)}
        values = tensors["l.weight"]
    else:
        tensors = {"l.bits": bits.pack(values)[None]}
    nodes = (
        Flatten(name="f", input="input"),
        Linear(name="l", input="f", channels=21, weight=weight),
    )
    x = torch.from_numpy(rng.normal(size=(6, *map_shape)).astype(np.float32))
    found = CpuRuntime(case_of(Plan(map_shape, nodes, "l"), tensors), kernels=kernels).run(x)
    wanted = x.flatten(1).double() @ torch.from_numpy(values).double().T
    size = x.flatten(1).double().abs() @ torch.from_numpy(values).double().abs().T
    assert ((found.double() - wanted).abs() <= CLOSE * size).all()


@every_set
@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 5), kernel=st.integers(0, 3))
def test_any_plan_of_levels_is_exact(random_plan, kernels, seed, count, kernel):
    plan, tensors = random_plan(seed, rounded=True)
    case = case_of(plan, tensors)
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(count, *plan.input_shape)).astype(np.float32))
    runtime = CpuRuntime(
        case, threads=1 + seed % 2, kernels=kernels, choose_kernel=nth_kernel(kernels, kernel)
    )
    assert torch.equal(runtime.run(x), ReferenceRuntime(case).run(x))


@every_set
@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 5), kernel=st.integers(0, 3))
def test_any_plan_of_real_numbers_is_close(random_plan, kernels, seed, count, kernel):
    plan, tensors = random_plan(seed, rounded=False)
    case = case_of(plan, tensors)
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(count, *plan.input_shape)).astype(np.float32))
    runtime = CpuRuntime(
        case, threads=1 + seed % 2, kernels=kernels, choose_kernel=nth_kernel(kernels, kernel)
    )
    found, wanted = runtime.run(x), ReferenceRuntime(case).run(x)
    scale = wanted.abs().max().clamp(min=1)
    assert torch.allclose(found / scale, wanted / scale, atol=1e-4)
