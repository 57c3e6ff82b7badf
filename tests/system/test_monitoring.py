"""A real Prometheus with the repository's own configuration, on a live service that really works.

Every query of the dashboard and of the alerts is run through Prometheus, and what it says of a
model that was compressed a moment ago is what the model's report says.
"""

import io
import json
import math
import re
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from safetensors.torch import save

from benchmarks import digits
from benchmarks.digits.training import ARCHITECTURE, INPUT, train

pytestmark = [pytest.mark.slow, pytest.mark.prometheus]

# Of conftest.py, which cannot be imported.
Up = Any
Running = Callable[[Path], AbstractContextManager[Up]]

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/bitpress.json").read_text())
CONFIGURATION = ROOT / "deploy/prometheus"
# Eight scrapes at the configured interval, and as much again for a busy machine.
DEADLINE_S = 600.0
# As Grafana fills them in: four scrapes, the range that is shown, all models.
VARIABLES = {"$__rate_interval": "1m", "$__range": "5m", "$model": ".*"}
SPEC = {
    "name": "digits",
    "architecture": ARCHITECTURE,
    "dataset": "digits",
    "input": {
        "channels": INPUT.channels,
        "height": INPUT.height,
        "width": INPUT.width,
        "mean": list(INPUT.mean),
        "std": list(INPUT.std),
    },
    "method": {"name": "bwnh", "sweeps": 2},
}


@dataclass(frozen=True)
class Watched:
    """A running Prometheus."""

    url: str

    def _ask(self, path: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, trust_env=False)
        content = answer.json()
        assert content["status"] == "success", (parameters, content)
        return content["data"]

    def value(self, expression: str) -> list[float]:
        """Return the values of an instant query."""
        found = self._ask("query", query=expression)["result"]
        return [float(series["value"][1]) for series in found]

    def lines(self, expression: str) -> list[float]:
        """Return all values of a query over the last five minutes."""
        now = time.time()
        data = self._ask("query_range", query=expression, start=now - 300, end=now, step=15)
        return [float(value) for series in data["result"] for _, value in series["values"]]

    def rules(self) -> list[Any]:
        (group,) = self._ask("rules")["groups"]
        found: list[Any] = group["rules"]
        return found


@contextmanager
def watching(prometheus: str, folder: Path, target: str) -> Iterator[Watched]:
    """Run Prometheus with the repository's configuration, its targets' addresses replaced."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    text = (CONFIGURATION / "prometheus.yml").read_text()
    for configured, here in (("app:8000", target), ("127.0.0.1:9090", address)):
        assert text.count(f'"{configured}"') == 1
        text = text.replace(f'"{configured}"', f'"{here}"')
    (folder / "prometheus.yml").write_text(text)
    (folder / "alerts.yml").write_text((CONFIGURATION / "alerts.yml").read_text())
    command = [
        *(prometheus, f"--config.file={folder}/prometheus.yml"),
        *(f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Watched(f"http://{address}")
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    """A network that knows the digits."""
    training, _ = digits.split(digits.load())
    return save(train(training, epochs=4).state_dict())


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Some of the digits as a dataset, as a zip."""
    folder = tmp_path_factory.mktemp("digits")
    training, test = digits.split(digits.load())
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as packed:
        for split, part in (("train", training[list(range(600))]), ("test", test)):
            for path in digits.write_images(part, folder / split):
                packed.write(path, path.relative_to(folder))
    return target.getvalue()


class Caller:
    """Somebody who uses the service."""

    def __init__(self, http: httpx.Client, archive: bytes) -> None:
        self.http = http
        with zipfile.ZipFile(io.BytesIO(archive)) as packed:
            names = [name for name in packed.namelist() if name.startswith("test/")]
            self._image = packed.read(names[0])
        sent = {"archive": ("digits.zip", archive)}
        assert self.http.post("/datasets", data={"name": "digits"}, files=sent).status_code == 201

    def finished(self, checkpoint: bytes, **spec: Any) -> Any:
        """Have a job done, and return it."""
        form = {"spec": (None, json.dumps({**SPEC, **spec})), "checkpoint": ("c", checkpoint)}
        answer = self.http.post("/compress", files=form)
        assert answer.status_code == 202, answer.text
        place = answer.headers["Location"]
        deadline = time.monotonic() + DEADLINE_S
        while (job := self.http.get(place).json())["finished_at"] is None:
            assert time.monotonic() < deadline, job
            time.sleep(0.2)
        return job

    def predict(self) -> None:
        """Ask for a few predictions, one of them of what is no image."""
        for content, status in ((self._image, 200), (self._image, 200), (b"no image", 422)):
            answer = self.http.post(
                "/predict?model=digits", content=content, headers={"content-type": "image/png"}
            )
            assert answer.status_code == status, answer.text


@dataclass(frozen=True)
class Scene:
    """A service that has worked, somebody who goes on asking it, and who watches."""

    caller: Caller
    watched: Watched
    succeeded: Any
    rejected: Any

    def until(self, what: str, true: Callable[[], bool]) -> None:
        """Wait for a condition while the service is asked for predictions."""
        deadline = time.monotonic() + DEADLINE_S
        while not true():
            assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
            self.caller.predict()
            time.sleep(0.5)


@pytest.fixture(scope="module")
def scene(
    prometheus: str,
    running: Running,
    checkpoint: bytes,
    archive: bytes,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        running(tmp_path_factory.mktemp("service") / "data") as up,
        watching(prometheus, folder, up.url.removeprefix("http://")) as watched,
        httpx.Client(base_url=up.url, timeout=60, trust_env=False) as http,
    ):
        # Prometheus is there before the first job, as it is in earnest.
        wait_for_prometheus(watched)
        caller = Caller(http, archive)
        succeeded = caller.finished(checkpoint)
        assert succeeded["state"] == "succeeded", succeeded
        Scene(caller, watched, succeeded, None).until(
            "the model in Prometheus",
            lambda: bool(watched.value("bitpress_model_compression_ratio")),
        )
        # Plain signs ruin the network, and this job allows no loss at all.
        rejected = caller.finished(
            checkpoint, name="ruined", method={"name": "bwn"}, max_accuracy_drop=0
        )
        yield Scene(caller, watched, succeeded, rejected)


def wait_for_prometheus(watched: Watched) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            if watched.value('up{job="bitpress"}') == [1]:
                return
        except (httpx.TransportError, json.JSONDecodeError):
            pass
        assert time.monotonic() < deadline, "Prometheus does not scrape the service"
        time.sleep(0.2)


def filled_in(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


def test_ratio_bytes_and_accuracy_are_those_of_the_report(scene: Scene) -> None:
    report = scene.caller.http.get(
        f"/jobs/{scene.succeeded['id']}/report", headers={"accept": "application/json"}
    ).json()
    model = '{model="digits",version="1"'
    assert scene.watched.value(f"bitpress_model_compression_ratio{model}}}") == [
        report["compression_ratio"]
    ]
    for form in ("full_precision", "calibrated", "packed"):
        accuracy = scene.watched.value(f'bitpress_model_accuracy_ratio{model},form="{form}"}}')
        assert accuracy == [report["accuracy"][form]]
    packed = scene.watched.value(f"bitpress_model_packed_bytes{model}}}")
    assert packed == [report["bytes"]["packed"]]
    artifact = scene.caller.http.get("/models/digits/versions/1/artifact").content
    assert packed == [len(artifact)]
    assert report["compression_ratio"] > 10
    assert report["accuracy"]["packed"] > 0.5


def test_every_panel_returns_data(scene: Scene) -> None:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len(panels) > 25
    empty: dict[tuple[str, str], str] = {
        (panel["title"], target["refId"]): "not asked"
        for panel in panels
        for target in panel["targets"]
    }

    def all_filled() -> bool:
        for panel in panels:
            ask = scene.watched.lines if panel["type"] == "timeseries" else scene.watched.value
            for target in panel["targets"]:
                found = ask(filled_in(target["expr"]))
                if any(map(math.isfinite, found)):
                    empty.pop((panel["title"], target["refId"]), None)
        return not empty

    try:
        scene.until("data in every panel", all_filled)
    except AssertionError:
        pytest.fail(f"without data: {sorted(empty)}")


def test_the_variable_of_the_dashboard_lists_the_models(scene: Scene) -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    (metric, label) = re.findall(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])[0]
    url = f"{scene.watched.url}/api/v1/label/{label}/values"
    answer = httpx.get(url, params={"match[]": metric}, trust_env=False).json()
    # The rejected one is no model.
    assert answer["data"] == ["digits"]


def test_every_alert_is_evaluated_and_only_the_gate_has_something_to_say(scene: Scene) -> None:
    (group,) = yaml.safe_load((CONFIGURATION / "alerts.yml").read_text())["groups"]
    for alert in group["rules"]:
        scene.watched.value(alert["expr"])

    def state() -> dict[str, str]:
        return {rule["name"]: rule["state"] for rule in scene.watched.rules()}

    scene.until(
        "the alert on the rejected job", lambda: state()["BitpressGateRejections"] == "firing"
    )
    assert {rule["health"] for rule in scene.watched.rules()} == {"ok"}
    # Nor does the disk of this machine matter here.
    quiet = set(state()) - {"BitpressGateRejections", "BitpressDiskLow"}
    assert quiet == {alert["alert"] for alert in group["rules"]} - {
        "BitpressGateRejections",
        "BitpressDiskLow",
    }
    assert {state()[name] for name in quiet} == {"inactive"}


def test_the_rejected_job_is_counted_and_no_model(scene: Scene) -> None:
    assert scene.rejected["state"] == "rejected"
    finished = 'bitpress_jobs_finished_total{state="rejected"}'
    scene.until("the rejected job", lambda: scene.watched.value(finished) == [1])
    assert scene.watched.value('bitpress_model_compression_ratio{model="ruined"}') == []


def test_the_mistakes_of_the_caller_are_counted_by_reason(scene: Scene) -> None:
    scene.until(
        "the refused images",
        lambda: scene.watched.value('bitpress_errors_total{reason="invalid-image"}')[0] > 0,
    )
    assert scene.watched.value('bitpress_errors_total{reason="internal-error"}') == [0]
