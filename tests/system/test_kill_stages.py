"""A real job that is interrupted in each of its stages in turn comes to what a smooth one does.

Two workers serve the queue. The one that has the job is killed, stopped or frozen; the other goes
on, and somebody new takes the first one's place.
"""

import fcntl
import getpass
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from store.errors import Conflict
from store.verdicts import Verdicts

pytestmark = pytest.mark.slow

# Of conftest.py, which cannot be imported.
Install = Any
Installation = Any
IsRunning = Callable[[int], bool]
SmallDisk = Any
SmallDiskAt = Callable[[Path], AbstractContextManager[SmallDisk]]
StartWorker = Any
WaitUntil = Any
Worker = Any
Publish = Callable[[], None]
RunOn = Callable[[Path], "Run"]

LAYERS = ["features.0", "features.3", "features.7", "classifier"]
# Where the job is interrupted: stage, and step where the stage has several.
PLACES = {
    "prepare": None,
    "calibrate": LAYERS[2],
    "fine_tune": "epoch-0002",
    "pack": None,
    "evaluate": None,
    "publish": None,
}
STEPS = [
    "begin",
    "prepare",
    *(f"calibrate:{step}" for step in (*LAYERS, "batch-norm")),
    *(f"fine_tune:{step}" for step in ("epoch-0001", "epoch-0002", "finish")),
    "pack",
    "evaluate",
    "publish",
]
USER = getpass.getuser()
FINE_TUNE = {"epochs": 2, "batch_size": 8}
MARK = "BITPRESS_TEST_MARK"
# The artifact of a job that nobody disturbed, once it is known.
smooth: list[bytes] = []


class Run:
    """A job on an installation that two workers serve, and all who have served it."""

    def __init__(
        self, installation: Installation, start: StartWorker, wait: WaitUntil, scratch: Path
    ) -> None:
        self.installation = installation
        self.jobs = installation.jobs
        self.settings = installation.settings
        self.wait = wait
        self.scratch = scratch
        self._start = start
        self._verdicts = Verdicts(self.jobs._engine)
        self.workers: list[Worker] = []
        self.id = ""

    def start_worker(self) -> Worker:
        place = (self.settings.data_dir, self.settings.database_url)
        worker = self._start(*place, test_mark=self.scratch.parent.name)
        self.workers.append(worker)
        return worker

    def submit(self) -> None:
        self.id = self.jobs.submit(self.installation.spec).id

    def reach(self, stage: str) -> None:
        """Wait until the job is in the stage, and at the step where it is to be interrupted."""

        def there() -> bool:
            now = self.jobs.get(self.id)
            assert now.finished_at is None, now
            here = (now.state, now.stage, now.step) == ("running", stage, PLACES[stage])
            return here and (stage != "publish" or self._verdicts.of(self.id) == "publish")

        self.wait(there, f"the stage {stage}")

    def owner(self) -> Worker:
        """The worker that has the job."""
        (found,) = self.jobs._client.list_workflows(workflow_ids=[self.id])
        (owner,) = (
            worker for worker in self.workers if f"-{worker.process.pid}-" in str(found.executor_id)
        )
        return owner

    def recorded(self) -> list[tuple[str, int]]:
        """The steps on record, in their order, and when each was completed."""
        steps = self.jobs._client.list_workflow_steps(self.id)
        return [
            (str(step["function_name"]), int(step["completed_at_epoch_ms"] or 0))
            for step in steps
            if step["function_name"] != "DBOS.setEvent"
        ]

    def is_done(self, step: str) -> bool:
        """Whether the step is on record with a result, not with a failure."""
        steps = self.jobs._client.list_workflow_steps(self.id)
        return any(one["function_name"] == step and one["error"] is None for one in steps)

    def processes(self) -> set[int]:
        """Every process that a worker, whether it lives or not, has started, or is."""
        wanted = f"{MARK}={self.scratch.parent.name}".encode()
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
            except OSError:
                continue
        return found

    def finish(self) -> None:
        """Wait for the job's success, and compare all that came of it with a smooth job's."""
        self.wait(lambda: self.jobs.get(self.id).finished_at, "the end of the job")
        done = self.jobs.get(self.id)
        assert done.state == "succeeded", done.problem
        assert [name for name, _ in self.recorded()] == STEPS
        if not smooth:
            undisturbed = self.jobs.submit(self.installation.spec).id
            self.wait(lambda: self.jobs.get(undisturbed).finished_at, "the smooth job")
            (made,) = (v for v in self.versions() if v.job_id == undisturbed)
            smooth.append(made.artifact_path.read_bytes())
            self.installation.models.delete("patterns", made.version)
        (version,) = self.versions()
        assert (version.version, version.job_id) == (1, self.id)
        assert version.artifact_path.read_bytes() == smooth[0]

    def versions(self) -> list[Any]:
        return list(self.installation.models.versions("patterns"))

    def check_events(self) -> None:
        """Every step is told once, in order, and so is the end."""
        self.jobs.events.close(self.jobs.get(self.id))
        events = self.jobs.events.after(self.id, 0, 10_000)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        told = [event for event in events if event.kind == "step"]
        names = [":".join(filter(None, (e.data["stage"], e.data["step"]))) for e in told]
        assert names == STEPS[1:]
        assert [e.kind for e in events].count("succeeded") == 1
        assert events[-1].kind == "succeeded"

    def stop(self) -> None:
        """Stop all workers, and check that they have left nothing, nor done anything twice."""
        for worker in self.workers:
            if worker.process.poll() is None:
                assert worker.end(signal.SIGTERM) == 0
        done = Counter(
            (line["stage"], line["step"])
            for worker in self.workers
            for line in worker.lines
            if line["event"] == "step finished" and line["job"] == self.id
        )
        # A worker that is killed may not come to tell of its last one.
        assert set(done.values()) == {1}, done
        assert not self.processes()
        assert self.jobs.workers_alive() == 0
        assert not left_behind(self.settings.data_dir)
        assert not temporary_files(self)


def left_behind(data_dir: Path) -> list[str]:
    """Files that only work in progress has, and locks that somebody holds."""
    found = []
    for path in (path for path in data_dir.rglob("*") if path.is_file()):
        folders = path.relative_to(data_dir).parts[:-1]
        if path.name == ".lock":
            with open(path, "rb+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(f"{path} is locked")
            continue
        in_work = path.name.endswith(".tmp") or {"tmp", ".tmp"} & {*folders}
        if in_work or (folders[0:1] == ("jobs",) and path.name != "report.json"):
            found.append(str(path))
    return found


@contextmanager
def no_publication(models_dir: Path) -> Iterator[Callable[[], None]]:
    """Keep everybody from publishing until the function is called, or the block ends."""
    with open(models_dir / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(lock, fcntl.LOCK_UN)


def can_be_written(database_url: str) -> bool:
    url = sa.make_url(database_url)
    if url.get_backend_name() != "sqlite":
        return True
    with closing(sqlite3.connect(str(url.database), isolation_level=None, timeout=0.5)) as file:
        try:
            file.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        file.rollback()
        return True


@contextmanager
def no_records(database_url: str) -> Iterator[None]:
    """Keep everybody from recording what a step came to."""
    url = sa.make_url(database_url)
    if url.get_backend_name() == "sqlite":
        connection = sqlite3.connect(str(url.database), isolation_level=None, timeout=30)
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.rollback()
            connection.close()
        return
    engine = sa.create_engine(url.set(drivername="postgresql+psycopg"))
    try:
        with engine.begin() as transaction:
            transaction.execute(
                sa.text("LOCK TABLE dbos.operation_outputs IN SHARE ROW EXCLUSIVE MODE")
            )
            yield
    finally:
        engine.dispose()


@pytest.fixture
def run_on(
    install: Install,
    database_url: str,
    start_worker: StartWorker,
    wait_until: WaitUntil,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> RunOn:
    """Make a run whose data lies in the given folder; the database is elsewhere."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))

    def make(folder: Path) -> Run:
        installation = install(folder, database_url, fine_tune=FINE_TUNE)
        return Run(installation, start_worker, wait_until, scratch)

    return make


@pytest.fixture
def run(run_on: RunOn, tmp_path: Path) -> Run:
    return run_on(tmp_path)


def kill(run: Run, owner: Worker, is_running: IsRunning) -> None:
    children = owner.children()
    assert owner.end(signal.SIGKILL) == -signal.SIGKILL
    run.wait(lambda: not any(map(is_running, children)), "the end of the worker's children")


def killed(run: Run, stage: str, publish: Publish, is_running: IsRunning) -> None:
    """As when memory runs out: nobody can prepare for it."""
    owner = run.owner()
    if stage not in ("pack", "publish"):
        kill(run, owner, is_running)
        return
    # When the work is done and put in place, and only its record is missing.
    with no_records(run.settings.database_url):
        if stage == "publish":
            publish()
            run.wait((run.settings.models_dir / "patterns" / "1").is_dir, "the rename")
        else:
            folder = run.settings.jobs_dir / run.id
            run.wait(lambda: [*folder.glob("packed*")], "the packed file")
        kill(run, owner, is_running)


def stopped(run: Run, stage: str, publish: Publish, is_running: IsRunning) -> None:
    """As at every upgrade."""
    owner = run.owner()
    children = owner.children()
    owner.process.send_signal(signal.SIGTERM)
    if stage == "publish":
        publish()
    assert owner.end(signal.SIGTERM) == 0
    assert not any(map(is_running, children))


def frozen(run: Run, stage: str, publish: Publish, is_running: IsRunning) -> None:
    """Past its lease; when it wakes up, another one has the job and both are at work."""
    owner = run.owner()
    (other,) = (worker for worker in run.workers if worker is not owner)
    owner.process.send_signal(signal.SIGSTOP)
    while not can_be_written(run.settings.database_url):
        # Frozen within a transaction it keeps everybody from writing to SQLite, for which there is
        # no help but its end; PostgreSQL takes the lock away.
        owner.process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
        owner.process.send_signal(signal.SIGSTOP)
    try:
        other.wait_for("job taken over", job=run.id)
        run.wait(lambda: run.owner() is other, "the new owner")
    finally:
        owner.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("interrupted", [killed, stopped, frozen])
def test_a_job_interrupted_in_every_stage_ends_as_if_nobody_had(
    run: Run,
    is_running: IsRunning,
    interrupted: Callable[[Run, str, Publish, IsRunning], None],
) -> None:
    for _ in range(2):
        run.start_worker()
    run.submit()
    before: list[tuple[str, int]] = []
    with no_publication(run.settings.models_dir) as publish:
        for stage in PLACES:
            run.reach(stage)
            interrupted(run, stage, publish, is_running)
            now = run.recorded()
            # What was on record stays as it was: nothing is done again that was completed.
            assert now[: len(before)] == before
            assert [name for name, _ in now] == STEPS[: len(now)]
            before = now
            if sum(worker.process.poll() is None for worker in run.workers) < 2:
                run.start_worker()
    run.finish()
    assert run.recorded()[: len(before)] == before
    run.check_events()
    run.stop()


def test_a_job_cancelled_in_every_stage_goes_on_where_it_was(
    run: Run, is_running: IsRunning
) -> None:
    run.start_worker()
    run.submit()
    (worker,) = run.workers
    before: list[tuple[str, int]] = []
    with no_publication(run.settings.models_dir):
        for stage in PLACES:
            run.reach(stage)
            if stage == "publish":
                # Too late: the job's last word is that its model is published.
                with pytest.raises(Conflict, match="published"):
                    run.jobs.cancel(run.id)
                break
            run.wait(worker.children, "the stage's process")
            children = worker.children()
            assert run.jobs.cancel(run.id).state == "cancelled"
            run.wait(lambda alive=children: not any(map(is_running, alive)), "its end", 2)
            run.wait(lambda: not temporary_files(run), "the end of temporary files", 2)
            now = run.recorded()
            assert now[: len(before)] == before
            before = now
            run.jobs.retry(run.id, run.settings.data_dir)
    run.finish()
    assert run.recorded()[: len(before)] == before
    run.stop()


@pytest.fixture
def small_disk(small_disk_at: SmallDiskAt, tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk_at(tmp_path / "disk") as disk:
        yield disk


def test_a_job_that_finds_the_disk_full_goes_on_when_there_is_space(
    run_on: RunOn, small_disk: SmallDisk
) -> None:
    run = run_on(small_disk.place)
    run.start_worker()
    run.submit()
    before: list[tuple[str, int]] = []
    with no_publication(run.settings.models_dir) as publish:
        for stage in ("calibrate", "publish"):
            run.reach(stage)
            small_disk.fill()
            if stage == "publish":
                publish()
            run.wait(lambda: run.jobs.get(run.id).finished_at, "the end of the job")
            failed = run.jobs.get(run.id)
            assert failed.state == "failed"
            assert failed.problem["type"].endswith("storage-exhausted")
            assert (failed.stage, bool(failed.problem["remedy"])) == (stage, True)
            assert not run.versions()
            assert not temporary_files(run)
            now = run.recorded()
            assert now[: len(before)] == before
            before = [step for step in now if run.is_done(step[0])]
            small_disk.free()
            run.jobs.retry(run.id, run.settings.data_dir)
    run.finish()
    assert run.recorded()[: len(before)] == before
    run.stop()


def temporary_files(run: Run) -> list[Path]:
    # torch makes one folder for each user, in which nothing is.
    found = [path for path in run.scratch.rglob("*") if path.name != f"torchinductor_{USER}"]
    return [*found, *(run.settings.jobs_dir / run.id).rglob("*.tmp")]
