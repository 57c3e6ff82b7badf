"""Compression jobs and what they tell of themselves while they run."""

from datetime import datetime
from typing import Any, Literal, Self, get_args

from pydantic import Field, ValidationError

from client.wire.model import Wire
from client.wire.problems import Problem

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "rejected"]
UNFINISHED: frozenset[JobState] = frozenset({"queued", "running"})


class LayerProgress(Wire):
    """A calibrated layer and its loss: at the start, then by sweep and further basis."""

    name: str
    losses: tuple[float, ...] = ()


class EpochProgress(Wire):
    """An epoch of fine-tuning, from 1: mean loss, and share of training images right, in 0..1."""

    epoch: int
    loss: float
    train_accuracy: float
    images_per_second: float
    learning_rate: float
    seconds: float


class ModelReference(Wire):
    """A published version of a model."""

    name: str
    version: int


class JobEvent(Wire):
    """One thing that happened to a job.

    ``seq`` counts from the job's first; ``kind`` is ``queued``, ``started``, ``stage``,
    ``progress``, ``sweep``, ``epoch``, ``step``, ``retried``, the name of a final state, or one
    that a newer service has; ``data`` are its members, of which the commonest are properties here.
    """

    seq: int
    kind: str
    data: dict[str, Any] = Field(default_factory=dict)

    @property
    def at(self) -> datetime | None:
        """When it happened."""
        return self._time("at")

    @property
    def stage(self) -> str | None:
        """The stage that the job is in."""
        return self._text("stage")

    @property
    def step(self) -> str | None:
        """What the stage is at, for example a layer's name."""
        return self._text("step")

    @property
    def message(self) -> str | None:
        """What the stage itself says of its progress."""
        return self._text("message")

    @property
    def progress(self) -> float | None:
        """The progress of the whole job, in 0..1."""
        return self._number("progress")

    @property
    def loss(self) -> float | None:
        """The loss after a sweep or an epoch."""
        return self._number("loss")

    @property
    def images_per_second(self) -> float | None:
        """How fast images are worked on at present."""
        return self._number("images_per_second")

    @property
    def estimated_end(self) -> datetime | None:
        """When the job will probably be done."""
        return self._time("estimated_end")

    def _time(self, name: str) -> datetime | None:
        text = self._text(name)
        try:
            return None if text is None else datetime.fromisoformat(text)
        except ValueError:
            return None

    def _text(self, name: str) -> str | None:
        value = self.data.get(name)
        return value if isinstance(value, str) else None

    def _number(self, name: str) -> float | None:
        value = self.data.get(name)
        return float(value) if isinstance(value, int | float) else None


class Job(Wire):
    """A compression job; ``progress`` is in 0..1, ``stage_seconds`` in seconds per stage."""

    id: str
    state: JobState
    spec: dict[str, Any]
    created_at: datetime
    updated_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    estimated_end: datetime | None = None
    stage: str | None = None
    step: str | None = None
    progress: float = 0.0
    message: str | None = None
    layers: tuple[LayerProgress, ...] = ()
    epochs: tuple[EpochProgress, ...] = ()
    problem: Problem | None = None
    model: ModelReference | None = None
    stage_seconds: dict[str, float] = Field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the job has ended, in whatever way; only a retry makes it go on."""
        return self.state not in UNFINISHED

    def knows(self, event: JobEvent) -> bool:
        """Return whether this record is of a time after ``event``, and so holds what it tells."""
        if event.at is None or self.updated_at is None:
            return False
        try:
            return event.at <= self.updated_at
        except TypeError:
            # One of the two is without a time zone.
            return False

    def after(self, event: JobEvent) -> Self:
        """Return the job as it stands after ``event``, as far as the event tells."""
        told: dict[str, Any] = {
            "stage": event.stage,
            "step": event.step,
            "message": event.message,
            "progress": event.progress,
            "estimated_end": event.estimated_end,
        }
        told = {name: value for name, value in told.items() if value is not None}
        if event.kind == "stage":
            told = {"step": None, "message": None, **told}
        if event.kind in get_args(JobState):
            told["state"] = event.kind
        elif event.kind == "retried":
            told["state"] = "queued"
        else:
            told["state"] = "running"
        if event.kind == "epoch":
            told["epochs"] = (*self.epochs, *_epoch(event))
        return self.model_copy(update=told)


class JobPage(Wire):
    """Some jobs, newest first; ``next`` is the cursor of the page behind, None at the end."""

    jobs: tuple[Job, ...]
    next: str | None = None


def _epoch(event: JobEvent) -> tuple[EpochProgress, ...]:
    try:
        return (EpochProgress.model_validate(event.data),)
    except ValidationError:
        return ()
