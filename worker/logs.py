"""The worker's log: one JSON object a line on standard error.

Every line has ``time``, ``level``, ``logger`` and ``event``; lines about a job have ``job`` and,
where they apply, ``stage``, ``step`` and ``seconds``. Tracebacks appear here and nowhere else.
"""

import logging
import sys

from store.logs import JsonFormatter

# Loggers of libraries that install a handler of their own where they find none.
_LIBRARIES = ("dbos",)


def configure_logs(level: str) -> None:
    """Send the log of this process to standard error, from ``level`` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(tracebacks=True))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    for name in _LIBRARIES:
        library = logging.getLogger(name)
        library.handlers = [handler]
        library.propagate = False
