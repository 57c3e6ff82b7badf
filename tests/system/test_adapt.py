"""``python -m benchmarks.adapt``: a checkpoint that was trained on other images learns these."""

import io
import json
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks import adapt
from models import registry
from store.errors import CheckpointMismatch
from worker.training.recipe import Recipe

ARCHITECTURE = {"channels": 1, "height": 8, "width": 8, "classes": 3, "parameters": {}}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Noisy stripes across, stripes along and squares, with train and test."""
    rng = np.random.default_rng(0)
    row, column = np.indices((8, 8))
    patterns = 60 + 120 * np.stack([row % 2, column % 2, (row + column) % 2])
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as file:
        for split, count in (("train", 60), ("test", 20)):
            for label, pattern in enumerate(patterns):
                for number in range(count):
                    pixels = (pattern + rng.normal(0, 20, (8, 8))).clip(0, 255).astype(np.uint8)
                    encoded = io.BytesIO()
                    Image.fromarray(pixels).save(encoded, "png")
                    file.writestr(f"{split}/c{label}/{number:03}.png", encoded.getvalue())
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A network that has seen nothing yet."""
    torch.manual_seed(0)
    path = tmp_path / "before.safetensors"
    save_file(registry.build("digits_cnn", **ARCHITECTURE).state_dict(), path)
    return path


def run(checkpoint: Path, archive: Path, folder: Path, **options: object) -> None:
    adapt.main(
        **{
            "architecture": "digits_cnn",
            "checkpoint": checkpoint,
            "dataset": archive,
            "output": folder / "after" / "adapted.safetensors",
            "json": folder / "record.json",
            "cache": folder / "cache",
            "epochs": 6,
            "batch_size": 16,
            "seeds": "3,4",
            "mean": "0.5",
            "std": "0.25",
            "channels": 1,
            "size": 8,
            "precision": "float32",
            **options,
        }
    )


def test_adapted_network_is_better_and_says_what_it_was_made_from(
    checkpoint: Path, archive: Path, tmp_path: Path
) -> None:
    run(checkpoint, archive, tmp_path)
    figures = json.loads((tmp_path / "record.json").read_text())["figures"]
    seeds = {seed: figures[f"validation.seed{seed}"] for seed in (3, 4)}
    assert seeds[int(figures["kept_seed"])] == max(seeds.values())
    assert figures["test.after"] > max(0.8, figures["test.before"])
    kept = tmp_path / "after" / "adapted.safetensors"
    before, after = load_file(checkpoint), load_file(kept)
    assert before.keys() == after.keys()
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
    assert not torch.equal(before["features.1.running_mean"], after["features.1.running_mean"])
    with safe_open(kept, framework="pt") as file:
        assert file.metadata()["adapted_from"] == checkpoint.name
        assert file.metadata()["seed"] == str(int(figures["kept_seed"]))
        recipe = json.loads(file.metadata()["training"])
    # Written in full, so that it still holds once another default is a better one.
    assert recipe.keys() == {field.name for field in fields(Recipe)}
    assert recipe["epochs"] == 6 and recipe["precision"] == "float32"
    # Trained by labels: the network as it was has no say in what it becomes.
    assert recipe["distillation"] == recipe["feature_distillation"] == 0


def test_a_checkpoint_of_another_network_is_refused(
    checkpoint: Path, archive: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointMismatch, match="resnet20"):
        run(checkpoint, archive, tmp_path, architecture="resnet20")
