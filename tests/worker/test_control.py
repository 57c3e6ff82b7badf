"""Jobs that are cancelled, retried, deleted or rejected, as the worker that runs them meets it."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.artifacts import ModelStore
from store.errors import Conflict, NotFound
from store.job_record import Job
from worker.publication import Publication

# Of conftest.py, which cannot be imported.
Service = Any
WaitUntil = Any

STAGES = ["prepare", "calibrate", "pack", "evaluate", "publish"]
on_sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def models_of(service: Service) -> ModelStore:
    return ModelStore(service.settings.models_dir)


def steps_of(service: Service, job_id: str) -> list[str]:
    return [step["function_name"] for step in service.jobs._client.list_workflow_steps(job_id)]


def children() -> set[int]:
    """Process ids of this process's children."""
    found = Path("/proc/self/task").glob("*/children")
    return {int(pid) for entry in found for pid in entry.read_text().split()}


def temporary(service: Service) -> list[Path]:
    return [path for path in service.settings.data_dir.rglob(".*.tmp") if path.is_file()]


def writing(service: Service, name: str) -> Callable[[], bool]:
    """Whether the job is in the middle of a file that it will never finish."""
    return lambda: any(f".{name}.half." in path.name for path in temporary(service))


# Cancel


LAYERS = [f"layers/{layer}.safetensors" for layer in ("first", "second", "third")]


@pytest.mark.parametrize(
    ("database_url", "step", "epochs", "done"),
    [
        ("sqlite", "second", 0, ["layers/first.safetensors", "model.safetensors"]),
        pytest.param(
            *("postgres", "second", 0, ["layers/first.safetensors", "model.safetensors"]),
            marks=pytest.mark.postgres,
        ),
        pytest.param("sqlite", "prepare", 0, [], marks=pytest.mark.slow),
        pytest.param(
            *("sqlite", "epoch1", 1, [*LAYERS, "model.safetensors"]), marks=pytest.mark.slow
        ),
        pytest.param(
            *("sqlite", "pack", 0, [*LAYERS, "model.safetensors"]), marks=pytest.mark.slow
        ),
        pytest.param(
            *("sqlite", "evaluate", 0, [*LAYERS, "model.safetensors", "packed.safetensors"]),
            marks=pytest.mark.slow,
        ),
    ],
    indirect=["database_url"],
)
def test_a_running_job_is_cancelled_in_every_stage(
    service: Service, wait_until: WaitUntil, step: str, epochs: int, done: list[str]
) -> None:
    service.start()
    others = children()
    job_id = service.submit(epochs=epochs, **{step: "write"})
    wait_until(writing(service, step), "the step's file")
    assert len(children() - others) == 1

    began = time.monotonic()
    job = service.jobs.cancel(job_id)

    assert (job.state, job.model) == ("cancelled", None)
    wait_until(lambda: not (children() - others), "the end of the child")
    wait_until(lambda: not temporary(service), "the removal of the half file")
    assert time.monotonic() - began < 2
    # What was finished stays, for a retry.
    assert service.files(job_id) == sorted(done)
    after = service.jobs.get(job_id)
    assert after.problem is not None and after.problem["type"].endswith("cancelled")
    # The worker is free for the next one.
    assert service.finished(service.submit()).state == "succeeded"
    assert models_of(service).resolve("digits").job_id != job_id
    assert service.jobs.get(job_id) == after


@on_sqlite_only
def test_a_job_is_cancelled_while_its_child_imports_torch(
    service: Service, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that has not come as far as its stage, and hears nothing."""
    monkeypatch.setitem(service.stages, "prepare", "slow_import:prepare")
    service.start()
    others = children()
    job_id = service.submit()
    wait_until(lambda: service.jobs.get(job_id).stage == "prepare", "the stage")
    wait_until(lambda: children() - others, "the child")
    service.jobs.cancel(job_id)
    wait_until(lambda: not (children() - others), "the end of the child")
    assert service.jobs.get(job_id).state == "cancelled"


def test_a_queued_job_that_was_cancelled_never_starts(service: Service) -> None:
    cancelled, other = service.submit(), service.submit()
    service.jobs.cancel(cancelled)
    service.start()
    assert service.finished(other).state == "succeeded"
    job = service.jobs.get(cancelled)
    assert (job.state, job.started_at, job.stage) == ("cancelled", None, None)
    assert steps_of(service, cancelled) == []
    assert service.files(cancelled) == []


@pytest.mark.slow
def test_a_job_is_cancelled_while_no_worker_lives(
    service: Service, tmp_path: Path, wait_until: WaitUntil
) -> None:
    service.start()
    job_id = service.submit(second="gate", gate=tmp_path)
    wait_until(lambda: list(tmp_path.glob("waiting-second-*")), "the step")
    service.stop()
    assert service.jobs.get(job_id).state == "running"
    assert service.jobs.cancel(job_id).state == "cancelled"
    service.start()
    assert service.finished(service.submit()).state == "succeeded"
    assert service.jobs.get(job_id).state == "cancelled"
    assert len(list(tmp_path.glob("waiting-second-*"))) == 1


def at_decision(
    monkeypatch: pytest.MonkeyPatch, happens: Callable[[str], object], *, after: bool = False
) -> None:
    """Have something happen right before, or after, the worker has its last word on a job."""
    decide = Publication._decide

    def then(self: Publication, *arguments: Any) -> None:
        if after:
            decide(self, *arguments)
            happens(self._job_id)
        else:
            happens(self._job_id)
            decide(self, *arguments)

    monkeypatch.setattr(Publication, "_decide", then)


@pytest.mark.slow
@pytest.mark.parametrize("drop", ["0.0", "0.5"])
def test_a_job_that_is_cancelled_before_its_publication_is_not_published(
    service: Service, monkeypatch: pytest.MonkeyPatch, drop: str
) -> None:
    service.start()
    with monkeypatch.context() as patch:
        at_decision(patch, service.jobs.cancel)
        job_id = service.submit(drop=drop)
        assert service.finished(job_id).state == "cancelled"
    assert service.finished(service.submit()).state == "succeeded"
    assert service.jobs.get(job_id).state == "cancelled"
    assert models_of(service).resolve("digits").version == 1
    assert models_of(service).resolve("digits").job_id != job_id
    assert "report.json" not in service.files(job_id)


def test_a_job_whose_publication_has_begun_is_published_whoever_cancels_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[Exception] = []

    def cancel(job_id: str) -> None:
        try:
            service.jobs.cancel(job_id)
        except Conflict as error:
            refused.append(error)

    at_decision(monkeypatch, cancel, after=True)
    service.start()
    job = service.finished(service.submit())
    assert (job.state, len(refused)) == ("succeeded", 1)
    assert models_of(service).resolve("digits").job_id == job.id


@pytest.mark.slow
@on_sqlite_only
def test_who_cancels_may_die_halfway_and_the_job_is_cancelled_all_the_same(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its verdict is there, but nobody told DBOS."""
    client = service.jobs._client
    with monkeypatch.context() as patch:
        patch.setattr(client, "cancel_workflow", lambda _: None)
        at_decision(patch, service.jobs.cancel)
        service.start()
        job_id = service.submit()
        assert service.finished(job_id).state == "cancelled"
    assert not models_of(service).list()
    # The worker may have it already when it is read back.
    assert service.jobs.retry(job_id, service.settings.data_dir).state in ("queued", "running")
    assert service.finished(job_id).state == "succeeded"


# Retry


def test_a_retried_job_goes_on_at_the_step_that_failed(service: Service, tmp_path: Path) -> None:
    service.start()
    first = service.finished(service.submit(third="once", once=tmp_path))
    assert (first.state, first.stage, first.step) == ("failed", "calibrate", "third")
    before = service.jobs._client.list_workflow_steps(first.id)

    queued = service.jobs.retry(first.id, service.settings.data_dir)

    assert queued.id == first.id and queued.problem is None
    job = service.finished(first.id)
    assert job.state == "succeeded"
    assert [layer["name"] for layer in job.layers] == ["first", "second", "third"]
    assert list(job.stage_seconds) == STAGES
    after = service.jobs._client.list_workflow_steps(first.id)
    # The record of what was done before is the same to the millisecond: nothing ran twice.
    assert after[:4] == before[:4]
    names = ["begin", "prepare", *(f"calibrate:{layer}" for layer in ("first", "second", "third"))]
    assert [step["function_name"] for step in after] == [*names, "pack", "evaluate", "publish"]
    assert [version.job_id for version in models_of(service).versions("digits")] == [first.id]
    assert service.files(first.id) == ["report.json"]
    assert service.jobs.stage_totals()["prepare"].count == 1
    assert service.jobs.stage_totals()["calibrate"].count == 1
    assert service.jobs.finished_totals()["failed"] == 1


def test_a_cancelled_job_goes_on_where_it_stopped(
    service: Service, tmp_path: Path, wait_until: WaitUntil
) -> None:
    service.start()
    job_id = service.submit(second="gate", gate=tmp_path)
    wait_until(lambda: list(tmp_path.glob("waiting-second-*")), "the step")
    service.jobs.cancel(job_id)
    before = service.jobs._client.list_workflow_steps(job_id)
    assert [step["function_name"] for step in before] == ["begin", "prepare", "calibrate:first"]
    (tmp_path / "open-second").touch()
    service.jobs.retry(job_id, service.settings.data_dir)
    assert service.finished(job_id).state == "succeeded"
    assert service.jobs._client.list_workflow_steps(job_id)[:3] == before


@pytest.mark.slow
@on_sqlite_only
def test_a_queued_retry_shows_what_is_done_already(service: Service) -> None:
    service.start()
    job = service.finished(service.submit(third="killed"))
    service.stop()
    queued = service.jobs.retry(job.id, service.settings.data_dir)
    assert queued.state == "queued"
    assert [layer["name"] for layer in queued.layers] == ["first", "second"]
    assert set(queued.stage_seconds) == {"prepare", "calibrate"}
    assert queued.started_at is not None


@pytest.mark.slow
@on_sqlite_only
@pytest.mark.parametrize(
    ("lost", "kept"),
    [("layers/second.safetensors", 3), ("model.safetensors", 1), ("", 1)],
)
def test_a_retry_whose_files_are_gone_does_their_steps_again(
    service: Service, lost: str, kept: int, tmp_path: Path
) -> None:
    service.start()
    first = service.finished(service.submit(third="once", once=tmp_path))
    before = service.jobs._client.list_workflow_steps(first.id)
    folder = service.settings.jobs_dir / first.id
    for path in [folder / lost] if lost else [path for path in folder.rglob("*") if path.is_file()]:
        path.unlink()
    service.jobs.retry(first.id, service.settings.data_dir)
    assert service.finished(first.id).state == "succeeded"
    after = service.jobs._client.list_workflow_steps(first.id)
    assert after[:kept] == before[:kept]
    assert after[kept] != before[kept]
    assert len(after) == 8


@pytest.mark.slow
@on_sqlite_only
def test_a_file_found_damaged_is_made_anew_by_a_retry(service: Service, tmp_path: Path) -> None:
    service.start()
    first = service.finished(service.submit(third="once", once=tmp_path))
    damaged = service.settings.jobs_dir / first.id / "layers" / "first.safetensors"
    damaged.write_bytes(b"firsT")
    service.jobs.retry(first.id, service.settings.data_dir)
    job = service.finished(first.id)
    assert job.state == "failed" and "damaged" in job.problem["detail"]
    assert not damaged.exists()
    service.jobs.retry(first.id, service.settings.data_dir)
    assert service.finished(first.id).state == "succeeded"


@pytest.mark.slow
@on_sqlite_only
def test_a_job_that_was_given_up_goes_on_when_retried(
    service: Service, set_attempts: Callable[[int], None], tmp_path: Path, wait_until: WaitUntil
) -> None:
    service.start()
    job_id = service.submit(second="gate", gate=tmp_path)
    wait_until(lambda: list(tmp_path.glob("waiting-second-*")), "the step")
    service.stop()
    set_attempts(11)
    service.start()
    assert service.finished(job_id).state == "failed"
    (tmp_path / "open-second").touch()
    service.jobs.retry(job_id, service.settings.data_dir)
    assert service.finished(job_id).state == "succeeded"
    assert steps_of(service, job_id)[:3] == ["begin", "prepare", "calibrate:first"]


@on_sqlite_only
def test_a_full_disk_keeps_the_steps_files_for_a_retry(service: Service, tmp_path: Path) -> None:
    service.start()
    job = service.finished(service.submit(third="full once", once=tmp_path))
    assert job.problem["type"].endswith("storage-exhausted")
    assert "retry" in job.problem["remedy"]
    assert service.files(job.id) == [
        *("layers/first.safetensors", "layers/second.safetensors", "model.safetensors")
    ]
    service.jobs.retry(job.id, service.settings.data_dir)
    assert service.finished(job.id).state == "succeeded"


# Reject


def test_a_model_that_fails_the_gate_is_rejected_and_keeps_its_report(service: Service) -> None:
    service.start()
    job = service.finished(service.submit(drop="0.03"))
    assert (job.state, job.model, job.progress) == ("rejected", None, 1.0)
    assert (job.stage, job.step) == ("evaluate", "reject")
    assert job.problem["type"] == "urn:bitpress:problem:accuracy-gate"
    assert job.problem["field"] == "spec.max_accuracy_drop"
    assert "3.00 points" in job.problem["detail"] and "1.00 points" in job.problem["detail"]
    assert "max_accuracy_drop" in job.problem["remedy"]
    assert service.files(job.id) == ["report.json"]
    report = json.loads((service.settings.jobs_dir / job.id / "report.json").read_text())
    assert (report["job"], report["model"]) == (job.id, None)
    assert list(report["stage_seconds"]) == STAGES[:-1]
    assert not models_of(service).list()
    assert service.jobs.counts()["rejected"] == 1
    assert service.jobs.counts()["succeeded"] == 0
    with pytest.raises(Conflict, match="lost more accuracy"):
        service.jobs.retry(job.id, service.settings.data_dir)
    with pytest.raises(Conflict):
        service.jobs.cancel(job.id)
    service.jobs.delete(job.id, service.settings.data_dir)
    assert service.jobs.finished_totals()["rejected"] == 1
    assert not (service.settings.jobs_dir / job.id).exists()


def test_a_model_that_passes_the_gate_is_published(service: Service) -> None:
    service.start()
    job = service.finished(service.submit(drop="0.01"))
    assert (job.state, job.problem) == ("succeeded", None)
    assert models_of(service).resolve("digits").job_id == job.id


# Delete


def test_a_finished_job_is_deleted_and_its_model_stays(service: Service) -> None:
    service.start()
    job = service.finished(service.submit())
    totals = service.jobs.stage_totals()
    service.jobs.delete(job.id, service.settings.data_dir)
    with pytest.raises(NotFound):
        service.jobs.get(job.id)
    assert models_of(service).resolve("digits").report["job"] == job.id
    assert not (service.settings.jobs_dir / job.id).exists()
    assert service.jobs.stage_totals() == totals


def test_a_job_that_is_deleted_right_after_its_cancelling_leaves_nothing(
    service: Service, wait_until: WaitUntil
) -> None:
    service.start()
    others = children()
    job_id = service.submit(second="write")
    wait_until(writing(service, "second"), "the step's file")
    service.jobs.cancel(job_id)
    service.jobs.delete(job_id, service.settings.data_dir)
    wait_until(lambda: not (children() - others), "the end of the child")
    wait_until(lambda: not (service.settings.jobs_dir / job_id).exists(), "the folder to go")
    assert service.finished(service.submit()).state == "succeeded"
    assert not list(service.settings.jobs_dir.glob(".*"))


@pytest.mark.slow
def test_a_worker_lets_go_of_a_job_whose_record_is_gone(
    service: Service, wait_until: WaitUntil
) -> None:
    """As where somebody deletes a job that another one has just put back into the queue."""
    service.start()
    others = children()
    job_id = service.submit(second="write")
    wait_until(writing(service, "second"), "the step's file")
    service.jobs._client.delete_workflow(job_id)
    wait_until(lambda: not (children() - others), "the end of the child")
    wait_until(lambda: not (service.settings.jobs_dir / job_id).exists(), "the folder to go")
    assert service.finished(service.submit()).state == "succeeded"


@pytest.mark.slow
def test_cancel_retry_and_delete_at_random_leave_a_worker_that_works(
    service: Service, wait_until: WaitUntil, tmp_path: Path
) -> None:
    service.start()
    others = children()
    job_id = service.submit(second="hang")
    stop = threading.Event()

    def again(act: Callable[[], Any]) -> None:
        while not stop.is_set():
            try:
                act()
            except (Conflict, NotFound):
                stop.wait(0.01)

    data_dir = service.settings.data_dir
    acts = [lambda: service.jobs.cancel(job_id), lambda: service.jobs.retry(job_id, data_dir)]
    threads = [threading.Thread(target=again, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    began: Job = service.jobs.get(job_id)
    wait_until(lambda: service.jobs.finished_totals()["cancelled"] > 20, "twenty times")
    stop.set()
    for thread in threads:
        thread.join()
    if service.jobs.get(job_id).state != "cancelled":
        service.jobs.cancel(job_id)
    wait_until(lambda: not (children() - others), "the end of the children")
    assert service.jobs.get(job_id).created_at == began.created_at
    assert service.finished(service.submit()).state == "succeeded"
    assert not temporary(service)
