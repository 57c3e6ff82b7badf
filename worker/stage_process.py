"""The worker's side of a stage: one child process that serves the stage's steps in turn.

The work is done in a child so that a stage can be stopped at any moment, gives all its memory back
when it ends, and takes nothing with it when the system kills it for memory. One child per stage,
not per step, because importing torch takes seconds. Nothing here imports torch.

Messages are JSON objects over a socket pair. The worker sends one hello
``{"target", "context"}`` and then requests ``{"step", "arguments"}``; the child answers each with
any number of ``{"progress", "message", "details"}`` and one of ``{"result"}``, ``{"problem"}`` and
``{"unexpected"}``. Details are null or an object, which with a member ``event`` is an event of its
own. See `worker.stage_server` for the child's side.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from store.errors import JobCrashed, from_problem
from worker.progress import Progress

# How soon a stop is noticed, and how often progress is reported.
_POLL_S = 0.1
_REPORT_S = 1.0
_EXIT_S = 5.0


# A training step allocates and frees the same large activation maps again and again. By default
# glibc takes each from the system by mmap and gives it back, and the kernel zeroes its pages every
# time: with these the memory stays with the process, which trains about 15 % faster (VGG-9, batches
# of 128). Other C libraries ignore them. They are for this child alone because it never gives
# memory back before it ends, as the next stage's child could not go without.
TRAINING_ENVIRONMENT: Mapping[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


class WorkerStopping(BaseException):
    """The worker is being stopped; the job goes on with the next one.

    Not an `Exception`: DBOS would record that as the job's failure.
    """


class StageProcess:
    """Runs the steps of the stage ``target`` (``module:function``) in one child process.

    The child is started at the first call, with ``environment`` beside the worker's own. It must be
    started from a thread that outlives it: the kernel kills the child when the thread ends that
    started it.
    """

    def __init__(
        self,
        target: str,
        context: Mapping[str, Any],
        *,
        threads: int,
        stop: threading.Event,
        environment: Mapping[str, str] | None = None,
        report_every_s: float = _REPORT_S,
    ) -> None:
        self._hello = {"target": target, "context": dict(context)}
        self._environment = {**(environment or {}), "OMP_NUM_THREADS": str(threads)}
        self._stop = stop
        self._report_every_s = report_every_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return None if self._process is None else self._process.pid

    def call(
        self,
        step: str,
        arguments: Mapping[str, Any],
        report: Progress,
        note: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Have the child run ``step`` and return its result.

        ``report`` is called with the child's latest progress at once and then every second;
        ``note`` with the details of every event, as soon as it comes.
        Whatever it raises ends the child, as does any other exception that passes through here.

        Raises:
            BitpressError: what the step raised.
            JobCrashed: the child died, or met an error that nobody expected.
            WorkerStopping: the stop flag was set.
        """
        try:
            connection = self._started()
            try:
                _send(connection, {"step": step, "arguments": dict(arguments)})
                return self._answer(connection, report, note)
            except (EOFError, ConnectionError):
                raise self._death() from None
        except BaseException:
            self.kill()
            raise

    def close(self) -> None:
        """End the child, which is idle, and wait for it."""
        if self._connection is not None and self._process is not None:
            self._connection.close()
            try:
                self._process.wait(_EXIT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._connection = self._process = None

    def kill(self) -> None:
        """End the child at once, whatever it is doing, and wait for it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._connection = self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()

    def _started(self) -> Connection:
        if self._connection is None:
            ours, theirs = Pipe()
            with theirs:
                self._process = _spawn(theirs.fileno(), self._environment)
            self._connection = ours
            _send(ours, self._hello)
        return self._connection

    def _answer(
        self,
        connection: Connection,
        report: Progress,
        note: Callable[[Mapping[str, Any]], None] | None,
    ) -> dict[str, Any]:
        fraction, message = 0.0, ""
        details: Mapping[str, Any] = {}
        report(fraction, message, details)
        due = time.monotonic() + self._report_every_s
        while True:
            if self._stop.is_set():
                raise WorkerStopping
            if connection.poll(_POLL_S):
                answer = json.loads(connection.recv_bytes())
                if "result" in answer:
                    result: dict[str, Any] = answer["result"]
                    return result
                if "problem" in answer:
                    raise from_problem(answer["problem"])
                if "unexpected" in answer:
                    raise _unexpected(answer["unexpected"])
                fraction, message = answer["progress"], answer["message"]
                details = answer["details"] or {}
                if "event" in details and note is not None:
                    note(details)
            elif self._is_dead() and not connection.poll():
                # A program that the step left behind may still hold the connection open.
                raise EOFError
            if time.monotonic() >= due:
                # Even when nothing changed: it is this write that fails once the job is
                # cancelled or has passed to another worker.
                report(fraction, message, details)
                due = time.monotonic() + self._report_every_s

    def _is_dead(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _death(self) -> BaseException:
        assert self._process is not None
        try:
            code = self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if self._stop.is_set():
            return WorkerStopping()
        return _died(code)


# The stages have no business with the database, and its URL may hold a password. Settings are read
# from the environment whatever the case of their names.
_KEPT_FROM_STAGES = "BITPRESS_DATABASE_URL"


def _spawn(descriptor: int, additions: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "worker.stage_server", str(descriptor), str(os.getpid())]
    environment = {k: v for k, v in os.environ.items() if k.upper() != _KEPT_FROM_STAGES}
    # A signal to the whole process group (Ctrl-C) is the worker's to handle. The child starts
    # with it blocked, so that there is no moment at which it would die of it.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            env={**environment, **additions},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _send(connection: Connection, message: Mapping[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _died(code: int) -> JobCrashed:
    if code == -signal.SIGKILL:
        return JobCrashed(
            "The job's process was killed, which is what the system does when memory runs out.",
            remedy="Give the worker more memory, or use fewer calibration images or positions; in "
            "fine-tuning, a smaller batch_size.",
        )
    if code < 0:
        cause = f"was ended by the signal {signal.Signals(-code).name}"
    else:
        cause = f"ended by itself with the exit status {code}"
    return JobCrashed(f"The job's process {cause}.", remedy=_REMEDY)


def _unexpected(kind: str) -> JobCrashed:
    return JobCrashed(f"The job met an error that nobody expected ({kind}).", remedy=_REMEDY)


_REMEDY = (
    "Look for the job's id in the worker's log. Try again with "
    "POST /jobs/{id}/retry; if it fails the same way, report it with the lines of the log."
)
