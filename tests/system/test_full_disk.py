"""A service whose disk is full: all that it has, its database too, lies on a small file system."""

import fcntl
import io
import json
import re
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from client.client import Client
from models import registry

pytestmark = pytest.mark.slow

# Of conftest.py, which cannot be imported.
Up = Any
Running = Callable[[Path], AbstractContextManager[Up]]
SmallDisk = Any
SmallDiskAt = Callable[[Path], AbstractContextManager[SmallDisk]]
WaitUntil = Callable[..., None]

SIDE = 16
CLASSES = ("cat", "dog", "owl")
SPEC = {
    "name": "animals",
    "architecture": "digits_cnn",
    "dataset": "animals",
    "input": {"channels": 1, "height": SIDE, "width": SIDE},
    "calibration_images": 30,
    "fine_tune": {"epochs": 2, "batch_size": 8},
}
BEFORE_LONG_S = 300


def archive(side: int, seed: int = 0) -> bytes:
    """A dataset of grey noise, which nothing can compress, as a zip."""
    random = np.random.default_rng(seed)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        for label in CLASSES:
            for number in range(20):
                image = io.BytesIO()
                pixels = random.integers(0, 256, (side, side), np.uint8)
                Image.fromarray(pixels).save(image, "PNG")
                file.writestr(f"{label}/{number}.png", image.getvalue())
    return target.getvalue()


def checkpoint(seed: int) -> bytes:
    torch.manual_seed(seed)
    shape = {"channels": 1, "height": SIDE, "width": SIDE, "classes": len(CLASSES)}
    network = registry.build("digits_cnn", **shape, parameters={})
    return safetensors.torch.save(network.state_dict())


def compress(http: httpx.Client, weights: bytes) -> httpx.Response:
    sent = {"spec": (None, json.dumps(SPEC)), "checkpoint": ("net.safetensors", weights)}
    return http.post("/compress", files=sent)


def register(http: httpx.Client, images: bytes, name: str) -> httpx.Response:
    return http.post("/datasets", data={"name": name}, files={"archive": ("images.zip", images)})


@dataclass(frozen=True)
class Service:
    """A service on a disk of its own; what it does elsewhere, it does in ``scratch``."""

    up: Up
    http: httpx.Client
    disk: SmallDisk
    scratch: Path

    def files(self) -> set[Path]:
        """All that is there but locks, the database, and which versions have been given once."""
        return {
            path
            for folder in (self.up.data_dir, self.scratch)
            for path in folder.rglob("*")
            if path.is_file()
            and path.name != ".lock"
            and "sqlite" not in path.name
            and ".deleted" not in path.parts
        }

    def listed(self) -> dict[str, Any]:
        return {name: self.http.get(f"/{name}").json() for name in ("jobs", "datasets", "models")}

    def fill_database_too(self) -> None:
        """Fill the disk, and leave the database no room either that it had taken before."""
        with closing(sqlite3.connect(self.database, timeout=30, isolation_level=None)) as file:
            emptied = [1]
            while emptied[0]:
                emptied = file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self.disk.fill()

    @property
    def database(self) -> Path:
        found: Path = self.up.data_dir / "bitpress.sqlite"
        return found

    def said(self, event: str) -> int:
        """How often the log has said so."""
        return sum(f'"event": "{event}"' in line for line in self.up.log)


@pytest.fixture(scope="module")
def service(
    running: Running, small_disk_at: SmallDiskAt, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("full")
    scratch = folder / "scratch"
    scratch.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(scratch))
        patch.setenv("BITPRESS_QUEUE_POLL_S", "0.1")
        patch.setattr(tempfile, "tempdir", None)
        with small_disk_at(folder / "disk") as disk, running(disk.place / "data") as up:
            with httpx.Client(base_url=up.url, timeout=600, trust_env=False) as http:
                assert register(http, archive(SIDE), "animals").status_code == 201
                yield Service(up, http, disk, scratch)
            assert up.stop() == 0


def check_problem(answer: httpx.Response) -> None:
    assert answer.status_code == 507, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "urn:bitpress:problem:storage-exhausted"
    assert "free space" in problem["remedy"]
    assert "/data" not in answer.text


# Nothing goes in; a part of it does; it does, but not what is made of it.
@pytest.mark.parametrize("room", [0.0, 0.5, 1.2])
def test_an_archive_that_finds_the_disk_full_leaves_nothing(service: Service, room: float) -> None:
    images, name = archive(256), f"larger-{room}"
    before = service.files(), service.listed()
    service.disk.fill(leave=int(room * len(images)))
    try:
        check_problem(register(service.http, images, name))
        assert service.http.get("/health/live").status_code == 200
    finally:
        service.disk.free()
    assert (service.files(), service.listed()) == before
    assert register(service.http, images, name).status_code == 201
    assert service.http.delete(f"/datasets/{name}").status_code == 204


@pytest.mark.parametrize("room", [0.0, 0.5])
def test_a_checkpoint_that_finds_the_disk_full_leaves_nothing(
    service: Service, room: float
) -> None:
    weights = checkpoint(seed=int(1 + 10 * room))
    before = service.files(), service.listed()
    service.disk.fill(leave=int(room * len(weights)))
    try:
        check_problem(compress(service.http, weights))
    finally:
        service.disk.free()
    assert (service.files(), service.listed()) == before
    queued = compress(service.http, weights)
    assert queued.status_code == 202
    finish(service, queued.json()["id"])


@contextmanager
def no_publication(service: Service) -> Iterator[None]:
    """Keep the worker from publishing until the block ends."""
    with open(service.up.data_dir / "models" / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def finish(service: Service, job_id: str) -> bytes:
    """Wait for the job's success; return the artifact that it published, which is removed."""
    with Client(service.up.url) as client:
        job = client.wait(job_id, interval_s=0.1)
    assert job.state == "succeeded", (job.problem, service.up.log[-5:])
    (model,) = service.http.get("/models/animals/versions").json()["versions"]
    assert service.http.get(f"/jobs/{job_id}").json()["model"]["version"] == model["version"]
    path = f"/models/animals/versions/{model['version']}"
    artifact = service.http.get(f"{path}/artifact")
    assert artifact.status_code == 200
    assert service.http.delete(path).status_code == 204
    return artifact.content


def events_of(service: Service, job_id: str) -> list[tuple[int, str]]:
    """Number and kind of each event of a job that is over."""
    told = service.http.get(f"/jobs/{job_id}/events").text
    return [
        (int(number), kind)
        for number, kind in re.findall(r"^id: (\d+)\nevent: (\w+)$", told, re.MULTILINE)
    ]


@pytest.mark.parametrize("stage", ["calibrate", "fine_tune", "publish"])
def test_a_job_whose_database_finds_the_disk_full_goes_on_when_there_is_space(
    service: Service, wait_until: WaitUntil, stage: str
) -> None:
    weights = checkpoint(seed=7)
    smooth = finish(service, compress(service.http, weights).json()["id"])
    before = service.files()
    job_id = compress(service.http, weights).json()["id"]

    def there() -> bool:
        now = service.http.get(f"/jobs/{job_id}").json()
        assert now["finished_at"] is None, now
        return bool(now["stage"] == stage)

    with no_publication(service):
        wait_until(there, f"the stage {stage}", BEFORE_LONG_S)
        told = service.said("lease failed")
        service.fill_database_too()
    try:
        # The worker reports on the job more often than on itself.
        wait_until(lambda: service.said("lease failed") >= told + 3, "what no space does")
        assert service.http.get("/health/live").status_code == 200
    finally:
        service.disk.free()
    wait_until(
        lambda: service.http.get(f"/jobs/{job_id}").json()["finished_at"],
        "the end of the job",
        BEFORE_LONG_S,
    )
    job = service.http.get(f"/jobs/{job_id}").json()
    if job["state"] == "failed":
        # The stage found no space for its files either.
        assert job["problem"]["type"] == "urn:bitpress:problem:storage-exhausted"
        assert service.http.post(f"/jobs/{job_id}/retry").status_code == 202
    assert finish(service, job_id) == smooth
    with closing(sqlite3.connect(service.database, timeout=30)) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    numbers, kinds = zip(*events_of(service, job_id), strict=True)
    assert [*numbers] == sorted({*numbers})
    assert kinds[-1] == "succeeded"
    report = service.up.data_dir / "jobs" / job_id / "report.json"
    assert service.files() - {report} == before
