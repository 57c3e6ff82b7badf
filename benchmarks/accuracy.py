"""What 1-bit weights cost in accuracy: ``python -m benchmarks.accuracy --help``.

For every method: accuracy of the full-precision network, of the calibrated one, of the fine-tuned
one where that is asked for, and of the packed plan on the reference runtime; the loss of every
layer after every sweep, and of every epoch; the bits for each binary weight; the seconds and the
memory that calibration took; the seconds and the speed of training. Figures are means over the
seeds, which choose the calibration images and positions. Everything is done by the job's own code.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from torch import nn

from benchmarks.accuracy_table import Run, figures, print_runs
from benchmarks.compression import (
    Calibration,
    Trained,
    accuracy_on,
    bits_per_weight,
    calibrate,
    console,
    fine_tune,
    layers_to_binarize,
    load_network,
    progress,
    read_images,
)
from benchmarks.options import (
    Architecture,
    ArchitectureParameters,
    Archive,
    Channels,
    Checkpoint,
    Json,
    KeepFloat,
    KeyValues,
    Mean,
    Seeds,
    Size,
    Std,
    Threads,
    ValueRange,
    network_members,
    seed_list,
)
from benchmarks.options import run as run_program
from benchmarks.paper.results import standard_error_note
from benchmarks.paper.variants import VARIANTS, chosen
from benchmarks.record import write_record
from client.commands.options import names, pairs
from models.artifact import Artifact, compression_ratio, write
from models.layers import float32_bytes
from models.lowering import lower
from models.preprocessing import InputSpec
from models.quantization import quantize_inputs
from models.runtime import load as load_runtime
from store.errors import InvalidSpec
from store.specs import METHODS, CompressSpec, parse_spec
from worker.activation_ranges import activation_scales
from worker.calibration_images import CalibrationImages
from worker.data import ImageSet, Splits, split_dataset
from worker.fine_tuning import trained_split
from worker.forms import channels_last, without_rounding
from worker.image_cache import DecodedDataset
from worker.networks import input_spec
from worker.stages.surroundings import chosen_for_calibration


@dataclass(frozen=True)
class Bench:
    """The full-precision network, the decoded images, and which split is reported on."""

    network: nn.Module
    dataset: DecodedDataset
    splits: Mapping[int, Splits]
    validation: bool

    def reported(self, seed: int) -> ImageSet:
        """Return the images on which a seed's accuracies are measured."""
        return self.splits[seed].val if self.validation else self.splits[seed].test


def measure(bench: Bench, spec: CompressSpec, full_precision: float) -> Run:
    """Compress once, as a job with ``spec`` does, and evaluate every form of the network."""
    fed, images = input_spec(spec), bench.reported(spec.seed)
    train = bench.splits[spec.seed].train
    unlabelled = chosen_for_calibration(train, spec)
    calibrated = calibrate(bench.network, unlabelled, spec)
    _round_activations(calibrated.network, unlabelled, spec)
    accuracies = {
        "full_precision": full_precision,
        "calibrated": _trained_accuracy(calibrated.network, images, fed),
    }
    network, trained = calibrated.network, None
    if spec.fine_tune is not None:
        seen = trained_split(bench.splits[spec.seed], spec)
        trained = fine_tune(bench.network, network, seen, spec)
        network = trained.network
        _round_activations(network, unlabelled, spec)
        accuracies["fine_tuned"] = _trained_accuracy(network, images, fed)
    packed = _packed(network, bench.dataset.classes, fed)
    accuracies["packed"] = accuracy_on(load_runtime(packed, "reference").run, images, fed)
    if spec.activation_bits < 32:
        unrounded = _packed(without_rounding(network), bench.dataset.classes, fed)
        accuracies["packed_float_activations"] = accuracy_on(
            load_runtime(unrounded, "reference").run, images, fed
        )
    return _run(spec.seed, accuracies, packed, _ratio(packed, bench.network), calibrated, trained)


def _run(
    seed: int,
    accuracies: Mapping[str, float],
    packed: Artifact,
    ratio: float,
    calibrated: Calibration,
    trained: Trained | None,
) -> Run:
    return Run(
        seed=seed,
        accuracies=accuracies,
        ratio=ratio,
        bits_per_weight=bits_per_weight(packed.plan),
        calibration_seconds=calibrated.seconds,
        peak_mib=calibrated.peak_mib,
        losses=calibrated.losses,
        fine_tuning_seconds=0.0 if trained is None else trained.seconds,
        epochs=() if trained is None else trained.epochs,
    )


def _round_activations(network: nn.Module, images: CalibrationImages, spec: CompressSpec) -> None:
    """Let ``network`` round what its layers are fed, where ``spec`` asks for it."""
    if spec.activation_bits < 32:
        with progress("levels of activations") as report:
            scales = activation_scales(network, images, spec.activation_scale, report)
        quantize_inputs(network, scales)


def _trained_accuracy(network: nn.Module, images: ImageSet, fed: InputSpec) -> float:
    return accuracy_on(channels_last(network), images, fed)


def _packed(network: nn.Module, classes: tuple[str, ...], fed: InputSpec) -> Artifact:
    plan, tensors = lower(network, fed.shape)
    return Artifact(plan, tensors, fed, classes, {}, {})


def _ratio(packed: Artifact, full: nn.Module) -> float:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "artifact.safetensors"
        write(packed, file)
        return compression_ratio(float32_bytes(full), file)


def method_parameters(method: str, given: Mapping[str, Any], methods: Sequence[str]) -> Any:
    """Return the parameters among those ``given`` that ``method`` has.

    Raises:
        InvalidSpec: none of the ``methods`` has one of them.
    """
    for key in given:
        if not any(key in METHODS[one].model_fields for one in methods if one in METHODS):
            raise InvalidSpec(
                f"None of the methods {', '.join(methods)} has a parameter {key!r}.",
                field="--parameter",
                remedy="docs/API.md lists what there is.",
            )
    known = METHODS[method].model_fields if method in METHODS else {}
    return {key: value for key, value in given.items() if key in known}


def methods_of(keys: str, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the methods of a comma-separated list of variants, with the parameters ``given``.

    Raises:
        InvalidSpec: there is no such variant, or none of them has one of the parameters.
    """
    variants = chosen(",".join(names([keys])))
    called = [str(variant.method["name"]) for variant in variants]
    return {
        variant.key: {**variant.method, **method_parameters(name, given, called)}
        for variant, name in zip(variants, called, strict=True)
    }


def upto(network: nn.Module, spec: CompressSpec, count: int | None) -> CompressSpec:
    """Return ``spec`` with only the first ``count`` of its layers binarized."""
    if count is None:
        return spec
    rest = layers_to_binarize(network, spec)[count:]
    return spec.model_copy(update={"keep_float": (*spec.keep_float, *rest)})


def full_precisions(bench: Bench, fed: InputSpec) -> dict[int, float]:
    """Return the network's accuracy by seed, measured once for equal images."""
    found: dict[int, float] = {}
    for seed in bench.splits:
        rows = bench.reported(seed).rows
        known = (one for one in found if np.array_equal(bench.reported(one).rows, rows))
        earlier = next(known, None)
        found[seed] = (
            _trained_accuracy(bench.network, bench.reported(seed), fed)
            if earlier is None
            else found[earlier]
        )
        console.print(f"full precision, seed {seed}: {found[seed]:.4f}")
    return found


def main(
    architecture: Architecture,
    checkpoint: Checkpoint,
    dataset: Archive,
    methods: Annotated[
        str, typer.Option(help="Comma-separated, of: " + ", ".join(VARIANTS) + ".")
    ] = "bwn,bwnh",
    seeds: Seeds = "0,1,2",
    parameter: Annotated[
        KeyValues,
        typer.Option(metavar="KEY=VALUE", help="Of the methods that have it; repeatable."),
    ] = None,
    fine_tune_epochs: Annotated[int, typer.Option(help="0: no fine-tuning.")] = 0,
    fine_tune: Annotated[
        KeyValues, typer.Option(metavar="KEY=VALUE", help="Of the training; repeatable.")
    ] = None,
    activation_bits: Annotated[int, typer.Option(help="32 or 8.")] = 32,
    activation_scale: Annotated[str, typer.Option(help="Levels of 8 bits: mse, minmax.")] = "mse",
    layers_upto: Annotated[
        int | None, typer.Option(min=1, help="Binarize the first so many layers only.")
    ] = None,
    validation: Annotated[
        bool, typer.Option("--validation", help="Report on the validation split, to choose by it.")
    ] = False,
    mean: Mean = "0.4914,0.4822,0.4465",
    std: Std = "0.2470,0.2435,0.2616",
    value_range: ValueRange = "0,1",
    size: Size = 32,
    channels: Channels = 3,
    architecture_parameter: ArchitectureParameters = None,
    keep_float: KeepFloat = "",
    calibration_images: Annotated[int, typer.Option()] = 500,
    threads: Threads = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps decoded images for the next time.")
    ] = None,
    json: Json = None,
) -> None:
    """Measure the accuracy of 1-bit weights, by method."""
    network_and_input = network_members(
        architecture,
        architecture_parameter,
        channels=channels,
        size=size,
        value_range=value_range,
        mean=mean,
        std=std,
    )
    members = {
        **network_and_input,
        "keep_float": names([keep_float]),
        "calibration_images": calibration_images,
        "fine_tune": {"epochs": fine_tune_epochs, **pairs(fine_tune or ())},
        "activation_bits": activation_bits,
        "activation_scale": activation_scale,
    }
    if not fine_tune_epochs:
        del members["fine_tune"]
    seed_numbers = seed_list(seeds)
    specs = {
        name: [parse_spec({**members, "method": method, "seed": seed}) for seed in seed_numbers]
        for name, method in methods_of(methods, pairs(parameter or ())).items()
    }
    first = next(iter(specs.values()))[0]
    if validation and first.fine_tune is not None and first.fine_tune.train_on != "train":
        raise InvalidSpec(
            "The validation images cannot be reported on after training on them.",
            field="--validation",
            remedy="Leave it away, or train without train_on=train_and_val.",
        )
    with tempfile.TemporaryDirectory() as folder:
        # Memory-mapped: the pixels stay readable after the folder is gone.
        decoded = read_images(dataset, input_spec(first), cache or Path(folder))
    network = load_network(first, checkpoint, len(decoded.classes))
    # Splits that the dataset does not bring are drawn with the seed.
    splits = {seed: split_dataset(decoded, seed) for seed in seed_numbers}
    bench = Bench(network, decoded, splits, validation)
    before = full_precisions(bench, input_spec(first))
    runs: dict[str, list[Run]] = {name: [] for name in specs}
    for name, of_method in specs.items():
        for spec in of_method:
            run = measure(bench, upto(network, spec, layers_upto), before[spec.seed])
            runs[name].append(run)
            console.print(f"{name}, seed {spec.seed}: {run}")
    print_runs(runs)
    reported = bench.reported(seed_numbers[0])
    console.print(standard_error_note(len(reported), before[seed_numbers[0]]))
    if json is not None:
        write_record(json, seed=seed_numbers, figures=figures(runs))


if __name__ == "__main__":
    run_program(main, trains=True)
