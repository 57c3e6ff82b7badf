"""Metrics, health, the documentation of the interface, and logs."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.errors import STATUS, status_of
from app.settings import AppSettings
from store.errors import GateFailed, InvalidImage, InvalidSpec, JobCancelled


@pytest.fixture(scope="module")
def service(serve: Any) -> Any:
    """A service of this module's own: it counts requests."""
    return serve()


def test_health(service: Any) -> None:
    for path in ("/health/live", "/health/ready"):
        answer = service.http.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_without_its_data_folder_the_service_is_live_but_not_ready(serve: Any) -> None:
    service = serve(database_url="")
    shutil.move(service.settings.data_dir, f"{service.settings.data_dir}-away")
    assert service.http.get("/health/live").status_code == 200
    answer = service.http.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["remedy"]
    assert str(service.settings.data_dir) not in answer.text


def test_the_interface_is_documented_with_its_problems(service: Any) -> None:
    assert service.http.get("/docs").status_code == 200
    document = service.http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/compress",
        "/jobs",
        "/jobs/{job_id}",
        "/jobs/{job_id}/cancel",
        "/jobs/{job_id}/retry",
        "/jobs/{job_id}/report",
        "/jobs/{job_id}/events",
        "/datasets",
        "/datasets/{name}",
        "/datasets/{name}/sheet",
        "/models",
        "/models/{name}",
        "/models/{name}/versions",
        "/models/{name}/versions/{version}",
        "/models/{name}/versions/{version}/artifact",
        "/models/{name}/aliases",
        "/models/{name}/aliases/{alias}",
        "/predict",
        "/health/live",
        "/health/ready",
        "/metrics",
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            problems = {
                status: answer["content"]
                for status, answer in operation["responses"].items()
                if int(status) >= 400
            }
            assert "500" in problems, (method, path)
            for content in problems.values():
                assert set(content) == {"application/problem+json"}
            if operation.get("parameters") or "requestBody" in operation:
                assert "422" in problems, (method, path)
    schemas = document["components"]["schemas"]
    text = json.dumps(document)
    references = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert references <= set(schemas)
    assert {"Problem", "CompressSpec", "PredictionRequest", "BwnhParameters"} <= set(schemas)


def test_every_route_is_described_for_readers(service: Any) -> None:
    page = (Path(__file__).parents[2] / "docs/API.md").read_text()
    paths = service.http.get("/openapi.json").json()["paths"]
    routes = {f"{method.upper()} {path}" for path in paths for method in paths[path]}
    assert set(re.findall(r"^## ([A-Z]+ /.*)$", page, re.MULTILINE)) == routes
    # With these two a job ends; no answer is one.
    answered = {*STATUS, InvalidImage, InvalidSpec} - {GateFailed, JobCancelled}
    kinds = {kind.code: status_of(kind("")) for kind in answered}
    documented = re.findall(r"^\| (\d{3}) \| `([a-z-]+)`", page, re.MULTILINE)
    assert {code: int(status) for status, code in documented}.items() >= kinds.items()


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValidationError, match="cannot be used here"):
        AppSettings(runtime="quantum")
    with pytest.raises(ValidationError, match="max_queue_images"):
        AppSettings(max_images_per_request=100, max_queue_images=10)
