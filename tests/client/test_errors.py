from typing import Any

import httpx
import pytest

from client.errors import (
    BitpressProblem,
    CheckpointMismatch,
    GateRejected,
    InvalidCheckpoint,
    InvalidInput,
    JobCancelled,
    JobCrashed,
    JobFailed,
    NotFound,
    Overloaded,
    UnexpectedAnswer,
    raise_for_end,
    raise_for_problem,
)
from client.types import Job


def answer(status: int, content: Any, media_type: str) -> httpx.Response:
    request = httpx.Request("GET", "http://service/jobs/1")
    headers = {"content-type": media_type}
    if isinstance(content, bytes):
        return httpx.Response(status, content=content, headers=headers, request=request)
    return httpx.Response(status, json=content, headers=headers, request=request)


DOCUMENT = {
    "type": "urn:bitpress:problem:invalid-spec",
    "title": "The job specification is not valid",
    "status": 422,
    "detail": "There is no such method.",
    "field": "spec.method.name",
    "remedy": "Use one of: bwn, bwnh",
    "instance": "urn:request:7",
    "errors": [{"field": "spec.method.name"}],
}


def test_a_problem_document_becomes_an_exception_with_all_its_members() -> None:
    with pytest.raises(BitpressProblem) as caught:
        raise_for_problem(answer(422, DOCUMENT, "application/problem+json; charset=utf-8"))
    error = caught.value
    assert error.problem.model_dump(mode="json") == DOCUMENT
    assert (error.type, error.title, error.status) == (
        "urn:bitpress:problem:invalid-spec",
        "The job specification is not valid",
        422,
    )
    assert (error.detail, error.field, error.remedy) == (
        "There is no such method.",
        "spec.method.name",
        "Use one of: bwn, bwnh",
    )
    assert str(error) == "There is no such method."


def test_a_problem_without_a_status_takes_the_answers() -> None:
    with pytest.raises(BitpressProblem) as caught:
        raise_for_problem(answer(503, {"title": "Closed"}, "application/problem+json"))
    assert caught.value.status == 503
    assert caught.value.type == "about:blank"


@pytest.mark.parametrize(
    ("status", "content", "media_type"),
    [
        (502, b"<html>Bad gateway</html>", "text/html"),
        (500, {"detail": "no problem document"}, "application/json"),
        (500, b"{", "application/problem+json"),
        (500, [], "application/problem+json"),
        (500, {"title": {"not": "text"}}, "application/problem+json"),
        (307, b"", "text/plain"),
    ],
)
def test_an_error_that_is_no_problem_document_says_who_answered(
    status: int, content: Any, media_type: str
) -> None:
    with pytest.raises(UnexpectedAnswer, match=rf"http://service/jobs/1 answered {status}"):
        raise_for_problem(answer(status, content, media_type))


def test_success_passes() -> None:
    raise_for_problem(answer(202, {}, "application/json"))


def test_a_failed_job_carries_its_problem(job_record: Any) -> None:
    failed = Job.model_validate(job_record(state="failed", problem=DOCUMENT))
    assert JobFailed(failed).remedy == "Use one of: bwn, bwnh"
    assert JobFailed(failed).job is failed


def test_a_job_that_ended_without_a_problem_says_how(job_record: Any) -> None:
    cancelled = Job.model_validate(job_record(state="cancelled"))
    assert str(JobFailed(cancelled)) == "The job ended as cancelled"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("not-found", NotFound),
        ("overloaded", Overloaded),
        ("checkpoint-mismatch", CheckpointMismatch),
        ("of-a-newer-service", BitpressProblem),
        # A job's end, which is no answer to a request.
        ("cancelled", BitpressProblem),
    ],
)
def test_a_problems_type_chooses_its_class(code: str, kind: type[BitpressProblem]) -> None:
    document = {**DOCUMENT, "type": f"urn:bitpress:problem:{code}"}
    with pytest.raises(BitpressProblem) as caught:
        raise_for_problem(answer(422, document, "application/problem+json"))
    assert type(caught.value) is kind


def test_a_class_stands_for_those_below_it() -> None:
    assert issubclass(CheckpointMismatch, InvalidCheckpoint)
    assert issubclass(InvalidCheckpoint, InvalidInput)
    assert issubclass(GateRejected, JobFailed)


@pytest.mark.parametrize(
    ("state", "code", "kind"),
    [
        ("failed", "invalid-checkpoint", JobFailed),
        ("failed", "job-crashed", JobCrashed),
        ("cancelled", "cancelled", JobCancelled),
        ("rejected", "accuracy-gate", GateRejected),
        ("failed", None, JobFailed),
    ],
)
def test_how_a_job_ended_chooses_the_class(
    job_record: Any, state: str, code: str | None, kind: type[JobFailed]
) -> None:
    problem = code and {**DOCUMENT, "type": f"urn:bitpress:problem:{code}"}
    job = Job.model_validate(job_record(state=state, problem=problem))
    with pytest.raises(JobFailed) as caught:
        raise_for_end(job)
    assert type(caught.value) is kind
    assert caught.value.job is job


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_a_job_that_did_not_end_badly_raises_nothing(job_record: Any, state: str) -> None:
    raise_for_end(Job.model_validate(job_record(state=state)))
