"""The accuracy gate through the whole service, on a network that really loses nearly everything."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import save_file

from benchmarks import digits
from benchmarks.digits.training import INPUT, train
from client.client import Client
from client.types import CompressSpec, InputShape, Job

pytestmark = pytest.mark.slow

# Of conftest.py, which cannot be imported.
Up = Any
Running = Callable[[Path], AbstractContextManager[Up]]

MODEL = "digits"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "digits.safetensors"
    training, _ = digits.split(digits.load(), seed=0)
    save_file(train(training, seed=0).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def client(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("service")
    training, test = digits.split(digits.load(), seed=0)
    digits.write_images(training, folder / "images" / "train")
    digits.write_images(test, folder / "images" / "test")
    with running(folder / "data") as up, Client(up.url) as client:
        client.upload_dataset(folder / "images", MODEL)
        yield client


def compressed(client: Client, checkpoint: Path, max_accuracy_drop: float) -> Job:
    """Run a job whose signs, without training, leave little of the network; return its end."""
    spec = CompressSpec(
        name=MODEL,
        architecture="digits_cnn",
        dataset=MODEL,
        input=InputShape(
            channels=INPUT.channels,
            height=INPUT.height,
            width=INPUT.width,
            mean=INPUT.mean,
            std=INPUT.std,
        ),
        method={"name": "bwn"},
        max_accuracy_drop=max_accuracy_drop,
    )
    return client.wait(client.compress(spec, checkpoint).id)


def test_a_model_that_loses_too_much_is_reported_and_never_served(
    client: Client, checkpoint: Path
) -> None:
    job = compressed(client, checkpoint, 0.3)
    assert (job.state, job.model) == ("rejected", None)
    assert job.problem is not None
    assert job.problem.type == "urn:bitpress:problem:accuracy-gate"
    assert client.models() == []
    address = f"{client.url}/jobs/{job.id}/report"
    report = httpx.get(address, trust_env=False).json()
    assert report["model"] is None
    gate = report["gate"]
    assert gate["passed"] is False
    assert gate["drop"] == pytest.approx(gate["full_precision"] - gate["packed"])
    assert gate["drop"] > 0.3
    assert gate["images"] != report["test_images"]
    assert report["latency"]["packed_ms"] > 0
    page = httpx.get(address, headers={"Accept": "text/html"}, trust_env=False)
    assert page.status_code == 200
    assert "Rejected by the accuracy gate" in page.text


def test_a_model_that_loses_no_more_than_is_allowed_is_published_with_its_gate(
    client: Client, checkpoint: Path
) -> None:
    job = compressed(client, checkpoint, 1.0)
    assert job.state == "succeeded"
    model = httpx.get(f"{client.url}/models/{MODEL}", trust_env=False).json()
    report = httpx.get(f"{client.url}/jobs/{job.id}/report", trust_env=False).json()
    assert model["gate"] == report["gate"] and report["gate"]["passed"] is True
    assert model["latency"] == report["latency"]
    # Times differ from one job to the next; the artifact has none of them.
    artifact = client.download_artifact(MODEL, 1, checkpoint.parent / "artifact.safetensors")
    assert b"latency" not in artifact.read_bytes()
    assert json.dumps(report["latency"]["float_ms"]).encode() not in artifact.read_bytes()
