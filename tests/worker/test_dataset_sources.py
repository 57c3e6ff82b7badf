"""Whatever a dataset was made from, the worker trains on its very pixels."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.preprocessing import InputSpec
from store.dataset_cache import remove_orphans
from store.datasets import DatasetStore
from store.errors import InvalidDataset
from worker import image_cache
from worker.data import split_dataset
from worker.image_cache import decode_dataset
from worker.training.folder_images import FolderImages

SPEC = InputSpec(3, 8, 6, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
PIXELS = np.random.default_rng(5).integers(0, 256, (24, 8, 6, 3), dtype=np.uint8)
LABELS = np.arange(24) % 3


def silent(_fraction: float, _message: str, _details: Any = None) -> None:
    """A progress callback that nobody listens to."""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        file = root / f"{label}/{number:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return root


@pytest.fixture
def store(tmp_path: Path, pictures: Path) -> DatasetStore:
    store = DatasetStore(tmp_path / "datasets", roots={"pictures": pictures})
    np.savez(tmp_path / "data.npz", images=PIXELS, labels=LABELS)
    store.ingest(tmp_path / "data.npz", "npz")
    store.register_root("root", "pictures")
    return store


@pytest.mark.parametrize("name", ["npz", "root"])
@pytest.mark.parametrize("max_cache_bytes", [None, 0])
def test_the_worker_gets_the_pixels_and_labels_that_were_sent(
    store: DatasetStore, tmp_path: Path, name: str, max_cache_bytes: int | None
) -> None:
    decoded = decode_dataset(
        store, name, SPEC, tmp_path / "cache", silent, 2, max_cache_bytes=max_cache_bytes
    )
    order = np.argsort(LABELS, kind="stable")
    np.testing.assert_array_equal(decoded.images[np.arange(24)], PIXELS[order])
    assert decoded.labels.tolist() == LABELS[order].tolist()
    assert decoded.classes == ("0", "1", "2")
    assert decoded.names == tuple(f"{LABELS[row]}/{row:05}.png" for row in order)
    assert len(split_dataset(decoded, 0).test) == 3


@pytest.mark.parametrize("max_cache_bytes", [None, 0])
def test_an_image_of_a_root_that_has_changed_fails_by_name(
    store: DatasetStore, pictures: Path, tmp_path: Path, max_cache_bytes: int | None
) -> None:
    (pictures / "1/00001.png").write_bytes((pictures / "1/00004.png").read_bytes())
    with pytest.raises(InvalidDataset, match=r'"1/00001.png" in the root pictures') as caught:
        decoded = decode_dataset(
            store, "root", SPEC, tmp_path / "cache", silent, 1, max_cache_bytes=max_cache_bytes
        )
        decoded.images[np.arange(24)]
    assert str(pictures) not in str(caught.value.problem())
    assert caught.value.field == "spec.dataset"


def test_processes_that_crop_images_of_a_root_name_one_that_is_gone(
    store: DatasetStore, pictures: Path
) -> None:
    images = FolderImages(
        store.stored_images("root"), LABELS[np.argsort(LABELS)], SPEC, seed=0, processes=2
    )
    assert sum(len(labels) for _, labels in images.epoch(1, 8)) == 24
    os.unlink(pictures / "2/00002.png")
    with pytest.raises(InvalidDataset, match=r'"2/00002.png" in the root pictures is gone'):
        list(images.epoch(2, 8))


def test_a_cache_entry_that_vanishes_is_made_again(
    store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dataset is deleted, and registered anew, while another process sweeps the cache."""
    cache = tmp_path / "cache"
    decode_dataset(store, "npz", SPEC, cache, silent)
    load = np.load
    swept = []

    def sweep_first(*arguments: Any, **options: Any) -> Any:
        if not swept and str(arguments[0]).startswith(str(cache)):
            swept.append(remove_orphans(cache, DatasetStore(tmp_path / "other")))
        return load(*arguments, **options)

    monkeypatch.setattr(image_cache.np, "load", sweep_first)
    decoded = decode_dataset(store, "npz", SPEC, cache, silent)
    assert swept == [1]
    assert decoded.images.shape == (24, 8, 6, 3)


def test_who_trains_goes_on_where_the_dataset_and_its_copy_are_removed(
    store: DatasetStore, tmp_path: Path
) -> None:
    decoded = decode_dataset(store, "npz", SPEC, tmp_path / "cache", silent)
    expected = np.array(decoded.images)
    store.delete("npz", lambda: ())
    assert remove_orphans(tmp_path / "cache", store) == 1
    np.testing.assert_array_equal(decoded.images, expected)
    assert decoded.encoded is not None
    assert decoded.encoded.read(0).startswith(b"\x89PNG")
    shutil.rmtree(tmp_path / "datasets")
