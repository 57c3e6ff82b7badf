"""Logs as one JSON object a line, in the app and in the worker alike.

What a line may not tell: secrets, what a caller sent, and where things lie on the server. So of an
exception it tells the kind and the places in the code it came through, never its message, which may
quote any of them; and what a library says loses its paths and addresses.
"""

import errno
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from sqlalchemy.exc import DBAPIError

# What every record has; "color_message" is uvicorn's coloured copy of the message.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    *("message", "asctime", "taskName", "color_message"),
}
_OWN = ("bitpress", "worker")
_MOST_PLACES = 12
_ADDRESS = re.compile(r"\b([a-z][a-z0-9+]*)://[^\s'\"]+", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w.:/\]])/(?:[^\s'\":,;()\[\]]+)")
_context: ContextVar[Mapping[str, Any] | None] = ContextVar("bitpress_log_context", default=None)


@contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Put ``fields`` into every line that this task, or this thread, writes meanwhile."""
    token = _context.set({**(_context.get() or {}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def without_places(text: str) -> str:
    """Return ``text`` with absolute paths and all of an address but its scheme taken out."""
    return _PATH.sub("[path]", _ADDRESS.sub(r"\1://[address]", text))


class JsonFormatter(logging.Formatter):
    """``time``, ``level``, ``logger``, ``event``, ``fields``, the context, what came as ``extra``.

    Of an exception it tells the kind as ``error``, the kinds behind it as ``causes``, and the
    places it passed as ``trace`` (``module:function:line``, the innermost last).
    """

    def __init__(self, fields: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._fields = dict(fields or {})

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        moment = datetime.fromtimestamp(record.created, UTC)
        event = record.getMessage()
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": event if (record.name or "").startswith(_OWN) else without_places(event),
            **self._fields,
            **(_context.get() or {}),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if isinstance(line.get("problem"), Mapping):
            # Its words are for the caller, and may name the caller's files.
            kept = ("type", "title", "field")
            line["problem"] = {key: line["problem"][key] for key in kept if key in line["problem"]}
        if "output" in line:
            # What another program has printed.
            line["output"] = without_places(str(line["output"]))
        if record.exc_info and record.exc_info[1] is not None:
            line |= _told(record.exc_info[1])
        return json.dumps(line, default=str)


def send_logs(stream: TextIO, level: str, fields: Mapping[str, Any] | None = None) -> None:
    """Write every log of this process to ``stream`` as JSON, from ``level`` on.

    Warnings of Python become lines too. DBOS tells at INFO of its own workings, migration by
    migration; what becomes of jobs is logged by those who know.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(fields))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    warnings.showwarning = _show_warning
    # These tell, at their most talkative, what they read.
    for library in ("asyncio", "PIL", "python_multipart", "torch"):
        logging.getLogger(library).setLevel(max(root.level, logging.WARNING))
    # It installs a handler of its own where it finds none.
    dbos = logging.getLogger("dbos")
    dbos.handlers = [handler]
    dbos.propagate = False
    dbos.setLevel(max(root.level, logging.WARNING))


def _show_warning(
    message: Warning | str, category: type[Warning], *_where: object, **_more: object
) -> None:
    """Log a warning of Python without the file it arose in, whose path nobody needs."""
    logging.getLogger("py.warnings").warning(
        without_places(str(message)), extra={"category": category.__name__}
    )


def _told(error: BaseException) -> dict[str, Any]:
    """Return what may be told of an exception."""
    told: dict[str, Any] = {"error": type(error).__name__}
    if isinstance(error, OSError) and error.errno is not None:
        told["errno"] = errno.errorcode.get(error.errno, str(error.errno))
    if isinstance(error, DBAPIError):
        # The driver's own words: why the database cannot be reached is for the operator to know.
        told["fault"] = without_places(str(error.orig).partition("\n")[0])
    causes: list[str] = []
    cause = error.__cause__ or error.__context__
    while cause is not None and len(causes) < _MOST_PLACES:
        causes.append(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    if causes:
        told["causes"] = causes
    told["trace"] = _places(error.__traceback__)
    return told


def _places(trace: TracebackType | None) -> list[str]:
    places = []
    while trace is not None:
        code = trace.tb_frame.f_code
        module = trace.tb_frame.f_globals.get("__name__", "?")
        places.append(f"{module}:{code.co_qualname}:{trace.tb_lineno}")
        trace = trace.tb_next
    return places[-_MOST_PLACES:]
