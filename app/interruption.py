"""Long work for a client that may go away meanwhile: then the work ends, instead of running on."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from app.places import Places
from store.archive_members import Proceed

T = TypeVar("T")


async def leaving(request: Request) -> None:
    """Return once the client has gone, or the server stops. The body has been read whole."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def run_while_connected(request: Request, work: Callable[[Proceed], T], places: Places) -> T:
    """Run ``work`` on a thread and return its result. The request's body has been read whole.

    ``work`` gets a function to call again and again, which raises `ClientDisconnect` once the
    client has gone, or the server stops.

    Raises:
        Overloaded: too many others wait for a place already.
    """
    gone = threading.Event()

    def proceed() -> None:
        if gone.is_set():
            raise ClientDisconnect

    async def watch() -> None:
        await leaving(request)
        gone.set()

    def begin() -> T:
        # It may have waited for its place.
        proceed()
        return work(proceed)

    watching = asyncio.create_task(watch())
    try:
        return await places.run(begin)
    finally:
        # Also where the server stops: the thread is left to itself then.
        gone.set()
        watching.cancel()
