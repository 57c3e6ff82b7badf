"""What a job's stages and layers will take, foreseen once its network and images are known.

For the progress and the estimated end only: what counts is how the figures stand to each other.
"""

from typing import Any

from models import runtime
from models.machine_rate import macs_per_second
from models.workload import workload
from store.job_cost import (
    ForeseenJob,
    JobImages,
    Machine,
    layer_seconds,
    stage_seconds,
    usual_bases,
)
from store.specs import CompressSpec
from worker.data import Splits
from worker.settings import WorkerSettings


def foreseen_seconds(
    spec: CompressSpec, settings: WorkerSettings, classes: int, splits: Splits, image_bytes: int
) -> dict[str, Any]:
    """Return the seconds of each stage, ``stages``, and of each layer's calibration, ``layers``."""
    work = workload(
        spec.architecture,
        channels=spec.input.channels,
        height=spec.input.height,
        width=spec.input.width,
        classes=classes,
        parameters=spec.architecture_parameters,
    )
    images = JobImages(
        train=len(splits.train),
        val=len(splits.val),
        test=len(splits.test),
        calibration=min(spec.calibration_images, len(splits.train)),
        bytes=image_bytes,
    )
    job = ForeseenJob(
        spec,
        work,
        usual_bases(spec, work.layers),
        images,
        runtime.choose(settings.runtime),
        settings.max_cache_bytes,
    )
    threads = settings.worker_threads
    machine = Machine(threads, threads * macs_per_second())
    return {
        "stages": _rounded(stage_seconds(job, machine)),
        "layers": _rounded(layer_seconds(job, machine)),
    }


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in seconds.items()}
