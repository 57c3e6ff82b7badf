"""DBOS waits for a database that has no space left, also where that is SQLite."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dbos._sys_db import db_retry

from store.database import lacks_space
from store.errors import JobCrashed, StorageExhausted
from worker.full_database import _count_as_lost, wait_for_space
from worker.job_end import can_go_on, problem_of


@pytest.fixture
def waiting() -> Iterator[None]:
    wait_for_space()
    yield
    sa.event.remove(sa.Engine, "handle_error", _count_as_lost)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[sa.Engine]:
    """A database that can grow no more."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'full.sqlite'}")

    @sa.event.listens_for(engine, "connect")
    def limit(connection: Any, _record: Any) -> None:
        connection.execute("CREATE TABLE IF NOT EXISTS rows (data BLOB)")
        # Fewer pages than there are count as those that there are.
        connection.execute("PRAGMA max_page_count=1")

    yield engine
    engine.dispose()


def fill(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO rows VALUES (zeroblob(100000))"))


@pytest.mark.usefixtures("waiting")
def test_dbos_tries_again_until_there_is_space(full: sa.Engine) -> None:
    attempts = 0

    @db_retry(initial_backoff=0.001)
    def write() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 3:
            return
        fill(full)

    write()
    assert attempts == 3


@pytest.mark.usefixtures("waiting")
def test_another_fault_is_none_that_waiting_mends(full: sa.Engine) -> None:
    with pytest.raises(sa.exc.OperationalError) as caught, full.begin() as connection:
        connection.execute(sa.text("INSERT INTO nowhere VALUES (1)"))
    assert not caught.value.connection_invalidated
    assert not lacks_space(caught.value)
    assert problem_of(caught.value, "job")["type"].endswith(JobCrashed.code)


def test_a_job_that_fails_for_it_says_so(full: sa.Engine) -> None:
    with pytest.raises(sa.exc.OperationalError) as caught:
        fill(full)
    problem = problem_of(caught.value, "job")
    assert problem["type"].endswith(StorageExhausted.code)
    assert "retry" in problem["remedy"]
    assert can_go_on(problem)
