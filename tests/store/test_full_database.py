"""A job database that can grow no more."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from store.database import database_errors
from store.errors import StorageExhausted, Unavailable
from store.jobs import JobStore
from store.specs import parse_spec

SPEC = parse_spec(
    {
        "name": "full",
        "architecture": "digits_cnn",
        "checkpoint": "sha256:" + "0" * 64,
        "dataset": "digits",
        "input": {"channels": 1, "height": 8, "width": 8},
    }
)


@pytest.fixture
def no_growth() -> Iterator[None]:
    """Let no SQLite file grow that is opened from here on."""

    def limit(connection: Any, _record: Any) -> None:
        # Fewer pages than there are count as those that there are.
        connection.execute("PRAGMA max_page_count=1")

    sa.event.listen(sa.Engine, "connect", limit)
    yield
    sa.event.remove(sa.Engine, "connect", limit)


@pytest.mark.usefixtures("no_growth")
@pytest.mark.parametrize("key", [None, "key"])
def test_a_job_that_the_database_has_no_room_for_is_refused(
    sqlite_url: str, key: str | None
) -> None:
    jobs = JobStore(sqlite_url)
    try:
        with pytest.raises(StorageExhausted, match="database has no space") as caught:
            # What is left of the last page takes some.
            for number in range(1000):
                _ = jobs.submit(SPEC) if key is None else jobs.submit_once(SPEC, f"{key}-{number}")
        assert "free space" in str(caught.value.remedy)
        assert len(jobs.list(200)) == number
    finally:
        jobs.close()


@pytest.mark.parametrize("when_full", [Unavailable, StorageExhausted])
def test_what_a_full_disk_is_to_a_caller_is_for_the_caller_to_say(
    when_full: type[Unavailable] | type[StorageExhausted],
) -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        connection.execute(sa.text("CREATE TABLE rows (data BLOB)"))
        connection.execute(sa.text("PRAGMA max_page_count=1"))
        with pytest.raises(when_full, match="no space left"), database_errors(when_full):
            connection.execute(sa.text("INSERT INTO rows VALUES (zeroblob(100000))"))
    engine.dispose()
