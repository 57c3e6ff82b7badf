"""Fixtures for tests of more than one room: job databases, and workers as processes.

What needs a database imports it by itself: tests that need a GPU also run where none is installed.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import sqlalchemy as sa

REPOSITORY = Path(__file__).parents[1]
DEADLINE_S = 300.0

_LOCAL_POSTGRES = "postgresql://127.0.0.1:5432/postgres"

BACKENDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@contextmanager
def _postgres_database(server: sa.Engine, template: str = "template1") -> Iterator[sa.URL]:
    """Yield the URL of a database of one's own, dropped at the end."""
    import sqlalchemy as sa

    name = f"bitpress_test_{uuid.uuid4().hex}"
    with server.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    try:
        yield server.url.set(drivername="postgresql", database=name)
    finally:
        with server.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


@pytest.fixture(autouse=True, scope="session")
def _kernel_choices_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the CPU runtime remembers apart from what it knows of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITPRESS_CACHE_DIR", str(tmp_path_factory.mktemp("kernel-choices")))
        yield


def _text(url: sa.URL) -> str:
    return url.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def _postgres_server() -> Iterator[sa.Engine]:
    import sqlalchemy as sa

    url = sa.make_url(os.environ.get("BITPRESS_TEST_POSTGRES", _LOCAL_POSTGRES))
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
        connect_args={"connect_timeout": 2},
        poolclass=sa.NullPool,
    )
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
    except sa.exc.OperationalError:
        pytest.skip(
            "no PostgreSQL server: set BITPRESS_TEST_POSTGRES, or start one on 127.0.0.1:5432"
        )
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def _postgres_template(_postgres_server: sa.Engine) -> Iterator[str]:
    from store.database import prepare_database

    with _postgres_database(_postgres_server) as url:
        prepare_database(_text(url))
        yield str(url.database)


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from store.database import prepare_database

    file = tmp_path_factory.mktemp("template") / "bitpress.sqlite"
    prepare_database(f"sqlite:///{file}")
    return file


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """The URL of an SQLite job database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'bitpress.sqlite'}"


@pytest.fixture
def empty_postgres_url(_postgres_server: sa.Engine) -> Iterator[str]:
    """The URL of an empty PostgreSQL database, dropped at the test's end."""
    with _postgres_database(_postgres_server) as url:
        yield _text(url)


@pytest.fixture
def sqlite_url(_sqlite_template: Path, empty_sqlite_url: str) -> str:
    """The URL of a prepared SQLite job database."""
    import sqlalchemy as sa

    shutil.copyfile(_sqlite_template, str(sa.make_url(empty_sqlite_url).database))
    return empty_sqlite_url


@pytest.fixture
def postgres_url(_postgres_server: sa.Engine, _postgres_template: str) -> Iterator[str]:
    """The URL of a prepared PostgreSQL job database, dropped at the test's end."""
    with _postgres_database(_postgres_server, _postgres_template) as url:
        yield _text(url)


@pytest.fixture(params=BACKENDS)
def empty_database_url(request: pytest.FixtureRequest) -> str:
    """A job database that is yet to be prepared, on SQLite and on PostgreSQL where there is one."""
    return str(request.getfixturevalue(f"empty_{request.param}_url"))


@pytest.fixture(params=BACKENDS)
def database_url(request: pytest.FixtureRequest) -> str:
    """A prepared job database, on SQLite and on PostgreSQL where there is a server."""
    return str(request.getfixturevalue(f"{request.param}_url"))


class WorkerProcess:
    """A worker process whose log is read line by line."""

    def __init__(self, environment: Mapping[str, str], arguments: Sequence[str]) -> None:
        self.lines: list[dict[str, Any]] = []
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=REPOSITORY,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._queue.put(json.loads(line))
        self._queue.put(None)

    def wait_for(self, event: str, **fields: object) -> dict[str, Any]:
        """Read the log until a line says ``event`` with these fields; return it."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                line = self._queue.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                pytest.fail(f"waited {DEADLINE_S} s for {event!r} after {self.lines}")
            if line is None:
                pytest.fail(f"the worker ended before {event!r}: {self.lines}")
            self.lines.append(line)
            if line["event"] == event and fields.items() <= line.items():
                return line

    def steps_done(self) -> list[str]:
        """Return the steps that this worker has finished, as DBOS names them."""
        return [
            ":".join(part for part in (line["stage"], line["step"]) if part)
            for line in self.lines
            if line["event"] == "step finished"
        ]

    def children(self) -> set[int]:
        """Return the process ids of the worker's children."""
        listing = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return {int(pid) for entry in listing for pid in entry.read_text().split()}

    def end(self, number: signal.Signals) -> int:
        """Send a signal, wait for the worker's end and return its exit status."""
        if self.process.stderr is None or self.process.stderr.closed:
            return self.process.wait()
        self.process.send_signal(number)
        status = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        while (line := self._queue.get()) is not None:
            self.lines.append(line)
        return status


StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def start_worker() -> Iterator[StartWorker]:
    """Start a worker and wait until it is ready; what still runs at the test's end is killed.

    ``start_worker(data_dir, database_url, *python_arguments, **settings)``, where a setting is
    ``lease_ttl_s=1.0`` for ``BITPRESS_LEASE_TTL_S``.
    """
    started: list[WorkerProcess] = []

    def start(
        data_dir: Path, database_url: str, *arguments: str, **settings: object
    ) -> WorkerProcess:
        chosen = {
            "data_dir": data_dir,
            "database_url": database_url,
            "worker_threads": 1,
            "cache_dir": os.environ["BITPRESS_CACHE_DIR"],
            "queue_poll_s": 0.1,
            "lease_beat_s": 0.2,
            "lease_ttl_s": 1.0,
            **settings,
        }
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BITPRESS_")}
        environment |= {f"BITPRESS_{name.upper()}": str(value) for name, value in chosen.items()}
        worker = WorkerProcess(environment, arguments or ["-m", "worker"])
        started.append(worker)
        worker.wait_for("worker ready")
        return worker

    yield start
    for worker in started:
        worker.end(signal.SIGKILL)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} here: install Debian's package prometheus")
    return found


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of promtool; the test is skipped where there is none."""
    return _program("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    """The path of Prometheus; the test is skipped where there is none."""
    return _program("prometheus")


@pytest.fixture
def is_running() -> Callable[[int], bool]:
    """Tell whether the process with an id is there, and not a zombie that nobody has buried."""

    def check(pid: int) -> bool:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return False
        return stat.rpartition(")")[2].split()[0] != "Z"

    return check


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Wait for a condition: ``wait_until(condition, what)``."""

    def wait(condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"waited {timeout_s} s for {what}")
            time.sleep(0.01)

    return wait
