"""What tests of the worker's machinery share.

What needs a database or the settings imports them by itself: tests that need a GPU also run where
their libraries are not installed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from store.job_record import Job
    from store.uploads import Upload
    from worker.settings import WorkerSettings

REPOSITORY = Path(__file__).parents[2]
FAKE_STAGES = {
    stage: f"fake_stages:{stage}"
    for stage in ("prepare", "calibrate", "fine_tune", "pack", "evaluate")
}

FAKE_STAGES_PATH = [str(Path(__file__).parent), str(REPOSITORY)]


@pytest.fixture
def fake_stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The stages of tests/worker/fake_stages.py, which the stage's process will find."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(FAKE_STAGES_PATH))
    return dict(FAKE_STAGES)


@pytest.fixture
def simulated_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A GPU for the length of a test, see simulated_gpu.py; ``waits`` has what was asked of it."""
    import torch

    monkeypatch.syspath_prepend(Path(__file__).parent)
    from simulated_gpu import SimulatedGpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2**30, 2**31))
    with SimulatedGpu() as simulated:
        yield simulated


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    """A worker's settings with a data directory of its own."""
    from worker.settings import WorkerSettings

    return WorkerSettings(data_dir=tmp_path / "data", worker_threads=1, queue_poll_s=0.05)


class Service:
    """A job store, and a worker in a thread of this process that can be stopped and started."""

    def __init__(self, settings: WorkerSettings, stages: Mapping[str, str]) -> None:
        from store.jobs import JobStore

        self.settings = settings
        self.stages = stages
        self.jobs = JobStore(settings.database_url)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the worker."""
        from worker import main as worker_main

        self._stop = threading.Event()
        arguments = (self.settings, self._stop, self.stages)
        self._thread = threading.Thread(target=worker_main.run, args=arguments)
        self._thread.start()

    def stop(self) -> None:
        """Stop the worker, as SIGTERM would, and wait for it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def upload(self, content: bytes) -> Upload:
        """Keep ``content`` as an uploaded checkpoint."""
        from store.uploads import UploadStore

        uploads = UploadStore(self.settings.uploads_dir, self.settings.max_checkpoint_bytes)
        with uploads.receive() as writer:
            writer.write(content)
            return writer.commit()

    def submit(
        self,
        method: Mapping[str, Any] | None = None,
        checkpoint: str = "sha256:" + "0" * 64,
        epochs: int = 0,
        activation_bits: int = 32,
        **fates: object,
    ) -> str:
        """Submit a job of the fake stages, whose steps meet ``fates``; return its id."""
        from store.specs import parse_spec

        spec = {
            "name": "digits",
            "architecture": "digits_cnn",
            "architecture_parameters": {name: str(fate) for name, fate in fates.items()},
            "checkpoint": checkpoint,
            "dataset": "digits",
            "method": method or {"name": "bwn"},
            "fine_tune": {"epochs": epochs} if epochs else None,
            "activation_bits": activation_bits,
        }
        return self.jobs.submit(parse_spec(spec)).id

    def finished(self, job_id: str, timeout_s: float = 90.0) -> Job:
        """Wait for the job's end and return it."""
        deadline = time.monotonic() + timeout_s
        while (job := self.jobs.get(job_id)).finished_at is None:
            if time.monotonic() > deadline:
                pytest.fail(f"waited {timeout_s} s for the end of {job}")
            time.sleep(0.05)
        return job

    def files(self, job_id: str) -> list[str]:
        """Return the files that the job has left, relative to its folder."""
        folder = self.settings.jobs_dir / job_id
        return sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )

    def close(self) -> None:
        """Stop everything."""
        self.stop()
        self.jobs.close()


@pytest.fixture
def service(
    database_url: str, settings: WorkerSettings, fake_stages: dict[str, str]
) -> Iterator[Service]:
    """A service of the fake stages on each kind of database, its worker not yet started."""
    service = Service(settings.model_copy(update={"database_url": database_url}), fake_stages)
    yield service
    service.close()


@pytest.fixture(scope="module")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service of the fake stages on SQLite, for all tests of a file that need no more."""
    from store.database import prepare_database
    from worker.settings import WorkerSettings

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(FAKE_STAGES_PATH))
        settings = WorkerSettings(
            data_dir=tmp_path_factory.mktemp("data"), worker_threads=1, queue_poll_s=0.05
        )
        prepare_database(settings.database_url)
        service = Service(settings, FAKE_STAGES)
        service.start()
        yield service
        service.close()


@pytest.fixture
def set_attempts(service: Service) -> Iterator[Callable[[int], None]]:
    """Have all jobs been started so many times: ``set_attempts(count)``."""
    import sqlalchemy as sa

    from store.database import open_engine

    engine = open_engine(service.settings.database_url)
    schema = "" if engine.dialect.name == "sqlite" else "dbos."
    statement = sa.text(f"UPDATE {schema}workflow_status SET recovery_attempts = :count")

    def set_them(count: int) -> None:
        with engine.begin() as connection:
            connection.execute(statement, {"count": count})

    yield set_them
    engine.dispose()
