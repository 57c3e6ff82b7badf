"""What a compression job is asked to do."""

from client.wire.model import Wire

Scalar = bool | int | float | str
Value = Scalar | list[Scalar]


class InputShape(Wire):
    """What the network is fed; a member left out takes the service's default.

    A pixel p in 0..255 becomes ``(low + (high - low) * p / 255 - mean[c]) / std[c]`` with
    ``value_range = (low, high)``.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    resize: int | None = None
    value_range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class CompressSpec(Wire):
    """A compression job as the caller asks for it; a member left out takes the service's default.

    ``method`` is the method's name under ``name`` together with its parameters;
    ``checkpoint`` is the digest of an earlier upload where no file is sent along; ``fine_tune`` has
    ``epochs`` and whatever else the service lists under FineTuning; ``max_accuracy_drop`` is the
    share of the validation images, in 0..1, that the packed model may get right less often.
    """

    name: str
    architecture: str
    architecture_parameters: dict[str, Value] | None = None
    checkpoint: str | None = None
    input: InputShape | None = None
    dataset: str
    method: dict[str, Value] | None = None
    keep_float: tuple[str, ...] | None = None
    calibration_images: int | None = None
    fine_tune: dict[str, Value] | None = None
    activation_bits: int | None = None
    activation_scale: str | None = None
    max_accuracy_drop: float | None = None
    seed: int | None = None

    def to_json(self) -> str:
        """Return the JSON text of what was set."""
        return self.model_dump_json(exclude_none=True)
