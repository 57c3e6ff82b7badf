"""Train a full-precision network on: ``python -m benchmarks.adapt --help``.

A checkpoint that was trained on other images than those at hand answers worse than it could, and
binarization would then be measured against too low a mark. This command adapts it by a short
training with the labels, in full precision, and keeps the result as a checkpoint. Of several seeds
the validation split chooses; the test split is used once, for the figures.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file
from torch import nn

from benchmarks.compression import (
    accuracy_on,
    console,
    load_network,
    read_images,
    train_epochs,
)
from benchmarks.record import write_record
from client.commands.options import numbers, pairs
from store.errors import BitpressError
from store.specs import CompressSpec, parse_spec
from worker.data import Splits, split_dataset
from worker.fine_tuning import start_training, training_images
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
    """Return a copy of ``network``, trained as a job trains but with no layer binary."""
    # Its own teacher, which the recipe asks nothing.
    trainer = start_training(network, network, training_images(splits.train, spec), spec)
    assert spec.fine_tune is not None
    trained = train_epochs(trainer, spec.fine_tune.epochs, f"seed {spec.seed}").network
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
    """Write a checkpoint that says in its header what it was made from, and how."""
    assert spec.fine_tune is not None
    output.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "adapted_from": source,
        "architecture": spec.architecture,
        "seed": str(adapted.seed),
        "training": spec.fine_tune.model_dump_json(exclude_defaults=True),
    }
    save_file(adapted.network.state_dict(), output, metadata=about)


def main(
    architecture: Annotated[str, typer.Option(help="A registered architecture.")],
    checkpoint: Annotated[Path, typer.Option(exists=True, dir_okay=False)],
    dataset: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="A zip or tar.")],
    output: Annotated[Path, typer.Option(help="The checkpoint to write, safetensors.")],
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch_size: Annotated[int, typer.Option(min=2)] = 128,
    optimizer: Annotated[str, typer.Option(help="adam or sgd.")] = "sgd",
    learning_rate: Annotated[float, typer.Option()] = 0.03,
    weight_decay: Annotated[float, typer.Option()] = 1e-4,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0",
    mean: Annotated[str, typer.Option()] = "0.485,0.456,0.406",
    std: Annotated[str, typer.Option()] = "0.229,0.224,0.225",
    value_range: Annotated[str, typer.Option(help="What 0..255 becomes first.")] = "0,1",
    size: Annotated[int, typer.Option(help="Height and width of the input.")] = 32,
    channels: Annotated[int, typer.Option()] = 3,
    architecture_parameter: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Repeatable.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where decoded images are kept.")] = Path(
        "build/benchmarks"
    ),
    threads: Annotated[int, typer.Option(help="0: as many as there are cores.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Where to write the figures.")] = None,
) -> None:
    """Train a full-precision checkpoint on, with labels, on the images at hand."""
    if threads:
        torch.set_num_threads(threads)
    seed_list = [int(seed) for seed in seeds.split(",")]
    training: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "distillation": 0.0,
        "precision": precision,
    }
    try:
        spec = parse_spec(
            {
                "name": "adapt",
                "architecture": architecture,
                "architecture_parameters": pairs(architecture_parameter or ()),
                "dataset": "adapt",
                "input": {
                    "channels": channels,
                    "value_range": numbers(value_range),
                    "height": size,
                    "width": size,
                    "mean": numbers(mean),
                    "std": numbers(std),
                },
                "method": {"name": "bwn"},
                "fine_tune": training,
            }
        )
        decoded = read_images(dataset, input_spec(spec), cache)
        figures = adapt_and_keep(spec, checkpoint, decoded, seed_list, output)
    except BitpressError as error:
        console.print(f"{error.title}: {error.detail} {error.remedy or ''}", style="red")
        raise typer.Exit(1) from None
    if json is not None:
        write_record(json, seed=seed_list, figures=figures)


if __name__ == "__main__":
    typer.run(main)
