"""How long a client may take for what no route waits for: a request's head, and a refused body."""

import asyncio
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.errors import SlowBody
from store.errors import BitpressError

_Awaited = Literal["head", "rest"]


class TimedProtocol(H11Protocol):
    """HTTP/1.1 by uvicorn and h11, with an end to every wait.

    The routes bound how long a body may take that they read. Nobody else would bound a head that
    comes byte by byte, and a body that goes on after its refusal.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_s: float = self.config.app.state.settings.request_head_s  # type: ignore[union-attr]
        self._awaited: _Awaited | None = None
        self._clock: asyncio.TimerHandle | None = None

    def refuse(self, error: BitpressError) -> None:
        """Answer ``error`` to what is no complete request, and close the connection."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_clock()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._set_clock()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._set_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_clock()

    def _set_clock(self) -> None:
        """Start the clock where a wait begins; more bytes of the same thing do not set it back."""
        awaited = self._what_is_awaited()
        if awaited != self._awaited:
            self._stop_clock()
            self._awaited = awaited
            if awaited is not None:
                self._clock = self.loop.call_later(self._head_s, self._time_is_up)

    def _what_is_awaited(self) -> _Awaited | None:
        if self.transport.is_closing():
            return None
        if self.conn.their_state is h11.IDLE:
            return "head"
        # The answer is complete, and more of the body comes all the same.
        answered = self.conn.our_state in (h11.DONE, h11.MUST_CLOSE)
        return "rest" if answered and self.conn.their_state is h11.SEND_BODY else None

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
        self._awaited = self._clock = None

    def _time_is_up(self) -> None:
        self._clock = None
        if self.transport.is_closing():
            return
        begun, _ = self.conn.trailing_data
        if self._awaited == "head" and begun:
            self.refuse(
                SlowBody(
                    f"The request's head was not complete after {self._head_s:g} seconds.",
                    remedy="Send the request line and all headers without pauses.",
                )
            )
        else:
            # Nothing was asked, or the answer is there already.
            self.transport.close()
