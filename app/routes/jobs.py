"""GET /jobs, /jobs/{id} and /jobs/{id}/report."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import HTMLResponse, JSONResponse, Response

from app import report_page
from app.errors import NotAcceptable
from app.negotiation import preferred
from app.openapi import problems
from app.schemas import EpochFigures, Fault, JobAnswer, JobList, LayerLosses, ModelReference
from app.services import JobsDep, ServicesDep
from store.errors import Conflict, NotFound
from store.job_record import Job
from store.job_reports import read_job_report

router = APIRouter(prefix="/jobs", tags=["jobs"])

_JSON, _HTML = "application/json", "text/html"

JobId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


@router.get("", responses=problems(422, 503))
def list_jobs(jobs: JobsDep, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> JobList:
    """Return the newest jobs."""
    return JobList(jobs=[job_answer(job) for job in jobs.list(limit)])


@router.get("/{job_id}", responses=problems(404, 422, 503))
def get_job(job_id: JobId, jobs: JobsDep) -> JobAnswer:
    """Return a job: its state, stage, progress, losses, and its problem where it failed."""
    return job_answer(jobs.get(job_id))


@router.get(
    "/{job_id}/report",
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

    As JSON, or as a page with plots where the `Accept` header prefers `text/html`.
    """
    form = preferred(", ".join(accept or ()), (_JSON, _HTML))
    if form is None:
        raise NotAcceptable(
            "A report is JSON or HTML.",
            field="Accept",
            remedy=f"Accept {_JSON} or {_HTML}.",
        )
    job = services.jobs.get(job_id)
    if job.state != "succeeded":
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
        problem=None if job.problem is None else Fault.model_validate(job.problem),
        model=None if job.model is None else ModelReference.model_validate(job.model),
        stage_seconds=dict(job.stage_seconds),
    )


def _no_report(job: Job) -> Conflict | NotFound:
    if job.state in ("queued", "running"):
        return Conflict(
            f"The job is {job.state}; its report comes with its end.",
            remedy="Ask again when GET /jobs/{id} says succeeded.",
        )
    return NotFound(
        f"The job ended as {job.state} and has no report.",
        remedy="GET /jobs/{id} shows its problem.",
    )
