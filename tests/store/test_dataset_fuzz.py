"""Any bytes are a dataset or a `BitpressError` that says why not; never another exception."""

import io
import pickle
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.archive_members import DatasetLimits
from store.datasets import DatasetStore
from store.errors import BitpressError, InvalidDataset, TooLarge

LIMITS = DatasetLimits(
    max_unpacked_bytes=4_000_000,
    max_ratio=100,
    ratio_free_bytes=1_000_000,
    max_members=100,
    max_images=200,
    max_classes=50,
    max_member_bytes=1_000_000,
)
MOST_MEMORY = 60_000_000
ROWS = np.random.default_rng(3).integers(0, 256, (4, 3072), dtype=np.uint8)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def zip_of(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return target.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def npy(array: Any) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


CIFAR = {
    "data_batch_1": pickle.dumps({"data": ROWS, "labels": [0, 1, 1, 0]}, 2),
    "batches.meta": pickle.dumps({"label_names": ["cat", "dog"]}, 4),
}
BINARY = {
    "train.bin": b"".join(b"\x00" + bytes([n % 2]) + row.tobytes() for n, row in enumerate(ROWS)),
    "fine_label_names.txt": b"cat\ndog\n",
}
ARRAYS = {
    "images.npy": npy(np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)),
    "labels.npy": npy(np.array(["cat", "dog", "cat", "dog"])),
    "split.npy": npy(np.array(["train", "train", "test", "test"])),
    "classes.npy": npy(np.array(["dog", "cat"])),
}
FOLDERS = {"top/cat/1.png": PNG, "top/dog/1.png": PNG + b"2", "top/notes.txt": b"notes"}
SOUND = {
    "cifar in a tar": tar_of(CIFAR),
    "cifar in a zip": zip_of(CIFAR),
    "binary in a tar": tar_of(BINARY),
    "npz": zip_of(ARRAYS),
    "compressed npz": zip_of(ARRAYS, zipfile.ZIP_DEFLATED),
    "folders in a tar": tar_of(FOLDERS),
    "folders in a zip": zip_of(FOLDERS),
}


def ingest(root: Path, data: bytes) -> BitpressError | None:
    """Take ``data`` in and delete it again; return the refusal, None where it was a dataset."""
    store = DatasetStore(root / "datasets", LIMITS)
    archive = root / "archive"
    archive.write_bytes(data)
    tracemalloc.start()
    try:
        dataset = store.ingest(archive, "d").dataset
    except BitpressError as error:
        assert isinstance(error, InvalidDataset | TooLarge)
        assert error.field == "archive"
        assert error.detail and error.remedy
        assert str(root) not in error.detail
        return error
    else:
        assert len(dataset.classes) >= 2
        assert sum(dataset.splits.values()) == len(list(store.images("d")))
        store.delete("d", lambda: ())
        return None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MOST_MEMORY
        left = {path.name for path in (root / "datasets").rglob("*")}
        assert left <= {".tmp", ".lock"}


@pytest.mark.parametrize("form", SOUND)
def test_the_sound_forms_are_datasets(root: Path, form: str) -> None:
    assert ingest(root, SOUND[form]) is None


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(max_size=400), magic=st.sampled_from([b"", b"PK\x03\x04", b"\x1f\x8b", b"BZh9"])
)
def test_any_bytes_are_refused_or_taken(root: Path, data: bytes, magic: bytes) -> None:
    ingest(root, magic + data)


@pytest.mark.slow
@pytest.mark.parametrize("form", SOUND)
def test_a_damaged_archive_is_refused_or_taken(root: Path, form: str) -> None:
    sound = SOUND[form]

    @settings(max_examples=150, deadline=None)
    @given(
        changes=st.lists(
            st.tuples(st.integers(0, len(sound) - 1), st.integers(0, 255)), min_size=1, max_size=6
        ),
        cut=st.none() | st.integers(0, len(sound)),
    )
    def damaged(changes: list[tuple[int, int]], cut: int | None) -> None:
        data = bytearray(sound)
        for place, value in changes:
            data[place] = value
        ingest(root, bytes(data[:cut]))

    damaged()


MEMBERS = [(files, name) for files in (CIFAR, BINARY, ARRAYS) for name in files]


@pytest.mark.slow
@pytest.mark.parametrize(("files", "name"), MEMBERS, ids=[name for _, name in MEMBERS])
def test_a_damaged_member_is_refused_or_taken(
    root: Path, files: dict[str, bytes], name: str
) -> None:
    """As above, with checksums that are right: the damage reaches the reader of the member."""
    sound = files[name]
    head = min(len(sound), 400)

    @settings(max_examples=150, deadline=None)
    @given(
        changes=st.lists(
            st.tuples(st.integers(0, head - 1), st.integers(0, 255)), min_size=0, max_size=4
        ),
        cut=st.none() | st.integers(0, len(sound)),
        more=st.binary(max_size=8),
    )
    def damaged(changes: list[tuple[int, int]], cut: int | None, more: bytes) -> None:
        data = bytearray(sound)
        for place, value in changes:
            data[place] = value
        ingest(root, zip_of({**files, name: bytes(data[:cut]) + more}))

    damaged()


SHAPES = st.lists(st.integers(0, 9), min_size=0, max_size=5).map(tuple)
DTYPES = st.sampled_from(["u1", "i1", "<i8", ">u4", "f4", "?", "U3", "S2", "c8", "M8[s]"])


@settings(max_examples=150, deadline=None)
@given(
    shapes=st.tuples(SHAPES, SHAPES),
    dtypes=st.tuples(DTYPES, DTYPES),
    seed=st.integers(0, 2**32 - 1),
    names=st.sampled_from([("images", "labels"), ("x_train", "y_train"), ("x", "labels")]),
)
def test_arrays_of_any_shape_and_kind_are_refused_or_taken(
    root: Path,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    dtypes: tuple[str, str],
    seed: int,
    names: tuple[str, str],
) -> None:
    random = np.random.default_rng(seed)
    files = {}
    for name, shape, dtype in zip(names, shapes, dtypes, strict=True):
        kind = np.dtype(dtype)
        content = random.bytes(int(np.prod(shape, dtype=np.int64)) * kind.itemsize)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header,
            {"descr": kind.str, "fortran_order": False, "shape": shape},
        )
        files[f"{name}.npy"] = header.getvalue() + content
    ingest(root, zip_of(files))
