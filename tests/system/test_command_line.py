"""The command line and the client against the whole service, on the bundled digits."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from benchmarks import digits
from benchmarks.digits.training import train
from client import AsyncClient, Client, CompressSpec, InputShape
from client.errors import Conflict, IdempotencyKeyReused, InvalidSpec, JobCancelled, NotFound
from client.types import JobEvent

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DEADLINE_S = 600
NETWORK = "--architecture digits_cnn --channels 1 --size 8 --mean 0.305 --std 0.376"
QUICK = f"{NETWORK} --parameter sweeps=2 --calibration-images 100"
# Long enough to be met while it runs.
LONG = f"{NETWORK} --parameter sweeps=100 --parameter starts={','.join(['random'] * 16)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of digits, and a checkpoint that knows them better than chance on every processor."""
    folder = tmp_path_factory.mktemp("digits")
    some = digits.load()[np.arange(0, 1797, 4)]
    training, test = digits.split(some, seed=0)
    digits.write_images(training, folder / "Digits/train")
    digits.write_images(test, folder / "Digits/test")
    save_file(train(training, epochs=8).state_dict(), folder / "digits.safetensors")
    return folder


@pytest.fixture(scope="module")
def service(
    running: Callable[[Path], AbstractContextManager[Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    with running(tmp_path_factory.mktemp("service") / "data") as up:
        yield up


@pytest.fixture(scope="module")
def client(service: Any) -> Iterator[Client]:
    with Client(service.url) as opened:
        yield opened


@pytest.fixture(scope="module")
def compress(folder: Path) -> Callable[[str], list[str]]:
    """Make a command that compresses the digits."""
    checkpoint, images = folder / "digits.safetensors", folder / "Digits"
    return lambda options: ["compress", str(checkpoint), f"--dataset={images}", *options.split()]


@pytest.fixture(scope="module")
def published(service: Any, compress: Callable[[str], list[str]]) -> Any:
    """The outcome of the command that makes the first version of the model."""
    return service.run(*compress(f"{QUICK} --name digits --max-accuracy-drop 1 --wait"))


def test_waiting_in_a_pipe_gives_a_line_for_each_step_and_then_the_figures(published: Any) -> None:
    assert published.returncode == 0, published.stderr
    lines = published.stderr.splitlines()
    steps = [line.split("% ")[1] for line in lines if "% calibrate features." in line]
    assert len(steps) == len(set(steps)) > 2
    assert lines[-1] == "100% succeeded"
    table = published.stdout
    assert "digits, version 1" in table
    assert re.search(r"ms an image +│ +[\d.]+ +│ +[\d.]+", table)
    assert "accuracy gate passed" in table


def test_a_terminal_gets_a_bar_with_layer_sweep_and_loss(
    service: Any, compress: Callable[[str], list[str]]
) -> None:
    command = compress(f"{NETWORK} --parameter sweeps=20 --name seen --wait")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "client", *command],
        cwd=ROOT,
        env={**os.environ, "BITPRESS_URL": service.url, "COLUMNS": "160", "TERM": "xterm"},
        stdout=subprocess.DEVNULL,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    # The end of a terminal is an error on Linux.
    with suppress(OSError):
        while chunk := os.read(master, 65536):
            shown += chunk
    os.close(master)
    assert process.wait(DEADLINE_S) == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode("utf-8", "replace"))
    assert re.search(r"calibrate features\.\d .*sweep \d+, loss 0\.\d{4}", plain)
    assert re.search(r"about \d+ (s|min) left", plain)


def test_a_misspelt_network_is_told_before_the_images_are_sent(
    service: Any, folder: Path, tmp_path: Path, client: Client
) -> None:
    for number in range(2):
        (tmp_path / f"new/{number}").mkdir(parents=True)
        Image.new("L", (8, 8), number).save(tmp_path / f"new/{number}/a.png")
    options = f"--dataset={tmp_path / 'new'} --architecture digits_cn --name x".split()
    refused = service.run("compress", str(folder / "digits.safetensors"), *options)
    assert refused.returncode == 1
    assert "field: spec.architecture" in refused.stderr
    assert "digits_cnn" in refused.stderr
    with pytest.raises(NotFound):
        client.dataset("new")


@pytest.mark.usefixtures("published")
def test_a_dry_run_foresees_the_job_and_queues_none(
    service: Any, compress: Callable[[str], list[str]], client: Client
) -> None:
    before = [job.id for job in client.jobs()]
    foreseen = service.run(*compress(f"{QUICK} --name digits --dry-run"))
    assert foreseen.returncode == 0, foreseen.stderr
    assert "912,680 before" in foreseen.stdout
    assert "features.0" in foreseen.stdout
    assert [job.id for job in client.jobs()] == before


@pytest.mark.usefixtures("published")
def test_ctrl_c_leaves_the_job_which_can_be_watched_cancelled_retried_and_removed(
    service: Any, compress: Callable[[str], list[str]], client: Client
) -> None:
    command = compress(f"{LONG} --name long --wait")
    process = subprocess.Popen(
        [sys.executable, "-m", "client", *command],
        cwd=ROOT,
        env={**os.environ, "BITPRESS_URL": service.url},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "calibrate" in line:
            break
    process.send_signal(signal.SIGINT)
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait(DEADLINE_S) == 130
    (job_id,) = re.findall(r"bitpress jobs (\S+) --watch shows it again", told)

    listed = service.run("jobs", "--state=running", "--json")
    assert [json.loads(line)["id"] for line in listed.stdout.splitlines()] == [job_id]
    with pytest.raises(Conflict):
        client.delete_job(job_id)

    cancelled = service.run("jobs", job_id, "--cancel")
    assert cancelled.returncode == 0, cancelled.stderr
    watched = service.run("jobs", job_id, "--watch")
    assert watched.returncode == 1
    assert "remedy:" in watched.stderr

    assert service.run("jobs", job_id, "--retry").returncode == 0
    deadline = time.monotonic() + DEADLINE_S
    while client.job(job_id).state == "queued" and time.monotonic() < deadline:
        time.sleep(0.1)
    client.cancel(job_id)
    kinds = [event.kind for event in client.events(job_id)]
    assert kinds.count("cancelled") == 2
    assert kinds[-1] == "cancelled"
    assert kinds.index("retried") > kinds.index("cancelled")

    assert service.run("jobs", job_id, "--delete").returncode == 0
    with pytest.raises(NotFound):
        client.job(job_id)


@pytest.mark.usefixtures("published")
def test_models_are_named_downloaded_and_removed(
    service: Any, compress: Callable[[str], list[str]], client: Client, tmp_path: Path
) -> None:
    second = service.run(*compress(f"{QUICK} --seed 1 --name digits --wait"))
    assert second.returncode == 0, second.stderr
    named = service.run("models", "digits", "--alias=stable=1")
    assert named.returncode == 0, named.stderr
    assert client.model("digits").aliases == {"stable": 1}
    refused = service.run("models", "digits", "--delete=1", "--yes")
    assert refused.returncode == 1
    assert "stable" in refused.stderr

    target = tmp_path / "digits.safetensors"
    downloaded = service.run("models", "digits", f"--download={target}", "--version=1")
    assert downloaded.returncode == 0, downloaded.stderr
    (stored,) = (service.data_dir / "models/digits/1").glob("*.safetensors")
    assert target.read_bytes() == stored.read_bytes()

    assert service.run("models", "digits", "--alias=stable=2").returncode == 0
    assert service.run("models", "digits", "--delete=1", "--yes").returncode == 0
    assert [one.version for one in client.model_versions("digits")] == [2]


@pytest.mark.usefixtures("published")
def test_an_image_is_classified_by_the_version_behind_an_alias(
    service: Any, folder: Path, client: Client
) -> None:
    latest = client.model("digits").latest
    client.set_alias("digits", "tried", latest)
    image = next((folder / "Digits/test/3").iterdir())
    answered = service.run("predict", str(image), "--model=digits", "--version=tried")
    assert answered.returncode == 0, answered.stderr
    found = client.predict("digits", [(image.name, image.read_bytes())], version="tried")
    assert (found.version, found.alias) == (latest, "tried")
    assert answered.stdout.split("\t")[1] == found.predictions[0].top[0].label


@pytest.mark.usefixtures("published")
def test_datasets_are_shown_with_samples(service: Any, tmp_path: Path) -> None:
    shown = service.run("datasets", "digits")
    assert shown.returncode == 0, shown.stderr
    assert "smallest 8 x 8, median 8 x 8, largest 8 x 8" in shown.stdout
    sheet = tmp_path / "sheet.png"
    assert service.run("datasets", "digits", f"--sheet={sheet}").returncode == 0
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"


@pytest.mark.usefixtures("published")
def test_the_same_key_queues_one_job_and_another_request_with_it_none(
    client: Client, folder: Path
) -> None:
    checkpoint = folder / "digits.safetensors"
    spec = CompressSpec(
        name="keyed",
        architecture="digits_cnn",
        dataset="digits",
        input=InputShape(channels=1, height=8, width=8),
        method={"name": "bwnh", "starts": ["random"] * 16, "sweeps": 100},
    )
    first = client.compress(spec, checkpoint, idempotency_key="one")
    assert client.compress(spec, checkpoint, idempotency_key="one").id == first.id
    with pytest.raises(IdempotencyKeyReused):
        other = spec.model_copy(update={"seed": 1})
        client.compress(other, checkpoint, idempotency_key="one")
    client.cancel(first.id)
    assert client.wait(first.id).state == "cancelled"


@pytest.mark.usefixtures("published")
def test_tasks_do_other_things_while_they_wait(service: Any, folder: Path) -> None:
    spec = CompressSpec(
        name="awaited",
        architecture="digits_cnn",
        dataset="digits",
        input=InputShape(channels=1, height=8, width=8),
        method={"name": "bwnh", "starts": ["random"] * 16, "sweeps": 100},
    )
    heard: list[JobEvent] = []

    async def follow_and_cancel() -> None:
        async with AsyncClient(service.url) as client, anyio.create_task_group() as tasks:
            with pytest.raises(InvalidSpec):
                await client.dry_run(spec.model_copy(update={"architecture": "none"}))
            job = await client.compress(spec, folder / "digits.safetensors")

            async def cancel_once_it_runs() -> None:
                async for event in client.events(job.id):
                    if event.kind == "sweep":
                        await client.cancel(job.id)
                        return

            tasks.start_soon(cancel_once_it_runs)
            ended = await client.wait(job.id, on_event=heard.append)
            assert ended.state == "cancelled"
            assert ended.problem is not None
            assert JobCancelled(ended).type == "urn:bitpress:problem:cancelled"

    anyio.run(follow_and_cancel)
    assert [event.seq for event in heard] == list(range(1, len(heard) + 1))
