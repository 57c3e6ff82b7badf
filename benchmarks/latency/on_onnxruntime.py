"""An ONNX model on ONNX Runtime's CPU provider, with all its optimisations.

Its threads spin for some 30 ms after a run, as they do by default, which makes the next run fast
and everything else on the machine slow for so long: see `benchmarks.latency.alternation`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray

from benchmarks.latency.runtimes import Run
from models.plan import INPUT


def load(file: Path, threads: int) -> Run:
    """Load an ONNX model."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.float32]) -> NDArray[Any]:
        logits: NDArray[Any] = session.run(None, {INPUT: images})[0]
        return logits

    return run
