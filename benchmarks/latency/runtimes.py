"""The runtimes that are compared, each behind one function: load a file, run a batch.

A runtime's module is imported only where it is asked for: a process that measures the memory of
one shall not hold the others.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# Logits (N, classes) of float32 images (N, C, H, W).
Run = Callable[[NDArray[np.float32]], NDArray[Any]]
Load = Callable[[Path, int], Run]

_MODULES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "w1a32": "on_bitpress",
        "w1a8": "on_bitpress",
        "ort_fp32": "on_onnxruntime",
        "ort_int8": "on_onnxruntime",
        "torch_fp32": "on_torch",
        "torch_bf16": "on_torch",
    }
)
RUNTIMES: Final = tuple(_MODULES)


def loader(runtime: str) -> Load:
    """Import a runtime; return what loads a file of its kind, to run in so many threads.

    Raises:
        ImportError: it is not installed.
    """
    module = importlib.import_module(f"benchmarks.latency.{_MODULES[runtime]}")
    load: Load = module.load
    return load
