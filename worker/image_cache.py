"""A dataset decoded once: uint8 pixels in one array on the disk, for every later epoch and job.

``<cache>/<digest>-<C>x<H>x<W>/`` holds ``images.npy``, ``labels.npy`` and ``names.json``. It can be
made again at any time, and is never changed: another size, or other images, is another folder.
"""

import errno
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.preprocessing import InputSpec, decode_image
from store.datasets import Dataset, DatasetImage, DatasetStore
from store.durable import sync_file, write_synced
from store.errors import InvalidDataset, InvalidImage
from store.scratch import Scratch

Progress = Callable[[float, str], None]

# Part of every folder's name: raised when decoding changes, so that old pixels are not taken.
_DECODING = 1
_CHUNK_IMAGES = 128
_IMAGES, _LABELS, _NAMES = "images.npy", "labels.npy", "names.json"


@dataclass(frozen=True)
class DecodedDataset:
    """All images of a dataset, sorted by split, class and name.

    ``images`` is uint8 ``(N, H, W, C)``, mapped from the disk and not writable; ``labels`` is
    int64 ``(N,)``; ``splits`` gives the rows of each split that the dataset has.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    splits: dict[str, range]


def decode_dataset(
    store: DatasetStore,
    name: str,
    spec: InputSpec,
    cache: Path,
    progress: Progress,
    threads: int | None = None,
) -> DecodedDataset:
    """Return the dataset decoded to the size and channels of ``spec``, from the cache if there.

    ``progress`` is called with the fraction done and a message, first with 0 and last with 1.
    Several processes may decode one dataset at once; the first to finish is taken.

    Raises:
        NotFound: there is no such dataset.
        InvalidDataset: an image cannot be decoded, which is named.
        StorageExhausted: the disk is full.
    """
    dataset = store.get(name)
    size = f"{spec.channels}x{spec.height}x{spec.width}"
    digest = dataset.digest.removeprefix("sha256:")
    folder = cache / f"{digest[:32]}-{size}-v{_DECODING}"
    if not folder.is_dir():
        # Made here, not in advance: sweeping leftovers is for those who may leave some.
        with Scratch(cache / ".tmp").folder() as work:
            _decode_into(work, dataset, store.images(name), spec, progress, threads)
            _publish(work, folder)
    progress(1.0, f"{len(_rows(dataset)):,} images are decoded")
    names = tuple(json.loads((folder / _NAMES).read_bytes()))
    return DecodedDataset(
        images=np.load(folder / _IMAGES, mmap_mode="r"),
        labels=np.load(folder / _LABELS),
        names=names,
        classes=dataset.classes,
        splits=_split_rows(dataset),
    )


def _rows(dataset: Dataset) -> range:
    return range(sum(dataset.splits.values()))


def _split_rows(dataset: Dataset) -> dict[str, range]:
    rows: dict[str, range] = {}
    start = 0
    for split, count in dataset.splits.items():
        rows[split] = range(start, start + count)
        start += count
    return rows


def _decode_into(
    folder: Path,
    dataset: Dataset,
    images: Iterator[DatasetImage],
    spec: InputSpec,
    progress: Progress,
    threads: int | None,
) -> None:
    total = len(_rows(dataset))
    labels = np.empty(total, dtype=np.int64)
    names: list[str] = []
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
        "fortran_order": False,
        "shape": (total, spec.height, spec.width, spec.channels),
    }
    progress(0.0, f"decoding {total:,} images")
    # Written as a file, not through a map: on a full disk a map kills the process by a signal.
    with open(folder / _IMAGES, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk, pixels in _decoded_chunks(images, spec, dataset.name, threads):
            labels[len(names) : len(names) + len(chunk)] = [image.label for image in chunk]
            names += [image.name for image in chunk]
            file.write(pixels.data)
            progress(0.99 * len(names) / total, f"decoded {len(names):,} of {total:,} images")
    np.save(folder / _LABELS, labels)
    write_synced(folder / _NAMES, json.dumps(names).encode())
    for saved in (_IMAGES, _LABELS):
        sync_file(folder / saved)


def _decoded_chunks(
    images: Iterator[DatasetImage], spec: InputSpec, dataset: str, threads: int | None
) -> Iterator[tuple[list[DatasetImage], NDArray[np.uint8]]]:
    """Yield the images in order, a chunk at a time, decoded by a few threads ahead."""
    workers = threads or len(os.sched_getaffinity(0))
    ahead: deque[tuple[list[DatasetImage], Future[NDArray[np.uint8]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while chunk := list(islice(images, _CHUNK_IMAGES)):
                ahead.append((chunk, pool.submit(_decode_chunk, chunk, spec, dataset)))
                # Bounded, or a fast disk would pile up the whole dataset in memory.
                if len(ahead) > 2 * workers:
                    first, pixels = ahead.popleft()
                    yield first, pixels.result()
            for first, pixels in ahead:
                yield first, pixels.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode_chunk(chunk: list[DatasetImage], spec: InputSpec, dataset: str) -> NDArray[np.uint8]:
    pixels = np.empty((len(chunk), spec.height, spec.width, spec.channels), dtype=np.uint8)
    for row, image in enumerate(chunk):
        try:
            pixels[row] = decode_image(image.data, spec)
        except InvalidImage as error:
            raise InvalidDataset(
                f'The image "{image.name}" of the dataset {dataset} cannot be used: {error.detail}',
                field="spec.dataset",
                remedy="Replace the image or leave it out, and send the dataset under a new name.",
            ) from None
    return pixels


def _publish(work: Path, folder: Path) -> None:
    try:
        os.rename(work, folder)
    except OSError as error:
        # Somebody else was faster, with the same content.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
