import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., int]
FIGURES: dict[str, Any] = {
    "architecture": "vgg9",
    "method": "bwnh",
    "accuracy": {"full_precision": 0.9, "calibrated": 0.8, "packed": 0.85},
    "bytes": {"float": 320_000, "packed": 10_000},
    "compression_ratio": 32.0,
    "latency": {
        "threads": 1,
        "batch": 1,
        "repeats": 9,
        "packed_ms": 0.25,
        "float_ms": 1.5,
        "speedup": 6.0,
    },
    "gate": None,
    "input": {"channels": 3, "height": 32, "width": 32},
    "labels": ["cat", "dog"],
    "runtime": "cpu",
    "kernels": "avx512",
    "digest": "sha256:" + "3" * 64,
    "job": "job-1",
    "created_at": "2026-11-20T10:00:00+00:00",
}
MODEL = {"name": "vgg9", "latest": 2, "versions": [1, 2], "aliases": {"stable": 1}, **FIGURES}
VERSIONS = {
    "model": "vgg9",
    "versions": [
        {"name": "vgg9", "version": 2, "aliases": [], **FIGURES, "latency": None},
        {"name": "vgg9", "version": 1, "aliases": ["stable"], **FIGURES},
    ],
}


def test_models_are_listed(run: Run, service: Any, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["GET /models"] = (200, {"models": [MODEL]})
    assert run("models") == 0
    row = capsys.readouterr().out.splitlines()[3]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == ["vgg9", "2", "2", "stable=1", "90.00%", "85.00%", "32.0", "10,000"]
    assert run("models", "--json") == 0
    assert json.loads(capsys.readouterr().out)["aliases"] == {"stable": 1}


def test_a_model_is_shown_by_version(
    run: Run, service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers["GET /models/vgg9/versions"] = (200, VERSIONS)
    assert run("models", "vgg9") == 0
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()[3:-1]
    ]
    assert [row[:2] for row in rows] == [["2", ""], ["1", "stable"]]
    assert [row[8:10] for row in rows] == [["", ""], ["1.5", "0.25"]]
    assert run("models", "vgg9", "--json") == 0
    assert [json.loads(line)["version"] for line in capsys.readouterr().out.splitlines()] == [2, 1]


def test_aliases_are_set_and_removed(run: Run, service: Any) -> None:
    service.answers |= {
        "PUT /models/vgg9/aliases/stable": (
            200,
            {"model": "vgg9", "alias": "stable", "version": 2},
        ),
        "DELETE /models/vgg9/aliases/old": (204, None),
        "GET /models/vgg9/versions": (200, VERSIONS),
    }
    assert run("models", "vgg9", "--alias=stable=2", "--remove-alias=old") == 0
    (request,) = service.asked("PUT /models/vgg9/aliases/stable")
    assert json.loads(request.body) == {"version": 2}
    assert service.asked("DELETE /models/vgg9/aliases/old")


@pytest.mark.parametrize(
    ("version", "path", "what"),
    [
        ("2", "/models/vgg9/versions/2", "vgg9, version 2"),
        ("all", "/models/vgg9", "all versions of vgg9"),
    ],
)
def test_what_is_removed_is_asked_about(
    run: Run, service: Any, version: str, path: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers[f"DELETE {path}"] = (204, None)
    # The tests' standard input is no terminal: nobody can be asked.
    assert run("models", "vgg9", f"--delete={version}") == 2
    assert "--yes" in capsys.readouterr().err
    assert not service.received
    assert run("models", "vgg9", f"--delete={version}", "--yes") == 0
    assert len(service.received) == 1
    assert capsys.readouterr() == ("", f"removed {what}\n")


def test_a_version_that_an_alias_needs_is_told(
    run: Run,
    service: Any,
    answer_problem: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    service.answers["DELETE /models/vgg9/versions/1"] = answer_problem(
        409, "conflict", "In conflict", "The alias stable points there.", remedy="Move the alias."
    )
    assert run("models", "vgg9", "--delete=1", "--yes") == 1
    assert "Move the alias." in capsys.readouterr().err


def test_the_latest_artifact_is_downloaded(run: Run, service: Any, tmp_path: Path) -> None:
    service.answers["GET /models/vgg9"] = (200, MODEL)
    service.answers["GET /models/vgg9/versions/2/artifact"] = (200, b"bits", "application/x")
    target = tmp_path / "vgg9.safetensors"
    assert run("models", "vgg9", f"--download={target}") == 0
    assert target.read_bytes() == b"bits"


def test_a_named_version_is_downloaded(run: Run, service: Any, tmp_path: Path) -> None:
    service.answers["GET /models/vgg9/versions/1/artifact"] = (200, b"bits", "application/x")
    target = tmp_path / "vgg9.safetensors"
    assert run("models", "vgg9", f"--download={target}", "--version=1") == 0
    assert hashlib.sha256(target.read_bytes()).hexdigest() == hashlib.sha256(b"bits").hexdigest()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--alias=a=1"],
        ["vgg9", "--alias=stable"],
        ["vgg9", "--alias=stable=new"],
        ["vgg9", "--delete=latest", "--yes"],
        ["vgg9", "--version=1"],
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(
    run: Run, service: Any, arguments: list[str]
) -> None:
    assert run("models", *arguments) == 2
    assert not service.received
