"""Settings of the worker, read from the environment (``BITPRESS_...``)."""

from typing import Literal

from pydantic import Field

from models.cores import usable_cores
from store.settings import DEFAULT_CACHE_BYTES, StoreSettings


class WorkerSettings(StoreSettings):
    """Where the worker finds its work, and how it tells others that it is alive."""

    worker_threads: int = Field(
        default_factory=usable_cores,
        ge=1,
        description="Threads that calibration and evaluation use; all cores by default.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where jobs calibrate, fine-tune and evaluate all but packed networks, which "
        "run on the runtime: `cpu`, `cuda`, an NVIDIA GPU, or `auto`, the GPU where there is one.",
    )
    training_processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes that fine-tune a job together, each with its share of the threads; "
        "on a machine with GPUs one for each.",
    )
    max_cache_bytes: int = Field(
        default=DEFAULT_CACHE_BYTES,
        ge=0,
        description="Largest decoded dataset that is kept; a larger one is decoded when read.",
    )
    queue_poll_s: float = Field(
        default=1.0, gt=0, description="Seconds between two looks for queued jobs."
    )
    lease_beat_s: float = Field(
        default=5.0, gt=0, description="Seconds between two signs of life of a worker."
    )
    lease_ttl_s: float = Field(
        default=30.0,
        gt=0,
        description="Seconds without a sign of life after which others take a worker's jobs over.",
    )
    stop_timeout_s: int = Field(
        default=10, ge=1, description="Seconds that a stopping worker waits for its job to let go."
    )
