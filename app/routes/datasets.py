"""POST and GET /datasets."""

import re

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from app.openapi import form_body, problems
from app.schemas import DatasetAnswer, DatasetList
from app.services import DatasetsDep, Services, ServicesDep
from app.uploads import BodyLimits, StoredForm, receive_stored_form
from store.datasets import Dataset
from store.errors import InvalidInput, NotFound
from store.specs import NAME_PATTERN

router = APIRouter(prefix="/datasets", tags=["datasets"])

_FORM = form_body(
    {
        "name": {"type": "string", "pattern": NAME_PATTERN},
        "archive": {
            "type": "string",
            "format": "binary",
            "description": "zip, tar, tar.gz or tar.xz with `<class>/...` or "
            "`{train,val,test}/<class>/...`, below an optional top folder.",
        },
    },
    required=("name", "archive"),
)
_MOST_NAME_BYTES = 1024
_OVERHEAD_BYTES = 2**20


@router.post(
    "",
    status_code=201,
    response_model=DatasetAnswer,
    responses={
        200: {"model": DatasetAnswer, "description": "It existed, with the same content."},
        **problems(400, 408, 409, 413, 415, 422, 507),
    },
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": _FORM}}},
)
async def upload_dataset(
    request: Request, response: Response, services: ServicesDep
) -> DatasetAnswer:
    """Register an image folder per class. The archive is checked as a whole before it is kept."""
    settings = services.settings
    async with receive_stored_form(
        request,
        BodyLimits(
            settings.max_archive_bytes + _OVERHEAD_BYTES, settings.body_idle_s, field="archive"
        ),
        services.uploads,
        file_field="archive",
        text_fields={"name": _MOST_NAME_BYTES},
        max_file_bytes=settings.max_archive_bytes,
        on_text=_check_name,
    ) as form:
        dataset, existed = await run_sync(_ingest, form, services, limiter=services.ingestion)
    response.status_code = 200 if existed else 201
    return dataset_answer(dataset)


@router.get("", responses=problems())
def list_datasets(datasets: DatasetsDep) -> DatasetList:
    """Return every registered dataset, by name."""
    return DatasetList(datasets=[dataset_answer(dataset) for dataset in datasets.list()])


def dataset_answer(dataset: Dataset) -> DatasetAnswer:
    """Return the wire form of a dataset."""
    return DatasetAnswer(
        name=dataset.name,
        digest=dataset.digest,
        archive_digest=dataset.archive_digest,
        classes=list(dataset.classes),
        splits=dict(dataset.splits),
        bytes=dataset.bytes,
        created_at=dataset.created_at,
    )


async def _check_name(field: str, name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInput(
            "This is no dataset name.",
            field=field,
            remedy="Use up to 64 lower-case letters, digits, '.', '_' and '-',"
            " beginning with a letter or digit.",
        )


def _ingest(form: StoredForm, services: Services) -> tuple[Dataset, bool]:
    for name, sent in (("name", "name" in form.texts), ("archive", form.file is not None)):
        if not sent:
            raise InvalidInput(
                f"There is no {name}.", field=name, remedy="Send the form fields name and archive."
            )
    assert form.file is not None
    name = form.texts["name"]
    try:
        services.datasets.get(name)
        existed = True
    except NotFound:
        existed = False
    return services.datasets.ingest(form.file.finish().path, name), existed
