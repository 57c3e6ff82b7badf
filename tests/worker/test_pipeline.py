"""The workflow of a job on stages that only behave: what it records, publishes and leaves."""

import json
from pathlib import Path
from typing import Any

import pytest

from store.artifacts import ModelStore
from store.errors import InvalidCheckpoint, JobCrashed
from store.job_record import Job

# Of conftest.py, which cannot be imported.
Service = Any
WaitUntil = Any

STAGES = ["prepare", "calibrate", "pack", "evaluate", "publish"]


def models_of(service: Service) -> ModelStore:
    return ModelStore(service.settings.models_dir)


@pytest.fixture(scope="module")
def job(shared_service: Service) -> Job:
    """A job that went well."""
    return shared_service.finished(shared_service.submit())


def test_a_job_is_published_with_its_report(shared_service: Service, job: Job) -> None:
    assert (job.state, job.problem, job.progress) == ("succeeded", None, 1.0)
    assert [layer["name"] for layer in job.layers] == ["first", "second", "third"]
    assert all(layer["losses"] == [1.0, 0.5] for layer in job.layers)
    assert list(job.stage_seconds) == STAGES
    assert job.created_at <= job.started_at <= job.finished_at <= job.updated_at
    version = models_of(shared_service).resolve(job.model["name"], job.model["version"])
    assert version.job_id == job.id
    report = version.report
    assert report["job"] == job.id
    assert report["model"] == dict(job.model)
    assert list(report["stage_seconds"]) == STAGES[:-1]
    assert all(layer["seconds"] >= 0 for layer in report["layers"])


def test_a_finished_job_leaves_its_report_and_nothing_else(
    shared_service: Service, job: Job
) -> None:
    assert shared_service.files(job.id) == ["report.json"]
    left = shared_service.settings.jobs_dir / job.id / "report.json"
    version = models_of(shared_service).resolve(job.model["name"], job.model["version"])
    assert json.loads(left.read_text()) == version.report


# True: as a job says it that was queued by an older release.
@pytest.mark.parametrize("asked", ["end", True])
def test_batch_norm_is_estimated_again_only_where_asked(
    shared_service: Service, job: Job, asked: str | bool
) -> None:
    def steps(job_id: str) -> list[str]:
        client = shared_service.jobs._client
        return [step["function_name"] for step in client.list_workflow_steps(job_id)]

    wanted = {"name": "bwn", "recalibrate_batch_norm": asked}
    other = shared_service.finished(shared_service.submit(method=wanted))
    layers = ["calibrate:first", "calibrate:second", "calibrate:third"]
    assert steps(job.id) == ["begin", "prepare", *layers, "pack", "evaluate", "publish"]
    assert steps(other.id)[2:6] == [*layers, "calibrate:batch-norm"]
    assert len(other.layers) == 3


def test_fine_tuning_is_a_step_per_epoch_and_one_to_finish(shared_service: Service) -> None:
    job = shared_service.finished(shared_service.submit(epochs=2))
    client = shared_service.jobs._client
    steps = [step["function_name"] for step in client.list_workflow_steps(job.id)]
    fine_tuning = [f"fine_tune:{step}" for step in ("epoch-0001", "epoch-0002", "finish")]
    assert steps[5:] == [*fine_tuning, "pack", "evaluate", "publish"]
    assert list(job.stage_seconds) == [*STAGES[:2], "fine_tune", *STAGES[2:]]
    assert [(epoch["epoch"], epoch["loss"]) for epoch in job.epochs] == [(1, 1.0), (2, 0.5)]
    assert all(epoch["train_accuracy"] == 0.5 for epoch in job.epochs)
    assert all(
        {"images_per_second", "learning_rate", "seconds", "device", "products"} < epoch.keys()
        for epoch in job.epochs
    )
    report = models_of(shared_service).resolve(job.model["name"], job.model["version"]).report
    assert report["epochs"] == list(job.epochs)
    assert shared_service.files(job.id) == ["report.json"]


def test_a_job_without_fine_tuning_has_no_such_stage(job: Job) -> None:
    assert job.epochs == ()
    assert "fine_tune" not in job.stage_seconds


def test_a_job_that_is_being_fine_tuned_shows_its_finished_epochs(
    shared_service: Service, tmp_path: Path, wait_until: WaitUntil
) -> None:
    job_id = shared_service.submit(epochs=3, epoch2="gate", gate=tmp_path)

    def told() -> bool:
        return shared_service.jobs.get(job_id).message == "step 5 of 10 of epoch 2"

    wait_until(told, "the step's message")
    job = shared_service.jobs.get(job_id)
    assert (job.state, job.stage, job.step) == ("running", "fine_tune", "epoch-0002")
    assert [epoch["epoch"] for epoch in job.epochs] == [1]
    assert "files" not in job.epochs[0]
    # Half of the second of three epochs is about the middle of the training.
    assert 0.4 < job.progress < 0.6
    (tmp_path / "open-epoch2").touch()
    assert len(shared_service.finished(job_id).epochs) == 3


def test_a_crash_in_an_epoch_keeps_the_epochs_before_it(shared_service: Service) -> None:
    job = shared_service.finished(shared_service.submit(epochs=3, epoch3="killed"))
    assert (job.state, job.stage, job.step) == ("failed", "fine_tune", "epoch-0003")
    assert [epoch["epoch"] for epoch in job.epochs] == [1, 2]
    assert "training/0002.safetensors" in shared_service.files(job.id)


def test_levels_of_activations_are_chosen_after_batch_norm_where_they_are_rounded(
    shared_service: Service,
) -> None:
    wanted = {"name": "bwn", "recalibrate_batch_norm": "end"}
    job_id = shared_service.submit(method=wanted, activation_bits=8)
    shared_service.finished(job_id)
    client = shared_service.jobs._client
    steps = [step["function_name"] for step in client.list_workflow_steps(job_id)]
    assert steps[5:8] == ["calibrate:batch-norm", "calibrate:activations", "pack"]


def test_a_running_job_tells_how_far_it_is(
    shared_service: Service, tmp_path: Path, wait_until: WaitUntil
) -> None:
    job_id = shared_service.submit(second="gate", gate=tmp_path)

    def told() -> bool:
        return shared_service.jobs.get(job_id).message == "sweep 1 of second"

    wait_until(told, "the step's message")
    job = shared_service.jobs.get(job_id)
    assert (job.state, job.stage, job.step) == ("running", "calibrate", "second")
    assert [layer["name"] for layer in job.layers] == ["first"]
    assert 0.05 < job.progress < 0.75
    assert set(job.stage_seconds) == {"prepare", "calibrate"}
    assert job.started_at is not None and job.finished_at is None
    assert shared_service.jobs.list(state="running")[0] == job
    (tmp_path / "open-second").touch()
    assert shared_service.finished(job_id).state == "succeeded"


@pytest.mark.parametrize("step", ["prepare", "second"])
def test_input_at_fault_fails_the_job_with_its_problem_and_leaves_nothing(
    shared_service: Service, step: str
) -> None:
    job = shared_service.finished(shared_service.submit(**{step: "invalid"}))
    fault = InvalidCheckpoint("NaN in conv1.weight.", field="checkpoint", remedy="Train again.")
    assert job.state == "failed"
    assert job.problem == fault.problem()
    assert job.stage == ("calibrate" if step == "second" else step)
    assert job.progress < 1.0
    assert job.model is None
    assert not (shared_service.settings.jobs_dir / job.id).exists()


@pytest.mark.parametrize(
    ("step", "fate", "stays"),
    [
        ("prepare", "invalid", False),
        # In another job it may be of use.
        ("prepare", "mismatch", True),
        ("prepare", "large", True),
        ("prepare", "killed", True),
        ("second", "invalid", True),
    ],
)
def test_only_an_upload_that_is_no_usable_checkpoint_is_removed(
    shared_service: Service, step: str, fate: str, stays: bool
) -> None:
    upload = shared_service.upload(f"{step} {fate}".encode())
    job_id = shared_service.submit(checkpoint=upload.digest, **{step: fate})
    assert shared_service.finished(job_id).state == "failed"
    assert upload.path.exists() == stays


@pytest.mark.parametrize("fate", ["killed", "unexpected"])
def test_a_crash_fails_the_job_and_keeps_the_finished_steps(
    shared_service: Service, fate: str
) -> None:
    job = shared_service.finished(shared_service.submit(second=fate))
    assert job.state == "failed"
    assert job.problem["type"] == JobCrashed("").problem()["type"]
    assert job.problem["remedy"]
    assert "/secret" not in json.dumps(dict(job.problem))
    assert "Traceback" not in json.dumps(dict(job.problem))
    assert (job.stage, job.step) == ("calibrate", "second")
    assert [layer["name"] for layer in job.layers] == ["first"]
    assert shared_service.files(job.id) == ["layers/first.safetensors", "model.safetensors"]


def test_stages_are_counted_over_all_jobs(shared_service: Service) -> None:
    before = shared_service.jobs.stage_totals()
    shared_service.finished(shared_service.submit())
    shared_service.finished(shared_service.submit(pack="invalid"))
    after = shared_service.jobs.stage_totals()

    def more(stage: str) -> int:
        return after[stage].count - (before[stage].count if stage in before else 0)

    assert [more(stage) for stage in STAGES] == [2, 2, 1, 1, 1]


def test_a_job_whose_crash_came_after_publication_is_published_once(
    shared_service: Service, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """The rename was done, the record of the step was not: as after a SIGKILL in between."""
    job_id = shared_service.submit(evaluate="gate", gate=tmp_path)
    wait_until(lambda: list(tmp_path.glob("waiting-evaluate-*")), "the last stage")
    staged = tmp_path / "staged"
    staged.mkdir()
    for name in ("artifact.safetensors", "report.json", "predictions.json"):
        (staged / name).write_text("{}")
    first = models_of(shared_service).publish(staged, "digits", job_id)
    (tmp_path / "open-evaluate").touch()
    job = shared_service.finished(job_id)
    assert job.model == {"name": "digits", "version": first.version}
    versions = models_of(shared_service).versions("digits")
    assert [version.version for version in versions if version.job_id == job_id] == [first.version]
