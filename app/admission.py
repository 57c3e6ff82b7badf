"""Everything about a compression job that can be told before it is queued."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models import checkpoints, registry
from models.preprocessing import InputSpec
from store.datasets import Dataset, DatasetStore
from store.errors import InvalidDataset, InvalidSpec, NotFound
from store.specs import CompressSpec

_MOST_NAMES = 20
_ANY_CLASSES = 2


def check_spec(spec: CompressSpec, datasets: DatasetStore) -> Dataset:
    """Check what ``spec`` names: architecture, its parameters, dataset, layers. Blocking.

    Raises:
        InvalidSpec: naming the field, and what there is instead.
        InvalidDataset: the dataset has no images to calibrate on.
    """
    _check_input(spec)
    registry.validate(spec.architecture, spec.architecture_parameters)
    dataset = known_dataset(spec, datasets)
    _check_layers(spec, len(dataset.classes))
    return dataset


def check_spec_but_dataset(spec: CompressSpec, datasets: DatasetStore) -> Dataset | None:
    """Check ``spec`` as `check_spec` does, but let its dataset be one that is yet to come: None.

    Raises as `check_spec`.
    """
    _check_input(spec)
    registry.validate(spec.architecture, spec.architecture_parameters)
    try:
        datasets.get(spec.dataset)
    except NotFound:
        # The names of layers do not depend on the number of classes.
        _check_layers(spec, _ANY_CLASSES)
        return None
    return check_spec(spec, datasets)


def _check_layers(spec: CompressSpec, classes: int) -> None:
    layers = registry.layer_names(spec.architecture, **_network(spec, classes))
    for index, name in enumerate(spec.keep_float):
        if name not in layers:
            raise InvalidSpec(
                f"{spec.architecture} has no layer {name!r}.",
                field=f"spec.keep_float.{index}",
                remedy="Use some of: " + _some(layers),
            )
    if set(layers) <= set(spec.keep_float):
        raise InvalidSpec(
            "Every layer is kept in float, so that nothing is left to compress.",
            field="spec.keep_float",
            remedy="Leave at least one layer out.",
        )


def _check_input(spec: CompressSpec) -> None:
    try:
        InputSpec(**spec.input.model_dump())
    except ValueError as error:
        # What a specification may say and an artifact cannot, such as numbers beyond float32.
        raise InvalidSpec(
            f"The input cannot be used: {error}.",
            field="spec.input",
            remedy="Give finite numbers of a usual size.",
        ) from None


def check_checkpoint(spec: CompressSpec, dataset: Dataset | None, path: Path) -> None:
    """Check the checkpoint's file as far as possible without unpickling it. Blocking.

    Without a dataset, which tells the number of classes, only the container is checked.

    A safetensors file shows all its keys and shapes; of a pickle only the container is checked
    here, and the worker checks the rest.

    Raises:
        InvalidCheckpoint: a damaged file, or one that is no checkpoint.
        CheckpointMismatch: a checkpoint of another network, or for another number of classes.
    """
    inspection = checkpoints.inspect(path)
    if inspection.shapes is not None and dataset is not None:
        network = _network(spec, len(dataset.classes))
        checkpoints.check_fit(inspection.shapes, spec.architecture, **network)


def known_dataset(spec: CompressSpec, datasets: DatasetStore) -> Dataset:
    """Return the dataset that ``spec`` names. Blocking. Raises as `check_spec`."""
    name = spec.dataset
    try:
        dataset = datasets.get(name)
    except NotFound:
        known = [dataset.name for dataset in datasets.list()]
        raise InvalidSpec(
            f"There is no dataset {name}.",
            field="spec.dataset",
            remedy="Upload it with POST /datasets first"
            + (f", or use one of: {_some(known)}" if known else "."),
        ) from None
    if not dataset.splits.keys() & {"all", "train"}:
        raise InvalidDataset(
            f"The dataset has {' and '.join(dataset.splits)}, but no train to calibrate on.",
            field="spec.dataset",
            remedy="Add the folder train with images of every class.",
        )
    return dataset


def _network(spec: CompressSpec, classes: int) -> dict[str, Any]:
    parameters: Mapping[str, Any] = spec.architecture_parameters
    return {
        "channels": spec.input.channels,
        "height": spec.input.height,
        "width": spec.input.width,
        "classes": classes,
        "parameters": parameters,
    }


def _some(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else f"{shown}."
