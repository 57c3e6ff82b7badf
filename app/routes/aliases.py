"""GET, PUT and DELETE /models/{name}/aliases."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from app.json_bodies import json_body, read_json_body
from app.openapi import problems
from app.routes.models import ModelName, named_by_path
from app.schemas import AliasAnswer, AliasList, AliasRequest
from app.services import ModelsDep, ServicesDep
from store.aliases import ALIAS_PATTERN, LATEST, check_alias

router = APIRouter(prefix="/models", tags=["models"])

AliasName = Annotated[
    str,
    Path(
        pattern=ALIAS_PATTERN,
        description="Name of the alias; `latest` is taken.",
        json_schema_extra={"not": {"const": LATEST}},
    ),
]


@router.get("/{name}/aliases", summary="Aliases of a model", responses=problems(404, 422, 503))
def list_aliases(name: ModelName, models: ModelsDep) -> AliasList:
    """Return the aliases of a model, and the version that each points to."""
    with named_by_path():
        return AliasList(model=name, aliases=models.aliases(name))


@router.put(
    "/{name}/aliases/{alias}",
    summary="Point an alias to a version",
    response_model=AliasAnswer,
    responses={
        200: {"description": "The alias points to this version now."},
        201: {"description": "The alias is new.", "model": AliasAnswer},
        **problems(400, 404, 408, 413, 415, 422, 429, 503, 507),
    },
    openapi_extra=json_body(AliasRequest),
)
async def set_alias(
    name: ModelName, alias: AliasName, request: Request, response: Response, services: ServicesDep
) -> AliasAnswer:
    """Let an alias point to a version, from the next request on.

    The version is loaded and checked first, so that a damaged one gets no alias and no request has
    to wait for it. Requests that are under way finish on the version that they began with.
    """
    check_alias(alias)
    sent = await read_json_body(request, AliasRequest, services.settings)
    with named_by_path():
        await services.pool.prepare(name, sent.version)
        change = partial(services.models.set_alias, name, alias, sent.version)
        created = await services.changes.run(change)
    response.status_code = 201 if created else 200
    return AliasAnswer(model=name, alias=alias, version=sent.version)


@router.delete(
    "/{name}/aliases/{alias}",
    summary="Delete an alias",
    status_code=204,
    response_class=Response,
    responses=problems(404, 422, 429, 503, 507),
)
async def delete_alias(name: ModelName, alias: AliasName, services: ServicesDep) -> None:
    """Delete an alias. The version that it points to stays."""
    check_alias(alias)
    with named_by_path():
        await services.changes.run(partial(services.models.remove_alias, name, alias))
