"""POST /compress: a checkpoint and a specification in, a queued job out; or a forecast of it."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator

from app.admission import check_checkpoint, check_spec, check_spec_but_dataset, known_dataset
from app.forecast_document import Forecast
from app.openapi import form_body, problems
from app.routes.jobs import job_answer
from app.schemas import JobAnswer
from app.services import Services, ServicesDep
from app.uploads import BodyLimits, StoredForm, receive_stored_form
from store.datasets import Dataset
from store.errors import TYPE_PREFIX, InvalidCheckpoint, InvalidSpec, NotFound, Unavailable
from store.job_record import Job
from store.jobs import check_same_request, keyed_job_id, new_job_id
from store.specs import CompressSpec, parse_spec
from store.uploads import UploadWriter

router = APIRouter(tags=["jobs"])

_FORM = form_body(
    {
        "spec": {"$ref": "#/components/schemas/CompressSpec"},
        "checkpoint": {
            "type": "string",
            "format": "binary",
            "description": "safetensors, or a state dict written by torch.save; left out where "
            "`spec.checkpoint` names an earlier upload.",
        },
    },
    required=("spec",),
    encoding={"spec": {"contentType": "application/json"}},
)
# Room for the multipart syntax around the parts.
_OVERHEAD_BYTES = 2**20


def _true_or_false(value: object) -> object:
    # pydantic takes "yes", "on" and "1" for true as well, which the schema of a boolean does not.
    if value not in ("true", "false"):
        raise ValueError("give true or false")
    return value


@router.post(
    "/compress",
    status_code=202,
    response_model=JobAnswer,
    responses={
        200: {"model": Forecast, "description": "With `dry_run`: what the job would come to."},
        202: {
            "headers": {
                "Location": {"schema": {"type": "string"}, "description": "The job."},
                "Idempotency-Replayed": {
                    "schema": {"type": "string", "enum": ["true"]},
                    "description": "The job is that of an earlier request with this key.",
                },
            }
        },
        **problems(400, 408, 413, 415, 422, 503, 507),
    },
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": _FORM}}},
)
async def compress(
    request: Request,
    response: Response,
    services: ServicesDep,
    dry_run: Annotated[
        bool,
        BeforeValidator(_true_or_false),
        Query(
            description="Check the request and foresee the model's size, and the job's seconds and "
            "memory, but queue and keep nothing. The checkpoint may be left out; a dataset that is "
            "not registered yet is found fault with last."
        ),
    ] = False,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            pattern="^[!-~]{1,255}$",
            description="Any text of visible ASCII characters, new for every job. A request that "
            "is sent again with the same key, specification and checkpoint makes no second job but "
            "is answered with the first, however that ended; with another specification or "
            "checkpoint it is refused. A key is free again when its job is deleted. A dry run "
            "takes no notice of it.",
        ),
    ] = None,
) -> JobAnswer | Response:
    """Queue a compression job, or with `dry_run` foresee it.

    The specification is checked as soon as it has arrived: sent before the file, a mistake in it is
    answered without waiting for the rest. A refused request leaves nothing behind.
    """
    if dry_run:
        return JSONResponse((await _foresee(request, services)).model_dump(mode="json"))
    checked: list[_Checked] = []

    async def check_early(name: str, text: str) -> None:
        checked.append(await run_sync(_check, text, key, services))

    async with _received(request, services, check_early) as form:
        if not checked:
            raise _no_spec()
        job, replayed = await run_sync(_submit, checked[0], form.file, key, services)
    request.state.job = job.id
    response.headers["Location"] = f"/jobs/{job.id}"
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return job_answer(job)


@dataclass(frozen=True)
class _Checked:
    """A specification that was found sound, or that of an ``earlier`` job under the same key."""

    spec: CompressSpec
    dataset: Dataset | None = None
    earlier: Job | None = None


def _check(text: str, key: str | None, services: Services) -> _Checked:
    spec = parse_spec(text)
    earlier = None if key is None else services.jobs.find(keyed_job_id(key))
    if earlier is not None:
        # Not held to what there is today: its dataset may be gone, and it is the same job still.
        check_same_request(earlier, spec)
        return _Checked(spec, earlier=earlier)
    return _Checked(spec, check_spec(spec, services.datasets))


def _received(
    request: Request, services: Services, check_early: Callable[[str, str], Awaitable[None]]
) -> AbstractAsyncContextManager[StoredForm]:
    """Receive the form; ``check_early`` sees the spec as soon as it is there."""
    settings = services.settings
    return receive_stored_form(
        request,
        BodyLimits(
            settings.max_checkpoint_bytes + settings.max_spec_bytes + _OVERHEAD_BYTES,
            settings.body_idle_s,
            field="checkpoint",
        ),
        services.uploads,
        file_field="checkpoint",
        text_fields={"spec": settings.max_spec_bytes},
        max_file_bytes=settings.max_checkpoint_bytes,
        on_text=check_early,
    )


async def _foresee(request: Request, services: Services) -> Forecast:
    """Answer a dry run. What was sent along is checked, and gone when this returns."""
    checked: list[tuple[CompressSpec, Dataset | None]] = []

    async def check_early(name: str, text: str) -> None:
        spec = await run_sync(parse_spec, text)
        checked.append((spec, await run_sync(check_spec_but_dataset, spec, services.datasets)))

    async with _received(request, services, check_early) as form:
        if not checked:
            raise _no_spec()
        spec, dataset = checked[0]
        if form.file is not None or spec.checkpoint is not None:
            await run_sync(_check_file, spec, dataset, form.file, services)
    if dataset is None:
        dataset = await run_sync(known_dataset, spec, services.datasets)
    return await services.forecaster.foresee(spec, dataset)


def _check_file(
    spec: CompressSpec, dataset: Dataset | None, file: UploadWriter | None, services: Services
) -> None:
    """Check the checkpoint that was sent along, or else the earlier one that the spec names."""
    path = _earlier_upload(spec, services) if file is None else _staged(spec, file)
    check_checkpoint(spec, dataset, path)


def _submit(
    checked: _Checked, file: UploadWriter | None, key: str | None, services: Services
) -> tuple[Job, bool]:
    """Queue the job, or find the earlier one; return it, and whether it was there before."""
    spec = checked.spec
    if checked.earlier is not None:
        if file is not None:
            _staged(spec, file)
            spec = spec.model_copy(update={"checkpoint": file.finish().digest})
        elif spec.checkpoint is None:
            raise _no_checkpoint()
        check_same_request(checked.earlier, spec)
        if file is not None and _lacks_checkpoint(checked.earlier, services):
            file.commit()
        return checked.earlier, True
    job_id = new_job_id() if key is None else keyed_job_id(key)
    if file is None:
        check_checkpoint(spec, checked.dataset, _earlier_upload(spec, services))
        return _enqueue(spec, job_id, key, services)
    check_checkpoint(spec, checked.dataset, _staged(spec, file))
    # Kept only now, when nothing but the database is left that could refuse the request.
    upload = file.commit()
    try:
        spec = spec.model_copy(update={"checkpoint": upload.digest})
        return _enqueue(spec, job_id, key, services)
    except Unavailable:
        if not _may_be_queued(job_id, upload.digest, services):
            file.withdraw()
        raise
    except Exception:
        file.withdraw()
        raise


def _lacks_checkpoint(job: Job, services: Services) -> bool:
    """Whether the checkpoint of an earlier job is gone, though it may still be of use to it."""
    code = (job.problem or {}).get("type")
    if job.state == "failed" and code == TYPE_PREFIX + InvalidCheckpoint.code:
        return False
    try:
        services.uploads.resolve(str(job.spec.get("checkpoint")))
    except NotFound:
        return job.state not in ("succeeded", "rejected")
    return False


def _may_be_queued(job_id: str, digest: str, services: Services) -> bool:
    """Whether a job that could not be queued, as it seemed, may be there and need its upload."""
    try:
        job = services.jobs.find(job_id)
    except Unavailable:
        return True
    return job is not None and job.spec.get("checkpoint") == digest


def _enqueue(
    spec: CompressSpec, job_id: str, key: str | None, services: Services
) -> tuple[Job, bool]:
    with ExitStack() as stack:
        try:
            stack.enter_context(services.datasets.in_use(spec.dataset))
        except NotFound as error:
            # Deleted since it was checked.
            raise InvalidSpec(error.detail, field="spec.dataset", remedy=error.remedy) from None
        if key is None:
            return services.jobs.submit(spec, job_id), False
        return services.jobs.submit_once(spec, key)


def _staged(spec: CompressSpec, file: UploadWriter) -> Path:
    """Return where the file lies that was sent along, after holding it to the spec's digest."""
    staged = file.finish()
    if spec.checkpoint not in (None, staged.digest):
        raise InvalidSpec(
            "The file that was sent has another digest than the one given.",
            field="spec.checkpoint",
            remedy="Send either the file or its digest.",
        )
    return staged.path


def _no_spec() -> InvalidSpec:
    return InvalidSpec(
        "There is no spec.", field="spec", remedy="Send the form field spec, a JSON object."
    )


def _no_checkpoint() -> InvalidSpec:
    return InvalidSpec(
        "There is no checkpoint.",
        field="checkpoint",
        remedy="Send the file as form field checkpoint, or give the digest of an earlier"
        " upload as spec.checkpoint.",
    )


def _earlier_upload(spec: CompressSpec, services: Services) -> Path:
    if spec.checkpoint is None:
        raise _no_checkpoint()
    try:
        return services.uploads.resolve(spec.checkpoint)
    except NotFound as error:
        raise InvalidSpec(error.detail, field="spec.checkpoint", remedy=error.remedy) from None
