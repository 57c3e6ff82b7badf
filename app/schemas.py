"""What the service answers: wire models, each a plain reflection of what the stores hold.

They are the schemas in ``/openapi.json``. Requests are described by `store.specs.CompressSpec` and
`PredictionRequest`; every failure is a `Problem`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from store.aliases import ALIAS_PATTERN
from store.dataset_archives import Source
from store.specs import NAME_PATTERN

MODEL_NAME = Field(pattern=NAME_PATTERN, description="Name of a published model.")
MOST_VERSION = 2**31 - 1


def _whole(number: Any) -> Any:
    # JSON has one kind of numbers, of which 2.0 is a whole one; True and "2" are not.
    return int(number) if isinstance(number, float) and number.is_integer() else number


VersionNumber = Annotated[int, Field(ge=1, le=MOST_VERSION, strict=True), BeforeValidator(_whole)]
VersionName = Annotated[str, Field(pattern=ALIAS_PATTERN)]
VERSION = Field(
    description="Which version: its number, an alias, or `latest`, which is the default."
)
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
    """A compression job. Times are ISO 8601 in UTC.

    It is over when its state is `succeeded`, `rejected` (the model lost more accuracy than the job
    allows), `failed` or `cancelled`; `problem` then says why there is no model.
    """

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
    estimated_end: str | None = Field(
        default=None,
        description="When it will be over, foreseen; null unless it runs and that is known.",
    )
    problem: Fault | None = Field(
        description="Why there is no model: its `type` ends in `accuracy-gate` where the job was "
        "rejected, in `cancelled` where it was cancelled, and tells the cause where it failed."
    )
    model: ModelReference | None = Field(description="What the job published.")
    stage_seconds: dict[str, float]


class JobList(BaseModel):
    """A page of jobs, the newest first."""

    jobs: list[JobAnswer]
    next: str | None = Field(description="`cursor` of the page after this; null on the last.")


class DatasetAnswer(BaseModel):
    """A registered dataset."""

    model_config = ConfigDict(title="Dataset")

    name: str
    digest: str = Field(description="Digest of the content: of classes, splits and images.")
    archive_digest: str | None = Field(
        description="Digest of the archive that was uploaded; null where the images lie in a root."
    )
    classes: list[str] = Field(description="Class names; the index is the label.")
    splits: dict[str, int] = Field(description="Images per split; `all` where there are none.")
    bytes: int = Field(description="Size of all encoded images.")
    created_at: str
    source: Source = Field(
        description="What it was made from: image folders, arrays of numpy, CIFAR's own files, or "
        "a root of the operator's, in which the images stay."
    )
    root: str | None = Field(description="The root that the images lie in.")


class DatasetList(BaseModel):
    """Registered datasets, by name."""

    datasets: list[DatasetAnswer]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


class ImageSize(BaseModel):
    """Pixels of an image."""

    height: int
    width: int


class ImageSizes(BaseModel):
    """Sizes of a sample of the images, ordered by their number of pixels."""

    sampled: int = Field(description="Images that were looked at, evenly spread.")
    smallest: ImageSize
    median: ImageSize
    largest: ImageSize


class DatasetDetail(DatasetAnswer):
    """A registered dataset and what its images are like."""

    model_config = ConfigDict(title="DatasetDetail")

    counts: dict[str, dict[str, int]] = Field(description="Images by split and class.")
    image_sizes: ImageSizes | None = Field(
        description="Null where no image of the sample can be read."
    )


class RootRegistration(BaseModel):
    """A folder of the operator's to be registered as a dataset; the images stay in place."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=NAME_PATTERN, description="Name for the dataset.")
    root: str = Field(
        pattern=NAME_PATTERN, description="Name of a root that the operator configured."
    )


class Accuracies(BaseModel):
    """Share of the test images classified rightly, 0 to 1."""

    full_precision: float
    calibrated: float = Field(description="Without fine-tuning.")
    fine_tuned: float | None = Field(default=None, description="Null without fine-tuning.")
    packed: float = Field(description="As served.")
    packed_float_activations: float | None = Field(
        default=None,
        description="Of a network that rounds its activations, without the rounding; else null.",
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
        default=None, description="Short side before the centre is cut out; null: as it fits."
    )


class LatencyAnswer(BaseModel):
    """Milliseconds for one batch on the machine that evaluated the model.

    Each is the lower quartile of its measurements: a quarter of them were as fast or faster. The
    packed model and the float original were measured in turn, on equally many threads. The spreads
    are the distances between the quartiles over the median, null in older reports.
    """

    model_config = ConfigDict(title="Latency")

    threads: int = Field(ge=1)
    batch: int = Field(ge=1, description="Images at once.")
    repeats: int = Field(ge=1, description="Measurements of each.")
    packed_ms: float = Field(ge=0)
    float_ms: float = Field(ge=0)
    packed_spread: float | None = Field(
        default=None, ge=0, description="Near 0 on an idle machine."
    )
    float_spread: float | None = Field(default=None, ge=0)
    speedup: float | None = Field(
        ge=0,
        description="`float_ms` over `packed_ms`; null where the machine was busy (a spread above "
        "0.25) or the network too slow to be measured four times.",
    )


class GateAnswer(BaseModel):
    """What the accuracy gate measured before the model was published, on the validation split."""

    model_config = ConfigDict(title="Gate")

    max_accuracy_drop: float = Field(ge=0, le=1, description="What the job allowed.")
    images: int = Field(ge=0)
    full_precision: float = Field(ge=0, le=1)
    packed: float = Field(ge=0, le=1)
    drop: float = Field(ge=-1, le=1)
    standard_error: float | None = Field(default=None, description="Of the drop.")
    passed: bool


class VersionFigures(BaseModel):
    """What is known about one version of a model, measured once and never changed."""

    architecture: str
    method: str
    accuracy: Accuracies
    bytes: Sizes
    compression_ratio: float
    latency: LatencyAnswer | None = Field(description="Null where it was not measured.")
    gate: GateAnswer | None = Field(description="Null where the job had no gate.")
    input: InputAnswer
    labels: list[str]
    runtime: str = Field(description="The runtime that serves it here.")
    kernels: str = Field(
        description="The set of kernels that this runtime has here: avx512, avx2 or portable; "
        "sm_90 and the like, which is the kind of GPU, for the runtime cuda; torch for the "
        "reference runtime."
    )
    digest: str = Field(description="Digest of the artifact file.")
    job: str = Field(description="Id of the job that made it.")
    created_at: str


class _ModelVersions(BaseModel):
    """What a model's answer begins with."""

    name: str
    latest: int = Field(description="The version that the figures are of.")
    versions: list[int] = Field(description="Every version, ascending.")
    aliases: dict[str, int] | None = Field(
        description="The version that each alias points to; null where their file is damaged."
    )


class ModelAnswer(VersionFigures, _ModelVersions):
    """A published model: its versions and aliases, and the figures of the latest version."""

    model_config = ConfigDict(title="Model")


class ModelList(BaseModel):
    """Every published model, by name."""

    models: list[ModelAnswer]


class _VersionNames(BaseModel):
    """What a version's answer begins with."""

    name: str
    version: int
    aliases: list[str] | None = Field(
        description="The aliases that point to it; null where their file is damaged."
    )


class VersionAnswer(VersionFigures, _VersionNames):
    """A version of a published model."""

    model_config = ConfigDict(title="Version")


class VersionList(BaseModel):
    """The versions of a model, the newest first."""

    model: str
    versions: list[VersionAnswer]
    next: int | None = Field(description="The `before` of the next page; null on the last one.")


class AliasRequest(BaseModel):
    """Where an alias is to point to."""

    model_config = ConfigDict(extra="forbid")

    version: VersionNumber = Field(description="Number of a published version.")


class AliasAnswer(BaseModel):
    """An alias of a model and the version that it points to."""

    model_config = ConfigDict(title="Alias")

    model: str
    alias: str
    version: int


class AliasList(BaseModel):
    """The aliases of a model."""

    model: str
    aliases: dict[str, int] = Field(description="The version that each alias points to.")


class PredictionRequest(BaseModel):
    """The JSON form of a prediction request."""

    # `model` is a field's plain name here; pydantic reserves only the prefix `model_`.
    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, MODEL_NAME]
    version: Annotated[VersionNumber | VersionName | None, VERSION] = None
    top_k: Annotated[int, TOP_K] = DEFAULT_TOP_K
    # The first fault ends it: millions of them would be collected, and freeze the process.
    images: Annotated[list[str], Field(fail_fast=True)] = Field(
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
    version: int = Field(description="Number of the version that answered.")
    alias: str | None = Field(
        description="The alias that was asked for; null where it was a number or `latest`."
    )
    predictions: list[Prediction]


class Health(BaseModel):
    """The service is well."""

    status: Literal["ok"] = "ok"
