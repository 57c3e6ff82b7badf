"""Calibration: binarize a network layer by layer, on unlabelled images and without gradients.

The full-precision network stays as it is; the binarized one starts as its copy and loses one float
layer after the other, in the order of execution. Every layer's activations are computed anew from
the images, so a layer needs nothing but the results of the layers before it: an interrupted
calibration goes on from the files of the finished layers, and no activation map is ever stored.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.layers import binarize_layer, replace_layer
from models.preprocessing import InputSpec, normalise
from store.errors import InvalidSpec
from worker.activations import (
    Layer,
    execution_order,
    input_of,
    layer_order,
    output_positions,
    sampled_patches,
)
from worker.methods import METHODS
from worker.methods.protocol import LayerProblem, Target
from worker.statistics import LayerStatistics, accumulate

Progress = Callable[[float, str], None]

# Images per forward pass: enough to keep the cores busy on small images, few enough to bound the
# activation maps of large ones.
MOST_IMAGES_PER_BATCH = 100
MOST_PIXELS_PER_BATCH = 800_000


class PixelSource(Protocol):
    """Images as they were decoded, read in pieces."""

    def __len__(self) -> int: ...

    def pixels(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return images ``start`` to ``stop``, (n, H, W, C)."""


@dataclass(frozen=True)
class CalibrationImages:
    """The images that the statistics are taken from, read and normalised batch by batch."""

    source: PixelSource
    spec: InputSpec

    def __len__(self) -> int:
        return len(self.source)

    def batches(self) -> Iterator[Tensor]:
        """Yield float32 batches (n, C, H, W)."""
        most = MOST_PIXELS_PER_BATCH // (self.spec.height * self.spec.width)
        step = max(min(most, MOST_IMAGES_PER_BATCH), 1)
        for start in range(0, len(self), step):
            yield normalise(self.source.pixels(start, start + step), self.spec)


@dataclass(frozen=True)
class CalibratedLayer:
    """One binarized layer.

    Attributes:
        name: the module's name in the network.
        codes: -1 or +1, int8, of the weight's shape (N, C, kh, kw) or (N, S).
        scale: one scale per filter, shape (N,), float32.
        losses: relative squared error at the start and after every sweep (see `BinaryFilters`).
    """

    name: str
    codes: Tensor
    scale: Tensor
    losses: tuple[float, ...]


def calibrate_layer(
    full: nn.Module,
    binarized: nn.Module,
    name: str,
    images: CalibrationImages,
    *,
    method: str,
    parameters: Mapping[str, Any],
    seed: int,
    progress: Progress,
) -> CalibratedLayer:
    """Binarize layer ``name``; both networks are in evaluation mode and stay as they are.

    ``parameters`` are the method's own, as `store.specs` declares them. ``progress`` takes the
    fraction of this layer's work that is done, and a short message.

    Raises:
        InvalidSpec: the layer cannot be calibrated (grouped, or not reached by a forward pass).
    """
    layer = full.get_submodule(name)
    assert isinstance(layer, Layer)
    weight = layer.weight.detach().float().flatten(1)

    def statistics(target: Target, positions: int) -> LayerStatistics:
        networks = (full, binarized) if target == "full_precision" else (binarized,)
        return _collect(layer, networks, name, images, positions, seed, progress)

    def report(fraction: float, message: str) -> None:
        progress(0.5 + 0.5 * fraction, f"{name}: {message}")

    with torch.inference_mode():
        problem = LayerProblem(weight, statistics, report)
        filters = METHODS[method].binarize(problem, **parameters)
    return CalibratedLayer(
        name,
        filters.codes.to(torch.int8).reshape(layer.weight.shape).clone(),
        filters.scale.clone(),
        filters.losses,
    )


def _collect(
    layer: Layer,
    networks: tuple[nn.Module, ...],
    name: str,
    images: CalibrationImages,
    positions: int,
    seed: int,
    progress: Progress,
) -> LayerStatistics:
    """Stream the layer's patches in ``networks`` (full precision first, binarized last)."""
    weight = layer.weight.detach().float().flatten(1)
    first = next(images.batches())[:1]
    height, width = output_positions(layer, input_of(networks[0], name, first))
    available = min(positions, len(images) * height * width)
    done = 0

    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal done
        for source, *rest in sampled_patches(
            layer, networks, name, images.batches, len(images), positions=positions, seed=seed
        ):
            done += len(source)
            progress(min(0.5 * done / available, 0.5), f"{name}: collecting statistics")
            yield rest[-1] if rest else source, source @ weight.T

    return accumulate(chunks(), weight.shape[1], weight.shape[0], available)


def apply_layer(network: nn.Module, calibrated: CalibratedLayer) -> None:
    """Put the binary form of a calibrated layer in the place of its float one."""
    layer = network.get_submodule(calibrated.name)
    assert isinstance(layer, Layer)
    replace_layer(
        network, calibrated.name, binarize_layer(layer, calibrated.codes, calibrated.scale)
    )


def recalibrate_batch_norm(
    network: nn.Module, images: CalibrationImages, progress: Progress
) -> dict[str, Tensor]:
    """Re-estimate the running statistics of every batch norm of ``network``, in place.

    One batch norm after the other, in the order of execution, gets mean and variance of what it is
    fed over all images, those before it being done: the result does not depend on batches. Returns
    the new buffers by name.

    Raises:
        InvalidSpec: a batch norm sees a single value per channel, of which there is no variance.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    buffers: dict[str, Tensor] = {}
    names = execution_order(network, images.spec.shape, kinds)
    with torch.inference_mode():
        for done, name in enumerate(names):
            progress(done / len(names), f"{name}: re-estimating batch norm")
            norm = network.get_submodule(name)
            assert isinstance(norm, kinds)
            assert norm.running_mean is not None and norm.running_var is not None
            mean, variance = _moments(input_of(network, name, batch) for batch in images.batches())
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            buffers[f"{name}.running_mean"] = norm.running_mean.clone()
            buffers[f"{name}.running_var"] = norm.running_var.clone()
    return buffers


def _moments(maps: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance per channel over maps (n, C, ...), in float64.

    The means and squared deviations of the parts are combined (Chan, Golub and LeVeque, 1979), as
    the difference of two large sums would lose what is left of them.
    """
    count = 0
    mean = squares = torch.zeros((), dtype=torch.float64)
    for part in maps:
        rows = part.transpose(0, 1).flatten(1).double()
        added = rows.shape[1]
        part_mean = rows.mean(dim=1)
        shift = part_mean - mean
        squares = squares + (rows - part_mean[:, None]).square().sum(dim=1)
        squares = squares + shift.square() * (count * added / (count + added))
        count += added
        mean = mean + shift * (added / count)
    if count < 2:
        raise InvalidSpec(
            "Batch-norm statistics need at least two images.",
            field="spec.calibration_images",
            remedy="Ask for more calibration images, or set recalibrate_batch_norm to never.",
        )
    return mean, squares / (count - 1)


def save_layer(calibrated: CalibratedLayer, path: Path) -> None:
    """Write a calibrated layer as one safetensors file."""
    tensors = {
        "codes": calibrated.codes.contiguous(),
        "scale": calibrated.scale,
        "losses": torch.tensor(calibrated.losses, dtype=torch.float64),
    }
    save_file(tensors, path, metadata={"name": calibrated.name})


def load_layer(path: Path) -> CalibratedLayer:
    """Read back what `save_layer` wrote."""
    with safe_open(path, framework="pt") as file:
        return CalibratedLayer(
            file.metadata()["name"],
            file.get_tensor("codes"),
            file.get_tensor("scale"),
            tuple(file.get_tensor("losses").tolist()),
        )


__all__ = [
    "CalibratedLayer",
    "CalibrationImages",
    "Progress",
    "apply_layer",
    "calibrate_layer",
    "layer_order",
    "load_layer",
    "recalibrate_batch_norm",
    "save_layer",
]
