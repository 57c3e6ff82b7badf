"""CIFAR's files, made as their authors describe them and decoded again by Pillow alone."""

import importlib.util
import io
import pickle
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from store.archive_members import DatasetLimits
from store.datasets import DatasetStore
from store.errors import InvalidDataset, TooLarge

NAMES = ["airplane", "automobile", "bird", "cat"]
Files = dict[str, bytes]

_spec = importlib.util.spec_from_file_location("pickled", Path(__file__).with_name("pickled.py"))
assert _spec is not None and _spec.loader is not None
python2 = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(python2)


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(tmp_path / "datasets")


def rows(count: int, seed: int) -> NDArray[np.uint8]:
    """Images as CIFAR stores them: 1024 red, 1024 green, 1024 blue."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def labels(count: int, seed: int) -> list[int]:
    """Labels in no order, each of the four at least once."""
    return np.random.default_rng(seed).permutation(np.arange(count) % 4).tolist()


BATCHES = {
    **{f"data_batch_{n}": (rows(5 + n, n), labels(5 + n, n)) for n in range(1, 6)},
    "test_batch": (rows(6, 9), labels(6, 9)),
}
FINE = {"train": (rows(9, 21), labels(9, 21)), "test": (rows(5, 22), labels(5, 22))}


def of_python_2() -> Files:
    """cifar-10-python.tar.gz: batches in protocol 2, the names in protocol 0."""
    files = {}
    for name, (pixels, classes) in BATCHES.items():
        files[name] = python2.dictionary(
            batch_label=python2.text(b"training batch"),
            labels=python2.listed([python2.number(label) for label in classes]),
            data=python2.pixels(pixels),
            filenames=python2.listed([python2.text(b"a_%d.png" % n) for n in classes]),
        )
    names = "".join(f"S'{name}'\np{n + 4}\na" for n, name in enumerate(NAMES))
    files["batches.meta"] = (
        f"(dp1\nS'num_cases_per_batch'\np2\nI10000\nsS'label_names'\np3\n(lp0\n{names}s.".encode()
    )
    return files


def of_python_3(protocol: int = 4, key: Callable[[str], Any] = str) -> Files:
    files = {
        name: pickle.dumps({key("data"): pixels, key("labels"): classes}, protocol)
        for name, (pixels, classes) in BATCHES.items()
    }
    return files | {"batches.meta": pickle.dumps({key("label_names"): NAMES}, protocol)}


def binary() -> Files:
    files = {
        f"{name}.bin": b"".join(
            bytes([label]) + row.tobytes() for label, row in zip(classes, pixels, strict=True)
        )
        for name, (pixels, classes) in BATCHES.items()
    }
    # The authors' list ends with an empty line.
    return files | {"batches.meta.txt": "\n".join([*NAMES, "", ""]).encode()}


def hundred(protocol: int = 2) -> Files:
    files = {
        name: pickle.dumps(
            {b"data": pixels, b"fine_labels": classes, b"coarse_labels": [0] * len(classes)},
            protocol,
        )
        for name, (pixels, classes) in FINE.items()
    }
    meta = {"fine_label_names": NAMES, "coarse_label_names": ["vehicles"]}
    return files | {"meta": pickle.dumps(meta, protocol)}


def binary_hundred() -> Files:
    files = {
        f"{name}.bin": b"".join(
            bytes([17, label]) + row.tobytes() for label, row in zip(classes, pixels, strict=True)
        )
        for name, (pixels, classes) in FINE.items()
    }
    lists = {"fine_label_names.txt": "\n".join(NAMES).encode(), "coarse_label_names.txt": b"x\n"}
    return files | lists


FORMS = {
    "python 2": of_python_2,
    "python 3": of_python_3,
    "protocol 2 of python 3": lambda: of_python_3(2),
    "protocol 5, keys in bytes": lambda: of_python_3(5, str.encode),
    "binary": binary,
}


def tar_gz(folder: Path, files: Files, top: str = "cifar-10-batches-py/") -> Path:
    path = folder / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def zipped(folder: Path, files: Files) -> Path:
    path = folder / "cifar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def refusal(store: DatasetStore, path: Path) -> InvalidDataset:
    with pytest.raises(InvalidDataset) as caught:
        store.ingest(path, "cifar")
    assert caught.value.field == "archive"
    assert caught.value.remedy
    assert store.list() == []
    return caught.value


# What is read


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pack", [tar_gz, zipped])
def test_every_pixel_and_label_comes_back_in_the_batches_order(
    store: DatasetStore, tmp_path: Path, form: str, pack: Callable[[Path, Files], Path]
) -> None:
    files = FORMS[form]() | {"readme.html": b"<html>"}
    dataset = store.ingest(pack(tmp_path, dict(reversed(files.items()))), "cifar").dataset
    assert dataset.source == "cifar-10"
    assert dataset.classes == tuple(NAMES)
    assert dataset.splits == {"train": 40, "test": 6}
    images = {image.name: image for image in store.images("cifar")}
    number = 0
    for name, (pixels, classes) in BATCHES.items():
        split = "test" if name == "test_batch" else "train"
        number = 0 if split == "test" else number
        for row, label in zip(pixels, classes, strict=True):
            image = images.pop(f"{split}/{NAMES[label]}/{number:05}.png")
            assert (image.split, image.label) == (split, label)
            seen = np.asarray(Image.open(io.BytesIO(image.data)))
            for colour in range(3):
                plane = row[1024 * colour : 1024 * (colour + 1)].reshape(32, 32)
                np.testing.assert_array_equal(seen[:, :, colour], plane)
            number += 1
    assert not images


def test_all_forms_of_one_set_are_one_dataset(store: DatasetStore, tmp_path: Path) -> None:
    digests = {
        store.ingest(
            pack(tmp_path, files()), f"d{number}-{pack.__name__.replace('_', '')}"
        ).dataset.digest
        for number, files in enumerate(FORMS.values())
        for pack in (tar_gz, zipped)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("files", [hundred, lambda: hundred(4), binary_hundred])
def test_the_classes_of_cifar_100_are_the_fine_ones(
    store: DatasetStore, tmp_path: Path, files: Callable[[], Files]
) -> None:
    dataset = store.ingest(tar_gz(tmp_path, files(), "cifar-100/"), "cifar").dataset
    assert dataset.source == "cifar-100"
    assert dataset.classes == tuple(NAMES)
    assert dataset.splits == {"train": 9, "test": 5}
    again = store.ingest(zipped(tmp_path, binary_hundred()), "again").dataset
    assert again.digest == dataset.digest
    seen = {(image.split, image.label): image.data for image in store.images("cifar")}
    pixels, classes = FINE["test"]
    last = max(n for n, label in enumerate(classes) if label == 3)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(seen["test", 3])))[:, :, 2].ravel(), pixels[last, 2048:]
    )


def test_without_a_list_the_classes_are_called_by_their_numbers(
    store: DatasetStore, tmp_path: Path
) -> None:
    files = of_python_3()
    del files["batches.meta"]
    assert store.ingest(zipped(tmp_path, files), "cifar").dataset.classes == ("0", "1", "2", "3")


def test_labels_may_be_an_array_and_batches_may_be_missing(
    store: DatasetStore, tmp_path: Path
) -> None:
    pixels, classes = BATCHES["data_batch_3"]
    data = pickle.dumps({"data": np.asfortranarray(pixels), "labels": np.array(classes)}, 4)
    dataset = store.ingest(zipped(tmp_path, {"data_batch_3": data}), "cifar").dataset
    assert dataset.splits == {"train": 8}


def test_files_of_these_names_that_are_something_else_are_ignored(
    store: DatasetStore, tmp_path: Path, build: Any
) -> None:
    notes = {"meta": b"notes", "train": b"more notes", "batches.meta": b"", "cat/test": b"text"}
    dataset = store.ingest(build.zip(notes | build.two_classes()), "pets").dataset
    assert dataset.source == "folders"
    assert dataset.splits == {"all": 3}


def test_an_image_without_suffix_may_have_such_a_name(store: DatasetStore, build: Any) -> None:
    files = build.two_classes() | {"cat/train": build.png + b"no pickle"}
    assert store.ingest(build.zip(files), "pets").dataset.splits == {"all": 4}


def test_folders_with_such_names_are_folders(store: DatasetStore, build: Any) -> None:
    assert store.ingest(build.tar(build.two_classes("train/", "test/")), "pets").dataset.splits == {
        "train": 3,
        "test": 3,
    }


# What is refused


def batch(pixels: Any = BATCHES["test_batch"][0], classes: Any = BATCHES["test_batch"][1]) -> bytes:
    return pickle.dumps({"data": pixels, "labels": classes}, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test_batch": pickle.dumps([1], 4)}, "no dictionary"),
        ({"test_batch": pickle.dumps({"data": rows(2, 1)}, 4)}, "no labels"),
        ({"test_batch": pickle.dumps({"labels": [1, 2]}, 4)}, "no data"),
        ({"test_batch": batch(rows(6, 1).astype(np.float32))}, "kind that is not read"),
        ({"test_batch": batch(rows(6, 1).astype(np.int64))}, "32 x 32"),
        ({"test_batch": batch(rows(6, 1)[:, :3000])}, "32 x 32"),
        ({"test_batch": batch(rows(6, 1).reshape(6, 3, 1024))}, "32 x 32"),
        ({"test_batch": batch([[1, 2]])}, "no array"),
        ({"test_batch": batch(rows(0, 1), [])}, "empty"),
        ({"test_batch": batch(classes=[0, 1, 2, 3, 0])}, "another number of labels"),
        ({"test_batch": batch(classes=[0, 1, 2, 3, 0, -1])}, "numbers from 0"),
        ({"test_batch": batch(classes=np.array([0, 1, 2, 3, 0, -1]))}, "down to -1"),
        ({"test_batch": batch(classes=[0, 1, 2, 3, 0, 4])}, "up to 4"),
        ({"test_batch": batch(classes=[0, 1, 2, 3, 0, 2**40])}, "numbers from 0"),
        ({"test_batch": batch(classes=["a"] * 6)}, "numbers from 0"),
        ({"test_batch": batch(classes=np.zeros((6, 1), int))}, "another number of labels"),
        ({"test_batch": batch(classes=[0, 1, 2, 2, 0, 1])}, "label 3 .* in test"),
        ({"test_batch": batch()[:-2000]}, "truncated"),
        ({"test_batch": b"\x80\x04cos\nsystem\n."}, "os.system"),
        ({"test_batch": b"\x80\x04" + b"]" * 1_200_000}, "operations"),
        ({"test_batch.bin": binary()["test_batch.bin"]}, "twice"),
        ({"test": hundred()["test"]}, "CIFAR-10 and of CIFAR-100"),
        ({"batches.meta.txt": b"a\nb\nc\nd"}, "names of the classes twice"),
        ({"batches.meta": pickle.dumps({"label_names": "abcd"}, 4)}, "no list label_names"),
        ({"batches.meta": pickle.dumps({"names": NAMES}, 4)}, "no list label_names"),
        ({"batches.meta": pickle.dumps({"label_names": [*NAMES, 7]}, 4)}, "no list label_names"),
        ({"batches.meta": pickle.dumps({"label_names": [*NAMES, "../x"]}, 4)}, "no folder"),
        ({"batches.meta": pickle.dumps({"label_names": NAMES[:3]}, 4)}, "names for 0 to 2"),
        ({"batches.meta": pickle.dumps({"label_names": [*NAMES, "eel"]}, 4)}, "label 4"),
        ({"cat/1.png": b"\x89PNG\r\n\x1a\n"}, "batches of CIFAR .* and images"),
        ({"other/data_batch_1": batch()}, "twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_no_cifar_are_refused(
    store: DatasetStore, tmp_path: Path, change: Files, words: str
) -> None:
    for pack in (tar_gz, zipped):
        files = of_python_3() | change
        if "test_batch.bin" in change or "test" in change:
            files = dict(reversed(files.items()))
        path = pack(tmp_path, files) if pack is zipped else tar_gz(tmp_path, files, "")
        with pytest.raises(InvalidDataset, match=words):
            raise refusal(store, path)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "no images"), (bytes(3072), "records of 3,073"), (bytes(3074), "records of 3,073")],
)
def test_binary_batches_that_are_no_records_are_refused(
    store: DatasetStore, tmp_path: Path, data: bytes, words: str
) -> None:
    assert words in refusal(store, zipped(tmp_path, binary() | {"test_batch.bin": data})).detail


def test_names_without_images_are_no_dataset(store: DatasetStore, tmp_path: Path) -> None:
    files = {"batches.meta": of_python_3()["batches.meta"]}
    assert "no images of them" in refusal(store, zipped(tmp_path, files)).detail


def test_a_list_of_names_of_any_length_is_not_read(store: DatasetStore, tmp_path: Path) -> None:
    files = {"batches.meta.txt": b"a\n" * 100_000}
    with pytest.raises(TooLarge, match="few names"):
        store.ingest(zipped(tmp_path, files), "cifar")


def test_the_limits_hold_for_batches_too(tmp_path: Path) -> None:
    for limits, words in (
        (DatasetLimits(max_images=20), "20 images"),
        (DatasetLimits(max_classes=3), "3 classes"),
        (DatasetLimits(max_unpacked_bytes=50_000), "unpacks"),
    ):
        store = DatasetStore(tmp_path / "limited", limits)
        with pytest.raises(TooLarge, match=words):
            store.ingest(zipped(tmp_path, of_python_3()), "cifar")


# Size


@pytest.mark.slow
def test_a_set_of_full_size_is_taken_in_without_holding_it(
    store: DatasetStore, tmp_path: Path
) -> None:
    """60,000 images; CIFAR-100's file of 154 MB is larger than a single file may be otherwise."""
    for split, count in (("train", 50_000), ("test", 10_000)):
        pixels = np.arange(count * 3072, dtype=np.uint32).astype(np.uint8).reshape(count, 3072)
        pixels[:, :4] = np.arange(count, dtype="<u4").view(np.uint8).reshape(count, 4)
        classes = [python2.number(label) for label in (np.arange(count) % 100).tolist()]
        (tmp_path / split).write_bytes(
            python2.dictionary(fine_labels=python2.listed(classes), data=python2.pixels(pixels))
        )
    meta = pickle.dumps({b"fine_label_names": [f"class {n:02}" for n in range(100)]}, 2)
    with zipfile.ZipFile(tmp_path / "cifar.zip", "w") as archive:
        archive.write(tmp_path / "train", "train")
        archive.write(tmp_path / "test", "test")
        archive.writestr("meta", meta)
    del pixels
    tracemalloc.start()
    begun = time.monotonic()
    try:
        dataset = store.ingest(tmp_path / "cifar.zip", "cifar").dataset
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{time.monotonic() - begun:.1f} s, {peak / 2**20:.0f} MiB")  # noqa: T201
    assert dataset.splits == {"train": 50_000, "test": 10_000}
    assert peak < 100 * 2**20
