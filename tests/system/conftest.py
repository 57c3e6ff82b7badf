"""What the tests of the whole share."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
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
from store.specs import parse_spec
from store.uploads import UploadStore

ROOT = Path(__file__).parents[2]
DEADLINE_S = 600
CLASSES = ("dark", "light", "striped")
SIDE = 16


class Up:
    """A running ``bitpress up``; ``mark`` is in the environment of every process of it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.mark = uuid.uuid4().hex
        self.ready_file = data_dir.with_suffix(".ready")
        self.log: list[str] = []
        self._listening = threading.Event()
        command = ["up", "--data-dir", str(data_dir), "--port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "client", *command, "--ready-file", str(self.ready_file)],
            cwd=ROOT,
            env={**os.environ, "BITPRESS_TEST_MARK": self.mark, "BITPRESS_LEASE_BEAT_S": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._listening.wait(DEADLINE_S)
        found = re.findall(r"listening on (http://[0-9.:]+)", "\n".join(self.log))
        if len(found) != 1:
            self.stop(signal.SIGKILL)
            pytest.fail("bitpress up does not listen:\n" + "\n".join(self.log))
        self.url: str = found[0]

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.log.append(line.rstrip("\n"))
                if "listening on" in line:
                    self._listening.set()
        # Whether it has listened or not, there is nothing more to wait for.
        self._listening.set()

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE_S)
        self._reader.join()
        return code

    def processes(self) -> set[int]:
        """Return the ids of all processes that run for this service."""
        wanted = f"BITPRESS_TEST_MARK={self.mark}".encode()
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
            except OSError:
                continue
        return found

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a ``bitpress`` command against this service."""
        return subprocess.run(
            [sys.executable, "-m", "client", *arguments],
            cwd=ROOT,
            env={**os.environ, "BITPRESS_URL": self.url},
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
        )


@contextmanager
def _running(data_dir: Path) -> Iterator[Up]:
    up = Up(data_dir)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.stop()


@pytest.fixture(scope="session")
def running() -> Callable[[Path], AbstractContextManager[Up]]:
    """Run ``bitpress up`` on a data directory; it has stopped when the block ends."""
    return _running


@pytest.fixture
def service_at() -> Callable[[int], AbstractContextManager[str]]:
    """Run a service that answers every GET with one status; yields its address."""

    @contextmanager
    def run(status: int) -> Iterator[str]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Keep the test's output clean."""

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    return run


class SmallDisk:
    """A file system of 48 MiB at ``place``."""

    BYTES = 48 * 2**20

    def __init__(self, place: Path) -> None:
        self.place = place
        self._filler = place / "filler"

    def fill(self, leave: int = 0) -> None:
        """Take all the space there is but ``leave`` bytes, rounded down to whole pages."""
        with open(self._filler, "wb", buffering=0) as file:
            for piece in (2**20, 4096):
                try:
                    while file.write(bytes(piece)):
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC
            file.truncate(max(file.tell() - leave, 0))

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink()


@contextmanager
def _mounted(place: Path) -> Iterator[SmallDisk]:
    place.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={SmallDisk.BYTES}", "bitpress-test"]
    if os.geteuid() != 0 or subprocess.run([*mounting, str(place)], check=False).returncode != 0:
        pytest.skip("only root can mount a small file system")
    try:
        yield SmallDisk(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="session")
def small_disk_at() -> Callable[[Path], AbstractContextManager[SmallDisk]]:
    """Mount a small file system at a path that is not there yet, until the block ends."""
    return _mounted


class Installation:
    """A data directory with a dataset and a checkpoint in it, and its job store.

    ``spec`` is a small job on them; ``members`` are put into it.
    """

    def __init__(
        self, folder: Path, database_url: str, images_per_class: int = 40, **members: Any
    ) -> None:
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
                **members,
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
        return store.ingest(archive, "patterns").dataset.name

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
def install() -> Iterator[Callable[..., Installation]]:
    """Make an `Installation`: ``install(folder, database_url, images_per_class, **members)``."""
    made: list[Installation] = []

    def make(folder: Path, database_url: str, *arguments: Any, **members: Any) -> Installation:
        made.append(Installation(folder, database_url, *arguments, **members))
        return made[-1]

    yield make
    for installation in made:
        installation.jobs.close()
