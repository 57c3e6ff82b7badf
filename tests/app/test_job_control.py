"""Jobs under control over HTTP: cancelled, tried again, deleted, paged, and made once for a key."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy
import sqlalchemy as sa

from models import registry
from store.database import open_engine
from store.errors import InvalidCheckpoint
from store.verdicts import Verdicts

NETWORK: dict[str, Any] = {"channels": 3, "height": 32, "width": 32, "classes": 3}
SPEC: dict[str, Any] = {
    "name": "small",
    "architecture": "vgg9",
    "architecture_parameters": {"width": 0.0625},
    "dataset": "animals",
    "method": {"name": "bwnh"},
}
SetStatus = Callable[[str, str], None]


def checkpoint_of(fill: float) -> bytes:
    shapes = registry.expected_shapes("vgg9", **NETWORK, parameters={"width": 0.0625})
    tensors = {name: np.full(shape, fill, np.float32) for name, shape in shapes.items()}
    return safetensors.numpy.save(tensors)


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    return checkpoint_of(0.5)


@pytest.fixture
def ready(service: Any, archive: bytes) -> Any:
    """The service with a dataset of three classes, and no jobs."""
    answer = service.http.post("/datasets", data={"name": "animals"}, files={"archive": archive})
    assert answer.status_code in (200, 201)
    return service


@pytest.fixture
def engine(service: Any) -> Iterator[sa.Engine]:
    engine = open_engine(service.settings.database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def set_status(engine: sa.Engine) -> SetStatus:
    """Give a job another status, as DBOS would."""
    statement = sa.text("UPDATE workflow_status SET status = :status WHERE workflow_uuid = :id")

    def change(job_id: str, status: str) -> None:
        with engine.begin() as connection:
            connection.execute(statement, {"id": job_id, "status": status})

    return change


def compress(
    service: Any, file: bytes | None, key: str | None = None, **members: Any
) -> httpx.Response:
    parts: dict[str, Any] = {"spec": (None, json.dumps({**SPEC, **members}))}
    if file is not None:
        parts["checkpoint"] = file
    headers = {} if key is None else {"Idempotency-Key": key}
    answer: httpx.Response = service.http.post("/compress", files=parts, headers=headers)
    return answer


def submitted(service: Any, checkpoint: bytes, **members: Any) -> str:
    answer = compress(service, checkpoint, **members)
    assert answer.status_code == 202
    return str(answer.json()["id"])


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["type"] == f"urn:bitpress:problem:{code}"
    assert problem["remedy"]
    return problem


def test_a_job_is_cancelled_tried_again_and_deleted(ready: Any, checkpoint: bytes) -> None:
    job_id = submitted(ready, checkpoint)
    folder: Path = ready.settings.jobs_dir / job_id
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()

    cancelled = ready.http.post(f"/jobs/{job_id}/cancel")
    assert cancelled.status_code == 202
    job = cancelled.json()
    assert (job["state"], job["model"]) == ("cancelled", None)
    assert job["problem"]["type"] == "urn:bitpress:problem:cancelled"
    assert job == ready.http.get(f"/jobs/{job_id}").json()
    again = ready.http.post(f"/jobs/{job_id}/cancel")
    assert (again.status_code, again.json()) == (202, job)

    retried = ready.http.post(f"/jobs/{job_id}/retry")
    assert retried.status_code == 202
    assert retried.json()["id"] == job_id
    assert (retried.json()["state"], retried.json()["problem"]) == ("queued", None)
    refused(ready.http.post(f"/jobs/{job_id}/retry"), 409, "conflict")
    problem = refused(ready.http.delete(f"/jobs/{job_id}"), 409, "conflict")
    assert "/cancel" in problem["remedy"]

    ready.http.post(f"/jobs/{job_id}/cancel")
    deleted = ready.http.delete(f"/jobs/{job_id}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert "content-type" not in deleted.headers
    assert not folder.exists()
    refused(ready.http.get(f"/jobs/{job_id}"), 404, "not-found")
    # The upload stays: another job may name it by its digest.
    assert compress(ready, None, checkpoint=job["spec"]["checkpoint"]).status_code == 202


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/cancel"), ("POST", "/retry"), ("DELETE", "")]
)
def test_an_unknown_job_is_not_found(ready: Any, method: str, path: str) -> None:
    refused(ready.http.request(method, f"/jobs/absent{path}"), 404, "not-found")
    assert ready.http.request(method, f"/jobs/{'a' * 65}{path}").status_code == 422


def test_a_job_that_is_being_published_cannot_be_cancelled(
    ready: Any, checkpoint: bytes, engine: sa.Engine, set_status: SetStatus
) -> None:
    job_id = submitted(ready, checkpoint)
    Verdicts(engine).give(job_id, "publish")
    set_status(job_id, "PENDING")
    problem = refused(ready.http.post(f"/jobs/{job_id}/cancel"), 409, "conflict")
    assert "published" in problem["detail"]


def test_a_rejected_job_says_what_to_do_instead_of_a_retry(
    ready: Any, checkpoint: bytes, engine: sa.Engine
) -> None:
    job_id = submitted(ready, checkpoint)
    rejected = {
        "state": "rejected",
        "problem": {
            "type": "urn:bitpress:problem:accuracy-gate",
            "title": "The model lost more accuracy than the job allows",
            "detail": "A drop of 3 points.",
        },
    }
    engine_of = sa.text("UPDATE workflow_status SET status = 'SUCCESS' WHERE workflow_uuid = :id")
    output = sa.text("INSERT INTO workflow_output VALUES (:id, :output, NULL, 0)")
    with engine.begin() as connection:
        connection.execute(engine_of, {"id": job_id})
        connection.execute(output, {"id": job_id, "output": json.dumps(rejected)})
    Verdicts(engine).give(job_id, "reject")
    job = ready.http.get(f"/jobs/{job_id}").json()
    assert (job["state"], job["problem"]["detail"]) == ("rejected", "A drop of 3 points.")
    listed = ready.http.get("/jobs", params={"state": "rejected"}).json()["jobs"]
    assert [one["id"] for one in listed] == [job_id]
    problem = refused(ready.http.post(f"/jobs/{job_id}/retry"), 409, "conflict")
    assert "max_accuracy_drop" in problem["remedy"]
    # It has a report all the same.
    folder = ready.settings.jobs_dir / job_id
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({"job": job_id, "model": None}))
    assert ready.http.get(f"/jobs/{job_id}/report").json()["model"] is None


def test_a_retry_needs_no_dataset_that_is_gone(
    ready: Any, checkpoint: bytes, archive: bytes
) -> None:
    """The worker will say so, where it is still needed."""
    data = {"name": "passing"}
    assert ready.http.post("/datasets", data=data, files={"archive": archive}).status_code < 300
    job_id = submitted(ready, checkpoint, dataset="passing")
    ready.http.post(f"/jobs/{job_id}/cancel")
    assert ready.http.delete("/datasets/passing").status_code == 204
    assert ready.http.post(f"/jobs/{job_id}/retry").status_code == 202


# Pages


def test_pages_of_jobs_fit_together(ready: Any, checkpoint: bytes) -> None:
    ids = [submitted(ready, checkpoint, name="paged") for _ in range(5)]
    found: list[str] = []
    parameters = {"limit": "2", "model": "paged", "state": "queued"}
    while True:
        answer = ready.http.get("/jobs", params=parameters)
        assert answer.status_code == 200
        page = answer.json()
        assert set(page) == {"jobs", "next"}
        found += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        parameters["cursor"] = page["next"]
        # One more, which does not shift the rest.
        submitted(ready, checkpoint, name="paged")
    assert found == ids[::-1]


def test_jobs_are_listed_in_several_states(ready: Any, checkpoint: bytes) -> None:
    queued, cancelled = (submitted(ready, checkpoint, name="stated") for _ in range(2))
    ready.http.post(f"/jobs/{cancelled}/cancel")

    def listed(*states: str) -> set[str]:
        parameters = [("model", "stated"), *(("state", state) for state in states)]
        page = ready.http.get("/jobs", params=parameters).json()
        return {job["id"] for job in page["jobs"]}

    assert listed() == listed("queued", "cancelled") == {queued, cancelled}
    assert listed("cancelled") == {cancelled}
    assert listed("running") == set()


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("cursor", "nonsense"),
        ("cursor", ""),
        ("cursor", "a" * 301),
        ("state", "done"),
        ("model", "No Name"),
        ("limit", "0"),
        ("limit", "201"),
    ],
)
def test_what_a_list_cannot_be_asked_for_is_refused(ready: Any, parameter: str, value: str) -> None:
    answer = ready.http.get("/jobs", params={parameter: value})
    problem = refused(answer, 422, "invalid-input")
    assert problem["field"].startswith(parameter)


# One job for a key


def test_a_request_that_is_repeated_makes_one_job(ready: Any, checkpoint: bytes) -> None:
    first = compress(ready, checkpoint, "repeat-1")
    assert first.status_code == 202
    assert "idempotency-replayed" not in first.headers
    files = ready.files()
    again = compress(ready, checkpoint, "repeat-1")
    assert again.status_code == 202
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == f"/jobs/{first.json()['id']}"
    assert again.json() == first.json()
    # Nor does it need the file again, where the digest tells the same.
    digest = first.json()["spec"]["checkpoint"]
    by_digest = compress(ready, None, "repeat-1", checkpoint=digest)
    assert by_digest.json()["id"] == first.json()["id"]
    assert by_digest.headers["idempotency-replayed"] == "true"
    assert ready.files() == files
    other = compress(ready, checkpoint, "repeat-2")
    assert other.json()["id"] != first.json()["id"]


@pytest.mark.parametrize(
    ("fill", "members"),
    [(0.5, {"name": "other"}), (0.25, {}), (None, {"checkpoint": "sha256:" + "1" * 64})],
)
def test_a_key_of_another_request_is_refused_and_leaves_nothing(
    ready: Any, checkpoint: bytes, fill: float | None, members: dict[str, Any]
) -> None:
    first = compress(ready, checkpoint, "mine")
    assert first.status_code == 202
    files = ready.files()
    sent = None if fill is None else checkpoint_of(fill)
    problem = refused(compress(ready, sent, "mine", **members), 422, "idempotency-key-reused")
    assert problem["field"] == "Idempotency-Key"
    assert ready.files() == files


def test_a_repeated_request_finds_its_job_though_nothing_of_it_is_left(
    ready: Any, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint was found unusable, its dataset has been deleted."""
    data = {"name": "gone-soon"}
    assert ready.http.post("/datasets", data=data, files={"archive": archive}).status_code < 300
    unusable = checkpoint_of(float("nan"))
    first = compress(ready, unusable, "left", dataset="gone-soon")
    assert first.status_code == 202
    job_id = first.json()["id"]
    ready.http.post(f"/jobs/{job_id}/cancel")
    assert ready.http.delete("/datasets/gone-soon").status_code == 204
    upload = ready.settings.uploads_dir / "sha256" / first.json()["spec"]["checkpoint"][7:]
    upload.unlink()
    problem = InvalidCheckpoint("A weight is not a number.").problem()
    store = ready.app.state.services.jobs
    failed = dataclasses.replace(store.get(job_id), state="failed", problem=problem)
    monkeypatch.setattr(store, "find", lambda _: failed)
    again = compress(ready, unusable, "left", dataset="gone-soon")
    assert (again.status_code, again.json()["id"]) == (202, job_id)
    assert again.json()["state"] == "failed"
    assert not upload.exists()


def test_a_repeated_request_brings_back_a_checkpoint_that_the_job_may_need(
    ready: Any, checkpoint: bytes
) -> None:
    first = compress(ready, checkpoint, "lost").json()
    files = ready.files()
    upload = ready.settings.uploads_dir / "sha256" / first["spec"]["checkpoint"][7:]
    upload.unlink()
    for _ in range(2):
        assert compress(ready, checkpoint, "lost").json()["id"] == first["id"]
        assert upload.read_bytes() == checkpoint
        assert ready.files() == files


@pytest.mark.parametrize("key", [None, "unsure"])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_job_of_which_the_answer_is_lost_keeps_its_checkpoint(
    ready: Any, monkeypatch: pytest.MonkeyPatch, key: str | None, is_known: bool
) -> None:
    """The job is queued, and then the database goes away: for a moment, or for longer."""
    content = checkpoint_of({None: 0.75, "unsure": 0.625}[key] + is_known)
    store = ready.app.state.services.jobs
    enqueue = store._client.enqueue

    def away(*_: object, **__: object) -> Any:
        raise sa.exc.OperationalError("COMMIT", {}, Exception("connection lost"))

    def broken(*arguments: Any) -> None:
        enqueue(*arguments)
        if not is_known:
            monkeypatch.setattr(store._client, "list_workflows", away)
        away()

    key = key and f"{key}-{is_known}"
    with monkeypatch.context() as patch:
        patch.setattr(store._client, "enqueue", broken)
        answer = compress(ready, content, key)
    monkeypatch.undo()
    assert answer.status_code == (202 if is_known else 503)
    upload = ready.settings.uploads_dir / "sha256" / hashlib.sha256(content).hexdigest()
    assert upload.read_bytes() == content
    jobs = ready.http.get("/jobs", params={"limit": 200}).json()["jobs"]
    queued = [job for job in jobs if job["spec"]["checkpoint"] == f"sha256:{upload.name}"]
    assert len(queued) == 1
    if is_known:
        assert answer.json() == queued[0]


def test_a_repeated_request_still_needs_a_checkpoint(ready: Any, checkpoint: bytes) -> None:
    compress(ready, checkpoint, "no-file")
    problem = refused(compress(ready, None, "no-file"), 422, "invalid-spec")
    assert problem["field"] == "checkpoint"


def test_the_key_of_a_deleted_job_makes_a_new_one(ready: Any, checkpoint: bytes) -> None:
    first = compress(ready, checkpoint, "free").json()["id"]
    ready.http.post(f"/jobs/{first}/cancel")
    assert ready.http.delete(f"/jobs/{first}").status_code == 204
    again = compress(ready, checkpoint, "free", name="something-else")
    assert again.status_code == 202
    assert "idempotency-replayed" not in again.headers
    assert again.json()["state"] == "queued"


def test_of_requests_with_one_key_at_once_one_makes_the_job(ready: Any, checkpoint: bytes) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = [*threads.map(lambda _: compress(ready, checkpoint, "at-once"), range(4))]
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    replayed = [answer.headers.get("idempotency-replayed") for answer in answers]
    assert sorted(map(str, replayed)) == ["None", "true", "true", "true"]
    assert not list((ready.settings.uploads_dir / "tmp").glob("[!.]*"))


def test_of_different_requests_with_one_key_at_once_one_is_refused(ready: Any) -> None:
    sent = {"one": checkpoint_of(0.125), "two": checkpoint_of(0.375)}
    with ThreadPoolExecutor(2) as threads:
        answers = [*threads.map(lambda name: compress(ready, sent[name], "clash", name=name), sent)]
    assert sorted(answer.status_code for answer in answers) == [202, 422]
    (made,) = [answer.json() for answer in answers if answer.status_code == 202]
    kept = {path.name for path in (ready.settings.uploads_dir / "sha256").iterdir()}
    assert made["spec"]["checkpoint"][7:] in kept
    other = {"one": "two", "two": "one"}[made["spec"]["name"]]
    assert hashlib.sha256(sent[other]).hexdigest() not in kept


@pytest.mark.parametrize("key", ["", "with space", "a" * 256, "tab\tkey", "ümlaut"])
def test_a_key_of_other_characters_is_refused(ready: Any, checkpoint: bytes, key: str) -> None:
    parts = {"spec": (None, json.dumps(SPEC)), "checkpoint": checkpoint}
    headers = {b"Idempotency-Key": key.encode()}
    answer = ready.http.post("/compress", files=parts, headers=headers)
    problem = refused(answer, 422, "invalid-input")
    assert problem["field"] == "Idempotency-Key"
