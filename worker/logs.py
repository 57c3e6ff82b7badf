"""The worker's log: one JSON object a line on standard error, as `store.logs` describes.

Lines about a job have ``job`` and, where they apply, ``stage``, ``step`` and ``seconds``.
"""

import sys
from typing import Any

from store.logs import send_logs


def configure_logs(level: str, **fields: Any) -> None:
    """Send the log of this process to standard error, from ``level`` on; each line has ``fields``.

    The process of a stage gives its ``job``: whatever speaks there speaks about it.
    """
    send_logs(sys.stderr, level, fields)
