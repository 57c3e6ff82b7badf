"""What 8-bit activations cost beside 1-bit weights: ``python -m benchmarks.activations --help``.

A network is calibrated once; its packed plan then runs with float activations and with 8-bit ones,
whose scales are chosen in each of the ways there are. Which way is better is for the validation
split to say, which is the default; the test split is for the final figure.
"""

import copy
import time
from typing import Annotated

import numpy as np
import typer
from rich.table import Table
from torch import nn

from benchmarks.compression import calibrate, console, load_network, progress, read_images
from benchmarks.options import (
    CACHE,
    Architecture,
    ArchitectureParameters,
    Archive,
    Cache,
    Channels,
    Checkpoint,
    Json,
    KeepFloat,
    Mean,
    Size,
    Std,
    Threads,
    ValueRange,
    network_members,
    run,
)
from benchmarks.record import write_record
from client.commands.options import names
from models.artifact import Artifact
from models.lowering import lower
from models.quantization import quantize_inputs
from models.runtime import load as load_runtime
from store.specs import CompressSpec, parse_spec
from worker.activation_ranges import CHOICES, activation_scales
from worker.data import ImageSet, split_dataset
from worker.evaluation import Logits, accuracy, predict_logits
from worker.image_cache import DecodedDataset
from worker.networks import input_spec
from worker.stages.surroundings import chosen_for_calibration

FLOAT = "w1a32"


def measure(
    network: nn.Module, dataset: DecodedDataset, split: str, spec: CompressSpec
) -> dict[str, float]:
    """Calibrate once, run the plan with every kind of activations, and return the figures.

    ``<kind>.accuracy`` is that on the ``split``; of 8-bit kinds there is also ``agreement``, the
    share of images that are answered as with float activations, ``logit_error``, the squared
    difference relative to the squares of the logits, and ``scale_seconds``.
    """
    splits = split_dataset(dataset, spec.seed)
    evaluated: ImageSet = getattr(splits, split)
    images = chosen_for_calibration(splits.train, spec)
    binarized = calibrate(network, images, spec).network
    exact = logits_of(binarized, dataset, evaluated, spec, FLOAT)
    figures = {f"{FLOAT}.accuracy": accuracy(exact, evaluated.labels)}
    for choice in CHOICES:
        kind = f"w1a8_{choice}"
        started = time.perf_counter()
        with progress(kind) as report:
            scales = activation_scales(binarized, images, choice, report)
        figures[f"{kind}.scale_seconds"] = time.perf_counter() - started
        quantized = copy.deepcopy(binarized)
        quantize_inputs(quantized, scales)
        found = logits_of(quantized, dataset, evaluated, spec, kind)
        figures[f"{kind}.accuracy"] = accuracy(found, evaluated.labels)
        figures[f"{kind}.agreement"] = float(np.mean(found.argmax(1) == exact.argmax(1)))
        difference = (found.astype(np.float64) - exact) ** 2
        figures[f"{kind}.logit_error"] = float(difference.sum() / (exact**2).sum())
    return figures


def logits_of(
    network: nn.Module, dataset: DecodedDataset, images: ImageSet, spec: CompressSpec, title: str
) -> Logits:
    """Return the logits of the packed plan of ``network`` on the reference runtime."""
    fed = input_spec(spec)
    plan, tensors = lower(network, fed.shape)
    served = load_runtime(Artifact(plan, tensors, fed, dataset.classes, {}, {}), "reference")
    with progress(title) as report:
        return predict_logits(served.run, images, fed, report)


def print_figures(figures: dict[str, float]) -> None:
    """Print a row for each kind of activations."""
    table = Table()
    table.add_column("activations")
    for heading in ("accuracy", "against float, %", "agreement", "logit error", "s"):
        table.add_column(heading, justify="right")
    exact = figures[f"{FLOAT}.accuracy"]
    table.add_row(FLOAT, f"{exact:.4f}", "", "", "", "")
    for kind in (f"w1a8_{choice}" for choice in CHOICES):
        table.add_row(
            kind,
            f"{figures[f'{kind}.accuracy']:.4f}",
            f"{100 * (figures[f'{kind}.accuracy'] - exact):+.2f}",
            f"{figures[f'{kind}.agreement']:.4f}",
            f"{figures[f'{kind}.logit_error']:.2e}",
            f"{figures[f'{kind}.scale_seconds']:.1f}",
        )
    console.print(table)


def main(
    architecture: Architecture,
    checkpoint: Checkpoint,
    dataset: Archive,
    method: Annotated[str, typer.Option(help="Of the weights.")] = "bwnh",
    split: Annotated[str, typer.Option(help="val or test: what is measured on.")] = "val",
    seed: Annotated[int, typer.Option()] = 0,
    mean: Mean = "0.4914,0.4822,0.4465",
    std: Std = "0.2470,0.2435,0.2616",
    value_range: ValueRange = "0,1",
    size: Size = 32,
    channels: Channels = 3,
    architecture_parameter: ArchitectureParameters = None,
    keep_float: KeepFloat = "",
    calibration_images: Annotated[int, typer.Option()] = 500,
    cache: Cache = CACHE,
    threads: Threads = 0,
    json: Json = None,
) -> None:
    """Measure the accuracy of 8-bit activations, by how their scales are chosen."""
    if split not in ("val", "test"):
        raise typer.BadParameter(f"{split!r} is neither val nor test")
    network_and_input = network_members(
        architecture,
        architecture_parameter,
        channels=channels,
        size=size,
        value_range=value_range,
        mean=mean,
        std=std,
    )
    spec = parse_spec(
        {
            **network_and_input,
            "method": {"name": method},
            "keep_float": names([keep_float]),
            "calibration_images": calibration_images,
            "seed": seed,
        }
    )
    decoded = read_images(dataset, input_spec(spec), cache)
    network = load_network(spec, checkpoint, len(decoded.classes))
    figures = measure(network, decoded, split, spec)
    print_figures(figures)
    if json is not None:
        write_record(json, seed=seed, figures=figures)


if __name__ == "__main__":
    run(main)
