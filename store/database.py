"""The job database: how it is opened and prepared, and the tables that are bitpress's own.

Jobs themselves are DBOS workflows (`store.jobs`), whose table is read wherever DBOS has no call for
what is asked. Beside it lie small tables: which workers are alive and what they tell of themselves
(`store.leases`), how long each stage of each job took (`store.figures`), what jobs that are gone
add to such figures (`store.carried_totals`), how each job is to end (`store.verdicts`), and what
happened to it (`store.job_events`).
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dbos import DBOS
from sqlalchemy.dialects import postgresql, sqlite

from store.durable import locked
from store.errors import BitpressError, Unavailable

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

# What each worker told of itself with its last beat, as JSON.
worker_figures = sa.Table(
    "bitpress_worker_figures",
    metadata,
    sa.Column("executor_id", sa.Text, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
)

stage_seconds = sa.Table(
    "bitpress_stage_seconds",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("stage", sa.Text, primary_key=True),
    sa.Column("seconds", sa.Double, nullable=False),
)

verdicts = sa.Table(
    "bitpress_verdicts",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    # How the job ends, whatever else is tried: "publish", "reject" or "cancel".
    sa.Column("verdict", sa.Text, nullable=False),
)

# What jobs that are no more, or not over any more, add to figures that only grow.
carried_totals = sa.Table(
    "bitpress_carried_totals",
    metadata,
    # "stage" or "ending", and the name of the stage or state.
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
)

# What happened to each job, in order: see `store.job_events`.
job_events = sa.Table(
    "bitpress_job_events",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    # ISO 8601 in UTC, by the clock of whoever wrote it.
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    # What may be said of a job but once; null where there is no such limit.
    sa.Column("once", sa.Text),
    sa.UniqueConstraint("job_id", "once"),
)

# A process that is frozen in the midst of a transaction must not keep others waiting for its locks.
_IDLE_MS = 10_000

# SQLite says this where a file cannot grow: its own, or the one its processes share.
_SQLITE_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
_POSTGRES_FULL = "53100"

# A host that answers nothing at all would hold a request for minutes.
_CONNECT_S = 10

# Any constant will do; it only has to be the same in every process.
_CREATE_TABLES_LOCK = 0x62697470


def open_engine(url: str, *, pool_size: int = 2) -> sa.Engine:
    """Return an engine for the job database; nothing is connected yet.

    SQLite takes the write lock at the start of a transaction, so that two processes never
    deadlock on the upgrade from reading to writing, and waits for it up to 30 s. PostgreSQL ends a
    transaction in which nothing happens for 10 s, and has 10 s to take a connection where the URL
    says nothing else.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        # The bare scheme would ask for another driver than the one DBOS uses.
        target = parsed.set(drivername="postgresql+psycopg")
        if "connect_timeout" not in target.query:
            target = target.update_query_dict({"connect_timeout": str(_CONNECT_S)})
        engine = sa.create_engine(target, pool_pre_ping=True, pool_size=pool_size, max_overflow=0)

        @sa.event.listens_for(engine, "connect")
        def _limit(connection: Any, _record: Any) -> None:
            connection.execute(f"SET idle_in_transaction_session_timeout = {_IDLE_MS}")
            connection.commit()

        return engine
    engine = sa.create_engine(url, pool_size=pool_size, max_overflow=0)

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = "IMMEDIATE"
        connection.execute("PRAGMA busy_timeout=30000")
        # As on PostgreSQL: what DBOS keeps of a job goes with the job's row.
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


def workflows(engine: sa.Engine) -> sa.TableClause:
    """Return DBOS's documented table of workflows, with the columns that are read of it.

    Contract tests hold them. ``owner_xid`` is the token of the one execution that may write for the
    job, none after its end and another after a takeover; times are milliseconds since 1970.
    """
    texts = ("workflow_uuid", "status", "name", "executor_id", "owner_xid")
    times = ("created_at", "updated_at", "completed_at")
    return sa.table(
        "workflow_status",
        *(sa.column(name, sa.Text) for name in texts),
        *(sa.column(name, sa.BigInteger) for name in times),
        sa.column("attributes", sa.JSON),
        schema=None if engine.dialect.name == "sqlite" else "dbos",
    )


def insert_into(engine: sa.Engine, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that can be told what to do where a row is there already."""
    insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    return insert(table)


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


def lacks_space(error: BaseException) -> bool:
    """Whether the database failed because the disk it lies on is full."""
    cause = getattr(error, "orig", error)
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", None) in _SQLITE_FULL
    return getattr(cause, "sqlstate", None) == _POSTGRES_FULL


@contextmanager
def database_errors(when_full: type[BitpressError] = Unavailable) -> Iterator[None]:
    """Turn a database that cannot be reached, or is worn out, into `Unavailable`.

    One whose disk is full becomes ``when_full``.
    """
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        if lacks_space(error):
            raise when_full(
                "The job database has no space left.",
                remedy="Ask the operator to free space, then send the request again.",
            ) from error
        raise Unavailable(
            "The job database does not answer.",
            remedy="Try again in a moment; if it persists, ask the operator to look at it.",
        ) from error
