"""A worker that is killed in the middle of a real job."""

import io
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from models import registry
from store.artifacts import ModelStore
from store.datasets import DatasetStore
from store.jobs import JobStore
from store.settings import StoreSettings
from store.specs import CompressSpec, parse_spec
from store.uploads import UploadStore

pytestmark = pytest.mark.slow

# Of conftest.py, which cannot be imported.
StartWorker = Any
WaitUntil = Any
IsRunning = Any

CLASSES = ("dark", "light", "striped")
SIDE = 16
LAYERS = ["features.0", "features.3", "features.7", "classifier"]


class Installation:
    """A data directory with a dataset and a checkpoint in it, and its job store."""

    def __init__(self, folder: Path, database_url: str, images_per_class: int = 40) -> None:
        self.settings = StoreSettings(data_dir=folder / "data", database_url=database_url)
        self.jobs = JobStore(database_url)
        self.models = ModelStore(self.settings.models_dir)
        self.spec = parse_spec(
            {
                "name": "patterns",
                "architecture": "digits_cnn",
                "checkpoint": self._checkpoint(folder),
                "dataset": self._dataset(folder, images_per_class),
                "input": {"channels": 1, "height": SIDE, "width": SIDE},
                "method": {"name": "bwnh", "sweeps": 5, "recalibrate_batch_norm": "end"},
                "calibration_images": 60,
                "seed": 3,
            }
        )

    def recorded_steps(self, job_id: str) -> dict[str, int]:
        """Return the steps that DBOS has recorded, and when each was completed."""
        steps = self.jobs._client.list_workflow_steps(job_id)
        return {step["function_name"]: int(step["completed_at_epoch_ms"] or 0) for step in steps}

    def _dataset(self, folder: Path, images_per_class: int) -> str:
        random = np.random.default_rng(0)
        archive = folder / "patterns.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for label, name in enumerate(CLASSES):
                for number in range(images_per_class):
                    pixels = random.integers(0, 96, (SIDE, SIDE), dtype=np.uint8)
                    pixels[:: 2 if label == 2 else 1] += np.uint8(64 * label)
                    image = io.BytesIO()
                    Image.fromarray(pixels).save(image, "PNG")
                    file.writestr(f"{name}/{number:03}.png", image.getvalue())
        store = DatasetStore(self.settings.datasets_dir, self.settings.dataset_limits)
        return store.ingest(archive, "patterns").name

    def _checkpoint(self, folder: Path) -> str:
        torch.manual_seed(1)
        network = registry.build(
            "digits_cnn", channels=1, height=SIDE, width=SIDE, classes=len(CLASSES), parameters={}
        )
        save_file(network.state_dict(), folder / "patterns.safetensors")
        uploads = UploadStore(self.settings.uploads_dir, self.settings.max_checkpoint_bytes)
        with uploads.receive() as writer:
            writer.write((folder / "patterns.safetensors").read_bytes())
            return writer.commit().digest


@pytest.fixture
def installation(tmp_path: Path, database_url: str) -> Iterator[Installation]:
    installation = Installation(tmp_path, database_url)
    yield installation
    installation.jobs.close()


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
    tmp_path: Path, sqlite_url: str, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    """Killed in the middle of an epoch and taken over: the artifact is that of a smooth job."""
    # 1,050 images to train on in 525 steps: an epoch goes on for long after its first report, which
    # comes after a second.
    installation = Installation(tmp_path, sqlite_url, images_per_class=500)
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
    installation.jobs.close()
