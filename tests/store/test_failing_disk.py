"""Every change of the model store, with every call to the file system failing in turn."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from store.artifacts import ModelStore
from store.errors import BitpressError, Conflict, NotFound, StorageExhausted

Listing = Callable[[Path], set[str]]
Stage = Callable[..., Path]
State = dict[str, Any]

CALLS = ("fsync", "rename", "mkdir", "unlink", "rmdir")


def publish(store: ModelStore, staged: Path) -> None:
    store.publish(staged, "vgg9", "job-3")


def publish_first(store: ModelStore, staged: Path) -> None:
    store.publish(staged, "new", "job-4")


def set_alias(store: ModelStore, staged: Path) -> None:
    store.set_alias("vgg9", "live", 2)


def remove_alias(store: ModelStore, staged: Path) -> None:
    with suppress(NotFound):
        store.remove_alias("vgg9", "live")


def delete(store: ModelStore, staged: Path) -> None:
    with suppress(NotFound):
        store.delete("vgg9", 2)


def delete_model(store: ModelStore, staged: Path) -> None:
    with suppress(NotFound):
        store.delete_model("other")


@contextmanager
def failing(at: int, number: int) -> Iterator[list[str]]:
    """Let the call ``at`` to the file system fail with ``number``; tells the calls made."""
    made: list[str] = []

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            made.append(name)
            if len(made) == at:
                raise OSError(number, os.strerror(number))
            return call(*arguments, **options)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        yield made


def prepared(root: Path, stage: Stage) -> ModelStore:
    store = ModelStore(root)
    for name, job in (("vgg9", "job-1"), ("vgg9", "job-2"), ("other", "job-5"), ("other", "job-6")):
        store.publish(stage(job.encode()), name, job)
    store.set_alias("vgg9", "live", 1)
    return store


def state_of(store: ModelStore) -> State:
    """Everything that a user can see, read from the disk anew."""
    state: State = {}
    for name in ("vgg9", "other", "new"):
        state[name] = [
            (one.version, one.job_id, one.artifact_path.read_bytes(), one.report, one.predictions)
            for one in store.versions(name)
        ]
        with suppress(NotFound):
            state[name + " aliases"] = store.aliases(name)
    return state


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(
    "change", [publish, publish_first, set_alias, remove_alias, delete, delete_model]
)
def test_a_call_that_fails_leaves_the_state_before_or_after(
    tmp_path: Path,
    stage: Stage,
    files_below: Listing,
    change: Callable[[ModelStore, Path], None],
    number: int,
) -> None:
    whole = prepared(tmp_path / "whole", stage)
    before, files_before = state_of(whole), files_below(tmp_path / "whole")
    staged = stage(b"staged")
    with failing(0, number) as made:
        change(whole, staged)
    after, calls = state_of(whole), len(made)
    assert calls >= 5
    seen = []
    for at in range(1, calls + 1):
        root = tmp_path / f"{at}"
        store = prepared(root, stage)
        stage(b"staged")
        try:
            with failing(at, number):
                change(store, staged)
        except (OSError, StorageExhausted) as fault:
            # A full disk is always called so.
            assert isinstance(fault, BitpressError) == (number == errno.ENOSPC)
        again = ModelStore(root)
        state = state_of(again)
        if change is delete_model:
            # The versions go one by one, the oldest first.
            assert state | {"other": [], "other aliases": None} == after | {"other aliases": None}
            assert state["other"] in (before["other"], before["other"][1:], [])
        else:
            assert state in (before, after)
        if state == before:
            assert files_below(root) == files_before
        seen.append(state)
        change(again, staged)
        assert state_of(again) == after
        assert files_below(root) == files_below(tmp_path / "whole")
    assert before in seen
    assert after in seen


def test_a_number_and_a_job_that_were_used_stay_used_whatever_fails(
    tmp_path: Path, stage: Stage
) -> None:
    for at in range(1, 12):
        store = prepared(tmp_path / f"{at}", stage)
        with failing(at, errno.EIO), suppress(OSError):
            store.delete("vgg9", 2)
        if store.numbers("vgg9") == [1]:
            with pytest.raises(Conflict):
                store.publish(stage(b"again"), "vgg9", "job-2")
        assert store.publish(stage(b"more"), "vgg9", "job-9").version == 3
