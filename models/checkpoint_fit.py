"""Does a checkpoint fit an architecture, and if not, which one does it fit?"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from models import registry
from models.checkpoint_container import Shape, short
from models.registry import Architecture, Value
from store.errors import CheckpointMismatch, InvalidSpec

_LISTED = 5
_COUNTER = "num_batches_tracked"
# Inputs that are tried when the network's linear layers depend on the size of the input.
_COMMON_EDGES = (32, 224, 64, 28, 8, 16, 48, 96, 128, 256)
_MAX_CLASSES = 1_000_000
_MAX_CHANNELS = 4_096


def check_fit(
    shapes: Mapping[str, Shape],
    architecture: str,
    *,
    channels: int,
    height: int,
    width: int,
    classes: int,
    parameters: Mapping[str, Any],
) -> None:
    """Check that a checkpoint with these (cleaned) names and shapes is one of this network.

    ``num_batches_tracked`` may be absent: checkpoints from before torch 0.4.1 have none.

    Raises:
        CheckpointMismatch: with counts and the first few of the missing, unexpected and wrongly
            shaped tensors; the remedy names the registered network that would fit, if any.
        InvalidSpec: as `registry.build`.
    """
    expected = registry.expected_shapes(
        architecture,
        channels=channels,
        height=height,
        width=width,
        classes=classes,
        parameters=parameters,
    )
    differences = _differences(expected, shapes)
    if not differences:
        return
    detail = f"The checkpoint is not one of {architecture}"
    detail += f" for {classes} classes and images of {channels} x {height} x {width}: "
    raise CheckpointMismatch(
        detail + "; ".join(differences) + ".",
        field="checkpoint",
        remedy=_remedy(shapes, architecture, channels, (height, width), classes, parameters),
    )


def restore(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a checkpoint that fits (`check_fit`) into ``module``."""
    counters = {k: v for k, v in module.state_dict().items() if k.endswith(_COUNTER)}
    module.load_state_dict(counters | dict(tensors))


def _differences(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    missing = [key for key in expected if key not in found and not key.endswith(_COUNTER)]
    unexpected = [key for key in found if key not in expected]
    misshaped = [
        f"{short(key)} is {_in_words(found[key])} instead of {_in_words(shape)}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    groups = {
        "missing": [short(key) for key in missing],
        "unexpected": [short(key) for key in unexpected],
        "wrongly shaped": misshaped,
    }
    return [f"{len(keys)} {kind} ({_listing(keys)})" for kind, keys in groups.items() if keys]


def _listing(keys: Sequence[str]) -> str:
    rest = len(keys) - _LISTED
    return ", ".join(keys[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _in_words(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a scalar"


def _remedy(
    shapes: Mapping[str, Shape],
    architecture: str,
    channels: int,
    size: tuple[int, int],
    classes: int,
    parameters: Mapping[str, Any],
) -> str:
    fit = next(_fits(shapes, architecture, size), None)
    if fit is None:
        return "No registered architecture fits it. There are: " + ", ".join(registry.ARCHITECTURES)
    name, found_parameters, found_channels, found_size, found_classes = fit
    wanted = registry.validate(architecture, parameters)
    same_net = name == architecture and found_parameters == wanted
    if same_net and (found_channels, found_size) == (channels, size):
        return (
            f"The checkpoint tells {found_classes} classes apart and the dataset has {classes}: "
            f"use a dataset of {found_classes} classes, or a checkpoint of {classes}."
        )
    settings = "".join(f", {key} = {value}" for key, value in found_parameters.items())
    return (
        f"It fits {name}{settings}, with {found_classes} classes and images of "
        f"{found_channels} x {found_size[0]} x {found_size[1]}."
    )


_Fit = tuple[str, dict[str, Value], int, tuple[int, int], int]


def _fits(shapes: Mapping[str, Shape], preferred: str, size: tuple[int, int]) -> Iterator[_Fit]:
    """Yield every registered network that ``shapes`` fits, the ``preferred`` one first."""
    names = sorted(registry.ARCHITECTURES, key=lambda name: name != preferred)
    for architecture in map(registry.ARCHITECTURES.__getitem__, names):
        for parameters in _settings(architecture, shapes):
            ends = _matching_ends(shapes, architecture, parameters)
            if ends is None:
                continue
            channels, classes = ends
            for candidate in (size, *((edge, edge) for edge in _COMMON_EDGES)):
                try:
                    expected = registry.expected_shapes(
                        architecture.name,
                        channels=channels,
                        height=candidate[0],
                        width=candidate[1],
                        classes=classes,
                        parameters=parameters,
                    )
                except InvalidSpec:  # images of this size are too small for it
                    continue
                if not _differences(expected, shapes):
                    yield architecture.name, parameters, channels, candidate, classes
                    break


def _settings(
    architecture: Architecture, shapes: Mapping[str, Shape]
) -> Iterator[dict[str, Value]]:
    """Yield the parameters with which ``shapes`` might come of ``architecture``."""
    axes: list[list[Value]] = []
    for parameter in architecture.parameters.values():
        values = list(parameter.choices)
        if not values:
            inferred = parameter.infer(shapes) if parameter.infer else None
            accepted = None if inferred is None else parameter.accept(inferred)
            values = [parameter.default if accepted is None else accepted]
        axes.append(values)
    for values_of_all in itertools.product(*axes):
        yield dict(zip(architecture.parameters, values_of_all, strict=True))


def _matching_ends(
    shapes: Mapping[str, Shape], architecture: Architecture, parameters: dict[str, Value]
) -> tuple[int, int] | None:
    """Return channels and classes as ``shapes`` tells them, where at least all names match."""
    channels, height, width = architecture.default_input
    arguments: dict[str, Any] = {"height": height, "width": width, "parameters": parameters}
    layers = registry.layer_names(architecture.name, channels=channels, classes=1, **arguments)
    first = shapes.get(f"{layers[0]}.weight", ())
    last = shapes.get(f"{layers[-1]}.weight", ())
    if len(first) != 4 or len(last) != 2:
        return None
    expected = registry.expected_shapes(
        architecture.name, channels=channels, classes=1, **arguments
    )
    if any(key not in shapes and not key.endswith(_COUNTER) for key in expected):
        return None
    channels, classes = first[1], last[0]
    plausible = 1 <= channels <= _MAX_CHANNELS and 1 <= classes <= _MAX_CLASSES
    return (channels, classes) if plausible else None
