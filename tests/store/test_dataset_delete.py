"""Deleting datasets: what uses them stays, what was made of them goes."""

import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.dataset_cache import entry_name, remove_orphans
from store.datasets import DatasetStore
from store.errors import Conflict, NotFound

Listing = Callable[[Path], set[str]]
Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def store(tmp_path: Path, build: Any) -> DatasetStore:
    store = DatasetStore(tmp_path / "datasets")
    store.ingest(build.tar(build.two_classes()), "pets")
    return store


def nobody() -> tuple[str, ...]:
    return ()


def test_a_deleted_dataset_is_gone_and_its_name_is_free(
    store: DatasetStore, tmp_path: Path, build: Any, files_below: Listing
) -> None:
    store.delete("pets", nobody)
    assert files_below(tmp_path / "datasets") == {".tmp"}
    with pytest.raises(NotFound):
        store.get("pets")
    with pytest.raises(NotFound):
        store.delete("pets", nobody)
    assert store.ingest(build.tar(build.two_classes("train/")), "pets").dataset.splits == {
        "train": 3
    }


def test_a_dataset_in_use_is_not_deleted_and_says_by_which_jobs(store: DatasetStore) -> None:
    with pytest.raises(Conflict, match="job one ") as caught:
        store.delete("pets", lambda: ["one"])
    assert caught.value.remedy == "Wait for its end, or cancel it, then delete the dataset."
    assert caught.value.field == "name"
    with pytest.raises(Conflict, match="5 jobs, among them a, b, c,") as many:
        store.delete("pets", lambda: list("ecabd"))
    assert "Wait for their end, or cancel them" in (many.value.remedy or "")
    assert store.get("pets").splits == {"all": 3}


def test_who_reads_its_images_goes_on(store: DatasetStore) -> None:
    images = store.stored_images("pets")
    expected = [image.data for image in store.images("pets")]
    store.delete("pets", nobody)
    assert [images.read(row) for row in range(len(images))] == expected


def test_nobody_begins_to_use_it_while_it_is_being_deleted(store: DatasetStore) -> None:
    """Whoever holds it has it for good; whoever comes after the deletion began finds nothing."""
    asked, deleted = threading.Event(), threading.Event()
    outcome: list[str] = []

    def users() -> list[str]:
        asked.set()
        return ["job"] if submitted else []

    def delete() -> None:
        try:
            store.delete("pets", users)
            outcome.append("deleted")
        except Conflict:
            outcome.append("in use")
        deleted.set()

    submitted: list[str] = []
    thread = threading.Thread(target=delete)
    with store.in_use("pets") as dataset:
        assert dataset.name == "pets"
        thread.start()
        # It waits: the question who uses it is not even asked yet.
        assert not asked.wait(0.2)
        submitted.append("job")
    thread.join(30)
    assert outcome == ["in use"]
    submitted.clear()
    store.delete("pets", users)
    with pytest.raises(NotFound), store.in_use("pets"):
        pytest.fail("it was deleted")


KILLED = """
import os, sys
from pathlib import Path
from store import datasets, scratch
from store.datasets import DatasetStore
store = DatasetStore(Path(sys.argv[1]))
if sys.argv[2] == "before":
    datasets.os.rename = lambda *arguments: os.kill(os.getpid(), 9)
else:
    scratch.shutil.rmtree = lambda *arguments, **options: os.kill(os.getpid(), 9)
store.delete("pets", lambda: ())
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_deletion_that_is_killed_leaves_all_or_nothing(
    store: DatasetStore, tmp_path: Path, spawn: Spawn, files_below: Listing, when: str
) -> None:
    process = spawn(KILLED, tmp_path / "datasets", when)
    process.communicate()
    assert process.returncode == -9
    again = DatasetStore(tmp_path / "datasets")
    if when == "before":
        assert len(list(again.images("pets"))) == 3
    else:
        assert files_below(tmp_path / "datasets") == {".tmp"}


# The cache


def test_entries_without_a_dataset_are_removed_and_all_else_stays(
    store: DatasetStore, tmp_path: Path, build: Any
) -> None:
    cache = tmp_path / "cache"
    other = store.ingest(build.tar(build.two_classes("test/", "train/")), "other").dataset
    gone = store.get("pets")
    for dataset in (gone, other):
        for what in ("3x32x32-v1", "sheet-20x8-v1"):
            entry = cache / entry_name(dataset.digest, what)
            entry.mkdir(parents=True)
            (entry / "images.npy").write_bytes(b"x" * 10)
    (cache / "kernels").mkdir()
    (cache / "notes.txt").write_text("")
    assert remove_orphans(cache, store) == 0
    with open(cache / entry_name(gone.digest, "3x32x32-v1") / "images.npy", "rb") as reader:
        store.delete("pets", nobody)
        assert remove_orphans(cache, store) == 2
        assert reader.read() == b"x" * 10
    left = {entry_name(other.digest, what) for what in ("3x32x32-v1", "sheet-20x8-v1")}
    assert {entry.name for entry in cache.iterdir()} == left | {"kernels", "notes.txt", ".tmp"}
    assert remove_orphans(cache, store) == 0


def test_an_entry_stays_while_any_dataset_has_its_content(
    store: DatasetStore, tmp_path: Path, build: Any
) -> None:
    twin = store.ingest(build.zip(build.two_classes()), "twin").dataset
    entry = tmp_path / "cache" / entry_name(twin.digest, "3x8x8-v1")
    entry.mkdir(parents=True)
    store.delete("pets", nobody)
    assert remove_orphans(tmp_path / "cache", store) == 0
    store.delete("twin", nobody)
    assert remove_orphans(tmp_path / "cache", store) == 1


def test_a_cache_that_is_not_there_has_no_orphans(store: DatasetStore, tmp_path: Path) -> None:
    assert remove_orphans(tmp_path / "none", store) == 0
    shutil.rmtree(tmp_path / "datasets/pets")
    assert remove_orphans(tmp_path / "none", store) == 0
