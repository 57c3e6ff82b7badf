"""From a failure of any kind to the one problem document that every error answer is (RFC 9457).

::

    BitpressError -> its own status (`STATUS`)      RequestValidationError -> 422
    HTTPException -> its status (404, 405, ...)     anything else          -> 500, without details
"""

import errno
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from store.errors import (
    TYPE_PREFIX,
    BitpressError,
    Conflict,
    GateFailed,
    InvalidInput,
    JobCancelled,
    NotFound,
    Overloaded,
    StorageExhausted,
    TooLarge,
    Unavailable,
    error_kinds,
)

MEDIA_TYPE = "application/problem+json"
INTERNAL_ERROR = "internal-error"
_log = logging.getLogger("bitpress.app")


class MalformedBody(InvalidInput):
    """The body is not what its Content-Type says: broken multipart, broken JSON."""

    code = "malformed-body"
    title = "The body cannot be read"


class MalformedRequest(InvalidInput):
    """What came over the connection is no HTTP request."""

    code = "malformed-request"
    title = "The request cannot be read"


class UnsupportedMedia(InvalidInput):
    """The Content-Type is none that the route takes."""

    code = "unsupported-media-type"
    title = "This kind of body is not accepted here"


class NotAcceptable(InvalidInput):
    """The Accept header wants none of the media types that there are."""

    code = "not-acceptable"
    title = "There is no such form of the answer"


class SlowBody(InvalidInput):
    """The request stopped arriving, or took too long."""

    code = "request-timeout"
    title = "The request took too long"


class UnsatisfiableRange(InvalidInput):
    """The Range header asks for bytes that the file does not have."""

    code = "range-not-satisfiable"
    title = "There are no such bytes"

    size: int | None = None
    """Bytes of the file."""


STATUS: dict[type[BitpressError], int] = {
    MalformedBody: 400,
    MalformedRequest: 400,
    UnsupportedMedia: 415,
    NotAcceptable: 406,
    SlowBody: 408,
    UnsatisfiableRange: 416,
    InvalidInput: 422,
    NotFound: 404,
    Conflict: 409,
    GateFailed: 409,
    JobCancelled: 409,
    TooLarge: 413,
    Overloaded: 429,
    Unavailable: 503,
    StorageExhausted: 507,
}

_FRAMEWORK_REMEDIES = {
    404: "See /docs for the routes there are.",
    405: "See /docs for the methods of this route.",
}


def reasons() -> frozenset[str]:
    """Return the codes of all problems that an answer can have."""
    # What the framework itself refuses, and what nobody expected.
    others = {"bad-request", "method-not-allowed", INTERNAL_ERROR}
    return frozenset({*(kind.code for kind in error_kinds()), *others} - {BitpressError.code})


def status_of(error: BitpressError) -> int:
    """Return the HTTP status of ``error``: that of its nearest listed ancestor, else 500."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return 500


def problem_response(request: Request, error: Exception) -> Response:
    """Return the problem document for any exception; an unexpected one shows no details."""
    if isinstance(error, BitpressError):
        headers = {}
        if isinstance(error, Overloaded):
            headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
        if isinstance(error, NotAcceptable):
            headers["Vary"] = "Accept"
        if isinstance(error, UnsatisfiableRange) and error.size is not None:
            headers["Content-Range"] = f"bytes */{error.size}"
        return _document(request, status_of(error), error.problem(), headers)
    if isinstance(error, RequestValidationError):
        return _document(request, 422, _validation_members(error))
    if isinstance(error, HTTPException):
        return _document(request, error.status_code, _http_members(error), error.headers)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = StorageExhausted(
            "The service's disk is full.", remedy="Free space on the server, then try again."
        )
        return _document(request, 507, full.problem())
    return _document(
        request,
        500,
        {
            "type": TYPE_PREFIX + INTERNAL_ERROR,
            "title": "Internal error",
            "detail": "The service met an unexpected error.",
            "remedy": "Report it together with the instance.",
        },
    )


def problem_content(members: Mapping[str, Any], status: int, request_id: Any) -> dict[str, Any]:
    """Return the whole document: ``members``, ``status`` and, of a known request, ``instance``."""
    content = {**members, "status": status}
    if request_id is not None:
        content["instance"] = f"urn:bitpress:request:{request_id}"
    return content


def install(app: FastAPI) -> None:
    """Make every error of ``app`` a problem document, the framework's own included."""
    for kind in (BitpressError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _handle)


def log_unexpected(error: BaseException) -> None:
    """Log an unexpected exception: its kind and where it arose, enough to find the fault."""
    _log.error("unexpected error", exc_info=error)


async def _handle(request: Request, error: Exception) -> Response:
    if isinstance(error, BitpressError) and status_of(error) == 500:
        log_unexpected(error)
    return problem_response(request, error)


def _document(
    request: Request, status: int, members: dict[str, Any], headers: Any = None
) -> Response:
    request_id = request.scope.get("state", {}).get("request_id")
    content = problem_content(members, status, request_id)
    # For the request's line in the log, and for the count of errors by reason.
    request.state.problem = str(members["type"]).removeprefix(TYPE_PREFIX)
    return JSONResponse(content, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def _http_members(error: HTTPException) -> dict[str, Any]:
    title = HTTPStatus(error.status_code).phrase
    members = {
        "type": TYPE_PREFIX + title.lower().replace(" ", "-"),
        "title": title,
        "detail": str(error.detail),
        "remedy": _FRAMEWORK_REMEDIES.get(error.status_code),
    }
    return {name: value for name, value in members.items() if value is not None}


def _validation_members(error: RequestValidationError) -> dict[str, Any]:
    # The framework puts "path", "query" or "body" before the parameter's name.
    faults = [
        {"field": ".".join(str(part) for part in fault["loc"][1:]), "detail": str(fault["msg"])}
        for fault in error.errors()
    ]
    first = faults[0]
    return {
        **InvalidInput(
            first["detail"],
            field=first["field"] or None,
            remedy="See /docs for what this parameter takes.",
        ).problem(),
        "errors": faults,
    }
