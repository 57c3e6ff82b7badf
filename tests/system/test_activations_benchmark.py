"""``python -m benchmarks.activations``: every kind of activations is measured, and recorded."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file

from benchmarks import activations
from models import registry


@pytest.fixture
def options(tmp_path: Path) -> dict[str, object]:
    """Noisy images of three classes, and a network that has seen none of them."""
    rng = np.random.default_rng(0)
    archive, checkpoint = tmp_path / "images.zip", tmp_path / "net.safetensors"
    with zipfile.ZipFile(archive, "w") as file:
        for split, count in (("train", 40), ("test", 20)):
            for label, number in np.ndindex(3, count):
                pixels = rng.integers(60 * label, 100 + 60 * label, (8, 8)).astype(np.uint8)
                encoded = io.BytesIO()
                Image.fromarray(pixels).save(encoded, "png")
                file.writestr(f"{split}/c{label}/{number:03}.png", encoded.getvalue())
    torch.manual_seed(0)
    shape = {"channels": 1, "height": 8, "width": 8, "classes": 3, "parameters": {}}
    save_file(registry.build("digits_cnn", **shape).state_dict(), checkpoint)
    return {
        "architecture": "digits_cnn",
        "checkpoint": checkpoint,
        "dataset": archive,
        "cache": tmp_path / "cache",
        "json": tmp_path / "record.json",
        "method": "bwn",
        "mean": "0.5",
        "std": "0.25",
        "channels": 1,
        "size": 8,
        "calibration_images": 30,
    }


@pytest.mark.parametrize("split", ["val", "test"])
def test_kinds_of_activations_are_compared(
    options: dict[str, object], split: str, tmp_path: Path
) -> None:
    activations.main(**{**options, "split": split})
    figures = json.loads((tmp_path / "record.json").read_text())["figures"]
    kinds = {"w1a32", "w1a8_mse", "w1a8_minmax"}
    assert {name.partition(".")[0] for name in figures} == kinds
    assert all(0 <= figures[f"{kind}.accuracy"] <= 1 for kind in kinds)
    for kind in kinds - {"w1a32"}:
        assert 0.9 < figures[f"{kind}.agreement"] <= 1
        assert 0 < figures[f"{kind}.logit_error"] < 1e-2


def test_calibration_is_a_jobs(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(Exception):
        """Carries the calibration images out of the command."""

    def calibrate(network: object, images: object, spec: object) -> None:
        raise Seen(images, spec)

    monkeypatch.setattr(activations, "calibrate", calibrate)
    with pytest.raises(Seen) as seen:
        activations.main(**{**options, "method": "bwnh"})
    images, spec = seen.value.args
    assert images.mirror and spec.method.mirror_images
    assert len(images) == 2 * 30


def test_another_split_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(typer.BadParameter, match="neither"):
        activations.main(**{**options, "split": "train"})
