"""An artifact on bitpress's fastest runtime here."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.latency.runtimes import Run
from models import artifact, runtime


def load(file: Path, threads: int) -> Run:
    """Load an artifact; a fastest runtime that cannot run it is an error, not passed over."""
    served = runtime.load(artifact.read(file), runtime.choose(), threads)

    def run(images: NDArray[np.float32]) -> NDArray[Any]:
        logits: NDArray[Any] = served.run(torch.from_numpy(images)).numpy()
        return logits

    return run
