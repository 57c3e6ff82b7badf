"""What a job says of its result: the artifact's provenance and the report's measurements."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from models.layers import BinaryConv2d, BinaryLinear, binarizable_layers
from store.specs import CompressSpec
from worker.agreement import agreement
from worker.answers import Labels, answers_of
from worker.confidence import confidence
from worker.confusion import class_accuracies, confusion_difference
from worker.evaluation import Logits

# 2: classes, confusion, agreement, confidence, layers_by_loss. 3: gate, latency.
SCHEMA = 3


def provenance(spec: CompressSpec, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return where an artifact comes from: nothing that differs between two equal jobs.

    Equal are jobs of equal specification, data, versions, threads and runtime on processors of one
    kind: how many threads torch has, and which instructions, decides in which order it adds, and so
    a sum's last bits; so does the runtime that measures the accuracy and, where it adds up
    activations of float32, its set of kernels. The checkpoint appears by its digest only, however
    it was sent.
    """
    return {
        "spec": spec.model_dump(mode="json", exclude={"checkpoint"}),
        "seed": spec.seed,
        "digests": dict(digests),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }


def calibration_provenance(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return ``calibration_devices``: what the ``layers`` were calibrated on, the first one first.

    Only where there is another than the CPU. ``layers`` are as the job recorded them; of those of
    an earlier version, which had the CPU only, no device is known.
    """
    devices = list(dict.fromkeys(layer.get("device", "cpu") for layer in layers))
    return {"calibration_devices": devices} if set(devices) - {"cpu"} else {}


def training_provenance(epochs: Sequence[Mapping[str, Any]], processes: int) -> dict[str, Any]:
    """Return what the artifact of a job with the recorded ``epochs`` depends on besides.

    training: ``device`` and ``products`` of the epochs, every pair once, in order of first use;
        there is one, unless the job moved to another machine
    training_processes: how many trained together, where there were several: they divide each sum
    """
    if not epochs:
        return {}
    pairs = dict.fromkeys((epoch["device"], epoch["products"]) for epoch in epochs)
    training = [{"device": device, "products": products} for device, products in pairs]
    several = {"training_processes": processes} if processes > 1 else {}
    return {"training": training, **several}


def versions() -> dict[str, str]:
    """Return the versions of what computed the result."""
    return {name: _version(name) for name in ("bitpress", "torch", "numpy")}


def layer_figures(
    network: nn.Module, order: Iterable[str], calibrated: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Describe every convolution and linear layer of the calibrated ``network``, in ``order``.

    ``calibrated`` gives ``name``, ``losses``, ``seconds`` and ``device`` of the binarized ones.
    """
    found = {layer["name"]: layer for layer in calibrated}
    layers = binarizable_layers(network)
    return [
        {
            "name": name,
            "kind": "conv2d" if isinstance(layers[name], nn.Conv2d) else "linear",
            "shape": list(layers[name].weight.shape),
            "weights": layers[name].weight.numel(),
            "binary": isinstance(layers[name], BinaryConv2d | BinaryLinear),
            "losses": found[name]["losses"] if name in found else [],
            "seconds": found[name]["seconds"] if name in found else 0.0,
            "device": found[name].get("device", "cpu") if name in found else None,
        }
        for name in order
    ]


def layers_by_loss(layers: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return ``name`` and final relative ``loss`` of the binary ``layers``, the largest first.

    ``layers`` are those of `layer_figures`; the loss is that of calibration.
    """
    final = [
        {"name": layer["name"], "loss": layer["losses"][-1]} for layer in layers if layer["losses"]
    ]
    return sorted(final, key=lambda layer: -layer["loss"])


def answer_figures(
    logits: Mapping[str, Logits], labels: Labels, classes: Sequence[str]
) -> dict[str, Any]:
    """Return what the answers of a network's forms show beside their accuracy.

    ``logits`` holds float32 ``(N, K)`` by form: ``full_precision``, which is before compression,
    ``packed``, which is after, and any others; ``labels`` is int64 ``(N,)``. Members:

    classes: accuracy of each class, by form
    confusion: which mistakes became more and fewer from before to after
    agreement: how far the answers after are those before
    confidence: by form, how sure the answers are and how rightly

    Raises:
        ValueError: the logits and labels are not of one length, or are empty.
    """
    answers = {form: answers_of(found) for form, found in logits.items()}
    before, after = answers["full_precision"], answers["packed"]
    return {
        "classes": class_accuracies(answers, labels, classes),
        "confusion": confusion_difference(before, after, labels, classes).to_json(),
        "agreement": agreement(before, after, labels).to_json(),
        "confidence": {form: confidence(of, labels).to_json() for form, of in answers.items()},
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        # A source tree on the path, not installed.
        return "unknown"
