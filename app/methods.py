"""Which methods a path has: the refusal of any other names them all."""

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from app.errors import problem_response

_STATUS = 405
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


def install(app: FastAPI) -> None:
    """Have ``app`` list every method of the path when it refuses one."""
    app.add_exception_handler(_STATUS, _refuse)


async def _refuse(request: Request, error: Exception) -> Response:
    # The framework's own header has the methods of one route only, and a path may have several.
    allowed = ", ".join(_methods_of(request))
    return problem_response(request, HTTPException(_STATUS, headers={"Allow": allowed}))


def _methods_of(request: Request) -> list[str]:
    def has(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in _METHODS if has(method)]
