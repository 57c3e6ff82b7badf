"""Jobs under control: cancelled, tried again, deleted.

Each of the three may meet another one, or the worker, at any moment. What keeps them apart:

- the verdict (`store.verdicts`), which lets a job be published or cancelled, never both;
- DBOS's status of the workflow, which every worker checks, under a lock, when it records a step or
  the progress: one whose job was cancelled, deleted or given to another stops within a second;
- the time of the job's end, without which nothing is deleted (`store.job_removal`).
"""

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from dbos import DBOSClient
from dbos import error as dbos_error

from store.carried_totals import CarriedTotals
from store.errors import Conflict
from store.job_events import JobEvents
from store.job_folders import restart_step
from store.job_record import FINAL_STATES, Job
from store.job_removal import JobRemoval
from store.verdicts import Verdict, Verdicts

# As often a job may come to another end while it is being deleted.
_ENDS = 5
_CANCEL_REMEDY = "GET /jobs/{id} shows how it ended; DELETE /jobs/{id} removes it."


class JobControl:
    """Cancels, retries and deletes jobs of one database; ``read`` returns a job by its id."""

    def __init__(
        self,
        engine: sa.Engine,
        client: DBOSClient,
        queue: str,
        read: Callable[[str], Job],
        events: JobEvents,
    ) -> None:
        self._events = events
        self._client = client
        self._queue = queue
        self._read = read
        self._verdicts = Verdicts(engine)
        self._carried = CarriedTotals(engine)
        self._removal = JobRemoval(engine)
        self._engine = engine

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; one that is cancelled already stays so. Returns the job.

        Raises:
            NotFound: there is no such job.
            Conflict: it is over, or its end has been decided.
        """
        job = self._read(job_id)
        if job.state == "cancelled":
            return job
        if job.state in FINAL_STATES:
            raise _is_over(job)
        verdict = self._verdicts.give(job_id, "cancel")
        if verdict != "cancel":
            raise _is_decided(verdict)
        self._client.cancel_workflow(job_id)
        # Meanwhile it may have been tried again after another's cancelling, which takes the
        # verdict away, and have come as far as here. Then it must go on.
        verdict = self._verdicts.of(job_id) or "cancel"
        if verdict != "cancel":
            self._client.resume_workflow(job_id, queue_name=self._queue)
            raise _is_decided(verdict)
        job = self._read(job_id)
        if job.state in FINAL_STATES and job.state != "cancelled":
            # It failed, by itself, in the moment before.
            self._verdicts.lift(job_id)
            raise _is_over(job)
        return job

    def retry(self, job_id: str, data_dir: Path) -> Job:
        """Put a failed or cancelled job back into the queue, to go on where it ended.

        The steps that are recorded, and whose files below ``data_dir`` are there, are not done
        again. Returns the job.

        Raises:
            NotFound: there is no such job.
            Conflict: it has not ended, or in another way.
        """
        job = self._read(job_id)
        if job.state not in ("failed", "cancelled"):
            raise _not_to_retry(job)
        steps = [
            (step["function_id"], step["output"], step["error"] is not None)
            for step in self._client.list_workflow_steps(job_id)
        ]
        start = restart_step(steps, data_dir)
        # Before its record is gone: how it ended is news to whoever has not read of it yet.
        self._events.close(job)
        # First: a worker that takes the job up at once must not find the old verdict.
        self._verdicts.lift(job_id)
        try:
            self._client.rewind_workflow(job_id, start_step=start, queue_name=self._queue)
        except dbos_error.DBOSNonExistentWorkflowError:
            # Deleted meanwhile.
            return self._read(job_id)
        except dbos_error.DBOSException:
            # Somebody else was faster.
            raise _not_to_retry(self._read(job_id)) from None
        self._events.reopen(job_id)
        with self._engine.begin() as connection:
            self._carried.carry_ending(connection, job.state)
        return self._read(job_id)

    def delete(self, job_id: str, data_dir: Path) -> None:
        """Remove a job that is over: its record, its files below ``data_dir``, all but figures.

        What it published stays.

        Raises:
            NotFound: there is no such job.
            Conflict: it is not over.
        """
        for _ in range(_ENDS):
            if self._removal.remove(self._over(job_id), data_dir):
                return
            # It is gone, or has been tried again, as the next look tells.
        raise Conflict(
            "The job is tried again and again.",
            remedy="Let nobody retry it, and delete it then.",
        )

    def _over(self, job_id: str) -> Job:
        job = self._read(job_id)
        if job.state not in FINAL_STATES:
            raise Conflict(
                f"The job is {job.state}.",
                remedy="Cancel it first with POST /jobs/{id}/cancel, or wait for its end.",
            )
        return job


def _is_over(job: Job) -> Conflict:
    return Conflict(f"The job is over: it {_ended(job)}.", remedy=_CANCEL_REMEDY)


def _is_decided(verdict: Verdict) -> Conflict:
    if verdict == "publish":
        return Conflict(
            "The job's model is being published, or has been.",
            remedy="Wait for its end; DELETE /models/{name}/versions/{version} removes the model.",
        )
    return Conflict(
        "The job is over but for its report: its model is rejected.", remedy=_CANCEL_REMEDY
    )


def _not_to_retry(job: Job) -> Conflict:
    if job.state == "rejected":
        return Conflict(
            "The job ran to its end, and its model lost more accuracy than the job allows: "
            "run again, it would come to the same.",
            remedy="Submit a new job with another max_accuracy_drop or method.",
        )
    if job.state == "succeeded":
        return Conflict(
            "The job has succeeded.", remedy="Submit a new job to make another version."
        )
    return Conflict(
        f"The job is {job.state}, so there is nothing to try again.",
        remedy="Wait for its end, or cancel it first with POST /jobs/{id}/cancel.",
    )


def _ended(job: Job) -> str:
    return "was rejected" if job.state == "rejected" else f"has {job.state}"
