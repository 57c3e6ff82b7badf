"""POST /compress: a checkpoint and a specification in, a queued job out."""

from pathlib import Path

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from app.admission import check_checkpoint, check_spec
from app.openapi import form_body, problems
from app.routes.jobs import job_answer
from app.schemas import JobAnswer
from app.services import Services, ServicesDep
from app.uploads import BodyLimits, receive_stored_form
from store.datasets import Dataset
from store.errors import InvalidSpec, NotFound
from store.job_record import Job
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


@router.post(
    "/compress",
    status_code=202,
    response_model=JobAnswer,
    responses={
        202: {"headers": {"Location": {"schema": {"type": "string"}}}},
        **problems(400, 408, 413, 415, 422, 503, 507),
    },
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": _FORM}}},
)
async def compress(request: Request, response: Response, services: ServicesDep) -> JobAnswer:
    """Queue a compression job.

    The specification is checked as soon as it has arrived: sent before the file, a mistake in it is
    answered without waiting for the rest. A refused request leaves nothing behind.
    """
    settings = services.settings
    checked: list[tuple[CompressSpec, Dataset]] = []

    async def check_early(name: str, text: str) -> None:
        spec = parse_spec(text)
        checked.append((spec, await run_sync(check_spec, spec, services.datasets)))

    async with receive_stored_form(
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
    ) as form:
        if not checked:
            raise InvalidSpec(
                "There is no spec.", field="spec", remedy="Send the form field spec, a JSON object."
            )
        job = await run_sync(_submit, *checked[0], form.file, services)
    response.headers["Location"] = f"/jobs/{job.id}"
    return job_answer(job)


def _submit(
    spec: CompressSpec, dataset: Dataset, file: UploadWriter | None, services: Services
) -> Job:
    if file is None:
        check_checkpoint(spec, dataset, _earlier_upload(spec, services))
        return services.jobs.submit(spec)
    staged = file.finish()
    if spec.checkpoint not in (None, staged.digest):
        raise InvalidSpec(
            "The file that was sent has another digest than the one given.",
            field="spec.checkpoint",
            remedy="Send either the file or its digest.",
        )
    check_checkpoint(spec, dataset, staged.path)
    # Kept only now, when nothing but the database is left that could refuse the request.
    upload = file.commit()
    try:
        return services.jobs.submit(spec.model_copy(update={"checkpoint": upload.digest}))
    except Exception:
        file.withdraw()
        raise


def _earlier_upload(spec: CompressSpec, services: Services) -> Path:
    if spec.checkpoint is None:
        raise InvalidSpec(
            "There is no checkpoint.",
            field="checkpoint",
            remedy="Send the file as form field checkpoint, or give the digest of an earlier"
            " upload as spec.checkpoint.",
        )
    try:
        return services.uploads.resolve(spec.checkpoint)
    except NotFound as error:
        raise InvalidSpec(error.detail, field="spec.checkpoint", remedy=error.remedy) from None
