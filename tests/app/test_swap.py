"""Versions swapped and deleted by another process, under load: no request notices."""

import base64
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from models import artifact as artifacts
from models import runtime
from models.preprocessing import decode_image, normalise

REPOSITORY = Path(__file__).parents[2]
CLIENTS = 4
ANSWERS_PER_CHANGE = 6
SWAPS = 50

CHANGER = """
import json, sys, time
from pathlib import Path
from store.artifacts import ModelStore
store = ModelStore(Path(sys.argv[1]))
for line in sys.stdin:
    command, *arguments = json.loads(line)
    before = time.monotonic()
    if command == "alias":
        store.set_alias("one", "live", *arguments)
    elif command == "delete":
        store.delete("one", *arguments)
    else:
        store.publish(Path(arguments[0]), "one", arguments[1])
    print(json.dumps([before, time.monotonic()]), flush=True)
"""


@dataclass
class Answer:
    """One prediction by alias: when it was asked for and given, and what it was."""

    begun: float
    ended: float
    status: int
    text: str


@dataclass
class Load:
    """Threads that predict by alias, one request after another, until they are told to stop."""

    url: httpx.URL
    image: bytes
    answers: list[Answer] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        body = {
            "model": "one",
            "version": "live",
            "images": [base64.b64encode(self.image).decode()],
        }
        try:
            with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as http:
                while not self.stopped.is_set():
                    begun = time.monotonic()
                    answer = http.post("/predict", json=body)
                    ended = time.monotonic()
                    self.answers.append(Answer(begun, ended, answer.status_code, answer.text))
        except Exception as fault:
            self.faults.append(fault)


@pytest.fixture
def change(service: Any) -> Iterator[Callable[..., tuple[float, float]]]:
    """Change the store in another process; returns the times just before and just after."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHANGER, str(service.settings.models_dir)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def do(*command: Any) -> tuple[float, float]:
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(command), file=process.stdin, flush=True)
        before, after = json.loads(process.stdout.readline())
        return before, after

    yield do
    process.kill()
    process.communicate()


@pytest.fixture
def service(serve: Any, publish: Any) -> Any:
    """A service with two versions of a model, the first of them with the alias."""
    # Room for one: each swap evicts the version before, and every version is loaded many times.
    service = serve(max_resident_models=1)
    for seed in (1, 2):
        publish(service, "one", seed=seed)
    assert service.http.put("/models/one/aliases/live", json={"version": 1}).status_code == 201
    return service


def expected(artifact: Path, image: bytes) -> dict[str, float]:
    """Probability by label, from the plan run directly."""
    read = artifacts.read(artifact)
    pixels = decode_image(image, read.input)[np.newaxis]
    logits = runtime.load(read, "reference").run(normalise(pixels, read.input))
    (row,) = torch.softmax(logits.double(), dim=1).tolist()
    return dict(zip(read.labels, row, strict=True))


@pytest.fixture
def third(service: Any, publish: Any, tmp_path: Path) -> Path:
    """What a job stages for the model's third version."""
    version = publish(service, "elsewhere", seed=3)
    folder = tmp_path / "third"
    shutil.copytree(version.path, folder)
    return folder


def test_what_another_process_does_is_seen_within_two_seconds(
    service: Any, change: Callable[..., tuple[float, float]], third: Path, images: list[bytes]
) -> None:
    """Within no time at all: the very next request knows, which no clock needs to prove."""

    def answering(version: str) -> tuple[int, int]:
        options = {"model": "one", "version": version}
        files = [("images", ("a", images[0]))]
        answer = service.http.post("/predict", data=options, files=files)
        return answer.status_code, answer.json().get("version")

    def listed() -> tuple[list[int], dict[str, int]]:
        model = service.http.get("/models/one").json()
        assert model["latest"] == model["versions"][-1]
        return model["versions"], model["aliases"]

    assert (answering("latest"), answering("live")) == ((200, 2), (200, 1))
    change("publish", str(third), "job-3")
    assert answering("latest") == (200, 3)
    assert listed() == ([1, 2, 3], {"live": 1})
    change("alias", 3)
    assert answering("live") == (200, 3)
    change("delete", 1)
    assert answering("1") == (404, None)
    assert listed() == ([2, 3], {"live": 3})


@pytest.mark.slow
def test_swaps_publications_and_deletions_cost_no_request(
    service: Any,
    change: Callable[..., tuple[float, float]],
    third: Path,
    images: list[bytes],
    wait_until: Any,
) -> None:
    one = service.settings.models_dir / "one"
    folders = {1: one / "1", 2: one / "2", 3: third}
    by_version = {
        number: expected(folder / "artifact.safetensors", images[0])
        for number, folder in folders.items()
    }

    load = Load(service.http.base_url, images[0])
    threads = [threading.Thread(target=load.run) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()

    def more_answers() -> None:
        enough = len(load.answers) + ANSWERS_PER_CHANGE
        wait_until(lambda: load.faults or len(load.answers) >= enough, "answers under load")

    # Version by version: from when it may have answered, until when it may have.
    spans: list[tuple[int, float, float]] = []
    pointing, since = 1, 0.0

    def swap(version: int) -> None:
        nonlocal pointing, since
        before, after = change("alias", version)
        spans.append((pointing, since, after))
        pointing, since = version, before
        more_answers()

    try:
        for turn in range(SWAPS):
            swap(1 + (turn + 1) % 2)
        change("publish", str(third), "job-3")
        more_answers()
        change("delete", 3 - pointing)
        more_answers()
        last = pointing
        swap(3)
        change("delete", last)
        more_answers()
    finally:
        load.stopped.set()
        for thread in threads:
            thread.join(60)
    spans.append((pointing, since, float("inf")))

    assert load.faults == []
    assert len(load.answers) >= SWAPS * ANSWERS_PER_CHANGE
    answered = set()
    for answer in load.answers:
        assert answer.status == 200, answer.text
        content = json.loads(answer.text)
        version = content["version"]
        answered.add(version)
        assert content["alias"] == "live"
        valid = {
            number
            for number, first, last in spans
            if first <= answer.ended and answer.begun <= last
        }
        assert version in valid
        top = content["predictions"][0]["top"]
        found = {entry["label"]: entry["probability"] for entry in top}
        assert found == pytest.approx(by_version[version], abs=2e-6)
    assert answered == {1, 2, 3}
    # The three could not be mistaken for one another.
    assert (
        len({tuple(round(p, 4) for p in by_version[number].values()) for number in (1, 2, 3)}) == 3
    )
