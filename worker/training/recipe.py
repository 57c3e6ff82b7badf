"""How a network is fine-tuned: the settings of one training run, and nothing of the job around it.

The fields are those of ``store.specs.FineTuning``, which documents and bounds them; a test holds
the two lists equal. They are repeated here so that training runs where pydantic is not installed.
"""

from dataclasses import dataclass
from typing import Literal

from store.errors import InvalidSpec

Schedule = Literal["cosine", "constant", "steps"]
LatentStart = Literal["magnitude", "mean_magnitude", "code"]
EstimatorName = Literal["plain", "clipped", "polynomial", "progressive"]
BatchNormMode = Literal["train", "frozen", "reestimate"]
Augmentation = Literal["none", "flip_and_shift", "random_resized_crop"]
TrainOn = Literal["train", "train_and_val"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """The settings of one training run, made as ``Recipe(**spec.fine_tune.model_dump())``."""

    epochs: int
    batch_size: int = 128
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup_epochs: float = 0.5
    schedule: Schedule = "cosine"
    drops: tuple[float, ...] = (0.5, 0.75, 0.9)
    latent_rate_factor: float | None = None
    latent: LatentStart = "magnitude"
    estimator: EstimatorName = "plain"
    distillation: float = 0.5
    temperature: float = 2.0
    feature_distillation: float = 1.0
    label_smoothing: float = 0.0
    batch_norm: BatchNormMode = "train"
    settle_epochs: int = 0
    average: float = 0.0
    binary_fractions: tuple[float, ...] | None = None
    train_on: TrainOn = "train"
    augmentation: Augmentation = "flip_and_shift"
    precision: Precision = "auto"


def check_batch(recipe: Recipe, images: int, processes: int) -> None:
    """Check that so many ``processes`` can make a step together on ``images``.

    Raises:
        InvalidSpec: there are fewer images than a batch has, or the batch cannot be divided.
    """
    size = recipe.batch_size
    if images < size:
        raise InvalidSpec(
            f"A batch of {size} is more than the {images} training images.",
            field="spec.fine_tune.batch_size",
            remedy=f"Ask for a batch_size of at most {images}.",
        )
    if size % processes:
        raise InvalidSpec(
            f"A batch of {size} cannot be divided among the {processes} processes that train here.",
            field="spec.fine_tune.batch_size",
            remedy=f"Ask for a multiple of {processes}.",
        )
