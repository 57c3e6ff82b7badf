"""The networks that are timed: float, and with 1-bit weights.

The weights of VGG-9 are the shared checkpoint's. The others have none here: they keep the weights
they are initialised with, drawn from a seed, and get batch norm statistics of real images, so that
activations have the sizes of a trained network's. Every layer becomes binary, the first and the
last one too, by the signs of its weights and a scale per filter (BWN); batch norm is estimated
again, and what layers are fed is rounded to 8 bits as a job does it.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from benchmarks.latency.images import SHARED, are_real, images
from models import registry
from models.artifact import Artifact
from models.layers import binarizable_layers, binarize_layer, replace_layer
from models.lowering import lower
from models.plan import Plan
from models.preprocessing import InputSpec
from models.quantization import quantize_inputs
from worker.activation_ranges import activation_scales
from worker.activations import filter_rows, filters_of
from worker.batch_norm import recalibrate_batch_norm
from worker.calibration_images import CalibrationImages
from worker.methods.protocol import sign_and_mean_magnitude

SEED: Final = 0
_IMAGES: Final = 32  # that batch norm and ranges of activations are taken from
_TIMED: Final = 32  # other images, to time and to compare answers on
_CIFAR: Final = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Source:
    """Where a network comes from; without a checkpoint its weights are drawn."""

    architecture: str
    fed: InputSpec
    classes: int
    checkpoint: Path | None = None


def _imagenet(architecture: str) -> Source:
    return Source(architecture, InputSpec(3, 224, 224, *_IMAGENET), 1000)


SOURCES: Final[Mapping[str, Source]] = {
    "vgg9": Source(
        "vgg9",
        InputSpec(3, 32, 32, *_CIFAR),
        10,
        SHARED / "checkpoints/vgg9_cifar10.safetensors",
    ),
    **{name: _imagenet(name) for name in ("resnet18", "alexnet", "resnet50")},
}


@dataclass(frozen=True)
class Net:
    """A network in every form: float, and with 1-bit weights on float and on 8-bit activations.

    ``about`` says in words where weights and images are from; ``timed`` are images (n, C, H, W)
    that nothing was calibrated on.
    """

    name: str
    network: nn.Module
    w1a32: Artifact
    w1a8: Artifact
    calibration: CalibrationImages
    timed: NDArray[np.float32]
    about: str

    @property
    def plan(self) -> Plan:
        """The plan of the network with 1-bit weights."""
        return self.w1a32.plan


def make_net(name: str, source: Source) -> Net:
    """Build, calibrate and lower a network."""
    calibration = images(source.fed, "train", _IMAGES)
    network, about = _network(source, calibration)
    binary = _binarized(network, calibration)
    rounded = copy.deepcopy(binary)
    quantize_inputs(rounded, activation_scales(binary, calibration, "mse", _silent))
    return Net(
        name=name,
        network=network,
        w1a32=_lowered(binary, source),
        w1a8=_lowered(rounded, source),
        calibration=calibration,
        timed=torch.cat(list(images(source.fed, "test", _TIMED).batches())).numpy(),
        about=about,
    )


def _network(source: Source, calibration: CalibrationImages) -> tuple[nn.Module, str]:
    channels, height, width = source.fed.shape
    torch.manual_seed(SEED)
    network = registry.build(
        source.architecture,
        channels=channels,
        height=height,
        width=width,
        classes=source.classes,
        parameters={},
    )
    network = network.eval().requires_grad_(False)
    fed = "real images" if are_real() else "noise"
    if source.checkpoint is not None and source.checkpoint.is_file():
        network.load_state_dict(load_file(source.checkpoint))
        return network, f"trained weights, {fed}"
    recalibrate_batch_norm(network, calibration, _silent)
    return network, f"weights drawn from seed {SEED}, batch norm of {fed}"


def _binarized(network: nn.Module, calibration: CalibrationImages) -> nn.Module:
    """Return a copy whose layers are all binary."""
    binary = copy.deepcopy(network)
    for name, layer in binarizable_layers(binary).items():
        codes, scale = sign_and_mean_magnitude(filter_rows(layer, layer.weight))
        replace_layer(binary, name, binarize_layer(layer, filters_of(layer, codes), scale))
    recalibrate_batch_norm(binary, calibration, _silent)
    return binary


def _lowered(network: nn.Module, source: Source) -> Artifact:
    plan, tensors = lower(network, source.fed.shape)
    labels = tuple(f"class{label}" for label in range(source.classes))
    return Artifact(plan, tensors, source.fed, labels, {}, {})


def _silent(_fraction: float, _message: str, _details: object = None) -> None:
    """Take the progress of what takes seconds."""
