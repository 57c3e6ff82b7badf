import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from client.progress import JobProgress, TransferProgress, where
from client.types import Job


@pytest.fixture
def job(job_record: Callable[..., Any]) -> Callable[..., Job]:
    return lambda **members: Job.model_validate(job_record(**members))


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, force_terminal=terminal, width=100), written


def test_a_job_stands_at_its_step_while_it_runs(job: Callable[..., Job]) -> None:
    assert where(job(state="queued")) == "queued"
    assert where(job(state="running")) == "running"
    assert where(job(state="running", stage="pack")) == "pack"
    assert where(job(state="running", stage="calibrate", step="conv1")) == "calibrate conv1"
    assert where(job(state="failed", stage="calibrate", step="conv1")) == "failed"


def test_a_job_in_training_tells_what_the_last_epoch_came_to(job: Callable[..., Job]) -> None:
    epoch = {
        "epoch": 1,
        "loss": 0.25,
        "train_accuracy": 0.875,
        "images_per_second": 300.0,
        "learning_rate": 0.001,
        "seconds": 2.0,
    }
    at = {"state": "running", "stage": "fine_tune"}
    assert where(job(**at, step="epoch-0001")) == "fine_tune epoch-0001"
    assert where(job(**at, step="epoch-0002", epochs=[epoch])) == (
        "fine_tune epoch-0002 (before: loss 0.250, training accuracy 87.5%)"
    )
    assert where(job(state="running", stage="pack", epochs=[epoch])) == "pack"


def test_a_log_gets_a_line_per_step_and_no_repetitions(job: Callable[..., Job]) -> None:
    target, written = console(terminal=False)
    with JobProgress(target) as shown:
        shown(job())
        shown(job(state="running", stage="calibrate", step="conv1", progress=0.25))
        shown(job(state="running", stage="calibrate", step="conv1", progress=0.5))
        shown(job(state="succeeded", progress=1.0))
    assert written.getvalue().splitlines() == [
        "  0% queued",
        " 25% calibrate conv1",
        "100% succeeded",
    ]


def test_a_terminal_gets_a_bar(job: Callable[..., Job]) -> None:
    target, written = console(terminal=True)
    with JobProgress(target) as shown:
        shown(job(state="running", stage="calibrate", step="[/red]conv1", progress=0.25))
    assert "calibrate [/red]conv1" in written.getvalue()
    assert "25%" in written.getvalue()


def test_an_upload_is_announced_once_in_a_log() -> None:
    target, written = console(terminal=False)
    with TransferProgress(target, "Uploading [/x].pth") as sent:
        sent(512, 1024)
        sent(1024, 1024)
    assert written.getvalue() == "Uploading [/x].pth (1,024 bytes)\n"


def test_an_upload_shows_its_bytes_on_a_terminal() -> None:
    target, written = console(terminal=True)
    with TransferProgress(target, "Uploading [/x].pth") as sent:
        sent(1024, 1024)
    assert "Uploading [/x].pth" in written.getvalue()
    assert "1.0/1.0 kB" in written.getvalue()
