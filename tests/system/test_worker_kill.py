"""A worker that goes away in the middle of a real job: killed, or told to stop."""

import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
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
from store.job_record import Job
from store.jobs import JobStore
from store.settings import StoreSettings
from store.specs import CompressSpec, parse_spec
from store.uploads import UploadStore

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 90.0
CLASSES = ("dark", "light", "striped")
SIDE = 16
LAYERS = ["features.0", "features.3", "features.7", "classifier"]


class Worker:
    """A worker process whose log is read line by line."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.lines: list[dict[str, Any]] = []
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker"],
            cwd=REPOSITORY,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._queue.put(json.loads(line))
        self._queue.put(None)

    def wait_for(self, event: str, **fields: object) -> dict[str, Any]:
        """Read the log until a line says ``event`` with these fields; return it."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                line = self._queue.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                pytest.fail(f"waited {DEADLINE_S} s for {event!r} after {self.lines}")
            if line is None:
                pytest.fail(f"the worker ended before {event!r}: {self.lines}")
            self.lines.append(line)
            if line["event"] == event and fields.items() <= line.items():
                return line

    def steps_done(self) -> list[str]:
        """Return the steps that this worker has finished, as DBOS names them."""
        return [
            ":".join(part for part in (line["stage"], line["step"]) if part)
            for line in self.lines
            if line["event"] == "step finished"
        ]

    def children(self) -> set[int]:
        """Return the process ids of the worker's children."""
        listing = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return {int(pid) for entry in listing for pid in entry.read_text().split()}

    def end(self, number: signal.Signals) -> int:
        """Send a signal, wait for the worker's end and return its exit status."""
        self.process.send_signal(number)
        status = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        while (line := self._queue.get()) is not None:
            self.lines.append(line)
        return status


class Installation:
    """A data directory with a dataset and a checkpoint in it, its job store, and its workers."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.settings = StoreSettings(data_dir=folder / "data", database_url=database_url)
        self.jobs = JobStore(database_url)
        self.models = ModelStore(self.settings.models_dir)
        self._workers: list[Worker] = []
        self.spec = parse_spec(
            {
                "name": "patterns",
                "architecture": "digits_cnn",
                "checkpoint": self._checkpoint(folder),
                "dataset": self._dataset(folder),
                "input": {"channels": 1, "height": SIDE, "width": SIDE},
                "method": {"name": "bwnh", "sweeps": 5, "recalibrate_batch_norm": True},
                "calibration_images": 60,
                "seed": 3,
            }
        )

    def start_worker(self, *, lease_ttl_s: float = 1.0) -> Worker:
        """Start a worker and wait until it is ready."""
        own = {
            "BITPRESS_DATA_DIR": str(self.settings.data_dir),
            "BITPRESS_DATABASE_URL": self.settings.database_url,
            "BITPRESS_WORKER_THREADS": "1",
            "BITPRESS_QUEUE_POLL_S": "0.1",
            "BITPRESS_LEASE_BEAT_S": "0.2",
            "BITPRESS_LEASE_TTL_S": str(lease_ttl_s),
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith("BITPRESS_")}
        worker = Worker(kept | own)
        self._workers.append(worker)
        worker.wait_for("worker ready")
        return worker

    def recorded_steps(self, job_id: str) -> dict[str, int]:
        """Return the steps that DBOS has recorded, and when each was completed."""
        steps = self.jobs._client.list_workflow_steps(job_id)
        return {step["function_name"]: int(step["completed_at_epoch_ms"] or 0) for step in steps}

    def close(self) -> None:
        """Kill what still runs."""
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.end(signal.SIGKILL)
        self.jobs.close()

    def _dataset(self, folder: Path) -> str:
        random = np.random.default_rng(0)
        archive = folder / "patterns.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for label, name in enumerate(CLASSES):
                for number in range(40):
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
    installation.close()


def wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while left := {pid for pid in pids if Path(f"/proc/{pid}").exists()}:
        if time.monotonic() > deadline:
            pytest.fail(f"these processes are still there: {left}")
        time.sleep(0.01)


def expected_steps(spec: CompressSpec) -> set[str]:
    assert spec.method.recalibrate_batch_norm
    calibration = [f"calibrate:{step}" for step in (*LAYERS, "batch-norm")]
    return {"begin", "prepare", *calibration, "pack", "evaluate", "publish"}


def submit(installation: Installation) -> Job:
    return installation.jobs.submit(installation.spec)


def test_a_job_whose_worker_is_killed_is_finished_by_the_next(installation: Installation) -> None:
    first = installation.start_worker()
    job = submit(installation)
    first.wait_for("step finished", job=job.id, stage="calibrate", step=LAYERS[1])
    children = first.children()
    assert len(children) == 1
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    before = installation.recorded_steps(job.id)
    assert {"prepare", f"calibrate:{LAYERS[0]}", f"calibrate:{LAYERS[1]}"} <= before.keys()
    assert "calibrate:batch-norm" not in before
    wait_until_gone(children)
    assert installation.jobs.get(job.id).state == "running"

    second = installation.start_worker()
    second.wait_for("job taken over", job=job.id)
    second.wait_for("job finished", job=job.id)
    after = installation.recorded_steps(job.id)
    assert after.keys() == expected_steps(installation.spec)
    # Nothing that was recorded is recorded, or done, again; all else is done once.
    assert {name: after[name] for name in before} == before
    assert sorted(second.steps_done()) == sorted(after.keys() - before.keys())

    done = finished(installation, job.id)
    assert [layer["name"] for layer in done.layers] == LAYERS
    assert [version.job_id for version in installation.models.versions("patterns")] == [job.id]
    folder = installation.settings.jobs_dir / job.id
    assert [path.name for path in folder.iterdir()] == ["report.json"]

    # And what came of it is what comes of a job that nobody disturbed, to the byte.
    undisturbed = submit(installation)
    second.wait_for("job finished", job=undisturbed.id)
    versions = installation.models.versions("patterns")
    assert [version.job_id for version in versions] == [job.id, undisturbed.id]
    assert versions[0].digest == versions[1].digest
    assert second.end(signal.SIGTERM) == 0


def finished(installation: Installation, job_id: str) -> Job:
    """Wait for the moment between the log's last line and the record of the outcome."""
    deadline = time.monotonic() + DEADLINE_S
    while (job := installation.jobs.get(job_id)).finished_at is None:
        if time.monotonic() > deadline:
            pytest.fail(f"the job does not end: {job}")
        time.sleep(0.01)
    assert job.state == "succeeded"
    return job


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_stop_leaves_its_job_to_the_next_at_once(
    installation: Installation, number: signal.Signals
) -> None:
    # Longer than the test may take: only a lease that was given up lets the next one go on.
    first = installation.start_worker(lease_ttl_s=10 * DEADLINE_S)
    job = submit(installation)
    first.wait_for("step finished", job=job.id, stage="calibrate", step=LAYERS[0])
    children = first.children()
    assert first.end(number) == 0
    wait_until_gone(children)
    assert first.lines[-1]["event"] == "worker stopped"
    assert installation.jobs.get(job.id).state == "running"
    assert installation.jobs.workers_alive() == 0

    second = installation.start_worker(lease_ttl_s=10 * DEADLINE_S)
    second.wait_for("job finished", job=job.id)
    assert set(first.steps_done()).isdisjoint(second.steps_done())
    assert finished(installation, job.id).problem is None
    assert second.end(number) == 0
