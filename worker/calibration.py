"""Calibration: binarize a network layer by layer, on unlabelled images and without gradients.

The full-precision network stays as it is; the binarized one starts as its copy and loses one float
layer after the other, in the order of execution. A layer needs nothing but the images and the
results of the layers before it: an interrupted calibration goes on from the files of the finished
layers, and no activation map is ever written to disk. While it runs, a `Frontier` keeps in memory
what the next layer is fed.

All of it takes place where the two networks and the images are, on a CPU or a GPU. What comes of it
is on the CPU.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.layers import (
    BinaryConv2d,
    BinaryLinear,
    binarizable_layers,
    binarize_layer,
    replace_layer,
)
from worker.accumulation import accumulate
from worker.activations import (
    Layer,
    PositionSampler,
    at_positions,
    device_of,
    filter_rows,
    filters_of,
    input_of,
    output_positions,
    patches,
    responses,
)
from worker.batch_norm import estimate_norms, load_norms, norms_behind
from worker.calibration_images import CalibrationImages
from worker.exact_products import exact_products
from worker.frontier import Fed, Frontier
from worker.methods import METHODS
from worker.methods.protocol import LayerProblem, Target
from worker.progress import Progress
from worker.statistics import LayerStatistics

# A batch norm whose gain is less lets nothing through.
LEAST_GAIN = 1e-6

# Before the names of batch norms' buffers in a calibrated layer's file.
_NORM = "norm:"


@dataclass(frozen=True)
class CalibratedLayer:
    """One binarized layer.

    Attributes:
        name: the module's name in the network.
        codes: -1 or +1, int8, of the weight's shape (N, C, kh, kw) or (N, S); of K > 1 bases with
            a first axis of bases.
        scale: one scale per filter, shape (N,), or per basis and filter (K, N), float32.
        losses: relative squared error at the start, after every sweep and with every further basis
            (see `BinaryFilters`).
        offset: added to the bias, shape (N,), float32, or None.
        norms: running statistics of the batch norms right behind the layer, by the buffer's name,
            where they were re-estimated.
    """

    name: str
    codes: Tensor
    scale: Tensor
    losses: tuple[float, ...]
    offset: Tensor | None = None
    norms: Mapping[str, Tensor] = field(default_factory=dict)


def calibrate_next(
    full: nn.Module,
    binarized: nn.Module,
    name: str,
    images: CalibrationImages,
    *,
    method: str,
    parameters: Mapping[str, Any],
    seed: int,
    progress: Progress,
    recalibrate: bool = False,
    frontier: Frontier | None = None,
) -> CalibratedLayer:
    """Binarize layer ``name`` and put it into ``binarized``, which is changed in place.

    The arguments are those of `calibrate_layer`; with ``recalibrate`` the batch norms right behind
    the layer are estimated again, now that the layer is binary.
    """
    frontier = frontier or Frontier(images.batches)
    calibrated = calibrate_layer(
        full,
        binarized,
        name,
        images,
        method=method,
        parameters=parameters,
        seed=seed,
        progress=progress,
        frontier=frontier,
    )
    apply_layer(binarized, calibrated)
    if recalibrate:
        norms = norms_behind(binarized, name, images.spec.shape)
        buffers = estimate_norms(binarized, norms, frontier, progress)
        calibrated = replace(calibrated, norms=buffers)
    return calibrated


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
    frontier: Frontier | None = None,
) -> CalibratedLayer:
    """Binarize layer ``name``; both networks are in evaluation mode and stay as they are.

    ``parameters`` are the method's own, as `store.specs` declares them. ``progress`` takes the
    fraction of this layer's work that is done, and a short message. ``frontier`` keeps the layer's
    inputs for the next one, see `worker.frontier`.

    Raises:
        InvalidSpec: the layer cannot be calibrated (grouped, or not reached by a forward pass).
    """
    layer = full.get_submodule(name)
    assert isinstance(layer, Layer)
    inputs = _LayerInputs(full, binarized, name, images, frontier or Frontier(images.batches))

    def statistics(target: Target, positions: int, blocks: bool) -> LayerStatistics:
        return inputs.statistics(target, positions, blocks, seed, progress)

    def report(fraction: float, message: str, details: Mapping[str, Any] | None = None, /) -> None:
        told = {"layer": name, **(details or {})}
        progress(0.5 + 0.5 * fraction, f"{name}: {message}", told)

    with torch.inference_mode(), exact_products():
        problem = LayerProblem(
            filter_rows(layer, layer.weight.detach().float()),
            statistics,
            report,
            seed=seed,
            network_bits=sum(one.weight.numel() for one in binarizable_layers(full).values()),
            further_bits=_further_bits(binarized),
        )
        filters = METHODS[method].binarize(problem, **parameters)
    return CalibratedLayer(
        name,
        _copied(filters_of(layer, filters.codes.to(torch.int8))),
        _copied(filters.scale),
        filters.losses,
        None if filters.offset is None else _copied(filters.offset),
    )


def _copied(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", copy=True)


def _further_bits(network: nn.Module) -> int:
    return sum(
        (layer.bases - 1) * layer.weight.numel()
        for layer in network.modules()
        if isinstance(layer, BinaryConv2d | BinaryLinear)
    )


@dataclass(frozen=True)
class _LayerInputs:
    """What one layer is fed in both networks, and what it is to answer."""

    full: nn.Module
    binarized: nn.Module
    name: str
    images: CalibrationImages
    frontier: Frontier

    def statistics(
        self, target: Target, positions: int, blocks: bool, seed: int, progress: Progress
    ) -> LayerStatistics:
        """Stream the layer's patches in the binarized network, with the targets of ``target``."""
        layer = self.full.get_submodule(self.name)
        assert isinstance(layer, Layer)
        first = next(self.images.batches())[:1]
        height, width = output_positions(layer, input_of(self.full, self.name, first))
        available = min(positions, len(self.images) * height * width)
        sampler = PositionSampler(self.name, len(self.images), positions, seed)
        correction = self._block_correction() if blocks else None

        def chunks() -> Iterator[tuple[Tensor, Tensor]]:
            done = 0
            seen = self.frontier.inputs(self.binarized, self.name)
            if target == "binarized":
                pairs: Iterable[tuple[Fed, Fed]] = ((one, one) for one in seen)
            else:
                # Strict for more than the check: zip then asks the second frontier once beyond its
                # last batch too, and only there does a frontier take note of what it has kept.
                pairs = zip(seen, self.frontier.inputs(self.full, self.name), strict=True)
            for fed, wanted in pairs:
                made = responses(layer, wanted.input)
                if correction is not None and fed.other is not None and wanted.other is not None:
                    made = made + correction * (wanted.other - fed.other)
                for chosen in sampler.choose(len(fed.input), height * width):
                    chosen = chosen.to(made.device)
                    done += len(chosen)
                    progress(
                        min(0.5 * done / available, 0.5), f"{self.name}: collecting statistics"
                    )
                    yield patches(layer, fed.input, chosen), at_positions(made, chosen)

        inputs = filter_rows(layer, layer.weight).shape[1]
        return accumulate(chunks(), inputs, len(layer.weight), available, layer.weight.device)

    def _block_correction(self) -> Tensor | None:
        """Return what an error of the block's other side weighs before the batch norm, (N, 1, 1).

        A filter whose batch norm lets nothing through gets 0.
        """
        block = self.frontier.block(self.binarized, self.name)
        if block is None:
            return None
        if block.norm is None:
            return torch.ones(1, 1, 1, device=device_of(self.binarized))
        norm = self.binarized.get_submodule(block.norm)
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.running_var is not None
        gain = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
        return torch.where(gain.abs() > LEAST_GAIN, 1 / gain, 0.0)[:, None, None]


def apply_layer(network: nn.Module, calibrated: CalibratedLayer) -> None:
    """Put the binary form of a calibrated layer in the place of its float one."""
    layer = network.get_submodule(calibrated.name)
    assert isinstance(layer, Layer)
    binary = binarize_layer(layer, calibrated.codes, calibrated.scale, calibrated.offset)
    replace_layer(network, calibrated.name, binary)
    if calibrated.norms:
        load_norms(network, calibrated.norms)


def save_layer(calibrated: CalibratedLayer, path: Path) -> None:
    """Write a calibrated layer as one safetensors file."""
    tensors = {
        "codes": calibrated.codes.contiguous(),
        "scale": calibrated.scale,
        "losses": torch.tensor(calibrated.losses, dtype=torch.float64),
        **{f"{_NORM}{name}": buffer for name, buffer in calibrated.norms.items()},
    }
    if calibrated.offset is not None:
        tensors["offset"] = calibrated.offset
    save_file(tensors, path, metadata={"name": calibrated.name})


def load_layer(path: Path) -> CalibratedLayer:
    """Read back what `save_layer` wrote."""
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        return CalibratedLayer(
            file.metadata()["name"],
            file.get_tensor("codes"),
            file.get_tensor("scale"),
            tuple(file.get_tensor("losses").tolist()),
            file.get_tensor("offset") if "offset" in names else None,
            {
                name.removeprefix(_NORM): file.get_tensor(name)
                for name in sorted(names)
                if name.startswith(_NORM)
            },
        )
