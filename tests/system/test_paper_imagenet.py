"""Tables 2 and 3 from end to end, on a small folder laid out as ImageNet is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from benchmarks.paper import table2, table3
from benchmarks.paper.workloads import WORKLOADS
from models import registry
from store.errors import InvalidSpec

CLASSES = ("n01", "n02", "n03")
IMAGES = {"train": 8, "val": 4}

TABLES: dict[str, tuple[Callable[..., None], str, int, set[str]]] = {
    "table2": (
        table2.main,
        "alexnet-imagenet",
        64,
        # Of AlexNet's size a few are enough: the other table has the others.
        {"binary_connect", "bwnh"},
    ),
    "table3": (
        table3.main,
        "resnet18-imagenet",
        32,
        {"sq_bwn", "hwgq_bwn", "bwnh_as_published"},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG images of several sizes: of each class another channel is bright, with noise."""
    root = tmp_path_factory.mktemp("imagenet")
    random = np.random.default_rng(0)
    for split, count in IMAGES.items():
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                height, width = random.integers(70, 110, 2)
                pixels = random.integers(0, 120, (height, width, 3))
                pixels[..., label] += 120
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / split / name / f"{index}.JPEG")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_the_table_is_made_from_a_folder_without_a_checkpoint(
    name: str, folder: Path, tmp_path: Path
) -> None:
    command, workload, size, methods = TABLES[name]
    options: dict[str, Any] = {
        "images": folder,
        "full_precision_epochs": 1,
        "size": size,
        "epochs": 1,
        "methods": ",".join(sorted(methods)),
        "recipe": ["batch_size=8"],
        "calibration_images": 6,
        "cache": tmp_path / "cache",
        "output": tmp_path / "results",
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        command(**options)
    finally:
        torch.set_num_threads(threads)

    record = json.loads((tmp_path / f"results/{name}-{workload}.json").read_text())
    figures = record["figures"]
    found = {key.removesuffix(".fine_tuned") for key in figures if key.endswith(".fine_tuned")}
    assert found == methods
    for method in methods:
        assert figures[f"{method}.epochs"] == 1
        assert 0 <= figures[f"{method}.fine_tuned"] <= 1
        # Of three classes every label is among the five largest.
        assert figures[f"{method}.fine_tuned.top5"] == 1
    page = (tmp_path / f"results/{name}-{workload}.md").read_text()
    assert f"{IMAGES['val'] * len(CLASSES)} test images" in page
    assert "top 5, %" in page and "published, %" in page
    assert (tmp_path / f"results/{name}-{workload}.png").stat().st_size > 10_000
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1


@pytest.mark.slow
def test_the_network_that_was_trained_is_a_checkpoint_for_the_next_time(
    folder: Path, tmp_path: Path
) -> None:
    common: dict[str, Any] = {
        "images": folder,
        "size": 32,
        "epochs": 1,
        "methods": "bwn",
        "recipe": ["batch_size=8"],
        "cache": tmp_path / "cache",
        "threads": 1,
    }
    table3.main(**common, full_precision_epochs=1, output=tmp_path / "first")
    (kept,) = (tmp_path / "cache").glob("*.safetensors")
    table3.main(**common, checkpoint=kept, output=tmp_path / "second")
    first, second = (
        json.loads((tmp_path / f"{one}/table3-resnet18-imagenet.json").read_text())["figures"]
        for one in ("first", "second")
    )
    assert first["full_precision"] == second["full_precision"]
    assert first["bwn.fine_tuned"] == second["bwn.fine_tuned"]


@pytest.mark.parametrize("name", TABLES)
def test_the_defaults_are_the_papers(name: str) -> None:
    _, key, _, _ = TABLES[name]
    training = WORKLOADS[key].fine_tune
    assert training["optimizer"] == "sgd" and training["weight_decay"] == 5e-4
    # Iterations by batches over ImageNet's 1,281,167 images; nine tenths of them train.
    iterations = {"table2": 200_000, "table3": 650_000}[name]
    assert training["epochs"] == round(iterations * training["batch_size"] / 1_281_167)
    drops = {"table2": [100, 150, 180], "table3": [200, 400, 600]}[name]
    assert [share * iterations / 1000 for share in training["drops"]] == pytest.approx(drops)
    spec = WORKLOADS[key].spec({"name": "bwnh"}, fine_tune=training)
    assert (spec.input.resize, spec.input.height) == (256, 224)


@pytest.mark.parametrize("name", TABLES)
def test_first_and_last_layer_stay_in_float_by_default(name: str) -> None:
    _, key, size, _ = TABLES[name]
    workload = WORKLOADS[key]
    layers = registry.layer_names(
        workload.architecture, channels=3, height=size, width=size, classes=10, parameters={}
    )
    assert workload.keep_float == (layers[0], layers[-1])


@pytest.mark.parametrize("name", TABLES)
def test_the_command_explains_itself(name: str) -> None:
    app = typer.Typer()
    app.command()(TABLES[name][0])
    shown = CliRunner().invoke(app, ["--help"], terminal_width=100, env={"COLUMNS": "100"})
    assert shown.exit_code == 0
    for option in ("--images", "--checkpoint", "--keep-float", "--epochs", "--minutes"):
        assert option in shown.output


def test_without_a_network_it_says_how_to_come_by_one(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec) as caught:
        table3.main(images=folder, size=32, cache=tmp_path, output=tmp_path)
    assert "--checkpoint" in str(caught.value.remedy)
    assert "--full-precision-epochs" in str(caught.value.remedy)
