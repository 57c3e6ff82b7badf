"""BinaryConnect: one scale a layer, the gradient of the bits, clipping, the learning rate."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.binarize import sign_straight_through
from models.layers import BinaryLayer, binarize_layer
from worker.methods import METHODS
from worker.methods.protocol import LayerProblem
from worker.training.recipe import LatentStart

RULE = METHODS["binary_connect"].rule


def float_layer() -> nn.Conv2d:
    layer = nn.Conv2d(6, 8, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape) * 0.05)
    return layer


def calibrated(layer: nn.Conv2d | nn.Linear) -> BinaryLayer:
    weight = layer.weight.detach()
    problem = LayerProblem(
        weight.flatten(1), lambda *_: pytest.fail("looks at data"), lambda *_: None
    )
    filters = METHODS["binary_connect"].binarize(problem)
    return binarize_layer(layer, filters.codes.reshape(weight.shape), filters.scale)


def in_training(layer: nn.Conv2d | nn.Linear, latent: LatentStart = "magnitude") -> BinaryLayer:
    binary = calibrated(layer)
    RULE.start(binary, layer.weight.detach(), latent)
    binary.quantizer = RULE.quantizer(binary, sign_straight_through)
    return binary


def used_weight(layer: BinaryLayer) -> Tensor:
    return layer.quantizer(layer.weight) * layer.scale.reshape(-1, *[1] * (layer.weight.ndim - 1))


def test_one_scale_serves_the_whole_layer_and_is_its_best() -> None:
    layer = float_layer()
    weight = layer.weight.detach().double()
    binary = calibrated(layer)
    assert len(binary.scale.unique()) == 1
    codes = binary.codes.double()
    best = torch.linalg.lstsq(codes.reshape(-1, 1), weight.reshape(-1, 1)).solution.squeeze()
    torch.testing.assert_close(binary.scale[0].double(), best, rtol=1e-6, atol=0)
    np.testing.assert_array_equal(binary.codes.numpy(), np.where(weight.numpy() >= 0, 1, -1))


@pytest.mark.parametrize("latent", ["magnitude", "mean_magnitude", "code"])
def test_training_begins_with_the_calibrated_weights(latent: LatentStart) -> None:
    layer = float_layer()
    started = in_training(layer, latent)
    torch.testing.assert_close(used_weight(started), used_weight(calibrated(layer)))
    assert not started.scale.requires_grad
    assert float(started.weight.detach().abs().max()) <= 1


def test_latent_weights_are_spread_as_the_papers_uniform_ones() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(500, 40)  # torch draws its weights uniformly, as the paper does
    started = in_training(layer)
    bound = float(layer.weight.detach().abs().max())
    # Uniform in -1..1: the mean of |w| is 1/2, that of w^2 is 1/3.
    torch.testing.assert_close(started.weight, layer.weight / bound, rtol=0.15, atol=0.02)
    assert float(started.weight.detach().square().mean()) == pytest.approx(1 / 3, abs=0.01)


def test_gradient_of_the_bits_reaches_the_latent_weights_unchanged() -> None:
    layer = in_training(float_layer())
    arriving = torch.randn(layer.weight.shape)
    layer.quantizer(layer.weight).backward(arriving)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, arriving)


def test_latent_weights_are_clipped_to_one_after_a_step() -> None:
    layer = in_training(float_layer())
    with torch.no_grad():
        layer.weight.add_(torch.randn(layer.weight.shape))
        expected = layer.weight.numpy().clip(-1, 1)
        codes = layer.codes
        RULE.after_step(layer)
    np.testing.assert_array_equal(layer.weight.detach().numpy(), expected)
    assert torch.equal(layer.codes, codes)


def test_learning_rate_follows_the_fans() -> None:
    convolution, linear = in_training(float_layer()), in_training(nn.Linear(30, 12))
    assert RULE.learning_rate_factor(convolution, 100) == pytest.approx(
        1 / math.sqrt(1.5 / (6 * 9 + 8 * 9))
    )
    assert RULE.learning_rate_factor(linear, 100) == pytest.approx(1 / math.sqrt(1.5 / (30 + 12)))


def test_what_is_finished_computes_what_was_trained() -> None:
    trained = in_training(float_layer())
    with torch.no_grad():
        trained.weight.add_(torch.randn_like(trained.weight) * 0.3)
        RULE.after_step(trained)
    expected = used_weight(trained).detach()
    RULE.finish(trained)
    assert trained.quantizer is sign_straight_through
    assert torch.equal(used_weight(trained), expected)


def test_scale_of_a_layer_is_free_where_batch_norm_follows() -> None:
    # Why the paper's H = 1 and the mean magnitude train alike: neither result nor gradient differ.
    batch = torch.randn(16, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    results, gradients = [], []
    layer = float_layer()
    for scale in (1.0, float(layer.weight.detach().abs().mean())):
        binary = in_training(layer)
        with torch.no_grad():
            binary.scale.fill_(scale)
            if binary.bias is not None:
                binary.bias.zero_()
        norm = nn.BatchNorm2d(8, eps=1e-12)
        result = norm(binary(batch))
        result.square().mul(torch.linspace(0, 1, 25).reshape(5, 5)).sum().backward()
        results.append(result)
        gradients.append(binary.weight.grad)
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3)
