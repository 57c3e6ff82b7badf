"""GET /jobs/{id}/report of jobs that are over; tests/app/test_compress.py has the queued ones."""

import json
from typing import Any

import pytest

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
