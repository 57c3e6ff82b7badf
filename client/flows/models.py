"""Published models: look up, name by alias, download, remove."""

import hashlib
import os
from functools import partial
from itertools import count
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import httpx

from client.answers import json_object, listed, parsed, unexpected, validated
from client.errors import UnusableFile
from client.exchange import Close, Flow, Pause, Read, Request, Work
from client.session import Session
from client.types import Aliases, AliasSet, Model, ModelVersion
from client.upload import Progress


def every(session: Session) -> Flow[list[Model]]:
    """Return all models, by name."""
    return listed(Model, (yield from session.answer(Request("GET", "/models"))), "models")


def model(session: Session, name: str) -> Flow[Model]:
    """Return one model, with its latest version."""
    return parsed(Model, (yield from session.answer(Request("GET", _path(name)))))


def versions(session: Session, name: str) -> Flow[list[ModelVersion]]:
    """Return every version of a model, newest first, page after page."""
    found: list[ModelVersion] = []
    before: int | None = None
    while True:
        request = Request("GET", _path(name, "versions"), params={"before": before})
        answer = yield from session.answer(request)
        found += listed(ModelVersion, answer, "versions")
        before = json_object(answer).get("next")
        if not isinstance(before, int):
            return found


def version(session: Session, name: str, number: int) -> Flow[ModelVersion]:
    """Return one version of a model."""
    answer = yield from session.answer(Request("GET", _path(name, "versions", number)))
    return parsed(ModelVersion, answer)


def aliases(session: Session, name: str) -> Flow[dict[str, int]]:
    """Return the version that each alias points to."""
    answer = yield from session.answer(Request("GET", _path(name, "aliases")))
    return validated(Aliases, json_object(answer), answer).aliases


def set_alias(session: Session, name: str, alias: str, number: int) -> Flow[AliasSet]:
    """Point an alias to a version."""
    request = Request("PUT", _path(name, "aliases", alias), json={"version": number})
    return parsed(AliasSet, (yield from session.answer(request)))


def delete_alias(session: Session, name: str, alias: str) -> Flow[None]:
    """Remove an alias."""
    yield from session.answer(Request("DELETE", _path(name, "aliases", alias)))


def delete_version(session: Session, name: str, number: int) -> Flow[None]:
    """Remove one version."""
    yield from session.answer(Request("DELETE", _path(name, "versions", number)))


def delete(session: Session, name: str) -> Flow[None]:
    """Remove a model with all its versions."""
    yield from session.answer(Request("DELETE", _path(name)))


def download(
    session: Session, name: str, number: int, target: Path, progress: Progress | None
) -> Flow[Path]:
    """Write an artifact to ``target``, which appears only when it is whole and of its digest.

    A connection that breaks within the file is begun anew.
    """
    request = Request("GET", _path(name, "versions", number, "artifact"))
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        for attempt in count(1):
            response = yield from session.answer(request, streamed=True)
            try:
                with part.open("wb") as file:
                    yield from _received(response, file, progress)
                break
            except httpx.TransportError as error:
                yield Close(response)
                if attempt >= session.retries.attempts:
                    raise session.unreachable(error) from None
            yield Pause(session.retries.pause_s(attempt, session.jitter()))
        part.replace(target)
    except OSError as error:
        raise UnusableFile(f"{target}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return target


def _received(response: httpx.Response, file: BinaryIO, progress: Progress | None) -> Flow[None]:
    total = int(response.headers.get("content-length", "0"))
    hashed, received = hashlib.sha256(), 0
    while chunk := (yield Read(response)):
        hashed.update(chunk)
        yield Work(partial(file.write, chunk))
        received += len(chunk)
        if progress is not None:
            progress(received, total)
    digest = f"sha256:{hashed.hexdigest()}"
    tag = response.headers.get("etag", "").removeprefix("W/").strip('"')
    if tag.startswith("sha256:") and tag != digest:
        raise unexpected(response, f"bytes of the digest {digest}, which is not its ETag")


def _path(name: str, *below: str | int) -> str:
    return "/".join(
        ["/models", quote(name, safe=""), *(quote(str(part), safe="") for part in below)]
    )
