"""Lowering: the plan computes what the network does, and says so in few nodes."""

import copy
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import checkpoints
from models.artifact import Artifact, binary_codes
from models.attributes import Activation
from models.binarize import sign
from models.layers import (
    BinaryConv2d,
    BinaryLinear,
    binarizable_layers,
    binarize_layer,
    replace_layer,
)
from models.lowering import lower
from models.operators import Conv2d, Flatten, Linear
from models.plan import Plan
from models.preprocessing import InputSpec
from models.registry import ARCHITECTURES, build
from models.runtime import load
from store.errors import InvalidArtifact


def agreement(net, artifact, images):
    """Assert equal logits to 1e-4 of the largest, and equal classes wherever that decides."""
    with torch.no_grad():
        expected = net(images)
    logits = load(artifact, "reference").run(images)
    difference = (logits - expected).abs().max().item()
    assert difference <= 1e-4 * expected.abs().max().item()
    best = expected.topk(2, dim=1).values
    decided = best[:, 0] - best[:, 1] > 2 * difference
    assert torch.equal(logits.argmax(1)[decided], expected.argmax(1)[decided])
    return decided


def codes_survive(net, artifact):
    """Assert that the packed bits of every binary layer unpack to its trained signs."""
    trained = {
        name: layer.codes.numpy()
        for name, layer in net.named_modules()
        if isinstance(layer, BinaryConv2d | BinaryLinear)
    }
    unpacked = binary_codes(artifact)
    assert set(unpacked) == set(trained)
    for name, codes in trained.items():
        assert np.array_equal(unpacked[name], codes)
    return trained


# Every net all binary, and some with their first and last layer in float, as is usual.
ALL_BINARY = [
    *((name, {}, False) for name in ARCHITECTURES),
    ("resnet20", {"shortcut": "B"}, False),
]
ENDS_IN_FLOAT = [(name, {}, True) for name in ("digits_cnn", "resnet20", "alexnet")]


def zoo_net(name, parameters, randomise):
    """Build a net with random weights; ImageNet nets at 64 px."""
    channels, height, width = ARCHITECTURES[name].default_input
    shape = (channels, min(height, 64), min(width, 64))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = build(
            name,
            channels=shape[0],
            height=shape[1],
            width=shape[2],
            classes=10,
            parameters=parameters,
        ).eval()
    randomise(net)
    return net, shape


@pytest.mark.parametrize(
    ("name", "parameters", "ends_in_float"), ALL_BINARY + ENDS_IN_FLOAT, ids=str
)
def test_plan_of_every_net_of_the_zoo_agrees_with_it(
    name, parameters, ends_in_float, randomise, binarize, make_artifact
):
    net, shape = zoo_net(name, parameters, randomise)
    layers = list(binarizable_layers(net))
    keep_float = (layers[0], layers[-1]) if ends_in_float else ()
    binarize(net, keep_float)
    artifact = make_artifact(net, shape)
    generator = torch.Generator().manual_seed(0)
    decided = agreement(net, artifact, torch.randn(32, *shape, generator=generator))
    assert decided.sum() > 16
    assert set(codes_survive(net, artifact)) == set(layers) - set(keep_float)
    # Batch norm, activations and sums are all taken in by the products.
    assert {node.op for node in artifact.plan.nodes} <= {
        "conv2d",
        "linear",
        "max_pool2d",
        "avg_pool2d",
        "flatten",
        "subsample",
        "pad_channels",
    }
    assert [n.name for n in artifact.plan.nodes if n.op in ("conv2d", "linear")] == layers


def test_residual_sums_activations_and_batch_norms_are_fused(
    small_net, small_artifact, small_images
):
    agreement(small_net, small_artifact, small_images)
    codes_survive(small_net, small_artifact)
    assert [(node.name, node.op) for node in small_artifact.plan.nodes] == [
        ("stem", "conv2d"),
        ("conv1", "conv2d"),
        ("subsample_1", "subsample"),
        ("pad_channels_1", "pad_channels"),
        ("conv2", "conv2d"),
        ("side", "conv2d"),
        ("max_pool2d_1", "max_pool2d"),
        ("flatten_1", "flatten"),
        ("head", "linear"),
    ]
    nodes = {node.name: node for node in small_artifact.plan.nodes}
    assert nodes["conv1"].residual == "stem"
    assert nodes["conv2"].residual == "pad_channels_1"
    assert nodes["side"].residual == "conv2"
    assert nodes["side"].activation == Activation("prelu")
    assert nodes["side"].weight == "float"
    assert nodes["subsample_1"].stride == (2, 2)


def test_network_is_not_changed(small_net):
    net = copy.deepcopy(small_net).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    lower(net, (3, 8, 8))
    assert net.training and isinstance(net.conv1, BinaryConv2d)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_lowering_twice_gives_the_same(small_net):
    (plan, tensors), (again, same) = lower(small_net, (3, 8, 8)), lower(small_net, (3, 8, 8))
    assert plan == again
    assert list(tensors) == list(same)
    assert all(np.array_equal(tensors[name], same[name]) for name in tensors)


def test_affine_is_composed_in_double_and_rounded_once():
    torch.manual_seed(5)
    net = nn.Sequential(BinaryConv2d(2, 9, 3), nn.BatchNorm2d(9, eps=1e-3)).eval()
    layer, norm = net
    for tensor in (layer.scale.data, layer.bias.data, norm.weight.data, norm.bias.data):
        tensor.uniform_(-1, 1)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    _, tensors = lower(net, (2, 5, 5))

    def double(tensor):
        return tensor.detach().double().numpy()

    gain = double(norm.weight) / np.sqrt(double(norm.running_var) + 1e-3)
    scale = gain * double(layer.scale)
    shift = gain * (double(layer.bias) - double(norm.running_mean)) + double(norm.bias)
    # One rounding to float32 apart from the last digits of float64.
    assert np.allclose(tensors["0.affine"], np.stack([scale, shift]), rtol=2**-24, atol=1e-9)


def test_float_weights_stay_as_they_are_and_an_empty_affine_is_left_out():
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 4, bias=False)
    ).eval()
    net[1].running_mean.fill_(0.5)
    plan, tensors = lower(net, (2, 5, 5))
    assert np.array_equal(tensors["0.weight"], net[0].weight.detach().numpy())
    assert np.array_equal(tensors["3.weight"], net[3].weight.detach().numpy())
    assert set(tensors) == {"0.weight", "0.affine", "3.weight"}
    assert not plan.nodes[-1].affine


class Written(nn.Module):
    """A network written as one function of its input and one 3 x 3 convolution."""

    def __init__(self, function, channels=4):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.slope = nn.PReLU(1)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def label(value):
    return "+".join(value) if isinstance(value, list) else value if isinstance(value, str) else ""


def waiting_product(s, x):
    """The product comes first and has to wait for the other operand of the sum."""
    product = s.norm(s.conv(x))
    return F.relu(product + F.pad(F.max_pool2d(x, 3, 1, 1), (0, 0, 0, 0, 1, 0)))


def lowered(function, images):
    net = Written(function).eval()
    plan, tensors = lower(net, tuple(images.shape[1:]))
    return net, plan, tensors


@pytest.mark.parametrize(
    ("function", "operators"),
    [
        (lambda s, x: F.relu6(s.conv(x)), ["conv2d"]),
        (lambda s, x: F.hardtanh(s.conv(x), -0.5, 0.25), ["conv2d"]),
        (lambda s, x: F.leaky_relu(s.conv(x), 0.1), ["conv2d"]),
        (lambda s, x: s.slope(s.conv(x)), ["conv2d"]),
        (lambda s, x: s.norm(s.norm(s.conv(x))), ["conv2d"]),
        (lambda s, x: s.norm(F.relu(s.conv(x))), ["conv2d", "affine"]),
        (lambda s, x: F.relu(s.norm(F.relu(s.conv(x)))), ["conv2d", "affine", "activation"]),
        (lambda s, x: F.relu(F.relu(s.conv(x))), ["conv2d", "activation"]),
        (lambda s, x: F.relu(x), ["activation"]),
        (lambda s, x: s.conv(x) + s.conv(x), ["conv2d", "conv2d"]),
        (lambda s, x: F.relu(x + x), ["add"]),
        (lambda s, x: (lambda y: y + y)(s.conv(x)), ["conv2d", "add"]),
        (lambda s, x: (lambda y: F.relu(y) + y)(s.conv(x)), ["conv2d", "activation", "add"]),
        (lambda s, x: (lambda y: s.norm(y) + y)(s.conv(x)), ["conv2d", "affine", "add"]),
        (waiting_product, ["max_pool2d", "pad_channels", "conv2d"]),
        (lambda s, x: torch.cat([s.conv(x), x], 1)[:, :, ::3], ["conv2d", "concat", "subsample"]),
        (lambda s, x: x[:, :, :, ::2][:, :, ::2, ::2], ["subsample"]),
        (lambda s, x: F.avg_pool2d(x, 3, 2, 1), ["avg_pool2d"]),
        (lambda s, x: F.adaptive_avg_pool2d(x, (4, 2)), ["avg_pool2d"]),
        (lambda s, x: F.relu(F.adaptive_avg_pool2d(x, 8)), ["activation"]),
        (lambda s, x: x.mean((2, 3)), ["avg_pool2d", "flatten"]),
        (lambda s, x: x.mean((-1, -2), keepdim=True), ["avg_pool2d"]),
        (lambda s, x: x.reshape(x.shape[0], -1), ["flatten"]),
        (lambda s, x: F.dropout(s.conv(x), 0.5, s.training).contiguous(), ["conv2d"]),
        (lambda s, x: (F.relu(s.conv(x)), s.norm(s.conv(x)))[0], ["conv2d"]),
    ],
    ids=label,
)  # fmt: skip
def test_every_way_to_write_it_computes_the_same(function, operators, small_images, randomise):
    net = Written(function).eval()
    randomise(net)
    plan, tensors = lower(net, (3, 8, 8))
    assert [node.op for node in plan.nodes] == operators
    if len(plan.output_shape) == 3:
        net = nn.Sequential(net, nn.Flatten())
        flat = Flatten(name="flat", input=plan.output)
        plan = Plan(plan.input_shape, (*plan.nodes, flat), "flat")
    labels = tuple(map(str, range(plan.output_shape[0])))
    spec = InputSpec(3, 8, 8, (0.0,) * 3, (1.0,) * 3)
    artifact = Artifact(plan, tensors, spec, labels, {}, {})
    with torch.no_grad():
        expected = net(small_images)
    assert torch.allclose(load(artifact).run(small_images), expected, atol=1e-5)


def test_same_padding_is_written_out():
    net = nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(2, 1)).eval()
    plan, _ = lower(net, (3, 8, 8))
    assert plan.nodes[0].padding == (2, 2)
    assert plan.output_shape == (4, 8, 8)


def test_layer_used_twice_appears_under_two_names(small_images, make_artifact):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = BinaryConv2d(3, 3, 3, padding=1)
            self.second = self.first
            self.head = BinaryLinear(192, 2)

        def forward(self, x):
            return self.head(torch.flatten(self.second(F.relu(self.first(x))), 1))

    net = Twice().eval()
    artifact = make_artifact(net, (3, 8, 8))
    agreement(net, artifact, small_images)
    names = [node.name for node in artifact.plan.nodes]
    assert names in (
        ["first", "first_2", "flatten_1", "head"],
        ["second", "second_2", "flatten_1", "head"],
    )


def test_layer_that_is_the_whole_network_is_lowered():
    net = BinaryConv2d(3, 2, 1).eval()
    plan, tensors = lower(net, (3, 4, 4))
    assert isinstance(plan.nodes[0], Conv2d) and plan.nodes[0].weight == "bits"
    assert tensors[f"{plan.output}.bits"].shape == (1, 2, 1)


def test_names_that_would_collide_are_kept_apart():
    net = nn.Sequential()
    net.add_module("input", nn.Conv2d(3, 2, 1))
    net.add_module("flatten_1", nn.Conv2d(2, 2, 1))
    net.add_module("flat", nn.Flatten())
    net.add_module("linear", nn.Linear(32, 2))
    plan, _ = lower(net.eval(), (3, 4, 4))
    assert [node.name for node in plan.nodes] == ["input_2", "flatten_1", "flatten_1_2", "linear"]
    assert isinstance(plan.nodes[-1], Linear)


def test_what_nobody_needs_is_left_out(small_images):
    _, plan, tensors = lowered(lambda s, x: (s.norm(s.conv(x)), F.relu(x))[1], small_images)
    assert Counter(node.op for node in plan.nodes) == {"activation": 1}
    assert tensors == {}


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda s, x: torch.sigmoid(s.conv(x)), "aten.sigmoid"),
        (lambda s, x: F.gelu(x), "aten.gelu"),
        (lambda s, x: x * 2, "aten.mul"),
        (lambda s, x: x + 1, "aten.add"),
        (lambda s, x: torch.add(x, x, alpha=2), "aten.add"),
        (lambda s, x: x + x.mean((2, 3), keepdim=True), "aten.add"),
        (lambda s, x: x.transpose(2, 3), "aten.transpose|aten.permute"),
        (lambda s, x: x[:, :2], "aten.slice"),
        (lambda s, x: x[:, :, 1::2], "aten.slice"),
        (lambda s, x: F.pad(x, (1, 1, 1, 1)), "aten.pad"),
        (lambda s, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "aten.*pad"),
        (lambda s, x: F.pad(x, (0, 0, 0, 0, 1, 1), value=1.0), "aten.pad"),
        (lambda s, x: torch.cat([x, x], 2), "aten.cat"),
        (lambda s, x: x.mean(1), "aten.mean"),
        (lambda s, x: x.reshape(x.shape[0], 3, 64), "aten.view"),
        (lambda s, x: F.max_pool2d(x, 3, 2, ceil_mode=True), "aten.max_pool2d"),
        (lambda s, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), "aten.avg_pool2d"),
        (lambda s, x: F.avg_pool2d(x, 2, divisor_override=3), "aten.avg_pool2d"),
        (lambda s, x: F.adaptive_avg_pool2d(x, 3), "adaptive_avg_pool2d.*does not divide"),
        (lambda s, x: F.conv2d(x, s.conv.weight * 2), "aten.mul|aten.conv2d"),
        (lambda s, x: x @ x, "aten"),
        (lambda s, x: (x, s.conv(x)), "several tensors"),
        (lambda s, x: x, "computes nothing"),
        (lambda s, x: s.conv(x) if x.sum() > 0 else x, "cannot be exported"),
        (lambda s, x: s.conv(x[:, :2]), "cannot be exported"),
    ],
    ids=label,
)  # fmt: skip
def test_what_a_plan_cannot_hold_is_refused_by_name(function, name, small_images):
    with pytest.raises(InvalidArtifact, match=name) as caught:
        lowered(function, small_images)
    assert caught.value.field == "spec.architecture"
    assert "/" not in caught.value.detail


def test_batch_norm_without_finite_statistics_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).eval()
    net[1].running_var[1] = -1
    with pytest.raises(InvalidArtifact, match="not finite"):
        lower(net, (3, 4, 4))


SHARED = Path(os.environ.get("BITPRESS_SHARED", Path(__file__).parents[3] / "shared"))


@pytest.mark.cifar
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"BITPRESS_SHARED: there is no {SHARED}")
@pytest.mark.parametrize(
    ("name", "file", "keep_float"),
    [
        ("vgg9", "vgg9_cifar10.safetensors", ()),
        ("resnet20", "resnet20-12fca82f.th", ("conv1", "linear")),
    ],
)
@pytest.mark.parametrize("binary", [False, True], ids=["float", "binary"])
def test_plan_of_every_checkpoint_agrees_with_it(name, file, keep_float, binary, make_artifact):
    net = build(name, channels=3, height=32, width=32, classes=10, parameters={}).eval()
    net.load_state_dict(checkpoints.load(SHARED / "checkpoints" / file), strict=False)
    for layer_name, layer in binarizable_layers(net).items() if binary else ():
        if layer_name not in keep_float:
            weight = layer.weight.detach()
            scale = weight.abs().flatten(1).mean(1)
            replace_layer(net, layer_name, binarize_layer(layer, sign(weight), scale))
    artifact = make_artifact(net, (3, 32, 32))
    generator = torch.Generator().manual_seed(0)
    decided = agreement(net, artifact, torch.randn(32, 3, 32, 32, generator=generator))
    assert decided.sum() > 16
    assert len(codes_survive(net, artifact)) == binary * (
        len(binarizable_layers(net)) - len(keep_float)
    )


def test_a_layer_of_several_bases_is_lowered_with_all_of_them(make_artifact):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 5),
    ).eval()
    nn.init.uniform_(net[1].running_mean)
    for name, bases in (("0", 3), ("4", 2)):
        layer = net.get_submodule(name)
        codes = sign(torch.randn(bases, *layer.weight.shape))
        scale = torch.rand(bases, len(layer.weight))
        offset = torch.randn(len(layer.weight)) if name == "0" else None
        replace_layer(net, name, binarize_layer(layer, codes, scale, offset))
    artifact = make_artifact(net, (3, 6, 6))
    products = [node for node in artifact.plan.nodes if isinstance(node, Conv2d | Linear)]
    assert [(node.name, node.bases, node.base_scale) for node in products] == [
        ("0", 3, True),
        ("4", 2, True),
    ]
    agreement(net, artifact, torch.randn(16, 3, 6, 6))
    codes_survive(net, artifact)
