"""Full-precision networks that are trained here, where no checkpoint will do."""

import hashlib
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from benchmarks.compression import console, train_epochs
from store.specs import CompressSpec
from worker.data import ImageSet, split_dataset
from worker.fine_tuning import recipe_of, training_images
from worker.image_cache import DecodedDataset
from worker.networks import build_network
from worker.training.rules import ScaledSignRule
from worker.training.trainer import Trainer


def train(
    network: nn.Module, images: ImageSet, spec: CompressSpec, title: str = "full precision"
) -> nn.Module:
    """Return a copy of ``network``, trained as a job trains but by labels alone.

    Raises:
        InvalidSpec: there are fewer images than a batch has.
    """
    recipe = recipe_of(spec)
    # There is no binary layer, so that the rule is never asked.
    trainer = Trainer(
        network,
        None,
        training_images(images, spec),
        recipe,
        ScaledSignRule(),
        seed=spec.seed,
        float_weights={},
    )
    return train_epochs(trainer, recipe.epochs, title).network


def train_new(dataset: DecodedDataset, spec: CompressSpec) -> nn.Module:
    """Return the architecture trained from random weights, on the train split of the seed."""
    untrained = build_network(spec, len(dataset.classes)).requires_grad_(True)
    return train(untrained, split_dataset(dataset, spec.seed).train, spec)


def keep(network: nn.Module, file: Path) -> None:
    """Write a checkpoint, all at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    save_file(network.state_dict(), unfinished)
    unfinished.replace(file)
    console.print(f"full-precision network kept: {file}")


def trained_once(dataset: DecodedDataset, spec: CompressSpec, cache: Path) -> Path:
    """Return the checkpoint that `train_new` leaves in ``cache``, trained where it is not there.

    Another specification, other names or other labels of images are another checkpoint.
    """
    described = hashlib.sha256(spec.model_dump_json().encode())
    described.update("\n".join(dataset.names).encode() + dataset.labels.tobytes())
    file = cache / f"{spec.name}-{described.hexdigest()[:16]}.safetensors"
    if not file.exists():
        keep(train_new(dataset, spec), file)
    return file
