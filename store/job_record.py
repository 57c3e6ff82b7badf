"""What is known of a job, and how a DBOS workflow is read as one.

A job is one DBOS workflow. While it runs, its stage and progress are in an event that the worker
rewrites every second, and what each step found is in the step's recorded output. When it ends, the
workflow's output or error holds the whole summary, so that a list of finished jobs costs few
queries. A rejected job is a workflow that ended well, with an output that says so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from dbos import WorkflowStatus

from store.errors import JobCancelled, JobCrashed

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "rejected"]
STATES: tuple[JobState, ...] = get_args(JobState)
FINAL_STATES: tuple[JobState, ...] = ("succeeded", "rejected", "failed", "cancelled")

WORKFLOW_STATES: Mapping[str, JobState] = {
    "DELAYED": "queued",
    "ENQUEUED": "queued",
    "PENDING": "running",
    "SUCCESS": "succeeded",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}

# The event with the stage, the progress and the like of a running job.
PROGRESS_EVENT = "progress"


@dataclass(frozen=True)
class Job:
    """A compression job as it stands now. Times are ISO 8601 in UTC, ``progress`` is in 0..1.

    ``spec`` is the specification as it was stored, perhaps by another release of bitpress;
    ``layers`` holds ``{"name", "losses"}`` of every calibrated layer so far, in order; ``epochs``
    the figures of every epoch of fine-tuning (``epoch`` from 1, ``loss``, ``train_accuracy``,
    ``images_per_second``, ``learning_rate``, ``seconds``, and ``device`` and ``products``, which
    say how it was computed);
    ``estimated_end`` is when a running job is expected to be over;
    ``problem`` is the problem document of a job that failed, was rejected or was cancelled;
    ``model`` is ``{"name", "version"}``.
    """

    id: str
    state: JobState
    spec: Mapping[str, Any]
    created_at: str
    updated_at: str
    started_at: str | None = None
    finished_at: str | None = None
    stage: str | None = None
    step: str | None = None
    progress: float = 0.0
    message: str | None = None
    layers: tuple[Mapping[str, Any], ...] = ()
    epochs: tuple[Mapping[str, Any], ...] = ()
    estimated_end: str | None = None
    problem: Mapping[str, Any] | None = None
    model: Mapping[str, Any] | None = None
    stage_seconds: Mapping[str, float] = field(default_factory=dict)


class JobFailed(Exception):
    """The end of a failed job: a problem document, and what the job had come to.

    DBOS records an exception's ``data`` as JSON, so this is what `job_of` reads back.
    """

    def __init__(self, problem: Mapping[str, Any], **summary: Any) -> None:
        super().__init__(str(problem.get("detail", "")))
        self.data: dict[str, Any] = {"problem": dict(problem), **summary}


def step_name(stage: str, step: str | None = None) -> str:
    """Return the name under which DBOS records a step, such as ``calibrate:conv1``."""
    return stage if step is None else f"{stage}:{step}"


def iso_time(epoch_ms: int | None) -> str | None:
    """Return milliseconds since 1970 as ISO 8601 in UTC, ``2026-11-20T13:00:00.123Z``."""
    if epoch_ms is None:
        return None
    return iso_moment(datetime.fromtimestamp(epoch_ms / 1000, UTC))


def iso_moment(moment: datetime) -> str:
    """Return a moment in UTC as ISO 8601, ``2026-11-20T13:00:00.123Z``."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def epoch_ms(iso: str) -> int:
    """Return what `iso_time` made a text of."""
    return round(datetime.fromisoformat(iso).timestamp() * 1000)


def has_summary(status: WorkflowStatus) -> bool:
    """Whether the workflow's row alone tells all, without events and steps."""
    return status.status in ("SUCCESS", "ERROR") or (
        status.status in ("ENQUEUED", "DELAYED") and status.executor_id is None
    )


def running_summary(
    progress: Mapping[str, Any] | None, outputs: Iterable[tuple[str, Any]]
) -> dict[str, Any]:
    """Return the summary of an unfinished job.

    ``progress`` is the last event, ``outputs`` are the steps' names and recorded outputs.
    """
    layers: list[dict[str, Any]] = []
    epochs: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    for name, output in outputs:
        if not isinstance(output, Mapping) or "seconds" not in output:
            continue
        stage = name.partition(":")[0]
        seconds[stage] = round(seconds.get(stage, 0.0) + float(output["seconds"]), 3)
        if "losses" in output:
            layers.append({"name": output["name"], "losses": output["losses"]})
        elif "epoch" in output:
            epochs.append({key: value for key, value in output.items() if key != "files"})
    return {**(progress or {}), "layers": layers, "epochs": epochs, "stage_seconds": seconds}


def job_of(status: WorkflowStatus, running: Mapping[str, Any] | None = None) -> Job:
    """Read a workflow as a job; ``running`` is its `running_summary` where it has no other."""
    state = WORKFLOW_STATES[status.status]
    summary: Mapping[str, Any] = running or {}
    problem: Mapping[str, Any] | None = None
    if status.status == "SUCCESS" and isinstance(status.output, Mapping):
        summary = status.output
        if summary.get("state") == "rejected":
            state, problem = "rejected", summary.get("problem")
    elif status.status == "ERROR":
        recorded = getattr(status.error, "data", None)
        summary = recorded if isinstance(recorded, Mapping) else {}
        problem = summary.get("problem") or _unexplained().problem()
    elif status.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
        problem = _given_up(status.recovery_attempts).problem()
    elif status.status == "CANCELLED":
        problem = _cancelled().problem()
    created_at = iso_time(status.created_at) or ""
    times = [created_at, iso_time(status.updated_at) or "", str(summary.get("at") or "")]
    return Job(
        id=status.workflow_id,
        state=state,
        spec=spec_of(status),
        created_at=created_at,
        updated_at=max(times),
        started_at=summary.get("started_at") or _dequeued_at(status),
        finished_at=iso_time(status.completed_at),
        stage=summary.get("stage"),
        step=summary.get("step"),
        progress=1.0 if state == "succeeded" else float(summary.get("progress") or 0.0),
        message=summary.get("message"),
        layers=tuple(summary.get("layers") or ()),
        epochs=tuple(summary.get("epochs") or ()),
        estimated_end=summary.get("estimated_end") if state == "running" else None,
        problem=problem,
        model=summary.get("model"),
        stage_seconds=dict(summary.get("stage_seconds") or {}),
    )


def queued_job(job_id: str, spec: Mapping[str, Any], now_ms: int) -> Job:
    """Return a job as it stands right after it was put into the queue."""
    now = iso_time(now_ms) or ""
    return Job(id=job_id, state="queued", spec=spec, created_at=now, updated_at=now)


def spec_of(status: WorkflowStatus) -> Mapping[str, Any]:
    """Return the specification that the job was submitted with, empty where it is none."""
    arguments = status.input["args"] if status.input else ()
    return arguments[0] if arguments and isinstance(arguments[0], Mapping) else {}


def _dequeued_at(status: WorkflowStatus) -> str | None:
    return iso_time(status.dequeued_at) if status.status == "PENDING" else None


def _unexplained() -> JobCrashed:
    return JobCrashed(
        "The job ended with an unexpected error.",
        remedy="Look for the job's id in the worker's log, then try again with "
        "POST /jobs/{id}/retry.",
    )


def _cancelled() -> JobCancelled:
    return JobCancelled(
        "The job was cancelled before its end, and nothing was published.",
        remedy="POST /jobs/{id}/retry goes on where it stopped.",
    )


def _given_up(attempts: int | None) -> JobCrashed:
    return JobCrashed(
        f"The job was given up after it had been started {attempts} times: "
        "each time its worker went away before the job's end.",
        remedy="See in the workers' logs why they died; when it is mended, go on with "
        "POST /jobs/{id}/retry.",
    )
