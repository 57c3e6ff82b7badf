"""The child's side of a stage: ``python -m worker.stage_server DESCRIPTOR PARENT_PID``.

Serves the steps of one stage over the inherited descriptor until the worker closes it, as
`worker.stage_process` describes. It dies with the worker, however that dies.
"""

import errno
import importlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from store.durable import full_disk_named
from store.errors import BitpressError, JobCrashed, StorageExhausted
from store.specs import parse_spec
from worker.job_files import JobFiles
from worker.logs import configure_logs
from worker.settings import WorkerSettings
from worker.stage_context import Stage, StageContext, Step
from worker.training.lifetime import die_with

# The worker reports every second; more often would only keep it busy.
_PROGRESS_EVERY_S = 0.2

_OUT_OF_MEMORY = JobCrashed(
    "The job ran out of memory.",
    remedy="Give the worker more memory, or use fewer calibration images or positions; in "
    "fine-tuning, a smaller batch_size.",
)
_OUT_OF_GPU_MEMORY = JobCrashed(
    "The job ran out of the GPU's memory.",
    remedy="Try again when less is going on there, or use fewer calibration positions or a smaller "
    "batch_size; or ask the operator for a GPU of its own, or for BITPRESS_DEVICE=cpu.",
)
_DISK_FULL = StorageExhausted(
    "The server has no space left for the job's files.",
    remedy="Ask the operator to free space, then try again with POST /jobs/{id}/retry.",
)

log = logging.getLogger("worker.stage")


def context_json(job_id: str, spec: Mapping[str, Any], settings: WorkerSettings) -> dict[str, Any]:
    """Return the context of a stage as the hello carries it. The database stays behind."""
    return {
        "job": job_id,
        "spec": dict(spec),
        "settings": settings.model_dump(mode="json", exclude={"database_url"}),
    }


def read_context(data: Mapping[str, Any]) -> StageContext:
    """Return the context that `context_json` gave, and begin to write logs as it says."""
    settings = WorkerSettings(**data["settings"])
    configure_logs(settings.log_level, job=data["job"])
    return StageContext(
        job_id=data["job"],
        spec=parse_spec(data["spec"]),
        settings=settings,
        files=JobFiles(Path(settings.data_dir), data["job"]),
    )


def main(arguments: list[str]) -> int:
    """Serve the stage's steps; return the exit status."""
    descriptor, parent = int(arguments[0]), int(arguments[1])
    die_with(parent)
    _leave_signals_to_the_worker()
    # Programs that a step starts must not hold the connection open.
    os.set_inheritable(descriptor, False)
    with Connection(descriptor) as connection:
        try:
            hello = json.loads(connection.recv_bytes())
            serve(connection, hello["target"], read_context(hello["context"]))
        except (EOFError, ConnectionError):
            # The worker is done with this stage, or gone.
            return 0


def serve(connection: Connection, target: str, context: StageContext) -> NoReturn:
    """Answer requests until the connection ends, which raises `EOFError`."""
    steps: Mapping[str, Step] | None = None
    while True:
        request = json.loads(connection.recv_bytes())
        name = request["step"]
        try:
            with full_disk_named():
                if steps is None:
                    steps = _stage(target)(context)
                result = steps[name](request["arguments"], _Reporter(connection))
            answer = {"result": result}
        except BitpressError as error:
            answer = {"problem": error.problem()}
        except (EOFError, ConnectionError):
            raise
        except Exception as error:
            log.exception(
                "step met an unexpected error", extra={"job": context.job_id, "step": name}
            )
            answer = _crash(error)
        connection.send_bytes(json.dumps(answer).encode())


class _Reporter:
    """Sends progress to the worker, not more often than it is of use."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._due = 0.0

    def __call__(
        self, fraction: float, message: str, details: Mapping[str, Any] | None = None, /
    ) -> None:
        now = time.monotonic()
        # Progress is as good as its newest report; an event says what is said but once.
        if now >= self._due or "event" in (details or {}):
            self._due = now + _PROGRESS_EVERY_S
            report = {
                "progress": min(max(fraction, 0.0), 1.0),
                "message": message,
                "details": details,
            }
            self._connection.send_bytes(json.dumps(report).encode())


def _crash(error: Exception) -> dict[str, Any]:
    # torch and safetensors tell of a lack of memory and space in words only.
    words = str(error)
    if "CUDA out of memory" in words:
        return {"problem": _OUT_OF_GPU_MEMORY.problem()}
    if isinstance(error, MemoryError) or "can't allocate memory" in words:
        return {"problem": _OUT_OF_MEMORY.problem()}
    if f"(os error {errno.ENOSPC})" in words:
        return {"problem": _DISK_FULL.problem()}
    return {"unexpected": type(error).__name__}


def _stage(target: str) -> Stage:
    module, _, function = target.partition(":")
    stage: Stage = getattr(importlib.import_module(module), function)
    return stage


def _leave_signals_to_the_worker() -> None:
    # A handler that does nothing, not SIG_IGN: programs that a step starts would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
