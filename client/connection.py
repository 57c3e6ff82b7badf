"""Steps carried out over HTTP: by a thread that waits, or by a task that lets others run."""

import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar, cast

import anyio
import anyio.to_thread
import httpx

from client.errors import ServiceUnreachable
from client.exchange import Close, Emit, Flow, Pause, Read, Send, Step, Walk, Work
from client.session import Session

T = TypeVar("T")


class Connection:
    """Carries flows out with an `httpx.Client`."""

    def __init__(
        self,
        session: Session,
        transport: httpx.BaseTransport | None,
        sleep: Callable[[float], None],
    ) -> None:
        self.session = session
        self._sleep = sleep
        self._http = _opened(httpx.Client, session.url, transport)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def result(self, flow: Flow[T]) -> T:
        """Return what the flow returns."""
        walk = Walk(flow)
        for _ in self._walked(walk):
            pass
        return cast(T, walk.result)

    def emitted(self, flow: Flow[None]) -> Iterator[Any]:
        """Yield what the flow emits; given up, it ends at once."""
        yield from self._walked(Walk(flow))

    def _walked(self, walk: Walk[Any]) -> Iterator[Any]:
        streams: dict[httpx.Response, Iterator[bytes]] = {}
        try:
            while (step := walk.step) is not None:
                if isinstance(step, Emit):
                    yield step.value
                    walk.tell(None)
                    continue
                try:
                    outcome = self._outcome(step, streams)
                except Exception as error:
                    walk.fail(error)
                else:
                    walk.tell(outcome)
        finally:
            walk.close()
            for response in streams:
                response.close()

    def _outcome(self, step: Step, streams: dict[httpx.Response, Iterator[bytes]]) -> Any:
        match step:
            case Send(request, streamed):
                response = self._http.send(request.built(self._http), stream=streamed)
                if streamed:
                    streams[response] = response.iter_bytes()
                    if not response.is_success:
                        response.read()
                return response
            case Read(response):
                return next(streams[response], b"")
            case Close(response):
                streams.pop(response, None)
                response.close()
            case Pause(seconds):
                self._sleep(seconds)
            case Work(function):
                return function()
        return None


class AsyncConnection:
    """Carries flows out with an `httpx.AsyncClient`; files are read and written in threads."""

    def __init__(
        self,
        session: Session,
        transport: httpx.AsyncBaseTransport | None,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.session = session
        self._sleep = sleep
        self._http = _opened(httpx.AsyncClient, session.url, transport)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def result(self, flow: Flow[T]) -> T:
        """Return what the flow returns."""
        walk = Walk(flow)
        async for _ in self._walked(walk):
            pass
        return cast(T, walk.result)

    async def emitted(self, flow: Flow[None]) -> AsyncIterator[Any]:
        """Yield what the flow emits; given up, it ends at once."""
        async for value in self._walked(Walk(flow)):
            yield value

    async def _walked(self, walk: Walk[Any]) -> AsyncIterator[Any]:
        streams: dict[httpx.Response, AsyncIterator[bytes]] = {}
        try:
            while (step := walk.step) is not None:
                if isinstance(step, Emit):
                    yield step.value
                    walk.tell(None)
                    continue
                try:
                    outcome = await self._outcome(step, streams)
                except Exception as error:
                    walk.fail(error)
                else:
                    walk.tell(outcome)
        finally:
            walk.close()
            with anyio.CancelScope(shield=True):
                for response in streams:
                    await response.aclose()

    async def _outcome(
        self, step: Step, streams: dict[httpx.Response, AsyncIterator[bytes]]
    ) -> Any:
        match step:
            case Send(request, streamed):
                built = request.built(self._http)
                if request.parts:
                    built.stream = _ReadInThreads(cast(httpx.SyncByteStream, built.stream))
                response = await self._http.send(built, stream=streamed)
                if streamed:
                    streams[response] = response.aiter_bytes()
                    if not response.is_success:
                        await response.aread()
                return response
            case Read(response):
                return await anext(streams[response], b"")
            case Close(response):
                streams.pop(response, None)
                await response.aclose()
            case Pause(seconds):
                await self._sleep(seconds)
            case Work(function):
                return await anyio.to_thread.run_sync(function)
        return None


class _ReadInThreads(httpx.AsyncByteStream):
    """A form whose files are read by worker threads, so that the event loop does not wait."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = iter(self._stream)
        while (chunk := await anyio.to_thread.run_sync(next, chunks, None)) is not None:
            yield chunk


_Http = TypeVar("_Http", httpx.Client, httpx.AsyncClient)


def _opened(kind: type[_Http], url: str, transport: Any) -> _Http:
    try:
        return kind(
            base_url=url,
            transport=transport,
            # A proxy of the environment cannot reach this machine's own services.
            trust_env=not _is_loopback(url),
            headers={"accept": "application/json"},
        )
    except httpx.InvalidURL as error:
        raise ServiceUnreachable(f"{url!r} is not an address: {error}") from None


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
