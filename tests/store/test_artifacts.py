import errno
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from store.artifacts import ModelStore
from store.durable import locked
from store.errors import InvalidSpec, NotFound, StorageExhausted, Unavailable

Listing = Callable[[Path], set[str]]
Spawn = Callable[..., "subprocess.Popen[str]"]


def stage(folder: Path, artifact: bytes = b"bits", **report: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "artifact.safetensors").write_bytes(artifact)
    (folder / "report.json").write_text(json.dumps({"schema": 1, **report}))
    (folder / "predictions.json").write_text('{"split": "test", "images": []}')
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


def test_a_published_version_says_what_it_is(store: ModelStore, tmp_path: Path) -> None:
    staged = stage(tmp_path / "staged", b"packed", seed=7, model={"name": "vgg9"})
    version = store.publish(staged, "vgg9", "job-1")
    assert (version.name, version.version, version.job_id) == ("vgg9", 1, "job-1")
    assert version.digest == "sha256:" + hashlib.sha256(b"packed").hexdigest()
    assert version.artifact_bytes == 6
    assert version.created_at == "2026-01-02T03:04:05+00:00"
    assert version.artifact_path.read_bytes() == b"packed"
    assert version.report == {"schema": 1, "seed": 7, "model": {"name": "vgg9", "version": 1}}
    assert version.predictions["split"] == "test"
    assert store.resolve("vgg9") == version


def test_publishing_leaves_the_staged_files_as_they_were(store: ModelStore, tmp_path: Path) -> None:
    staged = stage(tmp_path / "staged", seed=7)
    before = {path.name: path.read_bytes() for path in staged.iterdir()}
    store.publish(staged, "vgg9", "job-1")
    assert {path.name: path.read_bytes() for path in staged.iterdir()} == before


def test_versions_count_up_and_the_latest_is_the_default(store: ModelStore, tmp_path: Path) -> None:
    for number in range(1, 12):
        staged = stage(tmp_path / "staged", b"bits %d" % number)
        assert store.publish(staged, "vgg9", f"job-{number}").version == number
    assert store.resolve("vgg9").version == 11
    assert store.resolve("vgg9", 2).artifact_path.read_bytes() == b"bits 2"
    assert [version.version for version in store.versions("vgg9")] == list(range(1, 12))


def test_one_job_publishes_once_even_when_its_files_are_gone(
    store: ModelStore, tmp_path: Path
) -> None:
    first = store.publish(stage(tmp_path / "staged"), "vgg9", "job-1")
    store.publish(stage(tmp_path / "other"), "vgg9", "job-2")
    assert store.publish(tmp_path / "gone", "vgg9", "job-1") == first
    assert len(store.versions("vgg9")) == 2


def test_the_list_has_the_latest_version_of_each_model(store: ModelStore, tmp_path: Path) -> None:
    assert store.list() == []
    staged = stage(tmp_path / "staged")
    store.publish(staged, "b", "job-1")
    store.publish(staged, "a", "job-2")
    store.publish(staged, "b", "job-3")
    assert [(v.name, v.version) for v in store.list()] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("name", ["nothing", "", "..", "../vgg9", ".tmp", "vgg9/1", "Vgg9\n"])
def test_an_unknown_model_is_not_found(store: ModelStore, tmp_path: Path, name: str) -> None:
    store.publish(stage(tmp_path / "staged"), "vgg9", "job-1")
    with pytest.raises(NotFound) as caught:
        store.resolve(name)
    assert caught.value.field == "model"


def test_an_unknown_version_is_not_found_and_the_known_ones_are_named(
    store: ModelStore, tmp_path: Path
) -> None:
    store.publish(stage(tmp_path / "staged"), "vgg9", "job-1")
    for version in (0, 2, -1):
        with pytest.raises(NotFound) as caught:
            store.resolve("vgg9", version)
        assert caught.value.field == "version"
        assert caught.value.remedy == "Use one of: 1"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", "A", "a" * 65, "a\n", "-a", ".tmp"]
)
def test_a_name_that_is_no_name_publishes_nothing(
    store: ModelStore, tmp_path: Path, files_below: Listing, name: str
) -> None:
    staged = stage(tmp_path / "staged")
    before = files_below(tmp_path)
    with pytest.raises(InvalidSpec):
        store.publish(staged, name, "job-1")
    assert files_below(tmp_path) == before


def test_a_full_disk_publishes_nothing(
    store: ModelStore, tmp_path: Path, files_below: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = stage(tmp_path / "staged")
    before = files_below(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageExhausted):
        store.publish(staged, "vgg9", "job-1")
    monkeypatch.undo()
    assert files_below(tmp_path) == before
    assert store.publish(staged, "vgg9", "job-1").version == 1


def test_incomplete_stagings_are_not_published(store: ModelStore, tmp_path: Path) -> None:
    staged = stage(tmp_path / "staged")
    (staged / "predictions.json").unlink()
    with pytest.raises(FileNotFoundError):
        store.publish(staged, "vgg9", "job-1")
    assert store.list() == []


@pytest.mark.parametrize("record", [None, b"", b'{"schema": 1}', b"[]", b"\xff", b"[" * 100_000])
def test_a_version_without_its_record_is_passed_over(
    store: ModelStore, tmp_path: Path, record: bytes | None
) -> None:
    staged = stage(tmp_path / "staged")
    whole = store.publish(staged, "half", "job-1")
    for damaged in (store.publish(staged, "all", "job-2"), store.publish(staged, "half", "job-3")):
        path = damaged.path / "version.json"
        path.unlink()
        if record is not None:
            path.write_bytes(record)
    assert store.list() == store.versions("half") == [whole]
    assert store.resolve("half") == whole
    for ask in (
        lambda: store.resolve("half", 2),
        lambda: store.resolve("all"),
        lambda: store.versions("all"),
    ):
        with pytest.raises(Unavailable, match=r"version.json of (half|all), version \d"):
            ask()
    assert store.publish(staged, "all", "job-4").version == 2
    assert store.publish(staged, "half", "job-5").version == 3


def test_a_damaged_report_is_unavailable(store: ModelStore, tmp_path: Path) -> None:
    version = store.publish(stage(tmp_path / "staged"), "vgg9", "job-1")
    (version.path / "report.json").unlink()
    (version.path / "predictions.json").write_text("{")
    with pytest.raises(Unavailable) as caught:
        _ = version.report
    assert str(tmp_path) not in str(caught.value.problem())
    with pytest.raises(Unavailable):
        _ = version.predictions


PUBLISHER = """
import os, sys
from pathlib import Path
from store.artifacts import ModelStore
root, staged, die_at, *jobs = sys.argv[1:]
calls = 0
def interrupt(call):
    def wrapper(*arguments, **options):
        global calls
        calls += 1
        if calls == int(die_at):
            os.kill(os.getpid(), 9)
        return call(*arguments, **options)
    return wrapper
store = ModelStore(Path(root))
for name in ("fsync", "rename", "mkdir"):
    setattr(os, name, interrupt(getattr(os, name)))
print("ready", flush=True)
sys.stdin.readline()
for job in jobs:
    store.publish(Path(staged), "vgg9", job)
print(calls, flush=True)
"""


def test_two_processes_publishing_the_same_jobs_publish_each_once(
    tmp_path: Path, spawn: Spawn
) -> None:
    staged = stage(tmp_path / "staged")
    jobs = [f"job-{number}" for number in range(20)]
    processes = [
        spawn(PUBLISHER, tmp_path / "models", staged, 0, *order) for order in (jobs, jobs[::-1])
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    versions = ModelStore(tmp_path / "models").versions("vgg9")
    assert [version.version for version in versions] == list(range(1, 21))
    assert sorted(version.job_id for version in versions) == sorted(jobs)


def test_a_process_killed_at_any_point_leaves_a_whole_version_or_none(
    tmp_path: Path, spawn: Spawn, files_below: Listing
) -> None:
    staged = stage(tmp_path / "staged")
    whole = spawn(PUBLISHER, tmp_path / "whole", staged, 0, "job-1")
    steps = int(whole.communicate("go\n")[0].split()[-1])
    assert steps > 5
    # All at once: what takes the time is importing.
    killed = [
        spawn(PUBLISHER, tmp_path / f"models-{step}", staged, step, "job-1")
        for step in range(1, steps + 1)
    ]
    for step, process in enumerate(killed, 1):
        process.communicate("go\n")
        assert process.returncode == -9
        root = tmp_path / f"models-{step}"
        store = ModelStore(root)
        assert len(store.versions("vgg9")) <= 1
        version = store.publish(staged, "vgg9", "job-1")
        assert version.version == 1
        assert files_below(root) == files_below(tmp_path / "whole")


CHANGES: dict[str, Callable[[ModelStore, Path], object]] = {
    "publish": lambda store, staged: store.publish(staged, "vgg9", "job-2"),
    "set_alias": lambda store, _: store.set_alias("vgg9", "live", 1),
    "remove_alias": lambda store, _: store.remove_alias("vgg9", "live"),
    "delete": lambda store, _: store.delete("vgg9", 1),
    "delete_model": lambda store, _: store.delete_model("vgg9"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nobody_waits_for_ever_for_a_process_that_is_frozen_in_a_change(
    tmp_path: Path, change: str
) -> None:
    store = ModelStore(tmp_path / "models", patience_s=0.05)
    staged = stage(tmp_path / "staged")
    store.publish(staged, "vgg9", "job-1")
    with locked(tmp_path / "models" / ".lock"):
        with pytest.raises(Unavailable, match="Another process") as refused:
            CHANGES[change](store, staged)
        assert "stopped or hangs" in (refused.value.remedy or "")
        # Reading goes on.
        assert store.resolve("vgg9").version == 1
    assert store.publish(staged, "vgg9", "job-2").version == 2


def test_who_waits_for_another_change_is_told_and_goes_on_when_it_is_over(
    store: ModelStore, tmp_path: Path
) -> None:
    other = locked(tmp_path / "models" / ".lock")
    other.__enter__()
    waits: list[int] = []

    def waiting() -> None:
        waits.append(len(waits))
        if len(waits) == 3:
            other.__exit__(None, None, None)

    assert store.publish(stage(tmp_path / "staged"), "vgg9", "job-1", waiting).version == 1
    assert waits == [0, 1, 2]


def test_whether_a_job_has_published_nothing_is_certain_or_it_is_not(
    store: ModelStore, tmp_path: Path
) -> None:
    staged = stage(tmp_path / "staged")
    assert store.has_nothing_of("vgg9", "job-1")
    first = store.publish(staged, "vgg9", "job-1")
    second = store.publish(staged, "vgg9", "job-2")
    assert not store.has_nothing_of("vgg9", "job-1")
    assert store.has_nothing_of("vgg9", "job-3")
    store.delete("vgg9", first.version)
    assert not store.has_nothing_of("vgg9", "job-1")
    assert store.has_nothing_of("vgg9", "job-3")
    # It may be anybody's.
    (second.artifact_path.parent / "version.json").write_text("damaged")
    assert not store.has_nothing_of("vgg9", "job-3")
    assert store.has_nothing_of("other", "job-3")


def test_what_is_no_folder_is_no_version_and_keeps_its_number(
    store: ModelStore, tmp_path: Path
) -> None:
    staged = stage(tmp_path / "staged")
    store.publish(staged, "vgg9", "job-1")
    (tmp_path / "models" / "vgg9" / "2").write_text("stray")
    (tmp_path / "models" / "vgg9" / "3").symlink_to(tmp_path / "nowhere")
    assert store.resolve("vgg9").version == 1
    assert [version.version for version in store.list()] == [1]
    assert store.numbers("vgg9") == [1]
    assert store.publish(staged, "vgg9", "job-2").version == 4


def test_versions_that_are_listed_but_never_found_are_no_endless_search(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(stage(tmp_path / "staged"), "vgg9", "job-1")
    monkeypatch.setattr(store, "_read", lambda name, number: None)
    with pytest.raises(Unavailable):
        store.resolve("vgg9")
    assert store.list() == []


def test_the_artifact_is_copied_before_the_lock_is_asked_for(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    seen: list[bytes] = []

    class Enough(Exception):
        pass

    def waiting() -> None:
        copies = (tmp_path / "models/.tmp").glob("*/work/artifact.safetensors")
        seen.extend(copy.read_bytes() for copy in copies)
        raise Enough

    staged = stage(tmp_path / "staged")
    with locked(tmp_path / "models/.lock"), pytest.raises(Enough):
        store.publish(staged, "vgg9", "job-1", waiting)
    assert seen == [(staged / "artifact.safetensors").read_bytes()]
    assert store.list() == []
    with pytest.raises(FileNotFoundError):
        store.publish(tmp_path / "gone", "vgg9", "job-1")
