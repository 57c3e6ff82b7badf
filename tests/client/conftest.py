"""A small real HTTP service that answers as a test tells it to, and remembers what it was asked."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest

from client import cli


@dataclass(frozen=True)
class Received:
    """One request: ``parts`` are the multipart fields in their order, as (name, file, bytes)."""

    method: str
    path: str
    headers: Message
    body: bytes

    @property
    def parts(self) -> list[tuple[str, str | None, bytes]]:
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        form = BytesParser().parsebytes(head + self.body)
        return [
            (
                str(part.get_param("name", header="content-disposition")),
                part.get_filename(),
                cast(bytes, part.get_payload(decode=True)),
            )
            for part in form.walk()
            if not part.is_multipart()
        ]


Answer = tuple[int, Any] | tuple[int, Any, str]


@dataclass
class FakeService:
    """``answers`` maps "METHOD /path" to an answer, a list of them in turn, or a function.

    An answer is (status, JSON or bytes) and, where it is not plain JSON, the media type.
    """

    url: str
    answers: dict[str, Any] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)

    def respond(self, request: Received) -> Answer:
        self.received.append(request)
        answer: Any = self.answers.get(f"{request.method} {request.path}")
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if callable(answer):
            answer = answer(request)
        return answer or problem(404, "not-found", "Not found", "There is no such page.")

    def asked(self, method_and_path: str) -> list[Received]:
        return [r for r in self.received if f"{r.method} {r.path}" == method_and_path]


def problem(status: int, code: str, title: str, detail: str, **members: Any) -> Answer:
    document = {
        "type": f"urn:bitpress:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        **members,
    }
    return status, document, "application/problem+json"


@pytest.fixture
def answer_problem() -> Callable[..., Answer]:
    return problem


@pytest.fixture
def service() -> Iterator[FakeService]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            answer = fake.respond(Received(self.command, self.path, self.headers, body))
            status, content, *media_type = answer
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            if status == 204:
                data = b""
            else:
                self.send_header(
                    "content-type", media_type[0] if media_type else "application/json"
                )
                self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake = FakeService(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a ``bitpress`` command line against the fake service; return its exit code."""

    def run_command(*arguments: str) -> int:
        monkeypatch.setenv("BITPRESS_URL", service.url)
        monkeypatch.setattr(sys, "argv", ["bitpress", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return run_command


@pytest.fixture
def job_record() -> Callable[..., dict[str, Any]]:
    """Make the JSON of a job; keyword arguments replace members."""

    def make(**members: Any) -> dict[str, Any]:
        return {
            "id": "job-1",
            "state": "queued",
            "spec": {"name": "vgg9"},
            "created_at": "2026-11-20T10:00:00+00:00",
            "updated_at": None,
            "started_at": None,
            "finished_at": None,
            "stage": None,
            "step": None,
            "progress": 0.0,
            "message": None,
            "layers": [],
            "problem": None,
            "model": None,
            "stage_seconds": {},
            **members,
        }

    return make


@pytest.fixture
def dataset_record() -> Callable[..., dict[str, Any]]:
    """Make the JSON of a dataset; keyword arguments replace members."""

    def make(**members: Any) -> dict[str, Any]:
        return {
            "name": "pets",
            "digest": "sha256:" + "1" * 64,
            "archive_digest": "sha256:" + "2" * 64,
            "classes": ["cat", "dog"],
            "splits": {"test": 2, "train": 4},
            "bytes": 1234,
            "created_at": "2026-11-20T10:00:00+00:00",
            **members,
        }

    return make


@pytest.fixture
def report_document() -> dict[str, Any]:
    return {
        "schema": 2,
        "job": "job-1",
        "accuracy": {"full_precision": 0.75, "calibrated": 0.5, "packed": 0.625},
        "bytes": {"float": 4_000_000, "packed": 125_000},
        "compression_ratio": 32.0,
        "stage_seconds": {"calibrate": 1.5, "evaluate": 0.75},
    }
