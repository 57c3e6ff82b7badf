"""What models run on: that it is told, and that the service goes on while it computes."""

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from app import settings
from app.settings import AppSettings
from models import runtime
from models.artifact import Artifact
from models.attributes import Activation
from models.operators import AvgPool2d, Conv2d, Flatten, Linear
from models.plan import INPUT, Plan
from models.preprocessing import InputSpec
from models.runtime import Runtime
from store.errors import Unavailable
from store.logs import JsonFormatter

DEADLINE_S = 300
SIDE = 48


def heavy_artifact() -> Artifact:
    """A network that takes a while: 0.9 GMAC for each image of 3 x 48 x 48 pixels."""
    names = ("one", "two", "three", "four")
    convolutions = [
        Conv2d(
            name=name,
            input=source,
            channels=128,
            kernel=(3, 3),
            padding=(1, 1),
            affine=True,
            activation=Activation("relu"),
        )
        for name, source in zip(names, (INPUT, *names[:-1]), strict=True)
    ]
    plan = Plan(
        input_shape=(3, SIDE, SIDE),
        nodes=(
            *convolutions,
            AvgPool2d(name="pool", input="four", kernel=(SIDE, SIDE), stride=(SIDE, SIDE)),
            Flatten(name="flat", input="pool"),
            Linear(name="fc", input="flat", channels=3, affine=True),
        ),
        output="fc",
    )
    generator = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for name, spec in plan.tensors.items():
        if spec.dtype == "F32":
            tensors[name] = np.full(spec.shape, 2.0**-10, dtype=np.float32)
        else:
            tensors[name] = generator.integers(0, 256, spec.shape, dtype=np.uint8)
    # A filter has 27 bits of three channels: the rest of its last byte is 0.
    tensors["one.bits"][..., -1] &= 0b111
    spec = InputSpec(3, SIDE, SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return Artifact(plan, tensors, spec, ("a", "b", "c"), {}, {})


class Watched:
    """A runtime whose runs ``around`` is called with."""

    def __init__(self, inner: Runtime, around: Callable[[Callable[[], Any]], Any]) -> None:
        self._inner = inner
        self._around = around

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, x: torch.Tensor) -> Any:
        return self._around(lambda: self._inner.run(x))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Callable[[], Any]], Any]], None]:
    """Have every run of a model that is loaded from now on go through a function."""

    def install(around: Callable[[Callable[[], Any]], Any]) -> None:
        load = runtime.load
        monkeypatch.setattr(runtime, "load", lambda *arguments: Watched(load(*arguments), around))

    return install


def predict(service: Any, model: str, images: list[bytes]) -> int:
    files = [("images", ("image", data)) for data in images]
    status: int = service.http.post("/predict", data={"model": model}, files=files).status_code
    return status


def test_the_log_tells_what_auto_means_and_what_a_model_runs_on(
    serve: Any, publish: Any, images: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "bitpress.app"):
        service = serve(predict_threads=1)
        publish(service, "told")
        assert predict(service, "told", images) == 200
    told = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    (chosen,) = [line for line in told if line["event"] == "runtime chosen"]
    serving = {"runtime": runtime.choose(), "kernels": runtime.kernels_of(runtime.choose())}
    assert chosen["asked"] == "auto"
    assert {**chosen, **serving, "threads": 1} == chosen
    (loaded,) = [line for line in told if line["event"] == "model loaded"]
    assert {**loaded, **serving, "threads": 1, "model": "told", "version": 1} == loaded
    assert min(loaded["resident_bytes"], loaded["activation_bytes"], loaded["seconds"]) > 0


def test_a_runtime_that_is_missing_is_a_wrong_setting_never_another_runtime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise Unavailable("It is missing.", remedy="Use one of: auto, reference")

    monkeypatch.setattr(runtime, "choose", missing)
    with pytest.raises(ValidationError, match=r"here\. It is missing\. Use one of: auto"):
        AppSettings(runtime="cpu")


def test_more_threads_than_any_runtime_takes_are_refused_and_never_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValidationError, match="1024"):
        AppSettings(predict_threads=1025)
    monkeypatch.setattr(settings, "usable_cores", lambda: 1500)
    assert AppSettings().predict_threads == 1024


def test_a_model_that_auto_had_to_load_elsewhere_says_so(
    serve: Any, publish: Any, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = runtime.load
    monkeypatch.setattr(runtime, "kernels_of", lambda name: "better")
    monkeypatch.setattr(runtime, "load", lambda artifact, *_: load(artifact, "reference"))
    service = serve()
    publish(service, "odd")
    assert service.http.get("/models/odd").json()["kernels"] == "better"
    assert predict(service, "odd", images) == 200
    model = service.http.get("/models/odd").json()
    assert (model["runtime"], model["kernels"]) == ("reference", "torch")
    info = (
        'bitpress_model_runtime_info{kernels="torch",model="odd",runtime="reference",version="1"}'
    )
    assert f"{info} 1.0" in service.http.get("/metrics").text


def test_the_service_answers_while_a_batch_computes(
    serve: Any, publish: Any, images: list[bytes], watch: Any
) -> None:
    computing, answered = threading.Event(), threading.Event()

    def until_answered(run: Callable[[], Any]) -> Any:
        computing.set()
        assert answered.wait(DEADLINE_S)
        return run()

    watch(until_answered)
    service = serve()
    publish(service, "slow")
    with ThreadPoolExecutor(1) as client:
        prediction = client.submit(predict, service, "slow", images)
        assert computing.wait(DEADLINE_S)
        for path in ("/health/live", "/health/ready", "/models/slow", "/metrics"):
            assert service.http.get(path).status_code == 200
        assert not prediction.done()
        answered.set()
        assert prediction.result() == 200


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_a_run_leaves_the_interpreter_to_others(
    serve: Any, publish: Any, watch: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Requests are sent and answered, by other threads of this process, within one native run."""
    # The slowest kernels: the run is to last.
    monkeypatch.setenv("BITPRESS_CPU_KERNELS", "portable")
    try:
        runtime.choose(name)
    except Unavailable:
        pytest.skip(f"there is no runtime {name} here")
    computing = threading.Event()
    runs = []

    def timed(run: Callable[[], Any]) -> Any:
        computing.set()
        begun = time.perf_counter()
        result = run()
        runs.append((begun, time.perf_counter()))
        return result

    watch(timed)
    service = serve(runtime=name, predict_threads=1)
    publish(service, "heavy", artifact=heavy_artifact())
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8)
    asked = []
    with ThreadPoolExecutor(1) as client:
        prediction = client.submit(predict, service, "heavy", [ppm(image) for image in pixels])
        assert computing.wait(DEADLINE_S)
        while not prediction.done():
            sent = time.perf_counter()
            assert service.http.get("/health/live").status_code == 200
            asked.append((sent, time.perf_counter()))
        assert prediction.result() == 200
    ((begun, ended),) = runs
    within = [one for one in asked if begun < one[0] and one[1] < ended]
    assert within


def ppm(pixels: Any) -> bytes:
    height, width, _ = pixels.shape
    return b"P6 %d %d 255\n" % (width, height) + bytes(pixels)
