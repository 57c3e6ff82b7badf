"""The description of the interface: problem answers documented for every route, in one place."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.errors import MEDIA_TYPE
from app.schemas import AliasRequest, PredictionRequest, Problem
from store.specs import CompressSpec

_REASONS = {
    400: "The body cannot be read: broken JSON or multipart.",
    404: "There is no such thing.",
    406: "There is no form of the answer that `Accept` wants.",
    408: "The body stopped arriving, or took too long.",
    409: "In conflict with what exists, or not ready yet.",
    413: "Larger than a limit.",
    415: "This kind of body is not accepted.",
    416: "The file has no such bytes; `Content-Range` tells how many it has.",
    422: "The request can be read but is not valid; `field` and `remedy` say where and what to do.",
    429: "Too busy; try again after `Retry-After`.",
    500: "An unexpected error.",
    503: "The database, or something else that is needed, is not available.",
    507: "The disk is full.",
}
_SCHEMA_PREFIX = "#/components/schemas/"


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route that may answer with these problems, and 500."""
    return {
        status: {
            "description": _REASONS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": _SCHEMA_PREFIX + "Problem"}}},
        }
        for status in (*statuses, 500)
    }


def form_body(
    properties: dict[str, Any], required: tuple[str, ...], encoding: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the media type object of a multipart form that the route parses itself."""
    schema = {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }
    return {"schema": schema, **({"encoding": encoding} if encoding else {})}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of ``app``, made once.

    Bodies that are parsed while they stream are no parameters of a function, so their models are
    added here.
    """
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (Problem, CompressSpec, PredictionRequest, AliasRequest):
            schema = model.model_json_schema(ref_template=_SCHEMA_PREFIX + "{model}")
            schemas |= schema.pop("$defs", {})
            schemas[model.__name__] = schema
        app.openapi_schema = document
    return app.openapi_schema
