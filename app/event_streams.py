"""Following jobs on behalf of many readers: one look at the database for all of them.

A reader is anywhere in a job's events: it reads pages from the database until it has come to the
newest, and from there on gets what the common look, twice a second, has found. The look costs the
same few queries however many readers a job has, in a thread of its own; a reader who waits costs a
coroutine. What a reader has not taken is not kept for it, as it can be read again.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from store.errors import InvalidInput, Overloaded, Unavailable
from store.job_events import JobEvent, JobEvents, Position
from store.jobs import JobStore

_PAGE = 500
# Of a job, in memory: enough for readers who keep up.
_RECENT = 500
_log = logging.getLogger("bitpress.app")

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class _Feed:
    """What is known of one job that somebody reads.

    ``recent`` has all events from ``since`` (exclusive) to ``head``. ``over`` says that nothing
    follows: the job's end is among its events, or the job was deleted.
    """

    head: int
    since: int
    over: bool = False
    readers: int = 0
    recent: deque[JobEvent] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, events: Sequence[JobEvent]) -> None:
        for event in events:
            self.recent.append(event)
            self.head = event.seq
        while len(self.recent) > _RECENT:
            self.since = self.recent.popleft().seq

    def announce(self) -> None:
        """Wake all who wait."""
        self.news.set()
        self.news = asyncio.Event()


class EventStream:
    """One reader's way through the events of a job, behind number ``after``."""

    def __init__(self, streams: "EventStreams", job_id: str, feed: _Feed, after: int) -> None:
        self._streams = streams
        self._job_id = job_id
        self._feed = feed
        self._after = after

    async def pages(self, silence_s: float) -> AsyncIterator[Sequence[JobEvent]]:
        """Yield events as they come; nothing, as an empty page, after so many seconds of silence.

        It ends after the job's last event, and when the app stops.
        """
        while True:
            page = await self._next()
            if page:
                self._after = page[-1].seq
                yield page
            elif self._feed.over:
                return
            else:
                news = self._feed.news
                try:
                    await asyncio.wait_for(news.wait(), silence_s)
                except TimeoutError:
                    yield ()

    async def _next(self) -> Sequence[JobEvent]:
        feed = self._feed
        if self._after >= feed.head:
            return ()
        if self._after >= feed.since:
            return [event for event in feed.recent if event.seq > self._after]
        with contextlib.suppress(Unavailable):
            return await self._streams.page(self._job_id, self._after)
        # It will be there again; meanwhile there is no more to tell than that.
        await asyncio.sleep(self._streams.look_every_s)
        return ()


class EventStreams:
    """All open streams; at most ``max_streams`` at once. To be used in one event loop."""

    def __init__(
        self, jobs: JobStore, events: JobEvents, *, max_streams: int, look_every_s: float = 0.5
    ) -> None:
        self._jobs = jobs
        self._events = events
        self._max_streams = max_streams
        self.look_every_s = look_every_s
        self._feeds: dict[str, _Feed] = {}
        self._open = 0
        self._looking: asyncio.Task[None] | None = None
        self._available = True
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="events")

    @contextlib.asynccontextmanager
    async def stream(self, job_id: str, after: int) -> AsyncIterator[EventStream | None]:
        """Open a reader's stream behind event number ``after``; None where nothing will follow.

        Raises:
            NotFound: there is no such job.
            InvalidInput: the job has no event with this number yet.
            Overloaded: there are too many streams.
        """
        if self._open >= self._max_streams:
            raise Overloaded(
                f"{self._max_streams} streams of events are open, and there can be no more.",
                remedy="Close some, or ask GET /jobs/{id} now and then.",
            )
        self._open += 1
        try:
            position = await self._in_thread(self._prepare, job_id)
            if after > position.seq:
                raise InvalidInput(
                    f"The job has no event {after} yet, only {position.seq}.",
                    field="Last-Event-ID",
                    remedy="Give the id of the last event that came, or none for all events.",
                )
            if position.ended and after == position.seq:
                yield None
                return
            feed = self._feeds.get(job_id)
            if feed is None or (feed.over and not position.ended):
                # Or that of readers who have yet to take the end before the job was tried again.
                feed = _Feed(head=position.seq, since=position.seq, over=position.ended)
                self._feeds[job_id] = feed
            feed.readers += 1
            try:
                self._look_from_now_on()
                yield EventStream(self, job_id, feed, after)
            finally:
                feed.readers -= 1
                if feed.readers == 0 and self._feeds.get(job_id) is feed:
                    del self._feeds[job_id]
        finally:
            self._open -= 1

    async def page(self, job_id: str, after: int) -> Sequence[JobEvent]:
        """Return the next events of a job from the database."""
        return await self._in_thread(self._events.after, job_id, after, _PAGE)

    async def close(self) -> None:
        """End every stream and stop looking."""
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        for feed in self._feeds.values():
            feed.over = True
            feed.announce()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, job_id: str) -> Position:
        """Return where the job's events stand, after writing those that follow from the job."""
        position = self._events.positions([job_id])[job_id]
        if position.over is not None and position.kind is not None and not position.unfinished:
            return position
        job = self._jobs.get(job_id)
        self._events.open(job_id, job.created_at)
        self._events.close(job)
        return self._events.positions([job_id])[job_id]

    def _look_from_now_on(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_again_and_again())

    async def _look_again_and_again(self) -> None:
        while any(not feed.over for feed in self._feeds.values()):
            await asyncio.sleep(self.look_every_s)
            heads = {job_id: feed.head for job_id, feed in self._feeds.items() if not feed.over}
            try:
                found = await self._in_thread(self._look, heads)
            except Exception as error:
                # Whatever it is: the streams go on when it is over.
                self._tell_once(error)
                continue
            self._available = True
            for job_id, (events, over) in found.items():
                feed = self._feeds.get(job_id)
                if feed is None or feed.head != heads[job_id]:
                    # Left and opened anew meanwhile, further on.
                    continue
                feed.add(events)
                feed.over = over
                if events or over:
                    feed.announce()

    def _look(self, heads: dict[str, int]) -> dict[str, tuple[list[JobEvent], bool]]:
        """Return what is new of each job behind its ``head``, and whether nothing will follow."""
        positions = self._events.positions(heads)
        for job_id, position in positions.items():
            if position.unfinished and (job := self._jobs.find(job_id)) is not None:
                # Found by the next look.
                self._events.close(job)
        behind = {job_id: seq for job_id, seq in heads.items() if positions[job_id].seq > seq}
        new: dict[str, list[JobEvent]] = {job_id: [] for job_id in heads}
        for event in self._events.after_each(behind, _PAGE):
            new[event.job_id].append(event)
        return {
            job_id: (events, _nothing_follows(positions[job_id], events, heads[job_id]))
            for job_id, events in new.items()
        }

    def _tell_once(self, error: Exception) -> None:
        if self._available:
            self._available = False
            _log.warning("events cannot be read", exc_info=error)

    async def _in_thread(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))


def _nothing_follows(position: Position, events: Sequence[JobEvent], head: int) -> bool:
    if position.over is None:
        # The job was deleted, and its events with it.
        return True
    return position.ended and position.seq == (events[-1].seq if events else head)
