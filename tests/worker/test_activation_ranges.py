"""Scales of activations: histograms against plain counting, ranges against trying them all."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.layers import binarizable_layers, binarize_layer, replace_layer
from models.quantization import Scale, input_scales, quantize_inputs
from store.errors import InvalidCheckpoint
from worker.activation_ranges import (
    Histogram,
    activation_scales,
    minmax_scale,
    mse_scale,
    squared_error,
)

quick = settings(deadline=None, max_examples=30)


def seen(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(torch.as_tensor(np.asarray(part, np.float32)))
    return histogram


def error_of(numbers, scale):
    """Mean squared error of quantizing ``numbers``, computed on the numbers themselves."""
    x = np.asarray(numbers, np.float64)
    q = np.floor((x - scale.low) / scale.step + 0.5).clip(0, 255)
    return float(np.mean((q * scale.step + scale.low - x) ** 2))


@quick
@given(st.lists(st.floats(-1e4, 1e4, width=32), max_size=60), st.integers(0, 9))
def test_histogram_counts_every_number_but_0_whatever_the_order(numbers, seed):
    whole = seen(numbers)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(np.asarray(numbers, np.float32))
    pieces = seen(*np.array_split(shuffled, 4))
    middles, counts = whole.content()
    for found, expected in zip(pieces.content(), (middles, counts), strict=True):
        assert np.array_equal(found, expected)
    wanted = np.asarray(numbers, np.float64)
    wanted = np.sort(wanted[wanted != 0])
    assert counts.sum() == len(wanted)
    assert (pieces.least, pieces.greatest) == (min([0, *numbers]), max([0, *numbers]))
    # Every number is within half a bin, a 2**-15th of the greatest, of its bin's middle.
    if len(wanted):
        reach = np.abs(wanted).max()
        width = max(2.0 ** (np.frexp(reach)[1] - 15), 2.0**-100)
        assert np.all(np.abs(np.repeat(middles, counts.astype(int)) - wanted) <= width / 2)


@quick
@given(st.lists(st.floats(-100, 100, width=32), max_size=40))
def test_minmax_covers_all_numbers(numbers):
    scale = minmax_scale(seen(numbers))
    assert scale == Scale.covering(min([0, *numbers]), max([0, *numbers]))
    assert error_of([0.0, *numbers], scale) <= (scale.step / 2) ** 2 * (1 + 1e-6)


def draws(kind, rng):
    if kind == "rectified":
        return np.maximum(rng.normal(size=5_000), 0)
    if kind == "heavy":
        return rng.standard_t(3, size=5_000)
    if kind == "uneven":
        return np.concatenate([rng.exponential(5, 2_500), -rng.exponential(0.3, 2_500)])
    assert kind == "outlier"
    return np.concatenate([rng.uniform(0, 1, 5_000), [40.0]])


@pytest.mark.parametrize("kind", ["rectified", "heavy", "uneven", "outlier"])
def test_mse_is_next_to_the_best_of_all_ranges(kind):
    numbers = draws(kind, np.random.default_rng(0)).astype(np.float32)
    scale = mse_scale(seen(*np.array_split(numbers, 7)))
    least, greatest = min(numbers.min(), 0), max(numbers.max(), 0)
    # Another grid: ends as shares in equal steps, errors of the numbers themselves.
    shares = np.linspace(0.02, 1, 50)
    best = min(
        error_of(numbers, Scale.covering(low, high))
        for low in (shares * least if least < 0 else [0.0])
        for high in shares * greatest
    )
    assert error_of(numbers, scale) <= 1.05 * best
    assert error_of(numbers, scale) <= error_of(numbers, minmax_scale(seen(numbers)))
    if least == 0:
        assert scale.low == 0 == scale.zero


def test_squared_error_from_the_histogram_is_that_of_the_numbers():
    numbers = np.random.default_rng(1).normal(size=50_000).astype(np.float32)
    middles, counts = seen(numbers).content()
    scale = Scale.covering(-2.0, 3.0)
    estimate = squared_error(middles, counts, scale) / len(numbers)
    assert estimate == pytest.approx(error_of(numbers, scale), rel=1e-3)


@pytest.mark.parametrize("choose", [minmax_scale, mse_scale])
def test_what_is_constant_or_one_sided_has_a_scale(choose):
    assert choose(seen([])) == choose(seen([0.0, -0.0])) == Scale(0.0, 1.0)
    for value in (3.7, -3.7, 1e-27, -1e30):
        scale = choose(seen([value] * 5, [0.0]))
        assert error_of([0.0], scale) == 0
        assert error_of([value], scale) <= 1e-4 * value**2
        assert scale.zero == (0 if value > 0 else 255)
    negative = choose(seen(-np.abs(np.random.default_rng(0).normal(size=999))))
    assert negative.zero == 255 and negative.low + 255 * negative.step == 0
    tiny = choose(seen([1e-42]))
    assert tiny.step > 0


# --- In a network ---------------------------------------------------------------------------------


class Images:
    def __init__(self, images, size):
        self.images, self.size = images, size

    def __len__(self):
        return len(self.images)

    def batches(self):
        yield from self.images.split(self.size)


class Net(nn.Module):
    """Two layers are fed the same value, one is float, one is never reached."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 4, 1)
        self.kept = nn.Linear(4 * 36, 6)
        self.last = nn.Linear(6, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = self.left(x) + self.right(x)
        return self.last(self.kept(x.flatten(1)))


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        made = Net().eval()
    for name, layer in binarizable_layers(made).items():
        if name != "kept":
            codes = torch.where(layer.weight >= 0, 1, -1)
            replace_layer(made, name, binarize_layer(layer, codes, torch.full((len(codes),), 0.2)))
    return made


@pytest.fixture
def images():
    return torch.randn(10, 3, 6, 6, generator=torch.Generator().manual_seed(0)) + 0.5


def quiet(fraction, message, details=None):
    assert 0 <= fraction <= 1 and message


def test_scales_are_those_of_what_binary_layers_are_fed(net, images):
    scales = activation_scales(net, Images(images, 4), "minmax", quiet)
    assert set(scales) == {"first", "left", "right", "last"}
    with torch.no_grad():
        x = torch.relu(net.norm(net.first(images)))
        y = net.kept((net.left(x) + net.right(x)).flatten(1))
    for name, fed in (("first", images), ("left", x), ("right", x), ("last", y)):
        expected = Scale.covering(fed.min().item(), fed.max().item())
        assert scales[name].zero == expected.zero
        assert scales[name].step == pytest.approx(expected.step, rel=1e-4)
    assert scales["left"] == scales["right"] and scales["left"].low == 0
    narrower = activation_scales(net, Images(images, 4), "mse", quiet)
    assert all(narrower[name].step <= scale.step for name, scale in scales.items())


@pytest.mark.parametrize("choice", ["mse", "minmax"])
def test_quantizers_in_place_take_no_part_and_stay(net, images, choice):
    plain = activation_scales(net, Images(images, 10), choice, quiet)
    coarse = dict.fromkeys(plain, Scale(0.0, 2.0**-10))
    quantize_inputs(net, coarse)
    assert activation_scales(net, Images(images, 10), choice, quiet) == plain
    assert input_scales(net) == coarse
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_infinite_activations_are_named(net, images):
    net.norm.weight.data[0] = torch.inf
    with pytest.raises(InvalidCheckpoint, match=r"left: its activations .* not finite") as caught:
        activation_scales(net, Images(images, 4), "mse", quiet)
    assert caught.value.field == "spec.input" and caught.value.remedy
    assert not any(module._forward_pre_hooks for module in net.modules())
