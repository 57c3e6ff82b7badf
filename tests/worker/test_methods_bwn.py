"""BWN, HWGQ-BWN and SQ-BWN: forward, gradient, centring and clamping against their formulas."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.binarize import sign_straight_through
from models.layers import BinaryConv2d, BinaryLayer, BinaryLinear, binarize_layer
from worker.methods import METHODS, bwn, mean_magnitude, sq_bwn
from worker.methods.protocol import LayerProblem, sign_and_mean_magnitude
from worker.training.recipe import LatentStart
from worker.training.stochastic import StochasticQuantizer, sign_errors

MEAN_MAGNITUDE_METHODS = ("bwn", "hwgq_bwn", "sq_bwn")
LATENT_STARTS: tuple[LatentStart, ...] = ("magnitude", "mean_magnitude", "code")


def float_layer(seed: int = 0, channels: int = 12, filters: int = 5) -> nn.Conv2d:
    """A convolution of filters of quite different sizes."""
    layer = nn.Conv2d(channels, filters, 3, padding=1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = torch.randn(layer.weight.shape, generator=generator)
        layer.weight.copy_(weight * torch.linspace(0.02, 0.2, filters)[:, None, None, None])
    return layer


def calibrated(layer: nn.Conv2d | nn.Linear, method: str) -> BinaryLayer:
    """The layer as the method's calibration leaves it, which needs no data."""
    weight = layer.weight.detach()
    problem = LayerProblem(
        weight.flatten(1), lambda *_: pytest.fail("looks at data"), lambda *_: None
    )
    filters = METHODS[method].binarize(problem)
    assert filters.losses == ()
    return binarize_layer(layer, filters.codes.reshape(weight.shape), filters.scale)


def in_training(
    layer: nn.Conv2d | nn.Linear, method: str, latent: LatentStart = "magnitude"
) -> BinaryLayer:
    """The layer as it is when training begins."""
    binary, rule = calibrated(layer, method), METHODS[method].rule
    rule.start(binary, layer.weight.detach(), latent)
    binary.quantizer = rule.quantizer(binary, sign_straight_through)
    return binary


def used_weight(layer: BinaryLayer) -> Tensor:
    """The weights (N, ...) that a forward pass computes with."""
    scale = layer.scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    return layer.quantizer(layer.weight) * scale


@pytest.mark.parametrize("method", MEAN_MAGNITUDE_METHODS)
def test_calibration_is_the_sign_times_the_mean_magnitude(method: str) -> None:
    layer = float_layer()
    weight = layer.weight.detach().numpy()
    binary = calibrated(layer, method)
    np.testing.assert_array_equal(binary.codes.numpy(), np.where(weight >= 0, 1, -1))
    np.testing.assert_allclose(
        binary.scale.detach().numpy(), np.abs(weight).mean(axis=(1, 2, 3)), rtol=1e-6
    )


def test_mean_magnitude_is_the_best_scale_of_the_signs() -> None:
    weight = torch.randn(7, 40, generator=torch.Generator().manual_seed(1)).double()
    codes, scale = sign_and_mean_magnitude(weight)
    for number in range(len(weight)):
        best = torch.linalg.lstsq(codes[number, :, None], weight[number, :, None]).solution
        torch.testing.assert_close(scale[number], best.squeeze())


@pytest.mark.parametrize("latent", LATENT_STARTS)
@pytest.mark.parametrize("method", ["hwgq_bwn", "sq_bwn"])
def test_training_begins_with_the_calibrated_weights(method: str, latent: LatentStart) -> None:
    layer = float_layer()
    expected = used_weight(calibrated(layer, method))
    started = in_training(layer, method, latent)
    torch.testing.assert_close(used_weight(started), expected)
    assert not started.scale.requires_grad and started.weight.requires_grad
    # In units of the scale the latent weights are of magnitude 1.
    assert started.weight.abs().mean().item() == pytest.approx(1.0, abs=1e-5)


def test_float_weights_themselves_are_the_latent_ones() -> None:
    layer = float_layer()
    started = in_training(layer, "hwgq_bwn")
    torch.testing.assert_close(started.weight * started.scale[:, None, None, None], layer.weight)


@pytest.mark.parametrize("method", MEAN_MAGNITUDE_METHODS)
def test_scale_is_computed_anew_from_the_latent_weights(method: str) -> None:
    started = in_training(float_layer(), method)
    with torch.no_grad():
        started.weight.mul_(torch.tensor([0.5, 1.0, 2.0, 3.0, 1.5])[:, None, None, None])
    paper = (started.weight * started.scale[:, None, None, None]).detach().numpy()
    expected = np.abs(paper).mean(axis=(1, 2, 3), keepdims=True) * np.sign(paper)
    np.testing.assert_allclose(used_weight(started).detach().numpy(), expected, rtol=1e-5)


def test_gradient_of_hwgq_is_the_identity() -> None:
    weight = torch.randn(3, 4, 3, 3, requires_grad=True)
    arriving = torch.randn(3, 4, 3, 3)
    mean_magnitude.mean_magnitude_sign(weight).backward(arriving)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, arriving)


def paper_gradient(weight: np.ndarray, arriving: np.ndarray, centred: bool) -> np.ndarray:
    """``g (a 1[|w| < 1] + 1/n) (1 - 1/c)``, filter by filter, of w and g (N, C, ...)."""
    result = np.zeros_like(weight)
    for number, filter_weight in enumerate(weight):
        n, c = filter_weight.size, filter_weight.shape[0]
        a = np.abs(filter_weight).sum() / n
        factor = a * (np.abs(filter_weight) < 1) + 1 / n
        result[number] = arriving[number] * factor * ((1 - 1 / c) if centred else 1.0)
    return result


@pytest.mark.parametrize("channels", [3, 12])
@pytest.mark.parametrize("unit", [1.0, 0.5])
def test_gradient_of_bwn_is_the_papers(channels: int, unit: float) -> None:
    layer = BinaryConv2d(channels, 4, 3)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        # Many of the weights lie beyond 1, where the sign passes no gradient.
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / unit)
        layer.scale.fill_(unit)
    arriving = torch.randn(layer.weight.shape, generator=generator)
    quantize = METHODS["bwn"].rule.quantizer(layer, sign_straight_through)
    used = quantize(layer.weight) * unit
    used.backward(arriving)
    assert layer.weight.grad is not None
    # With regard to the paper's weight, w = unit latent, and in the unit of the authors' code.
    found = layer.weight.grad.numpy() / unit / layer.weight[0].numel()
    weight = (layer.weight.detach() * unit).numpy()
    assert (np.abs(weight) > 1).mean() > 0.2
    expected = paper_gradient(weight, arriving.numpy(), centred=channels >= 8)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_bwn_takes_the_mean_over_input_channels_from_every_tap() -> None:
    layer = in_training(float_layer(), "bwn")
    with torch.no_grad():
        layer.weight.add_(torch.randn(5, 1, 3, 3))
        expected = layer.weight.numpy() - layer.weight.numpy().mean(axis=1, keepdims=True)
        METHODS["bwn"].rule.after_step(layer)
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, atol=1e-5)


def test_bwn_lets_filters_of_colours_sum_them_up() -> None:
    layer = float_layer(channels=3)
    started = in_training(layer, "bwn")
    torch.testing.assert_close(started.weight * started.scale[:, None, None, None], layer.weight)


def test_bwn_clamps_its_weights_to_one_in_their_own_unit() -> None:
    layer = in_training(float_layer(channels=3), "bwn")
    with torch.no_grad():
        layer.weight.mul_(20)
        weight = (layer.weight * layer.scale[:, None, None, None]).numpy()
        METHODS["bwn"].rule.after_step(layer)
    clamped = layer.weight.detach() * layer.scale[:, None, None, None]
    assert (np.abs(weight) > 1).any() and (np.abs(weight) < 1).any()
    np.testing.assert_allclose(clamped.numpy(), weight.clip(-1, 1), rtol=1e-5)


@pytest.mark.parametrize("method", MEAN_MAGNITUDE_METHODS)
@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_what_is_finished_computes_what_was_trained(method: str, kind: str) -> None:
    layer = float_layer() if kind == "convolution" else nn.Linear(30, 5)
    trained = in_training(layer, method)
    with torch.no_grad():
        trained.weight.add_(torch.randn_like(trained.weight))
        METHODS[method].rule.after_step(trained)
    expected = used_weight(trained).detach()
    METHODS[method].rule.finish(trained)
    assert trained.quantizer is sign_straight_through
    torch.testing.assert_close(used_weight(trained).detach(), expected)
    assert bool((trained.scale >= 0).all())
    assert isinstance(trained, BinaryConv2d | BinaryLinear)


def test_a_filter_of_zeros_stays_one() -> None:
    for method in MEAN_MAGNITUDE_METHODS:
        layer = float_layer()
        with torch.no_grad():
            layer.weight[2] = 0
        trained = in_training(layer, method)
        with torch.no_grad():
            METHODS[method].rule.after_step(trained)
        assert bool((used_weight(trained)[2] == 0).all()), method
        METHODS[method].rule.finish(trained)
        assert bool(trained.scale.isfinite().all()) and trained.scale[2] == 0


def test_sq_bwn_of_all_filters_is_bwn() -> None:
    assert METHODS["sq_bwn"].binary_fractions == (0.5, 0.75, 0.875, 1.0)
    weight = torch.randn(8, 4, 3, 3)
    layer = BinaryConv2d(4, 8, 3)
    plain = METHODS["sq_bwn"].rule.quantizer(layer, sign_straight_through)
    stochastic = StochasticQuantizer(plain, seed=0, layer=0)
    assert stochastic.fraction == sq_bwn.BINARY_FRACTIONS[-1]
    bwn_scale = weight.abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(stochastic(weight), bwn_scale * weight.sign())


@pytest.mark.parametrize("fraction", sq_bwn.BINARY_FRACTIONS)
def test_sq_bwn_leaves_the_other_filters_as_they_are(fraction: float) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(16, 6, 3, 3, generator=generator, requires_grad=True)
    layer = BinaryConv2d(6, 16, 3)
    plain = METHODS["sq_bwn"].rule.quantizer(layer, sign_straight_through)
    stochastic = StochasticQuantizer(plain, seed=0, layer=0)
    stochastic.fraction = fraction
    result = stochastic(weight)
    is_float = torch.isclose(result, weight).flatten(1).all(dim=1)
    is_binary = torch.isclose(result, plain(weight)).flatten(1).all(dim=1)
    assert int(is_float.sum()) == int((1 - fraction) * 16)
    assert bool((is_float ^ is_binary).all())
    # The gradient passes straight on, to all filters alike.
    arriving = torch.randn(weight.shape, generator=generator)
    result.backward(arriving)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, arriving)


def test_sq_bwn_spares_filters_of_larger_error_more_often() -> None:
    # One filter's magnitudes are all equal: signs lose nothing of it. Others lose more and more.
    generator = torch.Generator().manual_seed(4)
    signs = torch.randn(4, 400, generator=generator).sign()
    spread = torch.tensor([0.0, 0.3, 0.6, 0.95])[:, None]
    halves = torch.tensor([-1.0, 1.0]).repeat(200)
    weight = signs * (1 + spread * halves)
    np.testing.assert_allclose(sign_errors(weight).numpy(), spread[:, 0].numpy(), atol=1e-6)
    layer = BinaryLinear(400, 4)
    stochastic = StochasticQuantizer(
        METHODS["sq_bwn"].rule.quantizer(layer, sign_straight_through), seed=0, layer=0
    )
    stochastic.fraction = 0.75  # one of the four filters is spared
    draws = 1500
    spared = np.zeros(4)
    for step in range(draws):
        stochastic.step = step
        # The first filter is equal to its binary form: it counts as spared when no other is.
        float_rows = (stochastic(weight) == weight).all(dim=1).numpy()
        spared[np.flatnonzero(float_rows[1:]) + 1] += 1
    spared[0] = draws - spared[1:].sum()
    expected = draws * spread[:, 0].numpy() / float(spread.sum())
    assert spared[0] == 0
    # Chi-square of two degrees of freedom: 13.8 is passed once in a thousand.
    assert float(((spared[1:] - expected[1:]) ** 2 / expected[1:]).sum()) < 13.8


def test_bwn_centres_where_it_says() -> None:
    assert not bwn.is_centred(torch.zeros(4, 3, 3, 3))
    assert not bwn.is_centred(torch.zeros(4, 1, 5, 5))
    assert bwn.is_centred(torch.zeros(4, 16, 3, 3)) and bwn.is_centred(torch.zeros(10, 64))
