"""What the client does, step by step and without doing it: the sans-IO core of both clients.

A *flow* is a generator: it yields steps (send this request, read on, pause, ...), is told what each
one came to, and returns the result of a call. Everything that is to be decided (retries, paging,
following events, falling back to polling) stands in flows. `Client` and `AsyncClient` carry steps
out, and know nothing else.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Generic, TypeVar

import httpx

T = TypeVar("T")

# Those that may be sent twice without doing twice what they do (RFC 9110, 9.2.2).
IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE"})
# How long silence is borne. A dataset is unpacked and checked before it is answered for; an event
# stream gives a sign of life every 15 seconds; everything else answers soon.
SILENCE_S = 60.0
UPLOAD_SILENCE_S = 1800.0
EVENTS_SILENCE_S = 45.0


@dataclass(frozen=True)
class Part:
    """A part of a multipart form; ``opened`` gives its bytes anew for each attempt to send it."""

    name: str
    filename: str | None
    opened: Callable[[], BinaryIO | bytes]
    media_type: str = "application/octet-stream"


@dataclass(frozen=True)
class Request:
    """One request, to be sent as often as it takes.

    ``form`` and ``parts`` together are a multipart form (fields first), ``form`` alone too;
    ``safe_to_repeat`` says of a POST that sending it twice does no more than sending it once.
    """

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, str] = field(default_factory=dict)
    parts: Sequence[Part] = ()
    json: Any = None
    silence_s: float = SILENCE_S
    safe_to_repeat: bool = False

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again although an earlier attempt may have been carried out."""
        return self.safe_to_repeat or self.method in IDEMPOTENT_METHODS

    def built(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Return it as a request of ``http``, its files at their beginning."""
        files: list[tuple[str, Any]] = [
            *((name, (None, value)) for name, value in self.form.items()),
            *((part.name, (part.filename, part.opened(), part.media_type)) for part in self.parts),
        ]
        return http.build_request(
            self.method,
            self.path,
            params={name: value for name, value in self.params.items() if value is not None},
            headers=dict(self.headers),
            files=files or None,
            json=self.json,
            timeout=httpx.Timeout(SILENCE_S, connect=10.0, read=self.silence_s),
        )


@dataclass(frozen=True)
class Send:
    """Send the request; comes to an `httpx.Response`, read to its end unless ``streamed``.

    An error answer is always read. What fails on the way is thrown into the flow.
    """

    request: Request
    streamed: bool = False


@dataclass(frozen=True)
class Read:
    """Read on in a streamed answer; comes to the next bytes, and to b"" at its end."""

    response: httpx.Response


@dataclass(frozen=True)
class Close:
    """Drop a streamed answer, read or not; comes to nothing."""

    response: httpx.Response


@dataclass(frozen=True)
class Pause:
    """Let so many seconds pass; comes to nothing."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Call a function that takes its time (disk, hashing); comes to what it returns."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Emit:
    """Hand one of many results to the caller, who may ask for no more; comes to nothing."""

    value: Any


Step = Send | Read | Close | Pause | Work | Emit
Flow = Generator[Step, Any, T]


class Walk(Generic[T]):
    """A flow under way: ``step`` is to be carried out next; None once ``result`` is there."""

    def __init__(self, flow: Flow[T]) -> None:
        self._flow = flow
        self.step: Step | None = None
        self.result: T | None = None
        self._advance(lambda: next(flow))

    def tell(self, outcome: Any) -> None:
        """Go on with what the step came to."""
        self._advance(lambda: self._flow.send(outcome))

    def fail(self, error: Exception) -> None:
        """Go on with the exception that the step ended with; it comes back where no one minds."""
        self._advance(lambda: self._flow.throw(error))

    def close(self) -> None:
        """Give the flow up."""
        self._flow.close()

    def _advance(self, go_on: Callable[[], Step]) -> None:
        try:
            self.step = go_on()
        except StopIteration as end:
            self.step, self.result = None, end.value
