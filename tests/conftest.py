"""Fixtures for tests of more than one room: job databases."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from store.database import prepare_database

_LOCAL_POSTGRES = "postgresql://127.0.0.1:5432/postgres"

BACKENDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@contextmanager
def _postgres_database(server: sa.Engine, template: str = "template1") -> Iterator[sa.URL]:
    """Yield the URL of a database of one's own, dropped at the end."""
    name = f"bitpress_test_{uuid.uuid4().hex}"
    with server.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    try:
        yield server.url.set(drivername="postgresql", database=name)
    finally:
        with server.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


def _text(url: sa.URL) -> str:
    return url.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def _postgres_server() -> Iterator[sa.Engine]:
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
    with _postgres_database(_postgres_server) as url:
        prepare_database(_text(url))
        yield str(url.database)


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
