"""What a job is foreseen to come to."""

from pydantic import Field

from client.wire.model import Wire


class ForecastLayer(Wire):
    """A layer: ``shape`` and number of its weights, bits per weight, bytes in the artifact."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    binary: bool
    bits: float
    packed_bytes: int


class ForecastBasis(Wire):
    """What a forecast rests on; ``images`` counts those of each split, and of the calibration."""

    threads: int
    multiply_accumulates_per_second: float
    multiply_accumulates_per_image: float
    runtime: str
    images: dict[str, int] = Field(default_factory=dict)
    assumptions: tuple[str, ...] = ()


class Forecast(Wire):
    """A dry run: sizes are exact but for provenance, ``seconds`` by stage are an estimate.

    ``memory_bytes`` is the most that the worker's stage processes hold at a time.
    """

    architecture: str
    layers: tuple[ForecastLayer, ...]
    parameters: int
    float_bytes: int
    packed_bytes: int
    compression_ratio: float
    seconds: dict[str, float]
    total_seconds: float
    memory_bytes: int
    basis: ForecastBasis
