"""A front end that is killed in the middle of an upload, and of a stream of events."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

# Of conftest.py, which cannot be imported.
Install = Any
Installation = Any
StartWorker = Any
WaitUntil = Any

ROOT = Path(__file__).parents[2]
DEADLINE_S = 300
LAST = {"succeeded", "rejected", "failed", "cancelled"}


class FrontEnd:
    """A running ``python -m app``."""

    def __init__(self, installation: Installation) -> None:
        settings = installation.settings
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app"],
            cwd=ROOT,
            env={
                **os.environ,
                "BITPRESS_DATA_DIR": str(settings.data_dir),
                "BITPRESS_DATABASE_URL": settings.database_url,
                "BITPRESS_PORT": "0",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"listening on (http://[0-9.:]+)", line):
                self.url = found[1]
                break
        else:
            pytest.fail("the front end does not listen")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def front_end(installation: Installation) -> Iterator[FrontEnd]:
    running = FrontEnd(installation)
    try:
        yield running
    finally:
        running.kill()


@pytest.fixture
def installation(install: Install, tmp_path: Path, database_url: str) -> Installation:
    return install(tmp_path, database_url)


def files_of(installation: Installation) -> set[Path]:
    return {
        path
        for path in installation.settings.data_dir.rglob("*")
        if path.is_file() and path.name != ".lock" and "sqlite" not in path.name
    }


def test_an_upload_that_dies_with_the_front_end_is_swept_away(
    installation: Installation, wait_until: WaitUntil
) -> None:
    before = files_of(installation)
    spec = installation.spec.model_copy(update={"checkpoint": None}).model_dump_json()
    form = (
        f'--b\r\nContent-Disposition: form-data; name="spec"\r\n\r\n{spec}\r\n'
        '--b\r\nContent-Disposition: form-data; name="checkpoint"; filename="c"\r\n\r\n'
    )
    head = (
        "POST /compress HTTP/1.1\r\nHost: here\r\nContent-Length: 900000000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    with front_end(installation) as first:
        url = httpx.URL(first.url)
        with socket.create_connection((url.host, url.port), timeout=DEADLINE_S) as line:
            line.sendall((head + form).encode() + bytes(8 * 2**20))
            wait_until(
                lambda: any(path.stat().st_size > 2**20 for path in files_of(installation)),
                "a part of the upload",
            )
            first.kill()
    with front_end(installation) as second:
        assert files_of(installation) == before
        jobs = httpx.get(f"{second.url}/jobs", timeout=DEADLINE_S, trust_env=False).json()
        assert jobs["jobs"] == []


def read_events(url: str, after: int, enough: Callable[[dict[str, Any]], bool]) -> list[Any]:
    """Read events behind number ``after`` until one of them is ``enough``."""
    found = []
    event: dict[str, Any] = {}
    headers = {"Last-Event-ID": str(after)}
    with httpx.stream("GET", url, headers=headers, timeout=DEADLINE_S, trust_env=False) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                event[name] = value
            elif "id" in event:
                found.append(event)
                if enough(event):
                    break
                event = {}
    return found


def test_events_go_on_exactly_where_the_front_end_was_killed(
    installation: Installation, start_worker: StartWorker
) -> None:
    settings = installation.settings
    worker = start_worker(settings.data_dir, settings.database_url)
    job = installation.jobs.submit(installation.spec)
    path = f"/jobs/{job.id}/events"
    with front_end(installation) as first:
        begun = read_events(first.url + path, 0, lambda event: event["event"] == "step")
        first.kill()
    last = int(begun[-1]["id"])
    with front_end(installation) as second:
        rest = read_events(second.url + path, last, lambda event: event["event"] in LAST)
        end = int(rest[-1]["id"])
        address = f"{second.url}{path}?after={end}"
        assert httpx.get(address, timeout=DEADLINE_S, trust_env=False).status_code == 204
    numbers = [int(event["id"]) for event in begun + rest]
    stored = [event.seq for event in installation.jobs.events.after(job.id, 0, 10_000)]
    # Of the progress, only the newest are kept; nothing else is missing, or comes twice.
    assert numbers == sorted(set(numbers))
    assert set(stored) <= set(numbers)
    assert json.loads(rest[-1]["data"])["state"] == rest[-1]["event"] == "succeeded"
    assert worker.end(signal.SIGTERM) == 0
