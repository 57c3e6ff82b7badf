"""``python -m app`` as a process: a free port, the ready file, one JSON object a line, its end."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from models import runtime

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 600

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def do(**settings: object) -> "subprocess.Popen[str]":
        named = {f"BITPRESS_{name.upper()}": str(value) for name, value in settings.items()}
        environment = {**os.environ, "BITPRESS_DATA_DIR": str(tmp_path / "data"), **named}
        process = subprocess.Popen(
            [sys.executable, "-m", "app"],
            cwd=REPOSITORY,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield do
    for process in started:
        process.kill()
        process.communicate()


def url_told(process: "subprocess.Popen[str]") -> str:
    """Read the log up to the line that tells the URL."""
    assert process.stderr is not None
    for line in process.stderr:
        if "listening on" in line:
            return str(json.loads(line)["event"]).rpartition(" ")[2]
    raise AssertionError("it ended without listening")


def rest_of(process: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    """The log to its end."""
    assert process.stderr is not None
    lines = [json.loads(line) for line in process.stderr]
    process.wait(DEADLINE_S)
    return lines


def errors_of(process: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    """The errors in the log to its end."""
    return [line for line in rest_of(process) if line["level"] == "error"]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_on_a_free_port_until_a_signal(
    start: Start, tmp_path: Path, stop: signal.Signals
) -> None:
    ready_file = tmp_path / "url"
    process = start(port=0, ready_file=ready_file)
    url = url_told(process)
    assert ready_file.read_text() == url
    assert httpx.get(f"{url}/health/ready", trust_env=False).json() == {"status": "ok"}
    assert httpx.get(f"{url}/models", trust_env=False).status_code == 200
    process.send_signal(stop)
    lines = rest_of(process)
    assert process.returncode == 0
    assert not ready_file.exists()
    (request,) = [line for line in lines if line["event"] == "request"]
    assert (request["route"], request["status"]) == ("/models", 200)
    assert str(tmp_path) not in json.dumps(lines)


def test_whoever_it_stops_waiting_for_gets_a_problem(start: Start) -> None:
    process = start(port=0, shutdown_s=1)
    address = ("127.0.0.1", int(url_told(process).rpartition(":")[2]))
    with socket.create_connection(address, timeout=DEADLINE_S) as garbled:
        garbled.sendall(b"no request\r\n\r\n")
        assert b"urn:bitpress:problem:malformed-request" in everything_from(garbled)
    with socket.create_connection(address, timeout=DEADLINE_S) as slow:
        slow.sendall(
            b"POST /predict?model=a HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        )
        assert b"100 Continue" in slow.recv(1000)
        process.send_signal(signal.SIGTERM)
        answer = everything_from(slow)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"application/problem+json" in answer
    rest_of(process)
    assert process.returncode == 0


def everything_from(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_a_wrong_setting_is_named(start: Start) -> None:
    process = start(port=0, max_body_bytes="much")
    (line,) = errors_of(process)
    assert process.returncode == 2
    assert line["setting"] == "BITPRESS_MAX_BODY_BYTES"


@pytest.mark.parametrize(("name", "value"), [("runtime", "quantum"), ("cpu_kernels", "abacus")])
def test_a_runtime_that_cannot_serve_here_ends_the_start(
    start: Start, name: str, value: str
) -> None:
    if name == "cpu_kernels" and runtime.choose() != "cpu":
        pytest.skip("there is no runtime cpu here")
    process = start(**{"port": 0, name: value})
    (line,) = errors_of(process)
    assert process.returncode == 2
    assert line["setting"] == "BITPRESS_RUNTIME"
    assert "Use one of" in line["fault"] or "BITPRESS_CPU_KERNELS" in line["fault"]


def test_a_port_that_is_taken_is_told(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(port=taken.getsockname()[1])
        (line,) = errors_of(process)
    assert process.returncode == 1
    assert line["event"] == "cannot listen"
    assert "0 for a free one" in line["remedy"]
