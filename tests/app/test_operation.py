"""Metrics, health, the documentation of the interface, and logs."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from app.errors import STATUS, status_of
from app.settings import AppSettings
from models import runtime
from store.database import open_engine
from store.errors import InvalidImage, InvalidSpec
from store.figures import StageFigures
from store.logs import JsonFormatter


def scrape(service: Any) -> dict[str, Metric]:
    answer = service.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(family: Metric, suffix: str = "", **labels: str) -> float:
    (sample,) = [
        sample
        for sample in family.samples
        if sample.name == family.name + suffix and labels.items() <= sample.labels.items()
    ]
    return float(sample.value)


@pytest.fixture(scope="module")
def service(serve: Any) -> Any:
    """A service of this module's own: it counts requests."""
    return serve()


def test_a_live_scrape_tells_requests_predictions_models_and_jobs(
    service: Any, publish: Any, images: list[bytes]
) -> None:
    publish(service, "seen")
    figures = StageFigures(open_engine(service.settings.database_url))
    figures.record("a", "calibrate", 2.0)
    figures.record("b", "calibrate", 3.0)
    files = [("images", ("a", images[0])), ("images", ("b", b"bad"))]
    assert service.http.post("/predict", data={"model": "seen"}, files=files).status_code == 200
    for path in ("/jobs/one", "/jobs/two", "/nowhere/1", "/nowhere/2"):
        assert service.http.get(path).status_code == 404

    found = scrape(service)

    requests = found["bitpress_http_requests"]
    assert value(requests, "_total", method="POST", route="/predict", status="200") == 1
    assert value(requests, "_total", route="/jobs/{job_id}", status="404") == 2
    assert value(requests, "_total", route="unmatched", status="404") == 2
    durations = found["bitpress_http_request_duration_seconds"]
    assert value(durations, "_count", route="/predict", status="200") == 1
    steps = found["bitpress_prediction_duration_seconds"]
    for step in ("decode", "queue", "compute"):
        assert value(steps, "_count", step=step) == 1
    sent = found["bitpress_prediction_images"]
    assert value(sent, "_total", result="usable") == 1
    assert value(sent, "_total", result="refused") == 1
    model = {"model": "seen", "version": "1"}
    assert value(found["bitpress_model_packed_bytes"], **model) == 1024
    assert value(found["bitpress_model_float_bytes"], **model) == 4096
    assert value(found["bitpress_model_compression_ratio"], **model) == 4
    accuracy = found["bitpress_model_accuracy_ratio"]
    assert value(accuracy, form="full_precision", **model) == 0.875
    assert value(accuracy, form="packed", **model) == 0.75
    serving = runtime.choose()
    for name in ("bitpress_model_resident_bytes", "bitpress_model_activation_bytes"):
        assert value(found[name], runtime=serving, **model) > 0
    kernels = runtime.kernels_of(serving)
    info = found["bitpress_model_runtime_info"]
    assert value(info, runtime=serving, kernels=kernels, **model) == 1
    assert value(found["bitpress_jobs"], state="queued") == 0
    assert value(found["bitpress_job_stage_seconds"], "_count", stage="calibrate") == 2
    assert value(found["bitpress_job_stage_seconds"], "_sum", stage="calibrate") == 5
    assert value(found["bitpress_workers_alive"]) == 0
    assert value(found["bitpress_store_up"], part="jobs") == 1


def test_openmetrics_is_given_on_request(service: Any) -> None:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = service.http.get("/metrics", headers=accept)
    names = {family.name for family in parse_openmetrics(answer.text)}
    assert "bitpress_http_requests" in names


def test_every_metric_is_named_for_prometheus(service: Any) -> None:
    for name, family in scrape(service).items():
        assert name.startswith(("bitpress_", "process_"))
        assert family.documentation


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
    found = scrape(service)
    assert value(found["bitpress_store_up"], part="models") == 0
    assert "bitpress_http_requests" in found


def test_the_interface_is_documented_with_its_problems(service: Any) -> None:
    assert service.http.get("/docs").status_code == 200
    document = service.http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/compress",
        "/jobs",
        "/jobs/{job_id}",
        "/jobs/{job_id}/report",
        "/datasets",
        "/models",
        "/models/{name}",
        "/models/{name}/versions/{version}/artifact",
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
    kinds = {kind.code: status_of(kind("")) for kind in (*STATUS, InvalidImage, InvalidSpec)}
    documented = re.findall(r"^\| (\d{3}) \| `([a-z-]+)`", page, re.MULTILINE)
    assert {code: int(status) for status, code in documented}.items() >= kinds.items()


def test_a_request_is_one_line_of_json_without_what_was_sent(
    service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "bitpress.access"):
        service.http.get("/jobs/secret-id?token=hidden", headers={"X-Request-ID": "here"})
    lines = [JsonFormatter().format(record) for record in caplog.records]
    (line,) = [line for line in lines if '"here"' in line]
    told = json.loads(line)
    assert told["event"] == "request"
    assert (told["method"], told["route"], told["status"]) == ("GET", "/jobs/{job_id}", 404)
    assert told["duration_s"] >= 0
    assert "secret" not in line
    assert "hidden" not in line


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValidationError, match="cannot be used here"):
        AppSettings(runtime="quantum")
    with pytest.raises(ValidationError, match="max_queue_images"):
        AppSettings(max_images_per_request=100, max_queue_images=10)
