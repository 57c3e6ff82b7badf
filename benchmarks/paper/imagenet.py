"""What tables 2 and 3 share: ImageNet in its folders, at 224 pixels or another size.

The folder is ``{train,val}/<class>/<image>``; val is what is reported, and a tenth of train is held
out for trying things out. Nothing is decoded in advance. A full-precision checkpoint is given, or
trained first.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.compression import load_network
from benchmarks.full_precision import keep, train_new
from benchmarks.paper.workloads import Bench, Workload, load, read_dataset
from client.commands.options import names, pairs
from store.errors import InvalidSpec
from worker.networks import input_spec

Images = Annotated[
    Path,
    typer.Option(
        "--images", exists=True, file_okay=False, help="The folder, {train,val}/<class>/<image>."
    ),
]
FullPrecision = Annotated[
    Path | None,
    typer.Option("--checkpoint", exists=True, dir_okay=False, help="The full-precision network."),
]
FullEpochs = Annotated[
    int | None,
    typer.Option(
        "--full-precision-epochs",
        min=1,
        help="Without a checkpoint: how long the full-precision network is trained first.",
        show_default=False,
    ),
]
FullRate = Annotated[
    float, typer.Option("--full-precision-learning-rate", help="Of that training, by SGD.")
]
KeepFloat = Annotated[
    str, typer.Option(help="Comma-separated layers left in float; '' makes all binary.")
]
Size = Annotated[
    int,
    typer.Option(
        min=32, max=1024, help="Height and width of the input; the short side becomes 8/7 of it."
    ),
]

# ImageNet's usual training of a float network: a cosine from 0.1 for batches of 256, by labels.
_FULL_PRECISION = {
    "optimizer": "sgd",
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "label_smoothing": 0.1,
    "distillation": 0.0,
    "feature_distillation": 0.0,
    "augmentation": "random_resized_crop",
}


def with_options(
    workload: Workload,
    images: Path,
    checkpoint: Path | None,
    keep_float: str,
    size: int,
    recipe: Sequence[str],
) -> Workload:
    """Return a workload with what the command line says of it."""
    fed = {**workload.input, "height": size, "width": size, "resize": round(size * 8 / 7)}
    return replace(
        workload,
        images=images,
        checkpoint=checkpoint,
        keep_float=names([keep_float]),
        input=fed,
        fine_tune={**workload.fine_tune, **pairs(recipe)},
    )


def load_or_train(
    workload: Workload, epochs: int | None, learning_rate: float, cache: Path
) -> Bench:
    """Return the workload, its full-precision network trained first where no checkpoint is given.

    A trained network is kept in ``cache`` as a checkpoint.

    Raises:
        InvalidSpec: there is neither a checkpoint nor a number of epochs.
        BitpressError: images or checkpoint cannot be used.
    """
    if workload.checkpoint is not None:
        return load(workload, cache)
    if epochs is None:
        raise InvalidSpec(
            "There is no full-precision network to binarize.",
            field="--checkpoint",
            remedy="Give --checkpoint, or --full-precision-epochs to train one first.",
        )
    batch = workload.fine_tune["batch_size"]
    spec = workload.spec(
        {"name": "bwn"},
        fine_tune={
            **_FULL_PRECISION,
            "epochs": epochs,
            "batch_size": batch,
            "learning_rate": learning_rate,
        },
    )
    dataset = read_dataset(workload, cache)
    kept = cache / f"{workload.name}-{epochs}-epochs.safetensors"
    keep(train_new(dataset, spec), kept)
    # Read back as any other: from here on it is one.
    full = load_network(spec, kept, len(dataset.classes))
    return Bench(workload, full, dataset, input_spec(spec))
