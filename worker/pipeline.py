"""The durable workflow of a compression job.

``prepare -> calibrate (a step per layer) -> fine_tune (a step per epoch, where the job asks for
it) -> pack -> evaluate -> publish``

DBOS records what each step returned: paths, digests, losses, seconds. After a worker died, the
next one runs this same function again; recorded steps answer from the record, and the work goes on
at the step that was interrupted. So what happens here depends on the specification and on recorded
results alone.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dbos import DBOS
from sqlalchemy.exc import SQLAlchemyError

from store.artifacts import REPORT, ModelStore
from store.errors import TYPE_PREFIX, BitpressError, InvalidCheckpoint, JobCrashed
from store.figures import StageFigures
from store.job_record import PROGRESS_EVENT, JobFailed, iso_time, step_name
from store.jobs import WORKFLOW_NAME
from store.uploads import UploadStore
from worker.job_files import STAGED, FileRef, JobFiles
from worker.settings import WorkerSettings
from worker.shares import epoch_part, finish_part, stage_shares
from worker.stage_process import TRAINING_ENVIRONMENT, StageProcess, WorkerStopping
from worker.stage_server import context_json

log = logging.getLogger("worker.pipeline")

MAX_RECOVERY_ATTEMPTS = 10

# Where the body of each stage is found: "module:function", see `worker.stage_context.Stage`.
STAGES: Mapping[str, str] = {
    "prepare": "worker.stages.prepare:prepare",
    "calibrate": "worker.stages.calibrate:calibrate",
    "fine_tune": "worker.stages.fine_tune:fine_tune",
    "pack": "worker.stages.pack:pack",
    "evaluate": "worker.stages.evaluate:evaluate",
}

# What the record of an epoch says: how it went, and how it was computed.
_EPOCH_MEMBERS = (
    *("epoch", "loss", "train_accuracy", "images_per_second", "learning_rate", "seconds"),
    *("device", "products"),
)

_Report = Callable[[float, str], None]


class Pipeline:
    """Runs jobs, with the stages' bodies found at ``stages``, until ``stop`` is set."""

    def __init__(
        self,
        settings: WorkerSettings,
        figures: StageFigures,
        stop: threading.Event,
        stages: Mapping[str, str] = STAGES,
    ) -> None:
        self.settings = settings
        self.figures = figures
        self.stop = stop
        self.stages = stages

    def run(self, job_id: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Run a job to its end, inside a DBOS workflow; return its summary.

        Raises:
            JobFailed: with the problem document, and how far the job had come.
            WorkerStopping: the worker is being stopped; the job is not over.
        """
        run = _Run(self, job_id, spec)
        try:
            run.all_stages()
        except Exception as error:
            problem = _problem(error, job_id)
            run.clear_after(problem)
            event = {"job": job_id, "stage": run.stage, "step": run.step, "problem": problem}
            log.warning("job failed", extra=event)
            raise JobFailed(problem, **run.summary()) from None
        run.files.keep_only(REPORT)
        log.info("job finished", extra={"job": job_id, "model": run.model})
        return run.summary()


def register(pipeline: Pipeline) -> None:
    """Make the pipeline known to DBOS as the workflow that jobs are submitted to."""

    @DBOS.workflow(name=WORKFLOW_NAME, max_recovery_attempts=MAX_RECOVERY_ATTEMPTS)
    def compress(spec: dict[str, Any]) -> dict[str, Any]:
        job_id = DBOS.workflow_id
        assert job_id is not None
        return pipeline.run(job_id, spec)


class _Run:
    """One execution of one job, and what its steps have given so far."""

    def __init__(self, pipeline: Pipeline, job_id: str, spec: Mapping[str, Any]) -> None:
        self._pipeline = pipeline
        self._job_id = job_id
        self._spec = spec
        self.files = JobFiles(pipeline.settings.data_dir, job_id)
        self.stage = "prepare"
        self.step: str | None = None
        self.model: dict[str, Any] | None = None
        self._started_at: str | None = None
        self._progress = 0.0
        self._shares = stage_shares(fine_tuned=bool(spec.get("fine_tune")))
        self._layers: list[dict[str, Any]] = []
        self._epochs: list[dict[str, Any]] = []
        self._stage_seconds: dict[str, float] = {}
        # By role ("model", "layer:conv1", "artifact", ...), as the steps recorded them.
        self._refs: dict[str, Any] = {}

    def all_stages(self) -> None:
        """Run the stages in turn. What is recorded already is not done again."""
        self._started_at = DBOS.run_step({"name": "begin"}, _now)
        with self._stage("prepare") as process:
            prepared = self._call(process, "prepare", {})
        with self._stage("calibrate") as process:
            self._calibrate(process, prepared["layers"])
        if self._spec.get("fine_tune"):
            with self._stage("fine_tune") as process:
                self._fine_tune(process, self._spec["fine_tune"]["epochs"])
        with self._stage("pack") as process:
            self._call(process, "pack", {})
        with self._stage("evaluate") as process:
            known = {"layers": self._layers, "epochs": self._epochs, "prepared": prepared}
            self._call(process, "evaluate", known)
        with self._stage("publish"):
            self.model = self._record(None, (0.0, 1.0), self._publish)["model"]
        self._progress = 1.0

    def _calibrate(self, process: StageProcess, names: list[str]) -> None:
        after = {
            # True where the job was queued when this was a boolean.
            "batch_norm": self._spec["method"].get("recalibrate_batch_norm") in ("end", True),
            "activations": self._spec.get("activation_bits", 32) < 32,
        }
        more = [function for function, wanted in after.items() if wanted]
        count = len(names) + len(more)
        parts = [(index / count, (index + 1) / count) for index in range(count)]
        for name, part in zip(names, parts, strict=False):
            layer = self._call(process, "layer", {"name": name}, step=name, part=part)
            self._layers.append({key: layer[key] for key in ("name", "losses", "seconds")})
        for function, part in zip(more, parts[len(names) :], strict=True):
            self._call(process, function, {}, step=function.replace("_", "-"), part=part)

    def _fine_tune(self, process: StageProcess, epochs: int) -> None:
        for epoch in range(1, epochs + 1):
            step, part = f"epoch-{epoch:04}", epoch_part(epoch, epochs)
            done = self._call(process, "epoch", {"epoch": epoch}, step=step, part=part)
            self._epochs.append({key: done[key] for key in _EPOCH_MEMBERS})
        self._call(process, "finish", {}, step="finish", part=finish_part())

    def summary(self) -> dict[str, Any]:
        """Return what the job's record keeps once the job is over."""
        return {
            "stage": self.stage,
            "step": self.step,
            "progress": round(self._progress, 4),
            "started_at": self._started_at,
            "layers": [{"name": one["name"], "losses": one["losses"]} for one in self._layers],
            "epochs": self._epochs,
            "stage_seconds": self._rounded_seconds(),
            "model": self.model,
        }

    def clear_after(self, problem: Mapping[str, Any]) -> None:
        """Remove the files of a failed job.

        After a crash the steps' files stay, since a retry can go on from them. Where the input is
        at fault no retry can succeed, and where the disk is full they are in the way.

        An upload that `prepare` found to be no usable checkpoint goes too: no job can ever use it.
        One of another network, or too large for the limits, may still be of use.
        """
        self.files.remove_temporary()
        if problem["type"] != TYPE_PREFIX + JobCrashed.code:
            self.files.keep_only()
        if self.stage == "prepare" and problem["type"] == TYPE_PREFIX + InvalidCheckpoint.code:
            settings = self._pipeline.settings
            uploads = UploadStore(settings.uploads_dir, settings.max_checkpoint_bytes)
            uploads.discard(self._spec["checkpoint"])

    @contextmanager
    def _stage(self, stage: str) -> Iterator[StageProcess]:
        self.stage, self.step = stage, None
        self._stage_seconds[stage] = 0.0
        settings = self._pipeline.settings
        process = StageProcess(
            self._pipeline.stages.get(stage, ""),
            context_json(self._job_id, self._spec, settings),
            threads=settings.worker_threads,
            stop=self._pipeline.stop,
            environment=TRAINING_ENVIRONMENT if stage == "fine_tune" else {},
        )
        with process:
            yield process
        try:
            self._pipeline.figures.record(self._job_id, stage, self._stage_seconds[stage])
        except SQLAlchemyError:
            # What is only counted must not fail a job; DBOS waits for a database that is away.
            log.exception("stage not counted", extra={"job": self._job_id, "stage": stage})

    def _rounded_seconds(self) -> dict[str, float]:
        return {stage: round(seconds, 3) for stage, seconds in self._stage_seconds.items()}

    def _call(
        self,
        process: StageProcess,
        function: str,
        arguments: Mapping[str, Any],
        *,
        step: str | None = None,
        part: tuple[float, float] = (0.0, 1.0),
    ) -> dict[str, Any]:
        """Have the stage's process run ``function`` as a durable step."""
        request = {**arguments, "files": self._refs}

        def body(report: _Report) -> dict[str, Any]:
            return process.call(function, request, report)

        return self._record(step, part, body)

    def _record(
        self,
        step: str | None,
        part: tuple[float, float],
        body: Callable[[_Report], dict[str, Any]],
    ) -> dict[str, Any]:
        """Run ``body`` as a durable step, which is ``part`` of its stage, and note its result."""
        self.step = step
        low, high = self._shares[self.stage]
        begin, width = low + (high - low) * part[0], (high - low) * (part[1] - part[0])
        self._progress = begin
        ran_here = False

        def report(fraction: float, message: str) -> None:
            self._progress = begin + width * fraction
            DBOS.set_event(PROGRESS_EVENT, self._event(message))

        def durable() -> dict[str, Any]:
            nonlocal ran_here
            ran_here = True
            if self._pipeline.stop.is_set():
                raise WorkerStopping
            started = time.monotonic()
            try:
                # Before any work: this raises where the job is no longer this worker's.
                report(0.0, "")
                result = body(report)
            except Exception as error:
                raise JobFailed(_problem(error, self._job_id)) from None
            return {**result, "seconds": round(time.monotonic() - started, 3)}

        result = DBOS.run_step({"name": step_name(self.stage, step)}, durable)
        self._progress = begin + width
        self._stage_seconds[self.stage] += result["seconds"]
        self._refs.update(result.get("files", {}))
        if ran_here:
            done = {"job": self._job_id, "stage": self.stage, "step": step}
            log.info("step finished", extra={**done, "seconds": result["seconds"]})
        return result

    def _event(self, message: str) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "step": self.step,
            "progress": round(self._progress, 4),
            "message": message or None,
            "started_at": self._started_at,
            "at": _now(),
        }

    def _publish(self, _report: _Report) -> dict[str, Any]:
        """Publish what `evaluate` staged. Repeated after a crash, it publishes nothing twice."""
        for role in ("artifact", "predictions"):
            self._resolve(role)
        seconds = self._rounded_seconds()
        del seconds["publish"]
        report = {
            **json.loads(self._resolve("measured").read_text()),
            "job": self._job_id,
            "stage_seconds": seconds,
            "created_at": _now(),
        }
        self._write_json(f"{STAGED}/{REPORT}", report)
        models = ModelStore(self._pipeline.settings.models_dir)
        version = models.publish(self.files.folder / STAGED, self._spec["name"], self._job_id)
        self._write_json(REPORT, version.report)
        return {"model": {"name": version.name, "version": version.version}}

    def _resolve(self, role: str) -> Path:
        return self.files.resolve(FileRef.from_json(self._refs[role]))

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=2) + "\n"
        self.files.write(name, lambda path: _write_text(path, text))


def _now() -> str:
    return iso_time(time.time_ns() // 1_000_000) or ""


def _problem(error: Exception, job_id: str) -> dict[str, Any]:
    """Return the problem document of whatever ended a step."""
    if isinstance(error, BitpressError):
        return error.problem()
    # `JobFailed`, or what DBOS made of one that an earlier worker recorded.
    data = getattr(error, "data", None)
    if isinstance(data, Mapping) and "problem" in data:
        return dict(data["problem"])
    log.error("job met an unexpected error", exc_info=error, extra={"job": job_id})
    return JobCrashed(
        f"The job met an error that nobody expected ({type(error).__name__}).",
        remedy="Look for the job's id in the worker's log, then submit the job again.",
    ).problem()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
