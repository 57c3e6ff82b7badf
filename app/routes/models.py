"""GET and DELETE /models, /models/{name} and its versions, and a version's artifact."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import FileResponse

from app.catalogue import Catalogue
from app.file_ranges import FileAnswer, byte_range, names_tag
from app.openapi import problems
from app.schemas import MOST_VERSION, ModelAnswer, ModelList, VersionAnswer, VersionList
from app.services import ModelsDep, PoolDep, ServicesDep
from store.artifacts import ModelVersion
from store.errors import NotFound, Unavailable
from store.specs import NAME_PATTERN

router = APIRouter(prefix="/models", tags=["models"])

ModelName = Annotated[str, Path(pattern=NAME_PATTERN, description="Name of a published model.")]
VersionNumber = Annotated[int, Path(ge=1, le=MOST_VERSION, description="Number of the version.")]

_ARTIFACT = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_TAG = {"ETag": {"schema": {"type": "string"}, "description": "The artifact's digest, quoted."}}


@contextmanager
def named_by_path() -> Iterator[None]:
    """Let a model that is not there be the fault of the path, where its name stands."""
    try:
        yield
    except NotFound as error:
        if error.field == "model":
            error.field = "name"
        raise


@router.get("", summary="Published models", responses=problems(503))
def list_models(models: ModelsDep, pool: PoolDep) -> ModelList:
    """Return every published model with what was measured for its latest version.

    A model whose files are damaged is left out; `GET /models/{name}` tells what is wrong with it.
    """
    return ModelList(models=Catalogue(models, pool).models())


@router.get("/{name}", summary="A published model", responses=problems(404, 422, 503))
def get_model(name: ModelName, models: ModelsDep, pool: PoolDep) -> ModelAnswer:
    """Return a published model with what was measured for its latest version."""
    with named_by_path():
        return Catalogue(models, pool).model(name)


@router.delete(
    "/{name}",
    summary="Delete a model",
    status_code=204,
    response_class=Response,
    responses=problems(404, 409, 422, 429, 503, 507),
)
async def delete_model(name: ModelName, services: ServicesDep) -> None:
    """Delete a model with all its versions. It must have no aliases.

    Predictions that are under way finish. The numbers of its versions are never used again.
    """
    with named_by_path():
        await services.changes.run(partial(services.models.delete_model, name))
    await services.pool.drop_deleted()


@router.get("/{name}/versions", summary="Versions of a model", responses=problems(404, 422, 503))
def list_versions(
    name: ModelName,
    models: ModelsDep,
    pool: PoolDep,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most versions to return.")] = 100,
    before: Annotated[
        int | None, Query(ge=1, le=MOST_VERSION, description="Only versions with lower numbers.")
    ] = None,
) -> VersionList:
    """Return the versions of a model, the newest first, with what was measured for each.

    A version whose files are damaged is left out; its own address tells what is wrong with it.
    """
    with named_by_path():
        versions, following = Catalogue(models, pool).versions(name, limit, before)
    return VersionList(model=name, versions=versions, next=following)


@router.get(
    "/{name}/versions/{version}",
    summary="A version of a model",
    responses=problems(404, 422, 503),
)
def get_version(
    name: ModelName, version: VersionNumber, models: ModelsDep, pool: PoolDep
) -> VersionAnswer:
    """Return a version of a model with what was measured for it."""
    with named_by_path():
        return Catalogue(models, pool).version(name, version)


@router.delete(
    "/{name}/versions/{version}",
    summary="Delete a version",
    status_code=204,
    response_class=Response,
    responses=problems(404, 409, 422, 429, 503, 507),
)
async def delete_version(name: ModelName, version: VersionNumber, services: ServicesDep) -> None:
    """Delete a version of a model. No alias may point to it.

    Predictions that are under way finish. The version's number is never used again.
    """
    with named_by_path():
        await services.changes.run(partial(services.models.delete, name, version))
    await services.pool.drop_deleted()


@router.get(
    "/{name}/versions/{version}/artifact",
    summary="The artifact's file",
    response_class=FileResponse,
    responses={
        200: {
            "content": _ARTIFACT,
            "headers": _TAG,
            "description": "The artifact; docs/FORMAT.md specifies it.",
        },
        206: {
            "content": _ARTIFACT,
            "headers": _TAG | {"Content-Range": {"schema": {"type": "string"}}},
            "description": "The bytes that `Range` asked for.",
        },
        304: {"description": "Unchanged: `If-None-Match` named its ETag."},
        **problems(404, 416, 422, 503),
    },
)
def get_artifact(
    name: ModelName,
    version: VersionNumber,
    models: ModelsDep,
    if_none_match: Annotated[str | None, Header(description="Digests that are known.")] = None,
    if_range: Annotated[
        str | None, Header(description="`Range` holds only where this is the ETag.")
    ] = None,
    range_: Annotated[
        str | None, Header(alias="Range", description="One range of bytes, `bytes=first-last`.")
    ] = None,
) -> Response:
    """Return the artifact's file, or a part of it. Its ETag is its digest, and it never changes.

    What was published, not what is read: compare what arrives with the digest, since a disk may
    have changed the file's bytes. `bitpress`'s client does.
    """
    with named_by_path():
        found = models.resolve(name, version)
    tag = f'"{found.digest}"'
    headers = {"ETag": tag, "Cache-Control": "public, max-age=31536000, immutable"}
    if names_tag(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    part = byte_range(range_, found.artifact_bytes) if if_range in (None, tag) else None
    return _artifact_answer(found, part, headers)


def _artifact_answer(
    version: ModelVersion, part: range | None, headers: dict[str, str]
) -> FileAnswer:
    try:
        file = version.artifact_path.open("rb")
    except OSError:
        if not version.exists:
            raise version.deleted() from None
        raise Unavailable(
            f"The stored file of {version.name}, version {version.version}, is missing.",
            field="version",
            remedy="Use another version, or compress the model again.",
        ) from None
    if os.fstat(file.fileno()).st_size != version.artifact_bytes:
        file.close()
        raise Unavailable(
            f"The stored file of {version.name}, version {version.version}, is damaged: its size "
            "is not the recorded one.",
            field="version",
            remedy="Use another version, or compress the model again.",
        )
    name = f"{version.name}-v{version.version}.safetensors"
    return FileAnswer(
        file,
        version.artifact_bytes,
        part,
        media_type="application/octet-stream",
        headers={**headers, "Content-Disposition": f'attachment; filename="{name}"'},
    )
