"""What each stage of a job does, in its own process.

Each function here makes the steps of one stage (see `worker.stage_context`). A step is told in
``files`` what the steps before it left, by role, and says in ``files`` what it leaves itself; its
other results are the figures that the job's record and its report show.
"""

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import artifact, checkpoints, runtime
from models.layers import binarizable_layers, float32_bytes
from models.lowering import lower
from store.artifacts import ARTIFACT, PREDICTIONS
from store.datasets import Dataset, DatasetStore
from store.errors import InvalidSpec
from store.specs import CompressSpec
from store.uploads import UploadStore
from worker.calibration import (
    CalibratedLayer,
    CalibrationImages,
    apply_layer,
    calibrate_layer,
    layer_order,
    recalibrate_batch_norm,
    save_layer,
)
from worker.data import ImageSet, Splits, calibration_images, split_dataset
from worker.evaluation import Logits, Predict, accuracy, parity, predict_logits, predictions
from worker.image_cache import decode_dataset
from worker.job_files import STAGED, FileRef
from worker.networks import (
    BATCH_NORM,
    LAYER,
    MODEL,
    JobNetworks,
    architecture_arguments,
    build_network,
    input_spec,
    save_tensors,
)
from worker.report import SCHEMA, layer_figures, provenance
from worker.stage_context import Progress, StageContext, Step

# Bounds the activation maps of an evaluation.
_PIXELS_PER_BATCH = 1_000_000
_MOST_IMAGES_PER_BATCH = 250


def prepare(context: StageContext) -> Mapping[str, Step]:
    """Check all that the job is given, and turn it into what the other stages read."""

    def prepare(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        spec = context.spec
        # Missing at the evaluation, it would cost the whole calibration.
        runtime.choose(context.settings.runtime)
        dataset = _dataset(context)
        network = _restored(context, dataset)
        order = layer_order(network, input_spec(spec).shape)
        layers = _layers_to_binarize(spec, network, order)
        splits = _splits(context, progress)
        _, chosen = calibration_images(splits.train, spec.seed, spec.calibration_images)
        progress(1.0, f"calibration on {chosen}")
        state = network.state_dict()
        model = context.files.write("model.safetensors", partial(save_tensors, state))
        assert spec.checkpoint is not None
        return {
            "layers": layers,
            "order": order,
            "calibration": chosen,
            "digests": {"checkpoint": spec.checkpoint, "dataset": dataset.digest},
            "files": {MODEL: model.to_json()},
        }

    return {"prepare": _deterministic(context, prepare)}


def calibrate(context: StageContext) -> Mapping[str, Step]:
    """Binarize layer after layer; the networks stay in memory from one to the next."""
    calibration = _Calibration(context)
    return {
        "layer": _deterministic(context, calibration.layer),
        "batch_norm": _deterministic(context, calibration.batch_norm),
    }


def pack(context: StageContext) -> Mapping[str, Step]:
    """Lower the calibrated network to a plan with packed bits."""

    def pack(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        dataset = _dataset(context)
        network = _networks(context, dataset).calibrated(arguments["files"])
        fed = input_spec(context.spec)
        plan, tensors = lower(network, fed.shape)
        packed = artifact.Artifact(plan, tensors, fed, dataset.classes, {}, {})
        ref = context.files.write("packed.safetensors", partial(_write, packed))
        return {"files": {"packed": ref.to_json()}}

    return {"pack": _deterministic(context, pack)}


def evaluate(context: StageContext) -> Mapping[str, Step]:
    """Measure the network before, after calibration and as it will be served."""

    def evaluate(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        refs, prepared = arguments["files"], arguments["prepared"]
        dataset = _dataset(context)
        test = _splits(context, _without_fraction(progress)).test
        networks = _networks(context, dataset)
        full = networks.full_precision(refs)
        calibrated = networks.calibrated(refs)
        packed = artifact.read(context.files.resolve(FileRef.from_json(refs["packed"])))
        # The runtime, and so the arithmetic, that will serve.
        served = runtime.load(packed, context.settings.runtime)
        forms: dict[str, Predict] = {
            "full_precision": full,
            "calibrated": calibrated,
            "packed": served.run,
        }
        logits = _logits_of(forms, test, context.spec, progress)
        accuracies = {form: accuracy(found, test.labels) for form, found in logits.items()}
        origin = provenance(context.spec, prepared["digests"])
        final = dataclasses.replace(packed, provenance=origin, accuracy=accuracies)
        answers = predictions(logits["packed"], test, dataset.classes, "test")
        write = context.files.write
        artifact_ref = write(f"{STAGED}/{ARTIFACT}", partial(_write, final))
        path = context.files.resolve(artifact_ref)
        float_bytes = float32_bytes(full)
        measured = {
            "schema": SCHEMA,
            "spec": context.spec.model_dump(mode="json"),
            "accuracy": accuracies,
            "test_images": len(test),
            "calibration": prepared["calibration"],
            "layers": layer_figures(calibrated, prepared["order"], arguments["layers"]),
            "bytes": {"float": float_bytes, "packed": path.stat().st_size},
            "compression_ratio": artifact.compression_ratio(float_bytes, path),
            "parity": parity(logits["calibrated"], logits["packed"]).to_json(),
            "runtime": served.name,
            "seed": context.spec.seed,
            "digests": {**prepared["digests"], "artifact": artifact_ref.digest},
            "versions": origin["versions"],
        }
        return {
            "accuracy": accuracies,
            "files": {
                "artifact": artifact_ref.to_json(),
                "predictions": write(
                    f"{STAGED}/{PREDICTIONS}", partial(_write_json, answers)
                ).to_json(),
                "measured": write("measured.json", partial(_write_json, measured)).to_json(),
            },
        }

    return {"evaluate": _deterministic(context, evaluate)}


class _Calibration:
    """The full-precision and the binarized network of one job, and its calibration images."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._networks = _networks(context, _dataset(context))
        self._full: nn.Module | None = None
        self._binarized: nn.Module | None = None
        self._done: set[str] = set()
        self._images: CalibrationImages | None = None

    def layer(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Binarize the layer ``name``, all layers before it being binary already."""
        name, method = arguments["name"], self._context.spec.method
        full, binarized = self._both(arguments["files"])
        calibrated = calibrate_layer(
            full,
            binarized,
            name,
            self._calibration_images(progress),
            method=method.name,
            parameters=method.own_parameters(),
            seed=self._context.spec.seed,
            progress=progress,
        )
        ref = self._context.files.write(
            f"layers/{name}.safetensors", lambda path: save_layer(calibrated, path)
        )
        self._apply(binarized, calibrated)
        return {
            "name": name,
            "losses": list(calibrated.losses),
            "files": {f"{LAYER}{name}": ref.to_json()},
        }

    def batch_norm(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Re-estimate the batch-norm statistics of the whole binarized network."""
        _, binarized = self._both(arguments["files"])
        images = self._calibration_images(progress)
        buffers = recalibrate_batch_norm(binarized, images, progress)
        ref = self._context.files.write("batch-norm.safetensors", partial(save_tensors, buffers))
        return {"files": {BATCH_NORM: ref.to_json()}}

    def _both(self, refs: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
        if self._full is None or self._binarized is None:
            self._full = self._networks.full_precision(refs)
            self._binarized = self._networks.full_precision(refs)
        # What this process has not made itself, another one made before it died.
        for layer in self._networks.layers(refs, self._done):
            self._apply(self._binarized, layer)
        return self._full, self._binarized

    def _apply(self, binarized: nn.Module, layer: CalibratedLayer) -> None:
        apply_layer(binarized, layer)
        self._done.add(layer.name)

    def _calibration_images(self, progress: Progress) -> CalibrationImages:
        if self._images is None:
            spec = self._context.spec
            train = _splits(self._context, _without_fraction(progress)).train
            chosen, _ = calibration_images(train, spec.seed, spec.calibration_images)
            self._images = CalibrationImages(chosen, input_spec(spec))
        return self._images


def _deterministic(context: StageContext, step: Step) -> Step:
    """Fix what a step's result could depend on beside its input: threads and random numbers."""

    def fixed(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        torch.set_num_threads(context.settings.worker_threads)
        torch.manual_seed(context.spec.seed)
        return step(arguments, progress)

    return fixed


def _without_fraction(progress: Progress) -> Progress:
    """Pass on what is being done, not how far it is: for what comes before the step's own work."""
    return lambda _fraction, message: progress(0.0, message)


def _dataset(context: StageContext) -> Dataset:
    return _datasets(context).get(context.spec.dataset)


def _datasets(context: StageContext) -> DatasetStore:
    return DatasetStore(context.settings.datasets_dir, context.settings.dataset_limits)


def _networks(context: StageContext, dataset: Dataset) -> JobNetworks:
    return JobNetworks(context.spec, len(dataset.classes), context.files)


def _splits(context: StageContext, progress: Progress) -> Splits:
    spec, settings = context.spec, context.settings
    decoded = decode_dataset(
        _datasets(context),
        spec.dataset,
        input_spec(spec),
        settings.cache_dir,
        progress,
        settings.worker_threads,
    )
    return split_dataset(decoded, spec.seed)


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


def _logits_of(
    forms: Mapping[str, Predict], images: ImageSet, spec: CompressSpec, progress: Progress
) -> dict[str, Logits]:
    """Run every form of the network over the images, each a third of the step's progress."""
    pixels = spec.input.height * spec.input.width
    batch = min(max(_PIXELS_PER_BATCH // pixels, 1), _MOST_IMAGES_PER_BATCH)
    logits: dict[str, Logits] = {}
    for index, (form, predict) in enumerate(forms.items()):

        def report(fraction: float, message: str, index: int = index) -> None:
            progress((index + fraction) / len(forms), message)

        logits[form] = predict_logits(
            predict,
            images,
            input_spec(spec),
            report,
            batch_images=batch,
            network=form.replace("_", " ") + " network",
        )
    return logits


def _write(content: artifact.Artifact, path: Path) -> None:
    path.write_bytes(artifact.encode(content))


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
