"""The outermost layer: each request gets an id, a log line, its metrics, and always an answer.

The id is the caller's ``X-Request-ID`` where that is a sound one. It stands in the answer, in every
line that the request writes to the log, and in the ``instance`` of its problem.

A plain ASGI middleware: the framework's own base class would stand between a route and the news
that its client went away.
"""

import asyncio
import logging
import re
import time
import uuid
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import log_unexpected, problem_response
from app.metrics import Metrics
from store.errors import Unavailable
from store.logs import log_context

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Of a path's parameter only what can be nothing but a job's id gets into the log.
_JOB_ID = re.compile(r"[0-9a-f]{32}")
_CLIENT_GONE = 499
_FIXED_ROUTES = frozenset({"/docs", "/openapi.json"})
# Asked again and again by machines: where they succeed, only whoever debugs wants to read it.
_POLLED = frozenset(
    {"/health/live", "/health/ready", "/metrics", "/jobs/{job_id}", "/jobs/{job_id}/events"}
)
_log = logging.getLogger("bitpress.access")


class Observation:
    """Wraps ``app``; an exception that nothing handled becomes a problem without details."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        asked = request.headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        request.state.request_id = request_id
        with log_context(request_id=request_id), self._metrics.active_request():
            await self._observe(request, scope, receive, send)

    async def _observe(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.monotonic()
        status: int | None = None

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request.state.request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except ClientDisconnect:
            status = status or _CLIENT_GONE
        except asyncio.CancelledError:
            # The server is being stopped and waits no longer; it would answer with plain text.
            if status is None:
                stopping = Unavailable(
                    "The service is being stopped.", remedy="Try again when it is back."
                )
                await problem_response(request, stopping)(scope, receive, observed_send)
            raise
        except Exception as error:
            log_unexpected(error)
            if status is not None:
                # The answer has begun: only a broken connection can still tell that it is wrong.
                raise
            await problem_response(request, error)(scope, receive, observed_send)
        finally:
            self._note(scope, status or _CLIENT_GONE, time.monotonic() - begun)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route, state = route_template(scope), scope["state"]
        reason = state.get("problem")
        self._metrics.observe_request(scope["method"], route, status, seconds)
        if reason is not None:
            self._metrics.count_error(reason)
        about = {"request_id": state["request_id"], "job": _job_of(scope), "reason": reason}
        _log.log(
            _level(scope["method"], route, status),
            "request",
            extra={
                "method": scope["method"][:16],
                "route": route,
                "status": status,
                "duration_s": round(seconds, 6),
                **{name: value for name, value in about.items() if value is not None},
            },
        )


def _level(method: str, route: str, status: int) -> int:
    """Return how much the line of a request matters: whatever failed is always told."""
    if status >= 500:
        return logging.ERROR
    if status < 400 and method in ("GET", "HEAD") and route in _POLLED:
        return logging.DEBUG
    return logging.INFO


def _job_of(scope: Scope) -> Any:
    """Return the id of the job that a request made, or that its path names."""
    made = scope["state"].get("job")
    if made is not None:
        return made
    named = str(scope.get("path_params", {}).get("job_id", ""))
    return named if _JOB_ID.fullmatch(named) else None


def route_template(scope: Scope) -> str:
    """Return the matched route's template, for example ``/jobs/{job_id}``; never what was sent."""
    template = getattr(scope.get("route"), "path", None)
    if isinstance(template, str):
        return template
    return scope["path"] if scope["path"] in _FIXED_ROUTES else "unmatched"
