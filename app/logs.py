"""Logs as one JSON object a line, on standard error."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """``time``, ``level``, ``logger``, ``event`` and whatever came as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON; of an exception only its kind is told."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        # uvicorn's coloured copy of the message.
        line.pop("color_message", None)
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line, default=str)


def configure(level: int = logging.INFO) -> None:
    """Send every log of the process through `JsonFormatter`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Every request has its own line already.
    for noisy in ("uvicorn.access", "python_multipart", "PIL", "dbos"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
