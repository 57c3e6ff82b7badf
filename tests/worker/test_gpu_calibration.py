"""Calibration on a GPU: what is where, and what comes of it.

Where there is no GPU a simulated one shows whether all tensors come to it that have to: see
tests/worker/simulated_gpu.py.
"""

import copy
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.layers import BinaryConv2d
from models.preprocessing import InputSpec
from models.quantization import Scale
from store.errors import Unavailable
from worker import calibration, descent
from worker.accumulation import accumulate
from worker.activation_ranges import activation_scales
from worker.activations import layer_order
from worker.batch_norm import recalibrate_batch_norm
from worker.calibration import CalibratedLayer
from worker.calibration_images import CalibrationImages
from worker.exact_products import exact_products
from worker.frontier import Frontier
from worker.training.processes import check_devices, this_device

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
INPUT = InputSpec(3, 12, 12, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_the_simulated_gpu_refuses_what_a_gpu_refuses(simulated_gpu: Any) -> None:
    there = torch.ones(2, 3).to(GPU)
    assert there.device == GPU and (there[1:] * 2).device == GPU
    with pytest.raises(AssertionError, match="aten::add meets a tensor of the CPU"):
        there + torch.ones(2, 3)
    assert not simulated_gpu.waits
    there[0] *= 5
    assert float(there.sum()) == 18.0
    assert simulated_gpu.waits == ["aten::_local_scalar_dense"]
    assert type(there.to("cpu")) is Tensor


class Net(nn.Module):
    """Convolutions, a residual sum, batch norms, and a linear layer of more inputs than images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm_two = nn.BatchNorm2d(8)
        self.last = nn.Linear(8 * 36, 5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = (self.norm_two(self.second(x)) + x).relu()
        logits: Tensor = self.last(x.flatten(1))
        return logits


class Pixels:
    """Smooth images in memory, (N, H, W, C) uint8."""

    def __init__(self, count: int) -> None:
        coarse = np.random.default_rng(5).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        self.array = coarse.repeat(3, axis=1).repeat(3, axis=2)

    def __len__(self) -> int:
        return len(self.array)

    def pixels(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.array[start:stop]


IMAGES = CalibrationImages(Pixels(24), INPUT, mirror=True)
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("bwn", {}),
    ("bwnh", {"sweeps": 3, "bases": 1, "positions": 400}),
    (
        "bwnh",
        {
            **{"sweeps": 3, "positions": 400, "starts": ("sign", "greedy", "random")},
            **{"bit_pairs": 4, "correction": 0.1, "ridge": 0.01, "blocks": True},
            **{"bases": 2, "bases_above": 0.0, "bases_budget": 9.0},
        },
    ),
    (
        "bwnh",
        {"sweeps": 2, "bases": 1, "eliminate_scale": False, "target": "binarized", "offset": False},
    ),
]


def calibrated(
    device: torch.device, method: str, parameters: dict[str, Any]
) -> tuple[list[CalibratedLayer], dict[str, Scale], dict[str, Tensor]]:
    """Calibrate a whole network on ``device``; return layers, activation scales, batch norms."""
    full = Net().to(device)
    binarized, images = copy.deepcopy(full), replace(IMAGES, device=device)
    frontier = Frontier(images.batches)
    layers = [
        calibration.calibrate_next(
            full,
            binarized,
            name,
            images,
            method=method,
            parameters=parameters,
            seed=0,
            progress=lambda *_: None,
            recalibrate=True,
            frontier=frontier,
        )
        for name in layer_order(full, INPUT.shape)
    ]
    assert isinstance(binarized.first, BinaryConv2d)
    assert binarized.first.weight.device == device
    norms = recalibrate_batch_norm(binarized, images, lambda *_: None)
    return layers, activation_scales(binarized, images, "mse", lambda *_: None), norms


def tensors_of(layer: CalibratedLayer) -> dict[str, Tensor]:
    own = {"codes": layer.codes, "scale": layer.scale, **layer.norms}
    return own if layer.offset is None else {**own, "offset": layer.offset}


@pytest.mark.parametrize(("method", "parameters"), METHODS)
def test_a_calibration_stays_on_its_device_and_gives_what_the_cpu_gives(
    method: str,
    parameters: dict[str, Any],
    simulated_gpu: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, scales, norms = calibrated(CPU, method, parameters)
    waits, sweep = [], descent._sweep

    def watched(*arguments: Any) -> Tensor:
        before = len(simulated_gpu.waits)
        turned = sweep(*arguments)
        waits.append(simulated_gpu.waits[before:])
        return turned

    monkeypatch.setattr(descent, "_sweep", watched)
    found, found_scales, found_norms = calibrated(GPU, method, parameters)
    assert bool(waits) == (method == "bwnh")
    assert not any(waits)
    for one, other in zip(found, expected, strict=True):
        assert one.name == other.name
        # Sums over several bases are grouped otherwise there, and rounded otherwise.
        assert one.losses == pytest.approx(other.losses, rel=1e-5)
        close(tensors_of(one), tensors_of(other))
    close(found_norms, norms)
    assert found_scales == scales


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert type(tensor) is Tensor
        exactly = {"rtol": 0, "atol": 0} if name == "codes" else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(tensor, expected[name], **exactly)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@gpu
@needs_gpu
@pytest.mark.parametrize(("method", "parameters"), METHODS)
def test_a_gpu_calibrates_as_a_cpu(method: str, parameters: dict[str, Any]) -> None:
    expected, scales, norms = calibrated(CPU, method, parameters)
    found, found_scales, found_norms = calibrated(GPU, method, parameters)
    for one, other in zip(found, expected, strict=True):
        tensors = tensors_of(one)
        assert {tensor.device for tensor in tensors.values()} == {CPU}
        assert {name: tensor.shape for name, tensor in tensors.items()} == {
            name: tensor.shape for name, tensor in tensors_of(other).items()
        }
        # What the later layers are fed differs in rounding, and so may some bits of so few filters.
        assert one.losses[-1:] == pytest.approx(other.losses[-1:], rel=0.1, abs=5e-3)
    # The first layer sees the images themselves, so that rounding alone is between the two.
    assert found[0].losses[-1:] == pytest.approx(expected[0].losses[-1:], rel=1e-3)
    assert found_scales.keys() == scales.keys()
    assert {tensor.device for tensor in found_norms.values()} == {CPU}
    assert found_norms.keys() == norms.keys()
    again, *_ = calibrated(GPU, method, parameters)
    for one, other in zip(found, again, strict=True):
        same(tensors_of(one), tensors_of(other))


@gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("samples", [2000, 100])
def test_statistics_of_a_gpu_are_of_whole_float32(samples: int, precision: str) -> None:
    generator = torch.Generator().manual_seed(6)
    seen = torch.randn(samples, 300, generator=generator)
    targets = torch.randn(samples, 40, generator=generator)
    exact = accumulate([(seen, targets)], 300, 40, samples)
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        with exact_products():
            pieces = zip(seen.cuda().split(900), targets.cuda().split(900), strict=True)
            found = accumulate(pieces, 300, 40, samples, GPU)
    finally:
        matmul.fp32_precision = before
    every = slice(0, 300)
    for one, other in (
        (found.gram_block(every), exact.gram_block(every)),
        (found.projection, exact.projection),
        (found.energy, exact.energy),
    ):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-5, atol=1e-6)


def test_exact_products_are_asked_for_and_taken_back() -> None:
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn

    def state() -> tuple[Any, ...]:
        precisions = matmul.fp32_precision, cudnn.conv.fp32_precision
        return (*precisions, cudnn.deterministic, cudnn.benchmark)

    before = state()
    try:
        matmul.fp32_precision, cudnn.benchmark = "tf32", True
        asked = state()
        with pytest.raises(ZeroDivisionError), exact_products():
            assert state() == ("ieee", "ieee", True, False)
            raise ZeroDivisionError
        assert state() == asked
    finally:
        matmul.fp32_precision, _, cudnn.deterministic, cudnn.benchmark = (*before[:2], *before[2:])
    assert state() == before


def cuda_is_here(monkeypatch: pytest.MonkeyPatch, here: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def test_where_a_worker_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_is_here(monkeypatch, False)
    assert this_device() == this_device("cpu") == CPU
    with pytest.raises(Unavailable, match="none that torch can use") as caught:
        this_device("cuda")
    assert "BITPRESS_DEVICE" in (caught.value.remedy or "")
    cuda_is_here(monkeypatch, True)
    assert this_device() == this_device("cuda") == GPU
    assert this_device("cpu") == CPU
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert this_device() == torch.device("cuda", 1)


def test_each_process_has_a_gpu_of_its_own_unless_all_are_to_use_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda_is_here(monkeypatch, True)
    check_devices(2, GPU)
    check_devices(3, CPU)
    with pytest.raises(Unavailable, match=r"3 processes.* 2 GPUs"):
        check_devices(3, GPU)


def test_calibration_on_a_gpu_without_triton_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "models.kernels.triton.bit_updates", None)
    with pytest.raises(Unavailable, match="needs Triton") as caught:
        descent.block_step(GPU)
    assert "BITPRESS_DEVICE=cpu" in (caught.value.remedy or "")


def test_a_gpu_keeps_what_a_share_of_its_free_memory_holds(simulated_gpu: Any) -> None:
    network = Net().to(GPU)
    frontier = Frontier(replace(IMAGES, device=GPU).batches)
    assert next(frontier.inputs(network, "second")).input.device == GPU
    (progress,) = frontier._kept.values()
    assert progress is not None and progress.most_bytes == 2**28
