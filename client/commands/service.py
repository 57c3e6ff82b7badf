"""``bitpress up``, ``serve`` and ``worker``: the processes of the service.

The client imports none of the other rooms: it starts them as ``python -m app`` and
``python -m worker`` and hands the settings over in the environment.
"""

import os
import sys
from pathlib import Path
from typing import NoReturn

import typer

from client import up as supervisor
from client.commands.options import DataDir, Host, Port, ReadyFile


def up(
    data_dir: DataDir = None,
    host: Host = None,
    port: Port = None,
    ready_file: ReadyFile = None,
) -> None:
    """Run the app and the worker together, on one data directory; Ctrl-C stops both."""
    environment = _environment(data_dir, host, port, ready_file)
    raise typer.Exit(supervisor.run(environment, sys.stderr))


def serve(
    data_dir: DataDir = None,
    host: Host = None,
    port: Port = None,
    ready_file: ReadyFile = None,
) -> None:
    """Run the app alone: the REST interface."""
    _become("app", _environment(data_dir, host, port, ready_file))


def worker(data_dir: DataDir = None) -> None:
    """Run a worker alone: it carries out compression jobs."""
    _become("worker", _environment(data_dir, None, None, None))


def _environment(
    data_dir: Path | None, host: str | None, port: int | None, ready_file: Path | None
) -> dict[str, str]:
    """Return this environment with the options in it, and without an old ready file."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    options = {
        "BITPRESS_DATA_DIR": data_dir and data_dir.absolute(),
        "BITPRESS_HOST": host,
        "BITPRESS_PORT": port,
        "BITPRESS_READY_FILE": ready_file and ready_file.absolute(),
    }
    environment |= {name: str(value) for name, value in options.items() if value is not None}
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)
    return environment


def _become(room: str, environment: dict[str, str]) -> NoReturn:
    # In place, so that signals and the exit code are the process's own.
    os.execve(sys.executable, [sys.executable, "-m", room], environment)
