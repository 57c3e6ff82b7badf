"""/datasets: taken in by upload or from a root, listed, looked at and deleted."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Path, Query, Request, Response

from app.contact_sheet import SheetSize, draw_sheet, kept_sheet, sheet_name
from app.dataset_details import find_details, kept_details
from app.errors import UnsupportedMedia
from app.file_ranges import names_tag
from app.interruption import run_while_connected
from app.json_bodies import read_json_body
from app.openapi import form_body, problems
from app.schemas import DatasetAnswer, DatasetDetail, DatasetList, RootRegistration
from app.services import DatasetsDep, Services, ServicesDep
from app.uploads import BodyLimits, StoredForm, media_type, receive_stored_form
from store.archive_members import Proceed
from store.dataset_cache import remove_orphans
from store.datasets import Dataset, Registered
from store.errors import InvalidInput, NotFound, Unavailable
from store.specs import NAME_PATTERN

router = APIRouter(prefix="/datasets", tags=["datasets"])

_FORM = form_body(
    {
        "name": {"type": "string", "pattern": NAME_PATTERN},
        "archive": {
            "type": "string",
            "format": "binary",
            "description": "zip, tar, tar.gz, tar.xz or tar.bz2 with `<class>/...` or "
            "`{train,val,test}/<class>/...`, below an optional top folder; the same with the files "
            "of CIFAR-10 or CIFAR-100, python or binary; or npz.",
        },
    },
    required=("name", "archive"),
)
_MOST_NAME_BYTES = 1024
_OVERHEAD_BYTES = 2**20
_MOST_LISTED = 1000

DatasetName = Annotated[str, Path(pattern=NAME_PATTERN, description="Name of a dataset.")]


@router.post(
    "",
    summary="Register a dataset",
    status_code=201,
    response_model=DatasetAnswer,
    responses={
        200: {"model": DatasetAnswer, "description": "It existed, with the same content."},
        **problems(400, 408, 409, 413, 415, 422, 429, 503, 507),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": _FORM,
                "application/json": {"schema": RootRegistration.model_json_schema()},
            },
        }
    },
)
async def register_dataset(
    request: Request, response: Response, services: ServicesDep
) -> DatasetAnswer:
    """Register an archive of images, or with a JSON body a folder of the operator's.

    All of it is checked before it is kept. The images of a root stay in place; they are all read
    once, which may take minutes. Where the client goes away meanwhile, nothing is registered.
    """
    # Before the body is read, which may take long: afterwards it is only seldom too late.
    services.ingestion.check()
    kind = media_type(request)
    if kind == "application/json":
        registered = await _from_root(request, services)
    elif kind == "multipart/form-data":
        registered = await _from_form(request, services)
    else:
        raise UnsupportedMedia(
            "This Content-Type is not accepted.",
            field="Content-Type",
            remedy="Send multipart/form-data with an archive, or application/json with a root.",
        )
    response.status_code = 201 if registered.is_new else 200
    return _answer(registered.dataset)


@router.get("", summary="List datasets", responses=problems(422))
def list_datasets(
    datasets: DatasetsDep,
    limit: Annotated[int, Query(ge=1, le=_MOST_LISTED, description="Most to return.")] = 100,
    cursor: Annotated[
        str | None, Query(pattern=NAME_PATTERN, description="The `next` of the page before.")
    ] = None,
) -> DatasetList:
    """Return registered datasets, by name.

    A dataset whose files are damaged is left out; `GET /datasets/{name}` tells what is wrong.
    """
    # One more than asked for tells whether there is another page.
    found = datasets.list(after=cursor, limit=limit + 1)
    return DatasetList(
        datasets=[_answer(dataset) for dataset in found[:limit]],
        next=found[limit - 1].name if len(found) > limit else None,
    )


@router.get("/{name}", summary="Look at a dataset", responses=problems(404, 422, 429, 503))
async def get_dataset(name: DatasetName, services: ServicesDep) -> DatasetDetail:
    """Return a dataset, its images by split and class, and the sizes of a sample of them."""
    cache = services.settings.cache_dir
    with _named_by_path():
        dataset = await run_sync(services.datasets.get, name)
        details = await run_sync(kept_details, dataset, cache)
        if details is None:
            find = partial(find_details, services.datasets, dataset, cache)
            details = await services.drawing.run(find)
    return DatasetDetail(**_answer(dataset).model_dump(), **dict(details))


@router.get(
    "/{name}/sheet",
    summary="See samples of a dataset",
    response_class=Response,
    responses={
        200: {
            "description": "One row for each class.",
            "headers": {
                "ETag": {
                    "schema": {"type": "string"},
                    "description": "Not sent where an image of a root cannot be read just now.",
                }
            },
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        },
        304: {"description": "Unchanged: `If-None-Match` named its ETag."},
        **problems(404, 422, 429, 503, 507),
    },
)
async def get_contact_sheet(
    name: DatasetName,
    services: ServicesDep,
    classes: Annotated[int, Query(ge=1, le=40, description="Most classes, the first ones.")] = 20,
    samples: Annotated[int, Query(ge=1, le=12, description="Most images of each class.")] = 8,
    if_none_match: Annotated[str | None, Header(description="Sheets that are known.")] = None,
) -> Response:
    """Return a picture with samples of the classes, always the same ones; PNG."""
    with _named_by_path():
        dataset = await run_sync(services.datasets.get, name)
    size = SheetSize(min(classes, len(dataset.classes)), samples)
    tag = f'"{sheet_name(dataset, size)}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if names_tag(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    cache = services.settings.cache_dir
    sheet = await run_sync(kept_sheet, dataset, size, cache)
    if sheet is None:
        draw = partial(draw_sheet, services.datasets, dataset, size, cache)
        with _named_by_path():
            sheet, is_complete = await services.drawing.run(draw)
        if not is_complete:
            # Another sheet may stand here in a moment, which the tag would claim to be this one.
            headers = {"Cache-Control": "no-store"}
    return Response(sheet, media_type="image/png", headers=headers)


@router.delete(
    "/{name}",
    summary="Delete a dataset",
    status_code=204,
    response_class=Response,
    responses=problems(404, 409, 422, 429, 503),
)
async def delete_dataset(name: DatasetName, services: ServicesDep) -> None:
    """Remove a dataset that no unfinished job uses; of a root only the index, not the images."""

    def delete() -> None:
        services.datasets.delete(name, lambda: services.jobs.unfinished_with_dataset(name))
        remove_orphans(services.settings.cache_dir, services.datasets)

    with _named_by_path():
        await services.changes.run(delete)


@contextmanager
def _named_by_path() -> Iterator[None]:
    """Let a dataset that is not there, or is damaged, be the fault of where its name stands."""
    try:
        yield
    except (NotFound, Unavailable) as error:
        if error.field == "spec.dataset":
            error.field = "name"
        raise


def _answer(dataset: Dataset) -> DatasetAnswer:
    return DatasetAnswer(
        name=dataset.name,
        digest=dataset.digest,
        archive_digest=dataset.archive_digest,
        classes=list(dataset.classes),
        splits=dict(dataset.splits),
        bytes=dataset.bytes,
        created_at=dataset.created_at,
        source=dataset.source,
        root=dataset.root,
    )


async def _from_form(request: Request, services: Services) -> Registered:
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
        return await run_while_connected(
            request, partial(_ingest, form, services), services.ingestion
        )


async def _from_root(request: Request, services: Services) -> Registered:
    sent = await read_json_body(request, RootRegistration, services.settings)
    return await run_while_connected(
        request, partial(_register, sent, services), services.ingestion
    )


async def _check_name(field: str, name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInput(
            "This is no dataset name.",
            field=field,
            remedy="Use up to 64 lower-case letters, digits, '.', '_' and '-',"
            " beginning with a letter or digit.",
        )


def _ingest(form: StoredForm, services: Services, proceed: Proceed) -> Registered:
    for name, sent in (("name", "name" in form.texts), ("archive", form.file is not None)):
        if not sent:
            raise InvalidInput(
                f"There is no {name}.", field=name, remedy="Send the form fields name and archive."
            )
    assert form.file is not None
    with _named_by_path():
        return services.datasets.ingest(form.file.finish().path, form.texts["name"], proceed)


def _register(sent: RootRegistration, services: Services, proceed: Proceed) -> Registered:
    with _named_by_path():
        return services.datasets.register_root(sent.name, sent.root, proceed)
