"""The first stage: check all that the job is given, and turn it into what the others read."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from models import checkpoints, runtime
from models.layers import binarizable_layers
from store.datasets import Dataset
from store.errors import InvalidSpec
from store.specs import CompressSpec
from store.uploads import UploadStore
from worker.activations import layer_order
from worker.data import calibration_images
from worker.fine_tuning import recipe_of, trained_split
from worker.foresight import foreseen_seconds
from worker.networks import (
    MODEL,
    architecture_arguments,
    build_network,
    input_spec,
    save_tensors,
)
from worker.stage_context import Progress, StageContext, Step
from worker.stages.surroundings import dataset_of, deterministic, splits_of
from worker.training.processes import check_devices, this_device
from worker.training.recipe import check_batch


def prepare(context: StageContext) -> Mapping[str, Step]:
    """Make the stage's one step, ``prepare``."""

    def prepare(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        spec = context.spec
        # What is missing later would cost the whole calibration.
        runtime.choose(context.settings.runtime)
        device = this_device(context.settings.device)
        if spec.fine_tune is not None:
            check_devices(context.settings.training_processes, device)
        dataset = dataset_of(context)
        network = _restored(context, dataset)
        order = layer_order(network, input_spec(spec).shape)
        layers = _layers_to_binarize(spec, network, order)
        splits = splits_of(context, progress)
        if spec.fine_tune is not None:
            processes = context.settings.training_processes
            check_batch(recipe_of(spec), len(trained_split(splits, spec)), processes)
        _, chosen = calibration_images(splits.train, spec.seed, spec.calibration_images)
        progress(1.0, f"calibration on {chosen}")
        state = network.state_dict()
        model = context.files.write("model.safetensors", partial(save_tensors, state))
        assert spec.checkpoint is not None
        foreseen = foreseen_seconds(
            spec, context.settings, len(dataset.classes), splits, dataset.bytes
        )
        return {
            "layers": layers,
            "foreseen": foreseen,
            "order": order,
            "calibration": chosen,
            "digests": {"checkpoint": spec.checkpoint, "dataset": dataset.digest},
            "files": {MODEL: model.to_json()},
        }

    return {"prepare": deterministic(context, prepare)}


def _restored(context: StageContext, dataset: Dataset) -> nn.Module:
    """Return the job's network with the weights of its checkpoint."""
    spec, settings = context.spec, context.settings
    if spec.checkpoint is None:
        raise InvalidSpec(
            "The job names no checkpoint.",
            field="spec.checkpoint",
            remedy="Send the checkpoint's file, or the digest of an earlier upload.",
        )
    uploads = UploadStore(settings.uploads_dir, settings.max_checkpoint_bytes)
    settings.jobs_dir.mkdir(parents=True, exist_ok=True)
    tensors = checkpoints.load(uploads.resolve(spec.checkpoint), scratch=settings.jobs_dir)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    arguments = architecture_arguments(spec, len(dataset.classes))
    checkpoints.check_fit(shapes, spec.architecture, **arguments)
    network = build_network(spec, len(dataset.classes))
    checkpoints.restore(network, tensors)
    return network


def _layers_to_binarize(spec: CompressSpec, network: nn.Module, order: list[str]) -> list[str]:
    existing = binarizable_layers(network)
    for name in spec.keep_float:
        if name not in existing:
            raise InvalidSpec(
                f"{spec.architecture} has no layer {name!r}.",
                field="spec.keep_float",
                remedy="Use some of: " + ", ".join(order[:20]) + ".",
            )
    layers = [name for name in order if name not in spec.keep_float]
    if not layers:
        raise InvalidSpec(
            "Every layer is kept in float, so that nothing is left to compress.",
            field="spec.keep_float",
            remedy="Leave at least one layer out.",
        )
    return layers
