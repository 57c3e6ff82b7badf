"""Settings of the HTTP front end, read from the environment (``BITPRESS_...``)."""

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from app.batcher import BatchLimits
from app.images import ImageLimits
from models import runtime as runtimes
from models.cores import usable_cores
from models.preprocessing import MAX_DECODED_PIXELS
from models.runtime.cpu import MAX_THREADS
from store.errors import Unavailable
from store.settings import StoreSettings

_MIB = 2**20


def _all_cores() -> int:
    return min(usable_cores(), MAX_THREADS)


class AppSettings(StoreSettings):
    """Where the service listens and what it accepts. Sizes are in bytes."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(
        default=8000, ge=0, le=65_535, description="Port to listen on; 0 picks a free one."
    )
    ready_file: Path | None = Field(
        default=None,
        description="File that gets the service's URL once it listens; removed when it stops.",
    )
    shutdown_s: int = Field(
        default=10, ge=1, description="How long a stop waits for requests under way, in seconds."
    )
    request_head_s: float = Field(
        default=20.0,
        gt=0,
        description="Longest time for the head of a request, and for what a client goes on to send "
        "after its refusal, in seconds.",
    )
    body_idle_s: float = Field(
        default=60.0, gt=0, description="Longest pause within a request's body, in seconds."
    )
    predict_body_s: float = Field(
        default=30.0,
        gt=0,
        description="Longest time that a prediction request's body may take, in seconds.",
    )
    max_body_bytes: int = Field(
        default=32 * _MIB, gt=0, description="Largest body of a prediction request."
    )
    max_spec_bytes: int = Field(default=_MIB // 4, gt=0, description="Largest job specification.")
    max_image_bytes: int = Field(
        default=16 * _MIB, gt=0, description="Largest image file of a prediction request."
    )
    max_image_pixels: int = Field(
        default=50_000_000,
        gt=0,
        le=MAX_DECODED_PIXELS,
        description="Most pixels of an image to predict, checked before it is decoded.",
    )
    max_images_per_request: int = Field(
        default=256, gt=0, description="Most images of one prediction request."
    )
    max_prediction_requests: int = Field(
        default=64, gt=0, description="Most prediction requests at once; more get 429."
    )
    max_event_streams: int = Field(
        default=512, gt=0, description="Most streams of job events at once; more get 429."
    )
    predict_threads: int = Field(
        default_factory=_all_cores,
        ge=1,
        le=MAX_THREADS,
        description="Threads that predictions are computed on; all cores by default.",
    )
    max_batch_images: int = Field(default=32, gt=0, description="Most images computed together.")
    max_batch_wait_ms: float = Field(
        default=2.0, ge=0, description="How long a batch waits for company, in milliseconds."
    )
    max_queue_images: int = Field(
        default=1024, gt=0, description="Most images waiting for one model; more get 429."
    )
    max_resident_models: int = Field(
        default=8, gt=0, description="Most models kept loaded at once."
    )

    @model_validator(mode="after")
    def _a_full_request_fits_the_queue(self) -> Self:
        if self.max_images_per_request > self.max_queue_images:
            raise ValueError("max_images_per_request must not exceed max_queue_images")
        return self

    @field_validator("runtime")
    @classmethod
    def _a_runtime_of_this_installation(cls, runtime: str) -> str:
        try:
            runtimes.choose(runtime)
        except Unavailable as fault:
            raise ValueError(f"it cannot be used here. {fault.detail} {fault.remedy}") from None
        return runtime

    @property
    def batch_limits(self) -> BatchLimits:
        """The limits of every model's batcher."""
        return BatchLimits(
            max_batch_images=self.max_batch_images,
            max_wait_s=self.max_batch_wait_ms / 1000,
            max_queue_images=self.max_queue_images,
        )

    @property
    def image_limits(self) -> ImageLimits:
        """The limits of every image that is to be classified."""
        return ImageLimits(
            max_bytes=self.max_image_bytes,
            max_pixels=self.max_image_pixels,
        )
