"""How one service is asked: what is sent again after which failure, and after how long."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import count

import httpx

from client.errors import ClientError, ServiceUnreachable, error_of
from client.exchange import Flow, Pause, Request, Send

DEFAULT_URL = "http://127.0.0.1:8000"

# Raised before a byte of the request was sent.
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_REFUSED_UNDONE = frozenset({429})
_PASSING = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class Retries:
    """How often and how long a request is tried.

    A request is sent again where nothing was sent of it, where the service refused it with 429, and
    where it may be carried out twice (see `Request.repeatable`) also after a connection that broke
    and a 502, 503 or 504. Pauses double from ``first_pause_s`` up to ``longest_pause_s``, each
    shortened by up to a half at random, and are never shorter than what ``Retry-After`` asks for;
    where all of them together would exceed ``patience_s``, the failure is raised.
    """

    attempts: int = 5
    first_pause_s: float = 0.2
    longest_pause_s: float = 5.0
    patience_s: float = 60.0

    def pause_s(self, attempt: int, jitter: float) -> float:
        """Return the pause after an attempt (from 1); ``jitter`` is in [0, 1)."""
        doubled = self.first_pause_s * 2.0 ** min(attempt - 1, 30)
        return float(min(doubled, self.longest_pause_s) * (1 - jitter / 2))


@dataclass(frozen=True)
class Session:
    """One service, and the manner of asking it.

    ``clock`` counts seconds; ``jitter`` gives numbers in [0, 1).
    """

    url: str
    retries: Retries
    clock: Callable[[], float]
    jitter: Callable[[], float] = random.random

    def answer(self, request: Request, *, streamed: bool = False) -> Flow[httpx.Response]:
        """Return the successful answer to ``request``.

        Raises:
            BitpressProblem: the service refused.
            UnexpectedAnswer: something else than bitpress did.
            ServiceUnreachable: nothing answered.
        """
        paused_s, unsure = 0.0, False
        for attempt in count(1):
            asked_for_s = 0.0
            try:
                response: httpx.Response = yield Send(request, streamed)
            except (httpx.TransportError, httpx.InvalidURL) as error:
                failure: ClientError = self.unreachable(error)
                again = _may_repeat(request, error)
                unsure = unsure or not isinstance(error, _NEVER_SENT)
            else:
                if response.is_success:
                    return response
                if unsure and request.method == "DELETE" and response.status_code == 404:
                    # An earlier attempt removed it, and its answer was lost.
                    return response
                failure = error_of(response)
                again = response.status_code in (
                    _PASSING if request.repeatable else _REFUSED_UNDONE
                )
                asked_for_s = retry_after_s(response)
            pause_s = max(self.retries.pause_s(attempt, self.jitter()), asked_for_s)
            paused_s += pause_s
            if not again or attempt >= self.retries.attempts or paused_s > self.retries.patience_s:
                raise failure
            yield Pause(pause_s)
        raise AssertionError("unreachable")

    def unreachable(self, error: Exception) -> ServiceUnreachable:
        """Return what a failure of the transport means to the caller."""
        if isinstance(error, httpx.ConnectError):
            return ServiceUnreachable(f"No service answers at {self.url} ({error})")
        if isinstance(error, httpx.TimeoutException):
            return ServiceUnreachable(f"The service at {self.url} did not answer in time")
        if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
            return ServiceUnreachable(f"{self.url} is not an address: {error}")
        return ServiceUnreachable(f"The connection to {self.url} broke: {error}")


def retry_after_s(response: httpx.Response) -> float:
    """Return the seconds that ``Retry-After`` asks for, 0 where it is not there or unreadable.

    A date counts from the answer's own, so that no two clocks need to agree.
    """
    text = response.headers.get("retry-after", "").strip()
    try:
        if text.isdecimal():
            return float(text)
        asked = parsedate_to_datetime(text) - parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError, TypeError):
        return 0.0
    return max(0.0, asked.total_seconds())


def _may_repeat(request: Request, error: Exception) -> bool:
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return False
    return request.repeatable or isinstance(error, _NEVER_SENT)
