"""Verdicts: whoever comes first has the last word on a job."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from store.database import open_engine
from store.verdicts import Verdict, Verdicts

# Of conftest.py, which cannot be imported.
SetJob = Callable[..., None]


@pytest.fixture
def verdicts(database_url: str) -> Iterator[Verdicts]:
    engine: sa.Engine = open_engine(database_url, pool_size=8)
    yield Verdicts(engine)
    engine.dispose()


def test_the_first_verdict_stands(verdicts: Verdicts) -> None:
    assert verdicts.of("job") is None
    assert verdicts.give("job", "publish") == "publish"
    assert verdicts.give("job", "cancel") == "publish"
    assert verdicts.give("job", "publish") == "publish"
    assert verdicts.of("job") == "publish"
    assert verdicts.give("other", "cancel") == "cancel"


@pytest.mark.parametrize("status", ["ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"])
def test_the_verdict_on_a_job_that_is_over_is_lifted_unless_it_may_be_published(
    verdicts: Verdicts, set_job: SetJob, status: str
) -> None:
    given: list[Verdict] = ["cancel", "reject", "publish"]
    for verdict in given:
        set_job(verdict, status)
        verdicts.give(verdict, verdict)
    assert [verdicts.lift(job) for job in given] == [True, True, False]
    assert [verdicts.of(job) for job in given] == [None, None, "publish"]
    assert not verdicts.lift("cancel")


@pytest.mark.parametrize("status", ["ENQUEUED", "PENDING", "SUCCESS"])
def test_the_verdict_on_a_job_that_goes_on_is_never_lifted(
    verdicts: Verdicts, set_job: SetJob, status: str
) -> None:
    set_job("job", status)
    verdicts.give("job", "cancel")
    assert not verdicts.lift("job")
    assert not verdicts.lift("no such job")
    assert verdicts.of("job") == "cancel"


def test_a_worker_decides_about_its_own_running_job_only(
    verdicts: Verdicts, set_job: SetJob
) -> None:
    set_job("mine", "PENDING", executor_id="me")
    assert verdicts.decide("mine", "reject", "me") == "reject"
    # Nobody but this worker, or one before it, can have decided that.
    assert verdicts.decide("mine", "publish", "me") == "publish"
    assert verdicts.decide("mine", "publish", "another") is None
    for status in ("ENQUEUED", "CANCELLED", "ERROR"):
        set_job("gone", status, executor_id="me")
        assert verdicts.decide("gone", "publish", "me") is None
    assert verdicts.decide("deleted", "publish", "me") is None
    assert (verdicts.of("gone"), verdicts.of("deleted")) == (None, None)


def test_of_two_executions_by_one_worker_only_the_owner_decides(
    verdicts: Verdicts, set_job: SetJob
) -> None:
    """A run that lost its job, and the one after it, may be in the same process."""
    set_job("job", "PENDING", executor_id="me", owner_xid="second")
    assert verdicts.decide("job", "publish", "first") is None
    assert not verdicts.owns("job", "first")
    assert verdicts.of("job") is None
    assert verdicts.owns("job", "second")
    assert verdicts.decide("job", "publish", "second") == "publish"
    set_job("job", "ERROR", executor_id="me", owner_xid="second")
    assert not verdicts.owns("job", "second")
    assert not verdicts.owns("no such job", "second")


def test_who_published_nothing_takes_its_verdict_back(verdicts: Verdicts, set_job: SetJob) -> None:
    set_job("job", "PENDING", owner_xid="me")
    assert verdicts.decide("job", "publish", "me") == "publish"
    assert not verdicts.withdraw("job", "another")
    assert verdicts.give("job", "cancel") == "publish"
    assert verdicts.withdraw("job", "me")
    assert not verdicts.withdraw("job", "me")
    # Now whoever cancels comes in time.
    assert verdicts.give("job", "cancel") == "cancel"
    assert not verdicts.withdraw("job", "me")
    assert verdicts.of("job") == "cancel"


def test_the_verdict_on_a_job_that_was_given_away_is_not_taken_back(
    verdicts: Verdicts, set_job: SetJob
) -> None:
    for job, status in (("over", "ERROR"), ("queued", "ENQUEUED")):
        set_job(job, "PENDING", owner_xid="me")
        verdicts.decide(job, "publish", "me")
        set_job(job, status, owner_xid="me")
        assert not verdicts.withdraw(job, "me")
        assert verdicts.of(job) == "publish"


def test_a_worker_obeys_whoever_has_cancelled_before(verdicts: Verdicts, set_job: SetJob) -> None:
    set_job("job", "PENDING", executor_id="me")
    verdicts.give("job", "cancel")
    assert verdicts.decide("job", "publish", "me") == "cancel"
    assert verdicts.of("job") == "cancel"


def test_of_a_worker_and_one_who_cancels_at_once_both_are_told_the_same(
    verdicts: Verdicts, set_job: SetJob
) -> None:
    with ThreadPoolExecutor(2) as threads:
        for job in (f"job-{number}" for number in range(20)):
            set_job(job, "PENDING", executor_id="me")
            cancelling = threads.submit(verdicts.give, job, "cancel")
            publishing = threads.submit(verdicts.decide, job, "publish", "me")
            assert cancelling.result() == publishing.result() == verdicts.of(job)


def test_the_verdict_on_a_removed_job_is_forgotten(verdicts: Verdicts) -> None:
    verdicts.give("job", "reject")
    verdicts.give("other", "reject")
    verdicts.forget("job")
    assert (verdicts.of("job"), verdicts.of("other")) == (None, "reject")


def test_of_many_verdicts_at_once_all_are_told_the_same(verdicts: Verdicts) -> None:
    choices: list[Verdict] = ["publish", "cancel"] * 4
    with ThreadPoolExecutor(len(choices)) as threads:
        for job in (f"job-{number}" for number in range(10)):
            told = set(threads.map(verdicts.give, [job] * len(choices), choices))
            assert told == {verdicts.of(job)}
