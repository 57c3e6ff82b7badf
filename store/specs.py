"""What a compression job is asked to do, and the catalogue of methods with their parameters.

Beside the data, the versions, the number of threads, the runtime and the kind of processor that do
the arithmetic, a job depends on nothing else: where all of these are equal, so are the artifacts,
byte for byte. With activations of float32 the runtime's set of kernels is one of them, where
BITPRESS_CPU_KERNELS or another build changes it. Fine-tuning on GPUs is the exception.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from store.errors import InvalidSpec
from store.fine_tuning import FineTuning as FineTuning

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
LayerName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

LEAST_CORRECTION = 0.0001


class _Strict(BaseModel):
    """A misspelt field is an error, not a default.

    Lists end at their first fault: of a caller's hundred thousand, each would be described.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Method(_Strict):
    """What every method has in common: its name, and what follows after its last layer."""

    name: str
    recalibrate_batch_norm: Literal["never", "end", "each_layer"] = Field(
        default="never",
        description="When batch-norm statistics are re-estimated on the calibration images: never, "
        "at the end, or behind each layer before the next is fitted.",
    )

    mirror_images: bool = Field(
        default=False, description="Calibrate on a mirrored copy of every calibration image too."
    )

    @field_validator("recalibrate_batch_norm", mode="before")
    @classmethod
    def _as_it_was_said_before(cls, value: object) -> object:
        # It was a boolean once, and is in jobs that were queued then.
        return {True: "end", False: "never"}[value] if isinstance(value, bool) else value

    def own_parameters(self) -> dict[str, Any]:
        """Return the keyword parameters of the method's code."""
        return self.model_dump(exclude=set(_Method.model_fields))


class BwnParameters(_Method):
    """BWN (Rastegari et al., XNOR-Net, ECCV 2016): sign and mean magnitude, no data needed."""

    name: Literal["bwn"] = "bwn"


class BwnhParameters(_Method):
    """BWNH (Hu, Wang and Cheng, AAAI 2018): binary codes by hashing, layer by layer."""

    name: Literal["bwnh"] = "bwnh"
    mirror_images: bool = Field(
        default=True, description="Calibrate on a mirrored copy of every calibration image too."
    )
    sweeps: int = Field(
        default=20,
        ge=0,
        le=100,
        description="Most passes over a layer's bits; it ends earlier once no bit turns.",
    )
    target: Literal["full_precision", "binarized"] = Field(
        default="full_precision",
        description="The input on which a layer's target responses are computed: of the "
        "full-precision network, or of the one binarized so far.",
    )
    blocks: bool = Field(
        default=False,
        description="A layer that ends a residual block aims at the block's result, not its own.",
    )
    scale: bool = Field(default=True, description="Learn a scale per filter; false fixes it at 1.")
    offset: bool = Field(
        default=True, description="Learn an offset per filter, which becomes part of the bias."
    )
    correction: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        description="Above 0 (from 0.0001), aim at what real-valued weights can do with the "
        "binarized network's input; how firmly they are held to the float weights, relative to the "
        "mean diagonal of the inputs' Gram matrix. 0: aim at the full-precision responses.",
    )
    ridge: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        description="Weight of the squared distance to the float weights, relative to the mean "
        "diagonal of the inputs' Gram matrix.",
    )
    positions: int = Field(
        default=65_536,
        ge=1_024,
        le=16_777_216,
        description="Most output positions of a layer that enter its statistics.",
    )
    starts: tuple[Literal["sign", "greedy", "random"], ...] = Field(
        default=("sign",),
        fail_fast=True,
        min_length=1,
        max_length=16,
        description="Where the search begins; of several, each filter keeps its best.",
    )
    eliminate_scale: bool = Field(
        default=True,
        description="Judge a bit at the scale that would be best once it is turned, not at the "
        "present one.",
    )
    bit_pairs: int = Field(
        default=0,
        ge=0,
        le=512,
        description="So many bits of a filter are tried in pairs once no single one turns.",
    )
    bases: int = Field(
        default=4,
        ge=1,
        le=8,
        description="Most bases of a layer, each with codes and scales of its own.",
    )
    bases_above: float = Field(
        default=0.015,
        ge=0,
        le=1,
        description="A layer, in the order of execution, gets a further basis while its relative "
        "loss is above this and bases_budget allows.",
    )
    bases_budget: float = Field(
        default=0.025,
        ge=0,
        le=8,
        description="Most bits of all further bases together, as a share of the network's "
        "convolution and linear weights.",
    )

    @field_validator("correction")
    @classmethod
    def _none_or_felt(cls, correction: float) -> float:
        if 0 < correction < LEAST_CORRECTION:
            # Less would be lost in the rounding of the Gram matrix.
            raise ValueError(f"correction is 0 or at least {LEAST_CORRECTION}")
        return correction


class BinaryConnectParameters(_Method):
    """BinaryConnect (Courbariaux et al., NeurIPS 2015): signs alone, no scale."""

    name: Literal["binary_connect"] = "binary_connect"


class SqBwnParameters(_Method):
    """SQ-BWN (Dong et al., BMVC 2017): ever more filters are binary while the network trains.

    How many, and when, is `FineTuning.binary_fractions`.
    """

    name: Literal["sq_bwn"] = "sq_bwn"


class HwgqBwnParameters(_Method):
    """The weights of HWGQ (Cai et al., CVPR 2017): BWN with the identity as gradient."""

    name: Literal["hwgq_bwn"] = "hwgq_bwn"


MethodParameters = Annotated[
    BinaryConnectParameters | BwnParameters | BwnhParameters | HwgqBwnParameters | SqBwnParameters,
    Field(discriminator="name"),
]

METHODS: Mapping[str, type[_Method]] = {
    "binary_connect": BinaryConnectParameters,
    "bwn": BwnParameters,
    "bwnh": BwnhParameters,
    "hwgq_bwn": HwgqBwnParameters,
    "sq_bwn": SqBwnParameters,
}


class InputShape(_Strict):
    """What the network is fed: ``(channels, height, width)`` and how pixels become numbers.

    A pixel p in 0..255 becomes ``(low + (high - low) * p / 255 - mean[c]) / std[c]``.
    """

    channels: Literal[1, 3] = Field(default=3, description="Of grey images or of colour.")
    height: int = Field(default=32, ge=4, le=1024, description="Pixels.")
    width: int = Field(default=32, ge=4, le=1024, description="Pixels.")
    resize: int | None = Field(
        default=None,
        ge=4,
        le=4096,
        description="Pixels of the short side to which an image is resized before its centre is "
        "cut out; absent: as small as the centre fits into it.",
    )
    value_range: tuple[Finite, Finite] = Field(
        default=(0.0, 1.0), description="What pixels 0 and 255 become."
    )
    mean: tuple[Finite, ...] = Field(
        default=(),
        fail_fast=True,
        max_length=3,
        description="Of each channel, in the value range; by default 0.",
    )
    std: tuple[Positive, ...] = Field(
        default=(),
        fail_fast=True,
        max_length=3,
        description="Standard deviation of each channel; by default 1.",
    )

    @model_validator(mode="before")
    @classmethod
    def _neutral_normalisation(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            channels = data.get("channels", 3)
            count = channels if channels in (1, 3) else 3
            return {"mean": (0.0,) * count, "std": (1.0,) * count, **data}
        return data

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> "InputShape":
        for field in ("mean", "std"):
            if len(getattr(self, field)) != self.channels:
                raise ValueError(f"{field} needs one value per channel, that is {self.channels}")
        if not self.value_range[0] < self.value_range[1]:
            raise ValueError("value_range needs its low end below its high end")
        if self.resize is not None and self.resize < max(self.height, self.width):
            raise ValueError("resize must not be less than height and width")
        return self


class CompressSpec(_Strict):
    """A compression job: which checkpoint, as which network, with which data and method."""

    name: Name = Field(
        description="The model's name; each job that succeeds publishes its next version."
    )
    architecture: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        description="A registered network."
    )
    architecture_parameters: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="`width` for vgg9, `shortcut` (A or B) for resnet20 to resnet56.",
    )
    checkpoint: Digest | None = Field(
        default=None,
        description="Digest of an earlier upload; absent where the file is sent along.",
    )
    input: InputShape = Field(
        default_factory=InputShape, description="What the network is fed; by default 3 x 32 x 32."
    )
    dataset: Name = Field(description="A registered dataset; its classes are the network's.")
    method: MethodParameters = Field(
        default_factory=BwnhParameters,
        description="The method and its parameters; by default bwnh.",
    )
    keep_float: tuple[LayerName, ...] = Field(
        default=(),
        fail_fast=True,
        max_length=1000,
        description="Names of layers that are left in float; by default every layer is binarized.",
    )
    calibration_images: int = Field(
        default=500,
        ge=1,
        le=100_000,
        description="Images of the training split that the layers are calibrated on.",
    )
    fine_tune: FineTuning | None = Field(
        default=None, description="Training after calibration; absent: none."
    )
    activation_bits: Literal[32, 8] = Field(
        default=32,
        description="Of what binary layers are fed: 32 is float32, unrounded; 8 rounds to 256 "
        "levels.",
    )
    activation_scale: Literal["mse", "minmax"] = Field(
        default="mse",
        description="How the 256 levels follow from the calibration images: mse has the least "
        "squared error, minmax covers all that was seen.",
    )
    max_accuracy_drop: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="The accuracy gate: how much lower than that of full precision the packed "
        "network's share of right answers to the validation images may be, such as 0.02 for two "
        "points. A model that loses more is rejected: it keeps its report and is not published. "
        "Absent: no gate.",
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Of every random choice.")

    @field_validator("max_accuracy_drop")
    @classmethod
    def _judges_by_unseen_images(cls, drop: float | None, info: ValidationInfo) -> float | None:
        tuning: FineTuning | None = info.data.get("fine_tune")
        if drop is not None and tuning is not None and tuning.train_on != "train":
            raise ValueError(
                "the gate judges by the validation images, so that fine_tune.train_on must be train"
            )
        return drop

    @field_validator("keep_float")
    @classmethod
    def _each_once(cls, layers: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layers))


def parse_spec(data: Any) -> CompressSpec:
    """Validate ``data`` (a mapping, or JSON text) as a `CompressSpec`.

    Raises:
        InvalidSpec: naming the first offending field and what is allowed there.
    """
    try:
        if isinstance(data, str | bytes):
            return CompressSpec.model_validate_json(data)
        return CompressSpec.model_validate(data)
    except ValidationError as error:
        raise _first_fault(error) from None


def _first_fault(error: ValidationError) -> InvalidSpec:
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location = [str(part) for part in fault["loc"]]
    if location[:1] == ["method"]:
        # The discriminator's tag stands between "method" and the parameter; users do not write it.
        location[1:2] = [part for part in location[1:2] if part not in METHODS]
    field = ".".join(["spec", *location])
    kind, message = fault["type"], fault["msg"].removeprefix("Value error, ") + "."
    if kind == "json_invalid":
        return InvalidSpec(
            f"spec is not JSON: {fault['msg']}", field="spec", remedy="Send a JSON object."
        )
    if kind == "extra_forbidden":
        known = _fields_beside(fault["loc"])
        return InvalidSpec(
            "There is no such field.", field=field, remedy="There are: " + ", ".join(known) + "."
        )
    if location == ["method"]:
        return InvalidSpec(
            "This names no method." if kind.startswith("union_tag") else message,
            field="spec.method" if kind == "model_attributes_type" else "spec.method.name",
            remedy='Give an object such as {"name": "bwnh"}; there are: '
            + ", ".join(METHODS)
            + ".",
        )
    if kind == "string_pattern_mismatch":
        return InvalidSpec("This is no valid value.", field=field, remedy=_remedy_for(location))
    return InvalidSpec(message, field=field, remedy="docs/API.md lists what is allowed.")


def _fields_beside(location: Sequence[int | str]) -> Iterable[str]:
    """Return the names of the fields that there are where an unknown one was found."""
    if location[0] == "method":
        return METHODS[str(location[1])].model_fields
    if len(location) == 1:
        return CompressSpec.model_fields
    return _OBJECTS[str(location[0])].model_fields


# The members of a specification that are objects themselves, beside the method.
_OBJECTS: Mapping[str, type[BaseModel]] = {"input": InputShape, "fine_tune": FineTuning}


def _remedy_for(location: list[str]) -> str:
    if location == ["checkpoint"]:
        return "Give sha256: and the 64 lower-case hexadecimal digits of an earlier upload."
    return (
        "Use 1 to 64 lower-case letters, digits, '.', '_' and '-', "
        "and begin with a letter or a digit."
    )
