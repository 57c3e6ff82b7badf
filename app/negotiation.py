"""Which of several media types a request's ``Accept`` header wants (RFC 9110, section 12.5.1)."""

import re
from collections.abc import Iterator, Sequence

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_RANGE = re.compile(rf"({_TOKEN})/({_TOKEN})", re.ASCII)
_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
# A comma or semicolon within a quoted string separates nothing. A string that does not end takes
# the rest along: where a quote always matches, no header takes long.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)', re.DOTALL)


def preferred(accept: str | None, offered: Sequence[str]) -> str | None:
    """Return the media type of ``offered`` that ``accept`` wants most, or None where it wants none.

    For each type the most specific range counts (``text/html``, then ``text/*``, then ``*/*``),
    with its quality ``q``; of equals the one offered first is taken, and without a header the
    first. Parameters other than ``q`` are not looked at, and what is no media range is passed over:
    a header without any range is as good as none.
    """
    ranges = list(_ranges(accept or ""))
    if not ranges:
        return offered[0]
    qualities = [_quality(media_type, ranges) for media_type in offered]
    best = max(qualities)
    return offered[qualities.index(best)] if best > 0 else None


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return the quality, 0 to 1, of the most specific of ``ranges`` that covers ``media_type``."""
    for covering in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        found = [quality for given, quality in ranges if given == covering]
        if found:
            return max(found)
    return 0.0


def _ranges(accept: str) -> Iterator[tuple[str, float]]:
    """Yield each media range, in lower case, and its quality."""
    for element in _QUOTED.sub("", accept).split(","):
        given, *parameters = (part.strip() for part in element.split(";"))
        if not _RANGE.fullmatch(given):
            continue
        quality = "1"
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "q":
                quality = value.strip()
        if _QUALITY.fullmatch(quality):
            yield given.lower(), float(quality)
