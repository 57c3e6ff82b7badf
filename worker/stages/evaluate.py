"""The stage of evaluation: every form of the network on the test images, and the report.

Where the job has an accuracy gate, full precision and the packed plan answer the validation images
too. A model that does not pass is evaluated and reported like any other; what becomes of it is the
pipeline's affair.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from models import artifact, runtime
from models.layers import float32_bytes
from models.lowering import lower
from store.artifacts import ARTIFACT, PREDICTIONS
from store.datasets import Dataset
from store.specs import CompressSpec
from worker.data import ImageSet, Splits
from worker.evaluation import Logits, Predict, accuracy, parity, predictions
from worker.forms import channels_last, logits_of_forms, without_rounding
from worker.gate import Gate, judge
from worker.job_files import STAGED, FileRef
from worker.latency import measure_latency
from worker.networks import FINE_TUNED, PACKED, JobNetworks, Refs, input_spec
from worker.report import (
    SCHEMA,
    answer_figures,
    calibration_provenance,
    layer_figures,
    layers_by_loss,
    provenance,
    training_provenance,
)
from worker.stage_context import Progress, StageContext, Step
from worker.stages.pack import write_artifact
from worker.stages.surroundings import (
    dataset_of,
    deterministic,
    device_of,
    networks_of,
    splits_of,
    without_fraction,
    write_json,
)
from worker.training.processes import this_device


def evaluate(context: StageContext) -> Mapping[str, Step]:
    """Make the stage's one step, ``evaluate``."""

    def evaluate(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        refs, prepared = arguments["files"], arguments["prepared"]
        dataset = dataset_of(context)
        splits = splits_of(context, without_fraction(progress))
        test = splits.test
        packed = artifact.read(context.files.resolve(FileRef.from_json(refs[PACKED])))
        # The runtime, and so the arithmetic, that will serve.
        load = partial(
            runtime.load, runtime=context.settings.runtime, threads=context.settings.worker_threads
        )
        served = load(packed)
        device = device_of(context)
        forms = _trained_forms(networks_of(context, dataset), refs, device)
        float_bytes = float32_bytes(forms["full_precision"])
        layers = layer_figures(forms["calibrated"], prepared["order"], arguments["layers"])
        predict = {name: channels_last(network) for name, network in forms.items()}
        predict["packed"] = served.run
        if context.spec.activation_bits < 32:
            network = forms[list(forms)[-1]]
            # On the same runtime, whatever was asked for: rounding is all that they differ in.
            unrounded = load(_unrounded(network, packed), runtime=served.name)
            predict["packed_float_activations"] = unrounded.run
        gate, on_gate = _gate(context.spec, predict, splits, progress)
        fed = input_spec(context.spec)
        logits = logits_of_forms(predict, test, fed, _between(progress, on_gate, 1.0))
        accuracies = {form: accuracy(found, test.labels) for form, found in logits.items()}
        epochs, processes = arguments["epochs"], context.settings.training_processes
        origin = {
            **provenance(context.spec, prepared["digests"]),
            **calibration_provenance(arguments["layers"]),
            **training_provenance(epochs, processes),
        }
        final = dataclasses.replace(packed, provenance=origin, accuracy=accuracies)
        files = _stage_files(context, final, logits["packed"], test, dataset)
        path = context.files.resolve(files["artifact"])
        progress(1.0, "measuring the latency")
        threads, image = context.settings.worker_threads, next(test.batches(fed, 1))
        latency = measure_latency(
            served.run, _original(forms["full_precision"], served), image, threads
        ).to_json()
        measured = {
            "schema": SCHEMA,
            "spec": context.spec.model_dump(mode="json"),
            "accuracy": accuracies,
            "test_images": len(test),
            "gate": None if gate is None else gate.to_json(),
            "latency": latency,
            "calibration": prepared["calibration"],
            "layers": layers,
            "layers_by_loss": layers_by_loss(layers),
            **_fine_tuning(epochs),
            **answer_figures(logits, test.labels, dataset.classes),
            "bytes": {"float": float_bytes, "packed": path.stat().st_size},
            "compression_ratio": artifact.compression_ratio(float_bytes, path),
            # What was packed is the last of the forms in which it could be trained.
            "parity": parity(logits[list(forms)[-1]], logits["packed"]).to_json(),
            "device": device.type,
            "runtime": served.name,
            "kernels": served.kernels,
            "seed": context.spec.seed,
            "digests": {**prepared["digests"], "artifact": files["artifact"].digest},
            "versions": origin["versions"],
        }
        files["measured"] = context.files.write("measured.json", partial(write_json, measured))
        return {
            "accuracy": accuracies,
            "gate": measured["gate"],
            "files": {role: ref.to_json() for role, ref in files.items()},
        }

    return {"evaluate": deterministic(context, evaluate)}


def _gate(
    spec: CompressSpec, predict: Mapping[str, Predict], splits: Splits, progress: Progress
) -> tuple[Gate | None, float]:
    """Return the gate's verdict, if the job has one, and what share of the answers it took."""
    if spec.max_accuracy_drop is None:
        return None, 0.0
    val, forms = splits.val, {form: predict[form] for form in ("full_precision", "packed")}
    answers = len(val) * len(forms)
    share = answers / (answers + len(splits.test) * len(predict))
    logits = logits_of_forms(forms, val, input_spec(spec), _between(progress, 0.0, share))
    before, after = logits["full_precision"], logits["packed"]
    return judge(spec.max_accuracy_drop, before, after, val.labels), share


def _between(progress: Progress, low: float, high: float) -> Progress:
    """Report the progress of a part of the step, which goes from ``low`` to ``high``."""
    return lambda fraction, message, details=None: progress(
        low + (high - low) * fraction, message, details
    )


def _trained_forms(networks: JobNetworks, refs: Refs, device: torch.device) -> dict[str, nn.Module]:
    """Return the forms before packing on ``device``, in the order in which they came about."""
    forms = {
        "full_precision": networks.full_precision(refs),
        "calibrated": networks.calibrated(refs),
    }
    if FINE_TUNED in refs:
        forms["fine_tuned"] = networks.fine_tuned(refs)
    return {name: network.to(device) for name, network in forms.items()}


def _original(network: nn.Module, served: runtime.Runtime) -> Predict:
    """Return ``network`` where the packed plan is ``served``: the two are timed on one device."""
    return channels_last(network.to(this_device("cuda" if served.name == "cuda" else "cpu")))


def _unrounded(network: nn.Module, packed: artifact.Artifact) -> artifact.Artifact:
    """Return what was ``packed`` of ``network``, without its rounding."""
    plan, tensors = lower(without_rounding(network).to("cpu"), packed.input.shape)
    return dataclasses.replace(packed, plan=plan, tensors=tensors)


def _stage_files(
    context: StageContext,
    final: artifact.Artifact,
    answers: Logits,
    test: ImageSet,
    dataset: Dataset,
) -> dict[str, FileRef]:
    """Write what is to be published beside the report; return it by role."""
    answered = predictions(answers, test, dataset.classes, "test")
    write = context.files.write
    return {
        "artifact": write(f"{STAGED}/{ARTIFACT}", partial(write_artifact, final)),
        "predictions": write(f"{STAGED}/{PREDICTIONS}", partial(write_json, answered)),
    }


def _fine_tuning(epochs: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the report's member about fine-tuning, where there was any."""
    return {"fine_tuning": {"epochs": epochs}} if epochs else {}
