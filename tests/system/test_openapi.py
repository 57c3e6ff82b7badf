"""Every operation of the OpenAPI document against the running service, by schemathesis.

It sends what the document allows and what it forbids, and compares each answer with what the
document promises: status, media type, headers, content. ``schemathesis.toml`` beside this file says
what is checked where, and why a check is left out.
"""

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
DEADLINE_S = 600
SPEC = {
    "name": "animals",
    "architecture": "digits_cnn",
    "dataset": "animals",
    "input": {"channels": 1, "height": 8, "width": 8},
    "method": {"name": "bwn"},
    "calibration_images": 8,
}
# Small, so that a request at a limit is a small one.
LIMITS = {
    "MAX_CHECKPOINT_BYTES": 2**20,
    "MAX_ARCHIVE_BYTES": 2**20,
    "MAX_BODY_BYTES": 2**18,
    "MAX_DATASET_BYTES": 2**22,
    "QUEUE_POLL_S": 0.1,
}


def animals() -> bytes:
    """Three classes of ten grey images, as a zip."""
    random = np.random.default_rng(0)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for label in ("cat", "dog", "owl"):
            for number in range(10):
                image = io.BytesIO()
                Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(image, "PNG")
                archive.writestr(f"{label}/{number}.png", image.getvalue())
    return target.getvalue()


def checkpoint() -> bytes:
    torch.manual_seed(0)
    shape = {"channels": 1, "height": 8, "width": 8, "classes": 3}
    network = registry.build("digits_cnn", **shape, parameters={})
    return safetensors.torch.save(network.state_dict())


@pytest.fixture(scope="module")
def service(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Both processes, with a dataset, a finished job and its model."""
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in LIMITS.items():
            patch.setenv(f"BITPRESS_{name}", str(limit))
        with running(tmp_path_factory.mktemp("openapi") / "data") as up:
            with httpx.Client(base_url=up.url, timeout=60, trust_env=False) as http:
                files = {"archive": ("animals.zip", animals())}
                made = http.post("/datasets", data={"name": "animals"}, files=files)
                assert made.status_code == 201
                sent = {"spec": (None, json.dumps(SPEC)), "checkpoint": ("net", checkpoint())}
                queued = http.post("/compress", files=sent)
                assert queued.status_code == 202
            with Client(up.url) as client:
                job = client.wait(queued.json()["id"], interval_s=0.1)
            assert job.state == "succeeded"
            up.job = job.id
            yield up


def test_the_service_does_what_its_document_says(service: Up, tmp_path: Path) -> None:
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION.read_text().replace("<job>", service.job))
    report = tmp_path / "report.json"
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration)),
            *("run", f"{service.url}/openapi.json", "--report-json-path", str(report)),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert ran.returncode == 0, ran.stdout[-20_000:]
    found = json.loads(report.read_text())
    document = httpx.get(f"{service.url}/openapi.json", timeout=60).json()
    operations = sum(len(methods) for methods in document["paths"].values())
    assert found["complete"]
    assert found["operations"]["tested"] == operations
