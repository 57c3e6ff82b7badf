"""deploy/: what Prometheus and Grafana read, checked by their own tools and by what they need."""

import json
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.metric_catalogue import CATALOGUE

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
GRAFANA = ROOT / "deploy/grafana"
RUNBOOK = "docs/OPERATIONS.md"
# What a metric may be called beyond its own name, by its kind.
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
ROWS = [
    *("At a glance", "Traffic", "Latency", "Errors", "Memory", "Models", "Jobs", "Stages"),
    "Workers",
]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads((GRAFANA / "dashboards/bitpress.json").read_text())


def shown(dashboard: Any) -> list[Any]:
    """Return the panels that show something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def alerts() -> list[Any]:
    (group,) = read(PROMETHEUS / "alerts.yml")["groups"]
    rules: list[Any] = group["rules"]
    return rules


def names_of(expression: str) -> set[str]:
    """Return the metrics that an expression reads, as they are declared."""
    known = {
        name + suffix: name
        for name, spec in CATALOGUE.items()
        for suffix in ("", *SUFFIXES.get(spec.kind, ()))
    }
    used = re.findall(r"\b(?:bitpress|process)_\w+", expression)
    assert set(used) <= set(known), set(used) - set(known)
    return {known[name] for name in used}


@pytest.mark.prometheus
@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("check config", "prometheus.yml"),
        ("check rules", "alerts.yml"),
        ("test rules", "alerts_test.yml"),
    ],
)
def test_promtool_accepts_what_prometheus_reads(promtool: str, command: str, file: str) -> None:
    ran = subprocess.run(
        [promtool, *command.split(), file],
        cwd=PROMETHEUS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "SUCCESS" in ran.stdout
    assert "FAILED" not in ran.stdout


def test_the_service_of_the_compose_file_is_scraped_and_the_rules_are_read() -> None:
    config = read(PROMETHEUS / "prometheus.yml")
    assert config["rule_files"] == ["alerts.yml"]
    by_name = {one["job_name"]: one for one in config["scrape_configs"]}
    assert by_name["bitpress"]["static_configs"] == [{"targets": ["app:8000"]}]
    assert by_name["bitpress"]["metrics_path"] == "/metrics"


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    page = (ROOT / RUNBOOK).read_text()
    for alert in alerts():
        assert alert["alert"].startswith("Bitpress")
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert set(alert["annotations"]) == {"summary", "description", "todo"}
        assert all(alert["annotations"].values())
        names_of(alert["expr"])
        assert f"`{alert['alert']}`" in page, f"{RUNBOOK} has nothing on {alert['alert']}"


def test_every_alert_is_tried_in_a_case_that_fires_and_in_one_that_does_not() -> None:
    fires: set[str] = set()
    stays: set[str] = set()
    for case in read(PROMETHEUS / "alerts_test.yml")["tests"]:
        for tried in case["alert_rule_test"]:
            (fires if tried["exp_alerts"] else stays).add(tried["alertname"])
    assert fires == stays == {alert["alert"] for alert in alerts()}


def test_alerts_on_what_the_issue_names_are_there() -> None:
    read_by = {alert["alert"]: names_of(alert["expr"]) for alert in alerts()}
    assert read_by["BitpressErrors"] == {"bitpress_http_requests_total"}
    assert read_by["BitpressNoWorker"] == {"bitpress_workers_alive", "bitpress_jobs"}
    assert read_by["BitpressWorkerLost"] == {"bitpress_workers_lost"}
    assert read_by["BitpressJobStuck"] == {"bitpress_job_progress_age_seconds"}
    assert read_by["BitpressGateRejections"] == {"bitpress_jobs_finished_total"}
    assert "BitpressAppDown" in read_by


def test_the_dashboard_is_what_its_description_makes() -> None:
    made = runpy.run_path(str(GRAFANA / "dashboard.py"))
    assert (GRAFANA / "dashboards/bitpress.json").read_text() == made["text"](), "run make docs"
    assert [path.name for path in (GRAFANA / "dashboards").iterdir()] == ["bitpress.json"]


def test_the_dashboard_has_a_row_for_each_matter(dashboard: Any) -> None:
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == ROWS
    assert dashboard["uid"] == "bitpress"
    assert dashboard["schemaVersion"] >= 36
    # Assigned by Grafana; a number from another installation could meet one of its own.
    assert dashboard.get("id") is None


def test_panels_are_told_apart_and_lie_beside_one_another(dashboard: Any) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(isinstance(panel["id"], int) and panel["id"] > 0 for panel in panels)
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["title"]


def test_every_panel_is_described_and_has_a_unit_and_legends(dashboard: Any) -> None:
    for panel in shown(dashboard):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(set(references)) == len(references)
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            assert target["legendFormat"]


def test_every_query_reads_metrics_that_there_are(dashboard: Any) -> None:
    used: set[str] = set()
    for panel in shown(dashboard):
        for target in panel["targets"]:
            used |= names_of(target["expr"])
            variables = set(re.findall(r"\$(\w+)", target["expr"]))
            assert variables <= {"model", "__rate_interval", "__range"}
    assert len(used) > 25


def test_the_datasource_of_every_panel_is_provisioned(dashboard: Any) -> None:
    (source,) = read(GRAFANA / "provisioning/datasources/prometheus.yml")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    users = [
        *shown(dashboard),
        *(target for panel in shown(dashboard) for target in panel["targets"]),
        *dashboard["templating"]["list"],
        *dashboard["annotations"]["list"],
    ]
    for user in users:
        assert user["datasource"] == {"type": "prometheus", "uid": source["uid"]}


def test_the_models_can_be_chosen(dashboard: Any) -> None:
    (variable,) = dashboard["templating"]["list"]
    assert (variable["name"], variable["multi"], variable["includeAll"]) == ("model", True, True)
    assert names_of(variable["query"]["query"]) == {"bitpress_model_compression_ratio"}


def test_grafana_finds_the_dashboard_where_the_compose_file_puts_it() -> None:
    (provider,) = read(GRAFANA / "provisioning/dashboards/bitpress.yml")["providers"]
    mounts = read(ROOT / "docker-compose.yml")["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_the_columns_of_a_table_can_meet_in_one_row(dashboard: Any) -> None:
    (table,) = [panel for panel in shown(dashboard) if panel["title"] == "Published models"]
    grouped = {target["expr"].partition("(")[0] for target in table["targets"]}
    assert grouped == {"max by "}
    assert all(target["expr"].startswith("max by (model, version) ") for target in table["targets"])
    merge, organize = table["transformations"]
    assert merge["id"] == "merge"
    assert list(organize["options"]["renameByName"].values()) == [
        *("Compression ratio", "Accuracy before", "Accuracy after", "Bytes", "Published")
    ]


@pytest.mark.prometheus
def test_every_query_is_sound(promtool: str, dashboard: Any, tmp_path: Path) -> None:
    variables = {"$__rate_interval": "1m", "$__range": "1h", "$model": ".*"}
    rules = []
    for panel in shown(dashboard):
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in variables.items():
                expression = expression.replace(variable, value)
            # Each as a rule of its own name, for promtool reads expressions only there.
            rules.append({"record": f"query:{len(rules)}", "expr": expression})
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    ran = subprocess.run(
        [promtool, "check", "rules", file], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{len(rules)} rules found" in ran.stdout
