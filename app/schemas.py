"""What the service answers: wire models, each a plain reflection of what the stores hold.

They are the schemas in ``/openapi.json``. Requests are described by `store.specs.CompressSpec` and
`PredictionRequest`; every failure is a `Problem`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from store.specs import NAME_PATTERN

MODEL_NAME = Field(pattern=NAME_PATTERN, description="Name of a published model.")
VERSION = Field(ge=1, le=2**31 - 1, description="Version; by default the latest.")
TOP_K = Field(
    ge=1, le=1000, description="Most labels to return for an image, the most probable first."
)
DEFAULT_TOP_K = 5


class Problem(BaseModel):
    """RFC 9457 problem document, media type ``application/problem+json``."""

    model_config = ConfigDict(title="Problem")

    type: str = Field(
        description="Stable name of the kind of problem.",
        examples=["urn:bitpress:problem:invalid-spec"],
    )
    title: str = Field(description="The kind of problem in words; the same for every occurrence.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What is wrong this time.")
    field: str | None = Field(default=None, description="The part of the request it is about.")
    remedy: str | None = Field(default=None, description="What to do about it.")
    instance: str | None = Field(
        default=None, description="This very occurrence: the request's id, also found in the log."
    )
    errors: list[dict[str, Any]] | None = Field(
        default=None, description="Every fault, where several were found at once."
    )


class Fault(BaseModel):
    """A problem within an answer: of one image, or of a job that failed."""

    type: str
    title: str
    detail: str
    field: str | None = None
    remedy: str | None = None


class LayerLosses(BaseModel):
    """A calibrated layer and its relative loss: at the start, then by sweep and further basis."""

    name: str
    losses: list[float]


class EpochFigures(BaseModel):
    """An epoch of fine-tuning, measured while training on the augmented images."""

    epoch: int = Field(ge=1)
    loss: float
    train_accuracy: float = Field(ge=0, le=1)
    images_per_second: float
    learning_rate: float
    seconds: float


class ModelReference(BaseModel):
    """A version of a published model."""

    name: str
    version: int


class JobAnswer(BaseModel):
    """A compression job. Times are ISO 8601 in UTC."""

    model_config = ConfigDict(title="Job")

    id: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled", "rejected"]
    spec: dict[str, Any] = Field(description="The complete specification, defaults filled in.")
    created_at: str
    updated_at: str | None
    started_at: str | None
    finished_at: str | None
    stage: str | None = Field(
        description="prepare, calibrate, fine_tune (where the job asks for it), pack, evaluate or "
        "publish; null before the first."
    )
    step: str | None = Field(description="What the stage is at, for example a layer's name.")
    progress: float = Field(ge=0, le=1, description="Of the whole job.")
    message: str | None
    layers: list[LayerLosses]
    epochs: list[EpochFigures] = Field(default=[], description="Those of fine-tuning so far.")
    problem: Fault | None = Field(description="Why the job failed.")
    model: ModelReference | None = Field(description="What the job published.")
    stage_seconds: dict[str, float]


class JobList(BaseModel):
    """Jobs, the newest first."""

    jobs: list[JobAnswer]


class DatasetAnswer(BaseModel):
    """A registered dataset."""

    model_config = ConfigDict(title="Dataset")

    name: str
    digest: str = Field(description="Digest of the content: of classes, splits and images.")
    archive_digest: str = Field(description="Digest of the archive that was uploaded.")
    classes: list[str] = Field(description="Class names; the index is the label.")
    splits: dict[str, int] = Field(description="Images per split; `all` where there are none.")
    bytes: int
    created_at: str


class DatasetList(BaseModel):
    """Every registered dataset, by name."""

    datasets: list[DatasetAnswer]


class Accuracies(BaseModel):
    """Share of the test images classified rightly, 0 to 1."""

    full_precision: float
    calibrated: float = Field(description="Without fine-tuning.")
    fine_tuned: float | None = Field(default=None, description="Absent without fine-tuning.")
    packed: float = Field(description="As served.")
    packed_float_activations: float | None = Field(
        default=None,
        description="Of a network that rounds its activations, without the rounding; else absent.",
    )


class Sizes(BaseModel):
    """Bytes of the float32 parameters and buffers before, of the artifact file after."""

    float: int
    packed: int


class InputAnswer(BaseModel):
    """What the network is fed: p becomes ``(low + (high - low) * p / 255 - mean[c]) / std[c]``."""

    model_config = ConfigDict(title="Input")

    channels: int
    height: int
    width: int
    mean: list[float]
    std: list[float]
    value_range: tuple[float, float]
    resize: int | None = Field(
        default=None, description="Short side before the centre is cut out; absent: as it fits."
    )


class ModelAnswer(BaseModel):
    """A published model: its versions, and everything about the latest of them."""

    model_config = ConfigDict(title="Model")

    name: str
    latest: int = Field(description="The version that the rest is about.")
    versions: list[int] = Field(description="Every version, ascending.")
    architecture: str
    method: str
    accuracy: Accuracies
    bytes: Sizes
    compression_ratio: float
    input: InputAnswer
    labels: list[str]
    runtime: str = Field(description="The runtime that serves it here.")
    kernels: str = Field(
        description="The set of kernels that this runtime has here: avx512, avx2 or portable; "
        "torch for the reference runtime."
    )
    digest: str = Field(description="Digest of the artifact file.")
    job: str = Field(description="Id of the job that made it.")
    created_at: str


class ModelList(BaseModel):
    """Every published model, by name."""

    models: list[ModelAnswer]


class PredictionRequest(BaseModel):
    """The JSON form of a prediction request."""

    # `model` is a field's plain name here; pydantic reserves only the prefix `model_`.
    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, MODEL_NAME]
    version: Annotated[int, VERSION] | None = None
    top_k: Annotated[int, TOP_K] = DEFAULT_TOP_K
    images: list[str] = Field(
        min_length=1, description="Image files (JPEG, PNG, WebP, GIF, BMP, PPM), each in base64."
    )


class Label(BaseModel):
    """A label and how probable it is."""

    label: str
    index: int
    probability: float = Field(ge=0, le=1)


class Prediction(BaseModel):
    """The answer for one image: ``top`` on success, else ``error``."""

    filename: str | None = Field(default=None, description="As sent, in the multipart form.")
    top: list[Label] | None = None
    error: Fault | None = None


class PredictionAnswer(BaseModel):
    """The answers for the images of a request, in their order."""

    model: str
    version: int
    predictions: list[Prediction]


class Health(BaseModel):
    """The service is well."""

    status: Literal["ok"] = "ok"
