"""Jobs: listed, shown, cancelled, tried again, deleted, and the report of a finished one."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import HTMLResponse, JSONResponse, Response

from app import report_page
from app.errors import NotAcceptable
from app.negotiation import preferred
from app.openapi import problems
from app.schemas import EpochFigures, Fault, JobAnswer, JobList, LayerLosses, ModelReference
from app.services import JobsDep, ServicesDep
from store.datasets import DatasetStore
from store.errors import Conflict, NotFound
from store.job_folders import JOB_ID_PATTERN
from store.job_record import Job, JobState
from store.job_reports import read_job_report
from store.specs import NAME_PATTERN

router = APIRouter(prefix="/jobs", tags=["jobs"])

_JSON, _HTML = "application/json", "text/html"

JobId = Annotated[
    str,
    Path(pattern=JOB_ID_PATTERN, description="The job's `id`, as POST /compress gave it."),
]
_REPORTED = ("succeeded", "rejected")


@router.get("", summary="List jobs", responses=problems(422, 503))
def list_jobs(
    jobs: JobsDep,
    limit: Annotated[int, Query(ge=1, le=200, description="Most jobs of the page.")] = 50,
    cursor: Annotated[
        str | None,
        Query(max_length=300, description="`next` of the page before; without it, the newest."),
    ] = None,
    state: Annotated[
        list[JobState] | None, Query(description="Only jobs in this state; may be repeated.")
    ] = None,
    model: Annotated[
        str | None,
        Query(
            pattern=NAME_PATTERN,
            description="Only jobs whose specification has this `name`. Jobs of releases that did "
            "not have this filter are not found by it.",
        ),
    ] = None,
) -> JobList:
    """Return a page of jobs, newest first.

    `next` is the cursor of the page after it, null on the last. Jobs that are added or deleted
    meanwhile neither shift the pages nor show up twice.
    """
    page = jobs.page(limit, cursor, state or (), model)
    return JobList(jobs=[job_answer(job) for job in page.jobs], next=page.next)


@router.get("/{job_id}", summary="Show a job", responses=problems(404, 422, 503))
def get_job(job_id: JobId, jobs: JobsDep) -> JobAnswer:
    """Return a job: its state, stage, progress, losses, and why it ended without a model."""
    return job_answer(jobs.get(job_id))


@router.post(
    "/{job_id}/cancel",
    summary="Cancel a job",
    status_code=202,
    responses={
        202: {"description": "The job is cancelled; what works on it ends within two seconds."},
        **problems(404, 409, 422, 503),
    },
)
def cancel_job(job_id: JobId, jobs: JobsDep) -> JobAnswer:
    """Cancel a job, and return it. One that is queued never starts, a running one is stopped.

    A job that is cancelled already is returned as it is. One that is over, or whose model is being
    published, cannot be cancelled any more: 409. The finished steps are kept for a retry.
    """
    return job_answer(jobs.cancel(job_id))


@router.post(
    "/{job_id}/retry",
    summary="Try a job again",
    status_code=202,
    responses={202: {"description": "The job is queued again."}, **problems(404, 409, 422, 503)},
)
def retry_job(job_id: JobId, services: ServicesDep) -> JobAnswer:
    """Put a failed or cancelled job back into the queue, and return it.

    It keeps its id and goes on at the step that failed or was interrupted; what was done before is
    not done again, as far as its files are still there. A job in another state gets 409: one that
    was `rejected` would come to the same end, so submit a new one with another
    `max_accuracy_drop` or method.
    """
    job = services.jobs.get(job_id)
    with _dataset_kept(job, services.datasets):
        return job_answer(services.jobs.retry(job_id, services.settings.data_dir))


@router.delete(
    "/{job_id}",
    summary="Delete a job",
    status_code=204,
    response_class=Response,
    responses={204: {"description": "The job is gone."}, **problems(404, 409, 422, 429, 503)},
)
async def delete_job(job_id: JobId, services: ServicesDep) -> Response:
    """Delete a job that is over: its record, its events, its files and its report.

    The model that it published stays, and so does the checkpoint that was uploaded. A job that is
    queued or running gets 409: cancel it first.
    """
    await services.changes.run(partial(services.jobs.delete, job_id, services.settings.data_dir))
    return Response(status_code=204)


@router.get(
    "/{job_id}/report",
    summary="Show a job's report",
    response_class=JSONResponse,
    responses={
        200: {
            "description": "The report, as `Accept` wants it: JSON, or a page to look at.",
            "headers": {"Vary": {"schema": {"type": "string"}, "description": "Accept"}},
            "content": {
                _JSON: {"schema": {"type": "object"}},
                _HTML: {"schema": {"type": "string"}},
            },
        },
        **problems(404, 406, 409, 422, 503),
    },
)
def get_report(
    job_id: JobId,
    services: ServicesDep,
    accept: Annotated[list[str] | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Return everything that was measured: accuracies, confusions, losses, bytes, seconds, digests.

    As JSON, or as a page with plots where the `Accept` header prefers `text/html`. Jobs that
    succeeded have one, and jobs that were rejected, whose `model` is null.
    """
    form = preferred(", ".join(accept or ()), (_JSON, _HTML))
    if form is None:
        raise NotAcceptable(
            "A report is JSON or HTML.",
            field="Accept",
            remedy=f"Accept {_JSON} or {_HTML}.",
        )
    job = services.jobs.get(job_id)
    if job.state not in _REPORTED:
        raise _no_report(job)
    report = read_job_report(services.settings.jobs_dir, job.id)
    headers = {"Vary": "Accept"}
    if form == _HTML:
        page = report_page.render(report)
        return HTMLResponse(page, headers={**headers, **report_page.HEADERS})
    return JSONResponse(report, headers=headers)


def job_answer(job: Job) -> JobAnswer:
    """Return the wire form of a job."""
    return JobAnswer(
        id=job.id,
        state=job.state,
        spec=dict(job.spec),
        created_at=job.created_at,
        updated_at=job.updated_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        stage=job.stage,
        step=job.step,
        progress=job.progress,
        message=job.message,
        layers=[LayerLosses.model_validate(layer) for layer in job.layers],
        epochs=[EpochFigures.model_validate(epoch) for epoch in job.epochs],
        estimated_end=job.estimated_end,
        problem=None if job.problem is None else Fault.model_validate(job.problem),
        model=None if job.model is None else ModelReference.model_validate(job.model),
        stage_seconds=dict(job.stage_seconds),
    )


@contextmanager
def _dataset_kept(job: Job, datasets: DatasetStore) -> Iterator[None]:
    """Keep the job's dataset from being deleted until the job is queued, and needs it."""
    with ExitStack() as stack:
        # Where it is gone already, a job that is past its need goes on all the same.
        with suppress(NotFound):
            stack.enter_context(datasets.in_use(str(job.spec.get("dataset"))))
        yield


def _no_report(job: Job) -> Conflict | NotFound:
    if job.state in ("queued", "running"):
        return Conflict(
            f"The job is {job.state}; its report comes with its end.",
            remedy="Ask again when GET /jobs/{id} says succeeded or rejected.",
        )
    return NotFound(
        f"The job ended as {job.state} and has no report.",
        remedy="GET /jobs/{id} shows its problem.",
    )
