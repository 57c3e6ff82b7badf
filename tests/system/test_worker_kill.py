"""A worker that is killed in the middle of a real job."""

import signal
from pathlib import Path
from typing import Any

import pytest

from store.specs import CompressSpec, parse_spec

pytestmark = pytest.mark.slow

# Of conftest.py, which cannot be imported.
Install = Any
Installation = Any
StartWorker = Any
WaitUntil = Any
IsRunning = Any

LAYERS = ["features.0", "features.3", "features.7", "classifier"]


@pytest.fixture
def installation(install: Install, tmp_path: Path, database_url: str) -> Installation:
    return install(tmp_path, database_url)


def expected_steps(spec: CompressSpec) -> set[str]:
    assert spec.method.recalibrate_batch_norm == "end"
    calibration = [f"calibrate:{step}" for step in (*LAYERS, "batch-norm")]
    return {"begin", "prepare", *calibration, "pack", "evaluate", "publish"}


def test_a_job_whose_worker_is_killed_is_finished_by_the_next(
    installation: Installation,
    start_worker: StartWorker,
    wait_until: WaitUntil,
    is_running: IsRunning,
) -> None:
    place = (installation.settings.data_dir, installation.settings.database_url)
    first = start_worker(*place)
    job = installation.jobs.submit(installation.spec)
    first.wait_for("step finished", job=job.id, stage="calibrate", step=LAYERS[1])
    children = first.children()
    assert len(children) == 1
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    before = installation.recorded_steps(job.id)
    assert {"prepare", f"calibrate:{LAYERS[0]}", f"calibrate:{LAYERS[1]}"} <= before.keys()
    assert "calibrate:batch-norm" not in before
    wait_until(lambda: not any(map(is_running, children)), "the child to die with its worker")
    assert installation.jobs.get(job.id).state == "running"

    second = start_worker(*place)
    second.wait_for("job taken over", job=job.id)
    second.wait_for("job finished", job=job.id)
    after = installation.recorded_steps(job.id)
    assert after.keys() == expected_steps(installation.spec)
    # Nothing that was recorded is recorded, or done, again; all else is done once.
    assert {name: after[name] for name in before} == before
    assert sorted(second.steps_done()) == sorted(after.keys() - before.keys())

    # The outcome is recorded a moment after the log's last line.
    wait_until(lambda: installation.jobs.get(job.id).finished_at, "the end of the job")
    done = installation.jobs.get(job.id)
    assert done.state == "succeeded"
    assert [layer["name"] for layer in done.layers] == LAYERS
    assert [version.job_id for version in installation.models.versions("patterns")] == [job.id]
    folder = installation.settings.jobs_dir / job.id
    assert [path.name for path in folder.iterdir()] == ["report.json"]

    if installation.settings.database_url.startswith("sqlite"):
        # What came of it is what comes of a job that nobody disturbed, to the byte. Once is enough.
        undisturbed = installation.jobs.submit(installation.spec)
        second.wait_for("job finished", job=undisturbed.id)
        versions = installation.models.versions("patterns")
        assert [version.job_id for version in versions] == [job.id, undisturbed.id]
        assert versions[0].digest == versions[1].digest
    assert second.end(signal.SIGTERM) == 0
    assert not any(map(is_running, second.children()))


def test_an_epoch_that_is_cut_short_is_trained_again_to_the_same_bits(
    install: Install,
    tmp_path: Path,
    sqlite_url: str,
    start_worker: StartWorker,
    wait_until: WaitUntil,
) -> None:
    """Killed in the middle of an epoch and taken over: the artifact is that of a smooth job."""
    # 1,050 images to train on in 525 steps: an epoch goes on for long after its first report, which
    # comes after a second.
    installation = install(tmp_path, sqlite_url, images_per_class=500)
    wanted = {"epochs": 3, "batch_size": 2, "average": 0.9, "batch_norm": "reestimate"}
    spec = parse_spec({**installation.spec.model_dump(mode="json"), "fine_tune": wanted})
    place = (installation.settings.data_dir, sqlite_url)
    first = start_worker(*place)
    job = installation.jobs.submit(spec)

    def steps_of_the_second_epoch_are_made() -> bool:
        now = installation.jobs.get(job.id)
        return now.step == "epoch-0002" and "images/s" in (now.message or "")

    wait_until(steps_of_the_second_epoch_are_made, "steps of the second epoch")
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    before = installation.recorded_steps(job.id)
    assert "fine_tune:epoch-0001" in before and "fine_tune:epoch-0002" not in before

    second = start_worker(*place)
    end_of_training = {"stage": "fine_tune", "step": "finish"}
    second.wait_for("step finished", job=job.id, **end_of_training)
    second.wait_for("job finished", job=job.id)
    assert second.steps_done()[:3] == [
        "fine_tune:epoch-0002",
        "fine_tune:epoch-0003",
        "fine_tune:finish",
    ]
    undisturbed = installation.jobs.submit(spec)
    for stage, step in (("calibrate", "batch-norm"), ("fine_tune", "epoch-0001")):
        second.wait_for("step finished", job=undisturbed.id, stage=stage, step=step)
    second.wait_for("step finished", job=undisturbed.id, **end_of_training)
    second.wait_for("job finished", job=undisturbed.id)
    wait_until(lambda: installation.jobs.get(undisturbed.id).finished_at, "the end of the job")
    jobs = [installation.jobs.get(job_id) for job_id in (job.id, undisturbed.id)]
    losses = [[epoch["loss"] for epoch in one.epochs] for one in jobs]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    versions = installation.models.versions("patterns")
    assert [version.job_id for version in versions] == [job.id, undisturbed.id]
    contents = [version.artifact_path.read_bytes() for version in versions]
    assert contents[0] == contents[1]
    assert second.end(signal.SIGTERM) == 0
