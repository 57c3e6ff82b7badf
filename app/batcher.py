"""Dynamic batching: items that wait at the same time are computed together.

The first item waits at most ``max_wait_s`` for company; while a batch computes, the next one
gathers. Everything but the computation itself runs on the event loop, so nothing needs a lock.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from store.errors import Overloaded

_LONGEST_RETRY_S = 60.0
_NEWEST_WEIGHT = 0.2
"""Of the newest batch in the mean time per image: the last ten or so decide."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class BatchLimits:
    """Most images in one batch, the first one's longest wait, most images admitted at once."""

    max_batch_images: int
    max_wait_s: float
    max_queue_images: int


@dataclass(frozen=True)
class Timing:
    """Where a submission's time went: waiting, and in the batches it was part of."""

    queue_s: float
    compute_s: float


@dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    since: float
    answer: "asyncio.Future[tuple[Result, _Batch]]"


@dataclass(eq=False)
class _Batch:
    seconds: float = 0.0


class Batcher(Generic[Item, Result]):
    """Computes items in batches on ``executor``, whose threads decide how many run at once.

    ``run`` takes 1 to ``max_batch_images`` items and returns one result for each, in order.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        executor: Executor,
        limits: BatchLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._executor = executor
        self._limits = limits
        self._clock = clock
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._admitted = 0
        self._image_s: float | None = None
        self._enough = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    @property
    def admitted(self) -> int:
        """Images admitted and not yet answered."""
        return self._admitted

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Hold room for ``count`` images, from before they are decoded until they are answered.

        Raises:
            Overloaded: there is no room now. It tells when there will be, at the pace of the last
                batches.
        """
        if self._admitted + count > self._limits.max_queue_images:
            full = Overloaded(
                "Too many images are waiting for this model.",
                remedy="Try again after the time in Retry-After, with fewer requests at once.",
            )
            excess = self._admitted + count - self._limits.max_queue_images
            full.retry_after_s = min(_LONGEST_RETRY_S, excess * (self._image_s or 0.0))
            raise full
        self._admitted += count
        try:
            yield
        finally:
            self._admitted -= count

    async def submit(self, items: Sequence[Item]) -> tuple[list[Result], Timing]:
        """Return the results for admitted ``items``, in order, and where the time went.

        Cancelling it takes what still waits out of the queue. An exception of ``run`` is raised
        in every submission that was part of the batch.
        """
        if not items:
            return [], Timing(0.0, 0.0)
        loop = asyncio.get_running_loop()
        begun = self._clock()
        waiting = [_Waiting(item, begun, loop.create_future()) for item in items]
        self._waiting.extend(waiting)
        if len(self._waiting) >= self._limits.max_batch_images:
            self._enough.set()
        if self._pump is None:
            self._pump = asyncio.create_task(self._compute_batches())
        try:
            answers = await asyncio.gather(*(one.answer for one in waiting))
        except BaseException:
            self._forget(waiting)
            raise
        compute_s = sum(batch.seconds for batch in {batch for _, batch in answers})
        queue_s = max(0.0, self._clock() - begun - compute_s)
        return [result for result, _ in answers], Timing(queue_s, compute_s)

    def _forget(self, waiting: Sequence[_Waiting[Item, Result]]) -> None:
        for one in waiting:
            one.answer.cancel()
        self._waiting = deque(one for one in self._waiting if not one.answer.done())

    async def _compute_batches(self) -> None:
        # Ends when nothing waits, so that a batcher nobody uses holds no task.
        try:
            while self._waiting:
                await self._wait_for_company()
                batch = [
                    self._waiting.popleft()
                    for _ in range(min(len(self._waiting), self._limits.max_batch_images))
                ]
                if batch:
                    await self._compute(batch)
        finally:
            self._pump = None

    async def _wait_for_company(self) -> None:
        self._enough.clear()
        if len(self._waiting) >= self._limits.max_batch_images:
            return
        remaining = self._waiting[0].since + self._limits.max_wait_s - self._clock()
        if remaining > 0:
            try:
                async with asyncio.timeout(remaining):
                    await self._enough.wait()
            except TimeoutError:
                pass

    async def _compute(self, waiting: Sequence[_Waiting[Item, Result]]) -> None:
        batch = _Batch()
        items = [one.item for one in waiting]
        begun = self._clock()
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._run, items
            )
            answers = list(zip(waiting, results, strict=True))
        except Exception as error:
            for one in waiting:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        batch.seconds = self._clock() - begun
        self._learn(batch.seconds / len(waiting))
        for one, result in answers:
            if not one.answer.done():
                one.answer.set_result((result, batch))

    def _learn(self, image_s: float) -> None:
        before = image_s if self._image_s is None else self._image_s
        self._image_s = before + _NEWEST_WEIGHT * (image_s - before)
