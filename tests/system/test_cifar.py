"""The shipped CIFAR-10 checkpoints, as the world has them, through the whole service."""

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from client.client import Client
from models import artifact

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("BITPRESS_SHARED", ROOT / "../shared"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cifar,
    pytest.mark.skipif(
        not SHARED.is_dir(), reason="the shared images and checkpoints (BITPRESS_SHARED) are absent"
    ),
]

# Of conftest.py, which cannot be imported.
Up = Any
Running = Callable[[Path], AbstractContextManager[Up]]

IMAGES_PER_CLASS = {"train": 30, "test": 10}
CLASSES = 10
# What keeps the calibration of these networks to seconds.
QUICKLY = "--calibration-images 20 --parameter sweeps=2"
# By model: how it is asked for, and the layers that stay in float.
MODELS = {
    "resnet20": (
        "resnet20-12fca82f.th --architecture resnet20 --keep-float conv1,linear "
        "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
        {"conv1", "linear"},
    ),
    "vgg9": (
        "vgg9_cifar10.safetensors --architecture vgg9 "
        "--mean 0.4914,0.4822,0.4465 --std 0.2470,0.2435,0.2616",
        set(),
    ),
}
# How much smaller a network becomes at least, with all that a job writes into the artifact.
LEAST_RATIO = {"vgg9": 30.0}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first images of every class of both splits, as a folder."""
    folder = tmp_path_factory.mktemp("images") / "cifar10-cut"
    taken: Counter[Path] = Counter()
    with tarfile.open(SHARED / "data/cifar10-jpeg.tar.xz", "r|xz") as archive:
        for member in archive:
            path = folder / Path(member.name).relative_to("cifar10-jpeg")
            if member.isdir():
                path.mkdir(parents=True)
            elif taken[path.parent] < IMAGES_PER_CLASS[path.parent.parent.name]:
                taken[path.parent] += 1
                content = archive.extractfile(member)
                assert isinstance(content, io.BufferedIOBase)
                path.write_bytes(content.read())
    assert sum(taken.values()) == sum(IMAGES_PER_CLASS.values()) * CLASSES
    return folder


@pytest.fixture(scope="module")
def service(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running(tmp_path_factory.mktemp("service") / "data") as up:
        yield up


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_checkpoint_is_compressed_and_served_as_measured(
    service: Up, images: Path, tmp_path: Path, name: str
) -> None:
    how, kept = MODELS[name]
    job = f"{SHARED}/checkpoints/{how} --dataset {images} --name {name} {QUICKLY} --wait"
    ran = service.run("compress", *job.split())
    assert ran.returncode == 0, ran.stderr

    published = service.data_dir / "models" / name / "1"
    report = json.loads((published / "report.json").read_text())
    # Pixels that were normalised otherwise than in training would cost more than this.
    assert report["accuracy"]["full_precision"] > 0.7
    assert report["accuracy"]["packed"] == report["accuracy"]["calibrated"]
    float_layers = {layer["name"] for layer in report["layers"] if not layer["binary"]}
    assert float_layers == kept
    written = (published / "artifact.safetensors").stat().st_size
    assert report["bytes"]["packed"] == written
    assert report["bytes"]["float"] >= LEAST_RATIO.get(name, 1.0) * written
    for layer in report["layers"]:
        if layer["binary"]:
            assert layer["losses"][-1] < layer["losses"][0] < 1

    with Client(service.url) as client:
        client.download_artifact(name, 1, tmp_path / "model.safetensors")
    packed = artifact.read(tmp_path / "model.safetensors")
    binary = {layer["name"] for layer in report["layers"] if layer["binary"]}
    assert set(artifact.binary_codes(packed)) == binary

    ran = service.run("predict", str(images / "test"), "--model", name, "--json")
    assert ran.returncode == 0, ran.stderr
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    predicted = {
        str(Path(answer["image"]).relative_to(images)): answer["top"][0]["label"]
        for answer in answers
    }
    recorded = json.loads((published / "predictions.json").read_text())["images"]
    assert len(predicted) == IMAGES_PER_CLASS["test"] * CLASSES
    assert predicted == {image["name"]: image["class"] for image in recorded}
    assert len(set(predicted.values())) > 1


def test_a_residual_network_is_trained_and_packed_as_trained(service: Up, images: Path) -> None:
    how, kept = MODELS["resnet20"]
    training = (
        "--fine-tune-epochs 2 --fine-tune batch_size=30 --fine-tune feature_distillation=1 "
        "--fine-tune average=0.5 --fine-tune batch_norm=reestimate"
    )
    job = f"{SHARED}/checkpoints/{how} --dataset {images} --name tuned {QUICKLY} {training}"
    ran = service.run("compress", *job.split())
    assert ran.returncode == 0, ran.stderr
    with Client(service.url) as client:
        finished = client.wait(ran.stdout.strip())
    assert finished.state == "succeeded", finished.problem
    report = json.loads((service.data_dir / "models/tuned/1/report.json").read_text())
    assert report["accuracy"]["packed"] == report["accuracy"]["fine_tuned"]
    assert report["parity"]["top1_agreement"] == 1.0
    assert len(report["fine_tuning"]["epochs"]) == 2
    assert {layer["name"] for layer in report["layers"] if not layer["binary"]} == kept
