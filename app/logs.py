"""The app's log: one JSON object a line on standard error, of exceptions their kind only."""

import logging

from store.logs import JsonFormatter


def configure(level: int = logging.INFO) -> None:
    """Send every log of the process through `store.logs.JsonFormatter`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Every request has its own line already.
    for noisy in ("uvicorn.access", "python_multipart", "PIL", "dbos"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
