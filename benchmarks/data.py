"""Whether images come fast enough: ``python -m benchmarks.data --help``.

Decodes random and centre crops of images in files, and compares with the images per second at which
a ResNet-18 for 224 pixels is calibrated, trained and evaluated when its images lie decoded in
memory. Then it trains and evaluates from the files. Images are generated where none are given.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from torch import Tensor, nn

from benchmarks.compression import calibrate, console, progress
from benchmarks.options import Json, run
from benchmarks.record import write_record
from models.preprocessing import InputSpec
from store.specs import CompressSpec, parse_spec
from worker.calibration_images import CalibrationImages
from worker.data import ImageSet, in_memory, training_images
from worker.evaluation import predict_logits
from worker.fine_tuning import start_training
from worker.image_folder import open_image_folder
from worker.networks import build_network, input_spec
from worker.training.folder_images import FolderImages
from worker.training.images import TrainingImages

_CLASSES = 4
# Of the generated images. They are to cost what ImageNet's do: 500 x 375 pixels in about 110 KB.
_QUALITY, _NOISE = 92, 15.0
_BATCH = 32
# A network takes a hundred times as long for an image as decoding does: few of them are enough.
_NETWORK_IMAGES = 64
# Layers that are calibrated: the later ones read the images no more often.
_LAYERS = 4


@dataclass(frozen=True)
class Speed:
    """Images per second, and the processor time of an image in ms, that of all processes."""

    images_per_second: float
    cpu_ms: float


def measured(images: int, work: Callable[[], object]) -> Speed:
    """Do ``work``, which deals with so many images."""
    before, started = os.times(), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - started, os.times()
    return Speed(images / seconds, 1000 * (sum(after[:4]) - sum(before[:4])) / images)


def exhaust(items: Iterable[object]) -> None:
    """Take all items, and forget them."""
    for _ in items:
        pass


def generate(folder: Path, images: int, width: int, height: int) -> None:
    """Write JPEG files with shapes of every size and a camera's noise, in ``train/<class>/``."""
    for index in range(images):
        random = np.random.default_rng(index)
        pixels: NDArray[np.float64] = random.normal(128, _NOISE, (height, width, 3))
        for octave in range(1, 8):
            cells = random.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8)
            shapes = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
            pixels += (np.asarray(shapes, dtype=np.float64) - 127.5) * 0.7**octave
        target = folder / "train" / f"class{index % _CLASSES}" / f"{index:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(target, quality=_QUALITY)


class Waiting:
    """Training images that count the seconds for which the training waits for them."""

    def __init__(self, images: TrainingImages) -> None:
        self._images = images
        self.seconds = 0.0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def epoch(
        self, epoch: int, batch_size: int, *, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pass on the batches."""
        batches = self._images.epoch(epoch, batch_size, rank=rank, world=world)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch


class Counting:
    """Pixels that count how many images are read."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images
        self.count = 0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def pixels(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Pass on images ``start`` to ``stop``."""
        found = self._images.pixels(start, stop)
        self.count += len(found)
        return found


def decoding(images: ImageSet, fed: InputSpec, repeats: int) -> dict[str, Speed]:
    """Return how fast random crops and centre crops are decoded: the best of some repeats."""
    encoded, labels = images.dataset.encoded, images.dataset.labels
    assert encoded is not None
    count = len(images) // _BATCH * _BATCH
    found: dict[str, list[Speed]] = {}
    for repeat in range(repeats):
        for processes in sorted({1, len(os.sched_getaffinity(0))}):
            crops = FolderImages(
                encoded, labels, fed, seed=0, rows=images.rows, processes=processes
            )
            speed = measured(count, partial(exhaust, crops.epoch(repeat, _BATCH)))
            found.setdefault(f"random_crops.p{processes}", []).append(speed)
        speed = measured(len(images), partial(exhaust, images.batches(fed, _BATCH)))
        found.setdefault("centre_crops", []).append(speed)
    return {name: best(speeds) for name, speeds in found.items()}


def best(speeds: list[Speed]) -> Speed:
    """Return the fastest: what else runs on the machine only ever takes time."""
    return max(speeds, key=lambda speed: speed.images_per_second)


def calibration(network: nn.Module, images: ImageSet, spec: CompressSpec) -> Speed:
    """Return how fast calibration reads its images, mirrored ones with them, time and again."""
    source = Counting(images)
    fed = CalibrationImages(source, input_spec(spec), mirror=spec.method.mirror_images)
    speed = measured(1, partial(calibrate, network, fed, spec, layers=_LAYERS))
    return Speed(speed.images_per_second * source.count, speed.cpu_ms / source.count)


def evaluation(
    network: nn.Module, sources: dict[str, ImageSet], fed: InputSpec, repeats: int
) -> dict[str, Speed]:
    """Return how fast the network is evaluated on images in memory and in files, by turns."""
    found: dict[str, list[Speed]] = {name: [] for name in sources}
    for _ in range(repeats):
        for name, images in sources.items():
            with progress(f"evaluating from {name}") as report:
                work = partial(predict_logits, network, images, fed, report, batch_images=20)
                found[name].append(measured(len(images), work))
    return {name: best(speeds) for name, speeds in found.items()}


def training(
    network: nn.Module, sources: dict[str, ImageSet], spec: CompressSpec
) -> tuple[dict[str, Speed], float]:
    """Return how fast a binarized network is trained on images in memory and in files, by turns.

    The second result is the share of the time from files, in 0..1, for which training waits for
    images. The first epochs, in which memory is allotted, do not count.
    """
    fed, recipe = input_spec(spec), spec.fine_tune
    assert recipe is not None
    unlabelled = CalibrationImages(sources["memory"], fed, mirror=spec.method.mirror_images)
    binary = calibrate(network, unlabelled, spec).network
    augmented = {
        "memory": Waiting(training_images(sources["memory"], fed, "none", seed=0)),
        "files": Waiting(training_images(sources["files"], fed, "random_resized_crop", seed=0)),
    }
    trainers = {name: start_training(network, binary, one, spec) for name, one in augmented.items()}
    found: dict[str, list[Speed]] = {name: [] for name in sources}
    shares = []
    count = len(sources["files"]) // recipe.batch_size * recipe.batch_size
    for epoch in range(recipe.epochs):
        for name, trainer in trainers.items():
            augmented[name].seconds = 0.0
            with progress(f"training from {name}") as report:
                speed = measured(count, partial(trainer.epoch, epoch, report))
            if epoch:
                found[name].append(speed)
                if name == "files":
                    shares.append(augmented[name].seconds * speed.images_per_second / count)
    return {name: best(speeds) for name, speeds in found.items()}, min(shares)


def print_speeds(speeds: dict[str, Speed], waiting: float) -> None:
    """Print the table."""
    table = Table()
    table.add_column("")
    for heading in ("images/s", "processor time, ms"):
        table.add_column(heading, justify="right")
    for name, speed in speeds.items():
        table.add_row(name, f"{speed.images_per_second:.1f}", f"{speed.cpu_ms:.2f}")
    console.print(table)
    console.print(
        f"waiting for images while training from files: {100 * waiting:.1f} % of the time"
    )


def specification(method: str, epochs: int) -> CompressSpec:
    """Return the job that is measured: ResNet-18 with its first and last layer in float."""
    recipe = {"epochs": epochs, "batch_size": _BATCH, "augmentation": "random_resized_crop"}
    return parse_spec(
        {
            "name": "benchmark",
            "architecture": "resnet18",
            "dataset": "benchmark",
            "input": {
                "height": 224,
                "width": 224,
                "resize": 256,
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            },
            "method": {"name": method},
            "keep_float": ["conv1", "fc"],
            "fine_tune": recipe,
        }
    )


def main(
    folder: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="<split>/<class>/<image>; else generated."),
    ] = None,
    images: Annotated[int, typer.Option(min=64, help="How many to generate.")] = 256,
    size: Annotated[str, typer.Option(help="Of generated images: WIDTHxHEIGHT.")] = "500x375",
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    most: Annotated[int, typer.Option(min=64, help="Images of a folder that are used.")] = 1024,
    json: Json = None,
) -> None:
    """Measure how fast images are decoded, and whether training, calibration, evaluation wait."""
    width, height = (int(side) for side in size.split("x"))
    spec = specification("bwnh", repeats + 1)
    fed = input_spec(spec)
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            generate(Path(temporary), images, width, height)
        dataset = open_image_folder(folder or Path(temporary), fed)
        rows = np.random.default_rng(0).permutation(len(dataset.labels))[:most]
        speeds = decoding(ImageSet(dataset, rows), fed, repeats)
        files = ImageSet(dataset, rows[:_NETWORK_IMAGES])
        sources = {"memory": in_memory(files), "files": files}
        network = build_network(spec, len(dataset.classes))
        speeds["calibrate.memory"] = calibration(network, sources["memory"], spec)
        for name, speed in evaluation(network, sources, fed, repeats).items():
            speeds[f"evaluate.{name}"] = speed
        by_source, waiting = training(network, sources, specification("bwn", repeats + 1))
        for name, speed in by_source.items():
            speeds[f"train.{name}"] = speed
    print_speeds(speeds, waiting)
    if json is not None:
        figures = {f"{n}_images_per_second": s.images_per_second for n, s in speeds.items()}
        figures |= {f"{name}_cpu_ms": speed.cpu_ms for name, speed in speeds.items()}
        figures["train.files_waiting_share"] = waiting
        figures["threads"] = torch.get_num_threads()
        write_record(json, seed=0, figures=figures)


if __name__ == "__main__":
    run(main, trains=True)
