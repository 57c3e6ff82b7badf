"""A dataset decoded once: uint8 pixels in one array on the disk, for every later epoch and job.

``<cache>/<digest>-<C>x<H>x<W>/`` holds ``images.npy``; where images are resized before their centre
is cut out, ``r<resize>`` follows the size. It can be made again at any time, and is never changed:
another size, or other images, is another folder. A dataset that would take too much room, such as
ImageNet at 224 pixels with 190 GB, is not kept but decoded whenever images are read.
"""

import errno
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.cores import usable_cores
from models.preprocessing import InputSpec
from store.dataset_cache import entry_name
from store.datasets import Dataset, DatasetStore
from store.durable import sync_file
from store.scratch import Scratch
from worker.progress import ImageRate, Progress
from worker.streamed_pixels import StreamedPixels, decode_rows
from worker.training.encoded_images import EncodedImages, PixelRows

# Part of every folder's name: raised when decoding changes, so that old pixels are not taken.
_DECODING = 1
_CHUNK_IMAGES = 128
_IMAGES = "images.npy"


@dataclass(frozen=True)
class DecodedDataset:
    """All images of a dataset, sorted by split, class and name.

    ``images`` is uint8 ``(N, H, W, C)``, mapped from the disk and not writable, or decodes the
    rows asked for; ``labels`` is int64 ``(N,)``; ``splits`` gives the rows of each split that the
    dataset has; ``encoded`` gives the images as they were sent.
    """

    images: PixelRows
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    splits: dict[str, range]
    encoded: EncodedImages | None = None


def decode_dataset(
    store: DatasetStore,
    name: str,
    spec: InputSpec,
    cache: Path,
    progress: Progress,
    threads: int | None = None,
    *,
    max_cache_bytes: int | None = None,
) -> DecodedDataset:
    """Return the dataset decoded to the size and channels of ``spec``, from the cache if there.

    A dataset of more than ``max_cache_bytes`` decoded bytes is not decoded now but, by
    ``threads``, whenever some of its images are read; its damaged images show then.
    ``progress`` is called with the fraction done and a message, first with 0 and last with 1.
    Several processes may decode one dataset at once; the first to finish is taken.

    Raises:
        NotFound: there is no such dataset.
        InvalidDataset: an image cannot be decoded, which is named.
        StorageExhausted: the disk is full.
    """
    dataset = store.get(name)
    stored = store.stored_images(name)
    images: PixelRows
    if max_cache_bytes is not None and len(stored) * _image_bytes(spec) > max_cache_bytes:
        progress(0.0, f"{len(stored):,} images")
        images = StreamedPixels(stored, spec, threads)
        progress(1.0, f"{len(stored):,} images are decoded whenever they are read")
    else:
        images = _cached(cache, dataset, stored, spec, progress, threads)
        progress(1.0, f"{len(stored):,} images are decoded")
    return DecodedDataset(
        images=images,
        labels=stored.labels,
        names=tuple(stored.name(row) for row in range(len(stored))),
        classes=dataset.classes,
        splits=split_rows(dataset.splits),
        encoded=stored,
    )


def _image_bytes(spec: InputSpec) -> int:
    return spec.height * spec.width * spec.channels


def split_rows(counts: Mapping[str, int]) -> dict[str, range]:
    """Return the rows of each split, which lie one after the other, given its number of images."""
    rows: dict[str, range] = {}
    start = 0
    for split, count in counts.items():
        rows[split] = range(start, start + count)
        start += count
    return rows


def _cached(
    cache: Path,
    dataset: Dataset,
    stored: EncodedImages,
    spec: InputSpec,
    progress: Progress,
    threads: int | None,
) -> NDArray[np.uint8]:
    size = f"{spec.channels}x{spec.height}x{spec.width}"
    if spec.resize is not None:
        size += f"r{spec.resize}"
    folder = cache / entry_name(dataset.digest, f"{size}-v{_DECODING}")
    while True:
        if not folder.is_dir():
            # Made here, not in advance: sweeping leftovers is for those who may leave some.
            with Scratch(cache / ".tmp").folder() as work:
                _decode_into(work, stored, spec, progress, threads)
                _publish(work, folder)
        # Gone again where its dataset is deleted, and registered anew, at this very moment.
        with suppress(FileNotFoundError):
            mapped: NDArray[np.uint8] = np.load(folder / _IMAGES, mmap_mode="r")
            return mapped


def _decode_into(
    folder: Path,
    images: EncodedImages,
    spec: InputSpec,
    progress: Progress,
    threads: int | None,
) -> None:
    total = len(images)
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
        "fortran_order": False,
        "shape": (total, spec.height, spec.width, spec.channels),
    }
    progress(0.0, f"decoding {total:,} images")
    # Written as a file, not through a map: on a full disk a map kills the process by a signal.
    with open(folder / _IMAGES, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        done, rate = 0, ImageRate(total)
        for pixels in _decoded_chunks(images, spec, threads):
            done += len(pixels)
            file.write(pixels.data)
            message = f"decoded {done:,} of {total:,} images"
            progress(0.99 * done / total, message, rate.details(done))
    sync_file(folder / _IMAGES)


def _decoded_chunks(
    images: EncodedImages, spec: InputSpec, threads: int | None
) -> Iterator[NDArray[np.uint8]]:
    """Yield the images in order, a chunk at a time, decoded by a few threads ahead."""
    workers = threads or usable_cores()
    starts = range(0, len(images), _CHUNK_IMAGES)
    ahead: deque[Future[NDArray[np.uint8]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for start in starts:
                rows = np.arange(start, min(start + _CHUNK_IMAGES, len(images)))
                ahead.append(pool.submit(decode_rows, images, rows, spec))
                # Bounded, or a fast disk would pile up the whole dataset in memory.
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _publish(work: Path, folder: Path) -> None:
    try:
        os.rename(work, folder)
    except OSError as error:
        # Somebody else was faster, with the same content.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
