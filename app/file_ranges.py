"""A file as an answer, whole or in part, that stays readable when its name is gone.

The file is open before the answer begins, so a deletion meanwhile harms nobody. What a `Range`
header may ask for is RFC 9110's single range of bytes; several ranges, other units and what cannot
be understood are ignored, as it allows, and the whole file is sent.
"""

import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.errors import UnsatisfiableRange

_CHUNK_BYTES = 2**18
_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.ASCII | re.IGNORECASE)


def byte_range(header: str | None, size: int) -> range | None:
    """Return the offsets of a file of ``size`` bytes that ``header`` asks for; `None`: all of it.

    Raises:
        UnsatisfiableRange: it asks for bytes that are not there.
    """
    asked = _RANGE.fullmatch(header or "")
    if asked is None or asked[1] == asked[2] == "":
        return None
    if not asked[1]:
        start, stop = max(0, size - int(asked[2])), size
    else:
        start, stop = int(asked[1]), min(size, int(asked[2] or size) + 1)
        if asked[2] and int(asked[2]) < start:
            return None
    if start >= size or start >= stop:
        raise _unsatisfiable(size)
    return range(start, stop)


def _unsatisfiable(size: int) -> UnsatisfiableRange:
    error = UnsatisfiableRange(
        f"The file has {size:,} bytes.",
        field="Range",
        remedy="Ask for a range within the file, or leave Range out.",
    )
    error.size = size
    return error


def names_tag(header: str | None, tag: str) -> bool:
    """Tell whether an `If-None-Match` header names the entity tag, by weak comparison."""
    tags = [one.strip().removeprefix("W/") for one in (header or "").split(",")]
    return tag in tags or "*" in tags


class FileAnswer(StreamingResponse):
    """Sends ``part`` of an open file (by default all of its ``size`` bytes), then closes it."""

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        part: range | None,
        *,
        media_type: str,
        headers: Mapping[str, str],
    ) -> None:
        self._file = file
        sent = range(size) if part is None else part
        more = {"Accept-Ranges": "bytes", "Content-Length": str(len(sent))}
        if part is not None:
            more["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
        super().__init__(
            _chunks(file, sent),
            status_code=200 if part is None else 206,
            headers={**headers, **more},
            media_type=media_type,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


def _chunks(file: BinaryIO, part: range) -> Iterator[bytes]:
    file.seek(part.start)
    left = len(part)
    while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
        left -= len(chunk)
        yield chunk
