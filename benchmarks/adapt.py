"""Train a full-precision network on: ``python -m benchmarks.adapt --help``.

A checkpoint that was trained on other images than those at hand answers worse than it could, and
binarization would then be measured against too low a mark. This command adapts it by a short
training with the labels, in full precision, and keeps the result as a checkpoint. Of several seeds
the validation split chooses; the test split is used once, for the figures.
"""

import json as json_format
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors.torch import save_file
from torch import nn

from benchmarks.compression import (
    accuracy_on,
    console,
    load_network,
    read_images,
)
from benchmarks.full_precision import train
from benchmarks.options import (
    CACHE,
    Architecture,
    ArchitectureParameters,
    Archive,
    Cache,
    Channels,
    Checkpoint,
    Json,
    Mean,
    Seeds,
    Size,
    Std,
    Threads,
    ValueRange,
    network_members,
    run,
    seed_list,
)
from benchmarks.record import write_record
from store.specs import CompressSpec, parse_spec
from worker.data import Splits, split_dataset
from worker.fine_tuning import recipe_of
from worker.image_cache import DecodedDataset
from worker.networks import input_spec

# The split of the images: one for all seeds, so that their validation accuracies compare.
SPLIT_SEED = 0


@dataclass(frozen=True)
class Adapted:
    """A network trained with one seed, and the share of validation images it has right."""

    seed: int
    network: nn.Module
    validation: float


def adapt(network: nn.Module, splits: Splits, spec: CompressSpec) -> Adapted:
    """Return a copy of ``network``, trained as a job trains but by labels alone."""
    trained = train(network, splits.train, spec, f"seed {spec.seed}")
    return Adapted(spec.seed, trained, accuracy_on(trained, splits.val, input_spec(spec)))


def adapt_and_keep(
    spec: CompressSpec,
    checkpoint: Path,
    dataset: DecodedDataset,
    seeds: list[int],
    output: Path,
) -> dict[str, float]:
    """Train with every seed, keep the network that validation prefers; return the figures."""
    fed = input_spec(spec)
    network = load_network(spec, checkpoint, len(dataset.classes))
    splits = split_dataset(dataset, SPLIT_SEED)
    figures = {"validation.before": accuracy_on(network, splits.val, fed)}
    console.print(f"before: validation {figures['validation.before']:.4f}")
    best: Adapted | None = None
    for seed in seeds:
        adapted = adapt(network, splits, spec.model_copy(update={"seed": seed}))
        console.print(f"seed {seed}: validation {adapted.validation:.4f}")
        figures[f"validation.seed{seed}"] = adapted.validation
        if best is None or adapted.validation > best.validation:
            best = adapted
    assert best is not None
    keep(best, output, checkpoint.name, spec)
    figures["kept_seed"] = float(best.seed)
    figures["test.before"] = accuracy_on(network, splits.test, fed)
    figures["test.after"] = accuracy_on(best.network, splits.test, fed)
    console.print(
        f"seed {best.seed} kept: test {figures['test.before']:.4f} before, "
        f"{figures['test.after']:.4f} after"
    )
    return figures


def keep(adapted: Adapted, output: Path, source: str, spec: CompressSpec) -> None:
    """Write a checkpoint that says in its header what it was made from, and how.

    The recipe is written in full: what is a default today may be another one tomorrow.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "adapted_from": source,
        "architecture": spec.architecture,
        "seed": str(adapted.seed),
        "training": json_format.dumps(asdict(recipe_of(spec))),
    }
    save_file(adapted.network.state_dict(), output, metadata=about)


def main(
    architecture: Architecture,
    checkpoint: Checkpoint,
    dataset: Archive,
    output: Annotated[Path, typer.Option(help="The checkpoint to write, safetensors.")] = (
        CACHE / "adapted.safetensors"
    ),
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch_size: Annotated[int, typer.Option(min=2)] = 128,
    optimizer: Annotated[str, typer.Option(help="adam or sgd.")] = "sgd",
    learning_rate: Annotated[float, typer.Option()] = 0.03,
    weight_decay: Annotated[float, typer.Option()] = 1e-4,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    seeds: Seeds = "0",
    mean: Mean = "0.485,0.456,0.406",
    std: Std = "0.229,0.224,0.225",
    value_range: ValueRange = "0,1",
    size: Size = 32,
    channels: Channels = 3,
    architecture_parameter: ArchitectureParameters = None,
    cache: Cache = CACHE,
    threads: Threads = 0,
    json: Json = None,
) -> None:
    """Train a full-precision checkpoint on, with labels, on the images at hand."""
    training: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "distillation": 0.0,
        "feature_distillation": 0.0,
        "precision": precision,
    }
    network_and_input = network_members(
        architecture,
        architecture_parameter,
        channels=channels,
        size=size,
        value_range=value_range,
        mean=mean,
        std=std,
    )
    spec = parse_spec({**network_and_input, "method": {"name": "bwn"}, "fine_tune": training})
    numbers = seed_list(seeds)
    decoded = read_images(dataset, input_spec(spec), cache)
    figures = adapt_and_keep(spec, checkpoint, decoded, numbers, output)
    if json is not None:
        write_record(json, seed=numbers, figures=figures)


if __name__ == "__main__":
    run(main, trains=True)
