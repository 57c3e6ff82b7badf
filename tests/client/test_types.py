"""The client imports none of the other rooms; this holds its copy of the wire equal to theirs."""

from pydantic import BaseModel

from client import types
from store import specs


def members(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def test_a_specification_has_the_services_members() -> None:
    assert members(types.CompressSpec) == members(specs.CompressSpec)
    assert members(types.InputShape) == members(specs.InputShape)


def test_what_is_left_out_takes_the_services_default() -> None:
    spec = types.CompressSpec(name="a", architecture="vgg9", dataset="pets")
    assert specs.parse_spec(spec.to_json()) == specs.parse_spec(
        {"name": "a", "architecture": "vgg9", "dataset": "pets"}
    )


def test_every_member_arrives_as_it_was_set() -> None:
    spec = types.CompressSpec(
        name="a",
        architecture="vgg9",
        architecture_parameters={"width": 0.5},
        checkpoint="sha256:" + "0" * 64,
        input=types.InputShape(
            channels=1, height=8, width=9, resize=12, value_range=(-1, 1), mean=(0.5,), std=(0.25,)
        ),
        dataset="pets",
        method={"name": "bwnh", "sweeps": 3, "scale": False},
        keep_float=("conv1",),
        calibration_images=7,
        fine_tune={"epochs": 3, "optimizer": "sgd", "binary_fractions": [0.5, 1.0]},
        activation_bits=8,
        activation_scale="minmax",
        seed=5,
    )
    parsed = specs.parse_spec(spec.to_json())
    assert parsed.model_dump() == {
        **spec.model_dump(),
        "fine_tune": specs.FineTuning(
            epochs=3, optimizer="sgd", binary_fractions=(0.5, 1.0)
        ).model_dump(),
        "method": specs.BwnhParameters(sweeps=3, scale=False).model_dump(),
    }


def test_a_report_without_fine_tuning_says_nothing_of_it() -> None:
    old = types.Accuracy.model_validate(
        {"full_precision": 0.75, "calibrated": 0.5, "packed": 0.625}
    )
    assert old.fine_tuned is None
    assert old.packed_float_activations is None
