"""The durable workflow of a compression job.

``prepare -> calibrate (a step per layer) -> fine_tune (a step per epoch, where the job asks for
it) -> pack -> evaluate -> publish``, or, where the model fails the job's gate, ``evaluate:reject``.

DBOS records what each step returned: paths, digests, losses, seconds. After a worker died, the
next one runs this same function again; recorded steps answer from the record, and the work goes on
at the step that was interrupted. So what happens here depends on the specification and on recorded
results alone.

A job that is cancelled, deleted or taken over ends here by an exception of DBOS, which is none of
Python's `Exception`: it comes out of the progress that is reported every second.
"""

import logging
import threading
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from dbos import DBOS
from sqlalchemy.exc import SQLAlchemyError

from store.artifacts import REPORT
from store.figures import StageFigures
from store.job_events import JobEvents
from store.job_record import JobFailed
from store.job_rows import JobRows
from store.jobs import WORKFLOW_NAME
from store.logs import log_context
from store.verdicts import Verdicts
from worker.housekeeping import clear_dead, sweep_cache
from worker.job_end import problem_of
from worker.job_log import execution_token
from worker.job_run import JobRun
from worker.settings import WorkerSettings
from worker.stage_process import WorkerStopping
from worker.vitals import Vitals
from worker.workplace import Workplace

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


class Pipeline:
    """Runs jobs as the worker ``executor_id``, until ``stop`` is set.

    The stages' bodies are found at ``stages``; what it is doing it tells ``vitals``.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        engine: sa.Engine,
        executor_id: str,
        stop: threading.Event,
        stages: Mapping[str, str] = STAGES,
        vitals: Vitals | None = None,
    ) -> None:
        self._workplace = Workplace(
            settings=settings,
            executor_id=executor_id,
            stop=stop,
            stages=stages,
            vitals=vitals or Vitals(),
            figures=StageFigures(engine),
            verdicts=Verdicts(engine),
            events=JobEvents(engine),
            rows=JobRows(engine, WORKFLOW_NAME),
        )

    def run(self, job_id: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Run a job to its end, inside a DBOS workflow; return its summary.

        Raises:
            JobFailed: with the problem document, and how far the job had come.
            WorkerStopping: the worker is being stopped; the job is not over.
            BaseException: of DBOS, where the job is not this worker's any more.
        """
        run = JobRun(self._workplace, job_id, spec, execution_token())
        with self._workplace.vitals.working(job_id), log_context(job=job_id):
            try:
                run.all_stages()
            except WorkerStopping:
                raise
            except BaseException as error:
                temporary = run.files.temporary()
                if not isinstance(error, Exception) or not self._workplace.owns(job_id, run.owner):
                    self._let_go(run)
                    raise
                problem = problem_of(error, job_id)
                run.clear_after(problem, temporary)
                event = {"job": job_id, "stage": run.stage, "step": run.step, "problem": problem}
                log.warning("job failed", extra=event)
                run.events.write()
                raise JobFailed(problem, **run.summary()) from None
            run.events.write()
            run.files.keep_only(REPORT)
            if run.problem is not None:
                log.warning("job rejected", extra={"job": job_id, "problem": run.problem})
            else:
                log.info("job finished", extra={"job": job_id, "model": run.model})
            return run.summary()

    def _let_go(self, run: JobRun) -> None:
        """Clear up after a job that was cancelled, deleted or taken over."""
        where = {"job": run.job_id, "stage": run.stage, "step": run.step}
        try:
            sweep_cache(self._workplace.settings.cache_dir)
            fate = clear_dead(self._workplace.rows, run.files)
        except (SQLAlchemyError, OSError):
            # The housekeeping will do it, once the files are a few minutes old.
            log.exception("job not cleared up after", extra=where)
        else:
            log.info(f"job {fate}", extra=where)


def register(pipeline: Pipeline) -> None:
    """Make the pipeline known to DBOS as the workflow that jobs are submitted to."""

    @DBOS.workflow(name=WORKFLOW_NAME, max_recovery_attempts=MAX_RECOVERY_ATTEMPTS)
    def compress(spec: dict[str, Any]) -> dict[str, Any]:
        job_id = DBOS.workflow_id
        assert job_id is not None
        return pipeline.run(job_id, spec)
