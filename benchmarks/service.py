"""A running service for a measurement: started apart, with nothing of this machine's settings."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_LOG_LINES = 20
_POLL_S = 0.05

UP: Sequence[str] = (sys.executable, "-m", "client", "up")

# Becomes the command given to it, which the kernel asks to stop (SIGTERM) once this process, the
# first argument, is gone: even SIGKILL leaves no service behind.
_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ServiceFailed(Exception):
    """The service did not start, or ended by itself; the message ends with its last log lines."""


class Service:
    """``bitpress up`` on a free port, with its database and data under ``folder``.

    As a context manager it is stopped at the end however the block ends; whatever it has not
    stopped by itself ``stop_s`` seconds after being asked is killed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        command: Sequence[str] = UP,
        start_s: float = 90.0,
        stop_s: float = 45.0,
    ) -> None:
        self._folder = folder
        self._command = command
        self._start_s = start_s
        self._stop_s = stop_s
        self._ready_file = folder / "url"
        self._log = folder / "log"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        options = ("--data-dir", self._folder / "data", "--port", "0")
        command = [*self._command, *map(str, options), "--ready-file", str(self._ready_file)]
        # Whatever this machine's own service is configured with is none of this one's business.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BITPRESS_")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WITH_PARENT, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # A Ctrl-C at the terminal is for this process, which then stops the service.
                process_group=0,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(self._stop_s)
        except subprocess.TimeoutExpired:
            if error is None:
                raise self._failure(f"the service did not stop within {self._stop_s:g} s") from None
        finally:
            # Too slow, or interrupted once more: the kernel asks app and worker to stop as well.
            self._process.kill()
            self._process.wait()

    def wait_until_ready(self) -> str:
        """Return the service's URL as soon as it answers there.

        Raises:
            ServiceFailed: it ended instead, or takes longer than ``start_s`` seconds.
        """
        deadline = time.monotonic() + self._start_s
        while not self._ready_file.exists():
            if self._process.poll() is not None:
                raise self._failure(f"the service ended with code {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._failure(f"the service did not start within {self._start_s:g} s")
            time.sleep(_POLL_S)
        return self._ready_file.read_text(encoding="utf-8").strip()

    def _failure(self, what: str) -> ServiceFailed:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return ServiceFailed("\n".join([what, *lines[-_LOG_LINES:]]))
