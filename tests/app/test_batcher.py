"""The batcher against a computation whose start and end the test decides."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.batcher import Batcher, BatchLimits
from store.errors import Overloaded

FOREVER_S = 3600.0


class Machine:
    """Doubles numbers, batch by batch, each batch only once the test lets it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Semaphore(0)
        self.allowed = threading.Semaphore(0)
        self.failure: Exception | None = None

    def run(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.started.release()
        assert self.allowed.acquire(timeout=30)
        if self.failure is not None:
            raise self.failure
        return [2 * item for item in items]

    async def has_started(self) -> None:
        assert await asyncio.to_thread(self.started.acquire, timeout=30)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as threads:
        yield threads


def batcher_of(
    machine: Machine, executor: ThreadPoolExecutor, wait_s: float = 0.0
) -> Batcher[int, int]:
    return Batcher(machine.run, executor, BatchLimits(4, wait_s, 8))


def run(test: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test

    asyncio.run(limited())


def test_results_come_back_in_order(machine: Machine, executor: ThreadPoolExecutor) -> None:
    async def test() -> None:
        machine.allowed.release()
        results, timing = await batcher_of(machine, executor).submit([1, 2, 3])
        assert results == [2, 4, 6]
        assert timing.compute_s > 0
        assert timing.queue_s >= 0

    run(test())


def test_what_waits_during_a_batch_is_computed_together(
    machine: Machine, executor: ThreadPoolExecutor
) -> None:
    async def test() -> None:
        batcher = batcher_of(machine, executor)
        first = asyncio.create_task(batcher.submit([1]))
        await machine.has_started()
        others = [asyncio.create_task(batcher.submit([number])) for number in (2, 3, 4)]
        await asyncio.sleep(0)
        machine.allowed.release(2)
        assert (await first)[0] == [2]
        assert [(await other)[0] for other in others] == [[4], [6], [8]]
        assert machine.batches == [[1], [2, 3, 4]]

    run(test())


def test_a_full_batch_does_not_wait(machine: Machine, executor: ThreadPoolExecutor) -> None:
    async def test() -> None:
        batcher = batcher_of(machine, executor, wait_s=FOREVER_S)
        machine.allowed.release()
        halves = [asyncio.create_task(batcher.submit(half)) for half in ([1, 2], [3, 4])]
        assert [(await half)[0] for half in halves] == [[2, 4], [6, 8]]
        assert machine.batches == [[1, 2, 3, 4]]

    run(test())


def test_an_incomplete_batch_waits_for_company(
    machine: Machine, executor: ThreadPoolExecutor
) -> None:
    async def test() -> None:
        batcher = batcher_of(machine, executor, wait_s=FOREVER_S)
        first = asyncio.create_task(batcher.submit([1]))
        for _ in range(10):
            await asyncio.sleep(0)
        assert machine.batches == []
        machine.allowed.release()
        await batcher.submit([2, 3, 4])
        await first
        assert machine.batches == [[1, 2, 3, 4]]

    run(test())


def test_an_incomplete_batch_starts_when_its_time_is_up(
    machine: Machine, executor: ThreadPoolExecutor
) -> None:
    async def test() -> None:
        machine.allowed.release()
        results, _ = await batcher_of(machine, executor, wait_s=0.01).submit([1])
        assert results == [2]

    run(test())


def test_more_than_a_batch_is_split(machine: Machine, executor: ThreadPoolExecutor) -> None:
    async def test() -> None:
        machine.allowed.release(2)
        results, _ = await batcher_of(machine, executor).submit([1, 2, 3, 4, 5, 6])
        assert results == [2, 4, 6, 8, 10, 12]
        assert machine.batches == [[1, 2, 3, 4], [5, 6]]

    run(test())


def test_the_queue_is_bounded_and_room_comes_back(
    machine: Machine, executor: ThreadPoolExecutor
) -> None:
    async def test() -> None:
        batcher = batcher_of(machine, executor)
        with batcher.admit(5), batcher.admit(3):
            assert batcher.admitted == 8
            with pytest.raises(Overloaded), batcher.admit(1):
                pass
        assert batcher.admitted == 0
        with batcher.admit(8):
            pass

    run(test())


def test_a_full_queue_says_when_there_will_be_room(executor: ThreadPoolExecutor) -> None:
    now = 0.0

    def run_for_8s(items: Sequence[int]) -> list[int]:
        nonlocal now
        now += 8.0
        return list(items)

    async def test() -> None:
        batcher = Batcher(run_for_8s, executor, BatchLimits(4, 0.0, 8), clock=lambda: now)

        def told() -> float:
            with pytest.raises(Overloaded) as refusal, batcher.admit(3):
                pass
            return refusal.value.retry_after_s

        with batcher.admit(8):
            assert told() == 0.0
            for _ in range(3):
                await batcher.submit([1, 2, 3, 4])
            assert told() == pytest.approx(3 * 8.0 / 4)
            # One image a batch: towards 8 s an image, of which the last batches weigh most.
            for _ in range(30):
                await batcher.submit([1])
            assert told() == pytest.approx(3 * 8.0, rel=0.01)
            for _ in range(3):
                await batcher.submit([1, 2, 3, 4])
            assert 3 * 8.0 / 4 < told() < 3 * 8.0
        with batcher.admit(6), pytest.raises(Overloaded) as refusal, batcher.admit(1000):
            pass
        assert refusal.value.retry_after_s == 60.0

    run(test())


def test_a_computation_that_loses_results_fails_its_batch_alone(
    executor: ThreadPoolExecutor,
) -> None:
    lost = True

    def losing(items: Sequence[int]) -> list[int]:
        return list(items)[lost:]

    async def test() -> None:
        nonlocal lost
        batcher = Batcher(losing, executor, BatchLimits(4, 0.0, 8))
        with pytest.raises(ValueError, match="zip"):
            await batcher.submit([1, 2])
        lost = False
        assert (await batcher.submit([1, 2]))[0] == [1, 2]

    run(test())


def test_a_cancelled_submission_leaves_the_queue(
    machine: Machine, executor: ThreadPoolExecutor
) -> None:
    async def test() -> None:
        batcher = batcher_of(machine, executor)
        first = asyncio.create_task(batcher.submit([1]))
        await machine.has_started()
        leaving = asyncio.create_task(batcher.submit([2]))
        staying = asyncio.create_task(batcher.submit([3]))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        machine.allowed.release(2)
        await first
        assert (await staying)[0] == [6]
        assert machine.batches == [[1], [3]]

    run(test())


def test_a_submission_cancelled_while_it_computes_harms_nobody(
    machine: Machine, executor: ThreadPoolExecutor
) -> None:
    async def test() -> None:
        batcher = batcher_of(machine, executor, wait_s=FOREVER_S)
        leaving = asyncio.create_task(batcher.submit([1, 2]))
        staying = asyncio.create_task(batcher.submit([3, 4]))
        await machine.has_started()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        machine.allowed.release()
        assert (await staying)[0] == [6, 8]

    run(test())


def test_a_failure_reaches_everybody_in_the_batch_and_nobody_after(
    machine: Machine, executor: ThreadPoolExecutor
) -> None:
    async def test() -> None:
        batcher = batcher_of(machine, executor, wait_s=FOREVER_S)
        machine.failure = RuntimeError("broken")
        machine.allowed.release()
        together = [asyncio.create_task(batcher.submit(pair)) for pair in ([1, 2], [3, 4])]
        failures = await asyncio.gather(*together, return_exceptions=True)
        assert [str(failure) for failure in failures] == ["broken", "broken"]
        machine.failure = None
        machine.allowed.release()
        assert (await batcher.submit([1, 2, 3, 4]))[0] == [2, 4, 6, 8]

    run(test())
