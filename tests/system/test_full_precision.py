"""Full-precision networks that are trained where there is no checkpoint, on the digits."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import full_precision
from benchmarks.compression import accuracy_on, load_network
from benchmarks.full_precision import trained_once
from benchmarks.paper.workloads import WORKLOADS, Bench, find, load
from store.specs import CompressSpec
from worker.data import ImageSet
from worker.fine_tuning import training_images
from worker.networks import build_network
from worker.training.images import TrainingImages

LABELS_ALONE = {"distillation": 0.0, "feature_distillation": 0.0}
# Without shifts and mirrored copies, which no digit survives.
TRAINING = {"epochs": 3, "batch_size": 32, "augmentation": "none", **LABELS_ALONE}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return load(find("digits", None, None), tmp_path_factory.mktemp("cache"))


def spec_of(bench: Bench, **changes: Any) -> CompressSpec:
    return bench.workload.spec({"name": "bwn"}, fine_tune={**TRAINING, **changes})


def test_it_is_trained_once_on_the_images_of_train(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ImageSet] = []

    def spy(images: ImageSet, spec: CompressSpec) -> TrainingImages:
        seen.append(images)
        return training_images(images, spec)

    monkeypatch.setattr(full_precision, "training_images", spy)
    spec, splits = spec_of(bench), bench.splits(0)
    file = trained_once(bench.dataset, spec, tmp_path)
    assert trained_once(bench.dataset, spec, tmp_path) == file
    assert [set(images.names) for images in seen] == [set(splits.train.names)]
    assert [one.name for one in tmp_path.iterdir()] == [file.name]

    network = load_network(spec, file, len(bench.dataset.classes))
    untrained = build_network(spec, len(bench.dataset.classes))
    assert accuracy_on(network, splits.val, bench.fed) > 0.8
    assert accuracy_on(untrained, splits.val, bench.fed) < 0.3


def test_another_training_is_another_checkpoint(bench: Bench, tmp_path: Path) -> None:
    short = {"epochs": 1, "warmup_epochs": 0.0}
    files = {
        trained_once(bench.dataset, spec_of(bench, **short, learning_rate=rate), tmp_path)
        for rate in (1e-3, 2e-3)
    }
    assert len(files) == 2


def test_a_workload_without_a_checkpoint_says_how_it_is_trained() -> None:
    half = WORKLOADS["half-vgg9-cifar10"]
    spec = half.spec({"name": "bwn"}, fine_tune=half.full_precision)
    assert spec.fine_tune is not None and spec.fine_tune.epochs == 25
    assert spec.architecture_parameters == {"width": 0.5}
    assert next(build_network(spec, 10).parameters()).shape == (32, 3, 3, 3)
