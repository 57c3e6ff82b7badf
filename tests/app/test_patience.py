"""Clients that take their time where no route waits for them."""

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

# Of conftest.py, which cannot be imported.
Serve = Callable[..., Any]

HEAD = b"GET /health/live HTTP/1.1\r\nHost: here\r\n"
FORM = b"POST /datasets HTTP/1.1\r\nHost: here\r\nContent-Type: text/plain\r\n"
ENDLESS = FORM + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"4\r\nmore\r\n"
DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def service(serve: Serve) -> Any:
    """A service of little patience."""
    return serve(request_head_s=0.3)


def connection(service: Any) -> socket.socket:
    return socket.create_connection(service.address, timeout=DEADLINE_S)


def answer(line: socket.socket) -> bytes:
    """Everything that comes until the service closes the connection."""
    received = b""
    while data := line.recv(65536):
        received += data
    return received


def keep_sending(line: socket.socket, piece: bytes) -> bytes:
    """Send ``piece`` again and again, and return what came until the service had enough."""
    line.settimeout(0.05)
    received, deadline = b"", time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            line.sendall(piece)
            if not (data := line.recv(65536)):
                return received
            received += data
        except TimeoutError:
            continue
        except ConnectionError:
            return received
    raise AssertionError(f"still open after {DEADLINE_S} s: {received!r}")


def problem(received: bytes) -> dict[str, Any]:
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    members: dict[str, Any] = json.loads(body)
    assert head.split()[1] == str(members["status"]).encode()
    return members


def test_a_head_that_stops_is_refused(service: Any) -> None:
    with connection(service) as line:
        line.sendall(HEAD)
        told = problem(answer(line))
    assert (told["status"], told["type"]) == (408, "urn:bitpress:problem:request-timeout")
    assert told["remedy"]


def test_a_head_that_comes_in_drops_is_refused(service: Any) -> None:
    with connection(service) as line:
        line.sendall(HEAD)
        assert problem(keep_sending(line, b"x: y\r\n"))["status"] == 408


def test_a_connection_that_asks_nothing_is_closed(service: Any) -> None:
    with connection(service) as line:
        assert answer(line) == b""


def test_the_rest_of_a_refused_body_is_not_read_for_ever(service: Any) -> None:
    with connection(service) as line:
        line.sendall(ENDLESS)
        assert problem(keep_sending(line, CHUNK))["status"] == 415


def test_a_head_after_an_answer_has_its_own_time(service: Any) -> None:
    with connection(service) as line:
        for _ in range(4):
            # Longer, taken together, than one head may take.
            line.sendall(HEAD)
            time.sleep(0.1)
            line.sendall(b"\r\n")
            received = b""
            while not received.endswith(b'{"status":"ok"}'):
                data = line.recv(65536)
                assert data, received
                received += data


def test_a_body_may_take_longer_than_a_head(service: Any) -> None:
    body = b'{"model": "absent", "images": ["AAAA"]}'
    head = f"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n"
    with connection(service) as line:
        line.sendall(head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n")
        for byte in body:
            line.sendall(bytes([byte]))
            time.sleep(0.02)
        assert problem(answer(line))["type"].endswith("not-found")


def test_a_head_that_is_too_large_is_told_so(service: Any) -> None:
    with connection(service) as line:
        line.sendall(HEAD + b"x: " + b"y" * 100_000)
        told = problem(answer(line))
    assert told["status"] == 400
    assert "64 KiB" in told["detail"]
