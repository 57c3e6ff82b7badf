"""What workers leave beside their leases, and what whoever watches makes of it."""

import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from store.database import open_engine, worker_figures, workers
from store.jobs import WORKFLOW_NAME, JobStore
from store.leases import WorkerLeases
from store.specs import parse_spec
from store.watch import Watch

SPEC = parse_spec(
    {"name": "m", "architecture": "vgg9", "checkpoint": "sha256:" + "0" * 64, "dataset": "d"}
)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def leases(engine: sa.Engine) -> WorkerLeases:
    return WorkerLeases(engine)


@pytest.fixture
def jobs(database_url: str) -> Iterator[JobStore]:
    with JobStore(database_url) as jobs:
        yield jobs


def renew(leases: WorkerLeases, name: str, ttl_s: float = 60.0, **figures: object) -> None:
    leases.renew(name, host="here", pid=1, ttl_s=ttl_s, figures=figures)


def table(engine: sa.Engine) -> sa.TableClause:
    schema = None if engine.dialect.name == "sqlite" else "dbos"
    columns = ("workflow_uuid", "status", "updated_at")
    return sa.table("workflow_status", *map(sa.column, columns), schema=schema)


def put(engine: sa.Engine, job_id: str, status: str, ago_s: float) -> None:
    """Let DBOS's own row of a job say that it came into ``status`` some seconds ago."""
    rows = table(engine)
    values = {"status": status, "updated_at": int((time.time() - ago_s) * 1000)}
    with engine.begin() as connection:
        connection.execute(rows.update().where(rows.c.workflow_uuid == job_id).values(values))


def test_a_beat_replaces_what_the_worker_told_before(leases: WorkerLeases) -> None:
    renew(leases, "one", job="a", memory_bytes=1)
    renew(leases, "one", job=None)
    (state,) = leases.states(10)
    assert (state.executor_id, state.lost, state.figures) == ("one", False, {"job": None})
    assert 0 <= state.beat_age_s < 60


def test_a_beat_without_figures_leaves_those_there_are(leases: WorkerLeases) -> None:
    renew(leases, "one", job="a")
    leases.renew("one", host="here", pid=1, ttl_s=60.0)
    assert [state.figures for state in leases.states(10)] == [{"job": "a"}]


def test_of_many_workers_those_with_the_latest_beats_are_told(
    leases: WorkerLeases, engine: sa.Engine
) -> None:
    for name in ("first", "second", "third"):
        renew(leases, name)
    with engine.begin() as connection:
        late = worker_figures.update().where(worker_figures.c.executor_id == "second")
        connection.execute(late.values(at=worker_figures.c.at - 5))
    assert {state.executor_id for state in leases.states(2)} == {"first", "third"}


def test_a_worker_that_gave_its_lease_up_is_gone_and_one_that_did_not_is_lost(
    leases: WorkerLeases,
) -> None:
    renew(leases, "stopped")
    renew(leases, "killed", ttl_s=-1)
    renew(leases, "alive")
    leases.release("stopped")
    assert leases.lost() == 1
    assert {state.executor_id: state.lost for state in leases.states(10)} == {
        "killed": True,
        "alive": False,
    }


def test_what_a_worker_told_is_forgotten_an_hour_after_it_was_lost(
    leases: WorkerLeases, engine: sa.Engine
) -> None:
    renew(leases, "long-ago", ttl_s=-3700)
    renew(leases, "just-now", ttl_s=-1)
    assert leases.lost() == 1
    leases.forget_expired()
    assert [state.executor_id for state in leases.states(10)] == ["just-now"]
    with engine.connect() as connection:
        for rows in (workers, worker_figures):
            count = connection.execute(sa.select(sa.func.count()).select_from(rows)).scalar_one()
            assert count == 1


def test_an_idle_service_has_nothing_to_wait_for(jobs: JobStore) -> None:
    seen = jobs.watch.look()
    assert (seen.queued_age_s, seen.progress_age_s) == (0.0, 0.0)
    assert (seen.alive, seen.lost, list(seen.workers)) == (0, 0, [])


def test_the_queue_is_as_old_as_its_oldest_job(jobs: JobStore, engine: sa.Engine) -> None:
    for ago_s in (500, 200):
        put(engine, jobs.submit(SPEC).id, "ENQUEUED", ago_s)
    put(engine, jobs.submit(SPEC).id, "SUCCESS", 9000)
    assert 500 <= jobs.watch.look().queued_age_s < 600


def test_a_running_job_stands_still_since_its_worker_last_saw_it_move(
    jobs: JobStore, leases: WorkerLeases, engine: sa.Engine
) -> None:
    moving, stuck = jobs.submit(SPEC).id, jobs.submit(SPEC).id
    for job_id in (moving, stuck):
        put(engine, job_id, "PENDING", 7000)
    renew(leases, "one", job=moving, progress_age_s=2.0)
    renew(leases, "two", job=stuck, progress_age_s=1500.0)
    seen = jobs.watch.look()
    assert 1500 <= seen.progress_age_s < 1600
    assert seen.alive == 2
    # What is not running any more is not stuck.
    put(engine, stuck, "ERROR", 0)
    assert 2 <= jobs.watch.look().progress_age_s < 100


def test_a_job_that_was_taken_over_is_judged_by_its_new_worker(
    jobs: JobStore, leases: WorkerLeases, engine: sa.Engine
) -> None:
    job_id = jobs.submit(SPEC).id
    put(engine, job_id, "PENDING", 7000)
    renew(leases, "dead", ttl_s=-1, job=job_id, progress_age_s=4000.0)
    assert 4000 <= jobs.watch.look().progress_age_s < 4100
    renew(leases, "heir", job=job_id, progress_age_s=1.0)
    assert 1 <= jobs.watch.look().progress_age_s < 100


def test_a_running_job_that_no_worker_has_told_of_counts_from_when_it_was_taken(
    jobs: JobStore, engine: sa.Engine
) -> None:
    put(engine, jobs.submit(SPEC).id, "PENDING", 3000)
    assert 3000 <= jobs.watch.look().progress_age_s < 3100


def test_jobs_of_another_kind_are_not_watched(jobs: JobStore, engine: sa.Engine) -> None:
    put(engine, jobs.submit(SPEC).id, "PENDING", 3000)
    assert Watch(engine, "another").look().progress_age_s == 0
    assert Watch(engine, WORKFLOW_NAME).look().progress_age_s > 0
