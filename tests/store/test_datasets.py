import errno
import gzip
import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from store import dataset_archives, dataset_container
from store.archive_members import DatasetLimits
from store.datasets import Dataset, DatasetStore
from store.errors import Conflict, InvalidDataset, NotFound, StorageExhausted, TooLarge

Listing = Callable[[Path], set[str]]
Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "datasets"


@pytest.fixture
def store(root: Path) -> DatasetStore:
    return DatasetStore(root, now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


def names(store: DatasetStore, name: str = "pets") -> list[tuple[str, int, str]]:
    return [(image.split, image.label, image.name) for image in store.images(name)]


UNSPLIT = [("all", 0, "cat/1.png"), ("all", 0, "cat/2.png"), ("all", 1, "dog/1.jpg")]


# What is taken in


def test_a_dataset_says_what_it_is(store: DatasetStore, build: Any) -> None:
    dataset = store.ingest(build.tar(build.two_classes()), "pets").dataset
    assert dataset.name == "pets"
    assert dataset.classes == ("cat", "dog")
    assert dataset.splits == {"all": 3}
    assert dataset.bytes == sum(map(len, build.two_classes().values()))
    assert dataset.created_at == "2026-01-02T03:04:05+00:00"
    assert store.get("pets") == dataset
    assert store.list() == [dataset]


@pytest.mark.parametrize("make", ["tar", "zip"])
@pytest.mark.parametrize("top", ["", "top/", "train-images/"])
def test_images_come_out_sorted_with_their_bytes(
    store: DatasetStore, build: Any, make: str, top: str
) -> None:
    files = dict(reversed(build.two_classes(top).items()))
    store.ingest(getattr(build, make)(files), "pets")
    assert names(store) == UNSPLIT
    assert {top + i.name: i.data for i in store.images("pets")} == build.two_classes(top)


@pytest.mark.parametrize("top", ["", "top/"])
@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_splits_are_kept_in_order(store: DatasetStore, build: Any, top: str, val: str) -> None:
    files = build.two_classes(f"{top}test/", f"{top}{val}/", f"{top}train/")
    dataset = store.ingest(build.zip(files), "pets").dataset
    assert list(dataset.splits.items()) == [("train", 3), ("val", 3), ("test", 3)]
    assert names(store) == [
        (split, label, f"{folder}/{name}")
        for split, folder in (("train", "train"), ("val", val), ("test", "test"))
        for _, label, name in UNSPLIT
    ]


@pytest.mark.parametrize("splits", [("train/",), ("train/", "test/"), ("test/",)])
def test_any_of_the_splits_may_be_missing(
    store: DatasetStore, build: Any, splits: tuple[str, ...]
) -> None:
    dataset = store.ingest(build.tar(build.two_classes(*splits)), "pets").dataset
    assert set(dataset.splits) == {split.rstrip("/") for split in splits}


def test_what_desktops_leave_behind_is_ignored(store: DatasetStore, build: Any) -> None:
    junk = [
        "__MACOSX/cat/._1.png",
        "cat/.DS_Store",
        "cat/._1.png",
        "cat/Thumbs.db",
        ".hidden/x/y/z.png",
        "desktop.ini",
    ]
    for make in (build.tar, build.zip):
        store.ingest(make(dict.fromkeys(junk, b"junk") | build.two_classes()), "pets")
        assert names(store) == UNSPLIT


def test_files_beside_the_images_are_ignored(store: DatasetStore, build: Any) -> None:
    notes = {"README.md": b"P5 is a kind of image", "cat/LICENSE": b"BM", "labels.csv": b"1,2"}
    store.ingest(build.tar(notes | build.two_classes()), "pets")
    assert names(store) == UNSPLIT


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jpeg", b"\xff\xd8\xff\xe1"),
        ("a.PNG", b"\x89PNG\r\n\x1a\n"),
        ("a.gif", b"GIF89a"),
        ("a.webp", b"RIFF\0\0\0\0WEBP"),
        ("a.bmp", b"BM"),
        ("a.ppm", b"P6\n"),
        ("a.pgm", b"P5\n"),
        ("no-suffix", b"\xff\xd8\xff\xe0"),
        ("wrong-suffix.png", b"\xff\xd8\xff\xe0"),
    ],
)
def test_images_are_known_by_their_first_bytes(
    store: DatasetStore, build: Any, name: str, data: bytes
) -> None:
    store.ingest(build.tar(build.two_classes() | {"dog/" + name: data}), "pets")
    assert ("all", 1, "dog/" + name) in names(store)


def test_classes_are_sorted_as_plain_strings(store: DatasetStore, build: Any) -> None:
    classes = ["10", "9", "Zebra", "aardvark", "ünlü", "_"]
    dataset = store.ingest(build.tar({f"{c}/1.png": build.png for c in classes}), "pets").dataset
    assert dataset.classes == ("10", "9", "Zebra", "_", "aardvark", "ünlü")


# Digests and names


def test_the_digest_is_of_the_content_not_of_the_packaging(store: DatasetStore, build: Any) -> None:
    files = build.two_classes()
    archives = [
        build.tar(files),
        build.tar(dict(reversed(files.items()))),
        build.tar({"top/" + name: data for name, data in files.items()}),
        build.zip(files | {"cat/": b"", ".DS_Store": b"x", "notes.txt": b"y"}),
        build.raw(gzip.compress(build.tar(files).read_bytes())),
    ]
    datasets = [store.ingest(path, f"pets-{n}").dataset for n, path in enumerate(archives)]
    assert len({dataset.digest for dataset in datasets}) == 1
    assert len({dataset.archive_digest for dataset in datasets}) == len(archives)


@pytest.mark.parametrize(
    "change",
    [
        {"cat/1.png": b"\x89PNG\r\n\x1a\nother"},
        {"cat/3.png": b"\x89PNG\r\n\x1a\n"},
        {"eel/1.png": b"\x89PNG\r\n\x1a\n"},
    ],
)
def test_other_content_has_another_digest(
    store: DatasetStore, build: Any, change: dict[str, bytes]
) -> None:
    one = store.ingest(build.tar(build.two_classes()), "one").dataset
    other = store.ingest(build.tar(build.two_classes() | change), "other").dataset
    assert one.digest != other.digest


def test_the_same_content_under_the_same_name_is_the_existing_dataset(
    store: DatasetStore, build: Any, root: Path, files_below: Listing
) -> None:
    tar, zip = build.tar(build.two_classes()), build.zip(build.two_classes())
    first = store.ingest(tar, "pets").dataset
    before = files_below(root)
    assert store.ingest(tar, "pets").dataset == first
    assert store.ingest(zip, "pets").dataset == first
    assert files_below(root) == before


def test_other_content_under_a_taken_name_is_a_conflict(
    store: DatasetStore, build: Any, root: Path, files_below: Listing
) -> None:
    first = store.ingest(build.tar(build.two_classes()), "pets").dataset
    before = files_below(root)
    with pytest.raises(Conflict) as caught:
        store.ingest(build.tar(build.two_classes("train/")), "pets")
    assert caught.value.field == "name"
    assert store.get("pets") == first
    assert files_below(root) == before


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", "Pets", "pets\n", ".tmp", "a" * 65])
def test_a_name_that_is_no_name_is_refused_and_not_found(
    store: DatasetStore, build: Any, root: Path, files_below: Listing, name: str
) -> None:
    with pytest.raises(InvalidDataset) as caught:
        store.ingest(build.tar(build.two_classes()), name)
    assert caught.value.field == "name"
    assert files_below(root) == {".tmp"}
    for look_up in (store.get, store.images):
        with pytest.raises(NotFound):
            look_up(name)


def test_an_unknown_dataset_is_not_found_and_the_remedy_is_named(store: DatasetStore) -> None:
    with pytest.raises(NotFound) as caught:
        store.get("nothing")
    assert caught.value.field == "spec.dataset"
    assert "POST /datasets" in (caught.value.remedy or "")


# What is refused: each names the culprit and leaves nothing


PNG = b"\x89PNG\r\n\x1a\n"
CATS_AND_DOGS = {"cat/1.png": PNG, "dog/1.png": PNG}


def split(**classes: str) -> dict[str, bytes]:
    return {f"{s}/{c}/1.png": PNG for s, cs in classes.items() for c in cs.split()}


LAYOUT_FAULTS: dict[str, tuple[dict[str, bytes], str]] = {
    "nothing": ({}, "no images"),
    "only folders": ({"cat/": b"", "dog/": b""}, "no images"),
    "only junk": ({"__MACOSX/cat/1.png": PNG, ".x/dog/1.png": PNG}, "no images"),
    "only text": ({"cat/1.txt": b"cat", "dog/1.txt": b"dog"}, "no images"),
    "one class": ({"cat/1.png": PNG, "cat/2.png": PNG}, '"cat"'),
    "one class below a top folder": ({"top/cat/1.png": PNG}, '"cat"'),
    "one class in every split": (split(train="cat", test="cat"), '"cat"'),
    "no class folder": ({"1.png": PNG, "2.png": PNG}, '"1.png"'),
    "splits without classes": ({"train/1.png": PNG, "test/1.png": PNG}, '"test"'),
    "a stray image above": (CATS_AND_DOGS | {"stray.png": PNG}, '"stray.png"'),
    "a stray image below": (CATS_AND_DOGS | {"cat/x/stray.png": PNG}, '"cat/x/stray.png"'),
    "too deep": ({"a/b/c/d/1.png": PNG, "a/b/c/e/1.png": PNG}, '"a/b/c/d/1.png"'),
    "two top folders": ({"a/cat/1.png": PNG, "b/dog/1.png": PNG}, '"a" and "b"'),
    "top folders around splits": (
        {"a/train/cat/1.png": PNG, "b/train/dog/1.png": PNG},
        '"a" and "b"',
    ),
    "an unknown split": (split(train="cat dog", extra="cat dog"), '"extra"'),
    "an unknown split below": (
        {"top/" + name: data for name, data in split(train="cat dog", dev="cat").items()},
        '"dev"',
    ),
    "two names of one split": (split(train="a b", val="a b", valid="a b"), '"val" and "valid"'),
    "a class missing in test": (split(train="cat dog", test="cat"), '"dog"'),
    "a class missing in train": (split(train="cat", test="cat dog"), '"dog"'),
    "a class spelt differently": (split(train="cat dog", test="cat Dog"), '"Dog"'),
    "an empty class": (CATS_AND_DOGS | {"eel/": b""}, '"eel"'),
    "a class of text": (CATS_AND_DOGS | {"eel/1.txt": b"eel"}, '"eel"'),
    "an empty class in a split": (split(train="cat dog") | {"train/eel/": b""}, '"train/eel"'),
    "an empty split": (split(train="cat dog") | {"test/": b""}, '"test"'),
    "an empty image": (CATS_AND_DOGS | {"cat/2.png": b""}, '"cat/2.png"'),
    "no image inside": (CATS_AND_DOGS | {"cat/2.jpg": b"<html>"}, '"cat/2.jpg"'),
    "an unsupported kind": (CATS_AND_DOGS | {"cat/2.tiff": b"II*\0"}, '"cat/2.tiff"'),
}


@pytest.mark.parametrize("fault", LAYOUT_FAULTS)
@pytest.mark.parametrize("make", ["tar", "zip"])
def test_a_layout_fault_is_named_and_leaves_nothing(
    store: DatasetStore, build: Any, root: Path, files_below: Listing, make: str, fault: str
) -> None:
    files, words = LAYOUT_FAULTS[fault]
    with pytest.raises(InvalidDataset) as caught:
        store.ingest(getattr(build, make)(files), "pets")
    assert words in caught.value.detail
    assert caught.value.field == "archive"
    assert caught.value.remedy
    assert files_below(root) == {".tmp"}
    assert store.list() == []


def test_a_folder_of_notes_beside_the_splits_is_ignored(store: DatasetStore, build: Any) -> None:
    files = split(train="cat dog") | {"docs/": b"", "docs/more/": b"", "docs/more/x.txt": b""}
    assert store.ingest(build.tar(files), "pets").dataset.classes == ("cat", "dog")


def test_an_image_that_comes_twice_is_refused(
    store: DatasetStore, build: Any, root: Path, files_below: Listing
) -> None:
    info = tarfile.TarInfo("cat/1.png")
    info.size = len(PNG)
    double_zip = io.BytesIO()
    with zipfile.ZipFile(double_zip, "w") as archive:
        archive.writestr("cat/1.png", PNG)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("cat/1.png", PNG)
    for path in (build.tar_with(info, PNG), build.raw(double_zip.getvalue())):
        with pytest.raises(InvalidDataset) as caught:
            store.ingest(path, "pets")
        assert '"cat/1.png" twice' in caught.value.detail
    assert files_below(root) == {".tmp"}


def test_a_link_in_the_archive_leaves_nothing(
    store: DatasetStore, build: Any, root: Path, files_below: Listing
) -> None:
    info = tarfile.TarInfo("dog/2.png")
    info.type = tarfile.SYMTYPE
    info.linkname = "/etc/passwd"
    with pytest.raises(InvalidDataset):
        store.ingest(build.tar_with(info), "pets")
    assert files_below(root) == {".tmp"}


@pytest.mark.parametrize(
    "limits",
    [
        DatasetLimits(max_images=2),
        DatasetLimits(max_classes=1),
        DatasetLimits(max_members=2),
        DatasetLimits(max_member_bytes=8),
        DatasetLimits(max_unpacked_bytes=16),
    ],
)
def test_what_is_over_a_limit_leaves_nothing(
    root: Path, build: Any, files_below: Listing, limits: DatasetLimits
) -> None:
    for path in (build.tar(build.two_classes()), build.zip(build.two_classes())):
        with pytest.raises(TooLarge) as caught:
            DatasetStore(root, limits).ingest(path, "pets")
        assert caught.value.field == "archive"
        assert caught.value.remedy
    assert files_below(root) == {".tmp"}


# Interruptions


def test_a_full_disk_is_named_and_leaves_nothing(
    store: DatasetStore,
    build: Any,
    root: Path,
    files_below: Listing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = build.tar(build.two_classes())
    for owner, function in ((dataset_container.np, "savez"), (os, "fsync"), (os, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, function, full)
            with pytest.raises(StorageExhausted):
                store.ingest(path, "pets")
        assert files_below(root) == {".tmp"}
    assert isinstance(store.ingest(path, "pets").dataset, Dataset)


def test_an_interrupt_leaves_nothing(
    store: DatasetStore,
    build: Any,
    root: Path,
    files_below: Listing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(name: str, data: bytes) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset_archives, "is_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.ingest(build.tar(build.two_classes()), "pets")
    assert files_below(root) == {".tmp"}


INGEST = """
import os, sys
from pathlib import Path
from store.datasets import DatasetStore
from store import datasets
from store.errors import BitpressError
root, archive, die = sys.argv[1:]
store = DatasetStore(Path(root))
if die == "die":
    datasets.os.rename = lambda *arguments: os.kill(os.getpid(), 9)
print("ready", flush=True)
sys.stdin.readline()
try:
    print(store.ingest(Path(archive), "pets").dataset.digest)
except BitpressError as error:
    print(error.code)
"""


def test_what_a_killed_process_left_is_swept(
    build: Any, root: Path, spawn: Spawn, files_below: Listing
) -> None:
    process = spawn(INGEST, root, build.tar(build.two_classes()), "die")
    process.communicate("go\n")
    assert process.returncode == -9
    assert any(name.endswith("images.bin") for name in files_below(root))
    store = DatasetStore(root)
    assert store.list() == []
    assert files_below(root) == {".tmp"}


def test_processes_that_register_one_name_at_once_agree(
    build: Any, root: Path, spawn: Spawn, files_below: Listing
) -> None:
    same = [build.tar(build.two_classes()), build.zip(build.two_classes())]
    other = build.tar(build.two_classes("train/"))
    processes = [spawn(INGEST, root, path, "live") for path in (*same, other)]
    for process in processes:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate()[0].strip() for process in processes]
    winner = DatasetStore(root).get("pets").digest
    expected = [winner, winner, "conflict"], ["conflict", "conflict", winner]
    assert answers in expected
    assert files_below(root) == {".tmp", "pets"} | {
        f"pets/{name}" for name in ("dataset.json", "images.bin", "index.npz")
    }


# The shipped images


@pytest.mark.cifar
@pytest.mark.slow
def test_the_shipped_archive_is_registered_whole(store: DatasetStore, shared_data: Path) -> None:
    dataset = store.ingest(shared_data / "cifar10-jpeg.tar.xz", "cifar10").dataset
    assert dataset.splits == {"train": 50_000, "test": 10_000}
    assert len(dataset.classes) == 10
    assert (dataset.classes[0], dataset.classes[9]) == ("airplane", "truck")
    rows = names(store, "cifar10")
    assert len(rows) == 60_000
    assert rows == sorted(rows, key=lambda row: (row[0] != "train", *row[1:]))
    assert rows[0][2] == "train/airplane/0000.jpg"
    assert all(image.data.startswith(b"\xff\xd8\xff") for image in store.images("cifar10"))


def test_images_can_be_read_in_any_order_and_after_the_dataset_is_gone(
    store: DatasetStore, root: Path, build: Any
) -> None:
    store.ingest(build.zip(build.two_classes("train/", "test/")), "pets")
    stored = store.stored_images("pets")
    listed = list(store.images("pets"))
    shutil.rmtree(root / "pets")
    assert len(stored) == len(listed)
    for row in reversed(range(len(stored))):
        image = listed[row]
        assert stored.read(row) == image.data
        assert (stored.name(row), stored.split(row)) == (image.name, image.split)
        assert stored.labels[row] == image.label


def test_names_of_any_length_and_alphabet_come_out_one_by_one(
    store: DatasetStore, build: Any
) -> None:
    files = {f"{c}/{n}": build.png for c in ("猫", "d") for n in ("1.png", "é" * 100 + ".png", "_")}
    store.ingest(build.tar(files), "pets")
    stored = store.stored_images("pets")
    assert sorted(stored.name(row) for row in range(len(stored))) == sorted(files)
    assert len(stored) == 6
