"""Options that several commands share, and how lists and pairs are written on a command line."""

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from client.session import DEFAULT_URL

Url = Annotated[
    str,
    typer.Option("--url", envvar="BITPRESS_URL", help="Where the service is.", show_default=True),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="BITPRESS_DATA_DIR",
        help="Folder with everything the service keeps.",
        show_default="bitpress-data",
    ),
]
Host = Annotated[
    str | None,
    typer.Option(
        "--host", envvar="BITPRESS_HOST", help="Address to listen on.", show_default="127.0.0.1"
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        "--port",
        envvar="BITPRESS_PORT",
        min=0,
        max=65535,
        help="Port to listen on; 0 takes a free one.",
        show_default="8000",
    ),
]
ReadyFile = Annotated[
    Path | None,
    typer.Option(
        "--ready-file",
        envvar="BITPRESS_READY_FILE",
        help="File that gets the service's address once it listens.",
    ),
]
Yes = Annotated[
    bool, typer.Option("--yes", help="Do not ask before something is removed for good.")
]

__all__ = ["DEFAULT_URL", "DataDir", "Host", "Port", "ReadyFile", "Url", "Yes"]

Scalar = bool | int | float | str
Value = Scalar | list[Scalar]


def confirmed(question: str, yes: bool) -> None:
    """Return once ``question`` was answered with yes; end the command where it was not.

    Raises:
        typer.BadParameter: nobody is there to be asked.
        typer.Abort: the answer was no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody can be asked here; give --yes")
    typer.confirm(question, abort=True, err=True)


def numbers(text: str | None) -> tuple[float, ...] | None:
    """Return ``0.5,0.25`` as numbers; None stays None.

    Raises:
        typer.BadParameter: for anything that is not a finite number.
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0.5,0.25") from None
    if not all(map(math.isfinite, values)):
        raise typer.BadParameter(f"{text!r} holds a number that is not finite")
    return values


def names(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the names in a repeated option, each occurrence of which may hold several."""
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


def pairs(texts: Iterable[str]) -> dict[str, Value]:
    """Return repeated ``key=value`` options as a mapping of typed values.

    Several values, ``0.5,0.75,1``, are a list; a list of one is written ``[0.5]``.

    Raises:
        typer.BadParameter: without ``=``, or where a key comes twice.
    """
    found: dict[str, Value] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        key = key.strip()
        if not separator or not key:
            raise typer.BadParameter(f"{text!r} is not of the form key=value")
        if key in found:
            raise typer.BadParameter(f"{key} is given twice")
        found[key] = _value(value.strip())
    return found


def size(text: str | None) -> tuple[int, int] | None:
    """Return ``32`` or ``HEIGHTxWIDTH`` as (height, width); None stays None.

    Raises:
        typer.BadParameter: for anything else.
    """
    if text is None:
        return None
    height, separator, width = text.lower().partition("x")
    try:
        return int(height), int(width if separator else height)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a size such as 32 or 32x48") from None


def _value(text: str) -> Value:
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    elif "," not in text:
        return _scalar(text)
    return [_scalar(part.strip()) for part in text.split(",") if part.strip()]


def _scalar(text: str) -> Scalar:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
