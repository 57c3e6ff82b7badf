"""Training images that are too large to be kept decoded: read from their files in every epoch.

A few processes decode random crops ahead of the training, which gets them through shared memory.
Which crop an image gives depends on the seed, the epoch and the image, not on who decodes it.
"""

import mmap
import os
import signal
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.cores import usable_cores
from models.preprocessing import InputSpec, normalise
from store.errors import JobCrashed
from worker.training.encoded_images import EncodedImages, Rows, naming_the_image
from worker.training.lifetime import die_with
from worker.training.random_crop import decode_random_crop

# Batches that are decoded or being decoded at one time, which bounds the shared memory.
BATCHES_AHEAD = 3
# Few, so that the processes finish a batch together; enough to make handing out cheap.
_IMAGES_PER_TASK = 8

_ORDER, _CROP = 1, 2  # keep the random choices of one seed and epoch apart


class FolderImages:
    """Images in their files, of which every epoch takes a random part of each.

    The order of an epoch is that of `worker.training.images.CachedImages` for the same seed.
    """

    def __init__(
        self,
        encoded: EncodedImages,
        labels: NDArray[np.int64],
        spec: InputSpec,
        *,
        seed: int,
        rows: Rows | None = None,
        processes: int | None = None,
    ) -> None:
        """Take images ``rows`` of ``encoded``; all where there are no rows.

        ``labels`` (N,) is of the length of ``encoded``. ``processes`` decode at one time; by
        default as many as there are cores, divided among the processes that train.

        Raises:
            ValueError: the lengths differ, or there is no process.
        """
        if len(encoded) != len(labels):
            raise ValueError(f"{len(encoded)} images with {len(labels)} labels")
        if processes is not None and processes < 1:
            raise ValueError("decoding needs a process")
        self._encoded, self._labels, self._spec = encoded, labels, spec
        self._seed, self._processes = seed, processes
        self._rows = np.arange(len(encoded)) if rows is None else rows

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    def epoch(
        self, epoch: int, batch_size: int, *, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the epoch's whole batches; see `TrainingImages.epoch`.

        The processes start with the first batch and end with the last one, with an exception or
        when the iterator is closed. They die with this process, and with the thread that asks for
        the first batch.

        Raises:
            ValueError: ``world`` does not divide the batch.
            InvalidDataset: an image cannot be decoded, which is named.
            JobCrashed: a process was killed, as by a lack of memory.
        """
        if batch_size % world:
            raise ValueError(f"a batch of {batch_size} cannot be divided by {world}")
        share = batch_size // world
        order = np.random.default_rng((self._seed, _ORDER, epoch)).permutation(self._rows)
        starts = range(rank * share, len(order) - batch_size + rank * share + 1, batch_size)
        batches = [order[start : start + share] for start in starts]
        crops = _Crops(self._encoded, self._spec, (self._seed, _CROP, epoch))
        processes = self._processes or max(usable_cores() // world, 1)
        with _Decoders(crops, share, processes) as decoders:
            for rows, inputs in decoders.decode(batches):
                yield inputs, torch.from_numpy(np.asarray(self._labels[rows], dtype=np.int64))


@dataclass(frozen=True)
class _Crops:
    """One epoch's random parts of images."""

    encoded: EncodedImages
    spec: InputSpec
    seed: tuple[int, ...]

    def decode(self, row: int) -> NDArray[np.uint8]:
        random = np.random.default_rng((*self.seed, row))
        with naming_the_image(self.encoded, row):
            return decode_random_crop(self.encoded.read(row), self.spec, random)


class _Decoders:
    """Processes that decode batches of ``share`` images into memory which they share with this one.

    The memory is an anonymous map that forked processes inherit: no file is left behind however
    they end, and the size of /dev/shm, small in containers, does not matter.
    """

    def __init__(self, crops: _Crops, share: int, processes: int) -> None:
        self._crops = crops
        shape = (BATCHES_AHEAD, share, crops.spec.height, crops.spec.width, crops.spec.channels)
        memory = mmap.mmap(-1, max(int(np.prod(shape)), 1))
        self._slots = np.frombuffer(memory, np.uint8, int(np.prod(shape))).reshape(shape)
        self._executor = ProcessPoolExecutor(
            processes,
            mp_context=get_context("fork"),
            initializer=_begin,
            initargs=(os.getpid(), crops, self._slots),
        )

    def __enter__(self) -> Self:
        with warnings.catch_warnings():
            # From Python 3.12 on, of forking beside threads. What the children run, Pillow and
            # numpy on one thread, holds no lock that a thread of this process could have held.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._executor.submit(os.getpid)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    def decode(self, batches: Sequence[Rows]) -> Iterator[tuple[Rows, Tensor]]:
        """Yield the rows and the normalised images, float32 (n, C, H, W), of each batch in turn."""
        waiting = iter(batches)
        ahead: deque[tuple[int, Rows, list[Future[None]]]] = deque()
        try:
            for slot, rows in enumerate(islice(waiting, BATCHES_AHEAD)):
                ahead.append((slot, rows, self._begin_batch(slot, rows)))
            while ahead:
                slot, rows, parts = ahead.popleft()
                for part in parts:
                    part.result()
                inputs = normalise(self._slots[slot], self._crops.spec)
                # The slot is free again, and the processes must not wait for the training.
                if (following := next(waiting, None)) is not None:
                    ahead.append((slot, following, self._begin_batch(slot, following)))
                yield rows, inputs
        except BrokenProcessPool:
            raise JobCrashed(
                "A process that decodes images was killed, which is what the system does when "
                "memory runs out.",
                remedy="Give the worker more memory, or use a smaller batch.",
            ) from None

    def _begin_batch(self, slot: int, rows: Rows) -> list[Future[None]]:
        starts = range(0, len(rows), _IMAGES_PER_TASK)
        return [
            self._executor.submit(_fill, slot, start, rows[start : start + _IMAGES_PER_TASK])
            for start in starts
        ]


# What follows runs in the decoding processes.

_task: tuple[_Crops, NDArray[np.uint8]] | None = None


def _begin(parent: int, crops: _Crops, slots: NDArray[np.uint8]) -> None:
    """Prepare a process that was forked just now."""
    global _task
    die_with(parent)
    # A Ctrl-C is for the parent, which then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _task = (crops, slots)


def _fill(slot: int, start: int, rows: Rows) -> None:
    """Decode ``rows`` to the places of a batch from ``start`` on."""
    assert _task is not None
    crops, slots = _task
    for place, row in enumerate(rows.tolist(), start):
        slots[slot, place] = crops.decode(row)
