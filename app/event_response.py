"""The answer that is a stream of server-sent events, as browsers' EventSource reads them."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.event_streams import EventStream
from app.metrics import Metrics
from store.job_events import JobEvent

MEDIA_TYPE = "text/event-stream"

# In the scope of a request: what the server calls when it is to stop, see `app.protocol`.
ON_STOP = "bitpress.on_stop"

HEADERS = {
    "Content-Type": MEDIA_TYPE,
    "Cache-Control": "no-store",
    # Else a proxy would keep events back until it has a buffer full of them.
    "X-Accel-Buffering": "no",
}
# How soon a browser is to come back after the connection broke, in milliseconds.
_GREETING = b"retry: 1000\n\n"
_SIGN_OF_LIFE = b": \n\n"
SILENCE_S = 15.0

# Whoever takes nothing for so long has gone without a word.
_PATIENCE_S = 60.0

Told = Callable[[JobEvent], Mapping[str, Any]]


class EventResponse(Response):
    """Sends a stream until its end, the client's, or the server's stop.

    ``told`` makes an event's data; ``held`` is closed when the answer is over.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self, stream: EventStream, told: Told, metrics: Metrics, held: AsyncExitStack
    ) -> None:
        super().__init__(headers=HEADERS)
        # Of a length that nobody knows yet.
        del self.headers["content-length"]
        self._stream = stream
        self._told = told
        self._metrics = metrics
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        async with self._held:
            head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(head)
            with self._metrics.event_stream():
                async with anyio.create_task_group() as tasks:
                    scope[ON_STOP] = tasks.cancel_scope.cancel
                    tasks.start_soon(_end_with_the_client, receive, tasks.cancel_scope)
                    await self._send_events(send)
                    tasks.cancel_scope.cancel()
        # A client who takes nothing any more is not waited for.
        with anyio.move_on_after(1.0):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, send: Send) -> None:
        async def put(body: bytes) -> None:
            patience.deadline = anyio.current_time() + _PATIENCE_S
            await send({"type": "http.response.body", "body": body, "more_body": True})
            patience.deadline = math.inf

        with anyio.CancelScope() as patience:
            await put(_GREETING)
            async for page in self._stream.pages(SILENCE_S):
                await put(self._frames(page) or _SIGN_OF_LIFE)

    def _frames(self, events: Sequence[JobEvent]) -> bytes:
        return b"".join(frame(event, self._told(event)) for event in events)


def frame(event: JobEvent, data: Mapping[str, Any]) -> bytes:
    """Return an event as it goes over the wire: JSON has no line break, so one line of data."""
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {json.dumps(data)}\n\n".encode()


async def _end_with_the_client(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
