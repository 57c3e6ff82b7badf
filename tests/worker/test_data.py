import errno
import io
import os
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.preprocessing import InputSpec, normalise
from store.datasets import DatasetStore
from store.errors import InvalidDataset, NotFound, StorageExhausted
from worker import image_cache, streamed_pixels
from worker.data import ImageSet, calibration_images, split_dataset, training_images
from worker.image_cache import DecodedDataset, decode_dataset
from worker.training.folder_images import FolderImages
from worker.training.images import CachedImages

SPEC = InputSpec(3, 8, 6, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
GREY = InputSpec(1, 4, 4, (0.0,), (1.0,))


def pixels(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels(seed)).save(target, "PNG")
    return target.getvalue()


class Nothing:
    """A progress callback that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, str]] = []

    def __call__(self, fraction: float, message: str, details: object = None) -> None:
        self.calls.append((fraction, message))


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(tmp_path / "datasets")


def register(store: DatasetStore, folder: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(folder / "pets.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    store.ingest(folder / "pets.zip", "pets")


def pets(*prefixes: str, per_class: int = 3) -> dict[str, bytes]:
    """Pictures whose seed is their place in the sorted list."""
    names = [
        f"{p}{c}/{n:03}.png" for p in prefixes for c in ("cat", "dog") for n in range(per_class)
    ]
    return {name: png(seed) for seed, name in enumerate(names)}


def in_memory(per_class: int = 20, classes: int = 3, **splits: int) -> DecodedDataset:
    """A dataset of 1 x 1 images, with ``splits`` images per class, or unsplit."""
    splits = splits or {"all": per_class}
    labels = np.concatenate([np.repeat(np.arange(classes), n) for n in splits.values()])
    rows: dict[str, range] = {}
    start = 0
    for name, count in splits.items():
        rows[name] = range(start, start + count * classes)
        start += count * classes
    return DecodedDataset(
        images=np.arange(start, dtype=np.uint8).reshape(-1, 1, 1, 1),
        labels=labels.astype(np.int64),
        names=tuple(f"{row}.png" for row in range(start)),
        classes=tuple("abcdefg"[:classes]),
        splits=rows,
    )


# Decoding


def test_decoded_images_have_the_pixels_labels_and_names_of_the_dataset(
    store: DatasetStore, tmp_path: Path
) -> None:
    register(store, tmp_path, pets("train/", "test/"))
    decoded = decode_dataset(store, "pets", SPEC, tmp_path / "cache", Nothing())
    assert decoded.images.shape == (12, 8, 6, 3)
    assert decoded.images.dtype == np.uint8
    for row in range(12):
        np.testing.assert_array_equal(decoded.images[row], pixels(row))
    assert decoded.labels.tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert decoded.names == tuple(pets("train/", "test/"))
    assert decoded.classes == ("cat", "dog")
    assert decoded.splits == {"train": range(6), "test": range(6, 12)}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_many_chunks_and_threads_keep_the_order(
    store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(image_cache, "_CHUNK_IMAGES", 3)
    register(store, tmp_path, pets("", per_class=50))
    decoded = decode_dataset(store, "pets", SPEC, tmp_path / "cache", Nothing(), threads)
    for row in range(100):
        np.testing.assert_array_equal(decoded.images[row], pixels(row))


def test_a_dataset_is_decoded_once_per_size(
    store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(store, tmp_path, pets(""))
    cache = tmp_path / "cache"
    first = decode_dataset(store, "pets", SPEC, cache, Nothing())
    other = decode_dataset(store, "pets", GREY, cache, Nothing())
    assert other.images.shape == (6, 4, 4, 1)

    def decoded_again(data: bytes, spec: InputSpec) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(streamed_pixels, "decode_image", decoded_again)
    again = decode_dataset(store, "pets", SPEC, cache, Nothing())
    np.testing.assert_array_equal(again.images, first.images)
    assert (again.names, again.splits) == (first.names, first.splits)


def test_progress_rises_from_nothing_to_all(store: DatasetStore, tmp_path: Path) -> None:
    register(store, tmp_path, pets(""))
    for _ in ("decoded", "from the cache"):
        progress = Nothing()
        decode_dataset(store, "pets", SPEC, tmp_path / "cache", progress)
        fractions = [fraction for fraction, _ in progress.calls]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        assert all(message for _, message in progress.calls)


@pytest.mark.parametrize("damage", [b"\x89PNG\r\n\x1a\n", png(1)[:-30]])
def test_an_undecodable_image_is_named_and_leaves_nothing(
    store: DatasetStore, tmp_path: Path, damage: bytes
) -> None:
    register(store, tmp_path, pets("") | {"dog/bad.png": damage})
    cache = tmp_path / "cache"
    with pytest.raises(InvalidDataset) as caught:
        decode_dataset(store, "pets", SPEC, cache, Nothing())
    assert '"dog/bad.png"' in caught.value.detail
    assert caught.value.field == "spec.dataset"
    assert caught.value.remedy
    assert [p for p in cache.rglob("*") if p.name not in (".tmp", ".lock")] == []


def test_an_unknown_dataset_is_not_found(store: DatasetStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        decode_dataset(store, "pets", SPEC, tmp_path / "cache", Nothing())


def test_a_full_disk_is_named_and_leaves_nothing(
    store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    register(store, tmp_path, pets(""))
    cache = tmp_path / "cache"
    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(StorageExhausted):
        decode_dataset(store, "pets", SPEC, cache, Nothing())
    assert [p for p in cache.rglob("*") if p.name not in (".tmp", ".lock")] == []


def test_the_slower_of_two_takes_what_the_faster_made(
    store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(store, tmp_path, pets(""))
    cache = tmp_path / "cache"
    slower = streamed_pixels.decode_image
    overtaken = False

    def overtake(data: bytes, spec: InputSpec) -> np.ndarray[Any, np.dtype[np.uint8]]:
        nonlocal overtaken
        if not overtaken:
            overtaken = True
            decode_dataset(store, "pets", SPEC, cache, Nothing())
        return slower(data, spec)

    monkeypatch.setattr(streamed_pixels, "decode_image", overtake)
    decoded = decode_dataset(store, "pets", SPEC, cache, Nothing())
    np.testing.assert_array_equal(decoded.images[5], pixels(5))
    assert len([p for p in cache.iterdir() if p.name != ".tmp"]) == 1


# Splits


def rows(part: ImageSet) -> set[int]:
    return set(part.rows.tolist())


def per_class(part: ImageSet) -> dict[int, int]:
    return dict(Counter(part.labels.tolist()))


def test_without_splits_each_class_is_divided_alike() -> None:
    splits = split_dataset(in_memory(per_class=100), seed=0)
    assert per_class(splits.train) == {0: 70, 1: 70, 2: 70}
    assert per_class(splits.val) == {0: 15, 1: 15, 2: 15}
    assert per_class(splits.test) == {0: 15, 1: 15, 2: 15}


@pytest.mark.parametrize(
    "given",
    [
        {"all": 20},
        {"train": 20},
        {"train": 20, "test": 5},
        {"train": 20, "val": 5},
        {"train": 20, "val": 5, "test": 5},
        {"all": 3},
        {"train": 2, "test": 1},
    ],
)
def test_no_image_is_in_two_splits_and_none_is_lost(given: dict[str, int]) -> None:
    dataset = in_memory(**given)
    splits = split_dataset(dataset, seed=1)
    parts = [rows(splits.train), rows(splits.val), rows(splits.test)]
    assert set.union(*parts) == set(range(len(dataset.labels)))
    assert sum(map(len, parts)) == len(dataset.labels)
    for part in (splits.train, splits.val, splits.test):
        assert set(per_class(part)) == {0, 1, 2}


def test_given_splits_are_kept_whatever_the_seed() -> None:
    dataset = in_memory(train=5, val=2, test=3)
    splits = split_dataset(dataset, seed=9)
    assert splits.train.rows.tolist() == list(range(15))
    assert splits.val.rows.tolist() == list(range(15, 21))
    assert splits.test.rows.tolist() == list(range(21, 30))


def test_without_val_a_tenth_of_train_is_val_and_test_stays() -> None:
    dataset = in_memory(train=50, test=10)
    splits = split_dataset(dataset, seed=0)
    assert per_class(splits.val) == {0: 5, 1: 5, 2: 5}
    assert rows(splits.val) < set(dataset.splits["train"])
    assert splits.test.rows.tolist() == list(dataset.splits["test"])


@pytest.mark.parametrize("given", [{"train": 50, "test": 10}, {"per_class": 40}], ids=repr)
def test_train_and_val_are_all_but_test(given: dict[str, int]) -> None:
    splits = split_dataset(in_memory(**given), seed=3)
    both = splits.train_and_val
    assert both.rows.tolist() == sorted(rows(splits.train) | rows(splits.val))
    assert not rows(both) & rows(splits.test)


def test_without_test_the_given_val_is_reported() -> None:
    dataset = in_memory(train=50, val=10)
    splits = split_dataset(dataset, seed=0)
    assert splits.test.rows.tolist() == list(dataset.splits["val"])
    assert per_class(splits.val) == {0: 5, 1: 5, 2: 5}


def test_a_seed_fixes_the_splits_and_another_changes_them() -> None:
    dataset = in_memory(per_class=40)
    one, same, other = (split_dataset(dataset, seed) for seed in (0, 0, 1))
    assert one.test.rows.tolist() == same.test.rows.tolist()
    assert one.train.rows.tolist() == same.train.rows.tolist()
    assert rows(one.test) != rows(other.test)
    assert rows(one.val) != rows(other.val)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"all": 2}, '"a" has 2 images'),
        ({"train": 1, "test": 5}, '"a" has 1 images'),
        ({"test": 5}, "test, but no train"),
        ({"val": 5}, "val, but no train"),
        ({"val": 5, "test": 5}, "val and test, but no train"),
    ],
)
def test_a_dataset_too_small_to_divide_is_refused(given: dict[str, int], words: str) -> None:
    with pytest.raises(InvalidDataset) as caught:
        split_dataset(in_memory(**given), seed=0)
    assert words in caught.value.detail
    assert caught.value.field == "spec.dataset"
    assert caught.value.remedy


# Calibration images and batches


def test_calibration_images_are_a_seeded_choice_from_train() -> None:
    train = split_dataset(in_memory(per_class=100), seed=0).train
    chosen, message = calibration_images(train, seed=3, count=50)
    assert len(chosen) == len(rows(chosen)) == 50
    assert rows(chosen) < rows(train)
    assert message == "50 of 210 training images"
    again, _ = calibration_images(train, seed=3, count=50)
    assert again.rows.tolist() == chosen.rows.tolist()
    other, _ = calibration_images(train, seed=4, count=50)
    assert rows(other) != rows(chosen)
    # In random order: classes must not come one after the other.
    assert chosen.labels.tolist() != sorted(chosen.labels.tolist())


def test_all_images_calibrate_where_there_are_fewer_than_asked_for() -> None:
    train = split_dataset(in_memory(per_class=10), seed=0).train
    chosen, message = calibration_images(train, seed=0, count=500)
    assert rows(chosen) == rows(train)
    assert message == f"all {len(train)} training images, fewer than the 500 asked for"


def test_batches_are_the_normalised_images_in_order(store: DatasetStore, tmp_path: Path) -> None:
    register(store, tmp_path, pets(""))
    decoded = decode_dataset(store, "pets", SPEC, tmp_path / "cache", Nothing())
    part = ImageSet(decoded, np.array([4, 0, 5, 2, 1]))
    batches = list(part.batches(SPEC, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    expected = normalise(np.stack([pixels(row) for row in part.rows]), SPEC)
    torch.testing.assert_close(torch.cat(batches), expected, rtol=0, atol=0)
    assert batches[0].dtype == torch.float32
    assert part.names == ("dog/001.png", "cat/000.png", "dog/002.png", "cat/002.png", "cat/001.png")
    assert part.labels.tolist() == [1, 0, 1, 0, 0]


# Datasets too large to be kept decoded


def test_a_dataset_over_the_bound_is_decoded_when_read_and_leaves_nothing(
    store: DatasetStore, tmp_path: Path
) -> None:
    register(store, tmp_path, pets("train/", "test/"))
    cache, bound = tmp_path / "cache", 12 * 8 * 6 * 3
    progress = Nothing()
    streamed = decode_dataset(store, "pets", SPEC, cache, progress, max_cache_bytes=bound - 1)
    assert not cache.exists()
    assert [fraction for fraction, _ in progress.calls] == [0.0, 1.0]
    cached = decode_dataset(store, "pets", SPEC, cache, Nothing(), max_cache_bytes=bound)
    assert cache.exists()
    rows = np.array([7, 0, 11, 3, 3, 8])
    np.testing.assert_array_equal(streamed.images[rows], cached.images[rows])
    assert streamed.images[rows[:0]].shape == (0, 8, 6, 3)
    for field in ("names", "classes", "splits"):
        assert getattr(streamed, field) == getattr(cached, field)
    np.testing.assert_array_equal(streamed.labels, cached.labels)


def test_a_damaged_image_of_a_streamed_dataset_is_named_when_it_is_read(
    store: DatasetStore, tmp_path: Path
) -> None:
    register(store, tmp_path, pets("") | {"dog/bad.png": png(1)[:-30]})
    streamed = decode_dataset(store, "pets", SPEC, tmp_path, Nothing(), max_cache_bytes=0)
    bad = streamed.names.index("dog/bad.png")
    assert streamed.images[np.array([0, 1])].shape == (2, 8, 6, 3)
    with pytest.raises(InvalidDataset, match=r'"dog/bad\.png"'):
        streamed.images[np.array([0, bad])]


def test_another_short_side_is_another_copy(store: DatasetStore, tmp_path: Path) -> None:
    register(store, tmp_path, pets(""))
    cache = tmp_path / "cache"
    decode_dataset(store, "pets", SPEC, cache, Nothing())
    resized = decode_dataset(store, "pets", replace(SPEC, resize=12), cache, Nothing())
    plain = decode_dataset(store, "pets", SPEC, cache, Nothing())
    assert not np.array_equal(resized.images[:], plain.images[:])


def test_random_crops_come_from_the_files_of_a_cached_dataset_too(
    store: DatasetStore, tmp_path: Path
) -> None:
    register(store, tmp_path, pets("", per_class=20))
    decoded = decode_dataset(store, "pets", SPEC, tmp_path / "cache", Nothing())
    train = split_dataset(decoded, seed=0).train
    images = training_images(train, SPEC, "random_resized_crop", seed=0, processes=1)
    assert isinstance(images, FolderImages)
    labels = torch.cat([labels for _, labels in images.epoch(0, 4)])
    assert len(labels) == len(train)
    assert sorted(labels.tolist()) == sorted(train.labels.tolist())
    assert isinstance(training_images(train, SPEC, "none", seed=0), CachedImages)
    with pytest.raises(ValueError, match="files"):
        training_images(
            split_dataset(in_memory(), seed=0).train, SPEC, "random_resized_crop", seed=0
        )
