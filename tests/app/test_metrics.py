"""What a scrape tells, that it is fit for Prometheus, and that docs/METRICS.md has all of it."""

import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from app import metrics_reference
from app.errors import STATUS, reasons
from app.metric_catalogue import CATALOGUE, MOST_MODELS, SECTIONS
from app.metrics import Metrics
from models import runtime
from store.database import open_engine
from store.figures import StageFigures
from store.leases import WorkerLeases
from store.specs import parse_spec

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
# How a family is called in the text is its kind's business.
SUFFIXES = {"counter": "_total"}


def scrape(service: Any) -> dict[str, Metric]:
    """Return the families of a scrape by the names that the catalogue gives them."""
    answer = service.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {family.name + SUFFIXES.get(family.type, ""): family for family in families}


def values(family: Metric, suffix: str = "", **labels: str) -> list[float]:
    return [
        float(sample.value)
        for sample in family.samples
        if sample.name == family.name + suffix and labels.items() <= sample.labels.items()
    ]


def value(family: Metric, suffix: str = "", **labels: str) -> float:
    suffix = suffix or SUFFIXES.get(family.type, "")
    (found,) = values(family, suffix, **labels)
    return found


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

    requests = found["bitpress_http_requests_total"]
    assert value(requests, method="POST", route="/predict", status="200") == 1
    assert value(requests, route="/jobs/{job_id}", status="404") == 2
    assert value(requests, route="unmatched", status="404") == 2
    assert value(found["bitpress_http_requests_active"]) == 1
    durations = found["bitpress_http_request_duration_seconds"]
    assert value(durations, "_count", route="/predict", status="200") == 1
    phases = found["bitpress_prediction_duration_seconds"]
    for phase in ("decode", "queue", "compute"):
        assert value(phases, "_count", phase=phase) == 1
    sent = found["bitpress_prediction_images_total"]
    assert value(sent, model="seen", result="usable") == 1
    assert value(sent, model="seen", result="refused") == 1
    model = {"model": "seen", "version": "1"}
    assert value(found["bitpress_models"]) == 1
    assert value(found["bitpress_model_packed_bytes"], **model) == 1024
    assert value(found["bitpress_model_float_bytes"], **model) == 4096
    assert value(found["bitpress_model_compression_ratio"], **model) == 4
    accuracy = found["bitpress_model_accuracy_ratio"]
    assert value(accuracy, form="full_precision", **model) == 0.875
    assert value(accuracy, form="packed", **model) == 0.75
    assert value(found["bitpress_model_created_timestamp_seconds"], **model) > 1.7e9
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
    assert value(found["bitpress_disk_free_bytes"]) < value(found["bitpress_disk_size_bytes"])
    parts = {sample.labels["part"]: sample.value for sample in found["bitpress_store_up"].samples}
    assert parts == dict.fromkeys(("jobs", "workers", "models", "datasets", "disk"), 1)


def test_every_reason_is_there_before_anything_has_failed(serve: Any) -> None:
    errors = scrape(serve())["bitpress_errors_total"]
    shown = {sample.labels["reason"]: sample.value for sample in errors.samples}
    codes = {kind.code for kind in STATUS}
    assert codes | {"invalid-spec", "invalid-image", "internal-error", "other"} <= set(shown)
    assert set(shown.values()) == {0}


def test_a_refusal_is_counted_by_its_reason(service: Any, archive: bytes) -> None:
    def counts() -> dict[str, float]:
        errors = scrape(service)["bitpress_errors_total"]
        return {sample.labels["reason"]: sample.value for sample in errors.samples}

    before = counts()
    assert service.http.get("/jobs/none").status_code == 404
    assert service.http.put("/jobs").status_code == 405
    assert service.http.get("/jobs", params={"limit": 0}).status_code == 422
    broken = {"content": b"{", "headers": {"content-type": "application/json"}}
    assert service.http.post("/predict", **broken).status_code == 400
    with socket.create_connection(service.address, timeout=30) as garbled:
        garbled.sendall(b"no request\r\n\r\n")
        while garbled.recv(65_536):
            pass
    after = counts()
    rises = {reason: after[reason] - before[reason] for reason in after}
    assert {reason: rise for reason, rise in rises.items() if rise} == {
        "not-found": 1,
        "method-not-allowed": 1,
        "invalid-input": 1,
        "malformed-body": 1,
        "malformed-request": 1,
    }
    requests = scrape(service)["bitpress_http_requests_total"]
    assert value(requests, method="other", route="unmatched", status="400") == 1


def test_a_reason_that_nobody_knows_is_counted_as_another() -> None:
    metrics = Metrics(frozenset({"known"}))
    for reason in ("known", "invented-1", "invented-2"):
        metrics.count_error(reason)
    text = metrics.expose("")[0].decode()
    assert 'bitpress_errors_total{reason="known"} 1.0' in text
    assert 'bitpress_errors_total{reason="other"} 2.0' in text
    assert "invented" not in text


def test_the_number_of_models_and_methods_is_bounded() -> None:
    metrics = Metrics()
    for number in range(MOST_MODELS + 10):
        metrics.count_images(f"model-{number}", usable=1, refused=0)
        metrics.observe_request(f"VERB{number}", "/predict", 200, 0.1)
    families = text_string_to_metric_families(metrics.expose("")[0].decode())
    found = {family.name: family for family in families}
    usable = values(found["bitpress_prediction_images"], "_total", result="usable")
    assert len(usable) == MOST_MODELS + 1
    assert (
        value(found["bitpress_prediction_images"], "_total", model="other", result="usable") == 10
    )
    assert values(found["bitpress_http_requests"], "_total") == [MOST_MODELS + 10]


def test_workers_tell_their_job_and_memory_through_the_database(serve: Any) -> None:
    service = serve()
    leases = WorkerLeases(open_engine(service.settings.database_url))
    leases.renew(
        "busy",
        host="h",
        pid=1,
        ttl_s=60,
        figures={
            "job": "j" * 32,
            "stage": "calibrate",
            "progress_age_s": 3.0,
            "memory_bytes": 1000,
            "stage_memory_bytes": 5000,
        },
    )
    leases.renew(
        "idle",
        host="h",
        pid=2,
        ttl_s=60,
        figures={"job": None, "memory_bytes": 2000, "stage_memory_bytes": 0},
    )
    leases.renew("killed", host="h", pid=3, ttl_s=-1, figures={"job": "k" * 32})
    found = scrape(service)
    assert value(found["bitpress_workers_alive"]) == 2
    assert value(found["bitpress_workers_lost"]) == 1
    memory = found["bitpress_worker_resident_memory_bytes"]
    assert value(memory, worker="busy", part="stages") == 5000
    assert value(memory, worker="idle", part="worker") == 2000
    assert values(memory, worker="killed") == []
    (job,) = found["bitpress_worker_job_info"].samples
    assert job.labels == {"worker": "busy", "job_id": "j" * 32, "stage": "calibrate"}
    for worker in ("busy", "idle", "killed"):
        assert 0 <= value(found["bitpress_worker_beat_age_seconds"], worker=worker) < 60


def test_waiting_jobs_are_counted_with_their_age(serve: Any) -> None:
    service = serve()
    spec = {"name": "m", "architecture": "vgg9", "checkpoint": "sha256:" + "0" * 64, "dataset": "d"}
    service.app.state.services.jobs.submit(parse_spec(spec))
    found = scrape(service)
    assert value(found["bitpress_jobs"], state="queued") == 1
    assert 0 <= value(found["bitpress_job_queue_age_seconds"]) < 60
    finished = {s.labels["state"]: s.value for s in found["bitpress_jobs_finished_total"].samples}
    assert finished == dict.fromkeys(("succeeded", "rejected", "failed", "cancelled"), 0)


def test_a_job_that_was_deleted_still_counts_as_finished(serve: Any) -> None:
    service = serve()
    spec = {"name": "m", "architecture": "vgg9", "checkpoint": "sha256:" + "0" * 64, "dataset": "d"}
    job = service.app.state.services.jobs.submit(parse_spec(spec))
    assert service.http.post(f"/jobs/{job.id}/cancel").status_code == 202
    for here in (1, 0):
        found = scrape(service)
        assert value(found["bitpress_jobs"], state="cancelled") == here
        assert value(found["bitpress_jobs_finished_total"], state="cancelled") == 1
        service.http.delete(f"/jobs/{job.id}")


def test_what_counts_never_falls_between_two_scrapes(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve()
    jobs = service.app.state.services.jobs
    # As when a job is deleted between the reading of both of its counts.
    counts = iter([3, 2, 4])
    monkeypatch.setattr(jobs, "finished_totals", lambda: {"succeeded": next(counts)})
    seen = [value(scrape(service)["bitpress_jobs_finished_total"]) for _ in range(3)]
    assert seen == [3, 3, 4]


def test_latency_is_told_of_models_whose_report_has_it(serve: Any, publish: Any) -> None:
    service = serve()
    publish(service, "older")
    report = service.settings.models_dir / "older/1/report.json"
    told = json.loads(report.read_text())
    newer = publish(service, "newer")
    told["latency"] = {"packed_ms": 1.5, "float_ms": 6.0}
    (newer.path / "report.json").write_text(json.dumps(told))
    latency = scrape(service)["bitpress_model_latency_seconds"]
    assert {(s.labels["model"], s.labels["form"]): s.value for s in latency.samples} == {
        ("newer", "packed"): 0.0015,
        ("newer", "float"): 0.006,
    }


def test_a_damaged_report_takes_only_its_own_model_out(serve: Any, publish: Any) -> None:
    service = serve()
    publish(service, "whole")
    for name, text in (("torn", "{"), ("foreign", "[]"), ("odd", '{"accuracy": 3}')):
        (publish(service, name).path / "report.json").write_text(text)
    found = scrape(service)
    assert [s.labels["model"] for s in found["bitpress_model_compression_ratio"].samples] == [
        "whole"
    ]
    assert value(found["bitpress_models"]) == 4
    assert value(found["bitpress_store_up"], part="models") == 1


def test_without_its_data_folder_a_scrape_says_what_is_missing(serve: Any) -> None:
    service = serve(database_url="")
    shutil.move(service.settings.data_dir, f"{service.settings.data_dir}-away")
    found = scrape(service)
    assert value(found["bitpress_store_up"], part="models") == 0
    assert value(found["bitpress_store_up"], part="disk") == 0
    assert "bitpress_http_requests_total" in found


def test_streams_are_counted_while_they_are_open() -> None:
    metrics = Metrics()

    def is_open(count: int) -> bool:
        return f"bitpress_event_streams_open {count}.0" in metrics.expose("")[0].decode()

    with metrics.event_stream():
        with metrics.event_stream():
            assert is_open(2)
        assert is_open(1)
    assert is_open(0)


def test_both_formats_tell_the_same(service: Any) -> None:
    plain = {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(service.http.get("/metrics").text)
        for sample in family.samples
    }
    answer = service.http.get("/metrics", headers=OPENMETRICS)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    opened = {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in parse_openmetrics(answer.text)
        for sample in family.samples
    }
    assert plain <= opened
    # The first scrape itself.
    assert {dict(labels).get("route") for _, labels in opened - plain} <= {"/metrics"}


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=banana",
        "text/plain; version=1.0.banana; escaping=none",
        "text/plain; version=",
        "application/openmetrics-text; version; escaping=",
        "a;b;c,,;=;q=high",
        "text/html",
    ],
)
def test_whatever_is_accepted_there_is_a_scrape(service: Any, accept: str) -> None:
    answer = service.http.get("/metrics", headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    assert "bitpress_jobs" in answer.text


def test_every_metric_of_a_scrape_is_in_the_catalogue_and_as_it_says(service: Any) -> None:
    found = scrape(service)
    undocumented = {name for name in found if name not in CATALOGUE}
    assert not undocumented
    for name, family in found.items():
        spec = CATALOGUE[name]
        assert family.type == spec.kind, name
        if name.startswith("bitpress_"):
            assert family.documentation == spec.meaning
        for sample in family.samples:
            # The bounds of buckets are Prometheus' own business.
            assert set(sample.labels) - {"le"} == set(spec.labels), name
    # And the other way round: nothing is declared that nobody exports.
    assert set(CATALOGUE) == set(found)


def test_every_unit_is_told_by_the_name() -> None:
    for spec in CATALOGUE.values():
        if spec.unit in ("seconds", "bytes", "ratio"):
            stem = spec.name.removesuffix("_total")
            assert stem.endswith(("_" + spec.unit, "_bytes")), spec.name
        assert (spec.kind == "counter") == spec.name.endswith("_total")
        assert "job" not in spec.labels and "instance" not in spec.labels


def test_the_page_of_metrics_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert metrics_reference.main(["--check"]) == 0, capsys.readouterr().err
    page = metrics_reference.PAGE.read_text()
    rows = re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE)
    assert rows == [spec.name for specs in SECTIONS.values() for spec in specs]
    assert all(f"`{reason}`" in page for reason in reasons())


def test_a_stale_page_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics_reference, "PAGE", tmp_path / "METRICS.md")
    assert metrics_reference.main(["--check"]) == 1
    assert "make docs" in capsys.readouterr().err
    assert metrics_reference.main([]) == 0
    assert metrics_reference.main(["--check"]) == 0
    metrics_reference.PAGE.write_text(metrics_reference.page() + "more")
    assert metrics_reference.main(["--check"]) == 1


@pytest.mark.prometheus
@pytest.mark.parametrize("headers", [{}, OPENMETRICS], ids=["text", "openmetrics"])
def test_promtool_finds_nothing_to_complain_of(
    service: Any, promtool: str, headers: Mapping[str, str], publish: Any, images: list[bytes]
) -> None:
    publish(service, "linted")
    files = [("images", ("a", images[0]))]
    assert service.http.post("/predict", data={"model": "linted"}, files=files).status_code == 200
    text = service.http.get("/metrics", headers=headers).text
    if headers:
        # promtool reads the older format alone: the families of the newer, told in the older.
        text = "".join(map(plain_text, parse_openmetrics(text)))
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def plain_text(family: Metric) -> str:
    """Return a family in Prometheus' text format."""
    kind = {"unknown": "untyped", "info": "gauge"}.get(family.type, family.type)
    name = family.name + SUFFIXES.get(family.type, "")
    lines = [f"# HELP {name} {family.documentation}", f"# TYPE {name} {kind}"]
    for sample in family.samples:
        labels = ",".join(f'{key}="{told}"' for key, told in sample.labels.items())
        lines.append(f"{sample.name}{{{labels}}} {sample.value}")
    return "\n".join(lines) + "\n"


def test_scrapes_at_the_same_time_do_not_disturb_one_another(service: Any) -> None:
    failed: list[int] = []

    def ask() -> None:
        for _ in range(5):
            status = service.http.get("/metrics").status_code
            if status != 200:
                failed.append(status)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
