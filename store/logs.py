"""Logs as one JSON object a line, in the app and in the worker alike."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

# What every record has; "color_message" is uvicorn's coloured copy of the message.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    *("message", "asctime", "taskName", "color_message"),
}


class JsonFormatter(logging.Formatter):
    """``time``, ``level``, ``logger``, ``event`` and whatever came as ``extra``.

    Of an exception it tells the kind as ``error``, and only with ``tracebacks`` the rest, as
    ``traceback``: a traceback shows paths, and now and then what a caller sent.
    """

    def __init__(self, *, tracebacks: bool = False) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            if self._tracebacks:
                line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
