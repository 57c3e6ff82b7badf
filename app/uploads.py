"""Bodies as they stream in: counted in bytes received, parsed piece by piece, never spooled.

The framework's own form parser writes whole files below /tmp before a route sees them. Here a part
goes to its destination while it arrives, so memory stays constant, a refusal comes as early as its
reason, and an aborted request leaves nothing.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio.to_thread import run_sync
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from app.errors import MalformedBody, SlowBody, UnsupportedMedia
from store.errors import InvalidInput, TooLarge
from store.uploads import UploadStore, UploadWriter

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

T = TypeVar("T")

_WRITE_BYTES = 2**20
"""Chunks are gathered to this size before a thread writes them: a hop a chunk would cost more."""


@dataclass(frozen=True)
class BodyLimits:
    """``field`` is what a `TooLarge` names; ``idle_s`` the longest wait for the next chunk.

    ``total_s`` bounds the time from the first wait to the end of the body.
    """

    max_bytes: int
    idle_s: float
    total_s: float = inf
    field: str | None = None
    max_parts: int = 16


@dataclass(frozen=True)
class Part:
    """The head of one part of a multipart body."""

    name: str
    filename: str | None


def media_type(request: Request) -> str:
    """Return the request's media type in lower case, without parameters; empty where unsaid."""
    return parse_options_header(request.headers.get("content-type"))[0].decode("latin-1")


async def body_chunks(request: Request, limits: BodyLimits) -> AsyncGenerator[bytes, None]:
    """Yield the body as it arrives.

    Raises:
        TooLarge: at once where Content-Length says so, else when the bytes received pass the limit.
        SlowBody: no byte came for ``idle_s``, or the end did not within ``total_s``.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_bytes:
        raise _too_large(limits)
    received = 0
    deadline = anyio.current_time() + limits.total_s
    stream = request.stream()
    async with aclosing(stream):
        while True:
            try:
                with anyio.fail_after(min(limits.idle_s, deadline - anyio.current_time())):
                    chunk = await anext(stream, b"")
            except TimeoutError:
                raise _too_slow(limits, anyio.current_time() >= deadline) from None
            if not chunk:
                return
            received += len(chunk)
            if received > limits.max_bytes:
                raise _too_large(limits)
            yield chunk


async def read_body(request: Request, limits: BodyLimits) -> bytes:
    """Return the whole body. Raises as `body_chunks` does."""
    body = bytearray()
    async with aclosing(body_chunks(request, limits)) as chunks:
        async for chunk in chunks:
            body += chunk
    return bytes(body)


async def receive_form(
    request: Request, limits: BodyLimits, take: Callable[[Part, bytes], Awaitable[None]]
) -> None:
    """Parse a multipart body, giving ``take`` every piece of every part in order.

    The first piece of a part is empty, so that empty parts are seen too.

    Raises:
        UnsupportedMedia: the body is no multipart/form-data.
        MalformedBody: it is not what it says, or ends too early.
        TooLarge, SlowBody: as `body_chunks`.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise UnsupportedMedia(
            "The body is not multipart/form-data.",
            field="Content-Type",
            remedy="Send the body as multipart/form-data.",
        )
    pieces = _Pieces(limits.max_parts)
    try:
        parser = MultipartParser(options.get(b"boundary", b""), pieces.callbacks())
    except FormParserError:
        raise _malformed("its boundary is too long") from None
    if not options.get(b"boundary"):
        raise _malformed("Content-Type names no boundary")
    async with aclosing(body_chunks(request, limits)) as chunks:
        async for chunk in chunks:
            try:
                parser.write(chunk)
            except FormParserError:
                raise _malformed("it breaks the multipart syntax") from None
            for part, data in pieces.drain():
                await take(part, data)
    if not pieces.complete:
        raise _malformed("it ends before its closing boundary")


@dataclass
class StoredForm:
    """Text fields by name, and the writer of the file part, `None` where it was not sent."""

    texts: dict[str, str] = field(default_factory=dict)
    file: UploadWriter | None = None


@asynccontextmanager
async def receive_stored_form(
    request: Request,
    limits: BodyLimits,
    uploads: UploadStore,
    *,
    file_field: str,
    text_fields: Mapping[str, int],
    max_file_bytes: int,
    on_text: Callable[[str, str], Awaitable[None]] | None = None,
) -> AsyncIterator[StoredForm]:
    """Receive a form of one file and some text fields (with their most bytes), in any order.

    The file is not committed: unless the block does so, it is gone when the block ends.
    ``on_text`` sees each text field as soon as it is there, and may raise to end it all early.

    Raises:
        InvalidInput: an unknown field, a repeated one, or a text that is no UTF-8.
        TooLarge: a text, the file or the body is over its limit.
        MalformedBody, UnsupportedMedia, SlowBody: as `receive_form`.
    """
    form = StoredForm()
    buffer = bytearray()
    current: Part | None = None

    async def finish_part() -> None:
        if current is None:
            return
        if form.file is not None and current.name == file_field:
            await run_sync(form.file.write, bytes(buffer))
        else:
            form.texts[current.name] = text = _decode(current.name, buffer)
            if on_text is not None:
                await on_text(current.name, text)
        buffer.clear()

    async with AsyncExitStack() as stack:

        async def take(part: Part, data: bytes) -> None:
            nonlocal current
            if part is not current:
                await finish_part()
                current = part
                _check_field(part, form, (*text_fields, file_field), file_field)
                if part.name == file_field:
                    form.file = await stack.enter_async_context(
                        in_thread(uploads.receive(max_bytes=max_file_bytes, field=file_field))
                    )
            buffer.extend(data)
            if part.name == file_field:
                if form.file is not None and len(buffer) >= _WRITE_BYTES:
                    await run_sync(form.file.write, bytes(buffer))
                    buffer.clear()
            elif len(buffer) > text_fields[part.name]:
                raise TooLarge(
                    f"{part.name} is larger than {text_fields[part.name]:,} bytes.",
                    field=part.name,
                    remedy="Shorten it.",
                )

        await receive_form(request, limits, take)
        await finish_part()
        yield form


@asynccontextmanager
async def in_thread(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave a blocking context manager on threads; it is left on cancellation too."""
    # Shielded: a cancellation between entering here and noting it would leave it open for ever.
    with anyio.CancelScope(shield=True):
        value = await run_sync(manager.__enter__)
    try:
        yield value
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            await run_sync(manager.__exit__, type(error), error, error.__traceback__)
        raise
    with anyio.CancelScope(shield=True):
        await run_sync(manager.__exit__, None, None, None)


class _Pieces:
    """Turns the parser's callbacks into ``(part, data)`` pieces."""

    def __init__(self, max_parts: int) -> None:
        self.complete = False
        self._max_parts = max_parts
        self._parts = 0
        self._part = Part("", None)
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._pieces: list[tuple[Part, bytes]] = []

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_header_name,
            "on_header_value": self._add_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_end": self._end,
        }

    def drain(self) -> list[tuple[Part, bytes]]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > self._max_parts:
            raise TooLarge(
                f"The body has more than {self._max_parts:,} parts.",
                remedy="Send fewer parts in one request.",
            )
        self._disposition = b""

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        if not options.get(b"name"):
            raise _malformed("a part has no name")
        filename = options.get(b"filename")
        self._part = Part(
            options[b"name"].decode("utf-8", "replace"),
            None if filename is None else filename.decode("utf-8", "replace"),
        )
        self._pieces.append((self._part, b""))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append((self._part, data[start:end]))

    def _end(self) -> None:
        self.complete = True


def _check_field(part: Part, form: StoredForm, known: tuple[str, ...], file_field: str) -> None:
    if part.name not in known:
        raise InvalidInput(
            "There is no such form field.",
            field=part.name[:100],
            remedy="Send only: " + ", ".join(known) + ".",
        )
    repeated = form.file is not None if part.name == file_field else part.name in form.texts
    if repeated:
        raise InvalidInput(f"{part.name} was sent twice.", field=part.name, remedy="Send it once.")


def _decode(name: str, data: bytearray) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(
            f"{name} is not UTF-8 text.", field=name, remedy="Send it as UTF-8 text."
        ) from None


def _malformed(reason: str) -> MalformedBody:
    return MalformedBody(
        f"The multipart body cannot be read: {reason}.",
        remedy="Send a complete multipart/form-data body.",
    )


def _too_slow(limits: BodyLimits, in_total: bool) -> SlowBody:
    if in_total:
        return SlowBody(
            f"The body was not complete after {limits.total_s:g} seconds.",
            remedy="Send less in one request, or over a faster connection.",
        )
    return SlowBody(
        f"No byte of the body came for {limits.idle_s:g} seconds.",
        remedy="Send the body without pauses.",
    )


def _too_large(limits: BodyLimits) -> TooLarge:
    return TooLarge(
        f"The body is larger than {limits.max_bytes:,} bytes.",
        field=limits.field,
        remedy="Send less, or ask the operator to raise the limit.",
    )
