"""The reference runtime: every operator against its formula, whatever the memory budget."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import bits
from models.artifact import Artifact
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
    PadChannels,
    SignPack,
    Subsample,
)
from models.plan import Plan
from models.preprocessing import InputSpec
from models.quantization import quantize
from models.runtime import RUNTIMES, Runtime, available, load
from models.runtime.reference import ReferenceRuntime
from models.runtime.unpacking import parts, sign_table, unpack_filters
from store.errors import Unavailable

quick = settings(deadline=None, max_examples=40)


def artifact(nodes, tensors, shape=(3, 6, 5)):
    """An artifact of ``nodes``, flattened at the end where that is needed."""
    plan = Plan(shape, tuple(nodes), nodes[-1].name)
    if len(plan.output_shape) == 3:
        flat = Flatten(name="flat_at_last", input=plan.output)
        plan = Plan(shape, (*plan.nodes, flat), flat.name)
    labels = tuple(map(str, range(plan.output_shape[0])))
    spec = InputSpec(*shape, (0.0,) * shape[0], (1.0,) * shape[0])
    return Artifact(plan, tensors, spec, labels, {}, {})


def run(nodes, tensors, x, **budgets):
    found = artifact(nodes, tensors, tuple(x.shape[1:]))
    shape = found.plan.shapes[nodes[-1].name]
    return ReferenceRuntime(found, **budgets).run(x).view(len(x), *shape)


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def codes(*shape, seed=0):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=shape)


def images(shape=(3, 6, 5), count=4, seed=9):
    return torch.from_numpy(floats(count, *shape, seed=seed))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("weights_at_once", [1, 40, 1 << 20])
@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"stride": (2, 1), "padding": (1, 2)},
        {"dilation": (2, 1), "padding": (2, 0)},
        {"padding": (1, 1), "pad_value": 1},
    ],
)
def test_binary_convolution_equals_that_of_its_codes(geometry, groups, weights_at_once):
    weight = codes(6, 3 // groups, 3, 2)
    node = Conv2d(name="c", input="input", channels=6, kernel=(3, 2), groups=groups, **geometry)
    x = images()
    padding = node.padding
    if node.pad_value:
        padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=1.0)
        padding = (0, 0)
    else:
        padded = x
    expected = F.conv2d(
        padded, torch.from_numpy(weight).float(), None, node.stride, padding, node.dilation, groups
    )
    y = run([node], {"c.bits": bits.pack(weight)[None]}, x, weights_at_once=weights_at_once)
    assert torch.allclose(y, expected, atol=1e-5)


def test_one_channel_with_a_stride_along_the_columns_alone():
    """Of this shape torch itself computes something else where its weights are channels last."""
    weight = codes(2, 1, 3, 5)
    node = Conv2d(name="c", input="input", channels=2, kernel=(3, 5), stride=(1, 2))
    x = images((1, 6, 5))
    expected = F.conv2d(x.double(), torch.from_numpy(weight).double(), stride=(1, 2))
    y = run([node], {"c.bits": bits.pack(weight)[None]}, x)
    assert torch.allclose(y.double(), expected, atol=1e-5)


@pytest.mark.parametrize("weights_at_once", [1, 1 << 20])
def test_bases_are_summed_with_their_scales_before_the_affine(weights_at_once):
    weight, scale, affine = codes(3, 4, 3, 3, 3), floats(3, 4, seed=1), floats(2, 4, seed=2)
    first = Conv2d(name="a", input="input", channels=4, kernel=(3, 3), padding=(1, 1), bases=3,
                   base_scale=True, affine=True)  # fmt: skip
    node = Conv2d(name="b", input="a", channels=4, kernel=(1, 1), weight="float", residual="a",
                  activation=Activation("prelu"))  # fmt: skip
    x = images()
    tensors = {
        "a.bits": np.stack([bits.pack(basis) for basis in weight]),
        "a.base_scale": scale,
        "a.affine": affine,
        "b.weight": floats(4, 4, 1, 1, seed=3),
        "b.slope": floats(4, seed=4),
    }
    summed = np.einsum("kn,kncyx->ncyx", scale, weight)
    a = F.conv2d(x, torch.from_numpy(summed), padding=1)
    gain, shift = torch.from_numpy(affine).view(2, 4, 1, 1)
    a = a * gain + shift
    b = F.conv2d(a, torch.from_numpy(tensors["b.weight"])) + a
    expected = F.prelu(b, torch.from_numpy(tensors["b.slope"]))
    y = run([first, node], tensors, x, weights_at_once=weights_at_once)
    assert torch.allclose(y, expected, atol=1e-4)


@pytest.mark.parametrize("weights_at_once", [1, 70, 1 << 20])
def test_linear_reads_the_map_in_channel_row_column_order(weights_at_once):
    weight, affine = codes(7, 90), floats(2, 7)
    nodes = [
        Flatten(name="f", input="input"),
        Linear(name="l", input="f", channels=7, affine=True, activation=Activation("relu")),
    ]
    x = images()
    product = x.flatten(1) @ torch.from_numpy(weight).float().T
    expected = F.relu(product * torch.from_numpy(affine[0]) + torch.from_numpy(affine[1]))
    tensors = {"l.bits": bits.pack(weight)[None], "l.affine": affine}
    assert torch.allclose(
        run(nodes, tensors, x, weights_at_once=weights_at_once), expected, atol=1e-4
    )


@pytest.mark.parametrize(
    ("node", "function"),
    [
        (MaxPool2d(name="n", input="input", kernel=(3, 2), stride=(2, 1), padding=(1, 1)),
         lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 1))),
        (AvgPool2d(name="n", input="input", kernel=(3, 2), stride=(2, 1), padding=(1, 0)),
         lambda x: F.pad(x, (0, 0, 1, 1)).unfold(2, 3, 2).unfold(3, 2, 1).mean((-1, -2))),
        (Subsample(name="n", input="input", stride=(2, 3)), lambda x: x[:, :, ::2, ::3]),
        (PadChannels(name="n", input="input", before=2, after=1),
         lambda x: torch.cat([0 * x[:, :2], x, 0 * x[:, :1]], 1)),
        (Concat(name="n", inputs=("input", "input")), lambda x: torch.cat([x, x], 1)),
        (Add(name="n", inputs=("input", "input"), activation=Activation("hardtanh", -0.5, 2.0)),
         lambda x: (2 * x).clamp(-0.5, 2.0)),
        (Activate(name="n", input="input", activation=Activation("relu")), F.relu),
        (Activate(name="n", input="input", activation=Activation("hardtanh", -1.0, 0.5)),
         lambda x: x.clamp(-1.0, 0.5)),
        (SignPack(name="n", input="input"), lambda x: torch.where(x >= 0, 1.0, -1.0)),
    ],
    ids=lambda value: getattr(value, "op", ""),
)  # fmt: skip
def test_operator_equals_its_formula_and_leaves_its_input_alone(node, function):
    x = images()
    x[0, 0, 0] = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1.0])
    before = x.clone()
    assert torch.allclose(run([node], {}, x), function(x), rtol=1e-6)
    assert torch.equal(x, before)


def test_affine_prelu_and_threshold_are_per_channel():
    x = images()
    values = floats(2, 3)
    gain, shift = torch.from_numpy(values).view(2, 3, 1, 1)
    y = run([Affine(name="n", input="input")], {"n.affine": values}, x)
    assert torch.allclose(y, x * gain + shift)
    node = Activate(name="n", input="input", activation=Activation("prelu"))
    assert torch.allclose(run([node], {"n.slope": values[0]}, x), torch.where(x >= 0, x, gain * x))
    threshold = np.array([[1, -1, 0], [0.25, 0.25, -1]], np.float32)
    y = run([SignPack(name="n", input="input", per_channel=True)], {"n.threshold": threshold}, x)
    expected = torch.stack([x[:, 0] >= 0.25, x[:, 1] <= -0.25, torch.ones_like(x[:, 2]) > 0], 1)
    assert torch.equal(y > 0, expected)
    assert set(y.unique().tolist()) == {-1.0, 1.0}


def test_batch_norm_and_sign_are_one_comparison():
    """The threshold form of methods.md section 0, flipped senses and constant channels included."""
    gain = np.array([0.5, -2.0, 0.0], np.float32)
    shift = np.array([0.25, 1.0, -3.0], np.float32)
    threshold = np.stack([np.sign(gain), [-0.5, -0.5, 1.0]]).astype(np.float32)
    x = images()
    x[0, :, 0, 0] = torch.tensor([-0.5, 0.5, 7.0])  # exactly at the threshold
    both = run(
        [Affine(name="a", input="input"), SignPack(name="s", input="a")],
        {"a.affine": np.stack([gain, shift])},
        x,
    )
    one = run([SignPack(name="s", input="input", per_channel=True)], {"s.threshold": threshold}, x)
    assert torch.equal(one, both)


@quick
@given(
    st.sampled_from([8, 4, 2, 1]),
    st.floats(-4, 4, width=32),
    st.floats(0.0078125, 4, width=32),
    st.integers(0, 2**32 - 1),
)
def test_quantizer_gives_the_nearest_level_and_is_idempotent(activation_bits, low, step, seed):
    x = torch.from_numpy(floats(200, seed=seed)) * 3
    y = quantize(x, activation_bits, low, step)
    levels = low + step * torch.arange(2**activation_bits, dtype=torch.float32)
    nearest = (x[:, None] - levels).abs().min(dim=1).values
    assert torch.allclose((x - y).abs(), nearest, atol=1e-4)
    assert len(y.unique()) <= 2**activation_bits
    assert torch.equal(quantize(y, activation_bits, low, step), y)


def test_halves_go_up_and_one_bit_is_an_exact_comparison():
    x = torch.tensor([-1e-30, 0.0, -0.0, 1e-30, 5.0])
    assert quantize(x, 1, -1.0, 2.0).tolist() == [-1, 1, 1, 1, 1]
    x = torch.tensor([0.5, 1.5, 2.5, 300.0, -7.0])
    assert quantize(x, 8, 0.0, 1.0).tolist() == [1, 2, 3, 255, 0]


@quick
@given(
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 200)
)
def test_parts_cover_every_filter_once_within_the_budget(groups, per_group, inputs, size, budget):
    shape = (groups * per_group, inputs, size, size)
    found = list(parts(shape, groups, budget))
    filters = [n for part in found for n in range(*part.filters.indices(shape[0]))]
    assert filters == list(range(shape[0]))
    for part in found:
        count = part.filters.stop - part.filters.start
        assert count == 1 or count * inputs * size * size <= budget
        for n in range(part.filters.start, part.filters.stop):
            group = n // per_group
            assert part.inputs.start <= group * inputs < (group + 1) * inputs <= part.inputs.stop
        assert part.inputs.stop - part.inputs.start == part.groups * inputs


@quick
@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 3), st.integers(0, 99))
def test_table_unpacks_as_the_contract_does(filters, channels, size, seed):
    weight = codes(filters, channels, size, size, seed=seed)
    rows = torch.from_numpy(bits.pack(weight))
    unpacked = unpack_filters(rows, weight.shape, sign_table())
    assert np.array_equal(unpacked.numpy(), weight)
    flat = codes(filters, channels, seed=seed)
    assert np.array_equal(
        unpack_filters(torch.from_numpy(bits.pack(flat)), flat.shape, sign_table()).numpy(), flat
    )


@pytest.mark.parametrize("count", [0, 1, 16])
def test_answer_does_not_depend_on_the_budgets(small_artifact, small_images, count):
    x = small_images[:count]
    usual = ReferenceRuntime(small_artifact).run(x)
    assert usual.shape == (count, 5) and usual.dtype == torch.float32
    for weights_at_once, activation_bytes in itertools.product([1, 100], [1, 20_000]):
        runtime = ReferenceRuntime(
            small_artifact, weights_at_once=weights_at_once, activation_bytes=activation_bytes
        )
        assert torch.allclose(runtime.run(x), usual, atol=1e-5)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made under it that still live, and their peak."""

    def __init__(self):
        super().__init__()
        self.storages = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        live = sum(size for storage, size in self.storages.values() if not storage.expired())
        self.peak = max(self.peak, live)
        return result


def chain(length):
    """Convolutions one after the other, 16 channels of 16 x 16, 2,304 weights each."""
    nodes = [
        Conv2d(name=f"c{i}", input=f"c{i - 1}" if i else "input", channels=16, kernel=(3, 3),
               padding=(1, 1), activation=Activation("relu"))
        for i in range(length)
    ]  # fmt: skip
    tensors = {
        f"c{i}.bits": bits.pack(codes(16, 16 if i else 3, 3, 3, seed=i))[None]
        for i in range(length)
    }
    return artifact(nodes, tensors, (3, 16, 16))


def test_memory_is_bounded_by_the_budgets_and_not_by_depth_or_batch():
    value = 4 * 16 * 16 * 16  # bytes of one value of one image
    peaks = {}
    for length, count in itertools.product([3, 12], [8, 64]):
        runtime = ReferenceRuntime(chain(length), weights_at_once=600, activation_bytes=16 * value)
        x = images((3, 16, 16), count)
        with LiveBytes() as measured:
            runtime.run(x)
        peaks[length, count] = measured.peak
        # Eight images' values twice, the parts of one before they are joined, one part's weights
        # with the indices they were looked up by, and the answers.
        answers = 2 * count * 4 * 16 * 16 * 16
        assert measured.peak <= 3 * 8 * value + 3 * 4 * 600 + answers
    # A deeper net costs its packed bits and nothing else.
    assert peaks[12, 8] - peaks[3, 8] <= 9 * 16 * 18


def test_resident_bytes_are_those_of_the_packed_tensors(small_artifact):
    runtime = ReferenceRuntime(small_artifact)
    assert runtime.resident_bytes == small_artifact.packed_bytes + 256 * 8 * 4


def test_input_of_another_shape_or_dtype_is_an_error(small_artifact):
    runtime = ReferenceRuntime(small_artifact)
    for x in (torch.zeros(1, 3, 8, 9), torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8).double()):
        with pytest.raises(ValueError, match="float32"):
            runtime.run(x)


def test_runtimes_are_chosen_by_name_and_never_swapped(small_artifact):
    assert load(small_artifact).name in RUNTIMES
    assert load(small_artifact, "reference").name == "reference"
    assert isinstance(load(small_artifact, "auto"), Runtime)
    with pytest.raises(Unavailable, match="'quantum'") as caught:
        load(small_artifact, "quantum")
    assert caught.value.remedy == "Use one of: " + ", ".join(["auto", *available()])


def test_result_carries_no_gradient(small_artifact, small_images):
    x = small_images.clone().requires_grad_()
    assert not ReferenceRuntime(small_artifact).run(x).requires_grad
