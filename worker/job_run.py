"""One run of one job: its stages in turn, their steps, and what is told of them.

What is done here depends on the specification and on recorded results alone, as `worker.pipeline`
explains.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dbos import DBOS
from sqlalchemy.exc import SQLAlchemyError

from store.errors import TYPE_PREFIX, InvalidCheckpoint
from store.job_record import PROGRESS_EVENT, JobFailed, step_name
from store.uploads import UploadStore
from worker.estimate import EndEstimate
from worker.job_end import can_go_on, problem_of, rejection
from worker.job_files import JobFiles
from worker.job_log import JobLog
from worker.progress import Progress
from worker.publication import Publication
from worker.shares import epoch_part, finish_part, foreseen_shares, stage_shares, step_parts
from worker.stage_process import TRAINING_ENVIRONMENT, StageProcess, WorkerStopping
from worker.stage_server import context_json
from worker.workplace import Workplace, iso_now

log = logging.getLogger("worker.job_run")

# What the record of an epoch says: how it went, and how it was computed.
_EPOCH_MEMBERS = (
    *("epoch", "loss", "train_accuracy", "images_per_second", "learning_rate", "seconds"),
    *("device", "products"),
)


class JobRun:
    """One execution of one job, and what its steps have given so far.

    ``owner`` is DBOS's token of this execution, see `worker.job_log.execution_token`.
    """

    def __init__(
        self, workplace: Workplace, job_id: str, spec: Mapping[str, Any], owner: str
    ) -> None:
        self._workplace = workplace
        self.job_id = job_id
        self.owner = owner
        self._spec = spec
        self.files = JobFiles(workplace.settings.data_dir, job_id)
        self.stage = "prepare"
        self.step: str | None = None
        self.model: dict[str, Any] | None = None
        # Why the model was rejected.
        self.problem: dict[str, Any] | None = None
        self._started_at: str | None = None
        self._progress = 0.0
        self._shares = stage_shares(fine_tuned=bool(spec.get("fine_tune")))
        self._estimate = EndEstimate(self._shares)
        self.events = JobLog(workplace.events, job_id)
        self._announced: str | None = None
        self._has_cleared = False
        self._layers: list[dict[str, Any]] = []
        self._epochs: list[dict[str, Any]] = []
        self._stage_seconds: dict[str, float] = {}
        # By role ("model", "layer:conv1", "artifact", ...), as the steps recorded them.
        self._refs: dict[str, Any] = {}

    def all_stages(self) -> None:
        """Run the stages in turn. What is recorded already is not done again."""
        self._started_at = DBOS.run_step({"name": "begin"}, iso_now)
        self.events.begin(self._started_at)
        with self._stage("prepare") as process:
            prepared = self._call(process, "prepare", {})
        # Absent where an older release, or one that knows no more, prepared the job.
        foreseen = prepared.get("foreseen") or {}
        self._shares = foreseen_shares(self._shares, foreseen.get("stages", {}))
        self._estimate.foresee(self._shares, foreseen.get("stages", {}))
        with self._stage("calibrate") as process:
            self._calibrate(process, prepared["layers"], foreseen.get("layers", {}))
        if self._spec.get("fine_tune"):
            with self._stage("fine_tune") as process:
                self._fine_tune(process, self._spec["fine_tune"]["epochs"])
        with self._stage("pack") as process:
            self._call(process, "pack", {})
        end = Publication(
            self._workplace, self.job_id, self.owner, self._spec["name"], self.files, self._refs
        )
        with self._stage("evaluate") as process:
            known = {"layers": self._layers, "epochs": self._epochs, "prepared": prepared}
            gate = self._call(process, "evaluate", known).get("gate")
            if gate is not None and not gate["passed"]:
                self.problem = rejection(gate).problem()
                self._record("reject", (1.0, 1.0), partial(end.reject, self._rounded_seconds()))
        if self.problem is None:
            seconds = self._rounded_seconds()
            with self._stage("publish"):
                publish = partial(end.publish, seconds)
                self.model = self._record(None, (0.0, 1.0), publish)["model"]
        self._progress = 1.0

    def _calibrate(
        self, process: StageProcess, names: list[str], seconds: Mapping[str, float]
    ) -> None:
        after = {
            # True where the job was queued when this was a boolean.
            "batch_norm": self._spec["method"].get("recalibrate_batch_norm") in ("end", True),
            "activations": self._spec.get("activation_bits", 32) < 32,
        }
        more = [function for function, wanted in after.items() if wanted]
        parts = step_parts([*names, *more], seconds)
        for name, part in zip(names, parts, strict=False):
            layer = self._call(process, "layer", {"name": name}, step=name, part=part)
            # Absent where an earlier version calibrated the layer, before the job moved here.
            told = {"device": layer.get("device", "cpu")}
            told |= {key: layer[key] for key in ("name", "losses", "seconds")}
            self._layers.append(told)
        for function, part in zip(more, parts[len(names) :], strict=True):
            self._call(process, function, {}, step=function.replace("_", "-"), part=part)

    def _fine_tune(self, process: StageProcess, epochs: int) -> None:
        for epoch in range(1, epochs + 1):
            step, part = f"epoch-{epoch:04}", epoch_part(epoch, epochs)
            done = self._call(process, "epoch", {"epoch": epoch}, step=step, part=part)
            self._epochs.append({key: done[key] for key in _EPOCH_MEMBERS})
            self.events.add("epoch", self._epochs[-1], f"epoch:{epoch}:{done['seconds']}")
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
            **({"state": "rejected", "problem": self.problem} if self.problem is not None else {}),
        }

    def clear_after(self, problem: Mapping[str, Any], temporary: Iterable[Path]) -> None:
        """Remove what a failed job does not need when it is tried again.

        Of its ``temporary`` files those that were there before it was checked whose the job is.
        An upload that `prepare` found to be no usable checkpoint goes too: no job can ever use it.
        One of another network, or too large for the limits, may still be of use.
        """
        self.files.remove(temporary)
        if not can_go_on(problem):
            self.files.keep_only()
        if self.stage == "prepare" and problem["type"] == TYPE_PREFIX + InvalidCheckpoint.code:
            settings = self._workplace.settings
            uploads = UploadStore(settings.uploads_dir, settings.max_checkpoint_bytes)
            uploads.discard(self._spec["checkpoint"])

    @contextmanager
    def _stage(self, stage: str) -> Iterator[StageProcess]:
        self.stage, self.step = stage, None
        self._stage_seconds[stage] = 0.0
        settings = self._workplace.settings
        process = StageProcess(
            self._workplace.stages.get(stage, ""),
            context_json(self.job_id, self._spec, settings),
            threads=settings.worker_threads,
            stop=self._workplace.stop,
            environment=TRAINING_ENVIRONMENT if stage == "fine_tune" else {},
        )
        with process:
            yield process
        try:
            self._workplace.figures.record(self.job_id, stage, self._stage_seconds[stage])
        except SQLAlchemyError:
            # What is only counted must not fail a job; DBOS waits for a database that is away.
            log.exception("stage not counted", extra={"job": self.job_id, "stage": stage})

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

        def body(report: Progress) -> dict[str, Any]:
            return process.call(function, request, report, self.events.note)

        return self._record(step, part, body)

    def _record(
        self,
        step: str | None,
        part: tuple[float, float],
        body: Callable[[Progress], dict[str, Any]],
    ) -> dict[str, Any]:
        """Run ``body`` as a durable step, which is ``part`` of its stage, and note its result."""
        self.step = step
        low, high = self._shares[self.stage]
        begin, width = low + (high - low) * part[0], (high - low) * (part[1] - part[0])
        self._progress = begin
        ran_here = False
        started = time.monotonic()

        def report(
            fraction: float, message: str, details: Mapping[str, Any] | None = None, /
        ) -> None:
            self._progress = begin + width * fraction
            self._workplace.vitals.progressed(self.stage, step, fraction, message)
            event = self._event(message, time.monotonic() - started)
            DBOS.set_event(PROGRESS_EVENT, event)
            self.events.progress({**(details or {}), **event})

        def durable() -> dict[str, Any]:
            nonlocal ran_here
            ran_here = True
            if self._workplace.stop.is_set():
                raise WorkerStopping
            self._announce()
            try:
                left = [] if self._has_cleared else self.files.temporary()
                # Before any work: this raises where the job is no longer this worker's.
                report(0.0, "")
                # What was there before that, runs have left which are over.
                self.files.remove(left)
                self._has_cleared = True
                result = body(report)
                self.events.write()
            except Exception as error:
                raise JobFailed(problem_of(error, self.job_id)) from None
            return {**result, "seconds": round(time.monotonic() - started, 3)}

        result = DBOS.run_step({"name": step_name(self.stage, step)}, durable)
        self._progress = begin + width
        self._stage_seconds[self.stage] += result["seconds"]
        self._refs.update(result.get("files", {}))
        # Also of what an earlier worker recorded, which may not have come to write it down.
        name, seconds = step_name(self.stage, step), result["seconds"]
        told = {"stage": self.stage, "step": step, "seconds": seconds}
        self.events.add("step", told, f"step:{name}:{seconds}")
        if ran_here:
            done = {"job": self.job_id, "stage": self.stage, "step": step}
            log.info("step finished", extra={**done, "seconds": result["seconds"]})
        return result

    def _announce(self) -> None:
        """Tell of the stage before its first step that is really done here."""
        if self._announced != self.stage:
            self._announced = self.stage
            self.events.add("stage", {"stage": self.stage})
        self.events.begin_step()

    def _event(self, message: str, step_seconds: float) -> dict[str, Any]:
        seconds = dict(self._stage_seconds)
        seconds[self.stage] += step_seconds
        left = self._estimate.seconds_left(self.stage, self._progress, seconds)
        return {
            "stage": self.stage,
            "step": self.step,
            "progress": round(self._progress, 4),
            "message": message or None,
            "started_at": self._started_at,
            "estimated_end": None if left is None else iso_now(left),
            "at": iso_now(),
        }
