"""The networks that are timed: float, and with 1-bit weights on float and on 8-bit activations.

All weights and images are drawn from a seed, and nothing is read from anywhere: how long a network
takes does not depend on them. Batch norms get the statistics of those images, so that activations
have the sizes of a trained network's. Every layer becomes binary, the first and the last one too,
by the signs of its weights and a scale per filter; what layers are fed is rounded to 8 bits that
cover all of it.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import registry
from models.artifact import Artifact
from models.layers import binarizable_layers, binarize_layer, replace_layer
from models.lowering import lower
from models.preprocessing import InputSpec
from models.quantization import quantize_inputs
from worker.activation_ranges import activation_scales
from worker.activations import filter_rows, filters_of
from worker.calibration_images import CalibrationImages
from worker.methods.protocol import sign_and_mean_magnitude

SEED: Final = 0
_IMAGES: Final = 8  # that batch norm and the ranges of activations are taken from


@dataclass(frozen=True)
class Source:
    """An architecture, what it is fed and how many classes it tells apart."""

    architecture: str
    fed: InputSpec
    classes: int


@dataclass(frozen=True)
class Net:
    """A network in every form, on the CPU and in evaluation mode."""

    name: str
    network: nn.Module
    w1a16: Artifact
    w1a8: Artifact

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of an image."""
        return self.w1a16.plan.input_shape


@dataclass(frozen=True)
class Pixels:
    """Noise, uint8 ``(n, H, W, C)``, as `CalibrationImages` reads images."""

    images: NDArray[np.uint8]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def pixels(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return images ``start`` to ``stop``."""
        return self.images[start:stop]


def _of_pixels(architecture: str, side: int, classes: int) -> Source:
    return Source(architecture, InputSpec(3, side, side, (0.5,) * 3, (0.25,) * 3), classes)


SOURCES: Final[Mapping[str, Source]] = MappingProxyType(
    {
        "vgg9": _of_pixels("vgg9", 32, 10),
        "resnet18": _of_pixels("resnet18", 224, 1000),
        "resnet50": _of_pixels("resnet50", 224, 1000),
        "alexnet": _of_pixels("alexnet", 224, 1000),
    }
)


def noise(fed: InputSpec, count: int) -> CalibrationImages:
    """Return ``count`` images of noise."""
    shape = (count, fed.height, fed.width, fed.channels)
    pixels = np.random.default_rng(SEED).integers(0, 256, shape, dtype=np.uint8)
    return CalibrationImages(Pixels(pixels), fed)


def timed_images(net: Net, count: int) -> Tensor:
    """Return float32 images ``(count, C, H, W)`` that the network is timed on."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return torch.randn(count, *net.input_shape, generator=generator)


def float_network(source: Source) -> nn.Module:
    """Return an architecture with drawn weights and the batch norms that belong to them."""
    channels, height, width = source.fed.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = registry.build(
            source.architecture,
            channels=channels,
            height=height,
            width=width,
            classes=source.classes,
            parameters={},
        )
    network.requires_grad_(False)
    _estimate_norms(network, noise(source.fed, _IMAGES))
    return network


def make_net(name: str, source: Source) -> Net:
    """Build and lower a network in all its forms."""
    network, images = float_network(source), noise(source.fed, _IMAGES)
    binary = copy.deepcopy(network)
    for layer_name, layer in binarizable_layers(binary).items():
        codes, scale = sign_and_mean_magnitude(filter_rows(layer, layer.weight))
        binarized = binarize_layer(layer, filters_of(layer, codes), scale)
        replace_layer(binary, layer_name, binarized)
    _estimate_norms(binary, images)
    rounded = copy.deepcopy(binary)
    quantize_inputs(rounded, activation_scales(binary, images, "minmax", silent))
    return Net(name, network, _lowered(binary, source), _lowered(rounded, source))


def _estimate_norms(network: nn.Module, images: CalibrationImages) -> None:
    """Give every batch norm the statistics of a pass over the images; end in evaluation mode."""
    norms = [one for one in network.modules() if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches
        norm.train()
    with torch.inference_mode():
        for batch in images.batches():
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def _lowered(network: nn.Module, source: Source) -> Artifact:
    plan, tensors = lower(network, source.fed.shape)
    labels = tuple(f"class{label}" for label in range(source.classes))
    return Artifact(plan, tensors, source.fed, labels, {}, {})


def silent(_fraction: float, _message: str, _details: object = None) -> None:
    """Take the progress of what takes seconds."""
