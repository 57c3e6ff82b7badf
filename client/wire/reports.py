"""What a job measured, and what it is foreseen to come to."""

from typing import Any

from pydantic import Field

from client.wire.jobs import ModelReference
from client.wire.model import Wire


class Accuracy(Wire):
    """Accuracy on the test images, in 0..1, of the forms that the network took.

    ``fine_tuned`` is there where the job trained it, ``packed_float_activations`` where the packed
    network rounds its activations: what it would answer if it did not.
    """

    full_precision: float
    calibrated: float
    fine_tuned: float | None = None
    packed: float
    packed_float_activations: float | None = None


class Size(Wire):
    """Bytes of all float32 parameters and buffers, and of the artifact file."""

    float: int
    packed: int


class Agreement(Wire):
    """How far the packed network answers what the full-precision one does.

    ``top1`` and ``of_right`` are shares of all test images and of those that were right before;
    ``change`` of the accuracy has its standard error, both in 0..1.
    """

    top1: float
    of_right: float | None = None
    change: float
    standard_error: float


class Confidence(Wire):
    """How sure a form of the network is, and how far that is from how often it is right; 0..1."""

    mean: float
    expected_calibration_error: float


class LayerLoss(Wire):
    """A binary layer and its last relative loss."""

    name: str
    loss: float


class Gate(Wire):
    """The accuracy gate: what was allowed and what was measured, on the validation images.

    ``full_precision``, ``packed``, ``drop`` and ``max_accuracy_drop`` are in 0..1.
    """

    max_accuracy_drop: float
    images: int
    full_precision: float
    packed: float
    drop: float
    standard_error: float | None = None
    passed: bool


class Latency(Wire):
    """The time of one batch on the machine that measured, in milliseconds: lower quartiles.

    The spreads are the distances between the quartiles over the median, None where the service is
    an older one. ``speedup`` is None where the machine was too busy to tell.
    """

    threads: int
    batch: int
    repeats: int
    packed_ms: float
    float_ms: float
    packed_spread: float | None = None
    float_spread: float | None = None
    speedup: float | None = None


class Report(Wire):
    """What a job measured. ``document`` is the report as the service wrote it.

    What an older service did not measure is None or empty. ``confidence`` is by form of the
    network; ``layers_by_loss`` begins with the layer that loses most. Of a rejected job ``model``
    is None, and ``gate`` says why.
    """

    model: ModelReference | None = None
    accuracy: Accuracy
    agreement: Agreement | None = None
    confidence: dict[str, Confidence] = Field(default_factory=dict)
    layers_by_loss: tuple[LayerLoss, ...] = ()
    bytes: Size
    compression_ratio: float
    gate: Gate | None = None
    latency: Latency | None = None
    runtime: str | None = None
    kernels: str | None = None
    stage_seconds: dict[str, float]
    document: dict[str, Any]
