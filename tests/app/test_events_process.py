"""Streams of events across the ends of the process that serves them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from store.database import open_engine
from store.job_events import JobEvents
from store.jobs import JobStore
from store.specs import parse_spec

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 600
SPEC = {
    "name": "digits",
    "architecture": "digits_cnn",
    "dataset": "digits",
    "checkpoint": "sha256:" + "0" * 64,
}

Start = Callable[[], "subprocess.Popen[str]"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def start(tmp_path: Path, database_url: str, port: int) -> Iterator[Start]:
    """Start the app, always at the same address, and wait until it listens."""
    started: list[subprocess.Popen[str]] = []
    settings = {
        "data_dir": tmp_path / "data",
        "database_url": database_url,
        "port": port,
        # A stop that waited for streams would not come to its end in any test's time.
        "shutdown_s": 3600,
    }

    def do() -> "subprocess.Popen[str]":
        named = {f"BITPRESS_{name.upper()}": str(value) for name, value in settings.items()}
        process = subprocess.Popen(
            [sys.executable, "-m", "app"],
            cwd=REPOSITORY,
            env={**os.environ, **named},
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if "listening on" in line:
                return process
        raise AssertionError("it ended without listening")

    yield do
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def jobs(database_url: str) -> Iterator[JobStore]:
    with JobStore(database_url) as jobs:
        yield jobs


@pytest.fixture
def events(database_url: str) -> Iterator[JobEvents]:
    engine = open_engine(database_url)
    yield JobEvents(engine)
    engine.dispose()


class Reader(threading.Thread):
    """Reads a job's events as a browser does: comes back with the last id until told not to."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.found: list[tuple[int, str, dict[str, Any]]] = []
        self.broken = 0
        self.grown = threading.Condition()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while self._read():
                pass
        except BaseException as error:
            self.failure = error

    def wait_for(self, count: int) -> None:
        with self.grown:
            assert self.grown.wait_for(lambda: len(self.found) >= count, DEADLINE_S)

    def _read(self) -> bool:
        last = {"Last-Event-ID": str(self.found[-1][0])} if self.found else {}
        try:
            with httpx.stream(
                "GET", self.url, headers=last, timeout=DEADLINE_S, trust_env=False
            ) as answer:
                if answer.status_code == 204:
                    return False
                answer.raise_for_status()
                fields: dict[str, str] = {}
                for line in answer.iter_lines():
                    name, _, value = line.partition(": ")
                    if line:
                        fields[name] = value
                        continue
                    if "data" in fields:
                        event = int(fields["id"]), fields["event"], json.loads(fields["data"])
                        with self.grown:
                            self.found.append(event)
                            self.grown.notify_all()
                    fields = {}
        except httpx.TransportError:
            self.broken += 1
        return True


@pytest.mark.slow
def test_nothing_is_lost_or_told_twice_when_the_app_is_killed(
    start: Start, jobs: JobStore, events: JobEvents, port: int
) -> None:
    app = start()
    job = jobs.submit(parse_spec(SPEC))
    reader = Reader(f"http://127.0.0.1:{port}/jobs/{job.id}/events")
    reader.start()
    reader.wait_for(1)
    written = 0

    def write(count: int) -> None:
        nonlocal written
        for _ in range(count):
            events.append(job.id, "sweep", {"sweep": written})
            written += 1

    for _ in range(2):
        write(20)
        reader.wait_for(written - 10)
        app.kill()
        app.wait(DEADLINE_S)
        # While nobody serves, the job goes on.
        write(20)
        app = start()
        write(5)
    jobs._client.cancel_workflow(job.id)
    reader.join(DEADLINE_S)
    assert not reader.is_alive() and reader.failure is None
    assert reader.broken >= 2
    assert [seq for seq, _, _ in reader.found] == list(range(1, written + 3))
    assert [data["sweep"] for _, kind, data in reader.found if kind == "sweep"] == list(
        range(written)
    )
    assert (reader.found[0][1], reader.found[-1][1]) == ("queued", "cancelled")


def test_a_stop_waits_for_no_reader_and_logs_each_once(
    start: Start, jobs: JobStore, events: JobEvents, port: int
) -> None:
    app = start()
    job = jobs.submit(parse_spec(SPEC))
    url = f"http://127.0.0.1:{port}/jobs/{job.id}/events"
    for number in range(300):
        events.append(job.id, "sweep", {"sweep": number, "padding": "x" * 20_000})
    with socket.socket() as slow, httpx.Client(timeout=DEADLINE_S, trust_env=False) as http:
        # One that takes nothing at all, and one that has taken everything and waits for more.
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        slow.connect(("127.0.0.1", port))
        slow.sendall(f"GET /jobs/{job.id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with http.stream("GET", url) as answer:
            lines = answer.iter_lines()
            while next(lines) != "id: 301":
                pass
            app.send_signal(signal.SIGTERM)
            # The rest of the last event, and then the proper end of the answer.
            assert len(list(lines)) <= 3
        assert app.stderr is not None
        log = [json.loads(line) for line in app.stderr]
        assert app.wait(DEADLINE_S) == 0
    streams = [line for line in log if line.get("route") == "/jobs/{job_id}/events"]
    assert len([line for line in log if line["level"] in ("error", "critical")]) == 0, log
    assert all(line["status"] == 200 for line in streams)
