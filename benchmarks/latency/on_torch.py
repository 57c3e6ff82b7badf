"""A torch module in eager mode: no compiler, which a server would have to wait for."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.latency.runtimes import Run


def load(file: Path, threads: int) -> Run:
    """Load a module saved whole; the number of threads holds for all of torch."""
    torch.set_num_threads(threads)
    # A file of `benchmarks.latency.files`, not one that somebody sent.
    network = torch.load(file, weights_only=False)
    dtype = next(network.parameters()).dtype

    def run(images: NDArray[np.float32]) -> NDArray[Any]:
        with torch.inference_mode():
            fed = torch.from_numpy(images).to(dtype, memory_format=torch.channels_last)
            logits: NDArray[Any] = network(fed).float().numpy()
        return logits

    return run
