"""One dictionary of architectures: typed parameters, clear refusals, shapes for nothing."""

from typing import Any

import pytest
import torch

from models import registry
from store.errors import InvalidSpec

SIZE: dict[str, Any] = {"channels": 3, "height": 64, "width": 64, "classes": 10}


def test_an_unknown_architecture_is_refused_with_the_list_of_those_there_are() -> None:
    with pytest.raises(InvalidSpec, match="vgg19") as caught:
        registry.validate("vgg19", {})
    assert caught.value.field == "spec.architecture"
    assert all(name in str(caught.value.remedy) for name in registry.ARCHITECTURES)


@pytest.mark.parametrize(
    ("name", "parameter", "remedy"),
    [("vgg9", "depth", "width"), ("resnet18", "shortcut", "no parameters")],
)
def test_an_unknown_parameter_is_refused_by_name(name: str, parameter: str, remedy: str) -> None:
    with pytest.raises(InvalidSpec, match=parameter) as caught:
        registry.validate(name, {parameter: 1})
    assert caught.value.field == f"spec.architecture_parameters.{parameter}"
    assert remedy in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("vgg9", "width", 0),
        ("vgg9", "width", -1.0),
        ("vgg9", "width", 17),
        ("vgg9", "width", float("nan")),
        ("vgg9", "width", float("inf")),
        ("vgg9", "width", True),
        ("vgg9", "width", "1.0"),
        ("vgg9", "width", None),
        ("resnet20", "shortcut", "C"),
        ("resnet20", "shortcut", "a"),
        ("resnet20", "shortcut", 1),
        ("alexnet", "dropout", 1.0),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(name: str, parameter: str, value: object) -> None:
    with pytest.raises(InvalidSpec) as caught:
        registry.validate(name, {parameter: value})
    assert caught.value.field == f"spec.architecture_parameters.{parameter}"
    assert caught.value.remedy


def test_defaults_are_filled_in_and_integers_stand_for_floats() -> None:
    assert registry.validate("vgg9", {}) == {"width": 1.0}
    assert registry.validate("vgg9", {"width": 2}) == {"width": 2.0}
    assert registry.validate("resnet32", {"shortcut": "B"}) == {"shortcut": "B"}
    assert registry.validate("resnet50", {}) == {}


@pytest.mark.parametrize("name", registry.ARCHITECTURES)
def test_every_default_is_allowed(name: str) -> None:
    registry.validate(name, {})
    for parameter in registry.ARCHITECTURES[name].parameters.values():
        assert parameter.accept(parameter.default) == parameter.default
        assert all(parameter.accept(choice) == choice for choice in parameter.choices)
        assert parameter.allowed()


@pytest.mark.parametrize("name", registry.ARCHITECTURES)
def test_expected_shapes_are_those_of_the_built_net(name: str) -> None:
    module = registry.build(name, **SIZE, parameters={})
    shapes = registry.expected_shapes(name, **SIZE, parameters={})
    assert shapes == {key: tuple(value.shape) for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", registry.ARCHITECTURES)
def test_layer_names_are_the_layers_with_a_weight_matrix(name: str) -> None:
    shapes = registry.expected_shapes(name, **SIZE, parameters={})
    weighted = {
        key.removesuffix(".weight")
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) > 1
    }
    names = registry.layer_names(name, **SIZE, parameters={})
    assert set(names) == weighted
    assert len(names) == len(weighted)


def test_expected_shapes_of_a_huge_net_cost_nothing() -> None:
    shapes = registry.expected_shapes(
        "vgg9", channels=3, height=1024, width=1024, classes=100_000, parameters={"width": 16}
    )
    # 54 TB in float32: only a shape without storage can be asked for this.
    assert shapes["classifier.weight"] == (100_000, 512 * 16 * 128 * 128)


def test_building_leaves_the_default_device_alone() -> None:
    registry.expected_shapes("digits_cnn", **SIZE, parameters={})
    assert torch.empty(1).device.type == "cpu"
