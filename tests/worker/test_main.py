"""The worker as a process: told to stop, frozen, failing to start; on stages that only behave."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models import runtime
from models.runtime.gpu_presence import gpu_is_here
from store.artifacts import ModelStore

# Of conftest.py, which cannot be imported.
Service = Any
StartWorker = Any
WaitUntil = Any

REPOSITORY = Path(__file__).parents[2]

# A lease that outlives the test: only when it is given up can others go on.
FOREVER_S = 10_000.0

on_sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def start(service: Service, start_worker: StartWorker) -> Callable[..., Any]:
    """Start a worker of the fake stages as a process."""
    main = f"import os; from worker.main import main; os._exit(main({service.stages!r}))"
    place = (service.settings.data_dir, service.settings.database_url)

    def start(**settings: object) -> Any:
        return start_worker(*place, "-c", main, **settings)

    return start


@pytest.mark.slow
@on_sqlite_only
def test_a_worker_told_to_stop_leaves_its_job_to_the_next_at_once(
    service: Service,
    start: Callable[..., Any],
    tmp_path: Path,
    wait_until: WaitUntil,
    is_running: Callable[[int], bool],
) -> None:
    job_id = service.submit(second="gate", gate=tmp_path)
    first = start(lease_ttl_s=FOREVER_S)
    wait_until(lambda: list(tmp_path.glob("waiting-second-*")), "the step")
    children = first.children()
    # To the whole group, as Ctrl-C does it.
    for child in children:
        os.kill(child, signal.SIGINT)
    assert first.end(signal.SIGINT) == 0
    assert len(children) == 1 and not any(map(is_running, children))
    assert first.lines[-1]["event"] == "worker stopped"
    job = service.jobs.get(job_id)
    assert (job.state, job.step) == ("running", "second")
    assert service.jobs.workers_alive() == 0
    assert service.files(job_id) == ["layers/first.safetensors", "model.safetensors"]

    second = start(lease_ttl_s=FOREVER_S)
    assert service.jobs.workers_alive() == 1
    (tmp_path / "open-second").touch()
    assert service.finished(job_id).state == "succeeded"
    assert second.end(signal.SIGTERM) == 0
    assert first.steps_done() == ["prepare", "calibrate:first"]
    assert second.steps_done()[0] == "calibrate:second"


def freeze(pids: list[int], database_url: str) -> bool:
    """Stop the processes, but not while they hold SQLite's lock, which nobody else would get."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    if not database_url.startswith("sqlite:"):
        return True
    connection = sqlite3.connect(database_url.removeprefix("sqlite:///"), timeout=0.0)
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        return False
    finally:
        connection.close()
    return True


@pytest.mark.slow
@on_sqlite_only
def test_a_frozen_worker_that_wakes_up_lets_go_of_what_others_took_over(
    service: Service, start: Callable[..., Any], tmp_path: Path, wait_until: WaitUntil
) -> None:
    job_id = service.submit(second="gate", gate=tmp_path)
    frozen = start()
    wait_until(lambda: list(tmp_path.glob("waiting-second-*")), "the step")
    everything = [frozen.process.pid, *frozen.children()]
    wait_until(lambda: freeze(everything, service.settings.database_url), "the freeze")
    other = start()
    other.wait_for("job taken over", job=job_id)
    wait_until(lambda: len(list(tmp_path.glob("waiting-second-*"))) == 2, "the takeover")
    for pid in everything:
        os.kill(pid, signal.SIGCONT)
    # It sees that the job is not its own any more, and kills what works on it.
    wait_until(lambda: not frozen.children(), "the sleeper to let go")
    (tmp_path / "open-second").touch()
    job = service.finished(job_id)
    assert job.state == "succeeded"
    versions = ModelStore(service.settings.models_dir).versions("digits")
    assert [version.job_id for version in versions] == [job_id]
    assert service.files(job_id) == ["report.json"]
    # It is fit for other jobs, and stops when told.
    assert other.end(signal.SIGTERM) == 0
    next_job = service.submit()
    frozen.wait_for("job finished", job=next_job)
    assert frozen.end(signal.SIGTERM) == 0
    assert set(frozen.steps_done()) >= {"prepare", "publish"}


@on_sqlite_only
def test_the_log_has_a_line_a_step_and_places_of_unexpected_errors_only(
    service: Service, start: Callable[..., Any]
) -> None:
    worker = start()
    faulty, crashed = service.submit(third="invalid"), service.submit(second="unexpected")
    line = worker.wait_for("step finished", job=faulty, stage="calibrate", step="first")
    assert line["level"] == "info"
    assert line["time"].endswith("Z")
    assert line["seconds"] >= 0
    assert worker.wait_for("job failed", job=faulty)["problem"]["field"] == "checkpoint"
    # What the pipeline has told in one line, DBOS does not tell again with a trace.
    assert not any("trace" in line for line in worker.lines)
    line = worker.wait_for("step met an unexpected error", job=crashed)
    assert line["error"] == "ZeroDivisionError"
    assert line["trace"][-1].startswith("fake_stages:behave:")
    assert "/secret/path" not in json.dumps(worker.lines)
    worker.wait_for("job failed", job=crashed)
    assert worker.end(signal.SIGTERM) == 0
    assert [line["step"] for line in worker.lines if line["event"] == "step finished"] == [
        *(None, "first", "second"),
        *(None, "first"),
    ]


def test_a_worker_that_cannot_start_says_why_and_ends(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = os.environ | {"BITPRESS_DATABASE_URL": f"sqlite:///{tmp_path}/file/jobs.sqlite"}
    ended = subprocess.run(
        [sys.executable, "-m", "worker"],
        cwd=REPOSITORY,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ended.returncode == 1
    line = json.loads(ended.stderr.splitlines()[-1])
    assert (line["level"], line["event"]) == ("error", "worker failed")
    assert line["error"].endswith("Error")
    assert str(tmp_path) not in ended.stderr


UNUSABLE = [("RUNTIME", "quantum"), ("CPU_KERNELS", "abacus"), ("DEVICE", "cuda")]


@pytest.mark.parametrize(("name", "value"), UNUSABLE)
def test_a_runtime_that_cannot_be_used_ends_the_worker_and_its_setting_is_named(
    tmp_path: Path, name: str, value: str
) -> None:
    if name == "CPU_KERNELS" and runtime.choose() != "cpu":
        pytest.skip("there is no runtime cpu here")
    if name == "DEVICE" and gpu_is_here():
        pytest.skip("there is an NVIDIA GPU")
    ended = subprocess.run(
        [sys.executable, "-m", "worker"],
        cwd=REPOSITORY,
        env=os.environ | {f"BITPRESS_{name}": value, "BITPRESS_DATA_DIR": str(tmp_path / "data")},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ended.returncode == 2
    (line,) = map(json.loads, ended.stderr.splitlines())
    assert (line["level"], line["event"]) == ("error", "invalid setting")
    assert line["setting"] == f"BITPRESS_{name}"
    assert "one of" in line["fault"]
    # Before it touched anything.
    assert not (tmp_path / "data").exists()


@on_sqlite_only
def test_a_worker_tells_what_it_will_measure_with(
    service: Service, start: Callable[..., Any]
) -> None:
    worker = start(runtime="reference", worker_threads=3)
    (line,) = [line for line in worker.lines if line["event"] == "runtime chosen"]
    assert (line["asked"], line["runtime"]) == ("reference", "reference")
    assert (line["kernels"], line["threads"]) == (runtime.kernels_of("reference"), 3)
    assert worker.end(signal.SIGTERM) == 0


def test_a_worker_knows_its_runtime_without_importing_torch() -> None:
    """Its children import it, which takes seconds; the worker itself starts at once."""
    code = (
        "import sys, worker.main; from models import runtime; "
        "runtime.kernels_of(runtime.choose()); print('torch' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["False"]


@pytest.mark.slow
@on_sqlite_only
def test_a_cancelled_job_is_told_in_one_line(
    service: Service, start: Callable[..., Any], tmp_path: Path, wait_until: WaitUntil
) -> None:
    worker = start()
    job_id = service.submit(second="gate", gate=tmp_path)
    wait_until(lambda: list(tmp_path.glob("waiting-second-*")), "the step")
    service.jobs.cancel(job_id)
    line = worker.wait_for("job cancelled", job=job_id)
    assert (line["level"], line["stage"], line["step"]) == ("info", "calibrate", "second")
    wait_until(lambda: not worker.children(), "the end of the child")
    other = service.submit()
    worker.wait_for("job finished", job=other)
    assert worker.end(signal.SIGTERM) == 0
    told = [line for line in worker.lines if line.get("job") == job_id]
    assert [line["event"] for line in told] == [*["step finished"] * 2, "job cancelled"]
    assert not any("trace" in line or line["logger"] == "dbos" for line in worker.lines)


@pytest.mark.slow
def test_a_job_of_a_frozen_worker_is_cancelled_for_good(
    service: Service, start: Callable[..., Any], tmp_path: Path, wait_until: WaitUntil
) -> None:
    """Nobody has taken it over yet; the worker wakes up and finds it cancelled."""
    job_id = service.submit(second="gate", gate=tmp_path)
    worker = start(lease_ttl_s=FOREVER_S)
    wait_until(lambda: list(tmp_path.glob("waiting-second-*")), "the step")
    everything = [worker.process.pid, *worker.children()]
    wait_until(lambda: freeze(everything, service.settings.database_url), "the freeze")
    assert service.jobs.cancel(job_id).state == "cancelled"
    (tmp_path / "open-second").touch()
    for pid in everything:
        os.kill(pid, signal.SIGCONT)
    worker.wait_for("job cancelled", job=job_id)
    wait_until(lambda: not worker.children(), "the end of the child")
    assert service.jobs.get(job_id).state == "cancelled"
    assert ModelStore(service.settings.models_dir).versions("digits") == []
    assert worker.end(signal.SIGTERM) == 0


@pytest.mark.slow
def test_what_a_killed_worker_left_of_a_cancelled_job_is_tidied_up(
    service: Service, start: Callable[..., Any], wait_until: WaitUntil
) -> None:
    """Nobody takes a cancelled job over, so nobody else would."""
    job_id = service.submit(second="write")
    folder = service.settings.jobs_dir / job_id
    worker = start()
    wait_until(lambda: list(folder.glob(".second.half.*")), "the half file")
    assert worker.end(signal.SIGKILL) == -signal.SIGKILL
    service.jobs.cancel(job_id)
    # Its lease is over, and it is as dead as it was.
    wait_until(lambda: service.jobs.workers_alive() == 0, "the end of the lease")
    other = start()
    other.wait_for("temporary files removed", job=job_id, files=1)
    assert service.files(job_id) == ["layers/first.safetensors", "model.safetensors"]
    assert other.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(("name", "value"), [("WORKER_THREADS", "many"), ("LOG_LEVEL", "chatty")])
def test_an_unusable_setting_is_named_in_one_line(name: str, value: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "worker"],
        cwd=REPOSITORY,
        env=os.environ | {f"BITPRESS_{name}": value},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ended.returncode == 2
    (line,) = map(json.loads, ended.stderr.splitlines())
    assert (line["level"], line["event"]) == ("error", "invalid setting")
    assert line["setting"] == f"BITPRESS_{name}"
    assert line["fault"]
    assert value not in ended.stderr
