"""What a dry run answers, and that it leaves nothing behind."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from app.forecast import forecast, job_images
from app.forecast_document import Forecast
from models import registry
from models.machine_rate import macs_per_second
from models.workload import workload
from store import job_cost
from store.datasets import Dataset
from store.job_cost import Machine
from store.specs import parse_spec

SPEC: dict[str, Any] = {
    "name": "small",
    "architecture": "vgg9",
    "architecture_parameters": {"width": 0.0625},
    "dataset": "animals",
}
NETWORK: dict[str, Any] = {"channels": 3, "height": 32, "width": 32, "classes": 3}
MACHINE = Machine(threads=2, macs_per_second=1e11)
DATASET = Dataset(
    name="animals",
    digest="sha256:" + "1" * 64,
    archive_digest=None,
    classes=tuple(f"class {number}" for number in range(10)),
    splits={"train": 50_000, "test": 10_000},
    bytes=60_000_000,
    created_at="2026-11-21T12:00:00+00:00",
)


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    shapes = registry.expected_shapes("vgg9", **NETWORK, parameters={"width": 0.0625})
    tensors = {name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}
    return safetensors.numpy.save(tensors)


@pytest.fixture
def ready(service: Any, archive: bytes) -> Any:
    """The service with a dataset of three classes."""
    answer = service.http.post("/datasets", data={"name": "animals"}, files={"archive": archive})
    assert answer.status_code in (200, 201)
    return service


def ask(service: Any, spec: Any, checkpoint: bytes | None = None, dry_run: str = "true") -> Any:
    parts: dict[str, Any] = {"spec": (None, spec if isinstance(spec, str) else json.dumps(spec))}
    if checkpoint is not None:
        parts["checkpoint"] = checkpoint
    return service.http.post("/compress", params={"dry_run": dry_run}, files=parts)


def of(**changes: Any) -> Forecast:
    dataset = replace(DATASET, splits=changes.pop("splits", DATASET.splits))
    spec = {"name": "net", "architecture": "vgg9", "dataset": "animals", **changes}
    return forecast(parse_spec(spec), dataset, "cpu", MACHINE)


def test_a_dry_run_keeps_and_queues_nothing(ready: Any, checkpoint: bytes) -> None:
    jobs, files = ready.http.get("/jobs").json(), ready.files()
    answer = ask(ready, SPEC, checkpoint)
    assert answer.status_code == 200
    assert "location" not in answer.headers
    found = Forecast.model_validate(answer.json())
    assert answer.json() == found.model_dump(mode="json")
    assert [layer.name for layer in found.layers] == list(
        registry.layer_names("vgg9", **NETWORK, parameters={"width": 0.0625})
    )
    assert ready.http.get("/jobs").json() == jobs
    assert ready.files() == files


def test_the_checkpoint_may_be_left_out(ready: Any, checkpoint: bytes) -> None:
    without = ask(ready, SPEC)
    assert without.status_code == 200
    assert without.json() == ask(ready, SPEC, checkpoint).json()


def test_an_earlier_upload_is_looked_at(ready: Any, checkpoint: bytes) -> None:
    job = ask(ready, SPEC, checkpoint, dry_run="false").json()
    named = {**SPEC, "checkpoint": job["spec"]["checkpoint"]}
    assert ask(ready, named).status_code == 200
    wider = {**named, "architecture_parameters": {"width": 0.125}}
    answer = ask(ready, wider)
    assert (answer.status_code, answer.json()["field"]) == (422, "checkpoint")


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "red"},
        {"name": "../up"},
        {"architecture": "lenet"},
        {"architecture_parameters": {"width": 1000}},
        {"input": {"height": 4, "width": 4}},
        {"keep_float": ["conv9"]},
        {"checkpoint": "sha256:" + "0" * 64},
        {"dataset": "unheard-of"},
    ],
    ids=repr,
)
def test_errors_are_those_of_the_real_request(
    ready: Any, checkpoint: bytes, change: dict[str, Any]
) -> None:
    spec = {**SPEC, **change}
    dry, real = ask(ready, spec, checkpoint), ask(ready, spec, checkpoint, dry_run="false")
    assert dry.status_code == real.status_code == 422
    assert {**dry.json(), "instance": None} == {**real.json(), "instance": None}


@pytest.mark.parametrize(
    ("change", "content", "field"),
    [
        ({"keep_float": ["conv9"]}, None, "spec.keep_float.0"),
        ({"architecture_parameters": {"width": 1000}}, None, "spec.architecture_parameters.width"),
        ({"checkpoint": "sha256:" + "0" * 64}, None, "spec.checkpoint"),
        ({}, b"no checkpoint", "checkpoint"),
        ({}, None, "spec.dataset"),
    ],
)
def test_a_dataset_that_is_yet_to_come_is_found_out_last(
    ready: Any, change: dict[str, Any], content: bytes | None, field: str
) -> None:
    answer = ask(ready, {**SPEC, "dataset": "unheard-of", **change}, content)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_a_dry_run_needs_a_spec_and_a_truth_value(ready: Any) -> None:
    answer = ready.http.post("/compress", params={"dry_run": "true"}, files={"checkpoint": b"x"})
    assert (answer.status_code, answer.json()["field"]) == (422, "spec")
    for neither in ("perhaps", "yes", "1", ""):
        assert ask(ready, SPEC, dry_run=neither).status_code == 422


def test_layers_are_in_order_and_their_bytes_add_up() -> None:
    found = of(keep_float=["features.0"])
    first, second, *_ = found.layers
    assert (first.name, first.binary, first.bits) == ("features.0", False, 32)
    assert (second.shape, second.weights) == ([64, 64, 3, 3], 36_864)
    assert second.bits > 1  # now it is the first that is binary
    tensors = sum(layer.packed_bytes for layer in found.layers)
    assert 0 < found.packed_bytes - tensors < 10_000
    assert found.compression_ratio == found.float_bytes / found.packed_bytes
    assert found.parameters == 4_769_226


def test_further_bases_stay_within_their_budget() -> None:
    for architecture in ("vgg9", "resnet20", "resnet18"):
        layers = of(architecture=architecture).layers
        extra = sum((layer.bits - 1) * layer.weights for layer in layers)
        assert 0 < extra <= 0.025 * sum(layer.weights for layer in layers)
    none = of(method={"name": "bwnh", "bases": 1}).layers
    assert {layer.bits for layer in none} == {1}
    assert {layer.bits for layer in of(method={"name": "bwn"}).layers} == {1}


def test_stages_are_those_that_the_job_has() -> None:
    plain = of()
    assert list(plain.seconds) == ["prepare", "calibrate", "pack", "evaluate", "publish"]
    tuned = of(fine_tune={"epochs": 2})
    assert list(tuned.seconds) == ["prepare", "calibrate", "fine_tune", *list(plain.seconds)[2:]]
    assert tuned.total_seconds == pytest.approx(sum(tuned.seconds.values()), abs=1)


@pytest.mark.parametrize(
    ("stage", "less", "more"),
    [
        ("fine_tune", {"fine_tune": {"epochs": 1}}, {"fine_tune": {"epochs": 4}}),
        (
            "fine_tune",
            {"fine_tune": {"epochs": 4}},
            {"fine_tune": {"epochs": 4, "train_on": "train_and_val"}},
        ),
        ("evaluate", {}, {"max_accuracy_drop": 0.1}),
        ("evaluate", {}, {"fine_tune": {"epochs": 1}}),
        ("evaluate", {}, {"activation_bits": 8}),
        ("calibrate", {"calibration_images": 100}, {"calibration_images": 1000}),
        ("calibrate", {"method": {"name": "bwn"}}, {}),
        ("calibrate", {"method": {"name": "bwnh", "sweeps": 1}}, {}),
        ("calibrate", {}, {"method": {"name": "bwnh", "bases_budget": 4}}),
        ("prepare", {"splits": {"all": 1000}}, {}),
        ("evaluate", {"splits": {"train": 50_000, "test": 100}}, {}),
    ],
    ids=repr,
)
def test_what_is_more_work_takes_longer(
    stage: str, less: dict[str, Any], more: dict[str, Any]
) -> None:
    assert of(**less).seconds[stage] < of(**more).seconds[stage]


@pytest.mark.parametrize("method", [{"name": "bwn"}, {"name": "bwnh", "blocks": True}])
def test_the_seconds_of_layers_add_up_to_those_of_calibration(method: dict[str, Any]) -> None:
    spec = parse_spec({**SPEC, "architecture_parameters": {}, "method": method})
    work = workload("vgg9", **NETWORK, parameters={})
    bases = job_cost.usual_bases(spec, work.layers)
    job = job_cost.ForeseenJob(spec, work, bases, job_images(spec, DATASET), "cpu")
    layers = job_cost.layer_seconds(job, MACHINE)
    assert list(layers) == [layer.name for layer in work.layers]
    assert min(layers.values()) > 0
    calibrate = job_cost.stage_seconds(job, MACHINE)["calibrate"]
    assert sum(layers.values()) == pytest.approx(calibrate - job_cost.START_S)


def test_what_a_worker_keeps_decoded_is_said_and_counts() -> None:
    said = [line for line in of().basis.assumptions if "BITPRESS_MAX_CACHE_BYTES" in line]
    assert len(said) == 1
    assert "8 GiB" in said[0]
    spec = parse_spec({**SPEC, "fine_tune": {"epochs": 2}})
    work = workload("vgg9", **NETWORK, parameters=spec.architecture_parameters)
    bases = job_cost.usual_bases(spec, work.layers)
    images = job_images(spec, DATASET)
    pixels = images.total * spec.input.channels * spec.input.height * spec.input.width

    def seconds(max_cache_bytes: int) -> dict[str, float]:
        job = job_cost.ForeseenJob(spec, work, bases, images, "cpu", max_cache_bytes)
        return job_cost.stage_seconds(job, MACHINE)

    kept, streamed = seconds(pixels), seconds(pixels - 1)
    assert streamed["prepare"] < kept["prepare"]
    assert streamed["fine_tune"] > kept["fine_tune"]
    assert streamed["evaluate"] > kept["evaluate"]


def test_the_machine_is_measured_once() -> None:
    assert macs_per_second() == macs_per_second() > 1e8


def test_a_dataset_too_large_to_keep_decoded_is_decoded_whenever_it_is_read() -> None:
    def seconds(size: int, gigabytes: int) -> dict[str, float]:
        images = {"train": 1_200_000, "val": 10_000, "test": 50_000}
        dataset = replace(DATASET, splits=images, bytes=gigabytes * 10**9)
        spec = {**SPEC, "architecture_parameters": {}, "fine_tune": {"epochs": 9}}
        spec["input"] = {"height": size, "width": size}
        return forecast(parse_spec(spec), dataset, "cpu", MACHINE).seconds

    # What larger files cost is what decoding costs.
    kept = {stage: value - seconds(32, 1)[stage] for stage, value in seconds(32, 200).items()}
    streamed = {stage: value - seconds(64, 1)[stage] for stage, value in seconds(64, 200).items()}
    decoding = kept["prepare"]
    assert decoding > 1000
    assert kept == {**dict.fromkeys(kept, 0), "prepare": decoding}
    expected = {"fine_tune": decoding * 9 * 120 / 126, "evaluate": decoding * 5 / 126}
    assert streamed == pytest.approx({**dict.fromkeys(kept, 0), **expected}, abs=1)


def test_a_faster_machine_is_done_sooner() -> None:
    slow, fast = (
        forecast(parse_spec({**SPEC, "architecture_parameters": {}}), DATASET, "cpu", machine)
        for machine in (MACHINE, replace(MACHINE, macs_per_second=4e11))
    )
    assert fast.total_seconds < slow.total_seconds
    assert fast.packed_bytes == slow.packed_bytes


def test_memory_grows_with_the_network_and_with_a_batch_of_training() -> None:
    assert of().memory_bytes < of(architecture_parameters={"width": 4}).memory_bytes
    small, large = (of(fine_tune={"epochs": 1, "batch_size": size}) for size in (64, 4096))
    assert small.memory_bytes < large.memory_bytes


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": 50_000, "test": 10_000}, (45_000, 5_000, 10_000)),
        ({"train": 800, "val": 100, "test": 200}, (800, 100, 200)),
        ({"train": 1000, "val": 300}, (900, 100, 300)),
        ({"all": 1000}, (700, 150, 150)),
        ({"train": 1000}, (700, 150, 150)),
    ],
)
def test_images_are_divided_as_the_job_will(
    splits: dict[str, int], expected: tuple[int, int, int]
) -> None:
    images = job_images(parse_spec(SPEC), replace(DATASET, splits=splits))
    assert (images.train, images.val, images.test) == expected
    assert images.calibration == min(500, images.train)


def test_networks_beyond_all_memory_are_foreseen() -> None:
    found = of(
        architecture_parameters={"width": 16},
        input={"height": 1024, "width": 1024},
        fine_tune={"epochs": 1000},
    )
    assert found.memory_bytes > 10**12
    assert found.total_seconds > 10**6
    json.dumps(found.model_dump(mode="json"), allow_nan=False)
