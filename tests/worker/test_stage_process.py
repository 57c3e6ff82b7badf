"""One child process per stage: what it is asked, how it ends, and that it never outlives us."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from store.errors import InvalidCheckpoint, JobCrashed, StorageExhausted
from worker.settings import WorkerSettings
from worker.stage_process import TRAINING_ENVIRONMENT, StageProcess, WorkerStopping
from worker.stage_server import context_json

REPOSITORY = Path(__file__).parents[2]
IsRunning = Callable[[int], bool]
SPEC = {"name": "digits", "architecture": "digits_cnn", "dataset": "digits"}


def ignore(_fraction: float, _message: str, _details: object = None) -> None:
    """Report to nobody."""


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def process(
    fake_stages: dict[str, str], settings: WorkerSettings, stop: threading.Event
) -> Iterator[StageProcess]:
    context = context_json("job", SPEC, settings)
    with StageProcess(
        "fake_stages:probe", context, threads=3, stop=stop, report_every_s=0.01
    ) as process:
        yield process


def test_one_child_serves_all_calls_and_keeps_its_state(process: StageProcess) -> None:
    assert process.pid is None
    first = process.call("count", {"a": [1, None, "x"]}, ignore)
    second = process.call("count", {}, ignore)
    assert (first["calls"], second["calls"]) == (1, 2)
    assert first["pid"] == second["pid"] == process.pid
    assert first["echo"] == {"a": [1, None, "x"]}


def test_a_closed_child_is_gone_and_another_call_starts_a_new_one(
    process: StageProcess, is_running: IsRunning
) -> None:
    first = process.call("count", {}, ignore)
    process.close()
    assert not is_running(first["pid"])
    second = process.call("count", {}, ignore)
    assert second["calls"] == 1
    assert second["pid"] != first["pid"]


@pytest.mark.parametrize("name", ["BITPRESS_DATABASE_URL", "bitpress_database_url"])
def test_the_child_has_the_settings_but_not_the_database(
    process: StageProcess,
    settings: WorkerSettings,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, "postgresql://me:secret@host/jobs")
    found = process.call("surroundings", {}, ignore)
    assert "secret" not in str(found)
    assert found["data_dir"] == str(settings.data_dir)
    assert found["threads"] == "3"


def test_a_stage_may_have_more_in_its_environment_than_the_worker(
    fake_stages: dict[str, str], settings: WorkerSettings, stop: threading.Event
) -> None:
    context = context_json("job", SPEC, settings)
    with StageProcess(
        "fake_stages:probe", context, threads=3, stop=stop, environment=TRAINING_ENVIRONMENT
    ) as process:
        found = process.call("surroundings", {}, ignore)["environment"]
    assert TRAINING_ENVIRONMENT.items() <= found.items()
    assert not TRAINING_ENVIRONMENT.keys() & os.environ.keys()


def test_a_database_password_does_not_reach_the_child(settings: WorkerSettings) -> None:
    secret = settings.model_copy(update={"database_url": "postgresql://me:secret@host/jobs"})
    assert "secret" not in str(context_json("job", SPEC, secret))


def test_progress_is_reported_while_the_step_runs(process: StageProcess, tmp_path: Path) -> None:
    reports: list[tuple[float, str]] = []

    def report(fraction: float, message: str, details: object = None) -> None:
        reports.append((fraction, message))
        if message:
            (tmp_path / "seen").touch()

    process.call("gated_progress", {"until": str(tmp_path / "seen")}, report)
    assert reports[0] == (0.0, "")
    assert reports[-1] == (0.25, "first")


def test_a_domain_error_crosses_with_its_field_and_remedy(process: StageProcess) -> None:
    with pytest.raises(InvalidCheckpoint) as caught:
        process.call("fate", {"fate": "invalid"}, ignore)
    assert caught.value.field == "checkpoint"
    assert caught.value.remedy == "Train again."


@pytest.mark.parametrize(
    ("fate", "words"),
    [
        ("killed", "memory runs out"),
        ("memory", "out of memory"),
        ("gpu memory", "the GPU's memory"),
        ("segfault", "SIGSEGV"),
        ("exit", "exit status 3"),
        ("unexpected", "ZeroDivisionError"),
    ],
)
def test_a_crash_is_named_with_a_remedy_and_tells_no_secrets(
    process: StageProcess, fate: str, words: str
) -> None:
    with pytest.raises(JobCrashed) as caught:
        process.call("fate", {"fate": fate}, ignore)
    assert words in caught.value.detail
    assert caught.value.remedy
    assert "/secret" not in str(caught.value.problem())
    assert process.pid is None


def test_a_full_disk_is_named(process: StageProcess) -> None:
    with pytest.raises(StorageExhausted) as caught:
        process.call("fate", {"fate": "disk"}, ignore)
    assert "/secret" not in str(caught.value.problem())


class Lost(BaseException):
    """What DBOS raises when a job is cancelled is no Exception either."""


def test_whatever_the_report_raises_kills_the_child(
    process: StageProcess, is_running: IsRunning
) -> None:
    pids: list[int] = []

    def report(_fraction: float, message: str, _details: object = None) -> None:
        if message:
            assert process.pid is not None
            pids.append(process.pid)
            raise Lost

    with pytest.raises(Lost):
        process.call("fate", {"fate": "hang"}, report)
    assert not is_running(pids[0])


def test_a_stop_kills_the_child_in_the_midst_of_a_step(
    process: StageProcess, stop: threading.Event, is_running: IsRunning
) -> None:
    pids: list[int] = []

    def report(_fraction: float, message: str, _details: object = None) -> None:
        if message:
            assert process.pid is not None
            pids.append(process.pid)
            stop.set()

    with pytest.raises(WorkerStopping):
        process.call("fate", {"fate": "hang"}, report)
    assert not is_running(pids[0])


def test_a_child_that_dies_while_we_stop_is_no_crash(
    process: StageProcess, stop: threading.Event
) -> None:
    """Ctrl-C and a container's stop may reach the child first."""

    def report(_fraction: float, message: str, _details: object = None) -> None:
        if message:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            stop.set()

    with pytest.raises(WorkerStopping):
        process.call("fate", {"fate": "hang"}, report)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_whole_group_are_left_to_the_worker(
    process: StageProcess, number: signal.Signals, tmp_path: Path
) -> None:
    def report(_fraction: float, message: str, _details: object = None) -> None:
        if message:
            assert process.pid is not None
            os.kill(process.pid, number)
            (tmp_path / "sent").touch()

    assert process.call("gated_progress", {"until": str(tmp_path / "sent")}, report) == {}


_PARENT = """
import sys, threading
from worker.settings import WorkerSettings
from worker.stage_process import StageProcess
from worker.stage_server import context_json

spec = {"name": "digits", "architecture": "digits_cnn", "dataset": "digits"}
context = context_json("job", spec, WorkerSettings(data_dir=sys.argv[1]))
process = StageProcess("fake_stages:probe", context, threads=1, stop=threading.Event(),
                       report_every_s=0.01)

def report(fraction, message, details=None):
    if message:
        sys.stdout.write(f"{process.pid}\\n")
        sys.stdout.flush()

process.call("fate", {"fate": "hang"}, report)
"""


def test_the_child_dies_with_its_parent(
    fake_stages: dict[str, str],
    settings: WorkerSettings,
    wait_until: Callable[..., Any],
    is_running: IsRunning,
) -> None:
    command = [sys.executable, "-c", _PARENT, str(settings.data_dir)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            assert is_running(child)
        finally:
            parent.kill()
    wait_until(lambda: not is_running(child), "the child to die with its parent")


def test_the_worker_itself_never_imports_torch() -> None:
    code = "import sys, worker.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_every_event_comes_through_however_fast_they_follow(
    fake_stages: dict[str, str], settings: WorkerSettings, stop: threading.Event
) -> None:
    context = context_json("job", SPEC, settings)
    events: list[Mapping[str, Any]] = []
    reports: list[Mapping[str, Any]] = []

    def report(
        _fraction: float, _message: str, details: Mapping[str, Any] | None = None, /
    ) -> None:
        reports.append(details or {})

    with StageProcess(
        "telling_stages:tell", context, threads=1, stop=stop, report_every_s=0.01
    ) as process:
        assert process.call("tell", {"events": 500}, report, events.append) == {}
    assert [event["sweep"] for event in events] == list(range(500))
    assert all(event["event"] == "sweep" and event["layer"] == "conv1" for event in events)
    # Of progress that follows so fast, hardly any is passed on; the rest is worth nothing.
    assert len([one for one in reports if "images_per_second" in one]) < 100
