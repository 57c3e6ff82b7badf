"""The same images as folders, as arrays and in a root of the operator's: the same model."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import save_file

from models import registry

pytestmark = pytest.mark.slow

# Of conftest.py, which cannot be imported.
Up = Any
Running = Callable[[Path], AbstractContextManager[Up]]

CLASSES = ("dark", "light")
SPLITS = {"train": 24, "test": 8}
JOB = "--architecture digits_cnn --channels 1 --size 8 --mean 0.5 --std 0.25 --seed 3"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """{train,test}/<class>/<number>.png, numbered through a split as arrays are."""
    folder = tmp_path_factory.mktemp("images") / "shades"
    generator = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for number in range(count):
            label = number % len(CLASSES)
            pixels = generator.integers(100 * label, 100 * label + 120, (8, 8), dtype=np.uint8)
            file = folder / split / CLASSES[label] / f"{number:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return folder


@pytest.fixture(scope="module")
def arrays(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as an npz, their classes by name."""
    found: dict[str, Any] = {}
    for split in SPLITS:
        files = sorted((images / split).rglob("*.png"), key=lambda file: file.name)
        found[f"x_{split}"] = np.stack([np.asarray(Image.open(file)) for file in files])
        found[f"y_{split}"] = np.array([CLASSES.index(file.parent.name) for file in files])
    path = tmp_path_factory.mktemp("arrays") / "shades.npz"
    np.savez_compressed(path, **found, classes=np.array(CLASSES))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = registry.build(
            "digits_cnn", channels=1, height=8, width=8, classes=len(CLASSES), parameters={}
        )
    path = tmp_path_factory.mktemp("checkpoint") / "shades.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def service(
    running: Running, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Up]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("BITPRESS_DATASET_ROOTS", f"shades={images}")
        with running(tmp_path_factory.mktemp("service") / "data") as up:
            yield up


def compress(service: Up, checkpoint: Path, dataset: str, *more: str) -> Path:
    """Compress with the command line and return the version's folder."""
    before = set(service.data_dir.glob("models/shades/[0-9]*"))
    done: subprocess.CompletedProcess[str] = service.run(
        "compress",
        str(checkpoint),
        "--dataset",
        dataset,
        *more,
        *JOB.split(),
        "--name",
        "shades",
        "--wait",
    )
    assert done.returncode == 0, done.stderr
    (made,) = set(service.data_dir.glob("models/shades/[0-9]*")) - before
    return Path(made)


def test_folders_arrays_and_roots_of_equal_images_make_equal_models(
    service: Up, checkpoint: Path, images: Path, arrays: Path
) -> None:
    registered = httpx.post(
        f"{service.url}/datasets", json={"name": "shades", "root": "shades"}, timeout=60
    )
    assert registered.status_code == 201, registered.text
    rooted = compress(service, checkpoint, "shades")
    # Deleted and sent as an archive, under the same name: nothing tells the two apart any more.
    assert httpx.delete(f"{service.url}/datasets/shades", timeout=60).status_code == 204
    assert not list(service.data_dir.glob("cache/*-*"))
    sent = compress(service, checkpoint, str(images), "--dataset-name", "shades")
    model = "artifact.safetensors"
    assert (rooted / model).read_bytes() == (sent / model).read_bytes()
    of_arrays = compress(service, checkpoint, str(arrays), "--dataset-name", "numbers")
    # The header tells another dataset; every bit and scale, and what was measured, is the same.
    ours, theirs = load_file(of_arrays / model), load_file(sent / model)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    reports = [json.loads((folder / "report.json").read_text()) for folder in (of_arrays, sent)]
    assert reports[0]["accuracy"] == reports[1]["accuracy"]


def test_a_job_on_a_root_whose_images_have_changed_fails_by_their_name(
    service: Up, checkpoint: Path, images: Path
) -> None:
    """Last: it breaks the root."""
    answer = httpx.post(
        f"{service.url}/datasets", json={"name": "broken", "root": "shades"}, timeout=60
    )
    assert answer.status_code == 201
    damaged = images / "train/dark/00004.png"
    damaged.write_bytes(b"something else")
    # Another size than any job before asked for, so that no decoded copy serves.
    done = service.run(
        *f"compress {checkpoint} --dataset broken {JOB} --resize 9 --name broken --wait".split()
    )
    assert done.returncode != 0
    told = " ".join((done.stdout + done.stderr).split())
    assert "train/dark/00004.png" in told
    assert "has changed" in told
    assert str(images) not in told
