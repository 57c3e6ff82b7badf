"""What the page of a report reads of ``report.json``.

The report that the worker writes is answered as it is; only the page needs to understand it.
Members that a report of an older schema lacks are None or empty, and unknown ones are passed over.
"""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Read(BaseModel):
    # NaN and infinity have no place on a plot.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Method(_Read):
    """The method that binarized the layers."""

    name: str


class Spec(_Read):
    """What the head of the page says of the job's specification."""

    name: str | None = None
    architecture: str
    dataset: str
    method: Method


class ModelReference(_Read):
    """The version that the job published."""

    name: str
    version: int


class Sizes(_Read):
    """Bytes in float32 before, and of the artifact file after."""

    float: Count
    packed: Count


class Layer(_Read):
    """A convolution or linear layer; ``losses`` is empty where it stayed in float."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: Count
    binary: bool
    losses: tuple[float, ...] = ()
    seconds: float = 0.0


class ClassAccuracy(_Read):
    """A class, its test images, and the share of them classified rightly by form of the network."""

    name: str
    images: Count
    accuracy: dict[str, Share | None]


class Confused(_Read):
    """How many images of class ``label`` were answered with class ``answer``."""

    label: str
    answer: str
    before: Count
    after: Count


class Confusion(_Read):
    """Confusions after less before; ``matrix`` is ``(K, K)``, or None where K is large."""

    matrix: tuple[tuple[int, ...], ...] | None = None
    grown: tuple[Confused, ...] = ()
    shrunk: tuple[Confused, ...] = ()


class Agreement(_Read):
    """How many images are answered as before, and rightly so; see docs/API.md."""

    top1: Share
    of_right: Share | None
    both_right: Count
    lost: Count
    gained: Count
    both_wrong: Count
    change: float
    standard_error: float


class Bin(_Read):
    """The images whose confidence lies in one bin, and their mean confidence and accuracy."""

    images: Count
    confidence: float | None
    accuracy: Share | None


class Confidence(_Read):
    """How sure a form of the network is, and how rightly."""

    mean: float
    expected_calibration_error: Share
    bins: tuple[Bin, ...]


class Epoch(_Read):
    """An epoch of fine-tuning."""

    loss: float
    train_accuracy: Share | None = None
    learning_rate: float | None = None
    seconds: float | None = None
    images_per_second: float | None = None


class FineTuning(_Read):
    """The epochs of fine-tuning, in order."""

    epochs: tuple[Epoch, ...] = ()


class Parity(_Read):
    """The packed plan beside the network it was made from."""

    top1_agreement: Share
    largest_logit_difference: float
    largest_logit: float


class Gate(_Read):
    """The accuracy gate: on the validation images, what may be lost and what is."""

    max_accuracy_drop: Share
    images: Count
    full_precision: Share
    packed: Share
    drop: float
    standard_error: float
    passed: bool


class Latency(_Read):
    """Milliseconds for one image, of the packed plan and of the float original.

    Lower quartiles; of reports without spreads medians. ``speedup`` is None where the machine was
    too busy to tell.
    """

    threads: Count
    batch: Count
    repeats: Count
    packed_ms: Annotated[float, Field(gt=0)]
    float_ms: Annotated[float, Field(gt=0)]
    packed_spread: Annotated[float, Field(ge=0)] | None = None
    float_spread: Annotated[float, Field(ge=0)] | None = None
    speedup: Annotated[float, Field(gt=0)] | None


class ReportDocument(_Read):
    """A job's report; docs/API.md describes its members.

    ``model`` is None where the accuracy gate rejected what the job made.
    """

    job: str
    model: ModelReference | None
    spec: Spec
    accuracy: dict[str, Share]
    test_images: Count
    gate: Gate | None = None
    latency: Latency | None = None
    calibration: str
    layers: tuple[Layer, ...]
    bytes: Sizes
    compression_ratio: float
    classes: tuple[ClassAccuracy, ...] = ()
    confusion: Confusion | None = None
    agreement: Agreement | None = None
    confidence: dict[str, Confidence] = {}
    fine_tuning: FineTuning | None = None
    parity: Parity | None = None
    runtime: str | None = None
    kernels: str | None = None
    digests: dict[str, str] = {}
    versions: dict[str, str] = {}
    stage_seconds: dict[str, float] = {}
    created_at: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not {"full_precision", "packed"} <= set(self.accuracy):
            raise ValueError("the accuracy before or after is missing")
        matrix = None if self.confusion is None else self.confusion.matrix
        if matrix is not None:
            sizes = {len(matrix), *(len(row) for row in matrix)}
            if sizes != {len(self.classes)}:
                raise ValueError("the confusions are not those of the classes")
        return self
