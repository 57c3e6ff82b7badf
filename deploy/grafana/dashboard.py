"""Writes dashboards/bitpress.json: ``python deploy/grafana/dashboard.py`` (``make docs`` does it).

The JSON that Grafana wants repeats itself forty times over; what is worth reading of it is here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parent / "dashboards/bitpress.json"
# The uid that provisioning/datasources gives it.
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}

_WIDTH = 24
_BY_MODEL = 'model=~"$model"'
_OWN = 'route!~"/health/.*|/metrics"'
_RATE = "[$__rate_interval]"
# Shown even at 0, so that there is always a line.
_INTERNAL = '{reason="internal-error"}'

Query = tuple[str, str]
"""An expression and the legend of its series."""


@dataclass(frozen=True)
class Panel:
    """A panel ``width`` of 24 columns wide.

    ``steps`` are thresholds (from, colour), ``columns`` the names of a table's values in the order
    of its queries, ``words`` what a table says instead of a value.
    """

    title: str
    description: str
    queries: Sequence[Query]
    unit: str
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    steps: Sequence[tuple[float | None, str]] = ()
    stacked: bool = False
    limits: tuple[float | None, float | None] = (0, None)
    decimals: int | None = None
    columns: Sequence[str] = ()
    words: Sequence[tuple[int, str]] = ()


def _quantiles(quantile: float) -> Query:
    return (
        f"histogram_quantile({quantile}, sum by (le, phase) "
        f"(rate(bitpress_prediction_duration_seconds_bucket{_RATE})))",
        "{{phase}}",
    )


def _column(metric: str, *labels: str, times: int = 1) -> Query:
    """Return a column of the table of models; all columns need the same labels to meet in rows."""
    chosen = ",".join((*labels, _BY_MODEL))
    factor = f" * {times}" if times != 1 else ""
    return f"max by (model, version) ({metric}{{{chosen}}}){factor}", metric


def _stat(
    title: str,
    description: str,
    query: str,
    unit: str,
    *steps: tuple[float | None, str],
    decimals: int | None = None,
) -> Panel:
    return Panel(
        title, description, [(query, "")], unit, "stat", 3, 4, steps or ((None, "blue"),),
        decimals=decimals,
    )  # fmt: skip


_FAILED = f'sum(rate(bitpress_http_requests_total{{status=~"5..",{_OWN}}}{_RATE}))'
_ANSWERED = f"sum(rate(bitpress_http_requests_total{{{_OWN}}}{_RATE}))"
# Where nobody asks for anything nothing fails.
_SHARE = f"(({_FAILED} or vector(0)) / ({_ANSWERED} > 0)) or vector(0)"
_FORMS = "{{model}} v{{version}}, {{form}}"
_VERSION = "{{model}} v{{version}}"

ROWS: dict[str, Sequence[Panel]] = {
    "At a glance": (
        _stat(
            "Service",
            "1 while Prometheus can read the app's metrics.",
            'up{job="bitpress"}',
            "bool_on_off",
            (None, "red"),
            (1, "green"),
        ),
        _stat(
            "Requests",
            "Answered requests a second, without health checks and scrapes.",
            _ANSWERED,
            "reqps",
            decimals=2,
        ),
        _stat(
            "Failing",
            "Share of the requests that were answered with a status of 500 or above. Alert: 5 %.",
            _SHARE,
            "percentunit",
            (None, "green"),
            (0.01, "orange"),
            (0.05, "red"),
            decimals=1,
        ),
        _stat(
            "Prediction, p95",
            "Ninety-five of a hundred prediction requests are answered within this time.",
            "histogram_quantile(0.95, sum by (le) (rate("
            f'bitpress_http_request_duration_seconds_bucket{{route="/predict"}}{_RATE})))',
            "s",
        ),
        _stat(
            "Workers",
            "Workers with a live lease.",
            "bitpress_workers_alive",
            "none",
            (None, "red"),
            (1, "green"),
        ),
        _stat(
            "Waiting jobs",
            "Length of the queue. Workers take one job at a time.",
            'bitpress_jobs{state="queued"}',
            "none",
            (None, "green"),
            (10, "orange"),
        ),
        _stat("Models", "Published models, by name.", "bitpress_models", "none"),
        _stat(
            "Free disk",
            "Share of the data directory's disk that is free. Alert: below 10 %.",
            "bitpress_disk_free_bytes / bitpress_disk_size_bytes",
            "percentunit",
            (None, "red"),
            (0.1, "orange"),
            (0.2, "green"),
        ),
    ),
    "Traffic": (
        Panel(
            "Requests by route",
            "Answered requests a second. Routes are templates; unmatched is what has no route.",
            [(f"sum by (route) (rate(bitpress_http_requests_total{_RATE}))", "{{route}}")],
            "reqps",
        ),
        Panel(
            "Requests by status",
            "2xx succeeded, 4xx is the caller's to mend, 5xx the service's, 499 went away first.",
            [(f"sum by (status) (rate(bitpress_http_requests_total{_RATE}))", "{{status}}")],
            "reqps",
            stacked=True,
        ),
        Panel(
            "Images",
            "Images sent for prediction a second. Refused ones could not be decoded.",
            [
                (
                    "sum by (model, result) (rate(bitpress_prediction_images_total"
                    f"{{{_BY_MODEL}}}{_RATE}))",
                    "{{model}}, {{result}}",
                )
            ],
            "short",
        ),
        Panel(
            "Under way",
            "Requests being answered, callers that follow a job's events, images that wait for "
            "a model, and datasets being stored.",
            [
                ("bitpress_http_requests_active", "requests"),
                ("bitpress_event_streams_open", "event streams"),
                ("sum(bitpress_model_waiting_images) or vector(0)", "waiting images"),
                ("bitpress_dataset_ingestions_active", "datasets being stored"),
            ],
            "short",
            width=24,
            height=7,
        ),
    ),
    "Latency": (
        Panel(
            "Prediction by phase, median",
            "Half of the prediction requests spend less time in this phase.",
            [_quantiles(0.5)],
            "s",
        ),
        Panel(
            "Prediction by phase, p95",
            "decode: check and decode the images. queue: wait for a batch. compute: the batch.",
            [_quantiles(0.95)],
            "s",
        ),
        Panel(
            "Prediction by phase, p99",
            "One request in a hundred spends more time than this in the phase.",
            [_quantiles(0.99)],
            "s",
        ),
        Panel(
            "Requests by route, p95",
            "Time to the end of the answer. Uploads and event streams take as long as they take.",
            [
                (
                    "histogram_quantile(0.95, sum by (le, route) "
                    f"(rate(bitpress_http_request_duration_seconds_bucket{{{_OWN}}}{_RATE})))",
                    "{{route}}",
                )
            ],
            "s",
            width=24,
        ),
    ),
    "Errors": (
        Panel(
            "Errors by reason",
            "Problem documents a second, by the code at the end of their type. "
            "docs/METRICS.md lists the reasons.",
            [
                (
                    f"sum by (reason) (rate(bitpress_errors_total{_RATE})) > 0 "
                    f"or sum by (reason) (rate(bitpress_errors_total{_INTERNAL}{_RATE}))",
                    "{{reason}}",
                )
            ],
            "reqps",
            width=12,
            stacked=True,
        ),
        Panel(
            "Share of failing requests",
            "Answers with a status of 500 or above. Above 5 % for five minutes is an alert.",
            [(_SHARE, "failing")],
            "percentunit",
            width=6,
            steps=((None, "green"), (0.05, "red")),
            limits=(0, 1),
        ),
        Panel(
            "Errors in this range",
            "How many answers were problems within the range of time that is shown.",
            [
                (
                    "sort_desc(sum by (reason) (increase(bitpress_errors_total[$__range])))",
                    "{{reason}}",
                )
            ],
            "short",
            "bargauge",
            width=6,
            decimals=0,
        ),
    ),
    "Memory": (
        Panel(
            "App",
            "Resident memory of the app's process; the loaded models' weights are part of it.",
            [
                ('process_resident_memory_bytes{job="bitpress"}', "process"),
                ("sum(bitpress_model_resident_bytes) or vector(0)", "weights of loaded models"),
            ],
            "bytes",
        ),
        Panel(
            "Loaded models",
            "Weights of each loaded model, what computing one image takes besides, and what it "
            "takes of a GPU's memory in all.",
            [
                (f"bitpress_model_resident_bytes{{{_BY_MODEL}}}", f"{_VERSION}, weights"),
                (f"bitpress_model_activation_bytes{{{_BY_MODEL}}}", f"{_VERSION}, activations"),
                (f"bitpress_model_device_bytes{{{_BY_MODEL}}}", f"{_VERSION}, GPU"),
            ],
            "bytes",
        ),
        Panel(
            "Disk",
            "Where the data directory lies. When it is full uploads are refused and jobs fail.",
            [
                ("bitpress_disk_size_bytes", "all"),
                ("bitpress_disk_free_bytes", "free"),
                ("bitpress_datasets_bytes", "datasets"),
            ],
            "bytes",
        ),
    ),
    "Models": (
        Panel(
            "Compression ratio",
            "Float32 bytes of all parameters and buffers over the bytes of the artifact's file.",
            [(f"bitpress_model_compression_ratio{{{_BY_MODEL}}}", _VERSION)],
            "none",
            "bargauge",
            decimals=1,
        ),
        Panel(
            "Accuracy",
            "On the test images: before (full_precision), after calibration, as served (packed).",
            [(f"bitpress_model_accuracy_ratio{{{_BY_MODEL}}}", _FORMS)],
            "percentunit",
            "bargauge",
            limits=(0, 1),
            decimals=2,
        ),
        Panel(
            "Bytes before and after",
            "Size as float32, and of the packed artifact.",
            [
                (f"bitpress_model_float_bytes{{{_BY_MODEL}}}", f"{_VERSION}, before"),
                (f"bitpress_model_packed_bytes{{{_BY_MODEL}}}", f"{_VERSION}, after"),
            ],
            "bytes",
            "bargauge",
        ),
        Panel(
            "Published models",
            "The latest version of each model, as its job measured it.",
            [
                _column("bitpress_model_compression_ratio"),
                _column("bitpress_model_accuracy_ratio", 'form="full_precision"'),
                _column("bitpress_model_accuracy_ratio", 'form="packed"'),
                _column("bitpress_model_packed_bytes"),
                # Grafana counts in milliseconds.
                _column("bitpress_model_created_timestamp_seconds", times=1000),
            ],
            "none",
            "table",
            width=16,
            columns=(
                "Compression ratio",
                "Accuracy before",
                "Accuracy after",
                "Bytes",
                "Published",
            ),
        ),
        Panel(
            "Latency of one image",
            "Median on the machine that evaluated the model: as served, and the network before.",
            [(f"bitpress_model_latency_seconds{{{_BY_MODEL}}}", _FORMS)],
            "s",
            "bargauge",
        ),
    ),
    "Jobs": (
        Panel(
            "Jobs by state",
            "Jobs on record. Deleted ones are gone from here.",
            [("bitpress_jobs", "{{state}}")],
            "short",
            stacked=True,
            decimals=0,
        ),
        Panel(
            "Finished jobs in an hour",
            "How many jobs came to each end within the hour before. rejected: by the gate.",
            [("increase(bitpress_jobs_finished_total[1h])", "{{state}}")],
            "short",
        ),
        Panel(
            "Waiting and standing still",
            "How long the oldest job waits in the queue, and how long ago the running job that has "
            "stood still for longest got on. Half an hour is an alert.",
            [
                ("bitpress_job_queue_age_seconds", "oldest in the queue"),
                ("bitpress_job_progress_age_seconds", "running without progress"),
            ],
            "s",
            steps=((None, "green"), (1800, "red")),
        ),
    ),
    "Stages": (
        Panel(
            "Mean time of a stage",
            "Over all jobs so far. A job's own times stand in its report.",
            [("bitpress_job_stage_seconds_sum / bitpress_job_stage_seconds_count", "{{stage}}")],
            "s",
            "bargauge",
        ),
        Panel(
            "Time of a stage, mean of an hour",
            "Of the jobs that completed the stage within the hour before.",
            [
                (
                    "increase(bitpress_job_stage_seconds_sum[1h]) "
                    "/ increase(bitpress_job_stage_seconds_count[1h])",
                    "{{stage}}",
                )
            ],
            "s",
        ),
        Panel(
            "Completed stages",
            "How often each stage was completed so far.",
            [("bitpress_job_stage_seconds_count", "{{stage}}")],
            "short",
            decimals=0,
        ),
    ),
    "Workers": (
        Panel(
            "Workers",
            "alive: with a live lease. lost: went away without a word within the hour before.",
            [("bitpress_workers_alive", "alive"), ("bitpress_workers_lost", "lost")],
            "short",
            width=6,
            decimals=0,
        ),
        Panel(
            "At work",
            "What each worker works on. GET /jobs/{id} tells more.",
            [
                (
                    "bitpress_worker_job_info "
                    "or on (worker) (0 * bitpress_worker_beat_age_seconds)",
                    "job",
                )
            ],
            "none",
            "table",
            width=10,
            columns=("Now",),
            words=((1, "at work"), (0, "idle")),
        ),
        Panel(
            "Memory",
            "Resident memory at the last sign of life: the worker, and its stages' processes.",
            [("bitpress_worker_resident_memory_bytes", "{{worker}}, {{part}}")],
            "bytes",
        ),
        Panel(
            "Last sign of life",
            "Workers beat every few seconds; after 30 their jobs go to others.",
            [("bitpress_worker_beat_age_seconds", "{{worker}}")],
            "s",
            width=24,
            height=6,
            steps=((None, "green"), (30, "red")),
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    return {
        "uid": "bitpress",
        "title": "bitpress",
        "description": "What the service does, how fast, and what its models are worth.",
        "tags": ["bitpress"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_model_variable()]},
        "annotations": {"list": [_alerts()]},
        "panels": _panels(),
    }


def _model_variable() -> dict[str, Any]:
    query = "label_values(bitpress_model_compression_ratio, model)"
    return {
        "name": "model",
        "label": "Model",
        "description": "Models that the panels of models show.",
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "model"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Bitpress.*",alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "step": "60s",
    }


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": [],
                       "id": len(panels) + 1, "gridPos": place})  # fmt: skip
        y += 1
        x = height = 0
        for panel in row:
            if x + panel.width > _WIDTH:
                x, y, height = 0, y + height, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(panel)})
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return panels


def _panel(panel: Panel) -> dict[str, Any]:
    instant = panel.kind != "timeseries"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend or "__auto",
                "instant": instant,
                "range": not instant,
                **({"format": "table"} if panel.kind == "table" else {}),
            }
            for index, (expression, legend) in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "options": _options(panel),
        **({"transformations": _transformations(panel)} if panel.kind == "table" else {}),
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    low, high = panel.limits
    steps = panel.steps or ((None, "green"),)
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": value, "color": color} for value, color in steps],
        },
        "mappings": [
            {"type": "value", "options": {str(value): {"text": word, "index": index}}}
            for index, (value, word) in enumerate(panel.words)
        ],
        "noValue": "none",
    }
    bounds = {"min": low, "max": high, "decimals": panel.decimals}
    defaults |= {name: value for name, value in bounds.items() if value is not None}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 8,
            "showPoints": "auto",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.steps else "off"},
        }
    return defaults


def _overrides(panel: Panel) -> list[dict[str, Any]]:
    units = {
        "Compression ratio": ("none", 1),
        "Accuracy before": ("percentunit", 2),
        "Accuracy after": ("percentunit", 2),
        "Bytes": ("bytes", 1),
        "Published": ("dateTimeFromNow", None),
    }
    return [
        {
            "matcher": {"id": "byName", "options": column},
            "properties": [
                {"id": "unit", "value": units[column][0]},
                *([{"id": "decimals", "value": units[column][1]}] if units[column][1] else []),
            ],
        }
        for column in panel.columns
        if column in units
    ]


def _options(panel: Panel) -> dict[str, Any]:
    latest = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True,
                       "calcs": ["lastNotNull", "max"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }  # fmt: skip
    if panel.kind == "stat":
        return {"reduceOptions": latest, "colorMode": "value", "graphMode": "none",
                "textMode": "value", "justifyMode": "auto", "orientation": "auto"}  # fmt: skip
    if panel.kind == "bargauge":
        return {"reduceOptions": latest, "orientation": "horizontal", "displayMode": "basic",
                "valueMode": "text", "showUnfilled": True}  # fmt: skip
    return {"showHeader": True, "cellHeight": "sm"}


def _transformations(panel: Panel) -> list[dict[str, Any]]:
    names = [f"Value #{chr(ord('A') + index)}" for index in range(len(panel.queries))]
    if len(names) == 1:
        names = ["Value"]
    hidden = ("Time", "__name__", "instance", "job", "form")
    return [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": dict.fromkeys(hidden, True),
                "renameByName": dict(zip(names, panel.columns, strict=True)),
            },
        },
    ]


def main() -> None:
    """Write the dashboard."""
    DASHBOARD.parent.mkdir(exist_ok=True)
    DASHBOARD.write_text(text())


def text() -> str:
    """Return the file's text."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    main()
