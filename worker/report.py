"""What a job says of its result: the artifact's provenance and the report's measurements."""

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from models.layers import BinaryConv2d, BinaryLinear, binarizable_layers
from store.specs import CompressSpec

SCHEMA = 1


def provenance(spec: CompressSpec, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return where an artifact comes from: nothing that differs between two equal jobs.

    Equal are jobs of equal specification, data, versions and threads: how many threads torch has
    decides in which order it adds, and so a sum's last bits. The checkpoint appears by its digest
    only, however it was sent.
    """
    return {
        "spec": spec.model_dump(mode="json", exclude={"checkpoint"}),
        "seed": spec.seed,
        "digests": dict(digests),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what computed the result."""
    return {name: _version(name) for name in ("bitpress", "torch", "numpy")}


def layer_figures(
    network: nn.Module, order: Iterable[str], calibrated: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Describe every convolution and linear layer of the calibrated ``network``, in ``order``.

    ``calibrated`` gives ``name``, ``losses`` and ``seconds`` of the binarized ones.
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
        }
        for name in order
    ]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        # A source tree on the path, not installed.
        return "unknown"
