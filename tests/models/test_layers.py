"""Sign, its gradients, and the layers that compute with it."""

import copy

import pytest
import torch
from torch import nn

from models.binarize import sign, sign_clipped, sign_straight_through
from models.layers import (
    BinaryConv2d,
    BinaryLinear,
    binarizable_layers,
    binarize_layer,
    float32_bytes,
    plain_layer,
    replace_layer,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random_codes(shape):
    return torch.where(torch.rand(shape) < 0.5, -1, 1)


def test_sign_of_zero_is_plus_one():
    x = torch.tensor([-1.5, -0.0, 0.0, 2.0])
    assert sign(x).tolist() == [-1, 1, 1, 1]
    assert sign(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [(sign_straight_through, [5.0, 5.0, 5.0, 5.0]), (sign_clipped, [0.0, 5.0, 5.0, 0.0])],
)
def test_gradients_of_the_estimators(estimator, expected):
    x = torch.tensor([-1.5, -1.0, 0.0, 2.0], requires_grad=True)
    y = estimator(x)
    assert y.tolist() == [-1, -1, 1, 1]
    (5 * y).sum().backward()
    assert x.grad.tolist() == expected


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "geometry",
    [{}, {"stride": 2, "padding": 1}, {"groups": 2, "dilation": 2}, {"padding": "same"}],
)
def test_binary_convolution_is_the_scaled_one_with_its_signs(geometry, bias):
    layer = BinaryConv2d(4, 6, 3, bias=bias, **geometry)
    nn.init.uniform_(layer.scale, 0.5, 2.0)
    x = torch.randn(2, 4, 9, 9)
    plain = nn.Conv2d(4, 6, 3, bias=bias, **geometry)
    plain.weight.data = sign(layer.weight.data) * layer.scale.data[:, None, None, None]
    if bias:
        plain.bias.data = layer.bias.data
    assert torch.allclose(layer(x), plain(x), atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_binary_linear_is_the_scaled_one_with_its_signs(bias):
    layer = BinaryLinear(12, 5, bias=bias)
    nn.init.uniform_(layer.scale, 0.5, 2.0)
    x = torch.randn(3, 12)
    expected = x @ (sign(layer.weight) * layer.scale[:, None]).T
    if bias:
        expected = expected + layer.bias
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("layer", [BinaryConv2d(2, 3, 3), BinaryLinear(8, 3)])
def test_latent_weight_scale_and_bias_are_all_trained(layer):
    x = torch.randn(4, 2, 3, 3) if isinstance(layer, BinaryConv2d) else torch.randn(4, 8)
    layer(x).square().sum().backward()
    for parameter in (layer.weight, layer.scale, layer.bias):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=2, groups=2),
        nn.Conv2d(4, 6, 3, bias=False, padding="same"),
        nn.Linear(7, 3),
        nn.Linear(7, 3, bias=False).eval(),
    ],
)
def test_binarized_layer_has_the_given_codes_and_the_old_geometry(layer):
    codes, scale = random_codes(layer.weight.shape), torch.rand(len(layer.weight)) + 0.1
    binary = binarize_layer(layer, codes, scale)
    assert binary.codes.dtype == torch.int8
    assert torch.equal(binary.codes, codes.to(torch.int8))
    assert torch.equal(binary.weight, codes.float())
    assert binary.training == layer.training
    x = torch.randn(2, 4, 12, 12) if isinstance(layer, nn.Conv2d) else torch.randn(2, 7)
    before = layer(x)
    with torch.no_grad():
        axes = [1] * (layer.weight.ndim - 1)
        layer.weight.copy_(codes * scale.view(-1, *axes))
    assert binary(x).shape == before.shape
    assert torch.allclose(binary(x), layer(x), atol=1e-5)


def test_binarized_layer_shares_nothing_with_the_old_one():
    layer = nn.Linear(3, 2)
    scale = torch.ones(2)
    binary = binarize_layer(layer, torch.ones(2, 3), scale)
    scale.fill_(9)
    layer.bias.data.fill_(9)
    assert binary.scale.tolist() == [1, 1]
    assert 9 not in binary.bias.tolist()


@pytest.mark.parametrize(
    ("codes", "scale", "message"),
    [
        (torch.ones(3, 2), torch.ones(2), "codes are"),
        (torch.zeros(2, 3), torch.ones(2), "-1 or"),
        (torch.full((2, 3), torch.nan), torch.ones(2), "-1 or"),
        (torch.ones(2, 3), torch.ones(3), "scale is"),
    ],
)
def test_unfit_codes_or_scales_are_rejected(codes, scale, message):
    with pytest.raises(ValueError, match=message):
        binarize_layer(nn.Linear(3, 2), codes, scale)


def test_plain_layer_holds_the_codes_alone():
    binary = binarize_layer(nn.Conv2d(2, 3, 3), random_codes((3, 2, 3, 3)), torch.full((3,), 7.0))
    plain = plain_layer(binary)
    assert type(plain) is nn.Conv2d and plain.bias is None
    assert torch.equal(plain.weight, binary.codes.float())


def test_layers_are_found_and_replaced_by_name():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    assert list(binarizable_layers(net)) == ["0", "1.1"]
    linear = binarizable_layers(net)["1.1"]
    binary = binarize_layer(linear, torch.ones(2, 4), torch.ones(2))
    replace_layer(net, "1.1", binary)
    assert net[1][1] is binary
    assert list(binarizable_layers(net)) == ["0", "1.1"]


@pytest.mark.parametrize("name", ["2", "1.0", "0.weight", "", "no.such.layer"])
def test_replacing_what_is_not_there_is_an_error(name):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(KeyError):
        replace_layer(net, name, nn.Identity())


def test_counter_of_batches_is_no_part_of_the_float_bytes():
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    assert float32_bytes(net) == 4 * (5 * 4 + 4 + 4 * 4)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, bias=False), nn.Linear(7, 3)])
def test_a_layer_of_several_bases_is_the_one_with_their_sum(layer):
    codes, scale = random_codes((3, *layer.weight.shape)), torch.rand(3, len(layer.weight))
    offset = torch.randn(len(layer.weight))
    binary = binarize_layer(layer, codes, scale, offset)
    assert binary.bases == 3
    assert torch.equal(binary.codes, codes.to(torch.int8))
    assert torch.equal(binary.scales, scale)
    x = torch.randn(2, 4, 9, 9) if isinstance(layer, nn.Conv2d) else torch.randn(2, 7)
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        axes = [1] * (layer.weight.ndim - 1)
        plain.weight.copy_((codes * scale.view(3, -1, *axes)).sum(dim=0))
        shift = offset.view(-1, *[1] * (plain(x).ndim - 2))
        torch.testing.assert_close(binary(x), plain(x) + shift)


def test_of_several_bases_the_first_codes_and_all_scales_are_trained():
    layer = nn.Linear(8, 3)
    binary = binarize_layer(layer, random_codes((2, 3, 8)), torch.rand(2, 3))
    assert set(dict(binary.named_parameters())) == {"weight", "bias", "scale", "extra_scale"}
    assert set(dict(binary.named_buffers())) == {"extra_codes"}
    binary(torch.randn(4, 8)).square().sum().backward()
    for parameter in binary.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    one = binarize_layer(layer, random_codes((3, 8)), torch.rand(3))
    assert set(one.state_dict()) == {"weight", "bias", "scale"}


def test_an_offset_is_added_to_the_bias():
    layer = nn.Linear(4, 2)
    binary = binarize_layer(layer, torch.ones(2, 4), torch.ones(2), torch.tensor([1.0, -2.0]))
    assert torch.equal(binary.bias, layer.bias + torch.tensor([1.0, -2.0]))
    with pytest.raises(ValueError, match="offset is"):
        binarize_layer(layer, torch.ones(2, 4), torch.ones(2), torch.ones(3))


def test_a_layer_of_several_bases_can_be_channels_last():
    binary = binarize_layer(nn.Conv2d(4, 6, 3), random_codes((3, 6, 4, 3, 3)), torch.rand(3, 6))
    x = torch.randn(2, 4, 9, 9)
    expected = binary(x)
    torch.testing.assert_close(binary.to(memory_format=torch.channels_last)(x), expected)
