"""The forms of a network, measured: what the layout and the rounding change, and what not."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.layers import BinaryConv2d, BinaryLinear, binarize_layer
from models.preprocessing import InputSpec
from models.quantization import Scale, quantize_inputs
from worker.data import ImageSet
from worker.forms import channels_last, logits_of_forms, without_rounding
from worker.image_cache import DecodedDataset

SPEC = InputSpec(
    channels=3, height=8, width=8, value_range=(0.0, 1.0), mean=(0.5,) * 3, std=(0.25,) * 3
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(bases: int = 1) -> nn.Module:
    """A binary convolution of one or several bases, batch norm, and a binary linear layer."""
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(3, 5, 3), nn.Linear(5 * 6 * 6, 4)
    codes = torch.randint(0, 2, (bases, *conv.weight.shape)) * 2 - 1
    of_linear = torch.randint(0, 2, tuple(linear.weight.shape)) * 2 - 1
    return nn.Sequential(
        binarize_layer(conv, codes, torch.rand(bases, 5)),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        binarize_layer(linear, of_linear, torch.rand(4)),
    ).eval()


def images(count: int) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    names = tuple(f"{number}.png" for number in range(count))
    dataset = DecodedDataset(pixels, np.zeros(count, np.int64), names, tuple("abcd"), {})
    return ImageSet(dataset, np.arange(count))


@pytest.mark.parametrize("bases", [1, 2])
def test_the_layout_changes_nothing_but_the_order_of_sums(bases: int) -> None:
    fed = torch.rand(7, 3, 8, 8)
    with torch.inference_mode():
        expected = network(bases)(fed)
        found = channels_last(network(bases))(fed)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_every_form_answers_to_every_image_and_tells_how_far_it_is() -> None:
    reports: list[float] = []
    told: list[Mapping[str, Any]] = []

    def progress(done: float, _message: str, details: Mapping[str, Any] | None = None, /) -> None:
        reports.append(done)
        told.append(details or {})

    forms = {"one": channels_last(network()), "other": network()}
    # More images than a batch holds.
    found = logits_of_forms(forms, images(230), SPEC, progress)
    assert list(found) == ["one", "other"]
    assert found["one"].shape == found["other"].shape == (230, 4)
    assert np.allclose(found["one"], found["other"], rtol=1e-4, atol=1e-4)
    assert reports == sorted(reports)
    assert reports[-1] == 1.0
    assert all(details["forms"] == ["one", "other"] for details in told)


def test_without_rounding_a_copy_takes_its_inputs_as_they_are() -> None:
    rounding, plain = network(), network()
    quantize_inputs(rounding, {"0": Scale.covering(-1, 1), "4": Scale.covering(0, 1)})
    fed = torch.rand(5, 3, 8, 8)
    with torch.inference_mode():
        assert not torch.equal(rounding(fed), plain(fed))
        assert torch.equal(without_rounding(rounding)(fed), plain(fed))
        # The network itself goes on rounding.
        assert not torch.equal(rounding(fed), plain(fed))
    layers = [layer for layer in rounding if isinstance(layer, BinaryConv2d | BinaryLinear)]
    assert all(layer.input_quantizer is not None for layer in layers)
