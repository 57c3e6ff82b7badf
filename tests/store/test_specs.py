import json
from typing import Any

import pytest
from pydantic import ValidationError

from store.errors import InvalidSpec
from store.specs import (
    METHODS,
    BwnhParameters,
    BwnParameters,
    CompressSpec,
    FineTuning,
    parse_spec,
)

MINIMAL = {"name": "vgg9", "architecture": "vgg9", "dataset": "cifar10"}


def test_three_names_are_enough_and_the_rest_has_defaults() -> None:
    spec = parse_spec(MINIMAL)
    assert isinstance(spec.method, BwnhParameters)
    assert (spec.input.channels, spec.input.height, spec.input.width) == (3, 32, 32)
    assert spec.input.mean == (0.0, 0.0, 0.0)
    assert spec.input.std == (1.0, 1.0, 1.0)
    assert (spec.calibration_images, spec.seed, spec.keep_float) == (500, 0, ())
    assert spec.checkpoint is None


def test_one_channel_gets_one_mean_and_one_deviation() -> None:
    spec = parse_spec(MINIMAL | {"input": {"channels": 1, "height": 8, "width": 8}})
    assert (spec.input.mean, spec.input.std) == ((0.0,), (1.0,))


def test_json_text_and_mappings_mean_the_same() -> None:
    data = MINIMAL | {"method": {"name": "bwn"}, "seed": 3, "checkpoint": "sha256:" + "a" * 64}
    assert parse_spec(json.dumps(data)) == parse_spec(json.dumps(data).encode()) == parse_spec(data)
    assert isinstance(parse_spec(data).method, BwnParameters)


def test_a_spec_survives_its_json() -> None:
    spec = parse_spec(MINIMAL | {"method": {"name": "bwnh", "sweeps": 3, "ridge": 0.5}})
    assert parse_spec(spec.model_dump_json()) == spec
    assert CompressSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize("allowed", [None, 0, 0.02, 1])
def test_there_is_a_gate_only_where_one_is_asked_for(allowed: float | None) -> None:
    assert parse_spec(MINIMAL).max_accuracy_drop is None
    assert parse_spec(MINIMAL | {"max_accuracy_drop": allowed}).max_accuracy_drop == allowed


def test_the_catalogue_names_each_method_as_it_names_itself() -> None:
    for name, parameters in METHODS.items():
        assert parameters().name == name
        spec = parse_spec(MINIMAL | {"method": {"name": name}})
        assert type(spec.method) is parameters


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"name": "../vgg9"}, "spec.name"),
    ({"name": "VGG9"}, "spec.name"),
    ({"name": ""}, "spec.name"),
    ({"name": "a" * 65}, "spec.name"),
    ({"name": "vgg9\n"}, "spec.name"),
    ({"name": 9}, "spec.name"),
    ({"architecture": None}, "spec.architecture"),
    ({"dataset": "/etc"}, "spec.dataset"),
    ({"checkpoint": "sha256:zz"}, "spec.checkpoint"),
    ({"checkpoint": "/etc/passwd"}, "spec.checkpoint"),
    ({"sed": 1}, "spec.sed"),
    ({"bwn": 1}, "spec.bwn"),
    ({"seed": -1}, "spec.seed"),
    ({"calibration_images": 0}, "spec.calibration_images"),
    ({"activation_bits": 4}, "spec.activation_bits"),
    ({"activation_scale": "best"}, "spec.activation_scale"),
    ({"max_accuracy_drop": -0.01}, "spec.max_accuracy_drop"),
    ({"max_accuracy_drop": 1.01}, "spec.max_accuracy_drop"),
    ({"max_accuracy_drop": float("nan")}, "spec.max_accuracy_drop"),
    ({"max_accuracy_drop": "none"}, "spec.max_accuracy_drop"),
    ({"keep_float": ["features.0", 1]}, "spec.keep_float.1"),
    ({"method": {"name": "magic"}}, "spec.method.name"),
    ({"method": {"name": "bwnh", "sweeps": -1}}, "spec.method.sweeps"),
    ({"method": {"name": "bwnh", "swepes": 1}}, "spec.method.swepes"),
    ({"method": {"name": "bwnh", "ridge": float("nan")}}, "spec.method.ridge"),
    ({"method": {"name": "bwnh", "correction": 1e-9}}, "spec.method.correction"),
    ({"method": {"name": "bwn", "sweeps": 1}}, "spec.method.sweeps"),
    ({"input": {"channels": 2}}, "spec.input.channels"),
    ({"input": {"mean": [0.5]}}, "spec.input"),
    ({"input": {"std": [1, 0, 1]}}, "spec.input.std.1"),
    ({"input": {"mean": [0, float("inf"), 0]}}, "spec.input.mean.1"),
    ({"input": {"value_range": [1, 1]}}, "spec.input"),
    ({"input": {"height": 100_000}}, "spec.input.height"),
    ({"input": {"resize": 31}}, "spec.input"),
    ({"input": {"resize": 5000}}, "spec.input.resize"),
    ({"architecture_parameters": {"width": [1]}}, "spec.architecture_parameters.width"),
    ({"fine_tune": 3}, "spec.fine_tune"),
    ({"fine_tune": {}}, "spec.fine_tune.epochs"),
    ({"fine_tune": {"epochs": 0}}, "spec.fine_tune.epochs"),
    ({"fine_tune": {"epochs": 1, "epoch": 1}}, "spec.fine_tune.epoch"),
    ({"fine_tune": {"epochs": 1, "batch_size": 1}}, "spec.fine_tune.batch_size"),
    ({"fine_tune": {"epochs": 1, "optimizer": "lion"}}, "spec.fine_tune.optimizer"),
    ({"fine_tune": {"epochs": 1, "learning_rate": 0}}, "spec.fine_tune.learning_rate"),
    ({"fine_tune": {"epochs": 1, "learning_rate": float("nan")}}, "spec.fine_tune.learning_rate"),
    ({"fine_tune": {"epochs": 1, "momentum": 1}}, "spec.fine_tune.momentum"),
    ({"fine_tune": {"epochs": 1, "schedule": "linear"}}, "spec.fine_tune.schedule"),
    ({"fine_tune": {"epochs": 1, "drops": [1]}}, "spec.fine_tune.drops.0"),
    ({"fine_tune": {"epochs": 1, "distillation": 1.5}}, "spec.fine_tune.distillation"),
    ({"fine_tune": {"epochs": 1, "latent_rate_factor": 0}}, "spec.fine_tune.latent_rate_factor"),
    ({"fine_tune": {"epochs": 1, "train_on": "test"}}, "spec.fine_tune.train_on"),
    (
        {"fine_tune": {"epochs": 1, "train_on": "train_and_val"}, "max_accuracy_drop": 0.1},
        "spec.max_accuracy_drop",
    ),
    ({"fine_tune": {"epochs": 1, "average": 1}}, "spec.fine_tune.average"),
    ({"fine_tune": {"epochs": 1, "precision": "float16"}}, "spec.fine_tune.precision"),
    ({"fine_tune": {"epochs": 2, "settle_epochs": 2}}, "spec.fine_tune"),
    ({"fine_tune": {"epochs": 2, "settle_epochs": 1, "warmup_epochs": 1.5}}, "spec.fine_tune"),
    ({"fine_tune": {"epochs": 1, "binary_fractions": []}}, "spec.fine_tune.binary_fractions"),
    ({"fine_tune": {"epochs": 1, "binary_fractions": [0, 1]}}, "spec.fine_tune.binary_fractions.0"),
    ({"fine_tune": {"epochs": 1, "binary_fractions": [0.5]}}, "spec.fine_tune.binary_fractions"),
    ({"fine_tune": {"epochs": 1, "binary_fractions": [1, 0.5, 1]}}, "spec.fine_tune.binary_fr"),
]


@pytest.mark.parametrize(("change", "field"), FAULTS)
def test_a_fault_is_named_with_its_field_and_a_remedy(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(MINIMAL | change)
    assert (caught.value.field or "").startswith(field)
    assert caught.value.detail
    assert caught.value.remedy


@pytest.mark.parametrize("missing", list(MINIMAL))
def test_a_missing_field_is_named(missing: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec({name: value for name, value in MINIMAL.items() if name != missing})
    assert caught.value.field == "spec." + missing


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"vgg9"', b"\xff\xfe", "{'name': 1}"])
def test_what_is_no_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(text)
    assert caught.value.field == "spec"
    assert caught.value.remedy


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(MINIMAL | {"method": {"name": "magic"}})
    assert all(name in (caught.value.remedy or "") for name in METHODS)


@pytest.mark.parametrize(
    ("change", "field", "help"),
    [
        ({"name": "../x"}, "spec.name", "lower-case letters"),
        ({"checkpoint": "latest"}, "spec.checkpoint", "sha256:"),
        ({"method": "bwn"}, "spec.method", "binary_connect, bwn, bwnh, hwgq_bwn, sq_bwn"),
        ({"method": {}}, "spec.method.name", "binary_connect, bwn, bwnh, hwgq_bwn, sq_bwn"),
        ({"method": {"name": "bwnh", "sweps": 1}}, "spec.method.sweps", "sweeps, target"),
        ({"input": {"size": 32}}, "spec.input.size", "channels, height, width"),
        ({"sed": 1}, "spec.sed", "name, architecture"),
        ({"fine_tune": {"epohcs": 1, "epochs": 1}}, "spec.fine_tune.epohcs", "epochs, batch_size"),
        (
            {"method": {"name": "sign"}},
            "spec.method.name",
            "binary_connect, bwn, bwnh, hwgq_bwn, sq_bwn",
        ),
    ],
)
def test_the_remedy_says_what_is_allowed(change: dict[str, Any], field: str, help: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(MINIMAL | change)
    assert caught.value.field == field
    assert help in (caught.value.remedy or "")


def test_without_being_asked_for_there_is_no_fine_tuning() -> None:
    assert parse_spec(MINIMAL).fine_tune is None
    assert parse_spec(MINIMAL | {"fine_tune": None}).fine_tune is None


def test_fine_tuning_needs_a_number_of_epochs_and_nothing_else() -> None:
    spec = parse_spec(MINIMAL | {"fine_tune": {"epochs": 3}})
    assert spec.fine_tune == FineTuning(epochs=3)
    assert parse_spec(spec.model_dump_json()) == spec


def test_shares_of_binary_filters_grow_and_end_with_all_of_them() -> None:
    wanted = {"epochs": 4, "binary_fractions": [0.5, 0.75, 1], "settle_epochs": 3}
    spec = parse_spec(MINIMAL | {"fine_tune": wanted})
    assert spec.fine_tune is not None
    assert spec.fine_tune.binary_fractions == (0.5, 0.75, 1.0)
    assert parse_spec(spec.model_dump_json()) == spec


@pytest.mark.parametrize("bits", [8, 32])
def test_activations_have_eight_bits_or_are_exact(bits: int) -> None:
    assert parse_spec(MINIMAL | {"activation_bits": bits}).activation_bits == bits


def test_layers_kept_in_float_are_few_and_named_once() -> None:
    assert parse_spec(MINIMAL | {"keep_float": ["a", "b", "a"]}).keep_float == ("a", "b")
    with pytest.raises(InvalidSpec):
        parse_spec(MINIMAL | {"keep_float": ["a"] * 15_000})


@pytest.mark.parametrize(("said", "meant"), [(True, "end"), (False, "never")])
def test_a_job_queued_before_an_upgrade_means_what_it_meant(said: bool, meant: str) -> None:
    for name in METHODS:
        data = MINIMAL | {"method": {"name": name, "recalibrate_batch_norm": said}}
        assert parse_spec(data).method.recalibrate_batch_norm == meant


def test_a_method_knows_the_parameters_of_its_code() -> None:
    assert BwnParameters().own_parameters() == {}
    own = BwnhParameters(sweeps=3).own_parameters()
    assert own["sweeps"] == 3 and own["target"] == "full_precision"
    assert set(BwnhParameters.model_fields) - set(own) == {
        "name",
        "recalibrate_batch_norm",
        "mirror_images",
    }


@pytest.mark.parametrize(
    "members",
    [
        {"keep_float": [1] * 2000},
        {"input": {"mean": ["x"] * 2000}},
        {"input": {"std": ["x"] * 2000}},
        {"method": {"name": "bwnh", "starts": [1] * 2000}},
        {"fine_tune": {"epochs": 1, "drops": ["x"] * 2000}},
        {"fine_tune": {"epochs": 1, "binary_fractions": ["x"] * 2000}},
    ],
)
def test_a_list_ends_at_its_first_fault(
    members: dict[str, Any],
) -> None:
    spec = {"name": "a", "architecture": "vgg9", "dataset": "d", **members}
    with pytest.raises(ValidationError) as caught:
        CompressSpec.model_validate_json(json.dumps(spec))
    # The second: that the list, which ends there, is too short.
    assert caught.value.error_count() <= 2
