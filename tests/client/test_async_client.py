"""`AsyncClient` is `Client` with every method to be awaited: same methods, same requests."""

import inspect
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from client import AsyncClient, Client
from client.errors import NotFound, ServiceUnreachable
from client.session import Retries
from client.types import CompressSpec

SPEC = CompressSpec(name="vgg9", architecture="vgg9", dataset="pets")


def methods(kind: type) -> dict[str, inspect.Signature]:
    """Return the signatures of a class's own public methods, but for awaiting."""
    found = {
        name: inspect.signature(one)
        for name, one in vars(kind).items()
        if inspect.isfunction(one) and not name.startswith("_")
    }
    return {
        name: one.replace(
            return_annotation=str(one.return_annotation)
            .replace("collections.abc.AsyncIterator", "collections.abc.Iterator")
            .replace(kind.__name__, "")
        )
        for name, one in found.items()
    }


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    assert methods(AsyncClient) == methods(Client)


def test_everything_but_what_is_iterated_over_is_awaited() -> None:
    plain = {
        name
        for name, one in vars(AsyncClient).items()
        if inspect.isfunction(one) and not inspect.iscoroutinefunction(one)
    }
    assert plain == {"__init__", "jobs", "events"}


def test_a_job_is_queued_and_its_file_sent(
    service: Any, job_record: Callable[..., Any], tmp_path: Path
) -> None:
    service.answers["POST /compress"] = (202, job_record())
    (tmp_path / "net.pth").write_bytes(b"weights")
    sent: list[tuple[int, int]] = []

    async def queue() -> str:
        async with AsyncClient(service.url) as client:
            job = await client.compress(
                SPEC, tmp_path / "net.pth", lambda *counts: sent.append(counts)
            )
        return job.id

    assert anyio.run(queue) == "job-1"
    (request,) = service.received
    assert request.parts == [
        ("spec", None, b'{"name":"vgg9","architecture":"vgg9","dataset":"pets"}'),
        ("checkpoint", "net.pth", b"weights"),
    ]
    assert sent == [(7, 7)]


def test_pages_are_followed(service: Any, job_record: Callable[..., Any]) -> None:
    pages = {
        "GET /jobs?state=failed": {"jobs": [job_record(id="b")], "next": "x y"},
        "GET /jobs?state=failed&cursor=x+y": {"jobs": [job_record(id="a")], "next": None},
    }
    service.answers |= {asked: (200, page) for asked, page in pages.items()}

    async def ids() -> list[str]:
        async with AsyncClient(service.url) as client:
            return [job.id async for job in client.jobs(state="failed")]

    assert anyio.run(ids) == ["b", "a"]


class EndlessEvents(httpx.AsyncByteStream):
    """Events without end; says whether it was closed."""

    closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number in range(1, 1_000):
            yield f"id: {number}\nevent: progress\ndata: {{}}\n\n".encode()

    async def aclose(self) -> None:
        self.closed = True


def test_an_event_stream_that_is_given_up_is_closed() -> None:
    stream = EndlessEvents()
    headers = {"content-type": "text/event-stream"}
    transport = httpx.MockTransport(
        lambda request: httpx.Response(200, headers=headers, stream=stream)
    )

    async def first_two() -> list[int]:
        async with AsyncClient(transport=transport) as client:
            found = []
            events = client.events("job-1")
            async for event in events:
                found.append(event.seq)
                if len(found) == 2:
                    break
            await events.aclose()  # type: ignore[attr-defined]
            return found

    assert anyio.run(first_two) == [1, 2]
    assert stream.closed


def test_an_artifact_is_downloaded_whole(service: Any, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4_096
    service.answers["GET /models/vgg9/versions/2/artifact"] = (200, content, "application/x")
    target = tmp_path / "vgg9.safetensors"

    async def download() -> Path:
        async with AsyncClient(service.url) as client:
            return await client.download_artifact("vgg9", 2, target)

    assert anyio.run(download) == target
    assert target.read_bytes() == content
    assert list(tmp_path.iterdir()) == [target]


def test_failures_are_those_of_the_other_client(service: Any) -> None:
    async def refused() -> None:
        async with AsyncClient(service.url) as client:
            await client.model("none")

    async def nobody() -> None:
        async with AsyncClient("http://127.0.0.1:1", retries=Retries(attempts=1)) as client:
            await client.live()

    with pytest.raises(NotFound):
        anyio.run(refused)
    with pytest.raises(ServiceUnreachable, match="No service answers"):
        anyio.run(nobody)
