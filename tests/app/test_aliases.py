"""Aliases and deletions over HTTP, and predictions by alias."""

import base64
from pathlib import Path
from typing import Any

import pytest

from store.artifacts import ModelStore


def predict(service: Any, image: bytes, version: Any = None) -> Any:
    body = {"model": "one", "images": [base64.b64encode(image).decode()]}
    return service.http.post(
        "/predict", json=body if version is None else {**body, "version": version}
    )


@pytest.fixture
def service(serve: Any, publish: Any) -> Any:
    """A service of one test's own, with two versions of a model that answer differently."""
    service = serve()
    for seed in (1, 2):
        publish(service, "one", seed=seed)
    return service


def loaded(service: Any) -> set[int]:
    """The versions in memory, as the metrics tell them."""
    lines = service.http.get("/metrics").text.splitlines()
    shown = [line for line in lines if line.startswith("bitpress_model_resident_bytes{")]
    return {int(line.split('version="')[1].split('"')[0]) for line in shown}


def store_of(service: Any) -> ModelStore:
    """The store as another process sees it."""
    return ModelStore(service.settings.models_dir)


def test_an_alias_is_made_moved_listed_and_deleted(service: Any) -> None:
    http = service.http
    path = "/models/one/aliases/live"
    made = http.put(path, json={"version": 1})
    assert (made.status_code, made.json()) == (201, {"model": "one", "alias": "live", "version": 1})
    moved = http.put(path, json={"version": 2})
    assert (moved.status_code, moved.json()["version"]) == (200, 2)
    assert http.get("/models/one/aliases").json() == {"model": "one", "aliases": {"live": 2}}
    assert http.get("/models/one").json()["aliases"] == {"live": 2}
    deleted = http.delete(path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert "content-type" not in deleted.headers
    assert http.delete(path).status_code == 404
    assert http.get("/models/one/aliases").json()["aliases"] == {}


@pytest.mark.parametrize(
    ("name", "alias", "body", "status", "field"),
    [
        ("absent", "live", {"version": 1}, 404, "name"),
        ("one", "live", {"version": 3}, 404, "version"),
        ("one", "latest", {"version": 1}, 422, "alias"),
        ("one", "Live", {"version": 1}, 422, "alias"),
        ("one", "7", {"version": 1}, 422, "alias"),
        ("one", "a" * 65, {"version": 1}, 422, "alias"),
        ("one", "live", {"version": 0}, 422, "version"),
        ("one", "live", {"version": "1"}, 422, "version"),
        ("one", "live", {"version": True}, 422, "version"),
        ("one", "live", {"version": 10**30}, 422, "version"),
        ("one", "live", {}, 422, "version"),
        ("one", "live", {"version": 1, "more": 1}, 422, "more"),
        ("one", "live", [], 422, None),
    ],
)
def test_an_alias_that_cannot_be_is_refused_by_field(
    service: Any, name: str, alias: str, body: Any, status: int, field: str | None
) -> None:
    answer = service.http.put(f"/models/{name}/aliases/{alias}", json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json().get("field") == field
    assert answer.json()["remedy"]
    assert store_of(service).aliases("one") == {}


def test_a_number_of_json_may_be_written_with_a_point(service: Any) -> None:
    written = b'{"version": 1.0}'
    headers = {"Content-Type": "application/json"}
    answer = service.http.put("/models/one/aliases/live", content=written, headers=headers)
    assert answer.status_code == 201
    assert answer.json()["version"] == 1


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[" * 10_000, "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"version": 1}', "text/plain", 415),
        (b" " * 70_000 + b'{"version": 1}', "application/json", 413),
    ],
)
def test_a_body_that_cannot_be_read_sets_no_alias(
    service: Any, content: bytes, kind: str, status: int
) -> None:
    answer = service.http.put(
        "/models/one/aliases/live", content=content, headers={"Content-Type": kind}
    )
    assert answer.status_code == status
    assert answer.json()["type"].startswith("urn:bitpress:problem:")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("loaded", [True, False])
def test_a_damaged_version_gets_no_alias(
    service: Any, images: list[bytes], damage: Any, loaded: bool
) -> None:
    if loaded:
        assert predict(service, images[0], 2).status_code == 200
    damage(store_of(service).resolve("one", 2).artifact_path)
    answer = service.http.put("/models/one/aliases/live", json={"version": 2})
    assert answer.status_code == 503
    assert "version 2" in answer.json()["detail"]
    assert service.http.get("/models/one/aliases").json()["aliases"] == {}
    # What was loaded whole serves on.
    assert predict(service, images[0], 2).status_code == (200 if loaded else 503)


def test_an_alias_is_loaded_before_it_points(service: Any) -> None:
    assert loaded(service) == set()
    service.http.put("/models/one/aliases/live", json={"version": 1})
    assert loaded(service) == {1}


def test_predictions_say_which_version_answered_and_through_which_alias(
    service: Any, images: list[bytes]
) -> None:
    store = store_of(service)
    store.set_alias("one", "live", 1)
    by_number = {number: predict(service, images[0], number).json() for number in (1, 2)}
    assert by_number[1]["predictions"] != by_number[2]["predictions"]
    assert [by_number[number]["alias"] for number in (1, 2)] == [None, None]
    for version, answers in ((None, 2), ("latest", 2), ("live", 1)):
        answer = predict(service, images[0], version).json()
        assert answer["version"] == answers
        assert answer["alias"] == ("live" if version == "live" else None)
        assert answer["predictions"] == by_number[answers]["predictions"]
    # Moved by another process, it holds from the next request on.
    store.set_alias("one", "live", 2)
    assert predict(service, images[0], "live").json()["version"] == 2


@pytest.mark.parametrize("version", ["live", "1", "latest"])
def test_an_alias_works_in_the_form_and_in_the_query(
    service: Any, images: list[bytes], version: str
) -> None:
    service.http.put("/models/one/aliases/live", json={"version": 1})
    options = {"model": "one", "version": version}
    in_form = service.http.post("/predict", data=options, files=[("images", ("a", images[0]))])
    in_query = service.http.post(
        "/predict", params=options, content=images[0], headers={"Content-Type": "image/png"}
    )
    assert in_form.json()["version"] == in_query.json()["version"] == 1 + (version == "latest")


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("absent", 404),
        (3, 404),
        (0, 422),
        (-1, 422),
        ("", 422),
        ("Live", 422),
        (1.5, 422),
        ([], 422),
    ],
)
def test_a_version_that_cannot_be_is_a_problem_of_the_version(
    service: Any, images: list[bytes], version: Any, status: int
) -> None:
    answer = predict(service, images[0], version)
    assert answer.status_code == status
    assert answer.json()["field"] == "version"
    assert answer.json()["remedy"]


def test_what_an_alias_points_to_is_not_deleted(service: Any) -> None:
    http = service.http
    http.put("/models/one/aliases/live", json={"version": 1})
    for path, field in (("/models/one/versions/1", "version"), ("/models/one", "name")):
        answer = http.delete(path)
        assert answer.status_code == 409
        assert answer.json()["field"] == field
        assert "live" in answer.json()["detail"]
    assert http.get("/models/one").json()["versions"] == [1, 2]
    http.put("/models/one/aliases/live", json={"version": 2})
    assert http.delete("/models/one/versions/1").status_code == 204
    assert http.get("/models/one").json()["versions"] == [2]


def test_what_is_deleted_is_not_found_and_takes_no_memory(
    service: Any, images: list[bytes]
) -> None:
    http = service.http
    assert predict(service, images[0], 2).json()["version"] == 2
    assert predict(service, images[0], 1).json()["version"] == 1
    answer = http.delete("/models/one/versions/2")
    assert (answer.status_code, answer.content) == (204, b"")
    assert loaded(service) == {1}
    assert predict(service, images[0]).json()["version"] == 1
    for gone in (
        predict(service, images[0], 2),
        http.get("/models/one/versions/2"),
        http.get("/models/one/versions/2/artifact"),
        http.delete("/models/one/versions/2"),
    ):
        assert gone.status_code == 404
        assert gone.json()["field"] == "version"
    assert http.delete("/models/one").status_code == 204
    for gone in (predict(service, images[0]), http.get("/models/one"), http.delete("/models/one")):
        assert gone.status_code == 404
    assert http.get("/models").json() == {"models": []}
    assert loaded(service) == set()


def test_what_another_process_deletes_leaves_the_memory_too(
    service: Any, images: list[bytes], wait_until: Any
) -> None:
    assert predict(service, images[0], 1).status_code == 200
    assert loaded(service) == {1}
    store_of(service).delete("one", 1)
    assert predict(service, images[0], 1).status_code == 404
    wait_until(lambda: not loaded(service), "the deleted model to leave the memory")
