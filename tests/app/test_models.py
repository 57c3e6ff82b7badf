"""GET /models, and the artifact's file."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models import artifact as artifacts
from models import runtime


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
        "runtime": runtime.choose(),
        "kernels": runtime.kernels_of(runtime.choose()),
        "digest": latest.digest,
        "job": "job-of-first-2",
        "created_at": latest.created_at,
    }
    assert service.http.get("/models").json() == {"models": [model]}


def test_a_trained_model_tells_more_accuracies(service: Any, publish: Any) -> None:
    publish(service, "trained", fine_tuned=0.85, packed_float_activations=0.8125)
    publish(service, "partly", fine_tuned=0.85)
    of_trained = service.http.get("/models/trained").json()["accuracy"]
    assert of_trained == {
        "full_precision": 0.875,
        "calibrated": 0.8,
        "fine_tuned": 0.85,
        "packed": 0.75,
        "packed_float_activations": 0.8125,
    }
    of_partly = service.http.get("/models/partly").json()["accuracy"]
    assert set(of_partly) == {"full_precision", "calibrated", "fine_tuned", "packed"}
    shown = [
        line
        for line in service.http.get("/metrics").text.splitlines()
        if line.startswith("bitpress_model_accuracy_ratio{") and 'model="partly"' in line
    ]
    assert len(shown) == 4
    assert any('form="fine_tuned"' in line and line.endswith(" 0.85") for line in shown)


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


def test_an_artifact_whose_file_is_gone_is_unavailable(service: Any, publish: Any) -> None:
    publish(service, "gone").artifact_path.unlink()
    answer = service.http.get("/models/gone/versions/1/artifact")
    assert answer.status_code == 503
    assert answer.json()["remedy"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def overwrite(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("artifact.safetensors", Path.unlink),
        ("artifact.safetensors", cut),
        ("artifact.safetensors", overwrite(b"")),
        ("report.json", Path.unlink),
        ("report.json", cut),
        ("report.json", overwrite(b"{}")),
        ("version.json", Path.unlink),
        ("version.json", cut),
        ("version.json", overwrite(b"[]")),
    ],
)
def test_one_damaged_model_does_not_hide_the_others(
    serve: Any,
    publish: Any,
    caplog: pytest.LogCaptureFixture,
    file: str,
    damage: Callable[[Path], object],
) -> None:
    service = serve()
    publish(service, "sound")
    damaged = publish(service, "damaged")
    assert len(service.http.get("/models").json()["models"]) == 2
    damage(damaged.path / file)
    with caplog.at_level(logging.WARNING):
        listed = service.http.get("/models")
    assert listed.status_code == 200
    assert [model["name"] for model in listed.json()["models"]] == ["sound"]
    assert "damaged" in [vars(record).get("model") for record in caplog.records]
    answer = service.http.get("/models/damaged")
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:bitpress:problem:unavailable"
    assert answer.json()["remedy"]
    assert str(service.settings.data_dir) not in answer.text
    assert 'packed_bytes{model="sound"' in service.http.get("/metrics").text


def test_a_long_catalogue_reads_each_artifact_once(
    serve: Any, publish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve()
    for number in range(3):
        publish(service, f"model-{number}", seed=number)
    read = artifacts.read_heading
    paths = []
    monkeypatch.setattr(artifacts, "read_heading", lambda path: paths.append(path) or read(path))
    first, second = (service.http.get("/models").json() for _ in range(2))
    assert first == second
    assert len(paths) == len(set(paths)) == 3
