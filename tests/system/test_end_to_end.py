"""The whole service as its user has it: ``bitpress up``, then nothing but the command line."""

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from client.client import Client
from client.types import CompressSpec, InputShape, Job
from models import registry

pytestmark = pytest.mark.slow

# Of conftest.py, which cannot be imported.
Up = Any
Running = Callable[[Path], AbstractContextManager[Up]]

ROOT = Path(__file__).parents[2]
DEADLINE_S = 600
# By class: where its bright square begins.
CORNERS = {"bottom-left": (4, 0), "bottom-right": (4, 4), "top-left": (0, 0), "top-right": (0, 4)}
CLASSES = tuple(CORNERS)
JOB = (
    "--architecture digits_cnn --channels 1 --size 8 --mean 0.5 --std 0.25 --parameter sweeps=2 "
    "--name corners --seed 3"
)


def corner_image(corner: str, generator: np.random.Generator) -> np.ndarray:
    """Return noise with a bright square in one corner, uint8 (8, 8)."""
    pixels = generator.integers(0, 128, (8, 8))
    top, left = CORNERS[corner]
    pixels[top : top + 4, left : left + 4] += 96
    return pixels.astype(np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of made-up images: {train,test}/<corner>/<number>.png."""
    folder = tmp_path_factory.mktemp("images") / "Corners"
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 12)):
        for corner in CORNERS:
            (folder / split / corner).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(corner_image(corner, generator))
                image.save(folder / split / corner / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits_cnn that has learnt to tell the corners apart."""
    files = sorted((images / "train").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    inputs = (torch.from_numpy(pixels).float().unsqueeze(1) / 255 - 0.5) / 0.25
    labels = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = registry.build(
            "digits_cnn", channels=1, height=8, width=8, classes=len(CORNERS), parameters={}
        )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs), labels)
        torch.autograd.backward([loss])
        optimizer.step()
    path = tmp_path_factory.mktemp("checkpoint") / "corners.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def service(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running(tmp_path_factory.mktemp("service") / "data") as up:
        yield up


@pytest.fixture(scope="module")
def compressed(service: Up, checkpoint: Path, images: Path) -> "subprocess.CompletedProcess[str]":
    """The outcome of the one command that makes a model."""
    return service.run(*f"compress {checkpoint} --dataset {images} {JOB} --wait".split())


def test_compress_prints_what_was_measured(
    compressed: "subprocess.CompletedProcess[str]", service: Up
) -> None:
    assert compressed.returncode == 0, compressed.stderr
    assert "corners, version 1" in compressed.stdout
    report = json.loads((service.data_dir / "models/corners/1/report.json").read_text())
    for printed in (
        f"{report['accuracy']['full_precision']:.2%}",
        f"{report['accuracy']['packed']:.2%}",
        f"{report['bytes']['float']:,}",
        f"{report['bytes']['packed']:,}",
        f"{report['compression_ratio']:.1f}",
    ):
        assert printed in compressed.stdout
    assert report["accuracy"]["full_precision"] > 0.9
    assert report["compression_ratio"] > 15
    assert "calibrate" in compressed.stderr


@pytest.mark.usefixtures("compressed")
def test_the_report_counts_what_the_recorded_predictions_say(service: Up, tmp_path: Path) -> None:
    published = service.data_dir / "models/corners/1"
    report = json.loads((published / "report.json").read_text())
    recorded = json.loads((published / "predictions.json").read_text())["images"]
    for one in report["classes"]:
        answers = [image["class"] for image in recorded if image["label"] == one["name"]]
        assert one["images"] == len(answers) == 12
        assert one["accuracy"]["packed"] == answers.count(one["name"]) / 12
    agreement = report["agreement"]
    right = sum(image["class"] == image["label"] for image in recorded)
    assert agreement["both_right"] + agreement["gained"] == right
    assert sum(one["images"] for one in report["confidence"]["packed"]["bins"]) == len(recorded)

    ran = service.run("report", report["job"], "--html", str(tmp_path / "report.html"))
    assert ran.returncode == 0, ran.stderr
    page = (tmp_path / "report.html").read_text()
    assert all(f"<bdi>{corner}</bdi>" in page for corner in CLASSES)
    assert f"{report['accuracy']['packed']:.2%}".replace("%", "\N{NO-BREAK SPACE}%") in page


@pytest.mark.usefixtures("compressed")
def test_predict_gives_the_classes_of_the_report(service: Up, images: Path) -> None:
    ran = service.run("predict", str(images / "test"), "--model", "corners", "--json")
    assert ran.returncode == 0, ran.stderr
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    predicted = {
        str(Path(answer["image"]).relative_to(images)): answer["top"][0]["label"]
        for answer in answers
    }
    recorded = json.loads((service.data_dir / "models/corners/1/predictions.json").read_text())
    assert len(predicted) == 12 * len(CORNERS)
    assert predicted == {image["name"]: image["class"] for image in recorded["images"]}
    assert len(set(predicted.values())) > 1


@pytest.mark.usefixtures("compressed")
def test_the_same_job_again_sends_no_images_and_gives_the_same_bytes(
    service: Up, checkpoint: Path, images: Path
) -> None:
    ran = service.run(*f"compress {checkpoint} --dataset {images} {JOB} --wait".split())
    assert ran.returncode == 0, ran.stderr
    assert "Uploading Corners" not in ran.stderr
    first, second = (
        (service.data_dir / f"models/corners/{version}/artifact.safetensors").read_bytes()
        for version in (1, 2)
    )
    assert first == second
    with Client(service.url) as client:
        downloaded = client.download_artifact("corners", 2, service.data_dir / "downloaded")
        assert downloaded.read_bytes() == first
        assert client.model("corners").versions == (1, 2)
        assert [dataset.name for dataset in client.datasets()] == ["corners"]


def test_a_model_is_trained_and_its_activations_rounded_where_options_say_so(
    service: Up, checkpoint: Path, images: Path
) -> None:
    wanted = JOB.replace("--name corners", "--name tuned")
    training = "--fine-tune-epochs 2 --fine-tune batch_size=8 --fine-tune drops=[0.5]"
    command = f"compress {checkpoint} --dataset {images} {wanted} {training} --activation-bits 8"
    ran = service.run(*command.split(), "--wait")
    assert ran.returncode == 0, ran.stderr
    assert "fine_tune epoch-0001" in ran.stderr
    with Client(service.url) as client:
        model = client.model("tuned")
        job = client.job(model.job)
        report = client.report(model.job)
    accuracy = report.accuracy
    assert accuracy == model.accuracy
    # As good as the network that was given: the corners are easy.
    assert accuracy.fine_tuned is not None and accuracy.fine_tuned > 0.9
    assert accuracy.packed == accuracy.fine_tuned
    assert accuracy.packed_float_activations is not None
    for form in (accuracy.calibrated, accuracy.fine_tuned, accuracy.packed_float_activations):
        assert f"{form:.2%}" in ran.stdout
    assert [epoch.epoch for epoch in job.epochs] == [1, 2]
    assert all(epoch.images_per_second > 0 for epoch in job.epochs)
    assert [step["epoch"] for step in report.document["fine_tuning"]["epochs"]] == [1, 2]
    assert {"fine_tune", "evaluate"} <= report.stage_seconds.keys()
    # Served in the arithmetic that was measured.
    answered = service.run("predict", str(images / "test"), "--model", "tuned", "--json")
    found = {
        Path(line["image"]).relative_to(images / "test").as_posix(): line["top"][0]["label"]
        for line in map(json.loads, answered.stdout.splitlines())
    }
    recorded = json.loads((service.data_dir / "models/tuned/1/predictions.json").read_text())
    assert len(recorded["images"]) == len(found)
    for image in recorded["images"]:
        assert found[image["name"].removeprefix("test/")] == image["class"]


def test_a_mistake_is_told_while_a_large_checkpoint_is_still_on_its_way(
    service: Up, tmp_path: Path
) -> None:
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.truncate(1 << 26)
    command = f"compress {tmp_path}/large.safetensors --architecture vgg10 --dataset none --name x"
    ran = service.run(*command.split())
    assert ran.returncode == 1
    assert "field: spec." in ran.stderr
    assert "remedy: " in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.usefixtures("compressed")
def test_an_image_that_is_none_fails_alone(service: Up, images: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"this is no image")
    good = sorted((images / "test").rglob("*.png"))[0]
    ran = service.run("predict", str(good), str(tmp_path / "broken.png"), "--model", "corners")
    assert ran.returncode == 1
    first, second = ran.stdout.splitlines()
    assert first.startswith(f"{good}\t")
    assert second.startswith(f"{tmp_path}/broken.png\terror: ")


@pytest.mark.usefixtures("compressed")
def test_every_metric_is_documented_and_there(service: Up) -> None:
    # A prediction may not have been asked for yet: some figures exist only for loaded models.
    scrape = httpx.get(f"{service.url}/metrics").text
    found = set(re.findall(r"^# TYPE (\w+) ", scrape, re.MULTILINE))
    page = (ROOT / "docs/METRICS.md").read_text()
    assert found == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_the_ready_file_holds_the_address_while_it_holds(service: Up) -> None:
    assert httpx.get(f"{service.url}/health/ready").status_code == 200
    assert service.ready_file.read_text().strip() == service.url


class CalibrationBegan(Exception):
    """Ends the waiting for a job in the middle of it."""


def stop_waiting(job: Job) -> None:
    assert not job.finished, job
    if job.stage == "calibrate":
        raise CalibrationBegan


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_in_the_middle_of_a_job_leaves_no_process_and_the_next_start_finishes_it(
    running: Running, checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    spec = CompressSpec(
        name="corners",
        architecture="digits_cnn",
        dataset="corners",
        input=InputShape(channels=1, height=8, width=8, mean=(0.5,), std=(0.25,)),
        calibration_images=160,
        method={"name": "bwnh", "positions": 1_000_000},
    )
    with running(tmp_path / "data") as up:
        with Client(up.url) as client:
            client.ensure_dataset(images)
            job = client.compress(spec, checkpoint)
            with pytest.raises(CalibrationBegan):
                client.wait(job.id, stop_waiting, interval_s=0.02)
        # The supervisor, app and worker, and the process of the stage.
        handles = [os.pidfd_open(pid) for pid in up.processes()]
        assert len(handles) >= 3
        assert up.stop(signal.SIGINT) == 0
        assert "bitpress up: SIGINT: stopping" in up.log
        for handle in handles:
            assert select.select([handle], [], [], DEADLINE_S)[0]
            os.close(handle)
        assert not up.processes()
        assert not up.ready_file.exists()
    with running(tmp_path / "data") as up, Client(up.url) as client:
        finished = client.wait(job.id)
        assert finished.state == "succeeded", finished.problem
        assert client.model("corners").versions == (1,)
