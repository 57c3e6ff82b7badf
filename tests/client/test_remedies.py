"""What the service advises, as somebody at the command line can do it."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import app
import store
import worker
from client.commands.remedies import as_commands

Run = Callable[..., int]


@pytest.mark.parametrize(
    ("remedy", "told"),
    [
        ("POST /jobs/{id}/retry goes on.", "bitpress jobs ID --retry goes on."),
        ("POST /jobs/{job_id}/retry; or else", "bitpress jobs ID --retry; or else"),
        ("The key's job is GET /jobs/a-1.", "The key's job is bitpress jobs a-1."),
        (
            "Send it to POST /datasets first; GET /datasets lists what there is.",
            "Send it with bitpress datasets --add PATH first; bitpress datasets lists what there "
            "is.",
        ),
        ("GET /models lists the models.", "bitpress models lists the models."),
        (
            "DELETE /models/{name}/versions/{version} removes it.",
            "bitpress models NAME --delete VERSION removes it.",
        ),
        (
            "GET /jobs/{id}/report has what was measured.",
            "bitpress report ID has what was measured.",
        ),
        ("Ask GET /elsewhere/{id}/what.", "Ask GET /elsewhere/{id}/what."),
        ("Use one of: vgg9", "Use one of: vgg9"),
    ],
)
def test_requests_become_commands(remedy: str, told: str) -> None:
    assert as_commands(remedy) == told


def test_the_job_is_named_where_it_is_known() -> None:
    assert as_commands("POST /jobs/{id}/retry.", "a-1") == "bitpress jobs a-1 --retry."


def _remedies() -> Iterator[str]:
    """Yield every text of the service's sources that names a request, but for docstrings."""
    for package in (app, store, worker):
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            if path.parent.name == "routes":
                # Descriptions for programs.
                continue
            tree = ast.parse(path.read_text())
            for call in ast.walk(tree):
                if isinstance(call, ast.keyword) and call.arg == "remedy":
                    yield ast.unparse(call.value)


def test_no_remedy_of_the_service_leaves_a_request_for_the_command_line() -> None:
    found = [text for text in _remedies() if re.search(r"(GET|POST|PUT|DELETE) /", text)]
    assert len(found) > 5
    left = [text for text in map(as_commands, found) if re.search(r"(GET|POST|PUT|DELETE) /", text)]
    assert not left


def test_a_refusal_and_a_job_that_failed_name_commands(
    run: Run,
    service: Any,
    job_record: Callable[..., Any],
    answer_problem: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    service.answers["GET /jobs/none"] = answer_problem(
        404, "not-found", "Not found", "There is no such job.", remedy="GET /jobs lists the jobs."
    )
    assert run("jobs", "none") == 1
    assert "  remedy: bitpress jobs lists the jobs.\n" in capsys.readouterr().err
    fault = {"type": "t", "title": "Crashed", "remedy": "Try again with POST /jobs/{id}/retry."}
    service.answers["GET /jobs/job-1"] = (200, job_record(state="failed", problem=fault))
    assert run("jobs", "job-1", "--watch") == 1
    assert "  remedy: Try again with bitpress jobs job-1 --retry.\n" in capsys.readouterr().err
    assert run("jobs", "job-1") == 0
    assert "Try again with bitpress jobs job-1 --retry." in capsys.readouterr().out


def test_a_service_that_is_not_there_is_to_be_started(
    run: Run, service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("jobs", "job-1", "--cancel", "--url=http://127.0.0.1:1") == 1
    assert capsys.readouterr().err.endswith(
        "  remedy: start it with bitpress up, or give --url where it is\n"
    )
