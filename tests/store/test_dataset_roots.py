import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from store.archive_members import DatasetLimits
from store.dataset_roots import open_beneath
from store.datasets import DatasetStore
from store.errors import Conflict, InvalidDataset, TooLarge, Unavailable
from store.settings import StoreSettings, setting_faults

Listing = Callable[[Path], set[str]]


@pytest.fixture
def folder(tmp_path: Path, build: Any) -> Path:
    """A folder of the operator's with three images, splits and some other files."""
    root = tmp_path / "pictures"
    for name, data in build.two_classes("train/", "test/").items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "README").write_text("notes")
    (root / "train/cat/.DS_Store").write_bytes(b"junk")
    return root


@pytest.fixture
def store(tmp_path: Path, folder: Path) -> DatasetStore:
    return DatasetStore(tmp_path / "datasets", roots={"pictures": folder})


def refusal(store: DatasetStore, kind: type[Exception] = InvalidDataset) -> Any:
    with pytest.raises(kind) as caught:
        store.register_root("pets", "pictures")
    assert caught.value.field == "root"
    assert caught.value.remedy
    assert "/pictures" not in caught.value.detail
    assert store.list() == []
    return caught.value


# What is registered


def test_a_root_has_the_images_and_the_digest_of_an_archive_of_it(
    store: DatasetStore, build: Any
) -> None:
    dataset = store.register_root("pets", "pictures").dataset
    sent = store.ingest(build.tar(build.two_classes("train/", "test/")), "sent").dataset
    assert (dataset.source, dataset.root, dataset.archive_digest) == ("root", "pictures", None)
    assert (dataset.digest, dataset.classes, dataset.splits, dataset.bytes) == (
        sent.digest,
        sent.classes,
        sent.splits,
        sent.bytes,
    )
    assert list(store.images("pets")) == list(store.images("sent"))
    assert store.get("pets") == dataset


def test_the_images_stay_where_they_are(
    store: DatasetStore, folder: Path, tmp_path: Path, files_below: Listing
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    store.register_root("pets", "pictures")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert files_below(tmp_path / "datasets") == {
        ".tmp",
        "pets",
        "pets/dataset.json",
        "pets/index.npz",
    }
    store.delete("pets", lambda: ())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_root_is_registered_once(store: DatasetStore, folder: Path, build: Any) -> None:
    first = store.register_root("pets", "pictures").dataset
    (folder / "train/cat/9.png").write_bytes(build.png)
    assert store.register_root("pets", "pictures").dataset == first
    store.delete("pets", lambda: ())
    assert store.register_root("pets", "pictures").dataset.splits["train"] == 4


def test_a_name_that_is_taken_is_a_conflict(store: DatasetStore, build: Any) -> None:
    archive = build.tar(build.two_classes("train/", "test/"))
    store.ingest(archive, "pets")
    with pytest.raises(Conflict):
        store.register_root("pets", "pictures")
    store.register_root("rooted", "pictures")
    with pytest.raises(Conflict):
        store.ingest(archive, "rooted")


@pytest.mark.parametrize("name", ["../x", "UPPER", ""])
def test_bad_names_are_refused(store: DatasetStore, name: str) -> None:
    with pytest.raises(InvalidDataset) as caught:
        store.register_root(name, "pictures")
    assert caught.value.field == "name"
    with pytest.raises(InvalidDataset) as caught:
        store.register_root("pets", "elsewhere")
    assert caught.value.field == "root"
    assert "pictures" in (caught.value.remedy or "")


# Links


def test_links_are_followed_inside_the_root(store: DatasetStore, folder: Path, build: Any) -> None:
    (folder / ".pool").mkdir()
    shutil.move(folder / "train/dog", folder / ".pool/dog")
    os.symlink("../.pool/dog", folder / "train/dog")
    os.symlink(folder / "train/cat/1.png", folder / "train/cat/7.png")
    dataset = store.register_root("pets", "pictures").dataset
    assert dataset.splits == {"train": 4, "test": 3}
    images = {image.name: image.data for image in store.images("pets")}
    assert images["train/cat/7.png"] == images["train/cat/1.png"]
    assert images["train/dog/1.jpg"] == build.jpeg


@pytest.mark.parametrize("target", ["file", "folder"])
def test_links_out_of_the_root_are_refused_by_name(
    store: DatasetStore, folder: Path, tmp_path: Path, build: Any, target: str
) -> None:
    (tmp_path / "outside/secret").mkdir(parents=True)
    (tmp_path / "outside/secret/1.png").write_bytes(build.png)
    if target == "file":
        os.symlink(tmp_path / "outside/secret/1.png", folder / "train/cat/8.png")
    else:
        os.symlink("../../outside/secret", folder / "train/secret")
    error = refusal(store)
    assert "link out of the root" in error.detail
    assert ("train/cat/8.png" if target == "file" else "train/secret") in error.detail
    assert "outside" not in error.detail


def test_a_link_that_leads_back_up_ends(store: DatasetStore, folder: Path) -> None:
    os.symlink("..", folder / "train/cat/loop")
    assert "depth" in refusal(store).detail


def test_other_links_out_are_passed_over(store: DatasetStore, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("")
    os.symlink(tmp_path / "LICENSE", folder / "LICENSE")
    os.symlink("/nowhere/at/all", folder / "dangling")
    assert store.register_root("pets", "pictures").dataset.splits == {"train": 3, "test": 3}


def test_reading_follows_no_link_that_came_later(
    store: DatasetStore, folder: Path, tmp_path: Path
) -> None:
    store.register_root("pets", "pictures")
    image = folder / "train/cat/1.png"
    seen = image.stat()
    outside = tmp_path / "outside.png"
    shutil.copy(image, outside)
    os.utime(outside, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    image.unlink()
    os.symlink(outside, image)
    with pytest.raises(InvalidDataset, match=r"train/cat/1.png.*cannot be read"):
        store.stored_images("pets").read(row_of(store, "train/cat/1.png"))
    shutil.copytree(folder / "train/cat", tmp_path / "cats")
    shutil.rmtree(folder / "train/cat")
    os.symlink(tmp_path / "cats", folder / "train/cat")
    with pytest.raises(OSError):
        os.close(open_beneath(folder, "train/cat/2.png"))


# What is found when images are read


def row_of(store: DatasetStore, name: str) -> int:
    images = store.stored_images("pets")
    return next(row for row in range(len(images)) if images.name(row) == name)


def later(path: Path) -> None:
    seen = path.stat()
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Path.unlink, "is gone"),
        (lambda path: shutil.rmtree(path.parent), "is gone"),
        (later, "has changed"),
        (lambda path: path.write_bytes(b"other"), "has changed"),
        (lambda path: (path.unlink(), path.mkdir()), "has changed|cannot be read"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "has changed|cannot be read"),
    ],
)
def test_an_image_that_has_changed_is_named_when_it_is_read(
    store: DatasetStore, folder: Path, change: Callable[[Path], object], words: str
) -> None:
    store.register_root("pets", "pictures")
    row = row_of(store, "train/cat/1.png")
    images = store.stored_images("pets")
    assert images.read(row)
    change(folder / "train/cat/1.png")
    with pytest.raises(InvalidDataset, match=words) as caught:
        images.read(row)
    assert '"train/cat/1.png" in the root pictures' in caught.value.detail
    assert caught.value.field == "spec.dataset"
    assert str(folder) not in str(caught.value.problem())
    assert images.read(row_of(store, "test/cat/1.png"))


def test_a_process_without_the_root_says_so(store: DatasetStore, tmp_path: Path) -> None:
    store.register_root("pets", "pictures")
    elsewhere = DatasetStore(tmp_path / "datasets")
    assert elsewhere.get("pets").root == "pictures"
    with pytest.raises(Unavailable, match="root pictures") as caught:
        elsewhere.stored_images("pets")
    assert "BITPRESS_DATASET_ROOTS" in (caught.value.remedy or "")


# What is refused


def test_files_that_are_no_images_are_refused_by_name(store: DatasetStore, folder: Path) -> None:
    (folder / "train/cat/3.png").write_bytes(b"text")
    assert '"train/cat/3.png" in the root is no image' in refusal(store).detail
    (folder / "train/cat/3.png").write_bytes(b"")
    assert "is no image" in refusal(store).detail
    (folder / "train/cat/3.png").unlink()
    os.mkfifo(folder / "train/cat/3.png")
    assert "is no plain file" in refusal(store).detail


def test_layouts_are_those_of_archives(store: DatasetStore, folder: Path, build: Any) -> None:
    (folder / "train/empty").mkdir()
    assert "train/empty" in refusal(store).detail
    (folder / "train/empty").rmdir()
    (folder / "train/cat/deep/deeper").mkdir(parents=True)
    (folder / "train/cat/deep/deeper/1.png").write_bytes(build.png)
    assert "deep" in refusal(store).detail
    shutil.rmtree(folder / "train")
    shutil.rmtree(folder / "test")
    assert "no images" in refusal(store).detail


def test_names_that_cannot_be_printed_are_refused(store: DatasetStore, folder: Path) -> None:
    os.rename(folder / "train/cat/1.png", os.fsencode(folder / "train/cat") + b"/\xff.png")
    detail = refusal(store).detail
    assert "printed" in detail
    assert "in the root" in detail
    assert "archive" not in detail


def test_limits_on_entries_classes_and_files_hold(tmp_path: Path, folder: Path, build: Any) -> None:
    for limits, words in (
        (DatasetLimits(max_members=5), "5 entries"),
        (DatasetLimits(max_classes=1), "1 classes"),
        (DatasetLimits(max_member_bytes=3), "larger than 3"),
    ):
        store = DatasetStore(tmp_path / "limited", limits, roots={"pictures": folder})
        assert words in refusal(store, TooLarge).detail


def test_a_folder_that_cannot_be_listed_is_named(
    store: DatasetStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = os.scandir

    def scandir(path: Path) -> Any:
        if str(path).endswith("train/dog"):
            raise PermissionError
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert '"train/dog" in the root cannot be read' in refusal(store).detail


def test_indexing_ends_where_nobody_waits_any_more(
    store: DatasetStore, tmp_path: Path, files_below: Listing
) -> None:
    class Gone(Exception):
        pass

    calls = 0

    def proceed() -> None:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise Gone

    with pytest.raises(Gone):
        store.register_root("pets", "pictures", proceed)
    assert files_below(tmp_path / "datasets") == {".tmp"}


def test_taking_an_archive_in_ends_where_nobody_waits_any_more(
    store: DatasetStore, tmp_path: Path, build: Any, files_below: Listing
) -> None:
    class Gone(Exception):
        pass

    def proceed() -> None:
        raise Gone

    for path in (build.tar(build.two_classes()), build.zip(build.two_classes())):
        with pytest.raises(Gone):
            store.ingest(path, "pets", proceed)
    assert files_below(tmp_path / "datasets") == {".tmp"}


def test_progress_of_long_indexing_is_logged(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("store.dataset_roots._NOTE_EVERY_S", 0.0)
    with caplog.at_level("INFO", "bitpress.store"):
        store.register_root("pets", "pictures")
    (record,) = [record for record in caplog.records if record.message == "indexing a root"]
    assert (record.__dict__["root"], record.__dict__["done"], record.__dict__["of"]) == (
        "pictures",
        6,
        6,
    )


# Settings


def test_roots_are_read_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b=c"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("BITPRESS_DATASET_ROOTS", f"one={tmp_path}/a, two.2={tmp_path}/b=c,")
    settings = StoreSettings(data_dir=tmp_path / "data")
    assert settings.dataset_root_folders == {"one": tmp_path / "a", "two.2": tmp_path / "b=c"}
    store = DatasetStore.of(settings)
    with pytest.raises(InvalidDataset, match="no images"):
        store.register_root("x", "one")


@pytest.mark.parametrize(
    "roots",
    [
        "nonsense",
        "=/tmp",
        "UPPER=/tmp",
        "a=",
        "a=relative",
        "a=/secret/does/not/exist",
        "a=/etc/hostname",
        "a=/tmp,a=/tmp",
    ],
)
def test_roots_that_are_no_folders_end_the_process_at_its_start(roots: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StoreSettings(dataset_roots=roots)
    (fault,) = setting_faults(caught.value)
    assert fault["setting"] == "BITPRESS_DATASET_ROOTS"
    assert "secret" not in fault["fault"]


def test_a_record_of_an_earlier_release_is_read(
    store: DatasetStore, tmp_path: Path, build: Any
) -> None:
    store.ingest(build.tar(build.two_classes()), "pets")
    file = tmp_path / "datasets/pets/dataset.json"
    record = json.loads(file.read_text())
    del record["source"], record["root"]
    file.write_text(json.dumps(record | {"schema": 1}))
    dataset = store.get("pets")
    assert (dataset.source, dataset.root) == ("folders", None)
    assert len(io.BytesIO(next(store.images("pets")).data).read()) > 0
