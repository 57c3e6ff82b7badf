"""Aliases: what they point to, in every process, and what a fault leaves of them."""

import errno
import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.aliases import MOST_ALIASES
from store.artifacts import ModelStore
from store.errors import InvalidInput, NotFound, StorageExhausted, Unavailable

Listing = Callable[[Path], set[str]]
Spawn = Callable[..., "subprocess.Popen[str]"]
Stage = Callable[..., Path]

CHANGER = """
import os, sys
from pathlib import Path
from store.artifacts import ModelStore
root, die_at = sys.argv[1:]
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
store.set_alias("vgg9", "live", 2)
store.remove_alias("vgg9", "old")
print(calls)
"""

SWAPPER = """
import sys
from pathlib import Path
from store.artifacts import ModelStore
root, times, alias = sys.argv[1:]
store = ModelStore(Path(root))
for turn in range(int(times)):
    store.set_alias("vgg9", alias, 1 + turn % 2)
"""


@pytest.fixture
def store(tmp_path: Path, stage: Stage) -> ModelStore:
    """A store with two versions of one model."""
    return two_versions(tmp_path / "models", stage)


def two_versions(root: Path, stage: Stage) -> ModelStore:
    store = ModelStore(root)
    for number in (1, 2):
        store.publish(stage(b"bits %d" % number), "vgg9", f"job-{number}")
    return store


def file_of(store: ModelStore) -> Path:
    return store.resolve("vgg9").path.parent / "aliases.json"


def test_an_alias_points_to_a_version_until_it_is_moved(store: ModelStore) -> None:
    assert store.aliases("vgg9") == {}
    assert store.set_alias("vgg9", "live", 1)
    assert store.resolve("vgg9", "live") == store.resolve("vgg9", 1)
    assert not store.set_alias("vgg9", "live", 2)
    assert not store.set_alias("vgg9", "live", 2)
    assert store.set_alias("vgg9", "before", 1)
    assert store.resolve("vgg9", "live").version == 2
    assert store.aliases("vgg9") == {"before": 1, "live": 2}
    store.remove_alias("vgg9", "live")
    assert store.aliases("vgg9") == {"before": 1}
    with pytest.raises(NotFound) as caught:
        store.resolve("vgg9", "live")
    assert caught.value.field == "version"
    assert caught.value.remedy == "Use one of: before, latest."


def test_latest_is_the_newest_version_and_nobodys_alias(store: ModelStore) -> None:
    store.set_alias("vgg9", "live", 1)
    assert store.resolve("vgg9", "latest").version == 2
    with pytest.raises(InvalidInput):
        store.set_alias("vgg9", "latest", 1)


@pytest.mark.parametrize("alias", ["", "A", "1", "7b", "-a", ".a", "a/b", "a\n", "ä", "a" * 65])
def test_what_is_no_name_for_an_alias_changes_nothing(store: ModelStore, alias: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        store.set_alias("vgg9", alias, 1)
    assert caught.value.field == "alias"
    assert store.aliases("vgg9") == {}


def test_what_is_not_there_gets_no_alias_and_has_none(store: ModelStore) -> None:
    for name, version in (("absent", 1), ("vgg9", 3), ("vgg9", 0), ("..", 1), ("", 1)):
        with pytest.raises(NotFound):
            store.set_alias(name, "live", version)
    with pytest.raises(NotFound):
        store.aliases("absent")
    with pytest.raises(NotFound) as caught:
        store.remove_alias("vgg9", "live")
    assert caught.value.field == "alias"
    assert not file_of(store).exists()


def test_a_version_whose_record_is_damaged_gets_no_alias(store: ModelStore) -> None:
    (store.resolve("vgg9", 1).path / "version.json").write_text("{")
    with pytest.raises(Unavailable):
        store.set_alias("vgg9", "live", 1)
    assert store.aliases("vgg9") == {}


def test_aliases_are_limited(store: ModelStore) -> None:
    for number in range(MOST_ALIASES):
        store.set_alias("vgg9", f"a{number}", 1)
    with pytest.raises(InvalidInput):
        store.set_alias("vgg9", "one-more", 1)
    store.set_alias("vgg9", "a0", 2)
    assert len(store.aliases("vgg9")) == MOST_ALIASES


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"aliases": []}',
        b'{"aliases": {"live": "1"}}',
        b'{"aliases": {"live": true}}',
        b'{"aliases": {"live": 0}}',
        b'{"aliases": {"Live": 1}}',
    ],
)
def test_damaged_aliases_are_named_and_harm_nothing_else(
    store: ModelStore, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    store.set_alias("vgg9", "live", 1)
    store.set_alias("vgg9", "other", 1)
    file_of(store).write_bytes(content)
    for ask in (
        lambda: store.aliases("vgg9"),
        lambda: store.resolve("vgg9", "live"),
        lambda: store.remove_alias("vgg9", "live"),
        # An alias might point there.
        lambda: store.delete("vgg9", 1),
        lambda: store.delete_model("vgg9"),
    ):
        with pytest.raises(Unavailable, match=r"aliases.json of vgg9"):
            ask()
    assert store.resolve("vgg9").version == 2
    assert store.resolve("vgg9", 1).version == 1
    assert [version.version for version in store.list()] == [2]
    # The remedy that the error names.
    assert store.set_alias("vgg9", "live", 1)
    assert store.aliases("vgg9") == {"live": 1}
    assert "aliases replaced" in caplog.messages
    store.delete("vgg9", 2)


def test_an_alias_of_a_version_that_somebody_removed_is_unavailable(store: ModelStore) -> None:
    store.set_alias("vgg9", "live", 1)
    path = store.resolve("vgg9", 1).path
    path.rename(path.parents[1] / "elsewhere")
    with pytest.raises(Unavailable, match="points to version 1, which is missing"):
        store.resolve("vgg9", "live")


def test_an_alias_moved_while_it_is_resolved_is_followed(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version that it pointed to is deleted between reading the alias and the record."""
    store.set_alias("vgg9", "live", 1)
    other = ModelStore(file_of(store).parents[1])
    read = store._read

    def late(name: str, number: int) -> Any:
        monkeypatch.undo()
        other.set_alias("vgg9", "live", 2)
        other.delete("vgg9", 1)
        return read(name, number)

    monkeypatch.setattr(store, "_read", late)
    assert store.resolve("vgg9", "live").version == 2


@pytest.mark.parametrize(("call", "failing"), [("fsync", 1), ("rename", 1), ("fsync", 2)])
def test_a_full_disk_changes_no_alias(
    store: ModelStore,
    files_below: Listing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    failing: int,
) -> None:
    store.set_alias("vgg9", "live", 1)
    before = files_below(tmp_path)
    whole = getattr(os, call)
    calls = 0

    def full(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, "full")
        return whole(*arguments, **options)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageExhausted):
        store.set_alias("vgg9", "live", 2)
    monkeypatch.undo()
    # The second fsync is the folder's, after the rename: then the change is there, but not safe.
    moved = (call, failing) == ("fsync", 2)
    assert store.aliases("vgg9") == {"live": 2 if moved else 1}
    assert files_below(tmp_path) == before


def test_a_process_killed_at_any_point_leaves_the_aliases_before_or_after(
    tmp_path: Path, spawn: Spawn, stage: Stage, files_below: Listing
) -> None:
    def prepared(folder: str) -> Path:
        store = two_versions(tmp_path / folder, stage)
        store.set_alias("vgg9", "live", 1)
        store.set_alias("vgg9", "old", 1)
        return tmp_path / folder

    steps = int(spawn(CHANGER, prepared("whole"), 0).communicate()[0])
    assert steps > 5
    roots = [prepared(f"models-{step}") for step in range(1, steps + 1)]
    # All at once: what takes the time is importing.
    killed = [spawn(CHANGER, root, step) for step, root in enumerate(roots, 1)]
    states = []
    for process, root in zip(killed, roots, strict=True):
        process.communicate()
        assert process.returncode == -9
        store = ModelStore(root)
        states.append(store.aliases("vgg9"))
        assert files_below(root) == files_below(tmp_path / "whole")
        store.set_alias("vgg9", "live", 2)
    allowed = [{"live": 1, "old": 1}, {"live": 2, "old": 1}, {"live": 2}]
    assert all(state in allowed for state in states)
    assert [state for state in allowed if state in states] == allowed


def test_processes_that_change_different_aliases_lose_none(store: ModelStore, spawn: Spawn) -> None:
    root = file_of(store).parents[1]
    swappers = [spawn(SWAPPER, root, 25, alias) for alias in ("blue", "green")]
    while any(process.poll() is None for process in swappers):
        for version in store.aliases("vgg9").values():
            assert version in (1, 2)
    assert [process.returncode for process in swappers] == [0, 0]
    assert store.aliases("vgg9") == {"blue": 1, "green": 1}


def test_the_file_can_be_read_by_whoever_reads_the_models(store: ModelStore) -> None:
    store.set_alias("vgg9", "live", 1)
    record = store.resolve("vgg9", 1).path / "version.json"
    assert stat.S_IMODE(file_of(store).stat().st_mode) == stat.S_IMODE(record.stat().st_mode)
    assert json.loads(file_of(store).read_text()) == {"schema": 1, "aliases": {"live": 1}}
