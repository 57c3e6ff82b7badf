"""What the tests of the whole share."""

import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120


class Up:
    """A running ``bitpress up``; ``mark`` is in the environment of every process of it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.mark = uuid.uuid4().hex
        self.ready_file = data_dir.with_suffix(".ready")
        self.log: list[str] = []
        self._listening = threading.Event()
        command = ["up", "--data-dir", str(data_dir), "--port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "client", *command, "--ready-file", str(self.ready_file)],
            cwd=ROOT,
            env={**os.environ, "BITPRESS_TEST_MARK": self.mark, "BITPRESS_LEASE_BEAT_S": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._listening.wait(DEADLINE_S), self.log
        (found,) = re.findall(r"listening on (http://[0-9.:]+)", "\n".join(self.log))
        self.url: str = found

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.log.append(line.rstrip("\n"))
                if "listening on" in line:
                    self._listening.set()

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE_S)
        self._reader.join()
        return code

    def processes(self) -> set[int]:
        """Return the ids of all processes that run for this service."""
        wanted = f"BITPRESS_TEST_MARK={self.mark}".encode()
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
            except OSError:
                continue
        return found

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a ``bitpress`` command against this service."""
        return subprocess.run(
            [sys.executable, "-m", "client", *arguments],
            cwd=ROOT,
            env={**os.environ, "BITPRESS_URL": self.url},
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
        )


@contextmanager
def _running(data_dir: Path) -> Iterator[Up]:
    up = Up(data_dir)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.stop()


@pytest.fixture(scope="session")
def running() -> Callable[[Path], AbstractContextManager[Up]]:
    """Run ``bitpress up`` on a data directory; it has stopped when the block ends."""
    return _running


@pytest.fixture
def service_at() -> Callable[[int], AbstractContextManager[str]]:
    """Run a service that answers every GET with one status; yields its address."""

    @contextmanager
    def run(status: int) -> Iterator[str]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Keep the test's output clean."""

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    return run
