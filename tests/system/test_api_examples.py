"""Every example of docs/API.md, run as it stands: the shell's by a shell with the real curl, the
Python ones as code, against a service that compresses the bundled digits.

Of an answer the page shows some members, shortened with ``...``: each of them must be there, of the
same type.
"""

import contextlib
import functools
import io
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from app.main import create_app
from app.openapi import describe
from benchmarks import digits
from benchmarks.digits.training import train
from client import Client, CompressSpec, InputShape
from client.errors import Conflict, NotFound

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("curl") is None, reason="the examples are curl's"),
]

PAGE = (Path(__file__).parents[2] / "docs/API.md").read_text()
DEADLINE_S = 600
SPEC = CompressSpec(
    name="digits",
    architecture="digits_cnn",
    dataset="digits",
    input=InputShape(channels=1, height=8, width=8, mean=(0.305,), std=(0.376,)),
    method={"name": "bwnh", "sweeps": 2},
    calibration_images=100,
    max_accuracy_drop=1.0,
)
# What a shell or Python example of these finds when it begins; of all others what `Place` makes.
BEFORE = {
    "POST /jobs/{job_id}/cancel": "cancellable",
    "POST /jobs/{job_id}/retry": "cancelled",
    "DELETE /jobs/{job_id}": "cancelled",
    "DELETE /datasets/{name}": "unused_dataset",
    "DELETE /models/{name}": "retired",
    "DELETE /models/{name}/versions/{version}": "three_versions",
    "DELETE /models/{name}/aliases/{alias}": "alias",
    "GET /models/{name}/aliases": "alias",
    "GET /models/{name}": "alias",
    "GET /models/{name}/versions": "alias",
    "GET /models/{name}/versions/{version}": "alias",
}


@dataclass(frozen=True)
class Example:
    """A block of the page in the section of ``operation``; ``shown`` is the JSON behind it."""

    operation: str
    number: int
    language: str
    code: str
    shown: Any

    def __str__(self) -> str:
        return f"{self.operation} {self.language} {self.number}"


def examples() -> Iterator[Example]:
    """Yield the page's examples in its order, sections in any."""
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        if not re.match(r"(GET|POST|PUT|DELETE) /", title):
            continue
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        following = [*blocks[1:], ("", "")]
        for number, (block, behind) in enumerate(zip(blocks, following, strict=True)):
            if block[0] in ("sh", "python"):
                shown = json.loads(behind[1]) if behind[0] == "json" else None
                yield Example(title, number, *block, shown)


EXAMPLES = list(examples())


class Place:
    """A folder with the files that the examples name, and a service with what they ask for."""

    def __init__(self, folder: Path, client: Client) -> None:
        self.folder = folder
        self.url = client.url
        self.client = client
        self._seeds = itertools.count(1)

    def job(self) -> str:
        """Return the id of a job that succeeded, and published the first version of the model."""
        self.dataset()
        try:
            return self.client.model_version("digits", 1).job
        except NotFound:
            return self.publish("digits")

    def dataset(self) -> None:
        """See that the dataset is there."""
        self.client.upload_dataset(self.folder / "digits.zip", "digits")

    def cancellable(self) -> str:
        """Return the id of a job that will not end by itself for a while."""
        self.dataset()
        method = {"name": "bwnh", "starts": ["random"] * 16, "sweeps": 100}
        spec = SPEC.model_copy(update={"name": "long", "method": method, "seed": next(self._seeds)})
        return self.client.compress(spec, self.folder / "digits.safetensors").id

    def cancelled(self) -> str:
        """Return the id of a job that was cancelled, and has come to rest."""
        job_id = self.client.cancel(self.cancellable()).id
        assert self.client.wait(job_id).state == "cancelled"
        return job_id

    def unused_dataset(self) -> str:
        """See that the dataset is there and no job needs it; return a job's id all the same."""
        job_id = self.job()
        self.rest()
        self.dataset()
        return job_id

    def alias(self) -> str:
        """See that the model has an alias."""
        job_id = self.job()
        self.client.set_alias("digits", "stable", 1)
        return job_id

    def retired(self) -> str:
        """See that there is a model of this name, whose examples remove it."""
        try:
            return self.client.model("retired").job
        except NotFound:
            return self.publish("retired")

    def three_versions(self) -> str:
        """See that there were three versions: each example removes one, for good."""
        job_id = self.job()
        while self.client.model("digits").latest < 3:
            self.publish("digits")
        return job_id

    def publish(self, name: str) -> str:
        """Return the id of a job that published a version of the model."""
        self.dataset()
        spec = SPEC.model_copy(update={"name": name, "seed": next(self._seeds)})
        job = self.client.compress(spec, self.folder / "digits.safetensors")
        ended = self.client.wait(job.id)
        assert ended.model is not None, ended
        return job.id

    def rest(self) -> None:
        """Cancel what an example left running."""
        for job in self.client.jobs():
            if not job.finished:
                with contextlib.suppress(Conflict):
                    self.client.cancel(job.id)
                self.client.wait(job.id)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    some = digits.load()[np.arange(0, 1797, 3)]
    training, test = digits.split(some, seed=0)
    digits.write_images(training, folder / "images/train")
    paths = digits.write_images(test, folder / "images/test")
    shutil.make_archive(str(folder / "digits"), "zip", folder / "images")
    save_file(train(training, epochs=2).state_dict(), folder / "digits.safetensors")
    shutil.copy(next(path for path in paths if path.parent.name == "5"), folder / "five.png")
    (folder / "notes.txt").write_text("no image")
    # The status goes to the error output, and the answer is left as it is.
    (folder / ".curlrc").write_text('write-out = "%{stderr}%{http_code}\\n"\n')
    return folder


@pytest.fixture(scope="module")
def place(
    running: Callable[[Path], AbstractContextManager[Any]],
    files: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("BITPRESS_DATASET_ROOTS", f"shared={files / 'images'}")
        with running(tmp_path_factory.mktemp("service") / "data") as up, Client(up.url) as client:
            yield Place(files, client)


@functools.cache
def successes(operation: str) -> frozenset[int]:
    """Return the statuses that the OpenAPI document has for a success of ``operation``."""
    method, path = operation.split(" ")
    answers = describe(create_app())["paths"][path][method.lower()]["responses"]
    return frozenset(int(status) for status in answers if status.startswith("2"))


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_does_what_the_page_shows(example: Example, place: Place) -> None:
    job_id = getattr(place, BEFORE.get(example.operation, "job"))()
    run = in_a_shell if example.language == "sh" else as_code
    try:
        run(example, place, job_id)
    finally:
        place.rest()


def in_a_shell(example: Example, place: Place, job_id: str) -> None:
    """Run the example, and compare status and answer with what is said of them."""
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example.code],
        cwd=place.folder,
        env={**os.environ, "CURL_HOME": str(place.folder), "URL": place.url, "JOB": job_id},
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert ended.returncode == 0, ended.stderr
    statuses = {int(line) for line in ended.stderr.split()}
    assert statuses and statuses <= successes(example.operation), ended.stdout
    if example.shown is not None:
        assert_shown(example.shown, json.loads(ended.stdout))


def as_code(example: Example, place: Place, job_id: str) -> None:
    """Run the example behind the page's own head."""
    head = re.search(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert head is not None
    names: dict[str, Any] = {}
    with contextlib.chdir(place.folder), contextlib.redirect_stdout(io.StringIO()):
        exec(head[1].replace("http://127.0.0.1:8000", place.url), names)
        names |= {"job_id": job_id, "spec": SPEC}
        exec(compile(example.code, str(example), "exec"), names)
    names["client"].close()


def assert_shown(shown: Any, found: Any, where: str = "$") -> None:
    """Assert that every member that the page shows is there, and of the type that it shows."""
    if isinstance(shown, dict):
        assert isinstance(found, dict), where
        for name, value in shown.items():
            if name != "...":
                assert name in found, f"{where}.{name}"
                assert_shown(value, found[name], f"{where}.{name}")
    elif isinstance(shown, list):
        assert isinstance(found, list), where
        kinds = [value for value in shown if value != "..."]
        for number, (value, other) in enumerate(zip(kinds, found, strict=False)):
            assert_shown(value, other, f"{where}[{number}]")
        assert "..." in shown or not kinds or found, where
    elif shown != "..." and shown is not None and found is not None:
        both = (shown, found)
        numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in both)
        assert numbers or type(shown) is type(found), f"{where}: {found!r}"


def test_every_call_has_an_example_for_the_shell_and_one_in_python() -> None:
    paths = describe(create_app())["paths"]
    operations = {f"{method.upper()} {path}" for path, item in paths.items() for method in item}
    for language in ("sh", "python"):
        found = {one.operation for one in EXAMPLES if one.language == language}
        assert operations == found, language
    assert all("curl " in one.code for one in EXAMPLES if one.language == "sh")
    assert all("client." in one.code for one in EXAMPLES if one.language == "python")
