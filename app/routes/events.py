"""GET /jobs/{id}/events: what happens to a job, as it happens."""

import dataclasses
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response
from pydantic import WithJsonSchema

from app.event_response import HEADERS, MEDIA_TYPE, EventResponse
from app.openapi import problems
from app.routes.jobs import JobId, job_answer
from app.services import ServicesDep
from store.job_events import ENDINGS, JobEvent
from store.job_record import Job

router = APIRouter(prefix="/jobs", tags=["jobs"])

_ID_PATTERN = "^[0-9]{1,15}$"
_MOST = 10**15 - 1
# What a reader of server-sent events gives for each of them.
_EVENT = {
    "type": "object",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string", "pattern": _ID_PATTERN},
        "event": {"type": "string"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {
                "type": "object",
                "required": ["at"],
                "properties": {"at": {"type": "string", "format": "date-time"}},
            },
        },
    },
}
_FIELDS = frozenset(field.name for field in dataclasses.fields(Job))


@router.get(
    "/{job_id}/events",
    summary="Follow a job",
    response_class=Response,
    responses={
        200: {
            "description": "The job's events, until its last one.",
            "content": {MEDIA_TYPE: {"itemSchema": _EVENT}},
            "headers": {
                name: {"schema": {"type": "string"}} for name in HEADERS if name != "Content-Type"
            },
        },
        204: {"description": "The last event has been read already; do not come back."},
        **problems(404, 422, 429, 503),
    },
)
async def get_events(
    job_id: JobId,
    services: ServicesDep,
    request: Request,
    after: Annotated[
        int, Query(ge=0, le=_MOST, description="As `Last-Event-ID`, for who cannot send headers.")
    ] = 0,
    last_event_id: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            pattern=_ID_PATTERN,
            description="The id of the last event that came: the stream goes on behind it.",
        ),
        # Absent, but never null.
        WithJsonSchema({"type": "string", "pattern": _ID_PATTERN}),
    ] = None,
) -> Response:
    """Return what happens to a job as server-sent events, from its first to its last.

    `event` is one of `queued`, `started` (a worker took the job up), `stage`, `progress` (at most
    one a second; old ones are left out), `sweep`, `epoch`, `step` (one is done), `retried`, and for
    the end `succeeded`, `rejected`, `failed` or `cancelled`, whose data is the job as
    `GET /jobs/{id}` returns it. Every event's data is a JSON object with `at`, when it happened.

    Whoever comes back with the last event's `id` gets exactly what came after it, also from another
    process. Lines that begin with a colon are signs of life. The stream ends after the job's last
    event; who asks behind it gets 204, at which browsers stop asking.
    """
    begin = after if last_event_id is None else int(last_event_id)
    async with AsyncExitStack() as stack:
        stream = await stack.enter_async_context(services.streams.stream(job_id, begin))
        if stream is None:
            return Response(status_code=204, headers={"Cache-Control": "no-store"})
        return EventResponse(stream, told, request.app.state.metrics, stack.pop_all())
    raise AssertionError("unreachable")


def told(event: JobEvent) -> Mapping[str, Any]:
    """Return an event's data as it is sent."""
    data = event.data
    if event.kind in ENDINGS:
        # As it was then: a job that is tried again has several ends.
        job = Job(**{name: value for name, value in data.items() if name in _FIELDS})
        data = job_answer(job).model_dump(mode="json")
    return {"at": event.at, **data}
