"""Damaged datasets: named where they are asked for, left out elsewhere, and deletable."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.dataset_cache import entry_name, remove_orphans
from store.datasets import DatasetStore
from store.errors import NotFound, Unavailable

Change = Callable[[Path], object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "datasets"


@pytest.fixture
def store(root: Path, build: Any) -> DatasetStore:
    store = DatasetStore(root)
    store.ingest(build.tar(build.two_classes()), "pets")
    store.ingest(build.tar(build.two_classes("train/")), "sound")
    return store


def edited(**members: Any) -> Change:
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | members))


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-20]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"[" * 100_000),
        lambda file: file.write_text("[]"),
        lambda file: file.write_text("{}"),
        Path.unlink,
        edited(digest="../../../etc"),
        edited(classes=None),
        edited(classes=[1, 2]),
        edited(classes={}),
        edited(splits=[]),
        edited(splits={"all": "3"}),
        edited(bytes="9"),
        edited(created_at=None),
        edited(archive_digest=3),
        edited(source="of a later release"),
        edited(root=["x"]),
    ],
)
def test_a_damaged_record_is_named_left_out_and_deleted(
    store: DatasetStore,
    root: Path,
    build: Any,
    caplog: pytest.LogCaptureFixture,
    change: Change,
) -> None:
    change(root / "pets/dataset.json")
    for ask in (store.get, store.stored_images, store.images):
        with pytest.raises(Unavailable, match="dataset pets is missing or damaged") as caught:
            ask("pets")
        assert str(root) not in str(caught.value.problem())
    with pytest.raises(Unavailable):
        store.ingest(build.tar(build.two_classes()), "pets")
    with caplog.at_level("WARNING", "bitpress.store"):
        assert [dataset.name for dataset in store.list()] == ["sound"]
    assert [record.__dict__["dataset"] for record in caplog.records] == ["pets"]
    store.delete("pets", lambda: ())
    with pytest.raises(NotFound):
        store.get("pets")
    assert store.ingest(build.tar(build.two_classes()), "pets").is_new


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-20]),
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"PK\x03\x04"),
        lambda file: file.write_bytes(file.read_bytes().replace(b"label.npy", b"lapel.npy")),
        lambda file: file.write_bytes(file.read_bytes().replace(b"cat/", b"dog/", 1)),
        Path.unlink,
        lambda file: (file.unlink(), file.mkdir()),
    ],
)
def test_a_damaged_index_is_named(store: DatasetStore, root: Path, change: Change) -> None:
    change(root / "pets/index.npz")
    with pytest.raises(Unavailable, match=r"index.npz of the dataset pets is missing or damaged"):
        store.stored_images("pets")
    assert len(store.list()) == 2
    store.delete("pets", lambda: ())


def test_members_of_a_later_release_are_passed_over(store: DatasetStore, root: Path) -> None:
    before = store.get("pets")
    edited(schema=9, curator="somebody")(root / "pets/dataset.json")
    assert store.get("pets") == before


def test_a_damaged_dataset_is_in_nobodys_way_when_the_cache_is_tidied(
    store: DatasetStore, root: Path, tmp_path: Path
) -> None:
    for name in ("pets", "sound"):
        (tmp_path / "cache" / entry_name(store.get(name).digest, "x")).mkdir(parents=True)
    (root / "pets/dataset.json").write_text("")
    assert remove_orphans(tmp_path / "cache", store) == 1
    assert (tmp_path / "cache" / entry_name(store.get("sound").digest, "x")).is_dir()


def test_who_registers_a_dataset_hears_whether_it_is_new(
    store: DatasetStore, build: Any, tmp_path: Path
) -> None:
    assert not store.ingest(build.tar(build.two_classes()), "pets").is_new
    # Another packaging is found to be the same only at the end.
    assert not store.ingest(build.zip(build.two_classes()), "pets").is_new
    assert store.ingest(build.zip(build.two_classes()), "other").is_new
