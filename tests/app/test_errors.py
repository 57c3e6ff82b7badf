"""Every error answer is one problem document: the app's own, the framework's, the unexpected."""

import asyncio
import errno
import json
import logging
import socket
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app import errors
from app.errors import (
    MalformedBody,
    MalformedRequest,
    NotAcceptable,
    SlowBody,
    UnsatisfiableRange,
    UnsupportedMedia,
    status_of,
)
from app.metrics import Metrics
from app.observation import Observation
from store import errors as store_errors
from store.errors import (
    BitpressError,
    CheckpointMismatch,
    Conflict,
    GateFailed,
    IdempotencyKeyReused,
    InvalidArtifact,
    InvalidCheckpoint,
    InvalidDataset,
    InvalidImage,
    InvalidInput,
    InvalidSpec,
    JobCancelled,
    JobCrashed,
    NotFound,
    Overloaded,
    StorageExhausted,
    TooLarge,
    Unavailable,
)
from store.logs import JsonFormatter

STATUS: dict[type[BitpressError], int] = {
    BitpressError: 500,
    InvalidInput: 422,
    InvalidSpec: 422,
    InvalidCheckpoint: 422,
    CheckpointMismatch: 422,
    InvalidDataset: 422,
    InvalidImage: 422,
    InvalidArtifact: 422,
    IdempotencyKeyReused: 422,
    MalformedBody: 400,
    MalformedRequest: 400,
    UnsupportedMedia: 415,
    NotAcceptable: 406,
    SlowBody: 408,
    UnsatisfiableRange: 416,
    TooLarge: 413,
    NotFound: 404,
    Conflict: 409,
    GateFailed: 409,
    JobCancelled: 409,
    Overloaded: 429,
    Unavailable: 503,
    StorageExhausted: 507,
    JobCrashed: 500,
}
REQUIRED = {"type", "title", "status", "detail", "instance"}
KNOWN = REQUIRED | {"field", "remedy", "errors"}


def check(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check the form of a problem answer and return the document."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert set(problem) >= REQUIRED
    assert set(problem) <= KNOWN
    assert problem["type"] == f"urn:bitpress:problem:{code}"
    assert problem["status"] == status
    assert problem["instance"] == "urn:bitpress:request:" + answer.headers["x-request-id"]
    assert problem["title"]
    assert problem["detail"]
    return problem


async def ask(error: Exception) -> httpx.Response:
    """Return what an app answers whose only route raises ``error``."""
    app = FastAPI()
    errors.install(app)
    app.add_middleware(Observation, metrics=Metrics())

    @app.get("/fail")
    async def fail() -> None:
        raise error

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.get("/fail")


def answer_to(error: Exception) -> httpx.Response:
    return asyncio.run(ask(error))


def test_every_error_of_the_tree_has_its_status() -> None:
    def tree(kind: type[BitpressError]) -> set[type[BitpressError]]:
        return {kind}.union(*(tree(child) for child in kind.__subclasses__()))

    ours = {
        kind for kind in tree(BitpressError) if kind.__module__ in ("store.errors", "app.errors")
    }
    assert {kind: status_of(kind("why")) for kind in ours} == STATUS


@pytest.mark.parametrize("kind", STATUS)
def test_every_error_becomes_a_problem(kind: type[BitpressError]) -> None:
    answer = answer_to(kind("Why it failed.", field="a.b", remedy="What to do."))
    problem = check(answer, STATUS[kind], kind.code)
    assert (problem["detail"], problem["field"], problem["remedy"]) == (
        "Why it failed.",
        "a.b",
        "What to do.",
    )


def test_overload_says_when_to_come_back() -> None:
    error = Overloaded("Busy.")
    error.retry_after_s = 7.2
    assert answer_to(error).headers["retry-after"] == "7"


def test_a_full_disk_is_told_as_such() -> None:
    check(answer_to(OSError(errno.ENOSPC, "full", "/secret/path")), 507, "storage-exhausted")


def test_the_unexpected_shows_neither_message_nor_path(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "bitpress.app"):
        answer = answer_to(ValueError("secret /srv/bitpress/data"))
    problem = check(answer, 500, "internal-error")
    assert "secret" not in answer.text
    assert problem["remedy"]
    (record,) = [one for one in caplog.records if one.name == "bitpress.app"]
    told = JsonFormatter().format(record)
    assert json.loads(told)["error"] == "ValueError"
    assert "fail" in json.loads(told)["trace"][-1]
    assert "secret" not in told


def test_problems_of_other_processes_still_read_back() -> None:
    # The app's own error classes join the tree and must not shadow a stored problem's class.
    for kind in STATUS:
        if kind.__module__ == "store.errors":
            assert type(store_errors.from_problem(kind("why").problem())) is kind


def test_unknown_route(service: Any) -> None:
    assert check(service.http.get("/nowhere"), 404, "not-found")["remedy"]
    assert check(service.http.get("/jobs/"), 404, "not-found")


def everything_from(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /models HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
        b"GET /models HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /models HTTP/1.1\r\nHost: x\r\nno header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /models HTTP/1.1\r\nHost: x\r\nCookie: " + b"x" * 100_000,
        b"POST /predict?model=a HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nno length\r\n",
    ],
)
def test_what_is_not_http_is_a_problem_too(service: Any, sent: bytes) -> None:
    with socket.create_connection(service.address, timeout=30) as connection:
        connection.sendall(sent)
        head, _, body = everything_from(connection).partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    assert status_line == "HTTP/1.1 400 Bad Request"
    headers = dict(line.split(": ", 1) for line in lines)
    problem = check(httpx.Response(400, headers=headers, content=body), 400, "malformed-request")
    assert problem["remedy"]
    # The service is none the worse for it.
    assert service.http.get("/health/live").status_code == 200


def test_a_request_cut_off_by_the_end_of_the_service_is_told() -> None:
    async def ask() -> httpx.Response:
        begun = asyncio.Event()
        app = FastAPI()

        @app.get("/endless")
        async def endless() -> None:
            begun.set()
            await asyncio.Event().wait()

        answer: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            answer.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/endless",
            "query_string": b"",
            "headers": [],
        }
        request = asyncio.create_task(Observation(app, Metrics())(scope, receive, send))
        await begun.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        start, body = answer
        return httpx.Response(start["status"], headers=start["headers"], content=body["body"])

    check(asyncio.run(ask()), 503, "unavailable")


def test_wrong_method(service: Any) -> None:
    answer = service.http.delete("/models")
    assert check(answer, 405, "method-not-allowed")["remedy"]
    assert answer.headers["allow"] == "GET"
    # A path's methods may be of several routes.
    assert service.http.put("/datasets").headers["allow"] == "GET, POST"


def test_invalid_parameters(service: Any) -> None:
    problem = check(service.http.get("/jobs", params={"limit": "many"}), 422, "invalid-input")
    assert problem["field"] == "limit"
    assert problem["errors"][0]["field"] == "limit"
    problem = check(service.http.get("/models/UPPER"), 422, "invalid-input")
    assert problem["field"] == "name"


def test_a_request_id_is_taken_over_only_if_harmless(service: Any) -> None:
    kept = service.http.get("/nowhere", headers={"X-Request-ID": "abc-1"})
    assert kept.headers["x-request-id"] == "abc-1"
    replaced = service.http.get("/nowhere", headers={"X-Request-ID": "a b{}"})
    assert replaced.headers["x-request-id"] != "a b{}"
