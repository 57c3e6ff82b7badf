"""From an answer to a typed value; what is no such answer is said with the request it came to."""

from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from client.errors import UnexpectedAnswer

_WireT = TypeVar("_WireT", bound=BaseModel)


def parsed(kind: type[_WireT], answer: httpx.Response) -> _WireT:
    """Return the JSON object of ``answer`` as a ``kind``.

    Raises:
        UnexpectedAnswer: naming the member that is not as it should be.
    """
    return validated(kind, json_object(answer), answer)


def listed(kind: type[_WireT], answer: httpx.Response, member: str) -> list[_WireT]:
    """Return the list under ``member``, each entry as a ``kind``."""
    entries = json_object(answer).get(member)
    if not isinstance(entries, list):
        raise unexpected(answer, f"no list of {member}")
    return [validated(kind, entry, answer) for entry in entries]


def validated(kind: type[_WireT], document: Any, answer: httpx.Response) -> _WireT:
    """Return ``document``, a part of ``answer``, as a ``kind``."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise unexpected(answer, f"a {kind.__name__} with {where}: {fault['msg']}") from None


def json_object(answer: httpx.Response) -> dict[str, Any]:
    """Return the JSON object that ``answer`` is."""
    try:
        document = answer.json()
    except ValueError:
        raise unexpected(answer, "no JSON") from None
    if not isinstance(document, dict):
        raise unexpected(answer, "no JSON object")
    return document


def of_media_type(answer: httpx.Response, media_type: str) -> httpx.Response:
    """Return ``answer`` where it is of this media type, whatever its parameters."""
    if answer.headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
        raise unexpected(answer, f"no {media_type}")
    return answer


def unexpected(answer: httpx.Response, what: str) -> UnexpectedAnswer:
    """Return the error for an answer that is ``what``."""
    request = answer.request
    return UnexpectedAnswer(f"{request.method} {request.url} answered with {what}")
