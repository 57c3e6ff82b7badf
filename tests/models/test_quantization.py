"""Activations of 8 bits: the formula, its gradient, its scales, and the plan that it becomes."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import artifact as artifacts
from models.layers import BinaryConv2d, BinaryLinear, binarizable_layers, binarize_layer
from models.operators import Conv2d, Linear, Quantize, zero_level
from models.quantization import (
    ActivationQuantizer,
    Scale,
    _between,
    _between_on_cpu,
    input_scales,
    quantize,
    quantize_inputs,
    scale_tensors,
    scales_of,
)
from models.registry import ARCHITECTURES, build
from models.runtime import load

quick = settings(deadline=None, max_examples=60)
ends = st.floats(0.0, 1000.0, width=32)


def formula(x, low, step, bits=8):
    """The page's formula in NumPy's float32."""
    low, step, x = np.float32(low), np.float32(step), np.asarray(x, np.float32)
    q = np.clip(np.floor((x - low) / step + np.float32(0.5)), 0, 2**bits - 1)
    return q * step + low


def numbers(seed, count=300):
    return np.random.default_rng(seed).normal(scale=3, size=count).astype(np.float32)


@quick
@given(ends, ends, st.integers(0, 2**32 - 1))
def test_quantizer_is_the_formula_in_float32(negative, positive, seed):
    scale = Scale.covering(-negative, positive)
    x = numbers(seed)
    expected = formula(x, scale.low, scale.step)
    assert np.array_equal(ActivationQuantizer(scale)(torch.from_numpy(x)).numpy(), expected)
    assert np.array_equal(quantize(torch.from_numpy(x), 8, scale.low, scale.step), expected)


@quick
@given(ends, ends)
def test_zero_is_a_level_and_every_level_is_exact(negative, positive):
    scale = Scale.covering(-negative, positive)
    assert scale.low == -scale.zero * scale.step
    quantizer = ActivationQuantizer(scale)
    assert quantizer(torch.zeros(3)).tolist() == [0.0] * 3
    assert quantizer.scale == scale
    levels = np.arange(-scale.zero, 256 - scale.zero) * scale.step  # in float64
    assert np.array_equal(levels.astype(np.float32), levels)
    exact = torch.from_numpy(levels.astype(np.float32))
    assert torch.equal(quantizer(exact), exact)


@quick
@given(ends, ends)
def test_covering_scale_has_the_smallest_step_that_reaches_both_ends(negative, positive):
    scale = Scale.covering(-negative, positive)
    if negative == positive == 0:
        assert scale == Scale(0.0, 1.0)
        return
    assert scale.low <= -negative and scale.low + 255 * scale.step >= positive
    with np.errstate(divide="ignore", invalid="ignore"):
        zeros = np.arange(256)
        steps = np.maximum(
            np.where(negative > 0, negative / zeros, 0.0),
            np.where(positive > 0, positive / (255 - zeros), 0.0),
        )
    # A step has 16 significant bits, and is no smaller than 2**-100.
    assert max(steps.min(), 2.0**-100) <= scale.step <= max(steps.min(), 2.0**-100) * (1 + 2**-15)
    assert scale.zero == 0 or negative > 0
    assert scale.zero == 255 or positive > 0


def test_numbers_that_leave_zero_out_are_no_scale():
    for low, step in ((-0.5, 1.0), (1.0, 1.0), (-256.0, 1.0), (0.0, 0.0), (0.0, -1.0), (0.0, 0.1)):
        with pytest.raises(ValueError, match="0 is none"):
            Scale(low, step)
    assert zero_level(8, -0.5, 1.0) is None
    assert zero_level(4, -15.0, 1.0) == 15 and zero_level(4, -16.0, 1.0) is None


def test_gradient_passes_where_nothing_was_clamped():
    quantizer = ActivationQuantizer(Scale(-2.0, 1.0))  # -2 to 253
    x = torch.tensor([-2.6, -2.4, 0.3, 253.4, 253.6], requires_grad=True)
    y = quantizer(x)
    assert y.tolist() == [-2, -2, 0, 253, 253]
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert x.grad.tolist() == [0, 2, 3, 4, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_is_the_same_on_devices_that_are_not_to_be_waited_for(dtype):
    x = torch.from_numpy(numbers(0, 4000)).to(dtype)
    gradient = torch.from_numpy(numbers(1, 4000)).to(dtype)
    # The first bounds are numbers of float32 between two of bfloat16, the others are in ``x``.
    for least, greatest in ((-1.001, 1.001), (x[3].item(), x[3].item() + 2)):
        bounds = torch.tensor(least), torch.tensor(greatest)
        found = _between(gradient, x, *bounds)
        assert found.dtype == dtype
        assert torch.equal(found, _between_on_cpu(gradient, x, *bounds))
        assert 0 < int((found == 0).sum()) < 4000


def test_operator_meets_torchs_own_rules():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    arguments = (x, torch.tensor(-1.0), torch.tensor(0.125), 8)
    # Its numerical gradient is that of a staircase, so that check is left out.
    for check in ("test_schema", "test_autograd_registration", "test_faketensor"):
        torch.library.opcheck(torch.ops.bitpress.quantize.default, arguments, test_utils=check)


@pytest.mark.parametrize("shape", [(0, 3), (5,), (3, 7, 50, 300), (2, 200_000)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pieces_of_any_size_make_the_same_whole(shape, memory_format):
    if memory_format == torch.channels_last and len(shape) != 4:
        return
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=memory_format)
    y = ActivationQuantizer(Scale(-2.0, 0.125))(x)
    assert y.is_contiguous(memory_format=memory_format)
    assert np.array_equal(y.numpy(), formula(x.numpy(), -2.0, 0.125))


def test_reduced_precision_is_kept():
    quantizer = ActivationQuantizer(Scale(0.0, 0.25))
    assert quantizer(torch.tensor([0.3], dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_scales_survive_their_tensors():
    scales = {"a": Scale.covering(-1.3, 4.7), "b": Scale.covering(0.0, 0.0)}
    assert scales_of(scale_tensors(scales)) == scales


def test_only_binary_layers_quantize_what_they_are_fed(small_net):
    net = copy.deepcopy(small_net)
    for name in ("side", "norm1", "nothing"):
        with pytest.raises(KeyError):
            quantize_inputs(net, {name: Scale(0.0, 1.0)})
    assert input_scales(net) == {}
    quantize_inputs(net, {"conv1": Scale(0.0, 1.0)})
    quantize_inputs(net, {"conv1": Scale(0.0, 0.5)})
    assert input_scales(net) == {"conv1": Scale(0.0, 0.5)}
    assert "conv1.input_quantizer.step" in net.state_dict()


# --- Lowered --------------------------------------------------------------------------------------


def with_quantizers(net, images):
    """Let every binary layer cover exactly what it is fed for ``images``; return the scales."""
    layers = {
        name: layer
        for name, layer in net.named_modules()
        if isinstance(layer, BinaryConv2d | BinaryLinear)
    }
    scales = {}

    def note(name):
        def hook(_, arguments):
            ends = arguments[0].aminmax()
            scales[name] = Scale.covering(ends.min.item(), ends.max.item())

        return hook

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    quantize_inputs(net, scales)
    return scales


def mean_square_root(x):
    return x.square().mean().sqrt()


def zoo_net(name, randomise, binarize):
    channels, height, width = ARCHITECTURES[name].default_input
    shape = (channels, min(height, 64), min(width, 64))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = build(
            name, channels=shape[0], height=shape[1], width=shape[2], classes=10, parameters={}
        ).eval()
    randomise(net)
    binarize(net, (list(binarizable_layers(net))[-1],) if name == "resnet18" else ())
    return net, shape


@pytest.mark.parametrize("name", ["vgg9", "resnet20", "resnet18", "alexnet", "digits_cnn"])
def test_plan_of_a_quantized_net_agrees_with_it(name, randomise, binarize, make_artifact, tmp_path):
    net, shape = zoo_net(name, randomise, binarize)
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        float_logits = net(x)
    scales = with_quantizers(net, x)
    with torch.no_grad():
        expected = net(x)
    written = make_artifact(net, shape)
    artifacts.write(written, tmp_path / "artifact")
    artifact = artifacts.read(tmp_path / "artifact")
    nodes = {node.name: node for node in artifact.plan.nodes}
    # Every binary layer reads a quantizer of its own scale; a value is quantized once.
    for layer, scale in scales.items():
        quantizer = nodes[nodes[layer].input]
        assert isinstance(quantizer, Quantize) and quantizer.bits == 8
        assert (quantizer.low, quantizer.step, quantizer.zero) == (
            scale.low, scale.step, scale.zero,
        )  # fmt: skip
    quantizers = [node for node in artifact.plan.nodes if isinstance(node, Quantize)]
    read = Counter(node.input for node in nodes.values() if isinstance(node, Conv2d | Linear))
    assert len({(node.input, node.low, node.step) for node in quantizers}) == len(quantizers)
    shared = sum(count - 1 for key, count in read.items() if isinstance(nodes.get(key), Quantize))
    assert shared == (3 if name == "resnet18" else 0)
    assert len(quantizers) == len(scales) - shared
    assert quantizers[0].low < 0  # the image
    # Batch norm, sums and activations are taken in as without quantizers.
    assert {node.op for node in nodes.values()} <= {
        "conv2d", "linear", "max_pool2d", "avg_pool2d", "flatten", "subsample", "pad_channels",
        "quantize",
    }  # fmt: skip
    # Sums of float32 differ from those of integers in their last bits. So a number next to the
    # middle of two levels may be rounded the other way: less than the rounding itself, by far.
    logits = load(artifact, "reference").run(x)
    noise = mean_square_root(expected - float_logits)
    assert 0 < noise < 0.1 * mean_square_root(float_logits)
    assert mean_square_root(logits - expected) < 0.7 * noise
    assert (logits - expected).abs().median() < 0.1 * noise


def test_layer_of_several_bases_is_quantized_once(make_artifact):
    generator = torch.Generator().manual_seed(4)
    codes = torch.where(torch.rand(3, 6, 3, 3, 3, generator=generator) < 0.5, -1, 1)
    layer = binarize_layer(nn.Conv2d(3, 6, 3), codes, torch.rand(3, 6, generator=generator))
    net = nn.Sequential(layer, nn.ReLU(), nn.Flatten()).eval()
    quantize_inputs(net, {"0": Scale.covering(-3.0, 3.0)})
    x = torch.randn(4, 3, 6, 6, generator=generator)
    artifact = make_artifact(net, (3, 6, 6))
    assert [node.op for node in artifact.plan.nodes] == ["quantize", "conv2d", "flatten"]
    assert artifact.plan.nodes[1].bases == 3
    with torch.no_grad():
        assert torch.allclose(load(artifact).run(x), net(x), atol=1e-5)


class TwiceQuantized(nn.Module):
    """The same quantizer for a layer and for the network's own result."""

    def __init__(self):
        super().__init__()
        self.layer = BinaryLinear(5, 5)
        self.layer.input_quantizer = ActivationQuantizer(Scale(0.0, 0.5))
        self.last = ActivationQuantizer(Scale(0.0, 0.5))

    def forward(self, x):
        x = self.layer(torch.flatten(x, 1))
        return self.last(x + self.layer(x))


def test_output_may_be_quantized(make_artifact):
    net = TwiceQuantized().eval()
    artifact = make_artifact(net, (1, 1, 5))
    assert isinstance(artifact.plan.nodes[-1], Quantize)
    x = 4 * torch.randn(6, 1, 1, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(load(artifact).run(x), net(x))


def test_network_that_is_one_quantized_layer_can_be_lowered(make_artifact):
    layer = BinaryLinear(4, 3)
    layer.input_quantizer = ActivationQuantizer(Scale(-1.0, 0.5))
    net = nn.Sequential(nn.Flatten(), layer)
    artifact = make_artifact(net.eval(), (1, 2, 2))
    assert [node.op for node in artifact.plan.nodes] == ["flatten", "quantize", "linear"]
    x = torch.tensor([[[[0.3, -0.9], [2.1, 400.0]]]])
    with torch.no_grad():
        assert torch.allclose(load(artifact).run(x), net(x))
