"""``bitpress report``, and what ``compress --wait`` shows of it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client import cli
from client.client import Client
from client.errors import UnexpectedAnswer

Run = Callable[..., int]
PAGE = "<!doctype html><title>résumé</title>".encode()


@pytest.fixture
def run(service: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``bitpress report`` against the fake service; return its exit code."""

    def run_command(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["bitpress", "report", *arguments, f"--url={service.url}"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return run_command


@pytest.fixture
def measured(service: Any, report_document: dict[str, Any]) -> dict[str, Any]:
    """The report that the service has of ``job-1``, with all figures."""
    report_document |= {
        "model": {"name": "vgg9", "version": 4},
        "test_images": 10_000,
        "calibration": "500 of 50,000 training images",
        "runtime": "cpu",
        "kernels": "avx2",
        "agreement": {"top1": 0.8, "of_right": 0.9, "change": -0.125, "standard_error": 0.0033},
        "confidence": {
            "full_precision": {"mean": 0.9, "expected_calibration_error": 0.03125, "bins": []},
            "packed": {"mean": 0.8, "expected_calibration_error": 0.0125, "bins": []},
        },
        "layers_by_loss": [
            {"name": f"features.[{index}]", "loss": 0.12345 / (index + 1)} for index in range(5)
        ],
    }
    service.answers["GET /jobs/job-1/report"] = (200, report_document)
    return report_document


def _cells(output: str, name: str) -> list[str]:
    """Return the other cells of the table's row of this name."""
    rows = ([cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines())
    (found,) = (row[1:] for row in rows if row[:1] == [name])
    return found


def test_the_report_shows_what_was_measured(
    run: Run, measured: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("job-1") == 0
    output = capsys.readouterr().out
    table = [line.split() for line in output.splitlines()]
    assert "vgg9, version 4" in output
    assert ["│", "accuracy", "│", "75.00%", "│", "62.50%", "│"] in table
    assert ["│", "answered", "as", "before", "│", "│", "80.00%", "│"] in table
    assert _cells(output, "expected calibration error of the confidence") == ["3.12%", "1.25%"]
    words = " ".join(output.split())
    assert "measured on 10,000 test images; calibrated on 500 of 50,000 training images" in words
    assert "the packed network ran on the runtime cpu, kernels avx2" in words
    assert "the accuracy's change is -12.50 points, standard error 0.33" in words
    assert (
        "the layers that lose most: features.[0] (0.123), features.[1] (0.0617), "
        "features.[2] (0.0411)" in words
    )


@pytest.mark.parametrize(
    ("count", "accuracy", "warned"),
    [
        (10, 0.1004, True),
        (10, 0.15, True),
        (10, 0.151, False),
        (2, 0.52, True),
        # Far from good, but no guesses: of two classes half of the answers are right by chance.
        (2, 0.7, False),
        (1000, 0.0014, True),
        (1000, 0.02, False),
        (1, 1.0, False),
    ],
)
def test_a_network_that_answers_by_chance_is_warned_of(
    run: Run,
    measured: dict[str, Any],
    count: int,
    accuracy: float,
    warned: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured["classes"] = [{"name": str(number)} for number in range(count)]
    measured["accuracy"]["full_precision"] = accuracy
    assert run("job-1") == 0
    told = capsys.readouterr().err
    assert ("the network answers no better than chance before compression" in told) is warned
    assert ("check --mean, --std, --value-range and the order of the classes" in told) is warned


@pytest.mark.parametrize(
    ("drop", "words"), [(-0.0074, "gained 0.74 points"), (0.8603, "lost 86.03 points")]
)
def test_the_gate_says_what_was_gained_or_lost(
    run: Run,
    measured: dict[str, Any],
    drop: float,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured["gate"] = {
        "max_accuracy_drop": 0.02,
        "images": 1000,
        "full_precision": 0.9,
        "packed": 0.9 - drop,
        "drop": drop,
        "passed": drop <= 0.02,
    }
    assert run("job-1") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f": {words} on 1,000 validation images, 2.00 allowed" in printed


def test_a_report_of_an_older_service_is_shown_as_far_as_it_goes(
    run: Run,
    service: Any,
    report_document: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    service.answers["GET /jobs/job-1/report"] = (200, report_document)
    assert run("job-1") == 0
    output = capsys.readouterr().out
    assert "62.50%" in output
    assert "answered as before" not in output
    assert "lose most" not in output
    assert "runtime" not in output


def test_the_page_is_written_to_a_file(
    run: Run, service: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers["GET /jobs/job-1/report"] = (200, PAGE, "text/html; charset=utf-8")
    assert run("job-1", f"--html={tmp_path / 'report.html'}") == 0
    assert (tmp_path / "report.html").read_bytes() == PAGE
    (request,) = service.asked("GET /jobs/job-1/report")
    assert request.headers["accept"] == "text/html"
    assert capsys.readouterr().out.split() == [str(tmp_path / "report.html")]


def test_a_file_that_cannot_be_written_is_named(
    run: Run, service: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers["GET /jobs/job-1/report"] = (200, PAGE, "text/html; charset=utf-8")
    assert run("job-1", f"--html={tmp_path / 'missing' / 'report.html'}") == 1
    assert "missing" in capsys.readouterr().err


def test_a_job_without_a_report_is_a_failure(
    run: Run,
    service: Any,
    answer_problem: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    conflict = answer_problem(409, "conflict", "In conflict", "The job is running.")
    service.answers["GET /jobs/job-1/report"] = conflict
    for options in ([], [f"--html={tmp_path / 'report.html'}"]):
        assert run("job-1", *options) == 1
        assert "The job is running." in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_service_that_has_no_pages_is_told_from_one_that_has(
    service: Any, measured: dict[str, Any]
) -> None:
    with Client(service.url) as client, pytest.raises(UnexpectedAnswer, match="no text/html"):
        client.report_page("job-1")
