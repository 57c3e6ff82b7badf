"""How long calibration takes on the GPU: all layers of a network by BWNH, as a job does it.

As in a job of default parameters every image also comes mirrored. What is not timed is a job's
reading and decoding of images: they are noise, in memory.
"""

import copy
import time
from collections.abc import Callable
from typing import Final

import torch

from benchmarks.gpu_measuring.nets import SEED, Source, float_network, noise, silent
from worker.activations import layer_order
from worker.calibration import calibrate_next
from worker.calibration_images import CalibrationImages
from worker.frontier import Frontier

METHOD: Final = "bwnh"
IMAGES: Final = 1000


def calibration_seconds(
    source: Source,
    images: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Calibrate a network with drawn weights on ``images`` images of noise; return the seconds.

    Raises:
        InvalidSpec: the network has a layer that cannot be calibrated.
    """
    full = float_network(source).to(device)
    drawn = noise(source.fed, images)
    fed = CalibrationImages(drawn.source, source.fed, mirror=True, device=device)
    order = layer_order(full, source.fed.shape)
    begun = clock()
    binarized, frontier = copy.deepcopy(full), Frontier(fed.batches)
    for name in order:
        calibrate_next(
            full,
            binarized,
            name,
            fed,
            method=METHOD,
            parameters={},
            seed=SEED,
            progress=silent,
            frontier=frontier,
        )
    # Each layer's codes are on the CPU by now, so nothing is left to wait for.
    return clock() - begun
