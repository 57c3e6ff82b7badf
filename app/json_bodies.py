"""Small JSON bodies, read under a limit and checked against a model.

The framework would read a body of any size before it looks at it.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from app.errors import MalformedBody, UnsupportedMedia
from app.settings import AppSettings
from app.uploads import BodyLimits, media_type, read_body
from store.errors import InvalidInput

Body = TypeVar("Body", bound=BaseModel)

_MOST_BYTES = 2**16


async def read_json_body(request: Request, kind: type[Body], settings: AppSettings) -> Body:
    """Read a small JSON object as a ``kind``.

    Raises:
        UnsupportedMedia: the Content-Type is not JSON's.
        MalformedBody: the body is not JSON.
        InvalidInput: a member is missing, unknown or not valid.
        TooLarge, SlowBody: it has too many bytes, or did not arrive in time.
    """
    if media_type(request) != "application/json":
        raise UnsupportedMedia(
            "This Content-Type is not accepted.",
            field="Content-Type",
            remedy="Send application/json.",
        )
    limits = BodyLimits(_MOST_BYTES, settings.body_idle_s, settings.predict_body_s)
    body = await read_body(request, limits)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise first_fault(error, kind) from None


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the request body of a route that reads a ``kind``, for its ``openapi_extra``."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def first_fault(
    error: ValidationError, kind: type[BaseModel], remedies: Mapping[str, str] | None = None
) -> InvalidInput:
    """Return the first of the faults that a ``kind`` found, named by its member.

    ``remedies`` are those of the members; by default all members are listed.
    """
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if fault["type"] == "json_invalid":
        return MalformedBody(f"The body is not JSON: {fault['msg']}.", remedy="Send a JSON object.")
    members = ", ".join(kind.model_fields)
    name = str(fault["loc"][0])[:100] if fault["loc"] else None
    if fault["type"] == "extra_forbidden":
        return InvalidInput("There is no such member.", field=name, remedy=f"Use: {members}.")
    # Below a member stands which of its forms or items was tried; the message knows no other.
    return InvalidInput(
        fault["msg"] if len(fault["loc"]) <= 1 else "This is no valid value.",
        field=name,
        remedy=(remedies or {}).get(name or "", f"Send a JSON object with: {members}."),
    )
