"""Which network a checkpoint is of: what differs is listed, and what would fit is named."""

from typing import Any

import pytest
import torch

from models import registry
from models.checkpoints import check_fit, restore
from store.errors import CheckpointMismatch

CIFAR: dict[str, Any] = {"channels": 3, "height": 32, "width": 32, "classes": 10}


def shapes_of(name: str, parameters: dict[str, Any] | None = None, **size: int) -> dict[str, Any]:
    return registry.expected_shapes(name, **{**CIFAR, **size}, parameters=parameters or {})


def mismatch(shapes: dict[str, Any], name: str, **parameters: Any) -> CheckpointMismatch:
    with pytest.raises(CheckpointMismatch) as caught:
        check_fit(shapes, name, **CIFAR, parameters=parameters)
    assert caught.value.field == "checkpoint"
    return caught.value


@pytest.mark.parametrize("name", ["vgg9", "resnet20", "resnet50", "digits_cnn"])
def test_a_checkpoint_of_the_network_fits_with_and_without_counters(name: str) -> None:
    shapes = shapes_of(name)
    check_fit(shapes, name, **CIFAR, parameters={})
    old = {key: shape for key, shape in shapes.items() if "num_batches_tracked" not in key}
    assert len(old) < len(shapes)
    check_fit(old, name, **CIFAR, parameters={})


def test_what_is_missing_unexpected_and_wrongly_shaped_is_listed() -> None:
    shapes = shapes_of("vgg9")
    del shapes["features.4.running_var"]
    shapes["head.weight"] = (3, 3)
    shapes["features.3.weight"] = (64, 64, 5, 5)
    detail = mismatch(shapes, "vgg9").detail
    assert "1 missing ('features.4.running_var')" in detail
    assert "1 unexpected ('head.weight')" in detail
    assert "'features.3.weight' is 64 x 64 x 5 x 5 instead of 64 x 64 x 3 x 3" in detail


def test_long_lists_and_names_are_cut_short() -> None:
    shapes = {"x" * 10_000 + str(i): (1,) for i in range(2_000)}
    detail = mismatch(shapes, "resnet56").detail
    assert "2000 unexpected" in detail
    assert "and 1995 more" in detail
    assert len(detail) < 2_000


def test_the_network_that_would_fit_is_named() -> None:
    remedy = mismatch(shapes_of("resnet44"), "resnet20").remedy
    assert remedy == ("It fits resnet44, shortcut = A, with 10 classes and images of 3 x 32 x 32.")


def test_the_parameter_with_which_it_would_fit_is_named() -> None:
    shapes = shapes_of("resnet20", {"shortcut": "B"})
    assert "resnet20, shortcut = B" in str(mismatch(shapes, "resnet20").remedy)


def test_a_multiplied_width_is_told_from_the_shapes() -> None:
    shapes = shapes_of("vgg9", {"width": 0.25})
    assert "vgg9, width = 0.25" in str(mismatch(shapes, "vgg9").remedy)


def test_the_input_for_which_it_would_fit_is_told() -> None:
    remedy = str(mismatch(shapes_of("vgg9", height=64, width=64, channels=1), "vgg9").remedy)
    assert "images of 1 x 64 x 64" in remedy


def test_another_class_count_is_said_in_words() -> None:
    remedy = str(mismatch(shapes_of("vgg9", classes=100), "vgg9").remedy)
    assert "tells 100 classes apart and the dataset has 10" in remedy


def test_torchvision_class_counts_are_inferred_for_another_architecture() -> None:
    shapes = shapes_of("resnet18", height=224, width=224, classes=1000)
    assert "resnet18, with 1000 classes" in str(mismatch(shapes, "vgg9").remedy)


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"a": (1,)},
        {"conv1.weight": (), "fc.weight": (5,)},
        {"features.0.weight": (0, 0, 0, 0), "classifier.weight": (2**60, 0)},
    ],
)
def test_where_nothing_fits_the_architectures_are_listed(shapes: dict[str, Any]) -> None:
    remedy = str(mismatch(shapes, "vgg9").remedy)
    assert all(name in remedy for name in registry.ARCHITECTURES)


def test_absurd_shapes_under_the_right_names_fit_nothing() -> None:
    shapes = {key: (2**40,) * len(shape) for key, shape in shapes_of("vgg9").items()}
    assert "No registered architecture fits" in str(mismatch(shapes, "vgg9").remedy)


def test_restore_puts_the_tensors_into_the_network() -> None:
    source = registry.build("digits_cnn", **CIFAR, parameters={})
    target = registry.build("digits_cnn", **CIFAR, parameters={})
    state = {key: tensor for key, tensor in source.state_dict().items() if "num_batches" not in key}
    restore(target, state)
    restored = target.state_dict()
    assert all(torch.equal(restored[key], tensor) for key, tensor in state.items())
