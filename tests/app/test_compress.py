"""POST /compress and the jobs that come of it."""

import hashlib
import io
import json
import socket
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from models import registry
from store.errors import Unavailable

NETWORK: dict[str, Any] = {"channels": 3, "height": 32, "width": 32, "classes": 3}
SPEC: dict[str, Any] = {
    "name": "small",
    "architecture": "vgg9",
    "architecture_parameters": {"width": 0.0625},
    "dataset": "animals",
    "method": {"name": "bwnh", "sweeps": 3},
}


def checkpoint_of(architecture: str, parameters: dict[str, Any], fill: float = 0.5) -> bytes:
    shapes = registry.expected_shapes(architecture, **NETWORK, parameters=parameters)
    tensors = {name: np.full(shape, fill, np.float32) for name, shape in shapes.items()}
    return safetensors.numpy.save(tensors)


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    return checkpoint_of("vgg9", {"width": 0.0625})


@pytest.fixture
def ready(service: Any, archive: bytes, tests_only: bytes) -> Any:
    """The service with a dataset of three classes, and one of which nothing may be learnt."""
    for name, content in (("animals", archive), ("tests-only", tests_only)):
        answer = service.http.post("/datasets", data={"name": name}, files={"archive": content})
        assert answer.status_code in (200, 201)
    return service


def compress(service: Any, spec: Any, checkpoint: bytes | None = None, **files: Any) -> Any:
    parts: dict[str, Any] = {"spec": (None, spec if isinstance(spec, str) else json.dumps(spec))}
    if checkpoint is not None:
        parts["checkpoint"] = checkpoint
    return service.http.post("/compress", files=parts | files)


def test_a_job_is_queued_and_found_again(ready: Any, checkpoint: bytes) -> None:
    answer = compress(ready, SPEC, checkpoint)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert job["state"] == "queued"
    digest = "sha256:" + hashlib.sha256(checkpoint).hexdigest()
    assert job["spec"]["checkpoint"] == digest
    assert job["spec"]["method"]["sweeps"] == 3
    assert job["spec"]["calibration_images"] == 500
    assert ready.http.get(answer.headers["location"]).json() == job
    assert job in ready.http.get("/jobs").json()["jobs"]
    assert f"uploads/sha256/{digest.removeprefix('sha256:')}" in ready.files()


def test_an_earlier_upload_is_enough(ready: Any, checkpoint: bytes) -> None:
    first = compress(ready, SPEC, checkpoint).json()
    again = compress(ready, {**SPEC, "checkpoint": first["spec"]["checkpoint"]})
    assert again.status_code == 202
    assert again.json()["id"] != first["id"]
    both = compress(ready, {**SPEC, "checkpoint": first["spec"]["checkpoint"]}, checkpoint)
    assert both.status_code == 202


def test_the_spec_may_come_after_the_file(ready: Any, checkpoint: bytes) -> None:
    files = {"checkpoint": checkpoint, "spec": (None, json.dumps(SPEC))}
    assert ready.http.post("/compress", files=files).status_code == 202


def test_the_newest_job_comes_first(ready: Any, checkpoint: bytes) -> None:
    ids = [compress(ready, SPEC, checkpoint).json()["id"] for _ in range(2)]
    listed = [job["id"] for job in ready.http.get("/jobs", params={"limit": 2}).json()["jobs"]]
    assert listed == ids[::-1]


def test_there_is_no_report_before_the_end(ready: Any, checkpoint: bytes) -> None:
    job = compress(ready, SPEC, checkpoint).json()
    answer = ready.http.get(f"/jobs/{job['id']}/report")
    assert answer.status_code == 409
    assert answer.json()["remedy"]


def test_an_absent_job_is_not_found(ready: Any) -> None:
    for path in ("/jobs/absent", "/jobs/absent/report"):
        assert ready.http.get(path).status_code == 404


def torch_file(content: Any) -> bytes:
    target = io.BytesIO()
    torch.save(content, target)
    return target.getvalue()


REFUSALS: dict[str, tuple[dict[str, Any] | str, bytes | None, str]] = {
    "spec that is no JSON": ("{", b"", "spec"),
    "unknown field": ({**SPEC, "colour": "red"}, None, "spec.colour"),
    "bad name": ({**SPEC, "name": "../up"}, None, "spec.name"),
    "unknown architecture": ({**SPEC, "architecture": "vgg10"}, None, "spec.architecture"),
    "unknown architecture parameter": (
        {**SPEC, "architecture_parameters": {"depth": 3}},
        None,
        "spec.architecture_parameters.depth",
    ),
    "architecture parameter out of range": (
        {**SPEC, "architecture_parameters": {"width": 1e9}},
        None,
        "spec.architecture_parameters.width",
    ),
    "unknown method": ({**SPEC, "method": {"name": "magic"}}, None, "spec.method.name"),
    "unknown method parameter": (
        {**SPEC, "method": {"name": "bwn", "sweeps": 3}},
        None,
        "spec.method.sweeps",
    ),
    "unknown dataset": ({**SPEC, "dataset": "plants"}, None, "spec.dataset"),
    "numbers beyond float32": (
        {**SPEC, "input": {"mean": [1e300, 0, 0]}},
        None,
        "spec.input",
    ),
    "dataset without train": ({**SPEC, "dataset": "tests-only"}, None, "spec.dataset"),
    "unknown layer": ({**SPEC, "keep_float": ["conv1"]}, None, "spec.keep_float.0"),
    "no checkpoint": (SPEC, None, "checkpoint"),
    "absent checkpoint": (
        {**SPEC, "checkpoint": "sha256:" + "0" * 64},
        None,
        "spec.checkpoint",
    ),
    "empty checkpoint": (SPEC, b"", "checkpoint"),
    "truncated checkpoint": (SPEC, checkpoint_of("vgg9", {"width": 0.0625})[:-9], "checkpoint"),
    "checkpoint of another network": (SPEC, checkpoint_of("resnet20", {}), "checkpoint"),
    "checkpoint of another width": (SPEC, checkpoint_of("vgg9", {"width": 0.125}), "checkpoint"),
    "truncated torch file": (SPEC, torch_file({"a": torch.zeros(9)})[:-40], "checkpoint"),
    "picture as checkpoint": (SPEC, b"\x89PNG\r\n\x1a\n" + bytes(100), "checkpoint"),
    "checkpoint over the limit": (SPEC, bytes(4_000_001), "checkpoint"),
    "body over the limit": (SPEC, bytes(6_000_000), "checkpoint"),
    "spec over the limit": (json.dumps({**SPEC, "pad": "x" * 300_000}), None, "spec"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_job_names_its_field_and_leaves_nothing(ready: Any, case: str) -> None:
    spec, checkpoint, field = REFUSALS[case]
    before = (ready.files(), ready.http.get("/jobs").json())
    answer = compress(ready, spec, checkpoint)
    assert answer.status_code in (413, 422)
    problem = answer.json()
    assert problem["field"] == field
    assert problem["remedy"]
    assert (ready.files(), ready.http.get("/jobs").json()) == before


def test_a_job_that_cannot_be_queued_leaves_nothing(
    ready: Any, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise Unavailable("The job database does not answer.", remedy="Try again later.")

    unseen = checkpoint_of("vgg9", {"width": 0.0625}, fill=0.25)
    compress(ready, SPEC, checkpoint)
    before = ready.files()
    monkeypatch.setattr(ready.app.state.services.jobs, "submit", away)
    for content in (unseen, checkpoint):
        answer = compress(ready, SPEC, content)
        assert answer.status_code == 503
        assert answer.json()["remedy"]
        # What had been sent for an earlier job stays.
        assert ready.files() == before


def test_keeping_every_layer_in_float_is_refused(ready: Any) -> None:
    layers = registry.layer_names("vgg9", **NETWORK, parameters={"width": 0.0625})
    answer = compress(ready, {**SPEC, "keep_float": list(layers)})
    assert answer.json()["field"] == "spec.keep_float"


def test_a_missing_spec_is_named(ready: Any, checkpoint: bytes) -> None:
    before = ready.files()
    answer = ready.http.post("/compress", files={"checkpoint": checkpoint})
    assert (answer.status_code, answer.json()["field"]) == (422, "spec")
    assert ready.files() == before


def test_a_digest_that_is_not_the_files_is_refused(ready: Any, checkpoint: bytes) -> None:
    compress(ready, SPEC, checkpoint)
    spec = {**SPEC, "checkpoint": "sha256:" + "0" * 64}
    answer = compress(ready, spec, checkpoint)
    assert (answer.status_code, answer.json()["field"]) == (422, "spec.checkpoint")


def test_a_wrong_spec_is_answered_before_the_file_has_come(ready: Any) -> None:
    spec = json.dumps({**SPEC, "architecture": "vgg10"})
    part = f"--b\r\nContent-Disposition: form-data; name=spec\r\n\r\n{spec}\r\n"
    file = "--b\r\nContent-Disposition: form-data; name=checkpoint; filename=a\r\n\r\n"
    with socket.create_connection(ready.address, timeout=30) as connection:
        connection.sendall(
            b"POST /compress HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + (part + file).encode()
        )
        assert b" 422 " in connection.recv(10_000)


def test_a_body_that_only_claims_to_be_large_is_refused_unread(ready: Any) -> None:
    with socket.create_connection(ready.address, timeout=30) as connection:
        connection.sendall(
            b"POST /compress HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(10_000).startswith(b"HTTP/1.1 413 ")
