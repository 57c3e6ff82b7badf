"""What 1-bit weights cost in accuracy: ``python -m benchmarks.accuracy --help``.

For every method: test accuracy of the full-precision network, of the calibrated one and of the
packed plan on the reference runtime; the loss of every layer after every sweep; the seconds and
the memory that calibration took. Figures are means over the seeds, which choose the calibration
images and positions.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table
from torch import nn

from benchmarks.record import peak_mib, reset_peak_memory, resident_mib, write_record
from client.commands.options import names, numbers, pairs
from models.artifact import Artifact, compression_ratio, write
from models.checkpoint_fit import check_fit, restore
from models.checkpoints import load as load_checkpoint
from models.layers import float32_bytes
from models.lowering import lower
from models.preprocessing import InputSpec
from models.runtime import load as load_runtime
from store.datasets import DatasetStore
from store.errors import BitpressError
from store.specs import CompressSpec, parse_spec
from worker.calibration import (
    CalibrationImages,
    apply_layer,
    calibrate_layer,
    layer_order,
    recalibrate_batch_norm,
)
from worker.data import ImageSet, Splits, calibration_images, split_dataset
from worker.evaluation import accuracy, predict_logits
from worker.image_cache import DecodedDataset, decode_dataset
from worker.networks import architecture_arguments, build_network, input_spec

console = Console()


@dataclass(frozen=True)
class Run:
    """What one method gave with one seed. Accuracies in 0..1, on that seed's test images."""

    full_precision: float
    calibrated: float
    packed: float
    ratio: float
    calibration_seconds: float
    peak_mib: float
    losses: dict[str, tuple[float, ...]]


@contextmanager
def progress(title: str) -> Iterator[Callable[[float, str], None]]:
    """Show a bar while a long part runs; it disappears when the part is done."""
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda fraction, message: bar.update(
            task, completed=fraction, description=f"{title}: {message}"
        )


def load_network(spec: CompressSpec, checkpoint: Path, classes: int) -> nn.Module:
    """Return the full-precision network in evaluation mode."""
    tensors = load_checkpoint(checkpoint)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_fit(shapes, spec.architecture, **architecture_arguments(spec, classes))
    network = build_network(spec, classes)
    restore(network, tensors)
    return network


def calibrate(
    network: nn.Module, images: CalibrationImages, spec: CompressSpec
) -> tuple[nn.Module, dict[str, tuple[float, ...]]]:
    """Return the binarized network and the losses of its layers."""
    binarized = copy.deepcopy(network)
    parameters = spec.method.own_parameters()
    losses: dict[str, tuple[float, ...]] = {}
    with progress(f"{spec.method.name}, seed {spec.seed}") as report:
        for name in layer_order(network, images.spec.shape):
            if name in spec.keep_float:
                continue
            layer = calibrate_layer(
                network,
                binarized,
                name,
                images,
                method=spec.method.name,
                parameters=parameters,
                seed=spec.seed,
                progress=report,
            )
            apply_layer(binarized, layer)
            losses[name] = layer.losses
        if spec.method.recalibrate_batch_norm:
            recalibrate_batch_norm(binarized, images, report)
    return binarized, losses


def measure(
    network: nn.Module,
    dataset: DecodedDataset,
    splits: Splits,
    full_precision: float,
    spec: CompressSpec,
) -> Run:
    """Calibrate, pack and evaluate once."""
    fed = input_spec(spec)
    chosen, _ = calibration_images(splits.train, spec.seed, spec.calibration_images)
    images = CalibrationImages(chosen, fed)
    reset_peak_memory()
    before, started = resident_mib(), time.perf_counter()
    binarized, losses = calibrate(network, images, spec)
    seconds, peak = time.perf_counter() - started, peak_mib() - before
    plan, tensors = lower(binarized, fed.shape)
    artifact = Artifact(plan, tensors, fed, dataset.classes, {}, {})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "artifact.safetensors"
        write(artifact, file)
        ratio = compression_ratio(float32_bytes(network), file)
    runtime = load_runtime(artifact, "reference")
    return Run(
        full_precision=full_precision,
        calibrated=test_accuracy(binarized, splits.test, fed),
        packed=test_accuracy(runtime.run, splits.test, fed),
        ratio=ratio,
        calibration_seconds=seconds,
        peak_mib=peak,
        losses=losses,
    )


def test_accuracy(
    predict: Callable[[torch.Tensor], torch.Tensor], images: ImageSet, spec: InputSpec
) -> float:
    """Return the share of ``images`` that ``predict`` classifies right."""
    with progress("evaluating") as report:
        return accuracy(predict_logits(predict, images, spec, report), images.labels)


def same_images(one: ImageSet, other: ImageSet) -> bool:
    """Whether two sets of one dataset hold the same images."""
    return np.array_equal(one.rows, other.rows)


def print_runs(runs: dict[str, list[Run]]) -> None:
    """Print the losses of the first seed, then the table of all methods."""
    for method, measured in runs.items():
        for layer, losses in measured[0].losses.items():
            if losses:
                console.print(
                    f"{method} {layer}: " + " ".join(f"{loss:.5f}" for loss in losses), style="dim"
                )
    table = Table()
    table.add_column("method")
    headings = ("float", "calibrated", "packed", "spread", "drop, %", "ratio", "s", "MiB")
    for heading in headings:
        table.add_column(heading, justify="right")
    for method, measured in runs.items():
        packed = [run.packed for run in measured]
        table.add_row(
            method,
            f"{fmean(run.full_precision for run in measured):.4f}",
            f"{fmean(run.calibrated for run in measured):.4f}",
            f"{fmean(packed):.4f}",
            f"{stdev(packed):.4f}" if len(packed) > 1 else "-",
            f"{100 * fmean(run.full_precision - run.packed for run in measured):.2f}",
            f"{measured[0].ratio:.2f}",
            f"{fmean(run.calibration_seconds for run in measured):.1f}",
            f"{max(run.peak_mib for run in measured):.0f}",
        )
    console.print(table)


def figures(runs: dict[str, list[Run]]) -> dict[str, float]:
    """Return the flat map of the JSON record: means over the seeds, of memory the highest."""
    every = [run for measured in runs.values() for run in measured]
    flat = {"full_precision": fmean(run.full_precision for run in every)}
    for method, measured in runs.items():
        for name in ("calibrated", "packed", "ratio", "calibration_seconds"):
            flat[f"{method}.{name}"] = fmean(getattr(run, name) for run in measured)
        # The highest: a later run finds memory that an earlier one has left to the process.
        flat[f"{method}.peak_mib"] = max(run.peak_mib for run in measured)
        for layer, losses in measured[0].losses.items():
            for sweep, loss in enumerate(losses):
                flat[f"{method}.loss.{layer}.sweep{sweep}"] = loss
    return flat


def main(
    architecture: Annotated[str, typer.Option(help="A registered architecture.")],
    checkpoint: Annotated[Path, typer.Option(exists=True, dir_okay=False)],
    dataset: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="A zip or tar.")],
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = "bwn,bwnh",
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0,1,2",
    recalibrate_batch_norm: Annotated[bool, typer.Option()] = False,
    mean: Annotated[str, typer.Option()] = "0.4914,0.4822,0.4465",
    std: Annotated[str, typer.Option()] = "0.2470,0.2435,0.2616",
    value_range: Annotated[str, typer.Option(help="What 0..255 becomes first.")] = "0,1",
    size: Annotated[int, typer.Option(help="Height and width of the input.")] = 32,
    channels: Annotated[int, typer.Option()] = 3,
    architecture_parameter: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Repeatable.")
    ] = None,
    keep_float: Annotated[str, typer.Option(help="Comma-separated layer names.")] = "",
    calibration_images: Annotated[int, typer.Option()] = 500,
    threads: Annotated[int, typer.Option(help="0: as many as there are cores.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Where to write the figures.")] = None,
) -> None:
    """Measure the accuracy of 1-bit weights, by method."""
    if threads:
        torch.set_num_threads(threads)
    seed_list = [int(seed) for seed in seeds.split(",")]

    def spec_of(method: str, seed: int) -> CompressSpec:
        return parse_spec(
            {
                "name": "benchmark",
                "architecture": architecture,
                "architecture_parameters": pairs(architecture_parameter or ()),
                "dataset": "benchmark",
                "input": {
                    "channels": channels,
                    "value_range": numbers(value_range),
                    "height": size,
                    "width": size,
                    "mean": numbers(mean),
                    "std": numbers(std),
                },
                "method": {"name": method, "recalibrate_batch_norm": recalibrate_batch_norm},
                "keep_float": names([keep_float]),
                "calibration_images": calibration_images,
                "seed": seed,
            }
        )

    try:
        specs = {name: [spec_of(name, seed) for seed in seed_list] for name in methods.split(",")}
        first = next(iter(specs.values()))[0]
        with tempfile.TemporaryDirectory() as folder, progress("reading images") as report:
            store = DatasetStore(Path(folder))
            store.ingest(dataset, "benchmark")
            cache = Path(folder) / "cache"
            # Memory-mapped: the pixels stay readable after the folder is gone.
            decoded = decode_dataset(store, "benchmark", input_spec(first), cache, report)
        network = load_network(first, checkpoint, len(decoded.classes))
        # Splits that the dataset does not bring are drawn with the seed.
        splits = {seed: split_dataset(decoded, seed) for seed in seed_list}
        full_precision: dict[int, float] = {}
        for seed, parts in splits.items():
            known = (one for one in full_precision if same_images(splits[one].test, parts.test))
            earlier = next(known, None)
            full_precision[seed] = (
                test_accuracy(network, parts.test, input_spec(first))
                if earlier is None
                else full_precision[earlier]
            )
            console.print(f"full precision, seed {seed}: {full_precision[seed]:.4f}")
        runs: dict[str, list[Run]] = {}
        for name, of_method in specs.items():
            runs[name] = []
            for spec in of_method:
                seed = spec.seed
                run = measure(network, decoded, splits[seed], full_precision[seed], spec)
                runs[name].append(run)
                console.print(
                    f"{name}, seed {seed}: calibrated {run.calibrated:.4f}, "
                    f"packed {run.packed:.4f}, {run.calibration_seconds:.1f} s"
                )
    except BitpressError as error:
        console.print(f"{error.title}: {error.detail} {error.remedy or ''}", style="red")
        raise typer.Exit(1) from None
    print_runs(runs)
    if json is not None:
        write_record(json, seed=seed_list, figures=figures(runs))


if __name__ == "__main__":
    typer.run(main)
