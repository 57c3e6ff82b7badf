"""What travels between client and service, as frozen models.

Fields that a newer service adds are ignored, so that an older client goes on working.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "rejected"]
UNFINISHED: frozenset[JobState] = frozenset({"queued", "running"})


Scalar = bool | int | float | str
Value = Scalar | list[Scalar]


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class InputShape(_Wire):
    """What the network is fed; a member left out takes the service's default.

    A pixel p in 0..255 becomes ``(low + (high - low) * p / 255 - mean[c]) / std[c]`` with
    ``value_range = (low, high)``.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    resize: int | None = None
    value_range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class CompressSpec(_Wire):
    """A compression job as the caller asks for it; a member left out takes the service's default.

    ``method`` is the method's name under ``name`` together with its parameters;
    ``checkpoint`` is the digest of an earlier upload where no file is sent along; ``fine_tune`` has
    ``epochs`` and whatever else the service lists under FineTuning.
    """

    name: str
    architecture: str
    architecture_parameters: dict[str, Value] | None = None
    checkpoint: str | None = None
    input: InputShape | None = None
    dataset: str
    method: dict[str, Value] | None = None
    keep_float: tuple[str, ...] | None = None
    calibration_images: int | None = None
    fine_tune: dict[str, Value] | None = None
    activation_bits: int | None = None
    activation_scale: str | None = None
    seed: int | None = None

    def to_json(self) -> str:
        """Return the JSON text of what was set."""
        return self.model_dump_json(exclude_none=True)


class Problem(_Wire):
    """An RFC 9457 problem document."""

    type: str = "about:blank"
    title: str = "The request failed"
    status: int | None = None
    detail: str = ""
    field: str | None = None
    remedy: str | None = None
    instance: str | None = None
    errors: tuple[dict[str, Any], ...] | None = None


class LayerProgress(_Wire):
    """A calibrated layer and its loss: at the start, then by sweep and further basis."""

    name: str
    losses: tuple[float, ...] = ()


class EpochProgress(_Wire):
    """An epoch of fine-tuning, from 1: mean loss, and share of training images right, in 0..1."""

    epoch: int
    loss: float
    train_accuracy: float
    images_per_second: float
    learning_rate: float
    seconds: float


class ModelReference(_Wire):
    """A published version of a model."""

    name: str
    version: int


class Job(_Wire):
    """A compression job; ``progress`` is in 0..1, ``stage_seconds`` in seconds per stage."""

    id: str
    state: JobState
    spec: dict[str, Any]
    created_at: datetime
    updated_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    stage: str | None = None
    step: str | None = None
    progress: float = 0.0
    message: str | None = None
    layers: tuple[LayerProgress, ...] = ()
    epochs: tuple[EpochProgress, ...] = ()
    problem: Problem | None = None
    model: ModelReference | None = None
    stage_seconds: dict[str, float] = {}

    @property
    def finished(self) -> bool:
        """Whether the job's state will not change any more."""
        return self.state not in UNFINISHED


class Accuracy(_Wire):
    """Accuracy on the test images, in 0..1, of the forms that the network took.

    ``fine_tuned`` is there where the job trained it, ``packed_float_activations`` where the packed
    network rounds its activations: what it would answer if it did not.
    """

    full_precision: float
    calibrated: float
    fine_tuned: float | None = None
    packed: float
    packed_float_activations: float | None = None


class Size(_Wire):
    """Bytes of all float32 parameters and buffers, and of the artifact file."""

    float: int
    packed: int


class Agreement(_Wire):
    """How far the packed network answers what the full-precision one does.

    ``top1`` and ``of_right`` are shares of all test images and of those that were right before;
    ``change`` of the accuracy has its standard error, both in 0..1.
    """

    top1: float
    of_right: float | None = None
    change: float
    standard_error: float


class Confidence(_Wire):
    """How sure a form of the network is, and how far that is from how often it is right; 0..1."""

    mean: float
    expected_calibration_error: float


class LayerLoss(_Wire):
    """A binary layer and its last relative loss."""

    name: str
    loss: float


class Report(_Wire):
    """What a job measured. ``document`` is the report as the service wrote it.

    What an older service did not measure is None or empty. ``confidence`` is by form of the
    network; ``layers_by_loss`` begins with the layer that loses most.
    """

    model: ModelReference | None = None
    accuracy: Accuracy
    agreement: Agreement | None = None
    confidence: dict[str, Confidence] = {}
    layers_by_loss: tuple[LayerLoss, ...] = ()
    bytes: Size
    compression_ratio: float
    runtime: str | None = None
    kernels: str | None = None
    stage_seconds: dict[str, float]
    document: dict[str, Any]


class Dataset(_Wire):
    """A registered dataset; ``splits`` counts the images of each split."""

    name: str
    digest: str
    archive_digest: str | None = None
    classes: tuple[str, ...]
    splits: dict[str, int]
    bytes: int
    created_at: datetime


class Model(_Wire):
    """A published model: its versions, and what is known about the latest of them.

    ``runtime`` serves it, with ``kernels``, the set of kernels, which older services do not tell.
    """

    name: str
    latest: int
    versions: tuple[int, ...]
    architecture: str
    method: str
    accuracy: Accuracy
    bytes: Size
    compression_ratio: float
    input: InputShape
    labels: tuple[str, ...]
    runtime: str
    kernels: str | None = None
    digest: str
    job: str
    created_at: datetime


class Label(_Wire):
    """One of the best labels for an image, ``probability`` in 0..1."""

    label: str
    index: int
    probability: float


class Prediction(_Wire):
    """The answer for one image: the best labels, or the problem with this image."""

    filename: str | None = None
    top: tuple[Label, ...] = ()
    error: Problem | None = None

    @field_validator("top", mode="before")
    @classmethod
    def _none_is_empty(cls, top: Any) -> Any:
        return () if top is None else top


class Predictions(_Wire):
    """The answers for the images of one request, in the order they were sent."""

    model: str
    version: int
    predictions: tuple[Prediction, ...]
