"""GET /models, and the artifact's file."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models import artifact as artifacts
from models import runtime
from store.artifacts import ModelStore, ModelVersion


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
        "aliases": {},
        "accuracy": {
            "full_precision": 0.875,
            "calibrated": 0.8,
            "fine_tuned": None,
            "packed": 0.75,
            "packed_float_activations": None,
        },
        "bytes": {"float": 4096, "packed": 1024},
        "compression_ratio": 4.0,
        "latency": None,
        "gate": None,
        "input": {
            "channels": 3,
            "height": 8,
            "width": 8,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.3, 0.4],
            "value_range": [0.0, 1.0],
            "resize": None,
        },
        "labels": ["cat", "dog", "owl"],
        "runtime": runtime.choose(),
        "kernels": runtime.kernels_of(runtime.choose()),
        "digest": latest.digest,
        "job": "job-of-first-2",
        "created_at": latest.created_at,
    }
    assert [*model][:4] == ["name", "latest", "versions", "aliases"]
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
    assert of_partly["fine_tuned"] == 0.85
    assert of_partly["packed_float_activations"] is None
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


LATENCY = {
    "threads": 1,
    "batch": 1,
    "repeats": 20,
    "packed_ms": 0.5,
    "packed_spread": 0.02,
    "float_spread": 0.04,
    "float_ms": 2.0,
    "speedup": 4.0,
}
GATE = {
    "max_accuracy_drop": 0.02,
    "images": 400,
    "full_precision": 0.9,
    "packed": 0.89,
    "drop": 0.01,
    "standard_error": 0.005,
    "passed": True,
}


def test_what_the_evaluation_measured_besides_stands_in_the_catalogue(
    service: Any, publish: Any
) -> None:
    publish(service, "measured", report={"latency": LATENCY, "gate": GATE})
    for path in ("/models/measured", "/models/measured/versions/1"):
        answer = service.http.get(path).json()
        assert (answer["latency"], answer["gate"]) == (LATENCY, GATE)


def test_versions_are_told_one_by_one_with_their_aliases(service: Any, publish: Any) -> None:
    first, second = (publish(service, "two", seed=seed) for seed in (1, 2))
    service.http.put("/models/two/aliases/live", json={"version": 1})
    service.http.put("/models/two/aliases/old", json={"version": 1})
    listed = service.http.get("/models/two/versions").json()
    assert listed["model"] == "two"
    described = [(one["version"], one["digest"], one["aliases"]) for one in listed["versions"]]
    assert described == [(2, second.digest, []), (1, first.digest, ["live", "old"])]
    for one in listed["versions"]:
        assert service.http.get(f"/models/two/versions/{one['version']}").json() == one
    model = service.http.get("/models/two").json()
    assert model["aliases"] == {"live": 1, "old": 1}
    both = model.keys() & listed["versions"][0].keys() - {"aliases"}
    assert {key: model[key] for key in both} == {key: listed["versions"][0][key] for key in both}


def test_versions_come_in_pages_that_miss_nothing(
    service: Any, publish: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(1, 8):
        publish(service, "many", seed=seed)
    store = ModelStore(service.settings.models_dir)
    store.delete("many", 3)
    found, sizes = [], []
    before: int | None = None
    while True:
        query = {"limit": 2} | ({} if before is None else {"before": before})
        page = service.http.get("/models/many/versions", params=query).json()
        found += [one["version"] for one in page["versions"]]
        sizes.append(len(page["versions"]))
        # One that comes meanwhile is not below any page, and one that goes leaves no gap.
        publish(service, "many", seed=100 + len(found))
        before = page["next"]
        if before is None:
            break
    assert (found, sizes) == ([7, 6, 5, 4, 2, 1], [2, 2, 2])
    (store.resolve("many", 2).path / "report.json").unlink()
    with caplog.at_level(logging.WARNING):
        page = service.http.get("/models/many/versions", params={"before": 5}).json()
    assert [one["version"] for one in page["versions"]] == [4, 1]
    assert page["next"] is None
    assert [vars(record).get("version") for record in caplog.records] == [2]
    for wrong in ({"limit": 0}, {"limit": 1001}, {"before": 0}, {"before": "x"}):
        answer = service.http.get("/models/many/versions", params=wrong)
        assert (answer.status_code, answer.json()["field"]) == (422, *wrong)


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/models/absent/versions", 404, "name"),
        ("/models/absent/versions/1", 404, "name"),
        ("/models/absent/aliases", 404, "name"),
        ("/models/first/versions/9", 404, "version"),
        ("/models/first/versions/0", 422, "version"),
        ("/models/First/versions", 422, "name"),
    ],
)
def test_what_is_not_there_is_a_problem_of_its_part_of_the_path(
    service: Any, path: str, status: int, field: str
) -> None:
    answer = service.http.get(path)
    assert (answer.status_code, answer.json()["field"]) == (status, field)


def test_damaged_aliases_are_null_and_the_model_is_shown(service: Any, publish: Any) -> None:
    version = publish(service, "muddled")
    (version.path.parent / "aliases.json").write_text("{")
    assert service.http.get("/models/muddled").json()["aliases"] is None
    assert service.http.get("/models/muddled/versions/1").json()["aliases"] is None
    answer = service.http.get("/models/muddled/aliases")
    assert answer.status_code == 503
    assert answer.json()["remedy"]


ARTIFACT = "/models/second/versions/1/artifact"


def test_the_artifact_comes_whole_and_under_its_digest(service: Any, publish: Any) -> None:
    version = publish(service, "second")
    answer = service.http.get(ARTIFACT)
    assert answer.status_code == 200
    assert "sha256:" + hashlib.sha256(answer.content).hexdigest() == version.digest
    assert answer.headers["etag"] == f'"{version.digest}"'
    assert answer.headers["content-length"] == str(version.artifact_bytes)
    assert answer.headers["content-disposition"] == 'attachment; filename="second-v1.safetensors"'
    unchanged = service.http.get(ARTIFACT, headers={"If-None-Match": f'"x", "{version.digest}"'})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-9", 5, 9),
        ("Bytes= 5-9", 5, 9),
        ("bytes=-7", -7, -1),
        ("bytes=-999999999", 0, -1),
        ("bytes=8-", 8, -1),
        ("bytes=8-999999999999", 8, -1),
    ],
)
def test_a_part_of_the_artifact_comes_alone(
    service: Any, publish: Any, asked: str, first: int, last: int
) -> None:
    version = publish(service, "second")
    whole = version.artifact_path.read_bytes()
    size = len(whole)
    first, last = first % size, last % size
    answer = service.http.get(ARTIFACT, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == whole[first : last + 1]
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{size}"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["etag"] == f'"{version.digest}"'


@pytest.mark.parametrize(
    "asked", ["bytes=5-1", "bytes=0-1,4-5", "lines=0-1", "bytes=-", "bytes=a-b", "", "bytes=1-2x"]
)
def test_ranges_that_need_not_be_understood_are_ignored(
    service: Any, publish: Any, asked: str
) -> None:
    version = publish(service, "second")
    answer = service.http.get(ARTIFACT, headers={"Range": asked})
    assert answer.status_code == 200
    assert len(answer.content) == version.artifact_bytes


@pytest.mark.parametrize("asked", ["bytes=-0", "bytes=999999999-", "bytes=999999999-9999999999"])
def test_bytes_that_are_not_there_are_a_problem(service: Any, publish: Any, asked: str) -> None:
    version = publish(service, "second")
    answer = service.http.get(ARTIFACT, headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{version.artifact_bytes}"
    assert answer.json()["type"] == "urn:bitpress:problem:range-not-satisfiable"


def test_a_range_holds_only_for_the_file_that_the_caller_knows(service: Any, publish: Any) -> None:
    version = publish(service, "second")
    for known, status in ((f'"{version.digest}"', 206), ('"another"', 200)):
        headers = {"Range": "bytes=0-3", "If-Range": known}
        assert service.http.get(ARTIFACT, headers=headers).status_code == status


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


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-3"}])
def test_an_artifact_of_another_size_is_not_sent(
    service: Any, publish: Any, headers: dict[str, str]
) -> None:
    cut(publish(service, "short", job_id=str(headers)).artifact_path)
    version = ModelStore(service.settings.models_dir).resolve("short").version
    answer = service.http.get(f"/models/short/versions/{version}/artifact", headers=headers)
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:bitpress:problem:unavailable"
    assert answer.json()["remedy"]


def overwrite(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def change(**members: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | members))


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
        ("version.json", change(created_at=5)),
        ("version.json", change(job_id=None)),
        ("version.json", change(digest=7)),
        ("version.json", change(artifact_bytes="7")),
        ("report.json", change(spec={"architecture": 7, "method": {"name": "bwnh"}})),
        ("report.json", change(spec={"architecture": "vgg9", "method": {"name": None}})),
        ("report.json", change(compression_ratio={})),
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


def test_a_version_deleted_while_it_is_read_spoils_neither_list_nor_scrape(
    serve: Any, publish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve()
    publish(service, "stays")
    other = ModelStore(service.settings.models_dir)
    listed = ModelStore.list

    def deleted_at_once(store: ModelStore) -> list[ModelVersion]:
        found = listed(store)
        other.delete_model("goes")
        return found

    for path in ("/models", "/metrics"):
        publish(service, "goes", job_id=path)
        monkeypatch.setattr(ModelStore, "list", deleted_at_once)
        answer = service.http.get(path)
        monkeypatch.undo()
        assert answer.status_code == 200
        if path == "/models":
            assert [model["name"] for model in answer.json()["models"]] == ["stays"]
        else:
            assert 'bitpress_store_up{part="models"} 1.0' in answer.text
            assert 'packed_bytes{model="stays"' in answer.text
            assert 'packed_bytes{model="goes"' not in answer.text


def test_the_latest_deleted_while_it_is_described_gives_way_to_the_new_latest(
    serve: Any, publish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve()
    for seed in (1, 2):
        publish(service, "one", seed=seed)
    other = ModelStore(service.settings.models_dir)
    resolve = ModelStore.resolve

    def deleted_at_once(store: ModelStore, *asked: Any) -> ModelVersion:
        found = resolve(store, *asked)
        monkeypatch.undo()
        other.delete("one", found.version)
        return found

    monkeypatch.setattr(ModelStore, "resolve", deleted_at_once)
    model = service.http.get("/models/one").json()
    assert (model["latest"], model["versions"]) == (1, [1])
