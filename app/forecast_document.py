"""What a dry run answers: how large the model will be, how long the job takes, what it needs."""

from typing import Literal

from pydantic import BaseModel, Field


class ForecastLayer(BaseModel):
    """A convolution or linear layer, and how it will be stored."""

    name: str
    kind: Literal["conv2d", "linear"]
    shape: list[int] = Field(
        description="Of its weight: filters, channels of a group and kernel, or outputs and inputs."
    )
    weights: int = Field(ge=0)
    binary: bool = Field(description="Whether its weights become bits; false: it stays in float.")
    bits: int = Field(
        ge=1,
        le=32,
        description="Bits of a weight: 32 in float; above 1 where a method gives it further bases, "
        "as many as are usual.",
    )
    packed_bytes: int = Field(ge=0, description="Of its tensors in the artifact.")


class ForecastImages(BaseModel):
    """How many images each part of the job looks at."""

    train: int = Field(ge=0)
    val: int = Field(ge=0)
    test: int = Field(ge=0)
    calibration: int = Field(ge=0, description="Without their mirrored copies.")


class ForecastBasis(BaseModel):
    """What the seconds and the memory rest on."""

    threads: int = Field(ge=1, description="As many as this machine has cores.")
    multiply_accumulates_per_second: float = Field(
        gt=0, description="Of a product of float32 matrices, measured on this machine."
    )
    multiply_accumulates_per_image: int = Field(ge=0, description="Of the whole network.")
    runtime: str = Field(description="The runtime that serves here.")
    images: ForecastImages
    assumptions: list[str] = Field(description="What was taken for granted, in words.")


class Forecast(BaseModel):
    """What a job with this specification would make and take. Nothing of it was run."""

    architecture: str
    layers: list[ForecastLayer] = Field(description="In the order of execution.")
    parameters: int = Field(ge=0, description="Of the whole network.")
    float_bytes: int = Field(ge=0, description="All parameters and buffers in float32.")
    packed_bytes: int = Field(ge=0, description="The artifact's file, header included.")
    compression_ratio: float = Field(gt=0, description="float_bytes over packed_bytes.")
    seconds: dict[str, float] = Field(description="Of each stage that the job has, in order.")
    total_seconds: float = Field(ge=0)
    memory_bytes: int = Field(ge=0, description="The most that a process of a stage takes.")
    basis: ForecastBasis
