"""GET /jobs/{id}/report of jobs that are over; tests/app/test_compress.py has the queued ones."""

import json
from typing import Any

import pytest

from app.routes.jobs import job_answer
from store.errors import JobCrashed
from store.job_record import Job

MOMENT = "2026-11-20T14:44:27.000Z"


def over(job_id: str, **members: Any) -> Job:
    return Job(id=job_id, spec={}, created_at=MOMENT, updated_at=MOMENT, **members)


JOBS = {
    "done": over("done", state="succeeded", model={"name": "small", "version": 1}),
    "failed": over("failed", state="failed", problem=JobCrashed("It died.").problem()),
}


@pytest.fixture
def ready(service: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The service with a job that succeeded, whose model is gone, and one that failed."""
    monkeypatch.setattr(service.app.state.services.jobs, "get", JOBS.__getitem__)
    for job_id in JOBS:
        (service.settings.jobs_dir / job_id).mkdir(parents=True, exist_ok=True)
    return service


def test_a_report_outlasts_the_model(ready: Any) -> None:
    report = {"schema": 1, "job": "done", "model": {"name": "small", "version": 1}}
    (ready.settings.jobs_dir / "done" / "report.json").write_text(json.dumps(report))
    assert ready.http.get("/models/small").status_code == 404
    answer = ready.http.get("/jobs/done/report")
    assert (answer.status_code, answer.json()) == (200, report)


REPORT = {
    "schema": 1,
    "job": "done",
    "model": {"name": "small", "version": 1},
    "spec": {"architecture": "vgg9", "dataset": "animals", "method": {"name": "bwnh"}},
    "accuracy": {"full_precision": 0.9, "calibrated": 0.8, "packed": 0.8},
    "test_images": 10,
    "calibration": "all 20 training images",
    "layers": [],
    "bytes": {"float": 4096, "packed": 1024},
    "compression_ratio": 4.0,
}


def keep_report(ready: Any, report: dict[str, Any]) -> None:
    (ready.settings.jobs_dir / "done" / "report.json").write_text(json.dumps(report))


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html;q=0.5, */*", ""])
def test_a_report_is_json_unless_html_is_preferred(ready: Any, accept: str) -> None:
    keep_report(ready, REPORT)
    answer = ready.http.get("/jobs/done/report", headers={"Accept": accept})
    assert (answer.status_code, answer.json()) == (200, REPORT)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"] == "Accept"


def test_a_browser_gets_the_report_as_a_page(ready: Any) -> None:
    keep_report(ready, REPORT)
    accept = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    answer = ready.http.get("/jobs/done/report", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"] == "Accept"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 's")
    assert "<h1><bdi>small</bdi>, version 1</h1>" in answer.text


def test_several_accept_headers_count_as_one(ready: Any) -> None:
    keep_report(ready, REPORT)
    headers = [("Accept", "application/json;q=0.5"), ("Accept", "text/html;q=0.9")]
    request = ready.http.build_request("GET", "/jobs/done/report", headers=headers)
    assert ready.http.send(request).headers["content-type"].startswith("text/html")


def test_a_form_that_a_report_does_not_have_is_a_problem(ready: Any) -> None:
    keep_report(ready, REPORT)
    answer = ready.http.get("/jobs/done/report", headers={"Accept": "image/png"})
    assert answer.status_code == 406
    problem = answer.json()
    assert problem["type"] == "urn:bitpress:problem:not-acceptable"
    assert (problem["field"], answer.headers["vary"]) == ("Accept", "Accept")
    assert "text/html" in problem["remedy"]


def test_a_page_of_a_report_that_is_none_is_a_problem(ready: Any) -> None:
    keep_report(ready, {"schema": 1})
    answer = ready.http.get("/jobs/done/report", headers={"Accept": "text/html"})
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:bitpress:problem:unavailable"


def test_without_a_report_a_browser_too_gets_a_problem(ready: Any) -> None:
    answer = ready.http.get("/jobs/failed/report", headers={"Accept": "text/html"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_report_that_is_gone_or_damaged_is_a_problem(ready: Any) -> None:
    path = ready.settings.jobs_dir / "done" / "report.json"
    path.unlink(missing_ok=True)
    answers = [ready.http.get("/jobs/done/report")]
    path.write_text("{")
    answers.append(ready.http.get("/jobs/done/report"))
    assert [answer.status_code for answer in answers] == [404, 503]
    assert all(answer.json()["remedy"] for answer in answers)


def test_a_failed_job_has_no_report(ready: Any) -> None:
    answer = ready.http.get("/jobs/failed/report")
    assert answer.status_code == 404
    assert "failed" in answer.json()["detail"]


def test_a_job_shows_the_epochs_of_its_training() -> None:
    epoch = {
        "epoch": 1,
        "loss": 0.5,
        "train_accuracy": 0.75,
        "images_per_second": 300.0,
        "learning_rate": 0.001,
        "seconds": 150.0,
    }
    answer = job_answer(over("trained", state="running", epochs=(epoch,)))
    assert answer.model_dump()["epochs"] == [epoch]
