"""The training of a job, put together from its specification: the stage's and the benchmarks' way.

How training itself goes is in `worker.training`, which knows no specification.
"""

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.layers import BinaryConv2d, BinaryLinear
from store.specs import CompressSpec
from worker import data
from worker.data import ImageSet, Splits
from worker.methods import METHODS
from worker.networks import input_spec
from worker.training.images import TrainingImages
from worker.training.precision import uses_bfloat16
from worker.training.processes import this_device
from worker.training.recipe import Recipe
from worker.training.trainer import EpochFigures, Trainer


def recipe_of(spec: CompressSpec) -> Recipe:
    """Return the settings of the job's training, those of its method where it names none.

    Raises:
        ValueError: the specification asks for no training.
    """
    if spec.fine_tune is None:
        raise ValueError("the specification asks for no fine-tuning")
    recipe = Recipe(**spec.fine_tune.model_dump())
    if recipe.binary_fractions is not None:
        return recipe
    return replace(recipe, binary_fractions=METHODS[spec.method.name].binary_fractions)


def trained_split(splits: Splits, spec: CompressSpec) -> ImageSet:
    """Return the images that the job is trained on, as its recipe says."""
    return splits.train if recipe_of(spec).train_on == "train" else splits.train_and_val


def training_images(train: ImageSet, spec: CompressSpec) -> TrainingImages:
    """Return the job's training images, augmented as its recipe says."""
    return data.training_images(
        train, input_spec(spec), recipe_of(spec).augmentation, seed=spec.seed
    )


def start_training(
    full: nn.Module,
    calibrated: nn.Module,
    images: TrainingImages,
    spec: CompressSpec,
    *,
    device: torch.device | str | None = None,
) -> Trainer:
    """Return a trainer that has made no step yet, on ``device``: by default a GPU, if there is one.

    ``full`` is the teacher and gives the magnitudes of the latent weights; ``calibrated``, whose
    copy is trained, gives their signs. Both stay as they are.

    Raises:
        InvalidSpec: there are fewer images than a batch has.
    """
    return Trainer(
        calibrated,
        full,
        images,
        recipe_of(spec),
        METHODS[spec.method.name].rule,
        seed=spec.seed,
        float_weights=_float_weights(full, calibrated),
        device=device,
    )


def arithmetic_of(spec: CompressSpec, device: torch.device | None = None) -> dict[str, str]:
    """Return what the bits of a training depend on beside its input, where it takes place here.

    ``device``, cpu or cuda, and ``products``, the numbers they are computed in: float32 or
    bfloat16. Without a ``device`` it is that of `start_training` without one.
    """
    device = this_device() if device is None else device
    bfloat16 = uses_bfloat16(recipe_of(spec).precision, device)
    return {"device": device.type, "products": "bfloat16" if bfloat16 else "float32"}


def epoch_record(epoch: int, figures: EpochFigures) -> dict[str, Any]:
    """Return what a job records of its ``epoch``, the first being 1."""
    return {"epoch": epoch, **asdict(figures)}


def _float_weights(full: nn.Module, calibrated: nn.Module) -> dict[str, Tensor]:
    weights = {}
    for name, layer in calibrated.named_modules():
        if isinstance(layer, BinaryConv2d | BinaryLinear):
            weights[name] = full.get_parameter(f"{name}.weight".removeprefix(".")).detach()
    return weights
