"""Products of signs with bits on NVIDIA GPUs: CUDA C++ that is compiled where it first runs.

For what Triton has no words for: tensor cores that count bits. Where they know none, or a layer has
groups of odd sizes, ordinary instructions count them (`configurations.candidates` says which).
"""

from models.kernels.cuda.configurations import (
    Configuration,
    Popcount,
    Tiles,
    candidates,
    heuristic,
)
from models.kernels.cuda.operators import launch_product
from models.kernels.cuda.tuning import choose
from models.kernels.cuda.weight_sums import tap_sums

__all__ = [
    "Configuration",
    "Popcount",
    "Tiles",
    "candidates",
    "choose",
    "heuristic",
    "launch_product",
    "tap_sums",
]
