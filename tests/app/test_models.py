"""GET /models, and the artifact's file."""

import hashlib
from typing import Any

import pytest


@pytest.fixture(scope="module")
def service(serve: Any) -> Any:
    """A service of this module's own: it counts models."""
    return serve()


def test_the_catalogue_tells_what_was_measured(service: Any, publish: Any) -> None:
    assert service.http.get("/models").json() == {"models": []}
    publish(service, "first", seed=1)
    latest = publish(service, "first", seed=2)
    model = service.http.get("/models/first").json()
    assert model == {
        "name": "first",
        "latest": 2,
        "versions": [1, 2],
        "architecture": "vgg9",
        "method": "bwnh",
        "accuracy": {"full_precision": 0.875, "calibrated": 0.8, "packed": 0.75},
        "bytes": {"float": 4096, "packed": 1024},
        "compression_ratio": 4.0,
        "input": {
            "channels": 3,
            "height": 8,
            "width": 8,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.3, 0.4],
            "value_range": [0.0, 1.0],
        },
        "labels": ["cat", "dog", "owl"],
        "runtime": "reference",
        "digest": latest.digest,
        "job": "job-of-first-2",
        "created_at": latest.created_at,
    }
    assert service.http.get("/models").json() == {"models": [model]}


def test_an_absent_model_is_not_found(service: Any) -> None:
    answer = service.http.get("/models/absent")
    assert answer.status_code == 404
    assert answer.json()["field"] == "name"


def test_the_artifact_comes_whole_and_under_its_digest(service: Any, publish: Any) -> None:
    version = publish(service, "second")
    path = "/models/second/versions/1/artifact"
    answer = service.http.get(path, headers={"Range": "bytes=5-1"})
    assert answer.status_code == 200
    assert "sha256:" + hashlib.sha256(answer.content).hexdigest() == version.digest
    assert answer.headers["etag"] == f'"{version.digest}"'
    assert answer.headers["content-disposition"] == 'attachment; filename="second-v1.safetensors"'
    unchanged = service.http.get(path, headers={"If-None-Match": f'"x", "{version.digest}"'})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/models/absent/versions/1/artifact", 404),
        ("/models/second/versions/9/artifact", 404),
        ("/models/second/versions/0/artifact", 422),
        ("/models/second/versions/x/artifact", 422),
        ("/models/..%2Fsecond/versions/1/artifact", 404),
        ("/models/.tmp/versions/1/artifact", 422),
    ],
)
def test_artifacts_that_are_not_there(service: Any, path: str, status: int) -> None:
    answer = service.http.get(path)
    assert answer.status_code == status
    assert answer.json()["type"].startswith("urn:bitpress:problem:")
