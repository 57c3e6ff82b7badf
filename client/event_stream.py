"""Server-sent events, read as they arrive (WHATWG HTML, 9.2), and a job's stream of them."""

import codecs
import json
from contextlib import suppress

import httpx
from pydantic import ValidationError

from client.answers import of_media_type
from client.exchange import EVENTS_SILENCE_S, Close, Flow, Read, Request
from client.session import Session
from client.types import JobEvent

_MOST_LINE_CHARACTERS = 1 << 24


class EventParser:
    """Bytes in, events out: ``id`` is the sequence number, ``event`` the kind, ``data`` JSON."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._fields: dict[str, list[str]] = {}

    def feed(self, chunk: bytes) -> list[JobEvent]:
        """Return the events that ``chunk`` completes.

        Raises:
            ValueError: for a line beyond all measure.
        """
        text = self._rest + self._decoder.decode(chunk)
        # A "\r" at the end may be the first half of a "\r\n".
        held = "\r" if text.endswith("\r") else ""
        lines = text.removesuffix(held).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._rest = lines.pop() + held
        if len(self._rest) > _MOST_LINE_CHARACTERS:
            raise ValueError("a line of the event stream does not end")
        found = []
        for line in lines:
            if line:
                self._take(line)
            elif (event := self._dispatched()) is not None:
                found.append(event)
        return found

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        # A line that begins with a colon is a comment: a sign of life.
        if name:
            self._fields.setdefault(name, []).append(value.removeprefix(" "))

    def _dispatched(self) -> JobEvent | None:
        fields, self._fields = self._fields, {}
        if "data" not in fields or "id" not in fields:
            return None
        with suppress(ValueError, ValidationError):
            return JobEvent(
                seq=int(fields["id"][-1]),
                kind=fields.get("event", ["message"])[-1],
                data=json.loads("\n".join(fields["data"])),
            )
        return None


class EventStream:
    """The events of one job, connection after connection; ``last`` is the latest that came."""

    def __init__(self, session: Session, path: str, after: int | None) -> None:
        self._session = session
        self._path = path
        self.last = after
        self._parser = EventParser()
        self._response: httpx.Response | None = None

    def open(self) -> Flow[bool]:
        """Connect, behind the last event that came; return False where there are no more."""
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        if self.last is not None:
            headers["last-event-id"] = str(self.last)
        request = Request("GET", self._path, headers=headers, silence_s=EVENTS_SILENCE_S)
        response = yield from self._session.answer(request, streamed=True)
        if response.status_code == httpx.codes.NO_CONTENT:
            yield Close(response)
            return False
        self._response = of_media_type(response, "text/event-stream")
        self._parser = EventParser()
        return True

    def read(self) -> Flow[list[JobEvent] | None]:
        """Return the next events, which may be none; None where the connection is at its end."""
        assert self._response is not None
        try:
            chunk: bytes = yield Read(self._response)
            if chunk:
                events = [one for one in self._parser.feed(chunk) if self._is_new(one)]
                if events:
                    self.last = events[-1].seq
                return events
        except (httpx.TransportError, ValueError):
            pass
        yield Close(self._response)
        return None

    def _is_new(self, event: JobEvent) -> bool:
        return self.last is None or event.seq > self.last
