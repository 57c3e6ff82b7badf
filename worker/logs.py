"""The worker's log: one JSON object a line on standard error.

Every line has ``time``, ``level``, ``logger`` and ``event``; lines about a job have ``job`` and,
where they apply, ``stage``, ``step`` and ``seconds``. Tracebacks appear here and nowhere else.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

# Loggers of libraries that install a handler of their own where they find none.
_LIBRARIES = ("dbos",)


class JsonFormatter(logging.Formatter):
    """Formats a record, and the fields that `fields` attached, as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def fields(**values: Any) -> dict[str, Any]:
    """Return the ``extra`` of a log call: ``log.info("...", extra=fields(job=job_id))``."""
    return {"fields": values}


def configure_logs(level: str) -> None:
    """Send the log of this process to standard error, from ``level`` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    for name in _LIBRARIES:
        library = logging.getLogger(name)
        library.handlers = [handler]
        library.propagate = False
