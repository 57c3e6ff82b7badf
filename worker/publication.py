"""How a job that has run to its end is published, or rejected; or cancelled at the last moment.

Before anything of it is seen outside, the worker has the last word on the job, in the database.
Whoever cancels it comes before that, and is obeyed, or after it, and is refused.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dbos import DBOS
from sqlalchemy.exc import SQLAlchemyError

from store.artifacts import REPORT, ModelStore
from store.errors import NotFound, Unavailable
from store.verdicts import Verdict
from worker.job_files import STAGED, FileRef, JobFiles
from worker.progress import Progress
from worker.stage_process import WorkerStopping
from worker.workplace import Workplace, iso_now

log = logging.getLogger("worker.publication")

# How often is told that a publication waits. What is told fails once the job is another's.
_REPORT_EVERY_S = 1.0


class Publication:
    """The end of the job ``job_id``, whose model is called ``name``.

    ``owner`` is the token of this execution of the job; ``refs`` are its files by role, as its
    steps have recorded them.
    """

    def __init__(
        self,
        workplace: Workplace,
        job_id: str,
        owner: str,
        name: str,
        files: JobFiles,
        refs: Mapping[str, Any],
    ) -> None:
        self._workplace = workplace
        self._job_id = job_id
        self._owner = owner
        self._name = name
        self._files = files
        self._refs = refs

    def publish(self, stage_seconds: Mapping[str, float], report: Progress) -> dict[str, Any]:
        """Publish what `evaluate` staged. Repeated after a crash, it publishes nothing twice.

        Where that fails and nothing was published, the job can be cancelled again.
        """
        for role in ("artifact", "predictions"):
            self._resolve(role)
        final = self._final_report(stage_seconds)
        self._write_json(f"{STAGED}/{REPORT}", final)
        models = ModelStore(self._workplace.settings.models_dir)
        self._decide("publish", report)
        try:
            version = models.publish(
                self._files.folder / STAGED, self._name, self._job_id, self._waiting(report)
            )
        except Exception:
            self._withdraw(models)
            raise
        model = {"name": version.name, "version": version.version}
        try:
            final = version.report
        except (NotFound, Unavailable):
            # Deleted in this very moment, or damaged: that is no fault of the job.
            final = {**final, "model": model}
        self._write_json(REPORT, final)
        return {"model": model}

    def reject(self, stage_seconds: Mapping[str, float], report: Progress) -> dict[str, Any]:
        """Keep the report of a model that failed its gate, and publish nothing."""
        final = self._final_report(stage_seconds)
        self._decide("reject", report)
        self._write_json(REPORT, {**final, "model": None})
        return {}

    def _final_report(self, stage_seconds: Mapping[str, float]) -> dict[str, Any]:
        return {
            **json.loads(self._resolve("measured").read_text()),
            "job": self._job_id,
            "stage_seconds": dict(stage_seconds),
            "created_at": iso_now(),
        }

    def _decide(self, verdict: Verdict, report: Progress) -> None:
        """Have the last word on the job; where somebody else had it, end here."""
        decide = partial(self._workplace.verdicts.decide, self._job_id, verdict, self._owner)
        stands = self._workplace.patiently(decide)
        if stands == verdict:
            return
        if stands == "cancel" and self._workplace.owns(self._job_id, self._owner):
            # Who wanted it may have died before it was done.
            DBOS.cancel_workflow(self._job_id)
        # Raises, as the job is not this worker's any more.
        report(1.0, "")
        raise AssertionError("a job that was given away can still be written to")

    def _withdraw(self, models: ModelStore) -> None:
        """Take the last word back, where it is certain that nothing of the job is published."""
        if not models.has_nothing_of(self._name, self._job_id):
            return
        withdraw = partial(self._workplace.verdicts.withdraw, self._job_id, self._owner)
        try:
            self._workplace.patiently(withdraw)
        except SQLAlchemyError:
            # The cause of the failure is the one to be told.
            log.exception("verdict not withdrawn", extra={"job": self._job_id})

    def _waiting(self, report: Progress) -> Callable[[], None]:
        """Return what is done while another process changes the models: it may be frozen."""
        due = 0.0

        def wait() -> None:
            nonlocal due
            if self._workplace.stop.is_set():
                raise WorkerStopping
            if time.monotonic() >= due:
                report(0.0, "waiting for another process that changes the models")
                due = time.monotonic() + _REPORT_EVERY_S

        return wait

    def _resolve(self, role: str) -> Path:
        return self._files.resolve(FileRef.from_json(self._refs[role]))

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=2) + "\n"
        self._files.write(name, partial(_write, text))


def _write(text: str, path: Path) -> None:
    path.write_text(text)
