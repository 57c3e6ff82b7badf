"""The files that the runtimes are given, one for each: what a network takes on the disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.latency.folding import without_batch_norm
from benchmarks.latency.nets import Net
from benchmarks.latency.runtimes import RUNTIMES
from models import artifact
from models.lowering import lower
from models.plan import INPUT
from worker.calibration_images import CalibrationImages


def write_files(net: Net, folder: Path, runtimes: tuple[str, ...] = RUNTIMES) -> dict[str, Path]:
    """Write what each runtime loads into ``folder``; return the files by runtime.

    Raises:
        ImportError: a rival's packages are not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for runtime in runtimes:
        match runtime:
            case "w1a32" | "w1a8":
                found[runtime] = folder / f"{runtime}.safetensors"
                artifact.write(getattr(net, runtime), found[runtime])
            case "ort_fp32":
                found[runtime] = folder / "fp32.onnx"
                _write_onnx(net, found[runtime])
            case "ort_int8":
                found[runtime] = folder / "int8.onnx"
                _write_onnx_int8(found["ort_fp32"], net.calibration, found[runtime])
            case "torch_fp32" | "torch_bf16":
                found[runtime] = folder / f"{runtime}.pt"
                torch.save(_for_torch(net.network, runtime), found[runtime])
    return found


def _for_torch(network: nn.Module, runtime: str) -> nn.Module:
    """Return a copy as torch runs it fastest without a compiler.

    Batch norm is folded into the layers and tensors are channels last, which is faster in float32
    too.
    """
    folded = without_batch_norm(network)
    if runtime == "torch_bf16":
        folded = folded.to(torch.bfloat16)
    last: nn.Module = folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return last


def _write_onnx(net: Net, path: Path) -> None:
    import onnx

    from benchmarks.latency.onnx_graph import onnx_model

    onnx.save(onnx_model(*lower(net.network, net.plan.input_shape)), path)


def _write_onnx_int8(float_model: Path, images: CalibrationImages, path: Path) -> None:
    """Quantize as ONNX Runtime's documentation advises for x86 with VNNI.

    Static, ``QuantizeLinear`` and ``DequantizeLinear`` around every operator, weights int8 with a
    scale per channel, activations uint8 (int8 ones take three times as long), ranges from the
    least and greatest numbers.
    """
    from onnxruntime.quantization import (  # type: ignore[import-untyped]
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import (  # type: ignore[import-untyped]
        quant_pre_process,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands out the calibration images batch by batch."""

        def __init__(self) -> None:
            self._batches: Iterator[torch.Tensor] = images.batches()

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(float_model, prepared)
    quantize_static(
        prepared,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    prepared.unlink()
