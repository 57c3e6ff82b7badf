"""Deleting versions and models: refused, whole, for good, in every process."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.artifacts import ModelStore, ModelVersion
from store.errors import Conflict, NotFound, Unavailable

Listing = Callable[[Path], set[str]]
Spawn = Callable[..., "subprocess.Popen[str]"]
Stage = Callable[..., Path]

DELETER = """
import os, sys
from pathlib import Path
from store.artifacts import ModelStore
root, die_at, what = sys.argv[1:]
store = ModelStore(Path(root))
calls = 0
def interrupt(call):
    def wrapper(*arguments, **options):
        global calls
        calls += 1
        if calls == int(die_at):
            os.kill(os.getpid(), 9)
        return call(*arguments, **options)
    return wrapper
for name in ("fsync", "rename", "mkdir", "unlink", "rmdir"):
    setattr(os, name, interrupt(getattr(os, name)))
if what == "model":
    store.delete_model("vgg9")
else:
    store.delete("vgg9", int(what))
print(calls)
"""


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def fill(store: ModelStore, stage: Stage, count: int = 2, name: str = "vgg9") -> list[ModelVersion]:
    return [
        store.publish(stage(b"bits %d" % number), name, f"{name}-job-{number}")
        for number in range(1, count + 1)
    ]


def left_of(version: ModelVersion) -> set[str]:
    """The files that are left of a deleted version."""
    grave = version.path.parent / ".deleted" / str(version.version)
    return {path.name for path in grave.iterdir()}


def test_a_deleted_version_is_gone_and_the_others_stay(store: ModelStore, stage: Stage) -> None:
    first, second, third = fill(store, stage, 3)
    store.delete("vgg9", 2)
    assert store.versions("vgg9") == [first, third]
    assert store.numbers("vgg9") == [1, 3]
    with pytest.raises(NotFound) as caught:
        store.resolve("vgg9", 2)
    assert caught.value.remedy == "Use one of: 1, 3"
    assert not second.exists
    assert not second.artifact_path.exists()
    assert left_of(second) == {"version.json"}
    store.delete("vgg9", 3)
    assert store.resolve("vgg9") == first


def test_what_is_not_there_cannot_be_deleted(store: ModelStore, stage: Stage) -> None:
    fill(store, stage)
    store.delete("vgg9", 1)
    for name, version in (("vgg9", 1), ("vgg9", 3), ("vgg9", 0), ("absent", 1), ("..", 1)):
        with pytest.raises(NotFound):
            store.delete(name, version)
    for name in ("absent", "..", ".deleted", ""):
        with pytest.raises(NotFound):
            store.delete_model(name)
    assert store.numbers("vgg9") == [2]


def test_numbers_and_jobs_of_deleted_versions_are_never_used_again(
    store: ModelStore, stage: Stage, tmp_path: Path
) -> None:
    fill(store, stage)
    store.delete("vgg9", 2)
    again = ModelStore(tmp_path / "models")
    with pytest.raises(Conflict, match="2 of vgg9, has been deleted") as refused:
        # As a worker does that died after the rename: what it staged may be gone.
        again.publish(tmp_path / "gone", "vgg9", "vgg9-job-2")
    assert "Submit a new job" in (refused.value.remedy or "")
    assert again.numbers("vgg9") == [1]
    assert again.publish(stage(b"more"), "vgg9", "another").version == 3


def test_a_model_deleted_with_all_its_versions_is_unknown(
    store: ModelStore, stage: Stage, tmp_path: Path
) -> None:
    fill(store, stage)
    other = fill(store, stage, 1, "other")
    store.delete_model("vgg9")
    assert store.list() == other
    assert store.versions("vgg9") == []
    for ask in (
        lambda: store.resolve("vgg9"),
        lambda: store.resolve("vgg9", 1),
        lambda: store.resolve("vgg9", "live"),
        lambda: store.aliases("vgg9"),
        lambda: store.delete_model("vgg9"),
    ):
        with pytest.raises(NotFound, match="no model of this name"):
            ask()
    with pytest.raises(Conflict):
        store.publish(tmp_path / "gone", "vgg9", "vgg9-job-1")
    assert store.publish(stage(b"more"), "vgg9", "another").version == 3
    assert store.aliases("vgg9") == {}


def test_what_an_alias_points_to_is_not_deleted(store: ModelStore, stage: Stage) -> None:
    first, second = fill(store, stage)
    for alias in ("live", "canary"):
        store.set_alias("vgg9", alias, 1)
    with pytest.raises(Conflict, match="canary, live") as caught:
        store.delete("vgg9", 1)
    assert caught.value.remedy
    with pytest.raises(Conflict, match="canary, live"):
        store.delete_model("vgg9")
    assert store.versions("vgg9") == [first, second]
    store.set_alias("vgg9", "canary", 2)
    store.remove_alias("vgg9", "live")
    store.delete("vgg9", 1)
    assert store.versions("vgg9") == [second]
    store.remove_alias("vgg9", "canary")
    store.delete_model("vgg9")
    assert store.list() == []


def test_a_damaged_version_can_be_deleted(store: ModelStore, stage: Stage) -> None:
    first, second = fill(store, stage)
    (second.path / "version.json").unlink()
    with pytest.raises(Unavailable):
        store.resolve("vgg9", 2)
    store.delete("vgg9", 2)
    assert store.list() == [first]
    assert store.publish(stage(b"more"), "vgg9", "another").version == 3


def test_a_version_that_came_back_from_a_backup_can_be_deleted_again(
    store: ModelStore, stage: Stage
) -> None:
    (version,) = fill(store, stage, 1)
    files = {path.name: path.read_bytes() for path in version.path.iterdir()}
    store.delete("vgg9", 1)
    version.path.mkdir()
    for name, content in files.items():
        (version.path / name).write_bytes(content)
    assert store.resolve("vgg9", 1) == version
    store.delete("vgg9", 1)
    assert store.numbers("vgg9") == []
    assert left_of(version) == {"version.json"}


def test_a_report_asked_for_too_late_is_not_found(store: ModelStore, stage: Stage) -> None:
    (version,) = fill(store, stage, 1)
    store.delete("vgg9", 1)
    with pytest.raises(NotFound, match="has been deleted"):
        _ = version.report


def test_the_latest_deleted_while_it_is_resolved_gives_way_to_the_new_latest(
    store: ModelStore, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not to the one before it, which was never the latest meanwhile."""
    fill(store, stage, 2)
    other = ModelStore(store.resolve("vgg9").path.parents[1])
    read = store._read

    def late(name: str, number: int) -> Any:
        monkeypatch.undo()
        other.publish(stage(b"three"), "vgg9", "third")
        other.delete("vgg9", 2)
        return read(name, number)

    monkeypatch.setattr(store, "_read", late)
    assert store.resolve("vgg9").version == 3


def test_the_last_version_deleted_while_it_is_resolved_is_not_found(
    store: ModelStore, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, stage, 1)
    other = ModelStore(store.resolve("vgg9").path.parents[1])
    read = store._read

    def late(name: str, number: int) -> Any:
        monkeypatch.undo()
        other.delete("vgg9", 1)
        return read(name, number)

    monkeypatch.setattr(store, "_read", late)
    with pytest.raises(NotFound):
        store.resolve("vgg9")


def test_a_deletion_that_fails_on_the_disk_leaves_the_version_whole(
    store: ModelStore, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (version,) = fill(store, stage, 1)

    def failing(*arguments: Any) -> None:
        raise OSError(5, "broken")

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="broken"):
        store.delete("vgg9", 1)
    monkeypatch.undo()
    assert store.resolve("vgg9") == version
    assert version.report["schema"] == 1


def test_files_that_cannot_be_removed_are_removed_at_the_next_start(
    store: ModelStore,
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (version,) = fill(store, stage, 1)

    def failing(*arguments: Any, **options: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "unlink", failing)
    monkeypatch.setattr(Path, "unlink", failing)
    store.delete("vgg9", 1)
    monkeypatch.undo()
    assert store.numbers("vgg9") == []
    assert "deleted version not removed" in caplog.messages
    assert "artifact.safetensors" in left_of(version)
    ModelStore(version.path.parents[1])
    assert left_of(version) == {"version.json"}


@pytest.mark.parametrize("what", ["2", "model"])
def test_a_process_killed_at_any_point_leaves_whole_versions_or_none(
    tmp_path: Path, spawn: Spawn, stage: Stage, files_below: Listing, what: str
) -> None:
    def prepared(folder: str) -> Path:
        fill(ModelStore(tmp_path / folder), stage)
        return tmp_path / folder

    steps = int(spawn(DELETER, prepared("whole"), 0, what).communicate()[0])
    assert steps > 5
    roots = [prepared(f"models-{step}") for step in range(1, steps + 1)]
    # All at once: what takes the time is importing.
    killed = [spawn(DELETER, root, step, what) for step, root in enumerate(roots, 1)]
    found = []
    for process, root in zip(killed, roots, strict=True):
        process.communicate()
        assert process.returncode == -9
        store = ModelStore(root)
        found.append(store.numbers("vgg9"))
        for version in store.versions("vgg9"):
            assert version.artifact_path.read_bytes() == b"bits %d" % version.version
            assert version.report["model"] == {"name": "vgg9", "version": version.version}
            assert version.predictions["split"] == "test"
        for number in found[-1]:
            if what == "model" or number == 2:
                store.delete("vgg9", number)
        for number in (1, 2):
            if number not in store.numbers("vgg9"):
                with pytest.raises(Conflict):
                    store.publish(tmp_path / "gone", "vgg9", f"vgg9-job-{number}")
        assert files_below(root) == files_below(tmp_path / "whole")
        assert store.publish(stage(b"more"), "vgg9", "another").version == 3
    stations = [[1, 2], [1]] if what == "2" else [[1, 2], [2], []]
    assert [station for station in stations if station in found] == stations
    assert all(numbers in stations for numbers in found)
