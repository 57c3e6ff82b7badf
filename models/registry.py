"""The architectures by name: what each is built from, and what a checkpoint for it looks like.

One explicit dictionary. To add a network, write it under ``models/zoo`` with a builder
``(channels, (height, width), classes, *, <its parameters>) -> nn.Module`` and give it an entry in
`ARCHITECTURES`; everything else (validation, the listing in error messages, the search for the
architecture that fits a checkpoint) follows from the entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from models.layers import binarizable_layers
from models.zoo.alexnet import AlexNet
from models.zoo.digits import DigitsCNN
from models.zoo.resnet import resnet18, resnet34, resnet50
from models.zoo.resnet_cifar import resnet20, resnet32, resnet44, resnet56
from models.zoo.vgg import VGG9
from store.errors import InvalidSpec

Value = bool | int | float | str
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Parameter:
    """One keyword of a builder: its type (that of ``default``) and the values it may have.

    ``infer`` reads the value off the shapes of a checkpoint, where these tell it; parameters with
    ``choices`` are tried one by one instead.
    """

    default: Value
    meaning: str
    choices: tuple[Value, ...] = ()
    low: float | None = None
    high: float | None = None
    infer: Callable[[Mapping[str, Shape]], Value | None] | None = None

    def allowed(self) -> str:
        """Say in words which values are allowed."""
        if self.choices:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        return f"a {type(self.default).__name__} from {self.low:g} to {self.high:g}"

    def accept(self, value: object) -> Value | None:
        """Return ``value`` as the builder takes it, or None where it is not allowed."""
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (self.choices and value not in self.choices):
            return None
        # Written so that NaN, which compares false with everything, is refused.
        if isinstance(value, int | float) and not isinstance(value, bool):
            above = self.low is None or value >= self.low
            below = self.high is None or value <= self.high
            return value if above and below else None
        return value if isinstance(value, bool | str) else None


@dataclass(frozen=True)
class Architecture:
    """A registered network; ``default_input`` is the (channels, height, width) it was made for."""

    name: str
    build: Callable[..., nn.Module]
    default_input: tuple[int, int, int]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


def _vgg9_width(shapes: Mapping[str, Shape]) -> float | None:
    first = shapes.get("features.0.weight")
    return first[0] / 64 if first else None


_SHORTCUT = Parameter(
    default="A",
    meaning="How a block that halves the map passes its input on: 'A' subsamples and pads with "
    "zeros, 'B' has a 1x1 convolution.",
    choices=("A", "B"),
)
_WIDTH = Parameter(
    default=1.0,
    meaning="Multiplies the number of filters of every layer.",
    low=1 / 64,
    high=16,
    infer=_vgg9_width,
)
_DROPOUT = Parameter(
    default=0.5,
    meaning="Probability of dropping an input of a hidden linear layer in training.",
    low=0,
    high=0.95,
)

_CIFAR = (3, 32, 32)
_IMAGENET = (3, 224, 224)

ARCHITECTURES: Mapping[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("vgg9", VGG9, _CIFAR, {"width": _WIDTH}),
        Architecture("resnet20", resnet20, _CIFAR, {"shortcut": _SHORTCUT}),
        Architecture("resnet32", resnet32, _CIFAR, {"shortcut": _SHORTCUT}),
        Architecture("resnet44", resnet44, _CIFAR, {"shortcut": _SHORTCUT}),
        Architecture("resnet56", resnet56, _CIFAR, {"shortcut": _SHORTCUT}),
        Architecture("resnet18", resnet18, _IMAGENET),
        Architecture("resnet34", resnet34, _IMAGENET),
        Architecture("resnet50", resnet50, _IMAGENET),
        Architecture("alexnet", AlexNet, _IMAGENET, {"dropout": _DROPOUT}),
        Architecture("digits_cnn", DigitsCNN, (1, 8, 8)),
    )
}


def validate(name: str, parameters: Mapping[str, Any]) -> dict[str, Value]:
    """Return all parameters of architecture ``name``, with the defaults filled in.

    Raises:
        InvalidSpec: there is no such architecture or parameter, or a value is not allowed; the
            remedy lists what is.
    """
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise InvalidSpec(
            f"There is no architecture {name[:64]!r}.",
            field="spec.architecture",
            remedy="Use one of: " + ", ".join(ARCHITECTURES),
        )
    for given in parameters:
        if given not in architecture.parameters:
            existing = ", ".join(architecture.parameters)
            raise InvalidSpec(
                f"{name} has no parameter {given[:64]!r}.",
                field=f"spec.architecture_parameters.{given[:64]}",
                remedy=f"Its parameters are: {existing}" if existing else "It has no parameters.",
            )
    complete: dict[str, Value] = {}
    for key, parameter in architecture.parameters.items():
        value = parameter.accept(parameters.get(key, parameter.default))
        if value is None:
            raise InvalidSpec(
                f"{name} cannot have {key} = {str(parameters[key])[:64]!r}.",
                field=f"spec.architecture_parameters.{key}",
                remedy=f"Give {parameter.allowed()}. {parameter.meaning}",
            )
        complete[key] = value
    return complete


def build(
    name: str,
    *,
    channels: int,
    height: int,
    width: int,
    classes: int,
    parameters: Mapping[str, Any],
) -> nn.Module:
    """Build architecture ``name`` for images (``channels``, ``height``, ``width``), untrained.

    The weights are drawn from torch's global generator: seed it for a reproducible start.

    Raises:
        InvalidSpec: as `validate`, or the input is too small for the network.
    """
    complete = validate(name, parameters)
    return ARCHITECTURES[name].build(channels, (height, width), classes, **complete)


def expected_shapes(
    name: str,
    *,
    channels: int,
    height: int,
    width: int,
    classes: int,
    parameters: Mapping[str, Any],
) -> dict[str, Shape]:
    """Return the shape of every tensor in the network's state dict, by key, allocating nothing.

    Raises:
        InvalidSpec: as `build`.
    """
    with torch.device("meta"):
        module = build(
            name,
            channels=channels,
            height=height,
            width=width,
            classes=classes,
            parameters=parameters,
        )
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def layer_names(
    name: str,
    *,
    channels: int,
    height: int,
    width: int,
    classes: int,
    parameters: Mapping[str, Any],
) -> tuple[str, ...]:
    """Return the names of the layers that can be binarised: every convolution and linear layer.

    Raises:
        InvalidSpec: as `build`.
    """
    with torch.device("meta"):
        module = build(
            name,
            channels=channels,
            height=height,
            width=width,
            classes=classes,
            parameters=parameters,
        )
    return tuple(binarizable_layers(module))
