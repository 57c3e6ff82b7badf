import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.preprocessing import MAX_SIDE_PIXELS as MODELS_MAX_SIDE
from models.preprocessing import MIN_SIDE_PIXELS as MODELS_MIN_SIDE
from store import pixel_images
from store.archive_members import DatasetLimits
from store.datasets import DatasetStore
from store.errors import InvalidDataset, TooLarge

Arrays = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(tmp_path / "datasets")


def pixels(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def keras(*shape: int) -> Arrays:
    """Six images to train on and three to test with, of three classes."""
    return {
        "x_train": pixels(6, *shape, seed=1),
        "y_train": np.array([0, 1, 2, 2, 1, 0]),
        "x_test": pixels(3, *shape, seed=2),
        "y_test": np.array([2, 1, 0]),
    }


def npz(folder: Path, arrays: Arrays, *, compressed: bool = False) -> Path:
    path = folder / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def members(folder: Path, files: list[tuple[str, bytes]]) -> Path:
    """A zip of files as they are, to which numpy would not agree."""
    path = folder / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def npy(array: NDArray[Any], **options: Any) -> bytes:
    target = io.BytesIO()
    np.save(target, array, **options)
    return target.getvalue()


def decoded(store: DatasetStore, name: str = "d") -> dict[str, tuple[int, NDArray[np.uint8]]]:
    """Labels and pixels by name, decoded by Pillow."""
    return {
        image.name: (image.label, np.asarray(Image.open(io.BytesIO(image.data))))
        for image in store.images(name)
    }


# What is read


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 1), (8, 6, 3), (3, 8, 6), (1, 8, 6)], ids=str)
def test_every_pixel_and_label_of_a_split_file_comes_back(
    store: DatasetStore, tmp_path: Path, shape: tuple[int, ...], compressed: bool
) -> None:
    arrays = keras(*shape)
    dataset = store.ingest(npz(tmp_path, arrays, compressed=compressed), "d").dataset
    assert (dataset.source, dataset.root) == ("npz", None)
    assert dataset.classes == ("0", "1", "2")
    assert dataset.splits == {"train": 6, "test": 3}
    images = decoded(store)
    assert len(images) == 9
    for split in ("train", "test"):
        labels = arrays[f"y_{split}"]
        for number, image in enumerate(arrays[f"x_{split}"]):
            label, seen = images[f"{split}/{labels[number]}/{number:05}.png"]
            assert label == labels[number]
            if len(shape) == 3 and shape[0] in (1, 3):
                image = image.transpose(1, 2, 0)
            np.testing.assert_array_equal(seen, image[..., 0] if image.shape[2:] == (1,) else image)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i4", "<i8", "<u8", ">u2"])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_labels_may_be_integers_of_any_kind(
    store: DatasetStore, tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    labels = np.array([1, 0, 1], dtype=dtype).reshape(shape)
    store.ingest(npz(tmp_path, {"images": pixels(3, 5, 5), "labels": labels}), "d")
    assert [(i.label, i.name) for i in store.images("d")] == [
        (0, "0/00001.png"),
        (1, "1/00000.png"),
        (1, "1/00002.png"),
    ]


@pytest.mark.parametrize("key", ["classes", "label_names"])
def test_names_stand_in_the_order_of_the_labels_not_of_the_alphabet(
    store: DatasetStore, tmp_path: Path, key: str
) -> None:
    arrays = {
        "images": pixels(3, 5, 5),
        "labels": np.array([0, 1, 2]),
        key: np.array(["zebra", "ant", "猫"]),
    }
    dataset = store.ingest(npz(tmp_path, arrays), "d").dataset
    assert dataset.classes == ("zebra", "ant", "猫")
    assert [(i.label, i.name) for i in store.images("d")] == [
        (0, "zebra/00000.png"),
        (1, "ant/00001.png"),
        (2, "猫/00002.png"),
    ]


def test_more_than_ten_classes_stand_in_the_order_of_their_numbers(
    store: DatasetStore, tmp_path: Path
) -> None:
    arrays = {"images": pixels(12, 5, 5), "labels": np.arange(12)}
    dataset = store.ingest(npz(tmp_path, arrays), "d").dataset
    assert dataset.classes == tuple(str(label) for label in range(12))
    assert [i.label for i in store.images("d")] == list(range(12))


def test_labels_may_be_texts(store: DatasetStore, tmp_path: Path) -> None:
    arrays = keras(8, 8) | {
        "y_train": np.array(["owl", "cat", "dog", "dog", "cat", "owl"]),
        "y_test": np.array(["dog", "cat", "owl"]),
    }
    assert store.ingest(npz(tmp_path, arrays), "d").dataset.classes == ("cat", "dog", "owl")
    assert decoded(store)["train/owl/00005.png"][0] == 2
    arrays["classes"] = np.array(["owl", "dog", "cat"])
    assert store.ingest(npz(tmp_path, arrays), "e").dataset.classes == ("owl", "dog", "cat")


def test_images_of_one_array_may_say_their_splits(store: DatasetStore, tmp_path: Path) -> None:
    images = pixels(6, 5, 5)
    arrays = {
        "images": images,
        "labels": np.array([0, 0, 1, 1, 0, 1]),
        "split": np.array(["test", "train", "train", "test", "valid", "validation"]),
    }
    dataset = store.ingest(npz(tmp_path, arrays), "d").dataset
    assert dataset.splits == {"train": 2, "val": 2, "test": 2}
    seen = decoded(store)
    assert list(seen) == [
        f"{split}/{label}/0000{label}.png" for split in dataset.splits for label in (0, 1)
    ]
    np.testing.assert_array_equal(seen["val/1/00001.png"][1], images[5])


def test_the_names_of_medmnist_and_its_column_of_labels_are_known(
    store: DatasetStore, tmp_path: Path
) -> None:
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = pixels(4, 8, 8)
        arrays[f"{split}_labels"] = np.array([[0], [1], [1], [0]], dtype=np.uint8)
    dataset = store.ingest(npz(tmp_path, arrays), "d").dataset
    assert dataset.splits == {"train": 4, "val": 4, "test": 4}


def test_other_arrays_are_passed_over_unread(store: DatasetStore, tmp_path: Path) -> None:
    files = [(f"{name}.npy", npy(array)) for name, array in keras(8, 8).items()]
    files.append(("notes.npy", b"no array at all"))
    assert store.ingest(members(tmp_path, files), "d").dataset.splits == {"train": 6, "test": 3}


def test_equal_pixels_have_equal_digests_however_they_are_packed(
    store: DatasetStore, tmp_path: Path
) -> None:
    arrays = keras(3, 8, 6)
    last = {k: v.transpose(0, 2, 3, 1).copy() if k[0] == "x" else v for k, v in arrays.items()}
    digests = {
        store.ingest(npz(tmp_path, arrays), "a").dataset.digest,
        store.ingest(
            npz(tmp_path, dict(reversed(last.items())), compressed=True), "b"
        ).dataset.digest,
        store.ingest(
            npz(tmp_path, last | {"classes": np.array(["0", "1", "2"])}), "c"
        ).dataset.digest,
    }
    assert len(digests) == 1
    arrays["x_train"][0, 0, 0, 0] ^= 1
    assert store.ingest(npz(tmp_path, arrays), "e").dataset.digest not in digests


def test_classes_in_another_order_are_another_dataset(store: DatasetStore, tmp_path: Path) -> None:
    digests = set()
    for number, (labels, names) in enumerate((((0, 1), "ab"), ((1, 0), "ba"))):
        arrays = {
            "images": pixels(2, 5, 5),
            "labels": np.array(labels),
            "classes": np.array(list(names)),
        }
        digests.add(store.ingest(npz(tmp_path, arrays), f"d{number}").dataset.digest)
    assert len(digests) == 2


def test_a_zip_of_images_that_begins_with_an_array_is_an_image_folder(
    store: DatasetStore, tmp_path: Path, build: Any
) -> None:
    path = members(tmp_path, [("labels.npy", b"x"), *build.two_classes().items()])
    assert store.ingest(path, "d").dataset.source == "folders"


def test_sides_are_those_that_can_be_decoded() -> None:
    assert (pixel_images.MIN_SIDE_PIXELS, pixel_images.MAX_SIDE_PIXELS) == (
        MODELS_MIN_SIDE,
        MODELS_MAX_SIDE,
    )


# What is refused

BAD = pytest.mark.parametrize
OBJECTS = np.empty(6, dtype=object)
OBJECTS[:] = [[0]] * 6


@BAD(
    ("change", "words"),
    [
        ({"x_train": pixels(6, 8, 8).astype(np.float32) / 255}, "floating-point"),
        ({"x_train": np.full((6, 8, 8), np.nan)}, "floating-point"),
        ({"x_train": pixels(6, 8, 8).astype(np.int64)}, "int64, not uint8"),
        ({"x_train": pixels(6, 8, 8) > 3}, "truth values"),
        ({"x_train": pixels(6, 64)}, "6 x 64"),
        ({"x_train": pixels(6, 8, 8, 4)}, "6 x 8 x 8 x 4"),
        ({"x_train": pixels(6, 3, 8, 3)}, "order of channels"),
        ({"x_train": pixels(6, 1, 8, 8, 3)}, "no images"),
        ({"x_train": pixels(6)}, "no images"),
        ({"x_train": pixels(6, 3, 8)}, "too small"),
        ({"x_train": pixels(0, 8, 8), "y_train": np.zeros(0, int)}, "empty"),
        ({"x_train": np.asfortranarray(pixels(6, 8, 8))}, "column by column"),
        ({"y_train": np.array([0, 1, 2, 2, 1])}, "5, but there are 6 images"),
        ({"y_train": np.eye(3, dtype=int)[[0, 1, 2, 2, 1, 0]]}, "6 x 3"),
        ({"y_train": np.array([0.0, 1, 2, 2, 1, 0])}, "floating-point"),
        ({"y_train": np.array([np.nan] * 6)}, "floating-point"),
        ({"y_train": np.array([0, 1, 2, 2, 1, -1])}, "down to -1"),
        ({"y_train": np.array([0, 1, 3, 3, 1, 0])}, "label 2 .* no images"),
        ({"y_train": np.array([1, 1, 2, 2, 1, 1])}, "label 0 .* in train"),
        ({"y_test": np.array([1, 1, 0])}, "label 2 .* in test"),
        ({"y_test": np.array(["a", "b", "c"])}, "numbers and some are texts"),
        ({"y_train": np.array([b"a"] * 6)}, "bytes"),
        ({"y_train": OBJECTS}, "Python objects"),
        ({"classes": OBJECTS}, "Python objects"),
        ({"classes": np.array(["a", "b"])}, "up to 2, but there are names for 0 to 1"),
        ({"classes": np.array(["a", "b", "c", "d"])}, "label 3 .* no images"),
        ({"classes": np.array(["a", "b", "a"])}, "twice"),
        ({"classes": np.array(["a", "b", "c/d"])}, "no folder"),
        ({"classes": np.array(["a", "b", ".."])}, "no folder"),
        ({"classes": np.array(["a", "b", ""])}, "no folder"),
        ({"classes": np.array(["a", "b", "new\nline"])}, "no folder"),
        ({"classes": np.array([["a", "b", "c"]])}, "no list of texts"),
        ({"classes": np.array([1, 2, 3])}, "no list of texts"),
        (
            {"classes": np.array(["a", "b", "c"]), "label_names": np.array(["a", "b", "c"])},
            "both classes and label_names",
        ),
        ({"images": pixels(2, 8, 8)}, "images, but not labels"),
        ({"images": pixels(2, 8, 8), "labels": np.array([0, 1])}, "same thing twice"),
        ({"train_images": pixels(2, 8, 8), "train_labels": np.array([0, 1])}, "same thing twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_arrays_that_are_no_dataset_are_refused(
    store: DatasetStore, tmp_path: Path, change: Arrays, words: str
) -> None:
    with pytest.raises(InvalidDataset, match=words) as caught:
        store.ingest(npz(tmp_path, keras(8, 8) | change), "d")
    assert caught.value.field == "archive"
    assert caught.value.remedy
    assert store.list() == []
    assert [entry.name for entry in (tmp_path / "datasets/.tmp").iterdir()] == [".lock"]


def test_missing_arrays_are_named(store: DatasetStore, tmp_path: Path) -> None:
    for name in keras(8, 8):
        arrays = keras(8, 8)
        del arrays[name]
        with pytest.raises(InvalidDataset, match=f"not {name}"):
            store.ingest(npz(tmp_path, arrays), "d")
    with pytest.raises(InvalidDataset, match="no arrays of images"):
        store.ingest(npz(tmp_path, {"x": pixels(2, 8, 8), "y": np.arange(2)}), "d")


def test_one_class_is_no_dataset(store: DatasetStore, tmp_path: Path) -> None:
    arrays = {"images": pixels(2, 8, 8), "labels": np.zeros(2, dtype=int)}
    with pytest.raises(InvalidDataset, match="one class only"):
        store.ingest(npz(tmp_path, arrays), "d")


@BAD(
    ("split", "words"),
    [
        (np.array(["train", "holdout"]), "holdout"),
        (np.array([0, 1]), "no texts"),
        (np.array(["train"]), "2 images"),
        (np.array(["train", "test"]), "no images in train"),
    ],
)
def test_splits_that_say_nothing_are_refused(
    store: DatasetStore, tmp_path: Path, split: NDArray[Any], words: str
) -> None:
    arrays = {"images": pixels(2, 8, 8), "labels": np.array([0, 1]), "split": split}
    with pytest.raises(InvalidDataset, match=words):
        store.ingest(npz(tmp_path, arrays), "d")


def header(text: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    size = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + size + text + data


SOUND = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4, 4), }\n"


@BAD("version", [b"\x01\x00", b"\x02\x00", b"\x03\x00"])
@BAD("shape", [b"(2, 4, 4)", b"(2L, 4L, 4L)"])
def test_headers_of_every_version_are_read(
    store: DatasetStore, tmp_path: Path, version: bytes, shape: bytes
) -> None:
    text = SOUND.replace(b"(2, 4, 4)", shape)
    files = [("images.npy", header(text, bytes(range(32)), version))]
    files.append(("labels.npy", npy(np.array([0, 1]))))
    assert store.ingest(members(tmp_path, files), "d").dataset.splits == {"all": 2}


@BAD(
    "data",
    [
        b"",
        b"\x93NUM",
        b"\x93NUMPY\x09\x00\x00\x00",
        header(SOUND)[:40],
        header(b"\x80" * 20),
        header(SOUND, b"", b"\x01\x00"),
        header(SOUND, bytes(31)),
        header(SOUND, bytes(33)),
        header(SOUND.replace(b"(2, 4, 4)", b"(2, -4, 4)"), bytes(32)),
        header(SOUND.replace(b"(2, 4, 4)", b"(2, 4, 4) + (1,)"), bytes(32)),
        header(SOUND.replace(b"(2, 4, 4)", b"(99999999999, 4, 4)"), bytes(32)),
        header(SOUND.replace(b"(2, 4, 4)", b"(2147483647, 2147483647, 2147483647)"), bytes(32)),
        header(SOUND.replace(b"(2, 4, 4)", b"(" * 3000), bytes(32)),
        header(SOUND.replace(b"'|u1'", b"[('a', '|u1')]"), bytes(32)),
        header(SOUND.replace(b"'|u1'", b"__import__('os')"), bytes(32)),
        header(SOUND.replace(b"'|u1'", b"'|u1' if 1 else 2"), bytes(32)),
        header(SOUND.replace(b"'|u1'", b"'|V1'"), bytes(32)),
        header(SOUND + b" " * 5000, bytes(32)),
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + SOUND,
    ],
)
def test_headers_that_lie_are_refused(store: DatasetStore, tmp_path: Path, data: bytes) -> None:
    files = [("images.npy", data), ("labels.npy", npy(np.array([0, 1])))]
    with pytest.raises(InvalidDataset) as caught:
        store.ingest(members(tmp_path, files), "d")
    assert caught.value.field == "archive"


def test_texts_that_are_no_characters_are_refused(store: DatasetStore, tmp_path: Path) -> None:
    labels = npy(np.array(["a", "b"]))[:-4] + b"\xff\xff\xff\x7f"
    files = [("images.npy", npy(pixels(2, 8, 8))), ("labels.npy", labels)]
    with pytest.raises(InvalidDataset, match="text"):
        store.ingest(members(tmp_path, files), "d")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_there_twice_is_refused(store: DatasetStore, tmp_path: Path) -> None:
    files = [(f"{name}.npy", npy(array)) for name, array in keras(8, 8).items()]
    with pytest.raises(InvalidDataset, match="twice"):
        store.ingest(members(tmp_path, [*files, files[0]]), "d")


@BAD(
    ("limits", "words"),
    [
        (DatasetLimits(max_images=8), "8 images"),
        (DatasetLimits(max_classes=2), "2 classes"),
        (DatasetLimits(max_unpacked_bytes=1000), "unpacks to more"),
        (DatasetLimits(max_members=3), "3 entries"),
    ],
)
def test_arrays_over_a_limit_are_too_large(
    tmp_path: Path, limits: DatasetLimits, words: str
) -> None:
    store = DatasetStore(tmp_path / "limited", limits)
    with pytest.raises(TooLarge, match=words) as caught:
        store.ingest(npz(tmp_path, keras(16, 16, 3)), "d")
    assert caught.value.field == "archive"


def test_an_array_that_unpacks_a_thousandfold_is_refused_by_the_ratio(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path / "limited", DatasetLimits(ratio_free_bytes=100_000))
    arrays = {"images": np.zeros((600, 32, 32, 3), np.uint8), "labels": np.arange(600) % 2}
    with pytest.raises(TooLarge, match="times its size"):
        store.ingest(npz(tmp_path, arrays, compressed=True), "d")


def test_too_many_arrays_are_refused(store: DatasetStore, tmp_path: Path) -> None:
    files = [(f"{name}.npy", npy(array)) for name, array in keras(8, 8).items()]
    files += [(f"more{number}.npy", b"") for number in range(100)]
    with pytest.raises(TooLarge, match="64 arrays"):
        store.ingest(members(tmp_path, files), "d")


def test_a_damaged_array_is_refused(store: DatasetStore, tmp_path: Path) -> None:
    path = npz(tmp_path, keras(64, 64, 3), compressed=True)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InvalidDataset, match="damaged"):
        store.ingest(path, "d")
