"""The stage of calibration: binarize layer after layer, a durable step each."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from models.quantization import scale_tensors
from worker.activation_ranges import activation_scales
from worker.batch_norm import recalibrate_batch_norm
from worker.calibration import apply_layer, calibrate_next, save_layer
from worker.calibration_images import CalibrationImages
from worker.frontier import Frontier
from worker.networks import ACTIVATIONS, BATCH_NORM, LAYER, save_tensors
from worker.stage_context import Progress, StageContext, Step
from worker.stages.surroundings import (
    calibration_images_of,
    dataset_of,
    deterministic,
    device_of,
    networks_of,
)


def calibrate(context: StageContext) -> Mapping[str, Step]:
    """Make the steps ``layer``, ``batch_norm`` and ``activations``; they share their networks."""
    calibration = _Calibration(context)
    return {
        "layer": deterministic(context, calibration.layer),
        "batch_norm": deterministic(context, calibration.batch_norm),
        "activations": deterministic(context, calibration.activations),
    }


class _Calibration:
    """The full-precision and the binarized network of one job, and its calibration images."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._networks = networks_of(context, dataset_of(context))
        self._full: nn.Module | None = None
        self._binarized: nn.Module | None = None
        self._done: set[str] = set()
        self._images: CalibrationImages | None = None
        self._frontier: Frontier | None = None

    def layer(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Binarize the layer ``name``, all layers before it being binary already."""
        name, method = arguments["name"], self._context.spec.method
        full, binarized = self._both(arguments["files"])
        images = self._calibration_images(progress)
        self._frontier = self._frontier or Frontier(images.batches)
        calibrated = calibrate_next(
            full,
            binarized,
            name,
            images,
            method=method.name,
            parameters=method.own_parameters(),
            seed=self._context.spec.seed,
            progress=progress,
            recalibrate=method.recalibrate_batch_norm == "each_layer",
            frontier=self._frontier,
        )
        ref = self._context.files.write(
            f"layers/{name}.safetensors", lambda path: save_layer(calibrated, path)
        )
        self._done.add(name)
        return {
            "name": name,
            "losses": list(calibrated.losses),
            "device": device_of(self._context).type,
            "files": {f"{LAYER}{name}": ref.to_json()},
        }

    def batch_norm(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Re-estimate the batch-norm statistics of the whole binarized network."""
        _, binarized = self._both(arguments["files"])
        images = self._calibration_images(progress)
        buffers = recalibrate_batch_norm(binarized, images, progress)
        ref = self._context.files.write("batch-norm.safetensors", partial(save_tensors, buffers))
        return {"files": {BATCH_NORM: ref.to_json()}}

    def activations(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Choose the levels to which the finished network rounds what its layers are fed."""
        network = self._networks.calibrated(arguments["files"]).to(device_of(self._context))
        images = self._calibration_images(progress)
        choice = self._context.spec.activation_scale
        tensors = scale_tensors(activation_scales(network, images, choice, progress))
        ref = self._context.files.write("activations.safetensors", partial(save_tensors, tensors))
        return {"files": {ACTIVATIONS: ref.to_json()}}

    def _both(self, refs: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
        if self._full is None or self._binarized is None:
            device = device_of(self._context)
            self._full = self._networks.full_precision(refs).to(device)
            self._binarized = self._networks.full_precision(refs).to(device)
        # What this process has not made itself, another one made before it died.
        for layer in self._networks.layers(refs, self._done):
            apply_layer(self._binarized, layer)
            self._done.add(layer.name)
        return self._full, self._binarized

    def _calibration_images(self, progress: Progress) -> CalibrationImages:
        if self._images is None:
            self._images = calibration_images_of(self._context, progress)
        return self._images
