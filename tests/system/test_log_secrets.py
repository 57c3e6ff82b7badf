"""What callers send and where the service keeps it shows in no log, however talkative, and in no
answer; and each line that belongs to a request or a job has its id."""

import io
import json
import re
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
import torch
from PIL import Image
from safetensors.torch import save

from models import registry

pytestmark = pytest.mark.slow

# Of conftest.py, which cannot be imported.
Running = Callable[[Path], AbstractContextManager[Any]]
WaitUntil = Callable[..., None]

ROOT = Path(__file__).parents[2]
PASSWORD = "hunter2istheword"
TOKEN = "sesame-open-token"
QUERY = "hidden-in-the-query"
FILE = "private-file-name"
BYTES = b"bytes-that-were-uploaded"
CLASSES = ("cat", "dog")


def picture(seed: int) -> bytes:
    target = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


def images(*, broken: bool = False) -> bytes:
    """A dataset of two classes; with ``broken`` each of its images ends in the middle."""
    files = {
        f"{split}/{label}/{FILE}-{number}.png": picture(number)
        for split in ("train", "test")
        for label in CLASSES
        for number in range(8)
    }
    if broken:
        files = {name: data[:60] + BYTES for name, data in files.items()}
    return zipped(files)


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = registry.build(
            "digits_cnn", channels=1, height=8, width=8, classes=2, parameters={}
        )
    return save(network.eval().state_dict())


@dataclass
class Talk:
    """What was said between a caller and the service."""

    http: httpx.Client
    answers: list[httpx.Response] = field(default_factory=list)

    def __call__(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {
            "Authorization": f"Bearer {TOKEN}",
            "Cookie": f"session={TOKEN}",
            "X-Request-ID": f"{TOKEN} with blanks",
            **more.pop("headers", {}),
        }
        answer = self.http.request(method, path, headers=headers, **more)
        self.answers.append(answer)
        return answer


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Configures the service's database; the one on PostgreSQL has a password in its URL."""
    if request.param == "postgres":
        url = sa.make_url(request.getfixturevalue("empty_postgres_url"))
        given = url.set(username=url.username or "postgres", password=PASSWORD)
        monkeypatch.setenv("BITPRESS_DATABASE_URL", given.render_as_string(hide_password=False))


@pytest.fixture
def talk(
    database: None, running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Talk, Any]]:
    monkeypatch.setenv("BITPRESS_LOG_LEVEL", "DEBUG")
    with (
        running(tmp_path / "data") as up,
        httpx.Client(base_url=up.url, timeout=60, trust_env=False) as http,
    ):
        yield Talk(http), up


def spec(dataset: str, **more: Any) -> tuple[None, str]:
    asked = {
        "name": "m",
        "architecture": "digits_cnn",
        "dataset": dataset,
        "input": {"channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.25]},
        "method": {"name": "bwn"},
        "calibration_images": 8,
    }
    return None, json.dumps({**asked, **more})


def converse(talk: Talk, checkpoint: bytes, wait_until: WaitUntil) -> dict[str, str]:
    """Do right and wrong things with the service; return the ids of the jobs that were made."""
    for name, archive in (("good", images()), ("bad", images(broken=True))):
        sent = {"archive": (f"{FILE}.zip", archive)}
        talk("POST", "/datasets", params={"token": QUERY}, data={"name": name}, files=sent)
    refused = (f"{FILE}.zip", zipped({f"../{FILE}.png": BYTES}))
    talk("POST", "/datasets", data={"name": "escape"}, files={"archive": refused})
    talk("POST", "/datasets", data={"name": "none"}, files={"archive": (FILE, BYTES)})
    talk("POST", "/datasets", json={"name": "outside", "root": "etc", "more": TOKEN})

    jobs = {}
    for name in ("good", "bad"):
        form = {"spec": spec(name), "checkpoint": (f"{FILE}.safetensors", checkpoint)}
        identified = {"X-Request-ID": f"submits-{name}"}
        answer = talk("POST", "/compress", files=form, headers=identified)
        if answer.status_code == 202:
            jobs[name] = answer.json()["id"]
    for content in (BYTES, b"\x80\x02" + BYTES, checkpoint[:-100] + BYTES * 4):
        form = {"spec": spec("good"), "checkpoint": (f"{FILE}.pt", content)}
        talk("POST", "/compress", files=form)
    talk("POST", "/compress", files={"spec": spec("good", surplus=TOKEN)})
    talk("POST", "/compress", content=BYTES, headers={"Content-Type": "multipart/form-data"})

    def ended() -> bool:
        states = [talk.http.get(f"/jobs/{job}").json()["finished_at"] for job in jobs.values()]
        return all(states)

    wait_until(ended, "the end of the jobs")
    for job in jobs.values():
        talk("GET", f"/jobs/{job}", params={"token": QUERY})
        talk("GET", f"/jobs/{job}/report")
    raw = {"Content-Type": "image/png"}
    talk("POST", "/predict", params={"model": "m"}, content=picture(1), headers=raw)
    talk("POST", "/predict", params={"model": "m"}, content=BYTES, headers=raw)
    talk("POST", "/predict", params={"model": QUERY}, content=picture(1), headers=raw)
    talk(
        "POST",
        "/predict",
        content=b'{"model": "' + BYTES,
        headers={"Content-Type": "application/json"},
    )
    for path in (f"/jobs/{FILE}", f"/models/{FILE}", f"/{FILE}/{TOKEN}", "/models", "/jobs"):
        talk("GET", path, params={"token": QUERY})
    talk("GET", "/jobs", params={"limit": QUERY})
    talk("GET", "/metrics")
    return jobs


def test_no_secret_shows_in_logs_or_answers(
    talk: tuple[Talk, Any], checkpoint: bytes, wait_until: WaitUntil
) -> None:
    say, up = talk
    jobs = converse(say, checkpoint, wait_until)
    assert "good" in jobs
    assert up.stop() == 0
    log = "\n".join(up.log)
    answered = "\n".join(
        f"{answer.status_code} {dict(answer.headers)} {answer.text}" for answer in say.answers
    )
    assert 500 not in {answer.status_code for answer in say.answers}

    own = [PASSWORD, TOKEN, QUERY, BYTES.decode()]
    places = [str(up.data_dir), str(up.data_dir.parent), str(ROOT), "/usr/lib/python"]
    for secret in (*own, *places, FILE):
        assert secret not in log, [line for line in up.log if secret in line]
    # A caller is told which of its own files is meant, and gets no more.
    for secret in (*own, *places):
        told = answered
        if secret == QUERY:
            # The name of a model that does not exist came from the caller.
            told = "\n".join(line for line in answered.splitlines() if "no model" not in line)
        assert secret not in told, re.findall(f".{{0,200}}{re.escape(secret)}.{{0,50}}", told)

    lines = [json.loads(line.partition("| ")[2]) for line in up.log if "| {" in line]
    assert len(lines) == sum("| " in line for line in up.log), "every line is a JSON object"
    check_ids(lines, jobs)


def check_ids(lines: list[dict[str, Any]], jobs: Mapping[str, str]) -> None:
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) > 20
    assert all(re.fullmatch("[A-Za-z0-9._-]{1,64}", line["request_id"]) for line in requests)
    for name, job in jobs.items():
        # From the request to its job, and to everything that the worker did for it.
        (submitted,) = [line for line in requests if line["request_id"] == f"submits-{name}"]
        assert submitted["job"] == job
        assert any(line["logger"].startswith("worker") for line in lines if line.get("job") == job)
    steps = [line for line in lines if line["event"] == "step finished"]
    assert {line["job"] for line in steps} <= set(jobs.values())
    assert {"prepare", "calibrate", "pack", "evaluate", "publish"} <= {
        line["stage"] for line in steps
    }
    # DBOS has nothing to tell while all goes well.
    assert not [line for line in lines if line["logger"].startswith("dbos")]
    assert uuid.UUID(next(line["request_id"] for line in requests if "-" not in line["request_id"]))
