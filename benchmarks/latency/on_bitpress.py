"""An artifact on bitpress's CPU engine."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.latency.runtimes import Run
from models import artifact, runtime


def load(file: Path, threads: int) -> Run:
    """Load an artifact; where the engine cannot run it, no other runtime takes its place."""
    served = runtime.load(artifact.read(file), "cpu", threads)

    def run(images: NDArray[np.float32]) -> NDArray[Any]:
        logits: NDArray[Any] = served.run(torch.from_numpy(images)).numpy()
        return logits

    return run
