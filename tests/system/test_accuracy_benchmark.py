"""``python -m benchmarks.accuracy`` on a small network and made-up images."""

import io
import json
import zipfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from benchmarks.accuracy import main, method_parameters, methods_of
from benchmarks.compression import Trained, fine_tune
from benchmarks.paper.variants import bwnh_as_published
from models import registry
from store.errors import InvalidSpec
from worker.data import ImageSet

CLASSES = ("dark", "light", "striped")
LAYERS = ["features.0", "features.3", "features.7", "classifier"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name a checkpoint of digits_cnn and 20 grey images of each class."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(1)
    size = {"channels": 1, "height": 8, "width": 8}
    network = registry.build("digits_cnn", **size, classes=len(CLASSES), parameters={})
    save_file(network.state_dict(), folder / "checkpoint.safetensors")
    random = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "patterns.zip", "w") as file:
        for label, name in enumerate(CLASSES):
            for number in range(20):
                pixels = random.integers(0, 96, (8, 8), dtype=np.uint8)
                pixels[:: 2 if label == 2 else 1] += np.uint8(64 * label)
                image = io.BytesIO()
                Image.fromarray(pixels).save(image, "PNG")
                file.writestr(f"{name}/{number:03}.png", image.getvalue())
    return [
        *("--architecture", "digits_cnn", "--checkpoint", str(folder / "checkpoint.safetensors")),
        *("--dataset", str(folder / "patterns.zip"), "--cache", str(folder / "cache")),
        *("--channels", "1", "--size", "8", "--mean", "0.5", "--std", "0.25"),
        *("--calibration-images", "20", "--parameter", "sweeps=2"),
    ]


def figures(tmp_path: Path, inputs: list[str], *options: str) -> dict[str, Any]:
    """Run the command; return the figures it wrote."""
    program = typer.Typer()
    program.command()(main)
    file = tmp_path / "figures.json"
    ran = CliRunner().invoke(program, [*inputs, *options, "--json", str(file)])
    assert ran.exit_code == 0, (ran.output, ran.exception)
    found: dict[str, Any] = json.loads(file.read_text())["figures"]
    return found


def test_every_method_is_measured_before_and_after_training(
    tmp_path: Path, inputs: list[str]
) -> None:
    training = ["--fine-tune-epochs", "2", "--fine-tune", "batch_size=8"]
    found = figures(tmp_path, inputs, "--methods", "bwn,bwnh", "--seeds", "0,1", *training)
    for method in ("bwn", "bwnh"):
        for form in ("calibrated", "fine_tuned", "packed"):
            assert 0 <= found[f"{method}.{form}"] <= 1
        assert found[f"{method}.packed"] == found[f"{method}.fine_tuned"]
        assert found[f"{method}.epoch2.loss"] > 0
        assert found[f"{method}.images_per_second"] > 0
        assert found[f"{method}.fine_tuning_seconds"] > 0
        of_seeds = [found[f"{method}.packed.seed{seed}"] for seed in (0, 1)]
        assert found[f"{method}.packed"] == pytest.approx(fmean(of_seeds))
        assert found[f"{method}.spread"] == pytest.approx(stdev(of_seeds))
    # Asked for at most two sweeps; bwn makes none and has no losses.
    assert "bwnh.loss.features.3.sweep1" in found
    assert "bwnh.loss.features.3.sweep3" not in found
    assert not any(name.startswith("bwn.loss") for name in found)


def test_without_training_there_are_no_figures_of_it(tmp_path: Path, inputs: list[str]) -> None:
    found = figures(tmp_path, inputs, "--methods", "bwnh", "--seeds", "0", "--validation")
    assert {"full_precision", "bwnh.calibrated", "bwnh.packed", "bwnh.ratio"} <= found.keys()
    assert not any("epoch" in name or "fine_tun" in name for name in found)


def test_the_last_training_may_have_the_validation_images_too(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def spy(full: Any, calibrated: Any, train: ImageSet, spec: Any) -> Trained:
        seen.append(len(train))
        return fine_tune(full, calibrated, train, spec)

    monkeypatch.setattr("benchmarks.accuracy.fine_tune", spy)
    training = ["--fine-tune-epochs", "1", "--fine-tune", "batch_size=8"]
    options = ["--methods", "bwnh", "--seeds", "0", *training]
    figures(tmp_path, inputs, *options)
    figures(tmp_path, inputs, *options, "--fine-tune", "train_on=train_and_val")
    # Of 20 images of each of three classes 15 % are validation and 15 % test.
    assert seen == [42, 51]
    with pytest.raises(AssertionError, match="after training on them"):
        figures(tmp_path, inputs, *options, "--fine-tune", "train_on=train_and_val", "--validation")


def test_only_the_first_layers_are_binarized_where_that_is_asked_for(
    tmp_path: Path, inputs: list[str]
) -> None:
    found = figures(tmp_path, inputs, "--methods", "bwnh", "--seeds", "0", "--layers-upto", "2")
    measured = {name.split(".sweep")[0] for name in found if ".loss." in name}
    assert measured == {f"bwnh.loss.{layer}" for layer in LAYERS[:2]}


def test_rounded_activations_are_measured_with_and_without_the_rounding(
    tmp_path: Path, inputs: list[str]
) -> None:
    found = figures(tmp_path, inputs, "--methods", "bwnh", "--seeds", "0", "--activation-bits", "8")
    assert {"bwnh.packed", "bwnh.packed_float_activations"} <= found.keys()


def test_the_papers_form_is_a_method_and_bits_are_counted(
    tmp_path: Path, inputs: list[str]
) -> None:
    methods = ["--methods", "bwnh_as_published,bwnh", "--seeds", "0"]
    every = ["--parameter", "bases_above=0", "--parameter", "bases_budget=8"]
    found = figures(tmp_path, inputs, *methods, *every, "--parameter", "bases=2")
    # The parameters go to both: the paper's form is where they start from.
    assert found["bwnh_as_published.bits_per_weight"] == found["bwnh.bits_per_weight"] == 2
    found = figures(tmp_path, inputs, *methods)
    assert found["bwnh_as_published.bits_per_weight"] == 1
    assert not any(name.endswith((".spread", ".seed0")) for name in found)


def test_methods_are_the_variants_of_the_papers_tables() -> None:
    methods = methods_of("bwnh_as_published, bwn", {"sweeps": 3})
    assert methods == {
        "bwnh_as_published": {**bwnh_as_published(), "sweeps": 3},
        "bwn": {"name": "bwn"},
    }
    with pytest.raises(InvalidSpec, match="xnor"):
        methods_of("xnor", {})


def test_a_parameter_goes_to_the_methods_that_have_it() -> None:
    given = {"sweeps": 2}
    assert method_parameters("bwnh", given, ["bwn", "bwnh"]) == given
    assert method_parameters("bwn", given, ["bwn", "bwnh"]) == {}
    with pytest.raises(InvalidSpec, match="swepes"):
        method_parameters("bwnh", {"swepes": 2}, ["bwn", "bwnh"])
