"""The job database: how it is opened and prepared, and the tables that are bitpress's own.

Jobs themselves are DBOS workflows (`store.jobs`). Beside them lie two small tables: which workers
are alive (`store.leases`) and how long each stage of each job took (`store.figures`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dbos import DBOS

from store.durable import locked
from store.errors import Unavailable

metadata = sa.MetaData()

workers = sa.Table(
    "bitpress_workers",
    metadata,
    sa.Column("executor_id", sa.Text, primary_key=True),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    # Seconds since 1970 by the database's clock: the workers' own clocks may differ.
    sa.Column("expires_at", sa.Double, nullable=False),
)

stage_seconds = sa.Table(
    "bitpress_stage_seconds",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("stage", sa.Text, primary_key=True),
    sa.Column("seconds", sa.Double, nullable=False),
)

# Any constant will do; it only has to be the same in every process.
_CREATE_TABLES_LOCK = 0x62697470


def open_engine(url: str, *, pool_size: int = 2) -> sa.Engine:
    """Return an engine for the job database; nothing is connected yet.

    SQLite takes the write lock at the start of a transaction, so that two processes never
    deadlock on the upgrade from reading to writing, and waits for it up to 30 s.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        # The bare scheme would ask for another driver than the one DBOS uses.
        target = parsed.set(drivername="postgresql+psycopg")
        return sa.create_engine(target, pool_pre_ping=True, pool_size=pool_size, max_overflow=0)
    engine = sa.create_engine(url, pool_size=pool_size, max_overflow=0)

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = "IMMEDIATE"
        connection.execute("PRAGMA busy_timeout=30000")

    return engine


def database_clock(engine: sa.Engine) -> sa.ColumnElement[float]:
    """Return the SQL expression of the database's current time, in seconds since 1970."""
    if engine.dialect.name == "postgresql":
        return sa.literal_column("extract(epoch from clock_timestamp())", sa.Double)
    return sa.literal_column("(julianday('now') - 2440587.5) * 86400.0", sa.Double)


def prepare_database(url: str) -> None:
    """Create or upgrade the job database. App and worker both call this before anything else.

    Safe to run from several processes at once. On SQLite it also turns on write-ahead logging,
    without which a reader waits for every writer.
    """
    engine = open_engine(url)
    try:
        with _alone_with(engine):
            DBOS.migrate(url)
            if engine.dialect.name == "sqlite":
                with engine.connect() as connection:
                    connection.execute(sa.text("PRAGMA journal_mode=WAL"))
            with engine.begin() as connection:
                if engine.dialect.name == "postgresql":
                    # Two CREATE TABLE IF NOT EXISTS at once can still collide in the catalogue.
                    connection.execute(
                        sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATE_TABLES_LOCK}
                    )
                for table in metadata.sorted_tables:
                    connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
    finally:
        engine.dispose()


@contextmanager
def _alone_with(engine: sa.Engine) -> Iterator[None]:
    """Keep other processes from preparing the same SQLite file meanwhile.

    The change to write-ahead logging fails at once, however long one is ready to wait, while
    anybody else has the file open in a transaction.
    """
    file = engine.url.database
    if engine.dialect.name != "sqlite" or not file:
        yield
        return
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(path.name + ".lock")):
        yield


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn a database that cannot be reached, or is worn out, into `Unavailable`."""
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        raise Unavailable(
            "The job database does not answer.",
            remedy="Try again in a moment; if it persists, ask the operator to look at it.",
        ) from error
