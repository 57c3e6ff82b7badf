"""What a job may say of fine-tuning.

`worker.training.recipe.Recipe` has the same fields for machines without pydantic; a test holds the
two equal.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class FineTuning(BaseModel):
    """Training of the binarized network with labels, and with the float network as its teacher.

    The latent weights, whose signs are the bits, start from the calibrated codes. The learning rate
    rises over ``warmup_epochs`` and then falls as ``schedule`` says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(ge=1, le=1000, description="Passes over the training images.")
    batch_size: int = Field(default=128, ge=2, le=8192, description="Images per step.")
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="Of the weights.")
    learning_rate: float = Field(
        default=1e-3, gt=0, le=10, allow_inf_nan=False, description="The highest."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of sgd.")
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Of layers kept in float; latent weights, scales and batch norm have none.",
    )
    warmup_epochs: float = Field(
        default=0.5,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="Epochs in which the learning rate rises; at most epochs less settle_epochs.",
    )
    schedule: Literal["cosine", "constant", "steps"] = Field(
        default="cosine", description="How it falls after that; cosine goes down to 0."
    )
    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.5, 0.75, 0.9),
        fail_fast=True,
        max_length=32,
        description="With the schedule steps: the shares of the training after each of which the "
        "learning rate falls to a tenth.",
    )
    latent_rate_factor: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        allow_inf_nan=False,
        description="What the learning rate of latent weights is multiplied by: the higher, the "
        "more bits turn. Absent: with adam as the method has it, 15 for bwnh (less in fewer than "
        "700 steps), Glorot's coefficient turned about for binary_connect, 1 for the others; with "
        "sgd 1, of a rate with which the weights move that latent weights stand for.",
    )
    latent: Literal["magnitude", "mean_magnitude", "code"] = Field(
        default="magnitude",
        description="Latent weights at the start: code times |w| over the filter's mean |w|, code "
        "times the filter's mean |w| over the layer's, or the code.",
    )
    estimator: Literal["plain", "clipped", "polynomial", "progressive"] = Field(
        default="plain", description="The gradient that stands in for that of the sign."
    )
    distillation: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Weight of the teacher's answers in the loss; the labels have the rest.",
    )
    temperature: float = Field(
        default=2.0, gt=0, le=100, allow_inf_nan=False, description="Of the teacher's answers."
    )
    feature_distillation: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="Weight of the relative squared error of every block's result.",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of a label that is spread over all classes."
    )
    batch_norm: Literal["train", "frozen", "reestimate"] = Field(
        default="train",
        description="train: statistics of the batch; frozen: the calibrated ones; reestimate: of "
        "the batch while training, at the end estimated over training images.",
    )
    settle_epochs: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Of the epochs, the last so many with all bits fixed: only scales, biases, "
        "batch norm and float layers are trained.",
    )
    average: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay per step of the moving average of all weights, which is what is kept; 0 "
        "keeps the last weights.",
    )
    binary_fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = Field(
        default=None,
        fail_fast=True,
        min_length=1,
        max_length=32,
        description="Stochastic quantisation: the share of each layer's filters that is binary in "
        "each of so many equally long parts of the training before bits are fixed, the last 1. "
        "Absent: all filters, always; for sq_bwn 0.5, 0.75, 0.875, 1.",
    )
    train_on: Literal["train", "train_and_val"] = Field(
        default="train",
        description="What is trained on. train_and_val leaves nothing to choose these members by: "
        "for the last training, once they are chosen. Not with max_accuracy_drop.",
    )
    augmentation: Literal["none", "flip_and_shift", "random_resized_crop"] = Field(
        default="flip_and_shift", description="Of the training images; shifts are of 4 pixels."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Of products while training; auto is bfloat16 where the processor computes in "
        "it.",
    )

    @field_validator("binary_fractions")
    @classmethod
    def _ends_binary(cls, fractions: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if fractions is not None and (list(fractions) != sorted(fractions) or fractions[-1] != 1):
            raise ValueError("binary_fractions must not fall, and must end with 1")
        return fractions

    @model_validator(mode="after")
    def _leaves_epochs_to_learn(self) -> "FineTuning":
        if self.settle_epochs >= self.epochs:
            raise ValueError("settle_epochs must be fewer than epochs")
        if self.warmup_epochs > self.epochs - self.settle_epochs:
            raise ValueError("warmup_epochs must not be more than epochs without settle_epochs")
        return self
