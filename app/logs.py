"""The app's log: one JSON object a line on standard error, as `store.logs` describes."""

import logging
import sys

from store.logs import send_logs


def configure(level: str = "INFO") -> None:
    """Send every log of the process to standard error, from ``level`` on."""
    send_logs(sys.stderr, level)
    # Every request has its own line already, and the app says itself when it listens.
    for noisy in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
