import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Run = Callable[..., int]
PROBLEM = {
    "type": "urn:bitpress:problem:cancelled",
    "title": "The job was cancelled",
    "detail": "Somebody cancelled it.",
    "remedy": "Retry it.",
}


def stream(*events: tuple[str, dict[str, Any]]) -> tuple[int, bytes, str]:
    text = "".join(
        f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
        for number, (kind, data) in enumerate(events, 1)
    )
    return 200, text.encode(), "text/event-stream"


def test_jobs_are_listed_newest_first(
    run: Run, service: Any, job_record: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [
        job_record(id="b", state="running", stage="calibrate", step="conv1", progress=0.25),
        job_record(id="a", state="succeeded", model={"name": "vgg9", "version": 3}),
    ]
    service.answers["GET /jobs?limit=20"] = (200, {"jobs": listed, "next": "more"})
    service.answers["GET /jobs?limit=20&cursor=more"] = (200, {"jobs": [], "next": None})
    assert run("jobs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [name for line in lines for name in ("b", "a") if f" {name} " in line] == ["b", "a"]
    assert any("calibrate conv1" in line and "25%" in line for line in lines)
    assert any("vgg9, version 3" in line for line in lines)


def test_no_more_pages_are_asked_for_than_are_wanted(
    run: Run, service: Any, job_record: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = "GET /jobs?state=failed&state=rejected&model=vgg9&limit=2"
    service.answers[path] = (200, {"jobs": [job_record(), job_record()], "next": "more"})
    command = ["jobs", "--state=failed", "--state=rejected", "--model=vgg9", "--limit=2", "--json"]
    assert run(*command) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [
        "job-1",
        "job-1",
    ]
    assert len(service.received) == 1


def test_no_jobs_are_told(run: Run, service: Any, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["GET /jobs?limit=20"] = (200, {"jobs": [], "next": None})
    assert run("jobs") == 0
    assert capsys.readouterr().out == "no jobs\n"


def test_a_job_is_shown_with_its_problem_and_remedy(
    run: Run, service: Any, job_record: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_record(state="cancelled", problem=PROBLEM, stage_seconds={"prepare": 1.25})
    service.answers["GET /jobs/job-1"] = (200, job)
    assert run("jobs", "job-1") == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (shown["state"], shown["problem"], shown["remedy"]) == (
        "cancelled",
        "The job was cancelled",
        "Retry it.",
    )
    assert shown["seconds"] == "prepare 1.2"


@pytest.mark.parametrize(("option", "path"), [("--cancel", "cancel"), ("--retry", "retry")])
def test_a_job_is_cancelled_and_retried(
    run: Run,
    service: Any,
    job_record: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    option: str,
    path: str,
) -> None:
    service.answers[f"POST /jobs/job-1/{path}"] = (202, job_record(state="cancelled"))
    assert run("jobs", "job-1", option) == 0
    assert "cancelled" in capsys.readouterr().out


def test_a_job_is_deleted(run: Run, service: Any, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["DELETE /jobs/job-1"] = (204, None)
    assert run("jobs", "job-1", "--delete") == 0
    assert len(service.received) == 1
    assert capsys.readouterr() == ("", "removed job job-1\n")


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_from_greenwich")
def test_times_are_those_of_the_service_and_say_so(
    run: Run, service: Any, job_record: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_record(state="failed", finished_at="2026-11-20T12:30:15.5+02:00")
    service.answers["GET /jobs?limit=20"] = (200, {"jobs": [job], "next": None})
    service.answers["GET /jobs/job-1"] = (200, job)
    assert run("jobs") == 0
    heads, row = (
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in capsys.readouterr().out.splitlines()[1:4:2]
    )
    assert heads[-2:] == ["queued (UTC)", "finished (UTC)"]
    assert row[-2:] == ["2026-11-20 10:00:00", "2026-11-20 10:30:15"]
    assert run("jobs", "job-1") == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["finished"] == "2026-11-20 10:30:15 UTC"


def test_a_watched_job_gives_a_line_for_each_step_and_then_its_figures(
    run: Run,
    service: Any,
    job_record: Callable[..., Any],
    report_document: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    service.answers["GET /jobs/job-1"] = [
        (200, job_record()),
        (200, job_record(state="succeeded", progress=1.0, model={"name": "vgg9", "version": 4})),
    ]
    service.answers["GET /jobs/job-1/events"] = stream(
        ("started", {}),
        ("stage", {"stage": "calibrate"}),
        ("progress", {"stage": "calibrate", "step": "conv1", "progress": 0.1}),
        ("sweep", {"layer": "conv1", "base": 1, "sweep": 3, "loss": 0.5}),
        ("progress", {"stage": "calibrate", "step": "conv1", "progress": 0.2}),
        ("progress", {"stage": "calibrate", "step": "conv2", "progress": 0.3}),
    )
    service.answers["GET /jobs/job-1/report"] = (200, report_document)
    assert run("jobs", "job-1", "--watch") == 0
    output = capsys.readouterr()
    assert output.err.splitlines() == [
        "  0% queued",
        "  0% running",
        "  0% calibrate",
        " 10% calibrate conv1",
        " 30% calibrate conv2",
        "100% succeeded",
    ]
    assert "vgg9, version 4" in output.out
    assert "62.50%" in output.out


def test_a_watched_job_that_is_cancelled_is_a_failure_with_its_remedy(
    run: Run, service: Any, job_record: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers["GET /jobs/job-1"] = (200, job_record(state="cancelled", problem=PROBLEM))
    assert run("jobs", "job-1", "--watch") == 1
    assert capsys.readouterr().err.endswith(
        "error: The job was cancelled\n  detail: Somebody cancelled it.\n  remedy: Retry it.\n"
    )


def test_a_watched_job_as_json_gives_its_events(
    run: Run, service: Any, job_record: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers["GET /jobs/job-1"] = (200, job_record(state="succeeded"))
    service.answers["GET /jobs/job-1/events"] = [
        stream(("queued", {}), ("succeeded", {"id": "job-1"})),
        (204, None),
    ]
    assert run("jobs", "job-1", "--watch", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["seq"], line["kind"]) for line in lines] == [(1, "queued"), (2, "succeeded")]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cancel"],
        ["--watch"],
        ["job-1", "--cancel", "--retry"],
        ["job-1", "--cancel", "--watch"],
        ["--state=melted"],
        ["--limit=0"],
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(
    run: Run, service: Any, arguments: list[str]
) -> None:
    assert run("jobs", *arguments) == 2
    assert not service.received
