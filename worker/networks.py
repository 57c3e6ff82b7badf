"""The networks of a job, made again in any process from the files that its steps have left."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models import registry
from models.binarize import sign
from models.layers import BinaryConv2d, BinaryLinear
from models.preprocessing import InputSpec
from models.quantization import quantize_inputs, scales_of
from store.specs import CompressSpec
from worker.batch_norm import load_norms
from worker.calibration import CalibratedLayer, apply_layer, load_layer
from worker.job_files import FileRef, JobFiles

# The roles under which steps record their files.
MODEL = "model"
LAYER = "layer:"
BATCH_NORM = "batch_norm"
ACTIVATIONS = "activations"
TRAINING = "training"
FINE_TUNED = "fine_tuned"
PACKED = "packed"

Refs = Mapping[str, Mapping[str, Any]]


def input_spec(spec: CompressSpec) -> InputSpec:
    """Return what the job's network is fed."""
    return InputSpec(**spec.input.model_dump())


def architecture_arguments(spec: CompressSpec, classes: int) -> dict[str, Any]:
    """Return the arguments, next to the name, of `registry.build` and its like."""
    return {
        "channels": spec.input.channels,
        "height": spec.input.height,
        "width": spec.input.width,
        "classes": classes,
        "parameters": spec.architecture_parameters,
    }


def build_network(spec: CompressSpec, classes: int) -> nn.Module:
    """Build the job's network, untrained, in evaluation mode."""
    torch.manual_seed(spec.seed)
    network = registry.build(spec.architecture, **architecture_arguments(spec, classes))
    return network.eval().requires_grad_(False)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors as a safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def finished_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return the state of a fine-tuned network, codes of its binary layers as int8.

    `load_finished` puts it into a network of the same layers.
    """
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name, layer in network.named_modules():
        if isinstance(layer, BinaryConv2d | BinaryLinear):
            for member in ("weight", "extra_codes"):
                of_network = f"{name}.{member}".removeprefix(".")
                if of_network in tensors:
                    tensors[of_network] = sign(tensors[of_network]).to(torch.int8)
    return tensors


def load_finished(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give ``network``, which is calibrated, the weights of `finished_tensors`."""
    with torch.no_grad():
        # Copied into the parameters, which turns codes into float32.
        network.load_state_dict(dict(tensors))


class JobNetworks:
    """Rebuilds a job's networks from the files recorded so far."""

    def __init__(self, spec: CompressSpec, classes: int, files: JobFiles) -> None:
        self._spec = spec
        self._classes = classes
        self._files = files

    def full_precision(self, refs: Refs) -> nn.Module:
        """Return the network as the checkpoint gave it."""
        network = build_network(self._spec, self._classes)
        network.load_state_dict(load_file(self._resolve(refs[MODEL])))
        return network

    def calibrated(self, refs: Refs) -> nn.Module:
        """Return the network with every layer binarized that has been calibrated by now.

        Where the job rounds activations, its layers do, as soon as it is known to which levels.
        """
        network = self.full_precision(refs)
        for layer in self.layers(refs):
            apply_layer(network, layer)
        if BATCH_NORM in refs:
            load_norms(network, load_file(self._resolve(refs[BATCH_NORM])))
        if ACTIVATIONS in refs:
            scales = load_file(self._resolve(refs[ACTIVATIONS]))
            quantize_inputs(network, scales_of(scales))
        return network

    def fine_tuned(self, refs: Refs) -> nn.Module:
        """Return the network as fine-tuning left it."""
        network = self.calibrated(refs)
        load_finished(network, load_file(self._resolve(refs[FINE_TUNED])))
        return network

    def binarized(self, refs: Refs) -> nn.Module:
        """Return the network that is packed: the fine-tuned, or without one the calibrated."""
        return self.fine_tuned(refs) if FINE_TUNED in refs else self.calibrated(refs)

    def layers(self, refs: Refs, known: Collection[str] = ()) -> Iterator[CalibratedLayer]:
        """Yield the calibrated layers in the order they were made, but not those ``known``."""
        for role, ref in refs.items():
            if role.startswith(LAYER) and role.removeprefix(LAYER) not in known:
                yield load_layer(self._resolve(ref))

    def _resolve(self, ref: Mapping[str, Any]) -> Path:
        return self._files.resolve(FileRef.from_json(ref))
