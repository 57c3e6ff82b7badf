"""One line a request, with its id and its job, and nothing of what was sent."""

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from store.logs import JsonFormatter


@pytest.fixture(scope="module")
def service(serve: Any) -> Any:
    return serve()


class Lines(logging.Handler):
    """Formats each record where it is written, as the service's own handler does."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))

    def of(self, request_id: str) -> list[dict[str, Any]]:
        # The service of the tests lets uvicorn write its own access log too.
        own = (line for line in self.lines if line["logger"].startswith("bitpress"))
        return [line for line in own if line.get("request_id") == request_id]


@pytest.fixture
def log() -> Iterator[Lines]:
    root = logging.getLogger()
    handler, level = Lines(), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def test_a_request_is_one_line_without_what_was_sent(service: Any, log: Lines) -> None:
    service.http.get("/jobs/secret-id?token=hidden", headers={"X-Request-ID": "here"})
    (line,) = log.of("here")
    assert line["event"] == "request"
    assert (line["method"], line["route"], line["status"]) == ("GET", "/jobs/{job_id}", 404)
    assert line["reason"] == "not-found"
    assert line["duration_s"] >= 0
    assert set(line) == {
        *("time", "level", "logger", "event", "request_id"),
        *("method", "route", "status", "duration_s", "reason"),
    }
    assert "secret" not in json.dumps(line)
    assert "hidden" not in json.dumps(line)


@pytest.mark.parametrize("asked", ["", "a b", "x" * 65, "ü", 'a"b', "a/b", "a;b"])
def test_an_id_that_is_not_sound_is_replaced(service: Any, log: Lines, asked: str) -> None:
    answer = service.http.get("/models", headers={"X-Request-ID": asked.encode()})
    given = answer.headers["X-Request-ID"]
    assert re.fullmatch("[0-9a-f]{32}", given)
    assert len(log.of(given)) == 1


def test_the_id_stands_in_answer_log_and_problem(service: Any, log: Lines) -> None:
    answer = service.http.get("/models/none", headers={"X-Request-ID": "Mine-1.a_b"})
    assert answer.headers["X-Request-ID"] == "Mine-1.a_b"
    assert answer.json()["instance"] == "urn:bitpress:request:Mine-1.a_b"
    assert len(log.of("Mine-1.a_b")) == 1


def test_every_line_of_a_request_has_its_id(
    service: Any, log: Lines, publish: Any, images: list[bytes]
) -> None:
    publish(service, "logged")
    answer = service.http.post(
        "/predict",
        params={"model": "logged"},
        content=images[0],
        headers={"X-Request-ID": "loads", "Content-Type": "image/png"},
    )
    assert answer.status_code == 200
    # The model is loaded by a task of its own, for whoever asks first.
    assert [line["event"] for line in log.of("loads")] == ["model loaded", "request"]


def test_a_line_about_a_job_has_its_id(service: Any, log: Lines) -> None:
    job_id = "0123456789abcdef" * 2
    service.http.get(f"/jobs/{job_id}", headers={"X-Request-ID": "about"})
    assert [line["job"] for line in log.of("about")] == [job_id]


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
def test_what_is_polled_is_told_only_to_who_debugs(service: Any, log: Lines, path: str) -> None:
    assert service.http.get(path, headers={"X-Request-ID": "poll"}).status_code == 200
    assert [line["level"] for line in log.of("poll")] == ["debug"]


def test_what_fails_is_always_told(
    service: Any, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("/secret/path")

    service.http.get("/jobs/none", headers={"X-Request-ID": "caller"})
    assert [line["level"] for line in log.of("caller")] == ["info"]
    monkeypatch.setattr(service.app.state.services.jobs, "counts", broken)
    answer = service.http.get("/health/ready", headers={"X-Request-ID": "ours"})
    assert answer.status_code == 500
    unexpected, request = log.of("ours")
    assert (unexpected["event"], unexpected["error"]) == ("unexpected error", "ZeroDivisionError")
    assert unexpected["trace"][-1].rpartition(":")[0].endswith(".broken")
    assert (request["level"], request["reason"]) == ("error", "internal-error")
    assert "secret" not in json.dumps(log.of("ours"))
