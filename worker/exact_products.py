"""Arithmetic on a GPU that calibration and evaluation can rely on: whole float32, twice the same.

Where nothing else is asked for, torch lets a GPU's convolutions round what they multiply to 10 bits
(TF32). The differences that calibration decides by are often smaller than that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact_products() -> Iterator[None]:
    """Have float32 products computed in float32, by algorithms that give the same bits every time.

    This is of the whole process, and as before afterwards; on a CPU nothing changes.
    """
    cudnn: Any = torch.backends.cudnn
    parts: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv)
    precisions = [part.fp32_precision for part in parts]
    deterministic, benchmark = cudnn.deterministic, cudnn.benchmark
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    finally:
        for part, precision in zip(parts, precisions, strict=True):
            part.fp32_precision = precision
        cudnn.deterministic, cudnn.benchmark = deterministic, benchmark
