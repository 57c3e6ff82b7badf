"""Tables on standard output: as wide as the terminal, and as they need to be in a pipe."""

from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS = 240


def standard_output() -> Console:
    """Return the console to print results to."""
    console = Console()
    # Nobody sees a pipe; what reads it wants each row in a line.
    return console if console.is_terminal else Console(width=_PIPE_COLUMNS)


def print_table(table: Table, nothing: str) -> None:
    """Print a table, or ``nothing`` where it has no rows."""
    standard_output().print(table if table.row_count else nothing, highlight=False)


def time_of(at: datetime | None) -> str:
    """Return a time as UTC, to the second; nothing where there is none.

    The service's own, so that it is the same on every machine, and in its log.
    """
    if at is None:
        return ""
    known = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    return f"{known.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
