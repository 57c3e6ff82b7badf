"""Work of one kind on a few threads of its own, so that it never takes those of other requests."""

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from store.errors import Overloaded

T = TypeVar("T")


class Places:
    """``at_once`` run and ``most_waiting`` wait for their turn; others are told to come back.

    ``refusal`` is what these are told.
    """

    def __init__(self, at_once: int, most_waiting: int, refusal: str) -> None:
        self._limiter = CapacityLimiter(at_once)
        self._most_waiting = most_waiting
        self._refusal = refusal

    @property
    def borrowed_tokens(self) -> int:
        """How many run now."""
        return self._limiter.borrowed_tokens

    def check(self) -> None:
        """Raise `Overloaded` where one more would be too many."""
        if self._limiter.statistics().tasks_waiting >= self._most_waiting:
            raise Overloaded(self._refusal, remedy="Try again in a minute.")

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` on a thread and return its result. Raises `Overloaded`."""
        self.check()
        return await run_sync(work, limiter=self._limiter)
