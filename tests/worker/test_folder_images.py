"""Training images decoded from their files by processes, and that nothing of these stays behind."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from models.preprocessing import InputSpec, normalise
from store.errors import InvalidDataset, JobCrashed
from worker.data import ImageSet, in_memory, split_dataset, training_images
from worker.evaluation import accuracy, predict_logits
from worker.image_folder import open_image_folder
from worker.streamed_pixels import StreamedPixels
from worker.training.encoded_images import EncodedImages
from worker.training.folder_images import BATCHES_AHEAD, FolderImages
from worker.training.images import CachedImages
from worker.training.random_crop import decode_random_crop

SPEC = InputSpec(3, 16, 16, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), resize=20)
REPOSITORY = Path(__file__).parents[2]


def photo(seed: int, colour: tuple[int, int, int] = (128, 128, 128)) -> bytes:
    """A JPEG file of a size of its own, speckled about ``colour``."""
    random = np.random.default_rng(seed)
    height, width = random.integers(30, 60, 2)
    pixels = np.asarray(colour) + random.integers(-60, 60, (height, width, 3))
    target = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(target, "JPEG")
    return target.getvalue()


class InMemory:
    """Encoded images in a list; counts what is read, in all processes."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files
        self.reads = multiprocessing.get_context("fork").Value("i", 0)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, row: int) -> str:
        return f"n{row}.jpg"

    def read(self, row: int) -> bytes:
        with self.reads.get_lock():
            self.reads.value += 1
        return self.files[row]


@pytest.fixture(scope="module")
def files() -> InMemory:
    return InMemory([photo(seed) for seed in range(43)])


LABELS = np.arange(43) % 7


def images_of(files: EncodedImages, processes: int = 1, seed: int = 5) -> FolderImages:
    return FolderImages(files, LABELS, SPEC, seed=seed, processes=processes)


def joined(batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs, labels = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def children() -> set[int]:
    listing = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(pid) for entry in listing for pid in entry.read_text().split()}


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


# What an epoch holds


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_an_epoch_is_seeded_crops_in_a_seeded_order_however_many_decode(
    files: InMemory, processes: int
) -> None:
    rows = np.random.default_rng((5, 1, 3)).permutation(43)[:40]
    crops = [
        decode_random_crop(files.files[row], SPEC, np.random.default_rng((5, 2, 3, row)))
        for row in rows.tolist()
    ]
    inputs, labels = joined(images_of(files, processes).epoch(3, 10))
    assert torch.equal(inputs, normalise(np.stack(crops), SPEC))
    assert labels.tolist() == LABELS[rows].tolist()
    assert inputs.dtype == torch.float32 and labels.dtype == torch.int64


def test_the_order_is_that_of_cached_images(files: InMemory) -> None:
    cached = CachedImages(np.zeros((43, 16, 16, 3), np.uint8), np.arange(43), SPEC, seed=5)
    streamed = FolderImages(files, np.arange(43), SPEC, seed=5, processes=2)
    for epoch in (0, 7):
        expected = [labels.tolist() for _, labels in cached.epoch(epoch, 8)]
        assert [labels.tolist() for _, labels in streamed.epoch(epoch, 8)] == expected


def test_epochs_and_seeds_differ_and_each_can_be_had_again(files: InMemory) -> None:
    images = images_of(files)
    first = joined(images.epoch(0, 40))
    again = joined(images.epoch(0, 40))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], joined(images.epoch(1, 40))[0])
    assert not torch.equal(first[0], joined(images_of(files, seed=6).epoch(0, 40))[0])


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_divide_every_batch_between_them(files: InMemory, world: int) -> None:
    whole = list(images_of(files, 2).epoch(2, 12))
    ranks = [
        list(images_of(files, 1 + rank).epoch(2, 12, rank=rank, world=world))
        for rank in range(world)
    ]
    assert len(whole) == 3
    for (inputs, labels), *parts in zip(whole, *ranks, strict=True):
        assert [len(part) for part, _ in parts] == [12 // world] * world
        assert torch.equal(torch.cat([part for part, _ in parts]), inputs)
        assert torch.equal(torch.cat([part for _, part in parts]), labels)


def test_only_whole_batches_are_given(files: InMemory) -> None:
    images = images_of(files, 2)
    assert len(images) == 43
    assert [len(labels) for _, labels in images.epoch(0, 20)] == [20, 20]
    assert list(images.epoch(0, 44)) == []


def test_rows_choose_the_images(files: InMemory) -> None:
    chosen = np.array([3, 9, 11, 40])
    images = FolderImages(files, np.arange(43), SPEC, seed=0, rows=chosen, processes=1)
    _, labels = joined(images.epoch(0, 2))
    assert len(images) == 4
    assert sorted(labels.tolist()) == chosen.tolist()


def test_what_does_not_fit_together_is_an_error(files: InMemory) -> None:
    with pytest.raises(ValueError, match="labels"):
        FolderImages(files, np.arange(3), SPEC, seed=0)
    with pytest.raises(ValueError, match="process"):
        FolderImages(files, LABELS, SPEC, seed=0, processes=0)
    with pytest.raises(ValueError, match="divided"):
        next(images_of(files).epoch(0, 10, world=3))


def test_no_more_is_decoded_ahead_than_fits_the_memory(
    files: InMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_out: list[int] = []
    submit = ProcessPoolExecutor.submit

    def counted(executor: ProcessPoolExecutor, *arguments: Any) -> Any:
        if isinstance(arguments[-1], np.ndarray):
            handed_out.extend(arguments[-1].tolist())
        return submit(executor, *arguments)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", counted)
    batches = images_of(files, 2).epoch(0, 4)
    for taken in (1, 2, 3):
        next(batches)
        assert len(set(handed_out)) == len(handed_out) == 4 * (taken + BATCHES_AHEAD)
    batches.close()


# Faults, and what is left behind


def test_a_damaged_image_is_named_and_ends_the_processes(files: InMemory) -> None:
    damaged = InMemory([*files.files[:17], files.files[17][:300], *files.files[18:]])
    with pytest.raises(InvalidDataset) as caught:
        list(images_of(damaged, 2).epoch(0, 43))
    assert '"n17.jpg"' in caught.value.detail
    assert caught.value.remedy
    assert children() == set()


def test_a_closed_or_broken_off_epoch_ends_its_processes(files: InMemory) -> None:
    batches = images_of(files, 2).epoch(0, 4)
    next(batches)
    assert len(children()) == 2
    batches.close()
    assert children() == set()

    def train() -> None:
        for _ in images_of(files, 2).epoch(0, 4):
            assert children()
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        train()
    assert children() == set()


def test_a_killed_process_is_a_named_crash(files: InMemory) -> None:
    batches = images_of(files, 2).epoch(0, 4)
    next(batches)
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(JobCrashed, match="killed"):
        list(batches)
    assert children() == set()


TRAINING = """
import sys
import numpy as np
from models.preprocessing import InputSpec
from worker.training.folder_images import FolderImages

class Slow:
    def __len__(self): return 1000
    def name(self, row): return "x"
    def read(self, row):
        import os, time
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(60)

images = FolderImages(Slow(), np.zeros(1000, np.int64), InputSpec(3, 8, 8, (0,) * 3, (1,) * 3),
                      seed=0, processes=2)
next(images.epoch(0, 10))
"""


def test_the_processes_die_with_a_killed_training(
    is_running: Callable[[int], bool], wait_until: Callable[..., None]
) -> None:
    before = set(os.listdir("/dev/shm"))
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdout is not None
        decoding = {int(training.stdout.readline()) for _ in range(2)}
        assert all(map(is_running, decoding))
        training.kill()
        training.wait()
        wait_until(lambda: not any(map(is_running, decoding)), "the processes' end", 5.0)
    assert set(os.listdir("/dev/shm")) <= before


# A folder of images, from its files to a trained network

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 40, 60)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    seeds = iter(range(1000))
    for split, count in (("train", 24), ("val", 6), ("test", 6)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                (root / split / name / f"{index:03}.JPEG").write_bytes(photo(next(seeds), colour))
    (root / ".DS_Store").write_bytes(b"junk")
    (root / "train" / "README.txt").write_text("not an image")
    return root


def test_a_folder_is_listed_by_split_class_and_name(folder: Path) -> None:
    dataset = open_image_folder(folder, SPEC, threads=2)
    assert dataset.classes == ("blue", "green", "red")
    assert dataset.splits == {
        "train": range(72),
        "val": range(72, 90),
        "test": range(90, 108),
    }
    assert dataset.names[71] == "train/red/023.JPEG" and dataset.names[72] == "val/blue/000.JPEG"
    assert (
        dataset.labels.tolist()
        == [0] * 24 + [1] * 24 + [2] * 24 + ([0] * 6 + [1] * 6 + [2] * 6) * 2
    )
    assert dataset.encoded is not None
    assert dataset.encoded.read(71) == (folder / "train/red/023.JPEG").read_bytes()


def test_a_file_that_is_gone_is_named(folder: Path) -> None:
    dataset = open_image_folder(folder, SPEC)
    gone = folder / "test" / "red" / "005.JPEG"
    content = gone.read_bytes()
    gone.unlink()
    try:
        with pytest.raises(InvalidDataset, match=r'"test/red/005.JPEG".*cannot be read'):
            dataset.images[np.array([3, 107])]
    finally:
        gone.write_bytes(content)


def test_a_network_learns_from_a_folder(folder: Path) -> None:
    dataset = open_image_folder(folder, SPEC, threads=1)
    splits = split_dataset(dataset, seed=0)
    images = training_images(splits.train, SPEC, "random_resized_crop", seed=0, processes=2)
    assert isinstance(images, FolderImages)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(14), nn.Flatten(), nn.Linear(8, 3)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    for epoch in range(4):
        for inputs, labels in images.epoch(epoch, 12):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
    logits = predict_logits(network.eval(), splits.test, SPEC, lambda *_: None, batch_images=5)
    assert accuracy(logits, splits.test.labels) == 1.0


def test_other_augmentations_of_streamed_images_are_those_of_cached_ones(folder: Path) -> None:
    dataset = open_image_folder(folder, SPEC, threads=2)
    train = split_dataset(dataset, seed=0).train
    streamed = training_images(train, SPEC, "flip_and_shift", seed=1)
    pixels = dataset.images[np.arange(len(dataset.labels))]
    cached = CachedImages(pixels, dataset.labels, SPEC, seed=1, rows=train.rows)
    for one, other in zip(streamed.epoch(4, 24), cached.epoch(4, 24), strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_streamed_images_are_decoded_while_the_training_makes_its_step(
    wait_until: Callable[..., None],
) -> None:
    files = InMemory([photo(seed) for seed in range(20)])
    images = CachedImages(StreamedPixels(files, SPEC, threads=2), np.arange(20), SPEC, seed=0)
    batches = images.epoch(0, 5)
    for taken in (1, 2, 3):
        next(batches)
        wait_until(lambda ahead=5 * (taken + 1): files.reads.value >= ahead, "the next batch")
        assert files.reads.value == 5 * (taken + 1)
    batches.close()
    damaged = InMemory([*files.files[:19], b"no image"])
    images = CachedImages(StreamedPixels(damaged, SPEC), np.arange(20), SPEC, seed=0)
    with pytest.raises(InvalidDataset, match=r"n19\.jpg"):
        list(images.epoch(0, 20))


def test_a_set_that_is_read_often_is_decoded_once(folder: Path) -> None:
    dataset = open_image_folder(folder, SPEC)
    part = ImageSet(dataset, np.array([100, 3, 50]))
    held = in_memory(part)
    assert not isinstance(held.dataset.images, StreamedPixels)
    np.testing.assert_array_equal(held.pixels(0, 3), part.pixels(0, 3))
    assert held.labels.tolist() == part.labels.tolist() and held.names == part.names
    assert in_memory(held) is held
