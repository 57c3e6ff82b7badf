"""GET /models, /models/{name} and a version's artifact."""

import logging
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Path, Response
from fastapi.responses import FileResponse
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from app.openapi import problems
from app.pool import ModelPool
from app.schemas import Accuracies, InputAnswer, ModelAnswer, ModelList, Sizes
from app.services import ModelsDep, PoolDep
from store.artifacts import ModelVersion
from store.errors import NotFound, Unavailable
from store.specs import NAME_PATTERN

router = APIRouter(prefix="/models", tags=["models"])
_log = logging.getLogger("bitpress.app")

ModelName = Annotated[str, Path(pattern=NAME_PATTERN)]
VersionNumber = Annotated[int, Path(ge=1, le=2**31 - 1)]


@router.get("", responses=problems(503), response_model_exclude_none=True)
def list_models(models: ModelsDep, pool: PoolDep) -> ModelList:
    """Return every published model with what was measured for its latest version.

    A model whose files are damaged is left out; `GET /models/{name}` tells what is wrong with it.
    """
    answers = []
    for latest in models.list():
        try:
            answers.append(_model_answer(models.versions(latest.name), pool))
        except Unavailable as fault:
            _log.warning(
                "model left out",
                extra={"model": latest.name, "version": latest.version, "fault": fault.detail},
            )
    return ModelList(models=answers)


@router.get("/{name}", responses=problems(404, 422, 503), response_model_exclude_none=True)
def get_model(name: ModelName, models: ModelsDep, pool: PoolDep) -> ModelAnswer:
    """Return a published model with what was measured for its latest version."""
    versions = models.versions(name)
    if not versions:
        raise NotFound(
            "There is no model of this name.",
            field="name",
            remedy="GET /models lists the models.",
        )
    return _model_answer(versions, pool)


@router.get(
    "/{name}/versions/{version}/artifact",
    response_class=FileResponse,
    responses={
        200: {
            "content": {"application/octet-stream": {"schema": {"format": "binary"}}},
            "description": "The artifact; docs/FORMAT.md specifies it.",
        },
        304: {"description": "Unchanged: `If-None-Match` named its ETag."},
        **problems(404, 422, 503),
    },
)
def get_artifact(
    name: ModelName,
    version: VersionNumber,
    models: ModelsDep,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Return the artifact's file. Its ETag is its digest, and it never changes."""
    found = models.resolve(name, version)
    headers = {"ETag": f'"{found.digest}"', "Cache-Control": "public, max-age=31536000, immutable"}
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    if headers["ETag"] in tags or "*" in tags:
        return Response(status_code=304, headers=headers)
    if not found.artifact_path.is_file():
        raise Unavailable(
            f"The stored file of {found.name}, version {found.version}, is missing.",
            field="version",
            remedy="Use another version, or compress the model again.",
        )
    return _WholeFile(
        found.artifact_path,
        media_type="application/octet-stream",
        filename=f"{found.name}-v{found.version}.safetensors",
        headers=headers | {"Accept-Ranges": "none"},
    )


class _WholeFile(FileResponse):
    """A file that is always sent whole: what the framework answers to a bad range is no problem
    document."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(key, value) for key, value in scope["headers"] if key != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def _model_answer(versions: Sequence[ModelVersion], pool: ModelPool) -> ModelAnswer:
    latest = versions[-1]
    report = latest.report
    card = pool.card(latest)
    engine = pool.engine_of(latest)
    try:
        return ModelAnswer(
            name=latest.name,
            latest=latest.version,
            versions=[version.version for version in versions],
            architecture=report["spec"]["architecture"],
            method=report["spec"]["method"]["name"],
            accuracy=Accuracies.model_validate(report["accuracy"]),
            bytes=Sizes.model_validate(report["bytes"]),
            compression_ratio=report["compression_ratio"],
            input=InputAnswer.model_validate(card.input.to_json()),
            labels=list(card.labels),
            runtime=engine.runtime,
            kernels=engine.kernels,
            digest=latest.digest,
            job=latest.job_id,
            created_at=latest.created_at,
        )
    except (LookupError, TypeError, ValidationError):
        raise Unavailable(
            f"The report of {latest.name}, version {latest.version}, is not what it should be.",
            field="name",
            remedy="Compress the model again.",
        ) from None
