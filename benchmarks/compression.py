"""Compression as the benchmarks do it: the job's own code, without its files and processes."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress as Bar
from torch import nn

from benchmarks.record import peak_mib, reset_peak_memory, resident_mib
from models.checkpoint_fit import check_fit, restore
from models.checkpoints import load as load_checkpoint
from models.layers import BinaryConv2d, BinaryLinear
from models.operators import Conv2d, Linear
from models.plan import Plan
from models.preprocessing import InputSpec
from store.datasets import DatasetStore
from store.digests import file_digest
from store.specs import CompressSpec
from worker.activations import layer_order
from worker.batch_norm import recalibrate_batch_norm
from worker.calibration import CalibratedLayer, calibrate_next
from worker.calibration_images import CalibrationImages
from worker.data import ImageSet
from worker.evaluation import accuracy, predict_logits
from worker.fine_tuning import start_training, training_images
from worker.frontier import Frontier
from worker.image_cache import DecodedDataset, decode_dataset
from worker.networks import architecture_arguments, build_network
from worker.progress import Progress
from worker.training.trainer import EpochFigures, Trainer

console = Console()


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Show a bar while a long part runs; it disappears when the part is done."""
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda fraction, message, _details=None: bar.update(
            task, completed=fraction, description=f"{title}: {message}"
        )


def read_images(archive: Path, spec: InputSpec, cache: Path) -> DecodedDataset:
    """Return the images of an archive, decoded; kept below ``cache`` for the next time.

    Raises:
        InvalidDataset, TooLarge: the archive cannot be used.
    """
    name = "images-" + file_digest(archive).removeprefix("sha256:")[:16]
    with progress("images") as report:
        report(0.0, f"reading {archive.name}")
        store = DatasetStore(cache / "datasets")
        store.ingest(archive, name)
        return decode_dataset(store, name, spec, cache / "decoded", report)


def load_network(spec: CompressSpec, checkpoint: Path, classes: int) -> nn.Module:
    """Return the full-precision network in evaluation mode.

    Raises:
        InvalidCheckpoint: the file cannot be read, or does not fit the architecture.
    """
    tensors = load_checkpoint(checkpoint)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_fit(shapes, spec.architecture, **architecture_arguments(spec, classes))
    network = build_network(spec, classes)
    restore(network, tensors)
    return network


@dataclass(frozen=True)
class Calibration:
    """A binarized network, the losses of its layers, and what making it took.

    ``losses`` are those of `worker.calibration.CalibratedLayer`, by layer in the order of
    execution. ``peak_mib`` is the memory held at most, above what was held before.
    """

    network: nn.Module
    losses: dict[str, tuple[float, ...]]
    seconds: float
    peak_mib: float


def calibrate(
    network: nn.Module, images: CalibrationImages, spec: CompressSpec, *, layers: int | None = None
) -> Calibration:
    """Return ``network`` binarized as ``spec`` says; with ``layers``, only its first so many."""
    reset_peak_memory()
    before, started = resident_mib(), time.perf_counter()
    binarized = copy.deepcopy(network)
    losses: dict[str, tuple[float, ...]] = {}
    frontier = Frontier(images.batches)
    with progress(f"{spec.method.name}, seed {spec.seed}") as report:
        names = layers_to_binarize(network, spec)[:layers]
        for name in names:
            layer = binarize_next(network, binarized, name, images, spec, report, frontier)
            losses[name] = layer.losses
        if spec.method.recalibrate_batch_norm == "end":
            recalibrate_batch_norm(binarized, images, report)
    return Calibration(
        binarized, losses, time.perf_counter() - started, max(peak_mib() - before, 0.0)
    )


def layers_to_binarize(network: nn.Module, spec: CompressSpec) -> list[str]:
    """Return the names of the layers that ``spec`` makes binary, in the order of execution."""
    shape = (spec.input.channels, spec.input.height, spec.input.width)
    return [name for name in layer_order(network, shape) if name not in spec.keep_float]


def binarize_next(
    network: nn.Module,
    binarized: nn.Module,
    name: str,
    images: CalibrationImages,
    spec: CompressSpec,
    report: Progress,
    frontier: Frontier | None = None,
) -> CalibratedLayer:
    """Binarize layer ``name`` of ``binarized`` in place, all layers before it being binary.

    ``frontier`` saves time where layer after layer is binarized, see `worker.frontier`.
    """
    return calibrate_next(
        network,
        binarized,
        name,
        images,
        method=spec.method.name,
        parameters=spec.method.own_parameters(),
        seed=spec.seed,
        progress=report,
        recalibrate=spec.method.recalibrate_batch_norm == "each_layer",
        frontier=frontier,
    )


def bits_per_weight(plan: Plan) -> float:
    """Return the bits for each weight of a plan's binary layers: 1 where all have one basis.

    Further bases count, scales and layers left in float do not; 0 without any binary layer.
    """
    weights = bits = 0
    for node in plan.nodes:
        if isinstance(node, Conv2d | Linear) and node.weight == "bits":
            count = prod(node.weight_shape([plan.shapes[source] for source in node.sources]))
            weights += count
            bits += node.bases * count
    return bits / weights if weights else 0.0


def bases_of(network: nn.Module) -> dict[str, int]:
    """Return the number of bases of every binary layer that has more than one, by its name."""
    return {
        name: layer.bases
        for name, layer in network.named_modules()
        if isinstance(layer, BinaryConv2d | BinaryLinear) and layer.bases > 1
    }


@dataclass(frozen=True)
class Trained:
    """A trained network in evaluation form, and what its training took.

    ``judged`` has what the judge said of the network after every epoch, where there was one.
    ``seconds`` are those of the epochs, without the judging.
    """

    network: nn.Module
    epochs: tuple[EpochFigures, ...]
    judged: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The seconds of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)


def fine_tune(
    full: nn.Module,
    calibrated: nn.Module,
    train: ImageSet,
    spec: CompressSpec,
    *,
    title: str | None = None,
    judge: Callable[[nn.Module], float] | None = None,
) -> Trained:
    """Train a calibrated network as ``spec.fine_tune`` says; both networks stay as they are.

    ``judge`` is called with the network, in evaluation form, after every epoch.

    Raises:
        InvalidSpec: the method, the batch size or the learning rate cannot be used.
    """
    assert spec.fine_tune is not None
    trainer = start_training(full, calibrated, training_images(train, spec), spec)
    return train_epochs(trainer, spec.fine_tune.epochs, title or spec.method.name, judge)


def train_epochs(
    trainer: Trainer,
    epochs: int,
    title: str,
    judge: Callable[[nn.Module], float] | None = None,
) -> Trained:
    """Train for so many epochs, saying after each how it went."""
    figures, judged = [], []
    for index in range(epochs):
        with progress(f"{title}, epoch {index + 1} of {epochs}") as report:
            figures.append(trainer.epoch(index, report))
        line = (
            f"{title}, epoch {index + 1} of {epochs}: loss {figures[-1].loss:.4f}, "
            f"{figures[-1].images_per_second:,.0f} images/s"
        )
        if judge is not None:
            judged.append(judge(trainer.finished()))
            line += f", accuracy {judged[-1]:.4f}"
        console.print(line)
    return Trained(trainer.finished(), tuple(figures), tuple(judged))


def accuracy_on(
    predict: Callable[[torch.Tensor], torch.Tensor], images: ImageSet, spec: InputSpec
) -> float:
    """Return the share of ``images``, in 0..1, that ``predict`` classifies right."""
    with progress("evaluating") as report:
        return accuracy(predict_logits(predict, images, spec, report), images.labels)
