"""What is measured on: a network, its checkpoint, its images and how these are fed."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from benchmarks import digits
from benchmarks.compression import console, load_network, progress, read_images
from benchmarks.digits import training as digits_training
from benchmarks.full_precision import trained_once
from models.preprocessing import InputSpec
from store.errors import InvalidSpec
from store.specs import CompressSpec, parse_spec
from worker.calibration_images import CalibrationImages
from worker.data import ImageSet, Splits, split_dataset
from worker.forms import batch_images
from worker.image_cache import DecodedDataset
from worker.image_folder import open_image_folder
from worker.networks import input_spec
from worker.stages.surroundings import chosen_for_calibration

_SHARED = Path(os.environ.get("BITPRESS_SHARED", "../shared"))
_OWN = Path(__file__).resolve().parents[1] / "checkpoints"
_CIFAR_INPUT = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
_IMAGENET_MOMENTS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_IMAGENET_INPUT = {**_IMAGENET_MOMENTS, "height": 224, "width": 224, "resize": 256}
# Of the paper's section on experiments; it trains by labels alone. It decays latent weights too,
# which here have no decay, and crops at random from images of one size, not of many.
_PAPERS_TRAINING = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "steps",
    "warmup_epochs": 0.0,
    "distillation": 0.0,
    "feature_distillation": 0.0,
    "augmentation": "random_resized_crop",
}

_SEEN_BY_FULL_PRECISION = (
    "The full-precision network was itself trained on images of every seed's validation split, so "
    "that its own accuracy there is too high."
)


@dataclass(frozen=True)
class Workload:
    """A network and its data by name.

    ``checkpoint`` is a file and ``images`` an archive or a folder; None where they must be given,
    or, for the digits, where they are made on the spot. ``full_precision`` is how the checkpoint is
    trained where none is given. ``input``, ``keep_float``, ``parameters`` of the architecture and
    ``fine_tune``, which is how it is trained unless told otherwise, are members of a specification.
    ``about_validation`` is said wherever accuracies on the validation split are shown.
    """

    name: str
    title: str
    architecture: str
    input: Mapping[str, Any]
    checkpoint: Path | None = None
    images: Path | None = None
    keep_float: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    full_precision: Mapping[str, Any] = field(default_factory=dict)
    fine_tune: Mapping[str, Any] = field(default_factory=dict)
    about_validation: str = ""

    def spec(self, method: Mapping[str, Any], **members: Any) -> CompressSpec:
        """Return the specification of compressing this network by a method.

        ``members`` are further ones, such as ``seed``; a ``keep_float`` among them counts.

        Raises:
            InvalidSpec: a member or a parameter is not allowed, or the training would see the
                validation images, by which all is judged here.
        """
        spec = parse_spec(
            {
                "name": self.name,
                "architecture": self.architecture,
                "architecture_parameters": dict(self.parameters),
                "dataset": self.name,
                "input": dict(self.input),
                "keep_float": self.keep_float,
                "method": dict(method),
                **members,
            }
        )
        if spec.fine_tune is not None and spec.fine_tune.train_on != "train":
            raise InvalidSpec(
                "What is judged by the validation images cannot be trained on them.",
                field="fine_tune.train_on",
                remedy="Leave it away, or train with python -m benchmarks.accuracy.",
            )
        return spec


WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            "vgg9-cifar10",
            "VGG-9 on CIFAR-10 (JPEG copies)",
            "vgg9",
            _CIFAR_INPUT,
            _SHARED / "checkpoints/vgg9_cifar10.safetensors",
            _SHARED / "data/cifar10-jpeg.tar.xz",
            about_validation=_SEEN_BY_FULL_PRECISION,
        ),
        Workload(
            "resnet20-cifar10",
            "ResNet-20 on CIFAR-10 (JPEG copies)",
            "resnet20",
            _IMAGENET_MOMENTS,
            # The published one was trained on the original pixels; see that folder's README.
            _OWN / "resnet20_cifar10_jpeg.safetensors",
            _SHARED / "data/cifar10-jpeg.tar.xz",
            ("conv1", "linear"),
            about_validation=_SEEN_BY_FULL_PRECISION,
        ),
        Workload(
            "half-vgg9-cifar10",
            "VGG-9 of half the width on CIFAR-10 (JPEG copies)",
            "vgg9",
            _CIFAR_INPUT,
            images=_SHARED / "data/cifar10-jpeg.tar.xz",
            parameters={"width": 0.5},
            full_precision={
                "epochs": 25,
                "learning_rate": 3e-3,
                "weight_decay": 0.02,
                "label_smoothing": 0.1,
                "distillation": 0.0,
                "feature_distillation": 0.0,
            },
            about_validation="The full-precision network has not seen the validation split of seed "
            "0, but images of those of other seeds.",
        ),
        Workload("vgg9-cifar100", "VGG-9 on CIFAR-100", "vgg9", _CIFAR_INPUT),
        Workload(
            "alexnet-imagenet",
            "AlexNet on ImageNet",
            "alexnet",
            _IMAGENET_INPUT,
            keep_float=("features.0", "classifier.8"),
            fine_tune={
                **_PAPERS_TRAINING,
                "epochs": 40,  # 200,000 iterations
                "learning_rate": 1e-3,
                "drops": (0.5, 0.75, 0.9),
                "batch_size": 256,
            },
        ),
        Workload(
            "resnet18-imagenet",
            "ResNet-18 on ImageNet",
            "resnet18",
            _IMAGENET_INPUT,
            keep_float=("conv1", "fc"),
            fine_tune={
                **_PAPERS_TRAINING,
                "epochs": 65,  # 650,000 iterations
                "learning_rate": 5e-4,
                "drops": (200 / 650, 400 / 650, 600 / 650),
                "batch_size": 128,
            },
        ),
        Workload(
            "digits",
            "a small network on the bundled digits",
            digits_training.ARCHITECTURE,
            digits_training.INPUT.to_json(),
            # Mirrored, a digit is none; shifted by half its width, neither.
            fine_tune={"augmentation": "none", "batch_size": 64},
        ),
    )
}


@dataclass(frozen=True)
class Bench:
    """A workload, loaded: the full-precision network in evaluation mode, and the images."""

    workload: Workload
    network: nn.Module
    dataset: DecodedDataset
    fed: InputSpec
    _splits: dict[int, Splits] = field(default_factory=dict)

    @property
    def batch_images(self) -> int:
        """How many images are evaluated at once, which bounds the memory of their maps."""
        return batch_images(self.fed)

    def splits(self, seed: int) -> Splits:
        """Return train, val and test of a seed; the given ones are the same for every seed."""
        if seed not in self._splits:
            self._splits[seed] = split_dataset(self.dataset, seed)
        return self._splits[seed]

    def split(self, seed: int, name: str) -> ImageSet:
        """Return one of a seed's splits by the name it has on a page: validation or test."""
        return self.splits(seed).test if name == "test" else self.splits(seed).val

    def different(self, seeds: Iterable[int], name: str) -> list[ImageSet]:
        """Return one split of all seeds, each set of images once."""
        found: list[ImageSet] = []
        for images in (self.split(seed, name) for seed in seeds):
            if not any(np.array_equal(images.rows, known.rows) for known in found):
                found.append(images)
        return found

    def layer_titles(self, names: Iterable[str]) -> dict[str, str]:
        """Return a short title for each of some layers: conv1, conv2, ..., fc1, in their order."""
        counts: Counter[str] = Counter()
        titles = {}
        for name in names:
            kind = "conv" if isinstance(self.network.get_submodule(name), nn.Conv2d) else "fc"
            counts[kind] += 1
            titles[name] = f"{kind}{counts[kind]}"
        return titles

    def calibration_images(self, spec: CompressSpec) -> CalibrationImages:
        """Return the unlabelled images of a specification's seed, as a job chooses them."""
        return chosen_for_calibration(self.splits(spec.seed).train, spec)


def about_split(workload: Workload, split: str) -> list[str]:
    """Return a caption's paragraph on the split that is shown, where there is anything to say."""
    said = workload.about_validation if split == "validation" else ""
    return [said] if said else []


def find(name: str, checkpoint: Path | None, images: Path | None) -> Workload:
    """Return a workload by name, with other files where they are given.

    Raises:
        InvalidSpec: there is no such workload.
    """
    workload = WORKLOADS.get(name)
    if workload is None:
        raise InvalidSpec(
            f"There is no workload {name!r}.",
            field="workload",
            remedy="Use one of: " + ", ".join(WORKLOADS) + ".",
        )
    return replace(
        workload,
        checkpoint=checkpoint or workload.checkpoint,
        images=images or workload.images,
    )


def load(workload: Workload, cache: Path) -> Bench:
    """Read a workload's images and its network.

    Raises:
        InvalidSpec: a file is needed, or is not there.
        BitpressError: a file cannot be used.
    """
    spec = workload.spec({"name": "bwnh"})
    if workload.name == "digits":
        return Bench(workload, *_digits(workload), input_spec(spec))
    dataset = read_dataset(workload, cache)
    if workload.checkpoint is None and workload.full_precision:
        training = workload.spec({"name": "bwn"}, fine_tune=workload.full_precision)
        checkpoint = trained_once(dataset, training, cache / "full-precision")
    else:
        checkpoint = _existing(workload.checkpoint, "--checkpoint", workload)
    network = load_network(spec, checkpoint, len(dataset.classes))
    return Bench(workload, network, dataset, input_spec(spec))


def read_dataset(workload: Workload, cache: Path) -> DecodedDataset:
    """Return a workload's images: of an archive decoded, of a folder whenever they are read.

    Raises:
        InvalidSpec: there is no such archive or folder.
        BitpressError: it cannot be used.
    """
    fed = input_spec(workload.spec({"name": "bwnh"}))
    images = _existing(workload.images, "--dataset", workload)
    folder = images.is_dir()
    dataset = open_image_folder(images, fed) if folder else read_images(images, fed, cache)
    console.print(f"{workload.title}: {len(dataset.labels):,} images")
    return dataset


def _existing(path: Path | None, option: str, workload: Workload) -> Path:
    if path is None:
        raise InvalidSpec(
            f"What {workload.title} is measured on does not come along.",
            field=option,
            remedy=f"Give {option}.",
        )
    if not path.exists():
        raise InvalidSpec(
            f"There is no {path}.",
            field=option,
            remedy=f"Give {option}, or set BITPRESS_SHARED to the folder of the shared data.",
        )
    return path


def _digits(workload: Workload) -> tuple[nn.Module, DecodedDataset]:
    """Return the digits and a network trained on them, in seconds."""
    train, test = digits.split(digits.load())
    pixels = np.concatenate([train.pixels, test.pixels])
    labels = np.concatenate([train.labels, test.labels])
    names = tuple(f"{index:04}.png" for index in range(len(labels)))
    splits = {"train": range(len(train)), "test": range(len(train), len(labels))}
    epochs = 8
    with progress(workload.title) as report:
        network = digits_training.train(
            train,
            epochs=epochs,
            on_epoch=lambda done, loss: report(done / epochs, f"training, loss {loss:.3f}"),
        )
    return network.requires_grad_(False), DecodedDataset(
        pixels, labels, names, digits.CLASSES, splits
    )
